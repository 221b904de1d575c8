//! Asks the service, as a client behind a load balancer does: one request, one connection, and the next process if one takes no
//! connections. What cannot be known stays unknown: nothing is repeated here after a byte was sent.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{net::TcpStream, time::timeout};

use super::ledger::Seen;

/// How long an answer is waited for. A process that is frozen answers later than anybody waits.
const PATIENCE: Duration = Duration::from_secs(5);

/// Of an answer: a page of the search is the largest.
const MAX_ANSWER_BYTES: usize = 4 << 20;

/// What is asked, by whom.
pub struct Question<'a> {
    pub method: Method,
    pub path: &'a str,
    /// The account's API key.
    pub key: &'a str,
    pub idempotency_key: Option<&'a str>,
    pub body: Option<Value>,
}

#[derive(Debug, Clone)]
pub struct Client {
    services: Vec<SocketAddr>,
}

impl Client {
    pub fn new(services: Vec<SocketAddr>) -> Self {
        Self { services }
    }

    /// `first` chooses the process that is asked.
    pub async fn ask(&self, question: &Question<'_>, first: usize) -> Seen {
        for turn in 0..self.services.len() {
            let address = self.services[(first + turn) % self.services.len()];
            let Ok(Ok(stream)) = timeout(PATIENCE, TcpStream::connect(address)).await else { continue };
            return match timeout(PATIENCE, send(stream, question)).await {
                Ok(Some((code, body))) => Seen::Answer(code, body),
                Ok(None) | Err(_) => Seen::Nothing,
            };
        }
        Seen::NotSent
    }
}

/// None if the connection ended first.
async fn send(stream: TcpStream, question: &Question<'_>) -> Option<(u16, Value)> {
    let _ = stream.set_nodelay(true);
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
    let asking = async {
        let response = sender.send_request(request(question)).await.ok()?;
        let code = response.status().as_u16();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await.ok()?.to_bytes();
        Some((code, if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).ok()? }))
    };
    // The connection does what the sender asks for; it ends only when it fails.
    tokio::pin!(asking);
    tokio::select! {
        answer = &mut asking => answer,
        _ = connection => asking.await,
    }
}

fn request(question: &Question<'_>) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(match &question.body {
        Some(body) => Bytes::from(body.to_string()),
        None => Bytes::new(),
    }));
    *request.method_mut() = question.method.clone();
    *request.uri_mut() = question.path.parse().unwrap_or_default();
    let headers = request.headers_mut();
    let mut put = |name: &'static str, text: &str| {
        if let Ok(value) = header::HeaderValue::from_str(text) {
            headers.insert(header::HeaderName::from_static(name), value);
        }
    };
    put("host", "intents.test");
    put("authorization", &format!("Basic {}", question.key));
    put("version", "2025-09-10");
    put("content-type", "application/json");
    question.idempotency_key.iter().for_each(|key| put("idempotencykey", key));
    request
}
