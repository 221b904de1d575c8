//! What the doctor says of one thing: how bad it is, what it means and what to do. Judges nothing.

use serde::Serialize;

use crate::surface::colour::Tone;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Fail,
    Warn,
    Ok,
}

impl Level {
    pub fn name(self) -> &'static str {
        match self {
            Self::Fail => "FAIL",
            Self::Warn => "warn",
            Self::Ok => "ok",
        }
    }

    pub fn tone(self) -> Tone {
        match self {
            Self::Fail => Tone::Bad,
            Self::Warn => Tone::Odd,
            Self::Ok => Tone::Good,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub level: Level,
    pub subject: &'static str,
    pub says: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// What issues are called here.
pub const ISSUES: &str = "issues";

impl Finding {
    /// What hits merchants comes before everything else, and then what is worst.
    pub fn order(&self) -> (bool, Level) {
        let is_issue = self.subject == ISSUES && self.level != Level::Ok;
        (!is_issue, self.level)
    }
}

/// What has been found so far.
#[derive(Default)]
pub struct Findings(Vec<Finding>);

impl Findings {
    pub fn ok(&mut self, subject: &'static str, says: impl Into<String>) {
        self.0.push(Finding { level: Level::Ok, subject, says: says.into(), remedy: None });
    }

    pub fn warn(&mut self, subject: &'static str, says: impl Into<String>, remedy: impl Into<String>) {
        self.push(Level::Warn, subject, says, remedy);
    }

    pub fn fail(&mut self, subject: &'static str, says: impl Into<String>, remedy: impl Into<String>) {
        self.push(Level::Fail, subject, says, remedy);
    }

    pub fn push(&mut self, level: Level, subject: &'static str, says: impl Into<String>, remedy: impl Into<String>) {
        self.0.push(Finding { level, subject, says: says.into(), remedy: Some(remedy.into()) });
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn worst_first(mut self) -> Vec<Finding> {
        self.0.sort_by_key(Finding::order);
        self.0
    }
}
