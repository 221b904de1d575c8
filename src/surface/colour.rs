//! Colours on a terminal: what is wrong in red, what is odd in yellow, what is well in green. None where `NO_COLOR` is set
//! (<https://no-color.org>) or the terminal is dumb; and never in data.

use std::{
    ffi::OsStr,
    io::{self, IsTerminal},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    Bad,
    Odd,
    Good,
    /// A heading.
    Bold,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colours {
    On,
    Off,
}

impl Colours {
    pub fn of_stdout() -> Self {
        Self::of(io::stdout().is_terminal())
    }

    pub fn of_stderr() -> Self {
        Self::of(io::stderr().is_terminal())
    }

    fn of(is_terminal: bool) -> Self {
        Self::decide(is_terminal, std::env::var_os("NO_COLOR").as_deref(), std::env::var_os("TERM").as_deref())
    }

    /// An empty `NO_COLOR` counts as none.
    fn decide(is_terminal: bool, no_color: Option<&OsStr>, term: Option<&OsStr>) -> Self {
        let is_refused = no_color.is_some_and(|value| !value.is_empty()) || term.is_some_and(|term| term == "dumb");
        if is_terminal && !is_refused { Self::On } else { Self::Off }
    }

    pub fn paint(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Bad => "31;1",
            Tone::Odd => "33",
            Tone::Good => "32",
            Tone::Bold => "1",
        };
        match self {
            Self::On => format!("\x1b[{code}m{text}\x1b[0m"),
            Self::Off => text.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_colours_on_a_terminal_unless_somebody_objects() {
        let decide = |is_terminal, no_color: Option<&str>, term: Option<&str>| {
            Colours::decide(is_terminal, no_color.map(OsStr::new), term.map(OsStr::new))
        };
        assert_eq!(decide(true, None, Some("xterm")), Colours::On);
        assert_eq!(decide(true, Some(""), None), Colours::On);
        for off in [decide(false, None, Some("xterm")), decide(true, Some("1"), None), decide(true, None, Some("dumb"))]
        {
            assert_eq!(off, Colours::Off);
        }
        assert_eq!(Colours::Off.paint(Tone::Bad, "x"), "x");
        assert_eq!(Colours::On.paint(Tone::Bad, "x"), "\x1b[31;1mx\x1b[0m");
    }
}
