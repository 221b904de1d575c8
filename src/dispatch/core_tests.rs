//! The rules of the core, one by one. What happens when they meet is for the simulator to find out.

use std::time::Duration;

use super::*;
use crate::dispatch::breaker::BreakerView;
use crate::facts::{
    endpoint::{EndpointState, Mark},
    event::Event,
    letter::Waiting,
    outcome::{AttemptReport, BodyEnd, Timing},
    retry::RetrySettings,
    signing::SecretText,
};

const REDIS_MS: u64 = 1_700_000_000_000;
const BREAKER: BreakerSettings = BreakerSettings { failure_share: 0.9, cooldown_ms: 5_000, max_cooldown_ms: 60_000 };

fn core_with(max_bytes: usize) -> Core {
    let fresh = Budget { count: 2_048, bytes: max_bytes };
    let budgets = Budgets { fresh, ..Budgets::of(max_bytes) };
    Core::new(RetryPolicy::try_new(RetrySettings::default()).unwrap(), BREAKER, budgets)
}

fn endpoint(id: &str, change: impl FnOnce(&mut Endpoint)) -> Standing {
    let (id, account, url) =
        (EndpointId::new(id).unwrap(), "acc_1".parse().unwrap(), "https://example.com/".to_owned());
    let mut endpoint = Endpoint::new(id, account, url, SecretText::from_random([7; 32]), 0);
    endpoint.revision = 1;
    change(&mut endpoint);
    Standing::of(Arc::new(endpoint))
}

/// A core that knows the endpoint `ep_a`.
fn core(change: impl FnOnce(&mut Endpoint)) -> Core {
    let mut core = core_with(1_000_000);
    stand(&mut core, "ep_a", endpoint("ep_a", change));
    core
}

fn stand(core: &mut Core, id: &str, standing: Standing) {
    core.stand(0, REDIS_MS, &EndpointId::new(id).unwrap(), standing);
}

fn delivery(entry: u64, endpoint: &str, intent: &str) -> Delivery {
    let body = format!(
        r#"{{"id":"evt_{entry}","event":"payment_intent.created","accountId":"acc_1","createdAt":"2022-02-01T13:07:41Z","data":{{"paymentIntentId":"{intent}","paymentStatus":"Created","captureMode":"Auto"}}}}"#
    );
    let event = Event::parse(body.into()).unwrap();
    Delivery::new(EntryId { ms: entry, seq: 0 }, EndpointId::new(endpoint).unwrap(), &event, true, REDIS_MS)
}

fn admit(core: &mut Core, entry: u64, endpoint: &str, intent: &str) {
    admit_known(core, entry, endpoint, intent, Known::default());
}

fn admit_known(core: &mut Core, entry: u64, endpoint: &str, intent: &str, known: Known) {
    core.open_entry(0, EntryId { ms: entry, seq: 0 }, 1);
    let mut delivery = delivery(entry, endpoint, intent);
    let of = core.lanes().find(|(id, _)| id.as_str() == endpoint).and_then(|(_, lane)| lane.endpoint());
    delivery.account = of.map_or(delivery.account, |endpoint| endpoint.account.clone());
    core.admit_fresh(0, REDIS_MS, delivery, known);
}

/// What may start now: the token and the entry of each.
fn sends(core: &mut Core, now: u64) -> Vec<(Token, u64)> {
    std::iter::from_fn(|| core.next_attempt(now, REDIS_MS))
        .map(|send| (send.token, send.delivery.id.entry.ms))
        .collect()
}

fn entries(sends: &[(Token, u64)]) -> Vec<u64> {
    sends.iter().map(|(_, entry)| *entry).collect()
}

fn attempted(outcome: Outcome) -> Attempted {
    let report = AttemptReport {
        number: 1,
        at_ms: REDIS_MS,
        outcome,
        timing: Timing::default(),
        body_end: BodyEnd::Complete,
        snippet: String::new(),
        detail: String::new(),
    };
    Attempted { report, request: None, flooded: false, resent: false, met: None }
}

fn end(core: &mut Core, now: u64, token: Token, outcome: Outcome) {
    core.attempted(now, REDIS_MS, token, attempted(outcome), 0.0);
}

const OK: Outcome = Outcome::Delivered { status: 200 };
const FAILED: Outcome = Outcome::ServerFailed { status: 500 };

fn settle(core: &mut Core, counts: &[(&str, u64, u64)]) -> Settlement {
    let settlement = core.settlement(0, 500, EntryId::ZERO);
    let count = |(id, records, parked): &(&str, u64, u64)| {
        (EndpointId::new(id).unwrap(), Unfinished { records: *records, parked: *parked, bytes: 0 })
    };
    core.settled(0, REDIS_MS, counts.iter().map(count).collect());
    settlement
}

fn places(settlement: &Settlement) -> Vec<(u64, Place)> {
    let place = |item: &Item| match item {
        Item::Keep { id, place, .. } | Item::Move { id, place, .. } => Some((id.entry.ms, *place)),
        _ => None,
    };
    settlement.items.iter().filter_map(place).collect()
}

#[test]
fn a_later_event_waits_for_the_earlier_one_and_other_intents_pass_by() {
    let mut core = core(|_| {});
    admit(&mut core, 1, "ep_a", "pi_1");
    admit(&mut core, 2, "ep_a", "pi_1");
    admit(&mut core, 3, "ep_a", "pi_2");
    let first = sends(&mut core, 0);
    assert_eq!(entries(&first), [1, 3]);
    end(&mut core, 5, first[0].0, OK);
    assert_eq!(entries(&sends(&mut core, 5)), [2]);
}

#[test]
fn a_retry_is_written_before_what_follows_it_is_held() {
    let mut core = core(|_| {});
    (1..=3).for_each(|entry| admit(&mut core, entry, "ep_a", "pi_1"));
    let first = sends(&mut core, 0);
    end(&mut core, 5, first[0].0, FAILED);
    assert!(sends(&mut core, 5).is_empty());
    let settlement = settle(&mut core, &[("ep_a", 3, 0)]);
    assert_eq!(places(&settlement), [(1, Place::DueIn(4_000)), (2, Place::Held), (3, Place::Held)]);
    assert_eq!(settlement.acks.len(), 3);
    // What comes later is asked about, and held behind them.
    assert!(core.must_ask(&EndpointId::new("ep_a").unwrap()));
    admit_known(&mut core, 4, "ep_a", "pi_1", Known { ordered: true, ..Known::default() });
    assert_eq!(places(&settle(&mut core, &[("ep_a", 4, 0)])), [(4, Place::Held)]);
}

#[test]
fn endpoints_take_turns() {
    let mut core = core_with(1_000_000);
    for id in ["ep_a", "ep_b", "ep_c"] {
        stand(&mut core, id, endpoint(id, |_| {}));
        (0..3).for_each(|n| admit(&mut core, n, id, &format!("pi_{n}")));
    }
    let order: Vec<_> =
        std::iter::from_fn(|| core.next_attempt(0, REDIS_MS)).map(|s| s.endpoint.id.to_string()).collect();
    assert_eq!(order, ["ep_a", "ep_b", "ep_c"].repeat(3));
}

#[test]
fn no_more_than_its_limit_are_in_flight() {
    let mut core = core(|endpoint| endpoint.max_in_flight = 2);
    (1..=5).for_each(|entry| admit(&mut core, entry, "ep_a", &format!("pi_{entry}")));
    let first = sends(&mut core, 0);
    assert_eq!(entries(&first), [1, 2]);
    end(&mut core, 1, first[0].0, OK);
    let third = sends(&mut core, 1);
    assert_eq!(entries(&third), [3]);
    end(&mut core, 1, third[0].0, OK);
}

#[test]
fn a_rate_limit_spaces_attempts() {
    let mut core = core(|endpoint| endpoint.rate_limit = Some(10));
    (1..=3).for_each(|entry| admit(&mut core, entry, "ep_a", &format!("pi_{entry}")));
    assert_eq!(entries(&sends(&mut core, 0)), [1]);
    assert_eq!(core.next_alarm(), Some(100));
    core.tick(99);
    assert!(sends(&mut core, 99).is_empty());
    core.tick(100);
    assert_eq!(entries(&sends(&mut core, 100)), [2]);
}

#[test]
fn a_throttled_endpoint_rests_as_long_as_it_asks_also_while_redis_clock_is_not_believed() {
    const MONTH_MS: u64 = 40 * 86_400_000;
    let mut core = core(|endpoint| endpoint.max_in_flight = 1);
    core.set_may_expire(false);
    admit(&mut core, 1, "ep_a", "pi_1");
    admit(&mut core, 2, "ep_a", "pi_2");
    let first = sends(&mut core, 0);
    let throttled = Outcome::Throttled { status: 429, retry_after: Some(Duration::from_millis(700)) };
    core.attempted(0, REDIS_MS + MONTH_MS, first[0].0, attempted(throttled), 0.0);
    core.tick(699);
    assert!(sends(&mut core, 699).is_empty());
    core.tick(700);
    assert_eq!(entries(&sends(&mut core, 700)), [2]);
}

#[test]
fn a_throttled_endpoint_rests_as_long_as_it_asks() {
    let mut core = core(|endpoint| endpoint.max_in_flight = 1);
    admit(&mut core, 1, "ep_a", "pi_1");
    admit(&mut core, 2, "ep_a", "pi_2");
    let first = sends(&mut core, 0);
    end(&mut core, 0, first[0].0, Outcome::Throttled { status: 429, retry_after: Some(Duration::from_millis(700)) });
    core.tick(699);
    assert!(sends(&mut core, 699).is_empty());
    core.tick(700);
    assert_eq!(entries(&sends(&mut core, 700)), [2]);
}

#[test]
fn a_success_after_a_failure_is_told_once() {
    let mut core = core(|_| {});
    let recoveries = |core: &mut Core| {
        let happenings = core.take_happenings();
        happenings.iter().filter(|happening| matches!(happening, CoreHappening::Recovered { .. })).count()
    };
    for (entry, outcome, told) in [(1, OK, 0), (2, FAILED, 0), (3, FAILED, 0), (4, OK, 1), (5, OK, 0)] {
        admit(&mut core, entry, "ep_a", &format!("pi_{entry}"));
        let sent = sends(&mut core, 0);
        end(&mut core, 0, sent[0].0, outcome);
        assert_eq!(recoveries(&mut core), told, "after {entry}");
    }
}

#[test]
fn silence_parks_what_waits_and_then_one_probe_goes_out() {
    let mut core = core(|endpoint| endpoint.max_in_flight = 3);
    let (mut now, mut attempts) = (0, 0);
    while !core.take_happenings().iter().any(|happening| matches!(happening, CoreHappening::BreakerOpened { .. })) {
        assert!(now < 10_000, "it has not opened after {attempts} attempts");
        now += 10;
        core.tick(now);
        core.open_entry(now, EntryId { ms: now, seq: 0 }, 1);
        core.admit_fresh(now, REDIS_MS, delivery(now, "ep_a", &format!("pi_{now}")), Known::default());
        let flying = sends(&mut core, now);
        attempts += flying.len();
        flying.iter().for_each(|(token, _)| end(&mut core, now, *token, FAILED));
    }
    assert!(attempts < 40 && now >= BREAKER.cooldown_ms, "{attempts} attempts in {now} ms");
    let parked = now / 10 - attempts as u64;
    let mut in_backlog = 0;
    while core.outbox_len() > 0 {
        let settled = places(&settle(&mut core, &[("ep_a", now / 10, parked)]));
        in_backlog += settled.iter().filter(|(_, place)| *place == Place::Backlog).count() as u64;
    }
    assert_eq!(in_backlog, parked);
    assert!(sends(&mut core, now).is_empty());
    assert_eq!(core.next_backlog(now), None);
    core.tick(now + 5_000);
    let (_, after, most) = core.next_backlog(now + 5_000).unwrap();
    assert_eq!((after, most), (EntryId::ZERO, 1));
}

/// One more delivery to `ep_a`, and what comes of all that goes out; returns how many did.
fn try_one(core: &mut Core, now: u64, outcome: &Outcome) -> usize {
    core.tick(now);
    core.open_entry(now, EntryId { ms: now, seq: 0 }, 1);
    core.admit_fresh(now, REDIS_MS, delivery(now, "ep_a", &format!("pi_{now}")), Known::default());
    let flying = sends(core, now);
    flying.iter().for_each(|(token, _)| end(core, now, *token, outcome.clone()));
    flying.len()
}

fn in_trouble(core: &Core, now: u64) -> usize {
    core.lanes().filter(|(_, lane)| lane.breaker_of_served(now).is_some_and(|view| view != BreakerView::Closed)).count()
}

#[test]
fn an_endpoint_is_in_trouble_until_it_has_recovered_and_only_while_it_is_served() {
    let mut core = core(|_| {});
    stand(&mut core, "ep_b", endpoint("ep_b", |_| {}));
    let opened = (1..100).map(|n| n * 500).find(|now| {
        try_one(&mut core, *now, &FAILED);
        in_trouble(&core, *now) == 1
    });
    let now = opened.expect("it opens");
    let mark = Mark { by: "tester".into(), why: "the test".into(), at_ms: 0 };
    stand(&mut core, "ep_a", endpoint("ep_a", |endpoint| endpoint.status = EndpointState::Paused(mark)));
    assert_eq!(in_trouble(&core, now), 0, "nobody waits for a paused one");
    stand(&mut core, "ep_a", endpoint("ep_a", |_| {}));
    let later = now + BREAKER.max_cooldown_ms;
    let probes: Vec<_> = (later..later + 3).map(|now| (in_trouble(&core, now), try_one(&mut core, now, &OK))).collect();
    assert_eq!(probes, [(1, 1); 3]);
    assert_eq!(in_trouble(&core, later + 3), 0);
}

#[test]
fn a_backlog_drains_in_order_at_a_rate_that_ramps_up() {
    let mut core = core(|endpoint| endpoint.max_in_flight = 20);
    let id = EndpointId::new("ep_a").unwrap();
    core.set_unfinished(0, &[(id.clone(), Unfinished { records: 50, parked: 50, bytes: 0 })]);
    let (mut next, mut sizes, mut sent) = (1, Vec::new(), Vec::new());
    for now in 0..5 {
        while let Some((_, after, most)) = core.next_backlog(now) {
            assert_eq!(after.ms, next - 1);
            for entry in next..next + most as u64 {
                core.admit_kept(now, REDIS_MS, delivery(entry, "ep_a", &format!("pi_{entry}")), Origin::Backlog);
            }
            next += most as u64;
            core.looked_at_backlog(now, &id, Some(EntryId { ms: next - 1, seq: 0 }));
        }
        let flying = sends(&mut core, now);
        sizes.push(flying.len());
        sent.extend(entries(&flying));
        flying.iter().for_each(|(token, _)| end(&mut core, now, *token, OK));
    }
    assert!(sizes.windows(2).all(|pair| pair[0] <= pair[1]) && sizes[0] < sizes[2], "{sizes:?}");
    assert!(sent.is_sorted(), "{sent:?}");
}

#[test]
fn nobody_jumps_the_queue_of_a_backlog() {
    let mut core = core(|_| {});
    core.set_unfinished(0, &[(EndpointId::new("ep_a").unwrap(), Unfinished { records: 5, parked: 5, bytes: 0 })]);
    admit(&mut core, 9, "ep_a", "pi_9");
    assert!(sends(&mut core, 0).is_empty());
    assert_eq!(places(&settle(&mut core, &[])), [(9, Place::Backlog)]);
}

#[test]
fn a_parked_delivery_whose_end_is_on_its_way_is_not_sent_again() {
    let mut core = core(|_| {});
    core.set_unfinished(0, &[(EndpointId::new("ep_a").unwrap(), Unfinished { records: 1, parked: 1, bytes: 0 })]);
    core.admit_kept(0, REDIS_MS, delivery(1, "ep_a", "pi_1"), Origin::Backlog);
    let first = sends(&mut core, 0);
    end(&mut core, 1, first[0].0, OK);
    // The settle has not been made, so the backlog still shows it.
    core.admit_kept(2, REDIS_MS, delivery(1, "ep_a", "pi_1"), Origin::Backlog);
    assert!(sends(&mut core, 2).is_empty());
}

#[test]
fn the_byte_budget_stops_the_reading_until_something_has_left() {
    let mut core = core_with(300);
    stand(&mut core, "ep_a", endpoint("ep_a", |_| {}));
    admit(&mut core, 1, "ep_a", "pi_1");
    assert!(core.has_room());
    admit(&mut core, 2, "ep_a", "pi_2");
    assert!(!core.has_room());
    let first = sends(&mut core, 0);
    end(&mut core, 1, first[0].0, OK);
    assert!(core.has_room());
}

#[test]
fn a_switch_of_the_order_takes_effect_chain_by_chain() {
    let mut core = core(|endpoint| endpoint.ordering = Ordering::None);
    admit(&mut core, 1, "ep_a", "pi_1");
    let flying = sends(&mut core, 0);
    stand(&mut core, "ep_a", endpoint("ep_a", |_| {}));
    // While a delivery without order is unfinished, in memory or in Redis, its intent goes on without order.
    admit(&mut core, 2, "ep_a", "pi_1");
    assert_eq!(entries(&sends(&mut core, 0)), [2]);
    end(&mut core, 1, flying[0].0, FAILED);
    admit(&mut core, 3, "ep_a", "pi_1");
    let third = sends(&mut core, 1);
    assert_eq!(entries(&third), [3]);
    end(&mut core, 1, third[0].0, OK);
    // Another intent is in order at once.
    admit(&mut core, 4, "ep_a", "pi_2");
    admit(&mut core, 5, "ep_a", "pi_2");
    assert_eq!(entries(&sends(&mut core, 1)), [4]);
}

#[test]
fn one_bad_item_is_set_aside_with_its_entry_and_the_rest_goes_again() {
    let mut core = core(|_| {});
    admit(&mut core, 1, "ep_a", "pi_1");
    admit(&mut core, 2, "ep_a", "pi_2");
    let flying = sends(&mut core, 0);
    flying.iter().for_each(|(token, _)| end(&mut core, 1, *token, FAILED));
    assert_eq!(core.settlement(1, 500, EntryId::ZERO).items.len(), 2);
    core.refused(1, 0, "wrong type");
    let again = core.settlement(1, 500, EntryId::ZERO);
    assert_eq!(places(&again), [(2, Place::DueIn(4_000))]);
    assert_eq!(again.acks, [EntryId { ms: 2, seq: 0 }]);
    assert!(core.take_happenings().iter().any(|happening| matches!(happening, CoreHappening::SetAside { .. })));
}

#[test]
fn an_endpoint_that_answers_410_gets_nothing_more() {
    let mut core = core(|endpoint| endpoint.max_in_flight = 1);
    admit(&mut core, 1, "ep_a", "pi_1");
    admit(&mut core, 2, "ep_a", "pi_2");
    let first = sends(&mut core, 0);
    end(&mut core, 1, first[0].0, Outcome::Gone);
    assert!(sends(&mut core, 1).is_empty());
    assert!(matches!(core.take_errands()[..], [CoreErrand::Disable { revision: 1, .. }]));
    assert!(settle(&mut core, &[("ep_a", 1, 1)]).items.iter().any(|item| matches!(item, Item::Bury { .. })));
    assert_eq!(core.next_ending().map(|id| id.to_string()).as_deref(), Some("ep_a"));
}

#[test]
fn what_is_parked_while_its_backlog_is_looked_at_is_looked_at_again() {
    let mark = Mark { by: "ops".into(), why: "test".into(), at_ms: 0 };
    let mut core = core(|_| {});
    let id = EndpointId::new("ep_a").unwrap();
    core.set_unfinished(0, &[(id.clone(), Unfinished { records: 2, parked: 2, bytes: 0 })]);
    core.admit_kept(0, REDIS_MS, delivery(1, "ep_a", "pi_1"), Origin::Backlog);
    core.looked_at_backlog(0, &id, Some(EntryId { ms: 1, seq: 0 }));
    assert_eq!(core.next_backlog(0).map(|(_, after, _)| after.ms), Some(1));
    // The endpoint is paused and resumed before the answer comes.
    stand(&mut core, "ep_a", endpoint("ep_a", |endpoint| endpoint.status = EndpointState::Paused(mark)));
    stand(&mut core, "ep_a", endpoint("ep_a", |_| {}));
    core.looked_at_backlog(0, &id, None);
    assert_eq!(core.next_backlog(0).map(|(_, after, _)| after), Some(EntryId { ms: 1, seq: 0 }.before()));
}

#[test]
fn a_backlog_whose_look_failed_is_looked_at_again_and_not_at_once() {
    let mut core = core(|_| {});
    let id = EndpointId::new("ep_a").unwrap();
    core.set_unfinished(0, &[(id.clone(), Unfinished { records: 1, parked: 1, bytes: 0 })]);
    assert!(core.next_backlog(0).is_some());
    core.look_failed(0, &id);
    core.tick(4_999);
    assert!(core.next_backlog(4_999).is_none());
    assert_eq!(core.next_alarm(), Some(5_000));
    core.tick(5_000);
    assert_eq!(core.next_backlog(5_000).map(|(_, after, _)| after), Some(EntryId::ZERO));
}

#[test]
fn a_410_is_about_the_revision_that_the_attempt_was_made_with() {
    let mut core = core(|_| {});
    admit(&mut core, 1, "ep_a", "pi_1");
    let first = sends(&mut core, 0);
    stand(&mut core, "ep_a", endpoint("ep_a", |endpoint| endpoint.revision = 2));
    end(&mut core, 1, first[0].0, Outcome::Gone);
    assert!(core.take_errands().is_empty());
    admit(&mut core, 2, "ep_a", "pi_2");
    assert_eq!(entries(&sends(&mut core, 1)), [2]);
}

/// A failover may take back that it was disabled.
#[test]
fn a_410_counts_again_where_what_it_led_to_is_gone() {
    let mark = Mark { by: "herald".into(), why: "the receiver answered 410 Gone".into(), at_ms: 0 };
    let mut core = core(|_| {});
    for entry in 1..=2 {
        admit(&mut core, entry, "ep_a", &format!("pi_{entry}"));
        let sent = sends(&mut core, 0);
        assert_eq!(entries(&sent), [entry]);
        end(&mut core, 1, sent[0].0, Outcome::Gone);
        assert!(matches!(core.take_errands()[..], [CoreErrand::Disable { revision: 1, .. }]));
        settle(&mut core, &[("ep_a", 0, 0)]);
        let disabled = endpoint("ep_a", |endpoint| {
            endpoint.disable(mark.clone(), EntryId { ms: entry, seq: 0 });
            endpoint.revision = 2;
        });
        stand(&mut core, "ep_a", disabled);
        stand(&mut core, "ep_a", endpoint("ep_a", |_| {}));
    }
}

#[test]
fn a_paused_endpoint_parks_and_takes_up_where_it_was() {
    let mark = Mark { by: "ops".into(), why: "test".into(), at_ms: 0 };
    let mut core = core(|endpoint| endpoint.status = EndpointState::Paused(mark));
    admit(&mut core, 1, "ep_a", "pi_1");
    assert_eq!(places(&settle(&mut core, &[("ep_a", 1, 1)])), [(1, Place::Backlog)]);
    assert_eq!(core.next_backlog(0), None);
    stand(&mut core, "ep_a", endpoint("ep_a", |_| {}));
    assert!(core.next_backlog(0).is_some());
}

#[test]
fn what_takes_long_gets_a_record_so_that_it_does_not_pin_the_stream() {
    let mut core = core(|_| {});
    admit(&mut core, 1, "ep_a", "pi_1");
    admit(&mut core, 2, "ep_a", "pi_1");
    let first = sends(&mut core, 0);
    core.tick(RECORD_AFTER_MS);
    let settlement = settle(&mut core, &[("ep_a", 2, 0)]);
    assert_eq!(places(&settlement), [(1, Place::Claimed), (2, Place::Held)]);
    end(&mut core, 2_000, first[0].0, OK);
    assert!(matches!(settle(&mut core, &[]).items[..], [Item::Finish { .. }]));
}

#[test]
fn what_was_delivered_is_not_sent_again_when_the_term_ends() {
    let mut core = core(|_| {});
    stand(&mut core, "ep_b", endpoint("ep_b", |_| {}));
    let read = |core: &mut Core| {
        core.open_entry(0, EntryId { ms: 1, seq: 0 }, 2);
        core.admit_fresh(0, REDIS_MS, delivery(1, "ep_a", "pi_1"), Known::default());
        core.admit_fresh(0, REDIS_MS, delivery(1, "ep_b", "pi_1"), Known::default());
    };
    read(&mut core);
    let flying = sends(&mut core, 0);
    end(&mut core, 1, flying[0].0, OK);
    settle(&mut core, &[]);
    core.end_term();
    // It is read again: one is done, the other is still in flight.
    read(&mut core);
    assert!(sends(&mut core, 2).is_empty());
    end(&mut core, 3, flying[1].0, OK);
    assert_eq!(settle(&mut core, &[]).acks, [EntryId { ms: 1, seq: 0 }]);
}

#[test]
fn the_next_waits_until_the_letter_of_the_one_before_is_durable() {
    let mut core = core(|endpoint| endpoint.retry.max_attempts = Some(1));
    admit(&mut core, 1, "ep_a", "pi_1");
    admit(&mut core, 2, "ep_a", "pi_1");
    let first = sends(&mut core, 0);
    end(&mut core, 0, first[0].0, FAILED);
    admit(&mut core, 3, "ep_a", "pi_1");
    assert!(sends(&mut core, 0).is_empty(), "a crash now would send the first one again, after the second");
    assert!(settle(&mut core, &[]).items.iter().any(|item| matches!(item, Item::Bury { .. })));
    assert_eq!(entries(&sends(&mut core, 0)), [2]);
}

#[test]
fn nothing_of_a_chain_is_recorded_behind_a_letter_that_was_refused() {
    let mut core = core(|endpoint| endpoint.retry.max_attempts = Some(1));
    admit(&mut core, 1, "ep_a", "pi_1");
    admit(&mut core, 2, "ep_a", "pi_1");
    let first = sends(&mut core, 0);
    end(&mut core, 0, first[0].0, FAILED);
    core.settlement(0, 500, EntryId::ZERO);
    core.refused(0, 0, "the key has another type");
    core.tick(RECORD_AFTER_MS);
    let settlement = core.settlement(RECORD_AFTER_MS, 500, EntryId::ZERO);
    assert!(settlement.items.is_empty() && settlement.acks.is_empty(), "{settlement:?}");
}

#[test]
fn what_came_of_an_event_says_nothing_of_another_one_under_its_id() {
    let mut core = core(|_| {});
    admit(&mut core, 1, "ep_a", "pi_1");
    admit(&mut core, 2, "ep_a", "pi_2");
    let sent = sends(&mut core, 0);
    end(&mut core, 0, sent[0].0, OK);
    // Redis fails over to one that has heard of neither: their ids are given to other events.
    core.end_term();
    for (entry, intent) in [(1, "pi_3"), (2, "pi_4")] {
        admit(&mut core, entry, "ep_a", intent);
    }
    assert_eq!(entries(&sends(&mut core, 0)), [1, 2]);
    assert!(settle(&mut core, &[]).acks.is_empty());
}

#[test]
fn an_event_whose_id_is_taken_is_kept_apart_and_not_taken_for_the_other() {
    let mut core = core(|_| {});
    admit_known(&mut core, 1, "ep_a", "pi_1", Known { recorded: Recorded::Another, ..Known::default() });
    assert!(sends(&mut core, 0).is_empty());
    let settlement = settle(&mut core, &[]);
    let body = delivery(1, "ep_a", "pi_1").body;
    assert!(matches!(&settlement.items[..], [Item::Quarantine { cut: false, body: kept, .. }] if *kept == body));
    assert_eq!(settlement.acks.len(), 1);
}

/// Hanging deliveries: `count` of them with an event each, to endpoints that are doubted and share one host and account.
fn hanging(core: &mut Core, count: u64) -> Vec<(Token, u64)> {
    for n in 0..count {
        let id = format!("ep_bad{n}");
        stand(core, &id, endpoint(&id, |_| {}));
        admit(core, n + 1, &id, "pi_1");
    }
    let flying = sends(core, 0);
    core.tick(1_000);
    flying
}

fn small(slow: usize) -> Core {
    small_with(slow, 64)
}

fn small_with(slow: usize, fresh: usize) -> Core {
    let mut budgets = Budgets::of(1 << 20);
    budgets.slow.count = slow;
    budgets.fresh.count = fresh;
    Core::new(RetryPolicy::try_new(RetrySettings::default()).unwrap(), BREAKER, budgets)
}

#[test]
fn what_waits_for_its_receiver_and_has_a_record_does_not_stop_the_reading() {
    let mut core = small(4_000);
    let mut flying = Vec::new();
    for n in 0..200 {
        let id = format!("ep_{n}");
        stand(&mut core, &id, endpoint(&id, |endpoint| endpoint.account = format!("acc_{n}").parse().unwrap()));
        admit(&mut core, n + 1, &id, "pi_1");
        flying.extend(sends(&mut core, 0));
        core.tick(1_000 * (n / 50 + 1));
    }
    assert!(flying.len() > 64 && core.tally().in_flight == flying.len());
    while core.outbox_len() > 0 {
        settle(&mut core, &[]);
    }
    assert!(core.has_room() && core.has_room_for_records(), "{:?}", core.tally());
}

/// When the term ends: before its second attempt has, before that is settled, or after.
#[derive(Clone, Copy, PartialEq)]
enum EndOfTerm {
    InFlight,
    NotSettled,
    Settled,
}

/// Its entry waits for another endpoint all the while.
#[test]
fn what_was_delivered_from_its_record_is_not_sent_again_when_its_entry_is_read_again() {
    for ends in [EndOfTerm::InFlight, EndOfTerm::NotSettled, EndOfTerm::Settled] {
        let mut core = core(|_| {});
        stand(&mut core, "ep_b", endpoint("ep_b", |_| {}));
        read_for_two(&mut core);
        let first: Vec<NextAttempt> = std::iter::from_fn(|| core.next_attempt(0, REDIS_MS)).collect();
        assert!(first.len() == 2 && first[0].delivery.id.endpoint.as_str() == "ep_a");
        end(&mut core, 0, first[0].token, FAILED);
        let record = kept_record(&settle(&mut core, &[("ep_a", 1, 0)]));
        core.admit_kept(0, REDIS_MS, record.clone(), Origin::Claimed);
        let second = sends(&mut core, 0)[0].0;
        let finishes = |core: &mut Core| {
            let settlement = settle(core, &[("ep_a", 0, 0)]);
            assert!(matches!(settlement.items[..], [Item::Finish { .. }]) && settlement.acks.is_empty());
        };
        if ends == EndOfTerm::InFlight {
            core.end_term();
            end(&mut core, 0, second, OK);
        } else {
            end(&mut core, 0, second, OK);
        }
        if ends == EndOfTerm::Settled {
            finishes(&mut core);
        }
        core.end_term();
        if ends != EndOfTerm::Settled {
            // Its record is there again, and is claimed before its entry is read.
            core.admit_kept(0, REDIS_MS, record, Origin::Claimed);
            assert_eq!(sends(&mut core, 0), []);
            finishes(&mut core);
        }
        read_for_two(&mut core);
        assert_eq!(sends(&mut core, 0), [], "one was delivered, the other is still out");
        end(&mut core, 0, first[1].token, OK);
        assert_eq!(settle(&mut core, &[]).acks, [EntryId { ms: 1, seq: 0 }]);
    }
}

/// An earlier owner left the record of a delivery that failed, and the entry, which waits for another endpoint.
#[test]
fn a_record_that_is_delivered_before_its_entry_is_read_again_is_not_sent_twice() {
    let mut core = core(|_| {});
    stand(&mut core, "ep_b", endpoint("ep_b", |_| {}));
    let mut record = delivery(1, "ep_a", "pi_1");
    record.remember(attempted(FAILED).report);
    core.admit_kept(0, REDIS_MS, record, Origin::Claimed);
    let second = sends(&mut core, 0)[0].0;
    end(&mut core, 0, second, OK);
    assert!(matches!(settle(&mut core, &[("ep_a", 0, 0)]).items[..], [Item::Finish { .. }]));
    read_for_two(&mut core);
    let sent: Vec<_> =
        std::iter::from_fn(|| core.next_attempt(0, REDIS_MS)).map(|send| send.delivery.id.endpoint.clone()).collect();
    assert!(sent.len() == 1 && sent[0].as_str() == "ep_b", "{sent:?}");
}

/// Another owner has had it refused meanwhile, and an operator sends it again.
#[test]
fn what_was_delivered_once_is_sent_again_if_its_record_says_so() {
    let mut core = core(|_| {});
    stand(&mut core, "ep_b", endpoint("ep_b", |_| {}));
    read_for_two(&mut core);
    let first: Vec<NextAttempt> = std::iter::from_fn(|| core.next_attempt(0, REDIS_MS)).collect();
    end(&mut core, 0, first[0].token, FAILED);
    let mut record = kept_record(&settle(&mut core, &[("ep_a", 1, 0)]));
    core.admit_kept(0, REDIS_MS, record.clone(), Origin::Claimed);
    let second = sends(&mut core, 0)[0].0;
    end(&mut core, 0, second, OK);
    core.end_term();
    record.remember(attempted(FAILED).report);
    core.admit_kept(0, REDIS_MS, record, Origin::Claimed);
    assert_eq!(entries(&sends(&mut core, 0)), [1]);
}

/// An entry that is owed to `ep_a` and `ep_b`.
fn read_for_two(core: &mut Core) {
    core.open_entry(0, EntryId { ms: 1, seq: 0 }, 2);
    for id in ["ep_a", "ep_b"] {
        core.admit_fresh(0, REDIS_MS, delivery(1, id, "pi_1"), Known::default());
    }
}

fn kept_record(settlement: &Settlement) -> Delivery {
    let [Item::Keep { record, .. }] = &settlement.items[..] else { panic!("{settlement:?}") };
    Delivery::from_record(record).unwrap()
}

/// The records of all that failed and wait for a settle take as much memory as what was read.
#[test]
fn an_outbox_is_full_by_bytes_too() {
    let mut budgets = Budgets::of(1 << 20);
    budgets.outbox.bytes = 4_000;
    let mut core = Core::new(RetryPolicy::try_new(RetrySettings::default()).unwrap(), BREAKER, budgets);
    stand(&mut core, "ep_a", endpoint("ep_a", |endpoint| endpoint.max_in_flight = 100));
    let mut entry = 0;
    while core.may_settle_more() {
        entry += 1;
        assert!(entry < 100, "it has {} operations", core.outbox_len());
        admit(&mut core, entry, "ep_a", &format!("pi_{entry}"));
        for (token, _) in sends(&mut core, 0) {
            end(&mut core, 0, token, FAILED);
        }
    }
    assert!(!core.has_room() && !core.has_room_for_records());
    while core.outbox_len() > 0 {
        settle(&mut core, &[]);
    }
    assert!(core.has_room() && core.has_room_for_records());
}

#[test]
fn who_hangs_takes_no_more_than_its_accounts_share_and_costs_a_new_one_nothing() {
    let mut core = small(64);
    let first = hanging(&mut core, 40);
    // New ones may have a quarter of their account's quarter.
    assert_eq!(first.len(), 4);
    // Those that hang were new once: their places go to the next new one.
    stand(&mut core, "ep_good", endpoint("ep_good", |_| {}));
    admit(&mut core, 100, "ep_good", "pi_1");
    let good = sends(&mut core, 1_000);
    assert_eq!(entries(&good), [100]);
    // Its quick answers make it one of the proven, which need no seats.
    end(&mut core, 1_010, good[0].0, OK);
    (101..110).for_each(|entry| admit(&mut core, entry, "ep_good", &format!("pi_{entry}")));
    assert_eq!(sends(&mut core, 1_010).len(), 5);
    assert_eq!(core.tally().slow, 4);
}

#[test]
fn new_ones_that_do_not_answer_at_once_leave_their_places_to_the_next_and_are_not_doubted_for_it() {
    const AT_ONCE_MS: u64 = 250;
    // Those that are not proven may have three quarters of what has no record.
    let mut core = small_with(64, 96);
    let mut met = 0;
    // Each has an account and host of its own: only the places of the new are few.
    for round in 0..4 {
        for n in 16 * round..16 * (round + 1) {
            let id = format!("ep_{n}");
            stand(
                &mut core,
                &id,
                endpoint(&id, |endpoint| {
                    endpoint.account = format!("acc_{n}").parse().unwrap();
                    endpoint.url = format!("https://shop-{n}.example/");
                }),
            );
            admit(&mut core, n + 1, &id, "pi_1");
        }
        met += sends(&mut core, round * AT_ONCE_MS).len();
        core.tick((round + 1) * AT_ONCE_MS);
    }
    assert_eq!(met, 64, "new receivers were kept from being asked by others that had not answered yet");
    assert!(core.lanes().skip(16).all(|(_, lane)| lane.trust == Trust::New));
}

#[test]
fn who_keeps_us_waiting_is_doubted_whatever_it_answers() {
    let mut core = core(|_| {});
    let trust = |core: &Core| core.lanes().next().unwrap().1.trust;
    admit(&mut core, 1, "ep_a", "pi_1");
    let first = sends(&mut core, 0);
    end(&mut core, 10, first[0].0, OK);
    assert_eq!(trust(&core), Trust::Proven);
    admit(&mut core, 2, "ep_a", "pi_2");
    let second = sends(&mut core, 10);
    core.tick(1_010);
    assert_eq!((trust(&core), core.tally().slow), (Trust::Doubted, 1));
    let mut slow = attempted(OK);
    slow.report.timing.total_us = 14_000_000;
    core.attempted(14_000, REDIS_MS, second[0].0, slow, 0.0);
    assert_eq!((trust(&core), core.tally().slow), (Trust::Doubted, 0));
    // The same holds for a receiver that floods.
    admit(&mut core, 3, "ep_a", "pi_3");
    let third = sends(&mut core, 14_000);
    end(&mut core, 14_010, third[0].0, OK);
    assert_eq!(trust(&core), Trust::Proven);
    admit(&mut core, 4, "ep_a", "pi_4");
    let fourth = sends(&mut core, 14_020);
    core.attempted(14_030, REDIS_MS, fourth[0].0, Attempted { flooded: true, ..attempted(OK) }, 0.0);
    assert_eq!(trust(&core), Trust::Doubted);
}

#[test]
fn a_failure_of_ours_is_no_attempt_and_the_delivery_goes_again_in_its_place() {
    let mut core = core(|endpoint| endpoint.max_in_flight = 1);
    admit(&mut core, 1, "ep_a", "pi_1");
    admit(&mut core, 2, "ep_a", "pi_2");
    let mut now = 0;
    for _ in 0..9 {
        let flying = sends(&mut core, now);
        assert_eq!(entries(&flying), [1]);
        end(&mut core, now, flying[0].0, Outcome::Local { cause: LocalCause::Descriptors });
        now += LOCAL_PAUSE_MS;
        core.tick(now);
    }
    let happenings = core.take_happenings();
    assert!(happenings.iter().all(|happening| matches!(happening, CoreHappening::OursFailed { .. })), "{happenings:?}");
    let flying = sends(&mut core, now);
    let delivery =
        core.term.jobs.values().find(|job| job.delivery.id.entry.ms == flying[0].1).unwrap().delivery.clone();
    assert_eq!(delivery.attempts, 0);
}

#[test]
fn the_lanes_of_deleted_endpoints_leave_and_their_places_are_given_again() {
    let mut core = core(|_| {});
    let deleted = || Standing::Ended { reason: DeadReason::Deleted, owed: crate::dispatch::lane::Owed::All };
    // It has something in Redis to the end.
    stand(&mut core, "ep_owing", endpoint("ep_owing", |_| {}));
    core.set_unfinished(0, &[("ep_owing".parse().unwrap(), Unfinished { records: 1, parked: 0, bytes: 0 })]);
    stand(&mut core, "ep_owing", deleted());
    let mut most = 0;
    for n in 0..10_000 {
        let (now, id) = (100 * n, format!("ep_{n}"));
        stand(&mut core, &id, endpoint(&id, |_| {}));
        admit(&mut core, n, &id, "pi_1");
        let flying = sends(&mut core, now);
        assert_eq!(entries(&flying), [n]);
        // Deleted while an attempt is in flight, and while its end is on its way to Redis.
        stand(&mut core, &id, deleted());
        core.tick(now);
        end(&mut core, now, flying[0].0, OK);
        core.tick(now + 50);
        settle(&mut core, &[(&id, 0, 0)]);
        most = most.max(core.lanes().count());
    }
    core.tick(2_000_000);
    let mut left: Vec<&str> = core.lanes().map(|(endpoint, _)| endpoint.as_str()).collect();
    left.sort_unstable();
    assert_eq!(left, ["ep_a", "ep_owing"]);
    assert!(most < 200, "{most} lanes");
    // An endpoint that is created again before it has left stays.
    stand(&mut core, "ep_back", endpoint("ep_back", |_| {}));
    stand(&mut core, "ep_back", deleted());
    stand(&mut core, "ep_back", endpoint("ep_back", |_| {}));
    core.tick(3_000_000);
    assert!(core.has_lane(&"ep_back".parse().unwrap()));
}

#[path = "core_quota_tests.rs"]
mod quotas;

#[path = "core_ahead_tests.rs"]
mod ahead;

#[path = "core_settled_tests.rs"]
mod settled;

/// What the letters of a settlement say that they waited for.
fn waited_for(settlement: &Settlement) -> Vec<WaitedFor> {
    let letter = |item: &Item| match item {
        Item::Bury { letter, facts, .. } => {
            let dead = DeadLetter::from_record(letter).unwrap();
            assert_eq!(**facts, LetterFacts::of(&dead), "it is indexed as what it is");
            dead.waited_for
        }
        _ => None,
    };
    settlement.items.iter().filter_map(letter).collect()
}

/// One that is too old, as it was found in Redis.
fn found_too_old(core: &mut Core, now: u64, entry: u64, intent: &str, origin: Origin) -> Vec<WaitedFor> {
    let mut old = delivery(entry, "ep_a", intent);
    old.since_ms = REDIS_MS - 73 * 3_600_000;
    core.admit_kept(now, REDIS_MS, old, origin);
    waited_for(&settle(core, &[]))
}

#[test]
fn a_letter_that_was_never_tried_says_who_paused_its_endpoint() {
    let mark = || Mark { by: "ops".into(), why: "it is down".into(), at_ms: 7 };
    let mut core = core(|endpoint| endpoint.status = EndpointState::Paused(mark()));
    let expected = WaitedFor::new(Waiting::Paused).paused("ops", "it is down", 7);
    assert_eq!(found_too_old(&mut core, 0, 1, "pi_1", Origin::Backlog), std::slice::from_ref(&expected));
    // Who disables it later gives up what waited because of the pause.
    stand(&mut core, "ep_a", endpoint("ep_a", |endpoint| endpoint.status = EndpointState::Disabled(mark())));
    assert_eq!(found_too_old(&mut core, 0, 2, "pi_2", Origin::Claimed), [expected]);
    // Once it serves again, nothing is left of that.
    stand(&mut core, "ep_a", endpoint("ep_a", |_| {}));
    assert_eq!(found_too_old(&mut core, 0, 3, "pi_3", Origin::Claimed), [WaitedFor::new(Waiting::Unknown)]);
}

#[test]
fn a_letter_that_was_never_tried_says_since_when_the_breaker_was_open_and_what_failed_last() {
    let mut core = core(|_| {});
    let opened = (1..100).map(|n| n * 500).find(|now| {
        try_one(&mut core, *now, &FAILED);
        settle(&mut core, &[]);
        in_trouble(&core, *now) == 1
    });
    let (now, opened) = (opened.expect("it opens") + 1_000, REDIS_MS - 1_000);
    let found = found_too_old(&mut core, now, 100, "pi_100", Origin::Backlog);
    let expected = WaitedFor {
        since_ms: Some(opened),
        last_failure: Some("server_failed:500".parse().unwrap()),
        last_failure_at_ms: Some(opened),
        ..WaitedFor::new(Waiting::BreakerOpen)
    };
    assert_eq!(found, [expected]);
}

#[test]
fn a_letter_that_was_never_tried_says_behind_which_head_it_was_held() {
    let mut core = core(|_| {});
    assert_eq!(found_too_old(&mut core, 0, 1, "pi_1", Origin::Claimed)[0].why, Waiting::Unknown, "it was the first");
    let held = found_too_old(&mut core, 0, 2, "pi_1", Origin::Claimed);
    assert_eq!((held[0].why, held[0].head), (Waiting::Held, Some(EntryId { ms: 1, seq: 0 })));
    let next = found_too_old(&mut core, 0, 3, "pi_1", Origin::Claimed);
    assert_eq!(next[0].head, Some(EntryId { ms: 2, seq: 0 }));
    assert_eq!(found_too_old(&mut core, 0, 4, "pi_2", Origin::Claimed)[0].head, None, "another chain");
}

#[test]
fn a_letter_that_was_never_tried_says_that_all_sending_was_paused() {
    let mut core = core(|_| {});
    core.all_is_paused(REDIS_MS - 80 * 3_600_000);
    core.all_is_paused(REDIS_MS - 10);
    core.all_goes_on();
    let found = found_too_old(&mut core, 0, 1, "pi_1", Origin::Claimed);
    let since_ms = Some(REDIS_MS - 80 * 3_600_000);
    assert_eq!(found, [WaitedFor { since_ms, ..WaitedFor::new(Waiting::AllPaused) }]);
}

#[test]
fn what_is_told_of_each_delivery_is_made_only_for_those_who_ask() {
    let told = |telling: Telling| {
        let mut core = core(|_| {});
        core.tell(telling);
        admit(&mut core, 1, "ep_a", "pi_1");
        let first = sends(&mut core, 0);
        end(&mut core, 5, first[0].0, OK);
        // What waits for its settlement holds nothing more either.
        let waiting = core.term.outbox.waiting();
        let held =
            waiting.filter(|op| matches!(op, Op::Log { of: LineOf::Attempt(r), .. } if r.told.is_some())).count();
        settle(&mut core, &[]);
        (held, core.take_happenings().len())
    };
    assert_eq!(told(Telling::default()), (0, 0));
    // An attempt and a delivery, as they happen; an attempt and an entry, once they are settled.
    assert_eq!(told(Telling { steps: true, settled: false }), (0, 2));
    assert_eq!(told(Telling { steps: false, settled: true }), (1, 2));
}

/// What there was of it when its endpoint was locked for four days: parked, and held behind that.
#[test]
fn what_waits_for_an_endpoint_that_cannot_be_read_does_not_grow_old() {
    const DAYS: u64 = 86_400_000;
    let ep_a: EndpointId = "ep_a".parse().unwrap();
    let mut core = core(|_| {});
    core.stand(0, REDIS_MS, &ep_a, Standing::Unknown);
    let later = REDIS_MS + 4 * DAYS;
    core.admit_kept(0, later, delivery(1, "ep_a", "pi_1"), Origin::Claimed);
    assert_eq!(places(&settle(&mut core, &[("ep_a", 2, 1)])), [(1, Place::Backlog)], "nothing is given up");
    assert!(!core.is_expired(&delivery(1, "ep_a", "pi_1"), later));
    assert!(core.waiting_backlogs(0).is_empty() && core.unreadable() == [ep_a.clone()]);
    core.stand(0, later, &ep_a, endpoint("ep_a", |_| {}));
    assert!(core.unreadable().is_empty());
    core.admit_kept(0, later, delivery(1, "ep_a", "pi_1"), Origin::Backlog);
    core.admit_kept(0, later, delivery(2, "ep_a", "pi_2"), Origin::Claimed);
    let first = sends(&mut core, 0);
    assert_eq!(first.len(), 2);
    core.attempted(0, later, first[0].0, attempted(FAILED), 0.0);
    assert_eq!(places(&settle(&mut core, &[("ep_a", 2, 0)])).len(), 1, "it is tried again");
    // From then on it ages like any other.
    assert!(!core.is_expired(&delivery(1, "ep_a", "pi_1"), later + 3 * DAYS - 1));
    assert!(core.is_expired(&delivery(1, "ep_a", "pi_1"), later + 3 * DAYS));
}

#[test]
fn a_new_owner_learns_how_long_an_endpoint_could_not_be_read() {
    let ep_a: EndpointId = "ep_a".parse().unwrap();
    let mut core = core(|_| {});
    let old = Delivery { since_ms: REDIS_MS - 96 * 3_600_000, ..delivery(1, "ep_a", "pi_1") };
    assert!(core.is_expired(&old, REDIS_MS));
    core.noted_unreadable(&ep_a, REDIS_MS - 3_600_000);
    assert!(!core.is_expired(&old, REDIS_MS));
    assert!(core.is_expired(&old, REDIS_MS + 71 * 3_600_000));
}
