//! What a run ran on: the machine and the versions, read from the kernel and from Redis.

use std::{fs, thread};

use super::result::Environment;
use crate::store::{
    connection::{Purpose, Redis},
    error::StoreError,
    keys::PartitionKeys,
    queries::Queries,
};

/// What cannot be found out stays empty: a figure without it is still a figure.
pub async fn look(redis: &Redis, keys: &PartitionKeys, is_own: bool) -> Result<Environment, StoreError> {
    let mut connection = redis.connect(Purpose::Other).await?;
    let redis_version = connection.server_info().await?.version;
    let appendfsync = Queries::new(connection, keys.clone()).settings().await?.appendfsync;
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let after = |text: &str, name: &str, sign: char| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(sign)?.1.trim().trim_matches('"').to_owned())
    };
    let memory_kb = after(&read("/proc/meminfo"), "MemTotal", ':');
    let memory_kb = memory_kb.and_then(|text| text.trim_end_matches(" kB").parse::<u64>().ok());
    Ok(Environment {
        cpu: after(&read("/proc/cpuinfo"), "model name", ':').unwrap_or_default(),
        cores: thread::available_parallelism().map_or(0, |cores| cores.get() as u32),
        memory_bytes: memory_kb.unwrap_or(0) * 1024,
        os: after(&read("/etc/os-release"), "PRETTY_NAME", '=').unwrap_or_default(),
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        redis_version,
        redis_appendfsync: appendfsync.unwrap_or_default(),
        build: if cfg!(debug_assertions) { "debug" } else { "release" }.to_owned(),
        is_own,
    })
}
