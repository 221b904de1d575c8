//! Who a caller is behind proxies: by a real nginx, configured as docs/operations.md shows it.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    sync::Arc,
};

use herald::tls::{believing_anybody, install_crypto_provider};
use redis::io::tcp::socket2::{Domain, Socket, Type};
use rustls::{ClientConnection, StreamOwned};

use crate::{
    Files, herald,
    process::{Herald, free_address},
    receiver::Authority,
    support::until,
    world::World,
};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// What nginx is given is the block of the page, with a port and files of the test's.
struct Nginx {
    address: SocketAddr,
    child: Child,
    _files: Files,
}

impl Nginx {
    async fn start(herald: SocketAddr) -> Self {
        let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md")).unwrap();
        let (_, block) = page.split_once("```nginx\n").unwrap();
        let (block, _) = block.split_once("```").unwrap();
        let (files, address) = (Files::new(), free_address());
        files.identity(&Authority::new(), "herald", "herald.example.com");
        let mut server = block.to_owned();
        for (shown, here) in [
            ("443", address.to_string()),
            ("/etc/nginx/herald.pem", files.text("herald.pem")),
            ("/etc/nginx/herald.key", files.text("herald.key")),
            ("127.0.0.1:8080", herald.to_string()),
        ] {
            assert!(server.contains(shown), "{shown} is not in {server}");
            server = server.replace(shown, &here);
        }
        let folders: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|kind| format!("{kind}_temp_path {kind};\n"))
            .collect();
        let whole =
            format!("daemon off;\npid nginx.pid;\nevents {{}}\nhttp {{\naccess_log off;\n{folders}{server}}}\n");
        files.write("nginx.conf", &whole);
        let mut command = Command::new("nginx");
        command.env("PATH", "/usr/sbin:/usr/local/sbin:/usr/bin:/bin");
        command.arg("-p").arg(files.path(".")).args(["-c", "nginx.conf", "-e", "error.log"]).stdin(Stdio::null());
        let child = command.spawn().expect("nginx is installed: deploy/setup-verifiers does it");
        let nginx = Self { address, child, _files: files };
        until("nginx to listen", async || TcpStream::connect(address).is_ok()).await;
        nginx
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // With its workers, which a killed one would leave behind.
        let pid = nix::unistd::Pid::from_raw(self.child.id().try_into().unwrap());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

/// From one of this machine's many addresses.
fn connected(from: Ipv4Addr, to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    socket.into()
}

fn request(line: &str, token: &str, lines: &str) -> String {
    format!("{line} HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {token}\r\nconnection: close\r\n{lines}\r\n")
}

fn status(mut stream: impl Read + Write, request: &str) -> u16 {
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    // Not everybody says farewell in TLS.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()[9..12].parse().unwrap()
}

fn plainly(from: [u8; 4], herald: &Herald, request: &str) -> u16 {
    status(connected(from.into(), herald.address()), request)
}

fn by_nginx(from: [u8; 4], nginx: &Nginx, request: &str) -> u16 {
    let tls = ClientConnection::new(Arc::new(believing_anybody().unwrap()), "herald.example.com".try_into().unwrap());
    status(StreamOwned::new(tls.unwrap(), connected(from.into(), nginx.address)), request)
}

/// As many wrong tokens as one address may show at once, and some more: the answer to the last.
fn guess(ask: impl Fn(&str) -> u16) -> u16 {
    let wrong =
        |n: u32| request("GET /v1/me", &format!("hrd_{n:032}"), &format!("x-forwarded-for: 203.0.113.{}\r\n", n % 250));
    (0..40).map(|n| ask(&wrong(n))).last().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_nginx_each_caller_is_himself_whatever_he_writes() {
    install_crypto_provider();
    let world = World::new().await;
    let setup = world.setup().env("HERALD_ADMIN_TOKEN", TOKEN).env("HERALD_API_TRUSTED_PROXIES", "127.0.0.1");
    let worker = setup.start();
    worker.until_metric("herald_redis_up", |up| up == 1.0).await;
    let nginx = Nginx::start(worker.address()).await;
    assert_eq!(by_nginx([127, 0, 0, 2], &nginx, &request("GET /v1/me", TOKEN, "")), 200);
    for path in ["metrics", "healthz", "readyz"] {
        assert_eq!(by_nginx([127, 0, 0, 2], &nginx, &request(&format!("GET /{path}"), TOKEN, "")), 404);
    }
    // One who says to be somebody else each time is counted as himself, and nobody else with him.
    assert_eq!(guess(|request| by_nginx([127, 0, 0, 2], &nginx, request)), 429);
    let wrong = request("GET /v1/me", "hrd_wrong", "");
    assert_eq!(by_nginx([127, 0, 0, 3], &nginx, &wrong), 401);
    // So is one who comes past the proxy.
    assert_eq!(guess(|request| plainly([127, 0, 0, 4], &worker, request)), 429);
    assert_eq!(plainly([127, 0, 0, 5], &worker, &wrong), 401);

    // The audit log has who asked.
    let body = r#"{"reason":"a test"}"#;
    let hostile = "x-forwarded-for: 198.51.100.9, 127.0.0.1\r\ncontent-type: application/json\r\n";
    let lines = format!("{hostile}content-length: {}\r\n", body.len());
    let pause = request("POST /v1/pause", TOKEN, &lines) + body;
    assert_eq!(by_nginx([127, 0, 0, 6], &nginx, &pause), 200);
    let output =
        herald(&["audit", "list", "-o", "json"], &[("HERALD_REDIS_URL", &world.redis.url())]).output().unwrap();
    let acts: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&acts[0]["surface"], &acts[0]["address"]), (&"http".into(), &"127.0.0.6".into()), "{acts}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_trusted_proxy_the_connection_is_the_caller() {
    let world = World::new().await;
    let worker = world.setup().env("HERALD_ADMIN_TOKEN", TOKEN).start();
    worker.until_metric("herald_redis_up", |up| up == 1.0).await;
    assert_eq!(guess(|request| plainly([127, 0, 0, 7], &worker, request)), 429);
    assert_eq!(plainly([127, 0, 0, 8], &worker, &request("GET /v1/me", "hrd_wrong", "")), 401);
}
