//! A probe every twenty milliseconds while something else is measured: each on a connection of its own, as probes are.

use std::{cell::Cell, time::Duration};

use anyhow::{Result, ensure};
use herald::clock;

use super::http::Connection;

const EVERY: Duration = Duration::from_millis(20);

#[derive(Debug, Clone, Copy, Default)]
pub struct Probed {
    pub slowest: Duration,
}

/// What was measured, and how long the slowest probe waited. One that is not answered well is an error.
pub async fn probe_while(address: &str, measured: impl Future<Output = Result<f64>>) -> Result<(f64, Probed)> {
    let slowest = Cell::new(Duration::ZERO);
    let measured = tokio::select! {
        measured = measured => measured?,
        failed = probe(address, &slowest) => return Err(failed),
    };
    Ok((measured, Probed { slowest: slowest.get() }))
}

/// Until one fails.
async fn probe(address: &str, slowest: &Cell<Duration>) -> anyhow::Error {
    loop {
        for path in ["/healthz", "/readyz"] {
            match once(address, path).await {
                Ok(took) => slowest.set(slowest.get().max(took)),
                Err(error) => return error.context(path),
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

async fn once(address: &str, path: &str) -> Result<Duration> {
    let began = clock::now();
    let status = Connection::open(address).await?.get(path).await?;
    ensure!(status == 200, "it was answered {status}");
    Ok(clock::now() - began)
}
