//! `herald healthcheck`: asks the Herald of the same configuration how it is, as a probe does. For containers, whose image has
//! nothing else to ask with. Needs no Redis.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Args;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::{
    surface::{Context, note},
    tls::believing_anybody,
};

/// Health is answered from memory, by a thread of its own.
const PATIENCE: Duration = Duration::from_secs(2);

/// An answer has a head and a line of JSON.
const MAX_ANSWER_BYTES: u64 = 16 << 10;

#[derive(Debug, Args)]
pub struct HealthcheckArgs {
    /// Whether it is ready too: /readyz instead of /healthz
    #[arg(long)]
    ready: bool,
}

pub async fn run(context: &Context, args: HealthcheckArgs) -> anyhow::Result<()> {
    let config = &context.config;
    let address = reachable(config.metrics_listen.unwrap_or(config.listen));
    let path = if args.ready { "/readyz" } else { "/healthz" };
    // `metrics_listen` is never encrypted.
    let is_encrypted = config.metrics_listen.is_none() && config.api.identity.is_some();
    let scheme = if is_encrypted { "https" } else { "http" };
    let asked = timeout(PATIENCE, async {
        let stream = TcpStream::connect(address).await?;
        if !is_encrypted {
            return ask(stream, address, path).await;
        }
        let connector = TlsConnector::from(Arc::new(believing_anybody().map_err(io::Error::other)?));
        ask(connector.connect(address.ip().into(), stream).await?, address, path).await
    });
    let answer = asked.await.with_context(|| format!("{scheme}://{address}{path} did not answer within 2s"))?;
    let answer = answer.with_context(|| format!("cannot ask {scheme}://{address}{path}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    if !head.starts_with("HTTP/1.1 200 ") {
        bail!("{scheme}://{address}{path} answers: {} {body}", head.lines().next().unwrap_or_default());
    }
    note(body);
    Ok(())
}

async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, address: SocketAddr, path: &str) -> io::Result<String> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.take(MAX_ANSWER_BYTES).read_to_string(&mut answer).await?;
    Ok(answer)
}

/// Who listens everywhere listens on the loopback.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens_everywhere_is_asked_on_the_loopback() {
        for (listen, asked) in [
            ("0.0.0.0:8080", "127.0.0.1:8080"),
            ("[::]:9464", "[::1]:9464"),
            ("10.0.0.7:8080", "10.0.0.7:8080"),
            ("127.0.0.1:1", "127.0.0.1:1"),
        ] {
            assert_eq!(reachable(listen.parse().unwrap()), asked.parse().unwrap());
        }
    }
}
