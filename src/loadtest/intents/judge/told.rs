//! Promises about events: what arrived, against the life that is stored.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{Case, Index, Stored};
use crate::loadtest::{
    intents::{asks::Ask, ledger::Arrival},
    judge::trial::Trial,
};

const CREATED: &str = "payment_intent.created";
const UPDATED: &str = "payment_intent.status_updated";
const RECEIPT: &str = "payment_intent.send-receipt";

/// Where each status may lead, for manual capture and for automatic. A part more that is captured or refunded tells the status
/// again.
fn may_follow(is_manual: bool, from: &str, to: &str) -> bool {
    match (from, to) {
        ("Created", "Canceled") | ("Captured" | "Refunded", "Refunded") => true,
        ("Created", "Authorized") | ("Authorized", "Captured" | "Reversed") | ("Captured", "Captured") => is_manual,
        ("Created", "Captured") | ("Captured", "Reversed") => !is_manual,
        _ => false,
    }
}

pub fn untold(case: &Case) -> Trial {
    let owed = case.stored.iter().map(|stored| stored.told.len()).sum::<usize>() as u64;
    let text = "Each change is told to each endpoint of its account.";
    let mut trial = Trial::new("untold", owed * u64::from(case.fan_out), text);
    let acknowledged = case.books.arrivals.iter().filter(|arrival| arrival.is_acknowledged);
    let arrived: HashSet<(u32, &str)> = acknowledged.map(|one| (one.endpoint, one.event.as_str())).collect();
    for stored in &case.stored {
        for endpoint in stored.account * case.fan_out..(stored.account + 1) * case.fan_out {
            for told in stored.told.iter().filter(|told| !arrived.contains(&(endpoint, told.event.as_str()))) {
                trial.broke(|| format!("{} {} of {} at endpoint {endpoint}", told.event, told.status, stored.id));
            }
        }
    }
    trial
}

/// Whatever arrived stands in the timeline of its intent, as it is told there.
pub fn told_once(case: &Case) -> Trial {
    let text = "Nothing is told that is not stored: no change twice under two ids, none that never was.";
    let mut trial = Trial::new("told_once", case.books.arrivals.len() as u64, text);
    let mut known: HashMap<&str, (&Stored, usize)> = HashMap::new();
    for stored in &case.stored {
        for (at, told) in stored.told.iter().enumerate() {
            if known.insert(&told.event, (stored, at)).is_some() {
                trial.broke(|| format!("{} stands in two timelines", told.event));
            }
        }
    }
    for arrival in &case.books.arrivals {
        let is_known = known.get(arrival.event.as_str()).is_some_and(|(stored, at)| {
            let told = &stored.told[*at];
            (&told.kind, &told.status, &stored.id) == (&arrival.kind, &arrival.status, &arrival.intent)
        });
        if !is_known {
            let Arrival { event, kind, intent, status, .. } = arrival;
            trial.broke(|| format!("{event} ({kind}, {status}) of {intent} is not in its timeline"));
        }
    }
    trial
}

/// The timeline is a life that an intent can have, and has an entry for each thing that was done.
pub fn legal_life(case: &Case, index: &Index<'_>) -> Trial {
    let text = "The events of an intent tell exactly its life, and the last of them its status.";
    let mut trial = Trial::new("legal_life", case.stored.len() as u64, text);
    for stored in &case.stored {
        if let Some(why) = flaw(stored).or_else(|| receipts(stored, index)) {
            let told: Vec<_> = stored.told.iter().map(|told| told.status.as_str()).collect();
            trial.broke(|| format!("{} is {}, {why}: {told:?}", stored.id, stored.status));
        }
    }
    trial
}

fn flaw(stored: &Stored) -> Option<String> {
    let created = stored.told.iter().filter(|told| told.kind == CREATED).count();
    let is_begun = stored.told.first().is_some_and(|told| told.kind == CREATED && told.status == "Created");
    if !is_begun || created != 1 {
        return Some("and does not begin by being created once".to_owned());
    }
    let statuses: Vec<&str> =
        stored.told.iter().filter(|told| told.kind != RECEIPT).map(|told| told.status.as_str()).collect();
    if let Some(pair) = statuses.windows(2).find(|pair| !may_follow(stored.is_manual, pair[0], pair[1])) {
        return Some(format!("and goes from {} to {}", pair[0], pair[1]));
    }
    if statuses.last() != Some(&stored.status.as_str()) {
        return Some("which is not what was told last".to_owned());
    }
    let is_in = |status: &str| usize::from(stored.status == status);
    let paid = usize::from(stored.is_paid);
    let (authorized, captured) = if stored.is_manual { (paid, stored.captures.len()) } else { (0, paid) };
    let expected = [
        ("Authorized", authorized),
        ("Captured", captured),
        ("Refunded", stored.refunds.len()),
        ("Reversed", is_in("Reversed")),
        ("Canceled", is_in("Canceled")),
    ];
    expected.into_iter().find_map(|(status, times)| {
        let updates = stored.told.iter().filter(|told| told.kind == UPDATED);
        let told = updates.filter(|told| told.status == status).count();
        (told != times).then(|| format!("and told {status} {told} times where it came {times} times"))
    })
}

fn receipts(stored: &Stored, index: &Index<'_>) -> Option<String> {
    let told = stored.told.iter().filter(|told| told.kind == RECEIPT).count();
    let asked = index.of_intent(stored).iter().filter(|asked| asked.ask == Ask::SendReceipt);
    let done = asked.clone().filter(|asked| asked.is_done()).count();
    let doubtful = asked.filter(|asked| asked.may_be_done()).count();
    let is_right = (done..=done + doubtful).contains(&told);
    (!is_right).then(|| format!("with {told} receipts, where {done} were answered and {doubtful} may have been made"))
}

/// The first arrivals of an intent's events at an endpoint come in the order of its timeline, and their sequences grow like it.
pub fn out_of_order(case: &Case) -> Trial {
    let mut places: HashMap<&str, usize> = HashMap::new();
    for stored in &case.stored {
        places.extend(stored.told.iter().enumerate().map(|(at, told)| (told.event.as_str(), at)));
    }
    let mut lines: BTreeMap<(u32, &str), Vec<&Arrival>> = BTreeMap::new();
    let mut seen = HashSet::new();
    for arrival in &case.books.arrivals {
        if arrival.is_acknowledged && seen.insert((arrival.endpoint, &arrival.event)) {
            lines.entry((arrival.endpoint, &arrival.intent)).or_default().push(arrival);
        }
    }
    let text = "The events of an intent come in the order in which it changed, and their sequence grows.";
    let mut trial = Trial::new("out_of_order", 0, text);
    for pair in lines.values().flat_map(|line| line.windows(2)) {
        trial.tried += 1;
        let place = |of: &Arrival| places.get(of.event.as_str());
        if place(pair[0]) >= place(pair[1]) || pair[0].sequence >= pair[1].sequence {
            let (first, then) = (&pair[0].event, &pair[1].event);
            trial.broke(|| format!("{then} came after {first}, of {}", pair[0].intent));
        }
    }
    trial
}

pub fn wrong_signature(case: &Case) -> Trial {
    let text = "Both signatures of every callback verify over its bytes.";
    let mut trial = Trial::new("wrong_signature", case.books.arrivals.len() as u64, text);
    for arrival in &case.books.arrivals {
        if let Some(fault) = &arrival.fault {
            trial.broke(|| format!("{} at endpoint {}: {fault}", arrival.event, arrival.endpoint));
        }
    }
    trial
}
