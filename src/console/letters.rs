//! Dead letters: what they have in common, a list of them, and single ones sent again or dropped.

use askama::Template;
use axum::response::Response;
use serde_json::json;

use super::{
    answers::{Group, LetterLine, List, Results},
    asking::with_query,
    filters,
    page::{Frame, shown},
    session::Notice,
    visit::{Fields, Visit},
};
use crate::{http::problem::Problem, view::words};

/// As in the API and of `herald dead-letter list`.
pub const FILTERS: [&str; 8] = ["account", "endpoint", "dead_reason", "cause", "intent", "event", "since", "until"];
const PAGED: [&str; 10] =
    ["account", "endpoint", "dead_reason", "cause", "intent", "event", "since", "until", "limit", "cursor"];

/// Which of these narrow groups.
const OF_GROUPS: [&str; 6] = ["by", "account", "endpoint", "dead_reason", "since", "until"];

/// Groups that are shown; the largest.
const MAX_GROUPS: usize = 20;

const REASONS: [&str; 6] = ["exhausted", "expired", "gone", "disabled", "deleted", "released"];

/// A group, and the page that shows its letters alone.
struct Grouped {
    group: Group,
    place: String,
}

#[derive(Template)]
#[template(path = "console/letters.html", escape = "visible")]
struct LettersPage {
    frame: Frame,
    letters: List<LetterLine>,
    groups: Vec<Grouped>,
    by: String,
    asked: Vec<(String, String)>,
    reasons: [&'static str; 6],
    /// To what is done with all that the filter finds.
    all: String,
    next: Option<String>,
    prev: Option<String>,
    is_staff: bool,
    may_keep: bool,
    may_operate: bool,
}

impl LettersPage {
    fn value(&self, name: &str) -> &str {
        self.asked.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }
}

pub async fn list(visit: Visit) -> Result<Response, Problem> {
    let letters: List<LetterLine> = visit.get_filtered("/v1/dead-letters", &PAGED).await?;
    let (next, prev) = (letters.next.as_ref(), letters.prev.as_ref());
    let (next, prev) = (visit.with_cursor(&PAGED, next), visit.with_cursor(&PAGED, prev));
    let asked = visit.query(&FILTERS);
    let page = LettersPage {
        frame: visit.frame("Dead letters"),
        groups: groups(&visit).await?,
        by: visit.asked("by"),
        reasons: REASONS,
        all: with_query("/console/dead-letters/all", &asked),
        asked,
        letters,
        next,
        prev,
        is_staff: visit.is_staff(),
        may_keep: visit.may_keep(),
        may_operate: visit.may_operate(),
    };
    Ok(shown(&page))
}

async fn groups(visit: &Visit) -> Result<Vec<Grouped>, Problem> {
    if visit.asked("by").is_empty() {
        return Ok(Vec::new());
    }
    let groups: Vec<Group> = visit.get_filtered("/v1/dead-letters/groups", &OF_GROUPS).await?;
    let place = |group: &Group| {
        let mut query = visit.query(&FILTERS);
        let Group { endpoint, account, reason, cause, .. } = group;
        for (name, value) in [("endpoint", endpoint), ("account", account), ("dead_reason", reason), ("cause", cause)] {
            let Some(value) = value else { continue };
            query.retain(|(known, _)| known != name);
            query.push((name.to_owned(), value.clone()));
        }
        with_query("/console/dead-letters", &query)
    };
    Ok(groups.into_iter().take(MAX_GROUPS).map(|group| Grouped { place: place(&group), group }).collect())
}

pub async fn redeliver(visit: Visit, fields: Fields) -> Result<Response, Problem> {
    chosen(&visit, &fields, "/v1/dead-letters/redeliver", "sent again").await
}

pub async fn discard(visit: Visit, fields: Fields) -> Result<Response, Problem> {
    let count = fields.all("ids").len();
    if fields.get("confirmed") != count.to_string() {
        let chosen = words::count(count as u64, "letter is", "letters are");
        let says = format!("Nothing was discarded: {chosen} chosen, and the number that was typed is another one.");
        return Ok(visit.back(fields.get("back"), &Notice::bad(says)));
    }
    chosen(&visit, &fields, "/v1/dead-letters/discard", "discarded").await
}

async fn chosen(visit: &Visit, fields: &Fields, path: &str, done: &str) -> Result<Response, Problem> {
    let ids = fields.all("ids");
    if ids.is_empty() {
        return Ok(visit.back(fields.get("back"), &Notice::bad("Nothing was done: no letter was chosen.")));
    }
    let results: Results = visit.post(path, &json!({ "ids": ids, "reason": fields.get("reason") })).await?;
    Ok(visit.back(fields.get("back"), &told(&results, done, ["letter was", "letters were"])))
}

/// What became of them, in a sentence or two.
pub fn told(results: &Results, done: &str, of: [&str; 2]) -> Notice {
    let Results { done: count, refused, unanswered, items } = results;
    let mut says = format!("{} {done}.", words::count(*count, of[0], of[1]));
    if *unanswered > 0 {
        says += &format!(" {} not answered yet: it is done when a worker comes to it.", words::number(*unanswered));
    }
    if *refused > 0 {
        let why = items.iter().find_map(|item| Some(format!("{}: {}", item.id, item.why.as_ref()?)));
        says += &format!(" {} refused; {}.", words::number(*refused), why.unwrap_or_default());
    }
    if *refused == 0 { Notice::good(says) } else { Notice::bad(says) }
}
