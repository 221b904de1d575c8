//! Whether anything is still to come: by the ledger, by the dead letters, and by what Redis still holds. Then it
//! gathers the evidence of the end: every dead letter, and what Herald keeps, of the stream and of all its parts. Only looks; Redis
//! may be away meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures_util::future::try_join_all;

use super::{
    judge::{Dead, EXPIRY, Evidence, Kept},
    ledger::Ledger,
};
use crate::{
    clock,
    facts::partition::part_of,
    store::{
        connection::{Connection, Purpose, Redis},
        error::StoreError,
        keys::PartitionKeys,
        partitions::{keys_of, layout, routed},
        queries::{DeadOrder, DeadRange, MAX_PAGE, Queries},
        watch::{Gauges, gauges},
    },
};

/// The longest time in which nothing ends, beyond what the policies explain: a take-over, a Redis that reads its file.
const PATIENCE: Duration = Duration::from_secs(30);

/// A greatest age up to this is waited for; with a longer one, endpoints that never answer keep their deliveries.
const AGE_WAITED_FOR: Duration = Duration::from_secs(60);

/// Redis has held nothing for this long: what is not there will not come. Longer than an answer takes to be settled.
const EMPTY: Duration = Duration::from_millis(1_500);

/// A fault may end as late as the load does, and then Herald has a lease and this long to recover.
const CALM: Duration = Duration::from_secs(5);

/// By then a worker that was frozen has said what it still had to say.
const AFTERMATH: Duration = Duration::from_millis(500);

/// The longest wait after the load, whatever still moves.
const LONGEST: Duration = Duration::from_secs(1_800);

/// The pause between two looks into Redis while the load lasts, and after it.
const LOOK_LOADED: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(200);

/// How many of the records that Herald keeps at the end are listed: beyond that they count as lost, and the run has
/// failed anyway.
const MOST_KEPT: usize = 200_000;

pub struct Waiting<'a> {
    redis: &'a Redis,
    keys: &'a PartitionKeys,
    ledger: &'a Ledger,
    looked: Option<Partitions>,
    patience: Duration,
    dead: u64,
    looked_at: Option<Instant>,
    /// What was unfinished when that last changed, and when that was.
    changed: (u64, Instant),
    sent_at: Option<Instant>,
    empty_since: Option<Instant>,
}

impl<'a> Waiting<'a> {
    pub fn new(redis: &'a Redis, keys: &'a PartitionKeys, ledger: &'a Ledger) -> Self {
        let terms = ledger.population().terms();
        let pause = terms.retry.max_interval.mul_f64(1.0 + terms.retry.jitter);
        let age = match terms.retry.max_age <= AGE_WAITED_FOR {
            // Longer than the judge waits before it calls a delivery stuck: what never ends must be seen not to end.
            true => terms.retry.max_age + EXPIRY.saturating_sub(PATIENCE) + CALM,
            false => Duration::ZERO,
        };
        Self {
            redis,
            keys,
            ledger,
            looked: None,
            patience: PATIENCE + pause.min(PATIENCE) + terms.timeout + terms.lease + age,
            dead: 0,
            looked_at: None,
            changed: (0, clock::now()),
            sent_at: None,
            empty_since: None,
        }
    }

    pub fn dead(&self) -> u64 {
        self.dead
    }

    pub fn unfinished(&self) -> u64 {
        let left = self.ledger.outstanding();
        (left.alive + left.hopeless).saturating_sub(self.dead)
    }

    /// Whether the run is over; ask only once everything is sent and no fault is to come.
    pub async fn look(&mut self, is_sent: bool) -> bool {
        let now = clock::now();
        if is_sent {
            self.sent_at.get_or_insert(now);
        }
        let pause = if is_sent { LOOK } else { LOOK_LOADED };
        if self.looked_at.is_none_or(|at| now.saturating_duration_since(at) >= pause) {
            self.looked_at = Some(now);
            self.look_into_redis(is_sent, now).await;
        }
        let unfinished = self.unfinished();
        if unfinished != self.changed.0 {
            self.changed = (unfinished, now);
        }
        let Some(sent_at) = self.sent_at else { return false };
        let since = |at: Instant| now.saturating_duration_since(at);
        let is_empty = self.empty_since.is_some_and(|at| since(at) >= EMPTY) && self.ledger.is_quiet();
        let is_still = since(self.changed.1.max(sent_at)) > self.patience;
        let is_complete = since(sent_at) >= AFTERMATH && self.ledger.is_quiet() && self.ledger.is_complete(self.dead);
        (self.empty_since.is_some() && is_complete) || is_empty || is_still || since(sent_at) > LONGEST
    }

    /// While Redis is away nothing is known, and nothing is empty.
    async fn look_into_redis(&mut self, is_sent: bool, now: Instant) {
        let holds = self.holds(is_sent).await;
        match holds {
            Ok(false) => self.empty_since = self.empty_since.or(Some(now)),
            Ok(true) => self.empty_since = None,
            Err(_) => (self.empty_since, self.looked) = (None, None),
        }
    }

    async fn holds(&mut self, is_sent: bool) -> Result<bool, StoreError> {
        let partitions = match &self.looked {
            Some(partitions) => partitions,
            None => {
                let found = Partitions::find(self.redis, self.keys.stream()).await?;
                self.looked.insert(found)
            }
        };
        if !is_sent {
            let counts = partitions.all.iter().map(|(_, keys)| async {
                Queries::new(partitions.connection.clone(), keys.clone()).count_dead(&everything(0)).await
            });
            self.dead = try_join_all(counts).await?.into_iter().sum();
            return Ok(true);
        }
        let all = partitions.gauges().await?;
        self.dead = all.iter().map(|(_, gauges)| gauges.dead).sum();
        let holds = |(parts, gauges): &(u32, Gauges)| match parts {
            0 => !gauges.group || gauges.behind + gauges.pending + gauges.unfinished > 0,
            // No group reads one that is split.
            _ => gauges.unfinished > 0,
        };
        Ok(all.iter().any(holds) || !partitions.are_routed(&all).await?)
    }
}

/// A stream with its parts.
struct Partitions {
    connection: Connection,
    /// Into how many parts each is split; 0 if it is not.
    all: Vec<(u32, PartitionKeys)>,
}

impl Partitions {
    async fn find(redis: &Redis, stream: &str) -> Result<Self, StoreError> {
        let connection = redis.connect(Purpose::Other).await?;
        let layout = layout(&connection, stream).await?;
        let streams = layout.streams();
        let parts = streams.iter().map(|stream| layout.mode(stream).parts().unwrap_or(0));
        let keys = keys_of(&streams).map_err(|error| StoreError::Other {
            subject: format!("look at the parts of {stream}"),
            cause: error.to_string(),
        })?;
        Ok(Self { connection, all: parts.zip(keys).collect() })
    }

    async fn gauges(&self) -> Result<Vec<(u32, Gauges)>, StoreError> {
        let one = |(parts, keys): &'_ (u32, PartitionKeys)| {
            let (parts, keys, mut connection) = (*parts, keys.clone(), self.connection.clone());
            async move { Ok((parts, gauges(&mut connection, &keys).await?)) }
        };
        try_join_all(self.all.iter().map(one)).await
    }

    /// Whether the parts of each stream that is split have all its entries.
    async fn are_routed(&self, all: &[(u32, Gauges)]) -> Result<bool, StoreError> {
        for ((parts, keys), (_, gauges)) in self.all.iter().zip(all) {
            for part in 0..*parts {
                let part = part_of(keys.stream(), part);
                if routed(self.connection.clone(), &part).await? < gauges.last_generated {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

fn everything(from_ms: u64) -> DeadRange {
    DeadRange { endpoint: None, from_ms, until_ms: u64::MAX }
}

/// Entries that Redis says to have been trimmed before they were read. Nobody but Herald trims a Redis of our own.
pub async fn trimmed_unread(redis: &Redis, keys: &PartitionKeys) -> Result<u64> {
    let all = Partitions::find(redis, keys.stream()).await?.gauges().await.context("cannot look at the stream")?;
    // A stream that is split is read by no group.
    Ok(all.iter().filter(|(parts, _)| *parts == 0).map(|(_, gauges)| gauges.trimmed_unread).sum())
}

/// Reads what the ledger does not know: the dead letters since the load began, and what Herald still holds.
pub async fn gather(redis: &Redis, keys: &PartitionKeys, began_ms: u64, evidence: &mut Evidence) -> Result<()> {
    let Partitions { connection, all } = Partitions::find(redis, keys.stream()).await?;
    for (_, keys) in all {
        gather_of(Queries::new(connection.clone(), keys), began_ms, evidence).await?;
    }
    Ok(())
}

async fn gather_of(mut queries: Queries, began_ms: u64, evidence: &mut Evidence) -> Result<()> {
    /// Redis' clock may be another machine's.
    const CLOCKS_APART_MS: u64 = 60_000;
    let range = everything(began_ms.saturating_sub(CLOCKS_APART_MS));
    let mut after = None;
    loop {
        let page = queries.dead(&range, DeadOrder::OldestFirst, after.as_ref(), MAX_PAGE).await;
        let page = page.context("cannot read the dead letters")?;
        evidence.dead.extend(page.letters.iter().filter_map(|letter| letter.letter.as_ref().ok()).map(Dead::of));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    let walk = queries.unfinished_where(MOST_KEPT, |_| true).await.context("cannot read what is unfinished")?;
    let kept = walk.found.into_iter().filter_map(|one| one.delivery.ok());
    evidence.kept.extend(
        kept.map(|delivery| Kept { event: delivery.event.to_string(), endpoint: delivery.id.endpoint.to_string() }),
    );
    Ok(())
}
