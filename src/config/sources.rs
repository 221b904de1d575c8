//! Gathers the sources of a configuration: the only part of it that looks at the process and at files. Knows which
//! variables name a file, and nothing of what any text means.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use super::{
    error::{ConfigError, ConfigErrors},
    keys::Variable,
    origin::Origin,
};

/// The whole default with its comments has less than 16 KiB: a file larger than this is some other file.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// A URL may carry a token of some KiB as its password.
const MAX_SECRET_BYTES: u64 = 8 << 10;

/// The sources of a configuration, besides the built-in default. They may hold secrets, so there is no `Debug`.
#[derive(Default)]
pub struct Sources {
    pub file: Option<ConfigFile>,
    /// Variables that do not start with `HERALD_` are ignored, and so are those that name a file: its content is in
    /// another field here.
    pub env: Vec<(String, String)>,
    pub secret_files: Vec<SecretFile>,
    /// Keys as in the file (`lease.ttl`) and their values; if a key is repeated, the last one wins.
    pub flags: Vec<(String, String)>,
}

pub struct ConfigFile {
    /// Only for messages.
    pub path: String,
    pub text: String,
}

/// A file that holds only a secret.
pub struct SecretFile {
    /// Names it, and says whose value it is: `HERALD_REDIS_URL_FILE`.
    pub variable: String,
    /// Only for messages.
    pub path: String,
    pub text: String,
}

impl Sources {
    /// Looks at the process: its environment, and the file of `--config`, or else that of `HERALD_CONFIG`.
    pub fn gather(config_flag: Option<&Path>, flags: Vec<(String, String)>) -> Result<Self, ConfigErrors> {
        Self::of(std::env::vars_os(), config_flag, flags)
    }

    pub(super) fn of(
        variables: impl IntoIterator<Item = (OsString, OsString)>,
        config_flag: Option<&Path>,
        flags: Vec<(String, String)>,
    ) -> Result<Self, ConfigErrors> {
        let mut sources = Self { flags, ..Self::default() };
        let (mut config_file, mut errors) = (config_flag.map(Path::to_path_buf), Vec::new());
        for (name, value) in variables {
            let name = name.to_string_lossy().into_owned();
            match (Variable::of(&name), value.into_string()) {
                (Variable::Foreign, _) => {}
                // It only names a file, so its value may be anything.
                (Variable::Unknown, _) => sources.env.push((name, String::new())),
                (_, Err(_)) => errors.push(ConfigError::NotText { name }),
                (Variable::Value(_), Ok(value)) => sources.env.push((name, value)),
                (Variable::FileOfValue(_), Ok(path)) => match read_secret(Path::new(&path)) {
                    Ok(text) => sources.secret_files.push(SecretFile { variable: name, path, text }),
                    Err(why) => {
                        let origin = Origin::SecretFile { variable: name, path: shown(path) };
                        errors.push(ConfigError::UnreadableSecret { origin, why });
                    }
                },
                (Variable::ConfigFile, Ok(path)) if path.is_empty() => {}
                (Variable::ConfigFile, Ok(path)) => config_file = config_file.or(Some(PathBuf::from(path))),
            }
        }
        if let Some(path) = config_file {
            let shown = path.display().to_string();
            match read(&path, MAX_CONFIG_BYTES) {
                Ok(text) => sources.file = Some(ConfigFile { path: shown, text }),
                Err(why) => errors.push(ConfigError::Unreadable { path: shown, why }),
            }
        }
        match errors.is_empty() {
            true => Ok(sources),
            false => Err(ConfigErrors { errors, unknown_variables: Vec::new() }),
        }
    }
}

/// The file's content without the line ending that an editor or `echo` puts at its end. An empty file is no secret: an
/// empty token would count as none.
fn read_secret(path: &Path) -> Result<String, String> {
    let text = read(path, MAX_SECRET_BYTES)?;
    let secret = text.strip_suffix("\r\n").or_else(|| text.strip_suffix('\n')).unwrap_or(&text);
    match secret.is_empty() {
        true => Err("it is empty".to_owned()),
        false => Ok(secret.to_owned()),
    }
}

/// If someone puts the secret itself where the name of its file belongs, it does not appear in the log.
fn shown(path: String) -> String {
    if path.starts_with(['/', '.']) { path } else { "not shown, because it may be the secret itself".to_owned() }
}

fn read(path: &Path, max_bytes: u64) -> Result<String, String> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(max_bytes + 1).read_to_string(&mut text));
    match read {
        Ok(bytes) if bytes as u64 <= max_bytes => Ok(text),
        Ok(_) => Err(format!("it is larger than {} KiB", max_bytes >> 10)),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err("it is not UTF-8".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}
