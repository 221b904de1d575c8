//! `herald key …`: the keys that seal what Redis holds. Makes them, says what each has sealed and who knows it, and seals everything
//! anew while everything works. A key is written to files and never shown, except by `generate` without a file.

mod file;
mod rotate;

use std::{collections::BTreeSet, path::PathBuf};

use anyhow::bail;
use clap::{Args, Subcommand, builder::ArgPredicate};
use rand::{TryRng, rngs::SysRng};
use serde::Serialize;
use zeroize::Zeroizing;

use super::args::{Consent, Go, WhoAndWhy};
use crate::{
    app,
    facts::{
        audit::{Act, Tally},
        endpoint::Mark,
        sealing::{KeyId, Ring, key_line},
    },
    store::{
        connection::Redis,
        registry::{
            RegistryStore,
            confirming::{Confirmation, Confirming},
            reseal::{Resealed, Survey},
        },
        workers::{Told, live_workers},
    },
    surface::{Context, VerbError, audited, note, of_confirmed, words},
};

/// Endpoints that are named when they could not be sealed anew.
const SHOWN: usize = 10;

#[derive(Debug, Subcommand)]
pub enum KeyVerb {
    /// Make a key: a line for master_key_file
    Generate(GenerateArgs),
    /// Show the keys: how many values each has sealed, and which live workers know it
    Status,
    /// Seal everything with the first key, while the service runs
    Reseal(ResealArgs),
    /// Make a new key, wait until every live worker knows it, and seal everything with it
    Rotate(rotate::RotateArgs),
    /// Write every secret in clear again, before an older version or no key at all
    Unseal(Consent),
}

#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// Write it to this new file, readable by its owner only [default: stdout]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(mut_arg("reason", |reason| reason
    .help("Why: it is kept with the change. A dry run needs none")
    .required(false)
    .required_unless_present("dry_run")
    .default_value_if("dry_run", ArgPredicate::IsPresent, "dry run")))]
pub struct ResealArgs {
    #[command(flatten)]
    change: WhoAndWhy,
    /// Say what would happen, and change nothing
    #[arg(long)]
    dry_run: bool,
}

pub async fn run(context: &Context, verb: KeyVerb) -> anyhow::Result<()> {
    match verb {
        KeyVerb::Generate(args) => generate(context, args),
        KeyVerb::Status => status(context).await,
        KeyVerb::Reseal(args) => reseal(context, args).await,
        KeyVerb::Rotate(args) => rotate::rotate(context, args).await,
        KeyVerb::Unseal(consent) => unseal(context, consent).await,
    }
}

fn fresh_line() -> anyhow::Result<Zeroizing<String>> {
    let mut bytes = Zeroizing::new([0; 32]);
    SysRng.try_fill_bytes(&mut *bytes)?;
    Ok(key_line(&bytes))
}

fn generate(context: &Context, args: GenerateArgs) -> anyhow::Result<()> {
    let mut line = fresh_line()?;
    let id = Ring::parse(&line)?.sealing().map(|id| id.to_string()).unwrap_or_default();
    line.push('\n');
    match args.file {
        Some(path) => file::write_new(&path, &line)?,
        None => context.output.raw(line.as_bytes())?,
    }
    note(format_args!("made the key {id}: keep a copy elsewhere, since without it nothing that it sealed opens"));
    Ok(())
}

/// How one kind of values is kept.
#[derive(Debug, Serialize)]
struct Row {
    /// The id of a key, or `unsealed`, or `unknown`.
    key: String,
    /// What this process, with its master_key_file, can do with it.
    here: &'static str,
    values: u64,
    /// The live workers that have the key.
    known_to: Vec<String>,
    unknown_to: Vec<String>,
}

async fn status(context: &Context) -> anyhow::Result<()> {
    let redis = context.redis()?;
    let ring = redis.keyring().ring();
    let survey = RegistryStore::connect(&redis).await?.survey().await?;
    let workers = live_workers(&mut context.connect().await?).await?;
    let mut list = context.output.list(&["KEY", "HERE", "VALUES", "KNOWN TO", "UNKNOWN TO"]);
    for row in rows(&ring, &survey, &workers) {
        let cells = |names: &[String]| if names.is_empty() { "-".to_owned() } else { names.join(", ") };
        list.push(&row, || {
            let values = words::number(row.values);
            vec![row.key.clone(), row.here.to_owned(), values, cells(&row.known_to), cells(&row.unknown_to)]
        })?;
    }
    list.finish()
}

fn rows(ring: &Ring, survey: &Survey, workers: &[Told]) -> Vec<Row> {
    let ours: Vec<KeyId> = ring.ids().collect();
    let of_workers = workers.iter().flat_map(|worker| &worker.keys).filter_map(|key| key.parse().ok());
    let others: BTreeSet<KeyId> =
        survey.sealed.keys().copied().chain(of_workers).filter(|key| !ours.contains(key)).collect();
    let mut rows: Vec<Row> = ours
        .iter()
        .copied()
        .chain(others)
        .map(|key| {
            let (known, unknown): (Vec<&Told>, Vec<&Told>) = workers.iter().partition(|worker| worker.knows(key));
            let names = |workers: Vec<&Told>| workers.into_iter().map(|worker| worker.name.clone()).collect();
            let here = match ours.iter().position(|own| *own == key) {
                Some(0) => "seals",
                Some(_) => "opens",
                None => "missing",
            };
            let values = survey.sealed.get(&key).copied().unwrap_or(0);
            Row { key: key.to_string(), here, values, known_to: names(known), unknown_to: names(unknown) }
        })
        .collect();
    for (key, values, here) in [("unsealed", survey.unsealed, "in clear"), ("unknown", survey.unknown, "unreadable")] {
        if values > 0 || key == "unsealed" {
            rows.push(Row { key: key.to_owned(), here, values, known_to: Vec::new(), unknown_to: Vec::new() });
        }
    }
    rows
}

async fn reseal(context: &Context, args: ResealArgs) -> anyhow::Result<()> {
    let redis = context.redis()?;
    let ring = redis.keyring().ring();
    let Some(key) = ring.sealing() else {
        let text =
            "there is no key to seal with: name the file of the keys in master_key_file (HERALD_MASTER_KEY_FILE)";
        return Err(VerbError::Usage(text.to_owned()).into());
    };
    if args.dry_run {
        let would = RegistryStore::connect(&redis).await?.reseal(&ring, &args.change.mark(), true).await?;
        return tell(context, &key.to_string(), &would, true);
    }
    let begun = args.change.act(Act::KeyReseal).target(key);
    let work = async |tally: &mut _| resealed(context, &redis, &ring, &args.change.mark(), tally).await;
    let (resealed, confirmation) = audited(context, begun, work).await?;
    tell(context, &key.to_string(), &resealed, false)?;
    of_confirmed(&confirmation)
}

async fn unseal(context: &Context, consent: Consent) -> anyhow::Result<()> {
    let redis = context.redis()?;
    let mut registry = RegistryStore::connect(&redis).await?;
    if redis.keyring().is_only() {
        return Err(VerbError::Refused("seal_only is set here: it would lock everything".to_owned()).into());
    }
    let workers = live_workers(&mut context.connect().await?).await?;
    if let Some(worker) = workers.iter().find(|worker| worker.seal_only) {
        let text =
            format!("worker {} has seal_only set, and would lock everything: take it back there first", worker.name);
        return Err(VerbError::Refused(text).into());
    }
    let survey = registry.survey().await?;
    let values = words::count(survey.sealed.values().sum(), "value", "values");
    if consent.confirm(&format!("write {values} in clear to Redis"))? == Go::DryRun {
        return Ok(());
    }
    let work = async |tally: &mut _| resealed(context, &redis, &Ring::default(), &consent.mark(), tally).await;
    let (unsealed, confirmation) = audited(context, consent.act(Act::KeyUnseal), work).await?;
    tell(context, "none", &unsealed, false)?;
    // A failover that takes it back needs the keys again.
    of_confirmed(&confirmation)?;
    note("take master_key_file out of every configuration now: with it, each change seals again");
    Ok(())
}

/// Seals everything anew, and waits for replicas: also where an earlier run has written it all, since a key may be taken away then.
async fn resealed(
    context: &Context,
    redis: &Redis,
    to: &Ring,
    mark: &Mark,
    tally: &mut Tally,
) -> anyhow::Result<(Resealed, Confirmation)> {
    let reseal = async |registry: &mut RegistryStore| {
        let resealed = registry.reseal(to, mark, false).await?;
        if resealed.written == 0 {
            registry.touch().await?;
        }
        Ok(resealed)
    };
    let (resealed, confirmation) = Confirming::new(redis, app::replicas(&context.config)).change(reseal).await?;
    tally.set(resealed.written, resealed.left.len() as u64 + resealed.missed);
    Ok((resealed, confirmation))
}

/// What came of sealing anew; that some could not be is an error.
fn tell(context: &Context, key: &str, resealed: &Resealed, is_dry: bool) -> anyhow::Result<()> {
    #[derive(Serialize)]
    struct View<'a> {
        key: &'a str,
        dry_run: bool,
        written: u64,
        unchanged: u64,
        left: Vec<Left<'a>>,
        missed: u64,
    }
    #[derive(Serialize)]
    struct Left<'a> {
        endpoint: &'a str,
        why: &'a str,
    }
    let left = resealed.left.iter().map(|(endpoint, why)| Left { endpoint, why }).collect();
    let Resealed { written, unchanged, missed, .. } = *resealed;
    let fields = [
        ("key", key.to_owned()),
        (if is_dry { "would be written" } else { "written" }, words::number(written)),
        ("so already", words::number(unchanged)),
        ("left", words::number(resealed.left.len() as u64)),
        ("missed", words::number(missed)),
    ];
    context.output.one(&View { key, dry_run: is_dry, written, unchanged, left, missed }, &fields)?;
    for (endpoint, why) in resealed.left.iter().take(SHOWN) {
        note(format_args!("endpoint {endpoint} is left as it is: {why}"));
    }
    verdict(resealed)
}

fn verdict(resealed: &Resealed) -> anyhow::Result<()> {
    let missed = (resealed.missed > 0).then(|| {
        let missed = words::count(resealed.missed, "endpoint was", "endpoints were");
        format!("{missed} changed by somebody else each time, and kept as before: run this again")
    });
    let left = (!resealed.left.is_empty()).then(|| {
        let left = words::count(resealed.left.len() as u64, "endpoint is", "endpoints are");
        format!("{left} left as before: what they hold does not open here (`herald key status`)")
    });
    match (left, missed) {
        (None, None) => Ok(()),
        // Only time is needed.
        (None, Some(missed)) => bail!(missed),
        (Some(left), missed) => {
            Err(VerbError::Refused([left].into_iter().chain(missed).collect::<Vec<_>>().join("; ")).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_seals_anew_hears_what_is_left_and_what_to_do() {
        let why = |resealed: &Resealed| verdict(resealed).unwrap_err();
        assert!(verdict(&Resealed { written: 3, ..Resealed::default() }).is_ok());
        let missed = Resealed { missed: 2, ..Resealed::default() };
        let error = why(&missed);
        assert!(
            error.to_string().starts_with("2 endpoints were changed") && error.to_string().ends_with("run this again")
        );
        assert!(error.downcast_ref::<VerbError>().is_none(), "not refused: it may go well the next time");
        let left = [("ep_a".to_owned(), "it is damaged".to_owned())].into();
        let error = why(&Resealed { left, ..missed });
        assert!(matches!(error.downcast_ref(), Some(VerbError::Refused(text)) if text.contains("1 endpoint is left")));
        assert!(error.to_string().contains("2 endpoints were changed"), "{error}");
    }
}
