//! What is done with each callback: judged, shown, forwarded, answered, with what goes wrong on purpose. Every callback is a task
//! of its own, which goes on when its caller has gone.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::Value;
use tokio::{
    sync::{mpsc, oneshot},
    time::sleep,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    arrivals::{Arrival, Arrivals},
    callback::{Callback, Says},
    forward::{Answer, Forwarded, Forwarder},
    rehearsal::{Plan, Rehearsal},
    shown::{ForwardedView, Record},
};
use crate::{
    facts::{event::EventType, signing::SecretText},
    http::problem::{PROBLEM_JSON, untyped},
    surface::{Output, VerbError, signatures::Found},
};

/// Callbacks that are held back at a time: each is a body in memory.
const MOST_HELD: usize = 100;

/// As long as one is held back where no other of its intent comes.
const HELD_FOR: Duration = Duration::from_secs(10);

/// Who learns what became of a callback.
pub enum To {
    Output(Output, Style),
    /// Another surface, which takes them as they are answered.
    Surface(mpsc::Sender<Record>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Some lines when it arrives, and some when it is answered.
    Text,
    /// One line, when all is known.
    Json,
}

pub struct Settings {
    /// Oldest first. None: nothing is checked.
    pub secrets: Vec<SecretText>,
    pub tolerance_ms: u64,
    /// Only these are printed, and what is bad. Empty means all.
    pub events: Vec<EventType>,
    pub to: To,
    pub rehearsal: Rehearsal,
    pub exit_on_first_bad: bool,
}

pub struct Desk {
    settings: Settings,
    forwarder: Option<Forwarder>,
    arrivals: Mutex<Arrivals>,
    /// By intent; whoever is told forwards it.
    held: Mutex<HashMap<String, oneshot::Sender<()>>>,
    seen: AtomicU64,
    bad: AtomicU64,
    ending: CancellationToken,
    ended_by: Mutex<Option<anyhow::Error>>,
    pub tasks: TaskTracker,
}

/// What the caller gets.
pub enum Reply {
    Answer(Answer),
    /// Its connection is closed.
    Nothing,
}

impl Desk {
    pub fn new(settings: Settings, forwarder: Option<Forwarder>, ending: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            settings,
            forwarder,
            arrivals: Mutex::new(Arrivals::new()),
            held: Mutex::default(),
            seen: AtomicU64::new(0),
            bad: AtomicU64::new(0),
            ending,
            ended_by: Mutex::default(),
            tasks: TaskTracker::new(),
        })
    }

    /// How many came, and how many of them were bad.
    pub fn counts(&self) -> (u64, u64) {
        (self.seen.load(Relaxed), self.bad.load(Relaxed))
    }

    /// Why it ended, if not because it was asked to.
    pub fn ended_by(&self) -> Option<anyhow::Error> {
        lock(&self.ended_by).take()
    }

    pub async fn handle(self: Arc<Self>, callback: Callback) -> Reply {
        let mut record = self.judge(callback);
        if let To::Output(output, Style::Text) = &self.settings.to {
            self.print(*output, &record, Ok(record.arrival_lines()));
        }
        let reply = self.work(&mut record).await;
        let intent = record.says.intent.clone();
        match record.plan.reorder {
            // Whoever forwards it shows it.
            true => self.hold(record),
            false => {
                self.finish(record).await;
                self.release(intent.as_deref());
            }
        }
        reply
    }

    fn judge(&self, callback: Callback) -> Record {
        let says = callback.says();
        let diagnosis = callback.judge(&self.settings.secrets, self.settings.tolerance_ms);
        let arrival = match &diagnosis {
            Some(found) if !found.is_valid() => Arrival::FIRST,
            _ => lock(&self.arrivals).note(says.id.as_deref(), says.intent.as_deref(), says.sequence),
        };
        let [standard, dojo] = match &diagnosis {
            Some(found) => [(&found.standard).into(), (&found.dojo).into()],
            None => [Found::without_secret(), Found::without_secret()],
        };
        let plan = self.plan(&says);
        let record = Record { callback, says, standard, dojo, arrival, plan, forwarded: Vec::new(), answered: None };
        self.seen.fetch_add(1, Relaxed);
        self.bad.fetch_add(u64::from(record.is_bad()), Relaxed);
        record
    }

    /// What fails is not forwarded at all, and what cannot be held back goes at once.
    fn plan(&self, says: &Says) -> Plan {
        let plan = self.settings.rehearsal.plan(rand::random::<f64>);
        let is_forwarded = plan.fail.is_none() && self.forwarder.is_some();
        let can_wait = || {
            let held = lock(&self.held);
            let is_next = |intent: &String| !held.contains_key(intent);
            held.len() < MOST_HELD && says.intent.as_ref().is_some_and(is_next)
        };
        Plan { reorder: plan.reorder && is_forwarded && can_wait(), duplicate: plan.duplicate && is_forwarded, ..plan }
    }

    /// Everything up to the answer.
    async fn work(&self, record: &mut Record) -> Reply {
        let answer = match (record.plan.fail, &self.forwarder) {
            (Some(status), _) => {
                problem(StatusCode::from_u16(status).unwrap_or_default(), "it was to fail, as a rehearsal")
            }
            (None, Some(_)) if record.plan.reorder => empty(StatusCode::OK),
            (None, Some(forwarder)) => forward(forwarder, record).await,
            // Whoever takes what nobody has signed teaches the wrong thing. Why it is wrong is for who runs this.
            (None, None) if record.is_bad() => {
                problem(StatusCode::UNAUTHORIZED, "no signature of this request is valid")
            }
            (None, None) => empty(StatusCode::OK),
        };
        if answer.status.is_success()
            && let Some(id) = &record.says.id
        {
            lock(&self.arrivals).taken(id);
        }
        if let Some(by) = record.plan.slow {
            tokio::select! {
                () = sleep(by) => {}
                () = self.ending.cancelled() => {}
            }
        }
        if record.plan.drop_answer {
            return Reply::Nothing;
        }
        record.answered = Some(answer.status.as_u16());
        Reply::Answer(answer)
    }

    /// Until the next of its intent has been forwarded, or nobody needs to wait any more.
    fn hold(self: Arc<Self>, mut record: Record) {
        let Some(intent) = record.says.intent.clone() else { return };
        let (release, released) = oneshot::channel();
        lock(&self.held).insert(intent.clone(), release);
        let desk = self.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                // An error means that another one took its place; then its turn has come as well.
                _ = released => {}
                () = sleep(HELD_FOR) => {}
                () = desk.ending.cancelled() => {}
            }
            lock(&desk.held).remove(&intent);
            if let Some(forwarder) = &desk.forwarder {
                forward(forwarder, &mut record).await;
            }
            desk.finish(record).await;
        });
    }

    fn release(&self, intent: Option<&str>) {
        let held = intent.and_then(|intent| lock(&self.held).remove(intent));
        // It may have gone by itself just now.
        held.map(|held| held.send(()));
    }

    async fn finish(&self, record: Record) {
        let is_bad = record.is_bad();
        match &self.settings.to {
            To::Output(output, Style::Text) => self.print(*output, &record, Ok(record.answer_lines())),
            To::Output(output, Style::Json) => {
                self.print(*output, &record, record.json().map_err(anyhow::Error::from));
            }
            // Whoever takes no more has seen enough.
            To::Surface(surface) => drop(surface.send(record).await),
        }
        if is_bad && self.settings.exit_on_first_bad {
            self.end(VerbError::Refused("a callback was not valid; why is above".to_owned()).into());
        }
    }

    fn print(&self, output: Output, record: &Record, text: anyhow::Result<String>) {
        let events = &self.settings.events;
        let is_wanted = |event: &String| events.iter().any(|wanted| wanted.as_str() == event);
        if !(events.is_empty() || record.is_bad() || record.says.event.as_ref().is_some_and(is_wanted)) {
            return;
        }
        if let Err(error) = text.and_then(|text| output.text(&text)) {
            self.end(error);
        }
    }

    /// The first reason counts.
    fn end(&self, why: anyhow::Error) {
        lock(&self.ended_by).get_or_insert(why);
        self.ending.cancel();
    }
}

/// Its own answer goes back; where it is forwarded twice, the first one.
async fn forward(forwarder: &Forwarder, record: &mut Record) -> Answer {
    let first = told(record, forwarder.forward(&record.callback).await);
    if record.plan.duplicate {
        let again = forwarder.forward(&record.callback).await;
        told(record, again);
    }
    first
}

fn told(record: &mut Record, Forwarded { answer, took_ms }: Forwarded) -> Answer {
    let (status, problem_text) = match &answer {
        Ok(answer) => (Some(answer.status.as_u16()), None),
        Err(why) => (None, Some(why.clone())),
    };
    record.forwarded.push(ForwardedView { status, problem: problem_text, took_ms });
    answer.unwrap_or_else(|why| problem(StatusCode::BAD_GATEWAY, &why))
}

pub fn empty(status: StatusCode) -> Answer {
    Answer { status, headers: HeaderMap::new(), body: Bytes::new() }
}

pub fn problem(status: StatusCode, detail: &str) -> Answer {
    let body = untyped(status, detail, Value::Null).into();
    Answer {
        status,
        headers: HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON))]),
        body,
    }
}

/// Nothing in here can be left half done by a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
