//! Which trace an event belongs to, whether it is sampled, and the ids of its spans. Ids are derived and never drawn: whoever makes
//! a later attempt, days later or as another worker, finds its parent without having been told of it.

use std::fmt;

use sha2::{Digest, Sha256};

use super::{
    id::{DeliveryId, EntryId, EventId},
    traceparent::Traceparent,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId(pub [u8; 16]);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId(pub [u8; 8]);

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// The first bytes of a digest over the parts, each behind its length, so that no two lists of parts are one text.
fn derived<const N: usize>(parts: &[&[u8]]) -> [u8; N] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let mut id = [0; N];
    id.copy_from_slice(&hash.finalize()[..N]);
    id
}

impl TraceId {
    /// Of something that has no producer's trace.
    pub fn derived(kind: &str, parts: &[&[u8]]) -> Self {
        let parts: Vec<&[u8]> = [kind.as_bytes()].into_iter().chain(parts.iter().copied()).collect();
        Self(derived(&parts))
    }
}

impl SpanId {
    fn derived(trace: TraceId, kind: &str, of: &str, attempt: u32) -> Self {
        Self(derived(&[&trace.0, kind.as_bytes(), of.as_bytes(), &attempt.to_be_bytes()]))
    }

    /// From the reading of an entry to its settlement.
    pub fn process(trace: TraceId, entry: EntryId) -> Self {
        Self::derived(trace, "process", &entry.to_string(), 0)
    }

    pub fn attempt(trace: TraceId, delivery: &DeliveryId, attempt: u32) -> Self {
        Self::derived(trace, "attempt", &delivery.to_string(), attempt)
    }

    pub fn publish(trace: TraceId, event: &EventId) -> Self {
        Self::derived(trace, "publish", event.as_str(), 0)
    }

    /// Of a request that this number tells apart from all others.
    pub fn request(trace: TraceId, number: &[u8]) -> Self {
        Self(derived(&[&trace.0, b"request", number]))
    }

    /// Of what has a trace of its own.
    pub fn root(trace: TraceId) -> Self {
        Self::derived(trace, "root", "", 0)
    }
}

/// A trace as it comes to Herald.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trace {
    pub id: TraceId,
    /// The producer's span.
    pub parent: Option<SpanId>,
}

impl Trace {
    /// For whoever comes next in a sampled trace.
    pub fn traceparent(&self, span: SpanId) -> Option<Traceparent> {
        format!("00-{}-{span}-01", self.id).parse().ok()
    }
}

/// What decides of a trace that nobody before has decided of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Root {
    All,
    None,
    /// This share of all, by the trace's id: everybody who asks decides alike.
    Share(f64),
}

/// Which traces are sampled, as `OTEL_TRACES_SAMPLER` says it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampler {
    pub root: Root,
    /// Whoever sent it has decided for those that have a parent.
    pub follows_parent: bool,
}

impl Default for Sampler {
    fn default() -> Self {
        Self { root: Root::All, follows_parent: true }
    }
}

impl Sampler {
    /// The trace of what came with this header, if it is sampled; without one, that of this id.
    pub fn trace(&self, given: Option<&Traceparent>, otherwise: impl FnOnce() -> TraceId) -> Option<Trace> {
        let Some(given) = given else {
            let trace = match self.root {
                Root::None => return None,
                Root::All | Root::Share(_) => Trace { id: otherwise(), parent: None },
            };
            return self.root.takes(trace.id).then_some(trace);
        };
        let trace = Trace { id: given.trace_id(), parent: Some(given.parent_id()) };
        let is_taken = if self.follows_parent { given.is_sampled() } else { self.root.takes(trace.id) };
        is_taken.then_some(trace)
    }
}

impl Root {
    fn takes(self, trace: TraceId) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            // As the SDKs of OpenTelemetry do it: 63 of the id's last bits.
            Self::Share(share) => {
                let [.., a, b, c, d, e, f, g, h] = trace.0;
                let number = u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 1;
                share >= 1.0 || number < (share.max(0.0) * (1_u64 << 63) as f64) as u64
            }
        }
    }
}

/// How the events of one partition are traced.
#[derive(Debug, Clone, PartialEq)]
pub struct Tracing {
    pub sampler: Sampler,
    /// The id of the registry that they are owed by: an entry's id alone is not its own for ever.
    pub registry: String,
}

impl Tracing {
    /// None if it is not sampled.
    pub fn of(&self, given: Option<&Traceparent>, entry: EntryId) -> Option<Trace> {
        let otherwise = || TraceId::derived("entry", &[self.registry.as_bytes(), entry.to_string().as_bytes()]);
        self.sampler.trace(given, otherwise)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(flags: &str) -> Traceparent {
        format!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}").parse().unwrap()
    }

    fn tracing(root: Root, follows_parent: bool) -> Tracing {
        Tracing { sampler: Sampler { root, follows_parent }, registry: "r".to_owned() }
    }

    #[test]
    fn a_producer_has_decided_where_that_is_followed() {
        let entry = "17-1".parse().unwrap();
        for (root, follows, flags, is_sampled) in [
            (Root::All, true, Some("01"), true),
            (Root::All, true, Some("00"), false),
            (Root::All, true, Some("03"), true),
            (Root::All, true, Some("02"), false),
            (Root::All, true, None, true),
            (Root::None, true, Some("01"), true),
            (Root::None, true, None, false),
            (Root::None, false, Some("01"), false),
            (Root::All, false, Some("00"), true),
            (Root::Share(0.0), false, Some("01"), false),
            (Root::Share(1.0), true, None, true),
        ] {
            let given = flags.map(given);
            let trace = tracing(root, follows).of(given.as_ref(), entry);
            assert_eq!(trace.is_some(), is_sampled, "{root:?} {follows} {flags:?}");
            let parent = trace.and_then(|trace| trace.parent).map(|parent| parent.to_string());
            assert_eq!(parent, (is_sampled && flags.is_some()).then(|| "b7ad6b7169203331".to_owned()));
        }
    }

    #[test]
    fn a_share_is_that_share_and_the_same_for_everybody() {
        let entries = (1..2_000).map(|ms| EntryId { ms, seq: 0 });
        let (tenth, half) = (tracing(Root::Share(0.1), true), tracing(Root::Share(0.5), true));
        let taken = |tracing: &Tracing| entries.clone().filter(|entry| tracing.of(None, *entry).is_some()).count();
        assert!((130..270).contains(&taken(&tenth)) && (850..1_150).contains(&taken(&half)));
        assert!(entries.clone().all(|entry| tenth.of(None, entry).is_none() || half.of(None, entry).is_some()));
    }

    #[test]
    fn ids_are_the_same_for_the_same_and_others_for_others() {
        let entry = |text: &str| text.parse::<EntryId>().unwrap();
        let one = tracing(Root::All, true).of(None, entry("17-1")).unwrap();
        assert_eq!(Some(one), tracing(Root::Share(1.0), false).of(None, entry("17-1")));
        assert_ne!(Some(one), tracing(Root::All, true).of(None, entry("17-2")));
        let elsewhere = Tracing { registry: "another".to_owned(), ..tracing(Root::All, true) };
        assert_ne!(Some(one), elsewhere.of(None, entry("17-1")));
        let delivery: DeliveryId = "17-1:ep_a".parse().unwrap();
        let first = SpanId::attempt(one.id, &delivery, 1);
        assert_eq!(first, SpanId::attempt(one.id, &delivery, 1));
        assert_ne!(first, SpanId::attempt(one.id, &delivery, 2));
        assert_ne!(first, SpanId::process(one.id, entry("17-1")));
        let header = one.traceparent(first).unwrap();
        assert_eq!((header.trace_id(), header.parent_id(), header.is_sampled()), (one.id, first, true));
    }
}
