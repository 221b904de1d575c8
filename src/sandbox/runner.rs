//! Runs a scenario against a service: one step after the other, up to the first that deviates, and then the callbacks.

use std::time::Duration;

use anyhow::Context as _;
use serde::Deserialize;

use super::{
    arrivals::Arrivals,
    callbacks::{self, ToldEvent},
    file::{Action, Expect, ExpectedCallback, Scenario, Step},
    matching,
    names::Names,
    report::{CallbackReport, StepReport, Verdict},
};
use crate::{
    clock,
    surface::{
        client::{Answer, Request, ServiceClient},
        message_of,
    },
};

pub struct Runner {
    client: ServiceClient,
    /// With whether they are forwarded. None: nobody listens.
    arrivals: Option<(Arrivals, bool)>,
    names: Names,
    wait: Duration,
}

/// What came of one step: the code of its answer, and what deviates.
type Came = (Option<u16>, Vec<String>);

impl Runner {
    pub fn new(client: ServiceClient, arrivals: Option<(Arrivals, bool)>, seed: u64, wait: Duration) -> Self {
        Self { client, arrivals, names: Names::new(seed), wait }
    }

    /// What could not be asked deviates, and says why.
    pub async fn run(mut self, scenario: &Scenario) -> (Vec<StepReport>, Vec<CallbackReport>) {
        let mut steps = Vec::new();
        let mut is_well = true;
        for (number, step) in scenario.steps.iter().enumerate() {
            let (line, title) = (step.line, step.title());
            if !is_well {
                steps.push(StepReport::not_run(line, title));
                continue;
            }
            let began = clock::now();
            let came = self.step(step, number).await;
            let (code, deviations) = came.unwrap_or_else(|error| (None, vec![message_of(&error)]));
            is_well = deviations.is_empty();
            let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            let verdict = if is_well { Verdict::Passed } else { Verdict::Deviates };
            steps.push(StepReport { line, step: title, code, took_ms, verdict, deviations });
        }
        let mut judged = Vec::new();
        // What a scenario that was broken off expects was never to happen.
        if is_well {
            for (intent, expected) in &scenario.callbacks {
                match self.judged(intent, expected).await {
                    Ok(reports) => judged.extend(reports),
                    Err(error) => judged.push(CallbackReport::unknown(intent, message_of(&error))),
                }
            }
        }
        (steps, judged)
    }

    async fn judged(&self, intent: &str, expected: &[ExpectedCallback]) -> anyhow::Result<Vec<CallbackReport>> {
        let told = self.timeline(intent).await?;
        self.wait_for(intent, &told).await?;
        let (arrived, is_forwarded) = self.arrived(intent);
        Ok(callbacks::judge(intent, expected, &told, &arrived, is_forwarded))
    }

    async fn step(&mut self, step: &Step, number: usize) -> anyhow::Result<Came> {
        if let Action::Delivered(intent) = &step.action {
            return Ok((None, self.delivered(intent).await?));
        }
        let request = match step.request(&self.names, number) {
            Ok(Some(request)) => request,
            Ok(None) => return Ok((None, Vec::new())),
            Err(why) => return Ok((None, vec![why])),
        };
        let answer = self.client.ask(&request).await?;
        if let Some(name) = &step.name {
            self.names.keep(name, answer.body.clone());
        }
        Ok((Some(answer.code), self.deviations(step.expect.as_ref(), &answer)))
    }

    fn deviations(&self, expect: Option<&Expect>, answer: &Answer) -> Vec<String> {
        let code = expect.and_then(|expect| expect.code);
        let is_expected = code.map_or(answer.is_success(), |code| code == answer.code);
        let mut found = Vec::new();
        if !is_expected {
            let expected = code.map_or_else(|| "2xx".to_owned(), |code| code.to_string());
            found.push(format!("expected {expected}, came {}", answer.says()));
        }
        if let Some(expected) = expect.and_then(|expect| expect.body.as_ref()) {
            match self.names.fill(expected) {
                Ok(expected) => found.extend(matching::deviations(&expected, &answer.body)),
                Err(why) => found.push(why),
            }
        }
        found
    }

    async fn delivered(&self, intent: &str) -> anyhow::Result<Vec<String>> {
        let told = self.timeline(intent).await?;
        self.wait_for(intent, &told).await?;
        let (arrived, _) = self.arrived(intent);
        let missing = told.iter().filter(|told| !arrived.iter().any(|arrived| arrived.id == told.id));
        let says = |told: &ToldEvent| {
            format!("{} {} did not arrive: does a worker (`herald serve`) run?", told.event, told.status)
        };
        Ok(missing.map(says).collect())
    }

    /// What the service has told of an intent.
    async fn timeline(&self, intent: &str) -> anyhow::Result<Vec<ToldEvent>> {
        #[derive(Deserialize)]
        struct Timeline {
            events: Vec<ToldEvent>,
        }
        let id = self.names.intent(intent).map_err(anyhow::Error::msg)?;
        let request = Request::new("GET", format!("/sandbox/payment-intents/{id}/timeline"), None);
        let answer = self.client.ask(&request).await?;
        anyhow::ensure!(answer.is_success(), "the timeline of {intent} cannot be read: {}", answer.says());
        Ok(serde_json::from_value::<Timeline>(answer.body).context("the timeline cannot be read")?.events)
    }

    async fn wait_for(&self, intent: &str, told: &[ToldEvent]) -> anyhow::Result<()> {
        let Some((arrivals, _)) = &self.arrivals else { return Ok(()) };
        let id = self.names.intent(intent).map_err(anyhow::Error::msg)?;
        let events: Vec<_> = told.iter().map(|told| told.id.clone()).collect();
        arrivals.wait_for(&id, &events, self.wait).await;
        Ok(())
    }

    fn arrived(&self, intent: &str) -> (Vec<callbacks::Arrived>, bool) {
        let id = self.names.intent(intent).unwrap_or_default();
        self.arrivals.as_ref().map_or((Vec::new(), false), |(arrivals, is_forwarded)| (arrivals.of(&id), *is_forwarded))
    }
}
