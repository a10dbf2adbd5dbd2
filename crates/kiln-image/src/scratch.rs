//! The writable disk of one machine: a sparse, empty ext4 with a journal, cloned from a template of
//! its size in well under a millisecond, whatever the image's size. Also tells how much room the
//! host has left for such disks.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::clone::clone_file;
use crate::content::Contents;
use crate::ext4::{self, Ext4Error, Format, Room};
use crate::tree::Tree;

/// Part of the template's name: changes with what the writer gives.
const TEMPLATE_VERSION: u32 = 2;
/// mkfs.ext4's own ratio.
const BYTES_PER_INODE: u64 = 16384;
/// 16 MiB are plenty for one machine's metadata; small disks get 4 MiB, the least that jbd2 takes.
const JOURNAL_BLOCKS: u64 = 4096;
const SMALL_JOURNAL_BLOCKS: u64 = 1024;
const SMALL_DISK: u64 = 64 << 20;
/// Below this, journal and tables leave nothing.
const LEAST: u64 = 8 << 20;
/// Where 32-bit block numbers end.
const MOST: u64 = 16 << 40;
const CLOCK: u32 = 1_704_067_200;

/// Why a scratch disk could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScratchError {
    /// No filesystem of this size can be made.
    #[error("a disk of {size_bytes} bytes cannot be made; {LEAST} to {MOST} bytes are possible")]
    Size {
        /// Size asked for.
        size_bytes: u64,
    },
    /// A file cannot be made.
    #[error("cannot write {}", path.display())]
    Write {
        /// The disk or its template.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The filesystem cannot be made.
    #[error("cannot make the filesystem of a scratch disk")]
    Format(#[from] Ext4Error),
}

/// Makes scratch disks; keeps one template per size.
#[derive(Clone, Debug)]
pub struct ScratchDisks {
    templates: PathBuf,
}

impl ScratchDisks {
    /// Uses the templates in this directory, which must exist and lie on the filesystem of the
    /// disks for clones to be cheap.
    pub fn new(templates: impl Into<PathBuf>) -> ScratchDisks {
        ScratchDisks {
            templates: templates.into(),
        }
    }

    /// Makes the disk `path`, mode 0600, which must not exist. The size is rounded up to 1 MiB.
    ///
    /// The disk is not synced: it holds nothing yet that a crash could lose.
    ///
    /// # Errors
    /// [`ScratchError`]; nothing is left at `path` then.
    pub fn create(&self, path: &Path, size_bytes: u64) -> Result<(), ScratchError> {
        let size = round_size(size_bytes)?;
        let template = self.template(size)?;
        let disk = create_new(path).map_err(|source| write_error(path, source))?;
        if let Err(source) = clone_file(&template, &disk) {
            // Gone or not, the cause is worth more.
            let _ = std::fs::remove_file(path);
            return Err(write_error(path, source));
        }
        Ok(())
    }

    /// The template of this size, made on first use.
    fn template(&self, size: u64) -> Result<File, ScratchError> {
        let path = self
            .templates
            .join(format!("scratch-{size}-{TEMPLATE_VERSION}.ext4"));
        match File::open(&path) {
            Ok(template) => return Ok(template),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(write_error(&path, source)),
        }
        let failed = |source| write_error(&path, source);
        // Unnamed until it is whole; two makers at once give the same bytes.
        let new = tempfile::NamedTempFile::new_in(&self.templates).map_err(failed)?;
        format_scratch(new.as_file(), size)?;
        new.as_file().sync_all().map_err(failed)?;
        new.persist(&path).map_err(|error| failed(error.error))
    }
}

fn round_size(size_bytes: u64) -> Result<u64, ScratchError> {
    let size = size_bytes
        .checked_next_multiple_of(1 << 20)
        .filter(|size| *size < MOST);
    size.filter(|size| *size >= LEAST)
        .ok_or(ScratchError::Size { size_bytes })
}

fn create_new(path: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

fn write_error(path: &Path, source: io::Error) -> ScratchError {
    ScratchError::Write {
        path: path.into(),
        source,
    }
}

/// Writes an empty filesystem over the empty file `disk`.
fn format_scratch(disk: &File, size: u64) -> Result<(), ScratchError> {
    let small = size < SMALL_DISK;
    let format = Format {
        checksum_seed: 0x6b69_6c6e,
        hash_seed: [0x6b69_6c6e, 0x7363_7261, 0x7463_6800, 1],
        clock: CLOCK,
        label: "kiln-scratch",
        room: Room::Writable {
            size_bytes: size,
            bytes_per_inode: BYTES_PER_INODE,
            journal_blocks: if small {
                SMALL_JOURNAL_BLOCKS
            } else {
                JOURNAL_BLOCKS
            },
        },
    };
    let (tree, contents) = (Tree::new(), Contents::default());
    let unsealed = ext4::write(&tree, &contents, disk, &format, &mut |_| {})?;
    unsealed.seal(disk, b"kiln scratch\x80\0\x80\0")?;
    Ok(())
}

/// Bytes that unprivileged writers can still use on the filesystem that holds `path`.
///
/// A full host disk loses guests' writes without telling them, so whoever admits a new disk must
/// keep a reserve.
///
/// # Errors
/// What `statvfs` reports.
pub fn free_space(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}
