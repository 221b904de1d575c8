//! An operation: one thing done to many deliveries, planned first and then started by its id. A plan freezes what it is about,
//! so nothing that comes later, and no second start, widens it. Pure; what is left of one in Redis is the store's.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{
    event::EventType,
    id::{AccountId, DeliveryId, EndpointId, EntryId, EventId, IntentId, OperationId},
    letter::Cause,
    retry::DeadReason,
};

/// Version of the stored form.
pub const OPERATION_SCHEMA: u32 = 1;

/// How many a second an operation may be set to take: beyond, the worker's inbox would be its limit.
pub const MAX_RATE: u32 = 10_000;

/// What is done to each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Dead letters go out again. One is done when it was delivered, or is dead again.
    Redeliver,
    /// Dead letters go for good.
    Discard,
    /// Deliveries that wait for their next attempt are due at once.
    SendNow,
    /// Events that the history kept go to one endpoint again.
    Replay,
    /// What is kept of an account's events goes for good: letters, entries, and the history's copies.
    Erase,
}

impl Kind {
    pub const ALL: [Self; 5] = [Self::Redeliver, Self::Discard, Self::SendNow, Self::Replay, Self::Erase];

    pub fn name(self) -> &'static str {
        match self {
            Self::Redeliver => "redeliver",
            Self::Discard => "discard",
            Self::SendNow => "send-now",
            Self::Replay => "replay",
            Self::Erase => "erase",
        }
    }

    /// What one that is done was.
    pub fn past(self) -> &'static str {
        match self {
            Self::Redeliver | Self::Replay => "delivered",
            Self::Discard => "discarded",
            Self::SendNow => "sent",
            Self::Erase => "erased",
        }
    }

    /// Where nobody says otherwise: what goes out again must not be felt by what is new.
    pub fn usual_rate(self) -> Rate {
        Rate::of(match self {
            Self::Redeliver | Self::Replay => 200,
            Self::Discard | Self::Erase => 1_000,
            Self::SendNow => 500,
        })
    }
}

/// How many a second at most. What one part has of an operation may have less than one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate {
    millionths: u64,
}

const MILLION: u64 = 1_000_000;

impl Rate {
    /// So many, one at least and [`MAX_RATE`] at most.
    pub fn of(a_second: u32) -> Self {
        Self { millionths: u64::from(a_second.clamp(1, MAX_RATE)) * MILLION }
    }

    pub fn per_second(self) -> f64 {
        self.millionths as f64 / MILLION as f64
    }

    /// The whole number that it does not exceed.
    pub fn rounded_up(self) -> u32 {
        self.millionths.div_ceil(MILLION) as u32
    }

    /// Divided by what there is to do in each part: together no more than this one.
    pub fn divided(self, work: &[u64]) -> Vec<Self> {
        let all = work.iter().map(|part| u128::from(*part)).sum::<u128>().max(1);
        let up_to = |done: u128| (u128::from(self.millionths) * done / all) as u64;
        let mut done = 0;
        let share = |part: &u64| {
            let before = up_to(done);
            done += u128::from(*part);
            // Whoever has anything to do gets on, if only in days.
            Self { millionths: (up_to(done) - before).max(1) }
        };
        work.iter().map(share).collect()
    }
}

/// Without a fraction where it is whole, as every Herald reads it.
impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, fraction) = (self.millionths / MILLION, self.millionths % MILLION);
        match fraction {
            0 => write!(f, "{whole}"),
            _ => f.write_str(format!("{whole}.{fraction:06}").trim_end_matches('0')),
        }
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unknown = || format!("{:?} is no rate", text.chars().take(32).collect::<String>());
        let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
        let is_number =
            |digits: &str, most| (1..=most).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
        if !is_number(whole, 5) || !is_number(fraction, 6) {
            return Err(unknown());
        }
        let number = |digits: &str| digits.parse::<u64>().map_err(|_| unknown());
        let millionths = number(whole)? * MILLION + number(&format!("{fraction:0<6}"))?;
        let most = Self::of(MAX_RATE).millionths;
        if (1..=most).contains(&millionths) { Ok(Self { millionths }) } else { Err(unknown()) }
    }
}

impl FromStr for Kind {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let names = || Self::ALL.map(Self::name).join(", ");
        let known = Self::ALL.into_iter().find(|kind| kind.name() == text);
        known.ok_or_else(|| format!("there is no such operation; use one of {}", names()))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nothing is done until it is started; it is forgotten after a day.
    Planned,
    Running,
    /// Takes nothing more; what is under way ends.
    Paused,
    /// As paused, and it ends with what is under way.
    Cancelling,
    Cancelled,
    Done,
}

impl State {
    pub const ALL: [Self; 6] =
        [Self::Planned, Self::Running, Self::Paused, Self::Cancelling, Self::Cancelled, Self::Done];

    pub fn name(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
            Self::Done => "done",
        }
    }

    /// Of two shares of one operation: what there is still to say about either is said of both.
    fn with(self, other: Self) -> Self {
        let says = [Self::Running, Self::Cancelling, Self::Paused, Self::Planned, Self::Cancelled, Self::Done];
        says.into_iter().find(|state| *state == self || *state == other).unwrap_or(self)
    }

    pub fn has_ended(self) -> bool {
        matches!(self, Self::Cancelled | Self::Done)
    }
}

impl FromStr for State {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|state| state.name() == text);
        known.ok_or_else(|| format!("{text:?} is no state of an operation"))
    }
}

/// Which deliveries: those that meet every condition. Both times included, ms since 1970 by Redis' clock.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    pub from_ms: u64,
    pub until_ms: u64,
    /// Of those of the last millisecond, none behind this one, in the order of the index: there was a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<DeliveryId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<EndpointId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<DeadReason>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intent: Option<IntentId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<EventId>,
    /// Of a replay: the last event that the history had read. Those of the last millisecond that it read later are not meant. Of an
    /// erasure: the last entry of the stream; none of those that came later is meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_entry: Option<EntryId>,
    /// Of a replay: those that the endpoint wanted when it was planned; all if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub types: Vec<EventType>,
}

impl Selection {
    /// Whether a letter that fits, of this time, lies before its end.
    pub fn includes(&self, at_ms: u64, id: &DeliveryId) -> bool {
        let last = self.last.as_ref().map(ToString::to_string);
        at_ms < self.until_ms || at_ms == self.until_ms && last.is_none_or(|last| id.to_string() <= last)
    }
}

/// What was planned: never changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub schema: u32,
    pub kind: Kind,
    pub selection: Selection,
    /// The same in the flags' words.
    pub filter: String,
    /// How many there were: it takes no more.
    pub count: u64,
    pub by: String,
    pub why: String,
    pub at_ms: u64,
}

/// What became of those that it took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Under way: asked for, and not ended.
    pub open: u64,
    pub done: u64,
    pub refused: u64,
    /// Given up again.
    pub dead_again: u64,
    /// No longer there when their turn came: another operation, an operator or retention was first.
    pub overtaken: u64,
}

impl Counts {
    pub fn ended(&self) -> u64 {
        self.done + self.refused + self.dead_again + self.overtaken
    }
}

/// How one ended that was not simply done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exception {
    pub delivery: String,
    /// `refused`, `dead_again` or `overtaken`.
    pub result: String,
    pub why: String,
    pub at_ms: u64,
}

/// An operation as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    pub id: OperationId,
    pub plan: Plan,
    pub state: State,
    /// How many it takes at most.
    pub rate: Rate,
    pub counts: Counts,
    pub started: Option<Change>,
    /// The last time that somebody paused, resumed or cancelled it.
    pub changed: Option<Change>,
    pub ended_ms: Option<u64>,
    /// Why it does not go on, for each endpoint or whatever it is that it waits for.
    pub waits: Vec<String>,
    /// The entry of the audit log with which it began.
    pub audit: Option<String>,
}

impl Operation {
    /// What is not taken yet. Those that have gone meanwhile are only known when their turn comes.
    pub fn left(&self) -> u64 {
        self.plan.count.saturating_sub(self.counts.ended() + self.counts.open)
    }
}

/// One operation from what several partitions have of it; none where there is nothing of it.
pub fn merged(shares: impl IntoIterator<Item = Operation>) -> Option<Operation> {
    shares.into_iter().reduce(|one, other| Operation {
        plan: Plan {
            count: one.plan.count + other.plan.count,
            at_ms: one.plan.at_ms.min(other.plan.at_ms),
            selection: Selection {
                until_ms: one.plan.selection.until_ms.max(other.plan.selection.until_ms),
                ..one.plan.selection
            },
            ..one.plan
        },
        state: one.state.with(other.state),
        rate: Rate { millionths: one.rate.millionths.saturating_add(other.rate.millionths) },
        counts: Counts {
            open: one.counts.open + other.counts.open,
            done: one.counts.done + other.counts.done,
            refused: one.counts.refused + other.counts.refused,
            dead_again: one.counts.dead_again + other.counts.dead_again,
            overtaken: one.counts.overtaken + other.counts.overtaken,
        },
        started: one.started.into_iter().chain(other.started).min_by_key(|started| started.at_ms),
        changed: one.changed.into_iter().chain(other.changed).max_by_key(|changed| changed.at_ms),
        // Not before the last.
        ended_ms: one.ended_ms.zip(other.ended_ms).map(|(one, other)| one.max(other)),
        waits: one.waits.into_iter().chain(other.waits).collect(),
        ..one
    })
}

/// Who changed it, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    pub by: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    pub at_ms: u64,
}

/// How a redelivered delivery's mark names its operation: behind the reason, where its history and the log show it.
pub fn why_of(why: &str, operation: &OperationId) -> String {
    format!("{why} ({operation})")
}

/// Whether a mark's reason is of this operation.
pub fn is_why_of(why: &str, operation: &OperationId) -> bool {
    why.strip_suffix(')').and_then(|why| why.strip_suffix(operation.as_str())).is_some_and(|why| why.ends_with(" ("))
}

/// An id whose order is that of time: 11 hex digits of milliseconds, which last until the year 2527, and 64 random bits.
pub fn new_id(at_ms: u64, random: u64) -> OperationId {
    let text = format!("op_{:011x}{random:016x}", at_ms & 0xfff_ffff_ffff);
    OperationId::new(&text).expect("hex has only what ids have")
}

/// When an id was made, ms since 1970; None for what is no id of an operation.
pub fn made_ms(id: &OperationId) -> Option<u64> {
    let hex = id.as_str().strip_prefix("op_").filter(|hex| hex.len() == 27)?;
    let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if hex.bytes().all(is_hex) { u64::from_str_radix(&hex[..11], 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_tells_when_it_was_made() {
        for (at_ms, random) in [(0, 0), (1_795_000_000_000, u64::MAX)] {
            assert_eq!(made_ms(&new_id(at_ms, random)), Some(at_ms));
        }
        for other in ["op_none", "op_00000000000000000000000000", "op_é000000000000000000000000"] {
            assert_eq!(OperationId::new(other).ok().and_then(|id| made_ms(&id)), None, "{other}");
        }
    }

    #[test]
    fn a_rate_is_divided_without_becoming_more_and_is_read_as_it_is_written() {
        let one = Rate::of(1);
        for work in [vec![1; 64], vec![1, 2, 4], vec![7, 0, 900_000], vec![3], vec![1; 1_024]] {
            let shares = one.divided(&work);
            let all = shares.iter().map(|share| share.millionths).sum::<u64>();
            // One that has nothing to do has a millionth all the same.
            assert!((MILLION..=MILLION + 2).contains(&all), "{shares:?}");
            for share in shares {
                assert_eq!(share.to_string().parse(), Ok(share), "{share}");
            }
        }
        assert_eq!(Rate::of(40).divided(&[1, 3]), [Rate::of(10), Rate::of(30)]);
        let texts = one.divided(&[1; 64])[0].to_string();
        assert_eq!((texts.as_str(), Rate::of(200).to_string()), ("0.015625", "200".to_owned()));
        assert_eq!((one.divided(&[1, 2])[0].rounded_up(), one.rounded_up(), Rate::of(0)), (1, 1, one));
        for odd in ["", "0", "0.0", ".5", "1.", "-1", "1e3", "10000.1", "1.0000001", "999999999999"] {
            assert!(odd.parse::<Rate>().is_err(), "{odd}");
        }
    }

    #[test]
    fn shares_are_one_operation_which_goes_on_until_all_have_ended() {
        let share = |state, done, ended_ms| {
            let (schema, kind, selection) = (OPERATION_SCHEMA, Kind::Redeliver, Selection::default());
            let (filter, by, why) = ("--all".to_owned(), "ops".to_owned(), "mended".to_owned());
            let plan = Plan { schema, kind, selection, filter, count: 10, by, why, at_ms: done };
            let (id, counts) = (new_id(1, 1), Counts { done, open: 1, ..Counts::default() });
            let (started, changed, waits, audit) = (None, None, vec![format!("{done}")], None);
            Operation { id, plan, state, rate: Rate::of(50), counts, started, changed, ended_ms, waits, audit }
        };
        assert_eq!(merged([]), None);
        let one = share(State::Done, 7, Some(7));
        assert_eq!(merged([one.clone()]), Some(one.clone()));
        let both = merged([one.clone(), share(State::Running, 2, None), share(State::Done, 1, Some(3))]).unwrap();
        assert_eq!((both.state, both.ended_ms, both.plan.count, both.rate), (State::Running, None, 30, Rate::of(150)));
        assert_eq!((both.counts.done, both.left(), both.waits.len()), (10, 17, 3));
        let ended = merged([one.clone(), share(State::Cancelled, 1, Some(9))]).unwrap();
        assert_eq!((ended.state, ended.ended_ms), (State::Cancelled, Some(9)));
        assert_eq!(merged([one, share(State::Planned, 1, None)]).unwrap().state, State::Planned, "to be started yet");
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        assert!(Kind::ALL.into_iter().all(|kind| kind.name().parse() == Ok(kind)));
        assert!(State::ALL.into_iter().all(|state| state.name().parse() == Ok(state)));
        assert!("resend".parse::<Kind>().unwrap_err().contains("redeliver, discard"));
    }

    #[test]
    fn the_ids_of_later_plans_come_later() {
        let ids = [(1, u64::MAX), (2, 0), (1_800_000_000_000, 7), (1_800_000_000_001, 0)].map(|(at, n)| new_id(at, n));
        assert!(ids.is_sorted());
        assert_ne!(new_id(1, 1), new_id(1, 2));
    }

    #[test]
    fn a_limit_ends_a_selection_within_a_millisecond() {
        let last = "7-1:ep_a".parse().ok();
        let selection = Selection { until_ms: 10, last, ..Selection::default() };
        let includes = |at_ms, id: &str| selection.includes(at_ms, &id.parse().unwrap());
        assert!(includes(9, "9-9:ep_z") && includes(10, "7-1:ep_a") && !includes(10, "7-1:ep_b"));
        assert!(!includes(11, "1-1:ep_a"));
    }

    #[test]
    fn a_mark_names_its_operation_behind_any_reason() {
        let (one, other) = (new_id(1, 1), new_id(1, 2));
        let why = why_of("mended (really)", &one);
        assert!(is_why_of(&why, &one) && !is_why_of(&why, &other) && !is_why_of("mended", &one));
    }
}
