//! Receivers that mean harm, tested through the whole of Herald: none of them slows the others or fills its memory, and
//! each outcome is reported by its name.

use std::{fs, time::Duration};

use tokio::io::AsyncWriteExt;

use crate::{
    process::{Herald, Setup},
    receiver::{Authority, Receiver, self_signed_acceptor},
    support::until,
    world::{Event, World, lives, publish},
};

/// Short, so that a test does not wait for what can only time out; one attempt, so that each delivery ends.
fn setup(world: &World) -> Setup {
    world.setup().env("HERALD_ATTEMPT_TIMEOUT", "1s").env("HERALD_RETRY_MAX_ATTEMPTS", "2").env("HERALD_LOG", "warn")
}

/// Ten healthy endpoints and one at `url`.
async fn world_with(url: &str) -> (World, Vec<String>) {
    let world = World::new().await;
    let accounts = world.register_many(10).await;
    let mut hostile = world.endpoint("ep_hostile", "acc_hostile");
    hostile.url = url.to_owned();
    world.register(hostile).await;
    (world, accounts)
}

/// 200 events for the hostile endpoint among 500 for the others: the others get theirs, and memory stays where it was.
/// What the hostile one does not take is tried so often that it does not end earlier, so waiting for that would be in
/// vain.
async fn bears(receiver: Receiver) -> (World, Herald) {
    let (world, accounts) = world_with(&receiver.url()).await;
    let herald = setup(&world).env("HERALD_RETRY_MAX_ATTEMPTS", "50").start();
    herald.until_owner().await;
    let before = herald.resident();
    let hostile: Vec<Event> =
        (0..200).map(|n| Event::new(800_000 + n, "acc_hostile", &format!("pi_hostile_{n}"), "Created")).collect();
    let mut connection = world.redis.connection().await;
    let events = lives(40, &accounts, 500);
    for (hostile, healthy) in hostile.chunks(20).zip(events.chunks(50)) {
        publish(&mut connection, hostile).await;
        publish(&mut connection, healthy).await;
    }
    world.merchants.until_delivered(500).await;
    until("a hostile receiver's connection", async || receiver.log.connections() > 0).await;
    world.merchants.assert_sound();
    let grown = herald.resident().saturating_sub(before) / 1024;
    println!("memory grew by {grown} KiB");
    assert!(grown < 60 * 1024, "{grown} KiB");
    (world, herald)
}

async fn has_outcome(herald: &Herald, outcome: &str) {
    herald.until_metric(&format!("herald_attempts_total{{outcome=\"{outcome}\"}}"), |count| count >= 1.0).await;
}

/// Writes `first` and then `again` for ever, with a pause.
async fn dripping(first: &'static [u8], again: &'static [u8], pause: Duration) -> Receiver {
    Receiver::start(move |mut stream, log| async move {
        if log.read_request(&mut stream).await.is_none() || stream.write_all(first).await.is_err() {
            return;
        }
        while stream.write_all(again).await.is_ok() {
            if pause > Duration::ZERO {
                tokio::time::sleep(pause).await;
            }
        }
    })
    .await
}

const CHUNKED: &[u8] = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
const CHUNK: &[u8] = b"400\r\n\
    ................................................................................................................\
    ................................................................................................................\
    ................................................................................................................\
    ................................................................................................................\
    ................................................................................................................\
    ................................................................................................................\
    ................................................................................................................\
    ................................................................................................................\
    ................................................................................................................\
    ................\r\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endless_body_is_cut() {
    assert_eq!(CHUNK.len(), 5 + 0x400 + 2);
    let (_world, herald) = bears(dripping(CHUNKED, CHUNK, Duration::ZERO).await).await;
    // The status has arrived: the body that follows is dropped.
    has_outcome(&herald, "delivered").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_of_three_hundred_megabytes_is_not_read() {
    const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 314572800\r\n\r\n";
    let (_world, herald) = bears(dripping(HEAD, &[b'x'; 65_536], Duration::ZERO).await).await;
    has_outcome(&herald, "delivered").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endless_headers_are_garbled() {
    let (_world, herald) =
        bears(dripping(b"HTTP/1.1 200 OK\r\n", b"x-more: 0123456789\r\n", Duration::ZERO).await).await;
    has_outcome(&herald, "garbled").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_at_one_byte_a_second_time_out() {
    let (_world, herald) = bears(dripping(b"HTTP/1.1 200 OK\r\nx", b"x", Duration::from_secs(1)).await).await;
    has_outcome(&herald, "response_timed_out").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_at_one_byte_a_second_slows_nobody_else() {
    bears(dripping(b"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n", b"x", Duration::from_secs(1)).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_is_garbled() {
    let (_world, herald) = bears(Receiver::answering_once(b"\0\xff not HTTP at all\r\n\r\n").await).await;
    has_outcome(&herald, "garbled").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_is_a_reset() {
    let receiver = Receiver::start(|mut stream, log| async move {
        log.read_request(&mut stream).await;
        let _ = stream.set_zero_linger();
    })
    .await;
    let (_world, herald) = bears(receiver).await;
    has_outcome(&herald, "reset").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_interim_answers_ends_with_the_attempt() {
    // As much as the connection takes, because this is a load on the parser and not a trickle.
    let flood: &'static [u8] = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n".repeat(1_000).leak();
    bears(dripping(b"HTTP/1.1 100 Continue\r\n\r\n", flood, Duration::ZERO).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redirect_to_a_metadata_address_is_not_followed() {
    const REDIRECT: &str =
        "HTTP/1.1 307 Temporary Redirect\r\nlocation: http://169.254.169.254/latest/\r\ncontent-length: 0\r\n\r\n";
    let (_world, herald) = bears(Receiver::answering(REDIRECT).await).await;
    has_outcome(&herald, "redirected").await;
    herald.until_metric("herald_attempts_total{outcome=\"delivered\"}", |count| count == 500.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_at_a_metadata_address_is_refused_at_every_attempt() {
    let (world, _) = world_with("http://169.254.169.254/latest/").await;
    let herald = setup(&world).start();
    world.publish(&[Event::new(0, "acc_hostile", "pi_0", "Created")]).await;
    world.until_finished().await;
    assert_eq!(herald.metric("herald_attempts_total{outcome=\"address_refused\"}"), 2.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_certificate_of_a_known_authority_for_the_right_name_is_trusted() {
    let authority = Authority::new();
    let right = authority.acceptor("localhost", &["http/1.1"], |_| {});
    let wrong_name = authority.acceptor("elsewhere.example", &["http/1.1"], |_| {});
    let own = self_signed_acceptor("localhost");
    let world = World::new().await;
    let mut receivers = Vec::new();
    for (name, acceptor) in [("right", right), ("name", wrong_name), ("self", own)] {
        let receiver = Receiver::start(move |stream, log| {
            let acceptor = acceptor.clone();
            async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                while log.read_request(&mut stream).await.is_some() {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                }
            }
        })
        .await;
        let mut endpoint = world.endpoint(&format!("ep_{name}"), "acc_0");
        endpoint.url = receiver.https("localhost");
        world.register(endpoint).await;
        receivers.push(receiver);
    }
    let folder = tempfile::tempdir().unwrap();
    let pem = folder.path().join("authority.pem");
    fs::write(&pem, authority.pem()).unwrap();
    let toml = format!("[attempt]\nca_file = {:?}\n", pem.display().to_string());
    let herald = setup(&world).env("HERALD_ALLOW_NETWORKS", "127.0.0.0/8,::1/128").toml(&toml).start();
    world.publish(&[Event::new(0, "acc_0", "pi_0", "Created")]).await;
    world.until_finished().await;
    let seen: Vec<usize> = receivers.iter().map(|receiver| receiver.log.seen().len()).collect();
    assert_eq!(seen, [1, 0, 0]);
    assert_eq!(herald.metric("herald_attempts_total{outcome=\"tls_failed\"}"), 4.0);
    assert_eq!(herald.metric("herald_dead_letters_added_total{reason=\"exhausted\"}"), 2.0);
    herald.until_metric("herald_dead_letters", |letters| letters == 2.0).await;
}
