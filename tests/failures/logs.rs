//! The log as whoever collects it sees it: each line of the published form, each event's way by its id, and nothing of what it must
//! never show.

use std::collections::BTreeSet;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    merchants::Reply,
    process::Herald,
    support::until,
    world::{Event, STREAM, World},
};

/// What stands nowhere in a log: a header's value, a query, Redis' password, and a part of each body.
const SECRETS: [&str; 4] = ["header-secret-77", "query-secret-9321", "redis-secret-55", "13:07:41.8667859Z"];

/// Ends it, and returns all that it has logged.
async fn log_of(mut herald: Herald) -> Vec<Value> {
    herald.signal(Signal::SIGTERM);
    assert!(herald.ended().await.success());
    let log = herald.log();
    log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// What `jq 'select(.event == $event)'` tells of it, and at which level.
fn told(log: &[Value], event: &Event) -> BTreeSet<(String, String)> {
    let of_event = log.iter().filter(|line| line["event"] == event.id.as_str());
    let text = |line: &Value, name: &str| line[name].as_str().unwrap().to_owned();
    of_event.map(|line| (text(line, "message"), text(line, "level"))).collect()
}

fn has(log: &[Value], event: &Event, messages: &[&str], level: &str) {
    let told = told(log, event);
    for message in messages {
        assert!(told.contains(&((*message).to_owned(), level.to_owned())), "{message} of {}: {told:?}", event.id);
    }
}

/// A world in which everything happens to some event, and the events: delivered, tried again, dead, parked, held behind one
/// that hangs, of an endpoint that is gone, of nobody.
async fn eventful(world: &World) -> [Event; 8] {
    let accounts = world.register_many(6).await;
    let secretive = |endpoint: &mut herald::facts::endpoint::Endpoint| {
        endpoint.url.push_str("?token=query-secret-9321");
        endpoint.headers.push(("x-key".to_owned(), "header-secret-77".to_owned()));
    };
    for name in ["ep_0", "ep_1", "ep_2"] {
        world.change(name, secretive).await;
    }
    world.change("ep_2", |endpoint| endpoint.retry.max_attempts = Some(1)).await;
    world.pause("ep_3").await;
    world.merchants.rule("ep_1", |arrival| if arrival.attempt == 1 { Reply::status(503) } else { Reply::OK });
    world.merchants.rule("ep_2", |_| Reply::status(500));
    world.merchants.rule("ep_4", |_| Reply::HANGS);
    world.merchants.rule("ep_5", |_| Reply::status(410));
    let event = |number: usize, account: &str, intent: &str| Event::new(number, account, intent, "Created");
    let [a, b, c, d, e, f] = &accounts[..] else { panic!("{accounts:?}") };
    [
        event(0, a, "pi_0"),
        event(1, b, "pi_1"),
        event(2, c, "pi_2"),
        event(3, d, "pi_3"),
        event(4, e, "pi_4"),
        event(5, e, "pi_4"),
        event(6, f, "pi_6"),
        event(7, "acc_nobody", "pi_7"),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_line_has_the_published_form_tells_what_became_of_its_event_and_shows_nothing_secret() {
    let world = World::new().await;
    world.redis.command::<()>(&["ACL", "SETUSER", "worker", "on", ">redis-secret-55", "allkeys", "+@all"]).await;
    let url = world.redis.url().replace("redis://", "redis://worker:redis-secret-55@");
    let events = eventful(&world).await;
    let setup = world.setup().env("HERALD_REDIS_URL", &url).env("HERALD_LOG", "trace");
    let herald = setup.env("HERALD_LOG_FORMAT", "json").start();
    herald.until_owner().await;
    world.publish(&events).await;
    world.redis.command::<String>(&["XADD", STREAM, "*", "event", "13:07:41.8667859Z is no event"]).await;
    for message in
        ["\"held\"", "\"parked\"", "\"retry\"", "\"dead letter\"", "\"quarantined\"", "disabled the endpoint"]
    {
        herald.until_log(message).await;
    }
    world.merchants.heal("ep_4");
    world.merchants.until_delivered(4).await;
    // A connection that breaks while it is used, and calls that fail.
    let _: u64 = world.redis.command(&["CLIENT", "KILL", "USER", "worker"]).await;
    herald.until_log("the term has ended").await;
    herald.until_metric("herald_lease_terms_total", |terms| terms >= 2.0).await;
    assert!(herald.metric("herald_log_lines_total{level=\"debug\"}") > 20.0);
    let log = log_of(herald).await;

    let schema = serde_json::from_str(include_str!("../../docs/log.schema.json")).unwrap();
    let schema = jsonschema::validator_for(&schema).unwrap();
    for line in &log {
        assert!(
            schema.is_valid(line),
            "{line}: {}",
            schema.iter_errors(line).map(|e| e.to_string()).collect::<String>()
        );
        let text = line.to_string();
        assert!(SECRETS.iter().all(|secret| !text.contains(secret)), "{text}");
        assert!(!text.contains(crate::world::secret().reveal()), "{text}");
        let is_own = line["target"].as_str().unwrap().starts_with("herald");
        assert!(is_own || line["level"] == "WARN" || line["level"] == "ERROR", "{text}");
    }
    assert!(log.iter().any(|line| line["level"] == "TRACE"), "the run says all that it has to say");
    assert!(log.iter().skip(1).any(|line| line["instance"].is_string() && line["partition"] == STREAM));

    let [delivered, again, dead, parked, hangs, held, gone, nobodys] = &events;
    has(&log, delivered, &["read", "attempt", "delivered"], "DEBUG");
    has(&log, again, &["read", "attempt", "retry", "delivered"], "DEBUG");
    has(&log, dead, &["read", "attempt", "dead letter"], "DEBUG");
    has(&log, parked, &["read", "parked"], "DEBUG");
    has(&log, hangs, &["read", "attempt", "delivered"], "DEBUG");
    has(&log, held, &["read", "held", "attempt", "delivered"], "DEBUG");
    has(&log, gone, &["read", "attempt", "dead letter"], "DEBUG");
    has(&log, nobodys, &["read", "the account has no endpoint for it"], "DEBUG");
    let retry = log.iter().find(|line| line["message"] == "retry").unwrap();
    assert!(retry["due"].is_string() && retry["attempt"] == 1 && retry["outcome"] == "throttled (503)", "{retry}");
    let attempt = log.iter().find(|line| line["message"] == "attempt" && line["event"] == again.id.as_str()).unwrap();
    assert!(attempt["status"] == 503 && attempt["took_ms"].is_u64() && attempt["account"] == "acc_1", "{attempt}");
    assert!(log.iter().any(|line| line["message"] == "owns the partition" && line["term"].is_string()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_needs_somebody_is_told_at_info_and_the_steps_are_not() {
    let world = World::new().await;
    let events = eventful(&world).await;
    let herald = world.setup().env("HERALD_LOG", "info").env("HERALD_LOG_FORMAT", "json").start();
    world.publish(&events).await;
    world.redis.command::<String>(&["XADD", STREAM, "*", "event", "no event"]).await;
    for message in ["\"dead letter\"", "\"quarantined\"", "disabled the endpoint"] {
        herald.until_log(message).await;
    }
    until("the letter of the endpoint that is gone", async || {
        herald.log().lines().filter(|line| line.contains("\"dead letter\"")).count() == 2
    })
    .await;
    let log = log_of(herald).await;
    has(&log, &events[2], &["dead letter"], "INFO");
    has(&log, &events[6], &["dead letter"], "INFO");
    assert!(told(&log, &events[0]).is_empty() && told(&log, &events[3]).is_empty(), "{log:?}");
}
