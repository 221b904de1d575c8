//! What a scenario's texts refer to: `${order.id}` is a member of the answer that a step named `order` got, `${random.x}` a text
//! that is the same all over one run, and `${seed}` the run's seed. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

/// Hexadecimal digits of a random text: 48 bits are enough to be unique among what one account makes.
const RANDOM_CHARS: usize = 12;

/// Names that no step may have.
const OWN: [&str; 2] = ["random", "seed"];

pub struct Names {
    seed: u64,
    answers: BTreeMap<String, Value>,
}

impl Names {
    pub fn new(seed: u64) -> Self {
        Self { seed, answers: BTreeMap::new() }
    }

    pub fn keep(&mut self, name: &str, answer: Value) {
        self.answers.insert(name.to_owned(), answer);
    }

    /// The id of the intent of this name, or the id itself.
    pub fn intent(&self, name: &str) -> Result<String, String> {
        match self.answers.get(name).map(|answer| answer["id"].as_str()) {
            Some(Some(id)) => Ok(id.to_owned()),
            Some(None) => Err(format!("the answer that is called {name} has no id")),
            None if name.starts_with("pi_") => Ok(name.to_owned()),
            None => Err(format!("nothing is called {name}")),
        }
    }

    /// A text of this name: always the same with the same seed.
    pub fn random(&self, name: &str) -> String {
        let digest = Sha256::digest(format!("{} {name}", self.seed));
        hex::encode(digest).chars().take(RANDOM_CHARS).collect()
    }

    /// With everything that is referred to in its place. A text that is nothing but one reference takes the value as it is.
    pub fn fill(&self, value: &Value) -> Result<Value, String> {
        Ok(match value {
            Value::String(text) => self.fill_text(text)?,
            Value::Array(items) => items.iter().map(|item| self.fill(item)).collect::<Result<_, _>>()?,
            Value::Object(members) => Value::Object(self.fill_members(members)?),
            plain => plain.clone(),
        })
    }

    pub fn fill_members(&self, members: &Map<String, Value>) -> Result<Map<String, Value>, String> {
        members.iter().map(|(name, value)| Ok((name.clone(), self.fill(value)?))).collect()
    }

    pub fn fill_text(&self, text: &str) -> Result<Value, String> {
        if let [Part::Reference(path)] = parts(text)?[..] {
            return self.find(path);
        }
        let mut filled = String::new();
        for part in parts(text)? {
            match part {
                Part::Plain(plain) => filled.push_str(plain),
                Part::Reference(path) => match self.find(path)? {
                    Value::String(found) => filled.push_str(&found),
                    other => filled.push_str(&other.to_string()),
                },
            }
        }
        Ok(Value::String(filled))
    }

    fn find(&self, path: &str) -> Result<Value, String> {
        let mut steps = path.split('.');
        let root = steps.next().unwrap_or_default();
        match root {
            "seed" => return Ok(self.seed.into()),
            "random" => return Ok(self.random(path).into()),
            _ => {}
        }
        let answer = self.answers.get(root).ok_or_else(|| format!("${{{path}}}: nothing is called {root}"))?;
        let found = steps.try_fold(answer, |value, step| match value {
            Value::Array(items) => items.get(step.parse::<usize>().ok()?),
            other => other.get(step),
        });
        found.cloned().ok_or_else(|| format!("${{{path}}}: the answer has no such member"))
    }
}

/// Whether a step may be called so.
pub fn check_name(name: &str) -> Result<(), String> {
    let is_word = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));
    match is_word && !OWN.contains(&name) && !name.starts_with("pi_") {
        true => Ok(()),
        false => Err(format!(
            "{name:?} is no name: use letters, digits, _ and -, and not {}, or pi_ at its beginning",
            OWN.join(", ")
        )),
    }
}

/// The names that a value refers to.
pub fn referred(value: &Value, found: &mut BTreeSet<String>) -> Result<(), String> {
    match value {
        Value::String(text) => {
            for part in parts(text)? {
                if let Part::Reference(path) = part {
                    let root = path.split('.').next().unwrap_or_default();
                    found.extend((!OWN.contains(&root)).then(|| root.to_owned()));
                }
            }
            Ok(())
        }
        Value::Array(items) => items.iter().try_for_each(|item| referred(item, found)),
        Value::Object(members) => members.values().try_for_each(|member| referred(member, found)),
        _ => Ok(()),
    }
}

enum Part<'t> {
    Plain(&'t str),
    Reference(&'t str),
}

fn parts(text: &str) -> Result<Vec<Part<'_>>, String> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some((plain, behind)) = rest.split_once("${") {
        let (path, after) = behind.split_once('}').ok_or_else(|| format!("{text:?}: ${{ has no end"))?;
        parts.extend((!plain.is_empty()).then_some(Part::Plain(plain)));
        parts.push(Part::Reference(path));
        rest = after;
    }
    parts.extend((!rest.is_empty()).then_some(Part::Plain(rest)));
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn references_are_filled_in_wherever_they_stand() {
        let mut names = Names::new(7);
        names.keep("order", json!({ "id": "pi_1", "amount": { "value": 5 }, "captures": [{ "id": "cp_1" }] }));
        let fill = |value: Value| names.fill(&value);
        assert_eq!(fill(json!("${order.id}")), Ok(json!("pi_1")));
        assert_eq!(fill(json!({ "a": ["${order.amount.value}"] })), Ok(json!({ "a": [5] })));
        assert_eq!(fill(json!("/x/${order.captures.0.id}?n=${order.amount.value}")), Ok(json!("/x/cp_1?n=5")));
        assert_eq!(fill(json!("Order ${seed}, $5 {a}")), Ok(json!("Order 7, $5 {a}")));
        for wrong in ["${order.nope}", "${other.id}", "${order.id"] {
            assert!(fill(json!(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_random_is_the_same_with_the_same_seed() {
        let draw = |seed, name| Names::new(seed).random(name);
        assert_eq!(draw(1, "random.a"), draw(1, "random.a"));
        assert_ne!(draw(1, "random.a"), draw(1, "random.b"));
        assert_ne!(draw(1, "random.a"), draw(2, "random.a"));
        assert_eq!(draw(1, "random.a").len(), RANDOM_CHARS);
    }

    #[test]
    fn names_are_words_of_their_own() {
        assert!(check_name("order-1").is_ok());
        for wrong in ["", "random", "seed", "a b", "a.b", "pi_1"] {
            assert!(check_name(wrong).is_err(), "{wrong}");
        }
    }
}
