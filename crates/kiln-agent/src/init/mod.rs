//! Process 1: from an empty initramfs to a guest in which commands can run.
//!
//! Owns the order of the mounts, modules and the root filesystem, and their undoing at the end.
//! Knows nothing of hosts and sessions.

pub(crate) mod cmdline;
pub(crate) mod handover;
mod modules;
pub(crate) mod net;
mod root;
pub(crate) mod shutdown;
mod system;

pub(crate) use system::CGROUPS;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use cmdline::{Cmdline, CmdlineError};

use crate::marks::Marks;

/// A guest that cannot be brought up.
#[derive(Debug)]
pub(crate) enum InitError {
    /// The kernel's command line.
    Cmdline(CmdlineError),
    /// The root filesystem's or the scratch disk's device did not appear.
    NoDevice(PathBuf),
    /// A mount failed.
    Mount {
        device: PathBuf,
        filesystem: String,
        target: PathBuf,
        source: io::Error,
    },
    /// The image is to bring its own init, and has none.
    NoInit(&'static [&'static str]),
    /// Another step failed.
    Step {
        step: &'static str,
        source: io::Error,
    },
}

impl fmt::Display for InitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cmdline(error) => write!(f, "{error}"),
            Self::NoDevice(device) => write!(f, "there is no device {}", device.display()),
            Self::Mount {
                device,
                filesystem,
                target,
                source,
            } => write!(
                f,
                "cannot mount {} as {filesystem} on {}: {source}",
                device.display(),
                target.display()
            ),
            Self::NoInit(places) => {
                write!(
                    f,
                    "the image has no init: there is no {}",
                    places.join(", ")
                )
            }
            Self::Step { step, source } => write!(f, "cannot {step}: {source}"),
        }
    }
}

/// Where the initramfs has the modules, and the order in which they are loaded.
const MODULES: &str = "/lib/modules";

/// Brings the guest up.
pub(crate) fn bring_up(marks: &mut Marks) -> Result<Cmdline, InitError> {
    system::mount_kernel_filesystems()?;
    system::protect_process_1();
    marks.set("kernel-filesystems");
    let line = std::fs::read_to_string("/proc/cmdline").map_err(|source| InitError::Step {
        step: "read /proc/cmdline",
        source,
    })?;
    let cmdline = cmdline::parse(&line).map_err(InitError::Cmdline)?;
    modules::load_all(Path::new(MODULES));
    marks.set("modules");
    if let Some(spec) = &cmdline.root {
        let scratch = root::mount(spec)?;
        marks.set("root");
        root::switch()?;
        shutdown::remember_scratch(scratch);
        marks.set("switch-root");
    }
    system::furnish();
    if let Some(spec) = &cmdline.root {
        shutdown::remember_volumes(root::mount_volumes(&spec.volumes)?);
    }
    if let Some(network) = &cmdline.network {
        net::apply(network);
    }
    marks.set("system");
    Ok(cmdline)
}

/// As the command line says, also when it could not be understood as a whole.
pub(crate) fn switch_off_mode() -> cmdline::SwitchOff {
    let line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    cmdline::switch_off(&line)
}
