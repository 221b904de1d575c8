//! The issuer of the customer's card, as the sandbox plays it. Which cards do what is Dojo's; what amounts do is ours, for
//! whoever cannot choose a card.

use super::intent::Card;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Approves,
    /// Asks the customer to prove who they are; approves when they do.
    Challenges,
    Declines(&'static str),
    /// Approves, after some seconds.
    IsSlow,
    IsDown,
}

/// Longest and shortest number of a card (ISO/IEC 7812).
const DIGITS: std::ops::RangeInclusive<usize> = 12..=19;

pub const APPROVED: &str = "5200000000000056";
pub const CHALLENGED: &str = "4456530000001096";
pub const DECLINED: &str = "4456530000001013";

/// What it says of a payment. The card decides; where that approves, the last two digits of the amount do.
pub fn judge(number: &str, amount: i64) -> Verdict {
    match (number, of_amount(amount)) {
        (DECLINED, _) => Verdict::Declines("the card is declined"),
        (_, verdict @ (Verdict::Declines(_) | Verdict::IsDown)) => verdict,
        (CHALLENGED, _) => Verdict::Challenges,
        (_, verdict) => verdict,
    }
}

/// What it says of an amount alone.
pub fn of_amount(amount: i64) -> Verdict {
    match amount % 100 {
        51 => Verdict::Declines("insufficient funds"),
        54 => Verdict::Declines("the card has expired"),
        91 => Verdict::IsSlow,
        96 => Verdict::IsDown,
        _ => Verdict::Approves,
    }
}

/// Masks a card's number the moment it is read. None if it is not one.
pub fn mask(number: &str) -> Option<(String, Card)> {
    let digits: String = number.chars().filter(|c| !matches!(c, ' ' | '-')).collect();
    let is_number = DIGITS.contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit()) && luhn(&digits);
    is_number.then(|| {
        // Of a short number less is shown, so that at least four digits never are.
        let (shown, last) = (&digits[..(digits.len() - 8).min(8)], &digits[digits.len() - 4..]);
        let masked = format!("{shown}****{last}");
        let card = Card { masked, scheme: scheme(&digits).to_owned() };
        (digits, card)
    })
}

fn scheme(digits: &str) -> &'static str {
    match digits.as_bytes() {
        [b'4', ..] => "VISA",
        [b'5', b'1'..=b'5', ..] | [b'2', b'2'..=b'7', ..] => "MASTERCARD",
        [b'3', b'4' | b'7', ..] => "AMEX",
        [b'6', b'0', b'1', b'1', ..] => "DISCOVER",
        [b'3', b'0' | b'6' | b'8', ..] => "DCI",
        _ => "MAESTRO",
    }
}

fn luhn(digits: &str) -> bool {
    let doubled = |digit: u32| if digit > 4 { digit * 2 - 9 } else { digit * 2 };
    let values = digits.bytes().rev().map(|byte| u32::from(byte - b'0'));
    let sum: u32 = values.enumerate().map(|(index, digit)| if index % 2 == 1 { doubled(digit) } else { digit }).sum();
    sum.is_multiple_of(10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_ends_of_a_number_are_kept() {
        let (number, card) = mask("4456 5300 0000 1096").unwrap();
        assert_eq!(
            (number.as_str(), card.masked.as_str(), card.scheme.as_str()),
            (CHALLENGED, "44565300****1096", "VISA")
        );
        assert_eq!(mask("501800000009").unwrap().1.masked, "5018****0009");
        for wrong in ["", "4456", "4456530000001097", "44565300000010９6", "4456 5300 0000 1096 0000 0000"] {
            assert_eq!(mask(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_test_cards_do_what_they_are_for_and_amounts_too() {
        assert_eq!(judge(APPROVED, 1_000), Verdict::Approves);
        assert_eq!(judge(CHALLENGED, 1_000), Verdict::Challenges);
        assert!(matches!(judge(DECLINED, 1_000), Verdict::Declines(_)));
        assert_eq!(judge(APPROVED, 1_051), Verdict::Declines("insufficient funds"));
        assert_eq!(judge(APPROVED, 1_091), Verdict::IsSlow);
        assert_eq!(judge(APPROVED, 1_096), Verdict::IsDown);
    }
}
