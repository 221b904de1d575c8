//! Where attempts run: on threads, timers and connections of their own, so that no receiver, whatever it sends, keeps the
//! partition from renewing its lease, settling or starting the next attempt. Receivers that have not shown that they
//! answer have one thread for themselves: a flood that keeps it busy takes none from the proven ones.
//!
//! An attempt, its connection and its timer stay on one thread, and what goes to and fro goes by the batch: waking
//! another thread is dear.

use std::{
    collections::VecDeque,
    io,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    thread,
    time::{Duration, Instant},
};

use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use tokio::{runtime::Builder, sync::Notify};

use super::{
    core::{Send, Token},
    lane::Trust,
};
use crate::{
    clock,
    facts::outcome::{AttemptReport, Attempted, BodyEnd, Outcome, Timing},
    sender::Sender,
};

pub struct Attempts {
    proven: Ward,
    unproven: Ward,
    ended: Arc<Mailbox<(Token, Attempted)>>,
}

/// One thread's attempts, from outside.
struct Ward {
    orders: Arc<Mailbox<Order>>,
    /// Not handed over yet.
    gathered: Vec<Order>,
}

enum Order {
    Start(Send),
    AbortAll,
    Stop,
}

impl Attempts {
    /// Each sender has connections of its own, which live where its attempts do.
    pub fn new(proven: Arc<Sender>, unproven: Arc<Sender>) -> io::Result<Self> {
        let ended = Arc::new(Mailbox::default());
        let proven = Ward::begin("attempts", proven, ended.clone())?;
        let unproven = Ward::begin("unproven", unproven, ended.clone())?;
        Ok(Self { proven, unproven, ended })
    }

    /// Begins with the next [`Attempts::hand_over`].
    pub fn start(&mut self, send: Send) {
        let ward = match send.trust {
            Trust::Proven => &mut self.proven,
            Trust::Unproven => &mut self.unproven,
        };
        ward.gathered.push(Order::Start(send));
    }

    /// Passes on everything that was started.
    pub fn hand_over(&mut self) {
        self.proven.hand_over();
        self.unproven.hand_over();
    }

    /// All that have ended; waits until there is one. Nothing is lost when it is not waited for to the end.
    pub async fn ended(&self) -> Vec<(Token, Attempted)> {
        self.ended.take().await
    }

    /// What has ended already may still be told.
    pub fn abort_all(&mut self) {
        for ward in [&mut self.proven, &mut self.unproven] {
            ward.gathered.push(Order::AbortAll);
            ward.hand_over();
        }
    }
}

impl Drop for Attempts {
    /// The threads are not waited for: a flood may keep one busy.
    fn drop(&mut self) {
        for ward in [&mut self.proven, &mut self.unproven] {
            ward.gathered.push(Order::Stop);
            ward.hand_over();
        }
    }
}

impl Ward {
    fn begin(name: &str, sender: Arc<Sender>, ended: Arc<Mailbox<(Token, Attempted)>>) -> io::Result<Self> {
        let orders = Arc::new(Mailbox::default());
        let runtime = Builder::new_current_thread().thread_name(name).enable_all().build()?;
        let taken = Arc::clone(&orders);
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _alarm = Alarm(ended.clone());
            let (waiting, running, young) = (VecDeque::new(), FuturesUnordered::new(), Young::new(clock::now()));
            let inside = Inside { sender, orders: taken, ended, waiting, running, young };
            runtime.block_on(inside.run());
            runtime.shutdown_background();
        })?;
        Ok(Self { orders, gathered: Vec::new() })
    }

    fn hand_over(&mut self) {
        if !self.gathered.is_empty() {
            self.orders.put(&mut self.gathered);
        }
    }
}

/// Tells the worker that the thread has ended, however it ended.
struct Alarm<T>(Arc<Mailbox<T>>);

impl<T> Drop for Alarm<T> {
    fn drop(&mut self) {
        self.0.close();
    }
}

type Running = Pin<Box<dyn Future<Output = Ended>>>;

struct Ended {
    token: Token,
    attempted: Attempted,
    /// When it was begun.
    spell: u64,
}

/// Attempts that are begun before the thread looks again at what has ended: so few that those before them are served
/// first, so many that the looking costs little.
const BEGUN_AT_ONCE: usize = 16;

/// Attempts that may have been begun within one spell and be unanswered: more would only wait in the buffers of receivers
/// that answer at once, and a request costs the more the more are out, for what has left the processor's cache.
const MOST_YOUNG: usize = 64;

/// What is unanswered after it waits for its receiver, and others may begin: with the timer's grain of a millisecond 32 000
/// a second at the least, however slow all receivers are, which is about what a thread can send.
const SPELL: Duration = Duration::from_millis(1);

/// Results that are gathered while there is more to begin: the partition is busy enough then, and waking it costs.
const GATHERED: usize = 64;

/// One thread's attempts, on that thread.
struct Inside {
    sender: Arc<Sender>,
    orders: Arc<Mailbox<Order>>,
    ended: Arc<Mailbox<(Token, Attempted)>>,
    /// Handed over and not begun; bounded like what is in flight, of which it is a part.
    waiting: VecDeque<Send>,
    running: FuturesUnordered<Running>,
    young: Young,
}

/// The attempts that were begun within this spell and have not ended.
struct Young {
    count: usize,
    spell: u64,
    until: Instant,
}

impl Young {
    fn new(now: Instant) -> Self {
        Self { count: 0, spell: 0, until: now + SPELL }
    }

    /// Whatever is out now counts no more.
    fn next_spell(&mut self, now: Instant) {
        *self = Self { count: 0, spell: self.spell + 1, until: now + SPELL };
    }

    /// How many more may begin.
    fn room(&mut self, now: Instant) -> usize {
        if now >= self.until {
            self.next_spell(now);
        }
        MOST_YOUNG - self.count
    }

    fn ended(&mut self, spell: u64) {
        if spell == self.spell {
            self.count -= 1;
        }
    }

    /// Until when nothing may begin, if nothing ends before.
    fn full_until(&self) -> Option<Instant> {
        (self.count == MOST_YOUNG).then_some(self.until)
    }
}

impl Inside {
    /// Ends attempts before it begins others. A thread that has enough to do then has few requests out at a time, on few
    /// connections, which costs much less a request than having them all out at once; slow receivers are waited for
    /// without a limit of this thread's.
    async fn run(mut self) {
        let (mut round, mut ended) = (Vec::new(), Vec::new());
        loop {
            let (has_waiting, full_until) = (!self.waiting.is_empty(), self.young.full_until());
            let orders = tokio::select! {
                biased;
                () = std::future::poll_fn(|cx| poll_all(&mut self.running, cx, &mut round)) => self.orders.take_now(),
                orders = self.orders.take() => orders,
                // Comes after a look at the sockets.
                () = pause(full_until), if has_waiting => self.orders.take_now(),
            };
            for order in orders {
                match order {
                    Order::Start(send) => self.waiting.push_back(send),
                    Order::AbortAll => {
                        self.waiting.clear();
                        self.running.clear();
                        self.young.next_spell(clock::now());
                    }
                    Order::Stop => return,
                }
            }
            if round.is_empty() {
                self.begin();
            }
            for Ended { token, attempted, spell } in round.drain(..) {
                self.young.ended(spell);
                ended.push((token, attempted));
            }
            if !ended.is_empty() && (self.waiting.is_empty() || ended.len() >= GATHERED) {
                self.ended.put(&mut ended);
            }
        }
    }

    fn begin(&mut self) {
        let room = self.young.room(clock::now());
        let few = BEGUN_AT_ONCE.min(room).min(self.waiting.len());
        for send in self.waiting.drain(..few) {
            self.running.push(Box::pin(attempt(self.sender.clone(), send, self.young.spell)));
        }
        self.young.count += few;
    }
}

/// Until something may begin; the sockets are looked at before in any case.
async fn pause(full_until: Option<Instant>) {
    match full_until {
        None => tokio::task::yield_now().await,
        Some(until) => tokio::time::sleep_until(until.into()).await,
    }
}

/// Ready with all that have ended by now.
fn poll_all<T>(
    running: &mut FuturesUnordered<Pin<Box<dyn Future<Output = T>>>>,
    cx: &mut Context<'_>,
    ended: &mut Vec<T>,
) -> Poll<()> {
    let known = ended.len();
    while let Poll::Ready(Some(one)) = running.poll_next_unpin(cx) {
        ended.push(one);
    }
    if ended.len() == known { Poll::Pending } else { Poll::Ready(()) }
}

async fn attempt(sender: Arc<Sender>, send: Send, spell: u64) -> Ended {
    let Send { token, delivery, endpoint, .. } = send;
    let attempted = AssertUnwindSafe(sender.attempt(&delivery, &endpoint, clock::wall_ms())).catch_unwind().await;
    // A lane's place must come back whatever happens.
    let attempted = attempted.unwrap_or_else(|_| panicked(delivery.next_attempt()));
    Ended { token, attempted, spell }
}

/// What one thread leaves for another. Bounded by what is in flight, as only that passes through.
struct Mailbox<T> {
    items: Mutex<Vec<T>>,
    filled: Notify,
    /// Nobody fills it any more.
    is_closed: AtomicBool,
}

impl<T> Default for Mailbox<T> {
    fn default() -> Self {
        Self { items: Mutex::default(), filled: Notify::new(), is_closed: AtomicBool::new(false) }
    }
}

impl<T> Mailbox<T> {
    fn put(&self, more: &mut Vec<T>) {
        self.lock().append(more);
        self.filled.notify_one();
    }

    /// All of it; waits until there is something. Who waits for a thread that has died ends as well: its lanes would
    /// stay full for ever while the lease is renewed, and another process can do what this one can not.
    async fn take(&self) -> Vec<T> {
        loop {
            let items = self.take_now();
            if !items.is_empty() {
                return items;
            }
            assert!(!self.is_closed.load(Relaxed), "a thread of attempts has died: its panic stands before this one");
            self.filled.notified().await;
        }
    }

    fn take_now(&self) -> Vec<T> {
        std::mem::take(&mut *self.lock())
    }

    fn close(&self) {
        self.is_closed.store(true, Relaxed);
        self.filled.notify_one();
    }

    /// The list is whole at every step.
    fn lock(&self) -> MutexGuard<'_, Vec<T>> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn panicked(number: u32) -> Attempted {
    let report = AttemptReport {
        number,
        at_ms: clock::wall_ms(),
        outcome: Outcome::Unsendable,
        timing: Timing::default(),
        body_end: BodyEnd::Complete,
        snippet: String::new(),
        detail: "the attempt failed inside Herald; its log has the place".to_owned(),
    };
    Attempted { report, request: None }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{io::AsyncReadExt, net::TcpListener};

    use super::*;
    use crate::{
        facts::{
            delivery::Delivery,
            endpoint::Endpoint,
            event::Event,
            id::{AccountId, EndpointId},
            signing::SecretText,
        },
        sender::SenderConfig,
    };

    #[test]
    fn slow_receivers_keep_nothing_from_beginning_for_longer_than_a_spell() {
        let start = clock::now();
        let mut young = Young::new(start);
        assert_eq!(young.room(start), MOST_YOUNG);
        young.count += MOST_YOUNG;
        assert_eq!((young.room(start), young.full_until()), (0, Some(start + SPELL)));
        // One is answered at once: another may begin.
        young.ended(0);
        assert_eq!((young.room(start), young.full_until()), (1, None));
        // The others are not: they wait for their receivers, and when they end it makes no room twice.
        let later = start + SPELL;
        assert_eq!(young.room(later), MOST_YOUNG);
        young.ended(0);
        assert_eq!(young.room(later), MOST_YOUNG);
    }

    /// Were they begun, the next owner's attempts and these would be out at once.
    #[tokio::test]
    async fn what_was_not_begun_when_a_term_ends_is_never_begun() {
        const BODY: &str = r#"{"id":"evt_1","event":"payment_intent.created","accountId":"acc_1","createdAt":"2022-02-01T13:07:41Z","data":{"paymentIntentId":"pi_1","paymentStatus":"Created","captureMode":"Auto"}}"#;
        crate::tls::install_crypto_provider();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (id, account) = (EndpointId::new("ep_1").unwrap(), AccountId::new("acc_1").unwrap());
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let endpoint = Endpoint::new(id.clone(), account, url, SecretText::from_random([7; 32]), 0);
        let endpoint = Arc::new(endpoint);
        let event = Event::parse(BODY.as_bytes().into()).unwrap();
        let send = |number: u64| {
            let delivery = Delivery::new(format!("{number}-0").parse().unwrap(), id.clone(), &event, true, 0);
            Send { token: number, trust: Trust::Proven, delivery: Arc::new(delivery), endpoint: endpoint.clone() }
        };
        let sender = || {
            let config = SenderConfig {
                attempt_timeout: Duration::from_secs(60),
                connect_timeout: Duration::from_secs(60),
                allow_http: true,
                allow_networks: vec!["127.0.0.0/8".parse().unwrap()],
                extra_root_certificates: Vec::new(),
            };
            Arc::new(crate::sender::Sender::try_new(config).unwrap())
        };
        let mut attempts = Attempts::new(sender(), sender()).unwrap();
        (1..=100).for_each(|number| attempts.start(send(number)));
        // Handed over with them, so that none has been begun.
        attempts.abort_all();
        attempts.start(send(101));
        attempts.hand_over();
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(BODY.as_bytes()) {
            assert!(stream.read_buf(&mut request).await.unwrap() > 0);
        }
        let request = String::from_utf8_lossy(&request);
        // The sequence is the entry's, and the first that came is the one of the new term.
        let sequence = send(101).delivery.id.entry.sequence();
        assert!(request.contains(&format!("herald-sequence: {sequence}\r\n")), "{request}");
    }

    /// A result that gets lost here keeps its delivery in flight until the term ends.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn everything_that_one_thread_leaves_the_other_takes_once() {
        const ALL: usize = 100_000;
        let mailbox = Arc::new(Mailbox::default());
        let from = mailbox.clone();
        let leaving = tokio::task::spawn_blocking(move || {
            // Batches of 1 to 700: smaller and larger than any turn.
            let (mut next, mut size) = (0, 1);
            while next < ALL {
                let until = (next + size).min(ALL);
                from.put(&mut (next..until).collect());
                (next, size) = (until, size % 700 + 1);
            }
        });
        let mut taken = Vec::new();
        while taken.len() < ALL {
            taken.extend(mailbox.take().await);
        }
        leaving.await.unwrap();
        assert_eq!(taken, (0..ALL).collect::<Vec<_>>());
    }

    #[tokio::test]
    #[should_panic(expected = "has died")]
    async fn who_waits_for_a_thread_that_died_ends_as_well() {
        let mailbox = Arc::new(Mailbox::<u32>::default());
        let dying = Alarm(mailbox.clone());
        thread::spawn(move || drop(dying)).join().unwrap();
        mailbox.take().await;
    }

    #[tokio::test]
    async fn nothing_is_lost_when_a_wait_is_given_up() {
        let mailbox = Mailbox::default();
        for number in 0..100 {
            assert!(mailbox.take().now_or_never().is_none());
            mailbox.put(&mut vec![number]);
            assert_eq!(mailbox.take().await, [number]);
        }
    }
}
