use super::*;
use crate::loadtest::scenario::{Load, Population as Wanted, Traffic};

pub(crate) fn scenario(accounts: u32, wanted: Wanted) -> Scenario {
    Scenario {
        name: "test".into(),
        description: String::new(),
        load: Load::Drain { events: 1 },
        traffic: Traffic { accounts, ..Traffic::default() },
        endpoints: wanted,
        herald: Workers::default(),
        intents: None,
        faults: vec![],
        thresholds: vec![],
    }
}

fn share(share: f64, profile: Profile) -> ProfileShare {
    ProfileShare::of(share, profile)
}

const HEALTHY: Profile = Profile::Healthy { median: Duration::ZERO, p99: Duration::ZERO };

fn doors() -> Doors {
    let [plain, misnamed] = ["127.0.0.1:4000", "127.0.0.2:4000"].map(|address| address.parse().unwrap());
    Doors { plain, misnamed, own: Vec::new() }
}

#[test]
fn profiles_get_their_shares_exactly_and_the_seed_shuffles_them() {
    let profiles = vec![share(90.0, HEALTHY), share(7.0, Profile::Hanging), share(3.0, Profile::Failing)];
    let wanted = Wanted { profiles, tls_share: 0.5, fan_out: 2, ..Wanted::default() };
    let draw = |seed| Population::draw(&scenario(50, wanted.clone()), seed).unwrap();
    let population = draw(1);
    let count = |profile: &Profile| (0..100).filter(|at| population.profile(*at) == profile).count();
    assert_eq!((count(&HEALTHY), count(&Profile::Hanging), count(&Profile::Failing)), (90, 7, 3));
    let of = |population: &Population| (0..100).map(|at| population.profile_index(at)).collect::<Vec<_>>();
    assert_eq!(of(&population), of(&draw(1)));
    assert_ne!(of(&population), of(&draw(2)));
    let tls = (0..100).filter(|at| population.url(*at, &doors()).starts_with("https")).count();
    assert!((49..=51).contains(&tls), "{tls}");
}

#[test]
fn a_small_population_still_has_one_of_each_profile() {
    let shares = [share(0.97, HEALTHY), share(0.01, Profile::Hanging), share(0.02, Profile::Failing)];
    assert_eq!(apportion(&shares, 5), [3, 1, 1]);
    assert_eq!(apportion(&shares, 1000), [970, 10, 20]);
    assert_eq!(apportion(&shares, 1).iter().sum::<usize>(), 1);
}

#[test]
fn endpoints_are_registered_as_the_scenario_says_and_found_again_by_their_ids() {
    let wanted = Wanted {
        fan_out: 2,
        idle: 3,
        max_in_flight: Some(7),
        timeout: Some(Duration::from_secs(2)),
        profiles: vec![share(1.0, Profile::HugeBody), share(1.0, Profile::BrokenTls)],
        ..Wanted::default()
    };
    let population = Population::draw(&scenario(2, wanted), 9).unwrap();
    let endpoints: Vec<Endpoint> = population.endpoints(0..population.len(), &doors(), 17).collect();
    assert_eq!((endpoints.len(), population.active(), population.len()), (7, 4, 7));
    for (number, endpoint) in endpoints.iter().enumerate() {
        assert_eq!(population.endpoint_of(endpoint.id.as_str()), Some(number as u32));
        assert_eq!((endpoint.max_in_flight, endpoint.timeout_ms), (7, Some(2000)));
        assert_eq!(endpoint.retry.max_attempts, Some(6));
    }
    assert_eq!(endpoints[0].account, endpoints[1].account);
    assert_ne!(endpoints[1].account, endpoints[2].account);
    assert_eq!(endpoints[2].account.as_str(), population.account_id(1));
    assert_ne!(endpoints[0].secrets[0].value, endpoints[1].secrets[0].value);
    let broken: Vec<&Endpoint> = endpoints.iter().filter(|e| e.url.starts_with("https://127.0.0.2:4000/")).collect();
    assert_eq!(broken.len(), 2);
    assert!(broken.iter().all(|endpoint| endpoint.id.as_str().ends_with("_broken-tls")));
    assert_eq!(population.endpoint_of("ep_somebody_else"), None);
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    let refused = |accounts, wanted| Population::draw(&scenario(accounts, wanted), 1).unwrap_err();
    assert_eq!(refused(0, Wanted::default()), PopulationError::NoAccounts);
    assert_eq!(refused(1, Wanted { fan_out: 0, ..Wanted::default() }), PopulationError::FanOut(0));
    assert!(matches!(refused(1, Wanted { idle: u32::MAX, ..Wanted::default() }), PopulationError::TooMany(_)));
    assert!(matches!(
        refused(1, Wanted { tls_share: 1.5, ..Wanted::default() }),
        PopulationError::Share { what: "endpoints.tls_share", .. }
    ));
    let none = vec![share(0.0, HEALTHY)];
    assert_eq!(refused(1, Wanted { profiles: none, ..Wanted::default() }), PopulationError::Profiles);
    let flaky = vec![share(1.0, Profile::Flaky { p: 2.0 })];
    assert!(matches!(
        refused(1, Wanted { profiles: flaky, ..Wanted::default() }),
        PopulationError::Profile { profile: "flaky", .. }
    ));
}

#[test]
fn the_workers_settings_decide_what_is_judged() {
    let mut scenario = scenario(1, Wanted::default());
    assert_eq!(Population::draw(&scenario, 1).unwrap().terms().timeout, ATTEMPT_TIMEOUT);
    scenario.herald.settings =
        [("attempt.timeout", "3s"), ("lease.ttl", "2s")].map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let terms = Population::draw(&scenario, 1).unwrap().terms().clone();
    assert_eq!((terms.timeout.as_secs(), terms.lease.as_secs()), (3, 2));
    scenario.herald.settings.insert("lease.ttl".into(), "soon".into());
    assert!(matches!(Population::draw(&scenario, 1).unwrap_err(), PopulationError::Setting { key: "lease.ttl", .. }));
}

#[test]
fn accounts_get_events_by_the_weights_of_their_receivers() {
    let weighted = |weight, profile| ProfileShare { weight, ..share(1.0, profile) };
    let profiles = vec![weighted(9.0, HEALTHY), weighted(1.0, Profile::Hanging), weighted(0.0, Profile::Failing)];
    let population = Population::draw(&scenario(3, Wanted { profiles, ..Wanted::default() }), 1).unwrap();
    let mut counts = [0; 3];
    for part in 0..1_000 {
        counts[population.profile_index(population.account_by_weight(f64::from(part) / 1_000.0))] += 1;
    }
    assert_eq!(counts, [900, 100, 0]);
}

#[test]
fn receivers_have_hosts_of_their_own_where_they_are_spread_and_doors_where_they_are_special() {
    let wanted = Wanted { hosts: 300, ..Wanted::default() };
    let population = Population::draw(&scenario(600, wanted), 1).unwrap();
    let hosts = (0..600).map(|at| population.url(at, &doors()).rsplit_once('/').unwrap().0.to_owned());
    let hosts: std::collections::HashSet<String> = hosts.collect();
    assert!(hosts.len() == 300 && hosts.contains("http://127.1.1.43:4000"), "{hosts:?}");
    let (rtt, requests, idle, reload) = (Duration::ZERO, Some(12), None, None);
    let fleeting = |http2| Profile::Fleeting { after: rtt, rtt, http2, requests, idle, reload };
    let wanted =
        Wanted { profiles: vec![share(1.0, fleeting(true)), share(1.0, fleeting(false))], ..Wanted::default() };
    let population = Population::draw(&scenario(2, wanted), 1).unwrap();
    let own = ["127.0.0.1:7001", "127.0.0.1:7002"].map(|address| Some(address.parse().unwrap())).to_vec();
    let doors = Doors { own, ..doors() };
    let mut urls = [0, 1].map(|at| population.url(at, &doors).rsplit_once('/').unwrap().0.to_owned());
    urls.sort();
    assert_eq!(urls, ["http://127.0.0.1:7002", "https://127.0.0.1:7001"]);
}
