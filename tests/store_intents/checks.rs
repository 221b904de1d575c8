//! What must hold between what clients were answered, what is stored, and what was told.

use std::collections::{BTreeMap, HashMap, HashSet};

use herald::{
    facts::{event::PaymentStatus, id::IntentId},
    intents::{
        intent::{Capture, Intent},
        life,
        told::EventKind,
    },
};
use serde_json::Value;

use super::simulation::{Asked, Outcome, What};

pub fn check(asked: &[Asked], stored: &[Intent], told: &[String]) -> Result<(), String> {
    let mut references = HashSet::new();
    for intent in stored {
        let of: Vec<&Asked> = asked.iter().filter(|asked| asked.intent.as_ref() == Some(&intent.id)).collect();
        let named = |why: String| format!("{} is {}: {why}", intent.id, intent.status);
        if !references.insert(&intent.details.reference) {
            return Err(named("it was created twice".to_owned()));
        }
        requests(intent, &of).map_err(named)?;
        captures(intent, &of).map_err(named)?;
        refunds(intent, &of).map_err(named)?;
        life_of(intent).map_err(named)?;
    }
    let there: HashSet<&IntentId> = stored.iter().map(|intent| &intent.id).collect();
    for asked in asked.iter().filter(|asked| matches!(asked.outcome, Outcome::Done(_))) {
        if asked.intent.as_ref().is_some_and(|id| !there.contains(id)) {
            return Err(format!("{asked:?} was answered, and there is no such intent"));
        }
    }
    events(stored, told)
}

fn is_done(asked: &Asked) -> bool {
    matches!(asked.outcome, Outcome::Done(_))
}

/// It may be done although nobody was told so.
fn may_be_done(asked: &Asked) -> bool {
    match asked.outcome {
        Outcome::Unknown => true,
        Outcome::Refused | Outcome::Untouched => asked.is_doubtful,
        Outcome::Done(_) => false,
    }
}

fn requests(intent: &Intent, asked: &[&Asked]) -> Result<(), String> {
    for asked in asked.iter().filter(|asked| is_done(asked)) {
        let is_kept = match &asked.what {
            What::Create { reference } => intent.details.reference == *reference,
            What::Pay => intent.payment.is_some(),
            What::Cancel => intent.status == PaymentStatus::Canceled,
            What::Reverse => intent.reversal.is_some(),
            What::Look => match &asked.outcome {
                Outcome::Done(Some(seen)) => seen.history.iter().zip(&intent.history).all(|(seen, kept)| seen == kept),
                _ => true,
            },
            _ => true,
        };
        if !is_kept {
            return Err(format!("{:?} was answered, and is not stored", asked.what));
        }
    }
    let count =
        |is: fn(&Asked) -> bool| asked.iter().filter(|asked| asked.what == What::SendReceipt && is(asked)).count();
    let receipts = intent.history.iter().filter(|told| told.kind == EventKind::SendReceipt).count();
    let (done, doubtful) = (count(is_done), count(may_be_done));
    let is_right = (done..=done + doubtful).contains(&receipts);
    let why = || format!("{receipts} receipts were told, {done} answered and {doubtful} are in doubt");
    is_right.then_some(()).ok_or_else(why)
}

/// Each request is captured once, or not at all where it may not have been.
fn captures(intent: &Intent, asked: &[&Asked]) -> Result<(), String> {
    let mut times: HashMap<&str, usize> = HashMap::new();
    for Capture { id, .. } in intent.captures.iter().filter(|capture| !capture.id.ends_with("-hold")) {
        *times.entry(id).or_default() += 1;
    }
    for asked in asked {
        let What::Capture { number, .. } = asked.what else { continue };
        let found = times.remove(format!("cp_{number}").as_str()).unwrap_or_default();
        let is_right = match (is_done(asked), may_be_done(asked)) {
            (true, _) => found == 1,
            (false, true) => found <= 1,
            (false, false) => found == 0,
        };
        if !is_right {
            return Err(format!(
                "{:?} was captured {found} times, and its client knows {:?}",
                asked.what, asked.outcome
            ));
        }
    }
    if let Some(id) = times.keys().next() {
        return Err(format!("the capture {id} was not asked for"));
    }
    let (held, captured, refunded) = (intent.held(), intent.captured(), intent.refunded());
    let is_sound = captured <= held && refunded <= captured;
    is_sound.then_some(()).ok_or_else(|| format!("{held} was held, {captured} captured, {refunded} refunded"))
}

fn refunds(intent: &Intent, asked: &[&Asked]) -> Result<(), String> {
    let refunds = asked.iter().filter(|asked| matches!(asked.what, What::Refund { .. }));
    let (done, doubtful) =
        (refunds.clone().filter(|asked| is_done(asked)).count(), refunds.filter(|asked| may_be_done(asked)).count());
    let keys: HashSet<&str> = intent.refunds.iter().map(|refund| refund.key.key.as_str()).collect();
    let found = intent.refunds.len();
    let is_right = keys.len() == found && (done..=done + doubtful).contains(&found);
    let why = || format!("{found} refunds with {} keys, {done} answered and {doubtful} in doubt", keys.len());
    is_right.then_some(()).ok_or_else(why)
}

fn life_of(intent: &Intent) -> Result<(), String> {
    let told = intent.history.iter().filter(|told| told.kind != EventKind::SendReceipt);
    let statuses: Vec<PaymentStatus> = told.map(|told| told.status).collect();
    let edges = life::edges();
    for pair in statuses.windows(2) {
        if !edges.iter().any(|(from, to, _)| (*from, *to) == (pair[0], pair[1])) {
            return Err(format!("it went from {} to {}", pair[0], pair[1]));
        }
    }
    let captured = statuses.iter().filter(|status| **status == PaymentStatus::Captured).count();
    if captured != intent.captures.len() {
        return Err(format!("{} captures, and {captured} were told", intent.captures.len()));
    }
    if statuses.last() != Some(&intent.status) {
        return Err(format!("told last was {:?}", statuses.last()));
    }
    // Nothing that a client asked for happens after the end of a hold.
    let Some(payment) = &intent.payment else { return Ok(()) };
    let end = payment.at + intent.hold_for();
    let late = intent.captures.iter().find(|capture| capture.at >= end && !capture.id.ends_with("-hold"));
    late.map_or(Ok(()), |late| Err(format!("{} was captured after the end of the hold", late.id)))
}

/// The stream tells each intent's history, no more and no less.
fn events(stored: &[Intent], told: &[String]) -> Result<(), String> {
    let mut by_intent: BTreeMap<String, Vec<(String, String, String)>> = BTreeMap::new();
    for event in told {
        let event: Value = serde_json::from_str(event).map_err(|error| format!("{event} is no event: {error}"))?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let line = by_intent.entry(text(&event["data"]["paymentIntentId"])).or_default();
        line.push((text(&event["id"]), text(&event["data"]["paymentStatus"]), text(&event["createdAt"])));
    }
    for intent in stored {
        let history = intent.history.iter();
        let history: Vec<_> =
            history.map(|told| (told.id.to_string(), told.status.to_string(), told.at.to_string())).collect();
        let told = by_intent.remove(intent.id.as_str()).unwrap_or_default();
        if told != history {
            return Err(format!("{} has the history {history:?}, and was told {told:?}", intent.id));
        }
    }
    by_intent.keys().next().map_or(Ok(()), |id| Err(format!("{id} was told of, and is not stored")))
}
