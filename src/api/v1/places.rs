//! Places for what takes long, so that nobody has them all: a merchant's account has a few at a time, all merchants together half of
//! them, and whoever waits does not wait for ever.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::http::{StatusCode, header};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::timeout,
};

use super::access::Caller;
use crate::{
    facts::{id::AccountId, token::Role},
    http::problem::Problem,
};

/// What an account may have, waiting and in place.
const OF_AN_ACCOUNT: usize = 2;

pub struct Places {
    all: Semaphore,
    of_merchants: Semaphore,
    taken: Mutex<HashMap<AccountId, usize>>,
    patience: Duration,
}

/// Whoever holds it is in place.
pub struct Place<'a> {
    permits: (Option<SemaphorePermit<'a>>, Option<SemaphorePermit<'a>>),
    share: Option<Share<'a>>,
}

/// One of those that an account may have.
pub struct Share<'a> {
    of: &'a Places,
    account: AccountId,
}

impl Places {
    /// At least two. Nobody waits longer than `patience` for one.
    pub fn new(all: usize, patience: Duration) -> Self {
        let (all, of_merchants) = (Semaphore::new(all), Semaphore::new(all / 2));
        Self { all, of_merchants, taken: Mutex::default(), patience }
    }

    pub async fn take_for(&self, caller: &Caller) -> Result<Place<'_>, Problem> {
        match &caller.account {
            Some(account) if caller.role == Role::Merchant => self.take(Some(self.share(account)?)).await,
            _ => self.take(None).await,
        }
    }

    pub async fn take_for_staff(&self) -> Result<Place<'_>, Problem> {
        self.take(None).await
    }

    async fn take<'a>(&'a self, share: Option<Share<'a>>) -> Result<Place<'a>, Problem> {
        let take = async {
            // Nobody closes them.
            let of_merchants = if share.is_some() { self.of_merchants.acquire().await.ok() } else { None };
            (of_merchants, self.all.acquire().await.ok())
        };
        let busy = |_| Problem::unavailable("Too many others ask for the same at the moment; nothing was done.", 1);
        let permits = timeout(self.patience, take).await.map_err(busy)?;
        Ok(Place { permits, share })
    }

    fn share(&self, account: &AccountId) -> Result<Share<'_>, Problem> {
        let mut taken = self.taken();
        let count = taken.entry(account.clone()).or_default();
        if *count >= OF_AN_ACCOUNT {
            let detail = format!("An account asks for at most {OF_AN_ACCOUNT} of these at a time; nothing was done.");
            let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "too-many-at-once", detail);
            return Err(problem.with(header::RETRY_AFTER, 1));
        }
        *count += 1;
        Ok(Share { of: self, account: account.clone() })
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<AccountId, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'a> Place<'a> {
    /// Somebody else may have the place; its account still has one less.
    pub fn leave(self) -> Option<Share<'a>> {
        drop(self.permits);
        self.share
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        let mut taken = self.of.taken();
        if let Some(count) = taken.get_mut(&self.account) {
            *count -= 1;
            // Accounts that ask for nothing are not remembered.
            if *count == 0 {
                taken.remove(&self.account);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(id: &str) -> AccountId {
        id.parse().unwrap()
    }

    async fn of<'a>(places: &'a Places, id: &str) -> Result<Place<'a>, StatusCode> {
        let share = places.share(&account(id)).map_err(|problem| problem.status)?;
        places.take(Some(share)).await.map_err(|problem| problem.status)
    }

    #[tokio::test]
    async fn an_account_has_two_and_all_merchants_half_and_the_rest_is_for_others() {
        let places = Places::new(8, Duration::ZERO);
        let first = [of(&places, "acc_1").await.unwrap(), of(&places, "acc_1").await.unwrap()];
        assert_eq!(of(&places, "acc_1").await.err(), Some(StatusCode::TOO_MANY_REQUESTS));
        let second = [of(&places, "acc_2").await.unwrap(), of(&places, "acc_2").await.unwrap()];
        assert_eq!(of(&places, "acc_3").await.err(), Some(StatusCode::SERVICE_UNAVAILABLE));
        let mut others = Vec::new();
        for _ in 0..4 {
            others.push(places.take_for_staff().await.unwrap());
        }
        assert_eq!(
            places.take_for_staff().await.err().map(|problem| problem.status),
            Some(StatusCode::SERVICE_UNAVAILABLE)
        );
        drop((first, second, others));
        assert!(places.taken().is_empty());
    }

    #[tokio::test]
    async fn whoever_has_left_a_place_still_counts_for_their_account() {
        let places = Places::new(2, Duration::ZERO);
        let share = of(&places, "acc_1").await.unwrap().leave();
        let _other = of(&places, "acc_2").await.unwrap().leave();
        let _second = of(&places, "acc_1").await.unwrap();
        assert_eq!(of(&places, "acc_1").await.err(), Some(StatusCode::TOO_MANY_REQUESTS));
        drop(share);
        assert_eq!(
            of(&places, "acc_1").await.err(),
            Some(StatusCode::SERVICE_UNAVAILABLE),
            "it may, but there is no place"
        );
    }
}
