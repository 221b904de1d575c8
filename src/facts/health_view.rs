//! What is shown of an endpoint's health: the same by every surface. Whoever shows it says how old it is, and whether anybody still
//! writes it.

use serde::Serialize;

use super::{
    diagnosis::Diagnosis,
    health::{BreakerState, Count, Health, Totals, Verdict},
    id::{DeliveryId, EndpointId},
    letter::Cause,
};

/// What Redis says of an endpoint beside its health.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Waiting {
    pub unfinished: u64,
    pub parked: u64,
    pub letters: u64,
    /// The oldest unfinished delivery, where somebody has looked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest: Option<DeliveryId>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HealthView {
    /// None: no owner has ever seen an attempt there.
    pub verdict: Option<Verdict>,
    /// When its owner last wrote it.
    pub as_of_ms: Option<u64>,
    /// Whether a worker owns the partition, and so keeps this up to date.
    pub has_owner: bool,
    pub breaker: Option<BreakerState>,
    /// How many attempts may be under way, and how many are.
    pub window: Option<u32>,
    pub in_flight: Option<u32>,
    pub last_15_minutes: Totals,
    pub last_day: Totals,
    pub last_success_ms: Option<u64>,
    pub failing_since_ms: Option<u64>,
    pub failed_since: u64,
    pub last_failure: Option<FailureView>,
    pub skipped: Option<Count>,
    #[serde(flatten)]
    pub waiting: Waiting,
}

/// The last attempt that failed, within a day.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FailureView {
    pub cause: Cause,
    pub at_ms: u64,
    pub says: String,
    pub delivery: DeliveryId,
    pub detail: String,
}

impl HealthView {
    pub fn of(endpoint: &EndpointId, health: Option<&Health>, waiting: Waiting, has_owner: bool, now_ms: u64) -> Self {
        let last_failure = health.and_then(Health::last_failure).map(|seen| FailureView {
            cause: seen.cause.clone(),
            at_ms: seen.last_ms,
            says: Diagnosis::of(&seen.cause, endpoint).what,
            delivery: seen.sample.clone(),
            detail: seen.detail.clone(),
        });
        Self {
            verdict: health.map(|health| health.verdict(now_ms)),
            as_of_ms: health.map(|health| health.at_ms),
            has_owner,
            breaker: health.map(|health| health.breaker),
            window: health.map(|health| health.window),
            in_flight: health.map(|health| health.in_flight),
            last_15_minutes: health.map(|health| health.last_minutes(now_ms)).unwrap_or_default(),
            last_day: health.map(|health| health.last_day(now_ms)).unwrap_or_default(),
            last_success_ms: health.and_then(|health| health.last_success_ms),
            failing_since_ms: health.and_then(|health| health.failing_since_ms),
            failed_since: health.map_or(0, |health| health.failed_since),
            last_failure,
            skipped: health.and_then(|health| health.skipped),
            waiting,
        }
    }

    pub fn word(&self) -> &'static str {
        self.verdict.map_or("unknown", Verdict::name)
    }
}
