//! Performs the planned faults, each at its time, and notes when each really held, or that it did not. Decides nothing:
//! the plan does that.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures_util::future::try_join_all;
use tokio::{sync::watch, time::sleep_until};
use tokio_util::sync::CancellationToken;

use super::{
    faults::{Fault, Planned, Wanted},
    house::{End, Hit, House},
    ledger::Ledger,
    registration::Registration,
    result::{FaultMark, Missed, MissedFault},
};
use crate::clock;

/// Which faults hold now, for the view and for the producer. All clones share one state.
#[derive(Clone)]
pub struct Held(watch::Sender<Vec<Fault>>);

impl Default for Held {
    fn default() -> Self {
        Self(watch::Sender::new(Vec::new()))
    }
}

impl Held {
    pub fn names(&self) -> Vec<String> {
        self.0.borrow().iter().map(|fault| fault.name().to_owned()).collect()
    }

    /// Redis does not take what producers send.
    pub fn disturbs_producers(&self) -> bool {
        self.0.borrow().iter().copied().any(disturbs_producers)
    }

    fn begin(&self, fault: Fault) {
        self.0.send_modify(|held| held.push(fault));
    }

    fn end(&self, fault: Fault) {
        self.0.send_modify(|held| {
            if let Some(at) = held.iter().position(|one| *one == fault) {
                held.remove(at);
            }
        });
    }
}

/// It is away, or full, or a part of it is; or the slot of the stream is on its way, or nobody confirms what was added.
fn disturbs_producers(fault: Fault) -> bool {
    match fault {
        Fault::RestartRedis | Fault::FillRedis | Fault::Failover | Fault::PartitionNode | Fault::MigrateSlot => true,
        Fault::KillWorker
        | Fault::PauseWorker
        | Fault::PartitionRedis
        | Fault::DestroyGroup
        | Fault::ChangeUrls
        | Fault::BlockLogs
        | Fault::LoseKey
        | Fault::KillService
        | Fault::PauseService
        | Fault::JoinWorker
        | Fault::LeaveWorker => false,
    }
}

/// What faults work with, besides the house.
pub struct Scene<'a> {
    pub house: &'a House,
    /// None where no URL can be changed.
    pub urls: Option<Urls<'a>>,
}

/// The endpoints' URLs, and who must know when they change.
pub struct Urls<'a> {
    pub registration: &'a Registration<'a>,
    pub ledger: &'a Ledger,
}

/// When the load began, and what ends its faults before their time.
pub struct Course<'a> {
    pub began: Instant,
    /// The workers are there: before that, there is nothing to break.
    pub started: &'a CancellationToken,
    /// The load is over, or was asked to end.
    pub early: &'a CancellationToken,
    /// Somebody asked the run to end.
    pub interrupted: &'a CancellationToken,
}

/// What became of the plan.
#[derive(Debug, Default)]
pub struct Performed {
    pub happened: Vec<FaultMark>,
    pub missed: Vec<MissedFault>,
}

/// Returns when each fault has happened, or was left out because the load ended first. What still holds then ends at
/// once.
pub async fn perform<'p>(
    scene: &Scene<'_>,
    planned: &'p [Planned],
    course: &Course<'_>,
    held: &Held,
    say: impl Fn(Duration, String),
) -> Result<Performed> {
    let one = async |planned: &'p Planned| -> Result<(&'p Planned, Result<FaultMark, Missed>)> {
        if !course.has_come(planned.at).await {
            return Ok((planned, Err(course.why_over())));
        }
        let name = planned.fault.name();
        held.begin(planned.fault);
        say(planned.at, name.to_owned());
        let hit = act(scene, planned.fault, planned.length, course.early).await;
        held.end(planned.fault);
        match hit.with_context(|| format!("the fault {name} failed"))? {
            Some(at) => {
                let [at, until] = [at, clock::now()].map(|moment| course.seconds(moment));
                Ok((planned, Ok(FaultMark { fault: planned.fault, at, until })))
            }
            None => {
                say(planned.at, format!("{name} found nothing to break"));
                let is_over = course.early.is_cancelled();
                Ok((planned, Err(if is_over { course.why_over() } else { Missed::NothingToBreak })))
            }
        }
    };
    Ok(sorted(try_join_all(planned.iter().map(one)).await?))
}

impl Course<'_> {
    /// False when the load is over before.
    async fn has_come(&self, at: Duration) -> bool {
        let come = async {
            sleep_until((self.began + at).into()).await;
            self.started.cancelled().await;
        };
        self.early.run_until_cancelled(come).await.is_some()
    }

    fn why_over(&self) -> Missed {
        if self.interrupted.is_cancelled() { Missed::Interrupted } else { Missed::LoadOver }
    }

    fn seconds(&self, moment: Instant) -> f64 {
        moment.saturating_duration_since(self.began).as_secs_f64()
    }
}

/// The time by which they happened, or should have.
fn sorted(all: Vec<(&Planned, Result<FaultMark, Missed>)>) -> Performed {
    let mut performed = Performed::default();
    for (planned, became) in all {
        match became {
            Ok(mark) => performed.happened.push(mark),
            // It was to repeat for as long as the load lasts, and did.
            Err(Missed::LoadOver | Missed::Interrupted) if planned.wanted == Wanted::Onward => {}
            Err(why) => {
                let (fault, at, wanted) = (planned.fault, planned.at.as_secs_f64(), planned.wanted);
                performed.missed.push(MissedFault { fault, at, wanted, why });
            }
        }
    }
    performed.happened.sort_by(|one, other| one.at.total_cmp(&other.at));
    performed
}

async fn act(scene: &Scene<'_>, fault: Fault, length: Duration, early: &CancellationToken) -> Result<Hit> {
    let house = scene.house;
    let end = End { length, early: early.clone() };
    match fault {
        Fault::KillWorker => house.kill_worker(&end).await,
        Fault::PauseWorker => house.pause_worker(&end).await,
        Fault::RestartRedis => house.restart_redis(&end).await,
        Fault::PartitionRedis => house.partition_redis(&end).await,
        Fault::FillRedis => house.fill_redis(&end).await,
        Fault::DestroyGroup => house.destroy_group(&end).await,
        Fault::ChangeUrls => {
            let Some(urls) = &scene.urls else { return Ok(None) };
            let now = clock::now();
            urls.registration.change_urls(house.redis(), urls.ledger).await?;
            Ok(Some(now))
        }
        Fault::KillService => house.kill_service().await,
        Fault::PauseService => house.pause_service(&end).await,
        Fault::BlockLogs => house.block_logs(&end).await,
        Fault::LoseKey => house.lose_key(&end).await,
        Fault::JoinWorker => house.join_worker(&end).await,
        Fault::LeaveWorker => house.leave_worker(&end).await,
        Fault::Failover => house.fail_over(&end).await,
        Fault::PartitionNode => house.partition_node(&end).await,
        Fault::MigrateSlot => house.migrate_slot().await,
    }
}
