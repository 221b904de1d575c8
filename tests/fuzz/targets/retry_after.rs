//! The header `Retry-After` as a receiver sends it: eight bytes of clock, then the value.

use std::time::{Duration, SystemTime};

use herald::{
    facts::{
        outcome::Outcome,
        retry::{Fate, RetryPolicy, RetrySettings},
    },
    sender::of_response,
};
use http::{HeaderMap, HeaderValue, StatusCode, header};

/// The longest pause that a policy allows.
const MONTH: Duration = Duration::from_secs(30 * 86_400);

pub fn run(input: &[u8]) {
    let Some((clock, value)) = input.split_first_chunk::<8>() else { return };
    let Ok(value) = HeaderValue::from_bytes(value) else { return };
    let now_ms = u64::from_be_bytes(*clock);
    let headers = HeaderMap::from_iter([(header::RETRY_AFTER, value.clone())]);
    let expected = expected(&value, now_ms);
    for status in [301, 408, 413, 425, 429, 500, 502, 503, 504] {
        let code = StatusCode::from_u16(status).expect("it is a status");
        let outcome = of_response(code, &headers, now_ms);
        match outcome {
            Outcome::Throttled { status: found, retry_after } => {
                assert_eq!((found, retry_after), (status, expected), "{value:?} at {now_ms}");
                assert!(expected.is_some() || matches!(status, 429 | 502..=504), "{status} asks for nothing");
            }
            _ => assert_eq!(expected, None, "{status} became {outcome:?}: {value:?} at {now_ms}"),
        }
        let policy = RetryPolicy::try_new(RetrySettings::default()).expect("the default is a policy");
        if let Fate::RetryAfter(pause) = policy.decide(1, &outcome, Duration::ZERO, 0.5) {
            assert!(pause >= Duration::from_secs(4) && pause <= policy.settings().max_interval, "{pause:?}");
        }
    }
}

/// Written from RFC 9110, section 10.2.3: digits are seconds, anything else is a date; more than a month counts as
/// absent.
fn expected(value: &HeaderValue, now_ms: u64) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    if !text.is_empty() && text.chars().all(|c| c.is_ascii_digit()) {
        let mut seconds = 0u64;
        for digit in text.bytes() {
            seconds = (seconds * 10 + u64::from(digit - b'0')).min(MONTH.as_secs() + 1);
        }
        return Some(Duration::from_secs(seconds)).filter(|pause| *pause <= MONTH);
    }
    let date = httpdate::parse_http_date(text).ok()?;
    let date_ms = date.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_millis();
    let pause_ms = date_ms.saturating_sub(u128::from(now_ms));
    (pause_ms <= MONTH.as_millis()).then(|| Duration::from_millis(pause_ms as u64))
}
