//! What is wrong with a callback's signatures: tries the mistakes that receivers make until one explains what arrived.
//! Pure and bounded. It says more than an outsider may know, so its words are for the owner of the secret, never for a
//! response.

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, Mac};
use sha2::Sha256;

#[cfg(feature = "ed25519")]
use super::ed25519::{self, PublicKey};
pub use super::fault::{BodyChange, Fault, Known, SecretChange};
use super::{
    DOJO_SIGNATURE, DojoKey, SecretText, StandardKey, WEBHOOK_ID, WEBHOOK_SIGNATURE, WEBHOOK_TIMESTAMP,
    candidates::{self, Candidate, Form},
    earlier,
    verify::{seconds_of, signed_id},
};
use crate::facts::{event, id::MAX_ID_BYTES};

/// A callback as it arrived, and what it is held against. It has the secret, so there is no `Debug`.
#[derive(Clone, Copy)]
pub struct Evidence<'a> {
    /// As it was given: also one that cannot be a secret.
    pub secret: &'a str,
    pub headers: &'a [(String, String)],
    pub body: &'a [u8],
    /// Milliseconds since 1970.
    pub now_ms: u64,
    pub tolerance_ms: u64,
    /// Bytes that may be hashed for the search for a changed timestamp: about 1 s for each GiB.
    pub search_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    /// The scheme's signature is not there.
    Absent,
    Valid,
    /// Never empty.
    Invalid(Vec<Fault>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnosis {
    pub standard: Judgement,
    pub dojo: Judgement,
}

impl Diagnosis {
    /// Something is signed, and nothing that is signed is wrong.
    pub fn is_valid(&self) -> bool {
        let judgements = [&self.standard, &self.dojo];
        judgements.contains(&&Judgement::Valid) && !judgements.iter().any(|one| matches!(one, Judgement::Invalid(_)))
    }
}

/// How the signatures must be written.
const STANDARD_FORM: &str = "v1, and padded base64, as in v1,K5oZ…=";
#[cfg(feature = "ed25519")]
const ED25519_FORM: &str = "v1a, and padded base64 of 64 bytes, as in v1a,mWx…==";
const DOJO_FORM: &str = "sha256= and upper-case hex with dashes, as in sha256=94-AC-…";

/// As far as a changed timestamp is looked for on both sides of the one that came: time zones are this far apart.
const SEARCH_S: u64 = 14 * 3600;

/// More of one pair's keys are never live at once; each costs a tenth of a millisecond for each guess.
#[cfg(feature = "ed25519")]
const MOST_SIGNATURES: usize = 16;

/// How many things may be wrong at once to be found: more would be guessing.
const MOST_CHANGES: usize = 2;

/// Judges both schemes, each by itself; what one shows helps to say what is wrong with the other.
pub fn diagnose(evidence: &Evidence<'_>) -> Diagnosis {
    #[cfg(feature = "ed25519")]
    if let Some(key) = SecretText::new(trimmed(evidence.secret).to_owned()).ok().as_ref().and_then(PublicKey::of) {
        let standard =
            explain_ed25519(evidence, &key).map(|found| found.unwrap_or_else(|| unexplained(evidence, false)));
        // Nothing that is there is by this key.
        return Diagnosis { standard: judgement(standard), dojo: Judgement::Absent };
    }
    let (standard, dojo) = (explain_standard(evidence), explain_dojo(evidence));
    let dojo_fits = dojo == Some(Some(Vec::new()));
    let standard_fits = matches!(&standard, Some(Some(faults)) if faults.iter().all(is_about_time));
    let standard = standard.map(|found| found.unwrap_or_else(|| unexplained(evidence, dojo_fits)));
    let dojo = dojo.map(|found| found.unwrap_or_else(|| unexplained(evidence, standard_fits)));
    Diagnosis { standard: judgement(standard), dojo: judgement(dojo) }
}

fn judgement(faults: Option<Vec<Fault>>) -> Judgement {
    match faults {
        None => Judgement::Absent,
        Some(faults) if faults.is_empty() => Judgement::Valid,
        Some(faults) => Judgement::Invalid(faults),
    }
}

fn is_about_time(fault: &Fault) -> bool {
    matches!(fault, Fault::TooOld { .. } | Fault::TooNew { .. })
}

fn unexplained(evidence: &Evidence<'_>, others_fit: bool) -> Vec<Fault> {
    let looks_sent =
        || event::Event::parse(evidence.body.to_vec().into()).is_ok() && !earlier::is_rewritten(evidence.body);
    vec![Fault::Unexplained(match others_fit {
        true => Known::SecretAndBodyAreRight,
        false if looks_sent() => Known::BodyLooksSent,
        false => Known::Nothing,
    })]
}

/// A header's only value.
fn header<'e>(evidence: &Evidence<'e>, name: &'static str) -> Result<&'e str, Fault> {
    let mut values = evidence.headers.iter().filter(|(found, _)| found.eq_ignore_ascii_case(name));
    match (values.next(), values.next()) {
        (Some(_), Some(_)) => Err(Fault::HeaderRepeated(name)),
        (Some((_, value)), None) if !trimmed_ascii(value).is_empty() => Ok(trimmed_ascii(value)),
        _ => Err(Fault::HeaderMissing(name)),
    }
}

/// As the verifier reads it.
fn trimmed_ascii(value: &str) -> &str {
    value.trim_matches(|c: char| c.is_ascii_whitespace())
}

/// `None`: not signed so. `Some(None)`: nothing explains it.
type Explained = Option<Option<Vec<Fault>>>;

fn explain_standard(evidence: &Evidence<'_>) -> Explained {
    let signature = match header(evidence, WEBHOOK_SIGNATURE) {
        Err(Fault::HeaderMissing(_)) => return None,
        signature => signature,
    };
    let (id, timestamp) = (header(evidence, WEBHOOK_ID), header(evidence, WEBHOOK_TIMESTAMP));
    let (signature, id, timestamp) = match (signature, id, timestamp) {
        (Ok(signature), Ok(id), Ok(timestamp)) => (signature, id, timestamp),
        (signature, id, timestamp) => {
            return Some(Some([signature.err(), id.err(), timestamp.err()].into_iter().flatten().collect()));
        }
    };
    let candidates = candidates::of_standard(signature);
    if candidates.is_empty() {
        return Some(Some(vec![Fault::NoSignature { must_be: STANDARD_FORM }]));
    }
    let with_form = |faults| with_form(id, faults);
    let search = Search { evidence, candidates: &candidates, form: STANDARD_FORM };
    let found =
        search.standard(id, timestamp).or_else(|| search.for_dojo()).or_else(|| search.for_timestamp(id, timestamp));
    Some(found.map(|faults| with_time(evidence, timestamp, with_form(faults))))
}

fn with_form(id: &str, mut faults: Vec<Fault>) -> Vec<Fault> {
    faults.extend(signed_id(id.as_bytes()).is_err().then_some(Fault::IdForm));
    faults
}

/// A key pair's signatures: of them nothing can be wrong but what was signed, and the key.
#[cfg(feature = "ed25519")]
fn explain_ed25519(evidence: &Evidence<'_>, key: &PublicKey) -> Explained {
    let signature = match header(evidence, WEBHOOK_SIGNATURE) {
        Err(Fault::HeaderMissing(_)) => return None,
        signature => signature,
    };
    let (id, timestamp) = (header(evidence, WEBHOOK_ID), header(evidence, WEBHOOK_TIMESTAMP));
    let (signature, id, timestamp) = match (signature, id, timestamp) {
        (Ok(signature), Ok(id), Ok(timestamp)) => (signature, id, timestamp),
        (signature, id, timestamp) => {
            return Some(Some([signature.err(), id.err(), timestamp.err()].into_iter().flatten().collect()));
        }
    };
    let signatures: Vec<_> = ed25519::signatures(signature.as_bytes()).take(MOST_SIGNATURES).collect();
    if signatures.is_empty() {
        return Some(Some(vec![Fault::NoSignature { must_be: ED25519_FORM }]));
    }
    let (bodies, heads) = (bodies(evidence.body), heads(evidence.body, id, timestamp));
    let fits = |body: &[u8], head: &(String, String)| {
        let is_of = |signature: &Vec<u8>| key.fits(head.0.as_bytes(), head.1.as_bytes(), body, signature);
        signatures.iter().any(is_of)
    };
    let nothing_else = [Guess::as_it_came(())];
    let found = (0..=MOST_CHANGES).find_map(|changes| {
        let mut all = combined(&bodies, &heads, &nothing_else, changes);
        let (body, head, _) = all.find(|(body, head, _)| fits(&body.is, &head.is))?;
        Some([body.fault.clone(), head.fault.clone()].into_iter().flatten().collect())
    });
    Some(found.map(|faults: Vec<Fault>| with_time(evidence, timestamp, with_form(id, faults))))
}

/// Only a signature that fits can be called old.
fn with_time(evidence: &Evidence<'_>, timestamp: &str, mut faults: Vec<Fault>) -> Vec<Fault> {
    let is_replaced =
        faults.iter().any(|fault| matches!(fault, Fault::TimestampChanged { .. } | Fault::OtherScheme(_)));
    match seconds_of(timestamp.as_bytes()).and_then(|seconds| seconds.checked_mul(1000)) {
        _ if is_replaced => {}
        None => faults.push(Fault::TimestampForm),
        Some(sent_ms) => {
            let off = |by_ms: u64| by_ms.checked_sub(evidence.tolerance_ms).filter(|by_ms| *by_ms > 0);
            let (age_ms, ahead_ms) = (evidence.now_ms.saturating_sub(sent_ms), sent_ms.saturating_sub(evidence.now_ms));
            faults.extend(off(age_ms).map(|by_ms| Fault::TooOld { by_ms }));
            faults.extend(off(ahead_ms).map(|by_ms| Fault::TooNew { by_ms }));
        }
    }
    faults
}

fn explain_dojo(evidence: &Evidence<'_>) -> Explained {
    let signature = match header(evidence, DOJO_SIGNATURE) {
        Err(Fault::HeaderMissing(_)) => return None,
        Err(repeated) => return Some(Some(vec![repeated])),
        Ok(signature) => signature,
    };
    let candidates = candidates::of_dojo(signature);
    if candidates.is_empty() {
        return Some(Some(vec![Fault::NoSignature { must_be: DOJO_FORM }]));
    }
    let search = Search { evidence, candidates: &candidates, form: DOJO_FORM };
    Some(search.dojo().or_else(|| search.for_standard()))
}

/// One of the things that are signed or sign, as it came or as it may have been.
struct Guess<T> {
    is: T,
    fault: Option<Fault>,
}

impl<T> Guess<T> {
    fn as_it_came(is: T) -> Self {
        Self { is, fault: None }
    }

    fn changed(is: T, fault: Fault) -> Self {
        Self { is, fault: Some(fault) }
    }
}

struct Search<'a, 'e> {
    evidence: &'a Evidence<'e>,
    candidates: &'a [Candidate],
    form: &'static str,
}

impl Search<'_, '_> {
    /// Fewest changes first, so that nothing is blamed that need not be.
    fn standard(&self, id: &str, timestamp: &str) -> Option<Vec<Fault>> {
        let (bodies, keys) = (bodies(self.evidence.body), standard_keys(self.evidence.secret));
        let heads = heads(self.evidence.body, id, timestamp);
        for changes in 0..=MOST_CHANGES {
            for (body, key, head) in combined(&bodies, &keys, &heads, changes) {
                let mac = StandardKey::of_bytes(&key.is).fed(head.is.0.as_bytes(), head.is.1.as_bytes(), &body.is);
                if let Some(form) = self.matched(&mac) {
                    return Some(faults([&body.fault, &key.fault, &head.fault], form, self.form));
                }
            }
        }
        None
    }

    fn dojo(&self) -> Option<Vec<Fault>> {
        let (bodies, keys) = (bodies(self.evidence.body), dojo_keys(self.evidence.secret));
        for changes in 0..=MOST_CHANGES {
            for (body, key, _) in combined(&bodies, &keys, &[Guess::as_it_came(())], changes) {
                let mac = DojoKey::of_bytes(&key.is).fed(&body.is);
                if let Some(form) = self.matched(&mac) {
                    return Some(faults([&body.fault, &key.fault, &None], form, self.form));
                }
            }
        }
        None
    }

    /// Whether Dojo's signature stands where the standard one belongs.
    fn for_dojo(&self) -> Option<Vec<Fault>> {
        let keys = dojo_keys(self.evidence.secret);
        let fits = keys.iter().any(|key| self.matched(&DojoKey::of_bytes(&key.is).fed(self.evidence.body)).is_some());
        fits.then(|| vec![Fault::OtherScheme(DOJO_SIGNATURE)])
    }

    fn for_standard(&self) -> Option<Vec<Fault>> {
        let (id, timestamp) = (header(self.evidence, WEBHOOK_ID).ok()?, header(self.evidence, WEBHOOK_TIMESTAMP).ok()?);
        let mac = |key: &[u8]| StandardKey::of_bytes(key).fed(id.as_bytes(), timestamp.as_bytes(), self.evidence.body);
        // Where both are there it is the standard's list, of which any may fit.
        let candidates = header(self.evidence, DOJO_SIGNATURE).map(candidates::of_standard).ok()?;
        let search = Search { candidates: &candidates, ..*self };
        let fits = standard_keys(self.evidence.secret).iter().any(|key| search.matched(&mac(&key.is)).is_some());
        fits.then(|| vec![Fault::OtherScheme(WEBHOOK_SIGNATURE)])
    }

    /// Each second around the one that came: only with the right key and the body as it is.
    fn for_timestamp(&self, id: &str, timestamp: &str) -> Option<Vec<Fault>> {
        let came_s = seconds_of(timestamp.as_bytes())?;
        let key = StandardKey::of_bytes(&standard_keys(self.evidence.secret).first()?.is);
        let each = 64 + id.len() as u64 + self.evidence.body.len() as u64;
        let farthest = SEARCH_S.min(self.evidence.search_bytes / each / 2);
        let around = (1..=farthest).flat_map(|by| [came_s.checked_sub(by), came_s.checked_add(by)]).flatten();
        let fits = |second: &u64| {
            let mac = key.fed(id.as_bytes(), second.to_string().as_bytes(), self.evidence.body);
            self.matched(&mac).is_some()
        };
        around.into_iter().find(fits).map(|signed_s| vec![Fault::TimestampChanged { signed_s }])
    }

    /// In which form, if any, this is what the header holds.
    fn matched(&self, mac: &Hmac<Sha256>) -> Option<Form> {
        let fits = |candidate: &&Candidate| match candidate.form {
            Form::LoweredBase64 => is_lowered(mac, &candidate.bytes),
            _ => mac.clone().verify_slice(&candidate.bytes).is_ok(),
        };
        self.candidates.iter().find(fits).map(|candidate| candidate.form)
    }
}

/// Looks at every letter in any case.
fn is_lowered(mac: &Hmac<Sha256>, text: &[u8]) -> bool {
    let right = STANDARD.encode(mac.clone().finalize().into_bytes()).to_ascii_lowercase();
    right.len() == text.len() && right.bytes().zip(text).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

fn faults(of: [&Option<Fault>; 3], form: Form, must_be: &'static str) -> Vec<Fault> {
    let encoding = (form != Form::Right).then_some(Fault::Encoding { found: form, must_be });
    of.into_iter().cloned().chain([encoding]).flatten().collect()
}

/// All combinations with so many changes.
fn combined<'g, A, B, C>(
    a: &'g [Guess<A>],
    b: &'g [Guess<B>],
    c: &'g [Guess<C>],
    changes: usize,
) -> impl Iterator<Item = (&'g Guess<A>, &'g Guess<B>, &'g Guess<C>)> {
    let all = a.iter().flat_map(move |a| b.iter().flat_map(move |b| c.iter().map(move |c| (a, b, c))));
    let count = |fault: &Option<Fault>| usize::from(fault.is_some());
    all.filter(move |(a, b, c)| count(&a.fault) + count(&b.fault) + count(&c.fault) == changes)
}

fn bodies(body: &[u8]) -> Vec<Guess<Vec<u8>>> {
    let earlier = earlier::bodies(body).into_iter().map(|(body, change)| Guess::changed(body, Fault::Body(change)));
    [Guess::as_it_came(body.to_vec())].into_iter().chain(earlier).collect()
}

/// The id and the timestamp. Herald's `webhook-id` is the event's own id, which the body has too.
fn heads(body: &[u8], id: &str, timestamp: &str) -> Vec<Guess<(String, String)>> {
    let mut found = vec![Guess::as_it_came((id.to_owned(), timestamp.to_owned()))];
    let seconds = seconds_of(timestamp.as_bytes()).map(|ms| ms / 1000).filter(|seconds| *seconds > 0);
    found.extend(
        seconds.map(|signed_s| {
            Guess::changed((id.to_owned(), signed_s.to_string()), Fault::TimestampChanged { signed_s })
        }),
    );
    if let Some(signed) = event::glance(body).id.filter(|signed| signed != id && signed.len() <= MAX_ID_BYTES) {
        found.push(Guess::changed((signed.clone(), timestamp.to_owned()), Fault::IdChanged { signed }));
    }
    found
}

/// The key that the secret gives, and those that mistakes give.
fn standard_keys(secret: &str) -> Vec<Guess<Vec<u8>>> {
    let text = trimmed(secret);
    let right = SecretText::new(text.to_owned()).map_or_else(|_| text.as_bytes().to_vec(), |text| text.standard_key());
    let mut found = vec![given(secret, right)];
    match text.strip_prefix("whsec_") {
        Some(rest) => {
            found.push(changed(rest, SecretChange::NotDecodedWithoutPrefix));
            found.push(changed(text, SecretChange::NotDecoded));
            found.extend(decoded(rest).map(|key| changed(key, SecretChange::Base64Url)));
        }
        None => {
            found.extend(decoded(text).map(|key| changed(key, SecretChange::PrefixMissing("whsec_"))));
            found.push(changed(format!("ws_{text}"), SecretChange::PrefixMissing("ws_")));
        }
    }
    found
}

fn dojo_keys(secret: &str) -> Vec<Guess<Vec<u8>>> {
    let text = trimmed(secret);
    let mut found = vec![given(secret, text.as_bytes().to_vec())];
    match text.strip_prefix("whsec_") {
        Some(rest) => {
            found.push(changed(rest, SecretChange::NotDecodedWithoutPrefix));
            found.extend(decoded(rest).map(|key| changed(key, SecretChange::Decoded)));
        }
        None => {
            let prefixed = |prefix| changed(format!("{prefix}{text}"), SecretChange::PrefixMissing(prefix));
            found.extend(["whsec_", "ws_"].map(prefixed));
            found.extend(decoded(text).map(|key| changed(key, SecretChange::Decoded)));
        }
    }
    found
}

fn changed(key: impl Into<Vec<u8>>, change: SecretChange) -> Guess<Vec<u8>> {
    Guess::changed(key.into(), Fault::Secret(change))
}

/// The key as it was meant; what stands around its text is a fault of its own.
fn given(secret: &str, key: Vec<u8>) -> Guess<Vec<u8>> {
    let is_surrounded = trimmed(secret).len() != secret.len();
    Guess { is: key, fault: is_surrounded.then_some(Fault::Secret(SecretChange::Surrounded)) }
}

fn trimmed(secret: &str) -> &str {
    secret.trim().trim_matches(['"', '\'']).trim()
}

/// Base64 of either alphabet, padded or not.
fn decoded(text: &str) -> Option<Vec<u8>> {
    candidates::lenient_base64(text).filter(|key| !key.is_empty())
}

#[cfg(test)]
#[path = "diagnosis_tests.rs"]
mod tests;
