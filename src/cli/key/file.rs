//! How files of keys are written: whole or not at all, and never readable by others.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown},
    path::Path,
};

use anyhow::Context as _;

use crate::surface::VerbError;

/// Fails if there is one.
pub fn write_new(path: &Path, text: &str) -> anyhow::Result<()> {
    let written = create(path, text, 0o600);
    if written.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AlreadyExists) {
        let text =
            format!("{} exists, and no key is written over: append a new one with `herald key rotate`", path.display());
        return Err(VerbError::Refused(text).into());
    }
    written.with_context(|| format!("cannot write {}", path.display()))
}

/// Puts another text in its place, with the owner and the mode that it has.
pub fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    // What is a link stays one.
    let path = &path.canonicalize().with_context(|| format!("cannot find {}", path.display()))?;
    let beside = path.with_extension(format!("new-{}", std::process::id()));
    let replaced = fs::metadata(path).and_then(|known| {
        create(&beside, text, known.permissions().mode() & 0o777)?;
        let made = fs::metadata(&beside)?;
        if (made.uid(), made.gid()) != (known.uid(), known.gid()) {
            chown(&beside, Some(known.uid()), Some(known.gid()))?;
        }
        fs::rename(&beside, path)?;
        File::open(path.parent().unwrap_or(path))?.sync_all()
    });
    if replaced.is_err() {
        let _ = fs::remove_file(&beside);
    }
    replaced.with_context(|| format!("cannot write {}: nothing was changed in it", path.display()))
}

fn create(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
