//! Who asks, and what they may: `Authorization: Bearer hrld_…`. A token is believed for a second without asking Redis again.
//! From where too many came that are unknown, only those are looked for that are known to be there.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    Json,
    extract::FromRequestParts,
    http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Api,
    request::{Refusals, of_store},
};
use crate::{
    api::access::{hash, short},
    clock,
    facts::{
        audit::{Act, Begun, MERCHANT},
        endpoint::Mark,
        id::AccountId,
        token::{PREFIX, Role, Token},
    },
    http::{connections::Peer, problem::Problem},
    store::{connection::SharedConnection, error::StoreError, tokens::TokenStore},
    view::{Viewer, time::Time},
};

/// For how long a token is believed without asking again: a revoked one is refused after this.
const BELIEVED_FOR: Duration = Duration::from_secs(1);

/// Tokens that are remembered.
const MAX_REMEMBERED: usize = 10_000;

/// Longest token that is looked for.
const MAX_TOKEN_BYTES: usize = 256;

/// Unknown tokens that one address may show at once, and how often it may show another one.
const MAX_FAILURES: f64 = 20.0;
const FAILURES_A_SECOND: f64 = 1.0;

/// Addresses that are remembered for that.
const MAX_ADDRESSES: usize = 10_000;

/// How exactly a token's last use is known.
const USE_NOTED_EVERY: Duration = Duration::from_secs(60);

/// A new token. Whoever gets it is the last to see it.
pub fn new_token() -> String {
    format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>()))
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    pub role: Role,
    /// The only one whose things a merchant sees.
    pub account: Option<AccountId>,
    pub name: String,
    /// As much of the token's hash as tells it apart.
    pub token: String,
    /// Where they are.
    pub address: Option<IpAddr>,
    expires_at_ms: Option<u64>,
}

impl Caller {
    pub fn viewer(&self) -> Viewer {
        if self.role == Role::Merchant { Viewer::Merchant } else { Viewer::Operator }
    }

    /// As changes and the audit log name them.
    pub fn by(&self) -> String {
        let kind = if self.role == Role::Merchant { MERCHANT } else { "token " };
        format!("{kind}{} {}", self.token, self.name)
    }

    pub fn mark(&self, why: &str) -> Mark {
        Mark { by: self.by(), why: why.to_owned(), at_ms: clock::wall_ms() }
    }

    pub fn begun(&self, api: &Api, act: Act, why: &str) -> Begun {
        let begun = api.0.audit.act(act, &self.by(), why).address(self.address);
        self.account.iter().fold(begun, Begun::account)
    }

    /// What belongs to another account is not there.
    pub fn sees(&self, account: Option<&AccountId>) -> Result<(), Problem> {
        match &self.account {
            None => Ok(()),
            Some(own) if account == Some(own) => Ok(()),
            Some(_) => Err(Problem::not_found()),
        }
    }

    /// The account that is asked for; a merchant's is their own.
    pub fn narrowed(&self, asked: Option<AccountId>) -> Result<Option<AccountId>, Problem> {
        match (&self.account, asked) {
            (None, asked) => Ok(asked),
            (Some(own), Some(asked)) if asked != *own => Err(Problem::not_found()),
            (Some(own), _) => Ok(Some(own.clone())),
        }
    }
}

#[derive(Default)]
struct Known {
    hashes: HashSet<String>,
    read_at: Option<Instant>,
}

pub struct Access {
    connection: SharedConnection,
    /// The hash of the first token.
    admin: Option<String>,
    believed: Mutex<HashMap<String, (Token, Instant)>>,
    failures: Mutex<HashMap<IpAddr, (f64, Instant)>>,
    /// What tokens there are, for whoever comes from where guesses came from.
    known: tokio::sync::Mutex<Known>,
    noted: Arc<Mutex<HashMap<String, Instant>>>,
}

impl Access {
    pub fn new(connection: SharedConnection, admin_token: Option<&str>) -> Self {
        let (believed, failures, known, noted) = Default::default();
        Self { connection, admin: admin_token.map(hash), believed, failures, known, noted }
    }

    async fn caller(&self, headers: &HeaderMap, peer: Option<IpAddr>) -> Result<Caller, Problem> {
        self.caller_of(hash(presented(headers)?), peer).await
    }

    /// Whoever has the token of this hash.
    pub async fn caller_of(&self, hash: String, peer: Option<IpAddr>) -> Result<Caller, Problem> {
        if self.admin.as_ref() == Some(&hash) {
            let (role, name) = (Role::Admin, "admin_token".to_owned());
            let token = short(&hash).to_owned();
            return Ok(Caller { role, account: None, name, token, address: peer, expires_at_ms: None });
        }
        let token = self.find(&hash, peer).await?;
        if !token.is_live(clock::wall_ms()) {
            return Err(unauthorized("The token has expired."));
        }
        self.note_use(&hash);
        let Token { role, account, name, expires_at_ms, .. } = token;
        Ok(Caller { role, account, name, token: short(&hash).to_owned(), address: peer, expires_at_ms })
    }

    pub(super) async fn find(&self, hash: &str, peer: Option<IpAddr>) -> Result<Token, Problem> {
        let now = clock::now();
        let remembered = lock(&self.believed).get(hash).cloned();
        if let Some((token, since)) = &remembered
            && now < *since + BELIEVED_FOR
        {
            return Ok(token.clone());
        }
        // One that was right a moment ago is no guess. What may be one counts before it is looked for, or as many as come at once
        // would be looked for; but whoever sends guesses from somewhere keeps nobody out who has a token.
        let counted = if remembered.is_none() { self.count_failure(peer, now) } else { Ok(()) };
        if let Err(too_many) = &counted
            && !self.is_known(hash, now).await?
        {
            return Err(too_many.clone());
        }
        let look = async |connection| TokenStore::on(connection).find(hash).await;
        let found = self.connection.with(look).await.map_err(|error: StoreError| of_store(&error))?;
        let Some(token) = found else {
            lock(&self.believed).remove(hash);
            return Err(unauthorized("The token is unknown, or was revoked."));
        };
        if remembered.is_none() && counted.is_ok() {
            self.forgive_failure(peer);
        }
        let mut believed = lock(&self.believed);
        if believed.len() >= MAX_REMEMBERED {
            believed.clear();
        }
        believed.insert(hash.to_owned(), (token.clone(), now));
        Ok(token)
    }

    /// It was revoked here: nobody need wait for the second to be over.
    pub(super) fn forget(&self, hash: &str) {
        lock(&self.believed).remove(hash);
    }

    /// Whether there is such a token, as of the last second: guesses do not reach Redis one by one.
    async fn is_known(&self, hash: &str, now: Instant) -> Result<bool, Problem> {
        let mut known = self.known.lock().await;
        if known.read_at.is_none_or(|at| now >= at + BELIEVED_FOR) {
            // Also where Redis fails: those who wait here do not ask it one after the other.
            known.read_at = Some(clock::now());
            let read = async |connection| TokenStore::on(connection).hashes().await;
            known.hashes = self.connection.with(read).await.map_err(|error| of_store(&error))?;
        }
        Ok(known.hashes.contains(hash))
    }

    /// Counts one that may be wrong, unless too many were.
    fn count_failure(&self, peer: Option<IpAddr>, now: Instant) -> Result<(), Problem> {
        let Some(peer) = peer.map(network) else { return Ok(()) };
        let mut failures = lock(&self.failures);
        if failures.len() >= MAX_ADDRESSES && !failures.contains_key(&peer) {
            failures.retain(|_, known| left(*known, now) > 0.0);
            // A flood from everywhere: whoever waits longest is forgotten with the rest.
            if failures.len() >= MAX_ADDRESSES {
                failures.clear();
            }
        }
        let known = failures.entry(peer).or_insert((0.0, now));
        let count = left(*known, now) + 1.0;
        if count > MAX_FAILURES {
            let detail = "Too many unknown tokens came from this address: wait, then send one that is known.";
            let seconds = ((count - MAX_FAILURES) / FAILURES_A_SECOND).ceil().max(1.0) as u32;
            let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "too-many-failures", detail);
            return Err(problem.with(header::RETRY_AFTER, seconds));
        }
        *known = (count, now);
        Ok(())
    }

    /// It was none.
    fn forgive_failure(&self, peer: Option<IpAddr>) {
        let Some(peer) = peer.map(network) else { return };
        if let Some((count, _)) = lock(&self.failures).get_mut(&peer) {
            *count = (*count - 1.0).max(0.0);
        }
    }

    /// Nobody waits for it, and where Redis takes nothing it is not known.
    fn note_use(&self, hash: &str) {
        let now = clock::now();
        let mut noted = lock(&self.noted);
        if noted.get(hash).is_some_and(|at| now < *at + USE_NOTED_EVERY) {
            return;
        }
        if noted.len() >= MAX_REMEMBERED {
            noted.clear();
        }
        noted.insert(hash.to_owned(), now);
        let (connection, hash) = (self.connection.clone(), hash.to_owned());
        tokio::spawn(async move {
            let at_ms = clock::wall_ms();
            let note = async |connection| TokenStore::on(connection).used(&hash, at_ms).await;
            if let Err(error) = connection.with(note).await {
                tracing::debug!(%error, "the use of a token is not noted");
            }
        });
    }
}

/// What is left of failures after a while.
fn left((count, at): (f64, Instant), now: Instant) -> f64 {
    (count - now.saturating_duration_since(at).as_secs_f64() * FAILURES_A_SECOND).max(0.0)
}

/// Whoever has one address of IPv6 mostly has a whole network of them.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => IpAddr::V4(v4),
            None => IpAddr::V6((v6.to_bits() >> 64 << 64).into()),
        },
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The token as it was sent, or what is wrong with how it was.
fn presented(headers: &HeaderMap) -> Result<&str, Problem> {
    let given = headers
        .get(header::AUTHORIZATION)
        .ok_or_else(|| unauthorized("The Authorization header is missing: send \"Authorization: Bearer hrld_…\"."))?;
    let text = given.to_str().unwrap_or_default().trim();
    let (scheme, token) = text.split_once(' ').unwrap_or((text, ""));
    let token = token.trim();
    if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() {
        return Err(unauthorized("The Authorization header is not \"Bearer \" and a token, as hrld_…."));
    }
    if token.len() > MAX_TOKEN_BYTES {
        return Err(unauthorized("The token is unknown, or was revoked."));
    }
    Ok(token)
}

fn unauthorized(detail: &str) -> Problem {
    let challenge = HeaderValue::from_static("Bearer realm=\"herald\"");
    Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail).with(header::WWW_AUTHENTICATE, challenge)
}

macro_rules! callers {
    ($($(#[$doc:meta])* $name:ident: $($role:ident)|+, $says:literal;)+) => {
        $($(#[$doc])*
        #[derive(Debug, Clone)]
        pub struct $name(pub Caller);

        impl FromRequestParts<Api> for $name {
            type Rejection = Problem;

            async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
                let peer = parts.extensions.get::<Peer>().map(|peer| peer.0);
                // The console, in this process, has already asked who it is.
                let caller = match parts.extensions.get::<Caller>() {
                    Some(caller) => caller.clone(),
                    None => api.0.access.caller(&parts.headers, peer).await?,
                };
                match caller.role {
                    $(Role::$role)|+ => Ok(Self(caller)),
                    #[allow(unreachable_patterns, reason = "some take every role")]
                    _ => Err(Problem::new(StatusCode::FORBIDDEN, "forbidden", $says)),
                }
            }
        })+
    };
}

callers! {
    /// Whoever has a token; a merchant sees their own account.
    Anyone: Merchant | Viewer | Operator | Admin, "";
    /// Whoever sees all accounts.
    Staff: Viewer | Operator | Admin, "This token sees one account only.";
    /// Whoever changes what an account has; a merchant only their own.
    Keeper: Merchant | Operator | Admin, "This token may only read.";
    /// Whoever changes what belongs to no account.
    Operator: Operator | Admin, "This needs the role operator.";
    /// Whoever makes tokens.
    Admin: Admin, "This needs the role admin.";
}

#[derive(Serialize, ToSchema)]
pub struct Me {
    /// viewer, operator, admin or merchant.
    role: &'static str,
    /// A merchant's.
    account: Option<String>,
    name: String,
    expires_at: Option<Time>,
}

/// Say whose token this is.
#[utoipa::path(get, path = "/v1/me", tag = "Tokens", responses((status = 200, body = Me), Refusals))]
pub async fn me(Anyone(caller): Anyone) -> Json<Me> {
    Json(Me {
        role: caller.role.name(),
        account: caller.account.map(|account| account.to_string()),
        name: caller.name,
        expires_at: caller.expires_at_ms.map(Time),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::connection::{Purpose, Redis};

    fn access() -> Access {
        let redis = Redis::new("redis://127.0.0.1:1").unwrap();
        Access::new(SharedConnection::new(redis, Purpose::Other), None)
    }

    #[test]
    fn a_token_is_256_random_bits() {
        let token = new_token();
        let bits = URL_SAFE_NO_PAD.decode(token.strip_prefix(PREFIX).unwrap()).unwrap();
        assert_eq!(bits.len(), 32);
        assert_ne!(token, new_token());
    }

    #[test]
    fn failures_of_one_network_are_limited_and_forgiven_in_time() {
        let (access, now) = (access(), clock::now());
        let [one, same, other] = ["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"].map(|text| text.parse().ok());
        for _ in 0..20 {
            access.count_failure(one, now).unwrap();
        }
        assert_eq!(access.count_failure(same, now).unwrap_err().status, StatusCode::TOO_MANY_REQUESTS);
        access.count_failure(other, now).unwrap();
        access.forgive_failure(one);
        access.count_failure(same, now).unwrap();
        access.count_failure(same, now).unwrap_err();
        access.count_failure(same, now + Duration::from_secs(2)).unwrap();
    }

    #[test]
    fn addresses_are_remembered_in_bounds() {
        let (access, now) = (access(), clock::now());
        for n in 0..MAX_ADDRESSES as u32 + 5 {
            access.count_failure(Some(IpAddr::V4(n.into())), now).unwrap();
        }
        assert!(lock(&access.failures).len() <= MAX_ADDRESSES);
    }
}
