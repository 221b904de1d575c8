//! A way to a receiver that is some distance off: every byte, and the end of a connection, takes half a round trip. So what
//! a client sends while an end is on its way meets a receiver that is gone, as over any real network. Moves bytes; knows
//! nothing of what they mean.

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

/// Bytes that are taken from a socket at once, and how many such parts may be on their way.
const PART_BYTES: usize = 16 * 1024;
const MOST_PARTS: usize = 64;

/// After the receiver has closed, what the client still says is waited for so long; then it has noticed.
const LINGER: Duration = Duration::from_secs(10);

/// The receiver's end of a connection with this round trip. What moves the bytes ends with either side.
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
        // What meets a receiver that is gone ends with a reset, as its socket is dropped with bytes that nobody has read:
        // but not before the receiver's last words have arrived.
        if !is_over {
            let _ = timeout(LINGER, there).await;
        }
    });
    near
}

/// Until either side has ended; then the other one is told.
async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, delay: Duration) {
    let (leaves, mut arrives) = mpsc::channel::<(Instant, Bytes)>(MOST_PARTS);
    let take = async move {
        loop {
            let mut part = BytesMut::with_capacity(PART_BYTES);
            let is_end = from.read_buf(&mut part).await? == 0;
            // An empty part is the end, which takes as long as all else.
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
