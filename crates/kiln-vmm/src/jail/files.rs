//! Files in a jail: how they get in, and how they go.
//!
//! What is only read comes in by shared blocks, else by another name of the same file when anyone
//! may read it, else as a copy. What is written must stay the caller's file: another name of it,
//! or, from another file system, a mount in the VMM's own mount namespace, which ends with it.

use std::fs::{File, OpenOptions, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Uid, chownat, ioctl_ficlone, mknodat};

use super::step;
use crate::error::JailError;
use crate::machine::Disk;

/// What the VMM may do with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

impl Access {
    pub(crate) fn to(disk: &Disk) -> Self {
        if disk.read_only {
            Self::Read
        } else {
            Self::Write
        }
    }
}

/// How a file came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Reflink,
    HardLink,
    Copy,
    /// A block device, under a node of its own.
    Node,
    /// An empty file on which the caller's is to be mounted.
    Bind,
}

pub(super) fn bring_in(
    from: &Path,
    to: &Path,
    access: Access,
    owner: (u32, u32),
) -> Result<Way, JailError> {
    // A name may be a link; what it leads to is what is brought.
    let from = &std::fs::canonicalize(from).map_err(step("find", from))?;
    let data = std::fs::metadata(from).map_err(step("examine", from))?;
    if data.file_type().is_block_device() {
        return node(data.rdev(), to, access, owner);
    }
    match access {
        Access::Read => read_only(from, to, data.mode(), owner),
        Access::Write => shared(from, to, owner),
    }
}

/// A node of the same character device, which the owner may read and write.
pub(super) fn node_like(device: &Path, to: &Path, owner: (u32, u32)) -> Result<(), JailError> {
    let data = std::fs::metadata(device).map_err(step("examine", device))?;
    if !data.file_type().is_char_device() {
        return Err(step("use as a device", device)(
            ErrorKind::InvalidInput.into(),
        ));
    }
    let mode = Mode::RUSR | Mode::WUSR;
    mknodat(CWD, to, FileType::CharacterDevice, mode, data.rdev())
        .map_err(|errno| step("make the device", to)(errno.into()))?;
    give_to(to, owner.0, owner.1)
}

fn node(device: u64, to: &Path, access: Access, owner: (u32, u32)) -> Result<Way, JailError> {
    let mode = match access {
        Access::Read => Mode::RUSR,
        Access::Write => Mode::RUSR | Mode::WUSR,
    };
    mknodat(CWD, to, FileType::BlockDevice, mode, device)
        .map_err(|errno| step("make the device", to)(errno.into()))?;
    give_to(to, owner.0, owner.1)?;
    Ok(Way::Node)
}

fn read_only(from: &Path, to: &Path, mode: u32, owner: (u32, u32)) -> Result<Way, JailError> {
    let source = File::open(from).map_err(step("open", from))?;
    let copy = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o400)
        .open(to)
        .map_err(step("make", to))?;
    let way = if ioctl_ficlone(&copy, &source).is_ok() {
        Way::Reflink
    } else if mode & 0o004 != 0 && replace_by_link(from, to).is_ok() {
        // Root's, and readable by anyone: the VMM can read it and nothing else.
        return Ok(Way::HardLink);
    } else {
        let mut copy = copy_of(to, copy)?;
        std::io::copy(&mut &source, &mut copy).map_err(step("copy", from))?;
        Way::Copy
    };
    give_to(to, owner.0, owner.1)?;
    Ok(way)
}

/// The empty file, made again when the attempt to link has removed it.
fn copy_of(to: &Path, copy: File) -> Result<File, JailError> {
    if to.exists() {
        return Ok(copy);
    }
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o400)
        .open(to)
        .map_err(step("make", to))
}

fn replace_by_link(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::remove_file(to)?;
    std::fs::hard_link(from, to)
}

fn shared(from: &Path, to: &Path, owner: (u32, u32)) -> Result<Way, JailError> {
    let way = match std::fs::hard_link(from, to) {
        Ok(()) => Way::HardLink,
        Err(error) if error.kind() == ErrorKind::CrossesDevices => {
            File::create_new(to).map_err(step("make", to))?;
            Way::Bind
        }
        Err(error) => return Err(step("link", to)(error)),
    };
    // The file itself becomes the VMM's, under both names; for root that changes nothing.
    give_to(from, owner.0, owner.1)?;
    std::fs::set_permissions(from, Permissions::from_mode(0o600)).map_err(step("open up", from))?;
    Ok(way)
}

pub(crate) fn give_to(path: &Path, uid: u32, gid: u32) -> Result<(), JailError> {
    chown(path, uid, gid).map_err(step("give away", path))
}

fn chown(path: &Path, uid: u32, gid: u32) -> std::io::Result<()> {
    Ok(chownat(
        CWD,
        path,
        Some(Uid::from_raw(uid)),
        Some(Gid::from_raw(gid)),
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}

/// Removes a jail, whose VMM is gone. Its writable files get their old owner back under the name
/// that stays: the next machine of that user number is another one.
pub(super) fn remove(dir: &Path, uid: u32) -> Result<(), JailError> {
    let root = dir.join(super::ROOT);
    if let Ok(entries) = std::fs::read_dir(&root) {
        for entry in entries.flatten() {
            let path = entry.path();
            let Ok(data) = std::fs::symlink_metadata(&path) else {
                continue;
            };
            if data.is_file() && data.nlink() > 1 && data.uid() == uid {
                chown(&path, 0, 0).map_err(step("take back", &path))?;
            }
        }
    }
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(step("remove", dir)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: (u32, u32) = (70_123, 70_124);

    fn root_only(test: &str) -> bool {
        if rustix::process::geteuid().is_root() {
            return true;
        }
        eprintln!("SKIPPED: {test}: only root gives files away");
        false
    }

    fn file(path: &Path, mode: u32) {
        std::fs::write(path, "content").unwrap();
        std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn what_is_only_read_never_becomes_writable() {
        if !root_only("what_is_only_read_never_becomes_writable") {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (public, secret) = (dir.path().join("public"), dir.path().join("secret"));
        file(&public, 0o644);
        file(&secret, 0o600);
        let to = dir.path().join("a");
        let way = bring_in(&public, &to, Access::Read, OWNER).unwrap();
        assert!(matches!(way, Way::HardLink | Way::Reflink));
        if way == Way::HardLink {
            assert_eq!(std::fs::metadata(&public).unwrap().uid(), 0);
        }
        let to = dir.path().join("b");
        let way = bring_in(&secret, &to, Access::Read, OWNER).unwrap();
        assert!(matches!(way, Way::Copy | Way::Reflink));
        let data = std::fs::metadata(&to).unwrap();
        assert_eq!((data.uid(), data.mode() & 0o777), (OWNER.0, 0o400));
        assert_eq!(std::fs::read(&to).unwrap(), b"content");
        let data = std::fs::metadata(&secret).unwrap();
        assert_eq!(
            (data.uid(), data.mode() & 0o777, data.nlink()),
            (0, 0o600, 1)
        );
    }

    #[test]
    fn what_is_written_stays_the_callers_file_and_comes_back() {
        if !root_only("what_is_written_stays_the_callers_file_and_comes_back") {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("disk");
        file(&disk, 0o644);
        let jail = dir.path().join("jail");
        std::fs::create_dir_all(jail.join("root")).unwrap();
        let to = jail.join("root/disk");
        assert_eq!(
            bring_in(&disk, &to, Access::Write, OWNER).unwrap(),
            Way::HardLink
        );
        let data = std::fs::metadata(&to).unwrap();
        assert_eq!((data.uid(), data.gid()), OWNER);
        assert_eq!(data.mode() & 0o777, 0o600);
        assert_eq!(data.ino(), std::fs::metadata(&disk).unwrap().ino());
        remove(&jail, OWNER.0).unwrap();
        assert!(!jail.exists());
        assert_eq!(std::fs::metadata(&disk).unwrap().uid(), 0);
        remove(&jail, OWNER.0).unwrap();
    }

    #[test]
    fn a_removal_follows_no_link_out_of_the_jail() {
        if !root_only("a_removal_follows_no_link_out_of_the_jail") {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        file(&outside.join("kept"), 0o600);
        let jail = dir.path().join("jail");
        std::fs::create_dir_all(jail.join("root")).unwrap();
        std::os::unix::fs::symlink(&outside, jail.join("root/link")).unwrap();
        remove(&jail, OWNER.0).unwrap();
        assert!(outside.join("kept").exists() && !jail.exists());
    }
}
