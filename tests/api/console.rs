//! The console without a browser: who sees and does what, what a foreign form can do, how sessions live, and that hostile text stays
//! text.

use serde_json::{Value, json};

use crate::{
    console_seen::routes_of,
    house::{ADMIN, House, NOWHERE},
    support::until,
    visitor::{Seen, Visitor},
};

const STAFF: &[&str] = &["viewer", "operator", "admin"];
const ANYONE: &[&str] = &["merchant", "viewer", "operator", "admin"];
const OPERATOR: &[&str] = &["operator", "admin"];

/// Fields of a form.
pub type Filled = &'static [(&'static str, &'static str)];

/// Each page, by what the house has, and who may see it.
const PAGES: &[(&str, &[&str])] = &[
    ("/console", STAFF),
    ("/console/issues", STAFF),
    ("/console/issues?all=true&endpoint=ep_a", STAFF),
    ("/console/issues/ep_a%3Arejected%3A401", STAFF),
    ("/console/endpoints", ANYONE),
    ("/console/endpoints?state=enabled&limit=1", ANYONE),
    ("/console/endpoints/ep_a", ANYONE),
    ("/console/deliveries", ANYONE),
    ("/console/deliveries?intent=pi_90", ANYONE),
    ("/console/deliveries/1-0%3Aep_a", ANYONE),
    ("/console/deliveries/90-0%3Aep_a", ANYONE),
    ("/console/deliveries/50-0%3Aep_a", ANYONE),
    ("/console/intents/pi_90", ANYONE),
    ("/console/intents/pi_50", ANYONE),
    ("/console/dead-letters", ANYONE),
    ("/console/dead-letters?by=endpoint&limit=2", ANYONE),
    ("/console/dead-letters/all?endpoint=ep_a", ANYONE),
    ("/console/operations", STAFF),
    ("/console/quarantine", STAFF),
    ("/console/quarantine/30-0", STAFF),
    ("/console/partitions", STAFF),
    ("/console/audit", STAFF),
    ("/console/audit?act=token+create", STAFF),
    ("/console/portal", OPERATOR),
    ("/console/endpoints/new", KEEPER),
    ("/console/endpoints/ep_a/settings", KEEPER),
    ("/console/tokens", &["admin"]),
];

/// Each act, with what its form has beside the key, and who may do it.
const ACTS: &[(&str, Filled, &[&str])] = &[
    ("/console/pause", &[], OPERATOR),
    ("/console/resume", &[], OPERATOR),
    ("/console/issues/ep_a%3Arejected%3A401/ack", &[], OPERATOR),
    ("/console/issues/ep_a%3Arejected%3A401/resolve", &[], OPERATOR),
    ("/console/endpoints/ep_a/pause", &[], KEEPER),
    ("/console/endpoints/ep_a/resume", &[], KEEPER),
    ("/console/endpoints/ep_a/disable", &[], KEEPER),
    ("/console/endpoints/ep_a/enable", &[], KEEPER),
    ("/console/endpoints/ep_a/rotate-secret", &[("overlap", "1h")], KEEPER),
    ("/console/endpoints/ep_a/test", &[], KEEPER),
    ("/console/chains/ep_a/pi_90/release", &[], KEEPER),
    ("/console/dead-letters/redeliver", &[("ids", "1-0:ep_a")], KEEPER),
    ("/console/dead-letters/discard", &[("ids", "2-0:ep_a"), ("confirmed", "1")], OPERATOR),
    ("/console/dead-letters/all/redeliver", &[("intent", "pi_3"), ("confirmed", "1")], KEEPER),
    ("/console/operations", &[("kind", "discard"), ("intent", "pi_4")], OPERATOR),
    ("/console/operations", &[("kind", "erase"), ("account", "acc_1")], OPERATOR),
    ("/console/operations", &[("kind", "replay"), ("endpoint", "ep_a")], OPERATOR),
    ("/console/quarantine/requeue", &[("entries", "30-0")], OPERATOR),
    ("/console/quarantine/discard", &[("entries", "31-0"), ("confirmed", "1")], OPERATOR),
    ("/console/portal", &[("account", "acc_1")], OPERATOR),
    ("/console/endpoints", &[("account", "acc_1"), ("url", NOWHERE)], KEEPER),
    ("/console/endpoints/ep_a/settings", &[("url", NOWHERE), ("revision", "1")], KEEPER),
    ("/console/endpoints/ep_a/delete", &[("confirmed", "ep_a")], KEEPER),
    ("/console/operations/{planned}/start", &[("confirmed", "1")], OPERATOR),
    ("/console/operations/{planned}/pause", &[], OPERATOR),
    ("/console/operations/{planned}/resume", &[], OPERATOR),
    ("/console/operations/{planned}/cancel", &[], OPERATOR),
    ("/console/operations/{planned}/rate", &[("rate", "5")], OPERATOR),
    ("/console/tokens", &[("role", "admin"), ("name", "mine")], &["admin"]),
    ("/console/tokens/0/revoke", &[], &["admin"]),
];

/// What is open to whoever has no session, or only ends one's own.
const DOORS: &[&str] = &["/console/login", "/console/enter", "/console/logout"];

#[test]
fn no_act_is_left_out() {
    let is_of = |path: &str, route: &str| {
        let (path, route): (Vec<_>, Vec<_>) = (path.split('/').collect(), route.split('/').collect());
        path.len() == route.len() && path.iter().zip(&route).all(|(part, of)| part == of || of.starts_with('{'))
    };
    let routes = routes_of("post");
    assert!(routes.len() > 20, "{routes:?}");
    for route in routes {
        let is_tried = DOORS.contains(&route) || ACTS.iter().any(|(path, ..)| is_of(path, route));
        assert!(is_tried, "nobody says who may do {route}: ACTS needs a line for it");
    }
}

const KEEPER: &[&str] = &["merchant", "operator", "admin"];

/// What no page may have: anything that runs or looks from within it, or comes from elsewhere.
fn check_page(path: &str, seen: &Seen) {
    let policy = seen.headers["content-security-policy"].to_str().unwrap();
    for part in
        ["default-src 'none'", "script-src 'self';", "style-src 'self';", "frame-ancestors 'none'", "base-uri 'none'"]
    {
        assert!(policy.contains(part), "{path}: {policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    assert_eq!(seen.headers["cache-control"], "no-store", "{path}");
    assert_eq!(seen.headers["referrer-policy"], "no-referrer", "{path}");
    let html = &seen.html;
    for tag in html.split('<').skip(1) {
        let tag = tag.split('>').next().unwrap();
        assert!(!tag.starts_with("script") || tag.contains(" src=\"/console/assets/"), "{path}: <{tag}>");
        assert!(!tag.starts_with("style") && !tag.contains(" style="), "{path}: <{tag}>");
        for attribute in tag.split_whitespace().skip(1) {
            let is_quoted_text = !attribute.contains('=');
            assert!(is_quoted_text || !attribute.starts_with("on"), "{path}: <{tag}>");
        }
        for name in ["src=\"", "href=\"", "action=\"", "formaction=\""] {
            if let Some((_, value)) = tag.split_once(&format!(" {name}")) {
                assert!(value.starts_with("/console") || value.starts_with("#page"), "{path}: <{tag}>");
            }
        }
    }
}

#[tokio::test]
async fn each_role_sees_the_pages_that_the_table_says() {
    let house = House::start().await;
    let mut stranger = Visitor::new(&house);
    for (path, _) in PAGES {
        let seen = stranger.get(path).await;
        assert_eq!(seen.status, 303, "{path}");
        assert!(seen.place().starts_with("/console/login?next=%2Fconsole"), "{}", seen.place());
    }
    assert_eq!(stranger.get("/").await.place(), "/console");
    check_page("/console/login", &stranger.get("/console/login").await);
    for role in ANYONE {
        let mut visitor = Visitor::signed_in(&house, &house.token(role).await).await;
        for (path, may) in PAGES {
            let seen = visitor.get(path).await;
            // Where the first page is not theirs, they are led to theirs.
            let refused = if *path == "/console" { 303 } else { 403 };
            assert_eq!(seen.status, if may.contains(role) { 200 } else { refused }, "{path} as {role}: {}", seen.html);
            if seen.status != 303 {
                check_page(path, &seen);
                assert!(seen.html.contains("Times are UTC"), "{path}");
            }
        }
    }
}

#[tokio::test]
async fn each_role_does_what_the_table_says_and_a_foreign_form_does_nothing() {
    let house = House::start().await;
    let wanted = json!({"kind": "discard", "intent": "pi_6", "reason": "a test"});
    let planned = house.post("/v1/operations", ADMIN, wanted).await.body["id"].as_str().unwrap().to_owned();
    for role in ANYONE {
        let mut visitor = Visitor::signed_in(&house, &house.token(role).await).await;
        let before = house.get("/v1/audit?limit=500", ADMIN).await["items"].as_array().unwrap().len();
        let (form_key, other) = (visitor.form_key().await, Visitor::signed_in(&house, ADMIN).await.form_key().await);
        for (path, fields, may) in ACTS {
            let path = path.replace("{planned}", &planned);
            let path = path.as_str();
            let fields =
                |form_key| [&[("form_key", form_key), ("reason", "a test"), ("back", "/console")], *fields].concat();
            for (key, headers) in [
                ("", &[][..]),
                (&other, &[]),
                (&form_key, &[("sec-fetch-site", "cross-site")]),
                (&form_key, &[("sec-fetch-site", "same-site")]),
            ] {
                let seen = visitor.send(path, &fields(key), headers).await;
                assert_eq!(seen.status, 403, "{path} as {role}: {}", seen.html);
                assert!(seen.html.contains("Nothing was done"), "{path}: {}", seen.html);
            }
            if !may.contains(role) {
                let seen = visitor.send(path, &fields(&form_key), &[("sec-fetch-site", "same-origin")]).await;
                assert_eq!(seen.status, 403, "{path} as {role}: {}", seen.html);
            }
            // A link never changes anything.
            let seen = visitor.get(path).await;
            assert!([200, 303, 403, 404, 405].contains(&seen.status), "{path}: {}", seen.status);
        }
        let after = house.get("/v1/audit?limit=500", ADMIN).await["items"].as_array().unwrap().len();
        assert_eq!(before, after, "{role}");
    }
}

#[tokio::test]
async fn each_act_is_done_once_by_whoever_is_signed_in_and_told_on_the_next_page() {
    let house = House::start().await;
    let mut visitor = Visitor::signed_in(&house, &house.token("operator").await).await;
    let acts: &[(&str, Filled, &str, &str)] = &[
        ("/console/pause", &[], "pause", "All sending is paused"),
        ("/console/issues/ep_a%3Arejected%3A401/ack", &[], "issue ack", "acknowledged"),
        ("/console/issues/ep_a%3Arejected%3A401/resolve", &[], "issue resolve", "resolved"),
        ("/console/endpoints/ep_a/pause", &[], "endpoint pause", "It is paused"),
        ("/console/endpoints/ep_a/resume", &[], "endpoint resume", "goes out again"),
        ("/console/chains/ep_a/pi_90/release", &[], "chain release", "dead letter now"),
        (
            "/console/dead-letters/discard",
            &[("ids", "2-0:ep_a"), ("ids", "3-0:ep_a"), ("confirmed", "2")],
            "dead-letter discard",
            "2 letters were discarded",
        ),
        ("/console/dead-letters/redeliver", &[("ids", "1-0:ep_a")], "dead-letter redeliver", "1 letter was sent again"),
        ("/console/operations", &[("kind", "discard"), ("intent", "pi_4")], "operation plan", "This is the plan"),
        (
            "/console/dead-letters/all/redeliver",
            &[("intent", "pi_5"), ("confirmed", "1")],
            "dead-letter redeliver",
            "1 letter was sent again",
        ),
        (
            "/console/quarantine/discard",
            &[("entries", "31-0"), ("confirmed", "1")],
            "quarantine discard",
            "1 entry was discarded",
        ),
        ("/console/resume", &[], "resume", "Sending goes on"),
        ("/console/endpoints/ep_a/disable", &[], "endpoint disable", "It is disabled"),
        ("/console/endpoints/ep_a/enable", &[], "endpoint enable", "takes events again"),
    ];
    for (path, fields, act, says) in acts {
        let seen = visitor.post(path, &[&[("reason", "because of <b>this</b>")], *fields].concat()).await;
        assert_eq!(seen.status, 303, "{path}: {}", seen.html);
        let place = seen.place().to_owned();
        let told = visitor.get(&place).await.html;
        assert!(told.contains(says), "{path}: {told}");
        assert!(!visitor.get(&place).await.html.contains("class=\"notice"), "{path} is told twice");
        let last = &house.get("/v1/audit?limit=1", ADMIN).await["items"][0];
        assert_eq!((&last["act"], &last["why"]), (&json!(act), &json!("because of <b>this</b>")), "{path}: {last}");
        assert!(last["by"].as_str().unwrap().starts_with("token ") && last["ended"]["result"] == "done", "{last}");
    }
    assert!(visitor.get("/console/audit").await.html.contains("because of &lt;b&gt;this&lt;/b&gt;"));
}

#[tokio::test]
async fn nothing_is_dropped_unless_its_number_is_typed() {
    let house = House::start().await;
    let mut visitor = Visitor::signed_in(&house, ADMIN).await;
    let total = async || house.get("/v1/dead-letters", ADMIN).await["total"].clone();
    for (path, fields) in [
        ("/console/dead-letters/discard", &[("ids", "2-0:ep_a"), ("confirmed", "")][..]),
        ("/console/dead-letters/discard", &[("ids", "2-0:ep_a"), ("ids", "3-0:ep_a"), ("confirmed", "1")]),
        ("/console/dead-letters/all/redeliver", &[("endpoint", "ep_a"), ("confirmed", "8")]),
        ("/console/quarantine/discard", &[("entries", "30-0"), ("confirmed", "3")]),
    ] {
        let seen = visitor.post(path, &[&[("reason", "a test")], fields].concat()).await;
        assert_eq!(seen.status, 303, "{path}: {}", seen.html);
        let told = visitor.get(seen.place()).await.html;
        assert!(told.contains("Nothing was d"), "{path}: {told}");
        assert_eq!(total().await, 7, "{path}");
    }
    let page = visitor.get("/console/dead-letters/all?endpoint=ep_a").await;
    assert!(page.html.contains("<h1>7 dead letters</h1>"), "{}", page.html);
    // What died since is not meant: the form says until when.
    let until = page.field("until");
    assert!(until.ends_with('Z'), "{until}");
    let fields = [("kind", "discard"), ("endpoint", "ep_a"), ("until", until.as_str()), ("reason", "a test")];
    let place = visitor.post("/console/operations", &fields).await.place().to_owned();
    let start = format!("{place}/start");
    assert!(visitor.get(&place).await.html.contains("<h1>discard 7 "), "the plan has its number");
    for wrong in ["", "6", "70"] {
        let seen = visitor.post(&start, &[("confirmed", wrong)]).await;
        assert!(visitor.get(seen.place()).await.html.contains("Nothing was done"), "{wrong:?}");
        assert_eq!(total().await, 7);
    }
    let seen = visitor.post(&start, &[("confirmed", "7")]).await;
    assert!(visitor.get(seen.place()).await.html.contains("The operation runs"));
    until_done(&mut visitor, &place).await;
    assert_eq!(total().await, 0);
    let again = visitor.post(&start, &[("confirmed", "7")]).await;
    assert!(visitor.get(again.place()).await.html.contains("class=\"notice bad"), "it runs once");
}

async fn until_done(visitor: &mut Visitor, place: &str) -> String {
    let mut html = String::new();
    until("the operation is done", async || {
        html = visitor.get(place).await.html;
        html.contains("7 of 7 have ended") && html.contains(">done</span>")
    })
    .await;
    html
}

#[tokio::test]
async fn an_operation_is_slowed_down_paused_and_cancelled_on_its_page() {
    let house = House::start().await;
    let mut visitor = Visitor::signed_in(&house, &house.token("operator").await).await;
    // What goes out again waits while its endpoint is paused, so there is time.
    visitor.post("/console/endpoints/ep_a/pause", &[("reason", "a test")]).await;
    let fields = [("kind", "redeliver"), ("endpoint", "ep_a"), ("reason", "a <b>test</b>")];
    let place = visitor.post("/console/operations", &fields).await.place().to_owned();
    for (verb, fields, state) in [
        ("start", &[][..], "running"),
        ("rate", &[("rate", "5")], "running"),
        ("pause", &[("reason", "lunch")], "paused"),
        ("resume", &[], "running"),
        ("cancel", &[], "cancel"),
    ] {
        let seen = visitor.post(&format!("{place}/{verb}"), fields).await;
        assert_eq!((seen.status, seen.place()), (303, place.as_str()), "{verb}: {}", seen.html);
        let html = visitor.get(&place).await.html;
        assert!(html.contains("class=\"notice good") && html.contains(&format!(">{state}")), "{verb}: {html}");
    }
    let html = visitor.get(&place).await.html;
    assert!(html.contains("5 a second at most") && html.contains("a &lt;b&gt;test&lt;/b&gt;"), "{html}");
    assert!(visitor.get("/console/operations").await.html.contains(&place), "it is in the list");

    let mut viewer = Visitor::signed_in(&house, &house.token("viewer").await).await;
    assert_eq!(viewer.get(&place).await.status, 200);
    assert_eq!(viewer.post(&format!("{place}/cancel"), &[]).await.status, 403);
    let mut merchant = Visitor::signed_in(&house, &house.token("merchant").await).await;
    assert_eq!(merchant.get(&place).await.status, 403);
}

#[tokio::test]
async fn a_new_secret_is_shown_once_and_a_reload_makes_no_other() {
    let house = House::start().await;
    let mut visitor = Visitor::signed_in(&house, ADMIN).await;
    let revision = visitor.get("/console/endpoints/ep_a").await.field("revision");
    let fields = [("revision", revision.as_str()), ("reason", "a test"), ("overlap", "1h")];
    let seen = visitor.post("/console/endpoints/ep_a/rotate-secret", &fields).await;
    assert_eq!((seen.status, seen.html.matches("whsec_").count()), (200, 2), "the text and its button: {}", seen.html);
    let again = visitor.post("/console/endpoints/ep_a/rotate-secret", &fields).await;
    assert_eq!(again.status, 303);
    let page = visitor.get(again.place()).await.html;
    assert!(page.contains("has changed since") && !page.contains("whsec_"), "{page}");
    assert_eq!(house.get("/v1/endpoints/ep_a", ADMIN).await["secrets"].as_array().unwrap().len(), 2);

    let tested = visitor.post("/console/endpoints/ep_a/test", &[]).await;
    assert_eq!(tested.status, 200);
    assert!(tested.html.contains("curl --request POST") && tested.html.contains(NOWHERE), "{}", tested.html);
    assert!(!tested.html.contains("v1,"), "a signature is shown: {}", tested.html);
}

#[tokio::test]
async fn a_session_lives_as_long_as_its_token_in_each_process_and_needs_nothing_of_redis() {
    let house = House::start().await;
    let token = house.token("operator").await;
    let mut visitor = Visitor::signed_in(&house, &token).await;

    // Another process knows it, too.
    let other = crate::herald_process::Setup::new(&house.redis.url()).env("HERALD_ADMIN_TOKEN", ADMIN).start();
    let mut there = visitor.moved_to(&format!("http://{}", other.address()));
    until("the other process", async || other.get("/healthz").is_some()).await;
    assert_eq!(there.get("/console/endpoints").await.status, 200);

    // Full: who is in stays in, others come in, and both read; what is changed says why it is not.
    house.redis.set_maxmemory(1).await;
    assert_eq!(visitor.get("/console/dead-letters").await.status, 200);
    let mut late = Visitor::signed_in(&house, ADMIN).await;
    assert_eq!(late.get("/console").await.status, 200);
    let seen = late.post("/console/issues/ep_a%3Arejected%3A401/ack", &[("reason", "a test")]).await;
    assert!(late.get(seen.place()).await.html.contains("Redis is full"), "{}", seen.status);
    house.redis.set_maxmemory(0).await;

    // Changed by one letter, it is none.
    let sealed = visitor.cookie("herald_session").unwrap().clone();
    let mut forged = Visitor::new(&house);
    forged.set_cookie("herald_session", &sealed.chars().rev().collect::<String>());
    assert_eq!(forged.get("/console/endpoints").await.status, 303);

    let hash = house.get("/v1/tokens", ADMIN).await[0]["hash"].as_str().unwrap().to_owned();
    let revoked = house.ask("DELETE", &format!("/v1/tokens/{hash}"), Some(ADMIN), Some(&json!({"reason": "x"}))).await;
    assert_eq!(revoked.status, 204);
    until("nobody knows the token", async || visitor.get("/console/endpoints").await.status == 303).await;

    late.post("/console/logout", &[]).await;
    assert!(late.cookie("herald_session").is_none());
    assert_eq!(late.get("/console").await.status, 303);
}

#[tokio::test]
async fn while_redis_is_away_the_page_says_so_and_who_is_in_stays_in() {
    let mut house = House::start().await;
    let mut visitor = Visitor::signed_in(&house, ADMIN).await;
    house.redis.kill9().await;
    let seen = visitor.get("/console/endpoints").await;
    assert_eq!(seen.status, 503, "{}", seen.html);
    assert!(seen.html.contains("Redis does not answer") && seen.html.contains("You stay signed in"), "{}", seen.html);
    check_page("/console/endpoints", &seen);
    house.redis.start_again().await;
    until("it is back", async || visitor.get("/console/endpoints").await.status == 200).await;
}

#[tokio::test]
async fn whoever_guesses_tokens_is_slowed_down_and_a_stolen_form_signs_nobody_in() {
    let house = House::start().await;
    let mut visitor = Visitor::new(&house);
    let seen = visitor.send("/console/login", &[("token", ADMIN), ("form_key", "x")], &[]).await;
    assert_eq!((seen.status, visitor.cookie("herald_session").is_some()), (403, true));
    assert_eq!(visitor.get("/console").await.status, 303);
    let mut statuses = Vec::new();
    for n in 0..25 {
        statuses.push(visitor.sign_in(&format!("hrld_guess_{n}")).await.status);
    }
    assert!(statuses.starts_with(&[401; 15]) && statuses.ends_with(&[429]), "{statuses:?}");
    let seen = visitor.sign_in(&"x".repeat(10_000)).await;
    assert_eq!(seen.status, 401);
}

#[tokio::test]
async fn hostile_text_stays_text_and_what_steers_is_seen() {
    let house = House::start().await;
    let hostile = "\u{202e}<script>alert(1)</script>\"'><img src=x onerror=alert(1)>\u{7}";
    let url = "http://127.0.0.1:2/?q=%3Cscript%3E'onmouseover='alert(1)";
    let made = house.post(
        "/v1/endpoints",
        ADMIN,
        json!({
            "account": "acc_1", "id": "ep_x", "url": url, "description": "<script>alert(1)</script> \"quoted\" 'x'",
        }),
    );
    let made = made.await;
    assert_eq!(made.status, 201, "{}", made.body);
    let mut connection = house.redis.connection().await;
    for body in [hostile.to_owned(), format!("{{\"id\":\"{hostile}\"}}")] {
        let mut add = redis::cmd("XADD");
        add.arg("payment-intents").arg("*").arg("event").arg(body);
        add.query_async::<String>(&mut connection).await.unwrap();
    }
    until("both are in quarantine", async || house.get("/v1/quarantine", ADMIN).await["total"] == 5).await;
    let mut visitor = Visitor::signed_in(&house, ADMIN).await;
    let entries = house.get("/v1/quarantine", ADMIN).await;
    let entry = entries["items"][4]["entry"].as_str().unwrap();
    let mut pages = vec![format!("/console/quarantine/{entry}"), "/console/quarantine".to_owned()];
    pages.extend(
        ["/console/endpoints", "/console/endpoints/ep_x", "/console/issues?account=%22%3E%3Cscript%3E"]
            .map(str::to_owned),
    );
    pages.push(format!(
        "/console/find?q={}",
        url::form_urlencoded::byte_serialize(hostile.as_bytes()).collect::<String>()
    ));
    pages.push("/console/intents/%3Cscript%3E%22%27".to_owned());
    for path in pages {
        let seen = visitor.get(&path).await;
        if seen.status != 303 {
            check_page(&path, &seen);
        }
        assert!(!seen.html.contains("<script>") && !seen.html.contains("<img"), "{path}: {}", seen.html);
        assert!(!seen.html.contains('\u{202e}'), "{path}");
    }
    let page = visitor.get(&format!("/console/quarantine/{entry}")).await.html;
    assert!(page.contains("\\u202e&lt;script&gt;") && page.contains("\\u0007"), "{page}");
}

#[tokio::test]
async fn a_merchant_enters_once_by_a_link_and_sees_one_account() {
    let house = House::start().await;
    let mut operator = Visitor::signed_in(&house, &house.token("operator").await).await;
    let made = operator.post("/console/portal", &[("account", "acc_1"), ("reason", "they asked")]).await;
    let (_, after) = made.html.split_once("/console/enter/").expect("a link");
    let code: String = after.chars().take_while(|c| c.is_ascii_alphanumeric() || "-_".contains(*c)).collect();
    // It is no token, whoever tries it as one.
    for bearer in [code.clone(), format!("portal link {code}")] {
        assert_eq!(house.ask("GET", "/v1/me", Some(&bearer), None).await.status, 401);
    }

    // What looks at links before people do uses none up.
    let mut merchant = Visitor::new(&house);
    for _ in 0..3 {
        let page = merchant.get(&format!("/console/enter/{code}")).await;
        assert_eq!(page.status, 200);
        check_page("/console/enter", &page);
    }
    let form_key = merchant.get(&format!("/console/enter/{code}")).await.field("form_key");
    let entered = merchant.send("/console/enter", &[("form_key", &form_key), ("code", &code)], &[]).await;
    assert_eq!((entered.status, entered.place()), (303, "/console/endpoints"), "{}", entered.html);
    let page = merchant.get("/console/endpoints").await.html;
    assert!(page.contains("ep_a") && !page.contains("ep_b") && !page.contains(&code), "{page}");
    for path in
        ["/console/endpoints/ep_b", "/console/issues", "/console/audit", "/console/quarantine", "/console/portal"]
    {
        assert!([403, 404].contains(&merchant.get(path).await.status), "{path}");
    }
    let letter = merchant.get("/console/deliveries/1-0%3Aep_a").await.html;
    assert!(letter.contains("rejected (401)") && !letter.contains("herald dead-letter"), "{letter}");

    let mut second = Visitor::new(&house);
    let form_key = second.get(&format!("/console/enter/{code}")).await.field("form_key");
    let again = second.send("/console/enter", &[("form_key", &form_key), ("code", &code)], &[]).await;
    assert_eq!(again.status, 410, "{}", again.html);
    assert_eq!(second.get("/console/endpoints").await.status, 303);

    let tokens = house.get("/v1/tokens", ADMIN).await;
    let of_portal = |name: &str| tokens.as_array().unwrap().iter().filter(|token| token["name"] == name).count();
    assert_eq!((of_portal("portal link"), of_portal("portal visit")), (0, 1), "{tokens}");

    // Whoever has a copy of the cookie is out as well.
    let mut copy = merchant.moved_to(&house.url(""));
    assert_eq!(copy.get("/console/endpoints").await.status, 200);
    merchant.post("/console/logout", &[]).await;
    assert_eq!(copy.get("/console/endpoints").await.status, 303);
    assert!(!house.get("/v1/tokens", ADMIN).await.to_string().contains("portal visit"));

    let too_large = Visitor::new(&house).send("/console/login", &[("token", &"x".repeat(70_000))], &[]).await;
    assert!(too_large.status == 413 && too_large.html.contains("too large"), "{}", too_large.html);
    assert_eq!(Visitor::signed_in(&house, ADMIN).await.get("/console/endpoints/%ff").await.status, 400);
}

#[tokio::test]
async fn a_link_that_the_command_line_makes_leads_in_once_and_is_in_the_audit_log() {
    let house = House::start().await;
    let link = ["portal", "link", "--account", "acc_1", "--reason", "ticket 4711"];
    let made = house.cli(&link);
    let code = made["path"].as_str().unwrap().strip_prefix("/console/enter/").unwrap().to_owned();
    assert!(made["expires_at"].is_string() && made.get("url").is_none(), "{made}");
    let act = &house.get("/v1/audit?limit=1", ADMIN).await["items"][0];
    assert_eq!(
        (&act["act"], &act["account"], &act["by"]),
        (&"token create".into(), &"acc_1".into(), &"ops".into()),
        "{act}"
    );
    assert!(act["target"].as_str().unwrap().ends_with(" portal link") && act["why"] == "ticket 4711", "{act}");
    assert!(!act.to_string().contains(&code), "{act}");
    for status in [303, 410] {
        let mut visitor = Visitor::new(&house);
        let form_key = visitor.get(&format!("/console/enter/{code}")).await.field("form_key");
        let entered = visitor.send("/console/enter", &[("form_key", &form_key), ("code", &code)], &[]).await;
        assert_eq!(entered.status, status, "{}", entered.html);
        let is_in = status == 303;
        assert_eq!(visitor.get("/console/endpoints").await.html.contains("ep_a"), is_in);
    }
    let at = |console| house.cli(&[&link[..], &["--console", console]].concat());
    let shown = at("https://hooks.example/");
    let url = format!("https://hooks.example{}", shown["path"].as_str().unwrap());
    assert_eq!(shown["url"], url);
}

#[tokio::test]
async fn a_long_list_of_endpoints_goes_on_page_by_page() {
    let house = House::start().await;
    let mut registry = herald::store::registry::RegistryStore::connect(&house.redis.redis()).await.unwrap();
    for n in 0..300 {
        let endpoint = crate::stage::endpoint(&format!("ep_many_{n:04}"), "acc_3", NOWHERE);
        registry.create(endpoint, &crate::stage::mark()).await.unwrap();
    }
    let mut visitor = Visitor::signed_in(&house, ADMIN).await;
    let (mut path, mut seen) = ("/console/endpoints?account=acc_3&limit=100".to_owned(), 0);
    loop {
        let page = visitor.get(&path).await.html;
        seen += page.matches(r#"<td class="what">"#).count();
        let Some((_, after)) = page.split_once(r#"<a rel="next" href=""#) else { break };
        path = after.split('"').next().unwrap().replace("&amp;", "&");
        assert!(path.contains("account=acc_3") && path.contains("limit=100") && path.contains("cursor="), "{path}");
    }
    assert_eq!(seen, 300);
}

#[tokio::test]
async fn the_overview_says_what_the_api_says() {
    let house = House::start().await;
    let overview = house.get("/v1/overview", ADMIN).await;
    assert_eq!((&overview["dead_letters"], &overview["waiting"]["held"]), (&json!(7), &json!(1)), "{overview}");
    assert_eq!((overview["minutes"].as_array().unwrap().len(), overview["hours"].as_array().unwrap().len()), (15, 24));
    assert_eq!(overview["latest"]["p50_us"], 12_000, "{overview}");
    let page = Visitor::signed_in(&house, ADMIN).await.get("/console").await.html;
    let stats: Value = house.get("/v1/stats", ADMIN).await;
    assert_eq!(stats["quarantined"], 3);
    for told in ["<dd>7</dd>", "<dd>3</dd>", "12ms", "role=\"img\""] {
        assert!(page.contains(told), "{told}: {page}");
    }
}

#[tokio::test]
async fn the_events_of_any_intent_that_the_history_has_are_in_its_story() {
    let folder = tempfile::tempdir().unwrap();
    let house = House::with_history(&format!("sqlite:{}", folder.path().join("h.db").display())).await;
    let event = json!({
        "id": "evt_told", "event": "payment_intent.status_updated", "accountId": "acc_1",
        "createdAt": "2026-11-27T19:00:00.0000000Z",
        "data": {"paymentIntentId": "pi_told", "paymentStatus": "Captured", "captureMode": "Auto"},
    });
    assert_eq!(house.post("/v1/events", ADMIN, event).await.status, 201);
    let ask = async |token: &str| house.ask("GET", "/v1/intents/pi_told", Some(token), None).await;
    until("the history has it", async || ask(ADMIN).await.status == 200).await;
    let told = ask(ADMIN).await.body;
    assert_eq!((&told["account"], &told["events"][0]["status"]), (&json!("acc_1"), &json!("Captured")), "{told}");
    assert_eq!(ask(&house.token_of("acc_2").await).await.status, 404);
    let page = Visitor::signed_in(&house, ADMIN).await.get("/console/intents/pi_told").await.html;
    assert!(page.contains("Captured, accepted") && page.contains("evt_told"), "{page}");
}

#[tokio::test]
async fn a_page_shows_for_whom_the_certificates_of_an_endpoint_are_and_as_text() {
    let house = House::start().await;
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, "Till <b>7</b>");
    let pem = params.self_signed(&key).unwrap().pem();
    let patch = async |mut change: Value| {
        change["reason"] = "their own authority".into();
        house.ask("PATCH", "/v1/endpoints/ep_a", Some(ADMIN), Some(&change)).await
    };
    let changed = patch(json!({"url": "https://127.0.0.1:2/", "tls": {"ca": pem}})).await;
    assert_eq!(changed.status, 200, "{}", changed.body);
    let in_clear = patch(json!({"tls": {"client_certificate": pem, "client_key": key.serialize_pem()}})).await;
    assert_eq!(in_clear.status, 409, "{}", in_clear.body);
    assert!(in_clear.body["detail"].as_str().unwrap().contains("master_key_file"), "{}", in_clear.body);
    let merchant = house.token("merchant").await;
    for token in [ADMIN, &merchant] {
        let seen = Visitor::signed_in(&house, token).await.get("/console/endpoints/ep_a").await;
        assert!(seen.html.contains("Trusts also") && seen.html.contains("CN=Till "), "{}", seen.html);
        assert!(!seen.html.contains("<b>7") && !seen.html.contains("Client certificate"), "{}", seen.html);
    }
}

#[tokio::test]
async fn a_stream_that_is_split_is_shown_with_its_parts_and_who_has_them() {
    let house = House::split(3).await;
    let mut visitor = Visitor::signed_in(&house, ADMIN).await;
    let told = "<span>4<small>payment-intents, :0, :1, :2</small>";
    until("the worker tells what it has", async || visitor.get("/console/partitions").await.html.contains(told)).await;
    let page = visitor.get("/console/partitions").await.html;
    assert_eq!(page.matches(r#"<span class="long">night-shift</span>"#).count(), 4, "the owner of each: {page}");
    assert!(page.contains(r#"<span class="state calm">routed</span> into 3"#), "{page}");
    for part in ["payment-intents:0", "payment-intents:1", "payment-intents:2"] {
        assert!(page.contains(&format!(r#"<span class="id">{part}</span>"#)), "{part}: {page}");
    }
    assert!(!page.contains("Nobody works"), "{page}");
    // For a moment nobody has it.
    let lease = "herald:{payment-intents:1}:lease";
    until("a lease is gone", async || {
        house.redis.command::<u64>(&["DEL", lease]).await;
        let page = visitor.get("/console/partitions").await.html;
        page.contains("Nobody works on payment-intents:1.") && page.contains(r#"<span class="state bad">nobody</span>"#)
    })
    .await;
    // Whoever knows the workers does not answer for them, and the rest is shown.
    house.redis.command::<u64>(&["DEL", "herald:{herald}:workers"]).await;
    house.redis.command::<u64>(&["SADD", "herald:{herald}:workers", "a stranger's"]).await;
    let page = visitor.get("/console/partitions").await;
    assert_eq!(page.status, 200);
    assert!(page.html.contains("workers does not answer") && page.html.contains("payment-intents:2"), "{}", page.html);
}
