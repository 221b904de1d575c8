//! One attempt from its start to its report: prepare, sign, send, read, classify. A receiver's failure is an outcome and
//! never an error. Dropping the future ends the attempt and its connection. Never retries.

use std::time::{Duration, Instant};

use http::{Request, Version};
use reqwest::{Body, Method};

use super::{
    MAX_ATTEMPT_TIMEOUT, Sender, body, classify,
    exchange::{Answer, Failure, IsHttp2},
    lateness::is_too_late,
    request::{Prepared, RequestError},
    stages::{Stages, micros},
};
use crate::clock;
use crate::facts::{
    delivery::Delivery,
    endpoint::Endpoint,
    outcome::{AttemptReport, Attempted, BodyEnd, LocalCause, Met, Outcome, SentRequest, Timing},
};

/// What came of the exchange, before it becomes a report.
struct Ending {
    outcome: Outcome,
    detail: String,
    head_us: Option<u64>,
    body_end: BodyEnd,
    snippet: String,
    flooded: bool,
    met: Option<Met>,
}

impl Ending {
    fn without_response(outcome: Outcome, detail: String) -> Self {
        Self {
            outcome,
            detail,
            head_us: None,
            body_end: BodyEnd::Complete,
            snippet: String::new(),
            flooded: false,
            met: None,
        }
    }
}

impl Sender {
    /// Makes one attempt: signs, sends, reads and classifies. It never fails, as a failure is an outcome, and it ends by
    /// the endpoint's deadline. `now_ms` is the wall clock in milliseconds since 1970: it becomes the timestamp of the
    /// signature and decides which secrets are live. Dropping the future gives the attempt up.
    pub async fn attempt(&self, delivery: &Delivery, endpoint: &Endpoint, now_ms: u64) -> Attempted {
        let start = clock::now();
        let mut stages = Stages::of(&endpoint.account);
        let prepared = self.prepared.get(endpoint, &self.guard);
        let ending = match &prepared {
            Ok(prepared) => self.exchange(prepared, delivery, endpoint, now_ms, start, &mut stages).await,
            Err(error) => unsendable(error),
        };
        let request = (!ending.outcome.is_delivered()).then(|| SentRequest {
            url: endpoint.url.clone(),
            headers: prepared.map(|p| p.headers_to_show(delivery, endpoint, now_ms)).unwrap_or_default(),
        });
        let timing = Timing {
            dns_us: stages.dns_us,
            connect_us: stages.connect_us,
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
        Attempted { report, request, flooded: ending.flooded, resent: stages.resent, met: ending.met }
    }

    /// The headers that an attempt at this time would have, for people: signatures and the endpoint's own values are
    /// hidden. None for an endpoint whose settings make no valid request.
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
        stages: &mut Stages<'_>,
    ) -> Ending {
        let mut headers = match prepared.headers(delivery, endpoint, now_ms) {
            Ok(headers) => Some(headers),
            Err(error) => return unsendable(&error),
        };
        // Called a second time only if the first request was not processed; it makes the same bytes then.
        let request = |is_http2| {
            let headers = headers.take().or_else(|| prepared.headers(delivery, endpoint, now_ms).ok());
            let mut request = Request::new(Body::from(delivery.body.clone()));
            *request.method_mut() = Method::POST;
            *request.headers_mut() = headers.unwrap_or_default();
            match is_http2 {
                IsHttp2::Yes => {
                    *request.version_mut() = Version::HTTP_2;
                    *request.uri_mut() = prepared.uri.clone();
                }
                IsHttp2::No => {
                    *request.uri_mut() = prepared.path.clone();
                    request.headers_mut().insert(http::header::HOST, prepared.host.clone());
                }
            }
            request
        };
        let deadline = tokio::time::Instant::from_std(start) + self.timeout_of(endpoint.timeout_ms);
        match self.exchanges.exchange(&prepared.origin, request, deadline, stages).await {
            Ok(Answer { status, headers, body: answer }) => {
                let (head_us, met) = (Some(micros(start.elapsed())), answer.met());
                let outcome = classify::of_response(status, &headers, now_ms);
                let detail = classify::location(status, &headers);
                let reading = async |answer: &mut _| body::read(answer, status.is_success(), deadline).await;
                let body = self.exchanges.read_body(&prepared.origin, answer, reading).await;
                Ending { outcome, detail, head_us, body_end: body.end, snippet: body.snippet, flooded: false, met }
            }
            Err(failure) => {
                let outcome = match is_too_late(deadline) {
                    true => Outcome::Local { cause: LocalCause::Lag },
                    false => classify::of_failure(&failure),
                };
                let detail = classify::detail(&failure);
                let flooded = matches!(failure, Failure::Exchange { is_flood: true, .. });
                Ending { flooded, ..Ending::without_response(outcome, detail) }
            }
        }
    }

    /// How long an attempt may take if the endpoint asks for this timeout.
    pub fn timeout_of(&self, timeout_ms: Option<u64>) -> Duration {
        timeout_ms.map_or(self.attempt_timeout, Duration::from_millis).min(MAX_ATTEMPT_TIMEOUT)
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
