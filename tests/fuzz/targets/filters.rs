//! What operators type: durations, ids, event types, and the filters of the command line.
//! The first byte says which; a command line has one argument a line.

use std::{fmt::Display, str::FromStr};

use clap::{Args, FromArgMatches};
use herald::{
    cli::{self, DeadLetterFilter},
    config::{compact, parse_duration},
    facts::{
        event::EventType,
        id::{AccountId, DeliveryId, EndpointId, EntryId, EventId, IntentId},
        sequence::Sequence,
    },
    store::queries::DeadFilter,
};

use super::text;

pub fn run(input: &[u8]) {
    let Some((form, rest)) = input.split_first() else { return };
    let text = text(rest);
    match form % 4 {
        0 => {
            survives::<EventId>(&text);
            survives::<AccountId>(&text);
            survives::<IntentId>(&text);
            survives::<EndpointId>(&text);
            survives::<DeliveryId>(&text);
            survives::<EventType>(&text);
            entry_id(&text);
        }
        1 => duration(&text),
        2 => dead_letters(&text),
        _ => command_line(&text),
    }
}

/// What is accepted prints as it was written, and contains nothing that breaks a key, a header or a line.
fn survives<T: FromStr + Display>(text: &str) {
    if let Ok(id) = text.parse::<T>() {
        let said = id.to_string();
        assert!(said.parse::<T>().is_ok_and(|again| again.to_string() == said), "{text:?}");
        assert!(!said.is_empty() && said.len() <= 300 && said.bytes().all(|b| b.is_ascii_graphic()), "{text:?}");
        assert!(!said.contains(['{', '}', '"', '\\']), "{text:?}");
    }
}

fn entry_id(text: &str) {
    let Ok(id) = text.parse::<EntryId>() else { return };
    assert_eq!(id.to_string().parse::<EntryId>().ok(), Some(id));
    assert!(id.before() <= id && id.padded().len() == 41);
    assert_eq!(Sequence(id).to_string().parse(), Ok(Sequence(id)));
}

fn duration(text: &str) {
    let Ok(duration) = parse_duration(text) else { return };
    let short = compact(duration);
    assert_eq!(parse_duration(&short), Ok(duration), "{text:?} is said as {short:?}");
}

fn dead_letters(text: &str) {
    /// Redis' clock in the year 2023, ms.
    const NOW_MS: u64 = 1_700_000_000_000;
    let read = |arguments: &[&str]| {
        let command = DeadLetterFilter::augment_args(clap::Command::new("filter").no_binary_name(true));
        let matches = command.try_get_matches_from(arguments).ok()?;
        DeadLetterFilter::from_arg_matches(&matches).ok()
    };
    let arguments: Vec<&str> = text.split('\n').collect();
    let Some(filter) = read(&arguments) else { return };
    let range = filter.range(NOW_MS);
    assert!(range.from_ms <= DeadFilter::END_MS && range.until_ms <= DeadFilter::END_MS, "{range:?}");
    let flags = filter.as_flags();
    let has_end = ["--until", "--older-than"].iter().any(|flag| flags.contains(flag));
    assert!(
        has_end || range.until_ms == DeadFilter::END_MS,
        "{range:?} hides what a clock that was set back dates later"
    );
    if flags == "--all" {
        assert_eq!(
            (range.endpoint, range.from_ms, range.until_ms),
            (None, 0, DeadFilter::END_MS),
            "a filter became all"
        );
        return;
    }
    let again: Vec<&str> = flags.split(' ').collect();
    let again = read(&again).unwrap_or_else(|| panic!("{flags:?} is what Herald says to type"));
    assert_eq!(again.as_flags(), flags);
    assert_eq!(again.range(NOW_MS), range, "{flags:?} is another filter than {text:?}");
}

fn command_line(text: &str) {
    let arguments = std::iter::once("herald").chain(text.split('\n'));
    if let Err(error) = cli::command().try_get_matches_from(arguments) {
        assert!(!error.to_string().is_empty());
    }
}
