//! The event that tells of a change: its bytes, as they leave with the change and as they can be told again from the record.

use bytes::Bytes;

use super::intent::{Intent, Told};
use crate::facts::event::{CaptureMode, Event, EventError};

/// In the published payload's key order, up to its time and from there on. The script that commits the change writes the time.
pub fn around_time(intent: &Intent, told: &Told) -> (String, String) {
    let (event, name, status) = (&told.id, told.kind.name(), told.status);
    let (account, id) = (&intent.account, &intent.id);
    let mode = match intent.mode() {
        CaptureMode::Auto => "Auto",
        CaptureMode::Manual => "Manual",
    };
    // Ids and names have nothing that JSON escapes.
    let head = format!(r#"{{"id":"{event}","event":"{name}","accountId":"{account}","createdAt":""#);
    let tail = format!(r#"","data":{{"paymentIntentId":"{id}","paymentStatus":"{status}","captureMode":"{mode}"}}}}"#);
    (head, tail)
}

/// To the byte as it left: nothing that it says of its intent ever changes.
pub fn again(intent: &Intent, told: &Told) -> Result<Event, EventError> {
    let (head, tail) = around_time(intent, told);
    Event::parse(Bytes::from(format!("{head}{}{tail}", told.at)))
}
