//! Whose attempts one thread has: those of each partition with their turns, what of them is out, and what has ended and is not told
//! yet. Accounts take turns over all partitions, however many of them each partition has; and what one partition gives up leaves
//! the others' as they are.

use std::{
    collections::VecDeque,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::{StreamExt, stream::FuturesUnordered};

use super::{
    Ended, Finished, Member,
    mailbox::{Alarm, Mailbox},
    turns::Turns,
};
use crate::dispatch::{
    HashMap,
    core::{NextAttempt, Token},
};

pub struct Members<F> {
    all: HashMap<Member, Of<F>>,
    /// A member stands here as often as accounts of it wait.
    order: VecDeque<Member>,
    /// What has ended and is not told yet.
    gathered: usize,
    back: Vec<Token>,
}

/// What there is of one.
struct Of<F> {
    turns: Turns,
    /// How often it stands in the order.
    ordered: usize,
    /// Each is stored inline here, without a box of its own.
    running: FuturesUnordered<F>,
    ended: Vec<Ended>,
    /// Closed when this thread ends.
    told: Alarm<Ended>,
}

impl<F> Default for Members<F> {
    fn default() -> Self {
        Self { all: HashMap::default(), order: VecDeque::new(), gathered: 0, back: Vec::new() }
    }
}

impl<F: Future<Output = Finished>> Members<F> {
    pub fn join(&mut self, member: Member, told: Arc<Mailbox<Ended>>) {
        let (turns, running) = (Turns::default(), FuturesUnordered::new());
        self.all.insert(member, Of { turns, ordered: 0, running, ended: Vec::new(), told: Alarm(told) });
    }

    /// With all that it has out.
    pub fn leave(&mut self, member: Member) {
        if let Some(of) = self.all.remove(&member) {
            self.gathered -= of.ended.len();
        }
    }

    pub fn push(&mut self, member: Member, send: NextAttempt) {
        if let Some(of) = self.all.get_mut(&member) {
            of.turns.push(send);
            of.stand(member, &mut self.order);
        }
    }

    /// The next one to begin, which is what has to be done with it.
    pub fn next(&mut self, now: u64) -> Option<(Member, NextAttempt)> {
        while let Some(member) = self.order.pop_front() {
            let Some(of) = self.all.get_mut(&member) else { continue };
            of.ordered -= 1;
            // It had more accounts when it took its place.
            if of.ordered >= of.turns.accounts() {
                continue;
            }
            let next = of.turns.next(now);
            of.stand(member, &mut self.order);
            if let Some(send) = next {
                return Some((member, send));
            }
        }
        None
    }

    pub fn begin(&mut self, member: Member, attempt: F) {
        if let Some(of) = self.all.get_mut(&member) {
            of.running.push(attempt);
        }
    }

    /// Ready with all that have ended by now.
    pub fn poll(&mut self, cx: &mut Context<'_>, round: &mut Vec<(Member, Finished)>) -> Poll<()> {
        let known = round.len();
        for (member, of) in self.all.iter_mut().filter(|(_, of)| !of.running.is_empty()) {
            while let Poll::Ready(Some(one)) = of.running.poll_next_unpin(cx) {
                round.push((*member, one));
            }
        }
        if round.len() == known { Poll::Pending } else { Poll::Ready(()) }
    }

    /// One has ended. What goes back because of it was never begun and comes first: the failure that sent it back is then judged with
    /// fewer attempts out.
    pub fn ended(&mut self, member: Member, finished: Finished) {
        let Some(of) = self.all.get_mut(&member) else { return };
        let Finished { token, entry, endpoint, trace, attempted, .. } = finished;
        of.turns.ended(&endpoint, attempted.report.outcome.is_delivered(), &mut self.back);
        of.stand(member, &mut self.order);
        self.gathered += self.back.len() + 1;
        of.ended.extend(self.back.drain(..).map(Ended::NotBegun));
        of.ended.push(Ended::Attempted(token, entry, trace, attempted));
    }

    /// What has waited too long for a place goes back.
    pub fn give_back(&mut self, now: u64) {
        for of in self.all.values_mut().filter(|of| of.turns.are_crowded()) {
            of.turns.give_back(now, &mut self.back);
            self.gathered += self.back.len();
            of.ended.extend(self.back.drain(..).map(Ended::NotBegun));
        }
    }

    /// Gives up everything of this one, including what has begun.
    pub fn clear(&mut self, member: Member) {
        if let Some(of) = self.all.get_mut(&member) {
            of.turns.clear();
            of.running.clear();
        }
    }

    /// What has ended goes to those whose it is.
    pub fn tell(&mut self) {
        if self.gathered > 0 {
            self.all.values_mut().filter(|of| !of.ended.is_empty()).for_each(|of| of.told.0.put(&mut of.ended));
            self.gathered = 0;
        }
    }

    /// How much has ended and is not told yet.
    pub fn gathered(&self) -> usize {
        self.gathered
    }

    /// None waits for its turn.
    pub fn is_empty(&self) -> bool {
        self.all.values().all(|of| of.turns.is_empty())
    }

    /// Some wait for a place, or did a moment ago.
    pub fn are_crowded(&self) -> bool {
        self.all.values().any(|of| of.turns.are_crowded())
    }

    /// How many wait for a place.
    pub fn ahead(&self) -> usize {
        self.all.values().map(|of| of.turns.ahead()).sum()
    }
}

impl<F> Of<F> {
    /// Takes as many places in the order as it has accounts that wait.
    fn stand(&mut self, member: Member, order: &mut VecDeque<Member>) {
        while self.ordered < self.turns.accounts() {
            order.push_back(member);
            self.ordered += 1;
        }
    }
}
