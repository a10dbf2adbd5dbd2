//! One daemon per socket: a locked file beside it, which names the holder.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use thiserror::Error;
use tokio::{net::UnixStream, sync::oneshot, time::timeout};

/// How long a new daemon waits for one that is about to end.
const PATIENCE: Duration = Duration::from_secs(15);

/// Why the place of the daemon cannot be taken.
#[derive(Debug, Error)]
pub enum LockError {
    /// Another daemon answers.
    #[error("another daemon{} already serves {}", by(*pid), socket.display())]
    Running {
        /// Its process number, where it could be read.
        pid: Option<u32>,
        /// Its socket.
        socket: PathBuf,
    },
    /// Another daemon does not answer, but does not end either.
    #[error("another daemon{} holds {} but does not answer", by(*pid), path.display())]
    Held {
        /// Its process number, where it could be read.
        pid: Option<u32>,
        /// The locked file.
        path: PathBuf,
    },
    /// The file cannot be used.
    #[error("cannot lock {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

fn by(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})"))
        .unwrap_or_default()
}

/// The daemon's place: the right to serve one socket. Hold it until all that the daemon had is
/// given up, so that the next one finds everything free. The kernel gives it up when the process
/// ends, however it ends.
#[derive(Debug)]
#[must_use]
pub struct DaemonLock {
    pub(crate) socket: PathBuf,
    _file: File,
}

impl DaemonLock {
    /// Takes the place beside `socket`, whose directory is there, waiting for a daemon that is
    /// about to end.
    pub(crate) async fn acquire(socket: &Path) -> Result<Self, LockError> {
        let path = lock_path(socket);
        let fail = |source| LockError::File {
            path: path.clone(),
            source,
        };
        let mut file = open(&path).map_err(fail)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::Error(source)) => return Err(fail(source)),
            Err(TryLockError::WouldBlock) => {
                let pid = read_pid(&mut file);
                if UnixStream::connect(socket).await.is_ok() {
                    return Err(LockError::Running {
                        pid,
                        socket: socket.to_owned(),
                    });
                }
                file = match timeout(PATIENCE, lock_on_thread(file)).await {
                    Ok(locked) => locked.map_err(fail)?,
                    Err(_) => return Err(LockError::Held { pid, path }),
                };
            }
        }
        write_pid(&mut file).map_err(fail)?;
        Ok(Self {
            socket: socket.to_owned(),
            _file: file,
        })
    }
}

/// Waits until no daemon holds the place beside `socket`: the one that did has let go of everything.
///
/// # Errors
/// [`LockError::Held`] when it takes longer than `deadline`.
pub async fn wait_for_end(socket: &Path, deadline: Duration) -> Result<(), LockError> {
    let path = lock_path(socket);
    let mut file = match File::open(&path) {
        Ok(file) => file,
        // There never was one.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(LockError::File { path, source }),
    };
    let pid = read_pid(&mut file);
    match timeout(deadline, lock_on_thread(file)).await {
        Ok(locked) => locked
            .map(drop)
            .map_err(|source| LockError::File { path, source }),
        Err(_) => Err(LockError::Held { pid, path }),
    }
}

fn lock_path(socket: &Path) -> PathBuf {
    let mut name = socket.file_name().unwrap_or_default().to_owned();
    name.push(".lock");
    socket.with_file_name(name)
}

fn open(path: &Path) -> io::Result<File> {
    // Not truncated: the holder's number must stay until the lock is ours.
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

/// `flock` cannot be waited for otherwise. A thread of its own and not one of the runtime's,
/// since nothing can call it back and the runtime would wait for it.
async fn lock_on_thread(file: File) -> io::Result<File> {
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new()
        .name("daemon-lock".to_owned())
        .spawn(move || {
            let result = file.lock().map(|()| file);
            // Nobody waits any more: the file closes, and with it the lock is given up.
            drop(sender.send(result));
        })?;
    receiver.await.map_err(io::Error::other)?
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn write_pid(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}
