//! Whether this worker should be trusted with traffic, and why not. The engine reports, and `/readyz` asks from a
//! thread of its own, so that a thread that hangs is noticed and not waited for. Reads no clock and decides nothing
//! else: a worker that is not ready goes on working.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::facts::sealing::KeyId;

/// If nothing of a backlog moves for this long, that is a stall. Longer than the slowest attempt of the defaults (15 s)
/// and a take-over (5 s) together, short enough for a pager. If an attempt may take longer than that, so may this.
pub const STALLED_AFTER: Duration = Duration::from_secs(30);

/// How often at least the worker's loop says that it gets its turn, and after how long a silence it is taken to hang: shorter
/// than the default lease, longer than a busy machine lets a thread wait.
pub const BEAT_EVERY: Duration = Duration::from_millis(500);
pub const SILENT_AFTER: Duration = Duration::from_secs(4);

/// How long Redis may refuse or lose what the worker asks: a failover and the first tries after it. Without another
/// refusal for twice as long it is over, even if nothing was owed.
pub const REFUSED_AFTER: Duration = Duration::from_secs(5);

const REFUSED: &str = "Redis does not carry out what the worker asks: see the log";

/// What the process reports, and each of its partitions of itself (see [`Readiness::of`]). Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct Readiness {
    state: Arc<Mutex<State>>,
    /// Whose reports go through this one; none: the process'.
    place: Option<Arc<Place>>,
}

/// One partition's place among the others, until its reporter is dropped.
#[derive(Debug)]
struct Place {
    state: Arc<Mutex<State>>,
    partition: String,
}

#[derive(Debug, Clone, Default)]
struct State {
    draining: bool,
    /// Whether it is still open which keys the endpoints need.
    awaits_endpoints: bool,
    /// Keys that endpoints need and this process does not have.
    missing_keys: BTreeSet<KeyId>,
    own: Reported,
    partitions: BTreeMap<String, Reported>,
}

/// What one of them has reported.
#[derive(Debug, Clone, Default)]
struct Reported {
    /// Whether Redis answered last time; none before the first.
    redis: Option<bool>,
    /// When its loop last had its turn; none before the first.
    beat_at: Option<Instant>,
    /// The first and the last call that was not carried out, since the last progress.
    refused: Option<(Instant, Instant)>,
    /// Since when there is a backlog that this worker, as the owner, has to move.
    backlog_since: Option<Instant>,
    longest_attempt: Duration,
    progressed_at: Option<Instant>,
}

impl Readiness {
    /// Not ready until Redis has answered once.
    pub fn new() -> Self {
        Self::default()
    }

    /// For what a partition reports of itself. With the last clone of it that is forgotten.
    pub fn of(&self, partition: &str) -> Self {
        self.lock().partitions.entry(partition.to_owned()).or_default();
        let place = Place { state: Arc::clone(&self.state), partition: partition.to_owned() };
        Self { state: Arc::clone(&self.state), place: Some(Arc::new(place)) }
    }

    /// Whether Redis answered last time.
    pub fn set_redis(&self, answers: bool) {
        self.report(|reported| reported.redis = Some(answers));
    }

    /// Not ready before the endpoints were read: until then nobody knows whether their secrets open.
    pub fn await_endpoints(&self) {
        self.lock().awaits_endpoints = true;
    }

    /// The endpoints were read, and these keys of theirs are missing.
    pub fn set_missing_keys(&self, missing: BTreeSet<KeyId>) {
        let mut state = self.lock();
        (state.awaits_endpoints, state.missing_keys) = (false, missing);
    }

    /// The worker is shutting down. There is no way back.
    pub fn set_draining(&self) {
        self.lock().draining = true;
    }

    /// Whether it did; not before the first time.
    pub fn redis_answers(&self) -> bool {
        self.lock().redis_answers()
    }

    /// A loop of the worker had its turn.
    pub fn beat(&self, at: Instant) {
        self.report(|reported| reported.beat_at = Some(at));
    }

    /// Whether the worker has begun, and each of its loops had its turn lately.
    pub fn is_alive(&self, now: Instant) -> bool {
        let state = self.lock();
        let mut beats = state.all().filter_map(|(_, reported)| reported.beat_at).peekable();
        beats.peek().is_some() && beats.all(|at| now.saturating_duration_since(at) < SILENT_AFTER)
    }

    /// A call of the worker was refused, failed or got lost. That others are carried out proves nothing: a worker that
    /// may read but not settle reads the same entries for ever.
    pub fn refused(&self, at: Instant) {
        self.report(|reported| {
            let first = reported.refusing(at).map_or(at, |(first, _)| first);
            reported.refused = Some((first, at));
        });
    }

    /// Something that was owed became durable. What was only read or sent may come again, for ever.
    pub fn progress(&self, at: Instant) {
        self.report(|reported| (reported.progressed_at, reported.refused) = (Some(at), None));
    }

    /// Whether there is something that this worker could move now. A standby has no backlog in this sense, nor has an
    /// owner whose work is all parked, paused or due later. `longest_attempt` is how long any attempt that is out may
    /// take.
    pub fn backlog(&self, waiting: bool, longest_attempt: Duration, at: Instant) {
        self.report(|reported| {
            reported.longest_attempt = longest_attempt;
            reported.backlog_since = waiting.then(|| reported.backlog_since.unwrap_or(at));
        });
    }

    /// Ready, or every reason why not.
    pub fn verdict(&self, now: Instant) -> Result<(), Vec<Cow<'static, str>>> {
        self.lock().verdict(now)
    }

    fn report(&self, what: impl FnOnce(&mut Reported)) {
        let mut state = self.lock();
        match &self.place {
            Some(place) => what(state.partitions.entry(place.partition.clone()).or_default()),
            None => what(&mut state.own),
        }
    }

    /// No code panics with this lock held, and each field stands for itself: a poisoned one is still right.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).partitions.remove(&self.partition);
    }
}

impl Reported {
    /// The refusals, if they are not over.
    fn refusing(&self, now: Instant) -> Option<(Instant, Instant)> {
        self.refused.filter(|(_, last)| now.saturating_duration_since(*last) < 2 * REFUSED_AFTER)
    }

    /// Which of the reasons why not hold, apart from Redis.
    fn ails(&self, now: Instant) -> [(bool, &'static str); 3] {
        // A backlog that comes after a quiet night has not been stalling since the evening's last progress.
        let still_since = self.backlog_since.map(|since| self.progressed_at.map_or(since, |at| at.max(since)));
        let lasts = |since: Option<Instant>, long| since.is_some_and(|at| now.saturating_duration_since(at) >= long);
        let stalled = lasts(still_since, STALLED_AFTER.max(self.longest_attempt + STALLED_AFTER / 2));
        [
            (lasts(self.beat_at, SILENT_AFTER), "the worker's thread hangs or gets no processor"),
            (lasts(self.refusing(now).map(|(first, _)| first), REFUSED_AFTER), REFUSED),
            (stalled, "there is a backlog and nothing moves"),
        ]
    }
}

impl State {
    /// The process with no name, and each partition with its own.
    fn all(&self) -> impl Iterator<Item = (Option<&str>, &Reported)> {
        let partitions = self.partitions.iter().map(|(name, reported)| (Some(name.as_str()), reported));
        std::iter::once((None, &self.own)).chain(partitions)
    }

    /// One that has only just come says nothing before its first look.
    fn redis_answers(&self) -> bool {
        self.all().any(|(_, reported)| reported.redis == Some(true)) && self.without_redis().is_empty()
    }

    /// Partitions whose Redis did not answer last time. What the process heard is older than what they did.
    fn without_redis(&self) -> Vec<&str> {
        let away = self.partitions.iter().filter(|(_, reported)| reported.redis == Some(false));
        away.map(|(name, _)| name.as_str()).collect()
    }

    /// Where it is not true of all of them, whose it is.
    fn named(&self, reason: &'static str, partitions: &[&str]) -> Cow<'static, str> {
        match partitions.len() {
            0 => reason.into(),
            count if count == self.partitions.len() => reason.into(),
            _ => format!("{reason}: {}", partitions.join(", ")).into(),
        }
    }

    fn verdict(&self, now: Instant) -> Result<(), Vec<Cow<'static, str>>> {
        let mut ailing: [(&'static str, Option<Vec<&str>>); 3] = self.own.ails(now).map(|(_, reason)| (reason, None));
        for (name, reported) in self.all() {
            for (known, (_, of)) in reported.ails(now).into_iter().zip(&mut ailing) {
                if known.0 {
                    of.get_or_insert_default().extend(name);
                }
            }
        }
        let [hangs, refused, stalled] = ailing.map(|(reason, of)| of.map(|partitions| self.named(reason, &partitions)));
        let without_redis = (!self.redis_answers()).then(|| self.named("Redis does not answer", &self.without_redis()));
        let unread = self.awaits_endpoints && without_redis.is_none();
        let missing: Vec<String> = self.missing_keys.iter().map(KeyId::to_string).collect();
        let locked = (!missing.is_empty()).then(|| {
            format!("endpoints are locked: master_key_file does not have the key {}", missing.join(", ")).into()
        });
        let reasons: Vec<_> = [
            self.draining.then(|| "draining: the worker is shutting down".into()),
            hangs,
            without_redis,
            refused,
            stalled,
            unread.then(|| "the endpoints were not read yet".into()),
            locked,
        ]
        .into_iter()
        .flatten()
        .collect();
        match reasons.is_empty() {
            true => Ok(()),
            false => Err(reasons),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const STALLED: &str = "there is a backlog and nothing moves";

    fn with_redis() -> Readiness {
        let readiness = Readiness::new();
        readiness.set_redis(true);
        readiness
    }

    #[test]
    fn a_worker_is_ready_once_redis_answers_also_as_a_standby() {
        let now = clock::now();
        let readiness = Readiness::new();
        assert_eq!(readiness.verdict(now), Err(vec!["Redis does not answer".into()]));
        readiness.set_redis(true);
        assert_eq!(readiness.verdict(now + 100 * STALLED_AFTER), Ok(()));
    }

    #[test]
    fn every_reason_is_named_and_draining_has_no_way_back() {
        let now = clock::now();
        let readiness = Readiness::new();
        readiness.backlog(true, Duration::ZERO, now);
        readiness.set_draining();
        assert_eq!(readiness.verdict(now + STALLED_AFTER).unwrap_err().len(), 3);
        readiness.set_redis(true);
        readiness.backlog(false, Duration::ZERO, now);
        assert_eq!(readiness.verdict(now), Err(vec!["draining: the worker is shutting down".into()]));
    }

    #[test]
    fn a_backlog_stalls_only_when_nothing_moves_for_long_enough() {
        let now = clock::now();
        let readiness = with_redis();
        readiness.backlog(true, Duration::ZERO, now);
        assert_eq!(readiness.verdict(now + STALLED_AFTER - Duration::from_millis(1)), Ok(()));
        assert_eq!(readiness.verdict(now + STALLED_AFTER), Err(vec![STALLED.into()]));
        readiness.progress(now + STALLED_AFTER);
        assert_eq!(readiness.verdict(now + STALLED_AFTER), Ok(()));
        assert_eq!(readiness.verdict(now + 2 * STALLED_AFTER), Err(vec![STALLED.into()]));
        // Reporting it again does not make a backlog younger.
        readiness.backlog(true, Duration::ZERO, now + 2 * STALLED_AFTER);
        assert_eq!(readiness.verdict(now + 2 * STALLED_AFTER), Err(vec![STALLED.into()]));
        readiness.backlog(false, Duration::ZERO, now + 2 * STALLED_AFTER);
        assert_eq!(readiness.verdict(now + 2 * STALLED_AFTER), Ok(()));
    }

    #[test]
    fn an_attempt_that_may_take_long_is_no_stall() {
        let now = clock::now();
        let readiness = with_redis();
        readiness.backlog(true, Duration::from_secs(60), now);
        assert_eq!(readiness.verdict(now + Duration::from_secs(74)), Ok(()));
        assert_eq!(readiness.verdict(now + Duration::from_secs(75)), Err(vec![STALLED.into()]));
        readiness.backlog(true, Duration::ZERO, now);
        assert_eq!(readiness.verdict(now + STALLED_AFTER), Err(vec![STALLED.into()]));
    }

    #[test]
    fn a_thread_that_gets_no_turn_is_not_ready() {
        let now = clock::now();
        let readiness = with_redis();
        assert_eq!(readiness.verdict(now + SILENT_AFTER), Ok(()), "it has not begun");
        assert!(!readiness.is_alive(now), "it has not begun");
        readiness.beat(now);
        assert!(readiness.is_alive(now) && !readiness.is_alive(now + SILENT_AFTER));
        assert_eq!(readiness.verdict(now + SILENT_AFTER - Duration::from_millis(1)), Ok(()));
        assert!(readiness.verdict(now + SILENT_AFTER).unwrap_err()[0].contains("thread hangs"));
        readiness.beat(now + SILENT_AFTER);
        assert_eq!(readiness.verdict(now + SILENT_AFTER), Ok(()));
    }

    #[test]
    fn a_redis_that_only_answers_questions_is_not_ready() {
        let now = clock::now();
        let readiness = with_redis();
        readiness.refused(now);
        readiness.refused(now + REFUSED_AFTER / 2);
        assert_eq!(readiness.verdict(now + REFUSED_AFTER - Duration::from_millis(1)), Ok(()));
        assert_eq!(readiness.verdict(now + REFUSED_AFTER), Err(vec![REFUSED.into()]));
        readiness.progress(now + REFUSED_AFTER);
        assert_eq!(readiness.verdict(now + REFUSED_AFTER), Ok(()));
        readiness.refused(now + 2 * REFUSED_AFTER);
        assert_eq!(readiness.verdict(now + 2 * REFUSED_AFTER), Ok(()), "it counts anew");
        assert_eq!(readiness.verdict(now + 3 * REFUSED_AFTER), Err(vec![REFUSED.into()]));
        assert_eq!(readiness.verdict(now + 4 * REFUSED_AFTER), Ok(()), "the last was long ago");
    }

    #[test]
    fn a_backlog_after_a_quiet_night_is_not_a_stall() {
        let evening = clock::now();
        let morning = evening + 1000 * STALLED_AFTER;
        let readiness = with_redis();
        readiness.progress(evening);
        readiness.backlog(true, Duration::ZERO, morning);
        assert_eq!(readiness.verdict(morning), Ok(()));
    }

    #[test]
    fn a_worker_that_lacks_a_key_of_an_endpoint_is_not_ready_and_says_which() {
        let now = clock::now();
        let readiness = with_redis();
        readiness.await_endpoints();
        assert_eq!(readiness.verdict(now), Err(vec!["the endpoints were not read yet".into()]));
        readiness.set_missing_keys(["a3459a75e2d8".parse().unwrap()].into());
        let reasons = readiness.verdict(now).unwrap_err();
        assert!(reasons.len() == 1 && reasons[0].contains("does not have the key a3459a75e2d8"), "{reasons:?}");
        readiness.set_missing_keys(BTreeSet::new());
        assert_eq!(readiness.verdict(now), Ok(()));
    }

    #[test]
    fn what_is_not_true_of_all_partitions_is_told_with_their_names() {
        let now = clock::now();
        let readiness = Readiness::new();
        readiness.set_redis(true);
        let [one, two] = ["pay:0", "pay:1"].map(|partition| readiness.of(partition));
        assert_eq!(readiness.verdict(now), Ok(()), "one that has only just come has not looked yet");
        one.set_redis(true);
        two.set_redis(false);
        two.backlog(true, Duration::ZERO, now);
        one.beat(now);
        two.beat(now);
        let later = now + STALLED_AFTER;
        one.beat(later);
        let reasons = readiness.verdict(later).unwrap_err();
        let hangs = "the worker's thread hangs or gets no processor: pay:1";
        let expected = [hangs, "Redis does not answer: pay:1", "there is a backlog and nothing moves: pay:1"];
        assert_eq!(reasons, expected);
        assert!(!readiness.is_alive(later) && !readiness.redis_answers());
        one.set_redis(false);
        assert!(readiness.verdict(later).unwrap_err().contains(&"Redis does not answer".into()), "of all of them");
        one.set_redis(true);
        drop(two);
        assert_eq!(readiness.verdict(later), Ok(()), "it is no partition of this worker any more");
        assert!(readiness.is_alive(later) && readiness.redis_answers());
    }
}
