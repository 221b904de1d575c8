//! `herald retry-schedule`: what the retry policy really does, computed from the policy that the dispatcher uses.

use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::endpoint::{RetryArgs, get};
use crate::{
    config::compact,
    facts::{
        id::EndpointId,
        retry::{RetryOverrides, RetryPolicy},
    },
    surface::{Context, Format},
};

#[derive(Debug, Args)]
pub struct RetryScheduleArgs {
    /// As this endpoint overrides it
    #[arg(long, value_name = "ENDPOINT")]
    endpoint: Option<EndpointId>,
    #[command(flatten)]
    retry: RetryArgs,
}

/// When an attempt comes if all before it fail at once and none asks for more time.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Step {
    attempt: u32,
    pause_min_ms: u64,
    pause_max_ms: u64,
    since_first_min_ms: u64,
    since_first_max_ms: u64,
    /// Some deliveries grow too old before this attempt, because chance lengthens their pauses.
    may_expire_before: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum End {
    /// The last attempt is made.
    Attempts,
    /// The delivery grows too old first.
    Age,
    /// Either, because chance lengthens the pauses.
    AttemptsOrAge,
}

#[derive(Debug, PartialEq, Serialize)]
struct Schedule {
    ends_by: End,
    max_attempts: u32,
    max_age_ms: u64,
    /// From the first attempt to the last one.
    span_min_ms: u64,
    span_max_ms: u64,
    steps: Vec<Step>,
}

pub async fn run(context: &Context, args: RetryScheduleArgs) -> anyhow::Result<()> {
    let configured = RetryPolicy::try_new(context.config.retry)?;
    let mut overrides = match &args.endpoint {
        Some(id) => get(&mut context.registry().await?, id).await?.retry,
        None => RetryOverrides::default(),
    };
    args.retry.apply(&mut overrides);
    print(context, &schedule(&configured.with(&overrides)?))
}

fn schedule(policy: &RetryPolicy) -> Schedule {
    let settings = policy.settings();
    let (mut least, mut most) = (Duration::ZERO, Duration::ZERO);
    let mut steps = vec![step(1, (Duration::ZERO, Duration::ZERO), (least, most), policy)];
    for (attempt, interval) in (2..).zip(policy.intervals()) {
        let pause = (interval.mul_f64(1.0 - settings.jitter), interval.mul_f64(1.0 + settings.jitter));
        (least, most) = (least.saturating_add(pause.0), most.saturating_add(pause.1));
        // A retry that would come after the greatest age is not waited for, whatever chance says.
        if policy.is_expired(least) {
            break;
        }
        steps.push(step(attempt, pause, (least, most), policy));
    }
    let made = steps.len() as u32;
    let may_expire = steps.last().is_some_and(|last| last.may_expire_before);
    let ends_by = match (made < settings.max_attempts, may_expire) {
        (true, _) => End::Age,
        (false, true) => End::AttemptsOrAge,
        (false, false) => End::Attempts,
    };
    let certain = steps.iter().rev().find(|step| !step.may_expire_before);
    let span = |step: Option<&Step>, of: fn(&Step) -> u64| step.map_or(0, of);
    Schedule {
        ends_by,
        max_attempts: settings.max_attempts,
        max_age_ms: ms(settings.max_age),
        span_min_ms: span(certain, |step| step.since_first_min_ms),
        span_max_ms: span(steps.last(), |step| step.since_first_max_ms).min(ms(settings.max_age)),
        steps,
    }
}

fn step(attempt: u32, pause: (Duration, Duration), since: (Duration, Duration), policy: &RetryPolicy) -> Step {
    Step {
        attempt,
        pause_min_ms: ms(pause.0),
        pause_max_ms: ms(pause.1),
        since_first_min_ms: ms(since.0),
        since_first_max_ms: ms(since.1),
        may_expire_before: policy.is_expired(since.1),
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn print(context: &Context, schedule: &Schedule) -> anyhow::Result<()> {
    if context.output.format() != Format::Table {
        return context.output.one(schedule, &[]);
    }
    let mut list = context.output.list(&["ATTEMPT", "PAUSE BEFORE IT", "SINCE THE FIRST", ""]);
    for step in &schedule.steps {
        list.push(step, || {
            let may = if step.may_expire_before { "unless it is too old by then" } else { "" };
            let pause = span(step.pause_min_ms, step.pause_max_ms);
            vec![
                step.attempt.to_string(),
                pause,
                span(step.since_first_min_ms, step.since_first_max_ms),
                may.to_owned(),
            ]
        })?;
    }
    list.finish()?;
    let age = short(schedule.max_age_ms);
    let end = match schedule.ends_by {
        End::Attempts => format!("after attempt {} (exhausted)", schedule.max_attempts),
        End::Age => format!("when it is {age} old (expired); attempt {} is never made", schedule.steps.len() + 1),
        End::AttemptsOrAge => {
            format!("after attempt {} (exhausted), or before it when it is {age} old (expired)", schedule.max_attempts)
        }
    };
    let span = span(schedule.span_min_ms, schedule.span_max_ms);
    context.output.text(&format!(
        "\nThe last attempt comes {span} after the first one. A delivery ends as a dead letter {end}.\n\
         The attempts' own time (at most {} each), a Retry-After, and waiting behind a breaker, a pause or its chain add to \
         this; age {age} ends a delivery in any case.",
        compact(context.config.attempt.timeout)
    ))
}

fn span(min_ms: u64, max_ms: u64) -> String {
    match min_ms == max_ms {
        true => short(min_ms),
        false => format!("{} to {}", short(min_ms), short(max_ms)),
    }
}

/// Long spans are rounded to the second: nobody plans with the rest.
fn short(ms: u64) -> String {
    let rounded = if ms >= 10_000 { ms / 1000 * 1000 } else { ms };
    compact(Duration::from_millis(rounded))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::retry::RetrySettings;

    fn of(change: impl FnOnce(&mut RetrySettings)) -> Schedule {
        let mut settings = RetrySettings::default();
        change(&mut settings);
        schedule(&RetryPolicy::try_new(settings).unwrap())
    }

    #[test]
    fn the_default_ends_by_its_attempts() {
        let schedule = of(|_| {});
        assert_eq!((schedule.steps.len(), schedule.ends_by), (12, End::Attempts));
        // 5 + 20 + 80 + 320 + 1280 + 5120 + 20480 + 4 × 43200 seconds, and 20 % about it.
        assert_eq!((schedule.span_min_ms, schedule.span_max_ms), (160_084_000, 240_126_000));
        assert_eq!((schedule.steps[1].pause_min_ms, schedule.steps[1].pause_max_ms), (4000, 6000));
    }

    #[test]
    fn the_page_for_merchants_has_the_default_schedule() {
        let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/merchants.md");
        let page = std::fs::read_to_string(page).unwrap();
        let (_, table) =
            page.split_once("| attempt | pause before it | since the first |\n| --- | --- | --- |\n").unwrap();
        let row = |step: &Step| match step.attempt {
            1 => "| 1 | | |".to_owned(),
            attempt => {
                let pause = span(step.pause_min_ms, step.pause_max_ms);
                format!("| {attempt} | {pause} | {} |", span(step.since_first_min_ms, step.since_first_max_ms))
            }
        };
        let schedule: Vec<_> = of(|_| {}).steps.iter().map(row).collect();
        assert_eq!(table.lines().take_while(|line| line.starts_with('|')).collect::<Vec<_>>(), schedule);
        assert_eq!(of(|_| {}).max_age_ms, 3 * 86_400_000, "the page says three days");
    }

    #[test]
    fn an_age_below_the_span_ends_it_earlier() {
        let schedule = of(|settings| settings.max_age = Duration::from_secs(3600));
        assert_eq!((schedule.steps.len(), schedule.ends_by), (6, End::Age));
        let schedule = of(|settings| settings.max_age = Duration::from_secs(60 * 3600));
        assert_eq!((schedule.steps.len(), schedule.ends_by), (12, End::AttemptsOrAge));
        assert!(schedule.steps[11].may_expire_before && !schedule.steps[9].may_expire_before);
    }

    #[test]
    fn a_single_attempt_has_no_pause() {
        let schedule = of(|settings| settings.max_attempts = 1);
        assert_eq!((schedule.steps.len(), schedule.span_max_ms, schedule.ends_by), (1, 0, End::Attempts));
    }
}
