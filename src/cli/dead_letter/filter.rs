//! Which dead letters a verb is about, as it is typed: each condition is answered by an index, and together exactly.

use std::{str::FromStr, time::Duration};

use clap::Args;

use crate::{
    config::parse_duration,
    facts::{
        id::{AccountId, EndpointId, EventId, IntentId},
        letter::Cause,
        retry::DeadReason,
    },
    store::queries::{DeadFilter, Partitions},
    surface::{VerbError, note, words},
    view::time::Moment,
};

#[derive(Debug, Clone, Default, Args)]
pub struct Filter {
    /// Of this account
    #[arg(long, value_name = "ACCOUNT")]
    pub account: Option<AccountId>,
    /// To this endpoint
    #[arg(long, value_name = "ENDPOINT")]
    pub endpoint: Option<EndpointId>,
    /// exhausted, expired, gone, disabled, deleted or released
    #[arg(long, value_name = "REASON", value_parser = dead_reason)]
    dead_reason: Option<DeadReason>,
    /// What the last attempt brought: rejected:404, tls_failed:expired, dns_failed, never_tried:paused; a class alone, as
    /// rejected, stands for all of its kinds
    #[arg(long, value_name = "CAUSE", value_parser = Cause::from_str)]
    cause: Option<Cause>,
    /// Of one payment intent
    #[arg(long, value_name = "INTENT")]
    intent: Option<IntentId>,
    /// Of one event
    #[arg(long, value_name = "EVENT")]
    event: Option<EventId>,
    /// Given up at this time or later: 2026-05-01T09:00:00Z, or an age, 6h
    #[arg(long, value_name = "WHEN", value_parser = Moment::parse)]
    since: Option<Moment>,
    /// Given up at this time or earlier
    #[arg(long, value_name = "WHEN", value_parser = Moment::parse)]
    until: Option<Moment>,
    /// Given up longer ago than this: 90s, 2h, 7d
    #[arg(long, value_name = "AGE", value_parser = parse_duration, conflicts_with = "until")]
    older_than: Option<Duration>,
    /// Given up more recently than this
    #[arg(long, value_name = "AGE", value_parser = parse_duration, conflicts_with = "since")]
    newer_than: Option<Duration>,
}

/// The names of a filter's flags, for verbs that take an id instead.
pub const FLAGS: [&str; 10] =
    ["account", "endpoint", "dead_reason", "cause", "intent", "event", "since", "until", "older_than", "newer_than"];

impl Filter {
    /// What it means at this time, by Redis' clock. Where no end is given there is none: a clock that was set back hides no letter.
    pub fn range(&self, now_ms: u64) -> DeadFilter {
        let at = |moment: Moment| match moment {
            Moment::Ago(age) => now_ms.saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
            Moment::At(ms) => ms,
        };
        let (since, until) = self.moments();
        DeadFilter {
            from_ms: since.map_or(0, at),
            until_ms: until.map_or(DeadFilter::END_MS, at),
            endpoint: self.endpoint.clone(),
            account: self.account.clone(),
            reason: self.dead_reason,
            cause: self.cause.clone(),
            intent: self.intent.clone(),
            event: self.event.clone(),
        }
    }

    fn moments(&self) -> (Option<Moment>, Option<Moment>) {
        (self.since.or(self.newer_than.map(Moment::Ago)), self.until.or(self.older_than.map(Moment::Ago)))
    }

    pub fn is_empty(&self) -> bool {
        self.as_flags() == "--all"
    }

    /// As they would be typed again.
    pub fn as_flags(&self) -> String {
        let age = |age: Duration| match age.as_millis() {
            ms if ms % 1000 == 0 => format!("{}s", ms / 1000),
            ms => format!("{ms}ms"),
        };
        let moment = |moment: Moment| match moment {
            Moment::Ago(ago) => age(ago),
            Moment::At(ms) => instant(ms),
        };
        let flags = [
            self.account.as_ref().map(|account| format!("--account {account}")),
            self.endpoint.as_ref().map(|endpoint| format!("--endpoint {endpoint}")),
            self.dead_reason.map(|reason| format!("--dead-reason {}", reason.name())),
            self.cause.as_ref().map(|cause| format!("--cause {cause}")),
            self.intent.as_ref().map(|intent| format!("--intent {intent}")),
            self.event.as_ref().map(|event| format!("--event {event}")),
            self.since.map(|since| format!("--since {}", moment(since))),
            self.until.map(|until| format!("--until {}", moment(until))),
            self.older_than.map(|older| format!("--older-than {}", age(older))),
            self.newer_than.map(|newer| format!("--newer-than {}", age(newer))),
        ];
        let flags: Vec<String> = flags.into_iter().flatten().collect();
        if flags.is_empty() { "--all".to_owned() } else { flags.join(" ") }
    }
}

/// Letters of an older Herald are found by time and endpoint alone until the worker has indexed them. Returns whether
/// there are any; a list says so and goes on.
pub async fn tell_if_unindexed(queries: &mut Partitions) -> anyhow::Result<bool> {
    let left = queries.unindexed_dead().await?;
    if left > 0 {
        note(unindexed(left));
    }
    Ok(left > 0)
}

/// What changes letters must not miss any.
pub async fn refuse_if_unindexed(queries: &mut Partitions, filter: &DeadFilter) -> anyhow::Result<()> {
    let left = if filter.needs_facts() { queries.unindexed_dead().await? } else { 0 };
    match left {
        0 => Ok(()),
        left => Err(VerbError::Refused(format!("{}; ask again then", unindexed(left))).into()),
    }
}

fn unindexed(left: u64) -> String {
    format!(
        "{} of an older Herald or removed by one: until a worker of this version has indexed them, only --endpoint and \
         times are sure to find every letter",
        words::count(left, "dead letter is", "dead letters are")
    )
}

fn dead_reason(text: &str) -> Result<DeadReason, String> {
    let names = || DeadReason::ALL.map(DeadReason::name).join(", ");
    let known = DeadReason::ALL.into_iter().find(|reason| reason.name() == text);
    known.ok_or_else(|| format!("there is no such reason; use one of {}", names()))
}

/// RFC 3339 in UTC, to the millisecond.
fn instant(ms: u64) -> String {
    let known = i64::try_from(ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    known.map_or_else(String::new, |instant| instant.to_string())
}

#[cfg(test)]
mod tests {
    use clap::{Command, FromArgMatches};

    use super::*;

    fn read(arguments: &[&str]) -> Result<Filter, clap::Error> {
        let command = Filter::augment_args(Command::new("filter").no_binary_name(true));
        command.try_get_matches_from(arguments).and_then(|matches| Filter::from_arg_matches(&matches))
    }

    #[test]
    fn a_filter_is_typed_again_as_it_was_meant() {
        let words =
            "--account acc_1 --endpoint ep_a --dead-reason gone --cause rejected:404 --intent pi_1 --event evt_1";
        let times = "--since 2026-05-01T09:00:00.5Z --until 1h";
        let flags = format!("{words} {times}");
        let filter = read(&flags.split(' ').collect::<Vec<_>>()).unwrap();
        assert_eq!(filter.as_flags(), flags.replace("1h", "3600s"));
        let range = filter.range(1_800_000_000_000);
        assert_eq!((range.from_ms, range.until_ms), (1_777_626_000_500, 1_799_996_400_000));
        assert_eq!(range.cause.unwrap().as_str(), "rejected:404");
        assert!(read(&["--since", "6h", "--newer-than", "6h"]).is_err(), "the same twice");
        assert!(read(&["--since", "yesterday"]).is_err() && read(&["--cause", "404"]).is_err());
    }

    #[test]
    fn each_flag_can_be_told_from_an_id() {
        let command = Filter::augment_args(Command::new("filter"));
        let ids: Vec<&str> = command.get_arguments().map(|argument| argument.get_id().as_str()).collect();
        assert_eq!(ids, FLAGS);
    }
}
