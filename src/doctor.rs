//! `herald doctor`: looks at Redis, the stream, its owner, the registry and what is stuck, and says for each what it means
//! and what to do. [`observe`] asks, [`findings`] judges, this file shows. Changes nothing.

mod api;
mod certificates;
mod cluster;
mod finding;
pub mod findings;
mod guard;
mod history;
mod intents;
mod issues;
pub mod observe;
mod partitions;
mod rollback;
mod security;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde::Serialize;

use self::{
    finding::{Finding, Level},
    findings::examine,
};
use crate::{
    config::UnknownVariable,
    store::{
        acl::{self, Role},
        queries::Oldest,
    },
    surface::{Context, Format, cell, colour::Colours, json_line, note, words},
};

/// How many endpoints the list of the oldest unfinished deliveries has.
const TOP: usize = 10;

#[derive(Debug, clap::Args)]
pub struct DoctorArgs {
    /// Print the rules for `redis-cli` that give each role exactly what it uses, and end
    #[arg(long)]
    print_acl: bool,
    /// Only the rule of this role
    #[arg(long, value_name = "ROLE", requires = "print_acl", value_parser = role())]
    role: Option<Role>,
    /// Only say what stands in the way of going back to this older version, and what undoes it
    ///
    /// VERSION, or a file with what `herald version -o json` of that one prints. The exit code is 0 if nothing stands in the way.
    #[arg(long, value_name = "VERSION", conflicts_with = "print_acl")]
    rollback_to: Option<String>,
}

fn role() -> impl TypedValueParser<Value = Role> {
    let names = PossibleValuesParser::new(Role::ALL.map(Role::name));
    names.try_map(|name| Role::ALL.into_iter().find(|role| role.name() == name).ok_or("is no role"))
}

/// What `-o json` shows.
#[derive(Serialize)]
struct Report<'a> {
    healthy: bool,
    findings: &'a [Finding],
    oldest_unfinished: Vec<OldestView>,
}

#[derive(Serialize)]
struct OldestView {
    endpoint: String,
    oldest: Option<String>,
    age_ms: Option<u64>,
    unfinished: u64,
    parked: u64,
}

pub async fn run(context: &Context, args: DoctorArgs) -> anyhow::Result<()> {
    let keys = context.keys()?;
    if args.print_acl {
        context.note_unknown_variables();
        if let Some(role) = args.role {
            note(format!("Replace PASSWORD and run this with redis-cli. {}", whose(role)));
            return context.output.text(&acl::rule(&keys, role));
        }
        note("Replace each >PASSWORD by a password of its own and run this with redis-cli. Then the worker uses");
        note("redis://herald:PASSWORD@HOST, herald's other verbs redis://herald-operator:PASSWORD@HOST.");
        note("Run the last line only when nobody needs the default user any more.");
        return context.output.text(&acl::rules(&keys));
    }
    if let Some(version) = &args.rollback_to {
        return rollback::run(context, version).await;
    }
    let history = history::look(&context.config, context.redis()?, keys.clone(), context.now_ms()).await;
    let observed = observe::observe(context.redis()?, keys, &context.config).await;
    let mut findings = examine(&observed);
    findings.push(guard::judge(&context.config.guard));
    findings.push(api::judge(&context.config, api::look(&context.config), context.now_ms()));
    findings.extend(history::judge(history, context.now_ms()));
    findings.extend(context.config.unknown_variables().iter().map(of_unknown_variable));
    findings.sort_by_key(Finding::order);
    let now_ms = observed.redis_now_ms().unwrap_or_else(|| context.now_ms());
    let oldest = observed.partition.as_ref().map_or(&[][..], |partition| &partition.oldest);
    show(context, &findings, oldest, now_ms)?;
    let failed = number_of(&findings, Level::Fail);
    match failed {
        0 => Ok(()),
        n => Err(anyhow::anyhow!("{} to mend", words::count(n, "problem", "problems"))),
    }
}

/// Who uses a role's user, and for what it is not enough.
fn whose(role: Role) -> &'static str {
    match role {
        Role::Worker => "It is for `herald serve`.",
        Role::Operator => "It is for herald's other verbs, but those that add events or play with payment intents.",
        Role::Viewer => {
            "It is for the verbs that only look. It reads events and endpoints' secrets, and changes nothing."
        }
        Role::Producer => "It is for whoever publishes, `herald event publish` too, and can do nothing else.",
        Role::Intents => "It is for `herald intents serve`, `trigger` and `sandbox clock`.",
    }
}

fn show(context: &Context, findings: &[Finding], oldest: &[Oldest], now_ms: u64) -> anyhow::Result<()> {
    let output = context.output;
    match output.format() {
        Format::Table => output.text(&text(findings, oldest, now_ms, Colours::of_stdout())),
        Format::Jsonl => findings.iter().try_for_each(|finding| output.text(&json_line(finding)?)),
        Format::Json => {
            let healthy = number_of(findings, Level::Fail) == 0;
            let oldest_unfinished = oldest.iter().take(TOP).map(|one| oldest_view(one, now_ms)).collect();
            output.one(&Report { healthy, findings, oldest_unfinished }, &[])
        }
    }
}

fn of_unknown_variable(unknown: &UnknownVariable) -> Finding {
    let remedy = Some("give it the right name, or unset it".to_owned());
    Finding { level: Level::Warn, subject: "environment", says: unknown.to_string(), remedy }
}

/// What is wrong comes first, each with its remedy right below it.
pub fn text(findings: &[Finding], oldest: &[Oldest], now_ms: u64, colours: Colours) -> String {
    let mut lines = vec![headline(findings), String::new()];
    for finding in findings {
        let level = colours.paint(finding.level.tone(), &format!("{:<5}", finding.level.name()));
        lines.push(format!("{level} {:<12} {}", finding.subject, cell(&finding.says)));
        if let Some(remedy) = &finding.remedy {
            lines.push(format!("{:<5} {:<12} -> {remedy}", "", ""));
        }
    }
    if !oldest.is_empty() {
        lines.extend([String::new(), "The oldest unfinished delivery of each endpoint:".to_owned()]);
        for one in oldest.iter().take(TOP) {
            let view = oldest_view(one, now_ms);
            let unknown = if view.oldest.is_some() { "no time" } else { "no head" };
            let age = view.age_ms.map_or(unknown.to_owned(), words::span);
            let (records, parked) = (words::number(one.unfinished), words::number(one.parked));
            let id = view.oldest.unwrap_or_else(|| one.endpoint.to_string());
            lines.push(format!("  {age:>8}  {id}  ({records} unfinished, {parked} parked)"));
        }
    }
    lines.join("\n")
}

fn headline(findings: &[Finding]) -> String {
    let (failed, warned) = (number_of(findings, Level::Fail), number_of(findings, Level::Warn));
    let problems = words::count(failed, "problem", "problems");
    let warnings = words::count(warned, "warning", "warnings");
    // Issues come first whatever their level, and the worst of all is what the headline is about.
    match (findings.iter().min_by_key(|finding| finding.level), failed, warned) {
        (Some(first), 1.., 0) => format!("{problems}: {}", first.says),
        (Some(first), 1.., _) => format!("{problems}, {warnings}: {}", first.says),
        (Some(first), 0, 1..) => format!("No problem, {warnings}: {}", first.says),
        _ => "All is well.".to_owned(),
    }
}

fn oldest_view(one: &Oldest, now_ms: u64) -> OldestView {
    OldestView {
        endpoint: one.endpoint.to_string(),
        oldest: one.oldest.as_ref().map(ToString::to_string),
        age_ms: one.oldest.as_ref().and_then(|id| id.entry.age_ms(now_ms)),
        unfinished: one.unfinished,
        parked: one.parked,
    }
}

fn number_of(findings: &[Finding], level: Level) -> u64 {
    findings.iter().filter(|finding| finding.level == level).count() as u64
}
