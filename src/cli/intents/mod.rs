//! Payment intents: their service, the API keys of those who call it, and what operators do with single ones.

mod explain;
mod replay;

use anyhow::bail;
use clap::{Args, Subcommand};

use super::{args::WhoAndMaybeWhy, start_log};
use crate::{
    api::access,
    app, clock,
    facts::{audit::Act, id::AccountId, own_event::is_operators},
    intents::service::{Service, ServiceError},
    store::api_keys::{ApiKey, ApiKeyStore},
    surface::{Context, VerbError, audited, instant, note},
};

#[derive(Debug, Subcommand)]
pub enum IntentsVerb {
    /// Serve payment intents, and nothing else, until SIGTERM or Ctrl-C
    Serve,
    /// API keys: who may call the service
    #[command(subcommand)]
    Key(KeyVerb),
    /// Say what a payment intent is now, which commands are possible, and why the others are not
    Explain(explain::ExplainArgs),
    /// Send an endpoint the history of a payment intent again, in order, also when the stream has forgotten it
    Replay(replay::ReplayArgs),
}

#[derive(Debug, Subcommand)]
pub enum KeyVerb {
    /// Make a key for an account; it is shown once
    Create(CreateArgs),
    /// List the keys by their hash
    List(ListArgs),
    /// Refuse a key from now on
    Revoke(RevokeArgs),
}

#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Whose payment intents it is for
    #[arg(long, value_name = "ACCOUNT")]
    account: AccountId,
    /// It may look, and change nothing
    #[arg(long)]
    read_only: bool,
    /// What it is for
    #[arg(long, value_name = "TEXT", default_value = "", value_parser = name)]
    name: String,
    #[command(flatten)]
    change: WhoAndMaybeWhy,
}

#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only those of this account
    #[arg(long, value_name = "ACCOUNT")]
    account: Option<AccountId>,
}

#[derive(Debug, Args)]
pub struct RevokeArgs {
    /// The hash that `key list` shows, or its first eight characters or more
    hash: String,
    #[command(flatten)]
    change: WhoAndMaybeWhy,
}

/// Longest name of a key.
const MAX_NAME_CHARS: usize = 100;

/// As much of a hash as tells it apart.
const MIN_HASH: usize = 8;

fn name(text: &str) -> Result<String, String> {
    let is_name = text.chars().count() <= MAX_NAME_CHARS && !text.chars().any(crate::facts::text::steers);
    if is_name { Ok(text.to_owned()) } else { Err(format!("at most {MAX_NAME_CHARS} characters, none of control")) }
}

/// The service alone.
pub async fn serve(context: Context) -> anyhow::Result<()> {
    start_log(&context)?;
    app::serve_intents(context.config).await
}

pub async fn run(context: &Context, verb: IntentsVerb) -> anyhow::Result<()> {
    match verb {
        IntentsVerb::Serve => bail!("the service is started by itself"),
        IntentsVerb::Key(KeyVerb::Create(args)) => create(context, args).await,
        IntentsVerb::Key(KeyVerb::List(args)) => list(context, args).await,
        IntentsVerb::Key(KeyVerb::Revoke(args)) => revoke(context, args).await,
        IntentsVerb::Explain(args) => explain::run(context, args).await,
        IntentsVerb::Replay(args) => replay::run(context, args).await,
    }
}

/// The payment intents themselves, in this process: what is done to them is done as the service does it.
pub fn service(context: &Context) -> anyhow::Result<Service> {
    app::intents(&context.config)
}

/// With the exit code that its kind has.
pub fn of_service(error: ServiceError) -> anyhow::Error {
    match error {
        ServiceError::NotFound => VerbError::NotFound(error.to_string()).into(),
        ServiceError::Refused(_) => VerbError::Refused(error.to_string()).into(),
        ServiceError::Faults(faults) => {
            let faults: Vec<_> = faults.iter().map(|fault| format!("{} {}", fault.member, fault.why)).collect();
            VerbError::Usage(faults.join("; ")).into()
        }
        ServiceError::Store(error) => error.into(),
        ServiceError::Unreadable(..) | ServiceError::Busy | ServiceError::Full => error.into(),
    }
}

async fn keys(context: &Context) -> anyhow::Result<ApiKeyStore> {
    Ok(ApiKeyStore::connect(&context.redis()?).await?)
}

async fn create(context: &Context, args: CreateArgs) -> anyhow::Result<()> {
    let CreateArgs { account, read_only, name, change } = args;
    if is_operators(&account) {
        let text = format!("the account {account} is kept for operators' endpoints: no merchant can be it");
        return Err(VerbError::Refused(text).into());
    }
    let (key, created_at_ms) = (access::new_key(), clock::wall_ms());
    let kept = ApiKey { account: account.clone(), is_read_only: read_only, name, created_at_ms };
    let hash = access::hash(&key);
    let begun =
        change.act(Act::IntentsKeyCreate).account(&account).target(format_args!("key {}", access::short(&hash)));
    audited(context, begun, async |_| Ok(keys(context).await?.put(&hash, &kept).await?)).await?;
    let shown = serde_json::json!({ "key": key, "account": account, "readOnly": read_only, "hash": hash });
    let fields = [("key", key.clone()), ("account", account.to_string()), ("hash", hash)];
    context.output.one(&shown, &fields)?;
    note("keep the key: it is not shown again");
    Ok(())
}

async fn list(context: &Context, args: ListArgs) -> anyhow::Result<()> {
    let all = keys(context).await?.all().await?;
    let mut list = context.output.list(&["HASH", "ACCOUNT", "RIGHTS", "NAME", "CREATED"]);
    for (hash, key) in all {
        if args.account.as_ref().is_some_and(|account| *account != key.account) {
            continue;
        }
        let rights = if key.is_read_only { "read" } else { "read, write" };
        let shown = serde_json::json!({
            "hash": hash, "account": key.account, "readOnly": key.is_read_only, "name": key.name,
            "createdAtMs": key.created_at_ms,
        });
        list.push(&shown, || {
            let short = access::short(&hash).to_owned();
            vec![short, key.account.to_string(), rights.to_owned(), key.name.clone(), instant(key.created_at_ms)]
        })?;
    }
    list.finish()
}

async fn revoke(context: &Context, args: RevokeArgs) -> anyhow::Result<()> {
    if args.hash.len() < MIN_HASH {
        bail!("give at least {MIN_HASH} characters of the hash: `herald intents key list` shows it");
    }
    let mut keys = keys(context).await?;
    let all = keys.all().await?;
    let found: Vec<_> = all.iter().filter(|(hash, _)| hash.starts_with(&args.hash)).collect();
    let [(hash, key)] = found[..] else {
        let count = found.len();
        bail!("{count} keys have a hash that begins with {}: `herald intents key list` shows them", args.hash);
    };
    let begun = args.change.act(Act::IntentsKeyRevoke).account(&key.account);
    let begun = begun.target(format_args!("key {}", access::short(hash)));
    audited(context, begun, async |_| Ok(keys.remove(hash).await?)).await?;
    note(format_args!("revoked a key of {}: it is refused within a second", key.account));
    Ok(())
}
