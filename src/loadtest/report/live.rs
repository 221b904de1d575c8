//! What is seen while a run runs: a view that fills the terminal, or a plain line a second if there is no terminal.
//! Owns the terminal from [`Live::open`] to [`Live::close`], and gives it back whatever happens. Never slows a run:
//! what it cannot take at once is left out. On `q`, Ctrl-C or a signal it only records the wish in [`Wishes`]; the code
//! that runs the load acts on it.

mod history;
mod plain;
mod screen;
mod terminal;

use std::{
    io::{self, IsTerminal},
    sync::mpsc::{SyncSender, TrySendError, sync_channel},
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinHandle as Task,
};
use tokio_util::sync::CancellationToken;

use super::progress::{Heading, Progress};

/// Told twice a second, and drawn at once: more wait only while the terminal does not accept what is written.
const QUEUE: usize = 64;

/// What the user has asked for.
#[derive(Debug, Clone, Default)]
pub struct Wishes {
    /// End the load now, wait for what is unfinished as always, judge and report.
    pub end: CancellationToken,
    /// Asked a second time: wait for nothing more. The processes of the run still have to be ended.
    pub abort: CancellationToken,
}

impl Wishes {
    /// `q`, Ctrl-C or a signal.
    fn ask(&self) {
        match self.end.is_cancelled() {
            false => self.end.cancel(),
            true => self.abort.cancel(),
        }
    }
}

/// What the thread of the view is told.
enum Told {
    Progress(Box<Progress>),
    Said { at: Duration, text: String },
}

/// A view of a run. Everything goes to stderr: stdout is for the result.
pub struct Live {
    /// Dropped to end the view.
    to: Option<SyncSender<Told>>,
    view: Option<JoinHandle<()>>,
    _signals: Signals,
}

/// Turns Ctrl-C and signals into wishes until it is dropped.
pub struct Signals(Task<()>);

impl Signals {
    /// Must be called within a tokio runtime.
    pub fn watch(wishes: Wishes) -> io::Result<Self> {
        watch_signals(wishes).map(Self)
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Where the view is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Screen,
    Lines,
}

impl Place {
    /// The whole screen if both ends are a terminal that can be steered.
    pub fn of_this_process() -> Self {
        let is_steered = std::env::var_os("TERM").is_some_and(|term| term != "dumb");
        match io::stderr().is_terminal() && io::stdin().is_terminal() && is_steered {
            true => Self::Screen,
            false => Self::Lines,
        }
    }
}

impl Live {
    /// Must be called within a tokio runtime. Fails when the terminal or the signals cannot be had.
    pub fn open(heading: Heading, place: Place, wishes: Wishes) -> io::Result<Self> {
        let signals = Signals::watch(wishes.clone())?;
        let (to, told) = sync_channel(QUEUE);
        let view = match place {
            Place::Screen => {
                let terminal = terminal::Held::take()?;
                let view = move || terminal::show(terminal, screen::State::new(heading), &told, &wishes);
                thread::Builder::new().name("live view".to_owned()).spawn(view)
            }
            Place::Lines => {
                let view = move || plain::show(plain::Lines::new(io::stderr()), &heading, &told);
                thread::Builder::new().name("live lines".to_owned()).spawn(view)
            }
        };
        Ok(Self { to: Some(to), view: Some(view?), _signals: signals })
    }

    /// Twice a second.
    pub fn show(&self, progress: Progress) {
        self.tell(Told::Progress(Box::new(progress)));
    }

    /// A line of the log: a fault, a phase, a first broken promise. `at` is since the load began.
    pub fn say(&self, at: Duration, text: impl Into<String>) {
        self.tell(Told::Said { at, text: text.into() });
    }

    /// Gives the terminal back. Dropping does the same.
    pub fn close(self) {}

    fn tell(&self, told: Told) {
        // A terminal that is stuck must not make the run wait: what it did not accept is not shown.
        match self.to.as_ref().map(|to| to.try_send(told)) {
            Some(Ok(()) | Err(TrySendError::Full(_) | TrySendError::Disconnected(_))) | None => {}
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        // The view looks for this ten times a second.
        self.to = None;
        if let Some(view) = self.view.take() {
            // It has given the terminal back even if it panicked; nothing else can be done about that here.
            let _ = view.join();
        }
    }
}

fn watch_signals(wishes: Wishes) -> io::Result<Task<()>> {
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = term.recv() => {}
                _ = interrupt.recv() => {}
                _ = hangup.recv() => {}
            }
            wishes.ask();
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_signal_ends_the_load_and_the_second_the_wait() {
        let wishes = Wishes::default();
        let live = Live::open(Heading::default(), Place::Lines, wishes.clone()).unwrap();
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGHUP).unwrap();
        wishes.end.cancelled().await;
        assert!(!wishes.abort.is_cancelled());
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGTERM).unwrap();
        wishes.abort.cancelled().await;
        live.close();
    }

    #[tokio::test]
    async fn a_view_that_takes_nothing_makes_nobody_wait() {
        let live = Live::open(Heading::default(), Place::Lines, Wishes::default()).unwrap();
        (0..10 * QUEUE).for_each(|_| live.show(Progress::default()));
        live.close();
    }

    /// `cargo test --lib a_view_for_eyes -- --ignored --nocapture` on a terminal shows half a minute in fast motion;
    /// with `WATCH=panic` it ends by a panic.
    #[tokio::test]
    #[ignore = "for eyes"]
    async fn a_view_for_eyes() {
        let heading = Heading {
            scenario: "outage-and-recovery".to_owned(),
            description: "Redis goes away under load; everything is delivered all the same.".to_owned(),
            seed: 42,
            target: "2 workers and a Redis of its own".to_owned(),
        };
        let wishes = Wishes::default();
        let live = Live::open(heading, Place::of_this_process(), wishes.clone()).unwrap();
        live.say(Duration::ZERO, "Redis 7.0.15 listens on 127.0.0.1:40001");
        for tick in 0..60 {
            let elapsed = Duration::from_millis(tick * 500);
            live.show(screen::tests::a_run(elapsed));
            match tick {
                40 => live.say(elapsed, "partition-redis for 4s"),
                48 => live.say(elapsed, "partition-redis is over"),
                50 if std::env::var("WATCH").is_ok_and(|way| way == "panic") => panic!("as it was asked to"),
                _ => {}
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(150)) => {}
                () = wishes.abort.cancelled() => break,
            }
        }
        live.close();
        println!("the terminal is back; end {}", wishes.end.is_cancelled());
    }
}
