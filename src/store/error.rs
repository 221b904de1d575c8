//! What can go wrong with Redis, told apart by type from the error's code, never from its text. Messages name what was
//! wanted and what to do; none contains a password, the content of a key or an endpoint's secret.

use std::fmt::Display;

use redis::{ErrorKind, RedisError, ServerErrorKind};

use crate::telemetry::calls::{self as telemetry, Trouble};

/// What to do about a Redis that is not there.
pub(in crate::store) const REACHABLE: &str = "see that it runs and is reachable";

/// What to do about a slot on its way from one node of a Cluster to another.
const MOVING: &str = "its new node is looked for; if this stays, a slot was left half moved: `redis-cli --cluster fix`";

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    #[error(
        "the Redis URL is not usable: {cause}; write redis://HOST:PORT/DB, rediss://…, redis+cluster://HOST:PORT,HOST:PORT, redis+sentinel://HOST,HOST/MASTER or unix:///PATH"
    )]
    Url { cause: String },

    /// No answer, or a server that cannot serve now (loading, read-only, failing over, refusing writes). It is unknown
    /// whether a script ran, so the term ends. The connection must be made anew.
    #[error("cannot {subject}: Redis is unavailable ({cause}); {remedy}")]
    Unavailable { subject: String, cause: String, remedy: &'static str },

    #[error(
        "cannot {subject}: Redis has reached its maxmemory and refuses writes; raise maxmemory or free memory ({cause})"
    )]
    OutOfMemory { subject: String, cause: String },

    /// The script was gone again right after it was loaded.
    #[error("cannot {subject}: Redis forgot the script; something keeps calling SCRIPT FLUSH ({cause})")]
    NoScript { subject: String, cause: String },

    #[error("cannot {subject}: one of Herald's keys has the wrong type; find out what else writes to it ({cause})")]
    WrongType { subject: String, cause: String },

    /// The stream or its consumer group is gone.
    #[error("cannot {subject}: the consumer group is gone and has to be made again ({cause})")]
    NoGroup { subject: String, cause: String },

    #[error(
        "cannot {subject}: Redis denies it; check user, password and ACL, see `herald doctor --print-acl` ({cause})"
    )]
    Denied { subject: String, cause: String },

    #[error("cannot {subject}: unexpected answer from Redis: {cause}")]
    Other { subject: String, cause: String },
}

impl StoreError {
    /// `subject` completes "cannot …": `renew the lease on payment-intents`.
    pub(in crate::store) fn new(subject: impl Display, error: &RedisError) -> Self {
        let (subject, cause, kind) = (subject.to_string(), error.to_string(), Kind::of(error));
        // It was not loaded yet: it is, and goes again.
        if !matches!(kind, Kind::NoScript) {
            telemetry::failed(trouble(error, &kind));
        }
        match kind {
            Kind::Unavailable => {
                let remedy = match trouble(error, &kind) {
                    Trouble::Moved | Trouble::Ask | Trouble::TryAgain => MOVING,
                    _ => REACHABLE,
                };
                Self::Unavailable { subject, cause, remedy }
            }
            Kind::OutOfMemory => Self::OutOfMemory { subject, cause },
            Kind::NoScript => Self::NoScript { subject, cause },
            Kind::WrongType => Self::WrongType { subject, cause },
            Kind::NoGroup => Self::NoGroup { subject, cause },
            Kind::Denied => Self::Denied { subject, cause },
            Kind::Other => Self::Other { subject, cause },
        }
    }

    /// For one of several that a script was asked for: it tells of this one's error, beginning with its code.
    pub(in crate::store) fn told(subject: impl Display, error: &[u8]) -> Self {
        let text = String::from_utf8_lossy(error);
        let (code, detail) = text.split_once(' ').unwrap_or((&text, ""));
        Self::new(subject, &redis::make_extension_error(code.to_owned(), Some(detail.to_owned())))
    }

    /// For a call that took longer than anyone waits.
    pub(in crate::store) fn late(subject: impl Display) -> Self {
        telemetry::failed(Trouble::TimedOut);
        Self::away(subject, "it did not answer in time")
    }

    /// For a server that cannot be reached.
    pub(in crate::store) fn away(subject: impl Display, cause: impl Display) -> Self {
        Self::Unavailable { subject: subject.to_string(), cause: cause.to_string(), remedy: REACHABLE }
    }

    /// For one that is there and with which no connection comes about.
    pub(in crate::store) fn refused(subject: impl Display, cause: String, remedy: &'static str) -> Self {
        telemetry::failed(Trouble::Unavailable);
        Self::Unavailable { subject: subject.to_string(), cause, remedy }
    }

    /// For an answer that no script of this version gives.
    pub(in crate::store) fn unexpected(subject: impl Display, cause: impl Display) -> Self {
        Self::Other { subject: subject.to_string(), cause: cause.to_string() }
    }
}

/// Whether a node of a Cluster says that the slot is another's.
pub(in crate::store) fn has_moved(error: &RedisError) -> bool {
    matches!(kind_of(error), ErrorKind::Server(ServerErrorKind::Moved | ServerErrorKind::Ask))
}

/// Of a transaction that was refused, why its first command was.
fn kind_of(error: &RedisError) -> ErrorKind {
    match error.kind() {
        ErrorKind::Server(ServerErrorKind::ExecAbort) => match error.clone().into_server_errors().as_deref() {
            Some([(_, first), ..]) => first.kind().map_or(ErrorKind::Extension, ErrorKind::Server),
            _ => ErrorKind::Server(ServerErrorKind::ExecAbort),
        },
        kind => kind,
    }
}

/// The same, or that it is on its way: the node itself is well.
pub(in crate::store) fn is_of_a_slot(error: &RedisError) -> bool {
    has_moved(error) || matches!(kind_of(error), ErrorKind::Server(ServerErrorKind::TryAgain))
}

/// What the metrics call it.
fn trouble(error: &RedisError, kind: &Kind) -> Trouble {
    match (kind_of(error), kind) {
        (ErrorKind::Server(ServerErrorKind::BusyLoading), _) => Trouble::Loading,
        (ErrorKind::Server(ServerErrorKind::ReadOnly), _) => Trouble::ReadOnly,
        (ErrorKind::Server(ServerErrorKind::Moved), _) => Trouble::Moved,
        (ErrorKind::Server(ServerErrorKind::Ask), _) => Trouble::Ask,
        (ErrorKind::Server(ServerErrorKind::TryAgain), _) => Trouble::TryAgain,
        (ErrorKind::Server(ServerErrorKind::ClusterDown), _) => Trouble::ClusterDown,
        (ErrorKind::Server(ServerErrorKind::ResponseError), _) => Trouble::Script,
        (_, Kind::Unavailable) if error.is_timeout() => Trouble::TimedOut,
        (_, Kind::Unavailable) => Trouble::Unavailable,
        (_, Kind::OutOfMemory) => Trouble::Full,
        (_, Kind::Denied) => Trouble::Denied,
        (_, Kind::NoScript | Kind::WrongType | Kind::NoGroup | Kind::Other) => Trouble::Other,
    }
}

enum Kind {
    Unavailable,
    OutOfMemory,
    NoScript,
    WrongType,
    NoGroup,
    Denied,
    Other,
}

impl Kind {
    fn of(error: &RedisError) -> Self {
        match kind_of(error) {
            ErrorKind::Io => Self::Unavailable,
            ErrorKind::AuthenticationFailed => Self::Denied,
            ErrorKind::Server(kind) => match kind {
                ServerErrorKind::BusyLoading
                // Of a Cluster: the slot is elsewhere, half of it is, or nobody has it. Nothing has run; whoever asks anew
                // asks another node.
                | ServerErrorKind::Moved
                | ServerErrorKind::Ask
                | ServerErrorKind::TryAgain
                | ServerErrorKind::ClusterDown
                | ServerErrorKind::MasterDown
                | ServerErrorKind::ReadOnly => Self::Unavailable,
                ServerErrorKind::NoScript => Self::NoScript,
                ServerErrorKind::NoPerm => Self::Denied,
                _ => Self::Other,
            },
            ErrorKind::Extension => match error.clone().into_server_errors().as_deref() {
                Some([(_, first), ..]) => Self::of_code(first.code()),
                _ => Self::of_code(error.code().unwrap_or_default()),
            },
            // After a protocol error, the connection is as useless as a broken one.
            _ if error.is_unrecoverable_error() => Self::Unavailable,
            _ => Self::Other,
        }
    }

    /// Codes for which the client library has no name.
    fn of_code(code: &str) -> Self {
        match code {
            "OOM" => Self::OutOfMemory,
            "WRONGTYPE" => Self::WrongType,
            "NOGROUP" => Self::NoGroup,
            "NOAUTH" | "WRONGPASS" | "DENIED" => Self::Denied,
            // A script holds the server; a disk is full; there are too few replicas; a failover ended a blocking call.
            "BUSY" | "MISCONF" | "NOREPLICAS" | "UNBLOCKED" => Self::Unavailable,
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_tell_apart_what_asks_for_another_answer() {
        let of = |code: &str| {
            let text = format!("-{code} a detail\r\n");
            let error = redis::parse_redis_value(text.as_bytes()).and_then(|value| value.extract_error()).unwrap_err();
            trouble(&error, &Kind::of(&error))
        };
        let kinds = ["LOADING", "READONLY", "ERR", "OOM", "NOPERM", "MISCONF", "WRONGTYPE"].map(of);
        let of_a_slot = ["MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN"].map(of);
        assert_eq!(of_a_slot, [Trouble::Moved, Trouble::Ask, Trouble::TryAgain, Trouble::ClusterDown]);
        let expected = [
            Trouble::Loading,
            Trouble::ReadOnly,
            Trouble::Script,
            Trouble::Full,
            Trouble::Denied,
            Trouble::Unavailable,
            Trouble::Other,
        ];
        assert_eq!(kinds, expected);
        let late = RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut));
        assert_eq!(trouble(&late, &Kind::of(&late)), Trouble::TimedOut);
    }

    #[test]
    fn what_a_cluster_says_of_a_slot_that_is_elsewhere_is_a_redis_that_is_away() {
        for said in [
            "MOVED 7 127.0.0.1:7001",
            "ASK 7 127.0.0.1:7001",
            "TRYAGAIN Multiple keys request during rehashing of slot",
            "CLUSTERDOWN Hash slot not served",
            "READONLY You can't write against a read only replica.",
            "NOREPLICAS Not enough good replicas to write.",
        ] {
            let text = format!("-{said}\r\n");
            let error = redis::parse_redis_value(text.as_bytes()).and_then(|value| value.extract_error()).unwrap_err();
            assert!(matches!(StoreError::new("try", &error), StoreError::Unavailable { .. }), "{said}");
            assert_eq!(has_moved(&error), said.starts_with("MOVED") || said.starts_with("ASK"), "{said}");
        }
    }

    fn of(code: &str) -> StoreError {
        StoreError::new("try", &redis::make_extension_error(code.to_owned(), Some("a detail".to_owned())))
    }

    #[test]
    fn an_error_is_told_apart_by_its_code() {
        assert!(matches!(of("OOM"), StoreError::OutOfMemory { .. }));
        assert!(matches!(of("WRONGTYPE"), StoreError::WrongType { .. }));
        assert!(matches!(of("NOGROUP"), StoreError::NoGroup { .. }));
        assert!(matches!(of("NOAUTH"), StoreError::Denied { .. }));
        assert!(matches!(of("MISCONF"), StoreError::Unavailable { .. }));
        assert!(matches!(of("SOMETHING"), StoreError::Other { .. }));
        let io = RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut));
        assert!(matches!(StoreError::new("try", &io), StoreError::Unavailable { .. }));
    }
}
