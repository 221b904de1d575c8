//! What holds of a lane whatever its receiver did before.

use proptest::prelude::*;

use super::*;
use crate::facts::signing::SecretText;

const SETTINGS: BreakerSettings = BreakerSettings { failure_share: 0.9, cooldown_ms: 1_000, max_cooldown_ms: 60_000 };

#[derive(Debug, Clone)]
enum Deed {
    /// Start what may start, at most this many.
    Start(u32),
    /// The one at this index, of those in flight, ends.
    End(usize, Outcome),
    Wait(u64),
}

fn outcome() -> impl Strategy<Value = Outcome> {
    let retry_after = prop_oneof![Just(None), (0u64..10_000).prop_map(|s| Some(Duration::from_secs(s)))];
    prop_oneof![
        3 => Just(Outcome::Delivered { status: 200 }),
        1 => Just(Outcome::Rejected { status: 404 }),
        3 => Just(Outcome::ServerFailed { status: 500 }),
        2 => Just(Outcome::ResponseTimedOut),
        1 => Just(Outcome::Unsendable),
        3 => (prop_oneof![Just(429u16), Just(503), Just(301)], retry_after)
            .prop_map(|(status, retry_after)| Outcome::Throttled { status, retry_after }),
    ]
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let deed = prop_oneof![
        3 => (1u32..20).prop_map(Deed::Start),
        6 => (any::<usize>(), outcome()).prop_map(|(which, outcome)| Deed::End(which, outcome)),
        1 => prop_oneof![1u64..50, 50u64..5_000, 5_000u64..100_000].prop_map(Deed::Wait),
    ];
    prop::collection::vec(deed, 0..300)
}

/// A lane, and what its shell knows of it.
struct Shell {
    lane: Lane,
    most: u32,
    now: u64,
    next: u64,
    flying: Vec<u64>,
}

impl Shell {
    fn new(most: u16) -> Self {
        let (id, account, url) = ("ep_a".parse().unwrap(), "acc_1".parse().unwrap(), "https://example.com/".to_owned());
        let endpoint = Endpoint::new(id, account, url, SecretText::from_random([7; 32]), 0);
        let endpoint = Endpoint { max_in_flight: most, revision: 1, ..endpoint };
        let policy = RetryPolicy::try_new(crate::facts::retry::RetrySettings::default()).unwrap();
        let lane = Lane::new(Standing::of(Arc::new(endpoint)), policy, 0);
        Self { lane, most: most.into(), now: 0, next: 0, flying: Vec::new() }
    }

    fn start(&mut self, at_most: u32) {
        for _ in 0..at_most {
            if self.lane.gate(self.now) != Gate::Open {
                return;
            }
            self.next += 1;
            self.lane.started(self.now, self.next);
            self.flying.push(self.next);
        }
    }

    fn end(&mut self, which: usize, outcome: &Outcome) {
        if self.flying.is_empty() {
            return;
        }
        let attempt = self.flying.remove(which % self.flying.len());
        let granted = self.lane.policy.granted(outcome, Duration::ZERO);
        let was = self.lane.breaker.view(self.now);
        let opened = self.lane.ended_attempt(self.now, &Ended { attempt, outcome, granted }, &SETTINGS, 0.5);
        if let BreakerView::Open { until } = self.lane.breaker.view(self.now)
            && opened
        {
            let pause = until - self.now;
            assert!((875..=52_500).contains(&pause), "{pause} ms from {was:?}");
        }
    }

    fn run(&mut self, deeds: Vec<Deed>) {
        for deed in deeds {
            match deed {
                Deed::Start(count) => self.start(count),
                Deed::End(which, outcome) => self.end(which, &outcome),
                Deed::Wait(ms) => self.now += ms,
            }
            self.check();
        }
    }

    fn check(&self) {
        let in_flight = self.flying.len() as u32;
        assert_eq!(self.lane.in_flight, in_flight);
        assert!(in_flight <= self.most, "{in_flight} are in flight, and {} may be", self.most);
        match self.lane.gate(self.now) {
            Gate::Open => assert!(in_flight < self.most),
            // What is in flight ends, and opens it.
            Gate::Busy => assert!(in_flight > 0, "nothing goes, and nothing will change that"),
            Gate::Later(at) => {
                assert!(at > self.now, "it opened at {at}, and it is {}", self.now);
                assert!(at <= self.now + MAX_REST_MS, "it opens at {at}, and it is {}", self.now);
            }
            Gate::Shut => panic!("the endpoint is enabled"),
        }
    }
}

proptest! {
    #[test]
    fn a_lane_never_starves_and_never_exceeds_its_limit(most in 1u16..50, deeds in deeds()) {
        Shell::new(most).run(deeds);
    }

    #[test]
    fn whatever_was_a_receiver_that_is_well_again_has_all_its_places_soon(most in 1u16..50, deeds in deeds()) {
        let mut shell = Shell::new(most);
        shell.run(deeds);
        // The longest rest, then round trips of 10 ms: with what is left of the rest for earlier failures, at most a
        // hundred.
        let mut rounds = 0;
        while shell.flying.len() < usize::from(most) {
            if let Gate::Later(at) = shell.lane.gate(shell.now) {
                shell.now = at;
            }
            shell.start(most.into());
            if shell.flying.len() == usize::from(most) {
                break;
            }
            shell.now += 10;
            (0..shell.flying.len()).for_each(|_| shell.end(0, &Outcome::Delivered { status: 200 }));
            shell.check();
            rounds += 1;
            prop_assert!(rounds <= 100, "it has {} places of {most}", shell.flying.len());
        }
    }
}

#[test]
fn what_failed_together_is_one_cut_and_no_rest() {
    let mut shell = Shell::new(40);
    while shell.lane.limiter.limit(40, &shell.lane.evidence) < 40 {
        shell.start(1);
        shell.end(0, &Outcome::Delivered { status: 200 });
    }
    shell.start(40);
    (0..4).for_each(|_| shell.end(0, &Outcome::Throttled { status: 503, retry_after: None }));
    assert_eq!(shell.lane.limiter.limit(40, &shell.lane.evidence), 38, "half a place each");
    (0..36).for_each(|_| shell.end(0, &Outcome::Delivered { status: 200 }));
    assert_eq!(shell.lane.gate(shell.now), Gate::Open);
}

#[test]
fn a_429_rests_a_moment_and_any_retry_after_as_long_as_it_says() {
    let rest = |status, retry_after| {
        let mut shell = Shell::new(10);
        shell.start(1);
        shell.end(0, &Outcome::Throttled { status, retry_after });
        match shell.lane.gate(shell.now) {
            Gate::Later(at) => at,
            _ => 0,
        }
    };
    assert_eq!([429, 502, 503, 504].map(|status| rest(status, None)), [MIN_REST_MS, 0, 0, 0]);
    let asked = Some(Duration::from_secs(7));
    assert_eq!([301, 408, 413, 425, 429, 500, 503].map(|status| rest(status, asked)), [7_000; 7]);
    assert_eq!(rest(503, Some(Duration::from_secs(86_400))), MAX_REST_MS);
}

/// Or what comes by way of a backlog without end, as an operator's redeliveries may, would keep everything else in the stream.
#[test]
fn nothing_waits_for_long_behind_a_backlog_that_does_not_end() {
    let mut shell = Shell::new(10);
    let counts = |lane: &mut Lane, now, parked| lane.counted(now, Unfinished { records: parked, parked, bytes: 0 });
    let lane = &mut shell.lane;
    for begun in [10, 100_000] {
        counts(lane, begun, 1);
        counts(lane, begun + 1_000, 1);
        assert!(lane.is_merely_full(begun + 1_000, 100));
        counts(lane, begun + 1_500, SMALL_BACKLOG);
        assert!(lane.is_merely_full(begun + CLEARING_MS - 1, 100));
        assert!(!lane.is_merely_full(begun + CLEARING_MS, 100));
        counts(lane, begun + 90_000, 0);
        assert!(!lane.is_merely_full(begun + 90_000, 100), "it is empty, and takes what comes");
    }
    counts(lane, 200_000, SMALL_BACKLOG + 1);
    assert!(!lane.is_merely_full(200_001, 100), "it has so many that they would keep an account waiting");
}
