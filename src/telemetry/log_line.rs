//! A line of the log as JSON, in the closed form of `docs/log.schema.json`. What an event carries beyond the fields of that list
//! stands in the message, behind its text.

use std::{
    fmt::{self, Debug, Write},
    sync::{Arc, OnceLock},
};

use jiff::{Timestamp, fmt::temporal::DateTimePrinter};
use serde_json::{Map, Value};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    registry::LookupSpan,
};

use crate::clock;

/// Each line has these.
const ALWAYS: [&str; 4] = ["timestamp", "level", "target", "message"];

/// And those of these that apply.
const FIELDS: [&str; 21] = [
    "instance",
    "partition",
    "term",
    "entry",
    "event",
    "intent",
    "account",
    "endpoint",
    "delivery",
    "attempt",
    "outcome",
    "status",
    "took_ms",
    "due",
    "reason",
    "by",
    "error",
    "trace_id",
    "span_id",
    "signal",
    "version",
];

/// Those of [`FIELDS`] that are numbers; all others are text.
const NUMBERS: [&str; 3] = ["attempt", "status", "took_ms"];

/// All that a line may have.
pub fn fields() -> impl Iterator<Item = &'static str> {
    ALWAYS.into_iter().chain(FIELDS)
}

/// Who writes the log, once that is known.
static WRITER: OnceLock<(String, String)> = OnceLock::new();

/// From now on each line says which process writes it, and of which stream where it is of no partition.
pub fn identify(instance: &str, stream: &str) {
    // In tests, several have the same log.
    let _ = WRITER.set((instance.to_owned(), stream.to_owned()));
}

tokio::task_local! {
    static PARTITION: Arc<str>;
}

/// Does something whose lines are of this partition.
pub fn of_partition<F: Future>(partition: &str, does: F) -> impl Future<Output = F::Output> + use<F> {
    PARTITION.scope(partition.into(), does)
}

/// Does something in a task of its own whose lines are of the same partition as those of whoever begins it.
pub fn of_the_same<F: Future>(does: F) -> impl Future<Output = F::Output> + use<F> {
    let partition = PARTITION.try_with(Arc::clone).ok();
    async move {
        match partition {
            Some(partition) => PARTITION.scope(partition, does).await,
            None => does.await,
        }
    }
}

/// Microseconds since 1970 as the log writes them: RFC 3339, with six digits, in UTC.
pub fn rfc3339(us: u64) -> String {
    let at = i64::try_from(us).ok().and_then(|us| Timestamp::from_microsecond(us).ok()).unwrap_or_default();
    let mut text = String::with_capacity(32);
    let printed = DateTimePrinter::new().precision(Some(6)).print_timestamp(&at, &mut text);
    printed.expect("a String takes every write");
    text
}

/// A line that no event of the code stands behind, such as a last word of the command line.
pub fn plain(level: &str, message: &str) -> String {
    line(level, "herald", message, Map::new())
}

fn line(level: &str, target: &str, message: &str, fields: Map<String, Value>) -> String {
    let mut line = Map::new();
    let values = [rfc3339(clock::wall_us()).as_str(), level, target, message].map(Value::from);
    line.extend(ALWAYS.map(str::to_owned).into_iter().zip(values));
    if let Some((instance, partition)) = WRITER.get() {
        line.insert("instance".to_owned(), instance.as_str().into());
        let own = PARTITION.try_with(|partition| Value::from(&**partition));
        line.insert("partition".to_owned(), own.unwrap_or_else(|_| partition.as_str().into()));
    }
    line.extend(fields);
    Value::Object(line).to_string()
}

/// Writes events as such lines. Spans, which only libraries have, leave no trace.
pub struct JsonLine;

impl<S, N> FormatEvent<S, N> for JsonLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut seen = Seen::default();
        event.record(&mut seen);
        let Seen { message, others, fields } = seen;
        let metadata = event.metadata();
        let message = format!("{message}{others}");
        writeln!(writer, "{}", line(metadata.level().as_str(), metadata.target(), message.trim_start(), fields))
    }
}

/// What an event carries.
#[derive(Default)]
struct Seen {
    message: String,
    /// What is not in the list, as text.
    others: String,
    fields: Map<String, Value>,
}

impl Seen {
    fn text(&mut self, field: &Field, text: String) {
        let name = field.name();
        if name == "message" {
            self.message = text;
        } else if FIELDS.contains(&name) && !NUMBERS.contains(&name) {
            self.fields.insert(name.to_owned(), text.into());
        } else {
            // Nothing is lost of what does not fit the form.
            write!(self.others, " {name}={text}").expect("a String takes every write");
        }
    }
}

impl Visit for Seen {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.text(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, value.to_owned());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        match NUMBERS.contains(&field.name()) {
            true => drop(self.fields.insert(field.name().to_owned(), value.into())),
            false => self.text(field, value.to_string()),
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        match u64::try_from(value) {
            Ok(value) => self.record_u64(field, value),
            Err(_) => self.text(field, value.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_line_is_of_the_partition_whose_task_writes_it() {
        identify("host/1", "pay");
        let partition = || serde_json::from_str::<Value>(&plain("INFO", "x")).unwrap()["partition"].clone();
        assert_eq!(partition(), "pay");
        let (own, begun) = of_partition("pay:3", async { (partition(), of_the_same(async { partition() })) }).await;
        assert_eq!((own, begun.await), ("pay:3".into(), "pay:3".into()));
        assert_eq!(of_the_same(async { partition() }).await, "pay");
    }

    #[test]
    fn a_time_has_six_digits_whatever_it_is() {
        assert_eq!(rfc3339(1_700_000_000_000_000), "2023-11-14T22:13:20.000000Z");
        assert_eq!(rfc3339(1_700_000_000_123_456), "2023-11-14T22:13:20.123456Z");
        assert_eq!(rfc3339(u64::MAX), "1970-01-01T00:00:00.000000Z");
    }
}
