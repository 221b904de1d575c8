//! Judges when the certificates end that receivers are shown. Pure.

use std::collections::BTreeMap;

use super::finding::Findings;
use crate::{
    facts::id::EndpointId,
    surface::words::{count, span},
};

/// A new certificate takes some people some days.
pub const SOON_MS: u64 = 14 * 86_400_000;

/// How many endpoints are named.
const MAX_NAMED: usize = 5;

/// By the ends in milliseconds since 1970. Says nothing where no receiver asks for one.
pub fn judge(findings: &mut Findings, ends: &BTreeMap<EndpointId, u64>, now_ms: u64) {
    let (over, rest): (Vec<_>, Vec<_>) = ends.iter().partition(|(_, end_ms)| **end_ms <= now_ms);
    let soon: Vec<_> = rest.into_iter().filter(|(_, end_ms)| **end_ms - now_ms < SOON_MS).collect();
    let remedy = "herald endpoint update ID --client-certificate-file F --client-key-file F --reason '…'";
    if !over.is_empty() {
        let which = named(&over, |end_ms| format!("{} ago", span(now_ms - end_ms)));
        findings.fail("certificates", format!("the client certificate has expired of {which}"), remedy);
    }
    if !soon.is_empty() {
        let which = named(&soon, |end_ms| format!("in {}", span(end_ms - now_ms)));
        findings.warn("certificates", format!("the client certificate ends of {which}"), remedy);
    }
    if over.is_empty() && soon.is_empty() && !ends.is_empty() {
        findings
            .ok("certificates", count(ends.len() as u64, "client certificate is good", "client certificates are good"));
    }
}

/// Those that end first.
fn named(ends: &[(&EndpointId, &u64)], when: impl Fn(u64) -> String) -> String {
    let mut ends = ends.to_vec();
    ends.sort_by_key(|(_, end_ms)| **end_ms);
    let more = ends.len().saturating_sub(MAX_NAMED);
    let named: Vec<String> =
        ends.iter().take(MAX_NAMED).map(|(id, end_ms)| format!("{id} ({})", when(**end_ms))).collect();
    match more {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::Level;

    const DAY_MS: u64 = 86_400_000;

    fn judged(days: &[u64]) -> Vec<(Level, String)> {
        let ends = days.iter().enumerate().map(|(n, day)| (format!("ep_{n}").parse().unwrap(), day * DAY_MS)).collect();
        let mut findings = Findings::default();
        judge(&mut findings, &ends, 100 * DAY_MS);
        findings.worst_first().into_iter().map(|finding| (finding.level, finding.says)).collect()
    }

    #[test]
    fn a_client_certificate_is_told_of_two_weeks_before_it_ends() {
        assert_eq!(judged(&[]), []);
        assert_eq!(judged(&[114, 900]), [(Level::Ok, "2 client certificates are good".to_owned())]);
        let found = judged(&[113, 900, 99, 101]);
        let levels: Vec<Level> = found.iter().map(|(level, _)| *level).collect();
        assert_eq!(levels, [Level::Fail, Level::Warn], "{found:?}");
        assert!(found[0].1.contains("ep_2 (") && !found[0].1.contains("ep_0"), "{found:?}");
        assert!(found[1].1.contains("ep_3 (") && found[1].1.find("ep_3") < found[1].1.find("ep_0"), "{found:?}");
        assert!(judged(&[101; 7])[0].1.ends_with("and 2 more"));
    }
}
