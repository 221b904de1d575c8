//! Operations on many dead letters: planned, started by their id, followed, paused and cancelled. The worker carries them out.

use std::str::FromStr;

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::{
    Api,
    access::{Caller, Operator, Staff},
    letters::reason_named,
    request::{
        Body, ChangeRefusals, Cursor, Page, Params, Refusals, limit, moment, named, of_store, optional, reason,
        refused, wrong_cursor,
    },
};
use crate::{
    clock,
    facts::{
        audit::{Act, Begun, Tally},
        id::{AccountId, EndpointId, EntryId, EventId, IntentId, OperationId},
        letter::Cause,
        operation::{Change, Kind, MAX_RATE, Operation, Rate, State as OperationState, made_ms},
    },
    history::plan::{self, PlanError},
    http::problem::Problem,
    store::{
        error::StoreError,
        operations::{AllOperations, Beside, OperationError, Share, Verb, Wanted},
        queries::{DeadFilter, MAX_PAGE},
    },
    view::operation::{OperationView, ResultView},
};

type Answer<T> = Result<Json<T>, Problem>;

/// What is to be done to which dead letters. Nothing is done until it is started.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PlanOperation {
    /// redeliver or discard dead letters; send-now, for what waits for its next attempt: with `endpoint`, and `intent`, alone; or
    /// replay, to send events that the history kept to one `endpoint` again: those of its account, or of one `intent` or `event`;
    /// or erase, to take out what is kept of the events of one `account`, whose endpoints are disabled or deleted.
    kind: String,
    account: Option<String>,
    endpoint: Option<String>,
    /// exhausted, expired, gone, disabled, deleted or released.
    dead_reason: Option<String>,
    /// What the last attempt brought: `rejected:404`, or a class alone.
    cause: Option<String>,
    intent: Option<String>,
    event: Option<String>,
    /// Given up, or for a replay accepted, at this time or later: `2026-05-01T09:00:00Z`, or an age, `6h`.
    since: Option<String>,
    /// Given up or accepted at this time or earlier.
    until: Option<String>,
    /// Every dead letter there is: needed where no other condition is given.
    #[serde(default)]
    #[schema(default = false)]
    all: bool,
    /// No more than this many, the oldest.
    #[schema(minimum = 1)]
    limit: Option<u64>,
    /// How many a second at most.
    #[schema(minimum = 1, maximum = 10000)]
    rate: Option<u32>,
    #[schema(min_length = 1, max_length = 1024)]
    reason: String,
}

/// Why it is changed; kept in the audit log.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeOperation {
    #[schema(max_length = 1024)]
    reason: Option<String>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetRate {
    /// How many a second at most.
    #[schema(minimum = 1, maximum = 10000)]
    rate: u32,
    #[schema(max_length = 1024)]
    reason: Option<String>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// At most so many, 1 to 500.
    limit: Option<String>,
    /// `next` or `prev` of another page of this list.
    cursor: Option<String>,
}

impl PlanOperation {
    fn letters(&self, now_ms: u64) -> Result<DeadFilter, Problem> {
        Ok(DeadFilter {
            from_ms: moment("since", self.since.as_ref(), now_ms)?.unwrap_or(0),
            until_ms: moment("until", self.until.as_ref(), now_ms)?.unwrap_or(DeadFilter::END_MS),
            endpoint: optional::<EndpointId>("endpoint", self.endpoint.as_ref())?,
            account: optional::<AccountId>("account", self.account.as_ref())?,
            reason: self.dead_reason.as_deref().map(reason_named).transpose()?,
            cause: optional::<Cause>("cause", self.cause.as_ref())?,
            intent: optional::<IntentId>("intent", self.intent.as_ref())?,
            event: optional::<EventId>("event", self.event.as_ref())?,
        })
    }

    /// As the flags of `herald operation plan`.
    fn flags(&self) -> String {
        let flags = [
            ("account", &self.account),
            ("endpoint", &self.endpoint),
            ("dead-reason", &self.dead_reason),
            ("cause", &self.cause),
            ("intent", &self.intent),
            ("event", &self.event),
            ("since", &self.since),
            ("until", &self.until),
        ];
        let flags = flags.into_iter().filter_map(|(name, value)| Some(format!("--{name} {}", value.as_ref()?)));
        let limit = self.limit.map(|limit| format!("--limit {limit}"));
        let flags: Vec<String> = flags.chain(limit).collect();
        if flags.is_empty() { "--all".to_owned() } else { flags.join(" ") }
    }
}

impl Api {
    async fn operations<T, E: From<StoreError>>(
        &self,
        what: impl AsyncFnOnce(&mut AllOperations) -> Result<T, E>,
    ) -> Result<Result<T, E>, Problem> {
        let ask = async |connection| {
            let mut operations = AllOperations::from(self.partitions(connection).await?);
            // Whatever it is refused for is no fault of the connection.
            Ok(what(&mut operations).await)
        };
        self.0.connection.with(ask).await.map_err(|error| of_store(&error))
    }

    async fn operation(&self, id: &OperationId) -> Result<Operation, Problem> {
        let found = self.operations(async |operations| operations.find(id).await).await?;
        found.map_err(|error| of_store(&error))?.ok_or_else(Problem::not_found)
    }
}

fn of_operation(error: &OperationError) -> Problem {
    match error {
        OperationError::Store(error) => of_store(error),
        OperationError::Missing(_) => Problem::not_found(),
        OperationError::Nothing => refused("Nothing matches, so there is nothing to plan."),
        OperationError::NotForSending => Problem::fault("kind", error.to_string()),
        OperationError::TooMany(_)
        | OperationError::Unindexed(_)
        | OperationError::SetBack { .. }
        | OperationError::Refused { .. }
        | OperationError::Many(_) => refused(format!("{error}.")),
    }
}

fn of_plan(error: &PlanError) -> Problem {
    match error {
        PlanError::Operation(error) => of_operation(error),
        PlanError::NoEndpoint => Problem::fault("endpoint", "is needed: a replay is to one endpoint"),
        PlanError::NotForReplay => Problem::fault("kind", "replay takes events: leave dead_reason and cause out"),
        PlanError::MissingEndpoint(_) => Problem::fault("endpoint", format!("{error}")),
        PlanError::NotForErasing => {
            Problem::fault("account", "is needed, and no other condition: an erasure is of one account")
        }
        PlanError::NoHistory(_) => Problem::unavailable(format!("{error}."), 5),
        PlanError::NoEvents
        | PlanError::Behind { .. }
        | PlanError::StillSent { .. }
        | PlanError::TooOld { .. }
        | PlanError::OtherAccount { .. }
        | PlanError::Disabled { .. } => refused(format!("{error}.")),
    }
}

/// Plan one: say what it is about, and freeze that and how many these are under an id. Nothing is done yet.
#[utoipa::path(
    post, path = "/v1/operations", tag = "Operations", request_body = PlanOperation,
    responses((status = 201, body = OperationView), Refusals, ChangeRefusals)
)]
pub async fn plan(
    State(api): State<Api>,
    Operator(caller): Operator,
    body: Body,
) -> Result<(StatusCode, Json<OperationView>), Problem> {
    let request = body.read(&api.0.schemas.plan)?;
    let kind = Kind::from_str(&request.kind).map_err(|why| Problem::fault("kind", why))?;
    let why = reason(&request.reason)?;
    let filter = request.flags();
    if filter == "--all" && !request.all {
        return Err(Problem::fault("all", "is needed where there is no other condition"));
    }
    let now_ms = api.queries(async |queries| queries.now_ms().await).await?;
    let mut letters = request.letters(now_ms)?;
    if matches!(kind, Kind::SendNow | Kind::Replay | Kind::Erase) && request.until.is_none() {
        letters.until_ms = DeadFilter::everything().until_ms;
    }
    let begun = caller.begun(&api, Act::OperationPlan, &why).filter(&filter);
    let begun = letters.account.iter().fold(begun, Begun::account);
    let begun = letters.endpoint.iter().fold(begun, Begun::endpoint);
    let wanted = Wanted {
        kind,
        letters,
        limit: request.limit,
        filter,
        rate: request.rate.map(Rate::of),
        by: caller.by(),
        why,
        random: rand::random(),
        made_ms: None,
    };
    let work = async |tally: &mut Tally| {
        let _place = api.0.heavy.take_for_staff().await?;
        let planned = match (kind, &wanted.letters.endpoint) {
            (Kind::Replay, None) => Err(PlanError::NoEndpoint),
            (Kind::Replay, Some(id)) => {
                let endpoint = api.with_registry(async |store| store.get(id).await).await?;
                let plan = async |operations: &mut AllOperations| {
                    plan::replay(&api.0.history, operations, endpoint.as_ref(), wanted).await
                };
                api.operations(plan).await?
            }
            (Kind::Erase, _) => {
                let endpoints = api.all_endpoints().await?;
                let plan = async |operations: &mut AllOperations| {
                    plan::erase(&api.0.history, operations, &endpoints, wanted).await
                };
                api.operations(plan).await?
            }
            _ => api.operations(async |operations| Ok(operations.plan(wanted).await?)).await?,
        };
        let planned = planned.map_err(|error| of_plan(&error))?;
        tally.set(planned.plan.count, 0);
        Ok::<_, Problem>(planned)
    };
    let planned = api.0.audit.audited(begun, work).await?;
    Ok((StatusCode::CREATED, Json(OperationView::of(&planned))))
}

/// List operations, the newest first.
#[utoipa::path(
    get, path = "/v1/operations", tag = "Operations", params(PageQuery),
    responses((status = 200, body = Page<OperationView>), Refusals)
)]
pub async fn list(
    State(api): State<Api>,
    Staff(_): Staff,
    Params(query): Params<PageQuery>,
) -> Answer<Page<OperationView>> {
    let (cursor, limit) = (Cursor::read(query.cursor.as_ref())?, limit(query.limit.as_ref())?);
    let id = |key: &str| key.parse().ok().filter(|id| made_ms(id).is_some()).ok_or_else(wrong_cursor);
    let (is_first, is_back) = (cursor.is_none(), matches!(cursor, Some(Cursor::Before(_))));
    let other: Option<OperationId> = match &cursor {
        None => None,
        Some(Cursor::After(key) | Cursor::Before(key)) => Some(id(key)?),
    };
    let beside = match &other {
        None => Beside::Nothing,
        Some(id) if is_back => Beside::NewerThan(id),
        Some(id) => Beside::OlderThan(id),
    };
    let look = async |operations: &mut AllOperations| {
        let (ids, is_beyond) = operations.page(beside, limit).await?;
        let found = operations.find_all(&ids).await?;
        Ok::<_, StoreError>((found, ids, is_beyond, operations.partitions().unavailable()))
    };
    let (found, ids, is_beyond, unavailable) = api.operations(look).await?.map_err(|error| of_store(&error))?;
    let (has_newer, has_older) = if is_back { (is_beyond, true) } else { (!is_first, is_beyond) };
    let (next, prev) = match cursor.filter(|_| ids.is_empty()) {
        Some(cursor) => cursor.turned(),
        None => (
            ids.last().filter(|_| has_older).map(|id| Cursor::After(id.to_string()).text()),
            ids.first().filter(|_| has_newer).map(|id| Cursor::Before(id.to_string()).text()),
        ),
    };
    Ok(Json(Page { items: found.iter().map(OperationView::of).collect(), next, prev, unavailable }))
}

/// Show one: how far it is, what it waits for, and what became of what it took.
#[utoipa::path(
    get, path = "/v1/operations/{operation}", tag = "Operations", params(("operation" = String, Path)),
    responses((status = 200, body = OperationView), Refusals)
)]
pub async fn show(State(api): State<Api>, Staff(_): Staff, Path(id): Path<String>) -> Answer<OperationView> {
    Ok(Json(OperationView::of(&api.operation(&named(&id)?).await?)))
}

/// List what was refused, given up again or overtaken, the oldest first; the last 10 000 are kept.
#[utoipa::path(
    get, path = "/v1/operations/{operation}/results", tag = "Operations",
    params(("operation" = String, Path), PageQuery),
    responses((status = 200, body = Page<ResultView>), Refusals)
)]
pub async fn results(
    State(api): State<Api>,
    Staff(_): Staff,
    Path(id): Path<String>,
    Params(query): Params<PageQuery>,
) -> Answer<Page<ResultView>> {
    let (id, limit) = (named::<OperationId>(&id)?, limit(query.limit.as_ref())?);
    let after = match Cursor::read(query.cursor.as_ref())? {
        None => None,
        Some(Cursor::After(key)) => Some(key.parse::<EntryId>().map_err(|_| wrong_cursor())?),
        Some(Cursor::Before(_)) => return Err(wrong_cursor()),
    };
    api.operation(&id).await?;
    let most = limit.min(MAX_PAGE);
    let look = async |operations: &mut AllOperations| {
        let (found, has_more) = operations.exceptions(&id, after, most).await?;
        Ok::<_, StoreError>((found, has_more, operations.partitions().unavailable()))
    };
    let (found, has_more, unavailable) = api.operations(look).await?.map_err(|error| of_store(&error))?;
    let next = found.last().filter(|_| has_more).map(|(last, _)| Cursor::After(last.to_string()).text());
    let items = found.iter().map(|(_, exception)| ResultView::of(exception)).collect();
    Ok(Json(Page { items, next, prev: None, unavailable }))
}

/// Start one that is planned: it takes what there was then. Whoever starts it twice is told that it runs already.
#[utoipa::path(
    post, path = "/v1/operations/{operation}/start", tag = "Operations", params(("operation" = String, Path)),
    request_body = Option<ChangeOperation>, responses((status = 200, body = OperationView), Refusals, ChangeRefusals)
)]
pub async fn start(
    State(api): State<Api>,
    Operator(caller): Operator,
    Path(id): Path<String>,
    body: Body,
) -> Answer<OperationView> {
    let why = why(body.read_or_default(&api.0.schemas.change_operation)?.reason)?;
    let operation = api.operation(&named(&id)?).await?;
    let shares = api.operations(async |operations| operations.shares_of(&operation.id).await).await?;
    let mut shares = shares.map_err(|error| of_store(&error))?;
    let are_many = shares.len() > 1;
    shares.retain(|share| share.operation.state == OperationState::Planned);
    if shares.is_empty() {
        let error = OperationError::Refused { id: operation.id, state: operation.state };
        return Err(of_operation(&error));
    }
    for share in &shares {
        let (id, plan) = (&operation.id, &share.operation.plan);
        let filter = share.filter(are_many);
        let begun = caller.begun(&api, Act::OperationStart, &why).target(id).filter(&filter).count(plan.count);
        let begun = plan.selection.account.iter().fold(begun, Begun::account);
        let begun = plan.selection.endpoint.iter().fold(begun, Begun::endpoint);
        let entry = api.0.audit.begin(&begun).await.map_err(crate::store::audit::AuditError)?;
        let started = start_share(&api, &caller, share, entry, &why).await;
        // Its end is written by the worker, once it has ended.
        if let Err(problem) = &started
            && let Err(error) = api.0.audit.end(entry, Err(problem), Tally::default()).await
        {
            tracing::warn!(%error, "the end of an act is not in the audit log");
        }
        started?;
    }
    Ok(Json(OperationView::of(&api.operation(&operation.id).await?)))
}

async fn start_share(
    api: &Api,
    caller: &Caller,
    share: &Share,
    entry: Option<EntryId>,
    why: &str,
) -> Result<(), Problem> {
    let who = Change { by: caller.by(), why: why.to_owned(), at_ms: clock::wall_ms() };
    let started = api.operations(async |operations| operations.start(share, entry, &who).await).await?;
    started.map_err(|error| of_operation(&error))
}

/// Take nothing more for now; what is under way ends.
#[utoipa::path(
    post, path = "/v1/operations/{operation}/pause", tag = "Operations", params(("operation" = String, Path)),
    request_body = Option<ChangeOperation>, responses((status = 200, body = OperationView), Refusals, ChangeRefusals)
)]
pub async fn pause(
    State(api): State<Api>,
    Operator(caller): Operator,
    Path(id): Path<String>,
    body: Body,
) -> Answer<OperationView> {
    let why = why(body.read_or_default(&api.0.schemas.change_operation)?.reason)?;
    audited(&api, &caller, &id, Act::OperationPause, Verb::Pause, &why).await
}

/// Go on with one that is paused.
#[utoipa::path(
    post, path = "/v1/operations/{operation}/resume", tag = "Operations", params(("operation" = String, Path)),
    request_body = Option<ChangeOperation>, responses((status = 200, body = OperationView), Refusals, ChangeRefusals)
)]
pub async fn resume(
    State(api): State<Api>,
    Operator(caller): Operator,
    Path(id): Path<String>,
    body: Body,
) -> Answer<OperationView> {
    let why = why(body.read_or_default(&api.0.schemas.change_operation)?.reason)?;
    audited(&api, &caller, &id, Act::OperationResume, Verb::Resume, &why).await
}

/// Take nothing more for good; what is under way ends, and what was done stays done.
#[utoipa::path(
    post, path = "/v1/operations/{operation}/cancel", tag = "Operations", params(("operation" = String, Path)),
    request_body = Option<ChangeOperation>, responses((status = 200, body = OperationView), Refusals, ChangeRefusals)
)]
pub async fn cancel(
    State(api): State<Api>,
    Operator(caller): Operator,
    Path(id): Path<String>,
    body: Body,
) -> Answer<OperationView> {
    let why = why(body.read_or_default(&api.0.schemas.change_operation)?.reason)?;
    audited(&api, &caller, &id, Act::OperationCancel, Verb::Cancel, &why).await
}

/// Set how many it takes a second at most.
#[utoipa::path(
    post, path = "/v1/operations/{operation}/rate", tag = "Operations", params(("operation" = String, Path)),
    request_body = SetRate, responses((status = 200, body = OperationView), Refusals, ChangeRefusals)
)]
pub async fn rate(
    State(api): State<Api>,
    Operator(caller): Operator,
    Path(id): Path<String>,
    body: Body,
) -> Answer<OperationView> {
    let SetRate { rate, reason } = body.read(&api.0.schemas.operation_rate)?;
    if !(1..=MAX_RATE).contains(&rate) {
        return Err(Problem::fault("rate", format!("is not 1 to {MAX_RATE}")));
    }
    audited(&api, &caller, &id, Act::OperationRate, Verb::Rate(Rate::of(rate)), &why(reason)?).await
}

fn why(given: Option<String>) -> Result<String, Problem> {
    given.filter(|text| !text.trim().is_empty()).map_or(Ok(String::new()), |text| reason(&text))
}

async fn audited(api: &Api, caller: &Caller, id: &str, act: Act, verb: Verb, why: &str) -> Answer<OperationView> {
    let operation = api.operation(&named(id)?).await?;
    let begun = caller.begun(api, act, why).target(&operation.id);
    let begun = if let Verb::Rate(rate) = verb { begun.count(rate.rounded_up().into()) } else { begun };
    let work = async |_: &mut Tally| change(api, caller, &operation.id, verb, why).await;
    api.0.audit.audited(begun, work).await
}

async fn change(api: &Api, caller: &Caller, id: &OperationId, verb: Verb, why: &str) -> Answer<OperationView> {
    let who = Change { by: caller.by(), why: why.to_owned(), at_ms: clock::wall_ms() };
    let changed = api.operations(async |operations| operations.change(id, verb, &who).await).await?;
    changed.map_err(|error| of_operation(&error))?;
    Ok(Json(OperationView::of(&api.operation(id).await?)))
}
