//! What is handed over and not begun, and which of it begins next. Accounts take turns: however many receivers an event of
//! one account goes to, an attempt of another account is not behind them all.
//!
//! And no receiver has more out at a time than it may have. For a quick one the partition hands over more than that, so
//! that its places do not stay empty until the partition hears of each end: the next attempt begins when one of the others
//! was delivered. When one was not, those that wait for a place go back, for the partition to judge.
//! Pure: times are passed in. Never begins anything.

use std::collections::{VecDeque, hash_map::Entry};

use crate::{
    dispatch::{
        HashMap,
        core::{NextAttempt, Token},
    },
    facts::id::{AccountId, EndpointId},
};

/// What has waited this long for a place goes back: its receiver is not quick any more, and an operator who stops it
/// expects that nothing more goes to it.
const LONGEST_WAIT_MS: u64 = 50;

#[derive(Debug, Default)]
pub struct Turns {
    accounts: VecDeque<AccountId>,
    waiting: HashMap<AccountId, VecDeque<Handed>>,
    /// Of all accounts.
    count: usize,
    out: HashMap<EndpointId, Out>,
    /// Endpoints that have some waiting for a place, or had: each once, with what it has out.
    crowded: VecDeque<EndpointId>,
    /// How many wait for a place, of all endpoints.
    ahead: usize,
}

#[derive(Debug)]
struct Handed {
    send: NextAttempt,
    /// An attempt that ended left its place to this one.
    has_place: bool,
}

/// What one endpoint has out.
#[derive(Debug, Default)]
struct Out {
    /// Begun, or about to begin in a place of their own.
    places: u32,
    /// Waiting for a place, with the time since when.
    waiting: VecDeque<(u64, NextAttempt)>,
    is_crowded: bool,
}

impl Out {
    fn is_idle(&self) -> bool {
        self.places == 0 && !self.is_crowded
    }
}

impl Turns {
    pub fn push(&mut self, send: NextAttempt) {
        self.queue(Handed { send, has_place: false });
    }

    fn queue(&mut self, handed: Handed) {
        let account = &handed.send.delivery.account;
        let waiting = match self.waiting.get_mut(account) {
            Some(waiting) => waiting,
            None => self.waiting.entry(account.clone()).or_default(),
        };
        if waiting.is_empty() {
            self.accounts.push_back(account.clone());
        }
        match handed.has_place {
            true => waiting.push_front(handed),
            false => waiting.push_back(handed),
        }
        self.count += 1;
    }

    /// The next one to begin. [`Turns::ended`] has to follow.
    pub fn next(&mut self, now: u64) -> Option<NextAttempt> {
        while let Some(account) = self.accounts.pop_front() {
            let Entry::Occupied(mut of) = self.waiting.entry(account) else { continue };
            let Some(Handed { send, has_place }) = of.get_mut().pop_front() else { continue };
            self.count -= 1;
            match of.get().is_empty() {
                true => drop(of.remove()),
                false => self.accounts.push_back(of.key().clone()),
            }
            if has_place {
                return Some(send);
            }
            let out = match self.out.get_mut(&send.endpoint.id) {
                Some(out) => out,
                None => self.out.entry(send.endpoint.id.clone()).or_default(),
            };
            if out.waiting.is_empty() && out.places < send.places {
                out.places += 1;
                return Some(send);
            }
            if !std::mem::replace(&mut out.is_crowded, true) {
                self.crowded.push_back(send.endpoint.id.clone());
            }
            out.waiting.push_back((now, send));
            self.ahead += 1;
        }
        None
    }

    /// One has ended: the next of its endpoint gets its place, or all of them go back.
    pub fn ended(&mut self, endpoint: &EndpointId, is_delivered: bool, back: &mut Vec<Token>) {
        // It was begun before everything was given up.
        let Some(out) = self.out.get_mut(endpoint) else { return };
        if !is_delivered {
            self.ahead -= out.waiting.len();
            back.extend(out.waiting.drain(..).map(|(_, send)| send.token));
        }
        if let Some((_, send)) = out.waiting.pop_front() {
            self.ahead -= 1;
            return self.queue(Handed { send, has_place: true });
        }
        out.places -= 1;
        // One that still counts as crowded is left to the next look at those: removed here, it would be listed twice when
        // it came again.
        if out.is_idle() {
            self.out.remove(endpoint);
        }
    }

    /// What has waited too long for a place goes back, and what came later goes with it.
    pub fn give_back(&mut self, now: u64, back: &mut Vec<Token>) {
        for _ in 0..self.crowded.len() {
            let Some(endpoint) = self.crowded.pop_front() else { return };
            let Some(out) = self.out.get_mut(&endpoint) else { continue };
            if out.waiting.front().is_some_and(|(since, _)| now >= since + LONGEST_WAIT_MS) {
                self.ahead -= out.waiting.len();
                back.extend(out.waiting.drain(..).map(|(_, send)| send.token));
            }
            out.is_crowded = !out.waiting.is_empty();
            match out.is_crowded {
                true => self.crowded.push_back(endpoint),
                false if out.is_idle() => drop(self.out.remove(&endpoint)),
                false => {}
            }
        }
    }

    /// Some wait for a place, or did a moment ago.
    pub fn are_crowded(&self) -> bool {
        !self.crowded.is_empty()
    }

    /// How many wait for a place.
    pub fn ahead(&self) -> usize {
        self.ahead
    }

    /// How many may ask for their turn.
    pub fn len(&self) -> usize {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// How many accounts have some that may.
    pub fn accounts(&self) -> usize {
        self.accounts.len()
    }

    /// Gives up everything, including what has begun.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        dispatch::lane::Trust,
        facts::{delivery::Delivery, endpoint::Endpoint, event::Event, signing::SecretText},
    };

    /// Deliveries to an endpoint of an account, numbered.
    pub fn send(number: u64, endpoint: &str, account: &str, places: u32) -> NextAttempt {
        let body = format!(
            r#"{{"id":"evt_1","event":"payment_intent.created","accountId":"{account}","createdAt":"2022-02-01T13:07:41Z","data":{{"paymentIntentId":"pi_1","paymentStatus":"Created","captureMode":"Auto"}}}}"#
        );
        let event = Event::parse(body.into()).unwrap();
        let (id, account) = (EndpointId::new(endpoint).unwrap(), account.parse().unwrap());
        let secret = SecretText::from_random([7; 32]);
        let facts = Endpoint::new(id.clone(), account, "https://receiver.example/".to_owned(), secret, 0);
        let delivery = Delivery::new(format!("{number}-0").parse().unwrap(), id, &event, true, 0);
        let (token, trust) = (Token(number), Trust::Proven);
        NextAttempt { token, trust, places, delivery: Arc::new(delivery), endpoint: Arc::new(facts), trace: None }
    }

    fn begun(turns: &mut Turns) -> Vec<u64> {
        std::iter::from_fn(|| turns.next(0)).map(|send| send.token.0).collect()
    }

    fn ended(turns: &mut Turns, endpoint: &str, is_delivered: bool) -> Vec<u64> {
        let mut back = Vec::new();
        turns.ended(&EndpointId::new(endpoint).unwrap(), is_delivered, &mut back);
        back.into_iter().map(|token| token.0).collect()
    }

    #[test]
    fn an_account_with_many_endpoints_is_no_more_than_one_account() {
        let mut turns = Turns::default();
        (0..1_000).for_each(|n| turns.push(send(n, &format!("ep_{n}"), "acc_wide", 10)));
        (1_000..1_003).for_each(|n| turns.push(send(n, "ep_other", "acc_other", 10)));
        let first: Vec<u64> = std::iter::from_fn(|| turns.next(0)).take(6).map(|send| send.token.0).collect();
        assert_eq!(first, [0, 1_000, 1, 1_001, 2, 1_002]);
        assert_eq!((turns.len(), begun(&mut turns).len()), (997, 997));
    }

    #[test]
    fn no_more_are_out_than_there_are_places_and_who_ends_well_leaves_its_place_to_the_next() {
        let mut turns = Turns::default();
        (0..5).for_each(|n| turns.push(send(n, "ep_1", "acc_1", 2)));
        turns.push(send(9, "ep_2", "acc_1", 2));
        assert_eq!(begun(&mut turns), [0, 1, 9]);
        assert!(turns.is_empty() && turns.are_crowded());
        assert_eq!(turns.ahead(), 3);
        // One that comes later waits behind those that wait already.
        assert!(ended(&mut turns, "ep_1", true).is_empty());
        turns.push(send(5, "ep_1", "acc_1", 2));
        assert_eq!(begun(&mut turns), [2]);
        // The next one of another account is not behind one that has a place.
        turns.push(send(7, "ep_3", "acc_3", 2));
        (0..2).for_each(|_| assert!(ended(&mut turns, "ep_1", true).is_empty()));
        assert_eq!(begun(&mut turns), [7, 4, 3]);
        assert_eq!((turns.ahead(), turns.len()), (1, 0));
        assert!(ended(&mut turns, "ep_1", true).is_empty());
        assert_eq!((turns.ahead(), turns.len()), (0, 1));
        assert_eq!(begun(&mut turns), [5]);
    }

    #[test]
    fn when_one_fails_or_none_ends_the_rest_goes_back_in_its_order() {
        let mut turns = Turns::default();
        (0..5).for_each(|n| turns.push(send(n, "ep_1", "acc_1", 2)));
        begun(&mut turns);
        assert_eq!((ended(&mut turns, "ep_1", false), turns.ahead()), (vec![2, 3, 4], 0));
        // Its place is free.
        (5..9).for_each(|n| turns.push(send(n, "ep_1", "acc_1", 2)));
        assert_eq!(begun(&mut turns), [5]);
        let mut back = Vec::new();
        turns.give_back(LONGEST_WAIT_MS - 1, &mut back);
        assert!(back.is_empty() && turns.are_crowded());
        turns.give_back(LONGEST_WAIT_MS, &mut back);
        assert_eq!(back, [6, 7, 8].map(Token));
        assert!(!turns.are_crowded() && turns.ahead() == 0);
        (0..2).for_each(|_| drop(ended(&mut turns, "ep_1", true)));
        assert!(turns.out.is_empty(), "what has nothing out is forgotten");
    }

    #[test]
    fn who_is_crowded_again_and_again_between_two_looks_stands_there_once() {
        let mut turns = Turns::default();
        for round in 0..100 {
            (0..2).for_each(|n| turns.push(send(2 * round + n, "ep_1", "acc_1", 1)));
            for token in [2 * round, 2 * round + 1] {
                assert_eq!(begun(&mut turns), [token]);
                assert!(ended(&mut turns, "ep_1", true).is_empty());
            }
        }
        assert_eq!(turns.crowded.len(), 1);
        turns.give_back(0, &mut Vec::new());
        assert!(!turns.are_crowded() && turns.out.is_empty());
    }
}
