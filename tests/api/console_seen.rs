//! The console as people see it, in a real Chromium: every page in both themes and two widths, judged by axe; with the keyboard alone;
//! copying without a clipboard; and a tab that refreshes for long. `PICTURES=folder` keeps a picture of each page.

use std::{
    fs,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::{
    browser::Browser,
    house::{ADMIN, House},
    support::until,
};

const PAGES: &[(&str, &str)] = &[
    ("overview", "/console"),
    ("issues", "/console/issues"),
    ("issue", "/console/issues/ep_a%3Arejected%3A401"),
    ("endpoints", "/console/endpoints"),
    ("no-endpoints", "/console/endpoints?account=acc_none"),
    ("endpoint", "/console/endpoints/ep_a"),
    ("deliveries", "/console/deliveries?account=acc_1"),
    ("ask", "/console/deliveries"),
    ("letter", "/console/deliveries/1-0%3Aep_a"),
    ("held", "/console/deliveries/91-0%3Aep_a"),
    ("intent", "/console/intents/pi_90"),
    ("letters", "/console/dead-letters?by=endpoint,cause"),
    ("all", "/console/dead-letters/all"),
    ("operations", "/console/operations"),
    ("quarantine", "/console/quarantine"),
    ("entry", "/console/quarantine/30-0"),
    ("audit", "/console/audit"),
    ("portal", "/console/portal"),
];

/// Faults that a page meets from its very beginning.
const WATCH: &str = "window.faults = [];
    addEventListener('error', event => faults.push(String(event.message || event.target?.src)), true);
    addEventListener('unhandledrejection', event => faults.push(String(event.reason)));
    document.addEventListener('securitypolicyviolation', event => faults.push(event.violatedDirective + ' ' + event.blockedURI));
    for (const kind of ['error', 'warn']) { const log = console[kind]; console[kind] = (...all) => { faults.push(all.join(' ')); log.apply(console, all); }; }";

/// What axe finds, what the page met, what it loaded from elsewhere, and whether it is wider than the display.
const JUDGE: &str = "const done = arguments[arguments.length - 1];
    const beside = performance.getEntriesByType('resource').map(one => one.name).filter(name => !name.startsWith(location.origin));
    axe.run().then(found => done({
        faults: found.violations.filter(one => ['serious', 'critical'].includes(one.impact)).map(one => one.id + ': ' + one.nodes.map(node => node.html).join(' | ')),
        rules: found.passes.length, met: window.faults, beside, over: document.documentElement.scrollWidth - innerWidth,
    }));";

pub async fn watched() -> Browser {
    let browser = Browser::with_scripts().await;
    browser.command("Page.addScriptToEvaluateOnNewDocument", &json!({ "source": WATCH })).await;
    browser
}

pub async fn signed_in(house: &House) -> Browser {
    let browser = watched().await;
    browser.open(&house.url("/console")).await;
    // The field has the keyboard already.
    browser.type_into("input[name=token]", &format!("{ADMIN}\u{e007}")).await;
    browser.until_titled("Overview · Herald").await;
    browser
}

/// Nothing changes there by itself.
async fn quiet_house() -> House {
    let house = House::start().await;
    let paused = house.post("/v1/pause", ADMIN, json!({"reason": "so that what waits goes on waiting"})).await;
    assert_eq!(paused.status, 200, "{}", paused.body);
    house
}

#[tokio::test]
async fn every_page_is_whole_in_both_themes_at_any_width_and_nothing_keeps_anybody_out() {
    let axe = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/verifiers/node/node_modules/axe-core/axe.min.js");
    let axe = fs::read_to_string(&axe).unwrap_or_else(|error| panic!("{}: {error}; run `make setup`", axe.display()));
    let pictures = std::env::var_os("PICTURES").map(PathBuf::from);
    let house = quiet_house().await;
    let browser = signed_in(&house).await;
    for (name, path) in PAGES {
        browser.open(&house.url(path)).await;
        browser.run(&axe).await;
        for width in [400, 1_600] {
            let display = json!({ "width": width, "height": 1_000, "deviceScaleFactor": 1, "mobile": width < 800 });
            browser.command("Emulation.setDeviceMetricsOverride", &display).await;
            for scheme in ["light", "dark"] {
                let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
                browser.command("Emulation.setEmulatedMedia", &media).await;
                let found = browser.run_async(JUDGE).await;
                assert!(found["rules"].as_u64().unwrap() > 10, "axe has judged nothing: {found}");
                for what in ["faults", "met", "beside"] {
                    assert_eq!(found[what], json!([]), "{what} of {name} at {width} in {scheme}");
                }
                assert!(found["over"].as_i64().unwrap() <= 0, "{name} at {width} in {scheme}: {found}");
                if let Some(folder) = &pictures {
                    let taken = browser
                        .command("Page.captureScreenshot", &json!({ "captureBeyondViewport": width == 400 }))
                        .await;
                    let bytes = STANDARD.decode(taken["data"].as_str().unwrap()).unwrap();
                    fs::create_dir_all(folder).unwrap();
                    fs::write(folder.join(format!("{name}-{scheme}-{width}.png")), bytes).unwrap();
                }
            }
        }
    }
}

#[tokio::test]
async fn an_endpoint_is_found_paused_and_resumed_with_the_keyboard_alone() {
    const ENTER: &str = "\u{e007}";
    const ESCAPE: &str = "\u{e00c}";
    let house = House::start().await;
    let browser = signed_in(&house).await;
    let state = async || house.get("/v1/endpoints/ep_a", ADMIN).await["state"].as_str().unwrap().to_owned();
    browser.type_into("body", "/").await;
    until("the field has the keyboard", async || browser.run("return document.activeElement.name").await == "q").await;
    browser.type_into("input[name=q]", &format!("ep_a{ENTER}")).await;
    browser.until_titled("Endpoint ep_a · Herald").await;

    let summary = "form[action$='/pause']";
    browser.type_into("details.act:has(form[action$='/pause']) > summary", ENTER).await;
    until("the form is open", async || browser.is_shown(summary).await).await;
    browser.type_into("form[action$='/pause'] input[name=reason]", ESCAPE).await;
    until("the form is closed", async || !browser.is_shown(summary).await).await;
    browser.type_into("details.act:has(form[action$='/pause']) > summary", ENTER).await;
    until("the reason has the keyboard", async || browser.run("return document.activeElement.name").await == "reason")
        .await;
    browser.type_into("form[action$='/pause'] input[name=reason]", &format!("they asked{ENTER}")).await;
    browser.until_it_says("It is paused: its deliveries wait.").await;
    assert_eq!(state().await, "paused");
    assert_eq!(browser.run("return window.faults").await, json!([]));
    // It is told beside what is refreshed, and no second time.
    browser.open(&house.url("/console/endpoints/ep_a")).await;
    assert!(!browser.text().await.contains("It is paused: its deliveries wait."));
}

#[tokio::test]
async fn an_id_is_copied_with_and_without_a_clipboard() {
    let house = House::start().await;
    let browser = signed_in(&house).await;
    browser.open(&house.url("/console/deliveries/1-0%3Aep_a")).await;
    // As over plain HTTP, where pages have none.
    browser.run("Object.defineProperty(navigator, 'clipboard', { value: undefined })").await;
    browser
        .run("window.taken = []; document.addEventListener('copy', () => taken.push(document.activeElement.value))")
        .await;
    browser.click("h1 button.copy").await;
    until("the id is copied", async || browser.run("return window.taken").await == json!(["1-0:ep_a"])).await;
    until("it says so", async || browser.run("return document.querySelector('h1 .copy').className").await != "copy")
        .await;
    browser.click("h2 button.copy.worded").await;
    until("the command is copied", async || {
        let taken = browser.run("return window.taken[1] || ''").await;
        taken.as_str().unwrap().starts_with("curl --request POST 'https://merchant.example/hook'")
    })
    .await;
}

#[tokio::test]
async fn a_tab_that_refreshes_for_long_neither_grows_nor_asks_twice_at_once() {
    let house = quiet_house().await;
    let browser = signed_in(&house).await;
    browser.open(&house.url("/console/dead-letters")).await;
    let counted = "window.most = window.under = window.ended = 0; const before = window.fetch;
        window.fetch = (...all) => { most = Math.max(most, ++under); return before(...all).finally(() => { --under; ++ended; }); };
        document.getElementById('refresh').dataset.every = 20;";
    browser.run(counted).await;
    let number = async |script: &str| browser.run(script).await.as_f64().unwrap();
    let nodes = "return document.getElementsByTagName('*').length";
    until("ten refreshes", async || number("return window.ended").await >= 10.0).await;
    let before = number(nodes).await;
    until("a hundred refreshes", async || number("return window.ended").await >= 100.0).await;
    assert_eq!(number(nodes).await, before);
    assert_eq!(number("return window.most").await, 1.0, "several were under way at once");

    // While Herald is silent one question waits, and the page says so once it has ended; what was seen stays.
    house.herald.signal(nix::sys::signal::Signal::SIGSTOP);
    until("a question waits", async || number("return window.under").await == 1.0).await;
    assert_eq!(number("return window.most").await, 1.0);
    house.herald.signal(nix::sys::signal::Signal::SIGCONT);
    until("it goes on", async || number("return window.ended").await >= 105.0).await;

    // A chosen letter stays chosen: nothing is refreshed under somebody's hands.
    browser.click("td.box input").await;
    until("it waits", async || browser.text().await.contains("Waits while you are at work here")).await;
    assert_eq!(number("return document.querySelectorAll('td.box input:checked').length").await, 1.0);
    assert_eq!(browser.run("return document.querySelector('output').textContent").await, "1");
    browser.click("td.box input").await;
    browser.run("document.activeElement.blur()").await;
    let ended = number("return window.ended").await;
    until("it goes on again", async || number("return window.ended").await > ended + 2.0).await;

    browser.click("#refresh button").await;
    until("it has stopped", async || number("return window.under").await == 0.0).await;
    browser.open(&house.url("/console/issues")).await;
    let label: Value = browser.run("return document.querySelector('#refresh button').textContent").await;
    assert_eq!(label, "Refresh again", "the next page of the tab stays still, too");
}

#[tokio::test]
async fn every_page_can_be_read_without_a_script() {
    let house = quiet_house().await;
    let browser = Browser::without_scripts().await;
    browser.open(&house.url("/console/login")).await;
    browser.type_into("input[name=token]", ADMIN).await;
    browser.click("button.primary").await;
    browser.until_titled("Overview · Herald").await;
    for (says, path) in
        [("pi_1", "/console/dead-letters"), ("held behind 90-0", "/console/intents/pi_90"), ("401", "/console/issues")]
    {
        browser.open(&house.url(path)).await;
        assert!(browser.text().await.contains(says), "{path}");
    }
    assert!(!browser.is_shown("#refresh").await, "what does nothing is not shown");
}
