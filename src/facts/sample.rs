//! Sample events in Dojo's own form: its order of keys, no white space, seven digits of a second.

use bytes::Bytes;

use super::{
    event::{Event, EventError, EventType, PaymentStatus},
    id::{AccountId, EventId, IntentId},
};

pub struct Sample {
    pub id: EventId,
    pub event_type: EventType,
    pub account: AccountId,
    pub intent: IntentId,
    pub status: PaymentStatus,
    pub now_ms: u64,
}

impl Sample {
    /// Through the parser that every event goes through.
    pub fn event(&self) -> Result<Event, EventError> {
        let created_at = i64::try_from(self.now_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
        let created_at = created_at.unwrap_or_default().strftime("%Y-%m-%dT%H:%M:%S").to_string();
        let Self { id, event_type, account, intent, status, now_ms } = self;
        // Ids, types and states contain no character that JSON would escape.
        let body = format!(
            "{{\"id\":\"{id}\",\"event\":\"{event_type}\",\"accountId\":\"{account}\",\
             \"createdAt\":\"{created_at}.{:03}0000Z\",\"data\":{{\"paymentIntentId\":\"{intent}\",\
             \"paymentStatus\":\"{status}\",\"captureMode\":\"Auto\"}}}}",
            now_ms % 1000
        );
        Event::parse(Bytes::from(body))
    }
}

pub fn status_updated() -> EventType {
    "payment_intent.status_updated".parse().expect("it is the documented event type")
}

pub fn created() -> EventType {
    "payment_intent.created".parse().expect("it is the documented event type")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_the_form_of_the_published_payload() {
        let sample = Sample {
            id: EventId::new("evt_1").unwrap(),
            event_type: status_updated(),
            account: AccountId::new("acc_1").unwrap(),
            intent: IntentId::new("pi_1").unwrap(),
            status: PaymentStatus::Captured,
            now_ms: 1_643_720_861_866,
        };
        let expected = r#"{"id":"evt_1","event":"payment_intent.status_updated","accountId":"acc_1","createdAt":"2022-02-01T13:07:41.8660000Z","data":{"paymentIntentId":"pi_1","paymentStatus":"Captured","captureMode":"Auto"}}"#;
        assert_eq!(sample.event().unwrap().body(), expected.as_bytes());
    }
}
