//! Verifies a callback, for whoever receives one: a decision over what arrived, the secret and the time.
//! No I/O, no clock. Signatures are compared in constant time; an error names what is wrong and never what would be right.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::Mac;

#[cfg(feature = "ed25519")]
use super::ed25519::{self, PublicKey};
use super::{
    DOJO_SIGNATURE, DojoKey, Kind, SecretText, StandardKey, WEBHOOK_ID, WEBHOOK_SIGNATURE, WEBHOOK_TIMESTAMP,
    candidates::dojo_digest,
};

/// What a callback's signature has proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verified {
    /// `webhook-signature`: the body, this id and this time are what was signed. Deduplicate by the id.
    Standard { id: String, sent_at: SystemTime },
    /// `dojo-signature`: the body is what was signed; when, and whether it is a replay, nobody can tell.
    Dojo,
}

/// Why a callback is not to be trusted. Answer 401 and do not process it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    #[error("there is neither webhook-signature nor dojo-signature: this request is not signed")]
    Unsigned,
    #[error("the header {0} is missing or empty: does something on the way drop it?")]
    Missing(&'static str),
    #[error("the header {0} stands there more than once: nobody can tell which one was signed")]
    Repeated(&'static str),
    #[error("the header {header} has not the form of one: it must be {form}")]
    Malformed { header: &'static str, form: &'static str },
    #[error("{0} does not fit the secret and these bytes; `herald verify` tries why")]
    Mismatch(&'static str),
    #[error("it was signed {} s before the earliest time allowed: a replay, or a clock that is wrong", .by.as_secs_f64())]
    TooOld { by: Duration },
    #[error("it was signed {} s after the latest time allowed: one of the clocks is wrong", .by.as_secs_f64())]
    TooNew { by: Duration },
}

/// Checks a callback by the scheme that it comes with: Standard Webhooks' `webhook-signature` where it is there, otherwise
/// Dojo's `dojo-signature`.
///
/// `headers` may be an `http::HeaderMap`, a map, or any list of names and values; names are compared without regard to case.
/// `body` must be the bytes as they came: JSON that was parsed and written again has other bytes. `webhook-timestamp` may be
/// off by `tolerance` in both directions; five minutes are usual. While a secret is rotated, call it with each of the two.
///
/// Only the standard scheme protects against replays, and whoever replays a request may leave a header out: where your
/// endpoint gets `webhook-signature`, use [`verify_standard`], which takes nothing else.
///
/// ```
/// use std::time::{Duration, UNIX_EPOCH};
/// use herald::signing::{SecretText, Verified, VerifyError, verify};
///
/// // The example of the Standard Webhooks specification. In earnest, `now` is `SystemTime::now()`.
/// let secret = SecretText::new("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD".to_owned())?;
/// let headers = [
///     ("webhook-id", "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk"),
///     ("webhook-timestamp", "1649367553"),
///     ("webhook-signature", "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw="),
/// ];
/// let body = br#"{"email":"test@example.com","username":"test_user"}"#;
/// let sent_at = UNIX_EPOCH + Duration::from_secs(1_649_367_553);
/// let (now, tolerance) = (sent_at + Duration::from_secs(2), Duration::from_secs(300));
///
/// let verified = verify(&secret, headers, body, now, tolerance)?;
/// assert_eq!(verified, Verified::Standard { id: "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk".to_owned(), sent_at });
///
/// // Another body, and the same a day later.
/// let altered = verify(&secret, headers, b"{}", now, tolerance);
/// assert_eq!(altered, Err(VerifyError::Mismatch("webhook-signature")));
/// let replayed = verify(&secret, headers, body, now + Duration::from_secs(86_400), tolerance);
/// assert!(matches!(replayed, Err(VerifyError::TooOld { .. })));
///
/// // Dojo's scheme, which has no time to check.
/// let dojo = SecretText::new("PDYkJQq6sESYHp_zJuTTBQ".to_owned())?;
/// let signature =
///     "sha256=4B-49-F8-FE-25-A7-E6-7D-00-4F-A7-9C-F8-0B-63-00-C7-77-B4-F2-2D-E5-E1-22-84-FA-04-18-50-A1-76-FD";
/// let body = br#"{"id":"evt_hnnHxIKR_Uy6bhZCusCltw","event":"payment_intent.created","accountId":"acc_test","createdAt":"2022-02-01T13:07:41.8667859Z","data":{"paymentIntentId":"pi_vpwd4ooAPEqyNAQe4z89WQ","paymentStatus":"Created","captureMode":"Auto"}}"#;
/// assert_eq!(verify(&dojo, [("dojo-signature", signature)], body, now, tolerance)?, Verified::Dojo);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// Says what is wrong with the first thing that is: a header, then the signature, then the time. So [`VerifyError::TooOld`]
/// and [`VerifyError::TooNew`] are about requests that are genuine otherwise.
pub fn verify<N: AsRef<str>, V: AsRef<[u8]>>(
    secret: &SecretText,
    headers: impl IntoIterator<Item = (N, V)>,
    body: &[u8],
    now: SystemTime,
    tolerance: Duration,
) -> Result<Verified, VerifyError> {
    let found = Found::among(headers);
    match (found.standard.is_empty(), found.dojo.is_empty()) {
        (false, _) => standard(secret, &found, body, now, tolerance),
        (true, false) => dojo(secret, &found, body),
        (true, true) => Err(VerifyError::Unsigned),
    }
}

/// As [`verify`], by `webhook-signature` alone: a request without it is an error.
///
/// ```
/// # use std::time::{Duration, UNIX_EPOCH};
/// use herald::signing::{SecretText, VerifyError, verify_standard};
///
/// let secret = SecretText::new("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD".to_owned())?;
/// let only_dojo = [("dojo-signature", "sha256=94-AC")];
/// let verified = verify_standard(&secret, only_dojo, b"{}", UNIX_EPOCH, Duration::from_secs(300));
/// assert_eq!(verified, Err(VerifyError::Missing("webhook-signature")));
/// # Ok::<(), herald::signing::SecretError>(())
/// ```
///
/// # Errors
///
/// As [`verify`].
pub fn verify_standard<N: AsRef<str>, V: AsRef<[u8]>>(
    secret: &SecretText,
    headers: impl IntoIterator<Item = (N, V)>,
    body: &[u8],
    now: SystemTime,
    tolerance: Duration,
) -> Result<Verified, VerifyError> {
    standard(secret, &Found::among(headers), body, now, tolerance)
}

/// As [`verify`], by `dojo-signature` alone. It signs only the body, so there is no time to check.
///
/// ```
/// use herald::signing::{SecretText, Verified, verify_dojo};
///
/// // The example of docs.dojo.tech.
/// let secret = SecretText::new("PDYkJQq6sESYHp_zJuTTBQ".to_owned())?;
/// let headers = [(
///     "Dojo-Signature",
///     "sha256=4B-49-F8-FE-25-A7-E6-7D-00-4F-A7-9C-F8-0B-63-00-C7-77-B4-F2-2D-E5-E1-22-84-FA-04-18-50-A1-76-FD",
/// )];
/// let body = br#"{"id":"evt_hnnHxIKR_Uy6bhZCusCltw","event":"payment_intent.created","accountId":"acc_test","createdAt":"2022-02-01T13:07:41.8667859Z","data":{"paymentIntentId":"pi_vpwd4ooAPEqyNAQe4z89WQ","paymentStatus":"Created","captureMode":"Auto"}}"#;
/// assert_eq!(verify_dojo(&secret, headers, body), Ok(Verified::Dojo));
/// # Ok::<(), herald::signing::SecretError>(())
/// ```
///
/// # Errors
///
/// As [`verify`].
pub fn verify_dojo<N: AsRef<str>, V: AsRef<[u8]>>(
    secret: &SecretText,
    headers: impl IntoIterator<Item = (N, V)>,
    body: &[u8],
) -> Result<Verified, VerifyError> {
    dojo(secret, &Found::among(headers), body)
}

/// What of the headers counts; each as often as it stands there.
#[derive(Default)]
struct Found {
    id: Vec<Vec<u8>>,
    timestamp: Vec<Vec<u8>>,
    standard: Vec<Vec<u8>>,
    dojo: Vec<Vec<u8>>,
}

impl Found {
    fn among<N: AsRef<str>, V: AsRef<[u8]>>(headers: impl IntoIterator<Item = (N, V)>) -> Self {
        let mut found = Self::default();
        for (name, value) in headers {
            let values = match name.as_ref() {
                name if name.eq_ignore_ascii_case(WEBHOOK_ID) => &mut found.id,
                name if name.eq_ignore_ascii_case(WEBHOOK_TIMESTAMP) => &mut found.timestamp,
                name if name.eq_ignore_ascii_case(WEBHOOK_SIGNATURE) => &mut found.standard,
                name if name.eq_ignore_ascii_case(DOJO_SIGNATURE) => &mut found.dojo,
                _ => continue,
            };
            values.push(value.as_ref().trim_ascii().to_vec());
        }
        found
    }
}

/// The only value of a header.
fn only<'v>(header: &'static str, values: &'v [Vec<u8>]) -> Result<&'v [u8], VerifyError> {
    match values {
        [] => Err(VerifyError::Missing(header)),
        [value] if value.is_empty() => Err(VerifyError::Missing(header)),
        [value] => Ok(value),
        _ => Err(VerifyError::Repeated(header)),
    }
}

fn standard(
    secret: &SecretText,
    found: &Found,
    body: &[u8],
    now: SystemTime,
    tolerance: Duration,
) -> Result<Verified, VerifyError> {
    let signatures = only(WEBHOOK_SIGNATURE, &found.standard)?;
    let id = signed_id(only(WEBHOOK_ID, &found.id)?)?;
    let timestamp = only(WEBHOOK_TIMESTAMP, &found.timestamp)?;
    let sent_at = time_of(timestamp)?;
    // A public key must never be taken for a shared secret: everybody could sign with it.
    #[cfg(feature = "ed25519")]
    if let Some(key) = PublicKey::of(secret) {
        let fits = ed25519::signatures(signatures)
            .fold(false, |fits, signature| fits | key.fits(id.as_bytes(), timestamp, body, &signature));
        return match fits {
            true => check_time(sent_at, now, tolerance).map(|()| Verified::Standard { id: id.to_owned(), sent_at }),
            false if ed25519::signatures(signatures).next().is_none() => Err(VerifyError::Malformed {
                header: WEBHOOK_SIGNATURE,
                form: "v1a, and the base64 of 64 bytes; several separated by a space",
            }),
            false => Err(VerifyError::Mismatch(WEBHOOK_SIGNATURE)),
        };
    }
    let mac = StandardKey::new(secret).fed(id.as_bytes(), timestamp, body);
    // To the last one in any case: how long it takes says nothing about which one fits.
    let fits =
        standard_digests(signatures).fold(false, |fits, digest| fits | mac.clone().verify_slice(&digest).is_ok());
    match fits {
        true => check_time(sent_at, now, tolerance).map(|()| Verified::Standard { id: id.to_owned(), sent_at }),
        false if standard_digests(signatures).next().is_none() => Err(VerifyError::Malformed {
            header: WEBHOOK_SIGNATURE,
            form: "v1, and the base64 of 32 bytes; several separated by a space",
        }),
        false => Err(VerifyError::Mismatch(WEBHOOK_SIGNATURE)),
    }
}

/// Those of the version that a shared secret makes; others, such as `v1a`, are for other keys.
fn standard_digests(signatures: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let entries = signatures.split(|b| *b == b' ');
    let decoded = entries.filter_map(|entry| STANDARD.decode(entry.strip_prefix(b"v1,")?).ok());
    decoded.filter(|digest| digest.len() == 32)
}

/// A full stop ends the id in what is signed: within an id it would let two ids, times and bodies have one signature.
pub(super) fn signed_id(id: &[u8]) -> Result<&str, VerifyError> {
    let malformed = VerifyError::Malformed { header: WEBHOOK_ID, form: "visible ASCII without a full stop" };
    std::str::from_utf8(id).ok().filter(|id| id.bytes().all(|b| b.is_ascii_graphic() && b != b'.')).ok_or(malformed)
}

fn time_of(timestamp: &[u8]) -> Result<SystemTime, VerifyError> {
    let seconds = seconds_of(timestamp);
    let malformed = VerifyError::Malformed { header: WEBHOOK_TIMESTAMP, form: "whole seconds since 1970" };
    seconds.and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds))).ok_or(malformed)
}

/// Digits alone: a sign or a fraction is not what a sender of this scheme writes.
pub(super) fn seconds_of(timestamp: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(timestamp).ok()?;
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

fn check_time(sent_at: SystemTime, now: SystemTime, tolerance: Duration) -> Result<(), VerifyError> {
    match now.duration_since(sent_at) {
        Ok(age) => {
            age.checked_sub(tolerance).filter(|by| !by.is_zero()).map_or(Ok(()), |by| Err(VerifyError::TooOld { by }))
        }
        Err(ahead) => {
            let by = ahead.duration().checked_sub(tolerance).filter(|by| !by.is_zero());
            by.map_or(Ok(()), |by| Err(VerifyError::TooNew { by }))
        }
    }
}

fn dojo(secret: &SecretText, found: &Found, body: &[u8]) -> Result<Verified, VerifyError> {
    // There is none by a key pair.
    if secret.kind() != Kind::Shared {
        return Err(VerifyError::Missing(WEBHOOK_SIGNATURE));
    }
    let signature = only(DOJO_SIGNATURE, &found.dojo)?;
    let form = "sha256= and 32 bytes as upper-case hex, joined by -";
    let digest = dojo_digest(signature).ok_or(VerifyError::Malformed { header: DOJO_SIGNATURE, form })?;
    match DojoKey::new(secret).fed(body).verify_slice(&digest) {
        Ok(()) => Ok(Verified::Dojo),
        Err(_) => Err(VerifyError::Mismatch(DOJO_SIGNATURE)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::facts::signing::{dojo_signature, standard_signature};

    const NOW_S: u64 = 1_700_000_000;
    const TOLERANCE: Duration = Duration::from_secs(300);

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn secret() -> SecretText {
        SecretText::from_random([7; 32])
    }

    fn signed(secret: &SecretText, id: &str, timestamp_s: u64, body: &[u8]) -> Vec<(String, String)> {
        let standard = standard_signature([secret].into_iter(), id, timestamp_s, body);
        let timestamp = timestamp_s.to_string();
        let dojo = dojo_signature(secret, body);
        let headers = [(WEBHOOK_ID, id), (WEBHOOK_TIMESTAMP, &timestamp), (WEBHOOK_SIGNATURE, &standard)];
        headers
            .into_iter()
            .chain([(DOJO_SIGNATURE, dojo.as_str())])
            .map(|(n, v)| (n.to_owned(), v.to_owned()))
            .collect()
    }

    fn check(headers: &[(String, String)], body: &[u8]) -> Result<Verified, VerifyError> {
        let headers = headers.iter().map(|(name, value)| (name, value));
        verify(&secret(), headers, body, at(NOW_S), TOLERANCE)
    }

    fn with(change: impl FnOnce(&mut Vec<(String, String)>)) -> Result<Verified, VerifyError> {
        let mut headers = signed(&secret(), "evt_1", NOW_S, b"{}");
        change(&mut headers);
        check(&headers, b"{}")
    }

    #[test]
    fn each_header_that_is_missing_twice_or_of_another_form_is_named() {
        assert!(with(|_| {}).is_ok());
        assert_eq!(with(|headers| headers.clear()), Err(VerifyError::Unsigned));
        for (at, name) in [(0, WEBHOOK_ID), (1, WEBHOOK_TIMESTAMP)] {
            assert_eq!(with(|headers| drop(headers.remove(at))), Err(VerifyError::Missing(name)));
            assert_eq!(with(|headers| headers[at].1 = " ".to_owned()), Err(VerifyError::Missing(name)));
        }
        for (at, name) in [(0, WEBHOOK_ID), (1, WEBHOOK_TIMESTAMP), (2, WEBHOOK_SIGNATURE)] {
            let twice = with(|headers| headers.push((name.to_uppercase(), headers[at].1.clone())));
            assert_eq!(twice, Err(VerifyError::Repeated(name)));
        }
        for (at, value) in
            [(0, "evt.1"), (0, "é"), (1, "+1700000000"), (1, "1700000000.5"), (1, "99999999999999999999999")]
        {
            let other = with(|headers| headers[at].1 = value.to_owned());
            assert!(matches!(other, Err(VerifyError::Malformed { .. })), "{value}: {other:?}");
        }
    }

    #[test]
    fn the_weaker_scheme_counts_only_where_the_stronger_is_not_there() {
        assert!(matches!(with(|_| {}), Ok(Verified::Standard { .. })));
        assert_eq!(with(|headers| headers.retain(|(name, _)| name == DOJO_SIGNATURE)), Ok(Verified::Dojo));
        let forged = with(|headers| headers[2].1 = "v1,AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".to_owned());
        assert_eq!(forged, Err(VerifyError::Mismatch(WEBHOOK_SIGNATURE)));
    }

    #[test]
    fn any_signature_of_a_list_is_enough_and_other_versions_are_passed_over() {
        let other = "v1,AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        for list in [format!("{other} REAL"), format!("REAL {other}"), "v1a,x v2,y  REAL".to_owned()] {
            assert!(with(|headers| headers[2].1 = list.replace("REAL", &headers[2].1)).is_ok(), "{list}");
        }
        let none = with(|headers| headers[2].1 = headers[2].1.replace("v1,", "v2,"));
        assert!(matches!(none, Err(VerifyError::Malformed { header: WEBHOOK_SIGNATURE, .. })), "{none:?}");
    }

    #[test]
    fn a_key_pair_verifies_its_own_signatures_and_nothing_that_others_can_make() {
        let key = SecretText::key_from_random([9; 32]);
        let public = SecretText::new(key.public_key().unwrap()).unwrap();
        let private = crate::facts::signing::PrivateKey::parse(key.reveal()).unwrap();
        let own = crate::facts::signing::ed25519_signature([&private].into_iter(), "evt_1", NOW_S, b"{}");
        let check = |signature: &str, secret: &SecretText| {
            let timestamp = NOW_S.to_string();
            let headers = [(WEBHOOK_ID, "evt_1"), (WEBHOOK_TIMESTAMP, &timestamp), (WEBHOOK_SIGNATURE, signature)];
            verify(secret, headers, b"{}", at(NOW_S), TOLERANCE)
        };
        for half in [&key, &public] {
            assert!(check(&own, half).is_ok() && check(&format!("v1,x {own}"), half).is_ok());
            // Signed with the public half as if it were a shared secret.
            for forged in [&public, &key] {
                let raw = STANDARD.encode(
                    StandardKey::of_bytes(forged.reveal().as_bytes())
                        .fed(b"evt_1", b"1700000000", b"{}")
                        .finalize()
                        .into_bytes(),
                );
                assert!(check(&format!("v1,{raw}"), half).is_err());
            }
            let dojo = dojo_signature(&public, b"{}");
            let forged = verify(half, [(DOJO_SIGNATURE, dojo.as_str())], b"{}", at(NOW_S), TOLERANCE);
            assert_eq!(forged, Err(VerifyError::Missing(WEBHOOK_SIGNATURE)));
        }
        assert_eq!(check(&own, &SecretText::key_from_random([8; 32])), Err(VerifyError::Mismatch(WEBHOOK_SIGNATURE)));
        assert!(matches!(check(&own, &secret()), Err(VerifyError::Malformed { .. })));
    }

    #[test]
    fn the_tolerance_holds_in_both_directions_to_its_last_moment() {
        let headers = signed(&secret(), "evt_1", NOW_S, b"{}");
        let check = |now| {
            let headers = headers.iter().map(|(name, value)| (name, value));
            verify_standard(&secret(), headers, b"{}", now, TOLERANCE)
        };
        let moment = Duration::from_millis(1);
        assert!(check(at(NOW_S) + TOLERANCE).is_ok() && check(at(NOW_S) - TOLERANCE).is_ok());
        assert_eq!(check(at(NOW_S) + TOLERANCE + moment), Err(VerifyError::TooOld { by: moment }));
        assert_eq!(check(at(NOW_S) - TOLERANCE - moment), Err(VerifyError::TooNew { by: moment }));
    }

    #[test]
    fn dojos_form_is_taken_to_the_letter() {
        let headers = signed(&secret(), "evt_1", NOW_S, b"{}");
        let check = |value: &str| verify_dojo(&secret(), [(DOJO_SIGNATURE, value)], b"{}");
        let right = headers[3].1.as_str();
        assert_eq!(check(right), Ok(Verified::Dojo));
        for wrong in [right.to_lowercase(), right.replace('-', ""), right.replace("sha256=", ""), format!("{right}-00")]
        {
            assert!(matches!(check(&wrong), Err(VerifyError::Malformed { .. })), "{wrong}");
        }
        assert_eq!(
            verify_dojo(&secret(), [(DOJO_SIGNATURE, right)], b"{ }"),
            Err(VerifyError::Mismatch(DOJO_SIGNATURE))
        );
    }

    proptest! {
        /// Whatever is signed verifies, and no single bit may be another one.
        #[test]
        fn what_is_signed_verifies_and_with_one_bit_changed_it_does_not(
            body in proptest::collection::vec(any::<u8>(), 1..300),
            id in "[A-Za-z0-9_-]{1,40}",
            bit in any::<proptest::sample::Index>(),
        ) {
            let headers = signed(&secret(), &id, NOW_S, &body);
            prop_assert_eq!(check(&headers, &body), Ok(Verified::Standard { id, sent_at: at(NOW_S) }));
            let mut altered = body.clone();
            let bit = bit.index(body.len() * 8);
            altered[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(check(&headers, &altered), Err(VerifyError::Mismatch(WEBHOOK_SIGNATURE)));
            let dojo = [(DOJO_SIGNATURE, headers[3].1.as_str())];
            prop_assert_eq!(verify_dojo(&secret(), dojo, &altered), Err(VerifyError::Mismatch(DOJO_SIGNATURE)));
        }

        /// Hostile headers give an error and never a panic.
        #[test]
        fn no_header_is_too_odd(values in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..80), 4)) {
            let names = [WEBHOOK_ID, WEBHOOK_TIMESTAMP, WEBHOOK_SIGNATURE, DOJO_SIGNATURE];
            let headers = names.into_iter().zip(&values);
            let verified = verify(&secret(), headers, b"{}", at(NOW_S), TOLERANCE);
            prop_assert!(verified.is_err());
        }
    }
}
