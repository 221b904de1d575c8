//! Where attempts run: on threads, timers and connections of their own, so that no receiver, whatever it sends, keeps the
//! partition from renewing its lease, settling or starting the next attempt. Receivers that have not shown that they answer
//! have a thread to themselves: a flood that keeps it busy takes nothing from the proven ones.
//!
//! An attempt, its connection and its timer stay on one thread, and what passes between threads goes in batches: waking
//! another thread is expensive.

mod mailbox;
mod pacing;
pub mod turns;

use std::{
    io,
    panic::AssertUnwindSafe,
    sync::Arc,
    task::{Context, Poll},
    thread,
    time::{Duration, Instant},
};

use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use tokio::runtime::{Builder, RuntimeMetrics};

use self::{
    mailbox::{Alarm, Mailbox},
    pacing::{PROVEN, Pace, Pacing, UNPROVEN},
    turns::Turns,
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
        trace::TraceId,
    },
    sender::Sender,
};

pub struct Attempts {
    proven: AttemptThread,
    unproven: AttemptThread,
    ended: Arc<Mailbox<Ended>>,
}

/// What became of what was started.
#[allow(clippy::large_enum_variant, reason = "nearly all are the large one, and a box would cost each of them")]
pub enum Ended {
    /// With the entry of its delivery, and its trace if that is sampled.
    Attempted(Token, EntryId, Option<TraceId>, Attempted),
    /// It was never begun, and may be started again. Of one endpoint the earlier ones come first.
    NotBegun(Token),
}

/// One thread's attempts, seen from outside.
struct AttemptThread {
    orders: Arc<Mailbox<Order>>,
    /// Not handed over yet.
    gathered: Vec<Order>,
}

enum Order {
    Start(NextAttempt),
    AbortAll,
    Stop,
}

impl Attempts {
    /// Each sender has connections of its own, which live where its attempts do.
    pub fn new(proven: Arc<Sender>, unproven: Arc<Sender>) -> io::Result<Self> {
        let ended = Arc::new(Mailbox::default());
        let proven = AttemptThread::begin("attempts", proven, ended.clone(), PROVEN)?;
        let unproven = AttemptThread::begin("unproven", unproven, ended.clone(), UNPROVEN)?;
        Ok(Self { proven, unproven, ended })
    }

    /// Begins with the next [`Attempts::hand_over`].
    pub fn start(&mut self, send: NextAttempt) {
        let thread = match send.trust {
            Trust::Proven => &mut self.proven,
            Trust::New | Trust::Failing | Trust::Doubted => &mut self.unproven,
        };
        thread.gathered.push(Order::Start(send));
    }

    /// Passes on everything that was started.
    pub fn hand_over(&mut self) {
        self.proven.hand_over();
        self.unproven.hand_over();
    }

    /// All that have ended; waits until there is one. Dropping this future loses nothing.
    pub async fn ended(&self) -> Vec<Ended> {
        self.ended.take().await
    }

    /// What has ended already may still be reported.
    pub fn abort_all(&mut self) {
        for thread in [&mut self.proven, &mut self.unproven] {
            thread.gathered.push(Order::AbortAll);
            thread.hand_over();
        }
    }
}

impl Drop for Attempts {
    /// The threads are not waited for: a flood may keep one busy.
    fn drop(&mut self) {
        for thread in [&mut self.proven, &mut self.unproven] {
            thread.gathered.push(Order::Stop);
            thread.hand_over();
        }
    }
}

impl AttemptThread {
    fn begin(name: &str, sender: Arc<Sender>, ended: Arc<Mailbox<Ended>>, pace: Pace) -> io::Result<Self> {
        let orders = Arc::new(Mailbox::default());
        let runtime = Builder::new_current_thread().thread_name(name).enable_all().build()?;
        let taken = Arc::clone(&orders);
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _alarm = Alarm(ended.clone());
            if pace.stands_back {
                stand_back();
            }
            let (began, turns) = (clock::now(), Turns::default());
            let (pacing, metrics) = (Pacing::new(pace, began), runtime.metrics());
            let inside = Inside { orders: taken, ended, turns, pacing, metrics, began };
            runtime.block_on(inside.run(|send, period| attempt(sender.clone(), send, period)));
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
struct Inside {
    orders: Arc<Mailbox<Order>>,
    ended: Arc<Mailbox<Ended>>,
    /// Handed over and not begun; bounded, as part of what is in flight.
    turns: Turns,
    pacing: Pacing,
    metrics: RuntimeMetrics,
    began: Instant,
}

impl Inside {
    /// Ends attempts before it begins others. So a thread that has enough to do has few requests out at a time, on few
    /// connections, which costs much less per request than having them all out at once. Those to slow receivers soon count
    /// no more: see [`pacing`].
    async fn run<F: Future<Output = Finished>>(mut self, attempt: impl Fn(NextAttempt, u64) -> F) {
        // Each is stored inline here, without a box of its own.
        let mut running = FuturesUnordered::new();
        let (mut round, mut ended, mut back) = (Vec::new(), Vec::new(), Vec::new());
        let (mut tell_at, mut look_at) = (clock::now(), clock::now());
        loop {
            let has_waiting = !self.turns.is_empty();
            let full_until = self.pacing.full_until();
            let rest_until = full_until.map(|until| if ended.is_empty() { until } else { until.min(tell_at) });
            let look_or_tell_at = if ended.is_empty() { look_at } else { look_at.min(tell_at) };
            let orders = tokio::select! {
                biased;
                () = std::future::poll_fn(|cx| poll_all(&mut running, cx, &mut round)) => self.orders.take_now(),
                orders = self.orders.take() => orders,
                // Comes after a look at the sockets.
                () = pause(rest_until), if has_waiting => self.orders.take_now(),
                () = tokio::time::sleep_until(look_or_tell_at.into()), if self.turns.are_crowded() => self.orders.take_now(),
            };
            for order in orders {
                match order {
                    Order::Start(send) => self.turns.push(send),
                    Order::AbortAll => {
                        self.turns.clear();
                        running.clear();
                        self.pacing.next_period(clock::now(), busy(&self.metrics));
                    }
                    Order::Stop => return,
                }
            }
            if ended.is_empty() && !round.is_empty() {
                tell_at = clock::now() + GATHERING;
            }
            if round.is_empty() {
                running.extend(self.next().map(|(send, period)| attempt(send, period)));
            }
            if self.turns.are_crowded() && clock::now() >= look_at {
                look_at = clock::now() + LOOK_EVERY;
                self.turns.give_back(self.now(), &mut back);
            }
            let (turns, pacing) = (&mut self.turns, &mut self.pacing);
            let finished = round.drain(..).map(|Finished { token, entry, endpoint, trace, attempted, period }| {
                pacing.ended(period);
                turns.ended(&endpoint, attempted.report.outcome.is_delivered(), &mut back);
                Ended::Attempted(token, entry, trace, attempted)
            });
            let finished: Vec<Ended> = finished.collect();
            // What was never begun comes first: the failure that sent it back is then judged with fewer attempts out.
            ended.extend(back.drain(..).map(Ended::NotBegun));
            ended.extend(finished);
            let is_ahead = self.turns.ahead() >= ENOUGH_AHEAD;
            let has_time = !self.turns.is_empty() || is_ahead;
            let is_late = (full_until.is_some() || is_ahead) && clock::now() >= tell_at;
            let is_enough = !has_time || ended.len() >= GATHERED || is_late;
            if is_enough && !ended.is_empty() {
                self.ended.put(&mut ended);
            }
        }
    }

    /// What is to begin now, and in which period.
    fn next(&mut self) -> impl Iterator<Item = (NextAttempt, u64)> {
        let (room, now) = (self.pacing.room(clock::now(), || busy(&self.metrics)), self.now());
        let few = BEGUN_AT_ONCE.min(room);
        let next: Vec<NextAttempt> = std::iter::from_fn(|| self.turns.next(now)).take(few).collect();
        let period = self.pacing.begun(next.len());
        next.into_iter().map(move |send| (send, period))
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

/// Ready with all that have ended by now.
fn poll_all<F: Future>(
    running: &mut FuturesUnordered<F>,
    cx: &mut Context<'_>,
    ended: &mut Vec<F::Output>,
) -> Poll<()> {
    let known = ended.len();
    while let Poll::Ready(Some(one)) = running.poll_next_unpin(cx) {
        ended.push(one);
    }
    if ended.len() == known { Poll::Pending } else { Poll::Ready(()) }
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
        io::AsyncReadExt,
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
        (listener, Attempts::new(sender(), sender()).unwrap(), send)
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
