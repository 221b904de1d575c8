//! Following an operation until it ends. Whoever stops following does not stop the operation.

use std::time::{Duration, Instant};

use super::operations;
use crate::{
    clock,
    facts::{
        id::OperationId,
        operation::{Operation, Rate, State},
    },
    store::operations::{AllOperations, OperationError},
    surface::{Context, VerbError, note, words},
    view::operation::OperationView,
};

/// How often it is looked at, and how often a line says how far it is.
const LOOK: Duration = Duration::from_millis(200);
const TELL: Duration = Duration::from_secs(2);

/// Looks at one that has ended, for its end to be in the audit log.
const LOOKS_AT_ENDED: u32 = 15;

/// Says how far it is until it has ended. That some were not done is an error; that others were first is none.
pub async fn follow(context: &Context, id: &OperationId) -> anyhow::Result<()> {
    let mut operations = operations(context).await?;
    let until_end = until_ended(&mut operations, id);
    let operation = tokio::select! {
        operation = until_end => operation?,
        _ = tokio::signal::ctrl_c() => anyhow::bail!(
            "interrupted: {id} goes on all the same. Follow it with `herald operation watch {id}`, stop it with `herald operation \
             pause {id}` or `herald operation cancel {id}`"
        ),
    };
    context.output.one(&OperationView::of(&operation), &shown(&operation, context.now_ms()))?;
    let counts = operation.counts;
    if operation.state == State::Cancelled {
        return Err(VerbError::Refused(format!("{id} was cancelled before it was done")).into());
    }
    if counts.refused + counts.dead_again > 0 {
        let refused = words::count(counts.refused, "was refused", "were refused");
        let dead = words::count(counts.dead_again, "is dead again", "are dead again");
        let text = format!("{refused} and {dead}: `herald operation results {id}` says which and why");
        return Err(VerbError::Refused(text).into());
    }
    Ok(())
}

async fn until_ended(operations: &mut AllOperations, id: &OperationId) -> anyhow::Result<Operation> {
    let began = clock::now();
    let (mut first, mut told, mut told_at) = (None, String::new(), None::<Instant>);
    let mut looks_left = LOOKS_AT_ENDED;
    loop {
        let operation = operations.find(id).await?.ok_or_else(|| OperationError::Missing(id.clone()))?;
        if operation.state == State::Planned {
            let text = format!("{id} is not started: `herald operation start {id}` does");
            return Err(VerbError::Refused(text).into());
        }
        let ended = operation.counts.ended();
        let since = ended - (*first.get_or_insert(ended)).min(ended);
        let line = line(&operation, since, began.elapsed());
        let is_due = told_at.is_none_or(|at| at.elapsed() >= TELL) || operation.state.has_ended();
        if is_due && line != told {
            note(&line);
            (told, told_at) = (line, Some(clock::now()));
            let unowned = operations.unowned(id).await?;
            if !unowned.is_empty() {
                let streams =
                    if operations.partitions().are_many() { unowned.join(", ") } else { "the partition".into() };
                note(format_args!("no worker owns {streams}: it goes on when one does, see `herald doctor`"));
            }
        }
        // Its end is in the audit log then, unless its worker has died in between.
        if operation.state.has_ended() && (looks_left == 0 || !operations.is_open(id).await?) {
            return Ok(operation);
        }
        looks_left -= u32::from(operation.state.has_ended());
        tokio::time::sleep(LOOK).await;
    }
}

/// `200 of 250 delivered, 3 dead again; 16 under way; about 40s left; waits for ep_a: paused by ops: rest`.
fn line(operation: &Operation, since: u64, took: Duration) -> String {
    let counts = operation.counts;
    let (number, past) = (words::number, operation.plan.kind.past());
    let mut line = format!("{} of {} {past}", number(counts.done), number(operation.plan.count));
    let others = [(counts.dead_again, "dead again"), (counts.refused, "refused"), (counts.overtaken, "overtaken")];
    for (count, what) in others.into_iter().filter(|(count, _)| *count > 0) {
        line += &format!(", {} {what}", number(count));
    }
    if counts.open > 0 {
        line += &format!("; {} under way", number(counts.open));
    }
    match operation.state {
        State::Running if operation.waits.is_empty() => line += &time_left(operation, since, took),
        State::Running => line += &format!("; waits for {}", operation.waits.join(", ")),
        State::Done => {}
        state => line += &format!("; {}", state.name()),
    }
    line
}

fn time_left(operation: &Operation, since: u64, took: Duration) -> String {
    let left = operation.left() + operation.counts.open;
    let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    match took_ms.saturating_mul(left).checked_div(since).unwrap_or(0) / 1_000 {
        // Nobody reads it in less than a second.
        0 => String::new(),
        seconds => format!("; about {} left", words::span(seconds.saturating_mul(1_000))),
    }
}

/// All of it as a table of names and values.
pub fn shown(operation: &Operation, now_ms: u64) -> Vec<(&'static str, String)> {
    let Operation { id, plan, state, rate, counts, .. } = operation;
    let number = words::number;
    let mut rows = vec![
        ("id", id.to_string()),
        ("kind", plan.kind.name().to_owned()),
        ("state", state.name().to_owned()),
        ("of", format!("{}: {}", number(plan.count), plan.filter)),
        ("planned", format!("{} by {}: {}", words::when(plan.at_ms, now_ms), plan.by, plan.why)),
    ];
    let change = |by: &str, at_ms: u64| format!("{} by {by}", words::when(at_ms, now_ms));
    rows.extend(operation.started.iter().map(|started| ("started", change(&started.by, started.at_ms))));
    rows.extend(operation.changed.iter().map(|changed| ("changed", change(&changed.by, changed.at_ms))));
    rows.extend(operation.ended_ms.map(|at_ms| ("ended", words::when(at_ms, now_ms))));
    let whole = Rate::of(rate.rounded_up());
    let rate = if *rate == whole { number(rate.rounded_up().into()) } else { rate.to_string() };
    rows.push(("rate", format!("{rate} a second at most")));
    if operation.started.is_some() {
        rows.extend([
            (plan.kind.past(), number(counts.done)),
            ("dead again", number(counts.dead_again)),
            ("refused", number(counts.refused)),
            ("overtaken", number(counts.overtaken)),
            ("under way", number(counts.open)),
            ("not taken", number(operation.left())),
        ]);
    }
    rows.extend(operation.waits.iter().map(|waits| ("waits for", waits.clone())));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::operation::{Counts, Kind, OPERATION_SCHEMA, Plan, Selection, new_id};

    fn operation(counts: Counts) -> Operation {
        let plan = Plan {
            schema: OPERATION_SCHEMA,
            kind: Kind::Redeliver,
            selection: Selection::default(),
            filter: "--all".to_owned(),
            count: 1_000,
            by: "ops".to_owned(),
            why: "mended".to_owned(),
            at_ms: 1,
        };
        let (started, changed, ended_ms, audit) = (None, None, None, None);
        let (id, state, rate, waits) = (new_id(1, 1), State::Running, Rate::of(200), Vec::new());
        Operation { id, plan, state, rate, counts, started, changed, ended_ms, waits, audit }
    }

    #[test]
    fn progress_says_how_much_there_is_what_it_waits_for_and_how_long_it_will_take() {
        let some = operation(Counts { open: 10, done: 190, refused: 10, ..Counts::default() });
        let seconds = Duration::from_secs;
        assert_eq!(line(&some, 200, seconds(60)), "190 of 1 000 delivered, 10 refused; 10 under way; about 4m left");
        assert_eq!(line(&some, 0, seconds(0)), "190 of 1 000 delivered, 10 refused; 10 under way");
        let waits = vec!["ep_a: paused by ops: rest".to_owned()];
        let waiting = Operation { waits, ..some.clone() };
        assert!(line(&waiting, 200, seconds(60)).ends_with("; waits for ep_a: paused by ops: rest"));
        let counts = Counts { done: 998, dead_again: 2, ..Counts::default() };
        let done = Operation { state: State::Done, ..operation(counts) };
        assert_eq!(line(&done, 1_000, seconds(9)), "998 of 1 000 delivered, 2 dead again");
        let paused = Operation { state: State::Paused, ..some };
        assert!(line(&paused, 200, seconds(60)).ends_with("10 under way; paused"));
    }
}
