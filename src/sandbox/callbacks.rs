//! What a merchant was told of an intent, held against what a scenario expects: first whether the service told it, then whether it
//! arrived, in order, signed rightly, and was answered as it should be. Pure.

use serde::Deserialize;

use super::{
    file::ExpectedCallback,
    report::{CallbackReport, Verdict},
};

/// What every event's type begins with.
const PREFIX: &str = "payment_intent.";

/// An event as the service's timeline has it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ToldEvent {
    pub id: String,
    pub event: String,
    pub status: String,
}

/// The first arrival of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrived {
    /// Its `webhook-id`.
    pub id: String,
    /// Why its signatures are not valid.
    pub bad: Option<String>,
    /// What the application answered, if it is forwarded; or why it did not.
    pub application: Option<Result<u16, String>>,
    /// What Herald got.
    pub answered: Option<u16>,
}

impl ExpectedCallback {
    fn fits(&self, told: &ToldEvent) -> bool {
        let is_event = |event: &String| *event == told.event || told.event.strip_prefix(PREFIX) == Some(event);
        self.event.as_ref().is_none_or(is_event) && self.status.as_ref().is_none_or(|status| *status == told.status)
    }

    fn text(&self) -> String {
        let parts = [self.event.as_deref(), self.status.as_deref()];
        let text = parts.into_iter().flatten().collect::<Vec<_>>().join(" ");
        if text.is_empty() { "any".to_owned() } else { text }
    }
}

impl ToldEvent {
    fn text(&self) -> String {
        format!("{} {}", self.event, self.status)
    }
}

/// One report for each that is expected or told. `arrived` is what came of this intent, in order, each event once.
pub fn judge(
    intent: &str,
    expected: &[ExpectedCallback],
    told: &[ToldEvent],
    arrived: &[Arrived],
    is_forwarded: bool,
) -> Vec<CallbackReport> {
    let count = expected.len().max(told.len());
    let one = |n: usize| {
        let (expected, told) = (expected.get(n), told.get(n));
        let deviations = match (expected, told) {
            (Some(expected), None) => vec![format!("{} was never told", expected.text())],
            (None, Some(told)) => vec![format!("{} was told as well", told.text())],
            (Some(expected), Some(event)) if !expected.fits(event) => {
                vec![format!("expected {}, told {}", expected.text(), event.text())]
            }
            (Some(expected), Some(event)) => arrival_deviations(expected, event, n, arrived, is_forwarded),
            (None, None) => Vec::new(),
        };
        let came = told.and_then(|told| arrived.iter().find(|arrived| arrived.id == told.id));
        CallbackReport {
            intent: intent.to_owned(),
            expected: expected.map(ExpectedCallback::text),
            told: told.map(ToldEvent::text),
            id: told.map(|told| told.id.clone()),
            application: came.and_then(|came| came.application.clone()?.ok()),
            answered: came.and_then(|came| came.answered),
            verdict: if deviations.is_empty() { Verdict::Passed } else { Verdict::Deviates },
            deviations,
        }
    };
    (0..count).map(one).collect()
}

fn arrival_deviations(
    expected: &ExpectedCallback,
    told: &ToldEvent,
    n: usize,
    arrived: &[Arrived],
    is_forwarded: bool,
) -> Vec<String> {
    let Some(at) = arrived.iter().position(|arrived| arrived.id == told.id) else {
        return vec![format!("{} was told, and did not arrive: does a worker (`herald serve`) run?", told.text())];
    };
    let mut found = Vec::new();
    if at != n {
        found.push(format!("it arrived as number {}, and not as number {}", at + 1, n + 1));
    }
    found.extend(arrived[at].bad.clone());
    let wanted = expected.answer.map_or_else(|| "2xx".to_owned(), |code| code.to_string());
    let is_wanted = |code: u16| expected.answer.map_or((200..300).contains(&code), |wanted| wanted == code);
    match &arrived[at].application {
        Some(Ok(code)) if !is_wanted(*code) => {
            found.push(format!("the application was to answer {wanted}, and answered {code}"));
        }
        Some(Err(why)) => found.push(format!("the application was to answer {wanted}: {why}")),
        None if is_forwarded => found.push("it was not forwarded".to_owned()),
        Some(Ok(_)) | None => {}
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(n: usize, status: &str) -> ToldEvent {
        let event = if status == "Created" { "payment_intent.created" } else { "payment_intent.status_updated" };
        ToldEvent { id: format!("evt_{n}"), event: event.to_owned(), status: status.to_owned() }
    }

    fn arrived(n: usize) -> Arrived {
        Arrived { id: format!("evt_{n}"), bad: None, application: Some(Ok(200)), answered: Some(200) }
    }

    fn expected(event: Option<&str>, status: Option<&str>, answer: Option<u16>) -> ExpectedCallback {
        ExpectedCallback { event: event.map(str::to_owned), status: status.map(str::to_owned), answer }
    }

    fn deviations(expected: &[ExpectedCallback], told: &[ToldEvent], arrived: &[Arrived]) -> Vec<String> {
        judge("order", expected, told, arrived, true).into_iter().flat_map(|report| report.deviations).collect()
    }

    #[test]
    fn what_is_told_and_arrives_in_order_is_as_expected() {
        let all = [
            expected(Some("created"), None, None),
            expected(Some("payment_intent.status_updated"), Some("Captured"), Some(200)),
        ];
        let told = [told(1, "Created"), told(2, "Captured")];
        assert_eq!(deviations(&all, &told, &[arrived(1), arrived(2)]), Vec::<String>::new());
        let swapped = deviations(&all, &told, &[arrived(2), arrived(1)]);
        assert!(swapped[0].contains("as number 2, and not as number 1"), "{swapped:?}");
        let lost = deviations(&all, &told, &[arrived(1)]);
        assert!(lost.len() == 1 && lost[0].contains("did not arrive"), "{lost:?}");
    }

    #[test]
    fn each_kind_of_deviation_is_named() {
        let status = |status| expected(None, Some(status), None);
        let (one, came) = ([told(1, "Created")], [arrived(1)]);
        assert_eq!(deviations(&[], &one, &came), ["payment_intent.created Created was told as well"]);
        assert_eq!(deviations(&[status("Created"), status("Captured")], &one, &came), ["Captured was never told"]);
        assert_eq!(
            deviations(&[status("Captured")], &one, &came),
            ["expected Captured, told payment_intent.created Created"]
        );
        let answers = |application| [Arrived { application, ..arrived(1) }];
        let refused = deviations(&[status("Created")], &one, &answers(Some(Ok(500))));
        assert_eq!(refused, ["the application was to answer 2xx, and answered 500"]);
        assert!(deviations(&[expected(None, None, Some(500))], &one, &answers(Some(Ok(500)))).is_empty());
        assert_eq!(deviations(&[status("Created")], &one, &answers(None)), ["it was not forwarded"]);
        let bad = [Arrived { bad: Some("forged".to_owned()), ..arrived(1) }];
        assert_eq!(deviations(&[status("Created")], &one, &bad), ["forged"]);
    }
}
