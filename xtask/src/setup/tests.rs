//! Set-up on machines of our own making: an empty program directory and an apt that writes down
//! what it was asked and installs by touching files.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::apt::Privilege;
use super::*;

struct Fake {
    dir: tempfile::TempDir,
}

impl Fake {
    fn new() -> Self {
        let fake = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        for dir in ["bin", "lists", "usr/include"] {
            fs::create_dir_all(fake.dir.path().join(dir)).unwrap();
        }
        fake
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn with_fresh_lists(self) -> Self {
        fs::write(self.path("lists/deb.example_main_Packages"), "").unwrap();
        self
    }

    /// An apt whose first `failures` installs fail.
    fn with_apt(self, failures: u32) -> Self {
        let log = self.path("apt.log");
        let script = format!(
            "#!/bin/sh\n\
             echo \"$DEBIAN_FRONTEND $*\" >> {log}\n\
             [ $1 = install ] || exit 0\n\
             [ $(grep -c ' install ' {log}) -gt {failures} ] || exit 100\n",
            log = log.display(),
        );
        self.program("apt-get", &script);
        self
    }

    fn program(&self, name: &str, text: &str) {
        let path = self.path("bin").join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn with_everything_but(self, missing: &str) -> Self {
        for tool in TOOLS.iter().filter(|tool| tool.name != missing) {
            match tool.probe {
                table::Probe::Program(name) => self.program(name, "#!/bin/sh\n"),
                table::Probe::File(path) => fs::write(self.path(path), "").unwrap(),
            }
        }
        self
    }

    fn machine(&self, privilege: Privilege) -> Machine {
        let program_dirs = vec![self.path("bin")];
        Machine {
            apt: Apt {
                program: step::find_program("apt-get", &program_dirs),
                privilege,
                lists: self.path("lists"),
            },
            root: self.dir.path().to_owned(),
            program_dirs,
        }
    }

    fn asked(&self) -> Vec<String> {
        let log = fs::read_to_string(self.path("apt.log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }
}

const INSTALL_QEMU: &str = "noninteractive install --yes --no-install-recommends qemu-system-x86";
const UPDATE: &str = "noninteractive update";

#[test]
fn nothing_is_asked_where_nothing_is_missing() {
    let fake = Fake::new().with_apt(0).with_everything_but("");
    ensure_on(&fake.machine(Privilege::Root), Purpose::Test).unwrap();
    assert_eq!(fake.asked(), Vec::<String>::new());
}

#[test]
fn only_what_is_missing_is_installed_and_fresh_lists_are_used() {
    let fake = Fake::new()
        .with_apt(0)
        .with_fresh_lists()
        .with_everything_but("qemu-system-x86_64");
    ensure_on(&fake.machine(Privilege::Root), Purpose::Demo).unwrap();
    assert_eq!(fake.asked(), [INSTALL_QEMU]);
}

#[test]
fn missing_lists_are_fetched_first() {
    let fake = Fake::new()
        .with_apt(0)
        .with_everything_but("qemu-system-x86_64");
    ensure_on(&fake.machine(Privilege::Root), Purpose::Demo).unwrap();
    assert_eq!(fake.asked(), [UPDATE, INSTALL_QEMU]);
}

#[test]
fn a_failed_install_is_tried_again_with_new_lists() {
    let fake = Fake::new()
        .with_apt(1)
        .with_fresh_lists()
        .with_everything_but("qemu-system-x86_64");
    ensure_on(&fake.machine(Privilege::Root), Purpose::Demo).unwrap();
    assert_eq!(fake.asked(), [INSTALL_QEMU, UPDATE, INSTALL_QEMU]);
}

#[test]
fn an_install_that_keeps_failing_is_an_error_with_the_command() {
    let fake = Fake::new()
        .with_apt(9)
        .with_fresh_lists()
        .with_everything_but("qemu-system-x86_64");
    let error = ensure_on(&fake.machine(Privilege::Root), Purpose::Demo).unwrap_err();
    let SetupError::Install { missing, source } = error;
    assert_eq!(missing, ["qemu-system-x86_64"]);
    assert!(matches!(source, AptError::Failed { .. }), "{source}");
}

#[test]
fn what_another_chore_needs_is_left_alone() {
    let fake = Fake::new()
        .with_apt(0)
        .with_fresh_lists()
        .with_everything_but("skopeo");
    ensure_on(&fake.machine(Privilege::Root), Purpose::Demo).unwrap();
    assert_eq!(fake.asked(), Vec::<String>::new());
}

#[test]
fn sudo_is_used_where_there_is_one() {
    let fake = Fake::new()
        .with_apt(0)
        .with_fresh_lists()
        .with_everything_but("qemu-system-x86_64");
    fake.program(
        "sudo",
        "#!/bin/sh\necho sudo >> \"$(dirname \"$0\")/../apt.log\"\nexec \"$@\"\n",
    );
    let sudo = Privilege::Sudo(fake.path("bin/sudo"));
    ensure_on(&fake.machine(sudo), Purpose::Demo).unwrap();
    assert_eq!(fake.asked(), ["sudo", INSTALL_QEMU]);
}

#[test]
fn without_root_the_exact_command_is_said() {
    let fake = Fake::new()
        .with_apt(0)
        .with_everything_but("qemu-system-x86_64");
    let error = ensure_on(&fake.machine(Privilege::None), Purpose::Demo).unwrap_err();
    let SetupError::Install { source, .. } = error;
    let text = source.to_string();
    assert!(
        text.contains("sudo apt-get install --no-install-recommends qemu-system-x86"),
        "{text}"
    );
    assert_eq!(fake.asked(), Vec::<String>::new());
}

#[test]
fn a_machine_without_apt_is_told_the_packages() {
    let fake = Fake::new().with_everything_but("qemu-system-x86_64");
    let error = ensure_on(&fake.machine(Privilege::Root), Purpose::Demo).unwrap_err();
    let SetupError::Install { source, .. } = error;
    assert!(matches!(&source, AptError::NoApt { packages } if packages == "qemu-system-x86"));
}
