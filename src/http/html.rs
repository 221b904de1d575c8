//! Text as HTML shows it, for the templates of every page. Nothing that a stranger wrote is ever anything but text.

use std::fmt;

use askama::filters::Escaper;

use crate::facts::text::steers;

/// As askama's own, and what steers a display becomes a blank.
#[derive(Clone, Copy)]
pub struct Escaped;

impl Escaper for Escaped {
    fn write_escaped_str<W: fmt::Write>(&self, mut to: W, text: &str) -> fmt::Result {
        for c in text.chars() {
            match c {
                c if steers(c) => to.write_char(' ')?,
                '&' => to.write_str("&amp;")?,
                '<' => to.write_str("&lt;")?,
                '>' => to.write_str("&gt;")?,
                '"' => to.write_str("&quot;")?,
                '\'' => to.write_str("&#39;")?,
                c => to.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// The same as a string of its own.
pub fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    Escaped.write_escaped_str(&mut safe, text).expect("a string takes everything");
    safe
}
