//! Herald as whoever operates it sees it: the page of metrics.

// Tests wait for other processes.
#![allow(clippy::disallowed_methods)]

#[path = "support/merchants.rs"]
mod merchants;
#[path = "operate/page.rs"]
mod page;
#[path = "support/herald.rs"]
mod process;
#[path = "support/mod.rs"]
mod support;
#[path = "support/world.rs"]
mod world;
