//! What healthy endpoints notice of crowds: thousands of receivers that hang, answer late, flood or never end their
//! head, many endpoints of one account, many shops on one host. Each crowd is beside healthy endpoints in one of two
//! stacks, and the other stack has only the healthy ones; both are measured in turns.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use herald::{facts::endpoint::Endpoint, surface::words::time_us};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    runtime::Runtime,
    time::{sleep, timeout},
};

use crate::{
    events::Lives,
    neighbours::{Latency, More, latency_beside},
    processes::{stand_back, wait_for},
    stack::{STUCK, Setup, Stack},
    state::endpoint,
};

/// Endpoints that are healthy, in either stack.
pub const HEALTHY: u64 = 1_000;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 4_096;

/// Longer than an attempt may take.
const HANG: Duration = Duration::from_secs(60);

/// Just within the time of an attempt.
const LATE: Duration = Duration::from_secs(14);

/// Interim answers sent at once, and the pause between: the receiver shares the machine with what is measured.
const HINTS: usize = 512;
const HINT_PAUSE: Duration = Duration::from_millis(20);

/// The largest head that was ever taken, less a little.
pub const HEAD_BYTES: usize = 395_000;

/// How a receiver of a crowd behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Manner {
    Hangs,
    AnswersLate,
    Floods,
    NeverEndsItsHead,
    AnswersAtOnce,
}

impl Manner {
    const ALL: [Self; 5] = [Self::Hangs, Self::AnswersLate, Self::Floods, Self::NeverEndsItsHead, Self::AnswersAtOnce];

    fn path(self) -> &'static str {
        match self {
            Self::Hangs => "hang",
            Self::AnswersLate => "late",
            Self::Floods => "flood",
            Self::NeverEndsItsHead => "head",
            Self::AnswersAtOnce => "ok",
        }
    }
}

/// This many endpoints of one manner.
pub struct Part {
    pub manner: Manner,
    pub endpoints: u64,
    /// As many accounts as endpoints, or one for all.
    pub is_one_account: bool,
    /// As many hosts as endpoints, or one for all.
    pub is_one_host: bool,
    pub max_in_flight: Option<u16>,
}

impl Part {
    pub fn of(manner: Manner, endpoints: u64) -> Self {
        Self { manner, endpoints, is_one_account: false, is_one_host: false, max_in_flight: None }
    }
}

pub struct Crowd {
    pub parts: Vec<Part>,
    /// Events for the crowd's accounts while latency is measured, in each round.
    pub more: More,
    /// How often each of its accounts gets an event before anything is measured.
    pub before: u64,
}

impl Crowd {
    fn accounts(&self) -> u64 {
        self.parts.iter().map(|part| if part.is_one_account { 1 } else { part.endpoints }).sum()
    }

    /// Numbered from where the healthy ones end.
    fn endpoints(&self, server: &Server) -> Result<Vec<Endpoint>> {
        let (mut endpoints, mut account, mut number) = (Vec::new(), HEALTHY, HEALTHY);
        for part in &self.parts {
            for at in 0..part.endpoints {
                let of = account + if part.is_one_account { 0 } else { at };
                // 127.1.0.0/16 is for crowds with hosts of their own.
                let host = if part.is_one_host { Ipv4Addr::new(127, 2, 0, 1) } else { own_host(number) };
                let url = format!("http://{host}:{}/{}/{number}", server.port, part.manner.path());
                let mut endpoint = endpoint(number, of, url)?;
                endpoint.max_in_flight = part.max_in_flight.unwrap_or(endpoint.max_in_flight);
                endpoints.push(endpoint);
                number += 1;
            }
            account += if part.is_one_account { 1 } else { part.endpoints };
        }
        Ok(endpoints)
    }
}

fn own_host(number: u64) -> Ipv4Addr {
    let [.., high, low] = number.to_be_bytes();
    Ipv4Addr::new(127, 1, high, low)
}

/// Receivers of every manner, on all loopback addresses.
pub struct Server {
    port: u16,
    requests: Arc<HashMap<Manner, AtomicU64>>,
    _runtime: Runtime,
}

impl Server {
    pub fn start() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        // Receivers elsewhere would take the processor from nobody.
        runtime.block_on(runtime.spawn(async { stand_back(nix::unistd::gettid().as_raw()) }))??;
        let requests: Arc<HashMap<_, _>> = Arc::new(Manner::ALL.map(|manner| (manner, AtomicU64::new(0))).into());
        let counts = requests.clone();
        let listener = runtime.block_on(async {
            let socket = TcpSocket::new_v4()?;
            // On no other interface, whatever the address.
            socket.bind_device(Some(b"lo"))?;
            socket.bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)))?;
            socket.listen(BACKLOG)
        });
        let listener = listener.context("cannot listen on all loopback addresses")?;
        let port = listener.local_addr()?.port();
        runtime.spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => drop(tokio::spawn(converse(stream, counts.clone()))),
                    // No descriptor is left: receivers that hang will give theirs back.
                    Err(_) => sleep(HINT_PAUSE).await,
                }
            }
        });
        Ok(Self { port, requests, _runtime: runtime })
    }

    pub fn requests(&self, manner: Manner) -> u64 {
        self.requests[&manner].load(Ordering::Relaxed)
    }
}

/// Waits until the peer hangs up.
async fn converse(mut stream: TcpStream, counts: Arc<HashMap<Manner, AtomicU64>>) {
    let mut buffer = Vec::with_capacity(2 * 1024);
    while let Some(manner) = next_request(&mut stream, &mut buffer).await {
        counts[&manner].fetch_add(1, Ordering::Relaxed);
        if answer(&mut stream, manner).await.is_none() {
            return;
        }
    }
}

/// A request of a few hundred bytes, by its path; none if there are no more.
async fn next_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Manner> {
    loop {
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut request = httparse::Request::new(&mut headers);
        if let Ok(httparse::Status::Complete(head)) = request.parse(buffer) {
            let length = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
            let length: usize = std::str::from_utf8(length?.value).ok()?.parse().ok()?;
            let name = request.path?.split('/').nth(1)?;
            let manner = Manner::ALL.into_iter().find(|manner| manner.path() == name)?;
            if buffer.len() >= head + length {
                buffer.drain(..head + length);
                return Some(manner);
            }
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
}

/// None if the connection is over.
async fn answer(stream: &mut TcpStream, manner: Manner) -> Option<()> {
    const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    match manner {
        Manner::Hangs => gone(stream, HANG).await?,
        Manner::AnswersLate => gone(stream, LATE).await?,
        Manner::AnswersAtOnce => {}
        Manner::Floods => {
            let hints = b"HTTP/1.1 103 Early Hints\r\n\r\n".repeat(HINTS);
            loop {
                stream.write_all(&hints).await.ok()?;
                gone(stream, HINT_PAUSE).await?;
            }
        }
        Manner::NeverEndsItsHead => {
            let mut head = b"HTTP/1.1 200 OK\r\nx-padding: ".to_vec();
            head.resize(HEAD_BYTES, b'x');
            stream.write_all(&head).await.ok()?;
            gone(stream, HANG).await?;
            return None;
        }
    }
    stream.write_all(OK).await.ok()
}

/// Waits this long; none if the peer hangs up meanwhile.
async fn gone(stream: &mut TcpStream, time: Duration) -> Option<()> {
    let mut nothing = [0];
    // A peer that waits for its answer says nothing.
    match timeout(time, stream.peek(&mut nothing)).await {
        Err(_) => Some(()),
        Ok(_) => None,
    }
}

/// The healthy ones alone, and beside the crowd; medians of the calmer half of the rounds.
pub struct Felt {
    pub alone: Latency,
    pub beside: Latency,
    pub peak_bytes: u64,
}

/// `rounds` of this many seconds for each side, after one that does not count.
pub fn felt(program: &Path, server: &Server, crowd: &Crowd, rounds: u32, seconds: u64) -> Result<Felt> {
    let others = crowd.endpoints(server)?;
    let setup = |others| Setup {
        program,
        endpoints: HEALTHY,
        busy: HEALTHY,
        elsewhere: &|_| None,
        others,
        due_later: 0,
        parked: 0,
        depth: 0,
    };
    let mut stacks = [Stack::start(&setup(Vec::new()))?, Stack::start(&setup(others))?];
    for stack in &mut stacks {
        stack.state.resume()?;
    }
    let mut lives = Lives::of(HEALTHY as usize..(HEALTHY + crowd.accounts()) as usize, 3);
    let before = crowd.before * crowd.accounts();
    stacks[1].producer.add_all(lives.by_ref().take(before as usize))?;
    let mut seen = [Vec::new(), Vec::new()];
    for round in 0..=rounds {
        let first = (round % 2) as usize;
        for side in [first, 1 - first] {
            let more = (side == 1).then_some((&mut lives, crowd.more));
            let latency = latency_beside(&mut stacks[side], seconds, more)?;
            if round > 0 {
                let [p50, p99] = [latency.p50_us, latency.p99_us].map(time_us);
                eprintln!("  side {side}, round {round}: p50 {p50}, p99 {p99}; the host took {} ‰", latency.stolen);
                seen[side].push(latency);
            }
        }
    }
    let asked: u64 = crowd.parts.iter().map(|part| server.requests(part.manner)).sum();
    ensure!(asked > 0, "nothing was sent to the crowd");
    let [alone, beside] = seen.map(Latency::median);
    Ok(Felt { alone, beside, peak_bytes: stacks[1].peak_bytes() })
}

/// The most memory of a worker while each of this many receivers has sent a head without an end.
pub fn heads(program: &Path, server: &Server, receivers: u64) -> Result<u64> {
    let crowd = Crowd { parts: vec![Part::of(Manner::NeverEndsItsHead, receivers)], more: More::default(), before: 1 };
    let others = crowd.endpoints(server)?;
    let elsewhere = |_| None;
    let (due_later, depth) = (0, 0);
    let setup = Setup {
        program,
        endpoints: HEALTHY,
        busy: HEALTHY,
        elsewhere: &elsewhere,
        others,
        due_later,
        parked: 0,
        depth,
    };
    let mut stack = Stack::start(&setup)?;
    stack.state.resume()?;
    let (before, all) = (server.requests(Manner::NeverEndsItsHead), crowd.accounts());
    let mut lives = Lives::of(HEALTHY as usize..(HEALTHY + all) as usize, 3);
    stack.producer.add_all(lives.by_ref().take(2 * all as usize))?;
    let has_asked = || server.requests(Manner::NeverEndsItsHead) >= before + receivers / 2;
    wait_for("the receivers to be asked", STUCK, has_asked)?;
    latency_beside(&mut stack, 5, None)?;
    Ok(stack.peak_bytes())
}

/// What the others notice while an endpoint with this much parked is deleted: alone, and from the deletion on.
pub fn deleted(program: &Path, server: &Server, parked: u64, seconds: u64) -> Result<Felt> {
    let crowd = Crowd { parts: vec![Part::of(Manner::Hangs, 1)], more: More::default(), before: parked };
    let others = crowd.endpoints(server)?;
    let victim = others[0].id.clone();
    let elsewhere = |_| None;
    let (due_later, depth) = (0, 0);
    let setup = Setup {
        program,
        endpoints: HEALTHY,
        busy: HEALTHY,
        elsewhere: &elsewhere,
        others,
        due_later,
        parked: 0,
        depth,
    };
    let mut stack = Stack::start(&setup)?;
    stack.state.resume()?;
    let mut lives = Lives::of(HEALTHY as usize..HEALTHY as usize + 1, 3);
    stack.producer.add_all(lives.by_ref().take(parked as usize))?;
    wait_for("the backlog", STUCK, || stack.state.records().is_ok_and(|records| records + 64 >= parked))?;
    stack.until_calm()?;
    let alone = latency_beside(&mut stack, seconds, None)?;
    stack.state.remove(&victim)?;
    let beside = latency_beside(&mut stack, seconds, None)?;
    Ok(Felt { alone, beside, peak_bytes: stack.peak_bytes() })
}
