//! Endpoints: how they are made and changed. A merchant changes only their own, and lifts nothing that an operator has imposed.

use std::time::Duration;

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    Api,
    access::{Caller, Keeper, MERCHANT},
    request::{Body, ChangeRefusals, Reason, Refusals, named, of_rule, optional, parsed, reason, refused},
    settings::{CreateEndpoint, UpdateEndpoint},
};
use crate::{
    clock,
    config::{compact, parse_duration},
    facts::{
        audit::{Act, Begun},
        delivery::Delivery,
        endpoint::{Endpoint, EndpointState, Mark, Ordering},
        event::{EventType, PaymentStatus},
        id::{AccountId, EndpointId, EntryId, EventId, IntentId},
        outcome::Attempted,
        sample::{self, Sample},
        signing::{MIN_SECRET_CHARS, Secret, SecretText, rotated},
        token::Role,
    },
    http::problem::{Problem, ProblemDetails},
    registry::rules::check_new_secrets,
    store::watch::last_entry,
    view::{endpoint::EndpointView, test::TestView},
};

type Answer<T> = Result<Json<T>, Problem>;

/// Longest overlap of two secrets: a receiver that has not moved on by then never will.
const MAX_OVERLAP: Duration = Duration::from_secs(30 * 86_400);
const USUAL_OVERLAP: &str = "24h";

/// Endpoints that a merchant's tokens make for their account.
const MAX_OF_MERCHANT: usize = 50;

/// Register an endpoint. A secret that is made for it is in the answer, and never again.
#[utoipa::path(
    post, path = "/v1/endpoints", tag = "Endpoints", request_body = CreateEndpoint,
    responses((status = 201, body = EndpointView), Refusals, ChangeRefusals)
)]
pub async fn create(
    State(api): State<Api>,
    Keeper(caller): Keeper,
    body: Body,
) -> Result<(StatusCode, Json<EndpointView>), Problem> {
    let request = body.read(&api.0.schemas.create)?;
    let account = caller.narrowed(optional::<AccountId>("account", request.account.as_ref())?)?;
    let account = account.ok_or_else(|| Problem::fault("account", "is missing: whose endpoint is it?"))?;
    let id = optional::<EndpointId>("id", request.id.as_ref())?.unwrap_or_else(fresh_id);
    if caller.role == Role::Merchant && request.id.is_some() {
        return Err(Problem::fault(
            "id",
            "is chosen by Herald: an id that was another's would lead to what is left of it",
        ));
    }
    let why = request.reason.as_deref().map_or_else(|| Ok("created".to_owned()), reason)?;
    let made = request.secret.is_none().then(fresh_secret);
    let secret = match &request.secret {
        Some(text) => SecretText::new(text.clone()).map_err(|error| Problem::fault("secret", error.to_string()))?,
        None => made.clone().unwrap_or_else(fresh_secret),
    };
    let mark = caller.mark(&why);
    let mut endpoint = Endpoint::new(id, account, request.url.clone(), secret, mark.at_ms);
    request.apply(&mut endpoint)?;
    check_secret(&endpoint)?;
    api.check_with_url(&caller, &endpoint).await?;
    if caller.role == Role::Merchant {
        api.check_room(&endpoint.account).await?;
    }
    let begun = about(caller.begun(&api, Act::EndpointCreate, &why), &endpoint);
    let create = async |_: &mut _| api.with_registry(async |store| store.create(endpoint, &mark).await).await;
    let created = api.0.audit.audited(begun, create).await?;
    let view = EndpointView::of(&created, made.as_ref(), caller.viewer(), clock::wall_ms());
    Ok((StatusCode::CREATED, Json(view)))
}

/// Change settings of an endpoint.
#[utoipa::path(
    patch, path = "/v1/endpoints/{endpoint}", tag = "Endpoints", params(("endpoint" = String, Path)),
    request_body = UpdateEndpoint, responses((status = 200, body = EndpointView), Refusals, ChangeRefusals)
)]
pub async fn update(
    State(api): State<Api>,
    Keeper(caller): Keeper,
    Path(id): Path<String>,
    body: Body,
) -> Answer<EndpointView> {
    let request = body.read(&api.0.schemas.update)?;
    let why = reason(&request.reason)?;
    let before = api.endpoint(&caller, &named(&id)?).await?;
    let mut after = before.clone();
    request.apply(&mut after)?;
    if after == before {
        return Ok(Json(caller.shown(&before)));
    }
    if after.url == before.url {
        api.0.rules.check_settings(&after).map_err(|error| of_rule(&error, caller.viewer()))?;
    } else {
        api.check_with_url(&caller, &after).await?;
    }
    // Only the names of what changes: values may be secrets.
    let changed = before.fields_that_differ(&after).join(", ");
    let begun = about(caller.begun(&api, Act::EndpointUpdate, &why), &before).target(changed);
    Ok(Json(caller.shown(&api.put(begun, after, &caller.mark(&why)).await?)))
}

/// Remove an endpoint. It takes no more events at once, and is gone when what was accepted before is delivered or a dead letter.
#[utoipa::path(
    delete, path = "/v1/endpoints/{endpoint}", tag = "Endpoints", params(("endpoint" = String, Path)),
    request_body = Reason, responses((status = 202, body = EndpointView), Refusals, ChangeRefusals)
)]
pub async fn delete(
    State(api): State<Api>,
    Keeper(caller): Keeper,
    Path(id): Path<String>,
    body: Body,
) -> Result<(StatusCode, Json<EndpointView>), Problem> {
    let view = api.disable(&caller, &id, &body, Act::EndpointDelete, |endpoint| endpoint.leaves = true).await?;
    Ok((StatusCode::ACCEPTED, Json(view)))
}

/// Take no events; what is unfinished becomes dead letters.
#[utoipa::path(
    post, path = "/v1/endpoints/{endpoint}/disable", tag = "Endpoints", params(("endpoint" = String, Path)),
    request_body = Reason, responses((status = 200, body = EndpointView), Refusals, ChangeRefusals)
)]
pub async fn disable(
    State(api): State<Api>,
    Keeper(caller): Keeper,
    Path(id): Path<String>,
    body: Body,
) -> Answer<EndpointView> {
    api.disable(&caller, &id, &body, Act::EndpointDisable, |_| {}).await.map(Json)
}

/// Let its deliveries wait in its backlog.
#[utoipa::path(
    post, path = "/v1/endpoints/{endpoint}/pause", tag = "Endpoints", params(("endpoint" = String, Path)),
    request_body = Reason, responses((status = 200, body = EndpointView), Refusals, ChangeRefusals)
)]
pub async fn pause(
    State(api): State<Api>,
    Keeper(caller): Keeper,
    Path(id): Path<String>,
    body: Body,
) -> Answer<EndpointView> {
    api.switch(&caller, &id, &body, Act::EndpointPause).await.map(Json)
}

/// Let its backlog go out.
#[utoipa::path(
    post, path = "/v1/endpoints/{endpoint}/resume", tag = "Endpoints", params(("endpoint" = String, Path)),
    request_body = Reason, responses((status = 200, body = EndpointView), Refusals, ChangeRefusals)
)]
pub async fn resume(
    State(api): State<Api>,
    Keeper(caller): Keeper,
    Path(id): Path<String>,
    body: Body,
) -> Answer<EndpointView> {
    api.switch(&caller, &id, &body, Act::EndpointResume).await.map(Json)
}

/// Take events again, after it was disabled.
#[utoipa::path(
    post, path = "/v1/endpoints/{endpoint}/enable", tag = "Endpoints", params(("endpoint" = String, Path)),
    request_body = Reason, responses((status = 200, body = EndpointView), Refusals, ChangeRefusals)
)]
pub async fn enable(
    State(api): State<Api>,
    Keeper(caller): Keeper,
    Path(id): Path<String>,
    body: Body,
) -> Answer<EndpointView> {
    api.switch(&caller, &id, &body, Act::EndpointEnable).await.map(Json)
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RotateSecret {
    /// How long the older secrets keep signing, `0s` to `30d`; `24h` where nothing is said.
    #[serde(default)]
    overlap: Option<String>,
    /// A fresh one where nothing is said, which is in the answer and never again.
    #[serde(default)]
    secret: Option<String>,
    #[schema(min_length = 1, max_length = 1024)]
    reason: String,
}

/// Make a new secret that signs at once; the older ones keep signing until the overlap is over.
#[utoipa::path(
    post, path = "/v1/endpoints/{endpoint}/rotate-secret", tag = "Endpoints", params(("endpoint" = String, Path)),
    request_body = RotateSecret, responses((status = 200, body = EndpointView), Refusals, ChangeRefusals)
)]
pub async fn rotate_secret(
    State(api): State<Api>,
    Keeper(caller): Keeper,
    Path(id): Path<String>,
    body: Body,
) -> Answer<EndpointView> {
    let request = body.read(&api.0.schemas.rotate)?;
    let why = reason(&request.reason)?;
    let overlap = parse_duration(request.overlap.as_deref().unwrap_or(USUAL_OVERLAP));
    let overlap = overlap.ok().filter(|overlap| *overlap <= MAX_OVERLAP);
    let overlap = overlap.ok_or_else(|| Problem::fault("overlap", "is no time from 0s to 30d"))?;
    let mut endpoint = api.endpoint(&caller, &named(&id)?).await?;
    let made = request.secret.is_none().then(fresh_secret);
    let secret = match request.secret {
        Some(text) => SecretText::new(text).map_err(|error| Problem::fault("secret", error.to_string()))?,
        None => made.clone().unwrap_or_else(fresh_secret),
    };
    if endpoint.secrets.iter().any(|known| known.value == secret) {
        return Err(Problem::fault("secret", "is one that the endpoint already has"));
    }
    let (before, mark) = (endpoint.clone(), caller.mark(&why));
    endpoint.secrets = rotated(endpoint.secrets, Secret::new(secret, mark.at_ms), mark.at_ms, overlap);
    let judged = check_new_secrets(&endpoint, Some(&before)).and_then(|()| api.0.rules.check_settings(&endpoint));
    judged.map_err(|error| of_rule(&error, caller.viewer()))?;
    let begun = about(caller.begun(&api, Act::EndpointRotateSecret, &why), &endpoint);
    let begun = begun.filter(format_args!("--overlap {}", compact(overlap)));
    let updated = api.put(begun, endpoint, &mark).await?;
    Ok(Json(EndpointView::of(&updated, made.as_ref(), caller.viewer(), clock::wall_ms())))
}

#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TestRequest {
    /// The first that the endpoint wants, where nothing is said.
    #[schema(required = false)]
    event_type: Option<String>,
    #[schema(required = false)]
    reason: Option<String>,
}

/// Send a signed test event to it, past the stream. That it is not taken is no error.
#[utoipa::path(
    post, path = "/v1/endpoints/{endpoint}/test", tag = "Endpoints", params(("endpoint" = String, Path)),
    request_body = Option<TestRequest>,
    responses((status = 200, body = TestView), Refusals, (status = 413, body = ProblemDetails))
)]
pub async fn test(
    State(api): State<Api>,
    Keeper(caller): Keeper,
    Path(id): Path<String>,
    body: Body,
) -> Answer<TestView> {
    let request = body.read_or_default(&api.0.schemas.test)?;
    let why = request.reason.as_deref().map_or_else(|| Ok(String::new()), reason)?;
    let wanted = optional::<EventType>("event_type", request.event_type.as_ref())?;
    let endpoint = api.endpoint(&caller, &named(&id)?).await?;
    let Ok(_place) = api.0.tests.try_acquire() else {
        return Err(Problem::unavailable("Enough test events are on their way: try again in a moment.", 1));
    };
    let begun = about(caller.begun(&api, Act::EndpointTest, &why), &endpoint);
    let view = api.0.audit.audited(begun, async |_| send_test(&api, &caller, &endpoint, wanted).await).await?;
    Ok(Json(view))
}

async fn send_test(
    api: &Api,
    caller: &Caller,
    endpoint: &Endpoint,
    wanted: Option<EventType>,
) -> Result<TestView, Problem> {
    let (token, now_ms) = (hex::encode(rand::random::<[u8; 16]>()), clock::wall_ms());
    let sample = Sample {
        id: parsed::<EventId>("event", &format!("evt_test_{token}"))?,
        event_type: wanted.or_else(|| endpoint.event_types.first().cloned()).unwrap_or_else(sample::status_updated),
        account: endpoint.account.clone(),
        intent: parsed::<IntentId>("intent", &format!("pi_test_{token}"))?,
        status: PaymentStatus::Created,
        now_ms,
    };
    let event = sample.event().map_err(|error| Problem::internal(&error))?;
    let entry = EntryId { ms: now_ms, seq: 0 };
    let delivery = Delivery::new(entry, endpoint.id.clone(), &event, endpoint.ordering == Ordering::Intent, now_ms);
    let Attempted { report, request, .. } = api.0.sender.attempt(&delivery, endpoint, now_ms).await;
    let headers =
        request.map_or_else(|| api.0.sender.headers_to_show(&delivery, endpoint, now_ms), |sent| sent.headers);
    Ok(TestView::of(endpoint, &event, &report, headers, caller.viewer()))
}

impl Api {
    async fn put(&self, begun: Begun, endpoint: Endpoint, mark: &Mark) -> Result<Endpoint, Problem> {
        let update = async |_: &mut _| self.with_registry(async |store| store.update(endpoint, mark).await).await;
        self.0.audit.audited(begun, update).await
    }

    async fn switch(&self, caller: &Caller, id: &str, body: &Body, act: Act) -> Result<EndpointView, Problem> {
        let why = reason(&body.read(&self.0.schemas.reason)?.reason)?;
        let (mut endpoint, mark) = (self.endpoint(caller, &named(id)?).await?, caller.mark(&why));
        let next = match (act, &endpoint.status) {
            (Act::EndpointPause, EndpointState::Enabled) => EndpointState::Paused(mark.clone()),
            (Act::EndpointResume, EndpointState::Paused(by)) | (Act::EndpointEnable, EndpointState::Disabled(by)) => {
                caller.may_lift(by)?;
                EndpointState::Enabled
            }
            (Act::EndpointPause, EndpointState::Paused(_)) | (_, EndpointState::Enabled) => {
                return Ok(caller.shown(&endpoint));
            }
            (Act::EndpointPause, _) => return Err(refused("The endpoint is disabled: there is nothing to pause.")),
            (Act::EndpointResume, _) => return Err(refused("The endpoint is disabled: enable it instead.")),
            _ => return Err(refused("The endpoint is paused: resume it instead.")),
        };
        endpoint.status = next;
        let begun = about(caller.begun(self, act, &why), &endpoint);
        Ok(caller.shown(&self.put(begun, endpoint, &mark).await?))
    }

    async fn disable(
        &self,
        caller: &Caller,
        id: &str,
        body: &Body,
        act: Act,
        and: impl Fn(&mut Endpoint),
    ) -> Result<EndpointView, Problem> {
        let why = reason(&body.read(&self.0.schemas.reason)?.reason)?;
        let (before, mark) = (self.endpoint(caller, &named(id)?).await?, caller.mark(&why));
        // First: what is accepted from here on is not owed.
        let last = async |mut connection| last_entry(&mut connection, &self.0.keys).await;
        let last = self.0.connection.with(last).await.map_err(|error| super::request::of_store(&error))?;
        let mut after = before.clone();
        if !matches!(after.status, EndpointState::Disabled(_)) {
            after.disable(mark.clone(), last);
        }
        and(&mut after);
        if after == before {
            return Ok(caller.shown(&before));
        }
        let begun = about(caller.begun(self, act, &why), &before);
        Ok(caller.shown(&self.put(begun, after, &mark).await?))
    }

    async fn check_with_url(&self, caller: &Caller, endpoint: &Endpoint) -> Result<(), Problem> {
        let _turn = self.0.lookups.acquire().await;
        self.0.rules.check(endpoint).await.map_err(|error| of_rule(&error, caller.viewer()))
    }

    async fn check_room(&self, account: &AccountId) -> Result<(), Problem> {
        let of_account = self.all_endpoints().await?.iter().filter(|one| one.account == *account).count();
        if of_account < MAX_OF_MERCHANT {
            return Ok(());
        }
        Err(refused(format!("The account has {MAX_OF_MERCHANT} endpoints, and no more are allowed: delete one first.")))
    }
}

impl Caller {
    fn shown(&self, endpoint: &Endpoint) -> EndpointView {
        EndpointView::of(endpoint, None, self.viewer(), clock::wall_ms())
    }

    fn may_lift(&self, mark: &Mark) -> Result<(), Problem> {
        if self.role != Role::Merchant || mark.by.starts_with(MERCHANT) {
            return Ok(());
        }
        Err(refused("Whoever runs Herald has stopped this endpoint: ask them."))
    }
}

fn about(begun: Begun, endpoint: &Endpoint) -> Begun {
    begun.account(&endpoint.account).endpoint(&endpoint.id)
}

fn check_secret(endpoint: &Endpoint) -> Result<(), Problem> {
    let why = || {
        format!("has less than {MIN_SECRET_CHARS} characters, or hardly different ones, so signatures can be forged")
    };
    check_new_secrets(endpoint, None).map_err(|_| Problem::fault("secret", why()))
}

fn fresh_secret() -> SecretText {
    SecretText::from_random(rand::random())
}

fn fresh_id() -> EndpointId {
    EndpointId::new(&format!("ep_{}", hex::encode(rand::random::<[u8; 16]>()))).expect("hex has only what ids have")
}
