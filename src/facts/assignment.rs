//! Which worker should own which partition: decided by each worker for itself, and the same everywhere, because it depends on nothing
//! but the names and weights of those that are there. Rendezvous hashing says whom a stream prefers; a limit for each worker keeps
//! the load even. When a worker comes or goes, hardly more streams move than must.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

/// A worker that may own partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub id: String,
    /// Of this many parts of the streams; 0 owns none while others are there.
    pub weight: u32,
}

/// How much a stream prefers a worker: the first eight bytes of SHA-256(`STREAM|WORKER`), big end first.
pub fn preference(stream: &str, worker: &str) -> u64 {
    let digest = Sha256::new().chain_update(stream).chain_update("|").chain_update(worker).finalize();
    let first: [u8; 8] = std::array::from_fn(|at| digest[at]);
    u64::from_be_bytes(first)
}

/// The owner of each stream, by its place among the workers. None is empty unless there is nobody. Names that come twice count once.
pub fn assign<'a>(streams: &[&'a str], workers: &[Candidate]) -> BTreeMap<&'a str, usize> {
    let mut owners = BTreeMap::new();
    let weights: u64 = workers.iter().map(|worker| u64::from(worker.weight)).sum();
    if weights == 0 {
        return owners;
    }
    let mut streams = streams.to_vec();
    streams.sort_unstable();
    streams.dedup();
    let all = streams.len() as u64;
    let shares: Vec<u64> = workers.iter().map(|worker| all * u64::from(worker.weight) / weights).collect();
    let mut odd = all - shares.iter().sum::<u64>();
    let mut pairs: Vec<(u64, &str, usize)> = Vec::with_capacity(streams.len() * workers.len());
    for stream in &streams {
        let liked = workers.iter().enumerate().filter(|(_, worker)| worker.weight > 0);
        pairs.extend(liked.map(|(at, worker)| (preference(stream, &worker.id), *stream, at)));
    }
    // Where two are preferred alike, their names decide: everybody must come to the same.
    pairs.sort_unstable_by(|one, other| {
        let names = |pair: &(u64, &str, usize)| (pair.1.to_owned(), workers[pair.2].id.clone());
        other.0.cmp(&one.0).then_with(|| names(one).cmp(&names(other)))
    });
    let mut owned = vec![0; workers.len()];
    for (_, stream, worker) in pairs {
        if owners.contains_key(stream) {
            continue;
        }
        let has_share = owned[worker] < shares[worker];
        if has_share || (odd > 0 && owned[worker] == shares[worker]) {
            odd -= u64::from(!has_share);
            owned[worker] += 1;
            owners.insert(stream, worker);
        }
    }
    owners
}

/// How many of these workers a stream prefers to this one.
pub fn rank(stream: &str, worker: &str, workers: &[Candidate]) -> usize {
    let own = preference(stream, worker);
    workers.iter().filter(|other| other.id != worker && preference(stream, &other.id) > own).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workers(ids: std::ops::Range<u32>) -> Vec<Candidate> {
        ids.map(|id| Candidate { id: format!("worker-{id}"), weight: 1 }).collect()
    }

    fn streams(count: u32) -> Vec<String> {
        (0..count).map(|part| format!("payment-intents:{part}")).collect()
    }

    fn owners(streams: &[String], workers: &[Candidate]) -> BTreeMap<String, String> {
        let names: Vec<&str> = streams.iter().map(String::as_str).collect();
        let assigned = assign(&names, workers);
        assigned.into_iter().map(|(stream, worker)| (stream.to_owned(), workers[worker].id.clone())).collect()
    }

    fn loads(owners: &BTreeMap<String, String>) -> BTreeMap<&str, u32> {
        let mut loads = BTreeMap::new();
        owners.values().for_each(|worker| *loads.entry(worker.as_str()).or_insert(0) += 1);
        loads
    }

    fn moved(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> usize {
        before.iter().filter(|(stream, worker)| after[*stream] != **worker).count()
    }

    #[test]
    fn the_published_preference_holds() {
        // `printf 'payment-intents:6|worker-1' | sha256sum | cut -c1-16`
        assert_eq!(preference("payment-intents:6", "worker-1"), 0xc25d_1257_dece_516b);
    }

    #[test]
    fn loads_are_within_one_of_equal_and_every_stream_has_an_owner() {
        for (count, ids) in [(1, 3), (64, 1), (65, 4), (256, 7), (1_025, 8), (3, 8)] {
            let owners = owners(&streams(count), &workers(0..ids));
            assert_eq!(owners.len(), count as usize);
            let loads = loads(&owners);
            let least = count / ids;
            assert!(loads.values().all(|load| (least..=least + 1).contains(load)), "{count} on {ids}: {loads:?}");
        }
    }

    #[test]
    fn everybody_comes_to_the_same_whatever_the_order_in_which_it_hears() {
        let (mut streams, mut workers) = (streams(64), workers(0..5));
        let before = owners(&streams, &workers);
        streams.reverse();
        workers.reverse();
        streams.push(streams[0].clone());
        assert_eq!(owners(&streams, &workers), before);
    }

    #[test]
    fn who_comes_or_goes_moves_hardly_more_than_its_share() {
        let streams = streams(256);
        for ids in [2u32, 4, 8] {
            let (few, more) = (owners(&streams, &workers(0..ids)), owners(&streams, &workers(0..ids + 1)));
            // At most one and a half times what must move, 1/N of all.
            let most = 256 * 3 / 2 / (ids as usize + 1);
            assert!(moved(&few, &more) <= most, "{ids} and one more: {} of {most}", moved(&few, &more));
            assert!(moved(&more, &few) <= most, "{ids} after one has gone");
        }
    }

    #[test]
    fn a_weight_is_a_share() {
        let heavy = |weight, id: &str| Candidate { id: id.to_owned(), weight };
        let owners = owners(&streams(64), &[heavy(3, "a"), heavy(1, "b"), heavy(0, "c")]);
        assert_eq!(loads(&owners), [("a", 48), ("b", 16)].into_iter().collect());
        assert!(assign(&["s"], &[heavy(0, "c")]).is_empty());
        assert!(assign(&["s"], &[]).is_empty());
    }

    #[test]
    fn ranks_follow_the_preference() {
        let workers = workers(0..5);
        let mut ranks: Vec<usize> = workers.iter().map(|worker| rank("s", &worker.id, &workers)).collect();
        ranks.sort_unstable();
        assert_eq!(ranks, [0, 1, 2, 3, 4]);
    }
}
