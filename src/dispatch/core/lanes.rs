//! The lanes of one partition, each in a place of its own by which everything else names it. The lane of a deleted endpoint
//! leaves once nothing names its place any more; the next new lane gets that place. Never decides who may leave.

use std::ops::{Index, IndexMut};

use super::{Core, DeadReason, EndpointId, HashMap, HashSet, Lane, Op};

/// Where an endpoint's lane is among the lanes, for as long as anything names it.
pub type LaneAt = usize;

#[derive(Debug, Default)]
pub(super) struct Lanes {
    places: HashMap<EndpointId, LaneAt>,
    lanes: Vec<Option<(EndpointId, Lane)>>,
    free: Vec<LaneAt>,
}

impl Lanes {
    pub fn insert(&mut self, endpoint: EndpointId, lane: Lane) -> LaneAt {
        let at = self.free.pop().unwrap_or(self.lanes.len());
        self.places.insert(endpoint.clone(), at);
        let full = Some((endpoint, lane));
        match self.lanes.get_mut(at) {
            Some(place) => *place = full,
            None => self.lanes.push(full),
        }
        at
    }

    /// Nothing may name its place any more.
    pub fn remove(&mut self, at: LaneAt) {
        if let Some((endpoint, _)) = self.lanes[at].take() {
            self.places.remove(&endpoint);
            self.free.push(at);
        }
    }

    pub fn at(&self, endpoint: &EndpointId) -> Option<LaneAt> {
        self.places.get(endpoint).copied()
    }

    pub fn get(&self, endpoint: &EndpointId) -> Option<&Lane> {
        self.at(endpoint).map(|at| &self[at])
    }

    pub fn get_mut(&mut self, endpoint: &EndpointId) -> Option<&mut Lane> {
        self.at(endpoint).map(|at| &mut self[at])
    }

    pub fn endpoint(&self, at: LaneAt) -> &EndpointId {
        &self.lanes[at].as_ref().expect(NAMED).0
    }

    pub fn iter(&self) -> impl Iterator<Item = (&EndpointId, &Lane)> {
        self.lanes.iter().flatten().map(|(endpoint, lane)| (endpoint, lane))
    }

    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut Lane> {
        self.lanes.iter_mut().flatten().map(|(_, lane)| lane)
    }
}

const NAMED: &str = "a lane stays for as long as its place is named";

impl Index<LaneAt> for Lanes {
    type Output = Lane;

    fn index(&self, at: LaneAt) -> &Lane {
        &self.lanes[at].as_ref().expect(NAMED).1
    }
}

impl IndexMut<LaneAt> for Lanes {
    fn index_mut(&mut self, at: LaneAt) -> &mut Lane {
        &mut self.lanes[at].as_mut().expect(NAMED).1
    }
}

/// How often to check whether the lanes of deleted endpoints can go. A check costs some nanoseconds for everything that is
/// in memory.
const LEAVE_EVERY_MS: u64 = 5_000;

impl Core {
    /// The lanes of deleted endpoints go once nothing of them is in memory, in Redis or in flight.
    pub(super) fn let_lanes_leave(&mut self, now: u64) {
        if self.leaving.is_empty() || now < self.leave_at {
            return;
        }
        self.leave_at = now + LEAVE_EVERY_MS;
        let named = self.named_places();
        for at in std::mem::take(&mut self.leaving) {
            let lane = &self.lanes[at];
            if lane.ended() != Some(DeadReason::Deleted) {
                // It was created again.
                continue;
            }
            let is_empty = lane.unfinished == 0 && lane.queue.is_empty() && lane.in_flight == 0;
            match is_empty && !named.contains(&at) {
                true => self.lanes.remove(at),
                false => drop(self.leaving.insert(at)),
            }
        }
    }

    /// Every place that something here names.
    fn named_places(&self) -> HashSet<LaneAt> {
        let chains = self.term.chains.keys().chain(&self.term.blocked).map(|(at, _)| *at);
        let ops = self.term.outbox.all().filter_map(|op| match op {
            Op::Item { chain, .. } => chain.as_ref().map(|(at, _)| *at),
            Op::Ack(_) | Op::Log { .. } => None,
        });
        let singles = self.term.singles.keys().map(|(at, _)| *at);
        let jobs = self.term.jobs.values().map(|job| job.lane);
        let lists = self
            .term
            .ready
            .iter()
            .chain(&self.term.hungry)
            .chain(&self.term.clearing)
            .chain(&self.term.ending)
            .copied();
        let alarms = self.term.alarms.iter().map(|std::cmp::Reverse((_, at))| *at);
        let places = chains.chain(ops).chain(singles).chain(jobs).chain(lists).chain(alarms);
        places.chain(self.shares.lanes()).chain(self.term.refusals.keys().copied()).collect()
    }
}
