//! From the command line to the run that it describes. Runs nothing.

use anyhow::{Context, Result};

use super::{
    args::RunArgs,
    run::{Run, Target},
};
use crate::{
    config::{Config, RedisUrl, Sources},
    surface::{Format, Globals, VerbError},
};

/// The global flags that a load test uses.
pub struct Given {
    /// Settings for the workers.
    pub settings: Vec<(String, String)>,
    pub stream: String,
    pub format: Option<Format>,
}

impl Given {
    pub fn new(globals: &Globals) -> Result<Self> {
        if globals.config.is_some() {
            let text = "loadtest: the workers have a configuration of their own; change it with --set KEY=VALUE";
            return Err(VerbError::Usage(text.to_owned()).into());
        }
        let mut stream = Config::load(Sources::default())?.stream.name;
        let mut settings = Vec::new();
        for (key, value) in globals.settings()? {
            match key.as_str() {
                "stream.name" => stream = value,
                "redis.url" => {
                    let text = "loadtest: it starts a Redis of its own; --redis URL loads a service that runs already";
                    return Err(VerbError::Usage(text.to_owned()).into());
                }
                _ => settings.push((key, value)),
            }
        }
        Ok(Self { settings, stream, format: globals.output })
    }
}

/// The run that the command line describes.
pub fn plan(args: &RunArgs, given: &Given, words: Vec<String>) -> Result<Run> {
    let scenario = args.scenario(&given.settings)?;
    let target = match &args.redis {
        Some(url) => Target::Found {
            redis: url.parse().map_err(|problem| VerbError::Usage(format!("--redis {problem}")))?,
            owned_hosts: args.i_own_this_target.clone(),
        },
        None => Target::Own { program: std::env::current_exe().context("cannot find the program itself")? },
    };
    // Short enough to be typed again.
    let seed = args.seed.unwrap_or_else(|| rand::random::<u32>().into());
    Ok(Run { scenario, seed, stream: given.stream.clone(), target, words })
}

/// This process' command line, as a result repeats it.
pub fn own_words() -> Vec<String> {
    std::env::args_os().skip(1).map(|word| without_password(&word.to_string_lossy())).collect()
}

/// A result is passed on, so the URL of a Redis is shown in it as it is everywhere else.
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
