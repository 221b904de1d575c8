//! A real nginx as the receiver, half a continent away: TLS and HTTP/2 with its own defaults, an application behind it,
//! and reloads under way, at which it closes its connections. None of this is anyone's failure.
//! `deploy/setup-verifiers` installs it; each test has an nginx of its own, in a folder and on a port of its own.

// A test measures what another process does.
#![allow(clippy::disallowed_methods)]

#[path = "support/merchants.rs"]
mod merchants;
#[path = "support/herald.rs"]
mod process;
#[path = "receiver/mod.rs"]
mod receiver;
#[path = "nginx/server.rs"]
mod server;
#[path = "support/mod.rs"]
mod support;
#[path = "nginx/way.rs"]
mod way;
#[path = "support/world.rs"]
mod world;

use std::{collections::HashMap, time::Duration};

use herald::facts::endpoint::Endpoint;

use crate::{
    process::Herald,
    server::{Nginx, Request},
    support::until,
    way::Way,
    world::{Event, World},
};

/// To a receiver in another part of the world, and back.
const ROUND_TRIP: Duration = Duration::from_millis(50);

/// What nginx was asked, and what Herald reports about it.
struct Seen {
    published_at: HashMap<String, f64>,
    requests: Vec<Request>,
    /// Attempts by their outcome, except those that delivered.
    failures: Vec<String>,
    resent: f64,
}

/// Publishes this many events a second for this many seconds, with a reload at each of the given times.
async fn run(options: &str, rate: u32, seconds: u32, reload_at_s: &[u32]) -> Seen {
    let world = World::new().await;
    let nginx = Nginx::start(options).await;
    let way = Way::start(nginx.address, ROUND_TRIP / 2).await;
    let endpoint = world.endpoint("ep_0", "acc_0");
    world.register(Endpoint { url: format!("https://{}/hook", way.address), ..endpoint }).await;
    let toml = format!("[attempt]\nca_file = {:?}\n", nginx.authority());
    // The defaults of a real installation, in which a failure costs seconds.
    let patient = [("INITIAL", "5s"), ("MULTIPLIER", "4"), ("MAX_INTERVAL", "12h")];
    let setup =
        patient.iter().fold(world.setup(), |setup, (name, value)| setup.env(&format!("HERALD_RETRY_{name}"), value));
    let herald = setup.toml(&toml).start();
    herald.until_owner().await;

    let mut published_at = HashMap::new();
    let mut tick = tokio::time::interval(Duration::from_secs(1) / rate);
    for number in 0..rate * seconds {
        tick.tick().await;
        if number % rate == 0 && reload_at_s.contains(&(number / rate)) {
            nginx.reload();
        }
        let event = Event::new(number as usize, "acc_0", &format!("pi_{number:06}"), "Created");
        published_at.insert(event.id.clone(), herald::clock::wall_ms() as f64 / 1000.0);
        world.publish(&[event]).await;
    }
    world.until_finished().await;
    let expected = published_at.len();
    until("all requests in nginx' log", async || nginx.requests().len() >= expected).await;
    Seen {
        published_at,
        requests: nginx.requests(),
        failures: failures(&herald),
        resent: herald.metric("herald_requests_resent_total"),
    }
}

/// Each line of the metric that counts attempts other than delivered ones, and is not zero.
fn failures(herald: &Herald) -> Vec<String> {
    let (_, page) = herald.get("/metrics").expect("herald answers");
    let is_failure = |line: &&str| {
        line.starts_with("herald_attempts_total{") && !line.contains("\"delivered\"") && !line.ends_with(" 0")
    };
    page.lines().filter(is_failure).map(str::to_owned).collect()
}

impl Seen {
    /// Everything arrived, and nothing of it counts as anyone's failure.
    fn assert_sound(&self) {
        assert_eq!(self.failures, Vec::<String>::new(), "{} were sent again", self.resent);
        let again: Vec<_> = self.requests.iter().filter(|request| request.attempt != "1").collect();
        assert!(again.is_empty(), "{again:?}");
        for event in self.published_at.keys() {
            assert!(self.requests.iter().any(|request| request.event == *event), "{event} never arrived");
        }
        assert!(self.requests.iter().all(|request| request.status == "200" && request.protocol == "HTTP/2.0"));
    }

    fn late(&self, bound_s: f64) -> usize {
        let late = |request: &&Request| request.at_s - self.published_at[&request.event] > bound_s;
        self.requests.iter().filter(late).count()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nginx_closes_when_it_is_reloaded_or_has_had_enough_is_no_failure() {
    // So few that every connection soon ends with GOAWAY, while requests are on their way.
    let seen = run("keepalive_requests 40;", 120, 6, &[2, 4]).await;
    seen.assert_sound();
    let connections = seen.requests.iter().map(|request| &request.connection).collect::<std::collections::HashSet<_>>();
    assert!(connections.len() > 10, "nginx ended none: {connections:?}");
}

/// An idle connection lives shorter in nginx than Herald keeps it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nginx_closes_as_idle_is_no_failure() {
    run("keepalive_timeout 1s;", 1, 8, &[]).await.assert_sound();
}

/// `deploy/prove` runs this one, because it judges a time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "20 seconds, and it judges a time: deploy/prove runs it"]
async fn a_real_nginx_that_is_reloaded_gets_its_events_in_time() {
    let seen = run("", 120, 20, &[6, 13]).await;
    let (late, all) = (seen.late(1.0), seen.requests.len());
    println!(
        "{{\"nginx\":{{\"events\":{all},\"late\":{late},\"failures\":{},\"resent\":{}}}}}",
        seen.failures.len(),
        seen.resent
    );
    seen.assert_sound();
    assert!(late * 100 < all, "{late} of {all} came more than a second late");
}
