//! Workers that come and go, and how the partitions are shared among those who are there.

use std::{cell::RefCell, collections::VecDeque};

use anyhow::Result;

use super::{End, Hit, House, PATIENCE, until_there};
use crate::clock;

/// Who is there and who is not, by number; in each the one whose turn it is comes first.
pub struct Turns {
    present: RefCell<VecDeque<usize>>,
    absent: RefCell<VecDeque<usize>>,
}

impl Turns {
    pub fn new(present: u32, absent: u32) -> Self {
        let [present_end, end] = [present, present + absent].map(|number| number as usize);
        Self { present: RefCell::new((0..present_end).collect()), absent: RefCell::new((present_end..end).collect()) }
    }

    pub fn present(&self) -> Vec<usize> {
        self.present.borrow().iter().copied().collect()
    }

    /// Who comes next, if anybody is left.
    fn join(&self) -> Option<usize> {
        let number = self.absent.borrow_mut().pop_front()?;
        self.present.borrow_mut().push_back(number);
        Some(number)
    }

    /// Who goes next, if that is not the last one.
    fn leave(&self) -> Option<usize> {
        let mut present = self.present.borrow_mut();
        if present.len() < 2 {
            return None;
        }
        present.pop_front()
    }

    /// It may come again.
    fn has_left(&self, number: usize) {
        self.absent.borrow_mut().push_back(number);
    }
}

impl House {
    /// A worker comes; it is over when it has its share.
    pub async fn join_worker(&self, end: &End) -> Result<Hit> {
        let Some(number) = self.turns.join() else { return Ok(None) };
        let now = clock::now();
        self.workers[number].lock().await.start().await?;
        self.until_shared(end).await?;
        Ok(Some(now))
    }

    /// A worker is asked to go; it is over when it has gone and the others have what it had.
    pub async fn leave_worker(&self, end: &End) -> Result<Hit> {
        let Some(number) = self.turns.leave() else { return Ok(None) };
        let now = clock::now();
        self.workers[number].lock().await.leave()?;
        let gone = until_there(PATIENCE, async || Ok(self.workers[number].lock().await.has_left()?.then_some(())));
        anyhow::ensure!(gone.await?.is_some(), "a worker that was asked to end did not");
        self.turns.has_left(number);
        self.until_shared(end).await?;
        Ok(Some(now))
    }

    /// Other faults may keep it from coming to that.
    async fn until_shared(&self, end: &End) -> Result<()> {
        let shared = until_there(PATIENCE, async || {
            self.check().await?;
            Ok(self.are_shared().await?.then_some(()))
        });
        end.or(shared).await.map(|_| ())
    }

    /// Whether every stream has an owner that is awake, none of whom has more than one stream more than another. With a single
    /// stream, one has it.
    pub(super) async fn are_shared(&self) -> Result<bool> {
        let mut awake = Vec::new();
        for worker in &self.workers {
            awake.extend(worker.lock().await.awake().map(|pid| (pid.as_raw(), 0_u32)));
        }
        for keys in &self.streams {
            // Redis may be away.
            let Ok(Some(owner)) = self.named_by_lease(keys).await else { return Ok(false) };
            let Some((_, load)) = awake.iter_mut().find(|(pid, _)| *pid == owner) else { return Ok(false) };
            *load += 1;
        }
        let loads = || awake.iter().map(|(_, load)| *load);
        Ok(loads().max().unwrap_or(0) <= loads().min().unwrap_or(0) + 1)
    }

    /// The master of a partition's slot dies, and comes back at the end.
    pub async fn fail_over(&self, end: &End) -> Result<Hit> {
        let slot = self.draw(&self.streams).slot();
        self.redis.lock().await.fail_over(slot, end).await
    }

    /// The master of a partition's slot says nothing until the end.
    pub async fn partition_node(&self, end: &End) -> Result<Hit> {
        let slot = self.draw(&self.streams).slot();
        self.redis.lock().await.partition_node(slot, end).await
    }

    /// The slot of a partition goes to another master.
    pub async fn migrate_slot(&self) -> Result<Hit> {
        let slot = self.draw(&self.streams).slot();
        self.redis.lock().await.migrate(slot).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_leave_and_come_in_their_turn_and_one_stays() {
        let turns = Turns::new(2, 1);
        assert_eq!(turns.present(), [0, 1]);
        assert_eq!(turns.leave(), Some(0));
        assert_eq!(turns.leave(), None);
        turns.has_left(0);
        assert_eq!([turns.join(), turns.join(), turns.join()], [Some(2), Some(0), None]);
        assert_eq!(turns.present(), [1, 2, 0]);
    }
}
