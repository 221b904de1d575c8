//! What this process asks of Redis: how long the calls take, and what fails. Like the log, there is one for the process:
//! connections are made in many places, and none of them has to carry the metrics along.

use std::{sync::LazyLock, time::Duration};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::{Registry, Unit},
};

/// Seconds, fine around a batch of the owner's (half a millisecond), coarse where Redis stalls.
const CALL_BUCKETS: [f64; 13] = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0];

/// What a call is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallKind {
    Read,
    Settle,
    Ask,
    Claim,
    Backlog,
    Renew,
    Trim,
    Registry,
    Inbox,
    Other,
}

impl CallKind {
    const ALL: [Self; 10] = [
        Self::Read,
        Self::Settle,
        Self::Ask,
        Self::Claim,
        Self::Backlog,
        Self::Renew,
        Self::Trim,
        Self::Registry,
        Self::Inbox,
        Self::Other,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Settle => "settle",
            Self::Ask => "ask",
            Self::Claim => "claim",
            Self::Backlog => "backlog",
            Self::Renew => "renew",
            Self::Trim => "trim",
            Self::Registry => "registry",
            Self::Inbox => "inbox",
            Self::Other => "other",
        }
    }
}

/// Why a call failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    Unavailable,
    TimedOut,
    Full,
    Loading,
    ReadOnly,
    Denied,
    /// Of a Cluster: the slot is another node's,
    Moved,
    /// … is on its way there,
    Ask,
    /// … is half there,
    TryAgain,
    /// … or nobody's.
    ClusterDown,
    /// A script or a command broke off.
    Script,
    Other,
}

impl Trouble {
    const ALL: [Self; 12] = [
        Self::Unavailable,
        Self::TimedOut,
        Self::Full,
        Self::Loading,
        Self::ReadOnly,
        Self::Denied,
        Self::Moved,
        Self::Ask,
        Self::TryAgain,
        Self::ClusterDown,
        Self::Script,
        Self::Other,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Unavailable => "unavailable",
            Self::TimedOut => "timed_out",
            Self::Full => "full",
            Self::Loading => "loading",
            Self::ReadOnly => "read_only",
            Self::Denied => "denied",
            Self::Moved => "moved",
            Self::Ask => "ask",
            Self::TryAgain => "try_again",
            Self::ClusterDown => "cluster_down",
            Self::Script => "script",
            Self::Other => "other",
        }
    }
}

/// What is waited for until replicas have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replicated {
    /// A batch of entries that are passed on to a part.
    Routed,
    /// A page of what a split hands over to parts.
    HandedOver,
    /// An event of the operations API.
    Published,
}

impl Replicated {
    const ALL: [Self; 3] = [Self::Routed, Self::HandedOver, Self::Published];

    fn name(self) -> &'static str {
        match self {
            Self::Routed => "routed",
            Self::HandedOver => "handed_over",
            Self::Published => "published",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabel {
    call: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

struct Asked {
    calls: Family<CallLabel, Histogram, fn() -> Histogram>,
    errors: Family<KindLabel, Counter>,
    unconfirmed: Family<KindLabel, Counter>,
    /// In the order of [`CallKind::ALL`], which is that of its variants.
    by_call: [Histogram; CallKind::ALL.len()],
    /// In the order of [`Trouble::ALL`], which is that of its variants.
    by_kind: [Counter; Trouble::ALL.len()],
    /// In the order of [`Replicated::ALL`], which is that of its variants.
    by_replicated: [Counter; Replicated::ALL.len()],
}

static ASKED: LazyLock<Asked> = LazyLock::new(|| {
    let calls = Family::new_with_constructor((|| Histogram::new(CALL_BUCKETS)) as fn() -> Histogram);
    let errors = Family::<KindLabel, Counter>::default();
    let unconfirmed = Family::<KindLabel, Counter>::default();
    let by_call = CallKind::ALL.map(|call| calls.get_or_create_owned(&CallLabel { call: call.name() }));
    let by_kind = Trouble::ALL.map(|kind| errors.get_or_create_owned(&KindLabel { kind: kind.name() }));
    let by_replicated = Replicated::ALL.map(|kind| unconfirmed.get_or_create_owned(&KindLabel { kind: kind.name() }));
    Asked { calls, errors, unconfirmed, by_call, by_kind, by_replicated }
});

/// A call was answered, or given up, after this time.
pub fn ended(call: CallKind, took: Duration) {
    ASKED.by_call[call as usize].observe(took.as_secs_f64());
}

/// A call failed, or its answer was lost.
pub fn failed(why: Trouble) {
    ASKED.by_kind[why as usize].inc();
}

/// Replicas did not confirm this many in time.
pub fn unconfirmed(what: Replicated, count: usize) {
    ASKED.by_replicated[what as usize].inc_by(count as u64);
}

pub(super) fn register(registry: &mut Registry) {
    let help = "Calls on Redis, from the question to the whole answer";
    registry.register_with_unit("redis_call_duration", help, Unit::Seconds, ASKED.calls.clone());
    registry.register("redis_errors", "Calls on Redis that failed or whose answer was lost", ASKED.errors.clone());
    let help = "What replicas did not confirm in time, of what waits for them";
    registry.register("replication_unconfirmed", help, ASKED.unconfirmed.clone());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_counted_under_its_own_name() {
        assert_eq!(CallKind::ALL.map(|call| call as usize).to_vec(), Vec::from_iter(0..CallKind::ALL.len()));
        assert_eq!(Trouble::ALL.map(|kind| kind as usize).to_vec(), Vec::from_iter(0..Trouble::ALL.len()));
        assert_eq!(Replicated::ALL.map(|kind| kind as usize).to_vec(), Vec::from_iter(0..Replicated::ALL.len()));
    }
}
