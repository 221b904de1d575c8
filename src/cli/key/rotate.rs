//! `herald key rotate`: from one key to the next without a moment in which a worker cannot open what another has sealed. Each step
//! can be repeated: whoever runs it again after an error goes on where it ended.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use zeroize::Zeroizing;

use super::{file, fresh_line, resealed, tell};
use crate::{
    cli::args::WhoAndWhy,
    clock,
    facts::{
        audit::{Act, Tally},
        sealing::{KeyId, MAX_KEYS, Ring},
    },
    keyring::{self, Keyring},
    store::{
        registry::RegistryStore,
        workers::{Told, live_workers},
    },
    surface::{Context, VerbError, audited, note, of_confirmed},
};

/// Workers look at their file every three seconds and tell of a change at once; mounted files come up to a minute later.
const KNOWN_WITHIN: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
pub struct RotateArgs {
    /// The file of keys that the workers read, which must be writable here
    #[arg(long, value_name = "FILE")]
    file: PathBuf,
    /// Take the older keys out of the file in the end, once nothing is sealed with them
    #[arg(long)]
    drop_old: bool,
    #[command(flatten)]
    change: WhoAndWhy,
}

pub async fn rotate(context: &Context, args: RotateArgs) -> anyhow::Result<()> {
    let begun = args.change.act(Act::KeyRotate).target(args.file.display());
    audited(context, begun, async |tally| step_by_step(context, &args, tally).await).await
}

async fn step_by_step(context: &Context, args: &RotateArgs, tally: &mut Tally) -> anyhow::Result<()> {
    let path = &args.file;
    if args.drop_old && live_workers(&mut context.connect().await?).await?.is_empty() {
        let text = "no worker lives, so none can say that it has the new key, and the old one would be missed: start them, \
                    or rotate without --drop-old";
        return Err(VerbError::Refused(text.to_owned()).into());
    }
    let new = match begun_before(path)? {
        Some(new) => {
            note(format_args!("goes on with the key {new}, which an earlier run has appended"));
            new
        }
        None => append(path)?,
    };
    all(context, "have", new, |worker| worker.knows(new)).await?;
    put_first(path, new)?;
    all(context, "seal with", new, |worker| worker.seals_with(new)).await?;
    let redis = context.redis()?.sealed_by(Keyring::open(Some(path), false)?);
    let mut registry = RegistryStore::connect(&redis).await?;
    let (done, confirmation) = resealed(context, &redis, &redis.keyring().ring(), &args.change.mark(), tally).await?;
    tell(context, &new.to_string(), &done, false)?;
    // A failover that takes it back needs the older keys; whoever repeats this goes on from here.
    of_confirmed(&confirmation)?;
    if args.drop_old {
        let survey = registry.survey().await?;
        if let Some(old) = survey.sealed.keys().find(|key| **key != new) {
            let text = format!("something was sealed with the key {old} meanwhile: it stays, repeat this");
            return Err(VerbError::Refused(text).into());
        }
        let text = lines_of(path, |key| key == new)?;
        file::replace(path, &text)?;
        note(format_args!(
            "{} has the key {new} alone; exports and backups of before need the older ones",
            path.display()
        ));
    }
    ends(path)
}

/// Stands in the file while a rotation is under way, in front of the key that it has appended. What a key has sealed does not tell:
/// an old one that nothing is sealed with any more looks like a new one.
const UNDER_WAY: &str = "# herald key rotate is under way to ";

/// The key that an earlier run, which did not come to its end, has appended.
fn begun_before(path: &Path) -> anyhow::Result<Option<KeyId>> {
    let text = keyring::text_of(path)?;
    let ring = Ring::parse(&text)?;
    let mut named = text.lines().filter_map(|line| line.strip_prefix(UNDER_WAY)?.trim().parse::<KeyId>().ok());
    Ok(named.rfind(|key| ring.ids().any(|known| known == *key)))
}

fn ends(path: &Path) -> anyhow::Result<()> {
    let text = keyring::text_of(path)?;
    let mut kept = Zeroizing::new(String::with_capacity(text.len() + 1));
    for line in text.lines().filter(|line| !line.starts_with(UNDER_WAY)) {
        kept.push_str(line);
        kept.push('\n');
    }
    file::replace(path, &kept)
}

fn append(path: &Path) -> anyhow::Result<KeyId> {
    let mut text = keyring::text_of(path)?;
    if Ring::parse(&text)?.ids().count() >= MAX_KEYS {
        let text =
            format!("{} has {MAX_KEYS} keys: take out those that seal nothing (`herald key status`)", path.display());
        return Err(VerbError::Refused(text).into());
    }
    let line = fresh_line()?;
    let new = Ring::parse(&line)?.sealing().expect("a line is a key");
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(&format!("{UNDER_WAY}{new}\n"));
    text.push_str(&line);
    text.push('\n');
    file::replace(path, &text)?;
    note(format_args!("appended the key {new} to {}", path.display()));
    Ok(new)
}

fn put_first(path: &Path, new: KeyId) -> anyhow::Result<()> {
    let (mut first, rest) = (lines_of_key(path, new)?, lines_of(path, |key| key != new)?);
    first.push_str(&rest);
    file::replace(path, &first)
}

/// The file without the keys that are not kept.
fn lines_of(path: &Path, keeps: impl Fn(KeyId) -> bool) -> anyhow::Result<Zeroizing<String>> {
    let text = keyring::text_of(path)?;
    let mut kept = Zeroizing::new(String::with_capacity(2 * text.len() + 1));
    for line in text.lines().filter(|line| Ring::parse(line).map_or(true, |ring| ring.ids().all(&keeps))) {
        kept.push_str(line);
        kept.push('\n');
    }
    Ok(kept)
}

fn lines_of_key(path: &Path, key: KeyId) -> anyhow::Result<Zeroizing<String>> {
    let text = keyring::text_of(path)?;
    let mut kept = Zeroizing::new(String::with_capacity(2 * text.len() + 1));
    for line in text.lines().filter(|line| Ring::parse(line).is_ok_and(|ring| ring.sealing() == Some(key))) {
        kept.push_str(line);
        kept.push('\n');
    }
    Ok(kept)
}

/// Waits until this holds for every live worker.
async fn all(context: &Context, what: &str, key: KeyId, holds: impl Fn(&Told) -> bool) -> anyhow::Result<()> {
    let deadline = clock::now() + KNOWN_WITHIN;
    let mut connection = context.connect().await?;
    loop {
        let workers = live_workers(&mut connection).await?;
        let wanting: Vec<&str> = workers.iter().filter(|told| !holds(told)).map(|told| told.name.as_str()).collect();
        if wanting.is_empty() {
            return Ok(());
        }
        if clock::now() >= deadline {
            let text = format!(
                "these workers do not {what} the key {key} yet: {}; give each the file as it is here, then run this again",
                wanting.join(", ")
            );
            return Err(VerbError::Unanswered(text).into());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
