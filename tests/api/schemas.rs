//! What the command line shows with `-o json` and what the API answers is what the description says.

use serde_json::{Value, json};

use crate::house::{ADMIN, House};

/// A check against a schema of the description that takes no member that is not described.
pub struct Described(Value);

impl Described {
    pub fn new(mut description: Value) -> Self {
        for (name, schema) in description["components"]["schemas"].as_object_mut().unwrap() {
            // Parts of others.
            let is_part = name.starts_with("Page") || name == "PublishedEvent";
            if schema.get("properties").is_some() && !is_part {
                schema["unevaluatedProperties"] = false.into();
            }
        }
        Self(description)
    }

    pub fn check(&self, schema: &Value, value: &Value, what: &str) {
        let mut whole = schema.clone();
        whole["components"] = self.0["components"].clone();
        let validator = jsonschema::validator_for(&whole).unwrap();
        let faults: Vec<_> =
            validator.iter_errors(value).map(|fault| format!("{}: {fault}", fault.instance_path())).collect();
        assert!(faults.is_empty(), "{what}: {faults:#?}\n{value:#}");
    }

    pub fn named(&self, name: &str) -> Value {
        assert!(self.0["components"]["schemas"].get(name).is_some(), "there is no schema {name}");
        json!({"$ref": format!("#/components/schemas/{name}")})
    }
}

#[tokio::test]
async fn the_command_line_and_the_api_show_what_is_described() {
    let house = House::start().await;
    let description = house.ask("GET", "/openapi.json", None, None).await.body;
    assert!(description["openapi"].as_str().unwrap().starts_with("3.1"));
    let described = Described::new(description);

    let one: &[(&[&str], &str)] = &[
        (&["endpoint", "show", "ep_a"], "EndpointView"),
        (&["dead-letter", "show", "1-0:ep_a"], "LetterView"),
        (&["delivery", "show", "90-0:ep_a"], "DeliveryView"),
        (&["delivery", "show", "1-0:ep_a"], "DeliveryView"),
        (&["delivery", "show", "50-0:ep_a"], "DeliveryView"),
        (&["issue", "show", "ep_a:rejected:401"], "IssueView"),
        (&["quarantine", "show", "30-0"], "QuarantineView"),
        (&["token", "create", "--role", "viewer", "--name", "wall", "--expires-in", "1d"], "TokenView"),
        (&["endpoint", "test", "ep_a"], "TestView"),
        (&["operation", "plan", "redeliver", "--all", "--reason", "x"], "OperationView"),
    ];
    for (words, schema) in one {
        described.check(&described.named(schema), &house.cli(words), &words.join(" "));
    }
    let many: &[(&[&str], &str)] = &[
        (&["endpoint", "list"], "EndpointView"),
        (&["dead-letter", "list"], "LetterLine"),
        (&["dead-letter", "list", "--group-by", "endpoint,cause"], "LetterGroup"),
        (&["delivery", "list", "--intent", "pi_90"], "DeliveryLine"),
        (&["delivery", "list", "--endpoint", "ep_a"], "DeliveryLine"),
        (&["delivery", "list", "--account", "acc_1"], "DeliveryLine"),
        (&["issue", "list"], "IssueView"),
        (&["chain", "list", "--endpoint", "ep_a"], "ChainView"),
        (&["chain", "show", "--endpoint", "ep_a", "--intent", "pi_90"], "ChainView"),
        (&["quarantine", "list"], "QuarantineView"),
        (&["audit", "list"], "ActView"),
        (&["token", "list"], "TokenView"),
        (&["operation", "list"], "OperationView"),
    ];
    for (words, schema) in many {
        let shown = house.cli(words);
        assert!(!shown.as_array().unwrap().is_empty(), "{words:?} shows nothing");
        described.check(&json!({"type": "array", "items": described.named(schema)}), &shown, &words.join(" "));
    }
}

#[tokio::test]
async fn each_answer_of_the_api_is_what_is_described() {
    let house = House::start().await;
    // What is compared is looked at twice, and nothing may happen in between.
    house.post("/v1/pause", ADMIN, json!({"reason": "so that nothing changes"})).await;
    let description = house.ask("GET", "/openapi.json", None, None).await.body;
    let described = Described::new(description);
    let paths = described.0["paths"].as_object().unwrap();
    for look in crate::looks::LOOKS {
        let path = look.split('?').next().unwrap();
        let fits = |template: &str| {
            let (mut ours, mut its) = (path.split('/'), template.split('/'));
            loop {
                match (ours.next(), its.next()) {
                    (None, None) => return true,
                    (Some(one), Some(other)) if one == other || other.starts_with('{') => {}
                    _ => return false,
                }
            }
        };
        // What is named without a parameter comes first.
        let mut templates: Vec<_> = paths.keys().filter(|template| fits(template)).collect();
        templates.sort_by_key(|template| template.matches('{').count());
        let schema = &paths[templates[0]]["get"]["responses"]["200"]["content"]["application/json"]["schema"];
        assert!(schema.is_object(), "{look}");
        described.check(schema, &house.get(look, ADMIN).await, look);
    }
    let same = |api: &Value, cli: &Value| assert_eq!(api, cli);
    same(&house.get("/v1/endpoints/ep_a", ADMIN).await, &house.cli(&["endpoint", "show", "ep_a"]));
    same(&house.get("/v1/dead-letters/1-0:ep_a", ADMIN).await, &house.cli(&["dead-letter", "show", "1-0:ep_a"]));
    same(&house.get("/v1/dead-letters", ADMIN).await["items"], &house.cli(&["dead-letter", "list"]));
    same(&house.get("/v1/endpoints", ADMIN).await["items"], &house.cli(&["endpoint", "list"]));
    same(&house.get("/v1/issues", ADMIN).await["items"], &house.cli(&["issue", "list"]));
    same(&house.get("/v1/quarantine", ADMIN).await["items"], &house.cli(&["quarantine", "list"]));
}
