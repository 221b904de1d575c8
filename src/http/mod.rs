//! What everything that speaks HTTP to callers shares. Nothing here knows what is asked for.
//!
//! - [`connections`] takes connections and bounds what they can take; [`server`] serves a router on them, its requests bounded too.
//! - [`entrance`] is how they come in: by TLS or not, and from where behind proxies.
//! - [`problem`] is how every refusal is answered.
//! - [`json`] reads a body strictly, by its schema, and finds all of its faults at once.
//! - [`html`] writes what others said into a page, as text and nothing else.

pub mod connections;
pub mod entrance;
pub mod html;
pub mod json;
pub mod problem;
pub mod server;
