//! Holds what each client was answered and what arrived at the receivers against what is stored. Pure, and by rules of its own:
//! the life of an intent stands here once more.
//!
//! A request without an answer may have been done, may be done later or never; one that was refused or answered is certain.

mod money;
mod told;

use std::collections::{HashMap, HashSet};

use super::{
    asks::{Ask, Customer},
    ledger::{Asked, Books, Outcome, Seen},
};
use crate::loadtest::{
    judge::trial::Trial,
    result::{FaultMark, Promise},
};

/// An intent as it is answered at the end.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stored {
    pub account: u32,
    pub id: String,
    pub reference: String,
    pub status: String,
    pub is_manual: bool,
    pub is_paid: bool,
    pub amount: i64,
    pub tips: Option<i64>,
    pub total: i64,
    pub refunded: i64,
    pub captures: Vec<StoredCapture>,
    pub refunds: Vec<StoredRefund>,
    /// Its timeline.
    pub told: Vec<Told>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredCapture {
    pub id: String,
    pub amount: i64,
    pub tips: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRefund {
    pub id: String,
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    pub event: String,
    pub kind: String,
    pub status: String,
}

/// Everything that is judged.
#[derive(Debug, Clone, Default)]
pub struct Case {
    pub books: Books,
    pub stored: Vec<Stored>,
    pub faults: Vec<FaultMark>,
    /// Whose each account is, by number.
    pub accounts: Vec<String>,
    /// Endpoints of each account; endpoint `n` is of account `n / fan_out`.
    pub fan_out: u32,
}

/// For how long after a fault an unanswered request is its doing: a client's patience, and a process that starts again.
const AFTERMATH_US: u64 = 8_000_000;

/// A request that begins before a fault may meet it.
const BEFORE_US: u64 = 5_000_000;

/// The generator may send one request of a thousand later than this.
const LATE_US: u64 = 50_000;
const LATE_PER_SENT: u64 = 1_000;

/// The name of the promise that nothing is late but by the machine's fault.
const GENERATOR: &str = "generator";

pub fn judge(case: &Case) -> Vec<Promise> {
    let index = Index::of(case);
    let all = [
        answered(case, &index),
        unasked(case, &index),
        same_answer(case),
        money::bounds(case),
        money::latest(case, &index),
        told::untold(case),
        told::told_once(case),
        told::legal_life(case, &index),
        told::out_of_order(case),
        apart(case),
        told::wrong_signature(case),
        unanswered(case),
        generator(case),
    ];
    all.map(Trial::done).into()
}

/// What is looked up often.
struct Index<'a> {
    stored: HashMap<&'a str, &'a Stored>,
    /// By intent.
    asked: HashMap<&'a str, Vec<&'a Asked>>,
}

impl<'a> Index<'a> {
    fn of(case: &'a Case) -> Self {
        let mut asked: HashMap<&str, Vec<&Asked>> = HashMap::new();
        for one in &case.books.asked {
            asked.entry(&one.intent).or_default().push(one);
        }
        let stored = case.stored.iter().map(|stored| (stored.id.as_str(), stored)).collect();
        Self { stored, asked }
    }

    fn of_intent(&self, stored: &Stored) -> &[&'a Asked] {
        self.asked.get(stored.id.as_str()).map_or(&[], Vec::as_slice)
    }
}

fn describe(asked: &Asked) -> String {
    let (who, at) = (asked.account, asked.began_us as f64 / 1e6);
    let key = asked.key.as_deref().unwrap_or("no key");
    format!("{:?} of account {who} for {:?} at {at:.3}s with {key}: {:?}", asked.ask, asked.intent, asked.outcome)
}

fn answered(case: &Case, index: &Index<'_>) -> Trial {
    let text = "What was answered with 2xx is stored.";
    let done = case.books.asked.iter().filter(|asked| asked.is_done());
    let mut trial = Trial::new("answered", done.clone().count() as u64, text);
    for asked in done.filter(|asked| !matches!(asked.ask, Ask::LookAtForeign | Ask::Advance)) {
        let is_kept = index.stored.get(asked.intent.as_str()).is_some_and(|stored| is_stored(asked, stored));
        if !is_kept {
            trial.broke(|| format!("{}, which is not in what is stored", describe(asked)));
        }
    }
    trial
}

/// Whether what this request did is still to be seen. Amounts are overwritten: [`money::latest`] looks at them.
fn is_stored(asked: &Asked, stored: &Stored) -> bool {
    let Outcome::Done(body) = &asked.outcome else { return true };
    let statuses = |wanted: &str| stored.told.iter().any(|told| told.status == wanted);
    match &asked.ask {
        Ask::Create { reference, is_manual, .. } => {
            stored.reference == *reference && stored.is_manual == *is_manual && stored.account == asked.account
        }
        Ask::Pay(Customer::Approved) => stored.is_paid,
        Ask::Challenge { is_met } => !is_met || stored.is_paid,
        Ask::Capture { amount, tips } => stored
            .captures
            .iter()
            .any(|capture| body["captureId"] == *capture.id && (capture.amount, capture.tips) == (*amount, *tips)),
        Ask::Refund { reason, .. } => {
            stored.refunds.iter().any(|refund| body["refundId"] == *refund.id && refund.reason == *reason)
        }
        Ask::Reverse => stored.status == "Reversed",
        Ask::Cancel => stored.status == "Canceled",
        Ask::SendReceipt => stored.told.iter().any(|told| told.kind == "payment_intent.send-receipt"),
        Ask::Look => body["status"].as_str().is_some_and(statuses),
        Ask::Pay(_) | Ask::SetAmount(_) | Ask::SetTips(_) | Ask::RefreshSecret | Ask::LookAtForeign | Ask::Advance => {
            true
        }
    }
}

/// Each creation, capture and refund that is stored belongs to one request that was done or may have been done.
fn unasked(case: &Case, index: &Index<'_>) -> Trial {
    let stored = |of: fn(&Stored) -> usize| case.stored.iter().map(of).sum::<usize>() as u64;
    let tried = case.stored.len() as u64 + stored(|one| one.captures.len()) + stored(|one| one.refunds.len());
    let text = "What is stored was asked for, and each request is done once, however often it was sent.";
    let mut trial = Trial::new("unasked", tried, text);
    let mut creations: HashMap<&str, Vec<&Asked>> = HashMap::new();
    for asked in &case.books.asked {
        if let Ask::Create { reference, .. } = &asked.ask {
            creations.entry(reference).or_default().push(asked);
        }
    }
    let mut references = HashSet::new();
    for stored in &case.stored {
        let is_asked = creations.get(stored.reference.as_str()).is_some_and(|asked| {
            asked.iter().any(|asked| if asked.is_done() { asked.intent == stored.id } else { asked.may_be_done() })
        });
        if !is_asked || !references.insert(&stored.reference) {
            trial.broke(|| format!("{} with reference {} was not asked for", stored.id, stored.reference));
        }
        unasked_captures(stored, index.of_intent(stored), &mut trial);
        let mut reasons = HashSet::new();
        for refund in &stored.refunds {
            let mut asked = index.of_intent(stored).iter().filter(|asked| match &asked.ask {
                Ask::Refund { reason, .. } => *reason == refund.reason,
                _ => false,
            });
            let is_asked = asked.any(|asked| asked.is_done() || asked.may_be_done());
            if !is_asked || !reasons.insert(&refund.reason) {
                trial.broke(|| format!("the refund {} ({}) was not asked for", refund.id, refund.reason));
            }
        }
    }
    trial
}

fn unasked_captures(stored: &Stored, asked: &[&Asked], trial: &mut Trial) {
    let mut doubtful: Vec<(i64, Option<i64>)> = Vec::new();
    let mut answered: HashSet<&str> = HashSet::new();
    for asked in asked {
        match (&asked.ask, &asked.outcome) {
            (Ask::Capture { .. }, Outcome::Done(body)) => {
                answered.extend(body["captureId"].as_str());
            }
            (Ask::Capture { amount, tips }, _) if asked.may_be_done() => doubtful.push((*amount, *tips)),
            _ => {}
        }
    }
    for capture in &stored.captures {
        let is_at_the_end_of_a_hold = capture.id.ends_with("-hold");
        if answered.contains(capture.id.as_str()) || is_at_the_end_of_a_hold {
            continue;
        }
        match doubtful.iter().position(|one| *one == (capture.amount, capture.tips)) {
            Some(at) => drop(doubtful.swap_remove(at)),
            None => trial.broke(|| format!("the capture {} of {} was not asked for", capture.id, stored.id)),
        }
    }
}

fn same_answer(case: &Case) -> Trial {
    let repeats = case.books.asked.iter().flat_map(|asked| asked.repeats.iter().map(move |seen| (asked, seen)));
    let certain = repeats.filter_map(|(asked, seen)| match (&asked.outcome, seen) {
        (Outcome::Done(first), Seen::Answer(code, body)) if *code != 503 => Some((asked, first, *code, body)),
        _ => None,
    });
    let text = "The same idempotency key is answered as it was the first time.";
    let mut trial = Trial::new("same_answer", certain.clone().count() as u64, text);
    for (asked, first, code, body) in certain {
        if code != 200 || body != first {
            trial.broke(|| format!("{}, and then {code} {body}", describe(asked)));
        }
    }
    trial
}

fn apart(case: &Case) -> Trial {
    let looks = case.books.asked.iter().filter(|asked| asked.ask == Ask::LookAtForeign);
    let tried = looks.clone().count() + case.books.arrivals.len() + case.stored.len();
    let text = "No account sees, finds or is told of another's intents.";
    let mut trial = Trial::new("apart", tried as u64, text);
    for asked in looks {
        if !matches!(asked.outcome, Outcome::Refused(404, _) | Outcome::Untouched | Outcome::Unknown) {
            trial.broke(|| describe(asked));
        }
    }
    let mut owners: HashMap<&str, u32> = HashMap::new();
    for stored in &case.stored {
        let owner = *owners.entry(&stored.id).or_insert(stored.account);
        if owner != stored.account {
            trial.broke(|| format!("{} is found by the accounts {owner} and {}", stored.id, stored.account));
        }
    }
    for arrival in &case.books.arrivals {
        let account = arrival.endpoint / case.fan_out.max(1);
        let name = case.accounts.get(account as usize);
        let is_own =
            name == Some(&arrival.account) && owners.get(arrival.intent.as_str()).is_none_or(|owner| *owner == account);
        if !is_own {
            trial.broke(|| format!("{} of {} at endpoint {}", arrival.event, arrival.account, arrival.endpoint));
        }
    }
    trial
}

/// Every request at a time with no fault near is answered by what a client can act on.
fn unanswered(case: &Case) -> Trial {
    let is_near = |asked: &Asked| {
        let felt = case.faults.iter().filter(|mark| mark.fault.is_felt());
        let us = |seconds: f64| (seconds.max(0.0) * 1e6) as u64;
        felt.clone()
            .any(|mark| asked.began_us <= us(mark.until) + AFTERMATH_US && asked.ended_us + BEFORE_US >= us(mark.at))
    };
    let calm = case.books.asked.iter().filter(|asked| !is_near(asked));
    let text = "With no fault near every request is answered, and none at any time by an error of the service's own.";
    let mut trial = Trial::new("unanswered", calm.clone().count() as u64, text);
    for asked in calm.filter(|asked| matches!(asked.outcome, Outcome::Unknown | Outcome::Untouched)) {
        trial.broke(|| describe(asked));
    }
    for asked in case.books.asked.iter().filter(|asked| matches!(asked.outcome, Outcome::Failed(..))) {
        trial.broke(|| describe(asked));
    }
    trial
}

fn generator(case: &Case) -> Trial {
    let sent = &case.books.lateness_us;
    let text = "The generator sends at most one request of a thousand late.";
    let mut trial = Trial::new(GENERATOR, sent.len() as u64, text);
    let late = sent.iter().filter(|(_, late_us)| *late_us > LATE_US).count() as u64;
    if late > sent.len() as u64 / LATE_PER_SENT {
        trial.broke_more(late, format!("{late} of {} requests were sent late", sent.len()));
    }
    trial
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
