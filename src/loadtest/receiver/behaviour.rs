//! What a receiver does with a request: by its profile, by what it has seen before and by the seed. Pure.

use std::time::Duration;

use crate::loadtest::{
    draw,
    scenario::{Failure, Often, Profile},
};

/// The 99th percentile of the normal distribution, in deviations.
const P99_DEVIATIONS: f64 = 2.326_347_87;

/// No receiver thinks longer than Herald can wait.
const MAX_DELAY: Duration = Duration::from_secs(120);

/// One way to end a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reaction {
    Accept {
        after: Duration,
    },
    /// This status, and a `Retry-After` of this many seconds.
    Refuse {
        status: u16,
        retry_after_s: Option<u64>,
    },
    Gone,
    Redirect,
    Hang,
    Reset,
    Truncate,
    /// 200, then a body without an end.
    Flood,
    /// Interim answers without an end.
    Hint,
}

/// What a behaviour may depend on.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    pub seed: u64,
    pub event: u32,
    pub endpoint: u32,
    /// As the request says.
    pub attempt: u32,
    /// Which arrival of its delivery this is, from 1.
    pub arrival: u16,
    /// Deliveries that the endpoint has acknowledged so far.
    pub acknowledged: u64,
    /// Since the load began.
    pub at: Duration,
}

pub fn react(profile: &Profile, moment: &Moment) -> Reaction {
    let refuse = |status| Reaction::Refuse { status, retry_after_s: None };
    let at_once = Reaction::Accept { after: Duration::ZERO };
    match profile {
        Profile::Healthy { median, p99 } => Reaction::Accept { after: thinking(*median, *p99, moment) },
        Profile::Slow { after } => Reaction::Accept { after: *after },
        Profile::Hanging => Reaction::Hang,
        Profile::Flaky { p } if draw::chance(&parts(moment, 0xF1A4)) < *p => refuse(500),
        Profile::Flaky { .. } => at_once,
        Profile::Imperfect { failure, often, .. } if fails(often, moment) => match failure {
            Failure::Status500 => refuse(500),
            Failure::Status503 => refuse(503),
            Failure::Reset => Reaction::Reset,
        },
        Profile::Imperfect { after, .. } | Profile::Fleeting { after, .. } => Reaction::Accept { after: *after },
        Profile::Healing { at, .. } if moment.at < *at => refuse(503),
        Profile::Healing { after, .. } => Reaction::Accept { after: *after },
        Profile::Failing => refuse(500),
        Profile::Throttling { retry_after } if moment.arrival == 1 => {
            // The header counts whole seconds.
            Reaction::Refuse { status: 429, retry_after_s: Some(retry_after.as_millis().div_ceil(1000) as u64) }
        }
        Profile::Throttling { .. } => at_once,
        Profile::Gone { after } if moment.acknowledged >= *after => Reaction::Gone,
        Profile::Gone { .. } => at_once,
        Profile::Redirecting => Reaction::Redirect,
        Profile::Resetting => Reaction::Reset,
        Profile::Truncating => Reaction::Truncate,
        Profile::HugeBody => Reaction::Flood,
        Profile::Flooding => Reaction::Hint,
        // Clients that check certificates do not get here.
        Profile::BrokenTls => refuse(500),
    }
}

fn fails(often: &Often, moment: &Moment) -> bool {
    match often {
        Often::Random { p } => draw::chance(&parts(moment, 0x1FE7)) < *p,
        // Never at the load's very beginning.
        Often::Spells { length, every } => {
            let within = moment.at.as_micros() % every.as_micros().max(1);
            within >= every.saturating_sub(*length).as_micros()
        }
    }
}

/// Log-normal: most answer soon, some take long, none takes a negative time.
fn thinking(median: Duration, p99: Duration, moment: &Moment) -> Duration {
    if median.is_zero() {
        return Duration::ZERO;
    }
    let deviation = (p99.as_secs_f64() / median.as_secs_f64()).ln() / P99_DEVIATIONS;
    let seconds = median.as_secs_f64() * (deviation * draw::normal(&parts(moment, 0x1A7E))).exp();
    Duration::from_secs_f64(seconds.min(MAX_DELAY.as_secs_f64()))
}

/// An attempt's own draw for one purpose.
fn parts(moment: &Moment, purpose: u64) -> [u64; 5] {
    [moment.seed, purpose, u64::from(moment.event), u64::from(moment.endpoint), u64::from(moment.attempt)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(event: u32) -> Moment {
        let at = Duration::from_secs(1);
        Moment { seed: 7, event, endpoint: 3, attempt: 1, arrival: 1, acknowledged: 0, at }
    }

    #[test]
    fn a_healthy_receiver_thinks_as_long_as_its_distribution_says() {
        let (median, p99) = (Duration::from_millis(20), Duration::from_millis(200));
        let profile = Profile::Healthy { median, p99 };
        let mut times: Vec<Duration> = (0..20_000)
            .map(|event| match react(&profile, &moment(event)) {
                Reaction::Accept { after } => after,
                other => panic!("{other:?}"),
            })
            .collect();
        times.sort();
        let at = |share: f64| times[(share * times.len() as f64) as usize].as_secs_f64() * 1e3;
        assert!((19.0..21.0).contains(&at(0.5)), "{}", at(0.5));
        assert!((180.0..222.0).contains(&at(0.99)), "{}", at(0.99));
        let at_once = Profile::Healthy { median: Duration::ZERO, p99: Duration::ZERO };
        assert_eq!(react(&at_once, &moment(1)), Reaction::Accept { after: Duration::ZERO });
    }

    #[test]
    fn a_flaky_receiver_fails_as_often_as_it_should_and_the_same_way_again() {
        let profile = Profile::Flaky { p: 0.3 };
        let fails = |event| react(&profile, &moment(event)) != Reaction::Accept { after: Duration::ZERO };
        let count = (0..10_000).filter(|event| fails(*event)).count();
        assert!((2_800..3_200).contains(&count), "{count}");
        assert!((0..100).all(|event| fails(event) == fails(event)));
        let again = (0..1000).filter(|event| {
            let later = Moment { attempt: 2, ..moment(*event) };
            react(&profile, &later) == react(&profile, &moment(*event))
        });
        assert!(again.count() < 700, "an attempt is a draw of its own");
    }

    #[test]
    fn profiles_change_when_they_say_so() {
        let healing = Profile::Healing { at: Duration::from_secs(5), after: Duration::ZERO };
        let at = |seconds| react(&healing, &Moment { at: Duration::from_secs(seconds), ..moment(1) });
        assert_eq!(at(4), Reaction::Refuse { status: 503, retry_after_s: None });
        assert_eq!(at(5), Reaction::Accept { after: Duration::ZERO });
        let gone = Profile::Gone { after: 2 };
        let after = |acknowledged| react(&gone, &Moment { acknowledged, ..moment(1) });
        assert_eq!((after(1), after(2)), (Reaction::Accept { after: Duration::ZERO }, Reaction::Gone));
        let throttling = Profile::Throttling { retry_after: Duration::from_millis(1200) };
        let arrival = |arrival| react(&throttling, &Moment { arrival, ..moment(1) });
        assert_eq!(arrival(1), Reaction::Refuse { status: 429, retry_after_s: Some(2) });
        assert_eq!(arrival(2), Reaction::Accept { after: Duration::ZERO });
    }

    #[test]
    fn an_imperfect_receiver_fails_as_often_as_it_says_and_thinks_as_long_as_its_twin() {
        let ms = Duration::from_millis;
        let imperfect = |failure, often| Profile::Imperfect { after: ms(10), failure, often, goodput: 0.9 };
        let failing = |profile: &Profile, at| {
            let all = (0..10_000).map(|event| react(profile, &Moment { at, ..moment(event) }));
            all.filter(|reaction| *reaction != Reaction::Accept { after: ms(10) }).count()
        };
        let random = imperfect(Failure::Reset, Often::Random { p: 0.05 });
        assert!((400..600).contains(&failing(&random, ms(0))));
        let spells = imperfect(Failure::Status503, Often::Spells { length: ms(200), every: ms(2_000) });
        assert_eq!(
            [0, 1_799, 1_800, 1_999, 2_000, 3_799, 3_800].map(|at| failing(&spells, ms(at))),
            [0, 0, 10_000, 10_000, 0, 0, 10_000]
        );
    }
}
