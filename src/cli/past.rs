//! What was tried and how it ended: from the history, as far as that has read, and beyond from the log in Redis. An answer
//! begins with how far back it looks, so that silence is not taken for "never happened".

use std::collections::HashSet;

use crate::{
    config::HistoryConfig,
    history::{Access, Database, Gap, HistoryError, Horizon, Reader, Told, Wanted},
    store::queries::{LogFilter, LogPage, Queries},
    surface::{Context, words},
};

/// How many lines of the log one look reads, newest first: a second's work for Redis and us, and hours of traffic.
const MAX_LOG_LOOK: usize = 100_000;

/// The newest first.
pub struct Past {
    pub told: Vec<Told>,
    /// There is more than was asked for.
    pub has_more: bool,
    /// In words, how far back it looks; and what is missing.
    pub how_far: Vec<String>,
}

/// Up to `limit` of what is wanted. Where the history cannot be asked, the answer says why, and comes from Redis alone.
pub async fn look(context: &Context, queries: &mut Queries, wanted: &Wanted, limit: usize) -> anyhow::Result<Past> {
    let now_ms = queries.now_ms().await?;
    let settings = &context.config.history;
    let asked = ask(settings, context, wanted, limit, now_ms).await;
    let known = asked.as_ref().ok().map(|(horizon, _)| horizon.line);
    let filter = LogFilter {
        delivery: wanted.delivery.clone(),
        event: wanted.event.clone(),
        intent: wanted.intent.clone(),
        endpoint: wanted.endpoint.clone(),
        account: wanted.account.clone(),
        from_ms: wanted.from_ms,
        until_ms: wanted.until_ms,
        after: known,
    };
    let log = queries.attempts(&filter, limit, MAX_LOG_LOOK).await?;
    let mut told: Vec<Told> = log.lines.iter().map(Told::of).collect();
    let mut how_far = Vec::new();
    match asked {
        Ok((horizon, rows)) => {
            how_far.extend(of_history(&horizon, &log, wanted, now_ms));
            told.extend(rows);
        }
        Err(why) => how_far.push(format!("{why}; {}", of_log(&log, now_ms))),
    }
    // The log of a Redis that lost some is read again from its beginning, so a line may be in both.
    let mut seen = HashSet::new();
    told.retain(|one| seen.insert((one.at_ms, one.kind.clone(), one.entry, one.endpoint.clone(), one.attempt)));
    told.sort_by_key(|one| std::cmp::Reverse(one.at_ms));
    let has_more = told.len() > limit;
    told.truncate(limit);
    Ok(Past { told, has_more, how_far })
}

/// The history's answer, or why there is none.
async fn ask(
    settings: &HistoryConfig,
    context: &Context,
    wanted: &Wanted,
    limit: usize,
    now_ms: u64,
) -> Result<(Horizon, Vec<Told>), String> {
    let Some(url) = &settings.url else { return Err("history: off (history.url is empty)".to_owned()) };
    let ask = async || -> Result<_, HistoryError> {
        let reader = Reader::new(Database::open(url, &context.config.stream.name, Access::Read).await?);
        let horizon = reader.horizon(keep_days(settings), now_ms).await?;
        Ok((horizon, reader.find(wanted, limit.saturating_add(1)).await?))
    };
    ask().await.map_err(|error| format!("history: {error}"))
}

pub fn keep_days(settings: &HistoryConfig) -> u64 {
    settings.keep.as_secs().div_ceil(86_400)
}

fn of_history(horizon: &Horizon, log: &LogPage, wanted: &Wanted, now_ms: u64) -> Vec<String> {
    let mut texts = Vec::new();
    let begins = match horizon.begins_ms {
        Some(begins_ms) => format!("back to {}", words::when(begins_ms, now_ms)),
        None => "still empty".to_owned(),
    };
    let behind = match log.looked {
        0 => "up to now".to_owned(),
        looked => format!("and {} of Redis' log beyond it", words::count(looked as u64, "line", "lines")),
    };
    let gaps: Vec<&Gap> = horizon.gaps.iter().filter(|gap| concerns(gap, wanted)).collect();
    let missing = match gaps.len() {
        0 => "nothing is missing".to_owned(),
        gaps => words::count(gaps as u64, "gap", "gaps"),
    };
    texts.push(format!("history: {begins}, {behind}; {missing}"));
    texts.extend(gaps.into_iter().map(|gap| of_gap(gap, now_ms)));
    if !log.reached_end {
        let looked = words::count(log.looked as u64, "line", "lines");
        texts.push(format!("history: it is far behind, and only the newest {looked} beyond it were looked at"));
    }
    texts
}

fn concerns(gap: &Gap, wanted: &Wanted) -> bool {
    wanted.from_ms.is_none_or(|from| gap.until_ms >= from) && wanted.until_ms.is_none_or(|until| gap.from_ms < until)
}

pub fn of_gap(gap: &Gap, now_ms: u64) -> String {
    let lines = match gap.lines {
        0 => "an unknown number of lines".to_owned(),
        lines => words::count(lines, "line", "lines"),
    };
    let (from, until) = (words::when(gap.from_ms, now_ms), words::when(gap.until_ms, now_ms));
    format!("gap: {lines} between {from} and {until}: {}", gap.why)
}

/// How far back the log was read.
fn of_log(log: &LogPage, now_ms: u64) -> String {
    if log.looked == 0 {
        return "the log of attempts is empty".to_owned();
    }
    let lines = words::count(log.looked as u64, "line", "lines");
    let back_to = log.back_to_ms.map_or_else(|| "an unknown time".to_owned(), |at| words::when(at, now_ms));
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

/// One attempt or end, in a line.
pub fn words_of(told: &Told, now_ms: u64) -> String {
    let when = words::when(told.at_ms, now_ms);
    match told.is_attempt() {
        true => {
            let took = words::span(told.took_us / 1_000);
            let text = format!("{:>2}  {when}  {} after {took}  {}", told.attempt, told.outcome(), told.detail);
            text.trim_end().to_owned()
        }
        false => format!("{when}  {}", told.detail),
    }
}
