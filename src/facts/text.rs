//! Text for people: sizes in words, and what a stranger's text must not do to readers on a terminal, in a log or on a
//! page.

use std::{borrow::Cow, fmt::Write};

/// Whether it is a control character, a line separator or something that turns the writing direction.
pub fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Writes characters that steer as `\u` and four digits: in JSON that is the same string, in any other text at least
/// harmless. Characters for which `keep` is true stay. Everything that [`steers`] has at most four digits.
pub fn escaped(text: &str, keep: impl Fn(char) -> bool) -> Cow<'_, str> {
    let is_bad = |c: char| steers(c) && !keep(c);
    if !text.chars().any(is_bad) {
        return Cow::Borrowed(text);
    }
    let mut clean = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match is_bad(c) {
            true => write!(clean, "\\u{:04x}", u32::from(c)).expect("a String takes every write"),
            false => clean.push(c),
        }
    }
    Cow::Owned(clean)
}

/// JSON as a library writes it, without characters that steer. Between its strings a line feed is the only such
/// character, and within them the library has escaped those below a blank; the others (DEL, C1, the writing direction)
/// it leaves as they are.
pub fn escaped_json(json: &str) -> Cow<'_, str> {
    escaped(json, |c| c == '\n')
}

/// `1.4 GiB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if n < 1024 {
        return format!("{n} bytes");
    }
    let (mut size, mut unit) = (n as f64 / 1024.0, 0);
    while size >= 1024.0 && unit + 1 < UNITS.len() {
        (size, unit) = (size / 1024.0, unit + 1);
    }
    format!("{size:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_a_cursor_or_turns_the_writing_is_told_from_letters() {
        assert!("\x1b\n\u{9b}\u{61c}\u{200f}\u{2028}\u{202e}\u{2066}".chars().all(steers));
        assert!(!"aäא字 \u{200d}".chars().any(steers));
    }

    #[test]
    fn json_keeps_its_meaning_and_loses_what_steers() {
        let value = serde_json::json!({ "a\u{202e}": "x\u{7f}\u{9b}31m\u{2028}\u{61c}y\n\u{1b}[2J 字", "b": [1, "ä"] });
        for json in [serde_json::to_string(&value).unwrap(), serde_json::to_string_pretty(&value).unwrap()] {
            let clean = escaped_json(&json);
            assert!(clean.chars().all(|c| c == '\n' || !steers(c)), "{clean:?}");
            assert!(clean.contains("字") && clean.contains(r"\u009b31m"), "{clean}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&clean).unwrap(), value);
        }
        assert!(matches!(escaped_json(r#"{"a":"ä"}"#), Cow::Borrowed(_)));
    }
}
