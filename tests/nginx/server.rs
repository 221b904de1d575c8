//! An nginx of the test's own. Nothing of the machine's own is read or changed, and it ends when its value is dropped.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{receiver::Authority, support::until};

/// One line of its log, written when the request ends.
#[derive(Debug, Clone)]
pub struct Request {
    pub at_s: f64,
    pub event: String,
    pub attempt: String,
    pub status: String,
    pub protocol: String,
    pub connection: String,
}

pub struct Nginx {
    pub address: SocketAddr,
    folder: tempfile::TempDir,
    child: Child,
}

impl Nginx {
    /// `options` go into its `http` block; otherwise it has its defaults.
    pub async fn start(options: &str) -> Self {
        let folder = tempfile::tempdir().expect("a scratch folder can be made");
        let address = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port");
        let authority = Authority::new();
        let (certificate, key) = authority.certificate("127.0.0.1");
        let path = |name: &str| folder.path().join(name);
        for (name, text) in [("ca.pem", authority.pem()), ("cert.pem", certificate), ("key.pem", key)] {
            fs::write(path(name), text).expect("the scratch folder can be written to");
        }
        fs::write(path("nginx.conf"), configuration(address, options, &path("app.sock")))
            .expect("it can be written to");
        let mut command = Command::new("nginx");
        // Where it is on a machine whose users do not have it on their path.
        command.env("PATH", "/usr/sbin:/usr/local/sbin:/usr/bin:/bin");
        command.arg("-p").arg(folder.path()).args(["-c", "nginx.conf", "-e", "error.log"]).stdin(Stdio::null());
        let child = command.spawn().expect("nginx is installed: deploy/setup-verifiers does it");
        let nginx = Self { address, folder, child };
        until("nginx to listen", async || TcpStream::connect(address).is_ok()).await;
        nginx
    }

    /// New workers take over; the old ones end what they have and close it.
    pub fn reload(&self) {
        self.signal(Signal::SIGHUP);
    }

    pub fn authority(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    pub fn requests(&self) -> Vec<Request> {
        let log = fs::read_to_string(self.folder.path().join("access.log")).unwrap_or_default();
        log.lines().filter_map(request).collect()
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().try_into().expect("a process id fits"));
        kill(pid, signal).expect("the test's nginx runs");
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // At once, with its workers; a killed one would leave them behind.
        self.signal(Signal::SIGTERM);
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!(
                "---- nginx ----\n{}",
                fs::read_to_string(self.folder.path().join("error.log")).unwrap_or_default()
            );
        }
    }
}

fn request(line: &str) -> Option<Request> {
    let mut words = line.split(' ').map(str::to_owned);
    let at_s = words.next()?.parse().ok()?;
    let mut next = || words.next();
    Some(Request { at_s, event: next()?, attempt: next()?, status: next()?, protocol: next()?, connection: next()? })
}

/// TLS and HTTP/2 before an application, as most receivers have it: here the application is nginx too.
fn configuration(address: SocketAddr, options: &str, application: &std::path::Path) -> String {
    let application = application.display();
    // Its folders for large bodies are the machine's unless they are named.
    let folders: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("    {kind}_temp_path {kind};\n"))
        .collect();
    format!(
        "daemon off;
pid nginx.pid;
worker_processes 2;
events {{ worker_connections 1024; }}
http {{
{folders}
    log_format herald '$msec $http_webhook_id $http_herald_attempt $status $server_protocol $connection';
    {options}
    server {{
        listen {address} ssl http2;
        ssl_certificate cert.pem;
        ssl_certificate_key key.pem;
        access_log access.log herald;
        location / {{ proxy_pass http://unix:{application}:; }}
    }}
    server {{
        listen unix:{application};
        access_log off;
        location / {{ return 200; }}
    }}
}}
"
    )
}
