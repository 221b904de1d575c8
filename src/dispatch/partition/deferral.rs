//! Accounts whose entries wait in the stream, which is their record: pending in the group and not acknowledged, with
//! nothing in memory for each. An entry is deferred whole, before any delivery of it is admitted, and with it every later
//! one of its account, so nothing overtakes. Pure: never reads and never admits.
//!
//! When an account can take more, a **pass** reads what is pending again and admits what of it waits, until the account
//! can take no more or nothing is left. What is read for the first time meanwhile is deferred, and the pass comes to it.

use std::collections::BTreeMap;

use super::*;

/// Entries that wait at most, beyond which nothing new is read: a pending entry costs Redis some 100 bytes, so 5 MB.
pub(super) const MAX_DEFERRED: usize = 50_000;

/// Accounts that wait for more than room are looked at again so often.
const LOOK_EVERY_MS: u64 = 500;

/// Whoever has waited so long waits in records from then on: all of the stream behind its first entry stays for it.
const MAX_WAIT_MS: u64 = 10_000;

#[derive(Debug, Default)]
pub(super) struct Deferral {
    waiting: BTreeMap<AccountId, Waiting>,
    /// Who may take more, in the order in which that was found.
    relieved: VecDeque<AccountId>,
    /// Entries with so many deliveries that a part of them is still to be admitted: one for each account at most.
    rests: HashMap<AccountId, Arrival>,
    pass: Option<Pass>,
    /// Entries that wait; not fewer.
    entries: usize,
    look_at: u64,
}

#[derive(Debug)]
struct Waiting {
    /// Every entry of the account after this one waits.
    after: EntryId,
    /// Deliveries of the entry with which it began.
    fan_out: usize,
    /// When it began to wait.
    since: u64,
}

#[derive(Debug)]
struct Pass {
    after: EntryId,
    takers: HashSet<AccountId>,
}

impl Deferral {
    /// Whether an entry has to wait behind others of its account; in a pass those of its takers need not.
    pub fn holds(&self, account: &AccountId, of_pass: bool) -> bool {
        self.waiting.contains_key(account) && !(of_pass && self.takes(account))
    }

    /// An entry of this account waits, and all later ones.
    pub fn defer(&mut self, now: u64, account: &AccountId, entry: EntryId, fan_out: usize, of_pass: bool) {
        if self.waiting.is_empty() {
            self.look_at = now + LOOK_EVERY_MS;
        }
        self.entries += usize::from(!of_pass);
        let is_taker = of_pass && self.takes(account);
        let after = entry.before();
        let waiting = self.waiting.entry(account.clone()).or_insert(Waiting { after, fan_out, since: now });
        // A pass got so far. Or a stranger had taken it, and it is read after later ones.
        if is_taker || after < waiting.after {
            (waiting.after, waiting.fan_out) = (after, fan_out);
            self.stops_taking(account);
        }
    }

    /// A part of this entry's deliveries was admitted; the rest waits here, and every later entry in the stream.
    pub fn rest(&mut self, now: u64, arrival: Arrival) {
        if self.waiting.is_empty() {
            self.look_at = now + LOOK_EVERY_MS;
        }
        let account = arrival.event.account.clone();
        let (mut after, fan_out) = (arrival.entry, arrival.left());
        if !self.takes(&account)
            && let Some(waiting) = self.waiting.get(&account)
        {
            // A stranger had taken earlier ones, and they came to wait since this one was begun.
            after = after.min(waiting.after);
        }
        let since = self.waiting.get(&account).map_or(now, |waiting| waiting.since);
        self.waiting.insert(account.clone(), Waiting { after, fan_out, since });
        self.stops_taking(&account);
        self.rests.insert(account, arrival);
    }

    /// An entry that waited was admitted.
    pub fn admitted(&mut self) {
        self.entries = self.entries.saturating_sub(1);
    }

    /// Accounts that may take more.
    pub fn relieve(&mut self, accounts: impl IntoIterator<Item = AccountId>) {
        let waiting = &self.waiting;
        self.relieved.extend(accounts.into_iter().filter(|account| waiting.contains_key(account)));
    }

    /// Who waits for more than room is looked at now and then.
    pub fn look(&mut self, now: u64) {
        if !self.waiting.is_empty() && now >= self.look_at && self.pass.is_none() {
            self.look_at = now + LOOK_EVERY_MS;
            self.relieved = self.waiting.keys().cloned().collect();
        }
    }

    /// The rest of an entry whose account may take more.
    pub fn next_rest(&mut self) -> Option<Arrival> {
        if self.rests.is_empty() {
            return None;
        }
        let at = self.relieved.iter().position(|account| self.rests.contains_key(account))?;
        self.relieved.remove(at).and_then(|account| self.rests.remove(&account))
    }

    /// Where the pass reads on, and how many entries; begins one where an account may take more.
    pub fn next_page(&mut self) -> Option<(EntryId, usize)> {
        if self.pass.is_none() {
            let rests = &self.rests;
            // The rest of an earlier entry comes first.
            let (late, takers): (VecDeque<_>, VecDeque<_>) =
                self.relieved.drain(..).partition(|account| rests.contains_key(account));
            self.relieved = late;
            let takers: HashSet<AccountId> = takers.into_iter().collect();
            let after = takers.iter().filter_map(|account| Some(self.waiting.get(account)?.after)).min()?;
            self.pass = Some(Pass { after, takers });
        }
        let pass = self.pass.as_ref()?;
        let fan_out = pass.takers.iter().filter_map(|account| Some(self.waiting.get(account)?.fan_out)).max();
        Some((pass.after, (READ_MAX / fan_out.unwrap_or(1).max(1)).max(1)))
    }

    /// Whether a page of the pass is to be read.
    pub fn wants_page(&self) -> bool {
        self.pass.is_some() || self.relieved.iter().any(|account| !self.rests.contains_key(account))
    }

    /// Whether an entry that a pass read is one that waits and may be admitted.
    pub fn is_wanted(&self, account: &AccountId, entry: EntryId) -> bool {
        self.takes(account) && self.waiting.get(account).is_some_and(|waiting| entry > waiting.after)
    }

    /// The pass has read up to here; with none it has come to the end, and its takers wait for nothing any more.
    pub fn read_up_to(&mut self, last: Option<EntryId>) {
        match (last, &mut self.pass) {
            (Some(last), Some(pass)) => pass.after = last,
            (None, Some(pass)) => {
                for account in std::mem::take(&mut pass.takers) {
                    self.waiting.remove(&account);
                }
                self.pass = None;
            }
            (_, None) => {}
        }
        if self.waiting.is_empty() {
            self.entries = 0;
        }
    }

    pub fn has_waited_long(&self, now: u64, account: &AccountId) -> bool {
        self.waiting.get(account).is_some_and(|waiting| now > waiting.since + MAX_WAIT_MS)
    }

    pub fn is_full(&self) -> bool {
        self.entries >= MAX_DEFERRED
    }

    pub fn next_look(&self) -> Option<u64> {
        (!self.waiting.is_empty() && self.pass.is_none()).then_some(self.look_at)
    }

    /// Entries that wait; not fewer.
    pub fn entries(&self) -> usize {
        self.entries
    }

    fn takes(&self, account: &AccountId) -> bool {
        self.pass.as_ref().is_some_and(|pass| pass.takers.contains(account))
    }

    fn stops_taking(&mut self, account: &AccountId) {
        if let Some(pass) = &mut self.pass {
            pass.takers.remove(account);
            if pass.takers.is_empty() {
                self.pass = None;
            }
        }
    }
}
