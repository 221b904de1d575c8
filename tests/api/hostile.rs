//! What strangers write, in every place where they can: a merchant's settings, a producer's events, what a receiver answers; as long as
//! it may be, and as wicked. And something of everything else that the console has a page for.

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

use crate::{
    house::{ADMIN, House},
    support::until,
};

/// Would run, load, close what is around it, or turn the text.
pub const WICKED: &str =
    "</pre></textarea></title><script>parent.wicked=1</script>\"'><img src=x onerror='wicked=1'>\u{202e}txt {{7*7}}";

/// The ids of what is there, to make pages' addresses of.
pub struct Full {
    pub endpoint: String,
    pub account: String,
    pub intent: String,
    pub letter: String,
    pub planned: String,
    pub done: String,
    pub entry: String,
    pub act: String,
}

fn long(prefix: &str) -> String {
    format!("{prefix}{}", "Long-Id_".repeat(16)).chars().take(128).collect()
}

/// Fills the house, and pauses all sending so that nothing changes any more.
pub async fn fill(house: &House) -> Full {
    let (endpoint, account, intent) = (long("ep_"), long("acc_"), long("pi_"));
    let url = format!("{}?{}", receiver().await, "q=%3Cscript%3E'&".repeat(100));
    let post = async |path: &str, body: Value| {
        let answer = house.post(path, ADMIN, body).await;
        assert!(answer.status < 300, "{path}: {}", answer.body);
        answer.body
    };
    let described: String = WICKED.chars().filter(|c| *c != '\u{202e}').collect();
    let made = json!({
        "account": account, "id": endpoint, "url": url, "description": described, "retry": {"max_attempts": 1},
        "event_types": ["payment_intent.status_updated", "x.y".repeat(20)], "headers": {"X-Note": "<script>"},
    });
    post("/v1/endpoints", made).await;
    // As large as an entry of the console's can well be.
    let wicked = WICKED.repeat(60_000 / WICKED.len());
    let event = json!({
        "id": long("evt_"), "event": "payment_intent.status_updated", "accountId": account,
        "createdAt": "2026-11-27T19:00:00.0000000Z",
        "data": {"paymentIntentId": intent, "paymentStatus": "Captured", "captureMode": "Auto", "note": wicked},
    });
    post("/v1/events", event).await;
    let of = format!("/v1/dead-letters?endpoint={endpoint}");
    until("the receiver has refused it", async || house.get(&of, ADMIN).await["total"] == 1).await;
    let letter = house.get(&of, ADMIN).await["items"][0]["id"].as_str().unwrap().to_owned();
    let body = format!("{{\"id\":\"{wicked}\"");
    house.redis.command::<String>(&["XADD", "payment-intents", "*", "event", &body]).await;
    until("it is in quarantine", async || house.get("/v1/quarantine", ADMIN).await["total"] == 4).await;
    let entry = house.get("/v1/quarantine", ADMIN).await["items"][3]["entry"].as_str().unwrap().to_owned();
    let plan = async |intent: &str| {
        let wanted = json!({"kind": "discard", "intent": intent, "reason": described});
        post("/v1/operations", wanted).await["id"].as_str().unwrap().to_owned()
    };
    let (planned, done) = (plan("pi_6").await, plan("pi_7").await);
    post(&format!("/v1/operations/{done}/start"), json!({"reason": described})).await;
    let at = format!("/v1/operations/{done}");
    until("the operation is done", async || house.get(&at, ADMIN).await["state"] == "done").await;
    post("/v1/pause", json!({"reason": described})).await;
    house.token_of(&account).await;
    let act = house.get("/v1/audit?limit=1", ADMIN).await["items"][0]["id"].as_str().unwrap().to_owned();
    Full { endpoint, account, intent, letter, planned, done, entry, act }
}

/// Refuses whatever it is sent.
async fn receiver() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(refuse(stream));
        }
    });
    url
}

async fn refuse(stream: TcpStream) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let (mut line, mut length) = (String::new(), 0);
    while stream.read_line(&mut line).await? > 2 {
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        line.clear();
    }
    stream.read_exact(&mut vec![0; length]).await?;
    let head = format!("HTTP/1.1 400 No\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", WICKED.len());
    stream.write_all((head + WICKED).as_bytes()).await
}
