//! When the certificates end that this process uses. Like the log, there is one for the process: certificates are read in many
//! places, and none of them has to carry the metrics along.

use std::sync::LazyLock;

use prometheus_client::{
    metrics::{family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

static ENDS: LazyLock<Family<[(&'static str, &'static str); 1], Gauge>> = LazyLock::new(Family::default);

/// What a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// What the API shows to its callers.
    Api,
    /// What Redis has shown, and what it is shown.
    Redis,
    /// What receivers are shown.
    Endpoint,
}

impl Use {
    fn name(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Redis => "redis",
            Self::Endpoint => "endpoint",
        }
    }
}

/// The earliest end of those that are now in use, seconds since 1970; `None`: there is none.
pub fn shown(what: Use, not_after_s: Option<i64>) {
    let labels = [("use", what.name())];
    match not_after_s {
        Some(end) => drop(ENDS.get_or_create(&labels).set(end)),
        None => drop(ENDS.remove(&labels)),
    }
}

pub fn register(registry: &mut Registry) {
    let help = "When the first of the certificates in use ends, since 1970, by what they are for";
    registry.register_with_unit("certificate_not_after_timestamp", help, Unit::Seconds, ENDS.clone());
}
