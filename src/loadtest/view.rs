//! Where a run says what it is doing. Measures and decides nothing.

use std::time::Duration;

use super::report::{live::Live, progress::Progress};

/// Where progress is shown.
pub enum View<'a> {
    Live(&'a Live),
    /// Nowhere: the run says nothing until its result.
    Nobody,
}

impl View<'_> {
    pub fn show(&self, progress: Progress) {
        match self {
            Self::Live(live) => live.show(progress),
            Self::Nobody => {}
        }
    }

    pub fn say(&self, at: Duration, text: String) {
        match self {
            Self::Live(live) => live.say(at, text),
            Self::Nobody => {}
        }
    }
}

/// Nothing but what is being done.
pub fn phase(name: &str) -> Progress {
    Progress { phase: name.to_owned(), ..Progress::default() }
}
