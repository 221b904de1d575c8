//! What follows from an endpoint's health: what operators are told of, and when an endpoint is disabled. Pure; carries nothing out.

use super::{Book, Entry};
use crate::facts::{
    endpoint::Mark,
    health::{Growth, HOUR_MS, Health, Told},
    id::EndpointId,
    letter::Cause,
    own_event::{About, OwnEvent, body, is_operators},
};

/// An endpoint is told of once it has taken nothing for so long, and so often: a restart or a deployment is no news.
const FAILING_FOR_MS: u64 = 300_000;
const FAILED_OFTEN: u64 = 5;

/// So many letters within an hour are told of, once in that hour.
const MANY_LETTERS: u64 = 100;

/// Where nobody has taken anything for so long, it is our network that fails, or may be.
const SOMEBODY_WITHIN_MS: u64 = HOUR_MS;

/// What an answer of the receiver begins with: whoever answers can be reached.
const ANSWERS: [&str; 5] = ["redirected", "gone", "throttled", "rejected", "server_failed"];

/// What the registry says of an endpoint.
#[derive(Debug, Clone, PartialEq)]
pub enum Stand {
    /// It is sent to, in this revision, which was made then.
    Serving {
        revision: u64,
        updated_at_ms: u64,
    },
    Disabled(Mark),
    /// It is paused, gone, or not known.
    Other,
}

/// What the book asks of its surroundings.
pub trait Surroundings {
    fn stand(&self, endpoint: &EndpointId) -> Stand;
    /// Whether an operator's endpoint wants to be told of this.
    fn is_wanted(&self, event: OwnEvent) -> bool;
}

/// An endpoint that is to be disabled, in this revision.
#[derive(Debug, Clone, PartialEq)]
pub struct Overdue {
    pub endpoint: EndpointId,
    pub revision: u64,
    pub failing_for_ms: u64,
    pub cause: Cause,
}

impl Book {
    /// Looks at all endpoints for what came about without an attempt: what is to be told, or told no more, is due at once. Returns
    /// those that have failed for `disable_after_ms`.
    pub fn review(&mut self, now_ms: u64, disable_after_ms: Option<u64>, around: &impl Surroundings) -> Vec<Overdue> {
        let mut overdue = Vec::new();
        for (endpoint, entry) in &mut self.entries {
            if entry.health.account.as_ref().is_some_and(is_operators) {
                continue;
            }
            let stand = around.stand(endpoint);
            if told_next(&entry.health, now_ms, &stand, around).is_some() {
                entry.is_urgent = true;
                self.changed.insert(endpoint.clone());
            }
            if let (Some(after_ms), Stand::Serving { revision, updated_at_ms }) = (disable_after_ms, stand)
                && let Some((failing_for_ms, cause)) = failing_for(&entry.health, updated_at_ms)
                && failing_for_ms >= after_ms
                && (is_answer(&cause) || self.last_success_ms + SOMEBODY_WITHIN_MS > now_ms)
            {
                overdue.push(Overdue { endpoint: endpoint.clone(), revision, failing_for_ms, cause });
            }
        }
        overdue
    }
}

impl Entry {
    /// The event that is to go out with this entry, which says from now on that it did.
    pub(super) fn tell(&mut self, endpoint: &EndpointId, now_ms: u64, around: &impl Surroundings) -> Option<String> {
        if self.health.account.as_ref().is_some_and(is_operators) {
            return None;
        }
        let (told, event) = told_next(&self.health, now_ms, &around.stand(endpoint), around)?;
        self.health.told = told;
        let (event, since_ms, mark) = event?;
        let cause = self.health.last_failure().map(|seen| seen.cause.clone());
        let about = About {
            event,
            endpoint: Some(endpoint.clone()),
            account: self.health.account.clone(),
            since_ms,
            count: self.health.failed_since,
            cause: cause.filter(|_| event != OwnEvent::EndpointRecovered),
            by: mark.as_ref().map(|mark| mark.by.clone()),
            why: mark.map(|mark| mark.why),
        };
        Some(body(&about, now_ms))
    }
}

type ToTell = (OwnEvent, u64, Option<Mark>);

/// What its entry is to say next of what was told, if that is another thing than now; and the event that goes out with it. While
/// nobody wants an event, it counts as not told: whoever comes later is told of what is so then.
fn told_next(
    health: &Health,
    now_ms: u64,
    stand: &Stand,
    around: &impl Surroundings,
) -> Option<(Told, Option<ToTell>)> {
    let wanted = |event, since_ms, mark| Some((event, since_ms, mark)).filter(|_| around.is_wanted(event));
    let has_failed_long = health
        .failing_since_ms
        .filter(|since_ms| since_ms + FAILING_FOR_MS <= now_ms && health.failed_since >= FAILED_OFTEN);
    match (health.told, stand) {
        (Told::Disabled, Stand::Disabled(_)) => None,
        (_, Stand::Disabled(mark)) => {
            let event = wanted(OwnEvent::EndpointDisabled, mark.at_ms, Some(mark.clone()))?;
            Some((Told::Disabled, Some(event)))
        }
        (Told::Disabled, Stand::Serving { .. }) => Some((Told::Nothing, None)),
        (Told::Failing, Stand::Serving { .. }) if health.failing_since_ms.is_none() => {
            let since_ms = health.last_success_ms.unwrap_or(now_ms);
            Some((Told::Nothing, wanted(OwnEvent::EndpointRecovered, since_ms, None)))
        }
        (Told::Nothing, Stand::Serving { .. }) => {
            let event = wanted(OwnEvent::EndpointFailing, has_failed_long?, None)?;
            Some((Told::Failing, Some(event)))
        }
        (Told::Failing | Told::Disabled, Stand::Serving { .. } | Stand::Other) | (Told::Nothing, Stand::Other) => None,
    }
}

/// For how long it has failed in the form in which it is: from the first failure, or from its last change, to the last failure.
fn failing_for(health: &Health, updated_at_ms: u64) -> Option<(u64, Cause)> {
    let last = health.last_failure()?;
    let since_ms = health.failing_since_ms?.max(updated_at_ms);
    Some((last.last_ms.saturating_sub(since_ms), last.cause.clone()))
}

fn is_answer(cause: &Cause) -> bool {
    let class = cause.as_str().split(':').next().unwrap_or_default();
    ANSWERS.contains(&class)
}

pub(super) fn tell_of_growth(growth: &mut Growth, now_ms: u64, around: &impl Surroundings) -> Option<String> {
    let is_news = !growth.is_told && growth.letters >= MANY_LETTERS && around.is_wanted(OwnEvent::DeadLettersGrowing);
    is_news.then(|| {
        growth.is_told = true;
        let about = About {
            event: OwnEvent::DeadLettersGrowing,
            endpoint: None,
            account: None,
            since_ms: growth.hour * HOUR_MS,
            count: growth.letters,
            cause: None,
            by: None,
            why: None,
        };
        body(&about, now_ms)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::{
        dispatch::health::tests::{NOW, id, noted},
        facts::{
            event::Event,
            health::{DAY_MS, MINUTE_MS},
            id::AccountId,
        },
        store::health::Batch,
    };

    #[derive(Default)]
    struct Around {
        stands: HashMap<EndpointId, Stand>,
        wants_nothing: bool,
    }

    impl Surroundings for Around {
        fn stand(&self, endpoint: &EndpointId) -> Stand {
            let serving = Stand::Serving { revision: 3, updated_at_ms: 1 };
            self.stands.get(endpoint).cloned().unwrap_or(serving)
        }

        fn is_wanted(&self, _: OwnEvent) -> bool {
            !self.wants_nothing
        }
    }

    fn disabled(at_ms: u64) -> Stand {
        Stand::Disabled(Mark { by: "herald".to_owned(), why: "it failed".to_owned(), at_ms })
    }

    /// The events of all that is due, by type and endpoint.
    fn told(book: &mut Book, now_ms: u64, around: &Around) -> Vec<(String, String)> {
        book.review(now_ms, None, around);
        let batches: Vec<Batch> = std::iter::from_fn(|| book.due(now_ms, false, around)).collect();
        let events = batches.into_iter().flat_map(|batch| batch.events);
        let event = |text: String| {
            let event = Event::parse(text.into()).unwrap();
            (event.event_type.to_string(), event.intent.to_string())
        };
        events.map(event).collect()
    }

    fn one(event: OwnEvent, endpoint: usize) -> Vec<(String, String)> {
        vec![(event.name().to_owned(), id(endpoint).to_string())]
    }

    #[test]
    fn failing_and_well_again_are_told_once_each() {
        let (mut book, around) = (Book::default(), Around::default());
        book.see(NOW, vec![noted(1, NOW, 0, 5)], Vec::new());
        assert_eq!(told(&mut book, NOW + FAILING_FOR_MS - 1, &around), []);
        assert_eq!(told(&mut book, NOW + FAILING_FOR_MS, &around), one(OwnEvent::EndpointFailing, 1));
        let later = NOW + 2 * FAILING_FOR_MS;
        book.see(later, vec![noted(1, later, 0, 50)], Vec::new());
        assert_eq!(told(&mut book, later, &around), []);
        book.see(later + 1, vec![noted(1, later + 1, 1, 0)], Vec::new());
        assert_eq!(told(&mut book, later + 1, &around), one(OwnEvent::EndpointRecovered, 1));
        assert_eq!(told(&mut book, later + DAY_MS, &around), []);
    }

    #[test]
    fn what_is_disabled_is_told_whoever_did_it_and_told_anew_after_it_was_enabled() {
        let (mut book, mut around) = (Book::default(), Around::default());
        book.see(NOW, vec![noted(1, NOW, 1, 0)], Vec::new());
        assert_eq!(told(&mut book, NOW, &around), []);
        around.stands.insert(id(1), disabled(NOW));
        assert_eq!(told(&mut book, NOW + 1, &around), one(OwnEvent::EndpointDisabled, 1));
        assert_eq!(told(&mut book, NOW + 2, &around), []);
        around.stands.clear();
        assert_eq!(told(&mut book, NOW + 3, &around), []);
        around.stands.insert(id(1), disabled(NOW + 4));
        assert_eq!(told(&mut book, NOW + 4, &around), one(OwnEvent::EndpointDisabled, 1));
    }

    #[test]
    fn an_operators_endpoint_makes_no_event_and_is_never_disabled() {
        let (mut book, mut around) = (Book::default(), Around::default());
        let mut own = noted(1, NOW, 0, 500);
        own.seen.account = Some("herald".parse::<AccountId>().unwrap());
        own.seen.dead = 500;
        book.see(NOW, vec![own], Vec::new());
        assert_eq!(told(&mut book, NOW + DAY_MS - 1, &around), []);
        assert_eq!(book.review(NOW + DAY_MS, Some(0), &around), []);
        around.stands.insert(id(1), disabled(NOW));
        assert_eq!(told(&mut book, NOW + DAY_MS, &around), []);
    }

    #[test]
    fn whoever_comes_later_is_told_of_what_is_so_then() {
        let (mut book, mut around) = (Book::default(), Around { wants_nothing: true, ..Around::default() });
        book.see(NOW, vec![noted(1, NOW, 0, 9), noted(2, NOW, 0, 9)], Vec::new());
        assert_eq!(told(&mut book, NOW + FAILING_FOR_MS, &around), []);
        around.wants_nothing = false;
        book.see(NOW + FAILING_FOR_MS, vec![noted(2, NOW + FAILING_FOR_MS, 1, 0)], Vec::new());
        assert_eq!(told(&mut book, NOW + FAILING_FOR_MS, &around), one(OwnEvent::EndpointFailing, 1));
    }

    #[test]
    fn an_event_that_may_not_have_gone_out_is_made_again_unless_redis_says_that_it_did() {
        let (mut book, around) = (Book::default(), Around::default());
        book.see(NOW, vec![noted(1, NOW, 0, 5)], Vec::new());
        let now_ms = NOW + FAILING_FOR_MS;
        let batch = book.due(now_ms, false, &around).unwrap();
        assert_eq!(batch.events.len(), 1);
        let written: Health = serde_json::from_str(&batch.health[0].1).unwrap();
        // It was not written: what Redis holds says that nothing was told.
        book.was_not_published(batch);
        book.load(vec![(id(1), Health { told: Told::Nothing, ..written.clone() })], Vec::new(), None);
        assert_eq!(told(&mut book, now_ms + 10_000, &around), one(OwnEvent::EndpointFailing, 1));
        // It was written, and only the answer was lost.
        let mut other = Book::default();
        other.load(vec![(id(1), written)], Vec::new(), None);
        other.see(now_ms, vec![noted(1, now_ms, 0, 5)], Vec::new());
        assert_eq!(told(&mut other, now_ms + 20_000, &around), []);
    }

    /// A failure every six hours.
    fn failing_until(days: u64, why: &str) -> Book {
        let mut book = Book::default();
        for at_ms in (0..=days * 4).map(|quarter| NOW + quarter * DAY_MS / 4) {
            let mut failed = noted(1, at_ms, 0, 1);
            failed.seen.causes[0].cause = why.parse().unwrap();
            book.see(at_ms, vec![failed], Vec::new());
        }
        book
    }

    #[test]
    fn what_has_failed_for_days_is_disabled_in_the_revision_that_failed() {
        let around = Around::default();
        let overdue = |book: &mut Book, now_ms| book.review(now_ms, Some(5 * DAY_MS), &around);
        assert_eq!(overdue(&mut failing_until(4, "rejected:404"), NOW + 4 * DAY_MS), []);
        let mut book = failing_until(5, "rejected:404");
        let found = overdue(&mut book, NOW + 5 * DAY_MS);
        assert_eq!((found.len(), found[0].revision, found[0].failing_for_ms), (1, 3, 5 * DAY_MS));
        assert_eq!(book.review(NOW + 5 * DAY_MS, None, &around), [], "it is switched off");
        let changed = Stand::Serving { revision: 4, updated_at_ms: NOW + DAY_MS };
        let changed = Around { stands: [(id(1), changed)].into(), ..Around::default() };
        assert_eq!(book.review(NOW + 5 * DAY_MS, Some(5 * DAY_MS), &changed), [], "its change excuses it");
        book.see(NOW + 5 * DAY_MS, vec![noted(1, NOW + 5 * DAY_MS, 1, 0)], Vec::new());
        assert_eq!(overdue(&mut book, NOW + 5 * DAY_MS), []);
    }

    #[test]
    fn nobody_is_disabled_for_what_may_be_our_network() {
        let around = Around::default();
        let mut book = failing_until(6, "connect_failed");
        let now_ms = NOW + 6 * DAY_MS;
        assert_eq!(book.review(now_ms, Some(5 * DAY_MS), &around), []);
        book.see(now_ms, vec![noted(2, now_ms - MINUTE_MS, 1, 0)], Vec::new());
        assert_eq!(book.review(now_ms, Some(5 * DAY_MS), &around).len(), 1);
    }

    #[test]
    fn many_letters_within_an_hour_are_told_once() {
        let (mut book, around) = (Book::default(), Around::default());
        let dead = |book: &mut Book, at_ms: u64, dead: u32| {
            let mut seen = noted(1, at_ms, 1, 0);
            seen.seen.dead = dead;
            book.see(at_ms, vec![seen], Vec::new());
        };
        let grown = vec![("dead_letters.growing".to_owned(), "herald".to_owned())];
        dead(&mut book, NOW, 99);
        assert_eq!(told(&mut book, NOW, &around), []);
        dead(&mut book, NOW + 1, 1);
        assert_eq!(told(&mut book, NOW + 1, &around), grown);
        dead(&mut book, NOW + 2, 1_000);
        assert_eq!(told(&mut book, NOW + 2, &around), []);
        dead(&mut book, NOW + HOUR_MS, 100);
        assert_eq!(told(&mut book, NOW + HOUR_MS, &around), grown);
    }
}
