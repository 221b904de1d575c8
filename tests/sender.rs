//! The sender against receivers of every kind, over real sockets and real TLS.
//! All times in here are the receivers' and the deadlines' own; no test asserts that something was fast.

#[path = "sender/connections.rs"]
mod connections;
#[path = "sender/floods.rs"]
mod floods;
#[path = "sender/heads.rs"]
mod heads;
#[path = "sender/names.rs"]
mod names;
mod receiver;

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use herald::{
    facts::{
        delivery::Delivery,
        endpoint::Endpoint,
        event::Event,
        id::EndpointId,
        outcome::{AttemptReport, Attempted, BodyEnd, Outcome, TlsFailure},
        signing::SecretText,
    },
    sender::{Sender, SenderConfig, certificates_from_pem},
};
use receiver::{Authority, Log, Receiver, Seen, self_signed_acceptor};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
};

const BODY: &str = r#"{"id":"evt_hnnHxIKR_Uy6bhZCusCltw","event":"payment_intent.status_updated","accountId":"acc_test","createdAt":"2022-02-01T13:07:41.8667859Z","data":{"paymentIntentId":"pi_vpwd4ooAPEqyNAQe4z89WQ","paymentStatus":"Captured","captureMode":"Auto"}}"#;

/// For tests that wait for the endpoint's deadline.
const SHORT: Duration = Duration::from_millis(400);

/// More than a receiver could hide in socket buffers, and far less than it wants to send.
const FAR_TOO_MUCH: u64 = 64 * 1024 * 1024;

fn local() -> SenderConfig {
    SenderConfig {
        allow_http: true,
        allow_networks: vec!["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()],
        attempt_timeout: Duration::from_secs(60),
        ..SenderConfig::default()
    }
}

fn sender() -> Sender {
    Sender::try_new(local()).unwrap()
}

fn sender_that_trusts(authority: &Authority) -> Sender {
    let extra_root_certificates = certificates_from_pem(authority.pem().as_bytes()).unwrap();
    Sender::try_new(SenderConfig { extra_root_certificates, ..local() }).unwrap()
}

fn delivery() -> Delivery {
    let event = Event::parse(Bytes::from_static(BODY.as_bytes())).unwrap();
    Delivery::new("1700000000000-7".parse().unwrap(), EndpointId::new("ep_1").unwrap(), &event, true, 0)
}

fn endpoint(url: &str) -> Endpoint {
    let (id, account) = ("ep_1".parse().unwrap(), "acc_test".parse().unwrap());
    Endpoint::new(id, account, url.to_owned(), SecretText::from_random([7; 32]), 0)
}

fn impatient(url: &str) -> Endpoint {
    Endpoint { timeout_ms: Some(SHORT.as_millis() as u64), ..endpoint(url) }
}

fn now_ms() -> u64 {
    herald::clock::wall_ms()
}

async fn attempt(sender: &Sender, endpoint: &Endpoint) -> AttemptReport {
    sender.attempt(&delivery(), endpoint, now_ms()).await.report
}

async fn outcome(sender: &Sender, endpoint: &Endpoint) -> Outcome {
    attempt(sender, endpoint).await.outcome
}

/// Writes the same bytes until nobody takes them any more; returns how many were taken.
async fn write_for_ever(stream: &mut TcpStream, bytes: &[u8]) -> u64 {
    let mut written = 0;
    while written < 300 * 1024 * 1024 && stream.write_all(bytes).await.is_ok() {
        written += bytes.len() as u64;
    }
    written
}

/// Receives a request, writes `head` and then `flood` for as long as it can. Notifies when it was stopped.
async fn flooding(head: &'static str, flood: &'static [u8]) -> (Receiver, Arc<AtomicU64>, Arc<Notify>) {
    let (written, stopped) = (Arc::new(AtomicU64::new(0)), Arc::new(Notify::new()));
    let (count, stop) = (Arc::clone(&written), Arc::clone(&stopped));
    let receiver = Receiver::start(move |mut stream, log| {
        let (count, stop) = (Arc::clone(&count), Arc::clone(&stop));
        async move {
            log.read_request(&mut stream).await;
            let _ = stream.write_all(head.as_bytes()).await;
            count.store(write_for_ever(&mut stream, flood).await, SeqCst);
            stop.notify_one();
        }
    })
    .await;
    (receiver, written, stopped)
}

/// Receives a request, writes `head` and then `drip`, a byte at a time, for as long as it can.
async fn dripping(head: &'static str, drip: &'static [u8]) -> Receiver {
    Receiver::start(move |mut stream, log| async move {
        log.read_request(&mut stream).await;
        let _ = stream.write_all(head.as_bytes()).await;
        for byte in drip.iter().cycle() {
            tokio::time::sleep(Duration::from_millis(20)).await;
            if stream.write_all(&[*byte]).await.is_err() {
                return;
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_receiver_gets_the_exact_bytes_signed_in_both_schemes() {
    let receiver = Receiver::answering("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let mut endpoint = endpoint(&receiver.url());
    endpoint.headers = vec![("X-Shop".to_owned(), "42".to_owned())];
    let report = attempt(&sender(), &endpoint).await;
    assert_eq!(report.outcome, Outcome::Delivered { status: 200 });
    assert_eq!((report.number, report.body_end, report.snippet.as_str()), (1, BodyEnd::Complete, "ok"));
    assert!(report.timing.head_us.is_some() && report.timing.connect_us.is_some());

    let seen = receiver.log.seen().remove(0);
    assert!(seen.head.starts_with("POST /hook HTTP/1.1\r\n"), "{}", seen.head);
    assert_eq!(seen.body, BODY.as_bytes());
    let secret = &endpoint.secrets[0].value;
    let headers = http::HeaderMap::from_iter(
        ["webhook-id", "webhook-timestamp", "webhook-signature"]
            .map(|name| (http::HeaderName::from_static(name), seen.header(name).unwrap().parse().unwrap())),
    );
    standardwebhooks::Webhook::new(secret.reveal()).unwrap().verify(&seen.body, &headers).unwrap();
    let dojo = herald::facts::signing::dojo_signature(secret, &seen.body);
    for (name, value) in [
        ("dojo-signature", dojo.as_str()),
        ("herald-attempt", "1"),
        ("herald-sequence", "s00000001700000000000-00000000000000000007"),
        ("content-type", "application/json"),
        ("user-agent", concat!("herald/", env!("CARGO_PKG_VERSION"))),
        ("x-shop", "42"),
    ] {
        assert_eq!(seen.header(name), Some(value), "{name}");
    }
}

#[tokio::test]
async fn each_status_has_its_outcome() {
    let sender = sender();
    let throttled =
        |status, seconds: Option<u64>| Outcome::Throttled { status, retry_after: seconds.map(Duration::from_secs) };
    let cases: &[(&'static str, Outcome)] = &[
        ("HTTP/1.1 204 No Content\r\n\r\n", Outcome::Delivered { status: 204 }),
        ("HTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\n", Outcome::Gone),
        ("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", Outcome::Rejected { status: 404 }),
        ("HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n", Outcome::ServerFailed { status: 500 }),
        ("HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n", throttled(503, None)),
        ("HTTP/1.1 500 Oh\r\nretry-after: 5\r\ncontent-length: 0\r\n\r\n", throttled(500, Some(5))),
        ("HTTP/1.1 301 There\r\nretry-after: 5\r\ncontent-length: 0\r\n\r\n", throttled(301, Some(5))),
        ("HTTP/1.1 429 Slow\r\nretry-after: 120\r\ncontent-length: 0\r\n\r\n", throttled(429, Some(120))),
        ("HTTP/1.1 429 Slow\r\nretry-after: when it suits\r\ncontent-length: 0\r\n\r\n", throttled(429, None)),
        ("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", Outcome::Garbled),
        ("HTTP/1.1 600 Odd\r\ncontent-length: 0\r\n\r\n", Outcome::Garbled),
        (
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            Outcome::Delivered { status: 200 },
        ),
    ];
    for (response, expected) in cases {
        let receiver = Receiver::answering(response).await;
        assert_eq!(outcome(&sender, &endpoint(&receiver.url())).await, *expected, "{response}");
    }
}

#[tokio::test]
async fn retry_after_is_taken_as_a_date_too() {
    let asks = async |pause: Duration| {
        let date =
            httpdate::fmt_http_date(std::time::UNIX_EPOCH + Duration::from_millis(herald::clock::wall_ms()) + pause);
        let head = format!("HTTP/1.1 429 Slow\r\nretry-after: {date}\r\ncontent-length: 0\r\n\r\n");
        let receiver = Receiver::answering(head.leak()).await;
        outcome(&sender(), &endpoint(&receiver.url())).await
    };
    let day = Duration::from_secs(86_400);
    let Outcome::Throttled { status: 429, retry_after: Some(pause) } = asks(day).await else { panic!("not throttled") };
    assert!(pause <= day && pause > day / 2, "{pause:?}");
    assert_eq!(asks(31 * day).await, Outcome::Throttled { status: 429, retry_after: None }, "nobody can mean that");
}

#[tokio::test]
async fn an_endless_body_is_cut_and_the_event_is_delivered() {
    let (receiver, written, stopped) = flooding("HTTP/1.1 200 OK\r\n\r\n", &[b'x'; 8192]).await;
    let report = attempt(&sender(), &endpoint(&receiver.url())).await;
    assert_eq!((report.outcome, report.body_end), (Outcome::Delivered { status: 200 }, BodyEnd::Cut));
    assert_eq!(report.snippet, "x".repeat(256));
    stopped.notified().await;
    assert!(written.load(SeqCst) < FAR_TOO_MUCH);
}

#[tokio::test]
async fn a_body_of_300_mb_is_neither_read_nor_kept() {
    for (head, expected) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 314572800\r\n\r\n", Outcome::Delivered { status: 200 }),
        ("HTTP/1.1 500 Oh\r\ncontent-length: 314572800\r\n\r\n", Outcome::ServerFailed { status: 500 }),
    ] {
        let (receiver, written, stopped) = flooding(head, &[0; 65_536]).await;
        let report = attempt(&sender(), &endpoint(&receiver.url())).await;
        assert_eq!((report.outcome, report.body_end), (expected, BodyEnd::Cut));
        stopped.notified().await;
        assert!(written.load(SeqCst) < FAR_TOO_MUCH, "{} bytes were taken", written.load(SeqCst));
    }
}

#[tokio::test]
async fn endless_headers_end_at_a_limit() {
    for flood in [b"x-more: and more\r\n".as_slice(), b"x"] {
        let (receiver, written, stopped) = flooding("HTTP/1.1 200 OK\r\nx-first: ", flood).await;
        assert_eq!(outcome(&sender(), &endpoint(&receiver.url())).await, Outcome::Garbled);
        stopped.notified().await;
        assert!(written.load(SeqCst) < FAR_TOO_MUCH);
    }
}

#[tokio::test]
async fn headers_that_drip_end_with_the_deadline() {
    let receiver = dripping("HTTP/1.1 200 OK\r\nx-slow: ", b"z").await;
    let report = attempt(&sender(), &impatient(&receiver.url())).await;
    assert_eq!(report.outcome, Outcome::ResponseTimedOut);
    assert_eq!(report.timing.head_us, None);
}

#[tokio::test]
async fn a_body_that_drips_holds_nothing_up_and_changes_no_outcome() {
    let receiver = dripping("HTTP/1.1 200 OK\r\n\r\n", b"z").await;
    // A delivered event waits at most a second for the rest, which is less than this endpoint's minute.
    let report = attempt(&sender(), &endpoint(&receiver.url())).await;
    assert_eq!((report.outcome, report.body_end), (Outcome::Delivered { status: 200 }, BodyEnd::TimedOut));
    assert!(report.snippet.starts_with('z'));

    let receiver = dripping("HTTP/1.1 500 Oh\r\n\r\n", b"z").await;
    let report = attempt(&sender(), &impatient(&receiver.url())).await;
    assert_eq!((report.outcome, report.body_end), (Outcome::ServerFailed { status: 500 }, BodyEnd::TimedOut));
}

#[tokio::test]
async fn garbage_is_garbled() {
    let sender = sender();
    for garbage in [
        b"\x00\x01\x02\x03\x04\x05\x06\x07 not http at all\r\n\r\n".as_slice(),
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx",
    ] {
        let receiver = Receiver::answering_once(garbage).await;
        let found = attempt(&sender, &endpoint(&receiver.url())).await;
        assert_eq!(found.outcome, Outcome::Garbled, "{:?}: {}", String::from_utf8_lossy(garbage), found.detail);
    }
}

#[tokio::test]
async fn a_connection_that_ends_without_an_answer_is_a_reset() {
    let sender = sender();
    let closing = Receiver::answering_once(b"").await;
    assert_eq!(outcome(&sender, &endpoint(&closing.url())).await, Outcome::Reset);
    let half = Receiver::answering_once(b"HTTP/1.1 200 OK\r\nx-cut: ").await;
    assert_eq!(outcome(&sender, &endpoint(&half.url())).await, Outcome::Reset);
    let resetting = Receiver::start(|stream, _| async move { stream.set_zero_linger().unwrap() }).await;
    assert_eq!(outcome(&sender, &endpoint(&resetting.url())).await, Outcome::Reset);
    let reading = Receiver::start(|mut stream, log| async move {
        log.read_request(&mut stream).await;
        stream.set_zero_linger().unwrap();
    })
    .await;
    assert_eq!(outcome(&sender, &endpoint(&reading.url())).await, Outcome::Reset);
}

#[tokio::test]
async fn a_truncated_body_is_noted_and_the_event_is_delivered() {
    for response in [
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this".as_slice(),
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\nonly this\r\nzz\r\n",
    ] {
        let receiver = Receiver::answering_once(response).await;
        let report = attempt(&sender(), &endpoint(&receiver.url())).await;
        assert_eq!((report.outcome, report.body_end), (Outcome::Delivered { status: 200 }, BodyEnd::Broken));
        assert_eq!(report.snippet, "only this");
    }
}

#[tokio::test]
async fn a_redirect_is_never_followed() {
    let elsewhere = Receiver::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    for location in ["http://169.254.169.254/latest/meta-data/".to_owned(), elsewhere.url()] {
        let receiver = Receiver::start(move |mut stream, log| {
            let answer = format!("HTTP/1.1 307 Go\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n");
            async move {
                while log.read_request(&mut stream).await.is_some() {
                    let _ = stream.write_all(answer.as_bytes()).await;
                }
            }
        })
        .await;
        assert_eq!(outcome(&sender(), &endpoint(&receiver.url())).await, Outcome::Redirected { status: 307 });
        assert_eq!(receiver.log.seen().len(), 1);
    }
    assert_eq!(elsewhere.log.connections(), 0);
}

#[tokio::test]
async fn no_answer_and_no_listener_are_told_apart() {
    let sender = sender();
    let silent = Receiver::start(|mut stream, log| async move {
        log.read_request(&mut stream).await;
        let _ = stream.read_u8().await;
    })
    .await;
    assert_eq!(outcome(&sender, &impatient(&silent.url())).await, Outcome::ResponseTimedOut);

    let closed_port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let refused = attempt(&sender, &endpoint(&format!("http://127.0.0.1:{closed_port}/"))).await;
    assert_eq!(refused.outcome, Outcome::ConnectFailed, "{}", refused.detail);
}

#[tokio::test]
async fn a_connection_that_is_never_made_is_a_connect_timeout() {
    // A listener whose queue is full drops further connections, as an address behind a silent firewall does.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let full = socket.listen(1).unwrap();
    let address = full.local_addr().unwrap();
    let mut queued = Vec::new();
    while let Ok(stream) = tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(address)).await {
        queued.push(stream.unwrap());
    }
    let url = format!("http://{address}/");
    assert_eq!(outcome(&sender(), &impatient(&url)).await, Outcome::ConnectTimedOut, "by the attempt's deadline");
    let quick = Sender::try_new(SenderConfig { connect_timeout: SHORT, ..local() }).unwrap();
    assert_eq!(outcome(&quick, &endpoint(&url)).await, Outcome::ConnectTimedOut, "by the connector's own limit");
}

#[tokio::test]
async fn a_handshake_that_is_never_answered_is_a_connect_timeout() {
    let silent = Receiver::start(|mut stream, _| async move {
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    })
    .await;
    assert_eq!(outcome(&sender(), &impatient(&silent.https("127.0.0.1"))).await, Outcome::ConnectTimedOut);
}

#[tokio::test]
async fn a_kept_alive_connection_is_used_again_until_a_body_is_cut() {
    let receiver = Receiver::start(|mut stream, log| async move {
        while log.read_request(&mut stream).await.is_some() {
            let length = if log.seen().len() == 5 { 100_000 } else { 9 };
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{}", "y".repeat(length));
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    })
    .await;
    let (sender, endpoint) = (sender(), endpoint(&receiver.url()));
    for number in 1..=6 {
        let report = attempt(&sender, &endpoint).await;
        assert!(report.outcome.is_delivered());
        assert_eq!(report.timing.connect_us.is_some(), number == 1 || number == 6, "attempt {number}");
    }
    assert_eq!((receiver.log.connections(), receiver.log.seen().len()), (2, 6));
}

/// Thousands may be out at a time, and each is moved on its way to its thread's set of attempts.
#[tokio::test]
async fn an_attempt_is_small() {
    let (sender, delivery, endpoint) = (sender(), delivery(), endpoint("http://127.0.0.1/"));
    let bytes = size_of_val(&sender.attempt(&delivery, &endpoint, now_ms()));
    assert!(bytes <= 2_560, "{bytes}");
}

#[tokio::test]
async fn a_connection_that_was_closed_while_idle_costs_no_attempt() {
    let closed = Arc::new(Notify::new());
    let close = Arc::clone(&closed);
    let receiver = Receiver::start(move |mut stream, log| {
        let close = Arc::clone(&close);
        async move {
            log.read_request(&mut stream).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            let _ = stream.shutdown().await;
            // Ends when the sender has closed its side as well, so the sender knows.
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
            close.notify_one();
        }
    })
    .await;
    let (sender, endpoint) = (sender(), endpoint(&receiver.url()));
    for _ in 0..20 {
        assert!(outcome(&sender, &endpoint).await.is_delivered());
        closed.notified().await;
    }
    assert_eq!((receiver.log.connections(), receiver.log.seen().len()), (20, 20));
}

async fn tls_receiver(acceptor: tokio_rustls::TlsAcceptor) -> Receiver {
    Receiver::start(move |stream, log| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            while log.read_request(&mut stream).await.is_some() {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            }
        }
    })
    .await
}

#[tokio::test]
async fn tls_to_a_trusted_receiver_works_and_is_kept_alive() {
    let authority = Authority::new();
    let receiver = tls_receiver(authority.acceptor("localhost", &["http/1.1"], |_| ())).await;
    let (sender, endpoint) = (sender_that_trusts(&authority), endpoint(&receiver.https("localhost")));
    for _ in 0..3 {
        let report = attempt(&sender, &endpoint).await;
        assert_eq!(report.outcome, Outcome::Delivered { status: 200 }, "{}", report.detail);
    }
    assert_eq!((receiver.log.connections(), receiver.log.seen().len()), (1, 3));
}

#[tokio::test]
async fn every_curve_that_private_authorities_use_is_verified() {
    for algorithm in [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ECDSA_P521_SHA256,
        &rcgen::PKCS_ECDSA_P521_SHA512,
        &rcgen::PKCS_ED25519,
    ] {
        let authority = Authority::with(algorithm);
        let receiver = tls_receiver(authority.acceptor("localhost", &["http/1.1"], |_| ())).await;
        let report = attempt(&sender_that_trusts(&authority), &endpoint(&receiver.https("localhost"))).await;
        assert_eq!(report.outcome, Outcome::Delivered { status: 200 }, "{algorithm:?}: {}", report.detail);
    }
}

#[tokio::test]
async fn each_kind_of_wrong_certificate_is_told_apart_and_nothing_is_sent() {
    let authority = Authority::new();
    let sender = sender_that_trusts(&authority);
    let expired = |params: &mut rcgen::CertificateParams| {
        params.not_before = rcgen::date_time_ymd(2001, 1, 1);
        params.not_after = rcgen::date_time_ymd(2002, 1, 1);
    };
    let too_early = |params: &mut rcgen::CertificateParams| params.not_before = rcgen::date_time_ymd(4000, 1, 1);
    for (acceptor, failure) in [
        (authority.acceptor("merchant.example", &["http/1.1"], |_| ()), TlsFailure::WrongName),
        (authority.acceptor("localhost", &["http/1.1"], expired), TlsFailure::Expired),
        (authority.acceptor("localhost", &["http/1.1"], too_early), TlsFailure::Expired),
        (self_signed_acceptor("localhost"), TlsFailure::UnknownIssuer),
        (Authority::new().acceptor("localhost", &["http/1.1"], |_| ()), TlsFailure::UnknownIssuer),
    ] {
        let receiver = tls_receiver(acceptor).await;
        let report = attempt(&sender, &endpoint(&receiver.https("localhost"))).await;
        assert_eq!(report.outcome, Outcome::Tls { failure }, "{}", report.detail);
        assert!(receiver.log.seen().is_empty());
    }
}

#[tokio::test]
async fn who_trusts_a_certificate_that_signed_itself_is_told_what_is_wrong_with_it() {
    let (acceptor, pem) = receiver::self_made_authority_acceptor("localhost");
    let receiver = tls_receiver(acceptor).await;
    let extra_root_certificates = certificates_from_pem(pem.as_bytes()).unwrap();
    let sender = Sender::try_new(SenderConfig { extra_root_certificates, ..local() }).unwrap();
    let report = attempt(&sender, &endpoint(&receiver.https("localhost"))).await;
    assert_eq!(report.outcome, Outcome::Tls { failure: TlsFailure::BadCertificate }, "{}", report.detail);
    assert!(report.detail.contains("make one without CA:TRUE"), "{}", report.detail);
}

#[tokio::test]
async fn a_receiver_that_speaks_no_tls_is_a_failed_handshake() {
    for answer in [b"HTTP/1.1 400 Bad Request\r\n\r\n".as_slice(), b""] {
        let receiver = Receiver::start(move |mut stream, _| async move {
            let _ = stream.read_u8().await;
            let _ = stream.write_all(answer).await;
            let _ = stream.shutdown().await;
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
        })
        .await;
        let report = attempt(&sender(), &endpoint(&receiver.https("127.0.0.1"))).await;
        assert_eq!(report.outcome, Outcome::Tls { failure: TlsFailure::Handshake }, "{}", report.detail);
    }
    let resetting = Receiver::start(|mut stream, _| async move {
        let _ = stream.read_u8().await;
        stream.set_zero_linger().unwrap();
    })
    .await;
    let report = attempt(&sender(), &endpoint(&resetting.https("127.0.0.1"))).await;
    assert_eq!(report.outcome, Outcome::Tls { failure: TlsFailure::Handshake }, "{}", report.detail);
}

/// An HTTP/2 receiver over TLS that hands each request to `answer`.
async fn h2_receiver(
    authority: &Authority,
    answer: impl Fn(h2::server::SendResponse<Bytes>) + Clone + Send + 'static,
) -> Receiver {
    let acceptor = authority.acceptor("localhost", &["h2", "http/1.1"], |_| ());
    Receiver::start(move |stream, log: Log| {
        let (acceptor, answer) = (acceptor.clone(), answer.clone());
        async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let Ok(mut connection) = h2::server::handshake(stream).await else { return };
            while let Some(Ok((request, respond))) = connection.accept().await {
                log.note(Seen { head: format!("{:?} {}", request.version(), request.method()), body: Vec::new() });
                answer(respond);
            }
        }
    })
    .await
}

#[tokio::test]
async fn http2_is_agreed_over_tls_and_shares_one_connection() {
    let authority = Authority::new();
    let receiver = h2_receiver(&authority, |mut respond| {
        respond.send_response(http::Response::builder().status(202).body(()).unwrap(), true).unwrap();
    })
    .await;
    let (sender, endpoint) = (sender_that_trusts(&authority), endpoint(&receiver.https("localhost")));
    for _ in 0..5 {
        let report = attempt(&sender, &endpoint).await;
        assert_eq!(report.outcome, Outcome::Delivered { status: 202 }, "{}", report.detail);
    }
    assert_eq!(receiver.log.connections(), 1);
    assert!(receiver.log.seen().iter().all(|seen| seen.head == "HTTP/2.0 POST"));
}

#[tokio::test]
async fn many_first_requests_at_once_all_arrive_over_http2() {
    let authority = Authority::new();
    let receiver = h2_receiver(&authority, |mut respond| {
        respond.send_response(http::Response::builder().status(200).body(()).unwrap(), true).unwrap();
    })
    .await;
    let (sender, endpoint) = (sender_that_trusts(&authority), endpoint(&receiver.https("localhost")));
    let attempts = (0..50).map(|_| attempt(&sender, &endpoint));
    for report in futures_util::future::join_all(attempts).await {
        assert_eq!(report.outcome, Outcome::Delivered { status: 200 }, "{}", report.detail);
    }
    assert_eq!(receiver.log.seen().len(), 50);
}

#[tokio::test]
async fn an_endless_http2_body_is_cut() {
    let authority = Authority::new();
    let receiver = h2_receiver(&authority, |mut respond| {
        let mut body = respond.send_response(http::Response::new(()), false).unwrap();
        // More than any window of the sender lets through.
        let _ = body.send_data(Bytes::from_static(&[b'x'; 10_000_000]), true);
    })
    .await;
    let report = attempt(&sender_that_trusts(&authority), &endpoint(&receiver.https("localhost"))).await;
    assert_eq!((report.outcome, report.body_end), (Outcome::Delivered { status: 200 }, BodyEnd::Cut));
}

#[tokio::test]
async fn oversized_http2_headers_are_refused() {
    let authority = Authority::new();
    let receiver = h2_receiver(&authority, |mut respond| {
        let mut response = http::Response::new(());
        for n in 0..64 {
            let name = http::HeaderName::try_from(format!("x-{n}")).unwrap();
            response.headers_mut().insert(name, "y".repeat(1000).parse().unwrap());
        }
        let _ = respond.send_response(response, true);
    })
    .await;
    let report = attempt(&sender_that_trusts(&authority), &endpoint(&receiver.https("localhost"))).await;
    assert_eq!(report.outcome, Outcome::Garbled, "{}", report.detail);
}

#[tokio::test]
async fn the_guard_stands_before_every_way_in() {
    let receiver = Receiver::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let port = receiver.address.port();
    let guarded = Sender::try_new(SenderConfig { allow_http: true, ..SenderConfig::default() }).unwrap();
    let hosts = ["localhost", "127.0.0.1", "127.1", "0x7f.1", "2130706433", "[::ffff:127.0.0.1]", "[::1]", "0"];
    for host in hosts {
        let attempted: Attempted =
            guarded.attempt(&delivery(), &endpoint(&format!("http://{host}:{port}/")), now_ms()).await;
        assert_eq!(attempted.report.outcome, Outcome::AddressRefused, "{host}: {}", attempted.report.detail);
        assert!(!attempted.report.detail.is_empty());
    }
    assert_eq!(receiver.log.connections(), 0);
    // The same name, with its network exempt.
    assert!(outcome(&sender(), &endpoint(&format!("http://localhost:{port}/"))).await.is_delivered());
}

#[tokio::test]
async fn plain_http_is_refused_unless_it_is_allowed() {
    let receiver = Receiver::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let authority = Authority::new();
    let extra_root_certificates = certificates_from_pem(authority.pem().as_bytes()).unwrap();
    let strict = Sender::try_new(SenderConfig { allow_http: false, extra_root_certificates, ..local() }).unwrap();
    assert_eq!(outcome(&strict, &endpoint(&receiver.url())).await, Outcome::AddressRefused);
    assert_eq!(receiver.log.connections(), 0);
}

#[tokio::test]
async fn a_name_that_does_not_exist_is_a_dns_failure() {
    let report = attempt(&sender(), &endpoint("https://no-such-name.invalid/")).await;
    assert_eq!(report.outcome, Outcome::DnsFailed, "{}", report.detail);
    assert!(report.detail.contains("no-such-name.invalid"), "{}", report.detail);
}

#[tokio::test]
async fn settings_that_make_no_request_are_unsendable() {
    let receiver = Receiver::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let good = endpoint(&receiver.url());
    let bad_url = endpoint("http://");
    let bad_header = Endpoint { headers: vec![("x".into(), "a\r\nb: c".into())], ..good.clone() };
    let reserved = Endpoint { headers: vec![("Host".into(), "other.example".into())], ..good.clone() };
    let unsigned = Endpoint { secrets: Vec::new(), ..good.clone() };
    let no_scheme = Endpoint { schemes: Vec::new(), ..good };
    for endpoint in [bad_url, bad_header, reserved, unsigned, no_scheme] {
        assert_eq!(outcome(&sender(), &endpoint).await, Outcome::Unsendable, "{endpoint:?}");
    }
    assert_eq!(receiver.log.connections(), 0);
}

#[tokio::test]
async fn a_failed_attempt_shows_its_request_without_secrets_and_a_delivered_one_shows_none() {
    let receiver = Receiver::answering("HTTP/1.1 500 Oh\r\ncontent-length: 4\r\n\r\noops").await;
    let mut endpoint = endpoint(&receiver.url());
    endpoint.headers = vec![("Authorization".into(), "Bearer geheim".into())];
    let attempted = sender().attempt(&delivery(), &endpoint, now_ms()).await;
    assert_eq!(attempted.report.snippet, "oops");
    let request = attempted.request.clone().unwrap();
    assert_eq!(request.url, endpoint.url);
    let seen = receiver.log.seen().remove(0);
    let shown = format!("{attempted:?}");
    for secret in ["geheim", seen.header("webhook-signature").unwrap(), seen.header("dojo-signature").unwrap()] {
        assert!(!shown.contains(secret), "{shown}");
    }
    assert!(request.headers.contains(&("webhook-id".into(), "evt_hnnHxIKR_Uy6bhZCusCltw".into())));

    let good = Receiver::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    endpoint.url = good.url();
    assert!(sender().attempt(&delivery(), &endpoint, now_ms()).await.request.is_none());
}

#[tokio::test]
async fn dropping_an_attempt_ends_its_connection() {
    let ended = Arc::new(Notify::new());
    let end = Arc::clone(&ended);
    let receiver = Receiver::start(move |mut stream, log| {
        let end = Arc::clone(&end);
        async move {
            log.read_request(&mut stream).await;
            end.notify_one();
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
            end.notify_one();
        }
    })
    .await;
    let sender = sender();
    let endpoint = endpoint(&receiver.url());
    tokio::select! {
        report = attempt(&sender, &endpoint) => panic!("it ended: {report:?}"),
        () = ended.notified() => {}
    }
    ended.notified().await;
}

#[tokio::test]
async fn two_hundred_attempts_that_crawl_do_not_hold_up_the_healthy_ones() {
    let crawling = dripping("HTTP/1.1 200 OK\r\nx-slow: ", b"z").await;
    let healthy = Receiver::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let sender = Arc::new(sender());
    let slow: Vec<_> = (0..200)
        .map(|_| {
            let (sender, endpoint) = (Arc::clone(&sender), endpoint(&crawling.url()));
            tokio::spawn(async move { attempt(&sender, &endpoint).await })
        })
        .collect();
    while crawling.log.seen().len() < 200 {
        tokio::task::yield_now().await;
    }
    let healthy_endpoint = endpoint(&healthy.url());
    for _ in 0..200 {
        assert!(outcome(&sender, &healthy_endpoint).await.is_delivered());
    }
    // All of it happened within the crawling ones' minute.
    assert!(slow.iter().all(|task| !task.is_finished()));
    slow.iter().for_each(|task| task.abort());
}

#[tokio::test]
async fn proxies_of_the_environment_are_ignored() {
    let proxy = Receiver::answering("HTTP/1.1 502 Proxy\r\ncontent-length: 0\r\n\r\n").await;
    let receiver = Receiver::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    // The environment belongs to a whole process, so the attempt is made in another process: this very test binary.
    let mut child = tokio::process::Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "attempt_in_a_process_of_its_own", "--ignored"]).env("HERALD_TEST_URL", receiver.url());
    for name in ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
        child.env(name, format!("http://{}", proxy.address));
    }
    let output = child.env_remove("NO_PROXY").env_remove("no_proxy").output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!((proxy.log.connections(), receiver.log.seen().len()), (0, 1));
}

#[tokio::test]
#[ignore = "started by proxies_of_the_environment_are_ignored"]
async fn attempt_in_a_process_of_its_own() {
    let url = std::env::var("HERALD_TEST_URL").unwrap();
    assert!(outcome(&sender(), &endpoint(&url)).await.is_delivered());
}

#[test]
fn a_configuration_that_makes_no_sense_is_refused_by_name() {
    let refused = |config| Sender::try_new(config).unwrap_err().to_string();
    assert!(refused(SenderConfig { attempt_timeout: Duration::ZERO, ..local() }).contains("attempt timeout"));
    assert!(refused(SenderConfig { connect_timeout: Duration::from_secs(900), ..local() }).contains("connect timeout"));
    assert!(certificates_from_pem(b"no pem").unwrap_err().to_string().contains("no certificate"));
}
