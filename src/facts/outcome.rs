//! The classified result of one attempt. A failure of a receiver is data, never an error of ours, and it is
//! recognised by its type, never by its text.

use std::{fmt, net::SocketAddr, time::Duration};

use serde::{Deserialize, Serialize};

/// Which part of the TLS handshake went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TlsFailure {
    /// The certificate is for another name.
    WrongName,
    /// The certificate has expired or is not valid yet.
    Expired,
    /// No trusted authority signed the certificate.
    UnknownIssuer,
    /// The certificate is revoked, malformed or otherwise refused.
    BadCertificate,
    /// The receiver does not speak a TLS that we speak, or broke the handshake.
    Handshake,
}

/// What we were short of when an attempt failed here and not at its receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LocalCause {
    /// No descriptor, port or memory for another connection.
    Descriptors,
    /// No place left for another name look-up.
    Lookups,
    /// The thread lagged so far behind that the deadline says nothing about the receiver.
    Lag,
}

/// What an outcome says about the receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It answered as a working one does, even if the answer was no.
    Well,
    /// It has too much to do, or asks for less.
    Congested,
    /// It is in trouble, and sending less would not help.
    Failing,
    /// Nothing: it was never asked.
    Unknown,
}

impl Health {
    /// The receiver is in trouble, not the request and not we.
    pub fn is_trouble(self) -> bool {
        match self {
            Self::Congested | Self::Failing => true,
            Self::Well | Self::Unknown => false,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Outcome {
    /// 2xx.
    Delivered {
        status: u16,
    },
    /// 3xx: never followed.
    Redirected {
        status: u16,
    },
    /// 410: the receiver wants no more.
    Gone,
    /// 429, 502, 503, 504, or any other failure with a `Retry-After`: the receiver, or what stands before it, asks for less.
    Throttled {
        status: u16,
        #[serde(default, skip_serializing_if = "Option::is_none", with = "opt_ms", rename = "retry_after_ms")]
        retry_after: Option<Duration>,
    },
    /// Any other 4xx.
    Rejected {
        status: u16,
    },
    /// Any other 5xx.
    ServerFailed {
        status: u16,
    },
    /// The host's name could not be resolved.
    DnsFailed,
    /// Nothing listens there, or there is no route to it.
    ConnectFailed,
    /// No connection within the time for it.
    ConnectTimedOut,
    /// The egress proxy cannot be reached, is silent, or refuses. Nobody knows what the receiver would have done.
    ProxyFailed,
    Tls {
        failure: TlsFailure,
    },
    /// Connected, but no complete response head within the attempt's time.
    ResponseTimedOut,
    /// The connection ended before the response head was complete.
    Reset,
    /// What came back is not HTTP, or its head is larger than we read.
    Garbled,
    /// The address guard refused the URL or every address it resolved to.
    AddressRefused,
    /// The request could not be built from the endpoint's settings.
    Unsendable,
    /// A failure of ours: the receiver was not asked, or its silence means nothing.
    Local {
        cause: LocalCause,
    },
}

impl Outcome {
    /// A stable name for logs, metrics and filters.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Delivered { .. } => "delivered",
            Self::Redirected { .. } => "redirected",
            Self::Gone => "gone",
            Self::Throttled { .. } => "throttled",
            Self::Rejected { .. } => "rejected",
            Self::ServerFailed { .. } => "server_failed",
            Self::DnsFailed => "dns_failed",
            Self::ConnectFailed => "connect_failed",
            Self::ConnectTimedOut => "connect_timed_out",
            Self::ProxyFailed => "proxy_failed",
            Self::Tls { .. } => "tls_failed",
            Self::ResponseTimedOut => "response_timed_out",
            Self::Reset => "reset",
            Self::Garbled => "garbled",
            Self::AddressRefused => "address_refused",
            Self::Unsendable => "unsendable",
            Self::Local { cause: LocalCause::Descriptors } => "local_descriptors",
            Self::Local { cause: LocalCause::Lookups } => "local_lookups",
            Self::Local { cause: LocalCause::Lag } => "local_lag",
        }
    }

    /// Of the answer, where there was one that says which.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Delivered { status }
            | Self::Redirected { status }
            | Self::Throttled { status, .. }
            | Self::Rejected { status }
            | Self::ServerFailed { status } => Some(*status),
            Self::Gone => Some(410),
            _ => None,
        }
    }

    pub fn is_delivered(&self) -> bool {
        matches!(self, Self::Delivered { .. })
    }

    /// What it says about the receiver, whatever it means for the event.
    pub fn health(&self) -> Health {
        match self {
            Self::Delivered { .. } | Self::Redirected { .. } | Self::Gone | Self::Rejected { .. } => Health::Well,
            Self::Throttled { .. } | Self::ConnectTimedOut | Self::ResponseTimedOut => Health::Congested,
            Self::ServerFailed { .. }
            | Self::DnsFailed
            | Self::ConnectFailed
            | Self::Tls { .. }
            | Self::Reset
            | Self::Garbled
            | Self::AddressRefused => Health::Failing,
            Self::ProxyFailed | Self::Unsendable | Self::Local { .. } => Health::Unknown,
        }
    }

    /// The pause that the receiver asked for.
    pub fn asked(&self) -> Option<Duration> {
        match self {
            Self::Throttled { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Why a retry alone will not mend this, for people who read about the attempt. The policy is followed all the
    /// same.
    pub fn needs_a_person(&self) -> Option<&'static str> {
        match self {
            Self::Redirected { .. } | Self::Throttled { status: 300..=399, .. } => {
                Some("redirects are never followed: register the URL it leads to")
            }
            Self::Gone => Some("the receiver says that this URL is gone: the endpoint is disabled"),
            Self::Rejected { status: 401 | 403 } => {
                Some("the receiver refuses us: check its signature secret and its access rules")
            }
            Self::Rejected { status: 404 | 405 } => Some("the receiver does not know this URL or takes no POST there"),
            Self::Rejected { status: 413 } => Some("the receiver takes no body of this size"),
            Self::Tls { .. } => Some("the receiver's certificate or TLS set-up must be fixed"),
            Self::AddressRefused => {
                Some("Herald does not connect to such a URL: its scheme, its user name or its address is refused")
            }
            Self::Unsendable => Some("the endpoint's URL or headers do not make a valid request: update the endpoint"),
            _ => None,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Delivered { status }
            | Self::Redirected { status }
            | Self::Throttled { status, .. }
            | Self::Rejected { status }
            | Self::ServerFailed { status } => write!(f, "{} ({status})", self.name()),
            Self::Tls { failure } => write!(f, "tls_failed ({failure:?})"),
            _ => f.write_str(self.name()),
        }
    }
}

/// What became of the response's body. It never changes the outcome: the status line alone decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BodyEnd {
    /// Read to its end, or there was none to read.
    #[default]
    Complete,
    /// Longer than we read; the rest was dropped with the connection.
    Cut,
    /// Still arriving when its time was up.
    TimedOut,
    /// Ended before its announced length, or could not be decoded.
    Broken,
}

/// One attempt as it is remembered: in the record, the dead letter and the attempt log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AttemptReport {
    /// 1 for the first attempt of the delivery.
    pub number: u32,
    /// When it began, ms since 1970: by Redis' clock once it is remembered, until then by that of the machine that made it.
    pub at_ms: u64,
    pub outcome: Outcome,
    pub timing: Timing,
    #[serde(default, skip_serializing_if = "is_default")]
    pub body_end: BodyEnd,
    /// First bytes of the response's body as text, at most [`MAX_SNIPPET_BYTES`]; for operators only.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub snippet: String,
    /// Names the cause behind the outcome (an address, a library's error), for operators only.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// First bytes of a response that an attempt keeps. Enough for an error page's title, too little to fill Redis.
pub const MAX_SNIPPET_BYTES: usize = 256;

/// Where an attempt's time went, in microseconds. A stage that did not happen (a kept-alive connection) is absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Timing {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns_us: Option<u64>,
    /// TCP and TLS together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_us: Option<u64>,
    /// From the start to the response's head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_us: Option<u64>,
    /// From the start to the end.
    pub total_us: u64,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

mod opt_ms {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(value: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        value.map(|d| d.as_millis() as u64).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<u64>::deserialize(deserializer)?.map(Duration::from_millis))
    }
}

/// What was sent, for a dead letter: signatures and secret headers are masked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SentRequest {
    pub url: String,
    pub headers: Vec<(String, String)>,
}

/// What one attempt brought.
#[derive(Debug, Clone, PartialEq)]
pub struct Attempted {
    pub report: AttemptReport,
    /// Only for an attempt that did not deliver: the fast path does not pay for it.
    pub request: Option<SentRequest>,
    /// The receiver sent far more than an answer needs, whatever its status: it has shown that it can keep a thread
    /// busy.
    pub flooded: bool,
    /// The request was sent a second time, on a fresh connection, because the receiver had certainly not processed it.
    pub resent: bool,
    /// Whom it has met, if it got an answer.
    pub met: Option<Met>,
}

/// The other end of a connection, and what is spoken there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Met {
    pub address: SocketAddr,
    pub is_http2: bool,
}
