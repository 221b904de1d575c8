//! `herald plan`: what an installation needs for a rate, by arithmetic on costs that were measured or estimated. Asks nobody.

use std::time::Duration;

use clap::Args;
use serde::Serialize;

use crate::{
    config::parse_duration,
    facts::capacity::{Costs, Demand, Plan, WayIn, plan, shipped},
    surface::{Context, Format, VerbError, words},
};

#[derive(Debug, Args)]
pub struct PlanArgs {
    /// Events: a number, `/` and `s`, `m` or `h`, such as 10000000/m
    #[arg(long, value_name = "RATE", value_parser = rate)]
    rate: f64,
    /// Endpoints that are registered
    #[arg(long, value_name = "COUNT", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    endpoints: u64,
    /// Endpoints that an event is owed to, on average
    #[arg(long, value_name = "NUMBER", default_value_t = 1.0, value_parser = factor)]
    fan_out: f64,
    /// The part of deliveries whose receivers take nothing for as long as the retention, 0 to 1
    #[arg(long, value_name = "PART", default_value_t = 0.0, value_parser = part)]
    failure_rate: f64,
    /// How long these are tried and kept
    #[arg(long, value_name = "DURATION", default_value = "72h", value_parser = parse_duration)]
    retention: Duration,
    /// How long nobody may read the stream without a loss
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = parse_duration)]
    outage: Duration,
    /// Receivers are https, on connections that are kept
    #[arg(long)]
    https: bool,
    /// How long receivers take to answer
    #[arg(long, value_name = "DURATION", default_value = "100ms", value_parser = parse_duration)]
    latency: Duration,
    /// An event's size
    #[arg(long, value_name = "BYTES", default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    body: u32,
    /// The part of all events that the largest account has, 0 to 1
    #[arg(long, value_name = "PART", default_value_t = 0.01, value_parser = part)]
    largest_account: f64,
}

impl PlanArgs {
    fn demand(&self) -> Demand {
        Demand {
            events_per_s: self.rate,
            endpoints: self.endpoints,
            fan_out: self.fan_out,
            failure_rate: self.failure_rate,
            retention_s: self.retention.as_secs_f64(),
            outage_s: self.outage.as_secs_f64(),
            https: self.https,
            latency_ms: self.latency.as_secs_f64() * 1e3,
            body_bytes: f64::from(self.body),
            largest_account: self.largest_account,
        }
    }
}

/// Events a second.
fn rate(text: &str) -> Result<f64, String> {
    let wrong = || "write it as a number of events, a stroke and s, m or h: 500/s, 10000000/m".to_owned();
    let (number, unit) = text.split_once('/').ok_or_else(wrong)?;
    let number: f64 = number.replace('_', "").parse().map_err(|_| wrong())?;
    let per = match unit {
        "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3_600.0,
        _ => return Err(wrong()),
    };
    let rate = number / per;
    (rate > 0.0 && rate <= 1e9).then_some(rate).ok_or_else(|| "must be more than 0 and at most 1000000000/s".to_owned())
}

fn factor(text: &str) -> Result<f64, String> {
    let factor = text.parse().ok().filter(|factor| (0.01..=10_000.0).contains(factor));
    factor.ok_or_else(|| "must be a number between 0.01 and 10000".to_owned())
}

fn part(text: &str) -> Result<f64, String> {
    let part = text.parse().ok().filter(|part| (0.0..=1.0).contains(part));
    part.ok_or_else(|| "must be a number between 0 and 1".to_owned())
}

/// With what it rests on.
#[derive(Serialize)]
struct Answer<'a> {
    demand: &'a Demand,
    #[serde(flatten)]
    plan: &'a Plan,
    breaks_first: &'a str,
    costs: &'a Costs,
}

pub fn run(context: &Context, args: &PlanArgs) -> anyhow::Result<()> {
    let demand = args.demand();
    let Some(plan) = plan(&demand, shipped()) else {
        return Err(VerbError::Refused("this Herald was built without its costs".to_owned()).into());
    };
    let breaks_first = plan.limits.first().map_or("", |limit| limit.what);
    if context.output.format() != Format::Table {
        return context.output.one(&Answer { demand: &demand, plan: &plan, breaks_first, costs: shipped() }, &[]);
    }
    let number = |value: f64| words::number(value.round() as u64);
    let gb = |value: f64| format!("{} GB", words::decimal(value));
    let mb = |value: f64| format!("{} MB/s", words::decimal(value));
    let fields = [
        ("deliveries", format!("{} a second", number(plan.deliveries_per_s))),
        (
            "workers",
            format!(
                "{} with {} each, one of them spare; {} busy in all",
                plan.workers,
                words::count(plan.cores_per_worker, "core", "cores"),
                words::decimal(plan.cores)
            ),
        ),
        (
            "Redis",
            format!(
                "{} and {}; a master uses {} of a core",
                words::count(plan.masters, "master", "masters"),
                words::count(plan.replicas, "replica", "replicas"),
                words::decimal(plan.master_cores)
            ),
        ),
        ("partitions", words::number(plan.partitions)),
        (
            "way in",
            match plan.way_in {
                WayIn::Front => "the one stream".to_owned(),
                WayIn::Direct => "straight into the parts: the ingest API, or producers that compute them".to_owned(),
            },
        ),
        (
            "memory of Redis",
            format!(
                "{}: {} of an outage, {} undelivered; give each master {}",
                gb(plan.memory_gb),
                gb(plan.outage_gb),
                gb(plan.undelivered_gb),
                gb(plan.memory_gb_per_master)
            ),
        ),
        ("endpoints", format!("{} MB in each worker", number(plan.registry_mb_per_worker))),
        ("in flight", format!("{} requests at a time", number(plan.in_flight))),
        (
            "network",
            format!(
                "{} of events in, and as much to the workers; {} to replicas; {} to receivers",
                mb(plan.network.events),
                mb(plan.network.replication),
                mb(plan.network.receivers)
            ),
        ),
    ];
    context.output.one(&Answer { demand: &demand, plan: &plan, breaks_first, costs: shipped() }, &fields)?;
    context.output.text("\nWhat gives way first:")?;
    let mut list = context.output.list(&["USED", "WHAT", "THEN"]);
    for limit in &plan.limits {
        list.push(limit, || {
            vec![format!("{} %", number(limit.used * 100.0)), limit.what.to_owned(), limit.then.to_owned()]
        })?;
    }
    list.finish()?;
    context.output.text(
        "\nBy costs that were measured or estimated: -o json shows the source of each, docs/scaling.md how to read it.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_has_a_unit() {
        assert_eq!([rate("500/s"), rate("60_000/m"), rate("7200/h")], [Ok(500.0), Ok(1_000.0), Ok(2.0)]);
        for wrong in ["500", "/s", "5/d", "-1/s", "nan/s", "0/s", "inf/s", "1e30/s"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }
}
