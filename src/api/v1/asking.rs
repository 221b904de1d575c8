//! Has partitions' owners do what only it can: send dead letters again, drop them, release chains, empty the quarantine. One
//! that did not answer in time still does it; whoever asks again is told that there is nothing left to do.

use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, timeout_at};
use utoipa::ToSchema;

use super::{Api, request::of_store};
use crate::{
    clock,
    facts::{audit::Tally, endpoint::Mark},
    http::problem::Problem,
    store::{connection::Purpose, keys::PartitionKeys, protocol::Asked, queries::Queries, requests::Requests},
};

/// An owner answers within a second. A take-over after a crash takes longer, and then the caller asks again.
const ANSWERED_WITHIN: Duration = Duration::from_secs(15);

/// What one call may be about.
pub const MOST: usize = 100;

/// What became of each.
#[derive(Serialize, ToSchema)]
pub struct Results {
    /// How many were done.
    pub done: u64,
    pub refused: u64,
    /// They are done when a worker comes to it.
    pub unanswered: u64,
    pub items: Vec<ItemResult>,
}

#[derive(Serialize, ToSchema)]
pub struct ItemResult {
    pub id: String,
    /// done, refused or unanswered.
    pub result: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

impl Results {
    /// Adds those that nobody was asked for.
    pub(super) fn refuse(&mut self, ids: impl Iterator<Item = String>, why: &str) {
        let refused = ids.map(|id| ItemResult { id, result: "refused", why: Some(why.to_owned()) });
        let before = self.items.len();
        self.items.extend(refused);
        self.refused += (self.items.len() - before) as u64;
    }
}

impl Api {
    /// Asks for all of these at once, and waits for the answers.
    pub(super) async fn ask(
        &self,
        asked: Vec<(String, PartitionKeys, Asked)>,
        mark: &Mark,
        tally: &mut Tally,
    ) -> Result<Results, Problem> {
        let _place = self.0.asking.take_for_staff().await?;
        let deadline = Instant::from_std(clock::now() + ANSWERED_WITHIN);
        let connection = self.0.redis.connect(Purpose::Wakeup).await.map_err(|error| of_store(&error))?;
        let mut waiting = Vec::with_capacity(asked.len());
        for (id, keys, asked) in asked {
            let requests = Requests::new(connection.clone(), keys);
            let request = timeout_at(deadline, requests.ask(&asked, mark)).await;
            match request {
                Ok(request) => waiting.push((id, request.map_err(|error| of_store(&error))?, requests)),
                Err(_) => break,
            }
        }
        let mut results = Results { done: 0, refused: 0, unanswered: 0, items: Vec::with_capacity(waiting.len()) };
        for (id, request, requests) in waiting {
            let left = deadline.saturating_duration_since(Instant::from_std(clock::now()));
            let answer = requests.await_answer(request, left).await.map_err(|error| of_store(&error))?;
            let (result, why) = match answer.as_deref() {
                Some("ok") => ("done", None),
                Some(answer) => ("refused", Some(answer.strip_prefix("error: ").unwrap_or(answer).to_owned())),
                None => ("unanswered", None),
            };
            match result {
                "done" => results.done += 1,
                "refused" => results.refused += 1,
                _ => results.unanswered += 1,
            }
            results.items.push(ItemResult { id, result, why });
            tally.set(results.done, results.refused);
        }
        Ok(results)
    }

    /// Refuses if nobody owns one of these partitions, so that nothing is left in its inbox by surprise.
    pub(super) async fn must_be_owned(&self, partitions: &[PartitionKeys]) -> Result<(), Problem> {
        let mut concerned: Vec<&PartitionKeys> = partitions.iter().collect();
        concerned.sort_unstable_by_key(|keys| keys.stream());
        concerned.dedup_by_key(|keys| keys.stream());
        for keys in concerned {
            let look = async |connection| Queries::new(connection, keys.clone()).lease().await;
            if self.0.connection.with(look).await.map_err(|error| of_store(&error))?.is_none() {
                return Err(Problem::unavailable("No worker owns the partition, so nothing was asked: start one.", 5));
            }
        }
        Ok(())
    }
}
