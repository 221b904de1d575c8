//! What dead letters cost where a million lie: a page and a count by one, two and three conditions, the groups, and a
//! death. Measured as Redis' own time of each command, from its slow log: what others wait for while it runs.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use herald::{
    facts::{
        delivery::Chain,
        id::{AccountId, DeliveryId, EndpointId, EntryId, EventId, IntentId},
        letter::LetterFacts,
        retry::DeadReason,
    },
    store::{
        connection::{Purpose, Redis as Client},
        keys::PartitionKeys,
        partition::PartitionStore,
        protocol::{Answer, Call, Item, MAX_BATCH, Settlement, Start, Term},
        queries::{DeadFilter, DeadKey, DeadOrder, Queries},
    },
};
use redis::aio::MultiplexedConnection;
use tokio::runtime::Runtime;

use crate::{processes::Redis, state::STREAM};

/// Longer than it takes to write everything.
const TTL_MS: u64 = 3_600_000;

const ENDPOINTS: u64 = 1_000;
const ACCOUNTS: u64 = 400;
const CAUSES: [&str; 6] = [
    "never_tried:breaker_open",
    "never_tried:held",
    "server_failed:500",
    "rejected:404",
    "dns_failed",
    "throttled:503",
];

/// Redis' time of something, in microseconds: of all its commands together, and of the longest.
#[derive(Debug, Clone, Copy, Default)]
pub struct Spent {
    pub all_us: u64,
    pub longest_us: u64,
    pub commands: u64,
}

pub struct Letters {
    runtime: Runtime,
    store: PartitionStore,
    queries: Queries,
    raw: MultiplexedConnection,
    term: Term,
    written: u64,
    _redis: Redis,
}

impl Letters {
    /// A partition with this many dead letters, written by settles.
    pub fn write(count: u64) -> Result<Self> {
        let redis = Redis::start()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let keys = PartitionKeys::new(STREAM)?;
        let url = redis.url();
        let (store, queries, raw) = runtime.block_on(async {
            let client = Client::new(&url)?;
            let (work, lease) = (client.connect(Purpose::Work).await?, client.connect(Purpose::Other).await?);
            let queries = Queries::new(client.connect(Purpose::Other).await?, keys.clone());
            let raw = slow_log(&url).await?;
            anyhow::Ok((PartitionStore::new(work, lease, keys.clone(), 1_000), queries, raw))
        })?;
        let term = Term::new(1, "bench");
        let mut letters = Self { runtime, store, queries, raw, term: term.clone(), written: 0, _redis: redis };
        // What is measured are looks: a million letters need not go through the disk.
        letters.ask::<()>(&["CONFIG", "SET", "appendonly", "no"])?;
        letters.call(Call::Acquire { term: term.clone(), previous: Vec::new(), ttl_ms: TTL_MS })?;
        letters.call(Call::Open { term, start: Start::Oldest, registry: "reg_bench".to_owned() })?;
        while letters.written < count {
            letters.die((count - letters.written).min(MAX_BATCH as u64))?;
        }
        Ok(letters)
    }

    fn call(&self, call: Call) -> Result<Answer> {
        let answer = self.runtime.block_on(self.store.call(&call));
        answer.map_err(|failure| anyhow::anyhow!("a call failed: {failure:?}"))
    }

    /// So many more deaths in one settle.
    pub fn die(&mut self, count: u64) -> Result<()> {
        let items = (self.written..self.written + count).map(bury).collect::<Result<_>>()?;
        self.written += count;
        let settlement = Settlement { items, last_read: EntryId::ZERO, ..Settlement::default() };
        let answer = self.call(Call::Settle { term: self.term.clone(), settlement })?;
        ensure!(matches!(answer, Answer::Settled { .. }), "the letters were refused: {answer:?}");
        Ok(())
    }

    pub fn page(&mut self, filter: &DeadFilter) -> Result<Spent> {
        self.spent(|runtime, queries| {
            let page = runtime.block_on(queries.find_dead(filter, DeadOrder::NewestFirst, None, 50))?;
            ensure!(!page.letters.is_empty(), "nothing fits {filter:?}");
            Ok(())
        })
    }

    pub fn count(&mut self, filter: &DeadFilter) -> Result<Spent> {
        self.spent(|runtime, queries| {
            let count = runtime.block_on(queries.count_dead_where(filter))?;
            ensure!(count > 0, "nothing fits {filter:?}");
            Ok(())
        })
    }

    pub fn groups(&mut self, by: &[DeadKey]) -> Result<Spent> {
        let filter = DeadFilter::everything();
        self.spent(|runtime, queries| {
            runtime.block_on(queries.group_dead(&filter, by))?;
            Ok(())
        })
    }

    /// Redis' memory for one letter more, with all its indexes.
    pub fn memory_bytes(&mut self) -> Result<u64> {
        let info: String = self.runtime.block_on(redis::cmd("INFO").arg("memory").query_async(&mut self.raw))?;
        let used = info.lines().find_map(|line| line.strip_prefix("used_memory:")).context("no used_memory")?;
        Ok(used.trim().parse()?)
    }

    fn spent(&mut self, what: impl FnOnce(&Runtime, &mut Queries) -> Result<()>) -> Result<Spent> {
        for words in
            [&["CONFIG", "SET", "slowlog-log-slower-than", "0"][..], &["CONFIG", "SET", "slowlog-max-len", "1000000"]]
        {
            self.ask::<()>(words)?;
        }
        self.ask::<()>(&["SLOWLOG", "RESET"])?;
        what(&self.runtime, &mut self.queries)?;
        let log: Vec<Vec<redis::Value>> = self.ask(&["SLOWLOG", "GET", "-1"])?;
        self.ask::<()>(&["CONFIG", "SET", "slowlog-log-slower-than", "-1"])?;
        let mut spent = Spent::default();
        for entry in log {
            let words: Vec<String> = redis::from_redis_value(entry.get(3).context("no command")?.clone())?;
            if words.first().is_some_and(|word| word.eq_ignore_ascii_case("slowlog")) {
                continue;
            }
            let took: u64 = redis::from_redis_value(entry.get(2).context("no time")?.clone())?;
            spent.all_us += took;
            spent.longest_us = spent.longest_us.max(took);
            spent.commands += 1;
        }
        Ok(spent)
    }

    fn ask<T: redis::FromRedisValue>(&mut self, words: &[&str]) -> Result<T> {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        Ok(self.runtime.block_on(command.query_async(&mut self.raw))?)
    }
}

/// A connection that waits for a long answer: a slow log has tens of thousands of lines.
async fn slow_log(url: &str) -> Result<MultiplexedConnection> {
    let patient = redis::AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(60)));
    Ok(redis::Client::open(url)?.get_multiplexed_async_connection_with_config(&patient).await?)
}

/// What is measured: of one, two and three conditions, the ones that find much among much, and little among much.
pub fn filters() -> Result<Vec<(&'static str, DeadFilter)>> {
    let all = DeadFilter::everything;
    let (endpoint, account) = (EndpointId::new("ep_7").ok(), AccountId::new("acc_0").ok());
    let (often, seldom) = (Some("never_tried".parse()?), Some("throttled:503".parse()?));
    Ok(vec![
        ("all", all()),
        ("endpoint", DeadFilter { endpoint: endpoint.clone(), ..all() }),
        ("account", DeadFilter { account: account.clone(), ..all() }),
        ("reason, 4 of all", DeadFilter { reason: Some(DeadReason::Gone), ..all() }),
        ("cause, most", DeadFilter { cause: often.clone(), ..all() }),
        ("intent", DeadFilter { intent: IntentId::new(&format!("pi_{:022}", 7)).ok(), ..all() }),
        ("event", DeadFilter { event: EventId::new(&format!("evt_{:022}", 7)).ok(), ..all() }),
        ("account, reason", DeadFilter { account: account.clone(), reason: Some(DeadReason::Expired), ..all() }),
        ("reason, cause", DeadFilter { reason: Some(DeadReason::Expired), cause: often.clone(), ..all() }),
        ("account, reason, cause", DeadFilter { account, reason: Some(DeadReason::Expired), cause: often, ..all() }),
        (
            "endpoint, reason, cause",
            DeadFilter { endpoint, reason: Some(DeadReason::Exhausted), cause: seldom, ..all() },
        ),
    ])
}

/// Of a thousand endpoints; two fifths of all are one account's, and four letters have a reason of their own.
fn bury(n: u64) -> Result<Item> {
    let at = n.wrapping_mul(7_919) % ENDPOINTS;
    let account = if at < 2 * ENDPOINTS / 5 { 0 } else { 1 + at % ACCOUNTS };
    let id = DeliveryId {
        entry: EntryId { ms: 1_700_000_000_000 + n, seq: 0 },
        endpoint: EndpointId::new(&format!("ep_{at}"))?,
    };
    let cause = CAUSES[(n.wrapping_mul(2_654_435_761) >> 7) as usize % 6];
    let reason = match n {
        0..4 => DeadReason::Gone,
        _ if cause.starts_with("never") => DeadReason::Expired,
        _ => DeadReason::Exhausted,
    };
    let (event, intent) = (EventId::new(&format!("evt_{n:022}"))?, IntentId::new(&format!("pi_{:022}", n / 3))?);
    let facts = LetterFacts {
        account: AccountId::new(&format!("acc_{account}")).ok(),
        reason: Some(reason),
        cause: cause.parse()?,
        attempts: 3,
        event: Some(event),
        intent: Some(intent.clone()),
        waited_for: None,
    };
    let letter = Bytes::from_static(&[b'x'; 300]);
    Ok(Item::Bury { id, chain: Chain::Intent(intent), facts: Box::new(facts), letter })
}
