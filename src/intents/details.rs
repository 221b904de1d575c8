//! What a merchant says about a purchase: the request that creates a payment intent, kept and answered as it was given.
//! The shapes, names and lengths are those of Dojo's API 2025-09-10.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    money::{self, Money},
    stamp::{Stamp, TimeSpan},
};
use crate::facts::event::CaptureMode;

/// Pairs of an intent's metadata.
pub const MAX_METADATA: usize = 50;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(as = CreatePaymentIntentRequest)]
pub struct Details {
    /// `Auto` captures as soon as the customer has paid, `Manual` only when captures are asked for.
    #[serde(default, skip_serializing_if = "is_auto")]
    #[schema(schema_with = capture_mode)]
    pub capture_mode: CaptureMode,
    /// At least 1.
    pub amount: Money,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tips_amount: Option<Money>,
    /// The merchant's own name of the purchase, such as an order number.
    #[schema(min_length = 1, max_length = 60)]
    pub reference: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 4096)]
    pub description: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub customer: Option<Customer>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub billing_address: Option<Address>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shipping_details: Option<ShippingDetails>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub card_holder_not_present: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Config>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_security: Option<RequestSecurity>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_items = 500)]
    pub item_lines: Option<Vec<ItemLine>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_items = 500)]
    pub tax_lines: Option<Vec<TaxLine>>,
    /// `["Card"]` where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_items = 3)]
    pub payment_methods: Option<Vec<PaymentMethod>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action_link: Option<ActionLink>,
    /// When an intent that nobody has paid is canceled; 30 days after its creation where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expire_at: Option<Stamp>,
    /// How long the money of a `Manual` intent is held, more than 30 seconds and less than 7 days: `[d.]hh:mm:ss`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, pattern = r"^(\d{1,2}\.)?([01]\d|2[0-3]):[0-5]\d:[0-5]\d$")]
    pub auto_expire_in: Option<TimeSpan>,
    /// What becomes of the held money then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_expire_action: Option<AutoExpireAction>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub setup_intent_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order_details: Option<OrderDetails>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cashback_amount: Option<Money>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_charge_amount: Option<Money>,
    /// Whether a `clientSessionSecret` is made at once.
    #[serde(default, skip_serializing_if = "is_false")]
    pub generate_remote_token: bool,
}

impl Details {
    /// What the customer pays, unless that is too large.
    pub fn total(&self) -> Option<i64> {
        let extras = [self.tips_amount, self.service_charge_amount, self.cashback_amount];
        money::sum(extras.into_iter().flatten().chain([self.amount]).map(|money| money.value))
    }

    pub fn payment(&self) -> PaymentConfig {
        self.config.as_ref().and_then(|config| config.payment).unwrap_or_default()
    }

    pub fn is_custom_amount_allowed(&self) -> bool {
        self.payment().custom_amount_allowed == Some(true)
    }

    pub fn are_tips_allowed(&self) -> bool {
        self.payment().tips_allowed == Some(true)
    }
}

fn is_auto(mode: &CaptureMode) -> bool {
    *mode == CaptureMode::Auto
}

fn is_false(flag: &bool) -> bool {
    !flag
}

/// The mode is a plain fact, which knows nothing of descriptions.
pub(super) fn capture_mode() -> utoipa::openapi::schema::Object {
    utoipa::openapi::ObjectBuilder::new()
        .schema_type(utoipa::openapi::schema::Type::String)
        .enum_values(Some(["Auto", "Manual"]))
        .default(Some("Auto".into()))
        .build()
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Customer {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 254)]
    pub email_address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 50)]
    pub phone_number: Option<String>,
    /// Taken and never answered, nor kept.
    #[serde(skip_serializing)]
    pub secret: Option<String>,
    /// Taken and never answered, nor kept.
    #[serde(skip_serializing)]
    pub saved_card_id: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Address {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 100)]
    pub address1: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 100)]
    pub address2: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 100)]
    pub address3: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 100)]
    pub address4: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 100)]
    pub city: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 100)]
    pub state: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 50)]
    pub postcode: Option<String>,
    /// ISO 3166-1 alpha-2.
    #[schema(max_length = 10)]
    pub country_code: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 100)]
    pub locality: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 100)]
    pub county: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ShippingDetails {
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 100)]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 1024)]
    pub delivery_notes: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Address>,
}

/// How the intent may be paid and changed, and what its checkout page shows.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schema(as = PaymentIntentConfig)]
pub struct Config {
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 100)]
    pub title: Option<String>,
    /// Where the checkout page leads after a payment.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = Uri)]
    pub redirect_url: Option<String>,
    /// Where the checkout page leads when the customer gives up.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = Uri)]
    pub cancel_url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub customer_email: Option<Collection>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<ShownDetails>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub billing_address: Option<Collection>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shipping_details: Option<Collection>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payment: Option<PaymentConfig>,
}

/// Whether the checkout page asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Collection {
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = bool, required = false)]
    pub collection_required: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ShownDetails {
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = bool, required = false)]
    pub show_total: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = bool, required = false)]
    pub show_reference: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PaymentConfig {
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = bool, required = false)]
    pub custom_amount_allowed: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = bool, required = false)]
    pub tips_allowed: Option<bool>,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RequestSecurity {
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 300)]
    pub user_agent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 70)]
    pub ip_address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 120)]
    pub device: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ItemLine {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, max_length = 60, required = false)]
    pub id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = i32, required = false)]
    pub quantity: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, max_length = 100, required = false)]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    pub category: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Vec<Modifier>, required = false, max_items = 500)]
    pub modifiers: Option<Vec<Modifier>>,
    #[schema(required = true)]
    pub amount_total: Option<Money>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, max_length = 200, required = false)]
    pub plu: Option<String>,
}

/// An extra, or with a negative amount a discount, within an item.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Modifier {
    pub name: String,
    pub amount_per_modifier: Money,
    pub quantity: i64,
    pub id: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TaxLine {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, max_length = 60, required = false)]
    pub id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, max_length = 100, required = false)]
    pub caption: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 100)]
    pub sub_caption: Option<String>,
    pub amount_total: Money,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, max_length = 200, required = false)]
    pub affected_plu: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum PaymentMethod {
    Card,
    Wallet,
    SavedCard,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ActionLink {
    #[schema(format = Uri, min_length = 1)]
    pub url: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<ActionType>,
    #[schema(min_length = 1, max_length = 60)]
    pub label: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 256)]
    pub file_name: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum ActionType {
    OpenLink,
    DownloadFile,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum AutoExpireAction {
    Release,
    Capture,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct OrderDetails {
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub availability_date: Option<Stamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub is_update: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_id: Option<String>,
}
