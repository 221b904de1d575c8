//! Who receives: accounts, their endpoints, which of them behaves how. Pure: drawn from a scenario and a seed, and everything
//! about one endpoint (id, secret, URL) is worked out from its number. Never registers or serves anything.
//!
//! Endpoints are numbered: those of account `a` are `a · fan_out …`, so that an event's deliveries and an endpoint's books
//! are found by arithmetic. The idle ones come after them; no event is for their accounts.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};

use super::{
    draw::{hash, mix},
    scenario::{Often, Profile, ProfileShare, Retry, Scenario, Workers},
};
use crate::{
    config::parse_duration,
    facts::{
        endpoint::{DEFAULT_MAX_IN_FLIGHT, Endpoint},
        id::{AccountId, EndpointId},
        retry::RetryOverrides,
        signing::SecretText,
    },
};

/// The most endpoints of one run: ten times what one registry is meant for.
pub const MAX_ENDPOINTS: u64 = 1_000_000;

/// The most endpoints of one account. Herald takes more, but a run that needs them asks another question.
pub const MAX_FAN_OUT: u32 = 2_000;

/// Loopback addresses of receivers: those of 127.1.0.0/16.
pub const MAX_HOSTS: u32 = 65_536;

/// What Herald does unless the scenario's settings say otherwise: the documented defaults.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(15);
const LEASE: Duration = Duration::from_secs(5);

/// After how many failures in a row Herald may let an endpoint wait. In the endpoint's favour: Herald takes eight, but
/// not all of them may have been seen here.
const BREAKER_THRESHOLD: u32 = 5;
const COOLDOWN: Duration = Duration::from_secs(5);
const MAX_COOLDOWN: Duration = Duration::from_secs(300);

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PopulationError {
    #[error("traffic.accounts and traffic.intents must be at least 1")]
    NoAccounts,
    #[error("endpoints.fan_out must be between 1 and {MAX_FAN_OUT}, not {0}")]
    FanOut(u32),
    #[error("the scenario has {0} endpoints; at most {MAX_ENDPOINTS} are possible")]
    TooMany(u64),
    #[error("endpoints.hosts must be between 1 and {MAX_HOSTS}, not {0}")]
    Hosts(u32),
    #[error("{what} must be between 0 and 1, not {value}")]
    Share { what: &'static str, value: f64 },
    #[error("the shares and weights of endpoints.profiles must not be negative, and not all of them 0")]
    Profiles,
    #[error("the profile {profile} has {what}")]
    Profile { profile: &'static str, what: &'static str },
    #[error("herald.settings has {key} = {value:?}, which {problem}")]
    Setting { key: &'static str, value: String, problem: String },
}

/// What the harness must know of Herald's configuration to judge.
#[derive(Debug, Clone, PartialEq)]
pub struct Terms {
    pub retry: Retry,
    /// How long an attempt may take.
    pub timeout: Duration,
    pub lease: Duration,
    /// Failures in a row after which an endpoint's deliveries may be parked.
    pub breaker_threshold: u32,
    /// The first pause of a breaker that has opened, and the longest.
    pub cooldown: Duration,
    pub max_cooldown: Duration,
}

/// Where receivers listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doors {
    /// Serves both HTTP and HTTPS with a certificate for its address.
    pub plain: SocketAddr,
    /// Has a certificate that is not for its address.
    pub misnamed: SocketAddr,
    /// For the profiles that have a door of their own, by profile.
    pub own: Vec<Option<SocketAddr>>,
}

/// One endpoint that events are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seat {
    /// Into `profiles`.
    profile: u8,
    is_tls: bool,
}

#[derive(Debug, Clone)]
pub struct Population {
    seed: u64,
    accounts: u32,
    fan_out: u32,
    idle: u32,
    hosts: u32,
    timeout: Option<Duration>,
    profiles: Vec<Profile>,
    /// By profile.
    max_in_flight: Vec<u16>,
    /// Up to and including each account, how many events of the sum; empty if all get the same number.
    weights: Vec<f64>,
    seats: Vec<Seat>,
    terms: Terms,
}

impl Population {
    pub fn draw(scenario: &Scenario, seed: u64) -> Result<Self, PopulationError> {
        let (traffic, wanted) = (&scenario.traffic, &scenario.endpoints);
        check(scenario)?;
        let active = traffic.accounts as usize * wanted.fan_out as usize;
        let mut rng = StdRng::seed_from_u64(mix(seed));
        let healthy = Profile::Healthy { median: Duration::ZERO, p99: Duration::ZERO };
        let usual = [ProfileShare::of(1.0, healthy)];
        let shares = if wanted.profiles.is_empty() { &usual[..] } else { &wanted.profiles[..] };
        let mut seats = Vec::with_capacity(active);
        for (profile, seated) in apportion(shares, active).into_iter().enumerate() {
            // The same part of each profile is https.
            let tls = (seated as f64 * wanted.tls_share).round() as usize;
            seats.extend((0..seated).map(|at| Seat { profile: profile as u8, is_tls: at < tls }));
        }
        seats.shuffle(&mut rng);
        let most = |share: &ProfileShare| share.max_in_flight.or(wanted.max_in_flight).unwrap_or(DEFAULT_MAX_IN_FLIGHT);
        Ok(Self {
            seed,
            accounts: traffic.accounts,
            fan_out: wanted.fan_out,
            idle: wanted.idle,
            hosts: wanted.hosts,
            timeout: wanted.timeout,
            profiles: shares.iter().map(|share| share.profile.clone()).collect(),
            max_in_flight: shares.iter().map(most).collect(),
            weights: weights(shares, &seats, wanted.fan_out as usize),
            seats,
            terms: terms(&scenario.herald, wanted.retry.clone(), wanted.timeout)?,
        })
    }

    /// Tells this run's ids from another run's. Runs with the same seed share it.
    pub fn run(&self) -> u64 {
        hash(&[self.seed, 0x52554E])
    }

    pub fn seed(&self) -> u64 {
        self.seed
    }

    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    pub fn accounts(&self) -> u32 {
        self.accounts
    }

    pub fn fan_out(&self) -> u32 {
        self.fan_out
    }

    /// Endpoints that get events; they are numbered from 0.
    pub fn active(&self) -> u32 {
        self.seats.len() as u32
    }

    /// All endpoints, including the idle ones.
    pub fn len(&self) -> u32 {
        self.active() + self.idle
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// As the scenario lists them.
    pub fn profiles(&self) -> &[Profile] {
        &self.profiles
    }

    /// The position of the endpoint's profile in [`Self::profiles`]. Idle ones count as the first.
    pub fn profile_index(&self, endpoint: u32) -> usize {
        self.seats.get(endpoint as usize).map_or(0, |seat| usize::from(seat.profile))
    }

    /// Of an endpoint of this profile.
    pub fn max_in_flight(&self, profile: usize) -> u16 {
        self.max_in_flight[profile]
    }

    /// Some accounts get more events than others.
    pub fn has_weights(&self) -> bool {
        !self.weights.is_empty()
    }

    /// The account at this part of all events, from 0 to 1.
    pub fn account_by_weight(&self, part: f64) -> u32 {
        let sum = self.weights.last().copied().unwrap_or_default();
        let account = self.weights.partition_point(|before| *before <= part * sum);
        (account as u32).min(self.accounts - 1)
    }

    pub fn profile(&self, endpoint: u32) -> &Profile {
        &self.profiles[self.profile_index(endpoint)]
    }

    /// Whether everything owed to it is acknowledged in the end, so that the run waits for it. At an endpoint that
    /// fails at random the last attempt may fail too: that is an expected dead letter.
    pub fn is_alive(&self, endpoint: u32) -> bool {
        match self.profile(endpoint) {
            Profile::Healthy { .. } | Profile::Flaky { .. } | Profile::Throttling { .. } | Profile::HugeBody => true,
            Profile::Slow { after } | Profile::Imperfect { after, .. } | Profile::Healing { after, .. } => {
                *after < self.terms.timeout
            }
            Profile::Fleeting { after, rtt, .. } => *after + *rtt < self.terms.timeout,
            Profile::Hanging
            | Profile::Failing
            | Profile::Flooding
            | Profile::Gone { .. }
            | Profile::Redirecting
            | Profile::Resetting
            | Profile::Truncating
            | Profile::BrokenTls => false,
        }
    }

    pub fn has_broken_tls(&self) -> bool {
        self.seats.iter().any(|seat| self.profiles[usize::from(seat.profile)] == Profile::BrokenTls)
    }

    pub fn account_id(&self, account: u32) -> String {
        format!("acc_{:08x}_{account}", self.run() as u32)
    }

    pub fn endpoint_id(&self, endpoint: u32) -> String {
        let kind = match endpoint < self.active() {
            true => self.profile(endpoint).name(),
            false => "idle",
        };
        format!("ep_{:08x}_{endpoint}_{kind}", self.run() as u32)
    }

    /// The number of an endpoint of this run, by its id.
    pub fn endpoint_of(&self, id: &str) -> Option<u32> {
        let number = id.strip_prefix("ep_")?.split('_').nth(1)?.parse().ok()?;
        (number < self.len() && self.endpoint_id(number) == id).then_some(number)
    }

    /// The secret as it is shown to a merchant.
    pub fn secret(&self, endpoint: u32) -> SecretText {
        let mut key = [0; 32];
        for (at, part) in key.chunks_exact_mut(8).enumerate() {
            part.copy_from_slice(&hash(&[self.seed, 0x5E_C2E7, u64::from(endpoint), at as u64]).to_le_bytes());
        }
        SecretText::from_random(key)
    }

    /// The path by which the receivers tell endpoints apart.
    pub fn path(&self, endpoint: u32) -> String {
        format!("/{endpoint}")
    }

    pub fn url(&self, endpoint: u32, doors: &Doors) -> String {
        let seat = self.seats.get(endpoint as usize);
        let own = seat.and_then(|seat| doors.own.get(usize::from(seat.profile)).copied().flatten());
        let is_tls = seat.is_some_and(|seat| seat.is_tls);
        let path = self.path(endpoint);
        match (self.profile(endpoint), is_tls) {
            (Profile::BrokenTls, _) => format!("https://{}{path}", doors.misnamed),
            (Profile::Fleeting { http2: true, .. }, _) => format!("https://{}{path}", own.unwrap_or(doors.plain)),
            (Profile::Fleeting { .. }, _) => format!("http://{}{path}", own.unwrap_or(doors.plain)),
            (_, true) => format!("https://{}{path}", doors.plain),
            (_, false) => format!("http://{}{path}", self.host(endpoint, doors.plain)),
        }
    }

    /// One of the addresses over which the receivers are spread.
    fn host(&self, endpoint: u32, plain: SocketAddr) -> SocketAddr {
        if self.hosts == 1 {
            return plain;
        }
        let [_, _, high, low] = (endpoint % self.hosts).to_be_bytes();
        SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 1, high, low)), plain.port())
    }

    /// Whether receivers have other addresses of this machine than 127.0.0.1.
    pub fn is_spread(&self) -> bool {
        self.hosts > 1
    }

    /// For the registry: the endpoints in this range of numbers, including idle ones.
    pub fn endpoints(
        &self,
        numbers: std::ops::Range<u32>,
        doors: &Doors,
        now_ms: u64,
    ) -> impl Iterator<Item = Endpoint> {
        numbers.map(move |number| self.endpoint(number, self.url(number, doors), now_ms))
    }

    fn endpoint(&self, number: u32, url: String, now_ms: u64) -> Endpoint {
        let account = match number < self.active() {
            true => self.account_id(number / self.fan_out),
            false => self.account_id(self.accounts + (number - self.active())),
        };
        const OURS: &str = "made of letters, digits, - and _, with its prefix";
        let id = EndpointId::new(&self.endpoint_id(number)).expect(OURS);
        let mut endpoint = Endpoint::new(id, AccountId::new(&account).expect(OURS), url, self.secret(number), now_ms);
        let retry = &self.terms.retry;
        let ms = |span: Duration| Some(span.as_millis() as u64);
        endpoint.retry = RetryOverrides {
            initial_ms: ms(retry.initial),
            multiplier: Some(retry.multiplier),
            max_interval_ms: ms(retry.max_interval),
            jitter: Some(retry.jitter),
            max_attempts: Some(retry.max_attempts),
            max_age_ms: ms(retry.max_age),
        };
        endpoint.timeout_ms = self.timeout.map(|timeout| timeout.as_millis() as u64);
        endpoint.max_in_flight = self.max_in_flight[self.profile_index(number)];
        endpoint
    }
}

fn check(scenario: &Scenario) -> Result<(), PopulationError> {
    let (traffic, wanted) = (&scenario.traffic, &scenario.endpoints);
    if traffic.accounts == 0 || traffic.intents == 0 {
        return Err(PopulationError::NoAccounts);
    }
    if !(1..=MAX_FAN_OUT).contains(&wanted.fan_out) {
        return Err(PopulationError::FanOut(wanted.fan_out));
    }
    let endpoints = u64::from(traffic.accounts) * u64::from(wanted.fan_out) + u64::from(wanted.idle);
    if endpoints > MAX_ENDPOINTS {
        return Err(PopulationError::TooMany(endpoints));
    }
    if !(1..=MAX_HOSTS).contains(&wanted.hosts) {
        return Err(PopulationError::Hosts(wanted.hosts));
    }
    for (what, value) in [
        ("traffic.hot_share", traffic.hot_share),
        ("endpoints.tls_share", wanted.tls_share),
        ("endpoints.retry.jitter", wanted.retry.jitter),
    ] {
        if !(0.0..=1.0).contains(&value) {
            return Err(PopulationError::Share { what, value });
        }
    }
    let sums = |of: fn(&ProfileShare) -> f64| wanted.profiles.iter().map(of).sum::<f64>();
    let is_odd = |number: f64| !number.is_finite() || number < 0.0;
    let has_odd = wanted.profiles.iter().any(|share| is_odd(share.share) || is_odd(share.weight));
    let is_nobody = sums(|share| share.share) <= 0.0 || sums(|share| share.share * share.weight) <= 0.0;
    if has_odd || (!wanted.profiles.is_empty() && is_nobody) || wanted.profiles.len() > 255 {
        return Err(PopulationError::Profiles);
    }
    wanted.profiles.iter().try_for_each(|share| check_profile(&share.profile))
}

fn check_profile(profile: &Profile) -> Result<(), PopulationError> {
    let odd = |what| Err(PopulationError::Profile { profile: profile.name(), what });
    match profile {
        Profile::Flaky { p } if !(0.0..=1.0).contains(p) => odd("a p that is not between 0 and 1"),
        Profile::Imperfect { often: Often::Random { p }, .. } if !(0.0..=1.0).contains(p) => {
            odd("a p that is not between 0 and 1")
        }
        Profile::Imperfect { often: Often::Spells { length, every }, .. } if length >= every => {
            odd("spells that are not shorter than the time from one to the next")
        }
        Profile::Imperfect { goodput, .. } if !(0.0..=1.0).contains(goodput) => {
            odd("a goodput that is not between 0 and 1")
        }
        Profile::Fleeting { reload: Some(Duration::ZERO), .. } | Profile::Fleeting { requests: Some(0), .. } => {
            odd("connections that take nothing")
        }
        Profile::Healthy { median, p99 } if p99 < median => odd("a p99 below its median"),
        Profile::Healthy { median, p99 } if median.is_zero() && !p99.is_zero() => {
            odd("a p99 without a median: give it both or neither")
        }
        _ => Ok(()),
    }
}

fn terms(workers: &Workers, retry: Retry, timeout: Option<Duration>) -> Result<Terms, PopulationError> {
    let span = |key: &'static str, default: Duration| match workers.settings.get(key) {
        None => Ok(default),
        Some(value) => parse_duration(value).map_err(|problem| PopulationError::Setting {
            key,
            value: value.clone(),
            problem: problem.to_string(),
        }),
    };
    let configured = span("attempt.timeout", ATTEMPT_TIMEOUT)?;
    Ok(Terms {
        retry,
        timeout: timeout.unwrap_or(configured),
        lease: span("lease.ttl", LEASE)?,
        breaker_threshold: BREAKER_THRESHOLD,
        cooldown: span("limits.breaker.cooldown", COOLDOWN)?,
        max_cooldown: span("limits.breaker.max_cooldown", MAX_COOLDOWN)?,
    })
}

/// Running sums of what the accounts get; the endpoint with the largest weight decides for its account.
fn weights(shares: &[ProfileShare], seats: &[Seat], fan_out: usize) -> Vec<f64> {
    if shares.iter().all(|share| share.weight == 1.0) {
        return Vec::new();
    }
    let of = |account: &[Seat]| account.iter().map(|seat| shares[usize::from(seat.profile)].weight).fold(0.0, f64::max);
    let mut sum = 0.0;
    let accounts = seats.chunks_exact(fan_out).map(|account| {
        sum += of(account);
        sum
    });
    accounts.collect()
}

/// Divides this many seats by shares, with nothing left over: the largest remainders get the last seats, and every
/// profile with a share gets a seat if there are enough.
fn apportion(shares: &[ProfileShare], seats: usize) -> Vec<usize> {
    let sum: f64 = shares.iter().map(|share| share.share).sum();
    let exact: Vec<f64> = shares.iter().map(|share| share.share / sum * seats as f64).collect();
    let mut seated: Vec<usize> = exact.iter().map(|exact| exact.floor() as usize).collect();
    let mut order: Vec<usize> = (0..shares.len()).collect();
    order.sort_by(|a, b| exact[*b].fract().total_cmp(&exact[*a].fract()).then(a.cmp(b)));
    let left = seats - seated.iter().sum::<usize>();
    order.iter().cycle().take(left).for_each(|at| seated[*at] += 1);
    let empty: Vec<usize> = (0..shares.len()).filter(|at| seated[*at] == 0 && shares[*at].share > 0.0).collect();
    for at in empty {
        if let Some(most) = (0..shares.len()).max_by_key(|at| seated[*at]).filter(|most| seated[*most] > 1) {
            seated[most] -= 1;
            seated[at] = 1;
        }
    }
    seated
}

#[cfg(test)]
#[path = "population_tests.rs"]
pub(super) mod tests;
