//! What stands in the way of going back to an older version: what is stored that it does not read, and what undoes that. Changes nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use serde::Serialize;

use crate::{
    store::registry::{RegistryStore, reseal::Form},
    surface::{Context, Format, VerbError, cell, json_line, words},
    view::schemas::{Reads, SCHEMAS, Schema},
};

/// How many of what stands in the way are named.
const NAMED: usize = 5;

#[derive(Debug, Serialize)]
struct Report<'a> {
    version: &'a str,
    possible: bool,
    in_the_way: &'a [Obstacle],
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Obstacle {
    what: String,
    /// None where it is all of its kind.
    count: Option<u64>,
    /// The first of them.
    examples: Vec<String>,
    undo: String,
}

/// `to` is a version, or a file in which one says of itself what it reads.
pub async fn run(context: &Context, to: &str) -> anyhow::Result<()> {
    let reads = match fs::read_to_string(to) {
        Ok(told) => Reads::told(&told),
        Err(_) if to.is_empty() || to.starts_with(|first: char| first.is_ascii_digit()) => Reads::of_version(to),
        Err(error) => {
            return Err(VerbError::Usage(format!("--rollback-to {to}: neither a version nor a file: {error}")).into());
        }
    };
    let reads = reads.map_err(|error| VerbError::Usage(format!("--rollback-to {to}: {error}")))?;
    let forms = RegistryStore::connect(&context.redis()?).await?.forms().await?;
    let mut obstacles = of_endpoints(&reads, &forms);
    obstacles.extend(of_the_rest(&reads));
    show(context, &reads.version, &obstacles)?;
    match obstacles.len() as u64 {
        0 => Ok(()),
        n => Err(anyhow::anyhow!(
            "{} in the way of going back to {}",
            words::count(n, "thing stands", "things stand"),
            reads.version
        )),
    }
}

fn of_endpoints(reads: &Reads, forms: &BTreeMap<String, Option<Form>>) -> Vec<Obstacle> {
    let newest = reads.newest("endpoint");
    let those = |is_one: &dyn Fn(&Form) -> bool| -> Vec<&String> {
        forms.iter().filter(|(_, form)| form.as_ref().is_some_and(is_one)).map(|(id, _)| id).collect()
    };
    let is_newer = |form: &Form| form.schema > newest.into();
    let version = &reads.version;
    let mut obstacles = vec![
        obstacle(
            "endpoints with authorities or a client certificate of their own",
            &those(&|form| is_newer(form) && form.has_tls),
            "herald endpoint update ENDPOINT --no-tls-ca --no-client-certificate, which its receiver must bear"
                .to_owned(),
        ),
        obstacle(
            "endpoints with sealed values",
            &those(&|form| is_newer(form) && form.is_sealed),
            format!("herald key unseal --yes --reason 'back to {version}'"),
        ),
        obstacle(
            &format!("other endpoints of a schema newer than {newest}"),
            &those(&|form| is_newer(form) && !form.is_sealed && !form.has_tls),
            "herald endpoint update ENDPOINT, until it has nothing that an older one cannot say".to_owned(),
        ),
    ];
    let schemes: BTreeSet<_> = forms.values().flatten().flat_map(|form| &form.schemes).collect();
    obstacles.extend(schemes.into_iter().filter(|scheme| !reads.knows_scheme(scheme)).map(|scheme| {
        let undo = "herald endpoint update ENDPOINT --scheme standard, and have its merchant verify that first";
        obstacle(
            &format!("endpoints signed by {scheme}"),
            &those(&|form| form.schemes.contains(scheme)),
            undo.to_owned(),
        )
    }));
    let strange: Vec<_> = forms.iter().filter(|(_, form)| form.is_none()).map(|(id, _)| id).collect();
    let undo = "herald endpoint delete ENDPOINT: no version reads it";
    obstacles.push(obstacle("entries of the registry that are no endpoints", &strange, undo.to_owned()));
    obstacles.into_iter().flatten().collect()
}

fn obstacle(what: &str, found: &[&String], undo: String) -> Option<Obstacle> {
    let examples = found.iter().take(NAMED).map(|id| (*id).clone()).collect();
    (!found.is_empty()).then(|| Obstacle { what: what.to_owned(), count: Some(found.len() as u64), examples, undo })
}

/// Each is written in one schema alone, so it is all of a kind or nothing.
fn of_the_rest(reads: &Reads) -> Vec<Obstacle> {
    let unread = |schema: &&Schema| schema.name != "endpoint" && reads.newest(schema.name) < schema.lowest;
    let undone = |schema: &Schema| {
        let undo = match schema.name {
            // It is made anew every second.
            "health" => return None,
            "history" => "give the older version a database of its own (history.url)",
            "operation" => "let operations end, or herald operation cancel OPERATION",
            _ => "stop producers, and let all that is unfinished end before the older version starts",
        };
        let what = format!("whatever is stored as {} is of schema {}", schema.name, schema.lowest);
        Some(Obstacle { what, count: None, examples: Vec::new(), undo: undo.to_owned() })
    };
    SCHEMAS.iter().filter(unread).filter_map(undone).collect()
}

fn show(context: &Context, version: &str, obstacles: &[Obstacle]) -> anyhow::Result<()> {
    let output = context.output;
    match output.format() {
        Format::Json => output.one(&Report { version, possible: obstacles.is_empty(), in_the_way: obstacles }, &[]),
        Format::Jsonl => obstacles.iter().try_for_each(|obstacle| output.text(&json_line(obstacle)?)),
        Format::Table if obstacles.is_empty() => {
            output.text(&format!("Nothing stands in the way of going back to {version}."))
        }
        Format::Table => {
            let mut lines = Vec::new();
            for Obstacle { what, count, examples, undo } in obstacles {
                let more = if count.unwrap_or(0) > examples.len() as u64 { ", …" } else { "" };
                let named =
                    if examples.is_empty() { String::new() } else { format!(": {}{more}", examples.join(", ")) };
                let count = count.map(|count| words::number(count) + " ").unwrap_or_default();
                lines.push(cell(&format!("{count}{what}{named}")));
                lines.push(format!("  -> {undo}"));
            }
            output.text(&lines.join("\n"))
        }
    }
}
