//! Who looks, from one page to the next: a cookie that only this installation can read and write. It names a token by its hash, and
//! each request asks again whether that token still lives and what it may. So any process serves any request, nothing of it is in
//! Redis, and whoever revokes a token ends its sessions.

use axum::http::{HeaderMap, HeaderValue, header};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use cookie::{Cookie, CookieJar, Key, SameSite, time::Duration};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

use crate::clock;

const SESSION: &str = "herald_session";

/// What the last act has to say on the next page.
const NOTICE: &str = "herald_notice";

/// After this long whoever looks shows their token again.
const LASTS_MS: u64 = 12 * 3_600_000;

/// Longest text of a notice: a browser drops a cookie of more than 4 KiB.
const MAX_NOTICE_CHARS: usize = 600;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// None before somebody has shown a token: then it only guards the form for it.
    pub token: Option<String>,
    /// In each form of the session's pages, so that no other site can have made one.
    pub form_key: String,
    ends_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    pub is_good: bool,
    pub says: String,
}

impl Notice {
    pub fn good(says: impl Into<String>) -> Self {
        Self { is_good: true, says: says.into() }
    }

    pub fn bad(says: impl Into<String>) -> Self {
        Self { is_good: false, says: says.into() }
    }
}

impl Session {
    pub fn new(token: Option<String>) -> Self {
        let form_key = URL_SAFE_NO_PAD.encode(rand::random::<[u8; 24]>());
        Self { token, form_key, ends_ms: clock::wall_ms().saturating_add(LASTS_MS) }
    }

    /// Whether a form came from one of this session's pages. Compares hashes, so that nothing can be learnt from how long it takes.
    pub fn has_made(&self, form_key: &str) -> bool {
        Sha256::digest(form_key) == Sha256::digest(&self.form_key)
    }
}

/// Seals and opens cookies.
#[derive(Clone)]
pub struct Seal(Key);

impl Seal {
    /// With the same secret each process has the same seal; without one a session ends with the process.
    pub fn new(secret: Option<&str>) -> Self {
        let derived = |secret: &str| Key::derive_from(&Sha256::digest(format!("herald console\n{secret}")));
        Self(secret.map_or_else(Key::generate, derived))
    }

    pub fn session(&self, headers: &HeaderMap) -> Option<Session> {
        self.open::<Session>(headers, SESSION).filter(|session| clock::wall_ms() < session.ends_ms)
    }

    pub fn notice(&self, headers: &HeaderMap) -> Option<Notice> {
        self.open(headers, NOTICE)
    }

    fn open<T: DeserializeOwned>(&self, headers: &HeaderMap, name: &str) -> Option<T> {
        let mut jar = CookieJar::new();
        let given = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        let sealed = given.flat_map(Cookie::split_parse).flatten().find(|cookie| cookie.name() == name)?;
        jar.add_original(sealed.into_owned());
        serde_json::from_str(jar.private(&self.0).get(name)?.value()).ok()
    }

    /// The header that keeps a session.
    pub fn keep(&self, session: &Session, is_https: bool) -> HeaderValue {
        self.sealed(SESSION, session, Duration::milliseconds(i64::try_from(LASTS_MS).unwrap_or(i64::MAX)), is_https)
    }

    /// The header that shows a notice on the next page, and only there.
    pub fn say(&self, notice: &Notice, is_https: bool) -> HeaderValue {
        let says = notice.says.chars().take(MAX_NOTICE_CHARS).collect();
        self.sealed(NOTICE, &Notice { says, ..*notice }, Duration::minutes(1), is_https)
    }

    fn sealed(&self, name: &str, value: &impl Serialize, lasts: Duration, is_https: bool) -> HeaderValue {
        let mut jar = CookieJar::new();
        let text = serde_json::to_string(value).unwrap_or_default();
        jar.private_mut(&self.0).add(cookie(name, text, lasts, is_https));
        jar.get(name).map_or_else(|| HeaderValue::from_static(""), header_of)
    }
}

/// The headers that end a session and forget a notice.
pub fn forget_session(is_https: bool) -> HeaderValue {
    header_of(&cookie(SESSION, String::new(), Duration::ZERO, is_https))
}

pub fn forget_notice(is_https: bool) -> HeaderValue {
    header_of(&cookie(NOTICE, String::new(), Duration::ZERO, is_https))
}

/// Lax: a link in a chat leads to the page that it names. Forms of other sites carry no cookie then, and have no form key anyway.
fn cookie(name: &str, value: String, lasts: Duration, is_https: bool) -> Cookie<'static> {
    let built = Cookie::build((name.to_owned(), value)).path("/console").http_only(true).same_site(SameSite::Lax);
    built.secure(is_https).max_age(lasts).build()
}

fn header_of(cookie: &Cookie<'_>) -> HeaderValue {
    HeaderValue::from_str(&cookie.to_string()).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// Whether the browser came over TLS, as the proxy before us says. Whoever lies about it only harms their own cookie.
pub fn is_https(headers: &HeaderMap) -> bool {
    headers.get("x-forwarded-proto").is_some_and(|proto| proto.as_bytes().eq_ignore_ascii_case(b"https"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn returned(set: &HeaderValue) -> HeaderMap {
        let pair = set.to_str().unwrap().split(';').next().unwrap().to_owned();
        [(header::COOKIE, HeaderValue::from_str(&format!("other=1; {pair}; x")).unwrap())].into_iter().collect()
    }

    #[test]
    fn each_process_with_the_same_secret_opens_what_another_has_sealed_and_no_other_does() {
        let session = Session::new(Some("ab12".to_owned()));
        let set = Seal::new(Some("one secret")).keep(&session, true);
        let text = set.to_str().unwrap();
        for part in ["HttpOnly", "SameSite=Lax", "Secure", "Path=/console", "Max-Age=43200"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains("ab12") && !text.contains(&session.form_key), "{text}");
        assert_eq!(Seal::new(Some("one secret")).session(&returned(&set)), Some(session));
        for other in [Some("another secret"), None] {
            assert_eq!(Seal::new(other).session(&returned(&set)), None);
        }
    }

    #[test]
    fn a_cookie_that_was_changed_or_has_ended_or_has_another_name_opens_nothing() {
        let seal = Seal::new(Some("one secret"));
        let ended = Session { ends_ms: 1, ..Session::new(None) };
        assert_eq!(seal.session(&returned(&seal.keep(&ended, false))), None);
        let set = seal.keep(&Session::new(None), false);
        let text = set.to_str().unwrap();
        assert!(!text.contains("Secure"));
        let renamed = HeaderValue::from_str(&text.replace(SESSION, NOTICE)).unwrap();
        assert_eq!(seal.notice(&returned(&renamed)), None);
        let at = SESSION.len() + 20;
        let swapped = if &text[at..=at] == "A" { "B" } else { "A" };
        let changed = HeaderValue::from_str(&format!("{}{swapped}{}", &text[..at], &text[at + 1..])).unwrap();
        assert_eq!(seal.session(&returned(&changed)), None);
    }

    #[test]
    fn a_form_is_known_by_its_key() {
        let (session, other) = (Session::new(None), Session::new(None));
        assert!(session.has_made(&session.form_key));
        assert!(!session.has_made(&other.form_key) && !session.has_made(""));
    }
}
