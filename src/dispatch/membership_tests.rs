//! Workers that share streams, in virtual time: their leases and reservations, who hears of whom, and who dies, pauses, joins, leaves or
//! is cut off. The lease is what Redis makes of it; everything else is the real thing.

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};

use super::*;

const LEASE_MS: u64 = 5_000;
const TICK_MS: u64 = 10;

/// How long an owner takes to settle what it has in flight.
const DRAIN_MS: u64 = 150;

#[derive(Default)]
struct Slot {
    owner: Option<(String, u64)>,
    next: Option<(String, u64)>,
    /// Since when nobody has owned it.
    free_since: u64,
    longest_free: u64,
    owners: Vec<String>,
}

impl Slot {
    fn owner(&self, now: u64) -> Option<&str> {
        self.owner.as_ref().filter(|(_, until)| now < *until).map(|(owner, _)| owner.as_str())
    }

    fn next(&self, now: u64) -> Option<&str> {
        self.next.as_ref().filter(|(_, until)| now < *until).map(|(next, _)| next.as_str())
    }
}

struct Work {
    doing: Doing,
    renew_at: u64,
    drained_at: u64,
    acquire_at: u64,
}

struct Worker {
    membership: Membership,
    is_up: bool,
    paused_until: u64,
    beat_at: u64,
    work: BTreeMap<String, Work>,
    most_given: usize,
}

struct World {
    now: u64,
    rng: StdRng,
    streams: Vec<String>,
    slots: BTreeMap<String, Slot>,
    rows: BTreeMap<String, (u64, Member)>,
    workers: BTreeMap<String, Worker>,
    is_registry_away: bool,
    answers_lost: f64,
}

impl World {
    fn new(seed: u64, parts: u32, workers: u32) -> Self {
        let streams: Vec<String> =
            std::iter::once("s".to_owned()).chain((0..parts).map(|part| format!("s:{part}"))).collect();
        let mut world = Self {
            now: 1_000,
            rng: StdRng::seed_from_u64(seed),
            slots: streams.iter().map(|stream| (stream.clone(), Slot::default())).collect(),
            streams,
            rows: BTreeMap::new(),
            workers: BTreeMap::new(),
            is_registry_away: false,
            answers_lost: 0.0,
        };
        (0..workers).for_each(|worker| world.join(worker));
        world
    }

    fn join(&mut self, worker: u32) {
        let id = format!("worker-{worker}");
        let settings = Settings { id: id.clone(), weight: 1, lease_ms: LEASE_MS };
        let worker = Worker {
            membership: Membership::new(settings),
            is_up: true,
            paused_until: 0,
            beat_at: self.now,
            work: BTreeMap::new(),
            most_given: 0,
        };
        self.workers.insert(id, worker);
    }

    fn worker(&mut self, worker: u32) -> &mut Worker {
        self.workers.get_mut(&format!("worker-{worker}")).unwrap()
    }

    fn kill(&mut self, worker: u32) {
        self.worker(worker).is_up = false;
    }

    fn run(&mut self, ms: u64) {
        let until = self.now + ms;
        while self.now < until {
            let mut ids: Vec<String> = self.workers.keys().cloned().collect();
            let turn = self.rng.random_range(0..ids.len().max(1));
            ids.rotate_left(turn);
            for id in ids {
                let mut worker = self.workers.remove(&id).unwrap();
                if worker.is_up && self.now >= worker.paused_until {
                    self.turn(&id, &mut worker);
                }
                self.workers.insert(id, worker);
            }
            for slot in self.slots.values_mut() {
                if slot.owner(self.now).is_some() {
                    slot.free_since = self.now;
                } else {
                    slot.longest_free = slot.longest_free.max(self.now - slot.free_since);
                }
            }
            self.now += TICK_MS;
        }
    }

    fn turn(&mut self, id: &str, worker: &mut Worker) {
        let now = self.now;
        self.carry_on(id, worker);
        if now >= worker.beat_at && !self.is_registry_away {
            let owned: BTreeSet<String> = worker.membership.owned().map(str::to_owned).collect();
            let is_draining = worker.membership.is_leaving();
            let row = Member { id: id.to_owned(), weight: 1, is_draining, is_whole: true, owned };
            self.rows.insert(id.to_owned(), (now, row));
            self.rows.retain(|_, (at, _)| now < *at + LEASE_MS);
            let others = self.rows.iter().filter(|(other, _)| *other != id).map(|(_, (_, member))| member.clone());
            worker.membership.heard(now, true, others.collect(), self.streams.clone());
            let dies_first = self.rows.values().map(|(at, _)| at + LEASE_MS).min().unwrap_or(u64::MAX);
            let again = worker.membership.hears_again_ms() * self.rng.random_range(80..120) / 100;
            worker.beat_at = (now + again).min(dies_first);
        }
        for ask in worker.membership.step(now) {
            let told = if self.rng.random_bool(self.answers_lost) { Told::Failed } else { self.answer(id, &ask) };
            worker.membership.told(now, &ask, told);
        }
        let runs = worker.membership.runs().clone();
        for stream in &runs {
            let begun = || Work { doing: Doing::Waiting, renew_at: 0, drained_at: 0, acquire_at: now };
            worker.work.entry(stream.clone()).or_insert_with(begun);
        }
        worker.work.retain(|stream, work| runs.contains(stream) || work.doing != Doing::Waiting);
        for (stream, work) in &mut worker.work {
            if !runs.contains(stream) && work.doing == Doing::Owned {
                (work.doing, work.drained_at) = (Doing::Stopping, now + DRAIN_MS);
            }
        }
        let giving = worker.work.values().filter(|work| work.doing == Doing::Stopping).count();
        worker.most_given = worker.most_given.max(giving);
        worker.membership.does(now, worker.work.iter().map(|(stream, work)| (stream.clone(), work.doing)).collect());
    }

    /// What the workers of the streams do.
    fn carry_on(&mut self, id: &str, worker: &mut Worker) {
        let now = self.now;
        let mut gone = Vec::new();
        for (stream, work) in &mut worker.work {
            let slot = self.slots.get_mut(stream).unwrap();
            let is_mine = slot.owner(now) == Some(id);
            match work.doing {
                Doing::Waiting if now >= work.acquire_at => {
                    work.acquire_at = now + 50;
                    let is_reserved = slot.next(now).is_some_and(|next| next != id);
                    if slot.owner(now).is_none() && !is_reserved {
                        slot.owner = Some((id.to_owned(), now + LEASE_MS));
                        slot.next = None;
                        slot.owners.push(id.to_owned());
                        (work.doing, work.renew_at) = (Doing::Owned, now + LEASE_MS / 4);
                    }
                }
                Doing::Waiting => {}
                Doing::Owned | Doing::Stopping if !is_mine => work.doing = Doing::Waiting,
                Doing::Stopping if now >= work.drained_at => {
                    slot.owner = None;
                    gone.push(stream.clone());
                }
                Doing::Owned | Doing::Stopping if now >= work.renew_at => {
                    slot.owner = Some((id.to_owned(), now + LEASE_MS));
                    work.renew_at = now + LEASE_MS / 4;
                    let next = slot.next(now).map(str::to_owned);
                    worker.membership.asked(now, stream, next.as_deref());
                }
                Doing::Owned | Doing::Stopping => {}
            }
        }
        worker.work.retain(|stream, _| !gone.contains(stream));
    }

    fn answer(&mut self, id: &str, ask: &Ask) -> Told {
        let now = self.now;
        let slot = self.slots.get_mut(ask.stream()).unwrap();
        let asked_by = slot.next(now).map(str::to_owned);
        match ask {
            Ask::Look(_) if slot.owner(now).is_none() => Told::Free,
            Ask::Look(_) => Told::Owned { owner: slot.owner(now).unwrap().to_owned(), asked_by },
            Ask::Want(_) if asked_by.as_deref().is_some_and(|by| by != id) => Told::Busy,
            Ask::Want(_) if slot.owner(now).is_none() => Told::Free,
            Ask::Want(_) => {
                slot.next = Some((id.to_owned(), now + WANT_HOLDS_MS));
                Told::Owned { owner: slot.owner(now).unwrap().to_owned(), asked_by }
            }
        }
    }

    fn loads(&self) -> BTreeMap<String, usize> {
        let mut loads = BTreeMap::new();
        for slot in self.slots.values() {
            *loads.entry(slot.owner(self.now).unwrap_or("nobody").to_owned()).or_insert(0) += 1;
        }
        loads
    }

    /// How many streams were given and how many were taken over, since this was last asked.
    fn came(&mut self) -> (usize, usize) {
        let all = self.workers.values_mut().flat_map(|worker| worker.membership.take_came());
        let (given, taken): (Vec<Came>, Vec<Came>) = all.partition(|came| *came == Came::Given);
        (given.len(), taken.len())
    }

    fn owners(&self) -> BTreeMap<String, Option<String>> {
        let owner = |slot: &Slot| slot.owner(self.now).map(str::to_owned);
        self.slots.iter().map(|(stream, slot)| (stream.clone(), owner(slot))).collect()
    }

    fn forget(&mut self) {
        self.slots.values_mut().for_each(|slot| (slot.longest_free, slot.owners) = (0, Vec::new()));
    }

    fn longest_free(&self) -> u64 {
        self.slots.values().map(|slot| slot.longest_free).max().unwrap()
    }

    /// Every stream has an owner, and of these workers none has more than one stream more than another.
    fn is_even_among(&self, workers: &[u32]) -> bool {
        let ids: Vec<String> = workers.iter().map(|worker| format!("worker-{worker}")).collect();
        let loads = self.loads();
        let of = |id: &String| loads.get(id).copied().unwrap_or(0);
        let (least, most) = (ids.iter().map(of).min().unwrap(), ids.iter().map(of).max().unwrap());
        most - least <= 1 && ids.iter().map(of).sum::<usize>() == self.slots.len()
    }
}

#[test]
fn the_only_stream_is_waited_for_by_everybody() {
    let mut world = World::new(1, 0, 3);
    world.run(1_000);
    assert!(world.workers.values().all(|worker| worker.membership.runs().len() == 1));
    let owner = world.slots["s"].owner(world.now).unwrap().to_owned();
    world.workers.get_mut(&owner).unwrap().is_up = false;
    world.forget();
    world.run(LEASE_MS + 500);
    assert!(world.slots["s"].owner(world.now).is_some_and(|now| now != owner));
    assert!(world.longest_free() <= 100, "{}", world.longest_free());
}

#[test]
fn whoever_is_alone_has_everything_within_a_heartbeat() {
    let mut world = World::new(1, 64, 1);
    world.run(LEASE_MS / 3 + 1_000);
    assert!(world.is_even_among(&[0]), "{:?}", world.loads());
}

#[test]
fn all_that_start_together_take_each_stream_once() {
    let mut world = World::new(1, 64, 4);
    world.run(10_000);
    assert!(world.is_even_among(&[0, 1, 2, 3]), "{:?}", world.loads());
    assert!(world.slots.values().all(|slot| slot.owners.len() == 1));
    assert_eq!(world.came(), (0, 65));
}

#[test]
fn who_joins_gets_its_share_without_a_gap_and_moves_no_more_than_that() {
    for (before, seed) in [(1u32, 3), (4, 4), (7, 5)] {
        let mut world = World::new(seed, 64, before);
        world.run(10_000);
        let owners = world.owners();
        world.forget();
        world.came();
        world.join(before);
        world.run(60_000);
        assert!(world.is_even_among(&(0..=before).collect::<Vec<_>>()), "{:?}", world.loads());
        let moved = world.owners().iter().filter(|(stream, owner)| owners[*stream] != **owner).count();
        assert!(moved <= 65 * 3 / 2 / (before as usize + 1) + 1, "{moved} moved");
        assert!(world.longest_free() <= 100, "{} ms without an owner", world.longest_free());
        assert!(world.workers.values().all(|worker| worker.most_given <= AT_A_TIME));
        assert!(world.slots.values().all(|slot| slot.owners.len() <= 1), "a stream moved twice");
        assert_eq!(world.came(), (moved, 0));
        assert!(world.workers.values().all(|worker| worker.membership.orphans().next().is_none()));
    }
}

#[test]
fn who_leaves_gives_everything_away_without_a_gap() {
    let mut world = World::new(7, 64, 4);
    world.run(10_000);
    world.forget();
    world.came();
    let had = world.loads()["worker-2"];
    let now = world.now;
    world.worker(2).membership.leave(now);
    world.worker(2).beat_at = now;
    world.run(30_000);
    assert!(world.worker(2).membership.has_left());
    assert!(world.is_even_among(&[0, 1, 3]), "{:?}", world.loads());
    assert!(world.longest_free() <= 100, "{}", world.longest_free());
    let (given, taken) = world.came();
    assert!(given >= had && taken == 0, "{given} given and {taken} taken over of {had}");
}

/// It has no time for more: what it lets go of in the end was given all the same, although its row is gone when others have it.
#[test]
fn what_a_worker_that_leaves_lets_go_of_in_the_end_was_given() {
    for (is_draining, came) in [(true, Came::Given), (false, Came::TakenOver)] {
        let streams: Vec<String> = ["s", "s:0", "s:1"].map(str::to_owned).to_vec();
        let owned = streams.iter().cloned().collect();
        let other = Member { id: "other".to_owned(), weight: 1, is_draining, is_whole: true, owned };
        let mut membership = Membership::new(Settings { id: "this".to_owned(), weight: 1, lease_ms: LEASE_MS });
        membership.heard(0, true, vec![Member { is_draining: false, ..other.clone() }], streams.clone());
        membership.heard(LEASE_MS / 3, true, vec![other], streams.clone());
        membership.heard(LEASE_MS * 2 / 3, true, Vec::new(), streams.clone());
        membership.does(LEASE_MS, BTreeMap::from([("s:1".to_owned(), Doing::Owned)]));
        membership.heard(LEASE_MS, true, Vec::new(), streams.clone());
        assert_eq!(membership.take_came(), [came], "it was leaving: {is_draining}");
    }
}

/// Started again under its name, it leaves no more.
#[test]
fn what_a_worker_had_that_came_back_and_died_was_not_given() {
    let streams: Vec<String> = ["s", "s:0", "s:1"].map(str::to_owned).to_vec();
    let owned = streams.iter().cloned().collect();
    let back = Member { id: "other".to_owned(), weight: 1, is_draining: false, is_whole: true, owned };
    let mut membership = Membership::new(Settings { id: "this".to_owned(), weight: 1, lease_ms: LEASE_MS });
    membership.heard(0, true, vec![back.clone()], streams.clone());
    membership.heard(LEASE_MS / 3, true, vec![Member { is_draining: true, ..back.clone() }], streams.clone());
    membership.heard(LEASE_MS / 2, true, vec![back], streams.clone());
    membership.heard(LEASE_MS, true, Vec::new(), streams.clone());
    membership.heard(LEASE_MS * 4 / 3, true, Vec::new(), streams.clone());
    membership.does(LEASE_MS * 4 / 3, BTreeMap::from([("s:1".to_owned(), Doing::Owned)]));
    membership.heard(LEASE_MS * 5 / 3, true, Vec::new(), streams);
    assert_eq!(membership.take_came(), [Came::TakenOver]);
}

#[test]
fn the_last_one_need_not_wait_for_anybody() {
    let mut world = World::new(7, 8, 1);
    world.run(10_000);
    let now = world.now;
    world.worker(0).membership.leave(now);
    assert!(world.worker(0).membership.has_left());
}

#[test]
fn what_a_dead_one_had_is_taken_as_its_leases_end() {
    let mut world = World::new(9, 64, 4);
    world.run(10_000);
    let had = world.loads()["worker-1"];
    world.kill(1);
    world.forget();
    world.came();
    // As soon as each has an owner, those that are left even their load out.
    world.run(60_000);
    assert!(world.is_even_among(&[0, 2, 3]), "{:?}", world.loads());
    assert!(world.longest_free() <= 500, "{} ms after the end of a lease", world.longest_free());
    assert_eq!(world.came().1, had);
}

/// As soon as it is known to have died: a lease that ends before that could have been given.
#[test]
fn what_was_asked_of_one_that_died_over_it_was_not_given() {
    let mut taken = 0;
    for seed in 0..6 {
        let mut world = World::new(seed, 16, 1);
        world.run(10_000);
        world.came();
        world.join(1);
        while world.worker(1).membership.coming.values().filter(|coming| coming.is_anothers).count() < AT_A_TIME {
            world.run(TICK_MS);
        }
        let given = world.loads().get("worker-1").copied().unwrap_or(0);
        world.kill(0);
        world.run(20_000);
        let came = world.came();
        assert_eq!(came.0 + came.1, 17, "each came once: {came:?}");
        assert!((given..=given + AT_A_TIME).contains(&came.0), "{came:?}, and {given} while it lived");
        taken += usize::from(came.0 == given);
    }
    assert!(taken > 0, "all of them count as given");
}

#[test]
fn what_a_worker_lost_and_has_again_did_not_change_hands() {
    let mut world = World::new(9, 16, 2);
    world.run(10_000);
    world.came();
    let (_, worker) = world.workers.first_key_value().unwrap();
    let own: Vec<String> = worker.membership.owned().map(str::to_owned).collect();
    // Its node forgets the lease.
    own.iter().for_each(|stream| world.slots.get_mut(stream).unwrap().owner = None);
    world.run(10_000);
    assert!(world.is_even_among(&[0, 1]), "{:?}", world.loads());
    assert_eq!(world.came(), (0, 0));
}

/// Who was asked for is not who should have it any more, once the dead one is back.
#[test]
fn who_comes_back_at_once_keeps_nobody_waiting() {
    for seed in 0..8 {
        let mut world = World::new(seed, 64, 4);
        world.run(10_000);
        world.kill(1);
        world.forget();
        // Some have heard of the death, and asked; not all leases have ended.
        world.run(LEASE_MS - 300 - 100 * seed);
        world.join(1);
        world.run(60_000);
        assert!(world.is_even_among(&[0, 1, 2, 3]), "{:?}", world.loads());
        assert!(world.longest_free() <= 1_000, "seed {seed}: {} ms after the end of a lease", world.longest_free());
    }
}

#[test]
fn without_the_registry_leases_go_on_and_what_a_dead_one_had_is_still_taken() {
    let mut world = World::new(11, 16, 3);
    world.run(10_000);
    let owners = world.owners();
    world.is_registry_away = true;
    world.run(30_000);
    assert_eq!(world.owners(), owners, "nobody moves anything");
    world.kill(0);
    world.run(LEASE_MS + BLIND_LOOK_EVERY_MS + 3 * LEASE_MS);
    assert!(!world.loads().contains_key("nobody"), "{:?}", world.loads());
    world.is_registry_away = false;
    world.run(60_000);
    assert!(world.is_even_among(&[1, 2]), "{:?}", world.loads());
}

/// Each finds the rows of the others gone, and comes back at a time of its own.
#[test]
fn when_the_registry_comes_back_nobody_is_taken_for_dead() {
    for seed in 0..20 {
        let mut world = World::new(seed, 12, 3);
        world.run(10_000);
        let owners = world.owners();
        world.forget();
        world.is_registry_away = true;
        world.run(LEASE_MS * 2 / 3 + seed * LEASE_MS / 10);
        world.is_registry_away = false;
        for worker in 0..3 {
            let late = world.rng.random_range(0..LEASE_MS / 3);
            world.worker(worker).beat_at = world.now + late;
        }
        world.run(20_000);
        assert_eq!(world.owners(), owners, "seed {seed}");
        assert!(world.slots.values().all(|slot| slot.owners.is_empty()), "seed {seed}: something has moved");
    }
}

#[test]
fn what_its_worker_cannot_take_is_taken_by_another() {
    let mut world = World::new(13, 8, 3);
    world.run(10_000);
    // It lives, and none of its calls to the streams comes through.
    let stuck = world.worker(0).membership.owned().map(str::to_owned).collect::<Vec<_>>();
    world.worker(0).work.clear();
    for stream in &stuck {
        world.slots.get_mut(stream).unwrap().owner = None;
    }
    let beats = world.rows["worker-0"].1.clone();
    world.kill(0);
    for _ in 0..40 {
        let row = Member { owned: BTreeSet::new(), ..beats.clone() };
        let now = world.now;
        world.rows.insert("worker-0".to_owned(), (now, row));
        world.run(1_000);
    }
    assert!(!world.loads().contains_key("nobody"), "{:?}", world.loads());
}

#[test]
fn whoever_lacks_a_key_owns_nothing_while_somebody_does_not() {
    let settings = |id: &str| Settings { id: id.to_owned(), weight: 1, lease_ms: LEASE_MS };
    let streams = || vec!["s".to_owned(), "s:0".to_owned(), "s:1".to_owned()];
    let other =
        |is_whole| Member { id: "b".to_owned(), weight: 1, is_draining: false, is_whole, owned: BTreeSet::new() };
    let mut membership = Membership::new(settings("a"));
    membership.heard(0, false, vec![other(true)], streams());
    membership.heard(2_000, false, vec![other(true)], streams());
    assert!(membership.step(2_000).is_empty());
    membership.heard(4_000, false, vec![other(false)], streams());
    membership.heard(6_000, false, vec![other(false)], streams());
    assert!(!membership.step(6_000).is_empty(), "each lacks something: somebody must work");
}

/// Whatever happens, every stream is owned, and the load even, once there was peace for a while.
#[test]
fn after_any_storm_the_load_is_even_and_nobody_waits() {
    for seed in 0..8 {
        let mut world = World::new(seed, 24, 3);
        world.run(5_000);
        let mut next = 3;
        for _ in 0..8 {
            let ids: Vec<u32> = (0..next).filter(|id| world.workers[&format!("worker-{id}")].is_up).collect();
            let id = ids[world.rng.random_range(0..ids.len())];
            let now = world.now;
            match world.rng.next_u32() % 6 {
                0 if ids.len() > 1 => world.kill(id),
                1 => world.worker(id).paused_until = now + 9_000,
                2 if ids.len() > 2 => world.worker(id).membership.leave(now),
                3 => world.is_registry_away = !world.is_registry_away,
                4 => world.answers_lost = 0.3,
                _ => {
                    world.join(next);
                    next += 1;
                }
            }
            let ms = world.rng.random_range(200..8_000);
            world.run(ms);
        }
        world.is_registry_away = false;
        world.answers_lost = 0.0;
        world.run(10_000);
        for worker in world.workers.values_mut().filter(|worker| worker.membership.is_leaving()) {
            worker.is_up = false;
        }
        // A lease and three heartbeats later each has an owner, or is changing hands.
        world.run(2 * LEASE_MS);
        let is_owned = |slot: &Slot| slot.owner(world.now).is_some() || world.now < slot.free_since + 200;
        let any_up = world.workers.values().any(|worker| worker.is_up);
        assert!(!any_up || world.slots.values().all(is_owned), "seed {seed}: {:?}", world.loads());
        world.run(90_000);
        let ids: Vec<u32> = (0..next).filter(|id| world.workers[&format!("worker-{id}")].is_up).collect();
        assert!(ids.is_empty() || world.is_even_among(&ids), "seed {seed}: {:?}", world.loads());
        world.forget();
        world.run(30_000);
        assert!(world.slots.values().all(|slot| slot.owners.is_empty()), "seed {seed}: a stream moved in peace");
    }
}
