//! An issue: what fails at one endpoint for one cause, made of the health that its owner published, of the dead letters, and of what
//! operators said of it. Pure, and derived each time it is looked at, so that it can never disagree with what is there.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{
    diagnosis::Diagnosis,
    endpoint::Mark,
    health::{Health, Verdict},
    id::{AccountId, DeliveryId, EndpointId},
    letter::Cause,
};

/// `ENDPOINT:CAUSE`: what it is about is what it is called.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IssueId {
    pub endpoint: EndpointId,
    pub cause: Cause,
}

impl fmt::Display for IssueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.endpoint, self.cause)
    }
}

impl FromStr for IssueId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = |why: String| {
            format!(
                "{why}; an issue is ENDPOINT:CAUSE, for example ep_x:server_failed:500, as `herald issue list` shows it"
            )
        };
        let (endpoint, cause) = text.split_once(':').ok_or_else(|| bad("there is no colon in it".to_owned()))?;
        Ok(Self {
            endpoint: endpoint.parse().map_err(|error: super::id::IdError| bad(error.to_string()))?,
            cause: cause.parse().map_err(|error: super::letter::CauseError| bad(error.to_string()))?,
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Nobody has said anything of it, or it came back after it was resolved.
    Open,
    /// Somebody knows.
    Acknowledged,
    /// Somebody says that it is mended, and it has not happened since.
    Resolved,
}

impl State {
    pub fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Acknowledged => "acknowledged",
            Self::Resolved => "resolved",
        }
    }
}

/// What an operator said of an issue, as it is stored. The mark's time is Redis', so that it can be compared with failures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    pub state: State,
    #[serde(flatten)]
    pub mark: Mark,
}

/// Dead letters of one endpoint and cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letters {
    pub account: Option<AccountId>,
    pub count: u64,
    pub first_ms: u64,
    pub last_ms: u64,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Issue {
    pub id: IssueId,
    pub account: Option<AccountId>,
    pub state: State,
    /// What was last said of it, also if it came back since.
    pub said: Option<Said>,
    /// Its endpoint fails now, and this is one of the causes.
    pub is_failing: bool,
    /// Since then nothing succeeded there at all.
    pub nothing_since_ms: Option<u64>,
    pub first_ms: u64,
    pub last_ms: u64,
    /// Attempts that failed, since it was first seen and as far as an owner remembers: a day.
    pub attempts: u64,
    /// By hour since 1970, the oldest first.
    pub hours: Vec<(u64, u32)>,
    pub letters: u64,
    /// Of the letters, those that were never tried, because this kept them waiting for too long.
    pub never_tried: u64,
    /// Events that were not even taken in for it, because it is disabled for this.
    pub skipped: u64,
    /// The last time that its endpoint was well.
    pub well_ms: Option<u64>,
    /// A delivery that it happened to.
    pub sample: Option<DeliveryId>,
    pub detail: String,
    pub diagnosis: Diagnosis,
}

impl Issue {
    /// Those that are most urgent come first.
    pub fn order(&self) -> impl Ord + use<> {
        (self.state, !self.is_failing, u64::MAX - (self.attempts + self.letters), self.first_ms, self.id.clone())
    }
}

/// The issues of the endpoints whose health and letters these are. What failed within the last day and works again is none,
/// unless letters of it are left.
pub fn issues<'a>(
    health: impl IntoIterator<Item = (&'a EndpointId, &'a Health)>,
    letters: &BTreeMap<IssueId, Letters>,
    said: &BTreeMap<IssueId, Said>,
    now_ms: u64,
) -> Vec<Issue> {
    let mut found = BTreeMap::<IssueId, Issue>::new();
    // What failed within the day, of endpoints that work again: told where letters are left.
    let mut past = BTreeMap::<IssueId, Issue>::new();
    for (endpoint, health) in health {
        let is_failing = matches!(health.verdict(now_ms), Verdict::Failing | Verdict::Unsteady);
        let nothing_since_ms = health.failing_since_ms.filter(|_| health.verdict(now_ms) == Verdict::Failing);
        let lately_ms = now_ms.saturating_sub(super::health::MINUTES * super::health::MINUTE_MS);
        let since_ms = nothing_since_ms.unwrap_or(lately_ms);
        for seen in &health.causes {
            let id = IssueId { endpoint: endpoint.clone(), cause: seen.cause.clone() };
            let mut issue = empty(id, health.account.clone());
            (issue.attempts, issue.hours) = (seen.count, seen.hours.clone());
            (issue.first_ms, issue.last_ms) = (seen.first_ms, seen.last_ms);
            (issue.sample, issue.detail) = (Some(seen.sample.clone()), seen.detail.clone());
            issue.well_ms = health.well_ms;
            if seen.cause.as_str() == "gone" {
                // Its count goes on for ever, so one that began before this is not of this alone.
                let skipped = health.skipped.filter(|skipped| skipped.first_ms >= seen.first_ms);
                issue.skipped = skipped.map_or(0, |skipped| skipped.count);
            }
            if is_failing && seen.last_ms >= since_ms {
                (issue.is_failing, issue.nothing_since_ms) = (true, nothing_since_ms);
                found.insert(issue.id.clone(), issue);
            } else {
                past.insert(issue.id.clone(), issue);
            }
        }
    }
    for (id, letters) in letters {
        let new = || Issue { first_ms: letters.first_ms, ..empty(id.clone(), letters.account.clone()) };
        let past = past.remove(id).filter(|past| letters.account.is_none() || past.account == letters.account);
        let issue = found.entry(id.clone()).or_insert_with(|| past.unwrap_or_else(new));
        issue.letters = letters.count;
        issue.first_ms = issue.first_ms.min(letters.first_ms);
        issue.last_ms = issue.last_ms.max(letters.last_ms);
    }
    fold(&mut found);
    let mut issues: Vec<Issue> = found.into_values().map(|issue| judged(issue, said)).collect();
    issues.sort_by_cached_key(Issue::order);
    issues
}

/// Letters that waited in vain belong to what they waited for: who looks for causes is not shown the consequences as well.
fn fold(found: &mut BTreeMap<IssueId, Issue>) {
    // One pass for each half: there may be ten thousand endpoints that fail.
    let mut leaders = BTreeMap::<EndpointId, (bool, u64, IssueId)>::new();
    for issue in found.values().filter(|issue| !issue.id.cause.is_consequence()) {
        let stands = (issue.is_failing, issue.last_ms, issue.id.clone());
        let known = leaders.entry(issue.id.endpoint.clone()).or_insert_with(|| stands.clone());
        if (known.0, known.1) <= (stands.0, stands.1) {
            *known = stands;
        }
    }
    let follows = |issue: &Issue| issue.id.cause.is_consequence() && issue.attempts == 0;
    let followers: Vec<IssueId> = found.values().filter(|issue| follows(issue)).map(|issue| issue.id.clone()).collect();
    for id in followers {
        let Some((_, _, leader)) = leaders.get(&id.endpoint) else { continue };
        let Some(follower) = found.remove(&id) else { continue };
        if let Some(leader) = found.get_mut(leader) {
            leader.letters += follower.letters;
            leader.never_tried += follower.letters;
            leader.last_ms = leader.last_ms.max(follower.last_ms);
        }
    }
}

fn empty(id: IssueId, account: Option<AccountId>) -> Issue {
    Issue {
        diagnosis: Diagnosis::of(&id.cause, &id.endpoint),
        id,
        account,
        state: State::Open,
        said: None,
        is_failing: false,
        nothing_since_ms: None,
        first_ms: 0,
        last_ms: 0,
        attempts: 0,
        hours: Vec::new(),
        letters: 0,
        never_tried: 0,
        skipped: 0,
        well_ms: None,
        sample: None,
        detail: String::new(),
    }
}

/// A resolved one that has happened since opens anew; and so does an acknowledged one that was over meanwhile.
fn judged(mut issue: Issue, said: &BTreeMap<IssueId, Said>) -> Issue {
    if let Some(said) = said.get(&issue.id) {
        issue.state = match said.state {
            State::Resolved if issue.last_ms > said.mark.at_ms => State::Open,
            State::Acknowledged if issue.is_failing && issue.well_ms.is_some_and(|at| at > said.mark.at_ms) => {
                State::Open
            }
            state => state,
        };
        issue.said = Some(said.clone());
    }
    issue
}

/// What to send to the merchant: ready to be copied. Times are in the words of the surface that shows it.
pub fn to_merchant(issue: &Issue, url: Option<&str>, when: impl Fn(u64) -> String) -> Option<String> {
    let sentence = issue.diagnosis.merchant.as_ref()?;
    let url = url.unwrap_or("your callback URL");
    let (first, last) = (when(issue.first_ms), when(issue.last_ms));
    let what = match (issue.is_failing, issue.nothing_since_ms) {
        (true, Some(since_ms)) => format!("Since {} our callbacks to {url} have not been taken.", when(since_ms)),
        (true, None) => {
            format!("Since {first} some of our callbacks to {url} have not been taken, the last at {last}.")
        }
        (false, _) if first == last => format!("At {first} callbacks to {url} were not taken."),
        (false, _) => format!("Between {first} and {last} callbacks to {url} were not taken."),
    };
    let mut text = format!("{what}\n{sentence}\n");
    if issue.is_failing {
        text.push_str("We keep trying, with growing pauses; nothing of what waits is lost.\n");
    }
    if issue.letters > 0 {
        text.push_str(&format!(
            "We have kept {} that we gave up, and send them again when you are ready.\n",
            match issue.letters {
                1 => "one event".to_owned(),
                letters => format!("{letters} events"),
            }
        ));
    }
    if issue.skipped > 0 {
        text.push_str(&format!(
            "Since your callback URL is disabled, {} more were not sent; once it is enabled again we can send those of the last days.\n",
            if issue.skipped == 1 { "one event".to_owned() } else { format!("{} events", issue.skipped) }
        ));
    }
    if let Some(sample) = &issue.sample {
        text.push_str(&format!(
            "An example: the callback with herald-sequence {}.\n",
            super::sequence::Sequence(sample.entry)
        ));
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::health::{DAY_MS, MINUTE_MS, Seen};

    const NOW: u64 = 1_800_000_000_000;

    fn id(text: &str) -> IssueId {
        text.parse().unwrap()
    }

    fn failing(cause: &str, count: u32, at_ms: u64) -> Health {
        let mut seen = Seen { account: "acc_a".parse().ok(), ..Seen::default() };
        let sample = "7-1:ep_a".parse().unwrap();
        (0..count).for_each(|_| seen.failed(at_ms, cause.parse().unwrap(), &sample, "detail"));
        let mut health = Health::new(at_ms);
        health.add(at_ms, seen);
        health
    }

    fn of(health: &Health, letters: &[(&str, u64)], said: &[(&str, State, u64)], now_ms: u64) -> Vec<Issue> {
        let endpoint: EndpointId = "ep_a".parse().unwrap();
        let letters = letters.iter().map(|(of, count)| {
            let letters = Letters { account: None, count: *count, first_ms: NOW - DAY_MS, last_ms: NOW - MINUTE_MS };
            (id(of), letters)
        });
        let said = said.iter().map(|(of, state, at_ms)| {
            let mark = Mark { by: "ann".to_owned(), why: "seen".to_owned(), at_ms: *at_ms };
            (id(of), Said { state: *state, mark })
        });
        issues([(&endpoint, health)], &letters.collect(), &said.collect(), now_ms)
    }

    #[test]
    fn failing_attempts_and_letters_of_one_cause_are_one_issue() {
        let health = failing("server_failed:500", 6, NOW);
        let found = of(&health, &[("ep_a:server_failed:500", 3), ("ep_b:dns_failed", 1)], &[], NOW);
        assert_eq!(
            found.iter().map(|issue| issue.id.to_string()).collect::<Vec<_>>(),
            ["ep_a:server_failed:500", "ep_b:dns_failed"]
        );
        let first = &found[0];
        assert_eq!((first.attempts, first.letters, first.is_failing, first.state), (6, 3, true, State::Open));
        assert_eq!((first.first_ms, first.last_ms), (NOW - DAY_MS, NOW));
        assert_eq!(first.sample, "7-1:ep_a".parse().ok());
        assert!(!found[1].is_failing && found[1].attempts == 0);
    }

    #[test]
    fn what_works_again_is_no_issue_unless_letters_are_left() {
        let mut health = failing("server_failed:500", 6, NOW);
        let mut well = Seen::default();
        (0..100).for_each(|_| well.delivered(NOW + 1, 1_000));
        health.add(NOW + 1, well);
        assert_eq!(of(&health, &[], &[], NOW + 1), []);
        let left = of(&health, &[("ep_a:server_failed:500", 2)], &[], NOW + 1);
        assert_eq!((left.len(), left[0].is_failing, left[0].attempts), (1, false, 6));
        let text = to_merchant(&left[0], None, |at_ms| at_ms.to_string()).unwrap();
        assert!(text.starts_with(&format!("Between {} and {NOW} callbacks", NOW - DAY_MS)), "{text}");
    }

    #[test]
    fn letters_that_waited_in_vain_are_counted_with_what_they_waited_for() {
        let health = failing("server_failed:500", 6, NOW);
        let letters = [
            ("ep_a:server_failed:500", 3),
            ("ep_a:never_tried:breaker_open", 40),
            ("ep_a:never_tried:held", 14),
            ("ep_a:never_tried:rate_limited", 2),
            ("ep_b:never_tried:held", 1),
        ];
        let found = of(&health, &letters, &[], NOW);
        let counts =
            found.iter().map(|issue| (issue.id.to_string(), issue.letters, issue.never_tried)).collect::<Vec<_>>();
        let of = |id: &str, letters, never_tried| (id.to_owned(), letters, never_tried);
        assert_eq!(
            counts,
            [
                of("ep_a:server_failed:500", 57, 54),
                of("ep_a:never_tried:rate_limited", 2, 0),
                of("ep_b:never_tried:held", 1, 0)
            ]
        );
    }

    #[test]
    fn a_resolved_one_that_fails_again_opens_anew_and_an_acknowledged_one_stays_so() {
        let health = failing("dns_failed", 6, NOW);
        let state = |said, at_ms| of(&health, &[], &[("ep_a:dns_failed", said, at_ms)], NOW)[0].state;
        assert_eq!(state(State::Resolved, NOW + 1), State::Resolved);
        assert_eq!(state(State::Resolved, NOW - 1), State::Open);
        assert_eq!(state(State::Acknowledged, NOW), State::Acknowledged);
        let reopened = &of(&health, &[], &[("ep_a:dns_failed", State::Resolved, NOW - 1)], NOW)[0];
        assert_eq!(reopened.said.as_ref().unwrap().mark.by, "ann");
    }

    #[test]
    fn an_acknowledged_one_that_was_over_meanwhile_is_an_alarm_again() {
        let mut health = failing("dns_failed", 6, NOW);
        let state = |health: &Health, now_ms| {
            of(health, &[], &[("ep_a:dns_failed", State::Acknowledged, NOW + 1)], now_ms)[0].state
        };
        let fails = |health: &mut Health, at_ms| {
            let mut seen = Seen { account: "acc_a".parse().ok(), ..Seen::default() };
            (0..6).for_each(|_| seen.failed(at_ms, "dns_failed".parse().unwrap(), &"7-1:ep_a".parse().unwrap(), ""));
            health.add(at_ms, seen);
        };
        // It takes one now and then: that is the same issue.
        for minute in 1..4 {
            let mut one = Seen::default();
            one.delivered(NOW + minute * MINUTE_MS, 1);
            health.add(NOW + minute * MINUTE_MS, one);
            fails(&mut health, NOW + minute * MINUTE_MS + 1);
        }
        assert_eq!(state(&health, NOW + 4 * MINUTE_MS), State::Acknowledged);
        let mut well = Seen::default();
        (0..1_000).for_each(|_| well.delivered(NOW + 5 * MINUTE_MS, 1));
        health.add(NOW + 5 * MINUTE_MS, well);
        fails(&mut health, NOW + 60 * MINUTE_MS);
        let now_ms = NOW + 62 * MINUTE_MS;
        assert_eq!(state(&health, now_ms), State::Open);
        let issue = &of(&health, &[], &[], now_ms)[0];
        let text = to_merchant(issue, Some("https://a.example/"), |at_ms| at_ms.to_string()).unwrap_or_default();
        assert_eq!(issue.nothing_since_ms, Some(NOW + 60 * MINUTE_MS), "{text}");
    }

    #[test]
    fn an_id_says_what_it_is_about_and_how_it_is_written() {
        assert_eq!(id("ep_a:tls_failed:expired").cause.as_str(), "tls_failed:expired");
        for bad in ["ep_a", "x:dns_failed", "ep_a:", "ep_a:No", "ep_a:a:b:c"] {
            assert!(bad.parse::<IssueId>().unwrap_err().contains("ENDPOINT:CAUSE"), "{bad}");
        }
    }

    #[test]
    fn the_merchant_is_told_what_to_mend_and_the_operator_keeps_his_own_faults() {
        let mut health = failing("response_timed_out", 6, NOW);
        health.account = None;
        let issue = &of(&health, &[("ep_a:response_timed_out", 2)], &[], NOW)[0];
        let text = to_merchant(issue, Some("https://a.example/"), |_| "Monday".to_owned()).unwrap();
        assert!(
            text.contains("https://a.example/") && text.contains("answer with 2xx") && text.contains("2 events"),
            "{text}"
        );
        assert!(text.contains("s00000000000000000007-00000000000000000001"), "{text}");
        let ours = &of(&failing("unsendable", 6, NOW), &[], &[], NOW)[0];
        assert_eq!(to_merchant(ours, None, |_| "Monday".to_owned()), None);
    }
}
