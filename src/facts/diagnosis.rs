//! What is behind a failure, in plain words: what happened, who must act, what to do next, and what to tell the merchant. One table
//! for everything that an attempt can end with and for what was never tried. Pure; says nothing about how often or since when.

use serde::Serialize;

use super::{id::EndpointId, letter::Cause};

/// Who can mend it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Who {
    /// Whoever keeps the receiver.
    Merchant,
    /// Whoever runs Herald.
    Operator,
    /// Whoever keeps what lies between: names, routes, firewalls.
    Network,
}

impl Who {
    pub fn name(self) -> &'static str {
        match self {
            Self::Merchant => "the merchant",
            Self::Operator => "you",
            Self::Network => "whoever keeps the network",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnosis {
    /// A clause that goes on from "ENDPOINT: ".
    pub what: String,
    pub who: Who,
    /// The first thing to do: words to type, or what to check.
    pub next: String,
    /// A sentence for the merchant about his receiver; none where it is not his to mend.
    pub merchant: Option<String>,
}

/// A line of the table. `{kind}` is the status or what stands behind the cause's colon, `{ep}` the endpoint.
struct Line {
    what: &'static str,
    who: Who,
    next: &'static str,
    merchant: Option<&'static str>,
}

const ASK_AND_TEST: &str = "send the merchant the text below; when it is mended: herald endpoint test {ep}";
const AFTER_MENDING: &str =
    "look at a letter's answer (herald dead-letter list --endpoint {ep}), then send the text below";

impl Diagnosis {
    pub fn of(cause: &Cause, endpoint: &EndpointId) -> Self {
        let (class, kind) = cause.as_str().split_once(':').unwrap_or((cause.as_str(), ""));
        let line = line(class, kind).unwrap_or(Line {
            what: "failed in a way that this Herald does not know: {class}",
            who: Who::Operator,
            next: "bring all workers and this program to the same version, then: herald endpoint test {ep}",
            merchant: None,
        });
        let fill = |text: &str| {
            let kind = if kind.is_empty() { "no status" } else { kind };
            text.replace("{kind}", kind).replace("{ep}", endpoint.as_str()).replace("{class}", class)
        };
        Self { what: fill(line.what), who: line.who, next: fill(line.next), merchant: line.merchant.map(fill) }
    }
}

/// None for a cause that no Herald of this version writes.
fn line(class: &str, kind: &str) -> Option<Line> {
    let by = |who, what, next, merchant| Some(Line { what, who, next, merchant });
    let merchant = |what, text| by(Who::Merchant, what, ASK_AND_TEST, Some(text));
    match class {
        "redirected" => merchant(
            "answers with a redirect ({kind}), which is never followed",
            "Your server answers our callbacks with a redirect ({kind}). We do not follow redirects: please give us the URL that \
             it leads to.",
        ),
        "gone" => by(
            Who::Merchant,
            "answered 410 Gone, so it was disabled",
            "ask whether that was meant; if not: herald endpoint enable {ep} --reason '…'",
            Some(
                "Your server answered our callbacks with 410 Gone, which means that it wants no more, so we have stopped. Please \
                 tell us whether that was meant.",
            ),
        ),
        "throttled" => match kind {
            "429" => merchant(
                "asks for fewer requests (429)",
                "Your server refuses our callbacks with 429 (too many requests). Please allow more, or tell us the rate that you \
                 can take and we will keep to it.",
            ),
            _ => merchant(
                "says that it is overloaded or being maintained ({kind})",
                "Your server, or the proxy before it, answers our callbacks with {kind}: it is overloaded, being maintained, or \
                 its application does not run. Please have it checked.",
            ),
        },
        "rejected" => rejected(kind),
        "server_failed" => by(
            Who::Merchant,
            "fails while it deals with the callback ({kind})",
            AFTER_MENDING,
            Some(
                "Your server answers our callbacks with an error of its own ({kind}). Please look into its log for requests with \
                 the header webhook-id.",
            ),
        ),
        "dns_failed" => by(
            Who::Network,
            "has a host name that cannot be resolved",
            "resolve the name on the worker's machine; if only that fails, mend its resolver, otherwise send the text below",
            Some("The host name of your callback URL cannot be resolved. Please check its DNS records."),
        ),
        "proxy_failed" => by(
            Who::Operator,
            "cannot be reached through the egress proxy, which refuses, is silent or is away",
            "look at the log of attempt.egress_proxy; if it refuses this receiver alone, allow it there",
            None,
        ),
        "connect_failed" => merchant(
            "refuses connections, or there is no route to it",
            "Your server refuses our connections, or cannot be reached. Please check that it runs, that it listens on the port of \
             your callback URL, and that no firewall turns us away.",
        ),
        "connect_timed_out" => by(
            Who::Network,
            "does not answer when a connection is opened",
            "connect from the worker's machine; if other hosts do not answer either, mend its network, otherwise send the text below",
            Some(
                "Your server does not answer when we open a connection. Please check that it is reachable from outside and that no \
                 firewall drops our packets.",
            ),
        ),
        "tls_failed" => tls_failed(kind),
        "response_timed_out" => merchant(
            "takes the callback and does not answer in time",
            "Your server takes our callbacks and does not answer in time. Please answer with 2xx as soon as the callback is \
             stored, and do the work afterwards.",
        ),
        "reset" => merchant(
            "breaks the connection off before it answers",
            "Your server breaks the connection off before it answers our callbacks. Please check whether it or the proxy before \
             it restarts, runs out of workers, or closes connections too early.",
        ),
        "garbled" => merchant(
            "answers with something that is not HTTP",
            "What your server answers is not valid HTTP. Please check that the port of your callback URL is that of your HTTP \
             server.",
        ),
        "address_refused" => by(
            Who::Operator,
            "has a URL that Herald does not connect to: its scheme, its port or its address is refused",
            "herald endpoint show {ep}; if that address is meant to be reached, open it under [guard], otherwise send the text below",
            Some(
                "Your callback URL leads to an address that we do not connect to, such as one within a private network. Please \
                 give us a public https URL.",
            ),
        ),
        "unsendable" => by(
            Who::Operator,
            "has settings that make no valid request",
            "herald endpoint show {ep}, then mend its URL, headers or secrets: herald endpoint update {ep} --url … --reason '…'",
            None,
        ),
        "local_descriptors" => by(
            Who::Operator,
            "was not asked: the worker has no descriptors or ports left",
            "raise the worker's limit of open files (ulimit -n), then: herald doctor",
            None,
        ),
        "local_lookups" => by(
            Who::Operator,
            "was not asked: too many name look-ups are under way",
            "mend the worker's resolver: its answers take too long",
            None,
        ),
        "local_lag" => by(
            Who::Operator,
            "was not asked in time: the worker has too little CPU",
            "give the worker more CPU, or move what else runs on its machine",
            None,
        ),
        "delivered" => by(
            Who::Operator,
            "took the last attempt, and the delivery was given up all the same",
            "look at the letters: herald dead-letter list --endpoint {ep}",
            None,
        ),
        "never_tried" => never_tried(kind),
        "unreadable" => by(
            Who::Operator,
            "has letters or records that this Herald cannot read",
            "herald dead-letter list --endpoint {ep}; somebody else wrote to Herald's keys, or a newer Herald did",
            None,
        ),
        _ => None,
    }
}

fn rejected(kind: &str) -> Option<Line> {
    let by = |what, merchant| Some(Line { what, who: Who::Merchant, next: ASK_AND_TEST, merchant: Some(merchant) });
    match kind {
        "401" | "403" => by(
            "refuses us ({kind}): its check of the signature or its access rules",
            "Your server refuses our callbacks with {kind}. Please check that it verifies them with the current signing secret, over \
             the body's bytes as they arrive, and that no access rule turns us away.",
        ),
        "404" | "405" => by(
            "does not know this URL, or takes no POST there ({kind})",
            "Your server answers our callbacks with {kind}. Please check the callback URL, and that it takes POST.",
        ),
        "413" => by(
            "takes no body of this size (413)",
            "Your server refuses our callbacks as too large (413). Please allow bodies of 64 KiB.",
        ),
        _ => by(
            "refuses the callback ({kind})",
            "Your server refuses our callbacks with {kind}. Please look into its log for requests with the header webhook-id, and \
             answer 2xx also to events that you do not need.",
        ),
    }
}

fn tls_failed(kind: &str) -> Option<Line> {
    let by = |what, merchant| Some(Line { what, who: Who::Merchant, next: ASK_AND_TEST, merchant: Some(merchant) });
    match kind {
        "wrong_name" => by(
            "has a certificate for another name",
            "The certificate of your server is for another name than that of your callback URL. Please install the right one.",
        ),
        "expired" => by(
            "has a certificate that has expired or is not valid yet",
            "The certificate of your server has expired, or is not valid yet. Please renew it.",
        ),
        "unknown_issuer" => by(
            "has a certificate that no trusted authority signed, or an incomplete chain",
            "The certificate of your server was not signed by an authority that is generally trusted, or your server does not send \
             the certificates between. Please install the whole chain.",
        ),
        "bad_certificate" => by(
            "has a certificate that is revoked or malformed",
            "The certificate of your server is revoked or malformed. Please install a valid one.",
        ),
        "handshake" => by(
            "speaks no TLS that Herald speaks, or breaks the handshake off",
            "Your server and we find no common version of TLS. Please allow TLS 1.2 or 1.3, and check that the port is that of https.",
        ),
        _ => None,
    }
}

fn never_tried(kind: &str) -> Option<Line> {
    let by = |what, next| Some(Line { what, who: Who::Operator, next, merchant: None });
    const SEND_AGAIN: &str =
        "herald endpoint resume {ep} --reason '…', then herald dead-letter redeliver --endpoint {ep} --reason '…'";
    match kind {
        "paused" => by("was paused until its deliveries were too old, or was ended while it was paused", SEND_AGAIN),
        "all_paused" => by(
            "waited until its deliveries were too old: all sending was paused",
            "herald resume --all --reason '…', then herald dead-letter redeliver --endpoint {ep} --reason '…'",
        ),
        "breaker_open" => Some(Line {
            what: "took nothing for so long that deliveries became too old without an attempt",
            who: Who::Merchant,
            next: "herald endpoint show {ep}: its last failure says why; once mended: herald dead-letter redeliver --endpoint {ep} --reason '…'",
            merchant: Some("Your server has taken no callbacks for a long time. Please have it checked."),
        }),
        "resting" => Some(Line {
            what: "asked for pauses until deliveries were too old",
            who: Who::Merchant,
            next: "ask for a higher limit with the text below, then: herald dead-letter redeliver --endpoint {ep} --reason '…'",
            merchant: Some(
                "Your server asks us to wait (Retry-After) for so long that callbacks become too old. Please allow more requests.",
            ),
        }),
        "rate_limited" => by(
            "has a rate limit that is too low for its events",
            "herald endpoint update {ep} --rate-limit 100 --reason '…', then herald dead-letter redeliver --endpoint {ep} --reason '…'",
        ),
        "held" => by(
            "has intents whose first event fails for so long that the ones behind it became too old",
            "herald chain list --endpoint {ep}: mend what holds the first, or release it; then herald dead-letter redeliver --endpoint {ep} --reason '…'",
        ),
        "busy" => by(
            "takes less than arrives",
            "herald endpoint update {ep} --max-in-flight 50 --reason '…', then herald dead-letter redeliver --endpoint {ep} --reason '…'",
        ),
        "endpoint_unreadable" => by(
            "is stored in a form that this Herald cannot read",
            "bring all workers to the newest version, or restore it from a backup: herald endpoint import FILE --reason '…'",
        ),
        "" | "unknown" => by(
            "was given up before the first attempt",
            "herald dead-letter list --endpoint {ep}: the reason is there; then herald dead-letter redeliver --endpoint {ep} --reason '…'",
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::{
        letter::{WaitedFor, Waiting},
        outcome::{LocalCause, Outcome, TlsFailure},
    };

    /// Every variant, so that a new one does not compile before it is here.
    fn kinds(outcome: &Outcome) -> Vec<Outcome> {
        let statuses =
            |make: fn(u16) -> Outcome, statuses: &[u16]| statuses.iter().map(|status| make(*status)).collect();
        match outcome {
            Outcome::Delivered { .. } => statuses(|status| Outcome::Delivered { status }, &[200, 204]),
            Outcome::Redirected { .. } => statuses(|status| Outcome::Redirected { status }, &[301, 399]),
            Outcome::Throttled { .. } => statuses(
                |status| Outcome::Throttled { status, retry_after: None },
                &[302, 404, 429, 500, 502, 503, 504],
            ),
            Outcome::Rejected { .. } => {
                statuses(|status| Outcome::Rejected { status }, &[400, 401, 403, 404, 405, 413, 422, 499])
            }
            Outcome::ServerFailed { .. } => statuses(|status| Outcome::ServerFailed { status }, &[500, 501, 599]),
            Outcome::Tls { .. } => {
                let all = [
                    TlsFailure::WrongName,
                    TlsFailure::Expired,
                    TlsFailure::UnknownIssuer,
                    TlsFailure::BadCertificate,
                    TlsFailure::Handshake,
                ];
                all.map(|failure| Outcome::Tls { failure }).to_vec()
            }
            Outcome::Local { .. } => {
                let all = [LocalCause::Descriptors, LocalCause::Lookups, LocalCause::Lag];
                all.map(|cause| Outcome::Local { cause }).to_vec()
            }
            Outcome::Gone
            | Outcome::DnsFailed
            | Outcome::ConnectFailed
            | Outcome::ConnectTimedOut
            | Outcome::ProxyFailed
            | Outcome::ResponseTimedOut
            | Outcome::Reset
            | Outcome::Garbled
            | Outcome::AddressRefused
            | Outcome::Unsendable => vec![outcome.clone()],
        }
    }

    fn causes() -> Vec<Cause> {
        let outcomes = [
            Outcome::Delivered { status: 200 },
            Outcome::Redirected { status: 301 },
            Outcome::Gone,
            Outcome::Throttled { status: 429, retry_after: None },
            Outcome::Rejected { status: 400 },
            Outcome::ServerFailed { status: 500 },
            Outcome::DnsFailed,
            Outcome::ConnectFailed,
            Outcome::ConnectTimedOut,
            Outcome::ProxyFailed,
            Outcome::Tls { failure: TlsFailure::Expired },
            Outcome::ResponseTimedOut,
            Outcome::Reset,
            Outcome::Garbled,
            Outcome::AddressRefused,
            Outcome::Unsendable,
            Outcome::Local { cause: LocalCause::Lag },
        ];
        let waiting = [
            Waiting::Paused,
            Waiting::AllPaused,
            Waiting::BreakerOpen,
            Waiting::Resting,
            Waiting::RateLimited,
            Waiting::Held,
            Waiting::Busy,
            Waiting::EndpointUnreadable,
            Waiting::Unknown,
        ];
        let mut causes: Vec<Cause> = outcomes.iter().flat_map(kinds).map(|outcome| Cause::of(&outcome)).collect();
        causes.extend(waiting.map(|why| Cause::never_tried(Some(&WaitedFor::new(why)))));
        causes.extend([Cause::never_tried(None), Cause::unreadable()]);
        causes
    }

    #[test]
    fn whatever_an_attempt_ends_with_has_words_a_person_who_acts_and_a_next_step() {
        let endpoint = "ep_a".parse().unwrap();
        for cause in causes() {
            let Diagnosis { what, who, next, merchant } = Diagnosis::of(&cause, &endpoint);
            assert!(!what.contains("does not know: "), "{cause}: {what}");
            let texts = [what.as_str(), next.as_str(), merchant.as_deref().unwrap_or("Nothing.")];
            for text in texts {
                assert!(!text.contains('{') && !text.contains("no status") && text.len() > 5, "{cause}: {text}");
            }
            assert!(merchant.is_some() || who == Who::Operator, "{cause}: nothing to tell whoever must act");
            assert!(merchant.as_ref().is_none_or(|text| text.ends_with('.')), "{cause}: {merchant:?}");
            assert!(next.contains("below") <= merchant.is_some(), "{cause}: {next}");
        }
    }

    #[test]
    fn verbs_in_it_can_be_typed_as_they_are() {
        let endpoint = "ep_a".parse().unwrap();
        let of = |cause: &str| Diagnosis::of(&cause.parse().unwrap(), &endpoint);
        assert!(of("gone").next.contains("herald endpoint enable ep_a --reason"));
        assert_eq!(of("throttled:503").what, "says that it is overloaded or being maintained (503)");
        assert_eq!(of("eclipse:total").who, Who::Operator);
        assert!(of("eclipse:total").what.ends_with("does not know: eclipse"));
    }
}
