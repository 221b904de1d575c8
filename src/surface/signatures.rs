//! What was found about a callback's signatures, in the words and the JSON that `verify` and `listen` have in common.

use serde::Serialize;

use crate::facts::signing::diagnosis::{Fault, Judgement};

/// In JSON: `{"verdict":"invalid","faults":[{"fault":"too_old","says":"…"}]}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Found {
    pub verdict: Verdict,
    /// Only of what is invalid.
    pub faults: Vec<FaultView>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Valid,
    Invalid,
    /// There is no such signature.
    Absent,
    /// There is no secret to check it with.
    Unchecked,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FaultView {
    pub fault: &'static str,
    pub says: String,
}

impl Found {
    pub fn without_secret() -> Self {
        Self { verdict: Verdict::Unchecked, faults: Vec::new() }
    }

    /// One line: `valid`, or why not.
    pub fn line(&self) -> String {
        let faults: Vec<&str> = self.faults.iter().map(|fault| fault.says.as_str()).collect();
        match self.verdict {
            Verdict::Valid => "valid".to_owned(),
            Verdict::Invalid => format!("INVALID: {}", faults.join("; and ")),
            Verdict::Absent => "absent".to_owned(),
            Verdict::Unchecked => "not checked, for want of a secret".to_owned(),
        }
    }
}

impl From<&Judgement> for Found {
    fn from(judgement: &Judgement) -> Self {
        let view = |fault: &Fault| FaultView { fault: fault.name(), says: fault.to_string() };
        match judgement {
            Judgement::Valid => Self { verdict: Verdict::Valid, faults: Vec::new() },
            Judgement::Absent => Self { verdict: Verdict::Absent, faults: Vec::new() },
            Judgement::Invalid(faults) => Self { verdict: Verdict::Invalid, faults: faults.iter().map(view).collect() },
        }
    }
}
