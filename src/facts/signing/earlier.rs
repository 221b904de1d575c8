//! What a body may have been before something on its way changed it: each of the usual changes, undone. Pure guesses; which of
//! them is right, the signature tells.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::fault::BodyChange;

const BOM: &[u8] = b"\xEF\xBB\xBF";

/// The orders in which the keys of an event are written (docs.dojo.tech); others come behind them.
const KEYS: [&str; 5] = ["id", "event", "accountid", "createdat", "data"];
const KEYS_OF_DATA: [&str; 3] = ["paymentintentid", "paymentstatus", "capturemode"];

/// The likely ones first. The body itself is not among them.
pub fn bodies(body: &[u8]) -> Vec<(Vec<u8>, BodyChange)> {
    let mut found = Vec::new();
    found.extend(body.strip_prefix(BOM).map(|rest| (rest.to_vec(), BodyChange::BomAdded)));
    found.extend(without_newlines(body).map(|rest| (rest.to_vec(), BodyChange::NewlineAdded)));
    found.extend(bodies_of_json(body));
    found.push(([body, b"\n"].concat(), BodyChange::NewlineLost));
    found.push(([body, b"\r\n"].concat(), BodyChange::NewlineLost));
    found.push((replaced(body, b"\r\n", b"\n"), BodyChange::LinesBecameCrlf));
    found.push((replaced(&replaced(body, b"\r\n", b"\n"), b"\n", b"\r\n"), BodyChange::CrlfBecameLines));
    found.retain(|(earlier, _)| earlier != body);
    found
}

fn without_newlines(body: &[u8]) -> Option<&[u8]> {
    let end = body.iter().rposition(|b| !b"\r\n".contains(b)).map_or(0, |at| at + 1);
    (end < body.len()).then(|| &body[..end])
}

fn replaced(body: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut rest = body;
    let mut done = Vec::with_capacity(body.len());
    while let Some(at) = rest.windows(from.len()).position(|window| window == from) {
        done.extend([&rest[..at], to].concat());
        rest = &rest[at + from.len()..];
    }
    done.extend(rest);
    done
}

/// Nothing for what is not JSON.
fn bodies_of_json(body: &[u8]) -> Vec<(Vec<u8>, BodyChange)> {
    let text = std::str::from_utf8(body.strip_prefix(BOM).unwrap_or(body)).ok();
    let Some(text) = text.filter(|text| serde_json::from_str::<&RawValue>(text).is_ok()) else { return Vec::new() };
    let compact = spaced(text, Spacing::None);
    let plain = strings(&compact, |text| serde_json::to_string(text).ok());
    let slashes = strings(&plain, |text| Some(serde_json::to_string(text).ok()?.replace('/', "\\/")));
    let ascii = strings(&plain, |text| Some(in_ascii(&serde_json::to_string(text).ok()?)));
    let mut found = vec![
        (compact.clone(), BodyChange::WhiteSpace),
        (plain.clone(), BodyChange::Escapes),
        (slashes, BodyChange::Escapes),
        (ascii, BodyChange::Escapes),
    ];
    found.extend([&compact, &plain].into_iter().filter_map(|json| Some((ordered(json)?, BodyChange::KeyOrder))));
    // The other way round: it was signed with white space, and that went.
    let spacings = [Spacing::AfterSigns, Spacing::Lines("  "), Spacing::Lines("    "), Spacing::Lines("\t")];
    found.extend(spacings.map(|spacing| (spaced(&compact, spacing), BodyChange::WhiteSpace)));
    found.into_iter().map(|(json, change)| (json.into_bytes(), change)).collect()
}

/// It is no JSON as Herald's producers write it: without white space.
pub fn is_rewritten(body: &[u8]) -> bool {
    std::str::from_utf8(body).map_or(true, |text| spaced(text, Spacing::None) != text)
}

#[derive(Clone, Copy)]
enum Spacing {
    None,
    /// `{"a": 1, "b": 2}`
    AfterSigns,
    /// A line for each member, indented by this.
    Lines(&'static str),
}

/// Valid JSON with other white space between its parts.
fn spaced(json: &str, spacing: Spacing) -> String {
    let (mut done, mut depth) = (String::with_capacity(json.len()), 0_usize);
    let mut before = ' ';
    for part in parts(json) {
        let first = part.chars().next().unwrap_or(' ');
        let (opens, closes) = ("{[".contains(first), "}]".contains(first));
        depth = if closes { depth.saturating_sub(1) } else { depth };
        if let Spacing::Lines(indent) = spacing {
            let is_empty = closes && "{[".contains(before);
            if ("{[,".contains(before) || closes) && !is_empty {
                done.push('\n');
                // Nobody indents deeper, and a hostile body would grow with the square of its length.
                done.push_str(&indent.repeat(depth.min(16)));
            }
        }
        done.push_str(part);
        let blank = match spacing {
            Spacing::None => false,
            Spacing::AfterSigns => ",:".contains(first),
            Spacing::Lines(_) => first == ':',
        };
        done.push_str(if blank { " " } else { "" });
        depth += usize::from(opens);
        before = first;
    }
    done
}

/// The parts of valid JSON: signs, strings, and everything else, without the white space between them.
fn parts(json: &str) -> impl Iterator<Item = &str> {
    let mut rest = json;
    std::iter::from_fn(move || {
        rest = rest.trim_ascii_start();
        let first = rest.chars().next()?;
        let length = match first {
            '{' | '}' | '[' | ']' | ',' | ':' => 1,
            '"' => string_length(rest),
            _ => rest.find(|c: char| "{}[],:\"".contains(c) || c.is_ascii_whitespace()).unwrap_or(rest.len()),
        };
        let (part, behind) = rest.split_at(length);
        rest = behind;
        Some(part)
    })
}

/// With its quotes.
fn string_length(text: &str) -> usize {
    let mut is_escaped = false;
    for (at, b) in text.bytes().enumerate().skip(1) {
        match b {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// With each string written anew; one that cannot be stays.
fn strings(json: &str, write: impl Fn(&str) -> Option<String>) -> String {
    let anew = |part: &'_ str| match part.starts_with('"') {
        true => serde_json::from_str::<String>(part).ok().and_then(|text| write(&text)),
        false => None,
    };
    parts(json).map(|part| anew(part).map_or(Cow::Borrowed(part), Cow::Owned)).collect()
}

/// As some languages write everything that is not ASCII: `\u00e9`.
fn in_ascii(json: &str) -> String {
    let mut done = String::with_capacity(json.len());
    for c in json.chars() {
        match c.is_ascii() {
            true => done.push(c),
            false => done.extend(c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}"))),
        }
    }
    done
}

/// With the keys in the order in which an event has them. `None` for what is no object.
fn ordered(json: &str) -> Option<String> {
    let rank = |keys: &[&str], key: &str| keys.iter().position(|known| key.eq_ignore_ascii_case(known));
    let sorted = |json: &str, keys: &[&str]| -> Option<Vec<(String, String)>> {
        let mut members = serde_json::from_str::<Members>(json).ok()?.0;
        members.sort_by_key(|(key, _)| rank(keys, key).unwrap_or(keys.len()));
        Some(members)
    };
    let mut members = sorted(json, &KEYS)?;
    for (_, data) in members.iter_mut().filter(|(key, _)| key.eq_ignore_ascii_case("data")) {
        if let Some(inner) = sorted(data, &KEYS_OF_DATA) {
            *data = written(&inner);
        }
    }
    Some(written(&members))
}

fn written(members: &[(String, String)]) -> String {
    let member = |(key, value): &(String, String)| Some(format!("{}:{value}", serde_json::to_string(key).ok()?));
    format!("{{{}}}", members.iter().filter_map(member).collect::<Vec<_>>().join(","))
}

/// An object's keys and values, in the order in which they stand.
struct Members(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Members;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some((key, value)) = map.next_entry::<String, Box<RawValue>>()? {
                    members.push((key, value.get().to_owned()));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SENT: &str = r#"{"id":"evt_1","event":"payment_intent.created","accountId":"acc","createdAt":"2022-02-01T13:07:41.8667859Z","data":{"paymentIntentId":"pi/é 1","paymentStatus":"Created","captureMode":"Auto"},"extra":[1,{},[],-2.5e3,null]}"#;

    /// What is said of a body that was changed so.
    #[track_caller]
    fn undone(changed: &str) -> BodyChange {
        let found = bodies(changed.as_bytes());
        let right = found.iter().find(|(earlier, _)| earlier == SENT.as_bytes());
        right.unwrap_or_else(|| panic!("{changed:?} is not undone")).1
    }

    #[test]
    fn each_usual_change_is_undone() {
        let value: serde_json::Value = serde_json::from_str(SENT).unwrap();
        for (changed, change) in [
            (format!("{SENT}\n"), BodyChange::NewlineAdded),
            (format!("{SENT}\r\n"), BodyChange::NewlineAdded),
            (format!("\u{feff}{SENT}"), BodyChange::BomAdded),
            (SENT.replace(',', ", ").replace("\":", "\": "), BodyChange::WhiteSpace),
            (spaced(SENT, Spacing::Lines("  ")), BodyChange::WhiteSpace),
            (SENT.replace('/', "\\/"), BodyChange::Escapes),
            (SENT.replace('é', "\\u00e9"), BodyChange::Escapes),
            (SENT.replace('é', "\\u00E9").replace(',', ", "), BodyChange::Escapes),
        ] {
            assert_eq!(undone(&changed), change, "{changed:?}");
        }
        // As a library with a sorted map writes it; its number has changed too, so only without that one.
        let sorted = serde_json::to_string(&value).unwrap().replace("-2500.0", "-2.5e3");
        assert_ne!(sorted, SENT);
        assert_eq!(undone(&sorted), BodyChange::KeyOrder);
    }

    #[test]
    fn what_was_signed_with_white_space_is_found_again() {
        let value: serde_json::Value = serde_json::from_str(r#"{"a":[1,2],"b":{},"c":{"d":"x: {y, z}"}}"#).unwrap();
        let compact = serde_json::to_string(&value).unwrap();
        for sent in [
            serde_json::to_string_pretty(&value).unwrap(),
            r#"{"a": [1, 2], "b": {}, "c": {"d": "x: {y, z}"}}"#.to_owned(),
        ] {
            let found = bodies(compact.as_bytes());
            assert!(found.contains(&(sent.clone().into_bytes(), BodyChange::WhiteSpace)), "{sent}");
        }
        let lines = b"a\r\nb".as_slice();
        assert!(bodies(lines).contains(&(b"a\nb".to_vec(), BodyChange::LinesBecameCrlf)));
        assert!(bodies(b"a\nb").contains(&(lines.to_vec(), BodyChange::CrlfBecameLines)));
        assert!(bodies(b"a").contains(&(b"a\n".to_vec(), BodyChange::NewlineLost)));
    }

    proptest! {
        /// However odd a body is: no panic, no endless work, and never the body itself.
        #[test]
        fn any_bytes_have_few_and_bounded_guesses(body in proptest::collection::vec(any::<u8>(), 0..400)) {
            let found = bodies(&body);
            prop_assert!(found.len() <= 20);
            prop_assert!(found.iter().all(|(earlier, _)| *earlier != body));
        }

        /// White space is all that `spaced` changes.
        #[test]
        fn json_stays_the_same_value(text in "[\\PC\"{}:, \\\\]{0,40}", n in any::<i32>()) {
            let value = serde_json::json!({ "k": text, "l": [n, { "m": text }, [], {}] });
            for json in [serde_json::to_string(&value).unwrap(), serde_json::to_string_pretty(&value).unwrap()] {
                for spacing in [Spacing::None, Spacing::AfterSigns, Spacing::Lines("  ")] {
                    let again = spaced(&json, spacing);
                    prop_assert_eq!(&serde_json::from_str::<serde_json::Value>(&again).unwrap(), &value);
                }
                prop_assert_eq!(spaced(&json, Spacing::None), serde_json::to_string(&value).unwrap());
                prop_assert_eq!(spaced(&json, Spacing::Lines("  ")), serde_json::to_string_pretty(&value).unwrap());
            }
        }
    }
}
