//! The result file: written whole or not at all, read with suspicion, and described by a JSON Schema that is made from the
//! types. Never changes what a run found.

use std::{
    fs::File,
    io::{self, BufWriter, Read, Write},
    path::{Path, PathBuf},
};

use schemars::generate::SchemaSettings;
use serde::Deserialize;
use tempfile::NamedTempFile;
use thiserror::Error;

use crate::loadtest::{
    latency::LatencyError,
    result::{Latency, RESULT_SCHEMA, RunResult},
};

/// An hour's run with every profile takes a twentieth of it.
const MAX_FILE_BYTES: u64 = 64 * 1024 * 1024;

#[derive(Debug, Error)]
pub enum ResultError {
    #[error("cannot write the result to {path}: {error}")]
    Write { path: PathBuf, error: io::Error },
    #[error("cannot read the result {path}: {error}")]
    Read { path: PathBuf, error: io::Error },
    #[error("{path} is larger than 64 MiB, so it is no result of `herald loadtest`")]
    TooLarge { path: PathBuf },
    #[error("{path} is no result of `herald loadtest --json`: {error}")]
    Form { path: PathBuf, error: serde_json::Error },
    #[error("{path} has version {version} of the result; this Herald reads {RESULT_SCHEMA}: {advice}")]
    Version { path: PathBuf, version: u64, advice: &'static str },
    #[error("{path} has a latency that cannot be read ({place}): {error}")]
    Latency { path: PathBuf, place: String, error: LatencyError },
}

/// Beside its place first, then moved there: a reader sees the old one or the new one.
pub fn write(path: &Path, result: &RunResult) -> Result<(), ResultError> {
    write_whole(path, |to| {
        serde_json::to_writer_pretty(&mut *to, result)?;
        to.write_all(b"\n")
    })
    .map_err(|error| ResultError::Write { path: path.to_owned(), error })
}

/// Also for the page.
pub(super) fn write_whole(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    // As any file of this user; a temporary one would be for its owner alone.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.prefix(".herald-").tempfile_in(folder)?;
    let mut to = BufWriter::new(file.as_file_mut());
    fill(&mut to)?;
    to.flush()?;
    drop(to);
    persist(file, path)
}

fn persist(file: NamedTempFile, path: &Path) -> io::Result<()> {
    file.as_file().sync_all()?;
    file.persist(path).map(drop).map_err(|error| error.error)
}

/// Whoever compares relies on every figure in it, so the histograms are read too.
pub fn read(path: &Path) -> Result<RunResult, ResultError> {
    let owned = || path.to_owned();
    let refused = |error| ResultError::Read { path: owned(), error };
    let mut text = Vec::new();
    File::open(path).map_err(refused)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut text).map_err(refused)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(ResultError::TooLarge { path: owned() });
    }
    // The version first: of a newer one nothing else can be expected.
    #[derive(Deserialize)]
    struct Versioned {
        schema: u64,
    }
    let form = |error| ResultError::Form { path: owned(), error };
    let Versioned { schema } = serde_json::from_slice(&text).map_err(form)?;
    match schema {
        version if version > u64::from(RESULT_SCHEMA) => {
            return Err(ResultError::Version {
                path: owned(),
                version,
                advice: "use the Herald that wrote it, or a newer one",
            });
        }
        version if version < u64::from(RESULT_SCHEMA) => {
            return Err(ResultError::Version { path: owned(), version, advice: "run the scenario again" });
        }
        _ => {}
    }
    let result = serde_json::from_slice(&text).map_err(form)?;
    check_latencies(&result).map_err(|(place, error)| ResultError::Latency { path: owned(), place, error })?;
    Ok(result)
}

fn check_latencies(result: &RunResult) -> Result<(), (String, LatencyError)> {
    let named = |place: &str, latency: &Option<Latency>| match latency {
        Some(latency) => latency.histogram().map(drop).map_err(|error| (place.to_owned(), error)),
        None => Ok(()),
    };
    named("latency", &result.latency)?;
    named("retry_lateness", &result.retry_lateness)?;
    named("generator.lateness", &result.generator.lateness)?;
    result.profiles.iter().try_for_each(|profile| named(&format!("profile {:?}", profile.name), &profile.latency))
}

/// The JSON Schema (draft 2020-12) of the result, as `docs/loadtest-result.schema.json` publishes it.
pub fn schema() -> String {
    // As Herald writes it, where everything is there, not as it may be left out of a scenario's file.
    let mut schema =
        SchemaSettings::draft2020_12().for_serialize().into_generator().into_root_schema_for::<RunResult>();
    schema.insert("title".to_owned(), "The result of herald loadtest".into());
    let text = serde_json::to_string_pretty(&schema).expect("a schema is plain JSON");
    format!("{text}\n")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::loadtest::report::fixture;

    #[test]
    fn a_result_is_the_same_after_it_was_written_and_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("result.json");
        for result in [fixture::outage(), fixture::nothing()] {
            write(&path, &result).unwrap();
            assert_eq!(read(&path).unwrap(), result);
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn the_published_schema_is_current() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/loadtest-result.schema.json");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, schema()).unwrap();
        }
        let published = std::fs::read_to_string(&path).unwrap();
        assert!(published == schema(), "docs/loadtest-result.schema.json is old: UPDATE=1 cargo test --lib schema");
    }

    #[test]
    fn results_are_valid_by_the_schema_and_nonsense_is_not() {
        let schema: Value = serde_json::from_str(&schema()).unwrap();
        let validator = jsonschema::validator_for(&schema).unwrap();
        for result in [fixture::outage(), fixture::short(), fixture::nothing()] {
            let value = serde_json::to_value(&result).unwrap();
            let errors: Vec<_> = validator.iter_errors(&value).map(|error| error.to_string()).collect();
            assert!(errors.is_empty(), "{errors:?}");
        }
        let mut value = serde_json::to_value(fixture::outage()).unwrap();
        value["deliveries"]["owed"] = json!("many");
        assert!(!validator.is_valid(&value));
        value = serde_json::to_value(fixture::outage()).unwrap();
        value.as_object_mut().unwrap().remove("seed");
        assert!(!validator.is_valid(&value));
    }

    fn refused(text: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("result.json");
        std::fs::write(&path, text).unwrap();
        read(&path).unwrap_err().to_string()
    }

    #[test]
    fn a_file_that_is_no_result_is_refused_with_a_reason() {
        assert!(refused("hello").contains("is no result of `herald loadtest --json`"));
        assert!(refused("{}").contains("missing field `schema`"));
        assert!(refused(r#"{"schema": 2}"#).contains("use the Herald that wrote it"));
        assert!(refused(r#"{"schema": 0}"#).contains("run the scenario again"));
        assert!(refused(r#"{"schema": 1}"#).contains("missing field"));
        let mut value = serde_json::to_value(fixture::outage()).unwrap();
        value["profiles"][0]["latency"]["hdr"] = json!("AAAA");
        assert!(refused(&value.to_string()).contains(r#"a latency that cannot be read (profile "healthy")"#));
        let absent = read(Path::new("/nowhere/result.json")).unwrap_err().to_string();
        assert!(absent.starts_with("cannot read the result /nowhere/result.json"), "{absent}");
    }

    #[test]
    fn an_old_result_stays_when_the_new_one_can_not_be_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("result.json");
        std::fs::write(&path, "old").unwrap();
        let failed = write_whole(&path, |to| {
            to.write_all(b"half")?;
            Err(io::Error::other("the disk is full"))
        });
        assert!(failed.is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
