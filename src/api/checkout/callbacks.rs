//! What the merchant is told of a payment, and what became of each callback: a page of its own, which the customer's page shows
//! beside itself in a frame. So it can be looked at again by itself while a form beside it is filled in. The sandbox's, as all of
//! the checkout.

use askama::Template;
use axum::http::StatusCode;

use super::page::{self, Page};
use crate::{
    api::intents::{
        Api,
        feed::{DeliveryState, Reconciled, StandingDelivery, standing},
    },
    http::problem::Problem,
    intents::{intent::Intent, stamp::Stamp},
};

/// Events that are shown, the newest: each has a delivery for every endpoint of its account.
const MOST: usize = 50;

/// How often it is looked again while something is owed, in seconds: about as long as a delivery takes, and a moment to read it.
const LOOK_AGAIN_S: u32 = 2;

/// What a query says when the page is to stay as it is.
pub const STILL: &str = "still";

pub async fn of(api: &Api, intent: &Intent, path: &str, is_still: bool) -> Result<Page, Problem> {
    let (events, is_known) = match standing(api, intent, MOST).await {
        Ok(events) => (events, true),
        // It is known again in a moment.
        Err(problem) if problem.status == StatusCode::SERVICE_UNAVAILABLE => (Vec::new(), false),
        Err(problem) => return Err(problem),
    };
    // Nobody can tell how something that is settled ended where there is no history.
    let awaits = |state| state == DeliveryState::Owed || state == DeliveryState::Settled && api.history.is_on();
    let is_owed = |event: &Reconciled| event.deliveries.iter().any(|one| awaits(one.state));
    let template = CallbacksTemplate {
        style: page::STYLE,
        path,
        is_live: !is_known || events.iter().any(is_owed),
        look_again_s: LOOK_AGAIN_S,
        is_known,
        is_still,
        is_called: events.iter().any(|event| !event.deliveries.is_empty()),
        events: events.iter().rev().collect(),
    };
    Ok(page::framed(&template))
}

#[derive(Template)]
#[template(path = "api/checkout/callbacks.html")]
struct CallbacksTemplate<'a> {
    style: &'static str,
    path: &'a str,
    /// Something may have changed a moment later.
    is_live: bool,
    look_again_s: u32,
    is_known: bool,
    is_still: bool,
    /// Somebody is told.
    is_called: bool,
    /// The newest first.
    events: Vec<&'a Reconciled>,
}

fn class(delivery: &StandingDelivery) -> &'static str {
    match delivery.state {
        DeliveryState::Delivered => "good",
        DeliveryState::Owed | DeliveryState::Settled => "quiet",
        DeliveryState::DeadLetter | DeliveryState::Discarded => "bad",
    }
}

fn says(delivery: &StandingDelivery) -> String {
    match (delivery.state, delivery.next_attempt_at) {
        (DeliveryState::Delivered, _) => "delivered".to_owned(),
        (DeliveryState::Owed, None) => "owed".to_owned(),
        (DeliveryState::Owed, Some(at)) => format!("owed, next attempt at {} UTC", &at.to_string()[11..19]),
        (DeliveryState::DeadLetter, _) => "dead letter".to_owned(),
        (DeliveryState::Discarded, _) => "discarded".to_owned(),
        (DeliveryState::Settled, _) => "settled".to_owned(),
    }
}

/// `2026-11-27 12:00:03`.
fn shown(at: Stamp) -> String {
    at.to_string()[..19].replace('T', " ")
}
