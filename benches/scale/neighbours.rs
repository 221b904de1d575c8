//! What healthy endpoints notice of others that take a request and never answer it.

use std::{
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{
    events::Lives,
    processes::wait_for,
    receiver::now_us,
    stack::{STUCK, Stack, rest},
    table::median,
};

/// One endpoint in this many hangs.
const ONE_IN: u64 = 10;

/// How many connections it keeps: a lane has some ten at most, and an attempt ends after 15 s.
const MOST_KEPT: usize = 10_000;

#[derive(Debug, Clone, Copy)]
pub struct Latency {
    pub p50_us: u64,
    pub p99_us: u64,
    /// How much of the machine's processors the host took away meanwhile, in thousandths. A program that does not run
    /// for ten milliseconds answers late, whatever is beside it.
    pub stolen: u64,
}

impl Latency {
    /// Of each figure by itself, over the calmer half of the rounds: those in which the host took least.
    pub fn median(mut all: Vec<Self>) -> Self {
        all.sort_by_key(|one| one.stolen);
        all.truncate(all.len().div_ceil(2));
        let of = |value: fn(&Self) -> u64| median(all.iter().map(|one| value(one) as f64).collect()) as u64;
        Self { p50_us: of(|one| one.p50_us), p99_us: of(|one| one.p99_us), stolen: of(|one| one.stolen) }
    }
}

/// The machine's processor time since it started, and how much of it the host gave to others, in the kernel's ticks.
struct Ticks {
    all: u64,
    stolen: u64,
}

impl Ticks {
    fn now() -> Result<Self> {
        let text = std::fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        let line =
            text.lines().next().and_then(|line| line.strip_prefix("cpu ")).context("/proc/stat begins otherwise")?;
        // user, nice, system, idle, iowait, irq, softirq, steal; what guests use is in the first two.
        let ticks: Vec<u64> = line.split_ascii_whitespace().take(8).map(str::parse).collect::<Result<_, _>>()?;
        ensure!(ticks.len() == 8, "/proc/stat tells nothing of what the host takes");
        Ok(Self { all: ticks.iter().sum(), stolen: ticks[7] })
    }

    /// In thousandths.
    fn stolen_since(&self, earlier: &Self) -> u64 {
        1_000 * (self.stolen - earlier.stolen) / (self.all - earlier.all).max(1)
    }
}

pub fn hangs(endpoint: u64) -> bool {
    endpoint.is_multiple_of(ONE_IN)
}

/// A server that accepts and never says anything.
pub struct Hanging {
    pub url: String,
    accepted: Arc<AtomicU64>,
}

impl Hanging {
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let url = format!("http://{}", listener.local_addr()?);
        let accepted = Arc::new(AtomicU64::new(0));
        let counter = accepted.clone();
        // It ends with the bench.
        std::thread::spawn(move || {
            let mut kept = Vec::new();
            for stream in listener.incoming().take(MOST_KEPT) {
                kept.push(stream);
                counter.fetch_add(1, Ordering::Relaxed);
            }
        });
        Ok(Self { url, accepted })
    }

    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }
}

/// An event every millisecond, whatever Redis does: waiting for each answer would add up to being late. Its id says
/// when it should have been sent, so a late producer hides nothing. Only events for endpoints that `is_healthy` accepts
/// arrive.
pub fn latency(stack: &mut Stack, seconds: u64, is_healthy: impl Fn(u64) -> bool) -> Result<Latency> {
    let (before, ticks) = (stack.receiver.count()?, Ticks::now()?);
    stack.receiver.latency()?;
    let start_us = now_us() + 10_000;
    let mut healthy = 0;
    for n in 0..seconds * 1_000 {
        let intended_us = start_us + n * 1_000;
        rest(Duration::from_micros(intended_us.saturating_sub(now_us())));
        let event = stack.lives.next_as(format!("evt_t{intended_us}_{n}"));
        healthy += u64::from(is_healthy(account(&event.body)?));
        stack.producer.send(&event)?;
    }
    stack.producer.flush()?;
    wait_for("the healthy ones", STUCK, || stack.receiver.count().is_ok_and(|count| count >= before + healthy))?;
    let [count, p50_us, p99_us, _] = stack.receiver.latency()?;
    ensure!(count == healthy, "{count} of {healthy} events have a latency");
    Ok(Latency { p50_us, p99_us, stolen: Ticks::now()?.stolen_since(&ticks) })
}

/// What others get meanwhile.
#[derive(Debug, Clone, Copy, Default)]
pub struct More {
    /// Events added at the beginning.
    pub at_once: u64,
    pub per_second: u64,
}

/// The same, with all endpoints of the stack's own lives healthy, and events of other lives in between.
pub fn latency_beside(stack: &mut Stack, seconds: u64, mut others: Option<(&mut Lives, More)>) -> Result<Latency> {
    let (before, ticks) = (stack.receiver.count()?, Ticks::now()?);
    stack.receiver.latency()?;
    let start_us = now_us() + 10_000;
    let mut added = 0;
    for n in 0..seconds * 1_000 {
        let intended_us = start_us + n * 1_000;
        rest(Duration::from_micros(intended_us.saturating_sub(now_us())));
        let event = stack.lives.next_as(format!("evt_t{intended_us}_{n}"));
        stack.producer.send(&event)?;
        if let Some((lives, more)) = &mut others {
            let due = more.at_once + (n + 1) * more.per_second / 1_000;
            for other in lives.by_ref().take((due - added) as usize) {
                stack.producer.send(&other)?;
            }
            added = due;
        }
    }
    stack.producer.flush()?;
    let healthy = seconds * 1_000;
    wait_for("the healthy ones", STUCK, || stack.receiver.count().is_ok_and(|count| count >= before + healthy))?;
    let [count, p50_us, p99_us, _] = stack.receiver.latency()?;
    ensure!(count == healthy, "{count} of {healthy} events have a latency");
    Ok(Latency { p50_us, p99_us, stolen: Ticks::now()?.stolen_since(&ticks) })
}

/// The number of the account whose event it is.
fn account(body: &[u8]) -> Result<u64> {
    let text = std::str::from_utf8(body)?;
    let (_, rest) = text.split_once("\"accountId\":\"acc_").context("an event has no account")?;
    Ok(rest.split('"').next().unwrap_or_default().parse()?)
}
