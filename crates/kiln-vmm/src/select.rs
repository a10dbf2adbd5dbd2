//! Which engine runs machines on this host, and why.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::firecracker::{FilterError, FirecrackerEngine};
use crate::machine::{Acceleration, Engine};
use crate::probe::{KvmVerdict, probe};
use crate::program::{ProgramError, find};
use crate::qemu::QemuEngine;

/// Names Firecracker's binary when no option does.
pub const FIRECRACKER_VARIABLE: &str = "KILN_FIRECRACKER";
/// Names QEMU's binary when no option does.
pub const QEMU_VARIABLE: &str = "KILN_QEMU";
/// Names the compiler of Firecracker's system call filters.
pub const SECCOMPILER_VARIABLE: &str = "KILN_SECCOMPILER";
/// Where compiled filters lie in the cache directory.
const COMPILED_FILTERS: &str = "seccomp-filters";
#[cfg(target_arch = "x86_64")]
const QEMU_PROGRAM: &str = "qemu-system-x86_64";
#[cfg(target_arch = "aarch64")]
const QEMU_PROGRAM: &str = "qemu-system-aarch64";

/// What the user wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EnginePreference {
    /// Firecracker where KVM runs guests and it is installed, else QEMU.
    #[default]
    Auto,
    /// Firecracker or an error.
    Firecracker,
    /// QEMU or an error, with KVM where that runs guests.
    Qemu,
}

/// A word that is no preference.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no engine: auto, firecracker or qemu")]
pub struct UnknownEngine(pub String);

impl std::str::FromStr for EnginePreference {
    type Err = UnknownEngine;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        match word {
            "auto" => Ok(Self::Auto),
            "firecracker" => Ok(Self::Firecracker),
            "qemu" => Ok(Self::Qemu),
            other => Err(UnknownEngine(other.to_owned())),
        }
    }
}

/// Where to look.
#[derive(Clone, Debug)]
pub struct SelectOptions {
    /// Firecracker's binary; else `KILN_FIRECRACKER`, else the `PATH`.
    pub firecracker: Option<PathBuf>,
    /// QEMU's binary; else `KILN_QEMU`, else the `PATH`.
    pub qemu: Option<PathBuf>,
    /// What is measured once per boot is kept here.
    pub cache_dir: PathBuf,
    /// System call filters (JSON) for Firecracker instead of its own, compiled by the
    /// `seccompiler-bin` that [`SECCOMPILER_VARIABLE`] names or that lies beside the binary.
    pub seccomp_filters: Option<PathBuf>,
    /// Takes Firecracker on demand even where KVM only emulates: for tests with tiny guests.
    pub allow_unusable_kvm: bool,
}

/// The engine and how it came to be chosen.
#[derive(Clone, Debug)]
pub struct Selection {
    /// The engine.
    pub engine: Arc<dyn Engine>,
    /// Why this one, in one sentence.
    pub reason: String,
    /// All that was looked at.
    pub findings: Vec<Finding>,
    /// One line that the user has to see.
    pub warning: Option<String>,
}

impl Selection {
    /// Whether Firecracker would have been chosen had it been there.
    #[must_use]
    pub fn lacks_firecracker(&self) -> bool {
        lacks_firecracker(&self.findings)
    }
}

impl SelectError {
    /// Whether Firecracker would have been chosen had it been there.
    #[must_use]
    pub fn lacks_firecracker(&self) -> bool {
        match self {
            // Asked for, and KVM was looked at before.
            Self::NoFirecracker => true,
            Self::None(findings) => lacks_firecracker(findings),
            Self::Firecracker(_)
            | Self::Filters(_)
            | Self::UnusableKvm(_)
            | Self::NoQemu
            | Self::Qemu(_) => false,
        }
    }
}

fn lacks_firecracker(findings: &[Finding]) -> bool {
    let found = |about, is: fn(&Finding) -> bool| {
        findings
            .iter()
            .any(|finding| finding.about == about && is(finding))
    };
    found(Subject::Kvm, |kvm| kvm.usable) && found(Subject::Firecracker, |it| it.missing)
}

/// Something that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What.
    pub about: Subject,
    /// Whether it can be used.
    pub usable: bool,
    /// What was found.
    pub detail: String,
    /// Whether it is not there at all: what could be installed, unlike what is there and broken.
    #[serde(default)]
    pub missing: bool,
    /// Which version it is, of a program that can be used.
    #[serde(default)]
    pub version: Option<String>,
}

/// What a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Subject {
    /// Hardware virtualisation.
    Kvm,
    /// The Firecracker binary.
    Firecracker,
    /// The QEMU binary.
    Qemu,
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Kvm => "KVM",
            Self::Firecracker => "Firecracker",
            Self::Qemu => "QEMU",
        })
    }
}

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
pub enum SelectError {
    /// Firecracker was asked for and is not installed.
    #[error(
        "Firecracker is not installed: put its release binary on the PATH or name it with \
         {FIRECRACKER_VARIABLE}"
    )]
    NoFirecracker,
    /// Firecracker was asked for and cannot be used.
    #[error("Firecracker cannot be used")]
    Firecracker(#[source] ProgramError),
    /// The user's system call filters cannot be compiled; nothing runs without them.
    #[error("Firecracker cannot run under the system call filters that were given")]
    Filters(#[source] FilterError),
    /// Firecracker was asked for and needs a KVM that runs guests.
    #[error("Firecracker cannot run here: {0}; QEMU can (--engine qemu)")]
    UnusableKvm(KvmVerdict),
    /// QEMU was asked for and is not installed.
    #[error(
        "QEMU is not installed: `sudo apt-get install qemu-system-x86`, or name it with {QEMU_VARIABLE}"
    )]
    NoQemu,
    /// QEMU was asked for and cannot be used.
    #[error("QEMU cannot be used")]
    Qemu(#[source] ProgramError),
    /// Neither can be used.
    #[error(
        "no engine can be used here: {}; without usable KVM, QEMU is the one to install: \
         `sudo apt-get install qemu-system-x86`",
        list(.0)
    )]
    None(Vec<Finding>),
}

fn list(findings: &[Finding]) -> String {
    let details: Vec<&str> = findings
        .iter()
        .filter(|finding| !finding.usable)
        .map(|finding| finding.detail.as_str())
        .collect();
    details.join("; ")
}

/// Chooses the engine.
///
/// # Errors
/// What was asked for, or everything, cannot be used; the error says what to install.
pub async fn select(
    preference: EnginePreference,
    options: &SelectOptions,
) -> Result<Selection, SelectError> {
    let kvm = probe(&options.cache_dir).await;
    choose(preference, options, kvm).await
}

async fn choose(
    preference: EnginePreference,
    options: &SelectOptions,
    kvm: KvmVerdict,
) -> Result<Selection, SelectError> {
    let mut findings = vec![Finding {
        about: Subject::Kvm,
        usable: kvm.is_usable(),
        detail: kvm.to_string(),
        missing: false,
        version: None,
    }];
    match preference {
        EnginePreference::Firecracker => {
            if !kvm.is_usable() && !options.allow_unusable_kvm {
                return Err(SelectError::UnusableKvm(kvm));
            }
            let engine = open_firecracker(options, &mut findings).await?;
            Ok(firecracker(engine, "it was asked for", &kvm, findings))
        }
        EnginePreference::Qemu => {
            let engine = open_qemu(options, &kvm, &mut findings).await?;
            Ok(qemu(engine, "it was asked for", &kvm, findings))
        }
        EnginePreference::Auto => {
            let firecracker_engine = open_firecracker(options, &mut findings).await;
            match firecracker_engine {
                Ok(engine) if kvm.is_usable() => {
                    let reason = "KVM runs guests and Firecracker is installed";
                    return Ok(firecracker(engine, reason, &kvm, findings));
                }
                // Another engine would not have them either.
                Err(error @ SelectError::Filters(_)) if kvm.is_usable() => return Err(error),
                Ok(_) | Err(_) => {}
            }
            // Each failure is a finding by now; only when nothing is left they are the error.
            match open_qemu(options, &kvm, &mut findings).await {
                Ok(engine) => {
                    let reason = if kvm.is_usable() {
                        findings[1].detail.clone()
                    } else {
                        kvm.to_string()
                    };
                    Ok(qemu(engine, &reason, &kvm, findings))
                }
                Err(_) => Err(SelectError::None(findings)),
            }
        }
    }
}

fn firecracker(
    engine: FirecrackerEngine,
    reason: &str,
    kvm: &KvmVerdict,
    findings: Vec<Finding>,
) -> Selection {
    Selection {
        reason: format!(
            "Firecracker {} because {reason}",
            engine.capabilities().version
        ),
        engine: Arc::new(engine),
        findings,
        warning: (!kvm.is_usable()).then(|| format!("Firecracker cannot run a kernel here: {kvm}")),
    }
}

fn qemu(engine: QemuEngine, reason: &str, kvm: &KvmVerdict, findings: Vec<Finding>) -> Selection {
    let Acceleration::Tcg = engine.capabilities().acceleration else {
        return Selection {
            reason: format!(
                "QEMU {} with KVM because {reason}",
                engine.capabilities().version
            ),
            engine: Arc::new(engine),
            findings,
            warning: None,
        };
    };
    Selection {
        reason: format!(
            "QEMU {} with software emulation because {reason}",
            engine.capabilities().version
        ),
        engine: Arc::new(engine),
        findings,
        warning: Some(format!(
            "QEMU emulates the processor in software: 5 to 20 times slower, and no security \
             boundary against hostile code; {kvm}"
        )),
    }
}

async fn open_firecracker(
    options: &SelectOptions,
    findings: &mut Vec<Finding>,
) -> Result<FirecrackerEngine, SelectError> {
    let explicit = options.firecracker.as_deref();
    let outcome = match find(explicit, FIRECRACKER_VARIABLE, "firecracker") {
        None => Err(SelectError::NoFirecracker),
        Some(path) => filtered(options, &path).await.map(|engine| (path, engine)),
    };
    note(Subject::Firecracker, outcome, findings)
}

/// The Firecracker at `path`, under the user's filters if there are any.
async fn filtered(options: &SelectOptions, path: &Path) -> Result<FirecrackerEngine, SelectError> {
    let engine = FirecrackerEngine::open(path)
        .await
        .map_err(SelectError::Firecracker)?;
    let Some(filters) = &options.seccomp_filters else {
        return Ok(engine);
    };
    let compiler = std::env::var_os(SECCOMPILER_VARIABLE)
        .map_or_else(|| path.with_file_name("seccompiler-bin"), PathBuf::from);
    let compiled = options.cache_dir.join(COMPILED_FILTERS);
    engine
        .with_filters(filters, &compiler, &compiled)
        .await
        .map_err(SelectError::Filters)
}

async fn open_qemu(
    options: &SelectOptions,
    kvm: &KvmVerdict,
    findings: &mut Vec<Finding>,
) -> Result<QemuEngine, SelectError> {
    let acceleration = if kvm.is_usable() {
        Acceleration::Kvm
    } else {
        Acceleration::Tcg
    };
    let outcome = match find(options.qemu.as_deref(), QEMU_VARIABLE, QEMU_PROGRAM) {
        None => Err(SelectError::NoQemu),
        Some(path) => QemuEngine::open(&path, acceleration, &options.cache_dir)
            .await
            .map(|engine| (path, engine))
            .map_err(SelectError::Qemu),
    };
    note(Subject::Qemu, outcome, findings)
}

fn note<E: Engine>(
    about: Subject,
    outcome: Result<(PathBuf, E), SelectError>,
    findings: &mut Vec<Finding>,
) -> Result<E, SelectError> {
    let (usable, detail) = match &outcome {
        Ok((path, engine)) => (true, found(path, engine)),
        Err(error) => (false, with_cause(error)),
    };
    let missing = matches!(
        outcome,
        Err(SelectError::NoFirecracker | SelectError::NoQemu)
    );
    let version = outcome.as_ref().ok();
    let version = version.map(|(_, engine)| engine.capabilities().version.clone());
    findings.push(Finding {
        about,
        usable,
        detail,
        missing,
        version,
    });
    outcome.map(|(_, engine)| engine)
}

fn found(path: &Path, engine: &impl Engine) -> String {
    format!("{} {}", path.display(), engine.capabilities().version)
}

fn with_cause(error: &SelectError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
