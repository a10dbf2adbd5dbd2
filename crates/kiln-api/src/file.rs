//! Files of a sandbox as they are asked for and told.

use serde::{Deserialize, Serialize};

/// Type of a body that holds a tree, in the format of the crate `kiln-tree`.
pub const TREE_TYPE: &str = "application/vnd.kiln.tree";

/// A file of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FileInfo {
    /// Its name, without a path; bytes that are no text are replaced.
    pub name: String,
    /// What it is.
    pub kind: FileKind,
    /// Permissions, with the set-id and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes.
    pub size: u64,
    /// When it was last changed, in milliseconds of Unix time.
    pub mtime_ms: i64,
    /// Where a symbolic link points.
    #[serde(default)]
    pub link: Option<String>,
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, a socket, a pipe, or one that this client is too old to know.
    #[serde(other)]
    Other,
}

/// A change among a guest's files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FileChange {
    /// What happened.
    pub kind: ChangeKind,
    /// Absolute path of what it happened to; empty when changes were lost.
    pub path: String,
    /// Whether that is a directory.
    #[serde(default)]
    pub directory: bool,
}

/// What happened to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// It is new.
    Created,
    /// Its content is another.
    Modified,
    /// Its owner, permissions or times are others.
    Attributes,
    /// It is gone.
    Removed,
    /// It went to another path.
    MovedFrom,
    /// It came from another path.
    MovedTo,
    /// Changes were not seen: too many at once, in too many directories, or of a kind that this
    /// client does not know.
    #[serde(other)]
    Lost,
}

impl ChangeKind {
    /// As it is sent.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Modified => "modified",
            Self::Attributes => "attributes",
            Self::Removed => "removed",
            Self::MovedFrom => "moved_from",
            Self::MovedTo => "moved_to",
            Self::Lost => "lost",
        }
    }
}

/// A directory to make in a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct MakeDirectory {
    /// Absolute path.
    pub path: String,
    /// Its permissions; 0755 when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// Make those that lead to it too; one that is there is a success then.
    #[serde(default)]
    pub parents: bool,
    /// Whose it is, by name or number; the image's user when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// A file or directory of a guest that gets another path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct MoveFile {
    /// Absolute path.
    pub from: String,
    /// Absolute path; what is there is replaced.
    pub to: String,
}

/// Where a tree goes in a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UploadTo {
    /// Absolute path of its root.
    pub path: String,
    /// Whose its files are, by name or number; the image's user when unset.
    pub user: Option<String>,
    /// Whose they were where they came from, instead.
    pub keep_owner: bool,
}
