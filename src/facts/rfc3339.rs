//! Whether a text is a point in time in the form of RFC 3339. Libraries accept more than that (ISO 8601's other forms,
//! a zone's name) or less (a fraction beyond nanoseconds), and Herald only passes the text on.

/// Digits of a fraction: picoseconds. Platforms write up to nanoseconds; the rest is room.
const MAX_FRACTION: usize = 12;

/// `date-time` of RFC 3339, section 5.6, with section 5.7's rules for days and leap seconds. Years 0000 to 9999.
pub fn is_date_time(text: &str) -> bool {
    parse(text.as_bytes()).is_some()
}

fn parse(text: &[u8]) -> Option<()> {
    let (date, rest) = text.split_at_checked(10)?;
    let [y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2] = *date else { return None };
    let year = number(&[y1, y2, y3, y4])?;
    let (month, day) = (number(&[m1, m2])?, number(&[d1, d2])?);
    let (time, rest) = rest.split_at_checked(9)?;
    let [b'T' | b't', h1, h2, b':', n1, n2, b':', s1, s2] = *time else { return None };
    let (hour, minute, second) = (number(&[h1, h2])?, number(&[n1, n2])?, number(&[s1, s2])?);
    let offset = offset_minutes(without_fraction(rest)?)?;
    let is_day = (1..=days_of(year, month)?).contains(&day);
    // A leap second ends a day in UTC, wherever its text was written.
    let utc_minute = (hour as i32 * 60 + minute as i32 - offset).rem_euclid(24 * 60);
    let is_second = second < 60 || (second == 60 && utc_minute == 24 * 60 - 1);
    (is_day && hour < 24 && minute < 60 && is_second).then_some(())
}

fn without_fraction(rest: &[u8]) -> Option<&[u8]> {
    let Some(fraction) = rest.strip_prefix(b".") else { return Some(rest) };
    let digits = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
    (1..=MAX_FRACTION).contains(&digits).then(|| &fraction[digits..])
}

fn offset_minutes(text: &[u8]) -> Option<i32> {
    match *text {
        [b'Z' | b'z'] => Some(0),
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            let (hours, minutes) = (number(&[h1, h2])?, number(&[m1, m2])?);
            let minutes = (hours < 24 && minutes < 60).then_some((hours * 60 + minutes) as i32)?;
            Some(if sign == b'-' { -minutes } else { minutes })
        }
        _ => None,
    }
}

fn days_of(year: u32, month: u32) -> Option<u32> {
    let is_leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => Some(31),
        4 | 6 | 9 | 11 => Some(30),
        2 => Some(if is_leap { 29 } else { 28 }),
        _ => None,
    }
}

fn number(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |sum, byte| byte.is_ascii_digit().then(|| sum * 10 + u32::from(byte - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_rfc_3339_is_a_time() {
        for text in [
            "2022-02-01T13:07:41Z",
            "2022-02-01T13:07:41.8667859Z",
            "2022-02-01T13:07:41.1Z",
            "2022-02-01T13:07:41.123456789Z",
            "2022-02-01T13:07:41.123456789012Z",
            "2022-02-01T13:07:41+00:00",
            "2022-02-01T13:07:41-00:00",
            "2022-02-01T13:07:41.5+05:45",
            "2022-02-01t13:07:41z",
            "0000-01-01T00:00:00Z",
            "9999-12-31T23:59:59.999999999999Z",
            "9999-12-31T23:59:59-23:59",
            "2024-02-29T00:00:00Z",
            "2000-02-29T00:00:00Z",
            "1990-12-31T23:59:60Z",
            "1990-12-31T15:59:60-08:00",
            "1937-01-01T12:00:27.87+00:20",
        ] {
            assert!(is_date_time(text), "{text} was refused");
        }
    }

    #[test]
    fn nothing_else_is() {
        for text in [
            "",
            "yesterday",
            "2022-02-01",
            "13:07:41Z",
            "2022-02-01T13:07:41",
            "2022-02-01 13:07:41Z",
            "2022-02-01T13:07Z",
            "2022-02-01T13:07:41,5Z",
            "2022-02-01T13:07:41.Z",
            "2022-02-01T13:07:41.1234567890123Z",
            "2022-02-01T13:07:41+0000",
            "2022-02-01T13:07:41+00",
            "2022-02-01T13:07:41+24:00",
            "2022-02-01T13:07:41+00:60",
            "2022-02-01T13:07:41Z[Europe/London]",
            "2022-02-01T13:07:41+01:00[Europe/London]",
            "2022-02-01T13:07:41ZZ",
            " 2022-02-01T13:07:41Z",
            "20220201T130741Z",
            "2022-W05-2T13:07:41Z",
            "2022-032T13:07:41Z",
            "+002022-02-01T13:07:41Z",
            "10000-01-01T00:00:00Z",
            "22-02-01T13:07:41Z",
            "2022-13-01T00:00:00Z",
            "2022-00-01T00:00:00Z",
            "2022-02-00T00:00:00Z",
            "2022-02-29T00:00:00Z",
            "1900-02-29T00:00:00Z",
            "2022-04-31T00:00:00Z",
            "2022-02-01T24:00:00Z",
            "2022-02-01T13:60:00Z",
            "2022-02-01T13:07:60Z",
            "1990-12-31T23:59:61Z",
            "2022-02-01T13:07:4１Z",
            "２022-02-01T13:07:41Z",
        ] {
            assert!(!is_date_time(text), "{text} was taken");
        }
    }
}
