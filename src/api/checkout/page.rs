//! What the page shows, from the intent as it is. How it looks is decided by the templates and `page.css`.

use std::sync::LazyLock;

use askama::Template;
use axum::http::StatusCode;
use base64::{Engine, engine::general_purpose::STANDARD};
use sha2::{Digest, Sha256};
use url::Url;

use super::{
    countries::COUNTRIES,
    fields::{BILLING, CARD, EMAIL, Field, Kind},
    form::{self, Asked, Fault, Typed},
    price::{Price, sign},
};
use crate::{
    facts::event::PaymentStatus,
    intents::{
        details::{ItemLine, TaxLine},
        intent::{CHALLENGE_FOR, Challenge, Intent},
        requests::link,
        stamp::Stamp,
    },
};

pub const HTML: &str = "text/html; charset=utf-8";

pub const STYLE: &str = include_str!("page.css");

/// Nothing but this style and the frame beside the page: no script, no picture, and nothing from anywhere.
static POLICY: LazyLock<String> =
    LazyLock::new(|| policy("frame-src 'self'; base-uri 'none'; frame-ancestors 'none'; form-action 'self'"));

fn policy(more: &str) -> String {
    let hash = STANDARD.encode(Sha256::digest(STYLE));
    format!("default-src 'none'; style-src 'sha256-{hash}'; {more}")
}

/// An answer of the page.
pub struct Page {
    pub status: StatusCode,
    pub html: String,
    pub policy: String,
    pub cookie: Option<String>,
}

/// An intent, as whoever opens its link finds it.
#[derive(Clone, Copy)]
pub struct Shown<'a> {
    pub intent: &'a Intent,
    pub now: Stamp,
    pub path: &'a str,
    pub is_https: bool,
}

impl Shown<'_> {
    fn page(&self, status: StatusCode, template: &impl Template) -> Page {
        let secure = if self.is_https { "; Secure" } else { "" };
        let cookie = format!("{}; Path={}; HttpOnly; SameSite=Strict{secure}", form::COOKIE, self.path);
        let config = self.intent.details.config.as_ref();
        let targets = [
            config.and_then(|config| config.redirect_url.as_deref()),
            config.and_then(|config| config.cancel_url.as_deref()),
        ];
        // A form may lead to where its merchant wants the customer next. From there some go on elsewhere.
        let mut policy = POLICY.clone();
        for scheme in ["https", "http"] {
            let leads_there = |url: Url| url.scheme() == scheme;
            if targets.iter().flatten().filter_map(|text| link(text)).any(leads_there) {
                policy.push_str(&format!(" {scheme}:"));
            }
        }
        Page { cookie: Some(cookie), policy, ..written(status, template) }
    }
}

fn written(status: StatusCode, template: &impl Template) -> Page {
    match template.render() {
        Ok(html) => Page { status, html, policy: POLICY.clone(), cookie: None },
        Err(error) => {
            tracing::error!(%error, "a checkout page cannot be written");
            let html = "<!doctype html><title>Payment</title><p>This page cannot be shown.".to_owned();
            Page { status: StatusCode::INTERNAL_SERVER_ERROR, html, policy: POLICY.clone(), cookie: None }
        }
    }
}

/// What a page of ours may show within itself, and nobody else.
pub fn framed(template: &impl Template) -> Page {
    let policy = policy("base-uri 'none'; frame-ancestors 'self'; form-action 'none'");
    Page { policy, ..written(StatusCode::OK, template) }
}

/// What the intent's state has to show. `is_thanks`: to whoever has just paid.
pub fn of_state(shown: Shown<'_>, is_thanks: bool) -> Page {
    let intent = shown.intent;
    let total = Price(intent.details.amount.of(intent.total()));
    let config = intent.details.config.as_ref();
    let returns_to = |url: Option<&String>| url.and_then(|text| link(text)).map(Return::to);
    let redirect = returns_to(config.and_then(|config| config.redirect_url.as_ref()));
    let (status, mark, title, says, next) = match intent.status {
        PaymentStatus::Created => {
            return match intent.pending_challenge(shown.now) {
                Some(challenge) => of_challenge(shown, challenge),
                None => of_form(shown, &Typed::known(intent), &[], notice(intent), StatusCode::OK),
            };
        }
        PaymentStatus::Authorized | PaymentStatus::Captured if is_thanks => {
            let says = format!("Your payment of {total} has been received.");
            (StatusCode::OK, Mark::Good, "Thank you", says, redirect)
        }
        PaymentStatus::Authorized | PaymentStatus::Captured => {
            let says = format!("The payment of {total} has been received. Nothing more is to be paid.");
            (StatusCode::OK, Mark::Good, "Already paid", says, redirect)
        }
        PaymentStatus::Refunded => {
            let says = "This payment was made, and money was paid back.".to_owned();
            (StatusCode::OK, Mark::Quiet, "Refunded", says, redirect)
        }
        PaymentStatus::Reversed => {
            let says = "This payment was reversed: the money is yours again.".to_owned();
            (StatusCode::OK, Mark::Quiet, "Payment reversed", says, redirect)
        }
        PaymentStatus::Canceled => {
            let says = "This payment was canceled or not made in time. You have not been charged.".to_owned();
            let next = returns_to(config.and_then(|config| config.cancel_url.as_ref()));
            (StatusCode::GONE, Mark::Quiet, "Payment canceled", says, next)
        }
    };
    let (path, summary) = (Some(shown.path), Some(Summary::of(intent)));
    let template = StateTemplate { style: STYLE, path, title, mark, says, summary, next };
    shown.page(status, &template)
}

/// The form again, with what was typed and what is wrong with it.
pub fn with_faults(shown: Shown<'_>, typed: &Typed, faults: &[Fault]) -> Page {
    of_form(shown, typed, faults, None, StatusCode::BAD_REQUEST)
}

/// The customer agreed to another total.
pub fn with_other_total(shown: Shown<'_>, typed: &Typed) -> Page {
    let total = Price(shown.intent.details.amount.of(shown.intent.total()));
    let says = format!("It is {total} now. You have not been charged: look at it again before you pay.");
    let notice = Notice { title: "The total has changed", says };
    of_form(shown, typed, &[], Some(notice), StatusCode::CONFLICT)
}

pub fn to_cancel(shown: Shown<'_>) -> Page {
    let summary = Summary::of(shown.intent);
    shown.page(StatusCode::OK, &CancelTemplate { style: STYLE, path: shown.path, summary })
}

/// For whoever is not interested in codes.
pub fn failed(status: StatusCode) -> Page {
    let (title, says) = match status {
        StatusCode::NOT_FOUND => ("Payment not found", "No payment has this link. Check that all of it was copied."),
        StatusCode::FORBIDDEN => ("Open the link again", "This came from another page, so nothing was done."),
        StatusCode::SERVICE_UNAVAILABLE => (
            "Try again in a moment",
            "The service did not answer in time. Open your payment link again: it shows whether your payment was made.",
        ),
        status if status.is_server_error() => (
            "Something went wrong",
            "This was not your doing. Open your payment link again in a while to see where it stands.",
        ),
        _ => (
            "That did not work",
            "The page could not be understood, so nothing was done. Open your payment link again.",
        ),
    };
    let template = StateTemplate {
        style: STYLE,
        path: None,
        title,
        mark: Mark::Bad,
        says: says.to_owned(),
        summary: None,
        next: None,
    };
    written(status, &template)
}

fn of_challenge(shown: Shown<'_>, challenge: &Challenge) -> Page {
    let until = (challenge.at + CHALLENGE_FOR).to_string();
    let template = ChallengeTemplate {
        style: STYLE,
        path: shown.path,
        summary: Summary::of(shown.intent),
        card: last_digits(&challenge.card.masked).to_owned(),
        until: until[11..16].to_owned(),
    };
    shown.page(StatusCode::OK, &template)
}

fn of_form(shown: Shown<'_>, typed: &Typed, faults: &[Fault], notice: Option<Notice>, status: StatusCode) -> Page {
    let intent = shown.intent;
    let asked = Asked::of(intent);
    let view = |field: &'static Field| FieldView {
        field,
        // A card's number and its code never come back.
        value: if field.kind.is_secret() { "" } else { typed.text(field.name) },
        fault: faults.iter().find(|fault| fault.field == field.name).map(|fault| fault.says.as_str()),
    };
    let views = |is_asked: bool, fields: Vec<&'static Field>| -> Vec<_> {
        if is_asked { fields.into_iter().map(view).collect() } else { Vec::new() }
    };
    let template = FormTemplate {
        style: STYLE,
        path: shown.path,
        summary: Summary::of(intent),
        total: intent.total(),
        price: Price(intent.details.amount.of(intent.total())),
        tips: Tips::of(intent, typed, faults),
        contact: views(asked.email, vec![&EMAIL]),
        delivery: views(asked.shipping, form::delivery().collect()),
        card: views(asked.card, CARD.iter().collect()),
        billing: views(asked.billing, BILLING.iter().collect()),
        can_be_same: asked.billing && asked.shipping,
        is_same: typed.is_same_address(),
        has_wallet: asked.wallet,
        faults,
        notice,
    };
    shown.page(status, &template)
}

/// How the last attempt ended, if it did.
fn notice(intent: &Intent) -> Option<Notice> {
    let attempt = intent.attempts.last()?;
    let card = last_digits(&attempt.masked);
    Some(match attempt.outcome.as_str() {
        "challenged" => Notice {
            title: "Payment not confirmed",
            says: format!(
                "Your bank’s question about the card ending {card} was not answered. You have not been charged: please pay again."
            ),
        },
        why => Notice {
            title: "Payment declined",
            says: format!("Card ending {card}: {why}. You have not been charged: try again, or use another card."),
        },
    })
}

fn last_digits(masked: &str) -> &str {
    masked.get(masked.len().saturating_sub(4)..).unwrap_or_default()
}

#[derive(Template)]
#[template(path = "api/checkout/form.html")]
struct FormTemplate<'a> {
    style: &'static str,
    path: &'a str,
    summary: Summary,
    total: i64,
    price: Price,
    tips: Option<Tips<'a>>,
    contact: Vec<FieldView<'a>>,
    delivery: Vec<FieldView<'a>>,
    card: Vec<FieldView<'a>>,
    billing: Vec<FieldView<'a>>,
    can_be_same: bool,
    is_same: bool,
    has_wallet: bool,
    faults: &'a [Fault],
    notice: Option<Notice>,
}

#[derive(Template)]
#[template(path = "api/checkout/challenge.html")]
struct ChallengeTemplate<'a> {
    style: &'static str,
    path: &'a str,
    summary: Summary,
    card: String,
    /// Hours and minutes, UTC.
    until: String,
}

#[derive(Template)]
#[template(path = "api/checkout/cancel.html")]
struct CancelTemplate<'a> {
    style: &'static str,
    path: &'a str,
    summary: Summary,
}

#[derive(Template)]
#[template(path = "api/checkout/state.html")]
struct StateTemplate<'a> {
    style: &'static str,
    /// Where the page is, if it is an intent's.
    path: Option<&'a str>,
    title: &'static str,
    mark: Mark,
    says: String,
    summary: Option<Summary>,
    next: Option<Return>,
}

struct Notice {
    title: &'static str,
    says: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    Good,
    Quiet,
    Bad,
}

impl Mark {
    fn class(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Quiet => "quiet",
            Self::Bad => "bad",
        }
    }

    fn sign(self) -> &'static str {
        match self {
            Self::Good => "✓",
            Self::Quiet => "–",
            Self::Bad => "!",
        }
    }
}

/// Where the customer goes on.
struct Return {
    url: Url,
    host: String,
}

impl Return {
    fn to(url: Url) -> Self {
        let host = url.host_str().unwrap_or_default().to_owned();
        Self { url, host }
    }
}

struct FieldView<'a> {
    field: &'static Field,
    value: &'a str,
    fault: Option<&'a str>,
}

impl FieldView<'_> {
    /// What a screen reader says of it beside its label.
    fn described_by(&self) -> String {
        let name = self.field.name;
        let hint = self.field.hint.map(|_| format!("{name}-hint"));
        let fault = self.fault.map(|_| format!("{name}-fault"));
        [hint, fault].into_iter().flatten().collect::<Vec<_>>().join(" ")
    }

    fn input_type(&self) -> &'static str {
        if self.field.kind == Kind::Email { "email" } else { "text" }
    }

    fn lines(&self) -> impl Iterator<Item = &str> {
        self.value.split('\n')
    }
}

/// The tips that can be chosen.
struct Tips<'a> {
    choices: Vec<TipChoice>,
    sign: &'static str,
    value: &'a str,
    fault: Option<&'a str>,
}

struct TipChoice {
    label: String,
    price: Option<Price>,
    value: i64,
    is_chosen: bool,
}

const TIP_PERCENT: [i64; 3] = [10, 15, 20];

impl<'a> Tips<'a> {
    fn of(intent: &Intent, typed: &'a Typed, faults: &'a [Fault]) -> Option<Self> {
        let (details, money) = (&intent.details, intent.details.amount);
        let chosen = details.tips_amount.map_or(0, |tips| tips.value);
        let none = TipChoice { label: "No tip".to_owned(), price: None, value: 0, is_chosen: chosen == 0 };
        let choices = TIP_PERCENT.into_iter().map(|percent| {
            let value = (money.value * percent + 50) / 100;
            let price = Some(Price(money.of(value)));
            TipChoice { label: format!("{percent}%"), price, value, is_chosen: chosen == value && value > 0 }
        });
        let fault = faults.iter().find(|fault| fault.field == form::OWN_TIP).map(|fault| fault.says.as_str());
        details.are_tips_allowed().then(|| Self {
            choices: std::iter::once(none).chain(choices).collect(),
            sign: sign(money.currency_code),
            value: typed.text(form::OWN_TIP),
            fault,
        })
    }
}

/// What is bought, and what it costs.
struct Summary {
    title: Option<String>,
    reference: Option<String>,
    description: Vec<String>,
    lines: Vec<Line>,
    taxes: Vec<Line>,
    /// What the total is made of, if it is more than one thing.
    parts: Vec<(&'static str, Price)>,
    total: Option<Price>,
}

struct Line {
    name: String,
    note: Option<String>,
    price: Option<Price>,
    modifiers: Vec<(String, Price)>,
}

impl Summary {
    fn of(intent: &Intent) -> Self {
        let details = &intent.details;
        let config = details.config.clone().unwrap_or_default();
        let shows = config.details.unwrap_or_default();
        let title = config.title.filter(|title| !title.trim().is_empty());
        let extras = [
            ("Tip", details.tips_amount),
            ("Service charge", details.service_charge_amount),
            ("Cashback", details.cashback_amount),
        ];
        let extras =
            extras.into_iter().filter_map(|(name, money)| Some((name, Price(money.filter(|money| money.value > 0)?))));
        let mut parts: Vec<_> = extras.collect();
        if !parts.is_empty() {
            parts.insert(0, ("Amount", Price(details.amount)));
        }
        Self {
            title,
            reference: (shows.show_reference != Some(false)).then(|| details.reference.clone()),
            description: details.description.iter().flat_map(|text| text.lines()).map(str::to_owned).collect(),
            lines: details.item_lines.iter().flatten().map(Line::of_item).collect(),
            taxes: details.tax_lines.iter().flatten().map(Line::of_tax).collect(),
            parts,
            total: (shows.show_total != Some(false)).then(|| Price(details.amount.of(intent.total()))),
        }
    }

    fn name(&self) -> &str {
        self.title.as_deref().unwrap_or("Your payment")
    }
}

impl Line {
    fn of_item(line: &ItemLine) -> Self {
        let name = line.name.clone().or_else(|| line.plu.clone()).or_else(|| line.id.clone());
        let modifiers = line.modifiers.iter().flatten();
        Self {
            name: name.unwrap_or_else(|| "Item".to_owned()),
            note: line.quantity.filter(|quantity| *quantity != 1).map(|quantity| format!("{quantity} ×")),
            price: line.amount_total.map(Price),
            modifiers: modifiers
                .map(|modifier| {
                    let (name, count) = (&modifier.name, modifier.quantity);
                    let name = if count == 1 { name.clone() } else { format!("{count} × {name}") };
                    (name, Price(modifier.amount_per_modifier))
                })
                .collect(),
        }
    }

    fn of_tax(line: &TaxLine) -> Self {
        Self {
            name: line.caption.clone().unwrap_or_else(|| "Tax".to_owned()),
            note: line.sub_caption.clone(),
            price: Some(Price(line.amount_total)),
            modifiers: Vec::new(),
        }
    }
}
