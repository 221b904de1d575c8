//! Promises about amounts.

use super::{Case, Index, Stored};
use crate::loadtest::{
    intents::{
        asks::Ask,
        ledger::{Asked, Outcome},
    },
    judge::trial::Trial,
};

pub fn bounds(case: &Case) -> Trial {
    let text = "No more is captured than was held, and no more refunded than was captured; refunds add up.";
    let mut trial = Trial::new("money", case.stored.len() as u64, text);
    for stored in &case.stored {
        let captured = captured(stored);
        let is_sound = captured <= stored.total && stored.refunded <= captured && (stored.is_paid || captured == 0);
        if !is_sound {
            let (id, total, refunded) = (&stored.id, stored.total, stored.refunded);
            trial.broke(|| format!("{id}: {total} was held, {captured} captured, {refunded} refunded"));
        }
        let mut sum = 0;
        for refund in &stored.refunds {
            let asked = case.books.asked.iter().find_map(|asked| match &asked.ask {
                Ask::Refund { amount, reason } if *reason == refund.reason => Some(*amount),
                _ => None,
            });
            sum += asked.unwrap_or_default();
        }
        if sum != stored.refunded {
            trial.broke(|| format!("{}: refunds of {sum}, and {} is refunded", stored.id, stored.refunded));
        }
    }
    trial
}

fn captured(stored: &Stored) -> i64 {
    match (stored.is_manual, stored.is_paid) {
        (_, false) => stored.captures.iter().map(|capture| capture.amount).sum(),
        (false, true) => stored.total,
        (true, true) => stored.captures.iter().map(|capture| capture.amount + capture.tips.unwrap_or_default()).sum(),
    }
}

/// The amount and the tips that are stored are the last that were set: nothing that was answered has certainly overwritten
/// them.
pub fn latest(case: &Case, index: &Index<'_>) -> Trial {
    let text = "The amount and the tips are those that were set last.";
    let mut trial = Trial::new("latest", 0, text);
    for stored in &case.stored {
        let asked = index.of_intent(stored);
        let created = case.books.asked.iter().find_map(|asked| match &asked.ask {
            Ask::Create { reference, amount, .. } if *reference == stored.reference => Some(*amount),
            _ => None,
        });
        let amount = |ask: &Ask| if let Ask::SetAmount(amount) = ask { Some(*amount) } else { None };
        let tips = |ask: &Ask| if let Ask::SetTips(tips) = ask { Some(*tips) } else { None };
        register(stored, "amount", Some(stored.amount), created, &writes(asked, amount), &mut trial);
        register(stored, "tips", stored.tips, None, &writes(asked, tips), &mut trial);
    }
    trial
}

struct Write {
    value: i64,
    began_us: u64,
    /// None while it may still be done.
    ended_us: Option<u64>,
}

fn writes(asked: &[&Asked], value: impl Fn(&Ask) -> Option<i64>) -> Vec<Write> {
    let written = asked.iter().filter_map(|asked| Some((value(&asked.ask)?, *asked)));
    let done = written.filter(|(_, asked)| asked.is_done() || asked.may_be_done());
    done.map(|(value, asked)| {
        // After a doubtful try it was done at any time until its answer.
        let ended_us = matches!(asked.outcome, Outcome::Done(_)).then_some(asked.ended_us);
        Write { value, began_us: asked.began_us, ended_us }
    })
    .collect()
}

fn register(stored: &Stored, what: &str, value: Option<i64>, first: Option<i64>, writes: &[Write], trial: &mut Trial) {
    trial.tried += 1;
    let certain = || writes.iter().filter(|write| write.ended_us.is_some());
    let overwritten = |until_us: u64| certain().any(|write| write.began_us > until_us);
    let is_first = value == first && certain().count() == 0;
    let is_written = writes
        .iter()
        .filter(|write| Some(write.value) == value)
        .any(|write| write.ended_us.is_none_or(|ended_us| !overwritten(ended_us)));
    if !is_first && !is_written {
        let set: Vec<_> = writes.iter().map(|write| write.value).collect();
        trial.broke(|| format!("{}: its {what} is {value:?} after {first:?} and then {set:?}", stored.id));
    }
}
