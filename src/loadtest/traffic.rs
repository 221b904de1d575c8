//! What comes next: an account, one of its intents that are alive, that intent's next status, and the event's exact
//! bytes. Pure: takes a population and a seed. It takes only a microsecond or two, because it shares the machine with
//! what it measures.

use std::sync::Arc;

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{draw::mix, ids::Ids, population::Population, scenario::Traffic as Wanted};
use crate::{
    facts::event::MAX_EVENT_BYTES,
    lifecycle::{Life, Words, created_at},
};

/// Which event it is, in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventFacts {
    /// Counted from 0 over the run.
    pub number: u32,
    pub account: u32,
    /// Counted from 0 over the run.
    pub intent: u32,
    /// Its place in the life of its intent, from 0.
    pub place: u8,
}

/// An intent that is alive.
#[derive(Debug, Clone, Copy)]
struct Alive {
    intent: u32,
    life: Life,
    places: u8,
}

pub struct Traffic {
    population: Arc<Population>,
    rng: StdRng,
    wanted: Wanted,
    events: Ids,
    intents: Ids,
    next_event: u32,
    next_intent: u32,
    /// By account; filled when an account gets its first event, because most of many get none for long.
    alive: Vec<Vec<Alive>>,
    created_at: CreatedAt,
}

impl Traffic {
    pub fn new(population: Arc<Population>, wanted: &Wanted, seed: u64) -> Self {
        let run = population.run();
        Self {
            rng: StdRng::seed_from_u64(mix(seed ^ 0x7AFF)),
            wanted: Wanted { body_bytes: wanted.body_bytes.min(MAX_EVENT_BYTES as u32), ..wanted.clone() },
            events: Ids::events(run),
            intents: Ids::intents(run),
            next_event: 0,
            next_intent: 0,
            alive: vec![Vec::new(); population.accounts() as usize],
            created_at: CreatedAt::default(),
            population,
        }
    }

    /// The next event, with this time as its creation. Its bytes are appended.
    pub fn next(&mut self, wall_ms: u64, body: &mut Vec<u8>) -> EventFacts {
        let account = self.account();
        let slot = self.rng.random_range(0..self.wanted.intents as usize);
        let alive = self.step(account, slot);
        let facts = EventFacts {
            number: self.next_event,
            account,
            intent: alive.intent,
            place: alive.places.saturating_sub(1),
        };
        self.next_event += 1;
        let begins = body.len();
        alive.life.write_event(
            body,
            &Words {
                id: &self.events.of(facts.number),
                account: &self.population.account_id(account),
                intent: &self.intents.of(facts.intent),
                created_at: self.created_at.at(wall_ms),
            },
        );
        self.pad(body, begins + self.wanted.body_bytes as usize);
        facts
    }

    /// One hot merchant, and the others evenly or by their weights.
    fn account(&mut self) -> u32 {
        let accounts = self.population.accounts();
        if self.wanted.hot_share > 0.0 && (accounts == 1 || self.rng.random_bool(self.wanted.hot_share)) {
            return 0;
        }
        if self.population.has_weights() {
            return self.population.account_by_weight(self.rng.random());
        }
        let first = u32::from(self.wanted.hot_share > 0.0);
        self.rng.random_range(first..accounts)
    }

    /// Lets an intent of the account take its next step; one whose life is over is replaced by a new one.
    fn step(&mut self, account: u32, slot: usize) -> Alive {
        let alive = &mut self.alive[account as usize];
        if let Some(known) = alive.get_mut(slot)
            && known.life.step(&mut self.rng).is_some()
        {
            known.places += 1;
            return *known;
        }
        let mut life = Life::new(&mut self.rng);
        life.step(&mut self.rng);
        let begun = Alive { intent: self.next_intent, life, places: 1 };
        self.next_intent += 1;
        match alive.get_mut(slot) {
            Some(over) => *over = begun,
            None => alive.push(begun),
        }
        begun
    }

    /// Ends the event with what a payment usually carries besides, up to the size that was asked for.
    fn pad(&mut self, body: &mut Vec<u8>, size: usize) {
        const END: &[u8] = b"}}";
        const NOTE: &[u8] = br#","note":""#;
        const WORDS: &[u8] =
            b"Table 12, two covers. Paid at the counter; receipt by e-mail. Thank you for dining with us. ";
        let amount = self.rng.random_range(100..100_000u32);
        let (major, minor) = (amount / 100, amount % 100);
        let reference = self.rng.random_range(0..u32::MAX);
        let extras = [
            format!(r#","amount":{{"value":{amount},"currencyCode":"GBP"}}"#),
            format!(r#","reference":"ORDER-{reference:010}""#),
            format!(r#","description":"Order {reference}, {major}.{minor:02} GBP""#),
            r#","paymentMethods":["Card","Wallet"]"#.to_owned(),
            format!(r#","customer":{{"id":"cust_{reference:08x}","emailAddress":"guest{reference}@example.com"}}"#),
        ];
        for extra in extras {
            if body.len() + extra.len() + END.len() <= size {
                body.extend_from_slice(extra.as_bytes());
            }
        }
        let room = size.saturating_sub(body.len() + END.len() + NOTE.len() + 1);
        if room > 0 {
            body.extend_from_slice(NOTE);
            body.extend(WORDS.iter().cycle().take(room));
            body.push(b'"');
        }
        body.extend_from_slice(END);
    }
}

/// The text of the last millisecond, because many events fall into one.
#[derive(Default)]
struct CreatedAt {
    ms: u64,
    text: String,
}

impl CreatedAt {
    fn at(&mut self, wall_ms: u64) -> &str {
        if self.text.is_empty() || self.ms != wall_ms {
            self.ms = wall_ms;
            self.text = created_at(wall_ms);
        }
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use bytes::Bytes;

    use super::*;
    use crate::{
        facts::event::Event,
        loadtest::{population::tests::scenario, scenario::Population as Endpoints},
    };

    fn traffic(accounts: u32, wanted: Wanted, seed: u64) -> Traffic {
        let population = Population::draw(&scenario(accounts, Endpoints::default()), seed).unwrap();
        Traffic::new(Arc::new(population), &wanted, seed)
    }

    fn next(traffic: &mut Traffic) -> (EventFacts, Event) {
        let mut body = Vec::new();
        let facts = traffic.next(1_700_000_000_000 + u64::from(traffic.next_event), &mut body);
        (facts, Event::parse(Bytes::from(body)).unwrap())
    }

    #[test]
    fn every_event_is_valid_has_the_size_asked_for_and_ids_that_lead_back() {
        let mut traffic = traffic(5, Wanted { accounts: 5, ..Wanted::default() }, 3);
        for number in 0..5_000 {
            let (facts, event) = next(&mut traffic);
            assert_eq!((facts.number, event.body().len()), (number, 600));
            assert_eq!(traffic.events.number(event.id.as_str().as_bytes()), Some(number));
            assert_eq!(event.intent.as_str(), traffic.intents.of(facts.intent));
            assert_eq!(event.account.as_str(), traffic.population.account_id(facts.account));
        }
    }

    #[test]
    fn the_events_of_an_intent_are_the_steps_of_one_life() {
        let mut traffic = traffic(3, Wanted { accounts: 3, intents: 4, ..Wanted::default() }, 4);
        let mut lives: HashMap<u32, (u8, u32)> = HashMap::new();
        for _ in 0..5_000 {
            let (facts, _) = next(&mut traffic);
            let (place, account) = lives.entry(facts.intent).or_insert((0, facts.account));
            assert_eq!((facts.place, facts.account), (*place, *account));
            *place += 1;
        }
        assert!(lives.values().any(|(places, _)| *places == 4));
    }

    #[test]
    fn the_hot_account_gets_its_share_and_the_others_the_rest_evenly() {
        let mut traffic = traffic(5, Wanted { accounts: 5, hot_share: 0.8, ..Wanted::default() }, 5);
        let mut counts = [0u32; 5];
        (0..10_000).for_each(|_| counts[next(&mut traffic).0.account as usize] += 1);
        assert!((7_800..8_200).contains(&counts[0]), "{counts:?}");
        assert!(counts[1..].iter().all(|count| (400..600).contains(count)), "{counts:?}");
    }

    #[test]
    fn small_bodies_are_as_small_as_they_can_be_and_the_seed_repeats_them() {
        let small = Wanted { accounts: 2, body_bytes: 0, ..Wanted::default() };
        let bodies = |seed| {
            let mut traffic = traffic(2, small.clone(), seed);
            (0..50).map(|_| next(&mut traffic).1.body().clone()).collect::<Vec<_>>()
        };
        assert!(bodies(1).iter().all(|body| body.len() < 300));
        assert_eq!(bodies(1), bodies(1));
        assert_ne!(bodies(1), bodies(2));
        let large = Wanted { accounts: 2, body_bytes: u32::MAX, ..Wanted::default() };
        assert_eq!(next(&mut traffic(2, large, 1)).1.body().len(), MAX_EVENT_BYTES);
    }
}
