//! Makes parts of a stream. Each step is noted in Redis before the next one, and each can be made again: after a kill anywhere the next
//! owner goes on from the mode that it finds.

use std::time::Duration;

use tokio::sync::mpsc;
use tracing::{info, warn};

use super::routing::{Settings, Told};
use crate::{
    clock,
    dispatch::handing::{Shape, share_out},
    facts::{
        id::{EndpointId, EntryId},
        partition::{Mode, UnknownMode},
    },
    registry::Registry,
    store::{
        connection::Redis,
        error::StoreError,
        keys::KeyError,
        moving::{HandedOver, MAX_HANDED},
        protocol::{Start, Term},
        routing::{Gating, ModeSet, PartsStore, Route, RouteStore},
    },
};

/// How often it is told how far it is.
const TOLD_EVERY: Duration = Duration::from_secs(5);

/// Why a stream cannot be split, or routed, now.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Mode(#[from] UnknownMode),
    #[error("a part cannot have the name that it would get: {0}")]
    Name(#[from] KeyError),
    #[error("the part {part} is closed by another split, {token}")]
    Closed { part: u32, token: String },
    #[error("the part {part} takes nothing of what is unfinished: somebody works on it as on a stream of its own")]
    Refused { part: u32 },
    #[error("the replicas of a part do not have yet what was handed over to it")]
    Behind,
    #[error("the replicas of the stream do not know yet that it is {name}")]
    Unconfirmed { name: &'static str },
}

/// How a stream is split.
pub(super) struct Split<'a> {
    pub redis: &'a Redis,
    pub settings: &'a Settings,
    /// Into so many if nothing was done with it yet.
    pub parts: u32,
    /// Into so many, whatever is unfinished.
    pub wanted: Option<u32>,
    /// Into none after all, unless it has begun.
    pub is_cancelled: bool,
    pub start: Start,
    pub registry: &'a Registry,
    /// Hears of each change of the mode.
    pub tell: &'a mpsc::Sender<Told>,
}

/// What is to be done with the stream now.
pub(super) enum Next {
    Route(Route),
    /// It is not split: its owner works it.
    Work,
    Lost,
}

impl Split<'_> {
    /// Goes on from this mode, which it changes with Redis', until the stream can be routed.
    pub async fn go_on(&self, store: &mut RouteStore, term: &Term, mode: &mut Mode) -> Result<Next, Trouble> {
        loop {
            let next = match &*mode {
                Mode::Worked if self.is_cancelled => return Ok(Next::Work),
                Mode::Splitting { has_begun: false, .. } if self.is_cancelled => Mode::Worked,
                Mode::Worked => match self.begin(store).await? {
                    Some(splitting) => splitting,
                    None => return Ok(Next::Work),
                },
                Mode::Splitting { parts, token, has_begun } => {
                    let (parts, token, has_begun) = (*parts, token.clone(), *has_begun);
                    // Before anything is closed or handed over: if a failover took the mode back, the stream would be worked, and
                    // its parts would have some of it.
                    if !self.is_known_to_replicas(store, term, mode).await? {
                        return Ok(Next::Lost);
                    }
                    self.close(store, parts, &token).await?;
                    match has_begun {
                        false => Mode::Splitting { parts, token, has_begun: true },
                        true => {
                            let Some(last) = self.hand_over(store, term, parts, &token).await? else {
                                return Ok(Next::Lost);
                            };
                            let barrier = match last {
                                Some(last) => last,
                                None => self.beginning(store).await?,
                            };
                            Mode::Routed { parts, token, barrier }
                        }
                    }
                }
                Mode::Routed { .. } => return self.confirm(store, term, mode).await,
            };
            match store.set_mode(term, mode, &next).await? {
                ModeSet::Done => {
                    let before = std::mem::replace(mode, next);
                    match (&*mode, &before) {
                        (Mode::Worked, Mode::Splitting { parts, token, .. }) => {
                            info!(term = term.id(), "the stream stays in one piece: its split was cancelled");
                            self.open(store, *parts, token).await;
                        }
                        _ if mode.name() != before.name() => {
                            info!(
                                term = term.id(),
                                "the stream is {} into {} parts",
                                mode.name(),
                                mode.parts().unwrap_or(0)
                            );
                        }
                        _ => {}
                    }
                }
                // An earlier call of this term, whose answer was lost.
                ModeSet::Is(text) => *mode = Mode::parse((!text.is_empty()).then_some(&text))?,
                ModeSet::Lost => return Ok(Next::Lost),
            }
            // Nobody hears it only where the worker ends.
            let _ = self.tell.send(Told::Mode(term.clone(), mode.clone())).await;
        }
    }

    /// The mode is noted before the first part is closed: so whoever goes on knows by which token they are.
    async fn begin(&self, store: &mut RouteStore) -> Result<Option<Mode>, Trouble> {
        let parts = self.wanted.unwrap_or(self.parts);
        if self.wanted.is_none() && !store.is_fresh().await? {
            warn!(
                "stream.partitions is {parts}, and Redis holds the stream in one piece: it stays so until \
                 `herald repartition` splits it"
            );
            return Ok(None);
        }
        if self.wanted.is_none() && self.settings.above == 1 && store.is_part().await? {
            warn!(
                "stream.partitions is {parts}, but the stream is a part of another one: only who works on that splits it again"
            );
            return Ok(None);
        }
        if let Some(why) = store.why_not_split(parts).await? {
            warn!("the stream was to be split into {parts} parts, and stays in one piece: {why}");
            return Ok(None);
        }
        let token = format!("{:032x}", rand::random::<u128>());
        Ok(Some(Mode::Splitting { parts, token, has_begun: false }))
    }

    /// Nobody works on a part before it can be told what was unfinished.
    async fn close(&self, store: &mut RouteStore, parts: u32, token: &str) -> Result<(), Trouble> {
        for part in 0..parts {
            match store.gate(part, token).await? {
                // It began in between, and has nothing of this stream's.
                Gating::Done | Gating::Used => {}
                Gating::Gated { token: other } => {
                    return Err(Trouble::Closed { part, token: other });
                }
            }
        }
        Ok(())
    }

    /// What was closed is open again. Where that does not succeed, whoever splits the stream later closes it anew.
    async fn open(&self, store: &mut RouteStore, parts: u32, token: &str) {
        let opened = async {
            // If a failover brought the split back, it would go on.
            if !store.are_replicas_here().await? {
                warn!("replicas do not know yet that the split of the stream was cancelled");
            }
            for part in 0..parts {
                store.open(part, token).await?;
            }
            Ok::<(), StoreError>(())
        };
        if let Err(error) = opened.await {
            warn!(%error, "parts that a cancelled split has closed stay so until the next one");
        }
    }

    /// Gives the parts what is unfinished, a page after the other. Nothing leaves the stream before its part and that one's replicas
    /// have it. Returns the last entry that was read, if any was; nothing if the lease is lost.
    async fn hand_over(
        &self,
        store: &mut RouteStore,
        term: &Term,
        parts: u32,
        token: &str,
    ) -> Result<Option<Option<EntryId>>, Trouble> {
        let Settings { above, replicas, .. } = *self.settings;
        let mut to = PartsStore::new(self.redis.clone(), store.keys(), parts, replicas)?;
        let shape = Shape { above, parts };
        let account_of = |endpoint: &EndpointId| self.registry.get(endpoint).map(|known| known.account.clone());
        let (began, mut moved, mut told_at) = (clock::now(), 0, clock::now());
        loop {
            let Some(exported) = store.export(term, MAX_HANDED).await? else { return Ok(None) };
            let (last, count) = (exported.barrier, exported.len());
            if count == 0 {
                if moved > 0 {
                    info!(term = term.id(), "{moved} were handed over in {:?}", clock::now() - began);
                }
                return Ok(Some(last));
            }
            let (handed, leaves) = share_out(exported, shape, account_of);
            match to.hand_over(token, &handed).await? {
                HandedOver::Done => {}
                HandedOver::Unconfirmed => return Err(Trouble::Behind),
                HandedOver::Refused { part } => return Err(Trouble::Refused { part }),
            }
            if !store.take_out(term, &leaves).await? {
                return Ok(None);
            }
            moved += count;
            if clock::now() >= told_at + TOLD_EVERY {
                told_at = clock::now();
                info!(term = term.id(), "{moved} were handed over so far");
            }
        }
    }

    /// What is behind this entry is passed on, where nothing was ever read.
    async fn beginning(&self, store: &mut RouteStore) -> Result<EntryId, Trouble> {
        match self.start {
            Start::Oldest => Ok(EntryId::ZERO),
            Start::Newest => Ok(store.last().await?),
            Start::After(entry) => Ok(entry),
        }
    }

    /// The first entry opens the parts for good. So as long as no part has begun, replicas must know that the stream is routed:
    /// otherwise a failover could take that back, and hand over a second time what they have finished by then.
    async fn confirm(&self, store: &mut RouteStore, term: &Term, mode: &Mode) -> Result<Next, Trouble> {
        let Some(route) = Route::of(mode) else { return Ok(Next::Work) };
        if !store.has_begun().await? && !self.is_known_to_replicas(store, term, mode).await? {
            return Ok(Next::Lost);
        }
        Ok(Next::Route(route))
    }

    /// Writes the mode that is there again, and waits for replicas; false if the lease is lost.
    async fn is_known_to_replicas(&self, store: &mut RouteStore, term: &Term, mode: &Mode) -> Result<bool, Trouble> {
        match store.set_mode(term, mode, mode).await? {
            ModeSet::Done if store.are_replicas_here().await? => Ok(true),
            ModeSet::Done => Err(Trouble::Unconfirmed { name: mode.name() }),
            ModeSet::Is(_) | ModeSet::Lost => Ok(false),
        }
    }
}
