//! The connections that are kept: idle ones to HTTP/1.1 receivers, shared ones to HTTP/2 receivers, and how many there may
//! be. None is kept for ever, so that a change of DNS, a failover or a new certificate is noticed.
//! Never connects, never sends a request.
//!
//! Nobody polls an idle connection to an HTTP/1.1 receiver: whoever takes it first checks that it is still open. It is
//! little more than its socket, so thousands may be kept.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use foldhash::HashMap;
use rand::RngExt;
use tokio::sync::Semaphore;

use super::{
    connect::Origin,
    exchange::{Http2, Idle, MAX_SHARING},
};
use crate::clock;

/// Idle connections that are kept per scheme, host and port. Many endpoints share one platform's host, so this is as large
/// as the number of attempts in flight to one host may be; the timeout below is what keeps the sum small.
const MAX_IDLE_PER_HOST: usize = 1024;

/// Less than the 5 s after which Node's HTTP server, the quickest of the common ones, closes an idle connection: a request
/// that is written while the other side closes has to be sent again.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// How often to look through idle connections.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// By how much less than the greatest age a connection may live, so that connections that began together do not end
/// together.
const AGE_JITTER: f64 = 0.2;

/// How long HTTP/1.1 is used with a host that asked for it: some hours, as such a set-up hardly changes within a day.
const HTTP1_FOR: Duration = Duration::from_secs(6 * 3600);

/// Hosts for which that is remembered, at about 100 bytes each. Beyond this the oldest is forgotten and has to ask again.
const MAX_HTTP1_HOSTS: usize = 4096;

/// The part of all places, one in this many, that may be held in addition to one for each attempt, for addresses that an
/// attempt tries at the same time. Otherwise a platform whose addresses are all silent would take eight times what its
/// attempts may.
const RACING_PART: usize = 8;

/// When no more connections may be opened, this part of the idle ones is closed at once: one in this many.
const CLOSED_AT_ONCE: usize = 16;

/// A place in the pool: the right to have one connection open.
pub(super) struct Place(Arc<AtomicUsize>);

impl Place {
    /// None if all are taken. A thread of attempts has a pool to itself: nothing comes between the check and the taking.
    fn take(taken: &Arc<AtomicUsize>, most: usize) -> Option<Self> {
        if taken.load(Relaxed) >= most {
            return None;
        }
        taken.fetch_add(1, Relaxed);
        Some(Self(Arc::clone(taken)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// The right to try one more address beside those that an attempt is trying.
pub(super) struct Spare {
    _place: Place,
    _racing: Place,
}

pub(super) struct Pool {
    hosts: Mutex<Hosts>,
    open: Arc<AtomicUsize>,
    /// How many of them are in addition to one for each attempt.
    racing: Arc<AtomicUsize>,
    pub(super) most: usize,
    greatest_age: Duration,
}

#[derive(Default)]
struct Hosts {
    by_origin: HashMap<Arc<Origin>, Host>,
    only_http1: HashMap<Arc<Origin>, Instant>,
    is_swept: bool,
}

#[derive(Default)]
struct Host {
    /// The connection used last is at the end, and is used next: the others grow old and leave.
    #[expect(clippy::vec_box, reason = "it goes to and fro at every request: only the pointer is to move")]
    idle: Vec<Box<Idle>>,
    /// The first one that has room is used next: the others become idle and leave.
    shared: Vec<Http2>,
    /// It did not take HTTP/2 when offered it: nobody waits for another's connection.
    is_http1: bool,
    /// Somebody is finding out what the host speaks.
    opening: Option<Arc<Semaphore>>,
}

/// What a request that asks for a connection gets.
pub(super) enum Taken {
    Http1(Box<Idle>),
    Http2(Http2),
    /// Another request is opening one that may serve all: the semaphore is closed as soon as that is known.
    Wait(Arc<Semaphore>),
    /// There is none: open one.
    Open(Opening),
}

/// While this lives, others that ask for a connection to the same host may wait for the result.
pub(super) struct Opening {
    pool: Weak<Pool>,
    origin: Arc<Origin>,
    gate: Option<Arc<Semaphore>>,
}

impl Drop for Opening {
    fn drop(&mut self) {
        let Some(gate) = self.gate.take() else { return };
        gate.close();
        let Some(pool) = self.pool.upgrade() else { return };
        let mut hosts = pool.lock();
        let host = hosts.by_origin.get_mut(&self.origin);
        if let Some(host) = host.filter(|host| host.opening.as_ref().is_some_and(|now| Arc::ptr_eq(now, &gate))) {
            host.opening = None;
        }
    }
}

/// Whether one more request will find its place on the connection that is being opened. The host, the request that opens it
/// and each one that waits hold the gate.
fn has_room_to_wait(opening: &Arc<Semaphore>) -> bool {
    Arc::strong_count(opening) <= MAX_SHARING
}

impl Pool {
    pub(super) fn new(most: usize, greatest_age: Duration) -> Arc<Self> {
        let (open, racing) = (Arc::default(), Arc::default());
        Arc::new(Self { hosts: Mutex::default(), open, racing, most, greatest_age })
    }

    /// `newer_than` asks for a connection opened since then: a receiver that ends one often ends all that it has.
    /// `has_waited` asks for one without waiting in vain for another request's connection again.
    pub(super) fn take(self: &Arc<Self>, origin: &Arc<Origin>, newer_than: Option<Instant>, has_waited: bool) -> Taken {
        let now = clock::now();
        let mut hosts = self.lock();
        let may_be_http2 = origin.is_https && !hosts.is_only_http1(origin, now);
        let Some(host) = hosts.by_origin.get_mut(origin) else {
            return self.open(&mut hosts, origin, may_be_http2);
        };
        // What is under way on a connection that is too old may end on it; new requests get another.
        host.shared.retain(|shared| shared.may_be_used(now));
        let is_new_enough = |shared: &Http2| newer_than.is_none_or(|since| shared.opened_at >= since);
        if let Some(shared) = host.shared.iter_mut().find(|shared| shared.has_room() && is_new_enough(shared)) {
            shared.idle_since = now;
            return Taken::Http2(shared.clone());
        }
        if newer_than.is_none() {
            while let Some(idle) = host.idle.pop() {
                if now < idle.retire_at && now < idle.idle_since + IDLE_TIMEOUT {
                    return Taken::Http1(idle);
                }
            }
        }
        // Where connections are shared the wait was not in vain: others were quicker.
        let may_wait = !has_waited || !host.shared.is_empty();
        match host.opening.as_ref().filter(|opening| has_room_to_wait(opening)) {
            Some(opening) if may_be_http2 && !host.is_http1 && may_wait => Taken::Wait(Arc::clone(opening)),
            _ => self.open(&mut hosts, origin, may_be_http2),
        }
    }

    fn open(self: &Arc<Self>, hosts: &mut Hosts, origin: &Arc<Origin>, may_be_http2: bool) -> Taken {
        let mut gate = None;
        if may_be_http2 {
            let host = hosts.by_origin.entry(Arc::clone(origin)).or_default();
            // A request that has waited in vain opens one even if another is being opened; later ones wait for this one
            // once the other has enough waiting.
            if host.opening.as_ref().is_none_or(|opening| !has_room_to_wait(opening)) {
                gate = Some(Arc::clone(host.opening.insert(Arc::new(Semaphore::new(0)))));
            }
        }
        Taken::Open(Opening { pool: Arc::downgrade(self), origin: Arc::clone(origin), gate })
    }

    /// The right to open one more connection; idle ones make room for it. None if there is no room at all.
    pub(super) fn place(&self) -> Option<Place> {
        if self.open.load(Relaxed) >= self.most {
            self.lock().close_oldest();
        }
        Place::take(&self.open, self.most)
    }

    /// For one more address of an attempt that has a place already. No connection is closed for it.
    pub(super) fn spare(&self) -> Option<Spare> {
        let racing = Place::take(&self.racing, self.most / RACING_PART)?;
        Some(Spare { _place: Place::take(&self.open, self.most)?, _racing: racing })
    }

    #[cfg(test)]
    pub(super) fn open_now(&self) -> usize {
        self.open.load(Relaxed)
    }

    /// When a connection that begins now is retired.
    pub(super) fn retire_at(&self) -> Instant {
        clock::now() + self.greatest_age.mul_f64(1.0 - AGE_JITTER * rand::rng().random::<f64>())
    }

    pub(super) fn is_only_http1(&self, origin: &Arc<Origin>) -> bool {
        self.lock().is_only_http1(origin, clock::now())
    }

    /// The host asked for HTTP/1.1: it gets that from now on.
    pub(super) fn keep_to_http1(&self, origin: &Arc<Origin>) {
        let now = clock::now();
        let mut hosts = self.lock();
        if let Some(host) = hosts.by_origin.get_mut(origin) {
            host.shared.clear();
        }
        if hosts.only_http1.len() >= MAX_HTTP1_HOSTS {
            hosts.only_http1.retain(|_, until| now < *until);
            let oldest = hosts.only_http1.iter().min_by_key(|(_, until)| **until).map(|(origin, _)| origin.clone());
            if let Some(oldest) = oldest.filter(|_| hosts.only_http1.len() >= MAX_HTTP1_HOSTS) {
                hosts.only_http1.remove(&oldest);
            }
        }
        hosts.only_http1.insert(Arc::clone(origin), now + HTTP1_FOR);
    }

    /// From now on requests to this host may share this connection.
    pub(super) fn share(self: &Arc<Self>, origin: &Arc<Origin>, shared: Http2) {
        let mut hosts = self.lock();
        hosts.by_origin.entry(Arc::clone(origin)).or_default().shared.push(shared);
        self.sweep_from_now_on(hosts);
    }

    /// Nothing new begins on this connection any more.
    pub(super) fn retire(&self, origin: &Arc<Origin>, shared: &Http2) {
        let mut hosts = self.lock();
        if let Some(host) = hosts.by_origin.get_mut(origin) {
            host.shared.retain(|now| !now.is_same(shared));
        }
    }

    /// Keeps a connection on which nothing is under way.
    pub(super) fn keep(self: &Arc<Self>, origin: &Arc<Origin>, mut idle: Box<Idle>) {
        let now = clock::now();
        if now >= idle.retire_at {
            return;
        }
        idle.idle_since = now;
        let mut hosts = self.lock();
        match hosts.by_origin.get_mut(origin) {
            Some(host) if host.idle.len() >= MAX_IDLE_PER_HOST => return,
            Some(host) => {
                host.idle.push(idle);
                host.is_http1 = true;
            }
            None => {
                let host = Host { idle: vec![idle], is_http1: true, ..Host::default() };
                hosts.by_origin.insert(Arc::clone(origin), host);
            }
        }
        self.sweep_from_now_on(hosts);
    }

    /// Sweeps until nothing is left; then the task ends, and the next connection begins another.
    fn sweep_from_now_on(self: &Arc<Self>, mut hosts: MutexGuard<'_, Hosts>) {
        if std::mem::replace(&mut hosts.is_swept, true) {
            return;
        }
        let pool = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(SWEEP_EVERY).await;
                let Some(pool) = pool.upgrade() else { return };
                let mut hosts = pool.lock();
                hosts.sweep(clock::now());
                if hosts.by_origin.is_empty() {
                    hosts.is_swept = false;
                    return;
                }
            }
        });
    }

    /// The maps are whole at every step, so a panic elsewhere while they were locked has left nothing half done.
    fn lock(&self) -> MutexGuard<'_, Hosts> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hosts {
    fn is_only_http1(&self, origin: &Arc<Origin>, now: Instant) -> bool {
        origin.only_http1 || self.only_http1.get(origin).is_some_and(|until| now < *until)
    }

    fn sweep(&mut self, now: Instant) {
        self.by_origin.retain(|_, host| {
            host.idle.retain(|idle| now < idle.retire_at && now < idle.idle_since + IDLE_TIMEOUT);
            let is_spent = |shared: &Http2| {
                !shared.may_be_used(now) || (!shared.is_busy() && now >= shared.idle_since + IDLE_TIMEOUT)
            };
            host.shared.retain(|shared| !is_spent(shared));
            !host.idle.is_empty() || !host.shared.is_empty() || host.opening.is_some()
        });
    }

    /// Closes the idle connections that were used longest ago.
    fn close_oldest(&mut self) {
        let idle = self.by_origin.values().flat_map(|host| &host.idle).map(|idle| idle.idle_since);
        let shared = self.by_origin.values().flat_map(|host| &host.shared);
        let mut since: Vec<_> = idle.chain(shared.filter(|s| !s.is_busy()).map(|s| s.idle_since)).collect();
        if since.is_empty() {
            return;
        }
        let at = (since.len() / CLOSED_AT_ONCE).min(since.len() - 1);
        let (_, until, _) = since.select_nth_unstable(at);
        let until = *until;
        for host in self.by_origin.values_mut() {
            host.idle.retain(|idle| idle.idle_since > until);
            host.shared.retain(|shared| shared.is_busy() || shared.idle_since > until);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn connections_that_began_together_are_not_retired_together() {
        const AGE: Duration = Duration::from_secs(100);
        let (pool, now) = (Pool::new(16, AGE), clock::now());
        let ages: Vec<Duration> = (0..100).map(|_| pool.retire_at() - now).collect();
        let (least, most) = (ages.iter().min().unwrap(), ages.iter().max().unwrap());
        assert!(*least >= AGE.mul_f64(1.0 - AGE_JITTER) && *most <= AGE, "{least:?} {most:?}");
        assert!(*most - *least > AGE.mul_f64(AGE_JITTER / 4.0), "{least:?} {most:?}");
    }
}
