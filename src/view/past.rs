//! What was tried and how it ended: from the history, as far as that has read, and beyond from the log in Redis. An answer
//! says how far back it looks, so that silence is not taken for "never happened". A history that does not answer only makes
//! it shorter.

use std::{cmp::Reverse, collections::HashSet};

use serde::Serialize;
use utoipa::ToSchema;

use super::{Viewer, time::Time, words};
use crate::{
    facts::id::DeliveryId,
    history::{Gap, History, Horizon, Told, Wanted},
    store::{
        error::StoreError,
        queries::{LogFilter, LogPage, Partitions},
    },
};

/// How many lines of the log one look reads, newest first: a second's work for Redis and us, and hours of traffic.
const MAX_LOG_LOOK: usize = 100_000;

/// The newest first.
pub struct Past {
    pub told: Vec<Told>,
    /// There is more than was asked for.
    pub has_more: bool,
    pub reach: Reach,
}

impl Past {
    /// The newest attempt of a delivery.
    pub fn last_attempt(&self, id: &DeliveryId) -> Option<&Told> {
        let is_of = |told: &&Told| told.entry == id.entry && told.endpoint.as_ref() == Some(&id.endpoint);
        self.told.iter().filter(|told| told.is_attempt()).find(is_of)
    }
}

/// Up to `limit` of what is wanted. Where the history cannot be asked, the answer says why, and comes from Redis alone.
pub async fn look(
    history: &History,
    queries: &mut Partitions,
    wanted: &Wanted,
    limit: usize,
) -> Result<Past, StoreError> {
    look_through(history, queries, wanted, limit, limit.saturating_add(1)).await
}

/// The same; of the log's lines beyond the history, up to `most_lines` that match.
async fn look_through(
    history: &History,
    queries: &mut Partitions,
    wanted: &Wanted,
    limit: usize,
    most_lines: usize,
) -> Result<Past, StoreError> {
    let now_ms = queries.now_ms().await?;
    // One more than is wanted tells whether there is more.
    let most = limit.saturating_add(1);
    let log_id = queries.log_id().await?;
    let asked = history.ask(async |reader| {
        if let Some(log) = &log_id {
            reader.check_log(log).await?;
        }
        // In this order: what is read into it between the two is told twice rather than not at all.
        let horizon = reader.horizon(history.keep_days(), now_ms, wanted).await?;
        Ok((horizon, reader.find(wanted, most).await?))
    });
    let asked = asked.await;
    let filter = LogFilter {
        delivery: wanted.delivery.clone(),
        event: wanted.event.clone(),
        intent: wanted.intent.clone(),
        endpoint: wanted.endpoint.clone(),
        account: wanted.account.clone(),
        from_ms: wanted.from_ms,
        until_ms: wanted.until_ms,
        after: None,
    };
    let read = asked.as_ref().map(|(horizon, _)| horizon.read.clone()).unwrap_or_default();
    let mut log = queries.attempts_beyond(&read, &filter, most_lines, MAX_LOG_LOOK).await?;
    let mut told: Vec<Told> = log.lines.iter().map(Told::of).collect();
    let is_cut_short = log.fell_short || !log.reached_end && told.len() < most;
    log.lines = Vec::new();
    let horizon = asked.map(|(horizon, rows)| {
        told.extend(rows);
        horizon
    });
    // The log of a Redis that lost some is read again from its beginning, so a line may be in both.
    let mut seen = HashSet::new();
    told.retain(|one| seen.insert((one.at_ms, one.kind.clone(), one.entry, one.endpoint.clone(), one.attempt)));
    told.sort_by_key(|one| Reverse(one.order()));
    let has_more = told.len() > limit;
    told.truncate(limit);
    Ok(Past { told, has_more, reach: Reach { horizon, log, is_cut_short, now_ms } })
}

/// About `limit` of the newest, in whole milliseconds; and since when these are, if there is more.
pub async fn newest(
    history: &History,
    queries: &mut Partitions,
    wanted: &Wanted,
    limit: usize,
) -> Result<(Past, Option<u64>), StoreError> {
    let mut past = look_through(history, queries, wanted, limit, MAX_LOG_LOOK).await?;
    let since_ms = past.told.last().filter(|_| past.has_more).map(|told| told.at_ms.saturating_add(1));
    past.told.retain(|told| since_ms.is_none_or(|since_ms| told.at_ms >= since_ms));
    Ok((past, since_ms))
}

/// Where a page of what is told begins: at the newest, or beside what has this key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum From {
    Newest,
    OlderThan(String),
    NewerThan(String),
}

pub struct PastPage {
    /// The newest first.
    pub told: Vec<Told>,
    pub has_newer: bool,
    pub has_older: bool,
    pub reach: Reach,
}

/// The most that a page looks through to find what is beside its cursor.
const MAX_BESIDE: usize = 10_000;

/// What a page asks for beyond its length, because the last millisecond of an answer may be told in part.
const MORE: usize = 32;

/// A page of what is wanted. None if what lies between the newest and the cursor is more than a look reads, or the cursor is none.
///
/// The log has its lines in the order in which attempts ended, and the history those of one millisecond in none. So all of the
/// log beyond the history is read, and of an answer that is cut only whole milliseconds are taken: what is behind a page's last is behind
/// it wherever it is read from.
pub async fn page(
    history: &History,
    queries: &mut Partitions,
    wanted: &Wanted,
    from: &From,
    limit: usize,
) -> Result<Option<PastPage>, StoreError> {
    let mut wanted = wanted.clone();
    let time = |key: &str| key.get(..20).and_then(|digits| digits.parse::<u64>().ok());
    match from {
        From::Newest => {}
        From::OlderThan(key) => {
            let Some(at_ms) = time(key) else { return Ok(None) };
            wanted.until_ms = Some(wanted.until_ms.unwrap_or(u64::MAX).min(at_ms.saturating_add(1)));
        }
        From::NewerThan(key) => {
            let Some(at_ms) = time(key) else { return Ok(None) };
            wanted.from_ms = wanted.from_ms.max(Some(at_ms));
        }
    }
    let mut most = limit + MORE;
    loop {
        let Past { mut told, has_more, reach } = look_through(history, queries, &wanted, most, MAX_LOG_LOOK).await?;
        if let Some(cut_ms) = told.last().filter(|_| has_more).map(|told| told.at_ms) {
            told.retain(|told| told.at_ms > cut_ms);
        }
        match from {
            From::Newest => {}
            From::OlderThan(key) => told.retain(|told| told.key() < *key),
            From::NewerThan(key) => told.retain(|told| told.key() > *key),
        }
        let is_beyond = told.len() > limit;
        match from {
            From::NewerThan(_) if !has_more => {
                told.drain(..told.len().saturating_sub(limit));
                return Ok(Some(PastPage { told, has_newer: is_beyond, has_older: true, reach }));
            }
            From::Newest | From::OlderThan(_) if !has_more || told.len() >= limit => {
                told.truncate(limit);
                let has_newer = *from != From::Newest;
                return Ok(Some(PastPage { told, has_newer, has_older: is_beyond || has_more, reach }));
            }
            _ if most >= MAX_BESIDE => return Ok(None),
            _ => most = (most * 8).min(MAX_BESIDE),
        }
    }
}

/// What lies between two times of which the later comes first is nothing, and no answer.
pub fn check_span(from_ms: Option<u64>, until_ms: Option<u64>) -> Result<(), &'static str> {
    match (from_ms, until_ms) {
        (Some(from), Some(until)) if from >= until => Err("is not before `until`: nothing lies between them"),
        _ => Ok(()),
    }
}

/// How far back an answer looks, and what is missing from it.
pub struct Reach {
    /// Of the history, with the gaps that concern what was asked; or why it was not asked.
    horizon: Result<Horizon, String>,
    /// Of the log, how far it was looked at.
    log: LogPage,
    /// The look ended before it came to what the history knows, or to the log's beginning.
    is_cut_short: bool,
    now_ms: u64,
}

impl Reach {
    pub fn words(&self) -> Vec<String> {
        match &self.horizon {
            Ok(horizon) => self.with_history(horizon),
            Err(why) => vec![format!("history: {why}; {}", self.of_log())],
        }
    }

    fn with_history(&self, horizon: &Horizon) -> Vec<String> {
        let begins = match horizon.begins_ms {
            Some(begins_ms) => format!("back to {}", words::when(begins_ms, self.now_ms)),
            None => "still empty".to_owned(),
        };
        let behind = match self.log.looked {
            0 => "up to now".to_owned(),
            looked => format!("and {} of Redis' log beyond it", words::count(looked as u64, "line", "lines")),
        };
        let missing = match horizon.gaps.len() as u64 + horizon.more_gaps {
            0 => "nothing is missing".to_owned(),
            gaps => words::count(gaps, "gap", "gaps"),
        };
        let mut texts = vec![format!("history: {begins}, {behind}; {missing}")];
        texts.extend(horizon.gaps.iter().map(|gap| of_gap(gap, self.now_ms)));
        texts.extend(of_more_gaps(horizon));
        if self.is_cut_short {
            let looked = words::count(self.log.looked as u64, "line", "lines");
            texts.push(format!("history: it is far behind, and only the newest {looked} beyond it were looked at"));
        }
        texts
    }

    /// How far back the log was read.
    fn of_log(&self) -> String {
        let log = &self.log;
        if log.looked == 0 {
            return "the log of attempts is empty".to_owned();
        }
        let lines = words::count(log.looked as u64, "line", "lines");
        let back_to = log.back_to_ms.map_or_else(|| "an unknown time".to_owned(), |at| words::when(at, self.now_ms));
        let told = match (log.reached_end, log.was_cut) {
            (true, false) => format!("attempt log: {lines}, all there ever were"),
            (true, true) => format!("attempt log: {lines}, back to {back_to}; older ones were dropped"),
            (false, _) => format!("attempt log: looked at {lines}, back to {back_to}; there are older ones"),
        };
        match log.unreadable {
            0 => told,
            unreadable => {
                format!("{told}; {unreadable} of them were written by another version of Herald and could not be read")
            }
        }
    }

    fn back_to_ms(&self) -> Option<u64> {
        self.horizon.as_ref().ok().and_then(|horizon| horizon.begins_ms).or(self.log.back_to_ms)
    }

    /// The history was asked, so that pages fit together.
    pub fn is_from_history(&self) -> bool {
        self.horizon.is_ok()
    }

    /// The look into the log ended before it came to what the history knows, or to the log's beginning.
    pub fn is_cut_short(&self) -> bool {
        self.is_cut_short
    }

    /// A merchant learns nothing of what others send, nor where the history is and why it fails.
    pub fn view(&self, viewer: Viewer) -> ReachView {
        let gaps = self.horizon.as_ref().map(|horizon| horizon.gaps.as_slice()).unwrap_or_default();
        let says = if viewer.is_operator() { self.words() } else { self.words_for_merchant(gaps) };
        let is_whole = match &self.horizon {
            Ok(horizon) => horizon.is_whole() && !self.is_cut_short,
            Err(_) => self.log.reached_end && !self.log.was_cut,
        };
        ReachView {
            back_to: self.back_to_ms().map(Time),
            is_whole,
            from_history: self.horizon.is_ok(),
            gaps: gaps.iter().map(|gap| GapView::of(gap, viewer)).collect(),
            says,
        }
    }

    fn words_for_merchant(&self, gaps: &[Gap]) -> Vec<String> {
        let between = |gap: &Gap| {
            let (from, until) = (words::when(gap.from_ms, self.now_ms), words::when(gap.until_ms, self.now_ms));
            format!("some is missing between {from} and {until}")
        };
        let back_to = self.back_to_ms().map(|at_ms| format!("back to {}", words::when(at_ms, self.now_ms)));
        let more = self.horizon.as_ref().ok().and_then(of_more_gaps);
        back_to.into_iter().chain(gaps.iter().map(between)).chain(more).collect()
    }
}

/// That there are older gaps than those that are named.
fn of_more_gaps(horizon: &Horizon) -> Option<String> {
    let more = words::count(horizon.more_gaps, "older gap", "older gaps");
    (horizon.more_gaps > 0).then(|| format!("and {more}; ask for a shorter time to see which"))
}

fn of_gap(gap: &Gap, now_ms: u64) -> String {
    let lines = match gap.lines {
        0 => "an unknown number of lines".to_owned(),
        lines => words::count(lines, "line", "lines"),
    };
    let (from, until) = (words::when(gap.from_ms, now_ms), words::when(gap.until_ms, now_ms));
    format!("gap: {lines} between {from} and {until}: {}", gap.why)
}

/// How far back an answer looks, so that silence is not taken for "never happened".
#[derive(Serialize, ToSchema)]
pub struct ReachView {
    /// Nothing older was looked at. Null while nothing has happened.
    back_to: Option<Time>,
    /// Nothing that happened since then is missing; without the history, nothing older was ever there either.
    is_whole: bool,
    /// Whether the history of deliveries was asked, or the log in Redis alone.
    from_history: bool,
    gaps: Vec<GapView>,
    /// The same in words.
    says: Vec<String>,
}

/// A time of which not everything is known.
#[derive(Serialize, ToSchema)]
pub struct GapView {
    from: Time,
    until: Time,
    /// How many attempts and ends are missing, of all accounts; null where that is not known. This and the next for operators.
    lines: Option<u64>,
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schema(required = false)]
    why: String,
}

impl GapView {
    pub fn of(gap: &Gap, viewer: Viewer) -> Self {
        Self {
            from: Time(gap.from_ms),
            until: Time(gap.until_ms),
            lines: Some(gap.lines).filter(|lines| viewer.is_operator() && *lines > 0),
            why: if viewer.is_operator() { gap.why.clone() } else { String::new() },
        }
    }
}

/// One attempt, or one end that no attempt tells.
#[derive(Serialize, ToSchema)]
pub struct ToldView {
    at: Time,
    /// `delivered` and `failed` are attempts; `dead`, `skipped`, `no_endpoint`, `redelivered` and `discarded` are ends.
    kind: String,
    /// The delivery; of an event that is owed to nobody, its entry.
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    intent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    account: Option<String>,
    /// Of an end.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schema(required = false)]
    event_type: String,
    /// Its number; of an end, how many there were until then.
    attempt: u32,
    /// Of an attempt, in a word, with the status of the answer if there was one: `server_failed (500)`.
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    took_us: Option<u64>,
    /// The cause behind the outcome, or why it ended. For operators.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schema(required = false)]
    detail: String,
}

impl ToldView {
    pub fn of(told: &Told, viewer: Viewer) -> Self {
        // How long a failure took tells how it came about.
        let is_told = viewer.cause(&told.outcome) == told.outcome;
        Self {
            at: Time(told.at_ms),
            kind: told.kind.clone(),
            id: id_of(told),
            event: told.event.as_ref().map(ToString::to_string),
            intent: told.intent.as_ref().map(ToString::to_string),
            account: told.account.as_ref().map(ToString::to_string),
            event_type: told.event_type.clone(),
            attempt: told.attempt,
            outcome: told.is_attempt().then(|| outcome(told, viewer)),
            took_us: Some(told.took_us).filter(|_| told.is_attempt() && is_told),
            detail: if viewer.is_operator() { told.detail.clone() } else { String::new() },
        }
    }
}

/// The delivery; of an event that is owed to nobody, its entry.
pub fn id_of(told: &Told) -> String {
    told.delivery().map_or_else(|| told.entry.to_string(), |id| id.to_string())
}

/// An attempt's outcome in a word, as `Outcome` writes itself.
pub fn outcome(told: &Told, viewer: Viewer) -> String {
    let cause = viewer.cause(&told.outcome);
    match cause.split_once(':') {
        Some((class, kind)) => format!("{class} ({kind})"),
        None => cause,
    }
}

/// One attempt or end, in a line, for operators.
pub fn words_of(told: &Told, now_ms: u64) -> String {
    let when = words::when(told.at_ms, now_ms);
    match told.is_attempt() {
        true => {
            format!("{:>2}  {when}  {}", told.attempt, attempt_words(told))
        }
        false => format!("{when}  {}", told.detail),
    }
}

/// The same, beside its time.
pub fn words_beside_time(told: &Told) -> String {
    match told.is_attempt() {
        true => format!("attempt {}: {}", told.attempt, attempt_words(told)),
        false => told.detail.clone(),
    }
}

fn attempt_words(told: &Told) -> String {
    let took = words::span(told.took_us / 1_000);
    let text = format!("{} after {took}  {}", outcome(told, Viewer::Operator), told.detail);
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::facts::log::{LogLine, Logged};

    const NOW_MS: u64 = 1_700_000_000_000;

    fn reach(horizon: Result<Horizon, String>) -> Reach {
        let log = LogPage { looked: 12, back_to_ms: Some(NOW_MS - 9_000), reached_end: true, ..LogPage::default() };
        Reach { horizon, log, is_cut_short: false, now_ms: NOW_MS }
    }

    fn json(reach: &Reach, viewer: Viewer) -> serde_json::Value {
        serde_json::to_value(reach.view(viewer)).unwrap()
    }

    #[test]
    fn a_gap_makes_an_answer_less_than_whole_and_merchants_learn_only_when_it_was() {
        let gap = Gap { from_ms: NOW_MS - 5_000, until_ms: NOW_MS - 4_000, lines: 7, why: "a secret place".to_owned() };
        let horizon =
            Horizon { begins_ms: Some(NOW_MS - 60_000), read: BTreeMap::new(), gaps: vec![gap], more_gaps: 4 };
        let reach = reach(Ok(horizon));
        let (told, short) = (json(&reach, Viewer::Operator), json(&reach, Viewer::Merchant));
        assert_eq!((&told["is_whole"], &told["gaps"][0]["lines"]), (&false.into(), &7.into()));
        assert_eq!(told["back_to"], "2023-11-14T22:12:20.000Z");
        assert!(told["says"][1].as_str().unwrap().contains("a secret place"), "{told}");
        assert!(told["says"][0].as_str().unwrap().ends_with("; 5 gaps"), "{told}");
        for view in [&told, &short] {
            assert!(view["says"][2].as_str().unwrap().starts_with("and 4 older gaps"), "{view}");
        }
        assert_eq!((&short["gaps"][0]["from"], &short["gaps"][0]["lines"]), (&told["gaps"][0]["from"], &().into()));
        assert!(!short.to_string().contains("secret") && !short.to_string().contains("12 lines"), "{short}");
    }

    #[test]
    fn what_is_of_one_millisecond_comes_in_the_order_of_the_stream_and_its_end_after_its_attempts() {
        let told = |entry: &str, kind: &str, attempt| {
            let line =
                br#"["17-1:ep_a","evt_1","pi_1","acc_1",1,1700000000000,5,{"kind":"delivered","status":200},""]"#;
            let told = Told::of(&Logged::Attempt(LogLine::read(line).unwrap()));
            Told { entry: entry.parse().unwrap(), kind: kind.to_owned(), attempt, ..told }
        };
        let right = [
            told("17-2", "failed", 1),
            told("17-2", "failed", 2),
            told("17-2", "dead", 2),
            told("17-2", "redelivered", 2),
            told("17-10", "delivered", 1),
        ];
        let mut sorted = right.to_vec();
        sorted.rotate_left(2);
        sorted.swap(0, 2);
        sorted.sort_by_key(Told::order);
        assert_eq!(sorted, right);
    }

    #[test]
    fn without_the_history_the_log_says_how_far_it_goes() {
        let reach = reach(Err("off (history.url is empty)".to_owned()));
        assert_eq!(reach.words(), ["history: off (history.url is empty); attempt log: 12 lines, all there ever were"]);
        let told = json(&reach, Viewer::Merchant);
        assert_eq!((&told["is_whole"], &told["from_history"]), (&true.into(), &false.into()));
        assert!(!told.to_string().contains("history.url"), "{told}");
    }

    #[test]
    fn a_merchant_cannot_tell_how_an_attempt_failed_before_there_was_an_answer() {
        let line = br#"["17-1:ep_a","evt_1","pi_1","acc_1",2,1700000000000,5000,{"kind":"dns_failed"},"no such name"]"#;
        let told = Told::of(&Logged::Attempt(LogLine::read(line).unwrap()));
        let view = |viewer| serde_json::to_value(ToldView::of(&told, viewer)).unwrap();
        let (operator, merchant) = (view(Viewer::Operator), view(Viewer::Merchant));
        assert_eq!((&operator["outcome"], &operator["took_us"]), (&"dns_failed".into(), &5_000.into()));
        assert_eq!(merchant["outcome"], "unreachable");
        assert!(merchant.get("took_us").is_none() && merchant.get("detail").is_none(), "{merchant}");
    }
}
