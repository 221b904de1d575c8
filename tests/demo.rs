//! The demo as a user starts it: it ends by itself, says that nothing was lost, and leaves no process behind.

use std::process::Command;

#[test]
fn the_demo_ends_by_itself_and_keeps_its_promises() {
    let ran = Command::new(env!("CARGO_BIN_EXE_herald"))
        .args(["demo", "--for", "5s", "--rate", "20", "--seed", "7"])
        .output()
        .expect("the binary runs");
    let (said, complained) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{said}\n{complained}");
    let value = |name: &str| {
        let line = said.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in:\n{said}"));
        line.split_whitespace().last().expect("a line has a value").to_owned()
    };
    assert!(value("events").parse::<u64>().unwrap() > 50, "{said}");
    assert!(value("delivered").parse::<u64>().unwrap() > 20, "{said}");
    assert!(said.contains("lost            0"), "{said}");
    assert!(said.contains("out of order    0"), "{said}");
    // Without a terminal there are only plain lines.
    assert!(!said.contains('\u{1b}'), "{said}");
    let url = said.lines().find_map(|line| line.trim().strip_prefix("export HERALD_REDIS_URL=redis://")).unwrap();
    assert!(std::net::TcpStream::connect(url).is_err(), "its Redis still runs at {url}");
}
