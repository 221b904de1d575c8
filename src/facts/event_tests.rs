use super::*;

const GOOD: &str = r#"{"id":"evt_hnnHxIKR_Uy6bhZCusCltw","event":"payment_intent.status_updated","accountId":"acc_test","createdAt":"2022-02-01T13:07:41.8667859Z","data":{"paymentIntentId":"pi_vpwd4ooAPEqyNAQe4z89WQ","paymentStatus":"Captured","captureMode":"Auto"}}"#;

fn parse(text: &str) -> Result<Event, EventError> {
    Event::parse(Bytes::copy_from_slice(text.as_bytes()))
}

fn refused(text: &str) -> String {
    parse(text).expect_err("it was taken").to_string()
}

#[test]
fn the_published_payload_is_an_event() {
    let event = parse(GOOD).unwrap();
    assert_eq!(event.id.as_str(), "evt_hnnHxIKR_Uy6bhZCusCltw");
    assert_eq!((event.status, event.capture_mode), (Some(PaymentStatus::Captured), Some(CaptureMode::Auto)));
    assert_eq!(event.novelties, []);
    assert_eq!(event.body(), GOOD.as_bytes());
}

#[test]
fn unknown_keys_white_space_and_capitalised_keys_are_kept() {
    let odd = GOOD.replace("\"id\"", " \"Id\"").replace("\"data\"", "\"extra\":[1,{}],\"Data\"");
    assert_eq!(parse(&odd).unwrap().body(), odd.as_bytes());
}

#[test]
fn every_published_status_and_type_is_taken() {
    for status in PaymentStatus::ALL {
        let event = parse(&GOOD.replace("Captured", &status.to_string())).unwrap();
        assert_eq!((event.status, event.novelties), (Some(status), vec![]));
    }
    for event_type in ["payment_intent.created", "payment_intent.send-receipt"] {
        let event = parse(&GOOD.replace("payment_intent.status_updated", event_type)).unwrap();
        assert!(event.require_familiar().is_ok());
    }
}

#[test]
fn a_refusal_names_each_thing_that_is_wrong() {
    let error = refused(&GOOD.replace("\"Captured\"", "7").replace("\"acc_test\"", "7"));
    assert!(error.contains("paymentStatus: is a number, not a string"), "{error}");
    assert!(error.contains("accountId: is a number, not a string"), "{error}");
    assert!(refused("nonsense").starts_with("the event is not JSON"));
    assert!(refused("[]").contains("an array"));
    assert!(refused(&GOOD.replace("evt_hnn", "evt.hnn")).contains("id: the event id"));
    assert!(refused(&GOOD.replace("2022-02-01T", "yesterday ")).contains("createdAt"));
    assert!(refused(&GOOD.replace("payment_intent.status_updated", "order created")).contains("event type"));
    assert!(refused(&GOOD.replace("\"Auto\"", "{}")).contains("captureMode: is an object"));
    assert!(refused("{}").contains("data: is missing"));
}

#[test]
fn what_is_new_passes_and_is_named() {
    let new = |text: &str| {
        let event = parse(text).unwrap();
        assert_eq!(event.body(), text.as_bytes());
        let refused = event.require_familiar().map_err(|error| error.to_string());
        (event.novelties.iter().map(|new| (new.kind, new.text.clone())).collect::<Vec<_>>(), refused)
    };
    let (found, refused) = new(&GOOD.replace("Captured", "PartiallyCaptured"));
    assert_eq!(found, [(NoveltyKind::PaymentStatus, "PartiallyCaptured".to_owned())]);
    assert!(refused.unwrap_err().contains("paymentStatus: \"PartiallyCaptured\" is not known"));
    for event_type in ["refund.created", "payment_intent.Created", "payment_intent", "v2.payment-intent.x"] {
        let (found, refused) = new(&GOOD.replace("payment_intent.status_updated", event_type));
        assert_eq!(found, [(NoveltyKind::EventType, event_type.to_owned())]);
        assert!(refused.is_err());
    }
    for missing in ["", ",\"captureMode\":null"] {
        let (found, _) = new(&GOOD.replace(",\"captureMode\":\"Auto\"", missing));
        assert_eq!(found, [(NoveltyKind::CaptureMode, String::new())]);
    }
    let (found, _) = new(&GOOD.replace("Auto", "Later").replace("Captured", &"ä".repeat(200)));
    assert_eq!(found[0].1, "ä".repeat(80), "what is quoted of a stranger's text is bounded");
    assert_eq!(found[1], (NoveltyKind::CaptureMode, "Later".to_owned()));
}

#[test]
fn an_event_type_is_safe_wherever_it_is_written() {
    let long = "a".repeat(MAX_TYPE_BYTES + 1);
    for bad in ["", "-x", ".x", "a b", "a,b", "a*", "a\r\nb", "é", "a:b", "a/b", &long] {
        assert!(bad.parse::<EventType>().is_err(), "{bad:?} was taken");
    }
}

#[test]
fn the_intent_is_found_also_in_what_is_no_event() {
    let found = |text: &str| intent_in(text.as_bytes()).map(|intent| intent.to_string());
    assert_eq!(found(r#"{"Data":{"PaymentIntentId":"pi_1"}}"#), Some("pi_1".to_owned()));
    for nothing in ["", "nonsense", "{}", r#"{"data":7}"#, r#"{"data":{"paymentIntentId":"a b"}}"#] {
        assert_eq!(found(nothing), None);
    }
}

#[test]
fn a_key_that_stands_twice_is_refused() {
    let twice = GOOD.replace("\"accountId\"", "\"id\":\"evt_other\",\"accountId\"");
    assert!(refused(&twice).contains("duplicate field"), "{}", refused(&twice));
}

#[test]
fn size_and_encoding_have_their_own_errors() {
    let large = GOOD.replace("acc_test", &"a".repeat(MAX_EVENT_BYTES));
    assert!(matches!(parse(&large), Err(EventError::TooLarge { .. })));
    assert_eq!(Event::parse(Bytes::from_static(b"{\"\xff\"")).unwrap_err(), EventError::NotUtf8 { at: 2 });
}

#[test]
fn deep_nesting_is_an_error_and_not_a_crash() {
    let deep = "[".repeat(60_000);
    assert!(matches!(parse(&deep), Err(EventError::NotJson(_))));
}

#[test]
fn a_glance_takes_what_is_there_and_needs_nothing() {
    let seen = glance(br#"{"Id":"evt_1","event":7,"data":{"PaymentIntentId":"pi 1","paymentStatus":"New"}}"#);
    assert_eq!((seen.id.as_deref(), seen.event_type), (Some("evt_1"), None));
    assert_eq!((seen.intent.as_deref(), seen.status.as_deref()), (Some("pi 1"), Some("New")));
    for nothing in [&b"\xff"[..], b"", b"[]", b"\"id\"", b"{}"] {
        assert_eq!(glance(nothing), Glance::default());
    }
}
