//! What people and programs see of a run: the live view, the summary, the page, the result file and the thresholds. All
//! of it is made only from [`Progress`](progress::Progress) and [`RunResult`](super::result::RunResult). Nothing here
//! changes what a run found.

pub mod html;
pub mod json;
pub mod live;
pub mod progress;
pub mod text;
pub mod threshold;

mod figure;
#[cfg(test)]
pub(super) mod fixture;

use std::path::Path;

use super::result::RunResult;

/// Writes the files that were asked for.
pub fn write(to_json: Option<&Path>, to_html: Option<&Path>, result: &RunResult) -> anyhow::Result<()> {
    if let Some(path) = to_json {
        json::write(path, result)?;
    }
    if let Some(path) = to_html {
        html::write(path, result)?;
    }
    Ok(())
}
