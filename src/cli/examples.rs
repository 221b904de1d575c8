//! An example for each verb, below its help and in its man page: what an operator types most often, complete enough to be
//! changed and run. A test parses all of them, and sees that none is broken over two lines.

use clap::{Command, builder::StyledStr};

/// By the verb, without `herald`.
const EXAMPLES: &[(&str, &[&str])] = &[
    ("partition list", &["herald partition list", "herald partition list -o json"]),
    ("partition show", &["herald partition show payment-intents:6"]),
    ("partition of", &["herald partition of acc_1"]),
    ("worker list", &["herald worker list"]),
    ("serve", &["herald serve --config /etc/herald/herald.toml", "herald serve --redis-url redis://10.0.0.5:6379"]),
    ("demo", &["herald demo", "herald demo --for 20s", "herald demo --incident"]),
    ("intents serve", &["herald intents serve --set intents.listen=127.0.0.1:8090"]),
    (
        "intents key create",
        &["herald intents key create --account acc_1 --name till", "herald intents key create --account acc_1 -o json"],
    ),
    ("intents key list", &["herald intents key list --account acc_1"]),
    ("intents key revoke", &["herald intents key revoke 1f0c9a7e"]),
    ("intents explain", &["herald intents explain pi_sandbox_1"]),
    (
        "intents replay",
        &[
            "herald intents replay pi_sandbox_1 --endpoint ep_1 --dry-run",
            "herald intents replay pi_sandbox_1 --endpoint ep_1 --from evt_1",
        ],
    ),
    ("trigger", &["herald trigger --account acc_1", "herald trigger --account acc_1 --status Refunded --amount 2500"]),
    ("sandbox clock show", &["herald sandbox clock show"]),
    (
        "sandbox clock advance",
        &["herald sandbox clock advance 7d", "herald sandbox clock advance --to 2027-01-01T00:00:00Z"],
    ),
    ("sandbox clock speed", &["herald sandbox clock speed 60"]),
    (
        "sandbox run",
        &[
            "herald sandbox run docs/scenarios/purchase-and-refund.yaml --key-file key",
            "herald sandbox run scenario.yaml --format junit",
        ],
    ),
    ("plan", &["herald plan --rate 10000000/m --endpoints 50000", "herald plan --rate 500/s --https -o json"]),
    (
        "repartition",
        &[
            "herald repartition --into 64 --reason 'more than one worker can do' --dry-run",
            "herald repartition --stream payment-intents:6 --into 4 --reason 'hot'",
            "herald repartition --cancel --reason 'not now'",
        ],
    ),
    ("pause", &["herald pause --all --reason 'the network to all receivers is down'"]),
    ("resume", &["herald resume --all --reason 'the network is back'"]),
    (
        "endpoint create",
        &[
            "herald endpoint create --account acc_1 --url https://shop.example/hooks",
            "herald endpoint create --account acc_1 --url https://a.test --secret-file key",
            "herald endpoint create --account acc_1 --url https://a.test --headers-file -",
        ],
    ),
    ("key generate", &["herald key generate --file /etc/herald/keys", "herald key generate"]),
    ("key status", &["herald key status", "herald key status -o json"]),
    ("key reseal", &["herald key reseal --dry-run", "herald key reseal --reason 'sealed from today on'"]),
    (
        "key rotate",
        &[
            "herald key rotate --file /etc/herald/keys --reason 'yearly'",
            "herald key rotate --file /etc/herald/keys --reason 'leaked' --drop-old",
        ],
    ),
    ("key unseal", &["herald key unseal --yes --reason 'back to the version before'"]),
    ("endpoint list", &["herald endpoint list", "herald endpoint list --account acc_1 --state paused -o json"]),
    ("endpoint show", &["herald endpoint show ep_1"]),
    (
        "endpoint update",
        &[
            "herald endpoint update ep_1 --url https://shop.example/new --reason 'moved'",
            "herald endpoint update ep_1 --max-in-flight 2 --rate-limit 5 --reason small",
            "herald endpoint update ep_1 --tls-ca-file their-ca.pem --reason 'own CA'",
        ],
    ),
    ("endpoint pause", &["herald endpoint pause ep_1 --reason 'the merchant deploys'"]),
    ("endpoint resume", &["herald endpoint resume ep_1 --reason 'deployed'"]),
    ("endpoint enable", &["herald endpoint enable ep_1 --reason 'the shop is open again'"]),
    (
        "endpoint disable",
        &["herald endpoint disable ep_1 --dry-run", "herald endpoint disable ep_1 --reason 'closed' --yes"],
    ),
    (
        "endpoint delete",
        &["herald endpoint delete ep_1 --dry-run", "herald endpoint delete ep_1 --reason 'the merchant left' --yes"],
    ),
    (
        "endpoint rotate-secret",
        &[
            "herald endpoint rotate-secret ep_1 --reason 'yearly'",
            "herald endpoint rotate-secret ep_1 --overlap 0s --reason 'it leaked' --yes",
        ],
    ),
    ("endpoint test", &["herald endpoint test ep_1", "herald endpoint test ep_1 --event-type payment_intent.created"]),
    (
        "endpoint export",
        &[
            "herald endpoint export --file backup.json",
            "herald endpoint export --file clear.json --reveal --reason 'moves away'",
        ],
    ),
    (
        "endpoint import",
        &[
            "herald endpoint import backup.json --dry-run",
            "herald endpoint import backup.json --reason 'restored' --yes",
        ],
    ),
    ("endpoint accept-registry", &["herald endpoint accept-registry --reason 'made anew after the loss'"]),
    (
        "event publish",
        &[
            "herald event publish events.json",
            "herald event publish --sample --account acc_1 --status Captured -o json",
        ],
    ),
    ("event show", &["herald event show evt_1", "herald event show 1795336091993-0"]),
    (
        "delivery list",
        &[
            "herald delivery list --intent pi_1",
            "herald delivery list --event evt_1",
            "herald delivery list --endpoint ep_1 --limit 500",
            "herald delivery list --account acc_1 --since 8d --until 7d",
        ],
    ),
    ("delivery show", &["herald delivery show 1795336091993-0:ep_1"]),
    ("story", &["herald story pi_sandbox_1", "herald story pi_sandbox_1 -o json"]),
    ("chain list", &["herald chain list --endpoint ep_1"]),
    ("chain show", &["herald chain show --endpoint ep_1 --intent pi_1"]),
    (
        "chain release",
        &[
            "herald chain release --endpoint ep_1 --intent pi_1 --dry-run",
            "herald chain release --endpoint ep_1 --intent pi_1 --reason 'not readable'",
        ],
    ),
    (
        "dead-letter list",
        &[
            "herald dead-letter list --group-by endpoint,cause",
            "herald dead-letter list --endpoint ep_1 --newer-than 6h",
        ],
    ),
    ("dead-letter show", &["herald dead-letter show 1795336091993-0:ep_1"]),
    (
        "dead-letter redeliver",
        &[
            "herald dead-letter redeliver 1795336091993-0:ep_1 --reason 'receiver mended'",
            "herald dead-letter redeliver --endpoint ep_1 --newer-than 6h --dry-run",
        ],
    ),
    (
        "dead-letter discard",
        &[
            "herald dead-letter discard --endpoint ep_1 --older-than 7d --dry-run",
            "herald dead-letter discard --endpoint ep_1 --older-than 7d --reason left --yes",
        ],
    ),
    (
        "operation plan",
        &[
            "herald operation plan redeliver --endpoint ep_1 --since 6h --reason up",
            "herald operation plan discard --account acc_1 --until 7d --reason left",
            "herald operation plan replay --endpoint ep_1 --since 2d --reason 'db lost'",
            "herald operation plan erase --account acc_1 --reason 'asked for it'",
        ],
    ),
    ("operation start", &["herald operation start op_019ac5bf3e1f3d8a21c04be7a19 --watch"]),
    ("operation pause", &["herald operation pause op_019ac5bf3e1f3d8a21c04be7a19"]),
    ("operation resume", &["herald operation resume op_019ac5bf3e1f3d8a21c04be7a19"]),
    ("operation cancel", &["herald operation cancel op_019ac5bf3e1f3d8a21c04be7a19"]),
    ("operation rate", &["herald operation rate op_019ac5bf3e1f3d8a21c04be7a19 20"]),
    ("operation list", &["herald operation list", "herald operation list --limit 100 -o json"]),
    ("operation show", &["herald operation show op_019ac5bf3e1f3d8a21c04be7a19"]),
    ("operation results", &["herald operation results op_019ac5bf3e1f3d8a21c04be7a19 -o jsonl"]),
    ("operation watch", &["herald operation watch op_019ac5bf3e1f3d8a21c04be7a19"]),
    ("dead-letter export", &["herald dead-letter export --account acc_1 --newer-than 7d"]),
    ("issue list", &["herald issue list", "herald issue list --account acc_1 --all"]),
    ("issue show", &["herald issue show ep_1:server_failed:500"]),
    ("issue ack", &["herald issue ack ep_1:server_failed:500 --reason 'told the merchant'"]),
    ("issue resolve", &["herald issue resolve ep_1:server_failed:500 --reason 'they deployed a fix'"]),
    ("audit list", &["herald audit list --since 2d", "herald audit list --act 'endpoint disable' --endpoint ep_1"]),
    ("audit show", &["herald audit show 1795336091993-0"]),
    (
        "token create",
        &[
            "herald token create --role viewer --name grafana --expires-in 90d",
            "herald token create --role merchant --account acc_1 --name shop",
        ],
    ),
    ("token list", &["herald token list"]),
    ("token revoke", &["herald token revoke 1f0c9a7e"]),
    (
        "portal link",
        &[
            "herald portal link --account acc_1 --reason 'ticket 4711'",
            "herald portal link --account acc_1 --console https://h.example --reason 4711",
        ],
    ),
    ("quarantine list", &["herald quarantine list"]),
    ("quarantine show", &["herald quarantine show 1795336091993-0"]),
    ("quarantine requeue", &["herald quarantine requeue 1795336091993-0 --reason 'Herald was too old'"]),
    ("quarantine discard", &["herald quarantine discard --all --reason 'the producer is mended' --yes"]),
    ("retry-schedule", &["herald retry-schedule", "herald retry-schedule --endpoint ep_1 --retry-max-attempts 5"]),
    (
        "listen",
        &[
            "herald listen --key-file key --forward-to http://127.0.0.1:3000/webhooks",
            "herald listen --listen 127.0.0.1:9000 --secret-file secret --format json",
        ],
    ),
    (
        "verify",
        &["herald verify body.json --headers-file headers --secret-file secret", "herald verify --secret-file secret"],
    ),
    (
        "doctor",
        &[
            "herald doctor",
            "herald doctor -o json",
            "herald doctor --print-acl",
            "herald doctor --print-acl --role viewer",
            "herald doctor --rollback-to 0.1.0",
        ],
    ),
    ("healthcheck", &["herald healthcheck", "herald healthcheck --ready"]),
    ("config show", &["herald config show", "herald config show -o json"]),
    ("config check", &["herald config check --config /etc/herald/herald.toml"]),
    ("version", &["herald version", "herald version -o json"]),
    ("completions", &["herald completions bash"]),
    ("man", &["herald man", "herald man /usr/local/share/man/man1"]),
];

/// Those of one verb, without `herald`.
pub fn of(verb: &str) -> &'static [&'static str] {
    EXAMPLES.iter().find(|(name, _)| *name == verb).map_or(&[], |(_, examples)| examples)
}

/// Puts them below what the help of each verb says otherwise.
pub fn add_to(command: Command) -> Command {
    EXAMPLES.iter().fold(command, |command, (verb, examples)| {
        let mut words = verb.split(' ');
        below(command, &mut words, examples)
    })
}

fn below<'w>(command: Command, words: &mut impl Iterator<Item = &'w str>, examples: &[&str]) -> Command {
    match words.next() {
        // Another build has this verb.
        Some(word) if command.find_subcommand(word).is_none() => command,
        Some(word) => command.mut_subcommand(word, |inner| below(inner, words, examples)),
        None => {
            let title = if examples.len() == 1 { "Example" } else { "Examples" };
            let lines: Vec<String> = examples.iter().map(|example| format!("  {example}")).collect();
            let mut text = format!("{title}:\n{}", lines.join("\n"));
            if let Some(more) = command.get_after_help() {
                text = format!("{more}\n\n{text}");
            }
            command.after_help(StyledStr::from(text))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::command;

    /// As a shell takes them.
    fn words(example: &str) -> Vec<String> {
        let parts = example.split('\'').enumerate();
        let words = parts.flat_map(|(at, part)| match at % 2 {
            0 => part.split_whitespace().map(str::to_owned).collect(),
            _ => vec![part.to_owned()],
        });
        words.collect()
    }

    #[test]
    fn each_example_is_of_its_verb_and_would_run() {
        // A build without the demo has no such verb.
        let is_there = |verb: &str| command().find_subcommand(verb.split(' ').next().unwrap_or_default()).is_some();
        for (verb, examples) in EXAMPLES.iter().filter(|(verb, _)| is_there(verb)) {
            for example in *examples {
                assert!(example.starts_with(&format!("herald {verb}")), "{example} is not of {verb}");
                assert!(example.len() <= 78, "{example} does not fit 80 columns");
                if let Err(error) = command().try_get_matches_from(words(example)) {
                    panic!("{example}: {error}");
                }
            }
        }
    }
}
