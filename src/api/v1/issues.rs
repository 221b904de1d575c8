//! Issues: what fails where, why and since when, and what operators say of it. For operators, as it tells causes and details.

use std::ops::Range;

use axum::{
    Json,
    extract::{Path, State},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Api,
    access::{Caller, Operator, Staff},
    request::{
        Body, ChangeRefusals, Cursor, Page, Params, Reason, Refusals, limit, named, of_store, optional, reason,
        wrong_cursor,
    },
};
use crate::{
    facts::{
        audit::Act,
        endpoint::Mark,
        id::{AccountId, EndpointId},
        issue::{Issue, IssueId, Said, State as IssueState},
    },
    http::problem::Problem,
    store::{connection::Connection, issues::IssueStore, queries::IssuesLook, registry::RegistryStore},
    view::{
        issue::{IssueView, with_sample},
        time::Time,
    },
};

type Answer<T> = Result<Json<T>, Problem>;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Only of this account.
    account: Option<String>,
    /// Only of this endpoint.
    endpoint: Option<String>,
    /// Those that are resolved, too.
    all: Option<bool>,
    /// At most so many, 1 to 500.
    limit: Option<String>,
    /// `next` or `prev` of another page of this list.
    cursor: Option<String>,
}

/// The most urgent first.
#[derive(Serialize, ToSchema)]
pub struct Issues {
    #[serde(flatten)]
    page: Page<IssueView>,
    /// Of the whole list.
    total: u64,
    /// Whether a worker owns the partition, and so keeps up to date what is said of attempts.
    has_owner: bool,
    /// When one last wrote something of it.
    as_of: Option<Time>,
}

/// List issues, the most urgent first.
#[utoipa::path(
    get, path = "/v1/issues", tag = "Issues", params(ListQuery), responses((status = 200, body = Issues), Refusals)
)]
pub async fn list(State(api): State<Api>, Staff(_): Staff, Params(query): Params<ListQuery>) -> Answer<Issues> {
    let account = optional::<AccountId>("account", query.account.as_ref())?;
    let endpoint = optional::<EndpointId>("endpoint", query.endpoint.as_ref())?;
    let (all, limit) = (query.all.unwrap_or(false), limit(query.limit.as_ref())?);
    let cursor = Cursor::read(query.cursor.as_ref())?;
    let IssuesSeen { look, has_owner, unavailable, .. } = api.issues().await?;
    let wants = |issue: &&Issue| {
        (all || issue.state != IssueState::Resolved)
            && (account.is_none() || account == issue.account)
            && endpoint.as_ref().is_none_or(|endpoint| *endpoint == issue.id.endpoint)
    };
    let wanted: Vec<&Issue> = look.issues.iter().filter(wants).collect();
    let ids: Vec<&IssueId> = wanted.iter().map(|issue| &issue.id).collect();
    let Part { range, next, prev } = part(&ids, cursor.as_ref(), limit)?;
    let items =
        wanted.iter().take(range.end).skip(range.start).map(|issue| IssueView::of(issue, &look.endpoints)).collect();
    let page = Page { items, next: next.map(|next| next.text()), prev: prev.map(|prev| prev.text()), unavailable };
    Ok(Json(Issues { page, total: wanted.len() as u64, has_owner, as_of: look.survey.as_of_ms.map(Time) }))
}

/// All of them, as of one moment by Redis' clock.
struct IssuesSeen {
    look: IssuesLook,
    has_owner: bool,
    now_ms: u64,
    unavailable: Vec<String>,
}

/// A page of them.
struct Part {
    range: Range<usize>,
    next: Option<Cursor>,
    prev: Option<Cursor>,
}

/// Which of them a page has, and the cursors to those behind and before it. A cursor names an issue and its place: their order
/// changes, and some are over by the time that somebody goes on.
fn part(ids: &[&IssueId], cursor: Option<&Cursor>, limit: usize) -> Result<Part, Problem> {
    let range = match cursor {
        None => 0..limit,
        Some(Cursor::After(key)) => {
            let (at, is_there) = place(key, ids)?;
            let begin = at + usize::from(is_there);
            begin..begin + limit
        }
        Some(Cursor::Before(key)) => {
            let (at, _) = place(key, ids)?;
            at.saturating_sub(limit)..at
        }
    };
    let range = range.start.min(ids.len())..range.end.min(ids.len());
    let key = |at: usize| Some(format!("{at} {}", ids.get(at)?));
    let next = key(range.end.saturating_sub(1)).filter(|_| range.end > 0 && range.end < ids.len()).map(Cursor::After);
    let prev = key(range.start).filter(|_| range.start > 0).map(Cursor::Before);
    Ok(Part { range, next, prev })
}

/// Where the issue of a cursor stands now; or where it stood, if it is over.
fn place(key: &str, ids: &[&IssueId]) -> Result<(usize, bool), Problem> {
    let read = |(at, id): (&str, &str)| Some((at.parse::<usize>().ok()?, id.parse::<IssueId>().ok()?));
    let (at, id) = key.split_once(' ').and_then(read).ok_or_else(wrong_cursor)?;
    let found = ids.iter().position(|known| **known == id);
    Ok((found.unwrap_or(at.min(ids.len())), found.is_some()))
}

/// Show one with its diagnosis and a text for the merchant.
#[utoipa::path(
    get, path = "/v1/issues/{issue}", tag = "Issues", params(("issue" = String, Path)),
    responses((status = 200, body = IssueView), Refusals)
)]
pub async fn show(State(api): State<Api>, Staff(_): Staff, Path(id): Path<String>) -> Answer<IssueView> {
    let (look, issue, _) = api.issue(&named(&id)?).await?;
    let issue = api.queries(async |queries| with_sample(queries, issue).await).await?;
    Ok(Json(IssueView::of(&issue, &look.endpoints)))
}

/// Say that somebody knows of it and deals with it.
#[utoipa::path(
    post, path = "/v1/issues/{issue}/ack", tag = "Issues", params(("issue" = String, Path)), request_body = Reason,
    responses((status = 200, body = IssueView), Refusals, ChangeRefusals)
)]
pub async fn ack(
    State(api): State<Api>,
    Operator(caller): Operator,
    Path(id): Path<String>,
    body: Body,
) -> Answer<IssueView> {
    api.say(&caller, &id, &body, IssueState::Acknowledged, Act::IssueAck).await
}

/// Say that it is mended; if it happens again, it opens anew.
#[utoipa::path(
    post, path = "/v1/issues/{issue}/resolve", tag = "Issues", params(("issue" = String, Path)), request_body = Reason,
    responses((status = 200, body = IssueView), Refusals, ChangeRefusals)
)]
pub async fn resolve(
    State(api): State<Api>,
    Operator(caller): Operator,
    Path(id): Path<String>,
    body: Body,
) -> Answer<IssueView> {
    api.say(&caller, &id, &body, IssueState::Resolved, Act::IssueResolve).await
}

impl Api {
    /// All that there are.
    async fn issues(&self) -> Result<IssuesSeen, Problem> {
        let _place = self.0.heavy.take_for_staff().await?;
        let look = async |connection: Connection| {
            let mut queries = self.partitions(connection.clone()).await?;
            let (has_owner, now_ms) = (queries.are_owned(None).await?, queries.now_ms().await?);
            let look = queries.issues(&mut RegistryStore::on(connection), now_ms).await?;
            Ok(IssuesSeen { look, has_owner, now_ms, unavailable: queries.unavailable() })
        };
        self.0.connection.with(look).await.map_err(|error| of_store(&error))
    }

    async fn issue(&self, id: &IssueId) -> Result<(IssuesLook, Issue, u64), Problem> {
        let IssuesSeen { look, now_ms, .. } = self.issues().await?;
        let issue = look.issues.iter().find(|issue| issue.id == *id).cloned().ok_or_else(Problem::not_found)?;
        Ok((look, issue, now_ms))
    }

    async fn say(&self, caller: &Caller, id: &str, body: &Body, state: IssueState, act: Act) -> Answer<IssueView> {
        let why = reason(&body.read(&self.0.schemas.reason)?.reason)?;
        let (look, mut issue, now_ms) = self.issue(&named(id)?).await?;
        let begun = caller.begun(self, act, &why).endpoint(&issue.id.endpoint).target(&issue.id);
        let begun = issue.account.iter().fold(begun, |begun, account| begun.account(account));
        // By Redis' clock, so that it can be told what happened afterwards.
        let said = Said { state, mark: Mark { at_ms: now_ms, ..caller.mark(&why) } };
        let keys = self.queries(async |queries| Ok(queries.home_of(&issue.id.endpoint).await)).await?;
        let say = async |connection| IssueStore::new(connection, keys.clone()).say(&issue.id, &said).await;
        let write = async |_: &mut _| self.0.connection.with(say).await.map_err(|error| of_store(&error));
        self.0.audit.audited(begun, write).await?;
        (issue.state, issue.said) = (state, Some(said));
        Ok(Json(IssueView::of(&issue, &look.endpoints)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_issues_go_forth_and_back_also_when_one_is_over_meanwhile() {
        let all: Vec<IssueId> = (0..5).map(|n| format!("ep_{n}:rejected:404").parse().unwrap()).collect();
        let all: Vec<&IssueId> = all.iter().collect();
        let first = part(&all, None, 2).unwrap();
        assert_eq!((first.range, first.prev), (0..2, None));
        let second = part(&all, first.next.as_ref(), 2).unwrap();
        assert_eq!(second.range, 2..4);
        assert_eq!(part(&all, second.prev.as_ref(), 2).unwrap().range, 0..2);
        let last = part(&all, second.next.as_ref(), 2).unwrap();
        assert_eq!((last.range, last.next), (4..5, None));
        // The second is over: what stood behind it is in its place.
        let left = [all[0], all[2], all[3], all[4]];
        assert_eq!(part(&left, first.next.as_ref(), 2).unwrap().range, 1..3);
        for wrong in ["", "1", "x ep_1:rejected:404", "1 nothing"] {
            assert!(part(&all, Some(&Cursor::After(wrong.to_owned())), 2).is_err(), "{wrong}");
        }
        // A place that no page gave leads nowhere, and no further.
        let far = Cursor::After(format!("{} ep_9:rejected:404", usize::MAX));
        assert_eq!(part(&all, Some(&far), 2).unwrap().range, 5..5);
    }
}
