//! The two text formats of a page of metrics, and which of them a scraper gets. Pure.
//! `prometheus-client` writes only OpenMetrics; the older text says the same in fewer words.

use std::{fmt::Write, sync::Arc};

use mime::Mime;
use prometheus_client::{encoding::text, registry::Registry};

/// What is shown to a scraper: some metrics, or several parts of them one behind the other.
#[derive(Debug, Clone)]
pub struct Page(Vec<Arc<Registry>>);

impl Page {
    pub fn of(registry: Arc<Registry>) -> Self {
        Self(vec![registry])
    }

    /// No metric may be in both.
    pub fn and(mut self, more: Self) -> Self {
        self.0.extend(more.0);
        self
    }

    pub fn encode(&self, format: Format) -> String {
        let mut page = String::new();
        for registry in &self.0 {
            text::encode_registry(&mut page, registry).expect("a String takes every write");
        }
        text::encode_eof(&mut page).expect("a String takes every write");
        match format {
            Format::OpenMetrics => page,
            Format::Text => without_openmetrics(&page),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Version 1.0.0.
    OpenMetrics,
    /// Prometheus' own, version 0.0.4, which everything that reads metrics can read.
    Text,
}

impl Format {
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// What an `Accept` header asks for. OpenMetrics is for clients that name it in the version written here and prefer
    /// nothing else, as Prometheus does; a wildcard asks for nothing in particular. Whatever else a range says, such as
    /// how Prometheus wants names escaped, makes no difference to names that need no escaping.
    pub fn accepted_by(accept: &str) -> Self {
        let ranges: Vec<Mime> = accept.split(',').filter_map(|range| range.trim().parse().ok()).collect();
        let liking = |kind: &str, version: &str| {
            let is_meant = |range: &&Mime| {
                range.essence_str() == kind && range.get_param("version").is_none_or(|asked| asked == version)
            };
            ranges.iter().filter(is_meant).map(weight).fold(0.0, f32::max)
        };
        let openmetrics = liking("application/openmetrics-text", "1.0.0");
        match openmetrics > 0.0 && openmetrics >= liking("text/plain", "0.0.4") {
            true => Self::OpenMetrics,
            false => Self::Text,
        }
    }
}

/// How much a range is wanted, from 0 to 1: its `q`, if it has one. A `q` that is not a number counts as 0.
fn weight(range: &Mime) -> f32 {
    range.get_param("q").map_or(1.0, |q| q.as_str().parse().unwrap_or(0.0))
}

/// Turns a page that `prometheus-client` has written into the older text. There a counter is described by the full name
/// of its samples, an `info` is a gauge, and neither a unit nor the end of the page has a line.
pub fn without_openmetrics(page: &str) -> String {
    let mut text = String::with_capacity(page.len());
    let mut help = "";
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').map_or("", |(_, help)| help);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let (ending, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                other => ("", other),
            };
            write!(text, "# HELP {name}{ending} {help}\n# TYPE {name}{ending} {kind}\n").expect("a String takes it");
        } else if !line.starts_with('#') {
            text.push_str(without_exemplar(line));
            text.push('\n');
        }
    }
    text
}

/// The older text has no place for one. What looks like one may also stand within a label's value.
fn without_exemplar(sample: &str) -> &str {
    let (mut is_quoted, mut is_escaped) = (false, false);
    for (at, c) in sample.char_indices() {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' if is_quoted => is_escaped = true,
            '"' => is_quoted = !is_quoted,
            '#' if !is_quoted => return sample[..at].trim_end(),
            _ => {}
        }
    }
    sample
}

#[cfg(test)]
mod tests {
    use prometheus_client::{
        encoding::text,
        metrics::{counter::Counter, gauge::ConstGauge, histogram::Histogram, info::Info},
        registry::{Registry, Unit},
    };

    use super::*;

    #[test]
    fn openmetrics_is_for_those_who_ask_for_it() {
        for accept in [
            "application/openmetrics-text",
            "Application/OpenMetrics-Text; Version=\"1.0.0\"; charset=utf-8",
            "text/html, application/openmetrics-text;q=0.1",
            // Prometheus 2.
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            // Prometheus 3.
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
            // A Prometheus that would rather have what only it writes.
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
        ] {
            assert_eq!(Format::accepted_by(accept), Format::OpenMetrics, "{accept}");
        }
    }

    #[test]
    fn everybody_else_gets_the_older_text() {
        for accept in [
            "",
            "*/*",
            // A browser.
            "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
            // A Prometheus that is set to the older text.
            "text/plain;version=0.0.4;q=0.5,application/openmetrics-text;version=1.0.0;q=0.4,*/*;q=0.1",
            // An old Prometheus, which only knows a draft.
            "application/openmetrics-text; version=0.0.1,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "application/openmetrics-text;version=2.0.0",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;q=much",
            "application/openmetrics-text-of-mine",
            ", ;q=1, application/",
        ] {
            assert_eq!(Format::accepted_by(accept), Format::Text, "{accept}");
        }
    }

    #[test]
    fn the_older_text_names_counters_whole_and_has_no_line_that_only_openmetrics_knows() {
        let mut registry = Registry::with_prefix("herald");
        let counter: Counter = Counter::default();
        counter.inc_by(3);
        let histogram = Histogram::new([0.5, 2.0]);
        histogram.observe(1.0);
        registry.register("entries_read", "Entries", counter);
        registry.register("build", "This build", Info::new([("version", "1 \"x\" # HELP")]));
        registry.register_with_unit("record", "Bytes of records", Unit::Bytes, ConstGauge::new(7u64));
        registry.register_with_unit("attempt_duration", "Attempts", Unit::Seconds, histogram);
        let mut page = String::new();
        text::encode(&mut page, &registry).unwrap();
        let expected = r#"# HELP herald_entries_read_total Entries.
# TYPE herald_entries_read_total counter
herald_entries_read_total 3
# HELP herald_build_info This build.
# TYPE herald_build_info gauge
herald_build_info{version="1 \"x\" # HELP"} 1
# HELP herald_record_bytes Bytes of records.
# TYPE herald_record_bytes gauge
herald_record_bytes 7
# HELP herald_attempt_duration_seconds Attempts.
# TYPE herald_attempt_duration_seconds histogram
herald_attempt_duration_seconds_sum 1.0
herald_attempt_duration_seconds_count 1
herald_attempt_duration_seconds_bucket{le="0.5"} 0
herald_attempt_duration_seconds_bucket{le="2.0"} 1
herald_attempt_duration_seconds_bucket{le="+Inf"} 1
"#;
        assert_eq!(without_openmetrics(&page), expected);
    }
}
