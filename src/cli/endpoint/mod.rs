//! `herald endpoint …`: registers, shows and changes endpoints. A secret is shown once, when it is made.
//! What an endpoint must be is decided by [`Rules`]; a change that saw an older revision is refused by the registry.

mod accept_registry;
mod health;
mod settings;
mod test_send;
mod transfer;
mod view;

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use rand::{TryRng, rngs::SysRng};

pub use self::settings::RetryArgs;
use self::settings::{GivenSecret, Resets, Settings};
use super::{
    args::{Consent, Go, WhoAndWhy},
    asking::TOLD_AFTER,
};
use crate::{
    app, clock,
    config::{compact, parse_duration},
    facts::{
        audit::{Act, Begun},
        endpoint::{DEFAULT_MAX_IN_FLIGHT, ENDPOINT_SCHEMA, Endpoint, EndpointState, Keeper, Mark, Ordering, Scheme},
        id::{AccountId, EndpointId},
        retry::{RetryOverrides, RetryPolicy},
        signing::{Kind, Secret, SecretText, rotated},
    },
    registry::rules::Rules,
    store::registry::{RegistryError, RegistryStore, Unreadable, confirming::Confirmation},
    surface::{Context, OutputClosed, VerbError, audited, note, of_confirmed, of_those_that_answer},
    view::{
        Viewer,
        health::{of_many, of_one},
    },
};

/// Longest overlap of two secrets: a receiver that has not moved on by then never will.
const MAX_OVERLAP: Duration = Duration::from_secs(30 * 86_400);

/// Endpoints of a list whose health is read together.
const HEALTH_PAGE: usize = 500;

/// How long a deletion waits for what was accepted before it: a healthy owner needs a second.
const DRAINED_WITHIN: Duration = Duration::from_secs(30);
const DRAINED_LOOK: Duration = Duration::from_millis(100);

#[derive(Debug, Subcommand)]
pub enum EndpointVerb {
    /// Register an endpoint; its secret is shown once
    Create(CreateArgs),
    /// List endpoints
    List(ListArgs),
    /// Show one endpoint
    Show {
        /// Its id
        id: EndpointId,
    },
    /// Change settings of an endpoint; those that are not named stay as they are
    Update(UpdateArgs),
    /// Let its deliveries wait in its backlog
    Pause(ChangeArgs),
    /// Let its backlog go out
    Resume(ChangeArgs),
    /// Take events again, after it was disabled
    Enable(ChangeArgs),
    /// Take no events; what is unfinished becomes dead letters
    Disable(ConsentArgs),
    /// Remove it, once what was accepted before is delivered or a dead letter
    Delete(ConsentArgs),
    /// Make a new secret that signs at once; the older ones keep signing until the overlap is over
    RotateSecret(RotateArgs),
    /// Send a signed test event to it, past the stream
    Test(test_send::TestArgs),
    /// Write all endpoints with their secrets to a file or to stdout
    Export(transfer::ExportArgs),
    /// Replace all endpoints by those of a file, in one switch
    Import(transfer::ImportArgs),
    /// Confirm that the endpoints in Redis are the right ones, after the registry was replaced
    AcceptRegistry(Consent),
}

/// The only change that needs no reason: nothing was there before.
#[derive(Debug, Args)]
#[command(mut_arg("reason", |reason| reason.required(false).default_value("created")))]
pub struct CreateArgs {
    /// The account that it belongs to
    #[arg(long, value_name = "ACCOUNT")]
    account: AccountId,
    /// Where to deliver to
    #[arg(long, value_name = "URL")]
    url: String,
    /// Its id, ep_… [default: a fresh one]
    #[arg(long, value_name = "ENDPOINT")]
    id: Option<EndpointId>,
    #[command(flatten)]
    secret: GivenSecret,
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    change: WhoAndWhy,
}

#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only of this account
    #[arg(long, value_name = "ACCOUNT")]
    account: Option<AccountId>,
    /// Only those in this state
    #[arg(long, value_name = "STATE")]
    state: Option<StateFilter>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum StateFilter {
    Enabled,
    Paused,
    Disabled,
}

#[derive(Debug, Args)]
pub struct UpdateArgs {
    /// Its id
    id: EndpointId,
    /// Where to deliver to from now on
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    resets: Resets,
    #[command(flatten)]
    change: WhoAndWhy,
}

#[derive(Debug, Args)]
pub struct ChangeArgs {
    /// Its id
    id: EndpointId,
    #[command(flatten)]
    change: WhoAndWhy,
}

#[derive(Debug, Args)]
pub struct ConsentArgs {
    /// Its id
    id: EndpointId,
    #[command(flatten)]
    consent: Consent,
}

#[derive(Debug, Args)]
pub struct RotateArgs {
    /// Its id
    id: EndpointId,
    /// How long the older secrets keep signing, 0s to 30d
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "24h")]
    overlap: Duration,
    /// What a fresh secret is to sign: for ed25519 a key pair, else a secret that both sides have [default: what the endpoint has]
    #[arg(long, value_name = "SCHEME", conflicts_with_all = ["secret", "secret_file"])]
    scheme: Option<Scheme>,
    #[command(flatten)]
    secret: GivenSecret,
    #[command(flatten)]
    consent: Consent,
}

pub async fn run(context: &Context, verb: EndpointVerb) -> anyhow::Result<()> {
    match verb {
        EndpointVerb::Create(args) => create(context, args).await,
        EndpointVerb::List(args) => list(context, args).await,
        EndpointVerb::Show { id } => {
            let endpoint = get(&mut context.registry().await?, &id).await?;
            let mut queries = context.partitions().await?;
            queries.know([(&endpoint.id, &endpoint.account)]);
            let redis_ms = queries.now_ms().await?;
            let health = of_one(&mut queries, &id, Viewer::Operator).await?;
            let done = view::show_with_health(context.output, &endpoint, health, context.now_ms(), redis_ms);
            of_those_that_answer(&queries, done)
        }
        EndpointVerb::Update(args) => update(context, args).await,
        EndpointVerb::Pause(args) => switch(context, args, Switch::Pause).await,
        EndpointVerb::Resume(args) => switch(context, args, Switch::Resume).await,
        EndpointVerb::Enable(args) => switch(context, args, Switch::Enable).await,
        EndpointVerb::Disable(args) => disable(context, args).await,
        EndpointVerb::Delete(args) => delete(context, args).await,
        EndpointVerb::RotateSecret(args) => rotate(context, args).await,
        EndpointVerb::Test(args) => test_send::run(context, args).await,
        EndpointVerb::Export(args) => transfer::export(context, args).await,
        EndpointVerb::Import(args) => transfer::import(context, args).await,
        EndpointVerb::AcceptRegistry(consent) => accept_registry::accept_registry(context, &consent).await,
    }
}

/// An endpoint that must exist.
pub async fn get(registry: &mut RegistryStore, id: &EndpointId) -> Result<Endpoint, RegistryError> {
    registry.get(id).await?.ok_or_else(|| RegistryError::Missing(id.clone()))
}

/// For verbs that look for things of an endpoint: says so if there is no such endpoint. If nothing was found, that is
/// an error.
pub async fn check_known(context: &Context, id: &EndpointId, found_nothing: bool) -> anyhow::Result<()> {
    if !matches!(context.registry().await?.get(id).await, Ok(None)) {
        return Ok(());
    }
    let text = format!("there is no endpoint {id}: deleted, or mistyped? `herald endpoint list` shows all");
    match found_nothing {
        true => Err(VerbError::NotFound(text).into()),
        false => {
            note(text);
            Ok(())
        }
    }
}

fn rules(context: &Context) -> anyhow::Result<Rules> {
    let policy = RetryPolicy::try_new(context.config.retry)?;
    Ok(Rules::new(app::sender(&context.config, context.redis()?)?.guard().clone(), policy))
}

async fn create(context: &Context, args: CreateArgs) -> anyhow::Result<()> {
    let mark = args.change.mark();
    let given = args.secret.secret()?;
    let mut endpoint = Endpoint {
        schema: ENDPOINT_SCHEMA,
        id: args.id.map_or_else(fresh_id, Ok)?,
        account: args.account,
        url: args.url,
        description: String::new(),
        event_types: Vec::new(),
        schemes: vec![Scheme::Standard, Scheme::Dojo],
        secrets: given.into_iter().map(|secret| Secret::new(secret, mark.at_ms)).collect(),
        spare_secrets: Vec::new(),
        ordering: Ordering::Intent,
        max_in_flight: DEFAULT_MAX_IN_FLIGHT,
        rate_limit: None,
        timeout_ms: None,
        retry: RetryOverrides::default(),
        headers: Vec::new(),
        traceparent: false,
        http1: false,
        tls: None,
        keeper: Keeper::Operator,
        status: EndpointState::Enabled,
        leaves: false,
        owed_until: None,
        created_at_ms: mark.at_ms,
        updated_at_ms: mark.at_ms,
        revision: 1,
        unsealed_values: 0,
    };
    args.settings.apply(&mut endpoint)?;
    let mut made = None;
    while let Some(scheme) = endpoint.scheme_without_secret() {
        let secret = fresh_secret(scheme.signs_with())?;
        endpoint.secrets.push(Secret::new(secret.clone(), mark.at_ms));
        made = made.or(to_hand_over(secret));
    }
    rules(context)?.check(&endpoint).await.context("the endpoint was not created")?;
    let begun = args.change.act(Act::EndpointCreate).account(&endpoint.account).endpoint(&endpoint.id);
    let changing = context.changing()?;
    let create = async |_: &mut _| Ok(changing.change(async |registry| registry.create(endpoint, &mark).await).await?);
    let (created, confirmation) = audited(context, begun, create).await?;
    show_stored(context, &created, made.as_ref())?;
    of_confirmed(&confirmation)
}

async fn list(context: &Context, args: ListArgs) -> anyhow::Result<()> {
    let mut registry = context.registry().await?;
    // Pages come in no order and may repeat an endpoint: this mends both.
    let (mut found, mut unreadable) = (BTreeMap::new(), BTreeMap::new());
    let mut cursor = None;
    loop {
        let page = registry.list(cursor).await?;
        let wanted = page.endpoints.into_iter().filter(|endpoint| args.wants(endpoint));
        found.extend(wanted.map(|endpoint| (endpoint.id.clone(), endpoint)));
        unreadable.extend(page.unreadable.into_iter().map(|one| (one.id.clone(), one)));
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    let now_ms = context.now_ms();
    let mut list = view::list(context.output);
    let mut queries = context.partitions().await?;
    let redis_ms = queries.now_ms().await?;
    let found: Vec<Endpoint> = found.into_values().collect();
    queries.know(found.iter().map(|endpoint| (&endpoint.id, &endpoint.account)));
    for part in found.chunks(HEALTH_PAGE) {
        let ids: Vec<EndpointId> = part.iter().map(|endpoint| endpoint.id.clone()).collect();
        for (endpoint, health) in part.iter().zip(of_many(&mut queries, &ids, Viewer::Operator).await?) {
            view::push(&mut list, endpoint, health, now_ms, redis_ms)?;
        }
    }
    list.finish()?;
    for Unreadable { id, why, .. } in unreadable.values().take(10) {
        note(format_args!("endpoint {id} cannot be read: {why}"));
    }
    if unreadable.len() > 10 {
        note(format_args!("… and {} more that cannot be read", unreadable.len() - 10));
    }
    of_those_that_answer(&queries, Ok(()))
}

impl ListArgs {
    fn wants(&self, endpoint: &Endpoint) -> bool {
        let in_state = match self.state {
            None => true,
            Some(StateFilter::Enabled) => matches!(endpoint.status, EndpointState::Enabled),
            Some(StateFilter::Paused) => matches!(endpoint.status, EndpointState::Paused(_)),
            Some(StateFilter::Disabled) => matches!(endpoint.status, EndpointState::Disabled(_)),
        };
        in_state && self.account.as_ref().is_none_or(|account| *account == endpoint.account)
    }
}

async fn update(context: &Context, args: UpdateArgs) -> anyhow::Result<()> {
    let mut registry = context.registry().await?;
    let before = get(&mut registry, &args.id).await?;
    let mut endpoint = before.clone();
    if let Some(url) = args.url {
        endpoint.url = url;
    }
    args.resets.apply(&mut endpoint);
    args.settings.apply(&mut endpoint)?;
    if endpoint == before {
        note(format_args!("endpoint {} is already like that; nothing was changed", args.id));
        return view::show(context.output, &before, None, context.now_ms());
    }
    let rules = rules(context)?;
    let judged =
        if endpoint.url == before.url { rules.check_settings(&endpoint) } else { rules.check(&endpoint).await };
    judged.with_context(|| format!("endpoint {} was not changed", args.id))?;
    let begun = about(args.change.act(Act::EndpointUpdate), &before);
    // Only the names of what changes: values may be secrets.
    let begun = begun.target(before.fields_that_differ(&endpoint).join(", "));
    let (updated, confirmation) = put(context, begun, endpoint, &args.change.mark()).await?;
    view::show(context.output, &updated, None, context.now_ms())?;
    of_confirmed(&confirmation)
}

/// Writes a changed endpoint.
async fn put(
    context: &Context,
    begun: Begun,
    endpoint: Endpoint,
    mark: &Mark,
) -> anyhow::Result<(Endpoint, Confirmation)> {
    let changing = context.changing()?;
    let update = async |_: &mut _| Ok(changing.change(async |registry| registry.update(endpoint, mark).await).await?);
    audited(context, begun, update).await
}

/// An act on this endpoint.
fn about(begun: Begun, endpoint: &Endpoint) -> Begun {
    begun.account(&endpoint.account).endpoint(&endpoint.id)
}

#[derive(Debug, Clone, Copy)]
enum Switch {
    Pause,
    Resume,
    Enable,
}

impl Switch {
    fn act(self) -> Act {
        match self {
            Self::Pause => Act::EndpointPause,
            Self::Resume => Act::EndpointResume,
            Self::Enable => Act::EndpointEnable,
        }
    }

    /// The next state; none if it has that state already.
    fn of(self, id: &EndpointId, status: &EndpointState, mark: &Mark) -> Result<Option<EndpointState>, VerbError> {
        let refused = |why: &str| Err(VerbError::Refused(format!("endpoint {id} is {status}: {why}")));
        match (self, status) {
            (Self::Pause, EndpointState::Enabled) => Ok(Some(EndpointState::Paused(mark.clone()))),
            (Self::Resume, EndpointState::Paused(_)) | (Self::Enable, EndpointState::Disabled(_)) => {
                Ok(Some(EndpointState::Enabled))
            }
            (Self::Pause, EndpointState::Paused(_)) | (Self::Resume | Self::Enable, EndpointState::Enabled) => Ok(None),
            (Self::Pause, EndpointState::Disabled(_)) => refused("it takes nothing, so there is nothing to pause"),
            (Self::Resume, EndpointState::Disabled(_)) => refused("enable it instead"),
            (Self::Enable, EndpointState::Paused(_)) => refused("resume it instead"),
        }
    }
}

async fn switch(context: &Context, args: ChangeArgs, switch: Switch) -> anyhow::Result<()> {
    let mark = args.change.mark();
    let mut endpoint = get(&mut context.registry().await?, &args.id).await?;
    let mut confirmation = Confirmation::of_nothing();
    match switch.of(&args.id, &endpoint.status, &mark)? {
        Some(status) => {
            endpoint.status = status;
            let begun = about(args.change.act(switch.act()), &endpoint);
            (endpoint, confirmation) = put(context, begun, endpoint, &mark).await?;
            note(format_args!("endpoint {} is {}", args.id, endpoint.status));
        }
        None => note(format_args!("endpoint {} is already {}; nothing was changed", args.id, endpoint.status)),
    }
    view::show(context.output, &endpoint, None, context.now_ms())?;
    of_confirmed(&confirmation)
}

async fn disable(context: &Context, args: ConsentArgs) -> anyhow::Result<()> {
    let mut endpoint = get(&mut context.registry().await?, &args.id).await?;
    if matches!(endpoint.status, EndpointState::Disabled(_)) {
        note(format_args!("endpoint {} is already {}; nothing was changed", args.id, endpoint.status));
        return view::show(context.output, &endpoint, None, context.now_ms());
    }
    let what = format!(
        "disable endpoint {} of {} ({}): it takes no more events, and its unfinished deliveries become dead letters",
        endpoint.id, endpoint.account, endpoint.url
    );
    if args.consent.confirm(&what)? == Go::Ahead {
        let begun = about(args.consent.act(Act::EndpointDisable), &endpoint);
        let changing = context.changing()?;
        let disable = async |_: &mut _| {
            // First: what is accepted from here on is not owed.
            let last = context.partitions().await?.last_entry_of(&endpoint.account).await?;
            let mark = args.consent.mark();
            endpoint.disable(mark.clone(), last);
            Ok(changing.change(async |registry| registry.update(endpoint, &mark).await).await?)
        };
        let (endpoint, confirmation) = audited(context, begun, disable).await?;
        view::show(context.output, &endpoint, None, context.now_ms())?;
        return of_confirmed(&confirmation);
    }
    Ok(())
}

async fn delete(context: &Context, args: ConsentArgs) -> anyhow::Result<()> {
    let mut registry = context.registry().await?;
    let found = match registry.get(&args.id).await {
        // What cannot be read can still be removed.
        Err(RegistryError::Unreadable(_) | RegistryError::Locked { .. }) => None,
        found => Some(found?.ok_or_else(|| RegistryError::Missing(args.id.clone()))?),
    };
    let of = found.as_ref().map_or("that cannot be read".to_owned(), |e| format!("of {} ({})", e.account, e.url));
    let what = format!(
        "delete endpoint {} {of} with its secrets for ever; its unfinished deliveries become dead letters",
        args.id
    );
    if args.consent.confirm(&what)? == Go::Ahead {
        let begun = args.consent.act(Act::EndpointDelete);
        let begun = found.iter().fold(begun.endpoint(&args.id), about);
        let delete = async |_: &mut _| {
            let seen = match found {
                Some(endpoint) => Some(drained(context, &mut registry, endpoint, args.consent.mark()).await?),
                None => None,
            };
            let (changing, mark) = (context.changing()?, args.consent.mark());
            Ok(changing.change(async |registry| registry.remove(&args.id, seen, &mark).await).await?)
        };
        let ((), confirmation) = audited(context, begun, delete).await?;
        note(format_args!("endpoint {} is deleted", args.id));
        return of_confirmed(&confirmation);
    }
    Ok(())
}

/// An endpoint that is gone is owed nothing, not even what was accepted before and is not read yet. So it is disabled
/// first, and removed only when everything that it was owed is delivered or a dead letter. Returns its revision.
async fn drained(
    context: &Context,
    registry: &mut RegistryStore,
    mut endpoint: Endpoint,
    mark: Mark,
) -> anyhow::Result<u64> {
    let mut partitions = context.partitions().await?;
    if !matches!(endpoint.status, EndpointState::Disabled(_)) {
        endpoint.disable(mark.clone(), partitions.last_entry_of(&endpoint.account).await?);
        endpoint = registry.update(endpoint, &mark).await?;
    }
    let Some(last) = endpoint.owed_until else { return Ok(endpoint.revision) };
    let began = clock::now();
    let (deadline, mut is_told) = (began + DRAINED_WITHIN, false);
    while !partitions.is_passed(&endpoint.account, last).await? {
        if clock::now() >= deadline {
            let text = format!(
                "endpoint {} is disabled and not deleted yet: events that were accepted before wait in {} to become its \
                 dead letters; see that a worker owns it (`herald doctor`), then delete it again",
                endpoint.id,
                partitions.layout().path(&endpoint.account).pop().unwrap_or_default()
            );
            return Err(VerbError::Unanswered(text).into());
        }
        if !is_told && clock::now() >= began + TOLD_AFTER {
            is_told = true;
            note("events that were accepted before are waited for, so that it gets them as dead letters");
        }
        tokio::time::sleep(DRAINED_LOOK).await;
    }
    Ok(endpoint.revision)
}

async fn rotate(context: &Context, args: RotateArgs) -> anyhow::Result<()> {
    if args.overlap > MAX_OVERLAP {
        return Err(VerbError::Usage("--overlap must be between 0s and 30d".to_owned()).into());
    }
    let mark = args.consent.mark();
    let given = args.secret.secret()?;
    let mut endpoint = get(&mut context.registry().await?, &args.id).await?;
    let kind = args.scheme.map_or_else(|| endpoint.usual_kind(), Scheme::signs_with);
    let is_fresh = given.is_none();
    let secret = given.map_or_else(|| fresh_secret(kind), Ok)?;
    if endpoint.secrets.iter().any(|known| known.value == secret) {
        return Err(VerbError::Refused(format!("endpoint {} already has this secret", args.id)).into());
    }
    endpoint.secrets = rotated(endpoint.secrets, Secret::new(secret.clone(), mark.at_ms), mark.at_ms, args.overlap);
    rules(context)?.check_settings(&endpoint).with_context(|| format!("endpoint {} was not changed", args.id))?;
    let shown = compact(args.overlap);
    let what = match args.overlap.is_zero() {
        true => {
            format!(
                "end the older secrets of endpoint {} now: receivers that know only those will refuse what comes",
                args.id
            )
        }
        false => format!("give endpoint {} a new secret, and end the older ones in {shown}", args.id),
    };
    // With an overlap nothing is taken away, so only a dry run has something to say.
    if (args.overlap.is_zero() || args.consent.dry_run) && args.consent.confirm(&what)? == Go::DryRun {
        return Ok(());
    }
    let has_dojo = secret.kind() == Kind::Shared && endpoint.schemes.contains(&Scheme::Dojo);
    let begun = about(args.consent.act(Act::EndpointRotateSecret), &endpoint).filter(format_args!("--overlap {shown}"));
    let (updated, confirmation) = put(context, begun, endpoint, &mark).await?;
    if has_dojo && !args.overlap.is_zero() {
        note("dojo-signature carries one signature only: from now on it is the new secret's");
    }
    show_stored(context, &updated, to_hand_over(secret).filter(|_| is_fresh).as_ref())?;
    of_confirmed(&confirmation)
}

/// Of a key pair its receiver needs the public half, which is always shown.
fn to_hand_over(made: SecretText) -> Option<SecretText> {
    Some(made).filter(|secret| secret.kind() == Kind::Shared)
}

/// Shows a secret that was made here and is never shown again. A secret that was given is known to whoever gave it.
fn show_stored(context: &Context, endpoint: &Endpoint, made: Option<&SecretText>) -> anyhow::Result<()> {
    let Some(secret) = made else { return view::show(context.output, endpoint, None, context.now_ms()) };
    match view::show(context.output, endpoint, Some(secret), context.now_ms()) {
        Err(error) if error.is::<OutputClosed>() => {
            bail!("endpoint {} is stored, but nobody read its new secret: rotate it", endpoint.id)
        }
        shown => shown?,
    }
    note("the secret is shown this once: hand it to the receiver's owner now");
    Ok(())
}

/// From the operating system's generator.
fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    SysRng.try_fill_bytes(&mut bytes).context("the operating system gave no random bytes")?;
    Ok(bytes)
}

fn fresh_secret(kind: Kind) -> anyhow::Result<SecretText> {
    Ok(SecretText::of_kind(kind, random()?))
}

fn fresh_id() -> anyhow::Result<EndpointId> {
    Ok(EndpointId::new(&format!("ep_{}", hex::encode(random::<16>()?)))?)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use clap::FromArgMatches;

    use super::*;
    use crate::{
        facts::stamped::Stamped,
        registry::{Change, Lookup, RegistryState},
        store::registry::{
            bulk::{EXPORT_SCHEMA, ExportFile},
            feed::FeedChange,
        },
    };

    /// Everything that is handed on while it holds a secret or a header's value.
    #[test]
    fn no_debug_shows_what_was_given_in_confidence() {
        let id = EndpointId::new("ep_a").unwrap();
        let made = SecretText::new("geheim-geheim-geheim".to_owned()).unwrap();
        let mut endpoint = Endpoint::new(id, "acc_a".parse().unwrap(), "https://a.example/".to_owned(), made, 1);
        endpoint.headers = vec![("authorization".to_owned(), "Bearer geheim".to_owned())];
        let shared = Arc::new(endpoint.clone());
        let file = ExportFile {
            schema: EXPORT_SCHEMA,
            registry_id: "reg_a".parse().unwrap(),
            version: 1,
            exported_at_ms: 1,
            endpoints: vec![endpoint.clone()],
        };
        let lookup = Lookup {
            state: RegistryState::Loaded,
            id: None,
            last: Stamped::default(),
            endpoints: vec![shared.clone()].into(),
            is_uncertain: false,
        };
        let words = "herald create --account acc_a --url https://a.example/ --secret geheim --header x-key:geheim";
        let parser = EndpointVerb::augment_subcommands(clap::Command::new("herald"));
        let verb = EndpointVerb::from_arg_matches(&parser.get_matches_from(words.split(' '))).unwrap();
        let shown = [
            format!("{endpoint:?}"),
            format!("{file:?}"),
            format!("{lookup:?}"),
            format!("{:?}", Change::Endpoint(shared)),
            format!("{:?}", FeedChange::Put(Box::new(endpoint.clone()))),
            format!("{:?}", endpoint.secrets),
            format!("{verb:?}"),
        ];
        assert!(shown.iter().all(|shown| !shown.contains("geheim")), "{shown:#?}");
        assert!(shown[6].contains("acc_a"));
    }

    #[test]
    fn a_switch_changes_only_what_it_says() {
        let id = EndpointId::new("ep_a").unwrap();
        let mark = Mark { by: "ops".to_owned(), why: "test".to_owned(), at_ms: 1 };
        let (paused, disabled) = (EndpointState::Paused(mark.clone()), EndpointState::Disabled(mark.clone()));
        let of = |switch: Switch, status: &EndpointState| switch.of(&id, status, &mark);
        assert_eq!(of(Switch::Pause, &EndpointState::Enabled), Ok(Some(paused.clone())));
        assert_eq!(of(Switch::Pause, &paused), Ok(None));
        assert_eq!(of(Switch::Resume, &paused), Ok(Some(EndpointState::Enabled)));
        assert_eq!(of(Switch::Enable, &disabled), Ok(Some(EndpointState::Enabled)));
        assert!(of(Switch::Resume, &disabled).unwrap_err().to_string().ends_with("enable it instead"));
        assert!(of(Switch::Enable, &paused).is_err() && of(Switch::Pause, &disabled).is_err());
    }
}
