//! `herald loadtest prove`: every scenario with its own faults and random ones, again and again for as long as asked,
//! and one table of what was tried and what broke. Each run is a command line that repeats it. Ctrl-C ends the run in
//! progress as it ends a single one; the remaining runs are not made, and nothing is proven.

use std::{collections::HashSet, fs, time::Duration};

use anyhow::{Context, Result};
use clap::Parser;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde::Serialize;

use super::{
    args::{LoadtestArgs, ProveArgs},
    draw::hash,
    plan::{Given, plan},
    report::{
        self,
        live::{Signals, Wishes},
        text,
    },
    result::RunResult,
    run::Ran,
    scenario::Load,
    scenarios::{self, BUILT_IN},
    view::View,
};
use crate::{
    clock,
    surface::{Format, Output, VerbError, message_of, note, words},
};

/// What a run takes besides its load: the start, and the wait for the last retries.
const TAIL: Duration = Duration::from_secs(7);

/// A load shorter than this is over before a fault has shown what it does.
const SHORTEST: Duration = Duration::from_secs(6);

/// Scenarios whose figures would mean nothing with random faults; they keep their thresholds instead.
const UNDISTURBED: [&str; 4] = ["steady", "noisy-neighbour", "imperfect-world", "many-endpoints"];

/// Also run without random faults, which would excuse what they are there to prove: retries on time and silence after a 410, and that
/// a full Redis stops nothing.
const ALSO_UNDISTURBED: [&str; 2] = ["flaky-world", "full-redis"];

/// The short form: what matters most, at rates that a test build can keep up with on two shared cores.
const SHORT: [(&str, &str); 5] = [
    ("crash-storm", "100"),
    ("outage-and-recovery", "100"),
    ("flaky-world", "80"),
    ("noisy-neighbour", "150"),
    ("drain", "3000"),
];

/// The storm's own faults come too close together when its times are stretched to so little: a successor owns the
/// partition a lease (1 s) after a kill, and a worker that was frozen for two leases finds another in its place when it
/// comes back.
const SHORT_STORM: [&str; 2] = ["kill-worker@1s/4s*3", "pause-worker@2500ms:2s/4s*2"];

const SHORT_LOAD: Duration = Duration::from_secs(10);

/// One run to make: its words are what a user would type after `herald`.
#[derive(Debug, Clone, PartialEq)]
struct Step {
    scenario: &'static str,
    seed: u64,
    words: Vec<String>,
}

impl Step {
    /// Quoted for a shell.
    fn command(&self) -> String {
        let quoted = |word: &String| match word.contains([' ', '*', '<', '>']) {
            true => format!("'{word}'"),
            false => word.clone(),
        };
        format!("herald {}", self.words.iter().map(quoted).collect::<Vec<_>>().join(" "))
    }
}

/// A promise or threshold over all runs.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
struct Line {
    promise: String,
    /// The scenarios that tried it.
    tried_on: Vec<&'static str>,
    tried: u64,
    broken: u64,
    /// Where it broke.
    broken_in: Vec<String>,
}

/// The promise that is the generator's own. The short form leaves it out: a machine with other work to do is late, and
/// what was sent late is judged all the same.
const GENERATOR: &str = "generator";

/// What every run says of its faults. Not among the promises, because it is not Herald that keeps it.
const FAULTS: &str = "Every planned fault came";

#[derive(Default)]
struct Sums {
    promises: Vec<Line>,
    faults: Line,
}

impl Sums {
    fn add(&mut self, step: &Step, result: &RunResult) {
        self.add_faults(step, result);
        for promise in &result.promises {
            self.line(&promise.text).add(promise.tried, promise.broken, step);
        }
        for threshold in &result.thresholds {
            let what = format!("{}: {}", step.scenario, threshold.threshold);
            self.line(&what).add(1, u64::from(!threshold.is_kept), step);
        }
    }

    fn line(&mut self, promise: &str) -> &mut Line {
        let at = self.promises.iter().position(|line| line.promise == promise).unwrap_or_else(|| {
            self.promises.push(Line { promise: promise.to_owned(), ..Line::default() });
            self.promises.len() - 1
        });
        &mut self.promises[at]
    }

    fn add_faults(&mut self, step: &Step, result: &RunResult) {
        let planned = result.faults.len() + result.missed.len();
        self.faults.promise = FAULTS.to_owned();
        self.faults.add(planned as u64, result.missed.len() as u64, step);
    }

    fn lines(&self) -> impl Iterator<Item = &Line> {
        self.promises.iter().chain(Some(&self.faults).filter(|faults| faults.tried > 0))
    }

    fn sum(&self, of: impl Fn(&Line) -> u64) -> u64 {
        self.promises.iter().map(of).sum()
    }
}

impl Line {
    fn add(&mut self, tried: u64, broken: u64, step: &Step) {
        if tried > 0 && !self.tried_on.contains(&step.scenario) {
            self.tried_on.push(step.scenario);
        }
        self.tried += tried;
        self.broken += broken;
        if broken > 0 {
            self.broken_in.push(format!("{} seed {}", step.scenario, step.seed));
        }
    }
}

pub async fn run(args: ProveArgs, given: &Given) -> Result<()> {
    let seed = args.seed.unwrap_or_else(|| rand::random::<u32>().into());
    let steps = match args.short {
        true => short(seed),
        false => long(seed, Duration::from_secs(60) * args.minutes)?,
    };
    note(format_args!("proof with seed {seed}: {} runs", steps.len()));
    let wishes = Wishes::default();
    let _signals = Signals::watch(wishes.clone()).context("cannot watch for signals")?;
    let (mut sums, mut failed, began) = (Sums::default(), Vec::new(), clock::now());
    let mut made = 0;
    for step in &steps {
        made += 1;
        match make(step, given, &wishes).await {
            Ok(mut ran) => {
                if args.short {
                    ran.result.promises.retain(|promise| promise.name != GENERATOR);
                }
                note(format_args!("{:<20} {}", step.scenario, text::verdict(&ran.result)));
                if !ran.result.is_kept() {
                    // That it broke counts whether or not it can be written down.
                    if let Err(error) = keep(&args, step, &ran) {
                        note(message_of(&error));
                    }
                }
                if let Some(owed) = text::owed_faults(&ran.result) {
                    note(format_args!("  {owed}\n  to repeat it: {}", step.command()));
                    failed.push(step.scenario);
                }
                sums.add(step, &ran.result);
            }
            Err(error) => {
                note(format_args!("{:<20} FAILED: {error:#}\n  to repeat it: {}", step.scenario, step.command()));
                failed.push(step.scenario);
            }
        }
        if wishes.end.is_cancelled() {
            note(format_args!("asked to end: {} runs are not made", steps.len() - made));
            break;
        }
    }
    // What broke counts whether or not anyone reads the table.
    let shown = show(&sums, &steps, given);
    let took = words::span((clock::now() - began).as_secs() * 1_000);
    let (tried, broken) = (sums.sum(|line| line.tried), sums.sum(|line| line.broken));
    let summary = format!(
        "proof: {made} of {} runs in {took}, {} promises, {} trials, {} broken, {} runs failed (seed {seed})",
        steps.len(),
        sums.promises.len(),
        words::number(tried),
        words::number(broken),
        failed.len()
    );
    match (broken, failed.is_empty() && !wishes.end.is_cancelled()) {
        (0, true) => shown.and_then(|()| Output::new(Some(Format::Table)).text(&summary)),
        (0, false) => Err(anyhow::anyhow!(summary)),
        _ => Err(VerbError::Broken(summary).into()),
    }
}

async fn make(step: &Step, given: &Given, wishes: &Wishes) -> Result<Ran> {
    let run = plan(&read(step)?.run, given, step.words.clone())?;
    run.prepare()?.run(&View::Nobody, wishes).await
}

/// The step's words, read as the command line reads them.
fn read(step: &Step) -> Result<LoadtestArgs> {
    #[derive(Parser)]
    struct Words {
        #[command(flatten)]
        loadtest: LoadtestArgs,
    }
    let words = Words::try_parse_from(&step.words).context("a run's own words are wrong")?;
    Ok(words.loadtest)
}

/// Keeps the result of a run that broke something, and says how to see it break again.
fn keep(args: &ProveArgs, step: &Step, ran: &Ran) -> Result<()> {
    let folder = &args.keep;
    fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let path = |ending: &str| folder.join(format!("{}-{}.{ending}", step.scenario, step.seed));
    report::write(Some(&path("json")), Some(&path("html")), &ran.result)?;
    for promise in ran.result.promises.iter().filter(|promise| promise.broken > 0) {
        note(format_args!("  {} broken {} times: {}", promise.name, promise.broken, promise.text));
        promise.examples.iter().for_each(|example| note(format_args!("    {example}")));
    }
    for threshold in ran.result.thresholds.iter().filter(|threshold| !threshold.is_kept) {
        note(format_args!("  not kept: {} ({:?})", threshold.threshold, threshold.value));
    }
    note(format_args!("  to repeat it: {}\n  its page: {}", step.command(), path("html").display()));
    if let Some(logs) = &ran.logs {
        note(format_args!("  the workers' logs: {}", logs.display()));
    }
    Ok(())
}

fn show(sums: &Sums, steps: &[Step], given: &Given) -> Result<()> {
    let all = steps.iter().map(|step| step.scenario).collect::<HashSet<_>>().len();
    let format = given.format.unwrap_or(Format::Table);
    let mut list = Output::new(Some(format)).list(&["PROMISE", "TRIED ON", "TRIED", "BROKEN", "WHERE"]);
    for line in sums.lines() {
        list.push(line, || {
            let tried_on = match line.tried_on.len() {
                0 => "nothing".to_owned(),
                many if many == all => "every scenario".to_owned(),
                many if many > 3 => format!("{many} scenarios"),
                _ => line.tried_on.join(", "),
            };
            let counts = [line.tried, line.broken].map(words::number);
            [vec![line.promise.clone(), tried_on], counts.to_vec(), vec![line.broken_in.join(", ")]].concat()
        })?;
    }
    list.finish()
}

/// As many rounds of all scenarios as there is time for, stretched to fill it.
fn long(seed: u64, time: Duration) -> Result<Vec<Step>> {
    let mut scenarios = Vec::new();
    for (name, _) in BUILT_IN {
        scenarios.push((*name, scenarios::find(name)?, !UNDISTURBED.contains(name)));
    }
    for name in ALSO_UNDISTURBED {
        scenarios.push((name, scenarios::find(name)?, false));
    }
    let loads: Duration = scenarios.iter().map(|(_, scenario, _)| scenario.length()).sum();
    let tails = TAIL * scenarios.len() as u32;
    let rounds = (time.as_secs_f64() / (loads + tails).as_secs_f64()).floor().max(1.0);
    let factor = (time.as_secs_f64() / rounds - tails.as_secs_f64()) / loads.as_secs_f64();
    let mut steps = Vec::new();
    for round in 0..rounds as u64 {
        for (at, (name, scenario, is_disturbed)) in scenarios.iter().enumerate() {
            let seed = hash(&[seed, round, at as u64]) >> 32;
            let mut words = vec!["loadtest".to_owned(), (*name).to_owned()];
            if matches!(scenario.load, Load::Open { .. }) {
                let length = scenario.length().mul_f64(factor.max(0.0)).max(SHORTEST);
                words.extend(["--for".to_owned(), in_seconds(length)]);
            }
            words.extend(["--seed".to_owned(), seed.to_string()]);
            if *is_disturbed {
                words.push("--without-thresholds".to_owned());
                words.extend(
                    random_faults(scenario.herald.cluster, seed)
                        .into_iter()
                        .flat_map(|fault| ["--fault".to_owned(), fault]),
                );
            }
            steps.push(Step { scenario: name, seed, words });
        }
    }
    Ok(steps)
}

fn short(seed: u64) -> Vec<Step> {
    let step = |(at, (name, rate)): (usize, &(&'static str, &str))| {
        let seed = hash(&[seed, at as u64]) >> 32;
        let load = match *name {
            "drain" => vec!["--drain".to_owned(), (*rate).to_owned()],
            _ => vec!["--for".to_owned(), in_seconds(SHORT_LOAD), "--rate".to_owned(), (*rate).to_owned()],
        };
        // Thousands of receivers need a machine of their own.
        let few = if *name == "noisy-neighbour" { vec!["--accounts", "100"] } else { Vec::new() };
        let words = ["loadtest", name].map(str::to_owned).into_iter().chain(load);
        let words = words.chain(few.into_iter().map(str::to_owned));
        let words = words.chain(["--seed".to_owned(), seed.to_string(), "--without-thresholds".to_owned()]);
        let storm = SHORT_STORM.iter().flat_map(|fault| ["--fault", fault]).map(str::to_owned);
        let storm = std::iter::once("--without-faults".to_owned()).chain(storm);
        let words = words.chain(storm.filter(|_| *name == "crash-storm"));
        Step { scenario: name, seed, words: words.collect() }
    };
    SHORT.iter().enumerate().map(step).collect()
}

/// Two of them, at times drawn from the run's seed.
fn random_faults(is_cluster: bool, seed: u64) -> Vec<String> {
    const ANYWHERE: [&str; 4] =
        ["kill-worker@random*2", "pause-worker@random:3s", "lose-key@random:5s", "destroy-group@random"];
    const ONE_SERVER: [&str; 3] = ["restart-redis@random:500ms", "partition-redis@random:2s", "fill-redis@random:2s"];
    const CLUSTER: [&str; 3] = ["failover@random", "partition-node@random", "migrate-slot@random*2"];
    let faults = [&ANYWHERE[..], if is_cluster { &CLUSTER[..] } else { &ONE_SERVER[..] }].concat();
    let mut rng = StdRng::seed_from_u64(seed);
    let first = rng.random_range(0..faults.len());
    let second = (first + rng.random_range(1..faults.len())) % faults.len();
    [first, second].map(|at| faults[at].to_owned()).into()
}

/// One word for a shell.
fn in_seconds(length: Duration) -> String {
    format!("{}s", length.as_secs().max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loadtest::{
        faults::{Fault, LoadLength, Wanted, plan},
        report::fixture,
        result::{Missed, MissedFault},
        run::{Run, Target},
    };

    #[test]
    fn every_run_of_a_proof_is_a_line_that_can_be_typed_and_understood() {
        for steps in [short(7), long(7, Duration::from_secs(600)).unwrap(), long(7, Duration::from_secs(60)).unwrap()] {
            assert_eq!(steps.iter().map(|step| step.seed).collect::<HashSet<_>>().len(), steps.len());
            for step in steps {
                let words = read(&step).unwrap();
                let scenario = words.run.scenario(&[]).unwrap_or_else(|error| panic!("{}: {error}", step.command()));
                let target = Target::Own { program: "herald".into() };
                let run =
                    Run { scenario, seed: step.seed, stream: "payment-intents".to_owned(), target, words: vec![] };
                run.prepare().unwrap_or_else(|error| panic!("{}: {error:#}", step.command()));
                assert!(step.command().starts_with("herald loadtest "), "{}", step.command());
            }
        }
    }

    #[test]
    fn a_proof_takes_about_the_time_it_is_given_and_repeats_with_its_seed() {
        let time = |steps: &[Step]| -> u64 {
            let load = |step: &Step| {
                let length = read(step).unwrap().run.scenario(&[]).unwrap().length();
                (length + TAIL).as_secs()
            };
            steps.iter().map(load).sum()
        };
        for minutes in [5, 10, 30] {
            let steps = long(1, Duration::from_secs(60 * minutes)).unwrap();
            let took = time(&steps);
            assert!((50 * minutes..=70 * minutes).contains(&took), "{minutes} minutes: {took} s");
        }
        assert_eq!(long(3, Duration::from_secs(600)).unwrap(), long(3, Duration::from_secs(600)).unwrap());
        assert_ne!(long(3, Duration::from_secs(600)).unwrap(), long(4, Duration::from_secs(600)).unwrap());
    }

    /// Otherwise a pause hits a worker that owns nothing, or one that never sees another in its place.
    #[test]
    fn in_the_short_storm_each_pause_finds_an_owner_and_a_successor() {
        let scenario = read(&short(7)[0]).unwrap().run.scenario(&[]).unwrap();
        let planned = plan(&scenario.faults, LoadLength::Exactly(scenario.length()), 7).unwrap();
        let all = |fault: Fault| planned.iter().filter(move |one| one.fault == fault);
        assert_eq!((all(Fault::KillWorker).count(), all(Fault::PauseWorker).count()), (3, 2));
        let take_over = Duration::from_secs(1) + Duration::from_millis(250);
        for pause in all(Fault::PauseWorker) {
            assert!(pause.length > take_over, "{pause:?}");
            for kill in all(Fault::KillWorker) {
                assert!(kill.at > pause.at + pause.length || kill.at + take_over < pause.at, "{kill:?} {pause:?}");
            }
        }
    }

    #[test]
    fn faults_that_did_not_come_are_a_line_of_the_table_and_break_no_promise() {
        let step = Step { scenario: "drain", seed: 5, words: Vec::new() };
        let mut result = fixture::outage();
        let happened = result.faults.len() as u64;
        let missed = MissedFault { fault: Fault::KillWorker, at: 1.0, wanted: Wanted::Random, why: Missed::LoadOver };
        result.missed.push(missed);
        result.promises.clear();
        result.thresholds.clear();
        let mut sums = Sums::default();
        sums.add(&step, &result);
        let line = sums.lines().last().unwrap();
        assert_eq!((line.promise.as_str(), line.tried, line.broken), (FAULTS, happened + 1, 1));
        assert_eq!((line.broken_in.as_slice(), sums.sum(|line| line.broken)), (&["drain seed 5".to_owned()][..], 0));
    }

    #[test]
    fn what_broke_is_summed_by_promise_and_named_with_its_seed() {
        let step = |scenario| Step { scenario, seed: 5, words: Vec::new() };
        let mut sums = Sums::default();
        sums.line("lost").add(10, 0, &step("steady"));
        sums.line("lost").add(5, 2, &step("tls"));
        sums.line("lost").add(0, 0, &step("drain"));
        let line = &sums.promises[0];
        assert_eq!((line.tried, line.broken, line.tried_on.as_slice()), (15, 2, &["steady", "tls"][..]));
        assert_eq!(line.broken_in, ["tls seed 5"]);
    }
}
