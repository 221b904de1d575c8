//! `herald listen`: a receiver for a merchant's own machine. It shows each callback with what is to be known about it, and can
//! forward it to an application and rehearse what goes wrong in earnest. It stores nothing.
//!
//! The path of a callback: `server` (takes it in) → `desk` (what is done with it) → `callback` (what it says, whether it is
//! signed) → `arrivals` (again? late?) → `rehearsal` (what goes wrong on purpose) → `forward` → `shown`.

mod arrivals;
mod callback;
mod desk;
mod forward;
mod rehearsal;
mod server;
mod shown;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

pub use self::shown::Record;
use self::{
    desk::{Desk, Settings, Style, To},
    forward::Forwarder,
    rehearsal::Rehearsal,
};
use crate::{
    config::parse_duration,
    facts::{event::EventType, id::EndpointId, signing::SecretText},
    store::registry::RegistryError,
    surface::{
        Context, Format, OutputClosed, VerbError,
        client::{PlainHttp, SandboxEndpoint, ServiceArgs, ServiceClient},
        note,
        secret::SecretArgs,
        words,
    },
};

/// As far as `webhook-timestamp` may be from this machine's clock where nothing else is said.
const USUAL_TOLERANCE_MS: u64 = 300_000;

/// Callbacks that another surface has not taken yet: each is a body in memory, and the next ones wait for their answer.
const MOST_WAITING: usize = 100;

/// What it takes and gives, for the help.
const BOUNDS: &str = "\
With --key it makes an endpoint of its own in the service's sandbox, which leads here, and removes it at the end.

Without --forward-to it answers 200, or 401 to what is not signed rightly; with it, what the application answers, or 502 where \
it cannot be reached. Remembers the last 10 000 events and intents, to tell what comes again or late. Takes 256 connections at \
once and bodies up to 64 KiB.

Ends with 0 on Ctrl-C, 1 if it cannot listen, 4 after a bad callback with --exit-on-first-bad.";

#[derive(Debug, Args)]
#[command(after_help = BOUNDS)]
pub struct ListenArgs {
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// The application to forward to, with the bytes and headers as they came; plain http only on this machine
    #[arg(long, value_name = "URL")]
    forward_to: Option<String>,
    #[command(flatten)]
    secret: SecretArgs,
    /// Take the secrets of this endpoint from the registry in Redis, as they are now; creates and changes nothing
    #[arg(long, value_name = "ENDPOINT", conflicts_with_all = ["secret", "secret_file"])]
    endpoint: Option<EndpointId>,
    #[command(flatten)]
    service: ServiceArgs,
    /// How far webhook-timestamp may be from this machine's clock
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "5m")]
    tolerance: Duration,
    /// Print only this event type, or several separated by commas, and whatever is bad
    #[arg(long = "event-type", alias = "events", value_name = "TYPE", value_delimiter = ',')]
    events: Vec<EventType>,
    /// text: some lines for each callback; json: one line, once it is answered [default: as -o]
    #[arg(long, value_name = "FORMAT", hide_possible_values = true)]
    format: Option<Shape>,
    /// End after the first callback with a wrong signature, or with none
    #[arg(long)]
    exit_on_first_bad: bool,
    #[command(flatten)]
    rehearsal: Rehearsal,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Shape {
    Text,
    Json,
}

pub async fn run(context: &Context, args: ListenArgs) -> anyhow::Result<()> {
    let plain = plain_http(context);
    let client = args.service.is_given().then(|| args.service.client(plain)).transpose()?;
    if client.is_some() && (args.endpoint.is_some() || args.secret.is_given()) {
        let why = "--key makes an endpoint, with a secret of its own: leave out --endpoint, --secret and --secret-file";
        return Err(VerbError::Usage(why.to_owned()).into());
    }
    let cannot_listen =
        || format!("cannot listen on {}; --listen chooses another address, port 0 a free one", args.listen);
    let listener = TcpListener::bind(args.listen).await.with_context(cannot_listen)?;
    let own = listener.local_addr()?;
    let forwarder = args.forward_to.as_ref().map(|url| Forwarder::new(url, own, plain)).transpose()?;
    let ending = CancellationToken::new();
    end_on_signals(ending.clone())?;
    let Some(client) = client else {
        let secrets = secrets(context, &args).await?;
        return listen(context, args, listener, forwarder, secrets, ending).await;
    };
    let events: Vec<String> = args.events.iter().map(ToString::to_string).collect();
    let endpoint = client.create_endpoint(&url_of(own), &events).await?;
    note(format_args!("endpoint {} leads here until this ends", endpoint.id));
    let secrets = vec![endpoint.secret.clone()];
    let listened = listen(context, args, listener, forwarder, secrets, ending).await;
    // What went wrong first is said first.
    remove(&client, &endpoint).await;
    listened
}

/// Where callers of this machine reach it.
pub fn url_of(own: SocketAddr) -> String {
    let host = if own.ip().is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { own.ip() };
    format!("http://{}/", SocketAddr::new(host, own.port()))
}

/// Whatever becomes of it, the verb is at its end: so it only says what is left to do.
pub async fn remove(client: &ServiceClient, endpoint: &SandboxEndpoint) {
    if let Err(error) = client.delete_endpoint(&endpoint.id).await {
        let id = &endpoint.id;
        note(format_args!(
            "warning: {error:#}\nendpoint {id} is still there; `herald endpoint delete {id}` removes it"
        ));
    }
}

pub fn plain_http(context: &Context) -> PlainHttp {
    if context.config.guard.allow_http { PlainHttp::Everywhere } else { PlainHttp::OnLoopback }
}

async fn listen(
    context: &Context,
    args: ListenArgs,
    listener: TcpListener,
    forwarder: Option<Forwarder>,
    secrets: Vec<SecretText>,
    ending: CancellationToken,
) -> anyhow::Result<()> {
    if secrets.is_empty() && args.exit_on_first_bad {
        let why = "--exit-on-first-bad needs a secret: give --secret, --secret-file, HERALD_LISTEN_SECRET, --endpoint or --key";
        return Err(VerbError::Usage(why.to_owned()).into());
    }
    greet(listener.local_addr()?, &args, secrets.is_empty());
    let settings = Settings {
        secrets,
        tolerance_ms: u64::try_from(args.tolerance.as_millis()).unwrap_or(u64::MAX),
        to: To::Output(context.output, style(args.format, context.output.format())),
        events: args.events,
        rehearsal: args.rehearsal,
        exit_on_first_bad: args.exit_on_first_bad,
    };
    let desk = Desk::new(settings, forwarder, ending.clone());
    server::serve(listener, desk.clone(), ending).await;
    let (seen, bad) = desk.counts();
    let ended_by = desk.ended_by();
    if ended_by.as_ref().is_none_or(|why| !why.is::<OutputClosed>()) {
        note(format_args!("{}, {} of them not valid", words::count(seen, "callback", "callbacks"), words::number(bad)));
    }
    ended_by.map_or(Ok(()), Err)
}

/// For another surface: what comes is judged, forwarded and answered as `herald listen` does, and handed over. Ends with
/// `ending`.
pub fn receive(
    listener: TcpListener,
    secret: SecretText,
    forward_to: Option<&str>,
    plain: PlainHttp,
    ending: CancellationToken,
) -> anyhow::Result<mpsc::Receiver<Record>> {
    let own = listener.local_addr()?;
    let forwarder = forward_to.map(|url| Forwarder::new(url, own, plain)).transpose()?;
    let (to, taken) = mpsc::channel(MOST_WAITING);
    let settings = Settings {
        secrets: vec![secret],
        tolerance_ms: USUAL_TOLERANCE_MS,
        to: To::Surface(to),
        events: Vec::new(),
        rehearsal: Rehearsal::default(),
        exit_on_first_bad: false,
    };
    let desk = Desk::new(settings, forwarder, ending.clone());
    tokio::spawn(server::serve(listener, desk, ending));
    Ok(taken)
}

fn style(asked: Option<Shape>, output: Format) -> Style {
    match (asked, output) {
        (Some(Shape::Text), _) | (None, Format::Table) => Style::Text,
        (Some(Shape::Json), _) | (None, Format::Json | Format::Jsonl) => Style::Json,
    }
}

/// Oldest first. None: signatures are not checked.
async fn secrets(context: &Context, args: &ListenArgs) -> anyhow::Result<Vec<SecretText>> {
    let Some(id) = &args.endpoint else {
        let given = args.secret.read()?;
        return Ok(given.map(SecretText::new).transpose()?.into_iter().collect());
    };
    let found = context.registry().await?.get(id).await?;
    let endpoint = found.ok_or_else(|| RegistryError::Missing(id.clone()))?;
    let now_ms = context.now_ms();
    let live = endpoint.secrets.into_iter().filter(|secret| secret.is_live(now_ms));
    let live: Vec<SecretText> = live.map(|secret| secret.value).collect();
    match live.is_empty() {
        true => Err(VerbError::Refused(format!("no secret of endpoint {id} is live: rotate it")).into()),
        false => Ok(live),
    }
}

fn greet(own: SocketAddr, args: &ListenArgs, is_unchecked: bool) {
    let to = args.forward_to.as_ref().map(|url| format!(", forwarding to {url}")).unwrap_or_default();
    note(format_args!("listening on http://{own}/{to}"));
    if is_unchecked {
        note("signatures are not checked: give --secret, --secret-file, HERALD_LISTEN_SECRET, --endpoint or --key");
    }
    if !own.ip().is_loopback() {
        note("warning: others on the network can reach it");
    }
}

/// SIGTERM or Ctrl-C.
pub fn end_on_signals(ending: CancellationToken) -> anyhow::Result<()> {
    let listen = |kind| signal(kind).context("cannot listen for signals");
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        ending.cancel();
    });
    Ok(())
}
