//! Sending dead letters again, or dropping them: one by its id, or all that a filter fits, as an operation that the worker
//! carries out. Whoever is asked to confirm is told exactly how many, and how many of them the worker will refuse.

use std::collections::BTreeMap;

use clap::Args;

use super::filter::{FLAGS, Filter, refuse_if_unindexed};
use crate::{
    cli::{
        args::{Consent, Go},
        asking::{Asking, Done, must_be_owned},
        operation::{Planned, follow::follow, operations, plan, start},
    },
    facts::{
        audit::Act,
        endpoint::{Endpoint, EndpointState},
        id::{DeliveryId, EndpointId},
        operation::{Kind, MAX_RATE},
    },
    store::{
        protocol::Asked,
        queries::{DeadFilter, DeadKey, DeadOrder, FoundDead, MAX_PAGE, Partitions},
        registry::Unreadable,
    },
    surface::{Context, VerbError, audited, note, words},
};

/// Lines of the sample that a dry run shows.
const SAMPLE: usize = 5;

/// Endpoints that are named where something of theirs is refused or waits; the others are counted.
const NAMED: usize = 5;

#[derive(Debug, Args)]
pub struct JobArgs {
    /// ENTRY:ENDPOINT, as `dead-letter list` shows it; or a filter
    #[arg(conflicts_with_all = FLAGS, conflicts_with_all = ["limit", "all", "rate", "no_wait"])]
    id: Option<DeliveryId>,
    #[command(flatten)]
    filter: Filter,
    /// Every dead letter there is
    #[arg(long)]
    all: bool,
    /// Stop after this many, the oldest first
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// How many a second at most [default: 200 to redeliver, 1000 to discard]
    #[arg(long, value_name = "RATE", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_RATE)))]
    rate: Option<u32>,
    /// Start it, and do not wait for its end
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    consent: Consent,
}

/// What a job does to each letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    Redeliver,
    Discard,
}

/// What a job is about, as it is before anything is done.
#[derive(Default)]
struct Measured {
    count: u64,
    by_endpoint: BTreeMap<EndpointId, u64>,
    sample: Vec<FoundDead>,
}

/// What the registry says of the endpoints that letters would go out to again.
#[derive(Default)]
struct Prospects {
    refused: Vec<(String, u64)>,
    waiting: Vec<(String, u64)>,
}

pub async fn run(context: &Context, queries: &mut Partitions, job: Job, args: JobArgs) -> anyhow::Result<()> {
    if let Some(id) = &args.id {
        return one(context, queries, job, id, &args.consent).await;
    }
    if args.filter.is_empty() && !args.all && args.limit.is_none() {
        return Err(VerbError::Usage("name a dead letter, a filter, or --all".to_owned()).into());
    }
    // Fixed now, so that a letter that is given up again meanwhile is not taken twice.
    let filter = args.filter.range(queries.now_ms().await?);
    refuse_if_unindexed(queries, &filter).await?;
    let measured = measure(queries, &filter, args.limit).await?;
    if measured.count == 0 {
        note("no dead letter matches: nothing to do");
        return context.output.one(&Done::default(), &[("done", "0".to_owned())]);
    }
    show_sample(&measured);
    let what = match job {
        Job::Discard => format!("{} {}", job.verb(), letters(measured.count)),
        Job::Redeliver => {
            let prospects = prospects(context, &measured).await?;
            if total(&prospects.refused) == measured.count && !args.consent.dry_run {
                let text =
                    format!("nothing can be sent again: {}; enable the endpoint first", named(&prospects.refused));
                return Err(VerbError::Refused(text).into());
            }
            prospects.told(job, measured.count)
        }
    };
    if args.consent.confirm(&what)? == Go::DryRun {
        return Ok(());
    }
    must_be_owned(context.connect().await?, &context.keys()?).await?;
    carry_out(context, job, args, filter, measured.count).await
}

/// What was confirmed is planned and started. Fewer may be sent again than were counted a moment ago; but nothing is dropped
/// unless it is exactly as many.
async fn carry_out(
    context: &Context,
    job: Job,
    args: JobArgs,
    letters: DeadFilter,
    confirmed: u64,
) -> anyhow::Result<()> {
    let JobArgs { filter, limit, rate, no_wait, consent, .. } = args;
    let flags = filter.as_flags() + &limit.map_or_else(String::new, |limit| format!(" --limit {limit}"));
    let planned = Planned { kind: job.kind(), letters, filter: flags, limit, rate };
    let operation = plan(context, planned, &consent.change).await?;
    let (id, count) = (&operation.id, operation.plan.count);
    if job == Job::Discard && count != confirmed {
        let (count, confirmed) = (words::number(count), words::number(confirmed));
        let text =
            format!("there are {count} now, and {confirmed} were confirmed: nothing was dropped; look, and ask again");
        return Err(VerbError::Refused(text).into());
    }
    let (mut operations, begun) = (operations(context).await?, consent.act(job.act()));
    start(context, &mut operations, &operation, begun, &consent.change.by).await?;
    note(format_args!("{id} is under way; it goes on whether or not anybody follows it"));
    if no_wait {
        note(format_args!("Follow:  herald operation watch {id}"));
        return Ok(());
    }
    follow(context, id).await
}

async fn one(
    context: &Context,
    queries: &mut Partitions,
    job: Job,
    id: &DeliveryId,
    consent: &Consent,
) -> anyhow::Result<()> {
    let Some(letter) = queries.dead_letter(id).await? else {
        let text = format!("there is no dead letter {id}: `herald delivery show {id}` says where it stands");
        return Err(VerbError::NotFound(text).into());
    };
    let mut what = format!("{} the dead letter {id}", job.verb());
    if job == Job::Redeliver {
        let by_endpoint = BTreeMap::from([(id.endpoint.clone(), 1)]);
        let prospects = prospects(context, &Measured { count: 1, by_endpoint, sample: Vec::new() }).await?;
        what += &prospects.apart();
    }
    if consent.confirm(&what)? == Go::Ahead {
        let begun = consent.act(job.act()).endpoint(&id.endpoint).target(id);
        let begun = match &letter.letter {
            Ok(dead) => begun.account(&dead.delivery.account).intent(&dead.delivery.intent),
            Err(_) => begun,
        };
        let [keys] = &queries.keys_of(std::slice::from_ref(id)).await?[..] else { return Ok(()) };
        let ask = async |_: &mut _| Asking::connect(context, consent.mark()).await?.one(keys, &job.asked(id)).await;
        audited(context, begun, ask).await?;
        match job {
            Job::Redeliver => note(format_args!("{id} redelivered; `herald delivery show {id}` follows it")),
            Job::Discard => note(format_args!("{id} discarded")),
        }
    }
    Ok(())
}

fn show_sample(measured: &Measured) {
    for letter in &measured.sample {
        let facts = letter.facts.as_ref();
        let intent = facts.and_then(|facts| facts.intent.as_ref()).map_or(String::new(), ToString::to_string);
        let why = facts.map_or(String::new(), |facts| format!("{} {}", facts.reason_name(), facts.cause));
        note(format_args!("  {} {intent} {why}", letter.id));
    }
    if measured.count > measured.sample.len() as u64 {
        note("  …");
    }
}

/// How many letters a job is about, and at which endpoints: exact. The indexes count them; only what has a limit, or
/// stands in no index yet, is counted one by one.
async fn measure(queries: &mut Partitions, filter: &DeadFilter, limit: Option<u64>) -> anyhow::Result<Measured> {
    let sample = queries.find_dead(filter, DeadOrder::OldestFirst, None, SAMPLE).await?.letters;
    if limit.is_some() || queries.unindexed_dead().await? > 0 {
        let mut by_endpoint = BTreeMap::new();
        let ids = in_stream_order(select(queries, filter, limit).await?, limit);
        ids.iter().for_each(|id| *by_endpoint.entry(id.endpoint.clone()).or_default() += 1);
        let most = usize::try_from(limit.unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
        let sample = sample.into_iter().take(most).collect();
        return Ok(Measured { count: ids.len() as u64, by_endpoint, sample });
    }
    let mut measured = Measured { sample, ..Measured::default() };
    for (group, totals) in queries.group_dead(filter, &[DeadKey::Endpoint]).await? {
        measured.count += totals.count;
        if let Some(endpoint) = group.endpoint.and_then(|endpoint| EndpointId::new(&endpoint).ok()) {
            measured.by_endpoint.insert(endpoint, totals.count);
        }
    }
    Ok(measured)
}

/// What the worker refuses to send again is refused because of its endpoint; to one that is paused it waits.
async fn prospects(context: &Context, measured: &Measured) -> anyhow::Result<Prospects> {
    let mut prospects = Prospects::default();
    let ids: Vec<&EndpointId> = measured.by_endpoint.keys().collect();
    let found = context.registry().await?.get_many(&ids).await?;
    for ((endpoint, count), found) in measured.by_endpoint.iter().zip(&found) {
        let (why, list) = match found {
            Ok(None) => ("was deleted", &mut prospects.refused),
            Ok(Some(Endpoint { status: EndpointState::Disabled(_), .. })) => ("is disabled", &mut prospects.refused),
            Ok(Some(Endpoint { status: EndpointState::Paused(_), .. })) => ("is paused", &mut prospects.waiting),
            Ok(Some(Endpoint { status: EndpointState::Enabled, .. })) => continue,
            Err(Unreadable { .. }) => ("cannot be read by this Herald", &mut prospects.waiting),
        };
        list.push((format!("{endpoint} {why}"), *count));
    }
    Ok(prospects)
}

impl Prospects {
    /// `send again 12 dead letters; 3 more would be refused: ep_a is disabled (3)`.
    fn told(&self, job: Job, count: u64) -> String {
        let refused = total(&self.refused);
        format!("{} {}{}", job.verb(), letters(count - refused), self.apart())
    }

    fn apart(&self) -> String {
        let part = |what: &str, of: &[(String, u64)]| match of.is_empty() {
            true => String::new(),
            false => format!("; {} {what}: {}", words::number(total(of)), named(of)),
        };
        part("more would be refused", &self.refused) + &part("of them would wait", &self.waiting)
    }
}

fn total(of: &[(String, u64)]) -> u64 {
    of.iter().map(|(_, count)| count).sum()
}

/// Those with the most letters by name.
fn named(of: &[(String, u64)]) -> String {
    let mut most: Vec<&(String, u64)> = of.iter().collect();
    most.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let names: Vec<String> =
        most.iter().take(NAMED).map(|(name, count)| format!("{name} ({})", words::number(*count))).collect();
    match of.len() > NAMED {
        true => format!("{}, and {} more", names.join(", "), words::number((of.len() - NAMED) as u64)),
        false => names.join(", "),
    }
}

fn letters(count: u64) -> String {
    words::count(count, "dead letter", "dead letters")
}

/// The letters that a job works on, with the times at which they were given up: only ids, so even a million letters
/// take a hundred MB. It goes past its limit to the end of a millisecond, because within one the index has no order of
/// ours.
async fn select(
    queries: &mut Partitions,
    filter: &DeadFilter,
    limit: Option<u64>,
) -> anyhow::Result<Vec<(u64, DeliveryId)>> {
    let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let (mut selected, mut after) = (Vec::<(u64, DeliveryId)>::new(), None);
    loop {
        let page = queries.find_dead(filter, DeadOrder::OldestFirst, after.as_ref(), MAX_PAGE).await?;
        for letter in page.letters {
            if selected.len() >= limit && selected.last().is_none_or(|(at_ms, _)| *at_ms != letter.at_ms) {
                return Ok(selected);
            }
            selected.push((letter.at_ms, letter.id));
        }
        after = page.next;
        if after.is_none() {
            return Ok(selected);
        }
    }
}

/// The oldest ones, sorted as their entries lie in the stream: an intent's events go out again in their order.
fn in_stream_order(mut selected: Vec<(u64, DeliveryId)>, limit: Option<u64>) -> Vec<DeliveryId> {
    selected.sort_unstable();
    selected.truncate(limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX)));
    let mut ids: Vec<DeliveryId> = selected.into_iter().map(|(_, id)| id).collect();
    ids.sort_unstable();
    ids
}

impl Job {
    fn act(self) -> Act {
        match self {
            Self::Redeliver => Act::DeadLetterRedeliver,
            Self::Discard => Act::DeadLetterDiscard,
        }
    }

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

    fn kind(self) -> Kind {
        match self {
            Self::Redeliver => Kind::Redeliver,
            Self::Discard => Kind::Discard,
        }
    }
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

    #[test]
    fn what_would_be_refused_is_counted_apart() {
        let prospects = Prospects {
            refused: vec![("ep_b is disabled".to_owned(), 3), ("ep_c was deleted".to_owned(), 1_000)],
            waiting: vec![("ep_d is paused".to_owned(), 2)],
        };
        assert_eq!(
            prospects.told(Job::Redeliver, 1_010),
            "send again 7 dead letters; 1 003 more would be refused: ep_c was deleted (1 000), ep_b is disabled (3); \
             2 of them would wait: ep_d is paused (2)"
        );
        assert_eq!(Prospects::default().told(Job::Redeliver, 1), "send again 1 dead letter");
    }
}
