//! Herald as whoever operates it sees it: the page of metrics, alerts and dashboard, judged by a real Prometheus.

// Tests wait for other processes.
#![allow(clippy::disallowed_methods)]

#[path = "operate/alerts.rs"]
mod alerts;
#[path = "operate/dashboard.rs"]
mod dashboard;
#[path = "support/merchants.rs"]
mod merchants;
#[path = "operate/page.rs"]
mod page;
#[path = "support/herald.rs"]
mod process;
#[path = "operate/prometheus.rs"]
mod prometheus;
#[path = "operate/rules.rs"]
mod rules;
#[path = "support/mod.rs"]
mod support;
#[path = "operate/traces.rs"]
mod traces;
#[path = "support/world.rs"]
mod world;
