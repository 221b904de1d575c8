//! A connection to a receiver that is some distance away: every byte, and the end of a connection, takes half a round
//! trip. So what a client sends while an end is on its way meets a receiver that is gone, as on any real network. Moves
//! bytes; knows nothing of what they mean.

use std::{
    io,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream},
    net::TcpStream,
    sync::mpsc,
    time::{sleep_until, timeout},
};

use crate::clock;

/// Bytes that the near end holds: a few requests.
const BUFFER_BYTES: usize = 64 * 1024;

/// How many bytes are taken from a socket at once, and how many such parts may be on their way.
const PART_BYTES: usize = 16 * 1024;
const MOST_PARTS: usize = 64;

/// After the receiver has closed, what the client still sends is accepted for this long; then it has noticed.
const LINGER: Duration = Duration::from_secs(10);

/// The receiver's end of a connection with this round trip. What moves the bytes ends when either side does.
pub fn stretched(client: TcpStream, rtt: Duration) -> DuplexStream {
    let (near, far) = tokio::io::duplex(BUFFER_BYTES);
    tokio::spawn(async move {
        let (from_client, to_client) = client.into_split();
        let (from_receiver, to_receiver) = tokio::io::split(far);
        let there = pass(from_client, to_receiver, rtt / 2);
        let back = pass(from_receiver, to_client, rtt / 2);
        tokio::pin!(there, back);
        let mut is_over = false;
        loop {
            tokio::select! {
                () = &mut there, if !is_over => is_over = true,
                () = &mut back => break,
            }
        }
        // What meets a receiver that is gone ends with a reset, because its socket is dropped with unread bytes; but
        // not before the receiver's last words have arrived.
        if !is_over {
            let _ = timeout(LINGER, there).await;
        }
    });
    near
}

/// Runs until either side has ended; then the other one is told.
async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, delay: Duration) {
    let (leaves, mut arrives) = mpsc::channel::<(Instant, Bytes)>(MOST_PARTS);
    let take = async move {
        loop {
            let mut part = BytesMut::with_capacity(PART_BYTES);
            let is_end = from.read_buf(&mut part).await? == 0;
            // An empty part is the end, which takes as long as everything else.
            if leaves.send((clock::now() + delay, part.freeze())).await.is_err() || is_end {
                return io::Result::Ok(());
            }
        }
    };
    let give = async {
        while let Some((at, part)) = arrives.recv().await {
            sleep_until(at.into()).await;
            to.write_all(&part).await?;
            to.flush().await?;
        }
        io::Result::Ok(())
    };
    // However it ended, there is nothing more to say.
    let _ = tokio::try_join!(take, give);
    let _ = to.shutdown().await;
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn what_is_said_arrives_whole_and_who_speaks_to_one_that_is_gone_is_reset() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut near = stretched(listener.accept().await.unwrap().0, Duration::from_millis(20));
        let long = vec![b'x'; 3 * PART_BYTES];
        let mut heard = vec![0; long.len()];
        client.write_all(&long).await.unwrap();
        near.read_exact(&mut heard).await.unwrap();
        assert_eq!(heard, long);
        let asked = clock::now();
        near.write_all(b"bye").await.unwrap();
        drop(near);
        let mut last = Vec::new();
        client.read_to_end(&mut last).await.unwrap();
        assert_eq!(last, b"bye");
        assert!(clock::now() - asked >= Duration::from_millis(10), "half a round trip");
        // The first of these meets nobody, and a later one learns of it.
        while client.write_all(b"?").await.is_ok() {
            tokio::task::yield_now().await;
        }
    }
}
