//! Dead letters by what they are: exact pages, counts and groups by account, endpoint, reason, cause, intent, event and
//! time, from the indexes alone. No letter is read, and nothing is walked but what fits, whatever else there is.
//!
//! Each condition leads to sets that are ordered by time: those of the kinds (account, endpoint, reason, cause) that fit,
//! or an account's or everybody's for each reason and cause. A page is merged from them here; each command of it looks at no
//! more than a page, so none holds Redis for long. An intent's and an event's letters are few, and are looked at one by one.

use std::collections::{BTreeMap, VecDeque};

use super::{DeadCursor, DeadOrder, DeadRange, MAX_PAGE, Queries, STRIDE};
use crate::{
    facts::{
        id::{AccountId, DeliveryId, EndpointId, EventId, IntentId},
        letter::{Cause, LetterFacts},
        retry::DeadReason,
    },
    store::error::StoreError,
};

/// Which dead letters: those that meet every condition. Both times included, ms since 1970 by Redis' clock. A cause
/// without a kind stands for all of its class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadFilter {
    pub from_ms: u64,
    pub until_ms: u64,
    pub endpoint: Option<EndpointId>,
    pub account: Option<AccountId>,
    pub reason: Option<DeadReason>,
    pub cause: Option<Cause>,
    pub intent: Option<IntentId>,
    pub event: Option<EventId>,
}

/// A letter as its index shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct FoundDead {
    pub id: DeliveryId,
    pub at_ms: u64,
    /// None while it is not indexed: an older Herald wrote it.
    pub facts: Option<LetterFacts>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct FoundPage {
    pub letters: Vec<FoundDead>,
    /// `None` after the last page.
    pub next: Option<DeadCursor>,
}

/// What letters are put together by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeadKey {
    Endpoint,
    Account,
    Reason,
    Cause,
}

/// Letters that have some of these in common; the others are `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeadGroup {
    pub endpoint: Option<String>,
    pub account: Option<String>,
    pub reason: Option<String>,
    pub cause: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeadTotals {
    pub count: u64,
    pub first_ms: u64,
    pub last_ms: u64,
}

/// One account's letters at one endpoint for one reason and cause.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Kind {
    account: String,
    endpoint: String,
    reason: String,
    cause: String,
}

/// Where the letters that fit stand.
enum Places {
    /// In these sets, ordered by time, and everything in them fits.
    Sets(Vec<String>),
    /// Among those of an intent or an event, some of which may not fit.
    Named(Vec<FoundDead>),
}

/// One set of a merge: what was fetched of it and not taken yet.
struct Source {
    key: String,
    fetched: VecDeque<(u64, String)>,
    /// The last one fetched, and how many of its time are known: those come first when more is asked for.
    last: Option<(u64, String)>,
    known_of_time: usize,
    chunk: usize,
    is_over: bool,
}

impl DeadFilter {
    /// No letter dies later, by any clock; scores are doubles.
    pub const END_MS: u64 = u64::MAX >> 11;

    pub fn everything() -> Self {
        Self {
            from_ms: 0,
            until_ms: Self::END_MS,
            endpoint: None,
            account: None,
            reason: None,
            cause: None,
            intent: None,
            event: None,
        }
    }

    /// Whether it asks for anything that only the indexes by facts know.
    pub fn needs_facts(&self) -> bool {
        self.account.is_some()
            || self.reason.is_some()
            || self.cause.is_some()
            || self.intent.is_some()
            || self.event.is_some()
    }

    fn fits_kind(&self, kind: &Kind) -> bool {
        self.endpoint.as_ref().is_none_or(|endpoint| endpoint.as_str() == kind.endpoint)
            && self.account.as_ref().is_none_or(|account| account.as_str() == kind.account)
            && self.fits_why(&kind.reason, &kind.cause)
    }

    fn fits_why(&self, reason: &str, cause: &str) -> bool {
        let is_cause = |wanted: &Cause| cause.parse::<Cause>().is_ok_and(|cause| cause.is_a(wanted));
        self.reason.is_none_or(|wanted| wanted.name() == reason) && self.cause.as_ref().is_none_or(is_cause)
    }

    fn fits(&self, letter: &FoundDead) -> bool {
        let Some(facts) = &letter.facts else { return false };
        (self.from_ms..=self.until_ms).contains(&letter.at_ms)
            && self.endpoint.as_ref().is_none_or(|endpoint| *endpoint == letter.id.endpoint)
            && (self.account.is_none() || self.account == facts.account)
            && (self.intent.is_none() || self.intent == facts.intent)
            && (self.event.is_none() || self.event == facts.event)
            && self.fits_why(facts.reason_name(), facts.cause.as_str())
    }
}

impl From<&DeadRange> for DeadFilter {
    fn from(range: &DeadRange) -> Self {
        let DeadRange { endpoint, from_ms, until_ms } = range.clone();
        Self { endpoint, from_ms, until_ms, ..Self::everything() }
    }
}

impl Kind {
    fn of(letter: &FoundDead) -> Option<Self> {
        let facts = letter.facts.as_ref()?;
        Some(Self {
            account: facts.account.as_ref().map_or_else(String::new, ToString::to_string),
            endpoint: letter.id.endpoint.to_string(),
            reason: facts.reason_name().to_owned(),
            cause: facts.cause.to_string(),
        })
    }

    /// From a member of `dead-kinds`, by an account or by an endpoint.
    fn parse(member: &str) -> Option<Self> {
        let mut parts = member.splitn(5, ':');
        let (form, first, second) = (parts.next()?, parts.next()?.to_owned(), parts.next()?.to_owned());
        let (reason, cause) = (parts.next()?.to_owned(), parts.next()?.to_owned());
        match form {
            "a" => Some(Self { account: first, endpoint: second, reason, cause }),
            "e" => Some(Self { account: second, endpoint: first, reason, cause }),
            _ => None,
        }
    }

    fn key(&self, queries: &Queries) -> String {
        let Self { account, endpoint, reason, cause } = self;
        queries.keys.dead_of_kind(&format!("{account}:{endpoint}:{reason}:{cause}"))
    }

    fn group(&self, by: &[DeadKey]) -> DeadGroup {
        let known = |key, value: &String| by.contains(&key).then(|| value.clone());
        DeadGroup {
            endpoint: known(DeadKey::Endpoint, &self.endpoint),
            account: known(DeadKey::Account, &self.account),
            reason: known(DeadKey::Reason, &self.reason),
            cause: known(DeadKey::Cause, &self.cause),
        }
    }
}

impl DeadTotals {
    fn one(at_ms: u64) -> Self {
        Self { count: 1, first_ms: at_ms, last_ms: at_ms }
    }

    pub(super) fn and(self, other: Self) -> Self {
        Self {
            count: self.count + other.count,
            first_ms: self.first_ms.min(other.first_ms),
            last_ms: self.last_ms.max(other.last_ms),
        }
    }
}

impl Queries {
    /// By how many the letters and what the indexes know differ: letters of an older Herald that are not indexed yet, or
    /// that it removed. While it is not 0, only time and endpoint find letters for certain.
    pub async fn unindexed_dead(&mut self) -> Result<u64, StoreError> {
        let mut left = 0;
        for _ in 0..3 {
            let mut pipeline = redis::pipe();
            pipeline.cmd("ZCARD").arg(self.keys.dead()).cmd("HLEN").arg(self.keys.dead_facts());
            let (letters, indexed): (u64, u64) =
                self.connection.pipeline("ask whether the dead letters are indexed", &pipeline).await?;
            left = letters.abs_diff(indexed);
            // A letter may have come or gone between the two.
            if left == 0 {
                break;
            }
        }
        Ok(left)
    }

    /// How many letters fit: exact, and as cheap as there are kinds that fit.
    pub async fn count_dead_where(&mut self, filter: &DeadFilter) -> Result<u64, StoreError> {
        match self.places(filter).await? {
            Places::Named(letters) => Ok(letters.len() as u64),
            Places::Sets(keys) => {
                let mut count = 0;
                for part in keys.chunks(STRIDE) {
                    let mut pipeline = redis::pipe();
                    for key in part {
                        pipeline.cmd("ZCOUNT").arg(key).arg(filter.from_ms).arg(filter.until_ms);
                    }
                    let counts: Vec<u64> = self.connection.pipeline("count dead letters", &pipeline).await?;
                    count += counts.into_iter().sum::<u64>();
                }
                Ok(count)
            }
        }
    }

    /// At most `max` letters after the cursor. Those that come or go meanwhile neither repeat nor hide others.
    pub async fn find_dead(
        &mut self,
        filter: &DeadFilter,
        order: DeadOrder,
        after: Option<&DeadCursor>,
        max: usize,
    ) -> Result<FoundPage, StoreError> {
        let max = max.clamp(1, MAX_PAGE);
        let letters = match self.places(filter).await? {
            Places::Named(letters) => page_of(letters, order, after, max),
            Places::Sets(keys) => {
                let ids = self.merge(keys, filter, order, after, max).await?;
                self.with_facts(ids).await?
            }
        };
        let last = letters.last().filter(|_| letters.len() == max);
        let next = last.map(|last| DeadCursor { at_ms: last.at_ms, id: last.id.to_string() });
        Ok(FoundPage { letters, next })
    }

    /// How many letters fit, by what is asked for, with the times of the first and the last.
    pub async fn group_dead(
        &mut self,
        filter: &DeadFilter,
        by: &[DeadKey],
    ) -> Result<BTreeMap<DeadGroup, DeadTotals>, StoreError> {
        let mut groups = BTreeMap::<DeadGroup, DeadTotals>::new();
        let mut add = |group: DeadGroup, totals: DeadTotals| {
            let known = groups.get(&group).map_or(totals, |known| known.and(totals));
            groups.insert(group, known);
        };
        if filter.intent.is_some() || filter.event.is_some() {
            if let Places::Named(letters) = self.places(filter).await? {
                letters.iter().for_each(|letter| {
                    if let Some(kind) = Kind::of(letter) {
                        add(kind.group(by), DeadTotals::one(letter.at_ms));
                    }
                });
            }
            return Ok(groups);
        }
        let kinds =
            match filter.endpoint.is_none() && !by.contains(&DeadKey::Endpoint) && !by.contains(&DeadKey::Account) {
                true => self.wholes(filter).await?,
                false => self.kinds(filter).await?,
            };
        for part in kinds.chunks(STRIDE) {
            let mut pipeline = redis::pipe();
            for (key, _) in part {
                let (from, until) = (filter.from_ms, filter.until_ms);
                pipeline.cmd("ZCOUNT").arg(key).arg(from).arg(until);
                pipeline.cmd("ZRANGE").arg(key).arg(from).arg(until).arg("BYSCORE").arg("LIMIT").arg(0).arg(1);
                pipeline.arg("WITHSCORES").cmd("ZRANGE").arg(key).arg(until).arg(from).arg("BYSCORE").arg("REV");
                pipeline.arg("LIMIT").arg(0).arg(1).arg("WITHSCORES");
            }
            type Ends = Vec<(String, f64)>;
            let answers: Vec<redis::Value> = self.connection.pipeline("group dead letters", &pipeline).await?;
            for ((_, kind), answer) in part.iter().zip(answers.chunks(3)) {
                let read = |at: usize| redis::from_redis_value::<Ends>(answer[at].clone()).ok()?.pop();
                let count = redis::from_redis_value::<u64>(answer[0].clone()).unwrap_or(0);
                if let (1.., Some((_, first)), Some((_, last))) = (count, read(1), read(2)) {
                    add(kind.group(by), DeadTotals { count, first_ms: first as u64, last_ms: last as u64 });
                }
            }
        }
        Ok(groups)
    }

    async fn places(&mut self, filter: &DeadFilter) -> Result<Places, StoreError> {
        let named = match (&filter.intent, &filter.event) {
            (Some(intent), _) => Some(format!("i:{intent} ")),
            (None, Some(event)) => Some(format!("e:{event} ")),
            (None, None) => None,
        };
        if let Some(prefix) = named {
            let mut letters = self.named(&prefix).await?;
            letters.retain(|letter| filter.fits(letter));
            return Ok(Places::Named(letters));
        }
        if !filter.needs_facts() {
            let all = filter.endpoint.as_ref();
            return Ok(Places::Sets(vec![
                all.map_or_else(|| self.keys.dead(), |endpoint| self.keys.dead_of(endpoint)),
            ]));
        }
        let sets = match filter.endpoint {
            None => self.wholes(filter).await?,
            Some(_) => self.kinds(filter).await?,
        };
        Ok(Places::Sets(sets.into_iter().map(|(key, _)| key).collect()))
    }

    /// The kinds of letters that fit, each with its set. As many as an account has endpoints, reasons and causes.
    async fn kinds(&mut self, filter: &DeadFilter) -> Result<Vec<(String, Kind)>, StoreError> {
        let prefix = match (&filter.endpoint, &filter.account) {
            (Some(endpoint), _) => format!("e:{endpoint}:"),
            (None, Some(account)) => format!("a:{account}:"),
            (None, None) => "e:".to_owned(),
        };
        let members = self.members(&self.keys.dead_kinds(), &prefix, ';').await?;
        let kinds = members.iter().filter_map(|member| Kind::parse(member)).filter(|kind| filter.fits_kind(kind));
        Ok(kinds.map(|kind| (kind.key(self), kind)).collect())
    }

    /// The same without regard to endpoints: the sets of an account, or of everybody, for each reason and cause that fits.
    async fn wholes(&mut self, filter: &DeadFilter) -> Result<Vec<(String, Kind)>, StoreError> {
        let prefix = filter.account.as_ref().map_or_else(|| "w:".to_owned(), |account| format!("b:{account}:"));
        let members = self.members(&self.keys.dead_kinds(), &prefix, ';').await?;
        let whole = |member: &String| {
            let why = member.strip_prefix(&prefix)?;
            let (reason, cause) = why.split_once(':').filter(|(reason, cause)| filter.fits_why(reason, cause))?;
            let account = filter.account.as_ref().map_or_else(String::new, ToString::to_string);
            let key = match &filter.account {
                Some(account) => self.keys.dead_account(account.as_str(), why),
                None => self.keys.dead_by(why),
            };
            let (reason, cause) = (reason.to_owned(), cause.to_owned());
            Some((key, Kind { account, endpoint: String::new(), reason, cause }))
        };
        Ok(members.iter().filter_map(whole).collect())
    }

    /// Members of a set without scores that begin like this. `behind` follows the prefix's last character, which is in
    /// no id.
    async fn members(&mut self, key: &str, prefix: &str, behind: char) -> Result<Vec<String>, StoreError> {
        let end = format!("({}{behind}", &prefix[..prefix.len() - 1]);
        let (mut members, mut start) = (Vec::<String>::new(), format!("[{prefix}"));
        loop {
            let mut command = redis::cmd("ZRANGEBYLEX");
            command.arg(key).arg(&start).arg(&end).arg("LIMIT").arg(0).arg(STRIDE);
            let page: Vec<String> = self.connection.query("look at an index of dead letters", &command).await?;
            let is_last = page.len() < STRIDE;
            members.extend(page);
            match members.last() {
                Some(last) if !is_last => start = format!("({last}"),
                _ => return Ok(members),
            }
        }
    }

    async fn named(&mut self, prefix: &str) -> Result<Vec<FoundDead>, StoreError> {
        let members = self.members(&self.keys.dead_names(), prefix, '!').await?;
        let ids = members.iter().filter_map(|member| member.split_once(' ')?.1.parse().ok());
        let ids: Vec<DeliveryId> = ids.collect();
        let mut letters = Vec::with_capacity(ids.len());
        for part in ids.chunks(STRIDE) {
            for (id, line) in part.iter().zip(self.lines(part).await?) {
                if let Some((at_ms, facts)) = line.as_deref().and_then(read_line) {
                    letters.push(FoundDead { id: id.clone(), at_ms, facts: Some(facts) });
                }
            }
        }
        Ok(letters)
    }

    async fn with_facts(&mut self, found: Vec<(u64, DeliveryId)>) -> Result<Vec<FoundDead>, StoreError> {
        let ids: Vec<DeliveryId> = found.iter().map(|(_, id)| id.clone()).collect();
        let lines = if ids.is_empty() { Vec::new() } else { self.lines(&ids).await? };
        let letter = |((at_ms, id), line): ((u64, DeliveryId), Option<String>)| {
            // A line of an earlier death says nothing of this one.
            let facts = line.as_deref().and_then(read_line).filter(|(of, _)| *of == at_ms);
            FoundDead { id, at_ms, facts: facts.map(|(_, facts)| facts) }
        };
        Ok(found.into_iter().zip(lines).map(letter).collect())
    }

    async fn lines(&mut self, ids: &[DeliveryId]) -> Result<Vec<Option<String>>, StoreError> {
        let mut command = redis::cmd("HMGET");
        command.arg(self.keys.dead_facts());
        for id in ids {
            command.arg(id.to_string());
        }
        self.connection.query("look up dead letters", &command).await
    }

    /// The next ones of all these sets, in the order of their times, and of their ids within one.
    async fn merge(
        &mut self,
        keys: Vec<String>,
        filter: &DeadFilter,
        order: DeadOrder,
        after: Option<&DeadCursor>,
        max: usize,
    ) -> Result<Vec<(u64, DeliveryId)>, StoreError> {
        let cursor = after.map(|after| (after.at_ms, after.id.clone()));
        let chunk = (2 * max / keys.len().max(1)).clamp(2, max.max(2));
        let source = |key| Source {
            key,
            fetched: VecDeque::new(),
            last: cursor.clone(),
            known_of_time: 0,
            chunk,
            is_over: false,
        };
        let mut sources: Vec<Source> = keys.into_iter().map(source).collect();
        let mut merged = Vec::with_capacity(max);
        while merged.len() < max {
            self.fetch(&mut sources, filter, order).await?;
            let first = sources.iter().enumerate().filter_map(|(at, source)| Some((source.fetched.front()?, at)));
            let first = match order {
                DeadOrder::OldestFirst => first.min(),
                DeadOrder::NewestFirst => first.max(),
            };
            let Some((_, at)) = first else { break };
            let Some((at_ms, id)) = sources[at].fetched.pop_front() else { break };
            // Herald writes nothing here but delivery ids, so there is nothing to show of anything else.
            merged.extend(id.parse().ok().map(|id| (at_ms, id)));
        }
        Ok(merged)
    }

    /// Something of each set of which nothing is left.
    async fn fetch(&mut self, sources: &mut [Source], filter: &DeadFilter, order: DeadOrder) -> Result<(), StoreError> {
        loop {
            let mut empty: Vec<&mut Source> =
                sources.iter_mut().filter(|source| source.fetched.is_empty() && !source.is_over).collect();
            if empty.is_empty() {
                return Ok(());
            }
            for part in empty.chunks_mut(STRIDE) {
                let mut pipeline = redis::pipe();
                part.iter().for_each(|source| source.ask(&mut pipeline, filter, order));
                let pages: Vec<Vec<(String, f64)>> = self.connection.pipeline("list dead letters", &pipeline).await?;
                part.iter_mut().zip(pages).for_each(|(source, page)| source.take(page, order));
            }
        }
    }
}

impl Source {
    fn ask(&self, pipeline: &mut redis::Pipeline, filter: &DeadFilter, order: DeadOrder) {
        let last = self.last.as_ref().map(|(at_ms, _)| *at_ms);
        pipeline.cmd("ZRANGE").arg(&self.key);
        match order {
            DeadOrder::OldestFirst => {
                let from = last.map_or(filter.from_ms, |last| last.max(filter.from_ms));
                pipeline.arg(from).arg(filter.until_ms).arg("BYSCORE");
            }
            DeadOrder::NewestFirst => {
                let until = last.map_or(filter.until_ms, |last| last.min(filter.until_ms));
                pipeline.arg(until).arg(filter.from_ms).arg("BYSCORE").arg("REV");
            }
        }
        pipeline.arg("LIMIT").arg(0).arg(self.known_of_time + self.chunk).arg("WITHSCORES");
    }

    fn take(&mut self, page: Vec<(String, f64)>, order: DeadOrder) {
        self.is_over = page.len() < self.known_of_time + self.chunk;
        let page: Vec<(u64, String)> = page.into_iter().map(|(id, at)| (at as u64, id)).collect();
        let is_new = |one: &&(u64, String)| {
            self.last.as_ref().is_none_or(|last| match order {
                DeadOrder::OldestFirst => *one > last,
                DeadOrder::NewestFirst => *one < last,
            })
        };
        let new: Vec<(u64, String)> = page.iter().filter(is_new).cloned().collect();
        // Many share a millisecond, and all of these were known: more are asked for.
        self.known_of_time = match new.last() {
            Some((time, _)) => page.iter().filter(|(at_ms, _)| at_ms == time).count(),
            None => page.len(),
        };
        self.last = new.last().cloned().or_else(|| self.last.take());
        self.fetched.extend(new);
        self.chunk = (2 * self.chunk).min(MAX_PAGE);
    }
}

pub(super) fn page_of(
    mut letters: Vec<FoundDead>,
    order: DeadOrder,
    after: Option<&DeadCursor>,
    max: usize,
) -> Vec<FoundDead> {
    let mut keyed: Vec<((u64, String), FoundDead)> =
        letters.drain(..).map(|letter| ((letter.at_ms, letter.id.to_string()), letter)).collect();
    keyed.sort_by(|one, other| one.0.cmp(&other.0));
    if order == DeadOrder::NewestFirst {
        keyed.reverse();
    }
    let is_new = |key: &(u64, String)| {
        after.is_none_or(|after| match order {
            DeadOrder::OldestFirst => (key.0, key.1.as_str()) > (after.at_ms, after.id.as_str()),
            DeadOrder::NewestFirst => (key.0, key.1.as_str()) < (after.at_ms, after.id.as_str()),
        })
    };
    keyed.into_iter().filter(|(key, _)| is_new(key)).map(|(_, letter)| letter).take(max).collect()
}

/// `AT FACTS`.
fn read_line(line: &str) -> Option<(u64, LetterFacts)> {
    let (at_ms, facts) = line.split_once(' ')?;
    Some((at_ms.parse().ok()?, LetterFacts::parse(facts)?))
}
