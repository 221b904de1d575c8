//! Reads a signature header: strictly, as its scheme writes it, and in every form that a mistake gives it. Never compares.

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::STANDARD},
};

/// How a signature is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As its scheme writes it.
    Right,
    LowerHex,
    UpperHex,
    LowerHexWithDashes,
    UpperHexWithDashes,
    MixedHex,
    Base64,
    Base64Url,
    /// Base64 whose letters have become small ones: it cannot be decoded any more, but it can be recognised.
    LoweredBase64,
}

impl Form {
    pub fn name(self) -> &'static str {
        match self {
            Self::Right => "as it must be",
            Self::LowerHex => "lower-case hex",
            Self::UpperHex => "upper-case hex",
            Self::LowerHexWithDashes => "lower-case hex with dashes",
            Self::UpperHexWithDashes => "upper-case hex with dashes",
            Self::MixedHex => "hex in mixed case",
            Self::Base64 => "base64, but without what stands before it or without its padding",
            Self::Base64Url => "base64url (with - and _ instead of + and /)",
            Self::LoweredBase64 => "base64 in small letters",
        }
    }
}

/// What a header may mean as a signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub form: Form,
    /// The 32 bytes; of [`Form::LoweredBase64`] its text.
    pub bytes: Vec<u8>,
}

/// More entries than any rotation has: what is beyond is not looked at.
const MAX_ENTRIES: usize = 16;

/// Of `webhook-signature`: each entry of the list.
pub fn of_standard(header: &str) -> Vec<Candidate> {
    let entries = header.split(' ').filter(|entry| !entry.is_empty() && !entry.starts_with("v1a,")).take(MAX_ENTRIES);
    // What was made of small letters can often be decoded as well, to something else.
    let read = |entry: &str| [strict_standard(entry).or_else(|| loosely(entry)), as_lowered(bare(entry))];
    entries.flat_map(read).flatten().collect()
}

/// Of `dojo-signature`: there is one.
pub fn of_dojo(header: &str) -> Vec<Candidate> {
    let strict = dojo_digest(header.as_bytes()).map(|bytes| Candidate { form: Form::Right, bytes });
    [strict.or_else(|| loosely(header)), as_lowered(bare(header))].into_iter().flatten().collect()
}

fn strict_standard(entry: &str) -> Option<Candidate> {
    let bytes = STANDARD.decode(entry.strip_prefix("v1,")?).ok()?;
    (bytes.len() == 32).then_some(Candidate { form: Form::Right, bytes })
}

/// `sha256=` and 32 bytes as upper-case hex, joined by `-`; nothing else.
pub fn dojo_digest(header: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(header.strip_prefix(b"sha256=")?).ok()?;
    let is_upper = |b: u8| b.is_ascii_digit() || (b'A'..=b'F').contains(&b);
    let pairs = text.split('-').map(|pair| (pair.len() == 2 && pair.bytes().all(is_upper)).then_some(pair));
    let digits: String = pairs.collect::<Option<_>>()?;
    hex::decode(digits).ok().filter(|bytes| bytes.len() == 32)
}

/// In whichever encoding it is.
fn loosely(entry: &str) -> Option<Candidate> {
    as_hex(bare(entry)).or_else(|| as_base64(bare(entry)))
}

/// Without what stands before the signature.
fn bare(entry: &str) -> &str {
    let begins = ["v1,", "v1=", "v1:", "sha256="];
    let entry = entry.trim_matches(['"', '\'']);
    begins.iter().find_map(|begin| entry.strip_prefix(begin)).unwrap_or(entry)
}

fn as_hex(text: &str) -> Option<Candidate> {
    let bytes = hex::decode(text.replace(['-', ':'], "")).ok().filter(|bytes| bytes.len() == 32)?;
    let has = |is: fn(&u8) -> bool| text.bytes().any(|b| is(&b));
    let (lower, upper) = (has(u8::is_ascii_lowercase), has(u8::is_ascii_uppercase));
    let form = match (text.contains('-'), lower, upper) {
        (_, true, true) => Form::MixedHex,
        (true, true, false) => Form::LowerHexWithDashes,
        (true, false, _) => Form::UpperHexWithDashes,
        (false, true, false) => Form::LowerHex,
        (false, false, _) => Form::UpperHex,
    };
    Some(Candidate { form, bytes })
}

fn as_base64(text: &str) -> Option<Candidate> {
    let form = if text.contains(['-', '_']) { Form::Base64Url } else { Form::Base64 };
    lenient_base64(text).filter(|bytes| bytes.len() == 32).map(|bytes| Candidate { form, bytes })
}

/// Of either alphabet, padded or not.
pub fn lenient_base64(text: &str) -> Option<Vec<u8>> {
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let of = |alphabet| GeneralPurpose::new(alphabet, config).decode(text).ok();
    of(&alphabet::STANDARD).or_else(|| of(&alphabet::URL_SAFE))
}

/// 32 bytes have 43 letters and a sign of padding.
fn as_lowered(text: &str) -> Option<Candidate> {
    let is_base64 = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+/=".contains(&b);
    let is_lowered = text.len() == 44 && text.bytes().all(is_base64);
    is_lowered.then(|| Candidate { form: Form::LoweredBase64, bytes: text.as_bytes().to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Its base64 has capitals.
    const DIGEST: [u8; 32] = [0xAC; 32];

    fn forms(found: &[Candidate]) -> Vec<Form> {
        found.iter().map(|candidate| candidate.form).collect()
    }

    #[test]
    fn each_form_is_told_by_its_name() {
        let (lower, upper) = (hex::encode(DIGEST), hex::encode_upper(DIGEST));
        let dashed = |digits: &str| {
            let pairs: Vec<&str> = (0..32).map(|at| &digits[2 * at..2 * at + 2]).collect();
            pairs.join("-")
        };
        let base64 = STANDARD.encode(DIGEST);
        for (text, form) in [
            (format!("sha256={}", dashed(&upper)), Form::Right),
            (format!("sha256={}", dashed(&lower)), Form::LowerHexWithDashes),
            (dashed(&upper), Form::UpperHexWithDashes),
            (format!("sha256={lower}"), Form::LowerHex),
            (upper.clone(), Form::UpperHex),
            (format!("{}{}", &lower[..32], &upper[..32]), Form::MixedHex),
            (format!("v1,{base64}"), Form::Base64),
        ] {
            assert_eq!(forms(&of_dojo(&text)), [form], "{text}");
            assert_eq!(of_dojo(&text)[0].bytes, DIGEST);
        }
        assert_eq!(forms(&of_standard(&format!("v1,{base64} {base64} v1a,{base64}"))), [Form::Right, Form::Base64]);
    }

    #[test]
    fn base64url_and_lost_padding_are_told_apart() {
        let digest = [0xFB; 32];
        let base64 = STANDARD.encode(digest);
        let url = base64.replace('+', "-").replace('/', "_");
        assert_eq!(forms(&of_standard(&format!("v1,{url}"))), [Form::Base64Url]);
        assert_eq!(forms(&of_standard(&format!("v1,{}", base64.trim_end_matches('=')))), [Form::Base64]);
        let lowered = of_standard(&format!("v1,{}", base64.to_lowercase()));
        assert_eq!(lowered.last().unwrap().form, Form::LoweredBase64);
        assert!(of_standard("v1,short nothing v2,").is_empty());
    }
}
