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
    let workers = visit.find("/v1/workers").await;
    let (frame, partitions) = (visit.frame("Partitions"), partitions.items);
    Ok(shown(&PartitionsPage { frame, alarm: alarm(&partitions), partitions, workers }))
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
