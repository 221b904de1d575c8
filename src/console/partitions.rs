//! The stream and its parts, what waits in each, and who works on them.

use askama::Template;
use axum::response::Response;

use super::{
    answers::{List, Partition, Worker},
    filters,
    page::{Frame, shown},
    visit::Visit,
};
use crate::{http::problem::Problem, view::words};

/// Those without an owner that are named; the table has all of them.
const MAX_NAMED: usize = 8;

#[derive(Template)]
#[template(path = "console/partitions.html", escape = "visible")]
struct PartitionsPage {
    frame: Frame,
    partitions: Vec<Partition>,
    alarm: Option<String>,
    /// None while the server that knows them does not answer.
    workers: Option<Vec<Worker>>,
}

pub async fn list(visit: Visit) -> Result<Response, Problem> {
    let partitions: List<Partition> = visit.get("/v1/partitions").await?;
    let mut workers: Option<Vec<Worker>> = visit.find("/v1/workers").await;
    let (frame, partitions) = (visit.frame("Partitions"), partitions.items);
    for worker in workers.iter_mut().flatten() {
        worker.owned = named_briefly(worker, &partitions);
    }
    Ok(shown(&PartitionsPage { frame, alarm: alarm(&partitions), partitions, workers }))
}

/// What it owns, in the order of the partitions; a part by its number alone, as a worker may have hundreds.
fn named_briefly(worker: &Worker, partitions: &[Partition]) -> Vec<String> {
    let place = |stream: &String| partitions.iter().position(|one| one.stream == *stream).unwrap_or(usize::MAX);
    let mut owned: Vec<&String> = worker.owned.iter().collect();
    owned.sort_by_key(|stream| place(stream));
    let brief = |stream: &String| match stream.strip_prefix(&worker.stream) {
        Some(part) if part.starts_with(':') => part.to_owned(),
        _ => stream.clone(),
    };
    owned.into_iter().map(brief).collect()
}

fn alarm(partitions: &[Partition]) -> Option<String> {
    let orphans: Vec<&str> =
        partitions.iter().filter(|one| one.owner.is_none()).map(|one| one.stream.as_str()).collect();
    let named = orphans.iter().take(MAX_NAMED).copied().collect::<Vec<_>>().join(", ");
    let more = match orphans.len().saturating_sub(MAX_NAMED) {
        0 => String::new(),
        more => format!(" and {} more", words::number(more as u64)),
    };
    (!orphans.is_empty()).then(|| format!("Nobody works on {named}{more}."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_worker_owns_is_named_in_the_order_of_the_partitions() {
        let names = ["pay", "pay:2", "pay:2:0", "pay:10"].map(str::to_owned);
        let partitions = names.clone().map(|stream| Partition { stream, ..Partition::default() });
        let mut owned = names.to_vec();
        owned.sort();
        owned.push("pays".to_owned());
        let worker = Worker { stream: "pay".to_owned(), owned, ..Worker::default() };
        assert_eq!(named_briefly(&worker, &partitions), ["pay", ":2", ":2:0", ":10", "pays"]);
    }

    #[test]
    fn what_nobody_works_on_is_named_up_to_a_number() {
        let of = |count: usize, owner: Option<&str>| -> Vec<Partition> {
            let owner = owner.map(str::to_owned);
            (0..count)
                .map(|n| Partition { stream: format!("s:{n}"), owner: owner.clone(), ..Partition::default() })
                .collect()
        };
        assert_eq!(alarm(&of(3, Some("one"))), None);
        assert_eq!(alarm(&of(2, None)).as_deref(), Some("Nobody works on s:0, s:1."));
        let ends = "s:7 and 1 002 more.";
        assert!(alarm(&of(1_010, None)).is_some_and(|says| says.ends_with(ends)));
    }
}
