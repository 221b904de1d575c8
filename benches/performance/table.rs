//! What was measured, as the table of `docs/performance.md`: medians, ratios, and the machine and versions that they
//! were measured on.

use std::{fs, process::Command};

use anyhow::{Context, Result};
use herald::surface::words::{bytes, number, rate, time, time_us};

use crate::processes::Scheme;

/// The senders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    Loop,
    /// Two at a time: with Redis and the receiver they leave no core idle, and neither does Herald.
    Loops,
    /// Posts with the client that reqwest is built on.
    LoopBelow,
    Herald,
    /// To a single endpoint, which should get nearly what a hundred get.
    HeraldToOne,
    /// The same events in so many parts of the stream.
    HeraldInParts(u32),
    /// The build that `--beside` names, or the same with its secrets sealed.
    Beside,
}

impl Who {
    const ALL: [Self; 6] = [Self::Loop, Self::Loops, Self::LoopBelow, Self::Herald, Self::HeraldToOne, Self::Beside];

    pub fn name(self) -> String {
        match self {
            Self::Loop => "bare loop".to_owned(),
            Self::Loops => "two bare loops at a time".to_owned(),
            Self::LoopBelow => "bare loop without reqwest".to_owned(),
            Self::Herald => "Herald".to_owned(),
            Self::HeraldToOne => "Herald to one endpoint alone".to_owned(),
            Self::HeraldInParts(parts) => format!("Herald with {parts} partitions"),
            Self::Beside => "build beside it".to_owned(),
        }
    }
}

/// One drain, per delivery.
#[derive(Debug, Clone)]
pub struct Drain {
    /// Deliveries a second.
    pub rate: f64,
    /// Processor time of the sender.
    pub cpu_us: f64,
    pub redis_us: f64,
    pub receiver_us: f64,
    pub peak_bytes: u64,
}

pub struct Latency {
    pub p50_us: u64,
    pub p99_us: u64,
    pub max_us: u64,
}

pub struct Results {
    deliveries: u64,
    endpoints: u64,
    lines: usize,
    /// The receiver takes the processor from others during a drain.
    is_eager: bool,
    drains: Vec<(Who, Scheme, Drain)>,
    latencies: Vec<Latency>,
}

impl Results {
    pub fn new(deliveries: u64, endpoints: u64, lines: usize, is_eager: bool) -> Self {
        Self { deliveries, endpoints, lines, is_eager, drains: Vec::new(), latencies: Vec::new() }
    }

    pub fn add(&mut self, who: Who, scheme: Scheme, drain: Drain) {
        self.drains.push((who, scheme, drain));
    }

    pub fn add_latency(&mut self, latency: Latency) {
        self.latencies.push(latency);
    }

    pub fn table(&self) -> Result<String> {
        let mut lines = vec![
            "| | rate | CPU of the sender | CPU of Redis | CPU of the receiver | peak memory |".to_owned(),
            "| --- | ---: | ---: | ---: | ---: | ---: |".to_owned(),
        ];
        for scheme in [Scheme::Http, Scheme::Https] {
            let all = Who::ALL.into_iter().chain(self.in_parts());
            lines.extend(all.filter_map(|who| self.row(who, scheme)));
        }
        lines.push(String::new());
        lines.extend(self.sentences());
        lines.push(String::new());
        lines.push(self.origin()?);
        Ok(lines.join("\n"))
    }

    /// Those with more than one partition, as they were asked for.
    fn in_parts(&self) -> Vec<Who> {
        let mut all = Vec::new();
        for (who, ..) in &self.drains {
            if matches!(who, Who::HeraldInParts(_)) && !all.contains(who) {
                all.push(*who);
            }
        }
        all
    }

    fn sentences(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for who in self.in_parts() {
            if let Some((ratio, least, most)) = self.ratio([who, Who::Herald], Scheme::Http, |drain| drain.cpu_us) {
                let redis = self.ratio([who, Who::Herald], Scheme::Http, |drain| drain.redis_us);
                lines.push(format!(
                    "- {}'s CPU per delivery ÷ with one: **{ratio:.2}** (by round {least:.2} to {most:.2}), Redis' {:.2}",
                    who.name(),
                    redis.map_or(0.0, |(ratio, ..)| ratio)
                ));
            }
        }
        let pairs = [
            (Scheme::Http, Who::Loop),
            (Scheme::Https, Who::Loop),
            (Scheme::Http, Who::Loops),
            (Scheme::Http, Who::Beside),
            (Scheme::Https, Who::Beside),
        ];
        for (scheme, than) in pairs {
            if let Some((ratio, least, most)) = self.ratio([Who::Herald, than], scheme, |drain| drain.cpu_us) {
                lines.push(format!(
                    "- Herald's CPU per delivery ÷ that of the {}, {}: **{ratio:.2}** (by round {least:.2} to {most:.2})",
                    than.name(),
                    name(scheme)
                ));
            }
        }
        let cpu = |who, scheme| self.median(who, scheme, |drain| drain.cpu_us);
        if let (Some(below), Some(bare)) = (cpu(Who::LoopBelow, Scheme::Http), cpu(Who::Loop, Scheme::Http)) {
            lines.push(format!("- Of the bare loop's {}, reqwest itself takes **{}**", time(bare), time(bare - below)));
        }
        if let (Some(secure), Some(plain)) = (cpu(Who::Herald, Scheme::Https), cpu(Who::Herald, Scheme::Http)) {
            lines.push(format!("- Herald's CPU per delivery, HTTPS ÷ HTTP: **{:.2}**", secure / plain));
        }
        if let Some((ratio, least, most)) =
            self.ratio([Who::HeraldToOne, Who::Herald], Scheme::Http, |drain| drain.rate)
        {
            lines.push(format!(
                "- Herald's rate to one endpoint alone ÷ to {}: **{ratio:.2}** (by round {least:.2} to {most:.2})",
                self.endpoints
            ));
        }
        let middle = |value: fn(&Latency) -> u64| middle(self.latencies.iter().map(|l| value(l) as f64).collect());
        if let (Some(p50), Some(p99)) = (middle(|l| l.p50_us), middle(|l| l.p99_us)) {
            let most = self.latencies.iter().map(|latency| latency.max_us).max().unwrap_or(0);
            lines.push(format!(
                "- From XADD to the receiver at 1 000 events a second: p50 **{}**, p99 **{}**, at most {}",
                time(p50),
                time(p99),
                time_us(most)
            ));
        }
        lines
    }

    /// The median, the least and the greatest of the rounds' own ratios: the two sides of a round are seconds apart,
    /// and a shared machine's speed changes by the minute.
    fn ratio(&self, [who, than]: [Who; 2], scheme: Scheme, value: fn(&Drain) -> f64) -> Option<(f64, f64, f64)> {
        let both = self.of(who, scheme).zip(self.of(than, scheme));
        let mut ratios: Vec<f64> = both.map(|(one, other)| value(one) / value(other)).collect();
        ratios.sort_by(f64::total_cmp);
        Some((*ratios.get(ratios.len() / 2)?, *ratios.first()?, *ratios.last()?))
    }

    fn of(&self, who: Who, scheme: Scheme) -> impl Iterator<Item = &Drain> {
        self.drains.iter().filter(move |(of, over, _)| (*of, *over) == (who, scheme)).map(|(_, _, drain)| drain)
    }

    fn median(&self, who: Who, scheme: Scheme, value: fn(&Drain) -> f64) -> Option<f64> {
        middle(self.of(who, scheme).map(value).collect())
    }

    fn row(&self, who: Who, scheme: Scheme) -> Option<String> {
        let of = |value: fn(&Drain) -> f64| self.median(who, scheme, value);
        let us = |value: f64| if value > 0.0 { time(value) } else { "–".to_owned() };
        Some(format!(
            "| {}, {} | {} | {} | {} | {} | {} |",
            who.name(),
            name(scheme),
            rate(of(|drain| drain.rate)?),
            us(of(|drain| drain.cpu_us)?),
            us(of(|drain| drain.redis_us)?),
            us(of(|drain| drain.receiver_us)?),
            bytes(of(|drain| drain.peak_bytes as f64)? as u64),
        ))
    }

    fn origin(&self) -> Result<String> {
        let rounds = self.of(Who::Herald, Scheme::Http).count();
        let cores = std::thread::available_parallelism()?;
        let first = |text: String| text.lines().next().unwrap_or_default().to_owned();
        let redis = first(output("redis-server", "--version")?);
        let redis = redis.split(' ').find_map(|word| word.strip_prefix("v=")).unwrap_or("unknown").to_owned();
        let rustc = first(output("rustc", "--version")?);
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
        let mut origin = format!(
            "Medians of {rounds} rounds of {} deliveries of 600 bytes to {} endpoints, attempt log on, Redis with AOF \
             everysec; loop, Herald, Redis and receiver share {cores} cores ({}). Herald {}, Redis {redis}, {rustc}, \
             Linux {}.",
            number(self.deliveries),
            number(self.endpoints),
            processor(),
            env!("CARGO_PKG_VERSION"),
            kernel.trim(),
        );
        origin.push_str(match self.is_eager {
            true => " During a drain the receiver takes the processor from others.",
            false => " During a drain the receiver takes the processor from nobody (SCHED_BATCH).",
        });
        if self.lines > 0 {
            origin.push_str(&format!(" The loop has {} requests in flight, which cost it least.", self.lines));
        }
        Ok(origin)
    }
}

fn middle(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

fn name(scheme: Scheme) -> &'static str {
    match scheme {
        Scheme::Http => "HTTP",
        Scheme::Https => "HTTPS",
    }
}

fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    model.map_or("unknown processor".to_owned(), |(_, model)| model.to_owned())
}

fn output(program: &str, arg: &str) -> Result<String> {
    let output = Command::new(program).arg(arg).output().with_context(|| format!("cannot run {program}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
