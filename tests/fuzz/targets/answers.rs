//! A script's answer, made of any values that Redis can send: the first byte is the call, the rest builds the value.

use bytes::Bytes;
use herald::{
    facts::id::{DeliveryId, EndpointId, EntryId, EventId, IntentId},
    store::{
        decode,
        protocol::{Answer, Call, LookFrom, ReadFrom, Settlement, Start, Term},
    },
};
use redis::Value;

/// Deeper than any answer: an inbox's request is three levels deep.
const MAX_DEPTH: u8 = 8;

/// Words of the scripts and of their answers, so that the fuzzer need not guess them letter by letter.
const WORDS: [&[u8]; 42] = [
    b"LOST",
    b"UNINDEXED",
    b"SWEPT",
    b"NOGROUP",
    b"BAD",
    b"ACQUIRED",
    b"TAKEN",
    b"RENEWED",
    b"RELEASED",
    b"RECOVERED",
    b"OPENED",
    b"COUNTS",
    b"ENTRIES",
    b"ASKED",
    b"SETTLED",
    b"CLAIMED",
    b"PULLED",
    b"HEADS",
    b"FOREIGN",
    b"REQUESTS",
    b"TRIMMED",
    b"EXPIRED",
    b"17-0",
    b"17-0:ep_a",
    b"ep_a",
    b"pi_a",
    b"op",
    b"id",
    b"mark",
    b"entry",
    b"endpoint",
    b"intent",
    b"registry",
    b"redeliver",
    b"discard",
    b"release",
    b"requeue",
    b"discard-quarantined",
    b"accept-registry",
    b"{}",
    b"reg_a",
    b"",
];

pub fn run(input: &[u8]) {
    let Some((form, rest)) = input.split_first() else { return };
    let call = call(*form);
    let value = Bytes::copy_from_slice(rest);
    let mut rest = rest;
    let parts = std::iter::from_fn(|| (!rest.is_empty()).then(|| build(&mut rest, 0))).collect();
    let values = if form & 0x80 == 0 { Value::Array(parts) } else { Value::BulkString(value.to_vec()) };
    match decode::answer(&call, values) {
        Ok(answer) => check(&call, &answer),
        Err(why) => assert!(!why.is_empty() && why.len() <= 1024 + input.len(), "{why}"),
    }
}

fn check(call: &Call, answer: &Answer) {
    match (call, answer) {
        (Call::Ask { deliveries, .. }, Answer::Asked { known }) => assert_eq!(known.len(), deliveries.len()),
        (_, Answer::Lost | Answer::NoGroup) => {}
        (Call::Settle { .. }, Answer::BadItem { .. } | Answer::Settled { .. }) => {}
        (
            Call::Acquire { .. },
            Answer::Acquired { .. } | Answer::Taken { .. } | Answer::Gated { .. } | Answer::Reserved { .. },
        ) => {}
        (Call::Renew { .. }, Answer::Renewed { .. }) | (Call::Release { .. }, Answer::Released) => {}
        (Call::Recover { .. }, Answer::Recovered { .. }) | (Call::Open { .. }, Answer::Opened { .. }) => {}
        (Call::Counts { .. }, Answer::Counts { .. }) | (Call::Read { .. }, Answer::Entries { .. }) => {}
        (Call::Claim { .. }, Answer::Claimed { .. }) => {}
        (Call::TakeHeads { .. }, Answer::Heads { .. }) | (Call::Inbox { .. }, Answer::Requests { .. }) => {}
        (Call::ClaimForeign { .. }, Answer::ClaimedForeign { .. }) | (Call::Trim { .. }, Answer::Trimmed { .. }) => {}
        (Call::ExpireDead { .. }, Answer::ExpiredDead { .. }) | (Call::PullIn { .. }, Answer::PulledIn { .. }) => {}
        (Call::Unindexed { .. }, Answer::Unindexed { .. }) | (Call::SweepDead { .. }, Answer::SweptDead { .. }) => {}
        (Call::NoteUnreadable { .. }, Answer::Noted { .. }) => {}
        (call, answer) => panic!("{call:?} was answered with {answer:?}"),
    }
}

/// One value from the front of the bytes. Never larger than the bytes allow.
fn build(rest: &mut &[u8], depth: u8) -> Value {
    let Some((form, tail)) = rest.split_first() else { return Value::Nil };
    *rest = tail;
    let (form, small) = (form % 8, form / 8);
    match form {
        0 => Value::Nil,
        1 => Value::Int(i64::from(small) - 3),
        2 => {
            let (bits, tail) = rest.split_at(rest.len().min(8));
            *rest = tail;
            Value::Int(bits.iter().fold(0, |number, byte| (number << 8) | i64::from(*byte)))
        }
        3 => {
            let (bytes, tail) = rest.split_at(rest.len().min(usize::from(small)));
            *rest = tail;
            Value::BulkString(bytes.to_vec())
        }
        4 | 5 => Value::BulkString(WORDS[(usize::from(small) + 32 * usize::from(form - 4)) % WORDS.len()].to_vec()),
        6 if depth < MAX_DEPTH => Value::Array((0..small).map(|_| build(rest, depth + 1)).collect()),
        6 => Value::Okay,
        _ => match small % 6 {
            0 => Value::SimpleString("OK".to_owned()),
            1 => Value::Boolean(true),
            2 => Value::Double(f64::NAN),
            3 => Value::Map(vec![(Value::Nil, Value::Nil)]),
            4 => Value::Set(Vec::new()),
            _ => Value::Okay,
        },
    }
}

fn call(form: u8) -> Call {
    let term = Term::new(7, "fuzz");
    let endpoint = || EndpointId::new("ep_a").expect("it is an id");
    match form & 0x1f {
        0 => Call::Acquire { term, previous: Vec::new(), ttl_ms: 1 },
        1 => Call::Renew { term, ttl_ms: 1 },
        2 => Call::Release { term },
        3 => Call::Recover { term, max: 1 },
        4 => Call::Open { term, start: Start::Oldest, registry: "reg_a".to_owned() },
        5 => Call::Counts { term, cursor: 0 },
        6 => Call::Read { term, from: ReadFrom::New, max: 10 },
        7 => {
            let delivery = DeliveryId { entry: EntryId::ZERO, endpoint: endpoint() };
            let intent = IntentId::new("pi_a").expect("it is an id");
            let deliveries = vec![(delivery, intent, EventId::new("evt_a").expect("it is an id")); 3];
            Call::Ask { term, deliveries, suspect: false }
        }
        8 => Call::Settle { term, settlement: Settlement::default() },
        9 => Call::Claim { term, max: 10 },
        10 => Call::PullIn { term, from_ms: 1, by_ms: 1, max: 10, step_ms: -1 },
        11 => Call::TakeHeads { term, endpoint: endpoint(), max: 10 },
        12 => Call::ClaimForeign { term, max: 10 },
        13 => Call::Inbox { term, after: EntryId::ZERO, max: 10 },
        14 => Call::Trim { term, retain_ms: 0, up_to: None, ignores: Vec::new() },
        15 => Call::Unindexed { term, from: LookFrom::Mark, look: 10, max: 10 },
        16 => Call::SweepDead { term, cursor: 0 },
        17 => Call::NoteUnreadable { term, endpoints: vec![endpoint()], holds_ms: 1 },
        _ => Call::ExpireDead { term, max_age_ms: 1, max_count: 1, max: 1 },
    }
}
