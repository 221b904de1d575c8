//! Endpoints that change while events come: what is accepted after a change was answered is delivered under it.

use std::process::Command;

use herald::facts::{endpoint::EndpointState, id::EntryId};

use crate::{
    merchants::Reply,
    process::Herald,
    world::{Event, PREFIX, World, lives, mark},
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

/// Without the command that it waits with, a follower only looks from time to time.
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

/// Takes what the registry holds of an endpoint, changes it as no Herald of today would, and puts it back.
async fn rewrite(world: &World, name: &str, from: &str, to: &str) {
    const KEY: &str = "herald:{herald}:registry";
    let json: String = world.redis.command(&["HGET", KEY, name]).await;
    assert!(json.contains(from), "{json}");
    world.redis.command::<()>(&["HSET", KEY, name, &json.replace(from, to)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_of_a_newer_herald_waits_alone_and_gets_everything_once_it_can_be_read() {
    let world = World::new().await;
    world.register_many(2).await;
    world.register(world.endpoint("ep_beside", "acc_1")).await;
    rewrite(&world, "ep_1", "\"schema\":1", "\"schema\":99").await;
    let _herald = world.setup().start();
    let of = |account: &str, number: usize| Event::new(number, account, &format!("pi_{}", number % 2), "Created");
    let events: Vec<Event> = (0..20).map(|number| of(if number < 10 { "acc_0" } else { "acc_1" }, number)).collect();
    world.publish(&events).await;
    world.merchants.until_delivered(20).await;
    assert_eq!(world.merchants.log().delivered_to("ep_1"), 0);
    rewrite(&world, "ep_1", "\"schema\":99", "\"schema\":1").await;
    world.change("ep_1", |endpoint| endpoint.description = "mended".to_owned()).await;
    world.merchants.until_delivered(30).await;
    world.until_finished().await;
    world.merchants.assert_sound();
    let log = world.merchants.log();
    assert_eq!(["ep_0", "ep_1", "ep_beside"].map(|endpoint| log.delivered_to(endpoint)), [10; 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_of_one_endpoint_that_a_stranger_wrote_stops_nobody_else() {
    let world = World::new().await;
    world.register_many(2).await;
    for key in ["singles:ep_1", "heads:ep_1", "held:ep_1", "backlog:ep_1"] {
        world.redis.command::<()>(&["SET", &format!("herald:{{payment-intents}}:{key}"), "a stranger's"]).await;
    }
    world.redis.command::<()>(&["HSET", "herald:{payment-intents}:unfinished", "ep_1", "3"]).await;
    world.merchants.rule("ep_1", |_| Reply::status(500));
    let herald = world.setup().start();
    let events: Vec<Event> = (0..40)
        .map(|number| Event::new(number, &format!("acc_{}", number % 2), &format!("pi_{number}"), "Created"))
        .collect();
    world.publish(&events).await;
    world.merchants.until("all that is not its", |log| log.delivered_to("ep_0") == 20).await;
    herald.until_metric("herald_items_set_aside_total", |count| count > 0.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn letters_of_one_moment_are_sent_again_in_the_order_of_the_stream() {
    const EVENTS: usize = 4_000;
    let world = World::new().await;
    let accounts = world.register_many(1).await;
    world.pause("ep_0").await;
    let _herald = world.setup().start();
    world.publish(&lives(5, &accounts, EVENTS)).await;
    let all = |count| count == EVENTS as u64;
    world.until_key("all in the backlog", &["HLEN", &format!("{PREFIX}heads:ep_0")], |heads| heads > 0).await;
    // Hundreds die in each settle, and all of those have one time.
    world.change("ep_0", |endpoint| endpoint.disable(mark(), EntryId::MAX)).await;
    world.until_key("all dead", &["ZCARD", &format!("{PREFIX}dead")], all).await;
    world.change("ep_0", |endpoint| endpoint.status = EndpointState::Enabled).await;
    let redelivered = tokio::task::block_in_place(|| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_herald"));
        command.env_clear().env("USER", "ops").args(["--redis-url", &world.redis.url()]);
        command
            .args(["dead-letter", "redeliver", "--all", "--rate", "5000", "--yes", "--reason", "mended"])
            .output()
            .unwrap()
    });
    assert!(redelivered.status.success(), "{}", String::from_utf8_lossy(&redelivered.stderr));
    world.merchants.until_delivered(EVENTS).await;
    world.merchants.assert_sound();
}

/// An endpoint is deleted, and somebody else's is made under its id before anybody has looked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_of_an_endpoint_goes_to_nobody_who_gets_its_id() {
    let world = World::new().await;
    world.register(world.endpoint("ep_a", "acc_0")).await;
    world.merchants.rule("ep_a", |_| Reply::status(500));
    let setup = world.setup().env("HERALD_RETRY_INITIAL_INTERVAL", "2s");
    let herald = setup.start();
    herald.until_owner().await;
    // Of each intent one that is retried, and one behind it.
    let events: Vec<Event> = (0..10).map(|n| Event::new(n, "acc_0", &format!("pi_{}", n % 5), "Created")).collect();
    world.publish(&events).await;
    world.merchants.until("the first attempts", |log| log.arrivals.len() >= 5).await;
    let mut registry = world.registry().await;
    registry.remove(&"ep_a".parse().unwrap(), None, &mark()).await.unwrap();
    let mut taken = world.endpoint("ep_a", "acc_thief");
    taken.url = world.merchants.url("thief");
    world.register(taken).await;
    let dead = format!("{PREFIX}dead");
    world.until_key("all of them to be given up", &["ZCARD", &dead], |letters| letters == 10).await;
    assert_eq!(world.merchants.log().of("thief").count(), 0, "they were another's");
    // Nor after a restart, nor by hand.
    drop(herald);
    let _herald = setup.start();
    let (first, _): (String, String) = world.redis.command(&["ZRANGE", &dead, "0", "0", "WITHSCORES"]).await;
    let mut command = Command::new(env!("CARGO_BIN_EXE_herald"));
    command.env_clear().env("USER", "ops").args([
        "--redis-url",
        &world.redis.url(),
        "dead-letter",
        "redeliver",
        &first,
    ]);
    let output = command.args(["--yes", "--reason", "mended"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains("ep_a is of acc_thief now, and this is of acc_0"), "{said}");
    world.publish(&[Event::new(99, "acc_thief", "pi_0", "Created")]).await;
    world.merchants.until("its own", |log| log.delivered_to("thief") == 1).await;
    assert_eq!(world.merchants.log().of("thief").count(), 1);
}
