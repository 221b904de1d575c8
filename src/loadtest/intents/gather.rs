//! Reads everything that the service has at the end, over HTTP as a merchant would. The clock stands still meanwhile, so no
//! deadline comes between two looks.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures_util::{StreamExt, TryStreamExt, stream};
use http::Method;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{
    client::{Client, Question},
    judge::{Stored, StoredCapture, StoredRefund, Told},
    ledger::Seen,
};
use crate::clock;

/// How long the service may take until it answers, after the last fault.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(100);

/// Intents that are looked at together.
const TOGETHER: usize = 8;

/// Refunds that one intent may have.
const MAX_REFUNDS: usize = 100;

/// What is stored of each account, by its API key.
pub async fn gather(client: &Client, keys: &[String]) -> Result<Vec<Stored>> {
    let reader = |account: usize| Reader { client, key: &keys[account], account: account as u32 };
    let Some(_) = keys.first() else { return Ok(Vec::new()) };
    reader(0).stop_the_clock().await?;
    let mut stored = Vec::new();
    for account in 0..keys.len() {
        let reader = reader(account);
        let ids = reader.all().await?;
        let found = stream::iter(ids).map(|id| reader.stored(id)).buffered(TOGETHER);
        stored.extend(found.try_collect::<Vec<_>>().await?);
    }
    Ok(stored)
}

struct Reader<'a> {
    client: &'a Client,
    key: &'a str,
    account: u32,
}

impl Reader<'_> {
    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Result<(u16, Value)> {
        let deadline = clock::now() + PATIENCE;
        for turn in 0.. {
            let (method, body) = (method.clone(), body.clone());
            let question = Question { method, path, key: self.key, idempotency_key: None, body };
            let seen = self.client.ask(&question, turn).await;
            match seen {
                Seen::Answer(code, body) if code < 500 => return Ok((code, body)),
                seen if clock::now() > deadline => bail!("the service does not answer {path}: {seen:?}"),
                _ => sleep(PAUSE).await,
            }
        }
        unreachable!("the turns have no end")
    }

    async fn get(&self, path: &str) -> Result<Value> {
        match self.ask(Method::GET, path, None).await? {
            (200, body) => Ok(body),
            (code, body) => bail!("{path} is answered {code}: {body}"),
        }
    }

    async fn stop_the_clock(&self) -> Result<()> {
        // An advance that died under way is finished first, by whichever process sees it.
        let (code, body) = self.ask(Method::POST, "/sandbox/clock", Some(json!({ "speed": 0 }))).await?;
        if code != 200 {
            bail!("the clock cannot be stopped: {code} {body}");
        }
        Ok(())
    }

    /// The ids of all its intents, by the search.
    async fn all(&self) -> Result<Vec<String>> {
        let (mut ids, mut after) = (Vec::new(), Value::Null);
        loop {
            let mut cursor = json!({ "limit": 100 });
            if !after.is_null() {
                cursor["after"] = after;
            }
            let asked = json!({ "cursor": cursor });
            let (code, page) = self.ask(Method::POST, "/payment-intents/search", Some(asked)).await?;
            let Some(data) = page["data"].as_array().filter(|_| code == 200) else {
                bail!("a search is answered {code}: {page}");
            };
            ids.extend(data.iter().map(|intent| text(&intent["id"])));
            after = page["after"].clone();
            if after.is_null() {
                return Ok(ids);
            }
        }
    }

    /// Looked at once more if it was changed meanwhile: a request that nobody waits for any more may still be carried out.
    async fn stored(&self, id: String) -> Result<Stored> {
        loop {
            let before = self.document(&id).await?;
            let timeline = self.get(&format!("/sandbox/payment-intents/{id}/timeline")).await?;
            let refunds = self.refunds(&id).await?;
            if self.document(&id).await?["updatedAt"] == before["updatedAt"] {
                return self.read(&before, &timeline, refunds).with_context(|| format!("{id} is answered as {before}"));
            }
        }
    }

    async fn document(&self, id: &str) -> Result<Value> {
        self.get(&format!("/payment-intents/{id}?returnCanceled=true")).await
    }

    async fn refunds(&self, id: &str) -> Result<Vec<StoredRefund>> {
        let random = id.rsplit_once("sandbox_").map_or(id, |(_, random)| random);
        let mut refunds = Vec::new();
        for number in 1..=MAX_REFUNDS {
            let refund = format!("rfnd_{random}-{number}");
            match self.ask(Method::GET, &format!("/payment-intents/refunds/{refund}"), None).await? {
                (200, body) => refunds.push(StoredRefund { id: refund, reason: text(&body["refundReason"]) }),
                (404, _) => break,
                (code, body) => bail!("the refund {refund} is answered {code}: {body}"),
            }
        }
        Ok(refunds)
    }

    fn read(&self, document: &Value, timeline: &Value, refunds: Vec<StoredRefund>) -> Result<Stored> {
        let money = |member: &str| document[member]["value"].as_i64();
        let captures = document["captures"].as_array().context("it has no captures")?;
        let events = timeline["events"].as_array().context("it has no timeline")?;
        Ok(Stored {
            account: self.account,
            id: text(&document["id"]),
            reference: text(&document["reference"]),
            status: text(&document["status"]),
            is_manual: document["captureMode"] == "Manual",
            is_paid: !document["paymentDetails"].is_null(),
            amount: money("amount").context("it has no amount")?,
            tips: money("tipsAmount"),
            total: money("totalAmount").context("it has no total")?,
            refunded: document["refundedAmount"].as_i64().context("it has no refunded amount")?,
            captures: captures
                .iter()
                .map(|capture| StoredCapture {
                    id: text(&capture["id"]),
                    amount: capture["amount"].as_i64().unwrap_or_default(),
                    tips: capture["tipsAmount"].as_i64(),
                })
                .collect(),
            refunds,
            told: events
                .iter()
                .map(|event| Told {
                    event: text(&event["id"]),
                    kind: text(&event["event"]),
                    status: text(&event["status"]),
                })
                .collect(),
        })
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
