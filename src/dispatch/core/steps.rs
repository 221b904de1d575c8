//! What is told of single deliveries. Failures and dead letters are always told; each step on a delivery's way only to whoever
//! asks for it, because it costs every delivery something. Decides nothing.

use super::{
    AccountId, Arc, Attempted, Core, CoreHappening, Delivery, DeliveryId, Endpoint, EventId, Fate, IntentId, Outcome,
};
use crate::facts::traceparent::Traceparent;

/// What is told of deliveries beside failures and dead letters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Telling {
    /// Each step of each delivery, as it happens.
    pub steps: bool,
    /// Each attempt and each entry, once they are settled.
    pub settled: bool,
}

/// Which delivery it is, of which event.
#[derive(Debug, Clone, PartialEq)]
pub struct About {
    pub id: DeliveryId,
    pub intent: IntentId,
    /// What its record does not say where it cannot be read.
    pub event: Option<EventId>,
    pub account: Option<AccountId>,
    pub traceparent: Option<Traceparent>,
}

impl About {
    pub fn of(delivery: &Delivery) -> Self {
        Self {
            id: delivery.id.clone(),
            intent: delivery.intent.clone(),
            event: Some(delivery.event.clone()),
            account: Some(delivery.account.clone()),
            traceparent: delivery.envelope.traceparent.clone(),
        }
    }

    pub fn unreadable(id: &DeliveryId, intent: &IntentId) -> Self {
        Self { id: id.clone(), intent: intent.clone(), event: None, account: None, traceparent: None }
    }
}

/// What happened to a delivery, beside failures and dead letters.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// It waits behind another of its chain, with a record.
    Held,
    /// It waits in its endpoint's backlog.
    Parked,
    Attempted {
        attempt: u32,
        outcome: Outcome,
        took_us: u64,
    },
    Delivered,
}

/// An attempt that has become durable, so that nobody makes it again under its number.
#[derive(Debug, Clone, PartialEq)]
pub struct SettledAttempt {
    pub about: About,
    /// None if it has gone meanwhile.
    pub endpoint: Option<Arc<Endpoint>>,
    pub attempted: Arc<Attempted>,
    /// From the end of the attempt before, or from when the entry was added; None where its id is not a time.
    pub waited_ms: Option<u64>,
    pub fate: Fate,
}

impl Core {
    pub fn tell(&mut self, telling: Telling) {
        self.telling = telling;
    }

    /// Before the attempt is remembered.
    pub(super) fn settled_attempt(
        delivery: &Delivery,
        endpoint: Option<&Arc<Endpoint>>,
        attempted: &Arc<Attempted>,
        fate: &Fate,
    ) -> SettledAttempt {
        let at_ms = attempted.report.at_ms;
        let before = delivery.history.last().map(|last| last.at_ms.saturating_add(last.timing.total_us / 1_000));
        let waited_ms = match before {
            Some(before) => Some(at_ms.saturating_sub(before)),
            None => delivery.id.entry.age_ms(at_ms),
        };
        let (endpoint, attempted) = (endpoint.cloned(), Arc::clone(attempted));
        SettledAttempt { about: About::of(delivery), endpoint, attempted, waited_ms, fate: *fate }
    }

    pub(super) fn tell_step(&mut self, delivery: &Delivery, step: Step) {
        if self.telling.steps {
            self.happenings.push(CoreHappening::Stepped { about: About::of(delivery), step });
        }
    }
}
