//! `make bench-scale`: whether a delivery costs the same when there is a lot behind it, and who notices when others
//! hang or die.
//!
//! Each row compares two stacks, one with few of something and one with many, and measures them in turns. A stack has a
//! Redis (append-only file, fsynced every second), a receiver and `herald serve` as built, all processes of their own;
//! while one is measured the other is paused. Read `stack` for a round, `state` for what is in Redis beforehand,
//! `takeover`, `neighbours`, `crowds`, `split`, `routing` and `planned` for the rows that do not compare cost, `table` for what is shown.

mod crowds;
#[allow(dead_code, reason = "the other bench uses the rest")]
#[path = "../performance/events.rs"]
mod events;
mod letters;
#[path = "../performance/marks.rs"]
mod marks;
mod neighbours;
mod planned;
#[allow(dead_code, reason = "the other bench uses the rest")]
#[path = "../performance/processes.rs"]
mod processes;
#[path = "../performance/receiver.rs"]
mod receiver;
mod redelivery;
mod routing;
mod split;
mod stack;
mod state;
mod table;
mod takeover;

use std::{path::PathBuf, time::Duration};

use anyhow::{Result, ensure};
use clap::Parser;
use herald::{
    store::queries::DeadKey,
    surface::words::{bytes, number, rate, time, time_us},
};

use self::{
    crowds::{Crowd, Felt, HEALTHY, Manner, Part, Server, felt},
    letters::Letters,
    neighbours::{Hanging, More, hangs, latency},
    stack::{Cost, Setup, Stack, WARM_UP, taking_in_us},
    state::BUSY,
    table::{Table, Unit, machine, median},
    takeover::take_over,
};

/// What "few" means: of entries, of endpoints, of due deliveries.
const FEW: u64 = 1_000;

/// Where the target is about 1 000 000, there are about a tenth as many endpoints.
const ENDPOINTS_PER_SCALE: u64 = 10;

/// From here on the rounds are long enough for figures to publish; below this it is a quick look.
const FULL: u64 = 500_000;

const MOST_MEMORY_BYTES: f64 = 140.0 * 1024.0 * 1024.0;
/// What an endpoint may take besides: its facts, its address and its place in the registry.
const ENDPOINT_BYTES: f64 = 1_500.0;
const MOST_DUE_US: f64 = 40.0;
const MOST_PARKED_US: f64 = 25.0;
const MOST_COST: f64 = 1.15;
const MOST_P99: f64 = 1.2;
/// A share of a millisecond is less than two cores can promise anybody.
const P99_SLACK_US: f64 = 1_000.0;
/// While one account gets half a million deliveries at once.
const MOST_P99_FAN_OUT: f64 = 2.0;
/// Redis' time of one command about dead letters, and of all that a page or a count needs.
const MOST_PIECE_US: f64 = 5_000.0;
const MOST_LOOK_US: f64 = 50_000.0;
/// For 100 000 records, and for none.
const MOST_SPLIT_US: f64 = 12e6;
const MOST_EMPTY_SPLIT_US: f64 = 1e6;
/// Into so many parts an entry is passed on, and what that may take of Herald, of Redis, and of the time where both share two
/// cores: 50 000 a second.
const PARTS: [u32; 2] = [16, 256];
const MOST_ROUTED_US: [f64; 3] = [6.0, 10.0, 20.0];
/// At so many events a second, in as many partitions as it says, a plan may be off by this part of it.
const PLANNED_PER_S: [u64; 3] = [2_000, 8_000, 16_000];
const MOST_OFF: f64 = 0.25;
/// The default lease and a second.
const MOST_TAKE_OVER_US: f64 = 6e6;

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    role: Option<Role>,
    /// What "many" means: entries behind, deliveries due; a tenth of it endpoints
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(50_000..=10_000_000))]
    scale: u64,
    /// Rounds of each row; the medians count [default: 5, or 3 for a small scale]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: Option<u32>,
    /// Only these rows
    #[arg(long, value_enum)]
    only: Vec<Rows>,
    /// Only crowds whose name contains this
    #[arg(long, default_value = "")]
    crowd: String,
    /// Measure another build of Herald
    #[arg(long, default_value = env!("CARGO_BIN_EXE_herald"))]
    herald: PathBuf,
    /// Write the table into this file, between its two lines `<!-- scale -->`
    #[arg(long)]
    write: Option<PathBuf>,
    /// What `cargo bench` hands to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(clap::Subcommand)]
enum Role {
    /// The receiver, as a process of its own
    Receiver,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Rows {
    /// Endpoints that hang beside healthy ones
    Hanging,
    /// Crowds of receivers that hang, answer late, flood or never end their head, beside healthy ones
    Crowds,
    /// Entries behind, then the same ones pending when the owner is killed
    Behind,
    /// Endpoints registered
    Endpoints,
    /// Deliveries due later, due now, and due when the owner is killed
    Due,
    /// What Redis does for a delivery that is due, or parked, while nothing is added
    Drain,
    /// How long a stream stands still that is split, with a tenth of the scale unfinished, and with nothing
    Split,
    /// What passing entries on into the parts of a stream costs
    Routing,
    /// What `herald plan` says beside what is used, at three rates
    Plan,
    /// Dead letters: a page, a count, the groups and a death among many; what others notice while all are redelivered
    Letters,
}

impl Args {
    fn is_full(&self) -> bool {
        self.scale >= FULL
    }

    fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(if self.is_full() { 5 } else { 3 })
    }

    /// Deliveries of each side in a round.
    fn deliveries(&self) -> u64 {
        (self.scale / 25).clamp(2_000, 40_000)
    }

    fn take_overs(&self) -> u32 {
        if self.is_full() { 3 } else { 1 }
    }

    fn has(&self, rows: Rows) -> bool {
        self.only.is_empty() || self.only.contains(&rows)
    }

    fn stack(&self, endpoints: u64, due_later: u64, depth: u64) -> Result<Stack> {
        Stack::start(&Setup {
            program: &self.herald,
            endpoints,
            busy: BUSY,
            elsewhere: &|_| None,
            others: Vec::new(),
            due_later,
            parked: 0,
            depth,
        })
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    match args.role {
        Some(Role::Receiver) => receiver::run(false),
        None => measure(&args),
    }
}

fn measure(args: &Args) -> Result<()> {
    let mut table = Table::default();
    if args.has(Rows::Hanging) {
        hanging(args, &mut table)?;
    }
    if args.has(Rows::Crowds) {
        all_crowds(args, &mut table)?;
    }
    if args.has(Rows::Behind) {
        behind(args, &mut table)?;
    }
    if args.has(Rows::Endpoints) {
        endpoints(args, &mut table)?;
    }
    if args.has(Rows::Due) {
        due(args, &mut table)?;
    }
    if args.has(Rows::Drain) {
        drain(args, &mut table)?;
    }
    if args.has(Rows::Split) {
        splits(args, &mut table)?;
    }
    if args.has(Rows::Routing) {
        routing(args, &mut table)?;
    }
    if args.has(Rows::Plan) {
        plans(args, &mut table)?;
    }
    if args.has(Rows::Letters) {
        dead_letters(args, &mut table)?;
    }
    let origin = format!(
        "Medians of {} rounds in turns, {} deliveries of 600 bytes to {BUSY} endpoints in each, attempt log on, Redis \
         with AOF everysec; as much is added as is delivered, and the receiver takes the processor from nobody \
         (SCHED_BATCH). Taking over: the slowest of {}. Bench, receivers, Redis and Herald {}",
        args.rounds(),
        number(args.deliveries()),
        args.take_overs(),
        machine()?
    );
    let text = table.text("few", "many", &origin);
    println!("{text}");
    args.write.as_ref().map_or(Ok(()), |path| marks::write_between(path, "<!-- scale -->", &text))
}

/// Measures both in turns; a row each for Herald and for Redis. Returns the medians of Herald's cost.
fn compare(args: &Args, table: &mut Table, what: &str, few: &mut Stack, many: &mut Stack) -> Result<()> {
    few.receiver.stand_back()?;
    many.receiver.stand_back()?;
    let mut costs: [Vec<Cost>; 2] = [Vec::new(), Vec::new()];
    for round in 1..=args.rounds() {
        // The order alternates, so that neither always has the warmer machine.
        let first = (round % 2) as usize;
        for side in [first, 1 - first] {
            let stack = if side == 0 { &mut *few } else { &mut *many };
            costs[side].push(stack.round(args.deliveries())?);
        }
        let [few, many] = [&costs[0], &costs[1]].map(|costs| costs[costs.len() - 1]);
        eprintln!(
            "{what}, round {round}: Herald {} and {}, Redis {} and {}, {} and {}",
            time(few.herald_us),
            time(many.herald_us),
            time(few.redis_us),
            time(many.redis_us),
            rate(few.rate),
            rate(many.rate)
        );
    }
    let taking_in_us = taking_in_us(many.work)?;
    let [few, many] = costs.map(|costs| {
        let of = |value: fn(&Cost) -> f64| median(costs.iter().map(value).collect());
        (of(|cost| cost.herald_us), of(|cost| cost.redis_us))
    });
    table.compare(&format!("CPU of Herald per delivery, {what}"), Unit::Micros, few.0, many.0, Some(MOST_COST));
    let redis = format!("CPU of Redis per delivery, without {} for taking in another, {what}", time(taking_in_us));
    table.compare(&redis, Unit::Micros, few.1 - taking_in_us, many.1 - taking_in_us, Some(MOST_COST));
    Ok(())
}

fn memory(table: &mut Table, what: &str, few: &mut Stack, many: &mut Stack) {
    let [few, many] = [few, many].map(|stack| stack.peak_bytes() as f64);
    table.limit(&format!("peak memory of Herald, {what}"), Unit::Bytes, Some(few), many, MOST_MEMORY_BYTES);
}

fn hanging(args: &Args, table: &mut Table) -> Result<()> {
    let server = Hanging::start()?;
    let elsewhere = |at| hangs(at).then(|| format!("{}/{at}", server.url));
    let setup = |elsewhere| Setup {
        program: &args.herald,
        endpoints: BUSY,
        busy: BUSY,
        elsewhere,
        others: Vec::new(),
        due_later: 0,
        parked: 0,
        depth: 0,
    };
    let mut stacks = [Stack::start(&setup(&|_| None))?, Stack::start(&setup(&elsewhere))?];
    for stack in &mut stacks {
        stack.state.resume()?;
    }
    let (rounds, seconds) = if args.is_full() { (2 * args.rounds(), 4) } else { (args.rounds(), 2) };
    let mut seen = [Vec::new(), Vec::new()];
    // Before the first round that counts, connections are made and the hanging ones begin to hang.
    for round in 0..=rounds {
        let first = (round % 2) as usize;
        for side in [first, 1 - first] {
            let taken = latency(&mut stacks[side], seconds, |at| side == 0 || !hangs(at))?;
            if round > 0 {
                let [p50, p99] = [taken.p50_us, taken.p99_us].map(time_us);
                eprintln!("hanging {side}, round {round}: p50 {p50}, p99 {p99}");
                seen[side].push(taken);
            }
        }
    }
    ensure!(server.accepted() > 0, "nothing was sent to the endpoints that hang");
    let at = |value: fn(&neighbours::Latency) -> u64| {
        [0, 1].map(|side| median(seen[side].iter().map(|latency| value(latency) as f64).collect()))
    };
    let ([few_p50, many_p50], [few_p99, many_p99]) = (at(|l| l.p50_us), at(|l| l.p99_us));
    let what = "of healthy endpoints at 1 000/s: none hangs, 10 % hang";
    table.compare(&format!("p50 {what}"), Unit::Micros, few_p50, many_p50, None);
    table.compare(&format!("p99 {what}"), Unit::Micros, few_p99, many_p99, Some(MOST_P99));
    Ok(())
}

/// What is unfinished is due half a day later, in chains of one, of as many endpoints as get the traffic.
fn splits(args: &Args, table: &mut Table) -> Result<()> {
    let (few, many) = (0, args.scale / 10);
    let [few_took, many_took] = [few, many].map(|count| {
        let mut stack = args.stack(BUSY, count, 0)?;
        split::split(&args.herald, &mut stack, count)
    });
    let (few_us, many_us) = (few_took?.as_secs_f64() * 1e6, many_took?.as_secs_f64() * 1e6);
    table.limit("a split with nothing unfinished stands still for", Unit::Micros, None, few_us, MOST_EMPTY_SPLIT_US);
    let what = format!("a split with {} unfinished stands still for", number(many));
    table.limit(&what, Unit::Micros, None, many_us, MOST_SPLIT_US * many as f64 / 100_000.0);
    Ok(())
}

/// Less than a full scale is over before it has begun.
fn routing(args: &Args, table: &mut Table) -> Result<()> {
    let entries = (args.scale / 2).max(200_000);
    for parts in PARTS {
        let mut costs = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..args.rounds() {
            let cost = routing::routed(&args.herald, entries, parts)?;
            for (costs, us) in costs.iter_mut().zip([cost.herald_us, cost.redis_us, 1e6 / cost.rate]) {
                costs.push(us);
            }
        }
        let what = format!("an entry that is passed on into one of {parts} parts");
        let rows = [format!("CPU of Herald for {what}"), format!("CPU of Redis for {what}"), format!("{what} takes")];
        for ((row, costs), most) in rows.iter().zip(costs).zip(MOST_ROUTED_US) {
            table.limit(row, Unit::Micros, None, median(costs), most);
        }
    }
    Ok(())
}

fn plans(args: &Args, table: &mut Table) -> Result<()> {
    for events_per_s in PLANNED_PER_S {
        let (planned, partitions) = planned::planned(events_per_s)?;
        let mut costs = [Vec::new(), Vec::new()];
        for _ in 0..args.rounds() {
            let cost = planned::used(&args.herald, events_per_s, partitions)?;
            for (costs, us) in costs.iter_mut().zip([cost.herald_us, cost.redis_us]) {
                costs.push(us);
            }
        }
        let [herald, redis] = costs.map(median);
        for (whose, planned_us, used_us) in [("Herald", planned.herald_us, herald), ("Redis", planned.redis_us, redis)]
        {
            let what = format!(
                "CPU of {whose} for a delivery at {} (partitions: {partitions}), as planned and as used",
                rate(events_per_s as f64)
            );
            table.near(&what, Unit::Micros, planned_us, used_us, MOST_OFF);
        }
    }
    Ok(())
}

/// Crowds of a size that fits what "many" is: all of them at the full scale.
fn all_crowds(args: &Args, table: &mut Table) -> Result<()> {
    // Each side of each connection needs a descriptor.
    herald::descriptors::raise_limit();
    let server = Server::start()?;
    let of = |count: u64| if args.is_full() { count } else { (count / 10).max(1) };
    let part = |manner, count| Part::of(manner, of(count));
    let [hang, late, flood] = [(Manner::Hangs, 5_000), (Manner::AnswersLate, 1_000), (Manner::Floods, 100)];
    let everybody = vec![part(hang.0, hang.1), part(late.0, late.1), part(flood.0, flood.1)];
    let [hanging, late_ones, flooding] = [hang.1, late.1, flood.1].map(|count| number(of(count)));
    let what = format!("{hanging} hang, {late_ones} answer after 14s, {flooding} flood");
    crowd(
        args,
        table,
        &server,
        &what,
        &Crowd { parts: everybody, more: More { per_second: 500, at_once: 0 }, before: 1 },
    )?;
    let one = |part: Part, per_second| Crowd { parts: vec![part], more: More { per_second, at_once: 0 }, before: 2 };
    let account = Part { is_one_account: true, ..part(Manner::Hangs, 700) };
    crowd(args, table, &server, &format!("{} endpoints of one account hang", account.endpoints), &one(account, 5))?;
    let host = Part { is_one_host: true, ..part(Manner::Hangs, 600) };
    crowd(args, table, &server, &format!("{} shops on one host hang", host.endpoints), &one(host, 300))?;
    let wide = Part { max_in_flight: Some(1_000), ..Part::of(Manner::AnswersLate, 3) };
    let wide = Crowd { parts: vec![wide], more: More { per_second: 300, at_once: 0 }, before: of(1_000) };
    crowd(args, table, &server, "3 with 1 000 in flight answer after 14s", &wide)?;
    fan_out(args, table, &server, of(2_000))?;
    if !args.crowd.is_empty() {
        return Ok(());
    }
    eprintln!(
        "names that hang in DNS: not measured, as the system's resolver can only be changed with rights that not all have"
    );
    let heads = of(600);
    let peak = crowds::heads(&args.herald, &server, heads)? as f64;
    table.limit(
        &format!("peak memory of Herald, {heads} heads of {} without an end", bytes(crowds::HEAD_BYTES as u64)),
        Unit::Bytes,
        None,
        peak,
        MOST_MEMORY_BYTES,
    );
    let parked = (args.scale * 15 / 100).min(150_000);
    let felt = crowds::deleted(&args.herald, &server, parked, if args.is_full() { 10 } else { 4 })?;
    let what = format!("p50 of the others while an endpoint with {} parked is deleted", number(parked));
    let [before, after] = [felt.alone.p50_us, felt.beside.p50_us].map(|us| us as f64);
    table.compare_from(&what, Unit::Micros, before, after, (MOST_P99, P99_SLACK_US));
    let what = format!("peak memory of Herald, {} parked of an endpoint that is deleted", number(parked));
    table.limit(&what, Unit::Bytes, None, felt.peak_bytes as f64, MOST_MEMORY_BYTES);
    Ok(())
}

/// Redis' own time for looking at dead letters, and for one more of them.
fn dead_letters(args: &Args, table: &mut Table) -> Result<()> {
    eprintln!("letters: writing {}", number(args.scale));
    let before = Letters::write(FEW)?.memory_bytes()?;
    let mut many = Letters::write(args.scale)?;
    let each = (many.memory_bytes()? - before) / (args.scale - FEW);
    eprintln!("letters: {} of Redis' memory each, 300 bytes of them the letter", bytes(each));
    let mut longest = 0;
    let mut worst = [("", 0), ("", 0)];
    for (what, filter) in letters::filters()? {
        for (at, spent) in [many.page(&filter)?, many.count(&filter)?].into_iter().enumerate() {
            let kind = ["page", "count"][at];
            let (all, one) = (time_us(spent.all_us), time_us(spent.longest_us));
            eprintln!("letters, {kind} by {what}: {all} in {} commands, the longest {one}", spent.commands);
            longest = longest.max(spent.longest_us);
            if spent.all_us > worst[at].1 {
                worst[at] = (what, spent.all_us);
            }
        }
    }
    for keys in [&[DeadKey::Reason][..], &[DeadKey::Endpoint, DeadKey::Cause]] {
        let spent = many.groups(keys)?;
        let (all, one) = (time_us(spent.all_us), time_us(spent.longest_us));
        eprintln!("letters, groups by {keys:?}: {all} in {} commands, the longest {one}", spent.commands);
    }
    let of = format!("of {} dead letters", number(args.scale));
    for (kind, (what, us)) in ["page", "count"].iter().zip(worst) {
        let what = format!("Redis' time for a {kind} {of}, the worst: by {what}");
        table.limit(&what, Unit::Micros, None, us as f64, MOST_LOOK_US);
    }
    let what = format!("the longest command for a page or a count {of}");
    table.limit(&what, Unit::Micros, None, longest as f64, MOST_PIECE_US);
    drop(many);
    redelivered(args, table)
}

/// What live traffic notices while all of them are sent again.
fn redelivered(args: &Args, table: &mut Table) -> Result<()> {
    let (rounds, seconds) = if args.is_full() { (2 * args.rounds(), 4) } else { (args.rounds(), 2) };
    let seen = redelivery::seen(&args.herald, args.scale, rounds, seconds)?;
    eprintln!("redelivery: {} of {} meanwhile", number(seen.redelivered), number(args.scale));
    let what = format!("at 1 000/s: beside {} dead letters, and while they are redelivered", number(args.scale));
    let [alone, beside] = [seen.alone.p50_us, seen.beside.p50_us].map(|us| us as f64);
    table.compare(&format!("p50 {what}"), Unit::Micros, alone, beside, None);
    let [alone, beside] = [seen.alone.p99_us, seen.beside.p99_us].map(|us| us as f64);
    table.compare_from(&format!("p99 {what}"), Unit::Micros, alone, beside, (MOST_P99, P99_SLACK_US));
    Ok(())
}

fn crowd(args: &Args, table: &mut Table, server: &Server, what: &str, crowd: &Crowd) -> Result<()> {
    if !what.contains(&args.crowd) {
        return Ok(());
    }
    eprintln!("{what}:");
    // Many short rounds: the machine has moments of its own, and the median counts.
    let (rounds, seconds) = if args.is_full() { (2 * args.rounds() - 1, 3) } else { (args.rounds(), 2) };
    show(table, what, &felt(&args.herald, server, crowd, rounds, seconds)?, MOST_P99);
    Ok(())
}

/// An event for one account, and as many deliveries as it has endpoints, 250 times.
fn fan_out(args: &Args, table: &mut Table, server: &Server, endpoints: u64) -> Result<()> {
    let part = Part { is_one_account: true, ..Part::of(Manner::AnswersAtOnce, endpoints) };
    let what = format!("250 events at once for an account with {} endpoints", number(endpoints));
    if !what.contains(&args.crowd) {
        return Ok(());
    }
    eprintln!("{what}:");
    let crowd = Crowd { parts: vec![part], more: More { at_once: 250, per_second: 0 }, before: 0 };
    show(table, &what, &felt(&args.herald, server, &crowd, args.rounds(), 4)?, MOST_P99_FAN_OUT);
    Ok(())
}

fn show(table: &mut Table, what: &str, felt: &Felt, most: f64) {
    let of = format!("of {} healthy endpoints at 1 000/s: alone, and beside them {what}", number(HEALTHY));
    let [alone, beside] = [felt.alone.p50_us, felt.beside.p50_us].map(|us| us as f64);
    table.compare(&format!("p50 {of}"), Unit::Micros, alone, beside, None);
    let [alone, beside] = [felt.alone.p99_us, felt.beside.p99_us].map(|us| us as f64);
    table.compare_from(&format!("p99 {of}"), Unit::Micros, alone, beside, (most, P99_SLACK_US));
    let peak = felt.peak_bytes as f64;
    table.limit(&format!("peak memory of Herald, {what}"), Unit::Bytes, None, peak, MOST_MEMORY_BYTES);
}

fn behind(args: &Args, table: &mut Table) -> Result<()> {
    let (mut few, mut many) = (args.stack(BUSY, 0, FEW)?, args.stack(BUSY, 0, args.scale)?);
    let what = format!("{} and {} entries behind", number(FEW), number(args.scale));
    compare(args, table, &what, &mut few, &mut many)?;
    memory(table, &what, &mut few, &mut many);
    drop(few);
    // The owner is killed, and the next one finds everything read and nothing acknowledged.
    many.change_owner()?;
    let pending = many.state.leave_pending()?;
    killed(args, table, &format!("with {} entries pending", number(pending)), &mut many)
}

fn endpoints(args: &Args, table: &mut Table) -> Result<()> {
    let registered = args.scale / ENDPOINTS_PER_SCALE;
    let (mut few, mut many) = (args.stack(FEW, 0, FEW)?, args.stack(registered, 0, FEW)?);
    let what = format!("{} and {} endpoints registered", number(FEW), number(registered));
    compare(args, table, &what, &mut few, &mut many)?;
    let most = MOST_MEMORY_BYTES + ENDPOINT_BYTES * registered as f64;
    let peaks = [few.peak_bytes() as f64, many.peak_bytes() as f64];
    table.limit(&format!("peak memory of Herald, {what}"), Unit::Bytes, Some(peaks[0]), peaks[1], most);
    Ok(())
}

fn due(args: &Args, table: &mut Table) -> Result<()> {
    let (mut few, mut many) = (args.stack(BUSY, FEW, FEW)?, args.stack(BUSY, args.scale, FEW)?);
    let what = format!("{} and {} deliveries due later", number(FEW), number(args.scale));
    compare(args, table, &what, &mut few, &mut many)?;
    let due = [few.turn_to_records()?, many.turn_to_records()?];
    let what = format!("{} and {} deliveries due now", number(due[0]), number(due[1]));
    compare(args, table, &what, &mut few, &mut many)?;
    memory(table, &what, &mut few, &mut many);
    drop(few);
    killed(args, table, &format!("with {} deliveries due", number(due[1])), &mut many)
}

/// What Redis does for a delivery that has a record.
fn drain(args: &Args, table: &mut Table) -> Result<()> {
    let (endpoints, scale) = (BUSY, args.scale);
    let setup = |parked, due_later| Setup {
        program: &args.herald,
        endpoints,
        busy: BUSY,
        elsewhere: &|_| None,
        others: Vec::new(),
        due_later,
        parked,
        depth: 0,
    };
    // Enough for every round.
    let few = (args.deliveries() + WARM_UP) * u64::from(args.rounds() + 1);
    for (what, is_due, counts, most) in [
        ("due", true, [few, scale.max(few)], MOST_DUE_US),
        ("parked", false, [few, (scale / 2).max(few)], MOST_PARKED_US),
    ] {
        let mut stacks = Vec::new();
        for count in counts {
            let (parked, due) = if is_due { (0, count) } else { (count, 0) };
            let mut stack = Stack::start(&setup(parked, due))?;
            if is_due {
                stack.state.let_time_pass()?;
            }
            stacks.push(stack);
        }
        let what = format!("{} and {} {what}", number(counts[0]), number(counts[1]));
        eprintln!("{what}:");
        let mut costs = [Vec::new(), Vec::new()];
        for round in 0..args.rounds() as usize {
            for side in [round % 2, 1 - round % 2] {
                let cost = stacks[side].drain(args.deliveries())?;
                eprintln!(
                    "  side {side}: Redis {}, Herald {}, {}",
                    time(cost.redis_us),
                    time(cost.herald_us),
                    rate(cost.rate)
                );
                costs[side].push(cost.redis_us);
            }
        }
        let [few, many] = costs.map(median);
        let what = format!("CPU of Redis per delivery, {what}, nothing added");
        table.limit(&what, Unit::Micros, Some(few), many, most);
    }
    Ok(())
}

/// The slowest of several.
fn killed(args: &Args, table: &mut Table, what: &str, stack: &mut Stack) -> Result<()> {
    let mut slowest = Duration::ZERO;
    for _ in 0..args.take_overs() {
        slowest = slowest.max(take_over(stack)?);
    }
    table.limit(
        &format!("`kill -9` to the other's first delivery, {what}"),
        Unit::Micros,
        None,
        slowest.as_micros() as f64,
        MOST_TAKE_OVER_US,
    );
    let peak = stack.peak_bytes() as f64;
    table.limit(
        &format!("peak memory of Herald, {what} when it was killed"),
        Unit::Bytes,
        None,
        peak,
        MOST_MEMORY_BYTES,
    );
    Ok(())
}
