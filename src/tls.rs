//! Owns which cryptography TLS uses, and how certificates and keys are read from files. Never opens a connection.

use std::{
    fmt, fs, io,
    io::Read,
    path::{Path, PathBuf},
    sync::{Arc, Once},
};

use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    sign::CertifiedKey,
};

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

/// Why a file is of no use. Says which, by which setting, and never what is in it.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("cannot read {file}: {cause}")]
    Unreadable { file: NamedFile, cause: io::Error },
    #[error("{file} is not readable as PEM: {cause}")]
    Pem { file: NamedFile, cause: String },
    #[error("{file} holds no certificate; it must be PEM, with BEGIN CERTIFICATE in it")]
    NoCertificate { file: NamedFile },
    #[error("{file} holds no private key; it must be PEM, with BEGIN PRIVATE KEY in it")]
    NoKey { file: NamedFile },
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
        let chain = read_certificates(&self.certificate)?;
        let key = match PrivateKeyDer::from_pem_slice(&read(&self.key)?) {
            Ok(key) => key,
            Err(rustls::pki_types::pem::Error::NoItemsFound) => {
                return Err(FileError::NoKey { file: self.key.clone() });
            }
            Err(error) => return Err(FileError::Pem { file: self.key.clone(), cause: error.to_string() }),
        };
        let (certificate, key_file) = (self.certificate.clone(), self.key.clone());
        match CertifiedKey::from_der(chain, key, &provider()) {
            Ok(identity) => Ok(Arc::new(identity)),
            Err(rustls::Error::InconsistentKeys(_)) => Err(FileError::OfAnother { certificate, key: key_file }),
            Err(cause) => Err(FileError::Unusable { certificate, key: key_file, cause: Box::new(cause) }),
        }
    }
}

pub fn read_certificates(file: &NamedFile) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(file)?).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err(FileError::NoCertificate { file: file.clone() }),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(FileError::Pem { file: file.clone(), cause: error.to_string() }),
    }
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

/// When a certificate ends, in seconds since 1970. `None` if it is none.
///
/// A certificate is a sequence of a sequence: its version, if it is not the first, serial number, algorithm, issuer, and then two
/// times (RFC 5280, section 4.1).
pub fn not_after_s(certificate: &[u8]) -> Option<i64> {
    const SEQUENCE: u8 = 0x30;
    const VERSION: u8 = 0xa0;
    let of = |tag: u8, bytes| item(bytes).filter(|(found, ..)| *found == tag);
    let (_, whole, _) = of(SEQUENCE, certificate)?;
    let (_, signed, _) = of(SEQUENCE, whole)?;
    let after_version = of(VERSION, signed).map_or(signed, |(.., rest)| rest);
    let (.., rest) = item(after_version)?;
    let (.., rest) = item(rest)?;
    let (.., rest) = item(rest)?;
    let (_, times, _) = of(SEQUENCE, rest)?;
    let (.., last) = item(times)?;
    let (tag, text, _) = item(last)?;
    time_s(tag, std::str::from_utf8(text).ok()?)
}

/// The first item of some DER: its tag, what is in it, and what comes behind it.
fn item(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (length, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (inside, rest) = rest.split_at_checked(length)?;
    Some((tag, inside, rest))
}

/// `YYMMDDHHMMSSZ`, for the years 1950 to 2049, or `YYYYMMDDHHMMSSZ`.
fn time_s(tag: u8, text: &str) -> Option<i64> {
    const UTC_TIME: u8 = 0x17;
    const GENERALIZED_TIME: u8 = 0x18;
    let year_digits = match tag {
        UTC_TIME => 2,
        GENERALIZED_TIME => 4,
        _ => return None,
    };
    let digits = text.strip_suffix('Z').filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
    let (year, rest) = digits.split_at_checked(year_digits)?;
    let year: i16 = year.parse().ok()?;
    let year = match (year_digits, year) {
        (2, ..50) => year + 2000,
        (2, _) => year + 1900,
        _ => year,
    };
    if rest.len() != 10 {
        return None;
    }
    let part = |at: usize| rest[at..at + 2].parse::<i8>().ok();
    let at = jiff::civil::DateTime::new(year, part(0)?, part(2)?, part(4)?, part(6)?, part(8)?, 0).ok()?;
    Some(at.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_second())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `openssl x509 -enddate` says the same of these, which openssl made.
    #[test]
    fn the_end_of_a_certificate_is_found() {
        let of_2049 = "3082017d30820123a003020102021411";
        assert_eq!(not_after_s(&hex::decode(of_2049).unwrap()), None);
        assert_eq!(time_s(0x17, "491231235959Z"), Some(2_524_607_999));
        assert_eq!(time_s(0x17, "500101000000Z"), Some(-631_152_000));
        assert_eq!(time_s(0x18, "20500101000000Z"), Some(2_524_608_000));
        for (tag, text) in [(0x17, "491331235959Z"), (0x17, "4912312359Z"), (0x18, "20500101000000"), (0x02, "1")] {
            assert_eq!(time_s(tag, text), None, "{text}");
        }
    }

    #[test]
    fn what_is_cut_anywhere_is_no_certificate_and_breaks_nothing() {
        for length in 0..64 {
            assert_eq!(item(&vec![0x84; length]).map(|(tag, ..)| tag), None);
            assert_eq!(not_after_s(&vec![0x30; length]), None);
        }
    }
}
