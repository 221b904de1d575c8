//! What is started before there is a place for it, and what becomes of it when no place comes free.

use super::*;

/// A receiver that has answered within this many milliseconds for a while, with much more for it in memory, and what is
/// started then.
fn answering(took_ms: u64, change: impl FnOnce(&mut Endpoint)) -> (Core, Vec<(Token, u64)>) {
    let mut core = core(change);
    (1..=500).for_each(|entry| admit(&mut core, entry, "ep_a", &format!("pi_{entry}")));
    let mut out = sends(&mut core, 0);
    for round in 1..=10 {
        let now = round * took_ms;
        for (token, _) in out {
            let mut attempted = attempted(OK);
            attempted.report.timing.total_us = 1_000 * took_ms;
            core.attempted(now, REDIS_MS, token, attempted, 0.0);
        }
        out = sends(&mut core, now);
    }
    (core, out)
}

fn not_begun(core: &mut Core, now: u64, tokens: &[(Token, u64)]) {
    tokens.iter().rev().for_each(|(token, _)| core.not_begun(now, *token));
}

#[test]
fn a_quick_receivers_next_attempts_are_started_before_there_are_places_for_them() {
    let (core, out) = answering(2, |_| {});
    assert_eq!((out.len(), core.tally().in_flight), (20, 20));
    // Not for a receiver that takes its time, nor where a rate limit says when each may go.
    assert_eq!(answering(20, |_| {}).1.len(), 10);
    assert_eq!(answering(2, |endpoint| endpoint.rate_limit = Some(10_000)).1.len(), 10);
}

#[test]
fn who_takes_more_than_it_has_places_is_given_what_it_takes_in_the_time_of_a_call() {
    let mut core = core_with(10_000_000);
    stand(&mut core, "ep_a", endpoint("ep_a", |_| {}));
    (1..=200).for_each(|entry| admit(&mut core, entry, "ep_a", &format!("pi_{entry}")));
    let mut out: VecDeque<(Token, u64)> = sends(&mut core, 0).into();
    for now in 1..=150 {
        (0..10).map(|n| 200 + 10 * now + n).for_each(|entry| admit(&mut core, entry, "ep_a", &format!("pi_{entry}")));
        // Each of those that have begun takes a millisecond.
        for (token, _) in out.drain(..out.len().min(10)).collect::<Vec<_>>() {
            let mut attempted = attempted(OK);
            attempted.report.timing.total_us = 1_000;
            core.attempted(now, REDIS_MS, token, attempted, 0.0);
        }
        out.extend(sends(&mut core, now));
    }
    // Ten thousand a second are fifty in five milliseconds, and it began slowly.
    assert!((55..=60).contains(&out.len()), "{} are out", out.len());
}

#[test]
fn what_found_no_place_goes_first_again_and_in_its_order_and_no_attempt_was_made() {
    let (mut core, out) = answering(2, |_| {});
    let (begun, ahead) = out.split_at(10);
    not_begun(&mut core, 130, ahead);
    assert_eq!(core.tally().in_flight, 10);
    // The failure for which they came back: nothing is ahead any more.
    end(&mut core, 130, begun[0].0, FAILED);
    let next = sends(&mut core, 130);
    assert_eq!(entries(&next), entries(&ahead[..1]));
    begun[1..].iter().for_each(|(token, _)| end(&mut core, 131, *token, OK));
    let more = sends(&mut core, 131);
    assert_eq!(entries(&more)[..9], entries(&ahead[1..]));
    // Each of them is still at its first attempt.
    let firsts = next.iter().chain(&more[..9]).map(|(token, _)| &core.term.jobs[&core.term.flights[token]]);
    assert!(firsts.map(|job| job.delivery.attempts).all(|attempts| attempts == 0));
}

#[test]
fn what_found_no_place_in_a_term_that_has_ended_is_not_waited_for() {
    let (mut core, out) = answering(2, |_| {});
    core.end_term();
    assert_eq!(core.tally().in_flight, 20);
    not_begun(&mut core, 130, &out);
    assert_eq!(core.tally().in_flight, 0);
    assert_eq!(core.lanes.get(&EndpointId::new("ep_a").unwrap()).unwrap().in_flight, 0);
    // Read again, it goes as if it had never been started.
    stand(&mut core, "ep_a", endpoint("ep_a", |_| {}));
    let (_, entry) = out[0];
    admit(&mut core, entry, "ep_a", &format!("pi_{entry}"));
    assert_eq!(entries(&sends(&mut core, 140)), [entry]);
}

#[test]
fn what_found_no_place_after_its_endpoint_was_deleted_gets_a_record_and_ends_with_the_others() {
    let (mut core, out) = answering(2, |_| {});
    stand(&mut core, "ep_a", Standing::Ended { reason: DeadReason::Deleted, owed: crate::dispatch::lane::Owed::All });
    let mut kept = Vec::new();
    while core.outbox_len() > 0 {
        kept.extend(places(&settle(&mut core, &[])));
    }
    let ahead = entries(&out[10..]);
    assert!(kept.iter().all(|(entry, _)| !ahead.contains(entry)));
    not_begun(&mut core, 130, &out[10..]);
    assert_eq!(core.tally().in_flight, 10);
    let mut kept = places(&settle(&mut core, &[]));
    kept.sort_unstable_by_key(|(entry, _)| *entry);
    assert_eq!(kept, ahead.into_iter().map(|entry| (entry, Place::Backlog)).collect::<Vec<_>>());
}
