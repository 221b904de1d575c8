//! Many receivers in trouble beside others that are well, in virtual time against the store's model: how long the healthy
//! ones wait. A millisecond has time for three calls; an attempt takes as long as its receiver.

use std::collections::{BTreeMap, BTreeSet};

use super::deferral::MAX_IN_PARTS;
use super::*;
use crate::{
    dispatch::{attempts::turns::Turns, lane::Owed},
    facts::{
        endpoint::{ENDPOINT_SCHEMA, EndpointState, Mark},
        outcome::{AttemptReport, BodyEnd, Outcome, Timing},
        retry::{DeadReason, RetrySettings},
    },
    store::{
        model::Model,
        protocol::{GROUP, Place, Settlement},
    },
};

const CALLS_A_MS: usize = 3;
/// What it costs Redis to change a record, and to take one up with its text.
const RECORD_US: u64 = 80;
const TIMEOUT_MS: u64 = 15_000;
/// How long a healthy receiver takes.
const QUICK_MS: u64 = 5;

#[derive(Default)]
struct Register {
    endpoints: BTreeMap<EndpointId, Arc<Endpoint>>,
    by_account: BTreeMap<AccountId, Vec<Arc<Endpoint>>>,
    /// How long each takes; if longer than the timeout, it never answers.
    takes_ms: BTreeMap<EndpointId, u64>,
    /// How these end each delivery's first attempt, as quickly as they take the others.
    fails: BTreeMap<EndpointId, Outcome>,
    /// One in this many attempts at these hangs.
    hangs_at_times: Option<u64>,
    /// Was deleted while deliveries to it were parked.
    deleted: Option<EndpointId>,
}

impl Register {
    fn add(&mut self, id: String, account: &str, host: &str, takes_ms: u64, max_in_flight: u16) {
        let text = format!(
            r#"{{"schema":{ENDPOINT_SCHEMA},"id":"{id}","account":"{account}","url":"https://{host}/","schemes":["standard"],
            "secrets":[],"max_in_flight":{max_in_flight},"status":{{"state":"enabled"}},"created_at_ms":0,"updated_at_ms":0,"revision":1}}"#
        );
        let endpoint: Arc<Endpoint> = Arc::new(serde_json::from_str(&text).unwrap());
        self.by_account.entry(endpoint.account.clone()).or_default().push(endpoint.clone());
        self.takes_ms.insert(endpoint.id.clone(), takes_ms);
        self.endpoints.insert(endpoint.id.clone(), endpoint);
    }
}

impl Directory for &Register {
    fn standing(&self, endpoint: &EndpointId) -> Standing {
        if self.deleted.as_ref() == Some(endpoint) {
            return Standing::Ended { reason: DeadReason::Deleted, owed: Owed::All };
        }
        self.endpoints.get(endpoint).cloned().map_or(Standing::Unknown, Standing::of)
    }

    fn endpoints_of(&self, account: &AccountId) -> Vec<Arc<Endpoint>> {
        self.by_account.get(account).cloned().unwrap_or_default()
    }

    fn unknown_of(&self, _: &AccountId) -> Vec<EndpointId> {
        Vec::new()
    }

    fn view(&self) -> RegistryView {
        RegistryView { id: Some("reg".to_owned()), last: Stamped::default(), is_certain: true, is_paused: false }
    }
}

struct Run<'a> {
    register: &'a Register,
    partition: Partition<&'a Register>,
    model: Model,
    now: u64,
    published: u64,
    turns: Turns,
    ends: BTreeMap<(u64, Token), (EndpointId, Outcome, u64)>,
    /// The time from publication to the first attempt, for accounts that are healthy.
    waited_ms: Vec<u64>,
    most_jobs: usize,
    most_slow: usize,
    most_in_parts: usize,
    /// Attempts of deliveries of `acc_many`.
    many: usize,
    /// What a call costs Redis, and each record that it handles; Redis is busy until `busy_until_us`.
    call_us: u64,
    record_us: u64,
    busy_until_us: u64,
    /// Its keys are of a wrong type: whatever is to be written for it is refused.
    broken: Option<EndpointId>,
    refusals: usize,
    /// Entries that were read again.
    read_again: usize,
    /// Deliveries that got a record.
    records: usize,
    /// How many attempts begin in a millisecond at most.
    most_a_ms: usize,
    begun: usize,
    /// How often each was delivered.
    delivered: BTreeMap<DeliveryId, u32>,
}

impl<'a> Run<'a> {
    fn new(register: &'a Register) -> Self {
        Self::with_budgets(register, Budgets::of(64 << 20))
    }

    /// Everything that waits for its account is read again.
    fn with_nothing_in_memory(register: &'a Register) -> Self {
        Self::with_budgets(register, Budgets { deferred: Budget::default(), ..Budgets::of(64 << 20) })
    }

    fn with_budgets(register: &'a Register, budgets: Budgets) -> Self {
        let settings = Settings {
            owner: "tester".to_owned(),
            policy: RetryPolicy::try_new(RetrySettings::default()).unwrap(),
            breaker: BreakerSettings::default(),
            budgets,
            lease_ms: 10_000,
            start: Start::Oldest,
            retain_ms: 60_000,
            trim_ignores: Vec::new(),
            dead_max_age_ms: 1_000_000_000,
            dead_max_count: 1_000_000,
            quarantine_bytes: 1 << 20,
            strict_events: false,
            accounts: Accounts::ALL,
            acquire_every_ms: 200,
            most_parts: 1024,
            parts: 1,
        };
        Self {
            register,
            partition: Partition::new(settings, register, [7; 32]),
            model: Model { registry_last: Some(Stamped::default()), ..Model::default() },
            now: 1,
            published: 0,
            turns: Turns::default(),
            ends: BTreeMap::new(),
            waited_ms: Vec::new(),
            most_jobs: 0,
            most_slow: 0,
            most_in_parts: 0,
            many: 0,
            call_us: 0,
            record_us: 0,
            busy_until_us: 0,
            broken: None,
            refusals: 0,
            read_again: 0,
            records: 0,
            most_a_ms: usize::MAX,
            begun: 0,
            delivered: BTreeMap::new(),
        }
    }

    fn publish(&mut self, account: &str) {
        let body = self.event(account);
        self.publish_body(body);
    }

    fn publish_body(&mut self, body: Bytes) {
        self.model.publish(EntryId { ms: self.now, seq: self.published }, body);
        self.partition.woken(EntryId::MAX, true, false);
    }

    fn event(&mut self, account: &str) -> Bytes {
        self.event_of(account, self.published + 1)
    }

    fn event_of(&mut self, account: &str, intent: u64) -> Bytes {
        self.published += 1;
        let n = self.published;
        let body = format!(
            r#"{{"id":"evt_{n}","event":"payment_intent.created","accountId":"{account}","createdAt":"2022-02-01T13:07:41Z","data":{{"paymentIntentId":"pi_{intent}","paymentStatus":"Created","captureMode":"Auto"}}}}"#
        );
        body.into()
    }

    /// Deliveries that an earlier owner left behind, with their records.
    fn leave(&mut self, endpoint: &str, account: &str, count: usize, place: Place, at_ms: u64) {
        self.model.now_ms = at_ms;
        let term = Term::new(1, "another");
        let acquire = Call::Acquire { term: term.clone(), previous: vec![term.clone()], ttl_ms: 1_000 };
        self.model.call(&acquire).unwrap();
        let keep = |event: Bytes, n: u64| {
            let event = Event::parse(event).unwrap();
            let entry = EntryId { ms: 0, seq: n };
            let delivery = Delivery::new(entry, endpoint.parse().unwrap(), &event, true, at_ms);
            let (id, record) = (delivery.id.clone(), delivery.to_record());
            Item::Keep { id, chain: delivery.chain(), place, record }
        };
        for _ in 0..count {
            let event = self.event(account);
            let settlement = Settlement { items: vec![keep(event, self.published)], ..Settlement::default() };
            self.model.call(&Call::Settle { term: term.clone(), settlement }).unwrap();
        }
        self.model.call(&Call::Release { term }).unwrap();
    }

    /// One millisecond of the worker's work.
    fn step(&mut self) {
        self.now += 1;
        self.begun = 0;
        self.model.now_ms = self.now;
        while let Some(entry) = self.ends.first_entry()
            && entry.key().0 <= self.now
        {
            let ((_, token), (endpoint, outcome, took_ms)) = entry.remove_entry();
            let mut back = Vec::new();
            self.turns.ended(&endpoint, outcome.is_delivered(), &mut back);
            self.partition.not_begun(self.now, back.into_iter());
            let report = AttemptReport {
                number: 1,
                at_ms: self.now,
                outcome,
                timing: Timing { total_us: 1_000 * took_ms, ..Timing::default() },
                body_end: BodyEnd::Complete,
                snippet: String::new(),
                detail: String::new(),
            };
            self.partition.attempted(
                self.now,
                token,
                Attempted { report, request: None, flooded: false, resent: false, met: None },
            );
        }
        if let Some(call) = self.partition.next_renewal(self.now)
            && let Call::Renew { term, .. } = &call
        {
            let answer = self.model.call(&call);
            self.partition.renewed(self.now, term, &answer);
        }
        for _ in 0..CALLS_A_MS {
            if self.busy_until_us >= 1_000 * (self.now + 1) {
                break;
            }
            let Some(call) = self.partition.next_call(self.now) else { break };
            let answer = match self.refusal(&call) {
                Some(at) => Ok(Answer::BadItem { at, why: "the key is a string".to_owned() }),
                None => self.model.call(&call),
            };
            if let (Call::Read { from: ReadFrom::Pending(_), .. }, Ok(Answer::Entries { entries, .. })) =
                (&call, &answer)
            {
                self.read_again += entries.len();
            }
            if let Call::Settle { settlement, .. } = &call {
                self.records += settlement.items.iter().filter(|item| matches!(item, Item::Keep { .. })).count();
            }
            let records = match (&call, &answer) {
                (Call::Settle { settlement, .. }, _) => settlement.items.len(),
                (_, Ok(Answer::Heads { kept, .. } | Answer::Backlog { kept, .. } | Answer::Claimed { kept, .. })) => {
                    kept.len()
                }
                _ => 0,
            };
            let took_us = self.call_us + self.record_us * records as u64;
            self.busy_until_us = self.busy_until_us.max(1_000 * self.now) + took_us;
            self.partition.answered(self.now, answer);
            if self.partition.take_errands().contains(&Errand::ConfirmRegistry) {
                self.partition.registry_confirmed(self.now);
            }
            self.send();
        }
        self.send();
        let tally = self.partition.tally();
        (self.most_jobs, self.most_slow) = (self.most_jobs.max(tally.jobs), self.most_slow.max(tally.slow));
        self.most_in_parts = self.most_in_parts.max(self.partition.term.deferral.in_parts());
        let ended = self.partition.take_happenings().into_iter().find(|h| matches!(h, Happening::TermEnded { .. }));
        assert_eq!(ended, None);
    }

    /// The item of a settle that cannot be applied.
    fn refusal(&mut self, call: &Call) -> Option<usize> {
        let (Call::Settle { settlement, .. }, Some(broken)) = (call, &self.broken) else { return None };
        let is_broken = |item: &Item| matches!(item, Item::Keep { id, .. } if id.endpoint == *broken);
        let at = settlement.items.iter().position(is_broken)?;
        self.refusals += 1;
        Some(at)
    }

    fn send(&mut self) {
        while let Some(send) = self.partition.next_attempt(self.now) {
            self.turns.push(send);
        }
        let mut back = Vec::new();
        self.turns.give_back(self.now, &mut back);
        self.partition.not_begun(self.now, back.into_iter());
        while self.begun < self.most_a_ms
            && let Some(send) = self.turns.next(self.now)
        {
            self.begun += 1;
            if send.endpoint.account.as_str().starts_with("acc_good") && send.delivery.attempts == 0 {
                self.waited_ms.push(self.now - send.delivery.id.entry.ms);
            }
            self.many += usize::from(send.endpoint.account.as_str() == "acc_many");
            let takes = self.register.takes_ms[&send.endpoint.id];
            let fails = self.register.fails.get(&send.endpoint.id);
            let hangs_at_times = self.register.hangs_at_times.filter(|_| fails.is_some());
            let hangs = takes >= TIMEOUT_MS || hangs_at_times.is_some_and(|one_in| send.token.0 % one_in == 0);
            let (outcome, takes) = match fails {
                _ if hangs => (Outcome::ResponseTimedOut, TIMEOUT_MS),
                Some(outcome) if send.delivery.attempts == 0 => (outcome.clone(), takes),
                _ => (Outcome::Delivered { status: 200 }, takes),
            };
            if outcome.is_delivered() {
                *self.delivered.entry(send.delivery.id.clone()).or_default() += 1;
            }
            self.ends.insert((self.now + takes, send.token), (send.endpoint.id.clone(), outcome, takes));
        }
    }

    /// For this long each healthy account gets an event every 200 ms, and those in trouble get theirs one after the other.
    fn go(&mut self, ms: u64, good: usize, bad: &[String], bad_a_ms: usize) {
        let mut next_bad = bad.iter().cycle();
        for _ in 0..ms {
            let now = self.now;
            for n in (0..good).filter(|n| (*n as u64 + now).is_multiple_of(200)) {
                self.publish(&format!("acc_good{n}"));
            }
            (0..bad_a_ms).filter_map(|_| next_bad.next()).for_each(|account| self.publish(account));
            self.step();
        }
    }

    /// How long the first attempts of the healthy ones waited: half of them, 99 of 100, all of them.
    fn waited(&mut self) -> (u64, u64, u64) {
        let mut waited = std::mem::take(&mut self.waited_ms);
        waited.sort_unstable();
        (waited[waited.len() / 2], waited[waited.len() * 99 / 100], *waited.last().unwrap())
    }
}

fn register(good: usize) -> Register {
    let mut register = Register::default();
    for n in 0..good {
        register.add(format!("ep_good{n}"), &format!("acc_good{n}"), &format!("good{n}.example"), QUICK_MS, 10);
    }
    register
}

/// Beside those in trouble the healthy ones wait no longer than without them, and memory stays as planned.
fn check(register: &Register, good: usize, bad: &[String], bad_a_ms: usize, why: &str) {
    let mut run = Run::new(register);
    run.go(1_000, good, &[], 0);
    run.waited();
    // Until the first have timed out.
    run.go(17_000, good, bad, bad_a_ms);
    let (half, most, all) = run.waited();
    println!("{why}: p50 {half} ms, p99 {most} ms, all {all} ms; {} jobs, {} slow", run.most_jobs, run.most_slow);
    assert!(half <= 2 && most <= 20, "{why}: the healthy wait {half} ms, {most} ms, {all} ms");
    let budgets = Budgets::of(64 << 20);
    // Overfull by a quarter, in addition to what was quick before it became slow.
    let most_slow = budgets.slow.count + budgets.slow.count / 4;
    assert!(run.most_slow <= most_slow, "{why}: {} slow flights", run.most_slow);
    assert!(run.most_jobs <= budgets.flights() + SLICE + READ_MAX, "{why}: {} jobs", run.most_jobs);
}

#[test]
fn endpoints_of_one_account_that_hang_cost_nobody_else_anything() {
    let mut register = register(100);
    (0..700).for_each(|n| register.add(format!("ep_bad{n}"), "acc_bad", &format!("bad{n}.example"), TIMEOUT_MS, 10));
    // Each event is owed to all of them.
    let mut bad = vec!["acc_bad".to_owned()];
    bad.extend((0..49).map(|n| format!("acc_none{n}")));
    (0..49).for_each(|n| register.add(format!("ep_none{n}"), &format!("acc_none{n}"), "other.example", QUICK_MS, 10));
    check(&register, 100, &bad, 1, "700 of one account hang");
}

#[test]
fn accounts_on_one_dead_platform_cost_nobody_else_anything() {
    let mut register = register(100);
    let bad: Vec<String> = (0..600).map(|n| format!("acc_bad{n}")).collect();
    (0..600).for_each(|n| register.add(format!("ep_bad{n}"), &bad[n], "dead.example", TIMEOUT_MS, 10));
    check(&register, 100, &bad, 1, "600 on one dead platform");
}

#[test]
fn receivers_that_answer_late_cost_nobody_else_anything() {
    let mut many = register(100);
    let bad: Vec<String> = (0..250).map(|n| format!("acc_bad{n}")).collect();
    (0..250).for_each(|n| many.add(format!("ep_bad{n}"), &bad[n], &format!("bad{n}.example"), 14_000, 10));
    check(&many, 100, &bad, 1, "250 answer after 14 s");
    let mut few = register(100);
    (0..3).for_each(|n| few.add(format!("ep_bad{n}"), &bad[n], &format!("bad{n}.example"), 14_000, 1_000));
    check(&few, 100, &bad[..3], 1, "3 with 1 000 in flight answer after 14 s");
}

#[test]
fn thousands_that_hang_cost_nobody_else_anything() {
    let mut register = register(200);
    let bad: Vec<String> = (0..5_000).map(|n| format!("acc_bad{n}")).collect();
    (0..5_000).for_each(|n| register.add(format!("ep_bad{n}"), &bad[n], &format!("bad{n}.example"), TIMEOUT_MS, 10));
    check(&register, 200, &bad, 1, "5 000 hang");
}

/// How long three receivers take that quickly fail each delivery's first attempt: until they have taken everything.
fn failing_beside(hang: usize, hosts: usize, outcome: &Outcome) -> u64 {
    let mut register = Register::default();
    let account = |n: usize| format!("acc_bad{n}");
    for n in 0..hang {
        register.add(format!("ep_bad{n}"), &account(n), &format!("bad{}.example", n % hosts), TIMEOUT_MS, 10);
    }
    for n in 0..3 {
        register.add(
            format!("ep_failing{n}"),
            &format!("acc_failing{n}"),
            &format!("failing{n}.example"),
            QUICK_MS,
            10,
        );
        register.fails.insert(format!("ep_failing{n}").parse().unwrap(), outcome.clone());
    }
    let mut run = Run::new(&register);
    let bad: Vec<String> = (0..hang).map(account).collect();
    // The others have so many records that these fill their part of memory, too.
    (0..hang).for_each(|n| run.leave(&format!("ep_bad{n}"), &account(n), 2, Place::DueIn(2_000), 1));
    // They are met before memory is full.
    let began = run.now;
    (0..3).for_each(|n| run.publish(&format!("acc_failing{n}")));
    run.go(4_000, 0, &bad, 2);
    let is_of_failing = |id: &&DeliveryId| id.endpoint.as_str().starts_with("ep_failing");
    while run.delivered.keys().filter(is_of_failing).count() < 3 {
        run.go(1, 0, &[], 0);
        assert!(run.now < began + 60_000, "they wait still, beside {hang} that hang");
    }
    run.now - began
}

#[test]
fn who_fails_quickly_goes_again_as_soon_beside_thousands_that_hang() {
    for outcome in [Outcome::ServerFailed { status: 500 }, Outcome::ConnectFailed, Outcome::Reset] {
        let alone = failing_beside(0, 1, &outcome);
        for hosts in [5_000, 1] {
            let beside = failing_beside(5_000, hosts, &outcome);
            println!("{outcome}: {alone} ms alone, {beside} ms beside 5 000 that hang on {hosts} hosts");
            // A pause may be a fifth longer, by chance.
            assert!(beside <= alone + 2_000, "{outcome}: {alone} ms alone, {beside} ms beside those on {hosts} hosts");
        }
    }
}

#[test]
fn hundreds_that_are_quick_and_hang_at_times_cost_nobody_else_anything() {
    for (count, one_in, outcome) in [
        (500, 2, Outcome::ServerFailed { status: 500 }),
        (500, 2, Outcome::Delivered { status: 200 }),
        (3_000, 10, Outcome::Delivered { status: 200 }),
    ] {
        let mut register = register(100);
        register.hangs_at_times = Some(one_in);
        for n in 0..count {
            register.add(format!("ep_bad{n}"), &format!("acc_bad{n}"), &format!("bad{n}.example"), QUICK_MS, 10);
            register.fails.insert(format!("ep_bad{n}").parse().unwrap(), outcome.clone());
        }
        let bad: Vec<String> = (0..count).map(|n| format!("acc_bad{n}")).collect();
        let why = format!("{count} of which one attempt in {one_in} hangs, others {outcome}");
        check(&register, 100, &bad, 2, &why);
    }
}

/// As after a take-over, when the new owner knows nobody yet.
#[test]
fn who_is_as_new_as_thousands_that_hang_is_met_at_once() {
    let mut register = register(200);
    let bad: Vec<String> = (0..5_000).map(|n| format!("acc_bad{n}")).collect();
    (0..5_000).for_each(|n| register.add(format!("ep_bad{n}"), &bad[n], &format!("bad{n}.example"), TIMEOUT_MS, 10));
    let mut run = Run::new(&register);
    // Every millisecond another one that hangs.
    run.go(1_000, 0, &bad, 1);
    run.go(500, 200, &bad[1_000..], 1);
    // Those that still wait are counted too.
    run.go(2_000, 0, &[], 0);
    let (half, most, all) = run.waited();
    assert!(half <= 2 && most <= 20, "the healthy wait {half} ms, {most} ms, {all} ms");
}

#[test]
fn an_account_with_thousands_of_endpoints_costs_nobody_else_anything() {
    const MANY: usize = 2_000;
    const EVENTS: usize = 50;
    let mut register = register(100);
    (0..MANY).for_each(|n| register.add(format!("ep_many{n}"), "acc_many", &format!("many{n}.example"), QUICK_MS, 10));
    let mut run = Run::new(&register);
    run.go(1_000, 100, &[], 0);
    run.waited();
    (0..EVENTS).for_each(|_| run.publish("acc_many"));
    while run.many < MANY * EVENTS {
        run.go(50, 100, &[], 0);
        assert!(run.now < 60_000, "only {} were sent", run.many);
    }
    let took_ms = run.now - 1_000;
    let (half, most, all) = run.waited();
    println!(
        "50 events for 2 000 endpoints in {took_ms} ms: p50 {half} ms, p99 {most} ms, all {all} ms; {} jobs",
        run.most_jobs
    );
    assert!(half <= 2 && most <= 20, "the healthy wait {half} ms, {most} ms, {all} ms");
    assert!(run.most_jobs <= 2_048 + SLICE + READ_MAX, "{} jobs", run.most_jobs);
    run.go(2_000, 0, &[], 0);
    assert_eq!(run.many, MANY * EVENTS, "some went twice");
    assert!(run.model.stream.groups[GROUP].pending.is_empty() && run.model.records.is_empty());
    assert_eq!(run.partition.deferred(), 0);
}

/// They come while those before them still wait: they are passed by, and nobody behind them waits.
#[test]
fn events_for_thousands_of_endpoints_that_come_at_once_are_passed_by() {
    const MANY: usize = 2_000;
    let mut register = register(200);
    (0..MANY).for_each(|n| register.add(format!("ep_many{n}"), "acc_many", &format!("many{n}.example"), 100, 10));
    let mut run = Run::with_nothing_in_memory(&register);
    run.call_us = 1_000;
    run.go(1_000, 200, &[], 0);
    run.waited();
    // At first it is alone, and reading waits for it.
    (0..500).for_each(|_| run.publish("acc_many"));
    run.go(100, 0, &[], 0);
    for _ in 0..5 {
        (0..250).for_each(|_| run.publish("acc_many"));
        run.go(250, 200, &[], 0);
    }
    run.go(100, 0, &[], 0);
    assert_eq!(run.waited_ms.len(), 5 * 250);
    let (half, most, all) = run.waited();
    println!("behind 250 events for 2 000 endpoints, five times: p50 {half} ms, p99 {most} ms, all {all} ms");
    assert!(half <= 2 && most <= 10 && all <= 20, "the healthy wait {half} ms, {most} ms, {all} ms");
    assert!(run.partition.term.deferral.entries() > 1_000, "this proves nothing");
}

/// What is delivered of an entry for many endpoints is delivered again after a crash, so only a few are admitted in parts
/// at a time, however many come at once.
#[test]
fn many_accounts_with_many_endpoints_have_turns_and_few_entries_are_in_parts() {
    const ACCOUNTS: usize = 60;
    const MANY: usize = 200;
    let mut register = register(100);
    for account in 0..ACCOUNTS {
        let many = |n| (format!("ep_{account}_{n}"), format!("many{account}_{n}.example"));
        for (id, host) in (0..MANY).map(many) {
            register.add(id, &format!("acc_many{account}"), &host, QUICK_MS, 10);
        }
    }
    let mut run = Run::new(&register);
    run.go(1_000, 100, &[], 0);
    run.waited();
    (0..2 * ACCOUNTS).for_each(|n| run.publish(&format!("acc_many{}", n % ACCOUNTS)));
    while run.partition.deferred() > 0 || !run.model.stream.groups[GROUP].pending.is_empty() {
        run.go(1, 100, &[], 0);
        assert!(run.now < 30_000, "{} are in parts, {} wait", run.most_in_parts, run.partition.deferred());
    }
    let (half, most, all) = run.waited();
    println!("{} in parts; p50 {half} ms, p99 {most} ms, all {all} ms", run.most_in_parts);
    assert!((1..=MAX_IN_PARTS).contains(&run.most_in_parts), "{} in parts", run.most_in_parts);
    assert!(half <= 2 && most <= 20, "the healthy wait {half} ms, {most} ms, {all} ms");
}

/// When a worker has stopped, the rest of an entry that was delivered in part has records: the next worker delivers that
/// rest and no more.
#[test]
fn a_worker_that_stops_leaves_nothing_behind_that_goes_twice() {
    const MANY: usize = 700;
    let mut register = register(10);
    (0..MANY).for_each(|n| register.add(format!("ep_many{n}"), "acc_many", &format!("many{n}.example"), QUICK_MS, 1));
    register.add("ep_quick".to_owned(), "acc_two", "quick.example", 1, 10);
    register.add("ep_slow".to_owned(), "acc_two", "slow.example", 100, 1);
    let mut run = Run::new(&register);
    run.go(1_000, 10, &[], 0);
    let mut published = 0;
    for round in 0..8 {
        for _ in 0..6 {
            run.publish("acc_many");
            run.publish("acc_two");
        }
        published += 6 * (MANY + 2);
        // Whatever is out in part at that time.
        run.go(2 + 3 * round, 10, &[], 0);
        run.partition.stop();
        let until = run.now + 10_000;
        while !run.partition.is_stopped() {
            run.step();
            assert!(run.now < until, "it does not stop");
        }
        let next = Run::new(&register);
        run = Run { model: run.model, now: run.now, published: run.published, delivered: run.delivered, ..next };
    }
    let has_ended = |run: &Run| run.model.records.is_empty() && run.model.stream.groups[GROUP].pending.is_empty();
    while run.now < 60_000 && (run.partition.deferred() > 0 || !has_ended(&run)) {
        run.go(1, 0, &[], 0);
    }
    let of_good = |id: &DeliveryId| id.endpoint.as_str().starts_with("ep_good");
    let (all, twice) = run
        .delivered
        .iter()
        .filter(|(id, _)| !of_good(id))
        .fold((0, 0), |(all, twice), (_, times)| (all + 1, twice + times - 1));
    assert_eq!((all, twice), (published, 0), "of {published}, at {} ms", run.now);
    assert!(has_ended(&run));
}

/// Those whose receivers hang take no place among the few that are admitted in parts.
#[test]
fn a_healthy_account_with_many_endpoints_waits_for_none_of_those_that_hang() {
    let mut register = register(100);
    (0..150).for_each(|n| register.add(format!("ep_w{n}"), "acc_good0", &format!("w{n}.example"), QUICK_MS, 10));
    let mut bad = Vec::new();
    for account in (0..20).map(|account| format!("acc_bad{account}")) {
        let id = |n| format!("ep_{account}_{n}");
        (0..200).for_each(|n| register.add(id(n), &account, &format!("{account}-{n}.example"), TIMEOUT_MS, 10));
        bad.push(account);
        bad.extend((0..19).map(|n| format!("acc_none{n}")));
    }
    (0..19).for_each(|n| register.add(format!("ep_none{n}"), &format!("acc_none{n}"), "other.example", QUICK_MS, 10));
    check(&register, 100, &bad, 1, "20 accounts of 200 that hang beside a healthy one of 151");
}

fn add_paused(register: &mut Register) {
    register.add("ep_paused".to_owned(), "acc_paused", "paused.example", QUICK_MS, 10);
    let mark = Mark { by: "ops".to_owned(), why: "test".to_owned(), at_ms: 0 };
    let paused = register.by_account.get_mut("acc_paused").unwrap();
    Arc::make_mut(&mut paused[0]).status = EndpointState::Paused(mark);
    let paused = paused[0].clone();
    register.endpoints.insert(paused.id.clone(), paused);
}

#[test]
fn an_endpoint_whose_keys_are_broken_stops_nobody_however_much_is_owed_to_it() {
    let mut register = register(100);
    add_paused(&mut register);
    let mut run = Run::new(&register);
    run.broken = Some(EndpointId::new("ep_paused").unwrap());
    run.go(1_000, 100, &[], 0);
    run.waited();
    // Sixteen thousand events, each needing a record that cannot be written.
    run.go(8_000, 100, &["acc_paused".to_owned()], 2);
    let (half, most, all) = run.waited();
    println!("broken keys: p50 {half} ms, p99 {most} ms, all {all} ms; {} refusals", run.refusals);
    assert!(half <= 2 && most <= 20, "the healthy wait {half} ms, {most} ms, {all} ms");
    assert!(run.refusals <= 20, "{} settles were refused", run.refusals);
    run.go(500, 0, &[], 0);
    assert_eq!(run.model.stream.groups[GROUP].pending.len(), 16_000, "all of it stays in the stream");
}

#[test]
fn a_paused_endpoint_keeps_the_stream_from_being_trimmed_for_ten_seconds_at_most() {
    let mut register = register(1);
    add_paused(&mut register);
    let mut run = Run::new(&register);
    run.partition.set_pressure(true);
    (0..100).for_each(|_| run.publish("acc_paused"));
    run.go(9_000, 1, &[], 0);
    assert_eq!((run.partition.deferred(), run.model.records.len()), (100, 0));
    run.go(3_000, 1, &[], 0);
    run.go(500, 0, &[], 0);
    assert_eq!((run.partition.deferred(), run.model.records.len()), (0, 100));
    assert!(run.model.stream.groups[GROUP].pending.is_empty());
}

#[test]
fn an_account_that_waits_has_its_turn_while_another_one_takes_for_ever() {
    let mut register = register(100);
    register.add("ep_busy".to_owned(), "acc_busy", "busy.example", QUICK_MS, 10);
    register.add("ep_many".to_owned(), "acc_many", "many.example", QUICK_MS, 10);
    for mut run in [Run::new(&register), Run::with_nothing_in_memory(&register)] {
        // More comes for one than it takes: something always waits for it, and it always takes.
        (0..600).for_each(|_| run.publish("acc_busy"));
        let busy = vec!["acc_busy".to_owned()];
        run.go(100, 100, &busy, 3);
        (0..600).for_each(|_| run.publish("acc_many"));
        run.go(4_000, 100, &busy, 3);
        assert!(run.partition.term.deferral.is_waiting("acc_busy"), "this proves nothing");
        assert_eq!(run.many, 600, "of 600 that 2 000 a second can be had of in 4 s");
        assert!(run.model.records.is_empty());
    }
}

#[test]
fn what_an_endpoint_alone_is_owed_is_read_once() {
    const ALL: usize = 60_000;
    let mut register = register(0);
    register.add("ep_many".to_owned(), "acc_many", "many.example", QUICK_MS, 100);
    let mut run = Run::new(&register);
    run.call_us = 1_000;
    (0..ALL).for_each(|_| run.publish("acc_many"));
    while run.many < ALL && run.now < 20_000 {
        run.go(1, 0, &[], 0);
        assert!(run.partition.deferred_in_memory() <= run.partition.settings.budgets.deferred.count / 2);
    }
    run.go(100, 0, &[], 0);
    assert_eq!((run.many, run.model.stream.groups[GROUP].pending.len()), (ALL, 0));
    // Except for what is read in the half second before it is known how quick it is.
    println!("of {ALL} {} were read twice, in {} ms", run.read_again, run.now);
    assert!(run.read_again < ALL / 8, "{} were read twice", run.read_again);
    assert!(run.model.records.is_empty());
}

/// An account that comes now and then beside it does not wait long, and costs it little.
#[test]
fn what_a_quick_endpoint_is_owed_needs_no_records_beside_one_that_comes_now_and_then() {
    const ALL: usize = 60_000;
    let mut register = register(1);
    register.add("ep_many".to_owned(), "acc_many", "many.example", QUICK_MS, 100);
    let mut run = Run::new(&register);
    run.call_us = 1_000;
    run.go(1_000, 1, &[], 0);
    run.waited();
    (0..ALL).for_each(|_| run.publish("acc_many"));
    let mut records = 0;
    while run.many < ALL && run.now < 21_000 {
        run.go(1, 1, &[], 0);
        records = records.max(run.model.records.len());
    }
    let (half, most, all) = run.waited();
    println!(
        "of {ALL} {} were read twice, in {} ms; the healthy one waits {half} ms, {most} ms, {all} ms",
        run.read_again, run.now
    );
    assert_eq!((run.many, records), (ALL, 0));
}

/// Backlogs that were small once grew until all of the stream had gone through them, at a quarter of the speed.
#[test]
fn what_comes_behind_a_small_backlog_of_a_receiver_that_takes_all_needs_no_records() {
    const ENDPOINTS: usize = 20;
    const LEFT: usize = 100;
    const NEW: usize = 20_000;
    let mut register = Register::default();
    for n in 0..ENDPOINTS {
        register.add(format!("ep_{n}"), &format!("acc_{n}"), &format!("{n}.example"), QUICK_MS, 10);
    }
    let mut run = Run::new(&register);
    (run.call_us, run.record_us) = (500, RECORD_US);
    (0..ENDPOINTS).for_each(|n| run.leave(&format!("ep_{n}"), &format!("acc_{n}"), LEFT, Place::Backlog, 1));
    (0..NEW).for_each(|n| run.publish(&format!("acc_{}", n % ENDPOINTS)));
    let mut with_records = BTreeSet::new();
    while run.delivered.len() < ENDPOINTS * LEFT + NEW {
        run.step();
        with_records.extend(run.model.records.keys().filter(|id| id.entry.ms > 0).cloned());
        assert!(run.now < 60_000, "only {} are delivered", run.delivered.len());
    }
    println!("{} of {NEW} needed a record, in {} ms", with_records.len(), run.now);
    // As they come, before any receiver has answered.
    assert!(with_records.len() < NEW / 50, "{} of {NEW} needed a record", with_records.len());
}

#[test]
fn reading_waits_for_nobody_who_is_slow() {
    let mut register = register(100);
    register.add("ep_many".to_owned(), "acc_many", "many.example", 100, 10);
    let mut run = Run::new(&register);
    run.go(1_000, 100, &[], 0);
    run.waited();
    // Ten seconds' work of a receiver that takes a hundred a second, and more than memory has room for.
    (0..20_000).for_each(|_| run.publish("acc_many"));
    run.go(3_000, 100, &[], 0);
    let (half, most, all) = run.waited();
    println!("behind 20 000 of a slow one: p50 {half} ms, p99 {most} ms, all {all} ms");
    assert!(half <= 2 && all <= 200, "the healthy wait {half} ms, {most} ms, {all} ms");
}

#[test]
fn an_account_whose_events_never_pause_does_not_keep_another_one_waiting() {
    let mut register = register(1);
    register.add("ep_busy".to_owned(), "acc_busy", "busy.example", QUICK_MS, 100);
    register.add("ep_many".to_owned(), "acc_many", "many.example", QUICK_MS, 4);
    let mut run = Run::with_nothing_in_memory(&register);
    run.call_us = 1_000;
    // More at once than it takes. From then on it takes whatever a pass brings, and gets new ones before the pass reads on.
    for (account, count) in [("acc_busy", 600), ("acc_many", 600), ("acc_busy", 2_000)] {
        (0..count).for_each(|_| run.publish(account));
    }
    let busy = vec!["acc_busy".to_owned()];
    while !["acc_busy", "acc_many"].iter().all(|account| run.partition.term.deferral.is_waiting(account)) {
        run.go(1, 1, &busy, 3);
        assert!(run.now < 500, "this proves nothing");
    }
    run.go(4_000, 1, &busy, 3);
    assert_eq!(run.many, 600, "of 600 that 800 a second can be had of in 4 s");
    assert!(run.model.records.is_empty());
}

#[test]
fn what_a_stranger_had_taken_is_delivered_in_the_same_term() {
    let mut register = register(0);
    register.add("ep_many".to_owned(), "acc_many", "many.example", QUICK_MS, 1);
    [Run::new(&register), Run::with_nothing_in_memory(&register)]
        .into_iter()
        .for_each(deliver_what_a_stranger_had_taken);
}

fn deliver_what_a_stranger_had_taken(mut run: Run) {
    (0..100).for_each(|_| run.publish("acc_many"));
    run.go(10, 0, &[], 0);
    // The 101st is a stranger's.
    run.publish("acc_many");
    let group = run.model.stream.groups.get_mut(GROUP).unwrap();
    let stolen = *run.model.stream.entries.keys().next_back().unwrap();
    (group.last_delivered, _) = (stolen, group.pending.insert(stolen, "stranger".to_owned()));
    (0..900).for_each(|_| run.publish("acc_many"));
    while run.many < 200 {
        run.go(1, 0, &[], 0);
    }
    run.partition.term.foreign_at = run.now;
    let mut most = 0;
    while run.many < 1_001 && run.now < 20_000 {
        run.go(1, 0, &[], 0);
        most = most.max(run.partition.deferred());
    }
    run.go(100, 0, &[], 0);
    assert_eq!((run.many, run.model.stream.groups[GROUP].pending.len()), (1_001, 0));
    // What was read again because of it is not counted again.
    assert!(most <= 900, "{most} wait");
}

/// How many virtual milliseconds a new owner takes for what is due to a hundred healthy receivers, behind what is due to
/// others in trouble: `hang` of them with `each` deliveries, which hang or fail quickly.
fn take_over(hang: usize, hosts: usize, each: usize, fails: Option<Outcome>) -> u64 {
    let mut register = register(100);
    let takes_ms = if fails.is_some() { QUICK_MS } else { TIMEOUT_MS };
    for n in 0..hang {
        register.add(format!("ep_bad{n}"), &format!("acc_bad{n}"), &format!("bad{}.example", n % hosts), takes_ms, 10);
        register.fails.extend(fails.clone().map(|outcome| (format!("ep_bad{n}").parse().unwrap(), outcome)));
    }
    let mut run = Run::new(&register);
    (0..hang).for_each(|n| run.leave(&format!("ep_bad{n}"), &format!("acc_bad{n}"), each, Place::DueIn(0), 1));
    (0..100).for_each(|n| run.leave(&format!("ep_good{n}"), &format!("acc_good{n}"), 2, Place::DueIn(0), 2));
    run.now = 3;
    while run.model.records.keys().any(|id| id.endpoint.as_str().starts_with("ep_good")) {
        run.go(10, 0, &[], 0);
        assert!(run.now < 60_000, "the healthy still wait");
    }
    println!("{hang} in trouble with {each} due each: {} ms, {} jobs, {} slow", run.now, run.most_jobs, run.most_slow);
    run.now
}

#[test]
fn a_new_owner_comes_to_what_is_due_to_the_healthy_behind_what_is_due_to_those_that_hang() {
    // The first second shows which ones hang; then there is room for those of which nothing is known.
    for (hang, hosts, each) in [(600, 600, 10), (3, 3, 3_000), (5_000, 1, 2)] {
        let took_ms = take_over(hang, hosts, each, None);
        assert!(took_ms < 5_000, "{took_ms} ms with {hang} that hang");
        let took_ms = take_over(hang, hosts, each, Some(Outcome::ServerFailed { status: 500 }));
        assert!(took_ms < 1_000, "{took_ms} ms with {hang} that fail quickly");
    }
}

#[test]
fn the_first_deliveries_to_a_thousand_new_receivers_need_no_records() {
    let register = register(1_000);
    let mut run = Run::new(&register);
    let mut most = 0;
    (0..1_000).for_each(|n| run.publish(&format!("acc_good{n}")));
    for _ in 0..500 {
        run.go(1, 0, &[], 0);
        most = most.max(run.model.records.len());
    }
    assert_eq!((run.waited_ms.len(), most), (1_000, 0));
}

#[test]
fn an_endpoint_that_is_deleted_with_thousands_parked_costs_nobody_else_anything() {
    const PARKED: usize = 10_000;
    let mut register = register(100);
    register.deleted = Some("ep_deleted".parse().unwrap());
    let mut run = Run::new(&register);
    run.record_us = RECORD_US;
    run.leave("ep_deleted", "acc_deleted", PARKED, Place::Backlog, 1);
    run.go(1_000, 100, &[], 0);
    run.waited();
    assert!(run.model.records.len() > PARKED / 2, "this proves nothing");
    while !run.model.records.is_empty() {
        run.go(50, 100, &[], 0);
        assert!(run.now < 60_000, "{} are left", run.model.records.len());
    }
    let (half, most, all) = run.waited();
    println!("{PARKED} given up in {} ms: p50 {half} ms, p99 {most} ms, all {all} ms", run.now);
    assert_eq!(run.model.dead.len(), PARKED);
    assert!(half <= 3 && most <= 20, "the healthy wait {half} ms, {most} ms, {all} ms");
}

/// One of many partitions of a process that has more to do than it can: calls take long, and so few attempts begin that what it has
/// in memory is always more than enough. A few records from before must not make for ever more: what comes behind a backlog gets a
/// record, and is one more in it.
#[test]
fn an_owner_with_more_to_do_than_it_can_does_not_make_backlogs() {
    const EVENTS: u64 = 6_000;
    let mut register = Register::default();
    let account = |n: u64| format!("acc_{}", n % 2);
    (0..2).for_each(|n| register.add(format!("ep_{n}"), &account(n), &format!("host{n}.example"), QUICK_MS, 100));
    let mut run = Run::with_budgets(&register, Budgets::of(64 << 20).part_of(64, 4));
    (run.call_us, run.most_a_ms) = (30_000, 1);
    (0..2).for_each(|n| run.leave(&format!("ep_{n}"), &account(n), 20, Place::Backlog, 1));
    // Three of each intent, so some have to wait for others.
    for n in 0..EVENTS {
        let body = run.event_of(&account(n), n / 24 * 8 + n % 8);
        run.publish_body(body);
    }
    while (run.delivered.len() as u64) < EVENTS + 40 {
        run.step();
        assert!(run.now < 60_000, "{} delivered", run.delivered.len());
    }
    println!("{} records of {EVENTS}, after {} ms", run.records, run.now);
    assert!(run.records < 200, "{} of {EVENTS} got records", run.records);
    assert!(run.delivered.values().all(|times| *times == 1));
}
