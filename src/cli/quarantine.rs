//! The quarantine: stream entries that are not valid events. Changes go through the partition's owner.

use clap::{Args, Subcommand};

use super::{
    args::{Consent, Go},
    asking::{self, Asking, BATCH, Done},
};
use crate::{
    facts::{
        audit::{Act, Begun},
        event::intent_in,
        id::EntryId,
    },
    store::{
        keys::PartitionKeys,
        protocol::Asked,
        queries::{FoundQuarantined, Partitions, QuarantinePlace, QuarantineSide, Quarantined},
    },
    surface::{Context, VerbError, audited, note, of_those_that_answer, words},
    view::quarantine::QuarantineView,
};

/// Bytes of an entry's body that a list shows.
const PREVIEW_CHARS: usize = 60;

#[derive(Debug, Subcommand)]
pub enum QuarantineVerb {
    /// Show the entries in quarantine, the oldest first
    List {
        /// Show at most this many
        #[arg(long, value_name = "N", default_value_t = 50)]
        limit: usize,
    },
    /// Show one with its body
    Show {
        /// Its id in the stream
        entry: EntryId,
    },
    /// Put one, or all, back at the stream's end: for when Herald refused them wrongly
    Requeue(JobArgs),
    /// Drop one, or all, for good
    Discard(JobArgs),
}

#[derive(Debug, Args)]
pub struct JobArgs {
    /// Its id in the stream
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    entry: Option<EntryId>,
    /// Every entry in quarantine
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    consent: Consent,
}

#[derive(Debug, Clone, Copy)]
enum Job {
    Requeue,
    Discard,
}

pub async fn run(context: &Context, verb: QuarantineVerb) -> anyhow::Result<()> {
    let mut queries = context.partitions().await?;
    let done = match verb {
        QuarantineVerb::List { limit } => list(context, &mut queries, limit).await,
        QuarantineVerb::Show { entry } => show(context, &mut queries, entry).await,
        QuarantineVerb::Requeue(args) => job(context, &mut queries, Job::Requeue, args).await,
        QuarantineVerb::Discard(args) => job(context, &mut queries, Job::Discard, args).await,
    };
    of_those_that_answer(&queries, done)
}

async fn list(context: &Context, queries: &mut Partitions, limit: usize) -> anyhow::Result<()> {
    let (now_ms, there) = (queries.now_ms().await?, queries.count_quarantined().await?);
    note(match there {
        0 => "the quarantine is empty".to_owned(),
        n => words::count(n, "entry is not a valid event", "entries are not valid events"),
    });
    let are_many = queries.are_many();
    let titles = ["ENTRY", "SINCE", "WHAT IS WRONG", "BODY", "STREAM"];
    let mut rows = context.output.list(&titles[..titles.len() - usize::from(!are_many)]);
    let (mut after, mut left, mut first) = (None::<QuarantinePlace>, limit, None);
    while left > 0 {
        let (page, has_more) = queries.quarantine(QuarantineSide::After(after.as_ref()), left).await?;
        left -= page.len().min(left);
        for found in &page {
            first = first.or(Some(found.one.entry));
            let stream = are_many.then_some(found.stream.as_str());
            rows.push(&QuarantineView::of(&found.one, stream), || {
                let mut cells = cells(&found.one, now_ms);
                cells.extend(stream.map(str::to_owned));
                cells
            })?;
        }
        match page.into_iter().next_back() {
            Some(last) if has_more => after = Some(last.place),
            _ => break,
        }
    }
    rows.finish()?;
    if there > limit as u64 {
        note(format_args!("the first {} of {}: raise --limit", words::number(limit as u64), words::number(there)));
    }
    if let Some(entry) = first {
        note(format_args!("\nWhole:  herald quarantine show {entry}"));
    }
    Ok(())
}

fn cells(one: &Quarantined, now_ms: u64) -> Vec<String> {
    let body = String::from_utf8_lossy(&one.body);
    let preview: String = body.chars().take(PREVIEW_CHARS).collect();
    let more = if body.chars().nth(PREVIEW_CHARS).is_some() { "…" } else { "" };
    vec![one.entry.to_string(), words::ago(one.at_ms, now_ms), one.error.clone(), format!("{preview}{more}")]
}

async fn show(context: &Context, queries: &mut Partitions, entry: EntryId) -> anyhow::Result<()> {
    let now_ms = queries.now_ms().await?;
    let (keys, one) = found(queries, entry).await?;
    let kept = match one.cut {
        true if has_no_event(&one) => "its fields as text: there is no event in it to put back".to_owned(),
        true => format!(
            "only the first {} were kept: it cannot be put back, publish it anew",
            words::bytes(one.body.len() as u64)
        ),
        false => format!("all of its {}", words::bytes(one.body.len() as u64)),
    };
    context.output.one(
        &QuarantineView::of(&one, queries.are_many().then(|| keys.stream())),
        &[
            ("what is wrong", one.error.clone()),
            ("entry", one.entry.to_string()),
            ("since", words::when(one.at_ms, now_ms)),
            ("kept", kept),
            ("body", String::from_utf8_lossy(&one.body).into_owned()),
        ],
    )?;
    note(format_args!("\nDrop:      herald quarantine discard {entry} --reason '…'"));
    if !one.cut {
        note(format_args!("Put back:  herald quarantine requeue {entry} --reason '…'"));
    }
    Ok(())
}

/// Such an entry counts as cut, because what is kept of it is not an event.
fn has_no_event(one: &Quarantined) -> bool {
    one.error == "the entry has no field \"event\""
}

async fn job(context: &Context, queries: &mut Partitions, job: Job, args: JobArgs) -> anyhow::Result<()> {
    let Some(entry) = args.entry else { return all(context, queries, job, &args.consent).await };
    let (keys, one) = found(queries, entry).await?;
    if matches!(job, Job::Requeue) && one.cut {
        let why = match has_no_event(&one) {
            true => format!("{entry} has no field \"event\", so there is nothing to put back: have it published anew"),
            false => format!("only a part of {entry} was kept: publish it anew"),
        };
        return Err(VerbError::Refused(why).into());
    }
    let overtaken = match job {
        Job::Requeue => intent_in(&one.body).map_or_else(String::new, |intent| {
            format!(" (it keeps its place in the order; later events of {intent} may have been delivered meanwhile)")
        }),
        Job::Discard => String::new(),
    };
    if args.consent.confirm(&format!("{} the entry {entry}{overtaken}", job.verb()))? == Go::Ahead {
        let begun = args.consent.act(job.act()).target(entry);
        let begun = intent_in(&one.body).iter().fold(begun, Begun::intent);
        let ask =
            async |_: &mut _| Asking::connect(context, args.consent.mark()).await?.one(&keys, &job.asked(entry)).await;
        audited(context, begun, ask).await?;
        note(format_args!("{entry} {}", job.past()));
    }
    Ok(())
}

async fn all(context: &Context, queries: &mut Partitions, job: Job, consent: &Consent) -> anyhow::Result<()> {
    let there = queries.count_quarantined().await?;
    if there == 0 {
        note("the quarantine is empty: nothing to do");
        return Ok(());
    }
    let overtaken = match job {
        Job::Requeue => {
            " (they keep their places in the order; later events of the same intents may have been delivered meanwhile)"
        }
        Job::Discard => "",
    };
    let entries = words::count(there, "entry", "entries");
    if consent.confirm(&format!("{} {entries}{overtaken}", job.verb()))? == Go::DryRun {
        return Ok(());
    }
    let begun = consent.act(job.act()).filter("--all").count(there);
    let carry_out = async |tally: &mut _| {
        let asking = asking::Job::begin(context, consent.mark(), there, job.past(), tally).await?;
        carry_out(queries, asking, job, there).await
    };
    audited(context, begun, carry_out).await?.show(context, job.past())
}

async fn carry_out(
    queries: &mut Partitions,
    mut asking: asking::Job<'_>,
    job: Job,
    there: u64,
) -> anyhow::Result<Done> {
    let (mut after, mut looked) = (None::<QuarantinePlace>, 0);
    // An entry that comes back into the quarantine meanwhile is not taken twice.
    while looked < there {
        let (page, has_more) = queries.quarantine(QuarantineSide::After(after.as_ref()), BATCH).await?;
        looked += page.len() as u64;
        let mut asked = Vec::with_capacity(page.len());
        for FoundQuarantined { stream, one, .. } in &page {
            asked.push((one.entry.to_string(), PartitionKeys::new(stream)?, job.asked(one.entry)));
        }
        asking.batch(&asked).await?;
        match page.into_iter().next_back() {
            Some(last) if has_more => after = Some(last.place),
            _ => break,
        }
    }
    Ok(asking.end())
}

async fn found(queries: &mut Partitions, entry: EntryId) -> anyhow::Result<(PartitionKeys, Quarantined)> {
    let mut found = queries.quarantined(entry).await?;
    match found.pop() {
        Some(one) if found.is_empty() => Ok(one),
        Some(last) => {
            let streams: Vec<&str> = found.iter().chain([&last]).map(|(keys, _)| keys.stream()).collect();
            let text = format!("{entry} is in quarantine in {}: name one of them with --stream", streams.join(", "));
            Err(VerbError::Refused(text).into())
        }
        None => {
            let text = format!("{entry} is not in quarantine: `herald quarantine list` shows what is");
            Err(VerbError::NotFound(text).into())
        }
    }
}

impl Job {
    fn act(self) -> Act {
        match self {
            Self::Requeue => Act::QuarantineRequeue,
            Self::Discard => Act::QuarantineDiscard,
        }
    }

    fn asked(self, entry: EntryId) -> Asked {
        match self {
            Self::Requeue => Asked::Requeue(entry),
            Self::Discard => Asked::DiscardQuarantined(entry),
        }
    }

    fn verb(self) -> &'static str {
        match self {
            Self::Requeue => "put back at the stream's end",
            Self::Discard => "drop for good",
        }
    }

    fn past(self) -> &'static str {
        match self {
            Self::Requeue => "requeued",
            Self::Discard => "discarded",
        }
    }
}
