//! Where spans go: OpenTelemetry's batch processor, and from there over OTLP/HTTP to a collector, as the standard's variables say.
//! Without them there is nothing here but a question that answers no. A span that finds no room is dropped and counted; nobody
//! waits for a collector. Decides nothing about what is a span.

mod environment;

use std::{
    borrow::Cow,
    fmt::{self, Debug},
    sync::{
        Arc, LazyLock, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{Request, Response};
use opentelemetry::{
    InstrumentationScope, KeyValue,
    trace::{self as otel, Event, Link, SpanContext, SpanKind, Status, TraceFlags, TraceState},
};
use opentelemetry_http::HttpClient;
use opentelemetry_otlp::{WithExportConfig, WithHttpConfig};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{BatchConfigBuilder, BatchSpanProcessor, SpanData, SpanEvents, SpanExporter, SpanLinks, SpanProcessor},
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use prost::Message;
use reqwest::{Certificate, Client, redirect::Policy};
use tokio::runtime::Handle;
use tracing::{info, warn};

pub use self::environment::TracesError;
use self::environment::{Asked, asked};
use crate::{
    clock,
    facts::{
        id::{EntryId, EventId},
        trace::{Sampler, SpanId, Trace, TraceId},
        traceparent::Traceparent,
    },
};

/// More of a collector's answer is not read: it has a number and a sentence to say.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// What a span is at most linked to.
pub const MAX_LINKS: usize = 128;

/// For this process, like the log.
static TRACES: OnceLock<Traces> = OnceLock::new();

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

/// Spans by what became of them, in the order of [`Became`]'s variants.
static SPANS: LazyLock<(Family<ResultLabel, Counter>, [Counter; 3])> = LazyLock::new(|| {
    let family = Family::<ResultLabel, Counter>::default();
    let counters = ["exported", "dropped", "failed"].map(|result| family.get_or_create_owned(&ResultLabel { result }));
    (family, counters)
});

#[derive(Debug, Clone, Copy)]
enum Became {
    Exported,
    /// There was no room for it.
    Dropped,
    /// The collector was not there, or did not want it.
    Failed,
}

fn count(became: Became, spans: u64) {
    SPANS.1[became as usize].inc_by(spans);
}

pub(super) fn register(registry: &mut Registry) {
    registry.register("trace_spans", "Spans of sampled traces, by what became of them", SPANS.0.clone());
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Producer,
    Consumer,
    Client,
    Server,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Text(Cow<'static, str>),
    Number(i64),
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text.into())
    }
}

impl From<&'static str> for Value {
    fn from(text: &'static str) -> Self {
        Self::Text(text.into())
    }
}

macro_rules! numbers {
    ($($of:ty),*) => {$(
        impl From<$of> for Value {
            fn from(number: $of) -> Self {
                Self::Number(i64::try_from(number).unwrap_or(i64::MAX))
            }
        }
    )*};
}
numbers!(u16, u32, u64, usize);

pub type Attributes = Vec<(&'static str, Value)>;

/// A span as it is known once it is over. Times are microseconds since 1970.
#[derive(Debug, Clone)]
pub struct Span {
    pub trace: TraceId,
    pub id: SpanId,
    pub parent: Option<SpanId>,
    /// The parent is another process' span.
    pub is_parent_remote: bool,
    pub kind: Kind,
    pub name: Cow<'static, str>,
    pub began_us: u64,
    pub ended_us: u64,
    pub attributes: Attributes,
    pub events: Vec<(&'static str, u64, Attributes)>,
    pub links: Vec<(TraceId, SpanId)>,
    pub is_error: bool,
}

impl Span {
    fn data(self, scope: &InstrumentationScope) -> SpanData {
        let at = |us: u64| UNIX_EPOCH + Duration::from_micros(us);
        let context = |trace: TraceId, span: SpanId| {
            let (trace, span) = (otel::TraceId::from_bytes(trace.0), otel::SpanId::from_bytes(span.0));
            SpanContext::new(trace, span, TraceFlags::SAMPLED, false, TraceState::default())
        };
        let mut events = SpanEvents::default();
        // A clock may have been set back meanwhile: nothing is before its beginning.
        let (began, ended) = (self.began_us, self.ended_us.max(self.began_us));
        events.events = self
            .events
            .into_iter()
            .map(|(name, us, attributes)| Event::new(name, at(us.clamp(began, ended)), key_values(attributes), 0))
            .collect();
        let mut links = SpanLinks::default();
        links.dropped_count = self.links.len().saturating_sub(MAX_LINKS) as u32;
        let linked = self.links.into_iter().take(MAX_LINKS);
        links.links = linked.map(|(trace, span)| Link::new(context(trace, span), Vec::new(), 0)).collect();
        SpanData {
            span_context: context(self.trace, self.id),
            parent_span_id: self.parent.map_or(otel::SpanId::INVALID, |parent| otel::SpanId::from_bytes(parent.0)),
            parent_span_is_remote: self.is_parent_remote,
            span_kind: match self.kind {
                Kind::Producer => SpanKind::Producer,
                Kind::Consumer => SpanKind::Consumer,
                Kind::Client => SpanKind::Client,
                Kind::Server => SpanKind::Server,
            },
            name: self.name,
            start_time: at(began),
            end_time: at(ended),
            attributes: key_values(self.attributes),
            dropped_attributes_count: 0,
            events,
            links,
            status: if self.is_error { Status::error("") } else { Status::Unset },
            instrumentation_scope: scope.clone(),
        }
    }
}

fn key_values(attributes: Attributes) -> Vec<KeyValue> {
    let one = |(name, value)| match value {
        Value::Text(text) => KeyValue::new(name, text),
        Value::Number(number) => KeyValue::new(name, number),
    };
    attributes.into_iter().map(one).collect()
}

pub struct Traces {
    processor: BatchSpanProcessor,
    pub sampler: Sampler,
    /// Spans that are not exported yet, and how many there may be.
    waiting: Arc<AtomicUsize>,
    most: usize,
    scope: InstrumentationScope,
}

/// None where nobody asked for traces.
pub fn get() -> Option<&'static Traces> {
    TRACES.get()
}

/// Whether the environment asks for something that there is not.
pub fn check() -> Result<(), TracesError> {
    asked().map(drop)
}

/// As the environment says. The exporter's own thread sends on this runtime, which must run until [`stop`].
pub fn start(instance: &str, runtime: Handle) -> Result<(), TracesError> {
    let Some(asked) = asked()?.filter(|_| TRACES.get().is_none()) else { return Ok(()) };
    let traces = Traces::new(asked, instance, runtime)?;
    info!("traces are sent to the collector that the environment names");
    // In tests, several have the same.
    let _ = TRACES.set(traces);
    Ok(())
}

/// Sends what waits, within this time.
pub async fn stop(most: Duration) {
    if let Some(traces) = TRACES.get() {
        let stopped = tokio::task::spawn_blocking(move || traces.processor.shutdown_with_timeout(most)).await;
        if !matches!(stopped, Ok(Ok(()))) {
            warn!("the last spans were not exported: the collector did not take them in time");
        }
    }
}

impl Traces {
    fn new(asked: Asked, instance: &str, runtime: Handle) -> Result<Self, TracesError> {
        let Asked { sampler, timeout, queue: most, authorities, is_named } = asked;
        let refused = Arc::new(AtomicU64::new(0));
        let client = OverReqwest { client: client(authorities)?, runtime, timeout, refused: Arc::clone(&refused) };
        let exporter = opentelemetry_otlp::SpanExporter::builder().with_http().with_http_client(client);
        let exporter = exporter.with_protocol(opentelemetry_otlp::Protocol::HttpBinary).build();
        let exporter = exporter.map_err(|error| TracesError::Exporting(error.to_string()))?;
        let waiting = Arc::new(AtomicUsize::new(0));
        let counted = Counted { exporter, waiting: Arc::clone(&waiting), refused, is_told: AtomicBool::new(false) };
        let batches = BatchConfigBuilder::default().with_max_queue_size(most).build();
        let mut processor = BatchSpanProcessor::builder(counted).with_batch_config(batches).build();
        processor.set_resource(&resource(instance, is_named));
        let scope = InstrumentationScope::builder("herald").with_version(env!("CARGO_PKG_VERSION")).build();
        Ok(Self { processor, sampler, waiting, most, scope })
    }

    /// Never waits.
    pub fn export(&self, span: Span) {
        // Those that are being sent count too, so the processor's own queue never is the one that is full.
        let has_room = |waiting: usize| (waiting < self.most).then_some(waiting + 1);
        match self.waiting.fetch_update(Relaxed, Relaxed, has_room) {
            Ok(_) => self.processor.on_end(span.data(&self.scope)),
            Err(_) => count(Became::Dropped, 1),
        }
    }
}

/// An event on its way into the stream, where that is sampled.
pub struct Publishing {
    trace: Trace,
    span: SpanId,
    began_us: u64,
}

impl Publishing {
    /// `given` is the producer's own. An event that has no trace begins one of its own.
    pub fn begin(event: &EventId, given: Option<&Traceparent>) -> Option<Self> {
        let traces = get()?;
        let began_us = clock::wall_us();
        let otherwise = || TraceId::derived("publish", &[event.as_str().as_bytes(), &began_us.to_be_bytes()]);
        let trace = traces.sampler.trace(given, otherwise)?;
        Some(Self { trace, span: SpanId::publish(trace.id, event), began_us })
    }

    /// What its entry carries.
    pub fn traceparent(&self) -> Option<Traceparent> {
        self.trace.traceparent(self.span)
    }

    pub fn ended(self, stream: &str, entry: EntryId) {
        let Some(traces) = get() else { return };
        let Self { trace, span, began_us } = self;
        traces.export(Span {
            trace: trace.id,
            id: span,
            parent: trace.parent,
            is_parent_remote: trace.parent.is_some(),
            kind: Kind::Producer,
            name: format!("publish {stream}").into(),
            began_us,
            ended_us: clock::wall_us(),
            attributes: vec![
                ("messaging.system", "redis".into()),
                ("messaging.destination.name", stream.to_owned().into()),
                ("messaging.operation.type", "send".into()),
                ("messaging.operation.name", "publish".into()),
                ("messaging.message.id", entry.to_string().into()),
            ],
            events: Vec::new(),
            links: Vec::new(),
            is_error: false,
        });
    }
}

tokio::task_local! {
    static OF_REQUEST: Option<Traceparent>;
}

/// The work of a request, with what it was given or has of its own: whatever is published on its way is part of that trace.
pub fn within<W: Future>(given: Option<Traceparent>, work: W) -> impl Future<Output = W::Output> {
    OF_REQUEST.scope(given, work)
}

/// Of the request that this task works on.
pub fn of_request() -> Option<Traceparent> {
    OF_REQUEST.try_with(Clone::clone).ok().flatten()
}

/// A request over HTTP that this process answers, where that is sampled.
pub struct Serving {
    trace: Trace,
    span: SpanId,
    began_us: u64,
}

impl Serving {
    pub fn begin(given: Option<&Traceparent>) -> Option<Self> {
        let traces = get()?;
        // Nothing about a request is its own.
        let number: [u8; 16] = rand::random();
        let trace = traces.sampler.trace(given, || TraceId(number))?;
        let span = SpanId::request(trace.id, &number);
        Some(Self { trace, span, began_us: clock::wall_us() })
    }

    /// For whatever it leads to.
    pub fn traceparent(&self) -> Option<Traceparent> {
        self.trace.traceparent(self.span)
    }

    /// `method` is one that exists, `scheme` that of the connection, and `route` a template.
    pub fn ended(self, method: &'static str, scheme: &'static str, route: Option<&str>, status: u16) {
        let Some(traces) = get() else { return };
        let Self { trace, span, began_us } = self;
        let mut attributes = vec![
            ("http.request.method", method.into()),
            ("http.response.status_code", status.into()),
            ("url.scheme", scheme.into()),
        ];
        attributes.extend(route.map(|route| ("http.route", route.to_owned().into())));
        let is_error = status >= 500;
        if is_error {
            attributes.push(("error.type", status.to_string().into()));
        }
        traces.export(Span {
            trace: trace.id,
            id: span,
            parent: trace.parent,
            is_parent_remote: trace.parent.is_some(),
            kind: Kind::Server,
            name: route.map_or_else(|| method.into(), |route| format!("{method} {route}").into()),
            began_us,
            ended_us: clock::wall_us(),
            attributes,
            events: Vec::new(),
            links: Vec::new(),
            is_error,
        });
    }
}

fn resource(instance: &str, is_named: bool) -> Resource {
    let resource = Resource::builder();
    let resource = if is_named { resource } else { resource.with_service_name("herald") };
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    resource.with_attributes([version, KeyValue::new("service.instance.id", instance.to_owned())]).build()
}

fn client(authorities: Option<Vec<Certificate>>) -> Result<Client, TracesError> {
    let builder = Client::builder().redirect(Policy::none()).referer(false);
    let builder = match authorities {
        Some(authorities) => builder.tls_certs_only(authorities),
        None => builder,
    };
    builder.build().map_err(|error| TracesError::Exporting(error.to_string()))
}

/// Counts what becomes of spans, and says once that a collector does not take them.
struct Counted {
    exporter: opentelemetry_otlp::SpanExporter,
    waiting: Arc<AtomicUsize>,
    refused: Arc<AtomicU64>,
    is_told: AtomicBool,
}

impl Debug for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Counted")
    }
}

impl SpanExporter for Counted {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let exported = self.exporter.export(batch).await;
        self.waiting.fetch_sub(spans, Relaxed);
        let refused = self.refused.swap(0, Relaxed).min(spans as u64);
        match &exported {
            Ok(()) => {
                count(Became::Exported, spans as u64 - refused);
                count(Became::Failed, refused);
                if refused > 0 {
                    warn!("the collector has refused {refused} of {spans} spans");
                } else if self.is_told.swap(false, Relaxed) {
                    info!("spans are exported again");
                }
            }
            Err(error) => {
                count(Became::Failed, spans as u64);
                if !self.is_told.swap(true, Relaxed) {
                    warn!(%error, "spans are not exported; said once until they are");
                }
            }
        }
        exported
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// The exporter's thread has no reactor: requests are made where there is one.
struct OverReqwest {
    client: Client,
    runtime: Handle,
    timeout: Duration,
    /// Spans that the collector did not want although it took the batch.
    refused: Arc<AtomicU64>,
}

impl Debug for OverReqwest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OverReqwest")
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the collector's answer has more than {MAX_ANSWER_BYTES} bytes")]
struct TooLong;

#[async_trait::async_trait]
impl HttpClient for OverReqwest {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, opentelemetry_http::HttpError> {
        let (client, timeout) = (self.client.clone(), self.timeout);
        // Its timer is made where there is one, too.
        let sending = self.runtime.spawn(async move { tokio::time::timeout(timeout, send(client, request)).await });
        let response = sending.await???;
        // Anything else says nothing that could be counted.
        if response.status().is_success()
            && let Ok(answer) = ExportTraceServiceResponse::decode(response.body().clone())
            && let Some(partial) = answer.partial_success
        {
            self.refused.fetch_add(u64::try_from(partial.rejected_spans).unwrap_or_default(), Relaxed);
        }
        Ok(response)
    }
}

async fn send(client: Client, request: Request<Bytes>) -> Result<Response<Bytes>, opentelemetry_http::HttpError> {
    let mut response = client.execute(request.try_into()?).await?;
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Err(Box::new(TooLong));
        }
        body.extend_from_slice(&chunk);
    }
    let mut answer = Response::new(Bytes::from(body));
    *answer.status_mut() = response.status();
    *answer.headers_mut() = std::mem::take(response.headers_mut());
    Ok(answer)
}
