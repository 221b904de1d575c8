//! The life of a payment intent, as Dojo's statuses allow it, and the event of each status. Random, but only through the
//! generator it is handed. For the load test; never what `herald event publish` adds.

use std::io::Write;

use jiff::Timestamp;
use rand::{Rng, RngExt};

use crate::facts::event::{CaptureMode, PaymentStatus};

/// Statuses that an intent can live through.
pub const MAX_STEPS: usize = 4;

/// Where an intent is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    mode: CaptureMode,
    status: Option<PaymentStatus>,
}

/// What an event says beside its status.
#[derive(Debug, Clone, Copy)]
pub struct Words<'a> {
    pub id: &'a str,
    pub account: &'a str,
    pub intent: &'a str,
    /// RFC 3339 with seven digits of a second, as Dojo writes it.
    pub created_at: &'a str,
}

impl Life {
    pub fn new(rng: &mut impl Rng) -> Self {
        let mode = if rng.random_bool(0.6) { CaptureMode::Auto } else { CaptureMode::Manual };
        Self { mode, status: None }
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

    /// Writes the event of the status it just reached, in the published payload's key order, without its last two braces:
    /// further `data` can follow.
    pub fn write_event(&self, out: &mut Vec<u8>, words: &Words<'_>) {
        let status = self.status.unwrap_or(PaymentStatus::Created);
        let kind = if status == PaymentStatus::Created { "created" } else { "status_updated" };
        let mode = match self.mode {
            CaptureMode::Auto => "Auto",
            CaptureMode::Manual => "Manual",
        };
        let Words { id, account, intent, created_at } = words;
        // Writing to memory does not fail.
        let _ = write!(
            out,
            r#"{{"id":"{id}","event":"payment_intent.{kind}","accountId":"{account}","createdAt":"{created_at}","data":{{"paymentIntentId":"{intent}","paymentStatus":"{status}","captureMode":"{mode}""#,
        );
    }
}

/// A clock past the year 9999 is not worth an error here.
pub fn created_at(wall_ms: u64) -> String {
    let at = i64::try_from(wall_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok()).unwrap_or_default();
    at.strftime("%Y-%m-%dT%H:%M:%S%.7fZ").to_string()
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
        let mut longest = 0;
        for _ in 0..500 {
            let mut life = Life::new(&mut rng);
            let mut steps = 0;
            while let Some(status) = life.step(&mut rng) {
                let (mut body, created_at) = (Vec::new(), created_at(1_700_000_000_123));
                let words = Words { id: "evt_1", account: "acc_1", intent: "pi_1", created_at: &created_at };
                life.write_event(&mut body, &words);
                body.extend_from_slice(b"}}");
                let event = Event::parse(Bytes::from(body)).unwrap();
                assert_eq!((event.id.as_str(), event.status), ("evt_1", Some(status)));
                seen.insert(status);
                steps += 1;
            }
            longest = longest.max(steps);
        }
        assert_eq!((seen.len(), longest), (PaymentStatus::ALL.len(), MAX_STEPS));
    }

    #[test]
    fn the_time_is_written_as_dojo_writes_it() {
        assert_eq!(created_at(1_643_720_861_866), "2022-02-01T13:07:41.8660000Z");
    }
}
