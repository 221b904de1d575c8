//! The shell around `membership`: tells it who is there and what the fleet does, asks Redis what it wants to know, and tells the fleet
//! which streams to run. Decides nothing. What is slow here, a node that is away, delays neither the fleet nor what others hear.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    membership::{Ask, Came, Doing, Member, Membership, Settings, Told, WANT_HOLDS_MS},
    presence::{Company, OwnShare},
};
use crate::{
    clock,
    facts::partition::Layout,
    store::{
        connection::{Purpose, Redis},
        error::StoreError,
        keys::PartitionKeys,
        partition::want,
        pool::Pool,
        protocol::{Term, Wanted},
        workers::look,
    },
    telemetry::{
        metrics::{HandedOver, Metrics},
        readiness::Readiness,
    },
};

/// An answer that comes later is of no use: it is asked again.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);

/// How long the first look at who is there may take, until the stream is worked on as if nobody were.
const ALONE_AFTER: Duration = Duration::from_secs(3);

/// Which worker asks for a stream of this one, as renewals told. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct AskedBy(watch::Sender<BTreeMap<String, String>>);

impl Default for AskedBy {
    fn default() -> Self {
        Self(watch::Sender::new(BTreeMap::new()))
    }
}

impl AskedBy {
    pub fn watch(&self) -> watch::Receiver<BTreeMap<String, String>> {
        self.0.subscribe()
    }

    /// Cheap while nothing changes.
    pub fn tell(&self, stream: &str, asked_by: Option<&str>) {
        if self.0.borrow().get(stream).map(String::as_str) != asked_by {
            self.0.send_modify(|all| match asked_by {
                Some(worker) => drop(all.insert(stream.to_owned(), worker.to_owned())),
                None => drop(all.remove(stream)),
            });
        }
    }
}

/// What is seen of the fleet.
pub struct FleetSeen {
    pub standings: watch::Receiver<BTreeMap<String, Doing>>,
    pub asked_by: watch::Receiver<BTreeMap<String, String>>,
}

/// Where it shows what it hears.
pub struct Shown {
    pub readiness: Readiness,
    pub metrics: Metrics,
}

/// Shares the partitions of a stream with other workers.
pub struct Sharing {
    membership: Membership,
    settings: Settings,
    root: PartitionKeys,
    redis: Redis,
    company: watch::Receiver<Option<Company>>,
    fleet: FleetSeen,
    own: watch::Sender<OwnShare>,
    runs: watch::Sender<BTreeSet<String>>,
    shown: Shown,
    began: Instant,
    heard_of: Option<Company>,
}

impl Sharing {
    /// `own` is what others are told. The second is what the fleet is to run.
    pub fn new(
        redis: Redis,
        root: PartitionKeys,
        settings: Settings,
        own: watch::Sender<OwnShare>,
        company: watch::Receiver<Option<Company>>,
        fleet: FleetSeen,
        shown: Shown,
    ) -> (Self, watch::Receiver<BTreeSet<String>>) {
        let (runs, runs_seen) = watch::channel(BTreeSet::new());
        let sharing = Self {
            membership: Membership::new(settings.clone()),
            settings,
            root,
            // Each stream is asked at its own node, so that none waits for another's.
            redis: redis.sharing(Pool::default()),
            company,
            fleet,
            own,
            runs,
            shown,
            began: clock::now(),
            heard_of: None,
        };
        (sharing, runs_seen)
    }

    /// Until others have taken over what this worker has, after `leaves`, or nobody is there to do so.
    pub async fn run(mut self, leaves: CancellationToken) {
        let mut asking: JoinSet<(Ask, Told)> = JoinSet::new();
        let mut under_way = BTreeSet::new();
        self.listen();
        loop {
            let now = self.now();
            self.hear_who_asks();
            for ask in self.membership.step(now) {
                // One that is still under way will be answered or be over soon.
                if under_way.insert(ask.stream().to_owned()) {
                    asking.spawn(answered(self.redis.clone(), self.settings.id.clone(), ask));
                }
            }
            self.count_what_came();
            self.tell();
            if self.membership.has_left() {
                return;
            }
            let wake_at = self.began + Duration::from_millis(self.membership.wake_at(now));
            tokio::select! {
                Some(Ok((ask, told))) = asking.join_next(), if !asking.is_empty() => {
                    under_way.remove(ask.stream());
                    self.membership.told(self.now(), &ask, told);
                }
                Ok(()) = self.company.changed() => self.listen(),
                Ok(()) = self.fleet.standings.changed() => self.look_at_fleet(),
                Ok(()) = self.fleet.asked_by.changed() => {}
                () = sleep_until(wake_at.into()) => self.go_alone(),
                () = leaves.cancelled(), if !self.membership.is_leaving() => self.membership.leave(self.now()),
            }
        }
    }

    fn now(&self) -> u64 {
        clock::now().saturating_duration_since(self.began).as_millis() as u64
    }

    fn listen(&mut self) {
        let company = self.company.borrow_and_update().clone();
        if let Some(company) = &company {
            let members = company.others.iter().map(|other| {
                let told = &other.told;
                Member {
                    id: told.name.clone(),
                    weight: told.weight,
                    is_draining: told.draining,
                    is_whole: told.missing.is_empty() && told.tells_time(),
                    owned: told.owned.clone(),
                }
            });
            let now = self.now();
            self.membership.heard(now, company.is_whole, members.collect(), company.layout.streams());
            self.shown.readiness.set_redis(true);
            self.shown.metrics.set_workers(company.others.len() as u64 + 1);
        }
        self.heard_of = company.or(self.heard_of.take());
    }

    /// While the registry's slot is away nobody is heard of. What is due can be delivered nevertheless.
    fn go_alone(&mut self) {
        if self.heard_of.is_none() && clock::now() >= self.began + ALONE_AFTER {
            let streams = Layout::of_one(self.root.stream()).streams();
            self.membership.heard(self.now(), true, Vec::new(), streams);
        }
    }

    fn look_at_fleet(&mut self) {
        let does = self.fleet.standings.borrow_and_update().clone();
        self.membership.does(self.now(), does);
    }

    fn count_what_came(&mut self) {
        for came in self.membership.take_came() {
            self.shown.metrics.handed_over(match came {
                Came::Given => HandedOver::Given,
                Came::TakenOver => HandedOver::TakenOver,
            });
        }
    }

    fn hear_who_asks(&mut self) {
        let now = self.now();
        for (stream, worker) in self.fleet.asked_by.borrow_and_update().iter() {
            self.membership.asked(now, stream, Some(worker));
        }
    }

    /// Tells the fleet and the others what has changed.
    fn tell(&self) {
        self.shown.metrics.set_orphans(self.membership.orphans());
        let runs = self.membership.runs();
        self.runs.send_if_modified(|known| {
            let has_changed = known != runs;
            if has_changed {
                known.clone_from(runs);
            }
            has_changed
        });
        let own = OwnShare {
            weight: self.settings.weight,
            is_draining: self.membership.is_leaving(),
            owned: self.membership.owned().map(str::to_owned).collect(),
            holds_ms: self.settings.lease_ms,
            every: Duration::from_millis(self.membership.hears_again_ms()),
            is_shared: self.membership.is_shared(),
        };
        self.own.send_if_modified(|known| std::mem::replace(known, own.clone()) != own);
    }
}

/// Asks, and says what that means.
async fn answered(redis: Redis, worker: String, ask: Ask) -> (Ask, Told) {
    // A node that is away may take as long to be connected to.
    let asked = timeout(2 * ANSWERS_WITHIN, answer(&redis, &worker, &ask)).await;
    let told = asked.ok().and_then(Result::ok).unwrap_or(Told::Failed);
    (ask, told)
}

async fn answer(redis: &Redis, worker: &str, ask: &Ask) -> Result<Told, StoreError> {
    // Of a layout, whose names are a stream's with numbers: only one that is too long has no keys.
    let Ok(keys) = PartitionKeys::new(ask.stream()) else { return Ok(Told::Failed) };
    let mut connection = redis.at_home_in(keys.slot()).connect(Purpose::Lease(ANSWERS_WITHIN)).await?;
    match ask {
        Ask::Want(_) => Ok(match want(&mut connection, &keys, worker, WANT_HOLDS_MS).await? {
            Wanted::Free => Told::Free,
            Wanted::Asked { owner, .. } => Told::Owned { owner, asked_by: Some(worker.to_owned()) },
            Wanted::Busy { .. } => Told::Busy,
        }),
        Ask::Look(_) => {
            let (lease, asked_by) = look(&mut connection, &keys).await?;
            let owned = |lease: String| Told::Owned { owner: Term::owner_of(&lease).to_owned(), asked_by };
            Ok(lease.map_or(Told::Free, owned))
        }
    }
}
