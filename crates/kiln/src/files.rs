//! Files of running sandboxes.

use kiln_agent_proto::message;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorCode};
use crate::guest::{FileWatch, TreeDownload, TreeUpload};
use crate::host::Host;

/// Longest path in a guest, less its NUL.
const MAX_PATH: usize = 4095;
/// Longest name that is passed on.
const MAX_NAME: usize = 255;

/// A file of a guest, as the guest tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// When it was last changed, in ms since 1970.
    pub mtime_ms: i64,
    /// Where a symbolic link points.
    pub link: Option<String>,
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, socket or pipe.
    Other,
}

/// A directory to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MakeDirectory {
    /// Absolute path.
    pub path: String,
    /// Its permissions.
    pub mode: u32,
    /// Make those that lead to it too; one that is there is a success then.
    pub parents: bool,
    /// Whose it is, by name or number; the image's user when unset.
    pub user: Option<String>,
}

/// A change among a guest's files, as the guest tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileChange {
    /// What happened.
    pub kind: ChangeKind,
    /// Absolute path of what it happened to, empty when changes were lost; bytes that are no text
    /// are replaced.
    pub path: String,
    /// Whether that is a directory.
    pub directory: bool,
}

/// What happened to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Changes were not seen: too many at once, or in too many directories.
    Lost,
}

/// Where a tree goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Upload {
    /// Absolute path of its root.
    pub path: String,
    /// Whose its files are, by name or number; the image's user when unset.
    pub user: Option<String>,
    /// Whose they were where they came from, instead.
    pub keep_owner: bool,
}

impl Host {
    /// What a path of a running sandbox names.
    ///
    /// # Errors
    /// [`ErrorCode::FileNotFound`], [`ErrorCode::FileFailed`], [`ErrorCode::InvalidState`] when it
    /// does not run.
    pub async fn stat(&self, key: &str, path: &str, follow: bool) -> Result<FileInfo, Error> {
        check(path)?;
        let _use = self.use_of(key)?;
        let link = self.link(key, "read files of")?;
        Ok(FileInfo::from(link.stat_file(path, follow).await?))
    }

    /// The files of a directory, by name.
    ///
    /// # Errors
    /// As [`Host::stat`].
    pub async fn list_directory(&self, key: &str, path: &str) -> Result<Vec<FileInfo>, Error> {
        check(path)?;
        let _use = self.use_of(key)?;
        let entries = self.link(key, "read files of")?.list_files(path).await?;
        let mut files: Vec<_> = entries.into_iter().map(FileInfo::from).collect();
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(files)
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// As [`Host::stat`].
    pub async fn make_directory(&self, key: &str, directory: MakeDirectory) -> Result<(), Error> {
        check(&directory.path)?;
        let _use = self.use_of(key)?;
        let request = message::MakeDirectory {
            path: directory.path.into_bytes(),
            mode: directory.mode,
            parents: directory.parents,
            user: self.user_of(key, directory.user)?,
        };
        let link = self.link(key, "write files of")?;
        Ok(link.make_directory(request).await?)
    }

    /// Gives a file or directory another path; what is there is replaced.
    ///
    /// # Errors
    /// As [`Host::stat`].
    pub async fn move_file(&self, key: &str, from: &str, to: &str) -> Result<(), Error> {
        check(from)?;
        check(to)?;
        let _use = self.use_of(key)?;
        Ok(self
            .link(key, "write files of")?
            .move_file(from, to)
            .await?)
    }

    /// Removes a file, a link, an empty directory, or with `recursive` a whole one.
    ///
    /// # Errors
    /// As [`Host::stat`].
    pub async fn remove_file(&self, key: &str, path: &str, recursive: bool) -> Result<(), Error> {
        check(path)?;
        let _use = self.use_of(key)?;
        let link = self.link(key, "write files of")?;
        Ok(link.remove_file(path, recursive).await?)
    }

    /// Begins to write a tree, in the format of `kiln-tree`, into a running sandbox.
    ///
    /// # Errors
    /// As [`Host::stat`].
    pub async fn upload(&self, key: &str, upload: Upload) -> Result<TreeUpload, Error> {
        check(&upload.path)?;
        let request = message::Upload {
            path: upload.path.into_bytes(),
            user: self.user_of(key, upload.user)?,
            keep_owner: upload.keep_owner,
        };
        let link = self.link(key, "write files of")?;
        Ok(link.upload(request, self.use_of(key)?).await?)
    }

    /// Begins to read a tree, in the format of `kiln-tree`. It comes from the guest: take it for
    /// hostile, as `kiln_tree::TreeWriter` does.
    ///
    /// # Errors
    /// As [`Host::stat`].
    pub async fn download(
        &self,
        key: &str,
        path: &str,
        follow: bool,
    ) -> Result<TreeDownload, Error> {
        check(path)?;
        let request = message::Download {
            path: path.as_bytes().to_vec(),
            follow,
        };
        let link = self.link(key, "read files of")?;
        Ok(link.download(request, self.use_of(key)?).await?)
    }

    /// Begins to tell what changes at a path of a running sandbox: a file, or the files of a
    /// directory, with `recursive` also of those in it. Links are not followed.
    ///
    /// # Errors
    /// As [`Host::stat`]; [`ErrorCode::ExecFailed`] for a tree of more directories than the guest
    /// watches, [`ErrorCode::AgentTooOld`].
    pub async fn watch_files(
        &self,
        key: &str,
        path: &str,
        recursive: bool,
    ) -> Result<FileWatch, Error> {
        check(path)?;
        let request = message::Watch {
            path: path.as_bytes().to_vec(),
            recursive,
        };
        let link = self.link(key, "watch files of")?;
        Ok(link.watch(request, self.use_of(key)?).await?)
    }

    /// The user that is asked for, or the image's own.
    fn user_of(&self, key: &str, user: Option<String>) -> Result<String, Error> {
        let view = self.view(key)?;
        let of_image = || view.row.image_config.as_ref().map(|it| it.user.clone());
        Ok(user.or_else(of_image).unwrap_or_default())
    }
}

fn check(path: &str) -> Result<(), Error> {
    if path.starts_with('/') && path.len() <= MAX_PATH && !path.contains('\0') {
        return Ok(());
    }
    let message = format!("{path:?} is no absolute path of at most {MAX_PATH} bytes");
    Err(Error::new(ErrorCode::InvalidSpec, message))
}

impl From<message::FileChange> for FileChange {
    /// From the guest, as all of a [`FileInfo`].
    fn from(change: message::FileChange) -> Self {
        let kind = match message::ChangeKind::try_from(change.kind) {
            Ok(message::ChangeKind::Created) => ChangeKind::Created,
            Ok(message::ChangeKind::Modified) => ChangeKind::Modified,
            Ok(message::ChangeKind::Attributes) => ChangeKind::Attributes,
            Ok(message::ChangeKind::Removed) => ChangeKind::Removed,
            Ok(message::ChangeKind::MovedFrom) => ChangeKind::MovedFrom,
            Ok(message::ChangeKind::MovedTo) => ChangeKind::MovedTo,
            // A kind that a newer agent knows is a change that is not seen here.
            _ => ChangeKind::Lost,
        };
        Self {
            kind,
            path: text(&change.path, MAX_PATH + MAX_NAME),
            directory: change.directory,
        }
    }
}

/// A guest's bytes as text, of a bounded length.
fn text(bytes: &[u8], most: usize) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(most)]).into_owned()
}

impl From<message::FileEntry> for FileInfo {
    /// Everything in it comes from the guest: texts are bounded, and nothing is decided by them.
    fn from(entry: message::FileEntry) -> Self {
        let kind = match message::FileKind::try_from(entry.kind) {
            Ok(message::FileKind::File) => FileKind::File,
            Ok(message::FileKind::Directory) => FileKind::Directory,
            Ok(message::FileKind::Symlink) => FileKind::Symlink,
            Ok(message::FileKind::Other) | Err(_) => FileKind::Other,
        };
        Self {
            name: text(&entry.name, MAX_NAME),
            kind,
            mode: entry.mode & 0o7777,
            uid: entry.uid,
            gid: entry.gid,
            size: entry.size,
            mtime_ms: entry.mtime_ns.div_euclid(1_000_000),
            link: (kind == FileKind::Symlink).then(|| text(&entry.link, MAX_PATH)),
        }
    }
}
