//! The console: pages for operators, and for a merchant those of their own account. Each page is made whole by the server from what
//! the API answers whoever looks, so it shows and changes nothing that the API would not; scripts only refresh it and copy ids.
//!
//! - [`entrance`] lets people in, [`session`] knows them again, [`visit`] is one request of theirs; [`asking`] asks the API.
//! - [`page`] is what all pages share, [`answers`] what they read, [`filters`] how it looks, [`plot`] draws, [`assets`] are the files
//!   that they load.
//! - The other files are the pages, by what they are about.

pub mod answers;
pub mod asking;
pub mod assets;
pub mod audit;
pub mod bulk;
pub mod curl;
pub mod deliveries;
pub mod endpoints;
pub mod entrance;
pub mod filters;
pub mod intents;
pub mod issues;
pub mod letters;
pub mod operations;
pub mod overview;
pub mod page;
pub mod partitions;
pub mod plot;
pub mod portal;
pub mod quarantine;
pub mod session;
pub mod settings;
pub mod tokens;
pub mod visit;

use axum::{
    Router,
    http::{HeaderName, HeaderValue, Method, StatusCode, header},
    middleware,
    response::Response,
    routing::{get, post},
};

use self::{asking::Client, session::Seal};
use crate::{
    api::v1::Api,
    http::{
        problem::Problem,
        server::{LIMITS, bounded_routes},
    },
};

/// What all pages are made with. Cheap to clone.
#[derive(Clone)]
pub struct Console {
    api: Api,
    client: Client,
    seal: Seal,
}

/// Its routes alone: what they do not have is for others. `secret` is the same for all processes of an installation, or there is none.
pub fn routes(api: Api, secret: Option<&str>) -> Router {
    if secret.is_none() {
        tracing::info!(
            "sessions of the console end with this process: set console.session_key, or admin_token, to keep them"
        );
    }
    let console = Console { client: Client::new(api.clone()), api, seal: Seal::new(secret) };
    let pages = pages().layer(middleware::from_fn_with_state(console.clone(), visit::known));
    let router = Router::new()
        .route("/", get(|| async { visit::see("/console") }))
        .route("/console/login", get(entrance::login_form).post(entrance::login))
        .route("/console/enter", post(entrance::enter))
        .route("/console/enter/{code}", get(entrance::enter_page))
        .route("/console/assets/{version}/{name}", get(assets::file))
        .merge(pages)
        .with_state(console)
        .layer(middleware::map_response(guarded));
    bounded_routes(router, LIMITS)
}

fn pages() -> Router<Console> {
    Router::new()
        .route("/console", get(overview::show))
        .route("/console/pause", post(overview::pause))
        .route("/console/resume", post(overview::resume))
        .route("/console/logout", post(entrance::logout))
        .route("/console/find", get(deliveries::look_up))
        .route("/console/issues", get(issues::list))
        .route("/console/issues/{issue}", get(issues::show))
        .route("/console/issues/{issue}/ack", post(issues::ack))
        .route("/console/issues/{issue}/resolve", post(issues::resolve))
        .route("/console/endpoints", get(endpoints::list).post(settings::create))
        .route("/console/endpoints/new", get(settings::new))
        .route("/console/endpoints/{endpoint}", get(endpoints::show))
        .route("/console/endpoints/{endpoint}/pause", post(endpoints::pause))
        .route("/console/endpoints/{endpoint}/resume", post(endpoints::resume))
        .route("/console/endpoints/{endpoint}/enable", post(endpoints::enable))
        .route("/console/endpoints/{endpoint}/disable", post(endpoints::disable))
        .route("/console/endpoints/{endpoint}/rotate-secret", post(endpoints::rotate_secret))
        .route("/console/endpoints/{endpoint}/test", post(endpoints::test))
        .route("/console/endpoints/{endpoint}/settings", get(settings::edit).post(settings::change))
        .route("/console/endpoints/{endpoint}/delete", post(settings::delete))
        .route("/console/intents/{intent}", get(intents::show))
        .route("/console/chains/{endpoint}/{intent}/release", post(intents::release))
        .route("/console/deliveries", get(deliveries::list))
        .route("/console/deliveries/{delivery}", get(deliveries::show))
        .route("/console/dead-letters", get(letters::list))
        .route("/console/dead-letters/redeliver", post(letters::redeliver))
        .route("/console/dead-letters/discard", post(letters::discard))
        .route("/console/dead-letters/all", get(bulk::confirm))
        .route("/console/dead-letters/all/redeliver", post(bulk::redeliver))
        .route("/console/operations", get(operations::list).post(operations::plan))
        .route("/console/operations/{operation}", get(operations::show))
        .route("/console/operations/{operation}/start", post(operations::start))
        .route("/console/operations/{operation}/pause", post(operations::pause))
        .route("/console/operations/{operation}/resume", post(operations::resume))
        .route("/console/operations/{operation}/cancel", post(operations::cancel))
        .route("/console/operations/{operation}/rate", post(operations::rate))
        .route("/console/quarantine", get(quarantine::list))
        .route("/console/quarantine/requeue", post(quarantine::requeue))
        .route("/console/quarantine/discard", post(quarantine::discard))
        .route("/console/quarantine/{entry}", get(quarantine::show))
        .route("/console/partitions", get(partitions::list))
        .route("/console/audit", get(audit::list))
        .route("/console/audit/{act}", get(audit::show))
        .route("/console/portal", get(portal::form).post(portal::link))
        .route("/console/tokens", get(tokens::list).post(tokens::create))
        .route("/console/tokens/{token}/revoke", post(tokens::revoke))
        .route("/console/{*rest}", get(entrance::nothing))
        .method_not_allowed_fallback(wrong_method)
}

async fn wrong_method(method: Method) -> Problem {
    let detail = match method {
        Method::GET | Method::HEAD => "This address only takes a form: go to the page that has it.",
        _ => "Nothing can be sent to this page.",
    };
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", detail)
}

/// What every answer says to browsers: whom to load from, and to keep nothing.
async fn guarded(mut response: Response) -> Response {
    let all = [
        (header::CACHE_CONTROL, "no-store"),
        (header::CONTENT_SECURITY_POLICY, page::POLICY.as_str()),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("x-robots-tag"), "noindex"),
    ];
    for (name, value) in all {
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().entry(name).or_insert(value);
        }
    }
    response
}
