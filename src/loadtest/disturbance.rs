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

/// Which faults hold now, for those who watch and for the producer. Clones are one.
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

/// It is away, or full.
fn disturbs_producers(fault: Fault) -> bool {
    match fault {
        Fault::RestartRedis | Fault::FillRedis => true,
        Fault::KillWorker | Fault::PauseWorker | Fault::PartitionRedis | Fault::DestroyGroup => false,
    }
}

/// Returns when each has happened, or was left out because `early` came before its time. What holds then ends at once.
pub async fn perform(
    house: &House,
    planned: &[Planned],
    began: Instant,
    early: &CancellationToken,
    held: &Held,
    say: impl Fn(Duration, String),
) -> Result<Vec<FaultMark>> {
    let one = async |planned: &Planned| -> Result<Option<FaultMark>> {
        tokio::select! {
            () = sleep_until((began + planned.at).into()) => {}
            () = early.cancelled() => return Ok(None),
        }
        let since = |now: Instant| now.saturating_duration_since(began).as_secs_f64();
        let at = since(clock::now());
        held.begin(planned.fault);
        say(planned.at, planned.fault.name().to_owned());
        let done = act(house, planned.fault, planned.length, early).await;
        held.end(planned.fault);
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
