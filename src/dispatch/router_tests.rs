//! The router against the store's model: who waits for whom, and for how long.

use bytes::Bytes;

use super::*;
use crate::{facts::partition::Mode, store::model::Model};

const PARTS: u32 = 3;

fn route() -> Route {
    Route { parts: PARTS, token: "t0".to_owned(), barrier: EntryId::ZERO }
}

/// A stream, its parts, and which of these answer.
struct Town {
    stream: Model,
    parts: Vec<Model>,
    are_up: [bool; PARTS as usize],
    are_confirmed: bool,
    router: Router,
    now: u64,
    reads: usize,
    calls: usize,
    trims: Vec<Trimming>,
    told: Vec<Happening>,
}

impl Town {
    fn new(max_apart: u64) -> Self {
        let mode = Mode::Routed { parts: PARTS, token: "t0".to_owned(), barrier: EntryId::ZERO };
        Self {
            stream: Model { mode, ..Model::default() },
            parts: (0..PARTS).map(|_| Model { gate: Some("t0".to_owned()), ..Model::default() }).collect(),
            are_up: [true; PARTS as usize],
            are_confirmed: true,
            router: Router::new(Settings { above: 1, max_apart }, route()),
            now: 0,
            reads: 0,
            calls: 0,
            trims: Vec::new(),
            told: Vec::new(),
        }
    }

    /// An event of an account that goes to this part.
    fn publish(&mut self, part: u32) {
        let account = |number: &u32| format!("acc_{number}");
        let of = |number: &u32| part_for(&passed(&account(number)), 1, PARTS) == part;
        let account = account(&(0..).find(of).unwrap());
        let id = EntryId { ms: self.stream.stream.last_generated.ms + 1, seq: 0 };
        self.stream.publish(id, Bytes::from(format!(r#"{{"accountId":"{account}"}}"#)));
        self.router.woken();
    }

    /// Everything that is to be done at this time, each call answered at once.
    fn drive(&mut self) {
        while let Some(step) = self.router.next(self.now) {
            self.calls += 1;
            assert!(self.calls < 5_000, "it never comes to rest");
            self.stream.now_ms = 1_000_000 + self.now;
            match step {
                Step::Read { after, of_stream, .. } => {
                    self.reads += 1;
                    let page = self.stream.route_read(after, 10, of_stream).unwrap();
                    self.router.page(self.now, Some(page));
                }
                Step::Append(batches) => {
                    for batch in batches {
                        let said = match self.are_up[batch.part as usize] {
                            true => Ok(self.parts[batch.part as usize].append(&route(), &batch)),
                            false => Err("it is away".to_owned()),
                        };
                        self.router.appended(self.now, batch.part, said, self.are_confirmed);
                    }
                }
                Step::Trim(trim) => {
                    self.trims.push(trim);
                    self.router.trimmed();
                }
            }
            self.told.extend(self.router.take_happenings());
        }
    }

    /// As the shell does, for so long.
    fn live(&mut self, ms: u64) {
        let end = self.now + ms;
        while self.now < end {
            self.drive();
            let wake_at = self.router.wake_at(self.now);
            assert!(wake_at > self.now, "it would spin");
            self.now = wake_at.min(end);
        }
    }

    fn taken(&self) -> Vec<usize> {
        self.parts.iter().map(|part| part.stream.entries.len()).collect()
    }
}

fn passed(account: &str) -> Passed {
    let body = Bytes::from(format!(r#"{{"accountId":"{account}"}}"#));
    Passed::new(EntryId { ms: 1, seq: 0 }, &[(Bytes::from_static(b"event"), body)], None)
}

#[test]
fn a_part_that_is_away_holds_only_its_own_entries_until_it_is_too_far_behind() {
    let mut town = Town::new(40);
    town.drive();
    town.are_up[1] = false;
    for number in 0..30 {
        town.publish(number % 3);
    }
    town.live(300);
    assert_eq!(town.taken(), [10, 0, 10]);
    assert!(town.told.iter().any(|told| matches!(told, Happening::Down { part: 1, .. })), "{:?}", town.told);
    assert!(town.router.lag_ms(town.now) > 0 && town.router.parts_down() == 1);
    for number in 0..300 {
        town.publish(number % 3);
    }
    town.live(3_000);
    let taken = town.taken();
    assert!(taken[0] < 40 && taken[2] < 40, "the others wait for it: {taken:?}");
    let reads = town.reads;
    town.live(5_000);
    assert!(town.reads - reads < 30, "{} reads of what nobody can take", town.reads - reads);
    town.are_up[1] = true;
    town.live(5_000);
    assert_eq!(town.taken(), [110, 110, 110]);
    assert!(town.told.contains(&Happening::Up { part: 1 }));
    assert_eq!((town.router.lag_ms(town.now), town.router.parts_down()), (0, 0));
}

/// What a part waits for is as old as that, and not as what came before a silence.
#[test]
fn after_a_quiet_night_a_part_that_is_away_is_not_late_by_that_night() {
    let mut town = Town::new(MAX_APART);
    town.drive();
    (0..PARTS).for_each(|part| town.publish(part));
    town.live(1_000);
    town.now += 8 * 3_600_000;
    town.are_up[1] = false;
    town.stream.stream.last_generated.ms = 1_000_000 + town.now;
    (0..PARTS).for_each(|part| town.publish(part));
    town.live(2_000);
    assert_eq!(town.taken(), [2, 1, 2]);
    assert!((1_500..4_000).contains(&town.router.lag_ms(town.now)), "{} ms", town.router.lag_ms(town.now));
}

/// While one has much to catch up with, what is new for the others does not wait for that.
#[test]
fn who_catches_up_takes_turns_with_the_others() {
    let mut town = Town::new(MAX_APART);
    town.drive();
    town.are_up[1] = false;
    (0..500).for_each(|_| town.publish(1));
    town.live(1_000);
    town.are_up[1] = true;
    (0..20).for_each(|_| town.publish(0));
    let mut steps = 0;
    while town.taken()[0] < 20 {
        town.live(1);
        steps += 1;
        assert!(town.taken()[1] < 500 && steps < 10_000, "{:?}", town.taken());
    }
    town.live(3_000);
    assert_eq!(town.taken(), [20, 500, 0]);
}

#[test]
fn only_what_all_replicas_have_is_trimmed() {
    let mut town = Town::new(MAX_APART);
    (0..9).for_each(|number| town.publish(number % 3));
    town.are_confirmed = false;
    town.live(4_000);
    assert_eq!((town.taken(), town.trims.as_slice()), (vec![3, 3, 3], &[][..]));
    town.are_confirmed = true;
    town.live(3_000);
    let last = EntryId { ms: 9, seq: 0 };
    assert_eq!(town.trims.last(), Some(&Trimming { safe: last, highest: last }));
    // A part that was set back is not confirmed, whatever it was before.
    town.parts[2].routed = Some(EntryId { ms: 4, seq: 0 });
    town.publish(2);
    town.are_confirmed = false;
    town.drive();
    town.trims.clear();
    town.live(3_000);
    assert_eq!(town.trims, []);
    assert!(town.told.contains(&Happening::Elsewhere { part: 2, at: EntryId { ms: 4, seq: 0 } }));
}

#[test]
fn what_is_gone_before_a_part_had_it_is_told_once() {
    let mut town = Town::new(MAX_APART);
    (0..9).for_each(|number| town.publish(number % 3));
    town.live(3_000);
    assert!(!town.told.iter().any(|told| matches!(told, Happening::Gap { .. })), "{:?}", town.told);
    town.stream.cursor = town.trims.last().map(|trim| trim.safe);
    // All but the last entry is gone, and a part is back at the third.
    town.stream.stream.entries.retain(|id, _| id.ms >= 9);
    town.parts[0].routed = Some(EntryId { ms: 3, seq: 0 });
    town.publish(0);
    town.live(3_000);
    let gaps: Vec<_> = town.told.iter().filter(|told| matches!(told, Happening::Gap { .. })).collect();
    assert_eq!(gaps, [&Happening::Gap { part: 0, after: EntryId { ms: 3, seq: 0 } }]);
    assert_eq!(town.taken()[0], 4, "and what is there goes on");
}

#[test]
fn who_has_nothing_to_do_does_little() {
    let mut town = Town::new(MAX_APART);
    (0..9).for_each(|number| town.publish(number % 3));
    town.live(5_000);
    let calls = town.calls;
    town.live(10_000);
    assert!(town.calls - calls <= 10 * (4 + 1), "{} calls in ten seconds", town.calls - calls);
    assert_eq!(town.router.wants_wakeup(), Some(EntryId { ms: 9, seq: 0 }));
    town.publish(1);
    town.drive();
    assert_eq!(town.taken()[1], 4);
}

#[test]
fn an_account_has_its_part_at_each_level_and_what_has_none_goes_to_the_first() {
    // As docs/vectors/partition.json has it.
    assert_eq!(part_for(&passed("acc_test"), 1, 64), 6);
    assert_eq!(part_for(&passed("acc_test"), 64, 4), 3);
    assert_eq!(part_for(&passed("acc_a"), 1, 64), 62);
    for account in ["", "no account", "acc_\\u0000"] {
        assert_eq!(part_for(&passed(account), 1, 64), 0, "{account:?}");
    }
    let none = Passed::new(EntryId::ZERO, &[(Bytes::from_static(b"x"), Bytes::from_static(b"y"))], None);
    assert_eq!(part_for(&none, 1, 64), 0);
}
