//! What a response or an error means, as an outcome. Errors are told apart by their types all along the chain of their
//! causes, never by their text; the text is kept for operators only.

use std::{error::Error, io, time::Duration};

use http::{HeaderMap, StatusCode, header};
use rustls::CertificateError;

use super::{guard::GuardError, resolver::ResolveError, stages::Stage};
use crate::facts::outcome::{LocalCause, Outcome, TlsFailure};

/// Longest pause that a receiver can ask for: the longest that any retry policy allows. Also keeps it far from overflow.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(30 * 86_400);

/// Longest detail that an attempt keeps, in bytes. Enough for a chain of causes; a receiver's TLS name list can be long.
const MAX_DETAIL_BYTES: usize = 300;

pub fn of_response(status: StatusCode, headers: &HeaderMap, now_ms: u64) -> Outcome {
    let status = status.as_u16();
    match status {
        200..=299 => Outcome::Delivered { status },
        300..=399 => Outcome::Redirected { status },
        410 => Outcome::Gone,
        429 | 502 | 503 | 504 => Outcome::Throttled { status, retry_after: retry_after(headers, now_ms) },
        400..=499 => Outcome::Rejected { status },
        500..=599 => Outcome::ServerFailed { status },
        _ => Outcome::Garbled,
    }
}

/// The deadline is over: what it found the attempt doing is what took too long.
pub(super) fn of_deadline(stage: Stage) -> Outcome {
    match stage {
        Stage::Resolving => Outcome::DnsFailed,
        Stage::Connecting => Outcome::ConnectTimedOut,
        Stage::Talking => Outcome::ResponseTimedOut,
    }
}

/// Seconds or an HTTP date (RFC 9110, section 10.2.3); anything else is as if it were not there.
fn retry_after(headers: &HeaderMap, now_ms: u64) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let pause = match text.bytes().all(|b| b.is_ascii_digit()) && !text.is_empty() {
        true => Duration::from_secs(text.parse().unwrap_or(u64::MAX)),
        false => {
            let at = httpdate::parse_http_date(text).ok()?;
            let now = std::time::UNIX_EPOCH + Duration::from_millis(now_ms);
            at.duration_since(now).unwrap_or(Duration::ZERO)
        }
    };
    Some(pause.min(MAX_RETRY_AFTER))
}

/// What of an error's causes is known by type.
#[derive(Default)]
struct Causes<'e> {
    refused: bool,
    unresolved: bool,
    /// What we lack ourselves.
    local: Option<LocalCause>,
    tls: Option<&'e rustls::Error>,
    h2: Option<&'e h2::Error>,
    /// The innermost of each: it is nearest to what happened.
    io: Option<io::ErrorKind>,
    hyper: Option<&'e hyper::Error>,
}

impl<'e> Causes<'e> {
    fn of(error: &'e (dyn Error + 'static)) -> Self {
        let mut causes = Self::default();
        for cause in chain(error) {
            causes.refused |= cause.is::<GuardError>();
            let unresolved = cause.downcast_ref::<ResolveError>();
            causes.unresolved |= unresolved.is_some();
            let is_busy = unresolved.is_some_and(ResolveError::is_busy);
            let short = cause.downcast_ref::<io::Error>().and_then(short_of);
            causes.local = causes.local.or(is_busy.then_some(LocalCause::Lookups)).or(short);
            causes.tls = causes.tls.or(cause.downcast_ref());
            causes.h2 = causes.h2.or(cause.downcast_ref());
            causes.hyper = cause.downcast_ref().or(causes.hyper);
            causes.io = cause.downcast_ref().map(io::Error::kind).or(causes.io);
        }
        causes
    }
}

pub(super) fn of_error(error: &reqwest::Error, stage: Stage, is_https: bool) -> Outcome {
    let causes = Causes::of(error);
    if causes.refused {
        return Outcome::AddressRefused;
    }
    if let Some(cause) = causes.local {
        return Outcome::Local { cause };
    }
    if causes.unresolved || error.is_dns() {
        return Outcome::DnsFailed;
    }
    if let Some(tls) = causes.tls {
        return Outcome::Tls { failure: tls_failure(tls) };
    }
    if error.is_connect() {
        return of_connect_error(error, &causes, stage, is_https);
    }
    if error.is_builder() {
        return Outcome::Unsendable;
    }
    of_exchange_error(error, &causes)
}

/// The system's errors that tell of this machine and not of the receiver: no descriptor, memory or local port left.
fn short_of(error: &io::Error) -> Option<LocalCause> {
    use nix::errno::Errno;
    match Errno::from_raw(error.raw_os_error()?) {
        Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM | Errno::EADDRNOTAVAIL => {
            Some(LocalCause::Descriptors)
        }
        _ => None,
    }
}

fn of_connect_error(error: &reqwest::Error, causes: &Causes<'_>, stage: Stage, is_https: bool) -> Outcome {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, InvalidData, UnexpectedEof};
    if error.is_timeout() {
        // The connector's own limit covers the resolving as well.
        return if stage == Stage::Resolving { Outcome::DnsFailed } else { Outcome::ConnectTimedOut };
    }
    match causes.io {
        // TCP stood already when these came, so it was the handshake that they broke.
        Some(UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe | InvalidData) if is_https => {
            Outcome::Tls { failure: TlsFailure::Handshake }
        }
        _ => Outcome::ConnectFailed,
    }
}

/// Something went wrong between the request's first byte and the response head's last.
fn of_exchange_error(error: &reqwest::Error, causes: &Causes<'_>) -> Outcome {
    if let Some(h2) = causes.h2 {
        // What h2 itself objects to is a breach of the protocol; the rest is the receiver's choice to end it.
        return if h2.is_library() { Outcome::Garbled } else { Outcome::Reset };
    }
    if error.is_timeout() {
        return Outcome::ResponseTimedOut;
    }
    match causes.hyper {
        Some(hyper) if hyper.is_parse() => Outcome::Garbled,
        Some(hyper) if hyper.is_incomplete_message() || hyper.is_closed() || hyper.is_canceled() => Outcome::Reset,
        _ if causes.io.is_some() => Outcome::Reset,
        // It spoke before it was asked.
        _ => Outcome::Garbled,
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

/// The causes behind an error, without the URL and without what repeats the cause before it.
pub(super) fn detail(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    // The first is the library's "error sending request for url (…)": the attempt knows both.
    for cause in chain(error).skip(1) {
        let cause = cause.to_string();
        if text.ends_with(&cause) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&cause);
    }
    shorten(text)
}

pub(super) fn shorten(mut text: String) -> String {
    let end = (0..=MAX_DETAIL_BYTES.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    text.truncate(end.unwrap_or(0));
    text
}

/// An error and its causes from the outside in. An `io::Error` that wraps another error hides it from `source`.
fn chain<'e>(error: &'e (dyn Error + 'static)) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    /// Deeper than any chain that these libraries build; a chain that bites its tail ends here.
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
            ("99999999999999999999999", Some(MAX_RETRY_AFTER)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(secs(60))),
            ("Sunday, 06-Nov-94 08:50:37 GMT", Some(secs(60))),
            ("Sun Nov  6 08:50:37 1994", Some(secs(60))),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(secs(0))),
            ("Fri, 31 Dec 9999 23:59:59 GMT", Some(MAX_RETRY_AFTER)),
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
    fn an_error_inside_an_io_error_is_found_and_named_once() {
        let inner = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let error = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, inner));
        let causes = Causes::of(&error);
        assert!(matches!(causes.tls.map(tls_failure), Some(TlsFailure::UnknownIssuer)));
        assert_eq!(causes.io, Some(io::ErrorKind::InvalidData));
        assert_eq!(detail(&error), "invalid peer certificate: UnknownIssuer");
    }

    #[test]
    fn what_this_machine_lacks_is_no_failure_of_the_receiver() {
        use nix::libc::{EADDRNOTAVAIL, ECONNREFUSED, EMFILE, ENFILE, ENOBUFS, ENOMEM};
        let local = |code| {
            let error = io::Error::other(io::Error::from_raw_os_error(code));
            Causes::of(&error).local
        };
        for code in [EMFILE, ENFILE, ENOBUFS, ENOMEM, EADDRNOTAVAIL] {
            assert_eq!(local(code), Some(LocalCause::Descriptors), "{code}");
        }
        assert_eq!(local(ECONNREFUSED), None);
        let busy = io::Error::other(ResolveError::Busy { name: "shop.example".to_owned() });
        assert_eq!(Causes::of(&busy).local, Some(LocalCause::Lookups));
    }

    #[test]
    fn a_detail_is_never_longer_than_its_limit() {
        let error = io::Error::other(io::Error::other("ä".repeat(MAX_DETAIL_BYTES)));
        assert!(detail(&error).len() <= MAX_DETAIL_BYTES);
    }
}
