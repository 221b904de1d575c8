//! The fields that the page can ask for: how each looks, and what may stand in it.

use super::countries;
use crate::{
    facts::text::steers,
    intents::{issuer, requests::is_email, stamp::Stamp},
};

/// One field. The page is made from it, and what is typed is checked by it.
#[derive(Debug)]
pub struct Field {
    pub name: &'static str,
    pub label: &'static str,
    /// What is said of one that is empty; without it the field may be.
    pub missing: Option<&'static str>,
    pub hint: Option<&'static str>,
    /// In characters.
    pub max: usize,
    /// What a browser may fill in by itself.
    pub autocomplete: &'static str,
    pub kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    Lines,
    Email,
    Postcode,
    Country,
    CardNumber,
    Expiry,
    SecurityCode,
}

impl Kind {
    /// Never shown again, kept or logged.
    pub fn is_secret(self) -> bool {
        matches!(self, Self::CardNumber | Self::SecurityCode)
    }

    pub fn inputmode(self) -> &'static str {
        match self {
            Self::Email => "email",
            Self::CardNumber | Self::Expiry | Self::SecurityCode => "numeric",
            _ => "text",
        }
    }

    /// How wide the field is: as wide as what is meant to stand in it.
    pub fn width(self) -> &'static str {
        match self {
            Self::Postcode | Self::Expiry | Self::SecurityCode => "half",
            _ => "whole",
        }
    }
}

const TEXT: Field =
    Field { name: "", label: "", missing: None, hint: None, max: 100, autocomplete: "off", kind: Kind::Text };

pub const EMAIL: Field = Field {
    name: "email",
    label: "Email address",
    missing: Some("Enter your email address"),
    max: 254,
    autocomplete: "email",
    kind: Kind::Email,
    ..TEXT
};

pub const CARD: [Field; 4] = [
    Field {
        name: "card-number",
        label: "Card number",
        missing: Some("Enter your card number"),
        max: 40,
        autocomplete: "cc-number",
        kind: Kind::CardNumber,
        ..TEXT
    },
    Field {
        name: "expiry",
        label: "Expiry date",
        missing: Some("Enter the expiry date of your card"),
        hint: Some("MM / YY"),
        max: 10,
        autocomplete: "cc-exp",
        kind: Kind::Expiry,
    },
    Field {
        name: "security-code",
        label: "Security code",
        missing: Some("Enter the security code of your card"),
        hint: Some("CV2"),
        max: 10,
        autocomplete: "cc-csc",
        kind: Kind::SecurityCode,
    },
    Field {
        name: "card-name",
        label: "Name on card",
        missing: Some("Enter the name on your card"),
        autocomplete: "cc-name",
        ..TEXT
    },
];

pub const RECIPIENT: Field = Field {
    name: "shipping-name",
    label: "Full name",
    missing: Some("Enter who the delivery is for"),
    autocomplete: "shipping name",
    ..TEXT
};

pub const NOTES: Field =
    Field { name: "shipping-notes", label: "Delivery notes", max: 1024, kind: Kind::Lines, ..TEXT };

macro_rules! address {
    ($of:literal, $name:literal) => {
        [
            Field {
                name: concat!($of, "-line1"),
                label: "Address line 1",
                missing: Some(concat!("Enter the first line of the ", $name, " address")),
                autocomplete: concat!($of, " address-line1"),
                ..TEXT
            },
            Field {
                name: concat!($of, "-line2"),
                label: "Address line 2",
                autocomplete: concat!($of, " address-line2"),
                ..TEXT
            },
            Field {
                name: concat!($of, "-city"),
                label: "Town or city",
                missing: Some(concat!("Enter the town or city of the ", $name, " address")),
                autocomplete: concat!($of, " address-level2"),
                ..TEXT
            },
            Field {
                name: concat!($of, "-postcode"),
                label: "Postcode",
                max: 50,
                autocomplete: concat!($of, " postal-code"),
                kind: Kind::Postcode,
                ..TEXT
            },
            Field {
                name: concat!($of, "-country"),
                label: "Country",
                missing: Some(concat!("Choose the country of the ", $name, " address")),
                autocomplete: concat!($of, " country"),
                kind: Kind::Country,
                ..TEXT
            },
        ]
    };
}

pub const BILLING: [Field; 5] = address!("billing", "billing");
pub const SHIPPING: [Field; 5] = address!("shipping", "delivery");

/// What is wrong with what stands in a field, for whoever typed it.
pub fn fault(field: &Field, text: &str, now: Stamp) -> Option<String> {
    if text.is_empty() {
        return field.missing.map(str::to_owned);
    }
    if text.chars().count() > field.max {
        return Some(format!("{} can have at most {} characters", field.label, field.max));
    }
    if text.chars().any(|c| steers(c) && !(c == '\n' && field.kind == Kind::Lines)) {
        return Some(format!("{} has characters that cannot be printed", field.label));
    }
    let wrong = match field.kind {
        Kind::Email if !is_email(text) => "Enter an email address as in name@example.com",
        Kind::Country if !countries::is_country(text) => "Choose a country from the list",
        Kind::CardNumber if issuer::mask(text).is_none() => "Check the digits of the card number",
        Kind::Expiry => return expiry_fault(text, now).map(str::to_owned),
        Kind::SecurityCode if !is_security_code(text) => "Enter the 3 or 4 digits of the security code",
        _ => return None,
    };
    Some(wrong.to_owned())
}

fn is_security_code(text: &str) -> bool {
    (3..=4).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn expiry_fault(text: &str, now: Stamp) -> Option<&'static str> {
    let Some((year, month)) = year_and_month(text) else {
        return Some("Enter the expiry date as month and year, as in 09 / 30");
    };
    // A card is good to the end of its month. Both begin with the year, in four digits.
    let is_over = *format!("{year:04}-{month:02}") < now.to_string()[..7];
    is_over.then_some("This card has expired")
}

/// `9/30`, `09 / 2030` or `0930`.
fn year_and_month(text: &str) -> Option<(u32, u32)> {
    let text: String = text.chars().filter(|c| *c != ' ').collect();
    let (month, year) = match text.split_once('/') {
        Some(both) => both,
        None if text.len() == 4 => text.split_at_checked(2)?,
        None => return None,
    };
    let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u32>().ok())?;
    let month = number(month).filter(|month| (1..=12).contains(month))?;
    match year.len() {
        2 => Some((2_000 + number(year)?, month)),
        4 => Some((number(year)?, month)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-11-27T10:00:00Z";

    fn fault_of(field: &Field, text: &str) -> Option<String> {
        fault(field, text, Stamp::parse(NOW).unwrap())
    }

    #[test]
    fn a_card_is_good_to_the_end_of_its_month() {
        let expiry = &CARD[1];
        for good in ["11/26", "11 / 2026", "1126", "1/27", "12/99", "01 / 2151"] {
            assert_eq!(fault_of(expiry, good), None, "{good}");
        }
        for over in ["10/26", "1025", "12/2025", "01/0000"] {
            assert!(fault_of(expiry, over).unwrap().contains("has expired"), "{over}");
        }
        for wrong in ["", "13/27", "00/27", "1/1", "11-27", "11/27/1", "é/27", "aéb", "+1/27", "11/+7", "/"] {
            assert!(fault_of(expiry, wrong).unwrap().starts_with("Enter the expiry date"), "{wrong}");
        }
    }

    #[test]
    fn each_field_takes_what_it_is_for_and_bounds_it() {
        let [number, _, code, _] = &CARD;
        let postcode = &BILLING[3];
        let country = &BILLING[4];
        for (field, good) in
            [(number, "5200 0000 0000 0056"), (code, "000"), (code, "1234"), (country, "GB"), (postcode, "")]
        {
            assert_eq!(fault_of(field, good), None, "{good}");
        }
        for (field, wrong) in [
            (number, "5200 0000 0000 0057"),
            (code, "12"),
            (code, "12345"),
            (code, "١٢٣"),
            (country, "XX"),
            (country, ""),
        ] {
            assert!(fault_of(field, wrong).is_some(), "{wrong}");
        }
        assert_eq!(fault_of(&EMAIL, "a@b.example"), None);
        assert!(fault_of(&EMAIL, "a b@c").is_some());
        assert!(fault_of(&RECIPIENT, &"é".repeat(100)).is_none() && fault_of(&RECIPIENT, &"é".repeat(101)).is_some());
        assert!(fault_of(&RECIPIENT, "a\nb").is_some() && fault_of(&NOTES, "a\nb").is_none());
        assert!(fault_of(&NOTES, "a\u{202e}b").is_some());
    }
}
