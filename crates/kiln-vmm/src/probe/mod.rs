//! Whether this host's KVM really runs guests.
//!
//! That `/dev/kvm` opens proves nothing: where KVM has no hardware underneath (a nested host with
//! PVM, for instance) it emulates guest code it does not know, a million times too slowly, and
//! fails at the first SSE instruction. So a tiny guest is run that executes what every kernel
//! does. It runs in a process of its own with a limit on its processor time, and the verdict is
//! kept until the next boot.

#[cfg(target_arch = "x86_64")]
mod kvm;
mod runner;

use std::fmt;
use std::path::Path;

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::boot_cache;

const CACHE: &str = "kvm-verdict.json";
/// Modules that make KVM what it is; another set within one boot asks for another probe.
const MODULES: [&str; 3] = ["kvm_intel", "kvm_amd", "kvm_pvm"];

/// What was found out about KVM. Its text says what to do, where something can be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KvmVerdict {
    /// It runs guests.
    Usable,
    /// There is no `/dev/kvm`.
    Missing,
    /// `/dev/kvm` may not be opened by this user.
    Denied,
    /// `/dev/kvm` cannot be opened for another reason.
    Unopenable {
        /// The kernel's words.
        reason: String,
    },
    /// A kernel from before KVM's interface was settled.
    OldApi {
        /// Its version; 12 is the one that lasts.
        version: i32,
    },
    /// KVM refuses to make a machine.
    Refused {
        /// What it refuses.
        step: Step,
        /// The kernel's words.
        reason: String,
    },
    /// It makes machines but cannot run their code.
    EmulatesOnly {
        /// How the tiny guest ended.
        symptom: Symptom,
        /// Whether the PVM module is loaded, which explains it.
        pvm: bool,
    },
    /// The tiny guest had no result within a second of processor time.
    Silent {
        /// Whether the PVM module is loaded, which explains it.
        pvm: bool,
    },
}

/// A step of making a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Opening `/dev/kvm` and asking for its version.
    Open,
    /// Making a virtual machine.
    CreateVm,
    /// Giving it memory.
    Memory,
    /// Giving it a processor.
    CreateVcpu,
    /// Setting the processor's registers to 64-bit mode.
    Registers,
    /// Running it.
    Run,
}

/// How a guest ended that should have printed a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Symptom {
    /// KVM met an instruction that it cannot emulate.
    InternalError,
    /// The processor gave up (triple fault).
    Shutdown,
    /// The processor could not be entered.
    FailedEntry,
    /// It printed another number.
    WrongResult,
    /// Another way, by KVM's number for it.
    Exit(u8),
}

impl KvmVerdict {
    /// Whether guests can be run.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        *self == Self::Usable
    }

    /// Only what the run of a guest showed holds until the next boot: a device node can appear
    /// and a user join a group at any time, and silence may be a coincidence.
    fn is_lasting(&self) -> bool {
        matches!(self, Self::Usable | Self::EmulatesOnly { .. })
    }
}

impl fmt::Display for KvmVerdict {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usable => write!(to, "KVM runs guests"),
            Self::Missing => write!(
                to,
                "there is no /dev/kvm (no hardware virtualisation, disabled in the firmware, or \
                 the kvm_intel or kvm_amd module is not loaded)"
            ),
            Self::Denied => write!(
                to,
                "/dev/kvm may not be opened by this user (join the group kvm: \
                 `sudo usermod -aG kvm $USER`, then log in again)"
            ),
            Self::Unopenable { reason } => write!(to, "/dev/kvm cannot be opened: {reason}"),
            Self::OldApi { version } => {
                write!(to, "KVM has interface version {version}, 12 is needed")
            }
            Self::Refused { step, reason } => {
                write!(to, "KVM makes no machine ({step:?}: {reason})")
            }
            Self::EmulatesOnly { symptom, pvm } => {
                write!(
                    to,
                    "KVM only emulates here and cannot run a kernel ({symptom:?})"
                )?;
                explain(to, *pvm)
            }
            Self::Silent { pvm } => {
                write!(to, "KVM did not run a tiny guest within a second")?;
                explain(to, *pvm)
            }
        }
    }
}

fn explain(to: &mut fmt::Formatter<'_>, pvm: bool) -> fmt::Result {
    if pvm {
        write!(
            to,
            ": this host has PVM, which needs a guest kernel made for it"
        )
    } else {
        Ok(())
    }
}

/// Probes KVM, or takes the verdict of an earlier probe of this boot from `cache_dir`.
pub async fn probe(cache_dir: &Path) -> KvmVerdict {
    let cache_dir = cache_dir.to_owned();
    // Only a runtime that shuts down loses the answer.
    tokio::task::spawn_blocking(move || probe_now(&cache_dir))
        .await
        .unwrap_or(KvmVerdict::Silent { pvm: false })
}

fn probe_now(cache_dir: &Path) -> KvmVerdict {
    if let Err(verdict) = check_device(Path::new("/dev/kvm")) {
        return verdict;
    }
    let modules = loaded_modules();
    if let Some(verdict) = boot_cache::read(cache_dir, CACHE, &modules) {
        return verdict;
    }
    let verdict = runner::run(modules.contains("kvm_pvm"));
    if verdict.is_lasting() {
        boot_cache::write(cache_dir, CACHE, &modules, &verdict);
    }
    verdict
}

fn check_device(path: &Path) -> Result<(), KvmVerdict> {
    match open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        Ok(_) => Ok(()),
        Err(Errno::NOENT) => Err(KvmVerdict::Missing),
        Err(Errno::ACCESS | Errno::PERM) => Err(KvmVerdict::Denied),
        Err(error) => Err(KvmVerdict::Unopenable {
            reason: std::io::Error::from(error).to_string(),
        }),
    }
}

fn loaded_modules() -> String {
    MODULES
        .into_iter()
        .filter(|module| Path::new("/sys/module").join(module).exists())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests;
