//! `herald token …`: the tokens of the operations API. One is shown once, when it is made; only its hash is kept.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::args::WhoAndMaybeWhy;
use crate::{
    api::{
        access::{hash, short},
        v1::access::new_token,
    },
    config::parse_duration,
    facts::{
        audit::{Act, Begun},
        id::AccountId,
        token::{Role, Token},
    },
    store::tokens::{Listed, TokenStore},
    surface::{Context, OutputClosed, VerbError, audited, instant, note},
    view::token::TokenView,
};

/// As much of a hash as tells it apart.
const MIN_HASH: usize = 8;

#[derive(Debug, Subcommand)]
pub enum TokenVerb {
    /// Make a token; it is shown once
    Create(CreateArgs),
    /// List the tokens by their hashes, and when each was last used
    List,
    /// Refuse a token from now on
    Revoke(RevokeArgs),
}

#[derive(Debug, Args)]
pub struct CreateArgs {
    /// viewer, operator, admin or merchant
    #[arg(long, value_name = "ROLE")]
    role: Role,
    /// The only account that a merchant's token sees
    #[arg(long, value_name = "ACCOUNT")]
    account: Option<AccountId>,
    /// Who or what it is for: it stands in the audit log
    #[arg(long, value_name = "TEXT")]
    name: String,
    /// How long it lives, 90d for example [default: for ever]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    expires_in: Option<Duration>,
    #[command(flatten)]
    change: WhoAndMaybeWhy,
}

#[derive(Debug, Args)]
pub struct RevokeArgs {
    /// The hash that `token list` shows, or its first eight characters or more
    hash: String,
    #[command(flatten)]
    change: WhoAndMaybeWhy,
}

pub async fn run(context: &Context, verb: TokenVerb) -> anyhow::Result<()> {
    match verb {
        TokenVerb::Create(args) => create(context, args).await,
        TokenVerb::List => list(context).await,
        TokenVerb::Revoke(args) => revoke(context, args).await,
    }
}

async fn tokens(context: &Context) -> anyhow::Result<TokenStore> {
    Ok(TokenStore::on(context.connect().await?))
}

async fn create(context: &Context, args: CreateArgs) -> anyhow::Result<()> {
    let CreateArgs { role, account, name, expires_in, change } = args;
    let lifetime = expires_in.map(|lifetime| u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX));
    let token = Token::try_new(role, account, &name, change.by(), context.now_ms(), lifetime);
    let token = token.map_err(|error| VerbError::Usage(error.to_string()))?;
    let text = new_token();
    let hash = hash(&text);
    let begun = about(change.act(Act::TokenCreate), &hash, &token);
    audited(context, begun, async |_| Ok(tokens(context).await?.put(&hash, &token).await?)).await?;
    let fields = [
        ("token", text.clone()),
        ("role", role.name().to_owned()),
        ("account", token.account.as_ref().map_or("all".to_owned(), ToString::to_string)),
        ("expires", token.expires_at_ms.map_or("never".to_owned(), instant)),
        ("hash", hash.clone()),
    ];
    match context.output.one(&TokenView::made(&text, &hash, &token), &fields) {
        Err(error) if error.is::<OutputClosed>() => {
            anyhow::bail!("the token {} is kept, but nobody read it: revoke it", short(&hash))
        }
        shown => shown?,
    }
    note("keep the token: it is not shown again");
    Ok(())
}

async fn list(context: &Context) -> anyhow::Result<()> {
    let (all, now_ms) = (tokens(context).await?.all().await?, context.now_ms());
    let mut list = context.output.list(&["HASH", "ROLE", "ACCOUNT", "NAME", "EXPIRES", "LAST USED"]);
    for listed in &all {
        list.push(&TokenView::listed(listed, now_ms), || row(listed, now_ms))?;
    }
    list.finish()
}

fn row(listed: &Listed, now_ms: u64) -> Vec<String> {
    let Listed { hash, token, used_at_ms } = listed;
    let expires = match token.expires_at_ms {
        None => "never".to_owned(),
        Some(_) if !token.is_live(now_ms) => "expired".to_owned(),
        Some(end) => instant(end),
    };
    vec![
        short(hash).to_owned(),
        token.role.name().to_owned(),
        token.account.as_ref().map_or("all".to_owned(), ToString::to_string),
        token.name.clone(),
        expires,
        used_at_ms.map_or("never".to_owned(), instant),
    ]
}

async fn revoke(context: &Context, args: RevokeArgs) -> anyhow::Result<()> {
    if args.hash.len() < MIN_HASH {
        let text = format!("give at least {MIN_HASH} characters of the hash: `herald token list` shows it");
        return Err(VerbError::Usage(text).into());
    }
    let mut tokens = tokens(context).await?;
    let all = tokens.all().await?;
    let found: Vec<_> = all.iter().filter(|listed| listed.hash.starts_with(&args.hash)).collect();
    let [Listed { hash, token, .. }] = found[..] else {
        let count = found.len();
        let text = format!("{count} tokens have a hash that begins with {}: `herald token list` shows them", args.hash);
        return Err(VerbError::NotFound(text).into());
    };
    let begun = about(args.change.act(Act::TokenRevoke), hash, token);
    audited(context, begun, async |_| Ok(tokens.remove(hash).await?)).await?;
    note(format_args!("revoked the token {}: it is refused within a second", token.name));
    Ok(())
}

fn about(begun: Begun, hash: &str, token: &Token) -> Begun {
    let begun = token.account.iter().fold(begun, Begun::account);
    begun.target(format_args!("token {} {}", short(hash), token.role.name()))
}
