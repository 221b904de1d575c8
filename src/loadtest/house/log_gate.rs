//! A pipe between what a worker says and the file that keeps it. It can be left unread, as when a log collector hangs.
//! Knows nothing of what is said.

use std::{fs::File, io, process::Stdio};

use tokio::{io::AsyncReadExt, net::unix::pipe::Receiver, sync::watch};

/// How much is read at once: as much as the kernel keeps in a pipe.
const PART_BYTES: usize = 64 * 1024;

/// All clones share one gate.
#[derive(Clone)]
pub struct LogGate(watch::Sender<bool>);

impl Default for LogGate {
    fn default() -> Self {
        Self(watch::Sender::new(true))
    }
}

impl LogGate {
    pub fn shut(&self) {
        self.0.send_replace(false);
    }

    /// What waits in the pipes is kept after all.
    pub fn open(&self) {
        self.0.send_replace(true);
    }

    /// The end that a process writes to. What moves the bytes into the file ends with the process.
    pub fn pipe(&self, mut log: File) -> io::Result<Stdio> {
        let (reader, writer) = io::pipe()?;
        let mut reader = Receiver::from_owned_fd(reader.into())?;
        let mut is_open = self.0.subscribe();
        tokio::spawn(async move {
            let mut part = vec![0; PART_BYTES];
            while is_open.wait_for(|is_open| *is_open).await.is_ok() {
                match reader.read(&mut part).await {
                    Ok(read @ 1..) => drop(io::Write::write_all(&mut log, &part[..read])),
                    _ => return,
                }
            }
        });
        Ok(writer.into())
    }
}
