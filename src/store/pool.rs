//! Connections that all partitions of one thread share: to each node one for each purpose, and one that hears what changes. One that
//! has failed is given up by all who use it, and made anew once; a node that cannot be reached is tried once for all of them, later
//! each time. A clone is kept until it fails, so that whoever knows something by a connection knows when that has ended.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{
    connection::{Connection, Purpose},
    error::StoreError,
    topology::Node,
    wakeup::Ear,
};
use crate::clock;

/// After a node could not be reached, until the next try; twice as long each time, up to the other.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Cheap to clone; all clones are one. For one thread: what moves a connection's bytes runs where it was made.
#[derive(Clone, Default)]
pub struct Pool(Arc<Inner>);

#[derive(Default)]
struct Inner {
    connections: Places<(Option<Node>, Purpose), Connection>,
    ears: Places<Option<Node>, Ear>,
}

/// Something that is made once for all who want it.
pub(in crate::store) trait Made: Clone {
    /// It has failed: whoever comes next needs another.
    fn is_over(&self) -> bool;
}

impl Pool {
    /// To this node of a Cluster, or to the only server.
    pub(in crate::store) async fn connection(
        &self,
        node: Option<Node>,
        purpose: Purpose,
        make: impl AsyncFnOnce() -> Result<Connection, StoreError>,
    ) -> Result<Connection, StoreError> {
        self.0.connections.get((node, purpose), make).await
    }

    pub(in crate::store) async fn ear(
        &self,
        node: Option<Node>,
        make: impl AsyncFnOnce() -> Result<Ear, StoreError>,
    ) -> Result<Ear, StoreError> {
        self.0.ears.get(node, make).await
    }
}

struct Places<K, T>(Mutex<HashMap<K, Arc<tokio::sync::Mutex<Place<T>>>>>);

struct Place<T> {
    made: Option<T>,
    failed: Option<Failed>,
}

/// It could not be made.
struct Failed {
    error: StoreError,
    pause: Duration,
    until: Instant,
}

impl<K, T> Default for Places<K, T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Hash + Eq, T: Made> Places<K, T> {
    /// Those that wait while it is made share what comes of it.
    async fn get(&self, key: K, make: impl AsyncFnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
        let place = {
            let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(places.entry(key).or_default())
        };
        let mut place = place.lock().await;
        if let Some(made) = place.made.take_if(|made| !made.is_over()) {
            return Ok(place.made.insert(made).clone());
        }
        if let Some(failed) = &place.failed
            && clock::now() < failed.until
        {
            return Err(failed.error.clone());
        }
        match make().await {
            Ok(made) => {
                place.failed = None;
                Ok(place.made.insert(made).clone())
            }
            Err(error) => {
                let last = place.failed.take().map(|failed| failed.pause);
                place.failed = Some(Failed::after(last, error.clone()));
                Err(error)
            }
        }
    }
}

impl<T> Default for Place<T> {
    fn default() -> Self {
        Self { made: None, failed: None }
    }
}

impl Failed {
    /// Somewhere in the second half of its pause, so that not all workers come at the same moment.
    fn after(last: Option<Duration>, error: StoreError) -> Self {
        let pause = last.map_or(PAUSE, |last| (2 * last).min(LONGEST_PAUSE));
        let until = clock::now() + pause.mul_f64(rand::random_range(0.5..1.0));
        Self { error, pause, until }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

    use futures_util::future::join_all;

    use super::*;

    #[derive(Clone, Default)]
    struct Thing(Arc<AtomicBool>);

    impl Made for Thing {
        fn is_over(&self) -> bool {
            self.0.load(Relaxed)
        }
    }

    #[tokio::test]
    async fn one_is_made_for_all_and_after_its_end_another() {
        let (places, made) = (Places::<u8, Thing>::default(), AtomicUsize::new(0));
        let get = || {
            places.get(1, async || {
                tokio::task::yield_now().await;
                made.fetch_add(1, Relaxed);
                Ok(Thing::default())
            })
        };
        let all: Vec<_> = join_all((0..64).map(|_| get())).await.into_iter().map(Result::unwrap).collect();
        assert_eq!(made.load(Relaxed), 1);
        all[0].0.store(true, Relaxed);
        assert!(all[63].is_over(), "whoever has it can see that");
        let again: Vec<_> = join_all((0..64).map(|_| get())).await.into_iter().map(Result::unwrap).collect();
        assert!(made.load(Relaxed) == 2 && again.iter().all(|thing| !thing.is_over()));
    }

    #[tokio::test]
    async fn a_node_that_is_away_is_tried_once_for_all() {
        let (places, tried) = (Places::<u8, Thing>::default(), AtomicUsize::new(0));
        let get = |key| {
            places.get(key, async || {
                tried.fetch_add(1, Relaxed);
                Err(StoreError::away("connect", "nobody is there"))
            })
        };
        assert!(join_all((0..64).map(|_| get(1))).await.iter().all(Result::is_err));
        assert_eq!(tried.load(Relaxed), 1);
        assert!(get(2).await.is_err(), "another node");
        assert_eq!(tried.load(Relaxed), 2);
        let away = || StoreError::away("connect", "nobody is there");
        let mut pause = None;
        let pauses = (0..7).map(|_| {
            let failed = Failed::after(pause, away());
            pause = Some(failed.pause);
            failed.pause.as_millis()
        });
        assert_eq!(pauses.collect::<Vec<_>>(), [100, 200, 400, 800, 1600, 2000, 2000]);
    }
}
