//! The command line: reads which verb was asked for and runs it, and holds the verbs that have no folder of their own.
//! Every verb that changes something records who and why; every destructive one asks first. Nothing but `main` imports
//! it: what another surface needs too is in [`surface`](crate::surface).

mod args;
mod asking;
mod audit;
mod chain;
mod config;
mod dead_letter;
mod delivery;
mod endpoint;
mod event;
mod examples;
mod healthcheck;
mod intents;
mod issue;
mod key;
mod manual;
mod nearest;
mod operation;
mod partition;
mod pause;
mod plan;
mod portal;
mod quarantine;
mod repartition;
mod retry_schedule;
mod sandbox;
mod story;
mod token;
mod trigger;
mod verify;
mod version;
mod whole_story;
mod worker;

use std::process;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use tracing::warn;

#[doc(hidden)]
pub use self::dead_letter::Filter as DeadLetterFilter;
#[cfg(feature = "demo")]
use crate::demo;
#[cfg(feature = "loadtest")]
use crate::loadtest;
use crate::{
    app,
    config::UnknownVariable,
    doctor, listen,
    surface::{
        Context, Format, Globals, Output,
        error::{self, ExitCode, code_of},
        message_of,
        output::{self, Manners},
        tell,
    },
    telemetry::logging,
};

/// Delivers status changes of payment intents from a Redis stream to merchants' webhooks.
#[derive(Parser)]
#[command(name = "herald", version, propagate_version = true, after_help = error::HELP, max_term_width = 120)]
struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run the dispatcher until SIGTERM or Ctrl-C
    Serve,
    /// See Herald at work: a Redis of its own, five sample merchants and a stream of payment intents
    #[cfg(feature = "demo")]
    Demo(demo::DemoArgs),
    /// Payment intents: what the events are about
    #[command(subcommand)]
    Intents(intents::IntentsVerb),
    /// Make a payment intent live up to a status, so that its merchant is told
    Trigger(trigger::TriggerArgs),
    /// The simulated world around payment intents: its clock, and scenarios
    #[command(subcommand)]
    Sandbox(sandbox::SandboxVerb),
    /// Stop all sending at once; events wait in Redis
    Pause(pause::PauseArgs),
    /// Let sending go on
    Resume(pause::ResumeArgs),
    /// Endpoints: the URLs that accounts registered
    #[command(subcommand)]
    Endpoint(endpoint::EndpointVerb),
    /// Issues: what fails where, why and since when, who must act, and what to do next
    #[command(subcommand)]
    Issue(issue::IssueVerb),
    /// Events in the stream
    #[command(subcommand)]
    Event(event::EventVerb),
    /// Deliveries: events owed to endpoints
    #[command(subcommand)]
    Delivery(delivery::DeliveryVerb),
    /// Tell all that is known of a payment intent's events: attempts, ends, what waits and what operators did, in order
    Story(whole_story::StoryArgs),
    /// Chains: the unfinished deliveries of one intent to one endpoint
    #[command(subcommand)]
    Chain(chain::ChainVerb),
    /// Dead letters: deliveries that were given up
    #[command(subcommand)]
    DeadLetter(dead_letter::DeadLetterVerb),
    /// Operations: one thing done to many deliveries, planned first and then carried out by the worker
    #[command(subcommand)]
    Operation(operation::OperationVerb),
    /// The stream, and the parts that it is split into
    #[command(subcommand)]
    Partition(partition::PartitionVerb),
    /// Workers: the processes that deliver
    #[command(subcommand)]
    Worker(worker::WorkerVerb),
    /// Stream entries that are not valid events
    #[command(subcommand)]
    Quarantine(quarantine::QuarantineVerb),
    /// Split the stream, or a part of it, into parts that many workers share; what is unfinished goes along
    Repartition(repartition::RepartitionArgs),
    /// Who did what, from where and why, and how it ended
    #[command(subcommand)]
    Audit(audit::AuditVerb),
    /// Tokens of the operations API: who may ask over HTTP, and for what
    #[command(subcommand)]
    Token(token::TokenVerb),
    /// The keys that seal endpoints' secrets in Redis
    #[command(subcommand)]
    Key(key::KeyVerb),
    /// Links by which merchants enter the console
    #[command(subcommand)]
    Portal(portal::PortalVerb),
    /// What an installation needs for a rate of events: workers, masters, memory, and what gives way first
    Plan(plan::PlanArgs),
    /// Print the real schedule of retries and its whole span
    RetrySchedule(retry_schedule::RetryScheduleArgs),
    /// Put load on Herald, break what it is told to break, and judge every promise
    #[cfg(feature = "loadtest")]
    Loadtest(Box<loadtest::args::LoadtestArgs>),
    /// Receive callbacks on this machine: show, check and forward them, and rehearse what goes wrong
    Listen(Box<listen::ListenArgs>),
    /// Say whether a callback's signatures are valid, and otherwise what is wrong with them
    Verify(verify::VerifyArgs),
    /// Check Redis, the stream and what is stuck, with a remedy for each finding
    Doctor(doctor::DoctorArgs),
    /// Ask the worker on this machine whether it is alive: for containers, which have no curl
    Healthcheck(healthcheck::HealthcheckArgs),
    /// The configuration in effect
    #[command(subcommand)]
    Config(config::ConfigVerb),
    /// Print which build this is, and which schemas of stored things it reads and writes
    Version,
    /// Print the completions for a shell
    Completions {
        /// Which one
        shell: clap_complete::Shell,
    },
    /// Print the man page, or write one for each verb into a folder
    Man(manual::ManArgs),
}

/// The whole program: reads the arguments, runs the verb, says what went wrong.
pub fn main() -> process::ExitCode {
    let cli = parsed();
    output::behave(Manners { is_quiet: cli.globals.quiet, never_asks: cli.globals.no_input });
    let done = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(anyhow::Error::from).and_then(
        |runtime| {
            let done = runtime.block_on(run(cli));
            // A name look-up or a read of stdin that nobody waits for any more must not hold up the exit.
            runtime.shutdown_background();
            done
        },
    );
    let code = match done {
        Ok(()) => ExitCode::Done,
        Err(error) => {
            let code = code_of(&error);
            match code {
                ExitCode::Done => {}
                ExitCode::Unconfirmed => tell(format_args!("warning: {}", message_of(&error))),
                _ => tell(format_args!("error: {}", message_of(&error))),
            }
            code
        }
    };
    logging::flush();
    code.into()
}

/// How the arguments are read, without running anything: for tests too.
#[doc(hidden)]
pub fn command() -> clap::Command {
    examples::add_to(Cli::command())
}

fn parsed() -> Cli {
    let words: Vec<String> = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    let parsed = command().try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches));
    parsed.unwrap_or_else(|error| nearest::suggest(&command(), &words, error).exit())
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    let globals = &cli.globals;
    let context = || Context::new(globals).inspect(Context::note_unknown_variables);
    match cli.verb {
        // Its log says what the other verbs say as a note.
        Verb::Serve => serve(Context::new(globals)?).await,
        Verb::Intents(intents::IntentsVerb::Serve) => intents::serve(Context::new(globals)?).await,
        Verb::Intents(verb) => intents::run(&context()?, verb).await,
        #[cfg(feature = "demo")]
        Verb::Demo(args) => demo::run(args).await,
        Verb::Trigger(args) => trigger::run(&context()?, args).await,
        Verb::Sandbox(verb) => sandbox::run(&context()?, verb).await,
        Verb::Pause(args) => pause::pause(&context()?, args).await,
        Verb::Resume(args) => pause::resume(&context()?, args).await,
        Verb::Endpoint(verb) => endpoint::run(&context()?, verb).await,
        Verb::Issue(verb) => issue::run(&context()?, verb).await,
        Verb::Event(verb) => event::run(&context()?, verb).await,
        Verb::Delivery(verb) => delivery::run(&context()?, verb).await,
        Verb::Story(args) => whole_story::run(&context()?, args).await,
        Verb::Chain(verb) => chain::run(&context()?, verb).await,
        Verb::DeadLetter(verb) => dead_letter::run(&context()?, verb).await,
        Verb::Operation(verb) => operation::run(&context()?, verb).await,
        Verb::Partition(verb) => partition::run(&context()?, verb).await,
        Verb::Worker(verb) => worker::run(&context()?, verb).await,
        Verb::Quarantine(verb) => quarantine::run(&context()?, verb).await,
        Verb::Repartition(args) => repartition::run(&context()?, args).await,
        Verb::Audit(verb) => audit::run(&context()?, verb).await,
        Verb::Key(verb) => key::run(&context()?, verb).await,
        Verb::Token(verb) => token::run(&context()?, verb).await,
        Verb::Portal(verb) => portal::run(&context()?, verb).await,
        Verb::Plan(args) => plan::run(&context()?, &args),
        Verb::RetrySchedule(args) => retry_schedule::run(&context()?, args).await,
        #[cfg(feature = "loadtest")]
        Verb::Loadtest(args) => loadtest::verb::run(*args, globals).await,
        Verb::Listen(args) => listen::run(&context()?, *args).await,
        Verb::Verify(args) => verify::run(&context()?, args),
        // Unknown variables are one of its findings.
        Verb::Doctor(args) => doctor::run(&Context::new(globals)?, args).await,
        Verb::Healthcheck(args) => healthcheck::run(&context()?, args).await,
        Verb::Config(verb) => config::run(&context()?, verb),
        Verb::Version => version::run(globals.output),
        Verb::Completions { shell } => completions(shell),
        Verb::Man(args) => manual::run(Cli::command(), args),
    }
}

async fn serve(context: Context) -> anyhow::Result<()> {
    start_log(&context)?;
    config::tried(&context)?;
    app::serve(context.config).await
}

/// For the verbs that run until they are stopped.
fn start_log(context: &Context) -> anyhow::Result<()> {
    let log = &context.config.log;
    logging::init(&log.filter, log.format)?;
    for UnknownVariable { name, nearest } in context.config.unknown_variables() {
        warn!("the environment variable {name} is not a setting and has no effect; the nearest is {nearest}");
    }
    Ok(())
}

fn completions(shell: clap_complete::Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command(), "herald", &mut script);
    Output::new(Some(Format::Json)).raw(&script)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        command().debug_assert();
    }

    /// Each command that can be run, and each group, by its words.
    fn all(command: &clap::Command, words: &str, found: &mut Vec<(String, clap::Command)>) {
        for inner in command.get_subcommands() {
            let words = format!("{words} {}", inner.get_name());
            all(inner, &words, found);
            found.push((words, inner.clone()));
        }
    }

    #[test]
    fn every_verb_and_every_argument_has_help_and_every_verb_an_example() {
        let (mut found, mut missing) = (Vec::new(), Vec::new());
        all(&command(), "herald", &mut found);
        for (words, command) in &found {
            if command.get_about().is_none() {
                missing.push(words.clone());
            }
            let arguments = command.get_arguments().filter(|argument| argument.get_help().is_none());
            missing.extend(arguments.map(|argument| format!("{words} {}", argument.get_id())));
            let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            // The load test's own help has its scenarios, with words to type.
            if !command.has_subcommands() && !words.starts_with("herald loadtest") && !after.contains("Example") {
                missing.push(format!("{words}: an example"));
            }
        }
        assert!(found.len() > 50 && missing.is_empty(), "{missing:#?}");
    }

    #[test]
    fn a_flag_means_one_thing_whatever_the_verb() {
        use std::collections::BTreeMap;
        let mut found = Vec::new();
        all(&command(), "herald", &mut found);
        let mut takes = BTreeMap::<String, BTreeMap<String, String>>::new();
        for (words, command) in found.iter().filter(|(words, _)| !words.starts_with("herald loadtest")) {
            for argument in command.get_arguments() {
                let (Some(flag), Some([takes_what])) = (argument.get_long(), argument.get_value_names()) else {
                    continue;
                };
                takes.entry(flag.to_owned()).or_default().insert(takes_what.to_string(), words.clone());
            }
        }
        // Of an event: its id, never its type.
        assert_eq!(takes["event"].keys().collect::<Vec<_>>(), ["EVENT"]);
        takes.retain(|_, whats| whats.len() > 1);
        assert!(takes.is_empty(), "{takes:#?}");
    }
}
