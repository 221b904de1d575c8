//! What each part of a stream that is being split is given of what is unfinished there, and what leaves the stream once the parts have
//! it. Pure, like `router`: an account has its records and letters where its next events will go.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde::Deserialize;

use super::router::{part_for, part_of_account};
use crate::{
    facts::{
        delivery::Chain,
        id::{AccountId, EndpointId, IntentId},
        letter::LetterFacts,
    },
    store::{
        moving::{Died, Exported, Handed, Unended},
        protocol::{Item, Settlement},
    },
};

/// A record without order is counted under its intent, and this one does not tell it.
const NO_INTENT: &str = "pi_unreadable";

/// How a stream is split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Into how many parts all levels above it split, together.
    pub above: u32,
    pub parts: u32,
}

/// What the parts are given of this, and what may leave the stream when they have it. `account_of`: what is known of endpoints, for
/// what does not tell its account.
pub fn share_out(
    exported: Exported,
    Shape { above, parts }: Shape,
    account_of: impl Fn(&EndpointId) -> Option<AccountId>,
) -> (Vec<Handed>, Settlement) {
    let mut shares: BTreeMap<u32, Handed> = BTreeMap::new();
    let mut leaves = Settlement { last_read: exported.barrier.unwrap_or_default(), ..Settlement::default() };
    for pending in exported.entries {
        leaves.acks.push(pending.id);
        if let Some(entry) = pending.entry {
            share(&mut shares, part_for(&entry, above, parts)).entries.push(entry);
        }
    }
    let mut noted = BTreeSet::new();
    for Unended { id, head_field, place, record } in exported.records {
        let told = Told::by(&record);
        let chain = match head_field.starts_with('~') {
            true => Chain::Single(told.intent.unwrap_or_else(no_intent), id.entry),
            false => Chain::Intent(head_field.parse().unwrap_or_else(|_| told.intent.unwrap_or_else(no_intent))),
        };
        let account = told.account.or_else(|| account_of(&id.endpoint));
        let part = part_of_account(account.as_ref(), above, parts);
        leaves.items.push(Item::Finish { id: id.clone(), chain: chain.clone() });
        let given = &mut share(&mut shares, part).items;
        // What waits there must not be older in its part than it was here.
        if let Some(at_ms) = exported.unreadable.get(&id.endpoint)
            && noted.insert((part, id.endpoint.clone()))
        {
            given.push(Item::TakeUnreadable { endpoint: id.endpoint.clone(), at_ms: *at_ms });
        }
        given.push(Item::Take { id, chain, place, record });
    }
    for Died { id, at_ms, facts, letter } in exported.letters {
        leaves.items.push(Item::Discard { id: id.clone() });
        let Some(letter) = letter else { continue };
        let facts = Box::new(facts.unwrap_or_else(|| LetterFacts::of_record(&letter)));
        let account = facts.account.clone().or_else(|| account_of(&id.endpoint));
        let part = part_of_account(account.as_ref(), above, parts);
        share(&mut shares, part).items.push(Item::TakeLetter { id, at_ms, facts, letter });
    }
    (shares.into_values().collect(), leaves)
}

fn share(shares: &mut BTreeMap<u32, Handed>, part: u32) -> &mut Handed {
    shares.entry(part).or_insert_with(|| Handed { part, ..Handed::default() })
}

fn no_intent() -> IntentId {
    NO_INTENT.parse().expect("it is an intent's name")
}

/// What a record says of itself, whichever Herald wrote it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Told {
    account: Option<AccountId>,
    intent: Option<IntentId>,
}

impl Told {
    fn by(record: &Bytes) -> Self {
        let header = record.split(|byte| *byte == b'\n').next().unwrap_or_default();
        serde_json::from_slice(header).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        facts::id::{DeliveryId, EntryId},
        store::{moving::Pending, protocol::Place, routing::Passed},
    };

    fn id(text: &str) -> DeliveryId {
        text.parse().unwrap()
    }

    fn unended(id: DeliveryId, head_field: &str, record: &'static str) -> Unended {
        Unended { id, head_field: head_field.to_owned(), place: Place::Held, record: record.into() }
    }

    #[test]
    fn each_account_has_its_share_where_its_next_events_go() {
        // acc_test has slot 7110, acc_a 4542.
        let event = |account: &str| vec![("event".into(), Bytes::from(format!(r#"{{"accountId":"{account}"}}"#)))];
        let entry = |ms, fields: &[(Bytes, Bytes)]| {
            let id = EntryId { ms, seq: 0 };
            Pending { id, entry: Some(Passed::new(id, fields, None)) }
        };
        let exported = Exported {
            now_ms: 9,
            barrier: Some(EntryId { ms: 8, seq: 0 }),
            entries: vec![entry(1, &event("acc_a")), Pending { id: EntryId { ms: 2, seq: 0 }, entry: None }],
            records: vec![
                unended(id("3-0:ep_1"), "pi_1", "{\"account\":\"acc_test\",\"new\":1}\nbody"),
                unended(id("4-0:ep_1"), "~4-0", "{\"account\":\"acc_a\",\"intent\":\"pi_4\"}\n"),
                unended(id("5-0:ep_9"), "~5-0", "not to be read"),
            ],
            letters: vec![
                Died { id: id("6-0:ep_2"), at_ms: 7, facts: None, letter: Some("?".into()) },
                Died { id: id("7-0:ep_2"), at_ms: 8, facts: None, letter: None },
            ],
            unreadable: BTreeMap::from([("ep_1".parse().unwrap(), 77)]),
        };
        let known = |endpoint: &EndpointId| (endpoint.as_str() == "ep_2").then(|| "acc_test".parse().unwrap());
        let (shares, leaves) = share_out(exported.clone(), Shape { above: 1, parts: 64 }, known);
        let of = |part| shares.iter().find(|share| share.part == part).unwrap();
        assert_eq!(shares.iter().map(|share| share.part).collect::<Vec<_>>(), [0, 6, 62]);
        let names = |part| {
            let name = |item: &Item| match item {
                Item::Take { id, chain, place: Place::Held, .. } => format!("{id} {}", chain.name()),
                Item::TakeLetter { id, at_ms: 7, .. } => id.to_string(),
                Item::TakeUnreadable { endpoint, at_ms: 77 } => format!("{endpoint} was unreadable"),
                other => panic!("{other:?}"),
            };
            of(part).items.iter().map(name).collect::<Vec<_>>()
        };
        assert_eq!(names(0), ["5-0:ep_9 ~pi_unreadable"], "whose it is nobody knows");
        assert_eq!(names(6), ["ep_1 was unreadable", "3-0:ep_1 pi_1", "6-0:ep_2"]);
        assert_eq!(names(62), ["ep_1 was unreadable", "4-0:ep_1 ~pi_4"]);
        assert_eq!(of(62).entries.len(), 1);
        assert_eq!((leaves.acks.len(), leaves.items.len(), leaves.last_read.ms), (2, 5, 8));
        // One level below, the same accounts lie elsewhere.
        let (below, _) = share_out(exported, Shape { above: 64, parts: 4 }, known);
        assert_eq!(below.iter().map(|share| share.part).collect::<Vec<_>>(), [0, 2, 3]);
    }
}
