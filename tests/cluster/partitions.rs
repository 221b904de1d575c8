//! A routed stream whose parts lie on several nodes: when one of these is gone, what the others have is still shown.

use std::collections::BTreeSet;

use herald::{
    facts::{partition::part_of, retry::DeadReason},
    owned::MASTERS,
    store::{
        connection::Redis,
        keys::{PartitionKeys, RegistryKeys},
    },
};

use serde_json::Value;

use crate::{
    Town, json,
    process::{Herald, Setup},
    slot,
    stage::{Owner, bury, delivery_of},
    support::until,
    world::STREAM,
};

const PARTS: u32 = 4;

const TOKEN: &str = "the-first-token-with-every-right";

/// What the operations API answers.
async fn asked(herald: &Herald, path: &str) -> (u16, Value) {
    let answer = reqwest::Client::new().get(format!("http://{}{path}", herald.address())).bearer_auth(TOKEN);
    let answer = answer.send().await.unwrap();
    let status = answer.status().as_u16();
    (status, json(&answer.text().await.unwrap()))
}

/// A page of the console, as somebody sees it who signs in for it.
async fn page(herald: &Herald, path: &str) -> String {
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let url = |path: &str| format!("http://{}{path}", herald.address());
    let cookies = |answer: &reqwest::Response| {
        let set = answer.headers().get_all("set-cookie").iter();
        set.map(|set| set.to_str().unwrap().split(';').next().unwrap().to_owned()).collect::<Vec<_>>().join("; ")
    };
    let answer = client.get(url("/console/login")).send().await.unwrap();
    let (known, login) = (cookies(&answer), answer.text().await.unwrap());
    let (_, form_key) = login.split_once(r#"name="form_key" value=""#).unwrap();
    let form_key = form_key.split('"').next().unwrap();
    let fields = [("form_key", form_key), ("token", TOKEN), ("next", "/console")];
    let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
    let form = client.post(url("/console/login")).header("cookie", known).body(body);
    let form = form.header("content-type", "application/x-www-form-urlencoded");
    let session = cookies(&form.send().await.unwrap());
    client.get(url(path)).header("cookie", session).send().await.unwrap().text().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rest_is_shown_when_a_node_is_gone_and_what_is_missing_is_named() {
    let mut town = Town::new().await;
    town.register_many(8).await;
    let root = PartitionKeys::new(STREAM).unwrap();
    town.ask_home::<()>(&["SET", &root.mode(), &format!("routed {PARTS} t0ken 0-0")]).await;
    let registry = town.cluster.master_of(RegistryKeys::slot().number()).await.unwrap();
    town.ask::<u64>(registry, &["HSET", "herald:{herald}:partitions", STREAM, &PARTS.to_string()]).await;
    let redis = Redis::new(&town.cluster.url_of_all()).unwrap();
    let mut nodes = Vec::new();
    for part in 0..PARTS {
        let keys = PartitionKeys::new(&part_of(STREAM, part)).unwrap();
        nodes.push(town.cluster.master_of(keys.slot().number()).await.unwrap());
        // `acc_0` is in part 2, `acc_1` in 3, `acc_2` in 0, `acc_3` in 1.
        let account = (part + 2) % PARTS;
        let owner = Owner::of(&redis, keys).await;
        let one = delivery_of(&format!("acc_{account}"), "7-0", &format!("ep_{account}"), "pi_7", true);
        owner.settle(vec![bury(&one, DeadReason::Exhausted)], Vec::new()).await;
    }
    let home = town.cluster.master_of(slot()).await.unwrap();
    let lost = (0..MASTERS).find(|node| *node != home && *node != registry).unwrap();
    let (gone, left): (Vec<u32>, Vec<u32>) = (0..PARTS).partition(|part| nodes[*part as usize] == lost);
    assert!(!gone.is_empty() && !left.is_empty(), "the test needs parts on that node and on others: {nodes:?}");
    let url = town.cluster.url_of_all();
    assert_eq!(json(&town.done(&["dead-letter", "list", "-o", "json"])).as_array().unwrap().len(), PARTS as usize);

    // Over HTTP too, and a page at a time.
    herald::tls::install_crypto_provider();
    let herald = Setup::new(&url).env("HERALD_ADMIN_TOKEN", TOKEN).start();
    herald.until_owner().await;
    let (mut cursor, mut ids) = (String::new(), Vec::new());
    loop {
        let (status, page) = asked(&herald, &format!("/v1/dead-letters?limit=1{cursor}")).await;
        assert_eq!((status, &page["total"]), (200, &PARTS.into()), "{page}");
        assert!(page.get("unavailable").is_none(), "{page}");
        ids.extend(page["items"].as_array().unwrap().iter().map(|letter| letter["id"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), PARTS as usize, "{ids:?}");
    assert_eq!(ids.len(), PARTS as usize);

    // Its replica first, so that nobody takes its place.
    town.cluster.node(lost + MASTERS).kill().await.unwrap();
    town.cluster.node(lost).kill().await.unwrap();
    let named = |parts: &[u32]| parts.iter().map(|part| part_of(STREAM, *part)).collect::<Vec<_>>().join(", ");
    until("the rest to be shown", async || {
        town.verb(&url, &["dead-letter", "list", "-o", "json"]).status.code() == Some(7)
    })
    .await;
    let output = town.verb(&url, &["dead-letter", "list", "-o", "json"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains(&format!("no answer from {}: ", named(&gone))), "{said}");
    let listed = json(&String::from_utf8_lossy(&output.stdout));
    assert_eq!(listed.as_array().unwrap().len(), left.len(), "{listed}");

    // The answer that is shown is the rest, and says so.
    let names: Vec<String> = gone.iter().map(|part| part_of(STREAM, *part)).collect();
    for path in ["/v1/dead-letters", "/v1/partitions", "/v1/stats", "/v1/overview", "/v1/quarantine", "/v1/issues"] {
        let (status, answer) = asked(&herald, path).await;
        assert_eq!((status, &answer["unavailable"]), (200, &names.clone().into()), "{path}: {answer}");
    }
    let page = page(&herald, "/console/partitions").await;
    assert!(page.contains(&format!("Redis does not answer for {}:", named(&gone))), "{page}");
    for (part, is_there) in gone.iter().map(|part| (part, false)).chain(left.iter().map(|part| (part, true))) {
        let name = format!(r#"<span class="id">{}</span>"#, part_of(STREAM, *part));
        assert_eq!(page.contains(&name), is_there, "{name}: {page}");
    }
    let (_, answer) = asked(&herald, "/v1/dead-letters").await;
    assert_eq!((answer["items"].as_array().unwrap().len(), &answer["total"]), (left.len(), &left.len().into()));

    // What is of one part is whole if it is there, and what is not found may be in the other.
    for part in 0..PARTS {
        let id = format!("7-0:ep_{}", (part + 2) % PARTS);
        let shown = town.verb(&url, &["dead-letter", "show", &id]);
        let said = String::from_utf8_lossy(&shown.stderr).into_owned();
        assert_eq!(shown.status.code(), Some(if gone.contains(&part) { 7 } else { 0 }), "{id}: {said}");
    }
    let listed = town.verb(&url, &["partition", "list", "-o", "json"]);
    assert_eq!(listed.status.code(), Some(7));
    let listed = json(&String::from_utf8_lossy(&listed.stdout));
    assert_eq!(listed.as_array().unwrap().len(), 1 + left.len(), "{listed}");
}
