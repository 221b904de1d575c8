//! Judges how the nodes of a Cluster are set up. Pure, like [`findings`](super::findings), of which it is a part.

use super::finding::{Findings, Level};
use crate::{
    store::nodes::{ClusterLook, NodeLook},
    surface::words::{count, span},
};

const SUBJECT: &str = "cluster";

/// Due times follow the clock of the slot's node, and shift by the difference when another one takes it.
const CLOCKS_APART_MS: u64 = 1_000;

pub fn judge(findings: &mut Findings, look: &ClusterLook, lease_ttl_ms: u64) {
    let before = findings.len();
    let is_ours = |(first, last): (u16, u16)| look.ours.iter().any(|slot| (first..=last).contains(slot));
    if !look.unserved.is_empty() {
        let says =
            format!("no node serves {}: {}", slots(&look.unserved), waits(look.unserved.iter().copied().any(is_ours)));
        let remedy = "start their nodes again, or give them to others: redis-cli --cluster check HOST:PORT, then fix";
        findings.push(level(look.unserved.iter().copied().any(is_ours)), SUBJECT, says, remedy);
    }
    for (node, (slot, target)) in look.nodes.iter().flat_map(|node| node.leaving.iter().map(move |slot| (node, slot))) {
        let is_ours = is_ours((*slot, *slot));
        let says = format!("slot {slot} is on its way from {} to {target}: {}", node.address, waits(is_ours));
        let remedy =
            format!("if nobody is moving it now, it was left half moved: redis-cli --cluster fix {}", node.address);
        findings.push(level(is_ours), SUBJECT, says, remedy);
    }
    let masters = || look.nodes.iter().filter(|node| node.replicas.is_some());
    let mut warn = |nodes: Vec<&NodeLook>, what: &str, remedy: &str| {
        if !nodes.is_empty() {
            let names: Vec<&str> = nodes.iter().map(|node| node.address.as_str()).collect();
            findings.warn(SUBJECT, format!("{what}: {}", names.join(", ")), remedy);
        }
    };
    warn(
        masters().filter(|node| node.replicas == Some(0)).collect(),
        "masters without a replica, whose slots nobody serves once they die",
        "start a replica, and: redis-cli --cluster add-node NEW:PORT HOST:PORT --cluster-slave",
    );
    warn(
        masters().filter(|node| !node.wants_replicas).collect(),
        "min-replicas-to-write is 0, so a master that is cut off takes events that will be thrown away",
        "on each node: CONFIG SET min-replicas-to-write 1, then CONFIG REWRITE",
    );
    warn(
        look.nodes.iter().filter(|node| node.full_coverage == Some(true)).collect(),
        "cluster-require-full-coverage is yes, so one slot that nobody serves stops all of them",
        "on each node: CONFIG SET cluster-require-full-coverage no, then CONFIG REWRITE",
    );
    let is_slow = |node: &&NodeLook| node.timeout_ms.is_some_and(|timeout_ms| timeout_ms > lease_ttl_ms);
    warn(
        look.nodes.iter().filter(is_slow).collect(),
        &format!("cluster-node-timeout is longer than lease.ttl ({})", span(lease_ttl_ms)),
        "raise lease.ttl above it, or less is known of what was sent when a master dies: more is sent twice",
    );
    clocks(findings, look);
    if findings.len() == before && look.silent.is_empty() {
        let hidden = look.nodes.iter().any(|node| node.full_coverage.is_none());
        let unseen = if hidden { "; this user may not see its settings" } else { "" };
        let (all, masters) = (look.nodes.len() as u64, masters().count() as u64);
        findings.ok(
            SUBJECT,
            format!(
                "{} of {} serve every slot{unseen}",
                count(masters, "master", "masters"),
                count(all, "node", "nodes")
            ),
        );
    }
    for why in &look.silent {
        findings.warn(
            SUBJECT,
            format!("a node did not say how it is set up: {why}"),
            "see that it runs, with the users of the others",
        );
    }
}

fn level(is_ours: bool) -> Level {
    if is_ours { Level::Fail } else { Level::Warn }
}

fn waits(is_ours: bool) -> &'static str {
    if is_ours { "Herald's work stands still" } else { "none of them is Herald's" }
}

fn slots(parts: &[(u16, u16)]) -> String {
    let part = |(first, last): &(u16, u16)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    let parts: Vec<String> = parts.iter().map(part).collect();
    format!("slots {}", parts.join(", "))
}

/// What their answers took is no difference.
fn clocks(findings: &mut Findings, look: &ClusterLook) {
    let (first, last) =
        (look.nodes.iter().min_by_key(|node| node.ahead_ms), look.nodes.iter().max_by_key(|node| node.ahead_ms));
    let (Some(first), Some(last)) = (first, last) else { return };
    let apart = last.ahead_ms.abs_diff(first.ahead_ms).saturating_sub(first.within_ms.midpoint(last.within_ms));
    if apart > CLOCKS_APART_MS {
        let says = format!("the clock of {} is {} ahead of that of {}", last.address, span(apart), first.address);
        findings.warn(
            SUBJECT,
            says,
            "set both by NTP: retries come early or late by as much when a slot is another node's",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(address: &str) -> NodeLook {
        NodeLook {
            address: address.to_owned(),
            replicas: Some(1),
            wants_replicas: true,
            full_coverage: Some(false),
            timeout_ms: Some(5_000),
            ..NodeLook::default()
        }
    }

    fn judged(change: impl FnOnce(&mut ClusterLook)) -> Vec<(Level, String)> {
        let nodes = vec![node("a:1"), node("b:2"), NodeLook { replicas: None, wants_replicas: false, ..node("c:3") }];
        let mut look = ClusterLook { nodes, ours: vec![100, 3673], ..ClusterLook::default() };
        change(&mut look);
        let mut findings = Findings::default();
        judge(&mut findings, &look, 5_000);
        findings.worst_first().into_iter().map(|finding| (finding.level, finding.says)).collect()
    }

    #[test]
    fn a_cluster_that_is_well_says_one_thing() {
        let ok = |says: &str| [(Level::Ok, says.to_owned())];
        assert_eq!(judged(|_| ()), ok("2 masters of 3 nodes serve every slot"));
        let hidden = judged(|look| look.nodes.iter_mut().for_each(|node| node.full_coverage = None));
        assert_eq!(hidden, ok("2 masters of 3 nodes serve every slot; this user may not see its settings"));
    }

    #[test]
    fn what_stops_herald_is_a_failure_and_what_does_not_a_warning() {
        let moving = |slot| judged(|look| look.nodes[0].leaving = vec![(slot, "b:2".to_owned())]);
        let says = "slot 3673 is on its way from a:1 to b:2: Herald's work stands still";
        assert_eq!(moving(3673), [(Level::Fail, says.to_owned())]);
        assert_eq!(moving(3674)[0].0, Level::Warn);
        let hole = |part| judged(|look| look.unserved = vec![(7, 7), part]);
        assert_eq!(hole((90, 100))[0].0, Level::Fail);
        let says = "no node serves slots 7, 101-102: none of them is Herald's";
        assert_eq!(hole((101, 102)), [(Level::Warn, says.to_owned())]);
    }

    #[test]
    fn clocks_are_apart_by_more_than_the_answers_took() {
        let apart = |ahead_ms, within_ms| {
            judged(|look| (look.nodes[1].ahead_ms, look.nodes[1].within_ms) = (ahead_ms, within_ms)).remove(0)
        };
        assert_eq!(apart(1_001, 0), (Level::Warn, "the clock of b:2 is 1s ahead of that of a:1".to_owned()));
        assert!(apart(-1_001, 0).1.contains("ahead of that of b:2"));
        assert_eq!((apart(1_000, 0).0, apart(1_200, 500).0), (Level::Ok, Level::Ok));
    }
}
