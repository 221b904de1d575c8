//! Reports how callers of the API come in: whether others on their way can read what they send. [`judge`] is pure.

use super::{
    certificates::SOON_MS,
    finding::{Finding, Level},
};
use crate::{app::api_certificate, config::Config, surface::words::span};

/// What the certificate's files say: when it ends, milliseconds since 1970, or why they are of no use. `None` without files.
pub fn look(config: &Config) -> Option<Result<u64, String>> {
    match api_certificate(config) {
        Ok(certificate) => certificate
            .map(|certificate| Ok(certificate.end_s().and_then(|end| u64::try_from(end).ok()).unwrap_or(0) * 1000)),
        Err(error) => Some(Err(error.to_string())),
    }
}

pub fn judge(config: &Config, certificate: Option<Result<u64, String>>, now_ms: u64) -> Finding {
    let finding = |level, says: String, remedy: &str| {
        let remedy = (!remedy.is_empty()).then(|| remedy.to_owned());
        Finding { level, subject: "api", says, remedy }
    };
    let renew = "put a new one and its key into the same files: they are taken within 10 s";
    match certificate {
        Some(Err(why)) => return finding(Level::Fail, why, "mend the files: no restart of Herald would succeed"),
        Some(Ok(end_ms)) if end_ms <= now_ms => {
            let says = format!("the API's certificate has expired {} ago", span(now_ms - end_ms));
            return finding(Level::Fail, says, renew);
        }
        Some(Ok(end_ms)) => {
            let says = format!("callers are encrypted; the certificate is good for {}", span(end_ms - now_ms));
            let is_soon = end_ms - now_ms < SOON_MS;
            return finding(if is_soon { Level::Warn } else { Level::Ok }, says, if is_soon { renew } else { "" });
        }
        None => {}
    }
    let named = [("listen", Some(config.listen)), ("intents.listen", config.intents.listen)];
    let open: Vec<String> = named
        .into_iter()
        .filter_map(|(name, socket)| Some(format!("{name} = {}", socket.filter(|socket| !socket.ip().is_loopback())?)))
        .collect();
    match (open.is_empty(), config.api.trusted_proxies.is_empty()) {
        (true, _) => finding(Level::Ok, "callers are on this machine, or come by a proxy on it".to_owned(), ""),
        (false, false) => finding(Level::Ok, format!("{} is plain HTTP, for trusted_proxies", open.join(", ")), ""),
        (false, true) => finding(
            Level::Warn,
            format!("{} is plain HTTP beyond this machine: tokens and keys can be read on their way", open.join(", ")),
            "set api.certificate_file and api.key_file, or listen on 127.0.0.1 behind a proxy: docs/operations.md",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;

    const DAY_MS: u64 = 86_400_000;

    fn judged(flags: &[(&str, &str)], certificate: Option<Result<u64, String>>) -> (Level, String) {
        let flags = flags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let config = Config::load(Sources { flags, ..Sources::default() }).unwrap();
        let finding = judge(&config, certificate, 100 * DAY_MS);
        (finding.level, finding.says + &finding.remedy.unwrap_or_default())
    }

    #[test]
    fn what_is_plain_beyond_this_machine_is_warned_of() {
        for (flags, level, says) in [
            (&[][..], Level::Ok, "on this machine"),
            (&[("listen", "[::1]:8080")], Level::Ok, "on this machine"),
            (&[("listen", "0.0.0.0:8080")], Level::Warn, "listen = 0.0.0.0:8080 is plain HTTP"),
            (&[("listen", "10.0.0.7:8080")], Level::Warn, "api.certificate_file"),
            (&[("intents.listen", "[::]:8090")], Level::Warn, "intents.listen = [::]:8090"),
            (&[("listen", "0.0.0.0:8080"), ("api.trusted_proxies", "10.0.0.7")], Level::Ok, "for trusted_proxies"),
        ] {
            let (found, said) = judged(flags, None);
            assert!(found == level && said.contains(says), "{flags:?}: {said}");
        }
    }

    #[test]
    fn a_certificate_is_told_of_before_it_ends() {
        for (end, level, says) in [
            (Ok(200 * DAY_MS), Level::Ok, "good for"),
            (Ok(113 * DAY_MS), Level::Warn, "put a new one"),
            (Ok(99 * DAY_MS), Level::Fail, "expired"),
            (Err("cannot read x".to_owned()), Level::Fail, "cannot read x"),
        ] {
            let (found, said) = judged(&[("listen", "0.0.0.0:1")], Some(end));
            assert!(found == level && said.contains(says), "{said}");
        }
    }
}
