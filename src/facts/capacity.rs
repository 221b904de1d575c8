//! How large an installation must be for what is asked of it: workers, masters, partitions, memory, network, and what gives way first
//! beyond that. Arithmetic on costs, measured or estimated, which stand in `costs.json` with where each comes from.

use std::{collections::BTreeMap, sync::LazyLock};

use serde::{Deserialize, Serialize};

/// What is asked.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Demand {
    pub events_per_s: f64,
    pub endpoints: u64,
    /// Endpoints that an event is owed to, on average.
    pub fan_out: f64,
    /// The part of all deliveries whose receivers take nothing for as long as `retention_s`.
    pub failure_rate: f64,
    /// How long a delivery is tried before it is given up, and a dead letter is kept.
    pub retention_s: f64,
    /// How long nobody may read the stream without anything being lost.
    pub outage_s: f64,
    pub https: bool,
    /// How long receivers take to answer.
    pub latency_ms: f64,
    pub body_bytes: f64,
    /// The part of all events that the largest account has.
    pub largest_account: f64,
}

impl Demand {
    fn deliveries_per_s(&self) -> f64 {
        self.events_per_s * self.fan_out
    }
}

/// One figure that the plan rests on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    pub value: f64,
    pub unit: String,
    pub source: String,
}

/// By their names.
pub type Costs = BTreeMap<String, Cost>;

static SHIPPED: LazyLock<Costs> =
    LazyLock::new(|| serde_json::from_str(include_str!("costs.json")).expect("a test reads it"));

/// Those that this Herald was released with.
pub fn shipped() -> &'static Costs {
    &SHIPPED
}

/// Cores are planned to be busy for this part of the time, and masters for this one: a failover, a fork and a burst need the rest.
const CORES_BUSY: f64 = 0.6;
const MASTERS_BUSY: f64 = 0.5;

/// Receivers far away cost more than those of a benchmark: more connections, smaller batches, more that wait.
const REAL_RECEIVERS: f64 = 1.5;

const CORES_OF_WORKER: f64 = 4.0;

/// Events of a partition that come within this time of each other share the calls that read and settle them, if it is its process'
/// only one. With more the process comes to each of them less often: by this power of their number. Both are fitted:
/// `make bench-scale ARGS="--only plan"` shows how well, with one partition and with 64.
const SHARED_S: f64 = 0.0011;
const SHARED_POWER: f64 = 0.7;

/// Each master has so many copies where there are several; a single one has one, and sentinels.
const REPLICAS: u64 = 2;

/// Memory is planned to be full to this part: a copy on write, a buffer for replicas and fragmentation need the rest.
const MEMORY_FULL: f64 = 0.6;

/// What a Redis of more gigabytes takes to start, to copy and to fail over is more than anybody wants to wait for.
const MASTER_GB: f64 = 64.0;

/// Every process holds all endpoints in memory up to here.
const REGISTRY: f64 = 500_000.0;

/// Every node of a Cluster talks to every other.
const GOSSIP_MASTERS: f64 = 100.0;

/// From this rate on a stream is split early, while that is cheap.
const SPLIT_PER_S: f64 = 10_000.0;

/// Deliveries a second for which a partition is planned, a tenth of what it can do: an account that grows stays in its place.
const OF_PARTITION_PER_S: f64 = 2_000.0;

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    pub deliveries_per_s: f64,
    /// Of Herald, all workers together, with one worker more than that takes.
    pub workers: u64,
    pub cores_per_worker: u64,
    /// What they need while all is well.
    pub cores: f64,
    /// What of that would be at work with receivers close by.
    pub cores_at_work: f64,
    pub masters: u64,
    /// Of all masters together.
    pub replicas: u64,
    /// Of a master, at the planned rate.
    pub master_cores: f64,
    pub partitions: u64,
    /// How producers get their events in.
    pub way_in: WayIn,
    /// What Redis holds at most, without replicas, and what is to be given to each master for that.
    pub memory_gb: f64,
    pub memory_gb_per_master: f64,
    /// Of that, entries nobody has read in an outage, and unfinished deliveries and dead letters of dead receivers.
    pub outage_gb: f64,
    pub undelivered_gb: f64,
    pub undelivered: f64,
    pub registry_mb_per_worker: f64,
    /// Requests that wait for an answer at a time.
    pub in_flight: f64,
    pub network: Network,
    /// The nearest limit first.
    pub limits: Vec<Limit>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum WayIn {
    /// Into the one stream, worked or routed.
    Front,
    /// Into the parts: by the ingest API, or by producers that compute them.
    Direct,
}

/// Megabytes a second.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Network {
    /// From producers to the masters, and again from these to the workers.
    pub events: f64,
    /// From the masters to their replicas.
    pub replication: f64,
    /// Between workers and receivers.
    pub receivers: f64,
}

/// Something that gives way when there is more of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Limit {
    pub what: &'static str,
    /// The part of it that the plan uses: above 1 it does not hold.
    pub used: f64,
    pub then: &'static str,
}

/// The smallest installation for the demand, by these costs. None if one that it needs is not among them.
pub fn plan(demand: &Demand, costs: &Costs) -> Option<Plan> {
    let cost = |name: &str| costs.get(name).map(|cost| cost.value).filter(|value| *value > 0.0);
    let deliveries = demand.deliveries_per_s();
    let failing = deliveries * demand.failure_rate;

    let tls = if demand.https { cost("herald_tls_ratio")? } else { 1.0 };
    let needed = |at_work: f64| at_work / CORES_BUSY * REAL_RECEIVERS;
    let busy = |cores: f64| (cores / if cores > 1.0 { CORES_OF_WORKER } else { 1.0 }).ceil().max(1.0);
    let for_deliveries = deliveries * cost("herald_us")? * tls / 1e6;
    let for_events = demand.events_per_s * cost("redis_event_us")?
        + deliveries * cost("redis_delivery_us")?
        + failing * cost("redis_record_us")?;
    let (herald_call_us, redis_call_us) = (cost("herald_call_us")?, cost("redis_call_us")?);

    let undelivered = failing * demand.retention_s;
    let undelivered_gb = undelivered * (demand.body_bytes + cost("record_bytes")?) / 1e9;
    let outage_gb = demand.events_per_s * demand.outage_s * (demand.body_bytes + cost("entry_bytes")?) / 1e9;
    let memory_gb = outage_gb + undelivered_gb;

    let masters_for = |cores: f64| match (cores / MASTERS_BUSY).max(memory_gb / MEMORY_FULL / MASTER_GB).ceil() {
        ..=1.0 => 1.0,
        // A Cluster has no fewer than three.
        more => more.max(3.0),
    };
    let at_work = busy(needed(for_deliveries));
    let with = |partitions: f64| {
        let shared = demand.events_per_s / partitions * SHARED_S * (partitions / at_work).max(1.0).powf(SHARED_POWER);
        let calls = demand.events_per_s / (1.0 + shared);
        (for_deliveries + calls * herald_call_us / 1e6, (for_events + calls * redis_call_us) / 1e6)
    };
    let is_split = masters_for(with(1.0).1) > 1.0 || deliveries >= SPLIT_PER_S;
    let parts = (8.0 * at_work).max(deliveries / OF_PARTITION_PER_S).clamp(64.0, 1_024.0);
    let partitions = if is_split { (parts as u64).next_power_of_two().min(1_024) } else { 1 };
    let (cores_at_work, redis_cores) = with(partitions as f64);

    let cores = needed(cores_at_work);
    let cores_per_worker = if cores > 1.0 { CORES_OF_WORKER } else { 1.0 };
    let busy_workers = busy(cores);
    let workers = busy_workers + 1.0;
    let masters = masters_for(redis_cores);
    let copies = if masters > 1.0 { REPLICAS } else { 1 };
    let is_direct = demand.events_per_s > cost("front_per_s")? * MASTERS_BUSY;

    let threads = busy_workers * (cores_per_worker * 2.0 / 3.0).round().max(1.0);
    let mut limits = vec![
        Limit {
            what: "one thread for attempts",
            used: deliveries / (cost("attempts_thread_per_s")? * threads),
            then: "more cores (HERALD_THREADS), then more workers",
        },
        Limit {
            what: "one Redis thread",
            used: redis_cores / masters,
            then: "more masters: a Cluster, with partitions",
        },
        Limit {
            what: "one account",
            used: demand.largest_account * deliveries / cost("partition_per_s")?,
            then: "split its partition, so that its neighbours leave it; beyond that an account needs more than Herald has",
        },
        Limit {
            what: "memory of what is not delivered",
            used: memory_gb / (masters * MASTER_GB * MEMORY_FULL),
            then: "a shorter retry.max_age, limits.disable_after, quotas; then more masters",
        },
        Limit {
            what: "the registry in every process",
            used: demand.endpoints as f64 / REGISTRY,
            then: "several installations, each with a part of the accounts",
        },
        Limit {
            what: "masters of one Cluster",
            used: masters / GOSSIP_MASTERS,
            then: "several installations, each with a part of the accounts",
        },
    ];
    if !is_direct {
        limits.push(Limit {
            what: "the one stream that producers write to",
            used: demand.events_per_s / cost("front_per_s")?,
            then: "write to the parts: by the ingest API, or by producers that compute them",
        });
    }
    limits.sort_by(|one, other| other.used.total_cmp(&one.used));

    let events_mb = demand.events_per_s * (demand.body_bytes + cost("command_bytes")?) / 1e6;
    Some(Plan {
        deliveries_per_s: deliveries,
        workers: workers as u64,
        cores_per_worker: cores_per_worker as u64,
        cores,
        cores_at_work,
        masters: masters as u64,
        replicas: masters as u64 * copies,
        master_cores: redis_cores / masters,
        partitions,
        way_in: if is_direct { WayIn::Direct } else { WayIn::Front },
        memory_gb,
        memory_gb_per_master: memory_gb / MEMORY_FULL / masters,
        outage_gb,
        undelivered_gb,
        undelivered,
        registry_mb_per_worker: demand.endpoints as f64 * cost("endpoint_bytes")? / 1e6,
        in_flight: deliveries * demand.latency_ms / 1e3,
        network: Network {
            events: events_mb,
            replication: events_mb * copies as f64,
            receivers: deliveries * (demand.body_bytes + cost("request_bytes")?) / 1e6,
        },
        limits,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demand(events_per_minute: f64) -> Demand {
        Demand {
            events_per_s: events_per_minute / 60.0,
            endpoints: 50_000,
            fan_out: 1.0,
            failure_rate: 0.0,
            retention_s: 72.0 * 3_600.0,
            outage_s: 600.0,
            https: false,
            latency_ms: 100.0,
            body_bytes: 600.0,
            largest_account: 0.01,
        }
    }

    /// Those of a machine on which the ladder of docs/scaling.md was worked out, for deliveries alone.
    fn costs() -> Costs {
        let mut costs = shipped().clone();
        let known = [
            ("herald_us", 24.2),
            ("herald_call_us", 1e-9),
            ("redis_event_us", 10.4),
            ("redis_delivery_us", 5.0),
            ("redis_call_us", 1e-9),
            ("entry_bytes", 90.0),
        ];
        for (name, value) in known {
            costs.get_mut(name).unwrap().value = value;
        }
        costs
    }

    fn planned(events_per_minute: f64) -> Plan {
        plan(&demand(events_per_minute), &costs()).unwrap()
    }

    #[test]
    fn every_cost_has_a_unit_and_a_source() {
        assert!(shipped().len() >= 12);
        assert!(shipped().values().all(|cost| cost.value > 0.0 && !cost.unit.is_empty() && !cost.source.is_empty()));
        for name in shipped().keys() {
            let mut without = shipped().clone();
            without.remove(name);
            let is_used = plan(&Demand { https: true, ..demand(1e6) }, &without).is_none();
            assert!(is_used, "no plan rests on {name}");
        }
    }

    #[test]
    fn the_ladder_is_climbed_step_by_step() {
        let few = planned(10.0);
        assert_eq!((few.workers, few.cores_per_worker, few.masters, few.replicas, few.partitions), (2, 1, 1, 1, 1));
        let million = planned(1e6);
        assert_eq!((million.masters, million.partitions, million.way_in), (1, 64, WayIn::Front));
        assert!((0.9..1.2).contains(&million.cores), "{}", million.cores);
        let ten = planned(1e7);
        assert_eq!((ten.workers, ten.masters, ten.replicas, ten.way_in), (4, 6, 12, WayIn::Direct));
        assert!((9.5..10.5).contains(&ten.cores) && (64..=256).contains(&ten.partitions));
        assert!((68.0..70.0).contains(&ten.outage_gb) && (120.0..130.0).contains(&ten.network.events));
        assert!((210.0..220.0).contains(&ten.network.receivers));
        let sixty = planned(6e7);
        assert_eq!((sixty.masters, sixty.replicas, sixty.partitions), (31, 62, 512));
    }

    #[test]
    fn dead_receivers_cost_memory_before_anything_else() {
        let demand = Demand { failure_rate: 0.01, ..demand(1e7) };
        let plan = plan(&demand, &costs()).unwrap();
        assert!((430e6..434e6).contains(&plan.undelivered) && (540.0..580.0).contains(&plan.undelivered_gb));
        assert!(plan.masters > 6 && plan.memory_gb_per_master <= MASTER_GB);
        assert_eq!(plan.limits[0].what, "memory of what is not delivered");
    }

    #[test]
    fn what_is_used_up_is_said_and_no_plan_uses_more_of_what_it_chooses() {
        for per_minute in [10.0, 1e5, 1e6, 5e6, 1e7, 6e7] {
            let plan = planned(per_minute);
            let over: Vec<_> = plan.limits.iter().filter(|limit| limit.used > 1.0).collect();
            assert!(over.is_empty(), "{per_minute} a minute: {over:?}");
            assert!(plan.limits.is_sorted_by(|one, other| one.used >= other.used));
        }
        let hot = Demand { largest_account: 0.5, ..demand(1e7) };
        let plan = plan(&hot, &costs()).unwrap();
        assert_eq!((plan.limits[0].what, plan.limits[0].used > 1.0), ("one account", true));
    }
}
