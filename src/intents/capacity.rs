//! Whether there is room for another payment intent. What is there already must always be able to go on, to be captured, paid
//! back and told of, so the last tenth of Redis' memory is not for new ones.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Mutex;

use crate::{
    clock,
    store::{
        connection::{ServerInfo, SharedConnection},
        error::StoreError,
    },
};

/// For how long an answer is believed. What is created meanwhile, 15 000 of 1.5 kB, is far less than the tenth.
const BELIEVED_FOR: Duration = Duration::from_secs(1);

#[derive(Clone, Default)]
pub struct Capacity {
    /// What was found, and when. Those who come while it is asked for wait for the same answer.
    known: Arc<Mutex<Option<(bool, Instant)>>>,
}

impl Capacity {
    pub async fn has_room(&self, connection: &SharedConnection) -> Result<bool, StoreError> {
        let mut known = self.known.lock().await;
        let now = clock::now();
        if let Some((has_room, at)) = *known
            && now < at + BELIEVED_FOR
        {
            return Ok(has_room);
        }
        let info = connection.with(async |mut connection| connection.server_info().await).await?;
        let has_room = has_room(&info);
        *known = Some((has_room, now));
        Ok(has_room)
    }
}

fn has_room(info: &ServerInfo) -> bool {
    let (used, most) = (u128::from(info.used_memory_bytes), u128::from(info.maxmemory_bytes));
    most == 0 || used * 10 < most * 9
}
