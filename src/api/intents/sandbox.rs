//! What only a test needs: the customer, the issuer of their card, and the clock. None of it is there unless `sandbox` is on.

use std::time::Duration;

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use utoipa::ToSchema;

use super::{
    Api,
    operations::{IntentRefusals, Refusals, Version},
    request::{Body, Reader, Writer, intent_id},
};
use crate::{
    facts::event::PaymentStatus,
    http::problem::Problem,
    intents::{
        decide::{Approval, ChallengeResult, Checkout, Command, IssuerAnswer},
        intent::Intent,
        issuer::{self, Verdict},
        requests::Status,
        service::random_part,
        stamp::{Stamp, TimeSpan},
    },
    store::intents::{ClockChange, ClockState},
};

type Answer<T> = Result<Json<T>, Problem>;

/// How long the slow issuer takes.
const SLOW: Duration = Duration::from_secs(5);

/// What the customer does. Without a body they pay with the card that is approved. It holds a card's number, so there is no
/// `Debug`.
#[derive(Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PayRequest {
    /// The number of a card; only the ends of it are kept.
    #[schema(example = "5200 0000 0000 0056", max_length = 40)]
    pub card: Option<String>,
    /// What the issuer answers, whatever the card and the amount.
    pub outcome: Option<PayOutcome>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum PayOutcome {
    Approved,
    Declined,
    Challenge,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PayAnswer {
    pub outcome: PayOutcome,
    /// Why the issuer declined.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<&'static str>,
    #[schema(value_type = Status)]
    pub status: PaymentStatus,
}

/// Pay as the customer would.
#[utoipa::path(
    post, path = "/sandbox/payment-intents/{paymentIntentId}/pay", tag = "Sandbox",
    params(("paymentIntentId" = String, Path), Version), request_body = Option<PayRequest>,
    responses((status = 200, body = PayAnswer), Refusals, IntentRefusals)
)]
pub async fn pay(
    State(api): State<Api>,
    Writer(caller): Writer,
    Path(id): Path<String>,
    body: Body,
) -> Answer<PayAnswer> {
    let (request, _) = body.read_or_default(&api.schemas.pay)?;
    let id = intent_id(&id)?;
    let number = request.card.as_deref().unwrap_or(issuer::APPROVED);
    let masked = issuer::mask(number).ok_or_else(|| Problem::fault("card", "is not the number of a card"))?;
    let (number, card) = masked;
    let total = api.service.get(&caller.account, &id).await?.total();
    let verdict = match request.outcome {
        Some(PayOutcome::Approved) => Verdict::Approves,
        Some(PayOutcome::Declined) => Verdict::Declines("as the request wanted it"),
        Some(PayOutcome::Challenge) => Verdict::Challenges,
        None => issuer::judge(&number, total),
    };
    let answer = answer_of(verdict).await;
    let (outcome, why) = match &answer {
        IssuerAnswer::Approved(_) => (PayOutcome::Approved, None),
        IssuerAnswer::Challenged => (PayOutcome::Challenge, None),
        IssuerAnswer::Failed(why) => (PayOutcome::Declined, Some(*why)),
    };
    // A total that has changed since is refused: the issuer was asked for this one.
    let checkout = Some(Box::new(Checkout { total, ..Checkout::default() }));
    let command = Command::Pay { card, answer, checkout };
    let intent = api.service.change(&caller.account, &id, &command, None).await?;
    Ok(Json(PayAnswer { outcome, why, status: intent.status }))
}

const DOWN: &str = "the issuer does not answer";

/// What the issuer says, once it does.
pub async fn answer_of(verdict: Verdict) -> IssuerAnswer {
    if verdict == Verdict::IsSlow {
        sleep(SLOW).await;
    }
    match verdict {
        Verdict::Approves | Verdict::IsSlow => IssuerAnswer::Approved(approval()),
        Verdict::Challenges => IssuerAnswer::Challenged,
        Verdict::Declines(why) => IssuerAnswer::Failed(why),
        Verdict::IsDown => IssuerAnswer::Failed(DOWN),
    }
}

/// What the issuer gives with its approval.
pub fn approval() -> Approval {
    Approval {
        transaction: format!("tx_{}", random_part()),
        auth_code: format!("{:06}", rand::random_range(0..1_000_000)),
    }
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChallengeRequest {
    pub result: ChallengeOutcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum ChallengeOutcome {
    Pass,
    Fail,
}

/// Meet the challenge of the customer's issuer, or not.
#[utoipa::path(
    post, path = "/sandbox/payment-intents/{paymentIntentId}/challenge", tag = "Sandbox",
    params(("paymentIntentId" = String, Path), Version), request_body = ChallengeRequest,
    responses((status = 200, body = PayAnswer), Refusals, IntentRefusals)
)]
pub async fn challenge(
    State(api): State<Api>,
    Writer(caller): Writer,
    Path(id): Path<String>,
    body: Body,
) -> Answer<PayAnswer> {
    let (request, _) = body.read(&api.schemas.challenge)?;
    let (result, outcome, why) = match request.result {
        ChallengeOutcome::Pass => (ChallengeResult::Passed(approval()), PayOutcome::Approved, None),
        ChallengeOutcome::Fail => (ChallengeResult::Failed, PayOutcome::Declined, Some("the challenge failed")),
    };
    let intent = api.service.change(&caller.account, &intent_id(&id)?, &Command::Challenge(result), None).await?;
    Ok(Json(PayAnswer { outcome, why, status: intent.status }))
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Timeline {
    payment_intent_id: String,
    events: Vec<TimelineEvent>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TimelineEvent {
    id: String,
    event: &'static str,
    #[schema(value_type = Status)]
    status: PaymentStatus,
    #[schema(value_type = String, format = DateTime)]
    created_at: Stamp,
}

impl Timeline {
    fn of(intent: &Intent) -> Self {
        let events = intent.history.iter().map(|told| TimelineEvent {
            id: told.id.to_string(),
            event: told.kind.name(),
            status: told.status,
            created_at: told.at,
        });
        Self { payment_intent_id: intent.id.to_string(), events: events.collect() }
    }
}

/// What its merchant was told of a payment intent, in order.
#[utoipa::path(
    get, path = "/sandbox/payment-intents/{paymentIntentId}/timeline", tag = "Sandbox",
    params(("paymentIntentId" = String, Path), Version),
    responses((status = 200, body = Timeline), Refusals, IntentRefusals)
)]
pub async fn timeline(State(api): State<Api>, Reader(caller): Reader, Path(id): Path<String>) -> Answer<Timeline> {
    let intent = api.service.get(&caller.account, &intent_id(&id)?).await?;
    Ok(Json(Timeline::of(&intent)))
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Clock {
    #[schema(value_type = String, format = DateTime)]
    now: Stamp,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClockRequest {
    /// How fast the clock runs: 1 is real time, 0 stops it.
    #[schema(minimum = 0, maximum = 1_000_000)]
    pub speed: f64,
}

/// What time it is in the sandbox. Every account has the same clock.
#[utoipa::path(
    get, path = "/sandbox/clock", tag = "Sandbox", params(Version), responses((status = 200, body = Clock), Refusals)
)]
pub async fn clock(State(api): State<Api>, Reader(_): Reader) -> Answer<Clock> {
    Ok(Json(Clock { now: api.service.now().await? }))
}

/// Let the clock run at another speed.
#[utoipa::path(
    post, path = "/sandbox/clock", tag = "Sandbox", params(Version), request_body = ClockRequest,
    responses((status = 200, body = Clock), Refusals)
)]
pub async fn set_clock(State(api): State<Api>, Writer(_): Writer, body: Body) -> Answer<Clock> {
    let (request, _) = body.read(&api.schemas.clock)?;
    moved(api.service.set_speed(request.speed).await?)
}

/// One of the two.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AdvanceRequest {
    /// `[d.]hh:mm:ss`.
    #[serde(default)]
    #[schema(value_type = Option<String>, example = "7.00:00:00")]
    pub by: Option<TimeSpan>,
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub to: Option<Stamp>,
}

/// Move the clock on. Answers when everything that was due until then has happened.
#[utoipa::path(
    post, path = "/sandbox/clock/advance", tag = "Sandbox", params(Version), request_body = AdvanceRequest,
    responses((status = 200, body = Clock), Refusals, (status = 409, body = crate::http::problem::ProblemDetails))
)]
pub async fn advance(State(api): State<Api>, Writer(_): Writer, body: Body) -> Answer<Clock> {
    let (request, _) = body.read(&api.schemas.advance)?;
    let change = match (request.by, request.to) {
        (Some(by), None) => ClockChange::Advance(by.micros()),
        (None, Some(to)) => ClockChange::To(to.0),
        _ => return Err(Problem::fault("by", "or to is needed, and not both")),
    };
    moved(api.service.advance(change).await?)
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResetAnswer {
    /// So many payment intents.
    removed: usize,
}

/// Begin anew: forgets every payment intent of this account, with its idempotency keys. Events that were sent stay sent, and
/// subscriptions stay.
#[utoipa::path(
    post, path = "/sandbox/reset", tag = "Sandbox", params(Version),
    responses((status = 200, body = ResetAnswer), Refusals)
)]
pub async fn reset(State(api): State<Api>, Writer(caller): Writer) -> Answer<ResetAnswer> {
    Ok(Json(ResetAnswer { removed: api.service.reset(&caller.account).await? }))
}

fn moved(state: ClockState) -> Answer<Clock> {
    let refused = |name, detail: String| Problem::new(StatusCode::CONFLICT, name, detail);
    match state {
        ClockState::On { now } | ClockState::UnderWay { now } => Ok(Json(Clock { now: Stamp(now) })),
        ClockState::Back { now } => Err(refused(
            "clock-never-goes-back",
            format!("It is {} in the sandbox; its clock never goes back.", Stamp(now)),
        )),
        ClockState::Far { now } => {
            let now = Stamp(now);
            Err(refused(
                "clock-ends-in-2200",
                format!("It is {now} in the sandbox; its clock does not go past the year 2200."),
            ))
        }
    }
}
