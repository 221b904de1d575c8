//! Results as runs make them, for tests: always the same, with the noise and the flaws of real ones.

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::loadtest::{
    faults::Fault,
    latency::{self, histogram},
    result::{
        Deliveries, Environment, FaultMark, Generator, Latency, NearFault, ProcessUse, ProfileResult, Promise,
        RESULT_SCHEMA, Requests, RunResult, Second, ThresholdResult,
    },
    scenario::Scenario,
};

/// A plain generator of numbers, because the fixture must never change with a crate.
struct Noise(u64);

impl Noise {
    /// Uniform between 0 and 1.
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Around the median, with a long tail.
    fn latency_us(&mut self, median: f64, spread: f64) -> f64 {
        let bell = (0..12).map(|_| self.next()).sum::<f64>() - 6.0;
        median * (spread * bell).exp()
    }
}

pub struct Shape {
    pub seconds: u32,
    pub rate: f64,
    pub faults: Vec<(Fault, f64, f64)>,
    pub seed: u64,
}

/// A minute at 1 000/s with a worker that is killed twice, a Redis that restarts, and five kinds of receivers. It
/// breaks its order once, is late three times, and misses one threshold.
pub fn outage() -> RunResult {
    let faults = vec![
        (Fault::KillWorker, 12.0, 13.1),
        (Fault::RestartRedis, 24.0, 24.5),
        (Fault::KillWorker, 25.2, 26.1),
        (Fault::PartitionRedis, 40.0, 46.0),
    ];
    let mut result = run(&Shape { seconds: 60, rate: 1_000.0, faults, seed: 42 });
    result.promises[1].broken = 1;
    result.promises[1].examples =
        vec!["evt_hnnHxIKR_Uy6bhZCusCltw to ep_x7 came after evt_vpwd4ooAPEqyNAQe4z89WQ of the same intent".to_owned()];
    result.generator.late = 3;
    result.thresholds = vec![
        ThresholdResult { threshold: "healthy.p99<8ms".into(), value: Some(6_420.0), is_kept: true },
        ThresholdResult { threshold: "lost==0".into(), value: Some(0.0), is_kept: true },
        ThresholdResult { threshold: "rate>20000".into(), value: Some(981.2), is_kept: false },
        ThresholdResult { threshold: "throttling.p50<1s".into(), value: None, is_kept: false },
    ];
    result
}

/// Three seconds, nothing wrong.
pub fn short() -> RunResult {
    run(&Shape { seconds: 3, rate: 200.0, faults: vec![], seed: 7 })
}

/// Ten minutes at 5 000/s with a fault every minute.
pub fn long() -> RunResult {
    let faults = (1..10)
        .map(|minute| (Fault::ALL[minute % Fault::ALL.len()], minute as f64 * 60.0, minute as f64 * 60.0 + 4.0))
        .collect();
    run(&Shape { seconds: 600, rate: 5_000.0, faults, seed: u64::MAX })
}

/// One second, one event.
pub fn single() -> RunResult {
    let mut result = run(&Shape { seconds: 1, rate: 1.0, faults: vec![], seed: 1 });
    let one = Some(of(&[4_200.0]));
    result.latency = one.clone();
    result.retry_lateness = None;
    result.generator.lateness = one.clone();
    result.profiles.truncate(1);
    result.profiles[0].latency = one;
    result
}

/// A run that could not begin: nothing was sent.
pub fn nothing() -> RunResult {
    let mut result = run(&Shape { seconds: 0, rate: 0.0, faults: vec![], seed: 0 });
    (result.latency, result.retry_lateness, result.generator.lateness) = (None, None, None);
    result.profiles.clear();
    result.processes.clear();
    result.environment = Environment::default();
    result
}

/// A result in which everything that a user can write is an attack on a page and on a terminal.
pub fn hostile() -> RunResult {
    const EVIL: &str = "</title><script>alert(1)</script>\"'&\x1b[2J\u{202e}";
    let mut result = outage();
    result.scenario.name = EVIL.to_owned();
    result.scenario.description = EVIL.to_owned();
    result.scenario.herald.settings.insert(EVIL.to_owned(), EVIL.to_owned());
    result.herald_version = EVIL.to_owned();
    result.started_at = EVIL.to_owned();
    result.environment.cpu = EVIL.to_owned();
    result.environment.redis_version = EVIL.to_owned();
    result.profiles[0].name = EVIL.to_owned();
    result.requests[0].name = EVIL.to_owned();
    result.processes[0].who = EVIL.to_owned();
    result.promises[1].name = EVIL.to_owned();
    result.promises[1].text = EVIL.to_owned();
    result.promises[1].examples = vec![EVIL.to_owned()];
    result.thresholds[0].threshold = EVIL.to_owned();
    result
}

fn scenario(shape: &Shape) -> Scenario {
    let text = format!(
        r#"
        name = "outage-and-recovery"
        description = "Workers die and Redis goes away under load; everything is delivered all the same, in order."
        load = {{ kind = "open", arrivals = "poisson", stages = [{{ for = "{}s", rate = {:?} }}] }}
        traffic = {{ accounts = 50, hot_share = 0.1 }}
        endpoints = {{ fan_out = 2, profiles = [
            {{ profile = "healthy", share = 6, median = "1ms", p99 = "5ms" }},
            {{ profile = "flaky", p = 0.1 }},
            {{ profile = "slow", after = "80ms" }},
            {{ profile = "hanging" }},
            {{ profile = "throttling", retry_after = "1s" }},
        ] }}
        herald = {{ workers = 2, settings = {{ "lease.ttl" = "2s" }} }}
        faults = ["kill-worker@12s", "restart-redis@24s"]
        thresholds = ["healthy.p99<8ms", "lost==0"]
        "#,
        shape.seconds.max(1),
        shape.rate
    );
    toml::from_str(&text).unwrap()
}

pub fn run(shape: &Shape) -> RunResult {
    let mut noise = Noise(shape.seed);
    let (series, sums) = series(shape, &mut noise);
    let samples = (shape.rate * f64::from(shape.seconds)).min(40_000.0) as usize;
    let profiles = profiles(samples, &mut noise);
    let all = profiles.iter().filter_map(|profile| profile.latency.as_ref());
    let retry: Vec<_> = (0..samples / 10).map(|_| noise.latency_us(3_000.0, 0.5)).collect();
    let lateness: Vec<_> = (0..samples).map(|_| noise.latency_us(60.0, 0.7)).collect();
    RunResult {
        schema: RESULT_SCHEMA,
        herald_version: "0.1.0".to_owned(),
        scenario: scenario(shape),
        seed: shape.seed,
        words: Vec::new(),
        started_at: "2026-03-01T12:00:00Z".to_owned(),
        seconds: f64::from(shape.seconds) + 1.2,
        environment: environment(),
        generator: Generator {
            intended: sums.0,
            sent: sums.0,
            sent_again: 3,
            late: 0,
            lateness: (!lateness.is_empty()).then(|| of(&lateness)),
        },
        deliveries: deliveries(sums.1, f64::from(shape.seconds)),
        latency: latency::merge(all).unwrap(),
        answers: (!lateness.is_empty()).then(|| of(&lateness)),
        retry_lateness: (!retry.is_empty()).then(|| of(&retry)),
        profiles,
        requests: requests(sums.1),
        goodput: Vec::new(),
        near_faults: near_faults(shape, &retry),
        series,
        faults: shape.faults.iter().map(|&(fault, at, until)| FaultMark { fault, at, until }).collect(),
        missed: vec![],
        promises: promises(sums.1),
        thresholds: vec![],
        processes: processes(sums.1),
    }
}

fn near_faults(shape: &Shape, waits: &[f64]) -> Vec<NearFault> {
    let first = shape.faults.first().filter(|_| !waits.is_empty());
    first.map(|&(fault, ..)| NearFault { fault, times: 1, latency: of(waits) }).into_iter().collect()
}

fn requests(acknowledged: u64) -> Vec<Requests> {
    let of = |name: &str, asked: u64| Requests {
        name: name.to_owned(),
        asked,
        done: asked / 2,
        refused: asked / 4,
        unavailable: asked - asked / 2 - asked / 4,
        unknown: 0,
        latency: None,
    };
    let all = [of("create", acknowledged / 4), of("capture", acknowledged / 2)];
    all.into_iter().filter(|requests| requests.asked > 0).collect()
}

/// Also makes the sums of what was intended and acknowledged.
fn series(shape: &Shape, noise: &mut Noise) -> (Vec<Second>, (u64, u64)) {
    let (mut owed, mut behind, mut sums) = (0.0, 0.0, (0, 0));
    let seconds = (0..shape.seconds).map(|at| {
        let t = f64::from(at);
        let is_down = shape.faults.iter().any(|&(_, from, until)| t + 1.0 > from && t < until);
        let intended = (shape.rate * (1.0 + 0.04 * (noise.next() - 0.5))).round();
        let ready = owed + intended;
        let acknowledged = if is_down { intended * 0.1 } else { ready.min(shape.rate * 1.6) }.round();
        owed = ready - acknowledged;
        behind = if is_down { behind + 1.0 } else { (behind - 0.6_f64).max(0.0) };
        let stall = behind * 700_000.0;
        let p50 = noise.latency_us(1_900.0, 0.08) + stall * 0.4;
        let p99 = noise.latency_us(6_500.0, 0.15) + stall;
        sums = (sums.0 + intended as u64, sums.1 + acknowledged as u64);
        let heard = acknowledged > 0.0;
        Second {
            at,
            intended: intended as u64,
            sent: intended as u64,
            acknowledged: acknowledged as u64,
            failed: (intended * if is_down { 0.3 } else { 0.02 } * noise.next()) as u64,
            p50_us: heard.then_some(p50 as u64),
            p99_us: heard.then_some(p99 as u64),
            max_us: heard.then_some(noise.latency_us(p99 * 2.2, 0.25).max(p99) as u64),
        }
    });
    let seconds = seconds.collect();
    (seconds, sums)
}

fn profiles(samples: usize, noise: &mut Noise) -> Vec<ProfileResult> {
    let mut profile = |name: &str, share: f64, median: f64, spread: f64| {
        let many = (samples as f64 * share) as usize;
        let values: Vec<_> = (0..many)
            .map(|_| match noise.next() {
                stalled if stalled < 0.002 => noise.latency_us(900_000.0, 0.6),
                _ => noise.latency_us(median, spread),
            })
            .collect();
        ProfileResult {
            name: name.to_owned(),
            endpoints: (share * 100.0).round() as u64,
            deliveries: deliveries(many as u64, 60.0),
            latency: (!values.is_empty() && name != "hanging").then(|| of(&values)),
        }
    };
    vec![
        profile("healthy", 0.6, 2_000.0, 0.35),
        profile("flaky", 0.1, 2_600.0, 0.5),
        profile("slow", 0.1, 82_000.0, 0.1),
        profile("hanging", 0.1, 1.0, 0.1),
        profile("throttling", 0.1, 2_400.0, 0.4),
    ]
}

fn deliveries(acknowledged: u64, seconds: f64) -> Deliveries {
    let dead = acknowledged / 1_000;
    Deliveries {
        owed: acknowledged + dead,
        acknowledged,
        dead,
        unfinished: 0,
        attempts: acknowledged + acknowledged / 9,
        duplicates: acknowledged / 3_000,
        rate: if seconds > 0.0 { acknowledged as f64 / seconds } else { 0.0 },
    }
}

fn of(values_us: &[f64]) -> Latency {
    let mut all: Histogram<u64> = histogram();
    values_us.iter().for_each(|us| latency::record(&mut all, Duration::from_micros(*us as u64)));
    Latency::of(&all).unwrap()
}

fn environment() -> Environment {
    Environment {
        cpu: "AMD EPYC 7B13".to_owned(),
        cores: 2,
        memory_bytes: 8_000_000_000,
        os: "Debian GNU/Linux 12".to_owned(),
        kernel: "6.1.0-28-amd64".to_owned(),
        redis_version: "7.0.15".to_owned(),
        redis_appendfsync: "everysec".to_owned(),
        build: "release".to_owned(),
        is_own: true,
    }
}

fn promises(tried: u64) -> Vec<Promise> {
    let promise = |name: &str, text: &str, tried: u64| Promise {
        name: name.to_owned(),
        text: text.to_owned(),
        tried,
        broken: 0,
        examples: vec![],
    };
    vec![
        promise("lost", "Every event that Redis confirmed was delivered or is a dead letter.", tried),
        promise("out_of_order", "The events of an intent arrive one at a time, in the order of the stream.", tried),
        promise("wrong_signature", "Both signatures of every request are right.", tried * 2),
        promise("wrong_body", "Every body is the producer's, byte for byte.", tried),
        promise("off_schedule", "No retry came before its time.", tried / 9),
        promise("not_expected", "Dead letters are exactly those that were to be expected.", 0),
    ]
}

fn processes(deliveries: u64) -> Vec<ProcessUse> {
    let process = |who: &str, us: f64, rss: u64| ProcessUse {
        who: who.to_owned(),
        cpu_seconds: us * deliveries as f64 / 1e6,
        cpu_us_per_delivery: (deliveries > 0).then_some(us),
        peak_rss_bytes: rss,
    };
    vec![process("herald", 41.3, 96_400_000), process("redis", 9.8, 31_200_000), process("harness", 38.0, 182_000_000)]
}
