//! The receivers' certificates: an authority made for this run, and one leaf that is for 127.0.0.1 alone.

use std::{net::Ipv4Addr, sync::Arc};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};

use super::ReceiverError;

pub struct Certificates {
    pub authority_pem: String,
    pub server: Arc<ServerConfig>,
    /// The same, for receivers that speak HTTP/2.
    pub http2: Arc<ServerConfig>,
}

impl Certificates {
    pub fn make() -> Result<Self, ReceiverError> {
        let odd = |error: rcgen::Error| ReceiverError::Certificate(error.to_string());
        let mut authority = CertificateParams::default();
        authority.distinguished_name.push(DnType::CommonName, "Herald load test");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().map_err(odd)?).map_err(odd)?;

        let mut leaf = CertificateParams::default();
        leaf.distinguished_name.push(DnType::CommonName, "Herald load test receivers");
        leaf.subject_alt_names = vec![SanType::IpAddress(Ipv4Addr::LOCALHOST.into())];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().map_err(odd)?;
        let certificate = leaf.signed_by(&key, &authority).map_err(odd)?;

        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut server = ServerConfig::builder_with_provider(Arc::new(crate::tls::provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key))
            .map_err(|error| ReceiverError::Certificate(error.to_string()))?;
        let mut http2 = server.clone();
        http2.alpn_protocols = vec![b"h2".to_vec()];
        // All others speak HTTP/1.1 only, whatever else the client could speak.
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { authority_pem: authority.pem(), server: Arc::new(server), http2: Arc::new(http2) })
    }
}
