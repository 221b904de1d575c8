//! How all stored values are kept, and how they are sealed anew while everything works: what an endpoint says stays as it is, and so
//! does its revision. Whatever does not open here is counted and left.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
};

use super::{PAGE, RESEAL, RegistryError, RegistryKeys, RegistryStore, change, stored};
use crate::{
    facts::{
        endpoint::Mark,
        sealing::{KeyId, Ring},
    },
    store::error::StoreError,
};

/// Bytes of JSON in one call, not counting its last endpoint: keeps it to a few milliseconds.
const CALL_BYTES: usize = 1024 * 1024;

/// An endpoint that is changed at the same time is looked at again, this many times at most: it takes somebody who changes it
/// without end to be missed so often.
const PASSES: usize = 5;

/// How the values of the whole registry are kept.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Survey {
    pub endpoints: u64,
    /// Of each key: how many values it has sealed.
    pub sealed: BTreeMap<KeyId, u64>,
    pub unsealed: u64,
    /// Endpoints that this Herald does not understand, and sealed values of another form.
    pub unknown: u64,
}

/// What must be known of an endpoint to read it as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Form {
    pub schema: u64,
    pub schemes: Vec<String>,
    pub is_sealed: bool,
    /// It has authorities or a client certificate of its own.
    pub has_tls: bool,
}

/// What came of sealing everything anew.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Resealed {
    /// Endpoints that were written in another form; with a dry run, those that would be.
    pub written: u64,
    /// Those that were so already.
    pub unchanged: u64,
    /// By id, why each stayed as it is.
    pub left: BTreeMap<String, String>,
    /// Those that somebody else changed each time at the same moment.
    pub missed: u64,
}

struct Rewrite {
    id: String,
    seen: Vec<u8>,
    json: Vec<u8>,
}

impl RegistryStore {
    /// By id. None where it is no endpoint.
    pub async fn forms(&mut self) -> Result<BTreeMap<String, Option<Form>>, StoreError> {
        let (mut forms, mut cursor) = (BTreeMap::new(), Some(0));
        while let Some(at) = cursor {
            let (next, page) = self.raw_page(at).await?;
            forms.extend(page.into_iter().map(|(id, json)| (id, stored::form(&json))));
            cursor = next;
        }
        Ok(forms)
    }

    pub async fn survey(&mut self) -> Result<Survey, StoreError> {
        let (mut survey, mut cursor, mut seen) = (Survey::default(), Some(0), BTreeSet::new());
        while let Some(at) = cursor {
            let (next, page) = self.raw_page(at).await?;
            for (id, json) in page {
                if !seen.insert(id) {
                    continue;
                }
                survey.endpoints += 1;
                let Some(kept) = stored::kept(&json) else {
                    survey.unknown += 1;
                    continue;
                };
                survey.unsealed += kept.unsealed as u64;
                for key in kept.sealed {
                    *key.map_or(&mut survey.unknown, |key| survey.sealed.entry(key).or_default()) += 1;
                }
            }
            cursor = next;
        }
        Ok(survey)
    }

    /// Seals every value with the first of these keys, or unseals all with a ring that has none. What is sealed now must open with
    /// the keys of this connection.
    pub async fn reseal(&mut self, to: &Ring, mark: &Mark, is_dry: bool) -> Result<Resealed, RegistryError> {
        let mut done = Resealed::default();
        for _ in 0..PASSES {
            let (written, missed) = self.reseal_once(to, mark, is_dry, &mut done).await?;
            done.missed = missed;
            // What an earlier pass wrote is so by now.
            done.unchanged = done.unchanged.saturating_sub(done.written);
            done.written += written;
            if missed == 0 {
                return Ok(done);
            }
        }
        Ok(done)
    }

    /// Returns how many were written, and how many somebody else changed at the same time.
    async fn reseal_once(
        &mut self,
        to: &Ring,
        mark: &Mark,
        is_dry: bool,
        done: &mut Resealed,
    ) -> Result<(u64, u64), RegistryError> {
        (done.unchanged, done.left) = (0, BTreeMap::new());
        let from = self.connection.keyring().ring();
        let (mut written, mut missed, mut cursor, mut looked_at) = (0, 0, Some(0), BTreeSet::new());
        while let Some(at) = cursor {
            let (next, page) = self.raw_page(at).await?;
            cursor = next;
            let (mut batch, mut bytes) = (Vec::new(), 0);
            for (id, json) in page {
                if !looked_at.insert(id.clone()) {
                    continue;
                }
                if is_kept_so(&json, to.sealing()) {
                    done.unchanged += 1;
                    continue;
                }
                let read = stored::read_with(&id, &json, &from, false);
                match read
                    .map_err(|found| found.why)
                    .and_then(|endpoint| stored::write(&endpoint, to).map_err(|error| error.to_string()))
                {
                    Err(why) => drop(done.left.insert(id, why)),
                    Ok(_) if is_dry => written += 1,
                    Ok(new) => {
                        bytes += json.len() + new.len();
                        batch.push(Rewrite { id, seen: json, json: new });
                    }
                }
                if batch.len() == PAGE || bytes >= CALL_BYTES {
                    let of_batch = self.rewrite(mem::take(&mut batch), to, mark).await?;
                    (written, missed, bytes) = (written + of_batch.0, missed + of_batch.1, 0);
                }
            }
            let of_batch = self.rewrite(batch, to, mark).await?;
            (written, missed) = (written + of_batch.0, missed + of_batch.1);
        }
        Ok((written, missed))
    }

    async fn rewrite(&mut self, batch: Vec<Rewrite>, to: &Ring, mark: &Mark) -> Result<(u64, u64), RegistryError> {
        if batch.is_empty() {
            return Ok((0, 0));
        }
        // Each time: a worker may have come meanwhile.
        self.check_all_know(to).await?;
        let mut call = change(&RESEAL, &[], None, mark);
        for Rewrite { id, seen, json } in &batch {
            call = call.arg(id).arg(seen).arg(json);
        }
        let subject = "seal endpoints anew";
        let answer: Vec<String> = self.connection.run(subject, &call).await?;
        match answer.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["ok", written] => {
                let written = written.parse().map_err(|_| StoreError::unexpected(subject, "no number"))?;
                self.has_changed |= written > 0;
                Ok((written, (batch.len() as u64).saturating_sub(written)))
            }
            ["damaged", why] => Err(RegistryError::Damaged(why.to_owned())),
            _ => Err(StoreError::unexpected(subject, format_args!("{answer:?}")).into()),
        }
    }

    async fn raw_page(&mut self, cursor: u64) -> Result<(Option<u64>, Vec<(String, Vec<u8>)>), StoreError> {
        let mut command = redis::cmd("HSCAN");
        command.arg(RegistryKeys::ENDPOINTS).arg(cursor).arg("COUNT").arg(PAGE);
        let (next, page): (u64, Vec<(String, Vec<u8>)>) = self.connection.query("list the endpoints", &command).await?;
        Ok(((next != 0).then_some(next), page))
    }
}

/// Whether each value is sealed with this key, or none is sealed.
fn is_kept_so(json: &[u8], by: Option<KeyId>) -> bool {
    stored::kept(json).is_some_and(|kept| match by {
        Some(key) => kept.unsealed == 0 && kept.sealed.iter().all(|sealed| *sealed == Some(key)),
        None => kept.sealed.is_empty(),
    })
}
