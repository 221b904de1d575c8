//! What the audit log says of an act: who does what to what, from where and why, and how it ended. Pure. No secret gets in:
//! every text of a person or of an error is cleaned by [`clean`].

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{
    id::{AccountId, EndpointId, EntryId, IntentId},
    text::steers,
    token,
};

/// Who does what nobody asked for.
pub const HERALD: &str = "herald";

/// What begins the name of a merchant with a token where it stands as the maker of a change.
pub const MERCHANT: &str = "merchant ";

/// As a reason is at most.
const MAX_TEXT_CHARS: usize = 1_024;

/// What an error says beyond this is in the log of whoever met it.
const MAX_ERROR_CHARS: usize = 300;

/// What begins a secret of Herald's, whatever comes before it.
const SECRETS: [&str; 3] = ["whsec_", "sk_sandbox_", token::PREFIX];

macro_rules! acts {
    ($($act:ident = $name:literal,)+) => {
        /// Everything that leaves an entry. An operator's act is called as its verb is, also where Herald or a merchant does it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Act {
            $($act,)+
        }

        impl Act {
            pub const ALL: &[Self] = &[$(Self::$act,)+];

            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$act => $name,)+
                }
            }
        }
    };
}

acts! {
    Pause = "pause",
    Resume = "resume",
    EndpointCreate = "endpoint create",
    EndpointUpdate = "endpoint update",
    EndpointPause = "endpoint pause",
    EndpointResume = "endpoint resume",
    EndpointEnable = "endpoint enable",
    EndpointDisable = "endpoint disable",
    EndpointDelete = "endpoint delete",
    EndpointRemove = "endpoint remove",
    EndpointRotateSecret = "endpoint rotate-secret",
    EndpointAddSecret = "endpoint add-secret",
    EndpointActivateSecret = "endpoint activate-secret",
    EndpointDropSecret = "endpoint drop-secret",
    EndpointTest = "endpoint test",
    EndpointExport = "endpoint export",
    EndpointImport = "endpoint import",
    EndpointAcceptRegistry = "endpoint accept-registry",
    ChainRelease = "chain release",
    DeadLetterRedeliver = "dead-letter redeliver",
    DeadLetterDiscard = "dead-letter discard",
    OperationPlan = "operation plan",
    OperationStart = "operation start",
    OperationPause = "operation pause",
    OperationResume = "operation resume",
    OperationCancel = "operation cancel",
    OperationRate = "operation rate",
    QuarantineRequeue = "quarantine requeue",
    QuarantineDiscard = "quarantine discard",
    Repartition = "repartition",
    IssueAck = "issue ack",
    IssueResolve = "issue resolve",
    IntentsKeyCreate = "intents key create",
    IntentsKeyRevoke = "intents key revoke",
    IntentsReplay = "intents replay",
    KeyReseal = "key reseal",
    KeyRotate = "key rotate",
    KeyUnseal = "key unseal",
    SandboxClockAdvance = "sandbox clock advance",
    SandboxClockSpeed = "sandbox clock speed",
    TokenCreate = "token create",
    TokenRevoke = "token revoke",
}

impl Act {
    /// Whether a full Redis refuses it anyway. Every other act stops something, takes something away or leaves Redis alone, so
    /// it must be possible on a full Redis, and its entry is written there as well.
    pub fn needs_room(self) -> bool {
        matches!(
            self,
            Self::EndpointCreate
                | Self::EndpointResume
                | Self::EndpointEnable
                | Self::EndpointRotateSecret
                | Self::EndpointAddSecret
                | Self::EndpointActivateSecret
                | Self::EndpointImport
                | Self::IssueAck
                | Self::IssueResolve
                | Self::IntentsKeyCreate
                | Self::KeyReseal
                | Self::KeyRotate
                | Self::KeyUnseal
                | Self::Repartition
                | Self::SandboxClockAdvance
                | Self::SandboxClockSpeed
                | Self::TokenCreate
        )
    }
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Act {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let names = || Self::ALL.iter().map(|act| act.name()).collect::<Vec<_>>().join(", ");
        let known = Self::ALL.iter().copied().find(|act| act.name() == text);
        known.ok_or_else(|| format!("there is no such act; use one of {}", names()))
    }
}

/// By what somebody acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Surface {
    /// A verb of the command line.
    Cli,
    /// A request, of a merchant or with a token of the operations API.
    Http,
    /// Herald itself, while it serves.
    Worker,
}

impl Surface {
    pub fn name(self) -> &'static str {
        match self {
            Self::Cli => "cli",
            Self::Http => "http",
            Self::Worker => "worker",
        }
    }
}

/// Where an act comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    pub surface: Surface,
    pub host: String,
    pub process: u32,
    /// The operating system's name for whoever runs that process, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// An act that begins. Written before anything is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// An [`Act`]'s name; a newer Herald may have others.
    pub act: String,
    pub by: String,
    #[serde(flatten)]
    pub origin: Origin,
    /// Of whoever asked for it over HTTP, as far as proxies that are trusted tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<EndpointId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intent: Option<IntentId>,
    /// What else it is about: a delivery, an entry, a file, the names of settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Which of many, as flags.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// How many it is to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

impl Begun {
    pub fn new(act: Act, by: &str, why: &str, origin: Origin) -> Self {
        Self {
            act: act.name().to_owned(),
            by: clean(by, MAX_TEXT_CHARS),
            origin,
            address: None,
            why: clean(why, MAX_TEXT_CHARS),
            account: None,
            endpoint: None,
            intent: None,
            target: None,
            filter: None,
            count: None,
        }
    }

    pub fn address(self, address: Option<IpAddr>) -> Self {
        Self { address, ..self }
    }

    pub fn account(self, account: &AccountId) -> Self {
        Self { account: Some(account.clone()), ..self }
    }

    pub fn endpoint(self, endpoint: &EndpointId) -> Self {
        Self { endpoint: Some(endpoint.clone()), ..self }
    }

    pub fn intent(self, intent: &IntentId) -> Self {
        Self { intent: Some(intent.clone()), ..self }
    }

    pub fn target(self, target: impl fmt::Display) -> Self {
        Self { target: Some(clean(&target.to_string(), MAX_TEXT_CHARS)), ..self }
    }

    pub fn filter(self, filter: impl fmt::Display) -> Self {
        Self { filter: Some(clean(&filter.to_string(), MAX_TEXT_CHARS)), ..self }
    }

    pub fn count(self, count: u64) -> Self {
        Self { count: Some(count), ..self }
    }

    /// What an unknown act needs, its own Herald knows.
    pub fn needs_room(&self) -> bool {
        self.act.parse::<Act>().is_ok_and(Act::needs_room)
    }

    /// What it is about, in one line.
    pub fn object(&self) -> String {
        let ids = [
            self.account.as_ref().map(AccountId::as_str),
            self.endpoint.as_ref().map(EndpointId::as_str),
            self.intent.as_ref().map(IntentId::as_str),
        ];
        // The most precise says it all.
        match (&self.target, &self.filter) {
            (Some(target), _) if self.endpoint.is_none() || target.contains(':') => target.clone(),
            (Some(target), _) => format!("{} {target}", ids[1].unwrap_or_default()),
            (None, Some(filter)) => filter.clone(),
            (None, None) => ids[1..].iter().copied().flatten().collect::<Vec<_>>().join(" "),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Done,
    /// Nothing was changed, or only part of it, because something stands against it.
    Refused,
    /// It broke off: what was done until then is done.
    Failed,
}

impl Verdict {
    pub fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

/// How many of many, as far as it went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally(pub Option<(u64, u64)>);

impl Tally {
    pub fn set(&mut self, done: u64, skipped: u64) {
        self.0 = Some((done, skipped));
    }
}

/// How an act ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// The entry with which it began.
    pub of: EntryId,
    pub result: Verdict,
    /// Only of what was refused or failed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<u64>,
}

impl Ended {
    pub fn new(of: EntryId, result: Verdict, why: &str, tally: Tally) -> Self {
        let (done, skipped) = tally.0.unzip();
        Self { of, result, why: clean(why, MAX_ERROR_CHARS), done, skipped }
    }
}

/// A text of somebody's without what is secret in it, on one line, and no longer than this: URLs lose their user, password and
/// query, and what begins as Herald's own secrets do is left out.
fn clean(text: &str, max_chars: usize) -> String {
    let plain: String = text.chars().map(|c| if steers(c) { ' ' } else { c }).collect();
    let clean: Vec<String> = plain.split(' ').map(|word| without_secret(&without_credentials(word))).collect();
    let clean = clean.join(" ");
    match clean.char_indices().nth(max_chars) {
        Some((end, _)) => format!("{}…", &clean[..end]),
        None => clean,
    }
}

fn without_credentials(word: &str) -> String {
    let Some((scheme, rest)) = word.split_once("://") else { return word.to_owned() };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let cut = path.find(['?', '#']);
    let more = if cut.is_some() { "?…" } else { "" };
    format!("{scheme}://{host}{}{more}", &path[..cut.unwrap_or(path.len())])
}

fn without_secret(word: &str) -> String {
    match SECRETS.iter().filter_map(|secret| Some(word.find(secret)? + secret.len())).min() {
        Some(end) => format!("{}…", &word[..end]),
        None => word.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin() -> Origin {
        Origin { surface: Surface::Cli, host: "worker-1".to_owned(), process: 7, user: Some("root".to_owned()) }
    }

    #[test]
    fn no_text_brings_a_secret_into_the_log() {
        let cleaned = |text: &str| clean(text, 1_000);
        assert_eq!(
            cleaned("moved to https://ann:pw@h.example/a/b?token=x#y now"),
            "moved to https://h.example/a/b?… now"
        );
        assert_eq!(cleaned("\"redis://:pw@h:1/0\""), "\"redis://h:1/0\"");
        assert_eq!(cleaned("it was whsec_abcdef= and key=sk_sandbox_abc"), "it was whsec_… and key=sk_sandbox_…");
        assert_eq!(cleaned("a\nb\u{202e}c  d"), "a b c  d");
        assert_eq!(clean("äöü", 2), "äö…");
    }

    #[test]
    fn an_entry_is_read_as_it_was_written_and_leaves_out_what_it_does_not_say() {
        let begun =
            Begun::new(Act::EndpointPause, "ann", "moved", origin()).endpoint(&"ep_a".parse().unwrap()).count(3);
        let json = serde_json::to_string(&begun).unwrap();
        let expected = r#"{"act":"endpoint pause","by":"ann","surface":"cli","host":"worker-1","process":7,"user":"root","why":"moved","endpoint":"ep_a","count":3}"#;
        assert_eq!(json, expected);
        assert_eq!(serde_json::from_str::<Begun>(&json).unwrap(), begun);
        let mut tally = Tally::default();
        tally.set(2, 1);
        let ended = Ended::new("17-0".parse().unwrap(), Verdict::Refused, "no", tally);
        let json = serde_json::to_string(&ended).unwrap();
        assert_eq!(json, r#"{"of":"17-0","result":"refused","why":"no","done":2,"skipped":1}"#);
        assert_eq!(serde_json::from_str::<Ended>(&json).unwrap(), ended);
    }

    #[test]
    fn an_act_is_found_by_its_name_and_one_of_a_newer_herald_is_kept() {
        for act in Act::ALL {
            assert_eq!(act.name().parse(), Ok(*act));
        }
        assert!("endpoint crate".parse::<Act>().unwrap_err().contains("endpoint create, endpoint update"));
        let newer = Begun { act: "endpoint split".to_owned(), ..Begun::new(Act::Pause, "ann", "", origin()) };
        assert!(!newer.needs_room());
    }

    #[test]
    fn what_an_act_is_about_fits_one_line() {
        let begun = || Begun::new(Act::DeadLetterDiscard, "ann", "x", origin());
        let endpoint = "ep_a".parse().unwrap();
        assert_eq!(begun().endpoint(&endpoint).target("1-0:ep_a").object(), "1-0:ep_a");
        assert_eq!(begun().endpoint(&endpoint).target("url, headers").object(), "ep_a url, headers");
        assert_eq!(begun().endpoint(&endpoint).filter("--endpoint ep_a").object(), "--endpoint ep_a");
        assert_eq!(begun().endpoint(&endpoint).intent(&"pi_a".parse().unwrap()).object(), "ep_a pi_a");
    }
}
