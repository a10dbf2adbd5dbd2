//! What the kernel's command line says to the agent: `kiln.root=`, `kiln.rootfs=`,
//! `kiln.scratch=`, `kiln.volume=`, `kiln.poweroff=`, `kiln.net=`, `kiln.init=`.

use std::path::{Component, Path, PathBuf};

use super::net::Network;

/// How the machine is switched off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum SwitchOff {
    /// By ACPI: QEMU ends.
    #[default]
    PowerOff,
    /// By a reset: Firecracker ends.
    Reboot,
}

/// Where the guest's own changes go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Scratch {
    /// Memory.
    Tmpfs,
    /// An ext4 disk.
    Disk(PathBuf),
}

/// The root filesystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RootSpec {
    pub(crate) device: PathBuf,
    pub(crate) filesystem: String,
    pub(crate) scratch: Scratch,
    /// In the order of their arguments.
    pub(crate) volumes: Vec<Volume>,
}

/// A disk that outlives the machine: `kiln.volume=/dev/vdc:/data[:ro]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Volume {
    pub(crate) device: PathBuf,
    pub(crate) target: PathBuf,
    pub(crate) read_only: bool,
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cmdline {
    /// `None` for `kiln.root=none`: the guest stays in its initramfs.
    pub(crate) root: Option<RootSpec>,
    pub(crate) switch_off: SwitchOff,
    /// The image's own init becomes process 1, with the agent beside it: `kiln.init=image`.
    pub(crate) image_init: bool,
    /// `None`: there is no network card, or the guest sets it up by itself.
    pub(crate) network: Option<Network>,
}

/// A command line that makes no sense.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum CmdlineError {
    Missing(&'static str),
    Unknown { name: &'static str, value: String },
}

impl std::fmt::Display for CmdlineError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing(name) => write!(f, "kernel argument {name} is missing"),
            Self::Unknown { name, value } => {
                write!(f, "kernel argument {name}={value} is not understood")
            }
        }
    }
}

/// How the machine is switched off, whatever else is wrong with the line.
pub(crate) fn switch_off(line: &str) -> SwitchOff {
    match value(line, "kiln.poweroff") {
        Some("reboot") => SwitchOff::Reboot,
        _ => SwitchOff::PowerOff,
    }
}

/// Understands the line. The last of several equal arguments wins, as in the kernel.
pub(crate) fn parse(line: &str) -> Result<Cmdline, CmdlineError> {
    Ok(Cmdline {
        root: root(line)?,
        switch_off: checked_switch_off(line)?,
        image_init: image_init(line)?,
        network: network(line)?,
    })
}

fn checked_switch_off(line: &str) -> Result<SwitchOff, CmdlineError> {
    const NAME: &str = "kiln.poweroff";
    match value(line, NAME) {
        None | Some("poweroff" | "reboot") => Ok(switch_off(line)),
        Some(other) => unknown(NAME, other),
    }
}

fn image_init(line: &str) -> Result<bool, CmdlineError> {
    const NAME: &str = "kiln.init";
    match value(line, NAME) {
        None | Some("agent") => Ok(false),
        Some("image") => Ok(true),
        Some(other) => unknown(NAME, other),
    }
}

fn network(line: &str) -> Result<Option<Network>, CmdlineError> {
    const NAME: &str = "kiln.net";
    let Some(text) = value(line, NAME) else {
        return Ok(None);
    };
    text.parse().map(Some).or_else(|()| unknown(NAME, text))
}

fn root(line: &str) -> Result<Option<RootSpec>, CmdlineError> {
    const ROOT: &str = "kiln.root";
    const ROOTFS: &str = "kiln.rootfs";
    let device = match value(line, ROOT) {
        None => return Err(CmdlineError::Missing(ROOT)),
        Some("none") => return Ok(None),
        Some(device) if device.starts_with("/dev/") => PathBuf::from(device),
        Some(other) => return unknown(ROOT, other),
    };
    let filesystem = match value(line, ROOTFS) {
        Some(known @ ("ext4" | "squashfs" | "erofs")) => known.to_owned(),
        Some(other) => return unknown(ROOTFS, other),
        None => return Err(CmdlineError::Missing(ROOTFS)),
    };
    Ok(Some(RootSpec {
        device,
        filesystem,
        scratch: scratch(line)?,
        volumes: volumes(line)?,
    }))
}

fn scratch(line: &str) -> Result<Scratch, CmdlineError> {
    const NAME: &str = "kiln.scratch";
    match value(line, NAME) {
        Some("tmpfs") => Ok(Scratch::Tmpfs),
        Some(device) if device.starts_with("/dev/") => Ok(Scratch::Disk(device.into())),
        Some(other) => unknown(NAME, other),
        None => Err(CmdlineError::Missing(NAME)),
    }
}

/// Every one of them counts, other than with arguments that say one thing.
fn volumes(line: &str) -> Result<Vec<Volume>, CmdlineError> {
    const NAME: &str = "kiln.volume";
    line.split_ascii_whitespace()
        .filter_map(|word| word.split_once('='))
        .filter(|(key, _)| *key == NAME)
        .map(|(_, value)| volume(value).map_or_else(|| unknown(NAME, value), Ok))
        .collect()
}

fn volume(value: &str) -> Option<Volume> {
    let mut parts = value.split(':');
    let (device, target) = (parts.next()?, Path::new(parts.next()?));
    let read_only = match parts.next() {
        None => false,
        Some("ro") => true,
        Some(_) => return None,
    };
    let plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
    let fits = device.starts_with("/dev/")
        && target.is_absolute()
        && target.components().all(plain)
        && target.parent().is_some();
    (fits && parts.next().is_none()).then(|| Volume {
        device: device.into(),
        target: target.to_owned(),
        read_only,
    })
}

fn unknown<T>(name: &'static str, value: &str) -> Result<T, CmdlineError> {
    Err(CmdlineError::Unknown {
        name,
        value: value.to_owned(),
    })
}

fn value<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let words = line.split_ascii_whitespace().rev();
    words
        .filter_map(|word| word.split_once('='))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LINE: &str =
        "console=ttyS0 quiet kiln.root=/dev/vda kiln.rootfs=ext4 kiln.scratch=/dev/vdb\n";

    #[test]
    fn a_whole_line() {
        let line = parse(LINE).unwrap();
        assert_eq!(line.switch_off, SwitchOff::PowerOff);
        let root = line.root.unwrap();
        assert_eq!(root.device, PathBuf::from("/dev/vda"));
        assert_eq!(root.filesystem, "ext4");
        assert_eq!(root.scratch, Scratch::Disk("/dev/vdb".into()));
    }

    #[test]
    fn later_arguments_win() {
        let line = format!("{LINE} kiln.scratch=tmpfs kiln.poweroff=reboot");
        let line = parse(&line).unwrap();
        assert_eq!(line.switch_off, SwitchOff::Reboot);
        assert_eq!(line.root.unwrap().scratch, Scratch::Tmpfs);
        let own = parse(&format!("{LINE} kiln.init=image")).unwrap();
        assert!(own.image_init && !parse(LINE).unwrap().image_init);
        parse(&format!("{LINE} kiln.init=upstart")).unwrap_err();
        assert_eq!(parse("kiln.root=none").unwrap().root, None);
    }

    #[test]
    fn every_volume_counts_in_order() {
        let line = format!("{LINE} kiln.volume=/dev/vdc:/data kiln.volume=/dev/vdd:/a/b:ro");
        let volumes = parse(&line).unwrap().root.unwrap().volumes;
        let expected = [("/dev/vdc", "/data", false), ("/dev/vdd", "/a/b", true)];
        let expected = expected.map(|(device, target, read_only)| Volume {
            device: device.into(),
            target: target.into(),
            read_only,
        });
        assert_eq!(volumes, expected);
        for wrong in [
            "",
            "/dev/vdc",
            "/dev/vdc:",
            "/dev/vdc:data",
            "/dev/vdc:/",
            "/dev/vdc:/a/../b",
            "x:/a",
            "/dev/vdc:/a:rw",
            "/dev/vdc:/a:ro:",
        ] {
            let line = format!("{LINE} kiln.volume={wrong}");
            assert!(parse(&line).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_network_is_optional_but_never_half_understood() {
        assert_eq!(parse(LINE).unwrap().network, None);
        let with = |net: &str| parse(&format!("{LINE} kiln.net={net}"));
        let network = with("10.0.0.2/24,10.0.0.1,10.0.0.1,1500").unwrap().network;
        assert_eq!(network.unwrap().prefix, 24);
        assert!(
            with("10.0.0.2")
                .unwrap_err()
                .to_string()
                .contains("kiln.net=10.0.0.2")
        );
    }

    #[test]
    fn faults_are_named() {
        let fault = |line: &str| parse(line).unwrap_err().to_string();
        assert_eq!(fault(""), "kernel argument kiln.root is missing");
        assert_eq!(
            fault("kiln.root=/dev/vda kiln.rootfs=zfs"),
            "kernel argument kiln.rootfs=zfs is not understood"
        );
        assert_eq!(
            fault("kiln.root=none kiln.poweroff=never"),
            "kernel argument kiln.poweroff=never is not understood"
        );
        assert!(fault("kiln.root=/dev/vda kiln.rootfs=ext4").contains("kiln.scratch"));
        assert!(fault("kiln.root=vda").contains("kiln.root=vda"));
    }

    proptest! {
        #[test]
        fn any_line_is_survived(line in ".{0,200}") {
            let _ = parse(&line);
        }
    }
}
