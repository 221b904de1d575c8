//! When the whole service was behind with its work, judged by what it had read: at such a time a late delivery says
//! nothing about that delivery. Pure.

use std::time::Duration;

use super::Case;
use crate::loadtest::{
    ledger::{
        books::MAX_SECONDS,
        times::{NEVER, micros},
    },
    scenario::Profile,
};

/// A service that keeps up sends an event on within milliseconds.
const BRISK: Duration = Duration::from_secs(1);

/// The seconds of a run in which everything fresh that arrived was already old.
#[derive(Default)]
pub struct Backlog {
    behind: Vec<bool>,
    /// When it had caught up for good; 0 if it was never behind.
    pub ended_us: u64,
}

impl Backlog {
    pub fn of(case: &Case<'_>) -> Self {
        let seconds = youngest(case);
        let mut behind = vec![false; seconds.len()];
        // What arrives next tells how far the service had read by then; after the last arrival it has read everything.
        let mut read_to_us = None;
        for (second, youngest) in seconds.iter().enumerate().rev() {
            read_to_us = youngest.or(read_to_us);
            let begins_us = second as u64 * 1_000_000;
            behind[second] = read_to_us.is_some_and(|sent_us| sent_us + micros(BRISK) < begins_us);
        }
        let last = behind.iter().rposition(|is_behind| *is_behind);
        Self { behind, ended_us: last.map_or(0, |second| (second as u64 + 1) * 1_000_000) }
    }

    /// Whether it was behind at some time within this span.
    pub fn lies_within(&self, from_us: u64, until_us: u64) -> bool {
        let second = |at_us: u64| (at_us / 1_000_000) as usize;
        let seconds = self.behind.get(second(from_us)..self.behind.len().min(second(until_us) + 1));
        seconds.is_some_and(|seconds| seconds.contains(&true))
    }
}

/// By second: when the youngest event was sent that arrived first within it. Only events that nothing else can hold up:
/// the first of an intent, at an endpoint that takes what comes.
fn youngest(case: &Case<'_>) -> Vec<Option<u64>> {
    let mut seconds: Vec<Option<u64>> = Vec::new();
    for (_, item) in case.items().filter(|(_, item)| item.sent.place == 0 && !item.sent.sent_again) {
        if item.book.arrivals == 0 || item.sent.sent_us == NEVER || !takes_what_comes(case, item.endpoint) {
            continue;
        }
        let second = ((item.book.first_arrival_us / 1_000_000) as usize).min(MAX_SECONDS - 1);
        if seconds.len() <= second {
            seconds.resize(second + 1, None);
        }
        seconds[second] = seconds[second].max(Some(item.sent.sent_us));
    }
    seconds
}

fn takes_what_comes(case: &Case<'_>, endpoint: u32) -> bool {
    match case.population.profile(endpoint) {
        Profile::Healthy { .. } | Profile::Flaky { .. } | Profile::HugeBody => true,
        Profile::Slow { .. } => case.population.is_alive(endpoint),
        _ => false,
    }
}
