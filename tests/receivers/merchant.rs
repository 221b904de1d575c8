//! A merchant who runs one of the receivers, under one scheme: what Herald sends to it, and what others try.

use herald::{
    clock::wall_ms,
    facts::{
        endpoint::Scheme,
        signing::{Secret, SecretText},
    },
};
use tokio::process::Command;

use crate::{
    language::Language,
    request::Request,
    served::{Served, free_port},
    support::until,
    world::{Event, PREFIX, World},
};

/// The largest body that there is.
const MAX_BODY_BYTES: usize = 65_536;

pub struct Merchant<'w> {
    world: &'w World,
    language: &'w Language,
    scheme: Scheme,
    /// Of its account, its endpoint and its intents.
    name: &'static str,
    port: u16,
    /// What survives a restart is here.
    folder: tempfile::TempDir,
    /// One of each kind: the base64 of a key, and a text that is itself the key.
    old: SecretText,
    new: SecretText,
}

impl<'w> Merchant<'w> {
    pub fn new(world: &'w World, language: &'w Language, scheme: Scheme) -> Self {
        let name = match scheme {
            Scheme::Standard => "standard",
            Scheme::Dojo => "dojo",
            Scheme::Ed25519 => panic!("these receivers have no key pairs; tests/edges has one that does"),
        };
        let new = SecretText::new("PDYkJQq6sESYHp_zJuTTBQ".to_owned()).unwrap();
        let (port, folder) = (free_port(), tempfile::tempdir().unwrap());
        Self { world, language, scheme, name, port, folder, old: SecretText::from_random([7; 32]), new }
    }

    pub async fn lives(&self) {
        let first = self.an_event_that_is_given_up().await;
        let both = format!("{}, {}", self.old.reveal(), self.new.reveal());
        let mut served = self.start(&both).await;
        let second = self.event(2, "Captured");
        self.world.publish(std::slice::from_ref(&second)).await;
        self.expect(&mut served, &second, "applied").await;

        self.redeliver().await;
        self.expect(&mut served, &first, "older").await;
        self.world.publish(std::slice::from_ref(&second)).await;
        self.expect(&mut served, &second, "duplicate").await;

        // No attempt but the first is ever made, so a gap would be a dead letter.
        for (number, secrets) in [(3, vec![&self.old, &self.new]), (4, vec![&self.new])] {
            self.sign_with(&secrets).await;
            let event = self.event(number, "Refunded");
            self.world.publish(std::slice::from_ref(&event)).await;
            self.expect(&mut served, &event, "applied").await;
        }
        self.takes_what_is_genuine(&mut served).await;
        self.refuses_what_is_not(&mut served).await;

        served.stop().await;
        let mut served = self.start(self.new.reveal()).await;
        let last = self.event(5, "Refunded");
        self.world.publish(std::slice::from_ref(&last)).await;
        self.expect(&mut served, &last, "applied").await;
        if self.language.keeps {
            self.world.publish(std::slice::from_ref(&second)).await;
            self.expect(&mut served, &second, "duplicate").await;
        }
        assert_eq!(self.dead_letters().await, 0, "{}: something failed", self.language.file);
    }

    fn event(&self, number: usize, status: &str) -> Event {
        let base = if self.scheme == Scheme::Dojo { 100 } else { 0 };
        Event::new(base + number, &format!("acc_{}", self.name), &format!("pi_{}", self.name), status)
    }

    fn endpoint(&self) -> String {
        format!("ep_{}", self.name)
    }

    async fn start(&self, secrets: &str) -> Served {
        let database = self.folder.path().join("receiver.sqlite").display().to_string();
        let env = [("HERALD_SECRETS", secrets), ("HERALD_SCHEME", self.name), ("DATABASE", &database)];
        Served::start(self.language, self.port, &env).await
    }

    /// Its receiver is not there yet, and one attempt is all there is.
    async fn an_event_that_is_given_up(&self) -> Event {
        let mut endpoint = self.world.endpoint(&self.endpoint(), &format!("acc_{}", self.name));
        endpoint.url = format!("http://127.0.0.1:{}/hook", self.port);
        endpoint.secrets = secrets(&[&self.old]);
        endpoint.retry.max_attempts = Some(1);
        self.world.register(endpoint).await;
        let event = self.event(1, "Created");
        self.world.publish(std::slice::from_ref(&event)).await;
        until("the first event's dead letter", async || self.dead_letters().await == 1).await;
        event
    }

    async fn dead_letters(&self) -> u64 {
        self.world.number(&["ZCARD", &format!("{PREFIX}dead:{}", self.endpoint())]).await
    }

    async fn redeliver(&self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_herald"));
        command.args(["dead-letter", "redeliver", "--endpoint", &self.endpoint()]);
        command
            .args(["--reason", "it is up", "--by", "tester", "--yes"])
            .env("HERALD_REDIS_URL", self.world.redis.url());
        let output = command.output().await.unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    async fn sign_with(&self, with: &[&SecretText]) {
        self.world.change(&self.endpoint(), |endpoint| endpoint.secrets = secrets(with)).await;
    }

    async fn expect(&self, served: &mut Served, event: &Event, result: &str) {
        let status = event.body.split_once(r#""paymentStatus":""#).unwrap().1.split('"').next().unwrap();
        let line = format!("{} {} {status} {result}", event.id, event.intent);
        assert_eq!(served.next().await, line, "{} with {}", self.language.file, self.name);
    }

    fn signed(&self, secrets: &[&SecretText], event: &Event) -> Request {
        Request::signed(self.scheme, secrets, event, wall_ms() / 1000)
    }

    async fn takes_what_is_genuine(&self, served: &mut Served) {
        let plain = self.event(10, "Captured");
        let letters = self.event(11, "Captured");
        let letters = Event { body: letters.body.replace("}}", r#","note":"naïve – 支払い 💷"}}"#), ..letters };
        let large = self.event(12, "Captured");
        let blanks = " ".repeat(MAX_BODY_BYTES - large.body.len());
        let large = Event { body: format!("{}{blanks}", large.body), ..large };
        let late = self.event(13, "Captured");
        let odd = self.event(14, "Captured");
        let of_odd = self.signed(&[&self.new], &odd);
        let of_odd = match self.scheme {
            // A version that nobody knows yet, and an entry that is none.
            Scheme::Standard => {
                let value = format!("v1a,AAAA v2 {}", of_odd.header("webhook-signature"));
                of_odd.with("webhook-signature", &value)
            }
            Scheme::Dojo | Scheme::Ed25519 => of_odd,
        };
        // In the order of their sequences.
        for (event, request) in [
            (&odd, of_odd),
            (&plain, self.signed(&[&stranger(), &self.old], &plain)),
            (&letters, self.signed(&[&self.new], &letters)),
            (&large, self.signed(&[&self.new], &large)),
            (&late, Request::signed(self.scheme, &[&self.old], &late, wall_ms() / 1000 - 280)),
        ] {
            assert_eq!(request.sent_to(served.address).await, Some(204), "{}: {}", self.language.file, event.id);
            self.expect(served, event, "applied").await;
        }
    }

    /// It would print a line for whatever it accepted.
    async fn refuses_what_is_not(&self, served: &mut Served) {
        let event = self.event(20, "Captured");
        let genuine = self.signed(&[&self.new], &event);
        let signature = match self.scheme {
            Scheme::Standard | Scheme::Ed25519 => "webhook-signature",
            Scheme::Dojo => "dojo-signature",
        };
        let mut refused = vec![
            ("another body", genuine.clone().over(event.body.replace("Captured", "Refunded"))),
            ("a blank more", genuine.clone().over(format!("{} ", event.body))),
            ("no body", genuine.clone().over(String::new())),
            ("a secret of somebody else", self.signed(&[&stranger()], &event)),
            ("another id", genuine.clone().with("webhook-id", "evt_9999999")),
            ("no id", genuine.clone().without("webhook-id")),
            ("no sequence", genuine.clone().without("herald-sequence")),
            ("no signature", genuine.clone().without(signature)),
            ("an empty signature", genuine.clone().with(signature, "")),
            ("only the beginning", genuine.clone().with(signature, "v1,")),
            ("half a signature", genuine.clone().with(signature, &genuine.header(signature)[..20])),
            ("letters that are not ASCII", genuine.clone().with_bytes(signature, b"v1,\xe9\xff sha256=\xc3\xa9")),
        ];
        if self.scheme == Scheme::Standard {
            let at = |shift_s| {
                Request::signed(self.scheme, &[&self.new], &event, (wall_ms() / 1000).saturating_add_signed(shift_s))
            };
            refused.extend([
                ("six minutes old", at(-360)),
                ("six minutes ahead", at(360)),
                ("no timestamp", genuine.clone().without("webhook-timestamp")),
                ("no number", genuine.clone().with("webhook-timestamp", "now")),
                ("a huge number", genuine.clone().with("webhook-timestamp", &"9".repeat(40))),
            ]);
        }
        for (what, request) in &refused {
            let status = request.sent_to(served.address).await;
            assert_eq!(status, Some(400), "{} with {}: {what}", self.language.file, self.name);
        }
        let large = Event { body: format!("{}{}", event.body, " ".repeat(MAX_BODY_BYTES)), ..event.clone() };
        let status = self.signed(&[&self.new], &large).sent_to(served.address).await;
        assert!(matches!(status, None | Some(413)), "{}: too large: {status:?}", self.language.file);
        genuine.broken_off(served.address).await;

        assert_eq!(genuine.sent_to(served.address).await, Some(204), "{}", self.language.file);
        self.expect(served, &event, "applied").await;
    }
}

fn stranger() -> SecretText {
    SecretText::from_random([3; 32])
}

/// The oldest first.
fn secrets(texts: &[&SecretText]) -> Vec<Secret> {
    texts.iter().map(|text| Secret { value: (*text).clone(), created_at_ms: 1, expires_at_ms: None }).collect()
}
