//! What a worker was told to be settled, whatever Redis forgets of it afterwards: as long as nobody else owns the partition, none of
//! it is sent again. And what an operator asks for is sent, whatever was settled before.

use herald::{facts::log::LogLine, store::protocol::Settlement};

use super::*;

/// How often a delivery was redelivered, and when that was last asked for.
pub type Redelivery = (usize, u64);

/// An attempt: its delivery and event, its number, and the redelivery that it belongs to.
type Attempt = (DeliveryId, u64, u32, Redelivery);

/// What one worker was told, in its life and since nobody else owned the partition.
#[derive(Debug, Default)]
pub struct Confirmed {
    /// The attempts that it has made.
    made: BTreeMap<(DeliveryId, u64, u32), Redelivery>,
    /// In the settle that is on its way, and whether it delivered.
    sent: Vec<(Attempt, bool)>,
    settled: BTreeMap<Attempt, bool>,
}

impl Confirmed {
    pub fn sends(&mut self, settlement: &Settlement) {
        // Its change was refused before, and only the line is left of it.
        let is_whole = |line: &LogLine| {
            let is_acknowledged = line.outcome.is_delivered() && settlement.acks.contains(&line.delivery.entry);
            let changes = |item: &Item| match item {
                Item::Finish { id, .. } | Item::Keep { id, .. } | Item::Bury { id, .. } => *id == line.delivery,
                _ => false,
            };
            is_acknowledged || settlement.items.iter().any(changes)
        };
        let attempts = settlement.log.iter().filter_map(|line| match Logged::read(line) {
            Ok(Logged::Attempt(line)) => Some(line).filter(is_whole),
            _ => None,
        });
        let of = |line: LogLine| {
            let made = (line.delivery.clone(), index_of(line.event.as_str()) as u64, line.attempt);
            // What was settled again was perhaps not made by this number.
            let redelivery = self.made.get(&made).copied()?;
            Some(((made.0, made.1, made.2, redelivery), line.outcome.is_delivered()))
        };
        self.sent = attempts.filter_map(of).collect();
    }

    fn makes(&mut self, attempt: &Attempt) {
        let (delivery, event, number, redelivery) = attempt.clone();
        self.made.insert((delivery, event, number), redelivery);
    }

    /// What was settled says that this attempt is not to be made.
    fn excludes(&self, (delivery, event, number, redelivery): &Attempt) -> bool {
        let from = (delivery.clone(), *event, *number, Redelivery::default());
        let later = self.settled.range(from..).take_while(|((of, which, ..), _)| of == delivery && which == event);
        later.into_iter().any(|((.., settled, of), is_delivered)| {
            let is_it = settled == number && of == redelivery;
            is_it || *is_delivered && (redelivery.0 == 0 || of == redelivery)
        })
    }
}

fn redelivery_of(delivery: &Delivery) -> Redelivery {
    (delivery.redelivered.len(), delivery.redelivered.last().map_or(0, |mark| mark.at_ms))
}

/// A mutation: one redelivery is like any other.
pub fn forget_when((_, record): &mut Kept) {
    let delivery = record.as_ref().and_then(|record| Delivery::from_record(record).ok());
    if let Some(mut delivery) = delivery.filter(|delivery| !delivery.redelivered.is_empty()) {
        delivery.redelivered.iter_mut().for_each(|mark| mark.at_ms = 0);
        *record = Some(delivery.to_record());
    }
}

impl World {
    /// Of what is about to be sent.
    pub(super) fn is_not_settled(&mut self, worker: usize, delivery: &Delivery, event: u64) {
        let attempt = (delivery.id.clone(), event, delivery.next_attempt(), redelivery_of(delivery));
        self.tally.checked(Promise::FewDuplicates);
        if self.workers[worker].confirmed.excludes(&attempt) {
            self.wrong(Promise::FewDuplicates, || {
                format!("its owner was told that attempt {} of {} is settled, and makes it again", attempt.2, attempt.0)
            });
        }
        self.workers[worker].confirmed.makes(&attempt);
        let record = self.model.records.get(&delivery.id).and_then(|record| Delivery::from_record(record).ok());
        for redelivery in [Some(attempt.3), record.as_ref().map(redelivery_of)].into_iter().flatten() {
            if redelivery.0 > 0 {
                self.redelivered.insert((delivery.id.clone(), redelivery));
            }
        }
    }

    pub(super) fn hears_of_settled(&mut self, worker: usize, answer: &mut Result<Answer, Failure>) {
        let found = &mut self.workers[worker];
        match answer {
            Ok(Answer::Settled { .. }) => {
                let again =
                    found.confirmed.sent.iter().filter(|(attempt, _)| found.confirmed.settled.contains_key(attempt));
                let again = again.count();
                let sent = std::mem::take(&mut found.confirmed.sent);
                found.confirmed.settled.extend(sent);
                (0..again).for_each(|_| self.tally.count("settled_again"));
            }
            // What it knows is now for somebody else to find out.
            Ok(Answer::Taken { .. } | Answer::Reserved { .. } | Answer::Gated { .. }) => {
                found.confirmed = Confirmed::default();
            }
            Ok(Answer::Acquired { .. }) if self.mutation == Some(Mutation::SettledForgotten) => {
                let is_told = std::mem::replace(&mut found.was_turned_away, false);
                if !is_told {
                    found.was_turned_away = true;
                    *answer = Ok(Answer::Taken { left_ms: 1, by: String::new() });
                }
            }
            _ => {}
        }
    }

    /// What a settle is about to end as delivered that was redelivered once.
    pub(super) fn finishes_redelivered(&self, call: &Call) -> Vec<(DeliveryId, Redelivery)> {
        let Call::Settle { settlement, .. } = call else { return Vec::new() };
        let of = |item: &Item| {
            let Item::Finish { id, .. } = item else { return None };
            let redelivery = redelivery_of(&Delivery::from_record(self.model.records.get(id)?).ok()?);
            (redelivery.0 > 0).then(|| (id.clone(), redelivery))
        };
        settlement.items.iter().filter_map(of).collect()
    }

    /// Now that it is settled.
    pub(super) fn were_attempted(&mut self, finished: Vec<(DeliveryId, Redelivery)>) {
        for redelivered in finished {
            self.tally.checked(Promise::AtLeastOnce);
            if self.redelivered.iter().any(|(id, before)| *id == redelivered.0 && *before != redelivered.1) {
                self.tally.count("redelivered_again");
            }
            if !self.redelivered.contains(&redelivered) {
                self.wrong(Promise::AtLeastOnce, || {
                    format!("{} was redelivered and has ended without an attempt", redelivered.0)
                });
            }
        }
    }
}
