//! Which account an attempt is made for, how long its connection took, and whether its request went out twice. Never
//! decides what that means.

use std::time::Duration;

use crate::facts::id::AccountId;

/// One attempt's notes.
#[derive(Debug)]
pub(super) struct Stages<'a> {
    /// The account whose share of what all share it takes.
    pub(super) account: &'a AccountId,
    pub(super) dns_us: Option<u64>,
    /// TCP and TLS together, without the resolving before them.
    pub(super) connect_us: Option<u64>,
    /// The request was sent a second time, because the receiver had certainly not processed it.
    pub(super) resent: bool,
}

impl<'a> Stages<'a> {
    pub(super) fn of(account: &'a AccountId) -> Self {
        Self { account, dns_us: None, connect_us: None, resent: false }
    }

    pub(super) fn resolved(&mut self, took: Duration) {
        self.dns_us = Some(micros(took));
    }

    pub(super) fn connected(&mut self, took: Duration) {
        self.connect_us = Some(micros(took));
    }
}

pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
