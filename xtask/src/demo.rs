//! `cargo xtask demo`: the main job on real input, from a fresh clone.
//!
//! Owns a data directory of its own under the target directory, so that nothing else on the
//! machine is touched, and stops the daemon that it started.

use std::fs;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use crate::kiln::{self, Kiln, KilnError};
use crate::setup::{self, Purpose, SetupError};
use crate::step::StepError;
use crate::workspace;

/// Why the demonstration failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DemoError {
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error(transparent)]
    Build(#[from] StepError),
    #[error(transparent)]
    Kiln(#[from] KilnError),
    #[error("cannot read this machine's boot id")]
    HostBootId(#[source] std::io::Error),
    #[error("the guest did not answer as a Linux guest does: {0}")]
    NotAGuest(&'static str),
}

/// What the guest is asked. The boot id tells it from the host: each running kernel has its own.
const COMMAND: &str = "uname -a; cat /proc/sys/kernel/random/boot_id; \
     head -n 1 /etc/os-release; grep MemTotal /proc/meminfo; \
     echo 'PID 1 is' \"$(tr '\\0' ' ' < /proc/1/cmdline)\"";

const HOST_BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

pub(crate) fn run() -> Result<ExitCode, DemoError> {
    setup::ensure(Purpose::Demo)?;
    kiln::build()?;
    let kiln = Kiln::with_data_dir(workspace::target().join("demo"))?;
    let started = Instant::now();
    let output = guest_output(&kiln)?;
    let took = started.elapsed();
    print!("{output}");
    let host_boot_id = fs::read_to_string(HOST_BOOT_ID).map_err(DemoError::HostBootId)?;
    check(&output, host_boot_id.trim()).map_err(DemoError::NotAGuest)?;
    println!(
        "demo: a microVM was made, ran this and was removed in {:.2} s",
        took.as_secs_f64()
    );
    kiln.close()?;
    Ok(ExitCode::SUCCESS)
}

/// Standard output alone is caught: progress and warnings go straight to the terminal.
fn guest_output(kiln: &Kiln) -> Result<String, DemoError> {
    let mut command: Command = kiln.command(["run", "--", "sh", "-c", COMMAND]);
    command.stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = kiln.output(&mut command)?;
    Ok(String::from_utf8_lossy(&output).into_owned())
}

/// Whether this is what a Linux guest says, and not the host itself.
fn check(output: &str, host_boot_id: &str) -> Result<(), &'static str> {
    let mut lines = output.lines();
    let kernel = lines.next().unwrap_or_default();
    if !kernel.starts_with("Linux ") || !kernel.contains(std::env::consts::ARCH) {
        return Err("the first line is not that of `uname -a` on this architecture");
    }
    let boot_id = lines.next().unwrap_or_default().trim();
    if boot_id.len() != 36 || boot_id.split('-').count() != 5 {
        return Err("the second line is not a boot id");
    }
    if boot_id == host_boot_id {
        return Err("the boot id is the host's own: the command ran here, not in a guest");
    }
    if !output.contains("MemTotal:") {
        return Err("there is no MemTotal line");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: &str = "0b1c2d3e-0000-4000-8000-00000000000a";
    const HOST: &str = "ffffffff-0000-4000-8000-00000000000b";

    fn output(boot_id: &str) -> String {
        format!(
            "Linux box 6.1.0-56-cloud-amd64 #1 SMP {arch} GNU/Linux\n{boot_id}\n\
             PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nMemTotal: 480000 kB\nPID 1 is /init\n",
            arch = std::env::consts::ARCH
        )
    }

    #[test]
    fn a_guest_is_believed() {
        assert_eq!(check(&output(GUEST), HOST), Ok(()));
    }

    #[test]
    fn the_host_is_not_taken_for_a_guest() {
        assert!(
            check(&output(HOST), HOST)
                .unwrap_err()
                .contains("the host's own")
        );
    }

    #[test]
    fn other_output_is_refused() {
        for wrong in ["", "Linux\n", "ok\n", &output("no id")] {
            assert!(check(wrong, HOST).is_err(), "{wrong:?}");
        }
    }
}
