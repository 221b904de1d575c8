//! What each client asked and was answered, and what arrived at each receiver. Takes notes; judges nothing.

use std::{
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::Instant,
};

use serde_json::Value;

use super::asks::Ask;
use crate::{clock, loadtest::ledger::times::micros};

/// What a client saw of one try.
#[derive(Debug, Clone, PartialEq)]
pub enum Seen {
    Answer(u16, Value),
    /// No process took the connection: nothing was asked.
    NotSent,
    /// The connection ended, or the client's patience: it may have been done, may be done later, or never.
    Nothing,
}

/// What a client knows in the end.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// 2xx.
    Done(Value),
    /// 4xx, with the problem's type.
    Refused(u16, String),
    /// 503 that promises that nothing was changed; or it was never sent.
    Untouched,
    /// Another 503, or no answer.
    Unknown,
    /// 500, or what no client can read.
    Failed(u16, String),
}

impl Outcome {
    pub fn of(seen: &Seen) -> Self {
        let text = |body: &Value, member: &str| body[member].as_str().unwrap_or_default().to_owned();
        match seen {
            Seen::Answer(200..300, body) => Self::Done(body.clone()),
            Seen::Answer(code @ 400..500, body) => Self::Refused(*code, text(body, "type")),
            Seen::Answer(503, body) if text(body, "detail").contains("nothing was changed") => Self::Untouched,
            Seen::Answer(503, _) | Seen::Nothing => Self::Unknown,
            Seen::Answer(code, body) => Self::Failed(*code, text(body, "detail")),
            Seen::NotSent => Self::Untouched,
        }
    }

    /// Whoever sees it may ask again with the same key.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Done(_) | Self::Refused(..) | Self::Failed(..))
    }
}

/// One request, with its repetitions. Times are microseconds since the load began.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    pub account: u32,
    /// Empty until a creation is answered.
    pub intent: String,
    pub ask: Ask,
    pub key: Option<String>,
    pub intended_us: u64,
    pub began_us: u64,
    pub ended_us: u64,
    /// How often it was sent until it was answered.
    pub tries: u32,
    /// A try before the last may have been done, or may be done later.
    pub is_doubtful: bool,
    pub outcome: Outcome,
    /// What repetitions with the same key were answered after that.
    pub repeats: Vec<Seen>,
}

impl Asked {
    pub fn is_done(&self) -> bool {
        matches!(self.outcome, Outcome::Done(_))
    }

    /// It was not answered with 2xx, and may be done all the same.
    pub fn may_be_done(&self) -> bool {
        match self.outcome {
            Outcome::Done(_) => false,
            Outcome::Unknown | Outcome::Failed(..) => true,
            Outcome::Refused(..) | Outcome::Untouched => self.is_doubtful,
        }
    }
}

/// One callback at one endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    pub endpoint: u32,
    pub at_us: u64,
    pub event: String,
    pub kind: String,
    pub account: String,
    pub intent: String,
    pub status: String,
    /// The header that tells the order of the entries.
    pub sequence: String,
    /// Why its signature, or its body, cannot be believed.
    pub fault: Option<String>,
    /// It was answered with 2xx.
    pub is_acknowledged: bool,
}

#[derive(Debug, Clone, Default)]
pub struct Books {
    pub asked: Vec<Asked>,
    pub arrivals: Vec<Arrival>,
    /// When requests were to be sent, and how late the generator itself was with each.
    pub lateness_us: Vec<(u64, u64)>,
}

/// All clones of an `Arc` share one.
#[derive(Default)]
pub struct Ledger {
    began: OnceLock<Instant>,
    books: Mutex<Books>,
}

impl Ledger {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The load begins now.
    pub fn begin(&self) -> Instant {
        *self.began.get_or_init(clock::now)
    }

    /// Microseconds since the load began; 0 before.
    pub fn now_us(&self) -> u64 {
        self.began.get().map_or(0, |began| micros(clock::now().saturating_duration_since(*began)))
    }

    pub fn asked(&self, asked: Asked) {
        self.books().asked.push(asked);
    }

    pub fn arrived(&self, arrival: Arrival) {
        self.books().arrivals.push(arrival);
    }

    pub fn sent(&self, intended_us: u64, late_us: u64) {
        self.books().lateness_us.push((intended_us, late_us));
    }

    /// Requests sent, requests answered, callbacks acknowledged and not.
    pub fn progress(&self) -> [u64; 4] {
        let books = self.books();
        let acknowledged = books.arrivals.iter().filter(|arrival| arrival.is_acknowledged).count();
        let (sent, asked, arrivals) = (books.lateness_us.len(), books.asked.len(), books.arrivals.len());
        [sent, asked, acknowledged, arrivals - acknowledged].map(|many| many as u64)
    }

    pub fn read(&self) -> Books {
        self.books().clone()
    }
}
