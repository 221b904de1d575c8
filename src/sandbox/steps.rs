//! What a step asks of the service, and whether a scenario hangs together before any of it is asked. Pure.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{
    file::{Action, FileFault, Scenario, Step, Verb},
    names::{Names, check_name, referred},
};
use crate::{config::parse_duration, intents::stamp::TimeSpan, surface::client::Request};

impl Verb {
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Pay => "pay",
            Self::Challenge => "challenge",
            Self::Capture => "capture",
            Self::Refund => "refund",
            Self::Reverse => "reverse",
            Self::Cancel => "cancel",
            Self::Amount => "amount",
            Self::Tips => "tips",
            Self::Secret => "secret",
            Self::Receipt => "receipt",
        }
    }

    /// Method and path, given the intent's id; whether there is a body.
    fn call(self, id: &str) -> (&'static str, String, bool) {
        let merchant = |what: &str| ("POST", format!("/payment-intents/{id}/{what}"), true);
        match self {
            Self::Get => ("GET", format!("/payment-intents/{id}?returnCanceled=true"), false),
            Self::Cancel => ("DELETE", format!("/payment-intents/{id}"), false),
            Self::Pay => ("POST", format!("/sandbox/payment-intents/{id}/pay"), true),
            Self::Challenge => ("POST", format!("/sandbox/payment-intents/{id}/challenge"), true),
            Self::Capture => merchant("captures"),
            Self::Refund => merchant("refunds"),
            Self::Reverse => merchant("reversal"),
            Self::Amount => merchant("amount"),
            Self::Tips => merchant("tips-amount"),
            Self::Secret => merchant("refresh-client-session-secret"),
            Self::Receipt => merchant("receipt"),
        }
    }
}

impl Step {
    /// For people: `refund order`.
    pub fn title(&self) -> String {
        match &self.action {
            Action::Create(_) => format!("create {}", self.name.as_deref().unwrap_or_default()).trim_end().to_owned(),
            Action::OfIntent(verb, of) => format!("{} {}", verb.name(), of.intent),
            Action::Advance(by) => format!("advance {by}"),
            Action::Delivered(intent) => format!("delivered {intent}"),
            Action::Call(call) => format!("call {} {}", call.method, call.path),
        }
    }

    /// None for what asks nothing. `number` tells it from the other steps.
    pub fn request(&self, names: &Names, number: usize) -> Result<Option<Request>, String> {
        let mut request = match &self.action {
            Action::Create(body) => {
                Request::new("POST", "/payment-intents", Some(Value::Object(names.fill_members(body)?)))
            }
            Action::OfIntent(verb, of) => {
                let (method, path, has_body) = verb.call(&names.intent(&of.intent)?);
                let body = has_body.then(|| names.fill_members(&of.body)).transpose()?;
                Request::new(method, path, body.map(Value::Object))
            }
            Action::Advance(by) => {
                let by = span(by)?.to_string();
                Request::new("POST", "/sandbox/clock/advance", Some(json!({ "by": by })))
            }
            Action::Call(call) => {
                let path = match names.fill_text(&call.path)? {
                    Value::String(path) if path.starts_with('/') => path,
                    _ => return Err(format!("{:?} is no path: it begins with /", call.path)),
                };
                let body = call.body.as_ref().map(|body| names.fill(body)).transpose()?;
                Request::new(&call.method.to_ascii_uppercase(), path, body)
            }
            Action::Delivered(_) => return Ok(None),
        };
        let key = self.idempotency_key.as_ref().map(|key| names.fill_text(key)).transpose()?;
        // A refund needs one. Scoped to its intent, it may come again with the same seed.
        let needs = || matches!(&self.action, Action::OfIntent(Verb::Refund, _));
        request.idempotency_key = match key {
            Some(Value::String(key)) => Some(key),
            Some(other) => Some(other.to_string()),
            None => needs().then(|| names.random(&format!("key {number}"))),
        };
        Ok(Some(request))
    }
}

/// As the configuration or as the API writes it: `7d` or `7.00:00:00`.
pub fn span(text: &str) -> Result<TimeSpan, String> {
    if let Some(span) = TimeSpan::parse(text) {
        return Ok(span);
    }
    let by = parse_duration(text)?;
    TimeSpan::of_micros(by.as_micros()).ok_or_else(|| "is longer than there is time".to_owned())
}

/// Whether each name is given before it is used, and each span is one.
pub fn check(scenario: &Scenario) -> Result<(), FileFault> {
    let mut given = BTreeSet::new();
    for step in &scenario.steps {
        let fault = |says: String| FileFault::at(step.line, format!("{}: {says}", step.title()));
        let mut used = BTreeSet::new();
        match &step.action {
            Action::Create(body) => referred(&Value::Object(body.clone()), &mut used).map_err(fault)?,
            Action::OfIntent(verb, of) => {
                if !verb.call("").2 && !of.body.is_empty() {
                    return Err(fault("it has no members but intent".to_owned()));
                }
                used.extend((!of.intent.starts_with("pi_")).then(|| of.intent.clone()));
                referred(&Value::Object(of.body.clone()), &mut used).map_err(fault)?;
            }
            Action::Advance(by) => span(by).map(drop).map_err(|why| fault(format!("it {why}")))?,
            Action::Delivered(intent) => {
                used.insert(intent.clone());
            }
            Action::Call(call) => {
                referred(&Value::String(call.path.clone()), &mut used).map_err(fault)?;
                call.body.iter().try_for_each(|body| referred(body, &mut used)).map_err(fault)?;
            }
        }
        let key = step.idempotency_key.as_ref().map(|key| Value::String(key.clone()));
        key.iter().try_for_each(|key| referred(key, &mut used)).map_err(fault)?;
        if let Some(name) = &step.name {
            check_name(name).map_err(fault)?;
        }
        let expected = step.expect.iter().filter_map(|expect| expect.body.as_ref());
        let mut in_answer = BTreeSet::new();
        expected.into_iter().try_for_each(|body| referred(body, &mut in_answer)).map_err(fault)?;
        // What is expected may refer to the answer itself.
        used.extend(in_answer.into_iter().filter(|name| Some(name) != step.name.as_ref()));
        if let Some(unknown) = used.iter().find(|name| !given.contains(*name)) {
            return Err(fault(format!("no step before it is called {unknown} (`as: {unknown}`)")));
        }
        given.extend(step.name.clone());
    }
    let creates = |intent: &String| {
        let made = |step: &&Step| step.name.as_ref() == Some(intent) && matches!(step.action, Action::Create(_));
        scenario.steps.iter().any(|step| made(&step))
    };
    match scenario.callbacks.iter().find(|(intent, _)| !creates(intent)) {
        Some((intent, _)) => {
            Err(FileFault { line: None, says: format!("callbacks: no step creates {intent} (`as: {intent}`)") })
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::file::parse, *};

    const START: &str = "steps:\n  - create: { reference: a }\n    as: order\n";

    fn scenario(more: &str) -> Scenario {
        parse(&format!("{START}{more}")).unwrap()
    }

    #[test]
    fn a_step_asks_what_the_api_describes() {
        let scenario = scenario(
            "  - pay: order\n  - refund: { intent: order, amount: 4 }\n  - cancel: order\n  - advance: 7d\n  - call: { method: \
             post, path: '/x/${order.id}', body: [1] }\n",
        );
        check(&scenario).unwrap();
        let mut names = Names::new(1);
        names.keep("order", json!({ "id": "pi_1" }));
        let requests: Vec<_> = scenario.steps.iter().map(|step| step.request(&names, 3).unwrap().unwrap()).collect();
        let asked: Vec<_> = requests.iter().map(|request| format!("{} {}", request.method, request.path)).collect();
        let expected = [
            "POST /payment-intents",
            "POST /sandbox/payment-intents/pi_1/pay",
            "POST /payment-intents/pi_1/refunds",
            "DELETE /payment-intents/pi_1",
            "POST /sandbox/clock/advance",
            "POST /x/pi_1",
        ];
        assert_eq!(asked, expected);
        assert_eq!((&requests[2].body, &requests[3].body), (&Some(json!({ "amount": 4 })), &None));
        assert_eq!(requests[4].body, Some(json!({ "by": "7.00:00:00" })));
        let keys: Vec<_> = requests.iter().map(|request| request.idempotency_key.is_some()).collect();
        assert_eq!(keys, [false, false, true, false, false, false]);
    }

    #[test]
    fn a_name_is_given_before_it_is_used() {
        for (more, says) in [
            ("  - pay: other\n", "line 4: pay other: no step before it is called other"),
            ("  - call: { path: '/x/${later.id}' }\n  - pay: order\n    as: later\n", "called later"),
            ("  - pay: order\n    as: random\n", "is no name"),
            ("  - advance: soon\n", "is not a duration"),
            ("  - get: { intent: order, x: 1 }\n", "no members but intent"),
            ("  - pay: order\n    as: paid\ncallbacks: { paid: [Created] }\n", "no step creates paid"),
        ] {
            let found = check(&scenario(more)).unwrap_err().to_string();
            assert!(found.contains(says), "{found}");
        }
        check(&scenario("  - pay: order\n    as: paid\n    expect: { body: { status: '${paid.status}' } }\n")).unwrap();
    }
}
