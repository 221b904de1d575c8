//! Heads of answers: what curl accepts is accepted, and what is more than any answer needs ends the attempt.

use super::*;

async fn attempted_of(answer: Vec<u8>) -> Attempted {
    let answer: &'static [u8] = answer.leak();
    let receiver = Receiver::answering_once(answer).await;
    sender().attempt(&delivery(), &endpoint(&receiver.url()), now_ms()).await
}

#[tokio::test]
async fn heads_that_curl_takes_are_taken() {
    let hundred_and_one: String = (0..101).map(|n| format!("x-{n}: y\r\n")).collect();
    for lines in ["x-blank : y\r\n", "no colon here\r\n", "x-folded: a\r\n b\r\n", &hundred_and_one] {
        let head = format!("HTTP/1.1 200 OK\r\n{lines}content-length: 2\r\n\r\nok");
        let report = attempted_of(head.into_bytes()).await.report;
        assert_eq!(report.outcome, Outcome::Delivered { status: 200 }, "{lines}: {}", report.detail);
        assert_eq!(report.snippet, "ok", "{lines}");
    }
}

#[tokio::test]
async fn a_head_of_20_kb_is_taken_over_both_protocols() {
    let line = "y".repeat(20_000);
    let head = format!("HTTP/1.1 200 OK\r\nx-long: {line}\r\ncontent-length: 0\r\n\r\n");
    assert!(attempted_of(head.into_bytes()).await.report.outcome.is_delivered());

    let authority = Authority::new();
    let receiver = h2_receiver(&authority, move |mut respond| {
        let response = http::Response::builder().header("x-long", &line).body(()).unwrap();
        respond.send_response(response, true).unwrap();
    })
    .await;
    let report = attempt(&sender_that_trusts(&authority), &endpoint(&receiver.https("localhost"))).await;
    assert!(report.outcome.is_delivered(), "{}", report.detail);
}

#[tokio::test]
async fn a_larger_head_is_a_flood() {
    let head = format!("HTTP/1.1 200 OK\r\nx-long: {}\r\ncontent-length: 0\r\n\r\n", "y".repeat(64 * 1024));
    let attempted = attempted_of(head.into_bytes()).await;
    assert_eq!((attempted.report.outcome, attempted.flooded), (Outcome::Garbled, true), "{}", attempted.report.detail);
}

/// The bytes of waiting heads are what 600 of them may take of our memory.
#[tokio::test]
async fn an_unfinished_head_is_given_up_at_its_limit_and_not_at_the_deadline() {
    let (receiver, written, stopped) = flooding("HTTP/1.1 200 OK\r\nx-first: ", b"x").await;
    let attempted = sender().attempt(&delivery(), &endpoint(&receiver.url()), now_ms()).await;
    assert_eq!((attempted.report.outcome, attempted.flooded), (Outcome::Garbled, true), "{}", attempted.report.detail);
    stopped.notified().await;
    assert!(written.load(SeqCst) < FAR_TOO_MUCH);
}

#[tokio::test]
async fn a_few_interim_answers_pass_and_a_flood_of_them_ends_the_attempt() {
    const HINT: &[u8] = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";
    const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    assert!(attempted_of([&HINT.repeat(16), OK].concat()).await.report.outcome.is_delivered());
    // Although it says yes in the end.
    let attempted = attempted_of([&HINT.repeat(17), OK].concat()).await;
    assert_eq!((attempted.report.outcome, attempted.flooded), (Outcome::Garbled, true), "{}", attempted.report.detail);
    assert!(attempted.report.detail.contains("interim"), "{}", attempted.report.detail);

    for flood in [b"HTTP/1.1 100 Continue\r\n\r\n".as_slice(), HINT] {
        let (receiver, written, stopped) = flooding("", flood).await;
        assert_eq!(outcome(&sender(), &endpoint(&receiver.url())).await, Outcome::Garbled);
        // The receiver gets there only because the connection was dropped.
        stopped.notified().await;
        assert!(written.load(SeqCst) < FAR_TOO_MUCH);
    }
}

#[tokio::test]
async fn interim_answers_are_bounded_over_http2_too() {
    let authority = Authority::new();
    for (interim, is_flood) in [(16, false), (17, true)] {
        let receiver = h2_receiver(&authority, move |mut respond| {
            for _ in 0..interim {
                let hint = http::Response::builder().status(103).header("link", "</a>").body(()).unwrap();
                respond.send_informational(hint).unwrap();
            }
            let mut body = respond.send_response(http::Response::new(()), false).unwrap();
            body.send_data(Bytes::from_static(b"ok"), true).unwrap();
        })
        .await;
        let (sender, endpoint) = (sender_that_trusts(&authority), endpoint(&receiver.https("localhost")));
        let attempted = sender.attempt(&delivery(), &endpoint, now_ms()).await;
        assert_eq!((attempted.report.outcome.is_delivered(), attempted.flooded), (!is_flood, is_flood), "{interim}");
    }
}
