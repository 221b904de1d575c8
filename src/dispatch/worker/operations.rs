//! Works on the operations that are started, beside the owner's own work and on a connection of its own: a step at a time it has
//! the owner take a few more letters, through the inbox as anybody does, and sees what became of those before. Everything that
//! must not be lost is in Redis, and each step compares the term; so a crash, a lost answer and another owner repeat nothing.
//! What is to be taken when is decided by [`Job`] and [`Pace`](pace).

mod erasing;
mod job;
mod pace;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::job::{Job, Step};
use crate::{
    clock,
    facts::{
        audit::{Tally, Verdict},
        id::OperationId,
        operation::{Kind, State},
    },
    history::History,
    registry::Registry,
    store::{
        audit::{Audit, Judged},
        connection::{Purpose, Redis},
        error::StoreError,
        keys::PartitionKeys,
        operations::{
            Operations,
            work::{End, Lost, Work},
        },
        protocol::Term,
        queries::Queries,
        wakeup::Watched,
    },
    telemetry::log_line::of_the_same,
};

/// Between two rounds while something moves; twice as long each time nothing does, up to the other.
const ROUND: Duration = Duration::from_millis(40);
const LONGEST_ROUND: Duration = Duration::from_millis(640);

/// While there is none at all.
const LONGEST_REST: Duration = Duration::from_secs(10);

/// After a failure.
const PAUSE: Duration = Duration::from_secs(3);

/// Redeliveries that go out at a time, of all operations together, and those with what is being retried: what is new must not feel
/// them, and each costs a look in every round.
const MAX_GOING: usize = 200;
const MAX_OPEN: usize = 2_000;

/// The way to the task that works on operations.
pub struct Runner {
    terms: watch::Sender<Option<Term>>,
    due: Arc<Notify>,
    task: JoinHandle<()>,
    cancel: CancellationToken,
}

impl Runner {
    pub fn start(redis: Redis, keys: PartitionKeys, registry: Registry, history: History, audit: Audit) -> Self {
        let (terms, told) = watch::channel(None);
        let cancel = CancellationToken::new();
        let due = Arc::new(Notify::new());
        let task = Task { redis, keys, registry, history, audit, due: Arc::clone(&due) };
        let task = tokio::spawn(of_the_same(task.run(told, cancel.clone())));
        Self { terms, due, task, cancel }
    }

    /// Which term it works under; none while this process owns nothing.
    pub fn own(&self, term: Option<&Term>) {
        self.terms.send_if_modified(|known| {
            let is_new = known.as_ref() != term;
            if is_new {
                *known = term.cloned();
            }
            is_new
        });
    }

    /// Ends once something has been made due, of which the owner has not heard.
    pub async fn made_due(&self) {
        self.due.notified().await;
    }

    /// A step that is under way may end; nothing is lost if it does not.
    pub async fn stop(self, within: Duration) {
        let Self { terms, mut task, cancel, .. } = self;
        drop(terms);
        cancel.cancel();
        if timeout(within, &mut task).await.is_err() {
            task.abort();
        }
    }
}

struct Task {
    redis: Redis,
    keys: PartitionKeys,
    registry: Registry,
    history: History,
    audit: Audit,
    due: Arc<Notify>,
}

/// How an operation that was cancelled ended: it broke off.
#[derive(Debug)]
struct Cancelled;

impl Judged for Cancelled {
    fn verdict(&self) -> Verdict {
        Verdict::Failed
    }

    fn told(&self) -> String {
        "it was cancelled".to_owned()
    }
}

impl Task {
    async fn run(self, mut terms: watch::Receiver<Option<Term>>, cancel: CancellationToken) {
        let mut is_told = false;
        loop {
            let term = terms.borrow_and_update().clone();
            let work = async {
                let Some(term) = term else { return };
                loop {
                    match self.serve(&term, &mut is_told).await {
                        // Whoever has the lease now goes on.
                        Ok(Lost) => return,
                        Err(error) => {
                            if !std::mem::replace(&mut is_told, true) {
                                warn!(%error, "operations wait; said once until they go on");
                            }
                            sleep(PAUSE).await;
                        }
                    }
                }
            };
            tokio::select! {
                () = cancel.cancelled() => return,
                // What was under way in the old term is in Redis; the new one reads it.
                changed = terms.changed() => if changed.is_err() { return },
                () = async { work.await; std::future::pending().await } => {}
            }
        }
    }

    /// Rounds of all operations, until the lease is lost or Redis fails.
    async fn serve(&self, term: &Term, is_told: &mut bool) -> Result<Lost, StoreError> {
        let connection = self.redis.connect(Purpose::Other).await?;
        let mut store = Work::new(connection.clone(), self.keys.clone(), term.clone());
        let mut operations = Operations::new(connection.clone(), self.keys.clone());
        let mut queries = Queries::new(connection, self.keys.clone());
        let opened = Watched::connect(&self.redis, self.keys.operations_open()).await?;
        let looks = async |connection| Work::new(connection, self.keys.clone(), term.clone()).open().await;
        self.release_orphans(&mut store).await?;
        let (mut jobs, mut round) = (BTreeMap::<OperationId, Job>::new(), ROUND);
        loop {
            let open = opened.look(looks).await?;
            jobs.retain(|id, _| open.contains(id));
            self.load(&open, &mut jobs, &mut store, &mut operations).await?;
            let mut has_moved = false;
            // By turns, so that none of them has all the room.
            for id in open {
                let (going, all) = jobs.values().fold((0, 0), |sum, job| (sum.0 + job.going(), sum.1 + job.open()));
                let room = MAX_GOING.saturating_sub(going).min(MAX_OPEN.saturating_sub(all));
                let share = room.div_ceil(jobs.len().max(1)).min(room);
                let Some(job) = jobs.get_mut(&id) else { continue };
                match job.step(clock::now(), share, &mut store, &mut queries, &self.registry, &self.history).await? {
                    Step::Lost => return Ok(Lost),
                    Step::Moved => has_moved = true,
                    Step::Due => {
                        has_moved = true;
                        self.due.notify_one();
                    }
                    Step::Waits => {}
                    Step::Ended => {
                        if let Err(Lost) = self.end(&id, &mut store).await? {
                            return Ok(Lost);
                        }
                    }
                    // What is in memory is not what is in Redis.
                    Step::Stale => drop(jobs.remove(&id)),
                }
            }
            *is_told = false;
            if jobs.is_empty() {
                // Redis says when one is started.
                opened.wait(LONGEST_REST, LONGEST_ROUND).await?;
                round = ROUND;
                continue;
            }
            round = if has_moved { ROUND } else { (round * 2).min(LONGEST_ROUND) };
            sleep(round).await;
        }
    }

    /// What operations have under way that are no more: somebody took them away.
    async fn release_orphans(&self, store: &mut Work) -> Result<(), StoreError> {
        let claims = store.claims().await?;
        if claims.is_empty() {
            return Ok(());
        }
        let open = store.open().await?;
        for (delivery, id) in claims.into_iter().filter(|(_, id)| !open.contains(id)) {
            // Of one that is there nothing is changed that is not so; of one that is not, the claim goes.
            let _ = store.book(&id, Kind::Redeliver, false, &[], &[delivery]).await?;
        }
        Ok(())
    }

    /// Those that are new here, with what they have under way.
    async fn load(
        &self,
        open: &[OperationId],
        jobs: &mut BTreeMap<OperationId, Job>,
        store: &mut Work,
        operations: &mut Operations,
    ) -> Result<(), StoreError> {
        let new: Vec<OperationId> = open.iter().filter(|id| !jobs.contains_key(*id)).cloned().collect();
        if new.is_empty() {
            return Ok(());
        }
        let claims = store.claims().await?;
        for operation in operations.find_all(&new).await? {
            let places = store.places(&operation.id).await?;
            let id = operation.id.clone();
            let own = claims.iter().filter(|(_, holder)| *holder == id).map(|(delivery, _)| delivery.clone());
            debug!("works on the operation {}, of which {} are open", operation.id, operation.counts.open);
            jobs.insert(id.clone(), Job::new(operation, places, own, clock::now()));
        }
        Ok(())
    }

    /// Its end is in the audit log before it is left alone: a crash in between writes it there twice, and never not at all.
    async fn end(&self, id: &OperationId, store: &mut Work) -> Result<Result<(), Lost>, StoreError> {
        let end = match store.end(id, false).await? {
            Ok(Some(end)) => end,
            Ok(None) => return Ok(Ok(())),
            Err(Lost) => return Ok(Err(Lost)),
        };
        let End { state, done, not_done, audit } = end;
        let mut tally = Tally::default();
        tally.set(done, not_done);
        let result = if state == State::Cancelled { Err(&Cancelled) } else { Ok(()) };
        if let Err(error) = self.audit.end(audit, result, tally).await {
            match error {
                StoreError::Unavailable { .. } => return Err(error),
                error => warn!(%error, "the end of the operation {id} is not in the audit log"),
            }
        }
        info!("the operation {id} has ended, {}: {done} done, {not_done} not", state.name());
        Ok(store.end(id, true).await?.map(drop))
    }
}
