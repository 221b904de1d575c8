//! How much imperfect receivers get of what they could take: one endpoint's lane with its retries and its backlog, against
//! receivers of many kinds, in virtual time. The seeds are fixed, so every run gives the same result.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap, HashMap},
    ops::Bound,
    sync::Arc,
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{
    breaker::BreakerSettings,
    lane::{Ended, Gate, JobId, Lane, Standing},
};
use crate::facts::{
    endpoint::Endpoint,
    id::EntryId,
    outcome::Outcome,
    retry::{Fate, RetryPolicy, RetrySettings},
    signing::SecretText,
};

/// How long a look into the backlog takes, and how many one lane may queue of what all may.
const LOOK_MS: u64 = 2;
const SHARE: usize = 1_024;

const WELL: Outcome = Outcome::Delivered { status: 200 };
const FAILED: Outcome = Outcome::ServerFailed { status: 500 };
const BUSY: Outcome = Outcome::Throttled { status: 503, retry_after: None };
const LIMITED: Outcome = Outcome::Throttled { status: 429, retry_after: None };

fn limited_for(seconds: u64) -> Outcome {
    Outcome::Throttled { status: 429, retry_after: Some(Duration::from_secs(seconds)) }
}

/// How a receiver behaves: what it answers at a given time while it works on this many others, by chance, and after how
/// many milliseconds.
type Manner = Box<dyn FnMut(u64, u32, f64) -> (Outcome, u64)>;

struct Case {
    manner: Manner,
    every_ms: f64,
    for_ms: u64,
    max_in_flight: u16,
}

impl Case {
    /// Five hundred events a second for twenty seconds, ten in flight.
    fn new(manner: impl FnMut(u64, u32, f64) -> (Outcome, u64) + 'static) -> Self {
        Self { manner: Box::new(manner), every_ms: 2.0, for_ms: 20_000, max_in_flight: 10 }
    }

    fn run(self, seed: u64) -> Told {
        World::new(self, seed).run()
    }
}

#[derive(Debug, Default)]
struct Told {
    delivered_at: Vec<u64>,
    attempted_at: Vec<u64>,
    dead: usize,
    most_in_flight: u32,
}

impl Told {
    fn attempted(&self, from: u64, to: u64) -> usize {
        self.attempted_at.iter().filter(|at| (from..to).contains(*at)).count()
    }

    fn next_delivery(&self, from: u64) -> Option<u64> {
        self.delivered_at.iter().copied().find(|at| *at >= from)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrives(EntryId),
    Ends(u64),
    IsDue(EntryId),
    Looked(EntryId, usize),
    Opens,
}

struct World {
    case: Case,
    lane: Lane,
    policy: RetryPolicy,
    chance: StdRng,
    now: u64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    next: u64,
    /// Attempts so far, for what is unfinished.
    attempts: HashMap<EntryId, u32>,
    backlog: BTreeSet<EntryId>,
    /// What of the backlog is queued or in flight.
    taken: BTreeSet<EntryId>,
    queue: HashMap<u64, EntryId>,
    flights: HashMap<u64, (EntryId, Outcome)>,
    /// How many of those in flight the receiver is working on.
    at_work: u32,
    is_looking: bool,
    told: Told,
}

impl World {
    fn new(case: Case, seed: u64) -> Self {
        let mut endpoint = endpoint();
        endpoint.max_in_flight = case.max_in_flight;
        let policy = RetryPolicy::try_new(RetrySettings::default()).unwrap();
        let lane = Lane::new(Standing::of(Arc::new(endpoint)), policy.clone(), 0);
        let mut world = Self {
            lane,
            policy,
            chance: StdRng::seed_from_u64(seed),
            now: 0,
            events: BinaryHeap::new(),
            next: 0,
            attempts: HashMap::new(),
            backlog: BTreeSet::new(),
            taken: BTreeSet::new(),
            queue: HashMap::new(),
            flights: HashMap::new(),
            at_work: 0,
            is_looking: false,
            told: Told::default(),
            case,
        };
        let count = (world.case.for_ms as f64 / world.case.every_ms) as u64;
        for number in 0..count {
            let at = (number as f64 * world.case.every_ms) as u64;
            world.at(at, Event::Arrives(EntryId { ms: number + 1, seq: 0 }));
        }
        world
    }

    fn run(mut self) -> Told {
        while let Some(Reverse((at, _, event))) = self.events.pop()
            && at < self.case.for_ms
        {
            self.now = at;
            match event {
                Event::Arrives(entry) => {
                    self.attempts.insert(entry, 0);
                    match self.lane.parked > 0 || self.lane.should_park(self.now, SHARE) {
                        true => self.park(entry),
                        false => self.enqueue(entry, false),
                    }
                }
                Event::IsDue(entry) => match self.lane.should_park(self.now, usize::MAX) {
                    true => self.park(entry),
                    false => self.enqueue(entry, true),
                },
                Event::Ends(attempt) => self.ended(attempt),
                Event::Looked(after, most) => self.looked(after, most),
                Event::Opens => {}
            }
            self.pump();
        }
        self.told
    }

    fn at(&mut self, at: u64, event: Event) {
        self.next += 1;
        self.events.push(Reverse((at, self.next, event)));
    }

    fn enqueue(&mut self, entry: EntryId, goes_first: bool) {
        self.next += 1;
        self.queue.insert(self.next, entry);
        match goes_first {
            true => self.lane.queue.push_front(JobId(self.next)),
            false => self.lane.queue.push_back(JobId(self.next)),
        }
    }

    fn park(&mut self, entry: EntryId) {
        self.taken.remove(&entry);
        self.backlog.insert(entry);
        self.lane.was_parked(entry);
        self.lane.parked = self.backlog.len() as u64;
    }

    fn pump(&mut self) {
        while self.lane.gate(self.now) == Gate::Open
            && let Some(job) = self.lane.queue.pop_front()
        {
            let entry = self.queue.remove(&job.0).unwrap();
            self.start(entry);
        }
        if let Gate::Later(opens) = self.lane.gate(self.now) {
            assert!(opens > self.now, "a gate that opens in the past");
            self.at(opens, Event::Opens);
        }
        let appetite = self.lane.appetite(self.now);
        if appetite > 0 && !self.is_looking {
            self.is_looking = true;
            self.lane.looks();
            self.at(self.now + LOOK_MS, Event::Looked(self.lane.drained_to, appetite));
        }
    }

    fn start(&mut self, entry: EntryId) {
        self.next += 1;
        let attempt = self.next;
        self.lane.started(self.now, attempt);
        let busy = self.flights.len() as u32 + 1;
        let (outcome, after) = (self.case.manner)(self.now, self.at_work, self.chance.random());
        self.at_work += u32::from(outcome.is_delivered());
        self.flights.insert(attempt, (entry, outcome));
        self.told.attempted_at.push(self.now);
        self.told.most_in_flight = self.told.most_in_flight.max(busy);
        assert!(busy <= u32::from(self.case.max_in_flight), "{busy} are in flight");
        self.at(self.now + after.max(1), Event::Ends(attempt));
    }

    fn ended(&mut self, attempt: u64) {
        let (entry, outcome) = self.flights.remove(&attempt).unwrap();
        self.at_work -= u32::from(outcome.is_delivered());
        let chance = self.chance.random();
        let made = self.attempts.get_mut(&entry).unwrap();
        *made += 1;
        let age = Duration::ZERO;
        let granted = self.policy.granted(&outcome, age);
        let ended = Ended { attempt, outcome: &outcome, granted };
        self.lane.ended_attempt(self.now, &ended, &BreakerSettings::default(), chance);
        self.backlog.remove(&entry);
        self.taken.remove(&entry);
        self.lane.parked = self.backlog.len() as u64;
        match self.policy.decide(*made, &outcome, age, chance) {
            Fate::Delivered => self.told.delivered_at.push(self.now),
            Fate::RetryAfter(pause) => self.at(self.now + pause.as_millis() as u64, Event::IsDue(entry)),
            Fate::Dead(_) => self.told.dead += 1,
        }
        // As in the core: what will not go soon waits in the backlog.
        let is_shut = !matches!(self.lane.gate(self.now), Gate::Open | Gate::Busy);
        if is_shut && self.lane.should_park(self.now, usize::MAX) {
            for job in std::mem::take(&mut self.lane.queue) {
                let entry = self.queue.remove(&job.0).unwrap();
                self.park(entry);
            }
        }
    }

    fn looked(&mut self, after: EntryId, most: usize) {
        self.is_looking = false;
        let behind = (Bound::Excluded(after), Bound::Unbounded);
        let found: Vec<EntryId> = self.backlog.range(behind).copied().take(most).collect();
        for entry in &found {
            if self.taken.insert(*entry) {
                self.enqueue(*entry, false);
            }
        }
        self.lane.looked(found.last().copied());
    }
}

fn endpoint() -> Endpoint {
    let (id, account) = ("ep_a".parse().unwrap(), "acc_1".parse().unwrap());
    Endpoint::new(id, account, "https://example.com/".to_owned(), SecretText::from_random([7; 32]), 0)
}

/// Its share of what the same receiver takes if it never fails: the worst of three seeds.
fn goodput(case: impl Fn() -> Case, after_ms: u64) -> f64 {
    let mut perfect = case();
    perfect.manner = Box::new(move |_, _, _| (WELL, after_ms));
    let all = perfect.run(0).delivered_at.len() as f64;
    (1..=3).map(|seed| case().run(seed).delivered_at.len() as f64 / all).fold(f64::INFINITY, f64::min)
}

/// A receiver of 10 ms that fails with this probability, whatever it is sent.
fn often(p: f64, outcome: Outcome) -> impl Fn() -> Case {
    move || {
        let outcome = outcome.clone();
        Case::new(move |_, _, chance| (if chance < p { outcome.clone() } else { WELL }, 10))
    }
}

/// A receiver of 10 ms that fails for the first `bad_ms` of every `of_ms`.
fn at_times(bad_ms: u64, of_ms: u64, outcome: Outcome) -> impl Fn() -> Case {
    move || {
        let outcome = outcome.clone();
        Case::new(move |now, _, _| (if now % of_ms < bad_ms { outcome.clone() } else { WELL }, 10))
    }
}

#[test]
fn an_imperfect_receiver_gets_nearly_all_that_it_can_take() {
    let often = |p, outcome| goodput(often(p, outcome), 10);
    let at_times = |bad_ms, of_ms, outcome| goodput(at_times(bad_ms, of_ms, outcome), 10);
    let rows = [
        ("500, independent, 1 %", often(0.01, FAILED), 0.95),
        ("500, independent, 5 %", often(0.05, FAILED), 0.9),
        ("500, independent, 20 %", often(0.2, FAILED), 0.7),
        ("503 without Retry-After, 2 %", often(0.02, BUSY), 0.95),
        ("503 without Retry-After, 10 %", often(0.1, BUSY), 0.8),
        ("503 without Retry-After, 30 %", often(0.3, BUSY), 0.6),
        ("reset, 5 %", often(0.05, Outcome::Reset), 0.9),
        ("500 for 100 ms of every second", at_times(100, 1_000, FAILED), 0.8),
        ("503 for 200 ms of every two seconds", at_times(200, 2_000, BUSY), 0.8),
        ("reset for 100 ms of every second", at_times(100, 1_000, Outcome::Reset), 0.8),
        ("500 for a second of every ten", at_times(1_000, 10_000, FAILED), 0.8),
    ];
    for (receiver, share, reach) in &rows {
        println!("{receiver:40} {share:.3} (reach {reach})");
    }
    for (receiver, share, reach) in rows {
        assert!(share >= reach, "{receiver}: {share:.3} of what it can take, not {reach}");
    }
}

/// Five hundred events a second for three minutes, to a receiver that is down from the tenth second to the seventieth.
fn down(outcome: Outcome, after_ms: u64, max_in_flight: u16) -> Told {
    let manner = move |now, _, _| match (DOWN..BACK).contains(&now) {
        true => (outcome.clone(), after_ms),
        false => (WELL, 10),
    };
    Case { for_ms: 180_000, max_in_flight, ..Case::new(manner) }.run(1)
}

const DOWN: u64 = 10_000;
const BACK: u64 = 70_000;

#[test]
fn a_receiver_that_is_down_costs_few_attempts_and_is_found_soon() {
    for (kind, outcome, after_ms) in [
        ("500", FAILED, 10),
        ("503", BUSY, 10),
        ("429", LIMITED, 10),
        ("429 with Retry-After: 1", limited_for(1), 10),
        ("refuses connections", Outcome::ConnectFailed, 1),
        ("hangs", Outcome::ResponseTimedOut, 15_000),
    ] {
        for max_in_flight in [10, 1_000] {
            let told = down(outcome.clone(), after_ms, max_in_flight);
            let (attempts, found) = (told.attempted(DOWN, BACK), told.next_delivery(BACK + after_ms).unwrap() - BACK);
            println!("{kind:24} {max_in_flight:5} in flight: {attempts:4} attempts, found after {found:5} ms");
            // What goes out before the first failure is known cannot be avoided.
            let unknown = (after_ms as usize / 2).min(max_in_flight.into());
            assert!(attempts <= unknown + 45, "{kind}: {attempts} attempts");
            assert!(found <= 30_000 + after_ms, "{kind}: found after {found} ms");
            assert!(told.delivered_at.len() >= 89_900, "{kind}: {} of 90 000", told.delivered_at.len());
        }
    }
}

#[test]
fn a_receiver_with_an_event_a_minute_is_given_up_too() {
    for (outcome, after_ms) in [(Outcome::ResponseTimedOut, 15_000), (Outcome::ConnectFailed, 1)] {
        // It never succeeds.
        let manner = move |_, _, _| (outcome.clone(), after_ms);
        let told = Case { every_ms: 60_000.0, for_ms: 3_600_000, ..Case::new(manner) }.run(1);
        let (first, later) = (told.attempted(0, 600_000), told.attempted(600_000, 3_600_000));
        println!("an event a minute: {first} attempts in ten minutes, {later} in the next fifty");
        assert!(first <= 25 && later <= 30, "{first}, then {later}");
    }
}

#[test]
fn a_slow_receiver_has_all_its_places() {
    for (after_ms, max_in_flight) in [(200, 10), (14_000, 10), (200, 1_000), (14_000, 1_000)] {
        let case =
            Case { max_in_flight, for_ms: 20 * after_ms, every_ms: 1.0, ..Case::new(move |_, _, _| (WELL, after_ms)) };
        // Not more than it can take, so that the time goes into attempts.
        let every_ms = after_ms as f64 / f64::from(max_in_flight) / 2.0;
        let told = Case { every_ms, ..case }.run(1);
        assert_eq!(told.most_in_flight, u32::from(max_in_flight), "{after_ms} ms");
    }
}

#[test]
fn a_receiver_with_a_limit_of_its_own_is_kept_busy() {
    // It takes this many at a time: what is too much is refused at once.
    for places in [1, 5, 50] {
        let manner = move |_, at_work, _| if at_work < places { (WELL, 10) } else { (BUSY, 3) };
        let every_ms = 5.0 / f64::from(places);
        let told = Case { max_in_flight: 100, every_ms, ..Case::new(manner) }.run(1);
        let share = told.delivered_at.len() as f64 / (f64::from(places) * 2_000.0);
        println!("{places:3} at a time: {share:.2} of it, {} attempts", told.attempted_at.len());
        assert!(share >= 0.9, "{places} at a time: {share:.2}");
    }
    // A hundred a second, and twenty saved up.
    for (kind, refusal, reach) in [
        ("503", BUSY, 0.9),
        ("429", LIMITED, 0.9),
        // It asks for a second, in which it could have taken a hundred, and has twenty ready then.
        ("429 with Retry-After: 1", limited_for(1), 0.18),
    ] {
        let (mut ready, mut since) = (20.0, 0);
        let manner = move |now, _, _| {
            ready = f64::min(20.0, ready + (now - since) as f64 / 10.0) - 1.0;
            since = now;
            if ready >= 0.0 {
                return (WELL, 10);
            }
            ready += 1.0;
            (refusal.clone(), 3)
        };
        let told = Case::new(manner).run(1);
        let share = told.delivered_at.len() as f64 / 2_000.0;
        println!("a hundred a second, else {kind}: {share:.2} of it, {} attempts", told.attempted_at.len());
        assert!(share >= reach, "{kind}: {share:.2}");
    }
}

#[test]
fn with_many_in_flight_it_is_the_same() {
    for (p, outcome) in [(0.3, BUSY), (0.2, FAILED), (0.05, Outcome::Reset)] {
        let case = || {
            let outcome = outcome.clone();
            let manner = move |_, _, chance| (if chance < p { outcome.clone() } else { WELL }, 100);
            Case { max_in_flight: 1_000, every_ms: 0.2, ..Case::new(manner) }
        };
        let share = goodput(case, 100);
        println!("1 000 in flight, {p} {}: {share:.3}", outcome.name());
        assert!(share >= 0.6, "{share:.3}");
    }
}
