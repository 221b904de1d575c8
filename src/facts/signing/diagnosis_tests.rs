use proptest::prelude::*;

use super::*;
use crate::facts::signing::{dojo_signature, standard_signature};

const BODY: &str = r#"{"id":"evt_1","event":"payment_intent.created","accountId":"acc_1","createdAt":"2022-02-01T13:07:41.8667859Z","data":{"paymentIntentId":"pi_1","paymentStatus":"Created","captureMode":"Auto"}}"#;
const SENT_S: u64 = 1_700_000_000;
const TOLERANCE_MS: u64 = 300_000;

fn secret() -> SecretText {
    SecretText::from_random([0xF9; 32])
}

/// A callback of Herald's; a test changes something of it.
#[derive(Clone)]
struct Arrived {
    secret: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    now_ms: u64,
}

impl Arrived {
    fn new() -> Self {
        Self::of(&secret())
    }

    fn of(secret: &SecretText) -> Self {
        let standard = standard_signature([secret].into_iter(), "evt_1", SENT_S, BODY.as_bytes());
        let dojo = dojo_signature(secret, BODY.as_bytes());
        let headers = [
            (WEBHOOK_ID, "evt_1".to_owned()),
            (WEBHOOK_TIMESTAMP, SENT_S.to_string()),
            (WEBHOOK_SIGNATURE, standard),
            (DOJO_SIGNATURE, dojo),
        ];
        let headers = headers.map(|(name, value)| (name.to_owned(), value)).to_vec();
        let body = BODY.as_bytes().to_vec();
        Self { secret: secret.reveal().to_owned(), headers, body, now_ms: SENT_S * 1000 }
    }

    fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    fn secret(mut self, secret: impl Into<String>) -> Self {
        self.secret = secret.into();
        self
    }

    fn header(mut self, name: &str, change: impl Fn(&str) -> String) -> Self {
        let found = self.headers.iter_mut().find(|(found, _)| found == name).unwrap();
        found.1 = change(&found.1);
        self
    }

    fn value(&self, name: &str) -> String {
        self.headers.iter().find(|(found, _)| found == name).unwrap().1.clone()
    }

    fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(found, _)| found != name);
        self
    }

    fn diagnosed(&self) -> Diagnosis {
        diagnose(&Evidence {
            secret: &self.secret,
            headers: &self.headers,
            body: &self.body,
            now_ms: self.now_ms,
            tolerance_ms: TOLERANCE_MS,
            search_bytes: 8 << 20,
        })
    }

    #[track_caller]
    fn finds(&self, standard: &[Fault], dojo: &[Fault]) {
        let said =
            |faults: &[Fault]| if faults.is_empty() { Judgement::Valid } else { Judgement::Invalid(faults.to_vec()) };
        assert_eq!(self.diagnosed(), Diagnosis { standard: said(standard), dojo: said(dojo) });
    }
}

#[test]
fn what_is_right_is_valid_and_what_is_not_there_is_absent() {
    Arrived::new().finds(&[], &[]);
    assert!(Arrived::new().diagnosed().is_valid());
    let only_dojo = Arrived::new().without(WEBHOOK_SIGNATURE).diagnosed();
    assert_eq!(
        (&only_dojo.standard, &only_dojo.dojo, only_dojo.is_valid()),
        (&Judgement::Absent, &Judgement::Valid, true)
    );
    let nothing = Arrived::new().without(WEBHOOK_SIGNATURE).without(DOJO_SIGNATURE).diagnosed();
    assert!(!nothing.is_valid());
}

#[test]
fn a_changed_body_is_told_by_its_change() {
    let value: serde_json::Value = serde_json::from_str(BODY).unwrap();
    for (body, change) in [
        (serde_json::to_string_pretty(&value).unwrap(), BodyChange::KeyOrder),
        (BODY.replace(',', ", "), BodyChange::WhiteSpace),
        (BODY.replace("pi_1", "p\\u0069_1"), BodyChange::Escapes),
        (format!("{BODY}\n"), BodyChange::NewlineAdded),
        (format!("{BODY}\r\n"), BodyChange::NewlineAdded),
        (format!("\u{feff}{BODY}"), BodyChange::BomAdded),
    ] {
        Arrived::new().body(body).finds(&[Fault::Body(change)], &[Fault::Body(change)]);
    }
}

#[test]
fn a_time_outside_the_tolerance_is_told_with_by_how_much() {
    let mut arrived = Arrived::new();
    arrived.now_ms += TOLERANCE_MS;
    arrived.finds(&[], &[]);
    arrived.now_ms += 1500;
    arrived.finds(&[Fault::TooOld { by_ms: 1500 }], &[]);
    arrived.now_ms = SENT_S * 1000 - TOLERANCE_MS - 1;
    arrived.finds(&[Fault::TooNew { by_ms: 1 }], &[]);
    // Two faults at once are both told.
    let both = arrived.body(format!("{BODY}\n"));
    let newline = Fault::Body(BodyChange::NewlineAdded);
    both.finds(&[newline.clone(), Fault::TooNew { by_ms: 1 }], &[newline]);
}

#[test]
fn a_secret_that_was_used_in_another_way_is_told_by_how() {
    let text = secret().reveal().to_owned();
    let rest = text.strip_prefix("whsec_").unwrap().to_owned();
    let fault = |change| Fault::Secret(change);
    let missing = [fault(SecretChange::PrefixMissing("whsec_"))];
    Arrived::new().secret(&rest).finds(&missing, &missing);
    let surrounded = [fault(SecretChange::Surrounded)];
    for around in [format!("\"{text}\""), format!(" {text}\t")] {
        Arrived::new().secret(around).finds(&surrounded, &surrounded);
    }
    let url = rest.replace('+', "-").replace('/', "_").replace('=', "");
    assert_ne!(url, rest);
    let base64url = Arrived::new().secret(format!("whsec_{url}")).diagnosed();
    assert_eq!(base64url.standard, Judgement::Invalid(vec![fault(SecretChange::Base64Url)]));

    // Whoever signs by hand, and keys the hash with the wrong bytes.
    let signed_with = |key: &[u8]| {
        let mac = StandardKey::of_bytes(key).fed(b"evt_1", SENT_S.to_string().as_bytes(), BODY.as_bytes());
        let standard = format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()));
        let dojo = hex::encode_upper(DojoKey::of_bytes(key).fed(BODY.as_bytes()).finalize().into_bytes());
        let pairs: Vec<String> = (0..32).map(|at| dojo[2 * at..2 * at + 2].to_owned()).collect();
        let dojo = format!("sha256={}", pairs.join("-"));
        Arrived::new().header(WEBHOOK_SIGNATURE, |_| standard.clone()).header(DOJO_SIGNATURE, |_| dojo.clone())
    };
    signed_with(text.as_bytes()).finds(&[fault(SecretChange::NotDecoded)], &[]);
    let half = [fault(SecretChange::NotDecodedWithoutPrefix)];
    signed_with(rest.as_bytes()).finds(&half, &half);
    signed_with(&[0xF9; 32]).finds(&[], &[fault(SecretChange::Decoded)]);
}

#[test]
fn a_signature_in_another_form_is_told_by_its_form() {
    let (right, dojo) = (Arrived::new().value(WEBHOOK_SIGNATURE), Arrived::new().value(DOJO_SIGNATURE));
    let bytes = STANDARD.decode(&right[3..]).unwrap();
    let url = right[3..].replace('+', "-").replace('/', "_");
    for (text, found) in [
        (format!("v1,{}", hex::encode(&bytes)), Form::LowerHex),
        (hex::encode_upper(&bytes), Form::UpperHex),
        (right[3..].to_owned(), Form::Base64),
        (right.trim_end_matches('=').to_owned(), Form::Base64),
        (format!("v1,{}", right[3..].to_lowercase()), Form::LoweredBase64),
    ] {
        let arrived = Arrived::new().header(WEBHOOK_SIGNATURE, |_| text.clone());
        arrived.finds(&[Fault::Encoding { found, must_be: STANDARD_FORM }], &[]);
    }
    if url != right[3..] {
        let arrived = Arrived::new().header(WEBHOOK_SIGNATURE, |_| format!("v1,{url}"));
        arrived.finds(&[Fault::Encoding { found: Form::Base64Url, must_be: STANDARD_FORM }], &[]);
    }
    let digest = hex::decode(dojo["sha256=".len()..].replace('-', "")).unwrap();
    for (text, found) in [
        (dojo.to_lowercase(), Form::LowerHexWithDashes),
        (dojo.replace('-', ""), Form::UpperHex),
        (hex::encode(&digest), Form::LowerHex),
        (dojo["sha256=".len()..].to_owned(), Form::UpperHexWithDashes),
        (STANDARD.encode(&digest), Form::Base64),
    ] {
        let arrived = Arrived::new().header(DOJO_SIGNATURE, |_| text.clone());
        arrived.finds(&[], &[Fault::Encoding { found, must_be: DOJO_FORM }]);
    }
}

#[test]
fn signatures_that_changed_places_are_told() {
    let (standard, dojo) = (Arrived::new().value(WEBHOOK_SIGNATURE), Arrived::new().value(DOJO_SIGNATURE));
    let swapped =
        Arrived::new().header(WEBHOOK_SIGNATURE, |_| dojo.clone()).header(DOJO_SIGNATURE, |_| standard.clone());
    swapped.finds(&[Fault::OtherScheme(DOJO_SIGNATURE)], &[Fault::OtherScheme(WEBHOOK_SIGNATURE)]);
}

#[test]
fn a_header_that_is_missing_or_twice_is_named() {
    for name in [WEBHOOK_ID, WEBHOOK_TIMESTAMP] {
        Arrived::new().without(name).finds(&[Fault::HeaderMissing(name)], &[]);
    }
    let mut twice = Arrived::new();
    twice.headers.push(("Dojo-Signature".to_owned(), "x".to_owned()));
    twice.finds(&[], &[Fault::HeaderRepeated(DOJO_SIGNATURE)]);
    let signature = standard_signature([&secret()].into_iter(), "evt.1", SENT_S, BODY.as_bytes());
    let stop =
        Arrived::new().header(WEBHOOK_ID, |_| "evt.1".to_owned()).header(WEBHOOK_SIGNATURE, |_| signature.clone());
    stop.finds(&[Fault::IdForm], &[]);
    let odd = Arrived::new().header(WEBHOOK_SIGNATURE, |_| "nothing".to_owned());
    odd.finds(&[Fault::NoSignature { must_be: STANDARD_FORM }], &[]);
}

#[test]
fn an_id_and_a_time_that_were_changed_are_found_again() {
    let id = Arrived::new().header(WEBHOOK_ID, |_| "evt_2".to_owned());
    id.finds(&[Fault::IdChanged { signed: "evt_1".to_owned() }], &[]);
    for changed in [SENT_S + 3600, SENT_S - 7, SENT_S * 1000 + 999] {
        let time = Arrived::new().header(WEBHOOK_TIMESTAMP, |_| changed.to_string());
        time.finds(&[Fault::TimestampChanged { signed_s: SENT_S }], &[]);
    }
    // Too far to be looked for: but the other signature shows that only the headers can be wrong.
    let far = Arrived::new().header(WEBHOOK_TIMESTAMP, |_| "5".to_owned());
    far.finds(&[Fault::Unexplained(Known::SecretAndBodyAreRight)], &[]);
}

#[test]
fn a_wrong_secret_is_told_as_likely_only_where_the_body_looks_sent() {
    let other = SecretText::from_random([2; 32]).reveal().to_owned();
    let likely = [Fault::Unexplained(Known::BodyLooksSent)];
    Arrived::new().secret(&other).finds(&likely, &likely);
    let unclear = [Fault::Unexplained(Known::Nothing)];
    Arrived::new().secret(&other).body("{ }").finds(&unclear, &unclear);
}

#[test]
fn a_plain_secret_of_dojo_signs_both_ways() {
    let plain = SecretText::new("ws_OYsyzcrH70GpJfs8MMkKpg".to_owned()).unwrap();
    Arrived::of(&plain).finds(&[], &[]);
    let missing = [Fault::Secret(SecretChange::PrefixMissing("ws_"))];
    Arrived::of(&plain).secret("OYsyzcrH70GpJfs8MMkKpg").finds(&missing, &missing);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// What is sent is valid, whatever is in it; and the diagnosis never takes for valid what `verify` refuses.
    #[test]
    fn the_diagnosis_and_the_verifier_agree(
        body in proptest::collection::vec(any::<u8>(), 0..200),
        id in "[A-Za-z0-9_.-]{1,20}",
        late_s in 0_u64..700,
        at in proptest::option::of(any::<proptest::sample::Index>()),
    ) {
        let signature = standard_signature([&secret()].into_iter(), &id, SENT_S, &body);
        let headers = [(WEBHOOK_ID, id), (WEBHOOK_TIMESTAMP, SENT_S.to_string()), (WEBHOOK_SIGNATURE, signature)];
        let headers = headers.map(|(name, value)| (name.to_owned(), value)).to_vec();
        let mut arrived = Arrived { headers, body, ..Arrived::new() };
        arrived.now_ms += late_s * 1000;
        if let Some(at) = at.filter(|_| !arrived.body.is_empty()) {
            let at = at.index(arrived.body.len());
            arrived.body[at] ^= 1;
        }
        let now = std::time::UNIX_EPOCH + std::time::Duration::from_millis(arrived.now_ms);
        let tolerance = std::time::Duration::from_millis(TOLERANCE_MS);
        let headers = arrived.headers.iter().map(|(name, value)| (name, value));
        let verified = crate::facts::signing::verify(&secret(), headers, &arrived.body, now, tolerance);
        prop_assert_eq!(verified.is_ok(), arrived.diagnosed().standard == Judgement::Valid, "{:?}", verified);
    }

    /// Whatever a stranger sends, nothing of it is valid and nothing panics.
    #[test]
    fn strange_callbacks_are_never_valid(
        body in proptest::collection::vec(any::<u8>(), 0..200),
        values in proptest::collection::vec("\\PC{0,100}", 4),
        secret in "\\PC{0,60}",
    ) {
        let names = [WEBHOOK_ID, WEBHOOK_TIMESTAMP, WEBHOOK_SIGNATURE, DOJO_SIGNATURE];
        let headers = names.into_iter().zip(values).map(|(name, value)| (name.to_owned(), value)).collect();
        let arrived = Arrived { secret, headers, body, now_ms: SENT_S * 1000 };
        prop_assert!(!arrived.diagnosed().is_valid());
    }
}
