//! Reports what an operator has opened in the address guard: any merchant's URL may lead there. Pure.

use super::finding::{Finding, Level};
use crate::config::GuardConfig;

pub fn judge(guard: &GuardConfig) -> Finding {
    let list = |name: &str, items: Vec<String>| (!items.is_empty()).then(|| format!("{name} {}", items.join(", ")));
    let open: Vec<String> = [
        guard.allow_http.then(|| "plain http".to_owned()),
        list("networks", guard.allow_networks.iter().map(ToString::to_string).collect()),
        list("ports", guard.allow_ports.iter().map(ToString::to_string).collect()),
    ]
    .into_iter()
    .flatten()
    .collect();
    let says = match open.is_empty() {
        true => "receivers are reached by https at public addresses and nowhere else".to_owned(),
        false => format!("open to every endpoint's URL: {}", open.join("; ")),
    };
    if guard.allow_metadata {
        let says = format!("a cloud's metadata address is open, where this machine's credentials are; {says}");
        let remedy = Some("set guard.allow_metadata = false".to_owned());
        return Finding { level: Level::Warn, subject: "guard", says, remedy };
    }
    Finding { level: Level::Ok, subject: "guard", says, remedy: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_open_is_said_and_metadata_is_warned_of() {
        let closed = GuardConfig {
            allow_http: false,
            allow_networks: Vec::new(),
            allow_metadata: false,
            deny_networks: Vec::new(),
            allow_ports: Vec::new(),
        };
        assert_eq!(judge(&closed).level, Level::Ok);
        let open = GuardConfig {
            allow_http: true,
            allow_networks: vec!["10.0.0.0/8".parse().unwrap()],
            allow_ports: vec![9200, 22],
            ..closed
        };
        assert_eq!(judge(&open).says, "open to every endpoint's URL: plain http; networks 10.0.0.0/8; ports 9200, 22");
        assert_eq!(judge(&GuardConfig { allow_metadata: true, ..open }).level, Level::Warn);
    }
}
