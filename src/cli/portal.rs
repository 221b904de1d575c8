//! `herald portal …`: the links by which merchants enter the console. One is shown once; it is listed and revoked as a token is.

use clap::{Args, Subcommand};
use serde::Serialize;
use url::Url;

use super::args::WhoAndWhy;
use crate::{
    api::{
        access::short,
        v1::portal::{FULL, NewLink, PortalLink, make_room},
    },
    facts::{audit::Act, id::AccountId},
    store::tokens::TokenStore,
    surface::{Context, OutputClosed, VerbError, audited, instant, note},
};

#[derive(Debug, Subcommand)]
pub enum PortalVerb {
    /// Make a link by which a merchant enters the console: it leads in once, within 15 minutes, for 12 hours
    Link(LinkArgs),
}

#[derive(Debug, Args)]
pub struct LinkArgs {
    /// The only account that whoever follows it sees
    #[arg(long, value_name = "ACCOUNT")]
    account: AccountId,
    /// How merchants reach this Herald's console, https://hooks.example.com for example [default: only the path is shown]
    #[arg(long, value_name = "URL", value_parser = console)]
    console: Option<Url>,
    #[command(flatten)]
    change: WhoAndWhy,
}

/// As `POST /v1/accounts/ACCOUNT/portal-link` answers.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    link: PortalLink,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
}

fn console(text: &str) -> Result<Url, String> {
    let url: Url = text.parse().map_err(|error| format!("{error}"))?;
    let is_bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
    match ["http", "https"].contains(&url.scheme()) && url.has_host() && is_bare {
        true => Ok(url),
        false => Err("it is no address as https://hooks.example.com: a scheme, a host and perhaps a port".to_owned()),
    }
}

pub async fn run(context: &Context, verb: PortalVerb) -> anyhow::Result<()> {
    let PortalVerb::Link(LinkArgs { account, console, change }) = verb;
    let mut tokens = TokenStore::on(context.connect().await?);
    if !make_room(&mut tokens).await? {
        return Err(VerbError::Refused(FULL.to_owned()).into());
    }
    let link = NewLink::try_new(account, &change.by).map_err(|error| VerbError::Usage(error.to_string()))?;
    let begun = link.about(change.act(Act::TokenCreate));
    audited(context, begun, async |_| Ok(tokens.put(&link.hash, &link.token).await?)).await?;
    let hash = link.hash.clone();
    let link = link.shown();
    let url = console.map(|console| format!("{}{}", console.as_str().trim_end_matches('/'), link.path));
    let shown = url.clone().unwrap_or_else(|| link.path.clone());
    let fields = [("link", shown), ("until", instant(link.expires_at.0)), ("hash", short(&hash).to_owned())];
    match context.output.one(&Shown { link, url: url.clone() }, &fields) {
        Err(error) if error.is::<OutputClosed>() => {
            anyhow::bail!("the link {} is kept, but nobody read it: revoke it, or let its time run out", short(&hash))
        }
        shown => shown?,
    }
    if url.is_none() {
        note("it is below the address at which merchants reach the console, which nothing here knows: --console URL");
    }
    note("it leads in once, and is not shown again; herald token revoke takes it back");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_scheme_a_host_and_nothing_behind_them() {
        for good in ["https://hooks.example.com", "http://127.0.0.1:8080/"] {
            assert!(console(good).is_ok(), "{good}");
        }
        for bad in [
            "hooks.example.com",
            "ftp://a.example",
            "https://a.example/x",
            "https://a.example?q",
            "https://u@a.example",
        ] {
            assert!(console(bad).is_err(), "{bad}");
        }
    }
}
