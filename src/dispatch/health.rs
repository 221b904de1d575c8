//! What an owner knows of its endpoints' health, and what of it is to be published when. Pure: the shell (`worker/health.rs`) asks
//! Redis and the registry. An owner goes on from what the one before it has published.
//!
//! What changes all the time is published seldom, and what matters at once: with 5 000 endpoints that all have traffic, a fifth of
//! which fails, these are 230 entries a second, about 200 KB, in two steps of well under a millisecond of Redis' time each.

mod policy;

use super::{HashMap, HashSet, core::Noted};
use crate::{
    facts::{
        health::{Growth, HOUR_MS, Health, Verdict},
        id::{AccountId, EndpointId},
        own_event::is_operators,
        unserved::{OddSeen, Unserved},
    },
    store::health::Batch,
};
pub use policy::{Overdue, Stand, Surroundings};

/// How often an endpoint's entry is written at most. One that begins or ceases to fail is written with the next batch.
const FAILING_EVERY_MS: u64 = 10_000;
const WELL_EVERY_MS: u64 = 30_000;

/// Of one batch: a millisecond of Redis' time.
const MAX_ENTRIES: usize = 200;
const MAX_BYTES: usize = 128 * 1024;

/// Endpoints that are followed. Beyond that, those that are well are not: a hundred megabytes are enough.
const MOST: usize = 50_000;

/// Accounts whose odd events are counted; whoever makes up new ones has no more, and those seen least recently go.
const MOST_ACCOUNTS: usize = 1_000;

#[derive(Debug, Default)]
pub struct Book {
    entries: HashMap<EndpointId, Entry>,
    /// Those with something that is not published yet.
    changed: HashSet<EndpointId>,
    gone: Vec<EndpointId>,
    unserved: HashMap<AccountId, Unserved>,
    changed_accounts: HashSet<AccountId>,
    forgotten: Vec<AccountId>,
    growth: Growth,
    has_grown: bool,
    /// When any endpoint last took something.
    last_success_ms: u64,
}

#[derive(Debug)]
struct Entry {
    health: Health,
    /// When it was last sent, and the last time that was in it: 0 while it never was.
    sent_ms: u64,
    /// It begins or ceases to fail.
    is_urgent: bool,
}

impl Book {
    /// What an owner before has published counts unless it is what we published ourselves. That what is sent has been written is
    /// not certain until the answer comes, so this is also how a lost answer is dealt with.
    pub fn load(
        &mut self,
        health: Vec<(EndpointId, Health)>,
        unserved: Vec<(AccountId, Unserved)>,
        growth: Option<Growth>,
    ) {
        if let Some(growth) = growth.filter(|growth| growth.hour >= self.growth.hour) {
            let letters = self.growth.letters.max(growth.letters);
            self.growth = if growth.hour > self.growth.hour { growth } else { Growth { letters, ..growth } };
        }
        for (endpoint, health) in health {
            self.last_success_ms = self.last_success_ms.max(health.last_success_ms.unwrap_or(0));
            match self.entries.get_mut(&endpoint) {
                Some(entry) if health.at_ms <= entry.sent_ms => entry.health.told = health.told,
                Some(entry) => *entry = Entry { sent_ms: health.at_ms, health, is_urgent: false },
                None => {
                    let entry = Entry { sent_ms: health.at_ms, health, is_urgent: false };
                    self.entries.insert(endpoint, entry);
                }
            }
        }
        for (account, found) in unserved {
            match self.unserved.get(&account) {
                Some(known) if known.last_ms() >= found.last_ms() => {}
                _ => {
                    self.make_room_for(&account);
                    self.unserved.insert(account, found);
                }
            }
        }
    }

    /// What was seen up to `at_ms`, by Redis' clock.
    pub fn see(&mut self, at_ms: u64, noted: Vec<Noted>, odd: Vec<(AccountId, OddSeen)>) {
        for Noted { endpoint, breaker, window, in_flight, seen } in noted {
            let is_new = !self.entries.contains_key(&endpoint);
            if is_new && self.entries.len() >= MOST && seen.failed == 0 {
                continue;
            }
            self.last_success_ms = self.last_success_ms.max(seen.last_success_ms.unwrap_or(0));
            self.count_letters(at_ms, seen.account.as_ref(), seen.dead);
            let new = || Entry { health: Health::new(at_ms), sent_ms: 0, is_urgent: false };
            let entry = self.entries.entry(endpoint.clone()).or_insert_with(new);
            let before = entry.health.verdict(at_ms);
            (entry.health.breaker, entry.health.window, entry.health.in_flight) = (breaker, window, in_flight);
            entry.health.add(at_ms, seen);
            entry.is_urgent |= (before == Verdict::Failing) != (entry.health.verdict(at_ms) == Verdict::Failing);
            self.changed.insert(endpoint);
        }
        for (account, seen) in odd {
            self.make_room_for(&account);
            self.unserved.entry(account.clone()).or_default().add(at_ms, seen);
            self.changed_accounts.insert(account);
        }
    }

    fn count_letters(&mut self, at_ms: u64, account: Option<&AccountId>, letters: u32) {
        if letters == 0 || account.is_some_and(is_operators) {
            return;
        }
        let hour = at_ms / HOUR_MS;
        if self.growth.hour != hour {
            self.growth = Growth { hour, ..Growth::default() };
        }
        self.growth.letters += u64::from(letters);
        self.has_grown = true;
    }

    /// The account that was seen least recently goes, if there are too many.
    fn make_room_for(&mut self, account: &AccountId) {
        if self.unserved.len() < MOST_ACCOUNTS || self.unserved.contains_key(account) {
            return;
        }
        let oldest = self.unserved.iter().min_by_key(|(id, unserved)| (unserved.last_ms(), *id));
        if let Some(oldest) = oldest.map(|(id, _)| id.clone()) {
            self.unserved.remove(&oldest);
            self.changed_accounts.remove(&oldest);
            self.forgotten.push(oldest);
        }
    }

    /// Forgets the endpoints that are no more, and has them removed.
    pub fn keep(&mut self, is_there: impl Fn(&EndpointId) -> bool) {
        let gone: Vec<EndpointId> = self.entries.keys().filter(|endpoint| !is_there(endpoint)).cloned().collect();
        for endpoint in gone {
            self.entries.remove(&endpoint);
            self.changed.remove(&endpoint);
            self.gone.push(endpoint);
        }
    }

    /// The next batch, if anything is due: with `all`, whatever has changed. It counts as published; if it was not, or that is not
    /// known, it is handed back to [`Book::was_not_published`].
    pub fn due(&mut self, now_ms: u64, all: bool, around: &impl Surroundings) -> Option<Batch> {
        let mut due: Vec<(u64, EndpointId)> = self
            .changed
            .iter()
            .filter_map(|endpoint| {
                let entry = self.entries.get(endpoint)?;
                (all || entry.is_due(now_ms)).then(|| (entry.order(), endpoint.clone()))
            })
            .collect();
        due.sort_unstable();
        let (mut batch, mut bytes) = (Batch::default(), 0);
        for (_, endpoint) in due.into_iter().take(MAX_ENTRIES) {
            let Some(entry) = self.entries.get_mut(&endpoint) else { continue };
            if bytes > MAX_BYTES {
                break;
            }
            let told = entry.tell(&endpoint, now_ms, around);
            let text = serde_json::to_string(&entry.health).expect("texts and numbers are always JSON");
            bytes += text.len();
            (entry.sent_ms, entry.is_urgent) = (entry.health.at_ms.max(now_ms), false);
            self.changed.remove(&endpoint);
            batch.health.push((endpoint, text));
            batch.events.extend(told);
        }
        let accounts: Vec<AccountId> = self.changed_accounts.iter().take(MAX_ENTRIES).cloned().collect();
        for account in accounts {
            self.changed_accounts.remove(&account);
            if let Some(unserved) = self.unserved.get(&account) {
                let text = serde_json::to_string(unserved).expect("texts and numbers are always JSON");
                batch.unserved.push((account, text));
            }
        }
        if std::mem::take(&mut self.has_grown) {
            batch.events.extend(policy::tell_of_growth(&mut self.growth, now_ms, around));
            batch.growth = Some(serde_json::to_string(&self.growth).expect("numbers are always JSON"));
        }
        batch.gone = self.gone.split_off(self.gone.len().saturating_sub(MAX_ENTRIES));
        batch.forgotten = self.forgotten.split_off(self.forgotten.len().saturating_sub(MAX_ENTRIES));
        // One that has come back meanwhile stays.
        batch.forgotten.retain(|account| !self.unserved.contains_key(account));
        (!batch.is_empty()).then_some(batch)
    }

    /// What was in it is due again.
    pub fn was_not_published(&mut self, batch: Batch) {
        self.changed.extend(batch.health.into_iter().map(|(endpoint, _)| endpoint));
        self.changed_accounts.extend(batch.unserved.into_iter().map(|(account, _)| account));
        self.gone.extend(batch.gone);
        self.forgotten.extend(batch.forgotten);
        self.has_grown |= batch.growth.is_some();
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl Entry {
    fn is_due(&self, now_ms: u64) -> bool {
        let waited_ms = now_ms.checked_sub(self.sent_ms);
        let is_troubled = || matches!(self.health.verdict(now_ms), Verdict::Failing | Verdict::Unsteady);
        match waited_ms {
            // A clock that was set back must not silence it.
            None => true,
            Some(ms) => self.is_urgent || ms >= WELL_EVERY_MS || ms >= FAILING_EVERY_MS && is_troubled(),
        }
    }

    /// What is urgent comes first, then what has waited longest.
    fn order(&self) -> u64 {
        if self.is_urgent { 0 } else { self.sent_ms }
    }
}

#[cfg(test)]
#[path = "health_tests.rs"]
mod tests;
