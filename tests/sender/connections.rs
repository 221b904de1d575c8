//! What a connection may do to a request, and a request to a connection: closed while idle, refused, too old, too many.

use std::sync::atomic::AtomicUsize;

use herald::facts::outcome::LocalCause;
use tokio::io::{AsyncRead, AsyncWrite};

use super::*;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

async fn attempted(sender: &Sender, endpoint: &Endpoint) -> Attempted {
    sender.attempt(&delivery(), endpoint, now_ms()).await
}

/// Answers the first request of each connection; `second` decides what the second request meets.
async fn answering_once_a_connection(second: &'static [u8]) -> Receiver {
    Receiver::start(move |mut stream, log| async move {
        log.read_request(&mut stream).await;
        let _ = stream.write_all(OK).await;
        if log.read_request(&mut stream).await.is_some() {
            let _ = stream.write_all(second).await;
            let _ = stream.shutdown().await;
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
        }
    })
    .await
}

#[tokio::test]
async fn a_request_that_meets_a_connection_being_closed_is_sent_again_within_its_attempt() {
    const TIMEOUT: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    const ONE_OF_MANY: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nConnection: x-hop, Close\r\nContent-Length: 0\r\n\r\n";
    for second in [b"".as_slice(), TIMEOUT, ONE_OF_MANY] {
        let receiver = answering_once_a_connection(second).await;
        let (sender, endpoint) = (sender(), endpoint(&receiver.url()));
        for (number, resent) in [(0, false), (1, true), (2, true)] {
            let attempted = attempted(&sender, &endpoint).await;
            let report = attempted.report;
            assert_eq!(report.outcome, Outcome::Delivered { status: 200 }, "{number}: {}", report.detail);
            assert_eq!(attempted.resent, resent, "{number}");
        }
        let seen = receiver.log.seen();
        assert_eq!((receiver.log.connections(), seen.len()), (3, 5));
        // The same bytes, so that the receiver recognises it.
        assert_eq!(seen[1].body, seen[2].body);
        for name in ["webhook-id", "webhook-timestamp", "webhook-signature", "herald-attempt"] {
            assert_eq!(seen[1].header(name), seen[2].header(name));
        }
    }
}

/// The thread sleeps past the deadline of the connection, and wakes long before that of the attempt.
#[expect(clippy::disallowed_methods, reason = "it is to stall every task on this thread")]
#[tokio::test]
async fn a_thread_that_looks_too_late_at_a_connection_blames_nobody() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/", silent.local_addr().unwrap());
    for (sleep_ms, expected) in [(0, Outcome::ConnectTimedOut), (1_200, Outcome::Local { cause: LocalCause::Lag })] {
        let sender = Sender::try_new(SenderConfig { connect_timeout: SHORT, ..local() }).unwrap();
        let asleep = async {
            tokio::time::sleep(SHORT / 4).await;
            std::thread::sleep(Duration::from_millis(sleep_ms));
        };
        let endpoint = endpoint(&url);
        let (attempted, ()) = tokio::join!(attempted(&sender, &endpoint), asleep);
        assert_eq!(attempted.report.outcome, expected, "{}", attempted.report.detail);
    }
}

#[tokio::test]
async fn a_reset_of_a_kept_connection_is_no_failure_either() {
    let receiver = Receiver::start(|mut stream, log| async move {
        log.read_request(&mut stream).await;
        let _ = stream.write_all(OK).await;
        log.read_request(&mut stream).await;
        stream.set_zero_linger().unwrap();
    })
    .await;
    let (sender, endpoint) = (sender(), endpoint(&receiver.url()));
    assert!(attempted(&sender, &endpoint).await.report.outcome.is_delivered());
    let second = attempted(&sender, &endpoint).await;
    assert!(second.resent && second.report.outcome.is_delivered(), "{}", second.report.detail);
}

#[tokio::test]
async fn a_request_is_sent_twice_at_the_most() {
    let receiver = Receiver::start(|mut stream, log| async move {
        log.read_request(&mut stream).await;
        if log.connections() == 1 {
            let _ = stream.write_all(OK).await;
            log.read_request(&mut stream).await;
        }
    })
    .await;
    let (sender, endpoint) = (sender(), endpoint(&receiver.url()));
    assert!(outcome(&sender, &endpoint).await.is_delivered());
    let second = attempted(&sender, &endpoint).await;
    assert_eq!((second.report.outcome, second.resent), (Outcome::Reset, true));
    assert_eq!((receiver.log.connections(), receiver.log.seen().len()), (2, 3));
}

#[tokio::test]
async fn what_was_answered_in_part_is_never_sent_again() {
    let receiver = answering_once_a_connection(b"HTTP/1.1 2").await;
    let (sender, endpoint) = (sender(), endpoint(&receiver.url()));
    assert!(outcome(&sender, &endpoint).await.is_delivered());
    let second = attempted(&sender, &endpoint).await;
    assert_eq!((second.report.outcome, second.resent), (Outcome::Reset, false));
}

#[tokio::test]
async fn a_late_body_of_an_answer_without_one_does_not_spoil_the_next_request() {
    const NONE: &[u8] = b"HTTP/1.1 204 No Content\r\n\r\n";
    // It comes with the head, before the next request, in place of the next answer.
    for late in [0, 1, 2] {
        let receiver = Receiver::start(move |mut stream, log| async move {
            log.read_request(&mut stream).await;
            let first = if late == 0 { [NONE, b"{\"ok\":true}"].concat() } else { NONE.to_vec() };
            let _ = stream.write_all(&first).await;
            if late == 1 {
                let _ = stream.write_all(b"{\"ok\":true}").await;
            }
            if log.read_request(&mut stream).await.is_some() {
                let _ = stream.write_all(b"{\"ok\":true}").await;
                let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
            }
        })
        .await;
        let (sender, endpoint) = (sender(), endpoint(&receiver.url()));
        for number in 0..4 {
            let report = attempted(&sender, &endpoint).await.report;
            assert_eq!(report.outcome, Outcome::Delivered { status: 204 }, "{late} {number}: {}", report.detail);
        }
    }
}

/// Answers requests on an HTTP/2 connection until it ends.
async fn serve_http2(stream: impl AsyncRead + AsyncWrite + Unpin, log: Log, hold: Option<Arc<Notify>>) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((_, mut respond))) = connection.accept().await {
        log.note(Seen { head: "http/2".to_owned(), body: Vec::new() });
        let hold = hold.clone();
        tokio::spawn(async move {
            if let Some(hold) = hold {
                hold.notified().await;
            }
            let _ = respond.send_response(http::Response::new(()), true);
        });
    }
}

#[tokio::test]
async fn a_stream_that_was_refused_is_sent_again_once() {
    let authority = Authority::new();
    for (refusals, expected, seen) in [(1, Outcome::Delivered { status: 200 }, 2), (9, Outcome::Reset, 2)] {
        let refused = Arc::new(AtomicUsize::new(0));
        let receiver = h2_receiver(&authority, move |mut respond| match refused.fetch_add(1, SeqCst) < refusals {
            true => respond.send_reset(h2::Reason::REFUSED_STREAM),
            false => drop(respond.send_response(http::Response::new(()), true)),
        })
        .await;
        let (sender, endpoint) = (sender_that_trusts(&authority), endpoint(&receiver.https("localhost")));
        let attempted = attempted(&sender, &endpoint).await;
        assert_eq!((attempted.report.outcome, attempted.resent), (expected, true), "{}", attempted.report.detail);
        assert_eq!(receiver.log.seen().len(), seen);
    }
}

#[tokio::test]
async fn a_stream_above_the_last_one_of_a_goaway_is_sent_again() {
    let authority = Authority::new();
    let acceptor = authority.acceptor("localhost", &["h2"], |_| ());
    let receiver = Receiver::start(move |stream, log: Log| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            if log.connections() > 1 {
                return serve_http2(stream, log, None).await;
            }
            // Sends its settings; and as soon as a request's head is there, GOAWAY: nothing was processed (RFC 9113,
            // section 6.8).
            let _ = stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await;
            let mut preface = [0; 24];
            let _ = stream.read_exact(&mut preface).await;
            loop {
                let mut header = [0; 9];
                if stream.read_exact(&mut header).await.is_err() {
                    return;
                }
                let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
                let _ = stream.read_exact(&mut vec![0; length as usize]).await;
                if header[3] == 1 {
                    break;
                }
            }
            let _ = stream.write_all(&[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).await;
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
        }
    })
    .await;
    let (sender, endpoint) = (sender_that_trusts(&authority), endpoint(&receiver.https("localhost")));
    let attempted = attempted(&sender, &endpoint).await;
    assert_eq!(attempted.report.outcome, Outcome::Delivered { status: 200 }, "{}", attempted.report.detail);
    assert!(attempted.resent);
    assert_eq!((receiver.log.connections(), receiver.log.seen().len()), (2, 1));
}

#[tokio::test]
async fn a_body_that_is_never_taken_keeps_no_connection_open() {
    let authority = Authority::new();
    let acceptor = authority.acceptor("localhost", &["h2"], |_| ());
    let (open, mut seen) = tokio::sync::watch::channel(0_usize);
    let open = Arc::new(open);
    let receiver = Receiver::start(move |stream, _: Log| {
        let (acceptor, open) = (acceptor.clone(), Arc::clone(&open));
        async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let building = h2::server::Builder::new().initial_window_size(0).handshake::<_, Bytes>(stream);
            let Ok(mut connection) = building.await else { return };
            open.send_modify(|open| *open += 1);
            // It says yes, neither takes nor refuses a body, and wants nothing more on this connection.
            let mut bodies = Vec::new();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                bodies.push(request.into_body());
                let _ = respond.send_response(http::Response::new(()), true);
                connection.graceful_shutdown();
            }
            open.send_modify(|open| *open -= 1);
        }
    })
    .await;
    let (sender, endpoint) = (sender_that_trusts(&authority), endpoint(&receiver.https("localhost")));
    for _ in 0..20 {
        let report = attempted(&sender, &endpoint).await.report;
        assert_eq!(report.outcome, Outcome::Delivered { status: 200 }, "{}", report.detail);
    }
    assert!(receiver.log.connections() > 1);
    seen.wait_for(|open| *open <= 1).await.unwrap();
}

/// Speaks what was agreed on; asks for HTTP/1.1 whenever that was HTTP/2.
async fn http1_wanting(authority: &Authority) -> Receiver {
    let acceptor = authority.acceptor("localhost", &["h2", "http/1.1"], |_| ());
    Receiver::start(move |stream, log: Log| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    log.note(Seen { head: "http/2".to_owned(), body: Vec::new() });
                    respond.send_reset(h2::Reason::HTTP_1_1_REQUIRED);
                }
                return;
            }
            while log.read_request(&mut stream).await.is_some() {
                let _ = stream.write_all(OK).await;
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_host_that_asks_for_http1_gets_it_from_then_on() {
    let authority = Authority::new();
    let receiver = http1_wanting(&authority).await;
    let (sender, endpoint) = (sender_that_trusts(&authority), endpoint(&receiver.https("localhost")));
    for number in 0..3 {
        let attempted = attempted(&sender, &endpoint).await;
        assert_eq!(attempted.report.outcome, Outcome::Delivered { status: 200 }, "{}", attempted.report.detail);
        assert_eq!(attempted.resent, number == 0);
    }
    assert_eq!((receiver.log.connections(), receiver.log.seen().len()), (2, 4));
}

#[tokio::test]
async fn an_endpoint_can_be_kept_to_http1() {
    let authority = Authority::new();
    let receiver = http1_wanting(&authority).await;
    let endpoint = Endpoint { http1: true, ..endpoint(&receiver.https("localhost")) };
    let attempted = attempted(&sender_that_trusts(&authority), &endpoint).await;
    assert!(attempted.report.outcome.is_delivered() && !attempted.resent, "{}", attempted.report.detail);
    assert!(receiver.log.seen().iter().all(|seen| seen.head != "http/2"));
}

/// So short that every connection is too old for a second request.
fn short_lived(authority: &Authority) -> Sender {
    let extra_root_certificates = certificates_from_pem(authority.pem().as_bytes()).unwrap();
    let max_connection_age = Duration::from_nanos(1);
    Sender::try_new(SenderConfig { max_connection_age, extra_root_certificates, ..local() }).unwrap()
}

#[tokio::test]
async fn no_connection_is_used_beyond_its_greatest_age() {
    let authority = Authority::new();
    let sender = short_lived(&authority);
    let plain = Receiver::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let http2 = h2_receiver(&authority, |mut respond| drop(respond.send_response(http::Response::new(()), true))).await;
    for (receiver, url) in [(&plain, plain.url()), (&http2, http2.https("localhost"))] {
        for number in 1..=5 {
            assert!(outcome(&sender, &endpoint(&url)).await.is_delivered());
            assert_eq!(receiver.log.connections(), number, "{url}");
        }
    }
}

#[tokio::test]
async fn what_is_under_way_on_a_retired_http2_connection_ends_on_it() {
    let authority = Authority::new();
    let (acceptor, answer) = (authority.acceptor("localhost", &["h2"], |_| ()), Arc::new(Notify::new()));
    let hold = Arc::clone(&answer);
    let receiver = Receiver::start(move |stream, log: Log| {
        let (acceptor, hold) = (acceptor.clone(), Arc::clone(&hold));
        async move {
            let is_first = log.connections() == 1;
            let Ok(stream) = acceptor.accept(stream).await else { return };
            serve_http2(stream, log, is_first.then_some(hold)).await;
        }
    })
    .await;
    let sender = Arc::new(short_lived(&authority));
    let endpoint = endpoint(&receiver.https("localhost"));
    let first = tokio::spawn({
        let (sender, endpoint) = (Arc::clone(&sender), endpoint.clone());
        async move { attempt(&sender, &endpoint).await }
    });
    while receiver.log.seen().is_empty() {
        tokio::task::yield_now().await;
    }
    assert!(outcome(&sender, &endpoint).await.is_delivered());
    assert_eq!((receiver.log.connections(), first.is_finished()), (2, false));
    answer.notify_one();
    let first = first.await.unwrap();
    assert!(first.outcome.is_delivered(), "{}", first.detail);
}

#[tokio::test]
async fn a_receivers_ticket_is_never_sent_back() {
    let authority = Authority::new();
    let acceptor = authority.acceptor("localhost", &["http/1.1"], |_| ());
    let kinds = Arc::new(std::sync::Mutex::new(Vec::new()));
    let noted = Arc::clone(&kinds);
    // The server offers tickets, as servers do, and each answer ends its connection.
    let receiver = Receiver::start(move |stream, log: Log| {
        let (acceptor, noted) = (acceptor.clone(), Arc::clone(&noted));
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            log.read_request(&mut stream).await;
            noted.lock().unwrap().push(stream.get_ref().1.handshake_kind().unwrap());
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
            let _ = stream.shutdown().await;
        }
    })
    .await;
    let (sender, endpoint) = (sender_that_trusts(&authority), endpoint(&receiver.https("localhost")));
    for _ in 0..3 {
        assert!(outcome(&sender, &endpoint).await.is_delivered());
    }
    let kinds = kinds.lock().unwrap();
    assert_eq!(kinds.len(), 3);
    assert!(kinds.iter().all(|kind| *kind != rustls::HandshakeKind::Resumed), "{kinds:?}");
}

#[tokio::test]
async fn the_oldest_idle_connection_makes_room_and_no_room_is_no_failure_of_the_receiver() {
    let sender = Sender::try_new(SenderConfig { max_connections: 4, ..local() }).unwrap();
    let mut receivers = Vec::new();
    for _ in 0..8 {
        let receiver = Receiver::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        assert!(outcome(&sender, &endpoint(&receiver.url())).await.is_delivered());
        receivers.push(receiver);
    }
    // The last one's is still there; the first one's is not.
    assert_eq!(attempt(&sender, &endpoint(&receivers[7].url())).await.timing.connect_us, None);
    assert!(attempt(&sender, &endpoint(&receivers[0].url())).await.timing.connect_us.is_some());

    let silent = Receiver::start(|mut stream, log| async move {
        log.read_request(&mut stream).await;
        let _ = stream.read_u8().await;
    })
    .await;
    let sender = Arc::new(sender);
    let hanging: Vec<_> = (0..4)
        .map(|_| {
            let (sender, endpoint) = (Arc::clone(&sender), endpoint(&silent.url()));
            tokio::spawn(async move { attempt(&sender, &endpoint).await })
        })
        .collect();
    while silent.log.seen().len() < 4 {
        tokio::task::yield_now().await;
    }
    let report = attempt(&sender, &endpoint(&receivers[0].url())).await;
    assert_eq!(report.outcome, Outcome::Local { cause: LocalCause::Descriptors }, "{}", report.detail);
    hanging.iter().for_each(|task| task.abort());
}

#[tokio::test]
async fn a_redirects_location_is_kept_for_whoever_reads_the_attempt() {
    let receiver = Receiver::answering(
        "HTTP/1.1 301 Moved\r\nlocation: https://shop.example/new-hook\r\ncontent-length: 0\r\n\r\n",
    )
    .await;
    let report = attempt(&sender(), &endpoint(&receiver.url())).await;
    assert_eq!(report.outcome, Outcome::Redirected { status: 301 });
    assert_eq!(report.detail, "location: https://shop.example/new-hook");
}

/// Allows this many streams at a time, and answers nobody until this many requests have arrived.
async fn holding(authority: &Authority, streams: u32, until: usize) -> Receiver {
    let acceptor = authority.acceptor("localhost", &["h2"], |_| ());
    let (seen, all) = (Arc::new(AtomicUsize::new(0)), Arc::new(tokio::sync::Semaphore::new(0)));
    Receiver::start(move |stream, log: Log| {
        let (acceptor, seen, all) = (acceptor.clone(), Arc::clone(&seen), Arc::clone(&all));
        async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let building = h2::server::Builder::new().max_concurrent_streams(streams).handshake::<_, Bytes>(stream);
            let Ok(mut connection) = building.await else { return };
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                log.note(Seen { head: "http/2".to_owned(), body: Vec::new() });
                if seen.fetch_add(1, SeqCst) + 1 == until {
                    all.close();
                }
                let all = Arc::clone(&all);
                tokio::spawn(async move {
                    let _ = all.acquire().await;
                    let _ = respond.send_response(http::Response::new(()), true);
                });
            }
        }
    })
    .await
}

async fn at_once(sender: &Sender, endpoint: &Endpoint, count: usize) {
    for attempted in futures_util::future::join_all((0..count).map(|_| attempted(sender, endpoint))).await {
        let report = attempted.report;
        assert_eq!(
            (report.outcome, attempted.resent),
            (Outcome::Delivered { status: 200 }, false),
            "{}",
            report.detail
        );
    }
}

#[tokio::test]
async fn a_hundred_requests_share_an_http2_connection_and_the_next_ones_another() {
    let authority = Authority::new();
    let receiver = holding(&authority, 100, 250).await;
    let (sender, endpoint) = (sender_that_trusts(&authority), endpoint(&receiver.https("localhost")));
    at_once(&sender, &endpoint, 250).await;
    assert_eq!(receiver.log.connections(), 3, "neither one for all nor one for each");
    // They are all used again.
    at_once(&sender, &endpoint, 250).await;
    assert_eq!(receiver.log.connections(), 3);
}

/// When a receiver is reloaded, all the connections that it had end. What was lost on one must not meet the next of
/// them: that would count as its receiver's failure.
#[tokio::test]
async fn what_was_lost_goes_again_on_a_connection_that_is_newer_and_not_on_another_old_one() {
    let authority = Authority::new();
    let acceptor = authority.acceptor("localhost", &["h2"], |_| ());
    let (answered, both) = (Arc::new(AtomicUsize::new(0)), Arc::new(tokio::sync::Barrier::new(2)));
    let receiver = Receiver::start(move |stream, log: Log| {
        let (acceptor, answered, both) = (acceptor.clone(), Arc::clone(&answered), Arc::clone(&both));
        async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let building = h2::server::Builder::new().max_concurrent_streams(1).handshake::<_, Bytes>(stream);
            let Ok(mut connection) = building.await else { return };
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                log.note(Seen { head: "http/2".to_owned(), body: Vec::new() });
                // The first request on each of the two is answered, and then neither takes anything any more.
                match (log.connections() <= 2, answered.load(SeqCst) < 2) {
                    (true, true) => {
                        both.wait().await;
                        answered.fetch_add(1, SeqCst);
                        let _ = respond.send_response(http::Response::new(()), true);
                    }
                    (true, false) => respond.send_reset(h2::Reason::REFUSED_STREAM),
                    (false, _) => drop(respond.send_response(http::Response::new(()), true)),
                }
            }
        }
    })
    .await;
    let (sender, endpoint) = (sender_that_trusts(&authority), endpoint(&receiver.https("localhost")));
    at_once(&sender, &endpoint, 2).await;
    assert_eq!(receiver.log.connections(), 2);
    let attempted = attempted(&sender, &endpoint).await;
    let report = attempted.report;
    assert_eq!((report.outcome, attempted.resent), (Outcome::Delivered { status: 200 }, true), "{}", report.detail);
    assert_eq!(receiver.log.connections(), 3);
}

#[tokio::test]
async fn no_more_requests_share_a_connection_than_its_receiver_allows() {
    let authority = Authority::new();
    for (streams, count, connections) in [(1, 10, 10), (7, 30, 5)] {
        let receiver = holding(&authority, streams, count).await;
        let (sender, endpoint) = (sender_that_trusts(&authority), endpoint(&receiver.https("localhost")));
        at_once(&sender, &endpoint, count).await;
        assert_eq!(receiver.log.connections(), connections, "{streams}");
    }
}

#[tokio::test]
async fn after_a_silent_request_nothing_begins_on_its_http2_connection() {
    let authority = Authority::new();
    let acceptor = authority.acceptor("localhost", &["h2"], |_| ());
    let receiver = Receiver::start(move |stream, log: Log| {
        let acceptor = acceptor.clone();
        async move {
            let is_first = log.connections() == 1;
            let Ok(stream) = acceptor.accept(stream).await else { return };
            serve_http2(stream, log, is_first.then(Arc::default)).await;
        }
    })
    .await;
    let (sender, url) = (sender_that_trusts(&authority), receiver.https("localhost"));
    // Enough for a connection on a busy machine.
    let impatient = Endpoint { timeout_ms: Some(3_000), ..endpoint(&url) };
    assert_eq!(outcome(&sender, &impatient).await, Outcome::ResponseTimedOut);
    assert!(outcome(&sender, &endpoint(&url)).await.is_delivered());
    assert_eq!(receiver.log.connections(), 2);
}

/// However it ends the connection, no socket is left.
#[tokio::test]
async fn a_receiver_that_ends_each_stream_or_connection_keeps_none_open() {
    let authority = Authority::new();
    for (refuses, closes) in [(true, false), (true, true), (false, true)] {
        let acceptor = authority.acceptor("localhost", &["h2"], |_| ());
        let (open, mut seen) = tokio::sync::watch::channel(0_usize);
        let open = Arc::new(open);
        let receiver = Receiver::start(move |stream, _: Log| {
            let (acceptor, open) = (acceptor.clone(), Arc::clone(&open));
            async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                open.send_modify(|open| *open += 1);
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    match refuses {
                        true => respond.send_reset(h2::Reason::REFUSED_STREAM),
                        false => drop(respond.send_response(http::Response::new(()), true)),
                    }
                    if closes {
                        connection.graceful_shutdown();
                    }
                }
                open.send_modify(|open| *open -= 1);
            }
        })
        .await;
        let (sender, endpoint) = (sender_that_trusts(&authority), endpoint(&receiver.https("localhost")));
        for _ in 0..50 {
            let report = attempted(&sender, &endpoint).await.report;
            assert_eq!(report.outcome.is_delivered(), !refuses, "{}", report.detail);
        }
        assert!(receiver.log.connections() > 1);
        seen.wait_for(|open| *open <= 1).await.unwrap();
    }
}
