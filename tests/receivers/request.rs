//! Requests that nobody but Herald could have signed, and what others make of them.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use herald::{
    clock::wall_ms,
    facts::{
        endpoint::Scheme,
        id::EntryId,
        sequence::Sequence,
        signing::{SecretText, dojo_signature, standard_signature},
    },
};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{support::soon, world::Event};

#[derive(Clone)]
pub struct Request {
    headers: BTreeMap<&'static str, Vec<u8>>,
    body: Vec<u8>,
}

impl Request {
    fn unsigned(event: &Event, timestamp_s: u64) -> Self {
        /// Each is newer than the one before.
        static NEWEST: AtomicU64 = AtomicU64::new(0);
        let sequence = Sequence(EntryId { ms: wall_ms(), seq: NEWEST.fetch_add(1, Relaxed) });
        let request = Self { headers: BTreeMap::new(), body: event.body.clone().into_bytes() };
        request
            .with("content-type", "application/json")
            .with("webhook-id", &event.id)
            .with("webhook-timestamp", &timestamp_s.to_string())
            .with("herald-sequence", &sequence.to_string())
    }

    /// As Herald would send it at that time.
    pub fn signed(scheme: Scheme, secrets: &[&SecretText], event: &Event, timestamp_s: u64) -> Self {
        let request = Self::unsigned(event, timestamp_s);
        match scheme {
            Scheme::Standard => {
                let value = standard_signature(secrets.iter().copied(), &event.id, timestamp_s, &request.body);
                request.with("webhook-signature", &value)
            }
            Scheme::Dojo => {
                let newest = secrets.last().expect("there is a secret");
                let value = dojo_signature(newest, &request.body);
                request.with("dojo-signature", &value)
            }
            Scheme::Ed25519 => panic!("these receivers have no key pairs; tests/edges has one that does"),
        }
    }

    pub fn signed_with_an_empty_key(event: &Event) -> Self {
        let timestamp_s = wall_ms() / 1000;
        let request = Self::unsigned(event, timestamp_s);
        let mut mac = Hmac::<Sha256>::new_from_slice(b"").unwrap();
        mac.update(format!("{}.{timestamp_s}.{}", event.id, event.body).as_bytes());
        request.with("webhook-signature", &format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes())))
    }

    pub fn with(self, name: &'static str, value: &str) -> Self {
        self.with_bytes(name, value.as_bytes())
    }

    pub fn with_bytes(mut self, name: &'static str, value: &[u8]) -> Self {
        self.headers.insert(name, value.to_vec());
        self
    }

    pub fn without(mut self, name: &'static str) -> Self {
        self.headers.remove(name).expect("it was there");
        self
    }

    /// The same headers over another body.
    pub fn over(self, body: String) -> Self {
        Self { body: body.into_bytes(), ..self }
    }

    pub fn header(&self, name: &str) -> &str {
        std::str::from_utf8(&self.headers[name]).unwrap()
    }

    fn head(&self) -> Vec<u8> {
        let mut head = format!(
            "POST /hook HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n",
            self.body.len()
        )
        .into_bytes();
        for (name, value) in &self.headers {
            head.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
        }
        head.extend(b"\r\n");
        head
    }

    /// The status of the answer. None if the connection broke: it may, where a body is not read to its end.
    pub async fn sent_to(&self, address: SocketAddr) -> Option<u16> {
        soon("an answer", async {
            let mut stream = TcpStream::connect(address).await.ok()?;
            stream.write_all(&self.head()).await.ok()?;
            stream.write_all(&self.body).await.ok()?;
            let mut line = [0; 12];
            stream.read_exact(&mut line).await.ok()?;
            std::str::from_utf8(&line[9..]).ok()?.parse().ok()
        })
        .await
    }

    /// Sends half of it and goes away.
    pub async fn broken_off(&self, address: SocketAddr) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&self.head()).await.unwrap();
        stream.write_all(&self.body[..self.body.len() / 2]).await.unwrap();
        stream.shutdown().await.unwrap();
    }
}
