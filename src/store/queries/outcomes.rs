//! What became of deliveries, all at one instant.

use std::sync::LazyLock;

use super::Queries;
use crate::{
    facts::id::DeliveryId,
    store::{connection::Script, error::StoreError, protocol::GROUP},
};

static OUTCOMES: LazyLock<Script> = LazyLock::new(|| {
    let shared = [include_str!("../scripts/shared.lua"), include_str!("../scripts/partition_shared.lua")];
    Script::assembled("outcomes", include_str!("../scripts/outcomes.lua"), &shared)
});

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// With the time of its next attempt, ms since 1970 by Redis' clock, where it waits for one.
    Owed {
        next_ms: Option<u64>,
    },
    Dead,
    /// Neither: it was delivered, or an operator has discarded it, or its dead letter was kept long enough.
    Settled,
}

impl Queries {
    /// Where each of these stands.
    pub async fn outcomes(&mut self, deliveries: &[DeliveryId]) -> Result<Vec<Outcome>, StoreError> {
        let subject = "look where deliveries stand";
        let (stream, due) = (self.keys.stream().to_owned(), self.keys.due());
        let mut outcomes = Vec::with_capacity(deliveries.len());
        for page in deliveries.chunks(super::MAX_PAGE) {
            let mut call = OUTCOMES.keys_to_read(&[&stream, &due]).arg(self.keys.prefix()).arg(GROUP);
            for delivery in page {
                call = call.text(delivery);
            }
            let answer: Vec<String> = self.connection.run(subject, &call).await?;
            for text in answer {
                outcomes.push(match (text.as_str(), text.strip_prefix("owed ").map(str::parse)) {
                    ("dead", _) => Outcome::Dead,
                    ("settled", _) => Outcome::Settled,
                    ("owed", _) => Outcome::Owed { next_ms: None },
                    (_, Some(Ok(next_ms))) => Outcome::Owed { next_ms: Some(next_ms) },
                    _ => return Err(StoreError::unexpected(subject, text)),
                });
            }
        }
        match outcomes.len() == deliveries.len() {
            true => Ok(outcomes),
            false => Err(StoreError::unexpected(subject, "it is no answer for each")),
        }
    }
}
