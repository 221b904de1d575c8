//! What a stranger's text must not do to whoever reads it on a terminal, in a log or on a page.

/// Control characters, line separators and what turns the direction of writing.
pub fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_a_cursor_or_turns_the_writing_is_told_from_letters() {
        assert!("\x1b\n\u{9b}\u{61c}\u{200f}\u{2028}\u{202e}\u{2066}".chars().all(steers));
        assert!(!"aäא字 \u{200d}".chars().any(steers));
    }
}
