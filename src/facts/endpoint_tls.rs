//! What an endpoint has of its own in TLS: authorities that are trusted for it besides those that are trusted for all, and the
//! certificate that its receiver asks for, with its key. All of it PEM, as it was given. Never judges it, and never shows the key.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

/// Longest text of each: a chain of certificates is a third of it, and the three of them fit into one endpoint.
pub const MAX_PEM_BYTES: usize = 16 * 1024;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointTls {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// With those between it and its authority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_key: Option<ClientKey>,
}

impl EndpointTls {
    /// As an endpoint has it: nothing where there is nothing.
    pub fn kept(self) -> Option<Arc<Self>> {
        (self != Self::default()).then(|| Arc::new(self))
    }
}

/// The private key of a client certificate. Wiped when it is dropped.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClientKey(String);

impl ClientKey {
    pub fn new(pem: String) -> Self {
        Self(pem)
    }

    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl Drop for ClientKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for ClientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("key(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_kept_of_nothing_and_no_debug_shows_a_key() {
        assert_eq!(EndpointTls::default().kept(), None);
        let key = EndpointTls { client_key: Some(ClientKey::new("geheim".to_owned())), ..EndpointTls::default() };
        let kept = key.kept().unwrap();
        assert!(format!("{kept:?}").contains("hidden") && !format!("{kept:#?}").contains("geheim"), "{kept:?}");
    }
}
