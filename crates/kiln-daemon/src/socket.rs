//! The socket in the file system: a directory nobody else can write to, mode 0600, published by
//! rename, so that no moment exists in which others could connect to it.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use rustix::process::geteuid;
use thiserror::Error;
use tokio::net::{UnixListener, UnixStream};

/// `sun_path` holds 108 bytes with its final NUL.
const MAX_SOCKET_PATH: usize = 107;

/// Why there is no socket to listen on.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Longer than the kernel's address of a Unix socket.
    #[error("the socket path {} has more than {MAX_SOCKET_PATH} bytes", path.display())]
    PathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// Others could replace the socket by their own.
    #[error("the socket's directory {} is not safe: {what}", path.display())]
    UnsafeDirectory {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Somebody answers on it.
    #[error("another daemon already serves {}", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// There is something else in its place.
    #[error("{} exists and is not a socket", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The operating system refuses.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

fn fail<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> SocketError + 'a {
    move |source| SocketError::Io {
        what,
        path: path.to_owned(),
        source,
    }
}

/// The socket we listen on; unlinked when dropped.
#[derive(Debug)]
#[must_use]
pub(crate) struct Socket {
    pub(crate) listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

/// Makes the socket's directory if it is missing, and refuses one that others can write to.
pub(crate) fn prepare_directory(socket: &Path) -> Result<(), SocketError> {
    let directory = parent(socket);
    if let Some(above) = directory.parent() {
        fs::create_dir_all(above).map_err(fail("create", above))?;
    }
    match DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => check_directory(directory),
        Err(error) => Err(fail("create", directory)(error)),
    }
}

/// A directory that is there already is judged, never changed: it may be anybody's `/tmp`.
fn check_directory(directory: &Path) -> Result<(), SocketError> {
    let unsafe_because = |what| SocketError::UnsafeDirectory {
        path: directory.to_owned(),
        what,
    };
    let metadata = fs::symlink_metadata(directory).map_err(fail("look at", directory))?;
    if !metadata.is_dir() {
        return Err(unsafe_because("it is not a directory"));
    }
    if metadata.uid() != geteuid().as_raw() && metadata.uid() != 0 {
        return Err(unsafe_because("it belongs to another user"));
    }
    if metadata.mode() & 0o022 != 0 {
        return Err(unsafe_because("others can write to it"));
    }
    Ok(())
}

impl Socket {
    /// Binds and publishes the socket. The caller holds the lock beside it.
    pub(crate) async fn bind(path: &Path) -> Result<Self, SocketError> {
        let unpublished = parent(path).join(format!(".{}", std::process::id()));
        if path.as_os_str().len().max(unpublished.as_os_str().len()) > MAX_SOCKET_PATH {
            return Err(SocketError::PathTooLong {
                path: path.to_owned(),
            });
        }
        refuse_living(path).await?;
        remove_if_there(&unpublished)?;
        let listener = UnixListener::bind(&unpublished).map_err(fail("listen on", &unpublished))?;
        let published = publish(&unpublished, path);
        if published.is_err() {
            remove_if_there(&unpublished)?;
        }
        Ok(Self {
            listener,
            path: path.to_owned(),
            inode: published?,
        })
    }

    /// Takes the socket out of the file system: from here on nobody new finds it.
    pub(crate) fn unpublish(&self) {
        // Only ours: a file of that name may by now be another daemon's.
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(%error, socket = %self.path.display(), "cannot remove the socket");
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.unpublish();
    }
}

/// What a killed daemon left behind may be replaced; what answers, or is no socket, may not.
async fn refuse_living(path: &Path) -> Result<(), SocketError> {
    use std::os::unix::fs::FileTypeExt;
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(fail("look at", path)(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(SocketError::NotASocket {
                path: path.to_owned(),
            });
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        Ok(_) => Err(SocketError::InUse {
            path: path.to_owned(),
        }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => Err(fail("connect to", path)(error)),
    }
}

/// Closes the socket to others, then gives it its name, over a stale one too.
fn publish(unpublished: &Path, path: &Path) -> Result<u64, SocketError> {
    fs::set_permissions(unpublished, Permissions::from_mode(0o600))
        .map_err(fail("close to others", unpublished))?;
    let inode = fs::symlink_metadata(unpublished)
        .map_err(fail("look at", unpublished))?
        .ino();
    fs::rename(unpublished, path).map_err(fail("publish", path))?;
    Ok(inode)
}

fn remove_if_there(path: &Path) -> Result<(), SocketError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(fail("remove", path)(error)),
        _ => Ok(()),
    }
}

fn parent(path: &Path) -> &Path {
    path.parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    #[tokio::test]
    async fn only_the_owner_may_use_what_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/kiln.sock");
        prepare_directory(&path).unwrap();
        let socket = Socket::bind(&path).await.unwrap();
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        assert_eq!(mode(&path), 0o600);
        UnixStream::connect(&path).await.unwrap();
        drop(socket);
        let left: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kiln.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let first = Socket::bind(&path).await.unwrap();
        assert!(matches!(
            Socket::bind(&path).await,
            Err(SocketError::InUse { .. })
        ));
        UnixStream::connect(&path).await.unwrap();
        drop(first);
    }

    #[tokio::test]
    async fn what_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kiln.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(
            Socket::bind(&path).await,
            Err(SocketError::NotASocket { .. })
        ));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused_and_not_changed() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o1777)).unwrap();
        let result = prepare_directory(&dir.path().join("kiln.sock"));
        assert!(matches!(result, Err(SocketError::UnsafeDirectory { .. })));
        assert_eq!(mode(dir.path()), 0o1777);
    }

    #[test]
    fn a_link_in_place_of_the_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("run")).unwrap();
        let result = prepare_directory(&dir.path().join("run/kiln.sock"));
        assert!(matches!(result, Err(SocketError::UnsafeDirectory { .. })));
    }

    #[tokio::test]
    async fn a_path_that_the_kernel_would_cut_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x".repeat(120));
        assert!(matches!(
            Socket::bind(&path).await,
            Err(SocketError::PathTooLong { .. })
        ));
    }
}
