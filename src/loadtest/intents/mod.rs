//! The payment-intents service under load: merchants send mixed commands while its processes, the workers and Redis are killed,
//! and the judge holds what each client was answered, and what arrived at the receivers, against what is stored.
//!
//! - [`asks`] is what merchants ask for, [`merchants`] who decide what comes next, [`client`] how it gets to the service.
//! - [`receiver`] takes the callbacks. [`ledger`] notes both sides. [`gather`] reads everything at the end, over HTTP.
//! - [`judge`] is pure: from these books to promises kept or broken, by rules of its own.
//! - [`storm`] puts them together.

pub mod asks;
mod client;
mod figures;
mod gather;
pub mod judge;
pub mod ledger;
mod merchants;
mod receiver;
pub mod storm;
