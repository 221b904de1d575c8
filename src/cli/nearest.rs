//! What somebody may mean who types another system's word. Letters alone do not lead from `dlq` to `dead-letter`, so what they
//! lead to is left to clap, and the words that operators bring along are here.

use clap::{
    Command, Error,
    error::{ContextKind, ContextValue, ErrorKind},
};

/// Other systems' words, and verbs that mean the same; the first one that there is in that place counts.
const WORDS: &[(&[&str], &[&str])] = &[
    (&["dlq", "dlx", "dl", "deadletter", "dead-letters", "dead", "letters", "failed", "failures"], &["dead-letter"]),
    (&["retry", "replay", "resend", "again", "requeue", "redrive"], &["redeliver", "requeue", "replay", "dead-letter"]),
    (&["purge", "drop", "rm", "remove", "del", "erase"], &["discard", "delete", "revoke"]),
    (&["ls", "all", "index"], &["list"]),
    (&["get", "describe", "inspect", "cat", "view", "info"], &["show", "explain"]),
    (&["add", "new", "register", "make"], &["create", "publish"]),
    (&["edit", "set", "change", "patch"], &["update"]),
    (&["dump", "backup"], &["export"]),
    (&["restore", "load"], &["import"]),
    (&["skip", "unblock"], &["release"]),
    (&["rotate", "roll"], &["rotate-secret"]),
    (&["ping", "check", "try"], &["test", "doctor"]),
    (&["webhook", "webhooks", "endpoints", "subscription", "subscriptions", "receiver", "receivers"], &["endpoint"]),
    (&["message", "messages", "msg", "events", "stream", "publish"], &["event"]),
    (&["attempt", "attempts", "log", "logs", "deliveries"], &["delivery"]),
    (&["status", "health", "diagnose", "info", "stats"], &["doctor"]),
    (&["start", "run", "worker", "server", "daemon"], &["serve"]),
    (&["stop", "halt"], &["pause"]),
    (&["continue", "unpause"], &["resume"]),
    (&["poison", "invalid"], &["quarantine"]),
    (&["payment", "payments", "pi", "key", "keys"], &["intents"]),
    (&["manual", "manpage"], &["man"]),
];

/// What it means comes before what it looks like: to clap `status` is nearest to `pause`.
pub fn suggest(command: &Command, words: &[String], mut error: Error) -> Error {
    let Some(ContextValue::String(typed)) = error.get(ContextKind::InvalidSubcommand) else { return error };
    if error.kind() != ErrorKind::InvalidSubcommand {
        return error;
    }
    if let Some(verb) = nearest(group(command, words), typed) {
        error.insert(ContextKind::SuggestedSubcommand, ContextValue::Strings(vec![verb.to_owned()]));
    }
    error
}

fn nearest(group: &Command, typed: &str) -> Option<&'static str> {
    let typed = typed.to_lowercase();
    let there = |verb: &&&str| group.find_subcommand(**verb).is_some();
    let meant = WORDS.iter().filter(|(words, _)| words.contains(&typed.as_str()));
    meant.flat_map(|(_, verbs)| verbs.iter().filter(there)).copied().next()
}

/// The innermost group of verbs that was named.
fn group<'c>(command: &'c Command, words: &[String]) -> &'c Command {
    words.iter().fold(command, |group, word| match group.find_subcommand(word) {
        Some(inner) if inner.has_subcommands() => inner,
        _ => group,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::command;

    fn said(line: &str) -> String {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let error = command().try_get_matches_from(&words).unwrap_err();
        suggest(&command(), &words[1..], error).to_string()
    }

    #[test]
    fn another_systems_word_leads_to_the_verb_of_that_place() {
        for (line, verb) in [
            ("herald dlq", "'dead-letter'"),
            ("herald dlq list", "'dead-letter'"),
            ("herald dead-letter retry", "'redeliver'"),
            ("herald dead-letter purge", "'discard'"),
            ("herald quarantine retry", "'requeue'"),
            ("herald endpoint rm", "'delete'"),
            ("herald webhooks list", "'endpoint'"),
            ("herald status", "'doctor'"),
            ("herald --stream s endpoint ls", "'list'"),
        ] {
            let said = said(line);
            assert!(said.contains(&format!("similar subcommand exists: {verb}")), "{line}: {said}");
        }
        assert!(said("herald endpiont").contains("'endpoint'"));
        assert!(!said("herald qwertz").contains("similar"));
    }

    #[test]
    fn each_suggestion_is_a_verb() {
        fn all(command: &Command, found: &mut Vec<String>) {
            command.get_subcommands().for_each(|inner| {
                found.push(inner.get_name().to_owned());
                all(inner, found);
            });
        }
        let mut verbs = Vec::new();
        all(&command(), &mut verbs);
        for verb in WORDS.iter().flat_map(|(_, verbs)| *verbs) {
            assert!(verbs.iter().any(|known| known == verb), "{verb} is no verb");
        }
    }
}
