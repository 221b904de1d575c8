//! Calls of one kind that many make at the same time go to Redis together, which then does once what they have in common.
//! Nobody waits for company: a call goes at once unless [`MAX_UNDER_WAY`] are under way, and what is asked for meanwhile goes
//! with the next.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

use super::error::StoreError;

/// One that Redis works on, and one whose answers are read.
const MAX_UNDER_WAY: usize = 2;

/// What became of each that was asked for together, or of all.
pub type Several<T> = Result<Vec<Result<T, StoreError>>, StoreError>;

/// How much goes together.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub count: usize,
    pub bytes: usize,
}

/// Makes one call, from nothing that it borrows.
type Call<Q, A> = Arc<dyn Fn(Vec<Q>) -> BoxFuture<'static, Several<A>> + Send + Sync>;

/// Questions that wait for a call, each with whoever asks. Clones share them.
pub struct Batches<Q, A> {
    limits: Limits,
    call: Call<Q, A>,
    state: Arc<Mutex<State<Q, A>>>,
}

struct State<Q, A> {
    waiting: VecDeque<Waiting<Q, A>>,
    under_way: usize,
}

type Asker<A> = oneshot::Sender<Result<A, StoreError>>;

struct Waiting<Q, A> {
    question: Q,
    bytes: usize,
    answer: Asker<A>,
}

impl<Q, A> Clone for Batches<Q, A> {
    fn clone(&self) -> Self {
        Self { limits: self.limits, call: self.call.clone(), state: self.state.clone() }
    }
}

impl<Q: Send + 'static, A: Send + 'static> Batches<Q, A> {
    pub fn new(
        limits: Limits,
        call: impl Fn(Vec<Q>) -> BoxFuture<'static, Several<A>> + Send + Sync + 'static,
    ) -> Self {
        let state = State { waiting: VecDeque::new(), under_way: 0 };
        Self { limits, call: Arc::new(call), state: Arc::new(Mutex::new(state)) }
    }

    /// Asks together with others. A question whose asker has gone before its call is not asked.
    pub async fn ask(&self, question: Q, bytes: usize) -> Result<A, StoreError> {
        let (answer, answered) = oneshot::channel();
        let may_go = {
            let mut state = self.state();
            state.waiting.push_back(Waiting { question, bytes, answer });
            let may_go = state.under_way < MAX_UNDER_WAY;
            state.under_way += usize::from(may_go);
            may_go
        };
        if may_go {
            let turns = Turns { batches: self.clone(), is_over: false };
            tokio::spawn(turns.ask_all());
        }
        answered.await.unwrap_or_else(|_| Err(StoreError::late("ask Redis together with others")))
    }
}

impl<Q, A> Batches<Q, A> {
    fn state(&self) -> MutexGuard<'_, State<Q, A>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One call after the other, until nobody waits.
struct Turns<Q, A> {
    batches: Batches<Q, A>,
    is_over: bool,
}

impl<Q, A> Turns<Q, A> {
    async fn ask_all(mut self) {
        loop {
            let (questions, askers): (Vec<_>, Vec<_>) = self.next().into_iter().unzip();
            if questions.is_empty() {
                return;
            }
            match (self.batches.call)(questions).await {
                Ok(answers) => {
                    for (asker, answer) in askers.into_iter().zip(answers) {
                        // Who asked may have gone.
                        let _ = asker.send(answer);
                    }
                }
                Err(error) => self.fail(askers, &error),
            }
        }
    }

    /// What goes with the next call; nothing if this turn is over.
    fn next(&mut self) -> Vec<(Q, Asker<A>)> {
        let limits = self.batches.limits;
        let mut state = self.batches.state();
        let (mut together, mut bytes) = (Vec::new(), 0);
        while let Some(next) = state.waiting.front() {
            bytes += next.bytes;
            if together.len() == limits.count || !together.is_empty() && bytes > limits.bytes {
                break;
            }
            together.extend(state.waiting.pop_front().map(|next| (next.question, next.answer)));
            // What nobody waits for any more is not asked.
            together.pop_if(|(_, asker)| asker.is_closed());
        }
        // With the lock held: whoever asks next must find that nobody will come for them.
        self.is_over = together.is_empty();
        state.under_way -= usize::from(self.is_over);
        together
    }

    /// Where Redis is away, those that wait share the answer, or each call would wait for it in turn.
    fn fail(&self, askers: Vec<Asker<A>>, error: &StoreError) {
        let waiting = match error {
            StoreError::Unavailable { .. } => std::mem::take(&mut self.batches.state().waiting),
            _ => VecDeque::new(),
        };
        for asker in askers.into_iter().chain(waiting.into_iter().map(|waiting| waiting.answer)) {
            let _ = asker.send(Err(error.clone()));
        }
    }
}

impl<Q, A> Drop for Turns<Q, A> {
    /// Of a runtime that ends: nobody would come for those that wait.
    fn drop(&mut self) {
        if !self.is_over {
            let mut state = self.batches.state();
            state.under_way -= 1;
            state.waiting.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::{FutureExt, future::join_all};
    use tokio::time::sleep;

    use super::*;

    /// What each call was asked, in their order.
    type Calls = Arc<Mutex<Vec<Vec<u32>>>>;

    /// Answers after a second with ten times what was asked: 7 fails, 8 has Redis be away.
    fn tenfold(limits: Limits) -> (Batches<u32, u32>, Calls) {
        let calls = Calls::default();
        let seen = calls.clone();
        let answer = |question: &u32| match question {
            7 => Err(StoreError::unexpected("answer", "it is seven")),
            other => Ok(other * 10),
        };
        let batches = Batches::new(limits, move |questions: Vec<u32>| {
            seen.lock().unwrap().push(questions.clone());
            async move {
                sleep(Duration::from_secs(1)).await;
                match questions.contains(&8) {
                    true => Err(StoreError::late("answer")),
                    false => Ok(questions.iter().map(answer).collect()),
                }
            }
            .boxed()
        });
        (batches, calls)
    }

    const LIMITS: Limits = Limits { count: 3, bytes: 100 };

    async fn ask_all(batches: &Batches<u32, u32>, questions: &[u32]) -> Vec<Result<u32, StoreError>> {
        join_all(questions.iter().map(|question| batches.ask(*question, 1))).await
    }

    fn asked(calls: &Calls) -> Vec<Vec<u32>> {
        calls.lock().unwrap().clone()
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_company_and_who_must_wait_goes_together() {
        let (batches, calls) = tenfold(LIMITS);
        assert_eq!(ask_all(&batches, &[1]).await, [Ok(10)]);
        let answers = ask_all(&batches, &[1, 2, 3, 4, 5, 6, 9]).await;
        assert_eq!(answers, [10, 20, 30, 40, 50, 60, 90].map(Ok));
        // The two that may be under way are taken when they first run, so the first takes what it finds.
        assert_eq!(asked(&calls), [vec![1], vec![1, 2, 3], vec![4, 5, 6], vec![9]]);
        assert_eq!(batches.state().under_way, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_has_no_more_bytes_than_it_may_but_at_least_one_question() {
        let (batches, calls) = tenfold(LIMITS);
        let sizes = [(1, 200), (2, 60), (3, 40), (4, 1)];
        let answers = join_all(sizes.map(|(question, bytes)| batches.ask(question, bytes))).await;
        assert_eq!(answers, [10, 20, 30, 40].map(Ok));
        assert_eq!(asked(&calls), [vec![1], vec![2, 3], vec![4]]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_one_fails_by_is_told_to_that_one_and_a_redis_that_is_away_to_all() {
        let (batches, calls) = tenfold(LIMITS);
        let answers = ask_all(&batches, &[1, 7, 3]).await;
        assert_eq!([&answers[0], &answers[2]], [&Ok(10), &Ok(30)]);
        assert!(matches!(answers[1], Err(StoreError::Other { .. })), "{answers:?}");
        let answers = ask_all(&batches, &[8, 1, 2, 3, 4, 5, 6, 9]).await;
        let away = |answer: &Result<u32, StoreError>| matches!(answer, Err(StoreError::Unavailable { .. }));
        // The second call was under way and is answered; who waited behind the two is not.
        assert_eq!(answers.iter().map(away).collect::<Vec<_>>(), [true, true, true, false, false, false, true, true]);
        assert_eq!(asked(&calls)[1..], [vec![8, 1, 2], vec![3, 4, 5]]);
        assert_eq!(ask_all(&batches, &[1]).await, [Ok(10)]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_waits_for_any_more_is_not_asked() {
        let (batches, calls) = tenfold(Limits { count: 1, ..LIMITS });
        let (first, second) = (ask_all(&batches, &[1, 2]), ask_all(&batches, &[3]));
        let gone = tokio::time::timeout(Duration::from_millis(500), second);
        let (answers, gone) = tokio::join!(first, gone);
        assert_eq!(answers, [Ok(10), Ok(20)]);
        assert!(gone.is_err());
        assert_eq!(ask_all(&batches, &[4]).await, [Ok(40)]);
        assert_eq!(asked(&calls), [[1], [2], [4]]);
    }

    #[test]
    fn a_runtime_that_ends_leaves_nobody_waiting() {
        let (batches, _) = tenfold(LIMITS);
        let runtime =
            || tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let ending = runtime();
        let asked = ending.block_on(async { batches.ask(1, 1).now_or_never() });
        assert!(asked.is_none());
        drop(ending);
        assert_eq!(batches.state().under_way, 0);
        assert_eq!(runtime().block_on(batches.ask(2, 1)), Ok(20));
    }
}
