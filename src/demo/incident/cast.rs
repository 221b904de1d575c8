//! Who takes part in the incident: accounts, their endpoints, what is wrong with each, and what is true in the end.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;

/// Accounts, named after shops; the first twenty have an endpoint for their accounting too.
const SHOPS: [&str; 40] = [
    "antiques", "bakery", "bikes", "bistro", "books", "bowling", "butcher", "candles", "ceramics", "cheese", "chess",
    "cinema", "cobbler", "coffee", "cutlery", "dairy", "deli", "drums", "fabrics", "fishing", "florist", "framer",
    "games", "garden", "gelato", "guitars", "hardware", "hats", "herbs", "hotel", "jeweller", "kites", "lamps", "maps",
    "museum", "noodles", "optician", "paints", "pharmacy", "toys",
];
const WITH_TWO: usize = 20;

/// Whose events nobody wants: it has no endpoint.
pub const UNREGISTERED: &str = "acc_popup";

/// What an endpoint does wrong from the moment on at which the incident begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    None,
    ConnectionRefused,
    ServerError,
    Unauthorized,
    NotFound,
    Gone,
    TimesOut,
    TooManyRequests,
    Redirects,
    SpeaksNoTls,
    UnknownHost,
    Paused,
}

/// How many endpoints have which: fifteen that fail, and one that an operator has paused.
const FAULTS: [(Fault, usize); 11] = [
    (Fault::ConnectionRefused, 3),
    (Fault::ServerError, 2),
    (Fault::Unauthorized, 2),
    (Fault::NotFound, 1),
    (Fault::Gone, 1),
    (Fault::TimesOut, 2),
    (Fault::TooManyRequests, 1),
    (Fault::Redirects, 1),
    (Fault::SpeaksNoTls, 1),
    (Fault::UnknownHost, 1),
    (Fault::Paused, 1),
];

impl Fault {
    /// Whether its receiver's answers are what is wrong; else its endpoint is changed.
    pub fn is_an_answer(self) -> bool {
        !matches!(self, Self::None | Self::ConnectionRefused | Self::SpeaksNoTls | Self::UnknownHost | Self::Paused)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "takes everything",
            Self::ConnectionRefused => "nothing listens at its new address",
            Self::ServerError => "answers 500",
            Self::Unauthorized => "answers 401",
            Self::NotFound => "answers 404",
            Self::Gone => "answers 410",
            Self::TimesOut => "accepts and never answers",
            Self::TooManyRequests => "answers 429 with Retry-After: 30",
            Self::Redirects => "answers 301",
            Self::SpeaksNoTls => "speaks no TLS at its new address",
            Self::UnknownHost => "its new host has no address",
            Self::Paused => "paused by an operator",
        })
    }
}

/// An endpoint of the incident.
#[derive(Debug, Clone, Serialize)]
pub struct Part {
    pub endpoint: String,
    pub account: String,
    pub fault: Fault,
    /// Events that were published for its account.
    pub owed: u64,
    /// Of those, what its receiver took.
    pub delivered: u64,
}

/// Everybody, with what is true of them: what a look at the incident must find.
#[derive(Debug, Serialize)]
pub struct Facts {
    pub accounts: usize,
    /// When the faults began, ms since 1970; 0 before.
    pub broke_at_ms: u64,
    pub events: u64,
    /// Of [`UNREGISTERED`].
    pub unregistered: u64,
    /// No events at all: they are in the quarantine.
    pub malformed: u64,
    pub endpoints: Vec<Part>,
}

impl Facts {
    pub fn new() -> Self {
        let mut endpoints = Vec::new();
        for (number, shop) in SHOPS.iter().enumerate() {
            let mut add = |endpoint: String| {
                let account = format!("acc_{shop}");
                endpoints.push(Part { endpoint, account, fault: Fault::None, owed: 0, delivered: 0 });
            };
            add(format!("ep_{shop}"));
            if number < WITH_TWO {
                add(format!("ep_{shop}_books"));
            }
        }
        let faults = FAULTS.iter().flat_map(|(fault, count)| std::iter::repeat_n(*fault, *count));
        // Spread over all of them, so that some accounts have one that works and one that does not.
        let step = endpoints.len() / FAULTS.iter().map(|(_, count)| count).sum::<usize>();
        for (number, fault) in faults.enumerate() {
            endpoints[number * step + 1].fault = fault;
        }
        Self { accounts: SHOPS.len(), broke_at_ms: 0, events: 0, unregistered: 0, malformed: 0, endpoints }
    }

    pub fn with(&self, fault: Fault) -> impl Iterator<Item = &Part> {
        self.endpoints.iter().filter(move |part| part.fault == fault)
    }

    pub fn failing(&self) -> impl Iterator<Item = &Part> {
        self.endpoints.iter().filter(|part| !matches!(part.fault, Fault::None | Fault::Paused))
    }

    /// Notes that an event was published.
    pub fn published(&mut self, account: &str) {
        self.events += 1;
        if account == UNREGISTERED {
            self.unregistered += 1;
        }
        self.endpoints.iter_mut().filter(|part| part.account == account).for_each(|part| part.owed += 1);
    }

    pub fn delivered(&mut self, taken: &BTreeMap<String, u64>) {
        for part in &mut self.endpoints {
            part.delivered = taken.get(&part.endpoint).copied().unwrap_or(0);
        }
    }

    pub fn account(&self, number: usize) -> String {
        format!("acc_{}", SHOPS[number % SHOPS.len()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_of_sixty_endpoints_fails_each_as_the_table_says() {
        let facts = Facts::new();
        assert_eq!((facts.accounts, facts.endpoints.len(), facts.failing().count()), (40, 60, 15));
        for (fault, count) in FAULTS {
            assert_eq!(facts.with(fault).count(), count, "{fault:?}");
        }
    }
}
