//! Accounts whose entries wait in the stream, which is their record: pending in the group and not acknowledged, with
//! nothing in memory for each. An entry is deferred whole, before any delivery of it is admitted, and with it every later
//! one of its account, so nothing overtakes. Pure: never reads and never admits.
//!
//! When an account can take more, a **pass** reads what is pending again and admits what of it waits, until the account
//! can take no more, or everything was read that waited when the pass began. What is read for the first time meanwhile is
//! deferred, and is the next pass': so each pass ends, however much comes, and others have their turn.

use std::collections::BTreeMap;

use super::*;

/// Entries that wait at most, beyond which nothing new is read: a pending entry costs Redis some 100 bytes, so 5 MB.
pub(super) const MAX_DEFERRED: usize = 50_000;

/// Entries that a page of a pass has at least: much of what is pending may be others', and those who wait for the next pass
/// should not wait for thousands of calls.
const LEAST_PAGE: usize = 32;

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
    /// Entries that wait, of all accounts.
    entries: usize,
    look_at: u64,
}

#[derive(Debug)]
struct Waiting {
    /// Every entry of the account after this one waits …
    after: EntryId,
    /// … up to this one: what is newer was not read yet.
    last: EntryId,
    /// So many; fewer where a stranger had taken earlier ones.
    entries: usize,
    /// Deliveries of the entry with which it began.
    fan_out: usize,
    /// When it began to wait.
    since: u64,
}

#[derive(Debug)]
struct Pass {
    /// Read up to here …
    after: EntryId,
    /// … of what waited when it began.
    until: EntryId,
    began_at: u64,
    takers: HashSet<AccountId>,
}

impl Deferral {
    /// Whether an entry has to wait behind others of its account; in a pass those of its takers need not.
    pub fn holds(&self, account: &AccountId, of_pass: bool) -> bool {
        self.waiting.contains_key(account) && !(of_pass && self.takes(account))
    }

    /// An entry of this account waits, and all later ones.
    pub fn defer(&mut self, now: u64, account: &AccountId, entry: EntryId, fan_out: usize, of_pass: bool) {
        self.begins(now);
        let after = entry.before();
        let is_taker = self.takes(account);
        let begun = Waiting { after, last: after, entries: 0, fan_out, since: now };
        let waiting = self.waiting.entry(account.clone()).or_insert(begun);
        // What is read again is counted already.
        if entry > waiting.last {
            waiting.last = entry;
            waiting.entries += 1;
            self.entries += 1;
        }
        let is_of_stranger = after < waiting.after;
        if of_pass && is_taker || is_of_stranger {
            (waiting.after, waiting.fan_out) = (after, fan_out);
        }
        match (is_taker, of_pass) {
            (true, true) => self.stops_taking(account),
            // A stranger had taken it, and it is read after later ones: the pass goes back to it.
            (true, false) => self.pass.iter_mut().for_each(|pass| pass.after = pass.after.min(after)),
            (false, _) => {}
        }
    }

    /// A part of this entry's deliveries was admitted; the rest waits here, and every later entry in the stream.
    pub fn rest(&mut self, now: u64, arrival: Arrival) {
        self.begins(now);
        let account = arrival.event.account.clone();
        let (entry, fan_out, is_taker) = (arrival.entry, arrival.left(), self.takes(&account));
        let begun = Waiting { after: entry, last: entry, entries: 0, fan_out, since: now };
        let waiting = self.waiting.entry(account.clone()).or_insert(begun);
        // A stranger may have taken earlier ones, and they came to wait since this one was begun.
        waiting.after = if is_taker { entry } else { entry.min(waiting.after) };
        (waiting.last, waiting.fan_out) = (waiting.last.max(entry), fan_out);
        self.stops_taking(&account);
        self.rests.insert(account, arrival);
    }

    /// An entry that waited was admitted.
    pub fn admitted(&mut self, account: &AccountId) {
        if let Some(waiting) = self.waiting.get_mut(account)
            && waiting.entries > 0
        {
            waiting.entries -= 1;
            self.entries -= 1;
        }
    }

    /// Accounts that may take more.
    pub fn relieve(&mut self, accounts: impl IntoIterator<Item = AccountId>) {
        let waiting = &self.waiting;
        self.relieved.extend(accounts.into_iter().filter(|account| waiting.contains_key(account)));
    }

    /// Who waits for more than room is looked at now and then, also while there is one pass after the other.
    pub fn look(&mut self, now: u64) {
        if !self.waiting.is_empty() && now >= self.look_at {
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
    pub fn next_page(&mut self, now: u64) -> Option<(EntryId, usize)> {
        if self.pass.is_none() {
            self.begin_pass(now);
            // Nothing waits behind what was a rest until now.
            self.end_pass_at_its_end();
        }
        let pass = self.pass.as_ref()?;
        let fan_out = pass.takers.iter().filter_map(|account| Some(self.waiting.get(account)?.fan_out)).max();
        Some((pass.after, (READ_MAX / fan_out.unwrap_or(1).max(1)).max(LEAST_PAGE)))
    }

    fn begin_pass(&mut self, now: u64) {
        let (rests, waiting) = (&self.rests, &self.waiting);
        // The rest of an earlier entry comes first.
        let (late, takers): (VecDeque<_>, VecDeque<_>) =
            self.relieved.drain(..).partition(|account| rests.contains_key(account));
        self.relieved = late;
        let takers: HashSet<AccountId> = takers.into_iter().filter(|account| waiting.contains_key(account)).collect();
        let (mut after, mut until) = (EntryId::MAX, EntryId::ZERO);
        for waiting in takers.iter().map(|account| &waiting[account]) {
            (after, until) = (after.min(waiting.after), until.max(waiting.last));
        }
        self.pass = (!takers.is_empty()).then_some(Pass { after, until, began_at: now, takers });
    }

    /// Ends a pass that has read everything that waited when it began. Only while nothing that it read is still to be
    /// admitted.
    pub fn end_pass_at_its_end(&mut self) {
        if self.pass.as_ref().is_some_and(|pass| pass.after >= pass.until) {
            self.end_pass();
        }
    }

    /// Its takers wait for nothing any more, but for what came meanwhile.
    fn end_pass(&mut self) {
        let Some(pass) = self.pass.take() else { return };
        let mut takers: Vec<AccountId> = pass.takers.into_iter().collect();
        // In an order of its own, not of the set's: the same inputs must lead to the same calls.
        takers.sort_unstable();
        for account in takers {
            match self.waiting.get_mut(&account) {
                Some(waiting) if waiting.last > pass.after => {
                    (waiting.after, waiting.since) = (pass.after.max(waiting.after), pass.began_at);
                    self.relieved.push_back(account);
                }
                Some(waiting) => {
                    self.entries -= waiting.entries;
                    self.waiting.remove(&account);
                }
                None => {}
            }
        }
    }

    /// Whether a page of the pass is to be read.
    pub fn wants_page(&self) -> bool {
        self.pass.is_some() || self.relieved.iter().any(|account| !self.rests.contains_key(account))
    }

    /// Whether an entry that a pass read is one that waits and may be admitted.
    pub fn is_wanted(&self, account: &AccountId, entry: EntryId) -> bool {
        self.takes(account) && self.waiting.get(account).is_some_and(|waiting| entry > waiting.after)
    }

    /// The pass has read up to here; with none nothing is pending behind what it has read.
    pub fn read_up_to(&mut self, last: Option<EntryId>) {
        if let Some(pass) = &mut self.pass {
            pass.after = last.unwrap_or(EntryId::MAX);
        }
        if last.is_none() {
            self.end_pass();
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

    /// Entries that wait.
    pub fn entries(&self) -> usize {
        self.entries
    }

    /// The first that waits: it is looked at in its time.
    fn begins(&mut self, now: u64) {
        if self.waiting.is_empty() {
            self.look_at = now + LOOK_EVERY_MS;
        }
    }

    #[cfg(test)]
    pub fn is_waiting(&self, account: &str) -> bool {
        self.waiting.keys().any(|waiting| waiting.as_str() == account)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(ms: u64) -> EntryId {
        EntryId { ms, seq: 0 }
    }

    fn account(name: &str) -> AccountId {
        name.parse().unwrap()
    }

    /// Where the pass reads on.
    fn reads_after(deferral: &mut Deferral) -> Option<EntryId> {
        deferral.end_pass_at_its_end();
        deferral.next_page(0).map(|(after, _)| after)
    }

    #[test]
    fn a_pass_ends_with_what_waited_when_it_began_and_the_next_one_is_everybodys() {
        let mut deferral = Deferral::default();
        let (busy, other) = (account("acc_busy"), account("acc_other"));
        [10, 20].into_iter().for_each(|ms| deferral.defer(0, &busy, entry(ms), 1, false));
        deferral.relieve([busy.clone()]);
        assert_eq!(reads_after(&mut deferral), Some(entry(10).before()));
        // Meanwhile more comes for it, and another one has to wait, and may take again.
        deferral.defer(0, &other, entry(15), 1, false);
        [30, 40].into_iter().for_each(|ms| deferral.defer(0, &busy, entry(ms), 1, false));
        deferral.relieve([other.clone()]);
        deferral.read_up_to(Some(entry(25)));
        (0..2).for_each(|_| deferral.admitted(&busy));
        assert_eq!(reads_after(&mut deferral), Some(entry(15).before()));
        assert!([&busy, &other].into_iter().all(|account| deferral.is_wanted(account, entry(30))));
        assert!(!deferral.is_wanted(&busy, entry(20)) && deferral.is_wanted(&other, entry(15)));
        assert_eq!(deferral.entries(), 3);
        deferral.read_up_to(Some(entry(40)));
        assert_eq!((reads_after(&mut deferral), deferral.entries()), (None, 0));
        assert!(![&busy, &other].into_iter().any(|account| deferral.holds(account, false)));
    }

    #[test]
    fn a_pass_goes_back_to_what_a_stranger_had_taken() {
        let mut deferral = Deferral::default();
        let waits = account("acc_waits");
        [10, 20, 30].into_iter().for_each(|ms| deferral.defer(0, &waits, entry(ms), 1, false));
        deferral.relieve([waits.clone()]);
        assert_eq!(reads_after(&mut deferral), Some(entry(10).before()));
        deferral.read_up_to(Some(entry(20)));
        // It is taken over now, and what waits behind it is read again.
        [15, 30].into_iter().for_each(|ms| deferral.defer(0, &waits, entry(ms), 1, false));
        assert_eq!(deferral.entries(), 3);
        assert_eq!(reads_after(&mut deferral), Some(entry(15).before()));
        assert!(deferral.is_wanted(&waits, entry(15)));
        deferral.read_up_to(Some(entry(30)));
        assert_eq!((reads_after(&mut deferral), deferral.holds(&waits, false)), (None, false));
    }
}
