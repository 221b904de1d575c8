//! Judges the parts of a stream that is split: one finding for each kind of trouble, which names them. Pure, like
//! [`findings`](super::findings), of which it is a part.

use super::finding::Findings;
use crate::{
    facts::partition::Mode,
    store::queries::PartitionLook,
    surface::words::{count, number, span},
};

const SUBJECT: &str = "partitions";

/// A part whose oldest entry has waited for so long does not keep up.
const LATE_MS: u64 = 60_000;

/// Parts that are named; the others are counted.
const NAMED: usize = 8;

/// All partitions, the stream itself first, and those that did not answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parts {
    pub looks: Vec<PartitionLook>,
    pub silent: Vec<String>,
}

impl Parts {
    /// The stream itself passes its entries on, and delivers none.
    pub fn is_routed(&self) -> bool {
        self.looks.first().is_some_and(|root| matches!(root.mode, Mode::Routed { .. }))
    }
}

pub fn judge(findings: &mut Findings, parts: &Parts, now_ms: u64) {
    let Parts { looks, silent } = parts;
    if looks.len() + silent.len() <= 1 {
        return;
    }
    let before = findings.len();
    if !silent.is_empty() {
        let says = format!("no answer from {}: what is in them stands still", named(silent.iter().map(String::as_str)));
        findings.fail(SUBJECT, says, "start their nodes again; others' partitions go on meanwhile");
    }
    // Of the stream itself the other findings tell.
    let others = || looks.iter().skip(1);
    let orphans: Vec<&PartitionLook> = others().filter(|look| look.lease.is_none()).collect();
    if !orphans.is_empty() {
        let waiting: u64 = orphans.iter().map(|look| look.behind.unwrap_or(0) + look.unfinished).sum();
        let names = named(orphans.iter().map(|look| look.stream.as_str()));
        let says = format!("no worker owns {names}, and {} there", count(waiting, "delivery waits", "deliveries wait"));
        findings.fail(SUBJECT, says, "start more workers: herald serve; herald partition list shows who has which");
    }
    let late = |look: &&PartitionLook| {
        look.oldest_behind.and_then(|entry| entry.age_ms(now_ms)).is_some_and(|age_ms| age_ms > LATE_MS)
    };
    let late: Vec<String> = looks.iter().filter(late).map(|look| of_late(look, now_ms)).collect();
    if !late.is_empty() {
        let says = format!("not kept up with: {}", named(late.iter().map(String::as_str)));
        findings.warn(SUBJECT, says, "see what its worker does: herald partition list, and its log");
    }
    let quarantined: Vec<&PartitionLook> = others().filter(|look| look.quarantined > 0).collect();
    if !quarantined.is_empty() {
        let entries = quarantined.iter().map(|look| look.quarantined).sum();
        let entries = count(entries, "entry is in quarantine", "entries are in quarantine");
        let says = format!("{entries}, in {}", named(quarantined.iter().map(|look| look.stream.as_str())));
        findings.warn(SUBJECT, says, "look at them: herald quarantine list");
    }
    if findings.len() == before {
        findings
            .ok(SUBJECT, format!("{} and its {} each have an owner", looks[0].stream, number(looks.len() as u64 - 1)));
    }
}

fn of_late(look: &PartitionLook, now_ms: u64) -> String {
    let age_ms = look.oldest_behind.and_then(|entry| entry.age_ms(now_ms)).unwrap_or(0);
    let waiting = look.behind.map_or_else(|| "some".to_owned(), number);
    let more = if look.has_more_behind { " or more" } else { "" };
    format!("{} ({waiting}{more}, the oldest for {})", look.stream, span(age_ms))
}

fn named<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    match names.len().checked_sub(NAMED) {
        Some(more @ 1..) => format!("{} and {more} more", names[..NAMED].join(", ")),
        _ => names.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        doctor::finding::{Finding, Level},
        facts::{id::EntryId, partition::part_of},
        store::{keys::PartitionKeys, queries::LeaseLook},
    };

    const NOW_MS: u64 = 1_800_000_000_000;

    fn look(stream: &str, mode: Mode) -> PartitionLook {
        PartitionLook {
            stream: stream.to_owned(),
            mode,
            slot: PartitionKeys::new(stream).unwrap().slot(),
            lease: Some(LeaseLook { owner: "w1".to_owned(), left_ms: Some(1) }),
            behind: Some(0),
            has_more_behind: false,
            oldest_behind: None,
            pending: 0,
            due: 0,
            claimed: 0,
            unfinished: 0,
            dead: 0,
            quarantined: 0,
            routed: None,
        }
    }

    fn parts(number: u32) -> Parts {
        let mode = Mode::Routed { parts: number, token: "t".to_owned(), barrier: EntryId::ZERO };
        let of = |part| look(&part_of("s", part), Mode::Worked);
        Parts { looks: [look("s", mode)].into_iter().chain((0..number).map(of)).collect(), silent: Vec::new() }
    }

    fn judged(parts: &Parts) -> Vec<Finding> {
        let mut findings = Findings::default();
        judge(&mut findings, parts, NOW_MS);
        findings.worst_first()
    }

    #[test]
    fn each_kind_of_trouble_is_one_finding_that_names_the_parts() {
        let well = judged(&parts(16));
        assert_eq!((well.len(), well[0].level), (1, Level::Ok), "{well:#?}");
        let mut ill = parts(16);
        for part in 2..14 {
            ill.looks[part].lease = None;
            ill.looks[part].unfinished = 2;
        }
        ill.looks[15].oldest_behind = Some(EntryId { ms: NOW_MS - 120_000, seq: 0 });
        ill.looks[15].behind = Some(7);
        ill.looks[1].quarantined = 3;
        ill.silent.push("s:15".to_owned());
        let found = judged(&ill);
        let says: Vec<&str> = found.iter().map(|finding| finding.says.as_str()).collect();
        assert_eq!(
            says,
            [
                "no answer from s:15: what is in them stands still",
                "no worker owns s:1, s:2, s:3, s:4, s:5, s:6, s:7, s:8 and 4 more, and 24 deliveries wait there",
                "not kept up with: s:14 (7, the oldest for 2m)",
                "3 entries are in quarantine, in s:0",
            ]
        );
    }

    #[test]
    fn of_a_stream_that_is_not_split_nothing_is_said() {
        let one = Parts { looks: vec![look("s", Mode::Worked)], silent: Vec::new() };
        assert!(judged(&one).is_empty() && !one.is_routed() && parts(2).is_routed());
    }
}
