//! Wakes a partition's owner: waits until the stream or the inbox has changed, and carries nothing but that. A blocking
//! read would carry the entry, which a producer may make as large as it likes.
//!
//! Redis' client-side caching (`CLIENT TRACKING`, in every Redis that Herald runs on, without a setting) remembers which
//! keys a connection has looked at and pushes their names, once, when they change. So each wait first looks, by
//! `wake.lua`, and then listens.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, PoisonError,
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
    connection::{Connection, Redis, Script, Subject, is_elsewhere},
    error::StoreError,
    keys::PartitionKeys,
    pool::Made,
    requests::within,
};
use crate::facts::{id::EntryId, partition::Slot};

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

/// A connection on which Redis tells what has changed of all that was looked at on it. What Redis remembers belongs to the connection.
/// Cheap to clone.
#[derive(Clone)]
pub(in crate::store) struct Ear {
    connection: Connection,
    heard: Arc<Heard>,
    is_told: bool,
}

type Listeners = HashMap<Vec<u8>, (Arc<Pushed>, Kind)>;

/// Whom it tells, by the names of their keys.
#[derive(Default)]
struct Heard {
    listeners: Mutex<Listeners>,
    is_lost: AtomicBool,
}

/// What a key is to its partition.
#[derive(Clone, Copy)]
enum Kind {
    Stream,
    Inbox,
}

impl Ear {
    pub async fn connect(redis: &Redis) -> Result<Self, StoreError> {
        let heard = Arc::new(Heard::default());
        let hears = Arc::clone(&heard);
        let mut connection = redis.connect_tracking(move |info: PushInfo| hears.hear(&info)).await?;
        let mut track = redis::cmd("CLIENT");
        track.arg("TRACKING").arg("ON");
        let is_told = match connection.query::<()>("follow the changes of streams", &track).await {
            Ok(()) => true,
            Err(error @ StoreError::Unavailable { .. }) => return Err(error),
            // Not granted, or the server does not have it.
            Err(_) => false,
        };
        Ok(Self { connection, heard, is_told })
    }

    /// What is pushed next. A node that is frozen, and was replaced, would be listened to in vain.
    async fn next(&self, pushed: &Pushed, slot: Slot) -> Result<New, StoreError> {
        tokio::select! {
            new = pushed.next() => new,
            () = self.connection.is_replaced(slot) => Err(is_elsewhere("wait for new entries")),
        }
    }

    /// The connection has no limit of its own for an answer.
    async fn ask<T>(
        &self,
        subject: Subject<'_>,
        what: impl AsyncFnOnce(Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let answer = within(GRACE, subject, what(self.connection.clone())).await;
        if let Err(StoreError::Unavailable { .. }) = &answer {
            self.connection.give_up();
        }
        answer
    }
}

impl Made for Ear {
    fn is_over(&self) -> bool {
        self.heard.is_lost.load(Ordering::Relaxed) || self.connection.is_over()
    }
}

impl Heard {
    /// Never waits, because it runs where the connection's answers are read. Never returns the error of its type.
    fn hear(&self, info: &PushInfo) -> Result<(), Infallible> {
        let listeners = self.lock();
        match (&info.kind, info.data.first()) {
            (PushKind::Invalidate, Some(Value::Array(keys))) => {
                for key in keys {
                    if let Value::BulkString(key) = key
                        && let Some((pushed, kind)) = listeners.get(key)
                    {
                        pushed.changed(*kind);
                    }
                }
            }
            // Everything was flushed.
            (PushKind::Invalidate, _) => listeners.values().for_each(|(pushed, kind)| pushed.changed(*kind)),
            (PushKind::Disconnection, _) => {
                self.is_lost.store(true, Ordering::Relaxed);
                listeners.values().for_each(|(pushed, _)| pushed.lost());
            }
            _ => {}
        }
        Ok(())
    }

    /// Another may listen for the same key by now.
    fn forget(&self, key: &[u8], listener: &Arc<Pushed>) {
        let mut listeners = self.lock();
        if listeners.get(key).is_some_and(|(known, _)| Arc::ptr_eq(known, listener)) {
            listeners.remove(key);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Listeners> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sleeps until there is something to read.
pub struct Wakeup {
    ear: Ear,
    keys: PartitionKeys,
    pushed: Arc<Pushed>,
}

impl Wakeup {
    pub async fn connect(redis: &Redis, keys: PartitionKeys) -> Result<Self, StoreError> {
        let (ear, pushed) = (redis.at_home_in(keys.slot()).ear().await?, Arc::new(Pushed::default()));
        for (key, kind) in [(keys.stream().to_owned(), Kind::Stream), (keys.inbox(), Kind::Inbox)] {
            ear.heard.lock().insert(key.into_bytes(), (Arc::clone(&pushed), kind));
        }
        // It may have been lost just before: then nobody tells this one.
        if ear.is_over() {
            pushed.lost();
        }
        Ok(Self { ear, keys, pushed })
    }

    /// Whether Redis says when something changes. If not, it is looked at again and again.
    pub fn is_told(&self) -> bool {
        self.ear.is_told
    }

    /// Returns when the stream has, or may have, an entry after `last_read`, or the inbox a request after
    /// `inbox_after`; if neither has, after `block`. Takes nothing: the owner's next call finds what is there.
    pub async fn wait(&mut self, last_read: EntryId, inbox_after: EntryId, block: Duration) -> Result<New, StoreError> {
        if self.ear.is_told {
            // What was pushed earlier is covered by the look.
            self.pushed.take()?;
            let new = self.look(last_read, inbox_after).await?;
            if new.is_certain {
                return Ok(new);
            }
            return timeout(block, self.ear.next(&self.pushed, self.keys.slot())).await.unwrap_or(Ok(New::default()));
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
        let look = async |mut connection: Connection| connection.run::<(bool, bool)>(subject, &call).await;
        let (entries, requests) = self.ear.ask(subject, look).await?;
        Ok(New { entries, requests, is_certain: entries || requests })
    }
}

impl Drop for Wakeup {
    fn drop(&mut self) {
        for key in [self.keys.stream(), &self.keys.inbox()] {
            self.ear.heard.forget(key.as_bytes(), &self.pushed);
        }
    }
}

/// Sleeps until one more key of a partition has changed.
pub struct Watched {
    ear: Ear,
    key: String,
    slot: Slot,
    pushed: Arc<Pushed>,
}

impl Watched {
    /// `redis` is at home where the key is.
    pub async fn connect(redis: &Redis, key: String) -> Result<Self, StoreError> {
        let (ear, pushed) = (redis.ear().await?, Arc::new(Pushed::default()));
        ear.heard.lock().insert(key.clone().into_bytes(), (Arc::clone(&pushed), Kind::Stream));
        if ear.is_over() {
            pushed.lost();
        }
        Ok(Self { ear, key, slot: redis.home(), pushed })
    }

    /// Looks at the key; of the next change after it Redis tells.
    pub async fn look<T>(&self, look: impl AsyncFnOnce(Connection) -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.ear.ask(Subject("look at", &self.key), look).await
    }

    /// Returns when the key has changed since the last look began, or after so long; much sooner where Redis does not tell.
    pub async fn wait(&self, longest: Duration, untold: Duration) -> Result<(), StoreError> {
        let longest = if self.ear.is_told { longest } else { untold };
        let next = self.ear.next(&self.pushed, self.slot);
        timeout(longest, next).await.map_or(Ok(()), |heard| heard.map(drop))
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.ear.heard.forget(self.key.as_bytes(), &self.pushed);
    }
}

/// What Redis has pushed of one partition since it was last asked.
#[derive(Default)]
struct Pushed {
    entries: AtomicBool,
    requests: AtomicBool,
    is_lost: AtomicBool,
    changed: Notify,
}

impl Pushed {
    fn changed(&self, kind: Kind) {
        let flag = match kind {
            Kind::Stream => &self.entries,
            Kind::Inbox => &self.requests,
        };
        flag.store(true, Ordering::Relaxed);
        // Wakes the waiter, which checks what was stored before this.
        self.changed.notify_one();
    }

    fn lost(&self) {
        self.is_lost.store(true, Ordering::Relaxed);
        self.changed.notify_one();
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

    fn hear(heard: &Heard, kind: PushKind, data: Vec<Value>) {
        let Ok(()) = heard.hear(&PushInfo { kind, data });
    }

    fn names(keys: &[&str]) -> Vec<Value> {
        vec![Value::Array(keys.iter().map(|key| Value::BulkString(key.as_bytes().to_vec())).collect())]
    }

    #[test]
    fn a_push_goes_to_the_partition_whose_key_it_names_and_a_flush_to_all() {
        let (heard, [one, two]) = (Heard::default(), [(); 2].map(|()| Arc::new(Pushed::default())));
        for (pushed, stream, inbox) in [(&one, "s:1", "inbox:1"), (&two, "s:2", "inbox:2")] {
            heard.lock().insert(stream.into(), (Arc::clone(pushed), Kind::Stream));
            heard.lock().insert(inbox.into(), (Arc::clone(pushed), Kind::Inbox));
        }
        let nothing = (false, false);
        for (data, of_one, of_two) in [
            (names(&["s:1"]), (true, false), nothing),
            (names(&["inbox:1"]), (false, true), nothing),
            (names(&["inbox:2", "s:2", "s:1"]), (true, false), (true, true)),
            (names(&["another"]), nothing, nothing),
            (vec![Value::Nil], (true, true), (true, true)),
        ] {
            hear(&heard, PushKind::Invalidate, data);
            for (pushed, (entries, requests)) in [(&one, of_one), (&two, of_two)] {
                assert_eq!(pushed.take().unwrap(), New { entries, requests, is_certain: false });
                assert_eq!(pushed.take().unwrap(), New::default(), "it is told once");
            }
        }
        hear(&heard, PushKind::Message, names(&["s:1"]));
        assert_eq!(one.take().unwrap(), New::default());
        hear(&heard, PushKind::Disconnection, Vec::new());
        assert!([one, two].iter().all(|pushed| matches!(pushed.take(), Err(StoreError::Unavailable { .. }))));
    }
}
