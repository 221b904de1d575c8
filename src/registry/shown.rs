//! What a page of metrics shows of the registry. Counted when the page is asked for, on the thread that makes it.

use std::{fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, gauge::ConstGauge},
};

use super::Registry;
use crate::{facts::endpoint::EndpointState, telemetry::exposition::Page};

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    pub enabled: u64,
    pub paused: u64,
    pub disabled: u64,
    pub unreadable: u64,
}

impl Counts {
    pub fn add(&mut self, state: &EndpointState) {
        match state {
            EndpointState::Enabled => self.enabled += 1,
            EndpointState::Paused(_) => self.paused += 1,
            EndpointState::Disabled(_) => self.disabled += 1,
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
        let Counts { enabled, paused, disabled, unreadable } = self.0.counts();
        let states = [("enabled", enabled), ("paused", paused), ("disabled", disabled), ("unreadable", unreadable)];
        let help = "Endpoints of the registry, by their state.";
        let mut metric = encoder.encode_descriptor("endpoints", help, None, MetricType::Gauge)?;
        states
            .iter()
            .try_for_each(|(state, count)| ConstGauge::new(*count).encode(metric.encode_family(&[("state", *state)])?))
    }
}
