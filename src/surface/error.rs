//! What a verb can fail with, and the exit codes that a script may rely on. Maps an error to its code by its type, never by its
//! text.

use std::{io, process};

use crate::{
    config::ConfigErrors,
    facts::{event::EventError, id::IdError, retry::RetryError, signing::SecretError},
    history::plan::PlanError,
    registry::rules::RuleError,
    sender::{GuardError, HeaderError},
    store::{
        error::StoreError,
        keys::KeyError,
        operations::OperationError,
        queries::Partitions,
        registry::{RegistryError, bulk::BulkError, confirming::Confirmation},
    },
};

/// Shown below `herald --help`.
pub const HELP: &str = "\
Exit codes:
    0  done
    1  an error of Herald or of what it depends on: Redis, a file, the network
    2  usage: a wrong argument or a wrong configuration
    3  what was asked for does not exist
    4  refused: a value, a state, a signature or a missing yes stands against it; nothing was changed
    5  asked, but nobody answered: no worker owns the partition
    6  stored, and not known to its replicas: a failover may take it back, stderr says what to do
    7  done as far as Redis answers: a partition did not, stderr names it, and what is in it is missing
   99  a load test found a broken promise or a threshold that was not kept
  130  interrupted (as shells report it)

Output: data on stdout, talk on stderr. A table, unless -o json or -o jsonl is given.
Colours on a terminal only, and none where NO_COLOR is set.

Configuration: built-in default, then --config FILE, then the environment, then flags.
`herald config show` prints all of it.

At three in the morning: herald doctor";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    Done = 0,
    Failed = 1,
    Usage = 2,
    NotFound = 3,
    Refused = 4,
    Unanswered = 5,
    Unconfirmed = 6,
    Partly = 7,
    Broken = 99,
}

impl From<ExitCode> for process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code as u8)
    }
}

/// What a verb itself finds wrong. Each text names its subject and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerbError {
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Unanswered(String),
    #[error("{0}")]
    Unconfirmed(String),
    #[error("{0}")]
    Partly(String),
    #[error("{0}")]
    Broken(String),
}

impl VerbError {
    fn code(&self) -> ExitCode {
        match self {
            Self::Usage(_) => ExitCode::Usage,
            Self::NotFound(_) => ExitCode::NotFound,
            Self::Refused(_) => ExitCode::Refused,
            Self::Unanswered(_) => ExitCode::Unanswered,
            Self::Unconfirmed(_) => ExitCode::Unconfirmed,
            Self::Partly(_) => ExitCode::Partly,
            Self::Broken(_) => ExitCode::Broken,
        }
    }
}

/// The reader of stdout went away (`herald … | head`). It may do that, and it is not a failure.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads the output any more")]
pub struct OutputClosed;

/// The first error in the chain whose type says something decides.
pub fn code_of(error: &anyhow::Error) -> ExitCode {
    error.chain().find_map(code_of_link).unwrap_or(ExitCode::Failed)
}

fn code_of_link(error: &(dyn std::error::Error + 'static)) -> Option<ExitCode> {
    if error.is::<OutputClosed>() {
        return Some(ExitCode::Done);
    }
    if let Some(error) = error.downcast_ref::<VerbError>() {
        return Some(error.code());
    }
    if let Some(error) = error.downcast_ref::<RegistryError>() {
        return Some(code_of_registry(error));
    }
    if let Some(error) = error.downcast_ref::<OperationError>() {
        return Some(code_of_operation(error));
    }
    if let Some(error) = error.downcast_ref::<PlanError>() {
        return Some(code_of_plan(error));
    }
    if let Some(error) = error.downcast_ref::<StoreError>() {
        return Some(code_of_store(error));
    }
    if let Some(error) = error.downcast_ref::<io::Error>() {
        return (error.kind() == io::ErrorKind::NotFound).then_some(ExitCode::NotFound);
    }
    let is_usage = error.is::<ConfigErrors>() || error.is::<IdError>() || error.is::<KeyError>();
    let is_refused = error.is::<RuleError>()
        || error.is::<GuardError>()
        || error.is::<HeaderError>()
        || error.is::<EventError>()
        || error.is::<RetryError>()
        || error.is::<SecretError>()
        || error.is::<BulkError>();
    match (is_usage, is_refused) {
        (true, _) => Some(ExitCode::Usage),
        (_, true) => Some(ExitCode::Refused),
        _ => None,
    }
}

fn code_of_registry(error: &RegistryError) -> ExitCode {
    match error {
        RegistryError::Store(error) => code_of_store(error),
        RegistryError::Missing(_) | RegistryError::NeverMade => ExitCode::NotFound,
        RegistryError::Exists(_)
        | RegistryError::Stale { .. }
        | RegistryError::Moved
        | RegistryError::Newer { .. }
        | RegistryError::TooLarge { .. }
        | RegistryError::Unknown(_)
        | RegistryError::KeyInClear(_)
        | RegistryError::Bulk(_) => ExitCode::Refused,
        RegistryError::Unreadable(_) | RegistryError::Locked { .. } | RegistryError::Damaged(_) => ExitCode::Failed,
    }
}

fn code_of_operation(error: &OperationError) -> ExitCode {
    match error {
        OperationError::Store(error) => code_of_store(error),
        OperationError::Nothing | OperationError::Missing(_) => ExitCode::NotFound,
        OperationError::NotForSending => ExitCode::Usage,
        OperationError::TooMany(_)
        | OperationError::Unindexed(_)
        | OperationError::SetBack { .. }
        | OperationError::Refused { .. }
        | OperationError::Many(_) => ExitCode::Refused,
    }
}

fn code_of_plan(error: &PlanError) -> ExitCode {
    match error {
        PlanError::Operation(error) => code_of_operation(error),
        PlanError::NoEndpoint | PlanError::NotForReplay | PlanError::NotForErasing => ExitCode::Usage,
        PlanError::MissingEndpoint(_) => ExitCode::NotFound,
        PlanError::NoHistory(_) => ExitCode::Failed,
        PlanError::NoEvents
        | PlanError::Behind { .. }
        | PlanError::StillSent { .. }
        | PlanError::TooOld { .. }
        | PlanError::OtherAccount { .. }
        | PlanError::Disabled { .. } => ExitCode::Refused,
    }
}

fn code_of_store(error: &StoreError) -> ExitCode {
    match error {
        StoreError::Url { .. } => ExitCode::Usage,
        StoreError::Unavailable { .. }
        | StoreError::OutOfMemory { .. }
        | StoreError::NoScript { .. }
        | StoreError::WrongType { .. }
        | StoreError::NoGroup { .. }
        | StoreError::Denied { .. }
        | StoreError::Other { .. } => ExitCode::Failed,
    }
}

/// How a verb ends that has changed the registry and shown what came of it.
pub fn of_confirmed(confirmation: &Confirmation) -> anyhow::Result<()> {
    if confirmation.is_enough() {
        return Ok(());
    }
    let text = format!(
        "it is stored, but no replica is known to have it ({confirmation}): a failover now may take it back. See to the replicas \
         (`herald doctor`); once they follow their master, look whether it is there, and do it again if it is not"
    );
    Err(VerbError::Unconfirmed(text).into())
}

/// How a verb ends that has looked at all partitions. Where one of them did not answer, the rest was shown, and nobody can say that
/// there is nothing.
pub fn of_those_that_answer(partitions: &Partitions, done: anyhow::Result<()>) -> anyhow::Result<()> {
    let away = partitions.unavailable();
    if away.is_empty() || done.as_ref().is_err_and(|error| code_of(error) != ExitCode::NotFound) {
        return done;
    }
    let why = partitions.why_unavailable().next().map_or_else(String::new, ToString::to_string);
    let said = done.err().map_or_else(|| "what is in them is missing".to_owned(), |error| message_of(&error));
    let text = format!("no answer from {}: {said} ({why})", away.join(", "));
    Err(VerbError::Partly(text).into())
}

/// `error: subject: what to do`, without repeating a cause that its outer error already quotes.
pub fn message_of(error: &anyhow::Error) -> String {
    let mut message = String::new();
    for link in error.chain().map(ToString::to_string) {
        if message.is_empty() {
            message = link;
        } else if !message.contains(&link) {
            message = format!("{message}: {link}");
        }
    }
    message
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;
    use crate::facts::id::EndpointId;

    #[test]
    fn a_code_is_found_below_any_number_of_explanations() {
        let missing = RegistryError::Missing(EndpointId::new("ep_a").unwrap());
        let error = Err::<(), _>(missing).context("cannot pause").context("outer").unwrap_err();
        assert_eq!(code_of(&error), ExitCode::NotFound);
        assert_eq!(code_of(&anyhow::anyhow!("anything")), ExitCode::Failed);
        assert_eq!(code_of(&OutputClosed.into()), ExitCode::Done);
        let away = StoreError::Unavailable { subject: "x".to_owned(), cause: "y".to_owned(), remedy: "z" };
        assert_eq!(code_of(&RegistryError::Store(away).into()), ExitCode::Failed);
        assert_eq!(code_of(&GuardError::PlainHttp.into()), ExitCode::Refused);
    }

    #[test]
    fn a_message_says_each_thing_once() {
        let inner = VerbError::Refused("the URL is http".to_owned());
        let error = anyhow::Error::from(inner).context("endpoint create");
        assert_eq!(message_of(&error), "endpoint create: the URL is http");
        let quoting = anyhow::anyhow!("cause").context("outer, because of: cause");
        assert_eq!(message_of(&quoting), "outer, because of: cause");
    }
}
