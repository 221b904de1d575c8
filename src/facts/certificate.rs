//! What a certificate says of itself, for people: for whom it is, who signed it and when it ends. Never judges whether it is to be
//! believed.
//!
//! A certificate is a sequence of a sequence: its version, if it is not the first, serial number, algorithm, issuer, two times and
//! the subject (RFC 5280, section 4.1).

use super::text::steers;

/// Longest name that is shown, in characters.
const MAX_NAME_CHARS: usize = 200;

const SEQUENCE: u8 = 0x30;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Such as `CN=shop.example, O=Shop`; empty if it has none.
    pub subject: String,
    pub issuer: String,
    /// When it ends, in seconds since 1970.
    pub not_after_s: i64,
}

impl Certificate {
    /// `None` if it is none.
    pub fn read(der: &[u8]) -> Option<Self> {
        let Parts { issuer, times, subject } = Parts::of(der)?;
        let (.., last) = item(times)?;
        let (tag, text, _) = item(last)?;
        let not_after_s = time_s(tag, std::str::from_utf8(text).ok()?)?;
        Some(Self { subject: name(subject)?, issuer: name(issuer)?, not_after_s })
    }
}

/// When a certificate ends, in seconds since 1970. `None` if it is none.
pub fn not_after_s(der: &[u8]) -> Option<i64> {
    Certificate::read(der).map(|certificate| certificate.not_after_s)
}

struct Parts<'a> {
    issuer: &'a [u8],
    times: &'a [u8],
    subject: &'a [u8],
}

impl<'a> Parts<'a> {
    fn of(certificate: &'a [u8]) -> Option<Self> {
        const VERSION: u8 = 0xa0;
        let (whole, _) = of(SEQUENCE, certificate)?;
        let (signed, _) = of(SEQUENCE, whole)?;
        let after_version = of(VERSION, signed).map_or(signed, |(_, rest)| rest);
        let (.., rest) = item(after_version)?;
        let (.., rest) = item(rest)?;
        let (issuer, rest) = of(SEQUENCE, rest)?;
        let (times, rest) = of(SEQUENCE, rest)?;
        let (subject, _) = of(SEQUENCE, rest)?;
        Some(Self { issuer, times, subject })
    }
}

/// The first item, if it has this tag: what is in it, and what comes behind it.
fn of(tag: u8, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    item(bytes).filter(|(found, ..)| *found == tag).map(|(_, inside, rest)| (inside, rest))
}

/// The first item of some DER: its tag, what is in it, and what comes behind it.
fn item(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (length, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (inside, rest) = rest.split_at_checked(length)?;
    Some((tag, inside, rest))
}

/// A name is a sequence of sets of pairs, the most general first; people write it the other way round (RFC 4514).
fn name(mut sets: &[u8]) -> Option<String> {
    const SET: u8 = 0x31;
    let mut parts = Vec::new();
    while !sets.is_empty() {
        let (mut set, rest) = of(SET, sets)?;
        sets = rest;
        while !set.is_empty() {
            let (pair, rest) = of(SEQUENCE, set)?;
            set = rest;
            parts.push(attribute(pair)?);
        }
    }
    parts.reverse();
    Some(parts.join(", ").chars().take(MAX_NAME_CHARS).collect())
}

fn attribute(pair: &[u8]) -> Option<String> {
    const OBJECT_ID: u8 = 0x06;
    const WIDE_TEXT: u8 = 0x1e;
    let (id, rest) = of(OBJECT_ID, pair)?;
    let (tag, value, _) = item(rest)?;
    let label = match id {
        [0x55, 0x04, 0x03] => "CN",
        [0x55, 0x04, 0x05] => "serialNumber",
        [0x55, 0x04, 0x06] => "C",
        [0x55, 0x04, 0x07] => "L",
        [0x55, 0x04, 0x08] => "ST",
        [0x55, 0x04, 0x0a] => "O",
        [0x55, 0x04, 0x0b] => "OU",
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x01] => "emailAddress",
        [0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 0x01, 0x19] => "DC",
        _ => "other",
    };
    let text = match tag {
        WIDE_TEXT => {
            let units: Vec<u16> = value.chunks_exact(2).map(|unit| u16::from_be_bytes([unit[0], unit[1]])).collect();
            String::from_utf16_lossy(&units)
        }
        _ => String::from_utf8_lossy(value).into_owned(),
    };
    // It is other people's text.
    let text: String = text.chars().map(|c| if steers(c) { char::REPLACEMENT_CHARACTER } else { c }).collect();
    Some(format!("{label}={text}"))
}

/// `YYMMDDHHMMSSZ`, for the years 1950 to 2049, or `YYYYMMDDHHMMSSZ`.
fn time_s(tag: u8, text: &str) -> Option<i64> {
    const UTC_TIME: u8 = 0x17;
    const GENERALIZED_TIME: u8 = 0x18;
    let year_digits = match tag {
        UTC_TIME => 2,
        GENERALIZED_TIME => 4,
        _ => return None,
    };
    let digits = text.strip_suffix('Z').filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
    let (year, rest) = digits.split_at_checked(year_digits)?;
    let year: i16 = year.parse().ok()?;
    let year = match (year_digits, year) {
        (2, ..50) => year + 2000,
        (2, _) => year + 1900,
        _ => year,
    };
    if rest.len() != 10 {
        return None;
    }
    let part = |at: usize| rest[at..at + 2].parse::<i8>().ok();
    let at = jiff::civil::DateTime::new(year, part(0)?, part(2)?, part(4)?, part(6)?, part(8)?, 0).ok()?;
    Some(at.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_second())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of `openssl req -x509 -utf8 -subj '/C=FR/O=Lune/CN=é.example' -days 3650`.
    const OF_OPENSSL: &str = "308201b73082015da0030201020214594e8cc30eca667e6fbf1463e46695af2156fcc4300a06082a8648ce3d040302303131\
        0b3009060355040613024652310d300b060355040a0c044c756e653113301106035504030c0ac3a92e6578616d706c65301e\
        170d3236313132383132343831395a170d3336313132353132343831395a3031310b3009060355040613024652310d300b06\
        0355040a0c044c756e653113301106035504030c0ac3a92e6578616d706c653059301306072a8648ce3d020106082a8648ce\
        3d03010703420004ffbb81e2a2ffbac687e881119b462f0af86be0daed526f12e51425084f9be3285ff5306b9488caf2f640\
        f87549037ae04b69805675d813d953827ab3e5e4ad51a3533051301d0603551d0e04160414d94f6468fd11170494dcfb784e\
        658ff8439f9113301f0603551d23041830168014d94f6468fd11170494dcfb784e658ff8439f9113300f0603551d130101ff\
        040530030101ff300a06082a8648ce3d0403020348003045022100d94f2ec1ff2a9db6e22daa9513e91cbeb1231c2cfd76d5\
        6096b8e0bb28bcd13102203de66dc1f877cc60765d59674aa848dbcaa20aa3bea36e2552b5f6a955df26a4";

    #[test]
    fn the_names_and_the_end_of_a_certificate_are_found() {
        let der = hex::decode(OF_OPENSSL).unwrap();
        let name = "CN=é.example, O=Lune, C=FR".to_owned();
        let read = Certificate { subject: name.clone(), issuer: name, not_after_s: 2_111_230_099 };
        assert_eq!(Certificate::read(&der), Some(read));
        for cut in 0..der.len() {
            assert_eq!(not_after_s(&der[..cut]), None);
        }
    }

    #[test]
    fn times_are_read_in_both_forms() {
        assert_eq!(time_s(0x17, "491231235959Z"), Some(2_524_607_999));
        assert_eq!(time_s(0x17, "500101000000Z"), Some(-631_152_000));
        assert_eq!(time_s(0x18, "20500101000000Z"), Some(2_524_608_000));
        for (tag, text) in [(0x17, "491331235959Z"), (0x17, "4912312359Z"), (0x18, "20500101000000"), (0x02, "1")] {
            assert_eq!(time_s(tag, text), None, "{text}");
        }
    }

    #[test]
    fn what_is_cut_anywhere_is_no_certificate_and_breaks_nothing() {
        for length in 0..64 {
            assert_eq!(item(&vec![0x84; length]).map(|(tag, ..)| tag), None);
            assert_eq!(not_after_s(&vec![0x30; length]), None);
        }
    }

    #[test]
    fn names_are_written_as_people_write_them() {
        let text = |tag: u8, text: &[u8]| [&[tag, text.len() as u8], text].concat();
        let pair = |id: &[u8], tag: u8, value: &[u8]| {
            text(0x31, &text(SEQUENCE, &[text(0x06, id), text(tag, value)].concat()))
        };
        let sets = [
            pair(&[0x55, 4, 6], 0x13, b"FR"),
            pair(&[0x55, 4, 10], 0x1e, &[0x00, b'L', 0x20, 0x2e]),
            pair(&[0x55, 4, 3], 0x0c, "é.example\n".as_bytes()),
        ]
        .concat();
        assert_eq!(name(&sets).unwrap(), "CN=é.example\u{fffd}, O=L\u{fffd}, C=FR");
        assert_eq!(name(&[]).unwrap(), "");
        for cut in 1..sets.len() {
            let _ = name(&sets[..cut]);
        }
        assert_eq!(name(&sets[..sets.len() - 1]), None);
    }
}
