//! `herald endpoint export` and `import`: the whole registry with its secrets. A file is readable by its owner only, and an
//! import is one switch that first says what it would change.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;
use zeroize::Zeroizing;

use super::{random, rules};
use crate::{
    cli::args::{Consent, Go, WhoAndMaybeWhy, read_input},
    facts::{
        audit::{Act, Tally},
        endpoint::Endpoint,
        id::{AccountId, EndpointId},
    },
    registry::rules::{Rules, check_new_secrets},
    store::registry::{RegistryError, RegistryStore, bulk::ExportFile},
    surface::{Context, VerbError, audited, even_unread, note, of_confirmed, words},
};

/// The largest file, which is read whole: half a million endpoints with long settings.
const MAX_FILE_BYTES: u64 = 1 << 30;

#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Write to this file, readable by its owner only; - is stdout [default: stdout]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Replace the file if it exists
    #[arg(long, requires = "file")]
    force: bool,
    /// Write the secrets in clear, where they would be sealed
    #[arg(long, requires = "reason")]
    reveal: bool,
    #[command(flatten)]
    change: WhoAndMaybeWhy,
}

#[derive(Debug, Args)]
pub struct ImportArgs {
    /// What `endpoint export` wrote; - is stdin
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    consent: Consent,
}

impl ExportArgs {
    /// None is stdout.
    fn path(&self) -> Option<&Path> {
        self.file.as_deref().filter(|file| file.as_os_str() != "-")
    }
}

/// It changes nothing and is audited all the same: it takes every secret with it.
pub async fn export(context: &Context, args: ExportArgs) -> anyhow::Result<()> {
    let begun = args.change.act(Act::EndpointExport);
    let target = args.path().map_or("stdout".to_owned(), |file| file.display().to_string());
    let begun = begun.target(if args.reveal { format!("in clear: {target}") } else { target });
    audited(context, begun, async |tally| write(context, &args, tally).await).await
}

async fn write(context: &Context, args: &ExportArgs, tally: &mut Tally) -> anyhow::Result<()> {
    let redis = context.redis()?;
    let ring = if args.reveal { Arc::default() } else { redis.keyring().ring() };
    let export = RegistryStore::connect(&redis).await?.export(context.now_ms()).await?;
    let json = Zeroizing::new(export.to_json(&ring));
    let is_sealed = ring.sealing().is_some();
    tally.set(export.endpoints.len() as u64, 0);
    match args.path() {
        Some(path) => {
            write_private(path, &json, args.force).with_context(|| format!("cannot write {}", path.display()))?;
            let endpoints = words::count(export.endpoints.len() as u64, "endpoint", "endpoints");
            let how = if is_sealed { "sealed secrets" } else { "secrets in clear" };
            note(format_args!("{endpoints} with {how}: {}; only you can read it", path.display()));
        }
        None => {
            if !is_sealed {
                note("this holds every secret in clear: keep it from others, or use --file");
            }
            context.output.raw(&json)?;
        }
    }
    Ok(())
}

/// Whole or not at all: it is written to a file beside it, which takes its name at the end. It has mode 0600.
fn write_private(path: &Path, bytes: &[u8], force: bool) -> anyhow::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let beside = folder.join(format!(".herald-{}", hex::encode(random::<8>()?)));
    let written = write_new(&beside, bytes).and_then(|()| match force {
        true => fs::rename(&beside, path),
        // A rename would replace what is there.
        false => fs::hard_link(&beside, path),
    });
    // After a rename it is gone; otherwise it has done its work, or is useless.
    let _ = fs::remove_file(&beside);
    match written {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Err(VerbError::Refused("it exists; --force replaces it".to_owned()).into())
        }
        written => Ok(written?),
    }
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Action {
    Added,
    Changed,
    Removed,
}

/// One endpoint that the import would not leave as it is.
#[derive(Debug, PartialEq, Serialize)]
struct Difference {
    action: Action,
    id: EndpointId,
    account: AccountId,
    url: String,
    /// Names of what is different.
    fields: Vec<String>,
}

pub async fn import(context: &Context, args: ImportArgs) -> anyhow::Result<()> {
    let shown = args.file.display().to_string();
    let redis = context.redis()?;
    let text = Zeroizing::new(read_input(&args.file, MAX_FILE_BYTES)?);
    let file = ExportFile::from_json(&text, &redis.keyring().ring()).with_context(|| shown.clone())?;
    let mut registry = RegistryStore::connect(&redis).await?;
    let now = current(&mut registry).await?;
    check_all(&rules(context)?, &now, &file.endpoints).with_context(|| shown.clone())?;
    let differences = differences(now, &file.endpoints);
    let mut list = context.output.list(&["CHANGE", "ID", "ACCOUNT", "URL", "FIELDS"]);
    for difference in &differences {
        even_unread(list.push(difference, || {
            let action = format!("{:?}", difference.action).to_lowercase();
            let (id, account) = (difference.id.to_string(), difference.account.to_string());
            vec![action, id, account, difference.url.clone(), difference.fields.join(", ")]
        }))?;
    }
    even_unread(list.finish())?;
    let count =
        |action| words::number(differences.iter().filter(|difference| difference.action == action).count() as u64);
    let what = format!(
        "replace all endpoints by the {} of {shown}: {} added, {} changed, {} removed",
        words::number(file.endpoints.len() as u64),
        count(Action::Added),
        count(Action::Changed),
        count(Action::Removed)
    );
    if args.consent.confirm(&what)? == Go::Ahead {
        let begun = args.consent.act(Act::EndpointImport).target(&shown).count(differences.len() as u64);
        let (changing, mark) = (context.changing()?, args.consent.mark());
        let import = async |_: &mut _| {
            let (endpoints, id) = (file.endpoints, Some(file.registry_id));
            Ok(changing.change(async |registry| registry.import(endpoints, id, &mark).await).await?)
        };
        let (imported, confirmation) = audited(context, begun, import).await?;
        let (id, version, endpoints) = (imported.id, imported.version, imported.endpoints);
        let endpoints = words::count(endpoints as u64, "endpoint", "endpoints");
        note(format_args!("imported {endpoints}: registry {id} is at version {version}"));
        return of_confirmed(&confirmation);
    }
    Ok(())
}

/// What is registered now, as far as it can be read, because an import is also what mends a damaged registry.
async fn current(registry: &mut RegistryStore) -> anyhow::Result<HashMap<EndpointId, Endpoint>> {
    match registry.load().await {
        Ok(loaded) => {
            if !loaded.unreadable.is_empty() {
                let unreadable = words::number(loaded.unreadable.len() as u64);
                note(format_args!("{unreadable} endpoints that cannot be read are replaced as well"));
            }
            Ok(loaded.endpoints)
        }
        Err(RegistryError::NeverMade) => Ok(HashMap::new()),
        Err(RegistryError::Damaged(why)) => {
            note(format_args!("the registry in Redis is damaged ({why}): whatever is there is replaced"));
            Ok(HashMap::new())
        }
        Err(error) => Err(error.into()),
    }
}

/// Judges URLs and secrets only where they are new. Names the first few wrong endpoints, so that a file is mended in
/// few rounds.
fn check_all(rules: &Rules, now: &HashMap<EndpointId, Endpoint>, endpoints: &[Endpoint]) -> Result<(), VerbError> {
    const SHOWN: usize = 10;
    let wrong = endpoints.iter().filter_map(|endpoint| {
        let known = now.get(&endpoint.id);
        let judged = match known.is_some_and(|known| known.url == endpoint.url) {
            true => rules.check_settings(endpoint),
            false => rules.check_unresolved(endpoint),
        };
        let judged = judged.and_then(|()| check_new_secrets(endpoint, known));
        judged.err().map(|error| format!("endpoint {}: {error}", endpoint.id))
    });
    let wrong: Vec<String> = wrong.take(SHOWN).collect();
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(VerbError::Refused(wrong.join("\n  "))),
    }
}

fn differences(mut now: HashMap<EndpointId, Endpoint>, file: &[Endpoint]) -> Vec<Difference> {
    let difference = |action, endpoint: &Endpoint, fields| Difference {
        action,
        id: endpoint.id.clone(),
        account: endpoint.account.clone(),
        url: endpoint.url.clone(),
        fields,
    };
    let mut found = Vec::new();
    for endpoint in file {
        match now.remove(&endpoint.id) {
            None => found.push(difference(Action::Added, endpoint, Vec::new())),
            Some(known) => {
                let fields = known.fields_that_differ(endpoint);
                if !fields.is_empty() {
                    found.push(difference(Action::Changed, endpoint, fields));
                }
            }
        }
    }
    found.extend(now.values().map(|endpoint| difference(Action::Removed, endpoint, Vec::new())));
    found.sort_by(|one, other| one.id.cmp(&other.id));
    found
}
