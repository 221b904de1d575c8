//! What a change costs Redis, beside the same writes as plain commands in a transaction; and what an intent takes of its
//! memory.

use std::{future::Future, time::Instant};

use anyhow::{Context, Result};
use futures_util::{StreamExt, TryStreamExt, stream};
use herald::{
    clock,
    intents::{
        decide::{Approval, Command, IssuerAnswer},
        details::Details,
        intent::IdempotencyKey,
        issuer,
        service::Service,
    },
    surface::words::{bytes, rate, time},
};
use redis::aio::MultiplexedConnection;

use crate::{
    Args, account, keys, plain,
    processes::Redis,
    rows::{Reach, Rows},
    runtime, service,
    table::median,
};

/// Requests under way at once: enough that Redis never waits.
pub const AT_ONCE: usize = 64;

/// Created, authorized, captured, refunded.
const CHANGES_OF_A_LIFE: u64 = 4;

const ACCOUNTS: u64 = 100;

const LEAST_PER_SECOND: f64 = 15_000.0;
const MOST_REDIS_US: f64 = 50.0;
const MOST_BYTES: f64 = 800.0;

/// Intents whose memory is measured.
const WEIGHED: u64 = 50_000;

#[derive(Debug, Clone, Copy)]
struct Cost {
    per_second: f64,
    redis_us: f64,
}

pub fn rates(args: &Args, rows: &mut Rows) -> Result<()> {
    let mut costs: [Vec<Cost>; 3] = Default::default();
    for round in 1..=args.rounds {
        for (at, cost) in costs.iter_mut().enumerate() {
            let (redis, runtime) = (Redis::start()?, runtime()?);
            let lives = args.changes / CHANGES_OF_A_LIFE;
            let found = match at {
                0 => {
                    let service = service(&redis)?;
                    let live = |n| life(service.clone(), n);
                    runtime.block_on(spent(&redis, lives, CHANGES_OF_A_LIFE, live))?
                }
                1 => {
                    let service = service(&redis)?;
                    let create = async |service: Service, n| -> Result<()> {
                        service.create(&account(n % ACCOUNTS)?, plain("Auto")?, None).await.map(drop).context("create")
                    };
                    runtime.block_on(spent(&redis, args.changes, 1, |n| create(service.clone(), n)))?
                }
                _ => runtime.block_on(async {
                    let client = redis::Client::open(redis.url())?;
                    let connection = client.get_multiplexed_async_connection().await?;
                    spent(&redis, args.changes, 1, |n| bare(connection.clone(), n)).await
                })?,
            };
            eprintln!("round {round}, {}: {}, Redis {}", SIDES[at], rate(found.per_second), time(found.redis_us));
            cost.push(found);
        }
    }
    let of = |at: usize, value: fn(&Cost) -> f64| median(costs[at].iter().map(value).collect());
    for (at, what) in SIDES.into_iter().enumerate().take(2) {
        let [(here, us), (there, bare_us)] = [at, 2].map(|at| (of(at, |c| c.per_second), of(at, |c| c.redis_us)));
        rows.add(&format!("{what}, a second"), here, Some(there), Reach::AtLeast(LEAST_PER_SECOND), rate);
        rows.add(&format!("CPU of Redis, {what}"), us, Some(bare_us), Reach::AtMost(MOST_REDIS_US), time);
    }
    Ok(())
}

const SIDES: [&str; 3] = [
    "changes of lives (created, authorized, captured, refunded), each looked up and committed",
    "creations",
    "the same writes as plain commands",
];

/// Does it so many times, and says what each change took.
async fn spent<F: Future<Output = Result<()>>>(
    redis: &Redis,
    times: u64,
    changes: u64,
    mut what: impl FnMut(u64) -> F,
) -> Result<Cost> {
    // Connections and scripts are there before it counts.
    what(0).await?;
    let (begun, cpu_s): (Instant, f64) = (clock::now(), redis.cpu_s());
    stream::iter(1..=times).map(&mut what).buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await?;
    let changes = (times * changes) as f64;
    let took_s = (clock::now() - begun).as_secs_f64();
    Ok(Cost { per_second: changes / took_s, redis_us: (redis.cpu_s() - cpu_s) * 1e6 / changes })
}

async fn life(service: Service, n: u64) -> Result<()> {
    let account = account(n % ACCOUNTS)?;
    let intent = service.create(&account, plain("Manual")?, None).await?;
    let paid = service.change(&account, &intent.id, &pay()?, None).await?;
    let capture = Command::Capture { id: "capture".to_owned(), amount: 1_250, tips: None, key: None };
    service.change(&account, &paid.id, &capture, None).await?;
    let key = IdempotencyKey { key: "key".to_owned(), body: "body".to_owned() };
    let refund = Command::Refund { amount: 1_250, reason: None, notes: None, key };
    service.change(&account, &paid.id, &refund, None).await?;
    Ok(())
}

pub fn pay() -> Result<Command> {
    let (_, card) = issuer::mask(issuer::APPROVED).context("it is the number of a card")?;
    let approval = Approval { transaction: "transaction".to_owned(), auth_code: "123456".to_owned() };
    Ok(Command::pay(card, IssuerAnswer::Approved(approval)))
}

/// What a creation writes, with everything known beforehand: no look, no comparison, no clock.
async fn bare(mut connection: MultiplexedConnection, n: u64) -> Result<()> {
    let (account, record, event) = (format!("acc_{}", n % ACCOUNTS), "r".repeat(330), "e".repeat(330));
    let keys = keys()?;
    let (id, feed) = (format!("pi_sandbox_{n:022}"), format!("{}feed:{account}", keys.intent_prefix()));
    let mut writes = redis::pipe();
    writes.atomic();
    writes.cmd("SET").arg(format!("{}{id}", keys.intent_prefix())).arg(record).ignore();
    writes.cmd("ZADD").arg(keys.intent_due()).arg(n).arg(&id).ignore();
    writes.cmd("ZADD").arg(format!("{}of:{account}", keys.intent_prefix())).arg(n).arg(&id).ignore();
    writes.cmd("XADD").arg(keys.stream()).arg("*").arg("event").arg(event).arg("account-sequence").arg(n).ignore();
    writes.cmd("XADD").arg(feed).arg(format!("{}-0", n + 1)).arg("intent").arg(&id).ignore();
    writes.cmd("HSET").arg(keys.intent_counts()).arg(&account).arg(n).ignore();
    writes.cmd("HSET").arg(keys.intent_clock()).arg("last").arg(n).ignore();
    writes.cmd("HINCRBY").arg(keys.intent_counts()).arg("changes").arg(1).ignore();
    writes.exec_async(&mut connection).await.context("write")
}

pub fn memory(rows: &mut Rows) -> Result<()> {
    let (address, line) = (
        serde_json::json!({ "address1": "1 High Street", "city": "Brighton", "postcode": "BN1 1AA", "countryCode": "GB" }),
        |n: u32| {
            let total = serde_json::json!({ "value": 250, "currencyCode": "GBP" });
            serde_json::json!({ "id": format!("line-{n}"), "quantity": 1, "name": "A coffee", "amountTotal": total })
        },
    );
    let mut full = serde_json::to_value(plain("Auto")?)?;
    full["itemLines"] = (0..5).map(line).collect();
    full["billingAddress"] = address.clone();
    full["shippingDetails"] = serde_json::json!({ "name": "A Customer", "address": address });
    for (what, details, reach) in [
        ("memory of a plain intent", plain("Auto")?, Reach::AtMost(MOST_BYTES)),
        ("memory of an intent with five lines and two addresses", serde_json::from_value(full)?, Reach::None),
    ] {
        let (redis, runtime) = (Redis::start()?, runtime()?);
        let (with, without) = runtime.block_on(weigh(&redis, &details))?;
        rows.add(&format!("{what}, beside it while its event is in the stream"), without, Some(with), reach, |value| {
            bytes(value as u64)
        });
    }
    Ok(())
}

/// Bytes of each: with its event in the stream, and after Herald has trimmed it.
async fn weigh(redis: &Redis, details: &Details) -> Result<(f64, f64)> {
    let service = service(redis)?;
    let mut connection = redis::Client::open(redis.url())?.get_multiplexed_async_connection().await?;
    let create = async |service: Service, details: Details, n: u64| -> Result<()> {
        service.create(&account(n % ACCOUNTS)?, details, None).await.map(drop).context("create")
    };
    for n in 0..ACCOUNTS {
        create(service.clone(), details.clone(), n).await?;
    }
    let before = used(&mut connection).await?;
    let all = stream::iter(0..WEIGHED).map(|n| create(service.clone(), details.clone(), n));
    all.buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await?;
    let with = used(&mut connection).await?;
    redis::cmd("XTRIM").arg(crate::STREAM).arg("MAXLEN").arg(0).exec_async(&mut connection).await?;
    let without = used(&mut connection).await?;
    let each = |now: u64| now.saturating_sub(before) as f64 / WEIGHED as f64;
    Ok((each(with), each(without)))
}

async fn used(connection: &mut MultiplexedConnection) -> Result<u64> {
    let info: String = redis::cmd("INFO").arg("memory").query_async(connection).await?;
    let used = info.lines().find_map(|line| line.strip_prefix("used_memory_dataset:"));
    used.context("Redis does not say what it uses")?.trim().parse().context("Redis says it otherwise")
}
