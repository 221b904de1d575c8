//! What is done with all dead letters that a filter finds: a page that says how many. Operators plan an operation there; a merchant,
//! who has none, sends their own again, a hundred in each of the API's calls.

use std::time::Duration;

use askama::Template;
use axum::response::Response;
use serde_json::json;

use super::{
    answers::{LetterLine, List, Results},
    asking::with_query,
    filters,
    letters::{FILTERS, told},
    page::{Frame, shown},
    session::Notice,
    visit::{Fields, Visit},
};
use crate::{clock, facts::id::DeliveryId, http::problem::Problem, view::words};

/// What one press of a button does: some seconds' work. There may be more, and then it is pressed again.
const AT_ONCE: usize = 1_000;

/// And no longer than this: a request has a minute.
const WITHIN: Duration = Duration::from_secs(40);

/// What one press looks through to find those that come first in the stream.
const MOST: usize = 10_000;

/// Of one call.
const OF_CALL: usize = 100;

#[derive(Template)]
#[template(path = "console/bulk.html", escape = "visible")]
struct BulkPage {
    frame: Frame,
    asked: Vec<(String, String)>,
    total: u64,
    sample: Vec<LetterLine>,
    /// Letters that die later are not meant.
    until: String,
    place: String,
    at_once: usize,
    may_keep: bool,
    may_operate: bool,
}

pub async fn confirm(visit: Visit) -> Result<Response, Problem> {
    let mut asked = visit.query(&FILTERS);
    let until = asked.iter().position(|(name, _)| name == "until").map(|at| asked.remove(at).1);
    let until = until.unwrap_or_else(|| crate::view::time::Time(visit.now_ms()).text());
    let mut query = asked.clone();
    query.push(("until".to_owned(), until.clone()));
    query.push(("limit".to_owned(), "5".to_owned()));
    let letters: List<LetterLine> = visit.get(&with_query("/v1/dead-letters", &query)).await?;
    let page = BulkPage {
        frame: visit.frame("All dead letters that were found").still(),
        place: with_query("/console/dead-letters", &asked),
        asked,
        total: letters.total,
        sample: letters.items,
        until,
        at_once: AT_ONCE,
        may_keep: visit.may_keep(),
        may_operate: visit.may_operate(),
    };
    Ok(shown(&page))
}

pub async fn redeliver(visit: Visit, fields: Fields) -> Result<Response, Problem> {
    all(&visit, &fields).await
}

/// As many as were seen when somebody said yes, and no others: the number that they typed is the number that there is.
async fn all(visit: &Visit, fields: &Fields) -> Result<Response, Problem> {
    let (mut ids, total) = found(visit, fields).await?;
    if fields.get("confirmed").replace(' ', "") != total.to_string() {
        let there = words::count(total, "letter", "letters");
        let says = format!("Nothing was done: it is {there} now, and the number that was typed is another one.");
        return Ok(visit.back(fields.get("back"), &Notice::bad(says)));
    }
    if total > ids.len() as u64 {
        let most = words::number(MOST as u64);
        let says =
            format!("Nothing was done: more than {most} letters at a time would leave their order. Narrow the filter.");
        return Ok(visit.back(fields.get("back"), &Notice::bad(says)));
    }
    // As they lie in the stream: an intent's events go out again in their order.
    ids.sort_unstable();
    let (mut results, ends) = (Results::default(), clock::now() + WITHIN);
    for some in ids.chunks(OF_CALL).take(AT_ONCE / OF_CALL) {
        let ids: Vec<String> = some.iter().map(ToString::to_string).collect();
        let body = json!({ "ids": ids, "reason": fields.get("reason") });
        let answer: Results = visit.post("/v1/dead-letters/redeliver", &body).await?;
        results.done += answer.done;
        results.refused += answer.refused;
        results.unanswered += answer.unanswered;
        results.items.extend(answer.items.into_iter().find(|item| item.why.is_some()));
        if answer.refused + answer.unanswered > 0 || clock::now() > ends {
            break;
        }
    }
    let mut notice = told(&results, "sent again", ["letter was", "letters were"]);
    let left = total.saturating_sub(results.done);
    if left > 0 && notice.is_good && results.unanswered == 0 {
        notice.says += &format!(" {} are left: do it again for the next ones.", words::number(left));
    }
    Ok(visit.back(fields.get("back"), &notice))
}

/// Their ids, and how many the filter finds in all.
async fn found(visit: &Visit, fields: &Fields) -> Result<(Vec<DeliveryId>, u64), Problem> {
    const OF_PAGE: &str = "500";
    let mut query: Vec<(&str, String)> = FILTERS.iter().map(|name| (*name, fields.get(name).to_owned())).collect();
    query.retain(|(_, value)| !value.is_empty());
    query.push(("limit", OF_PAGE.to_owned()));
    let (mut ids, mut total, mut next) = (Vec::new(), None, None);
    loop {
        let cursor = next.map(|next| ("cursor", next));
        let asked: Vec<_> = query.iter().cloned().chain(cursor).collect();
        let page: List<LetterLine> = visit.get(&with_query("/v1/dead-letters", &asked)).await?;
        ids.extend(page.items.iter().filter_map(|letter| letter.id.parse::<DeliveryId>().ok()));
        let total = *total.get_or_insert(page.total);
        next = page.next;
        if next.is_none() || ids.len() >= MOST {
            return Ok((ids, total));
        }
    }
}
