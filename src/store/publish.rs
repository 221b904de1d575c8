//! Adds events for the operations API: each once within a while, by its id. Whoever gets no answer asks again, and nothing is
//! sent twice. Where the stream is split an event goes straight to the part of its account.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use sha2::{Digest, Sha256};
use tokio::time::sleep;

use super::{
    connection::{Connection, Purpose, Redis, Script, SharedConnection, Subject},
    error::StoreError,
    keys::PartitionKeys,
    partitions,
    queries::Queries,
    routing::{Replicas, wait, wanted},
};
use crate::{
    clock,
    facts::{
        event::Event,
        id::EntryId,
        partition::{Layout, Mode},
        traceparent::Traceparent,
    },
    telemetry::{
        calls::{Replicated, unconfirmed},
        traces::Publishing,
    },
};

/// For how long an event's id is remembered: a producer that got no answer asks again within seconds. Each takes some 150 bytes
/// of Redis' memory for that long.
pub const REMEMBERED_FOR: Duration = Duration::from_secs(600);

/// As much of a digest as tells one event from another by accident; nobody gains by making two alike.
const DIGEST_BYTES: usize = 12;

/// How long a part may be behind the stream above it until whoever publishes is asked to come again, and how often it is asked.
const PATIENCE: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_millis(50);

/// Replicas that did not confirm in time are waited for no longer than this, until they do: others need not wait for them each time.
const SHORT_WAIT_MS: u64 = 5;

static PUBLISH: LazyLock<Script> = LazyLock::new(|| {
    let shared = [include_str!("scripts/shared.lua"), include_str!("scripts/partition_shared.lua")];
    Script::assembled("publish", include_str!("scripts/publish.lua"), &shared)
});

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    Added(EntryId),
    /// It was added before.
    Known(EntryId),
    /// Another event with its id was added before. This one was not.
    Differs(EntryId),
}

/// Why it is not known of all events that they are there to stay. What was asked may be asked again.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PublishError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the stream is being split, and this part of it is not ready yet; some events may have been added")]
    NotReady,
    #[error("{confirmed} of {wanted} replicas have confirmed it in time")]
    NotReplicated { confirmed: u64, wanted: u8 },
}

/// An event, and the trace that it belongs to.
pub type Publication = (Event, Option<Traceparent>);

/// Publishes to one stream, or to its parts. Clones are one.
#[derive(Clone)]
pub struct EventPublisher {
    redis: Redis,
    connection: SharedConnection,
    replicas: Replicas,
    state: Arc<Mutex<State>>,
}

struct State {
    layout: Layout,
    /// Of each stream that is routed: its last entry when that was learned, behind which nobody publishes to it this way; and when.
    routed: BTreeMap<String, (EntryId, Instant)>,
    /// Streams whose replicas did not confirm the last time.
    behind: BTreeSet<String>,
}

impl State {
    /// The streams above an event's place, and that place: the first one that is not routed. One that is only being split still takes
    /// what is published, and passes it on once it is.
    fn path(&self, event: &Event) -> Vec<String> {
        let mut path = self.layout.path(&event.account);
        let is_routed = |stream: &String| matches!(self.layout.mode(stream), Mode::Routed { .. });
        let depth = path.iter().position(|stream| !is_routed(stream)).unwrap_or(path.len());
        path.truncate(depth + 1);
        path
    }
}

/// What one part said.
enum Said {
    Published(Vec<Published>),
    /// Its events go to its parts.
    Routed,
    /// It has not taken yet what was published above it.
    Behind,
}

impl EventPublisher {
    pub fn new(redis: Redis, root: &PartitionKeys, replicas: Replicas) -> Self {
        let state = State { layout: Layout::of_one(root.stream()), routed: BTreeMap::new(), behind: BTreeSet::new() };
        let connection = SharedConnection::new(redis.clone(), Purpose::Produce);
        Self { redis, connection, replicas, state: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds these in their order, those of one part in one step, and says how many replicas have confirmed all of them.
    pub async fn publish(&self, events: &[Publication]) -> Result<(Vec<Published>, u64), PublishError> {
        let began = clock::now();
        let mut published: Vec<Option<Published>> = vec![None; events.len()];
        let mut fewest = u64::MAX;
        loop {
            let open: Vec<usize> = (0..events.len()).filter(|at| published[*at].is_none()).collect();
            if open.is_empty() {
                break;
            }
            let mut by_part = BTreeMap::<Vec<String>, Vec<usize>>::new();
            {
                let state = self.state();
                for at in open {
                    by_part.entry(state.path(&events[at].0)).or_default().push(at);
                }
            }
            let parts = by_part.iter().map(|(path, all)| async move {
                let known = self.known_above(path, events, all).await?;
                let left: Vec<usize> = all.iter().copied().filter(|at| !known.contains_key(at)).collect();
                let (said, confirmed) = match left.is_empty() {
                    true => (Said::Published(Vec::new()), u64::MAX),
                    false => self.publish_in(path, &left.iter().map(|at| &events[*at]).collect::<Vec<_>>()).await?,
                };
                Ok::<_, StoreError>((known, left, said, confirmed))
            });
            let (mut is_routed, mut must_wait) = (false, false);
            let mut failed = None;
            for said in join_all(parts).await {
                match said {
                    Err(error) => failed = Some(error),
                    Ok((known, left, said, confirmed)) => {
                        known.into_iter().for_each(|(at, what)| published[at] = Some(what));
                        match said {
                            Said::Published(all) => {
                                fewest = fewest.min(confirmed);
                                left.into_iter().zip(all).for_each(|(at, what)| published[at] = Some(what));
                            }
                            Said::Routed => is_routed = true,
                            Said::Behind => must_wait = true,
                        }
                    }
                }
            }
            if let Some(error) = failed {
                return Err(error.into());
            }
            if (is_routed || must_wait) && clock::now() >= began + PATIENCE {
                return Err(PublishError::NotReady);
            }
            if is_routed {
                self.learn().await?;
            }
            if must_wait {
                sleep(AGAIN).await;
            }
        }
        let wanted = wanted(&self.redis, self.replicas);
        let confirmed = if fewest == u64::MAX { u64::from(wanted) } else { fewest };
        if confirmed < u64::from(wanted) {
            return Err(PublishError::NotReplicated { confirmed, wanted });
        }
        Ok((published.into_iter().flatten().collect(), confirmed))
    }

    /// Which of these were published to a stream above this part while it was not routed yet. Nobody is told so again after a while.
    async fn known_above(
        &self,
        path: &[String],
        events: &[Publication],
        all: &[usize],
    ) -> Result<BTreeMap<usize, Published>, StoreError> {
        let mut found = BTreeMap::new();
        let recent: Vec<String> = {
            let state = self.state();
            let is_recent = |stream: &&String| {
                state.routed.get(*stream).is_some_and(|(_, since)| clock::now() < *since + REMEMBERED_FOR)
            };
            path.iter().rev().skip(1).filter(is_recent).cloned().collect()
        };
        for stream in recent {
            let Ok(keys) = PartitionKeys::new(&stream) else { continue };
            let mut ask = redis::cmd("MGET");
            ask.arg(all.iter().map(|at| keys.published(&events[*at].0.id)).collect::<Vec<_>>());
            let subject = Subject("look for published events on", &stream);
            let before = async |mut connection: Connection| connection.query(subject, &ask).await;
            let before: Vec<Option<String>> = self.connection.with(before).await?;
            for (at, text) in all.iter().zip(before) {
                let known = text.as_deref().and_then(|text| text.split_once(' '));
                let entry = known.and_then(|(entry, digest)| Some((entry.parse().ok()?, digest)));
                if let Some((entry, digest)) = entry {
                    let is_same = digest == digest_of(&events[*at].0);
                    found.insert(*at, if is_same { Published::Known(entry) } else { Published::Differs(entry) });
                }
            }
        }
        Ok(found)
    }

    /// The layout as it is now.
    async fn learn(&self) -> Result<(), StoreError> {
        let root = self.state().layout.root().to_owned();
        let layout = async |connection: Connection| partitions::layout(&connection, &root).await;
        let layout = self.connection.with(layout).await?;
        let is_routed = |stream: &String| matches!(layout.mode(stream), Mode::Routed { .. });
        let routed: Vec<String> = layout.streams().into_iter().filter(is_routed).collect();
        for stream in routed {
            if self.state().routed.contains_key(&stream) {
                continue;
            }
            let Ok(keys) = PartitionKeys::new(&stream) else { continue };
            let look = async |connection: Connection| Queries::new(connection, keys.clone()).stream().await;
            let last = self.connection.with(look).await?.map_or(EntryId::ZERO, |look| look.last_generated);
            self.state().routed.insert(stream, (last, clock::now()));
        }
        self.state().layout = layout;
        Ok(())
    }

    /// Adds these to the last stream of the path; says how many replicas have them.
    async fn publish_in(&self, path: &[String], events: &[&Publication]) -> Result<(Said, u64), StoreError> {
        let stream = path.last().map_or("", String::as_str);
        let subject = Subject("publish events on", stream);
        let keys = PartitionKeys::new(stream).map_err(|error| StoreError::unexpected(subject, error))?;
        let (above, are_behind) = {
            let state = self.state();
            let above = path.iter().rev().nth(1).and_then(|above| state.routed.get(above));
            (above.map_or_else(String::new, |(last, _)| last.to_string()), state.behind.contains(stream))
        };
        let names = [keys.stream(), &keys.mode(), &keys.gate(), &keys.routed()];
        let mut call = PUBLISH.keys(&names).arg(keys.prefix()).arg(REMEMBERED_FOR.as_millis() as u64).arg(above);
        let mut publishing = Vec::with_capacity(events.len());
        for (event, traceparent) in events {
            let begun = Publishing::begin(&event.id, traceparent.as_ref());
            let own = begun.as_ref().and_then(Publishing::traceparent);
            publishing.push(begun);
            let traceparent = own.as_ref().or(traceparent.as_ref()).map_or("", Traceparent::as_str);
            call = call.arg(event.id.as_str()).arg(digest_of(event)).arg(event.body().as_ref()).arg(traceparent);
        }
        let timeout_ms = if are_behind { SHORT_WAIT_MS } else { self.replicas.timeout.as_millis() as u64 };
        let calls = [call];
        let run = async |mut connection: Connection| {
            // Whoever connects first finds out whether there are replicas.
            let wanted = wanted(&self.redis, self.replicas);
            let then = (wanted > 0).then(|| wait(wanted, timeout_ms));
            let (answers, here) = connection.run_each(subject, &calls, false, then.as_ref()).await?;
            Ok((answers, here, wanted))
        };
        let (mut answers, here, wanted): (Vec<_>, Option<u64>, u8) = self.connection.with(run).await?;
        let answer = answers.pop().unwrap_or_else(|| Err(StoreError::unexpected(subject, "no answer")))?;
        let answer: Vec<String> =
            redis::from_redis_value(answer).map_err(|error| StoreError::unexpected(subject, error))?;
        match answer.as_slice() {
            [word] if word == "ROUTED" => return Ok((Said::Routed, u64::MAX)),
            [word] if word == "BEHIND" => return Ok((Said::Behind, u64::MAX)),
            _ => {}
        }
        let confirmed = here.unwrap_or(0);
        if confirmed < u64::from(wanted) {
            self.state().behind.insert(stream.to_owned());
            unconfirmed(Replicated::Published, events.len());
        } else {
            self.state().behind.remove(stream);
        }
        let published = answer.chunks(2).map(read).collect::<Option<Vec<_>>>().filter(|all| all.len() == events.len());
        let published = published.ok_or_else(|| StoreError::unexpected(subject, format_args!("{answer:?}")))?;
        for (begun, published) in publishing.into_iter().zip(&published) {
            // What was there before has its span.
            if let (Some(begun), Published::Added(entry)) = (begun, published) {
                begun.ended(keys.stream(), *entry);
            }
        }
        Ok((Said::Published(published), confirmed))
    }
}

fn read(pair: &[String]) -> Option<Published> {
    let [what, entry] = pair else { return None };
    let entry = entry.parse().ok()?;
    match what.as_str() {
        "added" => Some(Published::Added(entry)),
        "known" => Some(Published::Known(entry)),
        "differs" => Some(Published::Differs(entry)),
        _ => None,
    }
}

fn digest_of(event: &Event) -> String {
    hex::encode(&Sha256::digest(event.body())[..DIGEST_BYTES])
}
