//! The payment intent as its merchant gets it, from every call that answers one.

use serde::Serialize;
use utoipa::ToSchema;

use super::{
    details::{
        ActionLink, Address, AutoExpireAction, Config, Customer, ItemLine, OrderDetails, PaymentMethod,
        RequestSecurity, ShippingDetails, TaxLine, capture_mode,
    },
    intent::{Capture, Intent, Payment},
    money::{self, Money},
    requests::Status,
    stamp::{Stamp, TimeSpan},
};
use crate::facts::event::{CaptureMode, PaymentStatus};

/// Where no secret was made: the first instant that .NET knows.
const NEVER: &str = "0001-01-01T00:00:00Z";

const CARD_SCHEMES: [&str; 6] = ["VISA", "MASTERCARD", "MAESTRO", "DISCOVER", "DCI", "AMEX"];
const WALLETS: [&str; 2] = ["APPLE_PAY", "GOOGLE_PAY"];

#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = PaymentIntent)]
pub struct Document {
    pub id: String,
    #[schema(schema_with = capture_mode)]
    pub capture_mode: CaptureMode,
    pub card_holder_not_present: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_session_secret: Option<String>,
    #[schema(format = DateTime)]
    pub client_session_secret_expiration_date: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payment_details: Option<PaymentDetails>,
    #[schema(value_type = Status)]
    pub status: PaymentStatus,
    pub payment_methods: Vec<PaymentMethod>,
    pub amount: Money,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tips_amount: Option<Money>,
    /// The amount at its creation, once it has been changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requested_amount: Option<Money>,
    /// Amount, tips, service charge and cashback.
    pub total_amount: Money,
    /// In minor units.
    pub refunded_amount: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub customer: Option<Customer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_security: Option<RequestSecurity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub billing_address: Option<Address>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shipping_details: Option<ShippingDetails>,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Stamp,
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Stamp,
    pub reference: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subtotal_line_items: Option<Money>,
    pub item_lines: Vec<ItemLine>,
    pub tax_lines: Vec<TaxLine>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action_link: Option<ActionLink>,
    pub merchant_config: MerchantConfig,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<Config>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_expire_action: Option<AutoExpireAction>,
    #[schema(value_type = String, format = DateTime)]
    pub expire_at: Stamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub auto_expire_in: Option<TimeSpan>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<std::collections::BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order_details: Option<OrderDetails>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub setup_intent_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cashback_amount: Option<Money>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_charge_amount: Option<Money>,
    /// The page where the customer pays.
    #[schema(format = Uri)]
    pub payment_link: String,
    /// Always empty: there are no terminals here.
    #[schema(value_type = Vec<Object>)]
    pub terminal_session_history: Vec<()>,
    pub captures: Vec<CaptureDetails>,
}

#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PaymentDetails {
    pub transaction_id: String,
    #[schema(value_type = String, format = DateTime)]
    pub transaction_date_time: Stamp,
    pub message: &'static str,
    pub auth_code: String,
    pub card: CardDetails,
}

#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Card)]
pub struct CardDetails {
    pub card_number: String,
    pub card_type: String,
    #[serde(rename = "last4PAN")]
    pub last4: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MerchantConfig {
    pub supported_payment_methods: SupportedPaymentMethods,
}

#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SupportedPaymentMethods {
    pub card_schemes: Vec<&'static str>,
    pub wallets: Vec<&'static str>,
}

#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CaptureDetails {
    pub id: String,
    pub amount: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tips_amount: Option<i64>,
    /// `Successful`: what the issuer holds can be taken.
    pub status: &'static str,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Stamp,
}

impl Document {
    /// `links` is where the checkout page of each intent is, up to its id.
    pub fn of(intent: &Intent, links: &str) -> Self {
        let details = intent.details.clone();
        let money = details.amount;
        let secret = intent.secret.as_ref();
        Self {
            id: intent.id.to_string(),
            capture_mode: intent.mode(),
            card_holder_not_present: details.card_holder_not_present.unwrap_or_default(),
            client_session_secret: secret.map(|secret| secret.text.clone()),
            client_session_secret_expiration_date: secret
                .map_or_else(|| NEVER.to_owned(), |secret| secret.expires_at().to_string()),
            payment_details: intent.payment.as_ref().map(|payment| payment_details(intent, payment)),
            status: intent.status,
            payment_methods: details.payment_methods.unwrap_or_else(|| vec![PaymentMethod::Card]),
            amount: money,
            tips_amount: details.tips_amount,
            requested_amount: intent.requested.map(|value| money.of(value)),
            total_amount: money.of(intent.total()),
            refunded_amount: intent.refunded(),
            customer: details.customer,
            request_security: details.request_security,
            billing_address: details.billing_address,
            shipping_details: details.shipping_details,
            created_at: intent.created_at,
            updated_at: intent.changed_at,
            reference: details.reference,
            description: details.description,
            subtotal_line_items: subtotal(details.item_lines.as_deref()).map(|value| money.of(value)),
            item_lines: details.item_lines.unwrap_or_default(),
            tax_lines: details.tax_lines.unwrap_or_default(),
            action_link: details.action_link,
            merchant_config: MerchantConfig {
                supported_payment_methods: SupportedPaymentMethods {
                    card_schemes: CARD_SCHEMES.to_vec(),
                    wallets: WALLETS.to_vec(),
                },
            },
            config: details.config,
            auto_expire_action: details.auto_expire_action,
            expire_at: intent.expires_at(),
            auto_expire_in: details.auto_expire_in,
            metadata: details.metadata,
            order_details: details.order_details,
            setup_intent_id: details.setup_intent_id,
            cashback_amount: details.cashback_amount,
            service_charge_amount: details.service_charge_amount,
            payment_link: format!("{links}{}", intent.id),
            terminal_session_history: Vec::new(),
            captures: intent.captures.iter().map(capture_details).collect(),
        }
    }
}

/// None without lines.
fn subtotal(lines: Option<&[ItemLine]>) -> Option<i64> {
    let lines = lines.filter(|lines| !lines.is_empty())?;
    money::sum(lines.iter().filter_map(|line| line.amount_total).map(|money| money.value))
}

fn payment_details(intent: &Intent, payment: &Payment) -> PaymentDetails {
    let masked = payment.card.masked.clone();
    let last4 = masked.chars().skip(masked.chars().count().saturating_sub(4)).collect();
    PaymentDetails {
        transaction_id: payment.transaction.clone(),
        transaction_date_time: payment.at,
        message: if intent.status == PaymentStatus::Authorized { "AUTHORIZED" } else { "DEPOSITED" },
        auth_code: payment.auth_code.clone(),
        card: CardDetails { card_number: masked, card_type: payment.card.scheme.clone(), last4 },
    }
}

fn capture_details(capture: &Capture) -> CaptureDetails {
    CaptureDetails {
        id: capture.id.clone(),
        amount: capture.amount,
        tips_amount: capture.tips,
        status: "Successful",
        created_at: capture.at,
    }
}
