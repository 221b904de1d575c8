//! Endpoints of a developer's own in a sandbox: several may take the same event, each for as long as somebody listens.

use axum::{
    extract::{Path, State},
    http::StatusCode,
    response::Response,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    operations::{Nothing, Unconfirmed, WebhookEvent, changed},
    subscriptions::{SubscriptionError, Wanted},
};
use crate::{
    api::intents::{
        Api,
        operations::{Refusals, Version},
        request::{Body, Writer},
    },
    facts::{
        endpoint::{Keeper, Scheme},
        id::EndpointId,
    },
    http::problem::{Problem, ProblemDetails},
};

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EndpointRequest {
    #[schema(min_length = 1, max_length = 2_048, format = Uri)]
    url: String,
    /// How it is signed; in both ways where nothing is said.
    #[serde(default)]
    scheme: Option<EndpointScheme>,
    /// All of them where nothing is said.
    #[serde(default)]
    #[schema(min_items = 1, max_items = 3)]
    events: Option<Vec<WebhookEvent>>,
}

#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum EndpointScheme {
    Standard,
    Dojo,
}

/// The secret is not shown again.
#[derive(Serialize, ToSchema)]
pub struct NewEndpoint {
    id: String,
    secret: String,
}

/// Have callbacks sent to an address of one's own, beside all subscriptions.
#[utoipa::path(
    post, path = "/sandbox/endpoints", tag = "Sandbox", params(Version), request_body = EndpointRequest,
    responses((status = 200, body = NewEndpoint), (status = 202, body = Unconfirmed<NewEndpoint>), Refusals,
        (status = 409, body = ProblemDetails))
)]
pub async fn create_endpoint(State(api): State<Api>, Writer(caller): Writer, body: Body) -> Result<Response, Problem> {
    let (request, _) = body.read(&api.schemas.endpoint)?;
    let wanted = Wanted {
        keeper: Keeper::Sandbox,
        url: request.url,
        events: request.events.unwrap_or_default().into_iter().map(WebhookEvent::event_type).collect(),
        description: String::new(),
        schemes: match request.scheme {
            Some(EndpointScheme::Standard) => vec![Scheme::Standard],
            Some(EndpointScheme::Dojo) => vec![Scheme::Dojo],
            None => vec![Scheme::Standard, Scheme::Dojo],
        },
    };
    let (endpoint, secret, confirmation) = api.subscriptions.create(&caller, wanted).await?;
    let made = NewEndpoint { id: endpoint.id.to_string(), secret: secret.reveal().to_owned() };
    Ok(changed(StatusCode::OK, made, &confirmation))
}

/// End it.
#[utoipa::path(
    delete, path = "/sandbox/endpoints/{endpointId}", tag = "Sandbox",
    params(("endpointId" = String, Path), Version),
    responses((status = 204, description = "It takes no event any more"), (status = 202, body = Unconfirmed<Nothing>), Refusals,
        (status = 404, body = ProblemDetails))
)]
pub async fn delete_endpoint(
    State(api): State<Api>,
    Writer(caller): Writer,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let id = EndpointId::new(&id).map_err(|_| SubscriptionError::NotFound)?;
    let confirmation = api.subscriptions.delete(&caller, &id, Keeper::Sandbox).await?;
    Ok(changed(StatusCode::NO_CONTENT, Nothing {}, &confirmation))
}
