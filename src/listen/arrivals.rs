//! What kind of arrival a callback is: the first of its event, one that came before, or one that is late for its intent.
//! Pure and bounded: the oldest is forgotten first.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
};

use crate::facts::sequence::Sequence;

/// Events that are remembered, and as many intents: about 3 MB, and more than anybody looks at.
pub const REMEMBERED: usize = 10_000;

/// What an arrival is, beside those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// How often this event has arrived, with this time.
    pub times: u64,
    /// An earlier time was answered 2xx, so to process it again would be wrong.
    pub was_taken: bool,
    /// The highest sequence of its intent, where its own is lower: it is older than something that has arrived.
    pub late_behind: Option<Sequence>,
}

impl Arrival {
    pub const FIRST: Self = Self { times: 1, was_taken: false, late_behind: None };
}

#[derive(Default)]
struct Seen {
    times: u64,
    was_taken: bool,
}

pub struct Arrivals {
    events: Bounded<String, Seen>,
    highest: Bounded<String, Sequence>,
}

impl Arrivals {
    pub fn new() -> Self {
        Self::remembering(REMEMBERED)
    }

    fn remembering(most: usize) -> Self {
        Self { events: Bounded::new(most), highest: Bounded::new(most) }
    }

    /// Notes one that arrived. Only for what is signed, or a stranger could make true ones look late.
    pub fn note(&mut self, event: Option<&str>, intent: Option<&str>, sequence: Option<Sequence>) -> Arrival {
        let mut arrival = Arrival::FIRST;
        if let Some(event) = event {
            let seen = self.events.entry(event.to_owned());
            seen.times += 1;
            arrival = Arrival { times: seen.times, was_taken: seen.was_taken, ..arrival };
        }
        if let (Some(intent), Some(sequence)) = (intent, sequence) {
            let highest = self.highest.entry_or(intent.to_owned(), sequence);
            arrival.late_behind = (sequence < *highest).then_some(*highest);
            *highest = sequence.max(*highest);
        }
        arrival
    }

    /// It was answered 2xx.
    pub fn taken(&mut self, event: &str) {
        if let Some(seen) = self.events.get(event) {
            seen.was_taken = true;
        }
    }
}

/// A map that forgets what came first into it.
struct Bounded<K, V> {
    most: usize,
    kept: HashMap<K, V>,
    oldest_first: VecDeque<K>,
}

impl<K: Hash + Eq + Clone, V> Bounded<K, V> {
    fn new(most: usize) -> Self {
        Self { most, kept: HashMap::new(), oldest_first: VecDeque::new() }
    }

    fn get(&mut self, key: &str) -> Option<&mut V>
    where
        K: std::borrow::Borrow<str>,
    {
        self.kept.get_mut(key)
    }

    fn entry(&mut self, key: K) -> &mut V
    where
        V: Default,
    {
        self.entry_or(key, V::default())
    }

    fn entry_or(&mut self, key: K, value: V) -> &mut V {
        if !self.kept.contains_key(&key) {
            if self.kept.len() >= self.most
                && let Some(oldest) = self.oldest_first.pop_front()
            {
                self.kept.remove(&oldest);
            }
            self.oldest_first.push_back(key.clone());
        }
        self.kept.entry(key).or_insert(value)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::facts::id::EntryId;

    fn sequence(seq: u64) -> Option<Sequence> {
        Some(Sequence(EntryId { ms: 1, seq }))
    }

    #[test]
    fn an_event_that_comes_again_is_counted_and_says_whether_it_was_taken() {
        let mut arrivals = Arrivals::new();
        assert_eq!(arrivals.note(Some("evt_1"), Some("pi_1"), sequence(1)), Arrival::FIRST);
        // A retry of what failed is no duplicate to be skipped.
        assert_eq!(arrivals.note(Some("evt_1"), Some("pi_1"), sequence(1)), Arrival { times: 2, ..Arrival::FIRST });
        arrivals.taken("evt_1");
        let third = arrivals.note(Some("evt_1"), Some("pi_1"), sequence(1));
        assert_eq!(third, Arrival { times: 3, was_taken: true, late_behind: None });
        arrivals.taken("evt_unknown");
    }

    #[test]
    fn only_a_lower_sequence_of_the_same_intent_is_late() {
        let mut arrivals = Arrivals::new();
        arrivals.note(Some("evt_5"), Some("pi_1"), sequence(5));
        assert_eq!(arrivals.note(Some("evt_1"), Some("pi_2"), sequence(1)).late_behind, None);
        assert_eq!(arrivals.note(Some("evt_4"), Some("pi_1"), sequence(4)).late_behind, sequence(5));
        assert_eq!(arrivals.note(Some("evt_6"), Some("pi_1"), sequence(6)).late_behind, None);
        assert_eq!(arrivals.note(Some("evt_5"), Some("pi_1"), sequence(5)).late_behind, sequence(6));
        // Without a sequence or an intent nothing is late.
        assert_eq!(arrivals.note(None, Some("pi_1"), None), Arrival::FIRST);
        assert_eq!(arrivals.note(None, None, sequence(1)), Arrival::FIRST);
    }

    proptest! {
        /// As a list that forgets nothing says it, for what is within the bound; and never more than the bound is kept.
        #[test]
        fn what_is_remembered_is_right_and_bounded(
            came in proptest::collection::vec((0_u8..12, 0_u8..4, 0_u64..20, any::<bool>()), 0..80),
            most in 1_usize..20,
        ) {
            let (mut bounded, mut all) = (Arrivals::remembering(most), Arrivals::remembering(usize::MAX));
            let mut kinds = std::collections::BTreeSet::new();
            for (event, intent, seq, is_taken) in came {
                let (event, intent) = (format!("evt_{event}"), format!("pi_{intent}"));
                kinds.extend([event.clone(), intent.clone()]);
                let said = bounded.note(Some(&event), Some(&intent), sequence(seq));
                let right = all.note(Some(&event), Some(&intent), sequence(seq));
                if kinds.len() <= most {
                    prop_assert_eq!(said, right);
                }
                prop_assert!(said.times <= right.times && said.times >= 1);
                prop_assert!(right.was_taken || !said.was_taken);
                prop_assert!(bounded.events.kept.len() <= most && bounded.highest.kept.len() <= most);
                prop_assert_eq!(bounded.events.kept.len(), bounded.events.oldest_first.len());
                if is_taken {
                    bounded.taken(&event);
                    all.taken(&event);
                }
            }
        }
    }
}
