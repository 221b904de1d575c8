//! What the records of each endpoint and of each account take in Redis, and which endpoint is to be paused for it: one that
//! is over its quota, or has the most in an account that is over its own, and that grows while its receiver takes nothing.
//! Its deliveries are still parked; nothing is dropped. An endpoint is never paused for a backlog that it drains.
//!
//! There is one pause for each tenth that is added: whoever resumed the endpoint knew what it had then.

use super::{AccountId, Core, CoreErrand, CoreHappening, Endpoint, HashMap, HashSet, LaneAt, Quota, Quotas, bytes};

/// How often an account that is over its quota is looked at: it may have thousands of endpoints.
const LOOK_AT_ACCOUNT_EVERY_MS: u64 = 1_000;

#[derive(Debug, Default)]
pub(super) struct Weights {
    accounts: HashMap<AccountId, Weight>,
}

#[derive(Debug, Default)]
struct Weight {
    bytes: u64,
    lanes: HashSet<LaneAt>,
    /// Below this no further endpoint of it is paused.
    tolerated: u64,
    look_at: u64,
}

/// Why an endpoint is to be paused.
struct Excess {
    at: LaneAt,
    quota: Quota,
    /// What the endpoint has, or all of its account, and what is allowed.
    bytes: u64,
    allowed: u64,
}

impl Core {
    pub fn set_quotas(&mut self, quotas: Quotas) {
        self.quotas = quotas;
    }

    /// Roughly what all records take in Redis, and how many endpoints are over their quota.
    pub fn record_bytes(&self) -> (u64, usize) {
        let weights = || self.lanes.iter().map(|(_, lane)| lane.weight());
        let over = self.quotas.endpoint.map_or(0, |allowed| weights().filter(|bytes| *bytes >= allowed).count());
        (weights().sum(), over)
    }

    /// Follows what a lane has, and whose it is.
    pub(super) fn weigh(&mut self, at: LaneAt) {
        let lane = &mut self.lanes[at];
        let now = lane.holder.clone().map(|holder| (holder, lane.weight())).filter(|(_, bytes)| *bytes > 0);
        let before = std::mem::replace(&mut lane.weighed, now.clone());
        let accounts = &mut self.term.weights.accounts;
        if let Some((holder, bytes)) = before
            && let Some(weight) = accounts.get_mut(&holder.account)
        {
            weight.bytes = weight.bytes.saturating_sub(bytes);
            weight.lanes.remove(&at);
            if weight.lanes.is_empty() && now.as_ref().is_none_or(|(new, _)| new.account != holder.account) {
                accounts.remove(&holder.account);
            }
        }
        if let Some((holder, bytes)) = now {
            let weight = accounts.entry(holder.account.clone()).or_default();
            weight.bytes += bytes;
            weight.lanes.insert(at);
        }
    }

    /// What a lane has was counted again: asks for a pause if it is too much.
    pub(super) fn keep_quotas(&mut self, now: u64, at: LaneAt) {
        let Some(excess) = self.own_excess(now, at).or_else(|| self.excess_of_account(now, at)) else { return };
        let lane = &mut self.lanes[excess.at];
        let Some(endpoint) = lane.endpoint().cloned() else { return };
        lane.pause_asked_at = Some(endpoint.revision);
        let why = why(&excess, &endpoint, lane.weight());
        let (endpoint, revision) = (endpoint.id.clone(), endpoint.revision);
        self.happenings.push(CoreHappening::OverQuota {
            endpoint: endpoint.clone(),
            quota: excess.quota,
            bytes: excess.bytes,
        });
        self.errands.push(CoreErrand::Pause { endpoint, revision, why });
    }

    fn own_excess(&self, now: u64, at: LaneAt) -> Option<Excess> {
        let (lane, allowed) = (&self.lanes[at], self.quotas.endpoint?);
        let bytes = lane.weight();
        let is_over = bytes >= allowed && lane.grows_in_vain(now, self.breaker.cooldown_ms);
        is_over.then_some(Excess { at, quota: Quota::Endpoint, bytes, allowed })
    }

    /// If the account is over its quota, the heaviest of its endpoints whose receivers take nothing.
    fn excess_of_account(&mut self, now: u64, at: LaneAt) -> Option<Excess> {
        let allowed = self.quotas.account?;
        let account = &self.lanes[at].holder.as_ref()?.account;
        let weight = self.term.weights.accounts.get_mut(account)?;
        if weight.bytes < allowed.max(weight.tolerated) || now < weight.look_at {
            return None;
        }
        weight.look_at = now + LOOK_AT_ACCOUNT_EVERY_MS;
        let (lanes, cooldown_ms) = (&self.lanes, self.breaker.cooldown_ms);
        let in_vain = weight.lanes.iter().copied().filter(|at| lanes[*at].grows_in_vain(now, cooldown_ms));
        let at = in_vain.max_by_key(|at| (lanes[*at].weight(), *at))?;
        weight.tolerated = weight.bytes + weight.bytes / 10;
        Some(Excess { at, quota: Quota::Account, bytes: weight.bytes, allowed })
    }
}

/// For people who find the endpoint paused: what was too much, and what to do.
fn why(excess: &Excess, endpoint: &Endpoint, own: u64) -> String {
    let Excess { quota, bytes: has, allowed, .. } = excess;
    let (id, account, quota) = (&endpoint.id, &endpoint.account, quota.name());
    let whose = match excess.quota {
        Quota::Endpoint => format!("its undelivered events take {} of Redis", bytes(*has)),
        Quota::Account => format!(
            "the undelivered events of {account} take {} of Redis, and {} of them are this endpoint's",
            bytes(*has),
            bytes(own)
        ),
    };
    format!(
        "{whose}; quota.{quota} is {}, and the receiver takes none. They are kept, and more are added: mend the receiver, then \
         herald endpoint resume {id} --reason '…'",
        bytes(*allowed)
    )
}
