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
    // Beyond the number a request is refused at once.
    until("one is refused", async || {
        let Some(mut stream) = connect(&house) else { return false };
        let request =
            format!("GET /v1/me HTTP/1.1\r\nhost: h\r\nconnection: close\r\nauthorization: Bearer {ADMIN}\r\n\r\n");
        if stream.write_all(request.as_bytes()).is_err() {
            return false;
        }
        let mut answer = String::new();
        stream.read_to_string(&mut answer).is_ok()
            && answer.starts_with("HTTP/1.1 503")
            && answer.contains("retry-after")
    })
    .await;
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
