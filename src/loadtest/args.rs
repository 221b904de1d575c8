//! The command line of `herald loadtest`, and how it changes a scenario. Pure; runs nothing.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};

use super::{
    faults::FaultSpec,
    scenario::{Arrivals, Failure, Load, Often, Profile, ProfileShare, Scenario, Stage},
    scenarios,
};
use crate::{config::parse_duration, facts::partition::MAX_PARTS, surface::VerbError};

const SCENARIO: &str = "Scenario";
const RESULT: &str = "Result";
const TARGET: &str = "Target";

/// Put load on Herald, break what it is told to break, and judge every promise
#[derive(Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Exit codes: 0 everything was kept, 1 the load test itself failed, 2 usage, 4 refused, 99 a promise or a \
                  threshold was broken.\nFaults: kill-worker, pause-worker, restart-redis, partition-redis, fill-redis, \
                  destroy-group, change-urls, block-logs, lose-key, join-worker, leave-worker, failover, \
                  partition-node, migrate-slot, kill-service, pause-service, written\n\
                  NAME@AT[:FOR][/EVERY][*TIMES], for example kill-worker@10s, pause-worker@5s:8s, \
                  kill-worker@5s/4s*3 or restart-redis@random*2. See docs/loadtest.md."
)]
pub struct LoadtestArgs {
    #[command(subcommand)]
    pub verb: Option<LoadtestVerb>,
    #[command(flatten)]
    pub run: RunArgs,
}

#[derive(Subcommand)]
pub enum LoadtestVerb {
    /// Run every scenario with its faults and random ones, and sum up what was tried and what broke
    Prove(ProveArgs),
}

#[derive(Args)]
pub struct ProveArgs {
    /// How long all of it takes, roughly
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_440))]
    pub minutes: u32,
    /// About two minutes at modest rates, for machines that have other work
    #[arg(long, conflicts_with = "minutes")]
    pub short: bool,
    /// Repeats everything random
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Where the results of runs that broke a promise are kept
    #[arg(long, value_name = "FOLDER", default_value = "target/prove")]
    pub keep: PathBuf,
}

#[derive(Args)]
pub struct RunArgs {
    /// One that comes with Herald (see --list), or a TOML file [default: steady]
    #[arg(value_name = "SCENARIO")]
    pub scenario: Option<String>,
    /// Events a second; with several stages the first gets it and the others keep their proportion to it
    #[arg(long, value_name = "RATE", value_parser = rate, help_heading = SCENARIO)]
    pub rate: Option<f64>,
    /// How long the load takes; the scenario's own times are stretched to it
    #[arg(long = "for", value_name = "DURATION", value_parser = load_length, help_heading = SCENARIO)]
    pub length: Option<Duration>,
    /// One stage that ends with this rate
    #[arg(long, value_name = "RATE", value_parser = rate, help_heading = SCENARIO)]
    pub ramp_to: Option<f64>,
    /// Another rate for a time, for example 5000@10s:3s; can be repeated
    #[arg(long, value_name = "RATE@AT:FOR", value_parser = spike, help_heading = SCENARIO)]
    pub spike: Vec<Spike>,
    /// Events come independently of each other, not evenly
    #[arg(long, help_heading = SCENARIO)]
    pub poisson: bool,
    /// Put N events into the stream before the workers start, then measure the drain
    #[arg(long, value_name = "N", conflicts_with_all = ["rate", "length", "ramp_to", "spike", "poisson"],
          value_parser = clap::value_parser!(u64).range(1..), help_heading = SCENARIO)]
    pub drain: Option<u64>,
    /// Accounts that events are for
    #[arg(long, value_name = "N", help_heading = SCENARIO)]
    pub accounts: Option<u32>,
    /// Endpoints of each account
    #[arg(long, value_name = "N", help_heading = SCENARIO)]
    pub fan_out: Option<u32>,
    /// Intents of each account that are alive at once
    #[arg(long, value_name = "N", help_heading = SCENARIO)]
    pub intents: Option<u32>,
    /// Size of an event
    #[arg(long, value_name = "BYTES", help_heading = SCENARIO)]
    pub body_bytes: Option<u32>,
    /// Share of all events that are for the first account
    #[arg(long, value_name = "SHARE", help_heading = SCENARIO)]
    pub hot_share: Option<f64>,
    /// How receivers behave: hanging, slow, flaky and so on; a share below 1 leaves the rest healthy; can be repeated
    #[arg(long, value_name = "NAME[=SHARE]", value_parser = profile, help_heading = SCENARIO)]
    pub profile: Vec<ProfileShare>,
    /// Share of the endpoints that use https
    #[arg(long, value_name = "SHARE", help_heading = SCENARIO)]
    pub tls_share: Option<f64>,
    /// `herald serve` processes; --set KEY=VALUE gives them settings
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16), help_heading = SCENARIO)]
    pub workers: Option<u32>,
    /// Split the stream into this many partitions, which the workers share
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_PARTS)), help_heading = SCENARIO)]
    pub partitions: Option<u32>,
    /// A Redis Cluster of three masters and three replicas instead of one Redis
    #[arg(long, help_heading = SCENARIO)]
    pub cluster: bool,
    /// Something to break, in addition to what the scenario breaks; can be repeated
    #[arg(long, value_name = "FAULT", help_heading = SCENARIO)]
    pub fault: Vec<FaultSpec>,
    /// Leave out the scenario's own faults
    #[arg(long, help_heading = SCENARIO)]
    pub without_faults: bool,
    /// Repeats everything random of a run
    #[arg(long, value_name = "N", help_heading = SCENARIO)]
    pub seed: Option<u64>,
    /// Load a Herald that already runs, by its Redis; nothing of it is broken or measured
    #[arg(long, value_name = "URL", help_heading = TARGET)]
    pub redis: Option<String>,
    /// A host other than this machine that you own and may load; can be repeated
    #[arg(long, value_name = "HOST", help_heading = TARGET)]
    pub i_own_this_target: Vec<String>,
    /// Something to keep: p99<5ms, lost==0, rate>20000; can be repeated
    #[arg(long, value_name = "THRESHOLD", help_heading = RESULT)]
    pub threshold: Vec<String>,
    /// Leave out the scenario's own thresholds
    #[arg(long, help_heading = RESULT)]
    pub without_thresholds: bool,
    /// Write the result to a file
    #[arg(long, value_name = "FILE", help_heading = RESULT)]
    pub json: Option<PathBuf>,
    /// Write a page with plots to a file
    #[arg(long, value_name = "FILE", help_heading = RESULT)]
    pub html: Option<PathBuf>,
    /// Plain lines, also on a terminal
    #[arg(long, help_heading = RESULT)]
    pub plain: bool,
    /// List the scenarios that come with Herald
    #[arg(long, exclusive = true, help_heading = RESULT)]
    pub list: bool,
    /// Print the JSON Schema of a result
    #[arg(long, exclusive = true, help_heading = RESULT)]
    pub schema: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spike {
    pub rate: f64,
    pub at: Duration,
    pub length: Duration,
}

impl RunArgs {
    /// The scenario with everything that the command line changes. `settings` are the workers'.
    pub fn scenario(&self, settings: &[(String, String)]) -> Result<Scenario, VerbError> {
        let mut scenario = scenarios::find(self.scenario.as_deref().unwrap_or("steady"))
            .map_err(|error| VerbError::Usage(error.to_string()))?;
        if self.without_faults {
            scenario.faults.clear();
        }
        if self.without_thresholds {
            scenario.thresholds.clear();
        }
        self.change_load(&mut scenario)?;
        self.change_traffic(&mut scenario);
        // After the stretching, because times on the command line are meant as they are written.
        scenario.faults.extend(self.fault.iter().cloned());
        scenario.thresholds.extend(self.threshold.iter().cloned());
        scenario.herald.settings.extend(settings.iter().cloned());
        Ok(scenario)
    }

    fn change_load(&self, scenario: &mut Scenario) -> Result<(), VerbError> {
        if let Some(events) = self.drain {
            scenario.load = Load::Drain { events };
            return Ok(());
        }
        let wants_open = self.rate.is_some() || self.ramp_to.is_some() || !self.spike.is_empty() || self.poisson;
        if let (Load::Drain { .. }, true) = (&scenario.load, wants_open || self.length.is_some()) {
            return Err(VerbError::Usage(format!(
                "the scenario {} drains a backlog and has no rate and no length: use --drain N, or another scenario",
                scenario.name
            )));
        }
        if let Some(length) = self.length {
            let own = scenario.length();
            scenario.stretch(length.as_secs_f64() / own.as_secs_f64().max(1e-3));
        }
        let Load::Open { stages, arrivals } = &mut scenario.load else { return Ok(()) };
        if self.poisson {
            *arrivals = Arrivals::Poisson;
        }
        if let Some(rate) = self.rate {
            scale(stages, rate);
        }
        if let Some(to) = self.ramp_to {
            let length = stages.iter().map(|stage| stage.length).sum();
            let from = stages.first().map_or(0.0, |stage| stage.rate);
            *stages = vec![Stage { length, rate: from, to: Some(to) }];
        }
        for spike in &self.spike {
            *stages = with_spike(stages, *spike)?;
        }
        Ok(())
    }

    fn change_traffic(&self, scenario: &mut Scenario) {
        fn set<T: Copy>(to: &mut T, wanted: Option<T>) {
            *to = wanted.unwrap_or(*to);
        }
        set(&mut scenario.traffic.accounts, self.accounts);
        set(&mut scenario.traffic.intents, self.intents);
        set(&mut scenario.traffic.body_bytes, self.body_bytes);
        set(&mut scenario.traffic.hot_share, self.hot_share);
        set(&mut scenario.endpoints.fan_out, self.fan_out);
        set(&mut scenario.endpoints.tls_share, self.tls_share);
        set(&mut scenario.herald.workers, self.workers);
        set(&mut scenario.herald.partitions, self.partitions);
        scenario.herald.cluster |= self.cluster;
        if !self.profile.is_empty() {
            scenario.endpoints.profiles = with_healthy_rest(&self.profile);
        }
    }
}

/// The first stage gets the rate, the others keep their proportion to it.
fn scale(stages: &mut [Stage], rate: f64) {
    let factor = stages.iter().map(|stage| stage.rate).find(|rate| *rate > 0.0).map_or(1.0, |first| rate / first);
    for stage in stages {
        stage.rate *= factor;
        stage.to = stage.to.map(|to| to * factor);
    }
}

/// Cuts a spike into the stages. It ends where the load ends.
fn with_spike(stages: &[Stage], spike: Spike) -> Result<Vec<Stage>, VerbError> {
    let total: Duration = stages.iter().map(|stage| stage.length).sum();
    if spike.at >= total {
        let (at, total) = (crate::config::compact(spike.at), crate::config::compact(total));
        return Err(VerbError::Usage(format!("the spike at {at} would come after the load, which lasts {total}")));
    }
    let (from, until) = (spike.at, (spike.at + spike.length).min(total));
    let mut cut = Vec::new();
    let mut begins = Duration::ZERO;
    for stage in stages {
        let ends = begins + stage.length;
        cut.extend(part(stage, begins, begins, from.min(ends)));
        if (begins..ends).contains(&from) {
            cut.push(Stage { length: until - from, rate: spike.rate, to: None });
        }
        cut.extend(part(stage, begins, until.max(begins), ends));
        begins = ends;
    }
    Ok(cut)
}

/// The part of a stage between two moments of the load; none if there is nothing between.
fn part(stage: &Stage, begins: Duration, from: Duration, until: Duration) -> Option<Stage> {
    let length = until.checked_sub(from).filter(|length| !length.is_zero())?;
    let slope = |to: f64| (to - stage.rate) / stage.length.as_secs_f64();
    let rate_at = |at: Duration| stage.rate + stage.to.map_or(0.0, slope) * (at - begins).as_secs_f64();
    Some(Stage { length, rate: rate_at(from), to: stage.to.map(|_| rate_at(until)) })
}

/// Shares that do not add up to 1 leave the rest healthy, unless the healthy profile is named too.
fn with_healthy_rest(named: &[ProfileShare]) -> Vec<ProfileShare> {
    let rest = 1.0 - named.iter().map(|share| share.share).sum::<f64>();
    let has_healthy = named.iter().any(|share| matches!(share.profile, Profile::Healthy { .. }));
    let healthy = Profile::Healthy { median: Duration::ZERO, p99: Duration::ZERO };
    let healthy = (rest > 0.0 && !has_healthy).then(|| ProfileShare::of(rest, healthy));
    named.iter().cloned().chain(healthy).collect()
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: Option<f64> = text.replace('_', "").parse().ok();
    rate.filter(|rate| rate.is_finite() && *rate > 0.0)
        .ok_or_else(|| "must be a number of events a second, above 0".to_owned())
}

fn load_length(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        length if length < Duration::from_secs(1) => Err("must be at least 1s".to_owned()),
        length => Ok(length),
    }
}

fn spike(text: &str) -> Result<Spike, String> {
    let parts = text.split_once('@').and_then(|(rate, rest)| Some((rate, rest.split_once(':')?)));
    let (rate_text, (at, length)) = parts.ok_or("write it as RATE@AT:FOR, for example 5000@10s:3s")?;
    let spike = Spike { rate: rate(rate_text)?, at: parse_duration(at)?, length: parse_duration(length)? };
    match spike.length.is_zero() {
        true => Err("it lasts no time".to_owned()),
        false => Ok(spike),
    }
}

/// Profiles that need a number get a usual one; a scenario's file can set it.
fn profile(text: &str) -> Result<ProfileShare, String> {
    let (name, share) = text.split_once('=').map_or((text, None), |(name, share)| (name, Some(share)));
    let share = share.map_or(Ok(1.0), |share| share.parse::<f64>().map_err(|_| format!("{share:?} is no share")))?;
    if !(share > 0.0 && share <= 1.0) {
        return Err("the share must be above 0 and at most 1".to_owned());
    }
    let known = usual_profiles();
    let found = known.iter().find(|profile| profile.name() == name).cloned();
    let profile = found.ok_or_else(|| {
        let names: Vec<&str> = known.iter().map(Profile::name).collect();
        format!("there is no profile {name:?}; there are {}", names.join(", "))
    })?;
    Ok(ProfileShare::of(share, profile))
}

fn usual_profiles() -> [Profile; 16] {
    let ms = Duration::from_millis;
    [
        Profile::Healthy { median: Duration::ZERO, p99: Duration::ZERO },
        Profile::Slow { after: ms(1_000) },
        Profile::Hanging,
        Profile::Flaky { p: 0.3 },
        Profile::Imperfect {
            after: ms(10),
            failure: Failure::Status503,
            often: Often::Random { p: 0.1 },
            goodput: 0.8,
        },
        Profile::Fleeting {
            after: ms(10),
            rtt: Duration::ZERO,
            http2: false,
            requests: Some(12),
            idle: None,
            reload: None,
        },
        Profile::Healing { at: ms(5_000), after: Duration::ZERO },
        Profile::Failing,
        Profile::Throttling { retry_after: ms(1_000) },
        Profile::Gone { after: 20 },
        Profile::Redirecting,
        Profile::Resetting,
        Profile::Truncating,
        Profile::HugeBody,
        Profile::Flooding,
        Profile::BrokenTls,
    ]
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        loadtest: LoadtestArgs,
    }

    fn line(words: &str) -> RunArgs {
        let words = std::iter::once("loadtest").chain(words.split_whitespace());
        Line::try_parse_from(words).unwrap_or_else(|error| panic!("{error}")).loadtest.run
    }

    fn scenario(words: &str) -> Scenario {
        line(words).scenario(&[]).unwrap()
    }

    fn stages(words: &str) -> Vec<(u64, f64, Option<f64>)> {
        match scenario(words).load {
            Load::Open { stages, .. } => {
                stages.iter().map(|stage| (stage.length.as_millis() as u64, stage.rate, stage.to)).collect()
            }
            Load::Drain { .. } => panic!("a drain"),
        }
    }

    #[test]
    fn a_rate_scales_every_stage_and_a_length_stretches_them() {
        assert_eq!(stages("steady --rate 50 --for 5s"), [(5_000, 50.0, None)]);
        let hot = stages("hot-merchant --rate 100 --for 10s");
        assert_eq!(hot, [(4_000, 100.0, None), (2_000, 300.0, None), (4_000, 100.0, None)]);
        assert_eq!(stages("steady --rate 10 --ramp-to 90 --for 8s"), [(8_000, 10.0, Some(90.0))]);
    }

    #[test]
    fn a_spike_is_cut_into_the_stages() {
        assert_eq!(
            stages("steady --rate 10 --for 10s --spike 500@4s:2s"),
            [(4_000, 10.0, None), (2_000, 500.0, None), (4_000, 10.0, None)]
        );
        assert_eq!(
            stages("steady --rate 10 --ramp-to 20 --for 10s --spike 500@8s:9s"),
            [(8_000, 10.0, Some(18.0)), (2_000, 500.0, None)]
        );
        assert_eq!(
            stages("hot-merchant --rate 100 --for 10s --spike 9@3s:4s"),
            [(3_000, 100.0, None), (4_000, 9.0, None), (3_000, 100.0, None)]
        );
        assert!(line("steady --for 5s --spike 9@5s:1s").scenario(&[]).is_err());
    }

    #[test]
    fn a_length_stretches_the_faults_of_the_scenario_and_not_those_of_the_line() {
        let faults = |words: &str| scenario(words).faults.iter().map(ToString::to_string).collect::<Vec<_>>();
        let stretched = faults("crash-storm --for 5s --fault fill-redis@1s:1s");
        assert_eq!(
            stretched,
            ["kill-worker@400ms/600ms", "pause-worker@1s 300ms:4s/8s", "lose-key@1s 800ms:6s", "fill-redis@1s:1s"]
        );
        assert_eq!(faults("crash-storm --without-faults --fault destroy-group@1s"), ["destroy-group@1s"]);
    }

    #[test]
    fn named_profiles_leave_the_rest_healthy() {
        let profiles = |words: &str| {
            let shares = scenario(words).endpoints.profiles;
            shares.iter().map(|share| (share.profile.name(), share.share)).collect::<Vec<_>>()
        };
        assert_eq!(profiles("steady --profile hanging=0.25"), [("hanging", 0.25), ("healthy", 0.75)]);
        assert_eq!(profiles("steady --profile flaky"), [("flaky", 1.0)]);
        assert_eq!(profiles("steady --profile flaky=0.5 --profile healthy=0.1").len(), 2);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for words in [
            "steady --rate 0",
            "steady --rate many",
            "steady --for 10ms",
            "steady --spike 5@1s",
            "steady --profile evil",
            "steady --profile hanging=2",
            "steady --drain 5 --rate 3",
            "steady --workers 0",
            "steady --partitions 0",
            "steady --partitions 1025",
            "steady --fault kill-worker",
            "--list steady",
        ] {
            let words: Vec<&str> = std::iter::once("loadtest").chain(words.split_whitespace()).collect();
            assert!(Line::try_parse_from(&words).is_err(), "{words:?}");
        }
        assert!(line("drain --rate 5").scenario(&[]).is_err());
        assert!(line("drain --for 5s").scenario(&[]).is_err());
        assert_eq!(scenario("drain --drain 7").load, Load::Drain { events: 7 });
    }
}
