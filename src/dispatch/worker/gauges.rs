//! Looks at the partition's numbers alongside the work, and sees to it that a Redis that has just started has a whole
//! append-only file. What the numbers mean is up to `numbers`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{Notify, watch},
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    clock,
    config::compact,
    facts::id::EntryId,
    store::{
        connection::{Connection, Purpose, Redis},
        error::StoreError,
        keys::PartitionKeys,
        queries::Queries,
        watch::{Gauges, gauges},
    },
};

/// How often the numbers of the partition are looked at, and while none of them changes and nothing waits: whatever this worker does
/// has them looked at sooner.
const GAUGES_EVERY: Duration = Duration::from_secs(1);
const GAUGES_SELDOM_EVERY: Duration = Duration::from_secs(10);

/// The part of the time that looks may take; there is a look at least this often. Redis copies the stream's first and last
/// entry to tell its numbers: with 200 MB that holds it for three seconds, and with a look a second nothing else would get
/// done.
const GAUGES_PART: u32 = 20;
const GAUGES_AT_LEAST_EVERY: Duration = Duration::from_secs(30);

/// How often the oldest unfinished delivery is looked for, and among how many endpoints: those with most of them.
const OLDEST_EVERY: Duration = Duration::from_secs(15);
const MAX_BUSY: usize = 1_000;
const MAX_OLDEST: usize = 50;

/// A server younger than this may have been killed just before it started, for all that a new worker knows.
const FRESH_S: u64 = 300;

/// From when on this machine's clock and Redis' are told to differ, and how often.
const CLOCK_OFF_MS: u64 = 2_000;
const CLOCK_TOLD_EVERY: Duration = Duration::from_secs(60);

/// One look.
#[derive(Debug, Clone)]
pub struct Seen {
    pub at: Instant,
    pub gauges: Gauges,
    /// This machine's clock, less Redis' clock; 0 where they may agree.
    pub clock_offset_ms: i64,
    /// Of the unfinished deliveries that have a record.
    pub oldest_unfinished: Option<EntryId>,
}

/// Looks at the partition's numbers again and again; None while Redis does not answer.
pub async fn watch_gauges(
    redis: Redis,
    keys: PartitionKeys,
    numbers: watch::Sender<Option<Seen>>,
    stir: Arc<Notify>,
    cancel: CancellationToken,
) {
    let (mut connection, mut server, mut is_mended) = (None, None, false);
    let (mut pause, mut more) = (Duration::ZERO, Duration::ZERO);
    let mut oldest: Option<(Instant, Option<EntryId>)> = None;
    let mut clock_told: Option<Instant> = None;
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            () = sleep(pause) => {}
        }
        // What it may rest beyond that, unless somebody is at work.
        tokio::select! {
            () = cancel.cancelled() => return,
            () = stir.notified() => {}
            () = sleep(more) => {}
        }
        if connection.is_none() {
            connection = redis.connect(Purpose::Other).await.ok();
            is_mended = false;
        }
        if let (Some(connection), false) = (&mut connection, is_mended) {
            is_mended = mend_aof(connection, &mut server).await;
        }
        let began = clock::now();
        let seen = match &mut connection {
            Some(connection) => look(connection, &keys, began, &mut oldest).await.ok(),
            None => None,
        };
        tell_of_clock(seen.as_ref(), &mut clock_told);
        pause = match seen {
            Some(_) => pause_after(clock::now() - began),
            None => GAUGES_EVERY,
        };
        let is_still = seen.as_ref().is_some_and(|seen| is_still(numbers.borrow().as_ref(), seen));
        more = if is_still { GAUGES_SELDOM_EVERY.saturating_sub(pause) } else { Duration::ZERO };
        if seen.is_none() {
            connection = None;
        }
        numbers.send_replace(seen);
    }
}

/// Nothing waits there, and nothing has changed since the last look.
fn is_still(last: Option<&Seen>, seen: &Seen) -> bool {
    let steady = |gauges: &Gauges| Gauges {
        // Of the server, or of what goes on by itself.
        now_ms: 0,
        used_memory_bytes: 0,
        evicted_keys: 0,
        ..gauges.clone()
    };
    let has_nothing = seen.gauges.behind + seen.gauges.pending + seen.gauges.unfinished + seen.gauges.requests == 0;
    has_nothing && last.is_some_and(|last| steady(&last.gauges) == steady(&seen.gauges))
}

async fn look(
    connection: &mut Connection,
    keys: &PartitionKeys,
    at: Instant,
    oldest: &mut Option<(Instant, Option<EntryId>)>,
) -> Result<Seen, StoreError> {
    let before_ms = clock::wall_ms();
    let gauges = gauges(connection, keys).await?;
    let clock_offset_ms = clock::ahead_ms(before_ms, gauges.now_ms, clock::wall_ms());
    let is_fresh = oldest.is_some_and(|(looked, _)| at.saturating_duration_since(looked) < OLDEST_EVERY);
    let oldest_unfinished = match (gauges.unfinished, *oldest) {
        (0, _) => None,
        (_, Some((_, entry))) if is_fresh => entry,
        _ => {
            let mut queries = Queries::new(connection.clone(), keys.clone());
            let mut busy = queries.busy_endpoints(MAX_BUSY).await?;
            busy.truncate(MAX_OLDEST);
            let found = queries.oldest(&busy).await?;
            let entry = found.into_iter().filter_map(|one| Some(one.oldest?.entry)).min();
            *oldest = Some((at, entry));
            entry
        }
    };
    Ok(Seen { at, gauges, clock_offset_ms, oldest_unfinished })
}

/// Receivers refuse signatures that are minutes off, and nothing in their answers says why.
fn tell_of_clock(seen: Option<&Seen>, told: &mut Option<Instant>) {
    let Some(seen) = seen.filter(|seen| seen.clock_offset_ms.unsigned_abs() >= CLOCK_OFF_MS) else { return };
    if told.is_none_or(|told| seen.at.saturating_duration_since(told) >= CLOCK_TOLD_EVERY) {
        *told = Some(seen.at);
        let by = compact(Duration::from_millis(seen.clock_offset_ms.unsigned_abs()));
        let side = if seen.clock_offset_ms > 0 { "ahead of" } else { "behind" };
        warn!(
            "this machine's clock is {by} {side} Redis': set both by NTP, or receivers may refuse what is signed here"
        );
    }
}

/// How long after a look the next one is made.
fn pause_after(look: Duration) -> Duration {
    (look * GAUGES_PART).clamp(GAUGES_EVERY, GAUGES_AT_LEAST_EVERY)
}

/// A server that has started again, now or shortly before us, may have been killed: its append-only file is made whole.
/// `known` is the server already dealt with; one that is still loading or refuses is dealt with on the next connection.
async fn mend_aof(connection: &mut Connection, known: &mut Option<String>) -> bool {
    let Ok(info) = connection.server_info().await else { return false };
    if info.is_loading {
        return false;
    }
    let is_new = known.as_ref().map_or(info.uptime_s < FRESH_S, |id| *id != info.run_id);
    if is_new && info.aof_enabled {
        match connection.rewrite_aof(&info.run_id).await {
            Ok(true) => info!("Redis has started lately, as {}; it writes its append-only file afresh", info.run_id),
            Ok(false) => {}
            Err(StoreError::Unavailable { .. }) => return false,
            Err(error) => warn!(%error, "run BGREWRITEAOF: Redis has started anew, and its file may have a loose end"),
        }
    }
    *known = Some(info.run_id);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_nothing_waits_and_nothing_changes_looks_are_made_seldom() {
        let seen = |gauges| Seen { at: clock::now(), gauges, clock_offset_ms: 0, oldest_unfinished: None };
        let quiet = Gauges { length: 3, dead: 2, now_ms: 7, ..Gauges::default() };
        let later = seen(Gauges { now_ms: 9, used_memory_bytes: 5, ..quiet.clone() });
        assert!(!is_still(None, &later) && is_still(Some(&seen(quiet.clone())), &later));
        for gauges in [
            Gauges { length: 4, ..quiet.clone() },
            Gauges { dead: 1, ..quiet.clone() },
            Gauges { maxmemory_bytes: 1, ..quiet.clone() },
        ] {
            assert!(!is_still(Some(&seen(quiet.clone())), &seen(gauges)), "something has changed");
        }
        let waits = seen(Gauges { unfinished: 1, ..quiet });
        assert!(!is_still(Some(&waits), &waits), "what is due grows late");
    }

    #[test]
    fn a_look_that_holds_redis_is_made_seldom() {
        assert_eq!(pause_after(Duration::from_micros(300)), Duration::from_secs(1));
        assert_eq!(pause_after(Duration::from_millis(500)), Duration::from_secs(10));
        assert_eq!(pause_after(Duration::from_secs(5)), Duration::from_secs(30));
    }
}
