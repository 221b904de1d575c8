//! Owns which cryptography TLS uses. Never opens a connection.

use std::sync::Once;

use rustls::crypto::CryptoProvider;

/// What does TLS' cryptography, for Redis and for receivers: AWS-LC, which also verifies P-521 and ecdsa-with-SHA512.
pub fn provider() -> CryptoProvider {
    rustls::crypto::aws_lc_rs::default_provider()
}

/// Makes it the process's provider for rustls. The Redis client and the HTTP client both use the process's default and
/// panic without one, so whoever makes a client of either calls this first. Calling it again does nothing.
pub fn install_crypto_provider() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // An error means that the program around this library has chosen a provider already: that one serves as well.
        let _ = provider().install_default();
    });
}
