//! What the terminal shows while the demo runs, and the summary at its end. Plain lines where there is no terminal.

use std::{
    io::{IsTerminal, Write},
    path::Path,
    time::Duration,
};

use tokio::time::{Interval, MissedTickBehavior, interval};

use super::{
    ledger::{Arrival, Ledger, Sums},
    merchant::Merchant,
    receiver::Said,
};
use crate::{
    dispatch::{
        core::{About, CoreHappening},
        partition::Happening,
    },
    facts::id::EndpointId,
    store::watch::Gauges,
    surface::words,
};

/// How often the sums are shown.
const SUMS_EVERY: Duration = Duration::from_secs(2);

/// Above this many deliveries a second, single ones are not shown: nobody could read them.
const READABLE: u32 = 40;

#[derive(Clone, Copy)]
enum Tone {
    Plain,
    Good,
    Odd,
    Bad,
}

pub struct Show {
    has_colour: bool,
    tick: Interval,
    shown: u32,
    left_out: u32,
}

impl Show {
    pub fn begin(redis_url: &str, port: u16, intents_url: &str, key: &str, folder: &Path) -> Self {
        let has_colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let mut tick = interval(SUMS_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.reset();
        let show = Self { has_colour, tick, shown: 0, left_out: 0 };
        let program = std::env::current_exe().map_or("herald".to_owned(), |path| path.display().to_string());
        show.line("Herald delivers to five sample merchants:");
        for merchant in Merchant::ALL {
            show.line(&format!("  {:8} {}", merchant.name(), merchant.temper()));
        }
        show.line("");
        show.line("Look inside from a second terminal:");
        show.line(&format!("  export HERALD_REDIS_URL={redis_url}"));
        for verb in ["endpoint list", "dead-letter list", "delivery list --endpoint ep_dead", "doctor"] {
            show.line(&format!("  {program} {verb}"));
        }
        show.line(&format!("  curl -s 127.0.0.1:{port}/metrics | grep -v '^#'"));
        show.line("Or be the healthy merchant:");
        let headers = format!("-H 'Authorization: Basic {key}' -H 'version: 2025-09-10'");
        show.line(&format!("  curl -s {headers} {intents_url}/reconciliation"));
        show.line("");
        show.line(&format!("  redis-cli -u {redis_url} keys '*'      # its files: {}", folder.display()));
        show.line("");
        show
    }

    pub async fn tick(&mut self) {
        self.tick.tick().await;
    }

    pub fn said(&mut self, said: &Said) {
        if self.shown >= READABLE * SUMS_EVERY.as_secs() as u32 {
            self.left_out += 1;
            return;
        }
        self.shown += 1;
        let (tone, what) = match (said.arrival, said.status) {
            (Some(Arrival::First { after }), _) => (Tone::Good, format!("after {}", latency(after))),
            (Some(Arrival::Duplicate), _) => (Tone::Odd, "again: a duplicate".to_owned()),
            (Some(Arrival::OutOfOrder), _) => (Tone::Bad, "OUT OF ORDER".to_owned()),
            (None, _) => (Tone::Odd, String::new()),
        };
        let line = format!("{:8} {} {} attempt {} {what}", said.merchant.name(), said.status, said.event, said.attempt);
        self.paint(tone, line.trim_end());
    }

    pub fn happened(&mut self, happening: &Happening) {
        match happening {
            Happening::Core(CoreHappening::Failed { about: About { id, .. }, attempt, outcome, retry_in_ms }) => self
                .paint(
                    Tone::Odd,
                    &format!(
                        "{:8} attempt {attempt} of {id}: {outcome}; again in {}",
                        name(&id.endpoint),
                        words::time_us(retry_in_ms * 1_000)
                    ),
                ),
            Happening::Core(CoreHappening::Dead { about: About { id, .. }, reason, attempts }) => self.paint(
                Tone::Bad,
                &format!(
                    "{:8} dead letter {id}: {} after {}",
                    name(&id.endpoint),
                    reason.name(),
                    words::count(u64::from(*attempts), "attempt", "attempts")
                ),
            ),
            Happening::Core(CoreHappening::BreakerOpened { endpoint }) => {
                self.paint(Tone::Bad, &format!("{:8} breaker open: its deliveries wait in the backlog", name(endpoint)))
            }
            _ => {}
        }
    }

    pub fn sums(&mut self, sums: &Sums) {
        let left_out = match std::mem::take(&mut self.left_out) {
            0 => String::new(),
            count => format!(" ({count} lines not shown)"),
        };
        self.shown = 0;
        let Sums { events, delivered, missing, out_of_order, duplicates, .. } = sums;
        let [events, delivered, missing, duplicates, out_of_order] =
            [events, delivered, missing, duplicates, out_of_order].map(|many| words::number(*many));
        let [p50, p99] = [sums.p50, sums.p99].map(latency);
        self.line(&format!(
            "-- {events} events, {delivered} delivered, {missing} on their way, {duplicates} duplicates, \
             {out_of_order} out of order; healthy p50 {p50} p99 {p99}{left_out}"
        ));
    }

    pub fn summary(&self, ledger: &Ledger, left: &Gauges, refusals: u64, seed: u64) {
        let sums = ledger.sums();
        self.line("");
        self.line(&format!("{:10} {:>9} {:>9}", "merchant", "told", "delivered"));
        for merchant in Merchant::ALL {
            let [owed, arrived] = [ledger.owed_to(merchant), ledger.arrived_at(merchant)].map(words::number);
            self.line(&format!("{:10} {owed:>9} {arrived:>9}", merchant.name()));
        }
        self.line("");
        for (name, value) in [
            ("events", words::number(sums.events)),
            ("delivered", words::number(sums.delivered)),
            ("dead letters", words::number(left.dead)),
            ("unfinished", words::number(left.unfinished)),
            ("lost", words::number(sums.missing)),
            ("out of order", words::number(sums.out_of_order)),
            ("duplicates", words::number(sums.duplicates)),
            ("bad signatures", words::number(sums.bad_signatures)),
            ("not taken", words::number(refusals)),
            ("latency", format!("p50 {}, p99 {} (healthy, change to receipt)", latency(sums.p50), latency(sums.p99))),
            ("seed", seed.to_string()),
        ] {
            self.line(&format!("{name:15} {value}"));
        }
        if ledger.arrived_at(Merchant::Gone) < ledger.owed_to(Merchant::Gone) {
            self.line(
                "Told to `gone` after its 410 and not delivered: its endpoint is disabled and takes nothing more.",
            );
        }
    }

    pub fn line(&self, line: &str) {
        self.paint(Tone::Plain, line);
    }

    fn paint(&self, tone: Tone, line: &str) {
        let colour = match tone {
            Tone::Plain => "",
            Tone::Good => "\x1b[32m",
            Tone::Odd => "\x1b[33m",
            Tone::Bad => "\x1b[31m",
        };
        let mut out = std::io::stdout().lock();
        // Readers may have left; the demo's verdict does not depend on them.
        let _ = match self.has_colour && !colour.is_empty() {
            true => writeln!(out, "{colour}{line}\x1b[0m"),
            false => writeln!(out, "{line}"),
        };
    }
}

fn name(endpoint: &EndpointId) -> &str {
    endpoint.as_str().trim_start_matches("ep_")
}

fn latency(latency: Duration) -> String {
    words::seconds(latency.as_secs_f64())
}
