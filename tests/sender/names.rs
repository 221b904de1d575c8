//! Name servers that never answer, asked for real: the system's resolver, its file of name servers, a server on port
//! 53. All of that belongs to a machine, so it happens in namespaces of its own, in this very test binary run as
//! another process.

use std::{collections::HashSet, sync::Mutex};

use herald::facts::{id::AccountId, outcome::LocalCause};
use tokio::net::UdpSocket;

use super::*;

/// Runs one test in namespaces of its own, as their root; if the system grants none there is nothing to test.
fn passes_alone(test: &str) {
    let alone = |command: &str| {
        let mut unshare = std::process::Command::new("unshare");
        unshare.args(["--map-root-user", "--mount", "--net", "sh", "-c", command]);
        unshare.output()
    };
    if !alone("ip link set lo up").is_ok_and(|output| output.status.success()) {
        return eprintln!("skipped: this system gives no namespaces (unshare, ip)");
    }
    let folder = tempfile::tempdir().unwrap();
    let servers = folder.path().join("resolv.conf");
    std::fs::write(&servers, "nameserver 127.0.0.1\n").unwrap();
    let binary = std::env::current_exe().unwrap();
    let command = format!(
        "ip link set lo up && mount --bind {} /etc/resolv.conf && exec {} --exact names::{test} --ignored --nocapture",
        servers.display(),
        binary.display(),
    );
    let output = alone(&command).unwrap();
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success(), "{said}");
}

/// Answers every name with this machine's address, except those that begin with `hang`; records which it was asked for.
async fn name_server() -> Arc<Mutex<HashSet<String>>> {
    let (asked, socket) = (Arc::new(Mutex::new(HashSet::new())), UdpSocket::bind("127.0.0.1:53").await.unwrap());
    let noted = Arc::clone(&asked);
    tokio::spawn(async move {
        let mut query = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut query).await {
            let Some((name, answer)) = answer_to(&query[..length]) else { continue };
            if !name.starts_with("hang") {
                let _ = socket.send_to(&answer, from).await;
            }
            noted.lock().unwrap().insert(name);
        }
    });
    asked
}

/// RFC 1035: the question again, and for an A record the address.
fn answer_to(query: &[u8]) -> Option<(String, Vec<u8>)> {
    const HEADER: usize = 12;
    let (mut at, mut labels) = (HEADER, Vec::new());
    while *query.get(at)? > 0 {
        let end = at + 1 + usize::from(query[at]);
        labels.push(String::from_utf8_lossy(query.get(at + 1..end)?).into_owned());
        at = end;
    }
    let question = query.get(HEADER..at + 5)?;
    let is_a = question[question.len() - 3] == 1;
    let header = [&query[..2], &[0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]].concat();
    let record: &[u8] = &[0xc0, HEADER as u8, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1];
    Some((labels.join("."), [&header[..], question, if is_a { record } else { &[] }].concat()))
}

fn endpoint_of(account: &str, url: &str) -> Endpoint {
    Endpoint { account: AccountId::new(account).unwrap(), ..endpoint(url) }
}

/// Attempts to names that hang, by the accounts that own them.
fn begin(
    sender: &Arc<Sender>,
    endpoints: impl Iterator<Item = Endpoint>,
) -> Vec<tokio::task::JoinHandle<AttemptReport>> {
    let begin = |endpoint| {
        let sender = Arc::clone(sender);
        tokio::spawn(async move { attempt(&sender, &endpoint).await })
    };
    endpoints.map(begin).collect()
}

fn patient() -> Arc<Sender> {
    Arc::new(Sender::try_new(SenderConfig { connect_timeout: Duration::from_secs(60), ..local() }).unwrap())
}

async fn until_asked(asked: &Mutex<HashSet<String>>, count: usize) {
    while asked.lock().unwrap().len() < count {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn four_hundred_names_that_hang_stop_no_other() {
    passes_alone("hanging_names");
}

#[tokio::test]
#[ignore = "started by four_hundred_names_that_hang_stop_no_other, in namespaces of its own"]
async fn hanging_names() {
    const HANGING: usize = 400;
    let (asked, sender) = (name_server().await, patient());
    let receiver = Receiver::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let port = receiver.address.port();
    let hanging = begin(
        &sender,
        (0..HANGING).map(|n| endpoint_of(&format!("acc_{n}"), &format!("http://hang.shop-{n}.example:{port}/"))),
    );
    until_asked(&asked, HANGING).await;
    for number in 0..200 {
        let report = attempt(&sender, &endpoint(&format!("http://shop-{number}.healthy.example:{port}/"))).await;
        assert!(report.outcome.is_delivered(), "{number}: {:?} {}", report.outcome, report.detail);
    }
    assert!(hanging.iter().all(|task| !task.is_finished()), "the others went on while they hung");
    // The system's threads hang in them for seconds more: nobody waits for their end.
    std::process::exit(0);
}

#[test]
fn one_accounts_names_that_hang_stop_no_other_account() {
    passes_alone("one_accounts_hanging_names");
}

#[tokio::test]
#[ignore = "started by one_accounts_names_that_hang_stop_no_other_account, in namespaces of its own"]
async fn one_accounts_hanging_names() {
    const HANGING: usize = 600;
    let (asked, sender) = (name_server().await, patient());
    let receiver = Receiver::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let port = receiver.address.port();
    let hanging =
        begin(&sender, (0..HANGING).map(|n| endpoint_of("acc_bad", &format!("http://hang.shop-{n}.example:{port}/"))));
    until_asked(&asked, 120).await;
    for number in 0..100 {
        let report = attempt(&sender, &endpoint(&format!("http://shop-{number}.healthy.example:{port}/"))).await;
        assert!(report.outcome.is_delivered(), "{number}: {:?} {}", report.outcome, report.detail);
    }
    // A look-up without a place was not its receiver's failure.
    for task in hanging.into_iter().filter(|task| task.is_finished()) {
        let report = task.await.unwrap();
        assert_eq!(report.outcome, Outcome::Local { cause: LocalCause::Lookups }, "{}", report.detail);
    }
    std::process::exit(0);
}
