//! Judges what hits merchants: endpoints that fail, dead letters, and events that nobody is told of. Pure, like
//! [`findings`](super::findings), of which it is a part.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    finding::{Findings, ISSUES},
    observe::Observed,
};
use crate::{
    facts::{
        health::DAY_MS,
        id::{AccountId, EndpointId},
        issue::{Issue, State},
        unserved::{OddCount, Unserved},
    },
    store::queries::IssuesLook,
    surface::words::{count, number, span},
};

/// How many issues, and how many accounts, are named.
const NAMED: usize = 5;

/// From this part of the endpoints on it is no merchant's own matter any more, or there are too many merchants to wait. A single
/// one of many is never that.
const FAIL_PERCENT: u64 = 10;
const FAIL_LEAST: u64 = 2;

pub fn judge(findings: &mut Findings, observed: &Observed, now_ms: u64) {
    let Some(look) = &observed.issues else { return };
    let open: Vec<&Issue> = look.issues.iter().filter(|issue| issue.state == State::Open).collect();
    failing(findings, look, &open);
    open.iter().take(NAMED).for_each(|issue| name(findings, issue, now_ms));
    if let more @ 1.. = open.len().saturating_sub(NAMED) {
        findings.warn(ISSUES, format!("{} more are open", number(more as u64)), "herald issue list");
    }
    if look.survey.failing == 0 && open.is_empty() {
        let known = look.issues.len() as u64;
        match known {
            0 => findings.ok(ISSUES, "no endpoint fails, and there are no dead letters"),
            known => findings.ok(ISSUES, format!("{} known, and none open", count(known, "issue is", "issues are"))),
        }
    }
    unserved(findings, &observed.unserved, now_ms);
    skipped(findings, look, now_ms);
}

/// How many take nothing, of those that were sent to.
fn failing(findings: &mut Findings, look: &IssuesLook, open: &[&Issue]) {
    let survey = &look.survey;
    let (failing, active) = (survey.failing, survey.active());
    if failing == 0 {
        return;
    }
    let fail_openly: BTreeSet<&EndpointId> =
        open.iter().filter(|issue| issue.is_failing).map(|issue| &issue.id.endpoint).collect();
    let accounts: BTreeSet<&AccountId> =
        survey.troubled.values().filter_map(|health| health.account.as_ref()).collect();
    let percent = failing * 100 / active.max(1);
    let says = format!(
        "{} of {} that events were sent to within a day {} nothing ({percent} %), of {}",
        number(failing),
        count(active, "endpoint", "endpoints"),
        if failing == 1 { "takes" } else { "take" },
        count(accounts.len() as u64, "account", "accounts"),
    );
    let remedy = "herald issue list; where all have one cause, it may lie between Herald and them";
    // What somebody deals with is no alarm any more.
    let is_many = failing >= FAIL_LEAST && percent >= FAIL_PERCENT && !fail_openly.is_empty();
    match is_many {
        true => findings.fail(ISSUES, says, remedy),
        false => findings.warn(ISSUES, says, remedy),
    }
}

fn name(findings: &mut Findings, issue: &Issue, now_ms: u64) {
    let account = issue.account.as_ref().map_or(String::new(), |account| format!(" of {account}"));
    let mut counts = Vec::new();
    if issue.attempts > 0 {
        counts.push(format!("{} failed", count(issue.attempts, "attempt", "attempts")));
    }
    if issue.letters > 0 {
        counts.push(count(issue.letters, "dead letter", "dead letters"));
    }
    let says = format!(
        "{}{account} {}; for {}: {}",
        issue.id.endpoint,
        issue.diagnosis.what,
        span(now_ms.saturating_sub(issue.first_ms)),
        counts.join(", ")
    );
    let who = issue.diagnosis.who.name();
    findings.warn(ISSUES, says, format!("{who} must act: herald issue show {}", issue.id));
}

/// Nothing fails there, so nothing else shows it. Told for a day after the last event.
fn unserved(findings: &mut Findings, unserved: &[(AccountId, Unserved)], now_ms: u64) {
    let recent = |odd: fn(&Unserved) -> Option<&OddCount>| {
        let all = unserved.iter().filter_map(move |(account, unserved)| Some((account, odd(unserved)?)));
        let mut recent: Vec<_> = all.filter(|(_, odd)| odd.count.last_ms + DAY_MS > now_ms).collect();
        recent.sort_by_key(|(account, odd)| (u64::MAX - odd.count.count, (*account).clone()));
        recent
    };
    let none = recent(|unserved| unserved.no_endpoint.as_ref());
    for (account, odd) in none.iter().take(NAMED) {
        let says = format!(
            "{account} has no endpoint for {}, the last {} ago ({}): nobody is told of them",
            count(odd.count.count, "event", "events"),
            span(now_ms.saturating_sub(odd.count.last_ms)),
            odd.entry
        );
        findings.warn("unserved", says, format!("herald endpoint list --account {account}; is one missing?"));
    }
    more(findings, none.len(), "have events without an endpoint");
    let unknown = recent(|unserved| unserved.unknown_type.as_ref());
    for (account, odd) in unknown.iter().take(NAMED) {
        let says = format!(
            "{account} has {} of a type that this Herald does not know, last {:?} ({})",
            count(odd.count.count, "event", "events"),
            odd.event_type,
            odd.entry
        );
        findings.warn("unserved", says, "is it meant? It was delivered; ask its producer, or set events.strict");
    }
    more(findings, unknown.len(), "have events of an unknown type");
    let misplaced = recent(|unserved| unserved.misplaced.as_ref());
    for (account, odd) in misplaced.iter().take(NAMED) {
        let says = format!(
            "{account} has {} in a partition that it does not belong to, the last {} ago ({}): their order is lost",
            count(odd.count.count, "event", "events"),
            span(now_ms.saturating_sub(odd.count.last_ms)),
            odd.entry
        );
        findings.warn("unserved", says, format!("herald partition of {account}; its producer computes another"));
    }
    more(findings, misplaced.len(), "have events in a partition that they do not belong to");
}

fn more(findings: &mut Findings, found: usize, have: &str) {
    if let more @ 1.. = found.saturating_sub(NAMED) {
        let says = format!("{} more accounts {have}", number(more as u64));
        findings.warn("unserved", says, "herald doctor -o json names the first few; mend those, then look again");
    }
}

/// Events that came while an endpoint was disabled: they are not owed to it, and nobody keeps them for it.
fn skipped(findings: &mut Findings, look: &IssuesLook, now_ms: u64) {
    let recent: BTreeMap<&AccountId, &(u64, u64)> =
        look.survey.skipped.iter().filter(|(_, (_, last_ms))| last_ms + DAY_MS > now_ms).collect();
    for (account, (skipped, last_ms)) in recent.iter().take(NAMED) {
        let says = format!(
            "{account} has missed {} because an endpoint of it is disabled, the last {} ago",
            count(*skipped, "event", "events"),
            span(now_ms.saturating_sub(*last_ms))
        );
        let remedy = format!("herald endpoint list --account {account} --state disabled: is that meant?");
        findings.warn("unserved", says, remedy);
    }
    more(findings, recent.len(), "have missed events because of a disabled endpoint");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        doctor::{
            finding::{Finding, Level},
            findings::{examine, tests::well},
        },
        facts::{
            health::{Health, Seen},
            issue::{Said, issues},
            unserved::{OddSeen, Oddity},
        },
        store::queries::Survey,
    };

    fn now_ms() -> u64 {
        well().redis_now_ms().unwrap()
    }

    /// So many endpoints, of which some fail and some of those are acknowledged.
    fn observed(active: u64, failing: usize, acknowledged: usize) -> Observed {
        let health = |number: usize| {
            let endpoint: EndpointId = format!("ep_{number}").parse().unwrap();
            let mut seen = Seen { account: format!("acc_{number}").parse().ok(), ..Seen::default() };
            let sample = format!("1-0:ep_{number}").parse().unwrap();
            (0..7).for_each(|_| seen.failed(now_ms() - 60_000, "dns_failed".parse().unwrap(), &sample, ""));
            let mut health = Health::new(now_ms());
            health.add(now_ms() - 60_000, seen);
            (endpoint, health)
        };
        let troubled: BTreeMap<EndpointId, Health> = (0..failing).map(health).collect();
        let said = |number: usize| {
            let mark = crate::facts::endpoint::Mark { by: "ann".into(), why: "known".into(), at_ms: now_ms() };
            (format!("ep_{number}:dns_failed").parse().unwrap(), Said { state: State::Acknowledged, mark })
        };
        let issues = issues(&troubled, &BTreeMap::new(), &(0..acknowledged).map(said).collect(), now_ms());
        let failing = failing as u64;
        let survey = Survey { failing, well: active - failing, troubled, ..Survey::default() };
        Observed { issues: Some(IssuesLook { survey, issues, ..IssuesLook::default() }), ..well() }
    }

    fn lines(observed: &Observed) -> Vec<Finding> {
        examine(observed).into_iter().filter(|finding| finding.subject == ISSUES).collect()
    }

    #[test]
    fn a_quarter_of_all_endpoints_failing_is_a_problem_and_its_first_line() {
        let found = examine(&observed(48, 12, 0));
        assert_eq!((found[0].level, found[0].subject), (Level::Fail, ISSUES));
        assert_eq!(
            found[0].says,
            "12 of 48 endpoints that events were sent to within a day take nothing (25 %), of 12 accounts"
        );
        let named = lines(&observed(48, 12, 0));
        assert_eq!(named.len(), 1 + NAMED + 1, "{named:#?}");
        assert!(named[1].says.starts_with("ep_0 of acc_0 has a host name that cannot be resolved; for 1m: 7 attempts"));
        assert!(named[1].remedy.as_ref().unwrap().ends_with("herald issue show ep_0:dns_failed"), "{named:#?}");
        assert_eq!(named[6].says, "7 more are open");
    }

    #[test]
    fn issues_come_first_whatever_else_there_is_and_a_few_are_only_a_warning() {
        let mut few = observed(400, 3, 0);
        few.server.as_mut().unwrap().info.aof_enabled = false;
        let found = examine(&few);
        assert_eq!((found[0].level, found[0].subject), (Level::Warn, ISSUES));
        assert!(found.iter().any(|finding| finding.level == Level::Fail));
    }

    #[test]
    fn what_somebody_deals_with_is_no_alarm() {
        let found = lines(&observed(48, 12, 12));
        assert_eq!((found.len(), found[0].level), (1, Level::Warn), "{found:#?}");
        let none = lines(&observed(48, 0, 0));
        assert_eq!((none.len(), none[0].level), (1, Level::Ok));
    }

    #[test]
    fn events_that_nobody_is_told_of_are_named_by_account_for_a_day() {
        let mut unserved = Unserved::default();
        let seen = |oddity, event_type: &str| OddSeen {
            oddity,
            count: 3,
            entry: "5-0".parse().unwrap(),
            event_type: event_type.to_owned(),
        };
        unserved.add(now_ms() - 60_000, seen(Oddity::NoEndpoint, ""));
        unserved.add(now_ms() - 60_000, seen(Oddity::UnknownType, "payout.made"));
        unserved.add(now_ms() - 60_000, seen(Oddity::Misplaced, ""));
        let mut observed = observed(3, 0, 0);
        observed.unserved = vec![("acc_x".parse().unwrap(), unserved)];
        if let Some(look) = &mut observed.issues {
            look.survey.skipped.insert("acc_y".parse().unwrap(), (9, now_ms() - 5_000));
        }
        let says = |observed: &Observed| -> Vec<String> {
            let found = examine(observed).into_iter().filter(|finding| finding.subject == "unserved");
            found.map(|finding| finding.says).collect()
        };
        let said = says(&observed);
        assert_eq!(said.len(), 4, "{said:#?}");
        assert!(said[0].starts_with("acc_x has no endpoint for 3 events, the last 1m ago (5-0)"), "{said:#?}");
        assert!(said[1].contains("payout.made") && said[3].starts_with("acc_y has missed 9 events"), "{said:#?}");
        assert!(said[2].starts_with("acc_x has 3 events in a partition that it does not belong to"), "{said:#?}");
        observed.unserved[0].1.no_endpoint.as_mut().unwrap().count.last_ms = now_ms() - DAY_MS;
        assert_eq!(says(&observed).len(), 3);
    }
}
