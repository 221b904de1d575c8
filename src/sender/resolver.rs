//! Resolves receivers' names. Never asked for IP literals, and never judges an address: whoever connects has each one
//! checked, so a name that changes its answer gains nothing.
//!
//! A lookup blocks a thread of the runtime's pool for as long as the system's resolver takes, also after whoever asked
//! has given up. So there is one lookup per name at a time, shared by all who wait for it: a receiver whose name servers
//! hang holds one thread, however many attempts it is owed.

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};

/// Most lookups under way: half of tokio's 512 blocking threads, which files and others need as well.
const MAX_LOOKUPS: usize = 256;

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

#[derive(Default)]
pub(super) struct Resolver {
    under_way: Arc<Mutex<HashMap<String, Lookup>>>,
}

impl Resolver {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// The addresses of a name, unchecked.
    pub(super) async fn resolve(&self, name: &str) -> Result<Arc<[IpAddr]>, ResolveError> {
        self.lookup(name).await
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

    #[tokio::test]
    async fn those_who_ask_for_one_name_share_one_lookup_and_it_leaves_nothing_behind() {
        let resolver = Resolver::new();
        let first = resolver.lookup("localhost");
        let second = resolver.lookup("localhost");
        assert!(first.ptr_eq(&second));
        first.await.unwrap();
        assert!(resolver.under_way.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn lookups_under_way_are_bounded() {
        let resolver = Resolver::new();
        for n in 0..MAX_LOOKUPS {
            let hanging = std::future::pending().boxed().shared();
            resolver.under_way.lock().unwrap().insert(format!("slow-{n}.example"), hanging);
        }
        let error = resolver.resolve("one-more.example").await.unwrap_err();
        assert!(matches!(error, ResolveError::Busy { .. }), "{error}");
    }
}
