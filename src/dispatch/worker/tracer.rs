//! Makes spans of what has happened, after the fact: an entry from its reading to its settlement, each attempt, and the calls that
//! read and settle. Only of sampled traces. Ids and times come from what is known anyway, so nothing is remembered beyond an entry
//! that is not settled yet. Sends nothing.

use std::borrow::Cow;

use crate::{
    dispatch::{
        HashMap,
        core::{About, CoreHappening, SettledAttempt, Step},
        partition::Happening,
    },
    facts::{
        delivery::Delivery,
        endpoint::Endpoint,
        id::{AccountId, EntryId, EventId, IntentId},
        retry::{DeadReason, Fate},
        trace::{SpanId, Trace, TraceId, Tracing},
        traceparent::Traceparent,
    },
    store::protocol::GROUP,
    telemetry::{
        log_line::rfc3339,
        traces::{Attributes, Kind, MAX_LINKS, Span, Traces},
    },
};

/// Entries that are not settled yet and will have a span: more than are in memory at a time. Others that wait in the stream for
/// their account have none.
const MAX_OPEN: usize = 16_384;

/// What happens to one of them that is told: an entry for thousands of endpoints has no more.
const MAX_EVENTS: usize = 32;

/// A call on Redis, by the wall clock.
#[derive(Debug, Clone, Copy)]
pub struct Called {
    pub began_us: u64,
    pub ended_us: u64,
}

pub struct Tracer {
    traces: &'static Traces,
    tracing: Tracing,
    stream: String,
    owner: String,
    open: HashMap<EntryId, Open>,
    read: Option<Called>,
    settled: Option<Called>,
    /// Of what the last read brought, and of what the last settle ended.
    arrived: Vec<(TraceId, SpanId)>,
    ended: Vec<(TraceId, SpanId)>,
    arrived_first: Option<EntryId>,
    ended_first: Option<EntryId>,
}

/// An entry that was read and is not settled.
struct Open {
    trace: Trace,
    event: EventId,
    intent: IntentId,
    account: AccountId,
    bytes: usize,
    read_ms: u64,
    happened: Vec<(&'static str, u64, Attributes)>,
}

impl Tracer {
    pub fn new(traces: &'static Traces, stream: String, owner: String) -> Self {
        Self {
            traces,
            tracing: Tracing { sampler: traces.sampler, registry: String::new() },
            stream,
            owner,
            open: HashMap::default(),
            read: None,
            settled: None,
            arrived: Vec::new(),
            ended: Vec::new(),
            arrived_first: None,
            ended_first: None,
        }
    }

    /// What is read from now on is owed by this registry.
    pub fn set_registry(&mut self, registry: Option<&str>) {
        if let Some(registry) = registry
            && registry != self.tracing.registry
        {
            self.tracing.registry = registry.to_owned();
        }
    }

    /// None if it is not sampled.
    pub fn trace(&self, given: Option<&Traceparent>, entry: EntryId) -> Option<Trace> {
        self.tracing.of(given, entry)
    }

    pub fn trace_of(&self, delivery: &Delivery) -> Option<Trace> {
        self.trace(delivery.envelope.traceparent.as_ref(), delivery.id.entry)
    }

    /// The header that a receiver gets: this attempt is what comes before its own spans.
    pub fn header(trace: Trace, delivery: &Delivery) -> Option<Traceparent> {
        trace.traceparent(SpanId::attempt(trace.id, &delivery.id, delivery.next_attempt()))
    }

    pub fn read(&mut self, called: Called) {
        self.read = Some(called);
    }

    pub fn settled(&mut self, called: Called) {
        self.settled = Some(called);
    }

    /// `redis_ms` is the time by Redis' clock.
    pub fn happened(&mut self, redis_ms: u64, happening: &Happening) {
        match happening {
            Happening::Arrived { entry, event, intent, account, traceparent, bytes, at_ms } => {
                let Some(trace) = self.trace(traceparent.as_ref(), *entry) else { return };
                self.arrived_first.get_or_insert(*entry);
                link(&mut self.arrived, trace, *entry);
                if self.open.len() < MAX_OPEN || self.open.contains_key(entry) {
                    let (event, intent, account) = (event.clone(), intent.clone(), account.clone());
                    let (bytes, read_ms, happened) = (*bytes, *at_ms, Vec::new());
                    // What is read again in the same term has waited since it was first read.
                    let open = Open { trace, event, intent, account, bytes, read_ms, happened };
                    self.open.entry(*entry).or_insert(open);
                }
            }
            Happening::Core(CoreHappening::Stepped { about, step }) => match step {
                Step::Held => self.note(about, "herald.held", redis_ms, Vec::new()),
                Step::Parked => self.note(about, "herald.parked", redis_ms, Vec::new()),
                Step::Attempted { .. } | Step::Delivered => {}
            },
            Happening::Core(CoreHappening::Failed { about, retry_in_ms, .. }) => {
                self.note(about, "herald.retry_planned", redis_ms, due(redis_ms + retry_in_ms));
            }
            Happening::Core(CoreHappening::Dead { about, reason, .. }) => {
                self.note(about, "herald.dead_letter", redis_ms, because(*reason));
            }
            Happening::Core(CoreHappening::AttemptSettled(settled)) => self.attempt(settled),
            Happening::Core(CoreHappening::EntrySettled { entry }) => self.process(redis_ms, *entry),
            // Whoever reads them next makes their spans.
            Happening::TermEnded { .. } => self.open.clear(),
            _ => {}
        }
    }

    /// All of it was told that the last call has brought about.
    pub fn told_all(&mut self) {
        let (arrived, ended) = (std::mem::take(&mut self.arrived), std::mem::take(&mut self.ended));
        let firsts = (self.arrived_first.take(), self.ended_first.take());
        if let (Some(called), Some(first)) = (self.read.take(), firsts.0) {
            self.call("receive", Kind::Consumer, called, first, arrived);
        }
        if let (Some(called), Some(first)) = (self.settled.take(), firsts.1) {
            self.call("settle", Kind::Client, called, first, ended);
        }
    }

    fn note(&mut self, about: &About, name: &'static str, at_ms: u64, attributes: Attributes) {
        if let Some(open) = self.open.get_mut(&about.id.entry)
            && open.happened.len() < MAX_EVENTS
        {
            let endpoint = ("herald.endpoint.id", about.id.endpoint.to_string().into());
            let attributes = [endpoint].into_iter().chain(attributes).collect();
            open.happened.push((name, at_ms * 1_000, attributes));
        }
    }

    fn attributes(&self, what: &'static str) -> Attributes {
        let stream = || self.stream.clone().into();
        vec![
            ("messaging.system", "redis".into()),
            ("messaging.destination.name", stream()),
            ("messaging.operation.type", what.into()),
            ("messaging.operation.name", what.into()),
            ("messaging.consumer.group.name", GROUP.into()),
            ("messaging.client.id", self.owner.clone().into()),
            ("messaging.destination.partition.id", stream()),
        ]
    }

    /// With a trace of its own: it belongs to all that it has moved.
    fn call(&self, what: &'static str, kind: Kind, called: Called, first: EntryId, links: Vec<(TraceId, SpanId)>) {
        let Called { began_us, ended_us } = called;
        let parts = [self.owner.as_bytes(), &began_us.to_be_bytes(), &first.ms.to_be_bytes(), &first.seq.to_be_bytes()];
        let trace = TraceId::derived(what, &parts);
        let mut attributes = self.attributes(what);
        attributes.push(("messaging.batch.message_count", links.len().into()));
        self.traces.export(Span {
            trace,
            id: SpanId::root(trace),
            parent: None,
            is_parent_remote: false,
            kind,
            name: self.name(what),
            began_us,
            ended_us,
            attributes,
            events: Vec::new(),
            links,
            is_error: false,
        });
    }

    fn name(&self, what: &str) -> Cow<'static, str> {
        format!("{what} {}", self.stream).into()
    }

    fn process(&mut self, redis_ms: u64, entry: EntryId) {
        let Some(open) = self.open.remove(&entry) else { return };
        self.ended_first.get_or_insert(entry);
        link(&mut self.ended, open.trace, entry);
        let Open { trace, event, intent, account, bytes, read_ms, happened } = open;
        let mut attributes = self.attributes("process");
        attributes.extend([
            ("messaging.message.id", entry.to_string().into()),
            ("messaging.message.conversation_id", intent.to_string().into()),
            ("messaging.message.body.size", bytes.into()),
            ("herald.event.id", event.to_string().into()),
            ("herald.account.id", account.to_string().into()),
        ]);
        self.traces.export(Span {
            trace: trace.id,
            id: SpanId::process(trace.id, entry),
            parent: trace.parent,
            is_parent_remote: trace.parent.is_some(),
            kind: Kind::Consumer,
            name: self.name("process"),
            began_us: read_ms * 1_000,
            ended_us: redis_ms * 1_000,
            attributes,
            events: happened,
            links: Vec::new(),
            is_error: false,
        });
    }

    fn attempt(&self, settled: &SettledAttempt) {
        let SettledAttempt { about, endpoint, attempted, waited_ms, fate } = settled;
        let Some(trace) = self.trace(about.traceparent.as_ref(), about.id.entry) else { return };
        let (report, outcome) = (&attempted.report, &attempted.report.outcome);
        let began_us = report.at_ms * 1_000;
        let ended_us = began_us + report.timing.total_us;
        let mut attributes = vec![
            ("http.request.method", "POST".into()),
            ("herald.delivery.id", about.id.to_string().into()),
            ("herald.endpoint.id", about.id.endpoint.to_string().into()),
            ("herald.attempt", report.number.into()),
        ];
        attributes.extend(endpoint.as_deref().map(server).unwrap_or_default());
        attributes.extend(outcome.status().map(|status| ("http.response.status_code", status.into())));
        if report.number > 1 {
            attributes.push(("http.request.resend_count", (report.number - 1).into()));
        }
        if let Some(met) = attempted.met {
            attributes.push(("network.peer.address", met.address.ip().to_string().into()));
            attributes.push(("network.peer.port", met.address.port().into()));
            attributes.push(("network.protocol.version", if met.is_http2 { "2" } else { "1.1" }.into()));
        }
        if !outcome.is_delivered() {
            attributes.push(("error.type", outcome.name().into()));
        }
        attributes.extend(waited_ms.map(|waited| ("herald.waited_ms", waited.into())));
        // What came of it stands with its entry, as long as that is open.
        let came_of_it = match fate {
            _ if self.open.contains_key(&about.id.entry) => None,
            Fate::Delivered => None,
            Fate::RetryAfter(pause) => {
                let at_ms = ended_us / 1_000 + u64::try_from(pause.as_millis()).unwrap_or_default();
                Some(("herald.retry_planned", ended_us, due(at_ms)))
            }
            Fate::Dead(reason) => Some(("herald.dead_letter", ended_us, because(*reason))),
        };
        self.traces.export(Span {
            trace: trace.id,
            id: SpanId::attempt(trace.id, &about.id, report.number),
            parent: Some(SpanId::process(trace.id, about.id.entry)),
            is_parent_remote: false,
            kind: Kind::Client,
            name: "POST".into(),
            began_us,
            ended_us,
            attributes,
            events: came_of_it.into_iter().collect(),
            links: Vec::new(),
            is_error: !outcome.is_delivered(),
        });
    }
}

fn link(links: &mut Vec<(TraceId, SpanId)>, trace: Trace, entry: EntryId) {
    if links.len() <= MAX_LINKS {
        links.push((trace.id, SpanId::process(trace.id, entry)));
    }
}

fn due(redis_ms: u64) -> Attributes {
    vec![("herald.due", rfc3339(redis_ms.saturating_mul(1_000)).into())]
}

fn because(reason: DeadReason) -> Attributes {
    vec![("herald.reason", reason.name().into())]
}

/// Where the request went, without what may be a credential.
fn server(endpoint: &Endpoint) -> Attributes {
    let Ok(mut url) = url::Url::parse(&endpoint.url) else { return Vec::new() };
    // Neither fails on a URL with a host, and without one there is nothing to take away.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    let host = url.host_str().map(|host| ("server.address", host.trim_matches(['[', ']']).to_owned().into()));
    let port = url.port_or_known_default().map(|port| ("server.port", port.into()));
    host.into_iter().chain(port).chain([("url.full", String::from(url).into())]).collect()
}
