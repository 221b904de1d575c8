//! Deliveries wherever they stand: unfinished, dead, or known to the history or the log of attempts alone. Several looks make one
//! answer, for the verbs and for the API.

mod list;

use serde::Serialize;
use utoipa::ToSchema;

pub use self::list::{Asked, At, DeliveryLine, Found, Looked, Side, Whose, find};
use super::{
    Viewer,
    delivery::RecordView,
    letter::LetterView,
    past::{self, Past, ReachView, ToldView, outcome},
    standing::{standing, state},
    words,
};
use crate::{
    facts::{
        id::{AccountId, DeliveryId},
        letter::{WaitedFor, Waiting},
    },
    history::{self, History, Wanted},
    store::{
        error::StoreError,
        queries::{EntryStanding, Partitions, Whereabouts},
    },
};

/// How many attempts and ends of an intent, an event or a delivery an answer is made of: far more than any has.
pub const MAX_TOLD: usize = 10_000;

/// An end of which no record is left. Why it came names operators, so merchants are told only that it did.
fn ended(told: &history::Told, at: &str, viewer: Viewer) -> Option<(&'static str, String)> {
    let detail = Some(&told.detail).filter(|_| viewer.is_operator());
    Some(match (told.kind.as_str(), detail) {
        ("skipped", Some(detail)) => ("skipped", format!("skipped: {detail}")),
        ("skipped", None) => ("skipped", "skipped: its endpoint was disabled".to_owned()),
        ("discarded", Some(detail)) => ("discarded", format!("discarded {at} by {detail}")),
        ("discarded", None) => ("discarded", format!("discarded {at}")),
        ("dead", Some(detail)) => ("dead", format!("dead letter {at}: {detail}; the letter is gone")),
        ("dead", None) => ("dead", format!("dead letter {at}; the letter is gone")),
        _ => return None,
    })
}

/// What a delivery that was never tried waited for.
pub fn waited(waited_for: &WaitedFor, now_ms: u64) -> String {
    let WaitedFor { why, since_ms, paused_by, paused_why, head, last_failure, last_failure_at_ms } = waited_for;
    let mut text = match (why, head) {
        (Waiting::Held, Some(head)) => format!("held behind {head}"),
        (Waiting::Held, None) => "held behind an earlier one".to_owned(),
        (Waiting::Paused, _) => "its endpoint was paused".to_owned(),
        (Waiting::AllPaused, _) => "all sending was paused".to_owned(),
        (Waiting::BreakerOpen, _) => "its endpoint's breaker was open".to_owned(),
        (Waiting::Resting, _) => "the receiver had asked for a rest".to_owned(),
        (Waiting::RateLimited, _) => "its endpoint's rate limit".to_owned(),
        (Waiting::Busy, _) => "others of its endpoint were before it".to_owned(),
        (Waiting::EndpointUnreadable, _) => "its endpoint could not be read".to_owned(),
        (Waiting::Unknown, _) => "what it waited for is not known".to_owned(),
    };
    if let Some(by) = paused_by {
        let about = if *why == Waiting::Paused { "" } else { "; its endpoint was paused" };
        text += &format!("{about} by {by}: {}", paused_why.as_deref().unwrap_or_default());
    }
    if let Some(since) = since_ms {
        text += &format!(", since {}", words::instant(*since));
    }
    match (last_failure, last_failure_at_ms) {
        (Some(cause), Some(at_ms)) => text += &format!("; last failure {cause} {}", words::ago(*at_ms, now_ms)),
        (Some(cause), None) => text += &format!("; last failure {cause}"),
        (None, _) => {}
    }
    text
}

/// One delivery, wherever it stands.
#[derive(Serialize, ToSchema)]
pub struct DeliveryView {
    id: String,
    pub state: &'static str,
    pub standing: String,
    /// Of one that is unfinished.
    record: Option<RecordView>,
    /// Of one that is dead.
    letter: Option<LetterView>,
    /// What was tried and how it ended, the oldest first, as far as the history and the log go.
    past: Vec<ToldView>,
    /// How far they go.
    history: ReachView,
}

/// What is known of one delivery.
pub struct Told {
    pub found: Whereabouts,
    pub past: Past,
    pub state: &'static str,
    pub standing: String,
    pub now_ms: u64,
}

impl Told {
    /// As far as anything says.
    pub fn account(&self) -> Option<&AccountId> {
        match &self.found {
            Whereabouts::Unfinished(one) => one.delivery.as_ref().ok().map(|delivery| &delivery.account),
            Whereabouts::Dead(letter) => letter.letter.as_ref().ok().map(|dead| &dead.delivery.account),
            Whereabouts::NoRecord => self.past.told.iter().find_map(|told| told.account.as_ref()),
        }
    }

    pub fn view(&self, id: &DeliveryId, viewer: Viewer) -> DeliveryView {
        let (record, letter) = match &self.found {
            Whereabouts::Unfinished(one) => (one.delivery.as_ref().ok().map(|one| RecordView::of(one, viewer)), None),
            Whereabouts::Dead(letter) => (None, Some(LetterView::of(letter, viewer))),
            Whereabouts::NoRecord => (None, None),
        };
        DeliveryView {
            id: id.to_string(),
            state: self.state,
            standing: self.standing.clone(),
            record,
            letter,
            past: self.past.told.iter().rev().map(|told| ToldView::of(told, viewer)).collect(),
            history: self.past.reach.view(viewer),
        }
    }
}

/// The state is `unknown` where there is no such delivery, as far as is known. Of one account where one is named.
pub async fn tell(
    queries: &mut Partitions,
    history: &History,
    id: &DeliveryId,
    of: Option<&AccountId>,
    viewer: Viewer,
    is_paused: bool,
) -> Result<Told, StoreError> {
    let now_ms = queries.now_ms().await?;
    let found = queries.whereabouts(id).await?;
    let wanted = Wanted { delivery: Some(id.clone()), account: of.cloned(), ..Wanted::default() };
    let past = past::look(history, queries, &wanted, MAX_TOLD).await?;
    let (state, standing) = match &found {
        Whereabouts::Unfinished(one) => (state(&one.place), standing(one, now_ms, is_paused)),
        Whereabouts::Dead(letter) => ("dead", format!("dead for {}", words::span(now_ms.abs_diff(letter.at_ms)))),
        Whereabouts::NoRecord => without_record(queries, id, &past, viewer, now_ms).await?,
    };
    Ok(Told { found, past, state, standing, now_ms })
}

async fn without_record(
    queries: &mut Partitions,
    id: &DeliveryId,
    past: &Past,
    viewer: Viewer,
    now_ms: u64,
) -> Result<(&'static str, String), StoreError> {
    if let Some(told) = past.told.first() {
        let at = words::when(told.at_ms, now_ms);
        if told.kind == "delivered" {
            let answered = outcome(told, viewer);
            return Ok(("delivered", format!("delivered {at} by attempt {}, answered {answered}", told.attempt)));
        }
        if let Some(ended) = ended(told, &at, viewer) {
            return Ok(ended);
        }
    }
    Ok(match queries.entry_standing(id).await? {
        EntryStanding::InFlight { idle_ms } => {
            ("in_flight", format!("its entry was read {} ago and is not settled yet", words::span(idle_ms)))
        }
        EntryStanding::Waiting => ("waiting", "its entry waits in the stream: nobody has read it yet".to_owned()),
        EntryStanding::Settled | EntryStanding::Gone if !past.told.is_empty() => {
            ("ended", "tried, and without a record now: it was discarded, or delivered just now".to_owned())
        }
        EntryStanding::Settled => (
            "settled",
            "its entry is settled: delivered before the log begins, or not owed to this endpoint".to_owned(),
        ),
        EntryStanding::Gone => ("unknown", String::new()),
    })
}
