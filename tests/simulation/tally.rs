//! What a run did, and how often each promise was checked. A report's line is made of the sums of many runs.

use std::{collections::BTreeMap, fmt};

/// The promises as the simulator can check them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Promise {
    /// Everything that was accepted is delivered, a dead letter, or somewhere in Redis.
    AtLeastOnce,
    /// Of each chain one at a time, in the order of the stream.
    InOrder,
    /// A dead letter has a reason that is true.
    GivenUpForCause,
    /// An endpoint that Herald pauses has more in Redis than a quota allows, and takes nothing.
    PausedForCause,
    /// What has ended is sent again only if the end of a term can explain it; what an owner was told to be settled never, as long as
    /// it is the owner.
    FewDuplicates,
    /// Of two workers only the owner changes anything.
    OneOwner,
    /// Memory, attempts in flight and calls that bring nothing stay within their limits.
    Bounded,
    /// Once everything has healed, everything ends.
    NeverStuck,
    /// What is of one account never goes to another's endpoint, whatever its id was before.
    ToItsOwn,
    /// An operation takes each letter once, nobody else has it meanwhile, and its totals are true.
    EachOnce,
    /// What Redis holds agrees with itself; no worker panics.
    Sound,
}

impl Promise {
    pub const ALL: [Self; 11] = [
        Self::AtLeastOnce,
        Self::InOrder,
        Self::GivenUpForCause,
        Self::PausedForCause,
        Self::FewDuplicates,
        Self::OneOwner,
        Self::Bounded,
        Self::NeverStuck,
        Self::ToItsOwn,
        Self::EachOnce,
        Self::Sound,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::AtLeastOnce => "at_least_once",
            Self::InOrder => "in_order",
            Self::GivenUpForCause => "given_up_for_cause",
            Self::PausedForCause => "paused_for_cause",
            Self::FewDuplicates => "few_duplicates",
            Self::OneOwner => "one_owner",
            Self::Bounded => "bounded",
            Self::NeverStuck => "never_stuck",
            Self::ToItsOwn => "to_its_own",
            Self::EachOnce => "each_once",
            Self::Sound => "sound",
        }
    }
}

/// A promise that a run broke, and how.
#[derive(Debug, Clone)]
pub struct Broken {
    pub promise: Promise,
    pub why: String,
}

#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// How often something happened: events, attempts, and each kind of fault.
    happened: BTreeMap<&'static str, u64>,
    checked: [u64; Promise::ALL.len()],
    broken: [u64; Promise::ALL.len()],
}

impl Tally {
    pub fn count(&mut self, what: &'static str) {
        *self.happened.entry(what).or_default() += 1;
    }

    pub fn of(&self, what: &str) -> u64 {
        self.happened.get(what).copied().unwrap_or_default()
    }

    pub fn checked(&mut self, promise: Promise) {
        self.checked[promise as usize] += 1;
    }

    pub fn checks(&self, promise: Promise) -> u64 {
        self.checked[promise as usize]
    }

    pub fn broken(&mut self, promise: Promise) {
        self.broken[promise as usize] += 1;
    }

    pub fn add(&mut self, other: &Self) {
        other.happened.iter().for_each(|(what, count)| *self.happened.entry(what).or_default() += count);
        let both = [(&mut self.checked, &other.checked), (&mut self.broken, &other.broken)];
        both.into_iter().for_each(|(sums, counts)| sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count));
    }
}

/// As members of a JSON object.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let happened: Vec<String> = self.happened.iter().map(|(what, count)| format!(r#""{what}":{count}"#)).collect();
        let promise = |promise: &Promise| {
            let (checked, broken) = (self.checked[*promise as usize], self.broken[*promise as usize]);
            format!(r#""{}":{{"checked":{checked},"broken":{broken}}}"#, promise.name())
        };
        let promises: Vec<String> = Promise::ALL.iter().map(promise).collect();
        write!(f, r#""happened":{{{}}},"promises":{{{}}}"#, happened.join(","), promises.join(","))
    }
}
