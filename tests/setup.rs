//! What `deploy/setup`, `deploy/install` and `deploy/unpack` do to a machine, tried on a fake one: every program that
//! they call is a script of the test.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

struct Machine(tempfile::TempDir);

impl Machine {
    /// With what the script itself needs, and a package manager that records what it is asked for.
    fn new() -> Self {
        let machine = Self(tempfile::tempdir().unwrap());
        fs::create_dir(machine.path("bin")).unwrap();
        for tool in ["bash", "env", "rm", "tee", "chmod", "cat", "printf", "mktemp", "mkdir", "mv"] {
            let real =
                ["/usr/bin", "/bin"].iter().map(|folder| Path::new(folder).join(tool)).find(|path| path.exists());
            std::os::unix::fs::symlink(real.expect(tool), machine.path("bin").join(tool)).unwrap();
        }
        machine.program("sudo", "exec \"$@\"");
        machine.program("cargo", "");
        let installs = r#"case "$*" in *install*)
            echo "install: $*; may start: $([ -x "$POLICY_RC_D" ] && "$POLICY_RC_D"; echo $?)" >>"$NOTES"
            for name in redis-server gcc g++; do case "$*" in *"$name"*) "$MADE/$name" ;; esac; done
        esac"#;
        machine.program("apt-get", installs);
        fs::create_dir(machine.path("made")).unwrap();
        for (package, program) in [("redis-server", "redis-server"), ("gcc", "cc"), ("g++", "c++")] {
            let says = if program == "redis-server" { "echo 'Redis server v=7.0.15'" } else { ":" };
            let target = machine.path("bin").join(program);
            let body = format!("printf '#!/bin/sh\\n%s\\n' \"{says}\" >{t}; chmod 755 {t}", t = target.display());
            machine.write(&machine.path("made").join(package), &body);
        }
        machine.program("systemctl", r#"echo "systemctl: $*" >>"$NOTES""#);
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, path: &Path, body: &str) {
        fs::write(path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn program(&self, name: &str, body: &str) {
        self.write(&self.path("bin").join(name), body);
    }

    fn set_up(&self) -> Output {
        self.run("setup", &[])
    }

    fn run(&self, script: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(script));
        command.args(arguments);
        command.env_clear().env("PATH", self.path("bin")).env("POLICY_RC_D", self.path("policy-rc.d"));
        command.env("NOTES", self.path("notes")).env("MADE", self.path("made")).stdin(Stdio::null());
        command.output().unwrap()
    }

    fn notes(&self) -> String {
        fs::read_to_string(self.path("notes")).unwrap_or_default()
    }
}

#[test]
fn what_is_installed_is_said_before_and_its_redis_never_starts() {
    let machine = Machine::new();
    let output = machine.set_up();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(said.starts_with("setup: this machine lacks redis-server gcc libc6-dev g++;"), "{said}");
    assert!(said.contains("the service of the package redis-server stays off"), "{said}");
    let notes = machine.notes();
    assert!(notes.contains("redis-server gcc libc6-dev g++; may start: 101"), "{notes}");
    assert!(notes.contains("systemctl: disable --now redis-server"), "{notes}");
    assert!(!machine.path("policy-rc.d").exists(), "the machine's own policy is as it was");

    let again = machine.set_up();
    assert!(again.status.success() && again.stderr.is_empty(), "nothing is missing now");
    assert_eq!(machine.notes(), notes);
}

#[test]
fn a_redis_that_was_there_before_is_left_alone() {
    let machine = Machine::new();
    machine.program("redis-server", "echo 'Redis server v=7.2.4'");
    assert!(machine.set_up().status.success());
    let notes = machine.notes();
    assert!(notes.contains("gcc libc6-dev g++; may start: 1"), "{notes}");
    assert!(!notes.contains("systemctl"), "{notes}");
}

#[test]
fn a_policy_of_the_machines_own_stays() {
    let machine = Machine::new();
    machine.write(&machine.path("policy-rc.d"), "exit 104");
    assert!(machine.set_up().status.success());
    assert!(machine.notes().contains("may start: 104"), "{}", machine.notes());
    assert!(machine.path("policy-rc.d").exists());
}

#[test]
fn an_install_that_fails_leaves_no_policy_behind() {
    let machine = Machine::new();
    machine.program("apt-get", "exit 100");
    assert!(!machine.set_up().status.success());
    assert!(!machine.path("policy-rc.d").exists());
}

#[test]
fn the_web_server_that_tests_need_stays_off() {
    let machine = Machine::new();
    assert!(machine.run("install", &["a remedy", "nodejs", "nginx"]).status.success());
    let notes = machine.notes();
    assert!(notes.contains("nodejs nginx; may start: 101"), "{notes}");
    assert!(notes.contains("systemctl: disable --now nginx"), "{notes}");
    assert!(!machine.path("policy-rc.d").exists());
}

#[test]
fn without_a_package_manager_it_says_what_is_needed() {
    let machine = Machine::new();
    fs::remove_file(machine.path("bin/apt-get")).unwrap();
    let output = machine.run("install", &["a web server", "nginx"]);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("please install a web server;"), "{output:?}");
}

#[test]
fn a_program_is_taken_out_of_its_package_and_the_package_is_not_installed() {
    let machine = Machine::new();
    // Without its lists apt knows of no package.
    let downloads = r#"echo "apt-get: $*" >>"$NOTES"
        case "$*" in
            *update*) : >"$MADE.lists" ;;
            *download*) [ -e "$MADE.lists" ] && : >prometheus_2.42_amd64.deb ;;
        esac"#;
    machine.program("apt-get", downloads);
    machine.program("dpkg-deb", r#"[ -e "$2" ] && echo "$2""#);
    machine.program("tar", r#"cat >/dev/null; mkdir -p "$3/usr/bin"; echo new >"$3/$4""#);
    let target = machine.path("promtool");
    let arguments = ["prometheus", "usr/bin/promtool", target.to_str().unwrap()];
    let output = machine.run("unpack", &arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("taking it out of the package prometheus"), "{said}");
    assert_eq!(fs::read_to_string(&target).unwrap(), "new\n");
    let notes = machine.notes();
    let asked: Vec<&str> = notes.lines().filter_map(|line| line.split(' ').next_back()).collect();
    assert_eq!(asked, ["prometheus", "update", "prometheus"], "{notes}");
    assert!(!notes.contains("install"), "{notes}");

    machine.program("tar", "exit 1");
    fs::remove_file(&target).unwrap();
    assert!(!machine.run("unpack", &arguments).status.success());
    assert!(!target.exists(), "half a program is none");
}
