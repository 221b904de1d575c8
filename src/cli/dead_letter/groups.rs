//! Dead letters by what they have in common: whom it hits, why, since when.

use std::cmp::Reverse;

use clap::ValueEnum;

use crate::{
    store::queries::{DeadFilter, DeadGroup, DeadKey, DeadTotals, Partitions},
    surface::{Context, note, words},
    view::letter::LetterGroup,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum GroupBy {
    Endpoint,
    Account,
    Reason,
    Cause,
}

impl GroupBy {
    fn key(self) -> DeadKey {
        match self {
            Self::Endpoint => DeadKey::Endpoint,
            Self::Account => DeadKey::Account,
            Self::Reason => DeadKey::Reason,
            Self::Cause => DeadKey::Cause,
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Endpoint => "ENDPOINT",
            Self::Account => "ACCOUNT",
            Self::Reason => "REASON",
            Self::Cause => "CAUSE",
        }
    }

    fn of(self, group: &DeadGroup) -> String {
        let value = match self {
            Self::Endpoint => &group.endpoint,
            Self::Account => &group.account,
            Self::Reason => &group.reason,
            Self::Cause => &group.cause,
        };
        value.clone().unwrap_or_default()
    }
}

/// The largest groups first.
pub async fn list(
    context: &Context,
    queries: &mut Partitions,
    filter: &DeadFilter,
    by: &[GroupBy],
    limit: u64,
    now_ms: u64,
) -> anyhow::Result<()> {
    let keys: Vec<DeadKey> = by.iter().map(|by| by.key()).collect();
    let mut groups: Vec<(DeadGroup, DeadTotals)> = queries.group_dead(filter, &keys).await?.into_iter().collect();
    groups.sort_by_key(|(_, totals)| Reverse((totals.count, totals.last_ms)));
    let letters = groups.iter().map(|(_, totals)| totals.count).sum();
    let shown = usize::try_from(limit).unwrap_or(usize::MAX);
    let cut =
        if groups.len() > shown { format!("; the largest {} shown", words::number(limit)) } else { String::new() };
    note(format_args!(
        "{} in {}{cut}",
        words::count(letters, "dead letter", "dead letters"),
        words::count(groups.len() as u64, "group", "groups")
    ));
    let titles: Vec<&str> = ["LETTERS"].into_iter().chain(by.iter().map(|by| by.title())).collect();
    let mut rows = context.output.list(&[titles, vec!["FIRST", "LAST"]].concat());
    for (group, totals) in groups.iter().take(shown) {
        let DeadTotals { count, first_ms, last_ms } = *totals;
        rows.push(&LetterGroup::of(group, totals), || {
            let mut row = vec![words::number(count)];
            row.extend(by.iter().map(|by| by.of(group)));
            row.extend([words::ago(first_ms, now_ms), words::ago(last_ms, now_ms)]);
            row
        })?;
    }
    rows.finish()
}
