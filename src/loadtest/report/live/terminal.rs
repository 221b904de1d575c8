//! The terminal itself: raw mode, the alternate screen, keys. Gives it back on every way out: at the end, on an error,
//! on a panic of any thread, and when the process is asked to end, which ends the run and with it this.

use std::{
    io::{self, Stderr},
    panic,
    sync::{
        Once,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, TryRecvError},
    },
    time::Duration,
};

use ratatui::{
    Terminal,
    backend::CrosstermBackend,
    crossterm::{
        cursor::Show,
        event::{self, Event, KeyCode, KeyEventKind, KeyModifiers},
        execute,
        terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode},
    },
};

use super::{Told, Wishes, screen::State};

/// How long a key or a new size may go unnoticed: an eye's blink.
const TICK: Duration = Duration::from_millis(100);

/// Whether the terminal is ours now: giving it back twice would leave a screen that was never entered.
static HELD: AtomicBool = AtomicBool::new(false);

/// A terminal that goes back to what it was when this is dropped.
pub(super) struct Held {
    terminal: Terminal<CrosstermBackend<Stderr>>,
}

impl Held {
    pub(super) fn take() -> io::Result<Self> {
        // A panic's message belongs on the screen that stays.
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let next = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                give_back();
                next(info);
            }));
        });
        HELD.store(true, Ordering::SeqCst);
        let taken = enable_raw_mode()
            .and_then(|()| execute!(io::stderr(), EnterAlternateScreen))
            .and_then(|()| Terminal::new(CrosstermBackend::new(io::stderr())));
        taken.map(|terminal| Self { terminal }).inspect_err(|_| give_back())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        give_back();
    }
}

fn give_back() {
    if HELD.swap(false, Ordering::SeqCst) {
        // A terminal that is gone needs nothing.
        let _ = execute!(io::stderr(), LeaveAlternateScreen, Show);
        let _ = disable_raw_mode();
    }
}

/// Runs until it is told to close. A terminal that cannot be drawn on is given back, and the run goes on unseen.
pub(super) fn show(mut held: Held, mut state: State, told: &Receiver<Told>, wishes: &Wishes) {
    loop {
        if !hear(&mut state, told) || draw(&mut held, &state).is_err() || keys(wishes, &mut state).is_err() {
            return;
        }
    }
}

fn draw(held: &mut Held, state: &State) -> io::Result<()> {
    // Another thread panicked: the terminal is no longer ours.
    if !HELD.load(Ordering::SeqCst) {
        return Err(io::Error::other("the terminal was given back"));
    }
    held.terminal.draw(|frame| state.draw(frame)).map(drop)
}

/// Takes everything that has been told by now; false at the end.
fn hear(state: &mut State, told: &Receiver<Told>) -> bool {
    loop {
        match told.try_recv() {
            Ok(Told::Progress(progress)) => state.progress(&progress),
            Ok(Told::Said { at, text }) => state.said(at, &text),
            Err(TryRecvError::Disconnected) => return false,
            Err(TryRecvError::Empty) => return true,
        }
    }
}

/// Waits a tick for a key, and returns it.
fn keys(wishes: &Wishes, state: &mut State) -> io::Result<()> {
    if event::poll(TICK)?
        && let Event::Key(key) = event::read()?
    {
        let is_break = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
        if key.kind == KeyEventKind::Press && (key.code == KeyCode::Char('q') || is_break) {
            wishes.ask();
        }
    }
    // A signal may have asked too.
    state.wished(wishes);
    Ok(())
}
