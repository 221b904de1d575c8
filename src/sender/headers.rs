//! Which extra headers an endpoint may ask for. Owns that rule; the headers that Herald itself sends are in `request`.

use http::{HeaderName, HeaderValue};

/// Most extra headers of one endpoint: more than any receiver's gateway asks for.
pub const MAX_HEADERS: usize = 20;

/// The limit for all their names and values together: half of what common servers accept for a whole request head.
pub const MAX_HEADER_BYTES: usize = 8 * 1024;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    #[error("the endpoint has {count} extra headers; at most {MAX_HEADERS} are allowed")]
    TooMany { count: usize },
    #[error("the endpoint's extra headers are {bytes} bytes long; at most {MAX_HEADER_BYTES} are allowed")]
    TooLarge { bytes: usize },
    #[error("{name:?} is no valid header name")]
    Name { name: String },
    /// Never shows the value: it is often a credential.
    #[error("the value of the header {name} has characters that are not visible ASCII")]
    Value { name: String },
    #[error("the header {name} is Herald's own or belongs to the connection; leave it out")]
    Reserved { name: String },
    /// Metadata services of clouds, and agents that hand out secrets, ask for such a header because a stranger's request
    /// does not have it.
    #[error("the header {name} opens metadata services and secret agents to a request; it cannot be sent")]
    Opens { name: String },
    #[error("the header {name} stands twice; receivers would disagree on which one counts")]
    Twice { name: String },
}

/// Headers of the connection, of the message's framing, and those that Herald itself writes.
const RESERVED: &[&str] = &[
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "dojo-signature",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "traceparent",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
];

/// The beginnings of the headers that AWS, Azure, Google, Linode, Alibaba, IBM and OpenStack require for their metadata,
/// and of those that Vault's agent and Consul require.
const OPENING_PREFIXES: &[&str] = &[
    "metadata",
    "x-aliyun-ecs-metadata-",
    "x-aws-ec2-metadata-",
    "x-consul-",
    "x-google-metadata-",
    "x-identity-",
    "x-metadata-",
    "x-vault-",
];

/// Oracle's instances require these credentials, the same everywhere.
const OPENING_CREDENTIALS: &str = "bearer oracle";

const RESERVED_PREFIXES: &[&str] = &["webhook-", "herald-"];

/// For registration: says whether an endpoint may have these extra headers.
pub fn check_headers(headers: &[(String, String)]) -> Result<(), HeaderError> {
    parse_headers(headers).map(drop)
}

/// The same check, returning what it parsed. The values are marked as sensitive: no library shows them in its `Debug`.
pub(super) fn parse_headers(headers: &[(String, String)]) -> Result<Vec<(HeaderName, HeaderValue)>, HeaderError> {
    if headers.len() > MAX_HEADERS {
        return Err(HeaderError::TooMany { count: headers.len() });
    }
    let bytes = headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > MAX_HEADER_BYTES {
        return Err(HeaderError::TooLarge { bytes });
    }
    let mut parsed: Vec<(HeaderName, HeaderValue)> = Vec::with_capacity(headers.len());
    for (name, value) in headers {
        let name = parse_name(name)?;
        if parsed.iter().any(|(earlier, _)| *earlier == name) {
            return Err(HeaderError::Twice { name: name.to_string() });
        }
        if name == http::header::AUTHORIZATION && is_opening(value) {
            return Err(HeaderError::Opens { name: name.to_string() });
        }
        let value = parse_value(value).ok_or_else(|| HeaderError::Value { name: name.to_string() })?;
        parsed.push((name, value));
    }
    Ok(parsed)
}

/// However many blanks there are in it.
fn is_opening(credentials: &str) -> bool {
    let words: Vec<String> = credentials.split_ascii_whitespace().map(str::to_ascii_lowercase).collect();
    words.join(" ") == OPENING_CREDENTIALS
}

/// Stricter than the HTTP library, which also accepts bytes beyond ASCII that receivers read in different ways.
fn parse_value(text: &str) -> Option<HeaderValue> {
    let is_plain = text.bytes().all(|b| b == b'\t' || (b' '..=b'~').contains(&b));
    let mut value = HeaderValue::from_str(text).ok().filter(|_| is_plain)?;
    value.set_sensitive(true);
    Some(value)
}

fn parse_name(text: &str) -> Result<HeaderName, HeaderError> {
    let name = HeaderName::from_bytes(text.as_bytes())
        .map_err(|_| HeaderError::Name { name: text.chars().take(64).collect() })?;
    let lower = name.as_str();
    if RESERVED.contains(&lower) || RESERVED_PREFIXES.iter().any(|prefix| lower.starts_with(prefix)) {
        return Err(HeaderError::Reserved { name: name.to_string() });
    }
    if OPENING_PREFIXES.iter().any(|prefix| lower.starts_with(prefix)) {
        return Err(HeaderError::Opens { name: name.to_string() });
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, value: &str) -> Result<(), HeaderError> {
        check_headers(&[(name.to_owned(), value.to_owned())])
    }

    #[test]
    fn an_ordinary_header_is_taken() {
        for (name, value) in [("Authorization", "Bearer abc"), ("x-shop", "1, 2; q=0.5"), ("tracestate", "a=b")] {
            check(name, value).unwrap();
        }
    }

    #[test]
    fn headers_of_herald_and_of_the_connection_are_refused_in_any_case() {
        for name in RESERVED.iter().copied().chain(["Webhook-Id", "webhook-anything", "HERALD-attempt", "Host"]) {
            assert!(matches!(check(name, "x"), Err(HeaderError::Reserved { .. })), "{name}");
        }
    }

    #[test]
    fn what_metadata_services_ask_for_is_refused_in_any_case() {
        for name in [
            "Metadata-Flavor",
            "metadata",
            "Metadata-Token",
            "X-Google-Metadata-Request",
            "X-aws-ec2-metadata-token",
            "X-AWS-EC2-Metadata-Token-TTL-Seconds",
            "X-aliyun-ecs-metadata-token",
            "X-IDENTITY-HEADER",
            "X-Vault-Request",
        ] {
            assert!(matches!(check(name, "x"), Err(HeaderError::Opens { .. })), "{name}");
        }
        for credentials in ["Bearer Oracle", "bearer  oracle ", "BEARER\tORACLE"] {
            assert!(matches!(check("authorization", credentials), Err(HeaderError::Opens { .. })), "{credentials}");
        }
        check("authorization", "Bearer Oracle2").unwrap();
    }

    #[test]
    fn what_could_break_out_of_a_header_is_refused_without_showing_the_value() {
        for value in ["a\r\nx: y", "a\nb", "a\0b", "geheim-ä", "\u{7f}"] {
            let error = check("x-key", value).unwrap_err();
            assert_eq!(error, HeaderError::Value { name: "x-key".into() });
            assert!(!error.to_string().contains("geheim"));
        }
        for name in ["", "a b", "a:", ":authority", "a\r\nb", "ä"] {
            assert!(matches!(check(name, "x"), Err(HeaderError::Name { .. })), "{name:?}");
        }
    }

    #[test]
    fn number_and_size_are_bounded_and_no_name_stands_twice() {
        let headers = |count: usize, bytes: usize| -> Vec<(String, String)> {
            (0..count).map(|n| (format!("x-{n:02}"), "v".repeat(bytes))).collect()
        };
        assert!(check_headers(&headers(MAX_HEADERS, 100)).is_ok());
        assert!(matches!(check_headers(&headers(MAX_HEADERS + 1, 1)), Err(HeaderError::TooMany { .. })));
        assert!(matches!(check_headers(&headers(1, MAX_HEADER_BYTES)), Err(HeaderError::TooLarge { .. })));
        let twice = [("x-a".to_owned(), "1".to_owned()), ("X-A".to_owned(), "2".to_owned())];
        assert!(matches!(check_headers(&twice), Err(HeaderError::Twice { .. })));
    }
}
