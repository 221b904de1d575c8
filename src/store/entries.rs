//! The stream as its producers see it, and people who look for an event: adds entries, reads single ones, searches
//! backwards within a limit. Never touches the group or a companion key.

use std::time::Duration;

use bytes::Bytes;

use super::{
    connection::{Connection, Subject},
    error::StoreError,
    keys::PartitionKeys,
};
use crate::facts::{
    event::{Event, MAX_EVENT_BYTES},
    id::{EntryId, EventId},
    traceparent::Traceparent,
};
use crate::telemetry::traces::Publishing;

/// Entries in one page of a search: 6 MiB with the largest events.
const PAGE: usize = 100;

/// The most hits of one search. An event is there more than once if its producer repeats itself.
const MAX_HITS: usize = 10;

/// An entry as it lies in the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamEntry {
    pub id: EntryId,
    pub fields: Vec<(Bytes, Bytes)>,
}

impl StreamEntry {
    pub fn field(&self, name: &str) -> Option<&Bytes> {
        self.fields.iter().find(|(field, _)| field == name.as_bytes()).map(|(_, value)| value)
    }

    fn holds(&self, id: &EventId) -> bool {
        let Some(body) = self.field("event").filter(|body| body.len() <= MAX_EVENT_BYTES) else { return false };
        // Parsing every entry would cost ten times as much as looking for the text first.
        let wanted = id.as_str().as_bytes();
        let mentions = body.windows(wanted.len()).any(|window| window == wanted);
        mentions && Event::parse(body.clone()).is_ok_and(|event| event.id == *id)
    }
}

/// What a search has found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Search {
    /// Newest first.
    pub hits: Vec<StreamEntry>,
    pub looked_at: u64,
    /// The oldest entry that was looked at.
    pub back_to: Option<EntryId>,
    /// The search reached the stream's beginning.
    pub is_whole: bool,
}

/// A partition's stream through one connection.
pub struct Entries {
    connection: Connection,
    keys: PartitionKeys,
}

impl Entries {
    pub fn new(connection: Connection, keys: PartitionKeys) -> Self {
        Self { connection, keys }
    }

    /// Adds an event. Not repeated when the answer is lost: the producer decides whether to risk a second one.
    pub async fn add(&mut self, event: &Event, traceparent: Option<&Traceparent>) -> Result<EntryId, StoreError> {
        let subject = Subject("add an event to", self.keys.stream());
        let publishing = Publishing::begin(&event.id, traceparent);
        let own = publishing.as_ref().and_then(Publishing::traceparent);
        let mut command = redis::cmd("XADD");
        command.arg(self.keys.stream()).arg("*").arg("event").arg(event.body().as_ref());
        if let Some(traceparent) = own.as_ref().or(traceparent) {
            command.arg("traceparent").arg(traceparent.as_str());
        }
        let id: String = self.connection.query(subject, &command).await?;
        let entry = id.parse().map_err(|error| StoreError::unexpected(subject, error))?;
        if let Some(publishing) = publishing {
            publishing.ended(self.keys.stream(), entry);
        }
        Ok(entry)
    }

    /// Adds many events, byte for byte, in one transaction: all of them in this order, or none. The bytes are not
    /// checked. After [`StoreError::Unavailable`] nobody knows which of the two happened.
    pub async fn add_all(&mut self, bodies: &[Bytes]) -> Result<Vec<EntryId>, StoreError> {
        let subject = Subject("add events to", self.keys.stream());
        let mut commands = redis::Pipeline::with_capacity(bodies.len());
        commands.atomic();
        for body in bodies {
            commands.cmd("XADD").arg(self.keys.stream()).arg("*").arg("event").arg(body.as_ref());
        }
        let ids: Vec<String> = self.connection.pipeline(subject, &commands).await?;
        ids.iter().map(|id| id.parse().map_err(|error| StoreError::unexpected(subject, error))).collect()
    }

    /// Whether so many replicas have what this connection has added; they are waited for no longer than this. Only for a connection
    /// that is at home in the stream's slot: of any other the answer would be about another node.
    pub async fn are_on(&mut self, replicas: u8, patience: Duration) -> Result<bool, StoreError> {
        if replicas == 0 {
            return Ok(true);
        }
        let subject = Subject("wait for the replicas of", self.keys.stream());
        let wait = redis::cmd("WAIT").arg(replicas).arg(patience.as_millis() as u64).to_owned();
        let here: u64 = self.connection.query(subject, &wait).await?;
        Ok(here >= u64::from(replicas))
    }

    pub async fn get(&mut self, id: EntryId) -> Result<Option<StreamEntry>, StoreError> {
        let id = id.to_string();
        let command = redis::cmd("XRANGE").arg(self.keys.stream()).arg(&id).arg(&id).to_owned();
        Ok(self.read(&command).await?.pop())
    }

    /// The oldest entries after this one.
    pub async fn after(&mut self, after: EntryId, most: usize) -> Result<Vec<StreamEntry>, StoreError> {
        if after == EntryId::MAX {
            return Ok(Vec::new());
        }
        let mut command = redis::cmd("XRANGE");
        command.arg(self.keys.stream()).arg(format!("({after}")).arg("+").arg("COUNT").arg(most);
        self.read(&command).await
    }

    /// Looks for an event by its own id, from the newest entry backwards, through at most `most` entries.
    pub async fn search(&mut self, id: &EventId, most: u64) -> Result<Search, StoreError> {
        let mut search = Search::default();
        let mut end = "+".to_owned();
        while search.looked_at < most && search.hits.len() < MAX_HITS {
            let count = u64::min(PAGE as u64, most - search.looked_at);
            let mut command = redis::cmd("XREVRANGE");
            command.arg(self.keys.stream()).arg(&end).arg("-").arg("COUNT").arg(count);
            let page = self.read(&command).await?;
            let Some(last) = page.last().map(|entry| entry.id) else {
                search.is_whole = true;
                break;
            };
            end = format!("({last}");
            search.looked_at += page.len() as u64;
            search.back_to = Some(last);
            search.is_whole = (page.len() as u64) < count;
            search.hits.extend(page.into_iter().filter(|entry| entry.holds(id)));
            if search.is_whole {
                break;
            }
        }
        Ok(search)
    }

    async fn read(&mut self, command: &redis::Cmd) -> Result<Vec<StreamEntry>, StoreError> {
        let subject = Subject("read entries of", self.keys.stream());
        let found: Vec<(String, Vec<(Bytes, Bytes)>)> = self.connection.query(subject, command).await?;
        let entry = |(id, fields): (String, Vec<(Bytes, Bytes)>)| {
            let id = id.parse().map_err(|error| StoreError::unexpected(subject, error))?;
            Ok(StreamEntry { id, fields })
        };
        found.into_iter().map(entry).collect()
    }
}
