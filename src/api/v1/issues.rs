//! Issues: what fails where, why and since when, and what operators say of it. For operators, as it tells causes and details.

use axum::{
    Json,
    extract::{Path, State},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Api,
    access::{Caller, Operator, Staff},
    request::{Body, ChangeRefusals, Params, Reason, Refusals, limit, named, of_store, optional, reason},
};
use crate::{
    facts::{
        audit::Act,
        endpoint::Mark,
        id::{AccountId, EndpointId},
        issue::{Issue, IssueId, Said, State as IssueState},
    },
    http::problem::Problem,
    store::{
        connection::Connection,
        issues::IssueStore,
        queries::{IssuesLook, Queries},
        registry::RegistryStore,
    },
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
}

#[derive(Serialize, ToSchema)]
pub struct Issues {
    /// The most urgent first.
    items: Vec<IssueView>,
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
    let has_owner = api.queries(async |queries| queries.lease().await).await?.is_some();
    let (look, _) = api.issues().await?;
    let wants = |issue: &&Issue| {
        (all || issue.state != IssueState::Resolved)
            && (account.is_none() || account == issue.account)
            && endpoint.as_ref().is_none_or(|endpoint| *endpoint == issue.id.endpoint)
    };
    let wanted: Vec<&Issue> = look.issues.iter().filter(wants).collect();
    let view = |issue: &&Issue| IssueView::of(issue, &look.endpoints);
    let items = wanted.iter().take(limit).map(view).collect();
    Ok(Json(Issues { items, total: wanted.len() as u64, has_owner, as_of: look.survey.as_of_ms.map(Time) }))
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
    /// All that there are, and when that was so, by Redis' clock.
    async fn issues(&self) -> Result<(IssuesLook, u64), Problem> {
        let _place = self.0.heavy.take_for_staff().await?;
        let look = async |connection: Connection| {
            let mut queries = Queries::new(connection.clone(), self.0.keys.clone());
            let now_ms = queries.now_ms().await?;
            Ok((queries.issues(&mut RegistryStore::on(connection), now_ms).await?, now_ms))
        };
        self.0.connection.with(look).await.map_err(|error| of_store(&error))
    }

    async fn issue(&self, id: &IssueId) -> Result<(IssuesLook, Issue, u64), Problem> {
        let (look, now_ms) = self.issues().await?;
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
        let say = async |connection| IssueStore::new(connection, self.0.keys.clone()).say(&issue.id, &said).await;
        let write = async |_: &mut _| self.0.connection.with(say).await.map_err(|error| of_store(&error));
        self.0.audit.audited(begun, write).await?;
        (issue.state, issue.said) = (state, Some(said));
        Ok(Json(IssueView::of(&issue, &look.endpoints)))
    }
}
