//! Where scenarios come from: those that are compiled in, from `deploy/scenarios`, and files. Reads them strictly: an
//! unknown key is an error, even where serde would accept it.

use std::{fs::File, io::Read, path::Path};

use super::scenario::{ProfileShare, Scenario};

macro_rules! built_in {
    ($($name:literal),+ $(,)?) => {
        /// In the order in which they are best read.
        pub const BUILT_IN: &[(&str, &str)] = &[$((
            $name,
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/scenarios/", $name, ".toml")),
        )),+];
    };
}

built_in!(
    "steady",
    "drain",
    "noisy-neighbour",
    "flaky-world",
    "imperfect-world",
    "outage-and-recovery",
    "full-redis",
    "busy-registry",
    "crash-storm",
    "hot-merchant",
    "many-endpoints",
    "tls",
    "workers",
    "cluster-storm",
    "intents",
);

/// A scenario has a hundred lines: anything larger is some other file.
const MAX_BYTES: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    #[error("there is no scenario {name:?}, neither built in nor as a file; built in are {known}")]
    Unknown { name: String, known: String },
    #[error("cannot read the scenario {path}: {why}")]
    Unreadable { path: String, why: String },
    #[error("the scenario {origin} is wrong: {why}")]
    Wrong { origin: String, why: String },
}

/// By the name of a built-in one, or by a path.
pub fn find(name: &str) -> Result<Scenario, ScenarioError> {
    if let Some((_, text)) = BUILT_IN.iter().find(|(known, _)| *known == name) {
        return parse(text, name);
    }
    let path = Path::new(name);
    if !path.exists() {
        let known = BUILT_IN.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        return Err(ScenarioError::Unknown { name: name.to_owned(), known });
    }
    let unreadable = |why: String| ScenarioError::Unreadable { path: name.to_owned(), why };
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text));
    match read.map_err(|error| unreadable(error.to_string()))? as u64 > MAX_BYTES {
        true => Err(unreadable("it is larger than 1 MiB".to_owned())),
        false => parse(&text, name),
    }
}

pub fn parse(text: &str, origin: &str) -> Result<Scenario, ScenarioError> {
    let wrong = |why: String| ScenarioError::Wrong { origin: origin.to_owned(), why };
    let scenario: Scenario = toml::from_str(text).map_err(|error| wrong(error.to_string()))?;
    let table: toml::Table = toml::from_str(text).map_err(|error| wrong(error.to_string()))?;
    let written = table.get("endpoints").and_then(|endpoints| endpoints.get("profiles")?.as_array());
    for (written, read) in written.into_iter().flatten().zip(&scenario.endpoints.profiles) {
        known_keys(written, read).map_err(wrong)?;
    }
    Ok(scenario)
}

/// A profile is flattened beside its share, where serde accepts any key.
fn known_keys(written: &toml::Value, read: &ProfileShare) -> Result<(), String> {
    let known = toml::Table::try_from(read).map_err(|error| error.to_string())?;
    let written = written.as_table().into_iter().flat_map(|table| table.keys());
    for key in written {
        if !known.contains_key(key) {
            let keys = known.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            return Err(format!("the profile {} has no {key:?}; it has {keys}", read.profile.name()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loadtest::{
        faults::{LoadLength, plan},
        house::check_settings,
        scenario::Load,
    };

    #[test]
    fn every_built_in_scenario_is_sound() {
        let folder = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/scenarios")).unwrap();
        assert_eq!(folder.count(), BUILT_IN.len(), "a file of deploy/scenarios is not built in");
        for (name, text) in BUILT_IN {
            let scenario = parse(text, name).unwrap();
            assert_eq!(scenario.name, *name);
            assert!(scenario.description.ends_with('.') && scenario.description.len() > 40, "{name}");
            check_settings(&scenario.herald.settings).unwrap();
            let length = match &scenario.load {
                Load::Open { .. } => LoadLength::Exactly(scenario.length()),
                Load::Drain { .. } => LoadLength::About(scenario.length()),
            };
            plan(&scenario.faults, length, 1).unwrap();
        }
    }

    #[test]
    fn a_key_that_nobody_knows_is_an_error_wherever_it_stands() {
        let scenario = |more: &str| {
            let text = format!("name = \"x\"\ndescription = \"y\"\nload = {{ kind = \"drain\", events = 1 }}\n{more}");
            parse(&text, "x.toml").map(|_| ()).map_err(|error| error.to_string())
        };
        assert_eq!(scenario(""), Ok(()));
        for (more, said) in [
            ("treshold = []", "treshold"),
            ("[traffic]\nacounts = 1", "acounts"),
            (
                "[endpoints]\nprofiles = [{ profile = \"slow\", after = \"1s\", p = 0.5 }]",
                "the profile slow has no \"p\"",
            ),
            ("[endpoints]\nprofiles = [{ profile = \"slw\" }]", "slw"),
            ("faults = [\"kill-worker\"]", "does not say when"),
            ("[endpoints]\ntimeout = \"5 parsecs\"", "parsecs"),
        ] {
            let error = scenario(more).expect_err(more);
            assert!(error.contains(said) && error.contains("x.toml"), "{error}");
        }
    }

    #[test]
    fn one_that_is_not_there_is_named_with_those_that_are() {
        let error = find("stedy").unwrap_err().to_string();
        assert!(error.contains("stedy") && error.contains("crash-storm"), "{error}");
    }
}
