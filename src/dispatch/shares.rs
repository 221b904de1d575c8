//! Who may start a slow flight: one to a receiver that has not shown that it answers, or that keeps us waiting. However
//! many such receivers there are, they share a limited number of flights. No endpoint, account or host holds more than its
//! part of them, and a part of each share is kept for receivers that never failed: those that did cannot take it.
//!
//! Pure. Counts holders, and lets those that may not start wait their turn. Never starts anything.

use std::{collections::VecDeque, sync::Arc};

use super::{
    HashMap,
    budgets::{Budget, Budgets},
};
use crate::facts::id::AccountId;

/// One account or host may hold a quarter.
const ACCOUNT_PART: usize = 4;
const HOST_PART: usize = 4;

/// A quarter of each share is for receivers that never failed.
const NEW_PART: usize = 4;

/// A flight to a new receiver that is not answered at once keeps its seat, but counts among the doubted from then on, so
/// that the seats of the new are soon free again. A share may be overfull by this part of it; beyond that even the new
/// wait. A larger part costs memory, and a smaller one holds up receivers that have not been met yet: beside 5 000 that
/// hang for 15 s, 1 920 flights in all instead of 2 560 saved 26 MB and raised the p99 of 1 000 healthy new ones from 57 ms
/// to 4.7 s.
const OVERFULL_PART: usize = 4;

/// Waiters are looked at again at least this often, whether or not a seat was given back.
pub const LOOK_EVERY_MS: u64 = 50;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// It never answered, and never failed.
    New,
    /// It failed, or kept us waiting.
    Doubted,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    All,
    Endpoint(usize),
    Account(AccountId),
    Host(Arc<str>),
}

/// Who asks for a seat: an endpoint's lane, by its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    pub lane: usize,
    pub account: AccountId,
    pub host: Arc<str>,
}

/// A slow flight's place. Given back with [`Shares::leave`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seat {
    holder: Arc<Holder>,
    class: Class,
    bytes: usize,
}

impl Seat {
    /// Whose it is.
    pub fn lane(&self) -> usize {
        self.holder.lane
    }
}

#[derive(Debug, Default)]
struct Scope {
    held: [Budget; 2],
    waiting: [VecDeque<usize>; 2],
}

#[derive(Debug)]
pub struct Shares {
    all: Budget,
    of_endpoint: Budget,
    scopes: HashMap<Key, Scope>,
    /// Each stands for one waiter that may be looked at.
    turns: VecDeque<(Key, Class)>,
    waiters: usize,
}

impl Shares {
    pub fn new(budgets: &Budgets) -> Self {
        Self {
            all: budgets.slow,
            of_endpoint: budgets.slow_of_endpoint(),
            scopes: HashMap::default(),
            turns: VecDeque::new(),
            waiters: 0,
        }
    }

    /// From now on. Seats that are taken stay taken.
    pub fn set(&mut self, budgets: &Budgets) {
        (self.all, self.of_endpoint) = (budgets.slow, budgets.slow_of_endpoint());
    }

    /// Takes a seat if there is one.
    pub fn take(&mut self, holder: &Arc<Holder>, class: Class, bytes: usize) -> Option<Seat> {
        self.refusing(holder, class).is_none().then(|| self.seat(holder, class, bytes))
    }

    /// Whether there is a seat.
    pub fn has_seat(&self, holder: &Arc<Holder>, class: Class) -> bool {
        self.refusing(holder, class).is_none()
    }

    /// A flight that was quick has become slow: it gets a seat whether or not one is free.
    pub fn seat(&mut self, holder: &Arc<Holder>, class: Class, bytes: usize) -> Seat {
        for key in keys(holder) {
            let held = &mut self.scopes.entry(key).or_default().held[class as usize];
            (held.count, held.bytes) = (held.count + 1, held.bytes + bytes);
        }
        Seat { holder: holder.clone(), class, bytes }
    }

    /// Its flight is not answered at once: it frees its place for another new one.
    pub fn doubt(&mut self, seat: &mut Seat) {
        if seat.class == Class::New {
            self.leave(seat);
            let holder = seat.holder.clone();
            *seat = self.seat(&holder, Class::Doubted, seat.bytes);
        }
    }

    pub fn leave(&mut self, seat: &Seat) {
        for key in keys(&seat.holder) {
            let Some(scope) = self.scopes.get_mut(&key) else { continue };
            let held = &mut scope.held[seat.class as usize];
            (held.count, held.bytes) = (held.count - 1, held.bytes - seat.bytes);
            if scope.is_idle() {
                self.scopes.remove(&key);
                continue;
            }
            for class in [Class::New, Class::Doubted] {
                if !scope.waiting[class as usize].is_empty() {
                    self.turns.push_back((key.clone(), class));
                }
            }
        }
    }

    /// Waits for its turn; [`Shares::next_turn`] names it.
    pub fn wait(&mut self, holder: &Arc<Holder>, class: Class) {
        // What refused it may have room by now: then it waits for the next look.
        let key = self.refusing(holder, class).unwrap_or(Key::All);
        self.scopes.entry(key).or_default().waiting[class as usize].push_back(holder.lane);
        self.waiters += 1;
    }

    /// A lane that waited and may ask again. A caller that has no use for it asks for the next.
    pub fn next_turn(&mut self) -> Option<Turn> {
        while let Some((key, class)) = self.turns.pop_front() {
            if !self.has_room(&key, class) {
                continue;
            }
            let Some(scope) = self.scopes.get_mut(&key) else { continue };
            let Some(lane) = scope.waiting[class as usize].pop_front() else { continue };
            self.waiters -= 1;
            if scope.is_idle() {
                self.scopes.remove(&key);
            }
            return Some(Turn { lane, key, class });
        }
        None
    }

    /// The lane had no use for its turn: it goes to the next one.
    pub fn pass_on(&mut self, turn: Turn) {
        self.turns.push_front((turn.key, turn.class));
    }

    /// One waiter of each scope with room may ask again, because a turn that came to nothing must not strand the others.
    pub fn look_again(&mut self) {
        self.turns.clear();
        for (key, scope) in &self.scopes {
            for class in [Class::New, Class::Doubted] {
                if !scope.waiting[class as usize].is_empty() {
                    self.turns.push_back((key.clone(), class));
                }
            }
        }
        // Sorted, not in the map's order: the same inputs must lead to the same sends.
        self.turns.make_contiguous().sort_unstable_by(|a, b| order(a).cmp(&order(b)));
    }

    pub fn has_waiters(&self) -> bool {
        self.waiters > 0
    }

    /// Nobody waits any more; seats that are held stay held.
    pub fn forget_waiters(&mut self) {
        self.turns.clear();
        self.scopes.values_mut().for_each(|scope| scope.waiting = Default::default());
        self.scopes.retain(|_, scope| !scope.is_idle());
        self.waiters = 0;
    }

    /// Lanes that hold a seat or wait for one.
    pub fn lanes(&self) -> impl Iterator<Item = usize> {
        self.scopes.iter().flat_map(|(key, scope)| {
            let holder = if let Key::Endpoint(lane) = key { Some(*lane) } else { None };
            scope.waiting.iter().flatten().copied().chain(holder)
        })
    }

    /// Slow flights.
    pub fn held(&self) -> usize {
        self.scopes.get(&Key::All).map_or(0, |scope| scope.used().count)
    }

    /// The scope that has no room for one more.
    fn refusing(&self, holder: &Arc<Holder>, class: Class) -> Option<Key> {
        keys(holder).into_iter().find(|key| !self.has_room(key, class))
    }

    fn has_room(&self, key: &Key, class: Class) -> bool {
        let Some(scope) = self.scopes.get(key) else { return true };
        let share = match key {
            Key::All => self.all,
            // An endpoint has failed or it has not, and it keeps its flights when that changes: both classes count, and
            // neither has a part of its own.
            Key::Endpoint(_) => return self.of_endpoint.has_room(scope.used()),
            Key::Account(_) => self.all.part(ACCOUNT_PART),
            Key::Host(_) => self.all.part(HOST_PART),
        };
        let for_new = share.part(NEW_PART);
        let limit = match class {
            Class::New => for_new,
            Class::Doubted => Budget {
                count: share.count.saturating_sub(for_new.count).max(1),
                bytes: share.bytes.saturating_sub(for_new.bytes).max(1),
            },
        };
        let more = share.part(OVERFULL_PART);
        let most = Budget { count: share.count + more.count, bytes: share.bytes.saturating_add(more.bytes) };
        limit.has_room(scope.held[class as usize]) && most.has_room(scope.used())
    }
}

/// A lane's turn to ask.
#[derive(Debug)]
pub struct Turn {
    pub lane: usize,
    key: Key,
    class: Class,
}

impl Scope {
    fn used(&self) -> Budget {
        let [new, doubted] = self.held;
        Budget { count: new.count + doubted.count, bytes: new.bytes + doubted.bytes }
    }

    fn is_idle(&self) -> bool {
        self.used().count == 0 && self.waiting.iter().all(VecDeque::is_empty)
    }
}

fn keys(holder: &Holder) -> [Key; 4] {
    [Key::Endpoint(holder.lane), Key::Account(holder.account.clone()), Key::Host(holder.host.clone()), Key::All]
}

fn order((key, class): &(Key, Class)) -> (u8, usize, &str, u8) {
    let (kind, number, text) = match key {
        Key::All => (0, 0, ""),
        Key::Endpoint(lane) => (1, *lane, ""),
        Key::Account(account) => (2, 0, account.as_str()),
        Key::Host(host) => (3, 0, &**host),
    };
    (kind, number, text, *class as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares() -> Shares {
        Shares::new(&Budgets { slow: Budget { count: 64, bytes: 6_400 }, ..Budgets::of(1 << 20) })
    }

    fn holder(lane: usize, account: usize, host: usize) -> Arc<Holder> {
        let account = format!("acc_{account}").parse().unwrap();
        Arc::new(Holder { lane, account, host: format!("host-{host}").into() })
    }

    /// How many of these get a seat, one after the other.
    fn taken(shares: &mut Shares, class: Class, holders: impl Iterator<Item = Arc<Holder>>) -> usize {
        holders.filter_map(|holder| shares.take(&holder, class, 10)).count()
    }

    #[test]
    fn no_endpoint_account_or_host_takes_more_than_its_part() {
        assert_eq!(taken(&mut shares(), Class::Doubted, (0..99).map(|_| holder(1, 1, 1))), 8);
        assert_eq!(taken(&mut shares(), Class::Doubted, (0..99).map(|n| holder(n, 1, n))), 12);
        assert_eq!(taken(&mut shares(), Class::Doubted, (0..99).map(|n| holder(n, n, 1))), 12);
        assert_eq!(taken(&mut shares(), Class::Doubted, (0..99).map(|n| holder(n, n, n))), 48);
        // In bytes as well.
        let long = |n| shares().take(&holder(n, n, n), Class::Doubted, 799);
        assert!(long(1).is_some());
        let mut shares = shares();
        shares.take(&holder(1, 1, 1), Class::Doubted, 800).unwrap();
        assert_eq!(shares.take(&holder(1, 1, 1), Class::Doubted, 1), None);
    }

    #[test]
    fn who_never_failed_has_seats_beside_any_number_of_those_who_did() {
        let mut shares = shares();
        taken(&mut shares, Class::Doubted, (0..999).map(|n| holder(n, n % 7, n % 7)));
        let before = shares.held();
        assert_eq!(taken(&mut shares, Class::New, (0..99).map(|n| holder(1_000 + n, 1, 1))), 4);
        assert_eq!(shares.held(), before + 4);
    }

    #[test]
    fn new_ones_that_hang_leave_their_seats_to_the_next_new_ones() {
        let mut shares = shares();
        let mut seats: Vec<Seat> = (0..99).filter_map(|n| shares.take(&holder(n, n, n), Class::New, 10)).collect();
        assert_eq!(seats.len(), 16);
        seats.iter_mut().for_each(|seat| shares.doubt(seat));
        assert!(shares.has_seat(&holder(200, 200, 200), Class::New));
        // But not without end: together they stay bounded.
        for n in 300..999 {
            if let Some(mut seat) = shares.take(&holder(n, n, n), Class::New, 10) {
                shares.doubt(&mut seat);
            }
        }
        assert_eq!(shares.held(), 64 + 64 / OVERFULL_PART);
        seats.iter().for_each(|seat| shares.leave(seat));
        assert!(shares.has_seat(&holder(200, 200, 200), Class::New));
    }

    #[test]
    fn those_that_wait_have_their_turns_in_the_order_of_their_coming() {
        let mut shares = shares();
        let seats: Vec<Seat> = (0..99).filter_map(|n| shares.take(&holder(n, 1, n), Class::Doubted, 10)).collect();
        [50, 51, 52].iter().for_each(|lane| shares.wait(&holder(*lane, 1, 1), Class::Doubted));
        assert!(shares.next_turn().is_none(), "nothing was given back");
        shares.leave(&seats[0]);
        let turn = shares.next_turn().unwrap();
        assert_eq!(turn.lane, 50);
        // It has no use for it: it goes to the next in the queue.
        shares.pass_on(turn);
        assert_eq!(shares.next_turn().map(|turn| turn.lane), Some(51));
        assert!(shares.next_turn().is_none(), "one seat is one turn");
        // 51 had no use for it either, and forgot to say so.
        shares.look_again();
        assert_eq!(shares.next_turn().map(|turn| turn.lane), Some(52));
        assert!(!shares.has_waiters());
    }

    #[test]
    fn what_nobody_holds_or_waits_for_is_forgotten() {
        let mut shares = shares();
        let seat = shares.take(&holder(1, 1, 1), Class::New, 10).unwrap();
        shares.leave(&seat);
        assert!(shares.scopes.is_empty());
    }
}
