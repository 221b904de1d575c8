//! How much receivers that fail now and then get of what they can take: the load test's scenario for that, with all of
//! them at once and beside the same receiver without failures. Each takes half of what it could, so that although they
//! share the machine, none gains what another loses.

use std::{
    fmt::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use herald::loadtest::result::{Goodput, RunResult};

/// The load test's exit code for a broken promise or threshold; the result exists all the same.
const BROKEN: i32 = 99;

/// The scenario's own shares, over this many seconds.
pub fn measure(herald: &Path, seconds: u64) -> Result<Vec<Goodput>> {
    let folder = tempfile::TempDir::with_prefix("herald-bench-")?;
    let file = folder.path().join("goodput.json");
    let mut command = Command::new(herald);
    command.args(["loadtest", "imperfect-world", "--plain", "--for", &format!("{seconds}s"), "--json"]).arg(&file);
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    let status = status.with_context(|| format!("cannot run {}", herald.display()))?;
    ensure!(status.success() || status.code() == Some(BROKEN), "the load test ended with {status}");
    let result: RunResult = serde_json::from_slice(&std::fs::read(&file)?).context("the load test's result is odd")?;
    ensure!(!result.goodput.is_empty(), "the load test judged no goodput");
    Ok(result.goodput)
}

pub fn table(all: &[Goodput], seconds: u64) -> String {
    let mut text = "| receiver | share of what it takes without failures | reach |\n| --- | ---: | ---: |\n".to_owned();
    for Goodput { receiver, share, least, .. } in all {
        let shown = if share < least { format!("{share:.2} (missed)") } else { format!("**{share:.2}**") };
        let _ = writeln!(text, "| {receiver} | {shown} | ≥ {least:.2} |");
    }
    let _ = write!(
        text,
        "\nOne run of `herald loadtest imperfect-world` of {seconds} s: each answers after 10 ms, has 10 places and gets 500 \
         events a second, and failed events come again after 5 s."
    );
    text
}
