//! How an endpoint's receiver does, as the owner of its partition publishes it: what is under way, what came of the attempts of the
//! last minutes and of the last day, and why they failed. Pure, and bounded whatever a receiver does. Times are Redis', ms since 1970.

use serde::{Deserialize, Serialize};

use super::{
    id::{AccountId, DeliveryId},
    letter::Cause,
};

/// Version of the stored form.
pub const HEALTH_SCHEMA: u32 = 1;

pub const MINUTE_MS: u64 = 60_000;
pub const HOUR_MS: u64 = 3_600_000;
pub const DAY_MS: u64 = 24 * HOUR_MS;

/// How many minutes, and how many hours, are told apart.
pub const MINUTES: u64 = 15;
pub const HOURS: u64 = 24;

/// Causes that are told apart: a receiver that makes up a new status each time has no more of them.
pub const MAX_CAUSES: usize = 6;

/// What an attempt says of itself is cut to this.
pub const MAX_DETAIL_CHARS: usize = 120;

/// An endpoint fails once so many attempts in a row have failed, or once that has lasted for a minute: before that it may be
/// an accident.
const FAILED_IN_A_ROW: u64 = 5;

/// Of the last minutes' attempts, one that takes some fails one in ten or more, and at least this many.
const UNSTEADY_PART: u64 = 10;
const UNSTEADY_LEAST: u64 = 5;

/// So many failures in so many minutes are one in this time at least: one that has not failed for so long is steady again.
const STEADY_AFTER_MS: u64 = MINUTES / UNSTEADY_LEAST * MINUTE_MS;

/// What came of the attempts of one minute or hour. Stored as five numbers, because there are many of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "(u64, u32, u32, u64, u32)", into = "(u64, u32, u32, u64, u32)")]
pub struct Slot {
    /// Which minute, or which hour, since 1970.
    pub number: u64,
    pub delivered: u32,
    pub failed: u32,
    /// How long those took that delivered: all of them together, and the slowest.
    pub took_ms: u64,
    pub slowest_ms: u32,
}

impl From<(u64, u32, u32, u64, u32)> for Slot {
    fn from((number, delivered, failed, took_ms, slowest_ms): (u64, u32, u32, u64, u32)) -> Self {
        Self { number, delivered, failed, took_ms, slowest_ms }
    }
}

impl From<Slot> for (u64, u32, u32, u64, u32) {
    fn from(slot: Slot) -> Self {
        (slot.number, slot.delivered, slot.failed, slot.took_ms, slot.slowest_ms)
    }
}

/// The slots of the last minutes or hours, the oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Slots(Vec<Slot>);

/// What several slots say together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    pub delivered: u64,
    pub failed: u64,
    /// Per cent, rounded down, so that 100 means all. None without an attempt.
    pub success_percent: Option<u64>,
    pub mean_ms: Option<u64>,
    pub slowest_ms: Option<u64>,
}

impl Slots {
    /// Adds to the slot `number` and forgets those that are not among the last `keep`. A clock that was set back leaves slots
    /// ahead of it; they go.
    fn add(&mut self, number: u64, keep: u64, seen: &Seen) {
        self.0.retain(|slot| slot.number <= number && slot.number + keep > number);
        if self.0.last().is_none_or(|last| last.number < number) {
            self.0.push(Slot { number, ..Slot::default() });
        }
        let Some(slot) = self.0.last_mut() else { return };
        slot.delivered = slot.delivered.saturating_add(seen.delivered);
        slot.failed = slot.failed.saturating_add(seen.failed);
        slot.took_ms = slot.took_ms.saturating_add(seen.took_ms);
        slot.slowest_ms = slot.slowest_ms.max(seen.slowest_ms);
    }

    /// The last `count` slots up to `number` together.
    pub fn totals(&self, number: u64, count: u64) -> Totals {
        let within = self.0.iter().filter(|slot| slot.number <= number && slot.number + count > number);
        let (mut delivered, mut failed, mut took_ms, mut slowest_ms) = (0, 0, 0, 0);
        for slot in within {
            delivered += u64::from(slot.delivered);
            failed += u64::from(slot.failed);
            took_ms += slot.took_ms;
            slowest_ms = slowest_ms.max(u64::from(slot.slowest_ms));
        }
        Totals {
            delivered,
            failed,
            success_percent: (delivered * 100).checked_div(delivered + failed),
            mean_ms: took_ms.checked_div(delivered),
            slowest_ms: (delivered > 0).then_some(slowest_ms),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.0.iter()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum BreakerState {
    #[default]
    Closed,
    /// The next probe goes out then, if there is something to send.
    Open { next_probe_ms: u64 },
    /// So many probes may be out.
    HalfOpen { probes: u32 },
}

/// How often something happened, and when first and last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    pub count: u64,
    pub first_ms: u64,
    pub last_ms: u64,
}

impl Count {
    pub fn add(known: &mut Option<Self>, count: u64, at_ms: u64) {
        let known = known.get_or_insert(Self { count: 0, first_ms: at_ms, last_ms: at_ms });
        known.count = known.count.saturating_add(count);
        known.last_ms = known.last_ms.max(at_ms);
    }
}

/// What Redis says of an endpoint beside its health.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Waiting {
    pub unfinished: u64,
    pub parked: u64,
    pub letters: u64,
    /// The oldest unfinished delivery, where somebody has looked for it.
    pub oldest: Option<DeliveryId>,
}

/// Attempts that failed for one cause.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CauseSeen {
    pub cause: Cause,
    pub first_ms: u64,
    pub last_ms: u64,
    pub count: u64,
    /// By hour since 1970, the oldest first.
    pub hours: Vec<(u64, u32)>,
    /// The last one.
    pub sample: DeliveryId,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// How many dead letters there were within one hour, and whether operators were told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Growth {
    /// Since 1970.
    pub hour: u64,
    pub letters: u64,
    pub is_told: bool,
}

/// What an operator's endpoint was told of this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Told {
    #[default]
    Nothing,
    Failing,
    Disabled,
}

impl Told {
    fn is_nothing(&self) -> bool {
        *self == Self::Nothing
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Health {
    pub schema: u32,
    /// When this was so.
    pub at_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    pub breaker: BreakerState,
    /// How many attempts may be under way, and how many are.
    pub window: u32,
    pub in_flight: u32,
    #[serde(default)]
    pub minutes: Slots,
    #[serde(default)]
    pub hours: Slots,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_success_ms: Option<u64>,
    /// Nothing has succeeded since this failure. Begins anew after a day without any attempt: nobody knows of that day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failing_since_ms: Option<u64>,
    #[serde(default)]
    pub failed_since: u64,
    /// The last time that nothing was wrong with it when something happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub well_ms: Option<u64>,
    /// Of the last day.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<CauseSeen>,
    /// Events that were not owed to it, because it was disabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<Count>,
    #[serde(default, skip_serializing_if = "Told::is_nothing")]
    pub told: Told,
}

/// What happened to one endpoint since it was last looked at.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    pub account: Option<AccountId>,
    pub delivered: u32,
    pub failed: u32,
    pub took_ms: u64,
    pub slowest_ms: u32,
    pub last_success_ms: Option<u64>,
    /// After the last success, if there was one: how many failed, and when the first.
    pub failed_since: u32,
    pub failing_since_ms: Option<u64>,
    pub causes: Vec<Failed>,
    pub dead: u32,
    pub skipped: u32,
}

/// Attempts that failed alike.
#[derive(Debug, Clone)]
pub struct Failed {
    pub cause: Cause,
    pub count: u32,
    pub last_ms: u64,
    pub sample: DeliveryId,
    pub detail: String,
}

impl Seen {
    pub fn delivered(&mut self, at_ms: u64, took_us: u64) {
        let took_ms = took_us / 1_000;
        self.delivered = self.delivered.saturating_add(1);
        self.took_ms = self.took_ms.saturating_add(took_ms);
        self.slowest_ms = self.slowest_ms.max(u32::try_from(took_ms).unwrap_or(u32::MAX));
        self.last_success_ms = Some(at_ms);
        (self.failed_since, self.failing_since_ms) = (0, None);
    }

    pub fn failed(&mut self, at_ms: u64, cause: Cause, sample: &DeliveryId, detail: &str) {
        self.failed = self.failed.saturating_add(1);
        self.failed_since = self.failed_since.saturating_add(1);
        self.failing_since_ms.get_or_insert(at_ms);
        let known = self.causes.iter().position(|known| known.cause == cause);
        let at = known.unwrap_or_else(|| {
            // The newest cause takes the place of the one that was seen least recently.
            if self.causes.len() == MAX_CAUSES {
                let oldest = (0..MAX_CAUSES).min_by_key(|at| self.causes[*at].last_ms).unwrap_or(0);
                self.causes.swap_remove(oldest);
            }
            let (sample, detail) = (sample.clone(), String::new());
            self.causes.push(Failed { cause, count: 0, last_ms: at_ms, sample, detail });
            self.causes.len() - 1
        });
        let entry = &mut self.causes[at];
        entry.count = entry.count.saturating_add(1);
        entry.last_ms = at_ms;
        if entry.count == 1 {
            entry.detail = detail.chars().take(MAX_DETAIL_CHARS).collect();
        }
    }
}

/// What can be said of an endpoint in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Nothing succeeds.
    Failing,
    /// Some attempts fail.
    Unsteady,
    Well,
    /// No attempt within a day.
    Idle,
}

impl Verdict {
    pub fn name(self) -> &'static str {
        match self {
            Self::Failing => "failing",
            Self::Unsteady => "unsteady",
            Self::Well => "well",
            Self::Idle => "idle",
        }
    }
}

impl Health {
    pub fn new(at_ms: u64) -> Self {
        Self {
            schema: HEALTH_SCHEMA,
            at_ms,
            account: None,
            breaker: BreakerState::Closed,
            window: 0,
            in_flight: 0,
            minutes: Slots::default(),
            hours: Slots::default(),
            last_success_ms: None,
            failing_since_ms: None,
            failed_since: 0,
            well_ms: None,
            causes: Vec::new(),
            skipped: None,
            told: Told::Nothing,
        }
    }

    /// What happened up to `at_ms` is added.
    pub fn add(&mut self, at_ms: u64, seen: Seen) {
        if self.account.is_some() && seen.account.is_some() && self.account != seen.account {
            // Its id was given out again: what was before happened to somebody else.
            *self = Self { breaker: self.breaker, window: self.window, in_flight: self.in_flight, ..Self::new(at_ms) };
        }
        if matches!(self.verdict(at_ms), Verdict::Well | Verdict::Idle) {
            self.well_ms = Some(at_ms);
        }
        self.at_ms = at_ms;
        if seen.delivered > 0 || seen.failed > 0 {
            self.minutes.add(at_ms / MINUTE_MS, MINUTES, &seen);
            self.hours.add(at_ms / HOUR_MS, HOURS, &seen);
        }
        if seen.delivered > 0 {
            (self.failing_since_ms, self.failed_since) = (None, 0);
            self.last_success_ms = seen.last_success_ms;
        }
        if let Some(since_ms) = seen.failing_since_ms {
            let was_silent = self.last_failure().is_none_or(|last| last.last_ms + DAY_MS < since_ms);
            if self.failing_since_ms.is_none() || was_silent {
                (self.failing_since_ms, self.failed_since) = (Some(since_ms), 0);
            }
            self.failed_since = self.failed_since.saturating_add(u64::from(seen.failed_since));
        }
        seen.causes.into_iter().for_each(|failed| self.add_cause(failed));
        self.causes.retain(|known| known.last_ms + DAY_MS > at_ms);
        if seen.skipped > 0 {
            Count::add(&mut self.skipped, u64::from(seen.skipped), at_ms);
        }
        if seen.account.is_some() {
            self.account = seen.account;
        }
    }

    fn add_cause(&mut self, failed: Failed) {
        let Failed { cause, count, last_ms, sample, detail } = failed;
        let hour = last_ms / HOUR_MS;
        let known = match self.causes.iter().position(|known| known.cause == cause) {
            Some(at) => &mut self.causes[at],
            None => {
                if self.causes.len() >= MAX_CAUSES {
                    let oldest = (0..self.causes.len()).min_by_key(|at| self.causes[*at].last_ms).unwrap_or(0);
                    self.causes.swap_remove(oldest);
                }
                let (sample, hours) = (sample.clone(), Vec::new());
                let new =
                    CauseSeen { cause, first_ms: last_ms, last_ms, count: 0, hours, sample, detail: String::new() };
                self.causes.push(new);
                let last = self.causes.len() - 1;
                &mut self.causes[last]
            }
        };
        known.count = known.count.saturating_add(u64::from(count));
        known.last_ms = last_ms;
        (known.sample, known.detail) = (sample, detail);
        known.hours.retain(|(number, _)| *number <= hour && number + HOURS > hour);
        match known.hours.last_mut() {
            Some((number, so_far)) if *number == hour => *so_far = so_far.saturating_add(count),
            _ => known.hours.push((hour, count)),
        }
    }

    pub fn last_failure(&self) -> Option<&CauseSeen> {
        self.causes.iter().max_by_key(|known| known.last_ms)
    }

    /// What it says at `now_ms`, which may be long after it was written.
    pub fn verdict(&self, now_ms: u64) -> Verdict {
        let recent = self.last_minutes(now_ms);
        if let Some(since_ms) = self.failing_since_ms
            && (self.failed_since >= FAILED_IN_A_ROW || since_ms + MINUTE_MS <= now_ms)
        {
            return Verdict::Failing;
        }
        let has_failed_lately = self.last_failure().is_some_and(|last| last.last_ms + STEADY_AFTER_MS > now_ms);
        if has_failed_lately
            && recent.failed >= UNSTEADY_LEAST
            && recent.failed * UNSTEADY_PART >= recent.delivered + recent.failed
        {
            return Verdict::Unsteady;
        }
        let day = self.last_day(now_ms);
        match (day.delivered, day.failed) {
            (0, 0) => Verdict::Idle,
            // For now: what fails for a minute, and has no success, is failing.
            (0, _) => Verdict::Unsteady,
            _ => Verdict::Well,
        }
    }

    pub fn last_minutes(&self, now_ms: u64) -> Totals {
        self.minutes.totals(now_ms / MINUTE_MS, MINUTES)
    }

    pub fn last_day(&self, now_ms: u64) -> Totals {
        self.hours.totals(now_ms / HOUR_MS, HOURS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000_000;

    fn cause(text: &str) -> Cause {
        text.parse().unwrap()
    }

    fn failed(at_ms: u64, count: u32, why: &str) -> Seen {
        let mut seen = Seen::default();
        (0..count).for_each(|_| seen.failed(at_ms, cause(why), &"1-0:ep_a".parse().unwrap(), "refused"));
        seen
    }

    fn delivered(at_ms: u64, count: u32) -> Seen {
        let mut seen = Seen::default();
        (0..count).for_each(|_| seen.delivered(at_ms, 20_000));
        seen
    }

    #[test]
    fn it_tells_the_last_minutes_from_the_last_day_and_forgets_what_is_older() {
        let mut health = Health::new(NOW);
        for minute in 0..(30 * 60) {
            let at_ms = NOW + minute * MINUTE_MS;
            health.add(at_ms, delivered(at_ms, 9));
            health.add(at_ms, failed(at_ms, 1, "server_failed:500"));
        }
        let now_ms = NOW + (30 * 60 - 1) * MINUTE_MS;
        let recent = health.last_minutes(now_ms);
        assert_eq!((recent.delivered, recent.failed, recent.success_percent), (9 * 15, 15, Some(90)));
        assert_eq!((recent.mean_ms, recent.slowest_ms), (Some(20), Some(20)));
        assert_eq!(health.last_day(now_ms).delivered, 24 * 60 * 9);
        assert_eq!((health.minutes.iter().count(), health.hours.iter().count()), (15, 24));
        assert_eq!(health.causes[0].hours.len(), 24);
        assert!(serde_json::to_string(&health).unwrap().len() < 2_500);
        let later = now_ms + 2 * DAY_MS;
        assert_eq!((health.last_minutes(later), health.last_day(later).success_percent), (Totals::default(), None));
    }

    #[test]
    fn it_fails_while_nothing_succeeds_and_not_for_one_accident() {
        let mut health = Health::new(NOW);
        health.add(NOW, failed(NOW, 1, "dns_failed"));
        assert_eq!((health.verdict(NOW), health.verdict(NOW + MINUTE_MS)), (Verdict::Unsteady, Verdict::Failing));
        let mut tried = Health::new(NOW);
        tried.add(NOW, delivered(NOW, 1));
        tried.add(NOW + 1, failed(NOW + 1, 1, "dns_failed"));
        assert_eq!(tried.verdict(NOW + 1), Verdict::Well, "it took one a moment ago");
        health.add(NOW + 1, failed(NOW + 1, 4, "dns_failed"));
        assert_eq!((health.verdict(NOW + 1), health.failing_since_ms), (Verdict::Failing, Some(NOW)));
        health.add(NOW + 2, delivered(NOW + 2, 1));
        assert_eq!(
            (health.verdict(NOW + 2), health.failing_since_ms, health.failed_since),
            (Verdict::Unsteady, None, 0)
        );
        assert_eq!(health.verdict(NOW + 1 + 3 * MINUTE_MS), Verdict::Well);
        assert_eq!(health.last_success_ms, Some(NOW + 2));
        assert_eq!((health.verdict(NOW + HOUR_MS), health.verdict(NOW + 3 * DAY_MS)), (Verdict::Well, Verdict::Idle));
    }

    #[test]
    fn within_one_look_what_came_last_counts() {
        let mut seen = failed(NOW, 3, "reset");
        seen.delivered(NOW + 1, 1_000);
        let mut health = Health::new(NOW);
        health.add(NOW + 5, seen.clone());
        assert_eq!(health.failing_since_ms, None);
        seen.failed(NOW + 2, cause("reset"), &"2-0:ep_a".parse().unwrap(), "");
        health.add(NOW + 5, seen);
        assert_eq!((health.failing_since_ms, health.failed_since), (Some(NOW + 2), 1));
    }

    #[test]
    fn a_day_without_attempts_is_no_day_of_failing() {
        let mut health = Health::new(NOW);
        health.add(NOW, failed(NOW, 5, "dns_failed"));
        let next = NOW + DAY_MS - 1;
        health.add(next, failed(next, 1, "dns_failed"));
        assert_eq!(health.failing_since_ms, Some(NOW));
        let after = next + 5 * DAY_MS;
        health.add(after, failed(after, 1, "dns_failed"));
        assert_eq!((health.failing_since_ms, health.failed_since, health.causes.len()), (Some(after), 1, 1));
    }

    #[test]
    fn causes_and_slots_are_bounded_and_a_clock_set_back_leaves_nothing_ahead_of_it() {
        let mut health = Health::new(NOW);
        for status in 400..600 {
            health.add(NOW + status, failed(NOW + status, 2, &format!("rejected:{status}")));
        }
        assert_eq!(health.causes.len(), MAX_CAUSES);
        assert_eq!(health.last_failure().unwrap().cause, cause("rejected:599"));
        health.add(NOW - DAY_MS, delivered(NOW - DAY_MS, 1));
        assert_eq!(health.last_day(NOW).delivered, 0);
        assert_eq!(health.last_day(NOW - DAY_MS).delivered, 1);
    }

    #[test]
    fn what_is_stored_is_read_again() {
        let mut health = Health { account: "acc_a".parse().ok(), told: Told::Failing, ..Health::new(NOW) };
        health.breaker = BreakerState::Open { next_probe_ms: NOW + 5 };
        health.add(NOW, failed(NOW, 2, "tls_failed:expired"));
        health.add(NOW, Seen { skipped: 3, ..Seen::default() });
        let text = serde_json::to_string(&health).unwrap();
        assert_eq!(serde_json::from_str::<Health>(&text).unwrap(), health, "{text}");
    }
}
