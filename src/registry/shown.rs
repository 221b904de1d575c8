//! What a page of metrics shows of the registry. Counted when the page is asked for, on the thread that makes it.

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use super::Registry;
use crate::{
    facts::endpoint::{Endpoint, EndpointState},
    store::registry::stored::Lock,
    telemetry::exposition::Page,
};

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    pub enabled: u64,
    pub paused: u64,
    pub disabled: u64,
    pub locked: u64,
    pub unreadable: u64,
    /// Values, and not endpoints, from here on.
    pub sealed_values: u64,
    pub unsealed_values: u64,
    pub locked_values: u64,
}

impl Counts {
    pub fn add(&mut self, endpoint: &Endpoint) {
        match endpoint.status {
            EndpointState::Enabled => self.enabled += 1,
            EndpointState::Paused(_) => self.paused += 1,
            EndpointState::Disabled(_) => self.disabled += 1,
        }
        self.unsealed_values += endpoint.unsealed_values as u64;
        self.sealed_values += endpoint.secret_values().saturating_sub(endpoint.unsealed_values) as u64;
    }

    /// One that cannot be read.
    pub fn add_aside(&mut self, lock: Option<&Lock>) {
        match lock {
            Some(lock) => {
                self.locked += 1;
                self.locked_values += lock.values as u64;
            }
            None => self.unreadable += 1,
        }
    }
}

struct Shown(Registry);

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shown")
    }
}

impl Registry {
    /// The metrics of the endpoints, as this process knows them.
    pub fn page(&self) -> Page {
        let mut registry = prometheus_client::registry::Registry::with_prefix("herald");
        registry.register_collector(Box::new(Shown(self.clone())));
        Page::of(Arc::new(registry))
    }
}

impl Collector for Shown {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let help = "1 while an operator has stopped all sending, else 0.";
        let paused = encoder.encode_descriptor("sending_paused", help, None, MetricType::Gauge)?;
        ConstGauge::new(u64::from(self.0.paused_all().is_some())).encode(paused)?;
        let help = "How often changes of the registry that were known here were lost in Redis, and all was loaded anew";
        let taken_back = encoder.encode_descriptor("registry_taken_back", help, None, MetricType::Counter)?;
        ConstCounter::new(self.0.shared.taken_back.load(Ordering::Relaxed)).encode(taken_back)?;
        let counts = self.0.counts();
        let endpoints = [
            ("enabled", counts.enabled),
            ("paused", counts.paused),
            ("disabled", counts.disabled),
            ("locked", counts.locked),
            ("unreadable", counts.unreadable),
        ];
        by_state(&mut encoder, "endpoints", "Endpoints of the registry, by their state.", &endpoints)?;
        let values =
            [("sealed", counts.sealed_values), ("unsealed", counts.unsealed_values), ("locked", counts.locked_values)];
        by_state(
            &mut encoder,
            "secrets",
            "Secrets, values of headers and client keys of the registry, by how Redis holds them.",
            &values,
        )
    }
}

fn by_state(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, counts: &[(&str, u64)]) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    counts
        .iter()
        .try_for_each(|(state, count)| ConstGauge::new(*count).encode(metric.encode_family(&[("state", *state)])?))
}
