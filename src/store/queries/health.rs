//! The health of endpoints as their owner published it, what waits for them, and the issues that follow from both. Whoever reads this
//! says how old it is: [`Queries::lease`] tells whether an owner lives.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::{DeadGroup, DeadTotals, Queries};
use crate::{
    facts::{
        endpoint::{Endpoint, EndpointState},
        health::{Health, Slots, Verdict, Waiting},
        id::{AccountId, EndpointId},
        issue::{Issue, IssueId, Letters, Said, issues},
        unserved::Unserved,
    },
    store::{
        error::StoreError,
        health::{all, health, page, unserved},
        registry::RegistryStore,
    },
};

/// Endpoints of one command.
const CHUNK: usize = 200;

/// Failing endpoints that are looked at in full: more than anybody reads, and a bound on memory.
pub const MAX_FAILING: usize = 10_000;

/// All endpoints of the partition that an owner has seen.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Survey {
    pub failing: u64,
    pub unsteady: u64,
    pub well: u64,
    pub idle: u64,
    /// Those that fail or are unsteady; at most [`MAX_FAILING`].
    pub troubled: BTreeMap<EndpointId, Health>,
    /// Events that disabled endpoints were not owed, by account: how many, and when the last was.
    pub skipped: BTreeMap<AccountId, (u64, u64)>,
    /// The latest time at which anything was published.
    pub as_of_ms: Option<u64>,
    /// How many attempts delivered and failed, by minute and by hour since 1970.
    pub minutes: BTreeMap<u64, (u64, u64)>,
    pub hours: BTreeMap<u64, (u64, u64)>,
}

/// All issues, the most urgent first, with what they are about.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct IssuesLook {
    pub survey: Survey,
    pub issues: Vec<Issue>,
    /// The endpoints that they are about and that still exist.
    pub endpoints: HashMap<EndpointId, Endpoint>,
}

impl Survey {
    /// Endpoints to which anything was sent within a day.
    pub fn active(&self) -> u64 {
        self.failing + self.unsteady + self.well
    }

    /// The same of two partitions.
    pub(super) fn and(mut self, other: Self) -> Self {
        self.failing += other.failing;
        self.unsteady += other.unsteady;
        self.well += other.well;
        self.idle += other.idle;
        let room = MAX_FAILING.saturating_sub(self.troubled.len());
        self.troubled.extend(other.troubled.into_iter().take(room));
        for (account, (count, last_ms)) in other.skipped {
            let known = self.skipped.entry(account).or_default();
            *known = (known.0 + count, known.1.max(last_ms));
        }
        self.as_of_ms = self.as_of_ms.max(other.as_of_ms);
        for (sums, more) in [(&mut self.minutes, other.minutes), (&mut self.hours, other.hours)] {
            for (slot, (delivered, failed)) in more {
                let known = sums.entry(slot).or_default();
                *known = (known.0 + delivered, known.1 + failed);
            }
        }
        self
    }

    /// Takes out the endpoints that are not sent to any more.
    fn put_right(&mut self, is_sent_to: impl Fn(&EndpointId) -> bool, now_ms: u64) {
        let (failing, unsteady) = (&mut self.failing, &mut self.unsteady);
        self.troubled.retain(|endpoint, health| {
            let stays = is_sent_to(endpoint);
            let count = if health.verdict(now_ms) == Verdict::Failing { &mut *failing } else { &mut *unsteady };
            *count -= u64::from(!stays);
            stays
        });
    }

    fn add(&mut self, endpoint: EndpointId, health: Health, now_ms: u64) {
        self.as_of_ms = self.as_of_ms.max(Some(health.at_ms));
        add_up(&mut self.minutes, &health.minutes);
        add_up(&mut self.hours, &health.hours);
        if let (Some(account), Some(skipped)) = (&health.account, health.skipped) {
            let (count, last_ms) = self.skipped.entry(account.clone()).or_default();
            (*count, *last_ms) = (*count + skipped.count, (*last_ms).max(skipped.last_ms));
        }
        match health.verdict(now_ms) {
            Verdict::Failing => self.failing += 1,
            Verdict::Unsteady => self.unsteady += 1,
            Verdict::Well => return self.well += 1,
            Verdict::Idle => return self.idle += 1,
        }
        if self.troubled.len() < MAX_FAILING {
            self.troubled.insert(endpoint, health);
        }
    }
}

fn add_up(sums: &mut BTreeMap<u64, (u64, u64)>, slots: &Slots) {
    for slot in slots.iter() {
        let (delivered, failed) = sums.entry(slot.number).or_default();
        *delivered += u64::from(slot.delivered);
        *failed += u64::from(slot.failed);
    }
}

impl Queries {
    /// What was published of each of these; None where nothing was, or nothing that this Herald can read.
    pub async fn health_of(&mut self, endpoints: &[EndpointId]) -> Result<Vec<Option<Health>>, StoreError> {
        let mut found = Vec::with_capacity(endpoints.len());
        for part in endpoints.chunks(CHUNK) {
            let mut command = redis::cmd("HMGET");
            command.arg(self.keys.health());
            for endpoint in part {
                command.arg(endpoint.as_str());
            }
            let texts: Vec<Option<String>> = self.connection.query("read the health of endpoints", &command).await?;
            found.extend(texts.into_iter().map(|text| text.as_deref().and_then(health)));
        }
        Ok(found)
    }

    /// What waits for each of these, and how many letters there are; without the oldest, which takes longer to find.
    pub async fn waiting_of(&mut self, endpoints: &[EndpointId]) -> Result<Vec<Waiting>, StoreError> {
        let mut found = Vec::with_capacity(endpoints.len());
        for part in endpoints.chunks(CHUNK) {
            let mut pipeline = redis::pipe();
            for endpoint in part {
                pipeline.cmd("HGET").arg(self.keys.unfinished()).arg(endpoint.as_str());
                pipeline.cmd("ZCARD").arg(self.keys.backlog(endpoint));
                pipeline.cmd("ZCARD").arg(self.keys.dead_of(endpoint));
            }
            let numbers: Vec<Option<u64>> =
                self.connection.pipeline("count what waits for endpoints", &pipeline).await?;
            found.extend(numbers.chunks_exact(3).map(|three| {
                let number = |at: usize| three[at].unwrap_or(0);
                Waiting { unfinished: number(0), parked: number(1), letters: number(2), oldest: None }
            }));
        }
        Ok(found)
    }

    /// One endpoint in full.
    pub async fn waiting_with_oldest(&mut self, endpoint: &EndpointId) -> Result<Waiting, StoreError> {
        let mut waiting = self.waiting_of(std::slice::from_ref(endpoint)).await?.pop().unwrap_or_default();
        if waiting.unfinished > 0 {
            let oldest = self.oldest(&[(endpoint.clone(), waiting.unfinished)]).await?;
            waiting.oldest = oldest.into_iter().next().and_then(|one| one.oldest);
        }
        Ok(waiting)
    }

    /// Looks at all that was published, a page at a time.
    pub async fn survey(&mut self, now_ms: u64) -> Result<Survey, StoreError> {
        let (mut survey, mut seen, mut cursor) = (Survey::default(), HashSet::new(), 0);
        loop {
            let (found, next) = page(&mut self.connection, &self.keys.health(), cursor).await?;
            for (field, text) in found {
                // What moved within the hash meanwhile may come twice.
                let endpoint = field.parse::<EndpointId>().ok().filter(|endpoint| seen.insert(endpoint.clone()));
                if let (Some(endpoint), Some(health)) = (endpoint, health(&text)) {
                    survey.add(endpoint, health, now_ms);
                }
            }
            match next {
                0 => return Ok(survey),
                next => cursor = next,
            }
        }
    }

    /// Accounts with events that nobody is told of, or that are of an unknown type.
    pub async fn unserved(&mut self) -> Result<Vec<(AccountId, Unserved)>, StoreError> {
        unserved(&mut self.connection, &self.keys).await
    }

    /// What operators said of issues.
    pub(super) async fn said(&mut self) -> Result<Vec<(IssueId, Said)>, StoreError> {
        all(&mut self.connection, &self.keys.issues()).await
    }
}

impl IssuesLook {
    /// What follows from what was seen.
    pub(super) async fn of(
        mut survey: Survey,
        letters: &BTreeMap<IssueId, Letters>,
        said: &BTreeMap<IssueId, Said>,
        registry: &mut RegistryStore,
        now_ms: u64,
    ) -> Result<Self, StoreError> {
        let ids: BTreeSet<&EndpointId> = survey.troubled.keys().chain(letters.keys().map(|id| &id.endpoint)).collect();
        let found = registry.get_many(&ids.into_iter().collect::<Vec<_>>()).await?;
        let endpoints: HashMap<EndpointId, Endpoint> =
            found.into_iter().flatten().flatten().map(|endpoint| (endpoint.id.clone(), endpoint)).collect();
        // Nothing is sent to one that is disabled or deleted, so it does not fail.
        survey.put_right(
            |id| endpoints.get(id).is_some_and(|endpoint| !matches!(endpoint.status, EndpointState::Disabled(_))),
            now_ms,
        );
        let issues = issues(&survey.troubled, letters, said, now_ms);
        Ok(Self { survey, issues, endpoints })
    }
}

pub(super) fn letters_by_issue(groups: BTreeMap<DeadGroup, DeadTotals>) -> BTreeMap<IssueId, Letters> {
    let mut found = BTreeMap::<IssueId, Letters>::new();
    for (group, totals) in groups {
        let DeadGroup { endpoint: Some(endpoint), account, cause: Some(cause), .. } = group else { continue };
        let (Ok(endpoint), Ok(cause)) = (endpoint.parse(), cause.parse()) else { continue };
        let account = account.and_then(|account| account.parse().ok());
        let none = Letters { account: account.clone(), count: 0, first_ms: u64::MAX, last_ms: 0 };
        // An endpoint that was made anew for another account has letters of both.
        let letters = found.entry(IssueId { endpoint, cause }).or_insert(none);
        letters.account = account.or(letters.account.take());
        letters.count += totals.count;
        letters.first_ms = letters.first_ms.min(totals.first_ms);
        letters.last_ms = letters.last_ms.max(totals.last_ms);
    }
    found
}
