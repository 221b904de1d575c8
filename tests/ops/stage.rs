//! A partition with something in every place, made by the scripts that make it in production.

use std::time::Duration;

use herald::{
    facts::{
        delivery::{DeadLetter, Delivery, RECORD_SCHEMA},
        endpoint::{Endpoint, Mark, Scheme},
        event::Event,
        id::{AccountId, DeliveryId, EndpointId, EntryId, IntentId},
        letter::LetterFacts,
        outcome::{AttemptReport, BodyEnd, Outcome, Timing},
        retry::DeadReason,
        signing::SecretText,
    },
    store::{
        connection::{Purpose, Redis},
        keys::PartitionKeys,
        partition::PartitionStore,
        protocol::{Answer, Call, Item, Place, Settlement, Start, Term},
    },
};

pub const STREAM: &str = "payment-intents";
pub const REGISTRY: &str = "reg_stage";

pub fn keys() -> PartitionKeys {
    PartitionKeys::new(STREAM).unwrap()
}

pub fn mark() -> Mark {
    Mark { by: "ops".into(), why: "a test".into(), at_ms: 1 }
}

pub fn endpoint_id(name: &str) -> EndpointId {
    EndpointId::new(name).unwrap()
}

pub fn intent(name: &str) -> IntentId {
    IntentId::new(name).unwrap()
}

pub fn id(entry: &str, endpoint: &str) -> DeliveryId {
    format!("{entry}:{endpoint}").parse().unwrap()
}

pub fn event(name: &str, account: &str, intent: &str) -> Event {
    let json = format!(
        r#"{{"id":"{name}","event":"payment_intent.status_updated","accountId":"{account}","createdAt":"2022-02-01T13:07:41.8667859Z","data":{{"paymentIntentId":"{intent}","paymentStatus":"Captured","captureMode":"Auto"}}}}"#
    );
    Event::parse(json.into()).unwrap()
}

/// Tried once and refused with 401.
pub fn delivery(entry: &str, endpoint: &str, intent: &str, ordered: bool) -> Delivery {
    delivery_of("acc_1", entry, endpoint, intent, ordered)
}

pub fn delivery_of(account: &str, entry: &str, endpoint: &str, intent: &str, ordered: bool) -> Delivery {
    let entry: EntryId = entry.parse().unwrap();
    let event = event(&format!("evt_{}", entry.ms), account, intent);
    let mut delivery = Delivery::new(entry, endpoint_id(endpoint), &event, ordered, entry.ms);
    delivery.remember(report(Outcome::Rejected { status: 401 }));
    delivery
}

pub fn report(outcome: Outcome) -> AttemptReport {
    AttemptReport {
        number: 1,
        at_ms: 1_700_000_000_000,
        outcome,
        timing: Timing { total_us: 12_000, ..Timing::default() },
        body_end: BodyEnd::Complete,
        snippet: "bad signature".into(),
        detail: String::new(),
    }
}

pub fn letter(delivery: &Delivery, reason: DeadReason) -> DeadLetter {
    DeadLetter {
        schema: RECORD_SCHEMA,
        reason,
        died_at_ms: 1,
        detail: String::new(),
        waited_for: None,
        url: "https://merchant.example/hook".into(),
        headers: vec![("webhook-id".into(), delivery.event.to_string())],
        delivery: delivery.clone(),
    }
}

pub fn keep(delivery: &Delivery, place: Place) -> Item {
    Item::Keep { id: delivery.id.clone(), chain: delivery.chain(), place, record: delivery.to_record() }
}

pub fn bury(delivery: &Delivery, reason: DeadReason) -> Item {
    let letter = letter(delivery, reason);
    let facts = Box::new(LetterFacts::of(&letter));
    Item::Bury { id: delivery.id.clone(), chain: delivery.chain(), facts, letter: letter.to_record() }
}

pub fn log_line(delivery: &Delivery, outcome: &str) -> bytes::Bytes {
    format!(
        r#"["{}","{}","{}","{}",1,1700000000000,12000,{{{outcome}}},""]"#,
        delivery.id, delivery.event, delivery.intent, delivery.account
    )
    .into()
}

pub fn endpoint(name: &str, account: &str, url: &str) -> Endpoint {
    let secret = SecretText::from_random([7; 32]);
    let endpoint = Endpoint::new(endpoint_id(name), AccountId::new(account).unwrap(), url.into(), secret, 1);
    Endpoint { schemes: vec![Scheme::Standard], ..endpoint }
}

/// The owner of the partition, as far as a test plays one.
pub struct Owner {
    pub store: PartitionStore,
    pub term: Term,
}

impl Owner {
    /// With a lease that outlives every test.
    pub async fn start(redis: &Redis) -> Self {
        Self::of(redis, keys()).await
    }

    pub async fn of(redis: &Redis, keys: PartitionKeys) -> Self {
        let work = redis.connect(Purpose::Work).await.unwrap();
        let lease = redis.connect(Purpose::Lease(Duration::from_secs(60))).await.unwrap();
        let owner = Self { store: PartitionStore::new(work, lease, keys, 1_000), term: Term::new(7, "stage") };
        let acquire = Call::Acquire { term: owner.term.clone(), previous: Vec::new(), ttl_ms: 600_000 };
        assert!(matches!(owner.call(acquire).await, Answer::Acquired { .. }));
        let open = Call::Open { term: owner.term.clone(), start: Start::Oldest, registry: REGISTRY.into() };
        assert!(matches!(owner.call(open).await, Answer::Opened { .. }));
        owner
    }

    pub async fn call(&self, call: Call) -> Answer {
        self.store.call(&call).await.unwrap()
    }

    pub async fn settle(&self, items: Vec<Item>, log: Vec<bytes::Bytes>) {
        let settlement = Settlement { items, log, ..Settlement::default() };
        let answer = self.call(Call::Settle { term: self.term.clone(), settlement }).await;
        assert!(matches!(answer, Answer::Settled { .. }), "{answer:?}");
    }

    pub async fn release(&self) {
        self.call(Call::Release { term: self.term.clone() }).await;
    }
}
