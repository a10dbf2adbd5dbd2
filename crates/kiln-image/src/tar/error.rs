//! Why an archive is refused.

use std::fmt;
use std::io;

use crate::acl::AclError;
use crate::inode::EntryName;
use crate::limits::LimitError;

/// An archive that is damaged, hostile or beyond what can be kept.
#[derive(Debug)]
pub struct TarError {
    /// The entry, as far as its name was known.
    pub entry: Option<EntryName>,
    /// Where its header stands in the (uncompressed) archive.
    pub position: u64,
    /// What is wrong.
    pub fault: TarFault,
}

impl fmt::Display for TarError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.entry {
            Some(name) => write!(out, "archive entry {name}: {}", self.fault),
            None => write!(
                out,
                "archive header at byte {}: {}",
                self.position, self.fault
            ),
        }
    }
}

impl std::error::Error for TarError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.fault {
            TarFault::Read(source) => Some(source),
            _ => None,
        }
    }
}

/// What is wrong with an archive.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TarFault {
    /// The archive cannot be read.
    #[error("cannot be read")]
    Read(#[source] io::Error),
    /// It ends in the middle of something.
    #[error("the archive ends too early")]
    Truncated,
    /// The checksum of a header is wrong: not a tar, or damaged.
    #[error("bad header checksum (not a tar archive, or damaged)")]
    Checksum,
    /// One zero block where two end an archive.
    #[error("a lone zero block in the middle of the archive")]
    LoneZeroBlock,
    /// A numeric field holds something else.
    #[error("bad number in field `{0}`")]
    Number(&'static str),
    /// An entry type that cannot be represented.
    #[error("entry type {:?} is not supported", char::from(*.0))]
    Type(u8),
    /// A PAX record is malformed.
    #[error("malformed extended header")]
    Pax,
    /// A PAX record that would change the meaning of all following entries.
    #[error("global extended header `{0}` is not supported")]
    Global(EntryName),
    /// An attribute in a coding of its own, without the usual twin.
    #[error("extended attribute {0} is given in libarchive's coding only")]
    LibarchiveXattr(EntryName),
    /// An extended header without an entry behind it.
    #[error("an extended header describes nothing")]
    Dangling,
    /// A sparse map is malformed or does not fit the data.
    #[error("bad sparse map")]
    SparseMap,
    /// A sparse format version from the future.
    #[error("sparse format {0}.{1} is not supported")]
    SparseVersion(u64, u64),
    /// A link without a target, or with an impossible one.
    #[error("bad link target")]
    Target,
    /// A name that no filesystem takes: empty, or with a NUL in it.
    #[error("impossible name")]
    Name,
    /// An access control list in text form is malformed.
    #[error(transparent)]
    Acl(AclError),
    /// The path or link target is too long.
    #[error("path longer than {0} bytes")]
    PathTooLong(usize),
    /// One component of the path is too long.
    #[error("name longer than 255 bytes")]
    NameTooLong,
    /// The extension header is too long.
    #[error("extended header longer than {0} bytes")]
    ExtensionTooLong(u64),
    /// The extended attributes are too long.
    #[error("extended attributes longer than {0} bytes")]
    XattrsTooLong(usize),
    /// The file is logically too long.
    #[error("file larger than {0} bytes")]
    FileTooLong(u64),
    /// The sparse file has too many pieces.
    #[error("sparse file of more than {0} pieces")]
    SparseTooMany(usize),
    /// The image as a whole is too big.
    #[error(transparent)]
    Limit(LimitError),
}

impl From<LimitError> for TarFault {
    fn from(error: LimitError) -> TarFault {
        TarFault::Limit(error)
    }
}

impl From<AclError> for TarFault {
    fn from(error: AclError) -> TarFault {
        TarFault::Acl(error)
    }
}

impl From<io::Error> for TarFault {
    fn from(error: io::Error) -> TarFault {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            TarFault::Truncated
        } else {
            TarFault::Read(error)
        }
    }
}
