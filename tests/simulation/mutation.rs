//! Ways to do it wrong, at the boundary between a worker and Redis; the product has no switch for them. Each is a
//! mistake that someone could make in a script, in the client, or in the order of calls.

use std::collections::BTreeSet;

use herald::{
    facts::{
        delivery::{Chain, Delivery},
        id::{DeliveryId, EntryId},
    },
    store::{
        model::{Lease, Model},
        operations::work::Lost,
        protocol::{Answer, Call, Failure, GROUP, Item, Known, Place, ReadFrom, Settlement, Term},
    },
};

use super::world::operations::{OwnerStep, StepAnswer};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    NoFence,
    AcksBeforeRecords,
    NewBeforePending,
    ClaimedNotMovedBack,
    HeldPoppedBeforeSettle,
    SameTermAgain,
    SettleRetriedElsewhere,
    RecordsOutOfOrder,
    AskAnswersZero,
    FollowersNotHeld,
    PromotedWithoutWaiting,
    TrimIgnoresPending,
    CursorAheadOfPending,
    OtherRegistryIgnored,
    PressureIgnored,
    RefusedChangeForgotten,
    FailureTakenForSuccess,
    BurialNotDurable,
    RegistryTakenForNew,
    StampIgnored,
    SharesNotKept,
    DeferredForgotten,
    RecordsWeighedTwice,
    FinishedStillWeighed,
    BuriedStillWeighed,
    NamesakeTakenForKnown,
    PlacesIgnored,
    NewestEntryTellsTheStream,
    LettersNotIndexed,
    RevivedStillIndexed,
    OlderLettersIgnored,
    RemovedStaysIndexed,
    AccountIgnored,
    ClaimIgnored,
    HolderIgnored,
    BookedTwice,
    StepWithoutFence,
    DoneWhenQueued,
    LockForgotten,
    SettledForgotten,
    RedeliveryNotToldApart,
}

impl Mutation {
    pub const ALL: [Self; 41] = [
        Self::NoFence,
        Self::AcksBeforeRecords,
        Self::NewBeforePending,
        Self::ClaimedNotMovedBack,
        Self::HeldPoppedBeforeSettle,
        Self::SameTermAgain,
        Self::SettleRetriedElsewhere,
        Self::RecordsOutOfOrder,
        Self::AskAnswersZero,
        Self::FollowersNotHeld,
        Self::PromotedWithoutWaiting,
        Self::TrimIgnoresPending,
        Self::CursorAheadOfPending,
        Self::OtherRegistryIgnored,
        Self::PressureIgnored,
        Self::RefusedChangeForgotten,
        Self::FailureTakenForSuccess,
        Self::BurialNotDurable,
        Self::RegistryTakenForNew,
        Self::StampIgnored,
        Self::SharesNotKept,
        Self::DeferredForgotten,
        Self::RecordsWeighedTwice,
        Self::FinishedStillWeighed,
        Self::BuriedStillWeighed,
        Self::NamesakeTakenForKnown,
        Self::PlacesIgnored,
        Self::NewestEntryTellsTheStream,
        Self::LettersNotIndexed,
        Self::RevivedStillIndexed,
        Self::OlderLettersIgnored,
        Self::RemovedStaysIndexed,
        Self::AccountIgnored,
        Self::ClaimIgnored,
        Self::HolderIgnored,
        Self::BookedTwice,
        Self::StepWithoutFence,
        Self::DoneWhenQueued,
        Self::LockForgotten,
        Self::SettledForgotten,
        Self::RedeliveryNotToldApart,
    ];

    /// What is done wrong.
    pub fn what(self) -> &'static str {
        match self {
            Self::NoFence => "a script without a fence",
            Self::AcksBeforeRecords => "an acknowledgement before its record",
            Self::NewBeforePending => "new entries before the pending ones",
            Self::ClaimedNotMovedBack => "claimed deliveries that are not moved back",
            Self::HeldPoppedBeforeSettle => "a held delivery popped before the settle",
            Self::SameTermAgain => "the same value for every term",
            Self::SettleRetriedElsewhere => "a settle repeated on a new connection",
            Self::RecordsOutOfOrder => "records written out of the order of their chain",
            Self::AskAnswersZero => "questions answered with nothing",
            Self::FollowersNotHeld => "followers that are not held on a retry",
            Self::PromotedWithoutWaiting => "a delivery promoted without waiting",
            Self::TrimIgnoresPending => "trimming what is pending",
            Self::CursorAheadOfPending => "a cursor ahead of what is pending",
            Self::OtherRegistryIgnored => "another registry taken for ours",
            Self::PressureIgnored => "reading on at full speed while Redis is nearly full",
            Self::RefusedChangeForgotten => "a refused change dropped, and the rest settled without it",
            Self::FailureTakenForSuccess => "a script that failed taken for one that ran",
            Self::BurialNotDurable => "a burial taken for durable while it is on its way",
            Self::RegistryTakenForNew => "a snapshot of the registry taken for as new as what was read",
            Self::StampIgnored => {
                "a version of the registry taken for the one that was seen, although its stamp is another"
            }
            Self::SharesNotKept => "slow flights beyond an endpoint's share",
            Self::PlacesIgnored => "attempts begun before there is a place for them",
            Self::DeferredForgotten => "entries that were left in the stream never taken up again",
            Self::RecordsWeighedTwice => "records that are weighed twice",
            Self::FinishedStillWeighed => "records that still weigh something when they are finished",
            Self::BuriedStillWeighed => "records that still weigh something when they are dead letters",
            Self::NewestEntryTellsTheStream => {
                "another stream taken for ours, for its newest entry is after the cursor"
            }
            Self::LettersNotIndexed => "a dead letter that is not indexed",
            Self::RevivedStillIndexed => "a redelivered letter that is still indexed",
            Self::OlderLettersIgnored => "letters of an older Herald that are never indexed",
            Self::RemovedStaysIndexed => "what an older Herald removed left in the indexes",
            Self::AccountIgnored => "what was owed to one account taken for another's, which has the endpoint's id now",
            Self::ClaimIgnored => "a letter taken that another operation has under way",
            Self::HolderIgnored => "a letter redelivered by hand that an operation has under way",
            Self::BookedTwice => "an operation that counts twice what has ended",
            Self::StepWithoutFence => "a step of an operation without a fence",
            Self::DoneWhenQueued => "a redelivery that is done when it is queued",
            Self::LockForgotten => "a new owner that does not know what could not be read",
            Self::SettledForgotten => "an owner that forgets what was settled when its term ends",
            Self::RedeliveryNotToldApart => "what is redelivered taken for what was redelivered before",
            Self::NamesakeTakenForKnown => "a quarantined entry taken for another one of its id",
        }
    }
}

/// One call as the mutated Redis, or the mutated client, carries it out.
pub fn carry_out(model: &mut Model, mutation: Option<Mutation>, call: &Call) -> Result<Answer, Failure> {
    let Some(mutation) = mutation else { return model.call(call) };
    match (mutation, call) {
        (Mutation::NoFence, call) if !matches!(call, Call::Acquire { .. }) => {
            let mut call = call.clone();
            if let Some(lease) = &model.lease {
                *term_mut(&mut call) = raw_term(&lease.value);
            }
            model.call(&call)
        }
        (Mutation::SameTermAgain, call) => {
            let mut call = call.clone();
            let same = raw_term(Term::owner_of(term_mut(&mut call).as_str()));
            *term_mut(&mut call) = same;
            if let Call::Acquire { term, previous, .. } = &mut call {
                *previous = vec![term.clone()];
            }
            model.call(&call)
        }
        (Mutation::NewBeforePending, Call::Read { term, from: ReadFrom::Pending(_), max }) => {
            let new = model.call(&Call::Read { term: term.clone(), from: ReadFrom::New, max: *max });
            match &new {
                Ok(Answer::Entries { entries, .. }) if entries.is_empty() => model.call(call),
                _ => new,
            }
        }
        (Mutation::DeferredForgotten, Call::Read { from: ReadFrom::Pending(after), .. }) if *after != EntryId::ZERO => {
            Ok(Answer::Entries { entries: Vec::new(), now_ms: model.now_ms, registry: model.registry_last })
        }
        (Mutation::ClaimedNotMovedBack, Call::Recover { .. }) => {
            let claimed = model.claimed.clone();
            let due = model.due.clone();
            let answer = model.call(call);
            (model.claimed, model.due) = (claimed, due);
            answer.map(|answer| match answer {
                Answer::Recovered { .. } => Answer::Recovered { moved: 0 },
                other => other,
            })
        }
        (Mutation::HeldPoppedBeforeSettle, Call::Claim { .. }) => {
            let answer = model.call(call);
            if let Ok(Answer::Claimed { kept, .. }) = &answer {
                for (id, record) in kept {
                    if let Some(next) = next_of(model, id, record.as_ref()) {
                        let chains = model.endpoints.get_mut(&next.endpoint).expect("it was just there");
                        chains.held.retain(|(_, entry)| *entry != next.entry);
                    }
                }
            }
            answer
        }
        (Mutation::RecordsOutOfOrder, Call::Settle { term, settlement }) => {
            let mut settlement = settlement.clone();
            settlement.items.reverse();
            model.call(&Call::Settle { term: term.clone(), settlement })
        }
        (Mutation::RecordsWeighedTwice, Call::Settle { .. }) => {
            let mut answer = model.call(call);
            if let Ok(Answer::Settled { counts, .. }) = &mut answer {
                counts.iter_mut().for_each(|(_, unfinished)| unfinished.bytes *= 2);
            }
            answer
        }
        (Mutation::FinishedStillWeighed | Mutation::BuriedStillWeighed, Call::Settle { settlement, .. }) => {
            let of_mutation = |item: &Item| match item {
                Item::Finish { id, .. } if mutation == Mutation::FinishedStillWeighed => Some(id.clone()),
                Item::Bury { id, .. } if mutation == Mutation::BuriedStillWeighed => Some(id.clone()),
                _ => None,
            };
            let left: BTreeSet<DeliveryId> = settlement.items.iter().filter_map(of_mutation).collect();
            let weights: Vec<_> =
                left.iter().filter_map(|id| Some((id, model.records.get(id)?.len() as i64))).collect();
            let answer = model.call(call);
            if matches!(answer, Ok(Answer::Settled { .. })) {
                let gone =
                    weights.iter().filter(|(id, _)| !model.records.contains_key(*id)).cloned().collect::<Vec<_>>();
                for (id, bytes) in gone {
                    model.endpoints.entry(id.endpoint.clone()).or_default().bytes += bytes;
                }
            }
            answer
        }
        (Mutation::LettersNotIndexed | Mutation::RevivedStillIndexed, Call::Settle { settlement, .. }) => {
            let of_mutation = |item: &Item| match item {
                Item::Bury { id, .. } if mutation == Mutation::LettersNotIndexed => Some(id.clone()),
                Item::Revive { id, .. } if mutation == Mutation::RevivedStillIndexed => Some(id.clone()),
                _ => None,
            };
            let ids: Vec<DeliveryId> = settlement.items.iter().filter_map(of_mutation).collect();
            let before: Vec<_> = ids.iter().map(|id| model.dead_facts.get(id).cloned()).collect();
            let answer = model.call(call);
            if matches!(answer, Ok(Answer::Settled { .. })) {
                for (id, facts) in ids.into_iter().zip(before) {
                    match facts {
                        Some(facts) => drop(model.dead_facts.insert(id, facts)),
                        None => drop(model.dead_facts.remove(&id)),
                    }
                }
            }
            answer
        }
        (Mutation::HolderIgnored, Call::Inbox { .. }) => {
            let mut answer = model.call(call);
            if let Ok(Answer::Requests { requests }) = &mut answer {
                requests.iter_mut().for_each(|request| request.held_by = None);
            }
            answer
        }
        (Mutation::OlderLettersIgnored, Call::Unindexed { .. }) => {
            let mut answer = model.call(call);
            if let Ok(Answer::Unindexed { letters, .. }) = &mut answer {
                letters.clear();
            }
            answer
        }
        (Mutation::RemovedStaysIndexed, Call::SweepDead { .. }) => {
            let facts = model.dead_facts.clone();
            let answer = model.call(call);
            model.dead_facts = facts;
            answer
        }
        (Mutation::NamesakeTakenForKnown, Call::Settle { term, settlement }) => {
            let mut settlement = settlement.clone();
            let known: Vec<EntryId> = model.quarantine.iter().map(|(entry, _)| *entry).collect();
            settlement.items.retain(|item| !matches!(item, Item::Quarantine { entry, .. } if known.contains(entry)));
            model.call(&Call::Settle { term: term.clone(), settlement })
        }
        (Mutation::LockForgotten, Call::Counts { .. }) => {
            model.unreadable.clear();
            model.call(call)
        }
        (Mutation::AskAnswersZero, Call::Ask { .. }) => match model.call(call) {
            Ok(Answer::Asked { known }) => Ok(Answer::Asked { known: vec![Known::default(); known.len()] }),
            other => other,
        },
        (Mutation::FollowersNotHeld, Call::Settle { term, settlement }) => {
            let mut settlement = settlement.clone();
            settlement.items.iter_mut().for_each(lead_alone);
            model.call(&Call::Settle { term: term.clone(), settlement })
        }
        (Mutation::PromotedWithoutWaiting, Call::Settle { settlement, .. }) => {
            let answer = model.call(call);
            if matches!(answer, Ok(Answer::Settled { .. })) {
                promote_early(model, settlement);
            }
            answer
        }
        (Mutation::TrimIgnoresPending, Call::Trim { .. }) => {
            let answer = model.call(call);
            if matches!(answer, Ok(Answer::Trimmed { .. }))
                && let Some(group) = model.stream.groups.get(GROUP)
            {
                let passed = group.last_delivered;
                model.stream.entries.retain(|id, _| *id > passed);
            }
            answer
        }
        (Mutation::CursorAheadOfPending, Call::Settle { settlement, .. }) => {
            let answer = model.call(call);
            if matches!(answer, Ok(Answer::Settled { .. })) {
                model.cursor = Some(settlement.last_read);
            }
            answer
        }
        (Mutation::NewestEntryTellsTheStream, Call::Open { .. }) => {
            let cursor = model.cursor.filter(|cursor| *cursor <= model.stream.last_generated);
            let mut answer = model.call(call);
            if let Some(cursor) = cursor
                && let Ok(Answer::Opened { made_after, last_delivered, is_set_back, .. }) = &mut answer
                && made_after.is_some()
            {
                model.cursor = Some(cursor);
                model.stream.groups.get_mut(GROUP).expect("it was just made").last_delivered = cursor;
                (*made_after, *last_delivered, *is_set_back) = (Some(cursor), cursor, false);
            }
            answer
        }
        _ => model.call(call),
    }
}

/// One step of an operation as the mutated Redis carries it out.
pub fn operate(
    model: &mut Model,
    mutation: Option<Mutation>,
    term: &Term,
    step: &OwnerStep,
) -> Result<StepAnswer, Lost> {
    let before = model.clone();
    match (mutation, step) {
        (Some(Mutation::ClaimIgnored), OwnerStep::Take(id, ..)) => {
            model.operations.claims.retain(|_, claim| claim.by == *id);
        }
        (Some(Mutation::StepWithoutFence), _) => {
            model.lease = Some(Lease { value: term.as_str().to_owned(), until_ms: u64::MAX });
        }
        // What is a delivery again is taken for one that has ended.
        (Some(Mutation::DoneWhenQueued), OwnerStep::Book(..)) => model.records.clear(),
        _ => {}
    }
    let answer = match step {
        OwnerStep::Lay(id, endpoints) => model.lay(term, id, endpoints).map(|()| StepAnswer::Laid),
        OwnerStep::Take(id, kind, mark, taking) => {
            model.take(term, id, *kind, mark.clone(), taking).map(StepAnswer::Taken)
        }
        OwnerStep::Book(id, kind, of) => model.book(term, id, *kind, false, &[], of).map(StepAnswer::Booked),
        OwnerStep::End(id, is_told) => model.end(term, id, *is_told).map(|end| StepAnswer::Ended(end.is_some())),
    };
    match (mutation, step) {
        (Some(Mutation::ClaimIgnored), OwnerStep::Take(..)) => {
            for (delivery, claim) in before.operations.claims {
                model.operations.claims.entry(delivery).or_insert(claim);
            }
        }
        (Some(Mutation::StepWithoutFence), _) => model.lease = before.lease,
        (Some(Mutation::DoneWhenQueued), OwnerStep::Book(..)) => model.records = before.records,
        (Some(Mutation::BookedTwice), OwnerStep::Book(id, ..)) => {
            if let (Some(worked), Some(before)) = (model.operations.all.get_mut(id), before.operations.all.get(id)) {
                let counts = &mut worked.operation.counts;
                counts.done += counts.done - before.operation.counts.done;
            }
        }
        _ => {}
    }
    answer
}

/// A settlement in two calls, as a client without scripts would make them: what goes now, and what goes later.
pub fn split(call: &Call) -> Option<(Call, Call)> {
    let Call::Settle { term, settlement } = call else { return None };
    let (term, last_read) = (term.clone(), settlement.last_read);
    let acks = Settlement { acks: settlement.acks.clone(), last_read, ..Settlement::default() };
    let rest = Settlement { acks: Vec::new(), ..settlement.clone() };
    Some((Call::Settle { term: term.clone(), settlement: acks }, Call::Settle { term, settlement: rest }))
}

fn lead_alone(item: &mut Item) {
    if let Item::Keep { id, chain, place, .. } = item
        && *place == Place::Held
        && let Chain::Intent(intent) = chain.clone()
    {
        (*chain, *place) = (Chain::Single(intent, id.entry), Place::DueIn(0));
    }
}

fn promote_early(model: &mut Model, settlement: &Settlement) {
    for item in &settlement.items {
        if let Item::Keep { id, place: Place::DueIn(_), record, .. } = item
            && let Some(next) = next_of(model, id, Some(record))
        {
            let intent = Delivery::from_record(record).expect("it was just written").intent;
            let now = model.now_ms;
            let chains = model.endpoints.get_mut(&next.endpoint).expect("it was just there");
            chains.held.remove(&(intent, next.entry));
            model.due.insert(next, now);
        }
    }
}

/// The first one held behind a head.
fn next_of(model: &Model, head: &DeliveryId, record: Option<&bytes::Bytes>) -> Option<DeliveryId> {
    let intent = Delivery::from_record(record?).ok()?.intent;
    let chains = model.endpoints.get(&head.endpoint)?;
    let next = chains.held.range((intent.clone(), EntryId::ZERO)..).next().filter(|(of, _)| *of == intent)?;
    Some(DeliveryId { entry: next.1, endpoint: head.endpoint.clone() })
}

/// A term with exactly this owner; its random part is 0.
fn raw_term(value: &str) -> Term {
    match value.split_once(' ') {
        Some((random, owner)) => Term::new(u128::from_str_radix(random, 16).unwrap_or(0), owner),
        None => Term::new(0, value),
    }
}

fn term_mut(call: &mut Call) -> &mut Term {
    match call {
        Call::Acquire { term, .. }
        | Call::Renew { term, .. }
        | Call::Release { term }
        | Call::Recover { term, .. }
        | Call::Open { term, .. }
        | Call::Counts { term, .. }
        | Call::Read { term, .. }
        | Call::Ask { term, .. }
        | Call::Settle { term, .. }
        | Call::Claim { term, .. }
        | Call::PullIn { term, .. }
        | Call::Backlog { term, .. }
        | Call::TakeHeads { term, .. }
        | Call::ClaimForeign { term, .. }
        | Call::Inbox { term, .. }
        | Call::Trim { term, .. }
        | Call::ExpireDead { term, .. }
        | Call::Unindexed { term, .. }
        | Call::SweepDead { term, .. }
        | Call::NoteUnreadable { term, .. } => term,
    }
}
