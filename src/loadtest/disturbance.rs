//! Performs the planned faults, each at its time, and notes when each really held. Decides nothing: the plan does.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures_util::future::try_join_all;
use tokio::{sync::watch, time::sleep_until};
use tokio_util::sync::CancellationToken;

use super::{
    faults::{Fault, Planned},
    house::{End, House},
    result::FaultMark,
};
use crate::clock;

/// Which faults hold now.
#[derive(Clone)]
pub struct Disturbance(watch::Sender<Vec<Fault>>);

impl Default for Disturbance {
    fn default() -> Self {
        Self(watch::Sender::new(Vec::new()))
    }
}

impl Disturbance {
    pub fn now(&self) -> Vec<Fault> {
        self.0.borrow().clone()
    }

    /// Redis does not take what producers send: it is away, or full.
    pub fn is_redis_disturbed(&self) -> bool {
        self.0.borrow().iter().any(|fault| matches!(fault, Fault::RestartRedis | Fault::FillRedis))
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

/// Returns when each has happened, or was left out because `early` came before its time. What holds then ends at once.
pub async fn perform(
    house: &House,
    planned: &[Planned],
    began: Instant,
    early: &CancellationToken,
    disturbance: &Disturbance,
) -> Result<Vec<FaultMark>> {
    let one = async |planned: &Planned| -> Result<Option<FaultMark>> {
        tokio::select! {
            () = sleep_until((began + planned.at).into()) => {}
            () = early.cancelled() => return Ok(None),
        }
        let since = |now: Instant| now.saturating_duration_since(began).as_secs_f64();
        let at = since(clock::now());
        disturbance.begin(planned.fault);
        let done = act(house, planned.fault, planned.length, early).await;
        disturbance.end(planned.fault);
        done.with_context(|| format!("the fault {} failed", planned.fault.name()))?;
        Ok(Some(FaultMark { fault: planned.fault, at, until: since(clock::now()) }))
    };
    let mut marks: Vec<FaultMark> = try_join_all(planned.iter().map(one)).await?.into_iter().flatten().collect();
    marks.sort_by(|one, other| one.at.total_cmp(&other.at));
    Ok(marks)
}

async fn act(house: &House, fault: Fault, length: Duration, early: &CancellationToken) -> Result<()> {
    let end = End { length, early: early.clone() };
    match fault {
        Fault::KillWorker => house.kill_worker().await,
        Fault::PauseWorker => house.pause_worker(&end).await,
        Fault::RestartRedis => house.restart_redis(&end).await,
        Fault::PartitionRedis => house.partition_redis(&end).await,
        Fault::FillRedis => house.fill_redis(&end).await,
        Fault::DestroyGroup => house.destroy_group().await,
    }
}
