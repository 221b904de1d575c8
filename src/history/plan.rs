//! What of the history is to be sent again, to one endpoint, or to be erased: said once, and the same from then on.

use super::{EventPlace, EventsWanted, History, KeptEvent};
use crate::{
    facts::{
        endpoint::{Endpoint, EndpointState},
        id::{AccountId, EndpointId, EntryId},
        operation::{Operation, Selection},
    },
    store::{
        error::StoreError,
        operations::{AllOperations, OperationError, Wanted},
        queries::DeadFilter,
    },
};

/// What a history that is well has read by then.
const BEHIND_MS: u64 = 10_000;

#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error(transparent)]
    Operation(#[from] OperationError),
    #[error("a replay is to one endpoint: give --endpoint")]
    NoEndpoint,
    #[error("there is no endpoint {0}")]
    MissingEndpoint(EndpointId),
    #[error("a replay takes events, and no dead letters: leave --dead-reason and --cause out")]
    NotForReplay,
    #[error("an erasure is of one account: give --account, and no other condition")]
    NotForErasing,
    #[error(
        "{endpoint} is not disabled: disable or delete the account's endpoints first, so that nothing of it is on its way"
    )]
    StillSent { endpoint: EndpointId },
    #[error("a replay takes events from the history, and that cannot be asked: {0}")]
    NoHistory(String),
    #[error("the history keeps no events yet (history.bodies)")]
    NoEvents,
    #[error("the history keeps events since {} (history.bodies): ask for those since then, or leave the time out", said(*begins_ms))]
    TooOld { begins_ms: u64 },
    #[error(
        "the history has not read all of the stream: what was accepted in the last {} s would be missing; ask again when `herald \
         doctor` finds nothing wrong with it, or leave those out with --until {}s",
        waited_ms.div_ceil(1_000),
        waited_ms / 1_000 + 1
    )]
    Behind { waited_ms: u64 },
    #[error("{endpoint} is of the account {own}, and gets no events of {other}")]
    OtherAccount { endpoint: EndpointId, own: AccountId, other: AccountId },
    #[error("{endpoint} is disabled by {by}: {why}; enable it first")]
    Disabled { endpoint: EndpointId, by: String, why: String },
}

/// In UTC, up to the next second: whoever asks for events since then asks for none that are gone.
fn said(at_ms: u64) -> String {
    let seconds = i64::try_from(at_ms.div_ceil(1_000)).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).unwrap_or_default().to_string()
}

impl From<StoreError> for PlanError {
    fn from(error: StoreError) -> Self {
        OperationError::from(error).into()
    }
}

/// Plans to send what the filter selects to its endpoint again, as the registry has that now.
pub async fn replay(
    history: &History,
    operations: &AllOperations,
    endpoint: Option<&Endpoint>,
    wanted: Wanted,
) -> Result<Operation, PlanError> {
    let DeadFilter { reason, cause, .. } = &wanted.letters;
    if reason.is_some() || cause.is_some() {
        return Err(PlanError::NotForReplay);
    }
    let asked = wanted.letters.endpoint.as_ref().ok_or(PlanError::NoEndpoint)?;
    let endpoint = endpoint.ok_or_else(|| PlanError::MissingEndpoint(asked.clone()))?;
    let (mut operations, path) = operations.at_home(&endpoint.account);
    let (selection, count) = freeze(history, &path, &Selection::from(&wanted.letters), endpoint).await?;
    let mut queries = operations.queries();
    if let Some(last) = selection.last_entry.filter(|last| *last < EntryId::MAX)
        && let Some(page) = queries.events_after(last, 1, 0).await?
        && let Some(next) = page.events.first()
    {
        let waited_ms = page.now_ms.saturating_sub(next.entry.ms);
        if waited_ms > BEHIND_MS {
            return Err(PlanError::Behind { waited_ms });
        }
    }
    Ok(operations.plan_frozen(wanted, selection, count).await?)
}

/// Plans to erase what is kept of an account's events up to now, and counts its dead letters and what the history keeps.
pub async fn erase(
    history: &History,
    operations: &mut AllOperations,
    endpoints: &[Endpoint],
    wanted: Wanted,
) -> Result<Operation, PlanError> {
    let letters = &wanted.letters;
    let account = letters.account.clone().ok_or(PlanError::NotForErasing)?;
    // Times, too: everything goes, and nobody may think that only a part of it does.
    let plain = DeadFilter { account: Some(account.clone()), ..DeadFilter::everything() };
    if plain != *letters || wanted.limit.is_some() {
        return Err(PlanError::NotForErasing);
    }
    let sent =
        |endpoint: &&Endpoint| endpoint.account == account && !matches!(endpoint.status, EndpointState::Disabled(_));
    if let Some(endpoint) = endpoints.iter().find(sent) {
        return Err(PlanError::StillSent { endpoint: endpoint.id.clone() });
    }
    let (mut own, path) = operations.at_home(&account);
    let last_entry = Some(operations.partitions().last_entry_of(&account).await?);
    let mut queries = own.queries();
    let left = queries.unindexed_dead().await?;
    if left > 0 {
        return Err(OperationError::Unindexed(left).into());
    }
    let events = EventsWanted { account: Some(account), ..EventsWanted::default() };
    let kept = match history.is_on() {
        true => history
            .ask(async |reader| reader.freeze_events(&events, &path).await)
            .await
            .map_err(PlanError::NoHistory)?,
        false => None,
    };
    let count = queries.count_dead_where(letters).await? + kept.map_or(0, |kept| kept.count);
    let selection = Selection { until_ms: queries.now_ms().await?, last_entry, ..Selection::from(letters) };
    Ok(own.plan_frozen(wanted, selection, count).await?)
}

/// Of the events that `asked` selects, those that this endpoint wants and that the history has read by now; and how many these are.
async fn freeze(
    history: &History,
    path: &[String],
    asked: &Selection,
    endpoint: &Endpoint,
) -> Result<(Selection, u64), PlanError> {
    if let Some(other) = asked.account.as_ref().filter(|account| **account != endpoint.account) {
        let (endpoint, own, other) = (endpoint.id.clone(), endpoint.account.clone(), other.clone());
        return Err(PlanError::OtherAccount { endpoint, own, other });
    }
    if let EndpointState::Disabled(mark) = &endpoint.status {
        let (endpoint, by, why) = (endpoint.id.clone(), mark.by.clone(), mark.why.clone());
        return Err(PlanError::Disabled { endpoint, by, why });
    }
    let mut selection = Selection {
        account: Some(endpoint.account.clone()),
        endpoint: Some(endpoint.id.clone()),
        types: endpoint.event_types.clone(),
        ..asked.clone()
    };
    let wanted = wanted(&selection);
    let frozen =
        history.ask(async |reader| Ok((reader.events_begin_ms().await?, reader.freeze_events(&wanted, path).await?)));
    let (begins_ms, frozen) = frozen.await.map_err(PlanError::NoHistory)?;
    let (Some(begins_ms), Some(frozen)) = (begins_ms, frozen) else { return Err(PlanError::NoEvents) };
    if (1..begins_ms).contains(&asked.from_ms) {
        return Err(PlanError::TooOld { begins_ms });
    }
    (selection.until_ms, selection.last_entry) = (frozen.until_ms, Some(frozen.last));
    Ok((selection, frozen.count))
}

fn wanted(selection: &Selection) -> EventsWanted {
    EventsWanted {
        account: selection.account.clone(),
        intent: selection.intent.clone(),
        event: selection.event.clone(),
        from_ms: Some(selection.from_ms),
        until_ms: Some(selection.until_ms),
        types: selection.types.clone(),
    }
}

/// Up to `limit` of what was frozen after a place, in their order, and whether these are the last.
pub async fn next_events(
    history: &History,
    selection: &Selection,
    after: EventPlace,
    limit: usize,
) -> Result<(Vec<KeptEvent>, bool), String> {
    let mut events = history.events(&wanted(selection), after, limit).await?;
    let found = events.len();
    let last = selection.last_entry.unwrap_or(EntryId::MAX);
    events.retain(|event| event.read_ms < selection.until_ms || event.entry <= last);
    let is_last = found < limit || events.len() < found;
    Ok((events, is_last))
}
