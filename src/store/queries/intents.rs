//! What is kept of payment intents as a whole: whether there are any, and where their clock stands.

use super::Queries;
use crate::store::error::StoreError;

#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct IntentsLook {
    /// An intent was made here once, whether or not it is forgotten by now.
    pub are_kept: bool,
    /// None where nobody ever set their clock: then it is Redis' own.
    pub clock: Option<SetClock>,
}

/// A clock that somebody has set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SetClock {
    /// Of Redis' clock.
    pub ahead_ms: i64,
    /// How many times as fast as real time it runs; 0 while it stands still.
    pub speed: f64,
}

impl Queries {
    pub async fn intents(&mut self) -> Result<IntentsLook, StoreError> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("EXISTS").arg(self.keys.intent_counts());
        pipeline.cmd("HMGET").arg(self.keys.intent_clock()).arg("virtual").arg("real").arg("speed");
        pipeline.cmd("TIME");
        type Answer = (bool, (Option<f64>, Option<f64>, Option<f64>), (u64, u64));
        let (are_kept, (shown, since, speed), (seconds, micros)): Answer =
            self.connection.pipeline("look at the payment intents", &pipeline).await?;
        let now = (seconds * 1_000_000 + micros) as f64;
        let clock = shown.zip(since).map(|(shown, since)| {
            let speed = speed.unwrap_or(1.0);
            let shows = shown + (now - since).max(0.0) * speed;
            SetClock { ahead_ms: ((shows - now) / 1_000.0) as i64, speed }
        });
        Ok(IntentsLook { are_kept, clock })
    }
}
