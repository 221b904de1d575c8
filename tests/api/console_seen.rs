//! The console as people see it, in a real Chromium: every page in both themes and two widths, judged by axe; with the keyboard alone;
//! copying without a clipboard; and a tab that refreshes for long. `PICTURES=folder` keeps a picture of each page.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::{
    browser::Browser,
    console::Filled,
    hostile::{Full, fill},
    house::{ADMIN, House},
    support::until,
};

/// Each route that shows a page, and who looks at it where. `{…}` of an address is filled in from the house.
const VISITS: &[(&str, &str, &str)] = &[
    ("/console/login", "nobody", "/console/login"),
    ("/console/enter/{code}", "nobody", "/console/enter/gone"),
    ("/console", "admin", "/console"),
    ("/console/issues", "admin", "/console/issues"),
    ("/console/issues", "admin", "/console/issues?account=acc_none"),
    ("/console/issues/{issue}", "admin", "/console/issues/ep_a%3Arejected%3A401"),
    ("/console/issues/{issue}", "admin", "/console/issues/{endpoint}%3Arejected%3A400"),
    ("/console/endpoints", "admin", "/console/endpoints"),
    ("/console/endpoints", "admin", "/console/endpoints?account=acc_none"),
    ("/console/endpoints", "merchant", "/console/endpoints"),
    ("/console/endpoints/new", "admin", "/console/endpoints/new"),
    ("/console/endpoints/new", "merchant", "/console/endpoints/new"),
    ("/console/endpoints/{endpoint}", "admin", "/console/endpoints/ep_a"),
    ("/console/endpoints/{endpoint}", "admin", "/console/endpoints/{endpoint}"),
    ("/console/endpoints/{endpoint}", "merchant", "/console/endpoints/ep_a"),
    ("/console/endpoints/{endpoint}/settings", "admin", "/console/endpoints/{endpoint}/settings"),
    ("/console/deliveries", "admin", "/console/deliveries"),
    ("/console/deliveries", "admin", "/console/deliveries?account=acc_1"),
    ("/console/deliveries", "admin", "/console/deliveries?account={account}"),
    ("/console/deliveries", "merchant", "/console/deliveries"),
    ("/console/deliveries/{delivery}", "admin", "/console/deliveries/1-0%3Aep_a"),
    ("/console/deliveries/{delivery}", "admin", "/console/deliveries/91-0%3Aep_a"),
    ("/console/deliveries/{delivery}", "admin", "/console/deliveries/{letter}"),
    ("/console/deliveries/{delivery}", "merchant", "/console/deliveries/1-0%3Aep_a"),
    ("/console/intents/{intent}", "admin", "/console/intents/pi_90"),
    ("/console/intents/{intent}", "admin", "/console/intents/{intent}"),
    ("/console/intents/{intent}", "merchant", "/console/intents/pi_90"),
    ("/console/dead-letters", "admin", "/console/dead-letters?by=endpoint,cause"),
    ("/console/dead-letters", "admin", "/console/dead-letters?account=acc_none"),
    ("/console/dead-letters", "merchant", "/console/dead-letters?by=endpoint"),
    ("/console/dead-letters/all", "admin", "/console/dead-letters/all"),
    ("/console/dead-letters/all", "admin", "/console/dead-letters/all?endpoint={endpoint}"),
    ("/console/dead-letters/all", "merchant", "/console/dead-letters/all?intent=pi_1"),
    ("/console/operations", "admin", "/console/operations"),
    ("/console/operations/{operation}", "admin", "/console/operations/{planned}"),
    ("/console/operations/{operation}", "admin", "/console/operations/{done}"),
    ("/console/operations/{operation}", "viewer", "/console/operations/{planned}"),
    ("/console/quarantine", "admin", "/console/quarantine"),
    ("/console/quarantine/{entry}", "admin", "/console/quarantine/30-0"),
    ("/console/quarantine/{entry}", "admin", "/console/quarantine/{entry}"),
    ("/console/partitions", "admin", "/console/partitions"),
    ("/console/audit", "admin", "/console/audit"),
    ("/console/audit", "admin", "/console/audit?account=acc_none"),
    ("/console/audit/{act}", "admin", "/console/audit/{act}"),
    ("/console/portal", "admin", "/console/portal?account={account}"),
    ("/console/tokens", "admin", "/console/tokens"),
    // What is not there, and what they may not see.
    ("/console/{*rest}", "admin", "/console/nothing/here"),
    ("/console/{*rest}", "merchant", "/console/endpoints/{endpoint}"),
    ("/console/{*rest}", "viewer", "/console/tokens"),
];

/// Those that show no page of their own: they lead elsewhere, or are what pages load.
const NO_PAGES: &[&str] = &["/", "/console/find", "/console/assets/{version}/{name}"];

/// What a form is answered with is a page, too: who sends which, where, with what in its fields.
const ANSWERED: &[(&str, &str, &str, Filled)] = &[
    ("admin", "/console/endpoints/{endpoint}", "form[action$='/test']", &[]),
    ("admin", "/console/endpoints/ep_a", "form[action$='/rotate-secret']", &[]),
    ("admin", "/console/endpoints/new?account=acc_new", "form.wide", &[("url", "ftp://refused.example/")]),
    ("admin", "/console/endpoints/new?account=acc_new", "form.wide", &[("url", "http://127.0.0.1:2/new")]),
    ("admin", "/console/portal?account={account}", "form.sure", &[]),
    ("admin", "/console/tokens", "form[action='/console/tokens']", &[("name", "night shift")]),
    ("nobody", "/console/login", "form[action='/console/login']", &[("token", "hrld_wrong")]),
    ("nobody", "/console/enter/gone", "form[action='/console/enter']", &[]),
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

/// The browsers of those who look, each signed in once.
struct Lookers<'a> {
    house: &'a House,
    full: Full,
    browsers: HashMap<&'static str, Browser>,
}

impl<'a> Lookers<'a> {
    async fn at(house: &'a House) -> Self {
        let full = fill(house).await;
        let mut browsers = HashMap::from([("nobody", watched().await)]);
        for role in ["admin", "merchant", "viewer"] {
            let token = if role == "admin" { ADMIN.to_owned() } else { house.token(role).await };
            let browser = watched().await;
            browser.open(&house.url("/console/login")).await;
            browser.type_into("input[name=token]", &format!("{token}\u{e007}")).await;
            browser.until_titled(if role == "merchant" { "Endpoints · Herald" } else { "Overview · Herald" }).await;
            browsers.insert(role, browser);
        }
        Self { house, full, browsers }
    }

    async fn open(&self, who: &str, address: &str) -> &Browser {
        let (full, browser) = (&self.full, &self.browsers[who]);
        let mut path = address.to_owned();
        for (name, value) in [
            ("{endpoint}", &full.endpoint),
            ("{account}", &full.account),
            ("{intent}", &full.intent),
            ("{letter}", &full.letter),
            ("{planned}", &full.planned),
            ("{done}", &full.done),
            ("{entry}", &full.entry),
            ("{act}", &full.act),
        ] {
            path = path.replace(name, value);
        }
        browser.open(&self.house.url(&path)).await;
        browser
    }
}

/// Every page of the console's router, as its source has them.
pub fn routes_of(method: &str) -> Vec<&'static str> {
    let routes = include_str!("../../src/console/mod.rs").lines().filter_map(|line| {
        let (path, handlers) = line.trim().strip_prefix(".route(\"")?.split_once("\", ")?;
        handlers.contains(&format!("{method}(")).then_some(path)
    });
    routes.collect()
}

#[test]
fn no_page_is_left_out() {
    let pages = routes_of("get");
    assert!(pages.len() > 20, "{pages:?}");
    for page in &pages {
        let is_seen = NO_PAGES.contains(page) || VISITS.iter().any(|(route, ..)| route == page);
        assert!(is_seen, "nobody looks at {page}: VISITS needs a line for it");
    }
    for (route, ..) in VISITS {
        assert!(pages.contains(route), "the console has no {route}");
    }
}

/// In both themes and widths, and a picture of each where somebody wants them.
async fn judge(browser: &Browser, name: &str, axe: &str) {
    browser.run(axe).await;
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
            keep_picture(browser, &format!("{name}-{scheme}-{width}"), width == 400).await;
        }
    }
    browser.command("Emulation.clearDeviceMetricsOverride", &json!({})).await;
    let ran = "return [window.wicked ?? null, document.querySelectorAll('main img, main script').length]";
    assert_eq!(browser.run(ran).await, json!([null, 0]), "{name}: what a stranger wrote is more than text");
}

async fn keep_picture(browser: &Browser, name: &str, is_whole: bool) {
    let Some(folder) = std::env::var_os("PICTURES").map(PathBuf::from) else { return };
    let taken = browser.command("Page.captureScreenshot", &json!({ "captureBeyondViewport": is_whole })).await;
    let bytes = STANDARD.decode(taken["data"].as_str().unwrap()).unwrap();
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(format!("{name}.png")), bytes).unwrap();
}

fn named(who: &str, address: &str) -> String {
    let plain: String = address.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    format!("{}-{who}", plain.trim_start_matches("-console").trim_matches('-'))
}

#[tokio::test]
async fn every_page_is_whole_in_both_themes_at_any_width_and_nothing_keeps_anybody_out() {
    let axe = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/verifiers/node/node_modules/axe-core/axe.min.js");
    let axe = fs::read_to_string(&axe).unwrap_or_else(|error| panic!("{}: {error}; run `make setup`", axe.display()));
    let house = House::patient("").await;
    let lookers = Lookers::at(&house).await;
    for (_, who, address) in VISITS {
        judge(lookers.open(who, address).await, &named(who, address), &axe).await;
    }
    for (nth, (who, address, form, fields)) in ANSWERED.iter().enumerate() {
        let browser = lookers.open(who, address).await;
        let (form, fields) = (json!(form), json!(fields));
        // How forms are filled in by hand is another test's.
        let send = format!(
            "const form = document.querySelector({form});
             for (const field of form.querySelectorAll('input[required]')) field.value ||= 'a <b>reason</b>';
             for (const [name, value] of {fields}) form.elements[name].value = value;
             document.title = 'sent'; form.requestSubmit();"
        );
        browser.run(&send).await;
        until("it is answered", async || browser.title().await != "sent").await;
        judge(browser, &format!("{}-answered-{nth}", named(who, address)), &axe).await;
    }
}

#[tokio::test]
async fn the_partitions_of_a_split_stream_are_whole_in_both_themes_at_any_width() {
    let axe = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/verifiers/node/node_modules/axe-core/axe.min.js");
    let axe = fs::read_to_string(&axe).unwrap_or_else(|error| panic!("{}: {error}; run `make setup`", axe.display()));
    let house = House::split(12).await;
    let browser = signed_in(&house).await;
    browser.open(&house.url("/console/partitions")).await;
    judge(&browser, "partitions-split", &axe).await;
}

/// Which of those that take the keyboard have it, one after another, and whether that is seen.
const TABBED: &str = "const all = [...document.querySelectorAll('a[href], button, input, select, summary, textarea, [tabindex=\"0\"]')]
        .filter(one => one.checkVisibility({ visibilityProperty: true }) && !one.disabled && one.type !== 'hidden');
    window.left = new Set(all);
    window.unseen = [];
    document.addEventListener('focusin', event => {
        left.delete(event.target);
        const style = getComputedStyle(event.target);
        if (style.outlineStyle === 'none' || parseFloat(style.outlineWidth) < 1) unseen.push(event.target.outerHTML.slice(0, 200));
    });
    document.activeElement.blur();
    return all.length;";

#[tokio::test]
async fn all_that_a_page_has_is_reached_with_the_keyboard_and_seen_to_have_it() {
    let house = House::patient("").await;
    let lookers = Lookers::at(&house).await;
    for (_, who, address) in VISITS {
        let browser = lookers.open(who, address).await;
        let all = browser.run(TABBED).await.as_u64().unwrap();
        assert!(all > 0, "{address}");
        for kind in ["rawKeyDown", "keyUp"].repeat(usize::try_from(all).unwrap() + 2) {
            let key = json!({ "type": kind, "key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9 });
            browser.command("Input.dispatchKeyEvent", &key).await;
        }
        let left = browser.run("return [...left].map(one => one.outerHTML.slice(0, 200))").await;
        assert_eq!(left, json!([]), "what {who} cannot reach at {address}");
        assert_eq!(browser.run("return unseen").await, json!([]), "where nobody sees the keyboard at {address}");
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

/// As they stand open through a night. `make prove` runs it.
#[tokio::test]
#[ignore = "takes ten minutes"]
async fn two_tabs_that_stay_open_for_ten_minutes_do_not_grow() {
    let house = House::start().await;
    let tabs = [signed_in(&house).await, signed_in(&house).await];
    tabs[1].open(&house.url("/console/dead-letters")).await;
    // What each holds once it was cleared: bytes of its scripts, nodes of its page, and what it has asked so far.
    let sizes = async || {
        let mut sizes = Vec::new();
        for tab in &tabs {
            tab.command("HeapProfiler.collectGarbage", &json!({})).await;
            let heap = tab.command("Runtime.getHeapUsage", &json!({})).await;
            let nodes = tab.run("return document.getElementsByTagName('*').length").await;
            let asked = tab.run("return performance.getEntriesByType('resource').length").await;
            sizes.push([&heap["usedSize"], &nodes, &asked].map(|size| size.as_f64().unwrap()));
        }
        sizes
    };
    let minutes = async |count: u64| tokio::time::sleep(std::time::Duration::from_secs(60 * count)).await;
    minutes(1).await;
    let (before, herald) = (sizes().await, house.herald.peak_resident());
    minutes(9).await;
    let after = sizes().await;
    println!("heap, nodes and requests of each tab: {before:?}, nine minutes later {after:?}");
    for (before, after) in before.iter().zip(&after) {
        assert!(after[0] < 1.2 * before[0] + 262_144.0, "the scripts of a tab hold more and more");
        assert!(after[1] < 1.1 * before[1], "the page of a tab grows");
        assert!(after[2] > before[2] + 50.0, "a tab has stopped");
    }
    let grown = house.herald.peak_resident().saturating_sub(herald);
    println!("Herald holds {grown} bytes more than after the first minute");
    assert!(grown < 8 << 20, "{grown} bytes");
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
