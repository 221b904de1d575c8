//! Who asks for what: each account has a few purchases going on, and every request of the schedule is the next thing that
//! happens to one of them, often while another is still under way. What a client believes of an intent comes from its answers
//! alone, so after a lost one it asks for what is refused.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::Value;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{
    asks::{Ask, Customer, HoldEnd},
    client::{Client, Question},
    ledger::{Asked, Ledger, Outcome, Seen},
};
use crate::loadtest::draw::hash;

/// The pause before a client repeats a request.
const PAUSE: Duration = Duration::from_millis(200);

/// Requests after which a purchase is left alone.
const LONGEST_LIFE: u32 = 14;

/// What a client believes of one purchase.
#[derive(Debug, Clone, Default)]
struct Purchase {
    /// Empty until the creation was answered.
    intent: String,
    is_being_created: bool,
    is_manual: bool,
    status: String,
    is_challenged: bool,
    total: i64,
    captured: i64,
    requests: u32,
}

struct Account {
    key: String,
    purchases: Mutex<Vec<Purchase>>,
}

impl Account {
    fn purchases(&self) -> MutexGuard<'_, Vec<Purchase>> {
        self.purchases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub struct Merchants {
    accounts: Vec<Account>,
    client: Client,
    ledger: Arc<Ledger>,
    seed: u64,
    /// Share of what was answered that is asked once more.
    repeats: f64,
    /// Nobody repeats anything any more.
    pub end: CancellationToken,
}

/// What one request is about.
struct Errand {
    account: u32,
    slot: usize,
    intent: String,
    ask: Ask,
    key: Option<String>,
    /// Which process is asked.
    turn: usize,
    /// When it is asked again although it was answered.
    repeat_after: Option<Duration>,
}

impl Merchants {
    pub fn new(
        keys: Vec<String>,
        purchases: u32,
        client: Client,
        ledger: Arc<Ledger>,
        seed: u64,
        repeats: f64,
    ) -> Self {
        let account =
            |key| Account { key, purchases: Mutex::new(vec![Purchase::default(); purchases.max(1) as usize]) };
        let accounts = keys.into_iter().map(account).collect();
        Self { accounts, client, ledger, seed, repeats, end: CancellationToken::new() }
    }

    /// The request with this number, whose time has come.
    pub async fn act(&self, number: u64, intended_us: u64) {
        let mut rng = StdRng::seed_from_u64(hash(&[self.seed, 0x1_47E7, number]));
        let Some(errand) = self.errand(number, &mut rng) else { return };
        let began_us = self.ledger.now_us();
        let (seen, tries, is_doubtful) = self.insist(&errand).await;
        let ended_us = self.ledger.now_us();
        let outcome = Outcome::of(&seen);
        self.learn(&errand, &outcome);
        let mut repeats = Vec::new();
        if let (Outcome::Done(_), Some(after)) = (&outcome, errand.repeat_after) {
            sleep(after).await;
            repeats.push(self.once(&errand, errand.turn + 1).await);
        }
        let intent = match (&errand.ask, &outcome) {
            (Ask::Create { .. }, Outcome::Done(body)) => body["id"].as_str().unwrap_or_default().to_owned(),
            _ => errand.intent,
        };
        let Errand { account, ask, key, .. } = errand;
        let asked =
            Asked { account, intent, ask, key, intended_us, began_us, ended_us, tries, is_doubtful, outcome, repeats };
        self.ledger.asked(asked);
    }

    async fn once(&self, errand: &Errand, turn: usize) -> Seen {
        let question = Question {
            method: errand.ask.method(),
            path: &errand.ask.path(&errand.intent),
            key: &self.accounts[errand.account as usize].key,
            idempotency_key: errand.key.as_deref(),
            body: errand.ask.body(),
        };
        self.client.ask(&question, turn).await
    }

    /// With a key again and again until it is answered; without one a client can only ask once. Says how often it was asked,
    /// and whether a try before the last is in doubt.
    async fn insist(&self, errand: &Errand) -> (Seen, u32, bool) {
        let (mut tries, mut is_doubtful) = (0, false);
        loop {
            tries += 1;
            let seen = self.once(errand, errand.turn + tries as usize).await;
            let outcome = Outcome::of(&seen);
            if outcome.is_final() || errand.key.is_none() || self.end.is_cancelled() {
                return (seen, tries, is_doubtful);
            }
            is_doubtful |= outcome == Outcome::Unknown;
            sleep(PAUSE).await;
        }
    }

    fn errand(&self, number: u64, rng: &mut StdRng) -> Option<Errand> {
        let account = rng.random_range(0..self.accounts.len());
        let mut purchases = self.accounts[account].purchases();
        // What has no id yet can only be waited for.
        let free: Vec<_> = (0..purchases.len()).filter(|slot| !purchases[*slot].is_being_created).collect();
        let slot = *free.get(rng.random_range(0..free.len().max(1)))?;
        let purchase = &mut purchases[slot];
        let mut intent = purchase.intent.clone();
        let ask = if intent.is_empty() {
            purchase.is_being_created = true;
            creation(number, rng)
        } else {
            purchase.requests += 1;
            next(purchase, number, rng)
        };
        drop(purchases);
        if ask == Ask::LookAtForeign {
            intent = self.foreign(account, rng)?;
        }
        let has_key = ask.needs_a_key() || ask.takes_a_key() && rng.random_bool(0.7);
        let repeats = has_key && rng.random_bool(self.repeats.clamp(0.0, 1.0));
        Some(Errand {
            account: account as u32,
            slot,
            intent,
            ask,
            key: has_key.then(|| format!("key-{number}")),
            turn: rng.random_range(0..64),
            repeat_after: repeats.then(|| Duration::from_millis(rng.random_range(0..1_000))),
        })
    }

    fn foreign(&self, account: usize, rng: &mut StdRng) -> Option<String> {
        let other = (account + rng.random_range(1..self.accounts.len().max(2))) % self.accounts.len();
        let purchases = self.accounts[other].purchases();
        let known = purchases.iter().find(|purchase| !purchase.intent.is_empty() && other != account)?;
        Some(known.intent.clone())
    }

    fn learn(&self, errand: &Errand, outcome: &Outcome) {
        let mut purchases = self.accounts[errand.account as usize].purchases();
        let purchase = &mut purchases[errand.slot];
        if let Ask::Create { is_manual, amount, .. } = errand.ask {
            let id = match outcome {
                Outcome::Done(body) => body["id"].as_str().unwrap_or_default().to_owned(),
                // The next is another purchase.
                _ => String::new(),
            };
            let status = "Created".to_owned();
            *purchase = Purchase { intent: id, is_manual, status, total: amount, ..Purchase::default() };
            return;
        }
        if purchase.intent != errand.intent {
            return;
        }
        if let Outcome::Done(body) = outcome {
            purchase.learn(&errand.ask, body);
        }
        if purchase.requests >= LONGEST_LIFE || matches!(purchase.status.as_str(), "Canceled" | "Reversed") {
            *purchase = Purchase::default();
        }
    }
}

impl Purchase {
    fn learn(&mut self, ask: &Ask, body: &Value) {
        let become_ = |status: &str| status.to_owned();
        match ask {
            Ask::Pay(_) | Ask::Challenge { .. } | Ask::Look => {
                self.status = body["status"].as_str().unwrap_or_default().to_owned();
                self.is_challenged = *ask == Ask::Pay(Customer::Challenged);
                if let Some(total) = body["totalAmount"]["value"].as_i64() {
                    self.total = total;
                }
                if self.status == "Captured" && !self.is_manual {
                    self.captured = self.total;
                }
            }
            Ask::Capture { amount, tips } => {
                self.status = become_("Captured");
                self.captured += amount + tips.unwrap_or_default();
            }
            Ask::Refund { .. } => self.status = become_("Refunded"),
            Ask::Reverse => self.status = become_("Reversed"),
            Ask::Cancel => self.status = become_("Canceled"),
            Ask::SetAmount(_) | Ask::SetTips(_) => {
                self.total = body["totalAmount"]["value"].as_i64().unwrap_or(self.total);
            }
            _ => {}
        }
    }
}

/// Amounts that tell requests apart, and that the sandbox' issuer approves: it looks at the last two digits.
fn amount(number: u64, rng: &mut StdRng, most: i64) -> i64 {
    let most = (most / 100).max(1);
    rng.random_range(1..=most) * 100 + (number % 50) as i64
}

fn creation(number: u64, rng: &mut StdRng) -> Ask {
    let is_manual = rng.random_bool(0.6);
    let hold = (is_manual && rng.random_bool(0.4))
        .then(|| if rng.random_bool(0.5) { HoldEnd::Release } else { HoldEnd::Capture });
    Ask::Create { reference: format!("order-{number}"), is_manual, hold, amount: amount(number, rng, 100_000) + 1_000 }
}

/// Mostly what makes sense now, sometimes what does not.
fn next(purchase: &Purchase, number: u64, rng: &mut StdRng) -> Ask {
    let part = |rng: &mut StdRng, of: i64| amount(number, rng, of / 3);
    let capture = |rng: &mut StdRng| {
        let tips = rng.random_bool(0.2).then(|| rng.random_range(0..200));
        Ask::Capture { amount: part(rng, purchase.total), tips }
    };
    let refund = |rng: &mut StdRng| {
        let most = purchase.captured.max(3_000);
        Ask::Refund { amount: part(rng, most), reason: format!("reason-{number}") }
    };
    let change = |rng: &mut StdRng| match rng.random_bool(0.7) {
        true => Ask::SetAmount(amount(number, rng, 100_000) + 1_000),
        false => Ask::SetTips(number as i64 % 1_000 * 100 + 7),
    };
    match rng.random_range(0..100) {
        0..3 => return Ask::LookAtForeign,
        3..9 => return Ask::Look,
        9..11 => return Ask::SendReceipt,
        11..12 => return Ask::Advance,
        12..18 => {
            return match rng.random_range(0..5) {
                0 => capture(rng),
                1 => refund(rng),
                2 => Ask::Reverse,
                3 => Ask::Cancel,
                _ => Ask::Pay(Customer::Approved),
            };
        }
        _ => {}
    }
    let chance = rng.random_range(0..100);
    match (purchase.status.as_str(), purchase.is_manual) {
        _ if purchase.is_challenged => Ask::Challenge { is_met: chance < 70 },
        ("Created", _) => match chance {
            0..45 => Ask::Pay(Customer::Approved),
            45..55 => Ask::Pay(Customer::Declined),
            55..65 => Ask::Pay(Customer::Challenged),
            65..87 => change(rng),
            87..94 => Ask::RefreshSecret,
            _ => Ask::Cancel,
        },
        ("Authorized", _) => match chance {
            0..65 => capture(rng),
            65..92 => change(rng),
            _ => Ask::Reverse,
        },
        ("Captured", true) if chance < 55 => capture(rng),
        ("Captured", false) if chance < 10 => Ask::Reverse,
        ("Captured", _) if chance < 90 => refund(rng),
        ("Refunded", _) if chance < 90 => refund(rng),
        _ => Ask::Look,
    }
}
