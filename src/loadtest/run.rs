//! One run from its scenario to its result: the service, the endpoints, the receivers, the load with its faults, the
//! wait for what is unfinished, and the judge. Reports through a view what is being done; decides nothing that is
//! judged.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use tempfile::TempDir;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{
    disturbance::{self, Held, Performed, Scene, Urls, perform},
    environment,
    faults::{Fault, LoadLength, Needs, Planned, plan},
    house::{self, House, Uses},
    intents::{
        self,
        storm::{Storm, Stormed},
    },
    judge::{Evidence, Verdict, judge},
    ledger::{self, Ledger},
    population::Population,
    producer::Producer,
    receiver::Receivers,
    registration::Registration,
    report::{
        live::Wishes,
        progress::{ProfileProgress, Progress, Recent},
        threshold::{Names, Threshold, evaluate},
    },
    result::{Environment, FaultMark, ProcessUse, RESULT_SCHEMA, RunResult},
    scenario::{Intents, Load, Profile, Scenario},
    schedule::Schedule,
    target,
    traffic::Traffic,
    view::{View, phase},
    waiting::{self, Waiting},
};
use crate::{
    clock,
    config::RedisUrl,
    descriptors,
    facts::partition::MAX_PARTS,
    owned::Usage,
    store::{connection::Redis, keys::PartitionKeys},
    surface::VerbError,
};

/// The pause between two looks at the run: often enough for the view, and at most a tenth of a second of waiting too
/// long.
const GLANCE: Duration = Duration::from_millis(100);

/// The view is told twice a second.
const GLANCES_PER_SHOWING: u64 = 5;

/// One thread serves 25 000 requests a second.
const RECEIVER_THREADS: usize = 1;

/// Processes of the payment-intents service.
const MOST_SERVICES: u32 = 16;

/// What is under load.
#[derive(Debug, Clone)]
pub enum Target {
    /// A Redis and workers of its own.
    Own {
        /// The `herald` that serves.
        program: PathBuf,
    },
    /// A service that already runs.
    Found { redis: RedisUrl, owned_hosts: Vec<String> },
}

#[derive(Debug, Clone)]
pub struct Run {
    pub scenario: Scenario,
    pub seed: u64,
    pub stream: String,
    pub target: Target,
    /// What was typed, to be shown again.
    pub words: Vec<String>,
}

/// What came of it.
#[derive(Debug)]
pub struct Ran {
    pub result: RunResult,
    /// The workers' logs, kept if a promise broke.
    pub logs: Option<PathBuf>,
}

/// Everything that can be checked, and can be wrong, before anything is started.
pub struct Prepared {
    run: Run,
    keys: PartitionKeys,
    population: Arc<Population>,
    ledger: Arc<Ledger>,
    /// None for a drain, which takes as long as it takes.
    length: Option<Duration>,
    /// How many endpoints each profile has.
    endpoints_of: Vec<u64>,
    planned: Vec<Planned>,
    thresholds: Vec<Threshold>,
}

impl Run {
    pub fn prepare(self) -> Result<Prepared> {
        let Self { scenario, seed, .. } = &self;
        let population = Arc::new(Population::draw(scenario, *seed).map_err(usage)?);
        let schedule = Schedule::try_new(&scenario.load, *seed).map_err(usage)?;
        let length = match &scenario.load {
            Load::Open { .. } => LoadLength::Exactly(schedule.length()),
            Load::Drain { .. } => LoadLength::About(scenario.length()),
        };
        let planned = plan(&scenario.faults, length, *seed).map_err(usage)?;
        refuse_for_intents(scenario, &planned)?;
        refuse_for_redis(scenario, &planned)?;
        let ledger = Arc::new(Ledger::new(population.clone(), schedule.expected()));
        let thresholds = Threshold::parse_all(&scenario.thresholds, &names(scenario, &population)).map_err(usage)?;
        house::refuse_own(&scenario.herald.settings)?;
        house::check_settings(&scenario.herald.settings)?;
        if let Target::Found { .. } = &self.target {
            refuse_for_found(scenario)?;
        }
        let keys = PartitionKeys::new(&self.stream)?;
        let length = matches!(scenario.load, Load::Open { .. }).then(|| schedule.length());
        let mut endpoints_of = vec![0; population.profiles().len()];
        (0..population.active()).for_each(|endpoint| endpoints_of[population.profile_index(endpoint)] += 1);
        Ok(Prepared { keys, population, ledger, length, endpoints_of, planned, thresholds, run: self })
    }
}

fn usage(error: impl std::fmt::Display) -> VerbError {
    VerbError::Usage(error.to_string())
}

/// The names that thresholds may use: the judge's own, found by judging nothing.
fn names(scenario: &Scenario, population: &Arc<Population>) -> Names {
    let promises = match scenario.intents {
        Some(_) => intents::judge::judge(&intents::judge::Case::default()),
        None => judge(&Ledger::new(population.clone(), 0), &Evidence::default()).promises,
    };
    Names::of(scenario, promises.iter().map(|promise| promise.name.as_str()))
}

/// What is only there, or not there, where the load is merchants' commands.
fn refuse_for_intents(scenario: &Scenario, planned: &[Planned]) -> Result<(), VerbError> {
    let refused = |why: String| Err(VerbError::Usage(format!("the scenario {}: {why}", scenario.name)));
    let Some(intents) = &scenario.intents else {
        return match planned.iter().find(|one| one.fault.needs() == Needs::Services) {
            Some(one) => {
                let name = one.fault.name();
                refused(format!("{name} needs the payment-intents service, as the scenario intents has it"))
            }
            None => Ok(()),
        };
    };
    if planned.iter().any(|one| one.fault == Fault::ChangeUrls) {
        return refused(format!("{} is not possible with payment intents", Fault::ChangeUrls.name()));
    }
    if scenario.herald.cluster || scenario.herald.partitions > 1 {
        return refused("payment intents are tried on one Redis and a stream that is whole".to_owned());
    }
    if matches!(scenario.load, Load::Drain { .. }) {
        return refused("merchants' commands come at a rate, and there is nothing to drain".to_owned());
    }
    if !(1..=MOST_SERVICES).contains(&intents.services) {
        return refused(format!("intents.services is {}; from 1 to {MOST_SERVICES} are possible", intents.services));
    }
    let is_known = |profile: &Profile| matches!(profile, Profile::Healthy { .. } | Profile::Flaky { .. });
    match scenario.endpoints.profiles.iter().find(|share| !is_known(&share.profile)) {
        Some(share) => refused(format!("its receivers are healthy or flaky, not {}", share.profile.name())),
        None if scenario.endpoints.tls_share > 0.0 => refused("its receivers speak plain HTTP".to_owned()),
        None => Ok(()),
    }
}

/// What can be broken depends on what Redis is.
fn refuse_for_redis(scenario: &Scenario, planned: &[Planned]) -> Result<(), VerbError> {
    let refused = |why: String| Err(VerbError::Usage(format!("the scenario {}: {why}", scenario.name)));
    let (partitions, is_cluster) = (scenario.herald.partitions, scenario.herald.cluster);
    if !(1..=MAX_PARTS).contains(&partitions) {
        return refused(format!("herald.partitions is {partitions}; from 1 to {MAX_PARTS} are possible"));
    }
    let is_possible = |needs: Needs| match needs {
        Needs::OneServer => !is_cluster,
        Needs::Cluster => is_cluster,
        Needs::Services | Needs::Nothing => true,
    };
    match planned.iter().find(|one| !is_possible(one.fault.needs())) {
        Some(one) if is_cluster => refused(format!("{} is for one Redis, not for a Cluster", one.fault.name())),
        Some(one) => refused(format!("{} needs a Cluster: --cluster", one.fault.name())),
        None => Ok(()),
    }
}

/// So many more workers than there are at first are there at once if all goes by the plan.
fn joiners(planned: &[Planned]) -> u32 {
    let (mut more, mut most) = (0_i64, 0);
    for one in planned {
        match one.fault {
            Fault::JoinWorker => more += 1,
            Fault::LeaveWorker => more -= 1,
            _ => {}
        }
        most = most.max(more);
    }
    u32::try_from(most).unwrap_or(0)
}

/// A service that is not ours may only be loaded.
fn refuse_for_found(scenario: &Scenario) -> Result<(), VerbError> {
    let refused = |what: &str| {
        Err(VerbError::Refused(format!(
            "{what}: that is only possible for what the load test starts itself, so leave --redis out"
        )))
    };
    if let Some(fault) = scenario.faults.first() {
        return refused(&format!(
            "the fault {fault} would break a service that is not the load test's own (--without-faults leaves a scenario's faults out)"
        ));
    }
    if scenario.herald.cluster || scenario.herald.partitions > 1 {
        return refused("a Redis Cluster, or a stream that is split for the run,");
    }
    if scenario.intents.is_some() {
        return refused("payment intents need a service and keys of the load test's own");
    }
    if matches!(scenario.load, Load::Drain { .. }) {
        return refused("a drain begins before the workers");
    }
    let has_broken = scenario.endpoints.profiles.iter().any(|share| share.profile == Profile::BrokenTls);
    if scenario.endpoints.tls_share > 0.0 || has_broken {
        return refused("https receivers need workers that trust the load test's own authority");
    }
    Ok(())
}

impl Prepared {
    pub fn seed(&self) -> u64 {
        self.run.seed
    }

    /// Puts the load on and judges. With `wishes.abort` it ends at once and judges nothing.
    pub async fn run(self, view: &View<'_>, wishes: &Wishes) -> Result<Ran> {
        match self.run.target.clone() {
            Target::Own { program } => tokio::select! {
                ran = self.own(program, view, wishes) => ran,
                () = wishes.abort.cancelled() => Err(aborted()),
            },
            // Not cancelled as a whole: what was registered must not stay behind.
            Target::Found { redis, owned_hosts } => self.found(&redis, &owned_hosts, view, wishes).await,
        }
    }

    async fn own(self, program: PathBuf, view: &View<'_>, wishes: &Wishes) -> Result<Ran> {
        // Receivers of thousands of endpoints hold a connection for each.
        descriptors::raise_limit();
        view.show(phase("starting Redis"));
        let scratch = TempDir::with_prefix("herald-receivers-").context("cannot make a scratch folder")?;
        let receivers = self.receivers(&scratch)?;
        let scenario = &self.run.scenario;
        let has_proxy = self.planned.iter().any(|one| one.fault == Fault::PartitionRedis);
        let has_log_pipe = self.planned.iter().any(|one| one.fault == Fault::BlockLogs);
        let has_keys = self.planned.iter().any(|one| one.fault == Fault::LoseKey);
        let mut house = House::start(house::Plan {
            program,
            workers: scenario.herald.workers,
            joiners: joiners(&self.planned),
            partitions: scenario.herald.partitions,
            is_cluster: scenario.herald.cluster,
            seed: self.run.seed,
            services: scenario.intents.as_ref().map_or(0, |intents| intents.services),
            settings: scenario.herald.settings.clone(),
            lease: self.population.terms().lease,
            stream: self.run.stream.clone(),
            has_proxy,
            has_log_pipe,
            has_keys,
            ca_file: Some(receivers.ca_file.clone()),
        })
        .await?;
        let ran = match &scenario.intents {
            Some(intents) => self.storm(&house, intents, view, wishes).await,
            None => self.in_house(&house, &receivers, view, wishes).await,
        };
        let is_kept = ran.as_ref().is_ok_and(RunResult::is_kept);
        let logs = (!is_kept).then(|| house.keep_folder());
        match (ran, &logs) {
            (Ok(result), _) => Ok(Ran { result, logs }),
            (Err(error), Some(logs)) => Err(error.context(format!("the workers' logs are in {}", logs.display()))),
            (Err(error), None) => Err(error),
        }
    }

    /// Merchants' commands to the payment-intents service.
    async fn storm(&self, house: &House, intents: &Intents, view: &View<'_>, wishes: &Wishes) -> Result<RunResult> {
        let environment = environment::look(house.redis(), &self.keys, true).await?;
        let (before, started_at) = ((Uses::default(), Usage::of_this_process()), started_at());
        let storm = Storm {
            scenario: &self.run.scenario,
            intents,
            population: Arc::clone(&self.population),
            planned: &self.planned,
            seed: self.run.seed,
            house,
        };
        let Stormed { verdict, performed, answers, requests } = storm.run(view, wishes).await?;
        let Performed { happened, missed } = performed;
        let after = (house.uses().await, Usage::of_this_process());
        let processes = processes(before, after, verdict.deliveries.acknowledged);
        let result = self.result(verdict, happened, environment, started_at, processes);
        let mut result = RunResult { missed, answers, requests, ..result };
        result.thresholds = evaluate(&self.thresholds, &result);
        Ok(result)
    }

    async fn in_house(
        &self,
        house: &House,
        receivers: &Receivers,
        view: &View<'_>,
        wishes: &Wishes,
    ) -> Result<RunResult> {
        let redis = house.redis();
        view.show(phase("registering the endpoints"));
        let registration = Registration::new(&self.population, receivers);
        registration.import(redis).await?;
        let environment = environment::look(redis, &self.keys, true).await?;
        let is_drain = matches!(self.run.scenario.load, Load::Drain { .. });
        let course = Course { is_drain, ..Course::default() };
        if is_drain {
            view.show(phase("laying up the events"));
            // A producer waits for ever for a Redis that has ended.
            tokio::select! {
                produced = self.produce(redis, &course, wishes) => produced?,
                failure = house.failure() => return Err(failure),
            }
        } else {
            view.show(phase("starting the workers"));
            house.start_workers().await?;
            course.started.cancel();
        }
        let before = (house.uses().await, Usage::of_this_process());
        self.ledger.begin(clock::now(), clock::wall_ms());
        let (started_at, began) = (started_at(), self.ledger.began().unwrap_or_else(clock::now));
        let ended = wishes.end.child_token();
        let disturbing = async {
            let say = |at, text| view.say(at, text);
            let faults =
                disturbance::Course { began, started: &course.started, early: &ended, interrupted: &wishes.end };
            let urls = Urls { registration: &registration, ledger: &self.ledger };
            let scene = Scene { house, urls: Some(urls) };
            let performed = perform(&scene, &self.planned, &faults, &course.held, say).await?;
            course.calm.cancel();
            anyhow::Ok(performed)
        };
        let loading = async {
            if is_drain {
                house.start_workers().await?;
                course.started.cancel();
            }
            self.load(redis, Some(house), &course, view, wishes).await?;
            // Faults that a drain did not wait for do not come any more.
            ended.cancel();
            anyhow::Ok(())
        };
        let (Performed { happened, missed }, ()) = tokio::try_join!(disturbing, loading)?;
        let after = (house.uses().await, Usage::of_this_process());
        let trimmed_unread = waiting::trimmed_unread(redis, &self.keys).await?;
        let mut evidence = Evidence { faults: happened, is_drain, trimmed_unread, ..Evidence::default() };
        let verdict = self.judge(redis, &mut evidence, view).await?;
        let processes = processes(before, after, verdict.deliveries.acknowledged);
        let result = self.result(verdict, evidence.faults, environment, started_at, processes);
        Ok(RunResult { missed, ..result })
    }

    async fn found(self, url: &RedisUrl, owned: &[String], view: &View<'_>, wishes: &Wishes) -> Result<Ran> {
        view.show(phase("looking at the service"));
        target::check_redis(url, owned).await?;
        let redis = Redis::new(url.reveal())?;
        let environment = environment::look(&redis, &self.keys, false).await?;
        let scratch = TempDir::with_prefix("herald-receivers-").context("cannot make a scratch folder")?;
        let receivers = self.receivers(&scratch)?;
        view.show(phase("registering the endpoints"));
        let registration = Registration::new(&self.population, &receivers);
        let ran = async {
            registration.create(&redis).await?;
            target::check_owner(&redis, &self.keys, owned).await?;
            self.ledger.begin(clock::now(), clock::wall_ms());
            let started_at = started_at();
            let course = Course::default();
            course.calm.cancel();
            self.load(&redis, None, &course, view, wishes).await?;
            let verdict = self.judge(&redis, &mut Evidence::default(), view).await?;
            Ok(self.result(verdict, Vec::new(), environment, started_at, Vec::new()))
        };
        let ran = tokio::select! {
            ran = ran => ran,
            () = wishes.abort.cancelled() => Err(aborted()),
        };
        view.show(phase("removing the endpoints"));
        let removed = registration.remove(&redis).await;
        Ok(Ran { result: ran.and_then(|result| removed.map(|()| result))?, logs: None })
    }

    fn receivers(&self, scratch: &TempDir) -> Result<Receivers> {
        let receivers =
            Receivers::start(self.population.clone(), self.ledger.clone(), scratch.path(), RECEIVER_THREADS)?;
        Ok(receivers)
    }

    async fn produce(&self, redis: &Redis, course: &Course, wishes: &Wishes) -> Result<()> {
        let (scenario, seed, held) = (&self.run.scenario, self.run.seed, course.held.clone());
        let producer = Producer {
            redis: redis.clone(),
            keys: self.keys.clone(),
            ledger: self.ledger.clone(),
            is_disturbed: Arc::new(move || held.disturbs_producers()),
            replicas: u8::from(scenario.herald.cluster),
        };
        let schedule = Schedule::try_new(&scenario.load, seed)?;
        let traffic = Traffic::new(self.population.clone(), &scenario.traffic, seed);
        producer.run(schedule, traffic, wishes.end.clone()).await.context("the producer failed")
    }

    /// The load, and the wait for what it leaves.
    async fn load(
        &self,
        redis: &Redis,
        house: Option<&House>,
        course: &Course,
        view: &View<'_>,
        wishes: &Wishes,
    ) -> Result<()> {
        let sent = CancellationToken::new();
        let sending = async {
            if !course.is_drain {
                self.produce(redis, course, wishes).await?;
            }
            sent.cancel();
            Ok(())
        };
        let watching = async {
            let mut waiting = Waiting::new(redis, &self.keys, &self.ledger);
            for glance in 0u64.. {
                let is_sent = sent.is_cancelled();
                if let Some(house) = house {
                    house.check().await?;
                }
                let is_over = waiting.look(is_sent && (course.is_drain || course.calm.is_cancelled())).await;
                if is_over || glance.is_multiple_of(GLANCES_PER_SHOWING) {
                    view.show(self.progress(is_sent, &waiting, &course.held));
                }
                if is_over {
                    break;
                }
                sleep(GLANCE).await;
            }
            Ok(())
        };
        tokio::try_join!(sending, watching).map(|_| ())
    }

    fn progress(&self, is_sent: bool, waiting: &Waiting<'_>, held: &Held) -> Progress {
        let glance = self.ledger.progress();
        let recent = |of: ledger::Recent| Recent { p50_us: of.p50_us, p99_us: of.p99_us, max_us: of.max_us };
        let profiles = self.population.profiles().iter().zip(&glance.profiles).zip(&self.endpoints_of);
        let profiles = profiles.map(|((profile, glance), endpoints)| ProfileProgress {
            name: profile.name().to_owned(),
            endpoints: *endpoints,
            acknowledged: glance.acknowledged,
            failed_attempts: glance.failed,
            unfinished: glance.outstanding,
            recent: glance.recent.map(recent),
        });
        let profiles = profiles.collect();
        Progress {
            phase: if is_sent { "waiting for what is unfinished" } else { "load" }.to_owned(),
            elapsed: self.elapsed(),
            planned: self.length,
            intended: glance.intended,
            sent: glance.sent,
            confirmed: glance.confirmed,
            acknowledged: glance.acknowledged,
            failed_attempts: glance.failed,
            dead: waiting.dead(),
            unfinished: waiting.unfinished(),
            suspicions: glance.suspicions,
            recent: glance.recent.map(recent),
            profiles,
            faults: held.names(),
        }
    }

    fn elapsed(&self) -> Duration {
        self.ledger.began().map_or(Duration::ZERO, |began| clock::now().saturating_duration_since(began))
    }

    async fn judge(&self, redis: &Redis, evidence: &mut Evidence, view: &View<'_>) -> Result<Verdict> {
        view.say(self.elapsed(), "judging".to_owned());
        evidence.ended_s = self.elapsed().as_secs_f64();
        waiting::gather(redis, &self.keys, self.ledger.began_wall_ms(), evidence).await?;
        Ok(judge(&self.ledger, evidence))
    }

    fn result(
        &self,
        verdict: Verdict,
        faults: Vec<FaultMark>,
        environment: Environment,
        started_at: String,
        processes: Vec<ProcessUse>,
    ) -> RunResult {
        let mut result = RunResult {
            schema: RESULT_SCHEMA,
            herald_version: env!("CARGO_PKG_VERSION").to_owned(),
            scenario: self.run.scenario.clone(),
            seed: self.run.seed,
            words: self.run.words.clone(),
            started_at,
            seconds: verdict.seconds,
            environment,
            generator: verdict.generator,
            deliveries: verdict.deliveries,
            latency: verdict.latency,
            answers: None,
            retry_lateness: verdict.retry_lateness,
            profiles: verdict.profiles,
            requests: Vec::new(),
            goodput: verdict.goodput,
            near_faults: verdict.near_faults,
            series: verdict.series,
            faults,
            missed: Vec::new(),
            promises: verdict.promises,
            thresholds: Vec::new(),
            processes,
        };
        result.thresholds = evaluate(&self.thresholds, &result);
        result
    }
}

/// How far the load and its faults are.
#[derive(Default)]
struct Course {
    held: Held,
    /// The workers are there.
    started: CancellationToken,
    /// Every fault is over.
    calm: CancellationToken,
    is_drain: bool,
}

fn aborted() -> anyhow::Error {
    anyhow::anyhow!("ended before the end: nothing was judged")
}

/// RFC 3339, now.
fn started_at() -> String {
    jiff::Timestamp::from_millisecond(clock::wall_ms() as i64).unwrap_or_default().to_string()
}

fn processes(before: (Uses, Usage), after: (Uses, Usage), acknowledged: u64) -> Vec<ProcessUse> {
    let used = |who: &str, before: Usage, after: Usage| {
        let cpu_seconds = after.cpu.saturating_sub(before.cpu).as_secs_f64();
        ProcessUse {
            who: who.to_owned(),
            cpu_seconds,
            cpu_us_per_delivery: (acknowledged > 0).then(|| cpu_seconds * 1e6 / acknowledged as f64),
            peak_rss_bytes: after.peak_rss_bytes,
        }
    };
    vec![
        used("herald", before.0.herald, after.0.herald),
        used("redis", before.0.redis, after.0.redis),
        used("harness", before.1, after.1),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_as_many_workers_as_the_plan_has_at_once() {
        let most = |texts: &[&str]| {
            let specs: Vec<_> = texts.iter().map(|text| text.parse().unwrap()).collect();
            joiners(&plan(&specs, LoadLength::Exactly(Duration::from_secs(60)), 1).unwrap())
        };
        assert_eq!(most(&["leave-worker@5s/5s*4", "join-worker@7s/5s*4"]), 0);
        assert_eq!(most(&["join-worker@3s", "leave-worker@5s/5s*4", "join-worker@7s/5s*4"]), 1);
        assert_eq!(most(&["join-worker@1s/1s*3", "kill-worker@9s"]), 3);
    }
}
