//! Which partition an account's events belong to: the function that every producer, in any language, and every Herald must
//! agree on. It never changes; `docs/vectors/partition.json` holds it fast, and `docs/producers.md` has it in other languages.
//!
//! A stream may be split into N child streams `S:0` … `S:N-1`, and each of these again. An account's slot is the one that Redis
//! Cluster gives to a key of its name; its lowest digits choose the child, the next ones the child of that.

use std::collections::BTreeMap;

use crc::{CRC_16_XMODEM, Crc};

use super::id::{AccountId, EntryId};

/// The hash slots of Redis Cluster.
pub const SLOTS: u16 = 16_384;

/// Parts of one stream over all levels: at 16 slots each, they are still filled evenly.
pub const MAX_PARTS: u32 = 1024;

const XMODEM: Crc<u16> = Crc::<u16>::new(&CRC_16_XMODEM);

/// A hash slot, below [`SLOTS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u16);

impl Slot {
    /// None at [`SLOTS`] or above.
    pub fn new(number: u16) -> Option<Self> {
        (number < SLOTS).then_some(Self(number))
    }

    /// Of an account's name, which has no braces.
    pub fn of_account(account: &AccountId) -> Self {
        Self::of(account.as_str().as_bytes())
    }

    /// Of a key by Redis Cluster's rule: of its hash tag if it has one, else of all of it.
    pub fn of_key(key: &[u8]) -> Self {
        Self::of(hash_tag(key).unwrap_or(key))
    }

    pub fn number(self) -> u16 {
        self.0
    }

    fn of(bytes: &[u8]) -> Self {
        Self(XMODEM.checksum(bytes) % SLOTS)
    }
}

/// What is between the first `{` and the first `}` after it, unless that is nothing.
pub fn hash_tag(key: &[u8]) -> Option<&[u8]> {
    let rest = &key[key.iter().position(|byte| *byte == b'{')? + 1..];
    let tag = &rest[..rest.iter().position(|byte| *byte == b'}')?];
    (!tag.is_empty()).then_some(tag)
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SplitError {
    #[error(
        "the stream {stream:?} has a hash tag, so all its parts would share one slot; choose a name without braces"
    )]
    Tagged { stream: String },
    #[error("a stream is split into at least 2 parts, not into {parts}")]
    TooFew { parts: u32 },
    #[error("a stream has at most {MAX_PARTS} parts over all levels")]
    TooMany,
}

/// A stream that is split, and how often. Without levels it is one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    stream: String,
    levels: Vec<u32>,
}

impl Split {
    /// `levels`: into how many parts the stream is split, then into how many each of these, and so on.
    pub fn new(stream: &str, levels: &[u32]) -> Result<Self, SplitError> {
        if !levels.is_empty() && hash_tag(stream.as_bytes()).is_some() {
            return Err(SplitError::Tagged { stream: stream.to_owned() });
        }
        if let Some(parts) = levels.iter().find(|parts| **parts < 2) {
            return Err(SplitError::TooFew { parts: *parts });
        }
        let all = levels.iter().try_fold(1u32, |all, parts| all.checked_mul(*parts));
        match all {
            Some(..=MAX_PARTS) => Ok(Self { stream: stream.to_owned(), levels: levels.to_vec() }),
            _ => Err(SplitError::TooMany),
        }
    }

    /// The streams that an event of this account goes through below the split one, the outermost first.
    pub fn path(&self, account: &AccountId) -> Vec<String> {
        let (mut left, mut stream) = (u32::from(Slot::of_account(account).number()), self.stream.clone());
        let step = |parts: &u32| {
            stream = format!("{stream}:{}", left % parts);
            left /= parts;
            stream.clone()
        };
        self.levels.iter().map(step).collect()
    }

    /// The stream that holds this account's events in the end.
    pub fn stream_of(&self, account: &AccountId) -> String {
        self.path(account).pop().unwrap_or_else(|| self.stream.clone())
    }
}

/// What becomes of a stream's entries, as `mode` in its slot says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Mode {
    /// They are delivered by its owner; the key is not there.
    #[default]
    Worked,
    /// Its owner is handing over to so many parts what is unfinished, and reads nothing. Until it has begun, this can be undone.
    Splitting { parts: u32, token: String, has_begun: bool },
    /// Its owner passes on to its parts every entry behind the barrier: those up to it were delivered here, or handed over.
    Routed { parts: u32, token: String, barrier: EntryId },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the mode {text:?} of a stream cannot be understood; has a newer Herald written it?")]
pub struct UnknownMode {
    pub text: String,
}

impl Mode {
    /// From what the key holds.
    pub fn parse(text: Option<&str>) -> Result<Self, UnknownMode> {
        let Some(text) = text else { return Ok(Self::Worked) };
        let unknown = || UnknownMode { text: text.chars().take(100).collect() };
        let parts = |text: &str| text.parse().ok().filter(|parts| (2..=MAX_PARTS).contains(parts)).ok_or_else(unknown);
        match text.split(' ').collect::<Vec<_>>()[..] {
            ["splitting", number, token] if !token.is_empty() => {
                Ok(Self::Splitting { parts: parts(number)?, token: token.to_owned(), has_begun: false })
            }
            ["splitting", number, token, "begun"] if !token.is_empty() => {
                Ok(Self::Splitting { parts: parts(number)?, token: token.to_owned(), has_begun: true })
            }
            ["routed", number, token, barrier] if !token.is_empty() => Ok(Self::Routed {
                parts: parts(number)?,
                token: token.to_owned(),
                barrier: barrier.parse().map_err(|_| unknown())?,
            }),
            _ => Err(unknown()),
        }
    }

    /// What the key holds; nothing where it is not there.
    pub fn to_text(&self) -> Option<String> {
        match self {
            Self::Worked => None,
            Self::Splitting { parts, token, has_begun } => {
                Some(format!("splitting {parts} {token}{}", if *has_begun { " begun" } else { "" }))
            }
            Self::Routed { parts, token, barrier } => Some(format!("routed {parts} {token} {barrier}")),
        }
    }

    /// Into how many parts the stream is split, or is being split.
    pub fn parts(&self) -> Option<u32> {
        match self {
            Self::Worked => None,
            Self::Splitting { parts, .. } | Self::Routed { parts, .. } => Some(*parts),
        }
    }

    /// One word, for people and programs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Worked => "worked",
            Self::Splitting { .. } => "splitting",
            Self::Routed { .. } => "routed",
        }
    }
}

/// The part of a stream that the number names.
pub fn part_of(stream: &str, number: u32) -> String {
    format!("{stream}:{number}")
}

/// The accounts whose events belong in one stream: those whose slot, divided by `parts`, leaves `rest`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accounts {
    parts: u32,
    rest: u32,
}

impl Accounts {
    pub const ALL: Self = Self { parts: 1, rest: 0 };

    pub fn has(self, account: &AccountId) -> bool {
        u32::from(Slot::of_account(account).number()) % self.parts == self.rest
    }
}

/// A stream with its parts, their parts and so on, each with its mode, as they were when somebody looked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layout {
    root: String,
    modes: BTreeMap<String, Mode>,
}

impl Layout {
    /// Of a stream that is not split.
    pub fn of_one(root: &str) -> Self {
        Self { root: root.to_owned(), modes: BTreeMap::new() }
    }

    pub fn root(&self) -> &str {
        &self.root
    }

    /// Returns the streams that there are below this one because of its mode: nobody has asked for theirs.
    pub fn learn(&mut self, stream: &str, mode: Mode) -> Vec<String> {
        let parts = mode.parts().unwrap_or(0);
        self.modes.insert(stream.to_owned(), mode);
        (0..parts).map(|part| part_of(stream, part)).collect()
    }

    /// With the splits that another one knows of beside: there is no way back from a split.
    pub fn with(mut self, other: &Self) -> Self {
        for (stream, mode) in &other.modes {
            if *mode != Mode::Worked {
                self.modes.entry(stream.clone()).or_insert_with(|| mode.clone());
            }
        }
        self
    }

    pub fn mode(&self, stream: &str) -> &Mode {
        self.modes.get(stream).unwrap_or(&Mode::Worked)
    }

    /// Every one of them, each before its parts, and these by their numbers: each needs an owner, and each may hold something that
    /// people look for.
    pub fn streams(&self) -> Vec<String> {
        let mut all = Vec::new();
        self.walk(&self.root, &mut all);
        all
    }

    fn walk(&self, stream: &str, all: &mut Vec<String>) {
        all.push(stream.to_owned());
        for part in 0..self.mode(stream).parts().unwrap_or(0) {
            self.walk(&part_of(stream, part), all);
        }
    }

    /// Into how many parts all levels above this stream split, together: what is left of an account's slot there was divided by that.
    pub fn above(&self, stream: &str) -> u32 {
        self.descend(stream).0.parts
    }

    /// All, as far as this layout does not know the stream.
    pub fn accounts(&self, stream: &str) -> Accounts {
        match self.descend(stream) {
            (accounts, true) => accounts,
            (_, false) => Accounts::ALL,
        }
    }

    /// Those of the stream, or of the last one on the way there that is known; and whether that is the stream.
    fn descend(&self, stream: &str) -> (Accounts, bool) {
        let (mut accounts, mut at) = (Accounts::ALL, self.root.clone());
        while at != stream
            && let Some(parts) = self.mode(&at).parts()
            && let Some(rest) = stream.strip_prefix(&at).and_then(|rest| rest.strip_prefix(':'))
            && let Ok(part) = rest.split(':').next().unwrap_or_default().parse()
        {
            let Accounts { parts: above, rest } = accounts;
            (accounts, at) = (Accounts { parts: above * parts, rest: rest + above * part }, part_of(&at, part));
        }
        (accounts, at == stream)
    }

    /// The streams that an account's events go through: the root, and in the end the one that has its deliveries. While a stream is
    /// being split either may have them.
    pub fn path(&self, account: &AccountId) -> Vec<String> {
        let (mut left, mut path) = (u32::from(Slot::of_account(account).number()), vec![self.root.clone()]);
        while let Some(stream) = path.last()
            && let Some(parts) = self.mode(stream).parts()
        {
            path.push(part_of(stream, left % parts));
            left /= parts;
        }
        path
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Published {
        vectors: Vec<Vector>,
    }

    #[derive(Deserialize)]
    struct Vector {
        account: String,
        slot: u16,
        stream: String,
        levels: Vec<u32>,
        streams: Vec<String>,
    }

    fn account(text: &str) -> AccountId {
        AccountId::new(text).unwrap()
    }

    #[test]
    fn a_mode_is_what_its_key_holds() {
        let token = || "t0ken".to_owned();
        let routed = Mode::Routed { parts: 64, token: token(), barrier: "17-1".parse().unwrap() };
        let splitting = |has_begun| Mode::Splitting { parts: 2, token: token(), has_begun };
        for mode in [Mode::Worked, splitting(false), splitting(true), routed] {
            assert_eq!(Mode::parse(mode.to_text().as_deref()), Ok(mode));
        }
        for wrong in
            ["", "worked", "routed 64 t", "routed 1 t 17-1", "routed 1025 t 17-1", "splitting 2 ", "routed 2 t x"]
        {
            assert!(Mode::parse(Some(wrong)).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_layout_has_every_stream_and_agrees_with_the_vectors() {
        let routed = |parts| Mode::Routed { parts, token: "t".to_owned(), barrier: EntryId::ZERO };
        let mut layout = Layout::of_one("payment-intents");
        assert_eq!(layout.streams(), ["payment-intents"]);
        assert_eq!(layout.learn("payment-intents", routed(64)).len(), 64);
        layout.learn("payment-intents:6", routed(4));
        let streams = layout.streams();
        assert_eq!(streams.len(), 1 + 64 + 4);
        assert_eq!(streams[7..10], ["payment-intents:6", "payment-intents:6:0", "payment-intents:6:1"]);
        let split = Split::new("payment-intents", &[64, 4]).unwrap();
        let path = layout.path(&account("acc_test"));
        assert_eq!(path[1..], split.path(&account("acc_test")));
        // What one knew stays known, whoever has forgotten it.
        assert_eq!(Layout::of_one("payment-intents").with(&layout), layout);
        assert_eq!(layout.clone().with(&Layout::of_one("payment-intents")), layout);
        let above = ["payment-intents", "payment-intents:6", "payment-intents:6:3"].map(|stream| layout.above(stream));
        assert_eq!(above, [1, 64, 256]);
        assert_eq!(layout.path(&account("acc_a")), ["payment-intents", "payment-intents:62"]);
        let above = ["payment-intents", "payment-intents:6", "payment-intents:6:3", "payment-intents:62"];
        assert_eq!(above.map(|stream| layout.above(stream)), [1, 64, 256, 64]);
        // An account belongs to each stream on its path, and to no other.
        for account in ["acc_test", "acc_a", "acc_1", "acc_00000000000000000000"].map(account) {
            let has = |stream: &String| layout.accounts(stream).has(&account);
            assert_eq!(layout.streams().into_iter().filter(has).collect::<Vec<_>>(), layout.path(&account));
        }
        for unknown in ["payment-intents:5:1", "other:1"] {
            assert_eq!(layout.accounts(unknown), Accounts::ALL, "nobody can say");
        }
    }

    #[test]
    fn the_published_vectors_hold() {
        let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/vectors/partition.json"));
        let published: Published = serde_json::from_str(text).unwrap();
        assert!(published.vectors.len() >= 24);
        for vector in published.vectors {
            let account = account(&vector.account);
            assert_eq!(Slot::of_account(&account).number(), vector.slot, "{account}");
            let split = Split::new(&vector.stream, &vector.levels).unwrap();
            assert_eq!(split.path(&account), vector.streams, "{account}");
            assert_eq!(Some(&split.stream_of(&account)), vector.streams.last());
        }
    }

    #[test]
    fn a_keys_slot_is_that_of_redis_cluster() {
        let slot = |key: &str| Slot::of_key(key.as_bytes()).number();
        assert_eq!(slot("123456789"), 0x31C3);
        for (key, same) in [
            ("{user1000}.following", "user1000"),
            ("foo{}{bar}", "foo{}{bar}"),
            ("foo{{bar}}zap", "{bar"),
            ("foo{bar}{zap}", "bar"),
            ("a{b", "a{b"),
            ("a}b{c", "a}b{c"),
        ] {
            assert_eq!(slot(key), XMODEM.checksum(same.as_bytes()) % SLOTS, "{key}");
        }
        assert_eq!((Slot::new(SLOTS), Slot::new(SLOTS - 1).map(Slot::number)), (None, Some(SLOTS - 1)));
    }

    #[test]
    fn a_stream_that_is_not_split_holds_every_account_itself() {
        for stream in ["payment-intents", "{pay}"] {
            assert_eq!(Split::new(stream, &[]).unwrap().stream_of(&account("acc_a")), stream);
        }
    }

    #[test]
    fn what_can_not_be_split_is_refused_with_its_reason() {
        assert_eq!(Split::new("a{b}", &[2]), Err(SplitError::Tagged { stream: "a{b}".to_owned() }));
        assert_eq!(Split::new("s", &[64, 1]), Err(SplitError::TooFew { parts: 1 }));
        assert_eq!(Split::new("s", &[0]), Err(SplitError::TooFew { parts: 0 }));
        for levels in [&[1025][..], &[64, 17], &[u32::MAX, u32::MAX]] {
            assert_eq!(Split::new("s", levels), Err(SplitError::TooMany));
        }
        assert!(Split::new("s", &[64, 16]).is_ok());
    }

    #[test]
    fn parts_of_one_stream_are_filled_evenly_and_lie_apart() {
        let split = Split::new("payment-intents", &[16, 16]).unwrap();
        let mut filled = HashMap::<String, u32>::new();
        for number in 0..100_000 {
            *filled.entry(split.stream_of(&account(&format!("acc_{number}")))).or_default() += 1;
        }
        let most = filled.values().max().unwrap();
        assert_eq!(filled.len(), 256);
        assert!(filled.values().all(|count| count * 2 > *most), "{filled:?}");
        let slots: std::collections::HashSet<u16> =
            filled.keys().map(|stream| Slot::of_key(stream.as_bytes()).number()).collect();
        assert!(slots.len() > 240, "{}", slots.len());
    }
}
