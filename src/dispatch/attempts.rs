//! Where attempts run: on threads, timers and connections of their own, so that no receiver, whatever it sends, keeps the
//! partition from renewing its lease, settling or starting the next attempt. Receivers that have not shown that they answer
//! have a thread to themselves: a flood that keeps it busy takes nothing from the proven ones. All partitions of a process share
//! these threads.
//!
//! An attempt, its connection and its timer stay on one thread, and what passes between threads goes in batches: waking
//! another thread is expensive.

mod mailbox;
mod members;
mod pacing;
pub mod turns;

use std::{
    io,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use tokio::runtime::{Builder, RuntimeMetrics};
use tokio_util::sync::CancellationToken;

use self::{
    mailbox::Mailbox,
    members::Members,
    pacing::{PROVEN, Pace, Pacing, UNPROVEN},
};
use super::{
    core::{NextAttempt, Token},
    lane::Trust,
};
use crate::{
    clock,
    facts::{
        id::{EndpointId, EntryId},
        outcome::{AttemptReport, Attempted, BodyEnd, Outcome, Timing},
        partition::Slot,
        trace::TraceId,
    },
    sender::Sender,
};

/// The threads of this process on which attempts run, shared by all its partitions. A receiver is always on the same of them. They end
/// with the last that holds them, and are not waited for: a flood may keep one busy.
pub struct Crew {
    proven: Vec<Arc<Mailbox<Order>>>,
    unproven: Arc<Mailbox<Order>>,
    /// Numbers for those that join.
    joined: AtomicU64,
    /// A thread has panicked.
    died: CancellationToken,
}

/// Connections of their own for each thread: they live where its attempts do.
pub struct Senders {
    /// For receivers that have shown that they answer. At least one.
    pub proven: Vec<Arc<Sender>>,
    /// For the others.
    pub unproven: Arc<Sender>,
}

/// The attempts of one partition.
pub struct Attempts {
    crew: Arc<Crew>,
    member: Member,
    /// Not handed over yet, for each thread; that of the unproven is the last.
    gathered: Vec<Vec<Order>>,
    ended: Arc<Mailbox<Ended>>,
}

/// Tells the attempts of one partition from those of the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Member(u64);

/// What became of what was started.
#[allow(clippy::large_enum_variant, reason = "nearly all are the large one, and a box would cost each of them")]
pub enum Ended {
    /// With the entry of its delivery, and its trace if that is sampled.
    Attempted(Token, EntryId, Option<TraceId>, Attempted),
    /// It was never begun, and may be started again. Of one endpoint the earlier ones come first.
    NotBegun(Token),
}

#[allow(clippy::large_enum_variant, reason = "nearly all are the large one, and a box would cost each of them")]
enum Order {
    /// What ends of this one's goes there.
    Join(Member, Arc<Mailbox<Ended>>),
    Start(Member, NextAttempt),
    AbortAll(Member),
    Leave(Member),
    Stop,
}

impl Crew {
    pub fn start(senders: Senders) -> io::Result<Arc<Self>> {
        let died = CancellationToken::new();
        let begin = |name: &str, sender, pace| begin(name, sender, pace, died.clone());
        let proven = senders.proven.into_iter().map(|sender| begin("attempts", sender, PROVEN));
        let (proven, unproven) = (proven.collect::<io::Result<_>>()?, begin("unproven", senders.unproven, UNPROVEN)?);
        Ok(Arc::new(Self { proven, unproven, joined: AtomicU64::new(0), died }))
    }

    /// For one more partition.
    pub fn join(self: &Arc<Self>) -> Attempts {
        let (member, ended) = (Member(self.joined.fetch_add(1, Relaxed)), Arc::new(Mailbox::default()));
        for thread in self.threads() {
            thread.put(&mut vec![Order::Join(member, Arc::clone(&ended))]);
        }
        let gathered = self.threads().map(|_| Vec::new()).collect();
        Attempts { crew: Arc::clone(self), member, gathered, ended }
    }

    /// Ends once a thread has panicked: what is in flight there never ends, and another process can do what this one cannot.
    pub async fn died(&self) {
        self.died.cancelled().await;
    }

    fn threads(&self) -> impl Iterator<Item = &Arc<Mailbox<Order>>> {
        self.proven.iter().chain([&self.unproven])
    }

    /// Where attempts to this endpoint run.
    fn thread_of(&self, send: &NextAttempt) -> usize {
        match send.trust {
            Trust::Proven if self.proven.len() == 1 => 0,
            Trust::Proven => {
                usize::from(Slot::of_key(send.endpoint.id.as_str().as_bytes()).number()) % self.proven.len()
            }
            Trust::New | Trust::Failing | Trust::Doubted => self.proven.len(),
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.threads().for_each(|thread| thread.put(&mut vec![Order::Stop]));
    }
}

impl Attempts {
    /// Begins with the next [`Attempts::hand_over`].
    pub fn start(&mut self, send: NextAttempt) {
        let thread = self.crew.thread_of(&send);
        self.gathered[thread].push(Order::Start(self.member, send));
    }

    /// Passes on everything that was started.
    pub fn hand_over(&mut self) {
        for (thread, gathered) in self.crew.threads().zip(&mut self.gathered) {
            if !gathered.is_empty() {
                thread.put(gathered);
            }
        }
    }

    /// All that have ended; waits until there is one. Dropping this future loses nothing. Panics once a thread of the crew has.
    pub async fn ended(&self) -> Vec<Ended> {
        self.ended.take().await
    }

    /// Of this partition. What has ended already may still be reported.
    pub fn abort_all(&mut self) {
        self.tell_all(Order::AbortAll);
    }

    fn tell_all(&mut self, order: impl Fn(Member) -> Order) {
        self.gathered.iter_mut().for_each(|gathered| gathered.push(order(self.member)));
        self.hand_over();
    }
}

impl Drop for Attempts {
    fn drop(&mut self) {
        self.tell_all(Order::Leave);
    }
}

fn begin(name: &str, sender: Arc<Sender>, pace: Pace, died: CancellationToken) -> io::Result<Arc<Mailbox<Order>>> {
    let orders = Arc::new(Mailbox::default());
    let runtime = Builder::new_current_thread().thread_name(name).enable_all().build()?;
    let taken = Arc::clone(&orders);
    thread::Builder::new().name(name.to_owned()).spawn(move || {
        let alarm = died.drop_guard();
        if pace.stands_back {
            stand_back();
        }
        let (began, pacing, metrics) = (clock::now(), Pacing::new(pace, clock::now()), runtime.metrics());
        let inside = Inside { orders: taken, members: Members::default(), pacing, metrics, began };
        runtime.block_on(inside.run(|send, period| attempt(sender.clone(), send, period)));
        // It was told to end.
        alarm.disarm();
        runtime.shutdown_background();
    })?;
    Ok(orders)
}

struct Finished {
    token: Token,
    entry: EntryId,
    endpoint: EndpointId,
    trace: Option<TraceId>,
    attempted: Attempted,
    /// When it was begun.
    period: u64,
}

/// How many attempts are begun before the thread looks again at what has ended: few enough that those before them are
/// served first, enough that the looking costs little.
const BEGUN_AT_ONCE: usize = 16;

/// How far behind others the thread that stands back is for the processor: of a busy one it gets a quarter.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 5;

/// This thread leaves the processor to the others.
fn stand_back() {
    // On other systems the whole process would stand back.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
        tracing::warn!(%error, "the thread of receivers that are not proven cannot stand back behind the others");
    }
}

/// How many results are gathered while there is more to begin: the partition is busy enough then, and waking it costs.
const GATHERED: usize = 64;

/// Results are also gathered while this many wait for places: enough to fill those that come free meanwhile.
const ENOUGH_AHEAD: usize = 32;

/// How long results are gathered while no more may begin: the next deliveries of their chains wait for them.
const GATHERING: Duration = Duration::from_millis(2);

/// How often to check whether some have waited too long for a place.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// One thread's attempts, on that thread.
struct Inside<F: Future<Output = Finished>> {
    orders: Arc<Mailbox<Order>>,
    /// What is handed over and not begun is bounded, as part of what is in flight.
    members: Members<F>,
    pacing: Pacing,
    metrics: RuntimeMetrics,
    began: Instant,
}

impl<F: Future<Output = Finished>> Inside<F> {
    /// Ends attempts before it begins others. So a thread that has enough to do has few requests out at a time, on few
    /// connections, which costs much less per request than having them all out at once. Those to slow receivers soon count
    /// no more: see [`pacing`].
    async fn run(mut self, attempt: impl Fn(NextAttempt, u64) -> F) {
        let mut round = Vec::new();
        let (mut tell_at, mut look_at) = (clock::now(), clock::now());
        loop {
            let Self { orders, members, pacing, .. } = &mut self;
            let has_waiting = !members.is_empty();
            let has_gathered = members.gathered() > 0;
            let full_until = pacing.full_until();
            let rest_until = full_until.map(|until| if has_gathered { until.min(tell_at) } else { until });
            let look_or_tell_at = if has_gathered { look_at.min(tell_at) } else { look_at };
            let are_crowded = members.are_crowded();
            let orders = tokio::select! {
                biased;
                () = std::future::poll_fn(|cx| members.poll(cx, &mut round)) => orders.take_now(),
                taken = orders.take() => taken,
                // Comes after a look at the sockets.
                () = pause(rest_until), if has_waiting => orders.take_now(),
                () = tokio::time::sleep_until(look_or_tell_at.into()), if are_crowded => orders.take_now(),
            };
            for order in orders {
                match order {
                    Order::Join(member, ended) => self.members.join(member, ended),
                    Order::Start(member, send) => self.members.push(member, send),
                    Order::AbortAll(member) => {
                        self.members.clear(member);
                        self.pacing.next_period(clock::now(), busy(&self.metrics));
                    }
                    Order::Leave(member) => self.members.leave(member),
                    Order::Stop => return,
                }
            }
            if self.members.gathered() == 0 && !round.is_empty() {
                tell_at = clock::now() + GATHERING;
            }
            if round.is_empty() {
                self.begin_some(&attempt);
            }
            if self.members.are_crowded() && clock::now() >= look_at {
                look_at = clock::now() + LOOK_EVERY;
                self.members.give_back(self.now());
            }
            for (member, finished) in round.drain(..) {
                self.pacing.ended(finished.period);
                self.members.ended(member, finished);
            }
            let is_ahead = self.members.ahead() >= ENOUGH_AHEAD;
            let has_time = !self.members.is_empty() || is_ahead;
            let is_late = (full_until.is_some() || is_ahead) && clock::now() >= tell_at;
            let is_enough = !has_time || self.members.gathered() >= GATHERED || is_late;
            if is_enough {
                self.members.tell();
            }
        }
    }

    /// Begins what is to begin now.
    fn begin_some(&mut self, attempt: impl Fn(NextAttempt, u64) -> F) {
        let (room, now) = (self.pacing.room(clock::now(), || busy(&self.metrics)), self.now());
        let few = BEGUN_AT_ONCE.min(room);
        let next: Vec<_> = std::iter::from_fn(|| self.members.next(now)).take(few).collect();
        let period = self.pacing.begun(next.len());
        for (member, send) in next {
            self.members.begin(member, attempt(send, period));
        }
    }

    fn now(&self) -> u64 {
        clock::now().saturating_duration_since(self.began).as_millis() as u64
    }
}

/// How long the only thread of a runtime was not waiting for its sockets and timers.
fn busy(metrics: &RuntimeMetrics) -> Duration {
    metrics.worker_total_busy_duration(0)
}

/// Waits until something may begin, after a look at the sockets.
async fn pause(until: Option<Instant>) {
    match until {
        None => tokio::task::yield_now().await,
        Some(until) => tokio::time::sleep_until(until.into()).await,
    }
}

async fn attempt(sender: Arc<Sender>, send: NextAttempt, period: u64) -> Finished {
    let NextAttempt { token, delivery, endpoint, trace, .. } = send;
    let attempted = AssertUnwindSafe(sender.attempt(&delivery, &endpoint, clock::wall_ms())).catch_unwind().await;
    // A lane's place must come back whatever happens.
    let attempted = attempted.unwrap_or_else(|_| panicked(delivery.next_attempt()));
    Finished { token, entry: delivery.id.entry, endpoint: endpoint.id.clone(), trace, attempted, period }
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
    Attempted { report, request: None, flooded: false, resent: false, met: None }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };

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

    const BODY: &str = r#"{"id":"evt_1","event":"payment_intent.created","accountId":"acc_1","createdAt":"2022-02-01T13:07:41Z","data":{"paymentIntentId":"pi_1","paymentStatus":"Created","captureMode":"Auto"}}"#;

    /// A receiver that only listens, attempts that may reach it, and a function that makes the delivery of a given number
    /// to it.
    async fn silent_receiver() -> (TcpListener, Attempts, impl Fn(u64) -> NextAttempt) {
        crate::tls::install_crypto_provider();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (id, account) = (EndpointId::new("ep_1").unwrap(), AccountId::new("acc_1").unwrap());
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let endpoint = Arc::new(Endpoint::new(id.clone(), account, url, SecretText::from_random([7; 32]), 0));
        let event = Event::parse(BODY.as_bytes().into()).unwrap();
        let send = move |number: u64| {
            let delivery = Delivery::new(format!("{number}-0").parse().unwrap(), id.clone(), &event, true, 0);
            let (trust, places) = (Trust::Proven, u32::MAX);
            NextAttempt {
                token: Token(number),
                trust,
                places,
                delivery: Arc::new(delivery),
                endpoint: endpoint.clone(),
                trace: None,
            }
        };
        let sender = || {
            let config = SenderConfig {
                attempt_timeout: Duration::from_secs(60),
                connect_timeout: Duration::from_secs(60),
                allow_http: true,
                allow_networks: vec!["127.0.0.0/8".parse().unwrap()],
                ..SenderConfig::default()
            };
            Arc::new(crate::sender::Sender::try_new(config).unwrap())
        };
        let crew = Crew::start(Senders { proven: vec![sender()], unproven: sender() }).unwrap();
        (listener, crew.join(), send)
    }

    /// Reads one request and returns whether it belongs to this delivery: the sequence is the entry's.
    async fn is_of(stream: &mut TcpStream, send: &NextAttempt) -> bool {
        let mut request = Vec::new();
        while !request.ends_with(BODY.as_bytes()) {
            assert!(stream.read_buf(&mut request).await.unwrap() > 0);
        }
        let sequence = send.delivery.sequence();
        String::from_utf8_lossy(&request).contains(&format!("herald-sequence: {sequence}\r\n"))
    }

    /// If they were begun, they would be out together with the next owner's attempts.
    #[tokio::test]
    async fn what_was_not_begun_when_a_term_ends_is_never_begun() {
        let (listener, mut attempts, send) = silent_receiver().await;
        (1..=100).for_each(|number| attempts.start(send(number)));
        // Handed over with them, so that none has been begun.
        attempts.abort_all();
        attempts.start(send(101));
        attempts.hand_over();
        let (mut stream, _) = listener.accept().await.unwrap();
        assert!(is_of(&mut stream, &send(101)).await, "the first that came is not the one of the new term");
    }

    /// Its term has ended, theirs have not.
    #[tokio::test]
    async fn a_partition_gives_up_its_own_attempts_alone() {
        let (listener, mut attempts, send) = silent_receiver().await;
        let mut other = attempts.crew.join();
        for (of, number) in [(&mut attempts, 1), (&mut other, 2)] {
            of.start(send(number));
            of.hand_over();
        }
        let mut streams = [listener.accept().await.unwrap().0, listener.accept().await.unwrap().0];
        let mut is_first = [false; 2];
        for (stream, is_first) in streams.iter_mut().zip(&mut is_first) {
            *is_first = is_of(stream, &send(1)).await;
        }
        let [ours, theirs] = if is_first[0] { [0, 1] } else { [1, 0] };
        attempts.abort_all();
        assert_eq!(streams[ours].read(&mut [0; 8]).await.unwrap(), 0, "its connection is closed");
        streams[theirs].write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        let ended = other.ended().await;
        assert!(
            matches!(&ended[..], [Ended::Attempted(Token(2), _, _, attempted)] if attempted.report.outcome.is_delivered())
        );
        assert!(attempts.ended().now_or_never().is_none());
    }

    #[tokio::test]
    async fn who_leaves_takes_its_attempts_along() {
        let (listener, mut attempts, send) = silent_receiver().await;
        let crew = Arc::clone(&attempts.crew);
        attempts.start(send(1));
        attempts.hand_over();
        let (mut stream, _) = listener.accept().await.unwrap();
        assert!(is_of(&mut stream, &send(1)).await);
        drop(attempts);
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0, "its connection is closed");
        drop(crew);
    }

    #[tokio::test]
    async fn receivers_that_do_not_answer_keep_no_attempt_from_beginning() {
        const ALL: u64 = 4 * PROVEN.least as u64;
        let (listener, mut attempts, send) = silent_receiver().await;
        (1..=ALL).for_each(|number| attempts.start(send(number)));
        attempts.hand_over();
        let mut streams = Vec::new();
        for _ in 1..=ALL {
            streams.push(listener.accept().await.unwrap());
        }
        // A term ends while as many are out as may be: those of the next term begin all the same.
        attempts.abort_all();
        attempts.start(send(ALL + 1));
        attempts.hand_over();
        let (mut stream, _) = listener.accept().await.unwrap();
        assert!(is_of(&mut stream, &send(ALL + 1)).await);
    }
}
