//! Takes every callback at once, and counts.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use anyhow::Result;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

pub struct Receiver {
    port: u16,
    count: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

pub async fn start() -> Result<Receiver> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let (port, count) = (listener.local_addr()?.port(), Arc::new(AtomicU64::new(0)));
    let counter = Arc::clone(&count);
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream, Arc::clone(&counter)));
        }
    });
    Ok(Receiver { port, count, task })
}

impl Receiver {
    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One connection, until its other side closes it.
async fn answer(stream: TcpStream, count: Arc<AtomicU64>) {
    let mut stream = BufReader::new(stream);
    let (mut line, mut body) = (String::new(), Vec::new());
    loop {
        let mut length = 0;
        loop {
            line.clear();
            match stream.read_line(&mut line).await {
                Ok(1..) => {}
                _ => return,
            }
            if line.trim().is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().unwrap_or(0);
            }
        }
        body.resize(length, 0);
        if stream.read_exact(&mut body).await.is_err() || stream.write_all(ANSWER).await.is_err() {
            return;
        }
        count.fetch_add(1, Ordering::Relaxed);
    }
}
