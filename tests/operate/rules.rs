//! The alerts that come with Herald: Prometheus takes them, each fires where it should and only there, and each has a runbook
//! whose commands exist.

use std::{collections::BTreeSet, fs, path::PathBuf};

use crate::prometheus::{promtool, rules};

fn file(path: &str) -> String {
    fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

fn alerts() -> Vec<String> {
    rules().lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).map(str::to_owned).collect()
}

#[test]
fn prometheus_takes_the_rules_and_they_pass_their_tests() {
    let said = promtool(&["check", "rules", "deploy/prometheus/herald.rules.yml"], b"").unwrap();
    assert!(said.contains(&format!("{} rules found", alerts().len())), "{said}");
    promtool(&["test", "rules", "deploy/prometheus/herald.rules.test.yml"], b"").unwrap();
}

#[test]
fn a_rule_that_compares_otherwise_fails_its_test() {
    let folder = tempfile::tempdir().unwrap();
    let test = folder.path().join("herald.rules.test.yml");
    fs::write(&test, file("deploy/prometheus/herald.rules.test.yml")).unwrap();
    for (right, wrong) in
        [("_lag_seconds) > 60\n", "_lag_seconds) >= 60\n"), (" > 0.8\n", " >= 0.8\n"), ("> 0.5\n", ">= 0.5\n")]
    {
        assert!(rules().contains(right), "{right}");
        fs::write(folder.path().join("herald.rules.yml"), rules().replace(right, wrong)).unwrap();
        let said = promtool(&["test", "rules", test.to_str().unwrap()], b"").unwrap_err();
        assert!(said.contains("FAILED"), "{said}");
    }
}

#[test]
fn each_alert_is_tested_to_fire_and_to_be_silent() {
    let tests = file("deploy/prometheus/herald.rules.test.yml");
    for alert in alerts() {
        let of_it = format!("        alertname: {alert}\n        exp_alerts:");
        let ends: Vec<&str> = tests.split(&of_it).skip(1).map(|rest| rest.lines().next().unwrap()).collect();
        assert_eq!(ends, ["", " []"], "{alert}");
    }
}

#[test]
fn each_alert_has_a_runbook_and_what_it_says_to_type_exists() {
    let (rules, runbooks) = (rules(), file("docs/runbooks.md"));
    let alerts = alerts();
    let sections: Vec<&str> = runbooks.split("\n### ").skip(1).collect();
    let named: Vec<&str> = sections.iter().map(|section| section.lines().next().unwrap()).collect();
    assert_eq!(named, alerts);
    for (section, alert) in sections.iter().zip(&alerts) {
        let rule = rules.split(&format!("- alert: {alert}\n")).nth(1).unwrap().split("- alert: ").next().unwrap();
        assert!(rule.contains(&format!("runbook_url: docs/runbooks.md#{}\n", alert.to_lowercase())), "{alert}");
        for part in ["summary: ", "description: ", "severity: "] {
            assert!(rule.contains(part), "{alert} has no {part}");
        }
        let blocks: Vec<&str> = section.split("```\n").skip(1).step_by(2).collect();
        assert!(!blocks.is_empty(), "{alert} has no command");
        let typed: BTreeSet<&str> = blocks.iter().flat_map(|block| block.lines()).collect();
        for line in &typed {
            parses(line);
        }
        let first = rule.split("First: ").nth(1).unwrap_or_else(|| panic!("{alert} says no first command"));
        let first = first.split("runbook_url").next().unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(blocks[0].lines().next(), Some(first.as_str()), "{alert}");
    }
}

fn parses(line: &str) {
    let words = line.replace("\"TEXT\"", "TEXT");
    if let Err(error) = herald::cli::command().try_get_matches_from(words.split(' ')) {
        panic!("{line}: {error}");
    }
}

#[test]
#[should_panic(expected = "unrecognized subcommand")]
fn a_command_that_does_not_exist_is_found() {
    parses("herald dead-letter groups");
}
