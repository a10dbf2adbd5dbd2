//! One file, directory or link of a tree, and which paths are fit. Pure.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Longest path within a tree, in bytes.
pub const MAX_PATH: usize = 4096;
/// Deepest nesting of directories: each level costs both ends a descriptor.
pub const MAX_DEPTH: usize = 200;
/// Longest name (`NAME_MAX`).
const MAX_NAME: usize = 255;

/// What an entry is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// A regular file; its bytes follow.
    #[default]
    File,
    /// A directory; what is in it follows.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, socket or pipe: told, never made.
    Other,
}

/// One entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Path within the tree; empty for its root.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permissions, with the set-id and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size of a file.
    pub size: u64,
    /// When it was last changed, in nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Where a symbolic link points.
    pub link: Vec<u8>,
}

/// Why a path is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathFault {
    /// It does not stay beneath its tree.
    #[error("it leads out of its tree")]
    Escapes,
    /// It is no path: a NUL, an empty part.
    #[error("it is no path")]
    Malformed,
    /// It is too long or too deep.
    #[error("it is too long or too deep")]
    TooLong,
}

/// Whether a path stays beneath its tree; the empty one is the tree's root.
///
/// # Errors
/// [`PathFault`].
pub fn check_path(path: &[u8]) -> Result<(), PathFault> {
    if path.is_empty() {
        return Ok(());
    }
    if path.len() > MAX_PATH || path.iter().filter(|byte| **byte == b'/').count() >= MAX_DEPTH {
        return Err(PathFault::TooLong);
    }
    if path[0] == b'/' {
        return Err(PathFault::Escapes);
    }
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b".." => return Err(PathFault::Escapes),
            b"" | b"." => return Err(PathFault::Malformed),
            part if part.contains(&0) => return Err(PathFault::Malformed),
            part if part.len() > MAX_NAME => return Err(PathFault::TooLong),
            _ => {}
        }
    }
    Ok(())
}

/// Directory and name of a path that has been checked; `None` for the root.
pub(crate) fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.is_empty() {
        return None;
    }
    Some(match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    })
}

/// Where an entry's path is, from the tree's root on.
pub(crate) fn beneath(root: &Path, path: &[u8]) -> PathBuf {
    if path.is_empty() {
        return root.to_owned();
    }
    root.join(OsStr::from_bytes(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_beneath_their_tree() {
        for good in ["", "a", "a/b", "...", "a b/\u{fc}", ".hidden"] {
            assert_eq!(check_path(good.as_bytes()), Ok(()), "{good}");
        }
        for bad in [
            "/", "/etc", "..", "a/../b", "a//b", "a/", "./a", "a/.", "a\0b",
        ] {
            assert!(check_path(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(check_path(&[b'x'; 256]).is_err());
        assert!(check_path("a/".repeat(MAX_DEPTH + 1).trim_end_matches('/').as_bytes()).is_err());
    }

    proptest::proptest! {
        #[test]
        fn what_passes_never_climbs(path: Vec<u8>) {
            if check_path(&path).is_ok() && !path.is_empty() {
                use std::os::unix::ffi::OsStrExt;
                let path = std::path::Path::new(std::ffi::OsStr::from_bytes(&path));
                let plain = |part| matches!(part, std::path::Component::Normal(_));
                proptest::prop_assert!(path.components().all(plain));
            }
        }
    }
}
