//! The owner against the store's model, without faults: what it calls, and when it stops.

use std::collections::BTreeMap;

use super::*;
use crate::{
    dispatch::{budgets::Budget, lane::Owed},
    facts::{
        endpoint::EndpointState,
        outcome::{AttemptReport, BodyEnd, Outcome, Timing},
        retry::{DeadReason, RetrySettings},
        signing::SecretText,
    },
    store::{
        model::{Group, Model, Quarantined},
        protocol::{Asked, GROUP, Unfinished},
    },
};

/// A registry with one endpoint, `ep_a` of `acc_1`, or with none.
#[derive(Default)]
struct Known {
    endpoint: std::cell::RefCell<Option<Arc<Endpoint>>>,
    /// Another registry, without any endpoint, is in its place.
    is_another: std::cell::Cell<bool>,
    /// Of the snapshot, and of the registry itself.
    last: std::cell::Cell<Stamped>,
    redis_last: std::cell::Cell<Stamped>,
    is_paused: std::cell::Cell<bool>,
}

fn change(version: u64, stamp: u64) -> Stamped {
    Stamped { version, stamp }
}

impl Known {
    fn with_endpoint() -> Self {
        Self { endpoint: Some(endpoint()).into(), ..Self::default() }
    }
}

impl Directory for &Known {
    fn standing(&self, _: &EndpointId) -> Standing {
        let deleted = Standing::Ended { reason: DeadReason::Deleted, owed: Owed::All };
        match self.endpoint.borrow().clone() {
            Some(endpoint) if !self.is_another.get() => Standing::of(endpoint),
            _ => deleted,
        }
    }

    fn endpoints_of(&self, _: &AccountId) -> Vec<Arc<Endpoint>> {
        self.endpoint.borrow().iter().cloned().collect()
    }

    fn unknown_of(&self, _: &AccountId) -> Vec<EndpointId> {
        Vec::new()
    }

    fn view(&self) -> RegistryView {
        let id = if self.is_another.get() { "another" } else { "reg" };
        RegistryView {
            id: Some(id.to_owned()),
            last: self.last.get(),
            is_certain: true,
            is_paused: self.is_paused.get(),
        }
    }
}

fn endpoint() -> Arc<Endpoint> {
    let (id, account, url) = ("ep_a".parse().unwrap(), "acc_1".parse().unwrap(), "https://example.com/".to_owned());
    let endpoint = Endpoint::new(id, account, url, SecretText::from_random([7; 32]), 0);
    Arc::new(Endpoint { max_in_flight: 5, revision: 1, ..endpoint })
}

/// As for a worker that may hold a megabyte of bodies.
fn partition(known: &Known) -> Partition<&Known> {
    partition_with(known, Budgets::of(1_000_000))
}

fn partition_with(known: &Known, budgets: Budgets) -> Partition<&Known> {
    Partition::new(Settings { budgets, ..settings() }, known, [7; 32])
}

fn settings() -> Settings {
    Settings {
        owner: "tester".to_owned(),
        policy: RetryPolicy::try_new(RetrySettings::default()).unwrap(),
        breaker: BreakerSettings::default(),
        budgets: Budgets::of(1_000_000),
        lease_ms: 5_000,
        start: Start::Oldest,
        retain_ms: 60_000,
        trim_ignores: Vec::new(),
        dead_max_age_ms: 1_000_000,
        dead_max_count: 1_000,
        quarantine_bytes: 1 << 20,
        strict_events: false,
        accounts: Accounts::ALL,
        acquire_every_ms: 200,
        most_parts: 1024,
        parts: 1,
    }
}

fn entry(ms: u64) -> EntryId {
    EntryId { ms, seq: 0 }
}

fn publish(model: &mut Model, ms: u64) {
    let body = format!(
        r#"{{"id":"evt_{ms}","event":"payment_intent.created","accountId":"acc_1","createdAt":"2022-02-01T13:07:41Z","data":{{"paymentIntentId":"pi_{ms}","paymentStatus":"Created","captureMode":"Auto"}}}}"#
    );
    model.publish(entry(ms), body.into());
}

/// Makes every call that is wanted at this time; returns how many there were.
fn drive(partition: &mut Partition<&Known>, model: &mut Model, now: u64) -> usize {
    drive_at(partition, model, now, now)
}

/// With Redis' clock at a time of its own.
fn drive_at(partition: &mut Partition<&Known>, model: &mut Model, now: u64, redis_ms: u64) -> usize {
    model.now_ms = redis_ms;
    partition.compare_clocks(now, redis_ms);
    model.registry_last = Some(partition.directory().redis_last.get());
    let mut calls = 0;
    while let Some(call) = partition.next_call(now) {
        let answer = model.call(&call);
        answered(partition, now, &call, answer);
        calls += 1;
        assert!(calls < 100, "it never comes to rest");
    }
    calls
}

fn renew(partition: &mut Partition<&Known>, model: &mut Model, now: u64) {
    let call = partition.next_renewal(now);
    call.into_iter().for_each(|call| partition.renewed(now, call.term(), &model.call(&call)));
}

/// What each term first asks of the registry is answered at once.
fn answered(partition: &mut Partition<&Known>, now: u64, call: &Call, answer: Result<Answer, Failure>) {
    partition.answered(now, answer);
    if let Call::Open { .. } = call {
        assert_eq!(partition.errands.pop(), Some(Errand::ConfirmRegistry));
        partition.registry_confirmed(now);
    }
}

fn delivered() -> Attempted {
    let report = AttemptReport {
        number: 1,
        at_ms: 0,
        outcome: Outcome::Delivered { status: 200 },
        timing: Timing::default(),
        body_end: BodyEnd::Complete,
        snippet: String::new(),
        detail: String::new(),
    };
    Attempted { report, request: None, flooded: false, resent: false, met: None }
}

#[test]
fn a_delivered_event_is_acknowledged_and_leaves_nothing_behind() {
    let known = Known::with_endpoint();
    let (mut partition, mut model) = (partition(&known), Model::default());
    publish(&mut model, 1);
    drive(&mut partition, &mut model, 10);
    let send = partition.next_attempt(10).unwrap();
    assert!(model.stream.groups[GROUP].pending.contains_key(&entry(1)));
    partition.attempted(11, send.token, delivered());
    drive(&mut partition, &mut model, 20);
    assert!(model.stream.groups[GROUP].pending.is_empty() && model.records.is_empty());
    assert_eq!(model.cursor, Some(entry(1)));
    assert_eq!(drive(&mut partition, &mut model, 21), 0);
}

#[test]
fn a_stopped_worker_settles_and_gives_its_lease_back() {
    let known = Known::with_endpoint();
    let (mut partition, mut model) = (partition(&known), Model::default());
    publish(&mut model, 1);
    drive(&mut partition, &mut model, 10);
    let send = partition.next_attempt(10).unwrap();
    partition.stop();
    drive(&mut partition, &mut model, 11);
    assert!(model.lease.is_some() && !partition.is_stopped());
    partition.attempted(12, send.token, delivered());
    drive(&mut partition, &mut model, 12);
    assert!(model.lease.is_none() && partition.is_stopped());
    assert!(model.stream.groups[GROUP].pending.is_empty());
}

#[test]
fn a_worker_that_gives_way_gives_its_lease_back_and_asks_for_it_only_later() {
    let known = Known::with_endpoint();
    let (mut partition, mut model) = (partition(&known), Model::default());
    publish(&mut model, 1);
    drive(&mut partition, &mut model, 10);
    let send = partition.next_attempt(10).unwrap();
    partition.give_way(11, true);
    publish(&mut model, 2);
    drive(&mut partition, &mut model, 11);
    assert!(model.lease.is_some() && partition.next_attempt(11).is_none());
    partition.attempted(12, send.token, delivered());
    drive(&mut partition, &mut model, 12);
    assert!(model.lease.is_none() && !partition.is_stopped() && !partition.is_owner());
    partition.next_renewal(10_000);
    assert_eq!(losses(&mut partition), 0, "it gave it away");
    assert_eq!(drive(&mut partition, &mut model, 10_000), 0, "it is for another worker");
    partition.give_way(10_000, false);
    drive(&mut partition, &mut model, 20_000);
    assert!(model.lease.is_some());
    let send = partition.next_attempt(20_000).unwrap();
    assert_eq!(send.delivery.id.entry, entry(2), "what it had not begun is its own again");
}

#[test]
fn a_worker_that_need_not_give_way_any_more_reads_again_what_it_let_go_of() {
    let known = Known::with_endpoint();
    let (mut partition, mut model) = (partition(&known), Model::default());
    (1..=20).for_each(|ms| publish(&mut model, ms));
    drive(&mut partition, &mut model, 10);
    let send = partition.next_attempt(10).unwrap();
    partition.give_way(11, true);
    drive(&mut partition, &mut model, 11);
    partition.give_way(12, false);
    partition.attempted(13, send.token, delivered());
    let mut sent = vec![send.delivery.id.entry.ms];
    let mut now = 20_000;
    sent.extend(deliver_all(&mut partition, &mut model, &mut now));
    sent.sort_unstable();
    sent.dedup();
    assert_eq!(sent, (1..=20).collect::<Vec<u64>>());
}

#[test]
fn what_is_in_flight_when_the_time_is_over_gets_its_record() {
    let known = Known::with_endpoint();
    let (mut partition, mut model) = (partition(&known), Model::default());
    publish(&mut model, 1);
    drive(&mut partition, &mut model, 10);
    partition.next_attempt(10).unwrap();
    partition.stop_waiting(11);
    drive(&mut partition, &mut model, 11);
    assert!(partition.is_stopped() && model.lease.is_none());
    assert_eq!((model.claimed.len(), model.check()), (1, Ok(())));
}

#[test]
fn what_the_owner_before_left_is_not_judged_by_a_snapshot_that_is_behind() {
    let mark = Mark { by: "tester".to_owned(), why: "a test".to_owned(), at_ms: 0 };
    let disabled = EndpointState::Disabled(mark);
    let elsewhere = "https://before.example/".to_owned();
    for behind in [
        None,
        Some(Endpoint { status: disabled, owed_until: Some(EntryId::ZERO), ..(*endpoint()).clone() }),
        Some(Endpoint { url: elsewhere, ..(*endpoint()).clone() }),
    ] {
        let known = Known::with_endpoint();
        let (mut before, mut model) = (partition(&known), Model::default());
        publish(&mut model, 1);
        drive(&mut before, &mut model, 10);
        before.next_attempt(10).unwrap();
        before.stop_waiting(11);
        drive(&mut before, &mut model, 11);
        assert_eq!(model.claimed.len(), 1);

        let known =
            Known { endpoint: behind.map(Arc::new).into(), redis_last: change(1, 1).into(), ..Known::default() };
        let mut after = partition(&known);
        while let Some(call) = after.next_call(12) {
            after.answered(12, model.call(&call));
        }
        assert!(after.take_errands().contains(&Errand::ConfirmRegistry));
        assert!(after.next_attempt(12).is_none() && model.dead.is_empty());
        assert_eq!(model.records.len(), 1);
        *known.endpoint.borrow_mut() = Some(endpoint());
        known.last.set(change(1, 1));
        after.registry_confirmed(13);
        drive(&mut after, &mut model, 13);
        let send = after.next_attempt(13).unwrap();
        assert_eq!(send.endpoint.url, endpoint().url);
        after.attempted(14, send.token, delivered());
        drive(&mut after, &mut model, 20);
        assert!(model.records.is_empty() && model.dead.is_empty());
    }
}

#[test]
fn an_account_without_endpoint_is_one_only_if_the_registry_says_so_after_the_read() {
    let known = Known::default();
    known.redis_last.set(change(1, 1));
    let (mut partition, mut model) = (partition(&known), Model::default());
    publish(&mut model, 1);
    drive(&mut partition, &mut model, 10);
    assert!(partition.take_errands().contains(&Errand::ConfirmRegistry));
    assert!(partition.next_attempt(10).is_none());
    assert!(model.stream.groups[GROUP].pending.contains_key(&entry(1)));
    *known.endpoint.borrow_mut() = Some(endpoint());
    known.last.set(change(1, 1));
    partition.registry_confirmed(12);
    drive(&mut partition, &mut model, 12);
    assert!(partition.next_attempt(12).is_some());
}

#[test]
fn an_entry_accepted_after_a_change_goes_to_the_endpoint_as_it_was_changed() {
    // The next change; one that came in the place of what a failover has taken back; one after several that are gone.
    let seen = [change(0, 0), change(1, 1), change(2, 2)];
    for (seen, last) in seen.into_iter().zip([change(1, 1), change(1, 2), change(1, 3)]) {
        let known = Known::with_endpoint();
        known.last.set(seen);
        known.redis_last.set(seen);
        let (mut partition, mut model) = (partition(&known), Model::default());
        publish(&mut model, 1);
        drive(&mut partition, &mut model, 10);
        let first = partition.next_attempt(10).unwrap();
        partition.attempted(10, first.token, delivered());
        // The change is answered, an entry is accepted, and the snapshot has heard of neither.
        known.redis_last.set(last);
        publish(&mut model, 2);
        partition.woken(EntryId::MAX, true, false);
        drive(&mut partition, &mut model, 12);
        assert!(partition.next_attempt(12).is_none(), "it would go to the URL that was: {seen}, {last}");
        assert!(partition.take_errands().contains(&Errand::ConfirmRegistry));
        let moved = Endpoint { url: "https://moved.example/".to_owned(), revision: 2, ..(*endpoint()).clone() };
        *known.endpoint.borrow_mut() = Some(Arc::new(moved));
        known.last.set(last);
        // Before the news of the change has come to the lane.
        partition.registry_confirmed(13);
        drive(&mut partition, &mut model, 13);
        assert_eq!(partition.next_attempt(13).unwrap().endpoint.url, "https://moved.example/");
    }
}

#[test]
fn what_was_delivered_is_remembered_for_as_long_as_its_entry_cannot_be_read_again() {
    let known = Known::with_endpoint();
    let (mut partition, mut model) = (partition(&known), Model::default());
    publish(&mut model, 1);
    drive(&mut partition, &mut model, 10);
    let first = partition.next_attempt(10).unwrap();
    // It is delivered, but the term ends before Redis hears of it, and the next one may read nothing for minutes.
    model.lease = None;
    known.is_paused.set(true);
    partition.attempted(11, first.token, delivered());
    for now in (1_000..200_000).step_by(1_000) {
        renew(&mut partition, &mut model, now);
        drive(&mut partition, &mut model, now);
    }
    assert!(model.stream.groups[GROUP].pending.contains_key(&entry(1)));
    known.is_paused.set(false);
    partition.registry_changed(200_000, None);
    drive(&mut partition, &mut model, 200_000);
    assert!(partition.next_attempt(200_000).is_none(), "it would be sent twice");
    drive(&mut partition, &mut model, 200_100);
    assert!(model.stream.groups[GROUP].pending.is_empty());
}

#[test]
fn a_confirmation_older_than_the_read_is_not_believed() {
    let known = Known::default();
    known.redis_last.set(change(1, 1));
    let (mut partition, mut model) = (partition(&known), Model::default());
    publish(&mut model, 1);
    drive(&mut partition, &mut model, 10);
    // The term ends, and in the next one the answer to the first errand arrives.
    model.lease = None;
    drive(&mut partition, &mut model, 1_100);
    assert!(partition.is_owner() && !partition.is_running());
    partition.registry_confirmed(1_101);
    drive(&mut partition, &mut model, 1_110);
    assert!(partition.is_running() && model.stream.groups[GROUP].pending.contains_key(&entry(1)));
    // Another term, and now that answer comes before the term has asked.
    model.lease = None;
    let opened = (2_200..).step_by(100).find(|now| {
        let mut has_opened = false;
        while let Some(call) = partition.next_call(*now) {
            if let Call::Open { .. } = call {
                has_opened = true;
                partition.registry_confirmed(*now);
            }
            model.now_ms = *now;
            partition.answered(*now, model.call(&call));
        }
        has_opened
    });
    let now = opened.unwrap();
    assert!(partition.is_owner() && !partition.is_running());
    partition.registry_confirmed(now);
    drive(&mut partition, &mut model, now + 10);
    partition.registry_confirmed(now + 10);
    drive(&mut partition, &mut model, now + 20);
    assert!(model.stream.groups[GROUP].pending.is_empty());
}

#[test]
fn an_entry_that_a_stranger_read_wakes_nobody_for_ever() {
    let known = Known::with_endpoint();
    let (mut partition, mut model) = (partition(&known), Model::default());
    drive(&mut partition, &mut model, 10);
    publish(&mut model, 1);
    model.stream.groups.get_mut(GROUP).unwrap().last_delivered = entry(1);
    // The wake-up sees the entry each time it is armed.
    let mut wakes = 0;
    while partition.wants_wakeup().is_some_and(|(after, _)| entry(1) > after) && wakes < 10 {
        partition.woken(EntryId::MAX, true, true);
        drive(&mut partition, &mut model, 20);
        wakes += 1;
    }
    assert_eq!(wakes, 1);
    publish(&mut model, 2);
    drive(&mut partition, &mut model, 1_100);
    assert!(partition.next_attempt(1_100).is_some());
    assert!(partition.wants_wakeup().is_some());
}

/// Of sixty-four streams with a few events a second each, half the reads once found nothing.
#[test]
fn only_where_events_come_often_it_looks_for_more_without_being_told() {
    for (apart_ms, looks) in [(4, true), (9, true), (50, false)] {
        let known = Known::with_endpoint();
        let (mut partition, mut model) = (partition(&known), Model::default());
        let mut now = 1_000;
        drive(&mut partition, &mut model, now);
        for ms in 1..=3 {
            now += apart_ms;
            publish(&mut model, ms);
            partition.woken(EntryId::MAX, true, false);
            drive(&mut partition, &mut model, now);
            let send = partition.next_attempt(now).expect("what it was told of goes out");
            partition.attempted(now, send.token, delivered());
        }
        publish(&mut model, 4);
        now += partition.settings.budgets.settle_after_ms;
        drive(&mut partition, &mut model, now);
        assert_eq!(partition.core().outbox_len(), 0, "the call that takes time is made");
        assert_eq!(partition.next_attempt(now).is_some(), looks, "{apart_ms} ms apart");
    }
}

#[test]
fn what_has_ended_waits_for_company_only_while_nothing_waits_for_room() {
    for (events, settles) in [(1, false), (100, true)] {
        let known = Known::with_endpoint();
        let fresh = Budget { count: 32, ..Budgets::of(1 << 20).fresh };
        let budgets = Budgets { fresh, settle_after_ms: 32, ..Budgets::of(1 << 20) };
        let (mut partition, mut model) = (partition_with(&known, budgets), Model::default());
        (1..=events).for_each(|ms| publish(&mut model, ms));
        drive(&mut partition, &mut model, 10);
        let send = partition.next_attempt(10).expect("the first of them");
        partition.attempted(10, send.token, delivered());
        drive(&mut partition, &mut model, 10 + SETTLE_AFTER_MS);
        assert_eq!(partition.core().outbox_len() == 0, settles, "{events} events");
        drive(&mut partition, &mut model, 10 + 32);
        assert_eq!(partition.core().outbox_len(), 0);
    }
}

#[test]
fn a_lease_that_could_not_be_renewed_stops_everything_in_flight() {
    let known = Known::with_endpoint();
    let (mut partition, mut model) = (partition(&known), Model::default());
    publish(&mut model, 1);
    drive(&mut partition, &mut model, 10);
    publish(&mut model, 2);
    assert!(partition.next_attempt(10).is_some());
    partition.take_errands();
    assert!(partition.next_attempt(4_510).is_none());
    assert!(!partition.is_owner());
    assert_eq!(partition.take_errands(), [Errand::AbortFlights]);
    assert_eq!(losses(&mut partition), 1);
}

fn losses(partition: &mut Partition<&Known>) -> usize {
    partition.take_happenings().iter().filter(|what| matches!(what, Happening::LeaseLost)).count()
}

#[test]
fn a_lease_that_another_worker_took_is_lost_once() {
    let known = Known::with_endpoint();
    let (mut partition, mut model) = (partition(&known), Model::default());
    drive(&mut partition, &mut model, 10);
    assert_eq!(losses(&mut partition), 0);
    let call = partition.next_renewal(2_000).unwrap();
    partition.renewed(2_000, call.term(), &Ok(Answer::Lost));
    assert!(!partition.is_owner());
    // Its time is over, too.
    partition.next_renewal(10_000);
    assert_eq!(losses(&mut partition), 1);
}

#[test]
fn a_full_redis_is_emptied_by_delivering() {
    let known = Known::with_endpoint();
    let (mut partition, mut model) = (partition(&known), Model::default());
    (1..=100).for_each(|n| publish(&mut model, n));
    model.full = true;
    partition.set_pressure(true);
    let (mut sent, mut happened) = (Vec::new(), Vec::new());
    for now in 10..100 {
        drive(&mut partition, &mut model, now);
        while let Some(send) = partition.next_attempt(now) {
            sent.push(send.delivery.id.entry.ms);
            partition.attempted(now, send.token, delivered());
        }
        assert!(partition.tally().jobs < 2 * READ_UNDER_PRESSURE);
        happened.extend(partition.take_happenings());
    }
    assert!(!happened.iter().any(|what| matches!(what, Happening::TermEnded { .. })), "{happened:?}");
    assert_eq!(sent, (1..=100).collect::<Vec<_>>());
    assert!(model.stream.groups[GROUP].pending.is_empty() && model.records.is_empty());
}

fn paused() -> Arc<Endpoint> {
    let mark = Mark { by: "ops".to_owned(), why: "test".to_owned(), at_ms: 0 };
    let status = EndpointState::Paused(mark);
    Arc::new(Endpoint { status, revision: 2, ..(*endpoint()).clone() })
}

#[test]
fn what_would_need_a_record_stays_in_the_stream_while_redis_is_nearly_full() {
    let known = Known { endpoint: Some(paused()).into(), ..Known::default() };
    let (mut partition, mut model) = (partition(&known), Model::default());
    (1..=100).for_each(|n| publish(&mut model, n));
    partition.set_pressure(true);
    for now in 10..20 {
        drive(&mut partition, &mut model, now);
    }
    assert_eq!((model.records.len(), model.stream.groups[GROUP].pending.len()), (0, 100));
    assert_eq!((partition.tally().jobs, partition.deferred()), (0, 100));
    // It can take again: everything comes, in order, and nothing is left.
    *known.endpoint.borrow_mut() = Some(endpoint());
    partition.registry_changed(20, None);
    let mut sent = Vec::new();
    for now in 20..1_200 {
        drive(&mut partition, &mut model, now);
        while let Some(send) = partition.next_attempt(now) {
            sent.push(send.delivery.id.entry.ms);
            partition.attempted(now, send.token, delivered());
        }
    }
    assert_eq!(sent, (1..=100).collect::<Vec<_>>());
    assert!(model.stream.groups[GROUP].pending.is_empty() && model.records.is_empty());
    assert_eq!(partition.deferred(), 0);
}

#[test]
fn what_waits_in_memory_is_owed_to_whom_the_registry_says_when_it_goes_on() {
    let known = Known { endpoint: Some(paused()).into(), ..Known::default() };
    let (mut partition, mut model) = (partition(&known), Model::default());
    (1..=100).for_each(|n| publish(&mut model, n));
    partition.set_pressure(true);
    for now in 10..20 {
        drive(&mut partition, &mut model, now);
    }
    assert_eq!(partition.deferred_in_memory(), 100, "this proves nothing");
    // As after another registry was accepted.
    let other = EndpointId::new("ep_other").unwrap();
    *known.endpoint.borrow_mut() = Some(Arc::new(Endpoint { id: other.clone(), ..(*endpoint()).clone() }));
    partition.registry_changed(20, None);
    let mut sent = 0;
    for now in 20..1_200 {
        drive(&mut partition, &mut model, now);
        while let Some(send) = partition.next_attempt(now) {
            assert_eq!(send.delivery.id.endpoint, other);
            sent += 1;
            partition.attempted(now, send.token, delivered());
        }
    }
    assert_eq!((sent, model.stream.groups[GROUP].pending.len()), (100, 0));
}

#[test]
fn an_endpoint_that_is_merely_full_leaves_what_comes_in_the_stream_and_needs_no_records() {
    const ALL: u64 = 1_000;
    let known = Known::with_endpoint();
    let mut partition =
        partition_with(&known, Budgets { fresh: Budget { count: 64, bytes: 1 << 20 }, ..Budgets::of(1_000_000) });
    let mut model = Model::default();
    (1..=ALL).for_each(|n| publish(&mut model, n));
    let (mut sent, mut most) = (Vec::new(), 0);
    for now in 10..2_000 {
        drive(&mut partition, &mut model, now);
        most = most.max(partition.deferred());
        // It answers at once, five at a time.
        for _ in 0..5 {
            if let Some(send) = partition.next_attempt(now) {
                sent.push(send.delivery.id.entry.ms);
                partition.attempted(now, send.token, delivered());
            }
        }
        assert!(model.records.is_empty(), "a record was written");
    }
    assert_eq!(sent, (1..=ALL).collect::<Vec<_>>());
    assert!(most > 0 && model.stream.groups[GROUP].pending.is_empty());
}

#[test]
fn reads_are_small_only_while_they_would_feed_backlogs() {
    let known = Known::with_endpoint();
    let (mut partition, mut model) = (partition(&known), Model::default());
    let behind = |partition: &mut Partition<&Known>, parked: u64| {
        partition.core.set_unfinished(10, &[(endpoint().id.clone(), Unfinished { records: parked, parked, bytes: 0 })]);
    };
    let read = |partition: &mut Partition<&Known>| {
        let term = partition.lease.term().cloned().unwrap();
        partition.term.more_entries = true;
        match partition.read(10, &term) {
            Some((Call::Read { max, .. }, _)) => max,
            other => panic!("{other:?} is no read"),
        }
    };
    publish(&mut model, 1);
    drive(&mut partition, &mut model, 10);
    behind(&mut partition, 9);
    assert!(partition.core.has_hungry());
    for (feeds_backlogs, most) in [(false, READ_MAX), (true, READ_BESIDE_BACKLOG), (false, READ_MAX)] {
        partition.term.feeds_backlogs = feeds_backlogs;
        assert_eq!(read(&mut partition), most);
    }
    // Behind a small one it would wait in the stream.
    behind(&mut partition, 1_000);
    publish(&mut model, 2);
    drive(&mut partition, &mut model, 10);
    assert!(partition.term.feeds_backlogs, "it went to an endpoint with a backlog");
    behind(&mut partition, 0);
    publish(&mut model, 3);
    partition.term.more_entries = true;
    drive(&mut partition, &mut model, 10);
    assert!(!partition.term.feeds_backlogs);
}

/// With a larger share, a million entries once went through backlogs that grew as fast as they were drained.
#[test]
fn one_delivery_of_twenty_for_a_backlog_slows_nobody_and_one_of_ten_does() {
    assert!(!answers::would_feed_backlogs(0, 250));
    assert!(!answers::would_feed_backlogs(5, 100));
    assert!(answers::would_feed_backlogs(10, 100));
    assert!(answers::would_feed_backlogs(1, 1));
}

/// Sends everything; returns the entries that went out.
fn deliver_all(partition: &mut Partition<&Known>, model: &mut Model, now: &mut u64) -> Vec<u64> {
    let mut sent = Vec::new();
    partition.woken(EntryId::MAX, true, false);
    loop {
        *now += 10;
        drive(partition, model, *now);
        let sends: Vec<NextAttempt> = std::iter::from_fn(|| partition.next_attempt(*now)).collect();
        if sends.is_empty() {
            return sent;
        }
        for send in sends {
            sent.push(send.delivery.id.entry.ms);
            partition.attempted(*now, send.token, delivered());
        }
    }
}

/// More than one read brings, so that the first read alone does not tell.
const REPLAYED: u64 = 3 * READ_MAX as u64;

#[test]
fn what_has_a_dead_letter_stays_dead_when_an_operator_sets_the_group_back() {
    for is_between_terms in [false, true] {
        let known = Known::with_endpoint();
        let (mut own, mut model, mut now) = (partition(&known), Model::default(), 10);
        (1..=REPLAYED).for_each(|ms| publish(&mut model, ms));
        assert_eq!(deliver_all(&mut own, &mut model, &mut now).len(), REPLAYED as usize);
        let dead = DeliveryId { entry: entry(REPLAYED - 5), endpoint: endpoint().id.clone() };
        model.dead.insert(dead, (0, Bytes::from_static(b"{}\n{}")));
        model.stream.groups.get_mut(GROUP).unwrap().last_delivered = EntryId::ZERO;
        if is_between_terms {
            own.stop();
            drive(&mut own, &mut model, now);
            own = partition(&known);
        }
        let again = deliver_all(&mut own, &mut model, &mut now);
        assert!(again.len() == REPLAYED as usize - 1 && !again.contains(&(REPLAYED - 5)), "{is_between_terms}");
    }
}

#[test]
fn another_registry_gives_nothing_up_until_it_is_accepted() {
    let known = Known::with_endpoint();
    let (mut partition, mut model) = (partition(&known), Model::default());
    publish(&mut model, 1);
    drive(&mut partition, &mut model, 10);
    known.is_another.set(true);
    partition.registry_changed(11, None);
    drive(&mut partition, &mut model, 2_000);
    assert!(model.dead.is_empty() && !model.records.is_empty(), "{:?}", model.dead);
    assert!(partition.next_attempt(2_000).is_none());
    known.is_another.set(false);
    partition.registry_changed(2_010, None);
    drive(&mut partition, &mut model, 2_010);
    assert!(partition.next_attempt(2_010).is_some());
}

#[test]
fn what_is_read_while_the_registry_is_exchanged_stays_pending() {
    let known = Known::with_endpoint();
    let (mut partition, mut model) = (partition(&known), Model::default());
    publish(&mut model, 1);
    while let Some(call) = partition.next_call(10) {
        let answer = model.call(&call);
        // Nobody has told the partition yet.
        let has_read = matches!(&answer, Ok(Answer::Entries { entries, .. }) if !entries.is_empty());
        known.is_another.set(has_read);
        answered(&mut partition, 10, &call, answer);
        if has_read {
            break;
        }
    }
    assert!(known.is_another.get(), "nothing was read");
    drive(&mut partition, &mut model, 2_000);
    assert!(partition.next_attempt(2_000).is_none() && model.records.is_empty());
    assert_eq!(model.stream.groups[GROUP].pending.len(), 1);
    known.is_another.set(false);
    partition.registry_changed(2_010, None);
    assert!(partition.take_errands().contains(&Errand::ConfirmRegistry));
    partition.registry_confirmed(2_010);
    drive(&mut partition, &mut model, 2_010);
    assert!(partition.next_attempt(2_010).is_some());
}

#[test]
fn an_accepted_registry_says_what_was_deleted() {
    let known = Known::with_endpoint();
    let (mut partition, mut model) = (partition(&known), Model::default());
    publish(&mut model, 1);
    drive(&mut partition, &mut model, 10);
    known.is_another.set(true);
    partition.registry_changed(11, None);
    let mark = Mark { by: "ops".to_owned(), why: "restored".to_owned(), at_ms: 0 };
    model.ask(Asked::AcceptRegistry("another".to_owned()), serde_json::to_vec(&mark).unwrap().into());
    partition.woken(EntryId::MAX, false, true);
    for second in 1..10 {
        drive(&mut partition, &mut model, second * 1_000);
    }
    assert_eq!((model.dead.len(), model.records.len()), (1, 0));
}

#[test]
fn what_a_job_took_without_saying_so_is_found_by_a_new_term() {
    let known = Known::with_endpoint();
    let (mut partition, mut model) = (partition(&known), Model::default());
    publish(&mut model, 1);
    drive(&mut partition, &mut model, 10);
    // A stranger's entry is taken over, but the answer cannot be read.
    publish(&mut model, 2);
    let group = model.stream.groups.get_mut(GROUP).unwrap();
    group.last_delivered = entry(2);
    group.pending.insert(entry(2), "stranger".to_owned());
    model.now_ms = 10 + FOREIGN_EVERY_MS;
    let now = model.now_ms;
    while let Some(call) = partition.next_call(now) {
        let answer = model.call(&call);
        let is_takeover = matches!(call, Call::ClaimForeign { .. });
        let answer = if is_takeover { Err(Failure::Malformed("odd".to_owned())) } else { answer };
        answered(&mut partition, now, &call, answer);
    }
    let sent = |partition: &mut Partition<&Known>, now| {
        std::iter::from_fn(|| partition.next_attempt(now)).any(|send| send.delivery.id.entry == entry(2))
    };
    assert!(!sent(&mut partition, now));
    for second in 1..40 {
        let now = now + second * 1_000;
        model.now_ms = now;
        renew(&mut partition, &mut model, now);
        drive(&mut partition, &mut model, now);
        if sent(&mut partition, now) {
            return;
        }
    }
    panic!("nobody ever reads what was taken over");
}

/// Somebody restored it by hand, or it is damaged: nobody here may know the endpoint that it names.
#[test]
fn a_head_whose_record_is_of_another_delivery_is_not_released() {
    let known = Known::with_endpoint();
    let mut partition = partition(&known);
    let text = r#"{"id":"evt_1","event":"payment_intent.created","accountId":"acc_1","createdAt":"2022-02-01T13:07:41Z","data":{"paymentIntentId":"pi_1","paymentStatus":"Created","captureMode":"Auto"}}"#;
    let event = Event::parse(text.into()).unwrap();
    let other = Delivery::new(entry(7), EndpointId::new("ep_b").unwrap(), &event, true, 0);
    let mark = Mark { by: "ops".to_owned(), why: "stuck".to_owned(), at_ms: 0 };
    let head = DeliveryId { entry: entry(7), endpoint: endpoint().id.clone() };
    let what = RequestKind::Release {
        endpoint: endpoint().id.clone(),
        intent: event.intent.clone(),
        head: Some((head, Some(other.to_record()))),
        meant: None,
    };
    let mark = serde_json::to_vec(&mark).unwrap().into();
    let request = Request { id: entry(1), what, mark, operation: None, held_by: None };
    let refused = partition.grant(0, &request).unwrap_err();
    assert_eq!(refused, "the record of 7-0:ep_a is of another delivery, 7-0:ep_b");
}

/// Two operators at once: the second must not give up the one behind the head that it saw.
#[test]
fn a_release_gives_up_only_the_head_that_was_meant() {
    let known = Known::with_endpoint();
    let (mut partition, mut model) = (partition(&known), Model::default());
    publish(&mut model, 1);
    drive(&mut partition, &mut model, 10);
    let send = partition.next_attempt(10).unwrap();
    partition.attempted(11, send.token, failed());
    drive(&mut partition, &mut model, 20);
    let mark = serde_json::to_vec(&Mark { by: "ops".into(), why: "test".into(), at_ms: 0 }).unwrap();
    let release = |head| Asked::Release("ep_a".parse().unwrap(), "pi_1".parse().unwrap(), Some(head));
    let (other, own) = (model.ask(release(entry(9)), mark.clone().into()), model.ask(release(entry(1)), mark.into()));
    partition.woken(EntryId::MAX, false, true);
    drive(&mut partition, &mut model, 30);
    drive(&mut partition, &mut model, 40);
    assert_eq!(model.answers[&other], "error: 9-0:ep_a is not the head of pi_1 any more: 1-0:ep_a is");
    assert_eq!((model.answers[&own].as_str(), model.dead.len()), ("ok", 1));
}

/// Two operators at once: Redis shows both the letter, and only one can have it.
#[test]
fn of_two_requests_for_one_letter_the_second_is_told_that_it_is_gone() {
    let known = Known::with_endpoint();
    let (mut partition, mut model) = (partition(&known), Model::default());
    publish(&mut model, 1);
    drive(&mut partition, &mut model, 10);
    let send = partition.next_attempt(10).unwrap();
    let mut gone = failed();
    gone.report.outcome = Outcome::Gone;
    partition.attempted(11, send.token, gone);
    drive(&mut partition, &mut model, 20);
    let id = DeliveryId { entry: entry(1), endpoint: endpoint().id.clone() };
    assert!(model.dead.contains_key(&id));
    let mark: Bytes = serde_json::to_vec(&Mark { by: "ops".into(), why: "test".into(), at_ms: 0 }).unwrap().into();
    let discarded = model.ask(Asked::Discard(id.clone()), mark.clone());
    let again = [Asked::Discard(id.clone()), Asked::Redeliver(id.clone())].map(|asked| model.ask(asked, mark.clone()));
    partition.woken(EntryId::MAX, false, true);
    drive(&mut partition, &mut model, 30);
    drive(&mut partition, &mut model, 40);
    assert_eq!(model.answers[&discarded], "ok");
    for again in again {
        assert_eq!(model.answers[&again], "error: there is no such dead letter");
    }
    assert!(!model.dead.contains_key(&id) && !model.records.contains_key(&id));
    assert_eq!(model.log.iter().filter(|line| line.starts_with(b"[\"discarded")).count(), 1);
}

fn failed() -> Attempted {
    let mut attempted = delivered();
    attempted.report.outcome = Outcome::ServerFailed { status: 500 };
    attempted
}

#[test]
fn a_retry_waits_no_longer_than_its_interval_when_the_clock_of_redis_is_set_back() {
    const HOUR_MS: u64 = 3_600_000;
    let known = Known::with_endpoint();
    let (mut partition, mut model) = (partition(&known), Model::default());
    let at = |ms: u64| 2 * HOUR_MS + ms;
    publish(&mut model, 1);
    drive_at(&mut partition, &mut model, 10, at(10));
    let send = partition.next_attempt(10).unwrap();
    partition.attempted(11, send.token, failed());
    drive_at(&mut partition, &mut model, 20, at(20));
    assert_eq!(model.due.len(), 1);
    // An hour back. Any answer tells it; the first retry comes within its 6 s.
    for now in [1_100, 2_200, 3_300, 4_400, 5_500, 6_600] {
        drive_at(&mut partition, &mut model, now, at(now) - HOUR_MS);
        renew(&mut partition, &mut model, now);
    }
    assert!(partition.next_attempt(6_600).is_some(), "due {:?}, and it is {}", model.due, model.now_ms);
    assert!(
        partition.take_happenings().iter().any(|what| matches!(what, Happening::ClockStepped { by_ms } if *by_ms < 0))
    );
}

#[test]
fn no_dead_letter_expires_by_a_clock_that_has_stepped() {
    const DAY_MS: u64 = 86_400_000;
    let known = Known::with_endpoint();
    let (mut partition, mut model) = (partition(&known), Model::default());
    model.dead.insert("1-0:ep_a".parse().unwrap(), (DAY_MS, Bytes::new()));
    // Forty days ahead for a while, and then back to normal.
    for now in (10..120_000).step_by(1_000) {
        let step = if (40_000..80_000).contains(&now) { 40 * DAY_MS } else { 0 };
        drive_at(&mut partition, &mut model, now, DAY_MS + now + step);
        renew(&mut partition, &mut model, now);
    }
    assert_eq!(model.dead.len(), 1);
    // Old by a clock that has been steady.
    for now in (120_010..1_900_000).step_by(1_000) {
        drive_at(&mut partition, &mut model, now, DAY_MS + now);
        renew(&mut partition, &mut model, now);
    }
    assert!(model.dead.is_empty());
}

#[test]
fn what_is_too_old_is_found_behind_what_was_redelivered() {
    const OLD_MS: u64 = 80 * 3_600_000;
    let known = Known::with_endpoint();
    let mut paused = (*endpoint()).clone();
    paused.status = EndpointState::Paused(Mark { by: "ops".into(), why: "test".into(), at_ms: 0 });
    *known.endpoint.borrow_mut() = Some(Arc::new(paused));
    let (mut partition, mut model) = (partition(&known), Model::default());
    for ms in 1..=CLAIM_MAX as u64 + 1 {
        publish(&mut model, ms);
    }
    // More records than one settle takes.
    (1..=6).for_each(|round| {
        drive(&mut partition, &mut model, 10 * round);
    });
    // They fill a whole look at the backlog.
    for ms in 1..=CLAIM_MAX as u64 {
        let id = DeliveryId { entry: entry(ms), endpoint: "ep_a".parse().unwrap() };
        let mut delivery = Delivery::from_record(&model.records[&id]).unwrap();
        delivery.redeliver(Mark { by: "ops".into(), why: "test".into(), at_ms: OLD_MS }, OLD_MS);
        model.records.insert(id, delivery.to_record());
    }
    // Redis restarted meanwhile, or the worker did: no step is seen.
    model.lease = None;
    let mut partition = super::tests::partition(&known);
    for now in (0..40_000).step_by(1_000) {
        drive(&mut partition, &mut model, OLD_MS + now);
        let call = partition.next_renewal(OLD_MS + now);
        call.into_iter().for_each(|call| {
            partition.renewed(OLD_MS + now, call.term(), &model.call(&call));
        });
    }
    assert_eq!(model.dead.len(), 1, "the one that was never redelivered is older than three days");
}

#[test]
fn a_record_that_can_not_be_read_is_given_up_on_request() {
    let known = Known::with_endpoint();
    let (mut partition, mut model) = (partition(&known), Model::default());
    publish(&mut model, 1);
    drive(&mut partition, &mut model, 10);
    let send = partition.next_attempt(10).unwrap();
    partition.attempted(11, send.token, failed());
    drive(&mut partition, &mut model, 20);
    let id = DeliveryId { entry: entry(1), endpoint: "ep_a".parse().unwrap() };
    let garbage = Bytes::from_static(b"of a Herald to come");
    model.records.insert(id.clone(), garbage.clone());
    let mark = serde_json::to_vec(&Mark { by: "ops".into(), why: "test".into(), at_ms: 0 }).unwrap();
    let asked = Asked::Release(id.endpoint.clone(), "pi_1".parse().unwrap(), None);
    let request = model.ask(asked, mark.into());
    partition.woken(EntryId::MAX, false, true);
    drive(&mut partition, &mut model, 30);
    drive(&mut partition, &mut model, 40);
    assert_eq!(model.answers[&request], "ok");
    assert_eq!(model.dead[&id].1, garbage);
    assert!(model.records.is_empty() && model.check().is_ok());
}

#[test]
fn an_owner_that_comes_after_the_clock_was_set_back_lets_nothing_wait_longer_for_it() {
    const HOUR_MS: u64 = 3_600_000;
    let known = Known::with_endpoint();
    let (mut first, mut model) = (partition(&known), Model::default());
    publish(&mut model, 1);
    drive_at(&mut first, &mut model, 10, 2 * HOUR_MS);
    let send = first.next_attempt(10).unwrap();
    first.attempted(11, send.token, failed());
    drive_at(&mut first, &mut model, 20, 2 * HOUR_MS + 10);
    // The worker dies, and its lease with it.
    model.lease = None;
    let mut next = partition(&known);
    for now in [0, 1_100, 2_200, 3_300, 4_400, 5_500, 6_600] {
        drive_at(&mut next, &mut model, now, HOUR_MS + now);
        let call = next.next_renewal(now);
        call.into_iter().for_each(|call| next.renewed(now, call.term(), &model.call(&call)));
    }
    assert!(next.next_attempt(6_600).is_some(), "due {:?}, and it is {}", model.due, model.now_ms);
}

#[test]
fn a_pull_in_that_was_not_answered_is_asked_for_again() {
    const HOUR_MS: u64 = 3_600_000;
    for failure in [
        Failure::Unknown("no answer came".to_owned()),
        Failure::Script("out of memory".to_owned()),
        Failure::Malformed("no answer to a question".to_owned()),
    ] {
        let known = Known::with_endpoint();
        let (mut partition, mut model) = (partition(&known), Model::default());
        publish(&mut model, 1);
        drive_at(&mut partition, &mut model, 10, 3 * HOUR_MS);
        let send = partition.next_attempt(10).unwrap();
        partition.attempted(11, send.token, failed());
        drive_at(&mut partition, &mut model, 20, 3 * HOUR_MS + 10);
        // An hour back, and what would make up for it is lost on its way.
        let mut lost = 0;
        for now in (100..20_000).step_by(100) {
            model.now_ms = 2 * HOUR_MS + now;
            while let Some(call) = partition.next_call(now) {
                let is_lost =
                    matches!(&call, Call::PullIn { by_ms, .. } if *by_ms < NO_AGE_MS && *by_ms > 0) && lost == 0;
                lost += usize::from(is_lost);
                let answer = if is_lost { Err(failure.clone()) } else { model.call(&call) };
                answered(&mut partition, now, &call, answer);
            }
            let call = partition.next_renewal(now);
            call.into_iter().for_each(|call| partition.renewed(now, call.term(), &model.call(&call)));
        }
        assert_eq!(lost, 1);
        assert!(
            partition.next_attempt(20_000).is_some(),
            "{failure:?}: due {:?}, and it is {}",
            model.due,
            model.now_ms
        );
    }
}

#[test]
fn strict_or_not_decides_what_becomes_of_an_event_of_tomorrow() {
    for strict_events in [true, false] {
        let (known, mut model) = (Known::with_endpoint(), Model::default());
        let mut partition = Partition::new(Settings { strict_events, ..settings() }, &known, [7; 32]);
        publish(&mut model, 1);
        let body = String::from_utf8(model.stream.entries[&entry(1)][0].1.to_vec()).unwrap();
        model.publish(
            entry(2),
            body.replace("evt_1", "evt_2").replace("pi_1", "pi_2").replace("Created", "Frozen").into(),
        );
        drive(&mut partition, &mut model, 0);
        let sends = std::iter::from_fn(|| partition.next_attempt(0)).count();
        drive(&mut partition, &mut model, 100);
        let quarantined: Vec<_> = model.quarantine.iter().map(|(entry, _)| *entry).collect();
        match strict_events {
            true => assert_eq!((sends, quarantined), (1, vec![entry(2)])),
            false => assert_eq!((sends, quarantined), (2, vec![])),
        }
    }
}

#[test]
fn a_part_that_is_closed_or_kept_for_another_worker_is_waited_for() {
    let known = Known::with_endpoint();
    let (mut partition, mut model) = (partition(&known), Model::default());
    model.gate = Some("t0".to_owned());
    assert_eq!(drive(&mut partition, &mut model, 1_000), 1);
    assert!(!partition.is_owner() && partition.is_standby());
    assert_eq!(drive(&mut partition, &mut model, 1_001), 0, "it asks again later");
    model.gate = None;
    model.next = Some(crate::store::model::Lease { value: "other".to_owned(), until_ms: 3_000 });
    assert_eq!(drive(&mut partition, &mut model, 2_000), 1);
    assert!(!partition.is_owner() && model.lease.is_none());
    // Nobody has taken it in that time.
    drive(&mut partition, &mut model, 3_001);
    assert!(partition.is_owner() && partition.is_running());
}

#[test]
fn an_owner_hears_who_asks_for_its_partition_and_whoever_asks_gets_it() {
    use crate::store::protocol::Wanted;
    let known = Known::with_endpoint();
    let (mut partition, mut model) = (partition(&known), Model::default());
    drive(&mut partition, &mut model, 1_000);
    assert_eq!(partition.asked_by(), None);
    model.now_ms = 1_100;
    assert_eq!(model.want("other", 3_000), Wanted::Asked { owner: "tester".to_owned(), left_ms: 4_900 });
    assert_eq!(model.want("third", 3_000), Wanted::Busy { worker: "other".to_owned() });
    renew(&mut partition, &mut model, 2_250);
    assert_eq!(partition.asked_by(), Some("other"));
    partition.give_way(2_300, true);
    drive(&mut partition, &mut model, 2_300);
    assert!(model.lease.is_none() && partition.asked_by().is_none());
    partition.give_way(2_310, false);
    drive(&mut partition, &mut model, 2_600);
    assert!(!partition.is_owner(), "it is kept for the other");
    let asks = |name, number| Call::Acquire { term: Term::new(number, name), previous: vec![], ttl_ms: 5_000 };
    assert!(matches!(model.call(&asks("third", 1)), Ok(Answer::Reserved { .. })));
    assert!(matches!(model.call(&asks("other", 2)), Ok(Answer::Acquired { .. })));
    assert_eq!(model.next, None, "it has what it asked for");
}

#[test]
fn a_stream_that_is_routed_is_owned_and_not_worked() {
    let known = Known::with_endpoint();
    let (mut partition, mut model) = (partition(&known), Model::default());
    let mode = Mode::Routed { parts: 4, token: "t0".to_owned(), barrier: EntryId::ZERO };
    model.mode = mode.clone();
    publish(&mut model, 1);
    assert_eq!(drive(&mut partition, &mut model, 1_000), 2, "nothing but the lease and the inbox");
    let Routes { term, mode: told, wanted, .. } = partition.routes().expect("it is routed");
    assert_eq!((&term, told, wanted), (partition.term().unwrap(), mode, None));
    // Whoever routes finds another mode: what becomes of the stream is for a new term to find out.
    partition.works(1_001, &term);
    assert!(partition.routes().is_none() && !partition.is_owner());
    drive(&mut partition, &mut model, 2_000);
    assert!(partition.routes().is_some_and(|routes| routes.term != term), "it is routed all the same");
    assert_eq!(partition.wake_at(2_000), 3_000, "the next look into the inbox comes before the lease");
    model.now_ms = 3_500;
    renew(&mut partition, &mut model, 3_500);
    assert!(drive(&mut partition, &mut model, 7_000) == 1 && partition.is_owner() && model.records.is_empty());
    partition.stop();
    drive(&mut partition, &mut model, 7_001);
    assert!(partition.is_stopped() && model.lease.is_none() && partition.routes().is_none());
}

/// What is asked of the owner of a stream in this mode, and what is answered.
fn asked_of_split(mode: &Mode, group: Option<Group>) -> (Model, Vec<String>) {
    let known = Known::with_endpoint();
    let (mut partition, mut model) = (partition(&known), Model::default());
    (model.mode, model.cursor) = (mode.clone(), Some(entry(7)));
    publish(&mut model, 6);
    model.stream.groups.extend(group.map(|group| (GROUP.to_owned(), group)));
    for ms in [3, 4] {
        let quarantined = Quarantined {
            body: format!("{{\"n\":{ms}}}").into(),
            cut: false,
            error: "odd".to_owned(),
            envelope: Envelope::default(),
            place: entry(ms),
            is_sound: false,
        };
        model.quarantine.push((entry(ms), quarantined));
    }
    drive(&mut partition, &mut model, 1_000);
    let term = partition.term().cloned();
    let mark: Bytes = serde_json::to_vec(&Mark { by: "t".into(), why: "w".into(), at_ms: 1 }).unwrap().into();
    let letter: DeliveryId = "1-0:ep_a".parse().unwrap();
    let asked = [
        Asked::Requeue(entry(3)),
        Asked::Requeue(entry(3)),
        Asked::DiscardQuarantined(entry(4)),
        Asked::Redeliver(letter.clone()),
        Asked::Discard(letter),
        Asked::Release("ep_a".parse().unwrap(), "pi_1".parse().unwrap(), None),
        Asked::Repartition(4),
        Asked::Repartition(8),
    ];
    let asked = asked.map(|asked| model.ask(asked, mark.clone()));
    // The router has heard that there is something.
    partition.stirred(false, true);
    drive(&mut partition, &mut model, 1_010);
    drive(&mut partition, &mut model, 1_020);
    assert_eq!(partition.term().cloned(), term, "no answer costs the term");
    // One that nobody hears of is found soon.
    let late = model.ask(Asked::Requeue(entry(9)), mark);
    drive(&mut partition, &mut model, 2_020);
    drive(&mut partition, &mut model, 2_030);
    assert!(model.inbox.requests.is_empty(), "{:?}", model.inbox.requests);
    let answers = asked.iter().chain([&late]).map(|asked| model.answers[asked].clone()).collect();
    (model, answers)
}

#[test]
fn the_owner_of_a_routed_stream_answers_what_is_asked_of_it_and_leaves_how_far_its_parts_are() {
    let split = Mode::Routed { parts: 4, token: "t0".to_owned(), barrier: EntryId::ZERO };
    let being_split = Mode::Splitting { parts: 4, token: "t0".to_owned(), has_begun: true };
    // One that was worked on still has its group.
    let group = Group { last_delivered: entry(5), pending: BTreeMap::new() };
    for (mode, group) in [(&split, None), (&split, Some(group.clone())), (&being_split, Some(group))] {
        let (model, answers) = asked_of_split(mode, group);
        let [requeued, again, discarded, redeliver, discard, release, same, other, missing] = &answers[..] else {
            panic!("{answers:?}")
        };
        assert!([requeued, discarded, same].into_iter().all(|answer| answer == "ok"), "{answers:?}");
        assert!([again, missing].into_iter().all(|answer| answer.contains("no such quarantined")), "{answers:?}");
        let told = if *mode == split { "is split into 4 parts" } else { "is being split into 4 parts" };
        let refused = [redeliver, discard, release, other];
        assert!(refused.into_iter().all(|answer| answer.starts_with("error") && answer.contains(told)), "{answers:?}");
        assert!(model.quarantine.is_empty());
        let last = model.stream.entries.last_key_value().unwrap();
        assert_eq!((model.stream.entries.len(), &last.1[0].1[..]), (2, &b"{\"n\":3}"[..]));
        assert_eq!(model.places.get(last.0), Some(&(entry(3), None)), "it has the place that it had");
        assert_eq!(model.cursor, Some(entry(7)), "which is the router's");
    }
}

#[test]
fn a_split_can_be_taken_back_until_something_is_handed_over() {
    let known = Known::with_endpoint();
    let (mut partition, mut model) = (partition(&known), Model::default());
    let mark: Bytes = serde_json::to_vec(&Mark { by: "t".into(), why: "w".into(), at_ms: 1 }).unwrap().into();
    publish(&mut model, 1);
    drive(&mut partition, &mut model, 10);
    let sent = partition.next_attempt(10).expect("the attempt that is waited for");
    // Nobody has asked for any.
    let none = model.ask(Asked::CancelRepartition, mark.clone());
    // While it waits for what is in flight.
    let wanted = model.ask(Asked::Repartition(4), mark.clone());
    partition.stirred(false, true);
    drive(&mut partition, &mut model, 20);
    assert!(partition.wish.is_some() && model.answers[&wanted] == "ok" && model.answers[&none] == "ok");
    let cancelled = model.ask(Asked::CancelRepartition, mark.clone());
    drive(&mut partition, &mut model, 1_100);
    drive(&mut partition, &mut model, 1_700);
    drive(&mut partition, &mut model, 1_710);
    assert!(partition.wish.is_none() && partition.is_running() && partition.routes().is_none());
    assert_eq!(model.answers[&cancelled], "ok");
    partition.attempted(1_720, sent.token, delivered());
    drive(&mut partition, &mut model, 1_730);
    drive(&mut partition, &mut model, 1_735);
    assert!(partition.next_attempt(1_735).is_none() && model.stream.groups[GROUP].pending.is_empty());

    // While whoever splits it has handed over nothing.
    model.ask(Asked::Repartition(4), mark.clone());
    partition.stirred(false, true);
    for now in [1_740, 1_750, 1_760] {
        drive(&mut partition, &mut model, now);
    }
    let term = partition.routes().expect("it is to be split").term;
    let splitting = |has_begun| Mode::Splitting { parts: 4, token: "t0".to_owned(), has_begun };
    partition.mode_is(&term, splitting(false));
    let cancelled = model.ask(Asked::CancelRepartition, mark.clone());
    let behind = model.ask(Asked::Repartition(8), mark.clone());
    partition.stirred(false, true);
    drive(&mut partition, &mut model, 1_770);
    assert!(partition.routes().is_some_and(|routes| routes.is_cancelled));
    assert!(!model.answers.contains_key(&cancelled) && !model.answers.contains_key(&behind), "it is not done yet");
    partition.mode_is(&term, Mode::Worked);
    partition.works(1_780, &term);
    // The wake-up sees what is there still.
    partition.stirred(false, true);
    drive(&mut partition, &mut model, 1_790);
    drive(&mut partition, &mut model, 1_800);
    assert_eq!((&*model.answers[&cancelled], &*model.answers[&behind]), ("ok", "ok"), "it can be asked for again");

    // And not when it has begun, even if that was found out after it was asked for.
    drive(&mut partition, &mut model, 1_810);
    let term = partition.routes().expect("it is to be split").term;
    partition.mode_is(&term, splitting(false));
    let late = model.ask(Asked::CancelRepartition, mark);
    partition.stirred(false, true);
    drive(&mut partition, &mut model, 1_820);
    partition.mode_is(&term, splitting(true));
    drive(&mut partition, &mut model, 2_830);
    drive(&mut partition, &mut model, 2_840);
    assert!(model.answers[&late].contains("there is no way back"), "{}", model.answers[&late]);
}

#[test]
fn whoever_splits_a_stream_tells_its_owner_how_far_it_is() {
    let known = Known::with_endpoint();
    let (mut partition, mut model) = (partition(&known), Model::default());
    let splitting = Mode::Splitting { parts: 4, token: "t0".to_owned(), has_begun: true };
    model.mode = splitting.clone();
    drive(&mut partition, &mut model, 1_000);
    let routed = Mode::Routed { parts: 4, token: "t0".to_owned(), barrier: EntryId::ZERO };
    partition.mode_is(&Term::new(9, "another"), routed.clone());
    assert_eq!(partition.routes().unwrap().mode, splitting);
    let term = partition.term().cloned().unwrap();
    partition.mode_is(&term, routed.clone());
    assert_eq!(partition.routes().unwrap().mode, routed);
}

#[test]
fn whether_a_stream_is_split_is_found_out_before_it_is_worked() {
    let known = Known::with_endpoint();
    let mut partition = Partition::new(Settings { parts: 4, ..settings() }, &known, [7; 32]);
    let mut model = Model::default();
    publish(&mut model, 1);
    drive(&mut partition, &mut model, 1_000);
    let Routes { term, mode, .. } = partition.routes().unwrap();
    assert_eq!(mode, Mode::Worked);
    let stale = Term::new(9, "tester");
    partition.works(1_000, &stale);
    assert!(partition.routes().is_some());
    partition.works(1_000, &term);
    drive(&mut partition, &mut model, 1_001);
    assert!(partition.is_running() && partition.next_attempt(1_001).is_some());
}

#[test]
fn a_stream_that_is_to_be_split_settles_what_is_in_flight_and_is_left_to_who_splits_it() {
    let known = Known::with_endpoint();
    let (mut partition, mut model) = (partition(&known), Model::default());
    publish(&mut model, 1);
    publish(&mut model, 2);
    drive(&mut partition, &mut model, 10);
    let (one, two) = (partition.next_attempt(10).unwrap(), partition.next_attempt(10).unwrap());
    let before = partition.term().unwrap().clone();
    let mark: Bytes = serde_json::to_vec(&Mark { by: "t".into(), why: "w".into(), at_ms: 1 }).unwrap().into();
    let asked = [1, 2_000, 8, 16].map(|parts| model.ask(Asked::Repartition(parts), mark.clone()));
    partition.woken(EntryId::MAX, false, true);
    drive(&mut partition, &mut model, 20);
    let answers = asked.map(|asked| model.answers[&asked].clone());
    assert!(answers[0].contains("at least 2 parts") && answers[1].contains("at most 1024 parts"), "{answers:?}");
    assert!(answers[2] == "ok" && answers[3].contains("about to be split"), "{answers:?}");
    // Nothing more is read or sent, and what is in flight may end.
    publish(&mut model, 3);
    partition.woken(entry(2), true, false);
    partition.attempted(30, one.token, delivered());
    drive(&mut partition, &mut model, 40);
    assert!(partition.routes().is_none() && partition.next_attempt(40).is_none());
    assert_eq!(model.stream.groups[GROUP].pending.keys().collect::<Vec<_>>(), [&entry(2)]);
    // But not for ever: then it gets its record.
    drive(&mut partition, &mut model, 2_050);
    drive(&mut partition, &mut model, 2_051);
    drive(&mut partition, &mut model, 2_052);
    assert!(partition.take_errands().contains(&Errand::AbortFlights));
    let Routes { term, mode, wanted, .. } = partition.routes().expect("it is to be split");
    assert_eq!((mode, wanted), (Mode::Worked, Some(8)));
    assert!(term != before && model.lease.as_ref().is_some_and(|lease| lease.value == term.as_str()));
    assert_eq!(model.records.keys().map(|id| id.entry).collect::<Vec<_>>(), [two.delivery.id.entry]);
    assert_eq!(model.stream.groups[GROUP].last_delivered, entry(2), "the third one was not read");
    assert!(model.stream.groups[GROUP].pending.is_empty());
    // Something stands in the way: it is worked again, as if nobody had asked.
    partition.works(2_055, &term);
    drive(&mut partition, &mut model, 2_060);
    assert!(partition.is_running() && partition.routes().is_none());
    assert!(partition.next_attempt(2_060).is_some());
}

#[test]
fn whoever_takes_the_lease_meanwhile_was_not_asked_to_split_the_stream() {
    let known = Known::with_endpoint();
    let (mut partition, mut model) = (partition(&known), Model::default());
    drive(&mut partition, &mut model, 10);
    let mark: Bytes = serde_json::to_vec(&Mark { by: "t".into(), why: "w".into(), at_ms: 1 }).unwrap().into();
    model.ask(Asked::Repartition(8), mark);
    partition.woken(EntryId::MAX, false, true);
    while partition.wish.is_none() {
        let call = partition.next_call(20).expect("it looks into the inbox");
        let answer = model.call(&call);
        answered(&mut partition, 20, &call, answer);
    }
    let other = Call::Acquire { term: Term::new(9, "other"), previous: vec![], ttl_ms: 5_000 };
    model.lease = None;
    assert!(matches!(model.call(&other), Ok(Answer::Acquired { .. })));
    for at in 30..40 {
        drive(&mut partition, &mut model, at * 100);
    }
    assert!(partition.wish.is_none() && !partition.is_owner());
}

#[test]
fn a_mode_that_is_not_known_is_left_to_a_newer_herald() {
    let known = Known::with_endpoint();
    let mut partition = partition(&known);
    let Some(Call::Acquire { .. }) = partition.next_call(1_000) else { panic!("it asks for the lease") };
    let mode = Mode::parse(Some("woven 7"));
    partition.answered(1_001, Ok(Answer::Acquired { now_ms: 1_001, mode }));
    let told = partition.take_happenings();
    assert!(matches!(&told[..], [.., Happening::TermEnded { why, .. }] if why.contains("woven 7")), "{told:?}");
    assert!(!partition.is_owner());
    assert_eq!(partition.next_call(1_001 + 2 * 5_000 - 1), None, "until its lease has run out for sure");
    assert!(partition.next_call(1_001 + 2 * 5_000).is_some());
}

#[path = "partition_settled_tests.rs"]
mod settled;
