//! Redis goes back by its last moment, and its owner lives.

use super::*;
use crate::store::model::Lease;

/// One of these is read and delivered.
fn deliver(partition: &mut Partition<&Known>, model: &mut Model, now: u64) {
    drive(partition, model, now);
    let send = partition.next_attempt(now).unwrap();
    partition.attempted(now + 1, send.token, delivered());
    drive(partition, model, now + 10);
    assert!(model.stream.groups[GROUP].pending.is_empty());
}

/// The next call is not answered.
fn fail(partition: &mut Partition<&Known>, now: u64) {
    partition.look_again();
    partition.next_call(now).unwrap();
    partition.answered(now, Err(Failure::Unknown("the connection broke".to_owned())));
    assert!(!partition.is_owner());
}

/// Delivers an entry, and then Redis has never heard of that.
fn lost(known: &Known) -> (Partition<&Known>, Model) {
    let (mut partition, mut model) = (partition(known), Model::default());
    drive(&mut partition, &mut model, 1);
    publish(&mut model, 1);
    let before = model.clone();
    partition.look_again();
    deliver(&mut partition, &mut model, 10);
    fail(&mut partition, 2_000);
    (partition, before)
}

#[test]
fn an_owner_that_lives_settles_again_what_was_settled() {
    let known = Known::with_endpoint();
    let (mut partition, mut model) = lost(&known);
    drive(&mut partition, &mut model, 3_000);
    assert!(partition.is_owner() && partition.next_attempt(3_000).is_none());
    drive(&mut partition, &mut model, 3_010);
    let group = &model.stream.groups[GROUP];
    assert!(group.pending.is_empty() && group.last_delivered == entry(1) && model.log.len() == 1);
}

#[test]
fn who_comes_back_after_another_owner_knows_nothing() {
    let known = Known::with_endpoint();
    let (mut partition, mut model) = lost(&known);
    model.lease = Some(Lease { value: "another".to_owned(), until_ms: 4_000 });
    drive(&mut partition, &mut model, 3_000);
    assert!(!partition.is_owner());
    drive(&mut partition, &mut model, 5_000);
    assert!(partition.is_owner() && partition.next_attempt(5_000).is_some());
}

/// Nothing is read meanwhile, so nothing that is known is of no more use.
#[test]
fn what_is_known_outlasts_a_pause_of_all_sending() {
    let known = Known::with_endpoint();
    let (mut partition, mut model) = lost(&known);
    known.is_paused.set(true);
    let mut now = 3_000;
    while now < 300_000 {
        model.now_ms = now;
        renew(&mut partition, &mut model, now);
        drive(&mut partition, &mut model, now);
        now += 1_000;
    }
    known.is_paused.set(false);
    drive(&mut partition, &mut model, now);
    assert!(partition.is_owner() && partition.next_attempt(now).is_none());
    assert_eq!(model.stream.groups[GROUP].last_delivered, entry(1), "it was read");
}

#[test]
fn an_operator_who_sets_the_reading_back_has_everything_sent_again() {
    let known = Known::with_endpoint();
    let (mut partition, mut model) = (partition(&known), Model::default());
    for ms in 1..=3 {
        publish(&mut model, ms);
        partition.look_again();
        deliver(&mut partition, &mut model, 100 * ms);
    }
    let group = model.stream.groups.get_mut(GROUP).unwrap();
    group.last_delivered = EntryId::ZERO;
    partition.look_again();
    drive(&mut partition, &mut model, 1_000);
    // The term ends before any of them is sent.
    fail(&mut partition, 1_001);
    drive(&mut partition, &mut model, 2_000);
    let sent: Vec<u64> =
        std::iter::from_fn(|| partition.next_attempt(2_000)).map(|send| send.delivery.id.entry.ms).collect();
    assert_eq!(sent, [1, 2, 3]);
}
