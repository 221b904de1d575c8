//! What is in Redis before something is measured: endpoints, due records, pending entries. All of it is written by the
//! store's own calls and scripts, so it is what Herald itself would have left behind.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use herald::{
    clock,
    facts::{
        delivery::{DeadLetter, Delivery, RECORD_SCHEMA},
        endpoint::{Endpoint, Mark},
        event::Event,
        id::{AccountId, EndpointId, EntryId},
        letter::LetterFacts,
        outcome::{AttemptReport, BodyEnd, Outcome, Timing},
        retry::DeadReason,
        signing::SecretText,
    },
    store::{
        connection::{Purpose, Redis as Client},
        keys::PartitionKeys,
        partition::PartitionStore,
        protocol::{Answer, CONSUMER, Call, GROUP, Item, MAX_BATCH, Place, Settlement, Term},
        registry::RegistryStore,
    },
};
use tokio::runtime::Runtime;

use crate::processes::Redis;

/// Endpoints that get the traffic, each of an account of its own, however many are registered.
pub const BUSY: u64 = 100;

pub const STREAM: &str = "payment-intents";

/// Longer than it takes to write everything.
const TTL_MS: u64 = 600_000;

/// The same as Herald's own default.
const ATTEMPT_LOG_LEN: u64 = 100_000;

/// Members and entries that one of our calls moves: some ten milliseconds of Redis.
const CHUNK: usize = 5_000;

pub struct State {
    runtime: Runtime,
    registry: RegistryStore,
    store: PartitionStore,
    keys: PartitionKeys,
    raw: Raw,
    /// Records written so far; each has an intent of its own.
    written: u64,
}

impl State {
    pub fn connect(redis: &Redis) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let keys = PartitionKeys::new(STREAM)?;
        let (registry, store) = runtime.block_on(async {
            let client = Client::new(&redis.url())?;
            let (work, lease) = (client.connect(Purpose::Work).await?, client.connect(Purpose::Other).await?);
            let store = PartitionStore::new(work, lease, keys.clone(), ATTEMPT_LOG_LEN);
            anyhow::Ok((RegistryStore::connect(&client).await?, store))
        })?;
        let raw = Raw::connect(redis.url().trim_start_matches("redis://"))?;
        Ok(Self { runtime, registry, store, keys, raw, written: 0 })
    }

    /// Replaces all endpoints that there were.
    pub fn register(&mut self, endpoints: Vec<Endpoint>) -> Result<()> {
        self.runtime.block_on(self.registry.import(endpoints, None, &mark())).context("cannot register endpoints")?;
        Ok(())
    }

    pub fn remove(&mut self, endpoint: &EndpointId) -> Result<()> {
        Ok(self.runtime.block_on(self.registry.remove(endpoint, None, &mark()))?)
    }

    pub fn pause(&mut self) -> Result<()> {
        Ok(self.runtime.block_on(self.registry.pause_all(&mark()))?)
    }

    pub fn resume(&mut self) -> Result<()> {
        self.runtime.block_on(self.registry.resume_all(&mark()))?;
        Ok(())
    }

    /// What the lease holds; empty if nobody has it.
    pub fn lease(&mut self) -> Result<String> {
        self.raw.ask(&["GET", &self.keys.lease()])
    }

    /// What becomes of the stream's entries; empty where they are delivered.
    pub fn mode(&mut self) -> Result<String> {
        self.raw.ask(&["GET", &self.keys.mode()])
    }

    /// Entries in the parts into which the stream is split.
    pub fn in_parts(&mut self, parts: u32) -> Result<u64> {
        const SCRIPT: &str = "local all = 0 for part = 0, ARGV[2] - 1 do \
            all = all + redis.call('XLEN', ARGV[1] .. ':' .. part) end return all";
        Ok(self.raw.ask(&["EVAL", SCRIPT, "0", STREAM, &parts.to_string()])?.parse()?)
    }

    /// Deliveries that have a record, wherever they stand.
    pub fn records(&mut self) -> Result<u64> {
        const SCRIPT: &str = "local all = 0 for _, count in ipairs(redis.call('HVALS', KEYS[1])) do \
            all = all + count end return all";
        Ok(self.raw.ask(&["EVAL", SCRIPT, "1", &self.keys.unfinished()])?.parse()?)
    }

    /// Redis rewrites its append-only file, as Herald asks of a server that has just started.
    pub fn is_rewriting(&mut self) -> Result<bool> {
        let info = self.raw.ask(&["INFO", "persistence"])?;
        Ok(info.contains("aof_rewrite_in_progress:1") || info.contains("aof_rewrite_scheduled:1"))
    }

    /// Records of deliveries that failed once, written as the owner of a term of our own. Nobody else may own the
    /// partition.
    pub fn write_records_unowned(&mut self, count: u64, place: Place) -> Result<()> {
        let term = Term::new(1, "bench");
        let acquire = Call::Acquire { term: term.clone(), previous: Vec::new(), ttl_ms: TTL_MS };
        let answer = self.call(&acquire)?;
        ensure!(matches!(answer, Answer::Acquired { .. }), "somebody owns the partition: {answer:?}");
        self.write_records(&term, count, place)?;
        self.call(&Call::Release { term })?;
        Ok(())
    }

    /// The same within the present owner's term: more work appears, and the owner finds it by the due times.
    pub fn write_records_owned(&mut self, count: u64, place: Place) -> Result<()> {
        let lease = self.lease()?;
        let (random, owner) = lease.split_once(' ').context("nobody owns the partition")?;
        self.write_records(&Term::new(u128::from_str_radix(random, 16)?, owner), count, place)
    }

    fn write_records(&mut self, term: &Term, count: u64, place: Place) -> Result<()> {
        let end = self.written + count;
        while self.written < end {
            let batch = self.written..end.min(self.written + MAX_BATCH as u64);
            self.written = batch.end;
            let items = batch.map(|n| keep(n, place)).collect::<Result<_>>()?;
            let settlement = Settlement { items, last_read: EntryId::ZERO, ..Settlement::default() };
            let answer = self.call(&Call::Settle { term: term.clone(), settlement })?;
            ensure!(matches!(answer, Answer::Settled { .. }), "the records were refused: {answer:?}");
        }
        Ok(())
    }

    /// So many dead letters of so many endpoints behind the busy ones, within the present owner's term.
    pub fn bury_owned(&mut self, count: u64, endpoints: u64) -> Result<()> {
        let lease = self.lease()?;
        let (random, owner) = lease.split_once(' ').context("nobody owns the partition")?;
        let term = Term::new(u128::from_str_radix(random, 16)?, owner);
        let all: Vec<u64> = (0..count).collect();
        for part in all.chunks(MAX_BATCH) {
            let items = part.iter().map(|n| bury(*n, BUSY + n % endpoints)).collect::<Result<_>>()?;
            let settlement = Settlement { items, last_read: EntryId::ZERO, ..Settlement::default() };
            let answer = self.call(&Call::Settle { term: term.clone(), settlement })?;
            ensure!(matches!(answer, Answer::Settled { .. }), "the letters were refused: {answer:?}");
        }
        Ok(())
    }

    fn call(&self, call: &Call) -> Result<Answer> {
        match self.runtime.block_on(self.store.call(call)) {
            Ok(answer) => Ok(answer),
            Err(failure) => bail!("a call failed: {failure:?}"),
        }
    }

    /// Lets time pass until everything that is due some day is due now. Returns how much that is.
    pub fn let_time_pass(&mut self) -> Result<u64> {
        const SCRIPT: &str = "local time = redis.call('TIME') local now = time[1] * 1000 \
            local late = redis.call('ZRANGE', KEYS[1], '+inf', string.format('(%.0f', now), 'BYSCORE', 'REV', \
            'LIMIT', 0, ARGV[1]) local scored = {} \
            for i, id in ipairs(late) do scored[2 * i - 1], scored[2 * i] = now - 1, id end \
            for i = 1, #scored, 1000 do \
            redis.call('ZADD', KEYS[1], unpack(scored, i, math.min(i + 999, #scored))) end return #late";
        self.repeat(SCRIPT, &self.keys.due(), &[&CHUNK.to_string()])
    }

    /// Has everything in the stream read under Herald's own name but acknowledged by nobody, as a killed owner leaves
    /// it behind. Returns how much that is.
    pub fn leave_pending(&mut self) -> Result<u64> {
        const SCRIPT: &str = "local read = redis.call('XREADGROUP', 'GROUP', ARGV[2], ARGV[3], 'COUNT', ARGV[1], \
            'STREAMS', KEYS[1], '>') return read and #read[1][2] or 0";
        self.repeat(SCRIPT, STREAM, &[&CHUNK.to_string(), GROUP, CONSUMER])
    }

    /// Runs a script until it finds nothing more to do.
    fn repeat(&mut self, script: &str, key: &str, args: &[&str]) -> Result<u64> {
        let words: Vec<&str> = ["EVAL", script, "1", key].into_iter().chain(args.iter().copied()).collect();
        let mut all = 0;
        loop {
            let count: u64 = self.raw.ask(&words)?.parse()?;
            if count == 0 {
                return Ok(all);
            }
            all += count;
        }
    }
}

fn mark() -> Mark {
    Mark { by: "bench".to_owned(), why: "measured".to_owned(), at_ms: clock::wall_ms() }
}

pub fn endpoint(at: u64, account: u64, url: String) -> Result<Endpoint> {
    let (id, account) = (EndpointId::new(&format!("ep_{at}"))?, AccountId::new(&format!("acc_{account}"))?);
    Ok(Endpoint::new(id, account, url, SecretText::from_random([at as u8; 32]), clock::wall_ms()))
}

/// The record of a delivery that was answered 500 once.
fn keep(n: u64, place: Place) -> Result<Item> {
    let (now_ms, at) = (clock::wall_ms(), n % BUSY);
    let event = Event::parse(body(n, at))?;
    // Entries from a time before everything else in the stream.
    let entry = EntryId { ms: 1_700_000_000_000, seq: n };
    let mut delivery = Delivery::new(entry, EndpointId::new(&format!("ep_{at}"))?, &event, true, now_ms);
    delivery.remember(AttemptReport {
        number: 1,
        at_ms: now_ms,
        outcome: Outcome::ServerFailed { status: 500 },
        timing: Timing { head_us: Some(900), total_us: 1_000, ..Timing::default() },
        body_end: BodyEnd::default(),
        snippet: String::new(),
        detail: String::new(),
    });
    let record = delivery.to_record();
    Ok(Item::Keep { id: delivery.id.clone(), chain: delivery.chain(), place, record })
}

/// The letter of a delivery that was answered 500 once.
fn bury(n: u64, at: u64) -> Result<Item> {
    let event = Event::parse(body(n, at))?;
    // Entries from a time before everything else in the stream, records included.
    let entry = EntryId { ms: 1_600_000_000_000, seq: n };
    let delivery = Delivery::new(entry, EndpointId::new(&format!("ep_{at}"))?, &event, true, clock::wall_ms());
    let letter = DeadLetter {
        schema: RECORD_SCHEMA,
        reason: DeadReason::Exhausted,
        died_at_ms: clock::wall_ms(),
        detail: String::new(),
        waited_for: None,
        url: String::new(),
        headers: Vec::new(),
        delivery: delivery.clone(),
    };
    let facts = Box::new(LetterFacts::of(&letter));
    Ok(Item::Bury { id: delivery.id.clone(), chain: delivery.chain(), facts, letter: letter.to_record() })
}

/// 600 bytes, like those of `events`, but each with an intent of its own: so each is the head of its chain.
fn body(n: u64, account: u64) -> Bytes {
    let text = "Two coffees and a slice of lemon cake. ".repeat(7);
    let body = format!(
        r#"{{"id":"evt_{n:022}","event":"payment_intent.created","accountId":"acc_{account}","createdAt":"2026-02-01T13:07:41.8667859Z","data":{{"paymentIntentId":"pi_{n:022}","paymentStatus":"Created","captureMode":"Auto","amount":{{"value":1250,"currencyCode":"GBP"}},"reference":"Order 4711","description":"{text}"}}}}"#
    );
    body.into()
}

/// Single commands to Redis that are answered with one number or one text.
struct Raw {
    stream: TcpStream,
    answers: BufReader<TcpStream>,
}

impl Raw {
    fn connect(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        Ok(Self { answers: BufReader::new(stream.try_clone()?), stream })
    }

    /// If nothing is there, an empty text.
    fn ask(&mut self, words: &[&str]) -> Result<String> {
        let mut command = format!("*{}\r\n", words.len());
        for word in words {
            command.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        self.stream.write_all(command.as_bytes())?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let line = line.trim_end();
        match line.split_at_checked(1) {
            Some((":" | "+", text)) => Ok(text.to_owned()),
            Some(("$", "-1")) => Ok(String::new()),
            Some(("$", length)) => {
                let mut text = vec![0; length.parse::<usize>()? + 2];
                self.answers.read_exact(&mut text)?;
                text.truncate(text.len() - 2);
                Ok(String::from_utf8(text)?)
            }
            _ => bail!("{}: Redis answered {line:?}", words[0]),
        }
    }
}
