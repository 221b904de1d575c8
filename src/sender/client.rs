//! Builds the one `reqwest::Client` behind a sender.
//!
//! One client serves every receiver. Its pool is keyed by scheme, host and port, HTTP/2 is agreed per connection (ALPN), TLS
//! trust is the same for all, and deadlines are the attempt's own timers and not the client's. A client per endpoint would
//! cost a TLS configuration each and keep endpoints on one host from sharing connections.
//!
//! What bounds a response's head: HTTP/1 takes at most 100 headers (hyper's default; setting the number would put them
//! on the heap) in a buffer of about 400 KiB, HTTP/2 takes [`MAX_H2_HEAD_BYTES`], and the attempt's deadline ends the rest.

use std::{sync::Arc, time::Duration};

use rustls::{ClientConfig, RootCertStore, crypto::CryptoProvider, pki_types::CertificateDer};
use rustls_platform_verifier::Verifier;

use super::{SenderConfig, SenderError, resolver::GuardedResolver, stages::NoteStages};

/// Idle connections that are kept per scheme, host and port. Many endpoints share one platform's host, so it is as large
/// as the attempts in flight to one host may be; the timeout below is what keeps the sum small.
const MAX_IDLE_PER_HOST: usize = 1024;

/// Below the 5 s after which Node's HTTP server, the shortest of the common ones, closes an idle connection: a request
/// that is written while the other side closes is a failed attempt.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// A whole HTTP/2 response head: what hyper and common servers take.
const MAX_H2_HEAD_BYTES: u32 = 16 * 1024;

/// What a receiver may send on one HTTP/2 stream before we read it: we never read more than 16 KiB anyway.
const H2_STREAM_WINDOW: u32 = 64 * 1024;

/// The same for a whole connection: sixteen streams' worth, so that one that is not read does not stop the others.
const H2_CONNECTION_WINDOW: u32 = 1024 * 1024;

/// An HTTP/2 connection that carries requests and does not answer a ping within this time is dead: all its attempts would
/// otherwise wait for their deadlines, and so would those after them.
const H2_PING: Duration = Duration::from_secs(5);

pub(super) fn build(config: &SenderConfig, resolver: GuardedResolver) -> Result<reqwest::Client, SenderError> {
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls(config)?)
        .dns_resolver(resolver)
        .connector_layer(NoteStages { connect_timeout: config.connect_timeout })
        .tcp_nodelay(true)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        // The library's own retries (after an HTTP/2 refusal) are off: a second request is a second attempt, and those are
        // counted. Zero also spares it a copy of every request.
        .retry(reqwest::retry::never().max_retries_per_request(0))
        .pool_max_idle_per_host(MAX_IDLE_PER_HOST)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .http2_max_header_list_size(MAX_H2_HEAD_BYTES)
        .http2_initial_stream_window_size(H2_STREAM_WINDOW)
        .http2_initial_connection_window_size(H2_CONNECTION_WINDOW)
        .http2_keep_alive_interval(H2_PING)
        .http2_keep_alive_timeout(H2_PING)
        .build()
        .map_err(SenderError::Client)
}

fn tls(config: &SenderConfig) -> Result<ClientConfig, SenderError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
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
    Ok(tls)
}

fn verifier(extra: &[CertificateDer<'static>], provider: Arc<CryptoProvider>) -> Result<Verifier, rustls::Error> {
    Verifier::new_with_extra_roots(extra.iter().cloned(), provider)
}
