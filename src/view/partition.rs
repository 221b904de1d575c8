//! Partitions and workers as they are shown.

use serde::Serialize;
use utoipa::ToSchema;

use super::time::Time;
use crate::{
    facts::{
        id::AccountId,
        partition::{Layout, Mode, Slot},
    },
    store::{queries::PartitionLook, workers::Told},
};

/// One stream with what waits in it.
#[derive(Serialize, ToSchema)]
pub struct PartitionView {
    pub stream: String,
    /// worked, splitting or routed: what becomes of its entries.
    pub mode: &'static str,
    /// Into how many parts it is split, or is being split.
    pub parts: Option<u32>,
    pub slot: u16,
    /// The server that has it.
    pub node: String,
    /// Who works on it; null while nobody does.
    pub owner: Option<String>,
    pub lease_left_ms: Option<u64>,
    /// Entries that nobody has read; of a routed stream those that are not in all its parts yet. Null where Redis does not know.
    pub behind: Option<u64>,
    /// Of a routed stream, whether there are more of these than were counted.
    pub has_more_behind: bool,
    /// The age of the oldest of them, by its id.
    pub behind_ms: Option<u64>,
    /// Entries that were read and are not settled.
    pub pending: u64,
    /// Deliveries with a record that are to be tried, now or later.
    pub due: u64,
    /// All deliveries with a record.
    pub unfinished: u64,
    pub dead_letters: u64,
    pub quarantined: u64,
    /// Of a part: the last entry of its stream that it has, or that is not for it.
    pub routed: Option<String>,
}

impl PartitionView {
    pub fn of(look: &PartitionLook, node: String, now_ms: u64) -> Self {
        let behind_ms = look.oldest_behind.and_then(|entry| entry.age_ms(now_ms));
        Self {
            stream: look.stream.clone(),
            mode: look.mode.name(),
            parts: look.mode.parts(),
            slot: look.slot.number(),
            node,
            owner: look.lease.as_ref().map(|lease| lease.owner.clone()),
            lease_left_ms: look.lease.as_ref().and_then(|lease| lease.left_ms),
            behind: look.behind,
            has_more_behind: look.has_more_behind,
            behind_ms,
            pending: look.pending,
            due: look.due,
            unfinished: look.unfinished,
            dead_letters: look.dead,
            quarantined: look.quarantined,
            routed: look.routed.map(|entry| entry.to_string()),
        }
    }
}

/// Where an account's events go.
#[derive(Serialize, ToSchema)]
pub struct PlaceView {
    pub account: String,
    /// The account's own, by which the parts are chosen.
    pub slot: u16,
    /// The stream whose deliveries are the account's.
    pub stream: String,
    /// All that its events go through, the outermost first.
    pub path: Vec<String>,
    /// Whether one of these is being split, so that what is unfinished may still be in the one before.
    pub is_moving: bool,
}

impl PlaceView {
    pub fn of(account: &AccountId, layout: &Layout) -> Self {
        let path = layout.path(account);
        Self {
            account: account.to_string(),
            slot: Slot::of_account(account).number(),
            stream: path.last().cloned().unwrap_or_default(),
            is_moving: path.iter().any(|stream| matches!(layout.mode(stream), Mode::Splitting { .. })),
            path,
        }
    }
}

/// A live worker, as it tells of itself every few seconds.
#[derive(Serialize, ToSchema)]
pub struct WorkerView {
    /// Host and process.
    pub name: String,
    pub version: String,
    /// What it works on; empty where it only serves.
    pub stream: String,
    /// Its share of partitions beside the others'.
    pub weight: u32,
    /// Whether it is leaving: it takes no partition any more, and others take what it has.
    pub is_draining: bool,
    /// The partitions that it owns.
    pub owned: Vec<String>,
    /// Since when it works, by its own clock. Null for an older version.
    pub since: Option<Time>,
    /// The ids of its keys, the one that seals first.
    pub keys: Vec<String>,
    /// Keys that would open what is locked for it.
    pub missing_keys: Vec<String>,
    /// How far its machine's clock is ahead of Redis'.
    pub clock_ahead_ms: i64,
}

impl WorkerView {
    pub fn of(told: &Told) -> Self {
        Self {
            name: told.name.clone(),
            version: told.version.clone(),
            stream: told.stream.clone(),
            weight: told.weight,
            is_draining: told.draining,
            owned: told.owned.iter().cloned().collect(),
            since: Some(Time(told.since_ms)).filter(|since| since.0 > 0),
            keys: told.keys.clone(),
            missing_keys: told.missing.clone(),
            clock_ahead_ms: told.clock_ahead_ms,
        }
    }
}
