//! The merchant's calls.

use axum::{
    Json,
    extract::{Path, Query, State},
    http::{HeaderMap, HeaderValue, StatusCode},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, IntoResponses, ToSchema};

use super::{
    Api,
    request::{Body, Reader, Writer, check, intent_id},
};
use crate::{
    facts::{event::PaymentStatus, id::AccountId},
    http::problem::{Problem, ProblemDetails},
    intents::{
        as_of::{Unknown, as_of},
        decide::Command,
        details::Details,
        document::Document,
        intent::{Intent, Refund as Refunded},
        requests::{
            self, CreateCaptureRequest, CreateRefundRequest, SearchPaymentIntentRequest, SendReceiptRequest,
            SetAmountRequest, SetTipsAmountRequest,
        },
        service::{Part, ServiceError, client_secret, random_part},
        stamp::Stamp,
    },
};

pub type Answer<T> = Result<Json<T>, Problem>;

const DEFAULT_PAGE: u32 = 50;

/// What every call can be refused with.
#[derive(IntoResponses)]
#[allow(dead_code)]
pub enum Refusals {
    #[response(status = 400, description = "The request is wrong, whatever the state")]
    Wrong(ProblemDetails),
    #[response(status = 401, description = "The API key is missing or unknown")]
    Unknown(ProblemDetails),
    #[response(status = 403, description = "The API key may only read")]
    Forbidden(ProblemDetails),
    #[response(status = 503, description = "Redis is full or away")]
    Unavailable(ProblemDetails),
}

/// What calls for one intent can be refused with beside that.
#[derive(IntoResponses)]
#[allow(dead_code)]
pub enum IntentRefusals {
    #[response(status = 404, description = "There is no such payment intent, or it is another account's")]
    NotFound(ProblemDetails),
    #[response(status = 409, description = "Its state refuses it now")]
    Conflict(ProblemDetails),
}

/// Of every call.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[allow(dead_code)]
pub struct Version {
    /// The version of the API.
    #[param(format = Date, example = "2025-09-10")]
    version: String,
}

/// Of calls that can be repeated without being done twice.
#[derive(IntoParams)]
#[into_params(parameter_in = Header, rename_all = "camelCase")]
#[allow(dead_code)]
pub struct OptionalKey {
    /// The same key with the same body is answered as it was the first time.
    #[param(min_length = 1, max_length = 100)]
    idempotency_key: Option<String>,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Header, rename_all = "camelCase")]
#[allow(dead_code)]
pub struct RequiredKey {
    /// The same key with the same body is answered as it was the first time.
    #[param(min_length = 1, max_length = 100)]
    idempotency_key: String,
}

/// Create a payment intent.
#[utoipa::path(
    post, path = "/payment-intents", tag = "Payment intents", params(Version, OptionalKey), request_body = Details,
    responses((status = 200, body = Document), Refusals, (status = 409, body = ProblemDetails))
)]
pub async fn create(State(api): State<Api>, Writer(caller): Writer, body: Body) -> Answer<Document> {
    let (details, value) = body.read(&api.schemas.create)?;
    let key = body.key(&format!("create {}", caller.account), &value)?;
    let intent = api.service.create(&caller.account, details, key.as_ref()).await?;
    Ok(Json(Document::of(&intent, &api.links)))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub struct GetQuery {
    /// A payment intent that is Canceled is only answered with `true`.
    #[serde(default)]
    #[param(required = false)]
    return_canceled: bool,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[allow(dead_code)]
pub struct AsOf {
    /// An instant of the past: the answer is what the payment intent was then.
    #[param(rename = "herald-as-of", format = DateTime, example = "2025-09-10T12:00:00Z")]
    as_of: Option<String>,
}

/// Look at a payment intent, as it is or as it was.
#[utoipa::path(
    get, path = "/payment-intents/{paymentIntentId}", tag = "Payment intents",
    params(("paymentIntentId" = String, Path), GetQuery, Version, AsOf),
    responses((status = 200, body = Document), Refusals, (status = 404, body = ProblemDetails),
        (status = 409, description = "What it was then is not kept", body = ProblemDetails))
)]
pub async fn get(
    State(api): State<Api>,
    Reader(caller): Reader,
    Path(id): Path<String>,
    headers: HeaderMap,
    query: Result<Query<GetQuery>, axum::extract::rejection::QueryRejection>,
) -> Answer<Document> {
    let Query(query) = query.map_err(|_| Problem::fault("returnCanceled", "is neither true nor false"))?;
    let at = earlier_instant(&headers)?;
    let (intent, now) = api.service.get_with_time(&caller.account, &intent_id(&id)?).await?;
    let intent = at.map_or_else(|| Ok(intent.clone()), |at| earlier(&intent, at, now))?;
    if intent.status == PaymentStatus::Canceled && !query.return_canceled {
        return Err(ServiceError::NotFound.into());
    }
    Ok(Json(Document::of(&intent, &api.links)))
}

const AS_OF: &str = "herald-as-of";

fn earlier_instant(headers: &HeaderMap) -> Result<Option<Stamp>, Problem> {
    let read = |value: &HeaderValue| value.to_str().ok().and_then(Stamp::parse);
    let fault = || Problem::fault(AS_OF, "is not an instant from 1970 on as in \"herald-as-of: 2025-09-10T12:00:00Z\"");
    headers.get(AS_OF).map(|value| read(value).ok_or_else(fault)).transpose()
}

fn earlier(intent: &Intent, at: Stamp, now: Stamp) -> Result<Intent, Problem> {
    if at > now {
        return Err(Problem::fault(AS_OF, format!("is in the future: it is {now}")));
    }
    as_of(intent, at).map_err(|unknown| match unknown {
        Unknown::NotYet => {
            let detail = format!("There was no such payment intent then: it was created at {}.", intent.created_at);
            Problem::new(StatusCode::NOT_FOUND, "not-created-yet", detail)
        }
        Unknown::NotKept => {
            let detail = format!(
                "What this payment intent was then cannot be told exactly: of an amount, tips, a secret or what a customer fills in \
                 only the last is kept. From {} on it is as it is now.",
                intent.changed_at
            );
            Problem::new(StatusCode::CONFLICT, "not-kept", detail)
        }
    })
}

/// Cancel a payment intent that nobody has paid.
#[utoipa::path(
    delete, path = "/payment-intents/{paymentIntentId}", tag = "Payment intents",
    params(("paymentIntentId" = String, Path), Version),
    responses((status = 200, body = Document), Refusals, IntentRefusals)
)]
pub async fn cancel(State(api): State<Api>, Writer(caller): Writer, Path(id): Path<String>) -> Answer<Document> {
    let intent = api.service.change(&caller.account, &intent_id(&id)?, &Command::Cancel, None).await?;
    Ok(Json(Document::of(&intent, &api.links)))
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Capture)]
pub struct Captured {
    message: &'static str,
    capture_id: String,
}

/// Take money that is held, all of it or a part.
#[utoipa::path(
    post, path = "/payment-intents/{paymentIntentId}/captures", tag = "Captures",
    params(("paymentIntentId" = String, Path), Version, OptionalKey), request_body = CreateCaptureRequest,
    responses((status = 200, body = Captured), Refusals, IntentRefusals)
)]
pub async fn capture(
    State(api): State<Api>,
    Writer(caller): Writer,
    Path(id): Path<String>,
    body: Body,
) -> Answer<Captured> {
    let (request, value) = body.read(&api.schemas.capture)?;
    let CreateCaptureRequest { amount, tips_amount } = request;
    let key = body.key(&format!("capture {id}"), &value)?.map(|key| key.kept());
    let new_id = format!("cp_{}", random_part());
    let command = Command::Capture { id: new_id.clone(), amount, tips: tips_amount, key: key.clone() };
    let intent = api.service.change(&caller.account, &intent_id(&id)?, &command, None).await?;
    let by_key = key.and_then(|key| {
        intent.captures.iter().find(|capture| capture.key.as_ref().is_some_and(|used| used.key == key.key))
    });
    let capture_id = by_key.map_or(new_id, |capture| capture.id.clone());
    Ok(Json(Captured { message: "Captured", capture_id }))
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Reversal)]
pub struct ReversedAnswer {
    message: &'static str,
    reversal_id: String,
}

/// Give back all of the money that is held, or on the same day the whole payment. A body is ignored.
#[utoipa::path(
    post, path = "/payment-intents/{paymentIntentId}/reversal", tag = "Reversal",
    params(("paymentIntentId" = String, Path), Version, OptionalKey),
    responses((status = 200, body = ReversedAnswer), Refusals, IntentRefusals)
)]
pub async fn reverse(
    State(api): State<Api>,
    Writer(caller): Writer,
    Path(id): Path<String>,
    body: Body,
) -> Answer<ReversedAnswer> {
    let key = body.key(&format!("reverse {id}"), &serde_json::Value::Null)?.map(|key| key.kept());
    let command = Command::Reverse { id: format!("rvs_{}", random_part()), zone: api.service.zone().clone(), key };
    let intent = api.service.change(&caller.account, &intent_id(&id)?, &command, None).await?;
    let reversal_id = intent.reversal.map(|reversal| reversal.id).unwrap_or_default();
    Ok(Json(ReversedAnswer { message: "Reversed", reversal_id }))
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Refund {
    payment_intent_id: String,
    refund_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    refund_reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    notes: Option<String>,
}

impl Refund {
    /// The refunds of an intent are numbered from 1, so their ids need no index.
    fn of(intent: &Intent, index: usize, refund: &Refunded) -> Self {
        Self {
            payment_intent_id: intent.id.to_string(),
            refund_id: format!("rfnd_{}-{}", intent.random_part(), index + 1),
            refund_reason: refund.reason.clone(),
            notes: refund.notes.clone(),
        }
    }
}

/// Pay back what was captured, all of it or a part.
#[utoipa::path(
    post, path = "/payment-intents/{paymentIntentId}/refunds", tag = "Refunds",
    params(("paymentIntentId" = String, Path), Version, RequiredKey), request_body = CreateRefundRequest,
    responses((status = 200, body = Refund), Refusals, IntentRefusals)
)]
pub async fn refund(
    State(api): State<Api>,
    Writer(caller): Writer,
    Path(id): Path<String>,
    body: Body,
) -> Answer<Refund> {
    let (request, value) = body.read(&api.schemas.refund)?;
    let CreateRefundRequest { amount, refund_reason, notes, previous_transaction_id: _ } = request;
    let key = body.required_key(&format!("refund {id}"), &value)?.kept();
    let command = Command::Refund { amount, reason: refund_reason, notes, key: key.clone() };
    let intent = api.service.change(&caller.account, &intent_id(&id)?, &command, None).await?;
    let found = intent.refunds.iter().enumerate().find(|(_, refund)| refund.key.key == key.key);
    let (index, refund) = found.ok_or_else(|| Problem::from(ServiceError::Busy))?;
    Ok(Json(Refund::of(&intent, index, refund)))
}

/// Look at a refund.
#[utoipa::path(
    get, path = "/payment-intents/refunds/{refundId}", tag = "Refunds",
    params(("refundId" = String, Path), Version),
    responses((status = 200, body = Refund), Refusals, (status = 404, body = ProblemDetails))
)]
pub async fn get_refund(State(api): State<Api>, Reader(caller): Reader, Path(id): Path<String>) -> Answer<Refund> {
    let not_found = || Problem::new(StatusCode::NOT_FOUND, "not-found", "There is no such refund.");
    let parts = id.strip_prefix("rfnd_").and_then(|rest| rest.rsplit_once('-'));
    let (random, number) = parts.ok_or_else(not_found)?;
    let index = number.parse::<usize>().ok().and_then(|number| number.checked_sub(1)).ok_or_else(not_found)?;
    let intent = intent_id(&format!("{}{random}", crate::intents::intent::ID_PREFIX)).map_err(|_| not_found())?;
    let intent = api.service.get(&caller.account, &intent).await.map_err(|error| match error {
        ServiceError::NotFound => not_found(),
        error => error.into(),
    })?;
    let refund = intent.refunds.get(index).ok_or_else(not_found)?;
    Ok(Json(Refund::of(&intent, index, refund)))
}

/// Change the amount, where `config.payment.customAmountAllowed` permits it.
#[utoipa::path(
    post, path = "/payment-intents/{paymentIntentId}/amount", tag = "Payment intents",
    params(("paymentIntentId" = String, Path), Version, OptionalKey), request_body = SetAmountRequest,
    responses((status = 200, body = Document), Refusals, IntentRefusals, (status = 405, body = ProblemDetails))
)]
pub async fn set_amount(
    State(api): State<Api>,
    Writer(caller): Writer,
    Path(id): Path<String>,
    body: Body,
) -> Answer<Document> {
    let (request, value) = body.read(&api.schemas.amount)?;
    check(requests::faults_of_amount(&request))?;
    let key = body.key(&format!("amount {id}"), &value)?;
    let SetAmountRequest { amount, item_lines, tax_lines } = request;
    let command = Command::SetAmount { amount, item_lines, tax_lines, secret: client_secret() };
    let intent = api.service.change(&caller.account, &intent_id(&id)?, &command, key.as_ref()).await?;
    Ok(Json(Document::of(&intent, &api.links)))
}

/// Change the tips, where `config.payment.tipsAllowed` permits it.
#[utoipa::path(
    post, path = "/payment-intents/{paymentIntentId}/tips-amount", tag = "Payment intents",
    params(("paymentIntentId" = String, Path), Version, OptionalKey), request_body = SetTipsAmountRequest,
    responses((status = 200, body = Document), Refusals, IntentRefusals, (status = 405, body = ProblemDetails))
)]
pub async fn set_tips(
    State(api): State<Api>,
    Writer(caller): Writer,
    Path(id): Path<String>,
    body: Body,
) -> Answer<Document> {
    let (request, value) = body.read(&api.schemas.tips)?;
    check(requests::faults_of_tips(&request))?;
    let key = body.key(&format!("tips {id}"), &value)?;
    let command = Command::SetTips { amount: request.tips_amount, secret: client_secret() };
    let intent = api.service.change(&caller.account, &intent_id(&id)?, &command, key.as_ref()).await?;
    Ok(Json(Document::of(&intent, &api.links)))
}

/// Make a new client secret: so an interrupted payment is resumed.
#[utoipa::path(
    post, path = "/payment-intents/{paymentIntentId}/refresh-client-session-secret", tag = "Payment intents",
    params(("paymentIntentId" = String, Path), Version),
    responses((status = 200, body = Document), Refusals, IntentRefusals)
)]
pub async fn refresh_secret(
    State(api): State<Api>,
    Writer(caller): Writer,
    Path(id): Path<String>,
) -> Answer<Document> {
    let command = Command::RefreshSecret { secret: client_secret() };
    let intent = api.service.change(&caller.account, &intent_id(&id)?, &command, None).await?;
    Ok(Json(Document::of(&intent, &api.links)))
}

/// Have a receipt sent to the customer: whoever sends mails is told by `payment_intent.send-receipt`.
#[utoipa::path(
    post, path = "/payment-intents/{paymentIntentId}/receipt", tag = "Payment intents",
    params(("paymentIntentId" = String, Path), Version), request_body = SendReceiptRequest,
    responses((status = 204, description = "The event has left"), Refusals, IntentRefusals)
)]
pub async fn send_receipt(
    State(api): State<Api>,
    Writer(caller): Writer,
    Path(id): Path<String>,
    body: Body,
) -> Result<StatusCode, Problem> {
    let (request, _) = body.read(&api.schemas.receipt)?;
    check(requests::faults_of_receipt(&request))?;
    api.service.change(&caller.account, &intent_id(&id)?, &Command::SendReceipt, None).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PagedPaymentIntent {
    data: Vec<Document>,
    /// Leads to newer ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<String>,
    /// Leads to older ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<String>,
}

/// List payment intents, newest first.
#[utoipa::path(
    post, path = "/payment-intents/search", tag = "Payment intents", params(Version),
    request_body = SearchPaymentIntentRequest,
    responses((status = 200, body = PagedPaymentIntent), Refusals)
)]
pub async fn search(State(api): State<Api>, Reader(caller): Reader, body: Body) -> Answer<PagedPaymentIntent> {
    let (request, _) = body.read(&api.schemas.search)?;
    check(requests::faults_of_search(&request))?;
    let cursor = request.cursor.clone().unwrap_or_default();
    let part = match (&cursor.before, &cursor.after) {
        (Some(text), _) => Part::NewerThan(read_cursor(&caller.account, text, "cursor.before")?),
        (None, Some(text)) => Part::OlderThan(read_cursor(&caller.account, text, "cursor.after")?),
        (None, None) => Part::Newest,
    };
    let limit = cursor.limit.unwrap_or(DEFAULT_PAGE) as usize;
    let page = api.service.search(&caller.account, &request, part, limit).await?;
    let cursor = |at| write_cursor(&caller.account, at);
    Ok(Json(PagedPaymentIntent {
        before: page.newer.map(cursor),
        after: page.older.map(cursor),
        data: page.intents.iter().map(|intent| Document::of(intent, &api.links)).collect(),
    }))
}

/// Where a page ends. Opaque to clients; of use only to the account that got it.
fn write_cursor(account: &AccountId, at: Stamp) -> String {
    URL_SAFE_NO_PAD.encode(format!("1 {} {account}", at.0))
}

fn read_cursor(account: &AccountId, text: &str, member: &'static str) -> Result<Stamp, Problem> {
    let decoded = URL_SAFE_NO_PAD.decode(text).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let read = decoded.as_deref().and_then(|text| {
        let (at, of) = text.strip_prefix("1 ")?.split_once(' ')?;
        (of == account.as_str()).then(|| at.parse().ok().map(Stamp)).flatten()
    });
    read.ok_or_else(|| Problem::fault(member, "is no cursor of yours: use one that a page of this search gave you"))
}
