//! Which streams there are: one, or those that it was split into. The authority for each is `mode` in its own slot; what the registry's
//! slot has of it is a hint, by which a worker learns of all of them with one command.

use std::collections::{BTreeMap, HashMap};

use futures_util::future::{join_all, try_join_all};

use super::{
    connection::{Connection, Subject},
    error::StoreError,
    keys::{KeyError, PartitionKeys, WorkerKeys},
};
use crate::facts::{
    id::EntryId,
    partition::{Layout, MAX_PARTS, Mode},
};

/// What became of the entries of this stream and of all its parts, as their modes say: one look at each.
pub async fn layout(connection: &Connection, root: &str) -> Result<Layout, StoreError> {
    let mut layout = Layout::of_one(root);
    let mut unasked = vec![root.to_owned()];
    while !unasked.is_empty() {
        let modes = try_join_all(unasked.iter().map(|stream| mode(connection.clone(), stream))).await?;
        let asked = std::mem::take(&mut unasked);
        unasked = asked.iter().zip(modes).flat_map(|(stream, mode)| layout.learn(stream, mode)).collect();
    }
    Ok(layout)
}

/// The same as far as their slots answer, with those whose slot does not: of these it is as the hint has it. An error where the root
/// does not answer and there is no hint of its parts.
pub async fn seen(connection: &Connection, root: &str) -> Result<(Layout, BTreeMap<String, StoreError>), StoreError> {
    let (mut layout, mut away) = (Layout::of_one(root), BTreeMap::new());
    let (mut unasked, mut hints) = (vec![root.to_owned()], None::<Layout>);
    while !unasked.is_empty() {
        let asked = std::mem::take(&mut unasked);
        let modes = join_all(asked.iter().map(|stream| mode(connection.clone(), stream))).await;
        for (stream, mode) in asked.into_iter().zip(modes) {
            let mode = match mode {
                Ok(mode) => mode,
                Err(error @ StoreError::Unavailable { .. }) => {
                    if hints.is_none() {
                        hints = Some(hinted(&mut connection.clone(), root).await.unwrap_or_default());
                    }
                    let mode = hints.as_ref().map(|hints| hints.mode(&stream).clone()).unwrap_or_default();
                    if stream == root && mode == Mode::Worked {
                        return Err(error);
                    }
                    away.insert(stream.clone(), error);
                    mode
                }
                Err(error) => return Err(error),
            };
            unasked.extend(layout.learn(&stream, mode));
        }
    }
    Ok((layout, away))
}

/// The streams that this one is a part of, the next one first.
pub async fn above(connection: &Connection, part: &str) -> Result<Vec<PartitionKeys>, StoreError> {
    let (mut above, mut stream) = (Vec::new(), part);
    while let Some((parent, number)) = stream.rsplit_once(':') {
        let (Ok(keys), Ok(number)) = (PartitionKeys::new(parent), number.parse::<u32>()) else { break };
        match mode(connection.clone(), parent).await? {
            Mode::Routed { parts, .. } if number < parts => above.push(keys),
            _ => break,
        }
        stream = parent;
    }
    Ok(above)
}

/// Why there is no such part, if its name is that of a part which the stream above does not have.
pub async fn no_such_part(connection: &Connection, part: &str) -> Result<Option<String>, StoreError> {
    let Some((above, number)) = part.rsplit_once(':') else { return Ok(None) };
    let Ok(number) = number.parse::<u32>() else { return Ok(None) };
    match mode(connection.clone(), above).await? {
        Mode::Routed { parts, .. } if number >= parts => {
            Ok(Some(format!("{above} is split into {parts} parts: there is no {part}")))
        }
        Mode::Worked => {
            let is_there = async |name: &str| {
                let exists = redis::cmd("EXISTS").arg(name).to_owned();
                connection.clone().query::<bool>(Subject("look for", name), &exists).await
            };
            let is_missing = is_there(above).await? && !is_there(part).await?;
            Ok(is_missing.then(|| format!("{above} is not split: there is no {part}")))
        }
        _ => Ok(None),
    }
}

/// What becomes of the entries of this stream alone.
pub async fn mode(mut connection: Connection, stream: &str) -> Result<Mode, StoreError> {
    let subject = Subject("ask for the mode of", stream);
    let keys = PartitionKeys::new(stream).map_err(|error| StoreError::unexpected(subject, error))?;
    let text: Option<String> = connection.query(subject, redis::cmd("GET").arg(keys.mode())).await?;
    Mode::parse(text.as_deref()).map_err(|error| StoreError::unexpected(subject, error))
}

/// The last entry of the stream above that this part has taken or was told is not for it.
pub async fn routed(mut connection: Connection, part: &str) -> Result<EntryId, StoreError> {
    let subject = Subject("ask how far its stream is routed to", part);
    let keys = PartitionKeys::new(part).map_err(|error| StoreError::unexpected(subject, error))?;
    let text: Option<String> = connection.query(subject, redis::cmd("GET").arg(keys.routed())).await?;
    let id = text.map_or(Ok(EntryId::ZERO), |text| text.parse());
    id.map_err(|error| StoreError::unexpected(subject, error))
}

/// The same as the hint has it: of each stream that is routed, into how many parts. It may lack what was split a moment ago. What
/// cannot be is passed over: no mode says so.
pub async fn hinted(connection: &mut Connection, root: &str) -> Result<Layout, StoreError> {
    let ask = redis::cmd("HGETALL").arg(WorkerKeys::PARTITIONS).to_owned();
    let all: HashMap<String, String> = connection.query("ask which partitions there are", &ask).await?;
    let mut layout = Layout::of_one(root);
    let mut streams = vec![root.to_owned()];
    while let Some(stream) = streams.pop() {
        let parts = all.get(&stream).and_then(|parts| parts.parse().ok());
        let most = MAX_PARTS / layout.above(&stream);
        if let Some(parts) = parts.filter(|parts| (2..=most).contains(parts)) {
            let mode = Mode::Routed { parts, token: String::new(), barrier: EntryId::ZERO };
            streams.extend(layout.learn(&stream, mode));
        }
    }
    Ok(layout)
}

/// Has the hint say that the stream is routed into so many parts.
pub async fn hint(connection: &mut Connection, stream: &str, parts: u32) -> Result<(), StoreError> {
    let mut tell = redis::cmd("HSET");
    tell.arg(WorkerKeys::PARTITIONS).arg(stream).arg(parts);
    connection.query(Subject("tell of the partitions of", stream), &tell).await
}

/// The keys of these streams, which are a layout's: a part's name is as good as that of its stream, unless it is too long.
pub fn keys_of(streams: &[String]) -> Result<Vec<PartitionKeys>, KeyError> {
    streams.iter().map(|stream| PartitionKeys::new(stream)).collect()
}
