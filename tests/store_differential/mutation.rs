//! Ways to get the steps of operations wrong, at the boundary of the model: a walk must find that Redis does otherwise.

use herald::{
    facts::operation::State,
    store::{
        model::{Lease, Model},
        protocol::{Answer, Call, Failure, Term},
    },
};

use crate::walk::Move;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    NoFence,
    ClaimNotCompared,
    ClaimedErased,
    DeathNotCompared,
    PlaceNotCompared,
    MoreThanPlanned,
    BookedTwice,
    ClaimNotReleased,
    PausedGoesOn,
    HeldByNobody,
    VanishedNotCounted,
    ReplayedWithoutPlace,
    ClaimedExpires,
}

impl Mutation {
    pub const ALL: [Self; 13] = [
        Self::NoFence,
        Self::ClaimNotCompared,
        Self::ClaimedErased,
        Self::DeathNotCompared,
        Self::PlaceNotCompared,
        Self::MoreThanPlanned,
        Self::BookedTwice,
        Self::ClaimNotReleased,
        Self::PausedGoesOn,
        Self::HeldByNobody,
        Self::VanishedNotCounted,
        Self::ReplayedWithoutPlace,
        Self::ClaimedExpires,
    ];
}

/// One step of an operation as the mutated model has it.
pub fn carry_out(model: &mut Model, mutation: Option<Mutation>, term: &Term, step: &Move) -> String {
    let Some(mutation) = mutation else { return step.on_model(model, term) };
    let (mut step, before) = (step.clone(), model.clone());
    let id = match &step {
        Move::Plan(id, ..)
        | Move::Change(id, ..)
        | Move::Lay(id, _)
        | Move::Take(id, ..)
        | Move::Send(id, _)
        | Move::Replay(id, _)
        | Move::Book { id, .. }
        | Move::EraseLetters(id, _)
        | Move::EraseEntries(id, _)
        | Move::End(id, _) => id.clone(),
    };
    match (mutation, &mut step) {
        (Mutation::NoFence, _) => {
            model.lease = Some(Lease { value: term.as_str().to_owned(), until_ms: u64::MAX });
        }
        (Mutation::ClaimNotCompared, Move::Take(..) | Move::Send(..)) => {
            model.operations.claims.retain(|_, claim| claim.by == id);
        }
        (Mutation::ClaimedErased, Move::EraseLetters(..)) => model.operations.claims.clear(),
        (Mutation::DeathNotCompared, Move::Take(.., taking)) => {
            let died = |letter| model.dead.get(letter).map(|(died, _)| *died);
            taking.letters.iter_mut().for_each(|(letter, at)| *at = died(letter).unwrap_or(*at));
        }
        (Mutation::PlaceNotCompared, Move::Take(.., taking)) => {
            let places = model.operations.all.get(&id).map(|worked| &worked.places);
            taking.before = places.and_then(|places| places.get(&taking.endpoint)).unwrap_or(&taking.before).clone();
        }
        (Mutation::MoreThanPlanned, Move::Take(..) | Move::Replay(..)) => {
            model.operations.all.get_mut(&id).into_iter().for_each(|worked| worked.operation.plan.count += 100);
        }
        (Mutation::PausedGoesOn, Move::Take(..) | Move::Send(..) | Move::Replay(..) | Move::EraseLetters(..)) => {
            let paused = model.operations.all.get_mut(&id).filter(|worked| worked.operation.state == State::Paused);
            paused.into_iter().for_each(|worked| worked.operation.state = State::Running);
        }
        _ => {}
    }
    let answer = step.on_model(model, term);
    match (mutation, &step) {
        (Mutation::NoFence, _) => model.lease = before.lease.clone(),
        (Mutation::ClaimNotCompared, Move::Take(..) | Move::Send(..))
        | (Mutation::ClaimedErased, Move::EraseLetters(..)) => {
            for (delivery, claim) in before.operations.claims.clone() {
                model.operations.claims.entry(delivery).or_insert(claim);
            }
        }
        (Mutation::ClaimNotReleased, Move::Book { .. }) => model.operations.claims = before.operations.claims.clone(),
        (Mutation::ReplayedWithoutPlace, Move::Replay(..)) => model.places = before.places.clone(),
        _ => {}
    }
    if let (Some(worked), Some(before)) = (model.operations.all.get_mut(&id), before.operations.all.get(&id)) {
        let (after, before) = (&mut worked.operation, &before.operation);
        match (mutation, &step) {
            (Mutation::MoreThanPlanned, Move::Take(..) | Move::Replay(..)) => after.plan.count = before.plan.count,
            (Mutation::PausedGoesOn, Move::Take(..) | Move::Send(..) | Move::Replay(..) | Move::EraseLetters(..)) => {
                after.state = before.state
            }
            (Mutation::BookedTwice, Move::Book { .. }) => after.counts.done += after.counts.done - before.counts.done,
            (Mutation::VanishedNotCounted, Move::End(..)) => after.counts.overtaken = before.counts.overtaken,
            _ => {}
        }
    }
    answer
}

/// One call of the owner's as the mutated model has it.
pub fn answer(model: &mut Model, mutation: Option<Mutation>, call: &Call) -> Result<Answer, Failure> {
    let claims = model.operations.claims.clone();
    let is_blind = matches!(
        (mutation, call),
        (Some(Mutation::HeldByNobody), Call::Inbox { .. }) | (Some(Mutation::ClaimedExpires), Call::ExpireDead { .. })
    );
    if is_blind {
        model.operations.claims.clear();
    }
    let answer = model.call(call);
    model.operations.claims = claims;
    answer
}
