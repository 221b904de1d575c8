//! A connection to a receiver that takes its time: what goes in comes out later and in order, including ends and
//! resets. Moves bytes; knows nothing of what they mean. Unlike a slower network device it needs no rights.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Notify, mpsc},
    task::JoinHandle,
    time::{Instant, sleep_until},
};

/// Reads that may be on their way in one direction of a connection. A test's requests are few and small.
const ON_THE_WAY: usize = 1024;

const READ_BYTES: usize = 16 * 1024;

enum Part {
    Bytes(Vec<u8>),
    End,
    Reset,
}

/// Ends when this value is dropped.
pub struct Way {
    pub address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl Drop for Way {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Way {
    pub async fn start(to: SocketAddr, delay: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepting = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(pass_both(near, to, delay));
            }
        });
        Self { address, accepting }
    }
}

async fn pass_both(near: TcpStream, to: SocketAddr, delay: Duration) {
    // TCP's own handshake crosses twice before the first byte may set out.
    tokio::time::sleep(2 * delay).await;
    let Ok(far) = TcpStream::connect(to).await else { return near.set_zero_linger().unwrap_or_default() };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let (from_near, to_near) = near.into_split();
    let (from_far, to_far) = far.into_split();
    let (outward, going_out) = mpsc::channel(ON_THE_WAY);
    let (homeward, coming_home) = mpsc::channel(ON_THE_WAY);
    let (far_is_gone, near_is_gone) = (Notify::new(), Notify::new());
    // A reset ends both directions at once.
    let _ = tokio::try_join!(
        take(from_near, outward, delay, &near_is_gone),
        take(from_far, homeward, delay, &far_is_gone),
        give(to_far, going_out, &far_is_gone),
        give(to_near, coming_home, &near_is_gone),
    );
}

struct WasReset;

type OnTheWay = (Instant, Part);

/// Who takes no more answers with a reset, and that sets out behind all that it has said before, read by now or not.
async fn take(
    mut from: OwnedReadHalf,
    send: mpsc::Sender<OnTheWay>,
    delay: Duration,
    is_gone: &Notify,
) -> Result<(), WasReset> {
    loop {
        let mut bytes = vec![0; READ_BYTES];
        let part = match from.read(&mut bytes).await {
            Ok(0) => Part::End,
            Ok(read) => Part::Bytes(bytes[..read].to_vec()),
            Err(_) => Part::Reset,
        };
        let (is_end, is_reset) = (matches!(part, Part::End), matches!(part, Part::Reset));
        if send.send((Instant::now() + delay, part)).await.is_err() || is_reset {
            return Ok(());
        }
        if is_end {
            is_gone.notified().await;
            let _ = send.send((Instant::now() + delay, Part::Reset)).await;
            return Ok(());
        }
    }
}

async fn give(
    mut to: OwnedWriteHalf,
    mut on_the_way: mpsc::Receiver<OnTheWay>,
    is_gone: &Notify,
) -> Result<(), WasReset> {
    while let Some((at, part)) = on_the_way.recv().await {
        sleep_until(at).await;
        match part {
            Part::Bytes(bytes) => {
                if to.write_all(&bytes).await.is_err() {
                    is_gone.notify_one();
                    return Ok(());
                }
            }
            Part::End => drop(to.shutdown().await),
            Part::Reset => {
                let _ = to.as_ref().set_zero_linger();
                return Err(WasReset);
            }
        }
    }
    Ok(())
}
