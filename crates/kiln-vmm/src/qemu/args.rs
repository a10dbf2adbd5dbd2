//! QEMU's command line for one machine: pure.
//!
//! Whatever comes from a caller travels as JSON, as a word of its own, or not at all: QEMU's
//! `key=value,key=value` syntax is only used with words of ours, so that no name can add an
//! option. Files, sockets and TAPs are inherited open: QEMU runs as a user who could not open
//! them, and sees no path of the host's.

use std::os::fd::RawFd;

use serde_json::json;

use crate::jail::Protection;
use crate::machine::{Acceleration, MachineSpec};
use crate::validate::command_line;

/// Descriptors of the listening sockets, as the child sees them.
#[derive(Clone, Copy, Debug)]
pub(super) struct SocketFds {
    pub(super) qmp: RawFd,
    pub(super) console: RawFd,
    pub(super) agent: Option<RawFd>,
}

/// A file that is the guest's memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct MemoryFd {
    pub(super) fd: RawFd,
    /// Whether what the guest writes goes into the file.
    pub(super) shared: bool,
}

/// Everything that QEMU inherits, by its numbers there.
#[derive(Clone, Debug)]
pub(super) struct Inherited {
    pub(super) sockets: SocketFds,
    /// The kernel; `None` for a machine that waits for the state of a snapshot.
    pub(super) kernel: Option<RawFd>,
    pub(super) initramfs: Option<RawFd>,
    pub(super) memory: Option<MemoryFd>,
    /// As many as there are disks.
    pub(super) disks: Vec<RawFd>,
    /// As many as there are interfaces.
    pub(super) taps: Vec<RawFd>,
}

/// Room for translated code; QEMU would take an eighth of the host's memory.
pub(super) const TRANSLATED_MIB: u64 = 256;
/// Begin the names of a disk's block node and of its device; its id follows.
pub(super) const DISK_NODE: &str = "disk-";
pub(super) const DISK_DEVICE: &str = "blk-";
/// The balloon's name.
pub(super) const BALLOON: &str = "balloon0";

/// The name under which the guest finds the agent's port.
const AGENT_PORT_NAME: &str = "agent.0";
/// The name of the console's character device, asked for by QMP.
pub(super) const CONSOLE_CHARDEV: &str = "console";

/// Everything behind the program's name.
pub(super) fn arguments(
    spec: &MachineSpec,
    acceleration: Acceleration,
    own_kernel_args: &str,
    inherited: &Inherited,
) -> Vec<String> {
    let mut args = Words::default();
    harden(&mut args, spec);
    machine(&mut args, spec, acceleration, inherited.memory);
    boot(&mut args, spec, own_kernel_args, inherited);
    channels(&mut args, inherited.sockets);
    disks(&mut args, spec, &inherited.disks);
    nics(&mut args, spec, &inherited.taps);
    balloon(&mut args, spec);
    args.option("-device", "virtio-rng-device,id=rng0");
    args.0
}

fn balloon(args: &mut Words, spec: &MachineSpec) {
    let Some(options) = &spec.options.balloon else {
        return;
    };
    let on = |wanted| if wanted { "on" } else { "off" };
    args.option(
        "-device",
        format!(
            "virtio-balloon-device,id={BALLOON},deflate-on-oom={},free-page-reporting={}",
            on(options.deflate_on_oom),
            on(options.free_page_reporting)
        ),
    );
}

fn disks(args: &mut Words, spec: &MachineSpec, fds: &[RawFd]) {
    for (position, (disk, fd)) in spec.disks.iter().zip(fds).enumerate() {
        let node = format!("{DISK_NODE}{}", disk.id);
        args.option("-add-fd", format!("fd={fd},set={position}"));
        args.option(
            "-blockdev",
            json!({
                "driver": "raw",
                "node-name": node,
                // Without, a flush of the guest's ends in the host's page cache.
                "cache": { "direct": false, "no-flush": !disk.options.writeback },
                "read-only": disk.read_only,
                "discard": "unmap",
                "file": {
                    "driver": "file",
                    "filename": format!("/dev/fdset/{position}"),
                    "read-only": disk.read_only,
                    "discard": "unmap",
                },
            })
            .to_string(),
        );
        args.option(
            "-device",
            json!({
                "driver": "virtio-blk-device",
                "id": format!("{DISK_DEVICE}{}", disk.id),
                "drive": node,
                "serial": disk.id,
            })
            .to_string(),
        );
    }
}

fn nics(args: &mut Words, spec: &MachineSpec, fds: &[RawFd]) {
    for (position, (nic, fd)) in spec.nics.iter().zip(fds).enumerate() {
        args.option("-netdev", format!("tap,id=net{position},fd={fd},vhost=off"));
        args.option(
            "-device",
            format!(
                "virtio-net-device,id=nic{position},netdev=net{position},mac={}",
                nic.mac
            ),
        );
    }
    user_network(args, spec, fds);
}

/// Behind the TAPs, the connection to whoever carries the packets. QEMU 7.2 or newer.
fn user_network(args: &mut Words, spec: &MachineSpec, fds: &[RawFd]) {
    if let (Some(network), Some(fd)) = (&spec.options.user_network, fds.get(spec.nics.len())) {
        let peer = format!("stream,id=usernet,server=off,addr.type=fd,addr.str={fd}");
        args.option("-netdev", peer);
        let card = format!(
            "virtio-net-device,id=usernic,netdev=usernet,mac={}",
            network.mac
        );
        args.option("-device", card);
    }
}

/// The engine's own kernel arguments; where each came from is in the reference measurements.
pub(super) fn kernel_args(acceleration: Acceleration, tsc_khz: Option<u64>) -> String {
    // Triple fault: microvm has no keyboard controller to reset by, and its ACPI is slower.
    let mut line = "console=ttyS0 quiet reboot=t panic=-1 pci=off cryptomgr.notests".to_owned();
    if acceleration == Acceleration::Tcg {
        if let Some(khz) = tsc_khz {
            line.push_str(&format!(" tsc_early_khz={khz} tsc=reliable"));
        }
        // An emulated processor has no side channels of its own to mitigate, and patching the
        // kernel for one processor costs it 90 ms.
        line.push_str(" mitigations=off noreplace-smp");
    }
    line
}

fn harden(args: &mut Words, spec: &MachineSpec) {
    args.word("-nodefaults");
    args.word("-no-user-config");
    args.word("-no-reboot");
    args.option("-display", "none");
    if !spec.options.lacks(Protection::Seccomp) {
        args.option(
            "-sandbox",
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        );
    }
}

fn machine(
    args: &mut Words,
    spec: &MachineSpec,
    acceleration: Acceleration,
    memory: Option<MemoryFd>,
) {
    let (accel, cpu) = match acceleration {
        Acceleration::Kvm => ("kvm".to_owned(), "host"),
        Acceleration::Tcg => (format!("tcg,tb-size={TRANSLATED_MIB}"), "max"),
    };
    // ACPI stays on: Debian's kernel finds virtio-mmio devices by nothing else.
    match memory {
        None => args.option("-M", "microvm"),
        Some(MemoryFd { fd, shared }) => {
            args.option("-M", "microvm,memory-backend=mem");
            let share = if shared { "on" } else { "off" };
            let (size, path) = (spec.mem_mib, opened(fd));
            args.option(
                "-object",
                format!("memory-backend-file,id=mem,size={size}M,mem-path={path},share={share}"),
            );
        }
    }
    args.option("-accel", accel);
    args.option("-cpu", cpu);
    args.option("-smp", spec.vcpus.to_string());
    args.option("-m", format!("{}M", spec.mem_mib));
    args.option("-name", format!("kiln-{}", spec.id));
}

/// What QEMU can only be given by name, and opens again, has this one.
fn opened(fd: RawFd) -> String {
    format!("/proc/self/fd/{fd}")
}

fn boot(args: &mut Words, spec: &MachineSpec, own_kernel_args: &str, inherited: &Inherited) {
    // Stopped until `cont`: by then the console is connected and the machine written down.
    args.word("-S");
    let Some(kernel) = inherited.kernel else {
        args.option("-incoming", "defer");
        return;
    };
    args.option("-kernel", opened(kernel));
    if let Some(initramfs) = inherited.initramfs {
        args.option("-initrd", opened(initramfs));
    }
    args.option("-append", command_line(own_kernel_args, &spec.boot.args));
}

fn channels(args: &mut Words, sockets: SocketFds) {
    let listening = |id: &str, fd: RawFd| format!("socket,id={id},fd={fd},server=on,wait=off");
    args.option("-chardev", listening("qmp", sockets.qmp));
    args.option("-mon", "chardev=qmp,mode=control");
    args.option("-chardev", listening(CONSOLE_CHARDEV, sockets.console));
    args.option("-serial", format!("chardev:{CONSOLE_CHARDEV}"));
    if let Some(agent) = sockets.agent {
        args.option("-chardev", listening("agent", agent));
        args.option("-device", "virtio-serial-device,id=vser0");
        args.option(
            "-device",
            format!("virtserialport,bus=vser0.0,chardev=agent,name={AGENT_PORT_NAME}"),
        );
    }
}

#[derive(Default)]
struct Words(Vec<String>);

impl Words {
    fn word(&mut self, word: impl Into<String>) {
        self.0.push(word.into());
    }

    fn option(&mut self, name: &str, value: impl Into<String>) {
        self.word(name);
        self.word(value);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::machine::{Boot, Disk};
    use crate::nic::Nic;

    fn spec(path: &str) -> MachineSpec {
        MachineSpec {
            id: "m".into(),
            runtime_dir: "/run/m".into(),
            vcpus: 1,
            mem_mib: 64,
            boot: Boot {
                kernel: path.into(),
                initramfs: Some(path.into()),
                args: vec!["agent.x=1".into()],
            },
            disks: vec![Disk {
                id: "root".into(),
                path: path.into(),
                read_only: true,
                options: crate::DiskOptions::default(),
            }],
            restore: None,
            nics: vec![Nic {
                id: "eth0".into(),
                tap: "tap0".into(),
                mac: "06:00:ac:1e:00:02".parse().unwrap(),
                rx_limit: None,
                tx_limit: None,
            }],
            netns: None,
            jail: None,
            allow_insecure: false,
            options: crate::MachineOptions::default(),
            agent: true,
            console_log: "/run/m/console".into(),
        }
    }

    fn line(path: &str) -> Vec<String> {
        let inherited = Inherited {
            sockets: SocketFds {
                qmp: 3,
                console: 4,
                agent: Some(5),
            },
            kernel: Some(6),
            initramfs: Some(7),
            memory: None,
            disks: vec![8],
            taps: vec![9],
        };
        arguments(&spec(path), Acceleration::Tcg, "own", &inherited)
    }

    #[test]
    fn only_emulation_gets_the_arguments_for_emulation() {
        let tcg = kernel_args(Acceleration::Tcg, Some(2_596_122));
        assert!(tcg.contains("tsc_early_khz=2596122 tsc=reliable"));
        assert!(tcg.contains("mitigations=off"));
        let kvm = kernel_args(Acceleration::Kvm, Some(2_596_122));
        assert!(!kvm.contains("tsc") && !kvm.contains("mitigations") && !kvm.contains("noreplace"));
    }

    #[test]
    fn the_callers_kernel_arguments_come_last() {
        let args = line("/k");
        let at = args.iter().position(|arg| arg == "-append").unwrap();
        assert_eq!(args[at + 1], "own agent.x=1");
    }

    #[test]
    fn disks_and_interfaces_come_by_number() {
        let args = line("/k");
        let behind = |option: &str| {
            let at = args.iter().position(|arg| arg == option).unwrap();
            args[at + 1].clone()
        };
        assert_eq!(behind("-kernel"), "/proc/self/fd/6");
        assert_eq!(behind("-add-fd"), "fd=8,set=0");
        assert_eq!(behind("-netdev"), "tap,id=net0,fd=9,vhost=off");
        let nic = "virtio-net-device,id=nic0,netdev=net0,mac=06:00:ac:1e:00:02";
        assert!(args.iter().any(|arg| arg == nic));
    }

    #[test]
    fn a_user_network_is_the_connection_behind_the_taps() {
        let mut spec = spec("/k");
        spec.options.user_network = Some(crate::UserNetwork {
            socket: "/x,y/s".into(),
            mac: "06:00:ac:1e:00:03".parse().unwrap(),
        });
        let mut args = Words::default();
        nics(&mut args, &spec, &[9, 10]);
        let all = args.0.join(" ");
        assert!(all.contains("addr.type=fd,addr.str=10"), "{all}");
        assert!(
            all.contains("netdev=usernet,mac=06:00:ac:1e:00:03"),
            "{all}"
        );
        assert!(!all.contains("/x"), "{all}");
    }

    proptest! {
        /// No path of the host's reaches QEMU: none can become an option.
        #[test]
        fn a_path_adds_nothing(name in "[a-z,='\"\\\\ \n%{}:]{1,30}") {
            prop_assert_eq!(line(&format!("/x/{name}")), line("/x/a"));
        }
    }
}
