//! A scenario as its file has it. Reads it whole, and says of what is wrong where it stands; asks nobody.

use std::{collections::BTreeMap, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, Visitor, value::MapAccessDeserializer},
};
use serde_json::{Map, Value};
use serde_saphyr::{Spanned, options};

/// Largest file, and most steps of it: more than anybody reads.
pub const MAX_FILE_BYTES: u64 = 1 << 20;
const MAX_STEPS: usize = 1_000;

/// Most callbacks that are expected of one intent: it never tells more.
const MAX_CALLBACKS: usize = 400;

#[derive(Debug)]
pub struct Scenario {
    pub name: String,
    pub steps: Vec<Step>,
    /// By the name of the step that creates the intent.
    pub callbacks: Vec<(String, Vec<ExpectedCallback>)>,
}

#[derive(Debug)]
pub struct Step {
    pub line: u64,
    pub action: Action,
    /// What later steps call its answer.
    pub name: Option<String>,
    pub idempotency_key: Option<String>,
    pub expect: Option<Expect>,
}

#[derive(Debug)]
pub enum Action {
    Create(Map<String, Value>),
    /// One of the calls about one intent.
    OfIntent(Verb, OfIntent),
    /// By a span, as the command line or as the API writes it.
    Advance(String),
    /// Waits until everything that the intent has told so far is delivered.
    Delivered(String),
    Call(Call),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Get,
    Pay,
    Challenge,
    Capture,
    Refund,
    Reverse,
    Cancel,
    Amount,
    Tips,
    Secret,
    Receipt,
}

/// The intent by its name, and the members of the request.
#[derive(Debug, PartialEq)]
pub struct OfIntent {
    pub intent: String,
    pub body: Map<String, Value>,
}

/// Any other request.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    #[serde(default = "get")]
    pub method: String,
    pub path: String,
    #[serde(default)]
    pub body: Option<Value>,
}

fn get() -> String {
    "GET".to_owned()
}

/// What the answer must be: its code, and members that it has.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    #[serde(default)]
    pub code: Option<u16>,
    #[serde(default)]
    pub body: Option<Value>,
}

/// One event that the merchant must be told. What is not given may be anything.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpectedCallback {
    /// `payment_intent.status_updated`, or `status_updated` for short.
    #[serde(default)]
    pub event: Option<String>,
    #[serde(default)]
    pub status: Option<String>,
    /// The status code that the application must answer the first time; otherwise any 2xx.
    #[serde(default)]
    pub answer: Option<u16>,
}

/// What is wrong with a file, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileFault {
    pub line: Option<u64>,
    pub says: String,
}

impl FileFault {
    pub fn at(line: u64, says: impl Into<String>) -> Self {
        Self { line: Some(line), says: says.into() }
    }
}

impl fmt::Display for FileFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.says),
            None => f.write_str(&self.says),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileForm {
    #[serde(default)]
    name: String,
    steps: Vec<Spanned<StepForm>>,
    #[serde(default)]
    callbacks: BTreeMap<String, Vec<Short<ExpectedCallback>>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct StepForm {
    create: Option<Map<String, Value>>,
    get: Option<Short<OfIntent>>,
    pay: Option<Short<OfIntent>>,
    challenge: Option<Short<OfIntent>>,
    capture: Option<Short<OfIntent>>,
    refund: Option<Short<OfIntent>>,
    reverse: Option<Short<OfIntent>>,
    cancel: Option<Short<OfIntent>>,
    amount: Option<Short<OfIntent>>,
    tips: Option<Short<OfIntent>>,
    secret: Option<Short<OfIntent>>,
    receipt: Option<Short<OfIntent>>,
    advance: Option<String>,
    delivered: Option<String>,
    call: Option<Call>,
    #[serde(rename = "as")]
    name: Option<String>,
    #[serde(rename = "idempotencyKey")]
    idempotency_key: Option<String>,
    expect: Option<Short<Expect>>,
}

/// A mapping, or a short form of it.
struct Short<T>(T);

/// What a short form means.
trait FromShort: Sized {
    fn from_text(text: &str) -> Option<Self>;

    fn from_number(_: u64) -> Option<Self> {
        None
    }
}

impl FromShort for OfIntent {
    fn from_text(text: &str) -> Option<Self> {
        Some(Self { intent: text.to_owned(), body: Map::new() })
    }
}

impl FromShort for ExpectedCallback {
    fn from_text(text: &str) -> Option<Self> {
        Some(Self { event: None, status: Some(text.to_owned()), answer: None })
    }
}

impl FromShort for Expect {
    fn from_text(_: &str) -> Option<Self> {
        None
    }

    fn from_number(code: u64) -> Option<Self> {
        Some(Self { code: Some(u16::try_from(code).ok()?), body: None })
    }
}

impl<'de, T: FromShort + Deserialize<'de>> Deserialize<'de> for Short<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<T>(PhantomData<T>);

        impl<'de, T: FromShort + Deserialize<'de>> Visitor<'de> for Either<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mapping or its short form")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
                T::from_text(text).ok_or_else(|| E::invalid_type(de::Unexpected::Str(text), &self))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
                T::from_number(number).ok_or_else(|| E::invalid_type(de::Unexpected::Unsigned(number), &self))
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
                let known = u64::try_from(number).ok().and_then(T::from_number);
                known.ok_or_else(|| E::invalid_type(de::Unexpected::Signed(number), &self))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map))
            }
        }

        deserializer.deserialize_any(Either(PhantomData)).map(Self)
    }
}

impl<'de> Deserialize<'de> for OfIntent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut body = Map::deserialize(deserializer)?;
        match body.remove("intent") {
            Some(Value::String(intent)) => Ok(Self { intent, body }),
            _ => Err(de::Error::custom("intent is missing: the name of the step that creates it")),
        }
    }
}

/// Reads a file's text.
pub fn parse(text: &str) -> Result<Scenario, FileFault> {
    // `yes` and `on` are words.
    let options = options! { with_snippet: false, strict_booleans: true };
    // Its text says where.
    let form: FileForm = serde_saphyr::from_str_with_options(text, options)
        .map_err(|error| FileFault { line: None, says: error.to_string() })?;
    if form.steps.is_empty() || form.steps.len() > MAX_STEPS {
        return Err(FileFault { line: None, says: format!("steps: there must be 1 to {MAX_STEPS} of them") });
    }
    let steps = form.steps.into_iter().map(|step| step_of(step.referenced.line(), step.value));
    let callbacks: Vec<_> = form.callbacks.into_iter().map(|(intent, list)| (intent, unfolded(list))).collect();
    if let Some((intent, _)) = callbacks.iter().find(|(_, list)| list.len() > MAX_CALLBACKS) {
        let says = format!("callbacks: {intent} has more than {MAX_CALLBACKS}, which no payment intent tells");
        return Err(FileFault { line: None, says });
    }
    Ok(Scenario { name: form.name, steps: steps.collect::<Result<_, _>>()?, callbacks })
}

fn unfolded(list: Vec<Short<ExpectedCallback>>) -> Vec<ExpectedCallback> {
    list.into_iter().map(|short| short.0).collect()
}

fn step_of(line: u64, form: StepForm) -> Result<Step, FileFault> {
    let of = |verb: Verb, short: Option<Short<OfIntent>>| short.map(|short| Action::OfIntent(verb, short.0));
    let actions = [
        form.create.map(Action::Create),
        of(Verb::Get, form.get),
        of(Verb::Pay, form.pay),
        of(Verb::Challenge, form.challenge),
        of(Verb::Capture, form.capture),
        of(Verb::Refund, form.refund),
        of(Verb::Reverse, form.reverse),
        of(Verb::Cancel, form.cancel),
        of(Verb::Amount, form.amount),
        of(Verb::Tips, form.tips),
        of(Verb::Secret, form.secret),
        of(Verb::Receipt, form.receipt),
        form.advance.map(Action::Advance),
        form.delivered.map(Action::Delivered),
        form.call.map(Action::Call),
    ];
    let mut actions = actions.into_iter().flatten();
    let (Some(action), None) = (actions.next(), actions.next()) else {
        return Err(FileFault::at(line, "a step does exactly one thing: create, pay, capture, advance, …"));
    };
    let (name, idempotency_key, expect) = (form.name, form.idempotency_key, form.expect.map(|short| short.0));
    Ok(Step { line, action, name, idempotency_key, expect })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn a_step_is_written_long_or_short_and_its_line_is_known() {
        let text = r#"
name: A purchase
steps:
  - create: { amount: { value: 1000, currencyCode: GBP }, reference: "Order ${random.a}", autoExpireIn: 00:01:00 }
    as: order
    expect: 200
  - pay: order
  - capture: { intent: order, amount: 600 }
    idempotencyKey: k
    expect: { code: 200, body: { captureId: "${x.y}" } }
  - advance: 7d
callbacks:
  order: [Created, { event: status_updated, answer: 204 }]
"#;
        let scenario = parse(text).unwrap();
        assert_eq!(scenario.steps.iter().map(|step| step.line).collect::<Vec<_>>(), [4, 7, 8, 11]);
        let Action::Create(body) = &scenario.steps[0].action else { panic!("{:?}", scenario.steps[0]) };
        assert_eq!((&body["autoExpireIn"], &body["amount"]["value"]), (&"00:01:00".into(), &1000.into()));
        assert_eq!(scenario.steps[0].expect, Some(Expect { code: Some(200), body: None }));
        let Action::OfIntent(Verb::Capture, capture) = &scenario.steps[2].action else { panic!("no capture") };
        assert_eq!((capture.intent.as_str(), &capture.body["amount"]), ("order", &600.into()));
        let (_, expected) = &scenario.callbacks[0];
        assert_eq!((expected[0].status.as_deref(), expected[1].answer), (Some("Created"), Some(204)));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (text, part) in [
            ("steps:\n  - pay: a\n    expekt: 1\n", "unknown field `expekt`"),
            ("steps:\n  - pay: a\n    cancel: a\n", "line 2: a step does exactly one thing"),
            ("steps:\n  - as: a\n", "line 2: a step does exactly one thing"),
            ("steps:\n  - pay: { card: x }\n", "intent is missing"),
            ("steps:\n  - pay: a\n    expect: { cod: 1 }\n", "unknown field `cod`"),
            ("steps:\n  - pay: a\n    expect: soon\n", "line 3"),
            ("steps: []\n", "1 to 1000"),
            ("steps:\n  - pay: [\n", "line"),
            ("", "line 1"),
        ] {
            assert!(says(text).contains(part), "{text}: {}", says(text));
        }
    }
}
