//! The operations API against the real program and a real Redis, over HTTP.

// A test waits for other processes.
#![allow(clippy::disallowed_methods)]

mod support;

#[path = "intents/browser.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod browser;
#[path = "api/changes.rs"]
mod changes;
#[path = "api/console.rs"]
mod console;
#[path = "api/console_done.rs"]
mod console_done;
#[path = "api/console_pictures.rs"]
mod console_pictures;
#[path = "api/console_seen.rs"]
mod console_seen;
#[path = "api/events.rs"]
mod events;
#[path = "api/flood.rs"]
mod flood;
#[path = "support/herald.rs"]
mod herald_process;
#[path = "api/hostile.rs"]
mod hostile;
#[path = "api/house.rs"]
mod house;
#[path = "api/looks.rs"]
mod looks;
#[path = "api/matrix.rs"]
mod matrix;
#[path = "support/merchants.rs"]
mod merchants;
#[path = "api/operations.rs"]
mod operations;
#[path = "api/page.rs"]
mod page;
#[path = "api/pages.rs"]
mod pages;
#[path = "api/past.rs"]
mod past;
#[path = "api/schemas.rs"]
mod schemas;
#[path = "ops/stage.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod stage;
#[path = "api/tokens.rs"]
mod tokens;
#[path = "api/visitor.rs"]
mod visitor;
