//! The global switch: stops all sending at once, and lets it go on. It takes nothing away, so neither verb asks first:
//! someone who must stop everything has no time for questions.

use clap::Args;

use super::args::WhoAndWhy;
use crate::{
    facts::{audit::Act, endpoint::Mark},
    surface::{Context, audited, instant, note, of_confirmed},
};

#[derive(Debug, Args)]
pub struct PauseArgs {
    /// All endpoints of all accounts; `herald endpoint pause` pauses one
    #[arg(long, required = true)]
    all: bool,
    #[command(flatten)]
    change: WhoAndWhy,
}

#[derive(Debug, Args)]
pub struct ResumeArgs {
    /// All endpoints of all accounts; `herald endpoint resume` resumes one
    #[arg(long, required = true)]
    all: bool,
    #[command(flatten)]
    change: WhoAndWhy,
}

pub async fn pause(context: &Context, args: PauseArgs) -> anyhow::Result<()> {
    if let Some(mark) = paused(context).await {
        note(format_args!("all sending is {} already ({}); nothing was changed", by_whom(&mark), instant(mark.at_ms)));
        return Ok(());
    }
    let (changing, mark) = (context.changing()?, args.change.mark());
    let pause = async |_: &mut _| Ok(changing.change(async |registry| registry.pause_all(&mark).await).await?);
    let ((), confirmation) = audited(context, args.change.act(Act::Pause), pause).await?;
    note("all sending is paused: workers follow within a second, and what is being sent ends");
    note("events wait in Redis until:  herald resume --all --reason '…'");
    of_confirmed(&confirmation)
}

/// Who paused all sending, if anyone did. A mark that cannot be read must not hold up a verb.
pub async fn paused(context: &Context) -> Option<Mark> {
    let (_, pause) = context.registry().await.ok()?.position().await.ok()??;
    pause
}

pub fn by_whom(mark: &Mark) -> String {
    format!("paused by {}: {}", mark.by, mark.why)
}

/// For verbs that show what waits: says who has paused all sending and how to resume it. Returns whether it is paused.
pub async fn tell_if_paused(context: &Context) -> bool {
    let pause = paused(context).await;
    pause.iter().for_each(tell);
    pause.is_some()
}

pub fn tell(mark: &Mark) {
    note(format_args!("all sending is {}; `herald resume --all --reason '…'` lets it go on", by_whom(mark)));
}

pub async fn resume(context: &Context, args: ResumeArgs) -> anyhow::Result<()> {
    let (changing, mark) = (context.changing()?, args.change.mark());
    let resume = async |_: &mut _| Ok(changing.change(async |registry| registry.resume_all(&mark).await).await?);
    match audited(context, args.change.act(Act::Resume), resume).await? {
        (true, confirmation) => {
            note("sending goes on");
            of_confirmed(&confirmation)?;
        }
        (false, _) => note("nothing was paused; endpoints that are paused one by one stay so"),
    }
    Ok(())
}
