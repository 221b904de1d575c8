//! The way out through a proxy: a real tinyproxy, and proxies that do what a broken one does.

use std::{
    net::{SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use herald::facts::endpoint::Endpoint;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    Files,
    process::free_address,
    receiver::{Authority, Receiver},
    support::until,
    world::{World, lives},
};

struct Tinyproxy {
    address: SocketAddr,
    child: Child,
    files: Files,
}

impl Tinyproxy {
    /// None, and a word about it, where it is not installed.
    async fn start(options: &str) -> Option<Self> {
        let (files, address) = (Files::new(), free_address());
        let text = format!(
            "Port {}\nListen 127.0.0.1\nTimeout 60\nMaxClients 200\nLogLevel Connect\nLogFile \"{}\"\n{options}\n",
            address.port(),
            files.text("log")
        );
        let configuration = files.write("tinyproxy.conf", &text);
        let mut command = Command::new("tinyproxy");
        command.arg("-d").arg("-c").arg(configuration).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let Ok(child) = command.spawn() else {
            eprintln!("skipped: tinyproxy is not installed (Debian: tinyproxy-bin), so no real proxy was asked");
            return None;
        };
        let proxy = Self { address, child, files };
        until("tinyproxy to listen", async || TcpStream::connect(address).is_ok()).await;
        Some(proxy)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.files.path("log")).unwrap_or_default()
    }
}

impl Drop for Tinyproxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_goes_through_a_real_proxy_and_nothing_that_the_guard_refuses() {
    let Some(proxy) = Tinyproxy::start("BasicAuth herald s3cr-et").await else { return };
    let world = World::new().await;
    let accounts = world.register_many(2).await;
    // Registered past the rules: what the guard lets nobody connect to.
    for (n, url) in ["http://127.0.0.2:9/", "http://10.9.8.7/", "http://169.254.169.254/latest"].into_iter().enumerate()
    {
        let endpoint = world.endpoint(&format!("ep_refused_{n}"), &format!("acc_refused_{n}"));
        world.register(Endpoint { url: url.to_owned(), ..endpoint }).await;
    }
    let refused: Vec<String> = (0..3).map(|n| format!("acc_refused_{n}")).collect();
    let url = format!("http://herald:s3cr%2Det@{}", proxy.address);
    let worker = world
        .setup()
        .env("HERALD_ALLOW_NETWORKS", "127.0.0.1/32")
        .env("HERALD_EGRESS_PROXY", &url)
        .env("HERALD_LOG", "trace")
        .start();
    let mut events = lives(1, &accounts, 60);
    for (n, event) in lives(2, &refused, 6).into_iter().enumerate() {
        events.push(crate::world::Event::new(1_000 + n, &event.account, &event.intent, "Created"));
    }
    world.publish(&events).await;
    world.merchants.until_delivered(60).await;
    worker.until_metric("herald_attempts_total{outcome=\"address_refused\"}", |refused| refused >= 3.0).await;
    let log = proxy.log();
    assert!(log.contains(&format!("CONNECT {} ", world.merchants.address)), "{log}");
    for address in ["127.0.0.2", "10.9.8.7", "169.254"] {
        assert!(!log.contains(address), "{address} is in {log}");
    }
    assert!(!worker.log().contains("s3cr"), "a password is in the log");
    assert_eq!(worker.metric("herald_attempts_total{outcome=\"proxy_failed\"}"), 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_is_the_proxys_failure_and_opens_no_breaker() {
    let Some(proxy) = Tinyproxy::start("BasicAuth herald right").await else { return };
    let world = World::new().await;
    let accounts = world.register_many(1).await;
    let setup = world.setup().env("HERALD_RETRY_MAX_ATTEMPTS", "50");
    let worker = setup.clone().env("HERALD_EGRESS_PROXY", &format!("http://herald:wrong@{}", proxy.address)).start();
    world.publish(&lives(1, &accounts, 5)).await;
    worker.until_metric("herald_attempts_total{outcome=\"proxy_failed\"}", |failed| failed >= 15.0).await;
    assert_eq!(worker.metric("herald_breakers{state=\"open\"}"), 0.0);
    assert_eq!(world.merchants.log().arrivals.len(), 0);
    assert!(worker.stop().await.success());
    let worker = setup.env("HERALD_EGRESS_PROXY", &format!("http://herald:right@{}", proxy.address)).start();
    world.merchants.until_delivered(5).await;
    assert!(worker.stop().await.success());
}

/// What a proxy of the test's does with each request.
#[derive(Clone, Copy, PartialEq)]
pub enum Does {
    Passes,
    /// Refuses every third.
    Denies,
    Hangs,
    Babbles,
    /// Right after its yes.
    HangsUp,
}

pub struct Proxy {
    pub address: SocketAddr,
    targets: Arc<Mutex<Vec<String>>>,
    does: Arc<Mutex<Does>>,
}

impl Proxy {
    pub async fn start(tls: Option<TlsAcceptor>, does: Does) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (targets, does) = (Arc::<Mutex<Vec<String>>>::default(), Arc::new(Mutex::new(does)));
        let (seen, doing, count) = (targets.clone(), does.clone(), Arc::new(AtomicUsize::new(0)));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (seen, does, nth) = (seen.clone(), *doing.lock().unwrap(), count.fetch_add(1, SeqCst));
                let tls = tls.clone();
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, &seen, does, nth).await,
                        Some(tls) => serve(tls.accept(stream).await.unwrap(), &seen, does, nth).await,
                    }
                });
            }
        });
        Self { address, targets, does }
    }

    pub fn targets(&self) -> Vec<String> {
        self.targets.lock().unwrap().clone()
    }
}

async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, seen: &Mutex<Vec<String>>, does: Does, nth: usize) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { return };
        head.push(byte);
    }
    let head = String::from_utf8(head).unwrap();
    let target = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()).unwrap().to_owned();
    seen.lock().unwrap().push(target.clone());
    match does {
        Does::Hangs => return std::future::pending().await,
        Does::Babbles => return drop(stream.write_all(&[b'x'; 64 << 10]).await),
        Does::Denies if nth.is_multiple_of(3) => {
            let no = b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n";
            return drop(stream.write_all(no).await);
        }
        Does::HangsUp => return drop(stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await),
        Does::Denies | Does::Passes => {}
    }
    let mut receiver = tokio::net::TcpStream::connect(target).await.unwrap();
    stream.write_all(b"HTTP/1.1 200 Connection established\r\nvia: test\r\n\r\n").await.unwrap();
    let _ = copy_bidirectional(&mut stream, &mut receiver).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_refuses_some_hangs_or_talks_nonsense_costs_time_and_nothing_else() {
    let proxy = Proxy::start(None, Does::Denies).await;
    let world = World::new().await;
    let accounts = world.register_many(6).await;
    let worker = world
        .setup()
        .env("HERALD_EGRESS_PROXY", &format!("http://{}", proxy.address))
        .env("HERALD_ATTEMPT_CONNECT_TIMEOUT", "300ms")
        .env("HERALD_RETRY_MAX_ATTEMPTS", "50")
        .start();
    let events = lives(1, &accounts, 60);
    world.publish(&events[..30]).await;
    world.merchants.until_delivered(30).await;
    let failed = || worker.metric("herald_attempts_total{outcome=\"proxy_failed\"}");
    assert!(failed() >= 1.0);
    assert!(world.merchants.log().out_of_order().is_empty());
    // Connections that are open go on; new ones are needed only when these are gone.
    for does in [Does::Hangs, Does::Babbles] {
        *proxy.does.lock().unwrap() = does;
        let before = failed();
        let (name, account) = (format!("ep_new_{}", does as u8), format!("acc_new_{}", does as u8));
        let other = Receiver::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        let endpoint = world.endpoint(&name, &account);
        world.register(Endpoint { url: other.url(), ..endpoint }).await;
        world.publish(&[crate::world::Event::new(2_000 + does as usize, &account, "pi_new", "Created")]).await;
        worker.until_metric("herald_attempts_total{outcome=\"proxy_failed\"}", |failed| failed >= before + 2.0).await;
        *proxy.does.lock().unwrap() = Does::Passes;
        until("it arrives once the proxy is well", async || !other.log.seen().is_empty()).await;
    }
    world.publish(&events[30..]).await;
    world.merchants.until_delivered(60).await;
    assert_eq!(worker.metric("herald_breakers{state=\"open\"}"), 0.0);
    assert!(worker.stop().await.success());
}

/// What comes back through the tunnel is the same from a receiver that closes at once, and that one must not be tried without end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_hangs_up_after_its_yes_is_taken_for_the_receiver_and_nothing_is_lost() {
    let proxy = Proxy::start(None, Does::HangsUp).await;
    let world = World::new().await;
    let accounts = world.register_many(1).await;
    let setup = world.setup().env("HERALD_EGRESS_PROXY", &format!("http://{}", proxy.address));
    let worker = setup.env("HERALD_RETRY_MAX_ATTEMPTS", "50").start();
    world.publish(&lives(1, &accounts, 20)).await;
    worker.until_metric("herald_breakers{state=\"open\"}", |open| open == 1.0).await;
    assert!(worker.metric("herald_attempts_total{outcome=\"reset\"}") >= 1.0);
    *proxy.does.lock().unwrap() = Does::Passes;
    world.merchants.until_delivered(20).await;
    world.merchants.assert_sound();
    assert!(worker.stop().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_with_the_receiver_is_inside_that_with_the_proxy_and_by_its_name() {
    let (world, files, authority) = (World::new().await, Files::new(), Authority::new());
    files.write("ca.pem", &authority.pem());
    let proxy = Proxy::start(Some(authority.acceptor("localhost", &["http/1.1"], |_| ())), Does::Passes).await;
    let names = Arc::new(Mutex::new(Vec::new()));
    let (acceptor, said) = (authority.acceptor("localhost", &["h2", "http/1.1"], |_| ()), names.clone());
    let receiver = Receiver::start(move |stream, log| {
        let (acceptor, said) = (acceptor.clone(), said.clone());
        async move {
            let mut stream = acceptor.accept(stream).await.unwrap();
            said.lock().unwrap().push(stream.get_ref().1.server_name().map(str::to_owned));
            while log.read_request(&mut stream).await.is_some() {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            }
        }
    })
    .await;
    let endpoint = world.endpoint("ep_0", "acc_0");
    world.register(Endpoint { url: receiver.https("localhost"), http1: true, ..endpoint }).await;
    let port = receiver.address.port();
    for (by_name, target, number) in
        [("false", format!("127.0.0.1:{port}"), 1), ("true", format!("localhost:{port}"), 2)]
    {
        let toml = format!("[attempt]\nca_file = {:?}\n", files.text("ca.pem"));
        let worker = world
            .setup()
            .toml(&toml)
            .env("HERALD_EGRESS_PROXY", &format!("https://localhost:{}", proxy.address.port()))
            .env("HERALD_EGRESS_PROXY_NAMES", by_name)
            .start();
        world.publish(&[crate::world::Event::new(number, "acc_0", "pi_0", "Created")]).await;
        until("the callback", async || receiver.log.seen().len() >= number).await;
        let targets = proxy.targets();
        assert!(targets.contains(&target), "{targets:?}");
        assert!(by_name == "true" || targets.iter().all(|target| !target.contains("localhost")), "{targets:?}");
        assert!(worker.stop().await.success());
    }
    assert!(names.lock().unwrap().iter().all(|name| name.as_deref() == Some("localhost")));
}
