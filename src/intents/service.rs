//! Carries commands out: looks, decides, commits, and decides again if somebody else was quicker. Whatever this process
//! loses on the way, an answer or its life, nothing is done twice and nothing is half done: a change is one script, and is
//! recognised by its operation.

use std::{sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::future::join_all;
use jiff::tz::TimeZone;
use sha2::{Digest, Sha256};
use tokio::time::sleep;
use tracing::{info, warn};

use super::{
    decide::{self, Change, Command, Fresh},
    details::Details,
    intent::{ID_PREFIX, IdempotencyKey, Intent, MAX_OPERATIONS, RecordError},
    records::{Records, RedisRecords},
    refusal::Refusal,
    requests::{self, Fault, SearchPaymentIntentRequest},
    stamp::{MINUTE, SECOND, Stamp},
};
use crate::{
    facts::{
        event::PaymentStatus,
        id::{AccountId, EventId, IntentId},
    },
    store::{
        connection::Redis,
        error::StoreError,
        intents::{
            ClockChange, ClockState, Commit, Committed, Due, DueIntents, Found, KeyOf, Loaded, MAX_PAGE, Order,
            Repeated, Stored,
        },
        keys::PartitionKeys,
    },
    telemetry::intents::{Ended, IntentMetrics},
};

/// How often a command is decided anew because others change the same intent.
const MAX_ROUNDS: usize = 16;

/// How often a command is tried again because Redis did not answer, and after how long.
const MAX_RECONNECTS: usize = 3;
const RECONNECT_PAUSE: Duration = Duration::from_millis(200);

/// For how long an idempotency key of a creation, or of a change of amount, is kept.
const KEY_KEPT_MS: u64 = 24 * 60 * 60 * 1000;

/// How long the scheduler sleeps at most: another process may have made an intent that is due earlier.
const MAX_SLEEP: Duration = Duration::from_secs(1);

/// For how long, by the intents' clock, what cannot be done now is put off. An advance over a week passes by it 168 times; a
/// newer Herald, which can, is late by no more.
const PUT_OFF: i64 = 60 * MINUTE;

/// Where whoever only asks for the time looks among what is due.
const OLDEST: f64 = 0.0;

/// How long it waits after Redis failed it.
const FAILED_SLEEP: Duration = Duration::from_secs(1);

#[derive(Debug, Clone)]
pub struct Settings {
    /// For how long an intent that nothing happens to any more is kept, in microseconds; 0 is for ever.
    pub retain: i64,
    /// Where a day begins and ends.
    pub zone: TimeZone,
}

#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    #[error("there is no such payment intent")]
    NotFound,
    #[error("{}", .0.sentence())]
    Refused(Refusal),
    #[error("the request has faults")]
    Faults(Vec<Fault>),
    #[error("the payment intent {0} cannot be read: {1}")]
    Unreadable(IntentId, RecordError),
    /// Nothing has happened in either.
    #[error("payment intents take up nine tenths of what Redis may use")]
    Full,
    #[error("others change this payment intent all the time: try again")]
    Busy,
    /// It cannot be known whether anything has happened.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ServiceError {
    fn ended(&self) -> Ended {
        match self {
            Self::NotFound | Self::Refused(_) | Self::Faults(_) => Ended::Refused,
            Self::Full | Self::Busy => Ended::Unavailable,
            Self::Store(StoreError::Unavailable { .. } | StoreError::OutOfMemory { .. }) => Ended::Unavailable,
            Self::Unreadable(..) | Self::Store(_) => Ended::Failed,
        }
    }
}

/// A request that its client may repeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestKey {
    /// Hash of the key and of what it is for.
    hash: String,
    /// Hash of the request's body.
    request: String,
}

impl RequestKey {
    /// `scope` is the operation, and the intent or account that it belongs to. `body` is the JSON as a value, so that the
    /// order of members does not matter.
    pub fn new(scope: &str, key: &str, body: &serde_json::Value) -> Self {
        Self { hash: digest(&[scope, key]), request: digest(&[&body.to_string()]) }
    }

    /// As a record keeps it.
    pub fn kept(&self) -> IdempotencyKey {
        IdempotencyKey { key: self.hash.clone(), body: self.request.clone() }
    }

    fn of(&self) -> KeyOf<'_> {
        KeyOf { hash: &self.hash, request: &self.request, keep_ms: KEY_KEPT_MS }
    }

    /// Whether this is the request that the key was used for before.
    fn repeats(&self, used: &IdempotencyKey) -> Option<Result<(), Refusal>> {
        (self.hash == used.key).then(|| (self.request == used.body).then_some(()).ok_or(Refusal::KeyReused))
    }
}

/// 128 bits are enough to be unique.
fn digest(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    URL_SAFE_NO_PAD.encode(&hash.finalize()[..16])
}

/// 128 random bits, as Dojo's ids have them.
pub fn random_part() -> String {
    URL_SAFE_NO_PAD.encode(rand::random::<[u8; 16]>())
}

fn fresh() -> Fresh {
    let event = EventId::new(&format!("evt_{}", random_part())).expect("base64url has only what ids have");
    Fresh { operation: URL_SAFE_NO_PAD.encode(rand::random::<[u8; 8]>()), event }
}

#[derive(Debug, Clone)]
pub struct Page {
    pub intents: Vec<Intent>,
    /// Where to go on for newer ones than these, and for older ones; none where there are no more. The intent that was made
    /// then may not be among these.
    pub newer: Option<Stamp>,
    pub older: Option<Stamp>,
}

/// Which part of an account's intents: before or after one that was made at this instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Newest,
    NewerThan(Stamp),
    OlderThan(Stamp),
}

/// The payment intents of one stream. Cheap to clone.
#[derive(Clone)]
pub struct Service<R = RedisRecords> {
    pub(super) records: R,
    settings: Arc<Settings>,
    metrics: IntentMetrics,
}

impl Service {
    pub fn new(redis: Redis, keys: PartitionKeys, settings: Settings) -> Self {
        Self::on(RedisRecords::new(redis, keys), settings)
    }

    /// Forgets every intent of an account that there is now, with its feed, and says how many. What is in the stream is still
    /// delivered, and the numbers of the account's events go on.
    pub async fn reset(&self, account: &AccountId) -> Result<usize, ServiceError> {
        let statuses = PaymentStatus::ALL.map(|status| status.to_string());
        let (mut until, mut removed) = (None, 0);
        loop {
            let page = self.records.with(async |store| store.reset(account, &statuses, until).await).await?;
            until = Some(page.until);
            removed += page.intents;
            if !page.has_more {
                return Ok(removed);
            }
        }
    }
}

impl<R: Records> Service<R> {
    pub fn on(records: R, settings: Settings) -> Self {
        Self { records, settings: Arc::new(settings), metrics: IntentMetrics::default() }
    }

    /// The same service, whose work somebody counts.
    pub fn counted_by(self, metrics: IntentMetrics) -> Self {
        Self { metrics, ..self }
    }

    pub fn zone(&self) -> &TimeZone {
        &self.settings.zone
    }

    fn count(&self, carried: Result<(Intent, Ended), ServiceError>) -> Result<Intent, ServiceError> {
        self.metrics.ended(carried.as_ref().map_or_else(ServiceError::ended, |(_, ended)| *ended));
        carried.map(|(intent, _)| intent)
    }

    /// Creates an intent. With a key that was used before, the one that it created then.
    pub async fn create(
        &self,
        account: &AccountId,
        details: Details,
        key: Option<&RequestKey>,
    ) -> Result<Intent, ServiceError> {
        self.count(self.make(account, details, key).await)
    }

    async fn make(
        &self,
        account: &AccountId,
        details: Details,
        key: Option<&RequestKey>,
    ) -> Result<(Intent, Ended), ServiceError> {
        let id = IntentId::new(&format!("{ID_PREFIX}{}", random_part())).expect("base64url has only what ids have");
        let has_room = self.records.has_room().await?;
        // The commit itself finds a key that was used. A look costs as much again, and only these need what it tells.
        let looked = if details.expire_at.is_some() || !has_room { Some(self.load(&id, key).await?) } else { None };
        if let Some(repeated) = looked.as_ref().and_then(|loaded| loaded.repeated.as_ref()) {
            return self.repeated(repeated, key);
        }
        let faults = requests::faults_of_details(&details, Stamp(looked.map_or(0, |loaded| loaded.now)));
        if !faults.is_empty() {
            return Err(ServiceError::Faults(faults));
        }
        if !has_room {
            return Err(ServiceError::Full);
        }
        let secret = details.generate_remote_token.then(client_secret);
        let change = decide::create(Intent::new(id, account.clone(), details), secret, fresh());
        match self.commit_surely(&change, None, None, key).await? {
            Attempt::Done(intent) => Ok((*intent, Ended::Done)),
            Attempt::Repeated(repeated) => self.repeated(&repeated, key),
            Attempt::Stale(_) | Attempt::Late => Err(ServiceError::Busy),
        }
    }

    /// What is stored, after whatever its time has come for.
    pub async fn get(&self, account: &AccountId, id: &IntentId) -> Result<Intent, ServiceError> {
        Ok(self.look(id, Some(account)).await?.0)
    }

    /// The same, and what time it is there.
    pub async fn get_with_time(&self, account: &AccountId, id: &IntentId) -> Result<(Intent, Stamp), ServiceError> {
        self.look(id, Some(account)).await
    }

    /// Whosever it is, and the time there: for the customer, whose id of the intent is all that they have.
    pub async fn find(&self, id: &IntentId) -> Result<(Intent, Stamp), ServiceError> {
        self.look(id, None).await
    }

    async fn look(&self, id: &IntentId, account: Option<&AccountId>) -> Result<(Intent, Stamp), ServiceError> {
        let mut loaded = self.load(id, None).await?;
        for _ in 0..MAX_ROUNDS {
            let intent = match account {
                Some(account) => self.own(account, id, &loaded)?,
                None => stored(id, &loaded)?,
            };
            match self.apply_deadline(&intent, loaded.now).await? {
                None => return Ok((intent, Stamp(loaded.now))),
                Some(next) => loaded = next,
            }
        }
        Err(ServiceError::Busy)
    }

    /// What is stored, whosever it is, and what time it is in the intents' world. For whoever only looks: a deadline that has
    /// come is left to others.
    pub async fn inspect(&self, id: &IntentId) -> Result<(Intent, Stamp), ServiceError> {
        let loaded = self.load(id, None).await?;
        Ok((stored(id, &loaded)?, Stamp(loaded.now)))
    }

    /// Carries a command out. `key` is kept beside the intent; keys that the intent itself remembers come in the command.
    pub async fn change(
        &self,
        account: &AccountId,
        id: &IntentId,
        command: &Command,
        key: Option<&RequestKey>,
    ) -> Result<Intent, ServiceError> {
        self.count(self.carry_out(account, id, command, key).await)
    }

    async fn carry_out(
        &self,
        account: &AccountId,
        id: &IntentId,
        command: &Command,
        key: Option<&RequestKey>,
    ) -> Result<(Intent, Ended), ServiceError> {
        let fresh = fresh();
        let mut loaded = self.load(id, key).await?;
        for _ in 0..MAX_ROUNDS {
            let intent = self.own(account, id, &loaded)?;
            if let Some(next) = self.apply_deadline(&intent, loaded.now).await? {
                loaded = Loaded { repeated: loaded.repeated, ..next };
                continue;
            }
            if let Some(repeated) = &loaded.repeated {
                return self.repeated(repeated, key);
            }
            if was_done(&intent, command).map_err(ServiceError::Refused)? {
                return Ok((intent, Ended::Repeated));
            }
            let now = Stamp(loaded.now);
            let change = decide::decide(&intent, command, now, fresh.clone()).map_err(ServiceError::Refused)?;
            match self.commit_surely(&change, Some(&intent), None, key).await? {
                Attempt::Done(intent) => return Ok((*intent, Ended::Done)),
                Attempt::Repeated(repeated) => return self.repeated(&repeated, key),
                Attempt::Stale(next) => {
                    self.metrics.conflict();
                    loaded = next;
                }
                Attempt::Late => loaded = self.load(id, key).await?,
            }
        }
        Err(ServiceError::Busy)
    }

    /// A page of an account's intents, newest first, as they are by now: what is due is applied before it is looked for, so that
    /// it is found by the status that it has then. A page can be shorter than `limit` although there are more.
    pub async fn search(
        &self,
        account: &AccountId,
        request: &SearchPaymentIntentRequest,
        part: Part,
        limit: usize,
    ) -> Result<Page, ServiceError> {
        let is_wanted = |status: &PaymentStatus| match request.statuses.as_deref() {
            None | Some([]) => true,
            Some(some) => some.contains(status),
        };
        let statuses: Vec<_> =
            PaymentStatus::ALL.iter().filter(|status| is_wanted(status)).map(ToString::to_string).collect();
        let statuses: Vec<_> = statuses.iter().map(String::as_str).collect();
        let due = self.records.due(OLDEST).await?;
        if let Err(error) = self.fire_all(&due).await {
            // They may be others'. What is due on this page itself must be applied below.
            warn!(%error, "a search cannot fire all deadlines of payment intents");
        }
        let (from, to) = (request.start_date.unwrap_or(Stamp(0)), request.end_date.unwrap_or(Stamp::MAX));
        let (from, to, order) = match part {
            Part::Newest => (from, to, Order::NewestFirst),
            Part::OlderThan(at) => (from, to.min(Stamp(at.0 - 1)), Order::NewestFirst),
            Part::NewerThan(at) => (from.max(Stamp(at.0 + 1)), to, Order::OldestFirst),
        };
        let range = (from.0, to.0);
        let most = limit.min(MAX_PAGE);
        let (mut found, has_more) = self.records.search(account, &statuses, range, order, most).await?;
        if order == Order::OldestFirst {
            found.reverse();
        }
        let (has_newer, has_older) = match part {
            Part::Newest => (false, has_more),
            Part::OlderThan(_) => (true, has_more),
            Part::NewerThan(_) => (has_more, true),
        };
        let at = |found: Option<&Found>| found.map(|found| Stamp(found.created_at));
        let newer = at(found.first()).filter(|_| has_newer);
        let older = at(found.last()).filter(|_| has_older);
        let shown = join_all(found.into_iter().map(|found| self.as_it_is(found, Stamp(due.now)))).await;
        let shown = shown.into_iter().collect::<Result<Vec<_>, _>>()?;
        let intents = shown.into_iter().flatten().filter(|intent| is_wanted(&intent.status)).collect();
        Ok(Page { intents, newer, older })
    }

    /// What was found, after whatever its time has come for; none where it cannot be told or is forgotten meanwhile.
    async fn as_it_is(&self, found: Found, now: Stamp) -> Result<Option<Intent>, ServiceError> {
        let Found { id, stored: Some(stored), .. } = found else { return Ok(None) };
        let intent = match read(&id, &stored) {
            Ok(intent) => intent,
            Err(error) => {
                warn!(intent = %id, %error, "cannot be read");
                return Ok(None);
            }
        };
        if intent.deadline().is_none_or(|deadline| deadline.at() > now) {
            return Ok(Some(intent));
        }
        match self.find(&id).await {
            Ok((intent, _)) => Ok(Some(intent)),
            Err(ServiceError::NotFound) => Ok(None),
            Err(error @ (ServiceError::Store(_) | ServiceError::Busy)) => Err(error),
            Err(error) => {
                warn!(intent = %id, %error, "a payment intent whose time has come is left out of a search");
                Ok(None)
            }
        }
    }

    /// What time it is in the intents' world.
    pub async fn now(&self) -> Result<Stamp, ServiceError> {
        let due = self.records.due(OLDEST).await?;
        Ok(Stamp(due.now))
    }

    /// What time it is there, and how fast it passes; 0 while it stands still.
    pub async fn clock(&self) -> Result<(Stamp, f64), ServiceError> {
        let due = self.records.due(OLDEST).await?;
        Ok((Stamp(due.now), due.speed))
    }

    /// Lets the clock run at another speed; 0 stops it.
    pub async fn set_speed(&self, speed: f64) -> Result<ClockState, ServiceError> {
        Ok(self.records.clock(ClockChange::Speed(speed)).await?)
    }

    /// Moves the clock, and answers when everything that is due until then has happened.
    pub async fn advance(&self, change: ClockChange) -> Result<ClockState, ServiceError> {
        let begun = self.records.clock(change).await?;
        match begun {
            ClockState::UnderWay { .. } => self.finish_advance().await,
            refused => Ok(refused),
        }
    }

    async fn finish_advance(&self) -> Result<ClockState, ServiceError> {
        loop {
            while self.fire_due().await?.1 > 0 {}
            match self.records.clock(ClockChange::Step).await? {
                ClockState::UnderWay { .. } => {}
                done => return Ok(done),
            }
        }
    }

    /// Fires deadlines as they come, until it is dropped. Any number of processes may do so at once. Nobody depends on it: a
    /// deadline that has passed is applied by whoever looks at its intent.
    pub async fn run_scheduler(&self) {
        loop {
            let pause = match self.fire_due().await {
                Ok((_, fired)) if fired > 0 => Duration::ZERO,
                Ok((Next::Advance, _)) => match self.finish_advance().await {
                    Ok(_) => Duration::ZERO,
                    Err(_) => FAILED_SLEEP,
                },
                Ok((Next::After(pause), _)) => pause,
                Err(error) => {
                    warn!(%error, "cannot fire the deadlines of payment intents");
                    FAILED_SLEEP
                }
            };
            sleep(pause).await;
        }
    }

    /// Fires a page of what is due; says how many it took further.
    async fn fire_due(&self) -> Result<(Next, usize), ServiceError> {
        // Others may do the same at the same time.
        let due = self.records.due(rand::random()).await?;
        let overdue = due.next.map_or(0, |at| (due.now - at).max(0) / SECOND);
        self.metrics.set_overdue(overdue.unsigned_abs());
        let fired = self.fire_all(&due).await?;
        let next = match (due.target, due.next) {
            (Some(_), _) => Next::Advance,
            (None, Some(at)) if due.speed > 0.0 => {
                let micros = (at - due.now).max(0) as f64 / due.speed;
                Next::After(Duration::from_micros(micros as u64).clamp(Duration::from_millis(1), MAX_SLEEP))
            }
            (None, _) => Next::After(MAX_SLEEP),
        };
        Ok((next, fired))
    }

    async fn fire_all(&self, due: &DueIntents) -> Result<usize, StoreError> {
        let fired = join_all(due.found.iter().map(|(id, stored)| self.fire(id, stored, due.now))).await;
        Ok(fired.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().filter(|fired| *fired).count())
    }

    /// Whether it is done with. What cannot be done now must not stand before all others, so it is put off.
    async fn fire(
        &self,
        id: &IntentId,
        stored: &Result<Option<Stored>, StoreError>,
        now: i64,
    ) -> Result<bool, StoreError> {
        let again_at = match self.take_further(id, stored, now).await {
            Ok(Fired::Done) => return Ok(true),
            Ok(Fired::ByOther) => return Ok(false),
            Ok(Fired::NotDue(at)) => at.0.max(now + PUT_OFF),
            Err(ServiceError::Store(error @ (StoreError::Unavailable { .. } | StoreError::OutOfMemory { .. }))) => {
                return Err(error);
            }
            Err(error) => {
                warn!(intent = %id, %error, "a payment intent whose time has come is put off for an hour");
                now + PUT_OFF
            }
        };
        self.records.put_off(id, again_at).await?;
        Ok(false)
    }

    async fn take_further(
        &self,
        id: &IntentId,
        stored: &Result<Option<Stored>, StoreError>,
        now: i64,
    ) -> Result<Fired, ServiceError> {
        let intent = match stored.clone()? {
            Some(stored) => read(id, &stored).map_err(|error| ServiceError::Unreadable(id.clone(), error))?,
            // Only its deadline is left.
            None => {
                let nobody = AccountId::new("acc").expect("it is an id");
                self.records.forget(id, &nobody, "Canceled", 0, &[]).await?;
                return Ok(Fired::Done);
            }
        };
        if let Some(deadline) = intent.deadline() {
            let is_fired = self.fire_deadline(&intent, now).await?;
            return Ok(if is_fired { Fired::Done } else { Fired::NotDue(deadline.at()) });
        }
        let status = intent.status.to_string();
        let numbers: Vec<u64> = intent.history.iter().map(|told| told.number).filter(|number| *number > 0).collect();
        let is_forgotten = self.records.forget(id, &intent.account, &status, intent.revision, &numbers).await?;
        Ok(if is_forgotten { Fired::Done } else { Fired::ByOther })
    }

    /// What there is after the deadline that has come, or nothing if none has.
    async fn apply_deadline(&self, intent: &Intent, now: i64) -> Result<Option<Loaded>, ServiceError> {
        if !self.fire_deadline(intent, now).await? {
            return Ok(None);
        }
        Ok(Some(self.load(&intent.id, None).await?))
    }

    /// Whether a deadline has come: then it is applied, by this or by somebody else who was quicker.
    async fn fire_deadline(&self, intent: &Intent, now: i64) -> Result<bool, ServiceError> {
        let Some(deadline) = intent.deadline().filter(|deadline| deadline.at().0 <= now) else { return Ok(false) };
        let at = deadline.at().0;
        let command = Command::Deadline(deadline);
        let change = decide::decide(intent, &command, Stamp(now), fresh()).map_err(ServiceError::Refused)?;
        match self.commit_surely(&change, Some(intent), Some(at), None).await? {
            Attempt::Done(done) => {
                self.metrics.deadline_fired();
                info!(intent = %done.id, "the payment intent's time has come: it is {}", done.status);
            }
            Attempt::Stale(_) | Attempt::Late | Attempt::Repeated(_) => {}
        }
        Ok(true)
    }

    /// Commits a change, again if its answer is lost, until it is known what became of it. `fires` is the deadline that this
    /// change is for.
    async fn commit_surely(
        &self,
        change: &Change,
        before: Option<&Intent>,
        fires: Option<i64>,
        key: Option<&RequestKey>,
    ) -> Result<Attempt, ServiceError> {
        let commit = self.commit_of(change, before, fires, key);
        let operation = change.intent.operations.last().map(String::as_str).unwrap_or_default();
        let (mut reconnects, mut lost) = (0, None);
        loop {
            let committed = match self.records.commit(&commit).await {
                Err(error @ StoreError::Unavailable { .. }) if reconnects < MAX_RECONNECTS => {
                    reconnects += 1;
                    lost.get_or_insert(error);
                    sleep(RECONNECT_PAUSE).await;
                    continue;
                }
                // That it is refused now, as by a full Redis, says nothing of the try whose answer is lost.
                Err(error) => return Err(lost.unwrap_or(error).into()),
                Ok(committed) => committed,
            };
            if let (Committed::Stale { stored, .. }, Some(lost)) = (&committed, &lost)
                && !would_be_known(&change.intent, stored.as_ref())
            {
                return Err(lost.clone().into());
            }
            return Ok(match committed {
                Committed::Done { stamp, number, entry } => {
                    let mut intent = change.intent.clone();
                    intent.date_from(Stamp(stamp));
                    intent.place(number, entry.and_then(|entry| entry.parse().ok()));
                    Attempt::Done(Box::new(intent))
                }
                Committed::Stale { now, stored } => match done_before(&change.intent.id, operation, stored.as_ref()) {
                    Some(intent) => Attempt::Done(Box::new(intent)),
                    None => Attempt::Stale(Loaded { now, stored, repeated: None }),
                },
                Committed::Taken(repeated) => match done_before(&change.intent.id, operation, Some(&repeated.stored)) {
                    Some(intent) => Attempt::Done(Box::new(intent)),
                    None => Attempt::Repeated(repeated),
                },
                Committed::Late { .. } | Committed::Early { .. } => Attempt::Late,
            });
        }
    }

    fn commit_of<'a>(
        &self,
        change: &'a Change,
        before: Option<&Intent>,
        fires: Option<i64>,
        key: Option<&'a RequestKey>,
    ) -> Commit<'a> {
        let intent = &change.intent;
        let told = change.told.and(intent.history.last());
        Commit {
            id: &intent.id,
            account: &intent.account,
            expected_revision: intent.revision - 1,
            before: before
                .and_then(|before| before.deadline())
                .map(|deadline| deadline.at().0)
                .filter(|_| fires.is_none()),
            from: fires,
            json: intent.to_record(),
            due: due_of(intent, self.settings.retain),
            created_at: before.map(|before| before.created_at.0),
            status: intent.status.to_string(),
            status_before: before.map(|before| before.status.to_string()),
            event: told.map(|told| told.around_time(intent)),
            event_id: told.map(|told| &told.id),
            key: key.map(RequestKey::of),
        }
    }

    fn repeated(&self, repeated: &Repeated, key: Option<&RequestKey>) -> Result<(Intent, Ended), ServiceError> {
        match key {
            Some(key) if key.request == repeated.request => {
                let Repeated { id, stored, .. } = repeated;
                let intent = read(id, stored).map_err(|error| ServiceError::Unreadable(id.clone(), error))?;
                Ok((intent, Ended::Repeated))
            }
            _ => Err(ServiceError::Refused(Refusal::KeyReused)),
        }
    }

    /// The intent, if it is there and this account's.
    fn own(&self, account: &AccountId, id: &IntentId, loaded: &Loaded) -> Result<Intent, ServiceError> {
        let intent = stored(id, loaded)?;
        if intent.account == *account { Ok(intent) } else { Err(ServiceError::NotFound) }
    }

    async fn load(&self, id: &IntentId, key: Option<&RequestKey>) -> Result<Loaded, ServiceError> {
        let key = key.map(|key| key.hash.as_str());
        Ok(self.records.load(id, key).await?)
    }
}

/// What the scheduler does next.
enum Next {
    After(Duration),
    /// An advance was begun and not finished.
    Advance,
}

enum Fired {
    Done,
    /// Another process has taken it further.
    ByOther,
    /// Its deadline is later than the index has it.
    NotDue(Stamp),
}

enum Attempt {
    Done(Box<Intent>),
    Repeated(Repeated),
    Stale(Loaded),
    /// A deadline came first.
    Late,
}

pub(super) fn read(id: &IntentId, stored: &Stored) -> Result<Intent, RecordError> {
    Intent::from_record(id.clone(), stored)
}

fn stored(id: &IntentId, loaded: &Loaded) -> Result<Intent, ServiceError> {
    let stored = loaded.stored.as_ref().ok_or(ServiceError::NotFound)?;
    read(id, stored).map_err(|error| ServiceError::Unreadable(id.clone(), error))
}

/// The intent, if this operation is among its last: then its answer was lost.
fn done_before(id: &IntentId, operation: &str, stored: Option<&Stored>) -> Option<Intent> {
    let intent = read(id, stored?).ok()?;
    intent.operations.iter().any(|done| done == operation).then_some(intent)
}

/// Whether the change would be found by its operation, had it been made: so many may have been made since that it is forgotten.
fn would_be_known(changed: &Intent, stored: Option<&Stored>) -> bool {
    stored.is_some_and(|stored| stored.revision < changed.revision + MAX_OPERATIONS as u64)
}

/// Whether the intent remembers the command by its idempotency key.
fn was_done(intent: &Intent, command: &Command) -> Result<bool, Refusal> {
    let (key, used): (_, Vec<&IdempotencyKey>) = match command {
        Command::Capture { key: Some(key), .. } => {
            (key, intent.captures.iter().filter_map(|capture| capture.key.as_ref()).collect())
        }
        Command::Refund { key, .. } => (key, intent.refunds.iter().map(|refund| &refund.key).collect()),
        Command::Reverse { key: Some(key), .. } => {
            (key, intent.reversal.iter().filter_map(|reversal| reversal.key.as_ref()).collect())
        }
        _ => return Ok(false),
    };
    let key = RequestKey { hash: key.key.clone(), request: key.body.clone() };
    match used.into_iter().find_map(|used| key.repeats(used)) {
        Some(same) => same.map(|()| true),
        None => Ok(false),
    }
}

/// Where time goes on with it: its deadline, or when it is forgotten.
fn due_of(intent: &Intent, retain: i64) -> Due {
    // A change of now has no instant yet, so what counts from it is counted by the script.
    let from_now = |of: Stamp, span: i64| if of.is_this() { Due::In(span) } else { Due::At(of.0 + span) };
    match (intent.deadline(), &intent.payment) {
        (Some(super::intent::Deadline::Expiry(at)), _) => match intent.details.expire_at {
            Some(_) => Due::At(at.0),
            None => from_now(intent.created_at, super::intent::EXPIRES_AFTER),
        },
        (Some(super::intent::Deadline::HoldEnd(_)), Some(payment)) => from_now(payment.at, intent.hold_for()),
        _ if retain > 0 => Due::In(retain),
        _ => Due::Never,
    }
}

/// What a customer's device shows to pay.
pub fn client_secret() -> String {
    URL_SAFE_NO_PAD.encode(rand::random::<[u8; 64]>())
}
