//! Dead letters: list, look at, send again, drop, export. Changes go through the partition's owner.

use std::{collections::BTreeMap, time::Duration};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{
    args::{Consent, Go},
    asking::{Asking, BATCH, Done, Progress},
    story::story_of_dead,
};
use crate::{
    config::parse_duration,
    facts::{
        delivery::DeadLetter,
        id::{AccountId, DeliveryId, EndpointId},
        retry::DeadReason,
    },
    store::{
        protocol::Asked,
        queries::{DeadCursor, DeadOrder, DeadRange, Letter, MAX_PAGE, Queries},
    },
    surface::{Context, Format, VerbError, json_line, note, words},
};

/// How many letters a count behind a filter without an index reads before it says "more than".
const MAX_COUNT_LOOK: u64 = 10_000;

/// How many letters `list` reads while it looks for those that match its filter.
const MAX_LIST_LOOK: u64 = 10_000;

/// Lines of the sample that a dry run shows.
const SAMPLE: usize = 5;

#[derive(Debug, Subcommand)]
pub enum DeadLetterVerb {
    /// Show dead letters, the newest first, and how many there are by reason
    List(ListArgs),
    /// Show one with its whole history
    Show {
        /// ENTRY:ENDPOINT
        id: DeliveryId,
    },
    /// Send one again, or all that match a filter, with the same webhook-id and their history
    Redeliver(JobArgs),
    /// Drop one, or all that match a filter, for good
    Discard(JobArgs),
    /// Write all that match a filter as JSON lines, the oldest first
    Export {
        #[command(flatten)]
        filter: Filter,
        /// Stop after this many
        #[arg(long, value_name = "N")]
        limit: Option<u64>,
    },
}

#[derive(Debug, Clone, Default, Args)]
pub struct Filter {
    /// Of this account
    #[arg(long, value_name = "ACCOUNT")]
    account: Option<AccountId>,
    /// To this endpoint
    #[arg(long, value_name = "ENDPOINT")]
    endpoint: Option<EndpointId>,
    /// exhausted, expired, gone, disabled, deleted or released
    #[arg(long, value_name = "REASON", value_parser = dead_reason)]
    dead_reason: Option<DeadReason>,
    /// Given up longer ago than this: 90s, 2h, 7d
    #[arg(long, value_name = "AGE", value_parser = parse_duration)]
    older_than: Option<Duration>,
    /// Given up more recently than this
    #[arg(long, value_name = "AGE", value_parser = parse_duration)]
    newer_than: Option<Duration>,
}

#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    filter: Filter,
    /// Show at most this many
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: u64,
}

#[derive(Debug, Args)]
pub struct JobArgs {
    /// ENTRY:ENDPOINT; or a filter
    #[arg(conflicts_with_all = ["account", "endpoint", "dead_reason", "older_than", "newer_than", "limit", "all"])]
    id: Option<DeliveryId>,
    #[command(flatten)]
    filter: Filter,
    /// Every dead letter there is
    #[arg(long)]
    all: bool,
    /// Stop after this many, the oldest first
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    #[command(flatten)]
    consent: Consent,
}

/// What a job does to each letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Job {
    Redeliver,
    Discard,
}

/// A dead letter as `-o json` shows it. An event's body is always UTF-8.
#[derive(Serialize)]
struct View<'a> {
    id: &'a DeliveryId,
    at_ms: u64,
    #[serde(flatten)]
    letter: Option<&'a DeadLetter>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unreadable: Option<&'a str>,
}

pub async fn run(context: &Context, verb: DeadLetterVerb) -> anyhow::Result<()> {
    match verb {
        DeadLetterVerb::List(args) => list(context, args).await,
        DeadLetterVerb::Show { id } => show(context, &id).await,
        DeadLetterVerb::Redeliver(args) => job(context, Job::Redeliver, args).await,
        DeadLetterVerb::Discard(args) => job(context, Job::Discard, args).await,
        DeadLetterVerb::Export { filter, limit } => export(context, &filter, limit).await,
    }
}

async fn queries(context: &Context) -> anyhow::Result<Queries> {
    Ok(Queries::new(context.connect().await?, context.keys()?))
}

async fn list(context: &Context, args: ListArgs) -> anyhow::Result<()> {
    let mut queries = queries(context).await?;
    let now_ms = queries.now_ms().await?;
    let range = args.filter.range(now_ms);
    let there = queries.count_dead(&range).await?;
    let mut walk = Walk::new(range, DeadOrder::NewestFirst);
    let (mut shown, mut reasons) = (Vec::new(), BTreeMap::<&str, u64>::new());
    while let Some(letters) = walk.next(&mut queries, MAX_LIST_LOOK).await? {
        for letter in letters.into_iter().filter(|letter| args.filter.fits(letter)) {
            *reasons.entry(reason_name(&letter)).or_default() += 1;
            if (shown.len() as u64) < args.limit {
                shown.push(letter);
            }
        }
    }
    note(headline(there, &walk, &reasons, &args.filter, shown.len() as u64));
    let mut rows = context.output.list(&["GIVEN UP", "ID", "INTENT", "REASON", "ATTEMPTS", "LAST OUTCOME"]);
    for letter in &shown {
        rows.push(&view(letter), || row(letter, now_ms))?;
    }
    rows.finish()?;
    if let Some(first) = shown.first() {
        note(format_args!("\nWhy:        herald dead-letter show {}", first.id));
        note(format_args!("Try first:  herald dead-letter redeliver {} --dry-run", args.filter.as_flags()));
    }
    Ok(())
}

fn headline(there: u64, walk: &Walk, reasons: &BTreeMap<&str, u64>, filter: &Filter, shown: u64) -> String {
    if there == 0 {
        return "no dead letters".to_owned();
    }
    let mut reasons: Vec<_> = reasons.iter().collect();
    reasons.sort_by(|one, other| other.1.cmp(one.1));
    let fitting: u64 = reasons.iter().map(|(_, n)| **n).sum();
    let by_reason: Vec<String> = reasons.iter().map(|(name, n)| format!("{} {name}", words::number(**n))).collect();
    let letters = words::count(there, "dead letter", "dead letters");
    let looked = match walk.looked < there {
        true => format!(" (of the newest {})", words::number(walk.looked)),
        false => String::new(),
    };
    let fit = if filter.needs_a_look() { format!("{} fit{looked}: ", words::number(fitting)) } else { String::new() };
    let cut = if shown < fitting { format!("; {} shown", words::number(shown)) } else { String::new() };
    let looked = if filter.needs_a_look() { String::new() } else { looked };
    format!("{letters}{}{fit}{}{looked}{cut}", if fitting > 0 { ": " } else { "" }, by_reason.join(", "))
}

fn row(letter: &Letter, now_ms: u64) -> Vec<String> {
    let (id, at) = (letter.id.to_string(), words::ago(letter.at_ms, now_ms));
    match &letter.letter {
        Ok(dead) => {
            let delivery = &dead.delivery;
            let last = delivery.history.last().map_or("never tried".to_owned(), |last| last.outcome.to_string());
            let attempts = delivery.attempts_in_all().to_string();
            vec![at, id, delivery.intent.to_string(), dead.reason.name().to_owned(), attempts, last]
        }
        Err(why) => vec![at, id, String::new(), "unreadable".to_owned(), String::new(), why.clone()],
    }
}

async fn show(context: &Context, id: &DeliveryId) -> anyhow::Result<()> {
    let mut queries = queries(context).await?;
    let now_ms = queries.now_ms().await?;
    let Some(letter) = queries.dead_letter(id).await? else {
        let text = format!("there is no dead letter {id}: `herald delivery show {id}` says where it stands");
        return Err(VerbError::NotFound(text).into());
    };
    context.output.one(&view(&letter), &story_of_dead(&letter, now_ms))?;
    if context.output.format() == Format::Table {
        note(format_args!("\nAgain:  herald dead-letter redeliver {id} --reason '…'"));
        note(format_args!("Drop:   herald dead-letter discard {id} --reason '…'"));
    }
    Ok(())
}

async fn job(context: &Context, job: Job, args: JobArgs) -> anyhow::Result<()> {
    let mut queries = queries(context).await?;
    if let Some(id) = &args.id {
        return one(context, &mut queries, job, id, &args.consent).await;
    }
    if args.filter.is_empty() && !args.all && args.limit.is_none() {
        let text = "name a dead letter, a filter, or --all".to_owned();
        return Err(VerbError::Usage(text).into());
    }
    // Fixed now, so that a letter that is given up again meanwhile is not taken twice.
    let range = args.filter.range(queries.now_ms().await?);
    let (fitting, is_exact, sample) = measure(&mut queries, &args, &range).await?;
    if fitting == 0 {
        note("no dead letter matches: nothing to do");
        return context.output.one(&Done::default(), &[("done", "0".to_owned())]);
    }
    for letter in &sample {
        let intent = letter.letter.as_ref().map_or(String::new(), |dead| dead.delivery.intent.to_string());
        note(format_args!("  {} {intent} {}", letter.id, reason_name(letter)));
    }
    if fitting > sample.len() as u64 {
        note("  …");
    }
    let about = if is_exact { "" } else { "more than " };
    let letters = words::count(fitting, "dead letter", "dead letters");
    if args.consent.confirm(&format!("{} {about}{letters}", job.verb()))? == Go::DryRun {
        return Ok(());
    }
    let asking = Asking::connect(context, args.consent.mark()).await?;
    let done = carry_out(&mut queries, &asking, job, &args, range).await?;
    context.output.one(&done, &[(job.past(), words::number(done.done)), ("refused", words::number(done.refused))])?;
    match done.refused {
        0 => Ok(()),
        n => {
            Err(VerbError::Refused(format!("{} refused; the reasons are above", words::count(n, "was", "were"))).into())
        }
    }
}

async fn one(
    context: &Context,
    queries: &mut Queries,
    job: Job,
    id: &DeliveryId,
    consent: &Consent,
) -> anyhow::Result<()> {
    if queries.dead_letter(id).await?.is_none() {
        let text = format!("there is no dead letter {id}: `herald delivery show {id}` says where it stands");
        return Err(VerbError::NotFound(text).into());
    }
    if consent.confirm(&format!("{} the dead letter {id}", job.verb()))? == Go::Ahead {
        Asking::connect(context, consent.mark()).await?.one(&job.asked(id)).await?;
        match job {
            Job::Redeliver => note(format_args!("{id} redelivered; `herald delivery show {id}` follows it")),
            Job::Discard => note(format_args!("{id} discarded")),
        }
    }
    Ok(())
}

/// How many letters a job is about (with a filter without an index, counted only so far), and the first few of them.
async fn measure(queries: &mut Queries, args: &JobArgs, range: &DeadRange) -> anyhow::Result<(u64, bool, Vec<Letter>)> {
    let limit = args.limit.unwrap_or(u64::MAX);
    let indexed = queries.count_dead(range).await?;
    let (mut fitting, mut sample) = (0, Vec::new());
    let mut walk = Walk::new(range.clone(), DeadOrder::OldestFirst);
    while let Some(letters) = walk.next(queries, MAX_COUNT_LOOK).await? {
        for letter in letters.into_iter().filter(|letter| args.filter.fits(letter)) {
            fitting += 1;
            if sample.len() < SAMPLE {
                sample.push(letter);
            }
        }
        if fitting >= limit || !args.filter.needs_a_look() {
            break;
        }
    }
    match args.filter.needs_a_look() {
        true => Ok((fitting.min(limit), walk.looked >= indexed || fitting >= limit, sample)),
        false => Ok((indexed.min(limit), true, sample)),
    }
}

async fn carry_out(
    queries: &mut Queries,
    asking: &Asking,
    job: Job,
    args: &JobArgs,
    range: DeadRange,
) -> anyhow::Result<Done> {
    let mut done = Done::default();
    let selected = select(queries, args, range).await?;
    let selected = in_stream_order(selected, args.limit);
    let progress = Progress::begin(selected.len() as u64);
    for batch in selected.chunks(BATCH) {
        let batch: Vec<_> = batch.iter().map(|id| (id.to_string(), job.asked(id))).collect();
        asking.batch(&batch, &mut done).await?;
        progress.note(done, job.past());
    }
    Ok(done)
}

/// The letters that a job works on, with the times at which they were given up: only ids, so even a million letters
/// take a hundred MB. It goes past its limit to the end of a millisecond, because within one the index has no order of
/// ours.
async fn select(queries: &mut Queries, args: &JobArgs, range: DeadRange) -> anyhow::Result<Vec<(u64, DeliveryId)>> {
    let limit = args.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let mut selected: Vec<(u64, DeliveryId)> = Vec::new();
    let mut walk = Walk::new(range, DeadOrder::OldestFirst);
    while let Some(letters) = walk.next(queries, u64::MAX).await? {
        for letter in letters.into_iter().filter(|letter| args.filter.fits(letter)) {
            if selected.len() >= limit && selected.last().is_none_or(|(at_ms, _)| *at_ms != letter.at_ms) {
                return Ok(selected);
            }
            selected.push((letter.at_ms, letter.id));
        }
    }
    Ok(selected)
}

/// The oldest ones, sorted as their entries lie in the stream: an intent's events go out again in their order.
fn in_stream_order(mut selected: Vec<(u64, DeliveryId)>, limit: Option<u64>) -> Vec<DeliveryId> {
    selected.sort_unstable();
    selected.truncate(limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX)));
    let mut ids: Vec<DeliveryId> = selected.into_iter().map(|(_, id)| id).collect();
    ids.sort_unstable();
    ids
}

async fn export(context: &Context, filter: &Filter, limit: Option<u64>) -> anyhow::Result<()> {
    let mut queries = queries(context).await?;
    let mut walk = Walk::new(filter.range(queries.now_ms().await?), DeadOrder::OldestFirst);
    let (mut written, limit) = (0, limit.unwrap_or(u64::MAX));
    while let Some(letters) = walk.next(&mut queries, u64::MAX).await? {
        for letter in letters.iter().filter(|letter| filter.fits(letter)) {
            if written == limit {
                break;
            }
            written += 1;
            context.output.text(&json_line(&view(letter))?)?;
        }
        if written == limit {
            break;
        }
    }
    note(format_args!("{} written", words::count(written, "dead letter", "dead letters")));
    Ok(())
}

/// Goes through a range page by page.
struct Walk {
    range: DeadRange,
    order: DeadOrder,
    after: Option<DeadCursor>,
    is_over: bool,
    looked: u64,
}

impl Walk {
    fn new(range: DeadRange, order: DeadOrder) -> Self {
        Self { range, order, after: None, is_over: false, looked: 0 }
    }

    /// The next page; `None` at the end, or after a look at `max_look` letters.
    async fn next(&mut self, queries: &mut Queries, max_look: u64) -> anyhow::Result<Option<Vec<Letter>>> {
        if self.is_over || self.looked >= max_look {
            return Ok(None);
        }
        let page = queries.dead(&self.range, self.order, self.after.as_ref(), MAX_PAGE).await?;
        self.looked += page.letters.len() as u64;
        self.is_over = page.next.is_none();
        self.after = page.next;
        Ok(Some(page.letters))
    }
}

impl Filter {
    pub fn range(&self, now_ms: u64) -> DeadRange {
        let before = |age: Option<Duration>| age.map(|age| now_ms.saturating_sub(age.as_millis() as u64));
        DeadRange {
            endpoint: self.endpoint.clone(),
            from_ms: before(self.newer_than).unwrap_or(0),
            until_ms: before(self.older_than).unwrap_or(now_ms),
        }
    }

    fn fits(&self, letter: &Letter) -> bool {
        if !self.needs_a_look() {
            return true;
        }
        letter.letter.as_ref().is_ok_and(|dead| {
            self.account.as_ref().is_none_or(|account| *account == dead.delivery.account)
                && self.dead_reason.is_none_or(|reason| reason == dead.reason)
        })
    }

    /// Time and endpoint have an index; these two are read from each letter.
    fn needs_a_look(&self) -> bool {
        self.account.is_some() || self.dead_reason.is_some()
    }

    fn is_empty(&self) -> bool {
        !self.needs_a_look() && self.endpoint.is_none() && self.older_than.is_none() && self.newer_than.is_none()
    }

    /// As they would be typed again.
    pub fn as_flags(&self) -> String {
        let age = |name: &str, age: Option<Duration>| match age?.as_millis() {
            ms if ms % 1000 == 0 => Some(format!("--{name} {}s", ms / 1000)),
            ms => Some(format!("--{name} {ms}ms")),
        };
        let flags = [
            self.account.as_ref().map(|account| format!("--account {account}")),
            self.endpoint.as_ref().map(|endpoint| format!("--endpoint {endpoint}")),
            self.dead_reason.map(|reason| format!("--dead-reason {}", reason.name())),
            age("older-than", self.older_than),
            age("newer-than", self.newer_than),
        ];
        let flags: Vec<String> = flags.into_iter().flatten().collect();
        if flags.is_empty() { "--all".to_owned() } else { flags.join(" ") }
    }
}

impl Job {
    fn asked(self, id: &DeliveryId) -> Asked {
        match self {
            Self::Redeliver => Asked::Redeliver(id.clone()),
            Self::Discard => Asked::Discard(id.clone()),
        }
    }

    fn verb(self) -> &'static str {
        match self {
            Self::Redeliver => "send again",
            Self::Discard => "drop for good",
        }
    }

    fn past(self) -> &'static str {
        match self {
            Self::Redeliver => "redelivered",
            Self::Discard => "discarded",
        }
    }
}

fn dead_reason(text: &str) -> Result<DeadReason, String> {
    let names = || DeadReason::ALL.map(DeadReason::name).join(", ");
    let known = DeadReason::ALL.into_iter().find(|reason| reason.name() == text);
    known.ok_or_else(|| format!("there is no such reason; use one of {}", names()))
}

fn reason_name(letter: &Letter) -> &'static str {
    letter.letter.as_ref().map_or("unreadable", |dead| dead.reason.name())
}

fn view(letter: &Letter) -> View<'_> {
    let body = letter.letter.as_ref().ok().map(|dead| String::from_utf8_lossy(&dead.delivery.body).into_owned());
    let unreadable = letter.letter.as_ref().err().map(String::as_str);
    View { id: &letter.id, at_ms: letter.at_ms, letter: letter.letter.as_ref().ok(), body, unreadable }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_job_takes_up_goes_out_as_it_lies_in_the_stream() {
        let letter = |at_ms: u64, id: &str| (at_ms, id.parse().unwrap());
        // As the index has them: letters of one settle share their time and are sorted as text.
        let selected =
            vec![letter(5, "7-10:ep_a"), letter(5, "7-9:ep_a"), letter(6, "7-2:ep_a"), letter(6, "10-0:ep_a")];
        let in_order =
            |limit| in_stream_order(selected.clone(), limit).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(in_order(None), ["7-2:ep_a", "7-9:ep_a", "7-10:ep_a", "10-0:ep_a"]);
        assert_eq!(in_order(Some(1)), ["7-9:ep_a"]);
        assert_eq!(in_order(Some(3)), ["7-2:ep_a", "7-9:ep_a", "7-10:ep_a"]);
    }
}
