//! Judges what payment intents need of Redis beyond what events need. Pure, like [`findings`](super::findings), of which it
//! is a part.

use super::{
    finding::Findings,
    observe::{Limits, Server},
};
use crate::{
    store::queries::{IntentsLook, SetClock},
    surface::words::span,
};

/// A clock that was set to real time again is this near to it.
const NEAR_MS: u64 = 1_000;

pub fn judge(findings: &mut Findings, server: &Server, look: IntentsLook, limits: &Limits) {
    if look.are_kept || limits.are_intents_served {
        durability(findings, server);
    }
    if let Some(set) = look.clock.filter(|_| !limits.is_sandbox) {
        clock(findings, set);
    }
}

/// An append-only file that is off has a finding of its own, which fails.
fn durability(findings: &mut Findings, server: &Server) {
    if !server.info.aof_enabled {
        return;
    }
    match server.settings.appendfsync.as_deref() {
        Some("always") => findings.ok("intents", "each change of a payment intent is on the disk before its answer"),
        Some(other) => findings.warn(
            "intents",
            format!(
                "appendfsync is {other}: a crash of Redis' machine can lose the last changes of payment intents, \
                 although they were answered and their callbacks delivered: what was paid, captured or refunded is not"
            ),
            "redis-cli CONFIG SET appendfsync always, and put it into redis.conf",
        ),
        None => findings.ok("intents", "this user may not see appendfsync: where intents are money, it must be always"),
    }
}

fn clock(findings: &mut Findings, set: SetClock) {
    let ahead = set.ahead_ms.unsigned_abs();
    let pace = match set.speed {
        1.0 if ahead < NEAR_MS => return,
        1.0 => String::new(),
        0.0 => ", and stands still".to_owned(),
        times => format!(", and runs {times} times as fast"),
    };
    let side = if set.ahead_ms < 0 { "behind" } else { "ahead of" };
    findings.warn(
        "intents",
        format!(
            "the clock of payment intents was moved, though the sandbox is off: it is {} {side} Redis'{pace}, and holds, \
             expiries and the dates of events follow it",
            span(ahead)
        ),
        "if these are tests, set HERALD_SANDBOX=true; else serve intents on another stream.name: this clock never goes back",
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{finding::Level, findings::tests::well};

    fn judged(appendfsync: &str, look: IntentsLook, change: impl FnOnce(&mut Limits)) -> Vec<(Level, String)> {
        let mut observed = well();
        let server = observed.server.as_mut().unwrap();
        server.settings.appendfsync = (!appendfsync.is_empty()).then(|| appendfsync.to_owned());
        change(&mut observed.limits);
        let mut findings = Findings::default();
        judge(&mut findings, observed.server.as_ref().unwrap(), look, &observed.limits);
        findings.worst_first().into_iter().map(|finding| (finding.level, finding.says)).collect()
    }

    const KEPT: IntentsLook = IntentsLook { are_kept: true, clock: None };

    #[test]
    fn intents_on_a_redis_that_answers_before_it_writes_are_warned_of() {
        for (appendfsync, level) in
            [("everysec", Level::Warn), ("no", Level::Warn), ("always", Level::Ok), ("", Level::Ok)]
        {
            let found = judged(appendfsync, KEPT, |_| {});
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!(found[0].0, level, "{found:?}");
        }
        let nothing = IntentsLook::default();
        assert_eq!(judged("everysec", nothing, |_| {}), []);
        let served = judged("everysec", nothing, |limits| limits.are_intents_served = true);
        assert_eq!(served[0].0, Level::Warn);
    }

    #[test]
    fn a_clock_that_was_moved_is_warned_of_unless_this_is_a_sandbox() {
        let set = |ahead_ms, speed| IntentsLook { are_kept: false, clock: Some(SetClock { ahead_ms, speed }) };
        let says = |look| judged("always", look, |_| {}).pop().map(|(_, says)| says).unwrap_or_default();
        assert!(says(set(7 * 86_400_000, 1.0)).contains("it is 7d ahead of Redis', and holds"));
        assert!(says(set(-60_000, 0.0)).contains("it is 1m behind Redis', and stands still"));
        assert!(says(set(0, 10.0)).contains("runs 10 times as fast"));
        assert_eq!(says(set(-20, 1.0)), "");
        assert_eq!(judged("always", set(7 * 86_400_000, 1.0), |limits| limits.is_sandbox = true), []);
    }
}
