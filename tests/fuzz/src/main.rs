//! One binary for all targets: `HERALD_FUZZ_TARGET` names the one to run, and libFuzzer's own flags do the rest.
#![no_main]

#[path = "../budget.rs"]
mod budget;
#[path = "../targets/mod.rs"]
mod targets;

use std::sync::LazyLock;

#[global_allocator]
static COUNTING: budget::Counting = budget::Counting;

static TARGET: LazyLock<&'static targets::Target> = LazyLock::new(|| {
    let name = std::env::var("HERALD_FUZZ_TARGET").unwrap_or_default();
    targets::ALL.iter().find(|target| target.name == name).unwrap_or_else(|| panic!("there is no target {name:?}"))
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| budget::spend(data, TARGET.run));
