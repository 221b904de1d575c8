//! Which streams this worker works on, of those that it shares with others. Pure: it is told who lives, what the fleet of this process
//! does and what Redis answered, and says which streams to run and what to ask. Each worker decides for itself; that two never own one
//! stream is not its concern, the lease sees to that.
//!
//! A stream that should be another's is worked on until that one asks for it, so that nothing stands still while it changes hands; one
//! that nobody works on is taken by whoever should have it, or, should that one fail to, by the next in the stream's preference.

use std::collections::{BTreeMap, BTreeSet};

use crate::facts::assignment::{Candidate, assign, rank};

/// How many streams a worker gives away at a time, and how many it asks others for: what changes hands stands still for a moment.
pub const AT_A_TIME: usize = 2;

/// How often it is asked for a stream that another one has; for as long as six of these, only who asked can take it.
pub const WANT_EVERY_MS: u64 = 500;
pub const WANT_HOLDS_MS: u64 = 3_000;

/// Who is asked for this long gives it, even if it thinks otherwise; and asks for it again no sooner than the other.
const INSISTS_MS: u64 = 3_000;
const REGRETS_MS: u64 = 30_000;

/// How often a worker looks whether it is asked for what should be another's, while that is new; renewals tell it later.
const LOOK_EVERY_MS: u64 = 250;
const LOOKS_FOR_MS: u64 = 10_000;

/// How much later than the one before it in a stream's preference a worker takes what nobody has.
const RANK_MS: u64 = 1_000;

/// How often a worker that hears of nobody looks at streams that are not its own.
const BLIND_LOOK_EVERY_MS: u64 = 5_000;

/// Another live worker, as it told of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub id: String,
    pub weight: u32,
    /// It is leaving, and takes nothing more.
    pub is_draining: bool,
    /// It lacks no key and tells the time.
    pub is_whole: bool,
    pub owned: BTreeSet<String>,
}

/// What the fleet does with a stream that it was told to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// It asks for the lease.
    Waiting,
    Owned,
    /// It settles what is left, and gives the lease back.
    Stopping,
}

/// How a stream came to be this worker's, where there are several to share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Came {
    /// Another one gave it, and lives or has left.
    Given,
    /// Nobody had it: its owner has died, or there was none yet.
    TakenOver,
}

/// What is to be asked of the slot of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// Asks its owner for it, and reserves it for this worker.
    Want(String),
    /// Who owns it, and who asks for it.
    Look(String),
}

impl Ask {
    pub fn stream(&self) -> &str {
        match self {
            Self::Want(stream) | Self::Look(stream) => stream,
        }
    }
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// Nobody owns it.
    Free,
    /// Another one owns it, and knows or will know who asks.
    Owned { owner: String, asked_by: Option<String> },
    /// Another one has asked for it before.
    Busy,
    /// No answer.
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// This worker, as others know it.
    pub id: String,
    pub weight: u32,
    pub lease_ms: u64,
}

/// Who is there to own which streams.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct List {
    streams: Vec<String>,
    /// In the order of their names.
    workers: Vec<Candidate>,
}

impl List {
    fn lacks_only(&self, before: &Self) -> bool {
        self.streams == before.streams && self.workers.iter().all(|worker| before.workers.contains(worker))
    }

    /// The worker that should have each stream.
    fn owners(&self) -> BTreeMap<String, String> {
        let streams: Vec<&str> = self.streams.iter().map(String::as_str).collect();
        let owner = |(stream, at): (&str, usize)| (stream.to_owned(), self.workers[at].id.clone());
        assign(&streams, &self.workers).into_iter().map(owner).collect()
    }
}

/// A stream that this worker should have and does not yet.
#[derive(Debug, Clone)]
struct Coming {
    ask_at: u64,
    /// Another one has it: it counts among those that are asked for.
    is_anothers: bool,
}

/// Somebody asks for a stream of this worker.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Asked {
    by: String,
    since: u64,
    last: u64,
}

pub struct Membership {
    settings: Settings,
    /// This worker lacks a key or the time.
    is_whole: bool,
    is_leaving: bool,
    members: Vec<Member>,
    /// Those that were leaving when they were last heard of, until what they let go of must have an owner.
    left: BTreeMap<String, u64>,
    /// When they were last heard of.
    heard_at: Option<u64>,
    /// Until then nobody is missed: others may have been cut off as this worker was, and be back a little later.
    patient_until: u64,
    /// What was heard last, and since when that is so.
    heard: List,
    heard_since: u64,
    /// What it goes by, since when, and what that gives this worker.
    list: List,
    list_since: u64,
    share: BTreeSet<String>,
    owners: BTreeMap<String, String>,
    runs: BTreeSet<String>,
    doing: BTreeMap<String, Doing>,
    /// Who had each stream last, as far as is known.
    had_by: BTreeMap<String, String>,
    came: Vec<Came>,
    /// Who had what came to this worker, and when that was: given, if that one is heard of long enough after it.
    came_from: Vec<(String, u64)>,
    coming: BTreeMap<String, Coming>,
    asked: BTreeMap<String, Asked>,
    /// Since when nobody seems to have a stream.
    orphans: BTreeMap<String, u64>,
    look_at: BTreeMap<String, u64>,
    /// Streams that were given to who insisted.
    regretted: BTreeMap<String, u64>,
}

impl Membership {
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            is_whole: true,
            is_leaving: false,
            members: Vec::new(),
            left: BTreeMap::new(),
            heard_at: None,
            patient_until: 0,
            heard: List::default(),
            heard_since: 0,
            list: List::default(),
            list_since: 0,
            share: BTreeSet::new(),
            owners: BTreeMap::new(),
            runs: BTreeSet::new(),
            doing: BTreeMap::new(),
            had_by: BTreeMap::new(),
            came: Vec::new(),
            came_from: Vec::new(),
            coming: BTreeMap::new(),
            asked: BTreeMap::new(),
            orphans: BTreeMap::new(),
            look_at: BTreeMap::new(),
            regretted: BTreeMap::new(),
        }
    }

    /// What the fleet is to work on.
    pub fn runs(&self) -> &BTreeSet<String> {
        &self.runs
    }

    /// Those that this worker owns.
    pub fn owned(&self) -> impl Iterator<Item = &str> {
        self.doing.iter().filter(|(_, doing)| **doing != Doing::Waiting).map(|(stream, _)| stream.as_str())
    }

    /// Streams that, as far as is known, nobody owns or waits for.
    pub fn orphans(&self) -> impl Iterator<Item = &str> {
        self.orphans.keys().map(String::as_str)
    }

    /// How streams came since this was last asked.
    pub fn take_came(&mut self) -> Vec<Came> {
        std::mem::take(&mut self.came)
    }

    pub fn is_leaving(&self) -> bool {
        self.is_leaving
    }

    /// Nobody has to wait any longer for others to take over what this worker has.
    pub fn has_left(&self) -> bool {
        let takes = |member: &Member| !member.is_draining && member.weight > 0;
        self.is_leaving && (!self.is_shared() || !self.members.iter().any(takes) || self.owned().next().is_none())
    }

    /// Others that live, and the streams that there are.
    pub fn heard(&mut self, now: u64, is_whole: bool, members: Vec<Member>, streams: Vec<String>) {
        self.is_whole = is_whole;
        self.members = members;
        self.note_owners(now);
        // By then what others told does not hold any more, though they may live.
        if self.heard_at.is_some_and(|at| now >= at + self.settings.lease_ms / 2) {
            self.patient_until = now + self.settings.lease_ms;
        }
        self.heard_at = Some(now);
        let list = self.list_of(streams);
        let is_settled = list == self.heard && now >= self.heard_since + self.settles_ms();
        if list != self.heard {
            self.heard = list;
            self.heard_since = now;
        }
        self.had_by.retain(|stream, _| self.heard.streams.binary_search(stream).is_ok());
        self.follow(now, is_settled);
        self.note_orphans(now);
    }

    /// This worker takes nothing more, and gives away what it has.
    pub fn leave(&mut self, now: u64) {
        self.is_leaving = true;
        self.patient_until = 0;
        self.heard = self.list_of(self.heard.streams.clone());
        self.heard_since = now;
        self.follow(now, false);
    }

    /// How soon it is to be heard of others again: often, until what is heard stays the same.
    pub fn hears_again_ms(&self) -> u64 {
        if self.heard == self.list { self.settings.lease_ms / 3 } else { self.settings.lease_ms / 12 }
    }

    /// What the fleet does, of all streams that it has anything to do with.
    pub fn does(&mut self, now: u64, doing: BTreeMap<String, Doing>) {
        for (stream, _) in doing.iter().filter(|(_, doing)| **doing == Doing::Owned) {
            let had_by = self.had_by.insert(stream.clone(), self.settings.id.clone());
            if self.doing.get(stream) == Some(&Doing::Owned) || !self.is_shared() {
                continue;
            }
            match had_by {
                // What this worker had itself, and lost for a while, did not change hands.
                Some(had_by) if had_by == self.settings.id => {}
                Some(had_by) if self.left.contains_key(&had_by) => self.came.push(Came::Given),
                Some(had_by) => self.came_from.push((had_by, now)),
                None => self.came.push(Came::TakenOver),
            }
        }
        self.doing = doing;
        self.coming.retain(|stream, _| self.doing.get(stream) != Some(&Doing::Owned));
        self.asked.retain(|stream, _| self.doing.contains_key(stream));
    }

    /// A renewal told that somebody asks for a stream.
    pub fn asked(&mut self, now: u64, stream: &str, by: Option<&str>) {
        match by {
            Some(by) if by != self.settings.id => {
                let holds = self.asked_holds_ms();
                let known = self.asked.get(stream).filter(|known| known.by == by && now < known.last + holds);
                let since = known.map_or(now, |known| known.since);
                self.asked.insert(stream.to_owned(), Asked { by: by.to_owned(), since, last: now });
            }
            _ => drop(self.asked.remove(stream)),
        }
    }

    /// Changes what is run, and says what is to be asked now. Every ask is answered by [`Membership::told`].
    pub fn step(&mut self, now: u64) -> Vec<Ask> {
        if !self.is_shared() {
            // Whoever is there waits for the lease of the only one, as close behind its owner as can be.
            self.runs = if self.is_leaving { self.runs.clone() } else { self.list.streams.iter().cloned().collect() };
            return Vec::new();
        }
        self.give(now);
        let mut asks = self.take(now);
        asks.extend(self.look(now));
        asks
    }

    /// When the next step is due, if nothing happens before.
    pub fn wake_at(&self, now: u64) -> u64 {
        let at = [self.coming.values().map(|coming| coming.ask_at).min(), self.look_at.values().copied().min()];
        at.into_iter().flatten().min().unwrap_or(now + WANT_EVERY_MS).max(now + 10)
    }

    pub fn told(&mut self, now: u64, ask: &Ask, told: Told) {
        let stream = ask.stream();
        match (ask, told) {
            // It takes nothing more.
            (Ask::Want(_), _) if self.is_leaving => {}
            (Ask::Want(_), Told::Free) => {
                self.orphans.remove(stream);
                self.runs.insert(stream.to_owned());
                self.expect(stream, now + WANT_EVERY_MS, false);
            }
            (Ask::Want(_), Told::Owned { owner, .. }) => {
                if self.share.contains(stream) {
                    self.runs.insert(stream.to_owned());
                    self.expect(stream, now + WANT_EVERY_MS, true);
                }
                self.note_owner(stream, owner);
                self.orphans.remove(stream);
            }
            (Ask::Want(_), Told::Busy | Told::Failed) => self.expect(stream, now + WANT_EVERY_MS, false),
            (Ask::Look(_), Told::Owned { owner, asked_by }) => {
                self.orphans.remove(stream);
                self.note_owner(stream, owner);
                if self.doing.contains_key(stream) {
                    self.asked(now, stream, asked_by.as_deref());
                }
            }
            (Ask::Look(_), Told::Free) => {
                if !self.doing.contains_key(stream) {
                    self.orphans.entry(stream.to_owned()).or_insert(now);
                }
            }
            (Ask::Look(_), Told::Busy | Told::Failed) => {}
        }
    }

    /// There is more than one stream, so they are divided among the workers.
    pub fn is_shared(&self) -> bool {
        self.list.streams.len() > 1
    }

    /// For how long what is heard must have stayed the same: nobody asks for anything while workers come one after the other.
    fn settles_ms(&self) -> u64 {
        self.settings.lease_ms / 6
    }

    /// For how long it counts that somebody asked: until a renewal must have said so again.
    fn asked_holds_ms(&self) -> u64 {
        WANT_HOLDS_MS.max(self.settings.lease_ms / 2)
    }

    /// For how long others may have nothing to say of a stream that is on its way from one to another.
    fn orphaned_after_ms(&self) -> u64 {
        self.settings.lease_ms * 5 / 3
    }

    /// Those without a key or the right time are none as long as there is somebody else: what they do badly is done well there.
    fn list_of(&self, mut streams: Vec<String>) -> List {
        let own = Member {
            id: self.settings.id.clone(),
            weight: self.settings.weight,
            is_draining: self.is_leaving,
            is_whole: self.is_whole,
            owned: BTreeSet::new(),
        };
        let all: Vec<&Member> = self
            .members
            .iter()
            .filter(|member| member.id != own.id)
            .chain([&own])
            .filter(|it| !it.is_draining)
            .collect();
        let needs_whole = all.iter().any(|member| member.is_whole && member.weight > 0);
        let of = |member: &&Member| Candidate { id: member.id.clone(), weight: member.weight };
        let mut workers: Vec<Candidate> = all.iter().filter(|member| member.is_whole || !needs_whole).map(of).collect();
        workers.sort_by(|one, other| one.id.cmp(&other.id));
        streams.sort();
        streams.dedup();
        List { streams, workers }
    }

    /// Goes by what was heard once that has stayed the same for a while. Who leaves or dies is missed at once.
    fn follow(&mut self, now: u64, is_settled: bool) {
        let is_patient = now < self.patient_until && self.heard.lacks_only(&self.list);
        if self.heard == self.list || is_patient {
            return;
        }
        // Who comes to others that are at work, and to what none of them has, need not wait: they give nothing away before it is settled
        // for them.
        let is_owned = |stream: &String| self.members.iter().any(|member| member.owned.contains(stream));
        let are_at_work = self.members.iter().any(|member| !member.owned.is_empty());
        let is_missed = are_at_work && !self.heard.streams.iter().all(is_owned);
        let is_first = self.list.streams.is_empty() && (self.heard.streams.len() == 1 || is_missed);
        if is_settled || is_first || (!self.list.streams.is_empty() && self.heard.lacks_only(&self.list)) {
            self.list = self.heard.clone();
            self.list_since = now;
            self.owners = self.list.owners();
            let own = self.owners.iter().filter(|(_, worker)| **worker == self.settings.id);
            self.share = own.map(|(stream, _)| stream.clone()).collect();
            // What nobody has stays reserved for whoever asked for it: that one takes it, and gives it to whose it is now.
            let is_known = |stream: &String| self.members.iter().any(|member| member.owned.contains(stream));
            self.coming.retain(|stream, _| self.share.contains(stream) || !is_known(stream));
        }
    }

    /// Streams that nobody says to have.
    fn note_orphans(&mut self, now: u64) {
        let is_owned = |stream: &String| {
            self.doing.contains_key(stream) || self.members.iter().any(|member| member.owned.contains(stream))
        };
        let orphans = self.list.streams.iter().filter(|stream| !is_owned(stream));
        let since = |stream: &String| self.orphans.get(stream).copied().unwrap_or(now);
        self.orphans = orphans.map(|stream| (stream.clone(), since(stream))).collect();
    }

    fn note_owner(&mut self, stream: &str, owner: String) {
        if self.doing.get(stream) != Some(&Doing::Owned) {
            self.had_by.insert(stream.to_owned(), owner);
        }
    }

    /// Who has what, by what others told; and with it how things came to this worker.
    fn note_owners(&mut self, now: u64) {
        let leaving = self.members.iter().filter(|member| member.is_draining);
        let until = now + self.settings.lease_ms + self.orphaned_after_ms();
        self.left.extend(leaving.map(|member| (member.id.clone(), until)));
        let is_back = |id: &String| self.members.iter().any(|member| member.id == *id && !member.is_draining);
        self.left.retain(|id, until| now < *until && !is_back(id));
        for member in &self.members {
            for stream in member.owned.iter().filter(|stream| self.doing.get(*stream) != Some(&Doing::Owned)) {
                self.had_by.insert(stream.clone(), member.id.clone());
            }
        }
        // The dead are heard of for a lease.
        let after = self.settings.lease_ms;
        for (had_by, at) in std::mem::take(&mut self.came_from) {
            let (has_left, lives) = (self.left.contains_key(&had_by), self.members.iter().any(|it| it.id == had_by));
            match (has_left, lives) {
                (true, _) => self.came.push(Came::Given),
                (false, false) => self.came.push(Came::TakenOver),
                (false, true) if now >= at + after => self.came.push(Came::Given),
                (false, true) => self.came_from.push((had_by, at)),
            }
        }
    }

    fn expect(&mut self, stream: &str, ask_at: u64, is_anothers: bool) {
        if self.doing.get(stream) != Some(&Doing::Owned) {
            self.coming.insert(stream.to_owned(), Coming { ask_at, is_anothers });
        }
    }

    /// Stops what others should have: at once what it only waits for, and what it owns once it is asked for that.
    fn give(&mut self, now: u64) {
        let is_leaving = |doing: &&Doing| **doing == Doing::Stopping;
        let mut free = AT_A_TIME.saturating_sub(self.doing.values().filter(is_leaving).count());
        let holds = self.asked_holds_ms();
        self.asked.retain(|_, asked| now < asked.last + holds);
        for stream in self.runs.clone() {
            let is_share = self.share.contains(&stream);
            match self.doing.get(&stream) {
                Some(Doing::Owned) => {
                    let Some(asked) = self.asked.get(&stream) else { continue };
                    let agrees = self.owners.get(&stream) == Some(&asked.by);
                    let insists = now >= asked.since + INSISTS_MS;
                    if free > 0 && (agrees || insists) {
                        free -= 1;
                        self.runs.remove(&stream);
                        if !agrees {
                            self.regretted.insert(stream.clone(), now + REGRETS_MS);
                        }
                    }
                }
                Some(Doing::Stopping) => drop(self.runs.remove(&stream)),
                // Who takes what nobody had waits for the lease, too.
                Some(Doing::Waiting) | None => {
                    if !is_share && !self.coming.contains_key(&stream) {
                        self.runs.remove(&stream);
                    }
                }
            }
        }
        self.regretted.retain(|_, until| now < *until);
    }

    /// Asks for what this worker should have, a few at a time where others have it; and for what nobody has taken.
    fn take(&mut self, now: u64) -> Vec<Ask> {
        if self.is_leaving {
            self.coming.clear();
            return Vec::new();
        }
        // What nobody had and somebody else has taken after all.
        self.coming.retain(|stream, coming| self.share.contains(stream) || now < coming.ask_at + WANT_HOLDS_MS);
        let mut asks = Vec::new();
        let mut anothers = self.coming.values().filter(|coming| coming.is_anothers).count();
        for stream in self.share.clone() {
            let is_known = self.members.iter().any(|member| member.owned.contains(&stream));
            let is_regretted = is_known && self.regretted.contains_key(&stream);
            if matches!(self.doing.get(&stream), Some(Doing::Owned | Doing::Stopping)) || is_regretted {
                continue;
            }
            match self.coming.get(&stream) {
                Some(coming) if now < coming.ask_at => {}
                Some(_) => asks.push(Ask::Want(stream.clone())),
                None if is_known && anothers >= AT_A_TIME => {}
                None => {
                    anothers += usize::from(is_known);
                    asks.push(Ask::Want(stream.clone()));
                }
            }
        }
        let all: Vec<Candidate> = self.all_workers();
        let after = self.orphaned_after_ms();
        for (stream, since) in &self.orphans {
            let is_mine = self.share.contains(stream) || self.coming.contains_key(stream);
            let rank = rank(stream, &self.settings.id, &all) as u64;
            if !is_mine && !self.doing.contains_key(stream) && now >= since + after + rank * RANK_MS {
                asks.push(Ask::Want(stream.clone()));
            }
        }
        for ask in &asks {
            let ask_at = now + WANT_EVERY_MS;
            let is_anothers = self.members.iter().any(|member| member.owned.contains(ask.stream()));
            let new = Coming { ask_at, is_anothers };
            let coming = self.coming.entry(ask.stream().to_owned()).or_insert(new);
            coming.ask_at = ask_at;
        }
        asks
    }

    fn all_workers(&self) -> Vec<Candidate> {
        self.members.iter().map(|member| Candidate { id: member.id.clone(), weight: member.weight }).collect()
    }

    /// Whether it is asked for what should be another's; and, while it hears of nobody, whether others still have what they had.
    fn look(&mut self, now: u64) -> Vec<Ask> {
        let is_blind = self.heard_at.is_none_or(|at| now >= at + self.settings.lease_ms);
        let is_new = now < self.list_since + LOOKS_FOR_MS || self.is_leaving;
        let mut next = BTreeMap::new();
        let mut asks = Vec::new();
        for stream in &self.list.streams {
            let owned = self.doing.get(stream) == Some(&Doing::Owned);
            let every = match (owned, self.share.contains(stream)) {
                (true, false) if is_new => LOOK_EVERY_MS,
                (false, false) if is_blind && !self.runs.contains(stream) => BLIND_LOOK_EVERY_MS,
                _ => continue,
            };
            let at = self.look_at.get(stream).copied().unwrap_or(now);
            if now >= at {
                asks.push(Ask::Look(stream.clone()));
            }
            next.insert(stream.clone(), if now >= at { now + every } else { at });
        }
        self.look_at = next;
        asks
    }
}

#[cfg(test)]
#[path = "membership_tests.rs"]
mod tests;
