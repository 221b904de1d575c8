//! Accounts whose entries wait: pending in the group and not acknowledged, so the stream is their record. An entry is
//! deferred whole, before any delivery of it is admitted, and with it every later one of its account, so nothing overtakes.
//! The first of them also wait in memory, as they were read, as far as there is room; of all that come after these, only
//! the number is kept. Pure: never reads and never admits.
//!
//! When an account can take more, it is given what waits in memory. What waits only in the stream is read again by a
//! **pass**. A pass admits what it reads of that until the account can take no more, or until everything was read that
//! waited when the pass began. What is read for the first time meanwhile is deferred and left to the next pass: so each
//! pass ends, however much comes, and others have their turn.

use std::collections::BTreeMap;

use super::{
    AccountId, Arc, Budget, Endpoint, EntryId, HashSet, MAX_READ_BYTES, READ_MAX, Source, StagedEntry, VecDeque,
};

/// Beyond this many entries that wait, nothing new is read: a pending entry costs Redis some 100 bytes, so 5 MB.
pub(super) const MAX_DEFERRED: usize = 50_000;

/// Entries that a page of a pass has at least: much of what is pending may belong to others, and accounts that wait for the
/// next pass should not wait for thousands of calls.
const LEAST_PAGE: usize = 32;

/// Deliveries of an account's entries in memory that are looked at together: what it cannot take of them goes back, so many of them would be
/// moved to and fro where it takes few at a time.
const PAGE_HERE: usize = 64;

/// Entries for many endpoints that are admitted in turns.
pub(super) const MAX_IN_PARTS: usize = 4;

/// How often accounts that wait for something other than room are looked at again.
const LOOK_EVERY_MS: u64 = 500;

/// An account that has waited this long waits in records from then on, because everything in the stream behind its first
/// entry is kept for it.
const MAX_WAIT_MS: u64 = 10_000;

/// Roughly what an entry in memory takes beside its body.
const ENTRY_BYTES: usize = 512;

/// When everything that was read last waits for one account whose memory is full, reading waits for that account, because
/// what it leaves in the stream must be read twice. Reading waits as long as the account takes a page of what waits within
/// this time, as then it is nearly as quick as reading itself …
const PATIENCE_MS: u64 = 40;

/// … and an account that does not is read past, for this long. Entries of others may be behind its own. Several partitions
/// of a process share the time in which they do so, and wait the longer for it: what is read past is read twice, which would
/// keep them from what they have.
const IMPATIENT_MS: u64 = 250;

/// No more than so many count: whoever is behind an account that takes nothing waits two and a half seconds for a page at most, though a
/// thousand partitions read in vain.
const MOST_IN_VAIN: usize = 64;

/// A partition that has read in vain counts among those for so long.
const IN_VAIN_MS: u64 = 1_000;

/// When entries of others that had to wait for nothing were read this recently, more are expected behind the account's own.
/// The account's own are then read past at once, although what is read ahead costs twice.
const OTHERS_MS: u64 = 1_000;

#[derive(Debug)]
pub(super) struct Deferral {
    waiting: BTreeMap<AccountId, Waiting>,
    /// Accounts that may take more, in the order in which that was found: from the stream …
    relieved: VecDeque<AccountId>,
    /// … and from what waits in memory.
    relieved_here: VecDeque<AccountId>,
    pass: Option<Pass>,
    /// Entries that wait, of all accounts.
    entries: usize,
    /// How much of them is in memory, and how much may be.
    here: Budget,
    budget: Budget,
    /// How many partitions read in vain, this one included; and when this one did so last.
    in_vain: u64,
    in_vain_at: Option<u64>,
    /// Entries in memory that are admitted in parts.
    in_parts: usize,
    /// Accounts that wait for one of those to end, in turn: each once.
    wide: VecDeque<AccountId>,
    are_wide: HashSet<AccountId>,
    pause: Option<Pause>,
    /// The account whose entry was deferred last.
    latest: Option<AccountId>,
    /// The last two accounts whose entries were admitted as they were read, or were owed to nobody, and when: the latest
    /// first.
    passed: [Option<(AccountId, u64)>; 2],
    look_at: u64,
}

#[derive(Debug)]
struct Waiting {
    /// The first ones that wait, in memory. A part of the very first may be admitted already.
    here: VecDeque<StagedEntry>,
    here_bytes: usize,
    /// Every entry of the account after this one waits only in the stream …
    after: EntryId,
    /// … up to this one: what is newer has not been read yet.
    last: EntryId,
    /// An earlier entry of the page that is being looked at was left in the stream.
    is_gap: bool,
    /// Entries that wait; too few where a stranger had taken earlier ones.
    entries: usize,
    /// Deliveries of the entry with which the waiting began.
    fan_out: usize,
    /// When what waits only in the stream began to wait.
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

/// Nothing is read for the first time until this account has room in memory for a page, or until this time.
#[derive(Debug)]
struct Pause {
    account: AccountId,
    until: u64,
    /// How many it has taken since the time was last put off.
    taken: usize,
}

impl Waiting {
    fn new(now: u64, after: EntryId, fan_out: usize) -> Self {
        let here = VecDeque::new();
        Self { here, here_bytes: 0, after, last: after, is_gap: false, entries: 0, fan_out, since: now }
    }

    fn keep(&mut self, arrival: StagedEntry) {
        self.here_bytes += weight(&arrival);
        self.here.push_back(arrival);
    }

    fn keep_first(&mut self, arrival: StagedEntry) {
        self.here_bytes += weight(&arrival);
        self.here.push_front(arrival);
    }

    fn take_first(&mut self) -> Option<StagedEntry> {
        let arrival = self.here.pop_front()?;
        self.here_bytes -= weight(&arrival);
        Some(arrival)
    }

    fn here(&self) -> Budget {
        Budget { count: self.here.len(), bytes: self.here_bytes }
    }
}

/// What an entry takes of memory. It does not change while the entry waits.
fn weight(arrival: &StagedEntry) -> usize {
    let owed = arrival.endpoints.len() + arrival.unknown.len();
    arrival.event.body().len() + ENTRY_BYTES + owed * size_of::<Arc<Endpoint>>()
}

impl Deferral {
    /// With room in memory for this much, of a process in which so many partitions read in vain.
    pub fn new(budget: Budget, in_vain: usize) -> Self {
        Self {
            waiting: BTreeMap::new(),
            relieved: VecDeque::new(),
            relieved_here: VecDeque::new(),
            pass: None,
            entries: 0,
            here: Budget::default(),
            budget,
            in_vain: in_vain.min(MOST_IN_VAIN) as u64,
            in_vain_at: None,
            in_parts: 0,
            wide: VecDeque::new(),
            are_wide: HashSet::default(),
            pause: None,
            latest: None,
            passed: [None, None],
            look_at: 0,
        }
    }

    /// What is in memory stays there, whatever the budget.
    pub fn set_budget(&mut self, budget: Budget, in_vain: usize) {
        (self.budget, self.in_vain) = (budget, in_vain.min(MOST_IN_VAIN) as u64);
    }

    /// Whether an entry has to wait behind others of its account.
    pub fn holds(&self, account: &AccountId, source: &Source) -> bool {
        match source {
            Source::Memory(_) => false,
            Source::Pass if self.takes(account) => false,
            Source::Stream | Source::Pass => self.waiting.contains_key(account),
        }
    }

    /// This entry waits, and so do all later ones of its account. Returns whether it waits in memory.
    pub fn defer(&mut self, now: u64, arrival: StagedEntry, source: &Source) -> bool {
        self.begins(now);
        let (account, entry, fan_out) = (arrival.event.account.clone(), arrival.entry, arrival.left());
        let (before, is_taker) = (entry.before(), self.takes(&account));
        let mut waiting = self.waiting.remove(&account).unwrap_or_else(|| Waiting::new(now, before, fan_out));
        let is_of_stranger = entry <= waiting.after;
        if is_of_stranger && waiting.here.iter().any(|here| here.entry == entry) {
            self.waiting.insert(account, waiting);
            return true;
        }
        let is_all_here = waiting.last == waiting.after;
        // What is read again has been counted already.
        if entry > waiting.last {
            waiting.last = entry;
            waiting.entries += 1;
            self.entries += 1;
        }
        match (source, is_taker) {
            // Everything before it was admitted.
            (Source::Pass, true) => {
                (waiting.after, waiting.fan_out, waiting.is_gap) = (before, fan_out, false);
                self.stops_taking(&account);
            }
            // A stranger had taken it, and it is read after later ones: the pass goes back to it.
            (_, true) => self.pass.iter_mut().for_each(|pass| pass.after = pass.after.min(before)),
            (_, false) => {}
        }
        if is_of_stranger {
            self.forget_after(&mut waiting, entry);
            (waiting.after, waiting.fan_out) = (before, fan_out);
        }
        let is_next = match source {
            Source::Pass => !waiting.is_gap,
            Source::Stream | Source::Memory(_) => is_all_here && !is_of_stranger,
        };
        let is_kept = is_next && self.has_room(&waiting, weight(&arrival));
        if is_kept {
            waiting.after = entry;
            self.keep(now, &mut waiting, arrival, is_all_here);
        } else {
            waiting.is_gap = true;
            if is_all_here {
                waiting.since = now;
            }
        }
        self.latest = Some(account.clone());
        self.waiting.insert(account, waiting);
        is_kept
    }

    fn keep(&mut self, now: u64, waiting: &mut Waiting, arrival: StagedEntry, is_first: bool) {
        // What comes back from the stream has been waiting there.
        let since = if is_first { now } else { waiting.since };
        let arrival = StagedEntry { waits_since: Some(arrival.waits_since.unwrap_or(since)), ..arrival };
        self.count_in(&arrival);
        waiting.keep(arrival);
    }

    fn count_in(&mut self, arrival: &StagedEntry) {
        self.here.count += 1;
        self.here.bytes += weight(arrival);
        self.in_parts += usize::from(arrival.is_in_parts);
    }

    fn count_out(&mut self, arrival: &StagedEntry) {
        self.here.count -= 1;
        self.here.bytes -= weight(arrival);
        self.in_parts -= usize::from(arrival.is_in_parts);
    }

    /// One account may have as much in memory as it leaves to all others.
    fn has_room(&self, waiting: &Waiting, bytes: usize) -> bool {
        let (used, own) = (self.here, waiting.here());
        used.count + own.count < self.budget.count && used.bytes + own.bytes + 2 * bytes <= self.budget.bytes
    }

    /// Forgets what is behind this entry, as it is still in the stream. What was begun cannot be read again, and stays.
    fn forget_after(&mut self, waiting: &mut Waiting, entry: EntryId) {
        while waiting.here.back().is_some_and(|last| last.entry > entry && !last.is_open)
            && let Some(arrival) = waiting.here.pop_back()
        {
            waiting.here_bytes -= weight(&arrival);
            self.count_out(&arrival);
        }
    }

    /// A part of this entry's deliveries was admitted; the rest waits in memory, whatever room there is: one such entry per
    /// account.
    pub fn rest(&mut self, now: u64, arrival: StagedEntry) {
        self.begins(now);
        let (account, entry, fan_out) = (arrival.event.account.clone(), arrival.entry, arrival.left());
        let mut waiting = self.waiting.remove(&account).unwrap_or_else(|| Waiting::new(now, entry, fan_out));
        (waiting.after, waiting.last) = (entry, waiting.last.max(entry));
        (waiting.fan_out, waiting.is_gap) = (fan_out, false);
        self.stops_taking(&account);
        self.keep(now, &mut waiting, arrival, true);
        self.waiting.insert(account, waiting);
    }

    /// What was given to an account and could not be admitted waits again, before everything else.
    pub fn put_back(&mut self, account: &AccountId, arrivals: impl DoubleEndedIterator<Item = StagedEntry>) {
        let Some(mut waiting) = self.waiting.remove(account) else { return };
        for arrival in arrivals.rev() {
            self.count_in(&arrival);
            waiting.keep_first(arrival);
        }
        self.waiting.insert(account.clone(), waiting);
    }

    #[cfg(test)]
    pub fn in_parts(&self) -> usize {
        self.in_parts
    }

    /// Whether one more entry for many endpoints may be admitted in parts: after a crash, whatever was delivered of such an
    /// entry is delivered again.
    pub fn may_be_in_parts(&self) -> bool {
        self.in_parts < MAX_IN_PARTS
    }

    /// This account has an entry that may begin once another entry in parts has ended.
    pub fn awaits_end_of_parts(&mut self, account: &AccountId) {
        if self.are_wide.insert(account.clone()) {
            self.wide.push_back(account.clone());
        }
    }

    /// An entry that was admitted in parts is admitted completely.
    pub fn parts_ended(&mut self) {
        if let Some(next) = self.wide.pop_front() {
            self.are_wide.remove(&next);
            self.relieve([next]);
        }
    }

    /// An entry that waited was admitted.
    pub fn admitted(&mut self, now: u64, account: &AccountId) {
        if let Some(pause) = self.pause.as_mut().filter(|pause| pause.account == *account) {
            pause.taken += 1;
            if pause.taken as u64 >= READ_MAX as u64 * self.in_vain {
                (pause.until, pause.taken) = (now + PATIENCE_MS * self.in_vain, 0);
            }
        }
        if let Some(waiting) = self.waiting.get_mut(account)
            && waiting.entries > 0
        {
            waiting.entries -= 1;
            self.entries -= 1;
        }
    }

    /// Accounts that may take more.
    pub fn relieve(&mut self, accounts: impl IntoIterator<Item = AccountId>) {
        for account in accounts {
            match self.waiting.get(&account).map(|waiting| waiting.here.is_empty()) {
                Some(true) => self.relieved.push_back(account),
                Some(false) => self.relieved_here.push_back(account),
                None => {}
            }
        }
    }

    /// Accounts that wait for something other than room are looked at now and then, even while one pass follows another.
    pub fn look(&mut self, now: u64) {
        if !self.waiting.is_empty() && now >= self.look_at {
            self.look_at = now + LOOK_EVERY_MS;
            (self.relieved, self.relieved_here) = (VecDeque::new(), VecDeque::new());
            let all: Vec<AccountId> = self.waiting.keys().cloned().collect();
            self.relieve(all);
        }
    }

    /// A page of what waits in memory for an account that may take more.
    pub fn next_here(&mut self) -> Option<(AccountId, VecDeque<StagedEntry>)> {
        while let Some(account) = self.relieved_here.pop_front() {
            let Some(mut waiting) = self.waiting.remove(&account) else { continue };
            let (mut page, mut deliveries) = (VecDeque::new(), 0);
            while deliveries < PAGE_HERE
                && let Some(arrival) = waiting.take_first()
            {
                self.count_out(&arrival);
                deliveries += arrival.left();
                page.push_back(arrival);
            }
            self.waiting.insert(account.clone(), waiting);
            if !page.is_empty() {
                return Some((account, page));
            }
        }
        None
    }

    /// An entry of which a part was admitted.
    pub fn take_begun(&mut self) -> Option<(AccountId, StagedEntry)> {
        let is_begun = |waiting: &Waiting| waiting.here.front().is_some_and(|arrival| arrival.is_open);
        let (account, waiting) = self.waiting.iter_mut().find(|(_, waiting)| is_begun(waiting))?;
        let (account, arrival) = (account.clone(), waiting.take_first()?);
        self.count_out(&arrival);
        Some((account, arrival))
    }

    /// Deliveries of such entries that are not admitted yet.
    pub fn begun_left(&self) -> usize {
        let first = self.waiting.values().filter_map(|waiting| waiting.here.front());
        first.filter(|arrival| arrival.is_open).map(StagedEntry::left).sum()
    }

    pub fn wants_here(&self) -> bool {
        !self.relieved_here.is_empty()
    }

    /// An entry is admitted as it is read, so its account is not the one that all others wait for.
    pub fn passes(&mut self, now: u64, account: &AccountId) {
        self.pause.take_if(|pause| pause.account != *account);
        match &mut self.passed[0] {
            Some((last, at)) if last == account => *at = now,
            last => {
                let before = last.replace((account.clone(), now));
                self.passed[1] = before;
            }
        }
    }

    /// One that has enough itself needs nothing to be read for now.
    fn others_pass(&self, now: u64, account: &AccountId) -> bool {
        let passes = |other: &AccountId, at: u64| now < at + OTHERS_MS && !self.waiting.contains_key(other);
        self.passed.iter().flatten().any(|(other, at)| other != account && passes(other, *at))
    }

    /// Everything of a page that was read for the first time has to wait.
    pub fn read_in_vain(&mut self, now: u64) {
        self.in_vain_at = Some(now);
        let is_waited_for = |account: &AccountId| !self.has_room_for_page(account) && !self.others_pass(now, account);
        let Some(account) = self.latest.clone().filter(is_waited_for) else { return };
        match &self.pause {
            Some(pause) if now >= pause.until && now < pause.until + IMPATIENT_MS / self.in_vain => {}
            _ => self.pause = Some(Pause { account, until: now + PATIENCE_MS * self.in_vain, taken: 0 }),
        }
    }

    pub fn reads_in_vain(&self, now: u64) -> bool {
        self.in_vain_at.is_some_and(|at| now < at + IN_VAIN_MS)
    }

    /// Whether a page of this account's would not have to be read twice; or whether so much waits for it that nobody should
    /// wait because of it.
    fn has_room_for_page(&self, account: &AccountId) -> bool {
        let Some(waiting) = self.waiting.get(account) else { return true };
        let own = waiting.here();
        let page = (own.bytes / own.count.max(1) * READ_MAX).min(MAX_READ_BYTES);
        let is_in_memory = waiting.last == waiting.after
            && self.here.count + own.count + 2 * READ_MAX <= self.budget.count
            && self.here.bytes + own.bytes + 2 * page <= self.budget.bytes;
        is_in_memory || waiting.entries as u64 > self.budget.count as u64 * self.in_vain
    }

    /// Something is read for the first time. If the account that was waited for has room by now, the waiting has succeeded.
    pub fn reads_on(&mut self) {
        self.pause = self.pause.take().filter(|pause| !self.has_room_for_page(&pause.account));
    }

    /// Until when nothing should be read for the first time.
    pub fn pauses_until(&self) -> Option<u64> {
        self.pause.as_ref().filter(|pause| !self.has_room_for_page(&pause.account)).map(|pause| pause.until)
    }

    /// Where the pass reads on, and how many entries; begins a pass if an account may take more.
    pub fn next_page(&mut self, now: u64) -> Option<(EntryId, usize)> {
        if self.pass.is_none() {
            self.begin_pass(now);
        }
        let pass = self.pass.as_ref()?;
        let fan_out = pass.takers.iter().filter_map(|account| Some(self.waiting.get(account)?.fan_out)).max();
        Some((pass.after, (READ_MAX / fan_out.unwrap_or(1).max(1)).max(LEAST_PAGE)))
    }

    fn begin_pass(&mut self, now: u64) {
        let mut takers: HashSet<AccountId> = HashSet::default();
        for account in std::mem::take(&mut self.relieved) {
            let Some(waiting) = self.waiting.get(&account) else { continue };
            if !waiting.here.is_empty() {
                // What waits in memory comes first.
                self.relieved_here.push_back(account);
            } else if waiting.last == waiting.after {
                // All of it waited in memory, and was admitted.
                self.entries -= waiting.entries;
                self.waits_no_longer(&account);
            } else {
                takers.insert(account);
            }
        }
        let (mut after, mut until) = (EntryId::MAX, EntryId::ZERO);
        for waiting in takers.iter().map(|account| &self.waiting[account]) {
            (after, until) = (after.min(waiting.after), until.max(waiting.last));
        }
        self.pass = (!takers.is_empty()).then_some(Pass { after, until, began_at: now, takers });
    }

    /// Ends a pass that has read everything that waited when it began. Call it only when everything that the pass read has
    /// been admitted or deferred again.
    pub fn end_pass_at_its_end(&mut self) {
        if self.pass.as_ref().is_some_and(|pass| pass.after >= pass.until) {
            self.end_pass();
        }
    }

    /// Nothing waits any more for the accounts that took part, except what came meanwhile.
    fn end_pass(&mut self) {
        let Some(pass) = self.pass.take() else { return };
        let mut takers: Vec<AccountId> = pass.takers.into_iter().collect();
        // Sorted, not in the set's order: the same inputs must lead to the same calls.
        takers.sort_unstable();
        for account in takers {
            match self.waiting.get_mut(&account) {
                Some(waiting) if waiting.last > pass.after => {
                    (waiting.after, waiting.since) = (pass.after.max(waiting.after), pass.began_at);
                    self.relieved.push_back(account);
                }
                Some(waiting) => {
                    self.entries -= waiting.entries;
                    self.waits_no_longer(&account);
                }
                None => {}
            }
        }
    }

    /// What comes for it passes again, so reading waits for no other one.
    fn waits_no_longer(&mut self, account: &AccountId) {
        self.waiting.remove(account);
        if self.passed.iter().flatten().any(|(passed, _)| passed == account) {
            self.pause.take_if(|pause| pause.account != *account);
        }
    }

    /// Whether a page of the pass is to be read.
    pub fn wants_page(&self) -> bool {
        let waits_in_stream = |account| self.waiting.get(account).is_some_and(|waiting| waiting.here.is_empty());
        self.pass.is_some() || self.relieved.iter().any(waits_in_stream)
    }

    /// Whether an entry that a pass read is one that waits and may be admitted.
    pub fn is_wanted(&self, account: &AccountId, entry: EntryId) -> bool {
        self.takes(account) && self.waiting.get(account).is_some_and(|waiting| entry > waiting.after)
    }

    /// The pass has read up to here; with `None`, nothing is pending behind what it has read.
    pub fn read_up_to(&mut self, last: Option<EntryId>) {
        if let Some(pass) = &mut self.pass {
            pass.after = last.unwrap_or(EntryId::MAX);
        }
        if last.is_none() {
            self.end_pass();
        }
    }

    /// Whether this entry, which may be admitted now, has waited for too long.
    pub fn has_waited_long(&self, now: u64, arrival: &StagedEntry, source: &Source) -> bool {
        let since = match source {
            Source::Stream => None,
            Source::Pass => self.waiting.get(&arrival.event.account).map(|waiting| waiting.since),
            Source::Memory(_) => arrival.waits_since,
        };
        since.is_some_and(|since| now > since + MAX_WAIT_MS)
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

    /// How many of these are in memory.
    pub fn entries_here(&self) -> usize {
        self.here.count
    }

    /// Before the first that waits: sets when waiting accounts are looked at.
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
    use crate::facts::event::Event;

    fn entry(ms: u64) -> EntryId {
        EntryId { ms, seq: 0 }
    }

    fn account(name: &str) -> AccountId {
        name.parse().unwrap()
    }

    fn arrival(account: &AccountId, ms: u64) -> StagedEntry {
        let body = format!(
            r#"{{"id":"evt_{ms}","event":"payment_intent.created","accountId":"{account}","createdAt":"2022-02-01T13:07:41Z","data":{{"paymentIntentId":"pi_{ms}","paymentStatus":"Created","captureMode":"Auto"}}}}"#
        );
        StagedEntry {
            entry: entry(ms),
            event: Event::parse(body.into()).unwrap(),
            envelope: Default::default(),
            place: None,
            only: None,
            endpoints: Arc::default(),
            unknown: Vec::new(),
            next: 0,
            is_open: false,
            is_in_parts: false,
            waits_since: None,
            suspect: false,
        }
    }

    /// With room for this many entries of one account, and as many of others.
    fn with_room(count: usize) -> Deferral {
        Deferral::new(Budget { count: 2 * count, bytes: 1 << 20 }, 1)
    }

    impl Deferral {
        fn defer_all(&mut self, account: &AccountId, all: impl IntoIterator<Item = u64>, source: &Source) -> Vec<bool> {
            all.into_iter().map(|ms| self.defer(0, arrival(account, ms), source)).collect()
        }

        /// What it is given of what waits in memory.
        fn given(&mut self) -> Vec<u64> {
            let mut given = Vec::new();
            while let Some((account, page)) = self.next_here() {
                given.extend(page.iter().map(|arrival| arrival.entry.ms));
                if !self.waiting[&account].here.is_empty() {
                    self.relieve([account]);
                }
            }
            given
        }
    }

    /// Where the pass reads on.
    fn reads_after(deferral: &mut Deferral) -> Option<EntryId> {
        deferral.end_pass_at_its_end();
        deferral.next_page(0).map(|(after, _)| after)
    }

    #[test]
    fn a_pass_ends_with_what_waited_when_it_began_and_the_next_one_is_everybodys() {
        let mut deferral = with_room(0);
        let (busy, other) = (account("acc_busy"), account("acc_other"));
        assert_eq!(deferral.defer_all(&busy, [10, 20], &Source::Stream), [false, false]);
        deferral.relieve([busy.clone()]);
        assert_eq!(reads_after(&mut deferral), Some(entry(10).before()));
        // Meanwhile more comes for it, and another one has to wait, and may take again.
        deferral.defer_all(&other, [15], &Source::Stream);
        deferral.defer_all(&busy, [30, 40], &Source::Stream);
        deferral.relieve([other.clone()]);
        deferral.read_up_to(Some(entry(25)));
        (0..2).for_each(|_| deferral.admitted(0, &busy));
        assert_eq!(reads_after(&mut deferral), Some(entry(15).before()));
        assert!([&busy, &other].into_iter().all(|account| deferral.is_wanted(account, entry(30))));
        assert!(!deferral.is_wanted(&busy, entry(20)) && deferral.is_wanted(&other, entry(15)));
        assert_eq!(deferral.entries(), 3);
        deferral.read_up_to(Some(entry(40)));
        assert_eq!((reads_after(&mut deferral), deferral.entries()), (None, 0));
        assert!(![&busy, &other].into_iter().any(|account| deferral.holds(account, &Source::Stream)));
    }

    #[test]
    fn a_pass_goes_back_to_what_a_stranger_had_taken() {
        let mut deferral = with_room(0);
        let waits = account("acc_waits");
        deferral.defer_all(&waits, [10, 20, 30], &Source::Stream);
        deferral.relieve([waits.clone()]);
        assert_eq!(reads_after(&mut deferral), Some(entry(10).before()));
        deferral.read_up_to(Some(entry(20)));
        // It is taken over now, and what waits behind it is read again.
        deferral.defer_all(&waits, [15, 30], &Source::Stream);
        assert_eq!(deferral.entries(), 3);
        assert_eq!(reads_after(&mut deferral), Some(entry(15).before()));
        assert!(deferral.is_wanted(&waits, entry(15)));
        deferral.read_up_to(Some(entry(30)));
        assert_eq!((reads_after(&mut deferral), deferral.holds(&waits, &Source::Stream)), (None, false));
    }

    #[test]
    fn the_first_that_wait_are_in_memory_and_what_comes_after_them_is_read_again() {
        let mut deferral = with_room(3);
        let waits = account("acc_waits");
        // Once one was left in the stream, all later ones are, whatever room there is then.
        assert_eq!(deferral.defer_all(&waits, [10, 20, 30, 40, 50], &Source::Stream), [true, true, true, false, false]);
        assert_eq!((deferral.entries(), deferral.entries_here()), (5, 3));
        deferral.relieve([waits.clone()]);
        assert_eq!(deferral.given(), [10, 20, 30]);
        assert_eq!(deferral.defer_all(&waits, [60], &Source::Stream), [false]);
        // It took one of them.
        deferral.admitted(0, &waits);
        deferral.put_back(&waits, [arrival(&waits, 20), arrival(&waits, 30)].into_iter());
        deferral.relieve([waits.clone()]);
        assert_eq!(reads_after(&mut deferral), None, "what is in memory comes first");
        assert_eq!(deferral.given(), [20, 30]);
        (0..2).for_each(|_| deferral.admitted(0, &waits));
        deferral.relieve([waits.clone()]);
        assert_eq!(reads_after(&mut deferral), Some(entry(30)));
        // The pass brings all of it, and it takes one.
        deferral.read_up_to(Some(entry(60)));
        deferral.admitted(0, &waits);
        assert_eq!(deferral.defer_all(&waits, [50, 60], &Source::Pass), [true, true]);
        assert_eq!((deferral.entries(), deferral.entries_here()), (2, 2));
        // Nothing of it is only in the stream, so what comes next is in memory too.
        assert_eq!(deferral.defer_all(&waits, [70], &Source::Stream), [true]);
        deferral.relieve([waits.clone()]);
        assert_eq!(deferral.given(), [50, 60, 70]);
        (0..3).for_each(|_| deferral.admitted(0, &waits));
        deferral.relieve([waits.clone()]);
        assert_eq!((reads_after(&mut deferral), deferral.entries()), (None, 0));
        assert!(!deferral.holds(&waits, &Source::Stream));
    }

    #[test]
    fn what_a_pass_leaves_behind_is_not_overtaken_by_the_rest_of_its_page() {
        let mut deferral = with_room(1);
        let waits = account("acc_waits");
        deferral.defer_all(&waits, [10, 20, 30, 40], &Source::Stream);
        deferral.relieve([waits.clone()]);
        assert_eq!(deferral.given(), [10]);
        deferral.admitted(0, &waits);
        deferral.relieve([waits.clone()]);
        assert_eq!(reads_after(&mut deferral), Some(entry(10)));
        deferral.read_up_to(Some(entry(40)));
        assert_eq!(deferral.defer_all(&waits, [20, 30], &Source::Pass), [true, false]);
        // There is room again before the last of the page has its turn.
        deferral.relieve([waits.clone()]);
        assert_eq!(deferral.given(), [20]);
        assert_eq!(deferral.defer_all(&waits, [40], &Source::Pass), [false]);
        deferral.admitted(0, &waits);
        deferral.relieve([waits.clone()]);
        assert_eq!(reads_after(&mut deferral), Some(entry(20)));
    }

    #[test]
    fn what_a_stranger_had_taken_sends_back_to_the_stream_what_is_in_memory_behind_it() {
        let mut deferral = with_room(8);
        let waits = account("acc_waits");
        assert_eq!(deferral.defer_all(&waits, [10, 30, 40], &Source::Stream), [true; 3]);
        // What is read again and is in memory already changes nothing.
        assert_eq!(deferral.defer_all(&waits, [30], &Source::Stream), [true]);
        assert_eq!(deferral.defer_all(&waits, [20, 30, 40], &Source::Stream), [false; 3]);
        assert_eq!((deferral.entries(), deferral.entries_here()), (3, 1));
        deferral.relieve([waits.clone()]);
        assert_eq!(deferral.given(), [10]);
        deferral.relieve([waits.clone()]);
        assert_eq!(reads_after(&mut deferral), Some(entry(20).before()));
    }

    #[test]
    fn one_account_has_half_of_what_may_wait_in_memory() {
        let mut deferral = with_room(4);
        let (busy, other) = (account("acc_busy"), account("acc_other"));
        assert_eq!(deferral.defer_all(&busy, 1..=5, &Source::Stream), [true, true, true, true, false]);
        assert_eq!(deferral.defer_all(&other, 6..=8, &Source::Stream), [true, true, false]);
    }

    #[test]
    fn reading_waits_for_room_once_and_not_for_who_takes_nothing() {
        let mut deferral = with_room(READ_MAX);
        let waits = account("acc_waits");
        deferral.defer_all(&waits, 1..=READ_MAX as u64, &Source::Stream);
        deferral.read_in_vain(100);
        assert_eq!(deferral.pauses_until(), Some(100 + PATIENCE_MS));
        // It took everything: there is room for a page.
        deferral.relieve([waits.clone()]);
        assert_eq!(deferral.given().len(), READ_MAX);
        (0..READ_MAX - 1).for_each(|_| deferral.admitted(110, &waits));
        assert_eq!(deferral.pauses_until(), None);
        deferral.reads_on();
        deferral.defer_all(&waits, 1_001..=1_251, &Source::Stream);
        deferral.read_in_vain(190);
        assert_eq!(deferral.pauses_until(), Some(190 + PATIENCE_MS));
        // One is left in the stream. A page was taken, and reading waits for the rest of it.
        assert_eq!((deferral.given().len(), deferral.entries()), (0, 252));
        (0..READ_MAX).for_each(|_| deferral.admitted(200, &waits));
        assert_eq!(deferral.pauses_until(), Some(200 + PATIENCE_MS));
        // It took nothing, and is read past.
        deferral.reads_on();
        deferral.read_in_vain(200 + PATIENCE_MS);
        assert_eq!(deferral.pauses_until(), Some(200 + PATIENCE_MS));
        deferral.read_in_vain(200 + PATIENCE_MS + IMPATIENT_MS);
        assert_eq!(deferral.pauses_until(), Some(200 + 2 * PATIENCE_MS + IMPATIENT_MS));
    }

    #[test]
    fn partitions_that_read_in_vain_share_the_time_for_it() {
        let mut deferral = Deferral::new(Budget { count: 2 * READ_MAX, bytes: 1 << 20 }, 50);
        let waits = account("acc_waits");
        deferral.defer_all(&waits, 1..=READ_MAX as u64, &Source::Stream);
        assert!(!deferral.reads_in_vain(100));
        deferral.read_in_vain(100);
        let until = 100 + 50 * PATIENCE_MS;
        assert_eq!(deferral.pauses_until(), Some(until));
        deferral.read_in_vain(until);
        assert_eq!(deferral.pauses_until(), Some(until), "its time has come");
        deferral.read_in_vain(until + IMPATIENT_MS / 50);
        assert_eq!(deferral.pauses_until(), Some(until + IMPATIENT_MS / 50 + 50 * PATIENCE_MS));
        assert!(deferral.reads_in_vain(until) && !deferral.reads_in_vain(until + 2 * IN_VAIN_MS));
        // A thousand of them keep nobody waiting for a minute.
        let mut deferral = Deferral::new(Budget { count: 2 * READ_MAX, bytes: 1 << 20 }, 1_024);
        deferral.defer_all(&waits, 1..=READ_MAX as u64, &Source::Stream);
        deferral.read_in_vain(100);
        assert_eq!(deferral.pauses_until(), Some(100 + 64 * PATIENCE_MS));
    }

    #[test]
    fn reading_goes_past_one_account_for_others_only_while_these_can_take_more() {
        let mut deferral = with_room(READ_MAX);
        let (waits, passes) = (account("acc_waits"), account("acc_passes"));
        deferral.passes(100, &passes);
        deferral.defer_all(&waits, 1..=READ_MAX as u64, &Source::Stream);
        deferral.read_in_vain(100);
        assert_eq!(deferral.pauses_until(), None, "more of the other one's may be behind");
        deferral.defer(110, arrival(&passes, 300), &Source::Stream);
        deferral.defer(110, arrival(&waits, 301), &Source::Stream);
        deferral.read_in_vain(110);
        assert_eq!(deferral.pauses_until(), Some(110 + PATIENCE_MS), "it has enough");
        // It takes what it has.
        deferral.relieve([passes.clone()]);
        assert_eq!(deferral.next_here().map(|(_, page)| page.len()), Some(1));
        deferral.admitted(120, &passes);
        deferral.relieve([passes.clone()]);
        deferral.next_page(120);
        assert!(!deferral.is_waiting("acc_passes"));
        assert_eq!(deferral.pauses_until(), None, "and can take more");
    }
}
