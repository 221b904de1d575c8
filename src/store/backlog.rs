//! Reads an endpoint's backlog with plain commands: a record costs Redis half of what it costs within a script. It need
//! not be one step, because only the owner changes a partition, and the owner makes one call at a time. The lease is
//! fetched with the records: a term that holds it then has held it all along.

use std::str;

use bytes::Bytes;
use redis::Pipeline;
use tokio::time::timeout;

use super::{
    connection::{Connection, Subject, WORK_TIMEOUT},
    error::StoreError,
    keys::PartitionKeys,
    protocol::{Answer, Kept, MAX_READ_BYTES, Term},
};
use crate::facts::id::{DeliveryId, EndpointId, EntryId};

/// Records fetched at once: about 2 MiB if each holds the largest possible event.
const AT_ONCE: usize = 32;

pub(super) struct Look<'a> {
    pub keys: &'a PartitionKeys,
    pub term: &'a Term,
    pub endpoint: &'a EndpointId,
    pub after: EntryId,
    pub max: usize,
}

impl Look<'_> {
    /// Waits no longer than it would for the answer of a script.
    pub(super) async fn run(&self, connection: &mut Connection) -> Result<Answer, StoreError> {
        let backlog = self.keys.backlog(self.endpoint);
        let subject = Subject("look at", &backlog);
        let looked = timeout(WORK_TIMEOUT, self.answer(connection, subject)).await;
        looked.unwrap_or_else(|_| Err(StoreError::late(subject)))
    }

    /// The deliveries parked after the entry, up to [`MAX_READ_BYTES`] of records.
    async fn answer(&self, connection: &mut Connection, subject: Subject<'_>) -> Result<Answer, StoreError> {
        let ids = self.parked(connection, subject).await?;
        let (mut kept, mut bytes) = (Vec::<Kept>::with_capacity(ids.len()), 0);
        loop {
            let next = &ids[kept.len()..ids.len().min(kept.len() + AT_ONCE)];
            let Some((records, now_ms)) = self.records(connection, subject, next).await? else {
                return Ok(Answer::Lost);
            };
            for (id, record) in next.iter().zip(records) {
                bytes += record.as_ref().map_or(0, Bytes::len);
                kept.push((id.clone(), record));
                if bytes >= MAX_READ_BYTES {
                    break;
                }
            }
            if bytes >= MAX_READ_BYTES || kept.len() == ids.len() {
                return Ok(Answer::Backlog { kept, now_ms });
            }
        }
    }

    /// In the order of entry ids.
    async fn parked(&self, connection: &mut Connection, subject: Subject<'_>) -> Result<Vec<DeliveryId>, StoreError> {
        let mut range = redis::cmd("ZRANGEBYLEX");
        range.arg(subject.1).arg(format!("({}", self.after.padded())).arg("+").arg("LIMIT").arg(0).arg(self.max);
        // Anyone may have written there, so these need not be text.
        let entries: Vec<Vec<u8>> = connection.query(subject, &range).await?;
        let id = |entry: Vec<u8>| {
            let entry = str::from_utf8(&entry).ok().and_then(|entry| entry.parse().ok());
            let entry =
                entry.ok_or_else(|| StoreError::unexpected(subject, "it holds something that is not an entry's id"))?;
            Ok(DeliveryId { entry, endpoint: self.endpoint.clone() })
        };
        entries.into_iter().map(id).collect()
    }

    /// The records of these deliveries and Redis' time; `None` if the lease is lost. A record of a wrong type counts as
    /// gone.
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
        let (mut found, (s, us)): (Vec<Option<Vec<u8>>>, (u64, u64)) = connection.pipeline(subject, &both).await?;
        if found.len() != ids.len() + 1 {
            return Err(StoreError::unexpected(subject, "it does not have as many records as were asked for"));
        }
        let records = found.split_off(1).into_iter().map(|record| record.map(Bytes::from)).collect();
        let is_lost = found[0].as_deref() != Some(self.term.as_str().as_bytes());
        Ok((!is_lost).then_some((records, s * 1000 + us / 1000)))
    }
}
