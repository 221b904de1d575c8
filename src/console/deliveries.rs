//! Deliveries: lists of them, one with all that was sent and answered, and the way from any id to its page.

use askama::Template;
use axum::{extract::Path, response::Response};

use super::{
    answers::{At, Attempt, Delivery, Endpoint, Line, List, Mark, Record, Told},
    asking::{segment, with_query},
    curl, filters,
    page::{Frame, shown},
    visit::{Visit, see},
};
use crate::{facts::id::DeliveryId, http::problem::Problem};

const SUBJECTS: [&str; 4] = ["intent", "event", "endpoint", "account"];
const FILTERS: [&str; 8] = ["intent", "event", "endpoint", "account", "since", "until", "limit", "cursor"];

/// A body that is longer is shown once somebody opens it.
const LONG_BODY_BYTES: usize = 2_048;

#[derive(Template)]
#[template(path = "console/deliveries.html", escape = "visible")]
struct DeliveriesPage {
    frame: Frame,
    /// None: nothing was asked for.
    deliveries: Option<List<Line>>,
    intent: String,
    event: String,
    endpoint: String,
    account: String,
    since: String,
    until: String,
    is_staff: bool,
    next: Option<String>,
    prev: Option<String>,
}

#[derive(Template)]
#[template(path = "console/delivery.html", escape = "visible")]
struct DeliveryPage {
    frame: Frame,
    delivery: Delivery,
    /// Of the record or the letter.
    record: Option<Record>,
    /// Of one of which no record is left, as far as the history tells.
    told: Option<Told>,
    url: String,
    curl: Option<String>,
    /// The last attempt that failed, and the endpoint's last one that delivered.
    failed: Option<Attempt>,
    good: Option<Told>,
    endpoint: Option<Endpoint>,
    endpoint_id: String,
    may_keep: bool,
    may_operate: bool,
    is_staff: bool,
}

impl DeliveryPage {
    fn is_dead(&self) -> bool {
        self.delivery.letter.is_some()
    }

    fn is_long(&self, body: &str) -> bool {
        body.len() > LONG_BODY_BYTES
    }

    /// Where it was read from the stream, by its id.
    fn redelivered(&self) -> &[Mark] {
        self.record.as_ref().map(|record| record.redelivered.as_slice()).unwrap_or_default()
    }

    fn since(&self) -> Option<&At> {
        self.record.as_ref().map(|record| &record.since)
    }
}

pub async fn list(visit: Visit) -> Result<Response, Problem> {
    let mut query = visit.query(&FILTERS);
    let is_asked = query.iter().any(|(name, _)| SUBJECTS.contains(&name.as_str()));
    // A merchant's own, where nothing else is asked for.
    if let (false, Some(account)) = (is_asked, &visit.caller.account) {
        query.push(("account".to_owned(), account.to_string()));
    }
    let is_asked = is_asked || visit.caller.account.is_some();
    let asked = async || visit.get(&with_query("/v1/deliveries", &query)).await;
    let deliveries: Option<List<Line>> = if is_asked { Some(asked().await?) } else { None };
    let beside = |cursor: Option<&String>| visit.with_cursor(&FILTERS, cursor);
    let next = beside(deliveries.as_ref().and_then(|page| page.next.as_ref()));
    let prev = beside(deliveries.as_ref().and_then(|page| page.prev.as_ref()));
    let page = DeliveriesPage {
        frame: visit.frame("Deliveries"),
        deliveries,
        intent: visit.asked("intent"),
        event: visit.asked("event"),
        endpoint: visit.asked("endpoint"),
        account: visit.asked("account"),
        since: visit.asked("since"),
        until: visit.asked("until"),
        is_staff: visit.is_staff(),
        next,
        prev,
    };
    Ok(shown(&page))
}

pub async fn show(visit: Visit, Path(id): Path<String>) -> Result<Response, Problem> {
    let mut delivery: Delivery = visit.get(&format!("/v1/deliveries/{}", segment(&id))).await?;
    let endpoint_id = delivery.id.split_once(':').map_or("", |(_, endpoint)| endpoint).to_owned();
    let endpoint: Option<Endpoint> = visit.find(&format!("/v1/endpoints/{}", segment(&endpoint_id))).await;
    let record = delivery.record.take().or_else(|| delivery.letter.as_mut()?.delivery.take());
    let url = delivery.letter.as_ref().and_then(|letter| letter.url.clone());
    let url = url.or_else(|| endpoint.as_ref().map(|endpoint| endpoint.url.clone())).unwrap_or_default();
    let headers = delivery.letter.as_ref().map(|letter| letter.headers.clone()).unwrap_or_default();
    let curl = record.as_ref().filter(|_| !url.is_empty()).map(|record| {
        let own = [("webhook-id".to_owned(), record.event.clone())];
        curl::command(&url, if headers.is_empty() { &own } else { &headers }, &record.body)
    });
    let last = record.as_ref().and_then(|record| record.history.last());
    let failed = last.filter(|last| !last.outcome.starts_with("delivered")).cloned();
    let good = if failed.is_some() { last_good(&visit, &endpoint_id).await } else { None };
    let told = delivery.past.iter().rfind(|told| told.event.is_some()).cloned();
    let page = DeliveryPage {
        frame: visit.frame(format!("Delivery {}", delivery.id)),
        delivery,
        record,
        told,
        url,
        curl,
        failed,
        good,
        endpoint,
        endpoint_id,
        may_keep: visit.may_keep(),
        may_operate: visit.may_operate(),
        is_staff: visit.is_staff(),
    };
    Ok(shown(&page))
}

/// The newest attempt of the endpoint that delivered, of whatever event.
async fn last_good(visit: &Visit, endpoint: &str) -> Option<Told> {
    const LOOKED_AT: &str = "200";
    let path = with_query("/v1/attempts", &[("endpoint", endpoint), ("limit", LOOKED_AT)]);
    let attempts: List<Told> = visit.find(&path).await?;
    attempts.items.into_iter().find(|told| told.kind == "delivered")
}

/// Any id in one field leads to its page.
pub async fn look_up(visit: Visit) -> Response {
    see(&place_of(&visit.asked("q"), visit.is_staff()))
}

/// By what ids look like. What looks like nothing known is taken for an intent.
fn place_of(id: &str, is_staff: bool) -> String {
    let listed = |name: &str| with_query("/console/deliveries", &[(name, id)]);
    match id {
        "" => "/console".to_owned(),
        id if id.parse::<DeliveryId>().is_ok() => format!("/console/deliveries/{}", segment(id)),
        id if id.starts_with("ep_") && id.contains(':') && is_staff => format!("/console/issues/{}", segment(id)),
        id if id.starts_with("ep_") => format!("/console/endpoints/{}", segment(id)),
        id if id.starts_with("evt_") => listed("event"),
        id if id.starts_with("acc_") => with_query("/console/endpoints", &[("account", id)]),
        id => format!("/console/intents/{}", segment(id)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_id_leads_to_its_page() {
        for (id, place) in [
            ("", "/console"),
            ("17-0:ep_a", "/console/deliveries/17-0%3Aep_a"),
            ("ep_a", "/console/endpoints/ep_a"),
            ("ep_a:rejected:401", "/console/issues/ep_a%3Arejected%3A401"),
            ("evt_1", "/console/deliveries?event=evt_1"),
            ("acc_1", "/console/endpoints?account=acc_1"),
            ("pi_1", "/console/intents/pi_1"),
            ("//evil.example/\r\nx", "/console/intents/%2F%2Fevil.example%2F%0D%0Ax"),
        ] {
            assert_eq!(place_of(id, true), place);
        }
    }
}
