//! How an endpoint's receiver does, beside the endpoint itself: read from what its owner published and from what waits in Redis.

use crate::{
    config::compact,
    facts::{
        health::{BreakerState, Totals, Verdict},
        health_view::HealthView,
        id::EndpointId,
    },
    store::queries::Queries,
    surface::{Context, when, words},
};

/// Reads it for several endpoints of one list.
pub struct Reader {
    queries: Queries,
    has_owner: bool,
    pub now_ms: u64,
}

impl Reader {
    pub async fn new(context: &Context) -> anyhow::Result<Self> {
        let mut queries = Queries::new(context.connect().await?, context.keys()?);
        let (has_owner, now_ms) = (queries.lease().await?.is_some(), queries.now_ms().await?);
        Ok(Self { queries, has_owner, now_ms })
    }

    pub async fn many(&mut self, endpoints: &[EndpointId]) -> anyhow::Result<Vec<HealthView>> {
        let health = self.queries.health_of(endpoints).await?;
        let waiting = self.queries.waiting_of(endpoints).await?;
        let all = endpoints.iter().zip(health).zip(waiting);
        let view = |((endpoint, health), waiting): ((&EndpointId, Option<_>), _)| {
            HealthView::of(endpoint, health.as_ref(), waiting, self.has_owner, self.now_ms)
        };
        Ok(all.map(view).collect())
    }

    /// One endpoint, with the oldest that waits for it.
    pub async fn one(&mut self, endpoint: &EndpointId) -> anyhow::Result<HealthView> {
        let health = self.queries.health_of(std::slice::from_ref(endpoint)).await?.pop().flatten();
        let waiting = self.queries.waiting_with_oldest(endpoint).await?;
        Ok(HealthView::of(endpoint, health.as_ref(), waiting, self.has_owner, self.now_ms))
    }
}

/// In a list: one or two words, which wrap.
pub fn cell(view: &HealthView, now_ms: u64) -> String {
    match (view.verdict, view.failing_since_ms, view.last_15_minutes.success_percent) {
        (Some(Verdict::Failing), Some(since_ms), _) => {
            format!("failing {}", words::span(now_ms.saturating_sub(since_ms)))
        }
        (Some(Verdict::Unsteady), _, Some(percent)) => format!("unsteady {percent}%"),
        _ => view.word().to_owned(),
    }
}

/// What `endpoint show` says of it.
pub fn fields(endpoint: &EndpointId, view: &HealthView, now_ms: u64) -> Vec<(&'static str, String)> {
    let mut fields = vec![("health", verdict(view, now_ms))];
    if let Some(as_of_ms) = view.as_of_ms {
        fields.push(("as of", as_of(view, as_of_ms, now_ms)));
        fields.push(("breaker", breaker(view.breaker.unwrap_or_default(), now_ms)));
        let (in_flight, window) = (view.in_flight.unwrap_or(0), view.window.unwrap_or(0));
        fields.push(("under way", format!("{in_flight}; {window} may be")));
        fields.push(("last 15 min", totals(&view.last_15_minutes)));
        fields.push(("last day", totals(&view.last_day)));
        let last_success = view.last_success_ms.map_or("none that is known".to_owned(), |ms| when(ms, now_ms));
        fields.push(("last success", last_success));
    }
    if let Some(failure) = &view.last_failure {
        let detail = if failure.detail.is_empty() { String::new() } else { format!(": {}", failure.detail) };
        fields.push(("last failure", format!("{}: it {}{detail}", when(failure.at_ms, now_ms), failure.says)));
        fields.push(("look at it", format!("herald delivery show {}", failure.delivery)));
    }
    fields.push(("waiting", waiting(view, now_ms)));
    fields.push(("letters", letters(endpoint, view.waiting.letters)));
    if let Some(skipped) = view.skipped {
        let (count, last) = (words::count(skipped.count, "event", "events"), when(skipped.last_ms, now_ms));
        fields.push(("skipped", format!("{count} while it was disabled, the last {last}")));
    }
    fields
}

fn verdict(view: &HealthView, now_ms: u64) -> String {
    match (view.verdict, view.failing_since_ms) {
        (Some(Verdict::Failing), Some(since_ms)) => {
            let attempts = words::count(view.failed_since, "attempt", "attempts");
            format!("failing since {}: {attempts}, and none succeeded", when(since_ms, now_ms))
        }
        (Some(Verdict::Unsteady), _) => "unsteady: some of its attempts fail".to_owned(),
        (Some(Verdict::Idle), _) => "idle: nothing was sent to it within a day".to_owned(),
        (Some(verdict), _) => verdict.name().to_owned(),
        (None, _) => "unknown: nothing was ever sent to it, or no worker of this version has run".to_owned(),
    }
}

fn as_of(view: &HealthView, as_of_ms: u64, now_ms: u64) -> String {
    match view.has_owner {
        true => words::ago(as_of_ms, now_ms),
        false => format!("{}; no worker owns the stream, so it is out of date", words::ago(as_of_ms, now_ms)),
    }
}

fn breaker(state: BreakerState, now_ms: u64) -> String {
    match state {
        BreakerState::Closed => "closed".to_owned(),
        BreakerState::Open { next_probe_ms } if next_probe_ms > now_ms => {
            format!("open; the next probe {}", words::ago(next_probe_ms, now_ms))
        }
        BreakerState::Open { .. } => "open; the next probe goes out as soon as there is something to send".to_owned(),
        BreakerState::HalfOpen { probes } => {
            format!("half-open; {} may be out", words::count(u64::from(probes), "probe", "probes"))
        }
    }
}

fn totals(totals: &Totals) -> String {
    let attempts = totals.delivered + totals.failed;
    let Some(percent) = totals.success_percent else { return "no attempts".to_owned() };
    let took = match (totals.mean_ms, totals.slowest_ms) {
        (Some(mean), Some(slowest)) => format!("; took {} on average, {} at most", ms(mean), ms(slowest)),
        _ => String::new(),
    };
    format!("{percent} % of {} delivered{took}", words::count(attempts, "attempt", "attempts"))
}

fn ms(ms: u64) -> String {
    compact(std::time::Duration::from_millis(ms))
}

fn waiting(view: &HealthView, now_ms: u64) -> String {
    let waiting = &view.waiting;
    let age = waiting.oldest.as_ref().map(|oldest| match oldest.entry.age_ms(now_ms) {
        Some(age_ms) => format!("; the oldest for {}: {oldest}", words::span(age_ms)),
        None => format!("; the oldest: {oldest}"),
    });
    match waiting.unfinished {
        0 => "nothing".to_owned(),
        unfinished => format!(
            "{} unfinished, {} of them parked{}",
            words::number(unfinished),
            words::number(waiting.parked),
            age.unwrap_or_default()
        ),
    }
}

fn letters(endpoint: &EndpointId, count: u64) -> String {
    match count {
        0 => "none".to_owned(),
        count => format!("{} (herald dead-letter list --endpoint {endpoint})", words::number(count)),
    }
}
