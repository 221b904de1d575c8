//! Requests over HTTP that this process has answered, by the template of their route: what stands in a path is in no label. Like
//! the log, there is one for the process. A series comes with its first request: most routes are never asked.

use std::{sync::LazyLock, time::Duration};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::{Registry, Unit},
};

/// Seconds, from what is answered from memory to the longest request.
const REQUEST_BUCKETS: [f64; 11] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 10.0, 60.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: String,
    method: &'static str,
    status: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabel {
    route: String,
}

type Durations = Family<RouteLabel, Histogram, fn() -> Histogram>;

static REQUESTS: LazyLock<Family<RequestLabels, Counter>> = LazyLock::new(Family::default);
static DURATIONS: LazyLock<Durations> =
    LazyLock::new(|| Family::new_with_constructor((|| Histogram::new(REQUEST_BUCKETS)) as fn() -> Histogram));

/// `route` is None where there is nothing.
pub fn answered(route: Option<&str>, method: &str, code: u16, took: Duration) {
    let route = route.unwrap_or("none").to_owned();
    let method = known(method).unwrap_or("other");
    let status = match code / 100 {
        1 => "1xx",
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        _ => "5xx",
    };
    DURATIONS.get_or_create(&RouteLabel { route: route.clone() }).observe(took.as_secs_f64());
    REQUESTS.get_or_create(&RequestLabels { route, method, status }).inc();
}

/// One of the methods that there are.
pub fn known(method: &str) -> Option<&'static str> {
    const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    METHODS.into_iter().find(|known| *known == method)
}

pub(super) fn register(registry: &mut Registry) {
    registry.register("http_requests", "Requests over HTTP that were answered", REQUESTS.clone());
    let help = "Whole requests over HTTP, from the head to the answer";
    registry.register_with_unit("http_request_duration", help, Unit::Seconds, DURATIONS.clone());
}
