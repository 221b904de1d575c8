//! What the calls have in common, in the order in which it is checked: key, version, form.

use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Request, rejection::BytesRejection},
    http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts},
};
use serde_json::Value;

use super::{Api, sandbox};
use crate::{
    api::{access::Caller, webhooks},
    facts::id::IntentId,
    http::{json::Schema, problem::Problem},
    intents::{
        details::Details,
        refusal::Refusal,
        requests::{
            self, CreateCaptureRequest, CreateRefundRequest, Fault, SearchPaymentIntentRequest, SendReceiptRequest,
            SetAmountRequest, SetTipsAmountRequest,
        },
        service::{RequestKey, ServiceError},
    },
    store::error::StoreError,
};

const VERSION: &str = "version";
const KEY: &str = "idempotencyKey";

/// Longest idempotency key, in characters.
const MAX_KEY: usize = 100;

/// How bodies are checked; made once.
#[derive(Default)]
pub struct Schemas {
    pub create: Schema<Details>,
    pub capture: Schema<CreateCaptureRequest>,
    pub refund: Schema<CreateRefundRequest>,
    pub amount: Schema<SetAmountRequest>,
    pub tips: Schema<SetTipsAmountRequest>,
    pub receipt: Schema<SendReceiptRequest>,
    pub search: Schema<SearchPaymentIntentRequest>,
    pub pay: Schema<sandbox::PayRequest>,
    pub challenge: Schema<sandbox::ChallengeRequest>,
    pub clock: Schema<sandbox::ClockRequest>,
    pub advance: Schema<sandbox::AdvanceRequest>,
    pub subscription: Schema<webhooks::operations::SubscriptionRequest>,
    pub subscription_update: Schema<webhooks::operations::SubscriptionUpdateRequest>,
    pub endpoint: Schema<webhooks::sandbox::EndpointRequest>,
}

/// A caller whose key and version are right.
#[derive(Debug, Clone)]
pub struct Reader(pub Caller);

impl FromRequestParts<Api> for Reader {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        let caller = api.access.caller(&parts.headers).await?;
        check_version(&parts.headers)?;
        Ok(Self(caller))
    }
}

/// One who may also write.
#[derive(Debug, Clone)]
pub struct Writer(pub Caller);

impl FromRequestParts<Api> for Writer {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        let caller = api.access.caller(&parts.headers).await?;
        caller.may_write()?;
        check_version(&parts.headers)?;
        Ok(Self(caller))
    }
}

fn check_version(headers: &HeaderMap) -> Result<(), Problem> {
    let Some(given) = headers.get(VERSION) else {
        return Err(Problem::fault(VERSION, "is missing: send the header \"version: 2025-09-10\""));
    };
    match given.to_str() {
        Ok(text) if requests::is_version(text) => Ok(()),
        _ => Err(Problem::fault(VERSION, "is not a date as in \"version: 2025-09-10\"")),
    }
}

/// The body with the headers that say what it is.
pub struct Body {
    headers: HeaderMap,
    bytes: Bytes,
}

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let headers = request.headers().clone();
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection| of_rejection(&rejection))?;
        Ok(Self { headers, bytes })
    }
}

fn of_rejection(rejection: &BytesRejection) -> Problem {
    match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", "The body is larger than 64 KiB.")
        }
        _ => Problem::fault("body", "did not arrive whole"),
    }
}

impl Body {
    pub fn read<T>(&self, schema: &Schema<T>) -> Result<(T, Value), Problem>
    where
        T: utoipa::ToSchema + utoipa::PartialSchema + serde::de::DeserializeOwned,
    {
        schema.read(&self.headers, &self.bytes)
    }

    /// For calls that need no body.
    pub fn read_or_default<T>(&self, schema: &Schema<T>) -> Result<(T, Value), Problem>
    where
        T: utoipa::ToSchema + utoipa::PartialSchema + serde::de::DeserializeOwned + Default,
    {
        if self.bytes.is_empty() { Ok((T::default(), Value::Null)) } else { self.read(schema) }
    }

    /// The client's name for this request, if it has one. `scope` is the operation and whose it is.
    pub fn key(&self, scope: &str, body: &Value) -> Result<Option<RequestKey>, Problem> {
        let Some(given) = self.headers.get(KEY) else { return Ok(None) };
        let text = given.to_str().unwrap_or_default();
        if text.is_empty() || text.chars().count() > MAX_KEY {
            return Err(Problem::fault(KEY, format!("is not 1 to {MAX_KEY} visible ASCII characters")));
        }
        Ok(Some(RequestKey::new(scope, text, body)))
    }

    pub fn required_key(&self, scope: &str, body: &Value) -> Result<RequestKey, Problem> {
        self.key(scope, body)?.ok_or_else(|| Problem::fault(KEY, "is missing: a refund needs this header"))
    }
}

/// What is no id is not there.
pub fn intent_id(text: &str) -> Result<IntentId, Problem> {
    IntentId::new(text).map_err(|_| ServiceError::NotFound.into())
}

pub fn check(faults: Vec<Fault>) -> Result<(), Problem> {
    if faults.is_empty() { Ok(()) } else { Err(ServiceError::Faults(faults).into()) }
}

impl From<ServiceError> for Problem {
    fn from(error: ServiceError) -> Self {
        match error {
            ServiceError::NotFound | ServiceError::Refused(Refusal::Gone) => {
                Self::new(StatusCode::NOT_FOUND, "not-found", Refusal::Gone.sentence())
            }
            ServiceError::Refused(Refusal::Wrong { member, why }) => Self::fault(member, why),
            ServiceError::Refused(refusal) => {
                let code = StatusCode::from_u16(refusal.code()).unwrap_or(StatusCode::CONFLICT);
                let problem = Self::new(code, refusal.name(), refusal.sentence());
                match code {
                    // No method of this resource is allowed, as RFC 9110 writes it.
                    StatusCode::METHOD_NOT_ALLOWED => problem.with(header::ALLOW, HeaderValue::from_static("")),
                    _ => problem,
                }
            }
            ServiceError::Faults(faults) => Self::faults(faults.into_iter().map(|Fault { member, why }| (member, why))),
            ServiceError::Busy => {
                Self::unavailable("Others change this payment intent all the time; nothing was changed.", 1)
            }
            ServiceError::Full => Self::unavailable(
                "Redis has less than a tenth of its memory left, which is for the payment intents that there are; nothing was created.",
                60,
            ),
            ServiceError::Store(ref error @ StoreError::OutOfMemory { .. }) => {
                Self::unavailable("Redis is full and refuses changes; nothing was changed.", 5).because(error)
            }
            ServiceError::Store(ref error @ StoreError::Unavailable { .. }) => Self::unavailable(
                "Redis does not answer, so it is not known whether anything was changed: look, or repeat with the same idempotencyKey.",
                1,
            )
            .because(error),
            error @ (ServiceError::Store(_) | ServiceError::Unreadable(..)) => Self::internal(&error),
        }
    }
}
