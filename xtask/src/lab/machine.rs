//! The QEMU process of the lab: started, followed, and gone in any case.

use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use super::clock;
use crate::qemu::Qemu;

/// Why the machine gave no exit code.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MachineError {
    #[error("cannot start QEMU")]
    Start(#[source] io::Error),
    #[error("cannot follow QEMU")]
    Follow(#[source] io::Error),
    #[error("the command had not ended after {seconds} s; the console said last:\n{console}")]
    Deadline { seconds: u64, console: String },
    #[error("the lab ended ({status}) without an exit code; the console said last:\n{console}")]
    NoExitCode { status: ExitStatus, console: String },
}

/// A machine to be run once.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) kernel: PathBuf,
    pub(super) initrd: PathBuf,
    pub(super) disk: PathBuf,
    pub(super) mem_mib: u32,
    pub(super) cpus: u32,
    pub(super) timeout: Duration,
    /// Where the guest's console goes.
    pub(super) console: PathBuf,
}

/// The names of the virtio-serial ports that `init.sh` looks for.
const PORTS: [&str; 3] = ["lab.out", "lab.err", "lab.exit"];

/// How many of the console's last lines an error carries.
const CONSOLE_TAIL: usize = 30;

impl Machine {
    /// Runs the machine to its end. The command's outputs go to the writers.
    pub(super) fn run<O, E>(&self, stdout: O, stderr: E) -> Result<(u8, O, E), MachineError>
    where
        O: Write + Send + 'static,
        E: Write + Send + 'static,
    {
        let mut command = self.command();
        let [out, err, exit] = ports(&mut command).map_err(MachineError::Start)?;
        let mut qemu = Qemu::start(&mut command, &[&out.theirs, &err.theirs, &exit.theirs])
            .map_err(MachineError::Start)?;
        let (out, err) = (pass_on(out, stdout), pass_on(err, stderr));
        let code = last_words(exit);
        let status = qemu.wait(self.timeout).map_err(MachineError::Follow)?;
        drop(qemu);
        // QEMU is gone, so each of these has met its end of file.
        let (stdout, stderr) = (joined(out)?, joined(err)?);
        let code = joined(code)?;
        let Some(status) = status else {
            let seconds = self.timeout.as_secs();
            return Err(MachineError::Deadline {
                seconds,
                console: tail(&self.console),
            });
        };
        match code {
            Some(code) => Ok((code, stdout, stderr)),
            None => Err(MachineError::NoExitCode {
                status,
                console: tail(&self.console),
            }),
        }
    }

    fn command(&self) -> Command {
        let mut command = crate::qemu::command("qemu-system-x86_64");
        command.args(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot"]);
        command.args(["-M", "microvm,accel=tcg", "-cpu", "max"]);
        command.args([
            "-smp",
            &self.cpus.to_string(),
            "-m",
            &format!("{}M", self.mem_mib),
        ]);
        command
            .arg("-kernel")
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(&self.initrd);
        command.args(["-append", &kernel_arguments()]);
        command.arg("-serial").arg(prefixed("file:", &self.console));
        let disk = prefixed("id=root,format=raw,if=none,cache=unsafe,file=", &self.disk);
        command
            .arg("-drive")
            .arg(disk)
            .args(["-device", "virtio-blk-device,drive=root"]);
        command.args(["-device", "virtio-serial-device,id=ports"]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }
}

/// `tsc_early_khz` and `tsc=reliable`: without them a guest hangs at boot on a busy host.
fn kernel_arguments() -> String {
    format!(
        "console=ttyS0 quiet reboot=t panic=-1 pci=off cryptomgr.notests mitigations=off \
         tsc_early_khz={} tsc=reliable",
        clock::tsc_khz()
    )
}

fn prefixed(prefix: &str, path: &Path) -> std::ffi::OsString {
    let mut argument = std::ffi::OsString::from(prefix);
    // A comma would end the value of a QEMU option.
    argument.push(path.to_string_lossy().replace(',', ",,"));
    argument
}

/// The two ends of a port.
#[derive(Debug)]
struct Port {
    ours: UnixStream,
    theirs: UnixStream,
}

fn ports(command: &mut Command) -> io::Result<[Port; 3]> {
    let mut open = |name: &str| -> io::Result<Port> {
        let (ours, theirs) = UnixStream::pair()?;
        let fd = theirs.as_raw_fd();
        command.args(["-chardev", &format!("socket,id={name},fd={fd}")]);
        command.args([
            "-device",
            &format!("virtserialport,bus=ports.0,chardev={name},name={name}"),
        ]);
        Ok(Port { ours, theirs })
    };
    let [out, err, exit] = PORTS;
    Ok([open(out)?, open(err)?, open(exit)?])
}

/// Copies a port's bytes as they come; a writer that fails does not hold the machine up.
fn pass_on<W: Write + Send + 'static>(port: Port, mut writer: W) -> JoinHandle<W> {
    let Port { mut ours, theirs } = port;
    drop(theirs);
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        let mut writable = true;
        while let Ok(count @ 1..) = ours.read(&mut buffer) {
            writable = writable
                && writer
                    .write_all(&buffer[..count])
                    .and_then(|()| writer.flush())
                    .is_ok();
        }
        writer
    })
}

/// Waits for the line `exit N`.
fn last_words(port: Port) -> JoinHandle<Option<u8>> {
    let Port { ours, theirs } = port;
    drop(theirs);
    std::thread::spawn(move || {
        let lines = BufReader::new(ours).lines().map_while(Result::ok);
        lines
            .filter_map(|line| line.strip_prefix("exit ")?.parse().ok())
            .last()
    })
}

fn joined<T>(thread: JoinHandle<T>) -> Result<T, MachineError> {
    thread
        .join()
        .map_err(|_| MachineError::Follow(io::Error::other("a reader of a port broke")))
}

fn tail(console: &Path) -> String {
    let text = std::fs::read(console).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(CONSOLE_TAIL)..].join("\n")
}
