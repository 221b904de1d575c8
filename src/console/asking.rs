//! The console is a client of the API within its own process: what a page may show and change is what the API allows whoever looks.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    extract::Request,
    http::{Method, StatusCode, header},
};
use serde::{
    Deserialize,
    de::{DeserializeOwned, IgnoredAny},
};
use serde_json::Value;
use tower_service::Service;

use crate::{
    api::v1::{self, Api, access::Caller},
    http::problem::Problem,
};

/// Longest answer that a page is made of: a page of the largest entries in quarantine.
const MAX_ANSWER_BYTES: usize = 128 * 1024 * 1024;

/// For one visit: it knows what was missing from the answers so far.
#[derive(Clone)]
pub struct Client {
    calls: Router,
    unavailable: Arc<Mutex<BTreeSet<String>>>,
    /// Something was changed, and replicas have not confirmed it.
    is_unconfirmed: Arc<AtomicBool>,
}

/// What an answer says of what is missing from it.
#[derive(Deserialize)]
struct Missing {
    #[serde(default)]
    unavailable: BTreeSet<String>,
    /// Of a change: only where replicas have not confirmed it.
    #[serde(default)]
    durability: Option<IgnoredAny>,
}

impl Client {
    pub fn new(api: Api) -> Self {
        Self { calls: v1::calls(api), unavailable: Arc::default(), is_unconfirmed: Arc::default() }
    }

    /// The same for another visit.
    pub fn anew(&self) -> Self {
        Self { calls: self.calls.clone(), unavailable: Arc::default(), is_unconfirmed: Arc::default() }
    }

    /// The streams of which something is missing from the answers.
    pub fn unavailable(&self) -> Vec<String> {
        self.unavailable.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Whether a change of this visit may be lost with the server that has it.
    pub fn is_unconfirmed(&self) -> bool {
        self.is_unconfirmed.load(Ordering::Relaxed)
    }

    pub async fn get<T: DeserializeOwned>(&self, caller: &Caller, path: &str) -> Result<T, Problem> {
        self.ask(caller, Method::GET, path, Body::empty()).await
    }

    pub async fn post<T: DeserializeOwned>(&self, caller: &Caller, path: &str, body: &Value) -> Result<T, Problem> {
        self.ask(caller, Method::POST, path, Body::from(body.to_string())).await
    }

    pub async fn patch<T: DeserializeOwned>(&self, caller: &Caller, path: &str, body: &Value) -> Result<T, Problem> {
        self.ask(caller, Method::PATCH, path, Body::from(body.to_string())).await
    }

    /// Whatever it answers.
    pub async fn delete(&self, caller: &Caller, path: &str, body: &Value) -> Result<(), Problem> {
        self.ask::<Option<IgnoredAny>>(caller, Method::DELETE, path, Body::from(body.to_string())).await.map(drop)
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        caller: &Caller,
        method: Method,
        path: &str,
        body: Body,
    ) -> Result<T, Problem> {
        let request = Request::builder().method(method).uri(path).header(header::CONTENT_TYPE, "application/json");
        let request = request.extension(caller.clone()).body(body).map_err(|error| Problem::internal(&error))?;
        let mut response = self.calls.clone().call(request).await.unwrap_or_else(|never| match never {});
        if let Some(problem) = response.extensions_mut().remove::<Arc<Problem>>() {
            return Err(Arc::unwrap_or_clone(problem));
        }
        let is_accepted = response.status() == StatusCode::ACCEPTED;
        match response.status() {
            status if status.is_success() => {}
            StatusCode::NOT_FOUND => return Err(Problem::not_found()),
            status => return Err(Problem::internal(&format_args!("{path} answered {status}"))),
        }
        let bytes =
            to_bytes(response.into_body(), MAX_ANSWER_BYTES).await.map_err(|error| Problem::internal(&error))?;
        let bytes = if bytes.is_empty() { Bytes::from_static(b"null") } else { bytes };
        // A list has none, and what is not told of is nothing.
        if let Ok(Missing { unavailable, durability }) = serde_json::from_slice(&bytes) {
            self.is_unconfirmed.fetch_or(is_accepted && durability.is_some(), Ordering::Relaxed);
            self.unavailable.lock().unwrap_or_else(PoisonError::into_inner).extend(unavailable);
        }
        serde_json::from_slice(&bytes).map_err(|error| Problem::internal(&format_args!("{path}: {error}")))
    }
}

/// A name as a part of a path.
pub fn segment(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>().replace('+', "%20")
}

/// What of a page's query the API is asked: the parameters that it has, where something stands in them.
pub fn query(uri: &axum::http::Uri, names: &[&str]) -> Vec<(String, String)> {
    let given = url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
    let is_meant = |(name, value): &(std::borrow::Cow<'_, str>, std::borrow::Cow<'_, str>)| {
        names.contains(&name.as_ref()) && !value.trim().is_empty()
    };
    given.filter(is_meant).map(|(name, value)| (name.into_owned(), value.trim().to_owned())).collect()
}

/// A path with a query.
pub fn with_query<V: AsRef<str>>(path: &str, query: &[(impl AsRef<str>, V)]) -> String {
    if query.is_empty() {
        return path.to_owned();
    }
    let mut text = url::form_urlencoded::Serializer::new(String::new());
    text.extend_pairs(query);
    format!("{path}?{}", text.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_one_segment_whatever_is_in_it() {
        assert_eq!(segment("ep_a:rejected:404"), "ep_a%3Arejected%3A404");
        assert_eq!(segment("../a b?c#d+é"), "..%2Fa%20b%3Fc%23d%2B%C3%A9");
    }

    #[test]
    fn only_filters_with_something_in_them_go_on() {
        let uri = "/console/issues?account=acc_1&endpoint=&refresh=off&all=true".parse().unwrap();
        let asked = query(&uri, &["account", "endpoint", "all"]);
        assert_eq!(with_query("/v1/issues", &asked), "/v1/issues?account=acc_1&all=true");
        assert_eq!(with_query("/v1/issues", &query(&uri, &[])), "/v1/issues");
    }
}
