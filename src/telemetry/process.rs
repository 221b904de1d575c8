//! What the operating system says of this process, under the names that every exporter uses. Read from `/proc` when a page is
//! asked for; on a system without it, these metrics are not there.

use std::{fmt, fs, sync::LazyLock};

use nix::unistd::{SysconfVar, sysconf};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::{Registry, Unit},
};

#[derive(Debug)]
struct Process;

/// Registered apart from Herald's own metrics: these have no prefix.
pub(super) fn registry() -> Registry {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Process));
    registry
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(seen) = Seen::now() else { return Ok(()) };
        let cpu = encoder.encode_descriptor(
            "process_cpu",
            "Processor time used, in user and system mode.",
            Some(&Unit::Seconds),
            MetricType::Counter,
        )?;
        ConstCounter::new(seen.cpu_seconds).encode(cpu)?;
        let mut gauge = |name, unit: Option<&Unit>, help, value: f64| {
            let metric = encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?;
            ConstGauge::new(value).encode(metric)
        };
        gauge("process_resident_memory", Some(&Unit::Bytes), "Memory in use.", seen.resident_bytes)?;
        gauge("process_start_time", Some(&Unit::Seconds), "When the process started, since 1970.", seen.started_at)?;
        gauge("process_threads", None, "Threads of the process.", seen.threads)?;
        gauge("process_open_fds", None, "Open file descriptors.", seen.open_fds)?;
        gauge("process_max_fds", None, "The most file descriptors that may be open.", seen.max_fds)
    }
}

struct Seen {
    cpu_seconds: f64,
    resident_bytes: f64,
    started_at: f64,
    threads: f64,
    open_fds: f64,
    max_fds: f64,
}

/// Clock ticks a second, and a page's bytes.
static UNITS: LazyLock<(f64, f64)> = LazyLock::new(|| {
    let of = |name, usual| sysconf(name).ok().flatten().map_or(usual, |value| value as f64);
    (of(SysconfVar::CLK_TCK, 100.0), of(SysconfVar::PAGE_SIZE, 4096.0))
});

/// When the machine started, since 1970.
static BOOTED_AT: LazyLock<f64> = LazyLock::new(|| {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok()).unwrap_or(0.0)
});

impl Seen {
    fn now() -> Option<Self> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        // The name stands in brackets and may contain anything. The fields are counted as in proc(5), from the third on.
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        let (ticks, page) = *UNITS;
        let limits = fs::read_to_string("/proc/self/limits").ok()?;
        let files = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
        Some(Self {
            cpu_seconds: (field(14)? + field(15)?) / ticks,
            resident_bytes: field(24)? * page,
            started_at: *BOOTED_AT + field(22)? / ticks,
            threads: field(20)?,
            // The one of the folder that is read here is no other's.
            open_fds: (fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1)) as f64,
            max_fds: files.split_ascii_whitespace().next()?.parse().unwrap_or(f64::INFINITY),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::process;

    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn the_process_is_seen_as_it_is() {
        let seen = Seen::now().unwrap();
        let now = crate::clock::wall_ms() as f64 / 1_000.0;
        assert!(seen.started_at > now - 86_400.0 && seen.started_at <= now + 1.0, "{}", seen.started_at);
        assert!(seen.resident_bytes > 1e6 && seen.threads >= 2.0 && seen.max_fds >= seen.open_fds);
        let before = seen.open_fds;
        let files: Vec<_> = (0..200).map(|_| fs::File::open("/proc/self/stat").unwrap()).collect();
        assert!(Seen::now().unwrap().open_fds >= before.min(100.0) + 100.0, "of {}", process::id());
        drop(files);
    }
}
