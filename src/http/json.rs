//! A JSON body, read strictly: each member once, none that is unknown, no deeper than anybody needs; all of its faults at
//! once, by the path of the member as the client wrote it. The schema is the published one, so the description cannot
//! promise anything else.

use std::{collections::HashSet, fmt, marker::PhantomData};

use axum::http::{HeaderMap, header};
use jsonschema::{ValidationError, Validator, error::ValidationErrorKind};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, DeserializeSeed, Error, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};
use utoipa::{PartialSchema, ToSchema};

use super::problem::Problem;

/// How deep arrays and objects may lie in each other.
const MAX_DEPTH: usize = 32;

/// Up to here floating point counts whole numbers one by one.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// Faults of one body that are told.
const MAX_FAULTS: usize = 50;

/// Checks bodies of one type.
pub struct Schema<T> {
    validator: Validator,
    of: PhantomData<fn() -> T>,
}

impl<T: ToSchema + PartialSchema + DeserializeOwned> Schema<T> {
    /// From the type's own description.
    ///
    /// # Panics
    ///
    /// If that is no JSON Schema, which no request has to do with.
    pub fn new() -> Self {
        let mut parts = Vec::new();
        T::schemas(&mut parts);
        let parts: Map<_, _> = parts.into_iter().map(|(name, part)| (name, as_json(&part))).collect();
        let mut whole = as_json(&T::schema());
        whole["components"] = serde_json::json!({ "schemas": parts });
        let validator = jsonschema::validator_for(&whole).expect("a type's description is a JSON Schema");
        Self { validator, of: PhantomData }
    }

    /// The body as its type, and as a value.
    pub fn read(&self, headers: &HeaderMap, body: &[u8]) -> Result<(T, Value), Problem> {
        check_type(headers)?;
        let value = parse(body)?;
        if !value.is_object() {
            return Err(Problem::fault("body", "is not a JSON object"));
        }
        let mut faults = Vec::new();
        for error in self.validator.iter_errors(&value) {
            explain(&error, &mut faults);
        }
        faults.truncate(MAX_FAULTS);
        if !faults.is_empty() {
            return Err(Problem::faults(faults));
        }
        match serde_path_to_error::deserialize(value.clone()) {
            Ok(body) => Ok((body, value)),
            Err(error) => Err(Problem::fault(&error.path().to_string(), said(error.inner()))),
        }
    }
}

impl<T: ToSchema + PartialSchema + DeserializeOwned> Default for Schema<T> {
    fn default() -> Self {
        Self::new()
    }
}

fn as_json(schema: &impl serde::Serialize) -> Value {
    serde_json::to_value(schema).expect("a description is JSON")
}

fn check_type(headers: &HeaderMap) -> Result<(), Problem> {
    let given = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let is_json = given.and_then(|text| text.parse::<mime::Mime>().ok()).is_some_and(|kind| {
        kind.type_() == mime::APPLICATION && (kind.subtype() == mime::JSON || kind.suffix() == Some(mime::JSON))
    });
    if is_json { Ok(()) } else { Err(Problem::fault("Content-Type", "is not application/json")) }
}

/// The parser's message without the place, which means nothing in a value.
fn said(error: &serde_json::Error) -> String {
    error.to_string()
}

/// A value in which each object has each of its members once.
pub fn parse(body: &[u8]) -> Result<Value, Problem> {
    let mut reader = serde_json::Deserializer::from_slice(body);
    let parsed = Strict { depth: 0 }.deserialize(&mut reader).and_then(|value| reader.end().map(|()| value));
    parsed.map_err(|error| Problem::fault("body", format!("is not JSON that can be taken: {error}")))
}

#[derive(Clone, Copy)]
struct Strict {
    depth: usize,
}

impl Strict {
    fn deeper<E: Error>(self) -> Result<Self, E> {
        let depth = self.depth + 1;
        (depth <= MAX_DEPTH)
            .then_some(Self { depth })
            .ok_or_else(|| E::custom(format!("it is more than {MAX_DEPTH} deep")))
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    /// To JSON Schema 1.0 is a whole number.
    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        if value.fract() == 0.0 && value.abs() <= EXACT {
            return Ok(Value::Number((value as i64).into()));
        }
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value, A::Error> {
        let deeper = self.deeper()?;
        let mut items = Vec::new();
        while let Some(item) = sequence.next_element_seed(deeper)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let deeper = self.deeper()?;
        let (mut members, mut seen) = (Map::new(), HashSet::new());
        while let Some(name) = map.next_key::<Name>()? {
            let value = map.next_value_seed(deeper)?;
            if !seen.insert(name.0.clone()) {
                return Err(A::Error::custom(format!("it has the member {:?} twice", name.0)));
            }
            members.insert(name.0, value);
        }
        Ok(Value::Object(members))
    }
}

#[derive(Deserialize)]
struct Name(String);

/// What a validator found, by member and in words that quote nothing of the value.
fn explain(error: &ValidationError<'_>, faults: &mut Vec<(String, String)>) {
    let at = member(error.instance_path().as_str());
    let within = |name: &str| if at == "body" { name.to_owned() } else { format!("{at}.{name}") };
    match error.kind() {
        ValidationErrorKind::AdditionalProperties { unexpected }
        | ValidationErrorKind::UnevaluatedProperties { unexpected } => {
            faults.extend(unexpected.iter().map(|name| (within(name), "is not known here".to_owned())));
        }
        ValidationErrorKind::Required { property } => {
            faults.push((within(property.as_str().unwrap_or_default()), "is missing".to_owned()));
        }
        // One of the two is null; what is wrong with the other is what its client wants to know.
        ValidationErrorKind::OneOfNotValid { context } | ValidationErrorKind::AnyOf { context } => {
            let of_type = |error: &ValidationError<'_>| matches!(error.kind(), ValidationErrorKind::Type { .. });
            let is_null = |branch: &Vec<ValidationError<'static>>| {
                branch
                    .iter()
                    .any(|error| of_type(error) && error.instance_path() == error_path(error) && says_null(error))
            };
            let branch = context.iter().find(|branch| !is_null(branch)).or(context.first());
            branch.into_iter().flatten().for_each(|error| explain(error, faults));
        }
        kind => faults.push((at, words(kind))),
    }
}

fn error_path<'a>(error: &'a ValidationError<'_>) -> &'a jsonschema::paths::Location {
    error.instance_path()
}

fn says_null(error: &ValidationError<'_>) -> bool {
    matches!(error.kind(), ValidationErrorKind::Type { kind } if format!("{kind:?}").contains("Null"))
}

fn words(kind: &ValidationErrorKind) -> String {
    match kind {
        ValidationErrorKind::Type { kind } => format!("is not {}", type_name(&format!("{kind:?}"))),
        ValidationErrorKind::Enum { options } => {
            let options = options.as_array().into_iter().flatten();
            let options: Vec<_> = options.filter_map(|option| option.as_str()).collect();
            format!("is not one of {}", options.join(", "))
        }
        ValidationErrorKind::Maximum { limit } => format!("is more than {limit}"),
        ValidationErrorKind::Minimum { limit } => format!("is less than {limit}"),
        ValidationErrorKind::MaxLength { limit } => format!("is longer than {limit} characters"),
        ValidationErrorKind::MinLength { limit } => format!("is shorter than {limit} characters"),
        ValidationErrorKind::MaxItems { limit } => format!("has more than {limit} items"),
        ValidationErrorKind::MinItems { limit } => format!("has fewer than {limit} items"),
        ValidationErrorKind::MaxProperties { limit } => format!("has more than {limit} members"),
        ValidationErrorKind::Pattern { pattern } => format!("does not have the form {pattern}"),
        other => format!("does not meet the rule {:?}", other.keyword()),
    }
}

fn type_name(kind: &str) -> String {
    let names = ["String", "Integer", "Number", "Boolean", "Array", "Object"];
    let found = names.into_iter().find(|name| kind.contains(name)).unwrap_or("of the right type");
    let article = if found.starts_with(['I', 'A', 'O']) { "an" } else { "a" };
    match found {
        "of the right type" => found.to_owned(),
        name => format!("{article} {}", name.to_lowercase()),
    }
}

/// `/itemLines/0/name` as `itemLines[0].name`.
fn member(pointer: &str) -> String {
    let mut path = String::new();
    for part in pointer.split('/').skip(1) {
        let part = part.replace("~1", "/").replace("~0", "~");
        match part.parse::<usize>() {
            Ok(index) => path.push_str(&format!("[{index}]")),
            Err(_) if path.is_empty() => path.push_str(&part),
            Err(_) => path.push_str(&format!(".{part}")),
        }
    }
    if path.is_empty() { "body".to_owned() } else { path }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_number_is_one_however_it_is_written() {
        for (text, value) in
            [("1.0", "1"), ("-2e3", "-2000"), ("-0.0", "0"), ("1.5", "1.5"), ("1e15", "1000000000000000")]
        {
            assert_eq!(parse(text.as_bytes()).unwrap().to_string(), value, "{text}");
        }
        assert!(parse(b"1e300").unwrap().as_i64().is_none());
    }
}
