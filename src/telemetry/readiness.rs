//! Whether this worker should be trusted with traffic, and why not. The engine reports, and `/readyz` asks from a
//! thread of its own, so that a thread that hangs is noticed and not waited for. Reads no clock and decides nothing
//! else: a worker that is not ready goes on working.

use std::{
    borrow::Cow,
    collections::BTreeSet,
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

/// Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<Mutex<State>>);

#[derive(Debug, Clone, Default)]
struct State {
    redis: bool,
    draining: bool,
    /// When the worker's loop last had its turn; none before the first.
    beat_at: Option<Instant>,
    /// The first and the last call of the worker that was not carried out, since the last progress.
    refused: Option<(Instant, Instant)>,
    /// Since when there is a backlog that this worker, as the owner, has to move.
    backlog_since: Option<Instant>,
    longest_attempt: Duration,
    progressed_at: Option<Instant>,
    /// Whether it is still open which keys the endpoints need.
    awaits_endpoints: bool,
    /// Keys that endpoints need and this process does not have.
    missing_keys: BTreeSet<KeyId>,
}

impl Readiness {
    /// Not ready until Redis has answered once.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether Redis answered last time.
    pub fn set_redis(&self, answers: bool) {
        self.lock().redis = answers;
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
        self.lock().redis
    }

    /// The worker's loop had its turn.
    pub fn beat(&self, at: Instant) {
        self.lock().beat_at = Some(at);
    }

    /// Whether the worker's loop has begun, and had its turn lately.
    pub fn is_alive(&self, now: Instant) -> bool {
        self.lock().beat_at.is_some_and(|at| now.saturating_duration_since(at) < SILENT_AFTER)
    }

    /// A call of the worker was refused, failed or got lost. That others are carried out proves nothing: a worker that
    /// may read but not settle reads the same entries for ever.
    pub fn refused(&self, at: Instant) {
        let mut state = self.lock();
        let first = state.refusing(at).map_or(at, |(first, _)| first);
        state.refused = Some((first, at));
    }

    /// Something that was owed became durable. What was only read or sent may come again, for ever.
    pub fn progress(&self, at: Instant) {
        let mut state = self.lock();
        state.progressed_at = Some(at);
        state.refused = None;
    }

    /// Whether there is something that this worker could move now. A standby has no backlog in this sense, nor has an
    /// owner whose work is all parked, paused or due later. `longest_attempt` is how long any attempt that is out may
    /// take.
    pub fn backlog(&self, waiting: bool, longest_attempt: Duration, at: Instant) {
        let mut state = self.lock();
        state.longest_attempt = longest_attempt;
        state.backlog_since = waiting.then(|| state.backlog_since.unwrap_or(at));
    }

    /// Ready, or every reason why not.
    pub fn verdict(&self, now: Instant) -> Result<(), Vec<Cow<'static, str>>> {
        self.lock().verdict(now)
    }

    /// No code panics with this lock held, and each field stands for itself: a poisoned one is still right.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The refusals, if they are not over.
    fn refusing(&self, now: Instant) -> Option<(Instant, Instant)> {
        self.refused.filter(|(_, last)| now.saturating_duration_since(*last) < 2 * REFUSED_AFTER)
    }

    fn verdict(&self, now: Instant) -> Result<(), Vec<Cow<'static, str>>> {
        // A backlog that comes after a quiet night has not been stalling since the evening's last progress.
        let still_since = self.backlog_since.map(|since| self.progressed_at.map_or(since, |at| at.max(since)));
        let lasts = |since: Option<Instant>, long| since.is_some_and(|at| now.saturating_duration_since(at) >= long);
        let stalled = lasts(still_since, STALLED_AFTER.max(self.longest_attempt + STALLED_AFTER / 2));
        let missing: Vec<String> = self.missing_keys.iter().map(KeyId::to_string).collect();
        let locked = (!missing.is_empty()).then(|| {
            format!("endpoints are locked: master_key_file does not have the key {}", missing.join(", ")).into()
        });
        let reasons: Vec<_> = [
            (self.draining, "draining: the worker is shutting down"),
            (lasts(self.beat_at, SILENT_AFTER), "the worker's thread hangs or gets no processor"),
            (!self.redis, "Redis does not answer"),
            (lasts(self.refusing(now).map(|(first, _)| first), REFUSED_AFTER), REFUSED),
            (stalled, "there is a backlog and nothing moves"),
            (self.redis && self.awaits_endpoints, "the endpoints were not read yet"),
        ]
        .into_iter()
        .filter_map(|(holds, reason)| holds.then_some(Cow::from(reason)))
        .chain(locked)
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
}
