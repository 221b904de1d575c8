//! Wakes a partition's owner: waits until the stream or the inbox has changed, and carries nothing but that. A blocking
//! read would carry the entry, which a producer may make as large as it likes.
//!
//! Redis' client-side caching (`CLIENT TRACKING`, in every Redis that Herald runs on, without a setting) remembers which
//! keys a connection has looked at and pushes their names, once, when they change. So each wait first looks, by
//! `wake.lua`, and then listens.

use std::{
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use redis::{PushInfo, PushKind, Value};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

use super::{
    connection::{Connection, Redis, Script, Subject},
    error::StoreError,
    keys::PartitionKeys,
    requests::within,
};
use crate::facts::id::EntryId;

static WAKE: LazyLock<Script> = LazyLock::new(|| Script::new("wake", include_str!("scripts/wake.lua")));

/// How long a look's answer may take.
const GRACE: Duration = Duration::from_secs(5);

/// How often the stream is looked at if Redis refuses to track: a hundredth of a core of Redis at most.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What ended a wait; neither of the two if the time was over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct New {
    pub entries: bool,
    pub requests: bool,
    /// Something was seen there. Otherwise the key has only changed, perhaps because something left it.
    pub is_certain: bool,
}

/// Sleeps until there is something to read.
pub struct Wakeup {
    connection: Connection,
    keys: PartitionKeys,
    pushed: Arc<Pushed>,
    is_told: bool,
}

impl Wakeup {
    /// On a connection of its own, because what Redis remembers belongs to the connection.
    pub async fn connect(redis: &Redis, keys: PartitionKeys) -> Result<Self, StoreError> {
        let pushed = Arc::new(Pushed::default());
        let (hears, inbox) = (Arc::clone(&pushed), keys.inbox());
        let hear = move |info: PushInfo| hears.hear(&info, inbox.as_bytes());
        let mut connection = redis.at_home_in(keys.slot()).connect_tracking(hear).await?;
        let mut track = redis::cmd("CLIENT");
        track.arg("TRACKING").arg("ON");
        let subject = Subject("follow the changes of", keys.stream());
        let is_told = match connection.query::<()>(subject, &track).await {
            Ok(()) => true,
            Err(error @ StoreError::Unavailable { .. }) => return Err(error),
            // Not granted, or the server does not have it.
            Err(_) => false,
        };
        Ok(Self { connection, keys, pushed, is_told })
    }

    /// Whether Redis says when something changes. If not, it is looked at again and again.
    pub fn is_told(&self) -> bool {
        self.is_told
    }

    /// Returns when the stream has, or may have, an entry after `last_read`, or the inbox a request after
    /// `inbox_after`; if neither has, after `block`. Takes nothing: the owner's next call finds what is there.
    pub async fn wait(&mut self, last_read: EntryId, inbox_after: EntryId, block: Duration) -> Result<New, StoreError> {
        if self.is_told {
            // What was pushed earlier is covered by the look.
            self.pushed.take()?;
            let new = self.look(last_read, inbox_after).await?;
            if new.is_certain {
                return Ok(new);
            }
            return timeout(block, self.pushed.next()).await.unwrap_or(Ok(New::default()));
        }
        let looking = async {
            loop {
                let new = self.look(last_read, inbox_after).await?;
                if new.is_certain {
                    return Ok(new);
                }
                sleep(LOOK_EVERY).await;
            }
        };
        timeout(block, looking).await.unwrap_or(Ok(New::default()))
    }

    async fn look(&mut self, last_read: EntryId, inbox_after: EntryId) -> Result<New, StoreError> {
        let subject = Subject("wait for new entries of", self.keys.stream());
        let call = WAKE.keys(&[self.keys.stream(), &self.keys.inbox()]).text(last_read).text(inbox_after);
        let seen = self.connection.run::<(bool, bool)>(subject, &call);
        let (entries, requests) = within(GRACE, subject, seen).await?;
        Ok(New { entries, requests, is_certain: entries || requests })
    }
}

/// What Redis has pushed since it was last asked: names of keys, of which only two can come.
#[derive(Default)]
struct Pushed {
    entries: AtomicBool,
    requests: AtomicBool,
    is_lost: AtomicBool,
    changed: Notify,
}

impl Pushed {
    /// Never waits, because it runs where the connection's answers are read. Never returns the error of its type.
    fn hear(&self, info: &PushInfo, inbox: &[u8]) -> Result<(), std::convert::Infallible> {
        match (&info.kind, info.data.first()) {
            (PushKind::Invalidate, Some(Value::Array(keys))) => {
                let is_inbox = |key: &Value| matches!(key, Value::BulkString(key) if key == inbox);
                let requests = keys.iter().filter(|key| is_inbox(key)).count();
                self.requests.fetch_or(requests > 0, Ordering::Relaxed);
                self.entries.fetch_or(requests < keys.len(), Ordering::Relaxed);
            }
            // Everything was flushed.
            (PushKind::Invalidate, _) => {
                self.entries.store(true, Ordering::Relaxed);
                self.requests.store(true, Ordering::Relaxed);
            }
            (PushKind::Disconnection, _) => self.is_lost.store(true, Ordering::Relaxed),
            _ => return Ok(()),
        }
        // Wakes the waiter, which checks what was stored before this.
        self.changed.notify_one();
        Ok(())
    }

    async fn next(&self) -> Result<New, StoreError> {
        loop {
            self.changed.notified().await;
            let new = self.take()?;
            if new.entries || new.requests {
                return Ok(new);
            }
        }
    }

    fn take(&self) -> Result<New, StoreError> {
        let take = |flag: &AtomicBool| flag.swap(false, Ordering::Relaxed);
        match self.is_lost.load(Ordering::Relaxed) {
            true => Err(StoreError::away("wait for new entries", "the connection was closed")),
            false => Ok(New { entries: take(&self.entries), requests: take(&self.requests), is_certain: false }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hear(pushed: &Pushed, kind: PushKind, data: Vec<Value>) {
        let Ok(()) = pushed.hear(&PushInfo { kind, data }, b"inbox");
    }

    fn names(keys: &[&str]) -> Vec<Value> {
        vec![Value::Array(keys.iter().map(|key| Value::BulkString(key.as_bytes().to_vec())).collect())]
    }

    #[test]
    fn a_push_tells_the_stream_from_the_inbox_and_a_flush_is_both() {
        let pushed = Pushed::default();
        for (data, entries, requests) in [
            (names(&["s"]), true, false),
            (names(&["inbox"]), false, true),
            (names(&["inbox", "s"]), true, true),
            (vec![Value::Nil], true, true),
        ] {
            hear(&pushed, PushKind::Invalidate, data);
            assert_eq!(pushed.take().unwrap(), New { entries, requests, is_certain: false });
            assert_eq!(pushed.take().unwrap(), New::default(), "it is told once");
        }
        hear(&pushed, PushKind::Message, names(&["s"]));
        assert_eq!(pushed.take().unwrap(), New::default());
        hear(&pushed, PushKind::Disconnection, Vec::new());
        assert!(matches!(pushed.take(), Err(StoreError::Unavailable { .. })));
    }
}
