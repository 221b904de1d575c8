//! How callers come in: by TLS where a certificate is configured, and from which address. Takes a new certificate while it serves,
//! and keeps the old one where the new one is of no use. Accepts nothing itself.

use std::{
    fmt,
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use http::HeaderMap;
use ipnet::IpNet;
use rustls::{
    ServerConfig,
    pki_types::CertificateDer,
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use crate::{
    clock,
    facts::certificate::not_after_s,
    telemetry::certificates::{self, Use},
    tls::{self, FileError, IdentityFiles},
};

/// How often the files are looked at. They are short.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// More proxies than this stand before nobody.
const MAX_HOPS: usize = 32;

const FORWARDED_FOR: &str = "x-forwarded-for";

/// Of one listener or several. Cheap to clone.
#[derive(Clone, Default)]
pub struct Entrance {
    tls: Option<Arc<ServerConfig>>,
    trusted_proxies: Arc<[IpNet]>,
}

impl Entrance {
    pub fn new(certificate: Option<&Certificate>, trusted_proxies: &[IpNet]) -> Self {
        Self { tls: certificate.map(|certificate| certificate.server.clone()), trusted_proxies: trusted_proxies.into() }
    }

    /// `None` where connections are not encrypted.
    pub fn tls(&self) -> Option<Arc<ServerConfig>> {
        self.tls.clone()
    }

    /// Where a request comes from: what proxies that are trusted say, each of who asked it. The last of them that is no trusted
    /// proxy is who has asked; what stands before it is only what that one says.
    pub fn caller(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut caller = peer.to_canonical();
        let lines = headers.get_all(FORWARDED_FOR).iter().rev().map(|line| line.to_str().unwrap_or_default());
        let mut said = lines.flat_map(|line| line.rsplit(',')).take(MAX_HOPS);
        while self.trusted_proxies.iter().any(|network| network.contains(&caller)) {
            // What cannot be read ends the row: before it everything is hearsay.
            let Some(before) = said.next().and_then(address) else { break };
            caller = before;
        }
        caller
    }
}

/// Some proxies write the port too.
fn address(said: &str) -> Option<IpAddr> {
    let said = said.trim();
    let of_socket = || said.parse::<std::net::SocketAddr>().ok().map(|socket| socket.ip());
    let bracketed = || said.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    said.parse().ok().or_else(of_socket).or_else(bracketed).map(|ip: IpAddr| ip.to_canonical())
}

/// What the API shows of itself, as it is in the files.
pub struct Certificate {
    files: IdentityFiles,
    shown: Arc<Shown>,
    server: Arc<ServerConfig>,
}

/// The same for all names: whoever asks for another one is told by the certificate.
struct Shown(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.now())
    }
}

impl Shown {
    fn now(&self) -> Arc<CertifiedKey> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shown")
    }
}

impl Certificate {
    /// Fails where the files are of no use. One that has expired is shown all the same: it is the clock that may be wrong.
    pub fn read(files: IdentityFiles) -> Result<Self, FileError> {
        let identity = files.read()?;
        let shown = Arc::new(Shown(RwLock::new(identity.clone())));
        let versions =
            ServerConfig::builder_with_provider(Arc::new(tls::provider())).with_safe_default_protocol_versions();
        let versions = versions.map_err(|cause| FileError::Unusable {
            certificate: files.certificate.clone(),
            key: files.key.clone(),
            cause: Box::new(cause),
        })?;
        let mut server = versions.with_no_client_auth().with_cert_resolver(shown.clone());
        // Who goes on with a session would not see a new certificate. Connections are kept, so there are few handshakes.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        if has_expired(&identity) {
            warn!("the API's certificate {} has expired, by this machine's clock", files.certificate);
        }
        certificates::shown(Use::Api, end_s(&identity.cert));
        Ok(Self { files, shown, server: Arc::new(server) })
    }

    /// When the first of its chain ends, seconds since 1970.
    pub fn end_s(&self) -> Option<i64> {
        end_s(&self.shown.now().cert)
    }

    /// Takes what is new in the files, until it is cancelled. What is wrong with them is said once.
    pub async fn follow(self) {
        let mut last_said = None;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let files = self.files.clone();
            let read = spawn_blocking(move || files.read()).await;
            let said = match read
                .map_err(|error| error.to_string())
                .and_then(|read| read.map_err(|error| error.to_string()))
            {
                Ok(identity) => self.take(identity),
                Err(error) => Err(error),
            };
            match said {
                Ok(()) => last_said = None,
                Err(why) if last_said.as_ref() == Some(&why) => {}
                Err(why) => {
                    warn!(error = why, "the API goes on with the certificate that it has");
                    last_said = Some(why);
                }
            }
        }
    }

    fn take(&self, identity: Arc<CertifiedKey>) -> Result<(), String> {
        let now = self.shown.now();
        if identity.cert == now.cert {
            return Ok(());
        }
        if has_expired(&identity) && !has_expired(&now) {
            return Err(format!("the new one in {} has expired, by this machine's clock", self.files.certificate));
        }
        certificates::shown(Use::Api, end_s(&identity.cert));
        info!("the API shows the new certificate of {}", self.files.certificate);
        *self.shown.0.write().unwrap_or_else(PoisonError::into_inner) = identity;
        Ok(())
    }
}

/// The first end in a chain.
fn end_s(chain: &[CertificateDer<'_>]) -> Option<i64> {
    chain.iter().filter_map(|certificate| not_after_s(certificate)).min()
}

fn has_expired(identity: &CertifiedKey) -> bool {
    let now_s = i64::try_from(clock::wall_ms() / 1000).unwrap_or(i64::MAX);
    end_s(&identity.cert).is_some_and(|end| end < now_s)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_is_the_last_one_that_no_trusted_proxy_hides() {
        let entrance = Entrance::new(None, &["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()]);
        for (peer, said, caller) in [
            // Nobody believes a stranger.
            ("198.51.100.7", &["203.0.113.1"][..], "198.51.100.7"),
            ("198.51.100.7", &["10.0.0.1"], "198.51.100.7"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["203.0.113.1"], "203.0.113.1"),
            // What the caller has written itself stands before.
            ("10.0.0.1", &["127.0.0.1, 10.9.9.9, 203.0.113.1"], "203.0.113.1"),
            ("10.0.0.1", &["192.0.2.66", "203.0.113.1"], "203.0.113.1"),
            ("10.0.0.1", &["192.0.2.66, 203.0.113.1", "10.0.0.2,fd00::1"], "203.0.113.1"),
            ("10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            // Both ways of writing the same.
            ("::ffff:10.0.0.1", &["::ffff:203.0.113.1"], "203.0.113.1"),
            ("fd00::2", &["2001:db8::1"], "2001:db8::1"),
            ("10.0.0.1", &["203.0.113.1:4711"], "203.0.113.1"),
            ("10.0.0.1", &["[2001:db8::1]:4711"], "2001:db8::1"),
            ("10.0.0.1", &["[2001:db8::1]"], "2001:db8::1"),
            // What is no address hides what stands before it.
            ("10.0.0.1", &["203.0.113.1, unknown"], "10.0.0.1"),
            ("10.0.0.1", &["203.0.113.1,"], "10.0.0.1"),
            ("10.0.0.1", &["203.0.113.1, unknown, 10.0.0.2"], "10.0.0.2"),
            ("10.0.0.1", &["", "203.0.113.1;drop"], "10.0.0.1"),
            ("10.0.0.1", &["203.0.113.1, ١٠.0.0.2"], "10.0.0.1"),
        ] {
            let mut headers = HeaderMap::new();
            said.iter().for_each(|line| {
                let line = http::HeaderValue::from_bytes(line.as_bytes()).unwrap();
                headers.append(FORWARDED_FOR, line);
            });
            let found = entrance.caller(peer.parse().unwrap(), &headers);
            assert_eq!(found, caller.parse::<IpAddr>().unwrap(), "{peer} {said:?}");
        }
    }

    #[test]
    fn a_row_without_end_is_not_followed() {
        let entrance = Entrance::new(None, &["10.0.0.0/8".parse().unwrap()]);
        let mut headers = HeaderMap::new();
        let row = format!("203.0.113.1,{}", vec!["10.0.0.1"; 1_000].join(","));
        headers.insert(FORWARDED_FOR, row.parse().unwrap());
        assert_eq!(entrance.caller("10.0.0.2".parse().unwrap(), &headers), "10.0.0.1".parse::<IpAddr>().unwrap());
    }
}
