//! Judges what was observed. Pure: every rule can be tested with numbers alone. Each finding that is not in order says
//! what to do about it.

use std::collections::BTreeMap;

use super::{
    certificates, cluster,
    finding::{Finding, Findings},
    intents, issues,
    observe::{Observed, Partition, RecordHolder, RegistryLook, STUCK_AFTER_MS, SealLook, Server},
    partitions, security,
};
use crate::{
    facts::id::{AccountId, EndpointId},
    store::{watch::Gauges, workers::Told},
    surface::words::{bytes, count, number, span},
};

/// From here on Herald reads little at a time, so that what it has read can still be settled.
const READING_STOPS_PERCENT: u64 = 90;
const CLOSE_PERCENT: u64 = 75;

/// Signatures carry our clock's seconds, and receivers refuse what is 5 minutes off; due times follow Redis' clock.
const SKEW_WARN_MS: u64 = 2_000;
const SKEW_FAIL_MS: u64 = 60_000;

/// A full Redis this near is worth waking someone for.
const FULL_SOON_MS: u64 = 24 * 3_600_000;

/// Clocks of one system differ by less.
const IDS_AHEAD_MS: u64 = 5_000;

/// An endpoint that is an hour behind has seen its fourth retry fail, or is paused.
const OLD_MS: u64 = 3_600_000;

/// How long events may stay unread though somebody owns the partition.
const UNREAD_MS: u64 = 30_000;

const NEAR_RETENTION_PERCENT: u64 = 80;

/// How many endpoints, and how many accounts, over their quota are named.
const MAX_OVER: usize = 5;

/// All findings, the worst first.
pub fn examine(observed: &Observed) -> Vec<Finding> {
    let mut findings = Findings::default();
    // Nothing can be at work before the first endpoint, so that is said before anything else of its level.
    let is_new = is_new(observed);
    if let Some(now_ms) = observed.redis_now_ms() {
        issues::judge(&mut findings, observed, now_ms);
    }
    if let (true, Some(registry)) = (is_new, &observed.registry) {
        endpoints(&mut findings, registry, observed.partition.as_ref());
    }
    match &observed.server {
        Err(why) => findings.fail("redis", why, "start Redis, or set HERALD_REDIS_URL to where it is"),
        Ok(server) => {
            reach(&mut findings, observed, server);
            durability(&mut findings, server);
            replicas(&mut findings, server, observed.limits.replicas_wanted);
            if let Some(look) = observed.intents {
                intents::judge(&mut findings, server, look, &observed.limits);
            }
            eviction(&mut findings, server);
            clocks(&mut findings, server);
            observed.workers.iter().for_each(|process| keys_of(&mut findings, process));
            // Who only serves signs nothing.
            let workers = observed.workers.iter().filter(|told| told.is_worker());
            workers.for_each(|worker| clock_of(&mut findings, worker));
        }
    }
    if let Some(look) = &observed.cluster {
        cluster::judge(&mut findings, look, observed.limits.lease_ttl_ms);
    }
    for why in &observed.unasked {
        findings.fail("access", why, "let the user do it: herald doctor --print-acl");
    }
    if let (Ok(server), Some(partition)) = (&observed.server, &observed.partition) {
        clock_step(&mut findings, partition, server.redis_now_ms);
        memory(&mut findings, server, partition);
        quotas(&mut findings, observed, server, partition);
        owner(&mut findings, observed, partition);
        if !observed.parts.is_routed() {
            group(&mut findings, observed, partition);
        }
        partitions::judge(&mut findings, &observed.parts, server.redis_now_ms);
        ids(&mut findings, partition, server.redis_now_ms);
        stuck(&mut findings, partition);
        unfinished(&mut findings, observed, partition, server.redis_now_ms);
        dead(&mut findings, observed, partition, server.redis_now_ms);
        quarantine(&mut findings, partition);
        feeds(&mut findings, observed, partition);
    }
    if let (false, Some(registry)) = (is_new, &observed.registry) {
        endpoints(&mut findings, registry, observed.partition.as_ref());
    }
    if let (Some(RegistryLook::There { certificates, .. }), Some(now_ms)) =
        (&observed.registry, observed.redis_now_ms())
    {
        certificates::judge(&mut findings, certificates, now_ms);
    }
    // Comes last of its level: whoever is on call came for something else, and this is as it was yesterday.
    if let Ok(server) = &observed.server {
        security::judge(&mut findings, server);
    }
    findings.worst_first()
}

/// No endpoint was ever created: no worker takes the partition yet, and there is no group.
fn is_new(observed: &Observed) -> bool {
    let is_bound = observed.partition.as_ref().is_some_and(|partition| partition.bound_registry.is_some());
    matches!(observed.registry, Some(RegistryLook::NeverMade)) && !is_bound
}

fn reach(findings: &mut Findings, observed: &Observed, server: &Server) {
    let (info, address) = (&server.info, &observed.address);
    if info.major_minor() < (7, 0) {
        let says = format!("Redis {} at {address} is too old", info.version);
        findings.fail("redis", says, "run Redis 7.0 or newer: Herald's scripts need its flags");
    } else if info.is_loading {
        let says = format!("Redis at {address} is still loading its data");
        findings.fail("redis", says, "wait; Herald goes on by itself when it is done");
    } else if !info.is_primary {
        let says = format!("Redis at {address} is a replica: nothing can be written there");
        findings.fail("redis", says, "set HERALD_REDIS_URL to the primary");
    } else {
        let up = span(info.uptime_s * 1000);
        findings.ok(
            "redis",
            format!("Redis {} at {address}, up {up}, answers in {}", info.version, span(server.round_trip_ms)),
        );
    }
}

fn replicas(findings: &mut Findings, server: &Server, wanted: u8) {
    let there = server.info.connected_replicas;
    if there < u64::from(wanted) {
        let says = format!(
            "redis.wait wants {wanted} replicas, and Redis has {there}: no event that is posted is taken, no stream is split, and no changed \
             endpoint is confirmed"
        );
        findings.fail("replicas", says, "attach replicas, or set HERALD_REDIS_WAIT to as many as there are");
    }
}

fn durability(findings: &mut Findings, server: &Server) {
    let always_or = |says: &str| format!("{says}; see deploy/redis.conf for the reasons");
    if !server.info.aof_enabled {
        let says = "the append-only file is off: a crash of Redis loses accepted events";
        return findings.fail(
            "durability",
            says,
            always_or("redis-cli CONFIG SET appendonly yes, and put it into redis.conf"),
        );
    }
    if !server.info.aof_last_write_ok {
        let says = "Redis could not write its append-only file";
        return findings.fail("durability", says, "free the disk that it is on, then look at Redis' log");
    }
    match server.settings.appendfsync.as_deref() {
        Some("no") => findings.warn(
            "durability",
            "appendfsync is no: the kernel decides when events reach the disk",
            always_or("redis-cli CONFIG SET appendfsync everysec"),
        ),
        Some("always") => findings.ok("durability", "append-only file on, synced before each answer"),
        Some(other) => findings.ok(
            "durability",
            format!("append-only file on, appendfsync {other}: a machine's crash can lose about a second"),
        ),
        None => findings.ok("durability", "append-only file on; this user may not see appendfsync"),
    }
}

fn eviction(findings: &mut Findings, server: &Server) {
    let info = &server.info;
    if info.maxmemory_policy != "noeviction" {
        let says =
            format!("maxmemory-policy is {}: a full Redis throws events and retries away", info.maxmemory_policy);
        findings.fail("eviction", says, "redis-cli CONFIG SET maxmemory-policy noeviction, and put it into redis.conf");
    } else if info.evicted_keys > 0 {
        let says = format!("Redis has evicted {} since it started", count(info.evicted_keys, "key", "keys"));
        let remedy = "the policy is right now; compare the producer's events with what was delivered";
        findings.warn("eviction", says, remedy);
    } else {
        findings.ok("eviction", "noeviction, and nothing was ever evicted");
    }
}

fn clocks(findings: &mut Findings, server: &Server) {
    let skew = server.our_now_ms.abs_diff(server.redis_now_ms).saturating_sub(server.round_trip_ms);
    let side = if server.our_now_ms > server.redis_now_ms { "ahead of" } else { "behind" };
    let says = format!("this machine's clock is {} {side} Redis'", span(skew));
    let remedy = "set both by NTP: due times follow Redis' clock, signatures this machine's";
    match skew {
        SKEW_FAIL_MS.. => findings.fail("clocks", says, remedy),
        SKEW_WARN_MS.. => findings.warn("clocks", says, remedy),
        _ => findings.ok("clocks", "this machine and Redis agree on the time"),
    }
}

/// A worker's own machine may be another than this one.
fn clock_of(findings: &mut Findings, worker: &Told) {
    let skew = worker.clock_ahead_ms.unsigned_abs();
    let side = if worker.clock_ahead_ms > 0 { "ahead of" } else { "behind" };
    let says =
        format!("the clock of the worker {} is {} {side} Redis': it dates what it signs", worker.name, span(skew));
    match skew {
        _ if !worker.tells_time() => findings.fail(
            "clocks",
            says,
            "set it by NTP: receivers refuse signatures that are minutes off, as 401 or 400",
        ),
        SKEW_WARN_MS.. => findings.warn("clocks", says, "set it by NTP"),
        _ => {}
    }
}

/// What is locked is so for one process, whose keys may be others than those here.
fn keys_of(findings: &mut Findings, worker: &Told) {
    if !worker.missing.is_empty() {
        let says = format!("endpoints wait at {}: it has not the key {}", worker.name, worker.missing.join(", "));
        findings.fail("endpoints", says, "give it the whole file of keys (master_key_file): herald key status");
    }
}

/// Reported for a day. The clock that told the time of the step may be another one by now.
fn clock_step(findings: &mut Findings, partition: &Partition, now_ms: u64) {
    const TOLD_FOR_MS: u64 = 86_400_000;
    let Some((at_ms, by_ms)) = partition.clock_step.filter(|(at_ms, _)| at_ms.abs_diff(now_ms) < TOLD_FOR_MS) else {
        return;
    };
    let way = if by_ms < 0 { "back" } else { "ahead" };
    findings.warn(
        "clocks",
        format!("Redis' clock stepped {way} by {} {} ago", span(by_ms.unsigned_abs()), span(at_ms.abs_diff(now_ms))),
        "have NTP slew it instead of setting it: dead letters and deliveries do not expire for ten minutes after a step",
    );
}

fn memory(findings: &mut Findings, server: &Server, partition: &Partition) {
    let (used, max) = (server.info.used_memory_bytes, server.info.maxmemory_bytes);
    if max == 0 {
        let says = format!("{} used and no maxmemory: the kernel would kill Redis instead", bytes(used));
        return findings.warn("memory", says, "set maxmemory in redis.conf; leave a third of the machine free");
    }
    let percent = used.saturating_mul(100) / max;
    let state = format!("{percent} % of {} used{}", bytes(max), backlog_share(partition));
    let remedy = "see what waits (unfinished and dead letters here), or raise it: redis-cli CONFIG SET maxmemory 2gb";
    let forecast = forecast_ms(used, max, partition);
    let says = match forecast {
        Some(left) => format!("{state}; if deliveries stopped now, it would be full in {}", span(left)),
        None => state,
    };
    match (percent, forecast) {
        (READING_STOPS_PERCENT.., _) => {
            findings.fail("memory", format!("{says}: what is new is read only as others end"), remedy);
        }
        (CLOSE_PERCENT.., _) => findings.warn("memory", says, remedy),
        (_, Some(left)) if left < FULL_SOON_MS => findings.warn("memory", says, remedy),
        _ => findings.ok("memory", says),
    }
}

/// Who has more in Redis than a quota allows: the heaviest endpoints and accounts.
fn quotas(findings: &mut Findings, observed: &Observed, server: &Server, partition: &Partition) {
    let quotas = observed.limits.quotas.with(server.info.maxmemory_bytes);
    let none = BTreeMap::new();
    let holders = match &observed.registry {
        Some(RegistryLook::There { holders, .. }) => holders,
        _ => &none,
    };
    let mut accounts: BTreeMap<&AccountId, u64> = BTreeMap::new();
    for (endpoint, weight) in &partition.weights {
        if let Some(holder) = holders.get(endpoint) {
            *accounts.entry(&holder.account).or_default() += weight;
        }
    }
    let mut is_over = false;
    let allowed = quotas.endpoint.unwrap_or(u64::MAX);
    for (endpoint, weight) in partition.weights.iter().filter(|(_, weight)| *weight >= allowed).take(MAX_OVER) {
        let (way, remedy) = what_of(endpoint, holders.get(endpoint));
        let says = format!(
            "{endpoint} has {} of undelivered events in Redis; quota.endpoint_bytes is {}{way}",
            bytes(*weight),
            bytes(allowed)
        );
        is_over = true;
        findings.warn("quota", says, remedy);
    }
    let allowed = quotas.account.unwrap_or(u64::MAX);
    let mut heavy: Vec<_> = accounts.into_iter().filter(|(_, weight)| *weight >= allowed).collect();
    heavy.sort_by_key(|(account, weight)| (u64::MAX - weight, *account));
    for (account, weight) in heavy.into_iter().take(MAX_OVER) {
        let says = format!(
            "{account} has {} of undelivered events in Redis; quota.account_bytes is {}",
            bytes(weight),
            bytes(allowed)
        );
        is_over = true;
        findings.warn("quota", says, format!("herald endpoint list --account {account}, and mend the receivers"));
    }
    match (is_over, quotas.endpoint, quotas.account) {
        (true, ..) => {}
        (false, None, None) => findings.ok("quota", "none is set: one endpoint may fill Redis"),
        (false, ..) => findings.ok("quota", "nobody's undelivered events take more of Redis than they may"),
    }
}

/// How an endpoint that is over its quota goes on, and what to do.
fn what_of(endpoint: &EndpointId, holder: Option<&RecordHolder>) -> (&'static str, String) {
    match holder {
        None => (" (it is deleted, or not readable)", format!("herald delivery list --endpoint {endpoint}")),
        Some(RecordHolder { is_paused: true, .. }) => (
            ", and it is paused",
            format!(
                "mend its receiver, then: herald endpoint resume {endpoint} --reason '…'; its reason: endpoint show"
            ),
        ),
        Some(RecordHolder { is_paused: false, .. }) => (
            ", and it goes on: it takes some, or has not grown since it was resumed",
            format!("herald endpoint show {endpoint}; where it only waits longer: raise max_in_flight or the quota"),
        ),
    }
}

/// What the unfinished records take, estimated from the weight of some.
fn backlog_share(partition: &Partition) -> String {
    let records = partition.gauges.unfinished;
    match (partition.record_bytes.checked_div(partition.records_weighed), records) {
        (Some(each), 1..) => {
            let records_text = count(records, "unfinished record", "unfinished records");
            format!(", of it about {} by {records_text}", bytes(each.saturating_mul(records)))
        }
        _ => String::new(),
    }
}

/// How long until reading stops if everything that is added stays. What is read becomes records of about its size, so
/// the heavier of the two counts. `None` without traffic.
fn forecast_ms(used: u64, max: u64, partition: &Partition) -> Option<u64> {
    let per_entry = partition.stream_bytes.checked_div(partition.gauges.length).unwrap_or(0);
    let per_record = partition.record_bytes.checked_div(partition.records_weighed).unwrap_or(0);
    let each = per_entry.max(per_record);
    let room = (max / 100 * READING_STOPS_PERCENT).saturating_sub(used);
    let growth = u128::from(partition.added_in_sample) * u128::from(each);
    let left = (u128::from(room) * u128::from(partition.sample_ms)).checked_div(growth)?;
    Some(u64::try_from(left).unwrap_or(u64::MAX))
}

fn owner(findings: &mut Findings, observed: &Observed, partition: &Partition) {
    let stream = &observed.stream;
    let gauges = &partition.gauges;
    let waiting = gauges.behind + gauges.unfinished + gauges.requests;
    match &partition.lease {
        None if is_new(observed) => findings.warn(
            "owner",
            format!("no worker owns {stream}: there is no endpoint to work for yet"),
            "create an endpoint, then start a worker: herald serve",
        ),
        None if waiting > 0 => findings.fail(
            "owner",
            format!("no worker owns {stream}, and {} wait", what_waits(gauges)),
            "start a worker: herald serve",
        ),
        None => {
            findings.warn("owner", format!("no worker owns {stream}; nothing waits"), "start a worker: herald serve")
        }
        Some(lease) => match lease.left_ms {
            Some(left) => {
                findings.ok("owner", format!("{} owns {stream}; its lease has {} left", lease.owner, span(left)))
            }
            None => findings.fail(
                "owner",
                format!("the lease of {stream} never ends: something other than Herald wrote it ({})", lease.owner),
                "start a worker: it gives the lease an end, and takes it after that",
            ),
        },
    }
}

fn what_waits(gauges: &Gauges) -> String {
    let parts = [
        (gauges.behind, count(gauges.behind, "entry", "entries")),
        (gauges.unfinished, count(gauges.unfinished, "unfinished delivery", "unfinished deliveries")),
        (gauges.requests, count(gauges.requests, "request", "requests")),
    ];
    let parts: Vec<String> = parts.into_iter().filter(|(n, _)| *n > 0).map(|(_, text)| text).collect();
    parts.join(", ")
}

fn group(findings: &mut Findings, observed: &Observed, partition: &Partition) {
    let (stream, gauges) = (&observed.stream, &partition.gauges);
    if !gauges.group {
        match gauges.length {
            0 => findings.warn(
                "group",
                format!("{stream} has no entries and no group yet"),
                "publish an event and start a worker: herald serve",
            ),
            n if is_new(observed) => findings.warn(
                "group",
                format!("{stream} has {} and no group yet", count(n, "entry", "entries")),
                "a worker makes it and reads them once there is an endpoint",
            ),
            n => findings.warn(
                "group",
                format!("the group herald is not there, and {} wait", count(n, "entry", "entries")),
                "the worker makes it again from its cursor: see that one runs (owner)",
            ),
        }
        return;
    }
    let server_now = observed.redis_now_ms().unwrap_or(0);
    let oldest = partition.oldest_unread.and_then(|entry| entry.age_ms(server_now));
    match (gauges.behind, oldest) {
        (1.., Some(age)) if age >= UNREAD_MS => findings.warn(
            "group",
            format!("{} unread, the oldest for {}", count(gauges.behind, "entry", "entries"), span(age)),
            "see owner, memory and endpoints here: each of them can stop the reading",
        ),
        (0, _) => findings.ok("group", "everything is read"),
        (n, _) => findings.ok("group", format!("{} unread, and being read", count(n, "entry", "entries"))),
    }
    let lost = gauges.trimmed_unread + gauges.foreign_trimmed;
    if lost > 0 {
        let says = format!(
            "{} trimmed before Herald read them: they are lost to it",
            count(lost, "entry was", "entries were")
        );
        findings.fail(
            "group",
            says,
            "find what trims the stream (XADD MAXLEN, XTRIM) and let only Herald do it; publish them anew",
        );
    }
    for consumer in &partition.foreign_consumers {
        if consumer.pending > 0 {
            let says =
                format!("a foreign consumer {:?} took {}", consumer.name, count(consumer.pending, "entry", "entries"));
            findings.warn(
                "group",
                says,
                "Herald takes them over every 10 s; find who reads with the group herald, and give it its own",
            );
        }
    }
}

/// Redis hands out no id below one that it has taken: after a single id from a clock that was ahead, all ids are.
fn ids(findings: &mut Findings, partition: &Partition, now_ms: u64) {
    let newest = partition.gauges.last_generated;
    match newest.ms.saturating_sub(now_ms) {
        0..=IDS_AHEAD_MS => findings.ok("ids", "the stream's ids do not run ahead of Redis' clock"),
        ahead => findings.warn(
            "ids",
            format!("the stream's newest id, {newest}, is {} ahead of Redis' clock", span(ahead)),
            "find the producer that writes ids of its own, and let it XADD with *; nothing is lost or reordered, but ages and \
             waiting times cannot be told until the clock has caught up",
        ),
    }
}

fn stuck(findings: &mut Findings, partition: &Partition) {
    let Some(oldest) = partition.stuck.iter().max_by_key(|pending| pending.idle_ms) else {
        return findings.ok("stuck", "no entry is read and left unsettled");
    };
    let says = format!(
        "{} read more than {} ago and not settled; {} for {}",
        count(partition.stuck.len() as u64, "entry was", "entries were"),
        span(STUCK_AFTER_MS),
        oldest.entry,
        span(oldest.idle_ms),
    );
    findings.warn("stuck", says, "look for their ids in the worker's log; a restart of the worker reads them again");
}

fn endpoints(findings: &mut Findings, registry: &RegistryLook, partition: Option<&Partition>) {
    let bound = partition.and_then(|partition| partition.bound_registry.as_deref());
    match (registry, bound) {
        (RegistryLook::NeverMade, None) => {
            findings.warn(
                "endpoints",
                "no endpoint was ever created: events wait",
                "herald endpoint create --account A --url U",
            );
        }
        (RegistryLook::NeverMade, Some(bound)) => findings.fail(
            "endpoints",
            format!("the registry {bound} has vanished: events wait"),
            "is this the right Redis and database? then: herald endpoint import FILE --reason '…'",
        ),
        (RegistryLook::Damaged(why), _) => {
            findings.fail(
                "endpoints",
                format!("the registry is damaged: {why}"),
                "herald endpoint import FILE --reason '…'",
            );
        }
        (RegistryLook::There { id, .. }, Some(bound)) if id != bound => findings.fail(
            "endpoints",
            format!("Redis has the registry {id}, and this partition belongs to {bound}: reading has stopped"),
            "if these are the right endpoints: herald endpoint accept-registry --reason '…'",
        ),
        (RegistryLook::There { endpoints, unreadable, pause, seal, .. }, _) => {
            sealing(findings, seal);
            if let Some(mark) = pause {
                let says = format!("all sending is paused by {}: {}", mark.by, mark.why);
                findings.warn("endpoints", says, "herald resume --all --reason '…'");
            }
            match unreadable.is_empty() {
                true => findings.ok("endpoints", count(*endpoints, "endpoint", "endpoints")),
                false => findings.fail(
                    "endpoints",
                    format!("not readable, so their accounts' events wait: {}", unreadable.join(", ")),
                    "a locked one: give this process its key; else run the newer Herald, or: herald endpoint import FILE --reason '…'",
                ),
            }
        }
    }
}

fn sealing(findings: &mut Findings, seal: &SealLook) {
    if let Some(file) = &seal.open_file {
        let says = format!("everybody on this machine may read the keys in {}", file.display());
        findings.warn("seal", says, "let its owner alone read it: chmod 600");
    }
    let clear = count(seal.unsealed, "secret or header is", "secrets and headers are");
    match (seal.has_keys, seal.unsealed) {
        (true, 0) => {
            findings.ok("seal", count(seal.sealed, "secret or header is sealed", "secrets and headers are sealed"))
        }
        (true, _) => {
            findings.warn(
                "seal",
                format!("{clear} in clear in Redis"),
                "herald key reseal --reason '…', then seal_only = true",
            );
        }
        (false, _) => findings.ok("seal", format!("nothing is sealed: {clear} in clear in Redis")),
    }
}

fn unfinished(findings: &mut Findings, observed: &Observed, partition: &Partition, now_ms: u64) {
    let oldest = partition.oldest.iter().filter_map(|one| Some((one, one.oldest.as_ref()?))).next();
    let Some((one, id)) = oldest else { return findings.ok("unfinished", "nothing waits for a retry or an endpoint") };
    let endpoints = count(partition.busy_endpoints as u64, "endpoint", "endpoints");
    let records = count(partition.gauges.unfinished, "delivery", "deliveries");
    let remedy = format!("herald delivery list --endpoint {}", one.endpoint);
    let Some(age) = id.entry.age_ms(now_ms) else {
        // Its id is not a time: only its record tells its age.
        return findings.warn("unfinished", format!("{records} of {endpoints} unfinished, the oldest is {id}"), remedy);
    };
    let says = format!("{records} of {endpoints} unfinished, the oldest for {}", span(age));
    match age {
        _ if age > observed.limits.max_age_ms.saturating_add(OLD_MS) && partition.lease.is_some() => findings.warn(
            "unfinished",
            format!("{says}, more than the retry policy's {}", span(observed.limits.max_age_ms)),
            format!("redelivered, or overridden by its endpoint? {remedy}"),
        ),
        OLD_MS.. => findings.warn("unfinished", says, remedy),
        _ => findings.ok("unfinished", says),
    }
}

fn dead(findings: &mut Findings, observed: &Observed, partition: &Partition, now_ms: u64) {
    let (letters, limits) = (partition.gauges.dead, observed.limits);
    let Some(oldest) = partition.oldest_dead_ms else { return findings.ok("dead letters", "none") };
    let age = now_ms.saturating_sub(oldest);
    let says = format!("{}, the oldest given up {} ago", count(letters, "dead letter", "dead letters"), span(age));
    let by_count = letters >= limits.dead_max_count / 100 * NEAR_RETENTION_PERCENT && letters > 0;
    if by_count && limits.dead_max_count >= 100 || age >= limits.dead_max_age_ms / 100 * NEAR_RETENTION_PERCENT {
        let kept = format!("{} letters or {}", number(limits.dead_max_count), span(limits.dead_max_age_ms));
        let says = format!("{says}: retention ({kept}) will soon drop some");
        return findings.warn(
            "dead letters",
            says,
            "herald dead-letter export -o jsonl > dead.jsonl, then redeliver or discard",
        );
    }
    findings.warn("dead letters", says, "herald dead-letter list");
}

fn quarantine(findings: &mut Findings, partition: &Partition) {
    let dropped = partition.gauges.quarantine_dropped;
    if dropped > 0 {
        let says = format!("{} dropped from it to stay within its limit", count(dropped, "entry was", "entries were"));
        findings.warn("quarantine", says, "tell the producer; limits.quarantine_bytes keeps more");
    }
    match partition.gauges.quarantined {
        0 => findings.ok("quarantine", "empty"),
        n => findings.warn(
            "quarantine",
            count(n, "entry is not a valid event", "entries are not valid events"),
            "herald quarantine list; then tell the producer",
        ),
    }
}

/// They are told all the same: merchants who only fetch do not see them.
fn feeds(findings: &mut Findings, observed: &Observed, partition: &Partition) {
    if partition.lost_from_feeds > 0 {
        let lost = count(partition.lost_from_feeds, "event is", "events are");
        let says = format!("{lost} missing in GET /events, because something else wrote to a feed of payment intents");
        let counts = format!("HDEL herald:{{{}}}:pi-count lost-feed", observed.stream);
        let remedy = format!("let nothing else write there (herald doctor --print-acl); then redis-cli {counts}");
        findings.warn("feeds", says, remedy);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{
        doctor::{finding::Level, observe::Limits},
        facts::{endpoint::Mark, id::EntryId, quota::Settings},
        store::{
            connection::{Reach, ServerInfo},
            queries::{IntentsLook, LeaseLook, Oldest, Pending, RedisSettings},
        },
    };

    const NOW: u64 = 1_700_000_000_000;
    const DAY_MS: u64 = 86_400_000;

    /// An observation in which nothing is wrong.
    pub(in crate::doctor) fn well() -> Observed {
        let info = ServerInfo {
            run_id: "abc".into(),
            version: "7.0.15".into(),
            is_primary: true,
            is_cluster: false,
            is_loading: false,
            used_memory_bytes: 10_000_000,
            maxmemory_bytes: 1_000_000_000,
            maxmemory_policy: "noeviction".into(),
            aof_enabled: true,
            aof_last_write_ok: true,
            evicted_keys: 0,
            connected_replicas: 0,
            uptime_s: 60,
        };
        let server = Server {
            info,
            settings: RedisSettings { appendfsync: Some("everysec".into()), longest_value_bytes: Some(1 << 20) },
            reach: Reach::ThisMachine,
            lets_strangers_in: Some(false),
            our_now_ms: NOW,
            redis_now_ms: NOW,
            round_trip_ms: 1,
        };
        let partition = Partition {
            gauges: Gauges { group: true, now_ms: NOW, ..Gauges::default() },
            sample_ms: 1_000,
            lease: Some(LeaseLook { owner: "a/1".into(), left_ms: Some(4_000) }),
            bound_registry: Some("reg_1".into()),
            ..Partition::default()
        };
        Observed {
            address: "127.0.0.1:6379".into(),
            stream: "payment-intents".into(),
            server: Ok(server),
            partition: Some(partition),
            registry: Some(RegistryLook::There {
                id: "reg_1".into(),
                endpoints: 2,
                unreadable: vec![],
                pause: None,
                holders: BTreeMap::new(),
                seal: SealLook::default(),
                certificates: BTreeMap::new(),
            }),
            intents: Some(IntentsLook::default()),
            issues: None,
            parts: partitions::Parts::default(),
            unserved: Vec::new(),
            workers: Vec::new(),
            unasked: Vec::new(),
            cluster: None,
            limits: Limits {
                lease_ttl_ms: 10_000,
                dead_max_count: 1_000,
                dead_max_age_ms: 30 * DAY_MS,
                max_age_ms: 3 * DAY_MS,
                quotas: Settings::default(),
                are_intents_served: false,
                is_sandbox: false,
                replicas_wanted: 0,
            },
        }
    }

    fn with_server(change: impl FnOnce(&mut Server)) -> Observed {
        let mut observed = well();
        change(observed.server.as_mut().unwrap());
        observed
    }

    fn with_partition(change: impl FnOnce(&mut Partition)) -> Observed {
        let mut observed = well();
        change(observed.partition.as_mut().unwrap());
        observed
    }

    fn with_registry(registry: RegistryLook) -> Observed {
        Observed { registry: Some(registry), ..well() }
    }

    #[track_caller]
    fn check(observed: &Observed, level: Level, subject: &str, says: &str) {
        let findings = examine(observed);
        let found = findings.iter().find(|finding| finding.level == level && finding.says.contains(says));
        let found = found.unwrap_or_else(|| panic!("no {level:?} says {says:?}: {findings:#?}"));
        assert_eq!(found.subject, subject);
        assert_eq!(found.remedy.is_some(), level != Level::Ok);
        assert!(findings.is_sorted_by_key(|finding| finding.level));
    }

    #[test]
    fn replicas_that_are_waited_for_and_are_not_there_are_missed() {
        let mut observed = well();
        observed.limits.replicas_wanted = 1;
        check(&observed, Level::Fail, "replicas", "redis.wait wants 1 replicas, and Redis has 0");
        observed.server.as_mut().unwrap().info.connected_replicas = 1;
        assert!(examine(&observed).iter().all(|finding| finding.level == Level::Ok));
    }

    #[test]
    fn all_is_well_where_nothing_is_wrong() {
        let findings = examine(&well());
        assert!(findings.iter().all(|finding| finding.level == Level::Ok), "{findings:#?}");
    }

    #[test]
    fn a_redis_that_can_lose_events_fails() {
        check(&with_server(|server| server.info.aof_enabled = false), Level::Fail, "durability", "is off");
        check(
            &with_server(|server| server.info.aof_last_write_ok = false),
            Level::Fail,
            "durability",
            "could not write",
        );
        check(
            &with_server(|server| server.settings.appendfsync = Some("no".into())),
            Level::Warn,
            "durability",
            "appendfsync is no",
        );
        check(&with_server(|server| server.settings.appendfsync = None), Level::Ok, "durability", "may not see");
        let evicts = with_server(|server| server.info.maxmemory_policy = "allkeys-lru".into());
        check(&evicts, Level::Fail, "eviction", "allkeys-lru");
        check(&with_server(|server| server.info.version = "6.2.6".into()), Level::Fail, "redis", "too old");
        check(&with_server(|server| server.info.is_primary = false), Level::Fail, "redis", "replica");
    }

    #[test]
    fn a_redis_that_lets_others_in_or_listen_is_warned_of() {
        let open = |reach| with_server(|server| (server.lets_strangers_in, server.reach) = (Some(true), reach));
        check(&open(Reach::ThisMachine), Level::Warn, "security", "serves anyone who can reach it");
        check(&open(Reach::Socket), Level::Ok, "security", "only users");
        check(&with_server(|server| server.reach = Reach::Plain), Level::Warn, "security", "not encrypted");
        check(&with_server(|server| server.reach = Reach::Encrypted), Level::Ok, "security", "only users");
        let unknown = with_server(|server| server.lets_strangers_in = None);
        check(&unknown, Level::Ok, "security", "could not be found out");
        let long = with_server(|server| server.settings.longest_value_bytes = Some(512 << 20));
        check(&long, Level::Warn, "security", "512.0 MiB");
    }

    #[test]
    fn the_forecast_says_when_reading_would_stop() {
        let growing = |added: u64| {
            with_partition(|partition| {
                // 890 MB of room at 1 000 bytes each.
                (partition.added_in_sample, partition.stream_bytes, partition.gauges.length) =
                    (added, 1_000_000, 1_000);
            })
        };
        check(&growing(100), Level::Warn, "memory", "it would be full in 2h 28m");
        check(&growing(1), Level::Ok, "memory", "it would be full in 10d 7h");
        check(
            &with_server(|server| server.info.used_memory_bytes = 950_000_000),
            Level::Fail,
            "memory",
            "only as others end",
        );
        check(&with_server(|server| server.info.used_memory_bytes = 800_000_000), Level::Warn, "memory", "80 %");
        check(&with_server(|server| server.info.maxmemory_bytes = 0), Level::Warn, "memory", "no maxmemory");
    }

    #[test]
    fn a_step_of_redis_clock_is_told_for_a_day() {
        let stepped = |at_ms| with_partition(|partition| partition.clock_step = Some((at_ms, -3_600_000)));
        check(&stepped(NOW - 60_000), Level::Warn, "clocks", "stepped back by 1h 1m ago");
        let findings = examine(&stepped(NOW - 2 * DAY_MS));
        assert!(findings.iter().all(|finding| !finding.says.contains("stepped")), "{findings:#?}");
    }

    #[test]
    fn clocks_apart_are_told_from_a_slow_answer() {
        let of = |stream: &str, clock_ahead_ms| Told {
            name: "host/7".to_owned(),
            stream: stream.to_owned(),
            clock_ahead_ms,
            ..Told::default()
        };
        let works = |clock_ahead_ms| Observed { workers: vec![of("payments", clock_ahead_ms)], ..well() };
        let serves = Observed { workers: vec![of("", 7_200_000)], ..well() };
        assert!(examine(&serves).iter().all(|finding| !finding.says.contains("host/7")), "it signs nothing");
        check(&works(7_200_000), Level::Fail, "clocks", "worker host/7 is 2h ahead of");
        check(&works(-3_000), Level::Warn, "clocks", "worker host/7 is 3s behind");
        assert!(examine(&works(1_999)).iter().all(|finding| !finding.says.contains("host/7")));
        check(&with_server(|server| server.our_now_ms += 5_001), Level::Warn, "clocks", "5s ahead of");
        check(&with_server(|server| server.redis_now_ms += 90_000), Level::Fail, "clocks", "behind");
        let slow = with_server(|server| (server.our_now_ms, server.round_trip_ms) = (NOW + 5_000, 9_000));
        check(&slow, Level::Ok, "clocks", "agree");
    }

    #[test]
    fn a_process_without_a_key_is_named_whatever_keys_there_are_here() {
        for stream in ["payments", ""] {
            let lacks = Told {
                name: "host/7".to_owned(),
                stream: stream.to_owned(),
                missing: vec!["a3459a75e2d8".to_owned()],
                ..Told::default()
            };
            let observed = Observed { workers: vec![lacks], ..well() };
            check(&observed, Level::Fail, "endpoints", "wait at host/7: it has not the key a3459a75e2d8");
        }
    }

    #[test]
    fn nobody_at_work_fails_only_if_something_waits() {
        check(&with_partition(|partition| partition.lease = None), Level::Warn, "owner", "nothing waits");
        let waiting = with_partition(|partition| (partition.lease, partition.gauges.behind) = (None, 7));
        check(&waiting, Level::Fail, "owner", "and 7 entries wait");
        let endless = with_partition(|partition| partition.lease.iter_mut().for_each(|lease| lease.left_ms = None));
        check(&endless, Level::Fail, "owner", "never ends");
    }

    #[test]
    fn what_is_stuck_lost_or_foreign_is_named() {
        let pending =
            Pending { entry: "17-1".parse().unwrap(), consumer: "herald".into(), idle_ms: 90_000, handed_out: 1 };
        check(&with_partition(|partition| partition.stuck = vec![pending]), Level::Warn, "stuck", "17-1 for 1m 30s");
        check(
            &with_partition(|partition| partition.gauges.trimmed_unread = 3),
            Level::Fail,
            "group",
            "3 entries were trimmed",
        );
        check(&with_partition(|partition| partition.gauges.quarantined = 1), Level::Warn, "quarantine", "1 entry");
        let feeds = with_partition(|partition| partition.lost_from_feeds = 2);
        check(&feeds, Level::Warn, "feeds", "2 events are missing");
        let dead = |oldest| {
            with_partition(|partition| (partition.gauges.dead, partition.oldest_dead_ms) = (5, Some(NOW - oldest)))
        };
        check(&dead(DAY_MS), Level::Warn, "dead letters", "5 dead letters, the oldest given up 1d ago");
        check(&dead(29 * DAY_MS), Level::Warn, "dead letters", "retention (1 000 letters or 30d) will soon drop some");
    }

    #[test]
    fn ids_that_are_no_times_are_said_and_taken_for_none() {
        let newest = |ms| with_partition(|partition| partition.gauges.last_generated = EntryId { ms, seq: 0 });
        check(&newest(NOW + DAY_MS), Level::Warn, "ids", "is 1d ahead of Redis' clock");
        check(&newest(NOW * 1_000), Level::Warn, "ids", "ahead of Redis' clock");
        check(&newest(NOW + 1_000), Level::Ok, "ids", "do not run ahead");
        check(&newest(42), Level::Ok, "ids", "do not run ahead");
        let unfinished = with_partition(|partition| {
            let oldest = "42-0:ep_a".parse().ok();
            partition.oldest = vec![Oldest { endpoint: "ep_a".parse().unwrap(), unfinished: 1, parked: 0, oldest }];
        });
        check(&unfinished, Level::Warn, "unfinished", "the oldest is 42-0:ep_a");
        let unread = with_partition(|partition| {
            (partition.gauges.behind, partition.oldest_unread) = (1, Some(EntryId { ms: 42, seq: 0 }));
        });
        check(&unread, Level::Ok, "group", "1 entry unread, and being read");
        let dropped = with_partition(|partition| partition.gauges.quarantine_dropped = 799);
        check(&dropped, Level::Warn, "quarantine", "799 entries were dropped");
    }

    #[test]
    fn who_has_more_in_redis_than_a_quota_allows_is_named_with_what_to_do() {
        // A sixteenth of 1 GB is 62.5 MB, a quarter 250 MB.
        let heavy = |weights: &[(&str, u64)], is_paused| {
            let mut observed = with_partition(|partition| {
                partition.weights = weights.iter().map(|(id, bytes)| (id.parse().unwrap(), *bytes)).collect();
            });
            let holder = RecordHolder { account: "acc_1".parse().unwrap(), is_paused };
            if let Some(RegistryLook::There { holders, .. }) = &mut observed.registry {
                *holders = weights.iter().map(|(id, _)| (id.parse().unwrap(), holder.clone())).collect();
            }
            observed
        };
        let paused = heavy(&[("ep_a", 70_000_000), ("ep_b", 60_000_000)], true);
        check(&paused, Level::Warn, "quota", "ep_a has 66.8 MiB of undelivered events in Redis");
        check(&paused, Level::Warn, "quota", "and it is paused");
        assert!(examine(&paused).iter().all(|finding| !finding.says.contains("ep_b")));
        check(&heavy(&[("ep_a", 70_000_000)], false), Level::Warn, "quota", "it goes on");
        let many: Vec<(String, u64)> = (0..5).map(|n| (format!("ep_{n}"), 60_000_000)).collect();
        let many: Vec<(&str, u64)> = many.iter().map(|(id, bytes)| (id.as_str(), *bytes)).collect();
        check(&heavy(&many, false), Level::Warn, "quota", "acc_1 has 286.1 MiB");
        check(&heavy(&many[..4], false), Level::Ok, "quota", "nobody's undelivered events");
        let off = crate::facts::quota::Setting::Off;
        let mut none = heavy(&many, false);
        none.limits.quotas = Settings { endpoint: off, account: off };
        check(&none, Level::Ok, "quota", "none is set");
    }

    #[test]
    fn what_is_not_sealed_beside_keys_and_keys_that_everybody_reads_are_found() {
        let sealed = |seal: SealLook| {
            with_registry(RegistryLook::There {
                id: "reg_1".into(),
                endpoints: 1,
                unreadable: vec![],
                pause: None,
                holders: BTreeMap::new(),
                seal,
                certificates: BTreeMap::new(),
            })
        };
        let keys = SealLook { has_keys: true, sealed: 3, ..SealLook::default() };
        check(&sealed(keys.clone()), Level::Ok, "seal", "3 secrets and headers are sealed");
        check(
            &sealed(SealLook { unsealed: 2, ..keys.clone() }),
            Level::Warn,
            "seal",
            "2 secrets and headers are in clear",
        );
        check(&sealed(SealLook { open_file: Some("/keys".into()), ..keys }), Level::Warn, "seal", "the keys in /keys");
        check(&sealed(SealLook { unsealed: 2, ..SealLook::default() }), Level::Ok, "seal", "nothing is sealed");
    }

    #[test]
    fn a_lost_registry_is_never_taken_for_an_empty_one() {
        check(&with_registry(RegistryLook::NeverMade), Level::Fail, "endpoints", "reg_1 has vanished");
        let there = |id: &str, unreadable: Vec<String>, pause| {
            with_registry(RegistryLook::There {
                id: id.into(),
                endpoints: 1,
                unreadable,
                pause,
                holders: BTreeMap::new(),
                seal: SealLook::default(),
                certificates: BTreeMap::new(),
            })
        };
        check(&there("reg_2", vec![], None), Level::Fail, "endpoints", "belongs to reg_1");
        check(&there("reg_1", vec!["ep_x".into()], None), Level::Fail, "endpoints", "ep_x");
        let mark = Mark { by: "ann".into(), why: "incident".into(), at_ms: 1 };
        check(&there("reg_1", vec![], Some(mark)), Level::Warn, "endpoints", "paused by ann: incident");
        let mut new = with_registry(RegistryLook::NeverMade);
        let partition = new.partition.as_mut().unwrap();
        (partition.bound_registry, partition.lease) = (None, None);
        (partition.gauges.group, partition.gauges.behind, partition.gauges.length) = (false, 3, 3);
        check(&new, Level::Warn, "endpoints", "no endpoint was ever created");
        check(&new, Level::Warn, "group", "3 entries and no group yet");
        let findings = examine(&new);
        assert_eq!((findings[0].subject, findings[0].level), ("endpoints", Level::Warn), "{findings:#?}");
    }
}
