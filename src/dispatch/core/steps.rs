//! What is told of single deliveries. Failures and dead letters are always told; each step on a delivery's way only to whoever
//! asks for it, because it costs every delivery something. Decides nothing.

use super::{AccountId, Core, CoreHappening, Delivery, DeliveryId, EventId, IntentId, Outcome};
use crate::facts::traceparent::Traceparent;

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

impl Core {
    /// Whether each step of each delivery becomes a happening.
    pub fn tell_steps(&mut self, tells: bool) {
        self.tells_steps = tells;
    }

    pub(super) fn tell_step(&mut self, delivery: &Delivery, step: Step) {
        if self.tells_steps {
            self.happenings.push(CoreHappening::Stepped { about: About::of(delivery), step });
        }
    }
}
