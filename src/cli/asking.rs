//! How verbs ask partitions' owners for a change: one request, or many in batches, which is a [`Job`]. Only the owner changes anything. A
//! request that nobody has answered stays in the inbox and is carried out when there is an owner again.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use tokio::time::timeout;

use crate::{
    clock,
    facts::{audit::Tally, endpoint::Mark, id::EntryId},
    store::{
        connection::{Connection, Purpose},
        error::StoreError,
        keys::PartitionKeys,
        protocol::Asked,
        queries::Queries,
        requests::Requests,
    },
    surface::{Context, VerbError, note, tell, words},
};

/// Requests on their way at once: a job never fills the inbox, and can be stopped between two batches.
pub const BATCH: usize = 100;

/// An owner answers within a second. This also covers a take-over after a crash, with the longest lease in common use.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Whoever waits for longer than this is told for whom.
pub const TOLD_AFTER: Duration = Duration::from_secs(3);

/// What a job has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Done {
    pub done: u64,
    pub refused: u64,
}

impl Done {
    /// The last words of a job. That some were refused is an error.
    pub fn show(self, context: &Context, past: &str) -> anyhow::Result<()> {
        let Self { done, refused } = self;
        context.output.one(&self, &[(past, words::number(done)), ("refused", words::number(refused))])?;
        match refused {
            0 => Ok(()),
            n => {
                let refused = words::count(n, "was", "were");
                Err(VerbError::Refused(format!("{refused} refused; the reasons are above")).into())
            }
        }
    }
}

/// Many requests of one kind, a batch at a time.
pub struct Job<'t> {
    asking: Asking,
    progress: Progress,
    done: Done,
    tally: &'t mut Tally,
}

impl<'t> Job<'t> {
    /// `past` says what becomes of each: `redelivered`.
    pub async fn begin(
        context: &Context,
        mark: Mark,
        total: u64,
        past: &'static str,
        tally: &'t mut Tally,
    ) -> anyhow::Result<Self> {
        let asking = Asking::connect(context, mark).await?;
        let progress = Progress { total, past, began: clock::now() };
        Ok(Self { asking, progress, done: Done::default(), tally })
    }

    /// Asks for all of these, at most [`BATCH`], and says how far the job is then.
    pub async fn batch(&mut self, asked: &[(String, PartitionKeys, Asked)]) -> anyhow::Result<()> {
        let answered = self.asking.batch(asked, &mut self.done).await;
        self.tally.set(self.done.done, self.done.refused);
        answered?;
        note(self.progress.line(self.done, self.progress.began.elapsed()));
        Ok(())
    }

    pub fn end(self) -> Done {
        self.done
    }
}

/// How far a job is: whoever waits for it wants to know how long.
struct Progress {
    total: u64,
    past: &'static str,
    began: Instant,
}

impl Progress {
    /// `200 of 250 redelivered, 3 refused; about 4s left`.
    fn line(&self, done: Done, took: Duration) -> String {
        let (Done { done, refused }, past) = (done, self.past);
        let (ended, took_ms) = (done + refused, u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
        // What was counted before may have grown meanwhile.
        let left = self.total.saturating_sub(ended);
        let left = match took_ms.saturating_mul(left) / ended.max(1) / 1000 {
            // Nobody reads it in less than a second.
            0 => String::new(),
            seconds => format!("; about {} left", words::span(seconds.saturating_mul(1000))),
        };
        let refused = if refused > 0 { format!(", {} refused", words::number(refused)) } else { String::new() };
        let total = words::number(self.total.max(ended));
        format!("{} of {total} {past}{refused}{left}", words::number(done))
    }
}

/// Asks the owners of partitions, each in its own inbox.
pub struct Asking {
    looks: Connection,
    waiting: Connection,
    mark: Mark,
    inboxes: HashMap<String, Requests>,
}

impl Asking {
    pub async fn connect(context: &Context, mark: Mark) -> anyhow::Result<Self> {
        let redis = context.redis()?;
        let (looks, waiting) = (redis.connect(Purpose::Other).await?, redis.connect(Purpose::Wakeup).await?);
        Ok(Self { looks, waiting, mark, inboxes: HashMap::new() })
    }

    /// Asks once and waits for the answer.
    pub async fn one(&mut self, keys: &PartitionKeys, asked: &Asked) -> anyhow::Result<()> {
        let inbox = self.inbox(keys).await?;
        let request = inbox.ask(asked, &self.mark).await?;
        match answer(&inbox, request, keys).await? {
            Some(answer) if answer == "ok" => Ok(()),
            Some(answer) => Err(VerbError::Refused(why(&answer).to_owned()).into()),
            None => Err(unanswered(1, keys).into()),
        }
    }

    /// Asks for all of these and waits for every answer. A refusal is reported and counted.
    async fn batch(&mut self, asked: &[(String, PartitionKeys, Asked)], so_far: &mut Done) -> anyhow::Result<()> {
        let mut inboxes = Vec::with_capacity(asked.len());
        for (_, keys, _) in asked {
            inboxes.push(self.inbox(keys).await?);
        }
        let mut waiting = Vec::with_capacity(asked.len());
        for ((name, keys, asked), inbox) in asked.iter().zip(inboxes) {
            let request = inbox.ask(asked, &self.mark).await?;
            waiting.push((name, keys, request, inbox));
        }
        for (at, (name, keys, request, inbox)) in waiting.iter().enumerate() {
            match answer(inbox, *request, keys).await? {
                Some(answer) if answer == "ok" => so_far.done += 1,
                Some(answer) => {
                    so_far.refused += 1;
                    tell(format_args!("{name}: {}", why(&answer)));
                }
                None => return Err(unanswered((waiting.len() - at) as u64, keys).into()),
            }
        }
        Ok(())
    }

    /// Refuses if nobody owns the partition, so that nothing is left in its inbox by surprise.
    async fn inbox(&mut self, keys: &PartitionKeys) -> anyhow::Result<Requests> {
        if let Some(known) = self.inboxes.get(keys.stream()) {
            return Ok(known.clone());
        }
        must_be_owned(self.looks.clone(), keys).await?;
        let inbox = Requests::new(self.waiting.clone(), keys.clone());
        self.inboxes.insert(keys.stream().to_owned(), inbox.clone());
        Ok(inbox)
    }
}

async fn answer(inbox: &Requests, request: EntryId, keys: &PartitionKeys) -> Result<Option<String>, StoreError> {
    let mut answer = std::pin::pin!(inbox.await_answer(request, ANSWER_TIMEOUT));
    if let Ok(answered) = timeout(TOLD_AFTER, &mut answer).await {
        return answered;
    }
    let most = words::span(ANSWER_TIMEOUT.as_millis() as u64);
    note(format_args!(
        "the owner of {} has not answered yet: it is waited for, or for who takes over, {most} at most",
        keys.stream()
    ));
    answer.await
}

fn unanswered(open: u64, keys: &PartitionKeys) -> VerbError {
    let requests = words::count(open, "request", "requests");
    VerbError::Unanswered(format!(
        "{requests} got no answer within {}: they stay in the inbox of {} and are carried out when a worker owns it; \
         `herald doctor` shows who does",
        words::span(ANSWER_TIMEOUT.as_millis() as u64),
        keys.stream(),
    ))
}

/// Refuses if nobody owns the partition.
pub async fn must_be_owned(connection: Connection, keys: &PartitionKeys) -> anyhow::Result<()> {
    if Queries::new(connection, keys.clone()).lease().await?.is_none() {
        let text = format!("no worker owns {}, so nothing was asked: start one with `herald serve`", keys.stream());
        return Err(VerbError::Unanswered(text).into());
    }
    Ok(())
}

fn why(answer: &str) -> &str {
    answer.strip_prefix("error: ").unwrap_or(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_says_how_much_there_is_and_how_long_it_will_take() {
        let progress = Progress { total: 1_000, past: "redelivered", began: clock::now() };
        let line = |done, refused, seconds| progress.line(Done { done, refused }, Duration::from_secs(seconds));
        assert_eq!(line(200, 0, 10), "200 of 1 000 redelivered; about 40s left");
        assert_eq!(line(190, 10, 60), "190 of 1 000 redelivered, 10 refused; about 4m left");
        assert_eq!(line(999, 0, 10), "999 of 1 000 redelivered");
        assert_eq!(line(998, 2, 60), "998 of 1 000 redelivered, 2 refused");
        assert_eq!(line(1_100, 0, 60), "1 100 of 1 100 redelivered");
    }
}
