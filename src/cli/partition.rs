//! `herald partition …`: the stream and the parts that it is split into, and where an account's events are.

use clap::Subcommand;

use crate::{
    facts::id::AccountId,
    store::{connection::Redis, queries::PartitionLook},
    surface::{Context, Format, VerbError, note, of_those_that_answer, words},
    view::partition::{PartitionView, PlaceView},
};

#[derive(Debug, Subcommand)]
pub enum PartitionVerb {
    /// List the stream and all its parts: who works on each, and what waits there
    List,
    /// Show one
    Show {
        /// Its stream, as `partition list` shows it
        name: String,
    },
    /// Say in which stream an account's deliveries are
    Of {
        /// The account
        account: AccountId,
    },
}

pub async fn run(context: &Context, verb: PartitionVerb) -> anyhow::Result<()> {
    match verb {
        PartitionVerb::List => list(context).await,
        PartitionVerb::Show { name } => show(context, &name).await,
        PartitionVerb::Of { account } => of(context, &account).await,
    }
}

async fn view(redis: &Redis, look: &PartitionLook, now_ms: u64) -> PartitionView {
    PartitionView::of(look, redis.at_home_in(look.slot).home_address().await, now_ms)
}

async fn list(context: &Context) -> anyhow::Result<()> {
    let (redis, mut partitions) = (context.redis()?, context.partitions().await?);
    let (now_ms, looks) = (partitions.now_ms().await?, partitions.look().await?);
    let titles = ["STREAM", "MODE", "SLOT", "NODE", "OWNER", "BEHIND", "DUE", "UNFINISHED", "DEAD", "ROUTED TO"];
    let has_parts = looks.len() > 1;
    let mut rows = context.output.list(&titles[..titles.len() - usize::from(!has_parts)]);
    for look in &looks {
        let view = view(&redis, look, now_ms).await;
        rows.push(&view, || {
            let mut cells = vec![
                view.stream.clone(),
                mode(&view),
                view.slot.to_string(),
                view.node.clone(),
                view.owner.clone().unwrap_or_else(|| "nobody".to_owned()),
                behind(&view),
                words::number(view.due),
                words::number(view.unfinished),
                words::number(view.dead_letters),
            ];
            cells.extend(has_parts.then(|| view.routed.clone().unwrap_or_default()));
            cells
        })?;
    }
    rows.finish()?;
    if let Some(orphan) = looks.iter().find(|look| look.lease.is_none()) {
        note(format_args!("\nNobody works on {}: start a worker with `herald serve`", orphan.stream));
    }
    of_those_that_answer(&partitions, Ok(()))
}

fn mode(view: &PartitionView) -> String {
    match view.parts {
        Some(parts) => format!("{} {parts}", view.mode),
        None => view.mode.to_owned(),
    }
}

/// `0`, `1 200 (3s)`, `500 or more`.
fn behind(view: &PartitionView) -> String {
    let Some(count) = view.behind else { return "unknown".to_owned() };
    let more = if view.has_more_behind { " or more" } else { "" };
    let age = view.behind_ms.map_or_else(String::new, |age_ms| format!(" ({})", words::span(age_ms)));
    format!("{}{more}{age}", words::number(count))
}

async fn show(context: &Context, name: &str) -> anyhow::Result<()> {
    let (redis, mut partitions) = (context.redis()?, context.partitions().await?);
    let now_ms = partitions.now_ms().await?;
    let looks = partitions.look().await?;
    let Some(look) = looks.iter().find(|look| look.stream == name) else {
        let text = format!("there is no partition {name}: `herald partition list` shows all");
        return of_those_that_answer(&partitions, Err(VerbError::NotFound(text).into()));
    };
    let view = view(&redis, look, now_ms).await;
    let lease = view.lease_left_ms.map_or_else(String::new, |left| format!(", its lease for {}", words::span(left)));
    let owner = view.owner.as_ref().map_or("nobody".to_owned(), |owner| format!("{owner}{lease}"));
    let mut fields = vec![
        ("stream", view.stream.clone()),
        ("mode", mode(&view)),
        ("slot", view.slot.to_string()),
        ("node", view.node.clone()),
        ("owner", owner),
        ("behind", behind(&view)),
        ("pending", words::number(view.pending)),
        ("due", words::number(view.due)),
        ("unfinished", words::number(view.unfinished)),
        ("dead letters", words::number(view.dead_letters)),
        ("quarantined", words::number(view.quarantined)),
    ];
    fields.extend(view.routed.clone().map(|routed| ("routed to", routed)));
    context.output.one(&view, &fields)?;
    if context.output.format() == Format::Table {
        note(format_args!("\nOnly what is in it:  herald dead-letter list --stream {name}"));
    }
    Ok(())
}

async fn of(context: &Context, account: &AccountId) -> anyhow::Result<()> {
    let partitions = context.partitions().await?;
    let view = PlaceView::of(account, partitions.layout());
    let fields = [
        ("stream", view.stream.clone()),
        ("through", view.path.join(" > ")),
        ("slot", view.slot.to_string()),
        ("moving", if view.is_moving { "yes: it is being split".to_owned() } else { "no".to_owned() }),
    ];
    context.output.one(&view, &fields)?;
    of_those_that_answer(&partitions, Ok(()))
}
