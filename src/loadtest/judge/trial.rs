//! A promise while it is judged: counts how often it was tried and broken, and keeps the first examples.

use crate::loadtest::result::Promise;

/// Examples kept of one promise: enough to begin looking.
const EXAMPLES: usize = 5;

/// A promise while it is judged.
pub struct Trial {
    name: &'static str,
    text: &'static str,
    pub tried: u64,
    broken: u64,
    examples: Vec<String>,
}

impl Trial {
    pub fn new(name: &'static str, tried: u64, text: &'static str) -> Self {
        Self { name, text, tried, broken: 0, examples: Vec::new() }
    }

    pub fn broke(&mut self, example: impl FnOnce() -> String) {
        self.broken += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(example());
        }
    }

    /// This many more cases than there are examples for: their summary is always among the examples kept.
    pub fn broke_more(&mut self, many: u64, example: String) {
        self.broken += many;
        self.examples.truncate(EXAMPLES - 1);
        self.examples.push(example);
    }

    pub fn done(self) -> Promise {
        // What broke was tried, even if nothing counted it.
        let tried = self.tried.max(self.broken);
        Promise {
            name: self.name.to_owned(),
            text: self.text.to_owned(),
            tried,
            broken: self.broken,
            examples: self.examples,
        }
    }
}
