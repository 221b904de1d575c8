//! What is fuzzed: everything that strangers write and Herald reads. Each target takes any bytes and panics if a
//! promise about them is broken; it shares no code with what it checks.

mod address;
mod answers;
mod config;
mod event;
mod filters;
pub mod oracle;
mod records;
mod retry_after;

pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
}

pub const ALL: &[Target] = &[
    Target { name: "event", run: event::run },
    Target { name: "address", run: address::run },
    Target { name: "config", run: config::run },
    Target { name: "filters", run: filters::run },
    Target { name: "retry_after", run: retry_after::run },
    Target { name: "answers", run: answers::run },
    Target { name: "records", run: records::run },
];

/// An input as text, whatever its bytes are.
fn text(input: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(input)
}
