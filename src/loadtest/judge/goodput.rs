//! What receivers that are not perfect get: `goodput`, `recovered` and `needless_retry`. Pure.
//!
//! No other promise can see a sender that is too cautious. Latency counts first arrivals, and a resting lane has few of
//! them; nothing is lost, only late; and `retried_late` excuses every breaker that may be open for a reason, as it once
//! excused a lane's rest after any 503. Nor did any scenario's receiver have enough to do: the flaky ones get a
//! hundredth of what they can take, so even a lane that is shut most of the time gets rid of it. So what counts here is
//! the work that was done, at a rate that matters, compared with the same receiver without failures.

use std::time::Duration;

use super::{Case, End, Item, mark_us, trial::Trial};
use crate::{
    loadtest::{ledger::times::micros, result::Goodput, scenario::Profile},
    surface::words,
};

/// With fewer deliveries, a receiver's share says nothing. With this many, the failures drawn differ from their
/// probability by a twentieth at most (four deviations at 30 %), and the bounds leave that much room.
const LEAST_OWED: u64 = 400;

/// A healed receiver's backlog may take this many times as long as its capacity says: lanes grow, and the backlog goes
/// through Redis.
const CAPACITY_FACTOR: f64 = 2.0;

/// What an attempt takes besides its receiver's time, on a busy machine.
const WAY: Duration = Duration::from_millis(5);

/// Beyond what follows from capacity and policy: for a stall of the machine, as with late retries.
const RECOVERY_SLACK: Duration = Duration::from_secs(3);

/// How soon a request that is sent again at once has arrived, not counting round trips and the receiver's time. It
/// takes milliseconds; a stall of the machine lasts a second or two.
const AT_ONCE: Duration = Duration::from_secs(3);

/// A new connection with TLS, and the request once more.
const ROUND_TRIPS: u32 = 6;

/// What the endpoints of a profile were owed, and how much of it they had taken when the load ended.
#[derive(Debug, Clone, Copy, Default)]
struct Taken {
    endpoints: u64,
    owed: u64,
    in_time: u64,
}

impl Taken {
    /// What was owed, or what this many places can take in that time, whichever is less.
    fn share(&self, profile: &Profile, max_in_flight: u16, window_s: f64) -> f64 {
        let per_second = after(profile).map_or(f64::MAX, |after| f64::from(max_in_flight) / after.as_secs_f64());
        let most = (self.owed as f64).min(per_second * window_s * self.endpoints as f64);
        if most > 0.0 { self.in_time as f64 / most } else { 0.0 }
    }
}

/// How long a receiver thinks, if it does.
fn after(profile: &Profile) -> Option<Duration> {
    match profile {
        Profile::Slow { after } | Profile::Imperfect { after, .. } => Some(*after).filter(|after| !after.is_zero()),
        _ => None,
    }
}

/// One for each imperfect profile that has a twin; none if a fault or a drain makes rates incomparable.
pub fn goodput(case: &Case<'_>) -> Vec<Goodput> {
    // A fault stops all alike, but the backlog behind it is not worked off alike.
    if case.evidence.is_drain || case.evidence.faults.iter().any(|fault| fault.fault.is_felt()) {
        return Vec::new();
    }
    let (taken, window_s) = (taken(case), case.state.live.last_intended_us as f64 / 1e6);
    let profiles = case.population.profiles();
    let share = |at: usize| taken[at].share(&profiles[at], case.population.max_in_flight(at), window_s);
    let of = |(at, profile): (usize, &Profile)| {
        let Profile::Imperfect { after, goodput, .. } = profile else { return None };
        let is_twin = |at: usize| {
            matches!(&profiles[at], Profile::Slow { after: other } if other == after) && taken[at].owed >= LEAST_OWED
        };
        let twin = (0..profiles.len()).find(|at| is_twin(*at))?;
        let Taken { endpoints, owed, in_time } = taken[at];
        let could = share(twin);
        (owed >= LEAST_OWED && could > 0.0).then(|| Goodput {
            receiver: profile.label(),
            endpoints,
            owed,
            taken: in_time,
            share: share(at) / could,
            least: *goodput,
        })
    };
    profiles.iter().enumerate().filter_map(of).collect()
}

/// By profile.
fn taken(case: &Case<'_>) -> Vec<Taken> {
    let until_us = case.state.live.last_intended_us;
    let mut taken = vec![Taken::default(); case.population.profiles().len()];
    (0..case.population.active()).for_each(|endpoint| taken[case.population.profile_index(endpoint)].endpoints += 1);
    for (_, item) in case.items().filter(|(_, item)| item.sent.confirmed) {
        let of = &mut taken[case.population.profile_index(item.endpoint)];
        of.owed += 1;
        of.in_time += u64::from(item.book.is_acknowledged() && item.book.acknowledged_us <= until_us);
    }
    taken
}

pub fn judge_goodput(found: &[Goodput]) -> Trial {
    let text = "A receiver that fails now and then gets nearly all that it can take.";
    let mut trial = Trial::new("goodput", found.len() as u64, text);
    for one in found.iter().filter(|one| one.share < one.least) {
        let Goodput { receiver, share, least, owed, taken, .. } = one;
        trial.broke(|| {
            format!(
                "{receiver}: took {share:.2} of what it takes without that ({taken} of {owed} while the load lasted), at least \
                 {least:.2} is its due"
            )
        });
    }
    trial
}

/// Endpoints that were down and came back.
pub fn recovered(case: &Case<'_>) -> Trial {
    let mut trial = Trial::new("recovered", 0, "What a receiver missed while it was down is there soon after.");
    for endpoint in 0..case.population.active() {
        let Profile::Healing { at, after } = case.population.profile(endpoint) else { continue };
        let Some(recovery) = Recovery::of(case, endpoint, *at, *after) else { continue };
        trial.tried += 1;
        if recovery.overdue > 0 {
            trial.broke(|| {
                let (id, Recovery { behind, overdue, within, .. }) = (case.population.endpoint_id(endpoint), recovery);
                format!(
                    "{id}: {overdue} of {behind} came later than {} after it was back",
                    words::seconds(within.as_secs_f64())
                )
            });
        }
    }
    trial
}

struct Recovery {
    /// What it was owed when it came back.
    behind: u64,
    /// When it must have been delivered.
    within: Duration,
    overdue: u64,
}

impl Recovery {
    /// None if nothing can be said: nothing was behind, more comes than it can take, the run ended first, or something
    /// else stood in the way.
    fn of(case: &Case<'_>, endpoint: u32, at: Duration, after: Duration) -> Option<Self> {
        let at_us = micros(at);
        let owed = || case.items().filter(move |(_, item)| item.endpoint == endpoint && item.sent.confirmed);
        let was_behind = |delivery: u32, item: &Item<'_>| {
            let is_older = item.sent.sent_us < at_us && !item.sent.sent_again;
            is_older && !matches!(case.end(delivery, item), End::Dead | End::NotOwed)
        };
        let behind: Vec<Item<'_>> =
            owed().filter(|(delivery, item)| was_behind(*delivery, item)).map(|(_, item)| item).collect();
        let ended_us = case.state.live.last_intended_us;
        let more = owed().filter(|(_, item)| item.sent.sent_us >= at_us).count();
        let more_a_second = more as f64 * 1e6 / ended_us.saturating_sub(at_us).max(1) as f64;
        let places = case.population.max_in_flight(case.population.profile_index(endpoint));
        let capacity = f64::from(places) / (after + WAY).as_secs_f64();
        if behind.is_empty() || capacity <= more_a_second {
            return None;
        }
        let drain = Duration::from_secs_f64(behind.len() as f64 / (capacity - more_a_second) * CAPACITY_FACTOR);
        let within = found_again(case, at) + drain + RECOVERY_SLACK;
        let until_us = at_us + micros(within);
        let is_excused = case.is_disturbed(at_us, until_us) || case.backlog.lies_within(at_us, until_us);
        if is_excused
            || mark_us(case.evidence.ended_s) < until_us && behind.iter().any(|item| !item.book.is_acknowledged())
        {
            return None;
        }
        let is_late = |item: &&Item<'_>| !item.book.is_acknowledged() || item.book.acknowledged_us > until_us;
        let overdue = behind.iter().filter(is_late).count() as u64;
        Some(Self { behind: behind.len() as u64, within, overdue })
    }
}

/// How long until the breaker probes a receiver that is back, and until a retry after that. A pause that doubles is
/// never longer than all those before it plus the first: so it exceeds the time that the receiver was down by the first
/// at most.
fn found_again(case: &Case<'_>, down: Duration) -> Duration {
    let terms = case.population.terms();
    let cooldown = terms.max_cooldown.min(down + terms.cooldown);
    (cooldown + terms.retry.max_interval).mul_f64(1.0 + terms.retry.jitter) + terms.timeout
}

/// Deliveries that only the connection to their receiver could disturb.
pub fn needless_retry(case: &Case<'_>) -> Trial {
    let text = "What a receiver certainly did not process goes again at once, and is no failure.";
    let mut trial = Trial::new("needless_retry", 0, text);
    for (_, item) in case.items().filter(|(_, item)| item.sent.confirmed && !item.sent.sent_again) {
        let Profile::Fleeting { after, rtt, .. } = case.population.profile(item.endpoint) else { continue };
        let (sent_us, book) = (item.sent.sent_us, item.book);
        let end_us = if book.is_acknowledged() { book.acknowledged_us } else { mark_us(case.evidence.ended_s) };
        if case.is_disturbed(sent_us, end_us) || case.backlog.lies_within(sent_us, end_us) {
            continue;
        }
        trial.tried += 1;
        if book.attempt > 1 {
            trial.broke(|| case.name(&item, "counted as a failure of its receiver"));
        } else if item.sent.place == 0 && end_us.saturating_sub(sent_us) > micros(AT_ONCE + *rtt * ROUND_TRIPS + *after)
        {
            let waited_s = end_us.saturating_sub(sent_us) as f64 / 1e6;
            trial.broke(|| case.name(&item, &format!("acknowledged {} after it was sent", words::seconds(waited_s))));
        }
    }
    trial
}

#[cfg(test)]
#[path = "goodput_tests.rs"]
mod tests;
