//! What is in deploy/ for those who run Herald, as far as judges can read it: `make operate` runs it too. `make setup` installs the
//! judges; where one cannot be had, its test says so by its name and passes.

use std::{
    collections::BTreeSet,
    fs, io,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A judge of PyPI's.
fn python(judge: &str) -> PathBuf {
    root().join("target/verifiers/operate/bin").join(judge)
}

/// What a judge says of the files in this folder; none where it is not there.
fn judged(judge: impl AsRef<Path>, arguments: &[&str]) -> Option<Output> {
    let judge = judge.as_ref();
    match Command::new(judge).args(arguments).current_dir(root()).output() {
        Ok(output) => Some(output),
        Err(_) => {
            // Not by eprintln!, which a test that passes keeps to itself.
            let _ = writeln!(io::stderr(), "SKIPPED: not installed here: {} (deploy/setup-operate)", judge.display());
            None
        }
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

const UNIT: &str = "deploy/systemd/herald.service";

#[test]
fn the_unit_gives_away_next_to_nothing() {
    let Some(output) = judged("systemd-analyze", &["security", "--offline=true", "--threshold=15", UNIT]) else {
        return;
    };
    assert!(output.status.success(), "{}", said(&output));
    // The judge sees what is missing.
    let folder = tempfile::tempdir().unwrap();
    let open = folder.path().join("herald.service");
    fs::write(&open, text(UNIT).replace("CapabilityBoundingSet=\n", "").replace("DynamicUser=yes\n", "")).unwrap();
    let arguments = ["security", "--offline=true", "--threshold=15", open.to_str().unwrap()];
    assert!(!judged("systemd-analyze", &arguments).unwrap().status.success());
}

#[test]
fn systemd_knows_every_setting_of_the_unit() {
    let folder = tempfile::tempdir().unwrap();
    let unit = folder.path().join("herald.service");
    // The program is not installed here.
    let verify = |text: String| {
        fs::write(&unit, text.replace("/usr/bin/herald", env!("CARGO_BIN_EXE_herald"))).unwrap();
        judged("systemd-analyze", &["verify", "--man=no", unit.to_str().unwrap()])
    };
    let Some(output) = verify(text(UNIT)) else { return };
    assert_eq!((output.status.success(), said(&output).as_str()), (true, ""));
    assert_ne!(said(&verify(text(UNIT).replace("UMask=", "UMasc=")).unwrap()), "");
}

/// What a stop may take by the configuration must be less than what systemd waits for it.
#[test]
fn a_stop_ends_by_itself_before_systemd_ends_it() {
    let value = |text: &str, key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_else(|| panic!("no {key}"));
        line.trim_matches(['"', 's']).parse::<u64>().unwrap()
    };
    // And the last calls to Redis after it.
    let stop = value(&text("deploy/herald.toml"), "grace = ") + 6;
    assert!(stop < value(&text(UNIT), "TimeoutStopSec="), "{stop}");
}

#[test]
fn the_image_is_described_as_it_should_be() {
    let dockerfile = "deploy/image/Dockerfile";
    let Some(output) = judged(python("hadolint"), &[dockerfile]) else { return };
    assert_eq!((output.status.success(), said(&output).as_str()), (true, ""));
}

/// `deploy/image/build` makes the last stage of the Dockerfile from its own text: that must be all there is to it.
#[test]
fn the_last_stage_of_the_image_needs_nothing_but_what_is_laid_out_for_it() {
    let dockerfile = text("deploy/image/Dockerfile");
    let (_, last) = dockerfile.split_once("\nFROM scratch\n").unwrap();
    assert!(last.contains("\nCOPY --from=build /rootfs /\n"), "deploy/image/build replaces this line");
    assert_eq!(last.matches("--from").count(), 1);
    assert!(!last.contains("\nRUN "), "there is no shell in it");
    for line in ["USER 65532:65532", "STOPSIGNAL SIGTERM", "ENTRYPOINT [\"/usr/bin/herald\"]", "CMD [\"serve\"]"] {
        assert!(last.lines().any(|is| is == line), "{line}");
    }
}

const COMPOSE: &str = "deploy/compose/compose.yaml";

#[test]
fn the_compose_file_is_what_compose_takes() {
    let schema = ["--builtin-schema", "vendor.compose-spec"];
    let Some(output) = judged(python("check-jsonschema"), &[&schema[..], &[COMPOSE]].concat()) else { return };
    assert!(output.status.success(), "{}", said(&output));
    let folder = tempfile::tempdir().unwrap();
    let wrong = folder.path().join("compose.yaml");
    fs::write(&wrong, text(COMPOSE).replace("cap_drop:", "cap_dorp:")).unwrap();
    let arguments = [&schema[..], &[wrong.to_str().unwrap()]].concat();
    assert!(!judged(python("check-jsonschema"), &arguments).unwrap().status.success());
}

/// What remains is meant: no registry was asked for digests, the tag of Herald's own image is yours, and a limit of processor time
/// would hold up deliveries while the machine has time to spare.
#[test]
fn the_compose_file_gives_away_next_to_nothing() {
    let meant = ["0004", "0019", "0026"];
    let Some(output) = judged(python("compose-lint"), &["check", COMPOSE]) else { return };
    let page = said(&output);
    let found: Vec<&str> = page.lines().filter_map(|line| line.split_once(" CL-")?.1.get(..4)).collect();
    assert!(output.status.success() && !found.is_empty(), "{}", said(&output));
    assert!(found.iter().all(|rule| meant.contains(rule)), "{}", said(&output));
}

#[test]
fn the_compose_file_has_nothing_twice() {
    let dclint = root().join("target/verifiers/operate-node/node_modules/.bin/dclint");
    let Some(output) = judged(&dclint, &["--quiet", COMPOSE]) else { return };
    assert!(output.status.success(), "{}", said(&output));
}

/// What of the dashboard Grafana would not know, and what it would miss, by the types that it is written with. Grafana itself is not asked.
#[test]
fn grafana_knows_every_field_of_the_dashboard() {
    let node = root().join("target/verifiers/operate-node");
    let folder = tempfile::tempdir_in(root().join("target")).unwrap();
    let judged = |dashboard: &str| {
        let file = folder.path().join("dashboard.ts");
        let begins = "import type { Dashboard } from '@grafana/schema';\nexport const dashboard: Dashboard =";
        fs::write(&file, format!("{begins} {dashboard};\n")).unwrap();
        // Where its imports are looked for.
        let modules = folder.path().join("node_modules");
        if !modules.exists() {
            std::os::unix::fs::symlink(node.join("node_modules"), &modules).unwrap();
        }
        let options = "--noEmit --strict --skipLibCheck --module esnext --moduleResolution bundler";
        let mut words: Vec<&str> = options.split(' ').collect();
        words.push(file.to_str().unwrap());
        judged(node.join("node_modules/.bin/tsc"), &words)
    };
    let dashboard = text("deploy/grafana/herald.json");
    let Some(output) = judged(&dashboard) else { return };
    assert!(output.status.success(), "{}", said(&output));
    // The judge sees a misspelt field, of the board and of what is in it.
    for (field, misspelt) in [("\"schemaVersion\"", "\"schemaVersoin\""), ("\"asDropdown\"", "\"asDropDown\"")] {
        let output = judged(&dashboard.replacen(field, misspelt, 1)).unwrap();
        assert!(!output.status.success() && said(&output).contains(misspelt.trim_matches('"')), "{}", said(&output));
    }
}

/// The files that compose mounts are there, those that are made excepted; its Prometheus and Grafana find what they look for.
#[test]
fn what_the_compose_file_mounts_is_there() {
    let compose: Value = serde_saphyr::from_str(&text(COMPOSE)).unwrap();
    let services = compose["services"].as_object().unwrap();
    let volumes = services.values().flat_map(|service| service["volumes"].as_array().into_iter().flatten());
    let files: Vec<(&str, &str)> = volumes
        .filter_map(|volume| volume.as_str().unwrap().strip_suffix(":ro")?.split_once(':'))
        .inspect(|(file, _)| assert!(root().join("deploy/compose").join(file).is_file(), "{file}"))
        .collect();
    assert_eq!(files.len(), 6, "{files:?}");
    let mounted = |file: &str| files.iter().find(|(is, _)| is.ends_with(file)).map(|(_, at)| *at).unwrap();

    let prometheus: Value = serde_saphyr::from_str(&text("deploy/compose/prometheus.yml")).unwrap();
    assert_eq!(
        mounted("herald.rules.yml"),
        format!("/etc/prometheus/{}", prometheus["rule_files"][0].as_str().unwrap())
    );
    assert_eq!(prometheus["scrape_configs"][0]["job_name"], "herald");
    let boards: Value = serde_saphyr::from_str(&text("deploy/compose/grafana/dashboards.yml")).unwrap();
    let folder = boards["providers"][0]["options"]["path"].as_str().unwrap();
    assert!(mounted("herald.json").starts_with(&format!("{folder}/")));
    let source: Value = serde_saphyr::from_str(&text("deploy/compose/grafana/datasource.yml")).unwrap();
    assert_eq!(source["datasources"][0]["url"], "http://prometheus:9090");
}

/// A drill that nobody can read about is done by nobody; a page whose drill is not there was not tried.
#[test]
fn each_drill_has_its_page() {
    let drills = fs::read_dir(root().join("deploy/drills")).unwrap();
    let names = drills.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let drills: BTreeSet<String> = names.filter(|name| name != "lib.sh").collect();
    let operations = text("docs/operations.md");
    let (_, pages) = operations.split_once("\n## Drills\n").unwrap();
    let pages = pages.split("\n## ").next().unwrap().lines().filter_map(|line| line.strip_prefix("### "));
    assert_eq!(pages.map(str::to_owned).collect::<BTreeSet<_>>(), drills);
    assert!(drills.len() >= 9, "{drills:?}");
}

const KUBERNETES: &str = "deploy/kubernetes";

fn manifests(folder: &str) -> Vec<String> {
    let found =
        fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    found
        .filter(|name| name != "kustomization.yaml" && name.ends_with(".yaml"))
        .map(|name| format!("{folder}/{name}"))
        .collect()
}

#[test]
fn each_manifest_of_the_base_is_what_kubernetes_takes() {
    let files = manifests("deploy/kubernetes/base");
    assert!(files.len() >= 5, "{files:?}");
    for file in files {
        let Some(output) = judged(python("kubernetes-validate"), &["--strict", &file]) else { return };
        assert!(output.status.success() && !said(&output).contains("WARN"), "{file}: {}", said(&output));
    }
}

/// The judge has no schemas of these.
const OF_OPERATORS: [&str; 4] = ["PrometheusRule", "ScaledObject", "ServiceMonitor", "TriggerAuthentication"];

/// What an overlay is, as kubectl makes it, once Kubernetes takes it; none without judges.
fn made(overlay: &str) -> Option<Vec<Value>> {
    let made = judged("kubectl", &["kustomize", &format!("{KUBERNETES}/overlays/{overlay}")])?;
    assert!(made.status.success(), "{}", said(&made));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(overlay);
    fs::write(&file, &made.stdout).unwrap();
    let output = judged(python("kubernetes-validate"), &["--strict", file.to_str().unwrap()])?;
    let page = said(&output);
    let unknown = page.lines().filter(|line| line.contains("WARN"));
    let is_meant = |line: &str| OF_OPERATORS.iter().any(|kind| line.contains(&format!("schema for kind {kind} with")));
    assert!(output.status.success() && unknown.into_iter().all(is_meant), "{page}");
    let text = String::from_utf8(made.stdout).unwrap();
    Some(text.split("\n---\n").map(|text| serde_saphyr::from_str(text).unwrap()).collect())
}

fn of<'d>(documents: &'d [Value], kind: &str) -> &'d Value {
    documents.iter().find(|document| document["kind"] == kind).unwrap_or_else(|| panic!("no {kind}"))
}

/// As kubectl makes it, which may put together what each file alone does not show.
#[test]
fn each_overlay_is_what_kubernetes_takes_and_selects_what_it_means() {
    for overlay in ["minimal", "production"] {
        let Some(documents) = made(overlay) else { return };
        let of = |kind: &str| of(&documents, kind);
        let name = "app.kubernetes.io/name";
        assert_eq!(of("Deployment")["spec"]["selector"]["matchLabels"][name], "herald");
        assert_eq!(of("Deployment")["spec"]["template"]["metadata"]["labels"][name], "herald");
        assert_eq!(of("Service")["spec"]["selector"][name], "herald");
        assert_eq!(of("PodDisruptionBudget")["spec"]["selector"]["matchLabels"][name], "herald");
        let policy = &of("NetworkPolicy")["spec"];
        assert_eq!(policy["podSelector"]["matchLabels"][name], "herald");
        let to_redis =
            policy["egress"].as_array().unwrap().iter().find(|rule| rule["ports"][0]["port"] == 6379).unwrap();
        assert_eq!(to_redis["to"][0]["podSelector"]["matchLabels"][name], "redis");
        // What is mounted is what is made for it.
        let container = &of("Deployment")["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
        assert_eq!(of("ServiceAccount")["automountServiceAccountToken"], false);
    }
}

/// What the alerts and the dashboard are elsewhere, they are in a cluster.
#[test]
fn a_cluster_has_the_same_alerts_and_the_same_dashboard() {
    let Some(documents) = made("production") else { return };
    let rules: Value = serde_saphyr::from_str(&text("deploy/prometheus/herald.rules.yml")).unwrap();
    let of_cluster = &of(&documents, "PrometheusRule")["spec"];
    assert_eq!(*of_cluster, rules, "type deploy/kubernetes/components/monitoring/write-rules");
    assert!(rules["groups"].as_array().unwrap().len() >= 4);

    let boards = documents.iter().filter(|document| document["metadata"]["labels"]["grafana_dashboard"] == "1");
    let board = &boards.map(|board| &board["data"]["herald.json"]).next().unwrap();
    assert_eq!(board.as_str().unwrap(), text("deploy/grafana/herald.json"));

    // The job is named by a label of the Service whose port is scraped.
    let (monitor, service) = (&of(&documents, "ServiceMonitor")["spec"], of(&documents, "Service"));
    let label = monitor["jobLabel"].as_str().unwrap();
    assert_eq!(service["metadata"]["labels"][label], "herald");
    assert_eq!(monitor["selector"]["matchLabels"][label], "herald");
    assert_eq!(monitor["endpoints"][0]["port"], service["spec"]["ports"][1]["name"]);
    assert_eq!(service["spec"]["ports"][1]["port"], 9464);

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rules.yml");
    fs::write(&file, serde_json::to_string(of_cluster).unwrap()).unwrap();
    let promtool = root().join("target/verifiers/promtool");
    let Some(output) = judged(promtool, &["check", "rules", file.to_str().unwrap()]) else { return };
    assert!(output.status.success(), "{}", said(&output));
}

/// More workers than partitions and one that waits have nothing to do; KEDA asks for what waits in all of them.
#[test]
fn as_many_workers_as_have_something_to_do() {
    let Some(documents) = made("production") else { return };
    let shown = Command::new(env!("CARGO_BIN_EXE_herald"))
        .env_clear()
        .args(["config", "show", "-o", "json", "--config"])
        .arg(root().join(KUBERNETES).join("base/herald.toml"))
        .output()
        .unwrap();
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap_or_else(|_| panic!("{}", said(&shown)));
    let setting = |key: &str| {
        let found = shown.as_array().unwrap().iter().find(|one| one["key"] == key);
        found.unwrap_or_else(|| panic!("{key}: {shown}"))["value"].clone()
    };
    let scaled = &of(&documents, "ScaledObject")["spec"];
    let partitions: u64 = setting("stream.partitions").to_string().trim_matches('"').parse().unwrap();
    assert!(scaled["maxReplicaCount"].as_u64().unwrap() <= partitions + 1);
    assert!(scaled["minReplicaCount"].as_u64().unwrap() >= 2, "one of them waits for the other to die");
    let trigger = &scaled["triggers"][0];
    assert_eq!(trigger["type"], "prometheus");
    let query = trigger["metadata"]["query"].as_str().unwrap();
    let (metric, _) = query.strip_prefix("sum(").and_then(|rest| rest.split_once('{')).unwrap();
    let listed = fs::read_to_string(root().join("docs/metrics.md")).unwrap();
    assert!(listed.contains(&format!("| `{metric}` | gauge |")), "{metric} is no metric of Herald's");
    assert!(trigger["metadata"]["threshold"].as_str().unwrap().parse::<u64>().unwrap() > 0);
    assert_eq!(of(&documents, "Deployment")["metadata"]["name"], scaled["scaleTargetRef"]["name"]);
    assert_eq!(of(&documents, "Deployment")["spec"]["replicas"], Value::Null);
}

/// The pods' file is a configuration of this Herald.
#[test]
fn the_configuration_of_the_pods_is_right() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_herald"));
    let file = root().join(KUBERNETES).join("base/herald.toml");
    let output = command.env_clear().args(["config", "check", "--config"]).arg(file).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
}
