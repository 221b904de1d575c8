//! What belongs to one term, and is made new with each: nothing of the term before can be left in it.

use super::{
    Budgets, Deferral, EXPIRE_EVERY_MS, EndpointId, EntryId, INDEX_AFTER_MS, LookFrom, REMEMBER_MS, Staged,
    TRIM_EVERY_MS, TRIM_SELDOM_MS, VecDeque,
};
use crate::store::protocol::RETAIN_PARTS;

/// What an older Herald left of dead letters without their indexes, or of indexes without their letters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Indexing {
    /// Looks for letters without an index.
    Looks(LookFrom),
    /// Looks for what is indexed and no letter any more.
    Sweeps(u64),
}

#[derive(Debug)]
pub(super) struct TermState {
    /// What the term before left unconfirmed is remembered until then, and while entries that it left pending are to be read.
    pub remember_until: u64,
    /// In this term the snapshot has been as new as the registry. Until then, an endpoint that is missing from it need not
    /// have been deleted: the owner before may have known one that was made since.
    pub is_confirmed: bool,

    pub last_read: EntryId,
    /// Pending entries are still to be read, after this one.
    pub pending_after: Option<EntryId>,
    /// What waits in the stream up to here was pending when the term began, or was a stranger's.
    pub pending_until: EntryId,
    /// Entries up to here may have been read before the group was made again.
    pub suspect_until: EntryId,
    pub more_entries: bool,
    /// Woken for entries, but there was nothing to read: a stranger read them. The wake-up would fire for ever.
    pub is_wakeup_false: bool,
    pub was_woken: bool,
    /// The last read was of what was deferred.
    pub was_pass: bool,
    /// The last read found everything there was to read for the first time.
    pub keeps_up: bool,
    /// When a read last found something.
    pub found_at: u64,
    /// Until then it looks for more without being told that there is any.
    pub lively_until: u64,
    /// All of the last page waits for its account, but reading does not: what is behind it perhaps need not wait.
    pub reads_past: bool,
    /// So much of what was read last was owed to endpoints that drain their backlogs that those would grow.
    pub feeds_backlogs: bool,

    pub staged: Option<Staged>,
    /// What was staged last was a part of an entry, and nothing was read since.
    pub was_in_parts: bool,
    pub deferral: Deferral,
    /// When something was last taken from the stream.
    pub admitted_at: u64,

    pub more_requests: bool,
    pub inbox_after: EntryId,
    pub next_due_ms: Option<u64>,
    /// Backlogs to search for what has outlived its policy, each from an entry on.
    pub expiring: VecDeque<(EndpointId, EntryId)>,
    /// Endpoints that cannot be read, which is still to be noted in this round.
    pub noting: VecDeque<EndpointId>,
    pub note_at: u64,
    pub foreign_at: u64,
    pub trim_at: u64,
    /// Between two trims: longer while they find nothing.
    pub trim_pause: u64,
    /// When the inbox was last looked at, if it was.
    pub inbox_looked: Option<u64>,
    pub expire_at: u64,
    pub indexing: Indexing,
    pub index_at: u64,
    /// All letters were looked at, whatever the mark says.
    pub has_looked_at_all: bool,
    pub ending_at: u64,
    pub pull_at: u64,
    /// What is due too late is not made due earlier before this time: the last try failed.
    pub pulls_at: u64,
    pub refused_since: Option<u64>,

    pub turn: usize,
    /// Calls that somebody waited for since one was last made in turn.
    pub urgent: usize,
    /// The last call was a read.
    pub was_read: bool,
    /// The last call that was not a read was a settle. Without this the two would only take turns with each other.
    pub was_settle: bool,
    /// A small backlog was looked at, and no other kind of call but a question has had its turn since.
    pub was_clearing: bool,
}

impl TermState {
    /// Something has ended or gone, so that more may go.
    pub fn trim_soon(&mut self, now: u64) {
        self.trim_pause = TRIM_EVERY_MS;
        self.trim_at = self.trim_at.min(now + TRIM_EVERY_MS);
    }

    /// Nothing went. What is finished stays this long, and no longer by more than a part of that.
    pub fn trim_later(&mut self, retain_ms: u64) {
        let most = if retain_ms == 0 { TRIM_SELDOM_MS } else { (retain_ms / RETAIN_PARTS).min(TRIM_SELDOM_MS) };
        self.trim_pause = (2 * self.trim_pause).min(most).max(TRIM_EVERY_MS);
    }

    /// By Redis' clock it is `redis_ms`.
    pub fn new(now: u64, redis_ms: u64, budgets: Budgets) -> Self {
        Self {
            remember_until: now + REMEMBER_MS,
            is_confirmed: false,
            last_read: EntryId::ZERO,
            pending_after: Some(EntryId::ZERO),
            pending_until: EntryId::ZERO,
            suspect_until: EntryId::ZERO,
            more_entries: true,
            is_wakeup_false: false,
            was_woken: false,
            was_pass: false,
            keeps_up: false,
            found_at: 0,
            lively_until: 0,
            reads_past: false,
            feeds_backlogs: false,
            staged: None,
            was_in_parts: false,
            deferral: Deferral::new(budgets.deferred, budgets.in_vain),
            admitted_at: now,
            more_requests: true,
            inbox_after: EntryId::ZERO,
            // Everything that was claimed is due now.
            next_due_ms: Some(redis_ms),
            expiring: VecDeque::new(),
            noting: VecDeque::new(),
            note_at: now,
            foreign_at: now,
            trim_at: now + TRIM_EVERY_MS,
            trim_pause: TRIM_EVERY_MS,
            inbox_looked: None,
            expire_at: now + EXPIRE_EVERY_MS,
            indexing: Indexing::Looks(LookFrom::Mark),
            index_at: now + INDEX_AFTER_MS,
            has_looked_at_all: false,
            ending_at: now,
            pull_at: now,
            pulls_at: now,
            refused_since: None,
            turn: 0,
            urgent: 0,
            was_read: false,
            was_settle: false,
            was_clearing: false,
        }
    }
}
