//! What can be wrong with a signature, and what to do about it. Never decides which of them it is.

use std::fmt;

use super::{WEBHOOK_ID, WEBHOOK_TIMESTAMP, candidates::Form};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    HeaderMissing(&'static str),
    HeaderRepeated(&'static str),
    /// It has a full stop, or what is no visible ASCII: where it ends in what is signed could not be told.
    IdForm,
    /// It is no whole number of seconds.
    TimestampForm,
    /// The signature is right.
    TooOld {
        by_ms: u64,
    },
    TooNew {
        by_ms: u64,
    },
    Body(BodyChange),
    Secret(SecretChange),
    Encoding {
        found: Form,
        must_be: &'static str,
    },
    /// The signature of this other header stands here.
    OtherScheme(&'static str),
    IdChanged {
        signed: String,
    },
    TimestampChanged {
        signed_s: u64,
    },
    /// Nothing of the header can be read as a signature.
    NoSignature {
        must_be: &'static str,
    },
    /// Nothing that was tried fits.
    Unexplained(Known),
}

/// How the bytes that were verified differ from those that were signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyChange {
    /// White space between the parts of the JSON came or went.
    WhiteSpace,
    /// Characters within strings are written in another way, such as `\/` or `\u00e9`.
    Escapes,
    KeyOrder,
    NewlineAdded,
    NewlineLost,
    LinesBecameCrlf,
    CrlfBecameLines,
    BomAdded,
}

/// How the key that signed differs from the one that the secret gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretChange {
    /// The secret was given without this prefix.
    PrefixMissing(&'static str),
    /// The text was the key, with its prefix.
    NotDecoded,
    /// The text behind the prefix was the key.
    NotDecodedWithoutPrefix,
    /// Base64 that should not have been decoded was.
    Decoded,
    /// The part behind the prefix is base64url.
    Base64Url,
    /// White space or quotes around it.
    Surrounded,
}

/// What is known where no explanation was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    Nothing,
    /// The body looks exactly as Herald sends it.
    BodyLooksSent,
    /// The other scheme's signature is right.
    SecretAndBodyAreRight,
}

impl Fault {
    /// For programs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::HeaderMissing(_) => "header_missing",
            Self::HeaderRepeated(_) => "header_repeated",
            Self::IdForm => "id_form",
            Self::TimestampForm => "timestamp_form",
            Self::TooOld { .. } => "too_old",
            Self::TooNew { .. } => "too_new",
            Self::Body(change) => change.name(),
            Self::Secret(change) => change.name(),
            Self::Encoding { .. } => "encoding",
            Self::OtherScheme(_) => "other_scheme",
            Self::IdChanged { .. } => "id_changed",
            Self::TimestampChanged { .. } => "timestamp_changed",
            Self::NoSignature { .. } => "no_signature",
            Self::Unexplained(Known::Nothing | Known::BodyLooksSent) => "wrong_secret_or_body",
            Self::Unexplained(Known::SecretAndBodyAreRight) => "headers_changed",
        }
    }
}

impl BodyChange {
    fn name(self) -> &'static str {
        match self {
            Self::WhiteSpace => "body_white_space",
            Self::Escapes => "body_escapes",
            Self::KeyOrder => "body_key_order",
            Self::NewlineAdded => "body_newline_added",
            Self::NewlineLost => "body_newline_lost",
            Self::LinesBecameCrlf => "body_crlf",
            Self::CrlfBecameLines => "body_crlf_lost",
            Self::BomAdded => "body_bom",
        }
    }
}

impl SecretChange {
    fn name(self) -> &'static str {
        match self {
            Self::PrefixMissing(_) => "secret_prefix_missing",
            Self::NotDecoded => "secret_not_decoded",
            Self::NotDecodedWithoutPrefix => "secret_not_decoded_without_prefix",
            Self::Decoded => "secret_decoded",
            Self::Base64Url => "secret_base64url",
            Self::Surrounded => "secret_surrounded",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HeaderMissing(name) => {
                write!(f, "the header {name} is missing: does a proxy, or how the headers are copied, drop it?")
            }
            Self::HeaderRepeated(name) => write!(f, "the header {name} stands there more than once: keep only the one that came"),
            Self::IdForm => {
                write!(f, "{WEBHOOK_ID} may only have visible ASCII and no full stop, which ends it in what is signed")
            }
            Self::TimestampForm => write!(f, "{WEBHOOK_TIMESTAMP} is not a number of whole seconds since 1970"),
            Self::TooOld { by_ms } => write!(
                f,
                "the signature is right, but it was made {} before the earliest time allowed: an old request, or this \
                 clock is ahead",
                seconds(*by_ms)
            ),
            Self::TooNew { by_ms } => write!(
                f,
                "the signature is right, but it was made {} after the latest time allowed: this clock is behind",
                seconds(*by_ms)
            ),
            Self::Body(change) => write!(f, "{change}; verify the raw bytes, as they came and before anything parses them"),
            Self::Secret(change) => write!(f, "{change}"),
            Self::Encoding { found, must_be } => {
                write!(f, "the signature is right, but written as {}: it must be {must_be}", found.name())
            }
            Self::OtherScheme(name) => write!(f, "this is the signature of the other scheme: it belongs in {name}"),
            Self::IdChanged { signed } => write!(f, "{WEBHOOK_ID} was changed: {signed} was signed"),
            Self::TimestampChanged { signed_s } => write!(f, "{WEBHOOK_TIMESTAMP} was changed: {signed_s} was signed"),
            Self::NoSignature { must_be } => write!(f, "nothing of it can be read as a signature: it must be {must_be}"),
            Self::Unexplained(Known::SecretAndBodyAreRight) => write!(
                f,
                "this secret and this body are right, as the other signature shows: so {WEBHOOK_ID}, {WEBHOOK_TIMESTAMP} \
                 or this signature was changed, or it was made with another secret during a rotation"
            ),
            Self::Unexplained(Known::BodyLooksSent) => {
                f.write_str("signed with another secret, most likely, as the body looks as it is sent: is it this endpoint's secret?")
            }
            Self::Unexplained(Known::Nothing) => f.write_str(
                "signed with another secret, or the body was changed beyond what can be undone: is it this endpoint's \
                 secret, and are these the raw bytes?",
            ),
        }
    }
}

/// `0.5 s`, `86400 s`.
fn seconds(ms: u64) -> String {
    match ms % 1000 {
        0 => format!("{} s", ms / 1000),
        _ => format!("{} s", ms as f64 / 1e3),
    }
}

impl fmt::Display for BodyChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WhiteSpace => {
                "the body was parsed and written again: its JSON has other white space than what was signed"
            }
            Self::Escapes => "the body was parsed and written again: its JSON writes some characters in another way",
            Self::KeyOrder => "the body was parsed and written again: its JSON has another order of keys",
            Self::NewlineAdded => "a line feed was added at the end of the body",
            Self::NewlineLost => "the line feed at the end of the body was lost",
            Self::LinesBecameCrlf => "the body's line feeds became CR LF",
            Self::CrlfBecameLines => "the body's CR LF became line feeds",
            Self::BomAdded => "a byte order mark was put before the body",
        })
    }
}

impl fmt::Display for SecretChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PrefixMissing(prefix) => {
                write!(f, "the secret was given without its {prefix}: give it whole, as it was shown")
            }
            Self::NotDecoded => f.write_str(
                "it was signed with the secret's text, prefix and all: the key of webhook-signature is the base64 after \
                 whsec_, decoded",
            ),
            Self::NotDecodedWithoutPrefix => f.write_str(
                "it was signed with the text after the secret's prefix: the key of webhook-signature is that text decoded \
                 from base64, the key of dojo-signature is the whole text, prefix and all",
            ),
            Self::Decoded => f.write_str(
                "it was signed with the secret decoded from base64: the key of dojo-signature is the secret's text as shown",
            ),
            Self::Base64Url => {
                f.write_str("the part after whsec_ is base64url: it must have + and / instead of - and _, and its padding")
            }
            Self::Surrounded => f.write_str("the secret was given with white space or quotes around it: give it without"),
        }
    }
}
