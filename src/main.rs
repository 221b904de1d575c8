use std::process::ExitCode;

use clap::Parser;
use herald::{
    app,
    config::{Config, Sources},
    demo,
    telemetry::logging,
};

#[derive(Parser)]
enum Verb {
    Serve,
    Demo(demo::DemoArgs),
}

fn main() -> ExitCode {
    let run = || -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        match Verb::parse() {
            Verb::Demo(args) => runtime.block_on(demo::run(args)),
            Verb::Serve => {
                let config = Config::load(Sources::gather(None, Vec::new())?)?;
                logging::init(&config.log.filter, config.log.format)?;
                runtime.block_on(app::serve(config))
            }
        }
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
