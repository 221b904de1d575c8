//! What every surface shares: the verbs of `cli`, `doctor`, `demo` and `loadtest` are built on it. It knows none of
//! them, and never decides what one of them does.
//!
//! [`secret`] reads a secret without ever showing it, and [`signatures`] says what was found about a callback's.
//! [`error`] turns what went wrong into an exit code, [`output`] writes results and messages, [`words`] writes numbers,
//! times, sizes and reasons for people, [`colour`] knows where there are colours, [`audit`] writes down what a verb does,
//! [`client`] asks the payment-intents service over HTTP, and [`context`] is what a verb is
//! handed.

pub mod audit;
pub mod client;
pub mod colour;
pub mod context;
pub mod error;
pub mod output;
pub mod secret;
pub mod signatures;

pub use crate::view::words;

pub use self::{
    audit::audited,
    context::{Context, Globals},
    error::{OutputClosed, VerbError, message_of, of_confirmed, of_those_that_answer},
    output::{Format, List, Output, cell, even_unread, json_line, note, tell},
    words::{instant, when},
};
