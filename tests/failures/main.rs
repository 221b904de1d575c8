//! The whole program against real Redis and real sockets, on good days and on all the bad ones of the promises.

mod crashes;
mod hostile;
mod isolation;
mod redis_trouble;
mod smoke;

#[path = "../support/merchants.rs"]
mod merchants;
#[path = "../support/herald.rs"]
mod process;
#[path = "../support/mod.rs"]
mod support;
#[path = "../support/world.rs"]
mod world;
