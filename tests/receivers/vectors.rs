//! The test vectors of docs/receivers/README.md, held against Herald's own code.

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
    let page = fs::read_to_string(installed("docs/receivers/README.md")).unwrap();
    let (_, rest) = page.split_once("```json\n").expect("the page has vectors");
    let vectors: Vec<Vector> = serde_json::from_str(rest.split_once("```").unwrap().0).unwrap();
    assert!(vectors.len() >= 4 && vectors.iter().any(|vector| vector.secrets.len() > 1));
    for Vector { secrets, id, timestamp, body, standard, dojo } in vectors {
        assert_eq!(standard_signature(secrets.iter(), &id, timestamp, body.as_bytes()), standard, "{id}");
        assert_eq!(dojo_signature(secrets.last().unwrap(), body.as_bytes()), dojo, "{id}");
    }
}
