//! Each promise: how often it was tried, how often it broke, and the first examples. What a fault may cost is told
//! apart from what it may not: duplicates and repeated attempts are the price of a crash; a lost or reordered event
//! never is.

use std::time::Duration;

use super::{Case, End, Item, changes, goodput, mark_us, trial::Trial};
use crate::{
    facts::retry::DeadReason,
    loadtest::{
        faults::Fault,
        ledger::{
            LATE,
            books::{DeliveryBook, EventBook, Incident, Last, NONE, Suspicion},
            times::{NEVER, micros},
        },
        result::{Goodput, Promise},
        scenario::Profile,
    },
    surface::words,
};

/// Besides the lease, which another owner waits for: the time to start a worker, and to settle a receiver's answer.
const AFTERMATH: Duration = Duration::from_secs(2);

/// The next event of a chain goes out only after the one before is given up, so a dead letter's time is not later than
/// that arrival. It is Redis' clock in milliseconds, as the worker knows it from the last answer, so it is early if
/// anything; the arrival's time is this process' own. Both clocks are this machine's: they differ by the milliseconds
/// cut off, and by how much the wall clock was corrected since the load began.
const DEATH_SLACK: Duration = Duration::from_millis(100);

/// Herald's age of a delivery begins when it reads it, by Redis' clock in milliseconds.
const AGE_SLACK: Duration = Duration::from_secs(1);

/// A delivery that is parked at an endpoint that takes nothing ends by its age when its owner next looks at the oldest
/// of each backlog, which is every half minute; and burying many takes a while.
pub const EXPIRY: Duration = Duration::from_secs(30 + 15);

/// How many deliveries a worker has in memory, and may repeat, when a fault comes: its own limit, which is part of the
/// promise.
const IN_FLIGHT: u64 = 2_048;

/// The generator may send one event of a thousand late: percentiles up to 99.9 still describe Herald then.
const LATE_PER_SENT: u64 = 1_000;

pub fn judge(case: &Case<'_>, found: &[Goodput]) -> Vec<Promise> {
    let tried = case.books().tried;
    // What a fault would excuse does not count as tried.
    let calm = |at_us: fn(&DeliveryBook) -> u64| {
        let times = case.books().deliveries.iter().map(at_us).filter(|at_us| *at_us != NEVER);
        times.filter(|at_us| !case.near_fault(*at_us)).count() as u64
    };
    let (lost, stuck) = case.lost();
    [
        lost,
        stuck,
        case.duplicated(),
        case.suspected(
            &[Suspicion::OutOfOrder],
            Trial::new("out_of_order", tried.followers, "The events of an intent come in the order of the stream."),
        ),
        case.suspected(
            &[Suspicion::Concurrent],
            Trial::new(
                "concurrent",
                calm(|book| book.first_arrival_us),
                "Of an intent at most one event is on its way to an endpoint.",
            ),
        ),
        case.suspected(
            &[Suspicion::WrongSignature],
            Trial::new("wrong_signature", tried.arrivals, "Both signatures of every request verify over its bytes."),
        ),
        case.suspected(
            &[Suspicion::WrongBody],
            Trial::new("wrong_body", tried.arrivals, "Every body is the producer's, byte for byte."),
        ),
        case.wrong_headers(),
        case.suspected(
            &[Suspicion::Early],
            Trial::new("retried_early", tried.retries, "No retry comes before the policy allows it."),
        ),
        case.suspected(
            &[Suspicion::Late],
            Trial::new("retried_late", case.prompt_retries(), "No retry comes long after the policy wants it."),
        ),
        goodput::judge_goodput(found),
        goodput::recovered(case),
        goodput::needless_retry(case),
        changes::stale_url(case),
        changes::standstill(case),
        case.dead_unexpectedly(),
        case.not_dead(),
        case.trimmed(),
        case.suspected(
            &[Suspicion::AfterGone],
            Trial::new("sent_after_gone", case.owed_to_gone(), "An endpoint that answered 410 gets nothing any more."),
        ),
        case.suspected(
            &[Suspicion::Unknown],
            Trial::new("unknown", tried.requests, "Nothing arrives that nobody sent, nor where it is not owed."),
        ),
        case.suspected(
            &[Suspicion::Redirected],
            Trial::new("redirect_followed", tried.redirects, "A redirect is never followed."),
        ),
        case.suspected(
            &[Suspicion::BadCertificate],
            Trial::new("bad_certificate", tried.bad_handshakes, "A certificate for another name is never accepted."),
        ),
        case.generator(),
    ]
    .map(Trial::done)
    .into()
}

impl Case<'_> {
    /// The promises `lost` and `stuck`.
    fn lost(&self) -> (Trial, Trial) {
        let mut lost = Trial::new("lost", 0, "Every confirmed event is acknowledged or a dead letter.");
        let mut stuck = Trial::new(
            "stuck",
            0,
            "At the end nothing is held that was acknowledged, is too old or waits for who answers.",
        );
        for (delivery, item) in self.items().filter(|(_, item)| item.sent.confirmed) {
            let end = self.end(delivery, &item);
            let is_alive = self.population.is_alive(item.endpoint);
            lost.tried += u64::from(end != End::NotOwed);
            let is_overdue = !is_alive && end != End::NotOwed && self.is_overdue(&item);
            stuck.tried += u64::from(is_alive || is_overdue);
            // If one event has two entries, the other may still be held.
            if end == End::Acknowledged && self.kept.contains(&delivery) && !item.sent.sent_again {
                stuck.broke(|| self.name(&item, "acknowledged, and still held by Herald at the end"));
            }
            if end != End::Unfinished || self.should_be_dead(&item) {
                continue;
            }
            match self.kept.contains(&delivery) {
                false => lost.broke(|| self.name(&item, "neither acknowledged nor a dead letter")),
                true if is_alive => stuck.broke(|| self.name(&item, "still held by Herald at the end")),
                true if is_overdue => {
                    stuck.broke(|| self.name(&item, "still held by Herald long after its greatest age"))
                }
                true => {}
            }
        }
        (lost, stuck)
    }

    /// Whatever its receiver does, its age must have ended it by then. The age may count anew after a hindrance: for
    /// Herald itself a fault, for an event the one before it.
    fn is_overdue(&self, item: &Item<'_>) -> bool {
        let terms = self.population.terms();
        let longest = terms.retry.max_interval.mul_f64(1.0 + terms.retry.jitter);
        let allowed_us = micros(terms.retry.max_age + longest + terms.timeout + EXPIRY);
        let calm_us = self.evidence.faults.iter().map(|fault| mark_us(fault.until) + self.around_us()).max();
        let entry_us = u64::try_from(item.sent.entry_ms).unwrap_or(0) * 1000;
        let hindered_us = calm_us.unwrap_or(0).max(self.backlog.ended_us).max(self.followed_us(item));
        mark_us(self.evidence.ended_s) > entry_us.max(hindered_us).saturating_add(allowed_us)
    }

    /// When the last of the earlier events of its intent ended, as far as they did.
    fn followed_us(&self, item: &Item<'_>) -> u64 {
        let fan_out = self.population.fan_out();
        let before = &self.books().intents[item.sent.intent as usize][..usize::from(item.sent.place)];
        let ended_us = |event: &u32| {
            let delivery = event * fan_out + item.endpoint % fan_out;
            let died_us = self.dead.get(&delivery).map_or(0, |(_, died_us)| u64::try_from(*died_us).unwrap_or(0));
            let ended_us = self.books().deliveries[delivery as usize].ended_us;
            died_us.max(if ended_us == NEVER { 0 } else { ended_us })
        };
        before.iter().filter(|event| **event != NONE).map(ended_us).max().unwrap_or(0)
    }

    /// Retries whose lane was open, in seconds that nothing disturbed.
    fn prompt_retries(&self) -> u64 {
        let calm = |second: u64| {
            let (from_us, until_us) = (second * 1_000_000, (second + 1) * 1_000_000 - 1);
            !self.is_disturbed(from_us, until_us) && !self.backlog.lies_within(from_us, until_us)
        };
        let seconds = (0u64..).zip(&self.books().seconds).filter(|(second, _)| calm(*second));
        seconds.map(|(_, book)| u64::from(book.retries)).sum()
    }

    /// Deliveries that might have gone to an endpoint after its 410.
    fn owed_to_gone(&self) -> u64 {
        let may_have = |item: &Item<'_>| {
            let gone_us = self.books().endpoints[item.endpoint as usize].gone_us;
            let is_later = gone_us != NEVER && (!item.book.is_acknowledged() || item.book.acknowledged_us > gone_us);
            is_later && !self.near_fault(gone_us)
        };
        self.items().filter(|(_, item)| item.sent.confirmed && may_have(item)).count() as u64
    }

    /// Whether a receiver has seen all its attempts, or answered it with 410.
    fn should_be_dead(&self, item: &Item<'_>) -> bool {
        let max_attempts = self.population.terms().retry.max_attempts;
        let has_ended = !matches!(item.book.last, Last::None | Last::InFlight | Last::Affirming | Last::Acknowledged);
        has_ended && (item.book.last == Last::Gone || item.book.is_exhausted(max_attempts))
    }

    fn not_dead(&self) -> Trial {
        let mut trial =
            Trial::new("not_dead", 0, "What has used up its attempts, or was answered 410, is a dead letter.");
        for (delivery, item) in self.items().filter(|(_, item)| !item.book.is_acknowledged()) {
            if self.should_be_dead(&item) {
                trial.tried += 1;
                if !self.dead.contains_key(&delivery) {
                    trial.broke(|| self.name(&item, "given up, and no dead letter"));
                }
            }
        }
        trial
    }

    /// An operator is told so by the doctor and an alert, and would look for what was never lost.
    fn trimmed(&self) -> Trial {
        let trimmed = self.evidence.trimmed_unread;
        let mut trial = Trial::new("trimmed", 1, "Nothing counts as trimmed before it was read: only Herald trims.");
        if trimmed > 0 {
            trial.broke_more(
                1,
                format!("{} said to be trimmed unread", words::count(trimmed, "entry is", "entries are")),
            );
        }
        trial
    }

    fn dead_unexpectedly(&self) -> Trial {
        let mut trial = Trial::new(
            "dead_unexpectedly",
            self.dead.len() as u64,
            "A dead letter has used up its attempts or its age, or its receiver said 410.",
        );
        let mut dead: Vec<_> = self.dead.iter().collect();
        dead.sort_unstable_by_key(|(delivery, _)| **delivery);
        for (delivery, (reason, died_us)) in dead {
            let item = self.item(*delivery);
            if let Some(why) = self.unexpected(&item, *reason, *died_us) {
                trial.broke(|| self.name(&item, why));
            }
        }
        trial
    }

    /// Why this dead letter was not to be expected.
    fn unexpected(&self, item: &Item<'_>, reason: DeadReason, died_us: i64) -> Option<&'static str> {
        let retry = &self.population.terms().retry;
        let book = item.book;
        // Two entries of one event are two deliveries, and one of them may die.
        if item.sent.sent_again {
            return None;
        }
        if book.is_acknowledged() {
            let is_excused = book.is_doubtful || self.near_fault(book.acknowledged_us);
            return (!is_excused).then_some("a dead letter although it was acknowledged");
        }
        let is_gone = self.books().endpoints[item.endpoint as usize].gone_us != NEVER;
        match reason {
            // Such a receiver sees no attempt.
            DeadReason::Exhausted if *self.population.profile(item.endpoint) == Profile::BrokenTls => None,
            DeadReason::Exhausted => {
                (!book.is_exhausted(retry.max_attempts)).then_some("exhausted before its last attempt arrived")
            }
            DeadReason::Expired => {
                // A retry that would only come after the end is not waited for.
                let longest = retry.max_interval.mul_f64(1.0 + retry.jitter) + AGE_SLACK;
                let age_us = died_us - i64::from(item.sent.entry_ms) * 1000;
                let is_young = age_us + (micros(longest) as i64) < micros(retry.max_age) as i64;
                is_young.then_some("expired before its greatest age")
            }
            DeadReason::Gone | DeadReason::Disabled => {
                (!is_gone).then_some("given up as gone, but its receiver never answered 410")
            }
            DeadReason::Deleted => Some("given up because its endpoint was deleted, which nobody did"),
            DeadReason::Released => Some("given up as released, which nobody did"),
        }
    }

    /// What single requests show, and that the sequences of an intent grow.
    fn wrong_headers(&self) -> Trial {
        let trial = Trial::new(
            "wrong_headers",
            self.books().tried.arrivals,
            "Id, timestamp, attempt and sequence of every request are right.",
        );
        let mut trial = self.suspected(&[Suspicion::WrongHeaders, Suspicion::Repeated], trial);
        for events in &self.books().intents {
            let known =
                events.iter().filter(|event| **event != NONE).map(|event| &self.books().events[*event as usize]);
            let known: Vec<&EventBook> = known.filter(|event| event.sequence > 0 && !event.sent_again).collect();
            for pair in known.windows(2).filter(|pair| pair[0].sequence >= pair[1].sequence) {
                trial.broke(|| {
                    let (one, other) = (pair[0].sequence, pair[1].sequence);
                    format!("intent {}: herald-sequence {other} does not follow {one}", pair[0].intent)
                });
            }
        }
        trial
    }

    fn generator(&self) -> Trial {
        let live = &self.state.live;
        let mut trial = Trial::new("generator", live.sent, "The generator sent its events on time.");
        if live.late > live.sent / LATE_PER_SENT {
            let example = format!(
                "{} of {} events were sent more than {} late, with nothing in their way: lower the rate, or use another \
                 machine",
                words::number(live.late),
                words::number(live.sent),
                words::span(LATE.as_millis() as u64)
            );
            trial.broke_more(live.late, example);
        }
        trial
    }

    /// A fault explains duplicates of what was in flight, but no more than that.
    fn duplicated(&self) -> Trial {
        let times = self.books().deliveries.iter().map(|book| book.acknowledged_us).filter(|at_us| *at_us != NEVER);
        let tried = times.filter(|at_us| !self.may_repeat(*at_us)).count() as u64;
        let text = "What was acknowledged comes again only where a fault explains it.";
        let mut trial = self.suspected(&[Suspicion::Duplicated], Trial::new("duplicated", tried, text));
        let explains = |incident: &Incident| {
            let item = self.item_of(incident);
            self.is_excused(incident) && !item.sent.sent_again && !item.book.is_doubtful
        };
        // Only a duplicate certainly has a delivery.
        let by_a_fault = |incident: &&Incident| incident.suspicion == Suspicion::Duplicated && explains(incident);
        let explained = self.books().incidents.iter().filter(by_a_fault).count() as u64;
        let most = self.evidence.faults.iter().filter(|fault| fault.fault.may_duplicate()).count() as u64 * IN_FLIGHT;
        if let Some(too_many) = explained.checked_sub(most).filter(|too_many| *too_many > 0) {
            trial.broke_more(too_many, format!("{too_many} more beside faults than can have been in flight at them"));
        }
        trial
    }

    /// The incidents that no fault explains.
    fn suspected(&self, kinds: &[Suspicion], mut trial: Trial) -> Trial {
        for incident in self.books().incidents.iter().filter(|incident| kinds.contains(&incident.suspicion)) {
            if !self.is_excused(incident) {
                trial.broke(|| self.describe(incident));
            }
        }
        // Nobody could look at these: they are not excused.
        let left_out: u64 = kinds.iter().map(|kind| self.books().left_out[*kind as usize]).sum();
        if left_out > 0 {
            trial.broke_more(left_out, format!("{left_out} more that were too many to keep"));
        }
        trial
    }

    fn item_of(&self, incident: &Incident) -> Item<'_> {
        let fan_out = self.population.fan_out();
        self.item(incident.event * fan_out + incident.endpoint % fan_out)
    }

    fn is_excused(&self, incident: &Incident) -> bool {
        let fan_out = self.population.fan_out();
        match incident.suspicion {
            Suspicion::Duplicated => {
                let item = self.item_of(incident);
                item.sent.sent_again || item.book.is_doubtful || self.may_repeat(incident.since_us)
            }
            // The earlier one may have been given up without the receiver's knowledge.
            Suspicion::OutOfOrder => {
                let earlier = incident.other * fan_out + incident.endpoint % fan_out;
                let latest_us = incident.at_us.saturating_add(micros(DEATH_SLACK)) as i64;
                self.dead.get(&earlier).is_some_and(|(_, died_us)| *died_us <= latest_us)
            }
            Suspicion::Late => {
                let (since_us, at_us) = (incident.since_us, incident.at_us);
                self.is_disturbed(since_us, at_us) || self.backlog.lies_within(since_us, at_us)
            }
            // A worker that died with the 410 has told nobody, and its successor asks once more.
            Suspicion::AfterGone => self.near_fault(incident.since_us) || self.near_fault(incident.at_us),
            Suspicion::Concurrent | Suspicion::Repeated => self.is_disturbed(incident.since_us, incident.at_us),
            Suspicion::WrongSignature
            | Suspicion::WrongBody
            | Suspicion::WrongHeaders
            | Suspicion::Early
            | Suspicion::Unknown
            | Suspicion::Redirected
            | Suspicion::BadCertificate => false,
        }
    }

    fn near_fault(&self, at_us: u64) -> bool {
        self.is_disturbed(at_us, at_us)
    }

    /// Whether what was acknowledged then may come again because of a fault.
    fn may_repeat(&self, at_us: u64) -> bool {
        self.is_near(Fault::may_duplicate, at_us, at_us)
    }

    /// Whether a fault, or the time in which Herald recovers from one, lies within this span.
    pub(super) fn is_disturbed(&self, from_us: u64, until_us: u64) -> bool {
        self.is_near(Fault::is_felt, from_us, until_us)
    }

    fn is_near(&self, counts: fn(Fault) -> bool, from_us: u64, until_us: u64) -> bool {
        let around_us = self.around_us();
        self.evidence.faults.iter().filter(|fault| counts(fault.fault)).any(|fault| {
            let begins_us = mark_us(fault.at).saturating_sub(around_us);
            from_us <= mark_us(fault.until) + around_us && until_us >= begins_us
        })
    }

    /// How long before and after itself a fault may be to blame.
    pub(super) fn around_us(&self) -> u64 {
        micros(self.population.terms().lease + AFTERMATH)
    }

    fn describe(&self, incident: &Incident) -> String {
        let at_s = incident.at_us as f64 / 1e6;
        let endpoint = match incident.endpoint {
            NONE => "no endpoint".to_owned(),
            endpoint => self.population.endpoint_id(endpoint),
        };
        let event = |event: u32| match event {
            NONE => "a request".to_owned(),
            event => self.ledger.event_id(event),
        };
        let other = match incident.other {
            NONE => String::new(),
            other => format!(" ({})", event(other)),
        };
        let (what, detail, attempt) = (event(incident.event), incident.detail, incident.attempt);
        format!("{what} at {endpoint}, {at_s:.3}s, attempt {attempt}: {detail}{other}")
    }

    pub(super) fn name(&self, item: &Item<'_>, what: &str) -> String {
        let (event, endpoint) = (self.ledger.event_id(item.event), self.population.endpoint_id(item.endpoint));
        let sent_s = item.sent.intended_us as f64 / 1e6;
        format!("{event} for {endpoint}, sent at {sent_s:.3}s, {} attempts seen: {what}", item.book.attempt)
    }
}
