//! `herald audit …`: who did what to this installation, and how it ended. Changes nothing.

use clap::{Args, Subcommand};

use crate::{
    app,
    facts::{
        audit::{Act, Begun, Ended, Surface, Verdict},
        id::{AccountId, EndpointId, EntryId, IntentId},
    },
    store::{
        audit::{Audit, Logged, Wanted},
        queries::Queries,
    },
    surface::{Context, Format, VerbError, instant, note, when, words},
    view::{audit::ActView, time::Moment},
};

/// Of a table's columns, so that a row fits 80 characters.
const BY_CHARS: usize = 10;
const WHAT_CHARS: usize = 29;
const RESULT_CHARS: usize = 12;

/// What an act without an end means. Its process may also have been unable to write.
const NO_END: &str =
    "no end is written: it is still under way, or its process ended before it did; look at what it was about";

#[derive(Debug, Subcommand)]
pub enum AuditVerb {
    /// List what operators, merchants and Herald itself did, the newest last
    List(ListArgs),
    /// Show one act with its reason and how it ended
    Show {
        /// As `audit list` shows it
        #[arg(value_parser = act_id)]
        id: EntryId,
    },
}

#[derive(Debug, Args)]
pub struct ListArgs {
    /// Begun since then: an age such as 2h or 7d, or 2026-01-31T09:00:00Z
    #[arg(long, value_name = "WHEN", value_parser = Moment::parse)]
    since: Option<Moment>,
    /// Begun before then
    #[arg(long, value_name = "WHEN", value_parser = Moment::parse)]
    until: Option<Moment>,
    /// By this operator, by herald itself, or by "key HASH" over HTTP
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// As its verb is called: "endpoint disable"
    #[arg(long, value_name = "ACT")]
    act: Option<Act>,
    /// Only those that name this endpoint
    #[arg(long, value_name = "ENDPOINT")]
    endpoint: Option<EndpointId>,
    /// Only those that name this account
    #[arg(long, value_name = "ACCOUNT")]
    account: Option<AccountId>,
    /// Only those that name this payment intent
    #[arg(long, value_name = "INTENT")]
    intent: Option<IntentId>,
    /// Show the newest of them, at most so many
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    limit: u64,
    /// Only those before this one: the next page
    #[arg(long, value_name = "ID", value_parser = act_id)]
    before: Option<EntryId>,
}

/// The first act of a millisecond is shown without its number.
fn act_id(text: &str) -> Result<EntryId, String> {
    let id = if text.contains('-') { text.to_owned() } else { format!("{text}-0") };
    id.parse().map_err(|_| "is not the id of an act, as `herald audit list` shows them".to_owned())
}

fn shown_id(id: EntryId) -> String {
    if id.seq == 0 { id.ms.to_string() } else { id.to_string() }
}

pub async fn run(context: &Context, verb: AuditVerb) -> anyhow::Result<()> {
    let audit = app::audit(&context.config, Surface::Cli)?;
    match verb {
        AuditVerb::List(args) => list(context, &audit, args).await,
        AuditVerb::Show { id } => show(context, &audit, id).await,
    }
}

async fn list(context: &Context, audit: &Audit, args: ListArgs) -> anyhow::Result<()> {
    // Acts are dated by Redis' clock.
    let now_ms = Queries::new(context.connect().await?, context.keys()?).now_ms().await?;
    let wanted = Wanted {
        from_ms: args.since.map_or(0, |since| since.ms(now_ms)),
        until_ms: args.until.map_or(u64::MAX, |until| until.ms(now_ms)),
        before: args.before,
        limit: usize::try_from(args.limit).unwrap_or(usize::MAX),
    };
    let found = audit.search(&wanted, |begun| args.fits(begun)).await?;
    let mut rows = context.output.list(&["ID", "AGO", "BY", "WHAT", "RESULT"]);
    for logged in &found.acts {
        rows.push(&ActView::of(logged), || row(logged, now_ms))?;
    }
    rows.finish()?;
    if found.unreadable > 0 {
        let entries = words::count(found.unreadable, "entry was", "entries were");
        note(format_args!("{entries} written by another version of Herald and could not be read"));
    }
    match (found.acts.first(), found.begins_ms) {
        (Some(oldest), _) if found.has_more => {
            note(format_args!("\nOlder:  the same with --before {}", shown_id(oldest.id)));
        }
        (_, Some(at)) if args.since.is_none() => note(format_args!("the audit log begins {}", when(at, now_ms))),
        (None, None) => note("the audit log is empty"),
        _ => {}
    }
    if let Some(newest) = found.acts.last().filter(|_| context.output.format() == Format::Table) {
        note(format_args!("Whole:  herald audit show {}", shown_id(newest.id)));
    }
    Ok(())
}

impl ListArgs {
    fn fits(&self, begun: &Begun) -> bool {
        self.by.as_ref().is_none_or(|by| *by == begun.by)
            && self.act.is_none_or(|act| act.name() == begun.act)
            && self.endpoint.as_ref().is_none_or(|endpoint| Some(endpoint) == begun.endpoint.as_ref())
            && self.account.as_ref().is_none_or(|account| Some(account) == begun.account.as_ref())
            && self.intent.as_ref().is_none_or(|intent| Some(intent) == begun.intent.as_ref())
    }
}

fn row(logged: &Logged, now_ms: u64) -> Vec<String> {
    let begun = &logged.begun;
    let what = format!("{} {}", begun.act, begun.object());
    vec![
        shown_id(logged.id),
        words::span(now_ms.saturating_sub(logged.id.ms) / 1_000 * 1_000),
        cut(&begun.by, BY_CHARS),
        cut(what.trim(), WHAT_CHARS),
        cut(&short_result(logged), RESULT_CHARS),
    ]
}

fn short_result(logged: &Logged) -> String {
    match &logged.ended {
        None => "no end".to_owned(),
        Some((_, Ended { result: Verdict::Done, done: Some(done), skipped: Some(skipped), .. })) => match skipped {
            0 => format!("{} done", words::number(*done)),
            skipped => format!("{} of {}", words::number(*done), words::number(done + skipped)),
        },
        Some((_, ended)) => ended.result.name().to_owned(),
    }
}

fn cut(text: &str, max_chars: usize) -> String {
    match text.chars().count() > max_chars {
        true => text.chars().take(max_chars - 1).chain(['…']).collect(),
        false => text.to_owned(),
    }
}

async fn show(context: &Context, audit: &Audit, id: EntryId) -> anyhow::Result<()> {
    let Some(logged) = audit.find(id).await? else {
        let text = format!("there is no act {}: `herald audit list` shows those that are kept", shown_id(id));
        return Err(VerbError::NotFound(text).into());
    };
    let (begun, now_ms) = (&logged.begun, context.now_ms());
    let origin = &begun.origin;
    let user = origin.user.as_ref().map_or_else(String::new, |user| format!(", run by {user}"));
    let address = begun.address.as_ref().map_or_else(String::new, |address| format!(", asked by {address}"));
    let mut fields = vec![
        ("act", begun.act.clone()),
        ("id", shown_id(logged.id)),
        ("begun", when(logged.id.ms, now_ms)),
        ("by", begun.by.clone()),
        ("from", format!("{}, process {} of {}{user}{address}", origin.surface.name(), origin.process, origin.host)),
    ];
    let told = [
        ("why", (!begun.why.is_empty()).then(|| begun.why.clone())),
        ("account", begun.account.as_ref().map(ToString::to_string)),
        ("endpoint", begun.endpoint.as_ref().map(ToString::to_string)),
        ("intent", begun.intent.as_ref().map(ToString::to_string)),
        ("what", begun.target.clone()),
        ("filter", begun.filter.clone()),
        ("planned", begun.count.map(words::number)),
    ];
    fields.extend(told.into_iter().filter_map(|(name, text)| Some((name, text?))));
    fields.push(("ended", logged.ended.as_ref().map_or_else(|| NO_END.to_owned(), |(at, ended)| end(*at, ended))));
    context.output.one(&ActView::of(&logged), &fields)
}

fn end(at: EntryId, ended: &Ended) -> String {
    let mut text = format!("{} at {}", ended.result.name(), instant(at.ms));
    if let Some(done) = ended.done {
        text = format!("{text}, {} done", words::number(done));
    }
    if let Some(skipped) = ended.skipped.filter(|skipped| *skipped > 0) {
        text = format!("{text}, {} not", words::number(skipped));
    }
    if ended.why.is_empty() { text } else { format!("{text}: {}", ended.why) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::audit::Origin;

    #[test]
    fn a_row_fits_eighty_columns() {
        let origin = Origin { surface: Surface::Cli, host: "h".to_owned(), process: 1, user: None };
        let begun = Begun::new(Act::EndpointAcceptRegistry, "somebody-with-a-name", "x", origin);
        let begun = begun.target("reg_0123456789abcdef");
        let id = EntryId { ms: 1_700_000_000_000, seq: 0 };
        let ended = Ended {
            of: id,
            result: Verdict::Done,
            why: String::new(),
            done: Some(1_000_000),
            skipped: Some(1_000_000),
        };
        let logged = Logged { id, begun, ended: Some((id, ended)) };
        let cells = row(&logged, id.ms + 86_399_000);
        assert_eq!(cells[..3], ["1700000000000", "23h 59m", "somebody-…"]);
        assert_eq!(cells[3], "endpoint accept-registry reg…");
        let width: usize = cells.iter().map(|cell| cell.chars().count()).sum();
        assert!(width + 2 * (cells.len() - 1) <= 80, "{cells:?}");
    }

    #[test]
    fn an_act_is_named_as_it_is_shown() {
        assert_eq!(act_id("17").map(shown_id), Ok("17".to_owned()));
        assert_eq!(act_id("17-2").map(shown_id), Ok("17-2".to_owned()));
        assert!(act_id("ep_a").is_err());
    }
}
