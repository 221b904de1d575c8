//! Payment intents in Redis: one script looks, one changes, and one finds what time has come for. Knows their records as
//! bytes behind a line that says which change wrote them.

mod changes;

use std::{fmt::Display, sync::LazyLock};

use bytes::Bytes;

pub use self::changes::{Change, Commit, Committed, Due, KeyOf};

use super::{
    batches::{Limits, Several},
    connection::{Connection, Script, Subject},
    error::StoreError,
    keys::PartitionKeys,
};
use crate::facts::id::{AccountId, EntryId, IntentId};

/// Intents of one look for those that are due, and of one page.
pub const MAX_DUE: usize = 100;
pub const MAX_PAGE: usize = 100;

/// The year 2200. Redis' scripts count microseconds exactly until 2255.
const MAX_MICROS: i64 = 7_258_118_400_000_000;

/// An account's events are counted exactly up to here.
const MAX_NUMBER: u64 = (1 << 53) - 2;

macro_rules! scripts {
    ($($constant:ident = $name:literal),* $(,)?) => {$(
        static $constant: LazyLock<Script> = LazyLock::new(|| {
            let shared = [include_str!("scripts/shared.lua"), include_str!("scripts/intent_shared.lua")];
            Script::assembled($name, include_str!(concat!("scripts/", $name, ".lua")), &shared)
        });
    )*};
}

scripts! {
    LOAD = "intent_load",
    COMMIT = "intent_commit",
    DUE = "intent_due",
    FORGET = "intent_forget",
    RESET = "intent_reset",
    SEARCH = "intent_search",
    FEED = "intent_feed",
    CLOCK = "intent_clock",
}

/// Of one call: it holds Redis for about a millisecond, and a larger one is hardly cheaper for each.
pub const TOGETHER: Limits = Limits { count: 32, bytes: 256 * 1024 };

/// What is stored of an intent. Times are microseconds of the intents' clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub revision: u64,
    /// When its last change was made.
    pub changed_at: i64,
    /// Of the last change's event among its account's.
    pub number: Option<u64>,
    /// The event that it told; none if it told none.
    pub entry: Option<EntryId>,
    pub json: Bytes,
}

impl Stored {
    /// None if there is nothing; an error if it is not what a commit wrote.
    fn parse(subject: &str, value: &Bytes) -> Result<Option<Self>, StoreError> {
        if value.is_empty() {
            return Ok(None);
        }
        let parsed = || {
            let end = value.iter().position(|byte| *byte == b'\n')?;
            let mut head = std::str::from_utf8(&value[..end]).ok()?.split(' ');
            let (revision, changed_at) = (head.next()?.parse().ok()?, head.next()?.parse().ok()?);
            let entry = head.next().and_then(|entry| entry.parse().ok());
            let number = head.next().and_then(|number| number.parse().ok());
            Some(Self { revision, changed_at, number, entry, json: value.slice(end + 1..) })
        };
        let stored = parsed().ok_or_else(|| StoreError::unexpected(subject, "the record does not begin as one"))?;
        Ok(Some(stored))
    }
}

/// What a request with an idempotency key led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repeated {
    /// Hash of the request.
    pub request: String,
    pub id: IntentId,
    pub stored: Stored,
}

impl Repeated {
    fn parse(subject: &str, value: &Bytes) -> Result<Option<Self>, StoreError> {
        if value.is_empty() {
            return Ok(None);
        }
        let malformed = || StoreError::unexpected(subject, "what is kept of an idempotency key is no answer");
        let mut lines = value.splitn(3, |byte| *byte == b'\n');
        let mut text = || std::str::from_utf8(lines.next().unwrap_or_default()).map_err(|_| malformed());
        let (request, id) = (text()?.to_owned(), IntentId::new(text()?).map_err(|_| malformed())?);
        let record = value.slice_ref(lines.next().unwrap_or_default());
        let stored = Stored::parse(subject, &record)?.ok_or_else(malformed)?;
        Ok(Some(Self { request, id, stored }))
    }
}

/// With `key`, the hash of an idempotency key, also what a request with it led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    pub id: IntentId,
    pub key: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    pub now: i64,
    pub stored: Option<Stored>,
    pub repeated: Option<Repeated>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct DueIntents {
    pub now: i64,
    /// How fast the clock runs; 0 while it stands still.
    pub speed: f64,
    /// Where an unfinished advance leads.
    pub target: Option<i64>,
    pub next: Option<i64>,
    /// An error where what is stored is no record.
    pub found: Vec<(IntentId, Result<Option<Stored>, StoreError>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    NewestFirst,
    OldestFirst,
}

#[derive(Debug, Clone)]
pub struct Found {
    pub created_at: i64,
    pub id: IntentId,
    /// None if what is stored cannot be told.
    pub stored: Option<Stored>,
}

/// A page of what was removed of an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removed {
    /// Created until this instant; told until this number.
    pub until: (i64, u64),
    pub intents: usize,
    pub has_more: bool,
}

/// A page of what an account was told.
#[derive(Debug, Clone)]
pub struct Feed {
    /// The number of the account's last event.
    pub latest: u64,
    pub has_more: bool,
    /// The number of the page's last entry, whatever stands there: the next page begins after it.
    pub last: Option<u64>,
    pub told: Vec<FeedEntry>,
}

#[derive(Debug, Clone)]
pub struct FeedEntry {
    pub number: u64,
    pub id: IntentId,
    /// None if it stands at an earlier event of the page.
    pub stored: Option<Result<Option<Stored>, StoreError>>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ClockChange {
    Speed(f64),
    /// By so much.
    Advance(i64),
    To(i64),
    Step,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockState {
    On {
        now: i64,
    },
    /// What is due now comes before the next step.
    UnderWay {
        now: i64,
    },
    Back {
        now: i64,
    },
    Far {
        now: i64,
    },
}

/// The payment intents of one stream through one connection.
#[derive(Clone)]
pub struct IntentStore {
    connection: Connection,
    keys: PartitionKeys,
}

impl IntentStore {
    pub fn on(connection: Connection, keys: PartitionKeys) -> Self {
        Self { connection, keys }
    }

    pub fn keys(&self) -> &PartitionKeys {
        &self.keys
    }

    /// Looks at several at once; one that fails stops no other.
    pub async fn load(&mut self, looks: &[Look]) -> Several<Loaded> {
        let subject = several("look at", looks.iter().map(|look| &look.id));
        let records = looks.iter().map(|look| self.keys.intent(&look.id));
        let kept = looks.iter().filter_map(|look| look.key.as_deref()).map(|hash| self.keys.intent_key(hash));
        let keys: Vec<_> = [self.keys.intent_clock()].into_iter().chain(records).chain(kept).collect();
        let keys: Vec<_> = keys.iter().map(String::as_str).collect();
        let mut call = LOAD.keys_to_read(&keys).arg(self.keys.intent_prefix());
        for look in looks {
            call = call.arg(if look.key.is_some() { "key" } else { "" });
        }
        let (now, found): (i64, Vec<Vec<Bytes>>) = self.connection.run(&subject, &call).await?;
        let of = |look: &Look, found: &[Bytes]| {
            let subject = several("look at", [&look.id].into_iter());
            match found {
                [record, repeated] => Ok(Loaded {
                    now,
                    stored: Stored::parse(&subject, record)?,
                    repeated: Repeated::parse(&subject, repeated)?,
                }),
                [why] => Err(StoreError::told(&subject, why)),
                _ => Err(StoreError::unexpected(&subject, "it is no answer of the script")),
            }
        };
        each(&subject, looks, &found, of)
    }

    /// Makes several changes, one after the other; one that fails stops no other.
    pub async fn commit(&mut self, changes: &[Change]) -> Several<Committed> {
        let subject = several("change", changes.iter().map(|change| &change.id));
        let shared = [self.keys.intent_due(), self.keys.intent_clock(), self.keys.intent_counts()];
        let shared = shared.iter().map(String::as_str).chain([self.keys.stream()]);
        let keys: Vec<_> = shared.chain(changes.iter().flat_map(Change::keys)).collect();
        let mut call = COMMIT.keys(&keys).arg(self.keys.intent_prefix());
        for change in changes {
            call = change.add_args(call);
        }
        let answers: Vec<Vec<Bytes>> = self.connection.run(&subject, &call).await?;
        each(&subject, changes, &answers, |change, answer| {
            Committed::parse(&several("change", [&change.id].into_iter()), answer)
        })
    }

    /// At most [`MAX_DUE`]. Where more are due, those after `place` among the first of them: 0 is the oldest, 1 the furthest.
    pub async fn due(&mut self, place: f64) -> Result<DueIntents, StoreError> {
        let subject = "look for payment intents whose time has come";
        let (due, clock) = (self.keys.intent_due(), self.keys.intent_clock());
        let call = DUE.keys_to_read(&[&due, &clock]).arg(MAX_DUE).arg(self.keys.intent_prefix()).arg(place);
        let answer: Vec<Bytes> = self.connection.run(subject, &call).await?;
        let [now, speed, target, next, found @ ..] = &answer[..] else {
            return Err(StoreError::unexpected(subject, "its answer is too short"));
        };
        let float = |text: &Bytes| std::str::from_utf8(text).ok()?.parse::<f64>().ok();
        let micros = |text: &Bytes| float(text).map(|number| number as i64);
        let found = found.chunks_exact(2).filter_map(|pair| {
            let id = IntentId::new(std::str::from_utf8(&pair[0]).ok()?).ok()?;
            Some((id, Stored::parse(subject, &pair[1])))
        });
        Ok(DueIntents {
            now: micros(now).unwrap_or_default(),
            speed: float(speed).unwrap_or(1.0),
            target: micros(target),
            next: micros(next),
            found: found.collect(),
        })
    }

    /// Whether it was there with this revision. `numbers` are those of its events.
    pub async fn forget(
        &mut self,
        id: &IntentId,
        account: &AccountId,
        status: &str,
        revision: u64,
        numbers: &[u64],
    ) -> Result<bool, StoreError> {
        let keys = [
            self.keys.intent(id),
            self.keys.intent_due(),
            self.keys.intent_counts(),
            self.keys.intents_of(account, status),
            self.keys.intent_feed(account),
        ];
        let mut call = FORGET.keys(&keys.each_ref().map(String::as_str)).arg(id.as_str()).arg(revision);
        for number in numbers {
            call = call.arg(*number);
        }
        let answer: Vec<String> = self.connection.run(Subject("forget the payment intent", id.as_str()), &call).await?;
        Ok(answer == ["OK"])
    }

    /// Removes up to [`MAX_DUE`] intents of an account, those that were created at `until` or before; without it, until now.
    /// Returns that instant, and how many they were: fewer than that, and none is left.
    pub async fn reset(
        &mut self,
        account: &AccountId,
        statuses: &[String],
        until: Option<(i64, u64)>,
    ) -> Result<Removed, StoreError> {
        let (subject, feed) =
            (Subject("remove the payment intents of", account.as_str()), self.keys.intent_feed(account));
        let mut keys = vec![self.keys.intent_due(), self.keys.intent_clock(), self.keys.intent_counts(), feed];
        keys.extend(statuses.iter().map(|status| self.keys.intents_of(account, status)));
        let keys: Vec<_> = keys.iter().map(String::as_str).collect();
        let (at, number) = (until.map(|(at, _)| at), until.map_or(String::new(), |(_, number)| number.to_string()));
        let call = RESET.keys(&keys).arg(self.keys.intent_prefix()).arg(or_empty(at)).arg(MAX_DUE);
        let call = call.arg(account.as_str()).arg(number);
        let (at, number, intents, events): (i64, u64, usize, usize) = self.connection.run(subject, &call).await?;
        Ok(Removed { until: (at, number), intents, has_more: intents >= MAX_DUE || events >= MAX_DUE })
    }

    /// At most [`MAX_PAGE`], and whether there are more.
    pub async fn search(
        &mut self,
        account: &AccountId,
        statuses: &[&str],
        (from, to): (i64, i64),
        order: Order,
        most: usize,
    ) -> Result<(Vec<Found>, bool), StoreError> {
        let subject = format!("look for payment intents of {account}");
        let keys: Vec<_> = statuses.iter().map(|status| self.keys.intents_of(account, status)).collect();
        let keys: Vec<_> = keys.iter().map(String::as_str).collect();
        let order = if order == Order::NewestFirst { "newest" } else { "oldest" };
        let call = SEARCH
            .keys_to_read(&keys)
            .arg(self.keys.intent_prefix())
            .arg(from.clamp(0, MAX_MICROS))
            .arg(to.clamp(0, MAX_MICROS))
            .arg(order)
            .arg(most.min(MAX_PAGE));
        let answer: Vec<Bytes> = self.connection.run(&subject, &call).await?;
        let Some((has_more, found)) = answer.split_first() else {
            return Err(StoreError::unexpected(&subject, "its answer is empty"));
        };
        let found = found.chunks_exact(3).filter_map(|part| {
            let (created_at, id) = (number(&part[0])?, IntentId::new(std::str::from_utf8(&part[1]).ok()?).ok()?);
            Some(Found { created_at, id, stored: Stored::parse(&subject, &part[2]).ok().flatten() })
        });
        Ok((found.collect(), has_more == "1"))
    }

    /// What an account was told after a number, at most [`MAX_PAGE`].
    pub async fn feed(&mut self, account: &AccountId, after: u64, most: usize) -> Result<Feed, StoreError> {
        let subject = format!("read what {account} was told");
        let (feed, counts) = (self.keys.intent_feed(account), self.keys.intent_counts());
        let call = FEED
            .keys_to_read(&[&feed, &counts])
            .arg(self.keys.intent_prefix())
            .arg(account.as_str())
            .arg(after.min(MAX_NUMBER))
            .arg(most.min(MAX_PAGE));
        let answer: Vec<Bytes> = self.connection.run(&subject, &call).await?;
        let malformed = || StoreError::unexpected(&subject, "it is no answer of the script");
        let [latest, has_more, told @ ..] = &answer[..] else { return Err(malformed()) };
        let count = |text: &Bytes| number(text).and_then(|number| u64::try_from(number).ok());
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        let mut feed = Feed {
            latest: count(latest).ok_or_else(malformed)?,
            has_more: has_more == "1",
            last: None,
            told: Vec::new(),
        };
        for part in told.chunks_exact(3) {
            let number = count(&part[0]).ok_or_else(malformed)?;
            feed.last = Some(number);
            // What a stranger wrote into the feed was told to nobody.
            let Ok(id) = IntentId::new(&text(&part[1])) else { continue };
            let stored = if part[2] == "=" { None } else { Some(Stored::parse(&subject, &part[2])) };
            feed.told.push(FeedEntry { number, id, stored });
        }
        Ok(feed)
    }

    /// Looks at an intent again only after this time: what cannot be read must not stand before all others.
    pub async fn put_off(&mut self, id: &IntentId, to: i64) -> Result<(), StoreError> {
        let command = redis::cmd("ZADD")
            .arg(self.keys.intent_due())
            .arg("XX")
            .arg("GT")
            .arg(to.clamp(0, MAX_MICROS))
            .arg(id.as_str())
            .to_owned();
        self.connection.query::<u64>(Subject("put off the payment intent", id.as_str()), &command).await.map(drop)
    }

    pub async fn clock(&mut self, change: ClockChange) -> Result<ClockState, StoreError> {
        let subject = "move the clock of the payment intents";
        let (clock, due) = (self.keys.intent_clock(), self.keys.intent_due());
        let call = CLOCK.keys(&[&clock, &due]);
        let call = match change {
            ClockChange::Speed(speed) => call.arg("speed").arg(speed),
            // Beyond its end is beyond its end, however far.
            ClockChange::Advance(micros) => call.arg("advance").arg(micros.clamp(0, MAX_MICROS)),
            ClockChange::To(micros) => call.arg("to").arg(micros.clamp(0, MAX_MICROS + 1)),
            ClockChange::Step => call.arg("step").arg(""),
        };
        let (now, state): (i64, String) = self.connection.run(subject, &call).await?;
        match state.as_str() {
            "ON" => Ok(ClockState::On { now }),
            "UNDER_WAY" => Ok(ClockState::UnderWay { now }),
            "BACK" => Ok(ClockState::Back { now }),
            "FAR" => Ok(ClockState::Far { now }),
            _ => Err(StoreError::unexpected(subject, state)),
        }
    }
}

/// "change the payment intent pi_…", or how many.
fn several<'a>(verb: &str, mut ids: impl ExactSizeIterator<Item = &'a IntentId>) -> String {
    match (ids.len(), ids.next()) {
        (1, Some(id)) => format!("{verb} the payment intent {id}"),
        (count, _) => format!("{verb} {count} payment intents"),
    }
}

fn each<A, T>(
    subject: impl Display,
    asked: &[A],
    answers: &[Vec<Bytes>],
    of: impl Fn(&A, &[Bytes]) -> Result<T, StoreError>,
) -> Several<T> {
    if asked.len() != answers.len() {
        let cause = format_args!("{} answers to {} questions", answers.len(), asked.len());
        return Err(StoreError::unexpected(subject, cause));
    }
    Ok(asked.iter().zip(answers).map(|(asked, answer)| of(asked, answer)).collect())
}

fn number(text: &Bytes) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn or_empty(micros: Option<i64>) -> String {
    micros.map(|micros| micros.clamp(0, MAX_MICROS).to_string()).unwrap_or_default()
}
