use super::*;
use crate::machine::EngineKind;
use crate::probe::Symptom;

/// A host with programs that only know their version.
struct Host {
    dir: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn program(&self, name: &str, says: &str) -> Option<PathBuf> {
        let path = self.dir.path().join(name);
        // Written by another process: a file that is open for writing here, in a child that
        // another test has just forked as well, cannot be executed (ETXTBSY).
        let script = "printf '#!/bin/sh\\necho \"%s\"\\n' \"$1\" > \"$2\" && chmod 755 \"$2\"";
        let status = std::process::Command::new("sh")
            .args(["-c", script, "sh", says])
            .arg(&path)
            .status()
            .unwrap();
        assert!(status.success());
        Some(path)
    }

    fn options(&self) -> SelectOptions {
        SelectOptions {
            firecracker: self.program("fc", "Firecracker v1.16.1"),
            qemu: self.program("qemu", "QEMU emulator version 7.2.22 (x)"),
            cache_dir: self.dir.path().join("cache"),
            allow_unusable_kvm: false,
            seccomp_filters: None,
        }
    }
}

fn emulates() -> KvmVerdict {
    KvmVerdict::EmulatesOnly {
        symptom: Symptom::InternalError,
        pvm: true,
    }
}

#[tokio::test]
async fn with_kvm_and_firecracker_it_is_firecracker() {
    let host = Host::new();
    let chosen = choose(EnginePreference::Auto, &host.options(), KvmVerdict::Usable)
        .await
        .unwrap();
    assert_eq!(chosen.engine.kind(), EngineKind::Firecracker);
    assert_eq!(chosen.warning, None);
    assert!(chosen.reason.contains("1.16.1"), "{}", chosen.reason);
}

#[tokio::test]
async fn with_kvm_but_a_broken_firecracker_it_is_qemu_with_kvm() {
    let host = Host::new();
    let mut options = host.options();
    options.firecracker = host.program("broken", "segmentation fault");
    let chosen = choose(EnginePreference::Auto, &options, KvmVerdict::Usable)
        .await
        .unwrap();
    let can = chosen.engine.capabilities();
    assert_eq!(chosen.engine.kind(), EngineKind::Qemu);
    assert_eq!(can.acceleration, Acceleration::Kvm);
    assert_eq!(chosen.warning, None);
    assert!(
        chosen.reason.contains("segmentation fault"),
        "{}",
        chosen.reason
    );
}

#[tokio::test]
async fn without_usable_kvm_it_is_emulation_and_one_line_says_so() {
    let host = Host::new();
    let chosen = choose(EnginePreference::Auto, &host.options(), emulates())
        .await
        .unwrap();
    assert_eq!(chosen.engine.capabilities().acceleration, Acceleration::Tcg);
    let warning = chosen.warning.unwrap();
    assert!(
        warning.contains("slower") && warning.contains("PVM"),
        "{warning}"
    );
    assert!(!warning.contains('\n'));
    assert_eq!(chosen.findings.len(), 3);
}

#[tokio::test]
async fn firecracker_on_demand_is_refused_where_it_would_spin_for_ever() {
    let host = Host::new();
    let mut options = host.options();
    let refused = choose(EnginePreference::Firecracker, &options, emulates()).await;
    let error = refused.unwrap_err();
    assert!(error.to_string().contains("PVM"), "{error}");

    options.allow_unusable_kvm = true;
    let chosen = choose(EnginePreference::Firecracker, &options, emulates())
        .await
        .unwrap();
    assert_eq!(chosen.engine.kind(), EngineKind::Firecracker);
    assert!(chosen.warning.is_some());
}

#[tokio::test]
async fn b5_3_filters_that_cannot_be_compiled_stop_every_engine() {
    let host = Host::new();
    let mut options = host.options();
    // There is no compiler beside the binary.
    options.seccomp_filters = Some("/nonexistent/filters.json".into());
    for preference in [EnginePreference::Auto, EnginePreference::Firecracker] {
        let refused = choose(preference, &options, KvmVerdict::Usable).await;
        let error = refused.unwrap_err();
        assert!(matches!(error, SelectError::Filters(_)), "{error}");
        assert_eq!(error.code(), crate::Code::InvalidConfig);
    }
    let chosen = choose(EnginePreference::Qemu, &options, KvmVerdict::Usable).await;
    assert_eq!(chosen.unwrap().engine.kind(), EngineKind::Qemu);
}

#[tokio::test]
async fn with_nothing_the_error_names_every_reason_and_what_to_install() {
    let host = Host::new();
    let mut options = host.options();
    options.firecracker = Some("/nonexistent/firecracker".into());
    options.qemu = Some("/nonexistent/qemu".into());
    let refused = choose(EnginePreference::Auto, &options, KvmVerdict::Missing).await;
    let text = refused.unwrap_err().to_string();
    for part in [
        "/dev/kvm",
        "/nonexistent/firecracker",
        "/nonexistent/qemu",
        "apt-get install",
    ] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
}

/// What is there and broken is nobody's to replace, and where KVM is of no use nothing is missed.
#[test]
fn only_what_is_not_there_is_missed() {
    let finding = |about, usable, missing| Finding {
        version: None,
        about,
        usable,
        detail: String::new(),
        missing,
    };
    let lacks = |kvm, fc_missing| {
        SelectError::None(vec![
            finding(Subject::Kvm, kvm, false),
            finding(Subject::Firecracker, false, fc_missing),
            finding(Subject::Qemu, false, true),
        ])
        .lacks_firecracker()
    };
    assert!(lacks(true, true));
    assert!(!lacks(true, false) && !lacks(false, true));
    assert!(SelectError::NoFirecracker.lacks_firecracker());
    assert!(!SelectError::UnusableKvm(emulates()).lacks_firecracker());
}

#[test]
fn the_words_of_the_command_line() {
    assert_eq!("auto".parse(), Ok(EnginePreference::Auto));
    assert!("kvm".parse::<EnginePreference>().is_err());
}
