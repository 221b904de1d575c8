//! Who the five sample merchants are, and how each behaves.

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Merchant {
    Healthy,
    Slow,
    Flaky,
    Gone,
    Dead,
}

impl Merchant {
    pub const ALL: [Self; 5] = [Self::Healthy, Self::Slow, Self::Flaky, Self::Gone, Self::Dead];

    pub fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Slow => "slow",
            Self::Flaky => "flaky",
            Self::Gone => "gone",
            Self::Dead => "dead",
        }
    }

    pub fn temper(self) -> &'static str {
        match self {
            Self::Healthy => "answers 200 at once",
            Self::Slow => "answers 200 after 400 ms",
            Self::Flaky => "answers 500 from second 3 to 8, then recovers",
            Self::Gone => "answers 410 after its fourth event",
            Self::Dead => "nothing listens there",
        }
    }

    /// Everything that is owed to it arrives in the end.
    pub fn is_alive(self) -> bool {
        matches!(self, Self::Healthy | Self::Slow | Self::Flaky)
    }
}
