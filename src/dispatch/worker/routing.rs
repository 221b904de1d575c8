//! Passes on the entries of a stream that is split, beside the partition that has its lease, and under the term that it has. Owns the
//! tasks, the connections and the clock; what goes where is decided by [`Router`].

use std::{
    pin::Pin,
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
    time::{sleep, sleep_until, timeout},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, info, warn};

use super::{
    ready,
    splitting::{self, Trouble},
};
use crate::{
    clock,
    dispatch::{
        link::Waiter,
        partition::Routes,
        router::{Happening, MAX_APART, Router, Settings as Shape, Step},
    },
    facts::{id::EntryId, partition::Mode},
    registry::Registry,
    store::{
        connection::{Connection, Purpose, Redis, SharedConnection},
        error::StoreError,
        keys::{PartitionKeys, RegistryKeys},
        partitions::hint,
        protocol::{Start, Term},
        routing::{NoPage, Page, PartsStore, Replicas, Route, RouteStore, Trimming},
        wakeup::New,
    },
    telemetry::{partitions::PartitionMetrics, readiness::Readiness},
};

/// After a failure that concerns the whole stream.
const PAUSE: Duration = Duration::from_millis(500);

/// The registry's slot may forget what it was told.
const HINT_EVERY: Duration = Duration::from_secs(10);

/// How often it is said again that something is not as it should be.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// How a stream is split, and how its router works.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Into how many parts all levels above this stream split, together; 1 for one that is no part.
    pub above: u32,
    pub replicas: Replicas,
    /// How long what all parts have stays in the stream.
    pub retain_ms: u64,
}

/// What the router needs beside that.
pub(super) struct Parts {
    pub redis: Redis,
    pub keys: PartitionKeys,
    pub settings: Settings,
    /// Into how many parts a stream is split that nothing was done with yet, and where it starts then.
    pub parts: u32,
    pub start: Start,
    pub registry: Registry,
    pub trim_ignores: Vec<String>,
    pub metrics: PartitionMetrics,
    pub readiness: Readiness,
}

/// What the task that routes tells its partition.
pub(super) enum Told {
    /// The term has nothing to route: its stream is not to be split after all, or its mode is another one now.
    Works(Term),
    /// The mode is this one from now on.
    Mode(Term, Mode),
    /// Somebody may have asked something of the owner.
    Asked,
}

/// The way to the task that routes.
pub(super) struct Routing {
    terms: watch::Sender<Option<Routes>>,
    told: mpsc::Receiver<Told>,
    task: JoinHandle<()>,
}

impl Routing {
    pub fn start(parts: Parts) -> Self {
        let (terms, own) = watch::channel(None);
        let (tell, told) = mpsc::channel(4);
        let task = tokio::spawn(Task { parts, tell }.run(own));
        Self { terms, told, task }
    }

    /// Under which term the stream is routed, and its mode; none while it is not, or is not ours.
    pub fn own(&self, routes: Option<Routes>) {
        // The mode comes from the task itself.
        self.terms.send_if_modified(|known| {
            let is_new = known.as_ref().map(Routes::work) != routes.as_ref().map(Routes::work);
            if is_new {
                *known = routes;
            }
            is_new
        });
    }

    /// What it tells next.
    pub async fn told(&mut self) -> Told {
        match self.told.recv().await {
            Some(told) => told,
            None => std::future::pending().await,
        }
    }

    /// What is under way may end; nothing is lost if it does not.
    pub async fn stop(self, within: Duration) {
        let Self { terms, told, mut task } = self;
        drop((terms, told));
        if timeout(within, &mut task).await.is_err() {
            task.abort();
        }
    }
}

struct Task {
    parts: Parts,
    tell: mpsc::Sender<Told>,
}

type Reading = Pin<Box<dyn Future<Output = (RouteStore, Answered)> + Send>>;
type Waiting = Pin<Box<dyn Future<Output = (Waiter, Option<New>)> + Send>>;

/// What came of the call that is made on the stream itself.
enum Answered {
    Page(Result<Page, NoPage>),
    /// How many were trimmed; none if the lease is lost.
    Trimmed(Result<Option<u64>, StoreError>),
}

/// Why routing ended.
enum Over {
    /// The lease is lost, or the mode is another one: whoever has the lease sees to it.
    Lost,
    Failed(Trouble),
}

impl From<Trouble> for Over {
    fn from(trouble: Trouble) -> Self {
        Self::Failed(trouble)
    }
}

impl Task {
    async fn run(self, mut terms: watch::Receiver<Option<Routes>>) {
        loop {
            let own = terms.borrow_and_update().clone();
            let work = async {
                if let Some(routes) = &own {
                    self.serve(routes).await;
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = work => {}
                changed = terms.changed() => if changed.is_err() { return },
            }
            self.tell_lag(Duration::ZERO);
        }
    }

    fn tell_lag(&self, lag: Duration) {
        self.parts.metrics.set_route_lag(lag);
        self.parts.readiness.backlog(!lag.is_zero(), Duration::ZERO, clock::now());
    }

    /// Until the term is over.
    async fn serve(&self, Routes { term, mode, wanted, is_cancelled }: &Routes) {
        let (mut mode, mut told_at) = (mode.clone(), None);
        loop {
            let done = self.serve_once(term, &mut mode, *wanted, *is_cancelled).await;
            match done {
                Ok(()) => return,
                Err(Over::Lost) => {
                    warn!(term = term.id(), "the stream is not ours to route any more, or its mode is another one");
                    // If the lease is still ours, a new term finds out what becomes of the stream.
                    self.tell(Told::Works(term.clone())).await;
                    return;
                }
                Err(Over::Failed(error)) => {
                    if is_time(&mut told_at) {
                        warn!(%error, "{} waits", if mode.name() == "routed" { "routing" } else { "the split" });
                    }
                    sleep(PAUSE).await;
                }
            }
        }
    }

    async fn serve_once(
        &self,
        term: &Term,
        mode: &mut Mode,
        wanted: Option<u32>,
        is_cancelled: bool,
    ) -> Result<(), Over> {
        let Parts { redis, keys, settings, parts, start, registry, .. } = &self.parts;
        // A wait for replicas keeps a connection from everything else.
        let redis = &redis.apart();
        let mut store = RouteStore::new(redis.clone(), keys.clone(), settings.replicas);
        let split = splitting::Split {
            redis,
            settings,
            parts: *parts,
            wanted,
            is_cancelled,
            start: *start,
            registry,
            tell: &self.tell,
        };
        let route = match split.go_on(&mut store, term, mode).await? {
            splitting::Next::Route(route) => route,
            splitting::Next::Work => {
                self.tell(Told::Works(term.clone())).await;
                return Ok(());
            }
            splitting::Next::Lost => return Err(Over::Lost),
        };
        if *parts > 1 && *parts != route.parts {
            warn!(
                "stream.partitions is {parts}, and Redis holds the stream in {} parts: it stays so; `herald repartition` can \
                 split a part of it again",
                route.parts
            );
        }
        info!(term = term.id(), "routes the stream into {} parts", route.parts);
        self.route(store, term, route).await
    }

    /// Nobody hears it only where the worker ends.
    async fn tell(&self, told: Told) {
        let _ = self.tell.send(told).await;
    }

    async fn route(&self, store: RouteStore, term: &Term, route: Route) -> Result<(), Over> {
        let Parts { redis, keys, settings, .. } = &self.parts;
        let began = clock::now();
        let now = || clock::now().saturating_duration_since(began).as_millis() as u64;
        let of_parts = PartsStore::new(redis.apart(), keys, route.parts, settings.replicas);
        let mut parts = of_parts.map_err(Trouble::from)?;
        let hinting = hint_again(redis.clone(), keys.stream().to_owned(), route.parts);
        let _hinting = AbortOnDropHandle::new(tokio::spawn(hinting));
        let mut router = Router::new(Shape { above: settings.above, max_apart: MAX_APART }, route);
        let mut sending = JoinSet::new();
        let (mut store, mut reading): (Option<RouteStore>, Option<Reading>) = (Some(store), None);
        let mut waiter = Some(Waiter::new(redis.clone(), keys.clone()));
        let mut waiting: Option<Waiting> = None;
        let mut behind_told = None;
        loop {
            while let Some(step) = router.next(now()) {
                match step {
                    Step::Append(batches) => {
                        for appending in parts.append(router.route(), batches).await {
                            sending.spawn(appending.send());
                        }
                    }
                    Step::Read { after, most, of_stream } => {
                        reading = store.take().map(|store| self.read(store, after, most, of_stream));
                    }
                    Step::Trim(trim) => reading = store.take().map(|store| self.trim(store, term.clone(), trim)),
                }
            }
            if waiting.is_none()
                && let Some(front) = router.wants_wakeup()
                && let Some(waiter) = waiter.take()
            {
                waiting = Some(Box::pin(waiter.wait(front, EntryId::MAX)));
            }
            let wake_at = clock::now() + Duration::from_millis(router.wake_at(now()).saturating_sub(now()));
            tokio::select! {
                Some(ended) = sending.join_next() => {
                    for (part, said, is_confirmed) in ended.map(|ended| parts.appended(ended)).unwrap_or_default() {
                        router.appended(now(), part, said.map_err(|error| error.to_string()), is_confirmed);
                    }
                    if parts.are_replicas_behind() && is_time(&mut behind_told) {
                        warn!("replicas are behind: entries go to the parts, and the stream is not trimmed");
                    }
                }
                (back, answered) = ready(&mut reading) => {
                    (reading, store) = (None, Some(back));
                    match answered {
                        Answered::Page(Ok(page)) => router.page(now(), Some(page)),
                        Answered::Page(Err(NoPage::Mode(_))) | Answered::Trimmed(Ok(None)) => return Err(Over::Lost),
                        Answered::Page(Err(NoPage::Failed(error))) | Answered::Trimmed(Err(error)) => {
                            return Err(Over::Failed(error.into()));
                        }
                        Answered::Trimmed(Ok(Some(_))) => router.trimmed(),
                    }
                }
                (back, new) = woken(&mut waiting) => {
                    (waiting, waiter) = (None, Some(back));
                    if new.is_none_or(|new| new.entries || !new.is_certain) {
                        router.woken();
                    }
                    // It waited for entries alone, and this may have come on the way.
                    if new.is_some_and(|new| new.requests) {
                        self.tell(Told::Asked).await;
                    }
                }
                () = sleep_until(wake_at.into()) => {}
            }
            for happening in router.take_happenings() {
                self.happened(happening);
            }
            self.tell_lag(Duration::from_millis(router.lag_ms(now())));
        }
    }

    fn read(&self, mut store: RouteStore, after: EntryId, most: usize, of_stream: bool) -> Reading {
        Box::pin(async move {
            let page = store.read(after, most, of_stream).await;
            (store, Answered::Page(page))
        })
    }

    fn trim(&self, mut store: RouteStore, term: Term, trim: Trimming) -> Reading {
        let (retain_ms, ignores) = (self.parts.settings.retain_ms, self.parts.trim_ignores.clone());
        Box::pin(async move {
            let trimmed = store.trim(&term, &trim, retain_ms, &ignores).await;
            (store, Answered::Trimmed(trimmed))
        })
    }

    fn happened(&self, happening: Happening) {
        let Parts { keys, metrics, readiness, .. } = &self.parts;
        let name = |part: u32| format!("{}:{part}", keys.stream());
        match happening {
            Happening::Passed { entries } => {
                metrics.entries_read(entries);
                readiness.progress(clock::now());
            }
            Happening::Gap { part, after } => {
                metrics.route_gap();
                error!(
                    "the part {} has not had all entries behind {after}, and the stream has some no more: somebody has trimmed it, \
                     or the part was set back further than stream.route_retain",
                    name(part)
                );
            }
            Happening::Gated { part, token } => {
                error!("the part {} waits for another split, {token}: it takes nothing", name(part));
            }
            Happening::Down { part, why } => warn!(error = why, "the part {} takes nothing now", name(part)),
            Happening::Up { part } => info!("the part {} takes entries again", name(part)),
            Happening::Elsewhere { part, at } => {
                warn!("the part {} is at {at}, not where this router left it: it goes on from there", name(part));
            }
        }
    }
}

/// Tells workers of the parts, for ever. On a task of its own: the node of the registry may be away, and no part is to wait for that.
async fn hint_again(redis: Redis, stream: String, parts: u32) {
    let connection = SharedConnection::new(redis.at_home_in(RegistryKeys::slot()), Purpose::Other);
    let mut told_at = None;
    loop {
        let told = async |mut connection: Connection| hint(&mut connection, &stream, parts).await;
        if let Err(error) = connection.with(told).await
            && is_time(&mut told_at)
        {
            warn!(%error, "workers cannot be told of the parts; they are told again in {HINT_EVERY:?}");
        }
        sleep(HINT_EVERY).await;
    }
}

/// Whether something is to be said again.
fn is_time(told_at: &mut Option<Instant>) -> bool {
    let is_time = told_at.is_none_or(|told| clock::now() >= told + TOLD_EVERY);
    if is_time {
        *told_at = Some(clock::now());
    }
    is_time
}

/// What a wait brought, or never while there is none.
async fn woken(waiting: &mut Option<Waiting>) -> (Waiter, Option<New>) {
    match waiting {
        Some(waiting) => waiting.await,
        None => std::future::pending().await,
    }
}
