//! All of Redis. An **entry** lies in the stream; a **record** keeps an unfinished delivery; a **term** is one
//! uninterrupted spell of ownership, and its value fences every script.

pub mod connection;
mod decode;
pub mod error;
pub mod keys;
pub mod model;
pub mod partition;
pub mod protocol;
pub mod requests;
pub mod watch;
