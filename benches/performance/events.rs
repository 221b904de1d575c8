//! The events that are delivered: lives of payment intents, 3 or 4 events each, of about 600 bytes, interleaved so that
//! several of one intent are in flight or near it. The same for the same seed.

use std::{collections::VecDeque, ops::Range};

use rand::{RngExt, SeedableRng, rngs::StdRng};

/// Intents whose lives are interleaved: events of one intent are about this many entries apart.
const ALIVE: usize = 400;

/// The size of one event: the published payload with the members that real producers add.
const EVENT_BYTES: usize = 600;

pub struct Event {
    pub id: String,
    pub account: String,
    pub body: Vec<u8>,
}

struct Intent {
    name: String,
    account: usize,
    statuses: &'static [&'static str],
}

pub struct Lives {
    rng: StdRng,
    accounts: Range<usize>,
    born: usize,
    alive: VecDeque<(Intent, usize)>,
}

impl Lives {
    /// For the accounts from 0 on.
    pub fn new(accounts: usize, seed: u64) -> Self {
        Self::of(0..accounts, seed)
    }

    /// For the accounts with these numbers.
    pub fn of(accounts: Range<usize>, seed: u64) -> Self {
        Self { rng: StdRng::seed_from_u64(seed), accounts, born: 0, alive: VecDeque::new() }
    }

    fn token(&mut self) -> String {
        const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
        (0..22).map(|_| char::from(ALPHABET[self.rng.random_range(0..ALPHABET.len())])).collect()
    }

    fn birth(&mut self) -> Intent {
        let statuses: &[&str] = match self.rng.random_bool(0.5) {
            true => &["Created", "Authorized", "Captured"],
            false => &["Created", "Authorized", "Captured", "Refunded"],
        };
        self.born += 1;
        Intent {
            name: format!("pi_{}", self.token()),
            account: self.accounts.start + self.born % self.accounts.len(),
            statuses,
        }
    }

    /// The next event, under an id that the caller chose.
    pub fn next_as(&mut self, id: String) -> Event {
        while self.alive.len() < ALIVE {
            let intent = self.birth();
            self.alive.push_back((intent, 0));
        }
        let at = self.rng.random_range(0..self.alive.len());
        let (intent, step) = &mut self.alive[at];
        let (status, account) = (intent.statuses[*step], intent.account);
        *step += 1;
        let is_over = *step == intent.statuses.len();
        let kind = if status == "Created" { "created" } else { "status_updated" };
        let mut body = format!(
            r#"{{"id":"{id}","event":"payment_intent.{kind}","accountId":"acc_{account}","createdAt":"2026-02-01T13:07:41.8667859Z","data":{{"paymentIntentId":"{}","paymentStatus":"{status}","captureMode":"Auto","amount":{{"value":1250,"currencyCode":"GBP"}},"reference":"Order 4711","description":""#,
            intent.name
        );
        let rest = EVENT_BYTES.saturating_sub(body.len() + r#""}}"#.len());
        body.extend("Two coffees and a slice of lemon cake. ".chars().cycle().take(rest));
        body.push_str(r#""}}"#);
        if is_over {
            self.alive.swap_remove_back(at);
        }
        Event { id, account: format!("acc_{account}"), body: body.into_bytes() }
    }
}

impl Iterator for Lives {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        let id = format!("evt_{}", self.token());
        Some(self.next_as(id))
    }
}
