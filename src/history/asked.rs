//! A process' way to its history: opened at the first question, and where it is away that is known for a while, so that nobody
//! waits for it more than once. A history that does not answer is no error of whoever asks.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::Mutex, time::timeout};

use super::{Access, Database, EventPlace, EventsWanted, HistoryError, KeptEvent, Reader, erase::Eraser};
use crate::{clock, config::HistoryConfig};

/// A history that did not answer is asked again after this: nobody waits for one that is away more than once.
const ASKED_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// The history, to be asked. Opened at the first question, for all of a process.
pub struct History {
    settings: HistoryConfig,
    stream: String,
    /// How long an answer may take.
    patience: Duration,
    state: Mutex<State>,
}

enum State {
    Closed,
    Open(Arc<Reader>),
    Away { why: String, since: Instant },
}

impl History {
    pub fn new(settings: HistoryConfig, stream: &str, patience: Duration) -> Self {
        Self { settings, stream: stream.to_owned(), patience, state: Mutex::new(State::Closed) }
    }

    /// Up to `limit` of these events, as they were accepted, or why nobody can tell.
    pub async fn events(
        &self,
        wanted: &EventsWanted,
        after: EventPlace,
        limit: usize,
    ) -> Result<Vec<KeptEvent>, String> {
        self.ask(async |reader| reader.events(wanted, after, limit).await).await
    }

    /// The newest of these events, the oldest of them first, and whether there are older ones; or why nobody can tell.
    pub async fn latest_events(
        &self,
        wanted: &EventsWanted,
        before_ms: u64,
        limit: usize,
    ) -> Result<(Vec<KeptEvent>, bool), String> {
        self.ask(async |reader| reader.latest_events(wanted, before_ms, limit).await).await
    }

    /// For how long it keeps the events themselves; zero is not at all.
    pub fn keeps_events_for(&self) -> Duration {
        self.settings.bodies
    }

    /// An answer of the history, or why there is none.
    pub async fn ask<T>(&self, question: impl AsyncFnOnce(&Reader) -> Result<T, HistoryError>) -> Result<T, String> {
        let ask = async {
            let reader = self.reader().await?;
            match question(&reader).await {
                Ok(found) => Ok(found),
                Err(error) => Err(self.is_away(error.to_string()).await),
            }
        };
        match timeout(self.patience, ask).await {
            Ok(answer) => answer,
            Err(_) => Err(self.is_away(format!("it did not answer within {} s", self.patience.as_secs())).await),
        }
    }

    /// Whether there is to be one.
    pub fn is_on(&self) -> bool {
        self.settings.url.is_some()
    }

    /// To take events out; None where there is no history.
    pub async fn eraser(&self) -> Result<Option<Eraser>, HistoryError> {
        match &self.settings.url {
            Some(url) => Eraser::open(url, &self.stream).await.map(Some),
            None => Ok(None),
        }
    }

    pub fn keep_days(&self) -> u64 {
        self.settings.keep.as_secs().div_ceil(86_400)
    }

    async fn reader(&self) -> Result<Arc<Reader>, String> {
        let Some(url) = &self.settings.url else { return Err("off (history.url is empty)".to_owned()) };
        let mut state = self.state.lock().await;
        match &*state {
            State::Open(reader) if reader.check_place().is_ok() => return Ok(reader.clone()),
            State::Away { why, since } if clock::now() < *since + ASKED_AGAIN_AFTER => return Err(why.clone()),
            State::Open(_) | State::Closed | State::Away { .. } => {}
        }
        match Database::open(url, &self.stream, Access::Read).await {
            Ok(database) => {
                let reader = Arc::new(Reader::new(database));
                *state = State::Open(reader.clone());
                Ok(reader)
            }
            Err(error) => {
                *state = State::Away { why: error.to_string(), since: clock::now() };
                Err(error.to_string())
            }
        }
    }

    async fn is_away(&self, why: String) -> String {
        *self.state.lock().await = State::Away { why: why.clone(), since: clock::now() };
        why
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_history_that_is_away_is_not_asked_again_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("history.db");
        let url = format!("sqlite:{}", file.display()).parse().unwrap();
        let settings =
            HistoryConfig { url: Some(url), keep: Duration::from_secs(86_400), bodies: Duration::ZERO, log_bytes: 0 };
        let history = History::new(settings, "payment-intents", Duration::from_secs(10));
        let ask = async || history.events(&EventsWanted::default(), EventPlace::default(), 1).await.unwrap_err();
        let first = ask().await;
        assert!(first.contains("no history yet"), "{first}");
        std::fs::write(&file, "not a database").unwrap();
        assert_eq!(ask().await, first);
        if let State::Away { since, .. } = &mut *history.state.lock().await {
            *since = clock::now() - 2 * ASKED_AGAIN_AFTER;
        }
        let other = ask().await;
        assert!(other != first, "{other}");
    }
}
