//! The shell around a partition: makes the calls it chooses, starts the attempts it allows, and tells it what came of them.
//! Owns the tasks, the connections and the clock; decides nothing.

mod errands;
mod failing;
mod gauges;
mod health;
mod numbers;
mod operations;
mod reporter;
pub mod routing;
mod splitting;
mod told;
mod tracer;

use std::{
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinSet,
    time::sleep_until,
};
use tokio_util::sync::CancellationToken;

use self::{
    errands::{Done, change_endpoint, confirm},
    gauges::watch_gauges,
    health::{News, Publisher},
    operations::Runner,
    reporter::Reporter,
    routing::{Routing, Told},
    tracer::{Called, Tracer},
};
use super::{
    attempts::{Attempts, Ended},
    core::NextAttempt,
    fleet::{Grace, Standings},
    link::{Link, Waiter},
    partition::{Errand, Happening, Partition, Settings},
    shared_budgets::{Share, Used},
    sharing::AskedBy,
};
use crate::{
    clock,
    facts::{id::EntryId, quota},
    history::History,
    registry::{Change, Registry},
    sender::Sender,
    store::{
        audit::Audit,
        connection::{Purpose, Redis},
        keys::PartitionKeys,
        protocol::{Answer, Call, Failure},
        wakeup::New,
    },
    telemetry::{
        log_line::of_the_same,
        partitions::PartitionMetrics,
        readiness::{BEAT_EVERY, Readiness},
        traces,
    },
};

/// Attempts to start before looking again at the lease, the calls and what has ended: a millisecond's work.
const STARTED_AT_ONCE: usize = 256;

/// How often this machine's two clocks are compared: one of them may be set.
const COMPARE_EVERY_MS: u64 = 1_000;

/// For what was last seen of endpoints, once everything else is done.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What a worker is made of.
pub struct Parts {
    pub redis: Redis,
    pub keys: PartitionKeys,
    /// Of the stream that this one is, or is a part of.
    pub root: PartitionKeys,
    /// For what Herald does by itself.
    pub audit: Audit,
    pub settings: Settings,
    /// Where its stream is split.
    pub routing: routing::Settings,
    pub attempt_log_len: u64,
    /// What the log may take beyond that while the history has not read it.
    pub history_log_bytes: u64,
    /// This process has a history that keeps the events themselves.
    pub keeps_events: bool,
    pub quotas: quota::Settings,
    /// How long an endpoint may fail until it is disabled.
    pub disable_after: Option<Duration>,
    pub registry: Registry,
    /// Whether another worker has the keys, or the right time, that this one lacks.
    pub gives_way: watch::Receiver<bool>,
    /// For replays.
    pub history: History,
    /// Knows how long an attempt may take.
    pub sender: Arc<Sender>,
    pub attempts: Attempts,
    pub metrics: PartitionMetrics,
    /// The partition's own.
    pub readiness: Readiness,
    pub standing: Standings,
    pub asked_by: AskedBy,
    /// What it may have of what all partitions have.
    pub share: Share,
    /// Wants to hear what happens; what does not fit into its queue is left out.
    pub listener: Option<mpsc::Sender<Happening>>,
    /// How long what is in flight may take, at most, once the worker is to give the lease back.
    pub grace: Duration,
    /// … and when it is told to stop.
    pub ends_within: Grace,
}

type Calling = Pin<Box<dyn Future<Output = (Link, Call, Result<Answer, Failure>)> + Send>>;
type Waiting = Pin<Box<dyn Future<Output = (EntryId, (Waiter, Option<New>))> + Send>>;

pub struct Worker {
    partition: Partition<Registry>,
    redis: Redis,
    keys: PartitionKeys,
    root: PartitionKeys,
    audit: Audit,
    registry: Registry,
    metrics: PartitionMetrics,
    readiness: Readiness,
    standing: Standings,
    asked_by: AskedBy,
    share: Share,
    reporter: Reporter,
    grace: Duration,
    ends_within: Grace,
    began: Instant,
    attempts: Attempts,
    sender: Arc<Sender>,
    errands: JoinSet<Done>,
    work: Option<Link>,
    lease: Option<Link>,
    waiter: Option<Waiter>,
    trim_ignores: Vec<String>,
    is_foreign_far: bool,
    quotas: quota::Settings,
    attempt_log_len: u64,
    history_log_bytes: u64,
    keeps_events: bool,
    /// Lines of the log that are kept for the history.
    history_unread: u64,
    is_under_pressure: bool,
    /// How much the quarantine's limit had dropped at the last look.
    quarantine_dropped: Option<u64>,
    gives_way: watch::Receiver<bool>,
    /// When the call that is on its way was made, for its span.
    called_us: u64,
    publisher: Publisher,
    /// When to tell it next what was seen.
    publish_at: u64,
    /// Has the numbers looked at soon.
    stir: Arc<Notify>,
    compare_at: u64,
    runner: Runner,
    routing: Routing,
}

impl Worker {
    pub fn new(parts: Parts) -> Self {
        let Parts { redis, keys, settings, attempt_log_len, registry, .. } = parts;
        let routing = Routing::start(routing::Parts {
            redis: redis.clone(),
            keys: keys.clone(),
            settings: parts.routing,
            parts: settings.parts,
            start: settings.start,
            registry: registry.clone(),
            trim_ignores: settings.trim_ignores.clone(),
            metrics: parts.metrics.clone(),
            readiness: parts.readiness.clone(),
        });
        let (trim_ignores, owner) = (settings.trim_ignores.clone(), settings.owner.clone());
        let lease_timeout = Duration::from_millis(settings.lease_ms / 2);
        let link = |purpose| Link::new(redis.clone(), keys.clone(), purpose, attempt_log_len);
        let mut partition = Partition::new(settings, registry.clone(), rand::random());
        if parts.keeps_events {
            // Until the first look has told how far the history is.
            partition.set_trim_up_to(0, Some(EntryId::ZERO));
        }
        let tracer = |traces| Tracer::new(traces, keys.stream().to_owned(), owner);
        let reporter = Reporter::new(parts.metrics.clone(), parts.listener, traces::get().map(tracer));
        partition.tell(reporter.wants());
        Self {
            work: Some(link(Purpose::Work)),
            lease: Some(link(Purpose::Lease(lease_timeout))),
            waiter: Some(Waiter::new(redis.clone(), keys.clone())),
            partition,
            publisher: Publisher::start(
                redis.clone(),
                keys.clone(),
                parts.root.clone(),
                registry.clone(),
                parts.audit.clone(),
                parts.disable_after,
            ),
            called_us: 0,
            publish_at: 0,
            stir: Arc::default(),
            compare_at: 0,
            runner: Runner::start(redis.clone(), keys.clone(), registry.clone(), parts.history, parts.audit.clone()),
            routing,
            redis,
            keys,
            root: parts.root,
            audit: parts.audit,
            registry,
            reporter,
            metrics: parts.metrics,
            readiness: parts.readiness,
            grace: parts.grace,
            ends_within: parts.ends_within,
            began: clock::now(),
            standing: parts.standing,
            asked_by: parts.asked_by,
            share: parts.share,
            sender: parts.sender,
            attempts: parts.attempts,
            errands: JoinSet::new(),
            trim_ignores,
            is_foreign_far: false,
            quotas: parts.quotas,
            attempt_log_len,
            history_log_bytes: parts.history_log_bytes,
            keeps_events: parts.keeps_events,
            history_unread: 0,
            is_under_pressure: false,
            quarantine_dropped: None,
            gives_way: parts.gives_way,
        }
    }

    /// Works until cancelled; then stops reading, gives what is in flight its time, settles and releases the lease.
    pub async fn run(mut self, cancel: CancellationToken) {
        let (numbers, mut numbers_seen) = watch::channel(None);
        let watching = CancellationToken::new();
        let watch = watch_gauges(self.redis.clone(), self.keys.clone(), numbers, self.stir.clone(), watching.clone());
        let watcher = tokio::spawn(of_the_same(watch));
        // Also if this panics.
        let _watching = watching.clone().drop_guard();
        let mut changes = self.registry.changes();
        let (mut calling, mut renewing): (Option<Calling>, Option<Calling>) = (None, None);
        let mut waiting: Option<Waiting> = None;
        let (mut stopping_at, mut giving_way_at): (Option<Instant>, Option<Instant>) = (None, None);
        while !self.partition.is_stopped() {
            // Nothing but this loop may say so: another task of its thread would have its turn while this waits for ever.
            self.readiness.beat(clock::now());
            let has_more = self.advance(&mut calling, &mut renewing, &mut waiting);
            if self.partition.is_stopped() {
                break;
            }
            let now = self.now();
            let pause = self.partition.wake_at(now).saturating_sub(now);
            let wake_at =
                clock::now() + if has_more { Duration::ZERO } else { Duration::from_millis(pause).min(BEAT_EVERY) };
            let is_stopping = stopping_at.is_some();
            tokio::select! {
                ended = self.attempts.ended() => self.attempts_ended(ended),
                (link, _, answer) = ready(&mut calling) => {
                    calling = None;
                    self.work = Some(link);
                    self.heard(&answer);
                    self.traced(&answer);
                    self.partition.answered(self.now(), answer);
                }
                (link, call, answer) = ready(&mut renewing) => {
                    renewing = None;
                    self.lease = Some(link);
                    if answer.is_err() {
                        self.stir.notify_one();
                    }
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
                () = self.runner.made_due() => self.partition.something_is_due(),
                told = self.routing.told() => match told {
                    Told::Works(term) => self.partition.works(self.now(), &term),
                    Told::Mode(term, mode) => self.partition.mode_is(&term, mode),
                    Told::Asked => self.partition.stirred(false, true),
                },
                Some(change) = changes.next() => self.registry_changed(change),
                Ok(()) = self.gives_way.changed() => {
                    let gives_way = *self.gives_way.borrow_and_update();
                    self.partition.give_way(self.now(), gives_way);
                    giving_way_at = gives_way.then(|| clock::now() + self.grace);
                }
                () = until(giving_way_at), if giving_way_at.is_some() && !is_stopping => {
                    giving_way_at = None;
                    self.partition.wait_no_longer(self.now());
                }
                Ok(()) = numbers_seen.changed() => {
                    let numbers = numbers_seen.borrow_and_update().clone();
                    self.numbers(numbers);
                }
                () = sleep_until(wake_at.into()) => {}
                () = cancel.cancelled(), if !is_stopping => {
                    self.publish(true);
                    self.partition.stop();
                    stopping_at = Some(clock::now() + self.grace.min(self.ends_within.get()));
                }
                () = until(stopping_at), if is_stopping => {
                    self.partition.stop_waiting(self.now());
                    stopping_at = Some(clock::now() + Duration::from_secs(3600));
                }
            }
        }
        self.report();
        self.asked_by.tell(self.keys.stream(), None);
        watching.cancel();
        self.attempts.abort_all();
        self.runner.stop(LAST_WORDS).await;
        self.routing.stop(LAST_WORDS).await;
        self.publisher.stop(LAST_WORDS).await;
        // It ends by itself on cancellation; a panic there was logged by its own task.
        let _ = watcher.await;
    }

    /// Does what can be done at once: starts attempts and calls, and passes on what the partition says. Returns whether
    /// there is more to start.
    fn advance(
        &mut self,
        calling: &mut Option<Calling>,
        renewing: &mut Option<Calling>,
        waiting: &mut Option<Waiting>,
    ) -> bool {
        let now = self.now();
        if now >= self.compare_at {
            self.compare_at = now + COMPARE_EVERY_MS;
            self.partition.compare_clocks(now, clock::wall_ms());
        }
        let used = Used {
            memory: self.partition.core().in_memory(),
            slow: self.partition.tally().slow,
            reads_in_vain: self.partition.reads_in_vain(now),
        };
        let budgets = self.share.now(self.partition.is_owner(), used);
        self.partition.set_budgets(budgets);
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
            if self.reporter.tracer().is_some() {
                self.called_us = clock::wall_us();
            }
            *calling = Some(Box::pin(link.call(call)));
        }
        let mut started = 0;
        while started < STARTED_AT_ONCE
            && let Some(send) = self.partition.next_attempt(now)
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

    /// Tells what was seen of endpoints, if it is time for that. What has no place yet stays where it is counted.
    fn publish(&mut self, is_last: bool) {
        let now = self.now();
        if now < self.publish_at && !is_last {
            return;
        }
        let (Some(term), Some(place)) = (self.partition.term().cloned(), self.publisher.place()) else { return };
        self.publish_at = now + health::EVERY_MS;
        let at_ms = self.partition.redis_now(now);
        let noted = self.partition.take_noted(now, health::MAX_NOTED);
        place.send(News { term, at_ms, noted, odd: self.reporter.take_odd(), is_last });
    }

    fn now(&self) -> u64 {
        clock::now().saturating_duration_since(self.began).as_millis() as u64
    }

    fn start(&mut self, now: u64, mut send: NextAttempt) {
        if let Some(tracer) = self.reporter.tracer()
            && let Some(trace) = tracer.trace_of(&send.delivery)
        {
            send.trace = Some(trace.id);
            if send.endpoint.traceparent {
                let header = Tracer::header(trace, &send.delivery);
                Arc::make_mut(&mut send.delivery).envelope.traceparent = header;
            }
        }
        if send.delivery.next_attempt() == 1 {
            // An id that is not a time does not tell how long its entry has waited.
            if let Some(waited) = send.delivery.id.entry.age_ms(self.partition.redis_now(now)) {
                self.metrics.first_attempt_started(Duration::from_millis(waited), send.trace);
            }
        }
        self.attempts.start(send);
    }

    fn attempts_ended(&mut self, ended: Vec<Ended>) {
        let now = self.now();
        let mut not_begun = Vec::new();
        for ended in ended {
            let (token, entry, trace, attempted) = match ended {
                Ended::Attempted(token, entry, trace, attempted) => (token, entry, trace, attempted),
                Ended::NotBegun(token) => {
                    not_begun.push(token);
                    continue;
                }
            };
            self.partition.not_begun(now, not_begun.drain(..));
            let took = Duration::from_micros(attempted.report.timing.total_us);
            self.metrics.attempt_ended(&attempted.report.outcome, took, trace);
            if attempted.report.outcome.is_delivered()
                && let Some(age_ms) = entry.age_ms(self.partition.redis_now(now))
            {
                self.metrics.delivered(Duration::from_millis(age_ms), trace);
            }
            if attempted.resent {
                self.metrics.request_resent();
            }
            self.partition.attempted(now, token, attempted);
        }
        self.partition.not_begun(now, not_begun.drain(..));
    }

    fn heard(&mut self, answer: &Result<Answer, Failure>) {
        match answer {
            Err(_) => self.readiness.refused(clock::now()),
            Ok(Answer::Settled { .. }) => self.readiness.progress(clock::now()),
            Ok(Answer::Renewed { .. } | Answer::Noted { .. } | Answer::Trimmed { count: 0, .. }) => return,
            Ok(Answer::Requests { requests }) if requests.is_empty() => return,
            Ok(Answer::ClaimedForeign { count: 0, .. } | Answer::ExpiredDead { count: 0 }) => return,
            Ok(Answer::Unindexed { indexed: 0, .. } | Answer::PulledIn { moved: 0, .. }) => return,
            Ok(_) => {}
        }
        // Something has changed, or may have.
        self.stir.notify_one();
    }

    /// For the spans of calls, where there are any.
    fn traced(&mut self, answer: &Result<Answer, Failure>) {
        let began_us = self.called_us;
        if let Some(tracer) = self.reporter.tracer() {
            let called = Called { began_us, ended_us: clock::wall_us() };
            match answer {
                Ok(Answer::Entries { .. }) => tracer.read(called),
                Ok(Answer::Settled { .. }) => tracer.settled(called),
                _ => {}
            }
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

    /// Logs and counts what happened, and runs the errands.
    fn report(&mut self) {
        let now = self.now();
        let redis_ms = self.partition.redis_now(now);
        if let Some(tracer) = self.reporter.tracer() {
            tracer.set_registry(self.partition.registry());
        }
        for happening in self.partition.take_happenings() {
            self.reporter.happened(now, redis_ms, happening);
        }
        if let Some(tracer) = self.reporter.tracer() {
            tracer.told_all();
        }
        self.publish(false);
        let routes = self.partition.routes();
        // Of what is only passed on nothing is unfinished here.
        self.runner.own(self.partition.term().filter(|_| routes.is_none()));
        self.routing.own(routes);
        self.reporter.tick(now);
        self.reporter.tally(self.partition.tally());
        self.standing.set(self.keys.stream(), self.partition.is_owner());
        self.asked_by.tell(self.keys.stream(), self.partition.asked_by());
        for errand in self.partition.take_errands() {
            match errand {
                Errand::AbortFlights => self.attempts.abort_all(),
                Errand::ConfirmRegistry => drop(self.errands.spawn(of_the_same(confirm(self.registry.clone())))),
                Errand::Core(errand) => {
                    let (redis, root, audit) = (self.redis.clone(), self.root.clone(), self.audit.clone());
                    drop(self.errands.spawn(of_the_same(change_endpoint(redis, root, audit, errand))));
                }
            }
        }
    }
}

/// The result in a slot, or never while it is empty.
async fn ready<T>(slot: &mut Option<Pin<Box<dyn Future<Output = T> + Send>>>) -> T {
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
