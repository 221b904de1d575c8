//! The metrics of a service of payment intents. They are on a page only where intents are served; `docs/design.md` has them in
//! the table of all.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use super::exposition::Page;

/// Seconds, fine around the goal (a creation within 5 ms), coarse up to the longest request.
const REQUEST_BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0];

/// What became of a command that somebody gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Done,
    /// It was done before, and is answered as it was then.
    Repeated,
    Refused,
    /// Redis is full or away, or too many change the same intent: whoever gave it has to try again.
    Unavailable,
    /// Something is wrong with what is stored.
    Failed,
}

impl Ended {
    const ALL: [Self; 5] = [Self::Done, Self::Repeated, Self::Refused, Self::Unavailable, Self::Failed];

    fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Repeated => "repeated",
            Self::Refused => "refused",
            Self::Unavailable => "unavailable",
            Self::Failed => "failed",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StatusLabel {
    status: &'static str,
}

/// The first digit of a status code, from 1xx.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// Cheap to clone; all clones count together.
#[derive(Debug, Clone, Default)]
pub struct IntentMetrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Arc<Registry>,
    /// In the order of [`Ended::ALL`], which is that of its variants.
    changes: [Counter; Ended::ALL.len()],
    conflicts: Counter,
    deadlines_fired: Counter,
    oldest_due: Gauge<u64, AtomicU64>,
    /// In the order of [`CLASSES`].
    requests: [Histogram; CLASSES.len()],
}

impl Default for Inner {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("herald_intents");
        let changes = Family::<ResultLabel, Counter>::default();
        registry.register("changes", "Commands on payment intents, by what became of them", changes.clone());
        let (conflicts, deadlines_fired) = (Counter::default(), Counter::default());
        let help = "Times that a command was decided anew because somebody else had changed its payment intent";
        registry.register("conflicts", help, conflicts.clone());
        registry.register("deadlines_fired", "Deadlines of payment intents that were applied", deadlines_fired.clone());
        let oldest_due = Gauge::default();
        let help = "For how long, by the intents' clock, the most overdue deadline has passed, else 0";
        registry.register_with_unit("oldest_due_deadline_age", help, Unit::Seconds, oldest_due.clone());
        let requests = Family::<StatusLabel, Histogram>::new_with_constructor(|| Histogram::new(REQUEST_BUCKETS));
        let help = "Whole requests, from the head to the answer, by the class of its status";
        registry.register_with_unit("request_duration", help, Unit::Seconds, requests.clone());
        Self {
            registry: Arc::new(registry),
            changes: Ended::ALL.map(|ended| changes.get_or_create_owned(&ResultLabel { result: ended.name() })),
            conflicts,
            deadlines_fired,
            oldest_due,
            requests: CLASSES.map(|status| requests.get_or_create_owned(&StatusLabel { status })),
        }
    }
}

impl IntentMetrics {
    pub fn page(&self) -> Page {
        Page::of(Arc::clone(&self.0.registry))
    }

    pub fn ended(&self, ended: Ended) {
        self.0.changes[ended as usize].inc();
    }

    /// Somebody else was quicker, so a command is decided anew.
    pub fn conflict(&self) {
        self.0.conflicts.inc();
    }

    pub fn deadline_fired(&self) {
        self.0.deadlines_fired.inc();
    }

    /// For how long the most overdue deadline has passed.
    pub fn set_overdue(&self, seconds: u64) {
        self.0.oldest_due.set(seconds);
    }

    /// A request was answered with this status code.
    pub fn answered(&self, code: u16, took: Duration) {
        let class = usize::from(code / 100).saturating_sub(1).min(CLASSES.len() - 1);
        self.0.requests[class].observe(took.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::exposition::Format;

    #[test]
    fn everything_is_counted_under_its_own_name_and_there_from_the_start() {
        let metrics = IntentMetrics::default();
        let page = || metrics.page().encode(Format::Text);
        let has = |line: &str| assert!(page().lines().any(|found| found == line), "{line} is not in\n{}", page());
        for ended in Ended::ALL {
            has(&format!("herald_intents_changes_total{{result=\"{}\"}} 0", ended.name()));
            metrics.ended(ended);
            has(&format!("herald_intents_changes_total{{result=\"{}\"}} 1", ended.name()));
        }
        has("herald_intents_request_duration_seconds_count{status=\"5xx\"} 0");
        metrics.clone().answered(503, Duration::from_millis(3));
        metrics.answered(404, Duration::from_millis(3));
        has("herald_intents_request_duration_seconds_count{status=\"5xx\"} 1");
        has("herald_intents_request_duration_seconds_bucket{le=\"0.005\",status=\"4xx\"} 1");
        metrics.conflict();
        metrics.deadline_fired();
        metrics.set_overdue(7);
        has("herald_intents_conflicts_total 1");
        has("herald_intents_deadlines_fired_total 1");
        has("herald_intents_oldest_due_deadline_age_seconds 7");
    }
}
