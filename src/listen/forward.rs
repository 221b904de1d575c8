//! Forwards a callback to the application on this machine: the bytes and headers as they came, one request, no redirect, no
//! proxy, no retry. It is a client of the merchant's own application, so it has no address guard: whoever runs it names the URL.

use std::{net::SocketAddr, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, StatusCode, header};
use reqwest::{Client, Url, redirect::Policy};

use super::callback::Callback;
use crate::{
    clock,
    surface::{
        VerbError,
        client::{self, PlainHttp},
        message_of, words,
    },
    tls,
};

/// It is on this machine, or near.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// No attempt of Herald's lasts longer.
const WHOLE_TIMEOUT: Duration = Duration::from_secs(120);

/// Of the application's answer. Herald reads 16 KiB.
const MAX_ANSWER_BYTES: usize = 1 << 20;

pub struct Forwarder {
    client: Client,
    url: Url,
}

/// What the application answered.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// What came of a forward. The text of an error says what to do.
pub struct Forwarded {
    pub answer: Result<Answer, String>,
    pub took_ms: u64,
}

impl Forwarder {
    /// `own` is where the listener itself is: to forward there would never end.
    pub fn new(text: &str, own: SocketAddr, plain: PlainHttp) -> anyhow::Result<Self> {
        let url = checked(text, own, plain)?;
        tls::install_crypto_provider();
        let builder = Client::builder()
            .no_proxy()
            .redirect(Policy::none())
            .referer(false)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(WHOLE_TIMEOUT);
        // Plain HTTP needs no authorities, which a small container may lack.
        let builder = if url.scheme() == "http" { builder.tls_certs_only([]) } else { builder };
        Ok(Self { client: builder.build()?, url })
    }

    pub async fn forward(&self, callback: &Callback) -> Forwarded {
        let began = clock::now();
        let answer = self.ask(callback).await.map_err(|error| self.problem(error));
        let took = clock::now() - began;
        Forwarded { answer, took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX) }
    }

    async fn ask(&self, callback: &Callback) -> anyhow::Result<Answer> {
        let request = self.client.post(self.url.clone()).headers(end_to_end(&callback.headers));
        let mut response = request.body(callback.body.clone()).send().await?;
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await? {
            if body.len() + chunk.len() > MAX_ANSWER_BYTES {
                anyhow::bail!("its answer is larger than {}", words::bytes(MAX_ANSWER_BYTES as u64));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer { status: response.status(), headers: end_to_end(response.headers()), body: body.freeze() })
    }

    fn problem(&self, error: anyhow::Error) -> String {
        // The client's own error names the URL again.
        let error = match error.downcast::<reqwest::Error>() {
            Ok(error) if error.is_connect() => {
                return format!("cannot connect to {}: is the application running there? {}", self.url, causes(&error));
            }
            Ok(error) if error.is_timeout() => return format!("{} gave no answer within 2m", self.url),
            Ok(error) => anyhow::Error::from(error.without_url()),
            Err(error) => error,
        };
        format!("{} gave no answer that could be passed on: {}", self.url, message_of(&error))
    }
}

/// The innermost cause says most: `Connection refused`.
fn causes(error: &reqwest::Error) -> String {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    format!("({innermost})")
}

fn checked(text: &str, own: SocketAddr, plain: PlainHttp) -> Result<Url, VerbError> {
    let url = client::checked("--forward-to", text, plain)?;
    if client::is_loopback(&url) && url.port_or_known_default() == Some(own.port()) {
        let why = "--forward-to: is this listener itself; name the port of your application";
        return Err(VerbError::Usage(why.to_owned()));
    }
    Ok(url)
}

/// Everything but what is about this one connection (RFC 9110, 7.6.1), and what the next one counts anew.
fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    const OF_THE_CONNECTION: [HeaderName; 7] = [
        header::CONNECTION,
        header::HOST,
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::TE,
        header::TRAILER,
        header::UPGRADE,
    ];
    let named = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let named: Vec<String> =
        named.flat_map(|value| value.split(',')).map(|name| name.trim().to_ascii_lowercase()).collect();
    let stays = |name: &HeaderName| {
        let others = ["keep-alive", "proxy-connection", "expect"];
        !OF_THE_CONNECTION.contains(name)
            && !others.contains(&name.as_str())
            && !named.iter().any(|one| one == name.as_str())
    };
    headers.iter().filter(|(name, _)| stays(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_that_cannot_be_forwarded_to_is_refused_with_what_to_do() {
        let own: SocketAddr = "127.0.0.1:4242".parse().unwrap();
        let check = |url, plain| checked(url, own, plain).map_err(|error| error.to_string());
        for url in ["http://127.0.0.1:3000/x", "http://localhost/", "http://[::1]:1/", "https://example.com/hook"] {
            assert!(check(url, PlainHttp::OnLoopback).is_ok(), "{url}");
        }
        for (url, says) in [
            ("127.0.0.1:3000", "not a URL"),
            ("ftp://127.0.0.1/", "another scheme"),
            ("http://u:p@127.0.0.1/", "user name"),
            ("http://127.0.0.1:4242/", "itself"),
            ("http://10.0.0.1/", "HERALD_ALLOW_HTTP"),
        ] {
            assert!(check(url, PlainHttp::OnLoopback).unwrap_err().contains(says), "{url}");
        }
        assert!(check("http://app:3000/", PlainHttp::Everywhere).is_ok());
    }

    #[test]
    fn what_is_about_the_connection_stays_behind() {
        let lines = [
            ("webhook-id", "evt_1"),
            ("host", "a"),
            ("connection", "keep-alive, X-Hop"),
            ("x-hop", "1"),
            ("content-length", "2"),
            ("accept", "*/*"),
        ];
        let headers: HeaderMap =
            lines.into_iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect();
        let left = end_to_end(&headers);
        let names: Vec<&str> = left.keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["webhook-id", "accept"]);
    }
}
