//! The root filesystem: the image, read-only, under a layer of the guest's own.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, mount_move};

use super::InitError;
use super::cmdline::{RootSpec, Scratch, Volume};

const IMAGE: &str = "/image";
const OWN: &str = "/own";
const NEW_ROOT: &str = "/new";

/// A disk exists when its driver is loaded; one that probes in the background gets so long.
const DEVICE_WAIT: Duration = Duration::from_secs(2);

/// Mounts everything at [`NEW_ROOT`]. Gives back the scratch filesystem's root.
pub(super) fn mount(spec: &RootSpec) -> Result<File, InitError> {
    for directory in [IMAGE, OWN, NEW_ROOT] {
        step("make a mount point", fs::create_dir_all(directory))?;
    }
    mount_image(spec)?;
    mount_scratch(&spec.scratch)?;
    for directory in ["/own/upper", "/own/work"] {
        step("prepare the scratch disk", fs::create_dir_all(directory))?;
    }
    filesystem(
        Path::new("overlay"),
        "overlay",
        NEW_ROOT,
        MountFlags::empty(),
        "lowerdir=/image,upperdir=/own/upper,workdir=/own/work",
    )?;
    step("open the scratch disk", File::open(OWN))
}

fn mount_image(spec: &RootSpec) -> Result<(), InitError> {
    wait_for(&spec.device)?;
    // A journal is never replayed into an image that others use as well.
    let options = if spec.filesystem == "ext4" {
        "noload"
    } else {
        ""
    };
    filesystem(
        &spec.device,
        &spec.filesystem,
        IMAGE,
        MountFlags::RDONLY,
        options,
    )
}

fn mount_scratch(scratch: &Scratch) -> Result<(), InitError> {
    match scratch {
        Scratch::Tmpfs => filesystem(
            Path::new("tmpfs"),
            "tmpfs",
            OWN,
            MountFlags::empty(),
            "mode=0755",
        ),
        Scratch::Disk(device) => {
            wait_for(device)?;
            filesystem(device, "ext4", OWN, MountFlags::NOATIME, "")
        }
    }
}

/// Mounts the volumes in the finished root, so that links on the way lead where they do for the
/// guest's own programs. Gives back the roots of their filesystems.
pub(super) fn mount_volumes(volumes: &[Volume]) -> Result<Vec<File>, InitError> {
    volumes.iter().map(mount_volume).collect()
}

fn mount_volume(volume: &Volume) -> Result<File, InitError> {
    wait_for(&volume.device)?;
    step("make a mount point", fs::create_dir_all(&volume.target))?;
    let target = volume.target.to_string_lossy();
    let mount = |flags, options| filesystem(&volume.device, "ext4", &target, flags, options);
    if volume.read_only {
        // A machine that was killed left its journal full, and a read-only disk cannot replay it:
        // then what was written out is what there is.
        mount(MountFlags::RDONLY, "").or_else(|_| mount(MountFlags::RDONLY, "noload"))?;
    } else {
        mount(MountFlags::NOATIME, "")?;
    }
    step("open a volume", File::open(&volume.target))
}

fn wait_for(device: &Path) -> Result<(), InitError> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    while !device.exists() {
        if start.elapsed() > DEVICE_WAIT {
            return Err(InitError::NoDevice(device.to_owned()));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
    Ok(())
}

/// Makes [`NEW_ROOT`] the root and empties the initramfs, whose memory is then free.
pub(super) fn switch() -> Result<(), InitError> {
    for kernel in ["dev", "proc", "sys"] {
        let target = format!("{NEW_ROOT}/{kernel}");
        step("make a mount point", fs::create_dir_all(&target))?;
        let moved = mount_move(format!("/{kernel}"), &target);
        step("move a mount", moved.map_err(io::Error::from))?;
    }
    empty_initramfs();
    step("enter the new root", std::env::set_current_dir(NEW_ROOT))?;
    step(
        "move the new root",
        mount_move(".", "/").map_err(io::Error::from),
    )?;
    step(
        "change the root",
        rustix::process::chroot(".").map_err(io::Error::from),
    )?;
    step("enter the root", std::env::set_current_dir("/"))
}

/// What cannot be removed only costs memory.
fn empty_initramfs() {
    for entry in fs::read_dir("/").into_iter().flatten().flatten() {
        let path = entry.path();
        let is_mount = [IMAGE, OWN, NEW_ROOT].iter().any(|m| path == Path::new(m));
        match entry.file_type() {
            _ if is_mount => {}
            Ok(kind) if kind.is_dir() => drop(fs::remove_dir_all(&path)),
            _ => drop(fs::remove_file(&path)),
        }
    }
}

fn step<T>(step: &'static str, result: io::Result<T>) -> Result<T, InitError> {
    result.map_err(|source| InitError::Step { step, source })
}

/// Mounts one filesystem.
pub(super) fn filesystem(
    source: &Path,
    kind: &str,
    target: &str,
    flags: MountFlags,
    options: &str,
) -> Result<(), InitError> {
    let mount = || -> io::Result<()> {
        let data = CString::new(options)?;
        let source = CString::new(source.as_os_str().as_bytes())?;
        Ok(rustix::mount::mount(
            &source,
            target,
            kind,
            flags,
            Some(data.as_c_str()),
        )?)
    };
    mount().map_err(|error| InitError::Mount {
        device: source.to_owned(),
        filesystem: kind.to_owned(),
        target: target.into(),
        source: error,
    })
}
