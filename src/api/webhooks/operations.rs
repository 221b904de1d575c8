//! The calls of Dojo's API for webhook subscriptions. A secret is shown in the answer to the call that made it.

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoResponses, ToSchema};

use super::subscriptions::{Changes, Listed, SubscriptionError, Wanted, active};
use crate::{
    api::intents::{
        Api,
        operations::{Refusals, Version},
        request::{Body, Reader, Writer},
    },
    clock,
    facts::{
        endpoint::{Endpoint, Keeper, Scheme},
        event::EventType,
        id::EndpointId,
        signing::{Secret, SecretText},
    },
    http::problem::{Problem, ProblemDetails},
    intents::stamp::Stamp,
    registry::rules::RuleError,
    sender::GuardError,
    store::{
        error::StoreError,
        registry::{RegistryError, confirming::Confirmation},
    },
};

type Answer<T> = Result<Json<T>, Problem>;

/// What calls for one subscription can be refused with beside what all can.
#[derive(IntoResponses)]
#[allow(dead_code)]
pub enum WebhookRefusals {
    #[response(status = 404, description = "There is no such subscription or secret, or it is another account's")]
    NotFound(ProblemDetails),
    #[response(status = 409, description = "What is there already refuses it")]
    Conflict(ProblemDetails),
}

/// The answer to a change that is stored, and that replicas have not confirmed in time: should the server that has it fail now, it may be
/// lost. Look at it again later.
#[derive(Serialize, ToSchema)]
pub struct Unconfirmed<T> {
    #[serde(flatten)]
    stored: T,
    durability: Confirmed,
}

#[derive(Serialize, ToSchema)]
pub struct Confirmed {
    /// Replicas that have it.
    confirmed: u64,
}

/// Where the answer would be 204.
#[derive(Serialize, ToSchema)]
pub struct Nothing {}

/// The answer to a change: 202 where replicas have not confirmed it.
pub fn changed(status: StatusCode, stored: impl Serialize, confirmation: &Confirmation) -> Response {
    if !confirmation.is_enough() {
        let durability = Confirmed { confirmed: confirmation.confirmed };
        return (StatusCode::ACCEPTED, Json(Unconfirmed { stored, durability })).into_response();
    }
    if status == StatusCode::NO_CONTENT { status.into_response() } else { (status, Json(stored)).into_response() }
}

/// What can be subscribed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum WebhookEvent {
    #[serde(rename = "payment_intent.created")]
    Created,
    #[serde(rename = "payment_intent.status_updated")]
    StatusUpdated,
    #[serde(rename = "payment_intent.send-receipt")]
    SendReceipt,
}

impl WebhookEvent {
    pub const ALL: [Self; 3] = [Self::Created, Self::StatusUpdated, Self::SendReceipt];

    pub fn event_type(self) -> EventType {
        use crate::intents::told::EventKind;
        let kind = match self {
            Self::Created => EventKind::Created,
            Self::StatusUpdated => EventKind::StatusUpdated,
            Self::SendReceipt => EventKind::SendReceipt,
        };
        kind.name().parse().expect("the names of events are event types")
    }
}

/// Events by what they are about.
#[derive(Debug, Serialize, ToSchema)]
pub struct WebhookEvents {
    model: &'static str,
    events: &'static [WebhookEvent],
}

/// List what can be subscribed to.
#[utoipa::path(
    get, path = "/webhooks/events", tag = "Webhooks", params(Version),
    responses((status = 200, body = [WebhookEvents]), Refusals)
)]
pub async fn list_event_types(Reader(_): Reader) -> Json<[WebhookEvents; 1]> {
    Json([WebhookEvents { model: "PaymentIntent", events: &WebhookEvent::ALL }])
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Subscription {
    id: String,
    account_id: String,
    events: Vec<String>,
    url: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    secrets: Vec<SubscriptionSecret>,
    #[schema(value_type = String, format = DateTime)]
    created_at: Stamp,
    #[schema(value_type = String, format = DateTime)]
    updated_at: Stamp,
    /// `locked` while its secrets cannot be read: what it is owed waits, and whoever runs this service has to see to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'static str>,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SubscriptionSecret {
    id: String,
    /// Only in the answer to the call that made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[schema(value_type = String, format = DateTime)]
    created_at: Stamp,
    /// Whether it makes `dojo-signature`. One that did so until lately still signs by the other scheme.
    is_active: bool,
}

impl std::fmt::Debug for SubscriptionSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SubscriptionSecret({})", self.id)
    }
}

impl Subscription {
    /// `made` is the secret that this call has made.
    fn of(endpoint: &Endpoint, made: Option<&SecretText>) -> Self {
        Self {
            id: subscription_id(&endpoint.id),
            account_id: endpoint.account.to_string(),
            events: endpoint.event_types.iter().map(ToString::to_string).collect(),
            url: endpoint.url.clone(),
            description: (!endpoint.description.is_empty()).then(|| endpoint.description.clone()),
            secrets: secrets(endpoint, made),
            created_at: instant(endpoint.created_at_ms),
            updated_at: instant(endpoint.updated_at_ms),
            state: None,
        }
    }
}

fn secrets(endpoint: &Endpoint, made: Option<&SecretText>) -> Vec<SubscriptionSecret> {
    let active = active(endpoint, clock::wall_ms()).map(|active| &active.value);
    let shown = |secret: &Secret| SubscriptionSecret {
        id: format!("sc_{}", secret.value.name()),
        value: made.filter(|made| **made == secret.value).map(|made| made.reveal().to_owned()),
        created_at: instant(secret.created_at_ms),
        is_active: active == Some(&secret.value),
    };
    endpoint.all_secrets().map(shown).collect()
}

fn instant(ms: u64) -> Stamp {
    Stamp(i64::try_from(ms).unwrap_or(i64::MAX).saturating_mul(1_000))
}

fn subscription_id(id: &EndpointId) -> String {
    format!("ws_{}", id.as_str().strip_prefix("ep_").unwrap_or_default())
}

/// What is no id is not there.
fn endpoint_id(text: &str) -> Result<EndpointId, Problem> {
    let id = text.strip_prefix("ws_").and_then(|rest| EndpointId::new(&format!("ep_{rest}")).ok());
    id.ok_or_else(|| SubscriptionError::NotFound.into())
}

fn secret_name(text: &str) -> Result<&str, Problem> {
    text.strip_prefix("sc_").ok_or_else(|| SubscriptionError::SecretNotFound.into())
}

/// List the account's subscriptions.
#[utoipa::path(
    get, path = "/webhooks", tag = "Webhooks", params(Version),
    responses((status = 200, body = [Subscription]), Refusals)
)]
pub async fn list_subscriptions(State(api): State<Api>, Reader(caller): Reader) -> Answer<Vec<Subscription>> {
    let endpoints = api.subscriptions.list(&caller.account).await?;
    let shown = |listed: &Listed| Subscription {
        state: listed.is_locked.then_some("locked"),
        ..Subscription::of(&listed.endpoint, None)
    };
    Ok(Json(endpoints.iter().map(shown).collect()))
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SubscriptionRequest {
    /// Each of an account's events has one subscription.
    #[schema(min_items = 1, max_items = 3)]
    events: Vec<WebhookEvent>,
    #[schema(min_length = 1, max_length = 2_048, format = Uri)]
    url: String,
    #[serde(default)]
    #[schema(max_length = 500)]
    description: Option<String>,
}

/// Subscribe to events. The secret in the answer is not shown again.
#[utoipa::path(
    post, path = "/webhooks", tag = "Webhooks", params(Version), request_body = SubscriptionRequest,
    responses((status = 200, body = Subscription), (status = 202, body = Unconfirmed<Subscription>), Refusals,
        (status = 409, body = ProblemDetails))
)]
pub async fn subscribe(State(api): State<Api>, Writer(caller): Writer, body: Body) -> Result<Response, Problem> {
    let (request, _) = body.read(&api.schemas.subscription)?;
    let wanted = Wanted {
        keeper: Keeper::Merchant,
        url: request.url,
        events: request.events.into_iter().map(WebhookEvent::event_type).collect(),
        description: request.description.unwrap_or_default(),
        schemes: vec![Scheme::Standard, Scheme::Dojo],
    };
    let (endpoint, secret, confirmation) = api.subscriptions.create(&caller, wanted).await?;
    Ok(changed(StatusCode::OK, Subscription::of(&endpoint, Some(&secret)), &confirmation))
}

/// What is absent or null stays as it is.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SubscriptionUpdateRequest {
    #[serde(default)]
    #[schema(min_items = 1, max_items = 3)]
    events: Option<Vec<WebhookEvent>>,
    #[serde(default)]
    #[schema(min_length = 1, max_length = 2_048, format = Uri)]
    url: Option<String>,
    #[serde(default)]
    #[schema(max_length = 500)]
    description: Option<String>,
}

/// Change a subscription.
#[utoipa::path(
    patch, path = "/webhooks/{subscriptionId}", tag = "Webhooks",
    params(("subscriptionId" = String, Path), Version), request_body = SubscriptionUpdateRequest,
    responses((status = 200, body = Subscription), (status = 202, body = Unconfirmed<Subscription>), Refusals,
        WebhookRefusals)
)]
pub async fn update_subscription(
    State(api): State<Api>,
    Writer(caller): Writer,
    Path(id): Path<String>,
    body: Body,
) -> Result<Response, Problem> {
    let (request, _) = body.read(&api.schemas.subscription_update)?;
    let SubscriptionUpdateRequest { events, url, description } = request;
    let events = events.map(|events| events.into_iter().map(WebhookEvent::event_type).collect());
    let changes = Changes { url, events, description };
    let (endpoint, confirmation) = api.subscriptions.change(&caller, &endpoint_id(&id)?, &changes).await?;
    Ok(changed(StatusCode::OK, Subscription::of(&endpoint, None), &confirmation))
}

/// End a subscription.
#[utoipa::path(
    delete, path = "/webhooks/{subscriptionId}", tag = "Webhooks",
    params(("subscriptionId" = String, Path), Version),
    responses((status = 204, description = "It takes no event any more"), (status = 202, body = Unconfirmed<Nothing>), Refusals, WebhookRefusals)
)]
pub async fn unsubscribe(
    State(api): State<Api>,
    Writer(caller): Writer,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let confirmation = api.subscriptions.delete(&caller, &endpoint_id(&id)?, Keeper::Merchant).await?;
    Ok(changed(StatusCode::NO_CONTENT, Nothing {}, &confirmation))
}

#[derive(Debug, Serialize, ToSchema)]
pub struct SecretsResponse {
    /// The subscription's.
    id: String,
    secrets: Vec<SubscriptionSecret>,
}

impl SecretsResponse {
    fn of(endpoint: &Endpoint, made: Option<&SecretText>) -> Self {
        Self { id: subscription_id(&endpoint.id), secrets: secrets(endpoint, made) }
    }
}

/// List the secrets of a subscription, without their values.
#[utoipa::path(
    get, path = "/webhooks/{subscriptionId}/secrets", tag = "Webhooks",
    params(("subscriptionId" = String, Path), Version),
    responses((status = 200, body = SecretsResponse), Refusals, (status = 404, body = ProblemDetails))
)]
pub async fn list_secrets(
    State(api): State<Api>,
    Reader(caller): Reader,
    Path(id): Path<String>,
) -> Answer<SecretsResponse> {
    let endpoint = api.subscriptions.get(&caller.account, &endpoint_id(&id)?).await?;
    Ok(Json(SecretsResponse::of(&endpoint, None)))
}

/// Make another secret. It signs nothing before it is activated, and is not shown again.
#[utoipa::path(
    post, path = "/webhooks/{subscriptionId}/secrets", tag = "Webhooks",
    params(("subscriptionId" = String, Path), Version),
    responses((status = 200, body = SecretsResponse), (status = 202, body = Unconfirmed<SecretsResponse>), Refusals,
        WebhookRefusals)
)]
pub async fn add_secret(
    State(api): State<Api>,
    Writer(caller): Writer,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let (endpoint, secret, confirmation) = api.subscriptions.add_secret(&caller, &endpoint_id(&id)?).await?;
    Ok(changed(StatusCode::OK, SecretsResponse::of(&endpoint, Some(&secret)), &confirmation))
}

/// Sign with this secret from now on. The one before goes on in `webhook-signature` for a day.
#[utoipa::path(
    put, path = "/webhooks/{subscriptionId}/secrets/{secretId}/activate", tag = "Webhooks",
    params(("subscriptionId" = String, Path), ("secretId" = String, Path), Version),
    responses((status = 204, description = "It signs"), (status = 202, body = Unconfirmed<Nothing>), Refusals, (status = 404, body = ProblemDetails))
)]
pub async fn activate_secret(
    State(api): State<Api>,
    Writer(caller): Writer,
    Path((id, secret)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let confirmation = api.subscriptions.activate(&caller, &endpoint_id(&id)?, secret_name(&secret)?).await?;
    Ok(changed(StatusCode::NO_CONTENT, Nothing {}, &confirmation))
}

/// Delete a secret that is not the active one.
#[utoipa::path(
    delete, path = "/webhooks/{subscriptionId}/secrets/{secretId}", tag = "Webhooks",
    params(("subscriptionId" = String, Path), ("secretId" = String, Path), Version),
    responses((status = 204, description = "It signs nothing any more"), (status = 202, body = Unconfirmed<Nothing>), Refusals, WebhookRefusals)
)]
pub async fn delete_secret(
    State(api): State<Api>,
    Writer(caller): Writer,
    Path((id, secret)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let confirmation = api.subscriptions.remove_secret(&caller, &endpoint_id(&id)?, secret_name(&secret)?).await?;
    Ok(changed(StatusCode::NO_CONTENT, Nothing {}, &confirmation))
}

impl From<SubscriptionError> for Problem {
    fn from(error: SubscriptionError) -> Self {
        let conflict = |name, detail: String| Self::new(StatusCode::CONFLICT, name, detail);
        match error {
            SubscriptionError::NotFound => Self::new(
                StatusCode::NOT_FOUND,
                "not-found",
                "There is no such webhook subscription or endpoint of this account.",
            ),
            SubscriptionError::SecretNotFound => {
                Self::new(StatusCode::NOT_FOUND, "not-found", "This subscription has no such secret.")
            }
            SubscriptionError::Rule(rule) => of_rule(&rule),
            SubscriptionError::EventTaken { event, by } => {
                let id = subscription_id(&by);
                conflict("event-has-a-subscription", format!("Each event has one subscription: {event} has {id}."))
            }
            SubscriptionError::TooManySecrets => {
                conflict("too-many-secrets", "A subscription has at most 5 secrets: delete one first.".to_owned())
            }
            SubscriptionError::ActiveSecret => {
                conflict("secret-is-active", "It is the active secret: activate another one first.".to_owned())
            }
            SubscriptionError::Stopped => conflict(
                "stopped-by-operator",
                "Whoever runs Herald has stopped it, so it cannot be deleted: ask them.".to_owned(),
            ),
            SubscriptionError::TooManyEndpoints => conflict(
                "too-many-endpoints",
                "An account has at most 20 endpoints of the sandbox: delete one first.".to_owned(),
            ),
            SubscriptionError::TooManyLeaving => Self::unavailable(
                "Too many deleted endpoints of this account still wait for what was sent to them; nothing was changed.",
                60,
            ),
            SubscriptionError::Busy => {
                Self::unavailable("Others change webhooks all the time; nothing was changed.", 1)
            }
            ref error @ (SubscriptionError::Unreadable | SubscriptionError::NotFollowed) => Self::unavailable(
                "What is known of the webhooks cannot be relied on at the moment; nothing was changed.",
                10,
            )
            .because(error),
            SubscriptionError::Registry(RegistryError::Store(ref error @ StoreError::OutOfMemory { .. })) => {
                Self::unavailable("Redis is full and refuses changes; nothing was changed.", 5).because(error)
            }
            SubscriptionError::Registry(RegistryError::Store(ref error @ StoreError::Unavailable { .. })) => {
                Self::unavailable("Redis does not answer, so it is not known whether anything was changed: look.", 1)
                    .because(error)
            }
            SubscriptionError::Registry(ref error @ RegistryError::Unknown(_)) => Self::unavailable(
                "The service's keys are being changed, and not all of it has the new one yet; nothing was changed.",
                5,
            )
            .because(error),
            SubscriptionError::Registry(error) => Self::internal(&error),
        }
    }
}

/// In words for a merchant, who sets no configuration and must not learn where a name leads within somebody's network.
fn of_rule(rule: &RuleError) -> Problem {
    let (member, why) = match rule {
        RuleError::Url(error) => ("url", of_url(error)),
        RuleError::Twice { what } => ("events", format!("names {what} twice")),
        RuleError::Description => ("description", "is not one line of at most 500 characters".to_owned()),
        other => return Problem::internal(other),
    };
    Problem::fault(member, why)
}

pub fn of_url(error: &GuardError) -> String {
    match error {
        GuardError::PlainHttp | GuardError::Scheme { .. } => "does not begin with https://".to_owned(),
        GuardError::Own { .. } | GuardError::Address { .. } => {
            "leads to an address that no callbacks are sent to".to_owned()
        }
        GuardError::Port { port, .. } => format!("has port {port}, where no web server listens"),
        GuardError::Unresolved(_) => "names a host whose addresses cannot be found".to_owned(),
        GuardError::TooLong { .. }
        | GuardError::Character
        | GuardError::NotAUrl(_)
        | GuardError::UserInfo
        | GuardError::PortZero => error.to_string().replacen("the URL", "", 1).trim().to_owned(),
    }
}
