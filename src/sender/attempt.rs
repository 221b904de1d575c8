//! One attempt from its start to its report: prepare, sign, send, read, classify. A receiver's failure is an outcome and
//! never an error. Dropping the future ends the attempt and its connection. Never retries.

use std::{sync::Arc, time::Instant};

use reqwest::{Method, Request};

use super::{
    MAX_ATTEMPT_TIMEOUT, Sender, body, classify,
    request::{Prepared, RequestError},
    stages::{Stages, micros},
};
use crate::clock;
use crate::facts::{
    delivery::Delivery,
    endpoint::Endpoint,
    outcome::{AttemptReport, Attempted, BodyEnd, Outcome, SentRequest, Timing},
};

/// What came of the exchange, before it is made a report.
struct Ending {
    outcome: Outcome,
    detail: String,
    head_us: Option<u64>,
    body_end: BodyEnd,
    snippet: String,
}

impl Ending {
    fn without_response(outcome: Outcome, detail: String) -> Self {
        Self { outcome, detail, head_us: None, body_end: BodyEnd::Complete, snippet: String::new() }
    }
}

impl Sender {
    /// Makes one attempt: signs, sends, reads and classifies. It never fails, as a failure is an outcome, and it ends by
    /// the endpoint's deadline. `now_ms` is the wall clock in milliseconds since 1970: it becomes the timestamp of the
    /// signature and decides which secrets are live. Dropping the future gives the attempt up.
    pub async fn attempt(&self, delivery: &Delivery, endpoint: &Endpoint, now_ms: u64) -> Attempted {
        let start = clock::now();
        let stages = Arc::new(Stages::default());
        let prepared = self.prepared.get(endpoint, &self.guard);
        let ending = match &prepared {
            Ok(prepared) => self.exchange(prepared, delivery, endpoint, now_ms, start, &stages).await,
            Err(error) => unsendable(error),
        };
        let request = (!ending.outcome.is_delivered()).then(|| SentRequest {
            url: endpoint.url.clone(),
            headers: prepared.map(|p| p.headers_to_show(delivery, endpoint, now_ms)).unwrap_or_default(),
        });
        let timing = Timing {
            dns_us: stages.dns_us(),
            connect_us: stages.connect_us(),
            head_us: ending.head_us,
            total_us: micros(start.elapsed()),
        };
        let report = AttemptReport {
            number: delivery.next_attempt(),
            at_ms: now_ms,
            outcome: ending.outcome,
            timing,
            body_end: ending.body_end,
            snippet: ending.snippet,
            detail: ending.detail,
        };
        Attempted { report, request, flooded: false }
    }

    /// The headers that an attempt at this time has, for people: signatures and the endpoint's own values are hidden. None
    /// for an endpoint that makes no valid request.
    pub fn headers_to_show(&self, delivery: &Delivery, endpoint: &Endpoint, now_ms: u64) -> Vec<(String, String)> {
        let prepared = self.prepared.get(endpoint, &self.guard);
        prepared.map(|prepared| prepared.headers_to_show(delivery, endpoint, now_ms)).unwrap_or_default()
    }

    async fn exchange(
        &self,
        prepared: &Prepared,
        delivery: &Delivery,
        endpoint: &Endpoint,
        now_ms: u64,
        start: Instant,
        stages: &Arc<Stages>,
    ) -> Ending {
        let headers = match prepared.headers(delivery, endpoint, now_ms) {
            Ok(headers) => headers,
            Err(error) => return unsendable(&error),
        };
        let mut request = Request::new(Method::POST, prepared.url.clone());
        *request.headers_mut() = headers;
        *request.body_mut() = Some(delivery.body.clone().into());

        let deadline = tokio::time::Instant::from_std(start) + self.timeout_of(endpoint);
        let sending = Arc::clone(stages).watch(self.client.execute(request));
        match tokio::time::timeout_at(deadline, sending).await {
            Ok(Ok(response)) => {
                let head_us = Some(micros(start.elapsed()));
                let outcome = classify::of_response(response.status(), response.headers(), now_ms);
                let body = body::read(response, deadline).await;
                Ending { outcome, detail: String::new(), head_us, body_end: body.end, snippet: body.snippet }
            }
            Ok(Err(error)) => {
                let outcome = classify::of_error(&error, stages.stage(), prepared.url.scheme() == "https");
                Ending::without_response(outcome, classify::detail(&error))
            }
            Err(_) => {
                let stage = stages.stage();
                let detail = format!("the deadline was over while it was {}", format!("{stage:?}").to_lowercase());
                Ending::without_response(classify::of_deadline(stage), detail)
            }
        }
    }

    fn timeout_of(&self, endpoint: &Endpoint) -> std::time::Duration {
        endpoint.timeout_ms.map_or(self.attempt_timeout, std::time::Duration::from_millis).min(MAX_ATTEMPT_TIMEOUT)
    }
}

fn unsendable(error: &RequestError) -> Ending {
    let outcome = match error {
        RequestError::Guard(refused) if !refused.is_malformed() => Outcome::AddressRefused,
        RequestError::Guard(_) | RequestError::Header(_) | RequestError::NoScheme | RequestError::NoLiveSecret => {
            Outcome::Unsendable
        }
    };
    Ending::without_response(outcome, classify::shorten(error.to_string()))
}
