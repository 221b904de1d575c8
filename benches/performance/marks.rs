//! Where a table is put in the docs.

use std::{fs, path::Path};

use anyhow::{Context, Result};

/// Replaces what is between the file's two marks, such as `<!-- bench -->`.
pub fn write_between(path: &Path, mark: &str, table: &str) -> Result<()> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let missing = || format!("{} has no two lines {mark}", path.display());
    let (before, rest) = text.split_once(mark).with_context(missing)?;
    let (_, after) = rest.split_once(mark).with_context(missing)?;
    fs::write(path, format!("{before}{mark}\n{table}\n{mark}{after}"))?;
    Ok(())
}
