//! Resolves receivers' names. Never asked for IP literals, and never judges an address: each one is checked before it is
//! connected to, so a name that changes its answer gains nothing.
//!
//! The system is asked (`getaddrinfo`: its hosts file, its name servers, its order of addresses), which blocks a thread of
//! the runtime's pool for as long as it takes, even after the caller has given up. So there is one look-up per name at a
//! time, shared by all who wait for it. Names of one domain, and those that one account asks for, may only take a part of
//! the places. A name that has been resolved goes on with its last good addresses while its name servers are silent or fail
//! (RFC 8767).

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use dns_lookup::{LookupError, LookupErrorKind};
use foldhash::HashMap;
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};

use crate::{clock, facts::id::AccountId};

/// Most look-ups under way: tokio's pool has 512 threads, and nothing else on a thread of attempts blocks.
const MAX_LOOKUPS: usize = 480;

/// Look-ups may be as many as this part of the connections: each has a socket and a thread, even after its caller has given
/// up and left its place to another.
const PART_OF_CONNECTIONS: usize = 4;

/// The part of the look-ups within one domain, and for one account: one in this many, so that one whose name servers hang
/// leaves the others their places. A platform's shops resolve in milliseconds each.
const PART_OF_ONE: usize = 4;

/// How long an answer is good without asking again: requests that need connections come in bursts. The system does not say
/// how long its answer is valid, and few are valid for less.
const FRESH: Duration = Duration::from_secs(5);

/// How long the last good addresses serve while the name servers are silent or fail. A receiver that moves keeps its old
/// address for a while, and TLS says who answers there.
const STALE: Duration = Duration::from_secs(3600);

/// How long they serve when the look-up fails here, for want of a place or a descriptor: nobody has said anything against
/// them, and a receiver that moves leaves the old address working for a day. Whoever has it then is checked like any other.
const STALE_WHEN_BUSY: Duration = Duration::from_secs(24 * 3600);

/// How long a request waits for a new answer while there is an old one. Most look-ups that work take less.
const PATIENCE: Duration = Duration::from_millis(500);

/// Names whose last addresses are kept, at some 200 bytes each.
const MAX_KNOWN: usize = 16_384;

/// A look-up that fails for a reason that may pass, after at least this long, failed because of silence: the system's
/// resolver waits 5 s for each answer.
const SILENCE: Duration = Duration::from_secs(4);

/// A name that could not be resolved; a type of its own, so that nobody has to read an error's text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ResolveError {
    #[error("{name} does not exist (NXDOMAIN): check its spelling and its zone")]
    NoSuchName { name: String },
    #[error("{name} exists and has no address: it needs an A or AAAA record")]
    NoAddress { name: String },
    #[error("{name} cannot be resolved: its name servers fail or refuse (SERVFAIL)")]
    Failing { name: String },
    #[error("{name} cannot be resolved: no name server answers")]
    Silent { name: String },
    #[error("{name} was not looked up, as Herald has nothing left to ask with: {reason}")]
    Short { name: String, reason: String },
    #[error("{name} cannot be resolved: {reason}")]
    Other { name: String, reason: String },
    #[error("{name} was not looked up: too many other names are being looked up and do not answer")]
    Busy { name: String },
}

impl ResolveError {
    /// Nobody was asked, so it says nothing about the name.
    pub(super) fn is_busy(&self) -> bool {
        matches!(self, Self::Busy { .. } | Self::Short { .. })
    }

    /// The name's zone has answered; otherwise what was true before may still be true.
    fn is_answer(&self) -> bool {
        match self {
            Self::NoSuchName { .. } | Self::NoAddress { .. } => true,
            Self::Failing { .. }
            | Self::Silent { .. }
            | Self::Short { .. }
            | Self::Other { .. }
            | Self::Busy { .. } => false,
        }
    }
}

type Found = Result<Arc<[IpAddr]>, ResolveError>;
type Lookup = Shared<BoxFuture<'static, Found>>;

pub(super) struct Resolver {
    names: Arc<Mutex<Names>>,
}

struct Names {
    most: usize,
    under_way: HashMap<String, Lookup>,
    of_domain: Shares,
    of_account: Shares,
    known: HashMap<String, Known>,
}

/// How many look-ups each has under way.
struct Shares {
    most: usize,
    taken: HashMap<String, usize>,
}

impl Shares {
    fn has_room(&self, owner: &str) -> bool {
        self.taken.get(owner).is_none_or(|taken| *taken < self.most)
    }

    fn take(&mut self, owner: &str) {
        *self.taken.entry(owner.to_owned()).or_default() += 1;
    }

    fn give_back(&mut self, owner: &str) {
        let Some(taken) = self.taken.get_mut(owner) else { return };
        *taken -= 1;
        if *taken == 0 {
            self.taken.remove(owner);
        }
    }
}

#[derive(Clone)]
struct Known {
    addresses: Arc<[IpAddr]>,
    since: Instant,
}

impl Known {
    fn age(&self) -> Duration {
        clock::now().saturating_duration_since(self.since)
    }
}

impl Resolver {
    /// For a process that may have this many connections to receivers.
    pub(super) fn new(connections: usize) -> Self {
        let most = (connections / PART_OF_CONNECTIONS).clamp(PART_OF_ONE, MAX_LOOKUPS);
        let shares = || Shares { most: most / PART_OF_ONE, taken: HashMap::default() };
        let (under_way, known) = (HashMap::default(), HashMap::default());
        let names = Names { most, under_way, of_domain: shares(), of_account: shares(), known };
        Self { names: Arc::new(Mutex::new(names)) }
    }

    /// The addresses of a name, unchecked. A new look-up counts towards this account.
    pub(super) async fn resolve(&self, name: &str, account: &AccountId) -> Found {
        let (lookup, known) = {
            let mut names = lock(&self.names);
            let known = names.known.get(name).cloned();
            if let Some(known) = known.as_ref().filter(|known| known.age() < FRESH) {
                return Ok(Arc::clone(&known.addresses));
            }
            (self.lookup(&mut names, name, account), known)
        };
        let Some(known) = known else { return lookup.await };
        let age = known.age();
        if age >= STALE {
            let found = lookup.await;
            let is_busy = found.as_ref().is_err_and(ResolveError::is_busy);
            return if is_busy && age < STALE_WHEN_BUSY { Ok(known.addresses) } else { found };
        }
        match tokio::time::timeout(PATIENCE, lookup).await {
            Ok(Err(error)) if error.is_answer() => Err(error),
            Ok(Ok(addresses)) => Ok(addresses),
            Ok(Err(_)) | Err(_) => Ok(known.addresses),
        }
    }

    /// Joins the look-up of this name that is under way, or starts one.
    fn lookup(&self, names: &mut Names, name: &str, account: &AccountId) -> Lookup {
        if let Some(lookup) = names.under_way.get(name) {
            return lookup.clone();
        }
        if !names.take_place(domain(name), account) {
            let busy = ResolveError::Busy { name: name.to_owned() };
            return std::future::ready(Err(busy)).boxed().shared();
        }
        // A task of its own, which runs to its end whether or not anyone waits: the name's place is taken for as long as
        // the thread.
        let task = tokio::spawn(look_up(name.to_owned(), account.clone(), Arc::clone(&self.names)));
        let owner = name.to_owned();
        let lookup = async move {
            task.await.unwrap_or_else(|e| Err(ResolveError::Other { name: owner, reason: e.to_string() }))
        };
        let lookup = lookup.boxed().shared();
        names.under_way.insert(name.to_owned(), lookup.clone());
        lookup
    }
}

impl Names {
    fn take_place(&mut self, domain: &str, account: &AccountId) -> bool {
        let account = account.as_str();
        let is_free = self.under_way.len() < self.most;
        let has_room = is_free && self.of_domain.has_room(domain) && self.of_account.has_room(account);
        if has_room {
            self.of_domain.take(domain);
            self.of_account.take(account);
        }
        has_room
    }

    fn give_back(&mut self, name: &str, account: &AccountId) {
        self.under_way.remove(name);
        self.of_domain.give_back(domain(name));
        self.of_account.give_back(account.as_str());
    }

    fn learn(&mut self, name: &str, found: &Found, now: Instant) {
        match found {
            Ok(addresses) => {
                if self.known.len() >= MAX_KNOWN && !self.known.contains_key(name) {
                    // Any one will do: if it is needed again, it is asked for again.
                    if let Some(some) = self.known.keys().next().cloned() {
                        self.known.remove(&some);
                    }
                }
                self.known.insert(name.to_owned(), Known { addresses: Arc::clone(addresses), since: now });
            }
            Err(error) if error.is_answer() => drop(self.known.remove(name)),
            Err(_) => {}
        }
    }
}

/// The last two labels: nearly always they tell whose name servers are asked. Where they are a registry's (`co.uk`), its
/// names share a part, which they notice only if hundreds of them hang.
fn domain(name: &str) -> &str {
    let name = name.strip_suffix('.').unwrap_or(name);
    name.rmatch_indices('.').nth(1).map_or(name, |(at, _)| &name[at + 1..])
}

async fn look_up(name: String, account: AccountId, names: Arc<Mutex<Names>>) -> Found {
    let mut place = Taken { name: &name, account: &account, names: &names, found: None };
    let found = ask(&name).await;
    place.found = Some(found.clone());
    found
}

/// Gives the place back however the look-up ends.
struct Taken<'a> {
    name: &'a str,
    account: &'a AccountId,
    names: &'a Mutex<Names>,
    found: Option<Found>,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut names = lock(self.names);
        names.give_back(self.name, self.account);
        if let Some(found) = &self.found {
            names.learn(self.name, found, clock::now());
        }
    }
}

/// Asks the system, on a thread that may block.
pub(super) async fn ask(name: &str) -> Found {
    let (start, asked) = (clock::now(), name.to_owned());
    let answer = tokio::task::spawn_blocking(move || dns_lookup::lookup_host(&asked).map(Vec::from_iter)).await;
    match answer {
        Ok(Ok(found)) if found.is_empty() => Err(ResolveError::NoAddress { name: name.to_owned() }),
        Ok(Ok(found)) => Ok(found.into()),
        Ok(Err(error)) => Err(meaning(name, &error, start.elapsed())),
        Err(error) => Err(ResolveError::Other { name: name.to_owned(), reason: error.to_string() }),
    }
}

/// The system's codes tell the zone's answers from failures, but not a name server that refuses from one that is silent:
/// the time it took tells that.
fn meaning(name: &str, error: &LookupError, took: Duration) -> ResolveError {
    let name = name.to_owned();
    match error.kind() {
        LookupErrorKind::NoName => ResolveError::NoSuchName { name },
        LookupErrorKind::NoData => ResolveError::NoAddress { name },
        LookupErrorKind::Again if took >= SILENCE => ResolveError::Silent { name },
        LookupErrorKind::Again | LookupErrorKind::Fail => ResolveError::Failing { name },
        // No descriptor or memory left to ask with.
        LookupErrorKind::Memory | LookupErrorKind::System => ResolveError::Short { name, reason: error.to_string() },
        LookupErrorKind::Badflags
        | LookupErrorKind::Family
        | LookupErrorKind::Socktype
        | LookupErrorKind::Service
        | LookupErrorKind::Unknown
        | LookupErrorKind::IO => ResolveError::Other { name, reason: error.to_string() },
    }
}

/// The maps are whole at every step, so a panic elsewhere while they were locked has left nothing half done.
fn lock(names: &Mutex<Names>) -> MutexGuard<'_, Names> {
    names.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolver() -> Resolver {
        Resolver::new(usize::MAX)
    }

    fn account(number: usize) -> AccountId {
        AccountId::new(&format!("acc_{number}")).unwrap()
    }

    #[tokio::test]
    async fn those_who_ask_for_one_name_share_one_lookup_and_it_leaves_nothing_behind() {
        let resolver = resolver();
        let [first, second] = [(), ()].map(|()| resolver.lookup(&mut lock(&resolver.names), "localhost", &account(0)));
        assert!(first.ptr_eq(&second));
        first.await.unwrap();
        let names = lock(&resolver.names);
        assert!(names.under_way.is_empty() && names.of_domain.taken.is_empty() && names.of_account.taken.is_empty());
        assert!(names.known.contains_key("localhost"));
    }

    /// Look-ups that never end, like those of zones whose name servers hang; each for an account of its own.
    fn hang(resolver: &Resolver, names: impl Iterator<Item = String>) {
        let mut under_way = lock(&resolver.names);
        for (number, name) in names.enumerate() {
            assert!(under_way.take_place(domain(&name), &account(number)), "{name}");
            under_way.under_way.insert(name, std::future::pending().boxed().shared());
        }
    }

    #[tokio::test]
    async fn four_hundred_names_that_hang_leave_room_for_the_others_and_no_domain_takes_all() {
        let resolver = resolver();
        hang(&resolver, (0..MAX_LOOKUPS / PART_OF_ONE).map(|n| format!("shop-{n}.platform.example")));
        let busy = resolver.resolve("one-more.platform.example", &account(MAX_LOOKUPS)).await.unwrap_err();
        assert!(busy.is_busy(), "{busy}");
        hang(&resolver, (MAX_LOOKUPS / PART_OF_ONE..400).map(|n| format!("hook.shop-{n}.example")));
        assert!(resolver.resolve("localhost", &account(MAX_LOOKUPS)).await.is_ok());
    }

    #[tokio::test]
    async fn no_account_takes_all_places_however_many_domains_it_has() {
        let resolver = resolver();
        {
            let mut names = lock(&resolver.names);
            let takes = |number: &usize| names.take_place(&format!("shop-{number}.example"), &account(7));
            assert_eq!((0..400).filter(takes).count(), MAX_LOOKUPS / PART_OF_ONE);
        }
        assert!(resolver.resolve("localhost", &account(7)).await.unwrap_err().is_busy());
        assert!(resolver.resolve("localhost", &account(8)).await.is_ok());
    }

    #[test]
    fn few_descriptors_are_few_lookups() {
        let most = |connections| lock(&Resolver::new(connections).names).most;
        assert_eq!([16, 384, 4096].map(most), [4, 96, MAX_LOOKUPS]);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_place_even_an_older_address_serves_for_a_day() {
        let resolver = resolver();
        hang(&resolver, (0..MAX_LOOKUPS).map(|n| format!("shop-{n}.example-{n}")));
        let addresses: Arc<[IpAddr]> = Arc::new(["8.8.8.8".parse().unwrap()]);
        for (age, serves) in [(STALE - FRESH, true), (STALE + FRESH, true), (STALE_WHEN_BUSY + FRESH, false)] {
            let known = Known { addresses: addresses.clone(), since: clock::now() };
            lock(&resolver.names).known.insert("known.example".to_owned(), known);
            tokio::time::advance(age).await;
            let found = resolver.resolve("known.example", &account(0)).await;
            assert_eq!(found.is_ok(), serves, "{age:?}: {found:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_older_than_an_hour_serves_nobody_whose_name_servers_fail() {
        let resolver = resolver();
        let name = "shop.example".to_owned();
        let failing = ResolveError::Failing { name: name.clone() };
        {
            let mut names = lock(&resolver.names);
            let known = Known { addresses: Arc::new(["8.8.8.8".parse().unwrap()]), since: clock::now() };
            names.known.insert(name.clone(), known);
            names.under_way.insert(name.clone(), std::future::ready(Err(failing.clone())).boxed().shared());
        }
        tokio::time::advance(STALE + FRESH).await;
        assert_eq!(resolver.resolve(&name, &account(0)).await, Err(failing));
    }

    #[tokio::test]
    async fn without_a_place_it_is_our_failure_and_what_is_known_goes_on() {
        let resolver = resolver();
        hang(&resolver, (0..MAX_LOOKUPS).map(|n| format!("shop-{n}.example")));
        assert!(resolver.resolve("one-more.example", &account(MAX_LOOKUPS)).await.unwrap_err().is_busy());
        let addresses: Arc<[IpAddr]> = Arc::new(["8.8.8.8".parse().unwrap()]);
        let since = clock::now() - 2 * FRESH;
        lock(&resolver.names).known.insert("known.example".to_owned(), Known { addresses: addresses.clone(), since });
        assert_eq!(resolver.resolve("known.example", &account(MAX_LOOKUPS)).await, Ok(addresses));
    }

    #[tokio::test]
    async fn silence_leaves_the_last_good_address_and_an_answer_replaces_it() {
        let resolver = resolver();
        let addresses: Arc<[IpAddr]> = Arc::new(["8.8.8.8".parse().unwrap()]);
        let known = |age: Duration| Known { addresses: addresses.clone(), since: clock::now() - age };
        let name = "shop.example".to_owned();
        let outcomes = [
            (Err(ResolveError::Silent { name: name.clone() }), true),
            (Err(ResolveError::Failing { name: name.clone() }), true),
            (Err(ResolveError::NoSuchName { name: name.clone() }), false),
        ];
        for (answer, goes_on) in outcomes {
            {
                let mut names = lock(&resolver.names);
                names.known.insert(name.clone(), known(2 * FRESH));
                names.under_way.insert(name.clone(), std::future::ready(answer.clone()).boxed().shared());
            }
            assert_eq!(
                resolver.resolve(&name, &account(MAX_LOOKUPS)).await,
                if goes_on { Ok(addresses.clone()) } else { answer.clone() }
            );
            let mut names = lock(&resolver.names);
            names.learn(&name, &answer, clock::now());
            assert_eq!(names.known.contains_key(&name), goes_on);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_an_old_address_does_not_wait_for_a_name_server_that_hangs() {
        let resolver = resolver();
        let addresses: Arc<[IpAddr]> = Arc::new(["8.8.8.8".parse().unwrap()]);
        hang(&resolver, ["shop.example".to_owned()].into_iter());
        let since = clock::now() - 2 * FRESH;
        lock(&resolver.names).known.insert("shop.example".to_owned(), Known { addresses: addresses.clone(), since });
        let account = account(MAX_LOOKUPS);
        let resolved = tokio::time::timeout(2 * PATIENCE, resolver.resolve("shop.example", &account)).await;
        assert_eq!(resolved, Ok(Ok(addresses)));
    }

    #[test]
    fn a_domain_is_its_last_two_labels() {
        for (name, expected) in
            [("a.b.shop.example", "shop.example"), ("shop.example.", "shop.example"), ("localhost", "localhost")]
        {
            assert_eq!(domain(name), expected);
        }
    }

    #[test]
    fn what_the_system_says_is_told_apart() {
        use nix::libc::{EAI_AGAIN, EAI_FAIL, EAI_NODATA, EAI_NONAME};
        let of = |code, took| meaning("shop.example", &LookupError::new(code), took);
        let name = "shop.example".to_owned();
        assert_eq!(of(EAI_NONAME, SILENCE), ResolveError::NoSuchName { name: name.clone() });
        assert_eq!(of(EAI_NODATA, SILENCE), ResolveError::NoAddress { name: name.clone() });
        assert_eq!(of(EAI_AGAIN, Duration::ZERO), ResolveError::Failing { name: name.clone() });
        assert_eq!(of(EAI_FAIL, SILENCE), ResolveError::Failing { name: name.clone() });
        assert_eq!(of(EAI_AGAIN, SILENCE), ResolveError::Silent { name });
    }
}
