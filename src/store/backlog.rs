//! A look at an endpoint's backlog, by plain commands: Redis reads a record for half of what it costs within a script. It
//! need not be one step, as nothing of a partition changes but by its owner, who makes one call at a time. The lease is
//! fetched with the records: a term that holds then has held all the while.

use bytes::Bytes;
use redis::Pipeline;

use super::{
    connection::{Connection, Subject},
    error::StoreError,
    keys::PartitionKeys,
    protocol::{Answer, Kept, MAX_READ_BYTES, Term},
};
use crate::facts::id::{DeliveryId, EndpointId, EntryId};

/// Records that are fetched while none of their sizes is known.
const FIRST: usize = 16;

pub(super) struct Look<'a> {
    pub keys: &'a PartitionKeys,
    pub term: &'a Term,
    pub endpoint: &'a EndpointId,
    pub after: EntryId,
    pub max: usize,
}

impl Look<'_> {
    pub(super) async fn run(&self, connection: &mut Connection) -> Result<Answer, StoreError> {
        let backlog = self.keys.backlog(self.endpoint);
        let subject = Subject("look at", &backlog);
        let mut waiting = self.parked(connection, subject).await?.into_iter();
        let mut kept: Vec<Kept> = Vec::with_capacity(waiting.len());
        let (mut bytes, mut largest, mut few) = (0, 1, FIRST);
        loop {
            let ids: Vec<DeliveryId> = waiting.by_ref().take(few).collect();
            let (records, now_ms) = match self.records(connection, subject, &ids).await? {
                Some(found) => found,
                None => return Ok(Answer::Lost),
            };
            for (id, record) in ids.into_iter().zip(records) {
                let size = record.as_ref().map_or(0, Bytes::len);
                (bytes, largest) = (bytes + size, largest.max(size));
                kept.push((id, record));
                if bytes >= MAX_READ_BYTES {
                    break;
                }
            }
            if bytes >= MAX_READ_BYTES || waiting.len() == 0 {
                return Ok(Answer::Backlog { kept, now_ms });
            }
            few = ((MAX_READ_BYTES - bytes) / largest).max(1);
        }
    }

    /// What is parked, by entry id.
    async fn parked(&self, connection: &mut Connection, subject: Subject<'_>) -> Result<Vec<DeliveryId>, StoreError> {
        let mut range = redis::cmd("ZRANGEBYLEX");
        range.arg(subject.1).arg(format!("({}", self.after.padded())).arg("+");
        range.arg("LIMIT").arg(0).arg(self.max);
        let entries: Vec<String> = connection.query(subject, &range).await?;
        let id = |entry: String| match entry.parse() {
            Ok(entry) => Ok(DeliveryId { entry, endpoint: self.endpoint.clone() }),
            Err(error) => Err(StoreError::unexpected(subject, error)),
        };
        entries.into_iter().map(id).collect()
    }

    /// The records of these, and Redis' time; `None` if the lease is lost. A record of a wrong type counts as gone.
    async fn records(
        &self,
        connection: &mut Connection,
        subject: Subject<'_>,
        ids: &[DeliveryId],
    ) -> Result<Option<(Vec<Option<Bytes>>, u64)>, StoreError> {
        let mut fetch = redis::cmd("MGET");
        fetch.arg(self.keys.lease());
        for id in ids {
            fetch.arg(self.keys.delivery(id));
        }
        let both = Pipeline::with_capacity(2).add_command(fetch).cmd("TIME").to_owned();
        let (found, (s, us)): (Vec<Option<Vec<u8>>>, (u64, u64)) = connection.pipeline(subject, &both).await?;
        let mut found = found.into_iter().map(|value| value.map(Bytes::from));
        match found.next().flatten() {
            Some(lease) if lease == self.term.as_str() => Ok(Some((found.collect(), s * 1000 + us / 1000))),
            _ => Ok(None),
        }
    }
}
