//! Reads the answers of the scripts, strictly. An answer that the call's script never gives is an error with a reason,
//! never a guess. What other processes wrote (the inbox) is checked too, but a mistake there is theirs, and they are
//! told so.

use std::{str::FromStr, vec};

use bytes::Bytes;
use redis::Value;

use super::protocol::{
    Answer, Call, Content, Entry, Kept, Known, MAX_BATCH, Recorded, Request, RequestKind, Term, Unfinished, Wanted,
};
use crate::facts::{
    envelope::AccountSequence,
    id::{DeliveryId, EndpointId, EntryId, IdError, IntentId},
    partition::Mode,
};

type Malformed = String;

pub fn answer(call: &Call, value: Value) -> Result<Answer, Malformed> {
    let mut parts = Parts::of(value)?;
    let word = parts.text()?;
    let answer = match (word.as_str(), call) {
        ("LOST", _) => Answer::Lost,
        ("NOGROUP", Call::Read { .. } | Call::ClaimForeign { .. } | Call::Trim { .. }) => Answer::NoGroup,
        ("BAD", Call::Settle { .. }) => Answer::BadItem { at: parts.size()?, why: parts.text()? },
        ("ACQUIRED", Call::Acquire { .. }) => {
            let (now_ms, mode) = (parts.number()?, parts.text()?);
            Answer::Acquired { now_ms, mode: Mode::parse((!mode.is_empty()).then_some(mode.as_str())) }
        }
        ("GATED", Call::Acquire { .. }) => Answer::Gated { token: parts.text()? },
        ("RESERVED", Call::Acquire { .. }) => Answer::Reserved { worker: parts.text()?, left_ms: parts.number()? },
        ("TAKEN", Call::Acquire { .. }) => {
            Answer::Taken { by: Term::owner_of(&parts.text()?).to_owned(), left_ms: parts.number()? }
        }
        ("RENEWED", Call::Renew { .. }) => Answer::Renewed { next: parts.optional(Parts::text)? },
        ("RELEASED", Call::Release { .. }) => Answer::Released,
        ("RECOVERED", Call::Recover { .. }) => Answer::Recovered { moved: parts.size()? },
        ("OPENED", Call::Open { .. }) => Answer::Opened {
            made_after: parts.optional(Parts::parsed)?,
            last_delivered: parts.parsed()?,
            last_generated: parts.parsed()?,
            registry: parts.text()?,
            is_set_back: parts.flag()?,
        },
        ("COUNTS", Call::Counts { .. }) => {
            let cursor = parts.parsed()?;
            let all = parts.until_end(|parts| Ok((parts.count()?, parts.optional(Parts::number)?)))?;
            let noted = |((endpoint, _), at_ms): &((EndpointId, _), Option<u64>)| Some((endpoint.clone(), (*at_ms)?));
            let mut unreadable: Vec<_> = all.iter().filter_map(noted).collect();
            unreadable.sort_unstable();
            let counts = in_order(all.into_iter().map(|(count, _)| count).collect());
            Answer::Counts { counts, unreadable, cursor }
        }
        ("ENTRIES", Call::Read { .. }) => {
            Answer::Entries { now_ms: parts.number()?, entries: parts.entries()?, registry: None }
        }
        ("ASKED", Call::Ask { deliveries, .. }) => {
            let known = (0..deliveries.len().min(MAX_BATCH)).map(|_| parts.known()).collect::<Result<_, _>>()?;
            Answer::Asked { known }
        }
        ("SETTLED", Call::Settle { .. }) => Answer::Settled {
            now_ms: parts.number()?,
            next_due_ms: parts.optional(Parts::number)?,
            group_missing: parts.flag()?,
            counts: in_order(parts.until_end(Parts::count)?),
        },
        ("CLAIMED", Call::Claim { .. }) => Answer::Claimed {
            now_ms: parts.number()?,
            next_due_ms: parts.optional(Parts::number)?,
            kept: parts.until_end(Parts::kept)?,
        },
        ("PULLED", Call::PullIn { .. }) => Answer::PulledIn {
            now_ms: parts.number()?,
            moved: parts.size()?,
            last_ms: parts.number()?,
            set_back_ms: parts.number()?,
            next_due_ms: parts.optional(Parts::number)?,
        },
        ("HEADS", Call::TakeHeads { .. }) => {
            Answer::Heads { now_ms: parts.number()?, kept: parts.until_end(Parts::kept)? }
        }
        ("FOREIGN", Call::ClaimForeign { .. }) => {
            Answer::ClaimedForeign { count: parts.size()?, lowest: parts.optional(Parts::parsed)? }
        }
        ("REQUESTS", Call::Inbox { .. }) => Answer::Requests { requests: parts.until_end(Parts::request)? },
        ("TRIMMED", Call::Trim { .. }) => Answer::Trimmed { count: parts.number()?, now_ms: parts.number()? },
        ("EXPIRED", Call::ExpireDead { .. }) => Answer::ExpiredDead { count: parts.number()? },
        ("UNINDEXED", Call::Unindexed { .. }) => {
            let (dead, indexed) = (parts.number()?, parts.number()?);
            let (at, id) = (parts.optional(Parts::parsed)?, parts.optional(Parts::parsed)?);
            let next = at.map(|at| Ok::<_, Malformed>((at, id.ok_or("a time without an id")?))).transpose()?;
            Answer::Unindexed { letters: parts.until_end(Parts::kept)?, next, dead, indexed }
        }
        ("SWEPT", Call::SweepDead { .. }) => Answer::SweptDead { cursor: parts.parsed()?, count: parts.number()? },
        ("NOTED", Call::NoteUnreadable { .. }) => Answer::Noted { now_ms: parts.number()? },
        _ => return Err(format!("{word:?} is not one of its words")),
    };
    parts.end()?;
    Ok(answer)
}

/// What `want.lua` answers.
pub(in crate::store) fn wanted(value: Value) -> Result<Wanted, Malformed> {
    let mut parts = Parts::of(value)?;
    let wanted = match parts.text()?.as_str() {
        "FREE" => Wanted::Free,
        "ASKED" => Wanted::Asked { owner: Term::owner_of(&parts.text()?).to_owned(), left_ms: parts.number()? },
        "BUSY" => Wanted::Busy { worker: parts.text()? },
        word => return Err(format!("{word:?} is not one of its words")),
    };
    parts.end()?;
    Ok(wanted)
}

fn in_order(mut counts: Vec<(EndpointId, Unfinished)>) -> Vec<(EndpointId, Unfinished)> {
    counts.sort_by(|a, b| a.0.cmp(&b.0));
    counts
}

/// The elements of an array, taken one after the other.
struct Parts(vec::IntoIter<Value>);

impl Parts {
    fn of(value: Value) -> Result<Self, Malformed> {
        match value {
            Value::Array(values) => Ok(Self(values.into_iter())),
            other => Err(format!("found {} instead of an array", kind(&other))),
        }
    }

    fn next(&mut self) -> Result<Value, Malformed> {
        self.0.next().ok_or_else(|| "it ends too early".to_owned())
    }

    fn end(&self) -> Result<(), Malformed> {
        match self.0.as_slice() {
            [] => Ok(()),
            rest => Err(format!("it has {} parts too many", rest.len())),
        }
    }

    fn is_nil_next(&self) -> bool {
        matches!(self.0.as_slice().first(), Some(Value::Nil))
    }

    fn optional<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T, Malformed>) -> Result<Option<T>, Malformed> {
        match self.is_nil_next() {
            true => self.next().map(|_| None),
            false => read(self).map(Some),
        }
    }

    fn until_end<T>(&mut self, mut read: impl FnMut(&mut Self) -> Result<T, Malformed>) -> Result<Vec<T>, Malformed> {
        let mut all = Vec::new();
        while !self.0.as_slice().is_empty() {
            all.push(read(self)?);
        }
        Ok(all)
    }

    fn bytes(&mut self) -> Result<Bytes, Malformed> {
        match self.next()? {
            Value::BulkString(bytes) => Ok(bytes.into()),
            other => Err(format!("{} where a string belongs", kind(&other))),
        }
    }

    fn text(&mut self) -> Result<String, Malformed> {
        String::from_utf8(self.bytes()?.into()).map_err(|_| "a text is not UTF-8".to_owned())
    }

    fn signed(&mut self) -> Result<i64, Malformed> {
        match self.next()? {
            Value::Int(number) => Ok(number),
            other => Err(format!("{} where a number belongs", kind(&other))),
        }
    }

    fn number(&mut self) -> Result<u64, Malformed> {
        let number = self.signed()?;
        number.try_into().map_err(|_| format!("{number} must not be negative"))
    }

    fn size(&mut self) -> Result<usize, Malformed> {
        let number = self.number()?;
        number.try_into().map_err(|_| format!("{number} is too large"))
    }

    fn flag(&mut self) -> Result<bool, Malformed> {
        match self.signed()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(format!("{other} where 0 or 1 belongs")),
        }
    }

    fn parsed<T: FromStr<Err: ToString>>(&mut self) -> Result<T, Malformed> {
        let bytes = self.bytes()?;
        let text = std::str::from_utf8(&bytes).map_err(|_| "an id is not UTF-8".to_owned())?;
        text.parse().map_err(|error: T::Err| error.to_string())
    }

    fn count(&mut self) -> Result<(EndpointId, Unfinished), Malformed> {
        let endpoint = self.parsed()?;
        Ok((endpoint, Unfinished { records: self.number()?, parked: self.number()?, bytes: self.number()? }))
    }

    fn known(&mut self) -> Result<Known, Malformed> {
        let (ordered, single) = (self.flag()?, self.flag()?);
        let recorded = match self.number()? {
            0 => Recorded::Nothing,
            1 => Recorded::This,
            2 => Recorded::Another,
            other => return Err(format!("{other} does not say whose record it is")),
        };
        Ok(Known { ordered, single, recorded })
    }

    fn kept(&mut self) -> Result<Kept, Malformed> {
        Ok((self.parsed()?, self.optional(Self::bytes)?))
    }

    fn entries(&mut self) -> Result<Vec<Entry>, Malformed> {
        let heads = self.text()?;
        let one = |head: &str| {
            let mut parts = head.split(':');
            let id = parts.next().unwrap_or_default().parse().map_err(|error: IdError| error.to_string())?;
            let text = self.bytes()?;
            let mut content = match (parts.next(), parts.next()) {
                (None, _) => {
                    Content::Event { full_bytes: text.len(), body: text, traceparent: None, account_sequence: None }
                }
                (Some(length), Some(traceparent)) => content(signed(length)?, signed(traceparent)?, text)?,
                _ => return Err(format!("{head:?} is not the head of an entry")),
            };
            let place = parts.next().filter(|place| !place.is_empty());
            let place = place.map(|place| place.parse().map_err(|error: IdError| error.to_string())).transpose()?;
            let number = parts.next().filter(|number| !number.is_empty());
            if let (Some(number), Content::Event { account_sequence, .. }) = (number, &mut content) {
                let read = AccountSequence::read(number.as_bytes());
                *account_sequence = Some(read.ok_or_else(|| format!("{number:?} is no number of an account's event"))?);
            }
            let only = parts.next();
            let only = only.map(|only| only.parse().map_err(|error: IdError| error.to_string())).transpose()?;
            match parts.next() {
                None => Ok(Entry { id, place, only, content }),
                Some(_) => Err(format!("{head:?} is not the head of an entry")),
            }
        };
        heads.split_ascii_whitespace().map(one).collect()
    }

    fn request(&mut self) -> Result<Request, Malformed> {
        let mut parts = Self::of(self.next()?)?;
        let id = parts.parsed()?;
        let mut fields = Self::of(parts.next()?)?;
        let fields = fields.until_end(|fields| Ok((fields.bytes()?, fields.bytes()?)))?;
        let field = |name: &str| fields.iter().find(|(field, _)| field == name).map(|(_, value)| value);
        let mark = field("mark").cloned().unwrap_or_default();
        let what = match request_kind(field, &mut parts) {
            Ok(what) => what,
            Err(Unreadable::Request(why)) => RequestKind::Unknown { why },
            Err(Unreadable::Answer(why)) => return Err(why),
        };
        let held_by = match &what {
            RequestKind::Redeliver { .. } | RequestKind::Discard { .. } => parts.optional(Self::parsed)?,
            _ => None,
        };
        let operation = field("operation").and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
        Ok(Request { id, what, mark, operation, held_by })
    }
}

fn signed(text: &str) -> Result<i64, Malformed> {
    text.parse().map_err(|_| format!("{text:?} is not a number"))
}

/// An entry's content from its text, with the lengths as `read.lua` reports them.
fn content(length: i64, traceparent: i64, mut text: Bytes) -> Result<Content, Malformed> {
    let traceparent = match traceparent {
        -1 => None,
        bytes => {
            let event = usize::try_from(bytes).ok().and_then(|bytes| text.len().checked_sub(bytes));
            Some(text.split_off(event.ok_or_else(|| format!("a text cannot hold a traceparent of {bytes} bytes"))?))
        }
    };
    match (length, &traceparent) {
        (-2, None) if text.is_empty() => Ok(Content::Trimmed),
        (-1, None) => Ok(Content::NoEvent { preview: text }),
        _ => {
            let full_bytes = usize::try_from(length).ok().filter(|full_bytes| *full_bytes >= text.len());
            let full_bytes = full_bytes.ok_or_else(|| format!("{length} is not the length of an event"))?;
            Ok(Content::Event { body: text, traceparent, account_sequence: None, full_bytes })
        }
    }
}

enum Unreadable {
    /// The sender's fault.
    Request(String),
    /// Our fault.
    Answer(Malformed),
}

/// Reads what is asked, from the request's fields and from what `inbox.lua` found.
fn request_kind<'a>(field: impl Fn(&str) -> Option<&'a Bytes>, found: &mut Parts) -> Result<RequestKind, Unreadable> {
    let text = |name: &str| {
        let bytes = field(name).ok_or_else(|| Unreadable::Request(format!("the request has no field {name:?}")))?;
        let text = std::str::from_utf8(bytes);
        text.map_err(|_| Unreadable::Request(format!("the request's field {name:?} is not UTF-8")))
    };
    fn id<T: FromStr<Err: ToString>>(text: &str) -> Result<T, Unreadable> {
        text.parse().map_err(|error: T::Err| Unreadable::Request(error.to_string()))
    }
    let letter = |found: &mut Parts| found.optional(Parts::bytes).map_err(Unreadable::Answer);
    let flag = |found: &mut Parts| found.flag().map_err(Unreadable::Answer);
    // Whether the mark can be read is for its reader to say; but without a mark nobody is responsible for the request.
    field("mark").ok_or_else(|| Unreadable::Request("the request has no field \"mark\"".to_owned()))?;
    match text("op")? {
        "redeliver" => Ok(RequestKind::Redeliver { id: id::<DeliveryId>(text("id")?)?, letter: letter(found)? }),
        "discard" => Ok(RequestKind::Discard { id: id::<DeliveryId>(text("id")?)?, letter: letter(found)? }),
        "release" => {
            let endpoint = id::<EndpointId>(text("endpoint")?)?;
            let intent = id::<IntentId>(text("intent")?)?;
            let head = found.optional(Parts::kept).map_err(Unreadable::Answer)?;
            let meant = field("head").map(|_| text("head")).transpose()?.map(id::<EntryId>).transpose()?;
            Ok(RequestKind::Release { endpoint, intent, head, meant })
        }
        "requeue" => {
            let entry = id::<EntryId>(text("entry")?)?;
            Ok(RequestKind::Requeue { entry, exists: flag(found)?, cut: flag(found)? })
        }
        "discard-quarantined" => {
            Ok(RequestKind::DiscardQuarantined { entry: id::<EntryId>(text("entry")?)?, exists: flag(found)? })
        }
        "accept-registry" => Ok(RequestKind::AcceptRegistry { registry: text("registry")?.to_owned() }),
        "cancel-repartition" => Ok(RequestKind::CancelRepartition),
        "repartition" => {
            let parts = text("parts")?;
            let parts = parts.parse().map_err(|_| Unreadable::Request(format!("{:?} is no number", shorten(parts))))?;
            Ok(RequestKind::Repartition { parts })
        }
        other => Err(Unreadable::Request(format!("there is no request named {:?}", shorten(other)))),
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Nil => "nothing",
        Value::Int(_) => "a number",
        Value::BulkString(_) | Value::SimpleString(_) => "a string",
        Value::Array(_) => "an array",
        _ => "an unknown value",
    }
}
