//! Test events: one that is signed as every other, sent past the stream. An operator's goes out past every stop, as that is how one
//! looks whether a receiver is mended; a merchant's does not go past what an operator has stopped.

use std::time::Duration;

use axum::{
    Json,
    extract::{Path, State},
};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    Api,
    access::{Caller, Keeper},
    changes::about,
    request::{Body, Refusals, named, optional, parsed, reason, refused},
};
use crate::{
    clock,
    facts::{
        audit::Act,
        delivery::Delivery,
        endpoint::{Endpoint, Ordering},
        event::{EventType, PaymentStatus},
        id::{EntryId, EventId, IntentId},
        outcome::Attempted,
        sample::{self, Sample},
    },
    http::problem::{Problem, ProblemDetails},
    view::test::TestView,
};

/// Beyond an endpoint's timeout, so that what follows an attempt that took all of it is over by then.
const AFTERWARDS: Duration = Duration::from_millis(250);

#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TestRequest {
    /// The first that the endpoint wants, where nothing is said.
    #[schema(required = false)]
    event_type: Option<String>,
    #[schema(required = false)]
    reason: Option<String>,
}

/// Send a signed test event to it, past the stream. That it is not taken is no error. An operator's goes out past every stop; a
/// merchant's is refused where an operator has stopped the endpoint, or everything. Merchants hear of one that was not answered
/// when the endpoint's timeout is over.
#[utoipa::path(
    post, path = "/v1/endpoints/{endpoint}/test", tag = "Endpoints", params(("endpoint" = String, Path)),
    request_body = Option<TestRequest>,
    responses(
        (status = 200, body = TestView), Refusals, (status = 409, body = ProblemDetails),
        (status = 413, body = ProblemDetails)
    )
)]
pub async fn test(
    State(api): State<Api>,
    Keeper(caller): Keeper,
    Path(id): Path<String>,
    body: Body,
) -> Result<Json<TestView>, Problem> {
    let request = body.read_or_default(&api.0.schemas.test)?;
    let why = request.reason.as_deref().map_or_else(|| Ok(String::new()), reason)?;
    let wanted = optional::<EventType>("event_type", request.event_type.as_ref())?;
    let endpoint = api.endpoint(&caller, &named(&id)?).await?;
    caller.may_lift(&endpoint)?;
    if caller.account.is_some() && api.0.registry.paused_all().is_some() {
        return Err(refused("Whoever runs Herald has paused all sending: try again later."));
    }
    let place = api.0.tests.take_for(&caller).await?;
    let _one_of_merchants = match caller.account {
        Some(_) => Some(
            api.0
                .merchants_tests
                .try_acquire()
                .map_err(|_| Problem::unavailable("Enough test events are on their way: try again in a moment.", 1))?,
        ),
        None => None,
    };
    let began = clock::now();
    let begun = about(caller.begun(&api, Act::EndpointTest, &why), &endpoint);
    let sent = api.0.audit.audited(begun, async |_| send(&api, &caller, &endpoint, wanted).await).await?;
    if !sent.is_told {
        // How long it took would tell a port that is closed from one that is silent.
        let _share = place.leave();
        let over = began + api.0.sender.timeout_of(endpoint.timeout_ms) + AFTERWARDS;
        tokio::time::sleep_until(over.into()).await;
    }
    Ok(Json(sent.view))
}

struct Sent {
    view: TestView,
    /// Whoever asked may know what came of it.
    is_told: bool,
}

async fn send(api: &Api, caller: &Caller, endpoint: &Endpoint, wanted: Option<EventType>) -> Result<Sent, Problem> {
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
    let viewer = caller.viewer();
    let view = TestView::of(endpoint, &event, &report, headers, viewer);
    Ok(Sent { view, is_told: viewer.is_told(&report.outcome) })
}
