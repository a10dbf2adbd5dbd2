//! What changes among the guest's files.

use prost::{Enumeration, Message};

/// Tell what changes: after [`Done`](super::Done), [`FileChange`]s follow until the host ends its
/// direction of the stream, or what is watched is gone, which a [`ChangeKind::Ended`] says.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Watch {
    /// Absolute path of a file or directory.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    /// Directories in it too, and those that are made later. Links are not followed.
    #[prost(bool, tag = "2")]
    pub recursive: bool,
}

/// One change.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct FileChange {
    /// What happened.
    #[prost(enumeration = "ChangeKind", tag = "1")]
    pub kind: i32,
    /// Absolute path of what it happened to; empty for [`ChangeKind::Lost`] and
    /// [`ChangeKind::Ended`].
    #[prost(bytes = "vec", tag = "2")]
    pub path: Vec<u8>,
    /// Whether that is a directory.
    #[prost(bool, tag = "3")]
    pub directory: bool,
}

/// What happened to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum ChangeKind {
    /// Something that this side does not know.
    Unspecified = 0,
    /// It is new.
    Created = 1,
    /// Its content is another.
    Modified = 2,
    /// Its owner, permissions or times are others.
    Attributes = 3,
    /// It is gone.
    Removed = 4,
    /// It went to another path.
    MovedFrom = 5,
    /// It came from another path.
    MovedTo = 6,
    /// Changes were not seen: there were too many at once, or too many directories.
    Lost = 7,
    /// What was watched is gone; nothing follows. A stream that ends without it broke.
    Ended = 8,
}
