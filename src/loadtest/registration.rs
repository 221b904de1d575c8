//! Makes the endpoints of a run known to Herald, and takes them away again where they are guests.

use anyhow::{Context, Result};

use super::{population::Population, receiver::Receivers};
use crate::{
    clock,
    facts::endpoint::{Endpoint, Mark},
    store::{
        connection::Redis,
        registry::{RegistryError, RegistryStore},
    },
};

pub struct Registration<'a> {
    population: &'a Population,
    receivers: &'a Receivers,
}

impl<'a> Registration<'a> {
    pub fn new(population: &'a Population, receivers: &'a Receivers) -> Self {
        Self { population, receivers }
    }

    /// All at once, into a registry that is the run's own.
    pub async fn import(&self, redis: &Redis) -> Result<()> {
        let mut store = RegistryStore::connect(redis).await?;
        let endpoints = self.endpoints().collect();
        store.import(endpoints, None, &mark()).await.context("cannot register the endpoints")?;
        Ok(())
    }

    /// One by one, beside those of others.
    pub async fn create(&self, redis: &Redis) -> Result<()> {
        let mut store = RegistryStore::connect(redis).await?;
        for endpoint in self.endpoints() {
            store.create(endpoint, &mark()).await.context("cannot register an endpoint")?;
        }
        Ok(())
    }

    /// Those of this run alone; one that is not there is no failure.
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
        let Receivers { address, misnamed, .. } = *self.receivers;
        self.population.endpoints(0..self.population.len(), address, misnamed, clock::wall_ms())
    }
}

fn mark() -> Mark {
    Mark { by: "loadtest".to_owned(), why: "the endpoints of a load test".to_owned(), at_ms: clock::wall_ms() }
}
