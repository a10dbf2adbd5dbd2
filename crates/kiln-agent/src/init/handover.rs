//! Handing process 1 to the image's own init, with the agent beside it.
//!
//! The agent starts once more as an ordinary process and the first one becomes the init. Inits
//! take over whatever runs already, and leave it alone until they go down: systemd moves it to its
//! own control group. Then the others end everything but themselves, and systemd everything of
//! root's but what is named like our second agent ("root storage daemons", systemd.io).

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Pid;

use super::cmdline::SwitchOff;
use super::{InitError, shutdown};
use crate::console;
use crate::sys::signal;

/// First argument of the second agent.
pub(crate) const BESIDE: &str = "--beside-init";
const NAME: &str = "@kiln-agent";
/// Where images have their init, in the order in which Linux itself looks, systemd's own first.
const INITS: [&str; 5] = [
    "/sbin/init",
    "/lib/systemd/systemd",
    "/usr/lib/systemd/systemd",
    "/etc/init",
    "/bin/init",
];
/// There while systemd is process 1 (sd_booted(3)).
const SYSTEMD: &str = "/run/systemd/system";
/// What systemd's process 1 takes for "power off" and "reboot" (systemd(1)).
const SYSTEMD_POWER_OFF: i32 = signal::REAL_TIME + 4;
const SYSTEMD_REBOOT: i32 = signal::REAL_TIME + 5;
/// The OOM killer takes everyone else first.
const NEVER_KILLED: &str = "-1000";

/// Starts the second agent and becomes the image's init. Comes back only when that fails.
pub(crate) fn hand_over() -> InitError {
    let Some(init) = INITS.into_iter().find(|path| is_program(Path::new(path))) else {
        return InitError::NoInit(&INITS);
    };
    let failed = |step| move |source| InitError::Step { step, source };
    // This program's file is gone with the initramfs; its process still has it.
    let mut agent = Command::new("/proc/self/exe");
    if let Err(error) = agent.arg0(NAME).arg(BESIDE).spawn() {
        return failed("start the agent beside the init")(error);
    }
    let mut command = Command::new(init);
    // As the kernel starts an init.
    command.env_clear().env("HOME", "/").env("TERM", "linux");
    failed("become the image's init")(command.exec())
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

/// Makes this process one that survives beside an init.
pub(crate) fn settle_beside() {
    // The console's session is the init's: a hang-up there is none of ours.
    let _ = rustix::process::setsid();
    if let Err(error) = fs::write("/proc/self/oom_score_adj", NEVER_KILLED) {
        console::warn(format_args!("the agent may be killed: {error}"));
    }
}

/// Undoes for a command what [`settle_beside`] did, and it inherited.
pub(crate) fn unprotect(pid: Pid) {
    // It may have ended in the meantime.
    let _ = fs::write(format!("/proc/{}/oom_score_adj", pid.as_raw_nonzero()), "0");
}

/// Has the init take the guest down; does it by force when that takes longer than `patience`.
/// Returns only when the kernel refuses.
pub(crate) fn take_down(how: SwitchOff, patience: Duration) {
    match ask_init(how) {
        Ok(()) => std::thread::sleep(patience),
        Err(error) => console::warn(format_args!("cannot ask the init to end: {error}")),
    }
    rustix::fs::sync();
    shutdown::switch_off(how);
}

fn ask_init(how: SwitchOff) -> io::Result<()> {
    if Path::new(SYSTEMD).is_dir() {
        let number = match how {
            SwitchOff::PowerOff => SYSTEMD_POWER_OFF,
            SwitchOff::Reboot => SYSTEMD_REBOOT,
        };
        return signal::send(Pid::INIT, number);
    }
    // Each init has its own words for it; its own programs know them.
    let program = match how {
        SwitchOff::PowerOff => "poweroff",
        SwitchOff::Reboot => "reboot",
    };
    let mut command = Command::new(program);
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command.spawn().map(drop)
}
