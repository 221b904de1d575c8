//! Machines whose clock is not Redis'. What is told of deliveries goes by Redis'; but a signature says when it was made.

use serde_json::Value;

use crate::{
    replay::answer,
    support::until,
    world::{World, lives},
};

fn findings(world: &World) -> Vec<Value> {
    let doctor = crate::history::verb(world, "", &["doctor", "-o", "json"]);
    let said: Value = serde_json::from_slice(&doctor.stdout).unwrap();
    said["findings"].as_array().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_whose_clock_is_off_gives_way_to_one_that_tells_the_time() {
    for by in ["+2h", "-2h"] {
        let world = World::new().await;
        let accounts = world.register_many(2).await;
        let off = world.setup().elsewhen(by).start();
        off.until_owner().await;
        off.until_log("this machine's clock is ").await;
        let events = lives(1, &accounts, 40);
        world.publish(&events[..20]).await;
        world.merchants.until_delivered(20).await;
        world.until_finished().await;
        assert!(world.merchants.log().faults.iter().any(|fault| fault.contains("signature is wrong")), "{by}");
        until("the doctor, on another machine, to know", async || {
            findings(&world).iter().any(|finding| {
                let says = finding["says"].as_str().unwrap();
                finding["level"] == "fail" && says.starts_with("the clock of the worker") && says.contains("2h")
            })
        })
        .await;
        let right = world.setup().start();
        right.until_owner().await;
        world.merchants.log().faults.clear();
        world.publish(&events[20..]).await;
        world.merchants.until_delivered(40).await;
        world.until_finished().await;
        world.merchants.assert_sound();
        // It does not fetch the lease back, and delivers nothing any more.
        assert_eq!(off.metric("herald_attempts_total{outcome=\"delivered\"}"), 20.0, "{by}");
        // Alone again, it delivers as well as it can: also where nobody has said that the other is gone.
        match by {
            "+2h" => assert!(right.stop().await.success()),
            _ => right.kill9(),
        }
        off.until_owner().await;
        let listed = answer(&world, &crate::history::Place::None, &["dead-letter", "list"]);
        assert_eq!(listed, Value::Array(Vec::new()));
    }
}
