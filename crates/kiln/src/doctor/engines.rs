//! What runs machines: KVM, Firecracker with its jailer, QEMU.

use kiln_vmm::firecracker::version::{self, KnownBad, Remedy};
use kiln_vmm::{EnginePreference, Subject, probe};

use super::{Check, Facts, Level};

pub(super) async fn checks(facts: &Facts) -> Vec<Check> {
    let kvm = probe::probe(&facts.engines.cache_dir).await;
    let chosen = kiln_vmm::select(EnginePreference::Auto, &facts.engines).await;
    let mut checks = vec![kvm_check(&kvm), nested(facts), kernel(facts)];
    match &chosen {
        Ok(chosen) => {
            let of = |subject| chosen.findings.iter().find(|it| it.about == subject);
            let firecracker = of(Subject::Firecracker);
            checks.push(firecracker_check(
                kvm.is_usable(),
                firecracker.map(|it| (it.usable, it.detail.as_str())),
            ));
            let version = firecracker.and_then(|it| it.version.as_deref());
            checks.extend(version.and_then(known_bad));
            let check = Check::ok("engine", chosen.reason.as_str());
            checks.push(match &chosen.warning {
                None => check,
                Some(warning) => Check::of(Level::Warning, "engine", warning.clone())
                    .because("sandboxes run, but slowly, and without hardware around them"),
            });
        }
        Err(error) => checks.push(
            Check::of(Level::Failure, "engine", error.to_string())
                .because("nothing can run a sandbox")
                .remedy("install Firecracker, or QEMU: apt-get install qemu-system-x86"),
        ),
    }
    checks.push(jailer(facts, kvm.is_usable()));
    checks
}

fn kvm_check(kvm: &probe::KvmVerdict) -> Check {
    if kvm.is_usable() {
        return Check::ok("kvm", kvm.to_string());
    }
    Check::of(Level::Warning, "kvm", kvm.to_string())
        .because("without it guests are emulated: slow, and no security boundary")
        .remedy("use a host with hardware virtualisation, or enable it where this one is made")
}

fn firecracker_check(kvm: bool, found: Option<(bool, &str)>) -> Check {
    let name = "firecracker";
    match found {
        Some((true, detail)) => Check::ok(name, detail),
        // Without KVM it would not help.
        Some((false, detail)) if !kvm => Check::of(Level::Info, name, detail),
        Some((false, detail)) => Check::of(Level::Warning, name, detail)
            .because("it is the engine that Kiln is made for; QEMU takes its place")
            .remedy(
                "put a static release of Firecracker on the PATH, or name it in KILN_FIRECRACKER",
            ),
        None => Check::of(Level::Info, name, "not looked at: KVM is not usable"),
    }
}

/// What is known to be broken in this version of Firecracker.
pub(super) fn known_bad(version: &str) -> Option<Check> {
    let bad: Vec<_> = version::known_bad(version.parse().ok()?).collect();
    let level = match bad.iter().any(|bad| bad.remedy == Remedy::Told) {
        true => Level::Warning,
        false => Level::Info,
    };
    let told: Vec<String> = bad.iter().map(|bad| with_remedy(bad)).collect();
    (!told.is_empty()).then(|| {
        Check::of(level, "firecracker-bugs", told.join("; "))
            .because("this release of Firecracker is known for it")
            .remedy("take another release: `kiln daemon --firecracker-version`")
    })
}

fn with_remedy(bad: &KnownBad) -> String {
    let remedy = match bad.remedy {
        Remedy::Refused => "refused by Kiln",
        Remedy::Avoided => "avoided by Kiln",
        Remedy::Told => "not avoided",
    };
    format!("{} ({remedy})", bad.what)
}

fn jailer(facts: &Facts, kvm: bool) -> Check {
    let named = std::env::var_os("KILN_JAILER").map(std::path::PathBuf::from);
    let found = named
        .filter(|path| path.is_file())
        .or_else(|| facts.program("jailer"));
    match found {
        Some(path) => Check::ok("jailer", path.display().to_string()),
        None if !kvm => Check::of(Level::Info, "jailer", "none; QEMU is confined without it"),
        None => Check::of(Level::Warning, "jailer", "none on the PATH")
            .because("Firecracker is confined by it")
            .remedy("install it from the same release as Firecracker, or name it in KILN_JAILER"),
    }
}

/// Firecracker's tested kernels (its `kernel-policy.md`), and the oldest that its jailer takes.
fn kernel(facts: &Facts) -> Check {
    let release = facts.read("proc/sys/kernel/osrelease").unwrap_or_default();
    let finding = format!("Linux {release}");
    match version(&release) {
        Some(version) if version < (5, 10) => Check::of(Level::Failure, "kernel", finding)
            .because("the jail needs 5.9, and what runs in it is tested from 5.10 on")
            .remedy("run a newer kernel"),
        Some((5, 10) | (6, 1) | (6, 18)) => Check::ok("kernel", finding),
        _ => Check::of(Level::Info, "kernel", finding)
            .because("Firecracker is tested on 5.10, 6.1 and 6.18"),
    }
}

pub(super) fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|it: char| !it.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn nested(facts: &Facts) -> Check {
    let cpuinfo = facts.read("proc/cpuinfo").unwrap_or_default();
    let is_guest = cpuinfo
        .lines()
        .find(|line| line.starts_with("flags"))
        .is_some_and(|line| line.split_whitespace().any(|flag| flag == "hypervisor"));
    if is_guest {
        return Check::of(
            Level::Info,
            "nested",
            "this host is itself a virtual machine",
        )
        .because("guests of guests are slower, some of them much");
    }
    Check::ok("nested", "this host is no virtual machine")
}
