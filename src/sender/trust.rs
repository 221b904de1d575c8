//! Who is trusted to vouch for a receiver in TLS: the system's authorities and those that were configured. Never connects.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore, client::Resumption, crypto::CryptoProvider, pki_types::CertificateDer};
use rustls_platform_verifier::Verifier;

use super::{SenderConfig, SenderError};

/// One for all receivers: trust is the same for all, and a configuration costs tens of kilobytes.
pub(super) fn client_config(config: &SenderConfig) -> Result<ClientConfig, SenderError> {
    let provider = Arc::new(crate::tls::provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(SenderError::Tls)?;
    let mut tls = match verifier(&config.extra_root_certificates, provider) {
        Ok(verifier) => builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth(),
        // A private set-up that talks plain HTTP needs no authorities; an HTTPS receiver is then refused, never trusted.
        Err(error) if config.allow_http => {
            tracing::warn!(%error, "no trusted certificate authorities were found: every https receiver will be refused");
            builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth()
        }
        Err(error) => return Err(SenderError::Roots(error)),
    };
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // A ticket is bytes of the receiver's choice, kept by name and sent in the clear to whatever address the name has next;
    // no other receiver may get it. Connections live for minutes, so a whole handshake each costs little.
    tls.resumption = Resumption::disabled();
    Ok(tls)
}

fn verifier(extra: &[CertificateDer<'static>], provider: Arc<CryptoProvider>) -> Result<Verifier, rustls::Error> {
    Verifier::new_with_extra_roots(extra.iter().cloned(), provider)
}
