//! A request as a command line that repeats it. Signatures are not in it: Herald shows none.

use std::fmt::Write;

/// For a POSIX shell. Headers whose values are hidden are left out.
pub fn command(url: &str, headers: &[(String, String)], body: &str) -> String {
    let mut text = format!("curl --request POST {}", quoted(url));
    let is_shown = |value: &str| !value.starts_with('(');
    for (name, value) in headers.iter().filter(|(_, value)| is_shown(value)) {
        let _ = write!(text, " \\\n  --header {}", quoted(&format!("{name}: {value}")));
    }
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type")) {
        text.push_str(" \\\n  --header 'content-type: application/json'");
    }
    let _ = write!(text, " \\\n  --data-raw {}", quoted(body));
    text
}

/// One word of a shell, whatever is in it.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_shell_reads_back_what_was_put_in() {
        let hostile = "a'b\"c$(touch x)`d`\\ \u{202e}\n;";
        let text = command(hostile, &[("x-a".to_owned(), hostile.to_owned())], hostile);
        let shell = text.replacen("curl", "printf '%s|'", 1);
        let read = Command::new("sh").args(["-c", &shell]).output().unwrap();
        let read = String::from_utf8(read.stdout).unwrap();
        let expected = [
            "--request",
            "POST",
            hostile,
            "--header",
            &format!("x-a: {hostile}"),
            "--header",
            "content-type: application/json",
            "--data-raw",
            hostile,
        ];
        assert_eq!(read.trim_end_matches('|').split('|').collect::<Vec<_>>(), expected);
    }

    #[test]
    fn what_is_hidden_is_left_out() {
        let headers = [("authorization".to_owned(), "(hidden)".to_owned())];
        assert!(!command("https://a.example", &headers, "{}").contains("authorization"));
    }
}
