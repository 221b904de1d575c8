//! Makes parts of a stream. Each step is noted in Redis before the next one, and each can be made again: after a kill anywhere the next
//! owner goes on from the mode that it finds.

use tracing::{info, warn};

use crate::{
    facts::{
        id::EntryId,
        partition::{Mode, UnknownMode},
    },
    store::{
        error::StoreError,
        keys::KeyError,
        protocol::{Start, Term},
        routing::{Gating, ModeSet, Route, RouteStore},
    },
};

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
    #[error("the stream is being split, and this Herald cannot hand over what is unfinished")]
    Unfinished,
    #[error("the replicas of the stream do not know yet that it is routed")]
    Unconfirmed,
}

/// How a stream is split that nothing was done with yet.
pub(super) struct Split {
    pub parts: u32,
    pub start: Start,
    /// Into how many parts all levels above split, together.
    pub above: u32,
}

/// What is to be done with the stream now.
pub(super) enum Next {
    Route(Route),
    /// It is not split: its owner works it.
    Work,
    Lost,
}

impl Split {
    /// Goes on from this mode, which it changes with Redis', until the stream can be routed.
    pub async fn go_on(&self, store: &mut RouteStore, term: &Term, mode: &mut Mode) -> Result<Next, Trouble> {
        loop {
            let next = match &*mode {
                Mode::Worked => match self.begin(store).await? {
                    Some(splitting) => splitting,
                    None => return Ok(Next::Work),
                },
                Mode::Splitting { parts, token } => {
                    let (parts, token) = (*parts, token.clone());
                    self.close(store, parts, &token).await?;
                    self.hand_over(store).await?;
                    Mode::Routed { parts, token, barrier: self.barrier(store).await? }
                }
                Mode::Routed { .. } => return self.confirm(store, term, mode).await,
            };
            match store.set_mode(term, mode, &next).await? {
                ModeSet::Done => {
                    info!(term = term.id(), "the stream is {} into {} parts", next.name(), next.parts().unwrap_or(0));
                    *mode = next;
                }
                // An earlier call of this term, whose answer was lost.
                ModeSet::Is(text) => *mode = Mode::parse((!text.is_empty()).then_some(&text))?,
                ModeSet::Lost => return Ok(Next::Lost),
            }
        }
    }

    /// The mode is noted before the first part is closed: so whoever goes on knows by which token they are.
    async fn begin(&self, store: &mut RouteStore) -> Result<Option<Mode>, Trouble> {
        let Self { parts, .. } = *self;
        if !store.is_fresh().await? {
            warn!(
                "stream.partitions is {parts}, and Redis holds the stream in one piece with what is unfinished: it stays so"
            );
            return Ok(None);
        }
        if self.above == 1 && store.is_part().await? {
            warn!(
                "stream.partitions is {parts}, but the stream is a part of another one: only who works on that splits it again"
            );
            return Ok(None);
        }
        if let Some(used) = store.first_used(parts).await? {
            warn!(
                "stream.partitions is {parts}, but somebody works on {used} as on a stream of its own: it is not split"
            );
            return Ok(None);
        }
        let token = format!("{:032x}", rand::random::<u128>());
        Ok(Some(Mode::Splitting { parts, token }))
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

    /// Nothing of the stream may be unfinished. What would be is for its owner to hand over, before the stream is routed.
    async fn hand_over(&self, store: &mut RouteStore) -> Result<(), Trouble> {
        match store.is_fresh().await? {
            true => Ok(()),
            false => Err(Trouble::Unfinished),
        }
    }

    /// What is behind this entry is passed on.
    async fn barrier(&self, store: &mut RouteStore) -> Result<EntryId, Trouble> {
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
        if !store.has_begun().await? {
            match store.set_mode(term, mode, mode).await? {
                ModeSet::Done => {}
                ModeSet::Is(_) | ModeSet::Lost => return Ok(Next::Lost),
            }
            if !store.are_replicas_here().await? {
                return Err(Trouble::Unconfirmed);
            }
        }
        Ok(Next::Route(route))
    }
}
