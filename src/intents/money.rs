//! Money: minor units of one currency, in sums that are checked.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// More than any card network moves at once, and far from where sums of `i64` would overflow.
pub const MAX_MINOR: i64 = 1_000_000_000_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Currency {
    Gbp,
    Eur,
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gbp => "GBP",
            Self::Eur => "EUR",
        })
    }
}

/// In minor units: 100 is 1.00 GBP. Negative only where it takes something off a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Money {
    #[schema(minimum = -1_000_000_000_000_000i64, maximum = 1_000_000_000_000_000i64)]
    pub value: i64,
    pub currency_code: Currency,
}

impl Money {
    pub fn of(self, value: i64) -> Self {
        Self { value, ..self }
    }
}

/// For people: `10.50 GBP`.
impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.value < 0 { "-" } else { "" };
        let value = self.value.unsigned_abs();
        write!(f, "{sign}{}.{:02} {}", value / 100, value % 100, self.currency_code)
    }
}

/// None where the sum is more than [`MAX_MINOR`].
pub fn sum(values: impl IntoIterator<Item = i64>) -> Option<i64> {
    let sum = values.into_iter().try_fold(0i64, i64::checked_add)?;
    (sum.abs() <= MAX_MINOR).then_some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_is_shown_in_major_units_and_written_in_minor_ones() {
        let money = Money { value: -1_005, currency_code: Currency::Gbp };
        assert_eq!(money.to_string(), "-10.05 GBP");
        assert_eq!(serde_json::to_string(&money).unwrap(), r#"{"value":-1005,"currencyCode":"GBP"}"#);
    }

    #[test]
    fn a_sum_that_is_too_large_is_none() {
        assert_eq!(sum([MAX_MINOR - 1, 1]), Some(MAX_MINOR));
        assert_eq!(sum([MAX_MINOR, 1]), None);
        assert_eq!(sum([i64::MAX, 1]), None);
    }
}
