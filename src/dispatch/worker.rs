//! The shell around a partition: makes the calls it chooses, starts the attempts it allows, and tells it what came of
//! them. Owns the tasks, the connections and the clock; decides nothing.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::{
    attempts::{Attempts, Ended},
    core::{Note, Send, Wish},
    link::{Link, Waiter},
    partition::{Errand, Happening, Partition, Settings},
    told::Told,
};
use crate::{
    clock,
    facts::{
        endpoint::{EndpointState, Mark},
        id::EntryId,
        quota,
    },
    registry::{Change, RefreshError, Registry},
    sender::Sender,
    store::{
        connection::{Connection, Purpose, Redis},
        error::StoreError,
        keys::PartitionKeys,
        protocol::{Answer, Call, Failure},
        registry::{RegistryError, RegistryStore},
        wakeup::New,
        watch::{Gauges, gauges, last_entry},
    },
    telemetry::{metrics::Metrics, readiness::Readiness},
};

/// How often the numbers of the partition are looked at.
const GAUGES_EVERY: Duration = Duration::from_secs(1);

/// A look may take this part of the time, and is made so often at least. Redis copies the stream's first and last entry to tell
/// its numbers: of 200 MB that holds it for three seconds, and nothing else would be done beside a look a second.
const GAUGES_PART: u32 = 20;
const GAUGES_AT_LEAST_EVERY: Duration = Duration::from_secs(30);

/// From this part of `maxmemory` on little is read at a time, in percent.
const PRESSURE_PERCENT: u64 = 90;

/// The part of the attempt log that is kept while Redis has little memory left: enough to see what happens now.
const LOG_PART_UNDER_PRESSURE: u64 = 10;

/// Seconds after its start within which a server may have been killed just before, for all that a new worker knows.
const FRESH_S: u64 = 300;

/// Far beyond any timer of the partition; it only keeps the sum of times from overflowing.
const LONGEST_SLEEP_MS: u64 = 3_600_000;

/// Another group so far behind, by the stream's time, is worth a word: ten minutes are no hiccup.
const FOREIGN_FAR_MS: u64 = 600_000;

/// Attempts that are started before the lease, the calls and what has ended are looked at again: a millisecond's work.
const STARTED_AT_ONCE: usize = 256;

/// Pause before an errand that failed is tried again.
const ERRAND_PAUSE: Duration = Duration::from_millis(500);

/// What a worker is made of.
pub struct Parts {
    pub redis: Redis,
    pub keys: PartitionKeys,
    pub settings: Settings,
    pub attempt_log_len: u64,
    pub quotas: quota::Settings,
    pub registry: Registry,
    /// For receivers that have shown that they answer, and for the others.
    pub senders: [Arc<Sender>; 2],
    pub metrics: Metrics,
    pub readiness: Readiness,
    /// Who wants to hear what happens; what does not fit is left out.
    pub listener: Option<mpsc::Sender<Happening>>,
    /// What is in flight when the worker is told to stop may take so long.
    pub grace: Duration,
}

type Calling = Pin<Box<dyn Future<Output = (Link, Call, Result<Answer, Failure>)> + std::marker::Send>>;
type Waiting = Pin<Box<dyn Future<Output = (EntryId, (Waiter, Option<New>))> + std::marker::Send>>;

pub struct Worker {
    partition: Partition<Registry>,
    redis: Redis,
    keys: PartitionKeys,
    registry: Registry,
    metrics: Metrics,
    readiness: Readiness,
    listener: Option<mpsc::Sender<Happening>>,
    grace: Duration,
    began: Instant,
    attempts: Attempts,
    sender: Arc<Sender>,
    errands: JoinSet<Done>,
    work: Option<Link>,
    lease: Option<Link>,
    waiter: Option<Waiter>,
    skipped_disabled: u64,
    trim_ignores: Vec<String>,
    is_foreign_far: bool,
    quotas: quota::Settings,
    attempt_log_len: u64,
    is_under_pressure: bool,
    told: Told,
    /// What the quarantine's limit had dropped when it was last looked at.
    quarantine_dropped: Option<u64>,
}

/// An errand that was run.
enum Done {
    RegistryConfirmed,
    Nothing,
}

impl Worker {
    pub fn new(parts: Parts) -> io::Result<Self> {
        let Parts { redis, keys, settings, attempt_log_len, registry, senders: [proven, unproven], .. } = parts;
        let trim_ignores = settings.trim_ignores.clone();
        let lease_timeout = Duration::from_millis(settings.lease_ms / 2);
        let link = |purpose| Link::new(redis.clone(), keys.clone(), purpose, attempt_log_len);
        Ok(Self {
            work: Some(link(Purpose::Work)),
            lease: Some(link(Purpose::Lease(lease_timeout))),
            waiter: Some(Waiter::new(redis.clone(), keys.clone())),
            partition: Partition::new(settings, registry.clone(), rand::random()),
            redis,
            keys,
            registry,
            metrics: parts.metrics,
            readiness: parts.readiness,
            listener: parts.listener,
            grace: parts.grace,
            began: clock::now(),
            sender: Arc::clone(&proven),
            attempts: Attempts::new(proven, unproven)?,
            errands: JoinSet::new(),
            skipped_disabled: 0,
            trim_ignores,
            is_foreign_far: false,
            quotas: parts.quotas,
            attempt_log_len,
            is_under_pressure: false,
            told: Told::default(),
            quarantine_dropped: None,
        })
    }

    /// Works until cancelled; then stops reading, gives what is in flight its time, settles and releases the lease.
    pub async fn run(mut self, cancel: CancellationToken) {
        let (numbers, mut numbers_seen) = watch::channel(None);
        let watching = CancellationToken::new();
        let watcher = tokio::spawn(watch_gauges(self.redis.clone(), self.keys.clone(), numbers, watching.clone()));
        let mut changes = self.registry.changes();
        let (mut calling, mut renewing): (Option<Calling>, Option<Calling>) = (None, None);
        let mut waiting: Option<Waiting> = None;
        let mut stopping_at: Option<Instant> = None;
        while !self.partition.is_stopped() {
            let has_more = self.advance(&mut calling, &mut renewing, &mut waiting);
            if self.partition.is_stopped() {
                break;
            }
            let now = self.now();
            let pause = self.partition.wake_at(now).saturating_sub(now).min(LONGEST_SLEEP_MS);
            let wake_at = clock::now() + Duration::from_millis(if has_more { 0 } else { pause });
            let is_stopping = stopping_at.is_some();
            tokio::select! {
                ended = self.attempts.ended() => self.attempts_ended(ended),
                (link, _, answer) = ready(&mut calling) => {
                    calling = None;
                    self.work = Some(link);
                    self.heard(&answer);
                    self.partition.answered(self.now(), answer);
                }
                (link, call, answer) = ready(&mut renewing) => {
                    renewing = None;
                    self.lease = Some(link);
                    if let Call::Renew { term, .. } = &call {
                        self.partition.renewed(self.now(), term, &answer);
                    }
                }
                (after, (waiter, new)) = ready(&mut waiting) => {
                    waiting = None;
                    self.waiter = Some(waiter);
                    match new {
                        Some(new) if new.is_certain => self.partition.woken(after, new.entries, new.requests),
                        Some(new) => self.partition.stirred(new.entries, new.requests),
                        None => self.partition.look_again(),
                    }
                }
                Some(done) = self.errands.join_next(), if !self.errands.is_empty() => {
                    if let Ok(Done::RegistryConfirmed) = done {
                        self.partition.registry_confirmed(self.now());
                    }
                }
                Some(change) = changes.next() => self.registry_changed(change),
                Ok(()) = numbers_seen.changed() => {
                    let numbers = numbers_seen.borrow_and_update().clone();
                    self.numbers(numbers);
                }
                () = sleep_until(wake_at.into()) => {}
                () = cancel.cancelled(), if !is_stopping => {
                    self.readiness.set_draining();
                    self.partition.stop();
                    stopping_at = Some(clock::now() + self.grace);
                }
                () = until(stopping_at), if is_stopping => {
                    self.partition.stop_waiting(self.now());
                    stopping_at = Some(clock::now() + Duration::from_secs(3600));
                }
            }
        }
        self.report();
        watching.cancel();
        self.attempts.abort_all();
        // It ends by itself on cancellation; a panic there was logged by its own task.
        let _ = watcher.await;
    }

    /// Does what can be done at once: starts attempts and calls, and passes on what the partition says. Tells whether there
    /// is more to start.
    fn advance(
        &mut self,
        calling: &mut Option<Calling>,
        renewing: &mut Option<Calling>,
        waiting: &mut Option<Waiting>,
    ) -> bool {
        let now = self.now();
        if renewing.is_none()
            && let Some(call) = self.partition.next_renewal(now)
            && let Some(link) = self.lease.take()
        {
            *renewing = Some(Box::pin(link.call(call)));
        }
        if calling.is_none()
            && let Some(call) = self.partition.next_call(now)
            && let Some(mut link) = self.work.take()
        {
            link.keep_log(self.log_len());
            *calling = Some(Box::pin(link.call(call)));
        }
        let mut started = 0;
        while started < STARTED_AT_ONCE
            && let Some(send) = self.partition.next_send(now)
        {
            self.start(now, send);
            started += 1;
        }
        self.attempts.hand_over();
        if waiting.is_none()
            && let Some((last_read, inbox_after)) = self.partition.wants_wakeup()
            && let Some(waiter) = self.waiter.take()
        {
            *waiting = Some(Box::pin(async move { (last_read, waiter.wait(last_read, inbox_after).await) }));
        }
        self.report();
        started == STARTED_AT_ONCE
    }

    fn now(&self) -> u64 {
        clock::now().saturating_duration_since(self.began).as_millis() as u64
    }

    fn start(&mut self, now: u64, send: Send) {
        if send.delivery.next_attempt() == 1 {
            // An id that is no time tells nothing of how long its entry has waited.
            if let Some(waited) = send.delivery.id.entry.age_ms(self.partition.redis_now(now)) {
                self.metrics.first_attempt_started(Duration::from_millis(waited));
            }
        }
        self.attempts.start(send);
    }

    fn attempts_ended(&mut self, ended: Vec<Ended>) {
        let now = self.now();
        let mut not_begun = Vec::new();
        for ended in ended {
            let (token, attempted) = match ended {
                Ended::Attempted(token, attempted) => (token, attempted),
                Ended::NotBegun(token) => {
                    not_begun.push(token);
                    continue;
                }
            };
            self.partition.not_begun(now, not_begun.drain(..));
            let took = Duration::from_micros(attempted.report.timing.total_us);
            self.metrics.attempt_ended(&attempted.report.outcome, took);
            if attempted.resent {
                self.metrics.request_resent();
            }
            self.partition.attempted(now, token, attempted);
        }
        self.partition.not_begun(now, not_begun.drain(..));
    }

    fn heard(&mut self, answer: &Result<Answer, Failure>) {
        match answer {
            Err(_) => {
                self.metrics.redis_error();
                self.readiness.refused(clock::now());
            }
            Ok(Answer::Settled { .. }) => self.readiness.progress(clock::now()),
            Ok(_) => {}
        }
    }

    fn registry_changed(&mut self, change: Change) {
        let now = self.now();
        match change {
            Change::Endpoint(endpoint) => self.partition.registry_changed(now, Some(&endpoint.id)),
            Change::Removed(endpoint) => self.partition.registry_changed(now, Some(&endpoint)),
            Change::Pause(_) | Change::Reset => self.partition.registry_changed(now, None),
        }
    }

    fn numbers(&mut self, numbers: Option<Gauges>) {
        self.readiness.set_redis(numbers.is_some());
        let now = self.now();
        self.partition.compare_clocks(now, clock::wall_ms());
        let Some(numbers) = numbers else { return };
        self.look_at_memory(&numbers);
        // One walk for all: there may be a hundred thousand.
        let (mut parked, mut in_trouble, mut longest_attempt) = (0, 0, Duration::ZERO);
        for (_, lane) in self.partition.core().lanes() {
            parked += lane.parked;
            in_trouble += u64::from(lane.is_in_trouble(now));
            if lane.in_flight > 0 {
                longest_attempt = longest_attempt.max(self.sender.timeout_of(lane.timeout_ms()));
            }
        }
        // Only an operator's own pause excuses an owner: a lost registry or a term that keeps failing does not.
        let is_ours = !self.partition.is_standby() && self.registry.paused_all().is_none();
        let has_backlog = numbers.has_backlog(self.partition.tally().in_flight as u64);
        self.readiness.backlog(is_ours && has_backlog, longest_attempt, clock::now());
        self.metrics.set_unread(numbers.behind);
        self.metrics.set_trimmed_unread(numbers.trimmed_unread);
        self.metrics.set_due(numbers.due, numbers.overdue_ms() / 1_000);
        self.look_at_foreign(numbers.slowest_foreign);
        self.look_at_quarantine(numbers.quarantine_dropped);
        self.metrics.set_dead_letters_kept(numbers.dead);
        self.metrics.set_parked(parked);
        // Only the owner knows what is parked, and so what is held; what a former one knows of receivers is out of date.
        let placed = numbers.due + numbers.claimed + parked;
        let (held, in_trouble) = match self.partition.is_owner() {
            true => (numbers.unfinished.saturating_sub(placed), in_trouble),
            false => (0, 0),
        };
        self.metrics.set_held(held);
        self.metrics.set_open_breakers(in_trouble);
    }

    /// What Redis has left, and what the records in it take.
    fn look_at_memory(&mut self, numbers: &Gauges) {
        let limit = numbers.maxmemory_bytes;
        let is_under_pressure = limit > 0 && numbers.used_memory_bytes / PRESSURE_PERCENT >= limit / 100;
        if is_under_pressure != std::mem::replace(&mut self.is_under_pressure, is_under_pressure) {
            match is_under_pressure {
                true => warn!(
                    used = numbers.used_memory_bytes,
                    limit, "Redis has little memory left: little is read at a time, and the attempt log is kept short"
                ),
                false => info!("Redis has memory again"),
            }
        }
        self.partition.set_pressure(is_under_pressure);
        self.partition.set_quotas(self.quotas.with(limit));
        let (bytes, over) = self.partition.core().record_bytes();
        self.metrics.set_memory(is_under_pressure, bytes, over as u64);
    }

    /// Lines that the log of attempts keeps. They are a comfort, and what is delivered is not: where Redis has little left,
    /// they must not eat the room that delivering makes.
    fn log_len(&self) -> u64 {
        if self.is_under_pressure { self.attempt_log_len / LOG_PART_UNDER_PRESSURE } else { self.attempt_log_len }
    }

    /// A group that is far behind keeps the stream from being trimmed: said once, until it has caught up.
    fn look_at_foreign(&mut self, slowest: Option<(String, u64)>) {
        let ignores = &self.trim_ignores;
        let slowest = slowest.filter(|(group, _)| !ignores.contains(group));
        let behind_ms = slowest.as_ref().map_or(0, |(_, behind_ms)| *behind_ms);
        self.metrics.set_foreign_group_lag(behind_ms / 1_000);
        let is_far = behind_ms > FOREIGN_FAR_MS;
        if let (true, false, Some((group, _))) = (is_far, self.is_foreign_far, &slowest) {
            warn!(
                group,
                behind_ms,
                "the stream is kept for a group that is far behind; name it in stream.trim_ignores if nobody reads it"
            );
        }
        self.is_foreign_far = is_far;
    }

    /// Logs and counts what happened, and runs the errands.
    fn report(&mut self) {
        for happening in self.partition.take_happenings() {
            self.count(&happening);
            if self.is_worth_a_line(&happening) {
                log(&happening);
            }
            if let Some(listener) = &self.listener {
                // A listener that is too slow misses something; the log has it.
                let _ = listener.try_send(happening);
            }
        }
        let tally = self.partition.tally();
        self.metrics.set_in_flight(tally.in_flight as u64, tally.slow as u64);
        self.metrics.set_deferred(self.partition.deferred() as u64);
        if tally.skipped_disabled > self.skipped_disabled {
            self.metrics.deliveries_skipped(tally.skipped_disabled - self.skipped_disabled);
            self.skipped_disabled = tally.skipped_disabled;
        }
        for errand in self.partition.take_errands() {
            match errand {
                Errand::AbortFlights => self.attempts.abort_all(),
                Errand::ConfirmRegistry => drop(self.errands.spawn(confirm(self.registry.clone()))),
                Errand::Core(wish) => {
                    drop(self.errands.spawn(change_endpoint(self.redis.clone(), self.keys.clone(), wish)))
                }
            }
        }
    }

    /// Whoever writes to the stream can make these happen without end: they are counted, and told of now and then.
    fn is_worth_a_line(&mut self, happening: &Happening) -> bool {
        match happening {
            Happening::Quarantined { entry, error } => {
                if let Some(entries) = self.told.quarantined(self.now()) {
                    warn!(entries, last = %entry, error, "no valid event: quarantined; said once a minute at most");
                }
                false
            }
            Happening::Novelty { novelty, .. } => self.told.is_first(novelty),
            _ => true,
        }
    }

    /// Of what was dropped before this worker looked for the first time somebody else has told.
    fn look_at_quarantine(&mut self, dropped: u64) {
        let known = self.quarantine_dropped.replace(dropped).unwrap_or(dropped);
        if let more @ 1.. = dropped.saturating_sub(known) {
            self.metrics.quarantine_dropped(more);
        }
    }

    fn count(&self, happening: &Happening) {
        match happening {
            Happening::Core(Note::Dead { reason, .. }) => self.metrics.dead_letters(*reason, 1),
            Happening::Core(Note::SetAside { .. } | Note::Unreadable { .. }) | Happening::JobFailed { .. } => {
                self.metrics.item_set_aside()
            }
            Happening::Core(Note::Displaced { .. }) => self.metrics.entry_quarantined(),
            Happening::Core(Note::OverQuota { quota, .. }) => self.metrics.quota_pause(*quota),
            Happening::TermBegan => self.metrics.term_began(),
            Happening::TermEnded { .. } => self.metrics.term_ended(),
            Happening::Read { entries } => self.metrics.entries_read(*entries as u64),
            Happening::Quarantined { .. } => self.metrics.entry_quarantined(),
            Happening::Novelty { novelty, .. } => self.metrics.novel_event(novelty.kind),
            Happening::TrimmedWhilePending { .. } => self.metrics.pending_entry_trimmed(),
            Happening::NoEndpoint { .. } => self.metrics.entry_without_endpoint(),
            Happening::ForeignClaimed { count } => self.metrics.foreign_entries_claimed(*count as u64),
            Happening::DeadExpired { count } => self.metrics.dead_letters_expired(*count),
            Happening::Core(Note::Failed { .. } | Note::BreakerOpened { .. } | Note::OursFailed { .. })
            | Happening::GroupMade { .. }
            | Happening::Trimmed { .. }
            | Happening::ClockStepped { .. }
            | Happening::OtherRegistry { .. }
            | Happening::Requested { .. } => {}
        }
    }
}

fn log(happening: &Happening) {
    match happening {
        Happening::Core(Note::Failed { id, chain, attempt, outcome, retry_in_ms }) => {
            info!(delivery = %id, intent = %chain, attempt, %outcome, retry_in_ms, "attempt failed")
        }
        Happening::Core(Note::Dead { id, intent, reason, attempts }) => {
            warn!(delivery = %id, %intent, reason = reason.name(), attempts, "dead letter")
        }
        Happening::Core(Note::BreakerOpened { endpoint }) => {
            warn!(%endpoint, "the receiver is in trouble: its deliveries wait in the backlog")
        }
        // The pause itself says it, with the reason.
        Happening::Core(Note::OverQuota { endpoint, quota, bytes }) => {
            debug!(%endpoint, quota = quota.name(), bytes, "over its quota: it is to be paused")
        }
        Happening::Core(Note::OursFailed { cause, count }) => {
            error!(?cause, count, "attempts failed here and not at their receivers: they go again")
        }
        Happening::Core(Note::Unreadable { id, why }) => {
            error!(delivery = %id, why, "a record cannot be read; it stays as it is")
        }
        Happening::Core(Note::Displaced { id, event }) => {
            error!(delivery = %id, %event, "another event has this id: the entry is quarantined, put it back from there")
        }
        Happening::Core(Note::SetAside { item, why }) => {
            error!(item, why, "Redis cannot take this change; it is set aside until the next term")
        }
        Happening::TermBegan => info!("owns the partition"),
        Happening::TermEnded { why } => warn!(why, "the term has ended"),
        Happening::GroupMade { after } => warn!(%after, "made the consumer group"),
        Happening::Read { entries } => debug!(entries, "read"),
        // Told of by the minute.
        Happening::Quarantined { .. } => {}
        Happening::Novelty { entry, novelty } => {
            warn!(%entry, kind = novelty.kind.name(), what = %novelty, "new to this Herald, and delivered; said once")
        }
        Happening::TrimmedWhilePending { entry } => {
            error!(%entry, "the entry was trimmed while it was pending; its event is gone")
        }
        Happening::NoEndpoint { entry, account } => debug!(%entry, %account, "the account has no endpoint for it"),
        Happening::ForeignClaimed { count } => {
            warn!(count, "took over entries that another consumer of the group had taken")
        }
        Happening::Trimmed { count } => debug!(count, "trimmed finished entries"),
        Happening::DeadExpired { count } => warn!(count, "dropped dead letters beyond the limit of retention"),
        Happening::ClockStepped { by_ms } => error!(
            by_ms,
            "Redis' clock has stepped: retries are put right, and nothing expires until it has been steady"
        ),
        Happening::OtherRegistry { bound, found } => error!(
            bound,
            found, "this partition belongs to another registry of endpoints; nothing is sent until an operator says so"
        ),
        Happening::JobFailed { why } => error!(why, "a job of the partition failed; it comes again"),
        Happening::Requested { request, answer } => info!(%request, answer, "a request was dealt with"),
    }
}

/// The result in a slot, or never while it is empty.
async fn ready<T>(slot: &mut Option<Pin<Box<dyn Future<Output = T> + std::marker::Send>>>) -> T {
    match slot {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// Follows the registry up to a look that begins now.
async fn confirm(registry: Registry) -> Done {
    loop {
        // No version is as new as this, so it always looks; what it finds is the registry's newest.
        match registry.refresh_to(u64::MAX).await {
            Ok(()) | Err(RefreshError::Older { .. }) => return Done::RegistryConfirmed,
            Err(RefreshError::Stopped) => return Done::Nothing,
            // Nothing is final while it is gone.
            Err(RefreshError::Vanished) => tokio::time::sleep(ERRAND_PAUSE).await,
        }
    }
}

/// Disables an endpoint that answered 410, or pauses one that is over its quota, unless somebody changed it since.
async fn change_endpoint(redis: Redis, keys: PartitionKeys, wish: Wish) -> Done {
    let (Wish::Disable { endpoint, why, .. } | Wish::Pause { endpoint, why, .. }) = &wish;
    loop {
        match try_change(&redis, &keys, &wish).await {
            Ok(()) => {
                match wish {
                    Wish::Disable { .. } => warn!(%endpoint, why, "disabled the endpoint"),
                    Wish::Pause { .. } => warn!(%endpoint, why, "paused the endpoint"),
                }
                return Done::Nothing;
            }
            // Deleted or changed by somebody: their change counts.
            Err(error @ (RegistryError::Missing(_) | RegistryError::Stale { .. } | RegistryError::NeverMade)) => {
                info!(%endpoint, %error, "the endpoint was left as it is");
                return Done::Nothing;
            }
            // Refused for a reason that somebody will mend. Until then the owner sends nothing to one that is gone.
            Err(error) => {
                warn!(%endpoint, %error, "cannot disable or pause the endpoint yet; trying again");
                tokio::time::sleep(ERRAND_PAUSE).await;
            }
        }
    }
}

async fn try_change(redis: &Redis, keys: &PartitionKeys, wish: &Wish) -> Result<(), RegistryError> {
    let (Wish::Disable { endpoint: id, revision, why } | Wish::Pause { endpoint: id, revision, why }) = wish;
    let mut connection = redis.connect(Purpose::Other).await?;
    let last = last_entry(&mut connection, keys).await?;
    let mut store = RegistryStore::on(connection);
    let Some(mut endpoint) = store.get(id).await? else { return Err(RegistryError::Missing(id.clone())) };
    // The store refuses a change that saw another revision than there is.
    endpoint.revision = *revision;
    let mark = Mark { by: "herald".to_owned(), why: why.clone(), at_ms: clock::wall_ms() };
    match wish {
        Wish::Disable { .. } => endpoint.disable(mark.clone(), last),
        Wish::Pause { .. } => endpoint.status = EndpointState::Paused(mark.clone()),
    }
    endpoint.updated_at_ms = mark.at_ms;
    store.update(endpoint, &mark).await.map(drop)
}

/// Looks at the partition's numbers again and again; None while Redis does not answer.
async fn watch_gauges(
    redis: Redis,
    keys: PartitionKeys,
    numbers: watch::Sender<Option<Gauges>>,
    cancel: CancellationToken,
) {
    let (mut connection, mut server, mut is_mended) = (None, None, false);
    let mut pause = Duration::ZERO;
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            () = sleep(pause) => {}
        }
        if connection.is_none() {
            connection = redis.connect(Purpose::Other).await.ok();
            is_mended = false;
        }
        if let (Some(connection), false) = (&mut connection, is_mended) {
            is_mended = mend_aof(connection, &mut server).await;
        }
        let began = clock::now();
        let seen = match &mut connection {
            Some(connection) => gauges(connection, &keys).await.ok(),
            None => None,
        };
        pause = match seen {
            Some(_) => pause_after(clock::now() - began),
            None => GAUGES_EVERY,
        };
        if seen.is_none() {
            connection = None;
        }
        numbers.send_replace(seen);
    }
}

/// How long after a look the next one is made.
fn pause_after(look: Duration) -> Duration {
    (look * GAUGES_PART).clamp(GAUGES_EVERY, GAUGES_AT_LEAST_EVERY)
}

/// A server that has started anew, now or shortly before us, may have been killed: its append-only file is made whole.
/// `known` is the server that was seen to; one that still loads or refuses is seen to with the next connection.
async fn mend_aof(connection: &mut Connection, known: &mut Option<String>) -> bool {
    let Ok(info) = connection.server_info().await else { return false };
    if info.is_loading {
        return false;
    }
    let is_new = known.as_ref().map_or(info.uptime_s < FRESH_S, |id| *id != info.run_id);
    if is_new && info.aof_enabled {
        match connection.rewrite_aof().await {
            Ok(()) => info!(run_id = info.run_id, "Redis has started anew; it writes its append-only file afresh"),
            Err(StoreError::Unavailable { .. }) => return false,
            Err(error) => warn!(%error, "run BGREWRITEAOF: Redis has started anew, and its file may have a loose end"),
        }
    }
    *known = Some(info.run_id);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_that_holds_redis_is_made_seldom() {
        assert_eq!(pause_after(Duration::from_micros(300)), Duration::from_secs(1));
        assert_eq!(pause_after(Duration::from_millis(500)), Duration::from_secs(10));
        assert_eq!(pause_after(Duration::from_secs(5)), Duration::from_secs(30));
    }
}
