//! Who is trusted to vouch for a receiver in TLS, and what a receiver is shown: for most the system's authorities with those that
//! were configured, and nothing; for an endpoint with TLS settings of its own, its authorities besides, and its certificate.
//! Never connects.

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::{Arc, Mutex, PoisonError},
};

use foldhash::{HashMap, HashMapExt};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
    sign::SingleCertAndKey,
};
use rustls_platform_verifier::Verifier;
use tokio_rustls::TlsConnector;

use super::{SenderConfig, SenderError};
use crate::{
    facts::{
        endpoint::Endpoint,
        endpoint_tls::{ClientKey, EndpointTls},
        id::EndpointId,
    },
    tls::{self, PemError},
};

/// Endpoints with settings of their own for which they are kept ready, at a few KiB each. Beyond this the one that connected longest
/// ago is made anew when it connects again, which takes a millisecond. Connections that are open do not need it.
const MAX_KEPT: usize = 256;

/// What an endpoint has of its own. Connections made with it are for this endpoint alone, and end with what it was made of.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Own {
    endpoint: EndpointId,
    tls: Arc<EndpointTls>,
}

impl Own {
    pub(super) fn of(endpoint: &Endpoint) -> Option<Self> {
        endpoint.tls.as_ref().map(|tls| Self { endpoint: endpoint.id.clone(), tls: Arc::clone(tls) })
    }
}

/// Two of one endpoint are there only around a change.
impl Hash for Own {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.endpoint.hash(state);
    }
}

impl fmt::Debug for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Own({})", self.endpoint)
    }
}

/// Agrees on TLS with receivers.
pub(super) struct Client {
    pub(super) any: TlsConnector,
    pub(super) http1: TlsConnector,
}

impl Client {
    fn new(any: ClientConfig) -> Self {
        let mut http1 = any.clone();
        http1.alpn_protocols = vec![b"http/1.1".to_vec()];
        Self { any: Arc::new(any).into(), http1: Arc::new(http1).into() }
    }
}

pub(super) struct Trust {
    /// Of the system's authorities and those that were configured; none where there are none.
    usual: Option<Arc<Verifier>>,
    /// One for all receivers without settings of their own: a configuration costs tens of kilobytes.
    shared: Arc<Client>,
    own: Mutex<Kept>,
}

/// The clients of endpoints, each with the number of its last use.
struct Kept {
    clients: HashMap<Own, (u64, Arc<Client>)>,
    uses: u64,
}

impl Trust {
    pub(super) fn new(config: &SenderConfig) -> Result<Self, SenderError> {
        let extra = config.extra_root_certificates.iter().cloned();
        let usual = match Verifier::new_with_extra_roots(extra, provider()) {
            Ok(verifier) => Some(Arc::new(verifier)),
            // A private set-up that talks plain HTTP needs no authorities; an HTTPS receiver is then refused, never trusted.
            Err(error) if config.allow_http => {
                tracing::warn!(%error, "no trusted certificate authorities were found: every https receiver will be refused");
                None
            }
            Err(error) => return Err(SenderError::Roots(error)),
        };
        let shared = client(usual.clone(), &EndpointTls::default()).map_err(|error| match error {
            PemError::Unusable(error) => SenderError::Tls(error),
            // There is none in it.
            other => SenderError::Pem(other.to_string()),
        })?;
        let own = Mutex::new(Kept { clients: HashMap::new(), uses: 0 });
        Ok(Self { usual, shared: Arc::new(shared), own })
    }

    /// For receivers without settings of their own, and for whatever is between here and any of them.
    pub(super) fn shared(&self) -> &Arc<Client> {
        &self.shared
    }

    pub(super) fn client(&self, own: Option<&Own>) -> Result<Arc<Client>, PemError> {
        let Some(own) = own else { return Ok(Arc::clone(&self.shared)) };
        // Whole at every step, so a panic elsewhere while it was locked has left nothing half done.
        let mut kept = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        kept.uses += 1;
        let now = kept.uses;
        if let Some((last, client)) = kept.clients.get_mut(own) {
            *last = now;
            return Ok(Arc::clone(client));
        }
        let made = Arc::new(client(self.usual.clone(), &own.tls)?);
        if kept.clients.len() >= MAX_KEPT {
            let oldest = kept.clients.iter().min_by_key(|(_, (last, _))| *last).map(|(own, _)| own.clone());
            oldest.and_then(|oldest| kept.clients.remove(&oldest));
        }
        kept.clients.insert(own.clone(), (now, Arc::clone(&made)));
        Ok(made)
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(tls::provider())
}

fn client(usual: Option<Arc<Verifier>>, own: &EndpointTls) -> Result<Client, PemError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(PemError::Unusable)?;
    let builder = match (usual, &own.ca) {
        (usual, Some(ca)) => builder.dangerous().with_custom_certificate_verifier(Arc::new(Besides::new(usual, ca)?)),
        (Some(usual), None) => builder.dangerous().with_custom_certificate_verifier(usual),
        (None, None) => builder.with_root_certificates(RootCertStore::empty()),
    };
    let mut config = match (&own.client_certificate, &own.client_key) {
        (Some(certificate), key) => {
            let chain = tls::certificates(certificate.as_bytes())?;
            let key = key.as_ref().map_or("", ClientKey::reveal);
            let identity = tls::identity(chain, key.as_bytes())?;
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity)))
        }
        (None, _) => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // A ticket is bytes of the receiver's choice, kept by name and sent in the clear to whatever address the name has next;
    // no other receiver may get it, and no other endpoint go on with it. Connections live for minutes, so a whole handshake each
    // costs little.
    config.resumption = Resumption::disabled();
    Ok(Client::new(config))
}

/// Believes an endpoint's own authorities, and whoever is believed without them.
#[derive(Debug)]
struct Besides {
    usual: Option<Arc<Verifier>>,
    own: Arc<WebPkiServerVerifier>,
}

impl Besides {
    fn new(usual: Option<Arc<Verifier>>, ca: &str) -> Result<Self, PemError> {
        let roots = Arc::new(tls::authorities(ca.as_bytes())?);
        let own = WebPkiServerVerifier::builder_with_provider(roots, provider()).build();
        // It fails without a root, and there is one.
        Ok(Self { usual, own: own.map_err(|_| PemError::NoCertificate)? })
    }
}

impl ServerCertVerifier for Besides {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let by_own = self.own.verify_server_cert(certificate, intermediates, name, ocsp, now);
        let (Err(of_own), Some(usual)) = (&by_own, &self.usual) else { return by_own };
        match usual.verify_server_cert(certificate, intermediates, name, ocsp, now) {
            // Whoever knows its authority knows better what is wrong with it.
            Err(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) => Err(of_own.clone()),
            judged => judged,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.own.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.own.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.own.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(number: usize) -> Own {
        Own { endpoint: format!("ep_{number}").parse().unwrap(), tls: Arc::default() }
    }

    #[test]
    fn of_the_clients_that_are_kept_the_one_goes_that_was_used_longest_ago() {
        let trust = Trust::new(&SenderConfig { allow_http: true, ..SenderConfig::default() }).unwrap();
        let made: Vec<Arc<Client>> = (0..MAX_KEPT).map(|number| trust.client(Some(&own(number))).unwrap()).collect();
        let is_kept = |number: usize| Arc::ptr_eq(&trust.client(Some(&own(number))).unwrap(), &made[number]);
        assert!(is_kept(0) && is_kept(2));
        trust.client(Some(&own(MAX_KEPT))).unwrap();
        assert_eq!(trust.own.lock().unwrap().clients.len(), MAX_KEPT);
        assert!(is_kept(0) && is_kept(2) && is_kept(3) && !is_kept(1));
        assert!(Arc::ptr_eq(&trust.client(None).unwrap(), trust.shared()));
    }

    #[test]
    fn what_was_changed_is_another_and_what_is_read_again_is_not() {
        let tls = |ca: &str| EndpointTls { ca: Some(ca.to_owned()), ..EndpointTls::default() }.kept().unwrap();
        let own = |id: &str, ca: &str| Own { endpoint: id.parse().unwrap(), tls: tls(ca) };
        assert_eq!(own("ep_a", "one"), own("ep_a", "one"));
        assert_ne!(own("ep_a", "one"), own("ep_a", "two"));
        assert_ne!(own("ep_a", "one"), own("ep_b", "one"));
    }
}
