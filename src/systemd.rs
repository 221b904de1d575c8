//! Tells systemd, where it started this process as a unit of `Type=notify`, how Herald is: that it is up, in words what `/readyz`
//! answers, that it lives, that it takes its keys again when it is asked to (SIGHUP), and that it stops. Elsewhere it does nothing. Decides nothing: a unit's settings do.

use std::{
    env,
    time::{Duration, Instant},
};

use sd_notify::NotifyState;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{clock, keyring::Keyring, telemetry::readiness::Readiness};

/// A unit is up with Redis' first answer. Without one it is up after so long all the same: what waits for it should not fail
/// because Redis comes later, and `/readyz` tells that it is not there.
const UP_AFTER: Duration = Duration::from_secs(10);

/// How often it looks whether there is something to tell; more often where a watchdog wants it.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Until `end`. `stopping` begins the stop.
pub async fn tell(readiness: Readiness, keyring: Keyring, stopping: CancellationToken, end: CancellationToken) {
    if env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let mut told = Told::new(sd_notify::watchdog_enabled(), clock::now());
    let mut hangup = signal(SignalKind::hangup()).ok();
    let telling = async {
        loop {
            told.tell(&readiness, stopping.is_cancelled(), clock::now());
            tokio::select! {
                () = sleep(told.look_every()) => {}
                () = stopping.cancelled(), if !told.is_stopping => {}
                // Before it is up, or once it stops, there is nothing to reload: systemd knows another state of it.
                () = asked(&mut hangup), if told.is_up && !told.is_stopping => reload(&keyring),
            }
        }
    };
    end.run_until_cancelled(telling).await;
}

async fn asked(hangup: &mut Option<Signal>) {
    match hangup {
        Some(hangup) => drop(hangup.recv().await),
        None => std::future::pending().await,
    }
}

/// Whoever waits for `systemctl reload` knows afterwards that the keys of now are in use, or what is wrong with them from the log. With
/// the time, as units of `Type=notify-reload` want it.
fn reload(keyring: &Keyring) {
    let now = NotifyState::monotonic_usec_now();
    notify(&[NotifyState::Reloading].into_iter().chain(now).collect::<Vec<_>>());
    // Whoever follows the file has the same signal, and says what is wrong with it.
    let _ = keyring.look();
    notify(&[NotifyState::Ready]);
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!(%error, "cannot tell systemd how Herald is");
    }
}

/// What systemd knows so far.
struct Told {
    began: Instant,
    /// After so long without a sign of life systemd ends the process and starts another.
    watchdog: Option<Duration>,
    is_up: bool,
    is_stopping: bool,
    status: String,
    fed_at: Option<Instant>,
}

impl Told {
    fn new(watchdog: Option<Duration>, now: Instant) -> Self {
        Self { began: now, watchdog, is_up: false, is_stopping: false, status: String::new(), fed_at: None }
    }

    fn look_every(&self) -> Duration {
        self.feed_every().map_or(LOOK_EVERY, |every| every.min(LOOK_EVERY))
    }

    /// Often enough that one sign which comes late does no harm.
    fn feed_every(&self) -> Option<Duration> {
        self.watchdog.map(|watchdog| watchdog / 4)
    }

    fn tell(&mut self, readiness: &Readiness, is_stopping: bool, now: Instant) {
        let (states, status) = (self.news(readiness, is_stopping, now), self.status.clone());
        let states: Vec<_> = states.into_iter().map(|news| news.state(&status)).collect();
        if !states.is_empty() {
            notify(&states);
        }
    }

    /// What is new since the last time, as systemd is to know it.
    fn news(&mut self, readiness: &Readiness, is_stopping: bool, now: Instant) -> Vec<News> {
        let mut news = Vec::new();
        if !self.is_up && (readiness.redis_answers() || now.saturating_duration_since(self.began) >= UP_AFTER) {
            self.is_up = true;
            news.push(News::Up);
        }
        if is_stopping && !self.is_stopping {
            self.is_stopping = true;
            news.push(News::Stops);
        }
        let status = match readiness.verdict(now) {
            // The worker says so a moment later, and may end before the next look.
            _ if is_stopping => "stopping".to_owned(),
            Ok(()) => "ready".to_owned(),
            Err(reasons) => format!("not ready: {}", reasons.join("; ")),
        };
        if status != self.status {
            self.status = status;
            news.push(News::Status);
        }
        let is_hungry = |every| self.fed_at.is_none_or(|at| now.saturating_duration_since(at) >= every);
        if self.feed_every().is_some_and(is_hungry) && readiness.is_alive(now) {
            self.fed_at = Some(now);
            news.push(News::Lives);
        }
        news
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    Up,
    Stops,
    Status,
    /// The worker's loop had its turn, and the runtime of everything else has, or this would not be told.
    Lives,
}

impl News {
    fn state(self, status: &str) -> NotifyState<'_> {
        match self {
            Self::Up => NotifyState::Ready,
            Self::Stops => NotifyState::Stopping,
            Self::Status => NotifyState::Status(status),
            Self::Lives => NotifyState::Watchdog,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::readiness::SILENT_AFTER;

    #[test]
    fn a_unit_is_up_with_the_first_answer_of_redis_or_without_it_later() {
        let now = clock::now();
        let (mut told, readiness) = (Told::new(None, now), Readiness::new());
        assert_eq!(told.news(&readiness, false, now), [News::Status]);
        assert_eq!(told.status, "not ready: Redis does not answer");
        assert_eq!(told.news(&readiness, false, now + UP_AFTER - Duration::from_millis(1)), []);
        assert_eq!(told.news(&readiness, false, now + UP_AFTER), [News::Up]);

        let mut told = Told::new(None, now);
        readiness.set_redis(true);
        assert_eq!(told.news(&readiness, false, now), [News::Up, News::Status]);
        assert_eq!(told.status, "ready");
        assert_eq!(told.news(&readiness, false, now + 2 * UP_AFTER), [], "it is up once, and nothing is new");
    }

    #[test]
    fn a_stop_is_told_once_whether_or_not_the_worker_knows_of_it() {
        let now = clock::now();
        let (mut told, readiness) = (Told::new(None, now), Readiness::new());
        readiness.set_redis(true);
        told.news(&readiness, false, now);
        assert_eq!(told.news(&readiness, true, now), [News::Stops, News::Status]);
        assert_eq!(told.status, "stopping");
        readiness.set_draining();
        assert_eq!(told.news(&readiness, true, now), []);
    }

    #[test]
    fn the_watchdog_is_fed_as_long_as_the_workers_loop_has_its_turn() {
        let now = clock::now();
        let watchdog = Duration::from_secs(60);
        let (mut told, readiness) = (Told::new(Some(watchdog), now), Readiness::new());
        readiness.set_redis(true);
        assert_eq!(told.news(&readiness, false, now), [News::Up, News::Status], "the worker has not begun");
        readiness.beat(now);
        assert_eq!(told.news(&readiness, false, now), [News::Lives]);
        readiness.beat(now + watchdog / 4);
        assert_eq!(told.news(&readiness, false, now + watchdog / 4 - Duration::from_millis(1)), [], "not yet hungry");
        assert_eq!(told.news(&readiness, false, now + watchdog / 4), [News::Lives]);
        let later = now + watchdog / 2;
        readiness.beat(later - SILENT_AFTER);
        assert!(!told.news(&readiness, false, later).contains(&News::Lives), "the worker is stuck");
        readiness.beat(later);
        assert!(told.news(&readiness, false, later).contains(&News::Lives), "and goes on");
    }
}
