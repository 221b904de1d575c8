//! Records, dead letters and endpoints as they are in Redis, where anyone may have written them.

use bytes::Bytes;
use herald::facts::{
    delivery::{DeadLetter, Delivery, MAX_HISTORY},
    endpoint::Endpoint,
    outcome::AttemptReport,
};

pub fn run(input: &[u8]) {
    let record = Bytes::copy_from_slice(input);
    if let Ok(mut delivery) = Delivery::from_record(&record) {
        assert_eq!(Delivery::from_record(&delivery.to_record()).ok().as_ref(), Some(&delivery));
        let _ = (delivery.chain().name(), delivery.chain().head_field());
        // What every owner does with it next.
        let number = delivery.next_attempt();
        if let Some(report) = delivery.history.first().cloned() {
            delivery.remember(AttemptReport { number, ..report });
        }
        delivery.redeliver(herald::facts::endpoint::Mark { by: String::new(), why: String::new(), at_ms: 0 }, 0);
        assert!(delivery.next_attempt() >= number, "its attempts are counted backwards");
        let _ = MAX_HISTORY;
    }
    if let Ok(letter) = DeadLetter::from_record(&record) {
        assert_eq!(DeadLetter::from_record(&letter.to_record()).ok().as_ref(), Some(&letter));
    }
    if let Ok(endpoint) = serde_json::from_slice::<Endpoint>(input) {
        let shown = format!("{endpoint:?}");
        for secret in endpoint.secrets.iter().map(|secret| secret.value.reveal()) {
            assert!(secret.len() < 20 || !shown.contains(secret), "an endpoint shows its secret");
        }
    }
}
