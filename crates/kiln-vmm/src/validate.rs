//! Whether a machine can be made as specified: every fault, before anything is touched.

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::jail::{JailSpec, base_fault};
use crate::machine::{Boot, Disk, MachineSpec};
use crate::nic::Nic;
use crate::tap::NAME_BYTES;

/// `sizeof(sockaddr_un.sun_path)` without the final NUL.
pub const MAX_SOCKET_PATH_BYTES: usize = 107;
/// `COMMAND_LINE_SIZE` of an x86 kernel without the final NUL; what is longer would be cut.
pub const MAX_KERNEL_ARGS_BYTES: usize = 2047;
/// A virtio-blk serial number holds 20 bytes; the id is the serial number.
pub const MAX_DISK_ID_BYTES: usize = 20;

/// One fault of a [`MachineSpec`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "each message says it")]
pub enum SpecFault {
    #[error("the id {0:?} is not 1 to 64 characters of A-Z, a-z, 0-9 and `-`")]
    Id(String),
    #[error("{0} vCPUs are not between 1 and 32")]
    Vcpus(u8),
    #[error("memory must be at least 1 MiB")]
    Memory,
    #[error("the {what} {path} cannot be read: {reason}")]
    Unreadable {
        what: &'static str,
        path: PathBuf,
        reason: String,
    },
    #[error("the {what} path {path:?} is not absolute")]
    Relative { what: &'static str, path: PathBuf },
    #[error("the {what} path {path:?} cannot be passed to this engine: {reason}")]
    Path {
        what: &'static str,
        path: PathBuf,
        reason: &'static str,
    },
    #[error("the kernel {0} is not an uncompressed 64-bit ELF image (vmlinux)")]
    KernelFormat(PathBuf),
    #[error("the kernel argument {0:?} contains a blank or a control character")]
    KernelArg(String),
    #[error("the kernel arguments take {0} bytes; at most {MAX_KERNEL_ARGS_BYTES} fit")]
    KernelArgs(usize),
    #[error(
        "the disk id {0:?} is not 1 to {MAX_DISK_ID_BYTES} characters of A-Z, a-z, 0-9 and `_`"
    )]
    DiskId(String),
    #[error("the disk id {0:?} is used twice")]
    DiskTwice(String),
    #[error("{count} disks are more than the {max} that this engine has room for")]
    Disks { count: usize, max: usize },
    #[error("the disk {0} is neither a regular file nor a block device")]
    DiskKind(PathBuf),
    #[error("the interface id {0:?} is not 1 to 20 characters of A-Z, a-z, 0-9 and `_`")]
    NicId(String),
    #[error("the interface id {0:?} is used twice")]
    NicTwice(String),
    #[error("{count} interfaces are more than the {max} that this engine has room for")]
    Nics { count: usize, max: usize },
    #[error("{0:?} cannot be the name of a TAP")]
    Tap(String),
    #[error("the TAP {0:?} is used twice")]
    TapTwice(String),
    #[error("this engine has no rate limiter for the interface {0:?}")]
    NicLimit(String),
    #[error("the network namespace {path} cannot be used: {reason}")]
    Netns { path: PathBuf, reason: String },
    #[error("a VMM of root's must be jailed, unless --allow-insecure-vmm accepts that it is not")]
    Unjailed,
    #[error("only root can make a jail")]
    JailNeedsRoot,
    #[error("the user {uid} with group {gid} is no unprivileged user")]
    JailUser { uid: u32, gid: u32 },
    #[error("{path} cannot hold jails: {reason}")]
    JailBase { path: PathBuf, reason: &'static str },
    #[error("{0:?} is no relative name of a control group")]
    CgroupParent(String),
    #[error(
        "a jail needs Firecracker's jailer: install it beside Firecracker, or name it with KILN_JAILER"
    )]
    NoJailer,
    #[error("Firecracker {version} does not know {feature:?}")]
    NotInVersion {
        feature: crate::firecracker::version::Feature,
        version: crate::firecracker::version::Version,
    },
    #[error("this engine has no {0}")]
    Option(&'static str),
    #[error("{0} vCPUs cannot be threads of whole cores")]
    OddThreads(u8),
    #[error("more than one disk is the root: {0:?}")]
    Roots(Vec<String>),
    #[error("the balloon of {balloon_mib} MiB is not smaller than the memory of {mem_mib} MiB")]
    Balloon { balloon_mib: u32, mem_mib: u32 },
    #[error(
        "memory of {total_mib} MiB cannot be added in slots of {slot_mib} and blocks of {block_mib} MiB"
    )]
    Hotplug {
        total_mib: u32,
        slot_mib: u32,
        block_mib: u32,
    },
    #[error("the metadata service is to answer on {0:?}, which is no interface of the machine")]
    MetadataNic(String),
    #[error("a metadata service needs an interface to answer on")]
    MetadataNics,
    #[error("the runtime directory {0} is not an existing directory")]
    RuntimeDir(PathBuf),
    #[error(
        "the socket path {path} has {bytes} bytes; a Unix socket takes {MAX_SOCKET_PATH_BYTES}"
    )]
    SocketPath { path: PathBuf, bytes: usize },
    #[error("the directory of the console log {0} does not exist")]
    ConsoleLog(PathBuf),
}

/// Every fault of a [`MachineSpec`], never empty.
#[derive(Debug, PartialEq, Eq)]
pub struct SpecFaults(pub Vec<SpecFault>);

impl fmt::Display for SpecFaults {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, fault) in self.0.iter().enumerate() {
            let separator = if position == 0 { "" } else { "; " };
            write!(formatter, "{separator}{fault}")?;
        }
        Ok(())
    }
}

/// What an engine adds to the rules that all share.
#[derive(Debug)]
pub(crate) struct EngineLimits {
    pub(crate) max_disks: usize,
    pub(crate) max_nics: usize,
    /// Whether it can limit what goes through an interface.
    pub(crate) limits_nics: bool,
    /// Names of the sockets in their directory.
    pub(crate) sockets: &'static [&'static str],
    /// Where the sockets are, when not in the runtime directory.
    pub(crate) socket_dir: Option<PathBuf>,
    /// Whether a machine of root's has to be jailed.
    pub(crate) confines: bool,
    /// The kernel arguments that the engine puts in front.
    pub(crate) own_args: String,
}

/// Checks `spec` whole.
pub(crate) fn check(spec: &MachineSpec, limits: &EngineLimits) -> Result<(), SpecFaults> {
    let mut faults = Vec::new();
    check_size(spec, &mut faults);
    match &spec.restore {
        None => check_boot(&spec.boot, limits, &mut faults),
        Some(restore) => check_path("snapshot", &restore.dir, &mut faults),
    }
    check_disks(&spec.disks, limits, &mut faults);
    check_nics(&spec.nics, limits, &mut faults);
    check_options(spec, &mut faults);
    check_places(spec, limits, &mut faults);
    check_confinement(spec, limits, &mut faults);
    if faults.is_empty() {
        Ok(())
    } else {
        Err(SpecFaults(faults))
    }
}

/// The caller's kernel arguments behind the engine's own.
pub(crate) fn command_line(own: &str, caller: &[String]) -> String {
    let mut line = own.to_owned();
    for arg in caller {
        line.push(' ');
        line.push_str(arg);
    }
    line
}

fn check_size(spec: &MachineSpec, faults: &mut Vec<SpecFault>) {
    let id_fits = (1..=64).contains(&spec.id.len())
        && spec
            .id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if !id_fits {
        faults.push(SpecFault::Id(spec.id.clone()));
    }
    if !(1..=32).contains(&spec.vcpus) {
        faults.push(SpecFault::Vcpus(spec.vcpus));
    }
    if spec.mem_mib == 0 {
        faults.push(SpecFault::Memory);
    }
}

fn check_boot(boot: &Boot, limits: &EngineLimits, faults: &mut Vec<SpecFault>) {
    if let Some(mut kernel) = open("kernel", &boot.kernel, faults)
        && !is_elf64(&mut kernel)
    {
        faults.push(SpecFault::KernelFormat(boot.kernel.clone()));
    }
    if let Some(initramfs) = &boot.initramfs {
        open("initramfs", initramfs, faults);
    }
    for arg in &boot.args {
        // A blank would make two arguments of one, a NUL end the line.
        if arg.is_empty() || arg.chars().any(|c| c.is_whitespace() || c.is_control()) {
            faults.push(SpecFault::KernelArg(arg.clone()));
        }
    }
    let bytes = command_line(&limits.own_args, &boot.args).len();
    if bytes > MAX_KERNEL_ARGS_BYTES {
        faults.push(SpecFault::KernelArgs(bytes));
    }
}

fn check_disks(disks: &[Disk], limits: &EngineLimits, faults: &mut Vec<SpecFault>) {
    if disks.len() > limits.max_disks {
        faults.push(SpecFault::Disks {
            count: disks.len(),
            max: limits.max_disks,
        });
    }
    let mut seen = HashSet::new();
    for disk in disks {
        if !is_device_id(&disk.id) {
            faults.push(SpecFault::DiskId(disk.id.clone()));
        }
        if !seen.insert(&disk.id) {
            faults.push(SpecFault::DiskTwice(disk.id.clone()));
        }
        check_disk_file(disk, faults);
    }
}

/// Firecracker's rule for the ids of devices, and what fits a serial number.
fn is_device_id(id: &str) -> bool {
    (1..=MAX_DISK_ID_BYTES).contains(&id.len())
        && id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn check_nics(nics: &[Nic], limits: &EngineLimits, faults: &mut Vec<SpecFault>) {
    if nics.len() > limits.max_nics {
        faults.push(SpecFault::Nics {
            count: nics.len(),
            max: limits.max_nics,
        });
    }
    let (mut ids, mut taps) = (HashSet::new(), HashSet::new());
    for nic in nics {
        if !is_device_id(&nic.id) {
            faults.push(SpecFault::NicId(nic.id.clone()));
        }
        if !ids.insert(&nic.id) {
            faults.push(SpecFault::NicTwice(nic.id.clone()));
        }
        if !is_interface(&nic.tap) {
            faults.push(SpecFault::Tap(nic.tap.clone()));
        }
        if !taps.insert(&nic.tap) {
            faults.push(SpecFault::TapTwice(nic.tap.clone()));
        }
        if !limits.limits_nics && (nic.rx_limit.is_some() || nic.tx_limit.is_some()) {
            faults.push(SpecFault::NicLimit(nic.id.clone()));
        }
    }
}

fn check_options(spec: &MachineSpec, faults: &mut Vec<SpecFault>) {
    let options = &spec.options;
    if options.smt && spec.vcpus > 1 && !spec.vcpus.is_multiple_of(2) {
        faults.push(SpecFault::OddThreads(spec.vcpus));
    }
    let roots = spec.disks.iter().filter(|disk| disk.options.root);
    let roots: Vec<String> = roots.map(|disk| disk.id.clone()).collect();
    if roots.len() > 1 {
        faults.push(SpecFault::Roots(roots));
    }
    if let Some(network) = &options.user_network {
        check_path("user-mode network", &network.socket, faults);
    }
    if let Some(balloon) = options.balloon
        && balloon.amount_mib >= spec.mem_mib
    {
        faults.push(SpecFault::Balloon {
            balloon_mib: balloon.amount_mib,
            mem_mib: spec.mem_mib,
        });
    }
    if let Some(memory) = &options.memory_hotplug {
        let (slot_mib, block_mib) = (
            memory.slot_mib.unwrap_or(128),
            memory.block_mib.unwrap_or(2),
        );
        let total_mib = memory.total_mib;
        // Larger sizes overflow in Firecracker, which then takes another number for them.
        let fits = block_mib >= 2
            && block_mib.is_power_of_two()
            && slot_mib >= 128
            && slot_mib.is_multiple_of(block_mib)
            && total_mib > 0
            && total_mib.is_multiple_of(slot_mib);
        if !fits {
            faults.push(SpecFault::Hotplug {
                total_mib,
                slot_mib,
                block_mib,
            });
        }
    }
    if let Some(metadata) = &options.metadata {
        if metadata.nics.is_empty() {
            faults.push(SpecFault::MetadataNics);
        }
        for id in &metadata.nics {
            if !spec.nics.iter().any(|nic| nic.id == *id) {
                faults.push(SpecFault::MetadataNic(id.clone()));
            }
        }
    }
}

/// What the kernel takes for the name of an interface, without its pattern character.
fn is_interface(name: &str) -> bool {
    (1..NAME_BYTES).contains(&name.len())
        && name != "."
        && name != ".."
        && name
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%'))
}

fn check_confinement(spec: &MachineSpec, limits: &EngineLimits, faults: &mut Vec<SpecFault>) {
    if let Some(path) = &spec.netns {
        check_path("network namespace", path, faults);
        if let Err(error) = File::open(path) {
            faults.push(SpecFault::Netns {
                path: path.clone(),
                reason: error.to_string(),
            });
        }
    }
    let root = rustix::process::geteuid().is_root();
    match &spec.jail {
        Some(_) if !root => faults.push(SpecFault::JailNeedsRoot),
        Some(jail) => check_jail(jail, faults),
        None if root && limits.confines && !spec.allow_insecure => faults.push(SpecFault::Unjailed),
        None => {}
    }
}

fn check_jail(jail: &JailSpec, faults: &mut Vec<SpecFault>) {
    // The last number stands for "unchanged" in every call that takes one.
    let unprivileged = |id: u32| id != 0 && id != u32::MAX;
    if !unprivileged(jail.uid) || !unprivileged(jail.gid) {
        faults.push(SpecFault::JailUser {
            uid: jail.uid,
            gid: jail.gid,
        });
    }
    check_path("jail directory", &jail.base_dir, faults);
    if let Some(reason) = base_fault(&jail.base_dir) {
        let path = jail.base_dir.clone();
        faults.push(SpecFault::JailBase { path, reason });
    }
    let parent = &jail.cgroup_parent;
    let plain = |part: &str| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte))
    };
    if !parent.split('/').all(plain) {
        faults.push(SpecFault::CgroupParent(parent.clone()));
    }
}

fn check_disk_file(disk: &Disk, faults: &mut Vec<SpecFault>) {
    use std::os::unix::fs::FileTypeExt;
    check_path("disk", &disk.path, faults);
    match std::fs::metadata(&disk.path) {
        Ok(data) if data.is_file() || data.file_type().is_block_device() => {}
        Ok(_) => faults.push(SpecFault::DiskKind(disk.path.clone())),
        Err(error) => faults.push(unreadable("disk", &disk.path, &error)),
    }
}

fn check_places(spec: &MachineSpec, limits: &EngineLimits, faults: &mut Vec<SpecFault>) {
    check_path("runtime directory", &spec.runtime_dir, faults);
    if !spec.runtime_dir.is_dir() {
        faults.push(SpecFault::RuntimeDir(spec.runtime_dir.clone()));
    }
    // The longest name decides; one fault is enough.
    let longest = limits.sockets.iter().max_by_key(|name| name.len());
    let socket_dir = limits.socket_dir.as_ref().unwrap_or(&spec.runtime_dir);
    if let Some(path) = longest.map(|name| socket_dir.join(name)) {
        let bytes = path.as_os_str().as_bytes().len();
        if bytes > MAX_SOCKET_PATH_BYTES {
            faults.push(SpecFault::SocketPath { path, bytes });
        }
    }
    check_path("console log", &spec.console_log, faults);
    if !spec.console_log.parent().is_some_and(Path::is_dir) {
        faults.push(SpecFault::ConsoleLog(spec.console_log.clone()));
    }
}

/// The VMM runs in another directory, and its protocols carry UTF-8 only.
fn check_path(what: &'static str, path: &Path, faults: &mut Vec<SpecFault>) {
    if !path.is_absolute() {
        let path = path.to_owned();
        faults.push(SpecFault::Relative { what, path });
    }
    if path.to_str().is_none() {
        faults.push(SpecFault::Path {
            what,
            path: path.to_owned(),
            reason: "it is not UTF-8",
        });
    }
}

fn open(what: &'static str, path: &Path, faults: &mut Vec<SpecFault>) -> Option<File> {
    check_path(what, path, faults);
    // Looked at before it is opened: opening a FIFO would block.
    let opened = std::fs::metadata(path).and_then(|data| {
        if data.is_file() {
            File::open(path)
        } else {
            Err(std::io::Error::other("it is not a regular file"))
        }
    });
    match opened {
        Ok(file) => Some(file),
        Err(error) => {
            faults.push(unreadable(what, path, &error));
            None
        }
    }
}

fn unreadable(what: &'static str, path: &Path, error: &std::io::Error) -> SpecFault {
    SpecFault::Unreadable {
        what,
        path: path.to_owned(),
        reason: error.to_string(),
    }
}

/// `\x7fELF`, then class 2: 64 bits.
fn is_elf64(file: &mut File) -> bool {
    let mut head = [0; 5];
    file.read_exact(&mut head).is_ok() && head == *b"\x7fELF\x02"
}

#[cfg(test)]
mod tests;
