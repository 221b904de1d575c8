//! Structured logs on stderr: text on a terminal, one JSON object a line elsewhere. stdout belongs to data.
//! [`lines`](super::lines) writes them, so that no thread waits for the log's reader; [`allowance`](super::allowance)
//! holds back a flood of similar lines.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    fs::File,
    io::{self, IsTerminal},
    os::fd::AsFd,
    panic::{self, PanicHookInfo},
    str::FromStr,
    sync::{LazyLock, OnceLock},
    thread,
    time::{Duration, Instant},
};

use prometheus_client::{metrics::counter::Counter, registry::Registry};
use tracing::{Level, Metadata, Subscriber, error, warn};
use tracing_subscriber::{
    EnvFilter, Layer,
    fmt::MakeWriter,
    layer::{Context, SubscriberExt},
};

use super::{
    allowance::{self, Allowance, LeftOut, SPAN},
    lines::{Colours, Lines},
    log_line::{self, JsonLine},
};

/// How long the last lines of a process may wait for their reader. A log that hangs must not keep a worker from ending.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// For this process, like the logger itself.
static LINES: OnceLock<(Lines, Form)> = OnceLock::new();
static DROPPED: LazyLock<Counter> = LazyLock::new(Counter::default);

/// How often it is looked whether lines were dropped.
const LOOK_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Text,
    Json,
}

#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    #[error("cannot start logging: a logger is set in this process already")]
    AlreadySet,
    #[error("cannot start logging: {0}")]
    Thread(#[from] io::Error),
}

/// What becomes of lines, for `/metrics`.
pub(super) fn register(registry: &mut Registry) {
    registry.register("log_lines", "Lines of the log, by their level", allowance::logged());
    registry.register("log_lines_dropped", "Lines of the log that were not read in time", DROPPED.clone());
}

/// Which events are logged: a level, and `TARGET=LEVEL` after commas. Checked when it is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFilter(String);

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

impl FromStr for LogFilter {
    type Err = String;
    /// Stricter than `EnvFilter`, which takes a misspelt level for the name of a target and then logs next to nothing.
    fn from_str(text: &str) -> Result<Self, String> {
        let is_level = |word: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word));
        let parts: Vec<_> = text.split(',').map(str::trim).collect();
        // `[span{field=value}]` alone is a filter, too.
        let is_odd = |part: &&&str| !part.contains(['=', '[']) && !is_level(part);
        if let Some(odd) = parts.iter().find(is_odd) {
            return Err(format!("{odd:?} is not a level; use one of {}, or TARGET=LEVEL", LEVELS.join(", ")));
        }
        let text = parts.join(",");
        EnvFilter::try_new(&text).map_err(|error| format!("is not a log filter: {error}"))?;
        Ok(Self(text))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, else JSON.
    Auto,
    Text,
    Json,
}

impl FromStr for LogFormat {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("must be auto, text or json".to_owned()),
        }
    }
}

/// Logs to stderr from here on, including panics. Call it once, before the first task starts, and [`flush`] at the end.
pub fn init(filter: &LogFilter, format: LogFormat) -> Result<(), LoggingError> {
    let on_terminal = io::stderr().is_terminal();
    let form = match (format, on_terminal) {
        (LogFormat::Text, _) | (LogFormat::Auto, true) => Form::Text,
        (LogFormat::Json, _) | (LogFormat::Auto, false) => Form::Json,
    };
    // https://no-color.org: set to anything but an empty text.
    let has_colours =
        form == Form::Text && on_terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let colours = if has_colours { Colours::Own } else { Colours::None };
    // Bypasses the lock of the standard library's own handle: a write that hangs must not hold it.
    let stderr = File::from(io::stderr().as_fd().try_clone_to_owned()?);
    let allowance = Allowance::default();
    let (counted, mut told, mut next) = (allowance.clone(), 0, None);
    let tell = move |now: Instant| {
        tell_dropped(&mut told);
        if now >= *next.get_or_insert(now + SPAN) {
            next = Some(now + SPAN);
            tell_left_out(&counted.take_left_out());
        }
    };
    let lines = Lines::start(stderr, colours, DROPPED.clone(), LOOK_EVERY, tell)?;
    let writer = lines.clone();
    let set = match form {
        Form::Text => {
            let subscriber = text(filter, writer, has_colours).with(OwnAlone).with(allowance);
            tracing::subscriber::set_global_default(subscriber)
        }
        Form::Json => tracing::subscriber::set_global_default(json(filter, writer).with(OwnAlone).with(allowance)),
    };
    set.map_err(|_| LoggingError::AlreadySet)?;
    LINES.set((lines, form)).map_err(|_| LoggingError::AlreadySet)?;
    panic::set_hook(Box::new(log_panic));
    Ok(())
}

/// Says something through the log, if there is one. Code that writes to stderr itself could wait for ever.
pub fn say(text: &str) -> bool {
    let Some((lines, form)) = LINES.get() else { return false };
    match form {
        Form::Text => text.lines().for_each(|line| lines.put(line)),
        Form::Json => {
            let is_bad = text.starts_with("error:");
            lines.put(&log_line::plain(if is_bad { "ERROR" } else { "WARN" }, text));
        }
    }
    true
}

/// When this returns, what was logged is written, or its reader did not take it in time.
pub fn flush() {
    if let Some((lines, _)) = LINES.get() {
        lines.flush(LAST_WORDS);
    }
}

/// Once a minute.
fn tell_left_out(left_out: &[LeftOut]) {
    for LeftOut { file, line, lines } in left_out {
        warn!(
            "left out {lines} lines like others of the last minute, of {file}:{line}; the metrics count what they reported"
        );
    }
}

fn tell_dropped(told: &mut u64) {
    let dropped = DROPPED.get();
    if dropped > *told {
        warn!("dropped {} lines of the log: its reader was too slow", dropped - *told);
        *told = dropped;
    }
}

/// The default hook writes to stderr itself, and a thread that panics would wait for a log that hangs.
fn log_panic(info: &PanicHookInfo<'_>) {
    let thread = thread::current();
    let thread = thread.name().unwrap_or("without a name");
    let location = info.location().map(ToString::to_string).unwrap_or_default();
    let payload = info.payload();
    let text = payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let why = text.unwrap_or("(no text)");
    let trace = Backtrace::capture();
    match trace.status() {
        BacktraceStatus::Captured => error!("panic in the thread {thread} at {location}: {why}\n{trace}"),
        _ => error!("panic in the thread {thread} at {location}: {why}"),
    }
}

fn text<W>(filter: &LogFilter, writer: W, has_colours: bool) -> impl Subscriber + Send + Sync + use<W>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(&filter.0))
        .with_writer(writer)
        .with_ansi(has_colours)
        // If stderr itself is broken, there is nobody left to tell, and telling would panic.
        .log_internal_errors(false)
        .finish()
}

fn json<W>(filter: &LogFilter, writer: W) -> impl Subscriber + Send + Sync + use<W>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    tracing_subscriber::fmt()
        .log_internal_errors(false)
        .event_format(JsonLine)
        .with_env_filter(EnvFilter::new(&filter.0))
        .with_writer(writer)
        .finish()
}

/// Of libraries only what is wrong, whatever the filter asks for: below that they quote what must not be in a log.
struct OwnAlone;

impl<S: Subscriber> Layer<S> for OwnAlone {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        let is_own = metadata.target().split("::").next() == Some("herald");
        is_own || *metadata.level() <= Level::WARN
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Page {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl io::Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Page {
        type Writer = Self;
        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    fn talk() {
        tracing::info!(delivery = "17-1:ep_a", attempt = 2, "delivered");
        tracing::debug!("too quiet for info");
    }

    fn lines_of(filter: &str, talk: impl FnOnce()) -> Vec<serde_json::Value> {
        let page = Page::default();
        let subscriber = json(&filter.parse().unwrap(), page.clone()).with(OwnAlone);
        tracing::subscriber::with_default(subscriber, talk);
        page.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn json_has_the_ids_as_fields_of_one_object_a_line() {
        let lines = lines_of("info", talk);
        let [line] = &lines[..] else { panic!("{lines:?}") };
        assert_eq!((&line["message"], &line["level"]), (&"delivered".into(), &"INFO".into()));
        assert_eq!((&line["delivery"], &line["attempt"]), (&"17-1:ep_a".into(), &2.into()));
    }

    #[test]
    fn what_the_form_has_no_field_for_stands_in_the_message() {
        let lines = lines_of("trace", || {
            tracing::warn!(target: "library::inside", status = "odd", term = 7, peers = 3, "lost\n\"some\"");
            tracing::error!(target: "library", attempt = -1, is_up = false);
            tracing::info!(target: "library", "what is not wrong");
            tracing::debug!(target: "heraldry", "another library");
        });
        let told: Vec<_> = lines.iter().map(|line| line["message"].as_str().unwrap()).collect();
        assert_eq!(told, ["lost\n\"some\" status=odd peers=3", "attempt=-1 is_up=false"]);
        assert_eq!(lines[0]["term"], "7");
        let schema: serde_json::Value = serde_json::from_str(include_str!("../../docs/log.schema.json")).unwrap();
        let schema = jsonschema::validator_for(&schema).unwrap();
        assert!(lines.iter().all(|line| schema.is_valid(line)), "{lines:?}");
    }

    #[test]
    fn the_schema_names_the_fields_that_there_are() {
        let schema: serde_json::Value = serde_json::from_str(include_str!("../../docs/log.schema.json")).unwrap();
        let mut named: Vec<_> = schema["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        let mut known: Vec<_> = log_line::fields().collect();
        named.sort_unstable();
        known.sort_unstable();
        assert_eq!((named, &schema["additionalProperties"]), (known, &false.into()));
    }

    #[test]
    fn text_off_a_terminal_has_no_colours_and_obeys_the_filter() {
        let page = Page::default();
        tracing::subscriber::with_default(text(&"info".parse().unwrap(), page.clone(), false), talk);
        let text = page.text();
        assert!(text.contains("delivered") && text.contains("17-1:ep_a"), "{text}");
        assert!(!text.contains('\u{1b}') && !text.contains("too quiet"), "{text}");
    }

    #[test]
    fn a_filter_that_would_log_nothing_by_mistake_is_refused() {
        for good in
            ["info", "WARN", "off", "info,herald::sender=debug", "warn, herald=trace", "[attempt{number=2}]=debug"]
        {
            assert!(good.parse::<LogFilter>().is_ok(), "{good:?} was refused");
        }
        for bad in ["", "inof", "info,", "herald", "herald=loud", "info,[span"] {
            assert!(bad.parse::<LogFilter>().is_err(), "{bad:?} was taken");
        }
        assert!("inof".parse::<LogFilter>().unwrap_err().contains("\"inof\" is not a level"));
    }
}
