//! Lays the sources of all settings over each other: built-in default < file < environment < flag.
//! Knows where each text came from, and nothing of what it means.

use std::{collections::BTreeMap, sync::Arc};

use toml::de::{DeTable, DeValue};

use super::{
    error::{ConfigError, UnknownVariable},
    keys::{KEYS, Variable, nearest_key, nearest_variable},
    origin::Origin,
    sources::SecretFile,
};

/// A value as it was written.
#[derive(Clone)]
pub(super) enum Written {
    One(String),
    /// A TOML array.
    Many(Vec<String>),
    /// A date or a table: never right.
    Other(&'static str),
}

#[derive(Clone)]
pub(super) struct Given {
    pub written: Written,
    pub origin: Origin,
}

/// The value that applies to each key, and what was wrong on the way.
#[derive(Default)]
pub(super) struct Layers {
    pub values: BTreeMap<&'static str, Given>,
    pub errors: Vec<ConfigError>,
    pub unknown_variables: Vec<UnknownVariable>,
}

impl Layers {
    /// Lays a TOML text over the present values. `path` is none for the built-in default.
    pub fn lay_toml(&mut self, text: &str, path: Option<&str>) {
        let path: Option<Arc<str>> = path.map(Arc::from);
        let origin_at = |at: usize| match &path {
            Some(path) => Origin::File { path: path.clone(), line: line_at(text, at) },
            None => Origin::BuiltIn,
        };
        let (table, errors) = DeTable::parse_recoverable(text);
        if errors.is_empty() {
            self.lay_table("", table.get_ref(), &origin_at);
        }
        self.errors.extend(errors.iter().map(|error| ConfigError::Syntax {
            origin: origin_at(error.span().map_or(0, |span| span.start)),
            problem: error.message().to_owned(),
        }));
    }

    fn lay_table(&mut self, prefix: &str, table: &DeTable<'_>, origin_at: &dyn Fn(usize) -> Origin) {
        for (key, value) in table {
            let name = format!("{prefix}{}", key.get_ref());
            let origin = origin_at(key.span().start);
            match value.get_ref() {
                DeValue::Table(inner) if is_section(&name) => self.lay_table(&format!("{name}."), inner, origin_at),
                value => self.lay(&name, written(value), origin),
            }
        }
    }

    fn lay(&mut self, name: &str, written: Written, origin: Origin) {
        match KEYS.iter().find(|key| key.name == name) {
            Some(key) => {
                self.values.insert(key.name, Given { written, origin });
            }
            None => {
                let (name, nearest) = (shorten(name), nearest_key(name));
                self.errors.push(ConfigError::Unknown { name, origin, nearest });
            }
        }
    }

    /// Lays the variables that hold values over the present ones. An unknown variable stops nothing: it may be meant
    /// for another version, or be set by the platform that runs Herald.
    pub fn lay_env(&mut self, variables: impl IntoIterator<Item = (String, String)>) {
        for (name, value) in variables {
            match Variable::of(&name) {
                Variable::Value(key) => {
                    self.values.insert(key.name, Given { written: Written::One(value), origin: Origin::Env(name) });
                }
                Variable::Unknown => {
                    let name = shorten(&name);
                    let nearest = nearest_variable(&name);
                    self.unknown_variables.push(UnknownVariable { name, nearest });
                }
                // Those files were read when the sources were gathered.
                Variable::FileOfValue(_) | Variable::ConfigFile | Variable::Foreign => {}
            }
        }
    }

    /// Lays the content of such files over the present values. If the value itself is set as well, that is an error:
    /// which of the two is outdated?
    pub fn lay_secret_files(&mut self, files: impl IntoIterator<Item = SecretFile>) {
        for SecretFile { variable: file_variable, path, text } in files {
            let Variable::FileOfValue(key) = Variable::of(&file_variable) else { continue };
            if let Some(Given { origin: Origin::Env(variable), .. }) = self.values.get(key.name) {
                let variable = variable.clone();
                self.errors.push(ConfigError::SetTwice { variable, file_variable });
                continue;
            }
            let origin = Origin::SecretFile { variable: file_variable, path };
            self.values.insert(key.name, Given { written: Written::One(text), origin });
        }
    }

    /// Lays flags over the present values; if a flag is repeated, the last one wins.
    pub fn lay_flags(&mut self, flags: impl IntoIterator<Item = (String, String)>) {
        for (key, value) in flags {
            self.lay(&key, Written::One(value), Origin::Flag);
        }
    }
}

fn is_section(name: &str) -> bool {
    KEYS.iter().any(|key| key.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')))
}

fn written(value: &DeValue<'_>) -> Written {
    let scalar = |value: &DeValue<'_>| match value {
        DeValue::String(text) => Some(text.clone().into_owned()),
        DeValue::Integer(number) => i128::from_str_radix(number.as_str(), number.radix()).ok().map(|n| n.to_string()),
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        DeValue::Boolean(truth) => Some(truth.to_string()),
        DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => None,
    };
    let whole = match value {
        DeValue::Array(items) => {
            items.iter().map(|item| scalar(item.get_ref())).collect::<Option<_>>().map(Written::Many)
        }
        value => scalar(value).map(Written::One),
    };
    whole.unwrap_or(Written::Other(value.type_str()))
}

fn line_at(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
}

/// A message stays readable whatever was written.
pub(super) fn shorten(text: &str) -> String {
    const MAX_CHARS: usize = 80;
    match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
