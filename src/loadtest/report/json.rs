//! The result file: written completely or not at all, and described by a JSON Schema that is made from the types. Never
//! changes what a run found.

use std::{
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use schemars::generate::SchemaSettings;
use tempfile::NamedTempFile;
use thiserror::Error;

use crate::loadtest::result::RunResult;

#[derive(Debug, Error)]
pub enum ResultError {
    #[error("cannot write the result to {path}: {error}")]
    Write { path: PathBuf, error: io::Error },
}

/// Written beside its place first, then moved there: a reader sees the old one or the new one.
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
    // Readable like any file of this user; a temporary one would be for its owner alone.
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

/// The JSON Schema (draft 2020-12) of the result, as `docs/loadtest-result.schema.json` publishes it.
pub fn schema() -> String {
    // As Herald writes it, with everything there, not as a scenario's file may leave things out.
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
            let text = std::fs::read_to_string(&path).unwrap();
            assert_eq!(serde_json::from_str::<RunResult>(&text).unwrap(), result);
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
