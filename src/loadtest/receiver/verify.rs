//! Verifies both signatures as a merchant would, over the exact bytes that arrived, from the published descriptions alone
//! (standardwebhooks.com, docs.dojo.tech). Shares no code with what signs: another HMAC, and a parser of its own.

use aws_lc_rs::hmac;

/// How many seconds a timestamp may be ahead of this machine's clock, which both sides read.
const MAX_AHEAD_MS: i64 = 2_000;

/// Standard Webhooks' libraries refuse older ones. Whether a timestamp is fresh for its attempt is checked elsewhere.
const MAX_AGE_MS: i64 = 300_000;

/// An endpoint's secret made ready, both ways. Has no `Debug`.
pub struct Keys {
    /// None if the secret does not have the form that this scheme asks for: then nothing verifies.
    standard: Option<hmac::Key>,
    dojo: hmac::Key,
}

/// The headers that signatures are about; absent ones are empty.
#[derive(Debug, Clone, Copy, Default)]
pub struct Signed<'a> {
    pub id: &'a [u8],
    pub timestamp: &'a [u8],
    pub standard: &'a [u8],
    pub dojo: &'a [u8],
}

impl Keys {
    /// From the secret as it is shown to a merchant.
    pub fn new(secret: &str) -> Self {
        let key = |bytes: &[u8]| hmac::Key::new(hmac::HMAC_SHA256, bytes);
        let standard = secret.strip_prefix("whsec_").and_then(|text| from_base64(text.as_bytes()));
        Self { standard: standard.map(|bytes| key(&bytes)), dojo: key(secret.as_bytes()) }
    }

    /// Why it does not verify, if it does not.
    pub fn check(&self, signed: &Signed<'_>, body: &[u8]) -> Result<(), &'static str> {
        self.check_standard(signed, body)?;
        self.check_dojo(signed, body)
    }

    /// `v1,` + base64 of HMAC-SHA256 over `id.timestamp.body`; one of those that are separated by spaces must be right.
    fn check_standard(&self, signed: &Signed<'_>, body: &[u8]) -> Result<(), &'static str> {
        if signed.standard.is_empty() {
            return Err("webhook-signature is missing");
        }
        let key = self.standard.as_ref().ok_or("the endpoint's secret is none of Standard Webhooks")?;
        let mut context = hmac::Context::with_key(key);
        for part in [signed.id, b".", signed.timestamp, b".", body] {
            context.update(part);
        }
        let tag = context.sign();
        let mut offers = signed.standard.split(|byte| *byte == b' ').filter_map(|offer| offer.strip_prefix(b"v1,"));
        match offers.any(|offer| from_base64(offer).is_some_and(|offer| offer == tag.as_ref())) {
            true => Ok(()),
            false => Err("webhook-signature does not verify"),
        }
    }

    /// `sha256=` + upper-case hex bytes joined by `-`, over the body alone.
    fn check_dojo(&self, signed: &Signed<'_>, body: &[u8]) -> Result<(), &'static str> {
        if signed.dojo.is_empty() {
            return Err("dojo-signature is missing");
        }
        let offer = signed.dojo.strip_prefix(b"sha256=").and_then(from_joined_hex);
        let offer = offer.ok_or("dojo-signature is not sha256= and upper-case hex joined by -")?;
        hmac::verify(&self.dojo, body, &offer).map_err(|_| "dojo-signature does not verify")
    }
}

/// Why `webhook-timestamp` is not sane at this time (milliseconds since 1970), or its value in milliseconds.
pub fn timestamp_ms(text: &[u8], now_ms: u64) -> Result<i64, &'static str> {
    let seconds = number(text).ok_or("webhook-timestamp is missing or no number")?;
    let at_ms = i64::try_from(seconds).ok().and_then(|seconds| seconds.checked_mul(1000));
    let at_ms = at_ms.ok_or("webhook-timestamp is no time")?;
    match now_ms as i64 - at_ms {
        age if age < -MAX_AHEAD_MS => Err("webhook-timestamp is ahead of the clock"),
        age if age > MAX_AGE_MS => Err("webhook-timestamp is older than 5 minutes"),
        _ => Ok(at_ms),
    }
}

/// Decimal digits only.
pub fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 19 || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(text.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')))
}

/// `herald-sequence`, read as `docs/merchants.md` describes it, in one number that grows like it: the books have an entry for
/// each event. The harness writes its events with `*`, so Redis' milliseconds fit 41 bits until 2039, and no millisecond
/// has 8 million of them.
pub fn sequence(text: &[u8]) -> Option<u64> {
    const COUNT_BITS: u32 = 23;
    let (ms, rest) = text.strip_prefix(b"s").filter(|rest| rest.len() == 41)?.split_at(20);
    let (ms, count) = (half(ms)?, half(rest.strip_prefix(b"-")?)?);
    Some(ms.min((1 << 41) - 1) << COUNT_BITS | count.min((1 << COUNT_BITS) - 1))
}

/// 20 digits, up to the greatest of 64 bits.
fn half(text: &[u8]) -> Option<u64> {
    text.iter().try_fold(0u64, |sum, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    })
}

/// The id that this harness' own events begin with: `{"id":"…"`. Whether the rest is as it was sent, a hash tells.
pub fn id_in(body: &[u8]) -> Option<&[u8]> {
    let rest = body.strip_prefix(br#"{"id":""#)?;
    rest.split(|byte| *byte == b'"').next()
}

fn from_joined_hex(text: &[u8]) -> Option<[u8; 32]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    };
    // 32 pairs with 31 hyphens between them.
    if text.len() != 95 {
        return None;
    }
    let mut bytes = [0; 32];
    for (at, byte) in bytes.iter_mut().enumerate() {
        let pair = &text[at * 3..];
        if at > 0 && text[at * 3 - 1] != b'-' {
            return None;
        }
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// RFC 4648, section 4, with its padding.
fn from_base64(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    if text.is_empty() || !text.len().is_multiple_of(4) {
        return None;
    }
    let padding = text.iter().rev().take_while(|byte| **byte == b'=').count();
    if padding > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    for four in text[..text.len() - padding].chunks(4) {
        let mut sum = 0u32;
        for at in 0..4 {
            sum = sum << 6 | u32::from(four.get(at).map_or(Some(0), |byte| digit(*byte))?);
        }
        let [_, three @ ..] = sum.to_be_bytes();
        bytes.extend_from_slice(&three[..four.len() - 1]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Published vectors: docs.dojo.tech, webhooks; the Standard Webhooks 1.0.0 specification.
    const DOJO_BODY: &[u8] = br#"{"id":"evt_hnnHxIKR_Uy6bhZCusCltw","event":"payment_intent.created","accountId":"acc_test","createdAt":"2022-02-01T13:07:41.8667859Z","data":{"paymentIntentId":"pi_vpwd4ooAPEqyNAQe4z89WQ","paymentStatus":"Created","captureMode":"Auto"}}"#;
    const DOJO: [(&str, &str); 2] = [
        (
            "ws_OYsyzcrH70GpJfs8MMkKpg",
            "sha256=94-AC-93-67-D6-8B-69-6D-15-A2-C2-45-40-98-B5-E7-64-72-38-C5-1F-6D-32-D0-5F-CB-91-20-A9-20-64-F4",
        ),
        (
            "PDYkJQq6sESYHp_zJuTTBQ",
            "sha256=4B-49-F8-FE-25-A7-E6-7D-00-4F-A7-9C-F8-0B-63-00-C7-77-B4-F2-2D-E5-E1-22-84-FA-04-18-50-A1-76-FD",
        ),
    ];
    const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
    const ID: &[u8] = b"msg_27UH4WbU6Z5A5EzD8u03UvzRbpk";
    const BODY: &[u8] = br#"{"email":"test@example.com","username":"test_user"}"#;
    const STANDARD: &[u8] = b"v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=";

    fn standard<'a>(signature: &'a [u8]) -> Signed<'a> {
        Signed { id: ID, timestamp: b"1649367553", standard: signature, dojo: b"" }
    }

    #[test]
    fn the_published_vectors_verify() {
        for (secret, header) in DOJO {
            let signed = Signed { dojo: header.as_bytes(), ..Signed::default() };
            assert_eq!(Keys::new(secret).check_dojo(&signed, DOJO_BODY), Ok(()));
        }
        assert_eq!(Keys::new(SECRET).check_standard(&standard(STANDARD), BODY), Ok(()));
        let several = [b"v1,AAAA ", STANDARD, b" v2,x"].concat();
        assert_eq!(Keys::new(SECRET).check_standard(&standard(&several), BODY), Ok(()));
    }

    #[test]
    fn one_other_bit_anywhere_does_not_verify() {
        let (secret, header) = DOJO[0];
        for at in 0..DOJO_BODY.len() {
            let mut body = DOJO_BODY.to_vec();
            body[at] ^= 1;
            let signed = Signed { dojo: header.as_bytes(), ..Signed::default() };
            assert!(Keys::new(secret).check_dojo(&signed, &body).is_err());
        }
        for (id, timestamp) in [(&b"msg_x"[..], &b"1649367553"[..]), (ID, b"1649367554"), (ID, b"")] {
            let signed = Signed { id, timestamp, standard: STANDARD, dojo: b"" };
            assert!(Keys::new(SECRET).check_standard(&signed, BODY).is_err());
        }
        assert!(Keys::new("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oE").check_standard(&standard(STANDARD), BODY).is_err());
    }

    #[test]
    fn a_signature_in_another_form_is_refused_even_if_its_digits_are_right() {
        let (secret, header) = DOJO[0];
        for other in [header.to_lowercase(), header.replace('-', ""), header.replace("sha256=", ""), String::new()] {
            let signed = Signed { dojo: other.as_bytes(), ..Signed::default() };
            assert!(Keys::new(secret).check_dojo(&signed, DOJO_BODY).is_err(), "{other}");
        }
        for other in [&STANDARD[3..], b"v1,", b"v2,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=", b""] {
            assert!(Keys::new(SECRET).check_standard(&standard(other), BODY).is_err());
        }
    }

    #[test]
    fn both_signatures_must_be_there() {
        let keys = Keys::new(SECRET);
        assert_eq!(keys.check(&standard(STANDARD), BODY), Err("dojo-signature is missing"));
    }

    #[test]
    fn base64_is_read_as_the_standard_says() {
        for (text, bytes) in [("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYg==", "foob")] {
            assert_eq!(from_base64(text.as_bytes()).as_deref(), Some(bytes.as_bytes()));
        }
        for bad in ["", "Zg", "Zg=", "Z===", "====", "Zm9v!m9v", "Z=9v"] {
            assert_eq!(from_base64(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn a_timestamp_is_whole_seconds_near_now() {
        let now_ms = 1_700_000_000_500;
        assert_eq!(timestamp_ms(b"1700000000", now_ms), Ok(1_700_000_000_000));
        for bad in ["", "now", "-1", "1700000000.5", "1700000003", "1699999699", "9999999999999999999"] {
            assert!(timestamp_ms(bad.as_bytes(), now_ms).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_sequence_is_read_as_a_number_that_grows_like_it() {
        let found = |text: &str| sequence(text.as_bytes());
        let rising = [
            "s00000001700000000000-00000000000000000000",
            "s00000001700000000000-00000000000000000009",
            "s00000001700000000000-00000000000000000010",
            "s00000001700000000000-00000000000001000000",
            "s00000001700000000001-00000000000000000000",
            "s18446744073709551615-18446744073709551615",
        ];
        assert!(rising.map(found).is_sorted_by(|a, b| a.is_some() && a < b));
        for bad in [
            "",
            "7",
            "1700000000000-7",
            "s0000000170000000000-000000000000000000007",
            "s18446744073709551616-00000000000000000007",
        ] {
            assert_eq!(found(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn the_id_is_found_in_an_event() {
        assert_eq!(id_in(DOJO_BODY), Some(&b"evt_hnnHxIKR_Uy6bhZCusCltw"[..]));
        assert_eq!(id_in(br#"{"event":"x"}"#), None);
    }
}
