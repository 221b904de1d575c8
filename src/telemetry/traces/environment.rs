//! What the environment asks for, by the standard's variables: read once, and refused where it is of a wrong kind, which the SDK would pass
//! over. No message shows a value that may hold a password.

use std::{env, time::Duration};

use http::{HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;
use reqwest::Certificate;
use url::Url;

use crate::facts::trace::{Root, Sampler};

/// As `OTEL_BSP_MAX_QUEUE_SIZE` has it by default.
const QUEUE: usize = 2_048;

/// More would be memory without a use: some hundred megabytes of spans.
const MAX_QUEUE: usize = 131_072;

#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    #[error(
        "{variable} is {value}, and Herald sends traces over HTTP alone: set it to http/protobuf, and the endpoint's port to \
         4318, where collectors listen for that"
    )]
    Protocol { variable: &'static str, value: String },
    #[error("OTEL_TRACES_EXPORTER is {0}, and Herald has otlp and none")]
    Exporter(String),
    #[error("{variable} is {value:?}; {wanted}")]
    Value { variable: &'static str, value: String, wanted: &'static str },
    /// With a value that is not shown.
    #[error("{variable}: {why}")]
    Wrong { variable: &'static str, why: String },
    #[error("traces cannot be sent: {0}")]
    Exporting(String),
}

/// What has a value, right and not empty. What the exporter and its processor read for themselves is only checked.
pub struct Asked {
    pub sampler: Sampler,
    /// Of an export.
    pub timeout: Duration,
    /// How many spans may wait.
    pub queue: usize,
    /// None where those of the machine hold.
    pub authorities: Option<Vec<Certificate>>,
    /// Somebody has named the service.
    pub is_named: bool,
}

/// None where nobody asks for traces; then nothing is checked.
pub fn asked() -> Result<Option<Asked>, TracesError> {
    let endpoints = first(ENDPOINT);
    let is_off = variable("OTEL_SDK_DISABLED");
    if endpoints.is_none() || is_off.as_ref().is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return Ok(None);
    }
    match variable("OTEL_TRACES_EXPORTER").as_deref() {
        Some("none") => return Ok(None),
        None | Some("otlp") => {}
        Some(other) => return Err(TracesError::Exporter(other.to_owned())),
    }
    if let Some(value) = is_off.filter(|value| !value.eq_ignore_ascii_case("false")) {
        return Err(TracesError::Value { variable: "OTEL_SDK_DISABLED", value, wanted: "it must be true or false" });
    }
    if let Some((variable, value)) = first(PROTOCOL).filter(|(_, value)| value != "http/protobuf") {
        return Err(TracesError::Protocol { variable, value });
    }
    if let Some((variable, value)) = endpoints {
        check_endpoint(variable, &value)?;
    }
    for name in HEADERS {
        check_headers(name)?;
    }
    let compression = first(COMPRESSION).filter(|(_, value)| !value.eq_ignore_ascii_case("none"));
    if let Some((variable, value)) = compression {
        let wanted = "Herald sends traces as they are: it must be none";
        return Err(TracesError::Value { variable, value, wanted });
    }
    number("OTEL_BSP_SCHEDULE_DELAY", 0)?;
    number("OTEL_BSP_EXPORT_TIMEOUT", 0)?;
    number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 1)?;
    let queue = number("OTEL_BSP_MAX_QUEUE_SIZE", 1)?.map_or(QUEUE, |size| size.min(MAX_QUEUE));
    let is_named = variable("OTEL_SERVICE_NAME").is_some() | check_resource()?;
    Ok(Some(Asked { sampler: sampler()?, timeout: timeout()?, queue, authorities: authorities()?, is_named }))
}

/// What is set for traces alone stands before what is set for all that is exported.
macro_rules! both {
    ($what:literal) => {
        [concat!("OTEL_EXPORTER_OTLP_TRACES_", $what), concat!("OTEL_EXPORTER_OTLP_", $what)]
    };
}

const ENDPOINT: [&str; 2] = both!("ENDPOINT");
const PROTOCOL: [&str; 2] = both!("PROTOCOL");
const HEADERS: [&str; 2] = both!("HEADERS");
const COMPRESSION: [&str; 2] = both!("COMPRESSION");
const TIMEOUT: [&str; 2] = both!("TIMEOUT");
const CERTIFICATE: [&str; 2] = both!("CERTIFICATE");

/// The first that has a value.
fn first(names: [&'static str; 2]) -> Option<(&'static str, String)> {
    names.into_iter().find_map(|name| Some((name, variable(name)?)))
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn check_endpoint(variable: &'static str, value: &str) -> Result<(), TracesError> {
    let wanted = "it must be a URL that begins with http:// or https://, such as http://127.0.0.1:4318";
    let found = Url::parse(value).ok();
    match &found {
        Some(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(()),
        Some(url) if url.password().is_some() || value.contains('@') => {
            Err(TracesError::Wrong { variable, why: format!("its scheme is {:?}; {wanted}", url.scheme()) })
        }
        None if value.contains('@') => Err(TracesError::Wrong { variable, why: format!("it is no URL; {wanted}") }),
        _ => Err(TracesError::Value { variable, value: value.to_owned(), wanted }),
    }
}

/// Names and values, the values as in a URL: `name=value,other=a%20b`.
fn check_headers(name: &'static str) -> Result<(), TracesError> {
    let is_one = |(header, value): (&str, &str)| {
        let decoded = percent_decode_str(value.trim()).decode_utf8().ok();
        let is_value = decoded.is_some_and(|value| !value.is_empty() && HeaderValue::from_str(&value).is_ok());
        is_value && HeaderName::try_from(header.trim()).is_ok()
    };
    check_list(name, "a header, such as x-api-key=…, with what is not plain text as %20", is_one).map(drop)
}

/// Whether it names the service.
fn check_resource() -> Result<bool, TracesError> {
    let list = check_list("OTEL_RESOURCE_ATTRIBUTES", "NAME=VALUE", |(name, _)| !name.trim().is_empty())?;
    Ok(list.iter().any(|name| name == "service.name"))
}

/// Names of a list, each with its value. Which entry is wrong is told by its place.
fn check_list(
    name: &'static str,
    each: &str,
    is_one: impl Fn((&str, &str)) -> bool,
) -> Result<Vec<String>, TracesError> {
    let value = variable(name).unwrap_or_default();
    let mut names = Vec::new();
    for (place, entry) in value.split_terminator(',').enumerate() {
        let Some((of, _)) = entry.split_once('=').filter(|pair| is_one(*pair)) else {
            let why = format!("of its entries, parted by commas, number {} is not {each}", place + 1);
            return Err(TracesError::Wrong { variable: name, why });
        };
        names.push(of.trim().to_owned());
    }
    Ok(names)
}

fn number(name: &'static str, least: usize) -> Result<Option<usize>, TracesError> {
    let Some(value) = variable(name) else { return Ok(None) };
    let wanted = if least == 0 { "it must be a number of milliseconds" } else { "it must be a number from 1 on" };
    let number = value.parse().ok().filter(|number| *number >= least);
    number.map(Some).ok_or(TracesError::Value { variable: name, value, wanted })
}

fn timeout() -> Result<Duration, TracesError> {
    let Some((name, _)) = first(TIMEOUT) else {
        return Ok(opentelemetry_otlp::OTEL_EXPORTER_OTLP_TIMEOUT_DEFAULT);
    };
    Ok(Duration::from_millis(number(name, 0)?.unwrap_or_default() as u64))
}

fn authorities() -> Result<Option<Vec<Certificate>>, TracesError> {
    let Some((variable, path)) = first(CERTIFICATE) else { return Ok(None) };
    let wrong = |why: String| TracesError::Wrong { variable, why };
    let pem = std::fs::read(&path).map_err(|error| wrong(format!("cannot read {path}: {error}")))?;
    Certificate::from_pem_bundle(&pem).map(Some).map_err(|error| wrong(format!("{path}: {error}")))
}

fn sampler() -> Result<Sampler, TracesError> {
    const SAMPLER: &str = "OTEL_TRACES_SAMPLER";
    let Some(value) = variable(SAMPLER) else { return Ok(Sampler::default()) };
    let (follows_parent, root) = match value.strip_prefix("parentbased_") {
        Some(root) => (true, root),
        None => (false, value.as_str()),
    };
    let root = match root {
        "always_on" => Root::All,
        "always_off" => Root::None,
        "traceidratio" => Root::Share(share()?),
        _ => {
            let wanted =
                "Herald has always_on, always_off and traceidratio, and each of them with parentbased_ before it";
            return Err(TracesError::Value { variable: SAMPLER, value, wanted });
        }
    };
    Ok(Sampler { root, follows_parent })
}

fn share() -> Result<f64, TracesError> {
    const SHARE: &str = "OTEL_TRACES_SAMPLER_ARG";
    let Some(value) = variable(SHARE) else { return Ok(1.0) };
    let share = value.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or(TracesError::Value { variable: SHARE, value, wanted: "it must be a number from 0 to 1" })
}
