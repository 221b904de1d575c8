//! A client of the payment-intents service over HTTP, for the verbs that meet it as a merchant does. Whoever runs them names its
//! URL, so there is no address guard. One request, no redirect, no proxy, no retry.

use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

use anyhow::{Context, bail};
use bytes::BytesMut;
use clap::Args;
use reqwest::{Client, Method, Url, redirect::Policy};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;
use url::Host;

use super::{
    error::VerbError,
    secret::{Hidden, from_file},
    words,
};
use crate::{facts::signing::SecretText, tls};

/// The version of the API that it speaks.
const VERSION: &str = "2025-09-10";

/// The service is on this machine, or near.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Of a whole request: an advance over years fires all that was due until then.
const WHOLE_TIMEOUT: Duration = Duration::from_secs(300);

/// Whoever ends a verb does not want to wait.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(10);

/// A page of a hundred intents, each with all that its request may have.
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// Where nothing says where the service is.
const USUAL: &str = "http://127.0.0.1:8090";

/// Whether plain HTTP may leave this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlainHttp {
    OnLoopback,
    Everywhere,
}

/// Where the key is, if no flag says it.
const KEY_VARIABLE: &str = "HERALD_API_KEY";

/// For verbs that meet the service with a key.
#[derive(Debug, Args)]
pub struct ServiceArgs {
    /// Where the payment-intents service is [default: http://127.0.0.1:8090]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// An API key of the sandbox; - reads it from stdin, where other users of the machine cannot see it [env: HERALD_API_KEY]
    #[arg(long, value_name = "KEY", conflicts_with = "key_file")]
    key: Option<Hidden>,
    /// A file with nothing but the key; - is stdin
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

impl ServiceArgs {
    /// A flag says that the service is wanted. A variable alone says so to no verb that can do without.
    pub fn is_given(&self) -> bool {
        self.url.is_some() || self.key.is_some() || self.key_file.is_some()
    }

    pub fn client(&self, plain: PlainHttp) -> anyhow::Result<ServiceClient> {
        let key = match (&self.key, &self.key_file) {
            (Some(key), _) => key.read()?,
            (None, Some(path)) => from_file(path)?,
            (None, None) => std::env::var(KEY_VARIABLE).unwrap_or_default(),
        };
        if key.is_empty() {
            let why = format!(
                "which API key? Give it by --key, --key-file or {KEY_VARIABLE}; `herald intents key create` makes one"
            );
            return Err(VerbError::Usage(why).into());
        }
        ServiceClient::new(self.url.as_deref().unwrap_or(USUAL), &key, plain)
    }
}

/// A URL that may be asked: its scheme, and whether what is sent there is readable on the way.
pub fn checked(flag: &str, text: &str, plain: PlainHttp) -> Result<Url, VerbError> {
    let wrong = |why: &str| VerbError::Usage(format!("{flag}: {why}"));
    let url = Url::parse(text)
        .map_err(|error| wrong(&format!("is not a URL ({error}); write it as http://127.0.0.1:3000/webhooks")))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("has a user name or password, which would change the headers; take them out"));
    }
    match url.scheme() {
        "https" => Ok(url),
        "http" if is_loopback(&url) || plain == PlainHttp::Everywhere => Ok(url),
        "http" => Err(VerbError::Refused(format!(
            "{flag}: plain http to another machine sends payments in the clear; use https, or set HERALD_ALLOW_HTTP in a \
             private set-up"
        ))),
        _ => Err(wrong("has another scheme than http and https")),
    }
}

pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        None => false,
    }
}

#[derive(Clone)]
pub struct ServiceClient {
    client: Client,
    base: String,
    authorization: String,
}

impl fmt::Debug for ServiceClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServiceClient({})", self.base)
    }
}

/// What is asked of the service.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// GET, POST, PUT, PATCH or DELETE.
    pub method: String,
    /// From its first slash on.
    pub path: String,
    pub body: Option<Value>,
    pub idempotency_key: Option<String>,
}

impl Request {
    pub fn new(method: &str, path: impl Into<String>, body: Option<Value>) -> Self {
        Self { method: method.to_owned(), path: path.into(), body, idempotency_key: None }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub code: u16,
    /// Null where there is none, or none in JSON.
    pub body: Value,
}

impl Answer {
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.code)
    }

    /// What a problem says, or the whole of another answer.
    pub fn says(&self) -> String {
        let text = |name: &str| self.body[name].as_str().map(str::to_owned);
        let detail = text("detail").or_else(|| text("title")).unwrap_or_else(|| self.body.to_string());
        let errors = self.body.get("errors").map(|errors| format!(" {errors}")).unwrap_or_default();
        format!("{} {detail}{errors}", self.code)
    }
}

/// An endpoint of the sandbox, as long as a verb runs.
#[derive(Debug, Clone)]
pub struct SandboxEndpoint {
    pub id: String,
    pub secret: SecretText,
}

impl ServiceClient {
    pub fn new(url: &str, key: &str, plain: PlainHttp) -> anyhow::Result<Self> {
        let url = checked("--url", url, plain)?;
        if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            let why = "--key: is no API key; `herald intents key create` makes one";
            return Err(VerbError::Usage(why.to_owned()).into());
        }
        tls::install_crypto_provider();
        let builder = Client::builder().no_proxy().redirect(Policy::none()).referer(false);
        let builder = builder.connect_timeout(CONNECT_TIMEOUT).timeout(WHOLE_TIMEOUT);
        // Plain HTTP needs no authorities, which a small container may lack.
        let builder = if url.scheme() == "http" { builder.tls_certs_only([]) } else { builder };
        let base = url.as_str().trim_end_matches('/').to_owned();
        Ok(Self { client: builder.build()?, base, authorization: format!("Basic {key}") })
    }

    /// Asks once. An answer of any code is one; an error means that there was none.
    pub async fn ask(&self, request: &Request) -> anyhow::Result<Answer> {
        let Request { method, path, body, idempotency_key } = request;
        let asked = || format!("{method} {path} of {}", self.base);
        let method = Method::from_str(method).with_context(asked)?;
        let url = Url::parse(&format!("{}{path}", self.base)).with_context(asked)?;
        let mut asking = self.client.request(method, url);
        asking = asking.header("authorization", &self.authorization).header("version", VERSION);
        if let Some(body) = body {
            asking = asking.header("content-type", "application/json").body(body.to_string());
        }
        if let Some(key) = idempotency_key {
            asking = asking.header("idempotencyKey", key);
        }
        let mut answer = match asking.send().await {
            Ok(answer) => answer,
            Err(error) if error.is_connect() => {
                bail!(
                    "cannot connect to {}: is the service running there? `herald intents serve` starts one",
                    self.base
                )
            }
            Err(error) => return Err(anyhow::Error::from(error.without_url()).context(asked())),
        };
        let mut bytes = BytesMut::new();
        while let Some(chunk) = answer.chunk().await.map_err(reqwest::Error::without_url).with_context(asked)? {
            if bytes.len() + chunk.len() > MAX_ANSWER_BYTES {
                bail!("the answer to {} is larger than {}", asked(), words::bytes(MAX_ANSWER_BYTES as u64));
            }
            bytes.extend_from_slice(&chunk);
        }
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Ok(Answer { code: answer.status().as_u16(), body })
    }

    /// An endpoint of the key's account that leads to this URL.
    pub async fn create_endpoint(&self, url: &str, events: &[String]) -> anyhow::Result<SandboxEndpoint> {
        #[derive(Deserialize)]
        struct Made {
            id: String,
            secret: String,
        }
        let mut body = json!({ "url": url });
        if !events.is_empty() {
            body["events"] = json!(events);
        }
        let answer = self.ask(&Request::new("POST", "/sandbox/endpoints", Some(body))).await?;
        if !answer.is_success() {
            let hint = match answer.code {
                404 => ": is its sandbox on (HERALD_SANDBOX)?".to_owned(),
                _ if answer.body.pointer("/errors/url").is_some() => guarded(url),
                _ => String::new(),
            };
            bail!("{} makes no endpoint in the sandbox: {}{hint}", self.base, answer.says());
        }
        let made = serde_json::from_value::<Made>(answer.body)
            .with_context(|| format!("{} made an endpoint, and its answer cannot be read", self.base))?;
        Ok(SandboxEndpoint { id: made.id, secret: SecretText::new(made.secret)? })
    }

    pub async fn delete_endpoint(&self, id: &str) -> anyhow::Result<()> {
        let request = Request::new("DELETE", format!("/sandbox/endpoints/{id}"), None);
        let answer = timeout(REMOVE_TIMEOUT, self.ask(&request)).await.context("the service does not answer")??;
        match answer.is_success() || answer.code == 404 {
            true => Ok(()),
            false => bail!("endpoint {id} could not be removed: {}", answer.says()),
        }
    }
}

/// A service says only what a merchant may know. Whoever rehearses on one machine sets its configuration too.
fn guarded(url: &str) -> String {
    format!(
        "\nCallbacks are to come to {url}, on this machine and over plain HTTP, and the service allows neither unless it is told \
         to: start `herald intents serve` and `herald serve` anew with HERALD_ALLOW_HTTP=true and \
         HERALD_ALLOW_NETWORKS=127.0.0.0/8"
    )
}
