//! What is shown of everything: the JSON of `-o json` and of the operations API, which are one, and the words around it. Each type
//! here describes itself for the API. Asks Redis and the history only where several looks make one answer.
//!
//! A merchant is shown less than an operator, see [`Viewer`]: nothing by which Herald would tell what is in somebody's network.

pub mod audit;
pub mod chain;
pub mod deliveries;
pub mod delivery;
pub mod endpoint;
pub mod health;
pub mod issue;
pub mod letter;
pub mod operation;
pub mod partition;
pub mod past;
pub mod quarantine;
pub mod schemas;
pub mod standing;
pub mod test;
pub mod time;
pub mod token;
pub mod words;

use crate::facts::{health::MINUTE_MS, outcome::Outcome};

/// For whom something is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Viewer {
    Operator,
    /// Chooses a URL and sees what comes of it. Must not learn from that which names and ports answer within the networks that
    /// Herald reaches: no address, no library's error, and of what failed before an answer only that it did.
    Merchant,
}

/// Instead of how a connection failed.
const UNREACHABLE: &str = "unreachable";

impl Viewer {
    pub fn is_operator(self) -> bool {
        self == Self::Operator
    }

    /// Whether they are told of it as it is.
    pub fn is_told(self, outcome: &Outcome) -> bool {
        self.outcome(outcome) == outcome.to_string()
    }

    /// A time that would tell when an attempt ended. To the minute, or a merchant learnt how long it took.
    pub fn end_ms(self, ms: u64) -> u64 {
        if self.is_operator() { ms } else { ms / MINUTE_MS * MINUTE_MS }
    }

    /// An outcome in a word, with its status if there was an answer.
    pub fn outcome(self, outcome: &Outcome) -> String {
        let is_answer = matches!(
            outcome,
            Outcome::Delivered { .. }
                | Outcome::Redirected { .. }
                | Outcome::Gone
                | Outcome::Throttled { .. }
                | Outcome::Rejected { .. }
                | Outcome::ServerFailed { .. }
        );
        if self.is_operator() || is_answer { outcome.to_string() } else { UNREACHABLE.to_owned() }
    }

    /// The same of a dead letter's cause, which is a class or a class and its kind.
    pub fn cause(self, cause: &str) -> String {
        const TOLD: [&str; 8] =
            ["delivered", "redirected", "gone", "throttled", "rejected", "server_failed", "never_tried", "unreadable"];
        let class = cause.split(':').next().unwrap_or_default();
        if self.is_operator() || TOLD.contains(&class) { cause.to_owned() } else { UNREACHABLE.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::{
        letter::Cause,
        outcome::{LocalCause, TlsFailure},
    };

    #[test]
    fn a_merchant_cannot_tell_a_closed_port_from_a_name_that_does_not_resolve() {
        let hidden = [
            Outcome::DnsFailed,
            Outcome::ConnectFailed,
            Outcome::ConnectTimedOut,
            Outcome::ProxyFailed,
            Outcome::Tls { failure: TlsFailure::WrongName },
            Outcome::ResponseTimedOut,
            Outcome::Reset,
            Outcome::Garbled,
            Outcome::AddressRefused,
            Outcome::Unsendable,
            Outcome::Local { cause: LocalCause::Lookups },
        ];
        for outcome in hidden {
            assert_eq!(Viewer::Merchant.outcome(&outcome), UNREACHABLE);
            assert_eq!(Viewer::Merchant.cause(Cause::of(&outcome).as_str()), UNREACHABLE);
            assert_eq!(Viewer::Operator.outcome(&outcome), outcome.to_string());
        }
        assert_eq!(Viewer::Merchant.outcome(&Outcome::Rejected { status: 404 }), "rejected (404)");
        assert_eq!(Viewer::Merchant.cause("never_tried:paused"), "never_tried:paused");
    }
}
