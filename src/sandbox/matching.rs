//! Whether what came is what was expected: members that are expected must be there, others may be. Pure.

use serde_json::Value;

/// Longest value that is quoted.
const QUOTED_CHARS: usize = 200;

/// What differs, each with its path. None: it is as expected.
pub fn deviations(expected: &Value, came: &Value) -> Vec<String> {
    let mut found = Vec::new();
    compare("", expected, came, &mut found);
    found
}

fn compare(path: &str, expected: &Value, came: &Value, found: &mut Vec<String>) {
    match (expected, came) {
        (Value::Object(expected), Value::Object(came)) => {
            for (name, value) in expected {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                // A member that must be null need not be there.
                compare(&path, value, came.get(name).unwrap_or(&Value::Null), found);
            }
        }
        (Value::Array(expected), Value::Array(came)) => {
            if expected.len() != came.len() {
                found.push(format!("{}: expected {} items, came {}", named(path), expected.len(), came.len()));
            }
            for (n, (expected, came)) in expected.iter().zip(came).enumerate() {
                compare(&format!("{path}[{n}]"), expected, came, found);
            }
        }
        (expected, came) if are_equal(expected, came) => {}
        (expected, came) => {
            found.push(format!("{}: expected {}, came {}", named(path), quoted(expected), quoted(came)));
        }
    }
}

/// A number is the same however it is written.
fn are_equal(one: &Value, other: &Value) -> bool {
    one == other || one.as_f64().is_some_and(|one| Some(one) == other.as_f64())
}

fn named(path: &str) -> &str {
    if path.is_empty() { "the body" } else { path }
}

fn quoted(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(QUOTED_CHARS) {
        None => text,
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn members_that_are_not_expected_may_be_there() {
        let came = json!({ "a": { "b": 1, "c": [1, 2] }, "d": null });
        for expected in [json!({}), json!({ "a": { "b": 1.0 } }), json!({ "a": { "c": [1, 2] } }), json!({ "x": null })]
        {
            assert_eq!(deviations(&expected, &came), Vec::<String>::new(), "{expected}");
        }
    }

    #[test]
    fn what_differs_is_named_by_its_path() {
        let came = json!({ "a": { "b": 1, "c": [1, 2] } });
        let expected = json!({ "a": { "b": "1", "c": [3] }, "x": 1 });
        let says = [
            "a.b: expected \"1\", came 1",
            "a.c: expected 1 items, came 2",
            "a.c[0]: expected 3, came 1",
            "x: expected 1, came null",
        ];
        assert_eq!(deviations(&expected, &came), says);
        assert_eq!(deviations(&json!([]), &Value::Null), ["the body: expected [], came null"]);
    }
}
