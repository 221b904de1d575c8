//! What a response or an error means, as an outcome. Errors are told apart by their types, all along the chain of their
//! causes, never by their text; the text is kept only for operators.

use std::{error::Error, io, time::Duration};

use http::{HeaderMap, StatusCode, header};
use rustls::CertificateError;

use super::{connect::ConnectError, exchange::Failure, wire::refuses_certificate};
use crate::facts::{
    outcome::{LocalCause, Outcome, TlsFailure},
    text::steers,
};

/// Longest pause that a receiver can ask for: the longest that any retry policy allows. A receiver that asks for more (an
/// epoch instead of a span, forty digits, the year 9999) does not mean it.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(30 * 86_400);

/// Longest detail that an attempt keeps, in bytes. Enough for a chain of causes; a receiver's TLS name list can be long.
const MAX_DETAIL_BYTES: usize = 300;

pub fn of_response(status: StatusCode, headers: &HeaderMap, now_ms: u64) -> Outcome {
    let status = status.as_u16();
    match status {
        200..=299 => return Outcome::Delivered { status },
        410 => return Outcome::Gone,
        300..=599 => {}
        _ => return Outcome::Garbled,
    }
    let retry_after = retry_after(headers, now_ms);
    match status {
        // Whatever else its status means, an answer that says when to come back is obeyed.
        _ if retry_after.is_some() => Outcome::Throttled { status, retry_after },
        429 | 502 | 503 | 504 => Outcome::Throttled { status, retry_after: None },
        300..=399 => Outcome::Redirected { status },
        400..=499 => Outcome::Rejected { status },
        _ => Outcome::ServerFailed { status },
    }
}

/// Seconds or an HTTP date (RFC 9110, section 10.2.3). Anything else, or a value that nobody can mean, is treated as
/// absent.
fn retry_after(headers: &HeaderMap, now_ms: u64) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let pause = match text.bytes().all(|b| b.is_ascii_digit()) && !text.is_empty() {
        // More digits than fit a number are too long a pause.
        true => Duration::from_secs(text.parse().ok()?),
        false => {
            let at = httpdate::parse_http_date(text).ok()?;
            let now = std::time::UNIX_EPOCH + Duration::from_millis(now_ms);
            at.duration_since(now).unwrap_or(Duration::ZERO)
        }
    };
    (pause <= MAX_RETRY_AFTER).then_some(pause)
}

/// What there was instead of an answer.
pub(super) fn of_failure(failure: &Failure) -> Outcome {
    match failure {
        Failure::Connect(error) => of_connect_error(error),
        Failure::Exchange { is_flood: true, .. } => Outcome::Garbled,
        Failure::Exchange { is_certificate: true, .. } => Outcome::Tls { failure: TlsFailure::Handshake },
        Failure::Exchange { error, .. } => of_exchange_error(error),
        Failure::Silent => Outcome::ResponseTimedOut,
        Failure::Unasked => Outcome::Reset,
    }
}

fn of_connect_error(error: &ConnectError) -> Outcome {
    match error {
        ConnectError::Refused(_) => Outcome::AddressRefused,
        // Either there was no place for the look-up, or nothing to ask with.
        ConnectError::Unresolved(error) if error.is_busy() => Outcome::Local { cause: LocalCause::Lookups },
        ConnectError::Unresolved(_) | ConnectError::ResolvedLate { .. } => Outcome::DnsFailed,
        ConnectError::Silent { .. } | ConnectError::TlsLate { .. } => Outcome::ConnectTimedOut,
        ConnectError::Failed { .. } => Outcome::ConnectFailed,
        ConnectError::Proxy(_) => Outcome::ProxyFailed,
        ConnectError::Short { .. } | ConnectError::Full { .. } => Outcome::Local { cause: LocalCause::Descriptors },
        ConnectError::Lagged(_) => Outcome::Local { cause: LocalCause::Lag },
        // Whatever broke it, TCP was already connected.
        ConnectError::Tls { error, .. } => {
            let known = chain(error).find_map(|cause| cause.downcast_ref());
            Outcome::Tls { failure: known.map_or(TlsFailure::Handshake, tls_failure) }
        }
        ConnectError::OwnTls(_) => Outcome::Unsendable,
        ConnectError::Protocol(error) => of_exchange_error(error),
    }
}

/// Something went wrong between the request's first byte and the response head's last.
fn of_exchange_error(error: &hyper::Error) -> Outcome {
    if let Some(h2) = chain(error).find_map(|cause| cause.downcast_ref::<h2::Error>()) {
        // What h2 itself objects to is a breach of the protocol; otherwise the receiver chose to end it.
        return if h2.is_library() { Outcome::Garbled } else { Outcome::Reset };
    }
    if error.is_timeout() {
        return Outcome::ResponseTimedOut;
    }
    if error.is_parse() {
        return Outcome::Garbled;
    }
    let is_io = chain(error).any(|cause| cause.is::<io::Error>());
    match error.is_incomplete_message() || error.is_closed() || error.is_canceled() || is_io {
        true => Outcome::Reset,
        // It spoke before it was asked.
        false => Outcome::Garbled,
    }
}

fn tls_failure(error: &rustls::Error) -> TlsFailure {
    let rustls::Error::InvalidCertificate(certificate) = error else { return TlsFailure::Handshake };
    match certificate {
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => TlsFailure::WrongName,
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => TlsFailure::Expired,
        CertificateError::UnknownIssuer => TlsFailure::UnknownIssuer,
        _ => TlsFailure::BadCertificate,
    }
}

/// The cause of a failure, for people.
pub(super) fn detail(failure: &Failure) -> String {
    match failure {
        Failure::Connect(error) if shows_an_authority(error) => shorten(format!("{} ({NO_LEAF})", causes(error))),
        Failure::Connect(error) if is_about_our_certificate(error) => {
            shorten(format!("{NOT_TAKEN}: {}", causes(error)))
        }
        Failure::Connect(error) => causes(error),
        Failure::Exchange { error, is_flood: true, .. } => {
            shorten(format!("the receiver sends more than any answer needs: {}", causes(error)))
        }
        Failure::Exchange { error, is_certificate: true, .. } => shorten(format!("{NOT_TAKEN}: {}", causes(error))),
        Failure::Exchange { error, .. } => causes(error),
        Failure::Silent => "connected, and no whole head of an answer by the deadline".to_owned(),
        Failure::Unasked => "the receiver closed the connection as idle when the request came, twice".to_owned(),
    }
}

/// What usually goes wrong with a self-signed certificate, and how to repair it.
const NO_LEAF: &str = "the receiver shows an authority's certificate as its own: make one without CA:TRUE, or one that \
                       another signed, and give the signer in attempt.ca_file";

/// What the endpoint lacks, whichever way its receiver says so.
const NOT_TAKEN: &str = "the receiver wants a client certificate, or does not take the one that it was shown (give the endpoint \
                         another, tls.client_certificate)";

fn is_about_our_certificate(error: &ConnectError) -> bool {
    matches!(error, ConnectError::Tls { error, .. } if refuses_certificate(error))
}

fn shows_an_authority(error: &ConnectError) -> bool {
    let ConnectError::Tls { error, .. } = error else { return false };
    let tls = chain(error).find_map(|cause| cause.downcast_ref());
    let Some(rustls::Error::InvalidCertificate(CertificateError::Other(other))) = tls else { return false };
    matches!(other.0.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity))
}

/// Where a redirect leads: whoever reads the attempt may want to register that URL. It is the receiver's text.
pub(super) fn location(status: StatusCode, headers: &HeaderMap) -> String {
    let Some(location) = headers.get(header::LOCATION).filter(|_| status.is_redirection()) else {
        return String::new();
    };
    let cut = &location.as_bytes()[..location.len().min(MAX_DETAIL_BYTES)];
    shorten(format!("location: {}", without_controls(&String::from_utf8_lossy(cut))))
}

/// An error and its causes, leaving out any that repeats the one before it.
fn causes(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    for cause in chain(error) {
        let cause = cause.to_string();
        if text.ends_with(&cause) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&cause);
    }
    shorten(without_controls(&text))
}

/// A certificate's names and a name server's answer are other people's text as well.
fn without_controls(text: &str) -> String {
    text.chars().map(|c| if steers(c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

pub(super) fn shorten(mut text: String) -> String {
    let end = (0..=MAX_DETAIL_BYTES.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    text.truncate(end.unwrap_or(0));
    text
}

/// An error and its causes from the outside in. An `io::Error` that wraps another error hides it from `source`.
fn chain<'e>(error: &'e (dyn Error + 'static)) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    /// Deeper than any chain that these libraries build; a chain that loops ends here.
    const MAX_DEPTH: usize = 16;
    fn next<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e (dyn Error + 'static)> {
        match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        }
    }
    std::iter::successors(Some(error), |error| next(*error)).take(MAX_DEPTH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(text: &str) -> Option<Duration> {
        // 1994-11-06T08:49:37Z
        const NOW_MS: u64 = 784_111_777_000;
        let headers = HeaderMap::from_iter([(header::RETRY_AFTER, text.parse().unwrap())]);
        match of_response(StatusCode::TOO_MANY_REQUESTS, &headers, NOW_MS) {
            Outcome::Throttled { status: 429, retry_after } => retry_after,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn retry_after_is_taken_in_both_forms_and_garbage_is_ignored() {
        let secs = Duration::from_secs;
        for (text, expected) in [
            ("0", Some(secs(0))),
            ("120", Some(secs(120))),
            (" 7 ", Some(secs(7))),
            ("2592000", Some(MAX_RETRY_AFTER)),
            ("2592001", None),
            ("1764000000", None),
            ("9999999999999999999999999999999999999999", None),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(secs(60))),
            ("Sunday, 06-Nov-94 08:50:37 GMT", Some(secs(60))),
            ("Sun Nov  6 08:50:37 1994", Some(secs(60))),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(secs(0))),
            ("Tue, 06 Dec 1994 08:49:37 GMT", Some(MAX_RETRY_AFTER)),
            ("Tue, 06 Dec 1994 08:49:38 GMT", None),
            ("Fri, 31 Dec 9999 23:59:59 GMT", None),
            ("", None),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
            ("+3", None),
        ] {
            assert_eq!(after(text), expected, "{text:?}");
        }
    }

    #[test]
    fn every_status_has_its_outcome() {
        let of = |status: u16| of_response(StatusCode::from_u16(status).unwrap(), &HeaderMap::new(), 0);
        for status in 100..=999 {
            let outcome = of(status);
            let expected = match status {
                200..=299 => "delivered",
                300..=399 => "redirected",
                410 => "gone",
                429 | 502 | 503 | 504 => "throttled",
                400..=499 => "rejected",
                500..=599 => "server_failed",
                _ => "garbled",
            };
            assert_eq!(outcome.name(), expected, "{status}");
        }
    }

    #[test]
    fn any_failure_may_say_when_to_come_back() {
        let headers = HeaderMap::from_iter([(header::RETRY_AFTER, "7".parse().unwrap())]);
        for status in 200..=599 {
            let outcome = of_response(StatusCode::from_u16(status).unwrap(), &headers, 0);
            match status {
                200..=299 => assert_eq!(outcome, Outcome::Delivered { status }),
                410 => assert_eq!(outcome, Outcome::Gone),
                _ => assert_eq!(outcome, Outcome::Throttled { status, retry_after: Some(Duration::from_secs(7)) }),
            }
        }
    }

    #[test]
    fn an_error_inside_an_io_error_is_found_and_named_once() {
        let inner = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let error = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, inner));
        assert_eq!(causes(&error), "invalid peer certificate: UnknownIssuer");
        let error = ConnectError::Tls { address: "8.8.8.8:443".parse().unwrap(), error };
        assert_eq!(of_connect_error(&error), Outcome::Tls { failure: TlsFailure::UnknownIssuer });
    }

    #[test]
    fn a_location_is_kept_for_people_and_steers_nothing() {
        let of = |status: u16, location: &[u8]| {
            let value = http::HeaderValue::from_bytes(location).unwrap();
            location_of(status, value)
        };
        assert_eq!(of(301, b"https://shop.example/new"), "location: https://shop.example/new");
        assert_eq!(of(200, b"https://shop.example/new"), "");
        assert_eq!(of(302, "a\u{9b}b\u{202e}c".as_bytes()), "location: a\u{fffd}b\u{fffd}c");
        assert!(of(302, &[b'x'; 4_000]).len() <= MAX_DETAIL_BYTES);
    }

    fn location_of(status: u16, value: http::HeaderValue) -> String {
        location(StatusCode::from_u16(status).unwrap(), &HeaderMap::from_iter([(header::LOCATION, value)]))
    }

    #[test]
    fn a_detail_is_never_longer_than_its_limit() {
        let error = io::Error::other(io::Error::other("ä".repeat(MAX_DETAIL_BYTES)));
        assert!(causes(&error).len() <= MAX_DETAIL_BYTES);
    }
}
