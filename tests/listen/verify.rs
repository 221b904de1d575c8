//! `herald verify` on the published examples, each spoilt in one of the ways that happen.

use std::{
    fs,
    io::{Seek, Write},
    process::{Command, Stdio},
};

use serde_json::Value;

/// The Standard Webhooks 1.0.0 specification.
const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
const BODY: &str = r#"{"email":"test@example.com","username":"test_user"}"#;
const ID: &str = "webhook-id: msg_27UH4WbU6Z5A5EzD8u03UvzRbpk";
const TIMESTAMP: &str = "webhook-timestamp: 1649367553";
const SIGNATURE: &str = "webhook-signature: v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=";

/// docs.dojo.tech, webhooks.
const DOJO_BODY: &str = r#"{"id":"evt_hnnHxIKR_Uy6bhZCusCltw","event":"payment_intent.created","accountId":"acc_test","createdAt":"2022-02-01T13:07:41.8667859Z","data":{"paymentIntentId":"pi_vpwd4ooAPEqyNAQe4z89WQ","paymentStatus":"Created","captureMode":"Auto"}}"#;
const DOJO: [(&str, &str); 2] = [
    (
        "ws_OYsyzcrH70GpJfs8MMkKpg",
        "dojo-signature: sha256=94-AC-93-67-D6-8B-69-6D-15-A2-C2-45-40-98-B5-E7-64-72-38-C5-1F-6D-32-D0-5F-CB-91-20-A9-20-64-F4",
    ),
    (
        "PDYkJQq6sESYHp_zJuTTBQ",
        "dojo-signature: sha256=4B-49-F8-FE-25-A7-E6-7D-00-4F-A7-9C-F8-0B-63-00-C7-77-B4-F2-2D-E5-E1-22-84-FA-04-18-50-A1-76-FD",
    ),
];

/// The examples are years old.
const ANY_TIME: [&str; 2] = ["--tolerance", "36500d"];

struct Done {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Done {
    #[track_caller]
    fn valid(&self) {
        assert_eq!(self.code, 0, "{}{}", self.stdout, self.stderr);
    }

    /// Not valid, for these faults of this scheme.
    #[track_caller]
    fn finds(&self, scheme: &str, faults: &[&str]) {
        assert_eq!(self.code, 4, "{}{}", self.stdout, self.stderr);
        let found: Value = serde_json::from_str(&self.stdout).unwrap();
        let names = found[scheme]["faults"].as_array().unwrap().iter().map(|fault| fault["fault"].as_str().unwrap());
        assert_eq!((names.collect::<Vec<_>>(), &found["valid"]), (faults.to_vec(), &false.into()), "{}", self.stdout);
        assert!(self.stderr.starts_with("error: not valid: "), "{}", self.stderr);
    }
}

/// The body on stdin.
fn verify(args: &[&str], body: impl AsRef<[u8]>) -> Done {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(body.as_ref()).unwrap();
    file.rewind().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_herald"))
        .arg("verify")
        .args(if args.contains(&"-o") { &[][..] } else { &["-o", "json"] })
        .args(args)
        .env_clear()
        .stdin(Stdio::from(file))
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Done { code: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn with(secret: &str, headers: &[&str], body: impl AsRef<[u8]>) -> Done {
    let mut args = vec!["--secret", secret];
    args.extend(ANY_TIME);
    headers.iter().for_each(|header| args.extend(["--header", header]));
    verify(&args, body)
}

fn standard(body: impl AsRef<[u8]>) -> Done {
    with(SECRET, &[ID, TIMESTAMP, SIGNATURE], body)
}

#[test]
fn the_published_examples_are_valid() {
    standard(BODY).valid();
    for (secret, header) in DOJO {
        with(secret, &[header], DOJO_BODY).valid();
    }
    let capitals = SIGNATURE.replace("webhook-signature", "Webhook-Signature");
    with(SECRET, &[&ID.replace("webhook-id", "WEBHOOK-ID"), TIMESTAMP, &capitals], BODY).valid();
}

#[test]
fn a_body_that_is_not_as_it_came_is_told_by_what_happened_to_it() {
    for (body, fault) in [
        (BODY.replace(',', ", "), "body_white_space"),
        (BODY.replace('{', "{\n  ").replace('}', "\n}"), "body_white_space"),
        (r#"{"username":"test_user", "email":"test@example.com"}"#.to_owned(), "wrong_secret_or_body"),
        (BODY.replace('@', "\\u0040"), "body_escapes"),
        (format!("{BODY}\n"), "body_newline_added"),
        (format!("{BODY}\r\n"), "body_newline_added"),
        (format!("\u{feff}{BODY}"), "body_bom"),
    ] {
        standard(&body).finds("standard", &[fault]);
    }
    // Of an event the order of the keys is known.
    let value: Value = serde_json::from_str(DOJO_BODY).unwrap();
    let sorted = serde_json::to_string(&value).unwrap();
    assert_ne!(sorted, DOJO_BODY);
    let done = with(DOJO[0].0, &[DOJO[0].1], sorted);
    done.finds("dojo", &["body_key_order"]);
    assert!(done.stdout.contains("verify the raw bytes"), "{}", done.stdout);
}

#[test]
fn an_old_request_is_told_by_how_much_and_two_faults_are_both_told() {
    let headers = ["--header", ID, "--header", TIMESTAMP, "--header", SIGNATURE, "--secret", SECRET];
    let old = verify(&headers, BODY);
    old.finds("standard", &["too_old"]);
    let earliest_s = herald::clock::wall_ms() / 1000 - 300;
    let by = (earliest_s - 1_649_367_553) / 1000;
    assert!(old.stdout.contains(&format!("it was made {by}")), "{} {by}", old.stdout);
    verify(&headers, format!("{BODY}\n")).finds("standard", &["body_newline_added", "too_old"]);
    let ahead = TIMESTAMP.replace("1649367553", "99999999999");
    with(SECRET, &[ID, &ahead, SIGNATURE], BODY).finds("standard", &["wrong_secret_or_body"]);
}

#[test]
fn a_secret_that_is_wrong_or_wrongly_used_is_told() {
    let headers = [ID, TIMESTAMP, SIGNATURE];
    let rest = SECRET.strip_prefix("whsec_").unwrap();
    with(rest, &headers, BODY).finds("standard", &["secret_prefix_missing"]);
    with(&format!("\"{SECRET}\""), &headers, BODY).finds("standard", &["secret_surrounded"]);
    let other = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    with(other, &headers, BODY).finds("standard", &["wrong_secret_or_body"]);
    let wrong = with(other, &[DOJO[0].1], DOJO_BODY);
    wrong.finds("dojo", &["wrong_secret_or_body"]);
    assert!(wrong.stdout.contains("another secret, most likely"), "{}", wrong.stdout);
    with(DOJO[0].0.strip_prefix("ws_").unwrap(), &[DOJO[0].1], DOJO_BODY).finds("dojo", &["secret_prefix_missing"]);
    // Base64 that was not decoded: made with Python's hmac, keyed with the text after whsec_, and with all of it.
    for (signature, fault) in [
        ("h4qX9FKaAseJeepyR4bu2aQDOFPAVQpYe6yuWRsWhwE=", "secret_not_decoded_without_prefix"),
        ("n6rJjo/CnEaFyJ+uWWflwGkHSGocTY6bAD6ImjhpG8E=", "secret_not_decoded"),
    ] {
        let header = format!("webhook-signature: v1,{signature}");
        with(SECRET, &[ID, TIMESTAMP, &header], BODY).finds("standard", &[fault]);
    }
}

#[test]
fn a_signature_in_another_form_is_told() {
    let hex = "webhook-signature: v1,b59d48e3f843ca000980ee5363189277a49dd240d6ea13de9c37be6d36b72a4c";
    let url = SIGNATURE.replace('/', "_").replace('+', "-");
    let bare = SIGNATURE.replace("v1,", "");
    for header in [hex, &url, &bare, &SIGNATURE.to_lowercase(), SIGNATURE.trim_end_matches('=')] {
        with(SECRET, &[ID, TIMESTAMP, header], BODY).finds("standard", &["encoding"]);
    }
    let (secret, header) = DOJO[0];
    for header in [header.to_lowercase(), header.replace("-", "").replace("dojosignature", "dojo-signature")] {
        let done = with(secret, &[&header], DOJO_BODY);
        done.finds("dojo", &["encoding"]);
        assert!(done.stdout.contains("upper-case hex with dashes"), "{}", done.stdout);
    }
}

#[test]
fn headers_that_are_missing_mixed_up_or_changed_are_told() {
    with(SECRET, &[TIMESTAMP, SIGNATURE], BODY).finds("standard", &["header_missing"]);
    with(SECRET, &[ID, SIGNATURE], BODY).finds("standard", &["header_missing"]);
    with(SECRET, &[ID, TIMESTAMP], BODY).finds("standard", &["header_missing"]);
    with(SECRET, &[ID, TIMESTAMP, SIGNATURE, SIGNATURE], BODY).finds("standard", &["header_repeated"]);
    let swapped = DOJO[0].1.replace("dojo-signature", "webhook-signature");
    with(DOJO[0].0, &[ID, TIMESTAMP, &swapped], DOJO_BODY).finds("standard", &["other_scheme"]);
    let swapped = SIGNATURE.replace("webhook-signature", "dojo-signature");
    with(SECRET, &[ID, TIMESTAMP, &swapped], BODY).finds("dojo", &["other_scheme"]);
    for changed in ["1649367554", "1649363953", "1649367553123"] {
        let changed = format!("webhook-timestamp: {changed}");
        let done = with(SECRET, &[ID, &changed, SIGNATURE], BODY);
        done.finds("standard", &["timestamp_changed"]);
        assert!(done.stdout.contains("1649367553 was signed"), "{}", done.stdout);
    }
    let other_id = ID.replace("msg_", "evt_");
    with(SECRET, &[&other_id, TIMESTAMP, SIGNATURE], BODY).finds("standard", &["wrong_secret_or_body"]);
}

#[test]
fn a_changed_id_is_known_by_the_events_own_and_by_the_other_signature() {
    let secret = herald::signing::SecretText::new(SECRET.to_owned()).unwrap();
    let signature = herald::signing::standard_signature(
        [&secret].into_iter(),
        "evt_hnnHxIKR_Uy6bhZCusCltw",
        1_649_367_553,
        DOJO_BODY.as_bytes(),
    );
    let signature = format!("webhook-signature: {signature}");
    let done = with(SECRET, &["webhook-id: another", TIMESTAMP, &signature], DOJO_BODY);
    done.finds("standard", &["id_changed"]);
    assert!(done.stdout.contains("evt_hnnHxIKR_Uy6bhZCusCltw was signed"), "{}", done.stdout);
    let dojo = format!("dojo-signature: {}", herald::signing::dojo_signature(&secret, BODY.as_bytes()));
    let changed = with(SECRET, &["webhook-id: another", TIMESTAMP, SIGNATURE, &dojo], BODY);
    changed.finds("standard", &["headers_changed"]);
    // Only the scheme that is asked for counts.
    let args = ["--scheme", "dojo", "--secret", SECRET, "--header", "webhook-signature: v1,x", "--header", &dojo];
    verify(&args, BODY).valid();
    let args = ["--scheme", "standard", "--secret", SECRET, "--header", &dojo];
    verify(&args, BODY).finds("standard", &["header_missing"]);
}

#[test]
fn files_of_curl_and_lines_of_listen_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let secret = path("secret", &format!("{SECRET}\n"));
    let head = path("head", &format!("HTTP/1.1 200 OK\r\n{ID}\r\n{TIMESTAMP}\r\n{SIGNATURE}\r\n\r\n"));
    let body = path("body", BODY);
    let args = [&["--headers-file", &head, "--secret-file", &secret, &body], &ANY_TIME[..]].concat();
    verify(&args, "").valid();
    let pairs = [ID, TIMESTAMP, SIGNATURE].map(|line| line.split_once(": ").unwrap());
    let line = path("line", &serde_json::json!({ "headers": pairs, "body": BODY, "other": 1 }).to_string());
    verify(&[&["--headers-file", &line, "--secret-file", &secret], &ANY_TIME[..]].concat(), "").valid();
    let table = verify(&[&args[..], &["-o", "table"]].concat(), "");
    assert!(table.stdout.contains("webhook-signature") && table.stdout.contains("valid"), "{}", table.stdout);
}

#[test]
fn what_it_lacks_is_said() {
    for (args, says) in [
        (vec!["--header", ID], "which secret?"),
        (vec!["--secret", SECRET], "which headers"),
        (vec!["--secret", SECRET, "--header", "nothing"], "'NAME: VALUE'"),
        (vec!["--secret", "-", "--header", ID], "only one of body, headers and secret"),
    ] {
        let done = verify(&args, BODY);
        assert!(done.code == 2 && done.stderr.contains(says), "{args:?}: {} {}", done.code, done.stderr);
        assert!(!done.stderr.contains(SECRET));
    }
    let done = verify(&["--secret", SECRET, "--header", ID, "/nowhere/at/all"], "");
    assert!(done.code == 3 && done.stderr.contains("/nowhere/at/all"), "{}", done.stderr);
}
