use std::process::ExitCode;

use herald::{
    app,
    config::{Config, Sources},
    telemetry::logging,
};

fn main() -> ExitCode {
    let run = || -> anyhow::Result<()> {
        let config = Config::load(Sources::gather(None, Vec::new())?)?;
        logging::init(&config.log.filter, config.log.format)?;
        tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(app::serve(config))
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
