//! Changes around Herald that must not hurt: `stale_url` is about URLs that change while events come, `standstill`
//! about things that end and that nothing may wait for. Pure.

use std::time::Duration;

use super::{Case, mark_us, trial::Trial};
use crate::loadtest::{ledger::times::micros, result::FaultMark, scenario::Profile};

/// Where work can go on, some of it is done in every span this long; a machine that is full stalls for a second or two.
const WINDOW: Duration = Duration::from_secs(5);

/// How many deliveries must be there at least when a window begins, because a few may be on their way in a retry.
const LEAST_LEFT: usize = 20;

/// What was accepted after a change was answered went to the new URL at every attempt.
pub fn stale_url(case: &Case<'_>) -> Trial {
    let text = "What is accepted after a change of its endpoint goes to the new URL.";
    let mut trial = Trial::new("stale_url", 0, text);
    let changes = &case.books().changes;
    let arrived =
        case.items().filter(|(_, item)| item.book.arrivals > 0 && item.sent.confirmed && !item.sent.sent_again);
    for (delivery, item) in arrived {
        let owed = changes.owed(item.endpoint, item.sent.entry_ms.into());
        if owed == 0 {
            continue;
        }
        trial.tried += 1;
        let asked = changes.arrived_at.get(&delivery).copied().unwrap_or(0);
        if asked < owed {
            trial.broke(|| case.name(&item, &format!("went to URL {asked} after {owed} was answered")));
        }
    }
    trial
}

/// Whether anything was delivered in each window of a fault that lets work go on, if there was something to deliver.
pub fn standstill(case: &Case<'_>) -> Trial {
    let text = "A full Redis, or a log that nobody reads, does not stop what was accepted from being delivered.";
    let mut trial = Trial::new("standstill", 0, text);
    for fault in case.evidence.faults.iter().filter(|fault| fault.fault.lets_work_go_on()) {
        for from_us in windows(case, fault) {
            let until_us = from_us + micros(WINDOW);
            let (mut left, mut done) = (0, 0);
            for (_, item) in case.items().filter(|(_, item)| item.sent.confirmed && is_prompt(case, item.endpoint)) {
                // From when Redis has it: what a full one refuses is the producer's to send again.
                let is_there = u64::try_from(item.sent.entry_ms).is_ok_and(|entry_ms| entry_ms * 1000 <= from_us);
                let is_left = item.book.acknowledged_us > from_us;
                left += usize::from(is_there && is_left);
                done += usize::from((from_us..until_us).contains(&item.book.acknowledged_us));
            }
            if left < LEAST_LEFT && done == 0 {
                continue;
            }
            trial.tried += 1;
            if done == 0 {
                let (from_s, name) = (from_us as f64 / 1e6, fault.fault.name());
                trial.broke(|| {
                    format!("{left} deliveries lay there at {from_s:.1}s, during {name}, and none was made in 5s")
                });
            }
        }
    }
    trial
}

/// The beginnings of its whole windows that no other fault disturbs.
fn windows(case: &Case<'_>, fault: &FaultMark) -> Vec<u64> {
    let (begins_us, ends_us, window_us) = (mark_us(fault.at), mark_us(fault.until), micros(WINDOW));
    let others = || case.evidence.faults.iter().filter(|other| *other != fault && other.fault.is_felt());
    let is_calm = |from_us: &u64| {
        let is_hit = |other: &FaultMark| {
            *from_us <= mark_us(other.until) + case.around_us() && from_us + window_us >= mark_us(other.at)
        };
        !others().any(is_hit)
    };
    let count = ends_us.saturating_sub(begins_us) / window_us;
    (0..count).map(|n| begins_us + n * window_us).filter(is_calm).collect()
}

fn is_prompt(case: &Case<'_>, endpoint: u32) -> bool {
    matches!(case.population.profile(endpoint), Profile::Healthy { .. })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        facts::id::EntryId,
        loadtest::{
            faults::Fault,
            judge::{Evidence, judge},
            ledger::{
                Answer, Arrival,
                tests::{BEGAN_MS, HEALTHY, History, us},
            },
        },
    };

    fn counts(history: &History, faults: Vec<FaultMark>, name: &str) -> (u64, u64) {
        let verdict = judge(&history.0, &Evidence { faults, ended_s: 60.0, ..Evidence::default() });
        let others = verdict.promises.iter().filter(|promise| promise.name != name && promise.broken > 0);
        assert_eq!(others.count(), 0, "{:?}", verdict.promises);
        let promise = verdict.promises.iter().find(|promise| promise.name == name).unwrap();
        (promise.tried, promise.broken)
    }

    #[test]
    fn what_is_accepted_after_a_change_was_answered_goes_to_the_new_url() {
        let history = || {
            let history = History::new(HEALTHY);
            let generation = history.0.next_generation();
            history.0.url_changed(0, generation, BEGAN_MS + 1_000);
            history
        };
        let arrives = |history: &History, event: u32, sent_at: f64, generation: u32| {
            history.sent(event, event, 0, sent_at);
            let arrival = Arrival { generation, ..History::request(event, 1, sent_at + 0.5) };
            let ticket = history.0.arrive(&arrival, us(sent_at + 0.5)).ticket.unwrap();
            history.answer(&ticket, Answer::Yes, sent_at + 0.5);
        };
        let right = history();
        arrives(&right, 0, 0.9, 0);
        arrives(&right, 1, 1.0, 0);
        arrives(&right, 2, 1.002, 1);
        assert_eq!(counts(&right, Vec::new(), "stale_url"), (1, 0));
        arrives(&right, 3, 1.1, 0);
        assert_eq!(counts(&right, Vec::new(), "stale_url"), (2, 1));
    }

    #[test]
    fn a_full_redis_in_which_nothing_moves_stands_still() {
        let history = |delivered_at: fn(u32) -> f64| {
            let history = History::new(HEALTHY);
            (0..60).for_each(|event| history.sent(event, event, 0, 1.0));
            (0..60).for_each(|event| history.delivered(event, delivered_at(event)));
            history
        };
        let full = FaultMark { fault: Fault::FillRedis, at: 2.0, until: 13.0 };
        assert_eq!(counts(&history(|event| 3.0 + f64::from(event) / 6.0), vec![full.clone()], "standstill"), (2, 0));
        let nothing = history(|_| 14.0);
        assert_eq!(counts(&nothing, vec![full.clone()], "standstill"), (2, 2));
        // Another fault explains it; and where there is little, nothing need move.
        let paused = FaultMark { fault: Fault::PauseWorker, at: 4.0, until: 5.0 };
        assert_eq!(counts(&nothing, vec![full.clone(), paused], "standstill"), (0, 0));
        let gone = history(|event| 1.5 + f64::from(event) / 1e3);
        assert_eq!(counts(&gone, vec![full.clone()], "standstill"), (0, 0));
        // What goes out as it comes in does move, however little there is.
        let prompt = history(|event| if event == 0 { 2.5 } else { 1.5 });
        assert_eq!(counts(&prompt, vec![full], "standstill"), (1, 0));
    }

    #[test]
    fn what_a_full_redis_has_refused_does_not_lie_there() {
        let history = History::new(HEALTHY);
        for event in 0..60 {
            history.unconfirmed(event, 0, event, 0, 1.0);
            let entry = EntryId { ms: BEGAN_MS + 14_000, seq: event.into() };
            history.0.confirmed(&[(event, entry)]);
            history.delivered(event, 14.5);
        }
        let full = FaultMark { fault: Fault::FillRedis, at: 2.0, until: 13.0 };
        assert_eq!(counts(&history, vec![full], "standstill"), (0, 0));
    }

    #[test]
    fn what_must_not_be_felt_excuses_nothing() {
        let history = History::new(HEALTHY);
        history.sent(0, 0, 0, 1.0);
        history.delivered(0, 1.1);
        history.answered(0, 2, Answer::Yes, 1.2);
        let log = FaultMark { fault: Fault::BlockLogs, at: 1.0, until: 2.0 };
        let verdict = judge(&history.0, &Evidence { faults: vec![log], ..Evidence::default() });
        assert!(verdict.promises.iter().any(|promise| promise.name == "duplicated" && promise.broken == 1));
    }
}
