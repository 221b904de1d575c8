//! A callback as it arrived, and what it says of itself. A stranger may have sent it, so everything that is remembered is bounded.

use bytes::Bytes;
use http::HeaderMap;

use crate::facts::{
    event::glance,
    id::MAX_ID_BYTES,
    sequence::Sequence,
    signing::{
        Kind, SecretText, WEBHOOK_ID, WEBHOOK_TIMESTAMP,
        diagnosis::{Diagnosis, Evidence, Judgement, diagnose},
    },
};

/// What is hashed for one that is not valid: a few milliseconds.
const SEARCH_BYTES: u64 = 4 << 20;

#[derive(Debug, Clone)]
pub struct Callback {
    /// Milliseconds since 1970.
    pub at_ms: u64,
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// What it says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Says {
    pub id: Option<String>,
    pub event: Option<String>,
    pub intent: Option<String>,
    pub status: Option<String>,
    pub attempt: Option<u64>,
    pub sequence: Option<Sequence>,
    /// From `webhook-timestamp`, which has whole seconds, to its arrival; less than 0 if a clock is wrong. Never from
    /// `createdAt`, which is when something happened, in whatever time the producer lives.
    pub delay_ms: Option<i64>,
}

impl Callback {
    pub fn says(&self) -> Says {
        let seen = glance(&self.body);
        let short = |text: Option<String>| text.filter(|text| text.len() <= MAX_ID_BYTES);
        let sent_s = self.header(WEBHOOK_TIMESTAMP).and_then(|text| text.parse::<i64>().ok());
        let at_ms = i64::try_from(self.at_ms).unwrap_or(i64::MAX);
        Says {
            id: short(self.header(WEBHOOK_ID).map(str::to_owned)),
            event: short(seen.event_type),
            intent: short(seen.intent),
            status: short(seen.status),
            attempt: self.header("herald-attempt").and_then(|text| text.parse().ok()),
            sequence: self.header("herald-sequence").and_then(|text| text.parse().ok()),
            delay_ms: sent_s.and_then(|sent_s| at_ms.checked_sub(sent_s.checked_mul(1000)?)),
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// As text, whatever bytes they have.
    pub fn text_headers(&self) -> Vec<(String, String)> {
        let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        self.headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect()
    }

    /// By any of the secrets, the oldest first. `None`: there is none to judge by.
    pub fn judge(&self, secrets: &[SecretText], tolerance_ms: u64) -> Option<Diagnosis> {
        let headers = self.text_headers();
        let by = |secret: &SecretText| {
            diagnose(&Evidence {
                secret: secret.reveal(),
                headers: &headers,
                body: &self.body,
                now_ms: self.at_ms,
                tolerance_ms,
                search_bytes: SEARCH_BYTES,
            })
        };
        let found: Vec<(Kind, Diagnosis)> = secrets.iter().map(|secret| (secret.kind(), by(secret))).collect();
        // During a rotation each secret has a signature of the standard scheme, and only the newest shared one has one of Dojo's.
        let (_, newest) = found.last()?;
        let is_valid = |(_, one): &(Kind, Diagnosis)| one.standard == Judgement::Valid;
        let standard = if found.iter().any(is_valid) { Judgement::Valid } else { newest.standard.clone() };
        let shared = found.iter().rev().find(|(kind, _)| *kind == Kind::Shared);
        Some(Diagnosis { standard, dojo: shared.map_or(Judgement::Absent, |(_, one)| one.dojo.clone()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::signing::{DOJO_SIGNATURE, WEBHOOK_SIGNATURE, dojo_signature, standard_signature};

    fn callback(lines: &[(&'static str, &str)], body: &'static str) -> Callback {
        let header =
            |(name, value): &(&'static str, &str)| (http::HeaderName::from_static(name), value.parse().unwrap());
        let headers = lines.iter().map(header).collect();
        Callback { at_ms: 1_700_000_002_500, path: "/".to_owned(), headers, body: Bytes::from_static(body.as_bytes()) }
    }

    #[test]
    fn a_callback_is_judged_by_the_key_pair_or_the_shared_secret_that_its_endpoint_has() {
        let (shared, key) = (SecretText::from_random([1; 32]), SecretText::key_from_random([2; 32]));
        let private = crate::facts::signing::PrivateKey::parse(key.reveal()).unwrap();
        let by_key = crate::facts::signing::ed25519_signature([&private].into_iter(), "evt_1", 1_700_000_000, b"{}");
        let both = format!("{} {by_key}", standard_signature([&shared].into_iter(), "evt_1", 1_700_000_000, b"{}"));
        let judge = |signature: &str, secrets: &[&SecretText]| {
            let lines = [("webhook-id", "evt_1"), ("webhook-timestamp", "1700000000"), (WEBHOOK_SIGNATURE, signature)];
            let secrets: Vec<SecretText> = secrets.iter().map(|secret| (*secret).clone()).collect();
            callback(&lines, "{}").judge(&secrets, 300_000).unwrap().is_valid()
        };
        let public = SecretText::new(key.public_key().unwrap()).unwrap();
        for secrets in [&[&shared][..], &[&key], &[&public], &[&shared, &key], &[&key, &shared]] {
            assert!(judge(&both, secrets));
        }
        assert!(judge(&by_key, &[&shared, &public]) && !judge(&by_key, &[&shared]));
        assert!(!judge(&both, &[&SecretText::key_from_random([3; 32])]));
    }

    #[test]
    fn a_delay_comes_from_the_time_of_the_attempt_and_not_from_the_event() {
        let body = r#"{"createdAt":"2099-01-01T00:00:00Z","data":{"paymentIntentId":"pi_1"}}"#;
        let says = callback(&[("webhook-timestamp", "1700000000"), ("herald-attempt", "3")], body).says();
        assert_eq!((says.delay_ms, says.attempt, says.intent.as_deref()), (Some(2_500), Some(3), Some("pi_1")));
        let ahead = callback(&[("webhook-timestamp", "1700000009")], "x").says();
        assert_eq!((ahead.delay_ms, ahead.intent), (Some(-6_500), None));
        for odd in ["", "x", "99999999999999999999", "9223372036854775807"] {
            assert_eq!(callback(&[("webhook-timestamp", odd)], "").says().delay_ms, None, "{odd}");
        }
    }

    #[test]
    fn during_a_rotation_either_secret_is_right_and_the_newest_signs_dojos_header() {
        let [old, new] = [1, 2].map(|byte| SecretText::from_random([byte; 32]));
        let standard = standard_signature([&old, &new].into_iter(), "evt_1", 1_700_000_000, b"{}");
        let dojo = dojo_signature(&new, b"{}");
        let lines = [
            (WEBHOOK_ID, "evt_1"),
            (WEBHOOK_TIMESTAMP, "1700000000"),
            (WEBHOOK_SIGNATURE, &standard),
            (DOJO_SIGNATURE, &dojo),
        ];
        let callback = callback(&lines, "{}");
        let judge = |secrets: &[&SecretText]| {
            let secrets: Vec<SecretText> = secrets.iter().map(|secret| (*secret).clone()).collect();
            callback.judge(&secrets, 300_000)
        };
        assert!(judge(&[&old, &new]).unwrap().is_valid() && judge(&[&new]).unwrap().is_valid());
        let by_the_old = judge(&[&old]).unwrap();
        assert!(by_the_old.standard == Judgement::Valid && !by_the_old.is_valid());
        assert_eq!(judge(&[]), None);
    }
}
