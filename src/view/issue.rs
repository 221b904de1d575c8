//! An issue as it is shown: what fails where, why and since when, who must act, and a text for the merchant.

use std::collections::HashMap;

use serde::Serialize;
use utoipa::ToSchema;

use super::{endpoint::state_name, time::Time, words::instant};
use crate::{
    facts::{
        diagnosis::{Diagnosis, Who},
        endpoint::Endpoint,
        health::HOUR_MS,
        id::{AccountId, EndpointId},
        issue::{Issue, Said, to_merchant},
    },
    store::{
        error::StoreError,
        queries::{DeadFilter, DeadOrder, Partitions},
    },
};

#[derive(Serialize, ToSchema)]
pub struct IssueView {
    /// `ENDPOINT:CAUSE`.
    pub id: String,
    pub account: Option<String>,
    /// open, acknowledged or resolved.
    pub state: &'static str,
    /// What was last said of it, also if it came back since.
    pub said: Option<SaidView>,
    /// Its endpoint fails now, and this is one of the causes.
    pub is_failing: bool,
    pub first_at: Time,
    pub last_at: Time,
    /// That failed since it was first seen, and as far as an owner remembers: a day.
    pub attempts: u64,
    /// The same by hour, the oldest first.
    pub hours: Vec<HourView>,
    /// Dead letters that are kept.
    pub letters: u64,
    /// Of the letters, those that were never tried, because this kept them waiting for too long.
    pub never_tried: u64,
    /// Events that were not even taken in for it, because it is disabled for this.
    pub skipped: u64,
    /// A delivery that it happened to.
    pub sample: Option<String>,
    pub detail: String,
    pub diagnosis: DiagnosisView,
    /// Null once the endpoint is deleted.
    pub url: Option<String>,
    /// enabled, paused or disabled.
    pub endpoint_state: Option<&'static str>,
    /// To be sent to the merchant, where it is theirs to mend.
    pub to_merchant: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub struct SaidView {
    /// acknowledged or resolved.
    pub state: &'static str,
    pub by: String,
    pub why: String,
    pub at: Time,
}

#[derive(Serialize, ToSchema)]
pub struct HourView {
    /// When the hour began.
    pub at: Time,
    pub failed: u32,
}

#[derive(Serialize, ToSchema)]
pub struct DiagnosisView {
    /// A clause that goes on from the endpoint's name.
    pub what: String,
    /// Who must act: merchant, operator or network.
    #[schema(value_type = String)]
    pub who: Who,
    /// The first thing to do: words to type, or what to check.
    pub next: String,
    /// A sentence for the merchant, where it is theirs to mend.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub merchant: Option<String>,
}

impl IssueView {
    pub fn of(issue: &Issue, endpoints: &HashMap<EndpointId, Endpoint>) -> Self {
        let now = endpoints.get(&issue.id.endpoint);
        let is_another = now.is_some_and(|now| issue.account.as_ref().is_some_and(|account| *account != now.account));
        // Its id was given out again: nothing of whoever has it now belongs here.
        let endpoint = now.filter(|_| !is_another);
        let url = endpoint.map(|endpoint| endpoint.url.as_str());
        Self {
            id: issue.id.to_string(),
            account: issue.account.as_ref().map(ToString::to_string),
            state: issue.state.name(),
            said: issue.said.as_ref().map(SaidView::of),
            is_failing: issue.is_failing,
            first_at: Time(issue.first_ms),
            last_at: Time(issue.last_ms),
            attempts: issue.attempts,
            hours: issue.hours.iter().map(|(hour, failed)| HourView::of(*hour, *failed)).collect(),
            letters: issue.letters,
            never_tried: issue.never_tried,
            skipped: issue.skipped,
            sample: issue.sample.as_ref().map(ToString::to_string),
            detail: issue.detail.clone(),
            diagnosis: match issue.account.as_ref().filter(|_| is_another) {
                Some(account) => DiagnosisView::of_gone(issue, account),
                None => DiagnosisView::of(&issue.diagnosis),
            },
            url: url.map(str::to_owned),
            endpoint_state: endpoint.map(|endpoint| state_name(&endpoint.status)),
            to_merchant: to_merchant(issue, url, instant).filter(|_| !is_another),
        }
    }
}

impl SaidView {
    fn of(said: &Said) -> Self {
        let mark = &said.mark;
        Self { state: said.state.name(), by: mark.by.clone(), why: mark.why.clone(), at: Time(mark.at_ms) }
    }
}

impl HourView {
    /// An hour since 1970.
    fn of(hour: u64, failed: u32) -> Self {
        Self { at: Time(hour.saturating_mul(HOUR_MS)), failed }
    }
}

impl DiagnosisView {
    fn of_gone(issue: &Issue, account: &AccountId) -> Self {
        let (what, endpoint) = (issue.diagnosis.what.clone(), &issue.id.endpoint);
        let next = format!(
            "the endpoint was deleted, and its id is another account's now: nothing of this can be delivered; `herald dead-letter \
             discard --account {account} --endpoint {endpoint} --reason …` once the merchant knows"
        );
        Self { what, who: Who::Operator, next, merchant: None }
    }

    fn of(diagnosis: &Diagnosis) -> Self {
        let Diagnosis { what, who, next, merchant } = diagnosis.clone();
        Self { what, who, next, merchant }
    }
}

/// One with a delivery that it happened to, where its attempts are forgotten and letters are left.
pub async fn with_sample(queries: &mut Partitions, mut issue: Issue) -> Result<Issue, StoreError> {
    if issue.sample.is_none() {
        let filter = DeadFilter {
            endpoint: Some(issue.id.endpoint.clone()),
            cause: Some(issue.id.cause.clone()),
            ..DeadFilter::everything()
        };
        let newest = queries.find_dead(&filter, DeadOrder::NewestFirst, None, 1).await?;
        issue.sample = newest.letters.into_iter().next().map(|letter| letter.id);
    }
    Ok(issue)
}
