//! The bodies of the other requests, and the rules that bind members of one body to each other. What one member must be for
//! itself is in its type and its schema.

use std::fmt::Display;

use jiff::civil;
use serde::{Deserialize, Serialize};
use url::Url;
use utoipa::ToSchema;

use super::{
    details::{Details, ItemLine, MAX_METADATA, TaxLine},
    money::Money,
    stamp::{DAY, SECOND, Stamp},
};
use crate::facts::event::{CaptureMode, PaymentStatus};

/// The year 2200, where the intents' clock ends.
const LAST_EXPIRY: Stamp = Stamp(7_258_118_400_000_000);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateCaptureRequest {
    /// In minor units, without tips.
    #[schema(minimum = 1, maximum = 1_000_000_000_000_000i64)]
    pub amount: i64,
    #[serde(default)]
    #[schema(minimum = 0, maximum = 1_000_000_000_000_000i64)]
    pub tips_amount: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateRefundRequest {
    /// In minor units.
    #[schema(minimum = 1, maximum = 1_000_000_000_000_000i64)]
    pub amount: i64,
    #[serde(default)]
    #[schema(max_length = 100)]
    pub previous_transaction_id: Option<String>,
    #[serde(default)]
    #[schema(max_length = 1024)]
    pub refund_reason: Option<String>,
    #[serde(default)]
    #[schema(max_length = 4096)]
    pub notes: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SetAmountRequest {
    pub amount: Money,
    #[serde(default)]
    #[schema(max_items = 500)]
    pub item_lines: Option<Vec<ItemLine>>,
    #[serde(default)]
    #[schema(max_items = 500)]
    pub tax_lines: Option<Vec<TaxLine>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SetTipsAmountRequest {
    pub tips_amount: Money,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SendReceiptRequest {
    #[schema(min_items = 1, max_items = 10)]
    pub emails: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SearchPaymentIntentRequest {
    /// All of them where nothing is said.
    #[schema(value_type = Option<Vec<Status>>)]
    pub statuses: Option<Vec<PaymentStatus>>,
    /// By the intents' creation, both ends included.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub start_date: Option<Stamp>,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub end_date: Option<Stamp>,
    pub cursor: Option<Cursor>,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Cursor {
    #[schema(value_type = i32, required = false, minimum = 1, maximum = 100, default = 50)]
    pub limit: Option<u32>,
    /// Only one of the two may be used.
    pub before: Option<String>,
    pub after: Option<String>,
}

/// The statuses, for the description: the plain fact knows nothing of it.
#[derive(ToSchema)]
#[schema(as = PaymentIntentStatus)]
#[allow(dead_code)]
pub enum Status {
    Created,
    Authorized,
    Captured,
    Reversed,
    Refunded,
    Canceled,
}

/// What is wrong with one member of a body, by its path as the client wrote it: `amount.currencyCode`, `itemLines[0].name`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub member: String,
    pub why: String,
}

/// Those of one body.
#[derive(Debug, Default)]
struct Faults(Vec<Fault>);

impl Faults {
    fn add(&mut self, member: impl Display, why: impl Display) {
        self.0.push(Fault { member: member.to_string(), why: why.to_string() });
    }

    fn require(&mut self, is_right: bool, member: impl Display, why: impl Display) {
        if !is_right {
            self.add(member, why);
        }
    }
}

/// At this time.
pub fn faults_of_details(details: &Details, now: Stamp) -> Vec<Fault> {
    let mut faults = Faults::default();
    faults_of_money(details, &mut faults);
    faults_of_times(details, now, &mut faults);
    faults_of_texts(details, &mut faults);
    faults.0
}

fn faults_of_money(details: &Details, faults: &mut Faults) {
    let currency = details.amount.currency_code;
    faults.require(details.amount.value >= 1, "amount.value", "must be at least 1");
    let extras = [
        ("tipsAmount", details.tips_amount),
        ("cashbackAmount", details.cashback_amount),
        ("serviceChargeAmount", details.service_charge_amount),
    ];
    for (member, money) in extras.into_iter().filter_map(|(member, money)| Some((member, money?))) {
        faults.require(money.value >= 0, format!("{member}.value"), "must not be negative");
        let is_same = money.currency_code == currency;
        faults.require(is_same, format!("{member}.currencyCode"), format!("must be {currency}, as in amount"));
    }
    faults.require(details.total().is_some(), "amount.value", "is too large together with tips, charges and cashback");
    faults_of_lines(details.item_lines.as_deref(), details.tax_lines.as_deref(), details.amount, faults);
}

fn faults_of_lines(items: Option<&[ItemLine]>, taxes: Option<&[TaxLine]>, amount: Money, faults: &mut Faults) {
    let currency = amount.currency_code;
    let items = items.unwrap_or_default().iter().enumerate();
    let of_items = items.filter_map(|(index, line)| Some((format!("itemLines[{index}]"), line.amount_total?)));
    let taxes = taxes.unwrap_or_default().iter().enumerate();
    let of_taxes = taxes.map(|(index, line)| (format!("taxLines[{index}]"), line.amount_total));
    for (line, money) in of_items.chain(of_taxes) {
        let is_same = money.currency_code == currency;
        faults.require(
            is_same,
            format!("{line}.amountTotal.currencyCode"),
            format!("must be {currency}, as in amount"),
        );
    }
}

fn faults_of_times(details: &Details, now: Stamp, faults: &mut Faults) {
    if let Some(at) = details.expire_at {
        faults.require(at > now, "expireAt", format!("must be in the future; it is {now} now"));
        faults.require(at < LAST_EXPIRY, "expireAt", "must be before the year 2200");
    }
    let is_manual = details.capture_mode == CaptureMode::Manual;
    if let Some(span) = details.auto_expire_in {
        let is_within = span.micros() > 30 * SECOND && span.micros() < 7 * DAY;
        faults.require(is_within, "autoExpireIn", "must be more than 30 seconds and less than 7 days");
        faults.require(is_manual, "autoExpireIn", "needs captureMode Manual");
        let has_action = details.auto_expire_action.is_some();
        faults.require(has_action, "autoExpireAction", "is required with autoExpireIn: Release or Capture");
    } else if details.auto_expire_action.is_some() {
        faults.require(is_manual, "autoExpireAction", "needs captureMode Manual");
    }
}

fn faults_of_texts(details: &Details, faults: &mut Faults) {
    let pairs = details.metadata.as_ref().map_or(0, std::collections::BTreeMap::len);
    faults.require(pairs <= MAX_METADATA, "metadata", format!("has more than {MAX_METADATA} members"));
    let config = details.config.clone().unwrap_or_default();
    let links = [
        ("config.redirectUrl", config.redirect_url),
        ("config.cancelUrl", config.cancel_url),
        ("actionLink.url", details.action_link.as_ref().map(|link| link.url.clone())),
    ];
    for (member, link) in links.into_iter().filter_map(|(member, link)| Some((member, link?))) {
        faults.require(is_link(&link), member, "must be an absolute http or https URL");
    }
}

fn is_link(text: &str) -> bool {
    link(text).is_some()
}

/// A page leads there: nothing that a browser would run.
pub fn link(text: &str) -> Option<Url> {
    Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
}

pub fn faults_of_amount(request: &SetAmountRequest) -> Vec<Fault> {
    let mut faults = Faults::default();
    faults.require(request.amount.value >= 1, "amount.value", "must be at least 1");
    faults_of_lines(request.item_lines.as_deref(), request.tax_lines.as_deref(), request.amount, &mut faults);
    faults.0
}

pub fn faults_of_tips(request: &SetTipsAmountRequest) -> Vec<Fault> {
    let mut faults = Faults::default();
    faults.require(request.tips_amount.value >= 0, "tipsAmount.value", "must not be negative");
    faults.0
}

pub fn faults_of_receipt(request: &SendReceiptRequest) -> Vec<Fault> {
    let mut faults = Faults::default();
    for (index, email) in request.emails.iter().enumerate() {
        faults.require(is_email(email), format!("emails[{index}]"), "is not an e-mail address");
    }
    faults.0
}

/// As far as can be told without sending a mail.
pub fn is_email(text: &str) -> bool {
    let is_at = |(name, host): (&str, &str)| !name.is_empty() && !host.is_empty() && !host.contains('@');
    let is_plain = |c: char| !c.is_whitespace() && !c.is_control();
    text.len() <= 254 && text.split_once('@').is_some_and(is_at) && text.chars().all(is_plain)
}

pub fn faults_of_search(request: &SearchPaymentIntentRequest) -> Vec<Fault> {
    let mut faults = Faults::default();
    if let (Some(start), Some(end)) = (request.start_date, request.end_date) {
        faults.require(start <= end, "startDate", "must not be after endDate");
    }
    let cursor = request.cursor.clone().unwrap_or_default();
    faults.require(cursor.before.is_none() || cursor.after.is_none(), "cursor", "takes before or after, not both");
    faults.0
}

/// Any date is taken for the version of the API: its samples send dates that never were one.
pub fn is_version(text: &str) -> bool {
    text.len() == 10 && text.parse::<civil::Date>().is_ok()
}
