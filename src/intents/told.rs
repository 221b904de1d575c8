//! What a merchant was told of an intent: the event that left with a change, which can be written again from the record, byte
//! for byte.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    intent::Intent,
    stamp::{Stamp, micros},
};
use crate::facts::{
    event::{CaptureMode, Event, EventError, PaymentStatus},
    id::{EntryId, EventId},
};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Told {
    pub id: EventId,
    #[serde(rename = "k")]
    pub kind: EventKind,
    #[serde(rename = "st")]
    pub status: PaymentStatus,
    #[serde(rename = "at", with = "micros")]
    pub at: Stamp,
    /// Among all that its account was told, from 1 and without gaps; 0 stands for that of the change that wrote it, which
    /// stands beside the record.
    #[serde(rename = "n", default, skip_serializing_if = "is_zero")]
    pub number: u64,
    /// Its place in the stream; for that of the change that wrote it, as with the number.
    #[serde(rename = "e", default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<EntryId>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventKind {
    #[serde(rename = "c")]
    Created,
    #[serde(rename = "u")]
    StatusUpdated,
    #[serde(rename = "r")]
    SendReceipt,
}

impl EventKind {
    /// As the webhook's `event` names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "payment_intent.created",
            Self::StatusUpdated => "payment_intent.status_updated",
            Self::SendReceipt => "payment_intent.send-receipt",
        }
    }
}

impl Told {
    /// As it will leave.
    pub fn now(id: EventId, kind: EventKind, status: PaymentStatus) -> Self {
        Self { id, kind, status, at: Stamp::THIS, number: 0, entry: None }
    }

    /// The event of this intent, in the published payload's key order, up to its time and from there on.
    pub fn around_time(&self, intent: &Intent) -> (String, String) {
        let (event, name, status) = (&self.id, self.kind.name(), self.status);
        let (account, id) = (&intent.account, &intent.id);
        let mode = match intent.mode() {
            CaptureMode::Auto => "Auto",
            CaptureMode::Manual => "Manual",
        };
        // Ids and names have nothing that JSON escapes.
        let head = format!(r#"{{"id":"{event}","event":"{name}","accountId":"{account}","createdAt":""#);
        let tail =
            format!(r#"","data":{{"paymentIntentId":"{id}","paymentStatus":"{status}","captureMode":"{mode}"}}}}"#);
        (head, tail)
    }

    /// To the byte as it left: nothing that it says of its intent ever changes.
    pub fn body(&self, intent: &Intent) -> String {
        let (head, tail) = self.around_time(intent);
        format!("{head}{}{tail}", self.at)
    }

    pub fn again(&self, intent: &Intent) -> Result<Event, EventError> {
        Event::parse(Bytes::from(self.body(intent)))
    }
}
