//! One run: endpoints and keys, the service and the workers, the load with its faults, the look at everything that is stored, and
//! the judge. Decides nothing that is judged.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use tokio::{task::JoinSet, time::sleep_until};
use tokio_util::sync::CancellationToken;

use super::{
    client::Client,
    figures::Figures,
    gather::gather,
    judge::{Case, judge},
    ledger::Ledger,
    merchants::Merchants,
    receiver::Receiver,
};
use crate::{
    api::access,
    clock,
    facts::{endpoint::Mark, id::AccountId},
    loadtest::{
        disturbance::{self, Held, Performed, Scene, perform},
        faults::Planned,
        house::House,
        judge::Verdict,
        ledger::times::micros,
        population::{Doors, Population},
        report::{live::Wishes, progress::Progress},
        result::{Latency, Requests},
        scenario::{Intents, Scenario},
        schedule::Schedule,
        view::{View, phase},
    },
    store::{
        api_keys::{ApiKey, ApiKeyStore},
        registry::RegistryStore,
    },
};

/// Requests under way at once. What more comes due waits, and counts as late.
const MAX_TOGETHER: usize = 2_048;

/// How long clients go on repeating after the load and its faults: longer than any process takes to come back.
const LAST_TRIES: Duration = Duration::from_secs(30);

/// Callbacks are waited for until none has come for so long.
const QUIET: Duration = Duration::from_secs(20);

/// The pause between two looks.
const GLANCE: Duration = Duration::from_millis(100);

/// What is told to the view between two looks at the house.
const GLANCES_PER_SHOWING: u64 = 5;

pub struct Storm<'a> {
    pub scenario: &'a Scenario,
    pub intents: &'a Intents,
    pub population: Arc<Population>,
    pub planned: &'a [Planned],
    pub seed: u64,
    pub house: &'a House,
}

pub struct Stormed {
    pub verdict: Verdict,
    pub performed: Performed,
    pub answers: Option<Latency>,
    pub requests: Vec<Requests>,
}

impl Storm<'_> {
    pub async fn run(&self, view: &View<'_>, wishes: &Wishes) -> Result<Stormed> {
        let ledger = Arc::new(Ledger::default());
        view.show(phase("registering the endpoints"));
        let receiver = Receiver::start(Arc::clone(&self.population), Arc::clone(&ledger)).await?;
        self.register(&receiver).await?;
        let keys = self.make_keys().await?;
        view.show(phase("starting the workers and the service"));
        self.house.start_workers().await?;
        let client = Client::new(self.house.start_services().await?);
        let (purchases, repeats) = (self.scenario.traffic.intents, self.intents.repeats);
        let merchants =
            Merchants::new(keys.clone(), purchases, client.clone(), Arc::clone(&ledger), self.seed, repeats);
        let (performed, intended) = self.load(Arc::new(merchants), &ledger, view, wishes).await?;
        view.say(Duration::from_micros(ledger.now_us()), "looking at what is stored".to_owned());
        let accounts = (0..self.population.accounts()).map(|account| self.population.account_id(account)).collect();
        let stored = self.while_the_house_stands(gather(&client, &keys)).await?;
        let fan_out = self.population.fan_out();
        let mut case = Case { stored, faults: performed.happened.clone(), accounts, fan_out, ..Case::default() };
        self.await_callbacks(&mut case, &ledger, view).await?;
        view.say(Duration::from_micros(ledger.now_us()), "judging".to_owned());
        let Figures { generator, deliveries, latency, answers, requests, series, seconds } =
            Figures::of(&case, intended);
        let verdict = Verdict {
            seconds,
            generator,
            deliveries,
            latency,
            retry_lateness: None,
            profiles: Vec::new(),
            goodput: Vec::new(),
            near_faults: Vec::new(),
            series,
            promises: judge(&case),
        };
        Ok(Stormed { verdict, performed, answers, requests })
    }

    async fn register(&self, receiver: &Receiver) -> Result<()> {
        let doors = Doors { plain: receiver.address, misnamed: receiver.address, own: Vec::new() };
        let now_ms = clock::wall_ms();
        let endpoints = self.population.endpoints(0..self.population.len(), &doors, now_ms).collect();
        let mark = Mark { by: "loadtest".to_owned(), why: "the endpoints of a load test".to_owned(), at_ms: now_ms };
        let mut store = RegistryStore::connect(self.house.redis()).await?;
        store.import(endpoints, None, &mark).await.context("cannot register the endpoints")?;
        Ok(())
    }

    /// One for each account, as `herald intents key create` makes them.
    async fn make_keys(&self) -> Result<Vec<String>> {
        let mut store = ApiKeyStore::connect(self.house.redis()).await?;
        let mut keys = Vec::new();
        for account in 0..self.population.accounts() {
            let account = AccountId::new(&self.population.account_id(account)).context("an account without a name")?;
            let kept = ApiKey { account, is_read_only: false, name: String::new(), created_at_ms: clock::wall_ms() };
            let key = access::new_key();
            store.put(&access::hash(&key), &kept).await?;
            keys.push(key);
        }
        Ok(keys)
    }

    /// The load with its faults. Says also how many requests the schedule had.
    async fn load(
        &self,
        merchants: Arc<Merchants>,
        ledger: &Ledger,
        view: &View<'_>,
        wishes: &Wishes,
    ) -> Result<(Performed, u64)> {
        let began = ledger.begin();
        let (held, started, ended) = (Held::default(), CancellationToken::new(), wishes.end.child_token());
        started.cancel();
        let course = disturbance::Course { began, started: &started, early: &ended, interrupted: &wishes.end };
        let scene = Scene { house: self.house, urls: None };
        let disturbing = perform(&scene, self.planned, &course, &held, |at, text| view.say(at, text));
        let sending = async {
            let mut underway = JoinSet::new();
            let intended = self.send(&merchants, ledger, &mut underway, wishes).await?;
            ended.cancel();
            anyhow::Ok((underway, intended))
        };
        let running = async {
            let (performed, (mut underway, intended)) = tokio::try_join!(disturbing, sending)?;
            // What nobody could answer stays unknown.
            let joining = async { while underway.join_next().await.is_some() {} };
            if tokio::time::timeout(LAST_TRIES, joining).await.is_err() {
                merchants.end.cancel();
                while underway.join_next().await.is_some() {}
            }
            anyhow::Ok((performed, intended))
        };
        let watching = async {
            for glance in 0u64.. {
                self.house.check().await?;
                if glance.is_multiple_of(GLANCES_PER_SHOWING) {
                    view.show(self.progress("load", ledger, 0, held.names()));
                }
                tokio::time::sleep(GLANCE).await;
            }
            anyhow::Ok(())
        };
        tokio::select! {
            ran = running => ran,
            failed = watching => failed.and_then(|()| anyhow::bail!("nobody watches any more")),
        }
    }

    async fn send(
        &self,
        merchants: &Arc<Merchants>,
        ledger: &Ledger,
        underway: &mut JoinSet<()>,
        wishes: &Wishes,
    ) -> Result<u64> {
        let began = ledger.begin();
        let mut number = 0;
        for offset in Schedule::try_new(&self.scenario.load, self.seed)? {
            let due = sleep_until((began + offset).into());
            if wishes.end.run_until_cancelled(due).await.is_none() {
                break;
            }
            while underway.len() >= MAX_TOGETHER || underway.try_join_next().is_some() {
                if underway.len() >= MAX_TOGETHER {
                    underway.join_next().await;
                }
            }
            let intended_us = micros(offset);
            ledger.sent(intended_us, ledger.now_us().saturating_sub(intended_us));
            let merchants = Arc::clone(merchants);
            underway.spawn(async move { merchants.act(number, intended_us).await });
            number += 1;
        }
        Ok(number)
    }

    /// Until each event that is stored has arrived, or none arrives any more.
    async fn await_callbacks(&self, case: &mut Case, ledger: &Ledger, view: &View<'_>) -> Result<()> {
        let (mut seen, mut since) = (0, clock::now());
        for glance in 0u64.. {
            self.house.check().await?;
            case.books = ledger.read();
            let missing = Figures::of(case, 0).deliveries.unfinished;
            if glance.is_multiple_of(GLANCES_PER_SHOWING) {
                view.show(self.progress("waiting for the callbacks", ledger, missing, Vec::new()));
            }
            if case.books.arrivals.len() > seen {
                (seen, since) = (case.books.arrivals.len(), clock::now());
            }
            if missing == 0 || clock::now().saturating_duration_since(since) > QUIET {
                break;
            }
            tokio::time::sleep(GLANCE).await;
        }
        Ok(())
    }

    async fn while_the_house_stands<T>(&self, what: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            done = what => done,
            failure = self.house.failure() => Err(failure),
        }
    }

    fn progress(&self, name: &str, ledger: &Ledger, unfinished: u64, faults: Vec<String>) -> Progress {
        let [sent, answered, acknowledged, failed_attempts] = ledger.progress();
        Progress {
            elapsed: Duration::from_micros(ledger.now_us()),
            planned: Some(self.scenario.length()),
            intended: sent,
            sent,
            confirmed: answered,
            acknowledged,
            failed_attempts,
            unfinished,
            faults,
            ..phase(name)
        }
    }
}
