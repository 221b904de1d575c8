//! A receiver as a process: what it printed, and what it answers.

use std::{
    fs::{self, File},
    net::{SocketAddr, TcpListener},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    net::TcpStream,
    process::{Child, ChildStdout, Command},
};

use crate::{
    language::Language,
    request::Request,
    support::{SAFETY, soon},
    world::Event,
};

pub struct Served {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    pub address: SocketAddr,
    folder: tempfile::TempDir,
}

/// One that nobody listens on now.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port").port()
}

impl Served {
    /// Started, and nobody knows yet whether it will listen.
    fn spawn(language: &Language, port: u16, env: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(&language.program);
        command.args(language.arguments.iter().map(|argument| argument.replace("PORT", &port.to_string())));
        command.envs(language.env.iter().map(|(name, value)| (name, value)));
        command.env("PORT", port.to_string()).env("DATABASE", folder.path().join("receiver.sqlite"));
        command.env_remove("HERALD_SCHEME").envs(env.iter().copied());
        let stderr = File::create(folder.path().join("stderr")).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr).kill_on_drop(true);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}; run `make setup`"));
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines, address: SocketAddr::from(([127, 0, 0, 1], port)), folder }
    }

    pub async fn start(language: &Language, port: u16, env: &[(&str, &str)]) -> Self {
        let mut served = Self::spawn(language, port, env);
        if let Some(status) = served.until_up_or_ended().await {
            panic!("{} ended at once with {status}", language.file);
        }
        served
    }

    async fn until_up_or_ended(&mut self) -> Option<ExitStatus> {
        soon("the receiver's port", async {
            loop {
                let ended = self.child.try_wait().unwrap();
                if ended.is_some() || TcpStream::connect(self.address).await.is_ok() {
                    return ended;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
    }

    /// What it says of the next event that it accepted. A web server may say more; a line of ours begins with an id.
    pub async fn next(&mut self) -> String {
        loop {
            match tokio::time::timeout(SAFETY, self.lines.next_line()).await {
                Ok(line) => match line.unwrap().expect("the receiver goes on") {
                    line if line.starts_with("evt_") => return line,
                    _ => {}
                },
                Err(_) => panic!("the receiver accepts nothing"),
            }
        }
    }

    /// Its end, however it is asked to.
    pub async fn stop(mut self) {
        self.child.kill().await.unwrap();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let said = fs::read_to_string(self.folder.path().join("stderr")).unwrap_or_default();
            eprintln!("---- what the receiver at {} said on stderr ----\n{said}", self.address);
        }
    }
}

/// Copied from a manual, or cut off: the key would be empty or known to everybody.
pub async fn refuses_a_secret_that_anybody_knows(language: &Language) {
    let port = free_port();
    let mut served = Served::spawn(language, port, &[("HERALD_SECRETS", "whsec_…,")]);
    if let Some(status) = served.until_up_or_ended().await {
        assert!(!status.success(), "{}: {status}", language.file);
        return;
    }
    let event = Event::new(1, "acc_0", "pi_0", "Captured");
    let status = Request::signed_with_an_empty_key(&event).sent_to(served.address).await;
    assert_eq!(status, Some(500), "{} makes something of it", language.file);
}
