//! A proxy between the workers and Redis that can become a black hole: what it holds is neither refused nor delivered,
//! as when a network loses everything. Moves bytes; knows nothing of what they mean.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinSet,
    time::sleep,
};

/// Connections at once. A worker has a handful; those that a black hole has collected end when their clients give up.
const MAX_CONNECTIONS: usize = 1_024;

/// Bytes that one direction of a connection holds.
const BUFFER_BYTES: usize = 64 * 1024;

/// After an accept that failed: long enough not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Open,
    Hole,
}

/// Ends with its owner.
pub struct Proxy {
    address: SocketAddr,
    way: watch::Sender<Way>,
    _connections: JoinSet<()>,
}

impl Proxy {
    pub async fn start(upstream: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("no port is free for the proxy")?;
        let (way, seen) = watch::channel(Way::Open);
        let address = listener.local_addr()?;
        let mut connections = JoinSet::new();
        connections.spawn(accept(listener, upstream, seen));
        Ok(Self { address, way, _connections: connections })
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// From now on nothing passes in either direction; connections stay open, and new ones are accepted.
    pub fn close(&self) {
        self.way.send_replace(Way::Hole);
    }

    /// What was held goes on, however late.
    pub fn open(&self) {
        self.way.send_replace(Way::Open);
    }
}

async fn accept(listener: TcpListener, upstream: SocketAddr, way: watch::Receiver<Way>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((client, _)) => drop(connections.spawn(connection(client, upstream, way.clone()))),
                Err(_) => sleep(ACCEPT_PAUSE).await,
            },
        }
    }
}

/// One client and the server behind it. When either side ends, so does the other: that is all there is to say about an
/// error.
async fn connection(client: TcpStream, upstream: SocketAddr, mut way: watch::Receiver<Way>) {
    if opened(&mut way).await.is_err() {
        return;
    }
    let Ok(server) = TcpStream::connect(upstream).await else { return };
    // Small commands must not wait for each other's acknowledgement.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        _ = pass(from_client, to_server, way.clone()) => {}
        _ = pass(from_server, to_client, way) => {}
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut way: watch::Receiver<Way>) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        opened(&mut way).await?;
        let bytes = from.read(&mut buffer).await?;
        // This also holds what was on its way when the proxy was closed, and the end of a connection.
        opened(&mut way).await?;
        if bytes == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..bytes]).await?;
    }
}

async fn opened(way: &mut watch::Receiver<Way>) -> io::Result<()> {
    way.wait_for(|way| *way == Way::Open).await.map(|_| ()).map_err(|_| io::ErrorKind::BrokenPipe.into())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    tokio::io::copy(&mut from, &mut to).await
                });
            }
        });
        address
    }

    async fn say(stream: &mut TcpStream, word: &[u8; 4]) -> [u8; 4] {
        stream.write_all(word).await.unwrap();
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn a_hole_holds_what_it_gets_and_an_open_way_delivers_it() {
        let proxy = Proxy::start(echo().await).await.unwrap();
        let mut old = TcpStream::connect(proxy.address).await.unwrap();
        assert_eq!(&say(&mut old, b"ping").await, b"ping");
        proxy.close();
        let mut new = TcpStream::connect(proxy.address).await.unwrap();
        for stream in [&mut old, &mut new] {
            stream.write_all(b"held").await.unwrap();
        }
        let mut answer = [0; 4];
        assert!(timeout(Duration::from_millis(200), old.read_exact(&mut answer)).await.is_err());
        assert!(timeout(Duration::from_millis(50), new.read_exact(&mut answer)).await.is_err());
        proxy.open();
        for stream in [&mut old, &mut new] {
            stream.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"held");
        }
    }

    #[tokio::test]
    async fn it_ends_with_its_owner_and_with_what_is_behind_it() {
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let proxy = Proxy::start(gone).await.unwrap();
        let mut client = TcpStream::connect(proxy.address).await.unwrap();
        assert_eq!(client.read(&mut [0; 4]).await.unwrap_or(0), 0);
        let address = proxy.address;
        drop(proxy);
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    }
}
