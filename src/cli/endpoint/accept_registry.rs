//! `herald endpoint accept-registry`: says that the registry in Redis is the right one, after the partition was found
//! to belong to another. Until someone says so, nothing is read.

use crate::{
    cli::{
        args::{Consent, Go},
        asking::Asking,
    },
    facts::audit::Act,
    store::protocol::Asked,
    surface::{Context, VerbError, audited, note, of_those_that_answer},
};

pub async fn accept_registry(context: &Context, consent: &Consent) -> anyhow::Result<()> {
    let Some((position, _)) = context.registry().await?.position().await? else {
        let text =
            "there is no registry in Redis: import a backup first, with `herald endpoint import FILE --reason '…'`";
        return Err(VerbError::NotFound(text.to_owned()).into());
    };
    let mut partitions = context.partitions().await?;
    let found = position.id.to_string();
    let mut others = partitions.bound_registries().await?;
    others.retain(|(_, bound)| *bound != found);
    let Some((_, bound)) = others.first() else {
        note(format_args!(
            "{} already works with the registry {found}, or will take it by itself: nothing to do",
            context.keys()?.stream()
        ));
        return of_those_that_answer(&partitions, Ok(()));
    };
    let names: Vec<&str> = others.iter().map(|(keys, _)| keys.stream()).collect();
    let streams = names.join(", ");
    if consent.confirm(&format!("bind {streams} to the registry {found} instead of {bound}"))? == Go::Ahead {
        let begun = consent.act(Act::EndpointAcceptRegistry).target(format_args!("{found} instead of {bound}"));
        let asked = Asked::AcceptRegistry(found.clone());
        let accept = async |_: &mut _| {
            let mut asking = Asking::connect(context, consent.mark()).await?;
            for (keys, _) in &others {
                asking.one(keys, &asked).await?;
            }
            anyhow::Ok(())
        };
        audited(context, begun, accept).await?;
        let work = if names.len() == 1 { "works" } else { "work" };
        note(format_args!("{streams} {work} with the registry {found} from now on"));
    }
    of_those_that_answer(&partitions, Ok(()))
}
