//! What operators and others ask of the owner through the inbox.

use crate::{
    facts::{
        operation::is_why_of,
        partition::{MAX_PARTS, Mode},
    },
    store::protocol::{NO_SUCH_LETTER, TAKEN_BEFORE},
};

use super::{
    DeadLetter, Delivery, Directory, Happening, Item, Mark, Partition, Phase, Request, RequestKind, SPLIT_GRACE_MS,
    Standing, Wish,
};

/// What became of a split that somebody does not want any more.
enum Cancelled {
    /// It is too late, or there is none, or this is no such request.
    No,
    Soon,
    WithTerm,
}

const NO_SUCH_ENTRY: &str = "there is no such quarantined entry";

impl<D: Directory> Partition<D> {
    pub(super) fn serve_inbox(&mut self, now: u64, requests: Vec<Request>) {
        self.term.more_requests = !requests.is_empty();
        for request in requests {
            match self.cancel(now, &request) {
                Cancelled::No => {}
                // Until then what comes behind it waits too: it is looked for again.
                Cancelled::Soon => return self.term.more_requests = false,
                Cancelled::WithTerm => return,
            }
            let granted = match self.mode.clone() {
                Some(mode) if mode != Mode::Worked => self.grant_of_split(now, &request, &mode),
                // Whether it is to be split is about to be found out.
                _ if self.phase == Phase::Routing => return self.term.more_requests = false,
                _ => self.grant(now, &request),
            };
            self.term.inbox_after = self.term.inbox_after.max(request.id);
            let answer = match granted {
                Ok(()) => "ok".to_owned(),
                Err(why) => format!("error: {why}"),
            };
            // There may be a million of an operation's: it counts them itself.
            if request.operation.is_none() {
                self.happenings.push(Happening::Requested { request: request.id, answer: answer.clone() });
            }
            self.core.push_item(now, Item::Reply { request: request.id, answer });
        }
    }

    /// What was asked of it before may be taken back until something is handed over. Nobody is told until it is done: if this owner
    /// is lost meanwhile, the next one finds the request.
    fn cancel(&mut self, now: u64, request: &Request) -> Cancelled {
        if request.what != RequestKind::CancelRepartition {
            return Cancelled::No;
        }
        match (self.phase, &self.mode) {
            (Phase::Routing, Some(Mode::Worked | Mode::Splitting { has_begun: false, .. })) => {
                self.is_cancelled = true;
                Cancelled::Soon
            }
            // What was let go of is read again by a new term.
            (Phase::Running, _) if self.wish.take().is_some() => {
                self.end_term(now, "the stream is not to be split after all".to_owned());
                (self.records_until, self.begun_before) = (None, None);
                Cancelled::WithTerm
            }
            _ => Cancelled::No,
        }
    }

    /// What is asked of a stream that is split, or is being split: of all that can be asked about it has its quarantine alone, since
    /// what is unfinished or dead is in its parts, or on the way there.
    fn grant_of_split(&mut self, now: u64, request: &Request, mode: &Mode) -> Result<(), String> {
        let into = mode.parts().unwrap_or_default();
        let is_done = matches!(mode, Mode::Routed { .. });
        match &request.what {
            RequestKind::Redeliver { .. } | RequestKind::Discard { .. } | RequestKind::Release { .. } => {
                Err(match is_done {
                    true => format!(
                        "the stream is split into {into} parts, and what is unfinished or dead is in those: ask again"
                    ),
                    false => format!("the stream is being split into {into} parts: ask again when that is done"),
                })
            }
            RequestKind::CancelRepartition => Err(match is_done {
                true => format!("it is split into {into} parts, and stays so"),
                false => format!("it has begun to hand over to {into} parts: there is no way back"),
            }),
            RequestKind::Repartition { parts } if *parts == into => Ok(()),
            RequestKind::Repartition { .. } => Err(match is_done {
                true => format!("it is split into {into} parts, and stays so; each of them can be split again"),
                false => format!("it is being split into {into} parts: wait until that is done"),
            }),
            RequestKind::Requeue { .. }
            | RequestKind::DiscardQuarantined { .. }
            | RequestKind::AcceptRegistry { .. }
            | RequestKind::Unknown { .. } => self.grant(now, request),
        }
    }

    /// Nothing more is read. What stands in the way in Redis is found when everything here is settled.
    fn split_into(&mut self, now: u64, parts: u32) -> Result<(), String> {
        let most = self.settings.most_parts;
        let why = match parts {
            _ if most == 0 => "its name has a hash tag, so all its parts would share one slot of Redis".to_owned(),
            0 | 1 => "a stream is split into at least 2 parts".to_owned(),
            _ if parts > most => format!("it can have at most {most} parts: {MAX_PARTS} over all levels"),
            _ if self.wish.is_some() => "it is about to be split".to_owned(),
            _ if self.is_under_pressure => "Redis has little memory left".to_owned(),
            _ => {
                self.wish = Some(Wish { parts, until: now + SPLIT_GRACE_MS });
                return Ok(());
            }
        };
        Err(why)
    }

    pub(super) fn grant(&mut self, now: u64, request: &Request) -> Result<(), String> {
        let redis_ms = self.redis_now(now);
        let mark: Mark = serde_json::from_slice(&request.mark)
            .map_err(|error| format!("the request does not say who asks and why: {error}"))?;
        let missing = || NO_SUCH_LETTER.to_owned();
        if let Some(operation) = &request.held_by {
            return Err(format!("{operation} has it under way: wait until it has ended, or cancel that operation"));
        }
        match &request.what {
            // Redis showed what it had before that is settled which another request was granted.
            RequestKind::Redeliver { id, .. } | RequestKind::Discard { id, .. } if self.core.takes_letter(id) => {
                return Err(missing());
            }
            RequestKind::Requeue { entry, .. } | RequestKind::DiscardQuarantined { entry, .. }
                if self.core.takes_quarantined(*entry) =>
            {
                return Err(NO_SUCH_ENTRY.to_owned());
            }
            RequestKind::Redeliver { letter, .. } => {
                let letter = DeadLetter::from_record(letter.as_ref().ok_or_else(missing)?);
                let mut delivery = letter.map_err(|error| error.to_string())?.delivery;
                let is_of = |operation| delivery.redelivered.iter().any(|mark| is_why_of(&mark.why, operation));
                if request.operation.as_ref().is_some_and(is_of) {
                    return Err(TAKEN_BEFORE.to_owned());
                }
                let endpoint = &delivery.id.endpoint;
                match self.standing(endpoint) {
                    Standing::Ended { reason, .. } => {
                        return Err(format!("{endpoint} is {}: nothing can be delivered to it", reason.name()));
                    }
                    // Its id was given out again.
                    Standing::Serving(now) | Standing::Paused(now) if now.account != delivery.account => {
                        return Err(format!(
                            "{endpoint} is of {} now, and this is of {}",
                            now.account, delivery.account
                        ));
                    }
                    Standing::Serving(_) | Standing::Paused(_) | Standing::Unknown => {}
                }
                delivery.redeliver(mark, self.clock.birth(now));
                self.stand(now, &delivery.id.endpoint);
                self.core.revive(now, redis_ms, &delivery);
            }
            RequestKind::Discard { id, letter } => {
                let letter = letter.as_ref().ok_or_else(missing)?;
                self.core.discard(now, redis_ms, id, letter, &mark);
            }
            RequestKind::Release { endpoint, intent, head, meant } => {
                let none = || format!("{intent} has nothing unfinished at {endpoint}");
                let (id, record) = head.as_ref().ok_or_else(none)?;
                let record = record.as_ref().ok_or_else(none)?;
                if let Some(meant) = meant.filter(|meant| *meant != id.entry) {
                    return Err(format!("{meant}:{endpoint} is not the head of {intent} any more: {id} is"));
                }
                self.stand(now, endpoint);
                let delivery = match Delivery::from_record(record) {
                    Ok(delivery) if delivery.id == *id => delivery,
                    Ok(other) => return Err(format!("the record of {id} is of another delivery, {}", other.id)),
                    // The letter is the record as it is, and just as unreadable: it can be looked at and discarded.
                    Err(_) => return Ok(self.core.release_unreadable(now, redis_ms, id, intent, record)?),
                };
                let detail = format!("released by {}: {}", mark.by, mark.why);
                self.core.release(now, redis_ms, delivery, detail)?;
            }
            RequestKind::Requeue { exists: false, .. } | RequestKind::DiscardQuarantined { exists: false, .. } => {
                return Err(NO_SUCH_ENTRY.to_owned());
            }
            RequestKind::Requeue { cut: true, .. } => {
                return Err("it was not kept whole, or has no field \"event\": have it published anew".to_owned());
            }
            RequestKind::Requeue { entry, .. } => {
                self.core.push_item(now, Item::Requeue { entry: *entry });
                self.term.more_entries = true;
            }
            RequestKind::DiscardQuarantined { entry, .. } => {
                self.core.push_item(now, Item::DiscardQuarantined { entry: *entry });
            }
            RequestKind::AcceptRegistry { registry } => {
                self.bound = Some(registry.clone());
                self.registry_changed(now, None);
                self.core.push_item(now, Item::Bind { registry: registry.clone() });
            }
            RequestKind::Repartition { parts } => self.split_into(now, *parts)?,
            // It is not about to be split, or not any more.
            RequestKind::CancelRepartition => {}
            RequestKind::Unknown { why } => return Err(why.clone()),
        }
        Ok(())
    }
}
