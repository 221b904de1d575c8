//! The owner of a stream that is split: which entries go to which part, and in which order. Pure, like `partition`: the shell and
//! the simulator make the calls.
//!
//! What a part has taken is known by the part alone (`routed`, in its slot), and each batch says what it follows on. So nothing that
//! a router believes must be true: one that is late, a second one, a lost answer, or a part that a failover has set back can neither
//! skip an entry nor repeat one. The part says how far it is, and is given what comes behind that.
//!
//! A page is read from behind what the hindmost part has. Usually all are equally far, so each entry is read once; a part that was
//! away takes turns with the others until it has caught up.

use std::collections::BTreeMap;

use crate::{
    facts::{
        event::account_of,
        id::{AccountId, EntryId},
        partition::Slot,
    },
    store::routing::{Appended, Batch, MAX_ROUTED, Page, Passed, Route, Trimming},
};

/// A part without entries hears how far the others are this often.
const TELL_EVERY_MS: u64 = 1_000;
const TRIM_EVERY_MS: u64 = 1_000;

/// How long after the last entry was found the stream is looked at again, if nothing wakes it.
const LOOK_EVERY_MS: u64 = 250;

/// How often it is looked whether somebody else has taken entries away; and always where a part is behind.
const GAP_EVERY_MS: u64 = 1_000;

/// Parts that answer later than this are not waited for.
const PATIENCE_MS: u64 = 200;

/// After a part has failed: twice as long each time, up to the other.
const PAUSE_MS: u64 = 100;
const LONGEST_PAUSE_MS: u64 = 2_000;

/// As many entries the hindmost part may be behind the others.
pub const MAX_APART: u64 = 1_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Into how many parts all levels above split, together: this one divides what they leave of an account's slot.
    pub above: u32,
    pub max_apart: u64,
}

/// What to do next. Batches may be under way while the stream is looked at or trimmed, but those two come one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// `of_stream`: with what there is of it.
    Read {
        after: EntryId,
        most: usize,
        of_stream: bool,
    },
    Append(Vec<Batch>),
    Trim(Trimming),
}

/// What happened, for logs and counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happening {
    Passed {
        entries: u64,
    },
    /// A part had not taken what is behind this entry, and the stream has some of that no more.
    Gap {
        part: u32,
        after: EntryId,
    },
    /// Another split is to fill a part.
    Gated {
        part: u32,
        token: String,
    },
    /// A part takes nothing.
    Down {
        part: u32,
        why: String,
    },
    /// … and takes entries again.
    Up {
        part: u32,
    },
    /// Somebody has given it what this router was about to: another router, or a call of this one whose answer was lost. Or a
    /// failover has set it back.
    Elsewhere {
        part: u32,
        at: EntryId,
    },
}

#[derive(Debug)]
struct Part {
    /// Where it said that it is.
    routed: Option<EntryId>,
    /// There is nothing for it between that and this entry.
    passed: EntryId,
    /// Up to here its replicas have what it has.
    confirmed: Option<EntryId>,
    sent: Option<Sent>,
    /// Some of what is behind this entry was not there any more. Only if it takes what comes then, it has not had that.
    gap: Option<EntryId>,
    /// How many entries had been read when it was last as far as the foremost.
    read: u64,
    /// The first entry that was read after that: between that and what it has there may be a long silence.
    lacks: Option<EntryId>,
    told_at: u64,
    pause_ms: u64,
    is_down_until: u64,
    is_down: bool,
}

#[derive(Debug)]
struct Sent {
    up_to: EntryId,
    read: u64,
}

impl Part {
    fn new(at: EntryId) -> Self {
        Self {
            routed: None,
            passed: at,
            confirmed: None,
            sent: None,
            gap: None,
            read: 0,
            lacks: None,
            told_at: 0,
            pause_ms: 0,
            is_down_until: 0,
            is_down: false,
        }
    }

    fn takes(&self, now: u64) -> bool {
        self.sent.is_none() && now >= self.is_down_until
    }

    /// It is to hear how far the others are, although there is nothing for it; or its replicas are to.
    fn waits_to_be_told(&self) -> bool {
        self.routed.is_some_and(|routed| self.passed > routed || self.confirmed != Some(routed))
    }

    /// It is set to what it says.
    fn at(&mut self, at: EntryId) {
        (self.routed, self.passed, self.gap) = (Some(at), at, None);
        self.confirmed = self.confirmed.filter(|confirmed| *confirmed <= at);
    }
}

#[derive(Debug)]
pub struct Router {
    settings: Settings,
    route: Route,
    parts: Vec<Part>,
    /// Where the page that is being read begins.
    reading: Option<EntryId>,
    is_trimming: bool,
    /// What is to be sent.
    batches: Vec<Batch>,
    /// When batches were last sent, as long as some of these are waited for.
    sent_at: u64,
    /// The foremost have been given everything up to here.
    front: EntryId,
    /// Entries read at the front.
    read: u64,
    /// The last page was of those behind: now it is the turn of the front.
    was_behind: bool,
    /// There may be more at the front.
    has_more: bool,
    look_at: u64,
    trim_at: u64,
    gap_at: u64,
    /// Redis' time with the last page, and when that came.
    now_ms: u64,
    heard_at: u64,
    /// How old the oldest entry of the last page at the front is, as long as that page is under way.
    oldest_ms: Option<u64>,
    happenings: Vec<Happening>,
}

impl Router {
    pub fn new(settings: Settings, route: Route) -> Self {
        let parts = (0..route.parts).map(|_| Part::new(route.barrier)).collect();
        Self {
            settings,
            parts,
            reading: None,
            is_trimming: false,
            batches: Vec::new(),
            sent_at: 0,
            front: route.barrier,
            read: 0,
            was_behind: false,
            has_more: true,
            look_at: 0,
            trim_at: 0,
            gap_at: 0,
            now_ms: 0,
            heard_at: 0,
            oldest_ms: None,
            happenings: Vec::new(),
            route,
        }
    }

    pub fn route(&self) -> &Route {
        &self.route
    }

    /// What to do now; nothing while something is waited for, or nothing is to be done before [`Router::wake_at`].
    pub fn next(&mut self, now: u64) -> Option<Step> {
        if !self.batches.is_empty() {
            self.sent_at = now;
            return Some(Step::Append(std::mem::take(&mut self.batches)));
        }
        if self.reading.is_some() || self.is_trimming {
            return None;
        }
        if self.tell(now) {
            return self.next(now);
        }
        let waits = self.parts.iter().any(|part| part.sent.is_some()) && now < self.sent_at + PATIENCE_MS;
        if waits {
            return None;
        }
        if now >= self.trim_at
            && let Some(trim) = self.trimming()
        {
            self.trim_at = now + TRIM_EVERY_MS;
            self.is_trimming = true;
            return Some(Step::Trim(trim));
        }
        let after = self.next_page(now)?;
        self.reading = Some(after);
        let of_stream = after < self.front || now >= self.gap_at;
        if of_stream {
            self.gap_at = now + GAP_EVERY_MS;
        }
        Some(Step::Read { after, most: MAX_ROUTED, of_stream })
    }

    /// Batches without entries, for parts that were not heard of yet, and for those that had nothing for a while.
    fn tell(&mut self, now: u64) -> bool {
        let barrier = self.route.barrier;
        for (number, part) in self.parts.iter_mut().enumerate().filter(|(_, part)| part.takes(now)) {
            let (after, up_to) = match part.routed {
                None => (barrier, barrier),
                Some(routed) if part.waits_to_be_told() && now >= part.told_at + TELL_EVERY_MS => (routed, part.passed),
                Some(_) => continue,
            };
            part.sent = Some(Sent { up_to, read: part.read });
            self.batches.push(Batch { part: number as u32, after, up_to, entries: Vec::new() });
        }
        !self.batches.is_empty()
    }

    /// How far all parts are, as their replicas confirm. None until all were heard of.
    fn trimming(&self) -> Option<Trimming> {
        let safe = self.parts.iter().map(|part| part.confirmed).min()??;
        let highest = self.parts.iter().filter_map(|part| part.routed).max()?;
        // Behind the barrier nothing may ever come, and whoever waits for what is before it must hear that all of that has passed.
        (safe >= self.route.barrier && safe > EntryId::ZERO).then_some(Trimming { safe, highest })
    }

    /// Where to read next: behind the hindmost of those that take something, in turn with the front.
    fn next_page(&mut self, now: u64) -> Option<EntryId> {
        let takes = |part: &&Part| part.routed.is_some() && part.takes(now);
        let hindmost = self.parts.iter().filter(takes).map(|part| part.passed).min()?;
        let is_due = self.has_more || now >= self.look_at;
        let may_go_on = is_due && self.apart() < self.settings.max_apart;
        let has_front = self.parts.iter().filter(takes).any(|part| part.passed >= self.front);
        if hindmost < self.front && !(self.was_behind && may_go_on && has_front) {
            self.was_behind = true;
            return Some(hindmost);
        }
        self.was_behind = false;
        (may_go_on && hindmost <= self.front || is_due && hindmost > self.front).then(|| self.front.max(hindmost))
    }

    /// By how many entries the hindmost part is behind, as far as this router has read them.
    fn apart(&self) -> u64 {
        let behind = self.parts.iter().filter(|part| part.passed < self.front);
        behind.map(|part| self.read - part.read).max().unwrap_or(0)
    }

    /// The page behind the entry that was asked for. Without one the stream is asked again.
    pub fn page(&mut self, now: u64, page: Option<Page>) {
        let Some(from) = self.reading.take() else { return };
        let Some(page) = page else {
            self.look_at = now + PAUSE_MS;
            self.has_more = false;
            return;
        };
        (self.now_ms, self.heard_at) = (page.now_ms, now);
        let gap = self.has_gap(from, &page).then_some(from);
        // Behind the last entry there is nothing up to the id that was given out last.
        let end = page.entries.last().map_or(page.of_stream.map_or(from, |of| of.last.max(from)), |entry| entry.id);
        let is_front = end > self.front || from >= self.front;
        if is_front {
            let (read, front) = (self.read, self.front);
            for part in self.parts.iter_mut().filter(|part| part.passed >= front) {
                part.read = read;
                part.lacks = page.entries.iter().map(|entry| entry.id).find(|id| *id > part.passed);
            }
            self.read += page.entries.iter().filter(|entry| entry.id > self.front).count() as u64;
            self.oldest_ms = page.entries.first().and_then(|entry| entry.id.age_ms(page.now_ms));
            self.has_more = page.has_more;
            self.look_at = now + LOOK_EVERY_MS;
            self.front = self.front.max(end);
        }
        let mut by_part: BTreeMap<u32, Vec<Passed>> = BTreeMap::new();
        let takes: Vec<bool> =
            self.parts.iter().map(|part| part.routed.is_some() && part.takes(now) && part.passed >= from).collect();
        for entry in page.entries {
            let number = part_for(&entry, self.settings.above, self.route.parts);
            if takes[number as usize] && entry.id > self.parts[number as usize].passed {
                by_part.entry(number).or_default().push(entry);
            }
        }
        for (number, part) in self.parts.iter_mut().enumerate().filter(|(number, _)| takes[*number]) {
            if part.passed > end {
                continue;
            }
            if part.passed == from {
                part.gap = part.gap.or(gap);
            }
            let read = if end == self.front { self.read } else { part.read };
            match (by_part.remove(&(number as u32)), part.routed) {
                (Some(entries), Some(after)) => {
                    part.sent = Some(Sent { up_to: end, read });
                    self.batches.push(Batch { part: number as u32, after, up_to: end, entries });
                }
                _ => (part.passed, part.read) = (end, read),
            }
        }
    }

    /// The entry from which a page is read is still there, as every router leaves it. If it is not, others behind it may be gone too.
    fn has_gap(&self, from: EntryId, page: &Page) -> bool {
        let barrier = self.route.barrier;
        let was_trimmed = from > barrier || page.cursor.is_some_and(|cursor| cursor > barrier);
        let is_gone = page.of_stream.is_some_and(|of| of.oldest.map_or(of.last > from, |oldest| oldest > from));
        was_trimmed && is_gone
    }

    /// What a part says of its batch; `is_confirmed`: and its replicas have what it has.
    pub fn appended(&mut self, now: u64, number: u32, said: Result<Appended, String>, is_confirmed: bool) {
        let Some(part) = self.parts.get_mut(number as usize) else { return };
        let Some(sent) = part.sent.take() else { return };
        if said.is_ok() && !matches!(said, Ok(Appended::Gated { .. })) {
            part.pause_ms = 0;
            if std::mem::take(&mut part.is_down) {
                self.happenings.push(Happening::Up { part: number });
            }
        }
        match said {
            Ok(Appended::Done { count, .. }) => {
                part.routed = Some(sent.up_to);
                part.passed = part.passed.max(sent.up_to);
                part.read = part.read.max(sent.read);
                part.told_at = now;
                if let Some(after) = part.gap.take() {
                    self.happenings.push(Happening::Gap { part: number, after });
                }
                if is_confirmed {
                    part.confirmed = Some(sent.up_to);
                }
                if count > 0 {
                    self.happenings.push(Happening::Passed { entries: count });
                }
                if self.parts.iter().all(|part| part.sent.is_none()) {
                    self.oldest_ms = None;
                }
            }
            Ok(Appended::Partly(at)) => {
                part.at(at);
                self.has_more = true;
            }
            // Nothing was written, so no replica has confirmed anything.
            Ok(Appended::At(at)) => {
                if part.routed.is_some() {
                    self.happenings.push(Happening::Elsewhere { part: number, at });
                }
                part.at(at);
                part.told_at = 0;
                self.has_more = true;
                self.gap_at = now;
            }
            Ok(Appended::Gated { token }) => {
                part.pause_ms = LONGEST_PAUSE_MS;
                part.is_down_until = now + part.pause_ms;
                if !std::mem::replace(&mut part.is_down, true) {
                    self.happenings.push(Happening::Gated { part: number, token });
                }
            }
            // No part says so to a router, whose batches open it.
            Ok(Appended::Open) => {}
            // It may have taken all of it, or nothing: it will say.
            Err(why) => {
                part.pause_ms = (part.pause_ms * 2).clamp(PAUSE_MS, LONGEST_PAUSE_MS);
                part.is_down_until = now + part.pause_ms;
                part.passed = part.routed.unwrap_or(part.passed);
                if !std::mem::replace(&mut part.is_down, true) {
                    self.happenings.push(Happening::Down { part: number, why });
                }
            }
        }
    }

    pub fn trimmed(&mut self) {
        self.is_trimming = false;
    }

    /// Something was added behind the last entry.
    pub fn woken(&mut self) {
        self.has_more = true;
    }

    /// While nothing is left to read at the front: a wake-up should wait for what is behind this entry.
    pub fn wants_wakeup(&self) -> Option<EntryId> {
        (!self.has_more && self.reading.is_none()).then_some(self.front)
    }

    /// When to look again at the latest, if nothing happens before.
    pub fn wake_at(&self, now: u64) -> u64 {
        let is_under_way = self.parts.iter().any(|part| part.sent.is_some());
        let patience = self.sent_at + PATIENCE_MS;
        let is_busy = self.reading.is_some() || self.is_trimming;
        let at = match (is_under_way && now < patience, is_busy) {
            (true, _) => patience,
            (false, true) => now + LOOK_EVERY_MS,
            (false, false) => self.next_work(now),
        };
        at.max(now + 1)
    }

    fn next_work(&self, now: u64) -> u64 {
        let may_read = self.parts.iter().any(|part| part.takes(now)) && self.apart() < self.settings.max_apart;
        let look = may_read.then_some(if self.has_more { now } else { self.look_at });
        let trim = self.trimming().map(|_| self.trim_at);
        let free = self.parts.iter().filter(|part| part.sent.is_none());
        let parts = free.filter_map(|part| {
            let told = part.waits_to_be_told().then_some(part.told_at + TELL_EVERY_MS);
            let is_behind = part.routed.is_none() || part.passed < self.front;
            told.into_iter().chain(is_behind.then_some(0)).min().map(|at| at.max(part.is_down_until))
        });
        look.into_iter().chain(trim).chain(parts).min().unwrap_or(now + LOOK_EVERY_MS)
    }

    /// How long the oldest entry waits that not all of its parts have.
    pub fn lag_ms(&self, now: u64) -> u64 {
        let behind = self.parts.iter().filter(|part| part.passed < self.front);
        let oldest = behind.map(|part| part.lacks.map_or(part.passed, |lacks| lacks.max(part.passed))).min();
        let redis_ms = self.now_ms + now.saturating_sub(self.heard_at);
        match oldest {
            Some(at) => at.age_ms(redis_ms).unwrap_or(0),
            _ if self.has_more || self.parts.iter().any(|part| part.sent.is_some()) => self.oldest_ms.unwrap_or(0),
            _ => 0,
        }
    }

    /// How many parts take nothing now.
    pub fn parts_down(&self) -> usize {
        self.parts.iter().filter(|part| part.is_down).count()
    }

    pub fn take_happenings(&mut self) -> Vec<Happening> {
        std::mem::take(&mut self.happenings)
    }
}

/// The part that an entry goes to, of so many: that of its account. What names no account is no event, and goes to the first.
pub(super) fn part_for(entry: &Passed, above: u32, parts: u32) -> u32 {
    part_of_account(entry.event().and_then(account_of).as_ref(), above, parts)
}

/// What is of no account goes to the first.
pub(super) fn part_of_account(account: Option<&AccountId>, above: u32, parts: u32) -> u32 {
    account.map_or(0, |account| u32::from(Slot::of_account(account).number()) / above % parts)
}

#[cfg(test)]
#[path = "router_tests.rs"]
mod tests;
