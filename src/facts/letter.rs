//! What the indexes of dead letters know of one, in one line, so that a list needs no letter; and why a delivery that
//! was never tried was not. Pure: who waited for what is told by the partition's owner.

use std::{fmt, str::FromStr};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    delivery::DeadLetter,
    id::{AccountId, EntryId, EventId, IntentId},
    outcome::{Outcome, TlsFailure},
    retry::DeadReason,
};

/// The most of a pauser's reason that a letter repeats: the whole of it is in the registry's feed.
const MAX_REASON_CHARS: usize = 120;

/// The longest text of a [`Cause`].
const MAX_CAUSE_BYTES: usize = 48;

/// What stands for the reason and the cause of a letter that cannot be read.
const UNREADABLE: &str = "unreadable";
const NEVER_TRIED: &str = "never_tried";

/// What a delivery that was never tried waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Waiting {
    /// An operator, or a quota, had paused its endpoint.
    Paused,
    /// All sending was paused.
    AllPaused,
    /// The breaker of its endpoint was open.
    BreakerOpen,
    /// The receiver had asked for a rest.
    Resting,
    /// Its endpoint's own limit of a rate.
    RateLimited,
    /// It was behind the head of its chain.
    Held,
    /// As many as may be were under way or before it.
    Busy,
    /// Its endpoint could not be read.
    EndpointUnreadable,
    /// The owner that gave it up had not seen what it waited for.
    #[serde(other)]
    Unknown,
}

impl Waiting {
    pub fn name(self) -> &'static str {
        match self {
            Self::Paused => "paused",
            Self::AllPaused => "all_paused",
            Self::BreakerOpen => "breaker_open",
            Self::Resting => "resting",
            Self::RateLimited => "rate_limited",
            Self::Held => "held",
            Self::Busy => "busy",
            Self::EndpointUnreadable => "endpoint_unreadable",
            Self::Unknown => "unknown",
        }
    }
}

/// Why a letter was never tried, as its owner knew it when it gave the delivery up. Times are Redis', ms since 1970,
/// except that of a pause, which is its mark's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitedFor {
    pub why: Waiting,
    /// Since when its endpoint has been like this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<u64>,
    /// Who paused it, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_by: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_why: Option<String>,
    /// The entry of the head that it was held behind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<EntryId>,
    /// How the last attempt that failed at its endpoint ended, and when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<Cause>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure_at_ms: Option<u64>,
}

impl WaitedFor {
    pub fn new(why: Waiting) -> Self {
        Self {
            why,
            since_ms: None,
            paused_by: None,
            paused_why: None,
            head: None,
            last_failure: None,
            last_failure_at_ms: None,
        }
    }

    pub fn paused(mut self, by: &str, why: &str, at_ms: u64) -> Self {
        self.since_ms = Some(at_ms);
        self.paused_by = Some(by.to_owned());
        self.paused_why = Some(why.chars().take(MAX_REASON_CHARS).collect());
        self
    }
}

/// Why a letter died, by what its last attempt brought: a class, or a class and its kind. `server_failed:500`,
/// `tls_failed:expired`, `dns_failed`, `never_tried:paused`. The classes are the outcomes' names.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cause(String);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no cause: use the name of an outcome, as server_failed or server_failed:500")]
pub struct CauseError {
    text: String,
}

impl Cause {
    pub fn of(outcome: &Outcome) -> Self {
        let class = outcome.name();
        Self(match outcome {
            Outcome::Redirected { status }
            | Outcome::Throttled { status, .. }
            | Outcome::Rejected { status }
            | Outcome::ServerFailed { status }
            | Outcome::Delivered { status } => format!("{class}:{status}"),
            Outcome::Tls { failure } => format!("{class}:{}", tls_kind(*failure)),
            _ => class.to_owned(),
        })
    }

    pub fn never_tried(waited_for: Option<&WaitedFor>) -> Self {
        Self(match waited_for {
            Some(waited) => format!("{NEVER_TRIED}:{}", waited.why.name()),
            None => NEVER_TRIED.to_owned(),
        })
    }

    pub fn unreadable() -> Self {
        Self(UNREADABLE.to_owned())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether something else kept the delivery waiting until it was too old: why that did is the cause that counts.
    pub fn is_consequence(&self) -> bool {
        matches!(self.0.split_once(':'), Some((NEVER_TRIED, "breaker_open" | "held" | "resting" | "busy")))
    }

    /// Whether this is `other`, or a kind of that class.
    pub fn is_a(&self, other: &Self) -> bool {
        self == other || self.0.split_once(':').is_some_and(|(class, _)| class == other.0)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Cause {
    type Err = CauseError;

    fn from_str(text: &str) -> Result<Self, CauseError> {
        let is_word = |word: &str, digits: bool| {
            !word.is_empty() && word.bytes().all(|b| matches!(b, b'a'..=b'z' | b'_') || digits && b.is_ascii_digit())
        };
        let is_good = match text.split_once(':') {
            Some((class, kind)) => is_word(class, false) && is_word(kind, true),
            None => is_word(text, false),
        };
        match is_good && text.len() <= MAX_CAUSE_BYTES {
            true => Ok(Self(text.to_owned())),
            false => Err(CauseError { text: text.chars().take(64).collect() }),
        }
    }
}

impl TryFrom<String> for Cause {
    type Error = CauseError;

    fn try_from(text: String) -> Result<Self, CauseError> {
        text.parse()
    }
}

impl From<Cause> for String {
    fn from(cause: Cause) -> Self {
        cause.0
    }
}

fn tls_kind(failure: TlsFailure) -> &'static str {
    match failure {
        TlsFailure::WrongName => "wrong_name",
        TlsFailure::Expired => "expired",
        TlsFailure::UnknownIssuer => "unknown_issuer",
        TlsFailure::BadCertificate => "bad_certificate",
        TlsFailure::Handshake => "handshake",
    }
}

/// What a letter is found by and what a list shows of it. Its id and its time stand beside it. Of a letter that cannot be
/// read nothing is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LetterFacts {
    pub account: Option<AccountId>,
    pub reason: Option<DeadReason>,
    pub cause: Cause,
    pub attempts: u32,
    pub event: Option<EventId>,
    pub intent: Option<IntentId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waited_for: Option<WaitedFor>,
}

impl LetterFacts {
    pub fn unreadable() -> Self {
        Self {
            account: None,
            reason: None,
            cause: Cause::unreadable(),
            attempts: 0,
            event: None,
            intent: None,
            waited_for: None,
        }
    }

    pub fn of(letter: &DeadLetter) -> Self {
        let delivery = &letter.delivery;
        Self {
            account: Some(delivery.account.clone()),
            reason: Some(letter.reason),
            cause: letter.cause(),
            attempts: delivery.attempts_in_all(),
            event: Some(delivery.event.clone()),
            intent: Some(delivery.intent.clone()),
            waited_for: letter.waited_for.clone(),
        }
    }

    /// Of a letter as it is stored, whichever version wrote it.
    pub fn of_record(letter: &Bytes) -> Self {
        DeadLetter::from_record(letter).map_or_else(|_| Self::unreadable(), |letter| Self::of(&letter))
    }

    pub fn reason_name(&self) -> &'static str {
        self.reason.map_or(UNREADABLE, DeadReason::name)
    }

    /// `ACCOUNT REASON CAUSE ATTEMPTS EVENT INTENT`, and as JSON what it waited for: none of the others has a blank, and
    /// where nothing is known nothing stands between two.
    pub fn to_text(&self) -> String {
        let account = self.account.as_ref().map_or("", AccountId::as_str);
        let event = self.event.as_ref().map_or("", EventId::as_str);
        let intent = self.intent.as_ref().map_or("", IntentId::as_str);
        let text = format!("{account} {} {} {} {event} {intent}", self.reason_name(), self.cause, self.attempts);
        match &self.waited_for {
            Some(waited) => {
                let json = serde_json::to_string(waited).expect("strings and numbers are always JSON");
                format!("{text} {json}")
            }
            None => text,
        }
    }

    /// None for what [`Self::to_text`] never writes. What a newer Herald knows more of waiting is left out.
    pub fn parse(text: &str) -> Option<Self> {
        fn id<T: FromStr>(text: &str) -> Option<Option<T>> {
            if text.is_empty() { Some(None) } else { text.parse().ok().map(Some) }
        }
        let mut parts = text.splitn(7, ' ');
        let account = id(parts.next()?)?;
        let reason = parts.next()?;
        let known = DeadReason::ALL.into_iter().find(|known| known.name() == reason);
        if known.is_none() && reason != UNREADABLE {
            return None;
        }
        let cause = parts.next()?.parse().ok()?;
        let attempts = parts.next()?.parse().ok()?;
        let (event, intent) = (id(parts.next()?)?, id(parts.next()?)?);
        let waited_for = parts.next().and_then(|json| serde_json::from_str(json).ok());
        Some(Self { account, reason: known, cause, attempts, event, intent, waited_for })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::outcome::LocalCause;

    fn facts() -> LetterFacts {
        LetterFacts {
            account: AccountId::new("acc_1").ok(),
            reason: Some(DeadReason::Expired),
            cause: "never_tried:paused".parse().unwrap(),
            attempts: 3,
            event: EventId::new("evt_1").ok(),
            intent: IntentId::new("pi_1").ok(),
            waited_for: Some(WaitedFor::new(Waiting::Paused).paused("ops", "it is down", 17)),
        }
    }

    #[test]
    fn what_an_index_knows_of_a_letter_is_read_as_it_was_written() {
        let plain = LetterFacts { waited_for: None, cause: "server_failed:500".parse().unwrap(), ..facts() };
        for facts in [facts(), plain.clone(), LetterFacts::unreadable()] {
            assert_eq!(LetterFacts::parse(&facts.to_text()), Some(facts));
        }
        assert_eq!(plain.to_text(), "acc_1 expired server_failed:500 3 evt_1 pi_1");
        for bad in ["", "acc_1 expired", "acc_1 tired gone 1 e i", "a:b expired gone 1 e i", "a expired G 1 e i"] {
            assert_eq!(LetterFacts::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_cause_names_the_outcome_and_its_kind() {
        let cause = |outcome: Outcome| Cause::of(&outcome).to_string();
        assert_eq!(cause(Outcome::ServerFailed { status: 500 }), "server_failed:500");
        assert_eq!(cause(Outcome::Tls { failure: TlsFailure::WrongName }), "tls_failed:wrong_name");
        assert_eq!(cause(Outcome::DnsFailed), "dns_failed");
        assert_eq!(cause(Outcome::Local { cause: LocalCause::Lag }), "local_lag");
        assert_eq!(Cause::never_tried(None).as_str(), "never_tried");
    }

    #[test]
    fn a_class_finds_all_its_kinds_and_a_kind_only_itself() {
        let cause = |text: &str| text.parse::<Cause>().unwrap();
        assert!(cause("rejected:404").is_a(&cause("rejected")));
        assert!(cause("rejected:404").is_a(&cause("rejected:404")));
        assert!(!cause("rejected:403").is_a(&cause("rejected:404")));
        assert!(!cause("rejected").is_a(&cause("rejected:404")));
        assert!("Rejected".parse::<Cause>().is_err() && "a:b:c".parse::<Cause>().is_err());
    }

    #[test]
    fn what_a_newer_herald_says_it_waited_for_spoils_no_letter() {
        let text = r#"{"why":"eclipse","moon":1}"#;
        assert_eq!(serde_json::from_str::<WaitedFor>(text).unwrap(), WaitedFor::new(Waiting::Unknown));
    }
}
