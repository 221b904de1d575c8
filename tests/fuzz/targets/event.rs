//! What a producer wrote into the stream, as an event.

use bytes::Bytes;
use herald::facts::event::{Event, EventError, MAX_EVENT_BYTES};

/// Longest explanation of a refusal: it is kept with the quarantined entry and shown to people.
const MAX_EXPLANATION_BYTES: usize = 4096;

pub fn run(input: &[u8]) {
    match Event::parse(Bytes::copy_from_slice(input)) {
        Ok(event) => {
            assert_eq!(event.body(), input, "the bytes are not the producer's");
            assert!(input.len() <= MAX_EVENT_BYTES);
            let json: serde_json::Value = serde_json::from_slice(input).expect("an event is JSON");
            let named = |object: &serde_json::Value, names: [&str; 2]| {
                names.iter().find_map(|name| object.get(name)?.as_str().map(str::to_owned))
            };
            assert_eq!(named(&json, ["id", "Id"]).as_deref(), Some(event.id.as_str()), "a receiver reads another id");
            assert_eq!(named(&json, ["accountId", "AccountId"]).as_deref(), Some(event.account.as_str()));
            let data = json.get("data").or_else(|| json.get("Data")).expect("an event has data");
            assert_eq!(named(data, ["paymentIntentId", "PaymentIntentId"]).as_deref(), Some(event.intent.as_str()));
            let status = named(data, ["paymentStatus", "PaymentStatus"]).expect("an event has a status");
            assert!(event.status.is_none_or(|known| known.to_string() == status), "{status} is taken for another");
            assert_eq!(event.require_familiar().is_ok(), event.novelties.is_empty());
            for id in [event.id.as_str(), event.account.as_str(), event.intent.as_str()] {
                let is_plain = id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
                assert!(is_plain && (1..=128).contains(&id.len()), "{id:?} breaks keys and headers");
            }
        }
        Err(error) => {
            let said = error.to_string();
            assert!(!said.is_empty() && said.len() <= MAX_EXPLANATION_BYTES, "{} bytes: {said}", said.len());
            let is_utf8 = std::str::from_utf8(input).is_ok();
            assert_eq!(matches!(error, EventError::NotUtf8 { .. }), !is_utf8 && input.len() <= MAX_EVENT_BYTES);
        }
    }
}
