//! Payment intents over HTTP, as Dojo's API 2025-09-10 describes them, and the sandbox around them.
//!
//! - [`operations`] are the merchant's calls, [`feed`] what they were told and where it stands, [`sandbox`] what only a test
//!   needs: the customer, the issuer, the clock.
//! - [`request`] reads what all of them have in common: the key, the version, the body, the idempotency key.

pub mod feed;
pub mod operations;
pub mod request;
pub mod sandbox;

use std::sync::Arc;

use axum::{Json, Router, http::StatusCode, routing::get};
use serde_json::Value;
use utoipa::{
    Modify, OpenApi,
    openapi::{
        OpenApi as Description, RefOr,
        security::{ApiKey, ApiKeyValue, SecurityScheme},
    },
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    access::Access,
    callbacks,
    webhooks::{operations as webhooks, sandbox as endpoints, subscriptions::Subscriptions},
};
use crate::{history::History, intents::service::Service, registry::Registry};

#[derive(Clone)]
pub struct Api {
    pub service: Service,
    pub access: Access,
    pub registry: Registry,
    pub subscriptions: Subscriptions,
    /// What became of deliveries that Redis knows nothing of any more.
    pub history: Arc<History>,
    /// Where the checkout page of each intent is, up to its id.
    pub links: Arc<str>,
    pub schemas: Arc<request::Schemas>,
}

impl Api {
    /// `public_url` is where callers reach it.
    pub fn new(
        service: Service,
        access: Access,
        registry: Registry,
        subscriptions: Subscriptions,
        history: History,
        public_url: &str,
    ) -> Self {
        let links = format!("{}/checkout/", public_url.trim_end_matches('/')).into();
        Self { service, access, registry, subscriptions, history: Arc::new(history), links, schemas: Arc::default() }
    }
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Herald: payment intents",
        version = "2025-09-10",
        description = "Payment intents as Dojo's API of this version describes them, kept by Herald."
    ),
    security(("key" = [])),
    modifiers(&Keys)
)]
struct Base;

struct Keys;

impl Modify for Keys {
    fn modify(&self, description: &mut Description) {
        let scheme =
            ApiKeyValue::with_description("Authorization", "`Basic sk_sandbox_…`: the key itself, not encoded.");
        let components = description.components.get_or_insert_default();
        components.add_security_scheme("key", SecurityScheme::ApiKey(ApiKey::Header(scheme)));
    }
}

/// Its routes, with the description of themselves at `/openapi.json`, and of what receivers are sent at `/asyncapi.json`.
pub fn router(api: Api, is_sandbox: bool) -> Router {
    let (router, description) = described(is_sandbox);
    let mut description = serde_json::to_value(&description).expect("a description is JSON");
    drop_null_defaults(&mut description);
    let description: Arc<str> = description.to_string().into();
    let json = [("content-type", "application/json")];
    let publish = get(async move || (json, description.to_string()));
    let told: Arc<str> = callbacks::asyncapi().to_string().into();
    let publish_told = get(async move || (json, told.to_string()));
    let health = get(async || Json(serde_json::json!({ "status": "ok" })));
    let router = router.with_state(api).route("/openapi.json", publish).route("/asyncapi.json", publish_told);
    router.route("/healthz", health)
}

/// The description alone, for whoever makes documents of it.
pub fn description(is_sandbox: bool) -> Description {
    described(is_sandbox).1
}

fn described(is_sandbox: bool) -> (Router<Api>, Description) {
    let mut router = OpenApiRouter::with_openapi(Base::openapi())
        .routes(routes!(operations::create))
        .routes(routes!(operations::search))
        .routes(routes!(operations::get, operations::cancel))
        .routes(routes!(operations::capture))
        .routes(routes!(operations::reverse))
        .routes(routes!(operations::refund))
        .routes(routes!(operations::get_refund))
        .routes(routes!(operations::set_amount))
        .routes(routes!(operations::set_tips))
        .routes(routes!(operations::refresh_secret))
        .routes(routes!(operations::send_receipt))
        .routes(routes!(feed::list_events))
        .routes(routes!(feed::reconciliation))
        .routes(routes!(feed::reconciliation_digest))
        .routes(routes!(webhooks::list_event_types))
        .routes(routes!(webhooks::list_subscriptions, webhooks::subscribe))
        .routes(routes!(webhooks::update_subscription, webhooks::unsubscribe))
        .routes(routes!(webhooks::list_secrets, webhooks::add_secret))
        .routes(routes!(webhooks::delete_secret))
        .routes(routes!(webhooks::activate_secret));
    if is_sandbox {
        router = router
            .routes(routes!(sandbox::pay))
            .routes(routes!(sandbox::challenge))
            .routes(routes!(sandbox::timeline))
            .routes(routes!(sandbox::clock, sandbox::set_clock))
            .routes(routes!(sandbox::advance))
            .routes(routes!(sandbox::reset))
            .routes(routes!(endpoints::create_endpoint))
            .routes(routes!(endpoints::delete_endpoint));
    }
    let (router, mut description) = router.split_for_parts();
    describe_responses(&mut description);
    callbacks::describe(&mut description);
    (router, description)
}

/// Every response must have a description: what its code means, where nothing else is to be said.
pub fn describe_responses(description: &mut Description) {
    for item in description.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.put, &mut item.post, &mut item.patch, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            for (code, response) in &mut operation.responses.responses {
                if let RefOr::T(response) = response
                    && response.description.is_empty()
                {
                    let code = code.parse::<StatusCode>().ok();
                    response.description = code.and_then(|code| code.canonical_reason()).unwrap_or(ANSWER).to_owned();
                }
            }
        }
    }
}

/// That nothing is the default of a member goes without saying, and null is a value of few.
pub fn drop_null_defaults(description: &mut Value) {
    match description {
        Value::Object(members) => {
            members.retain(|name, value| name != "default" || !value.is_null());
            members.values_mut().for_each(drop_null_defaults);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_null_defaults),
        _ => {}
    }
}

const ANSWER: &str = "The answer";
