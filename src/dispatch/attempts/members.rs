//! Whose attempts one thread has: those of each partition with their turns, what of them is out, and what has ended and is not told
//! yet. Partitions take turns, each the longer the more of its accounts wait: so accounts have equal parts, whatever partition they
//! are in. What begins together ends together and is told together: a partition that is woken for each of its attempts would cost
//! more than these. What one partition gives up leaves the others' as they are.

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

/// How many are begun until everybody has had a turn, unless there are more accounts than that: some 25 ms of a thread that has more
/// to do than it can.
const ROUND: usize = 1_024;

/// How many of an account begin in one turn, at most.
const MOST_OF_ACCOUNT: usize = 32;

pub struct Members<F> {
    all: HashMap<Member, Of<F>>,
    /// Those of which something waits, each once; the first one has its turn …
    order: VecDeque<Member>,
    /// … and may begin so many more in it; none if it has only come to be the first.
    left: usize,
    /// Of all of them.
    waiting: Waiting,
    /// What has ended and is not told yet.
    gathered: usize,
    back: Vec<Token>,
}

/// What there is of one.
struct Of<F> {
    turns: Turns,
    is_in_order: bool,
    /// Each is stored inline here, without a box of its own.
    running: FuturesUnordered<F>,
    ended: Vec<Ended>,
    /// Closed when this thread ends.
    told: Alarm<Ended>,
}

/// What has not begun.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Waiting {
    accounts: usize,
    count: usize,
    ahead: usize,
    crowded: usize,
}

impl Waiting {
    fn of(turns: &Turns) -> Self {
        let crowded = usize::from(turns.are_crowded());
        Self { accounts: turns.accounts(), count: turns.len(), ahead: turns.ahead(), crowded }
    }

    fn changed(&mut self, before: Self, after: Self) {
        let change = |all: &mut usize, before: usize, after: usize| *all = *all - before + after;
        change(&mut self.accounts, before.accounts, after.accounts);
        change(&mut self.count, before.count, after.count);
        change(&mut self.ahead, before.ahead, after.ahead);
        change(&mut self.crowded, before.crowded, after.crowded);
    }
}

impl<F> Default for Members<F> {
    fn default() -> Self {
        let (order, left, waiting) = (VecDeque::new(), 0, Waiting::default());
        Self { all: HashMap::default(), order, left, waiting, gathered: 0, back: Vec::new() }
    }
}

impl<F: Future<Output = Finished>> Members<F> {
    pub fn join(&mut self, member: Member, told: Arc<Mailbox<Ended>>) {
        let (turns, running) = (Turns::default(), FuturesUnordered::new());
        self.all.insert(member, Of { turns, is_in_order: false, running, ended: Vec::new(), told: Alarm(told) });
    }

    /// With all that it has out.
    pub fn leave(&mut self, member: Member) {
        if let Some(of) = self.all.remove(&member) {
            self.gathered -= of.ended.len();
            self.waiting.changed(Waiting::of(&of.turns), Waiting::default());
        }
    }

    pub fn push(&mut self, member: Member, send: NextAttempt) {
        self.with(member, |of, _| of.turns.push(send));
    }

    /// Does something with what waits of one, and takes note of what that changed.
    fn with<R>(&mut self, member: Member, change: impl FnOnce(&mut Of<F>, &mut Vec<Token>) -> R) -> Option<R> {
        let of = self.all.get_mut(&member)?;
        let before = Waiting::of(&of.turns);
        let changed = change(of, &mut self.back);
        let after = Waiting::of(&of.turns);
        self.waiting.changed(before, after);
        if after.accounts > 0 && !of.is_in_order {
            of.is_in_order = true;
            self.order.push_back(member);
        }
        Some(changed)
    }

    /// The next one to begin, which is what has to be done with it.
    pub fn next(&mut self, now: u64) -> Option<(Member, NextAttempt)> {
        while let Some(member) = self.order.front().copied() {
            if self.left == 0 {
                self.left = self.turn_of(member);
            }
            let next = self.with(member, |of, _| of.turns.next(now)).flatten();
            self.left = self.left.saturating_sub(1);
            let has_more = self.all.get(&member).is_some_and(|of| of.turns.accounts() > 0);
            if self.left == 0 || !has_more {
                self.left = 0;
                self.order.pop_front();
                if has_more {
                    self.order.push_back(member);
                } else if let Some(of) = self.all.get_mut(&member) {
                    of.is_in_order = false;
                }
            }
            if let Some(send) = next {
                return Some((member, send));
            }
        }
        None
    }

    /// How many this one may begin in its turn.
    fn turn_of(&self, member: Member) -> usize {
        let of_account = (ROUND / self.waiting.accounts.max(1)).clamp(1, MOST_OF_ACCOUNT);
        self.all.get(&member).map_or(0, |of| of.turns.accounts() * of_account)
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
        let Finished { token, entry, endpoint, trace, attempted, .. } = finished;
        let is_delivered = attempted.report.outcome.is_delivered();
        let told = self.with(member, |of, back| {
            of.turns.ended(&endpoint, is_delivered, back);
            let told = back.len() + 1;
            of.ended.extend(back.drain(..).map(Ended::NotBegun));
            of.ended.push(Ended::Attempted(token, entry, trace, attempted));
            told
        });
        self.gathered += told.unwrap_or(0);
    }

    /// What has waited too long for a place goes back.
    pub fn give_back(&mut self, now: u64) {
        for of in self.all.values_mut().filter(|of| of.turns.are_crowded()) {
            let before = Waiting::of(&of.turns);
            of.turns.give_back(now, &mut self.back);
            self.waiting.changed(before, Waiting::of(&of.turns));
            self.gathered += self.back.len();
            of.ended.extend(self.back.drain(..).map(Ended::NotBegun));
        }
    }

    /// Gives up everything of this one, including what has begun.
    pub fn clear(&mut self, member: Member) {
        self.with(member, |of, _| {
            of.turns.clear();
            of.running.clear();
        });
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
        self.waiting.count == 0
    }

    /// Some wait for a place, or did a moment ago.
    pub fn are_crowded(&self) -> bool {
        self.waiting.crowded > 0
    }

    /// How many wait for a place.
    pub fn ahead(&self) -> usize {
        self.waiting.ahead
    }
}

#[cfg(test)]
mod tests {
    use std::future::Pending;

    use super::{super::turns::tests::send, *};

    const MANY: u32 = 10_000;

    type Many = Members<Pending<Finished>>;

    /// Of each a member with so many accounts, each of which has so many waiting.
    fn members(of: &[(usize, u64)]) -> Many {
        let mut members = Many::default();
        for (at, (accounts, each)) in of.iter().enumerate() {
            members.join(Member(at as u64), Arc::default());
            for number in 0..*each {
                (0..*accounts).for_each(|account| wait(&mut members, at as u64, account, number));
            }
        }
        members
    }

    fn wait(members: &mut Many, member: u64, account: usize, number: u64) {
        let (account, endpoint) = (format!("acc_{member}_{account}"), format!("ep_{member}_{account}"));
        members.push(Member(member), send(number, &endpoint, &account, MANY));
    }

    fn begin(members: &mut Many, count: usize) -> Vec<u64> {
        (0..count).map_while(|_| members.next(0)).map(|(member, _)| member.0).collect()
    }

    #[test]
    fn what_begins_of_one_begins_together_and_accounts_have_equal_parts() {
        let mut members = members(&[(1, 500), (3, 500), (1, 5)]);
        let begun = begin(&mut members, 3 * (4 * MOST_OF_ACCOUNT));
        let of = |member: u64| begun.iter().filter(|begun| **begun == member).count();
        assert_eq!((of(2), of(1)), (5, 3 * of(0) - 5), "{begun:?}");
        let changes = begun.windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert!(changes <= 7, "{begun:?}");
    }

    #[test]
    fn who_comes_waits_for_a_round_at_most() {
        for (many, accounts, longest) in [(64, 2, ROUND), (64, 100, 6_400), (3, 1, 3 * MOST_OF_ACCOUNT)] {
            let mut members = members(&vec![(accounts, 400); many]);
            begin(&mut members, 77);
            members.join(Member(1_000), Arc::default());
            wait(&mut members, 1_000, 0, 0);
            let begun = begin(&mut members, longest + 1);
            assert!(begun.contains(&1_000), "one more waited for {} of {many}", begun.len());
        }
    }

    #[test]
    fn nothing_is_left_and_nothing_counts_once_all_is_begun_or_given_up() {
        let mut members = members(&[(2, 40), (5, 40), (1, 40)]);
        begin(&mut members, 10);
        members.clear(Member(1));
        members.leave(Member(2));
        let begun = begin(&mut members, usize::MAX);
        assert!(begun.iter().all(|member| *member == 0) && members.is_empty() && members.order.is_empty());
        assert_eq!(members.waiting, Waiting::default());
        wait(&mut members, 1, 0, 0);
        assert!(!members.is_empty());
        assert_eq!(begin(&mut members, 2), [1]);
    }
}
