//! Resolves receivers' names and lets only checked addresses through: the HTTP library connects to what comes out of
//! here and to nothing else, so a name that changes its answer between check and connection gains nothing.
//! Never asked for IP literals; those are judged with the URL.
//!
//! A lookup blocks a thread of the runtime's pool for as long as the system's resolver takes, also after whoever asked
//! has given up. So there is one lookup per name at a time, shared by all who wait for it: a receiver whose name servers
//! hang holds one thread, however many attempts it is owed.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::{guard::AddressGuard, stages};

/// Most lookups under way: half of tokio's 512 blocking threads, which files and others need as well.
const MAX_LOOKUPS: usize = 256;

/// Most addresses of one name that are tried: more than any real receiver has, and an attempt's time is short.
const MAX_ADDRESSES: usize = 16;

/// A name that could not be resolved; an own type, so that nobody has to read an error's text.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum ResolveError {
    #[error("{name} cannot be resolved: {reason}")]
    Failed { name: String, reason: String },
    #[error("{name} has no address")]
    Empty { name: String },
    #[error("{name} was not looked up: {MAX_LOOKUPS} other names are being looked up and do not answer")]
    Busy { name: String },
}

impl ResolveError {
    /// Nobody was asked: it tells nothing of the name.
    pub(super) fn is_busy(&self) -> bool {
        match self {
            Self::Busy { .. } => true,
            Self::Failed { .. } | Self::Empty { .. } => false,
        }
    }
}

type Lookup = Shared<BoxFuture<'static, Result<Arc<[IpAddr]>, ResolveError>>>;

#[derive(Clone)]
pub(super) struct GuardedResolver {
    guard: AddressGuard,
    under_way: Arc<Mutex<HashMap<String, Lookup>>>,
}

impl GuardedResolver {
    pub(super) fn new(guard: AddressGuard) -> Self {
        Self { guard, under_way: Arc::default() }
    }

    /// Joins the lookup of this name that is under way, or starts one.
    fn lookup(&self, name: &str) -> Lookup {
        let mut under_way = lock(&self.under_way);
        if let Some(lookup) = under_way.get(name) {
            return lookup.clone();
        }
        if under_way.len() >= MAX_LOOKUPS {
            let busy = ResolveError::Busy { name: name.to_owned() };
            return std::future::ready(Err(busy)).boxed().shared();
        }
        let task = tokio::spawn(look_up(name.to_owned(), Arc::clone(&self.under_way)));
        let owner = name.to_owned();
        let lookup = async move {
            task.await.unwrap_or_else(|e| Err(ResolveError::Failed { name: owner, reason: e.to_string() }))
        };
        let lookup = lookup.boxed().shared();
        under_way.insert(name.to_owned(), lookup.clone());
        lookup
    }

    async fn resolve_checked(self, name: String) -> Result<Vec<SocketAddr>, Box<dyn std::error::Error + Send + Sync>> {
        let found = self.lookup(&name).await?;
        let mut refused = None;
        let mut allowed = Vec::new();
        for ip in found.iter() {
            match self.guard.check_address_of(&name, *ip) {
                Ok(()) => allowed.push(SocketAddr::new(*ip, 0)),
                Err(e) => refused = Some(e),
            }
        }
        allowed.truncate(MAX_ADDRESSES);
        match refused {
            Some(refused) if allowed.is_empty() => Err(refused.into()),
            _ => Ok(allowed),
        }
    }
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let resolving = self.clone().resolve_checked(name.as_str().to_owned());
        Box::pin(async move {
            let allowed = stages::while_resolving(resolving).await?;
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

/// Runs in a task of its own, to its end: the entry in the map must not outlive the lookup, nor end before it.
async fn look_up(name: String, under_way: Arc<Mutex<HashMap<String, Lookup>>>) -> Result<Arc<[IpAddr]>, ResolveError> {
    let _entry = Entry { name: &name, under_way: &under_way };
    let failed = |e: io::Error| ResolveError::Failed { name: name.clone(), reason: e.to_string() };
    let found: Arc<[IpAddr]> =
        tokio::net::lookup_host((name.as_str(), 0)).await.map_err(failed)?.map(|address| address.ip()).collect();
    match found.is_empty() {
        true => Err(ResolveError::Empty { name: name.clone() }),
        false => Ok(found),
    }
}

struct Entry<'a> {
    name: &'a str,
    under_way: &'a Mutex<HashMap<String, Lookup>>,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        lock(self.under_way).remove(self.name);
    }
}

/// The map is whole at every step, so a panic elsewhere while it was locked has left nothing half done.
fn lock(under_way: &Mutex<HashMap<String, Lookup>>) -> MutexGuard<'_, HashMap<String, Lookup>> {
    under_way.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sender::guard::GuardError;

    fn resolver(networks: &[&str]) -> GuardedResolver {
        let networks: Vec<_> = networks.iter().map(|net| net.parse().unwrap()).collect();
        GuardedResolver::new(AddressGuard::new(true, &networks))
    }

    #[tokio::test]
    async fn a_name_that_leads_inside_is_refused_by_type() {
        let error = resolver(&[]).resolve_checked("localhost".to_owned()).await.unwrap_err();
        assert!(error.downcast_ref::<GuardError>().is_some(), "{error}");
        let allowed = resolver(&["127.0.0.0/8", "::1/128"]).resolve_checked("localhost".to_owned()).await.unwrap();
        assert!(!allowed.is_empty());
    }

    #[tokio::test]
    async fn of_a_mixed_answer_only_the_allowed_addresses_are_left() {
        let resolver = resolver(&[]);
        let found: Arc<[IpAddr]> =
            ["10.0.0.1", "8.8.8.8", "::1", "2606:4700::1111"].iter().map(|ip| ip.parse().unwrap()).collect();
        let answered = std::future::ready(Ok(found)).boxed().shared();
        resolver.under_way.lock().unwrap().insert("mixed.example".to_owned(), answered);
        let left = resolver.resolve_checked("mixed.example".to_owned()).await.unwrap();
        let left: Vec<String> = left.iter().map(|address| address.ip().to_string()).collect();
        assert_eq!(left, ["8.8.8.8", "2606:4700::1111"]);
    }

    #[tokio::test]
    async fn those_who_ask_for_one_name_share_one_lookup_and_it_leaves_nothing_behind() {
        let resolver = resolver(&["127.0.0.0/8", "::1/128"]);
        let first = resolver.lookup("localhost");
        let second = resolver.lookup("localhost");
        assert!(first.ptr_eq(&second));
        first.await.unwrap();
        assert!(resolver.under_way.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn lookups_under_way_are_bounded() {
        let resolver = resolver(&[]);
        for n in 0..MAX_LOOKUPS {
            let hanging = std::future::pending().boxed().shared();
            resolver.under_way.lock().unwrap().insert(format!("slow-{n}.example"), hanging);
        }
        let error = resolver.resolve_checked("one-more.example".to_owned()).await.unwrap_err();
        assert!(matches!(error.downcast_ref(), Some(ResolveError::Busy { .. })), "{error}");
    }
}
