//! The checkout page over plain HTTP: what it shows, asks, refuses and never says, to customers and to whoever else comes.

use futures_util::future::join_all;
use herald::http::server::LIMITS;
use reqwest::{Method, redirect::Policy};
use serde_json::{Value, json};

use super::house::{House, Merchant, created};

/// A browser without a window: it keeps no state and follows nothing.
pub struct Customer {
    client: reqwest::Client,
    url: String,
}

pub struct Page {
    pub code: u16,
    pub html: String,
    headers: reqwest::header::HeaderMap,
}

impl Page {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }
}

impl Customer {
    pub fn new(house: &House) -> Self {
        herald::tls::install_crypto_provider();
        let client = reqwest::Client::builder().redirect(Policy::none()).build().unwrap();
        Self { client, url: house.url().to_owned() }
    }

    pub async fn get(&self, path: &str) -> Page {
        Self::page(self.asking(Method::GET, path)).await
    }

    /// As the page's own form is sent.
    pub async fn post(&self, path: &str, fields: &[(&str, &str)]) -> Page {
        Self::page(self.posting(path, fields).header("sec-fetch-site", "same-origin")).await
    }

    fn posting(&self, path: &str, fields: &[(&str, &str)]) -> reqwest::RequestBuilder {
        let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        self.asking(Method::POST, path).header("content-type", "application/x-www-form-urlencoded").body(body)
    }

    fn asking(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url))
    }

    async fn page(request: reqwest::RequestBuilder) -> Page {
        let answer = request.send().await.unwrap();
        let (code, headers) = (answer.status().as_u16(), answer.headers().clone());
        Page { code, headers, html: answer.text().await.unwrap() }
    }
}

/// Of the card that is approved.
const CARD: [(&str, &str); 5] = [
    ("card-number", "5200 0000 0000 0056"),
    ("expiry", "12 / 99"),
    ("security-code", "987"),
    ("card-name", "Ada Lovelace"),
    ("total", "1000"),
];

fn with_card(number: &str) -> Vec<(&str, &str)> {
    let mut fields = CARD.to_vec();
    fields[0].1 = number;
    fields
}

const CHALLENGED: &str = "4456530000001096";
const DECLINED: &str = "4456530000001013";

async fn intent(merchant: &Merchant, config: Value) -> (String, String) {
    let mut asked = created();
    asked["config"] = config;
    path_of(merchant.create(&asked).await)
}

fn path_of(intent: Value) -> (String, String) {
    let id = intent["id"].as_str().unwrap().to_owned();
    let path = format!("/checkout/{id}");
    assert!(intent["paymentLink"].as_str().unwrap().ends_with(&path), "{intent}");
    (id, path)
}

#[tokio::test]
async fn the_page_shows_the_purchase_as_text_and_allows_nothing_else() {
    let house = House::start().await;
    let (merchant, customer) = (house.merchant("acc_secret"), Customer::new(&house));
    let money = |value: i64| json!({ "value": value, "currencyCode": "EUR" });
    let hostile = "</title><script>alert(1)</script>\"'\u{202e}";
    let (id, path) = path_of(
        merchant
            .create(&json!({
                "amount": money(123_456), "reference": hostile, "description": format!("first\n{hostile}"),
                "tipsAmount": money(100), "serviceChargeAmount": money(50), "generateRemoteToken": true,
                "config": { "title": hostile, "redirectUrl": "https://shop.example/;script-src *" },
                "metadata": { "private": "of-the-merchant" },
                "itemLines": [
                    { "name": hostile, "quantity": 3, "amountTotal": money(-5),
                      "modifiers": [{ "name": "oat milk", "amountPerModifier": money(7), "quantity": 2, "id": "m" }] },
                    { "plu": "0042", "amountTotal": money(9) },
                ],
                "taxLines": [{ "caption": "VAT", "subCaption": "20 %", "amountTotal": money(11) }],
            }))
            .await,
    );
    let page = customer.get(&path).await;
    assert_eq!(page.code, 200);
    let shown = [
        "€1,236.06",
        "€1,234.56",
        "€1.00",
        "€0.50",
        "−€0.05",
        "3 ×",
        "2 × oat milk, €0.07",
        "0042",
        "VAT",
        "20 %",
        "first<br>",
        "&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39;",
        "5200 0000 0000 0056",
        "<html lang=\"en\">",
    ];
    for text in shown {
        assert!(page.html.contains(text), "{text} is missing: {}", page.html);
    }
    let secret = merchant.get(&format!("/payment-intents/{id}")).await.1["clientSessionSecret"].clone();
    let beside = customer.get(&format!("{path}/callbacks")).await;
    assert_eq!((beside.code, beside.header("x-frame-options")), (200, "SAMEORIGIN"));
    assert!(beside.header("content-security-policy").contains("frame-ancestors 'self'; form-action 'none'"));
    assert!(page.html.contains(&format!("<iframe src=\"{path}/callbacks\" ")));
    for text in ["<script", "\u{202e}", "acc_secret", "of-the-merchant", secret.as_str().unwrap(), "http://", "src="] {
        assert!(!page.html.replace("<iframe src=", "").contains(text), "{text} is shown");
        assert!(!beside.html.contains(text), "{text} is shown beside it");
    }
    let policy = page.header("content-security-policy");
    assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{policy}");
    assert!(policy.ends_with("base-uri 'none'; frame-ancestors 'none'; form-action 'self' https:"), "{policy}");
    for page in [&page, &customer.get("/checkout/pi_x").await, &customer.post(&path, &[]).await] {
        let headers = ["cache-control", "referrer-policy", "x-frame-options", "x-content-type-options"];
        assert_eq!(headers.map(|name| page.header(name)), ["no-store", "no-referrer", "DENY", "nosniff"]);
        assert!(!page.header("content-security-policy").is_empty() && page.html.ends_with("</html>"));
    }
    house.end().await;
}

#[tokio::test]
async fn what_a_merchant_hides_is_not_shown_but_the_button_says_what_is_paid() {
    let house = House::start().await;
    let (merchant, customer) = (house.merchant("acc_a"), Customer::new(&house));
    let (_, path) = intent(&merchant, json!({ "details": { "showTotal": false, "showReference": false } })).await;
    let page = customer.get(&path).await.html;
    assert!(!page.contains("Order 236") && !page.contains("class=\"total\""), "{page}");
    assert!(page.contains("<button class=\"main\">Pay £10.00</button>"), "{page}");
    let (_, path) = intent(&merchant, json!({ "details": { "showTotal": true, "showReference": true } })).await;
    let page = customer.get(&path).await.html;
    assert!(page.contains("Order 236") && page.contains("class=\"total\""), "{page}");
    house.end().await;
}

fn asks_for_all() -> Value {
    let asked = json!({ "collectionRequired": true });
    json!({ "customerEmail": asked, "billingAddress": asked, "shippingDetails": asked })
}

/// Right in everything, with two different addresses.
fn filled_in() -> Vec<(&'static str, &'static str)> {
    let mut fields = CARD.to_vec();
    fields.extend([
        ("email", "ada@example.com"),
        ("shipping-name", "Ada <b>Lovelace</b>"),
        ("shipping-line1", "12 St James’s Square"),
        ("shipping-line2", "Flat 2"),
        ("shipping-city", "London"),
        ("shipping-postcode", "SW1Y 4JH"),
        ("shipping-country", "GB"),
        ("shipping-notes", "Ring twice.\r\nThen wait."),
        ("billing-line1", "1 Rue de Rivoli"),
        ("billing-city", "Paris"),
        ("billing-country", "FR"),
    ]);
    fields
}

#[tokio::test]
async fn all_faults_are_shown_at_once_and_only_the_card_must_be_typed_again() {
    let house = House::start().await;
    let (merchant, customer) = (house.merchant("acc_a"), Customer::new(&house));
    let (id, path) = intent(&merchant, asks_for_all()).await;
    let empty = customer.post(&path, &[]).await;
    let missing = [
        "email",
        "shipping-name",
        "shipping-line1",
        "shipping-city",
        "shipping-country",
        "card-number",
        "expiry",
        "security-code",
        "card-name",
        "billing-line1",
        "billing-city",
        "billing-country",
    ];
    assert_eq!(empty.code, 400);
    let of_summary: Vec<_> =
        empty.html.split("<li><a href=\"#").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert_eq!(of_summary, missing, "in the order of the page");
    for name in missing {
        assert!(empty.html.contains(&format!("id=\"{name}-fault\"")), "{name}");
    }
    let mut fields = filled_in();
    let too_long = "x".repeat(101);
    let wrong = [
        ("card-number", "4456 5300 0000 1097"),
        ("expiry", "01 / 20"),
        ("email", "ada@"),
        ("shipping-postcode", ""),
        ("billing-country", "ZZ"),
        ("shipping-city", too_long.as_str()),
    ];
    for (name, text) in wrong {
        fields.iter_mut().find(|field| field.0 == name).unwrap().1 = text;
    }
    let page = customer.post(&path, &fields).await;
    let said = [
        "Check the digits of the card number",
        "This card has expired",
        "Enter an email address as in",
        "Enter the postcode of the delivery address",
        "Choose a country from the list",
        "can have at most 100 characters",
        "<title>Error: ",
    ];
    for text in said {
        assert!(page.html.contains(text), "{text}: {}", page.html);
    }
    let kept = [
        "value=\"ada@\"",
        "Ada &lt;b&gt;Lovelace",
        "12 St James’s Square",
        "Ring twice.\nThen wait.</textarea>",
        "value=\"01 / 20\"",
        "value=\"1 Rue de Rivoli\"",
        "<option value=\"GB\" selected>",
    ];
    for text in kept {
        assert!(page.html.contains(text), "{text} has to be typed again: {}", page.html);
    }
    for secret in ["4456 5300 0000 1097", "4456530000001097", "\"987\""] {
        assert!(!page.html.contains(secret), "{secret} came back");
    }
    assert_eq!(merchant.get(&format!("/payment-intents/{id}")).await.1["billingAddress"], Value::Null);
    assert_eq!(house.events().await.len(), 1);
    house.end().await;
}

#[tokio::test]
async fn what_is_filled_in_is_kept_with_the_intent_and_a_card_never_is() {
    let house = House::start().await;
    let (merchant, customer) = (house.merchant("acc_a"), Customer::new(&house));
    let (id, path) = intent(&merchant, asks_for_all()).await;
    let mut fields = filled_in();
    fields[0].1 = DECLINED;
    let declined = customer.post(&path, &fields).await;
    assert_eq!((declined.code, declined.header("location")), (303, path.as_str()));
    let again = customer.get(&path).await.html;
    for text in
        ["Payment declined", "Card ending 1013", "value=\"ada@example.com\"", "value=\"Paris\"", "Ring twice.\nThen"]
    {
        assert!(again.contains(text), "{text}: {again}");
    }
    fields[0].1 = CARD[0].1;
    fields.push(("same-address", "on"));
    let paid = customer.post(&path, &fields).await;
    assert_eq!((paid.code, paid.header("location")), (303, format!("{path}?paid").as_str()));
    let (_, now) = merchant.get(&format!("/payment-intents/{id}")).await;
    let address = json!({ "address1": "12 St James’s Square", "address2": "Flat 2", "city": "London", "countryCode": "GB",
        "postcode": "SW1Y 4JH" });
    assert_eq!(now["customer"]["emailAddress"], "ada@example.com");
    assert_eq!(now["billingAddress"], address, "the same as the delivery's");
    let shipping =
        json!({ "name": "Ada <b>Lovelace</b>", "deliveryNotes": "Ring twice.\nThen wait.", "address": address });
    assert_eq!((&now["shippingDetails"], &now["status"]), (&shipping, &json!("Captured")));
    let record = house.redis.command::<String>(&["GET", &format!("herald:{{payment-intents}}:pi:{id}")]).await;
    assert!(record.contains("52000000****0056"), "{record}");
    for secret in ["5200000000000056", "5200 0000", "\"987\"", "12 / 99", "Ada Lovelace\""] {
        assert!(!record.contains(secret), "{secret} is kept: {record}");
    }
    // Nothing of it is shown any more.
    let after = customer.get(&path).await.html;
    assert!(!after.contains("ada@example.com") && !after.contains("James") && !after.contains("0056"), "{after}");
    house.end().await;
}

#[tokio::test]
async fn of_forms_that_are_sent_at_once_one_pays_and_all_see_that_it_is_paid() {
    let house = House::start().await;
    let (merchant, customer) = (house.merchant("acc_a"), Customer::new(&house));
    let (_, path) = intent(&merchant, json!({ "redirectUrl": "https://shop.example/thanks?a=1" })).await;
    let answers = join_all((0..8).map(|_| customer.post(&path, &CARD))).await;
    let places: Vec<_> = answers.iter().map(|page| (page.code, page.header("location"))).collect();
    let to_shop = places.iter().filter(|place| **place == (303, "https://shop.example/thanks?a=1")).count();
    let to_page = places.iter().filter(|place| **place == (303, path.as_str())).count();
    assert_eq!((to_shop, to_page), (1, 7), "{places:?}");
    let page = customer.get(&path).await;
    assert!(
        page.code == 200 && page.html.contains("Already paid") && page.html.contains("https://shop.example/thanks?a=1")
    );
    assert_eq!(house.events().await.len(), 2, "paid once");
    house.end().await;
}

#[tokio::test]
async fn nobody_pays_another_total_than_the_one_they_were_shown() {
    let house = House::start().await;
    let (merchant, customer) = (house.merchant("acc_a"), Customer::new(&house));
    let (id, path) =
        intent(&merchant, json!({ "payment": { "customAmountAllowed": true, "tipsAllowed": true } })).await;
    let dearer = json!({ "amount": { "value": 1_200, "currencyCode": "GBP" } });
    assert_eq!(merchant.post(&format!("/payment-intents/{id}/amount"), &dearer).await.0, 200);
    for total in ["1000", "", "-1", "many"] {
        let mut fields = CARD.to_vec();
        fields[4].1 = total;
        let page = customer.post(&path, &fields).await;
        assert_eq!(page.code, 409, "{total}");
        assert!(page.html.contains("The total has changed") && page.html.contains("It is £12.00 now"), "{}", page.html);
    }
    assert_eq!(merchant.status(&id).await, "Created");

    assert!(customer.get(&path).await.html.contains("<b>15%</b><span>£1.80</span>"));
    assert_eq!(customer.post(&format!("{path}/tip"), &[("tip", "180")]).await.code, 303);
    assert_eq!(customer.post(&format!("{path}/tip"), &[("own-tip", "£2.5")]).await.code, 303);
    for wrong in
        [("own-tip", "1,5"), ("own-tip", ""), ("tip", "-1"), ("tip", "1.5"), ("own-tip", "10000000000000"), ("x", "")]
    {
        let page = customer.post(&format!("{path}/tip"), &[wrong]).await;
        assert!(page.code == 400 && page.html.contains("id=\"own-tip-fault\""), "{wrong:?}: {}", page.html);
        assert!(wrong.0 != "own-tip" || page.html.contains(&format!("value=\"{}\"", wrong.1)), "{}", page.html);
    }
    let mut fields = CARD.to_vec();
    fields[4].1 = "1450";
    assert_eq!(customer.post(&path, &fields).await.header("location"), format!("{path}?paid"));
    let (_, paid) = merchant.get(&format!("/payment-intents/{id}")).await;
    assert_eq!((&paid["totalAmount"]["value"], &paid["tipsAmount"]["value"]), (&json!(1_450), &json!(250)));

    let (id, path) = intent(&merchant, json!({})).await;
    assert!(!customer.get(&path).await.html.contains("Add a tip"));
    customer.post(&format!("{path}/tip"), &[("tip", "180")]).await;
    assert_eq!(merchant.get(&format!("/payment-intents/{id}")).await.1["totalAmount"]["value"], 1_000);
    house.end().await;
}

#[tokio::test]
async fn a_challenge_is_met_failed_or_left_alone_and_the_intent_is_paid_after_all() {
    let house = House::start().await;
    let (merchant, customer) = (house.merchant("acc_a"), Customer::new(&house));
    let (id, path) = intent(&merchant, json!({})).await;
    let challenge = format!("{path}/challenge");
    assert_eq!(customer.post(&path, &with_card(CHALLENGED)).await.header("location"), path);
    let asked = customer.get(&path).await.html;
    assert!(asked.contains("Your bank asks") && asked.contains("<b>1096</b>"), "{asked}");
    assert_eq!(customer.post(&challenge, &[("result", "fail")]).await.header("location"), path);
    assert!(customer.get(&path).await.html.contains("the challenge failed"));
    customer.post(&path, &with_card(CHALLENGED)).await;
    merchant.post("/sandbox/clock/advance", &json!({ "by": "00:10:00" })).await;
    assert!(customer.get(&path).await.html.contains("Payment not confirmed"));
    assert_eq!(customer.post(&challenge, &[("result", "pass")]).await.header("location"), path);
    assert_eq!(merchant.status(&id).await, "Created");
    assert_eq!(customer.post(&challenge, &[]).await.code, 400);
    customer.post(&path, &with_card(CHALLENGED)).await;
    assert_eq!(customer.post(&challenge, &[("result", "pass")]).await.header("location"), format!("{path}?paid"));
    assert_eq!(merchant.status(&id).await, "Captured");
    assert_eq!(house.events().await.len(), 2, "nobody is told of an attempt that failed");
    house.end().await;
}

#[tokio::test]
async fn each_state_has_its_page_and_what_is_over_cannot_be_paid() {
    let house = House::start().await;
    let (merchant, customer) = (house.merchant("acc_a"), Customer::new(&house));
    for path in
        ["/checkout/pi_sandbox_AAAAAAAAAAAAAAAAAAAAAA", "/checkout/x", "/checkout/%ff", "/checkout/pi_%3Cscript%3E"]
    {
        let page = customer.get(path).await;
        assert!(page.code == 404 || path.contains("%ff") && page.code == 400, "{path}: {}", page.code);
        assert!(page.html.contains("<h1>") && !page.html.contains("<script"), "{path}: {}", page.html);
        assert!(customer.post(path, &CARD).await.code == page.code);
    }
    let (id, path) = intent(&merchant, json!({ "cancelUrl": "http://shop.example/cart" })).await;
    assert!(customer.get(&format!("{path}/cancel")).await.html.contains("Cancel this payment?"));
    assert_eq!(merchant.status(&id).await, "Created", "to ask changes nothing");
    let canceled = customer.post(&format!("{path}/cancel"), &[]).await;
    assert_eq!((canceled.code, canceled.header("location")), (303, "http://shop.example/cart"));
    let page = customer.get(&path).await;
    assert!(
        page.code == 410 && page.html.contains("Payment canceled") && page.html.contains("http://shop.example/cart")
    );
    for post in ["", "/cancel", "/tip"] {
        assert_eq!(customer.post(&format!("{path}{post}"), &CARD).await.header("location"), path, "{post}");
    }
    assert_eq!(merchant.status(&id).await, "Canceled");

    let (id, path) = intent(&merchant, json!({})).await;
    customer.post(&path, &CARD).await;
    assert!(customer.get(&format!("{path}?paid")).await.html.contains("Thank you"));
    assert_eq!(customer.post(&format!("{path}/cancel"), &[]).await.header("location"), path);
    assert!(customer.get(&path).await.html.contains("Already paid"));
    merchant.post_as("k", &format!("/payment-intents/{id}/refunds"), &json!({ "amount": 400 })).await;
    let page = customer.get(&format!("{path}?paid")).await;
    assert!(page.code == 200 && page.html.contains("<h1>Refunded</h1>"), "{}", page.html);

    let mut soon = created();
    soon["expireAt"] = json!("2199-01-01T00:00:00Z");
    let (_, path) = path_of(merchant.create(&soon).await);
    merchant.post("/sandbox/clock/advance", &json!({ "to": "2199-01-01T00:00:00Z" })).await;
    assert_eq!(customer.get(&path).await.code, 410, "not paid in time");
    house.end().await;
}

#[tokio::test]
async fn purchases_without_cards_are_paid_by_a_wallet_or_not_at_all() {
    let house = House::start().await;
    let (merchant, customer) = (house.merchant("acc_a"), Customer::new(&house));
    let with = async |methods: Value| {
        let mut asked = created();
        asked["paymentMethods"] = methods;
        path_of(merchant.create(&asked).await)
    };
    let (id, path) = with(json!(["Card", "Wallet"])).await;
    let paid = customer.post(&path, &[("method", "wallet"), ("total", "1000")]).await;
    assert_eq!((paid.code, merchant.status(&id).await.as_str()), (303, "Captured"));
    let (id, path) = with(json!(["Wallet"])).await;
    assert!(!customer.get(&path).await.html.contains("card-number"));
    assert_eq!(customer.post(&path, &[("total", "1000")]).await.code, 303);
    assert_eq!(merchant.status(&id).await, "Captured");
    let (id, path) = with(json!(["SavedCard"])).await;
    assert!(customer.get(&path).await.html.contains("No way to pay here"));
    assert_eq!(customer.post(&path, &CARD).await.header("location"), path);
    // Nor by asking for a wallet that is not offered.
    let (card_only, path) = with(json!(["Card"])).await;
    assert_eq!(customer.post(&path, &[("method", "wallet"), ("total", "1000")]).await.code, 400);
    assert_eq!([merchant.status(&id).await, merchant.status(&card_only).await], ["Created", "Created"]);
    house.end().await;
}

#[tokio::test]
async fn forms_of_others_and_what_is_no_form_do_nothing() {
    let house = House::start().await;
    let (merchant, customer) = (house.merchant("acc_a"), Customer::new(&house));
    let (id, path) = intent(&merchant, json!({ "payment": { "tipsAllowed": true } })).await;
    for post in ["", "/tip", "/challenge", "/cancel"] {
        let path = format!("{path}{post}");
        let with =
            async |name: &str, value: &str| Customer::page(customer.posting(&path, &CARD).header(name, value)).await;
        for (name, value) in [
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
            ("origin", "https://evil.example"),
            ("origin", "null"),
            ("cookie", "herald-checkout=0"),
        ] {
            let page = with(name, value).await;
            assert!(page.code == 403 && page.html.contains("Open the link again"), "{post} {value}: {}", page.code);
        }
        let page = with("sec-fetch-site", "same-origin").await;
        assert_ne!(page.code, 403);
        let json = customer.asking(Method::POST, &path).header("sec-fetch-site", "same-origin");
        assert_eq!(Customer::page(json.header("content-type", "application/json").body("{}")).await.code, 415);
        let large = "x".repeat(LIMITS.body_bytes + 1);
        assert_eq!(customer.post(&path, &[("email", &large)]).await.code, 413);
        if post == "/cancel" {
            break;
        }
    }
    let page = Customer::page(customer.asking(Method::PUT, &path)).await;
    assert!(page.code == 405 && page.header("allow").contains("POST") && page.html.contains("<h1>"), "{}", page.html);
    assert_eq!(customer.get(&format!("{path}/challenge")).await.code, 405);
    // It was paid by the page's own form, once.
    assert_eq!(merchant.status(&id).await, "Captured");

    // Browsers that do not say where a form comes from keep the page's cookie to its own site.
    let (id, path) = intent(&merchant, json!({})).await;
    let page = customer.get(&path).await;
    let cookie = page.header("set-cookie");
    assert!(cookie.contains("; HttpOnly; SameSite=Strict") && cookie.contains(&format!("Path={path};")), "{cookie}");
    let given = cookie.split(';').next().unwrap();
    assert_eq!(Customer::page(customer.posting(&path, &CARD).header("cookie", given)).await.code, 303);
    assert_eq!(merchant.status(&id).await, "Captured");
    house.end().await;
}

/// Bytes that no page sends, many at once: each is answered, and none changes or breaks anything.
#[tokio::test]
async fn hostile_forms_are_answered_and_change_nothing() {
    let house = House::start().await;
    let (merchant, customer) = (house.merchant("acc_a"), Customer::new(&house));
    let mut config = asks_for_all();
    config["payment"] = json!({ "tipsAllowed": true });
    let (id, path) = intent(&merchant, config).await;
    let names =
        ["email", "card-number", "expiry", "security-code", "total", "method", "shipping-country", "own-tip", "result"];
    let values = [
        "%00",
        "%ff%fe",
        "%",
        "%zz",
        "=&=&",
        "%F0%9F%92%B3",
        "-9223372036854775808",
        "1e999",
        "%0D%0ASet-Cookie:x",
        "a%0Ab",
    ];
    let mut bodies: Vec<Vec<u8>> = vec![vec![], vec![b'&'; 60_000], vec![0xff; 60_000], b"%".repeat(60_000)];
    bodies.extend(names.iter().flat_map(|name| values.iter().map(move |value| format!("{name}={value}").into_bytes())));
    let sent = bodies.iter().flat_map(|body| {
        ["", "/tip", "/challenge"].map(|post| {
            let request =
                customer.asking(Method::POST, &format!("{path}{post}")).header("sec-fetch-site", "same-origin");
            Customer::page(request.header("content-type", "application/x-www-form-urlencoded").body(body.clone()))
        })
    });
    for page in join_all(sent).await {
        assert!(page.code == 400 && page.html.ends_with("</html>"), "{}: {}", page.code, page.html);
        assert!(!page.html.contains('\u{0}') && page.header("set-cookie") != "x", "{}", page.html);
    }
    let (_, after) = merchant.get(&format!("/payment-intents/{id}")).await;
    assert_eq!((&after["status"], &after["tipsAmount"]), (&json!("Created"), &Value::Null));
    house.end().await;
}

#[tokio::test]
async fn a_redis_that_is_full_is_told_to_customers_in_words() {
    let house = House::start().await;
    let (merchant, customer) = (house.merchant("acc_a"), Customer::new(&house));
    let (id, path) = intent(&merchant, json!({})).await;
    house.redis.set_maxmemory(1).await;
    let page = customer.post(&path, &CARD).await;
    assert_eq!((page.code, page.header("retry-after")), (503, "5"), "{}", page.html);
    assert!(page.html.contains("Try again in a moment") && !page.html.contains("Redis"), "{}", page.html);
    house.redis.set_maxmemory(0).await;
    assert_eq!(merchant.status(&id).await, "Created");
    assert_eq!(customer.post(&path, &CARD).await.code, 303);
    house.end().await;
}

#[tokio::test]
async fn there_is_no_page_outside_the_sandbox() {
    let house = House::without_sandbox().await;
    let (merchant, customer) = (house.merchant("acc_a"), Customer::new(&house));
    let (id, path) = path_of(merchant.create(&created()).await);
    assert_eq!(customer.get(&path).await.code, 404);
    assert_eq!(customer.get(&format!("{path}/callbacks")).await.code, 404);
    assert_eq!(customer.post(&path, &CARD).await.code, 404);
    assert_eq!(merchant.status(&id).await, "Created");
    house.end().await;
}
