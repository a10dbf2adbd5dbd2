//! Files and trees of the guest.

use prost::{Enumeration, Message};

/// Ask what a path names.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct StatFile {
    /// Absolute path.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    /// Tell what a symbolic link points to instead of the link.
    #[prost(bool, tag = "2")]
    pub follow: bool,
}

/// List a directory.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ListFiles {
    /// Absolute path.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
}

/// Make a directory. One that is there is a success with `parents`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct MakeDirectory {
    /// Absolute path.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    /// Its permissions.
    #[prost(uint32, tag = "2")]
    pub mode: u32,
    /// Make the directories that lead to it too.
    #[prost(bool, tag = "3")]
    pub parents: bool,
    /// Whose it is, as in [`Exec`].
    #[prost(string, tag = "4")]
    pub user: String,
}

/// Give a file or directory another path, within its file system; what is there is replaced.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct MoveFile {
    /// Absolute path.
    #[prost(bytes = "vec", tag = "1")]
    pub from: Vec<u8>,
    /// Absolute path.
    #[prost(bytes = "vec", tag = "2")]
    pub to: Vec<u8>,
}

/// Remove a file, a link, or a directory.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct RemoveFile {
    /// Absolute path.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    /// A directory with all that is in it.
    #[prost(bool, tag = "2")]
    pub recursive: bool,
}

/// Write a tree: [`Done`] says that it can begin, [`TreeBytes`] follow up to the tree's own end,
/// then another [`Done`] says that it is written.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Upload {
    /// Absolute path of its root; the directory that holds it must exist.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    /// Whose it will be, as in [`Exec`].
    #[prost(string, tag = "2")]
    pub user: String,
    /// Whose its files were where they came from, instead.
    #[prost(bool, tag = "3")]
    pub keep_owner: bool,
}

/// Read a tree: after [`Done`], [`TreeBytes`] follow up to the tree's own end.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Download {
    /// Absolute path of its root.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    /// Read what a symbolic link points to, when the path is one.
    #[prost(bool, tag = "2")]
    pub follow: bool,
}

/// A piece of a tree, in the format of `kiln-tree`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct TreeBytes {
    /// The next bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub data: Vec<u8>,
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum FileKind {
    /// A device, a socket, a pipe, or something that this side does not know.
    Other = 0,
    /// A regular file.
    File = 1,
    /// A directory.
    Directory = 2,
    /// A symbolic link.
    Symlink = 3,
}

/// A file.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct FileEntry {
    /// Its name, without a path.
    #[prost(bytes = "vec", tag = "1")]
    pub name: Vec<u8>,
    /// What it is.
    #[prost(enumeration = "FileKind", tag = "2")]
    pub kind: i32,
    /// Permissions, with the set-id and sticky bits.
    #[prost(uint32, tag = "3")]
    pub mode: u32,
    /// Owner.
    #[prost(uint32, tag = "4")]
    pub uid: u32,
    /// Group.
    #[prost(uint32, tag = "5")]
    pub gid: u32,
    /// Size in bytes.
    #[prost(uint64, tag = "6")]
    pub size: u64,
    /// When it was last changed, in nanoseconds since 1970.
    #[prost(sint64, tag = "7")]
    pub mtime_ns: i64,
    /// Where a symbolic link points.
    #[prost(bytes = "vec", tag = "8")]
    pub link: Vec<u8>,
}

/// A piece of the list of a directory.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct FileList {
    /// Files.
    #[prost(message, repeated, tag = "1")]
    pub files: Vec<FileEntry>,
    /// Whether the list is complete with these.
    #[prost(bool, tag = "2")]
    pub last: bool,
}
