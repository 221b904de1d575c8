use herald::{
    facts::{event::MAX_EVENT_BYTES, id::EventId, retry::DeadReason},
    store::{
        connection::Purpose,
        protocol::{Call, Item, Place, ReadFrom},
        queries::{DeadOrder, DeadRange, EntryStanding, LogFilter, Queries, WhereUnfinished, Whereabouts},
    },
};

use crate::{
    stage::{Owner, bury, delivery, endpoint_id, event, id, intent, keep, keys, log_line},
    support::TestRedis,
};

const EVER: DeadRange = DeadRange { endpoint: None, from_ms: 0, until_ms: u64::MAX };

async fn stage() -> (TestRedis, Owner, Queries) {
    let redis = TestRedis::start().await;
    let owner = Owner::start(&redis.redis()).await;
    let queries = Queries::new(redis.redis().connect(Purpose::Other).await.unwrap(), keys());
    (redis, owner, queries)
}

async fn place_of(queries: &mut Queries, entry: &str) -> WhereUnfinished {
    match queries.find(&id(entry, "ep_a")).await.unwrap() {
        Whereabouts::Unfinished(one) => one.place,
        other => panic!("{entry} is {other:?}"),
    }
}

#[tokio::test]
async fn a_delivery_is_found_wherever_it_stands() {
    let (_redis, owner, mut queries) = stage().await;
    let due = delivery("10-0", "ep_a", "pi_1", true);
    let held = delivery("20-0", "ep_a", "pi_1", true);
    let parked = delivery("11-0", "ep_a", "pi_2", true);
    let claimed = delivery("12-0", "ep_a", "pi_3", true);
    let dead = delivery("13-0", "ep_a", "pi_4", true);
    let items = vec![
        keep(&due, Place::DueIn(600_000)),
        keep(&held, Place::Held),
        keep(&parked, Place::Backlog),
        keep(&claimed, Place::Claimed),
        bury(&dead, DeadReason::Exhausted),
    ];
    owner.settle(items, Vec::new()).await;

    assert!(matches!(place_of(&mut queries, "10-0").await, WhereUnfinished::Due { .. }));
    assert_eq!(place_of(&mut queries, "20-0").await, WhereUnfinished::Held { head: "10-0".parse().unwrap() });
    assert_eq!(place_of(&mut queries, "11-0").await, WhereUnfinished::Parked);
    assert!(matches!(place_of(&mut queries, "12-0").await, WhereUnfinished::Claimed { .. }));
    assert!(matches!(queries.find(&id("13-0", "ep_a")).await.unwrap(), Whereabouts::Dead(_)));
    assert_eq!(queries.find(&id("14-0", "ep_a")).await.unwrap(), Whereabouts::NoRecord);

    let totals = queries.totals(&endpoint_id("ep_a")).await.unwrap();
    assert_eq!((totals.unfinished, totals.chains, totals.held, totals.parked, totals.dead), (4, 3, 1, 1, 1));
}

#[tokio::test]
async fn a_chain_shows_its_head_first_and_counts_what_is_held() {
    let (_redis, owner, mut queries) = stage().await;
    // pi_1 and pi_10 must not be mistaken for each other.
    let items = [("10-0", "pi_1"), ("11-0", "pi_10"), ("12-0", "pi_1"), ("13-0", "pi_10"), ("14-0", "pi_1")];
    let items = items.map(|(entry, intent)| keep(&delivery(entry, "ep_a", intent, true), Place::DueIn(1)));
    owner.settle(items.to_vec(), Vec::new()).await;
    owner.settle(vec![keep(&delivery("15-0", "ep_a", "pi_1", false), Place::Backlog)], Vec::new()).await;

    let chain = queries.chain(&endpoint_id("ep_a"), &intent("pi_1"), 100).await.unwrap();
    let entries: Vec<String> = chain.iter().map(|one| one.id.entry.to_string()).collect();
    assert_eq!(entries, ["10-0", "12-0", "14-0"]);

    let (chains, is_complete) = queries.chains(&endpoint_id("ep_a"), 100).await.unwrap();
    let heads: Vec<_> = chains.iter().map(|one| (one.head.id.entry.to_string(), one.held)).collect();
    assert_eq!(heads, [("10-0".to_owned(), 2), ("11-0".to_owned(), 1), ("15-0".to_owned(), 0)]);
    assert!(is_complete && chains[2].head.is_single());

    assert_eq!(queries.unfinished_of_intent(&intent("pi_1"), 100).await.unwrap().len(), 3);
    let walk =
        queries.unfinished_where(100, |delivery| delivery.event == EventId::new("evt_15").unwrap()).await.unwrap();
    assert_eq!((walk.found.len(), walk.looked, walk.is_complete), (1, 6, true));
    let bounded = queries.unfinished_where(4, |_| true).await.unwrap();
    assert_eq!((bounded.found.len(), bounded.is_complete), (4, false));
    let oldest = queries.oldest(&queries.clone().busy_endpoints(10).await.unwrap()).await.unwrap();
    assert_eq!(oldest[0].oldest, Some(id("10-0", "ep_a")));
}

#[tokio::test]
async fn pages_of_dead_letters_neither_repeat_nor_miss_one_though_all_share_a_millisecond() {
    let (_redis, owner, mut queries) = stage().await;
    let letters: Vec<_> = (0..450).map(|n| delivery(&format!("{}-0", n + 10), "ep_a", "pi_1", true)).collect();
    owner.settle(letters.iter().map(|one| bury(one, DeadReason::Expired)).collect(), Vec::new()).await;
    owner.settle(vec![bury(&delivery("9-0", "ep_b", "pi_1", true), DeadReason::Gone)], Vec::new()).await;

    for order in [DeadOrder::OldestFirst, DeadOrder::NewestFirst] {
        let (mut seen, mut after) = (std::collections::BTreeSet::new(), None);
        loop {
            let page = queries.dead(&EVER, order, after.as_ref(), 60).await.unwrap();
            for letter in page.letters {
                assert!(letter.letter.is_ok());
                assert!(seen.insert(letter.id.clone()), "{} came twice", letter.id);
                // Letters that leave on the way hide none behind them.
                if order == DeadOrder::NewestFirst {
                    owner.settle(vec![Item::Discard { id: letter.id }], Vec::new()).await;
                }
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(seen.len(), 451);
    }
    assert_eq!(queries.count_dead(&EVER).await.unwrap(), 0);
}

#[tokio::test]
async fn the_attempt_log_says_how_far_it_was_read_and_whether_it_was_cut() {
    let (redis, owner, mut queries) = stage().await;
    let empty = queries.attempts(&LogFilter::default(), 10, 10).await.unwrap();
    assert_eq!((empty.back_to_ms, empty.was_cut, empty.reached_end), (None, false, true));

    let lines = |n: u64| log_line(&delivery(&format!("{n}-0"), "ep_a", "pi_1", true), r#""kind":"gone""#);
    owner.settle(Vec::new(), (1..=300).map(lines).collect()).await;
    owner.settle(Vec::new(), (301..=600).map(lines).collect()).await;
    let filter = LogFilter { delivery: Some(id("7-0", "ep_a")), ..LogFilter::default() };
    let found = queries.attempts(&filter, 10, 10_000).await.unwrap();
    assert_eq!((found.lines.len(), found.looked, found.reached_end, found.was_cut), (1, 600, true, false));
    let near = queries.attempts(&filter, 10, 100).await.unwrap();
    assert_eq!((near.lines.len(), near.looked, near.reached_end), (0, 100, false));

    redis.command::<u64>(&["XTRIM", &keys().attempts(), "MAXLEN", "1"]).await;
    assert!(queries.attempts(&filter, 10, 10_000).await.unwrap().was_cut);
}

#[tokio::test]
async fn an_entry_without_a_record_is_waiting_in_flight_or_settled() {
    let (redis, owner, mut queries) = stage().await;
    let body = event("evt_1", "acc_1", "pi_1").body().clone();
    let body = std::str::from_utf8(&body).unwrap();
    let entry: String = redis.command(&["XADD", "payment-intents", "*", "event", body]).await;
    let entry = entry.parse().unwrap();
    assert_eq!(queries.entry_standing(entry).await.unwrap(), EntryStanding::Waiting);
    owner.call(Call::Read { term: owner.term.clone(), from: ReadFrom::New, max: 10 }).await;
    assert!(matches!(queries.entry_standing(entry).await.unwrap(), EntryStanding::InFlight { .. }));
    assert_eq!(queries.pending(0, 10).await.unwrap()[0].entry, entry);
    redis.command::<u64>(&["XACK", "payment-intents", "herald", &entry.to_string()]).await;
    assert_eq!(queries.entry_standing(entry).await.unwrap(), EntryStanding::Settled);
}

#[tokio::test]
async fn the_quarantine_is_listed_page_by_page_and_found_by_entry() {
    let (_redis, owner, mut queries) = stage().await;
    let items = (1..=5).map(|n| Item::Quarantine {
        entry: format!("{n}-0").parse().unwrap(),
        body: vec![0xff; 10].into(),
        cut: n == 2,
        error: format!("wrong {n}"),
        envelope: Default::default(),
        keep_bytes: Some(1 << 20),
    });
    owner.settle(items.collect(), Vec::new()).await;
    let (first, next) = queries.quarantine(None, 3).await.unwrap();
    let (rest, end) = queries.quarantine(next, 3).await.unwrap();
    assert_eq!((first.len(), rest.len(), end), (3, 2, None));
    let second = queries.quarantined("2-0".parse().unwrap()).await.unwrap().unwrap();
    assert!(second.cut && second.error == "wrong 2" && second.body.len() < MAX_EVENT_BYTES);
    assert_eq!(queries.quarantined("9-0".parse().unwrap()).await.unwrap(), None);
}
