//! The checkout page as a customer meets it: in a real Chromium, with the keyboard and the mouse, and without any script of the
//! page's. `PICTURES=folder cargo test --test intents barriers` keeps a picture of each page, to be looked at.

use std::{
    fs,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use herald::{
    facts::{
        endpoint::Endpoint,
        id::{AccountId, EndpointId},
    },
    store::registry::RegistryStore,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::AbortHandle,
};

use super::{
    browser::Browser,
    checkout::Customer,
    house::{House, Merchant, created},
    merchants::{Merchants, Reply},
    process::Setup,
    support::until,
    world::{mark, secret},
};

/// The merchant's own site. It is at two names, which browsers take for two sites.
struct Shop {
    port: u16,
    task: AbortHandle,
}

impl Shop {
    /// `attack` is where a form on one of its pages leads.
    async fn open(attack: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = vec![0; 16 * 1024];
                let size = stream.read(&mut head).await.unwrap_or_default();
                let head = String::from_utf8_lossy(&head[..size]).into_owned();
                let path = head.split(' ').nth(1).unwrap_or_default();
                let answer = match path {
                    // Many a shop sends its customers on.
                    "/thanks" => format!("302 Found\r\nlocation: http://127.0.0.1:{port}/welcome\r\n"),
                    _ => "200 OK\r\ncontent-type: text/html\r\n".to_owned(),
                };
                let form = format!("<form method=post action='{attack}'><button>Win</button></form>");
                let referrer = head.to_ascii_lowercase().contains("\r\nreferer:");
                let body = format!("<title>Shop</title><p>{path}, referrer: {referrer}</p>{form}");
                let size = body.len();
                let whole = format!("HTTP/1.1 {answer}connection: close\r\ncontent-length: {size}\r\n\r\n{body}");
                let _ = stream.write_all(whole.as_bytes()).await;
            }
        });
        Self { port, task: serving.abort_handle() }
    }

    fn config(&self) -> Value {
        let at = |path: &str| format!("http://localhost:{}{path}", self.port);
        json!({ "title": "Fern & Fig", "redirectUrl": at("/thanks"), "cancelUrl": at("/cart") })
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn intent(merchant: &Merchant, config: Value) -> (String, String) {
    let mut asked = created();
    asked["config"] = config;
    let intent = merchant.create(&asked).await;
    (intent["id"].as_str().unwrap().to_owned(), intent["paymentLink"].as_str().unwrap().to_owned())
}

async fn fill_card(browser: &Browser, number: &str) {
    for (field, text) in
        [("#card-number", number), ("#expiry", "12/99"), ("#security-code", "123"), ("#card-name", "Ada")]
    {
        browser.fill(field, text).await;
    }
}

#[tokio::test]
async fn a_customer_pays_without_a_script_after_faults_a_decline_and_a_challenge() {
    let house = House::start().await;
    let (merchant, shop) = (house.merchant("acc_a"), Shop::open(String::new()).await);
    let mut config = shop.config();
    config["payment"] = json!({ "tipsAllowed": true });
    for asked in ["customerEmail", "billingAddress", "shippingDetails"] {
        config[asked] = json!({ "collectionRequired": true });
    }
    let (id, link) = intent(&merchant, config).await;
    let browser = Browser::without_scripts().await;
    browser.open("data:text/html,<title>off</title><script>document.title='on'</script>").await;
    assert_eq!(browser.title().await, "off", "scripts run: this proves nothing");

    browser.open(&link).await;
    assert_eq!(browser.title().await, "Pay £10.00 – Fern & Fig");
    browser.click(".choices button:nth-child(2)").await;
    browser.until_titled("Pay £11.00 – Fern & Fig").await;
    assert_eq!(browser.url().await, link);

    assert!(!browser.is_shown("#billing-line1").await, "it is the same as the delivery's");
    browser.click("#same-address").await;
    assert!(browser.is_shown("#billing-line1").await);
    browser.click("#same-address").await;
    browser.fill("#email", "ada@example").await;
    browser.fill("#shipping-name", "Ada Lovelace").await;
    browser.fill("#shipping-line1", "12 St James’s Square").await;
    browser.fill("#shipping-city", "London").await;
    browser.type_into("#shipping-country", "France").await;
    browser.fill("#shipping-notes", "Ring twice.\nThen wait.").await;
    fill_card(&browser, "4456 5300 0000 1014").await;
    // Enter sends the form as the button does.
    browser.type_into("#card-name", "\u{e007}").await;
    browser.until_it_says("Please check this\nCheck the digits of the card number").await;
    let kept = [
        browser.value("#email").await,
        browser.value("#shipping-country").await,
        browser.value("#shipping-notes").await,
    ];
    assert_eq!(kept, ["ada@example", "FR", "Ring twice.\nThen wait."]);
    let forgotten = [browser.value("#card-number").await, browser.value("#security-code").await];
    assert_eq!(forgotten, ["", ""]);
    browser.click(".notice a").await;
    browser.until_at(&format!("{link}#card-number")).await;

    fill_card(&browser, "4456 5300 0000 1013").await;
    browser.click("button.main").await;
    browser.until_it_says("Payment declined\nCard ending 1013").await;
    assert_eq!(browser.url().await, link, "a reload would pay again");
    assert_eq!(browser.value("#email").await, "ada@example");

    fill_card(&browser, "4456 5300 0000 1096").await;
    browser.click("button.main").await;
    browser.until_titled("Confirm your payment – Fern & Fig").await;
    browser.click("button.other").await;
    browser.until_it_says("the challenge failed").await;
    fill_card(&browser, "4456 5300 0000 1096").await;
    browser.click("button.main").await;
    browser.until_titled("Confirm your payment – Fern & Fig").await;
    browser.click("button.main").await;
    let place = format!("http://127.0.0.1:{}/welcome", shop.port);
    // The shop sends its customers on, and the page's policy lets it.
    browser.until_at(&place).await;
    assert!(browser.text().await.contains("referrer: false"), "the link of a payment is told to nobody");

    let (_, paid) = merchant.get(&format!("/payment-intents/{id}")).await;
    assert_eq!((&paid["status"], &paid["totalAmount"]["value"]), (&json!("Captured"), &json!(1_100)));
    assert_eq!(paid["billingAddress"], paid["shippingDetails"]["address"]);
    assert_eq!(paid["shippingDetails"]["deliveryNotes"], "Ring twice.\nThen wait.");
    browser.open(&link).await;
    assert!(browser.text().await.contains("Already paid"));
    drop(browser);
    house.end().await;
}

#[tokio::test]
async fn a_customer_cancels_and_no_other_site_does_it_for_them() {
    let house = House::start().await;
    let merchant = house.merchant("acc_a");
    let (id, link) = intent(&merchant, json!({})).await;
    let shop = Shop::open(format!("{link}/cancel")).await;
    let browser = Browser::without_scripts().await;
    // The page's cookie is there, and stays at home.
    browser.open(&link).await;
    browser.open(&format!("http://localhost:{}/offer", shop.port)).await;
    browser.click("button").await;
    browser.until_titled("Open the link again").await;
    assert_eq!(merchant.status(&id).await, "Created");

    let (id, link) = intent(&merchant, shop.config()).await;
    browser.open(&link).await;
    browser.click(".leave a").await;
    browser.until_titled("Cancel this payment? – Fern & Fig").await;
    // They think better of it, for now.
    browser.click(".leave a").await;
    browser.until_titled("Pay £10.00 – Fern & Fig").await;
    browser.click(".leave a").await;
    browser.until_titled("Cancel this payment? – Fern & Fig").await;
    browser.click("button.main").await;
    browser.until_at(&format!("http://localhost:{}/cart", shop.port)).await;
    assert_eq!(merchant.status(&id).await, "Canceled");
    browser.open(&link).await;
    assert!(browser.text().await.contains("Payment canceled"));
    drop(browser);
    house.end().await;
}

/// An endpoint of the account that tries once, or as often as usual.
async fn endpoint(house: &House, merchants: &Merchants, name: &str, most_attempts: Option<u32>) {
    let mut registry = RegistryStore::connect(&house.redis.redis()).await.unwrap();
    let (id, account) = (EndpointId::new(name).unwrap(), AccountId::new("acc_a").unwrap());
    let mut endpoint = Endpoint::new(id, account, merchants.url(name), secret(), 1);
    endpoint.retry.max_attempts = most_attempts;
    registry.create(endpoint, &mark()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_merchant_is_told_is_followed_beside_the_form_without_a_script() {
    let house = House::start().await;
    let merchants = Merchants::start(secret().reveal()).await;
    endpoint(&house, &merchants, "ep_shop", None).await;
    let (merchant, customer) = (house.merchant("acc_a"), Customer::new(&house));
    let (id, link) = intent(&merchant, json!({})).await;
    let beside = format!("/checkout/{id}/callbacks");
    until("the endpoint", async || customer.get(&beside).await.html.contains("owed")).await;
    assert!(customer.get(&beside).await.html.contains("http-equiv=\"refresh\""));
    assert!(!customer.get(&format!("{beside}?still")).await.html.contains("http-equiv"));

    let browser = Browser::without_scripts().await;
    browser.open(&link).await;
    browser.fill("#card-name", "Ada").await;
    browser.enter("iframe").await;
    browser.until_it_says("Something is still owed").await;
    browser.until_it_says("owed ep_shop").await;
    let herald = Setup::new(&house.redis.url()).start();
    browser.until_it_says("Nothing is owed").await;
    browser.until_it_says("settled ep_shop").await;
    assert!(!customer.get(&beside).await.html.contains("http-equiv"), "it is looked at for nothing");
    browser.leave().await;
    assert_eq!(browser.value("#card-name").await, "Ada", "the form was loaded anew");

    fill_card(&browser, "5200 0000 0000 0056").await;
    browser.click("button.main").await;
    browser.until_it_says("Thank you").await;
    browser.enter("iframe").await;
    browser.until_it_says("Captured").await;
    browser.until_it_says("Nothing is owed").await;
    drop(browser);
    assert!(herald.stop().await.success());
    house.end().await;
}

/// Each page there is, by a name for its pictures.
async fn all_pages(merchant: &Merchant, customer: &Customer) -> Vec<(&'static str, String)> {
    let asked = json!({ "collectionRequired": true });
    let money = |value: i64| json!({ "value": value, "currencyCode": "GBP" });
    let mut large = json!({
        "amount": money(4_650), "reference": "Order 2361", "serviceChargeAmount": money(250),
        "description": "Your order at Fern & Fig.\nCollected every Tuesday.", "paymentMethods": ["Card", "Wallet"],
        "itemLines": [
            { "quantity": 2, "name": "Monstera deliciosa, 12 cm", "amountTotal": money(2_400),
              "modifiers": [{ "name": "Clay pot", "amountPerModifier": money(300), "quantity": 2, "id": "m" }] },
            { "quantity": 1, "name": "Plant food", "amountTotal": money(850) },
            { "name": "Fern with a name that is far too long for one line of any phone", "amountTotal": money(1_400) },
        ],
        "taxLines": [{ "caption": "VAT", "subCaption": "20%, included", "amountTotal": money(775) }],
        "config": { "title": "Fern & Fig", "cancelUrl": "https://shop.example/cart", "payment": { "tipsAllowed": true } },
    });
    for member in ["customerEmail", "billingAddress", "shippingDetails"] {
        large["config"][member] = asked.clone();
    }
    let link = |intent: &Value| intent["paymentLink"].as_str().unwrap().to_owned();
    let form = link(&merchant.create(&large).await);
    let mut pages = vec![("form", form.clone())];
    let mut small = async |name: &'static str, card: &str, more: &str| {
        let link = link(&merchant.create(&created()).await);
        let path = url::Url::parse(&link).unwrap().path().to_owned();
        let card = [
            ("card-number", card),
            ("expiry", "12/99"),
            ("security-code", "1234"),
            ("card-name", "A"),
            ("total", "1000"),
        ];
        if !card[0].1.is_empty() {
            assert_eq!(customer.post(&path, &card).await.code, 303);
        }
        pages.push((name, format!("{link}{more}")));
        path
    };
    small("short", "", "").await;
    small("declined", "4456530000001013", "").await;
    small("challenge", "4456530000001096", "").await;
    small("thanks", "5200000000000056", "?paid").await;
    small("paid", "5200000000000056", "").await;
    small("cancel", "", "/cancel").await;
    let canceled = small("canceled", "", "").await;
    customer.post(&format!("{canceled}/cancel"), &[]).await;
    pages.push(("unknown", format!("{}x", form)));
    let (_, told) = &pages[5];
    pages.push(("callbacks", format!("{}/callbacks?still", told)));
    pages
}

/// What axe finds, and how many of its rules a page keeps.
const JUDGE: &str = "const done = arguments[0];
    const shown = node => node.html + ' ' + node.failureSummary;
    axe.run().then(found => done({
        faults: found.violations.map(fault => [fault.id, fault.nodes.map(shown)]),
        kept: found.passes.length,
    }));";

/// Judged by axe: contrast, names, labels, landmarks. And nothing is wider than the display.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_page_has_barriers_in_light_or_dark_on_a_phone_or_a_desk() {
    let axe = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/verifiers/node/node_modules/axe-core/axe.min.js");
    let axe = fs::read_to_string(&axe).unwrap_or_else(|error| panic!("{}: {error}; run `make setup`", axe.display()));
    let pictures = std::env::var_os("PICTURES").map(PathBuf::from);
    let desk = tempfile::tempdir().unwrap();
    let history = format!("sqlite:{}", desk.path().join("history.db").display());
    let house = House::with_history(&history).await;
    let merchants = Merchants::start(secret().reveal()).await;
    for (name, most_attempts) in [("ep_good", None), ("ep_late", None), ("ep_given_up", Some(1))] {
        merchants.rule(name, move |_| Reply::status(if name == "ep_good" { 200 } else { 500 }));
        endpoint(&house, &merchants, name, most_attempts).await;
    }
    let herald =
        Setup::new(&house.redis.url()).env("HERALD_RETRY_INITIAL", "1h").env("HERALD_RETRY_MAX_INTERVAL", "1h");
    let herald = herald.env("HERALD_HISTORY_URL", &history).start();
    let (merchant, customer) = (house.merchant("acc_a"), Customer::new(&house));
    let mut pages = all_pages(&merchant, &customer).await;
    let told = url::Url::parse(&pages.last().unwrap().1).unwrap();
    until("an outcome of each kind", async || {
        let html = customer.get(told.path()).await.html;
        ["delivered</b>", "owed, next attempt at ", "dead letter</b>"].iter().all(|outcome| html.contains(outcome))
    })
    .await;
    // What is wrong is shown in answer to a form, not at an address.
    pages.extend([("faults", pages[0].1.clone()), ("tip-fault", pages[0].1.clone())]);
    let browser = Browser::with_scripts().await;
    for (name, link) in pages {
        browser.open(&link).await;
        match name {
            "faults" => browser.click("button.main").await,
            "tip-fault" => browser.click(".own button").await,
            _ => {}
        }
        if name.contains("fault") {
            browser.until_it_says("Please check").await;
        }
        browser.run(&axe).await;
        for (width, height) in [(390, 844), (1_280, 900)] {
            let display = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 800 });
            browser.command("Emulation.setDeviceMetricsOverride", &display).await;
            for scheme in ["light", "dark"] {
                let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
                browser.command("Emulation.setEmulatedMedia", &media).await;
                let found = browser.run_async(JUDGE).await;
                assert_eq!(found["faults"], json!([]), "{name} at {width} in {scheme}");
                assert!(found["kept"].as_u64().is_some_and(|rules| rules > 10), "it was not judged: {found}");
                let wide = browser.run("return document.documentElement.scrollWidth").await;
                assert_eq!(wide, width, "{name} in {scheme} is to be moved sideways");
                if let Some(folder) = &pictures {
                    let whole = json!({ "captureBeyondViewport": true, "format": "png" });
                    let taken = browser.command("Page.captureScreenshot", &whole).await;
                    let png = STANDARD.decode(taken["data"].as_str().unwrap()).unwrap();
                    fs::write(folder.join(format!("{name}-{width}-{scheme}.png")), png).unwrap();
                }
            }
        }
    }
    drop(browser);
    assert!(herald.stop().await.success());
    house.end().await;
}
