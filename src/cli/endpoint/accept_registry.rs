//! `herald endpoint accept-registry`: says that the registry in Redis is the right one, after the partition was found
//! to belong to another. Until someone says so, nothing is read.

use crate::{
    cli::{
        args::{Consent, Go},
        asking::Asking,
    },
    facts::audit::Act,
    store::{protocol::Asked, queries::Queries},
    surface::{Context, VerbError, audited, note},
};

pub async fn accept_registry(context: &Context, consent: &Consent) -> anyhow::Result<()> {
    let Some((position, _)) = context.registry().await?.position().await? else {
        let text =
            "there is no registry in Redis: import a backup first, with `herald endpoint import FILE --reason '…'`";
        return Err(VerbError::NotFound(text.to_owned()).into());
    };
    let keys = context.keys()?;
    let stream = keys.stream().to_owned();
    let bound = Queries::new(context.connect().await?, keys).bound_registry().await?;
    let found = position.id.to_string();
    let Some(bound) = bound.filter(|bound| *bound != found) else {
        note(format_args!(
            "{stream} already works with the registry {found}, or will take it by itself: nothing to do"
        ));
        return Ok(());
    };
    if consent.confirm(&format!("bind {stream} to the registry {found} instead of {bound}"))? == Go::Ahead {
        let begun = consent.act(Act::EndpointAcceptRegistry).target(format_args!("{found} instead of {bound}"));
        let asked = Asked::AcceptRegistry(found.clone());
        let accept = async |_: &mut _| Asking::connect(context, consent.mark()).await?.one(&asked).await;
        audited(context, begun, accept).await?;
        note(format_args!("{stream} works with the registry {found} from now on"));
    }
    Ok(())
}
