use std::sync::Arc;

use super::*;
use crate::{
    facts::id::EntryId,
    loadtest::{
        faults::Fault,
        judge::{Dead, Evidence, judge},
        ledger::{
            Answer, Arrival, Lateness, Ledger, body_hash,
            tests::{BEGAN_MS, History, us},
        },
        population::{Population, tests::scenario},
        result::{FaultMark, Promise},
        scenario::{Failure, Often, Population as Wanted, ProfileShare},
        traffic::EventFacts,
    },
};

const TEN_MS: Duration = Duration::from_millis(10);

fn imperfect() -> Profile {
    let often = Often::Random { p: 0.1 };
    Profile::Imperfect { after: TEN_MS, failure: Failure::Status503, often, goodput: 0.8 }
}

fn fleeting() -> Profile {
    let (rtt, http2, requests, idle, reload) = (Duration::ZERO, false, Some(12), None, None);
    Profile::Fleeting { after: TEN_MS, rtt, http2, requests, idle, reload }
}

fn healing() -> Profile {
    Profile::Healing { at: Duration::from_secs(4), after: TEN_MS }
}

/// One account for the twin without failures, and one for this profile. Time is that of the load, in seconds.
struct Sides {
    ledger: Ledger,
    sound: u32,
    other: u32,
    next: std::cell::Cell<u32>,
}

impl Sides {
    fn new(profile: Profile) -> Self {
        let profiles =
            [Profile::Slow { after: TEN_MS }, profile].map(|profile| ProfileShare::of(1.0, profile)).to_vec();
        let wanted = Wanted { profiles, timeout: Some(Duration::from_secs(2)), ..Wanted::default() };
        let population = Arc::new(Population::draw(&scenario(2, wanted), 7).unwrap());
        let of = |profile| (0..2).find(|endpoint| population.profile_index(*endpoint) == profile).unwrap();
        let (sound, other) = (of(0), of(1));
        let ledger = Ledger::new(population, 10_000);
        ledger.begin(crate::clock::now(), BEGAN_MS);
        Self { ledger, sound, other, next: std::cell::Cell::new(0) }
    }

    /// An event of an intent of its own, sent on time.
    fn sent(&self, endpoint: u32, at: f64) -> u32 {
        let event = self.next.replace(self.next.get() + 1);
        let facts = EventFacts { number: event, account: endpoint, intent: event, place: 0 };
        self.ledger.publish(&facts, us(at), body_hash(b"x"));
        self.ledger.sent(&[event], us(at), Lateness::Own);
        let entry = EntryId { ms: BEGAN_MS + (at * 1e3) as u64, seq: u64::from(event) };
        self.ledger.confirmed(&[(event, entry)]);
        event
    }

    fn answered(&self, endpoint: u32, event: u32, attempt: u32, answer: Answer, at: f64) {
        let request = History::request(event, attempt, at);
        let arrival = Arrival { endpoint, body_hash: body_hash(b"x"), ..request };
        let ticket = self.ledger.arrive(&arrival, us(at)).ticket.unwrap();
        self.ledger.answer(&ticket, answer, us(at));
        if answer == Answer::Yes {
            self.ledger.written(&ticket, true, us(at));
        }
    }

    /// This many events at 100 a second for each of the two, from this time on. The sound one gets each at once, the
    /// other one when `when` says; `None` means not while the load lasts, but at the very end, when the run waits for
    /// it.
    fn load(&self, count: u32, when: impl Fn(u32) -> Option<f64>) {
        let ends = f64::from(count) / 100.0;
        for n in 0..count {
            let at = f64::from(n) / 100.0;
            let [one, other] = [self.sound, self.other].map(|endpoint| self.sent(endpoint, at));
            self.answered(self.sound, one, 1, Answer::Yes, at + 0.01);
            self.answered(self.other, other, 1, Answer::Yes, when(n).map_or(ends + 5.0, |after| at + after));
        }
    }

    fn promise(&self, evidence: &Evidence, name: &str) -> Promise {
        let verdict = judge(&self.ledger, evidence);
        verdict.promises.into_iter().find(|promise| promise.name == name).unwrap()
    }

    fn counts(&self, evidence: &Evidence, name: &str) -> (u64, u64) {
        let promise = self.promise(evidence, name);
        (promise.tried, promise.broken)
    }

    fn only(&self, evidence: &Evidence, name: &str) {
        let verdict = judge(&self.ledger, evidence);
        let broken = verdict.promises.iter().filter(|promise| promise.broken > 0).map(|promise| promise.name.as_str());
        assert_eq!(broken.collect::<Vec<_>>(), [name]);
    }
}

fn ended(at: f64) -> Evidence {
    Evidence { ended_s: at, ..Evidence::default() }
}

fn faulty(at: f64) -> Evidence {
    Evidence { faults: vec![FaultMark { fault: Fault::KillWorker, at, until: at }], ..ended(60.0) }
}

/// A share of the events is taken at once, the rest when the load is over.
fn taking(part: u32) -> Sides {
    let sides = Sides::new(imperfect());
    sides.load(1_000, |n| (n % 100 < part).then_some(0.01));
    sides
}

#[test]
fn who_gets_less_than_its_due_beside_its_twin_has_lost_goodput() {
    assert_eq!(taking(81).counts(&ended(60.0), "goodput"), (1, 0));
    taking(79).only(&ended(60.0), "goodput");
    let found = judge(&taking(79).ledger, &ended(60.0)).goodput;
    assert_eq!((found[0].owed, found[0].taken, found[0].receiver.as_str()), (1_000, 790, "503 for 10 % of all"));
    let example = taking(79).promise(&ended(60.0), "goodput").examples.remove(0);
    assert!(example.contains("503 for 10 %") && example.contains("0.79") && example.contains("0.80"), "{example}");
}

#[test]
fn a_lane_that_rests_a_second_after_each_503_breaks_goodput() {
    // Ten events of each second go out, one of them fails, and the lane rests until the next second begins. What it
    // gets is late, but everything comes in the end, in order, and no retry is later than what its lane excuses.
    let sides = Sides::new(imperfect());
    let mut taken = 0;
    for n in 0..1_000u32 {
        let at = f64::from(n) / 100.0;
        let [one, other] = [sides.sound, sides.other].map(|endpoint| sides.sent(endpoint, at));
        sides.answered(sides.sound, one, 1, Answer::Yes, at + 0.01);
        // Each second lets ten through, and what has gathered before comes first.
        let goes_at = f64::from(n / 10);
        match n % 10 {
            9 => {
                sides.answered(sides.other, other, 1, Answer::Refused, goes_at + 0.09);
                sides.answered(sides.other, other, 2, Answer::Yes, goes_at + 1.0);
            }
            place => sides.answered(sides.other, other, 1, Answer::Yes, goes_at.max(at) + 0.01 * f64::from(place)),
        }
        taken += u32::from(goes_at < 10.0);
    }
    assert!(taken <= 100);
    sides.only(&ended(200.0), "goodput");
}

#[test]
fn a_machine_that_is_slow_for_both_sides_takes_nobodys_goodput() {
    let sides = Sides::new(imperfect());
    for n in 0..1_000u32 {
        let at = f64::from(n) / 100.0;
        for endpoint in [sides.sound, sides.other] {
            let event = sides.sent(endpoint, at);
            sides.answered(endpoint, event, 1, Answer::Yes, at * 2.0 + 0.01);
        }
    }
    assert_eq!(sides.counts(&ended(60.0), "goodput"), (1, 0));
}

#[test]
fn no_share_is_judged_where_none_can_be_compared() {
    assert_eq!(taking(10).counts(&faulty(3.0), "goodput"), (0, 0));
    assert_eq!(taking(10).counts(&Evidence { is_drain: true, ..ended(60.0) }, "goodput"), (0, 0));
    let few = Sides::new(imperfect());
    few.load(399, |_| None);
    assert_eq!(few.counts(&ended(60.0), "goodput"), (0, 0));
}

/// It is down for 4 s of 6 and gets everything this long after it came back.
fn back_after(wait: f64) -> Sides {
    let sides = Sides::new(healing());
    for n in 0..600u32 {
        let at = f64::from(n) / 100.0;
        let [one, other] = [sides.sound, sides.other].map(|endpoint| sides.sent(endpoint, at));
        sides.answered(sides.sound, one, 1, Answer::Yes, at + 0.01);
        sides.answered(sides.other, other, 1, Answer::Yes, at.max(4.0 + wait));
    }
    sides
}

#[test]
fn a_healed_receiver_whose_backlog_stays_has_not_recovered() {
    // Down for 4 s, a first pause of 5 s: the last one is 9 s at most, and 2 s to the next retry, both with a fifth more;
    // an attempt's time (2 s); the backlog of 400 at 10 in 15 ms less the 100 a second that still come, twice; and 3 s.
    let within = (9.0 + 2.0) * 1.2 + 2.0 + 2.0 * 400.0 / (10.0 / 0.015 - 100.0) + 3.0;
    assert_eq!(back_after(within - 0.1).counts(&ended(60.0), "recovered"), (1, 0));
    let late = back_after(within + 0.1);
    assert_eq!(late.counts(&ended(60.0), "recovered"), (1, 1));
    late.only(&ended(60.0), "recovered");
    assert!(late.promise(&ended(60.0), "recovered").examples[0].contains("400 of 400"));
    // A fault during this time explains it.
    assert_eq!(late.counts(&faulty(8.0), "recovered"), (0, 0));
}

#[test]
fn what_died_while_its_receiver_was_down_is_not_waited_for() {
    let sides = back_after(0.5);
    let event = sides.sent(sides.other, 3.0);
    let dead = Dead {
        event: sides.ledger.event_id(event),
        endpoint: sides.ledger.population().endpoint_id(sides.other),
        reason: crate::facts::retry::DeadReason::Exhausted,
        died_at_ms: BEGAN_MS + 3_500,
    };
    let evidence = Evidence { dead: vec![dead], ..ended(60.0) };
    assert_eq!(sides.counts(&evidence, "recovered"), (1, 0));
}

#[test]
fn what_the_way_broke_is_no_failure_and_comes_at_once() {
    let sides = Sides::new(fleeting());
    sides.load(10, |_| Some(0.05));
    assert_eq!(sides.counts(&ended(60.0), "needless_retry"), (10, 0));
    // A second attempt says that the first one counted.
    let counted = sides.sent(sides.other, 1.0);
    sides.answered(sides.other, counted, 2, Answer::Yes, 1.2);
    sides.only(&ended(60.0), "needless_retry");
    assert_eq!(sides.counts(&faulty(1.0), "needless_retry"), (0, 0));
    let late = Sides::new(fleeting());
    late.load(10, |n| Some(if n == 7 { 3.2 } else { 0.05 }));
    late.only(&ended(60.0), "needless_retry");
}
