//! Which endpoints are paused for what they have in Redis, and which never are.

use super::*;
use crate::facts::quota::{Quota, Quotas};

const MIB: u64 = 1 << 20;
const COOLDOWN_MS: u64 = 5_000;

/// `ep_a` and `ep_b` of one account, with 10 MiB each and 15 MiB together.
fn watched() -> Core {
    let mut core = core(|_| {});
    stand(&mut core, "ep_b", endpoint("ep_b", |_| {}));
    core.set_quotas(Quotas { endpoint: Some(10 * MIB), account: Some(15 * MIB) });
    core
}

fn has(core: &mut Core, now: u64, id: &str, mib: u64) {
    core.set_unfinished(now, &[(EndpointId::new(id).unwrap(), Unfinished { records: 1, parked: 0, bytes: mib * MIB })]);
}

/// The receiver gives the next attempt this outcome.
fn answers(core: &mut Core, now: u64, id: &str, outcome: Outcome) {
    let entry = core.next();
    admit(core, entry, id, &format!("pi_{entry}"));
    let flying = sends(core, now);
    assert_eq!(flying.len(), 1, "{id} may send");
    end(core, now, flying[0].0, outcome);
}

/// Which endpoints are to be paused, and for what.
fn paused(core: &mut Core) -> Vec<(String, &'static str)> {
    let quotas: Vec<Quota> = core
        .take_happenings()
        .into_iter()
        .filter_map(|happening| match happening {
            CoreHappening::OverQuota { quota, .. } => Some(quota),
            _ => None,
        })
        .collect();
    let errands = core.take_errands().into_iter().map(|errand| match errand {
        CoreErrand::Pause { endpoint, .. } => endpoint.to_string(),
        CoreErrand::Disable { .. } => panic!("nothing is gone"),
    });
    errands.zip(quotas).map(|(endpoint, quota)| (endpoint, quota.name())).collect()
}

const OWN: &str = "endpoint_bytes";

#[test]
fn what_one_answer_says_of_an_account_is_weighed_before_it_is_judged() {
    let mut core = watched();
    has(&mut core, 0, "ep_a", 1);
    has(&mut core, 0, "ep_b", 9);
    answers(&mut core, 0, "ep_a", FAILED);
    let of =
        |id: &str, mib: u64| (EndpointId::new(id).unwrap(), Unfinished { records: 1, parked: 0, bytes: mib * MIB });
    // One has more and the other less: at no time was there too much.
    core.set_unfinished(COOLDOWN_MS, &[of("ep_a", 9), of("ep_b", 1)]);
    assert_eq!(paused(&mut core), []);
    core.set_unfinished(COOLDOWN_MS + 1_000, &[of("ep_a", 9), of("ep_b", 9)]);
    assert_eq!(paused(&mut core).len(), 1);
}

#[test]
fn an_endpoint_that_grows_beyond_its_quota_and_takes_nothing_is_paused_once_with_the_reason() {
    let mut core = watched();
    has(&mut core, 0, "ep_a", 1);
    answers(&mut core, 0, "ep_a", FAILED);
    has(&mut core, COOLDOWN_MS, "ep_a", 9);
    assert_eq!(paused(&mut core), []);
    has(&mut core, COOLDOWN_MS, "ep_a", 10);
    let errands = core.take_errands();
    let [CoreErrand::Pause { revision: 1, why, .. }] = &errands[..] else { panic!("{errands:?}") };
    for part in ["take 10.0 MiB of Redis", "quota.endpoint_bytes is 10.0 MiB", "herald endpoint resume ep_a --reason"] {
        assert!(why.contains(part), "{why}");
    }
    has(&mut core, COOLDOWN_MS + 1, "ep_a", 20);
    assert!(core.take_errands().is_empty(), "it was asked for");
}

#[test]
fn what_answers_but_takes_nothing_counts_and_failures_of_a_moment_do_not() {
    let mut core = watched();
    has(&mut core, 0, "ep_a", 1);
    answers(&mut core, 0, "ep_a", Outcome::Rejected { status: 404 });
    has(&mut core, COOLDOWN_MS - 1, "ep_a", 11);
    assert_eq!(paused(&mut core), []);
    has(&mut core, COOLDOWN_MS, "ep_a", 12);
    assert_eq!(paused(&mut core), [("ep_a".to_owned(), OWN)]);
}

#[test]
fn who_drains_a_backlog_is_not_paused_for_having_it() {
    let mut core = watched();
    has(&mut core, 0, "ep_a", 100);
    for second in 1..100 {
        // It nearly always fails, and gets more than it takes.
        let now = second * 60_000;
        answers(&mut core, now, "ep_a", OK);
        has(&mut core, now, "ep_a", 100 + second * 8);
        answers(&mut core, now, "ep_a", Outcome::Rejected { status: 404 });
        has(&mut core, now + 50_000, "ep_a", 104 + second * 8);
    }
    assert_eq!(paused(&mut core), []);
}

#[test]
fn who_asks_for_a_rest_is_left_alone_for_as_long() {
    let mut core = watched();
    has(&mut core, 0, "ep_a", 1);
    let minutes = |count: u64| Some(std::time::Duration::from_secs(60 * count));
    answers(&mut core, 0, "ep_a", Outcome::Throttled { status: 429, retry_after: minutes(4) });
    has(&mut core, 4 * 60_000, "ep_a", 20);
    assert_eq!(paused(&mut core), []);
    has(&mut core, 4 * 60_000 + COOLDOWN_MS, "ep_a", 20);
    assert_eq!(paused(&mut core), [("ep_a".to_owned(), OWN)]);
    // But not for ever: a receiver that does nothing else for a quarter of an hour takes nothing.
    let mut core = watched();
    has(&mut core, 0, "ep_a", 1);
    for second in 0..1_200 {
        admit(&mut core, second, "ep_a", &format!("pi_{second}"));
        for (token, _) in sends(&mut core, second * 1_000) {
            let outcome = Outcome::Throttled { status: 429, retry_after: minutes(1) };
            end(&mut core, second * 1_000, token, outcome);
        }
        has(&mut core, second * 1_000, "ep_a", 20 + second);
    }
    assert_eq!(paused(&mut core), [("ep_a".to_owned(), OWN)]);
}

#[test]
fn who_was_resumed_is_paused_again_only_with_a_tenth_more() {
    let mut core = watched();
    has(&mut core, 0, "ep_a", 1);
    answers(&mut core, 0, "ep_a", Outcome::Rejected { status: 404 });
    has(&mut core, COOLDOWN_MS, "ep_a", 20);
    assert_eq!(paused(&mut core).len(), 1);
    let mark = Mark { by: "herald".into(), why: "test".into(), at_ms: 0 };
    let stop =
        |endpoint: &mut Endpoint| (endpoint.revision, endpoint.status) = (2, EndpointState::Paused(mark.clone()));
    stand(&mut core, "ep_a", endpoint("ep_a", stop));
    has(&mut core, 6_000, "ep_a", 30);
    stand(&mut core, "ep_a", endpoint("ep_a", |endpoint| endpoint.revision = 3));
    answers(&mut core, 10_000, "ep_a", Outcome::Rejected { status: 404 });
    has(&mut core, 10_000, "ep_a", 30);
    for now in [20_000, 200_000, 2_000_000] {
        has(&mut core, now, "ep_a", 33);
        assert_eq!(paused(&mut core), []);
    }
    has(&mut core, 2_000_001, "ep_a", 34);
    assert_eq!(paused(&mut core), [("ep_a".to_owned(), OWN)]);
}

#[test]
fn a_new_term_or_a_new_owner_waits_for_a_tenth_more_too() {
    let mut core = watched();
    has(&mut core, 0, "ep_a", 50);
    answers(&mut core, 0, "ep_a", Outcome::Rejected { status: 404 });
    has(&mut core, 60_000, "ep_a", 55);
    assert_eq!(paused(&mut core), []);
    core.end_term();
    has(&mut core, 61_000, "ep_a", 55);
    assert_eq!(paused(&mut core), []);
    has(&mut core, 62_000, "ep_a", 56);
    assert_eq!(paused(&mut core), [("ep_a".to_owned(), OWN)]);
}

#[test]
fn of_an_account_that_is_over_its_quota_the_heaviest_that_takes_nothing_is_paused_and_no_second_one_at_once() {
    let mut core = watched();
    for id in ["ep_a", "ep_b", "ep_c"] {
        stand(&mut core, id, endpoint(id, |_| {}));
        has(&mut core, 0, id, 1);
        answers(&mut core, 0, id, Outcome::Rejected { status: 404 });
    }
    // The heaviest takes what it gets.
    answers(&mut core, 1, "ep_c", OK);
    has(&mut core, COOLDOWN_MS, "ep_c", 8);
    has(&mut core, COOLDOWN_MS, "ep_b", 4);
    assert_eq!(paused(&mut core), []);
    has(&mut core, COOLDOWN_MS + 1_000, "ep_a", 3);
    assert_eq!(paused(&mut core), [("ep_b".to_owned(), "account_bytes")]);
    has(&mut core, COOLDOWN_MS + 2_000, "ep_a", 4);
    assert_eq!(paused(&mut core), [], "the account has not grown by a tenth");
    has(&mut core, COOLDOWN_MS + 4_000, "ep_a", 5);
    assert_eq!(paused(&mut core), [("ep_a".to_owned(), "account_bytes")]);
    let (bytes, over) = core.record_bytes();
    assert_eq!((bytes / MIB, over), (17, 0));
    // What is gone is forgotten.
    for id in ["ep_a", "ep_b", "ep_c"] {
        core.set_unfinished(20_000, &[(EndpointId::new(id).unwrap(), Unfinished::default())]);
    }
    assert_eq!(core.record_bytes(), (0, 0));
    assert_eq!(format!("{:?}", core.term.weights), "Weights { accounts: {} }");
}
