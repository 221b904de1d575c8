//! A page of an account's intents where there are many, and as many holds that end at one instant.

use std::{
    collections::HashSet,
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use herald::{
    clock,
    facts::id::IntentId,
    intents::{
        intent::Intent,
        requests::SearchPaymentIntentRequest,
        service::{Part, Service},
        stamp::Stamp,
    },
    owned::Usage,
    store::{
        connection::{Purpose, Redis as Client},
        intents::{Change, Commit, Due, IntentStore},
    },
    surface::words::{number, time},
};
use nix::unistd::Pid;
use redis::aio::MultiplexedConnection;

use crate::{
    Args, STREAM, account,
    changes::{AT_ONCE, pay},
    keys, plain,
    processes::{Redis, wait_for},
    rows::{Reach, Rows},
    runtime, service,
    table::median,
};

/// Intents of a page, and pages that are asked for.
const PAGE: usize = 20;
const PAGES: usize = 200;

const FEW: u64 = 1_000;
const MOST_PAGE_US: f64 = 2_000.0;
const MOST_REVERSED_US: f64 = 60e6;

/// A clock that runs at this speed reaches the end of every hold within some seconds.
const FAST: f64 = 100_000.0;
const STUCK: Duration = Duration::from_secs(1_800);

/// Connections through which intents are put in.
const CONNECTIONS: usize = 4;

pub fn measure(args: &Args, rows: &mut Rows) -> Result<()> {
    let mut pages = Vec::new();
    for many in [FEW, args.scale] {
        let (redis, runtime) = (Redis::start()?, runtime()?);
        let service = service(&redis)?;
        let held = runtime.block_on(hold(&redis, &service, many))?;
        eprintln!("{} intents are held", number(many));
        pages.push(runtime.block_on(page(&redis, &service, &held))?);
        if many == args.scale {
            reversed(args, rows, &redis, &runtime, &service, &held)?;
        }
    }
    let [few, many] = pages[..] else { unreachable!("two were measured") };
    let of =
        |what: &str| format!("{what} {PAGE} of {} intents of one account, beside {}", number(args.scale), number(FEW));
    rows.add(&of("whole time of a page of"), many.0, Some(few.0), Reach::AtMost(MOST_PAGE_US), time);
    rows.add(&of("CPU of Redis, a page of"), many.1, Some(few.1), Reach::None, time);
    Ok(())
}

/// Puts in copies of one that is authorized. All of them are held until the same instant.
async fn hold(redis: &Redis, service: &Service, many: u64) -> Result<Intent> {
    let account = account(0)?;
    let intent = service.create(&account, plain("Manual")?, None).await?;
    let held = service.change(&account, &intent.id, &pay()?, None).await?;
    let until = held.deadline().context("it has a deadline")?.at();
    let client = Client::new(&redis.url())?;
    let mut stores = Vec::new();
    for _ in 0..CONNECTIONS {
        stores.push(IntentStore::on(client.connect(Purpose::Work).await?, keys()?));
    }
    let (json, status) = (held.to_record(), held.status.to_string());
    let put = async |n: u64| -> Result<()> {
        let id = IntentId::new(&format!("pi_sandbox_{n:022}"))?;
        let commit = Commit {
            id: &id,
            account: &held.account,
            expected_revision: 0,
            before: None,
            from: None,
            json: json.clone(),
            due: Due::At(until.0),
            created_at: None,
            status: status.clone(),
            status_before: None,
            event: None,
            event_id: None,
            key: None,
        };
        let mut store = stores[n as usize % CONNECTIONS].clone();
        let change = Change::new(store.keys(), &commit);
        store.commit(&[change]).await?.remove(0)?;
        Ok(())
    };
    stream::iter(1..many).map(put).buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await?;
    Ok(held)
}

/// What a page takes: the whole, and Redis' processor time.
async fn page(redis: &Redis, service: &Service, held: &Intent) -> Result<(f64, f64)> {
    let request = SearchPaymentIntentRequest::default();
    // A copy's own time is that of its commit, whatever its record says.
    let (first, last) = (held.created_at.0, service.now().await?.0);
    let (mut whole, cpu_s) = (Vec::new(), redis.cpu_s());
    for n in 0..PAGES {
        let at = Stamp(last - (last - first) * n as i64 / PAGES as i64);
        let begun = clock::now();
        let page = service.search(&held.account, &request, Part::OlderThan(at), PAGE).await?;
        whole.push((clock::now() - begun).as_micros() as f64);
        // They came at no even rate: only the newer half is sure to have as many before it.
        ensure!(page.intents.len() == PAGE || n > PAGES / 2, "a page has {} intents", page.intents.len());
    }
    Ok((median(whole), (redis.cpu_s() - cpu_s) * 1e6 / PAGES as f64))
}

/// Two processes that serve, and the time between the first and the last reversal.
fn reversed(
    args: &Args,
    rows: &mut Rows,
    redis: &Redis,
    runtime: &tokio::runtime::Runtime,
    service: &Service,
    held: &Intent,
) -> Result<()> {
    let mut connection = runtime.block_on(async {
        let connection = redis::Client::open(redis.url())?.get_multiplexed_async_connection().await?;
        // Their time comes before anybody serves.
        service.set_speed(FAST).await?;
        anyhow::Ok(connection)
    })?;
    let until = held.deadline().context("it has a deadline")?.at();
    wait_for("the holds' end", STUCK, || runtime.block_on(service.now()).is_ok_and(|now| now >= until))?;
    runtime.block_on(service.set_speed(1.0))?;
    let told: u64 = runtime.block_on(redis::cmd("XLEN").arg(STREAM).query_async(&mut connection))?;
    let folder = tempfile::TempDir::with_prefix("herald-bench-")?;
    let (begun, cpu_s) = (clock::now(), redis.cpu_s());
    let serving = [0, 1].map(|at| Serving::start(&args.herald, redis, folder.path(), at));
    let [one, other] = serving;
    let (one, other) = (one?, other?);
    let index = keys()?.intents_of(&account(0)?, "Reversed");
    let done = |connection: &mut MultiplexedConnection| -> Result<u64> {
        Ok(runtime.block_on(redis::cmd("ZCARD").arg(&index).query_async(connection))?)
    };
    wait_for("the reversals", STUCK, || done(&mut connection).is_ok_and(|count| count >= args.scale))?;
    let took_us = (clock::now() - begun).as_micros() as f64;
    let each = |cpu_s: f64| cpu_s * 1e6 / args.scale as f64;
    let (redis_us, served_us) = (each(redis.cpu_s() - cpu_s), each(one.cpu_s() + other.cpu_s()));
    let (events, intents) = runtime.block_on(told_of(&mut connection))?;
    ensure!(
        events == told + args.scale && intents == args.scale,
        "{events} events tell of {intents} intents, where {} were reversed and {told} events told before",
        args.scale
    );
    let what = format!("{} holds that end at one instant, two processes", number(args.scale));
    rows.add(&format!("{what}: all reversed, each told once"), took_us, None, Reach::AtMost(MOST_REVERSED_US), time);
    rows.add(&format!("CPU of Redis of each, {what}"), redis_us, None, Reach::None, time);
    rows.add(&format!("CPU of both processes of each, {what}"), served_us, None, Reach::None, time);
    Ok(())
}

/// Events in the stream, and how many intents the reversals among them are of.
async fn told_of(connection: &mut MultiplexedConnection) -> Result<(u64, u64)> {
    const PAGE: usize = 10_000;
    type Entry = (String, Vec<(String, String)>);
    let (mut events, mut intents, mut after) = (0, HashSet::new(), "-".to_owned());
    loop {
        let page: Vec<Entry> = redis::cmd("XRANGE")
            .arg(STREAM)
            .arg(&after)
            .arg("+")
            .arg("COUNT")
            .arg(PAGE)
            .query_async(connection)
            .await?;
        let Some((last, _)) = page.last() else { return Ok((events, intents.len() as u64)) };
        after = format!("({last}");
        events += page.len() as u64;
        for (_, fields) in &page {
            let event = fields.iter().find(|(name, _)| name == "event").context("an entry has no event")?;
            let event: serde_json::Value = serde_json::from_str(&event.1)?;
            if event["data"]["paymentStatus"] == "Reversed" {
                let id = event["data"]["paymentIntentId"].as_str().context("an event has no intent")?;
                ensure!(intents.insert(id.to_owned()), "{id} was reversed twice");
            }
        }
    }
}

/// `herald intents serve`.
struct Serving(Child);

impl Serving {
    fn start(program: &Path, redis: &Redis, folder: &Path, at: u32) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(["intents", "serve"]).env_clear().env("PATH", "/usr/bin:/bin");
        command.env("HERALD_REDIS_URL", redis.url());
        command.env("HERALD_INTENTS_LISTEN", format!("127.0.0.1:{}", herald::owned::free_port()?));
        let log = fs::File::create(folder.join(format!("intents-{at}.log")))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        Ok(Self(command.spawn().context("cannot start herald intents serve")?))
    }

    fn cpu_s(&self) -> f64 {
        Usage::of(Pid::from_raw(self.0.id() as i32)).cpu.as_secs_f64()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
