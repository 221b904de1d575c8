//! The operations API, `/v1`: what the verbs of the command line do, over HTTP and with tokens, and the way in for events. Answers
//! what `-o json` shows, see [`view`](crate::view); changes nothing except in ways that the verbs have too, and each change
//! leaves its entry in the audit log.
//!
//! - [`access`] says who asks and what they may; [`request`] reads what all calls have in common; [`asking`] has the partition's
//!   owner do what only it can.
//! - The other files are the calls, by what they are about.

pub mod access;
pub mod accounts;
pub mod asking;
pub mod audit;
pub mod chains;
pub mod changes;
pub mod deliveries;
pub mod endpoints;
pub mod events;
pub mod intents;
pub mod issues;
pub mod kept_events;
pub mod letters;
pub mod operations;
pub mod overview;
pub mod partitions;
pub mod places;
pub mod portal;
pub mod quarantine;
pub mod request;
pub mod settings;
pub mod stats;
pub mod test_events;
pub mod tokens;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    http::{HeaderValue, header},
    middleware,
    response::Response,
    routing::get,
};
use tokio::sync::{Mutex, Semaphore};
use utoipa::{
    Modify, OpenApi,
    openapi::{
        OpenApi as Description, RefOr,
        security::{Http, HttpAuthScheme, SecurityScheme},
    },
};
use utoipa_axum::{router::OpenApiRouter, routes};

use self::{
    access::{Access, Caller},
    places::Places,
};
use super::intents::{describe_responses, drop_null_defaults};
use crate::{
    clock,
    config::HistoryConfig,
    history::History,
    http::{
        problem::{PROBLEM_JSON, Problem},
        server::{LIMITS, Limits, bounded},
    },
    intents::service::Service,
    registry::{Registry, rules::Rules},
    sender::Sender,
    store::{
        audit::Audit,
        connection::{Connection, Purpose, Redis, SharedConnection},
        error::StoreError,
        keys::PartitionKeys,
        partitions::seen,
        publish::EventPublisher,
        queries::{Partitions, Seen},
        registry::confirming::Confirming,
        routing::Replicas,
    },
    view::{
        audit::ActView,
        chain::ChainView,
        deliveries::DeliveryLine,
        endpoint::EndpointView,
        issue::IssueView,
        letter::{LetterGroup, LetterLine, LetterView},
        operation::{OperationView, ResultView},
        quarantine::QuarantineView,
        token::TokenView,
    },
};

/// Looks that read much of the log at once: each is up to a second's work.
const MAX_HEAVY: usize = 4;

/// Batches of events that are read at once: each holds its body in memory.
const MAX_BATCHES: usize = 32;

/// Questions to the partition's owner at once: each has a connection to Redis.
const MAX_ASKING: usize = 16;

/// Test events on their way at once.
const MAX_TESTS: usize = 8;

/// Merchants' test events that are under way, or were not answered and whose end is not told yet: each takes the place of a request.
const MAX_MERCHANTS_TESTS: usize = 64;

/// Names that are looked up at once: each takes a thread for as long as its server likes.
const MAX_LOOKUPS: usize = 16;

/// How long whoever asks for any of these waits for a place.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long an answer waits for the history before it does without: far less than a request may take.
const HISTORY_PATIENCE: Duration = Duration::from_secs(5);

/// How long the parts of the stream are believed to be those that they were.
const LAYOUT_HOLDS: Duration = Duration::from_secs(2);

/// What it is made of.
pub struct Parts {
    pub redis: Redis,
    pub keys: PartitionKeys,
    /// Somebody must follow it.
    pub registry: Registry,
    pub rules: Rules,
    pub sender: Arc<Sender>,
    pub audit: Audit,
    pub intents: Service,
    /// The first token, with every right.
    pub admin_token: Option<String>,
    /// Whether an event with anything new in it is refused, as the worker would.
    pub strict_events: bool,
    /// What became of deliveries, as far as it is kept.
    pub history: HistoryConfig,
    /// That are to have what is published, or changed of the registry, before that is answered.
    pub replicas: Replicas,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Api(Arc<Inner>);

struct Inner {
    redis: Redis,
    connection: SharedConnection,
    /// Its callers wait no longer than producers do.
    publisher: EventPublisher,
    /// The registry, to change it.
    confirming: Confirming,
    keys: PartitionKeys,
    registry: Registry,
    rules: Rules,
    sender: Arc<Sender>,
    audit: Audit,
    intents: Service,
    strict_events: bool,
    history: History,
    access: Access,
    durability: events::Durabilities,
    schemas: request::Schemas,
    heavy: Places,
    batches: Semaphore,
    asking: Places,
    tests: Places,
    merchants_tests: Semaphore,
    lookups: Places,
    /// What merchants have sent again.
    redeliveries: Places,
    /// Merchants' endpoints, one at a time.
    creating: Mutex<()>,
    overview: overview::Latest,
    layout: Mutex<Option<(Seen, Instant)>>,
}

impl Api {
    pub fn new(parts: Parts) -> Self {
        let Parts { redis, keys, registry, rules, sender, audit, intents, admin_token, strict_events, .. } = parts;
        let history = History::new(parts.history, keys.stream(), HISTORY_PATIENCE);
        let connection = SharedConnection::new(redis.clone(), Purpose::Other);
        let publisher = EventPublisher::new(redis.clone(), &keys, parts.replicas);
        let confirming = Confirming::new(&redis, parts.replicas);
        let access = Access::new(connection.clone(), admin_token.as_deref());
        Self(Arc::new(Inner {
            redis,
            connection,
            publisher,
            confirming,
            keys,
            registry,
            rules,
            sender,
            audit,
            intents,
            strict_events,
            history,
            access,
            durability: events::Durabilities::default(),
            schemas: request::Schemas::default(),
            heavy: Places::new(MAX_HEAVY, PATIENCE),
            batches: Semaphore::new(MAX_BATCHES),
            asking: Places::new(MAX_ASKING, PATIENCE),
            tests: Places::new(MAX_TESTS, Duration::ZERO),
            merchants_tests: Semaphore::new(MAX_MERCHANTS_TESTS),
            lookups: Places::new(MAX_LOOKUPS, PATIENCE),
            redeliveries: Places::new(MAX_ASKING / 2, PATIENCE),
            creating: Mutex::default(),
            overview: overview::Latest::default(),
            layout: Mutex::default(),
        }))
    }

    async fn queries<T>(&self, what: impl AsyncFnOnce(&mut Partitions) -> Result<T, StoreError>) -> Result<T, Problem> {
        let look = async |connection| what(&mut self.partitions(connection).await?).await;
        self.0.connection.with(look).await.map_err(|error| request::of_store(&error))
    }

    async fn partitions(&self, connection: Connection) -> Result<Partitions, StoreError> {
        let mut latest = self.0.layout.lock().await;
        if let Some((seen, since)) = &*latest
            && clock::now() < *since + LAYOUT_HOLDS
        {
            return Partitions::of(connection, seen.clone());
        }
        let found = seen(&connection, self.0.keys.stream()).await?;
        *latest = Some((found.clone(), clock::now()));
        Partitions::of(connection, found)
    }

    pub fn access(&self) -> &Access {
        &self.0.access
    }

    /// For looks that read much: they wait for each other.
    /// A merchant has their share, and whoever runs Herald does not wait for merchants.
    async fn heavy_queries<T>(
        &self,
        caller: &Caller,
        what: impl AsyncFnOnce(&mut Partitions) -> Result<T, StoreError>,
    ) -> Result<T, Problem> {
        let _place = self.0.heavy.take_for(caller).await?;
        self.queries(what).await
    }
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Herald: operations",
        version = "1",
        description = "What the verbs of the command line do, over HTTP, and the way in for events."
    ),
    security(("token" = [])),
    components(schemas(
        ActView, ChainView, DeliveryLine, EndpointView, IssueView, LetterGroup, LetterLine, LetterView, OperationView,
        QuarantineView, ResultView, TokenView
    )),
    modifiers(&Tokens)
)]
struct Base;

struct Tokens;

impl Modify for Tokens {
    fn modify(&self, description: &mut Description) {
        let components = description.components.get_or_insert_default();
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        components.add_security_scheme("token", scheme);
    }
}

/// Its routes within the limits of each request, with every refusal as RFC 9457 has it.
pub fn served(api: Api) -> Router {
    let limits = Limits { body_bytes: events::MAX_BATCH_BYTES, ..LIMITS };
    bounded(router(api), limits).layer(middleware::map_response(typed))
}

/// The calls alone, for the console of the same process, which says as an extension of each request who its [`Caller`] is.
pub fn calls(api: Api) -> Router {
    described().0.with_state(api)
}

/// The type that RFC 9457 gives a problem.
async fn typed(mut response: Response) -> Response {
    let status = response.status();
    if status.is_client_error() || status.is_server_error() {
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
    }
    response
}

/// With the description of themselves at `/openapi.json`.
fn router(api: Api) -> Router {
    let (router, description) = described();
    let mut description = serde_json::to_value(&description).expect("a description is JSON");
    drop_null_defaults(&mut description);
    let description: Arc<str> = description.to_string().into();
    let publish = get(async move || ([("content-type", "application/json")], description.to_string()));
    router.with_state(api).route("/openapi.json", publish)
}

/// The description alone, for whoever makes documents of it.
pub fn description() -> Description {
    described().1
}

fn described() -> (Router<Api>, Description) {
    let router = OpenApiRouter::with_openapi(Base::openapi())
        .routes(routes!(access::me))
        .routes(routes!(stats::stats))
        .routes(routes!(overview::overview))
        .routes(routes!(partitions::list))
        .routes(routes!(partitions::of))
        .routes(routes!(partitions::workers))
        .routes(routes!(stats::pause))
        .routes(routes!(stats::resume))
        .routes(routes!(accounts::list))
        .routes(routes!(accounts::events))
        .routes(routes!(portal::link))
        .routes(routes!(events::publish, kept_events::list))
        .routes(routes!(events::publish_batch))
        .routes(routes!(events::find))
        .routes(routes!(endpoints::list, changes::create))
        .routes(routes!(endpoints::show, changes::update, changes::delete))
        .routes(routes!(changes::pause))
        .routes(routes!(changes::resume))
        .routes(routes!(changes::enable))
        .routes(routes!(changes::disable))
        .routes(routes!(changes::rotate_secret))
        .routes(routes!(test_events::test))
        .routes(routes!(deliveries::list))
        .routes(routes!(deliveries::show))
        .routes(routes!(deliveries::attempts))
        .routes(routes!(intents::show))
        .routes(routes!(issues::list))
        .routes(routes!(issues::show))
        .routes(routes!(issues::ack))
        .routes(routes!(issues::resolve))
        .routes(routes!(letters::list))
        .routes(routes!(letters::groups))
        .routes(routes!(letters::show))
        .routes(routes!(letters::redeliver))
        .routes(routes!(letters::discard))
        .routes(routes!(operations::list, operations::plan))
        .routes(routes!(operations::show))
        .routes(routes!(operations::results))
        .routes(routes!(operations::start))
        .routes(routes!(operations::pause))
        .routes(routes!(operations::resume))
        .routes(routes!(operations::cancel))
        .routes(routes!(operations::rate))
        .routes(routes!(chains::list))
        .routes(routes!(chains::show))
        .routes(routes!(chains::release))
        .routes(routes!(quarantine::list))
        .routes(routes!(quarantine::show))
        .routes(routes!(quarantine::requeue))
        .routes(routes!(quarantine::discard))
        .routes(routes!(audit::list))
        .routes(routes!(audit::show))
        .routes(routes!(tokens::list, tokens::create))
        .routes(routes!(tokens::revoke));
    let (router, mut description) = router.split_for_parts();
    describe_responses(&mut description);
    describe_problems(&mut description);
    (router, description)
}

/// Refusals have the type that RFC 9457 gives them, see [`typed`].
fn describe_problems(description: &mut Description) {
    for item in description.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.post, &mut item.patch, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            let refusals = operation.responses.responses.iter_mut().filter(|(code, _)| code.starts_with(['4', '5']));
            for (_, response) in refusals {
                if let RefOr::T(response) = response
                    && let Some(content) = response.content.swap_remove("application/json")
                {
                    response.content.insert(PROBLEM_JSON.to_owned(), content);
                }
            }
        }
    }
}
