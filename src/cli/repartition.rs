//! `herald repartition`: has the owner of a stream split it into parts. What stands in the way is looked for here, where there is somebody
//! to tell; the owner looks again.

use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use tokio::time::sleep;

use super::{
    args::{Consent, Go},
    asking::{Asking, TOLD_AFTER},
};
use crate::{
    clock,
    facts::{
        audit::Act,
        partition::{Mode, Split},
    },
    store::{
        connection::Connection,
        keys::PartitionKeys,
        moving::{Left, left_in, why_not_split},
        partitions::{mode, no_such_part},
        protocol::Asked,
    },
    surface::{Context, VerbError, audited, note, words},
};

const LOOK_EVERY: Duration = Duration::from_millis(500);
const TOLD_EVERY: Duration = Duration::from_secs(5);

/// An owner ends what is in flight first, and begins within seconds. One that was lost meanwhile has forgotten what it was asked.
const BEGINS_WITHIN: Duration = Duration::from_secs(20);

#[derive(Debug, Args)]
pub struct RepartitionArgs {
    /// Into how many parts: eight times as many as the most workers that will ever share them
    #[arg(long, value_name = "PARTS", required_unless_present = "cancel")]
    into: Option<u32>,
    /// Do not wait until it is done
    #[arg(long)]
    no_wait: bool,
    /// Leave it in one piece after all, if nothing was handed over yet
    #[arg(long, conflicts_with_all = ["into", "no_wait"])]
    cancel: bool,
    #[command(flatten)]
    consent: Consent,
}

#[derive(Debug, Serialize)]
struct Shown<'a> {
    stream: &'a str,
    parts: u32,
    mode: &'static str,
    #[serde(flatten)]
    left: Left,
}

pub async fn run(context: &Context, args: RepartitionArgs) -> anyhow::Result<()> {
    let RepartitionArgs { into, no_wait, consent, .. } = args;
    let keys = context.keys()?;
    let stream = keys.stream();
    let Some(into) = into else { return cancel(context, &keys, &consent).await };
    Split::new(stream, &[into]).map_err(|error| VerbError::Usage(error.to_string()))?;
    let mut connection = context.connect().await?;
    if let Some(why) = no_such_part(&connection, stream).await? {
        return Err(VerbError::NotFound(why).into());
    }
    match mode(connection.clone(), stream).await? {
        Mode::Worked => {}
        Mode::Splitting { parts, .. } if parts == into => {
            note(format_args!("{stream} is being split into {into} parts already"));
            return if no_wait {
                show(context, &mut connection, &keys, into).await
            } else {
                follow(context, &keys, into).await
            };
        }
        Mode::Routed { parts, .. } if parts == into => {
            note(format_args!("{stream} is split into {into} parts already: nothing to do"));
            return show(context, &mut connection, &keys, into).await;
        }
        Mode::Splitting { parts, has_begun, .. } => {
            let or = if has_begun { "" } else { ", or cancel it:  herald repartition --cancel --reason '…'" };
            let why = format!("{stream} is being split into {parts} parts: wait until that is done{or}");
            return Err(VerbError::Refused(why).into());
        }
        Mode::Routed { parts, .. } => {
            let why = format!(
                "{stream} is split into {parts} parts, and stays so. Each of them can be split again:  \
                 herald repartition --stream {stream}:0 --into … --reason '…'"
            );
            return Err(VerbError::Refused(why).into());
        }
    }
    if let Some(why) = why_not_split(&mut connection, &keys, into).await? {
        return Err(VerbError::Refused(format!("{stream} cannot be split: {why}")).into());
    }
    let left = left_in(&mut connection, &keys).await?;
    let what = format!(
        "split {stream} into {into} parts for good, and hand over to them {} and {}; nothing of it is delivered meanwhile",
        words::count(left.unfinished, "unfinished delivery", "unfinished deliveries"),
        words::count(left.dead, "dead letter", "dead letters"),
    );
    if consent.confirm(&what)? == Go::DryRun {
        return Ok(());
    }
    let begun = consent.act(Act::Repartition).target(format_args!("{stream} into {into}"));
    let split = async |_: &mut _| {
        Asking::connect(context, consent.mark()).await?.one(&keys, &Asked::Repartition(into)).await?;
        if no_wait { show(context, &mut connection, &keys, into).await } else { follow(context, &keys, into).await }
    };
    audited(context, begun, split).await
}

/// As long as its owner has not begun to hand over.
async fn cancel(context: &Context, keys: &PartitionKeys, consent: &Consent) -> anyhow::Result<()> {
    let stream = keys.stream();
    let why = match mode(context.connect().await?, stream).await? {
        // It may be about to be split: only its owner knows.
        Mode::Worked | Mode::Splitting { has_begun: false, .. } => None,
        Mode::Splitting { parts, .. } => {
            Some(format!("{stream} has begun to hand over to {parts} parts: there is no way back"))
        }
        Mode::Routed { parts, .. } => Some(format!("{stream} is split into {parts} parts, and stays so")),
    };
    if let Some(why) = why {
        return Err(VerbError::Refused(why).into());
    }
    if consent.confirm(&format!("leave {stream} in one piece"))? == Go::DryRun {
        return Ok(());
    }
    let begun = consent.act(Act::Repartition).target(format_args!("{stream} --cancel"));
    let ask =
        async |_: &mut _| Asking::connect(context, consent.mark()).await?.one(keys, &Asked::CancelRepartition).await;
    audited(context, begun, ask).await?;
    note(format_args!("{stream} stays in one piece"));
    Ok(())
}

/// Until it is split.
async fn follow(context: &Context, keys: &PartitionKeys, into: u32) -> anyhow::Result<()> {
    let stream = keys.stream();
    let mut connection = context.connect().await?;
    let (began, mut told_at, mut is_told_whom): (Instant, Option<Instant>, bool) = (clock::now(), None, false);
    loop {
        match mode(connection.clone(), stream).await? {
            Mode::Routed { .. } => break,
            Mode::Worked if told_at.is_some() => {
                return Err(
                    VerbError::Refused(format!("{stream} stays in one piece: somebody has cancelled it")).into()
                );
            }
            Mode::Worked if clock::now() >= began + BEGINS_WITHIN => {
                let why = format!(
                    "the owner of {stream} has not begun to split it: its log says why, or another worker has come"
                );
                return Err(VerbError::Unanswered(why).into());
            }
            Mode::Splitting { .. } if told_at.is_none_or(|told| clock::now() >= told + TOLD_EVERY) => {
                told_at = Some(clock::now());
                let Left { unfinished, dead } = left_in(&mut connection, keys).await?;
                note(format_args!(
                    "{} and {} are still to be handed over",
                    words::count(unfinished, "unfinished delivery", "unfinished deliveries"),
                    words::count(dead, "dead letter", "dead letters")
                ));
            }
            Mode::Worked if !is_told_whom && clock::now() >= began + TOLD_AFTER => {
                is_told_whom = true;
                note(format_args!("the owner of {stream} has agreed, and has not begun yet"));
            }
            Mode::Worked | Mode::Splitting { .. } => {}
        }
        sleep(LOOK_EVERY).await;
    }
    note(format_args!("{stream} is split into {into} parts"));
    show(context, &mut connection, keys, into).await
}

async fn show(context: &Context, connection: &mut Connection, keys: &PartitionKeys, parts: u32) -> anyhow::Result<()> {
    let (mode, left) = (mode(connection.clone(), keys.stream()).await?.name(), left_in(connection, keys).await?);
    let shown = Shown { stream: keys.stream(), parts, mode, left };
    let rows = [
        ("stream", keys.stream().to_owned()),
        ("parts", words::number(parts.into())),
        ("mode", mode.to_owned()),
        ("unfinished", words::number(left.unfinished)),
        ("dead letters", words::number(left.dead)),
    ];
    context.output.one(&shown, &rows)
}
