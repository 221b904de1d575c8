//! What docs/api.md tells its reader to type, typed into one shell. A line `# → TEXT` in a block says what its answer has.

use std::{net::TcpListener, path::Path, process::Stdio};

use tokio::process::Command;

use crate::support::TestRedis;

const MARK: &str = "the next block";

#[tokio::test]
async fn who_types_what_the_page_says_gets_what_it_says() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/api.md");
    let page = std::fs::read_to_string(page).unwrap();
    let blocks: Vec<&str> = page.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(blocks.len() >= 8, "the page has fewer blocks: {blocks:?}");
    let (redis, desk) = (TestRedis::start_with_aof().await, tempfile::tempdir().unwrap());
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let typed: String = blocks.iter().map(|block| format!("echo '{MARK}'\n{block}\n")).collect();
    let script = desk.path().join("typed.sh");
    let begin = "set -euo pipefail; trap 'kill $(jobs -p); wait' EXIT\n";
    std::fs::write(&script, begin.to_owned() + &typed.replace("8080", &port)).unwrap();
    let programs = Path::new(env!("CARGO_BIN_EXE_herald")).parent().unwrap().display();
    let mut shell = Command::new("timeout");
    shell.args(["120", "bash"]).arg(&script).current_dir(desk.path()).env_clear().stdin(Stdio::null());
    shell.env("PATH", format!("{programs}:/usr/bin:/bin")).env("HERALD_REDIS_URL", redis.url()).env("USER", "ann");
    let done = shell.output().await.unwrap();
    let said = String::from_utf8(done.stdout).unwrap();
    assert!(done.status.success(), "{said}\n{}", String::from_utf8_lossy(&done.stderr));
    for (block, said) in blocks.iter().zip(said.split(MARK).skip(1)) {
        let mut rest = said;
        for expected in block.lines().filter_map(|line| line.trim().strip_prefix("# → ")) {
            let found = rest.split_once(expected);
            rest = found.unwrap_or_else(|| panic!("{expected:?} is not in {said:?}, of {block}")).1;
        }
    }
}
