//! Events of Herald's own: what an operator wants to be told of without looking. They go through the same stream as all others, to the
//! endpoints of an account that is no merchant's, and nothing that happens to those endpoints makes another one.

use serde::Deserialize;

use super::id::{AccountId, IntentId};

/// The account whose endpoints are operators'. No API key is made for it, and no producer's event is taken for it.
pub const OPERATORS: &str = "herald";

pub fn is_operators(account: &AccountId) -> bool {
    account.as_str() == OPERATORS
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnEvent {
    /// An endpoint has taken nothing for some minutes.
    EndpointFailing,
    /// It takes events again, after that was told.
    EndpointRecovered,
    /// It takes no events any more, whoever disabled it.
    EndpointDisabled,
    /// Many dead letters within an hour.
    DeadLettersGrowing,
}

impl OwnEvent {
    pub const ALL: [Self; 4] =
        [Self::EndpointFailing, Self::EndpointRecovered, Self::EndpointDisabled, Self::DeadLettersGrowing];

    pub fn name(self) -> &'static str {
        match self {
            Self::EndpointFailing => "endpoint.failing",
            Self::EndpointRecovered => "endpoint.recovered",
            Self::EndpointDisabled => "endpoint.disabled",
            Self::DeadLettersGrowing => "dead_letters.growing",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|event| event.name() == name)
    }
}

/// What of an event of Herald's own is read again when it comes out of the stream.
#[derive(Deserialize)]
pub(super) struct Wire {
    pub id: String,
    pub event: String,
    #[serde(rename = "accountId")]
    pub account: String,
    #[serde(rename = "createdAt")]
    pub created_at: String,
    pub data: WireData,
}

#[derive(Deserialize)]
pub(super) struct WireData {
    #[serde(rename = "endpointId")]
    endpoint: Option<String>,
}

impl Wire {
    /// Those about one endpoint come in their order.
    pub fn chain(&self) -> Option<IntentId> {
        IntentId::new(self.data.endpoint.as_deref().unwrap_or(OPERATORS)).ok()
    }
}

#[cfg(feature = "dispatcher")]
pub use self::body::{About, body};

#[cfg(feature = "dispatcher")]
mod body {
    use serde::Serialize;
    use sha2::{Digest, Sha256};

    use super::{OPERATORS, OwnEvent};
    use crate::facts::{
        diagnosis::{Diagnosis, Who},
        id::{AccountId, EndpointId},
        letter::Cause,
    };

    /// What an event says. Times are ms since 1970.
    #[derive(Debug, Clone, PartialEq)]
    pub struct About {
        pub event: OwnEvent,
        /// None: it is about all of them.
        pub endpoint: Option<EndpointId>,
        pub account: Option<AccountId>,
        /// When it began, or happened: of all that is told of an endpoint no two events of one type have the same.
        pub since_ms: u64,
        pub count: u64,
        pub cause: Option<Cause>,
        /// Who disabled it, and why.
        pub by: Option<String>,
        pub why: Option<String>,
    }

    #[derive(Serialize)]
    struct Body<'a> {
        id: String,
        event: &'static str,
        #[serde(rename = "accountId")]
        account: &'static str,
        #[serde(rename = "createdAt")]
        created_at: String,
        data: Data<'a>,
    }

    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Data<'a> {
        #[serde(skip_serializing_if = "Option::is_none")]
        endpoint_id: Option<&'a EndpointId>,
        #[serde(skip_serializing_if = "Option::is_none")]
        account_id: Option<&'a AccountId>,
        since: String,
        count: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        cause: Option<&'a Cause>,
        #[serde(skip_serializing_if = "Option::is_none")]
        says: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        must_act: Option<Who>,
        #[serde(skip_serializing_if = "Option::is_none")]
        next: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        by: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        why: Option<&'a str>,
    }

    /// As it stands in the stream. The same about has the same id, whoever writes it.
    pub fn body(about: &About, now_ms: u64) -> String {
        let About { event, endpoint, account, since_ms, count, cause, by, why } = about;
        let diagnosis = endpoint.as_ref().zip(cause.as_ref()).map(|(endpoint, cause)| Diagnosis::of(cause, endpoint));
        let name = endpoint.as_ref().map_or("", EndpointId::as_str);
        let hash = Sha256::digest(format!("{} {name} {since_ms}", event.name()));
        let body = Body {
            id: format!("evt_{}", hex::encode(&hash[..16])),
            event: event.name(),
            account: OPERATORS,
            created_at: time(now_ms),
            data: Data {
                endpoint_id: endpoint.as_ref(),
                account_id: account.as_ref(),
                since: time(*since_ms),
                count: *count,
                cause: cause.as_ref(),
                says: diagnosis.as_ref().map(|diagnosis| diagnosis.what.clone()),
                must_act: diagnosis.as_ref().map(|diagnosis| diagnosis.who),
                next: diagnosis.map(|diagnosis| diagnosis.next),
                by: by.as_deref(),
                why: why.as_deref(),
            },
        };
        serde_json::to_string(&body).expect("texts and numbers are always JSON")
    }

    fn time(ms: u64) -> String {
        let ms = i64::try_from(ms).unwrap_or(i64::MAX);
        jiff::Timestamp::from_millisecond(ms).unwrap_or(jiff::Timestamp::UNIX_EPOCH).to_string()
    }
}

#[cfg(all(test, feature = "dispatcher"))]
mod tests {
    use super::{About, OPERATORS, OwnEvent, body};
    use crate::facts::event::Event;

    fn failing(endpoint: &str, since_ms: u64) -> About {
        About {
            event: OwnEvent::EndpointFailing,
            endpoint: endpoint.parse().ok(),
            account: "acc_a".parse().ok(),
            since_ms,
            count: 7,
            cause: "server_failed:500".parse().ok(),
            by: None,
            why: None,
        }
    }

    #[test]
    fn an_own_event_is_read_as_an_event_in_its_endpoints_order_and_has_one_id_for_ever() {
        let (one, again) = (body(&failing("ep_a", 5), 1_000), body(&failing("ep_a", 5), 9_000));
        let event = Event::parse(one.clone().into()).unwrap();
        assert_eq!((event.event_type.as_str(), event.account.as_str()), ("endpoint.failing", OPERATORS));
        assert_eq!((event.intent.as_str(), event.status, event.novelties.len()), ("ep_a", None, 0));
        assert_eq!(event.id, Event::parse(again.into()).unwrap().id);
        let other = Event::parse(body(&failing("ep_a", 6), 1_000).into()).unwrap();
        assert_ne!(event.id, other.id);
        assert!(one.contains(r#""mustAct":"merchant""#) && one.contains("(500)"), "{one}");
        let letters =
            About { event: OwnEvent::DeadLettersGrowing, endpoint: None, account: None, ..failing("ep_a", 5) };
        assert_eq!(Event::parse(body(&letters, 1).into()).unwrap().intent.as_str(), OPERATORS);
    }

    #[test]
    fn nobody_else_has_events_of_the_operators_account() {
        let payment = r#"{"id":"e","event":"payment_intent.x","accountId":"herald","createdAt":"2026-01-01T00:00:00Z",
            "data":{"paymentIntentId":"pi_1","paymentStatus":"Created","captureMode":"Auto"}}"#;
        let why = Event::parse(payment.into()).unwrap_err().to_string();
        assert!(why.contains("accountId") && why.contains("operators"), "{why}");
        let ours = body(&failing("ep_a", 5), 1);
        for (from, to) in [("endpoint.failing", "endpoint.made_up"), ("\"herald\"", "\"acc_a\""), ("1970-01", "x")] {
            assert!(Event::parse(ours.replace(from, to).into()).is_err(), "{to}");
        }
    }
}
