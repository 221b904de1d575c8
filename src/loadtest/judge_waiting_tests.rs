//! Events that came too late, were kept too long, or should not have come any more.

use super::*;

/// The result for the promise with this name.
fn tried(history: &History, evidence: &Evidence, name: &str) -> u64 {
    judge(&history.0, evidence).promises.into_iter().find(|promise| promise.name == name).unwrap().tried
}

fn flaky() -> History {
    History::new(Profile::Flaky { p: 0.5 })
}

/// Refused at 0.1 s; its second attempt is due at 0.4 s, jitter included.
fn refused() -> History {
    let history = flaky();
    history.sent(0, 0, 0, 0.0);
    history.answered(0, 1, Answer::Refused, 0.1);
    history
}

fn retried_at(history: History, at: f64) -> History {
    history.answered(0, 2, Answer::Yes, at);
    history
}

#[test]
fn a_retry_long_after_its_time_is_late_unless_a_fault_explains_it() {
    // An attempt takes 2 s at most, and 5 s are allowed for.
    kept(&retried_at(refused(), 7.4), &none());
    only(&retried_at(refused(), 7.41), &none(), "retried_late");
    let history = retried_at(refused(), 30.1);
    only(&history, &none(), "retried_late");
    kept(&history, &fault(Fault::KillWorker, 20.0, 20.0));
    // Its own time and the lease before it began.
    only(&history, &fault(Fault::KillWorker, 37.2, 37.2), "retried_late");
    kept(&history, &fault(Fault::KillWorker, 37.0, 37.0));
}

#[test]
fn a_retry_counts_as_tried_where_nothing_was_in_its_way() {
    let history = retried_at(refused(), 0.4);
    assert_eq!(tried(&history, &none(), "retried_late"), 1);
    assert_eq!(tried(&history, &fault(Fault::KillWorker, 3.0, 3.0), "retried_late"), 0);
    let throttling = History::new(Profile::Throttling { retry_after: std::time::Duration::from_secs(1) });
    throttling.sent(0, 0, 0, 0.0);
    throttling.answered(0, 1, Answer::Throttled, 0.1);
    assert_eq!(tried(&retried_at(throttling, 1.1), &none(), "retried_late"), 0);
}

#[test]
fn a_lane_that_rests_or_whose_breaker_may_be_open_makes_no_retry_late() {
    let throttled = |at| {
        let history = History::new(Profile::Throttling { retry_after: std::time::Duration::from_secs(2) });
        history.sent(0, 0, 0, 0.0);
        history.answered(0, 1, Answer::Throttled, 0.1);
        retried_at(history, at)
    };
    // Due at 2.1; the rest, and as long again, are 4 s.
    kept(&throttled(13.1), &none());
    only(&throttled(13.2), &none(), "retried_late");
    let after_failures = |others: u32| {
        let history = refused();
        (1..=others).for_each(|event| history.sent(event, event, 0, 0.0));
        (1..=others).for_each(|event| history.answered(event, 1, Answer::Refused, 0.2));
        let history = retried_at(history, 30.0);
        (1..=others).for_each(|event| history.answered(event, 2, Answer::Yes, 30.1));
        history
    };
    kept(&after_failures(4), &none());
    only(&after_failures(3), &none(), "retried_late");
}

#[test]
fn of_a_retry_after_an_attempt_that_nobody_saw_nobody_knows_when_it_was_due() {
    let history = refused();
    history.answered(0, 3, Answer::Yes, 30.0);
    kept(&history, &none());
}

#[test]
fn while_the_whole_service_is_behind_no_retry_is_late() {
    let beside = |sent: f64, place: u8| {
        let history = refused();
        let event = 1 + u32::from(place);
        if place > 0 {
            history.sent(1, 1, 0, 0.1);
            history.delivered(1, 0.2);
        }
        history.sent(event, 1, place, sent);
        let history = retried_at(history, 12.0);
        history.delivered(event, 20.0);
        history
    };
    kept(&beside(5.0, 0), &none());
    // The service had read up to here.
    only(&beside(19.0, 0), &none(), "retried_late");
    // This one may have waited for the one before it.
    only(&beside(5.0, 1), &none(), "retried_late");
}

#[test]
fn what_an_endpoint_that_takes_nothing_keeps_beyond_its_age_is_stuck() {
    let history = History::new(Profile::Failing);
    history.sent(0, 0, 0, 10.0);
    history.answered(0, 1, Answer::Refused, 10.1);
    let ended = |ended_s: f64, faults: Evidence| {
        let held = Kept { event: history.0.event_id(0), endpoint: history.0.population().endpoint_id(0) };
        Evidence { kept: vec![held], ended_s, ..faults }
    };
    // An hour, the longest pause (2.4 s), an attempt (2 s) and 45 s for Herald to look.
    kept(&history, &ended(3659.4, none()));
    only(&history, &ended(3659.5, none()), "stuck");
    assert_eq!(tried(&history, &ended(3659.4, none()), "stuck"), 0);
    assert_eq!(tried(&history, &ended(3659.5, none()), "stuck"), 1);
    // Its owner died meanwhile: the next owner looks half a minute after it has begun.
    let killed = || fault(Fault::KillWorker, 100.0, 100.0);
    kept(&history, &ended(3756.4, killed()));
    only(&history, &ended(3756.5, killed()), "stuck");
}

#[test]
fn what_follows_in_an_intent_has_as_long_again_from_the_end_of_the_one_before() {
    let history = History::new(Profile::Failing);
    history.sent(0, 0, 0, 0.0);
    history.sent(1, 0, 1, 0.0);
    let died = exhausted(&history, 0, 500.0);
    let held = Kept { event: history.0.event_id(1), endpoint: history.0.population().endpoint_id(0) };
    let ended =
        |ended_s| Evidence { kept: vec![held.clone()], ended_s, ..buried(&history, 0, DeadReason::Exhausted, died) };
    kept(&history, &ended(died + 3649.4));
    only(&history, &ended(died + 3649.5), "stuck");
}

/// An endpoint that answers 410 at 1.0 s; events 2 and 3, which it was owed then, still arrive.
fn gone(second: f64, third: f64) -> (History, Vec<Dead>) {
    let history = History::new(Profile::Gone { after: 1 });
    (0..4).for_each(|event| history.sent(event, event, 0, 0.0));
    history.delivered(0, 0.01);
    history.answered(1, 1, Answer::Gone, 1.0);
    history.answered(2, 1, Answer::Gone, second);
    history.answered(3, 1, Answer::Gone, third);
    let dead = (1..4).map(|event| dead(&history, event, DeadReason::Gone, third)).collect();
    (history, dead)
}

#[test]
fn an_endpoint_that_answered_410_gets_no_more_than_was_on_its_way() {
    let (history, dead) = gone(1.1, 3.0);
    kept(&history, &Evidence { dead: dead.clone(), ..none() });
    assert_eq!(tried(&history, &Evidence { dead: dead.clone(), ..none() }, "sent_after_gone"), 3);
    assert_eq!(tried(&history, &Evidence { dead, ..fault(Fault::KillWorker, 1.0, 1.0) }, "sent_after_gone"), 0);
    let (history, dead) = gone(1.1, 3.1);
    only(&history, &Evidence { dead: dead.clone(), ..none() }, "sent_after_gone");
    kept(&history, &Evidence { dead, ..fault(Fault::KillWorker, 1.0, 1.0) });
}

#[test]
fn whoever_takes_over_may_ask_a_gone_endpoint_once_more_but_not_twice() {
    let killed = |dead: Vec<Dead>, at| Evidence { dead, ..fault(Fault::KillWorker, at, at) };
    let (history, dead) = gone(1.1, 30.0);
    // The first answers may not have been noted.
    kept(&history, &killed(dead.clone(), 2.0));
    kept(&history, &killed(dead.clone(), 29.0));
    // They were noted long before.
    only(&history, &killed(dead, 15.0), "sent_after_gone");
    let (history, dead) = gone(30.0, 60.0);
    only(&history, &killed(dead, 2.0), "sent_after_gone");
}
