//! What the scripts of payment intents mean, in plain maps.

use std::collections::BTreeMap;

use herald::{
    facts::id::{AccountId, EntryId, IntentId},
    intents::stamp::Stamp,
    store::intents::{ClockChange, ClockState, Commit, Committed, Due, Loaded, Order, Repeated, Stored},
};

#[derive(Debug, Clone)]
pub struct Known {
    pub revision: u64,
    pub status: String,
    pub created_at: i64,
    account: AccountId,
    stored: Stored,
    due: Option<i64>,
}

impl Known {
    pub fn parts(&self) -> (String, u64) {
        (self.status.clone(), self.revision)
    }
}

/// The clock stands still: only calls move it.
#[derive(Debug)]
pub struct Model {
    at: i64,
    last: i64,
    target: Option<i64>,
    intents: BTreeMap<IntentId, Known>,
    keys: BTreeMap<String, Repeated>,
    numbers: BTreeMap<AccountId, u64>,
    /// By account and number.
    feed: BTreeMap<(AccountId, u64), IntentId>,
    told: Vec<String>,
    calls: u64,
}

type Due4 = (i64, Option<i64>, Option<i64>, Vec<(IntentId, Option<Stored>)>);
type Fed = (u64, IntentId, Option<Option<Stored>>);
type Row = (i64, IntentId, Option<Stored>);

impl Model {
    pub fn new(at: i64) -> Self {
        let (intents, keys, numbers, feed) = Default::default();
        Self { at, last: 0, target: None, intents, keys, numbers, feed, told: Vec::new(), calls: 0 }
    }

    /// Makes each record another one.
    pub fn calls(&mut self) -> u64 {
        self.calls += 1;
        self.calls
    }

    pub fn known(&self, id: &IntentId) -> Option<&Known> {
        self.intents.get(id)
    }

    pub fn told(&self) -> &[String] {
        &self.told
    }

    fn now(&self) -> i64 {
        self.at.max(self.last)
    }

    fn stamp(&self) -> i64 {
        self.now().max(self.last + 1)
    }

    pub fn load(&self, id: &IntentId, key: &str) -> Loaded {
        let stored = self.intents.get(id).map(|known| known.stored.clone());
        Loaded { now: self.stamp(), stored, repeated: self.used(key).cloned() }
    }

    /// A key ends with its intent.
    fn used(&self, key: &str) -> Option<&Repeated> {
        self.keys.get(key).filter(|repeated| self.intents.contains_key(&repeated.id))
    }

    /// `entry` is what Redis has called the event, which nobody can know before.
    pub fn commit(&mut self, commit: &Commit<'_>, entry: Option<EntryId>) -> Committed {
        if let Some(taken) = commit.key.and_then(|key| self.used(key.hash)) {
            return Committed::Taken(taken.clone());
        }
        let (stamp, there) = (self.stamp(), self.intents.get(commit.id));
        if there.map_or(0, |known| known.revision) != commit.expected_revision {
            return Committed::Stale { now: stamp, stored: there.map(|known| known.stored.clone()) };
        }
        if commit.before.is_some_and(|before| stamp >= before) {
            return Committed::Late { now: stamp };
        }
        if commit.from.is_some_and(|from| stamp < from) {
            return Committed::Early { now: stamp };
        }
        self.last = stamp;
        let number = commit.event.as_ref().map(|(head, tail)| {
            self.told.push(format!("{head}{}{tail}", Stamp(stamp)));
            let number = self.numbers.entry(commit.account.clone()).or_default();
            *number += 1;
            self.feed.insert((commit.account.clone(), *number), commit.id.clone());
            *number
        });
        let revision = commit.expected_revision + 1;
        let stored = Stored { revision, changed_at: stamp, number, entry, json: commit.json.clone().into() };
        let due = match commit.due {
            Due::At(at) => Some(at),
            Due::In(span) => Some(stamp + span),
            Due::Never => None,
        };
        let known = Known {
            revision,
            status: commit.status.clone(),
            created_at: commit.created_at.unwrap_or(stamp),
            account: commit.account.clone(),
            stored: stored.clone(),
            due,
        };
        self.intents.insert(commit.id.clone(), known);
        if let Some(key) = commit.key {
            let repeated = Repeated { request: key.request.to_owned(), id: commit.id.clone(), stored };
            self.keys.insert(key.hash.to_owned(), repeated);
        }
        Committed::Done { stamp, entry: number.map(|_| "entry".to_owned()), number }
    }

    pub fn due(&self) -> Due4 {
        let mut by_time: Vec<(i64, &IntentId)> =
            self.intents.iter().filter_map(|(id, known)| Some((known.due?, id))).collect();
        by_time.sort();
        let now = self.stamp();
        let found = by_time.iter().filter(|(at, _)| *at <= now);
        let found = found.map(|(_, id)| ((*id).clone(), Some(self.intents[*id].stored.clone()))).collect();
        (now, self.target, by_time.first().map(|(at, _)| *at), found)
    }

    pub fn forget(&mut self, id: &IntentId, account: &AccountId, revision: u64, numbers: &[u64]) -> bool {
        match self.intents.get(id) {
            Some(known) if known.revision != revision => false,
            _ => {
                self.intents.remove(id);
                for number in numbers {
                    self.feed.remove(&(account.clone(), *number));
                }
                true
            }
        }
    }

    /// Those that there are now; a page is larger than all of them.
    pub fn reset(&mut self, account: &AccountId, until: Option<(i64, u64)>) -> ((i64, u64), usize, bool) {
        let latest = self.numbers.get(account).copied().unwrap_or_default();
        let ((at, number), before) = (until.unwrap_or((self.now(), latest)), self.intents.len());
        self.intents.retain(|_, known| known.account != *account || known.created_at > at);
        self.feed.retain(|(of, told), _| of != account || *told > number);
        ((at, number), before - self.intents.len(), false)
    }

    /// Never to an earlier time, and only what waits.
    pub fn put_off(&mut self, id: &IntentId, to: i64) {
        if let Some(due) = self.intents.get_mut(id).and_then(|known| known.due.as_mut()) {
            *due = to.max(*due);
        }
    }

    pub fn search(&self, account: &AccountId, (from, to): (i64, i64), order: Order, most: usize) -> (Vec<Row>, bool) {
        let of = self.intents.iter().filter(|(_, known)| known.account == *account);
        let within = of.filter(|(_, known)| (from..=to).contains(&known.created_at));
        let mut rows: Vec<Row> =
            within.map(|(id, known)| (known.created_at, id.clone(), Some(known.stored.clone()))).collect();
        rows.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        if order == Order::NewestFirst {
            rows.reverse();
        }
        let has_more = rows.len() > most;
        rows.truncate(most);
        (rows, has_more)
    }

    /// The last number, whether there is more, and each with its record unless that stood before.
    pub fn feed(&self, account: &AccountId, after: u64, most: usize) -> (u64, bool, Vec<Fed>) {
        let all = self.feed.range((account.clone(), after + 1)..=(account.clone(), u64::MAX));
        let mut told: Vec<Fed> = Vec::new();
        for ((_, number), id) in all.clone().take(most) {
            let is_again = told.iter().any(|(_, before, _)| before == id);
            let stored = (!is_again).then(|| self.intents.get(id).map(|known| known.stored.clone()));
            told.push((*number, id.clone(), stored));
        }
        (self.numbers.get(account).copied().unwrap_or_default(), all.count() > most, told)
    }

    /// Numbers of an intent's events.
    pub fn numbers_of(&self, id: &IntentId) -> Vec<u64> {
        self.feed.iter().filter(|(_, of)| *of == id).map(|((_, number), _)| *number).collect()
    }

    pub fn indexed(&self, account: &AccountId, status: &str) -> Vec<String> {
        let of = self.intents.iter().filter(|(_, known)| known.account == *account && known.status == status);
        let mut ids: Vec<(i64, String)> = of.map(|(id, known)| (known.created_at, id.to_string())).collect();
        ids.sort();
        ids.into_iter().map(|(_, id)| id).collect()
    }

    pub fn clock(&mut self, change: ClockChange) -> ClockState {
        let now = self.now();
        let to = match change {
            ClockChange::Advance(by) => now + by,
            ClockChange::To(to) => to,
            ClockChange::Step => return self.step(now),
            ClockChange::Speed(_) => unreachable!("it stands still"),
        };
        if to < now {
            return ClockState::Back { now };
        }
        self.at = now;
        self.target = Some(self.target.unwrap_or_default().max(to));
        ClockState::UnderWay { now }
    }

    fn step(&mut self, now: i64) -> ClockState {
        let Some(target) = self.target else { return ClockState::On { now } };
        let first = self.intents.values().filter_map(|known| known.due).min();
        match first.filter(|first| *first <= target) {
            Some(first) => {
                self.at = now.max(first);
                ClockState::UnderWay { now: self.at }
            }
            None => {
                self.at = now.max(target);
                self.target = None;
                ClockState::On { now: self.at }
            }
        }
    }
}
