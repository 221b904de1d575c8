//! What receivers are sent, described from one set of types: as `webhooks` in the service's OpenAPI description, in AsyncAPI
//! (`/asyncapi.json`, and `docs/asyncapi.json`), and as JSON Schema (`docs/callback.schema.json`).

use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::{
    IntoParams, PartialSchema, ToSchema,
    openapi::{
        AllOfBuilder, Content, Object, ObjectBuilder, OpenApi, Paths, PathsBuilder, Ref, RefOr, Response, Schema,
        path::{HttpMethod, OperationBuilder, Parameter, PathItem},
        request_body::RequestBodyBuilder,
        schema::Type,
        security::SecurityRequirement,
    },
};

use super::webhooks::operations::WebhookEvent;
use crate::{
    facts::{
        event::{CaptureMode, PaymentStatus},
        id::MAX_ID_BYTES,
    },
    intents::requests::Status,
};

/// The body of a callback, as the payment-intents service writes it. More members may come.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Callback {
    /// The same on every attempt, and in the header `webhook-id`.
    #[schema(schema_with = id)]
    id: &'static str,
    event: WebhookEvent,
    #[schema(schema_with = id)]
    account_id: &'static str,
    /// When it happened, by the clock of the payment intents.
    #[schema(value_type = String, format = DateTime)]
    created_at: &'static str,
    data: CallbackData,
}

/// The payment intent that a callback is about.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CallbackData {
    #[schema(schema_with = id)]
    payment_intent_id: &'static str,
    /// Its status by this event. More may come.
    #[schema(value_type = Status)]
    payment_status: PaymentStatus,
    /// Other producers may leave it out.
    #[schema(schema_with = capture_mode, required = false)]
    capture_mode: CaptureMode,
}

fn id() -> Object {
    let id = ObjectBuilder::new().schema_type(Type::String).min_length(Some(1)).max_length(Some(MAX_ID_BYTES));
    id.pattern(Some("^[A-Za-z0-9_-]+$")).build()
}

fn capture_mode() -> Object {
    one_of(&["Auto", "Manual"])
}

fn one_of(texts: &[&str]) -> Object {
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(texts.iter().copied())).build()
}

/// What Herald writes itself; an operator may add headers to an endpoint. `content-type` is `application/json`.
#[derive(IntoParams)]
#[into_params(parameter_in = Header, rename_all = "kebab-case")]
#[allow(dead_code, reason = "the sender writes them; this only describes them")]
struct CallbackHeaders {
    /// The event's id, the same on every attempt: deduplicate by it.
    #[param(min_length = 1, max_length = 128)]
    webhook_id: String,
    /// When this attempt was made, in Unix seconds: refuse old ones.
    #[param(minimum = 0)]
    webhook_timestamp: u64,
    /// Standard Webhooks: `v1,` and base64; several, separated by a blank, while a secret is replaced. Not where the endpoint
    /// has only Dojo's scheme.
    #[param(required = false, pattern = "^v1,[A-Za-z0-9+/]{43}=( v1,[A-Za-z0-9+/]{43}=)*$")]
    webhook_signature: String,
    /// Dojo's scheme: upper-case hex with a dash between two bytes. Not where the endpoint has only the other.
    #[param(required = false, pattern = "^sha256=[0-9A-F]{2}(-[0-9A-F]{2}){31}$")]
    dojo_signature: String,
    /// The order of a payment intent's events, compared as text; the same on every attempt.
    #[param(pattern = "^s[0-9]{20}-[0-9]{20}$")]
    herald_sequence: String,
    /// The event's number among all that its account was told. Not every producer counts.
    #[param(required = false, minimum = 1, maximum = 9_007_199_254_740_991_u64)]
    herald_account_sequence: u64,
    /// How often this event has been tried at this endpoint, with this attempt.
    #[param(minimum = 1)]
    herald_attempt: u32,
    /// W3C Trace Context, where the endpoint wants it and the producer gave one.
    #[param(required = false, min_length = 55, max_length = 256)]
    traceparent: String,
}

fn headers() -> Vec<Parameter> {
    CallbackHeaders::into_params(|| None)
}

/// What is particular to an event: how its schema is called, what it tells, and the statuses that it may have.
struct Told {
    schema: &'static str,
    means: &'static str,
    statuses: &'static [PaymentStatus],
}

fn told(event: WebhookEvent) -> Told {
    let (schema, means, statuses) = match event {
        WebhookEvent::Created => ("PaymentIntentCreated", "A payment intent was created", &PaymentStatus::ALL[..1]),
        WebhookEvent::StatusUpdated => (
            "PaymentIntentStatusUpdated",
            "A payment intent's status was set: by a payment, a capture, a reversal, a refund, a cancellation, or by time",
            &PaymentStatus::ALL[1..],
        ),
        WebhookEvent::SendReceipt => (
            "PaymentIntentSendReceipt",
            "A receipt was asked for; the status is what it was",
            &PaymentStatus::ALL[1..5],
        ),
    };
    Told { schema, means, statuses }
}

/// The body with what is particular to this event.
fn schema(event: WebhookEvent) -> RefOr<Schema> {
    let Told { means, statuses, .. } = told(event);
    let statuses: Vec<String> = statuses.iter().map(ToString::to_string).collect();
    let statuses: Vec<&str> = statuses.iter().map(String::as_str).collect();
    let data = ObjectBuilder::new().schema_type(Type::Object).property("paymentStatus", one_of(&statuses));
    let particular = ObjectBuilder::new().schema_type(Type::Object).property("data", data);
    let particular = particular.property("event", one_of(&[event.event_type().as_str()]));
    let body = Ref::from_schema_name(Callback::name());
    AllOfBuilder::new().description(Some(means)).item(body).item(particular).into()
}

fn schemas() -> Vec<(String, RefOr<Schema>)> {
    let mut schemas = vec![(Callback::name().into_owned(), Callback::schema())];
    Callback::schemas(&mut schemas);
    schemas.extend(WebhookEvent::ALL.map(|event| (told(event).schema.to_owned(), schema(event))));
    schemas
}

/// One of each, as it is sent.
fn sample(event: WebhookEvent) -> Callback {
    let (id, payment_status) = match event {
        WebhookEvent::Created => ("evt_5uzKeMkAlEeOFz3Ef5Rx4A", PaymentStatus::Created),
        WebhookEvent::StatusUpdated => ("evt_hnnHxIKR_Uy6bhZCusCltw", PaymentStatus::Captured),
        WebhookEvent::SendReceipt => ("evt_8v3Q6o1tYk6lW0N7n3eYgQ", PaymentStatus::Captured),
    };
    let data = CallbackData {
        payment_intent_id: "pi_vpwd4ooAPEqyNAQe4z89WQ",
        payment_status,
        capture_mode: CaptureMode::Auto,
    };
    Callback { id, event, account_id: "acc_test", created_at: "2022-02-01T13:07:41.8667859Z", data }
}

/// Adds them to the description of what can be asked.
pub fn describe(description: &mut OpenApi) {
    let components = description.components.get_or_insert_default();
    components.schemas.extend(schemas());
    description.webhooks = Some(webhooks());
}

fn webhooks() -> Paths {
    let all = WebhookEvent::ALL.into_iter().fold(PathsBuilder::new(), |all, event| {
        let Told { schema, means, .. } = told(event);
        let content = Content::builder().schema(Some(Ref::from_schema_name(schema)));
        let content = content.example(Some(json!(sample(event)))).build();
        let body = RequestBodyBuilder::new().content("application/json", content);
        // Who is called checks a signature; no key of the service's is in the request.
        let operation = OperationBuilder::new().tag("Callbacks").summary(Some(means)).parameters(Some(headers()));
        let operation = operation.request_body(Some(body.required(Some(utoipa::openapi::Required::True)).build()));
        let operation = operation.security(SecurityRequirement::default());
        let operation = operation
            .response("2XX", Response::new("Stored: it is not sent again"))
            .response("410", Response::new("Gone: the endpoint is disabled"))
            .response("default", Response::new("Not taken: it is tried again"));
        all.path(event.event_type().as_str(), PathItem::new(HttpMethod::Post, operation))
    });
    all.build()
}

/// The headers as a schema, which AsyncAPI wants.
fn header_schema() -> Value {
    let (mut properties, mut required) = (Map::new(), Vec::new());
    for header in headers().iter().map(|header| json!(header)) {
        let (name, mut schema) = (header["name"].as_str().unwrap_or_default(), header["schema"].clone());
        schema["description"] = header["description"].clone();
        properties.insert(name.to_owned(), schema);
        required.extend((header["required"] == true).then(|| name.to_owned()));
    }
    json!({ "type": "object", "properties": properties, "required": required })
}

/// The callbacks in AsyncAPI 3.
pub fn asyncapi() -> Value {
    let mut components: Map<String, Value> =
        schemas().into_iter().map(|(name, schema)| (name, json!(schema))).collect();
    components.insert("CallbackHeaders".to_owned(), header_schema());
    let (mut messages, mut in_channel, mut in_operation) = (Map::new(), Map::new(), Vec::new());
    for event in WebhookEvent::ALL {
        let (Told { schema, means, .. }, name) = (told(event), event.event_type());
        let message = json!({
            "name": name.as_str(),
            "title": means,
            "contentType": "application/json",
            "headers": { "$ref": "#/components/schemas/CallbackHeaders" },
            "payload": { "$ref": format!("#/components/schemas/{schema}") },
            "examples": [{ "payload": sample(event) }],
        });
        messages.insert(schema.to_owned(), message);
        in_channel.insert(schema.to_owned(), json!({ "$ref": format!("#/components/messages/{schema}") }));
        in_operation.push(json!({ "$ref": format!("#/channels/callbacks/messages/{schema}") }));
    }
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "Herald: callbacks",
            "version": "2025-09-10",
            "description": "What Herald sends to the URL of a subscription or an endpoint, one event in each POST. Any 2xx takes it.",
        },
        "defaultContentType": "application/json",
        "channels": {
            "callbacks": {
                "address": null,
                "description": "The URL that was subscribed or registered.",
                "messages": in_channel,
            },
        },
        "operations": {
            "callBack": {
                "action": "send",
                "channel": { "$ref": "#/channels/callbacks" },
                "summary": "Tell what happened to a payment intent, until it is taken or given up.",
                "messages": in_operation,
                "bindings": { "http": { "method": "POST", "bindingVersion": "0.3.0" } },
            },
        },
        "components": { "messages": messages, "schemas": components },
    })
}

/// The JSON Schema (draft 2020-12) of a body.
pub fn body_schema() -> Value {
    let parts: Map<String, Value> = schemas().into_iter().map(|(name, schema)| (name, json!(schema))).collect();
    let kinds = WebhookEvent::ALL.map(|event| json!({ "$ref": format!("#/$defs/{}", told(event).schema) }));
    let mut whole = json!({ "title": "The body of a callback", "oneOf": kinds, "$defs": parts });
    lead_to_definitions(&mut whole);
    whole["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
    whole
}

/// References as a schema by itself has them.
fn lead_to_definitions(schema: &mut Value) {
    match schema {
        Value::String(text) => {
            if let Some(name) = text.strip_prefix("#/components/schemas/") {
                *text = format!("#/$defs/{name}");
            }
        }
        Value::Object(members) => members.values_mut().for_each(lead_to_definitions),
        Value::Array(items) => items.iter_mut().for_each(lead_to_definitions),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// `UPDATE=1 cargo test --lib callbacks` writes the files anew.
    fn assert_published(name: &str, made: &Value) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&path, format!("{made:#}\n")).unwrap();
        }
        let published: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        assert!(published == *made, "{name} is old: UPDATE=1 cargo test --lib callbacks");
    }

    #[test]
    fn the_published_descriptions_are_current() {
        assert_published("docs/asyncapi.json", &asyncapi());
        assert_published("docs/callback.schema.json", &body_schema());
    }

    #[test]
    fn the_page_for_merchants_has_a_sample_of_each_event() {
        let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/merchants.md")).unwrap();
        for event in WebhookEvent::ALL {
            let sample = serde_json::to_string(&sample(event)).unwrap();
            assert!(page.contains(&sample), "docs/merchants.md has not {sample}");
        }
    }

    #[test]
    fn samples_are_valid_each_by_its_own_schema_and_nonsense_by_none() {
        let whole = body_schema();
        let validator = jsonschema::validator_for(&whole).unwrap();
        for event in WebhookEvent::ALL {
            let sound = json!(sample(event));
            assert!(validator.is_valid(&sound), "{sound}");
            let mut later = sound.clone();
            later["data"]["note"] = json!("more may come");
            assert!(validator.is_valid(&later), "{later}");
            let wrong = [
                ("/id", json!("")),
                ("/event", json!("payment_intent.lost")),
                ("/createdAt", json!(7)),
                ("/data/paymentStatus", json!("Lost")),
                ("/data/captureMode", json!("auto")),
                ("/data", json!({})),
            ];
            for (pointer, value) in wrong {
                let mut wrong = sound.clone();
                *wrong.pointer_mut(pointer).unwrap() = value;
                assert!(!validator.is_valid(&wrong), "{wrong}");
            }
        }
        let mut confused = json!(sample(WebhookEvent::Created));
        confused["data"]["paymentStatus"] = json!("Captured");
        assert!(!validator.is_valid(&confused), "it is created as Created");
    }
}
