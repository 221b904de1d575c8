//! What one thread leaves for another.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use tokio::sync::Notify;

/// Bounded by what is in flight, as only that passes through.
pub struct Mailbox<T> {
    items: Mutex<Vec<T>>,
    filled: Notify,
    /// Nobody will fill it any more.
    is_closed: AtomicBool,
}

impl<T> Default for Mailbox<T> {
    fn default() -> Self {
        Self { items: Mutex::default(), filled: Notify::new(), is_closed: AtomicBool::new(false) }
    }
}

impl<T> Mailbox<T> {
    pub fn put(&self, more: &mut Vec<T>) {
        self.lock().append(more);
        self.filled.notify_one();
    }

    /// All of it; waits until there is something. If the thread that fills it has died, this one panics too: otherwise its
    /// lanes would stay full for ever while the lease is renewed, and another process can do what this one cannot.
    pub async fn take(&self) -> Vec<T> {
        loop {
            let items = self.take_now();
            if !items.is_empty() {
                return items;
            }
            assert!(!self.is_closed.load(Relaxed), "a thread of attempts has died: its panic stands before this one");
            self.filled.notified().await;
        }
    }

    pub fn take_now(&self) -> Vec<T> {
        std::mem::take(&mut *self.lock())
    }

    fn close(&self) {
        self.is_closed.store(true, Relaxed);
        self.filled.notify_one();
    }

    /// The list is whole at every step.
    fn lock(&self) -> MutexGuard<'_, Vec<T>> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells the worker that the thread has ended, however it ended.
pub struct Alarm<T>(pub Arc<Mailbox<T>>);

impl<T> Drop for Alarm<T> {
    fn drop(&mut self) {
        self.0.close();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use futures_util::FutureExt;

    use super::*;

    /// A result that gets lost here keeps its delivery in flight until the term ends.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn everything_that_one_thread_leaves_the_other_takes_once() {
        const ALL: usize = 100_000;
        let mailbox = Arc::new(Mailbox::default());
        let from = mailbox.clone();
        let leaving = tokio::task::spawn_blocking(move || {
            // Batches of 1 to 700: smaller and larger than any turn.
            let (mut next, mut size) = (0, 1);
            while next < ALL {
                let until = (next + size).min(ALL);
                from.put(&mut (next..until).collect());
                (next, size) = (until, size % 700 + 1);
            }
        });
        let mut taken = Vec::new();
        while taken.len() < ALL {
            taken.extend(mailbox.take().await);
        }
        leaving.await.unwrap();
        assert_eq!(taken, (0..ALL).collect::<Vec<_>>());
    }

    #[tokio::test]
    #[should_panic(expected = "has died")]
    async fn who_waits_for_a_thread_that_died_ends_as_well() {
        let mailbox = Arc::new(Mailbox::<u32>::default());
        let dying = Alarm(mailbox.clone());
        thread::spawn(move || drop(dying)).join().unwrap();
        mailbox.take().await;
    }

    #[tokio::test]
    async fn nothing_is_lost_when_a_wait_is_given_up() {
        let mailbox = Mailbox::default();
        for number in 0..100 {
            assert!(mailbox.take().now_or_never().is_none());
            mailbox.put(&mut vec![number]);
            assert_eq!(mailbox.take().await, [number]);
        }
    }
}
