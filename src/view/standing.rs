//! Where an unfinished delivery stands, in words and in a word.

use super::words;
use crate::store::queries::{Unfinished, WhereUnfinished};

/// Where it stands, and what it waits for: short enough for a column.
pub fn standing(one: &Unfinished, now_ms: u64, is_paused: bool) -> String {
    match one.place {
        WhereUnfinished::Due { at_ms } if at_ms <= now_ms && is_paused => {
            format!("due since {}: waits while all sending is paused", words::span(now_ms - at_ms))
        }
        WhereUnfinished::Due { at_ms } if at_ms <= now_ms => {
            format!("due since {}: a worker takes it next", words::span(now_ms - at_ms))
        }
        WhereUnfinished::Due { at_ms } => format!("due in {}", words::span(at_ms - now_ms)),
        WhereUnfinished::Claimed { since_ms } => {
            format!("with the worker for {}", words::span(now_ms.saturating_sub(since_ms)))
        }
        WhereUnfinished::Parked => "parked".to_owned(),
        WhereUnfinished::Held { head } => format!("held behind {head}"),
        WhereUnfinished::Nowhere => "moving, or out of place: look again".to_owned(),
    }
}

pub fn state(place: &WhereUnfinished) -> &'static str {
    match place {
        WhereUnfinished::Due { .. } => "due",
        WhereUnfinished::Claimed { .. } => "claimed",
        WhereUnfinished::Parked => "parked",
        WhereUnfinished::Held { .. } => "held",
        WhereUnfinished::Nowhere => "nowhere",
    }
}
