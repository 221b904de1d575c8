//! `herald sandbox …`: the simulated world around payment intents, whose clock can be moved. Scenarios have a folder of their own.

use clap::{ArgGroup, Args, Subcommand};
use serde::Serialize;

use super::{
    args::WhoAndMaybeWhy,
    intents::{of_service, service},
};
use crate::{
    facts::audit::Act,
    intents::{
        service::ServiceError,
        stamp::{Stamp, TimeSpan},
    },
    sandbox,
    store::intents::{ClockChange, ClockState},
    surface::{Context, VerbError, audited, words},
};

#[derive(Debug, Subcommand)]
pub enum SandboxVerb {
    /// The clock of all payment intents of this Redis
    Clock(ClockArgs),
    /// Run a scenario file against a service: calls, the customer, time, and what the merchant must be told
    Run(Box<sandbox::RunArgs>),
}

#[derive(Debug, Args)]
pub struct ClockArgs {
    #[command(subcommand)]
    verb: Option<ClockVerb>,
}

#[derive(Debug, Subcommand)]
enum ClockVerb {
    /// Show what time it is there, and how fast it passes [default]
    Show,
    /// Let time pass at once: 7d, 1h 30m or 7.00:00:00; answers when everything that was due has happened
    Advance(AdvanceArgs),
    /// Let the clock run so many times as fast as real time; 0 stops it
    Speed {
        /// Times real time, for example 60
        #[arg(value_parser = speed)]
        times: f64,
        #[command(flatten)]
        change: WhoAndMaybeWhy,
    },
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("how_far").required(true).args(["by_how_much", "to"]))]
struct AdvanceArgs {
    /// By how much
    #[arg(id = "by_how_much", value_name = "DURATION", value_parser = span)]
    by: Option<i64>,
    /// To this instant, such as 2027-01-01T00:00:00Z
    #[arg(long, value_name = "INSTANT", value_parser = instant)]
    to: Option<Stamp>,
    #[command(flatten)]
    change: WhoAndMaybeWhy,
}

/// As the API has it.
const MAX_SPEED: f64 = 1_000_000.0;

fn speed(text: &str) -> Result<f64, String> {
    let speed = text.parse().ok().filter(|speed| (0.0..=MAX_SPEED).contains(speed));
    speed.ok_or_else(|| format!("is no speed; write a number from 0 to {MAX_SPEED}"))
}

/// In microseconds.
fn span(text: &str) -> Result<i64, String> {
    sandbox::span(text).map(TimeSpan::micros)
}

fn instant(text: &str) -> Result<Stamp, String> {
    Stamp::parse(text).ok_or_else(|| "is no instant; write it as 2027-01-01T00:00:00Z".to_owned())
}

#[derive(Serialize)]
struct Shown {
    now: Stamp,
    speed: f64,
}

pub async fn run(context: &Context, verb: SandboxVerb) -> anyhow::Result<()> {
    match verb {
        SandboxVerb::Run(args) => sandbox::run(context, *args).await,
        SandboxVerb::Clock(ClockArgs { verb }) => clock(context, verb.unwrap_or(ClockVerb::Show)).await,
    }
}

/// In earnest, nobody moves the clock by which money is held, and nobody plays the customer.
pub fn require(context: &Context) -> Result<(), VerbError> {
    let why =
        "the sandbox is off: set HERALD_SANDBOX=true (intents.sandbox) where this Redis has only payments of tests";
    context.config.intents.sandbox.then_some(()).ok_or_else(|| VerbError::Refused(why.to_owned()))
}

async fn clock(context: &Context, verb: ClockVerb) -> anyhow::Result<()> {
    let service = service(context)?;
    match verb {
        ClockVerb::Show => {}
        ClockVerb::Advance(args) => {
            require(context)?;
            let by = args.by.unwrap_or_default();
            let (change, far) = match args.to {
                Some(to) => (ClockChange::To(to.0), format!("--to {to}")),
                None => (ClockChange::Advance(by), words::span(by.unsigned_abs() / 1_000)),
            };
            let begun = args.change.act(Act::SandboxClockAdvance).target(far);
            audited(context, begun, async |_| moved(service.advance(change).await)).await?;
        }
        ClockVerb::Speed { times, change } => {
            require(context)?;
            let begun = change.act(Act::SandboxClockSpeed).target(times);
            audited(context, begun, async |_| moved(service.set_speed(times).await)).await?;
        }
    }
    let (now, speed) = service.clock().await.map_err(of_service)?;
    let pace = if speed == 0.0 { "it stands still".to_owned() } else { format!("{speed} times real time") };
    context.output.one(&Shown { now, speed }, &[("now", now.to_string()), ("speed", pace)])
}

fn moved(state: Result<ClockState, ServiceError>) -> anyhow::Result<()> {
    let why = match state.map_err(of_service)? {
        ClockState::On { .. } | ClockState::UnderWay { .. } => return Ok(()),
        ClockState::Back { now } => format!("it is {} already: the clock never goes back", Stamp(now)),
        ClockState::Far { now } => format!("it is {}: the clock does not go past the year 2200", Stamp(now)),
    };
    Err(VerbError::Refused(why).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intents::stamp::DAY;

    #[test]
    fn a_span_is_written_in_either_form() {
        assert_eq!((span("7d"), span("7.00:00:00")), (Ok(7 * DAY), Ok(7 * DAY)));
        assert_eq!(span("1h 30m"), span("01:30:00"));
        for wrong in ["7", "-1d", "1y", "", "99999999999999d"] {
            assert!(span(wrong).is_err(), "{wrong}");
        }
        assert!(speed("0").is_ok() && speed("1000001").is_err() && speed("NaN").is_err());
    }
}
