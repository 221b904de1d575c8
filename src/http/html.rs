//! Text as HTML shows it, for the templates of every page. Nothing that a stranger wrote is ever anything but text.

use std::fmt;

use askama::filters::Escaper;

use crate::facts::text::{self, steers};

/// As askama's own, and what steers a display becomes a blank.
#[derive(Clone, Copy)]
pub struct Escaped;

impl Escaper for Escaped {
    fn write_escaped_str<W: fmt::Write>(&self, mut to: W, text: &str) -> fmt::Result {
        text.chars().try_for_each(|c| if steers(c) { to.write_char(' ') } else { write_char(&mut to, c) })
    }
}

/// For whoever must see what is there: what steers a display is shown as `\u` and four digits. Line feeds stay.
#[derive(Clone, Copy)]
pub struct Visible;

impl Escaper for Visible {
    fn write_escaped_str<W: fmt::Write>(&self, mut to: W, text: &str) -> fmt::Result {
        text::escaped(text, |c| c == '\n').chars().try_for_each(|c| write_char(&mut to, c))
    }
}

fn write_char(to: &mut impl fmt::Write, c: char) -> fmt::Result {
    match c {
        '&' => to.write_str("&amp;"),
        '<' => to.write_str("&lt;"),
        '>' => to.write_str("&gt;"),
        '"' => to.write_str("&quot;"),
        '\'' => to.write_str("&#39;"),
        c => to.write_char(c),
    }
}

/// The same as a string of its own.
pub fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    Escaped.write_escaped_str(&mut safe, text).expect("a string takes everything");
    safe
}

pub fn visible(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    Visible.write_escaped_str(&mut safe, text).expect("a string takes everything");
    safe
}

/// For the value of an attribute that a script reads back, character by character. HTML has no way to write a NUL, takes a CR for a
/// line feed, and a reference to a control character beyond ASCII for a letter.
pub fn exact(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars().filter(|c| *c != '\0') {
        match c.is_ascii_control() {
            true => fmt::Write::write_fmt(&mut safe, format_args!("&#{};", u32::from(c))),
            false => write_char(&mut safe, c),
        }
        .expect("a string takes everything");
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strangers_text_is_only_ever_text() {
        let hostile = "<script>'\"&\u{202e}\u{7}\n";
        assert_eq!(escaped(hostile), "&lt;script&gt;&#39;&quot;&amp;   ");
        assert_eq!(visible(hostile), "&lt;script&gt;&#39;&quot;&amp;\\u202e\\u0007\n");
        assert_eq!(exact(hostile), "&lt;script&gt;&#39;&quot;&amp;\u{202e}&#7;&#10;");
    }
}
