//! The way of log lines to their reader: a bounded buffer and a thread of its own. Code that logs never waits for a
//! reader: a line that finds no room is dropped and counted. Lets nothing through that steers a terminal or begins a
//! line of its own.

use std::{
    io::{self, Write},
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use prometheus_client::metrics::counter::Counter;
use tracing_subscriber::fmt::MakeWriter;

use crate::{clock, facts::text::escaped};

/// Lines that wait for the thread, and their bytes: more than any burst for which a living reader needs time. What the thread is
/// just writing can be as much again.
pub const MAX_WAITING: usize = 8_192;
pub const MAX_WAITING_BYTES: usize = 4 << 20;

/// How lines are formatted, as far as that matters for cleaning them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colours {
    /// The formatter's own escape sequences pass; it cleans what it quotes.
    Own,
    None,
}

/// Cheap to clone; all clones write into one buffer.
#[derive(Clone)]
pub struct Lines(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    dropped: Counter,
    colours: Colours,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    lines: usize,
    is_writing: bool,
}

impl Lines {
    /// Writes to `out` from a thread of its own, which lives as long as the process. `dropped` counts lines that found
    /// no room. Every `every`, the thread calls `then`.
    pub fn start(
        out: impl Write + Send + 'static,
        colours: Colours,
        dropped: Counter,
        every: Duration,
        then: impl FnMut(Instant) + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Shared { state: Mutex::default(), changed: Condvar::new(), dropped, colours };
        let lines = Self(Arc::new(shared));
        let shared = lines.0.clone();
        thread::Builder::new().name("log".to_owned()).spawn(move || shared.write(out, every, then))?;
        Ok(lines)
    }

    /// Takes one line with its end, or drops it.
    pub fn put(&self, line: &str) {
        let line = line.strip_suffix('\n').unwrap_or(line);
        let is_coloured = self.0.colours == Colours::Own;
        let line = escaped(line, |c| c == '\t' || (is_coloured && c == '\u{1b}'));
        let mut state = self.0.lock();
        if state.lines == MAX_WAITING || state.waiting.len() + line.len() >= MAX_WAITING_BYTES {
            self.0.dropped.inc();
            return;
        }
        state.waiting.extend_from_slice(line.as_bytes());
        state.waiting.push(b'\n');
        state.lines += 1;
        self.0.changed.notify_all();
    }

    /// Waits until everything is written, but no longer than `most`. Returns whether it is.
    pub fn flush(&self, most: Duration) -> bool {
        let state = self.0.lock();
        let is_busy = |state: &mut State| state.is_writing || !state.waiting.is_empty();
        let waited = self.0.changed.wait_timeout_while(state, most, is_busy);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

impl Shared {
    /// No code panics with this lock held halfway through a change.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, mut out: impl Write, every: Duration, mut then: impl FnMut(Instant)) {
        let mut next = clock::now() + every;
        loop {
            let batch = self.take(next);
            // If the reader is gone, there is nobody to tell.
            let _ = out.write_all(&batch).and_then(|()| out.flush());
            self.lock().is_writing = false;
            self.changed.notify_all();
            let now = clock::now();
            if now >= next {
                next = now + every;
                then(now);
            }
        }
    }

    /// Everything that waits; nothing once it is `until`.
    fn take(&self, until: Instant) -> Vec<u8> {
        let state = self.lock();
        let rest = until.saturating_duration_since(clock::now());
        let waited = self.changed.wait_timeout_while(state, rest, |state| state.waiting.is_empty());
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.is_writing = !state.waiting.is_empty();
        state.lines = 0;
        mem::take(&mut state.waiting)
    }
}

/// The formatter writes each line whole.
impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.put(&String::from_utf8_lossy(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;
    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// Says when it is asked to write, and writes when it is told to.
    struct Gate {
        asked: mpsc::Sender<Vec<u8>>,
        open: mpsc::Receiver<()>,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.asked.send(bytes.to_vec());
            // The test that opens it may be gone: then it stays open.
            let _ = self.open.recv();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn gated() -> (Lines, Counter, mpsc::Receiver<Vec<u8>>, mpsc::Sender<()>) {
        let ((asked, written), (opener, open)) = (mpsc::channel(), mpsc::channel());
        let dropped = Counter::default();
        let lines = Lines::start(Gate { asked, open }, Colours::None, dropped.clone(), LONG, |_| {}).unwrap();
        (lines, dropped, written, opener)
    }

    #[test]
    fn a_log_that_nobody_reads_costs_its_lines_and_nothing_else() {
        let (lines, dropped, written, open) = gated();
        lines.put("first\n");
        assert_eq!(written.recv().unwrap(), b"first\n");
        // The reader hangs now, and everything else is logged without waiting for it.
        let line = "x".repeat(1023);
        for _ in 0..5_000 {
            lines.put(&line);
        }
        assert_eq!(dropped.get(), 5_000 - 4_096);
        assert!(!lines.flush(Duration::ZERO), "nothing is written");
        drop(open);
        assert!(lines.flush(LONG));
        assert_eq!(written.recv().unwrap().len(), MAX_WAITING_BYTES);
        lines.put("last");
        assert_eq!(written.recv().unwrap(), b"last\n");
    }

    #[test]
    fn however_short_they_are_so_many_lines_wait() {
        let (lines, dropped, written, open) = gated();
        lines.put("first");
        written.recv().unwrap();
        (0..MAX_WAITING + 3).for_each(|_| lines.put("x"));
        assert_eq!(dropped.get(), 3);
        drop(open);
        assert!(lines.flush(LONG));
        assert_eq!(written.recv().unwrap().len(), 2 * MAX_WAITING);
        lines.put("last");
        assert_eq!(written.recv().unwrap(), b"last\n", "and those after them are taken again");
    }

    #[test]
    fn a_line_stays_one_line_and_steers_nothing() {
        let (lines, _, written, open) = gated();
        drop(open);
        lines.put("a\nWARN forged\u{9b}31m \u{202e}b\tc\n");
        assert_eq!(written.recv().unwrap(), b"a\\u000aWARN forged\\u009b31m \\u202eb\tc\n");
    }

    #[test]
    fn the_thread_comes_back_to_its_other_work_although_nothing_is_logged() {
        let (tell, told) = mpsc::channel();
        let then = move |_| {
            // The listener may have heard enough.
            let _ = tell.send(());
        };
        let _lines =
            Lines::start(io::sink(), Colours::None, Counter::default(), Duration::from_millis(1), then).unwrap();
        told.recv().unwrap();
        told.recv().unwrap();
    }
}
