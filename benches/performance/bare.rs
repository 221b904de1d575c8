//! The bare loop: what a program would cost that signs and posts the same bytes with the same libraries and does
//! nothing else: no order, no Redis, no limits, no record of what came of it. With `--hyper` it also leaves out reqwest
//! and posts with the client that reqwest itself is built on: the difference is what going below reqwest would gain.

use std::{
    cell::Cell,
    io::{BufRead, Write},
    rc::Rc,
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use herald::{
    clock,
    facts::signing::{DojoKey, SecretText, StandardKey, dojo_signature_with, standard_signature_with},
};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header::CONTENT_TYPE};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client as Hyper, connect::HttpConnector},
    rt::TokioExecutor,
};
use reqwest::{Client as Reqwest, Url};
use tokio::task::LocalSet;

use crate::events::Lives;

#[derive(clap::Args, Clone)]
pub struct BareArgs {
    /// Where the receiver is, such as http://127.0.0.1:8000
    target: String,
    #[arg(long)]
    endpoints: usize,
    #[arg(long)]
    deliveries: u64,
    /// Requests in flight
    #[arg(long)]
    concurrency: usize,
    /// Post with hyper's client, HTTP only
    #[arg(long)]
    hyper: bool,
    /// The certificate authority to trust
    #[arg(long)]
    ca_file: Option<std::path::PathBuf>,
}

enum Client {
    Reqwest(Reqwest),
    Hyper(Box<Hyper<HttpConnector, Full<Bytes>>>),
}

struct Job {
    client: Client,
    targets: Vec<(Url, StandardKey, DojoKey)>,
    events: Vec<(String, Bytes)>,
    next: Cell<u64>,
    end: u64,
}

/// Prints `done` after its last delivery and stays until its input ends, so that its numbers can be read.
pub fn run(args: BareArgs) -> Result<()> {
    // One thread, because two spend more on waking each other than the second one gains.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, deliver(&args))?;
    println!("done");
    std::io::stdout().flush()?;
    std::io::stdin().lock().read_line(&mut String::new())?;
    Ok(())
}

async fn deliver(args: &BareArgs) -> Result<()> {
    herald::tls::install_crypto_provider();
    let target = |at: usize| {
        let secret = SecretText::from_random([at as u8; 32]);
        let url = Url::parse(&format!("{}/{at}", args.target))?;
        anyhow::Ok((url, StandardKey::new(&secret), DojoKey::new(&secret)))
    };
    let job = Rc::new(Job {
        client: Client::new(args)?,
        targets: (0..args.endpoints).map(target).collect::<Result<_>>()?,
        // A few thousand different events, so that none is in the processor's cache when its turn comes.
        events: Lives::new(args.endpoints, 1).take(4096).map(|event| (event.id, event.body.into())).collect(),
        next: Cell::new(0),
        end: args.deliveries,
    });
    let lines: Vec<_> = (0..args.concurrency).map(|_| tokio::task::spawn_local(line(job.clone()))).collect();
    for line in lines {
        line.await??;
    }
    Ok(())
}

/// One request after the other.
async fn line(job: Rc<Job>) -> Result<()> {
    while job.next.get() < job.end {
        let at = job.next.replace(job.next.get() + 1) as usize;
        let (url, standard, dojo) = &job.targets[at % job.targets.len()];
        let (id, body) = &job.events[at % job.events.len()];
        let timestamp_s = clock::wall_ms() / 1_000;
        let mut headers = HeaderMap::with_capacity(8);
        let signature = standard_signature_with([standard].into_iter(), id, timestamp_s, body);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert("webhook-id", HeaderValue::from_str(id)?);
        headers.insert("webhook-timestamp", timestamp_s.into());
        headers.insert("webhook-signature", HeaderValue::try_from(signature)?);
        headers.insert("dojo-signature", HeaderValue::try_from(dojo_signature_with(dojo, body))?);
        let status = job.client.post(url, headers, body.clone()).await.context("the receiver did not answer")?;
        ensure!(status.is_success(), "the receiver answered {status}");
    }
    Ok(())
}

impl Client {
    fn new(args: &BareArgs) -> Result<Self> {
        if args.hyper {
            let mut builder = Hyper::builder(TokioExecutor::new());
            return Ok(Self::Hyper(Box::new(builder.pool_max_idle_per_host(1024).build_http())));
        }
        let mut builder = Reqwest::builder().no_proxy().pool_max_idle_per_host(1024);
        if let Some(path) = &args.ca_file {
            let pem = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            builder = builder.tls_certs_merge([reqwest::Certificate::from_pem(&pem)?]);
        }
        Ok(Self::Reqwest(builder.build()?))
    }

    /// Reads the answer to its end, so that the connection is kept.
    async fn post(&self, url: &Url, headers: HeaderMap, body: Bytes) -> Result<StatusCode> {
        match self {
            Self::Reqwest(client) => {
                let mut request = reqwest::Request::new(Method::POST, url.clone());
                *request.headers_mut() = headers;
                *request.body_mut() = Some(body.into());
                let response = client.execute(request).await?;
                let status = response.status();
                response.bytes().await?;
                Ok(status)
            }
            Self::Hyper(client) => {
                let mut request = Request::post(url.as_str()).body(Full::new(body))?;
                *request.headers_mut() = headers;
                let response = client.request(request).await?;
                let status = response.status();
                response.into_body().collect().await?;
                Ok(status)
            }
        }
    }
}
