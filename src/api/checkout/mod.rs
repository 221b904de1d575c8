//! The page where a customer pays: plain forms, written whole by the service, that need no script and nothing from anywhere.
//! It is the sandbox's, so its issuer is simulated and no money moves. Whoever has an intent's link may pay it, as a customer
//! may, and sees beside it what the merchant is told of it; what else an account has, the page does not know.
//!
//! - [`fields`] are the fields that it can ask for, [`form`] what was typed into them.
//! - [`page`] is what is shown, from the intent's state and nothing else: so every tab sees the same, and sees it again.
//! - [`callbacks`] is what is shown beside it: what the merchant was told, and what became of it.

pub mod callbacks;
pub mod countries;
pub mod fields;
pub mod form;
pub mod page;
pub mod price;

use axum::{
    Router,
    extract::{Path, RawQuery, State},
    http::{HeaderName, HeaderValue, StatusCode, header},
    middleware,
    response::{IntoResponse, Response},
    routing::{get, post},
};

use self::{
    form::{Asked, Fault, Order, Typed},
    page::{Page, Shown},
};
use crate::{
    api::intents::{Api, request::intent_id, sandbox},
    facts::{event::PaymentStatus, id::IntentId},
    http::problem::Problem,
    intents::{
        decide::{ChallengeResult, Command},
        intent::Intent,
        issuer,
        refusal::Refusal,
        requests::link,
        service::{ServiceError, client_secret},
        stamp::Stamp,
    },
};

type Answer = Result<Response, Problem>;

/// What a query says after a payment: this visitor has just made it.
const JUST_PAID: &str = "paid";

pub fn router(api: Api) -> Router {
    Router::new()
        .route("/checkout/{id}", get(show).post(pay))
        .route("/checkout/{id}/callbacks", get(show_callbacks))
        .route("/checkout/{id}/tip", post(tip))
        .route("/checkout/{id}/challenge", post(challenge))
        .route("/checkout/{id}/cancel", get(ask_to_cancel).post(cancel))
        .with_state(api)
        .layer(middleware::map_response(guarded))
}

/// Headers for every answer; and what failed becomes a page for people.
async fn guarded(mut response: Response) -> Response {
    let has_page = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == page::HTML);
    let status = response.status();
    if !has_page && (status.is_client_error() || status.is_server_error()) {
        let problem = response.extensions_mut().remove::<std::sync::Arc<Problem>>();
        let headers = response.headers().clone();
        response = page::failed(status).into_response();
        response.headers_mut().extend(headers.into_iter().filter(|(name, _)| *name == Some(header::ALLOW)));
        if let Some(problem) = problem {
            response.headers_mut().extend(problem.headers.clone());
            // The log has it, with the request's id.
            response.extensions_mut().insert(problem);
        }
    }
    let all = [
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (HeaderName::from_static("x-robots-tag"), "noindex"),
    ];
    for (name, value) in all {
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

/// What a customer's link leads to.
struct Visit {
    intent: Intent,
    now: Stamp,
    /// Where the page is, as its own forms call it.
    path: String,
    is_https: bool,
}

impl Visit {
    async fn of(api: &Api, id: &str) -> Result<Self, Problem> {
        let (intent, now) = api.service.find(&intent_id(id)?).await?;
        let (path, is_https) = place(api, &intent.id);
        Ok(Self { intent, now, path, is_https })
    }

    fn shown(&self) -> Shown<'_> {
        Shown { intent: &self.intent, now: self.now, path: &self.path, is_https: self.is_https }
    }

    /// After a change: the browser asks for the page anew, so that to load it again repeats nothing.
    fn back(&self) -> Response {
        to(&self.path)
    }

    fn is_open(&self) -> bool {
        self.intent.status == PaymentStatus::Created
    }
}

/// The way to an intent's page, behind whatever prefix callers reach this service by; and whether that is over TLS.
fn place(api: &Api, id: &IntentId) -> (String, bool) {
    let url = link(&format!("{}{id}", api.links));
    let path = url.as_ref().map_or_else(|| format!("/checkout/{id}"), |url| url.path().to_owned());
    (path, url.is_some_and(|url| url.scheme() == "https"))
}

fn to(place: &str) -> Response {
    match HeaderValue::from_str(place) {
        Ok(place) => (StatusCode::SEE_OTHER, [(header::LOCATION, place)]).into_response(),
        Err(error) => Problem::internal(&error).into_response(),
    }
}

async fn show(State(api): State<Api>, Path(id): Path<String>, RawQuery(query): RawQuery) -> Answer {
    let visit = Visit::of(&api, &id).await?;
    let is_thanks = query.as_deref() == Some(JUST_PAID);
    Ok(page::of_state(visit.shown(), is_thanks).into_response())
}

async fn show_callbacks(State(api): State<Api>, Path(id): Path<String>, RawQuery(query): RawQuery) -> Answer {
    let visit = Visit::of(&api, &id).await?;
    let is_still = query.as_deref() == Some(callbacks::STILL);
    let page = callbacks::of(&api, &visit.intent, &visit.path, is_still).await?;
    Ok(([(header::X_FRAME_OPTIONS, "SAMEORIGIN")], page).into_response())
}

async fn pay(State(api): State<Api>, Path(id): Path<String>, typed: Typed) -> Answer {
    let visit = Visit::of(&api, &id).await?;
    let (intent, asked) = (&visit.intent, Asked::of(&visit.intent));
    if !visit.is_open() || !(asked.card || asked.wallet) {
        return Ok(visit.back());
    }
    let Order { number, card, checkout } = match form::order(intent, &typed, visit.now) {
        Ok(order) => order,
        Err(faults) => return Ok(page::with_faults(visit.shown(), &typed, &faults).into_response()),
    };
    if checkout.total != intent.total() {
        return Ok(page::with_other_total(visit.shown(), &typed).into_response());
    }
    let answer = sandbox::answer_of(issuer::judge(&number, intent.total())).await;
    let command = Command::Pay { card, answer, checkout: Some(Box::new(checkout)) };
    match change(&api, &visit, &command).await? {
        Changed::To(intent) => Ok(after_payment(&visit, &intent)),
        Changed::Not(Refusal::TotalChanged { .. }) => {
            let visit = Visit::of(&api, &id).await?;
            Ok(page::with_other_total(visit.shown(), &typed).into_response())
        }
        Changed::Not(_) => Ok(visit.back()),
    }
}

async fn challenge(State(api): State<Api>, Path(id): Path<String>, typed: Typed) -> Answer {
    let visit = Visit::of(&api, &id).await?;
    let result = match typed.text("result") {
        "pass" => ChallengeResult::Passed(sandbox::approval()),
        "fail" => ChallengeResult::Failed,
        _ => return Err(Problem::fault("result", "is neither pass nor fail")),
    };
    match change(&api, &visit, &Command::Challenge(result)).await? {
        Changed::To(intent) => Ok(after_payment(&visit, &intent)),
        Changed::Not(_) => Ok(visit.back()),
    }
}

async fn tip(State(api): State<Api>, Path(id): Path<String>, typed: Typed) -> Answer {
    let visit = Visit::of(&api, &id).await?;
    let with_fault = |fault: Fault| {
        let shown = typed.known_beside_tip(&visit.intent);
        Ok(page::with_faults(visit.shown(), &shown, &[fault]).into_response())
    };
    if !visit.is_open() || !visit.intent.details.are_tips_allowed() {
        return Ok(visit.back());
    }
    let amount = match typed.tip() {
        Ok(value) => visit.intent.details.amount.of(value),
        Err(fault) => return with_fault(fault),
    };
    let command = Command::SetTips { amount, secret: client_secret() };
    match change(&api, &visit, &command).await? {
        Changed::Not(Refusal::Wrong { .. }) => {
            with_fault(Fault { field: form::OWN_TIP, says: "This tip is too large".to_owned() })
        }
        // What the state refuses, the page shows.
        Changed::To(_) | Changed::Not(_) => Ok(visit.back()),
    }
}

async fn ask_to_cancel(State(api): State<Api>, Path(id): Path<String>) -> Answer {
    let visit = Visit::of(&api, &id).await?;
    Ok(if visit.is_open() { page::to_cancel(visit.shown()).into_response() } else { visit.back() })
}

async fn cancel(State(api): State<Api>, Path(id): Path<String>, _typed: Typed) -> Answer {
    let visit = Visit::of(&api, &id).await?;
    let target = visit.intent.details.config.as_ref().and_then(|config| config.cancel_url.as_deref()).and_then(link);
    match (change(&api, &visit, &Command::Cancel).await?, target) {
        (Changed::To(_), Some(url)) => Ok(to(url.as_str())),
        (Changed::To(_) | Changed::Not(_), _) => Ok(visit.back()),
    }
}

/// What became of a command.
enum Changed {
    To(Box<Intent>),
    Not(Refusal),
}

async fn change(api: &Api, visit: &Visit, command: &Command) -> Result<Changed, Problem> {
    let Intent { account, id, .. } = &visit.intent;
    match api.service.change(account, id, command, None).await {
        Ok(intent) => Ok(Changed::To(Box::new(intent))),
        Err(ServiceError::Refused(refusal)) => Ok(Changed::Not(refusal)),
        Err(error) => Err(error.into()),
    }
}

/// To the merchant once it is paid. Until then the page shows how far it is.
fn after_payment(visit: &Visit, intent: &Intent) -> Response {
    if intent.status == PaymentStatus::Created {
        return visit.back();
    }
    let target = intent.details.config.as_ref().and_then(|config| config.redirect_url.as_deref()).and_then(link);
    to(&target.map_or_else(|| format!("{}?{JUST_PAID}", visit.path), String::from))
}

impl IntoResponse for Page {
    fn into_response(self) -> Response {
        let headers = [
            (header::CONTENT_TYPE, Some(HeaderValue::from_static(page::HTML))),
            (header::CONTENT_SECURITY_POLICY, HeaderValue::from_str(&self.policy).ok()),
            (header::SET_COOKIE, self.cookie.as_deref().and_then(|cookie| HeaderValue::from_str(cookie).ok())),
        ];
        let mut response = (self.status, self.html).into_response();
        for (name, value) in headers {
            if let Some(value) = value {
                response.headers_mut().insert(name, value);
            }
        }
        response
    }
}
