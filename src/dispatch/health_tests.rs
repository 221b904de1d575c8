use super::*;
use crate::facts::{
    health::{BreakerState, MINUTE_MS, Seen, Told},
    id::DeliveryId,
    own_event::OwnEvent,
    unserved::Oddity,
};

pub const NOW: u64 = 1_800_000_000_000;

pub fn id(number: usize) -> EndpointId {
    EndpointId::new(&format!("ep_{number}")).unwrap()
}

pub fn noted(number: usize, at_ms: u64, delivered: u32, failed: u32) -> Noted {
    let mut seen = Seen { account: "acc_a".parse().ok(), ..Seen::default() };
    (0..delivered).for_each(|_| seen.delivered(at_ms, 5_000));
    let sample = DeliveryId { entry: "1-0".parse().unwrap(), endpoint: id(number) };
    (0..failed).for_each(|_| seen.failed(at_ms, "server_failed:500".parse().unwrap(), &sample, "down"));
    Noted { endpoint: id(number), breaker: BreakerState::Closed, window: 10, in_flight: 0, seen }
}

/// Nobody wants to be told, and the registry says nothing.
pub struct Nobody;

impl Surroundings for Nobody {
    fn stand(&self, _: &EndpointId) -> Stand {
        Stand::Other
    }

    fn is_wanted(&self, _: OwnEvent) -> bool {
        false
    }
}

/// The endpoints of the next batch.
fn due(book: &mut Book, now_ms: u64) -> Vec<String> {
    let batch = book.due(now_ms, false, &Nobody).unwrap_or_default();
    batch.health.iter().map(|(endpoint, _)| endpoint.to_string()).collect()
}

fn stored(batch: &Batch) -> Vec<(EndpointId, Health)> {
    batch.health.iter().map(|(id, text)| (id.clone(), serde_json::from_str(text).unwrap())).collect()
}

#[test]
fn what_is_well_is_published_seldom_and_what_begins_to_fail_at_once() {
    let mut book = Book::default();
    book.see(NOW, vec![noted(1, NOW, 1, 0), noted(2, NOW, 1, 0)], Vec::new());
    assert_eq!(due(&mut book, NOW).len(), 2);
    book.see(NOW + 1_000, vec![noted(1, NOW + 1_000, 1, 0), noted(2, NOW + 1_000, 0, 5)], Vec::new());
    assert_eq!(due(&mut book, NOW + 1_000), ["ep_2"]);
    book.see(NOW + 2_000, vec![noted(2, NOW + 2_000, 0, 1)], Vec::new());
    assert_eq!(due(&mut book, NOW + 2_000), [""; 0]);
    assert_eq!(due(&mut book, NOW + 11_000), ["ep_2"]);
    assert_eq!(due(&mut book, NOW + 30_000), ["ep_1"]);
    assert_eq!(due(&mut book, NOW + 90_000), [""; 0], "nothing has changed");
    book.see(NOW + 91_000, vec![noted(2, NOW + 91_000, 1, 0)], Vec::new());
    assert_eq!(due(&mut book, NOW + 91_000), ["ep_2"], "it is well again");
}

#[test]
fn a_batch_is_bounded_and_those_that_waited_longest_come_first() {
    let mut book = Book::default();
    book.see(NOW, (0..1_000).map(|number| noted(number, NOW, 1, 0)).collect(), Vec::new());
    let mut seen = HashSet::default();
    let batches = std::iter::from_fn(|| book.due(NOW, false, &Nobody));
    let sizes: Vec<usize> = batches
        .map(|batch| {
            seen.extend(batch.health.iter().map(|(endpoint, _)| endpoint.clone()));
            assert!(batch.health.iter().map(|(_, text)| text.len()).sum::<usize>() <= MAX_BYTES + 4_096);
            batch.health.len()
        })
        .collect();
    assert_eq!((sizes, seen.len()), (vec![200; 5], 1_000));
}

#[test]
fn what_was_not_published_is_due_again() {
    let mut book = Book::default();
    book.see(NOW, vec![noted(1, NOW, 1, 0)], Vec::new());
    let batch = book.due(NOW, false, &Nobody).unwrap();
    book.was_not_published(batch);
    assert_eq!(due(&mut book, NOW + 30_000), ["ep_1"]);
    book.see(NOW + 31_000, vec![noted(1, NOW + 31_000, 1, 0)], Vec::new());
    assert_eq!(book.due(NOW + 31_000, true, &Nobody).unwrap().health.len(), 1, "at a clean end all is written");
}

#[test]
fn a_new_owner_goes_on_from_what_was_published() {
    let (mut first, mut second) = (Book::default(), Book::default());
    first.see(NOW, vec![noted(1, NOW, 7, 0)], Vec::new());
    let batch = first.due(NOW, false, &Nobody).unwrap();
    second.load(stored(&batch), Vec::new(), None);
    second.see(NOW + 100, vec![noted(1, NOW + 100, 2, 0)], Vec::new());
    assert_eq!(second.entries[&id(1)].health.last_minutes(NOW + 100).delivered, 9);

    // The first owner has it again: what the second one wrote counts, and what nobody wrote is not counted twice.
    let batch = second.due(NOW + 30_100, false, &Nobody).unwrap();
    first.load(stored(&batch), Vec::new(), None);
    assert_eq!(first.entries[&id(1)].health.last_minutes(NOW + 100).delivered, 9);
    first.load(stored(&batch), Vec::new(), None);
    first.see(NOW + 40_000, vec![noted(1, NOW + 40_000, 1, 0)], Vec::new());
    assert_eq!(first.entries[&id(1)].health.last_minutes(NOW + 40_000).delivered, 10);
}

#[test]
fn after_a_lost_answer_redis_says_who_was_told() {
    let mut book = Book::default();
    book.see(NOW, vec![noted(1, NOW, 0, 5)], Vec::new());
    let batch = book.due(NOW, false, &Nobody).unwrap();
    let mut found = stored(&batch);
    found[0].1.told = Told::Failing;
    book.was_not_published(batch);
    book.see(NOW + 1, vec![noted(1, NOW + 1, 0, 5)], Vec::new());
    book.load(found, Vec::new(), None);
    let health = &book.entries[&id(1)].health;
    assert_eq!((health.told, health.failed_since), (Told::Failing, 10));
}

#[test]
fn endpoints_that_are_no_more_are_removed() {
    let mut book = Book::default();
    book.see(NOW, (0..3).map(|number| noted(number, NOW, 1, 0)).collect(), Vec::new());
    book.due(NOW, false, &Nobody);
    book.keep(|endpoint| *endpoint != id(1));
    let batch = book.due(NOW + 1, false, &Nobody).unwrap();
    assert_eq!((batch.gone.clone(), book.len()), (vec![id(1)], 2));
    book.was_not_published(batch);
    assert_eq!(book.due(NOW + 2, false, &Nobody).unwrap().gone, [id(1)]);
}

#[test]
fn odd_events_are_counted_by_account_and_their_number_is_bounded() {
    let mut book = Book::default();
    let odd = |account: &str| {
        let seen =
            OddSeen { oddity: Oddity::NoEndpoint, count: 2, entry: "5-0".parse().unwrap(), event_type: String::new() };
        (account.parse::<AccountId>().unwrap(), seen)
    };
    book.see(NOW, Vec::new(), vec![odd("acc_1"), odd("acc_1")]);
    let batch = book.due(NOW, false, &Nobody).unwrap();
    assert_eq!(batch.unserved.len(), 1);
    assert!(batch.unserved[0].1.contains("\"count\":4"), "{batch:?}");
    let many = (0..5_000).map(|number| odd(&format!("acc_{number}"))).collect();
    book.see(NOW + MINUTE_MS, Vec::new(), many);
    assert_eq!(book.unserved.len(), MOST_ACCOUNTS);
    let batches = std::iter::from_fn(|| book.due(NOW + MINUTE_MS, false, &Nobody));
    let sizes: Vec<(usize, usize)> = batches.map(|batch| (batch.unserved.len(), batch.forgotten.len())).collect();
    let (written, forgotten) = sizes.iter().fold((0, 0), |sums, sizes| (sums.0 + sizes.0, sums.1 + sizes.1));
    assert_eq!((written, forgotten), (MOST_ACCOUNTS, 4_000), "{sizes:?}");
}
