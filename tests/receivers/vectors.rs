//! What merchants are told, held against Herald's own code: the test vectors of docs/merchants.md, and the crates of the receiver
//! in Rust.

use std::fs;

use herald::facts::signing::{SecretText, dojo_signature, standard_signature};
use serde::Deserialize;

use crate::language::installed;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Vector {
    secrets: Vec<SecretText>,
    id: String,
    timestamp: u64,
    body: String,
    #[serde(rename = "webhook-signature")]
    standard: String,
    #[serde(rename = "dojo-signature")]
    dojo: String,
}

#[test]
fn the_vectors_for_merchants_are_what_herald_signs() {
    let page = fs::read_to_string(installed("docs/merchants.md")).unwrap();
    let (_, vectors) = page.split_once("\n### Test vectors\n").expect("the page has vectors");
    let (_, rest) = vectors.split_once("```json\n").expect("the page has vectors");
    let vectors: Vec<Vector> = serde_json::from_str(rest.split_once("```").unwrap().0).unwrap();
    assert!(vectors.len() >= 4 && vectors.iter().any(|vector| vector.secrets.len() > 1));
    for Vector { secrets, id, timestamp, body, standard, dojo } in vectors {
        assert_eq!(standard_signature(secrets.iter(), &id, timestamp, body.as_bytes()), standard, "{id}");
        assert_eq!(dojo_signature(secrets.last().unwrap(), body.as_bytes()), dojo, "{id}");
    }
}

#[test]
fn the_receiver_in_rust_names_the_crates_that_it_is_built_with() {
    let manifest = fs::read_to_string(installed("Cargo.toml")).unwrap();
    let receiver = fs::read_to_string(installed("docs/receivers/receiver.rs")).unwrap();
    let named = receiver.split("[dependencies]").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let named: Vec<_> = named.lines().filter_map(|line| line.strip_prefix("//! ")?.split_once(" = ")).collect();
    let of_herald = named.iter().find(|(name, _)| *name == "herald-dispatch").map(|(_, rest)| *rest);
    assert!(
        of_herald.is_some_and(|rest| rest.contains("default-features = false")),
        "it gets the dispatcher: {of_herald:?}"
    );
    let others: Vec<_> = named.into_iter().filter(|(name, _)| *name != "herald-dispatch").collect();
    assert!(others.len() >= 3, "{others:?}");
    for (name, rest) in others {
        let version = rest.split('"').nth(1).unwrap();
        let is_ours = |ours: &str| {
            let ours = ours.strip_prefix(name).and_then(|rest| rest.strip_prefix(" = ")?.split('"').nth(1));
            ours.is_some_and(|ours| ours == version || ours.starts_with(&format!("{version}.")))
        };
        assert!(manifest.lines().any(is_ours), "Herald is not built with {name} {version}");
    }
}
