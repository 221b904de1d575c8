//! Health is answered whatever the rest of the port has to bear.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use crate::{
    house::{ADMIN, House},
    support::until,
};

fn connect(house: &House) -> Option<TcpStream> {
    let stream = TcpStream::connect(house.herald.address()).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(30))).ok()?;
    Some(stream)
}

fn is_well(house: &House) {
    for path in ["/healthz", "/readyz"] {
        assert_eq!(house.herald.get(path).map(|(status, _)| status), Some(200), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_slow_and_flooding_callers_keep_no_probe_waiting() {
    herald::descriptors::raise_limit();
    let house = House::start().await;
    // A thousand that say nothing, or begin and do not go on.
    let mut idle: Vec<TcpStream> = (0..1_000).filter_map(|_| connect(&house)).collect();
    assert_eq!(idle.len(), 1_000);
    for stream in idle.iter_mut().step_by(2) {
        let _ = stream.write_all(b"GET /v1/me HTTP/1.1\r\nx-never: ");
    }
    is_well(&house);
    // More bodies that do not come than requests may be answered at once.
    let slow = format!(
        "POST /v1/tokens HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {ADMIN}\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{{"
    );
    let mut bodies = Vec::new();
    for _ in 0..300 {
        if let Some(mut stream) = connect(&house)
            && stream.write_all(slow.as_bytes()).is_ok()
        {
            bodies.push(stream);
        }
    }
    is_well(&house);
    // Who sends slowly takes nobody's place.
    until("a caller is answered meanwhile", async || {
        let Some(mut stream) = connect(&house) else { return false };
        let request =
            format!("GET /v1/me HTTP/1.1\r\nhost: h\r\nconnection: close\r\nauthorization: Bearer {ADMIN}\r\n\r\n");
        let mut answer = String::new();
        stream.write_all(request.as_bytes()).is_ok()
            && stream.read_to_string(&mut answer).is_ok()
            && answer.starts_with("HTTP/1.1 200")
    })
    .await;
    let is_waiting = |stream: &mut TcpStream| {
        stream.set_nonblocking(true).is_ok()
            && stream.read(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    };
    assert!(bodies.iter_mut().filter_map(|stream| is_waiting(stream).then_some(())).count() > 256, "they still send");
    drop(bodies);
    // A flood of requests while probes come.
    let address = house.herald.address();
    let flood: Vec<_> = (0..8)
        .map(|_| {
            std::thread::spawn(move || {
                let mut answered = 0;
                for _ in 0..200 {
                    let Ok(mut stream) = TcpStream::connect(address) else { continue };
                    let _ = stream.set_read_timeout(Some(Duration::from_secs(30)));
                    let request = b"GET /v1/stats HTTP/1.1\r\nhost: h\r\nconnection: close\r\nauthorization: Bearer hrld_x\r\n\r\n";
                    let mut answer = Vec::new();
                    if stream.write_all(request).is_ok() && stream.read_to_end(&mut answer).is_ok() && !answer.is_empty() {
                        answered += 1;
                    }
                }
                answered
            })
        })
        .collect();
    while flood.iter().any(|thread| !thread.is_finished()) {
        is_well(&house);
    }
    let answered: u32 = flood.into_iter().map(|thread| thread.join().unwrap()).sum();
    assert!(answered > 0);
    drop(idle);
    until("a caller is answered again", async || house.ask("GET", "/v1/stats", Some(ADMIN), None).await.status == 200)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_begun_is_told_of_to_its_end_whoever_leaves() {
    let house = House::start().await;
    for n in 0..40_u64 {
        let body = format!(r#"{{"description":"d{n}","reason":"r"}}"#);
        let head = format!(
            "PATCH /v1/endpoints/ep_a HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {ADMIN}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = connect(&house).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        std::thread::sleep(Duration::from_micros(500 * (n % 16)));
    }
    until("each has an end, and each change a beginning", async || {
        let acts = house.get("/v1/audit?endpoint=ep_a&act=endpoint%20update&limit=500", ADMIN).await;
        let acts = acts["items"].as_array().unwrap();
        let done = acts.iter().filter(|act| act["ended"]["result"] == "done").count() as u64;
        let revision = house.get("/v1/endpoints/ep_a", ADMIN).await["revision"].as_u64().unwrap();
        !acts.is_empty() && acts.iter().all(|act| act["ended"].is_object()) && done == revision - 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merchant_who_asks_for_much_at_once_is_refused_and_holds_up_nobody() {
    let house = House::start().await;
    let merchant = house.token("merchant").await;
    let looks = (0..40).map(|_| house.ask("GET", "/v1/deliveries?account=acc_1&limit=500", Some(&merchant), None));
    let seen = futures_util::future::join_all(looks).await;
    let refused: Vec<_> = seen.iter().filter(|answer| answer.status == 429).collect();
    assert!(!refused.is_empty() && refused.len() < 40, "{} were refused", refused.len());
    for answer in refused {
        assert_eq!(
            (&answer.body["type"], &answer.headers["retry-after"]),
            (&"/problems/too-many-at-once".into(), &"1".parse().unwrap())
        );
    }
    assert!(seen.iter().all(|answer| [200, 429].contains(&answer.status)));
    // Two tests that hang are all that one account has; others' go out.
    let hangs = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", hangs.local_addr().unwrap());
    let made = house.post("/v1/endpoints", &merchant, serde_json::json!({"url": url, "timeout_ms": 5_000})).await;
    let test = format!("/v1/endpoints/{}/test", made.body["id"].as_str().unwrap());
    let tests = futures_util::future::join_all((0..8).map(|_| house.post(&test, &merchant, serde_json::json!({}))));
    let others = async {
        // Both are under way, and each connection stays open.
        let _both = (hangs.accept().await.unwrap(), hangs.accept().await.unwrap());
        house.post("/v1/endpoints/ep_b/test", ADMIN, serde_json::json!({})).await
    };
    let (tests, other) = futures_util::future::join(tests, others).await;
    assert_eq!(other.status, 200, "{}", other.body);
    let statuses: Vec<u16> = tests.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 429).count(), 6, "{statuses:?}");
}
