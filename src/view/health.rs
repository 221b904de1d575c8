//! How an endpoint's receiver does, as it is shown: what its owner published, and what waits in Redis. Whoever shows it says how old it
//! is, and whether anybody still writes it.

use serde::Serialize;
use utoipa::ToSchema;

use super::{Viewer, time::Time};
use crate::{
    facts::{
        diagnosis::Diagnosis,
        health::{BreakerState, CauseSeen, Count, Health, Totals, Verdict, Waiting},
        id::EndpointId,
    },
    store::{error::StoreError, queries::Partitions},
};

#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct HealthView {
    /// failing, unsteady, well or idle; null where no owner has ever seen an attempt there.
    pub verdict: Option<&'static str>,
    /// When its owner last wrote it.
    pub as_of: Option<Time>,
    /// Whether a worker owns the partition, and so keeps this up to date.
    pub has_owner: bool,
    pub breaker: Option<BreakerView>,
    /// How many attempts may be under way.
    pub window: Option<u32>,
    /// How many attempts are under way.
    pub in_flight: Option<u32>,
    pub last_15_minutes: TotalsView,
    pub last_day: TotalsView,
    pub last_success_at: Option<Time>,
    /// Since when no attempt has succeeded; null while it does not fail. For merchants to the minute.
    pub failing_since: Option<Time>,
    /// Attempts that failed since then.
    pub failed_since: u64,
    /// The last attempt that failed, within a day.
    pub last_failure: Option<FailureView>,
    /// Events that it was not owed, because it was disabled.
    pub skipped: Option<SkippedView>,
    /// Deliveries that are not over.
    pub unfinished: u64,
    /// Of these, those that wait for the endpoint to take more.
    pub parked: u64,
    /// Dead letters.
    pub letters: u64,
    /// The oldest unfinished delivery. In lists it is not looked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub struct BreakerView {
    /// closed, open or half_open.
    pub state: &'static str,
    /// Of an open one: the next probe goes out then, if there is something to send.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_probe_at: Option<Time>,
    /// Of a half-open one: so many probes may be out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probes: Option<u32>,
}

/// Attempts of a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, ToSchema)]
pub struct TotalsView {
    pub delivered: u64,
    pub failed: u64,
    /// Per cent, rounded down, so that 100 means all. Null without an attempt.
    pub success_percent: Option<u64>,
    /// How long those took that delivered.
    pub mean_ms: Option<u64>,
    pub slowest_ms: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct FailureView {
    /// A class, or a class and its kind: `server_failed:500`.
    pub cause: String,
    /// When it ended. For merchants to the minute.
    pub at: Time,
    pub delivery: String,
    /// What that means, as a clause that goes on from the endpoint's name. This and the next for operators.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub says: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schema(required = false)]
    pub detail: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct SkippedView {
    pub count: u64,
    pub first_at: Time,
    pub last_at: Time,
}

impl HealthView {
    pub fn of(
        endpoint: &EndpointId,
        health: Option<&Health>,
        waiting: &Waiting,
        has_owner: bool,
        viewer: Viewer,
        now_ms: u64,
    ) -> Self {
        let last_failure = health.and_then(Health::last_failure);
        Self {
            verdict: health.map(|health| health.verdict(now_ms).name()),
            as_of: health.map(|health| Time(health.at_ms)),
            has_owner,
            breaker: health.map(|health| BreakerView::of(health.breaker)),
            window: health.map(|health| health.window),
            in_flight: health.map(|health| health.in_flight),
            last_15_minutes: health.map(|health| TotalsView::of(health.last_minutes(now_ms))).unwrap_or_default(),
            last_day: health.map(|health| TotalsView::of(health.last_day(now_ms))).unwrap_or_default(),
            last_success_at: health.and_then(|health| health.last_success_ms).map(Time),
            failing_since: health.and_then(|health| health.failing_since_ms).map(|ms| Time(viewer.end_ms(ms))),
            failed_since: health.map_or(0, |health| health.failed_since),
            last_failure: last_failure.map(|seen| FailureView::of(seen, endpoint, viewer)),
            skipped: health.and_then(|health| health.skipped).map(SkippedView::of),
            unfinished: waiting.unfinished,
            parked: waiting.parked,
            letters: waiting.letters,
            oldest: waiting.oldest.as_ref().map(ToString::to_string),
        }
    }

    pub fn is(&self, verdict: Verdict) -> bool {
        self.verdict == Some(verdict.name())
    }
}

impl BreakerView {
    fn of(state: BreakerState) -> Self {
        let (state, next_probe_at, probes) = match state {
            BreakerState::Closed => ("closed", None, None),
            BreakerState::Open { next_probe_ms } => ("open", Some(Time(next_probe_ms)), None),
            BreakerState::HalfOpen { probes } => ("half_open", None, Some(probes)),
        };
        Self { state, next_probe_at, probes }
    }
}

impl TotalsView {
    fn of(totals: Totals) -> Self {
        let Totals { delivered, failed, success_percent, mean_ms, slowest_ms } = totals;
        Self { delivered, failed, success_percent, mean_ms, slowest_ms }
    }
}

impl FailureView {
    fn of(seen: &CauseSeen, endpoint: &EndpointId, viewer: Viewer) -> Self {
        Self {
            cause: viewer.cause(seen.cause.as_str()),
            at: Time(viewer.end_ms(seen.last_ms)),
            delivery: seen.sample.to_string(),
            says: viewer.is_operator().then(|| Diagnosis::of(&seen.cause, endpoint).what),
            detail: if viewer.is_operator() { seen.detail.clone() } else { String::new() },
        }
    }
}

impl SkippedView {
    fn of(count: Count) -> Self {
        let Count { count, first_ms, last_ms } = count;
        Self { count, first_at: Time(first_ms), last_at: Time(last_ms) }
    }
}

/// How several endpoints do, in their order, by Redis' clock.
pub async fn of_many(
    queries: &mut Partitions,
    endpoints: &[EndpointId],
    viewer: Viewer,
) -> Result<Vec<HealthView>, StoreError> {
    let (has_owner, now_ms) = (queries.are_owned(None).await?, queries.now_ms().await?);
    let health = queries.health_of(endpoints).await?;
    let waiting = queries.waiting_of(endpoints).await?;
    let all = endpoints.iter().zip(health).zip(waiting);
    let view = |((endpoint, health), waiting): ((&EndpointId, Option<Health>), Waiting)| {
        HealthView::of(endpoint, health.as_ref(), &waiting, has_owner, viewer, now_ms)
    };
    Ok(all.map(view).collect())
}

/// How one endpoint does, with the oldest that waits for it.
pub async fn of_one(queries: &mut Partitions, endpoint: &EndpointId, viewer: Viewer) -> Result<HealthView, StoreError> {
    let (has_owner, now_ms) = (queries.are_owned(Some(endpoint)).await?, queries.now_ms().await?);
    let health = queries.health_of(std::slice::from_ref(endpoint)).await?.pop().flatten();
    let waiting = queries.waiting_with_oldest(endpoint).await?;
    Ok(HealthView::of(endpoint, health.as_ref(), &waiting, has_owner, viewer, now_ms))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::health::Seen;

    #[test]
    fn a_merchant_sees_that_an_endpoint_fails_and_not_how_a_network_looks_within() {
        let (endpoint, sample) = ("ep_a".parse().unwrap(), "7-1:ep_a".parse().unwrap());
        let (now_ms, mut seen) = (1_800_000_004_001, Seen::default());
        (0..6).for_each(|_| seen.failed(now_ms, "dns_failed".parse().unwrap(), &sample, "db.internal: no such name"));
        let mut health = Health::new(now_ms);
        health.add(now_ms, seen);
        let view = |viewer| {
            let view = HealthView::of(&endpoint, Some(&health), &Waiting::default(), true, viewer, now_ms);
            serde_json::to_value(view).unwrap()
        };
        let (operator, merchant) = (view(Viewer::Operator), view(Viewer::Merchant));
        assert_eq!((&operator["verdict"], &merchant["verdict"]), (&"failing".into(), &"failing".into()));
        assert_eq!(operator["last_failure"]["cause"], "dns_failed");
        assert!(operator["last_failure"]["detail"].as_str().unwrap().contains("db.internal"));
        assert_eq!(merchant["last_failure"]["cause"], "unreachable");
        assert!(!merchant.to_string().contains("internal") && merchant["last_failure"].get("says").is_none());
        // When it ended tells, beside when it began, whether a port is closed or silent.
        for (view, at) in [(&merchant, "2027-01-15T08:00:00.000Z"), (&operator, "2027-01-15T08:00:04.001Z")] {
            assert_eq!((&view["failing_since"], &view["last_failure"]["at"]), (&at.into(), &at.into()));
        }
    }
}
