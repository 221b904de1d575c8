//! The API by TLS, as its callers see it: versions, new certificates while it serves, and callers that never finish.

use std::{
    io::{self, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
};

use herald::tls::provider;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
    pki_types::{CertificateDer, pem::PemObject},
    version::{TLS12, TLS13},
};

use crate::{
    Files, herald,
    process::{Herald, Setup, free_address, get},
    receiver::Authority,
    support::until,
    told,
    world::World,
};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// Asks as a stranger to the server would: it has the authority's certificate and the name.
struct Client {
    config: Arc<ClientConfig>,
}

impl Client {
    fn new(authority: &Authority, versions: &[&'static SupportedProtocolVersion]) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(provider()));
        let builder = builder.with_protocol_versions(versions).unwrap();
        Self { config: Arc::new(builder.with_root_certificates(roots).with_no_client_auth()) }
    }

    fn get(&self, address: SocketAddr, path: &str) -> io::Result<String> {
        self.ask(address, &format!("GET {path} HTTP/1.1\r\nhost: herald\r\nconnection: close\r\n\r\n"))
    }

    fn ask(&self, address: SocketAddr, request: &str) -> io::Result<String> {
        let connection = ClientConnection::new(self.config.clone(), "herald.example".try_into().unwrap()).unwrap();
        let mut stream = StreamOwned::new(connection, TcpStream::connect(address)?);
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        match io::Read::read_to_end(&mut stream, &mut answer) {
            // Who closes without a word has said all.
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(error),
            _ => Ok(String::from_utf8(answer).unwrap()),
        }
    }
}

fn setup(world: &World, files: &Files) -> Setup {
    world
        .setup()
        .env("HERALD_API_CERTIFICATE_FILE", &files.text("api.pem"))
        .env("HERALD_API_KEY_FILE", &files.text("api.key"))
        .env("HERALD_ADMIN_TOKEN", TOKEN)
}

async fn until_it_answers(herald: &Herald, client: &Client) {
    until("the API answers", async || client.get(herald.address(), "/healthz").is_ok()).await;
}

fn metric(client: &Client, herald: &Herald, series: &str) -> f64 {
    let page = client.get(herald.address(), "/metrics").unwrap();
    let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{series} is not in {page}")).parse().unwrap()
}

const API_END: &str = "herald_certificate_not_after_timestamp_seconds{use=\"api\"}";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_speaks_tls_and_nothing_else() {
    let (world, files, authority) = (World::new().await, Files::new(), Authority::new());
    files.identity(&authority, "api", "herald.example");
    let intents = free_address();
    let herald = setup(&world, &files).env("HERALD_INTENTS_LISTEN", &intents.to_string()).start();
    let client = Client::new(&authority, &[&TLS13]);
    until_it_answers(&herald, &client).await;
    for versions in [&TLS12, &TLS13] {
        let client = Client::new(&authority, &[versions]);
        let me =
            format!("GET /v1/me HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {TOKEN}\r\nconnection: close\r\n\r\n");
        let answer = client.ask(herald.address(), &me).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"admin\""), "{answer}");
        assert!(client.get(intents, "/healthz").unwrap().starts_with("HTTP/1.1 200"));
    }
    assert_eq!(get(herald.address(), "/healthz"), None);
    assert!(metric(&client, &herald, API_END) > 4_000_000_000.0);
    // A cookie that must not be sent in the clear, whatever a caller says of how it came.
    let login = client.ask(
        herald.address(),
        "GET /console/login HTTP/1.1\r\nhost: h\r\nx-forwarded-proto: http\r\nconnection: close\r\n\r\n",
    );
    assert!(login.as_ref().unwrap().to_lowercase().contains("secure"), "{login:?}");

    let (certificate, key, url) = (files.text("api.pem"), files.text("api.key"), world.redis.url());
    let listen = herald.address().to_string();
    let env = [
        ("HERALD_REDIS_URL", url.as_str()),
        ("HERALD_LISTEN", &listen),
        ("HERALD_API_CERTIFICATE_FILE", &certificate),
        ("HERALD_API_KEY_FILE", &key),
    ];
    for words in [&["healthcheck"][..], &["healthcheck", "--ready"]] {
        let asked = herald_verb(words, &env);
        assert!(asked.0, "{}", asked.1);
    }
    let plain = herald_verb(&["healthcheck"], &env[..2]);
    assert!(!plain.0, "{}", plain.1);
    let doctor = herald_verb(&["doctor"], &env).1;
    assert!(doctor.contains("callers are encrypted"), "{doctor}");
    assert!(herald.stop().await.success());
}

fn herald_verb(words: &[&str], env: &[(&str, &str)]) -> (bool, String) {
    let output = herald(words, env).output().unwrap();
    (output.status.success(), told(&output))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_api_beyond_this_machine_is_a_finding() {
    let world = World::new().await;
    let url = world.redis.url();
    let said = |more: &[(&str, &str)]| {
        let env = [&[("HERALD_REDIS_URL", url.as_str()), ("HERALD_LISTEN", "0.0.0.0:8080")], more].concat();
        herald_verb(&["doctor"], &env).1
    };
    let plain = said(&[]);
    assert!(plain.contains("listen = 0.0.0.0:8080 is plain HTTP beyond this machine"), "{plain}");
    assert!(!said(&[("HERALD_API_TRUSTED_PROXIES", "10.0.0.7")]).contains("beyond this machine"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_of_their_own_port_stay_plain() {
    let (world, files, authority) = (World::new().await, Files::new(), Authority::new());
    files.identity(&authority, "api", "herald.example");
    let metrics = free_address();
    let herald = setup(&world, &files).env("HERALD_METRICS_LISTEN", &metrics.to_string()).start();
    until("health answers", async || get(metrics, "/healthz").is_some_and(|(status, _)| status == 200)).await;
    let client = Client::new(&authority, &[&TLS13]);
    assert!(client.get(herald.address(), "/healthz").unwrap().starts_with("HTTP/1.1 404"));
    let (certificate, key, listen) = (files.text("api.pem"), files.text("api.key"), metrics.to_string());
    let env = [
        ("HERALD_METRICS_LISTEN", listen.as_str()),
        ("HERALD_API_CERTIFICATE_FILE", &certificate),
        ("HERALD_API_KEY_FILE", &key),
    ];
    let asked = herald_verb(&["healthcheck"], &env);
    assert!(asked.0, "{}", asked.1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_certificate_is_taken_and_one_of_no_use_is_not() {
    let (world, files, first) = (World::new().await, Files::new(), Authority::new());
    files.identity(&first, "api", "herald.example");
    let herald = setup(&world, &files).start();
    let of_first = Client::new(&first, &[&TLS13]);
    until_it_answers(&herald, &of_first).await;

    let second = Authority::new();
    let of_second = Client::new(&second, &[&TLS13]);
    let year = |certificate: &mut rcgen::CertificateParams| certificate.not_after = rcgen::date_time_ymd(2031, 2, 3);
    let (certificate, key) = second.certificate_with("herald.example", year);
    // Half a file, then a whole one without its key: callers notice nothing of either.
    files.write("api.pem", &certificate[..certificate.len() / 2]);
    herald.until_log("api.pem (api.certificate_file) is not readable as PEM").await;
    assert!(of_first.get(herald.address(), "/healthz").is_ok());
    files.write("api.pem", &certificate);
    herald.until_log("is not that of the first certificate").await;
    assert!(of_first.get(herald.address(), "/healthz").is_ok() && of_second.get(herald.address(), "/healthz").is_err());
    files.write("api.key", &key);
    until("the new certificate is shown", async || of_second.get(herald.address(), "/healthz").is_ok()).await;
    assert!(of_first.get(herald.address(), "/healthz").is_err());
    assert_eq!(metric(&of_second, &herald, API_END), 1_927_843_200.0);

    // One that has expired helps nobody.
    let expired = |certificate: &mut rcgen::CertificateParams| certificate.not_after = rcgen::date_time_ymd(2020, 2, 3);
    let (certificate, key) = second.certificate_with("herald.example", expired);
    files.write("api.pem", &certificate);
    files.write("api.key", &key);
    herald.until_log("has expired, by this machine's clock").await;
    assert!(of_second.get(herald.address(), "/healthz").is_ok());
    // What is wrong is said once, not at each look.
    let said = herald.log().matches("is not readable as PEM").count();
    assert_eq!(said, 1, "{}", herald.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_handshakes_without_an_end_keep_nobody_out() {
    let (world, files, authority) = (World::new().await, Files::new(), Authority::new());
    files.identity(&authority, "api", "herald.example");
    let herald = setup(&world, &files).start();
    let client = Client::new(&authority, &[&TLS13]);
    until_it_answers(&herald, &client).await;
    let mut silent = Vec::new();
    for n in 0..1_000 {
        let mut stream = TcpStream::connect(herald.address()).unwrap();
        match n % 3 {
            0 => {}
            // The head of a record of 512 bytes that never come.
            1 => stream.write_all(&[0x16, 0x03, 0x01, 0x02, 0x00]).unwrap(),
            _ => stream.write_all(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03]).unwrap(),
        }
        silent.push(stream);
        if n % 100 == 99 {
            assert!(client.get(herald.address(), "/healthz").unwrap().starts_with("HTTP/1.1 200"), "after {n}");
        }
    }
    assert!(client.get(herald.address(), "/metrics").unwrap().contains("herald_build_info"));
    // They are ended by themselves, too.
    let mut last = silent.pop().unwrap();
    let ended = tokio::task::spawn_blocking(move || io::Read::read(&mut last, &mut [0; 16]));
    assert_eq!(crate::support::soon("the end of a silent one", ended).await.unwrap().unwrap_or(0), 0);
}

#[test]
fn files_of_no_use_stop_the_start() {
    let (files, authority) = (Files::new(), Authority::new());
    files.identity(&authority, "api", "herald.example");
    files.identity(&authority, "other", "herald.example");
    for (certificate, key, says) in [
        ("api.pem", Some("other.key"), "is not that of the first certificate"),
        ("api.key", Some("api.key"), "holds no certificate"),
        ("api.pem", Some("none.key"), "cannot read"),
        ("api.pem", None, "needs its key: name the file in api.key_file"),
    ] {
        let (certificate, key) = (files.text(certificate), key.map(|key| files.text(key)));
        let mut env = vec![("HERALD_API_CERTIFICATE_FILE", certificate.as_str())];
        env.extend(key.iter().map(|key| ("HERALD_API_KEY_FILE", key.as_str())));
        for verb in [&["serve"][..], &["config", "check"]] {
            let output = herald(verb, &env).output().unwrap();
            assert!(output.status.code() == Some(2) && told(&output).contains(says), "{says}: {}", told(&output));
        }
    }
}
