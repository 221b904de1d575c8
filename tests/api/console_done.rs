//! What the console does, in a real Chromium: each act is done with its own form, and what came of it is seen through the API, not on the
//! page that says so.

use serde_json::{Value, json};

use crate::{
    browser::Browser,
    console_seen::{signed_in, watched},
    house::{ADMIN, House, NOWHERE},
    merchants::Merchants,
    stage::{endpoint, mark},
    support::until,
    visitor::Visitor,
};

/// Somebody at a browser, who works on one page after another.
struct Desk<'a> {
    house: &'a House,
    browser: Browser,
}

impl<'a> Desk<'a> {
    async fn of_admin(house: &'a House) -> Self {
        let browser = signed_in(house).await;
        // Nothing moves under their hands: refreshing has tests of its own.
        browser.click("#refresh button").await;
        Self { house, browser }
    }

    async fn open(&self, path: &str) {
        self.browser.open(&self.house.url(path)).await;
    }

    /// Fills in a form, which may have to be opened first, and sends it with its button.
    async fn send(&self, form: &str, fields: &[(&str, &str)]) {
        self.press(form, fields, "button:not([type=button])").await;
    }

    async fn press(&self, form: &str, fields: &[(&str, &str)], button: &str) {
        if !self.browser.is_shown(form).await {
            // CSS has no `:has` within another.
            let within = form.strip_prefix("form:has(").and_then(|rest| rest.strip_suffix(')')).unwrap_or(form);
            self.browser.click(&format!("details:has({within}) > summary")).await;
        }
        for (name, value) in fields {
            let field = format!("{form} [name={name}]");
            match self.browser.run(&format!("return document.querySelector({field:?}).tagName")).await == "SELECT" {
                true => self.browser.type_into(&field, value).await,
                false => self.browser.fill(&field, value).await,
            }
        }
        self.browser.click(&format!("{form} {button}")).await;
    }

    /// What a page that was answered says; it met no fault.
    async fn says(&self, text: &str) {
        self.browser.until_it_says(text).await;
        assert_eq!(self.browser.run("return window.faults").await, json!([]), "{text}");
    }

    async fn shown(&self, selector: &str) -> String {
        let text = self.browser.run(&format!("return document.querySelector({selector:?}).textContent")).await;
        text.as_str().unwrap().to_owned()
    }

    async fn get(&self, path: &str) -> Value {
        self.house.get(path, ADMIN).await
    }

    async fn dead(&self) -> Value {
        self.get("/v1/dead-letters").await["total"].clone()
    }

    /// The id of the operation whose page is shown.
    async fn operation(&self) -> String {
        let url = self.browser.url().await;
        url.rsplit('/').next().unwrap().to_owned()
    }

    async fn until_operation_is(&self, state: &str) -> Value {
        let path = format!("/v1/operations/{}", self.operation().await);
        until(state, async || self.get(&path).await["state"] == state).await;
        self.get(&path).await
    }

    async fn last_act(&self) -> Value {
        self.get("/v1/audit?limit=1").await["items"][0].clone()
    }
}

const REASON: (&str, &str) = ("reason", "because of \"this\" & <b>that</b>");

/// A house with a receiver that takes everything.
async fn with_receiver(house: &House) -> Merchants {
    let secret = herald::facts::signing::SecretText::from_random([7; 32]);
    let merchants = Merchants::start(secret.reveal()).await;
    let mut registry = herald::store::registry::RegistryStore::connect(&house.redis.redis()).await.unwrap();
    registry.create(endpoint("ep_good", "acc_good", &merchants.url("ep_good")), &mark()).await.unwrap();
    merchants
}

#[tokio::test]
async fn an_endpoint_is_made_changed_stopped_and_removed() {
    let house = House::start().await;
    let merchants = with_receiver(&house).await;
    let desk = Desk::of_admin(&house).await;
    let of = async |id: &str| house.get(&format!("/v1/endpoints/{id}"), ADMIN).await;

    desk.open("/console/endpoints?account=acc_1").await;
    desk.browser.click("a.button[href^='/console/endpoints/new']").await;
    desk.browser.until_titled("New endpoint · Herald").await;
    assert_eq!(desk.browser.value("input[name=account]").await, "acc_1");
    let form = "form.wide";
    // What was typed stays where it was refused.
    let fields = [("url", "ftp://shop.example/"), ("description", "till <7>"), ("rate_limit", "40"), REASON];
    desk.send(form, &fields).await;
    desk.says("url").await;
    assert_eq!(desk.browser.value("input[name=description]").await, "till <7>");
    desk.send(form, &[("url", &merchants.url("ep_made")), ("event_types", "payment_intent.status_updated, a.b")]).await;
    desk.says("shown once").await;
    assert!(desk.shown("pre.secret").await.starts_with("whsec_"));
    let made = desk.shown("h1 .id span, h1 .id a").await;
    let endpoint = of(&made).await;
    for (member, value) in [
        ("account", json!("acc_1")),
        ("description", json!("till <7>")),
        ("rate_limit", json!(40)),
        ("max_in_flight", json!(10)),
        ("ordering", json!("intent")),
        ("event_types", json!(["payment_intent.status_updated", "a.b"])),
    ] {
        assert_eq!(endpoint[member], value, "{member} of {endpoint}");
    }

    desk.open(&format!("/console/endpoints/{made}")).await;
    desk.browser.click("a.button[href$='/settings']").await;
    desk.browser.until_titled(&format!("Settings of {made} · Herald")).await;
    let fields = [("event_types", ""), ("rate_limit", ""), ("ordering", "none"), ("schemes", "dojo"), REASON];
    desk.send(form, &fields).await;
    desk.says("The settings are changed.").await;
    let changed = of(&made).await;
    assert_eq!((&changed["event_types"], &changed["rate_limit"]), (&json!([]), &Value::Null), "{changed}");
    assert_eq!((&changed["ordering"], &changed["schemes"]), (&json!("none"), &json!(["dojo"])), "{changed}");
    assert_eq!(changed["description"], "till <7>");
    // A form that is older than the endpoint changes nothing.
    desk.open(&format!("/console/endpoints/{made}/settings")).await;
    let meanwhile = json!({"description": "another", "reason": "quicker"});
    house.ask("PATCH", &format!("/v1/endpoints/{made}"), Some(ADMIN), Some(&meanwhile)).await;
    desk.send(form, &[("description", "mine"), REASON]).await;
    desk.says("revision").await;
    assert_eq!(of(&made).await["description"], "another");

    desk.open(&format!("/console/endpoints/{made}")).await;
    for (verb, says, state) in [
        ("pause", "It is paused: its deliveries wait.", "paused"),
        ("resume", "Its backlog goes out again.", "enabled"),
        ("disable", "It is disabled", "disabled"),
        ("enable", "It takes events again.", "enabled"),
    ] {
        desk.send(&format!("form[action$='/{verb}']"), &[REASON]).await;
        desk.says(says).await;
        assert_eq!(of(&made).await["state"], state);
        let last = desk.last_act().await;
        assert_eq!((&last["act"], &last["why"]), (&json!(format!("endpoint {verb}")), &json!(REASON.1)), "{last}");
    }

    let delete = "form[action$='/delete']";
    desk.send(delete, &[("confirmed", "ep_other"), REASON]).await;
    desk.says("Nothing was done").await;
    assert_eq!(of(&made).await["leaves"], false);
    desk.send(delete, &[("confirmed", &made), REASON]).await;
    desk.says(&format!("{made} takes no more events")).await;
    let deleted = of(&made).await;
    assert_eq!((&deleted["leaves"], &deleted["state"]), (&json!(true), &json!("disabled")), "{deleted}");
}

#[tokio::test]
async fn a_secret_is_rotated_and_a_test_event_arrives() {
    let house = House::start().await;
    let merchants = with_receiver(&house).await;
    let desk = Desk::of_admin(&house).await;
    let arrived = || merchants.log().of("ep_good").count();
    desk.open("/console/endpoints/ep_good").await;
    desk.send("form[action$='/test']", &[("event_type", "payment_intent.status_updated")]).await;
    desk.says("Copy as curl").await;
    assert_eq!((desk.shown("h1 .state").await.as_str(), arrived()), ("delivered", 1));

    desk.open("/console/endpoints/ep_good").await;
    desk.send("form[action$='/rotate-secret']", &[("overlap", "2h"), REASON]).await;
    desk.says("shown once").await;
    let secrets = desk.get("/v1/endpoints/ep_good").await["secrets"].clone();
    assert_eq!(secrets.as_array().unwrap().len(), 2, "{secrets}");
    // The receiver still knows the older one alone, and takes what both have signed.
    desk.open("/console/endpoints/ep_good").await;
    desk.send("form[action$='/test']", &[]).await;
    desk.says("Copy as curl").await;
    assert_eq!((desk.shown("h1 .state").await.as_str(), arrived()), ("delivered", 2));
    let faults = merchants.log().faults.clone();
    assert!(faults.iter().all(|fault| fault.ends_with("the dojo signature is wrong")), "{faults:?}");

    desk.open("/console/endpoints/ep_a").await;
    desk.send("form[action$='/test']", &[]).await;
    desk.says("Copy as curl").await;
    assert_eq!(desk.shown("h1 .state").await, "failed", "nobody listens at {NOWHERE}");
}

#[tokio::test]
async fn letters_are_sent_again_and_discarded_one_by_one_chosen_and_all() {
    let house = House::patient("").await;
    let merchants = with_receiver(&house).await;
    let desk = Desk::of_admin(&house).await;
    // Their receiver is mended.
    desk.open("/console/endpoints/ep_a/settings").await;
    desk.send("form.wide", &[("url", &merchants.url("ep_a")), REASON]).await;
    desk.says("The settings are changed.").await;

    desk.open("/console/deliveries/7-0%3Aep_a").await;
    desk.send("form[action$='/discard']", &[("confirmed", "2"), REASON]).await;
    desk.says("Nothing was discarded").await;
    assert_eq!(desk.dead().await, 7);
    desk.send("form[action$='/discard']", &[("confirmed", "1"), REASON]).await;
    desk.says("1 letter was discarded").await;
    assert_eq!(desk.dead().await, 6);
    desk.open("/console/deliveries/6-0%3Aep_a").await;
    desk.send("form[action$='/redeliver']", &[REASON]).await;
    desk.says("1 letter was sent again").await;
    merchants.until("the sixth", |log| log.delivered_to("ep_a") == 1).await;

    desk.open("/console/dead-letters").await;
    let choose = async |id: &str| desk.browser.click(&format!("input[value='{id}']")).await;
    choose("5-0:ep_a").await;
    desk.send("form.choice", &[REASON]).await;
    desk.says("1 letter was sent again").await;
    merchants.until("the fifth", |log| log.delivered_to("ep_a") == 2).await;
    choose("4-0:ep_a").await;
    choose("3-0:ep_a").await;
    assert_eq!(desk.shown("output").await, "2");
    desk.press("form.choice", &[("confirmed", "2"), REASON], "button.danger").await;
    desk.says("2 letters were discarded").await;
    assert_eq!(desk.dead().await, 2);

    // All that a filter finds are an operation: planned, started, and done by the worker.
    desk.open("/console/dead-letters?intent=pi_2").await;
    desk.browser.click("a[href^='/console/dead-letters/all']").await;
    desk.send("form:has([value=redeliver])", &[REASON]).await;
    desk.says("This is the plan").await;
    assert_eq!((desk.until_operation_is("planned").await["count"].clone(), desk.dead().await), (json!(1), json!(2)));
    desk.send("form[action$='/start']", &[]).await;
    desk.says("The operation runs.").await;
    assert_eq!(desk.until_operation_is("done").await["done"], 1);
    merchants.until("the second", |log| log.delivered_to("ep_a") == 3).await;

    desk.open("/console/dead-letters/all?endpoint=ep_a").await;
    desk.send("form:has([value=discard])", &[REASON]).await;
    desk.says("This is the plan").await;
    desk.send("form[action$='/start']", &[("confirmed", "7")]).await;
    desk.says("Nothing was done").await;
    assert_eq!(desk.dead().await, 1);
    desk.send("form[action$='/start']", &[("confirmed", "1")]).await;
    desk.until_operation_is("done").await;
    assert_eq!(desk.dead().await, 0);
}

#[tokio::test]
async fn an_operation_is_held_slowed_and_given_up_on_its_page() {
    let house = House::start().await;
    let desk = Desk::of_admin(&house).await;
    // What goes out again waits while its endpoint is paused, so there is time.
    house.post("/v1/endpoints/ep_a/pause", ADMIN, json!({"reason": "a test"})).await;
    desk.open("/console/dead-letters/all?endpoint=ep_a").await;
    desk.send("form:has([value=redeliver])", &[REASON]).await;
    desk.says("This is the plan").await;
    desk.send("form[action$='/start']", &[]).await;
    desk.says("The operation runs.").await;
    desk.send("form[action$='/rate']", &[("rate", "7")]).await;
    desk.says("The rate is set.").await;
    assert_eq!(desk.until_operation_is("running").await["rate"], 7);
    desk.send("form[action$='/pause']", &[REASON]).await;
    desk.says("takes no more until it is resumed").await;
    assert_eq!(desk.until_operation_is("paused").await["changed"]["why"], REASON.1);
    desk.send("form[action$='/resume']", &[REASON]).await;
    desk.says("The operation goes on.").await;
    desk.until_operation_is("running").await;
    desk.send("form[action$='/cancel']", &[REASON]).await;
    desk.says("The operation takes nothing more.").await;
    until("it ends", async || {
        let state = desk.get(&format!("/v1/operations/{}", desk.operation().await)).await["state"].clone();
        state == "cancelling" || state == "cancelled"
    })
    .await;
}

#[tokio::test]
async fn what_waits_goes_now_what_was_sent_is_replayed_and_an_account_is_erased() {
    let folder = tempfile::tempdir().unwrap();
    let house = House::patient(&format!("sqlite:{}", folder.path().join("h.db").display())).await;
    let merchants = with_receiver(&house).await;
    let desk = Desk::of_admin(&house).await;
    let event = json!({
        "id": "evt_good", "event": "payment_intent.status_updated", "accountId": "acc_good",
        "createdAt": "2026-11-27T19:00:00.0000000Z",
        "data": {"paymentIntentId": "pi_good", "paymentStatus": "Captured", "captureMode": "Auto"},
    });
    assert_eq!(house.post("/v1/events", ADMIN, event).await.status, 201);
    merchants.until("it arrives", |log| log.of("ep_good").count() == 1).await;
    until("the history has it", async || {
        house.ask("GET", "/v1/intents/pi_good", Some(ADMIN), None).await.status == 200
    })
    .await;

    desk.open("/console/endpoints/ep_good").await;
    desk.send("form:has([value=replay])", &[("intent", "pi_good"), REASON]).await;
    desk.says("This is the plan").await;
    assert_eq!(desk.until_operation_is("planned").await["count"], 1);
    desk.send("form[action$='/start']", &[]).await;
    desk.until_operation_is("done").await;
    merchants.until("it arrives again", |log| log.of("ep_good").count() == 2).await;

    // The head of a chain is due in ten minutes.
    let tried = async || desk.get("/v1/attempts?delivery=90-0:ep_a").await["items"].as_array().unwrap().len();
    assert_eq!(tried().await, 0);
    desk.open("/console/endpoints/ep_a").await;
    desk.send("form:has([value=send-now])", &[REASON]).await;
    desk.says("This is the plan").await;
    desk.send("form[action$='/start']", &[]).await;
    until("it is tried", async || tried().await > 0).await;

    // What is still sent to cannot be erased, and says so.
    desk.open("/console/operations").await;
    desk.send("form:has([value=erase])", &[("account", "acc_1"), REASON]).await;
    desk.says("is not disabled").await;
    house.post("/v1/endpoints/ep_a/disable", ADMIN, json!({"reason": "they left"})).await;
    until("what waited is dead", async || desk.dead().await == 9).await;
    desk.open("/console/operations").await;
    desk.send("form:has([value=erase])", &[("account", "acc_1"), REASON]).await;
    desk.says("This is the plan").await;
    let count = desk.until_operation_is("planned").await["count"].as_u64().unwrap();
    assert!(count >= 9, "{count}");
    desk.send("form[action$='/start']", &[("confirmed", &count.to_string())]).await;
    desk.until_operation_is("done").await;
    assert_eq!(desk.dead().await, 0);
}

#[tokio::test]
async fn issues_are_answered_a_chain_let_go_entries_put_right_and_all_sending_stopped() {
    let house = House::start().await;
    let desk = Desk::of_admin(&house).await;
    let issue = async || desk.get("/v1/issues/ep_a:rejected:401").await;
    desk.open("/console/issues/ep_a%3Arejected%3A401").await;
    for (verb, says, state) in [("ack", "is acknowledged", "acknowledged"), ("resolve", "is resolved", "resolved")] {
        desk.send(&format!("form[action$='/{verb}']"), &[REASON]).await;
        desk.says(says).await;
        let said = issue().await;
        assert_eq!((&said["state"], &said["said"]["why"]), (&json!(state), &json!(REASON.1)), "{said}");
    }

    desk.open("/console").await;
    desk.send("form[action$='/pause']", &[REASON]).await;
    desk.says("All sending is paused").await;
    assert_eq!(desk.get("/v1/stats").await["paused"]["why"], REASON.1);

    desk.open("/console/intents/pi_90").await;
    desk.send("form[action$='/release']", &[REASON]).await;
    desk.says("dead letter now").await;
    assert_eq!(desk.get("/v1/deliveries/90-0:ep_a").await["state"], "dead");
    assert_ne!(desk.get("/v1/deliveries/91-0:ep_a").await["state"], "held");

    desk.open("/console").await;
    desk.send("form[action$='/resume']", &[REASON]).await;
    desk.says("Sending goes on.").await;
    assert_eq!(desk.get("/v1/stats").await["paused"], Value::Null);

    let left = async || desk.get("/v1/quarantine").await["total"].clone();
    desk.open("/console/quarantine/30-0").await;
    desk.send("form[action$='/discard']", &[("confirmed", "1"), REASON]).await;
    desk.says("1 entry was discarded").await;
    assert_eq!(left().await, 2);
    desk.browser.click("input[value='31-0']").await;
    desk.press("form.choice", &[("confirmed", "2"), REASON], "button.danger").await;
    desk.says("Nothing was discarded").await;
    desk.browser.click("input[value='31-0']").await;
    desk.press("form.choice", &[("confirmed", "1"), REASON], "button.danger").await;
    desk.says("1 entry was discarded").await;
    assert_eq!(left().await, 1);
    // It is read again, and no better than before.
    desk.open("/console/quarantine/32-0").await;
    desk.send("form[action$='/requeue']", &[REASON]).await;
    desk.says("1 entry was put back").await;
    until("it is back under another id", async || {
        let entries = desk.get("/v1/quarantine").await;
        entries["total"] == 1 && entries["items"][0]["entry"] != "32-0"
    })
    .await;
}

#[tokio::test]
async fn a_portal_link_leads_one_browser_in_once_and_a_token_until_it_is_revoked() {
    let house = House::patient("").await;
    let merchants = with_receiver(&house).await;
    let desk = Desk::of_admin(&house).await;
    desk.open("/console/portal?account=acc_1").await;
    desk.send("form.sure", &[REASON]).await;
    desk.says("This is shown once").await;
    let link = desk.shown("pre.secret").await;
    assert!(link.starts_with(&house.url("/console/enter/")), "{link}");

    let merchant = Desk { house: &house, browser: watched().await };
    merchant.browser.open(&link).await;
    // The button has the keyboard.
    merchant.browser.type_into("button.primary", "\u{e007}").await;
    merchant.browser.until_titled("Endpoints · Herald").await;
    let text = merchant.browser.text().await;
    assert!(text.contains("ep_a") && !text.contains("ep_b") && !text.contains("ep_good"), "{text}");
    let second = Desk { house: &house, browser: watched().await };
    second.browser.open(&link).await;
    second.browser.click("button.primary").await;
    second.says("This link was followed before").await;
    assert!(!second.browser.text().await.contains("ep_a"));

    // They do for themselves what they may.
    merchant.browser.click("a.button[href='/console/endpoints/new']").await;
    merchant.send("form.wide", &[("url", &merchants.url("ep_own")), REASON]).await;
    merchant.says("shown once").await;
    let own = merchant.shown("h1 .id a").await;
    assert_eq!(house.get(&format!("/v1/endpoints/{own}"), ADMIN).await["account"], "acc_1");
    merchant.open("/console/dead-letters/all?intent=pi_1").await;
    merchant.send("form[action$='/all/redeliver']", &[("confirmed", "2"), REASON]).await;
    merchant.says("Nothing was done").await;
    merchant.open("/console/dead-letters/all?intent=pi_1").await;
    merchant.send("form[action$='/all/redeliver']", &[("confirmed", "1"), REASON]).await;
    merchant.says("1 letter was sent again").await;
    assert_eq!(desk.dead().await, 6);
    merchant.browser.click("form.out button").await;
    merchant.browser.until_titled("Sign in · Herald").await;

    desk.open("/console/tokens").await;
    let make = "form[action='/console/tokens']";
    desk.send(make, &[("name", "night shift"), ("role", "operator"), ("expires_in", "1d"), REASON]).await;
    desk.says("This is shown once").await;
    let token = desk.shown("pre.secret").await;
    assert_eq!(house.get("/v1/me", &token).await["role"], "operator");
    let mut shift = Visitor::signed_in(&house, &token).await;
    assert_eq!(shift.get("/console/tokens").await.status, 403);
    desk.open("/console/tokens").await;
    desk.send("form[action$='/revoke']", &[REASON]).await;
    desk.says("The token is revoked").await;
    until("it is refused", async || house.ask("GET", "/v1/me", Some(&token), None).await.status == 401).await;
    assert_eq!(shift.get("/console/endpoints").await.status, 303);
}
