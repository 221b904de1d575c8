//! What the partition may believe of the registry's snapshot. Never reads Redis.

use std::sync::Arc;

use super::{
    lane::{Owed, Standing},
    partition::{Directory, RegistryView},
};
use crate::{
    facts::{
        endpoint::Endpoint,
        id::{AccountId, EndpointId},
        retry::DeadReason,
    },
    registry::{Registry, RegistryState},
};

impl Directory for Registry {
    fn standing(&self, endpoint: &EndpointId) -> Standing {
        match self.get(endpoint) {
            Some(endpoint) => Standing::of(endpoint),
            None if self.is_unreadable(endpoint) => Standing::Unknown,
            // Only a registry that was read whole can say that an endpoint no longer exists.
            // When it was deleted is not known, so whatever still finds its way to it was owed.
            None if is_certain(self) => Standing::Ended { reason: DeadReason::Deleted, owed: Owed::All },
            None => Standing::Unknown,
        }
    }

    fn endpoints_of(&self, account: &AccountId) -> Vec<Arc<Endpoint>> {
        self.endpoints_for(account).to_vec()
    }

    fn unknown_of(&self, account: &AccountId) -> Vec<EndpointId> {
        self.unreadable_of(account)
    }

    fn view(&self) -> RegistryView {
        RegistryView {
            id: self.id().map(|id| id.to_string()),
            last: self.last(),
            is_certain: is_certain(self),
            is_paused: self.paused_all().is_some(),
        }
    }
}

fn is_certain(registry: &Registry) -> bool {
    matches!(registry.state(), RegistryState::Loaded | RegistryState::Empty) && !registry.has_strays()
}
