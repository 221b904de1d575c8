//! The dashboard: each of its queries has an answer in a run of two workers where something fails.

use std::{collections::BTreeSet, fs, time::Duration};

use serde_json::Value;

use crate::{
    merchants::Reply,
    prometheus::Prometheus,
    world::{Event, World, lives, publish},
};

fn dashboard() -> Value {
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/grafana/herald.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn panels(dashboard: &Value) -> Vec<&Value> {
    dashboard["panels"].as_array().unwrap().iter().collect()
}

#[test]
fn it_has_its_rows_and_variables_and_each_panel_says_what_it_shows() {
    let dashboard = dashboard();
    assert_eq!(dashboard["uid"], "herald");
    let names = |list: &Value| list.as_array().unwrap().iter().map(|one| one["name"].clone()).collect::<Vec<_>>();
    assert_eq!(names(&dashboard["templating"]["list"]), ["datasource", "job", "instance"]);
    let panels = panels(&dashboard);
    let is_row = |panel: &&&Value| panel["type"] == "row";
    let rows: Vec<_> = panels.iter().filter(is_row).map(|row| row["title"].as_str().unwrap()).collect();
    assert_eq!(rows, ["Is it moving?", "Who is hurt?", "Is Redis well?", "Who works?"]);
    let runbooks = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/runbooks.md")).unwrap().to_lowercase();
    for pair in panels.windows(2).filter(|pair| pair[0]["type"] == "row") {
        let url =
            pair[1]["links"][0]["url"].as_str().unwrap_or_else(|| panic!("{} leads to no runbook", pair[0]["title"]));
        let anchor = url.strip_prefix("docs/runbooks.md#").unwrap();
        assert!(runbooks.contains(&format!("\n### {anchor}\n")), "{url}");
    }
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len());
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let title = &panel["title"];
        assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{title} has no unit");
        assert!(panel["description"].is_string(), "{title}");
        for target in panel["targets"].as_array().unwrap() {
            assert!(target["legendFormat"].as_str().is_some_and(|legend| !legend.is_empty()), "{title}");
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            let expression = target["expr"].as_str().unwrap();
            assert!(expression.contains("job=~\"$job\",instance=~\"$instance\""), "{expression}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make operate"]
async fn each_of_its_queries_has_an_answer() {
    let world = World::new().await;
    let accounts = world.register_many(4).await;
    world.change("ep_3", |endpoint| endpoint.retry.max_attempts = Some(1)).await;
    world.merchants.rule("ep_2", |_| Reply::status(500));
    world.merchants.rule("ep_3", |_| Reply::status(400));
    let one = world.setup().start();
    one.until_owner().await;
    let other = world.setup().start();
    let prometheus = Prometheus::of(&[&one, &other]).await;
    let events = lives(71, &accounts, 400);
    let mut connection = world.redis.connection().await;
    for part in events.chunks(40) {
        publish(&mut connection, part).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    publish(&mut connection, &[Event { body: "no event".to_owned(), ..events[0].clone() }]).await;
    let dashboard = dashboard();
    let queries: BTreeSet<String> = panels(&dashboard)
        .iter()
        .flat_map(|panel| panel["targets"].as_array().into_iter().flatten())
        .map(|target| target["expr"].as_str().unwrap().replace("$job", ".*").replace("$instance", ".*"))
        .collect();
    assert!(queries.len() > 30);
    for query in &queries {
        prometheus.until_samples(query).await;
    }
    assert_eq!(prometheus.samples("herald_no_such_metric"), Some(0));
    assert_eq!(prometheus.samples("sum(("), None);
    drop((one, other));
}
