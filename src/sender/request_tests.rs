use bytes::Bytes;

use super::*;
use crate::facts::{event::Event, signing::SecretText};

const BODY: &str = r#"{"id":"evt_1","event":"payment_intent.created","accountId":"acc_1","createdAt":"2022-02-01T13:07:41.8667859Z","data":{"paymentIntentId":"pi_1","paymentStatus":"Created","captureMode":"Auto"}}"#;
const NOW_MS: u64 = 1_700_000_000_999;

fn delivery() -> Delivery {
    let event = Event::parse(Bytes::from_static(BODY.as_bytes())).unwrap();
    let mut delivery =
        Delivery::new("1700000000000-7".parse().unwrap(), EndpointId::new("ep_1").unwrap(), &event, true, 0);
    delivery.envelope.traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().ok();
    delivery
}

fn secret(byte: u8, expires_at_ms: Option<u64>) -> Secret {
    Secret { value: SecretText::from_random([byte; 32]), created_at_ms: u64::from(byte), expires_at_ms }
}

fn endpoint(secrets: Vec<Secret>) -> Endpoint {
    let (id, account) = ("ep_1".parse().unwrap(), "acc_1".parse().unwrap());
    let made = SecretText::from_random([1; 32]);
    let headers = vec![("Authorization".to_owned(), "Bearer geheim".to_owned())];
    Endpoint { secrets, headers, ..Endpoint::new(id, account, "https://merchant.example/hook".to_owned(), made, 0) }
}

fn guard() -> AddressGuard {
    AddressGuard::new(false, &[])
}

fn headers_of(endpoint: &Endpoint) -> Result<HeaderMap, RequestError> {
    Prepared::try_new(endpoint, &guard())?.headers(&delivery(), endpoint, NOW_MS)
}

#[test]
fn a_request_has_the_headers_that_the_design_lists() {
    let headers = headers_of(&endpoint(vec![secret(1, None)])).unwrap();
    for (name, value) in [
        ("content-type", "application/json"),
        ("user-agent", USER_AGENT),
        ("webhook-id", "evt_1"),
        ("webhook-timestamp", "1700000000"),
        ("herald-attempt", "1"),
        ("herald-sequence", "s00000001700000000000-00000000000000000007"),
        ("authorization", "Bearer geheim"),
    ] {
        assert_eq!(headers[name], value, "{name}");
    }
    assert!(!headers.contains_key("traceparent"), "the endpoint did not ask for it");
    assert_eq!(headers.len(), 10);
}

#[test]
fn traceparent_is_sent_where_it_is_asked_for() {
    let mut endpoint = endpoint(vec![secret(1, None)]);
    endpoint.traceparent = true;
    assert!(headers_of(&endpoint).unwrap().contains_key("traceparent"));
}

#[test]
fn every_live_secret_signs_the_standard_way_and_the_newest_alone_signs_dojos() {
    let [expired, old, new] = [secret(1, Some(NOW_MS)), secret(2, Some(NOW_MS + 1)), secret(3, None)];
    let headers = headers_of(&endpoint(vec![expired, old.clone(), new.clone()])).unwrap();
    let expected = crate::facts::signing::standard_signature(
        [&old.value, &new.value].into_iter(),
        "evt_1",
        NOW_MS / 1000,
        BODY.as_bytes(),
    );
    assert_eq!(headers["webhook-signature"], expected);
    assert_eq!(headers["dojo-signature"], crate::facts::signing::dojo_signature(&new.value, BODY.as_bytes()));
}

#[test]
fn nothing_is_sent_unsigned() {
    assert_eq!(headers_of(&endpoint(vec![])).unwrap_err(), RequestError::NoLiveSecret);
    assert_eq!(headers_of(&endpoint(vec![secret(1, Some(NOW_MS))])).unwrap_err(), RequestError::NoLiveSecret);
    let mut unsigned = endpoint(vec![secret(1, None)]);
    unsigned.schemes.clear();
    assert_eq!(headers_of(&unsigned).unwrap_err(), RequestError::NoScheme);
}

#[test]
fn what_is_shown_of_a_request_hides_signatures_and_credentials() {
    let endpoint = endpoint(vec![secret(1, None)]);
    let prepared = Prepared::try_new(&endpoint, &guard()).unwrap();
    let shown = prepared.headers_to_show(&delivery(), &endpoint, NOW_MS);
    let sent = prepared.headers(&delivery(), &endpoint, NOW_MS).unwrap();
    assert_eq!(shown.len(), sent.len());
    for (name, value) in &shown {
        let is_hidden = ["webhook-signature", "dojo-signature", "authorization"].contains(&name.as_str());
        assert_eq!(value == HIDDEN, is_hidden, "{name}");
        assert_eq!(*value == sent[name.as_str()], !is_hidden, "{name}");
    }
    assert!(!format!("{sent:?}").contains("geheim"));
}

#[test]
fn a_changed_endpoint_is_prepared_anew_even_under_the_same_revision() {
    let kept = PreparedEndpoints::default();
    let mut endpoint = endpoint(vec![secret(1, None)]);
    let first = kept.get(&endpoint, &guard()).unwrap();
    assert!(Arc::ptr_eq(&first, &kept.get(&endpoint, &guard()).unwrap()));
    endpoint.url = "https://127.0.0.1/".to_owned();
    assert!(kept.get(&endpoint, &guard()).is_err());
    endpoint.url = "https://other.example/".to_owned();
    assert_eq!(kept.get(&endpoint, &guard()).unwrap().uri.host(), Some("other.example"));
    endpoint.secrets = vec![secret(2, None)];
    assert_eq!(kept.get(&endpoint, &guard()).unwrap().keys[0].secret, endpoint.secrets[0]);
}

#[test]
fn the_endpoints_that_are_kept_ready_are_bounded() {
    let kept = PreparedEndpoints::default();
    let mut endpoint = endpoint(vec![]);
    for n in 0..MAX_PREPARED + 10 {
        endpoint.id = EndpointId::new(&format!("ep_{n}")).unwrap();
        kept.get(&endpoint, &guard()).unwrap();
    }
    assert_eq!(kept.lock().len(), MAX_PREPARED);
}
