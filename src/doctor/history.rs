//! What the doctor says of the history of deliveries: whether it is written, how far behind it is, what it misses, and whose
//! events were owed to nobody. [`look`] asks, [`judge`] judges.

use super::finding::{Finding, Findings};
use crate::{
    config::Config,
    history::{Access, Database, Gap, HistoryError, Horizon, Reader, Unowed, Wanted},
    store::{connection::Redis, keys::PartitionKeys, queries::Partitions},
    surface::words::{count, number, span, when},
};

const SUBJECT: &str = "history";
const DAY_MS: u64 = 86_400_000;

/// A line that has waited for longer is worth a word: it is read within a second, and in a drain within a few.
const LONG_MS: u64 = 60_000;

/// How many accounts are named.
const MAX_ACCOUNTS: usize = 5;

/// What there is to see of it.
pub struct Look {
    pub horizon: Horizon,
    /// Lines of the log that it has not read.
    pub behind: u64,
    /// For how long the oldest of these has waited.
    pub waited_ms: u64,
    /// Of the last day.
    pub unowed: Vec<Unowed>,
}

/// What came of asking.
pub enum Seen {
    Off,
    /// It is a file of this machine, and nobody has begun it.
    NotHere(String),
    Broken(String),
    There(Look),
}

pub async fn look(config: &Config, redis: Redis, keys: PartitionKeys, now_ms: u64) -> Seen {
    let Some(url) = config.history.url.as_ref() else { return Seen::Off };
    let keep_days = config.history.keep.as_secs().div_ceil(86_400);
    let database = match Database::open(url, keys.stream(), Access::Read).await {
        Ok(database) => database,
        Err(error @ HistoryError::NoFile { .. }) => return Seen::NotHere(error.to_string()),
        Err(error) => return Seen::Broken(error.to_string()),
    };
    match ask(Reader::new(database), keep_days, redis, keys, now_ms).await {
        Ok(look) => Seen::There(look),
        Err(error) => Seen::Broken(error.to_string()),
    }
}

async fn ask(
    reader: Reader,
    keep_days: u64,
    redis: Redis,
    keys: PartitionKeys,
    now_ms: u64,
) -> Result<Look, Box<dyn std::error::Error>> {
    let mut queries = Partitions::connect(&redis, &keys).await?;
    if let Some(log) = queries.log_id().await? {
        reader.check_log(&log).await?;
    }
    let horizon = reader.horizon(keep_days, now_ms, &Wanted::default()).await?;
    let unowed = reader.unowed(now_ms.saturating_sub(DAY_MS), MAX_ACCOUNTS).await?;
    let (behind, waits_since_ms) = queries.logged_beyond(&horizon.read).await?;
    Ok(Look {
        behind,
        waited_ms: waits_since_ms.map_or(0, |since_ms| now_ms.saturating_sub(since_ms)),
        horizon,
        unowed,
    })
}

pub fn judge(seen: Seen, now_ms: u64) -> Vec<Finding> {
    let mut findings = Findings::default();
    match seen {
        Seen::Off => findings.ok(
            SUBJECT,
            "off (history.url is empty): what became of a delivery is known as far as the log in Redis goes",
        ),
        Seen::NotHere(why) => findings.ok(SUBJECT, why),
        Seen::Broken(why) => findings.warn(
            SUBJECT,
            format!("cannot be read here: {why}"),
            "mend what it says, or set history.url to \"\"; deliveries go on without it, and Redis keeps the log for it up to \
             history.log_bytes",
        ),
        Seen::There(look) => of_look(&mut findings, &look, now_ms),
    }
    findings.worst_first()
}

fn of_look(findings: &mut Findings, look: &Look, now_ms: u64) {
    let begins = match look.horizon.begins_ms {
        Some(begins_ms) => format!("goes back to {}", when(begins_ms, now_ms)),
        None => "is still empty".to_owned(),
    };
    match look.behind {
        behind if behind > 0 && look.waited_ms > LONG_MS => findings.warn(
            SUBJECT,
            format!(
                "{begins}, and has {} of the log still to read, the first for {}",
                count(behind, "line", "lines"),
                span(look.waited_ms)
            ),
            "look at herald_history_up and the log of `herald serve`: the database is too slow, or nobody writes it here; what the \
             log drops before it is read is missing for good",
        ),
        behind => findings.ok(SUBJECT, format!("{begins}, and is {} behind", count(behind, "line", "lines"))),
    }
    for gap in &look.horizon.gaps {
        let lines =
            if gap.lines == 0 { "an unknown number of lines".to_owned() } else { count(gap.lines, "line", "lines") };
        findings.warn(
            SUBJECT,
            format!(
                "misses {lines} between {} and {}: {}",
                when(gap.from_ms, now_ms),
                when(gap.until_ms, now_ms),
                gap.why
            ),
            format!("nothing brings them back; {} (it is shown for as long as that time is kept)", against(gap)),
        );
    }
    if look.horizon.more_gaps > 0 {
        findings.warn(
            SUBJECT,
            format!("misses more: {}", count(look.horizon.more_gaps, "older gap", "older gaps")),
            "herald delivery list --account ACCOUNT --until WHEN names those of a time",
        );
    }
    if !look.unowed.is_empty() {
        let of = |unowed: &Unowed| {
            let why = if unowed.kind == "skipped" { "its endpoint is disabled" } else { "no endpoint wants them" };
            format!("{} ({}: {why})", unowed.account, number(unowed.count))
        };
        let accounts: Vec<String> = look.unowed.iter().map(of).collect();
        let first = look.unowed.first().map_or("", |unowed| unowed.account.as_str());
        findings.warn(
            SUBJECT,
            format!("events of the last day were owed to nobody: {}", accounts.join(", ")),
            format!("herald delivery list --account {first} shows them; an endpoint that is created now gets only later ones"),
        );
    }
}

/// What keeps it from happening again.
fn against(gap: &Gap) -> &'static str {
    match gap {
        gap if gap.is_of_lag() => "raise history.log_bytes, or find out why the history lagged, if it happens again",
        gap if gap.is_of_redis() => {
            "Redis itself lost its last writes: look at appendfsync, at its replicas, and at what else it lost (herald doctor)"
        }
        _ => "look at the log of `herald serve` of that time",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::doctor::finding::Level;

    fn judged(seen: Seen) -> Vec<(Level, String)> {
        judge(seen, 10 * DAY_MS).into_iter().map(|finding| (finding.level, finding.says)).collect()
    }

    fn well() -> Look {
        let horizon = Horizon { begins_ms: Some(DAY_MS), read: BTreeMap::new(), gaps: Vec::new(), more_gaps: 0 };
        Look { horizon, behind: 3, waited_ms: 400, unowed: Vec::new() }
    }

    #[test]
    fn a_gap_comes_with_what_helps_against_its_cause() {
        let why = |why: &str| Gap { from_ms: DAY_MS, until_ms: DAY_MS, lines: 0, why: why.to_owned() };
        assert!(against(&why(crate::history::LOG_LOST)).contains("appendfsync"));
        assert!(against(&why(crate::history::LOG_DROPPED)).contains("history.log_bytes"));
        assert!(!against(&why("of another version")).contains("log_bytes"));
    }

    #[test]
    fn a_history_that_is_written_is_well_and_so_is_none() {
        assert_eq!(judged(Seen::Off)[0].0, Level::Ok);
        assert_eq!(judged(Seen::NotHere("it is elsewhere".to_owned()))[0].0, Level::Ok);
        let [(Level::Ok, says)] = &judged(Seen::There(well()))[..] else { panic!("it is not well") };
        assert!(says.contains("3 lines behind"), "{says}");
    }

    #[test]
    fn what_it_misses_and_what_is_owed_to_nobody_is_warned_of() {
        let gap = Gap { from_ms: DAY_MS, until_ms: 2 * DAY_MS, lines: 12, why: "they were dropped".to_owned() };
        let unowed = Unowed { account: "acc_1".to_owned(), kind: "no_endpoint".to_owned(), count: 1_200 };
        let horizon = Horizon { gaps: vec![gap], ..well().horizon };
        let look = Look { horizon, behind: 2, waited_ms: LONG_MS + 1, unowed: vec![unowed] };
        let found = judged(Seen::There(look));
        assert!(found.len() == 3 && found.iter().all(|(level, _)| *level == Level::Warn), "{found:?}");
        let all: String = found.into_iter().map(|(_, says)| says).collect();
        for part in [
            "2 lines of the log still to read, the first for 1m",
            "misses 12 lines",
            "acc_1 (1 200: no endpoint wants them)",
        ] {
            assert!(all.contains(part), "{part} is not in {all}");
        }
        assert_eq!(
            judged(Seen::Broken("it is torn".to_owned()))[0],
            (Level::Warn, "cannot be read here: it is torn".to_owned())
        );
    }
}
