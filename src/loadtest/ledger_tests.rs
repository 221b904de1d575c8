use super::*;
use crate::loadtest::{
    ledger::books::Suspicion,
    population::tests::scenario,
    scenario::{Population as Wanted, Profile, ProfileShare},
};

/// A ledger whose endpoints all behave like this; each of three accounts has `fan_out` of them.
pub fn ledger_of(profile: Profile, fan_out: u32) -> Ledger {
    let profiles = vec![ProfileShare::of(1.0, profile)];
    let timeout = Some(Duration::from_secs(2));
    let wanted = Wanted { fan_out, profiles, timeout, ..Wanted::default() };
    let ledger = Ledger::new(Arc::new(Population::draw(&scenario(3, wanted), 7).unwrap()), 100);
    ledger.begin(crate::clock::now(), BEGAN_MS);
    ledger
}

pub const BEGAN_MS: u64 = 1_700_000_000_000;

pub const HEALTHY: Profile = Profile::Healthy { median: Duration::ZERO, p99: Duration::ZERO };

/// The body of an event, for its hash.
fn body(event: u32) -> Vec<u8> {
    format!("event {event}").into_bytes()
}

/// A history that is written by hand. Times are seconds.
pub struct History(pub Ledger);

impl History {
    pub fn new(profile: Profile) -> Self {
        Self(ledger_of(profile, 1))
    }

    /// Published, sent and confirmed on time, for account 0.
    pub fn sent(&self, event: u32, intent: u32, place: u8, at: f64) {
        self.sent_to(event, 0, intent, place, at);
    }

    pub fn sent_to(&self, event: u32, account: u32, intent: u32, place: u8, at: f64) {
        self.unconfirmed(event, account, intent, place, at);
        let entry = EntryId { ms: BEGAN_MS + (at * 1e3) as u64, seq: u64::from(event) };
        self.0.confirmed(&[(event, entry)]);
    }

    pub fn unconfirmed(&self, event: u32, account: u32, intent: u32, place: u8, at: f64) {
        let facts = EventFacts { number: event, account, intent, place };
        self.0.publish(&facts, us(at), body_hash(&body(event)));
        self.0.sent(&[event], us(at), Lateness::Own);
    }

    /// A request in which everything is right.
    pub fn request(event: u32, attempt: u32, at: f64) -> Arrival {
        Arrival {
            endpoint: 0,
            event: Some(event),
            generation: 0,
            body_hash: body_hash(&body(event)),
            attempt,
            sequence: 1000 + u64::from(event),
            timestamp_ms: Some((at * 1e3) as i64),
            bad_signature: None,
            bad_header: None,
        }
    }

    pub fn arrives(&self, event: u32, attempt: u32, at: f64) -> Ticket {
        self.0.arrive(&Self::request(event, attempt, at), us(at)).ticket.unwrap()
    }

    /// Arrives and is answered at once.
    pub fn answered(&self, event: u32, attempt: u32, answer: Answer, at: f64) {
        let ticket = self.arrives(event, attempt, at);
        self.answer(&ticket, answer, at);
    }

    pub fn answer(&self, ticket: &Ticket, answer: Answer, at: f64) {
        self.0.answer(ticket, answer, us(at));
        if answer == Answer::Yes {
            self.0.written(ticket, true, us(at));
        }
    }

    pub fn delivered(&self, event: u32, at: f64) {
        self.answered(event, 1, Answer::Yes, at);
    }

    fn suspicions(&self) -> Vec<Suspicion> {
        self.0.lock().books.incidents.iter().map(|incident| incident.suspicion).collect()
    }
}

pub fn us(seconds: f64) -> u64 {
    (seconds * 1e6).round() as u64
}

#[test]
fn a_delivery_takes_about_a_hundred_bytes() {
    let bytes = size_of::<EventBook>() + size_of::<DeliveryBook>() + size_of::<[u32; MAX_STEPS]>() / 2;
    assert!(bytes <= 104, "{bytes}");
}

#[test]
fn a_clean_life_of_an_intent_raises_no_suspicion() {
    let history = History::new(HEALTHY);
    for place in 0..3 {
        history.sent(u32::from(place), 0, place, f64::from(place));
        history.delivered(place.into(), f64::from(place) + 0.002);
    }
    assert_eq!(history.suspicions(), []);
    let progress = history.0.progress();
    assert_eq!((progress.intended, progress.confirmed, progress.acknowledged), (3, 3, 3));
    let recent = progress.recent.unwrap();
    assert_eq!((progress.outstanding, recent.count), (Outstanding::default(), 3));
    assert!((1_990..2_010).contains(&recent.p50_us), "{progress:?}");
    let profile = progress.profiles[0];
    assert_eq!((profile.acknowledged, profile.outstanding, profile.recent), (3, 0, Some(recent)));
    assert_eq!(history.0.progress().recent, None);
    assert!(history.0.is_complete(0));
}

#[test]
fn an_acknowledgement_before_the_confirmation_counts_once_it_is_confirmed() {
    let history = History::new(HEALTHY);
    history.unconfirmed(0, 0, 0, 0, 0.0);
    history.delivered(0, 0.001);
    assert!(history.0.is_complete(0));
    history.unconfirmed(1, 0, 1, 0, 0.0);
    history.0.confirmed(&[(0, EntryId::ZERO), (1, EntryId::ZERO), (1, EntryId::ZERO)]);
    assert_eq!(history.0.outstanding(), Outstanding { alive: 1, hopeless: 0 });
    history.delivered(1, 0.001);
    assert!(history.0.is_complete(0));
}

#[test]
fn what_a_hopeless_endpoint_is_owed_is_complete_as_dead_letters() {
    let history = History::new(Profile::Failing);
    history.sent(0, 0, 0, 0.0);
    assert_eq!(history.0.outstanding(), Outstanding { alive: 0, hopeless: 1 });
    assert!(!history.0.is_complete(0) && history.0.is_complete(1));
}

#[test]
fn an_answer_that_comes_after_the_time_for_it_acknowledges_nothing() {
    let history = History::new(HEALTHY);
    history.sent(0, 0, 0, 0.0);
    let ticket = history.arrives(0, 1, 0.0);
    history.answer(&ticket, Answer::Yes, 2.0);
    assert!(!history.0.is_complete(0));
    let broken = history.arrives(0, 2, 3.0);
    history.0.answer(&broken, Answer::Yes, us(3.0));
    history.0.written(&broken, false, us(3.0));
    assert!(!history.0.is_complete(0));
    history.answered(0, 3, Answer::Yes, 5.0);
    assert!(history.0.is_complete(0));
}

#[test]
fn an_answer_to_an_older_arrival_does_not_end_the_newer_one() {
    let history = History::new(HEALTHY);
    history.sent(0, 0, 0, 0.0);
    let (old, new) = (history.arrives(0, 1, 0.0), history.arrives(0, 1, 0.1));
    history.answer(&old, Answer::Abandoned, 0.2);
    assert_eq!(history.0.lock().books.deliveries[0].last, books::Last::InFlight);
    history.answer(&new, Answer::Yes, 0.3);
    assert!(history.0.is_complete(0));
}

#[test]
fn late_events_are_the_generators_doing_unless_they_are_excused() {
    let history = History::new(HEALTHY);
    for (event, lateness) in [(0, Lateness::Own), (1, Lateness::Excused)] {
        let facts = EventFacts { number: event, account: 0, intent: event, place: 0 };
        history.0.publish(&facts, 0, 0);
        history.0.sent(&[event], us(0.5), lateness);
    }
    history.sent(2, 2, 0, 0.5);
    assert_eq!((history.0.progress().late, history.0.progress().sent), (1, 3));
}

#[test]
fn a_retry_leaves_how_late_it_was_unless_the_lane_may_have_been_shut() {
    let lateness = |profile: Profile, answer| {
        let history = History::new(profile);
        history.sent(0, 0, 0, 0.0);
        history.answered(0, 1, answer, 1.0);
        // The earliest is 250 ms less 20 %.
        history.answered(0, 2, Answer::Yes, 1.210);
        let state = history.0.lock();
        (state.retry_lateness.len(), state.retry_lateness.max())
    };
    let (count, most) = lateness(Profile::Flaky { p: 0.5 }, Answer::Refused);
    assert_eq!(count, 1);
    assert!((9_990..=10_010).contains(&most), "{most}");
    assert_eq!(lateness(Profile::Flaky { p: 0.5 }, Answer::Throttled).0, 0);
}

#[test]
fn the_pauses_of_a_policy_are_those_of_its_jitter() {
    let ledger = ledger_of(HEALTHY, 1);
    let pauses: Vec<_> = (1..=6).map_while(|attempt| ledger.pause_us(attempt)).collect();
    let ms = |shortest: u64, longest: u64| (shortest * 1000, longest * 1000);
    assert_eq!(pauses, [ms(200, 300), ms(400, 600), ms(800, 1200), ms(1600, 2400), ms(1600, 2400)]);
}

#[test]
fn endpoints_of_one_account_have_books_of_their_own() {
    let history = History(ledger_of(HEALTHY, 2));
    history.sent_to(0, 1, 0, 0, 0.0);
    let at = |endpoint| Arrival { endpoint, ..History::request(0, 1, 0.0) };
    let first = history.0.arrive(&at(2), 10).ticket.unwrap();
    history.answer(&first, Answer::Yes, 0.001);
    assert_eq!(history.0.outstanding(), Outstanding { alive: 1, hopeless: 0 });
    let second = history.0.arrive(&at(3), 20).ticket.unwrap();
    history.answer(&second, Answer::Yes, 0.001);
    assert!(history.0.is_complete(0) && history.suspicions().is_empty());
    // Of another account.
    assert!(history.0.arrive(&at(0), 30).ticket.is_none());
    assert_eq!(history.suspicions(), [Suspicion::Unknown]);
}

#[test]
fn incidents_beyond_their_limit_are_counted() {
    let ledger = ledger_of(HEALTHY, 1);
    for at in 0..books::MAX_INCIDENTS as u64 + 5 {
        ledger.redirect_followed(0, at);
    }
    let state = ledger.lock();
    assert_eq!(state.books.incidents.len(), books::MAX_INCIDENTS);
    assert_eq!(state.books.left_out[Suspicion::Redirected as usize], 5);
}

#[test]
fn what_was_reset_may_come_once_more_within_its_attempt() {
    let repeated = |profile| {
        let history = History::new(profile);
        history.sent(0, 0, 0, 0.0);
        (1..=3).for_each(|time| history.answered(0, 1, Answer::Broken, f64::from(time) / 10.0));
        history.suspicions()
    };
    assert_eq!(repeated(Profile::Resetting), [Suspicion::Repeated]);
    // In these cases the client has seen the beginning of an answer.
    assert_eq!(repeated(Profile::Truncating), [Suspicion::Repeated; 2]);
}
