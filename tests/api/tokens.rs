//! Tokens: made, shown once, used, expired, revoked, and guessed in vain.

use serde_json::{Value, json};

use crate::{
    herald_process::Setup,
    house::{ADMIN, House},
    support::{TestRedis, until},
};

#[tokio::test]
async fn a_token_is_shown_once_and_only_its_hash_is_kept() {
    let house = House::start().await;
    let token = house.token("viewer").await;
    assert!(token.starts_with("hrld_") && token.len() == 5 + 43, "{token}");
    assert_eq!(house.get("/v1/me", &token).await["role"], "viewer");
    let kept: String = house.redis.command::<Vec<String>>(&["HGETALL", "herald:{herald}:tokens"]).await.join(" ");
    assert!(!kept.contains(&token[5..]), "{kept}");
    let listed = house.get("/v1/tokens", ADMIN).await;
    assert!(listed[0]["hash"].is_string() && listed[0].get("token").is_none(), "{listed}");
    until("the use is noted", async || house.get("/v1/tokens", ADMIN).await[0]["used_at"].is_string()).await;
    let audit = house.get("/v1/audit?act=token%20create", ADMIN).await;
    let act = &audit["items"][0];
    assert_eq!((&act["surface"], &act["ended"]["result"]), (&"http".into(), &"done".into()), "{act}");
    assert!(act["by"].as_str().unwrap().ends_with(" admin_token"), "{act}");
    assert!(!audit.to_string().contains(&token[5..]));
}

#[tokio::test]
async fn a_revoked_token_is_refused_on_each_surface_that_revokes() {
    let house = House::start().await;
    let by_api = house.token("operator").await;
    let hash = house.get("/v1/tokens", ADMIN).await[0]["hash"].as_str().unwrap().to_owned();
    let (path, why) = (format!("/v1/tokens/{hash}"), json!({"reason": "left"}));
    assert_eq!(house.ask("DELETE", &path, Some(ADMIN), Some(&why)).await.status, 204);
    let is_refused = async |token: &str| house.ask("GET", "/v1/me", Some(token), None).await.status == 401;
    until("it is refused", async || is_refused(&by_api).await).await;

    let made = house.cli(&["token", "create", "--role", "merchant", "--account", "acc_1", "--name", "till"]);
    let by_cli = made["token"].as_str().unwrap();
    assert_eq!(house.get("/v1/me", by_cli).await["account"], "acc_1");
    let listed = house.cli(&["token", "list"]);
    assert_eq!((&listed[0]["name"], &listed[0]["role"]), (&"till".into(), &"merchant".into()));
    let mut revoke = std::process::Command::new(env!("CARGO_BIN_EXE_herald"));
    revoke.args(["--redis-url", &house.redis.url(), "token", "revoke", &made["hash"].as_str().unwrap()[..12]]);
    assert!(revoke.status().unwrap().success());
    until("it is refused", async || is_refused(by_cli).await).await;
}

#[tokio::test]
async fn what_is_wrong_with_a_token_is_refused_when_it_is_made() {
    let house = House::start().await;
    let wrong = [
        json!({"role": "merchant", "name": "a", "reason": "r"}),
        json!({"role": "viewer", "account": "acc_1", "name": "a", "reason": "r"}),
        json!({"role": "root", "name": "a", "reason": "r"}),
        json!({"role": "viewer", "name": " ", "reason": "r"}),
        json!({"role": "viewer", "name": "a", "expires_in": "1s", "reason": "r"}),
        json!({"role": "viewer", "name": "a"}),
        json!({"role": "viewer", "name": "a", "reason": "r", "hash": "x"}),
    ];
    for body in wrong {
        let answer = house.post("/v1/tokens", ADMIN, body.clone()).await;
        assert_eq!(answer.status, 400, "{body}: {}", answer.body);
    }
    assert_eq!(house.get("/v1/tokens", ADMIN).await, Value::Array(Vec::new()));
}

#[tokio::test]
async fn whoever_guesses_is_stopped_and_keeps_nobody_else_out() {
    let house = House::start().await;
    let good = house.token("viewer").await;
    house.get("/v1/me", &good).await;
    let mut seen = Vec::new();
    for n in 0..30 {
        seen.push(house.ask("GET", "/v1/me", Some(&format!("hrld_{n}")), None).await.status);
    }
    assert_eq!(seen[0], 401);
    let stopped = house.ask("GET", "/v1/me", Some("hrld_x"), None).await;
    assert!(seen.contains(&429) && stopped.headers.contains_key("retry-after"), "{seen:?}");
    // They come from the same address.
    house.get("/v1/me", &good).await;
    house.get("/v1/me", ADMIN).await;
    // What was never used here works too, within the second in which it is known what there is.
    let unused = house.token("viewer").await;
    until("it is let in", async || {
        house.ask("GET", "/v1/me", Some("hrld_x"), None).await;
        house.ask("GET", "/v1/me", Some(&unused), None).await.status == 200
    })
    .await;
    let answers = async |n: usize| house.ask("GET", "/v1/me", Some(&format!("hrld_y{n}")), None).await.status;
    let seen = futures_util::future::join_all((0..40).map(answers)).await;
    assert!(seen.contains(&429), "whoever guesses is still refused: {seen:?}");
    // Each counts before it is looked for.
    let others = House::start().await;
    let guesses: Vec<String> = (0..240).map(|n| format!("hrld_{n}")).collect();
    let seen =
        futures_util::future::join_all(guesses.iter().map(|guess| others.ask("GET", "/v1/me", Some(guess), None)));
    let seen: Vec<u16> = seen.await.into_iter().map(|answer| answer.status).collect();
    let looked_for = seen.iter().filter(|status| **status == 401).count();
    assert!((20..60).contains(&looked_for) && seen.contains(&429), "{looked_for} of {}", seen.len());
}

#[tokio::test]
async fn without_any_token_all_but_health_is_refused() {
    let redis = TestRedis::start().await;
    let herald = Setup::new(&redis.url()).start();
    until("it serves", async || herald.get("/healthz").is_some()).await;
    assert_eq!(herald.get("/healthz").map(|(status, _)| status), Some(200));
    let client = reqwest::Client::new();
    let url = format!("http://{}/v1/stats", herald.address());
    assert_eq!(client.get(&url).send().await.unwrap().status().as_u16(), 401);
    assert_eq!(client.get(&url).bearer_auth("").send().await.unwrap().status().as_u16(), 401);
}
