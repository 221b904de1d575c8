//! Money as customers read it.

use std::fmt;

use crate::intents::money::{Currency, Money};

/// `£1,234.50`.
#[derive(Debug, Clone, Copy)]
pub struct Price(pub Money);

pub fn sign(currency: Currency) -> &'static str {
    match currency {
        Currency::Gbp => "£",
        Currency::Eur => "€",
    }
}

impl fmt::Display for Price {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Money { value, currency_code } = self.0;
        let minus = if value < 0 { "−" } else { "" };
        let (whole, part) = (value.unsigned_abs() / 100, value.unsigned_abs() % 100);
        let digits = whole.to_string();
        let mut grouped = String::new();
        for (at, digit) in digits.chars().enumerate() {
            if at > 0 && (digits.len() - at).is_multiple_of(3) {
                grouped.push(',');
            }
            grouped.push(digit);
        }
        write!(f, "{minus}{}{grouped}.{part:02}", sign(currency_code))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_price_is_grouped_and_has_its_sign() {
        let of = |value, currency_code| Price(Money { value, currency_code }).to_string();
        assert_eq!(of(123_456_789, Currency::Gbp), "£1,234,567.89");
        assert_eq!(of(-5, Currency::Eur), "−€0.05");
        assert_eq!(of(100_000, Currency::Gbp), "£1,000.00");
        assert_eq!(of(99_999, Currency::Gbp), "£999.99");
    }
}
