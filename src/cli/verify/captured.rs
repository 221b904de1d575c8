//! Reads a callback that was kept: the lines of its head, or a line of `herald listen --format json`. Pure.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;

use crate::surface::VerbError;

/// The largest body as base64, with its headers, has less.
pub const MAX_FILE_BYTES: u64 = 1 << 20;

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Captured {
    pub headers: Vec<(String, String)>,
    pub body: Option<Vec<u8>>,
}

/// What of a line of `herald listen` matters here.
#[derive(Deserialize)]
struct Line {
    headers: Vec<(String, String)>,
    body: Option<String>,
    body_base64: Option<String>,
}

impl Captured {
    pub fn parse(bytes: &[u8]) -> Result<Self, VerbError> {
        let text = String::from_utf8_lossy(bytes);
        match text.trim_start().starts_with('{') {
            true => of_line(&text),
            false => of_head(&text),
        }
    }
}

fn of_line(text: &str) -> Result<Captured, VerbError> {
    let wrong = |error: &dyn std::fmt::Display| {
        VerbError::Refused(format!(
            "--headers-file begins as JSON and is no single line of `herald listen --format json`: {error}"
        ))
    };
    let line: Line = serde_json::from_str(text).map_err(|error| wrong(&error))?;
    let body = match (line.body, line.body_base64) {
        (Some(body), _) => Some(body.into_bytes()),
        (None, Some(body)) => Some(STANDARD.decode(body).map_err(|error| wrong(&error))?),
        (None, None) => None,
    };
    Ok(Captured { headers: line.headers, body })
}

/// A first line without a colon in its name is the request's or the answer's own. The head ends with an empty line.
fn of_head(text: &str) -> Result<Captured, VerbError> {
    let mut headers: Vec<(String, String)> = Vec::new();
    for (number, line) in text.lines().map(|line| line.trim_end_matches('\r')).enumerate() {
        // As `curl -v` shows them.
        let line = line.strip_prefix("> ").or_else(|| line.strip_prefix("< ")).unwrap_or(line);
        match (headers.last_mut(), header_line(line)) {
            _ if line.trim().is_empty() => break,
            _ if number == 0 && is_first_line(line) => {}
            (Some((_, value)), _) if line.starts_with([' ', '\t']) => *value = format!("{value} {}", line.trim()),
            (_, Some(header)) => headers.push(header),
            (_, None) => {
                let why = format!("--headers-file: line {} is no header; each is NAME: VALUE", number + 1);
                return Err(VerbError::Refused(why));
            }
        }
    }
    Ok(Captured { headers, body: None })
}

fn is_first_line(line: &str) -> bool {
    line.starts_with("HTTP/") || line.rsplit(' ').next().is_some_and(|last| last.starts_with("HTTP/"))
}

/// `None`: it is no header.
pub fn header_line(line: &str) -> Option<(String, String)> {
    let (name, value) = line.split_once(':')?;
    let is_name = |b: u8| b.is_ascii_graphic();
    let name = name.trim_end();
    (!name.is_empty() && name.bytes().all(is_name)).then(|| (name.to_owned(), value.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(text: &str) -> Vec<(String, String)> {
        Captured::parse(text.as_bytes()).unwrap().headers
    }

    #[test]
    fn a_head_is_read_as_http_has_it() {
        let two = [("Webhook-Id", "evt_1"), ("x", "a: b c")].map(|(n, v)| (n.to_owned(), v.to_owned()));
        for text in [
            "Webhook-Id: evt_1\nx:a: b c",
            "POST /hook HTTP/1.1\r\nWebhook-Id: evt_1\r\nx: a: b\r\n  c\r\n\r\nnot: this\r\n",
            "HTTP/2 200\nWebhook-Id : evt_1\nx: a: b c\n",
            "> POST /hook HTTP/1.1\n> Webhook-Id: evt_1\n> x: a: b c\n> \n",
        ] {
            assert_eq!(headers(text), two, "{text:?}");
        }
        assert!(Captured::parse(b"webhook-id evt_1").unwrap_err().to_string().contains("line 1"));
    }

    #[test]
    fn a_line_of_listen_has_the_body_too() {
        let text = |body: &str| format!(r#"{{"id":"evt_1","headers":[["a","b"]],{body}}}"#);
        let parsed = |body: &str| Captured::parse(text(body).as_bytes()).unwrap().body;
        assert_eq!(parsed(r#""body":"{}\n""#), Some(b"{}\n".to_vec()));
        assert_eq!(parsed(r#""body":null,"body_base64":"/w==""#), Some(vec![0xFF]));
        for wrong in
            ["{}".to_owned(), text(r#""body_base64":"!""#), [text(r#""body":"""#), text(r#""body":"""#)].concat()]
        {
            assert!(matches!(Captured::parse(wrong.as_bytes()), Err(VerbError::Refused(_))), "{wrong}");
        }
    }
}
