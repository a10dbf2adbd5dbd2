//! Making a snapshot appear whole or not at all.

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{SeekFrom, copy_file_range, ioctl_ficlone, seek};
use rustix::io::Errno;

use super::digest::known_data_sha256;
use super::{MANIFEST, MEMORY, Manifest, STATE, SnapshotError, file};

/// A snapshot that is being made: dropped, it is removed.
#[derive(Debug)]
#[must_use]
pub(crate) struct Partial {
    dir: PathBuf,
    target: PathBuf,
    published: bool,
}

impl Partial {
    /// Begins beside `target`, which must not exist.
    pub(crate) fn begin(target: &Path) -> Result<Self, SnapshotError> {
        if target.exists() {
            let there = std::io::ErrorKind::AlreadyExists.into();
            return Err(file("make", target)(there));
        }
        let mut name = target.as_os_str().to_owned();
        name.push(".partial");
        let dir = PathBuf::from(name);
        // What an earlier attempt left when its process died.
        if dir.exists() {
            std::fs::remove_dir_all(&dir).map_err(file("remove", &dir))?;
        }
        std::fs::create_dir(&dir).map_err(file("make", &dir))?;
        let made = Self {
            dir,
            target: target.to_owned(),
            published: false,
        };
        std::fs::set_permissions(&made.dir, Permissions::from_mode(0o700))
            .map_err(file("protect", &made.dir))?;
        Ok(made)
    }

    pub(crate) fn memory(&self) -> PathBuf {
        self.dir.join(MEMORY)
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.dir.join(STATE)
    }

    /// The file of the state, for a VMM that gets it open.
    pub(crate) fn create_state(&self) -> Result<File, SnapshotError> {
        let path = self.state();
        File::create_new(&path).map_err(file("make", &path))
    }

    /// Writes a small file.
    pub(crate) fn write(&self, name: &str, content: &[u8]) -> Result<(), SnapshotError> {
        let path = self.dir.join(name);
        std::fs::write(&path, content).map_err(file("write", &path))
    }

    /// Takes a file over from where a VMM wrote it.
    pub(crate) fn take(&self, from: &Path, name: &str) -> Result<(), SnapshotError> {
        let to = self.dir.join(name);
        match std::fs::rename(from, &to) {
            Err(error) if error.kind() == std::io::ErrorKind::CrossesDevices => {
                clone_file(from, &to)?;
                std::fs::remove_file(from).map_err(file("remove", from))
            }
            outcome => outcome.map_err(file("take over", from)),
        }
    }

    /// Makes it durable, with its manifest last, and gives it its name.
    pub(crate) fn publish(mut self, manifest: &Manifest) -> Result<(), SnapshotError> {
        for path in [self.memory(), self.state()] {
            // Read by VMMs of any user, who only ever see it in their jails, and written by none.
            std::os::unix::fs::lchown(&path, Some(own_uid()), Some(own_gid()))
                .map_err(file("take over", &path))?;
            std::fs::set_permissions(&path, Permissions::from_mode(0o444))
                .map_err(file("protect", &path))?;
            sync(&path)?;
        }
        manifest.write(&self.dir.join(MANIFEST))?;
        sync(&self.dir.join(MANIFEST))?;
        sync(&self.dir)?;
        std::fs::rename(&self.dir, &self.target).map_err(file("publish", &self.target))?;
        self.published = true;
        match self.target.parent() {
            Some(parent) => sync(parent),
            None => Ok(()),
        }
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.published
            && let Err(error) = std::fs::remove_dir_all(&self.dir)
        {
            tracing::warn!(path = %self.dir.display(), %error, "cannot undo a snapshot");
        }
    }
}

/// Adds the digest of the memory's data to the snapshot in `dir`: from now on, every machine that begins
/// from it has its content checked. Reads all of the memory; blocks.
///
/// # Errors
/// There is no snapshot, or it cannot be read or written.
pub fn seal(dir: &Path) -> Result<Manifest, SnapshotError> {
    let mut manifest = Manifest::read(dir)?;
    manifest.memory.sha256 = Some(known_data_sha256(&dir.join(MEMORY))?);
    let path = dir.join(MANIFEST);
    let partial = dir.join("manifest.partial");
    manifest.write(&partial)?;
    sync(&partial)?;
    std::fs::rename(&partial, &path).map_err(file("publish", &path))?;
    sync(dir)?;
    Ok(manifest)
}

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn own_gid() -> u32 {
    rustix::process::getegid().as_raw()
}

fn sync(path: &Path) -> Result<(), SnapshotError> {
    File::open(path)
        .and_then(|opened| opened.sync_all())
        .map_err(file("write out", path))
}

/// Copies a file: shared blocks where the file system has them, else its data without its holes.
pub(crate) fn clone_file(from: &Path, to: &Path) -> Result<(), SnapshotError> {
    let source = File::open(from).map_err(file("open", from))?;
    let copy = File::create_new(to).map_err(file("make", to))?;
    if ioctl_ficlone(&copy, &source).is_ok() {
        return Ok(());
    }
    copy_data(&source, &copy).map_err(file("copy", from))
}

/// Copies what is data in `source` to the same places in the empty `copy`.
pub(crate) fn copy_data(source: &File, copy: &File) -> std::io::Result<()> {
    let length = source.metadata()?.len();
    copy.set_len(length)?;
    let mut at = 0;
    while at < length {
        let start = match seek(source, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Nothing but a hole follows.
            Err(Errno::NXIO) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        let end = seek(source, SeekFrom::Hole(start))?;
        copy_range(source, copy, start, end)?;
        at = end;
    }
    Ok(())
}

fn copy_range(source: &File, copy: &File, start: u64, end: u64) -> std::io::Result<()> {
    let (mut from, mut to) = (start, start);
    while from < end {
        let wanted = usize::try_from(end - from).unwrap_or(usize::MAX);
        match copy_file_range(source, Some(&mut from), copy, Some(&mut to), wanted) {
            Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            // Not between these two file systems.
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP) => {
                return read_and_write(source, copy, from, end);
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn read_and_write(source: &File, copy: &File, mut at: u64, end: u64) -> std::io::Result<()> {
    use std::os::unix::fs::FileExt;
    let mut buffer = vec![0; 1 << 20];
    while at < end {
        let wanted = usize::try_from(end - at).unwrap_or(buffer.len());
        let wanted = wanted.min(buffer.len());
        source.read_exact_at(&mut buffer[..wanted], at)?;
        copy.write_all_at(&buffer[..wanted], at)?;
        at += wanted as u64;
    }
    Ok(())
}
