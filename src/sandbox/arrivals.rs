//! What has arrived while a scenario runs: the first time of each event, by its intent, in order.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, mpsc},
    time::timeout,
};

use super::callbacks::Arrived;
use crate::{listen::Record, surface::signatures::Verdict};

/// Events that are remembered: many times what the largest scenario tells.
const MOST: usize = 100_000;

#[derive(Clone, Default)]
pub struct Arrivals {
    by_intent: Arc<Mutex<HashMap<String, Vec<Arrived>>>>,
    changed: Arc<Notify>,
}

impl Arrivals {
    /// Takes what comes until there is no more.
    pub fn collect(mut taken: mpsc::Receiver<Record>) -> Self {
        let arrivals = Self::default();
        let kept = arrivals.clone();
        tokio::spawn(async move {
            let mut count = 0;
            while let Some(record) = taken.recv().await {
                if count < MOST {
                    count += usize::from(kept.note(&record));
                }
                kept.changed.notify_waiters();
            }
        });
        arrivals
    }

    /// Of one intent, in the order in which each came first.
    pub fn of(&self, intent: &str) -> Vec<Arrived> {
        self.lock().get(intent).cloned().unwrap_or_default()
    }

    /// Waits until all of these events of an intent have arrived and were taken, for so long at most.
    pub async fn wait_for(&self, intent: &str, events: &[String], at_most: Duration) {
        let all_are_here = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                // What comes between the look and the wait counts.
                changed.as_mut().enable();
                let came = self.of(intent);
                if events.iter().all(|event| came.iter().any(|arrived| arrived.id == *event)) {
                    return;
                }
                changed.await;
            }
        };
        // Whoever judges sees what is missing.
        let _ = timeout(at_most, all_are_here).await;
    }

    /// Whether it is the first time.
    fn note(&self, record: &Record) -> bool {
        let (Some(id), Some(intent)) = (&record.says.id, &record.says.intent) else { return false };
        let mut by_intent = self.lock();
        let came = by_intent.entry(intent.clone()).or_default();
        if came.iter().any(|arrived| arrived.id == *id) {
            return false;
        }
        came.push(arrived(id, record));
        true
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Vec<Arrived>>> {
        self.by_intent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn arrived(id: &str, record: &Record) -> Arrived {
    let schemes = [("webhook-signature", &record.standard), ("dojo-signature", &record.dojo)];
    let bad = schemes.into_iter().filter(|(_, found)| found.verdict == Verdict::Invalid);
    let bad: Vec<_> = bad.map(|(name, found)| format!("{name}: {}", found.line())).collect();
    let bad = match (record.is_bad(), bad.is_empty()) {
        (false, _) => None,
        (true, true) => Some("it is not signed".to_owned()),
        (true, false) => Some(bad.join("; ")),
    };
    let application = record.forwarded.first().map(|forwarded| match (forwarded.status, &forwarded.problem) {
        (Some(status), _) => Ok(status),
        (None, problem) => Err(problem.clone().unwrap_or_else(|| "no answer".to_owned())),
    });
    Arrived { id: id.to_owned(), bad, application, answered: record.answered }
}
