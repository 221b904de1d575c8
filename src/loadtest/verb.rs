//! `herald loadtest` as a verb: from the command line to a result that is shown, written and turned into an exit code.

use std::path::Path;

use anyhow::{Context, Result};

use super::{
    args::{LoadtestArgs, LoadtestVerb, RunArgs},
    prove,
    report::{
        compare, html, json,
        live::{Live, Place, Wishes},
        progress::Heading,
        text::{self, Colour},
    },
    result::RunResult,
    run::{Ran, Run, Target, View},
    scenario::Scenario,
    scenarios::BUILT_IN,
};
use crate::{
    cli::{CliError, Format, Globals, Output, message_of, note},
    config::{Config, RedisUrl, Sources},
};

/// What the global flags say that a load test uses.
pub struct Given {
    /// Of the workers.
    pub settings: Vec<(String, String)>,
    pub stream: String,
    pub format: Option<Format>,
}

impl Given {
    fn new(globals: &Globals) -> Result<Self> {
        if globals.config.is_some() {
            let text = "loadtest: the workers have a configuration of their own; change it with --set KEY=VALUE";
            return Err(CliError::Usage(text.to_owned()).into());
        }
        let mut stream = Config::load(Sources::default())?.stream.name;
        let mut settings = Vec::new();
        for (key, value) in globals.settings()? {
            match key.as_str() {
                "stream.name" => stream = value,
                "redis.url" => {
                    let text = "loadtest: it starts a Redis of its own; --redis URL loads a service that runs already";
                    return Err(CliError::Usage(text.to_owned()).into());
                }
                _ => settings.push((key, value)),
            }
        }
        Ok(Self { settings, stream, format: globals.output })
    }
}

pub async fn run(args: LoadtestArgs, globals: &Globals) -> Result<()> {
    let given = Given::new(globals)?;
    match args.verb {
        Some(LoadtestVerb::Prove(args)) => prove::run(args, &given).await,
        None if args.run.list => list(&given),
        None if args.run.schema => Output::new(Some(Format::Json)).text(&json::schema()),
        None => one(&args.run, &given).await,
    }
}

fn list(given: &Given) -> Result<()> {
    #[derive(serde::Serialize)]
    struct Listed {
        name: String,
        description: String,
    }
    let mut list = Output::new(given.format).list(&["SCENARIO", "WHAT IT SHOWS"]);
    for (name, text) in BUILT_IN {
        let Scenario { name, description, .. } = super::scenarios::parse(text, name)?;
        let listed = Listed { name, description };
        list.push(&listed, || vec![listed.name.clone(), listed.description.clone()])?;
    }
    list.finish()
}

async fn one(args: &RunArgs, given: &Given) -> Result<()> {
    // What can be wrong with the files is said before the run, not after it.
    let before = args.compare.as_deref().map(json::read).transpose()?;
    for path in [&args.json, &args.html].into_iter().flatten() {
        check_writable(path)?;
    }
    let words = std::env::args_os().skip(1).map(|word| without_password(&word.to_string_lossy())).collect();
    let run = plan(args, given, words)?;
    let heading = heading(&run);
    let prepared = run.prepare()?;
    let wishes = Wishes::default();
    let place = if args.plain { Place::Lines } else { Place::of_this_process() };
    let live = Live::open(heading, place, wishes.clone()).context("cannot show the run")?;
    let ran = prepared.run(&View::Live(&live), &wishes).await;
    live.close();
    let Ran { result, logs } = ran?;
    // The verdict counts whether or not anybody reads it and whatever becomes of the files.
    let shown = show(&result, before.as_ref(), given);
    let written = write(args.json.as_deref(), args.html.as_deref(), &result);
    if let Some(logs) = logs {
        note(format_args!("the workers' logs are in {}", logs.display()));
    }
    let failed: anyhow::Error = match (result.is_kept(), text::owed_faults(&result)) {
        (true, None) => return written.and(shown),
        (true, Some(owed)) => anyhow::anyhow!(owed),
        (false, _) => CliError::Broken(text::verdict(&result)).into(),
    };
    if let Err(error) = &written {
        note(message_of(error));
    }
    Err(failed)
}

fn show(result: &RunResult, before: Option<&RunResult>, given: &Given) -> Result<()> {
    let output = Output::new(Some(given.format.unwrap_or(Format::Table)));
    match output.format() {
        Format::Table => output.text(&text::summary(result, Colour::of_stdout()))?,
        Format::Json | Format::Jsonl => output.one(result, &[])?,
    }
    if let Some(before) = before {
        let comparison = compare::compare(before, result)?;
        note(compare::text(&comparison, Colour::Never));
    }
    Ok(())
}

/// A result is passed on: the URL of a Redis is shown in it as everywhere else.
fn without_password(word: &str) -> String {
    let (flag, value) = match word.split_once('=').filter(|_| word.starts_with("--")) {
        Some((flag, value)) => (format!("{flag}="), value),
        None => (String::new(), word),
    };
    match value.contains("://") {
        true => format!("{flag}{}", value.parse::<RedisUrl>().map_or("URL".to_owned(), |url| url.to_string())),
        false => word.to_owned(),
    }
}

/// The run that the command line describes.
pub fn plan(args: &RunArgs, given: &Given, words: Vec<String>) -> Result<Run> {
    let scenario = args.scenario(&given.settings)?;
    let target = match &args.redis {
        Some(url) => Target::Found {
            redis: url.parse().map_err(|problem| CliError::Usage(format!("--redis {problem}")))?,
            owned_hosts: args.i_own_this_target.clone(),
        },
        None => Target::Own { program: std::env::current_exe().context("cannot find the program itself")? },
    };
    // Short enough to be typed again.
    let seed = args.seed.unwrap_or_else(|| rand::random::<u32>().into());
    Ok(Run { scenario, seed, stream: given.stream.clone(), target, words })
}

fn heading(run: &Run) -> Heading {
    let target = match &run.target {
        Target::Own { .. } => {
            let workers = run.scenario.herald.workers;
            format!("{workers} worker{} and a Redis of its own", if workers == 1 { "" } else { "s" })
        }
        Target::Found { redis, .. } => format!("the service at {redis}, whose processes are not measured"),
    };
    let Scenario { name, description, .. } = &run.scenario;
    Heading { scenario: name.clone(), description: description.clone(), seed: run.seed, target }
}

/// To the files that were asked for.
pub fn write(to_json: Option<&Path>, to_html: Option<&Path>, result: &RunResult) -> Result<()> {
    if let Some(path) = to_json {
        json::write(path, result)?;
    }
    if let Some(path) = to_html {
        html::write(path, result)?;
    }
    Ok(())
}

fn check_writable(path: &Path) -> Result<(), CliError> {
    let refused = |why: String| CliError::Usage(format!("{} cannot be written: {why}", path.display()));
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if path.is_dir() {
        return Err(refused("it is a folder".to_owned()));
    } else if !folder.is_dir() {
        return Err(refused(format!("there is no folder {}", folder.display())));
    }
    tempfile::tempfile_in(folder).map(drop).map_err(|error| refused(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_gets_into_a_result() {
        assert_eq!(without_password("steady"), "steady");
        for word in ["redis://:hunter2@h:1/0", "--redis=redis://u:hunter2@h:1", "--redis=what://hunter2@x y"] {
            let shown = without_password(word);
            assert!(!shown.contains("hunter2"), "{shown}");
        }
        assert_eq!(
            without_password("--redis=redis://h:1"),
            format!("--redis={}", "redis://h:1".parse::<RedisUrl>().unwrap())
        );
    }
}
