//! What an account was told, in the order of its numbers. Read from the records, so it is there for as long as its intents
//! are, however far the stream is trimmed. With it merchants fetch what they missed, and prove that they missed nothing.

use std::{collections::HashMap, ops::RangeInclusive, sync::Arc};

use sha2::{Digest, Sha256};
use tracing::warn;

use super::{
    intent::Intent,
    service::{Service, ServiceError, read},
    told::Told,
};
use crate::{
    facts::id::{AccountId, DeliveryId, IntentId},
    store::{
        intents::MAX_PAGE,
        queries::{Outcome, Partitions, Queries},
    },
};

/// Events that one digest is over: a hundred pages.
pub const MAX_DIGEST: u64 = 10_000;

#[derive(Debug, Clone)]
pub struct Feed {
    /// The number of the account's last event.
    pub latest: u64,
    /// What the next page begins after.
    pub through: u64,
    pub events: Vec<FedEvent>,
    /// Numbers in between whose events are not kept any more, as their intents are not.
    pub forgotten: Vec<RangeInclusive<u64>>,
}

#[derive(Debug, Clone)]
pub struct FedEvent {
    pub told: Told,
    pub intent: Arc<Intent>,
}

impl FedEvent {
    pub fn body(&self) -> String {
        self.told.body(&self.intent)
    }
}

/// Over the numbers and ids of events, so that a merchant can compare it with their own log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeedDigest {
    pub latest: u64,
    pub through: u64,
    pub count: u64,
    pub sha256: String,
}

/// A line for each event: its number, a blank, its id.
#[derive(Default)]
pub struct DigestOf {
    hash: Sha256,
    count: u64,
}

impl DigestOf {
    pub fn add(&mut self, told: &Told) {
        self.hash.update(format!("{} {}\n", told.number, told.id));
        self.count += 1;
    }

    pub fn finish(self) -> (u64, String) {
        (self.count, hex::encode(self.hash.finalize()))
    }
}

impl Service {
    /// The events after a number.
    pub async fn feed(&self, account: &AccountId, after: u64, most: usize) -> Result<Feed, ServiceError> {
        let page = self.records.with(async |store| store.feed(account, after, most.min(MAX_PAGE)).await).await?;
        let last_shown = page.last.unwrap_or(after);
        let through = if page.has_more { last_shown } else { page.latest.max(after) };
        let mut intents: HashMap<IntentId, Option<Arc<Intent>>> = HashMap::new();
        let (mut events, mut forgotten, mut next) = (Vec::new(), Vec::new(), after + 1);
        for entry in page.told {
            if let Some(stored) = entry.stored {
                // One that cannot be read keeps nobody from the others.
                let stored =
                    stored.inspect_err(|error| warn!(intent = %entry.id, %error, "cannot be read")).ok().flatten();
                let intent = stored.and_then(|stored| {
                    let intent = read(&entry.id, &stored);
                    intent.inspect_err(|error| warn!(intent = %entry.id, %error, "cannot be read")).ok()
                });
                intents.insert(entry.id.clone(), intent.filter(|intent| intent.account == *account).map(Arc::new));
            }
            let Some(Some(intent)) = intents.get(&entry.id) else { continue };
            let Some(told) = intent.history.iter().find(|told| told.number == entry.number) else { continue };
            if entry.number > next {
                forgotten.push(next..=entry.number - 1);
            }
            next = entry.number + 1;
            events.push(FedEvent { told: told.clone(), intent: Arc::clone(intent) });
        }
        if next <= through {
            forgotten.push(next..=through);
        }
        Ok(Feed { latest: page.latest, through, events, forgotten })
    }

    /// All that was told of one intent, as far as it is numbered.
    pub async fn feed_of(
        &self,
        account: &AccountId,
        id: &IntentId,
    ) -> Result<(Arc<Intent>, Vec<FedEvent>), ServiceError> {
        let intent = Arc::new(self.get(account, id).await?);
        let numbered = intent.history.iter().filter(|told| told.number > 0);
        let events = numbered.map(|told| FedEvent { told: told.clone(), intent: Arc::clone(&intent) });
        let events = events.collect();
        Ok((intent, events))
    }

    /// Of the events after a number and up to another one, or to the last.
    pub async fn feed_digest(
        &self,
        account: &AccountId,
        after: u64,
        through: Option<u64>,
    ) -> Result<FeedDigest, ServiceError> {
        let (mut digest, mut at) = (DigestOf::default(), after);
        let end = through.unwrap_or(u64::MAX).min(after.saturating_add(MAX_DIGEST));
        loop {
            let page = self.feed(account, at, MAX_PAGE).await?;
            page.events.iter().filter(|event| event.told.number <= end).for_each(|event| digest.add(&event.told));
            at = page.through.min(end).max(after);
            if at >= end || page.through >= page.latest {
                let (count, sha256) = digest.finish();
                return Ok(FeedDigest { latest: page.latest, through: at, count, sha256 });
            }
        }
    }

    /// The id of the log whose history may be asked; none while nobody has followed it.
    pub async fn log_id(&self) -> Result<Option<String>, ServiceError> {
        let keys = self.records.keys().clone();
        let look = async |connection| Queries::new(connection, keys).log_id().await;
        Ok(self.records.connection().with(look).await?)
    }

    /// Where deliveries of an account stand, all at one instant where the stream is one partition.
    pub async fn outcomes(&self, account: &AccountId, deliveries: &[DeliveryId]) -> Result<Vec<Outcome>, ServiceError> {
        let keys = self.records.keys().clone();
        let look = async |connection| Partitions::find(connection, &keys).await?.outcomes(account, deliveries).await;
        Ok(self.records.connection().with(look).await?)
    }
}
