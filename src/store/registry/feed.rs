//! How a follower keeps up: a consistent load of everything, the changes since then, and the wait for the next one.
//! Never keeps what it read.

use std::{collections::HashMap, time::Duration};

use super::{CHANGES, RegistryError, RegistryKeys, RegistryStore, Unreadable, stored};
use crate::{
    facts::{
        endpoint::{Endpoint, Mark},
        id::{EndpointId, RegistryId},
        stamped::Stamped,
    },
    keyring::Keyring,
    store::{
        connection::{Connection, Purpose, Redis},
        error::StoreError,
    },
};

/// The most changes in one answer. With the largest endpoints allowed that is 13 MiB.
const CHANGES_AT_ONCE: usize = 200;

/// How many loads an import may spoil before the caller hears of it.
const LOADS: usize = 10;

/// How much later than asked a blocking read may answer before the connection counts as dead.
const WAIT_GRACE: Duration = Duration::from_secs(5);

/// A state of the registry that the caller has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    pub id: RegistryId,
    pub last: Stamped,
}

/// One entry of the feed, with the endpoint as it is by now.
#[derive(Debug, Clone, PartialEq)]
pub enum FeedChange {
    Put(Box<Endpoint>),
    Unreadable(Unreadable),
    /// Also for an endpoint that was changed and has been removed since.
    Removed(String),
    /// Everything may be different.
    Reset,
}

/// What there is to know since a position.
#[derive(Debug, Clone, PartialEq)]
pub enum News {
    NoRegistry,
    Damaged(String),
    /// The feed does not tell everything that happened: the whole registry must be loaded.
    Gap {
        position: Position,
        pause: Option<Mark>,
        /// What was known has been taken back, as a failover does it.
        is_back: bool,
    },
    /// All changes up to a new position, or none at the known one. There may be more: ask again until the position
    /// stays.
    Changes {
        position: Position,
        pause: Option<Mark>,
        changes: Vec<FeedChange>,
    },
}

/// The whole registry as it was at one version.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub position: Position,
    pub pause: Option<Mark>,
    pub endpoints: HashMap<EndpointId, Endpoint>,
    pub unreadable: HashMap<String, Unreadable>,
}

impl RegistryStore {
    /// The id and version that the registry has now, and whether all sending is paused.
    /// None means that there is no registry.
    pub async fn position(&mut self) -> Result<Option<(Position, Option<Mark>)>, RegistryError> {
        match self.news(None).await? {
            News::NoRegistry => Ok(None),
            News::Damaged(why) => Err(RegistryError::Damaged(why)),
            News::Gap { position, pause, .. } | News::Changes { position, pause, .. } => Ok(Some((position, pause))),
        }
    }

    /// What happened since `known`; always [`News::Gap`] if nothing is known.
    pub async fn news(&mut self, known: Option<&Position>) -> Result<News, StoreError> {
        let (id, last) = known.map_or(("", Stamped::default()), |known| (known.id.as_str(), known.last));
        let call = CHANGES.keys_to_read(&[RegistryKeys::ENDPOINTS, RegistryKeys::META, RegistryKeys::CHANGES]);
        let call = call.arg(id).arg(last.version).text(format_args!("{:016x}", last.stamp)).arg(CHANGES_AT_ONCE);
        let answer: Vec<Vec<u8>> = self.connection.run("follow the registry", &call).await?;
        read_news(known, &answer, self.connection.keyring())
            .ok_or_else(|| StoreError::unexpected("follow the registry", "the script's answer has no known form"))
    }

    /// Everything, as it was at one version. The pages are read while the registry may change; then the changes since
    /// the first page are read from the feed and applied. If there was an import meanwhile, it starts again.
    pub async fn load(&mut self) -> Result<Loaded, RegistryError> {
        for _ in 0..LOADS {
            let (position, pause) = self.position().await?.ok_or(RegistryError::NeverMade)?;
            let mut loaded = Loaded { position, pause, endpoints: HashMap::new(), unreadable: HashMap::new() };
            let mut cursor = None;
            loop {
                let page = self.list(cursor).await?;
                loaded.endpoints.extend(page.endpoints.into_iter().map(|endpoint| (endpoint.id.clone(), endpoint)));
                loaded.unreadable.extend(page.unreadable.into_iter().map(|found| (found.id.clone(), found)));
                cursor = page.next;
                if cursor.is_none() {
                    break;
                }
            }
            if self.put_right(&mut loaded).await? {
                return Ok(loaded);
            }
        }
        let why = format!("the registry was replaced {LOADS} times during its load");
        Err(StoreError::unexpected("load the registry", why).into())
    }

    /// Returns false if the feed does not tell everything.
    async fn put_right(&mut self, loaded: &mut Loaded) -> Result<bool, RegistryError> {
        loop {
            match self.news(Some(&loaded.position)).await? {
                News::NoRegistry => return Err(RegistryError::NeverMade),
                News::Damaged(why) => return Err(RegistryError::Damaged(why)),
                News::Gap { .. } => return Ok(false),
                News::Changes { changes, .. } if changes.contains(&FeedChange::Reset) => return Ok(false),
                News::Changes { position, pause, changes } => {
                    let at_its_end = position == loaded.position;
                    (loaded.position, loaded.pause) = (position, pause);
                    changes.into_iter().for_each(|change| loaded.apply(change));
                    if at_its_end {
                        return Ok(true);
                    }
                }
            }
        }
    }
}

impl Loaded {
    fn apply(&mut self, change: FeedChange) {
        match change {
            FeedChange::Put(endpoint) => {
                self.unreadable.remove(endpoint.id.as_str());
                self.endpoints.insert(endpoint.id.clone(), *endpoint);
            }
            FeedChange::Unreadable(unreadable) => {
                self.endpoints.remove(unreadable.id.as_str());
                self.unreadable.insert(unreadable.id.clone(), unreadable);
            }
            FeedChange::Removed(id) => {
                self.endpoints.remove(id.as_str());
                self.unreadable.remove(&id);
            }
            FeedChange::Reset => {}
        }
    }
}

/// The wait for a change, on a connection of its own.
pub struct ChangeWait {
    connection: Connection,
}

impl ChangeWait {
    pub async fn connect(redis: &Redis) -> Result<Self, StoreError> {
        Ok(Self { connection: redis.at_home_in(RegistryKeys::slot()).connect(Purpose::Wakeup).await? })
    }

    /// Returns when the feed has something after `version`, or after `at_most`. A wiped Redis does not end the wait, so
    /// look at the registry in any case.
    pub async fn wait(&mut self, version: u64, at_most: Duration) -> Result<(), StoreError> {
        let mut command = redis::cmd("XREAD");
        command.arg("COUNT").arg(1).arg("BLOCK").arg(at_most.as_millis().max(1) as u64);
        command.arg("STREAMS").arg(RegistryKeys::CHANGES).arg(format!("{version}-0"));
        let subject = "wait for changes of the registry";
        let wait = self.connection.query::<redis::Value>(subject, &command);
        match tokio::time::timeout(at_most + WAIT_GRACE, wait).await {
            Ok(answer) => answer.map(|_| ()),
            Err(_) => Err(StoreError::away(subject, "no answer")),
        }
    }
}

/// None if the answer has a form that the script never gives.
fn read_news(known: Option<&Position>, answer: &[Vec<u8>], keyring: &Keyring) -> Option<News> {
    let text = |at: usize| std::str::from_utf8(answer.get(at)?).ok();
    match text(0)? {
        "none" => return Some(News::NoRegistry),
        "damaged" => return Some(News::Damaged(text(1)?.to_owned())),
        _ => {}
    }
    let Ok(id) = RegistryId::new(text(1)?) else {
        return Some(News::Damaged("its id has a bad form".to_owned()));
    };
    let stamp = u64::from_str_radix(text(3)?, 16).ok()?;
    let position = Position { id, last: Stamped { version: text(2)?.parse().ok()?, stamp } };
    let pause = match answer.get(4)?.as_slice() {
        b"" => None,
        json => Some(read_mark(json)),
    };
    let rest = answer.get(5..)?;
    match text(0)? {
        "gap" => Some(News::Gap { position, pause, is_back: rest.first()? == b"1" }),
        "ok" if rest.len() % 5 == 0 => {
            let mut last = known?.last.version;
            let mut changes = Vec::with_capacity(rest.len() / 5);
            for change in rest.chunks_exact(5) {
                let after = std::str::from_utf8(&change[0]).ok()?;
                if after.parse() != Ok(last) {
                    return Some(News::Gap { position, pause, is_back: false });
                }
                changes.extend(read_change(change, keyring)?);
                last = std::str::from_utf8(&change[4]).ok()?.parse().ok()?;
            }
            Some(News::Changes { position, pause, changes })
        }
        _ => None,
    }
}

/// A pause and a resume change no endpoint: the answer's own mark tells of them.
fn read_change(change: &[Vec<u8>], keyring: &Keyring) -> Option<Option<FeedChange>> {
    let id = std::str::from_utf8(&change[2]).ok()?;
    Some(match change[1].as_slice() {
        b"pause" | b"resume" => None,
        b"put" if change[3].is_empty() => Some(FeedChange::Removed(id.to_owned())),
        b"put" => Some(match stored::read(id, &change[3], keyring) {
            Ok(endpoint) => FeedChange::Put(Box::new(endpoint)),
            Err(unreadable) => FeedChange::Unreadable(unreadable),
        }),
        b"remove" => Some(FeedChange::Removed(id.to_owned())),
        // Also for a kind that only a newer Herald knows: loading everything is right after any change.
        _ => Some(FeedChange::Reset),
    })
}

/// A pause in an unknown form is a pause all the same: somebody meant it.
fn read_mark(json: &[u8]) -> Mark {
    let unknown = |_| Mark { by: "unknown".to_owned(), why: "its mark cannot be read".to_owned(), at_ms: 0 };
    serde_json::from_slice(json).unwrap_or_else(unknown)
}
