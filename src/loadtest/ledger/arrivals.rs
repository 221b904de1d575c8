//! The receivers' side of the books: a request has arrived, was answered, was acknowledged, was given up. What looks
//! wrong at that moment is noted with the state of its chain, which soon changes.

use std::time::Duration;

use super::{
    Ledger, State,
    books::{DeliveryBook, Incident, Last, NONE, Suspicion},
    times::{NEVER, micros},
};
use crate::{
    facts::retry::longest_that_fits,
    lifecycle::MAX_STEPS,
    loadtest::scenario::{Failure, Profile},
};

/// Herald's time for an attempt starts before the request arrives and ends before its end is noticed here. An attempt
/// that is this close to its time may already be over.
const TIMEOUT_SLACK: Duration = Duration::from_millis(250);

/// A retry is due at a whole millisecond of Redis' clock, which may be cut off, and is compared with this process' clock.
const EARLY_TOLERANCE: Duration = Duration::from_millis(3);

/// When a sender gave up, its own clock ran out some time before the closed connection was noticed here.
const EARLY_TOLERANCE_ABANDONED: Duration = Duration::from_millis(300);

/// How late a retry may come beyond the policy's latest moment and the time for one attempt; the latter because a lane
/// that met failures may let out only one at a time. On two busy cores with a debug build retries come tens of
/// milliseconds late; a stall of such a machine or its disk lasts a second or two. This is more than twice that, and
/// still far less than what a merchant would call late.
const LATE_TOLERANCE: Duration = Duration::from_secs(5);

/// Whatever was on its way when the first 410 was answered has arrived by then, even on a machine that is full.
const GONE_TOLERANCE: Duration = Duration::from_secs(2);

/// A verified request as the receiver read it.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    pub endpoint: u32,
    /// From the id in its body; none if it is not an event of this run.
    pub event: Option<u32>,
    /// Of its URL; 0 is the first one.
    pub generation: u32,
    pub body_hash: u64,
    /// `herald-attempt`; 0 if it is missing or not a number.
    pub attempt: u32,
    /// `herald-sequence` as one number; 0 if it is missing or invalid.
    pub sequence: u64,
    /// `webhook-timestamp` in milliseconds since the load began; none if it is missing.
    pub timestamp_ms: Option<i64>,
    /// Why a signature is wrong, if one is.
    pub bad_signature: Option<&'static str>,
    /// Why another header is wrong, if one is.
    pub bad_header: Option<&'static str>,
}

/// Names one attempt in later calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    event: u32,
    endpoint: u32,
    delivery: u32,
    /// Which arrival of the delivery it is, from 1.
    arrival: u16,
    at_us: u64,
}

/// What the receiver needs to know to behave.
#[derive(Debug, Clone, Copy)]
pub struct Arrived {
    /// None for a request that belongs to no delivery of this run.
    pub ticket: Option<Ticket>,
    /// Which arrival of its delivery this is, from 1.
    pub arrival: u16,
    /// Deliveries that this endpoint has acknowledged so far.
    pub acknowledged: u64,
}

/// How a request is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// 2xx: to be followed by [`Ledger::written`].
    Yes,
    Refused,
    /// 429: the receiver asks for less. A 503 that does not say for how long asks for nothing.
    Throttled,
    Gone,
    Redirected,
    /// Broken off on purpose.
    Broken,
    /// The sender went away before there was an answer.
    Abandoned,
}

impl Ledger {
    /// A request has arrived completely.
    pub fn arrive(&self, arrival: &Arrival, at_us: u64) -> Arrived {
        let mut state = self.lock();
        let state = &mut *state;
        state.live.attempts += 1;
        state.books.tried.requests += 1;
        state.books.second(at_us).attempts += 1;
        let acknowledged = state.books.endpoints.get(arrival.endpoint as usize).map_or(0, |book| book.acknowledged);
        let Some(event) = arrival.event.filter(|event| self.is_owed(state, *event, arrival.endpoint)) else {
            state.books.suspect(Incident {
                suspicion: Suspicion::Unknown,
                event: arrival.event.unwrap_or(NONE),
                other: NONE,
                endpoint: arrival.endpoint,
                at_us,
                since_us: at_us,
                attempt: arrival.attempt,
                detail: if arrival.event.is_some() { "not owed to this endpoint" } else { "not an event of this run" },
            });
            return Arrived { ticket: None, arrival: 1, acknowledged };
        };
        state.books.tried.arrivals += 1;
        let delivery = self.delivery(event, arrival.endpoint);
        self.check_request(state, arrival, event, delivery, at_us);
        self.check_chain(state, arrival, event, at_us);
        if state.books.changes.generation > 0 {
            let oldest = state.books.changes.arrived_at.entry(delivery).or_insert(arrival.generation);
            *oldest = arrival.generation.min(*oldest);
        }
        let book = &mut state.books.deliveries[delivery as usize];
        if book.first_arrival_us == NEVER {
            book.first_arrival_us = at_us;
            let latency = at_us.saturating_sub(state.books.events[event as usize].intended_us);
            let profile = self.population.profile_index(arrival.endpoint);
            state.live.arrive(profile, self.population.is_alive(arrival.endpoint), latency);
        }
        book.arrivals = book.arrivals.saturating_add(1);
        book.attempt = book.attempt.max(arrival.attempt.min(u32::from(u16::MAX)) as u16);
        (book.last, book.last_arrival_us) = (Last::InFlight, at_us);
        let ticket = Ticket { event, endpoint: arrival.endpoint, delivery, arrival: book.arrivals, at_us };
        Arrived { ticket: Some(ticket), arrival: book.arrivals, acknowledged }
    }

    /// The answer is about to be written, or there will be none. Noted first, because the sender may act on an answer
    /// before its writer comes to note it.
    pub fn answer(&self, ticket: &Ticket, answer: Answer, at_us: u64) {
        let mut state = self.lock();
        let state = &mut *state;
        self.note_lane(state, ticket, answer, at_us);
        let last = match answer {
            Answer::Yes if self.is_too_late(ticket, at_us) => Last::Abandoned,
            Answer::Yes => Last::Affirming,
            Answer::Refused | Answer::Redirected => Last::Refused,
            Answer::Throttled => Last::Throttled,
            Answer::Gone => Last::Gone,
            Answer::Broken => Last::Broken,
            Answer::Abandoned => Last::Abandoned,
        };
        state.live.affirming += u64::from(answer == Answer::Yes);
        if last != Last::Affirming {
            state.live.fail(self.population.profile_index(ticket.endpoint));
            state.books.second(at_us).failed += 1;
        }
        state.books.tried.redirects += u64::from(answer == Answer::Redirected);
        let shut_us = state.books.endpoints[ticket.endpoint as usize].lane.shut_us(at_us);
        let book = &mut state.books.deliveries[ticket.delivery as usize];
        if book.arrivals == ticket.arrival {
            (book.last, book.ended_us, book.shut_us) = (last, at_us, shut_us);
        }
    }

    /// What [`Answer::Yes`] announced was written, completely or not. Called once for each.
    pub fn written(&self, ticket: &Ticket, is_whole: bool, at_us: u64) {
        let mut state = self.lock();
        let state = &mut *state;
        state.live.affirming -= 1;
        let is_too_late = self.is_too_late(ticket, at_us);
        let is_confirmed = state.books.events[ticket.event as usize].confirmed;
        let book = &mut state.books.deliveries[ticket.delivery as usize];
        let is_newest = book.arrivals == ticket.arrival;
        if !is_whole || is_too_late {
            book.is_doubtful = true;
            if is_newest {
                book.last = if is_whole { Last::Abandoned } else { Last::Broken };
            }
            return;
        }
        book.is_doubtful |= at_us.saturating_sub(ticket.at_us) + micros(TIMEOUT_SLACK) >= self.timeout_us();
        book.acknowledgements = book.acknowledgements.saturating_add(1);
        if is_newest {
            book.last = Last::Acknowledged;
        }
        if book.is_acknowledged() {
            state.live.duplicates += 1;
            return;
        }
        book.acknowledged_us = at_us;
        state.books.endpoints[ticket.endpoint as usize].acknowledged += 1;
        let profile = self.population.profile_index(ticket.endpoint);
        state.live.acknowledge(profile, self.population.is_alive(ticket.endpoint), is_confirmed);
    }

    /// A request came to a place where only a followed redirect leads.
    pub fn redirect_followed(&self, endpoint: u32, at_us: u64) {
        self.suspect(Suspicion::Redirected, endpoint, at_us, "a redirect was followed");
    }

    /// A handshake has begun with a certificate that is not for its name.
    pub fn bad_handshake(&self) {
        self.lock().books.tried.bad_handshakes += 1;
    }

    /// A client went on after it.
    pub fn bad_certificate_accepted(&self, endpoint: u32, at_us: u64) {
        self.suspect(Suspicion::BadCertificate, endpoint, at_us, "a request came over a certificate for another name");
    }

    /// A request that makes no sense.
    pub fn nonsense(&self, endpoint: u32, at_us: u64, detail: &'static str) {
        self.suspect(Suspicion::Unknown, endpoint, at_us, detail);
    }

    fn suspect(&self, suspicion: Suspicion, endpoint: u32, at_us: u64, detail: &'static str) {
        let incident =
            Incident { suspicion, event: NONE, other: NONE, endpoint, at_us, since_us: at_us, attempt: 0, detail };
        self.lock().books.suspect(incident);
    }

    fn delivery(&self, event: u32, endpoint: u32) -> u32 {
        let fan_out = self.population.fan_out();
        event * fan_out + endpoint % fan_out
    }

    fn is_owed(&self, state: &State, event: u32, endpoint: u32) -> bool {
        let is_active = endpoint < self.population.active();
        let account = state.books.events.get(event as usize).map(|event| event.account);
        is_active && account == Some(endpoint / self.population.fan_out())
    }

    /// What is wrong with the request itself.
    fn check_request(&self, state: &mut State, arrival: &Arrival, event: u32, delivery: u32, at_us: u64) {
        let before = state.books.deliveries[delivery as usize];
        let sent = &mut state.books.events[event as usize];
        let (is_wrong_body, sent_us) = (sent.hash != arrival.body_hash, sent.sent_us.min(at_us));
        let since_us = if before.arrivals > 0 { before.last_arrival_us } else { sent_us };
        let incident = |suspicion, since_us, detail| Incident {
            suspicion,
            event,
            other: NONE,
            endpoint: arrival.endpoint,
            at_us,
            since_us,
            attempt: arrival.attempt,
            detail,
        };
        let mut found: [Option<Incident>; 8] = [None; 8];
        found[0] = is_wrong_body.then(|| incident(Suspicion::WrongBody, at_us, "other bytes than were sent"));
        found[1] = arrival.bad_signature.map(|why| incident(Suspicion::WrongSignature, at_us, why));
        found[2] = arrival.bad_header.map(|why| incident(Suspicion::WrongHeaders, at_us, why));
        if !sent.sent_again {
            let why = wrong_sequence(&mut sent.sequence, arrival.sequence);
            found[3] = why.map(|why| incident(Suspicion::WrongHeaders, at_us, why));
            let why = self.wrong_attempt(&before, arrival).or_else(|| stale_timestamp(arrival.timestamp_ms, since_us));
            found[6] = why.map(|why| incident(Suspicion::Repeated, since_us, why));
            let untimely = self.untimely(state, arrival, &before, sent_us, at_us);
            found[4] = untimely.map(|(suspicion, why)| incident(suspicion, before.ended_us, why));
        }
        if before.is_acknowledged() {
            found[5] = Some(incident(
                Suspicion::Duplicated,
                before.acknowledged_us,
                "arrived again after it was acknowledged",
            ));
        }
        let endpoint = &state.books.endpoints[arrival.endpoint as usize];
        if at_us > endpoint.gone_us.saturating_add(micros(GONE_TOLERANCE)) {
            let why = "to an endpoint that had answered 410";
            found[7] = Some(incident(Suspicion::AfterGone, endpoint.gone_again_us, why));
        }
        found.into_iter().flatten().for_each(|incident| state.books.suspect(incident));
    }

    fn wrong_attempt(&self, before: &DeliveryBook, arrival: &Arrival) -> Option<&'static str> {
        let (attempt, known) = (arrival.attempt, u32::from(before.attempt));
        match attempt {
            0 => Some("herald-attempt is missing or not a number"),
            _ if before.arrivals == 0 || attempt > known => None,
            _ if attempt == known && self.may_come_again(before, arrival.endpoint) => None,
            _ => Some("herald-attempt did not grow"),
        }
    }

    /// If a kept connection ends without a byte of an answer, nobody can tell whether the request was processed: it may
    /// go again, once, within its attempt.
    fn may_come_again(&self, before: &DeliveryBook, endpoint: u32) -> bool {
        let resets = match self.population.profile(endpoint) {
            Profile::Resetting => true,
            Profile::Imperfect { failure, .. } => *failure == Failure::Reset,
            _ => false,
        };
        resets && before.last == Last::Broken && u32::from(before.arrivals) < 2 * u32::from(before.attempt)
    }

    /// Whether a retry comes before its time, or long after it; for one that is not early, notes how late it is.
    fn untimely(
        &self,
        state: &mut State,
        arrival: &Arrival,
        before: &DeliveryBook,
        sent_us: u64,
        at_us: u64,
    ) -> Option<(Suspicion, &'static str)> {
        let is_retry = u32::from(before.attempt) < arrival.attempt && before.ended_us != NEVER;
        let was_refused = matches!(before.last, Last::Refused | Last::Throttled | Last::Broken | Last::Abandoned);
        if !is_retry || !was_refused || before.is_acknowledged() {
            return None;
        }
        let (pause_us, longest_us) = self.pause_us(u32::from(before.attempt))?;
        let asked_us = match before.last {
            Last::Throttled => {
                self.asked_us(arrival.endpoint).min(self.fits_us(before.ended_us.saturating_sub(sent_us)))
            }
            _ => 0,
        };
        let allowed_us = before.ended_us + pause_us.max(asked_us);
        let tolerance_us = match before.last == Last::Abandoned {
            // Never so much that a retry without any pause would be accepted.
            true => micros(EARLY_TOLERANCE_ABANDONED).min(pause_us / 4 * 3),
            false => micros(EARLY_TOLERANCE),
        };
        state.books.tried.retries += 1;
        if at_us + tolerance_us < allowed_us {
            return Some((Suspicion::Early, "before the earliest moment that the policy allows"));
        }
        // An endpoint that asked for less, or whose breaker may be open, makes its retries wait: that is not lateness.
        if state.books.endpoints[arrival.endpoint as usize].shut_us < before.ended_us {
            state.retry_lateness.saturating_record(at_us.saturating_sub(allowed_us).max(1));
        }
        // If there was an attempt in between that nobody saw, nobody knows when it ended.
        let is_next = u32::from(before.attempt) + 1 == arrival.attempt;
        let due_us = before.ended_us + longest_us.max(asked_us);
        let is_late = is_next && self.is_late(state, arrival.endpoint, before, due_us, at_us);
        is_late.then_some((Suspicion::Late, "long after the latest moment that the policy allows"))
    }

    /// Whether a retry that was due has waited too long while its lane was open.
    fn is_late(&self, state: &mut State, endpoint: u32, before: &DeliveryBook, due_us: u64, at_us: u64) -> bool {
        let shut_us = state.books.endpoints[endpoint as usize].lane.shut_us(at_us).saturating_sub(before.shut_us);
        state.books.second(at_us).retries += u32::from(shut_us == 0);
        at_us.saturating_sub(due_us) > shut_us + micros(LATE_TOLERANCE) + self.timeout_us()
    }

    /// The pause that the endpoint's answer asks for, as far as Herald grants it.
    fn asked_us(&self, endpoint: u32) -> u64 {
        micros(self.asked_rest(endpoint).min(self.population.terms().retry.max_interval))
    }

    /// Herald cuts what is asked so that one more attempt fits before the delivery is too old.
    fn fits_us(&self, age_us: u64) -> u64 {
        micros(longest_that_fits(self.population.terms().retry.max_age, Duration::from_micros(age_us)))
    }

    /// In whole seconds, as the header has it.
    fn asked_rest(&self, endpoint: u32) -> Duration {
        match self.population.profile(endpoint) {
            Profile::Throttling { retry_after } => Duration::from_secs(retry_after.as_millis().div_ceil(1000) as u64),
            _ => Duration::ZERO,
        }
    }

    /// Compares with the other events of its intent.
    fn check_chain(&self, state: &mut State, arrival: &Arrival, event: u32, at_us: u64) {
        let (intent, place) = {
            let event = &state.books.events[event as usize];
            (event.intent, usize::from(event.place))
        };
        let events: [u32; MAX_STEPS] = state.books.intents[intent as usize];
        state.books.tried.followers += u64::from(place > 0);
        for (at, other) in events.into_iter().enumerate().filter(|(_, other)| *other != NONE) {
            let book = state.books.deliveries[self.delivery(other, arrival.endpoint) as usize];
            let is_over = self.is_over(&book, at_us);
            let incident = |suspicion, detail| Incident {
                suspicion,
                event,
                other,
                endpoint: arrival.endpoint,
                at_us,
                since_us: if book.last_arrival_us == NEVER { at_us } else { book.last_arrival_us },
                attempt: arrival.attempt,
                detail,
            };
            if book.last == Last::InFlight && !is_over {
                state.books.suspect(incident(Suspicion::Concurrent, "while another of its intent was in flight"));
            }
            let max_attempts = self.population.terms().retry.max_attempts;
            let has_ended = book.is_acknowledged()
                || matches!(book.last, Last::Affirming | Last::Gone)
                || (book.is_exhausted(max_attempts) && is_over);
            if at < place && !has_ended {
                state.books.suspect(incident(Suspicion::OutOfOrder, "before an earlier one of its intent had ended"));
            }
        }
    }

    /// Its last attempt has ended, or Herald's time for it must be over.
    fn is_over(&self, book: &DeliveryBook, at_us: u64) -> bool {
        let age_us = at_us.saturating_sub(book.last_arrival_us);
        book.last != Last::InFlight || age_us + micros(TIMEOUT_SLACK) >= self.timeout_us()
    }

    fn is_too_late(&self, ticket: &Ticket, at_us: u64) -> bool {
        at_us.saturating_sub(ticket.at_us) >= self.timeout_us()
    }

    fn timeout_us(&self) -> u64 {
        micros(self.population.terms().timeout)
    }

    /// Whether Herald may be resting the endpoint's lane.
    fn note_lane(&self, state: &mut State, ticket: &Ticket, answer: Answer, at_us: u64) {
        let threshold = self.population.terms().breaker_threshold;
        let book = &mut state.books.endpoints[ticket.endpoint as usize];
        match answer {
            Answer::Yes if self.is_too_late(ticket, at_us) => book.lane.failed(threshold, at_us),
            Answer::Yes => book.lane.succeeded(ticket.at_us, at_us),
            Answer::Throttled => {
                book.lane.failed(threshold, at_us);
                book.lane.rests(self.asked_rest(ticket.endpoint), at_us);
            }
            Answer::Refused | Answer::Broken => book.lane.failed(threshold, at_us),
            // Attempts that run out of time take turns, until the receiver answers.
            Answer::Abandoned => book.lane.failed(1, at_us),
            Answer::Redirected | Answer::Gone => {}
        }
        match answer {
            Answer::Yes => book.failures_in_a_row = 0,
            // These do not mean that the receiver is in trouble.
            Answer::Redirected => {}
            Answer::Gone => (book.gone_us, book.gone_again_us) = (book.gone_us.min(at_us), at_us),
            Answer::Refused | Answer::Throttled | Answer::Broken | Answer::Abandoned => {
                book.failures_in_a_row += 1;
                if book.failures_in_a_row >= threshold || answer == Answer::Throttled {
                    book.shut_us = at_us;
                }
            }
        }
    }
}

/// Every attempt of an event has the same sequence; comparing the order within an intent is the judge's job.
fn wrong_sequence(known: &mut u64, sequence: u64) -> Option<&'static str> {
    if sequence == 0 {
        return Some("herald-sequence is missing or invalid");
    }
    if *known == 0 {
        *known = sequence;
    }
    (*known != sequence).then_some("herald-sequence is not that of the earlier attempts")
}

/// The timestamp is made anew for each attempt: it is not older than the attempt before it, nor than the event.
fn stale_timestamp(timestamp_ms: Option<i64>, since_us: u64) -> Option<&'static str> {
    // It counts whole seconds, and the clocks of two processes are read one after the other.
    const TOLERANCE_MS: i64 = 1_100;
    let stale = timestamp_ms? + TOLERANCE_MS < (since_us / 1000) as i64;
    stale.then_some("webhook-timestamp is older than the attempt before")
}
