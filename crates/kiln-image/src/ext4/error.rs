//! Why a tree cannot become a filesystem.

use std::io;

use crate::content::ContentError;
use crate::inode::EntryName;

/// A tree that ext4 cannot hold, or a disk that cannot hold the image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Ext4Error {
    /// The image file cannot be written (a full disk, most often).
    #[error("cannot write the image")]
    Write(#[source] io::Error),
    /// A file's content cannot be read.
    #[error("cannot read the content of {entry}")]
    Content {
        /// The file.
        entry: EntryName,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file was written to while the image was made of it.
    #[error("{0} changed while the image was built")]
    Changed(EntryName),
    /// More names for one file than ext4 counts.
    #[error("{entry} has {links} hard links; ext4 holds 65,000")]
    Links {
        /// The file.
        entry: EntryName,
        /// Its names.
        links: u32,
    },
    /// Attributes that do not fit.
    #[error("the extended attributes of {0} are larger than ext4 holds (4 KiB)")]
    XattrsTooLarge(EntryName),
    /// An attribute that ext4 has no place for.
    #[error("extended attribute {name} of {entry} is not supported")]
    Xattr {
        /// The file.
        entry: EntryName,
        /// The attribute.
        name: EntryName,
    },
    /// Device numbers beyond 12 + 20 bits.
    #[error("{0} has a device number that Linux cannot hold")]
    DeviceNumber(EntryName),
    /// A file beyond 16 TiB.
    #[error("{0} is larger than ext4 holds (16 TiB)")]
    FileTooLarge(EntryName),
    /// More names in one directory than its index holds.
    #[error("directory {0} has too many entries")]
    DirectoryTooLarge(EntryName),
    /// The filesystem would be beyond 16 TiB or 2^32 files.
    #[error("the image is larger than ext4 holds with 4 KiB blocks (16 TiB)")]
    TooLarge,
    /// The content does not fit the size asked for.
    #[error("{needed} bytes are needed, {size} bytes were asked for")]
    DoesNotFit {
        /// Smallest size that would do.
        needed: u64,
        /// Size asked for.
        size: u64,
    },
}

impl Ext4Error {
    pub(super) fn content(entry: EntryName, error: ContentError) -> Ext4Error {
        match error {
            ContentError::Read(source) => Ext4Error::Content { entry, source },
            ContentError::Changed => Ext4Error::Changed(entry),
        }
    }
}
