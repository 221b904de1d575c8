//! The life of a payment intent as one table: what each command does in each state. `decide` follows it, the description of
//! the API and the diagram in the docs are made from it, and a test walks each of its cells.

use super::intent::State;
use crate::facts::event::{
    CaptureMode,
    PaymentStatus::{self, Authorized, Canceled, Captured, Created, Refunded, Reversed},
};

/// What can happen to an intent, without its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The customer pays, and the issuer approves.
    Pay,
    /// The issuer declines, or the customer fails or abandons a challenge.
    FailToPay,
    Cancel,
    Capture,
    Reverse,
    Refund,
    SetAmount,
    SetTips,
    RefreshSecret,
    SendReceipt,
    /// Nobody has paid in time.
    Expire,
    /// The money was held for long enough and goes back.
    ReleaseHold,
    /// The money was held for long enough and is taken.
    CaptureHold,
}

impl Kind {
    pub const ALL: [Self; 13] = [
        Self::Pay,
        Self::FailToPay,
        Self::Cancel,
        Self::Capture,
        Self::Reverse,
        Self::Refund,
        Self::SetAmount,
        Self::SetTips,
        Self::RefreshSecret,
        Self::SendReceipt,
        Self::Expire,
        Self::ReleaseHold,
        Self::CaptureHold,
    ];

    /// For people: "an intent that is Created cannot be …".
    pub fn participle(self) -> &'static str {
        match self {
            Self::Pay | Self::FailToPay => "paid",
            Self::Cancel => "canceled",
            Self::Capture => "captured",
            Self::Reverse => "reversed",
            Self::Refund => "refunded",
            Self::SetAmount => "given another amount",
            Self::SetTips => "given other tips",
            Self::RefreshSecret => "given a new client secret",
            Self::SendReceipt => "confirmed by a receipt",
            Self::Expire => "expired",
            Self::ReleaseHold => "released",
            Self::CaptureHold => "captured at the end of its hold",
        }
    }

    /// As the command line names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pay => "pay",
            Self::FailToPay => "fail-to-pay",
            Self::Cancel => "cancel",
            Self::Capture => "capture",
            Self::Reverse => "reverse",
            Self::Refund => "refund",
            Self::SetAmount => "set-amount",
            Self::SetTips => "set-tips",
            Self::RefreshSecret => "refresh-secret",
            Self::SendReceipt => "send-receipt",
            Self::Expire => "expire",
            Self::ReleaseHold => "release-hold",
            Self::CaptureHold => "capture-hold",
        }
    }

    /// Whether time does it, and nobody asks for it.
    pub fn is_of_time(self) -> bool {
        matches!(self, Self::Expire | Self::ReleaseHold | Self::CaptureHold)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A new status, also when it is the old one again, and the event that tells it.
    To(PaymentStatus),
    /// Captured at once or Authorized, as the capture mode says.
    ByMode,
    /// A new status, but only on the day of the payment.
    SameDay(PaymentStatus),
    /// Something changes, but no status, and nobody is told.
    Stays,
    /// Nothing changes but what is told: the event that asks for a receipt.
    Tells,
    /// The state does not allow it now.
    No,
    /// As if it were not there.
    Gone,
}

use Step::{ByMode, Gone, No, SameDay, Stays, Tells, To};

/// One line for each command, one column for each of [`State::ALL`].
#[rustfmt::skip]
const LIFE: [(Kind, [Step; 7]); 13] = [
    //                      Created         Authorized      Captured, Manual  Captured, Auto      Refunded      Reversed  Canceled
    (Kind::Pay,           [ ByMode,         No,             No,               No,                 No,           No,       No   ]),
    (Kind::FailToPay,     [ Stays,          No,             No,               No,                 No,           No,       No   ]),
    (Kind::Cancel,        [ To(Canceled),   No,             No,               No,                 No,           No,       Gone ]),
    (Kind::Capture,       [ No,             To(Captured),   To(Captured),     No,                 No,           No,       No   ]),
    (Kind::Reverse,       [ No,             To(Reversed),   No,               SameDay(Reversed),  No,           No,       No   ]),
    (Kind::Refund,        [ No,             No,             To(Refunded),     To(Refunded),       To(Refunded), No,       No   ]),
    (Kind::SetAmount,     [ Stays,          Stays,          No,               No,                 No,           No,       No   ]),
    (Kind::SetTips,       [ Stays,          Stays,          No,               No,                 No,           No,       No   ]),
    (Kind::RefreshSecret, [ Stays,          No,             No,               No,                 No,           No,       No   ]),
    (Kind::SendReceipt,   [ No,             Tells,          Tells,            Tells,              Tells,        Tells,    No   ]),
    (Kind::Expire,        [ To(Canceled),   No,             No,               No,                 No,           No,       No   ]),
    (Kind::ReleaseHold,   [ No,             To(Reversed),   Stays,            No,                 No,           No,       No   ]),
    (Kind::CaptureHold,   [ No,             To(Captured),   To(Captured),     No,                 No,           No,       No   ]),
];

pub fn step(kind: Kind, state: State) -> Step {
    let line = LIFE.iter().find(|(of, _)| *of == kind).expect("each kind has its line");
    line.1[state as usize]
}

/// The status that a payment leads to.
pub fn paid(mode: CaptureMode) -> PaymentStatus {
    match mode {
        CaptureMode::Auto => Captured,
        CaptureMode::Manual => Authorized,
    }
}

/// Each pair of statuses that one change can lead from and to, with what leads there: for the diagram in the docs.
pub fn edges() -> Vec<(PaymentStatus, PaymentStatus, Kind)> {
    let mut edges = Vec::new();
    for (kind, steps) in LIFE {
        for (state, step) in State::ALL.into_iter().zip(steps) {
            let targets = match step {
                To(status) | SameDay(status) => vec![status],
                ByMode => vec![paid(CaptureMode::Auto), paid(CaptureMode::Manual)],
                Stays | Tells | No | Gone => Vec::new(),
            };
            let from = state.status();
            edges.extend(
                targets.into_iter().map(|to| (from, to, kind)).filter(|edge| *edge != (Created, Created, kind)),
            );
        }
    }
    edges.dedup();
    edges
}

/// A state diagram as Mermaid writes it.
pub fn diagram() -> String {
    let mut lines = vec!["stateDiagram-v2".to_owned(), "    [*] --> Created".to_owned()];
    let edges = edges();
    for (from, to, _) in &edges {
        let kinds: Vec<_> =
            edges.iter().filter(|edge| (edge.0, edge.1) == (*from, *to)).map(|edge| label(edge.2)).collect();
        let line = format!("    {from} --> {to}: {}", kinds.join(", "));
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines.extend([Reversed, Canceled, Refunded].map(|status| format!("    {status} --> [*]")));
    lines.join("\n") + "\n"
}

fn label(kind: Kind) -> &'static str {
    match kind {
        Kind::Pay | Kind::FailToPay => "paid",
        Kind::Cancel => "cancel",
        Kind::Capture => "capture",
        Kind::Reverse => "reversal",
        Kind::Refund => "refund",
        Kind::SetAmount => "amount",
        Kind::SetTips => "tips",
        Kind::RefreshSecret => "secret",
        Kind::SendReceipt => "receipt",
        Kind::Expire => "not paid in time",
        Kind::ReleaseHold => "hold ends",
        Kind::CaptureHold => "hold ends, Capture",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_one_line_and_each_state_its_column() {
        for kind in Kind::ALL {
            assert_eq!(LIFE.iter().filter(|(of, _)| *of == kind).count(), 1, "{kind:?}");
        }
        for (index, state) in State::ALL.into_iter().enumerate() {
            assert_eq!(state as usize, index);
        }
    }

    #[test]
    fn nothing_leads_out_of_an_end() {
        for (from, to, _) in edges() {
            assert!(from != Canceled && from != Reversed, "{from} to {to}");
            assert!(from != Refunded || to == Refunded, "{from} to {to}");
        }
    }

    #[test]
    fn the_page_shows_this_diagram() {
        let page = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/payment-intents.md"));
        let shown = page.split("```mermaid\n").nth(1).and_then(|rest| rest.split("```").next());
        assert_eq!(shown, Some(diagram().as_str()));
    }

    #[test]
    fn the_diagram_names_every_edge_once() {
        let diagram = diagram();
        assert!(diagram.contains("    Created --> Authorized: paid\n"), "{diagram}");
        assert!(diagram.contains("    Authorized --> Captured: capture, hold ends, Capture\n"), "{diagram}");
        assert!(diagram.contains("    Refunded --> Refunded: refund\n"), "{diagram}");
    }
}
