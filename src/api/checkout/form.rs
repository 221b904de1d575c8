//! What a customer has typed: read from a form that only this page can have sent, checked against what the intent asks for,
//! and shown to them again where it has faults. A card's number is in it, so there is no `Debug`.

use std::collections::BTreeMap;

use axum::{
    body::Bytes,
    extract::{FromRequest, Request},
    http::{HeaderMap, StatusCode, header},
};
use url::form_urlencoded;

use super::fields::{BILLING, CARD, EMAIL, Field, NOTES, RECIPIENT, SHIPPING, fault};
use crate::{
    http::problem::Problem,
    intents::{
        decide::Checkout,
        details::{Address, Collection, PaymentMethod, ShippingDetails},
        intent::{Card, Intent},
        issuer,
        money::{Currency, MAX_MINOR},
        stamp::Stamp,
    },
};

/// Whether the billing address is the one of the delivery.
pub const SAME: &str = "same-address";

/// The total that the customer was shown, in minor units.
pub const TOTAL: &str = "total";

/// Which of the two buttons was used.
pub const METHOD: &str = "method";
pub const WALLET: &str = "wallet";

/// A tip in minor units, as a button has it, and one in major units, as a customer writes it.
pub const TIP: &str = "tip";
pub const OWN_TIP: &str = "own-tip";

/// Given with the page; comes back with forms of the same site alone.
pub const COOKIE: &str = "herald-checkout=1";

/// By the fields' names.
#[derive(Default)]
pub struct Typed(BTreeMap<String, String>);

impl<S: Send + Sync> FromRequest<S> for Typed {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        check_site(request.headers())?;
        check_type(request.headers())?;
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection| match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => {
                Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", "The form is larger than 64 KiB.")
            }
            _ => Problem::fault("body", "did not arrive whole"),
        })?;
        Ok(Self::read(&bytes))
    }
}

/// Another site's page must not pay, tip or cancel. Browsers say where a form comes from; over plain HTTP they do not, but
/// keep a strict cookie to its own site.
fn check_site(headers: &HeaderMap) -> Result<(), Problem> {
    let is_ours = match headers.get("sec-fetch-site") {
        Some(site) => site == "same-origin" || site == "none",
        None => headers.get_all(header::COOKIE).iter().any(|cookies| {
            let cookies = cookies.to_str().unwrap_or_default();
            cookies.split(';').any(|cookie| cookie.trim() == COOKIE)
        }),
    };
    let refused = || Problem::new(StatusCode::FORBIDDEN, "foreign-form", "The form was not sent by the checkout page.");
    is_ours.then_some(()).ok_or_else(refused)
}

fn check_type(headers: &HeaderMap) -> Result<(), Problem> {
    let given = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let is_form = given
        .and_then(|text| text.parse::<mime::Mime>().ok())
        .is_some_and(|kind| kind.essence_str() == mime::APPLICATION_WWW_FORM_URLENCODED.essence_str());
    let refused = || {
        let detail = "The checkout page takes application/x-www-form-urlencoded alone.";
        Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "no-form", detail)
    };
    is_form.then_some(()).ok_or_else(refused)
}

impl Typed {
    /// Of a field that comes twice the first counts; no page sends one.
    fn read(body: &[u8]) -> Self {
        let mut typed = BTreeMap::new();
        for (name, text) in form_urlencoded::parse(body) {
            // Browsers end lines as the network does.
            let text = text.replace("\r\n", "\n");
            typed.entry(name.into_owned()).or_insert_with(|| text.trim().to_owned());
        }
        Self(typed)
    }

    /// What the intent already knows, so that nobody types it again.
    pub fn known(intent: &Intent) -> Self {
        let (details, mut typed) = (&intent.details, Self::default());
        let email = details.customer.as_ref().and_then(|customer| customer.email_address.clone());
        typed.put(&EMAIL, email);
        let shipping = details.shipping_details.clone().unwrap_or_default();
        typed.put(&RECIPIENT, shipping.name);
        typed.put(&NOTES, shipping.delivery_notes);
        typed.put_address(&SHIPPING, shipping.address.as_ref(), intent);
        typed.put_address(&BILLING, details.billing_address.as_ref(), intent);
        if details.billing_address.is_none() || details.billing_address == shipping.address {
            typed.0.insert(SAME.to_owned(), "on".to_owned());
        }
        typed
    }

    /// The same, with the tip that was typed: it has a form of its own, which knows nothing of the other fields.
    pub fn known_beside_tip(&self, intent: &Intent) -> Self {
        let mut known = Self::known(intent);
        known.0.insert(OWN_TIP.to_owned(), self.text(OWN_TIP).to_owned());
        known
    }

    fn put(&mut self, field: &Field, text: Option<String>) {
        if let Some(text) = text {
            self.0.insert(field.name.to_owned(), text);
        }
    }

    fn put_address(&mut self, fields: &[Field; 5], address: Option<&Address>, intent: &Intent) {
        let [line1, line2, city, postcode, country] = fields;
        let Some(address) = address.cloned() else {
            // Most likely, and changed in a moment where it is wrong.
            let is_british = intent.details.amount.currency_code == Currency::Gbp;
            return self.put(country, is_british.then(|| "GB".to_owned()));
        };
        self.put(line1, address.address1);
        self.put(line2, address.address2);
        self.put(city, address.city);
        self.put(postcode, address.postcode);
        self.put(country, Some(address.country_code));
    }

    pub fn text(&self, name: &str) -> &str {
        self.0.get(name).map(String::as_str).unwrap_or_default()
    }

    pub fn is_same_address(&self) -> bool {
        self.0.contains_key(SAME)
    }

    fn some(&self, field: &Field) -> Option<String> {
        Some(self.text(field.name)).filter(|text| !text.is_empty()).map(str::to_owned)
    }

    fn address(&self, fields: &[Field; 5]) -> Address {
        let [line1, line2, city, postcode, country] = fields;
        Address {
            address1: self.some(line1),
            address2: self.some(line2),
            address3: None,
            address4: None,
            city: self.some(city),
            state: None,
            postcode: self.some(postcode),
            country_code: self.text(country.name).to_owned(),
            locality: None,
            county: None,
        }
    }

    /// Not every country has postcodes.
    fn missing_postcode(&self, field: &Field) -> Option<String> {
        let of = field.name.strip_suffix("-postcode").filter(|_| self.text(field.name).is_empty())?;
        let is_british = self.text(&format!("{of}-country")) == "GB";
        let of = if of == "shipping" { "delivery" } else { of };
        is_british.then(|| format!("Enter the postcode of the {of} address"))
    }

    /// The tip that a button or the customer names, in minor units.
    pub fn tip(&self) -> Result<i64, Fault> {
        let is_own = self.0.contains_key(OWN_TIP);
        let tip = if is_own { minor(self.text(OWN_TIP)) } else { self.text(TIP).parse().ok() };
        let tip = tip.filter(|tip| (0..=MAX_MINOR).contains(tip));
        tip.ok_or_else(|| Fault { field: OWN_TIP, says: "Enter an amount of money, as in 2.50".to_owned() })
    }
}

/// `2`, `2.5` or `2.50`, perhaps with the currency's sign, in minor units.
fn minor(text: &str) -> Option<i64> {
    let text = text.trim_start_matches(['£', '€']).trim();
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(whole) || !is_number(part) || part.len() > 2 {
        return None;
    }
    let part = if part.len() == 1 { part.parse::<i64>().ok()? * 10 } else { part.parse().ok()? };
    whole.parse::<i64>().ok()?.checked_mul(100)?.checked_add(part)
}

/// What is wrong, and with which field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub field: &'static str,
    pub says: String,
}

/// What an intent asks of its customer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    pub email: bool,
    pub shipping: bool,
    pub billing: bool,
    pub card: bool,
    pub wallet: bool,
}

impl Asked {
    pub fn of(intent: &Intent) -> Self {
        let config = intent.details.config.clone().unwrap_or_default();
        let is_asked = |asked: Option<Collection>| asked.and_then(|asked| asked.collection_required) == Some(true);
        let methods = intent.details.payment_methods.as_deref().unwrap_or(&[PaymentMethod::Card]);
        Self {
            email: is_asked(config.customer_email),
            shipping: is_asked(config.shipping_details),
            billing: is_asked(config.billing_address),
            card: methods.contains(&PaymentMethod::Card),
            wallet: methods.contains(&PaymentMethod::Wallet),
        }
    }

    /// All fields that must be right to pay so, in the order in which they stand on the page.
    fn fields(self, is_same: bool, by_wallet: bool) -> Vec<&'static Field> {
        let mut fields = Vec::new();
        fields.extend(self.email.then_some(&EMAIL));
        if self.shipping {
            fields.extend(delivery());
        }
        if !by_wallet {
            fields.extend(&CARD);
        }
        if self.billing && !(self.shipping && is_same) {
            fields.extend(&BILLING);
        }
        fields
    }
}

pub fn delivery() -> impl Iterator<Item = &'static Field> {
    [&RECIPIENT].into_iter().chain(&SHIPPING).chain([&NOTES])
}

/// What a customer wants to be done. It has their card's number, so there is no `Debug`.
pub struct Order {
    pub number: String,
    pub card: Card,
    pub checkout: Checkout,
}

/// All faults at once.
pub fn order(intent: &Intent, typed: &Typed, now: Stamp) -> Result<Order, Vec<Fault>> {
    let asked = Asked::of(intent);
    let by_wallet = asked.wallet && (typed.text(METHOD) == WALLET || !asked.card);
    let is_same = typed.is_same_address();
    let mut faults: Vec<Fault> = Vec::new();
    for field in asked.fields(is_same, by_wallet) {
        let says = fault(field, typed.text(field.name), now).or_else(|| typed.missing_postcode(field));
        faults.extend(says.map(|says| Fault { field: field.name, says }));
    }
    // A wallet has a card in it; the sandbox's is the one that is approved.
    let number = if by_wallet { issuer::APPROVED } else { typed.text(CARD[0].name) };
    let (Some((number, card)), true) = (issuer::mask(number), faults.is_empty()) else { return Err(faults) };
    let shipping_details = asked.shipping.then(|| ShippingDetails {
        name: typed.some(&RECIPIENT),
        delivery_notes: typed.some(&NOTES),
        address: Some(typed.address(&SHIPPING)),
    });
    let billing_fields = if asked.shipping && is_same { &SHIPPING } else { &BILLING };
    let checkout = Checkout {
        // Whoever was shown none has agreed to none.
        total: typed.text(TOTAL).parse().unwrap_or_default(),
        email_address: asked.email.then(|| typed.some(&EMAIL)).flatten(),
        billing_address: asked.billing.then(|| typed.address(billing_fields)),
        shipping_details,
    };
    Ok(Order { number, card, checkout })
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn a_tip_is_read_as_people_write_money() {
        for (text, value) in [("2", 200), ("2.5", 250), ("2.50", 250), ("£0.05", 5), ("€ 10.00", 1_000), ("0", 0)] {
            assert_eq!(minor(text), Some(value), "{text}");
        }
        for text in
            ["", ".", "-1", "1.", ".5", "1.005", "1,50", "1e3", "٢", "99999999999999999999", "92233720368547758.08"]
        {
            assert_eq!(minor(text), None, "{text}");
        }
    }

    #[test]
    fn only_the_page_itself_may_send_its_forms() {
        let of = |name: &'static str, value: &'static str| {
            let headers = [(name.parse().unwrap(), HeaderValue::from_static(value))].into_iter().collect();
            check_site(&headers).is_ok()
        };
        assert!(of("sec-fetch-site", "same-origin") && of("sec-fetch-site", "none"));
        assert!(!of("sec-fetch-site", "cross-site") && !of("sec-fetch-site", "same-site") && !of("sec-fetch-site", ""));
        assert!(of("cookie", "a=b; herald-checkout=1") && !of("cookie", "herald-checkout=2") && !of("origin", "null"));
    }

    #[test]
    fn a_form_that_nobody_sends_is_read_without_harm() {
        let typed = Typed::read(b"a=1&a=2&%ff=%00&=x&b&c=+%E2%82%AC+&notes=x%0D%0Ay");
        assert_eq!([typed.text("a"), typed.text("b"), typed.text("c")], ["1", "", "\u{20ac}"]);
        assert_eq!(typed.text("notes"), "x\ny");
    }
}
