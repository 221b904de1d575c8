//! The books themselves: compact arrays of what was sent and what arrived, about a hundred bytes for each delivery at a
//! fan-out of one. Times are microseconds since the load began. Never judges: it notes whatever looks wrong as an
//! incident, with what a judge needs to tell a broken promise from the price of a fault.

use std::collections::HashMap;

use super::{lanes::LaneBook, times::NEVER};
use crate::lifecycle::MAX_STEPS;

/// No event, in 32 bits.
pub const NONE: u32 = u32::MAX;

/// What was sent.
#[derive(Debug, Clone, Copy)]
pub struct EventBook {
    pub intended_us: u64,
    /// When it was first handed to Redis.
    pub sent_us: u64,
    /// A hash of its exact bytes.
    pub hash: u64,
    /// `herald-sequence` as it first arrived, as one number; 0 means none.
    pub sequence: u64,
    /// Redis' time of its entry, in milliseconds since the load began.
    pub entry_ms: i32,
    pub account: u32,
    pub intent: u32,
    pub place: u8,
    pub confirmed: bool,
    /// Its confirmation was lost and it was sent again: it may be in the stream twice.
    pub sent_again: bool,
}

/// What became of the last attempt of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Last {
    /// None has arrived.
    #[default]
    None,
    /// It has not been answered.
    InFlight,
    /// A 2xx is being written: its reader may act on it before the writer knows.
    Affirming,
    /// A 2xx was written wholly.
    Acknowledged,
    /// Answered with a failure.
    Refused,
    /// 429.
    Throttled,
    /// 410.
    Gone,
    /// The sender went away before it was answered, or the answer came later than it waits.
    Abandoned,
    /// The receiver broke off on purpose, or could not write its answer.
    Broken,
}

/// One event owed to one endpoint.
#[derive(Debug, Clone, Copy)]
pub struct DeliveryBook {
    pub first_arrival_us: u64,
    /// When the first 2xx was completely written.
    pub acknowledged_us: u64,
    pub last_arrival_us: u64,
    /// When the last attempt was answered or given up.
    pub ended_us: u64,
    /// How long its endpoint's lane may have been shut by then, in total.
    pub shut_us: u64,
    pub arrivals: u16,
    pub acknowledgements: u16,
    /// The largest `herald-attempt` that arrived.
    pub attempt: u16,
    pub last: Last,
    /// An acknowledgement came so late that the sender may not have waited for it, or may not have got all of it.
    pub is_doubtful: bool,
}

impl DeliveryBook {
    pub const NEW: Self = Self {
        first_arrival_us: NEVER,
        acknowledged_us: NEVER,
        last_arrival_us: NEVER,
        ended_us: NEVER,
        shut_us: 0,
        arrivals: 0,
        acknowledgements: 0,
        attempt: 0,
        last: Last::None,
        is_doubtful: false,
    };

    pub fn is_acknowledged(&self) -> bool {
        self.acknowledged_us != NEVER
    }

    /// Whether all attempts that the policy allows have been made, as far as a receiver sees: the last one has come,
    /// and so have those before it, except for a few that may have been lost on a connection that was just being
    /// closed.
    pub fn is_exhausted(&self, max_attempts: u32) -> bool {
        let came =
            u32::from(self.attempt) >= max_attempts && u32::from(self.arrivals) + UNSEEN_ATTEMPTS >= max_attempts;
        !self.is_acknowledged() && came
    }
}

/// How many attempts of one delivery may miss their receiver without it being anyone's fault.
const UNSEEN_ATTEMPTS: u32 = 2;

/// One receiver.
#[derive(Debug, Clone, Copy, Default)]
pub struct EndpointBook {
    /// Deliveries that were acknowledged, each counted once.
    pub acknowledged: u64,
    /// When it first answered 410; [`NEVER`] in a new book.
    pub gone_us: u64,
    /// When it last did.
    pub gone_again_us: u64,
    /// When it last asked for less, or failed so often in a row that its deliveries may be parked.
    pub shut_us: u64,
    pub failures_in_a_row: u32,
    pub lane: LaneBook,
}

impl EndpointBook {
    /// Whether it had answered 410 before an entry of this time, milliseconds since the load began. Within the same
    /// millisecond nobody knows.
    pub fn was_gone_by(&self, entry_ms: i64) -> bool {
        self.gone_us != NEVER && entry_ms + 1 >= (self.gone_us / 1000) as i64
    }
}

/// Something that looks like a broken promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Suspicion {
    /// Arrived again after it was acknowledged.
    Duplicated,
    /// Arrived before an earlier one of its intent had ended.
    OutOfOrder,
    /// Two of one intent were in flight at once.
    Concurrent,
    WrongSignature,
    WrongBody,
    WrongHeaders,
    /// A number or time that should only grow did not; a fault may make Herald repeat itself.
    Repeated,
    Early,
    /// A retry came long after its time, with nothing in the way of its endpoint's lane.
    Late,
    /// Arrived where a 410 had been answered before.
    AfterGone,
    Unknown,
    Redirected,
    BadCertificate,
}

impl Suspicion {
    pub const COUNT: usize = 13;
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Incident {
    pub suspicion: Suspicion,
    /// [`NONE`] for what belongs to no event of this run.
    pub event: u32,
    /// The other event of a pair.
    pub other: u32,
    pub endpoint: u32,
    pub at_us: u64,
    /// What is judged began here: a fault between the two times can be its cause.
    pub since_us: u64,
    pub attempt: u32,
    pub detail: &'static str,
}

/// One second of the run.
#[derive(Debug, Clone, Copy, Default)]
pub struct SecondBook {
    pub attempts: u32,
    pub failed: u32,
    /// Retries that had nothing in their endpoint's way.
    pub retries: u32,
}

/// How many incidents are kept for the judge; the others are counted, and count as broken. A worker that is killed
/// repeats some thousands of deliveries, so this is enough for hundreds of faults; it takes 12 MB.
pub const MAX_INCIDENTS: usize = 200_000;

/// How many seconds have a book of their own: a day. What happens later is added to the last.
pub const MAX_SECONDS: usize = 86_400;

#[derive(Debug, Default)]
pub struct Books {
    pub events: Vec<EventBook>,
    /// `event · fan_out + k`.
    pub deliveries: Vec<DeliveryBook>,
    pub intents: Vec<[u32; MAX_STEPS]>,
    pub endpoints: Vec<EndpointBook>,
    pub incidents: Vec<Incident>,
    /// By suspicion.
    pub left_out: [u64; Suspicion::COUNT],
    pub seconds: Vec<SecondBook>,
    pub changes: Changes,
    /// How many requests were tried for something, by what.
    pub tried: Tried,
}

/// URLs that changed while the load went on.
#[derive(Debug, Default)]
pub struct Changes {
    /// How many times they were changed.
    pub generation: u32,
    /// By endpoint: each generation, and Redis' time when the change was answered, in milliseconds since the load
    /// began.
    pub answered: HashMap<u32, Vec<(u32, i64)>>,
    /// By delivery: the oldest generation at whose URL it arrived after a first change had begun.
    pub arrived_at: HashMap<u32, u32>,
}

impl Changes {
    /// The oldest generation that an entry of this time may be owed to. Within the same millisecond nobody knows.
    pub fn owed(&self, endpoint: u32, entry_ms: i64) -> u32 {
        let answered = self.answered.get(&endpoint).map(Vec::as_slice).unwrap_or_default();
        let before = answered.iter().filter(|(_, answered_ms)| *answered_ms < entry_ms);
        before.map(|(generation, _)| *generation).max().unwrap_or(0)
    }
}

/// How often a promise could have broken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tried {
    /// Requests that arrived.
    pub requests: u64,
    /// Those of them that are an event of this run, at an endpoint to which it is owed.
    pub arrivals: u64,
    /// Arrivals of an event that has earlier ones in its intent.
    pub followers: u64,
    /// Arrivals after an earlier attempt of the same delivery.
    pub retries: u64,
    /// Answers that sent the client elsewhere.
    pub redirects: u64,
    /// TLS handshakes with the wrong certificate.
    pub bad_handshakes: u64,
}

impl Books {
    pub fn suspect(&mut self, incident: Incident) {
        match self.incidents.len() < MAX_INCIDENTS {
            true => self.incidents.push(incident),
            false => self.left_out[incident.suspicion as usize] += 1,
        }
    }

    pub fn second(&mut self, at_us: u64) -> &mut SecondBook {
        let second = ((at_us / 1_000_000) as usize).min(MAX_SECONDS - 1);
        if self.seconds.len() <= second {
            self.seconds.resize(second + 1, SecondBook::default());
        }
        &mut self.seconds[second]
    }
}
