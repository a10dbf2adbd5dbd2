//! Running the tiny guest in a process of its own.
#![allow(unsafe_code, reason = "the child runs the guest between fork and exec")]

use std::io::Error;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, Signal, set_parent_process_death_signal, setrlimit};

use super::{KvmVerdict, Step, Symptom};

/// Far beyond the limit on processor time: only a process that the kernel itself holds up is
/// still there then.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the child found, packed into the number that it can report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Usable,
    Ended(Symptom),
    OldApi(i32),
    Failed(Step, i32),
}

/// Runs the guest and judges.
pub(super) fn run(pvm: bool) -> KvmVerdict {
    let (answer, verdict) = mpsc::channel();
    let judge = move || {
        let _ = answer.send(run_child(pvm));
    };
    // On a thread of its own, so that a child that never ends holds up nobody else.
    if std::thread::Builder::new()
        .name("kvm-probe".into())
        .spawn(judge)
        .is_err()
    {
        return KvmVerdict::Silent { pvm };
    }
    verdict
        .recv_timeout(PATIENCE)
        .unwrap_or(KvmVerdict::Silent { pvm })
}

/// The standard library forks the child and reports the error of what runs before the exec;
/// there never is an exec, and the "error" is the outcome.
fn run_child(pvm: bool) -> KvmVerdict {
    let mut command = Command::new("/nonexistent");
    command
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // SAFETY: the closure runs in the forked child of a program that may have threads, so it may
    // only do what is async-signal-safe: system calls, and arithmetic on its own stack and on
    // memory that it maps itself. Nothing in it allocates, locks or panics.
    unsafe {
        command.pre_exec(|| {
            limit_self()?;
            Err(Error::from_raw_os_error(pack(guest_outcome())))
        });
    }
    match command.spawn() {
        Err(error) => match error.raw_os_error().and_then(unpack) {
            Some(outcome) => judge(outcome, pvm),
            None => KvmVerdict::Refused {
                step: Step::Open,
                reason: error.to_string(),
            },
        },
        // It died without a report, as the limit on its time demands.
        Ok(mut child) => match child.wait() {
            Ok(status) if status.signal() == Some(Signal::XCPU.as_raw()) => {
                KvmVerdict::Silent { pvm }
            }
            Ok(_) | Err(_) => KvmVerdict::Silent { pvm },
        },
    }
}

fn limit_self() -> std::io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let at_most = |amount| Rlimit {
        current: Some(amount),
        maximum: Some(amount),
    };
    setrlimit(Resource::Core, at_most(0))?;
    setrlimit(Resource::Cpu, at_most(1))?;
    Ok(())
}

#[cfg(target_arch = "x86_64")]
fn guest_outcome() -> Outcome {
    super::kvm::run_guest()
}

/// Emulation without hardware is not known there: opening the device has to do.
#[cfg(not(target_arch = "x86_64"))]
fn guest_outcome() -> Outcome {
    Outcome::Usable
}

fn judge(outcome: Outcome, pvm: bool) -> KvmVerdict {
    match outcome {
        Outcome::Usable => KvmVerdict::Usable,
        Outcome::Ended(symptom) => KvmVerdict::EmulatesOnly { symptom, pvm },
        Outcome::OldApi(version) => KvmVerdict::OldApi { version },
        Outcome::Failed(step, errno) => KvmVerdict::Refused {
            step,
            reason: Error::from_raw_os_error(errno).to_string(),
        },
    }
}

/// Marks a number as an outcome: no error number of a system call has this bit.
const MARK: i32 = 1 << 24;

const STEPS: [Step; 6] = [
    Step::Open,
    Step::CreateVm,
    Step::Memory,
    Step::CreateVcpu,
    Step::Registers,
    Step::Run,
];

/// Kind in bits 20 to 23, step in bits 16 to 19, value below.
fn pack(outcome: Outcome) -> i32 {
    let (kind, step, value) = match outcome {
        Outcome::Usable => (0, 0, 0),
        Outcome::Ended(Symptom::InternalError) => (1, 0, 0),
        Outcome::Ended(Symptom::Shutdown) => (2, 0, 0),
        Outcome::Ended(Symptom::FailedEntry) => (3, 0, 0),
        Outcome::Ended(Symptom::WrongResult) => (4, 0, 0),
        Outcome::Ended(Symptom::Exit(number)) => (5, 0, i32::from(number)),
        Outcome::OldApi(version) => (6, 0, version.clamp(0, 0xffff)),
        Outcome::Failed(step, errno) => (7, step as i32, errno.clamp(0, 0xffff)),
    };
    MARK | kind << 20 | step << 16 | value
}

fn unpack(number: i32) -> Option<Outcome> {
    if number & MARK == 0 {
        return None;
    }
    let value = number & 0xffff;
    Some(match (number >> 20) & 0xf {
        0 => Outcome::Usable,
        1 => Outcome::Ended(Symptom::InternalError),
        2 => Outcome::Ended(Symptom::Shutdown),
        3 => Outcome::Ended(Symptom::FailedEntry),
        4 => Outcome::Ended(Symptom::WrongResult),
        5 => Outcome::Ended(Symptom::Exit(u8::try_from(value).ok()?)),
        6 => Outcome::OldApi(value),
        7 => {
            let step = usize::try_from((number >> 16) & 0xf).ok()?;
            Outcome::Failed(*STEPS.get(step)?, value)
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_reads_back_as_itself() {
        let mut outcomes = vec![Outcome::Usable, Outcome::OldApi(11)];
        outcomes.extend(
            [
                Symptom::InternalError,
                Symptom::Shutdown,
                Symptom::FailedEntry,
                Symptom::WrongResult,
                Symptom::Exit(31),
            ]
            .map(Outcome::Ended),
        );
        outcomes.extend(STEPS.map(|step| Outcome::Failed(step, 22)));
        for outcome in outcomes {
            assert_eq!(unpack(pack(outcome)), Some(outcome));
        }
        assert_eq!(unpack(2), None);
    }

    #[test]
    fn a_child_that_spins_is_ended_by_its_own_limit() {
        let mut command = Command::new("/nonexistent");
        // SAFETY: the closure makes system calls and spins.
        unsafe {
            command.pre_exec(|| {
                limit_self()?;
                loop {
                    std::hint::spin_loop();
                }
            });
        }
        let status = command.spawn().unwrap().wait().unwrap();
        // The soft and the hard limit are the same: XCPU or KILL, whichever comes first.
        assert!(matches!(status.signal(), Some(9 | 24)), "{status:?}");
    }
}
