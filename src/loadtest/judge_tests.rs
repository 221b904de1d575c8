//! For every promise a history that breaks just that one, and one beside it that does not.

use super::*;
use crate::loadtest::{
    faults::Fault,
    ledger::{
        Answer, Arrival, Lateness,
        books::MAX_INCIDENTS,
        tests::{BEGAN_MS, HEALTHY, History, ledger_of, us},
    },
    scenario::Profile,
    traffic::EventFacts,
};

#[path = "judge_waiting_tests.rs"]
mod waiting;

const ALL: [&str; 23] = [
    "lost",
    "stuck",
    "duplicated",
    "out_of_order",
    "concurrent",
    "wrong_signature",
    "wrong_body",
    "wrong_headers",
    "retried_early",
    "retried_late",
    "goodput",
    "recovered",
    "needless_retry",
    "stale_url",
    "standstill",
    "dead_unexpectedly",
    "not_dead",
    "trimmed",
    "sent_after_gone",
    "unknown",
    "redirect_followed",
    "bad_certificate",
    "generator",
];

/// The names of the promises that broke.
fn broken(history: &History, evidence: &Evidence) -> Vec<String> {
    let verdict = judge(&history.0, evidence);
    assert_eq!(verdict.promises.iter().map(|promise| promise.name.as_str()).collect::<Vec<_>>(), ALL);
    for promise in &verdict.promises {
        assert!(promise.tried >= promise.broken, "{promise:?}");
        assert_eq!(promise.examples.is_empty(), promise.broken == 0, "{promise:?}");
    }
    let broken = verdict.promises.into_iter().filter(|promise| promise.broken > 0);
    broken.map(|promise| promise.name).collect()
}

fn only(history: &History, evidence: &Evidence, name: &str) {
    assert_eq!(broken(history, evidence), [name]);
}

fn kept(history: &History, evidence: &Evidence) {
    assert_eq!(broken(history, evidence), [""; 0]);
}

fn none() -> Evidence {
    Evidence::default()
}

#[test]
fn what_redis_counts_as_trimmed_is_not_passed_over() {
    let history = clean();
    only(&history, &Evidence { trimmed_unread: 7, ..none() }, "trimmed");
}

fn fault(fault: Fault, at: f64, until: f64) -> Evidence {
    Evidence { faults: vec![FaultMark { fault, at, until }], ..none() }
}

fn dead(history: &History, event: u32, reason: DeadReason, at: f64) -> Dead {
    Dead {
        event: history.0.event_id(event),
        endpoint: history.0.population().endpoint_id(0),
        reason,
        died_at_ms: BEGAN_MS + (at * 1e3) as u64,
    }
}

fn buried(history: &History, event: u32, reason: DeadReason, at: f64) -> Evidence {
    Evidence { dead: vec![dead(history, event, reason, at)], ..none() }
}

/// An intent with three statuses, each delivered after 2 ms.
fn clean() -> History {
    let history = History::new(HEALTHY);
    for place in 0..3u8 {
        history.sent(place.into(), 0, place, f64::from(place));
        history.delivered(place.into(), f64::from(place) + 0.002);
    }
    history
}

/// Six attempts, each refused, at the middle of the policy's intervals.
fn exhausted(history: &History, event: u32, from: f64) -> f64 {
    let mut at = from;
    for (attempt, pause) in [0.25, 0.5, 1.0, 2.0, 2.0, 0.0].into_iter().enumerate() {
        history.answered(event, attempt as u32 + 1, Answer::Refused, at);
        at += pause;
    }
    at
}

#[test]
fn a_clean_history_breaks_nothing_and_has_its_figures() {
    let history = clean();
    kept(&history, &none());
    let verdict = judge(&history.0, &none());
    assert_eq!((verdict.deliveries.owed, verdict.deliveries.acknowledged, verdict.deliveries.unfinished), (3, 3, 0));
    assert_eq!((verdict.generator.intended, verdict.generator.sent, verdict.generator.late), (3, 3, 0));
    let latency = verdict.latency.unwrap();
    assert_eq!((latency.count, latency.max_us), (3, 2_000));
    assert!((verdict.seconds - 2.002).abs() < 1e-9 && (verdict.deliveries.rate - 3.0 / 2.002).abs() < 1e-9);
    assert_eq!(verdict.series.len(), 3);
    assert!(verdict.series.iter().all(|second| (second.intended, second.sent, second.acknowledged) == (1, 1, 1)));
    assert_eq!((verdict.profiles.len(), verdict.profiles[0].name.as_str()), (1, "healthy"));
    let drain = judge(&history.0, &Evidence { is_drain: true, ..none() });
    assert!((drain.deliveries.rate - 1.0).abs() < 1e-9, "two in the two seconds after the first");
    assert_eq!(verdict.promises.iter().find(|promise| promise.name == "out_of_order").unwrap().tried, 2);
}

#[test]
fn a_confirmed_event_that_never_arrives_is_lost() {
    let history = clean();
    history.sent(3, 1, 0, 3.0);
    only(&history, &none(), "lost");
    let verdict = judge(&history.0, &Evidence { ended_s: 60.0, ..none() });
    assert_eq!((verdict.deliveries.owed, verdict.deliveries.unfinished, verdict.seconds), (4, 1, 60.0));
    // Even in the middle of a fault.
    only(&history, &fault(Fault::KillWorker, 3.0, 3.0), "lost");
}

#[test]
fn what_redis_never_confirmed_is_owed_to_nobody() {
    let history = clean();
    history.unconfirmed(3, 0, 1, 0, 3.0);
    kept(&history, &none());
    assert_eq!(judge(&history.0, &none()).deliveries.owed, 3);
}

#[test]
fn what_still_waits_for_a_living_receiver_is_stuck() {
    let history = clean();
    history.sent(3, 1, 0, 3.0);
    let held = Kept { event: history.0.event_id(3), endpoint: history.0.population().endpoint_id(0) };
    only(&history, &Evidence { kept: vec![held], ..none() }, "stuck");
    // A receiver that never says yes may be waited for as long as the policy has it.
    let hopeless = History::new(Profile::Failing);
    hopeless.sent(0, 0, 0, 0.0);
    hopeless.answered(0, 1, Answer::Refused, 0.1);
    let held = Kept { event: hopeless.0.event_id(0), endpoint: hopeless.0.population().endpoint_id(0) };
    kept(&hopeless, &Evidence { kept: vec![held], ..none() });
    only(&hopeless, &none(), "lost");
}

#[test]
fn an_event_that_comes_again_is_a_duplicate_unless_a_fault_explains_it() {
    let again = || {
        let history = clean();
        // Attempt 2, and on time: nothing else is wrong with it.
        history.answered(2, 2, Answer::Yes, 20.0);
        history
    };
    only(&again(), &none(), "duplicated");
    assert_eq!(judge(&again().0, &none()).deliveries.duplicates, 1);
    // Its acknowledgement at 2.002 was, or was not, within the fault's lease (5 s) and the time after it.
    kept(&again(), &fault(Fault::KillWorker, 9.0, 9.0));
    only(&again(), &fault(Fault::KillWorker, 9.1, 9.1), "duplicated");
    let twice = again();
    twice.0.sent_again(&[2]);
    kept(&twice, &none());
}

#[test]
fn a_worker_that_leaves_or_comes_explains_no_duplicate() {
    for (felt, is_explained) in
        [(Fault::LeaveWorker, false), (Fault::JoinWorker, false), (Fault::KillWorker, true), (Fault::Failover, true)]
    {
        let history = clean();
        history.sent(3, 3, 0, 20.0);
        history.delivered(3, 20.1);
        history.answered(3, 2, Answer::Yes, 20.5);
        match is_explained {
            true => kept(&history, &fault(felt, 20.0, 20.2)),
            false => only(&history, &fault(felt, 20.0, 20.2), "duplicated"),
        }
    }
}

#[test]
fn what_is_felt_near_a_fault_is_measured_from_sending_and_by_its_kind() {
    let history = History::new(HEALTHY);
    for (event, sent_at, came_at) in
        [(0, 1.0, 9.9), (1, 10.0, 12.5), (2, 10.5, 12.6), (3, 11.9, 11.95), (4, 40.0, 40.01), (5, 60.0, 60.3)]
    {
        history.sent(event, event, 0, sent_at);
        history.delivered(event, came_at);
    }
    let mark = |fault, at: f64, until: f64| FaultMark { fault, at, until };
    let faults = vec![
        mark(Fault::KillWorker, 10.0, 10.0),
        mark(Fault::LeaveWorker, 40.0, 41.0),
        mark(Fault::KillWorker, 60.0, 60.0),
        mark(Fault::ChangeUrls, 1.0, 2.0),
    ];
    let verdict = judge(&history.0, &Evidence { faults, ended_s: 90.0, ..none() });
    let felt = |near: &NearFault| (near.fault, near.times, near.latency.count, near.latency.max_us / 10_000);
    let found: Vec<_> = verdict.near_faults.iter().map(felt).collect();
    assert_eq!(found, [(Fault::KillWorker, 2, 4, 250), (Fault::LeaveWorker, 1, 1, 1)]);
}

#[test]
fn what_a_fault_would_excuse_does_not_count_as_tried() {
    let tried = |evidence: &Evidence, name: &str| {
        judge(&clean().0, evidence).promises.into_iter().find(|promise| promise.name == name).unwrap().tried
    };
    for name in ["duplicated", "concurrent"] {
        assert_eq!(tried(&none(), name), 3);
        assert_eq!(tried(&fault(Fault::KillWorker, 9.1, 9.1), name), 3);
        assert_eq!(tried(&fault(Fault::KillWorker, 8.5, 8.5), name), 2);
        assert_eq!(tried(&fault(Fault::KillWorker, 1.0, 1.0), name), 0);
    }
}

#[test]
fn a_fault_explains_no_more_duplicates_than_were_in_flight() {
    let repeated = |times: u32| {
        let history = clean();
        for time in 0..times {
            history.answered(2, 2 + time, Answer::Yes, 3.0 + f64::from(time) / 1e3);
        }
        history
    };
    kept(&repeated(2_048), &fault(Fault::KillWorker, 3.0, 3.0));
    only(&repeated(2_049), &fault(Fault::KillWorker, 3.0, 3.0), "duplicated");
}

#[test]
fn an_answer_that_may_have_come_too_late_explains_a_duplicate() {
    let history = History::new(HEALTHY);
    history.sent(0, 0, 0, 0.0);
    // The attempt takes 2 s at most.
    let ticket = history.arrives(0, 1, 0.0);
    history.answer(&ticket, Answer::Yes, 1.8);
    history.answered(0, 2, Answer::Yes, 4.0);
    kept(&history, &none());
}

#[test]
fn a_later_event_before_the_earlier_one_has_ended_is_out_of_order() {
    let history = |first: Answer| {
        let history = History::new(Profile::Flaky { p: 0.5 });
        history.sent(0, 0, 0, 0.0);
        history.sent(1, 0, 1, 0.0);
        history.answered(0, 1, first, 0.1);
        history.delivered(1, 0.2);
        if first != Answer::Yes {
            history.answered(0, 2, Answer::Yes, 0.5);
        }
        history
    };
    only(&history(Answer::Refused), &none(), "out_of_order");
    only(&history(Answer::Refused), &fault(Fault::KillWorker, 0.1, 0.1), "out_of_order");
    kept(&history(Answer::Yes), &none());
    // The later event first, and nothing of the earlier one.
    let skipped = History::new(HEALTHY);
    skipped.sent(0, 0, 0, 0.0);
    skipped.sent(1, 0, 1, 0.0);
    skipped.delivered(1, 0.1);
    skipped.delivered(0, 0.2);
    only(&skipped, &none(), "out_of_order");
}

#[test]
fn the_next_may_go_out_once_the_earlier_one_is_given_up() {
    let history = History::new(Profile::Failing);
    history.sent(0, 0, 0, 0.0);
    history.sent(1, 0, 1, 0.0);
    let at = exhausted(&history, 0, 0.1);
    let end = exhausted(&history, 1, at + 0.001);
    let letters = |one, other| Evidence {
        dead: vec![dead(&history, 0, DeadReason::Exhausted, one), dead(&history, 1, DeadReason::Exhausted, other)],
        ..none()
    };
    kept(&history, &letters(at, end));
    // Expired in the backlog: the receiver cannot know, but the dead letter says when.
    let expired = |died: f64| {
        let history = History::new(HEALTHY);
        history.sent(0, 0, 0, 0.0);
        history.sent(1, 0, 1, 3600.0);
        history.delivered(1, 3700.0);
        let evidence = buried(&history, 0, DeadReason::Expired, died);
        (history, evidence)
    };
    let (history, evidence) = expired(3650.0);
    kept(&history, &evidence);
    // The clocks are one machine's.
    let (history, evidence) = expired(3700.1);
    kept(&history, &evidence);
    let (history, evidence) = expired(3700.101);
    only(&history, &evidence, "out_of_order");
}

#[test]
fn two_of_an_intent_at_once_are_concurrent_unless_a_fault_explains_it() {
    let history = || {
        let history = History::new(HEALTHY);
        history.sent(0, 0, 0, 0.0);
        history.sent(1, 0, 1, 0.0);
        history.delivered(0, 0.1);
        let first = history.arrives(1, 1, 0.2);
        let again = history.arrives(1, 2, 0.5);
        history.answer(&first, Answer::Abandoned, 0.6);
        history.answer(&again, Answer::Yes, 0.7);
        history
    };
    only(&history(), &none(), "concurrent");
    kept(&history(), &fault(Fault::PauseWorker, 0.1, 3.0));
    // After the attempt's time the earlier one is over, whether or not its end was noticed.
    let timed_out = History::new(Profile::Hanging);
    timed_out.sent(0, 0, 0, 0.0);
    timed_out.arrives(0, 1, 0.1);
    timed_out.arrives(0, 2, 2.4);
    assert_eq!(broken(&timed_out, &none()), ["lost"]);
}

#[test]
fn two_at_a_time_to_a_receiver_that_floods_are_seen_until_its_flood_begins() {
    let floods = |again_at: f64| {
        let history = History::new(Profile::Flooding);
        history.sent(0, 0, 0, 0.0);
        let first = history.arrives(0, 1, 0.1);
        if again_at > 0.12 {
            history.answer(&first, Answer::Abandoned, 0.12);
        }
        let again = history.arrives(0, 2, again_at);
        history.answer(&again, Answer::Abandoned, again_at + 0.02);
        broken(&history, &none()).contains(&"concurrent".to_owned())
    };
    assert!(floods(0.101) && !floods(0.4));
}

#[test]
fn a_wrong_signature_a_wrong_body_and_a_wrong_header_are_told_apart() {
    let arrives = |arrival: Arrival| {
        let history = clean();
        history.sent(3, 1, 0, 3.0);
        let ticket = history.0.arrive(&arrival, us(3.1)).ticket.unwrap();
        history.answer(&ticket, Answer::Yes, 3.1);
        history
    };
    let right = History::request(3, 1, 3.1);
    kept(&arrives(right), &none());
    // None of these is the price of a fault.
    let faulty = fault(Fault::KillWorker, 3.0, 3.2);
    only(&arrives(Arrival { bad_signature: Some("it does not verify"), ..right }), &faulty, "wrong_signature");
    only(&arrives(Arrival { body_hash: 1, ..right }), &faulty, "wrong_body");
    only(&arrives(Arrival { bad_header: Some("no id"), ..right }), &faulty, "wrong_headers");
    only(&arrives(Arrival { attempt: 0, ..right }), &none(), "wrong_headers");
    only(&arrives(Arrival { sequence: 0, ..right }), &none(), "wrong_headers");
    only(&arrives(Arrival { timestamp_ms: Some(1_800), ..right }), &none(), "wrong_headers");
}

#[test]
fn attempts_and_sequences_only_grow() {
    let retried = |attempt, sequence| {
        let history = History::new(Profile::Flaky { p: 0.5 });
        history.sent(0, 0, 0, 0.0);
        history.answered(0, 1, Answer::Refused, 0.1);
        let arrival = Arrival { sequence, ..History::request(0, attempt, 0.5) };
        let ticket = history.0.arrive(&arrival, us(0.5)).ticket.unwrap();
        history.answer(&ticket, Answer::Yes, 0.5);
        history
    };
    kept(&retried(2, 1000), &none());
    only(&retried(1, 1000), &none(), "wrong_headers");
    // A worker that was killed before it could settle repeats the attempt's number, but not that of another entry.
    kept(&retried(1, 1000), &fault(Fault::KillWorker, 0.2, 0.2));
    only(&retried(2, 1001), &fault(Fault::KillWorker, 0.2, 0.2), "wrong_headers");
    let falling = History::new(HEALTHY);
    for (place, sequence) in [(0u8, 9), (1, 8)] {
        falling.sent(place.into(), 0, place, f64::from(place));
        let arrival = Arrival { sequence, ..History::request(place.into(), 1, f64::from(place)) };
        let ticket = falling.0.arrive(&arrival, us(f64::from(place))).ticket.unwrap();
        falling.answer(&ticket, Answer::Yes, f64::from(place));
    }
    only(&falling, &none(), "wrong_headers");
}

#[test]
fn a_retry_before_the_policy_allows_it_is_early() {
    let retried = |profile: Profile, answer, after: f64| {
        let history = History::new(profile);
        history.sent(0, 0, 0, 0.0);
        history.answered(0, 1, answer, 0.1);
        history.answered(0, 2, Answer::Yes, 0.1 + after);
        history
    };
    let flaky = || Profile::Flaky { p: 0.5 };
    // 250 ms with a jitter of 0.2.
    kept(&retried(flaky(), Answer::Refused, 0.2), &none());
    only(&retried(flaky(), Answer::Refused, 0.19), &none(), "retried_early");
    only(&retried(flaky(), Answer::Refused, 0.19), &fault(Fault::KillWorker, 0.1, 0.1), "retried_early");
    // `Retry-After` counts whole seconds.
    let throttling = || Profile::Throttling { retry_after: std::time::Duration::from_millis(700) };
    kept(&retried(throttling(), Answer::Throttled, 1.0), &none());
    only(&retried(throttling(), Answer::Throttled, 0.9), &none(), "retried_early");
    // Half a second before it is an hour old, it gets nine tenths of what is left.
    let old = |after: f64| {
        let history = History::new(throttling());
        history.sent(0, 0, 0, 0.0);
        history.answered(0, 1, Answer::Throttled, 3_599.5);
        history.answered(0, 2, Answer::Yes, 3_599.5 + after);
        history
    };
    kept(&old(0.45), &none());
    only(&old(0.4), &none(), "retried_early");
    // The receiver does not know exactly when an attempt that timed out did so.
    kept(&retried(flaky(), Answer::Abandoned, 0.05), &none());
    let later = History::new(flaky());
    later.sent(0, 0, 0, 0.0);
    for (attempt, at) in [(1, 0.1), (2, 0.4), (3, 0.9), (4, 1.2)] {
        later.answered(0, attempt, if attempt == 4 { Answer::Yes } else { Answer::Abandoned }, at);
    }
    // The third pause is 800 ms at least.
    only(&later, &none(), "retried_early");
}

#[test]
fn a_dead_letter_needs_a_reason_that_the_receiver_knows() {
    let history = History::new(Profile::Failing);
    history.sent(0, 0, 0, 0.0);
    let end = exhausted(&history, 0, 0.1);
    kept(&history, &buried(&history, 0, DeadReason::Exhausted, end));
    let verdict = judge(&history.0, &buried(&history, 0, DeadReason::Exhausted, end));
    assert_eq!((verdict.deliveries.dead, verdict.deliveries.unfinished, verdict.deliveries.attempts), (1, 0, 6));

    let fresh = || {
        let history = History::new(Profile::Failing);
        history.sent(0, 0, 0, 0.0);
        history.answered(0, 1, Answer::Refused, 0.1);
        history
    };
    for reason in DeadReason::ALL {
        let history = fresh();
        only(&history, &buried(&history, 0, reason, 0.2), "dead_unexpectedly");
    }
    let history = fresh();
    kept(&history, &buried(&history, 0, DeadReason::Expired, 3600.0));
    // The number of its last attempt does not prove those before it.
    history.answered(0, 6, Answer::Refused, 9.0);
    only(&history, &buried(&history, 0, DeadReason::Exhausted, 9.1), "dead_unexpectedly");
    let acknowledged = clean();
    only(&acknowledged, &buried(&acknowledged, 0, DeadReason::Exhausted, 9.0), "dead_unexpectedly");
    // The dead letters of others are none of our business.
    let foreign = Dead { event: "evt_other".into(), ..dead(&acknowledged, 0, DeadReason::Deleted, 1.0) };
    kept(&acknowledged, &Evidence { dead: vec![foreign], ..none() });
}

#[test]
fn a_receiver_that_sees_nothing_still_gets_dead_letters() {
    let history = History::new(Profile::BrokenTls);
    history.sent(0, 0, 0, 0.0);
    kept(&history, &buried(&history, 0, DeadReason::Exhausted, 6.0));
    only(&history, &none(), "lost");
}

#[test]
fn what_has_used_up_its_attempts_must_be_a_dead_letter() {
    let history = History::new(Profile::Failing);
    history.sent(0, 0, 0, 0.0);
    exhausted(&history, 0, 0.1);
    only(&history, &none(), "not_dead");
}

#[test]
fn what_is_accepted_after_a_410_is_not_owed_and_what_was_before_is() {
    let history = |before: bool| {
        let history = History::new(Profile::Gone { after: 1 });
        history.sent(0, 0, 0, 0.0);
        history.delivered(0, 0.01);
        history.sent(1, 1, 0, 1.0);
        if before {
            history.sent(2, 2, 0, 1.005);
        }
        history.answered(1, 1, Answer::Gone, 1.01);
        history.sent(if before { 3 } else { 2 }, 3, 0, 2.0);
        history
    };
    let (one, other) = (history(false), history(true));
    kept(&one, &buried(&one, 1, DeadReason::Gone, 1.01));
    assert_eq!(judge(&one.0, &buried(&one, 1, DeadReason::Gone, 1.01)).deliveries.owed, 2);
    only(&one, &none(), "not_dead");
    only(&other, &buried(&other, 1, DeadReason::Gone, 1.01), "lost");
    let both = Evidence {
        dead: vec![dead(&other, 1, DeadReason::Gone, 1.01), dead(&other, 2, DeadReason::Disabled, 1.02)],
        ..none()
    };
    kept(&other, &both);
}

#[test]
fn what_nobody_sent_is_unknown() {
    let history = clean();
    let stranger = Arrival { event: None, ..History::request(0, 1, 2.5) };
    assert!(history.0.arrive(&stranger, us(2.5)).ticket.is_none());
    only(&history, &none(), "unknown");
    let misled = clean();
    let elsewhere = Arrival { endpoint: 1, ..History::request(0, 1, 2.5) };
    assert!(misled.0.arrive(&elsewhere, us(2.5)).ticket.is_none());
    only(&misled, &none(), "unknown");
}

#[test]
fn a_followed_redirect_and_an_accepted_bad_certificate_are_noticed() {
    let history = clean();
    history.0.redirect_followed(0, 5);
    only(&history, &none(), "redirect_followed");
    let history = clean();
    history.0.bad_handshake();
    kept(&history, &none());
    history.0.bad_certificate_accepted(0, 5);
    only(&history, &none(), "bad_certificate");
}

#[test]
fn a_generator_that_is_late_more_often_than_once_in_a_thousand_fails_the_run() {
    let late = |events: u32, late: u32| {
        let history = History(ledger_of(HEALTHY, 1));
        for event in 0..events {
            let facts = EventFacts { number: event, account: 0, intent: event, place: 0 };
            history.0.publish(&facts, 0, 0);
            history.0.sent(&[event], if event < late { us(0.06) } else { 10 }, Lateness::Own);
        }
        history
    };
    kept(&late(2000, 2), &none());
    only(&late(2000, 3), &none(), "generator");
}

#[test]
fn incidents_that_were_too_many_to_keep_count_as_broken() {
    let history = clean();
    for at in 0..MAX_INCIDENTS as u64 + 7 {
        history.0.redirect_followed(0, at);
    }
    let verdict = judge(&history.0, &none());
    let promise = verdict.promises.iter().find(|promise| promise.name == "redirect_followed").unwrap();
    assert_eq!(promise.broken, MAX_INCIDENTS as u64 + 7);
    assert_eq!(promise.examples.len(), 5);
    assert!(promise.examples[4].starts_with("7 more"), "{:?}", promise.examples);
}

#[test]
fn the_dead_of_a_gone_endpoint_do_not_excuse_what_was_reordered_before() {
    let history = History::new(Profile::Flaky { p: 0.5 });
    history.sent(0, 0, 0, 0.0);
    history.sent(1, 0, 1, 0.0);
    history.delivered(1, 0.2);
    let end = exhausted(&history, 0, 0.5);
    only(&history, &buried(&history, 0, DeadReason::Exhausted, end), "out_of_order");
}
