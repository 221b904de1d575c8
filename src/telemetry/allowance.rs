//! How many lines each place in the code may log in a minute. Where thousands of deliveries fail alike, the first
//! hundred lines say what the rest would; the rest is left out, and one line a minute says how many. Counts lines,
//! never events: metrics and the attempt log have all of those.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::{Duration, Instant},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};
use tracing::{Event, Level, Metadata, Subscriber, callsite::Identifier};
use tracing_subscriber::{Layer, layer::Context};

use crate::clock;

/// How long an allowance lasts, and how often the left-out lines are reported.
pub const SPAN: Duration = Duration::from_secs(60);

/// Lines of one place in that time: more than anyone reads, and few enough for the smallest disk (some 30 MB a day).
pub const LINES: u32 = 100;

/// By the place that logs. The places are in the code, so their number is bounded.
#[derive(Clone, Default)]
pub struct Allowance(Arc<Mutex<HashMap<Identifier, Place>>>);

struct Place {
    metadata: &'static Metadata<'static>,
    since: Instant,
    lines: u32,
    left_out: u64,
}

/// Lines of one place that were left out.
#[derive(Debug, PartialEq, Eq)]
pub struct LeftOut {
    pub file: &'static str,
    pub line: u32,
    pub lines: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LevelLabel {
    level: &'static str,
}

/// By [`level_slot`].
const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

/// For this process, like the logger itself.
static LOGGED: LazyLock<(Family<LevelLabel, Counter>, [Counter; LEVELS.len()])> = LazyLock::new(|| {
    let family = Family::<LevelLabel, Counter>::default();
    let by_level = LEVELS.map(|level| family.get_or_create_owned(&LevelLabel { level }));
    (family, by_level)
});

/// Lines that were logged.
pub(super) fn logged() -> Family<LevelLabel, Counter> {
    LOGGED.0.clone()
}

fn level_slot(level: Level) -> usize {
    match level {
        Level::ERROR => 0,
        Level::WARN => 1,
        Level::INFO => 2,
        Level::DEBUG => 3,
        Level::TRACE => 4,
    }
}

impl Allowance {
    /// Whether another line from there may be written. Debug and trace were asked for by name, so they have no
    /// allowance.
    fn may_log(&self, metadata: &'static Metadata<'static>, now: Instant) -> bool {
        if *metadata.level() > Level::INFO {
            return true;
        }
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = || Place { metadata, since: now, lines: 0, left_out: 0 };
        let place = places.entry(metadata.callsite()).or_insert_with(fresh);
        if now.saturating_duration_since(place.since) >= SPAN {
            (place.since, place.lines) = (now, 0);
        }
        let may = place.lines < LINES;
        match may {
            true => place.lines += 1,
            false => place.left_out += 1,
        }
        may
    }

    /// The lines left out since the last call.
    pub fn take_left_out(&self) -> Vec<LeftOut> {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = places.values_mut().filter(|place| place.left_out > 0).map(|place| LeftOut {
            file: place.metadata.file().unwrap_or_default(),
            line: place.metadata.line().unwrap_or_default(),
            lines: std::mem::take(&mut place.left_out),
        });
        taken.collect()
    }
}

impl<S: Subscriber> Layer<S> for Allowance {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let may = self.may_log(event.metadata(), clock::now());
        if may {
            LOGGED.1[level_slot(*event.metadata().level())].inc();
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The places of this test, as a subscriber sees them.
    fn places() -> Vec<&'static Metadata<'static>> {
        #[derive(Clone, Default)]
        struct Seen(Arc<Mutex<Vec<&'static Metadata<'static>>>>);
        impl<S: Subscriber> Layer<S> for Seen {
            fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
                self.0.lock().unwrap().push(event.metadata());
            }
        }
        let seen = Seen::default();
        let subscriber = tracing_subscriber::layer::SubscriberExt::with(tracing_subscriber::registry(), seen.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!("one");
            tracing::info!("two");
            tracing::debug!("three");
        });
        let seen = seen.0.lock().unwrap().clone();
        assert_eq!(seen.len(), 3);
        seen
    }

    #[test]
    fn each_place_has_its_allowance_and_what_is_left_out_is_told_once() {
        let (places, allowance, now) = (places(), Allowance::default(), clock::now());
        let written = |place: usize, at: Instant| (0..250).filter(|_| allowance.may_log(places[place], at)).count();
        assert_eq!((written(0, now), written(1, now), written(2, now)), (100, 100, 250));
        let mut left_out = allowance.take_left_out();
        left_out.sort_by_key(|one| one.line);
        assert!(left_out.iter().all(|one| one.lines == 150 && one.file.ends_with("allowance.rs")), "{left_out:?}");
        assert_eq!(left_out.len(), 2);
        assert_eq!(allowance.take_left_out(), []);
        assert_eq!(written(0, now + SPAN - Duration::from_millis(1)), 0);
        assert_eq!(written(0, now + SPAN), 100);
    }
}
