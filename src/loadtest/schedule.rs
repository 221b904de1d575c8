//! When each event is to be sent: offsets from the load's beginning, computed beforehand and never moved by what became
//! of earlier events. Pure: takes a load and a seed.
//!
//! Stages are pieces of a rate that changes steadily, so the number of events up to a time is a known integral and
//! event `k` is where that integral is `k`: no sum of gaps, hence no drift. Poisson arrivals are the same with a
//! running sum of exponential draws instead of `k`, which is exact for a changing rate as well.

use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::scenario::{Arrivals, Load, Stage};

/// The most events of one run: the ledger counts them in 32 bits and keeps a hundred bytes for each delivery.
pub const MAX_EVENTS: u64 = 100_000_000;

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ScheduleError {
    #[error("the load has no stages; give it one, for example {{ for = \"10s\", rate = 1000 }}")]
    NoStages,
    #[error("stage {0} of the load has a rate that is negative or not a number")]
    Rate(usize),
    #[error("the load has no events: every stage is empty or has rate 0")]
    Empty,
    #[error("the load has {0:.0} events; at most {MAX_EVENTS} are possible: make it shorter or slower")]
    TooMany(f64),
}

/// A stage at its place on the time line.
#[derive(Debug, Clone, Copy)]
struct Piece {
    begins_s: f64,
    length_s: f64,
    /// Events before it.
    before: f64,
    /// Events in it.
    events: f64,
    rate: f64,
    /// How much the rate changes in a second.
    slope: f64,
}

impl Piece {
    /// When this many of its events are over: the root of `rate·t + slope·t²/2 = count`, in the form that loses no
    /// digits when the slope is small and does not divide by a rate of 0.
    fn time_of(&self, count: f64) -> f64 {
        let root = (self.rate * self.rate + 2.0 * self.slope * count).max(0.0).sqrt();
        let offset = if self.rate + root > 0.0 { 2.0 * count / (self.rate + root) } else { 0.0 };
        self.begins_s + offset.min(self.length_s)
    }
}

/// The intended offsets, in order.
#[derive(Debug)]
pub struct Schedule {
    pieces: Vec<Piece>,
    piece: usize,
    /// Where the next event is on the integral.
    next: f64,
    arrivals: Arrivals,
    rng: StdRng,
    total: f64,
}

impl Schedule {
    pub fn try_new(load: &Load, seed: u64) -> Result<Self, ScheduleError> {
        let (stages, arrivals) = match load {
            // All at once: a piece without length.
            Load::Drain { events } => {
                return Self::of(vec![at_once(*events as f64)], Arrivals::Even, seed);
            }
            Load::Open { stages, arrivals } => (stages, *arrivals),
        };
        if stages.is_empty() {
            return Err(ScheduleError::NoStages);
        }
        let mut pieces: Vec<Piece> = Vec::new();
        for (at, stage) in stages.iter().enumerate() {
            let (begins_s, before) =
                pieces.last().map_or((0.0, 0.0), |last| (last.begins_s + last.length_s, last.before + last.events));
            pieces.push(piece(stage, begins_s, before).ok_or(ScheduleError::Rate(at + 1))?);
        }
        Self::of(pieces, arrivals, seed)
    }

    fn of(pieces: Vec<Piece>, arrivals: Arrivals, seed: u64) -> Result<Self, ScheduleError> {
        let total = pieces.last().map_or(0.0, |last| last.before + last.events);
        if total > MAX_EVENTS as f64 {
            return Err(ScheduleError::TooMany(total));
        }
        if total <= 0.0 {
            return Err(ScheduleError::Empty);
        }
        let mut schedule = Self { pieces, piece: 0, next: 0.0, arrivals, rng: StdRng::seed_from_u64(seed), total };
        if arrivals == Arrivals::Poisson {
            schedule.next = schedule.gap();
        }
        Ok(schedule)
    }

    /// How many events there are; for Poisson arrivals, how many to expect.
    pub fn expected(&self) -> u64 {
        self.total.ceil() as u64
    }

    /// When the last stage ends.
    pub fn length(&self) -> Duration {
        self.pieces.last().map_or(Duration::ZERO, |last| Duration::from_secs_f64(last.begins_s + last.length_s))
    }

    /// The distance to the next event, on the integral.
    fn gap(&mut self) -> f64 {
        match self.arrivals {
            Arrivals::Even => 1.0,
            Arrivals::Poisson => -(1.0 - self.rng.random::<f64>()).ln(),
        }
    }
}

impl Iterator for Schedule {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let piece = loop {
            let piece = self.pieces.get(self.piece)?;
            if self.next < piece.before + piece.events {
                break *piece;
            }
            self.piece += 1;
        };
        let offset = piece.time_of(self.next - piece.before);
        self.next += self.gap();
        Some(Duration::from_secs_f64(offset))
    }
}

/// None if its rates are invalid.
fn piece(stage: &Stage, begins_s: f64, before: f64) -> Option<Piece> {
    let (rate, to, length_s) = (stage.rate, stage.to.unwrap_or(stage.rate), stage.length.as_secs_f64());
    let is_rate = |rate: f64| rate.is_finite() && rate >= 0.0;
    let slope = if length_s > 0.0 { (to - rate) / length_s } else { 0.0 };
    let events = (rate + to) / 2.0 * length_s;
    (is_rate(rate) && is_rate(to)).then_some(Piece { begins_s, length_s, before, events, rate, slope })
}

fn at_once(events: f64) -> Piece {
    Piece { begins_s: 0.0, length_s: 0.0, before: 0.0, events, rate: f64::MAX, slope: 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(seconds: u64, rate: f64, to: Option<f64>) -> Stage {
        Stage { length: Duration::from_secs(seconds), rate, to }
    }

    fn open(stages: Vec<Stage>, arrivals: Arrivals) -> Schedule {
        Schedule::try_new(&Load::Open { stages, arrivals }, 7).unwrap()
    }

    #[test]
    fn a_constant_rate_does_not_drift_over_an_hour() {
        let schedule = open(vec![stage(3600, 333.0, None)], Arrivals::Even);
        assert_eq!(schedule.expected(), 3600 * 333);
        let (count, last) = schedule.enumerate().last().map(|(at, offset)| (at + 1, offset)).unwrap();
        assert_eq!(count, 3600 * 333);
        let exact = (3600.0 * 333.0 - 1.0) / 333.0;
        assert!((last.as_secs_f64() - exact).abs() < 1e-6, "{last:?}");
    }

    #[test]
    fn a_ramp_has_the_integral_of_its_rate_at_every_time() {
        // From nothing to 1 000 a second in 10 s: t²·50 events up to t.
        let offsets: Vec<f64> =
            open(vec![stage(10, 0.0, Some(1000.0))], Arrivals::Even).map(|offset| offset.as_secs_f64()).collect();
        assert_eq!(offsets.len(), 5000);
        for t in [1.0, 2.5, 5.0, 9.0] {
            let up_to = offsets.iter().filter(|offset| **offset < t).count() as f64;
            assert!((up_to - 50.0 * t * t).abs() <= 1.0, "{up_to} up to {t}");
        }
        assert!(offsets.is_sorted());
        // And down again, to zero.
        let down = open(vec![stage(10, 1000.0, Some(0.0))], Arrivals::Even).last().unwrap();
        assert!((9.0..=10.0).contains(&down.as_secs_f64()), "{down:?}");
    }

    #[test]
    fn stages_follow_each_other_and_a_pause_is_one_of_them() {
        let spike = open(vec![stage(2, 10.0, None), stage(3, 0.0, None), stage(1, 500.0, None)], Arrivals::Even);
        let offsets: Vec<Duration> = spike.collect();
        let within = |from: u64, to: u64| {
            let span = Duration::from_secs(from)..Duration::from_secs(to);
            offsets.iter().filter(|offset| span.contains(*offset)).count()
        };
        assert_eq!((within(0, 2), within(2, 5), within(5, 6), offsets.len()), (20, 0, 500, 520));
    }

    #[test]
    fn poisson_gaps_have_the_mean_and_the_spread_of_an_exponential() {
        let offsets: Vec<f64> =
            open(vec![stage(100, 1000.0, None)], Arrivals::Poisson).map(|offset| offset.as_secs_f64()).collect();
        let gaps: Vec<f64> = offsets.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let deviation = (gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64).sqrt();
        assert!((mean - 0.001).abs() < 0.000_02, "{mean}");
        assert!((deviation - 0.001).abs() < 0.000_04, "{deviation}");
    }

    #[test]
    fn poisson_arrivals_follow_a_ramp() {
        let half = open(vec![stage(100, 0.0, Some(1000.0))], Arrivals::Poisson)
            .filter(|offset| offset.as_secs_f64() < 50.0)
            .count() as f64;
        // A quarter of 50 000, give or take four deviations.
        assert!((half - 12_500.0).abs() < 450.0, "{half}");
    }

    #[test]
    fn the_seed_alone_decides() {
        let load = Load::Open { stages: vec![stage(1, 100.0, None)], arrivals: Arrivals::Poisson };
        let draw = |seed| Schedule::try_new(&load, seed).unwrap().collect::<Vec<_>>();
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn a_drain_is_all_at_once() {
        let drain = Schedule::try_new(&Load::Drain { events: 1000 }, 1).unwrap();
        assert_eq!((drain.expected(), drain.length()), (1000, Duration::ZERO));
        assert_eq!(drain.filter(Duration::is_zero).count(), 1000);
    }

    #[test]
    fn a_load_that_makes_no_sense_is_refused() {
        let refused = |stages| Schedule::try_new(&Load::Open { stages, arrivals: Arrivals::Even }, 1).unwrap_err();
        assert_eq!(refused(vec![]), ScheduleError::NoStages);
        assert_eq!(refused(vec![stage(1, 5.0, None), stage(1, f64::NAN, None)]), ScheduleError::Rate(2));
        assert_eq!(refused(vec![stage(1, 5.0, Some(-1.0))]), ScheduleError::Rate(1));
        assert_eq!(refused(vec![stage(0, 5.0, None)]), ScheduleError::Empty);
        assert!(matches!(refused(vec![stage(3600, 1e9, None)]), ScheduleError::TooMany(_)));
    }
}
