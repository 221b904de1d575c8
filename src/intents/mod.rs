//! Payment intents: what a merchant is paid for, from its creation to its end. They are kept in Redis beside the stream that
//! Herald delivers from, and each change leaves together with the event that tells of it, or not at all.
//!
//! - [`details`] is what a merchant says of a purchase, [`requests`] the other bodies and the rules over their members,
//!   [`document`] what is answered, [`event`] what its merchant is told.
//! - [`intent`] is the entity. [`life`] says which command does what in which state, [`decide`] does it: pure, from what is
//!   stored and the time. [`refusal`] says why not, and [`explain`] which commands are possible now.
//!   [`as_of`] says what it was earlier.
//! - [`service`] carries commands out, on what [`records`] asks of the store. [`feed`] reads what was told.
//! - [`issuer`] is the simulated bank of the sandbox.
//! - [`capacity`] keeps room for the intents that there are.
//! - [`money`] and [`stamp`] are the units: minor units of a currency, microseconds of the intents' own clock.

pub mod as_of;
pub mod capacity;
pub mod decide;
#[cfg(test)]
mod decide_tests;
pub mod details;
pub mod document;
pub mod explain;
pub mod feed;
pub mod intent;
pub mod issuer;
pub mod life;
pub mod money;
#[cfg(test)]
mod mutation_tests;
#[cfg(test)]
mod property_tests;
pub mod records;
pub mod refusal;
pub mod requests;
pub mod service;
pub mod stamp;
pub mod told;
