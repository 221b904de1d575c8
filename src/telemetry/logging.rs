//! Structured logs on stderr: text on a terminal, one JSON object a line elsewhere. stdout belongs to data.

use std::{
    io::{self, IsTerminal},
    str::FromStr,
};

use tracing::Subscriber;
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    #[error("cannot start logging: a logger is set in this process already")]
    AlreadySet,
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
        // [span{field=value}] alone is a filter, too.
        let is_odd = |part: &&&str| !part.contains(['=', '[']) && !is_level(part);
        if let Some(odd) = parts.iter().find(is_odd) {
            return Err(format!("{odd:?} is no level; use one of {}, or TARGET=LEVEL", LEVELS.join(", ")));
        }
        let text = parts.join(",");
        EnvFilter::try_new(&text).map_err(|error| format!("is no log filter: {error}"))?;
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

/// Logs to stderr from here on. Call it once, before the first task starts.
pub fn init(filter: &LogFilter, format: LogFormat) -> Result<(), LoggingError> {
    let on_terminal = io::stderr().is_terminal();
    let set = match (format, on_terminal) {
        (LogFormat::Text, _) | (LogFormat::Auto, true) => {
            tracing::subscriber::set_global_default(text(filter, io::stderr, on_terminal))
        }
        (LogFormat::Json, _) | (LogFormat::Auto, false) => {
            tracing::subscriber::set_global_default(json(filter, io::stderr))
        }
    };
    set.map_err(|_| LoggingError::AlreadySet)
}

fn text<W>(filter: &LogFilter, writer: W, on_terminal: bool) -> impl Subscriber + Send + Sync + use<W>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    // https://no-color.org: set to anything but nothing.
    let colours = on_terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(&filter.0))
        .with_writer(writer)
        .with_ansi(colours)
        // When stderr itself is broken there is nobody left to tell, and telling would panic.
        .log_internal_errors(false)
        .finish()
}

fn json<W>(filter: &LogFilter, writer: W) -> impl Subscriber + Send + Sync + use<W>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_env_filter(EnvFilter::new(&filter.0))
        .with_writer(writer)
        .log_internal_errors(false)
        .finish()
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

    #[test]
    fn json_has_the_ids_as_fields_of_one_object_a_line() {
        let page = Page::default();
        tracing::subscriber::with_default(json(&"info".parse().unwrap(), page.clone()), talk);
        let line: serde_json::Value = serde_json::from_str(page.text().trim()).unwrap();
        assert_eq!((&line["message"], &line["level"]), (&"delivered".into(), &"INFO".into()));
        assert_eq!((&line["delivery"], &line["attempt"]), (&"17-1:ep_a".into(), &2.into()));
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
        assert!("inof".parse::<LogFilter>().unwrap_err().contains("\"inof\" is no level"));
    }
}
