//! `herald issue …`: what fails where, why and since when, who must act, and what to do next. An issue is an endpoint and a cause; it
//! is there for as long as the endpoint fails for it or letters of it are kept. What operators say of it is kept beside it.

use std::collections::HashMap;

use clap::{Args, Subcommand};

use super::args::WhoAndWhy;
use crate::{
    facts::{
        audit::Act,
        endpoint::{Endpoint, Mark},
        id::{AccountId, EndpointId},
        issue::{Issue, IssueId, Said, State},
    },
    store::{
        issues::IssueStore,
        queries::{IssuesLook, Partitions},
    },
    surface::{Context, Format, VerbError, audited, note, of_those_that_answer, when, words},
    view::issue::{IssueView, with_sample},
};

#[derive(Debug, Subcommand)]
pub enum IssueVerb {
    /// List issues, the most urgent first
    List(ListArgs),
    /// Show one with its diagnosis and a text for the merchant
    Show {
        /// ENDPOINT:CAUSE, as `issue list` shows it
        id: IssueId,
    },
    /// Say that somebody knows of it and deals with it
    Ack(SayArgs),
    /// Say that it is mended; if it happens again, it opens anew
    Resolve(SayArgs),
}

#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only of this account
    #[arg(long, value_name = "ACCOUNT")]
    account: Option<AccountId>,
    /// Only of this endpoint
    #[arg(long, value_name = "ENDPOINT")]
    endpoint: Option<EndpointId>,
    /// Those that are resolved, too
    #[arg(long)]
    all: bool,
    /// Show at most this many
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,
}

#[derive(Debug, Args)]
pub struct SayArgs {
    /// ENDPOINT:CAUSE, as `issue list` shows it
    id: IssueId,
    #[command(flatten)]
    change: WhoAndWhy,
}

/// What there is, as of one moment.
struct Look {
    queries: Partitions,
    issues: Vec<Issue>,
    endpoints: HashMap<EndpointId, Endpoint>,
    has_owner: bool,
    now_ms: u64,
    as_of_ms: Option<u64>,
}

pub async fn run(context: &Context, verb: IssueVerb) -> anyhow::Result<()> {
    match verb {
        IssueVerb::List(args) => list(context, args).await,
        IssueVerb::Show { id } => show(context, &id).await,
        IssueVerb::Ack(args) => say(context, args, State::Acknowledged).await,
        IssueVerb::Resolve(args) => say(context, args, State::Resolved).await,
    }
}

async fn look(context: &Context) -> anyhow::Result<Look> {
    let mut queries = context.partitions().await?;
    let (now_ms, has_owner) = (queries.now_ms().await?, queries.are_owned(None).await?);
    let found = queries.issues(&mut context.registry().await?, now_ms).await?;
    let IssuesLook { survey, issues, endpoints } = found;
    Ok(Look { queries, issues, endpoints, has_owner, now_ms, as_of_ms: survey.as_of_ms })
}

impl Look {
    fn view(&self, issue: &Issue) -> IssueView {
        IssueView::of(issue, &self.endpoints)
    }

    /// Says what a reader might otherwise take for certain.
    fn note_age(&self) {
        match (self.has_owner, self.as_of_ms) {
            (false, Some(as_of_ms)) => note(format_args!(
                "no worker owns the stream: what is said of attempts is from {}",
                words::ago(as_of_ms, self.now_ms)
            )),
            (false, None) => note("no worker owns the stream, and none has published what it saw"),
            (true, _) => {}
        }
    }

    fn find(&self, id: &IssueId) -> Result<&Issue, VerbError> {
        self.issues.iter().find(|issue| issue.id == *id).ok_or_else(|| {
            VerbError::NotFound(format!(
                "there is no issue {id}: its endpoint does not fail for this now, and no letters of it are kept; \
                 `herald issue list` shows those that there are"
            ))
        })
    }
}

async fn list(context: &Context, args: ListArgs) -> anyhow::Result<()> {
    let look = look(context).await?;
    let done = list_all(context, &args, &look);
    of_those_that_answer(&look.queries, done)
}

fn list_all(context: &Context, args: &ListArgs, look: &Look) -> anyhow::Result<()> {
    let wanted: Vec<&Issue> = look.issues.iter().filter(|issue| args.wants(issue)).collect();
    let mut rows = context.output.list(&["ISSUE", "STATE", "SINCE", "FAILED", "DEAD", "WHO ACTS"]);
    for issue in wanted.iter().take(args.limit) {
        rows.push(&look.view(issue), || {
            vec![
                issue.id.to_string(),
                state(issue).to_owned(),
                words::span(look.now_ms.saturating_sub(issue.first_ms)),
                words::short(issue.attempts),
                words::short(issue.letters),
                issue.diagnosis.who.name().trim_start_matches("the ").to_owned(),
            ]
        })?;
    }
    rows.finish()?;
    look.note_age();
    if wanted.len() > args.limit {
        note(format_args!("… and {} more: --limit {}", wanted.len() - args.limit, wanted.len()));
    }
    let resolved = look.issues.iter().filter(|issue| issue.state == State::Resolved).count();
    match (wanted.first(), args.all, resolved) {
        (Some(first), ..) => note(format_args!("\nWhat to do:  herald issue show {}", first.id)),
        (None, false, 1..) => {
            note(format_args!("no open issue; {} shown by --all", words::count(resolved as u64, "is", "are")));
        }
        (None, ..) if args.account.is_some() || args.endpoint.is_some() => match look.issues.len() as u64 {
            0 => note("no issue: no endpoint fails, and there are no dead letters"),
            others => note(format_args!("no issue of it; there are {} of others", words::number(others))),
        },
        (None, ..) => note("no issue: no endpoint fails, and there are no dead letters"),
    }
    Ok(())
}

impl ListArgs {
    fn wants(&self, issue: &Issue) -> bool {
        (self.all || issue.state != State::Resolved)
            && self.account.as_ref().is_none_or(|account| issue.account.as_ref() == Some(account))
            && self.endpoint.as_ref().is_none_or(|endpoint| *endpoint == issue.id.endpoint)
    }
}

fn state(issue: &Issue) -> &'static str {
    match (issue.state, &issue.said) {
        (State::Open, Some(_)) => "open again",
        (State::Acknowledged, _) => "ack",
        (state, _) => state.name(),
    }
}

async fn show(context: &Context, id: &IssueId) -> anyhow::Result<()> {
    let mut look = look(context).await?;
    let issue = look.find(id)?.clone();
    let issue = with_sample(&mut look.queries, issue).await?;
    let view = look.view(&issue);
    look.note_age();
    context.output.one(&view, &fields(&issue, &view, look.now_ms))?;
    if let (Format::Table, Some(text)) = (context.output.format(), &view.to_merchant) {
        context.output.text(&format!("\nTo the merchant:\n\n{}", indented(text)))?;
    }
    Ok(())
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

fn fields(issue: &Issue, view: &IssueView, now_ms: u64) -> Vec<(&'static str, String)> {
    let unknown = || "not known".to_owned();
    let mut fields = vec![
        ("issue", issue.id.to_string()),
        ("state", said(issue, now_ms)),
        ("account", issue.account.as_ref().map_or_else(unknown, ToString::to_string)),
        ("url", view.url.clone().unwrap_or_else(|| "the endpoint is deleted".to_owned())),
    ];
    fields.extend(view.endpoint_state.map(|state| ("endpoint", state.to_owned())));
    fields.extend([
        ("it", view.diagnosis.what.clone()),
        ("must act", view.diagnosis.who.name().to_owned()),
        ("next", view.diagnosis.next.clone()),
        ("first seen", when(issue.first_ms, now_ms)),
        ("last seen", when(issue.last_ms, now_ms)),
        ("attempts", attempts(issue)),
        ("letters", letters(issue)),
    ]);
    if issue.skipped > 0 {
        fields.push(("skipped", format!("{}, because it is disabled", words::count(issue.skipped, "event", "events"))));
    }
    if let Some(sample) = &issue.sample {
        fields.push(("sample", format!("herald delivery show {sample}")));
    }
    if !issue.detail.is_empty() {
        fields.push(("says", issue.detail.clone()));
    }
    fields
}

fn said(issue: &Issue, now_ms: u64) -> String {
    match &issue.said {
        None => issue.state.name().to_owned(),
        Some(Said { state, mark: Mark { by, why, at_ms } }) => {
            let again = if *state == issue.state { "" } else { "open again; it was " };
            format!("{again}{} by {by} {}: {why}", state.name(), words::ago(*at_ms, now_ms))
        }
    }
}

fn letters(issue: &Issue) -> String {
    let all = words::number(issue.letters);
    match issue.never_tried {
        0 => all,
        some => format!("{all}; {} of them were never tried, as they waited for this too long", words::number(some)),
    }
}

/// How many failed, and hour by hour.
fn attempts(issue: &Issue) -> String {
    if issue.attempts == 0 {
        return "none within a day".to_owned();
    }
    let hours: Vec<String> = issue.hours.iter().map(|(_, count)| words::short(u64::from(*count))).collect();
    let failed = words::number(issue.attempts);
    format!("{failed} failed; by hour, the newest last: {}", hours.join(" "))
}

async fn say(context: &Context, args: SayArgs, state: State) -> anyhow::Result<()> {
    let mut look = look(context).await?;
    let keys = look.queries.home_of(&args.id.endpoint).await;
    let issue = look.find(&args.id)?;
    let act = if state == State::Resolved { Act::IssueResolve } else { Act::IssueAck };
    let begun = args.change.act(act).endpoint(&args.id.endpoint).target(args.id.to_string());
    let begun = issue.account.iter().fold(begun, |begun, account| begun.account(account));
    // By Redis' clock, so that it can be told what happened afterwards.
    let said = Said { state, mark: Mark { at_ms: look.now_ms, ..args.change.mark() } };
    let mut store = IssueStore::new(context.connect().await?, keys);
    audited(context, begun, async |_| Ok(store.say(&args.id, &said).await?)).await?;
    note(format_args!("issue {} is {}", args.id, state.name()));
    if state == State::Resolved && issue.is_failing {
        note("its endpoint still fails: with the next failure it opens anew");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::facts::diagnosis::Diagnosis;

    const CAUSES: [&str; 40] = [
        "redirected:301",
        "gone",
        "throttled:429",
        "throttled:503",
        "rejected:400",
        "rejected:401",
        "rejected:404",
        "rejected:413",
        "server_failed:500",
        "dns_failed",
        "connect_failed",
        "connect_timed_out",
        "proxy_failed",
        "tls_failed:wrong_name",
        "tls_failed:expired",
        "tls_failed:unknown_issuer",
        "tls_failed:bad_certificate",
        "tls_failed:handshake",
        "response_timed_out",
        "reset",
        "garbled",
        "address_refused",
        "unsendable",
        "local_descriptors",
        "local_lookups",
        "local_lag",
        "delivered:200",
        "never_tried",
        "never_tried:paused",
        "never_tried:all_paused",
        "never_tried:breaker_open",
        "never_tried:resting",
        "never_tried:rate_limited",
        "never_tried:held",
        "never_tried:busy",
        "never_tried:endpoint_unreadable",
        "never_tried:unknown",
        "unreadable",
        "eclipse:total",
        "eclipse",
    ];

    /// The words after each `herald` of a text, up to where its sentence goes on.
    fn verbs(text: &str) -> Vec<String> {
        let starts = text.match_indices("herald ").map(|(at, _)| &text[at..]);
        let end = |rest: &str| [": ", "; ", ", ", ")"].iter().filter_map(|end| rest.find(end)).min();
        starts.map(|rest| end(rest).map_or(rest, |end| &rest[..end]).to_owned()).collect()
    }

    #[test]
    fn whatever_a_diagnosis_says_to_type_is_a_verb_with_its_arguments() {
        let mut seen = 0;
        for cause in CAUSES {
            let next = Diagnosis::of(&cause.parse().unwrap(), &"ep_a".parse().unwrap()).next;
            for words in verbs(&next) {
                seen += 1;
                let read = crate::cli::command().try_get_matches_from(words.split(' '));
                assert!(read.is_ok(), "{cause}: {words}: {}", read.unwrap_err());
            }
        }
        assert!(seen > 30, "{seen} verbs: the texts are cut in another way");
    }
}
