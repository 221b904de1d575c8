//! The store as the service meets it in the simulator: the model of the scripts behind a network that loses and delays, in virtual
//! time. And ways to do it wrong at this boundary, which the simulator must notice; the product has no switch for them.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use herald::{
    facts::id::{AccountId, EntryId, IntentId},
    intents::records::Records,
    store::{
        error::StoreError,
        intents::{ClockChange, ClockState, Commit, Committed, Due, DueIntents, Found, KeyOf, Loaded, Order, Stored},
    },
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::time::{Instant, sleep};

use super::model::Model;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    OperationsForgotten,
    RevisionsIgnored,
    DeadlinesIgnored,
    RefusedChangesTold,
    KeysIgnored,
    DoubtTakenForRefusal,
    AdvancesForgotten,
    EventsLost,
}

impl Mutation {
    pub const ALL: [Self; 8] = [
        Self::OperationsForgotten,
        Self::RevisionsIgnored,
        Self::DeadlinesIgnored,
        Self::RefusedChangesTold,
        Self::KeysIgnored,
        Self::DoubtTakenForRefusal,
        Self::AdvancesForgotten,
        Self::EventsLost,
    ];
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Done,
    /// It never gets there.
    CallLost,
    AnswerLost,
    /// The client has given up when it is carried out.
    DoneLater,
    /// Redis has no memory left.
    Full,
}

/// How often each fate came, by its place in [`Tally::NAMES`].
#[derive(Debug, Default, Clone)]
pub struct Tally {
    pub calls_lost: u64,
    pub answers_lost: u64,
    pub done_later: u64,
    pub refused: u64,
}

pub struct Redis {
    pub model: Model,
    rng: StdRng,
    seen_at: Instant,
    pub is_disturbed: bool,
    pub tally: Tally,
    mutation: Option<Mutation>,
}

impl Redis {
    fn draw(&mut self, is_write: bool) -> (Duration, Fate, Duration) {
        let moment = |rng: &mut StdRng| Duration::from_micros(rng.random_range(50..5_000));
        let (there, back) = (moment(&mut self.rng), moment(&mut self.rng));
        if !self.is_disturbed {
            return (there, Fate::Done, back);
        }
        let fate = match self.rng.random_range(0..100) {
            0..4 => Fate::CallLost,
            4..12 => Fate::AnswerLost,
            12..15 if is_write => Fate::DoneLater,
            15..18 if is_write => Fate::Full,
            _ => Fate::Done,
        };
        match fate {
            Fate::CallLost => self.tally.calls_lost += 1,
            Fate::AnswerLost => self.tally.answers_lost += 1,
            Fate::DoneLater => self.tally.done_later += 1,
            Fate::Full => self.tally.refused += 1,
            Fate::Done => {}
        }
        // Some answers come so late that much has happened since.
        let back = if self.rng.random_bool(0.03) { Duration::from_secs(2) } else { back };
        (there, fate, back)
    }

    /// As it is now: its clock goes on with the virtual time.
    pub fn now(&mut self) -> &mut Model {
        let now = Instant::now();
        self.model.pass((now - self.seen_at).as_micros() as i64);
        self.seen_at = now;
        &mut self.model
    }

    fn commit(&mut self, commit: &Commit<'_>) -> Committed {
        let mutation = self.mutation;
        let model = self.now();
        let mut commit = commit.clone();
        match mutation {
            Some(Mutation::RevisionsIgnored) => {
                commit.expected_revision = model.known(commit.id).map_or(0, |known| known.revision);
            }
            Some(Mutation::DeadlinesIgnored) => (commit.before, commit.from) = (None, None),
            Some(Mutation::KeysIgnored) => commit.key = None,
            Some(Mutation::EventsLost) if commit.status == "Captured" => commit.event = None,
            _ => {}
        }
        let entry = commit.event.as_ref().map(|_| EntryId { ms: model.told().len() as u64 + 1, seq: 0 });
        let committed = model.commit(&commit, entry);
        match (mutation, committed) {
            (Some(Mutation::RefusedChangesTold), Committed::Stale { now, stored }) => {
                model.tell(&commit);
                Committed::Stale { now, stored }
            }
            (Some(Mutation::OperationsForgotten), Committed::Stale { now, stored }) => {
                Committed::Stale { now, stored: stored.map(without_operations) }
            }
            (_, committed) => committed,
        }
    }
}

fn without_operations(stored: Stored) -> Stored {
    let mut json: serde_json::Value = serde_json::from_slice(&stored.json).unwrap();
    json["op"] = serde_json::json!([]);
    Stored { json: json.to_string().into(), ..stored }
}

/// All processes share one Redis.
#[derive(Clone)]
pub struct Simulated(Arc<Mutex<Redis>>);

impl Simulated {
    pub fn new(seed: u64, at: i64, mutation: Option<Mutation>) -> Self {
        let redis = Redis {
            model: Model::new(at),
            rng: StdRng::seed_from_u64(seed),
            seen_at: Instant::now(),
            is_disturbed: true,
            tally: Tally::default(),
            mutation,
        };
        Self(Arc::new(Mutex::new(redis)))
    }

    pub fn redis(&self) -> MutexGuard<'_, Redis> {
        self.0.lock().unwrap()
    }

    /// What a restart of Redis, or a crash of whoever advances, leaves behind.
    pub fn crashed(&self) {
        let mut redis = self.redis();
        if redis.mutation == Some(Mutation::AdvancesForgotten) {
            redis.model.forget_advance();
        }
    }

    fn lost(&self) -> StoreError {
        let (subject, cause) = ("ask".to_owned(), "its answer is lost".to_owned());
        match self.redis().mutation {
            Some(Mutation::DoubtTakenForRefusal) => StoreError::OutOfMemory { subject, cause },
            _ => StoreError::Unavailable { subject, cause, remedy: "see that it runs" },
        }
    }

    async fn call<T>(
        &self,
        is_write: bool,
        what: impl FnOnce(&mut Redis) -> T + Send,
        later: impl FnOnce(Self) + Send,
    ) -> Result<T, StoreError> {
        let (there, fate, back) = self.redis().draw(is_write);
        sleep(there).await;
        let answer = match fate {
            Fate::CallLost => None,
            Fate::DoneLater => {
                later(self.clone());
                None
            }
            Fate::Full => {
                let (subject, cause) = ("change".to_owned(), "OOM".to_owned());
                return Err(StoreError::OutOfMemory { subject, cause });
            }
            Fate::Done | Fate::AnswerLost => Some(what(&mut self.redis())),
        };
        sleep(back).await;
        answer.filter(|_| fate == Fate::Done).ok_or_else(|| self.lost())
    }

    async fn read<T>(&self, what: impl FnOnce(&mut Redis) -> T + Send) -> Result<T, StoreError> {
        self.call(false, what, |_| ()).await
    }
}

impl Records for Simulated {
    async fn has_room(&self) -> Result<bool, StoreError> {
        Ok(true)
    }

    async fn load(&self, id: &IntentId, key: Option<&str>) -> Result<Loaded, StoreError> {
        self.read(|redis| {
            let mut loaded = redis.now().load(id, key.unwrap_or_default());
            if redis.mutation == Some(Mutation::KeysIgnored) {
                loaded.repeated = None;
            }
            loaded
        })
        .await
    }

    async fn commit(&self, commit: &Commit<'_>) -> Result<Committed, StoreError> {
        let kept = Kept::of(commit);
        let later = move |this: Self| {
            let after = Duration::from_millis(this.redis().rng.random_range(1..1_500));
            tokio::spawn(async move {
                sleep(after).await;
                this.redis().commit(&kept.commit());
            });
        };
        self.call(true, |redis| redis.commit(commit), later).await
    }

    async fn due(&self, _: f64) -> Result<DueIntents, StoreError> {
        self.read(|redis| {
            let (now, target, next, found) = redis.now().due();
            let found = found.into_iter().map(|(id, stored)| (id, Ok(stored))).collect();
            let speed = if target.is_some() { 0.0 } else { 1.0 };
            DueIntents { now, speed, target, next, found }
        })
        .await
    }

    async fn forget(
        &self,
        id: &IntentId,
        account: &AccountId,
        _: &str,
        revision: u64,
        numbers: &[u64],
    ) -> Result<bool, StoreError> {
        self.read(|redis| redis.now().forget(id, account, revision, numbers)).await
    }

    async fn put_off(&self, id: &IntentId, to: i64) -> Result<(), StoreError> {
        self.read(|redis| redis.now().put_off(id, to)).await
    }

    async fn search(
        &self,
        account: &AccountId,
        _: &[&str],
        range: (i64, i64),
        order: Order,
        most: usize,
    ) -> Result<(Vec<Found>, bool), StoreError> {
        let rows = self.read(|redis| redis.now().search(account, range, order, most)).await?;
        let found = rows.0.into_iter().map(|(created_at, id, stored)| Found { created_at, id, stored });
        Ok((found.collect(), rows.1))
    }

    async fn clock(&self, change: ClockChange) -> Result<ClockState, StoreError> {
        self.read(|redis| redis.now().clock(change)).await
    }
}

/// A commit that outlives its caller.
struct Kept {
    id: IntentId,
    account: AccountId,
    expected_revision: u64,
    before: Option<i64>,
    from: Option<i64>,
    json: String,
    due: Due,
    created_at: Option<i64>,
    status: String,
    status_before: Option<String>,
    event: Option<(String, String)>,
    key: Option<(String, String, u64)>,
}

impl Kept {
    fn of(commit: &Commit<'_>) -> Self {
        let commit = commit.clone();
        Self {
            id: commit.id.clone(),
            account: commit.account.clone(),
            expected_revision: commit.expected_revision,
            before: commit.before,
            from: commit.from,
            json: commit.json,
            due: commit.due,
            created_at: commit.created_at,
            status: commit.status,
            status_before: commit.status_before,
            event: commit.event,
            key: commit.key.map(|key| (key.hash.to_owned(), key.request.to_owned(), key.keep_ms)),
        }
    }

    fn commit(&self) -> Commit<'_> {
        Commit {
            id: &self.id,
            account: &self.account,
            expected_revision: self.expected_revision,
            before: self.before,
            from: self.from,
            json: self.json.clone(),
            due: self.due,
            created_at: self.created_at,
            status: self.status.clone(),
            status_before: self.status_before.clone(),
            event: self.event.clone(),
            event_id: None,
            key: self.key.as_ref().map(|(hash, request, keep_ms)| KeyOf { hash, request, keep_ms: *keep_ms }),
        }
    }
}
