//! The lease of the partition, as a worker that holds it or asks for it knows it: which value is ours, until when by our
//! own clock, and when it is to be renewed.

use std::collections::VecDeque;

use crate::store::protocol::{Answer, Failure, Term};

/// Values that this worker wrote, or may have written, to the lease. Beyond this many it waits like anyone else for the
/// lease to end.
const MAX_OWN_VALUES: usize = 16;

#[derive(Debug)]
pub(super) struct Lease {
    ttl_ms: u64,
    term: Option<Term>,
    own_values: VecDeque<Term>,
    /// It is ours until then, even if the term has ended before; 0 once that is known to be over.
    until: u64,
    /// It was got, and neither given back nor lost since.
    is_kept: bool,
    renew_at: u64,
    /// When the renewal that is on its way was sent.
    renewing: Option<u64>,
    /// Who asked for the partition at the last renewal.
    asked_by: Option<String>,
}

impl Lease {
    pub fn new(ttl_ms: u64) -> Self {
        let own_values = VecDeque::new();
        Self { ttl_ms, term: None, own_values, until: 0, is_kept: false, renew_at: 0, renewing: None, asked_by: None }
    }

    /// The term that holds it.
    pub fn term(&self) -> Option<&Term> {
        self.term.as_ref()
    }

    /// The other worker that has asked for it, as the last renewal told.
    pub fn asked_by(&self) -> Option<&str> {
        self.asked_by.as_deref().filter(|_| self.term.is_some())
    }

    /// Asks for it with this value. Returns the earlier values of ours that it may still hold.
    pub fn ask(&mut self, term: Term) -> Vec<Term> {
        let previous = self.own_values.iter().cloned().collect();
        if self.own_values.len() == MAX_OWN_VALUES {
            self.own_values.pop_front();
        }
        self.own_values.push_back(term);
        previous
    }

    /// It was given to the value last asked with; the call was sent at this time.
    pub fn begin(&mut self, sent: u64) {
        self.term = self.own_values.back().cloned();
        self.renewing = None;
        self.asked_by = None;
        self.is_kept = true;
        self.held_from(sent);
    }

    /// It is not relied on any more. Returns the term that there was.
    pub fn end(&mut self) -> Option<Term> {
        self.term.take()
    }

    pub fn given_back(&mut self) {
        self.is_kept = false;
    }

    /// It is over, or another's: returns true once where nobody gave it back.
    pub fn is_missed(&mut self) -> bool {
        std::mem::take(&mut self.is_kept)
    }

    /// Returns true once when its time is over.
    pub fn lapses(&mut self, now: u64) -> bool {
        let is_over = self.until > 0 && now >= self.until;
        if is_over {
            self.until = 0;
        }
        is_over
    }

    /// The term that is to be renewed now.
    pub fn renewal(&mut self, now: u64) -> Option<Term> {
        let is_time = self.renewing.is_none() && now >= self.renew_at;
        let term = self.term.clone().filter(|_| is_time)?;
        self.renewing = Some(now);
        Some(term)
    }

    /// The result of a renewal of this term. Returns false if the term has lost it.
    pub fn renewed(&mut self, now: u64, term: &Term, answer: &Result<Answer, Failure>) -> bool {
        let Some(sent) = self.renewing.take() else { return true };
        if self.term.as_ref() != Some(term) {
            return true;
        }
        match answer {
            Ok(Answer::Renewed { next }) => {
                self.asked_by = next.clone().filter(|worker| worker != term.worker());
                self.held_from(sent);
            }
            Ok(_) => return false,
            Err(_) => self.renew_at = now + self.ttl_ms / 8,
        }
        true
    }

    /// When it is to be renewed, or is over.
    pub fn wake_at(&self) -> Option<u64> {
        let renew = (self.term.is_some() && self.renewing.is_none()).then_some(self.renew_at);
        let over = (self.until > 0).then_some(self.until);
        renew.into_iter().chain(over).min()
    }

    /// For us it ends a tenth early: clocks drift, and an attempt takes a moment to start.
    fn held_from(&mut self, sent: u64) {
        self.until = sent + self.ttl_ms - self.ttl_ms / 10;
        self.renew_at = sent + self.ttl_ms / 4;
    }
}
