//! What an endpoint has of its own in TLS: receivers that ask for a certificate, and what each of them is shown.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{Arc, Mutex},
    time::Duration,
};

use herald::{
    clock,
    facts::{certificate::Certificate, sealing::key_line},
    tls::{authorities, certificates, provider},
};
use rcgen::{CertificateParams, DistinguishedName, DnType};
use rustls::{
    HandshakeKind, ServerConfig,
    pki_types::{PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio_rustls::TlsAcceptor;

use crate::{
    Files,
    egress::{Does, Proxy},
    herald,
    process::{Herald, Setup},
    receiver::{Authority, Receiver, Seen},
    support::until,
    told,
    world::{Event, World, lives},
};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const HTTP1: &[&str] = &["http/1.1"];
const HTTP2: &[&str] = &["h2", "http/1.1"];
const GAUGE: &str = "herald_certificate_not_after_timestamp_seconds{use=\"endpoint\"}";

/// A request as it arrived: at which URL, on which connection, and what that had shown.
#[derive(Debug, Clone)]
struct Arrival {
    path: String,
    event: String,
    shown: Option<String>,
    connection: SocketAddr,
    is_whole_handshake: bool,
}

/// Merchants of one host, who sign the certificates of their callers with an authority of their own.
struct Stage {
    world: World,
    files: Files,
    /// Of receivers.
    servers: Authority,
    /// Of their callers.
    clients: Authority,
    receiver: Receiver,
    arrivals: Arc<Mutex<Vec<Arrival>>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Asks {
    /// Who shows nothing is let in, too.
    Politely,
    Strictly,
}

impl Stage {
    async fn start(alpn: &[&str], asks: Asks) -> Self {
        let (servers, clients, files) = (Authority::new(), Authority::new(), Files::new());
        files.write("servers.pem", &servers.pem());
        files.write("keys", &key_line(&[7; 32]));
        let arrivals = Arc::<Mutex<Vec<Arrival>>>::default();
        let (acceptor, noted) = (acceptor(&servers, &clients, alpn, asks), arrivals.clone());
        let receiver = Receiver::start(move |stream, _| serve(stream, acceptor.clone(), noted.clone())).await;
        Self { world: World::new().await, files, servers, clients, receiver, arrivals }
    }

    /// `NAME.pem` and `NAME.key` of a caller of this name.
    fn identity(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) {
        self.identity_by(&self.clients, name, change);
    }

    fn identity_by(&self, authority: &Authority, name: &str, change: impl FnOnce(&mut CertificateParams)) {
        let (certificate, key) = authority.certificate_with("herald.example", |params| {
            params.distinguished_name = DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, name);
            change(params);
        });
        self.files.write(&format!("{name}.pem"), &certificate);
        self.files.write(&format!("{name}.key"), &key);
    }

    fn url(&self, number: usize) -> String {
        format!("https://localhost:{}/ep_{number}", self.receiver.address.port())
    }

    fn file(&self, name: &str) -> String {
        self.files.text(name)
    }

    fn pem(&self, name: &str) -> String {
        std::fs::read_to_string(self.files.path(name)).unwrap()
    }

    fn setup(&self) -> Setup {
        self.world.setup().env("HERALD_MASTER_KEY_FILE", &self.file("keys")).env("HERALD_ADMIN_TOKEN", TOKEN)
    }

    /// A verb, with keys that seal or without: its code and all that it said.
    fn run_with(&self, has_keys: bool, words: &[&str]) -> (Option<i32>, String) {
        let (url, keys) = (self.world.redis.url(), self.file("keys"));
        let mut env = vec![
            ("HERALD_REDIS_URL", url.as_str()),
            ("HERALD_ALLOW_HTTP", "true"),
            ("HERALD_ALLOW_NETWORKS", "127.0.0.0/8"),
            ("USER", "ops"),
        ];
        env.extend(has_keys.then_some(("HERALD_MASTER_KEY_FILE", keys.as_str())));
        let output = herald(words, &env).output().unwrap();
        (output.status.code(), told(&output))
    }

    fn run(&self, words: &[&str]) -> (Option<i32>, String) {
        self.run_with(true, words)
    }

    fn done(&self, words: &[&str]) -> String {
        let (code, said) = self.run(words);
        assert_eq!(code, Some(0), "{words:?}: {said}");
        said
    }

    /// Registers `ep_N` of `acc_N`, which trusts the receivers' authority and shows this.
    fn create(&self, number: usize, shows: Option<&str>) {
        let (url, id, account) = (self.url(number), format!("ep_{number}"), format!("acc_{number}"));
        let ca = self.file("servers.pem");
        let mut words = vec!["endpoint", "create", "--account", &account, "--id", &id, "--url", &url];
        words.extend(["--tls-ca-file", &ca]);
        let files = shows.map(|name| (self.file(&format!("{name}.pem")), self.file(&format!("{name}.key"))));
        if let Some((certificate, key)) = &files {
            words.extend(["--client-certificate-file", certificate, "--client-key-file", key]);
        }
        self.done(&words);
    }

    fn update(&self, number: usize, settings: &[&str]) -> String {
        let id = format!("ep_{number}");
        self.done(&[&["endpoint", "update", &id, "--reason", "a test"], settings].concat())
    }

    fn shows(&self, number: usize, name: &str) -> String {
        let (certificate, key) = (self.file(&format!("{name}.pem")), self.file(&format!("{name}.key")));
        self.update(number, &["--client-certificate-file", &certificate, "--client-key-file", &key])
    }

    fn arrivals(&self) -> Vec<Arrival> {
        self.arrivals.lock().unwrap().clone()
    }

    async fn until_arrived(&self, count: usize) {
        until("the callbacks", async || self.arrivals().len() >= count).await;
    }

    /// What came with an event of `acc_0` that is published now.
    async fn delivered(&self, number: usize) -> Arrival {
        let event = Event::new(number, "acc_0", &format!("pi_{number}"), "Created");
        self.world.publish(std::slice::from_ref(&event)).await;
        let is_it = |arrival: &Arrival| arrival.event == event.id;
        until("the callback", async || self.arrivals().iter().any(is_it)).await;
        self.arrivals().into_iter().rfind(is_it).unwrap()
    }
}

fn acceptor(servers: &Authority, clients: &Authority, alpn: &[&str], asks: Asks) -> TlsAcceptor {
    let roots = Arc::new(authorities(clients.pem().as_bytes()).unwrap());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::new(provider()));
    let verifier = if asks == Asks::Strictly { verifier } else { verifier.allow_unauthenticated() };
    let (certificate, key) = servers.certificate("localhost");
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(
            certificates(certificate.as_bytes()).unwrap(),
            PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    Arc::new(config).into()
}

async fn serve(stream: tokio::net::TcpStream, acceptor: TlsAcceptor, arrivals: Arc<Mutex<Vec<Arrival>>>) {
    let connection = stream.peer_addr().unwrap();
    let mut stream = match acceptor.accept(stream).into_fallible().await {
        Ok(stream) => stream,
        Err((_, mut stream)) => {
            // A close with unread bytes would be a reset, and nobody would hear why.
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
            return;
        }
    };
    let tls = stream.get_ref().1;
    let shown = tls.peer_certificates().map(|chain| Certificate::read(&chain[0]).unwrap().subject);
    let is_whole_handshake = tls.handshake_kind() != Some(HandshakeKind::Resumed);
    let is_http2 = tls.alpn_protocol() == Some(b"h2");
    let note = |path: &str, event: &str| {
        let (path, event, shown) = (path.to_owned(), event.to_owned(), shown.clone());
        arrivals.lock().unwrap().push(Arrival { path, event, shown, connection, is_whole_handshake });
    };
    if is_http2 {
        let mut requests = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((request, mut respond))) = requests.accept().await {
            note(request.uri().path(), request.headers()["webhook-id"].to_str().unwrap());
            let _ = respond.send_response(http::Response::new(()), true);
        }
        return;
    }
    let log = crate::receiver::Log::default();
    while let Some(seen) = log.read_request(&mut stream).await {
        note(path(&seen), seen.header("webhook-id").unwrap());
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    }
}

fn path(seen: &Seen) -> &str {
    seen.head.split(' ').nth(1).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_of_one_host_each_show_their_own_and_share_no_connection() {
    for alpn in [HTTP1, HTTP2] {
        let stage = Stage::start(alpn, Asks::Politely).await;
        stage.identity("anna", |_| ());
        stage.identity("bert", |_| ());
        for (number, shows) in [(0, Some("anna")), (1, None), (2, Some("bert"))] {
            stage.create(number, shows);
        }
        // The same certificate is no reason to share.
        stage.create(3, Some("bert"));
        let worker = stage.setup().env("HERALD_LOG", "trace").start();
        worker.until_owner().await;
        let accounts: Vec<String> = (0..4).map(|n| format!("acc_{n}")).collect();
        let events = lives(1, &accounts, 120);
        for part in 1..=3 {
            stage.world.publish(&events[(part - 1) * 40..part * 40]).await;
            stage.until_arrived(part * 40).await;
        }
        let mut users: BTreeMap<SocketAddr, Vec<Arrival>> = BTreeMap::new();
        for arrival in stage.arrivals() {
            let shown = match arrival.path.as_str() {
                "/ep_0" => Some("CN=anna"),
                "/ep_1" => None,
                "/ep_2" | "/ep_3" => Some("CN=bert"),
                other => panic!("nothing is registered at {other}"),
            };
            assert_eq!(arrival.shown.as_deref(), shown, "{arrival:?}");
            assert!(arrival.is_whole_handshake, "{arrival:?}");
            users.entry(arrival.connection).or_default().push(arrival);
        }
        for of_one in users.values() {
            assert!(of_one.iter().all(|arrival| arrival.path == of_one[0].path), "a connection was shared: {of_one:?}");
        }
        assert!(users.len() < 120 && users.values().any(|of_one| of_one.len() > 1), "no connection was kept: {alpn:?}");
        let key = stage.pem("anna.key");
        let line = key.lines().nth(1).unwrap();
        assert!(!worker.log().contains(line), "the key is in the log");
        assert!(worker.stop().await.success());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_receiver_does_not_take_fails_as_tls_with_what_to_do() {
    for alpn in [HTTP1, HTTP2] {
        let stage = Stage::start(alpn, Asks::Strictly).await;
        stage.identity("anna", |_| ());
        stage.identity_by(&Authority::new(), "stranger", |_| ());
        stage.identity("old", |params| {
            params.not_before = rcgen::date_time_ymd(2001, 1, 1);
            params.not_after = rcgen::date_time_ymd(2002, 1, 1);
        });
        let test = || stage.run(&["endpoint", "test", "ep_0", "-o", "json"]);
        stage.create(0, None);
        for name in [None, Some("stranger"), Some("old")] {
            if let Some(name) = name {
                stage.shows(0, name);
            }
            let (code, said) = test();
            assert_eq!(code, Some(1), "{name:?}: {said}");
            assert!(said.contains("wants a client certificate, or does not take the one"), "{name:?}: {said}");
            assert!(stage.arrivals().is_empty(), "{name:?}");
        }
        let shown = stage.shows(0, "anna");
        assert!(shown.contains("CN=anna, by CN=Authority"), "{shown}");
        assert_eq!(test().0, Some(0), "{}", test().1);
        assert_eq!(stage.arrivals()[0].shown.as_deref(), Some("CN=anna"));

        // Without the authority it is the receiver that is not believed, and nothing is shown to it.
        let seen = stage.arrivals().len();
        stage.update(0, &["--no-tls-ca"]);
        let (code, said) = test();
        assert!(code == Some(1) && said.contains("UnknownIssuer"), "{said}");
        assert_eq!(stage.arrivals().len(), seen);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn authorities_of_an_endpoint_are_believed_besides_the_usual_and_for_it_alone() {
    let stage = Stage::start(HTTP2, Asks::Politely).await;
    stage.create(0, None);
    stage.files.write("other.pem", &Authority::new().pem());
    stage.create(1, None);
    let toml = format!("[attempt]\nca_file = {:?}\n", stage.file("servers.pem"));
    stage.update(1, &["--tls-ca-file", &stage.file("other.pem")]);
    stage.done(&["endpoint", "create", "--account", "acc_2", "--id", "ep_2", "--url", &stage.url(2)]);
    for (number, is_believed) in [(0, true), (1, false), (2, false)] {
        let (code, said) = stage.run(&["endpoint", "test", &format!("ep_{number}")]);
        assert_eq!(code == Some(0), is_believed, "ep_{number}: {said}");
    }
    let before = stage.arrivals().len();
    let accounts: Vec<String> = (0..3).map(|n| format!("acc_{n}")).collect();
    let worker = stage.setup().toml(&toml).start();
    stage.world.publish(&lives(1, &accounts, 30)).await;
    stage.until_arrived(before + 30).await;
    assert!(worker.stop().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_certificate_is_shown_from_the_next_delivery_on_and_its_end_is_watched() {
    for alpn in [HTTP1, HTTP2] {
        let stage = Stage::start(alpn, Asks::Politely).await;
        let now = Duration::from_millis(clock::wall_ms());
        let ends = |days: u64| {
            let end = now + Duration::from_secs(days * 86_400);
            move |params: &mut CertificateParams| params.not_after = rcgen::date_time_ymd(1970, 1, 1) + end
        };
        stage.identity("anna", ends(10));
        stage.identity("bert", ends(400));
        stage.create(0, Some("anna"));
        stage.create(1, Some("bert"));
        let worker = stage.setup().start();
        assert_eq!(stage.delivered(1).await.shown.as_deref(), Some("CN=anna"));
        let days = |gauge: f64| ((gauge - now.as_secs_f64()) / 86_400.0).round();
        assert_eq!(days(worker.metric(GAUGE)), 10.0);
        let doctor = stage.run(&["doctor"]).1;
        assert!(doctor.contains("the client certificate ends of ep_0 (in"), "{doctor}");

        stage.shows(0, "bert");
        worker.until_metric(GAUGE, |end| days(end) == 400.0).await;
        assert_eq!(stage.delivered(2).await.shown.as_deref(), Some("CN=bert"));
        assert!(stage.run(&["doctor"]).1.contains("2 client certificates are good"));
        stage.update(0, &["--no-client-certificate"]);
        stage.update(1, &["--no-client-certificate", "--no-tls-ca"]);
        until("no certificate is left", async || !worker.get("/metrics").unwrap().1.contains(GAUGE)).await;
        assert_eq!(stage.delivered(3).await.shown, None);
        assert!(worker.stop().await.success());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_is_refused_with_words_and_nothing_of_a_key_is_said() {
    const ALONE: &str = "has something else beside certificates";
    let stage = Stage::start(HTTP1, Asks::Politely).await;
    stage.identity("anna", |_| ());
    stage.identity("bert", |_| ());
    let (url, key) = (stage.url(0), stage.pem("anna.key"));
    // A key that has lost its line ends.
    stage.files.write("flat.key", &key.replace('\n', ""));
    // As many tools write them.
    stage.files.write("both.pem", &format!("{}{key}", stage.pem("anna.pem")));
    stage.files.write("long.pem", &"x".repeat(16 * 1024 + 1));
    let secret = key.lines().nth(1).unwrap();
    let create = |has_keys: bool, url: &str, more: &[(&str, &str)]| {
        let files: Vec<_> = more.iter().map(|(flag, name)| (*flag, stage.file(name))).collect();
        let mut words = vec!["endpoint", "create", "--account", "acc_0", "--url", url];
        words.extend(files.iter().flat_map(|(flag, file)| [*flag, file.as_str()]));
        stage.run_with(has_keys, &words)
    };
    let (ca, certificate, client_key) = ("--tls-ca-file", "--client-certificate-file", "--client-key-file");
    let anna = [(certificate, "anna.pem"), (client_key, "anna.key")];
    for (has_keys, url, more, says) in [
        (true, url.as_str(), &[(certificate, "anna.pem"), (client_key, "bert.key")][..], "not that of the first"),
        (true, &url, &[(certificate, "anna.pem")], "its client certificate has no key"),
        (true, &url, &[(client_key, "anna.key")], "its client key has no certificate"),
        (true, &url, &[(certificate, "anna.key"), (client_key, "anna.key")], ALONE),
        (true, &url, &[(certificate, "both.pem"), (client_key, "anna.key")], ALONE),
        (true, &url, &[(ca, "both.pem")], ALONE),
        (true, &url, &[(certificate, "anna.pem"), (client_key, "anna.pem")], "holds no private key"),
        (true, &url, &[(certificate, "anna.pem"), (client_key, "flat.key")], "its client key is not readable as PEM"),
        (true, &url, &[(ca, "anna.key")], ALONE),
        (true, &url, &[(ca, "long.pem")], "larger than 16"),
        (true, "http://127.0.0.1:8099/", &anna, "plain http"),
        (false, &url, &anna, "herald key generate"),
    ] {
        let (code, said) = create(has_keys, url, more);
        assert_eq!(code, Some(4), "{more:?}: {said}");
        assert!(said.contains(says), "{more:?}: {said}");
        assert!(!said.contains(secret), "{more:?}: {said}");
    }
    assert!(stage.world.keys("*registry*").await.is_empty(), "something was registered");
    let (code, said) = create(false, &url, &[(ca, "servers.pem")]);
    assert_eq!(code, Some(0), "an authority is no secret: {said}");
}

fn ask(herald: &Herald, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let mut stream = TcpStream::connect(herald.address()).unwrap();
    let body = body.to_string();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {TOKEN}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), serde_json::from_str(body).unwrap_or(Value::Null))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_takes_them_and_shows_what_may_be_shown() {
    let stage = Stage::start(HTTP1, Asks::Strictly).await;
    stage.identity("anna", |_| ());
    stage.identity("bert", |_| ());
    let herald = stage.setup().start();
    until("the API answers", async || herald.get("/healthz").is_some()).await;
    let of = |name: &str, key: &str| json!({"client_certificate": stage.pem(&format!("{name}.pem")), "client_key": stage.pem(&format!("{key}.key"))});
    let mut body = json!({"account": "acc_0", "id": "ep_0", "url": stage.url(0), "tls": of("anna", "bert")});
    let (status, refused) = ask(&herald, "POST", "/v1/endpoints", &body);
    assert_eq!(status, 400, "{refused}");
    assert!(refused.to_string().contains("not that of the first certificate"), "{refused}");
    body["tls"] = of("anna", "anna");
    body["tls"]["ca"] = stage.servers.pem().into();
    let (status, made) = ask(&herald, "POST", "/v1/endpoints", &body);
    assert_eq!(status, 201, "{made}");
    let tls = &made["tls"];
    assert_eq!(tls["client_certificate"]["subject"], "CN=anna");
    assert_eq!((&tls["ca"][0]["subject"], &tls["ca"][1]), (&tls["ca"][0]["issuer"], &Value::Null));
    assert!(tls["client_certificate"]["not_after"].as_str().unwrap().starts_with("4096-"), "{tls}");
    assert!(!made.to_string().contains("BEGIN") && tls["client_key"].is_null(), "{made}");
    assert_eq!(stage.delivered(1).await.shown.as_deref(), Some("CN=anna"));

    let patch = |tls: Value| ask(&herald, "PATCH", "/v1/endpoints/ep_0", &json!({"tls": tls, "reason": "a test"}));
    let (status, changed) = patch(of("bert", "bert"));
    assert_eq!((status, &changed["tls"]["client_certificate"]["subject"]), (200, &"CN=bert".into()), "{changed}");
    assert_eq!(changed["tls"]["ca"], made["tls"]["ca"], "it stays");
    assert_eq!(stage.delivered(2).await.shown.as_deref(), Some("CN=bert"));
    let (status, half) = patch(json!({"client_key": null}));
    assert_eq!(status, 400, "{half}");
    let (status, without) = patch(Value::Null);
    assert_eq!((status, without.get("tls")), (200, None), "{without}");
    assert!(herald.stop().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_are_agreed_within_what_a_proxy_passes_on_and_are_not_the_proxys() {
    let stage = Stage::start(HTTP2, Asks::Strictly).await;
    stage.identity("anna", |_| ());
    stage.create(0, Some("anna"));
    // The endpoint's authority vouches for its receiver, and not for the way there.
    let tls = stage.servers.acceptor("localhost", &["http/1.1"], |_| ());
    let proxy = Proxy::start(Some(tls), Does::Passes).await;
    let setup = stage
        .setup()
        .env("HERALD_EGRESS_PROXY", &format!("https://localhost:{}", proxy.address.port()))
        .env("HERALD_RETRY_MAX_ATTEMPTS", "50");
    let worker = setup.start();
    stage.world.publish(&[Event::new(1, "acc_0", "pi_1", "Created")]).await;
    worker.until_metric("herald_attempts_total{outcome=\"proxy_failed\"}", |failed| failed >= 1.0).await;
    assert!(stage.arrivals().is_empty() && worker.stop().await.success());
    let toml = format!("[attempt]\nca_file = {:?}\n", stage.file("servers.pem"));
    let worker = setup.toml(&toml).start();
    assert_eq!(stage.delivered(2).await.shown.as_deref(), Some("CN=anna"));
    let targets = proxy.targets();
    assert!(
        !targets.is_empty() && targets.iter().all(|target| *target == stage.receiver.address.to_string()),
        "{targets:?}"
    );
    assert!(worker.stop().await.success());
}
