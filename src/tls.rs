//! Owns which cryptography TLS uses, and how certificates and keys are read, from files or from text. Never opens a connection.

use std::{
    fmt, fs, io,
    io::Read,
    path::{Path, PathBuf},
    sync::{Arc, Once},
};

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    sign::CertifiedKey,
};

use crate::facts::certificate::not_after_s;

/// No chain of certificates is nearly as long; what is, was named by mistake.
const MOST_BYTES: u64 = 256 * 1024;

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

/// A file that a setting names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedFile {
    pub setting: &'static str,
    pub path: PathBuf,
}

impl fmt::Display for NamedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.path.display(), self.setting)
    }
}

/// Why some PEM is of no use. Says nothing of what is in it: a key that lost its line ends looks like the beginning of an item.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PemError {
    #[error("is not readable as PEM: each item is from a line BEGIN to a line END, base64 between them")]
    Broken,
    #[error("holds no certificate; it must be PEM, with BEGIN CERTIFICATE in it")]
    NoCertificate,
    #[error("holds no private key; it must be PEM, with BEGIN PRIVATE KEY in it, not encrypted")]
    NoKey,
    #[error("is not that of the first certificate; give both of one pair")]
    OfAnother,
    #[error("cannot be used: {0}")]
    Unusable(rustls::Error),
}

/// Why a file is of no use. Says which, by which setting, and never what is in it.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("cannot read {file}: {cause}")]
    Unreadable { file: NamedFile, cause: io::Error },
    #[error("{file} {cause}")]
    Pem { file: NamedFile, cause: PemError },
    #[error("the key in {key} is not that of the first certificate in {certificate}; give both of one pair")]
    OfAnother { certificate: NamedFile, key: NamedFile },
    #[error("{certificate} and {key} cannot be used: {cause}")]
    Unusable { certificate: NamedFile, key: NamedFile, cause: Box<rustls::Error> },
}

/// Where a process finds what it shows of itself: its certificate, with those between it and its authority, and the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityFiles {
    pub certificate: NamedFile,
    pub key: NamedFile,
}

impl IdentityFiles {
    /// Both, if they fit each other.
    pub fn read(&self) -> Result<Arc<CertifiedKey>, FileError> {
        let of = |file: &NamedFile, cause| FileError::Pem { file: file.clone(), cause };
        let chain = certificates(&read(&self.certificate)?).map_err(|cause| of(&self.certificate, cause))?;
        identity(chain, &read(&self.key)?).map_err(|cause| {
            let (certificate, key) = (self.certificate.clone(), self.key.clone());
            match cause {
                PemError::OfAnother => FileError::OfAnother { certificate, key },
                PemError::Unusable(cause) => FileError::Unusable { certificate, key, cause: Box::new(cause) },
                cause => of(&key, cause),
            }
        })
    }
}

pub fn read_authorities(file: &NamedFile) -> Result<RootCertStore, FileError> {
    authorities(&read(file)?).map_err(|cause| FileError::Pem { file: file.clone(), cause })
}

/// All that some PEM holds, one at least.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err(PemError::NoCertificate),
        Ok(certificates) => Ok(certificates),
        Err(_) => Err(PemError::Broken),
    }
}

/// When the first certificate of some PEM ends, in seconds since 1970. `None` without any.
pub fn first_end_s(pem: &[u8]) -> Option<i64> {
    certificates(pem).ok()?.iter().filter_map(|certificate| not_after_s(certificate)).min()
}

/// What shows itself by this chain, if the key fits its first certificate.
pub fn identity(chain: Vec<CertificateDer<'static>>, key: &[u8]) -> Result<Arc<CertifiedKey>, PemError> {
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| match error {
        rustls::pki_types::pem::Error::NoItemsFound => PemError::NoKey,
        _ => PemError::Broken,
    })?;
    CertifiedKey::from_der(chain, key, &provider()).map(Arc::new).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => PemError::OfAnother,
        cause => PemError::Unusable(cause),
    })
}

/// The certificates of some PEM as authorities.
pub fn authorities(pem: &[u8]) -> Result<RootCertStore, PemError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem)? {
        roots.add(certificate).map_err(PemError::Unusable)?;
    }
    Ok(roots)
}

fn read(file: &NamedFile) -> Result<Vec<u8>, FileError> {
    let bytes = |path: &Path| {
        // A pipe would keep its reader waiting for ever.
        if !fs::metadata(path)?.is_file() {
            return Err(io::Error::other("it is not a file"));
        }
        let mut bytes = Vec::new();
        fs::File::open(path)?.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
        match bytes.len() as u64 > MOST_BYTES {
            true => Err(io::Error::other("it is longer than 256 KiB")),
            false => Ok(bytes),
        }
    };
    bytes(&file.path).map_err(|cause| FileError::Unreadable { file: file.clone(), cause })
}

/// For whoever asks a service on this machine how it is: its certificate is for the name that others call it by, so any is believed,
/// if it is the certificate of whoever answers. Nothing that is a secret may be sent to it.
pub fn believing_anybody() -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(provider());
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let anybody = Arc::new(Anybody(provider));
    Ok(builder.dangerous().with_custom_certificate_verifier(anybody).with_no_client_auth())
}

#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
