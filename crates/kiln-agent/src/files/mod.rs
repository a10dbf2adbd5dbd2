//! The guest's files, for the host: one at a time, and as trees ([`tree`]).
//!
//! The host is trusted here; what it asks is done as root. Paths are absolute, and links in them
//! are the guest's own business.

pub(crate) mod tree;

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, Metadata};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use kiln_agent_proto::message::{
    ErrorCode, FileEntry, FileKind, FileList, ListFiles, MakeDirectory, MoveFile, RemoveFile,
    Reply, StatFile, reply,
};

use crate::process::resolve_user;

/// Files in one message of a list: with the longest names and links they fit a frame.
pub(crate) const LISTED: usize = 12;
/// Longest path (`PATH_MAX`).
pub(crate) const MAX_PATH: usize = 4096;

/// A request that cannot be met.
#[derive(Debug)]
pub(crate) struct FileError {
    code: ErrorCode,
    message: String,
}

impl FileError {
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    pub(crate) fn of(path: &Path, error: &io::Error) -> Self {
        let code = match error.kind() {
            io::ErrorKind::NotFound => ErrorCode::NoSuchFile,
            _ => ErrorCode::FileRefused,
        };
        Self::new(code, format!("{}: {error}", path.display()))
    }

    pub(crate) fn reply(self) -> Reply {
        Reply::error(self.code, self.message)
    }
}

/// A path that can be asked about.
pub(crate) fn absolute(path: &[u8]) -> Result<PathBuf, FileError> {
    let fits = path.first() == Some(&b'/') && path.len() < MAX_PATH && !path.contains(&0);
    if !fits {
        let text = "a path is not absolute, too long, or holds a NUL byte";
        return Err(FileError::new(ErrorCode::BadRequest, text));
    }
    Ok(PathBuf::from(OsStr::from_bytes(path)))
}

pub(crate) fn stat(request: &StatFile) -> Result<Reply, FileError> {
    let path = absolute(&request.path)?;
    let metadata = if request.follow {
        fs::metadata(&path)
    } else {
        fs::symlink_metadata(&path)
    };
    let metadata = metadata.map_err(|error| FileError::of(&path, &error))?;
    let name = path.file_name().unwrap_or_default();
    Ok(Reply::of(reply::Kind::File(entry(&path, name, &metadata))))
}

/// The files of a directory, a message's worth at a time. One that goes meanwhile is left out.
pub(crate) fn list(request: &ListFiles) -> Result<impl Iterator<Item = FileEntry>, FileError> {
    let path = absolute(&request.path)?;
    let entries = fs::read_dir(&path).map_err(|error| FileError::of(&path, &error))?;
    Ok(entries.flatten().filter_map(|found| {
        let metadata = found.metadata().ok()?;
        Some(entry(&found.path(), &found.file_name(), &metadata))
    }))
}

/// A piece of a list.
pub(crate) fn listed(files: Vec<FileEntry>, last: bool) -> Reply {
    Reply::of(reply::Kind::Files(FileList { files, last }))
}

pub(crate) fn make_directory(request: &MakeDirectory) -> Result<(), FileError> {
    let path = absolute(&request.path)?;
    let user =
        resolve_user(&request.user).map_err(|text| FileError::new(ErrorCode::NoSuchUser, text))?;
    let missing = missing_parents(&path, request.parents);
    let made = DirBuilder::new()
        .recursive(request.parents)
        .mode(0o755)
        .create(&path);
    made.map_err(|error| FileError::of(&path, &error))?;
    for made in missing {
        let owned = chown(&made, Some(user.uid), Some(user.gid));
        owned.map_err(|error| FileError::of(&made, &error))?;
        if made == path {
            // Not by the builder, whose mode the umask cuts.
            let mode = fs::Permissions::from_mode(request.mode & 0o7777);
            fs::set_permissions(&made, mode).map_err(|error| FileError::of(&made, &error))?;
        }
    }
    Ok(())
}

/// What a request will make: only that gets another owner.
fn missing_parents(path: &Path, parents: bool) -> Vec<PathBuf> {
    let depth = if parents { usize::MAX } else { 1 };
    path.ancestors()
        .take(depth)
        .take_while(|it| fs::symlink_metadata(it).is_err())
        .map(Path::to_owned)
        .collect()
}

pub(crate) fn rename(request: &MoveFile) -> Result<(), FileError> {
    let (from, to) = (absolute(&request.from)?, absolute(&request.to)?);
    fs::rename(&from, &to).map_err(|error| FileError::of(&from, &error))
}

/// Blocks for as long as a large directory takes.
pub(crate) fn remove(request: &RemoveFile) -> Result<(), FileError> {
    let path = absolute(&request.path)?;
    let metadata = fs::symlink_metadata(&path).map_err(|error| FileError::of(&path, &error))?;
    let removed = match (metadata.is_dir(), request.recursive) {
        (false, _) => fs::remove_file(&path),
        (true, false) => fs::remove_dir(&path),
        (true, true) => fs::remove_dir_all(&path),
    };
    removed.map_err(|error| FileError::of(&path, &error))
}

fn entry(path: &Path, name: &OsStr, metadata: &Metadata) -> FileEntry {
    let kind = match metadata.file_type() {
        kind if kind.is_file() => FileKind::File,
        kind if kind.is_dir() => FileKind::Directory,
        kind if kind.is_symlink() => FileKind::Symlink,
        _ => FileKind::Other,
    };
    let link = match kind {
        FileKind::Symlink => fs::read_link(path).unwrap_or_default(),
        _ => PathBuf::new(),
    };
    FileEntry {
        name: name.as_bytes().to_vec(),
        kind: kind as i32,
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        size: metadata.size(),
        mtime_ns: metadata
            .mtime()
            .saturating_mul(1_000_000_000)
            .saturating_add(metadata.mtime_nsec()),
        link: link.into_os_string().into_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_absolute_paths_are_taken() {
        assert!(absolute(b"/").is_ok() && absolute(b"/a/../b").is_ok());
        for bad in [&b""[..], b"a", b"./a", b"/a\0b", &[b'/'; MAX_PATH]] {
            assert!(absolute(bad).is_err());
        }
    }

    #[test]
    fn only_what_is_made_gets_an_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        assert_eq!(
            missing_parents(&path, true),
            [path.clone(), dir.path().join("a")]
        );
        assert_eq!(missing_parents(&path, false), [path]);
        assert!(missing_parents(dir.path(), true).is_empty());
    }
}
