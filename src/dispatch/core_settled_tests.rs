//! A failover that takes a partition back: what was confirmed comes again, and is not sent.

use super::*;

/// An attempt with what its worker would report of it.
fn ends(core: &mut Core, at: u64, send: &NextAttempt, outcome: Outcome) {
    let mut attempted = attempted(outcome);
    attempted.report.number = send.delivery.next_attempt();
    attempted.request = Some(SentRequest { url: "https://example.com/".to_owned(), headers: Vec::new() });
    core.attempted(at, REDIS_MS + at, send.token, attempted, 0.5);
}

fn nexts(core: &mut Core, at: u64) -> Vec<NextAttempt> {
    std::iter::from_fn(|| core.next_attempt(at, REDIS_MS + at)).collect()
}

fn next(core: &mut Core, at: u64) -> NextAttempt {
    let mut nexts = nexts(core, at);
    assert_eq!(nexts.len(), 1);
    nexts.remove(0)
}

fn settle_at(core: &mut Core, at: u64) -> Settlement {
    let settlement = core.settlement(at, 500, EntryId::ZERO);
    core.settled(at, REDIS_MS + at, Vec::new());
    settlement
}

fn read_at(core: &mut Core, at: u64, entry: u64, intent: &str) {
    core.open_entry(at, EntryId { ms: entry, seq: 0 }, 1);
    core.admit_fresh(at, REDIS_MS + at, delivery(entry, "ep_a", intent), Known::default());
}

fn claim(core: &mut Core, at: u64, record: &Delivery) {
    core.admit_kept(at, REDIS_MS + at, record.clone(), Origin::Claimed);
}

fn redelivered(mut delivery: Delivery, at_ms: u64) -> Delivery {
    delivery.redeliver(Mark { by: "ops".into(), why: "mended".into(), at_ms }, REDIS_MS);
    delivery
}

/// The letter that this settlement writes.
fn letter(settlement: &Settlement) -> DeadLetter {
    let letter = settlement.items.iter().find_map(|item| match item {
        Item::Bury { letter, .. } => Some(letter),
        _ => None,
    });
    DeadLetter::from_record(letter.unwrap_or_else(|| panic!("{settlement:?}"))).unwrap()
}

#[test]
fn what_was_delivered_is_acknowledged_again_in_its_order_and_what_follows_goes() {
    let mut core = core(|_| {});
    for (entry, at) in [(1, 0), (2, 10)] {
        read_at(&mut core, at, entry, "pi_1");
        let sent = next(&mut core, at);
        ends(&mut core, at + 3, &sent, OK);
        assert_eq!(settle_at(&mut core, at + 4).acks.len(), 1);
    }
    core.end_term();
    for entry in [1, 2, 3] {
        read_at(&mut core, 2_000, entry, "pi_1");
    }
    assert_eq!(next(&mut core, 2_000).delivery.id.entry.ms, 3);
    let again = settle_at(&mut core, 2_001);
    assert_eq!(again.acks.iter().map(|entry| entry.ms).collect::<Vec<_>>(), [1, 2]);
    let lines: Vec<LogLine> = again.log.iter().map(|line| LogLine::read(line).unwrap()).collect();
    assert!(lines.iter().all(|line| line.outcome == OK && line.attempt == 1), "{lines:?}");
    assert_eq!(lines[1].at_ms, REDIS_MS + 13, "when it was, not when it is told again");
    // Redis forgets that too.
    core.end_term();
    for entry in [1, 2] {
        read_at(&mut core, 3_000, entry, "pi_1");
    }
    assert!(nexts(&mut core, 3_000).is_empty());
}

#[test]
fn a_record_that_is_there_again_is_finished_and_what_is_held_behind_it_too() {
    let mut core = core(|_| {});
    let mut records = Vec::new();
    for entry in [1, 2] {
        let mut record = delivery(entry, "ep_a", "pi_1");
        record.remember(attempted(FAILED).report);
        claim(&mut core, 0, &record);
        let sent = next(&mut core, 0);
        ends(&mut core, 1, &sent, OK);
        assert!(matches!(settle_at(&mut core, 2).items[..], [Item::Finish { .. }]));
        records.push(record);
    }
    core.end_term();
    for record in &records {
        claim(&mut core, 1_000, record);
        assert!(nexts(&mut core, 1_000).is_empty());
        let again = settle_at(&mut core, 1_001);
        assert!(matches!(&again.items[..], [Item::Finish { id, .. }] if *id == record.id), "{again:?}");
    }
}

#[test]
fn what_failed_is_due_when_it_was_and_its_next_attempt_is_known_too() {
    let mut core = core(|_| {});
    // Otherwise it is known from another side that what is delivered from its record need not be sent from its entry.
    core.forget_results();
    read_at(&mut core, 0, 1, "pi_1");
    read_at(&mut core, 0, 2, "pi_1");
    let first = next(&mut core, 0);
    ends(&mut core, 10, &first, FAILED);
    let settlement = settle_at(&mut core, 11);
    let pause = |settlement: &Settlement| match &settlement.items[0] {
        Item::Keep { place: Place::DueIn(pause), .. } => *pause,
        other => panic!("{other:?}"),
    };
    let due_at = 10 + pause(&settlement);
    assert!(due_at > 2_000);
    let Item::Keep { record, .. } = &settlement.items[0] else { panic!() };
    let record = Delivery::from_record(record).unwrap();
    claim(&mut core, due_at, &record);
    let second = next(&mut core, due_at);
    ends(&mut core, due_at + 1, &second, OK);
    settle_at(&mut core, due_at + 2);
    core.end_term();

    read_at(&mut core, 2_000, 1, "pi_1");
    read_at(&mut core, 2_000, 2, "pi_1");
    assert!(nexts(&mut core, 2_000).is_empty(), "the second waits behind the first, which is not due");
    let again = settle_at(&mut core, 2_001);
    assert_eq!(2_000 + pause(&again), due_at);
    assert!(matches!(again.items[1], Item::Keep { place: Place::Held, .. }), "{again:?}");
    let Item::Keep { record, .. } = &again.items[0] else { panic!() };
    claim(&mut core, due_at, &Delivery::from_record(record).unwrap());
    assert!(nexts(&mut core, due_at).is_empty());
    assert!(matches!(settle_at(&mut core, due_at).items[..], [Item::Finish { .. }]));
}

/// Two machines' clocks may differ by a minute and count as equal, and pauses are seconds.
#[test]
fn a_retry_is_due_by_a_clock_that_never_steps() {
    let pauses = [REDIS_MS - 45_000, REDIS_MS, REDIS_MS + 45_000].map(|at_ms| {
        let mut core = core(|_| {});
        core.set_may_expire(true);
        read_at(&mut core, 0, 1, "pi_1");
        let first = next(&mut core, 0);
        let mut attempted = attempted(FAILED);
        attempted.report.at_ms = at_ms;
        core.attempted(10, REDIS_MS + 10, first.token, attempted, 0.5);
        match settle_at(&mut core, 11).items[..] {
            [Item::Keep { place: Place::DueIn(pause), .. }] => pause,
            ref other => panic!("{other:?}"),
        }
    });
    assert!(pauses[0] > 2_000 && pauses.iter().all(|pause| *pause == pauses[0]), "{pauses:?}");
}

#[test]
fn a_dead_letter_is_there_again_as_it_was_before_the_next_goes() {
    let mut core = core(|endpoint| endpoint.retry.max_attempts = Some(1));
    read_at(&mut core, 0, 1, "pi_1");
    read_at(&mut core, 0, 2, "pi_1");
    let first = next(&mut core, 0);
    ends(&mut core, 1, &first, FAILED);
    let before = letter(&settle_at(&mut core, 2));
    assert!(!before.url.is_empty());
    core.end_term();
    read_at(&mut core, 1_000, 1, "pi_1");
    read_at(&mut core, 1_000, 2, "pi_1");
    assert!(nexts(&mut core, 1_000).is_empty(), "its letter is not durable yet");
    let again = letter(&settle_at(&mut core, 1_001));
    assert_eq!((&again.reason, &again.url), (&before.reason, &before.url));
    assert_eq!(again.delivery.history, before.delivery.history);
    assert_eq!(next(&mut core, 1_001).delivery.id.entry.ms, 2);
}

/// The letter is there again, as it was before somebody had it sent again.
#[test]
fn the_redelivery_that_was_settled_is_settled_again_and_another_one_is_sent() {
    let mut core = core(|_| {});
    let mut dead = delivery(1, "ep_a", "pi_1");
    dead.remember(attempted(FAILED).report);
    let record = redelivered(dead.clone(), 7);
    claim(&mut core, 0, &record);
    let sent = next(&mut core, 0);
    ends(&mut core, 1, &sent, OK);
    settle_at(&mut core, 2);
    core.end_term();
    claim(&mut core, 1_000, &redelivered(dead.clone(), 8));
    let sent = next(&mut core, 1_000);
    assert_eq!(sent.delivery.redelivered[0].at_ms, 8);
    core.end_term();
    core.forget_flights();
    // The request is there again: it was granted.
    claim(&mut core, 2_000, &record);
    assert!(nexts(&mut core, 2_000).is_empty());
    settle_at(&mut core, 2_001);
    // One of a letter that never was attempted has the number of its first attempt.
    let unsent = delivery(2, "ep_a", "pi_2");
    claim(&mut core, 3_000, &redelivered(unsent.clone(), 1));
    let sent = next(&mut core, 3_000);
    ends(&mut core, 3_001, &sent, FAILED);
    settle_at(&mut core, 3_002);
    core.end_term();
    claim(&mut core, 4_000, &redelivered(unsent, 2));
    assert_eq!(nexts(&mut core, 4_000).len(), 1);
}

#[test]
fn another_event_under_its_id_and_one_that_another_owner_took_further_are_sent() {
    let mut core = core(|_| {});
    for entry in [1, 2] {
        read_at(&mut core, 0, entry, &format!("pi_{entry}"));
        let sent = next(&mut core, 0);
        ends(&mut core, 1, &sent, OK);
        settle_at(&mut core, 2);
    }
    core.end_term();
    read_at(&mut core, 1_000, 1, "pi_3");
    let mut further = delivery(2, "ep_a", "pi_2");
    further.remember(attempted(FAILED).report);
    claim(&mut core, 1_000, &further);
    let mut sent: Vec<u64> = nexts(&mut core, 1_000).iter().map(|next| next.delivery.id.entry.ms).collect();
    sent.sort_unstable();
    assert_eq!(sent, [1, 2]);
}

#[test]
fn nothing_is_known_once_another_owned_it_or_an_operator_set_the_reading_back() {
    for forget in [Core::forget_carried, Core::forget_settled, Core::forget_results] {
        let mut core = core(|_| {});
        read_at(&mut core, 0, 1, "pi_1");
        let sent = next(&mut core, 0);
        ends(&mut core, 1, &sent, OK);
        settle_at(&mut core, 2);
        core.end_term();
        forget(&mut core);
        read_at(&mut core, 1_000, 1, "pi_1");
        assert_eq!(nexts(&mut core, 1_000).len(), 1);
    }
}

/// The endpoint changed meanwhile: what it has taken it has taken, whatever it wants now.
#[test]
fn what_was_delivered_is_settled_again_whatever_became_of_its_endpoint() {
    for change in [
        (|endpoint: &mut Endpoint| {
            endpoint.status = EndpointState::Paused(Mark { by: "ops".into(), why: "".into(), at_ms: 0 })
        }) as fn(&mut Endpoint),
        |endpoint| endpoint.disable(Mark { by: "ops".into(), why: "".into(), at_ms: 0 }, EntryId::MAX),
        |endpoint| endpoint.url = "https://example.net/".to_owned(),
    ] {
        let mut core = core(|_| {});
        read_at(&mut core, 0, 1, "pi_1");
        let sent = next(&mut core, 0);
        ends(&mut core, 1, &sent, OK);
        settle_at(&mut core, 2);
        core.end_term();
        stand(&mut core, "ep_a", endpoint("ep_a", change));
        read_at(&mut core, 1_000, 1, "pi_1");
        assert!(nexts(&mut core, 1_000).is_empty());
        let again = settle_at(&mut core, 1_001);
        assert!(again.acks.len() == 1 && again.items.is_empty(), "{again:?}");
    }
}

/// It is no failover, and yet Redis has nothing of it: its record was the last of it, and its entry waits for room.
#[test]
fn what_was_delivered_from_its_record_is_not_sent_when_the_rest_of_its_open_entry_is_admitted() {
    let mut core = core(|_| {});
    stand(&mut core, "ep_b", endpoint("ep_b", |_| {}));
    let (first, second) = (delivery(1, "ep_b", "pi_1"), delivery(1, "ep_a", "pi_1"));
    core.open_entry(0, first.id.entry, 2);
    core.admit_fresh(0, REDIS_MS, first, Known::default());
    // The owner before had given it a record.
    claim(&mut core, 1, &second);
    for sent in nexts(&mut core, 2) {
        ends(&mut core, 3, &sent, OK);
    }
    settle_at(&mut core, 4);
    core.admit_fresh(5, REDIS_MS + 5, second, Known::default());
    assert!(nexts(&mut core, 5).is_empty(), "it is sent again");
    assert_eq!(settle_at(&mut core, 6).acks.len(), 1);
}

#[test]
fn what_was_delivered_from_its_record_is_sent_again_when_its_acknowledged_entry_is_set_back() {
    let mut core = core(|_| {});
    stand(&mut core, "ep_b", endpoint("ep_b", |_| {}));
    let (slow, retried) = (delivery(1, "ep_b", "pi_1"), delivery(1, "ep_a", "pi_1"));
    core.open_entry(0, slow.id.entry, 2);
    for one in [&slow, &retried] {
        core.admit_fresh(0, REDIS_MS, one.clone(), Known::default());
    }
    let (of_a, of_b): (Vec<_>, Vec<_>) =
        nexts(&mut core, 0).into_iter().partition(|send| send.delivery.id == retried.id);
    ends(&mut core, 1, &of_a[0], FAILED);
    let kept = settle_at(&mut core, 2);
    let record = kept.items.iter().find_map(|item| match item {
        Item::Keep { record, .. } => Some(Delivery::from_record(record).unwrap()),
        _ => None,
    });
    claim(&mut core, 3_000, &record.expect("it has a record"));
    let again = next(&mut core, 3_000);
    ends(&mut core, 3_001, &again, OK);
    settle_at(&mut core, 3_002);
    ends(&mut core, 3_003, &of_b[0], OK);
    assert_eq!(settle_at(&mut core, 3_004).acks.len(), 1);
    core.open_entry(3_005, retried.id.entry, 1);
    core.admit_fresh(3_005, REDIS_MS + 3_005, retried.clone(), Known::default());
    assert_eq!(next(&mut core, 3_005).delivery.id, retried.id);
}
