//! The first page: what is wrong now, then how everything does.

use askama::Template;
use axum::response::Response;
use serde_json::{Value, json};

use super::{
    answers::{Issue, List, Overview, Stats},
    filters,
    page::{Frame, shown},
    plot,
    session::Notice,
    visit::{Fields, Visit, see},
};
use crate::{http::problem::Problem, view::words};

/// A worker reads what is published at once; after this something is in its way.
const LATE_AFTER_MS: u64 = 60_000;

/// Issues that stand at the top; the others have a page.
const MAX_ISSUES: usize = 8;

#[derive(Template)]
#[template(path = "console/overview.html", escape = "visible")]
struct OverviewPage {
    frame: Frame,
    may_operate: bool,
    stats: Stats,
    overview: Overview,
    issues: List<Issue>,
    alarms: Vec<String>,
    plots: [String; 3],
}

impl OverviewPage {
    fn delivered(&self) -> u64 {
        self.overview.minutes.iter().map(|minute| minute.delivered).sum()
    }

    fn failed(&self) -> u64 {
        self.overview.minutes.iter().map(|minute| minute.failed).sum()
    }

    /// Rounded down, so that 100 means all.
    fn success(&self) -> String {
        let (delivered, failed) = (self.delivered(), self.failed());
        (delivered * 1_000)
            .checked_div(delivered + failed)
            .map_or_else(|| "–".to_owned(), |part| format!("{}.{} %", part / 10, part % 10))
    }

    /// Of the last minute that is over and of this one so far.
    fn rate(&self) -> String {
        let minutes = self.overview.minutes.iter().rev().take(2);
        let (delivered, since) = minutes.fold((0, 0), |(sum, _), minute| (sum + minute.delivered, minute.at.ms()));
        let elapsed_ms = self.overview.now.ms().saturating_sub(since).max(1);
        words::rate(delivered as f64 * 1_000.0 / elapsed_ms as f64)
    }

    fn dead_in_last_hours(&self) -> u64 {
        self.overview.dead_by_hour.iter().rev().take(2).sum()
    }
}

pub async fn show(visit: Visit) -> Result<Response, Problem> {
    if !visit.is_staff() {
        return Ok(see("/console/endpoints"));
    }
    let stats: Stats = visit.get("/v1/stats").await?;
    let overview: Overview = visit.get("/v1/overview").await?;
    let issues: List<Issue> = visit.get(&format!("/v1/issues?limit={MAX_ISSUES}")).await?;
    let page = OverviewPage {
        frame: visit.frame("Overview"),
        may_operate: visit.may_operate(),
        alarms: alarms(&stats, &overview),
        plots: [
            plot::attempts("Attempts by minute", &overview.minutes),
            plot::attempts("Attempts by hour", &overview.hours),
            plot::by_hour(
                "Dead letters by hour",
                &overview.dead_by_hour,
                &overview.now,
                ["dead letter", "dead letters"],
            ),
        ],
        stats,
        overview,
        issues,
    };
    Ok(shown(&page))
}

/// What is wrong with Herald itself.
fn alarms(stats: &Stats, overview: &Overview) -> Vec<String> {
    let mut alarms = Vec::new();
    if stats.owner.is_none() {
        alarms.push("No worker owns the partition: nothing is sent. Start one.".to_owned());
    }
    if overview.lag_ms.is_some_and(|lag| lag > LATE_AFTER_MS) {
        let lag = words::span(overview.lag_ms.unwrap_or_default());
        alarms.push(format!("The oldest event that nobody has read is {lag} old."));
    }
    alarms
}

pub async fn pause(visit: Visit, fields: Fields) -> Result<Response, Problem> {
    visit.post::<Value>("/v1/pause", &json!({ "reason": fields.get("reason") })).await?;
    Ok(visit.back("/console", &Notice::good("All sending is paused. Events wait in Redis.")))
}

pub async fn resume(visit: Visit, fields: Fields) -> Result<Response, Problem> {
    visit.post::<Value>("/v1/resume", &json!({ "reason": fields.get("reason") })).await?;
    Ok(visit.back("/console", &Notice::good("Sending goes on. Endpoints that are paused one by one stay so.")))
}
