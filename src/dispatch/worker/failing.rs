//! Which endpoints fail, so that the log has one line for each of them and minute instead of one for each of their
//! deliveries, and one line when they take events again. Pure: the time is passed in. Counts are the metrics' job.

use crate::{
    dispatch::HashMap,
    facts::id::{DeliveryId, EndpointId, EventId, IntentId},
};

const EVERY_MS: u64 = 60_000;

/// How often what is still to be said is looked for.
const LOOK_EVERY_MS: u64 = 1_000;

/// Endpoints that are followed at once: the log has a hundred lines a minute for all of them.
const MOST: usize = 4_096;

/// An endpoint that nobody has tried for so long has no events any more, or is gone: the longest pause is 30 days only where
/// somebody asked for that.
const FORGOTTEN_MS: u64 = 86_400_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Attempts that will be made again.
    Failed,
    /// Deliveries that were given up.
    Dead,
}

/// What happened to one delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    pub delivery: DeliveryId,
    pub event: Option<EventId>,
    pub intent: IntentId,
    /// The outcome of the attempt, or the reason of the letter.
    pub why: String,
}

/// A line of the log.
#[derive(Debug, PartialEq, Eq)]
pub struct Line {
    pub kind: Kind,
    /// How many there were since the line before.
    pub number: u64,
    /// The last of them.
    pub last: Case,
}

/// An endpoint takes events again.
#[derive(Debug, PartialEq, Eq)]
pub struct Recovery {
    pub after_ms: u64,
    /// Since it began to fail.
    pub failed: u64,
}

#[derive(Debug, Default)]
pub struct Failing {
    endpoints: HashMap<EndpointId, Trouble>,
    looked_at: u64,
}

#[derive(Debug, Default)]
struct Trouble {
    failed: Series,
    dead: Series,
    /// Since its last success: when attempts began to fail, how many did, and whether the log says so.
    since: Option<u64>,
    failed_since: u64,
    is_told: bool,
    last_at: u64,
}

#[derive(Debug, Default)]
struct Series {
    said_at: Option<u64>,
    /// How many since then, and the last of them.
    number: u64,
    last: Option<Case>,
}

impl Failing {
    /// If it is time for a line, returns it, with this case included.
    pub fn happened(&mut self, now: u64, kind: Kind, case: Case) -> Option<Line> {
        if self.endpoints.len() >= MOST && !self.endpoints.contains_key(&case.delivery.endpoint) {
            return None;
        }
        let trouble = self.endpoints.entry(case.delivery.endpoint.clone()).or_default();
        trouble.last_at = now;
        if kind == Kind::Failed {
            trouble.since.get_or_insert(now);
            trouble.failed_since += 1;
        }
        let series = trouble.series(kind);
        series.number += 1;
        series.last = Some(case);
        trouble.line(now, kind)
    }

    /// An attempt has succeeded. Says so only if the log says that attempts failed: a single one that fails between others is
    /// not worth two lines.
    pub fn recovered(&mut self, now: u64, endpoint: &EndpointId) -> Option<Recovery> {
        let trouble = self.endpoints.get_mut(endpoint)?;
        (trouble.failed.number, trouble.failed.last) = (0, None);
        let failed = std::mem::take(&mut trouble.failed_since);
        let since = trouble.since.take()?;
        std::mem::take(&mut trouble.is_told).then(|| Recovery { after_ms: now.saturating_sub(since), failed })
    }

    /// What waited for its minute to be over, and is said although nothing else happens. Call it often.
    pub fn due(&mut self, now: u64) -> Vec<Line> {
        if now < self.looked_at + LOOK_EVERY_MS {
            return Vec::new();
        }
        self.looked_at = now;
        let lines = self.endpoints.values_mut();
        let lines = lines.flat_map(|trouble| [Kind::Failed, Kind::Dead].map(|kind| trouble.line(now, kind))).flatten();
        let lines = lines.collect();
        self.endpoints.retain(|_, trouble| trouble.is_worth_keeping(now));
        lines
    }
}

impl Trouble {
    fn series(&mut self, kind: Kind) -> &mut Series {
        match kind {
            Kind::Failed => &mut self.failed,
            Kind::Dead => &mut self.dead,
        }
    }

    fn line(&mut self, now: u64, kind: Kind) -> Option<Line> {
        let series = self.series(kind);
        if series.said_at.is_some_and(|at| now < at + EVERY_MS) {
            return None;
        }
        let last = series.last.take()?;
        let line = Line { kind, number: std::mem::take(&mut series.number), last };
        series.said_at = Some(now);
        self.is_told |= kind == Kind::Failed;
        Some(line)
    }

    fn is_worth_keeping(&self, now: u64) -> bool {
        let is_within = |ms| now < self.last_at + ms;
        is_within(EVERY_MS) || (self.since.is_some() && is_within(FORGOTTEN_MS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(delivery: &str, why: &str) -> Case {
        Case { delivery: delivery.parse().unwrap(), event: None, intent: "pi_1".parse().unwrap(), why: why.to_owned() }
    }

    fn fails(failing: &mut Failing, now: u64, entry: u64, endpoint: &str) -> Option<u64> {
        let line = failing.happened(now, Kind::Failed, case(&format!("{entry}-0:{endpoint}"), "timed out"));
        line.map(|line| line.number)
    }

    #[test]
    fn each_endpoint_has_one_line_a_minute_whatever_fails() {
        let mut failing = Failing::default();
        assert_eq!((fails(&mut failing, 5, 1, "ep_a"), fails(&mut failing, 6, 2, "ep_b")), (Some(1), Some(1)));
        for now in 6..60_005 {
            assert_eq!(fails(&mut failing, now, now, "ep_a"), None);
        }
        let line = failing.happened(60_005, Kind::Failed, case("9-0:ep_a", "refused")).unwrap();
        assert_eq!((line.number, line.last), (60_000, case("9-0:ep_a", "refused")));
    }

    #[test]
    fn a_letter_is_told_at_once_although_attempts_failed_before_it() {
        let mut failing = Failing::default();
        assert_eq!(fails(&mut failing, 1, 1, "ep_a"), Some(1));
        let letter = failing.happened(2, Kind::Dead, case("1-0:ep_a", "exhausted")).unwrap();
        assert_eq!((letter.kind, letter.number), (Kind::Dead, 1));
    }

    #[test]
    fn what_nothing_follows_is_said_when_its_minute_is_over() {
        let mut failing = Failing::default();
        for entry in 1..=3 {
            failing.happened(1, Kind::Dead, case(&format!("{entry}-0:ep_a"), "exhausted"));
        }
        assert_eq!(failing.due(60_000), []);
        let lines = failing.due(61_000);
        assert_eq!(lines, [Line { kind: Kind::Dead, number: 2, last: case("3-0:ep_a", "exhausted") }]);
        assert_eq!(failing.due(200_000), []);
        assert!(failing.endpoints.is_empty());
    }

    #[test]
    fn a_recovery_is_told_once_and_only_after_the_log_said_that_it_failed() {
        let (mut failing, endpoint) = (Failing::default(), "ep_a".parse().unwrap());
        assert_eq!(failing.recovered(0, &endpoint), None);
        fails(&mut failing, 1_000, 1, "ep_a");
        fails(&mut failing, 2_000, 2, "ep_a");
        assert_eq!(failing.recovered(9_000, &endpoint), Some(Recovery { after_ms: 8_000, failed: 2 }));
        assert_eq!(failing.recovered(9_001, &endpoint), None);
        // One that fails every second time has no more lines than one that always fails.
        for now in 10_000..60_000 {
            assert_eq!(fails(&mut failing, now, 3, "ep_a"), None);
            assert_eq!(failing.recovered(now, &endpoint), None);
        }
        assert_eq!(failing.due(61_000), []);
        assert_eq!(fails(&mut failing, 61_000, 4, "ep_a"), Some(1));
        assert!(failing.recovered(61_001, &endpoint).is_some());
    }

    #[test]
    fn an_endpoint_that_still_fails_is_remembered_and_their_number_is_bounded() {
        let (mut failing, endpoint) = (Failing::default(), "ep_a".parse().unwrap());
        fails(&mut failing, 0, 1, "ep_a");
        failing.due(43_200_000);
        assert!(failing.recovered(43_200_000, &endpoint).is_some());
        for number in 0..10_000 {
            fails(&mut failing, 43_200_001, 1, &format!("ep_{number}"));
        }
        assert_eq!(failing.endpoints.len(), MOST);
    }
}
