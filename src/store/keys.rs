//! Owns the name of every key. Never reads or writes one. What each holds is described in `docs/design.md`, section 4.
//!
//! The companion keys of the stream `S` carry its hash tag, so that Redis Cluster keeps them in one slot with `S` and one
//! script may change them together. A stream that has a tag of its own keeps it; then its whole name follows the tag, so
//! that two streams with the same tag stay apart.
//!
//! Some scripts touch keys for each endpoint or delivery of a batch. They get [`PartitionKeys::prefix`] as an argument and
//! build these names themselves (`prefix .. 'held:' .. endpoint`). Redis asks for every key to be declared, and promises
//! Cluster support only for scripts that do so. But since all of these keys share the slot of a declared one, such scripts
//! run on today's Cluster. Declaring them would cost thousands of arguments a batch.

use crate::facts::{
    id::{AccountId, DeliveryId, EndpointId, EventId, IntentId, OperationId},
    partition::{Slot, hash_tag},
};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("the stream's name is empty")]
    Empty,
    #[error("the stream's name is {bytes} bytes long; at most {MAX_STREAM_BYTES} are allowed")]
    TooLong { bytes: usize },
    #[error("the stream's name {stream:?} starts with \"herald:{{\", as Herald's own keys do; choose another one")]
    Ours { stream: String },
    #[error(
        "the stream's name {stream:?} has a \"}}\" but no hash tag: no other key can share its slot; choose another one"
    )]
    Untaggable { stream: String },
}

/// Longest name of a stream. It is part of every companion key, of log lines and of metrics' labels.
pub const MAX_STREAM_BYTES: usize = 256;

/// The keys of one partition: its stream and the stream's companions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionKeys {
    stream: String,
    prefix: String,
}

impl PartitionKeys {
    pub fn new(stream: &str) -> Result<Self, KeyError> {
        if stream.is_empty() {
            return Err(KeyError::Empty);
        }
        if stream.len() > MAX_STREAM_BYTES {
            return Err(KeyError::TooLong { bytes: stream.len() });
        }
        if stream.starts_with("herald:{") {
            return Err(KeyError::Ours { stream: stream.to_owned() });
        }
        let tag = hash_tag(stream.as_bytes()).map(String::from_utf8_lossy);
        let prefix = match tag {
            // A colon ends the name, so one inside it must not look like that end: `{t}` has a key `heads:…`, and a
            // stream may be called `{t}:heads`.
            Some(tag) => format!("herald:{{{tag}}}:{}:", stream.replace('%', "%25").replace(':', "%3A")),
            None if stream.contains('}') => return Err(KeyError::Untaggable { stream: stream.to_owned() }),
            None => format!("herald:{{{stream}}}:"),
        };
        Ok(Self { stream: stream.to_owned(), prefix })
    }

    /// The stream itself, `S`.
    pub fn stream(&self) -> &str {
        &self.stream
    }

    /// What every companion key starts with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Where Redis Cluster keeps all of them.
    pub fn slot(&self) -> Slot {
        Slot::of_key(self.stream.as_bytes())
    }

    /// String with TTL: the term's random value and the owner's name.
    pub fn lease(&self) -> String {
        self.key("lease")
    }

    /// String: what becomes of the stream's entries, where they are not delivered by its owner.
    pub fn mode(&self) -> String {
        self.key("mode")
    }

    /// String: the split that is to fill this part. While it is there nobody can have the lease.
    pub fn gate(&self) -> String {
        self.key("gate")
    }

    /// String: of a part, the last entry of the stream above it that it has taken, or was told is not for it.
    pub fn routed(&self) -> String {
        self.key("routed")
    }

    /// String with TTL: the worker that asks its owner for this partition.
    pub fn next(&self) -> String {
        self.key("next")
    }

    /// String: every entry up to here is settled.
    pub fn cursor(&self) -> String {
        self.key("cursor")
    }

    /// String: the record of an unfinished delivery.
    pub fn delivery(&self, id: &DeliveryId) -> String {
        self.key(&format!("delivery:{id}"))
    }

    /// Zset: deliveries by the time of their next attempt.
    pub fn due(&self) -> String {
        self.key("due")
    }

    /// Zset: what the owner has taken from `due`.
    pub fn claimed(&self) -> String {
        self.key("claimed")
    }

    /// Hash: intent to the number of its unfinished records without order, each of which is a chain of its own.
    pub fn singles(&self, endpoint: &EndpointId) -> String {
        self.key(&format!("singles:{endpoint}"))
    }

    /// Hash: chain to the delivery at its head.
    pub fn heads(&self, endpoint: &EndpointId) -> String {
        self.key(&format!("heads:{endpoint}"))
    }

    /// Zset: deliveries behind the head of their chain, by entry id.
    pub fn held(&self, endpoint: &EndpointId) -> String {
        self.key(&format!("held:{endpoint}"))
    }

    /// Zset: parked deliveries, by entry id.
    pub fn backlog(&self, endpoint: &EndpointId) -> String {
        self.key(&format!("backlog:{endpoint}"))
    }

    /// Hash: endpoint to the number of its unfinished records.
    pub fn unfinished(&self) -> String {
        self.key("unfinished")
    }

    /// Hash: endpoint to the bytes of its unfinished records.
    pub fn bytes(&self) -> String {
        self.key("bytes")
    }

    /// Zset: endpoints that could not be read, by when that was last noted.
    pub fn unreadable(&self) -> String {
        self.key("unreadable")
    }

    /// Zset: all dead letters, by time.
    pub fn dead(&self) -> String {
        self.key("dead")
    }

    /// Zset: an endpoint's dead letters, by time.
    pub fn dead_of(&self, endpoint: &EndpointId) -> String {
        self.key(&format!("dead:{endpoint}"))
    }

    /// String: the record of a dead letter.
    pub fn dead_letter(&self, id: &DeliveryId) -> String {
        self.key(&format!("dead-letter:{id}"))
    }

    /// Hash: a dead letter to its time and its facts, by which all the indexes below are found.
    pub fn dead_facts(&self) -> String {
        self.key("dead-facts")
    }

    /// Zset, all with the same score: which of the three kinds of sets below there are.
    pub fn dead_kinds(&self) -> String {
        self.key("dead-kinds")
    }

    /// Zset: dead letters of one account, endpoint, reason and cause, by time. `kind` is these four with colons between.
    pub fn dead_of_kind(&self, kind: &str) -> String {
        self.key(&format!("dead-of:{kind}"))
    }

    /// Zset: dead letters of one account, reason and cause, by time. `why` is the last two with a colon between.
    pub fn dead_account(&self, account: &str, why: &str) -> String {
        self.key(&format!("dead-account:{account}:{why}"))
    }

    /// Zset: dead letters of one reason and cause, by time. `why` is these two with a colon between.
    pub fn dead_by(&self, why: &str) -> String {
        self.key(&format!("dead-by:{why}"))
    }

    /// Zset, all with the same score: an intent or an event, and a dead letter of it.
    pub fn dead_names(&self) -> String {
        self.key("dead-names")
    }

    /// String: every dead letter from before this time was looked at, for those that an older Herald wrote.
    pub fn dead_mark(&self) -> String {
        self.key("dead-mark")
    }

    /// Stream: entries that are not valid events.
    pub fn quarantine(&self) -> String {
        self.key("quarantine")
    }

    /// Hash: a quarantined entry's id in its stream to its id in the quarantine. If several streams have given out the
    /// same id, it has several ids there, oldest first and separated by blanks.
    pub fn quarantine_index(&self) -> String {
        self.key("quarantine-index")
    }

    /// Zset, all with the same score: an entry that came back from the quarantine and the one whose place it has, padded.
    pub fn places(&self) -> String {
        self.key("places")
    }

    /// Zset: padded entries, each with the time at which everything up to it had been read.
    pub fn marks(&self) -> String {
        self.key("marks")
    }

    /// Stream: what others ask of the owner.
    pub fn inbox(&self) -> String {
        self.key("inbox")
    }

    /// List of one text, with TTL: the owner's answer to the inbox's entry `id`.
    pub fn answer(&self, id: &str) -> String {
        self.key(&format!("answer:{id}"))
    }

    /// Stream: the log of attempts, capped. An entry's id counts the lines up to it.
    pub fn attempts(&self) -> String {
        self.key("attempts")
    }

    /// String: the id of the registry that this partition works with.
    pub fn registry_id(&self) -> String {
        self.key("registry-id")
    }

    /// String: a payment intent.
    pub fn intent(&self, id: &IntentId) -> String {
        self.key(&format!("pi:{id}"))
    }

    /// What the key of every payment intent starts with.
    pub fn intent_prefix(&self) -> String {
        self.key("pi:")
    }

    /// Zset: payment intents by the time (µs of their clock) of their next deadline.
    pub fn intent_due(&self) -> String {
        self.key("pi-due")
    }

    /// Zset: an account's payment intents in one status by the time (µs of their clock) of their creation.
    pub fn intents_of(&self, account: &AccountId, status: &str) -> String {
        self.key(&format!("pi-of:{account}:{status}"))
    }

    /// Stream: what an account was told, each entry's id being its number: the intent, and the entry in `S`.
    pub fn intent_feed(&self, account: &AccountId) -> String {
        self.key(&format!("pi-feed:{account}"))
    }

    /// String with TTL: what a request with an idempotency key was answered, under a hash of whose key it is.
    pub fn intent_key(&self, hash: &str) -> String {
        self.key(&format!("pi-key:{hash}"))
    }

    /// Hash: the clock of the payment intents.
    pub fn intent_clock(&self) -> String {
        self.key("pi-clock")
    }

    /// Hash: counters of the payment intents, and the events of each account.
    pub fn intent_counts(&self) -> String {
        self.key("pi-count")
    }

    /// Hash: a history to how far it has read the attempt log.
    pub fn history(&self) -> String {
        self.key("history")
    }

    /// Hash: endpoint to its health, as the owner last published it.
    pub fn health(&self) -> String {
        self.key("health")
    }

    /// Hash: account to its events that nobody is told of, or that are of an unknown type.
    pub fn unserved(&self) -> String {
        self.key("unserved")
    }

    /// Hash: issue to what operators said of it.
    pub fn issues(&self) -> String {
        self.key("issues")
    }

    /// Hash: counters that outlive a worker.
    pub fn stats(&self) -> String {
        self.key("stats")
    }

    /// Hash, with TTL until it is started: an operation, with its plan, its state and its counts.
    pub fn operation(&self, id: &OperationId) -> String {
        self.key(&format!("operation:{id}"))
    }

    /// Hash: endpoint to the place up to which an operation has taken its letters.
    pub fn operation_endpoints(&self, id: &OperationId) -> String {
        self.key(&format!("operation-endpoints:{id}"))
    }

    /// Zset, all with the same score, with TTL until it is started: the deliveries that an operation is still to send now.
    pub fn operation_ids(&self, id: &OperationId) -> String {
        self.key(&format!("operation-ids:{id}"))
    }

    /// Stream: what of an operation was not simply done.
    pub fn operation_results(&self, id: &OperationId) -> String {
        self.key(&format!("operation-results:{id}"))
    }

    /// Hash: a delivery to the operation that has it under way.
    pub fn operation_claims(&self) -> String {
        self.key("operation-claims")
    }

    /// Zset: operations that wait to be started, by the time of their plans.
    pub fn operations_planned(&self) -> String {
        self.key("operations-planned")
    }

    /// Zset: operations that the owner works on, by the time of their start.
    pub fn operations_open(&self) -> String {
        self.key("operations-open")
    }

    /// Zset: operations that have ended, by when they did.
    pub fn operations_ended(&self) -> String {
        self.key("operations-ended")
    }

    /// String with TTL: the entry of an event that was published over HTTP, and a digest of its bytes.
    pub fn published(&self, event: &EventId) -> String {
        self.key(&format!("published:{event}"))
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

/// The keys of the registry of endpoints. They share one slot of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegistryKeys;

impl RegistryKeys {
    /// Where Redis Cluster keeps them, and everything else that belongs to no stream.
    pub fn slot() -> Slot {
        Slot::of_key(Self::ENDPOINTS.as_bytes())
    }

    /// Hash: endpoint to its JSON.
    pub const ENDPOINTS: &str = "herald:{herald}:registry";
    /// Hash: `id`, `version`, `count` (endpoints in the hash), `pause` (a mark as JSON, while all sending is paused).
    pub const META: &str = "herald:{herald}:registry:meta";
    /// Stream: the change feed.
    pub const CHANGES: &str = "herald:{herald}:registry:changes";

    /// Hash with TTL: an import that is under way.
    pub fn staging(token: &str) -> String {
        format!("{}:staging:{token}", Self::ENDPOINTS)
    }
}

/// Who works, in the slot of the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerKeys;

impl WorkerKeys {
    /// Hash with TTL: a worker to when it last told of itself, ms since 1970 by Redis' clock, and what, as JSON.
    pub const WORKERS: &str = "herald:{herald}:workers";
    /// Hash: a routed stream to the number of its parts. A hint: the stream's `mode` is the authority.
    pub const PARTITIONS: &str = "herald:{herald}:partitions";
}

/// The API keys of the payment-intents service. They belong to no stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApiKeys;

impl ApiKeys {
    /// Hash: SHA-256 of an API key to what it may do, as JSON.
    pub const KEYS: &str = "herald:{herald}:keys";
}

/// The audit log of the whole installation, in the slot of the registry. Its name begins like no key that a role may delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuditKeys;

impl AuditKeys {
    /// Stream: who did what, and how it ended.
    pub const LOG: &str = "herald:{herald}:audit";
}

/// The tokens of the operations API. They belong to no stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenKeys;

impl TokenKeys {
    /// Hash: SHA-256 of a token to what it may do, as JSON.
    pub const TOKENS: &str = "herald:{herald}:tokens";
    /// Hash: SHA-256 of a token to when it was last used, ms since 1970.
    pub const USED: &str = "herald:{herald}:tokens:used";
}

/// A key that never exists, in the slot of this one. Each script declares it, so that Redis Cluster refuses to run one while only
/// a part of the slot is there: a declared key that is missing could be on the other node. A key that is not declared and has moved
/// would end the script in the middle.
pub(in crate::store) fn never(key: &str) -> String {
    let tag = hash_tag(key.as_bytes()).map_or(key.into(), String::from_utf8_lossy);
    format!("herald:{{{tag}}}:never")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn slot(key: &str) -> u16 {
        Slot::of_key(key.as_bytes()).number()
    }

    fn every_key(keys: &PartitionKeys) -> Vec<String> {
        let endpoint = EndpointId::new("ep_a").unwrap();
        let id: DeliveryId = "17-1:ep_a".parse().unwrap();
        let operation = OperationId::new("op_a").unwrap();
        vec![
            keys.lease(),
            keys.mode(),
            keys.gate(),
            keys.routed(),
            keys.next(),
            keys.cursor(),
            keys.delivery(&id),
            keys.due(),
            keys.claimed(),
            keys.singles(&endpoint),
            keys.heads(&endpoint),
            keys.held(&endpoint),
            keys.backlog(&endpoint),
            keys.unfinished(),
            keys.bytes(),
            keys.unreadable(),
            keys.dead(),
            keys.dead_of(&endpoint),
            keys.dead_letter(&id),
            keys.dead_facts(),
            keys.dead_kinds(),
            keys.dead_of_kind("acc_a:ep_a:gone:gone"),
            keys.dead_account("acc_a", "gone:gone"),
            keys.dead_by("gone:gone"),
            keys.dead_names(),
            keys.dead_mark(),
            keys.quarantine(),
            keys.quarantine_index(),
            keys.places(),
            keys.marks(),
            keys.inbox(),
            keys.answer("lease"),
            keys.attempts(),
            keys.registry_id(),
            keys.stats(),
            keys.published(&EventId::new("evt_a").unwrap()),
            keys.history(),
            keys.health(),
            keys.unserved(),
            keys.issues(),
            keys.operation(&operation),
            keys.operation_endpoints(&operation),
            keys.operation_ids(&operation),
            keys.operation_results(&operation),
            keys.operation_claims(),
            keys.operations_planned(),
            keys.operations_open(),
            keys.operations_ended(),
            keys.intent(&IntentId::new("pi_a").unwrap()),
            keys.intent_due(),
            keys.intents_of(&AccountId::new("acc_a").unwrap(), "Created"),
            keys.intent_feed(&AccountId::new("acc_a").unwrap()),
            keys.intent_key("hash"),
            keys.intent_clock(),
            keys.intent_counts(),
        ]
    }

    #[test]
    fn every_companion_key_shares_the_slot_of_its_stream() {
        for stream in ["payment-intents", "{pay}", "a:{pay}:b", "payments:3", "a{b", "{{x}}"] {
            let keys = PartitionKeys::new(stream).unwrap();
            for key in every_key(&keys) {
                assert_eq!(slot(&key), slot(stream), "{key} of {stream}");
                assert!(key.starts_with(keys.prefix()));
            }
            assert_eq!(slot(&never(stream)), slot(stream));
            assert_eq!(never(&keys.lease()), never(stream));
        }
        let registry =
            [RegistryKeys::META, RegistryKeys::CHANGES, &RegistryKeys::staging("x"), AuditKeys::LOG].map(slot);
        assert_eq!(registry, [slot(RegistryKeys::ENDPOINTS); 4]);
    }

    #[test]
    fn no_two_keys_of_any_two_streams_are_one() {
        let streams =
            ["t", "{t}", "{t}:answer", "{t}:dead", "x{t}", "{t}%3Aanswer", "herald", "herald:t", "t:0", "t:1"];
        let mut seen = HashSet::new();
        for stream in streams {
            for key in every_key(&PartitionKeys::new(stream).unwrap()).into_iter().chain([stream.to_owned()]) {
                assert!(seen.insert(key.clone()), "{key} of {stream} is there twice");
            }
        }
        let tokens = [TokenKeys::TOKENS, TokenKeys::USED];
        let registry = [
            RegistryKeys::ENDPOINTS,
            RegistryKeys::META,
            RegistryKeys::CHANGES,
            ApiKeys::KEYS,
            AuditKeys::LOG,
            WorkerKeys::WORKERS,
            WorkerKeys::PARTITIONS,
        ];
        for key in registry.into_iter().chain(tokens) {
            assert!(seen.insert(key.to_owned()));
        }
    }

    #[test]
    fn the_documented_names_are_the_real_ones() {
        assert_eq!(PartitionKeys::new("payment-intents").unwrap().lease(), "herald:{payment-intents}:lease");
        assert_eq!(PartitionKeys::new("pay{x}").unwrap().lease(), "herald:{x}:pay{x}:lease");
    }

    #[test]
    fn a_name_whose_slot_can_not_be_shared_is_refused() {
        assert_eq!(PartitionKeys::new(""), Err(KeyError::Empty));
        assert!(matches!(PartitionKeys::new("a}b"), Err(KeyError::Untaggable { .. })));
        assert!(matches!(PartitionKeys::new("a{}b"), Err(KeyError::Untaggable { .. })));
        assert!(matches!(PartitionKeys::new("herald:{x}:lease"), Err(KeyError::Ours { .. })));
        assert!(matches!(PartitionKeys::new(&"x".repeat(257)), Err(KeyError::TooLong { .. })));
    }
}
