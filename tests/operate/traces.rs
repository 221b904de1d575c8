//! Traces as a collector gets them: the real program sends, and the official messages are decoded by the official package.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    merchants::Reply,
    process::{Herald, Setup, free_address},
    support::until,
    world::{Event, STREAM, World, lives},
};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

const CLIENT: u64 = 3;
const CONSUMER: u64 = 5;

/// `tests/operate/collector.py`, which ends with this value.
struct Collector {
    child: Child,
    port: u16,
    spans: Arc<Mutex<Vec<Value>>>,
}

impl Collector {
    /// How it answers: well, partial, busy or silent.
    fn start(manner: &str) -> Self {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let python = root.join("target/verifiers/operate/bin/python");
        assert!(python.exists(), "{} is missing: run deploy/setup-operate", python.display());
        let mut command = Command::new(python);
        command.arg(root.join("tests/operate/collector.py")).arg(manner).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let port = lines.next().unwrap().unwrap().parse().unwrap();
        let spans = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&spans);
        thread::spawn(move || {
            lines
                .map_while(Result::ok)
                .for_each(|line| into.lock().unwrap().push(serde_json::from_str(&line).unwrap()));
        });
        Self { child, port, spans }
    }

    fn named(&self, name: &str) -> Vec<Value> {
        self.spans.lock().unwrap().iter().filter(|span| span["name"] == name).cloned().collect()
    }

    async fn until(&self, name: &str, count: usize) {
        until(&format!("{count} spans {name:?}"), async || self.named(name).len() >= count).await;
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn traced(world: &World, port: u16) -> Setup {
    let setup = world.setup().env("OTEL_EXPORTER_OTLP_ENDPOINT", &format!("http://127.0.0.1:{port}"));
    setup.env("OTEL_BSP_SCHEDULE_DELAY", "20").env("OTEL_EXPORTER_OTLP_HEADERS", "x-key=collector-secret-1")
}

async fn publish(world: &World, event: &Event, traceparent: &str) -> String {
    world.redis.command(&["XADD", STREAM, "*", "event", &event.body, "traceparent", traceparent]).await
}

fn parent(flags: &str) -> String {
    format!("00-{TRACE}-{PARENT}-{flags}")
}

fn at<'v>(span: &'v Value, name: &str) -> &'v Value {
    &span["attributes"][name]
}

fn events(span: &Value) -> Vec<&str> {
    span["events"].as_array().unwrap().iter().map(|event| event[0].as_str().unwrap()).collect()
}

fn openmetrics(herald: &Herald) -> String {
    let url = format!("http://{}/metrics", herald.address());
    let mut curl = Command::new("curl");
    curl.args(["-s", "-H", "accept: application/openmetrics-text", &url]);
    String::from_utf8(curl.output().unwrap().stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_producers_trace_goes_on_through_two_workers_to_the_receiver() {
    let (world, collector) = (World::new().await, Collector::start("well"));
    world.register_many(1).await;
    world
        .change("ep_0", |endpoint| {
            endpoint.url.push_str("?token=query-secret-9321");
            endpoint.traceparent = true;
        })
        .await;
    world.merchants.rule("ep_0", |arrival| if arrival.attempt == 1 { Reply::status(503) } else { Reply::OK });
    let setup = traced(&world, collector.port).env("HERALD_RETRY_INITIAL", "3s").env("HERALD_RETRY_MAX_INTERVAL", "3s");
    let setup = setup.env("HERALD_LOG_FORMAT", "json");
    let first = setup.start();
    first.until_owner().await;
    let event = Event::new(1, "acc_0", "pi_1", "Created");
    let entry = publish(&world, &event, &parent("01")).await;
    collector.until("POST", 1).await;
    collector.until("process payment-intents", 1).await;
    collector.until("settle payment-intents", 1).await;
    first.kill9();
    let second = setup.start();
    world.merchants.until_delivered(1).await;
    collector.until("POST", 2).await;
    world.until_finished().await;

    let process = &collector.named("process payment-intents")[..];
    let [process] = process else { panic!("{process:#?}") };
    assert_eq!((&process["trace"], &process["parent"]), (&TRACE.into(), &PARENT.into()));
    assert_eq!(process["kind"], CONSUMER);
    for (name, value) in [
        ("messaging.system", "redis"),
        ("messaging.destination.name", STREAM),
        ("messaging.destination.partition.id", STREAM),
        ("messaging.operation.type", "process"),
        ("messaging.operation.name", "process"),
        ("messaging.consumer.group.name", "herald"),
        ("messaging.message.id", &entry),
        ("messaging.message.conversation_id", "pi_1"),
        ("herald.event.id", &event.id),
        ("herald.account.id", "acc_0"),
    ] {
        assert_eq!(at(process, name), value, "{name}");
    }
    assert_eq!(at(process, "messaging.message.body.size"), event.body.len());
    assert_eq!(events(process), ["herald.retry_planned"]);
    assert_eq!(process["resource"]["service.name"], "herald");
    assert_eq!(process["header"], "collector-secret-1");

    let posts = collector.named("POST");
    let arrivals = world.merchants.log().arrivals.clone();
    assert_eq!(posts.len(), arrivals.len(), "{posts:#?}");
    for (post, arrival) in posts.iter().zip(&arrivals) {
        assert_eq!((&post["trace"], &post["parent"]), (&TRACE.into(), &process["id"]));
        assert_eq!(post["kind"], CLIENT);
        assert_eq!(arrival.traceparent, format!("00-{TRACE}-{}-01", post["id"].as_str().unwrap()));
        assert!(post["began"].as_u64() <= post["ended"].as_u64());
        let whole = world.merchants.url("ep_0");
        for (name, value) in [
            ("url.full", whole.as_str()),
            ("server.address", "127.0.0.1"),
            ("network.peer.address", "127.0.0.1"),
            ("network.protocol.version", "1.1"),
            ("http.request.method", "POST"),
            ("herald.endpoint.id", "ep_0"),
            ("herald.delivery.id", &format!("{entry}:ep_0")),
        ] {
            assert_eq!(at(post, name), value, "{name}");
        }
        assert_eq!(at(post, "server.port"), world.merchants.address.port());
        assert_eq!(at(post, "herald.attempt"), arrival.attempt);
        assert!(at(post, "herald.waited_ms").is_u64(), "{post:#}");
    }
    let [refused, taken] = &posts[..] else { panic!("{posts:#?}") };
    assert_eq!(
        (at(refused, "http.response.status_code"), at(refused, "error.type")),
        (&503.into(), &"throttled".into())
    );
    assert_eq!((&refused["is_error"], &taken["is_error"]), (&true.into(), &false.into()));
    assert_eq!(
        (at(taken, "http.response.status_code"), at(taken, "http.request.resend_count")),
        (&200.into(), &1.into())
    );
    assert!(at(refused, "http.request.resend_count").is_null() && at(taken, "error.type").is_null());
    assert!(at(taken, "herald.waited_ms").as_u64() >= Some(2_000), "{taken:#}");

    let receive = collector.named("receive payment-intents");
    let linked = serde_json::json!([[TRACE, process["id"]]]);
    assert!(receive.iter().any(|span| span["links"] == linked && span["parent"] == ""), "{receive:#?}");
    let settle = collector.named("settle payment-intents");
    assert!(settle.iter().any(|span| span["links"] == linked && span["kind"] == CLIENT), "{settle:#?}");
    let all = collector.spans.lock().unwrap().clone();
    let ids: BTreeSet<String> = all.iter().map(|span| format!("{} {}", span["trace"], span["id"])).collect();
    assert_eq!(ids.len(), all.len(), "no span twice: {all:#?}");
    assert!(!format!("{all:?}").contains("query-secret"), "{all:#?}");

    // The log and the metrics name the same trace.
    let log = second.log();
    let delivered = log.lines().find(|line| line.contains("\"attempt\"") && line.contains(TRACE)).expect(&log);
    let delivered: Value = serde_json::from_str(delivered).unwrap();
    assert_eq!((&delivered["trace_id"], &delivered["span_id"]), (&TRACE.into(), &taken["id"]));
    let page = openmetrics(&second);
    for name in ["attempt_duration", "delivery_duration"] {
        let mut lines = page.lines().filter(|line| line.starts_with(&format!("herald_{name}_seconds_bucket")));
        assert!(lines.any(|line| line.contains(&format!(" # {{trace_id=\"{TRACE}\"}} "))), "{name}");
    }
    assert!(!second.get("/metrics").unwrap().1.contains(TRACE), "the older text has no place for it");
    second.until_metric("herald_trace_spans_total{result=\"exported\"}", |exported| exported >= 1.0).await;
    assert_eq!(second.metric("herald_trace_spans_total{result=\"dropped\"}"), 0.0);
    // Looking at the metrics, as this test has done all the time, is no span.
    assert!(collector.named("GET /metrics").is_empty(), "{all:#?}");
}

/// What a producer may write there, whether it means well or not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_thousand_events_the_sampled_one_has_spans_and_malformed_headers_are_none() {
    let (world, collector) = (World::new().await, Collector::start("well"));
    let accounts = world.register_many(4).await;
    world.change("ep_0", |endpoint| endpoint.traceparent = true).await;
    let events = lives(61, &accounts, 1_000);
    let long = "0".repeat(10_000);
    let malformed = [
        parent("01").to_uppercase(),
        format!("00-{}-{PARENT}-01", "0".repeat(32)),
        format!("00-{TRACE}-{}-01", "0".repeat(16)),
        format!("ff-{TRACE}-{PARENT}-01"),
        format!("{}-{long}", parent("01").replacen("00", "cc", 1)),
        format!("{}\r\nx-evil: 1", parent("01")),
    ];
    let sampled = events.iter().position(|event| event.account == "acc_0").unwrap();
    let mut connection = world.redis.connection().await;
    let mut pipeline = redis::pipe();
    for (number, event) in events.iter().enumerate() {
        let add = pipeline.cmd("XADD").arg(STREAM).arg("*").arg("event").arg(&event.body);
        match number {
            _ if number == sampled => add.arg("traceparent").arg(parent("01")).arg("tracestate").arg("a=b").ignore(),
            _ if number % 2 == 0 => add.arg("traceparent").arg(&malformed[number / 2 % malformed.len()]).ignore(),
            _ if number % 3 == 0 => add.arg("traceparent").arg(format!("00-{:032x}-{PARENT}-00", number + 1)).ignore(),
            _ => add.ignore(),
        };
    }
    pipeline.query_async::<()>(&mut connection).await.unwrap();
    // What has no producer's trace is not sampled.
    let setup = traced(&world, collector.port).env("OTEL_TRACES_SAMPLER", "parentbased_always_off");
    let herald = setup.env("OTEL_SERVICE_NAME", "webhooks").start();
    world.merchants.until_delivered(1_000).await;
    world.until_finished().await;
    world.merchants.assert_sound();
    collector.until("settle payment-intents", 1).await;
    assert!(herald.stop().await.success(), "a stop sends what waits");
    let all = collector.spans.lock().unwrap().clone();
    let names: Vec<&str> = all.iter().map(|span| span["name"].as_str().unwrap()).collect();
    let expected = ["POST", "process payment-intents", "receive payment-intents", "settle payment-intents"];
    assert_eq!(BTreeSet::from_iter(names.iter().copied()), BTreeSet::from(expected));
    assert_eq!(names.len(), expected.len(), "{all:#?}");
    assert!(all.iter().all(|span| span["resource"]["service.name"] == "webhooks"));
    // Who asked for it gets the producer's header as it was, if that is not sampled here, and nothing of what is none.
    let log = world.merchants.log();
    for arrival in log.of("ep_0") {
        let number: usize = arrival.event.trim_start_matches("evt_").parse().unwrap();
        match number {
            _ if number == sampled => assert!(arrival.traceparent.starts_with(&format!("00-{TRACE}-"))),
            _ if number.is_multiple_of(2) => assert_eq!(arrival.traceparent, ""),
            _ if number.is_multiple_of(3) => {
                assert_eq!(arrival.traceparent, format!("00-{:032x}-{PARENT}-00", number + 1))
            }
            _ => assert_eq!(arrival.traceparent, ""),
        }
    }
    assert!(log.of("ep_1").all(|arrival| arrival.traceparent.is_empty()), "nobody gets it unasked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_away_silent_or_busy_costs_spans_and_no_delivery() {
    let nobody = free_address().port();
    let (silent, busy) = (Collector::start("silent"), Collector::start("busy"));
    for port in [nobody, silent.port, busy.port] {
        let world = World::new().await;
        let accounts = world.register_many(4).await;
        let setup =
            traced(&world, port).env("OTEL_BSP_MAX_QUEUE_SIZE", "100").env("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "50");
        let herald = setup.env("OTEL_EXPORTER_OTLP_TIMEOUT", "300").env("HERALD_LOG", "info").start();
        herald.until_owner().await;
        world.publish(&lives(62, &accounts, 1_000)).await;
        world.merchants.until_delivered(1_000).await;
        world.until_finished().await;
        world.merchants.assert_sound();
        // An entry and an attempt of each event, and what waits still.
        let lost = |result: &str| herald.metric(&format!("herald_trace_spans_total{{result=\"{result}\"}}"));
        until("the end of nearly all spans", async || lost("failed") + lost("dropped") >= 1_900.0).await;
        assert!(lost("failed") >= 50.0 && lost("dropped") > 0.0, "{} {}", lost("failed"), lost("dropped"));
        assert_eq!(herald.metric("herald_trace_spans_total{result=\"exported\"}"), 0.0);
        assert_eq!(herald.metric("herald_lease_terms_total"), 1.0);
        herald.until_log("spans are not exported").await;
        assert!(herald.stop().await.success());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spans_that_a_collector_refuses_are_counted() {
    let (world, collector) = (World::new().await, Collector::start("partial"));
    let accounts = world.register_many(1).await;
    let herald = traced(&world, collector.port).start();
    herald.until_owner().await;
    world.publish(&lives(63, &accounts, 10)).await;
    world.until_finished().await;
    herald.until_metric("herald_trace_spans_total{result=\"failed\"}", |failed| failed >= 1.0).await;
    herald.until_metric("herald_trace_spans_total{result=\"exported\"}", |exported| exported >= 10.0).await;
    herald.until_log("the collector has refused 1 of").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_spoken_is_refused_at_the_start_and_nothing_runs_unasked() {
    let world = World::new().await;
    world.register_many(1).await;
    for (name, value, says) in [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "4318"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json", "http/protobuf"),
        ("OTEL_TRACES_EXPORTER", "zipkin", "otlp and none"),
        ("OTEL_TRACES_SAMPLER", "jaeger_remote", "parentbased_"),
        ("OTEL_TRACES_SAMPLER_ARG", "1.5", "from 0 to 1"),
        ("OTEL_TRACES_SAMPLER", "nonsense", "always_on"),
        ("OTEL_SDK_DISABLED", "yes", "true or false"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "ftp://collector", "http:// or https://"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318", "http:// or https://"),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "", "number 2 is not a header"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip", "none"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s", "milliseconds"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "x", "from 1 on"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "0", "from 1 on"),
        ("OTEL_BSP_SCHEDULE_DELAY", "-1", "milliseconds"),
        ("OTEL_RESOURCE_ATTRIBUTES", "", "number 2 is not NAME=VALUE"),
    ] {
        let setup = traced(&world, 4317);
        let setup = if name.ends_with("ARG") { setup.env("OTEL_TRACES_SAMPLER", "traceidratio") } else { setup };
        // What may be a password is not shown.
        let given = if value.is_empty() { "x-key=collector-secret-2,garbage" } else { value };
        let mut herald = setup.env(name, given).start();
        assert!(!herald.ended().await.success());
        let log = herald.log();
        assert!(log.contains(name) && log.contains(value) && log.contains(says), "{log}");
        assert!(!log.contains("collector-secret"), "{log}");
    }
    let threads = |herald: &Herald| -> Vec<String> {
        let tasks = fs::read_dir(format!("/proc/{}/task", herald.pid())).unwrap();
        tasks.map(|task| fs::read_to_string(task.unwrap().path().join("comm")).unwrap()).collect()
    };
    for (name, value) in
        [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none"), ("OTEL_EXPORTER_OTLP_ENDPOINT", "")]
    {
        let herald = traced(&world, 4318).env(name, value).start();
        herald.until_owner().await;
        let threads = threads(&herald);
        assert!(!threads.iter().any(|thread| thread.starts_with("OpenTelemetry")), "{threads:?}");
        herald.signal(Signal::SIGKILL);
    }
    let herald = traced(&world, 4318).start();
    herald.until_owner().await;
    assert!(threads(&herald).iter().any(|thread| thread.starts_with("OpenTelemetry")), "{:?}", threads(&herald));
}

const SERVER: u64 = 2;
const PRODUCER: u64 = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_herald_publishes_itself_begins_a_trace_or_goes_on_with_the_callers() {
    let (world, collector) = (World::new().await, Collector::start("well"));
    world.register_many(1).await;
    let setup = traced(&world, collector.port).env("HERALD_ADMIN_TOKEN", "a-token-of-32-characters-at-least");
    let herald = setup.start();
    herald.until_owner().await;

    let mut verb = Command::new(env!("CARGO_BIN_EXE_herald"));
    verb.args(["event", "publish", "--sample", "--account", "acc_0"])
        .env_clear()
        .env("HERALD_REDIS_URL", world.redis.url());
    verb.env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://127.0.0.1:{}", collector.port));
    let said = verb.output().unwrap();
    assert!(said.status.success(), "{said:?}");
    world.merchants.until_delivered(1).await;
    collector.until("process payment-intents", 1).await;
    let (published, processed) =
        (collector.named("publish payment-intents"), collector.named("process payment-intents"));
    let ([published], [processed]) = (&published[..], &processed[..]) else { panic!("{published:#?} {processed:#?}") };
    assert_eq!((&published["parent"], &published["kind"]), (&"".into(), &PRODUCER.into()));
    assert_eq!((&published["trace"], &published["id"]), (&processed["trace"], &processed["parent"]));
    assert_eq!(at(published, "messaging.message.id"), at(processed, "messaging.message.id"));
    assert_eq!(at(published, "messaging.operation.type"), "send");

    let event = Event::new(2, "acc_0", "pi_2", "Created");
    let mut curl = Command::new("curl");
    curl.args([
        "-s",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        "-d",
        &event.body,
        "-H",
        "content-type: application/json",
    ]);
    curl.args([
        "-H",
        "authorization: Bearer a-token-of-32-characters-at-least",
        "-H",
        &format!("traceparent: {}", parent("01")),
    ]);
    let said = curl.arg(format!("http://{}/v1/events", herald.address())).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&said.stdout), "201");
    world.merchants.until_delivered(2).await;
    collector.until("process payment-intents", 2).await;
    collector.until("POST /v1/events", 1).await;
    let of_caller = |name: &str| -> Value {
        let mut found = collector.named(name).into_iter().filter(|span| span["trace"] == TRACE);
        found.next().unwrap_or_else(|| panic!("no span {name} of the caller's trace"))
    };
    let served = of_caller("POST /v1/events");
    assert_eq!((&served["kind"], &served["parent"]), (&SERVER.into(), &PARENT.into()));
    assert_eq!(
        (at(&served, "http.route"), at(&served, "http.response.status_code")),
        (&"/v1/events".into(), &201.into())
    );
    let published = of_caller("publish payment-intents");
    assert_eq!(
        (&published["parent"], &of_caller("process payment-intents")["parent"]),
        (&served["id"], &published["id"])
    );
    assert!(herald.stop().await.success());
}

/// With TLS, as a merchant's server asks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payment_intents_event_goes_on_with_the_trace_of_the_request_that_changed_it() {
    let (world, collector, folder) = (World::new().await, Collector::start("well"), tempfile::tempdir().unwrap());
    world.register_many(1).await;
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    let file = folder.path().join("api.pem");
    fs::write(&file, certificate.pem() + &key.serialize_pem()).unwrap();
    let (file, intents) = (file.to_str().unwrap(), free_address());
    let setup = traced(&world, collector.port).env("HERALD_INTENTS_LISTEN", &intents.to_string());
    let setup = setup.env("HERALD_API_CERTIFICATE_FILE", file).env("HERALD_API_KEY_FILE", file);
    let herald = setup.env("HERALD_METRICS_LISTEN", "127.0.0.1:0").env("HERALD_SANDBOX", "true").start();

    let mut verb = Command::new(env!("CARGO_BIN_EXE_herald"));
    verb.args(["intents", "key", "create", "--account", "acc_0", "-o", "json"]).env_clear();
    let made = verb.env("HERALD_REDIS_URL", world.redis.url()).output().unwrap();
    let made: Value = serde_json::from_slice(&made.stdout).unwrap_or_else(|_| panic!("{made:?}"));
    let create = |traceparent: &str| {
        let mut curl = Command::new("curl");
        curl.args(["-s", "--cacert", file, "-d", r#"{"amount":{"value":1000,"currencyCode":"GBP"},"reference":"1"}"#]);
        curl.args(["-H", "content-type: application/json", "-H", "version: 2025-09-10"]);
        curl.args(["-H", &format!("traceparent: {traceparent}")]);
        curl.args(["-H", &format!("authorization: Basic {}", made["key"].as_str().unwrap())]);
        let said = curl.arg(format!("https://localhost:{}/payment-intents", intents.port())).output().unwrap().stdout;
        serde_json::from_slice::<Value>(&said).ok().filter(|intent| intent["id"].is_string())
    };
    // By a caller whose trace nobody records.
    let unsampled = parent("00").replace(TRACE, "0af7651916cd43dd8448eb211c80319d");
    until("an intent is made", async || create(&unsampled).is_some()).await;
    world.merchants.until_delivered(1).await;
    let intent = create(&parent("01")).unwrap();
    world.merchants.until_delivered(2).await;
    collector.until("process payment-intents", 1).await;
    collector.until("POST /payment-intents", 1).await;

    let one = |name: &str| -> Value {
        let found = collector.named(name);
        let [span] = &found[..] else { panic!("{name}: {found:#?}") };
        assert_eq!(span["trace"], TRACE, "{name}");
        span.clone()
    };
    let (served, published) = (one("POST /payment-intents"), one("publish payment-intents"));
    let (processed, posted) = (one("process payment-intents"), one("POST"));
    assert_eq!((&served["parent"], at(&served, "url.scheme")), (&PARENT.into(), &"https".into()));
    assert_eq!((&published["parent"], &published["kind"]), (&served["id"], &PRODUCER.into()));
    assert_eq!((&processed["parent"], &posted["parent"]), (&published["id"], &processed["id"]));
    assert_eq!(at(&processed, "messaging.message.conversation_id"), &intent["id"]);
    assert_eq!(at(&published, "messaging.message.id"), at(&processed, "messaging.message.id"));
    let entries: Vec<(String, Vec<String>)> = world.redis.command(&["XRANGE", STREAM, "-", "+"]).await;
    let given =
        |entry: &(String, Vec<String>)| entry.1.chunks(2).find(|field| field[0] == "traceparent").unwrap()[1].clone();
    assert_eq!(given(&entries[0]), unsampled, "as it was");
    assert_eq!(given(&entries[1]), format!("00-{TRACE}-{}-01", published["id"].as_str().unwrap()));
    assert!(herald.stop().await.success());
}
