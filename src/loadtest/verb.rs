//! `herald loadtest` as a verb: from the command line to a result that is shown, written and turned into an exit code.

use std::path::Path;

use anyhow::{Context, Result};

use super::{
    args::{LoadtestArgs, LoadtestVerb, RunArgs},
    plan::{Given, own_words, plan},
    prove,
    report::{
        self, json,
        live::{Live, Place, Wishes},
        progress::Heading,
        text::{self, Colour},
    },
    result::RunResult,
    run::{Ran, Run, Target},
    scenario::Scenario,
    scenarios::BUILT_IN,
    view::View,
};
use crate::surface::{Format, Globals, Output, VerbError, message_of, note};

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
    // What can be wrong with the files is reported before the run, not after it.
    for path in [&args.json, &args.html].into_iter().flatten() {
        check_writable(path)?;
    }
    let run = plan(args, given, own_words())?;
    let heading = heading(&run);
    let prepared = run.prepare()?;
    let wishes = Wishes::default();
    let place = if args.plain { Place::Lines } else { Place::of_this_process() };
    let live = Live::open(heading, place, wishes.clone()).context("cannot show the run")?;
    let ran = prepared.run(&View::Live(&live), &wishes).await;
    live.close();
    let Ran { result, logs } = ran?;
    // The verdict counts whether or not anyone reads it, and whatever becomes of the files.
    let shown = show(&result, given);
    let written = report::write(args.json.as_deref(), args.html.as_deref(), &result);
    if let Some(logs) = logs {
        note(format_args!("the workers' logs are in {}", logs.display()));
    }
    let failed: anyhow::Error = match (result.is_kept(), text::owed_faults(&result)) {
        (true, None) => return written.and(shown),
        (true, Some(owed)) => anyhow::anyhow!(owed),
        (false, _) => VerbError::Broken(text::verdict(&result)).into(),
    };
    if let Err(error) = &written {
        note(message_of(error));
    }
    Err(failed)
}

fn show(result: &RunResult, given: &Given) -> Result<()> {
    let output = Output::new(Some(given.format.unwrap_or(Format::Table)));
    match output.format() {
        Format::Table => output.text(&text::summary(result, Colour::of_stdout())),
        Format::Json | Format::Jsonl => output.one(result, &[]),
    }
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

fn check_writable(path: &Path) -> Result<(), VerbError> {
    let refused = |why: String| VerbError::Usage(format!("{} cannot be written: {why}", path.display()));
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if path.is_dir() {
        return Err(refused("it is a folder".to_owned()));
    } else if !folder.is_dir() {
        return Err(refused(format!("there is no folder {}", folder.display())));
    }
    tempfile::tempfile_in(folder).map(drop).map_err(|error| refused(error.to_string()))
}
