//! The page of metrics is what docs/metrics.md says, and does not grow with the number of endpoints.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read, Write},
    net::TcpStream,
};

use herald::facts::id::{AccountId, EndpointId};

use crate::{
    process::Herald,
    support::until,
    world::{World, lives, mark},
};

/// Type, unit, labels and help.
type Described = (String, String, BTreeSet<String>, String);

fn listed() -> BTreeMap<String, Described> {
    let list = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md")).unwrap();
    let rows = list.lines().filter(|line| line.starts_with("| `"));
    let rows = rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        assert_eq!(cells.len(), 6, "{row}");
        let plain = |text: &str| text.trim_matches('`').to_owned();
        let labels = cells[3].split(", ").filter(|label| !label.is_empty()).map(plain).collect();
        (plain(cells[0]), (cells[1].to_owned(), cells[2].to_owned(), labels, cells[4].to_owned()))
    });
    rows.collect()
}

/// As the page describes them; `units` are those of the OpenMetrics page.
fn described(page: &str, openmetrics: &str) -> BTreeMap<String, Described> {
    let mut found: BTreeMap<String, Described> = BTreeMap::new();
    for line in page.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            found.entry(name.to_owned()).or_default().3 = help.trim_end_matches('.').to_owned();
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            found.entry(name.to_owned()).or_default().0 = kind.to_owned();
        } else {
            let name = line.split(['{', ' ']).next().unwrap();
            let whole = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            let name = whole.filter(|whole| found.contains_key(*whole)).unwrap_or(name);
            let labels = line.split_once('{').map_or("", |(_, rest)| rest.rsplit_once('}').unwrap().0);
            let names =
                labels.split("\",").filter_map(|label| label.split_once("=\"").map(|(name, _)| name.to_owned()));
            let metric = found.get_mut(name).unwrap_or_else(|| panic!("{line} is not described"));
            metric.2.extend(names.filter(|name| name != "le"));
        }
    }
    for (name, unit) in openmetrics.lines().filter_map(|line| line.strip_prefix("# UNIT ")?.split_once(' ')) {
        let total = format!("{name}_total");
        let name = if found.contains_key(name) { name } else { &total };
        found.get_mut(name).unwrap().1 = unit.to_owned();
    }
    found
}

/// Head and body of the answer to a request with this line in its head.
fn asked(herald: &Herald, path: &str, line: &str) -> (String, String) {
    let mut stream = TcpStream::connect(herald.address()).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: herald\r\n{line}\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_list_of_metrics_is_what_an_owner_shows() {
    let world = World::new().await;
    let accounts = world.register_many(2).await;
    let herald = world.setup().env("HERALD_INTENTS_LISTEN", "127.0.0.1:0").start();
    world.publish(&lives(1, &accounts, 20)).await;
    world.merchants.until_delivered(20).await;
    herald.until_metric("herald_stream_lag_entries", |entries| entries == 0.0).await;
    let (_, openmetrics) = asked(&herald, "/metrics", "accept: application/openmetrics-text;version=1.0.0");
    assert!(openmetrics.ends_with("# EOF\n"));
    assert!(asked(&herald, "/v1/endpoints/ep_0", "connection: close").0.contains(" 401 "));
    assert!(asked(&herald, "/nowhere/ep_0", "connection: close").0.contains(" 404 "));
    for (route, status) in [("/v1/endpoints/{endpoint}", "4xx"), ("/metrics", "2xx"), ("none", "4xx")] {
        let series = format!("herald_http_requests_total{{route=\"{route}\",method=\"GET\",status=\"{status}\"}}");
        assert!(herald.metric(&series) >= 1.0, "{series} in {}", herald.get("/metrics").unwrap().1);
    }
    assert!(!herald.get("/metrics").unwrap().1.contains("ep_0"));
    let mut shown = described(&herald.get("/metrics").unwrap().1, &openmetrics);
    // A build from no git checkout does not know its revision.
    shown.get_mut("herald_build_info").unwrap().2.insert("revision".to_owned());
    let mut listed = listed();
    // Only with a certificate, which `tests/edges` has.
    assert!(listed.remove("herald_certificate_not_after_timestamp_seconds").is_some());
    for (name, metric) in &shown {
        assert_eq!(listed.get(name), Some(metric), "{name} in docs/metrics.md");
    }
    assert_eq!(listed.len(), shown.len(), "{:?} is on no page", listed.keys().find(|name| !shown.contains_key(*name)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_more_endpoints_add_no_series() {
    let world = World::new().await;
    let accounts = world.register_many(2).await;
    let herald = world.setup().start();
    world.publish(&lives(2, &accounts, 40)).await;
    world.merchants.until_delivered(40).await;
    herald.until_metric("herald_stream_lag_entries", |entries| entries == 0.0).await;
    let series = || {
        let (_, page) = herald.get("/metrics").unwrap();
        let names = page.lines().filter(|line| !line.starts_with('#'));
        names.map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).collect::<BTreeSet<_>>()
    };
    let before = series();
    let mut registry = world.registry().await;
    let mut more = Vec::new();
    for n in 0..1_000 {
        let (id, account) = (format!("ep_more_{n}"), format!("acc_more_{n}"));
        let mut endpoint = world.endpoint(&id, &account);
        (endpoint.id, endpoint.account) = (EndpointId::new(&id).unwrap(), AccountId::new(&account).unwrap());
        registry.create(endpoint, &mark()).await.unwrap();
        more.push(account);
    }
    herald.until_metric("herald_endpoints{state=\"enabled\"}", |endpoints| endpoints == 1_002.0).await;
    world.publish(&lives(3, &more, 2_000)).await;
    world.merchants.until_delivered(2_040).await;
    herald.until_metric("herald_breakers{state=\"closed\"}", |endpoints| endpoints > 600.0).await;
    assert_eq!(series(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_owner_tells_of_its_partition_and_no_longer_than_its_term() {
    let world = World::new().await;
    world.register_many(1).await;
    let owner = world.setup().start();
    owner.until_owner().await;
    owner.until_metric("herald_stream_entries", |entries| entries == 0.0).await;
    let standby = world.setup().start();
    standby.until_metric("herald_redis_up", |up| up == 1.0).await;
    let tells = |herald: &Herald| herald.get("/metrics").unwrap().1.contains("herald_stream_entries{");
    assert!(tells(&owner) && !tells(&standby));
    assert_eq!(standby.metric("herald_partition_owner"), 0.0);
    // Its lease lapses while Redis cannot be asked.
    owner.signal(nix::sys::signal::Signal::SIGSTOP);
    standby.until_metric("herald_partition_owner", |owner| owner == 1.0).await;
    standby.until_metric("herald_stream_entries", |entries| entries == 0.0).await;
    owner.signal(nix::sys::signal::Signal::SIGCONT);
    owner.until_metric("herald_partition_owner", |owner| owner == 0.0).await;
    until("the former owner tells nothing", async || !tells(&owner)).await;
}
