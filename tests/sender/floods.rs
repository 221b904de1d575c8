//! Receivers that send for ever without answering: at every layer it ends at a bound, and the attempt counts as a
//! flood.

use super::*;

const NO_FLAGS: u8 = 0;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).expect("a small frame");
    [&[0, 0, length, kind, flags, 0, 0, 0, stream], payload].concat()
}

/// Agrees on HTTP/2 by hand and reads one request's head; then writes `first`, and `flood` for as long as it can.
async fn flooding_http2(
    authority: &Authority,
    first: Vec<u8>,
    flood: Vec<u8>,
) -> (Receiver, Arc<AtomicU64>, Arc<Notify>) {
    let acceptor = authority.acceptor("localhost", &["h2"], |_| ());
    let (written, stopped) = (Arc::new(AtomicU64::new(0)), Arc::new(Notify::new()));
    let (count, stop) = (Arc::clone(&written), Arc::clone(&stopped));
    let flood = flood.repeat(64);
    let receiver = Receiver::start(move |stream, _: Log| {
        let (acceptor, count, stop) = (acceptor.clone(), Arc::clone(&count), Arc::clone(&stop));
        let (first, flood) = (first.clone(), flood.clone());
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            let _ = stream.write_all(&frame(4, NO_FLAGS, 0, &[])).await;
            let _ = stream.read_exact(&mut [0; 24]).await;
            let mut header = [0; 9];
            while header[3] != 1 {
                if stream.read_exact(&mut header).await.is_err() {
                    return;
                }
                let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
                let _ = stream.read_exact(&mut vec![0; length as usize]).await;
            }
            // The sender's replies are read, or the flood would stop because of them.
            let (mut from, mut to) = tokio::io::split(stream);
            let reading = tokio::spawn(async move { tokio::io::copy(&mut from, &mut tokio::io::sink()).await });
            let _ = to.write_all(&first).await;
            while count.load(SeqCst) < 2 * FAR_TOO_MUCH && to.write_all(&flood).await.is_ok() {
                count.fetch_add(flood.len() as u64, SeqCst);
            }
            reading.abort();
            stop.notify_one();
        }
    })
    .await;
    (receiver, written, stopped)
}

#[tokio::test]
async fn http2_frames_without_end_are_given_up() {
    let authority = Authority::new();
    // The status 500 from the static table, and frames whose bytes are all padding.
    let head = frame(1, END_HEADERS, 1, &[0x8e]);
    let padding = frame(0, PADDED, 1, &[&[254][..], &[0; 254]].concat());
    let cases = [
        ("settings", vec![], frame(4, NO_FLAGS, 0, &[0, 4, 0, 1, 0, 0])),
        ("pings", vec![], frame(6, NO_FLAGS, 0, &[7; 8])),
        ("windows", vec![], frame(8, NO_FLAGS, 0, &[0, 0, 0, 0])),
        ("priorities", vec![], frame(2, NO_FLAGS, 1, &[0, 0, 0, 0, 1])),
        ("unknown frames", vec![], frame(0xee, NO_FLAGS, 0, &[7; 200])),
        ("continuations", frame(1, NO_FLAGS, 1, &[0x8e]), frame(9, NO_FLAGS, 1, &[])),
        ("resets of others' streams", vec![], frame(3, NO_FLAGS, 3, &[0, 0, 0, 8])),
        ("padding", head.clone(), padding),
        ("empty data", head, frame(0, NO_FLAGS, 1, &[])),
    ];
    for (what, first, flood) in cases {
        let (receiver, written, stopped) = flooding_http2(&authority, first.clone(), flood).await;
        let (sender, endpoint) = (sender_that_trusts(&authority), endpoint(&receiver.https("localhost")));
        let attempted = sender.attempt(&delivery(), &endpoint, now_ms()).await;
        let report = attempted.report;
        let expected = if first.len() > 9 && first[4] == END_HEADERS { "server_failed" } else { "garbled" };
        assert_eq!(report.outcome.name(), expected, "{what}: {}", report.detail);
        // The receiver gets there only because the connection was dropped.
        stopped.notified().await;
        assert!(written.load(SeqCst) < FAR_TOO_MUCH, "{what}: {} bytes were taken", written.load(SeqCst));
    }
}
