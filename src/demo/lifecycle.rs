//! The life of a payment intent, as Dojo's statuses allow it. Random, but only through the generator it is handed.

use jiff::Timestamp;
use rand::{Rng, RngExt};
use serde_json::json;

use crate::facts::event::{CaptureMode, PaymentStatus};

/// One intent on its way.
#[derive(Debug, Clone)]
pub struct Intent {
    pub id: String,
    mode: CaptureMode,
    status: Option<PaymentStatus>,
}

impl Intent {
    pub fn new(rng: &mut impl Rng) -> Self {
        let mode = if rng.random_bool(0.6) { CaptureMode::Auto } else { CaptureMode::Manual };
        Self { id: format!("pi_{}", token(rng)), mode, status: None }
    }

    /// Its next status; none when its life is over.
    pub fn step(&mut self, rng: &mut impl Rng) -> Option<PaymentStatus> {
        use CaptureMode::{Auto, Manual};
        use PaymentStatus::{Authorized, Canceled, Captured, Created, Refunded, Reversed};
        let often = rng.random_bool(0.85);
        let next = match (self.mode, self.status) {
            (_, None) => Some(Created),
            (Auto, Some(Created)) => Some(if often { Captured } else { Canceled }),
            (Auto, Some(Captured)) if !often => Some(if rng.random_bool(0.5) { Reversed } else { Refunded }),
            (Manual, Some(Created)) => Some(if often { Authorized } else { Canceled }),
            (Manual, Some(Authorized)) => Some(if often { Captured } else { Reversed }),
            (Manual, Some(Captured)) if !often => Some(Refunded),
            _ => None,
        };
        self.status = next.or(self.status);
        next
    }

    /// The event of the status it just reached, in the published payload's key order. Returns its id and its bytes.
    pub fn event(&self, account: &str, wall_ms: u64, rng: &mut impl Rng) -> (String, Vec<u8>) {
        let id = format!("evt_{}", token(rng));
        let status = self.status.unwrap_or(PaymentStatus::Created);
        let kind = if status == PaymentStatus::Created { "created" } else { "status_updated" };
        // A clock past the year 9999 is not worth an error here.
        let at = Timestamp::from_millisecond(wall_ms as i64).unwrap_or_default().strftime("%Y-%m-%dT%H:%M:%S%.7fZ");
        let mode = json!(self.mode);
        let body = format!(
            r#"{{"id":"{id}","event":"payment_intent.{kind}","accountId":"{account}","createdAt":"{at}","data":{{"paymentIntentId":"{}","paymentStatus":"{status}","captureMode":{mode}}}}}"#,
            self.id
        );
        (id, body.into_bytes())
    }
}

/// 22 characters, as in Dojo's ids.
fn token(rng: &mut impl Rng) -> String {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    (0..22).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])).collect()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::facts::event::Event;

    #[test]
    fn every_step_of_every_life_is_a_valid_event() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut seen = std::collections::HashSet::new();
        for _ in 0..500 {
            let mut intent = Intent::new(&mut rng);
            while let Some(status) = intent.step(&mut rng) {
                let (id, body) = intent.event("acc_demo", 1_700_000_000_123, &mut rng);
                let event = Event::parse(Bytes::from(body)).unwrap();
                assert_eq!((event.id.as_str(), event.status), (id.as_str(), status));
                seen.insert(status);
            }
        }
        assert_eq!(seen.len(), PaymentStatus::ALL.len());
    }
}
