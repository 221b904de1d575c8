//! All of Redis. An **entry** lies in the stream; a **record** keeps an unfinished delivery; a **term** is one
//! uninterrupted spell of ownership, and its value fences every script.

pub mod model;
pub mod protocol;
