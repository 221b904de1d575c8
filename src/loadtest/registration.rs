//! Registers the endpoints of a run with Herald, and removes them again where the run is a guest.

use std::time::Duration;

use anyhow::{Context, Result};

use super::{ledger::Ledger, population::Population, receiver::Receivers};
use crate::{
    clock,
    facts::endpoint::{Endpoint, Mark},
    store::{
        connection::Redis,
        registry::{RegistryError, RegistryStore},
    },
};

/// How many endpoints get another URL at once: each is a change of its own.
const MOST_CHANGED: u32 = 50;

/// How long a Redis that is away meanwhile is waited for, and the pause between two tries.
const PATIENCE: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_millis(50);

pub struct Registration<'a> {
    population: &'a Population,
    receivers: &'a Receivers,
}

impl<'a> Registration<'a> {
    pub fn new(population: &'a Population, receivers: &'a Receivers) -> Self {
        Self { population, receivers }
    }

    /// All at once, into a registry that belongs to the run.
    pub async fn import(&self, redis: &Redis) -> Result<()> {
        let mut store = RegistryStore::connect(redis).await?;
        let endpoints = self.endpoints().collect();
        store.import(endpoints, None, &mark()).await.context("cannot register the endpoints")?;
        Ok(())
    }

    /// One by one, beside the endpoints of others.
    pub async fn create(&self, redis: &Redis) -> Result<()> {
        let mut store = RegistryStore::connect(redis).await?;
        for endpoint in self.endpoints() {
            store.create(endpoint, &mark()).await.context("cannot register an endpoint")?;
        }
        Ok(())
    }

    /// Gives endpoints another URL, one after the other, and notes when each change was answered.
    pub async fn change_urls(&self, redis: &Redis, ledger: &Ledger) -> Result<()> {
        let generation = ledger.next_generation();
        let deadline = clock::now() + PATIENCE;
        for number in 0..self.population.active().min(MOST_CHANGED) {
            loop {
                match self.change_url(redis, number, generation).await {
                    Ok(()) => break,
                    // Another fault may have taken Redis away, and the answer with it: repeating the change does no
                    // harm.
                    Err(_) if clock::now() < deadline => tokio::time::sleep(PAUSE).await,
                    Err(error) => return Err(error),
                }
            }
            ledger.url_changed(number, generation, clock::wall_ms());
        }
        Ok(())
    }

    async fn change_url(&self, redis: &Redis, number: u32, generation: u32) -> Result<()> {
        let mut store = RegistryStore::connect(redis).await?;
        let known = self.population.endpoints(number..number + 1, &self.receivers.doors, 0).next();
        let known = known.context("an endpoint without a number")?;
        let mut endpoint = store.get(&known.id).await?.context("an endpoint is gone")?;
        endpoint.url = format!("{}?{generation}", known.url);
        store.update(endpoint, &mark()).await.context("cannot change the URL of an endpoint")?;
        Ok(())
    }

    /// Only those of this run; one that is not there is not a failure.
    pub async fn remove(&self, redis: &Redis) -> Result<()> {
        let mut store = RegistryStore::connect(redis).await?;
        for endpoint in self.endpoints() {
            match store.remove(&endpoint.id, None, &mark()).await {
                Ok(()) | Err(RegistryError::Missing(_) | RegistryError::NeverMade) => {}
                Err(error) => {
                    return Err(error).with_context(|| {
                        format!("cannot remove the endpoint {} again: remove those of its run by hand", endpoint.id)
                    });
                }
            }
        }
        Ok(())
    }

    fn endpoints(&self) -> impl Iterator<Item = Endpoint> {
        self.population.endpoints(0..self.population.len(), &self.receivers.doors, clock::wall_ms())
    }
}

fn mark() -> Mark {
    Mark { by: "loadtest".to_owned(), why: "the endpoints of a load test".to_owned(), at_ms: clock::wall_ms() }
}
