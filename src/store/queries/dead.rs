//! Dead letters by their indexes: all of them or those of one endpoint, within a span of time, a page at a time.

use super::{CHUNK, MAX_PAGE, Queries};
use crate::{
    facts::{
        delivery::DeadLetter,
        id::{DeliveryId, EndpointId},
    },
    store::error::StoreError,
};

/// Which dead letters: both times included, ms since 1970 by Redis' clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadRange {
    pub endpoint: Option<EndpointId>,
    pub from_ms: u64,
    pub until_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeadOrder {
    OldestFirst,
    NewestFirst,
}

/// Just behind the last letter of a page. Letters that come or go meanwhile neither repeat nor hide others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadCursor {
    pub(super) at_ms: u64,
    pub(super) id: String,
}

impl DeadCursor {
    pub fn new(at_ms: u64, id: &DeliveryId) -> Self {
        Self { at_ms, id: id.to_string() }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Letter {
    pub id: DeliveryId,
    pub at_ms: u64,
    /// Or why it cannot be read.
    pub letter: Result<DeadLetter, String>,
}

impl Letter {
    pub(super) fn removed(id: DeliveryId, at_ms: u64) -> Self {
        Self { id, at_ms, letter: Err("it was removed while the list was made".to_owned()) }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct DeadPage {
    pub letters: Vec<Letter>,
    /// `None` after the last page.
    pub next: Option<DeadCursor>,
}

impl Queries {
    /// How many dead letters are in the range. Exact and cheap: the index counts them.
    pub async fn count_dead(&mut self, range: &DeadRange) -> Result<u64, StoreError> {
        let mut command = redis::cmd("ZCOUNT");
        command.arg(self.dead_index(range)).arg(range.from_ms).arg(range.until_ms);
        self.connection.query("count the dead letters", &command).await
    }

    /// At most `max` letters after the cursor.
    pub async fn dead(
        &mut self,
        range: &DeadRange,
        order: DeadOrder,
        after: Option<&DeadCursor>,
        max: usize,
    ) -> Result<DeadPage, StoreError> {
        let max = max.clamp(1, MAX_PAGE);
        let found = self.dead_ids(range, order, after, max).await?;
        let next = match found.len() == max {
            true => found.last().map(|(id, at_ms)| DeadCursor { at_ms: *at_ms, id: id.clone() }),
            false => None,
        };
        // Herald writes nothing here but delivery ids, so there is nothing to show of anything else.
        let ids = found.into_iter().filter_map(|(id, at_ms)| Some((id.parse().ok()?, at_ms))).collect();
        Ok(DeadPage { letters: self.letters(ids).await?, next })
    }

    pub async fn dead_letter(&mut self, id: &DeliveryId) -> Result<Option<Letter>, StoreError> {
        let mut command = redis::cmd("ZSCORE");
        command.arg(self.keys.dead()).arg(id.to_string());
        let at: Option<f64> = self.connection.query("look for the dead letter", &command).await?;
        match at {
            Some(at) => Ok(self.letters(vec![(id.clone(), at as u64)]).await?.pop()),
            None => Ok(None),
        }
    }

    /// Ids with their times after the cursor. Many letters may share a millisecond; they are told apart by their id,
    /// which is the index's own order.
    async fn dead_ids(
        &mut self,
        range: &DeadRange,
        order: DeadOrder,
        after: Option<&DeadCursor>,
        max: usize,
    ) -> Result<Vec<(String, u64)>, StoreError> {
        let is_new = |id: &str, at_ms: u64| {
            after.is_none_or(|after| match order {
                DeadOrder::OldestFirst => (at_ms, id) > (after.at_ms, after.id.as_str()),
                DeadOrder::NewestFirst => (at_ms, id) < (after.at_ms, after.id.as_str()),
            })
        };
        let (mut found, mut offset) = (Vec::new(), 0);
        while found.len() < max {
            let mut command = redis::cmd("ZRANGE");
            command.arg(self.dead_index(range));
            match order {
                DeadOrder::OldestFirst => {
                    let from = after.map_or(range.from_ms, |cursor| cursor.at_ms.max(range.from_ms));
                    command.arg(from).arg(range.until_ms).arg("BYSCORE");
                }
                DeadOrder::NewestFirst => {
                    let until = after.map_or(range.until_ms, |cursor| cursor.at_ms.min(range.until_ms));
                    command.arg(until).arg(range.from_ms).arg("BYSCORE").arg("REV");
                }
            }
            command.arg("LIMIT").arg(offset).arg(MAX_PAGE).arg("WITHSCORES");
            let page: Vec<(String, f64)> = self.connection.query("list the dead letters", &command).await?;
            let is_last = page.len() < MAX_PAGE;
            offset += page.len();
            let page = page.into_iter().map(|(id, at)| (id, at as u64)).filter(|(id, at)| is_new(id, *at));
            found.extend(page.take(max - found.len()));
            if is_last {
                break;
            }
        }
        Ok(found)
    }

    /// These letters, whole.
    pub async fn letters(&mut self, ids: Vec<(DeliveryId, u64)>) -> Result<Vec<Letter>, StoreError> {
        let found = self.letters_there(&ids).await?;
        let letter = |((id, at_ms), found): (_, Option<Letter>)| found.unwrap_or_else(|| Letter::removed(id, at_ms));
        Ok(ids.into_iter().zip(found).map(letter).collect())
    }

    /// The same; None where there is none.
    pub(super) async fn letters_there(&mut self, ids: &[(DeliveryId, u64)]) -> Result<Vec<Option<Letter>>, StoreError> {
        let mut letters = Vec::with_capacity(ids.len());
        for chunk in ids.chunks(CHUNK) {
            let keys: Vec<String> = chunk.iter().map(|(id, _)| self.keys.dead_letter(id)).collect();
            let records = self.values("read dead letters", &keys).await?;
            letters.extend(chunk.iter().zip(records).map(|((id, at_ms), record)| {
                let letter = DeadLetter::from_record(&record?).map_err(|error| error.to_string());
                Some(Letter { id: id.clone(), at_ms: *at_ms, letter })
            }));
        }
        Ok(letters)
    }

    fn dead_index(&self, range: &DeadRange) -> String {
        range.endpoint.as_ref().map_or_else(|| self.keys.dead(), |endpoint| self.keys.dead_of(endpoint))
    }
}
