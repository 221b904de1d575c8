//! Endpoints that change while events come: what is accepted after a change was answered is delivered under it.

use crate::{
    merchants::Reply,
    process::Herald,
    world::{Event, World},
};

fn event(number: usize) -> Event {
    Event::new(number, "acc_0", &format!("pi_{number}"), "Created")
}

async fn started(world: &World) -> Herald {
    world.register_many(1).await;
    world.merchants.rule("ep_0", |_| Reply::OK);
    let herald = world.setup().start();
    herald.until_owner().await;
    herald
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_gets_everything_that_is_accepted_after_it_was_registered() {
    const ENDPOINTS: usize = 40;
    let world = World::new().await;
    let _herald = started(&world).await;
    for number in 1..ENDPOINTS {
        world.register(world.endpoint(&format!("ep_{number}"), "acc_0")).await;
        world.publish(&[event(number)]).await;
    }
    let owed = |number: usize| (0..=number).map(move |endpoint| (format!("ep_{endpoint}"), event(number).id));
    world
        .merchants
        .until("every event at every endpoint that was there", |log| {
            (1..ENDPOINTS).flat_map(owed).all(|delivery| log.delivered.contains(&delivery))
        })
        .await;
    world.until_finished().await;
    world.merchants.assert_sound();
}

/// Without the command that it waits with, a follower looks only now and then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_goes_to_the_new_url_though_the_follower_of_the_registry_is_held_up() {
    const EVENTS: usize = 16;
    let world = World::new().await;
    let herald = started(&world).await;
    world.publish(&[event(0)]).await;
    world.merchants.until_delivered(1).await;
    world.redis.command::<()>(&["ACL", "SETUSER", "default", "-xread"]).await;
    herald.until_log("cannot follow the registry").await;
    for number in 1..=EVENTS {
        let url = world.merchants.url(&format!("ep_{number}"));
        world.change("ep_0", |endpoint| endpoint.url = url).await;
        world.publish(&[event(number)]).await;
        let delivery = (format!("ep_{number}"), event(number).id);
        world.merchants.until("the event at its URL", |log| log.delivered.contains(&delivery)).await;
    }
    world.until_finished().await;
    assert_eq!(world.merchants.log().delivered_to("ep_0"), 1);
}
