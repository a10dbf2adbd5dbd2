//! Finding the daemon, and starting it where none runs.

use std::{
    ffi::OsString,
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use kiln_api::{Client, ClientError, ErrorReport, code};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{ChildStdout, Command},
    sync::oneshot,
    time::timeout,
};

use crate::{
    failure::with_causes,
    place::{Paths, Place},
};

/// How long a daemon may take to open its host: adopting machines is part of it.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// How often a daemon that is just ending is asked for anew.
const ATTEMPTS: usize = 3;
/// What is shown of the log of a daemon that did not come up.
const LAST_WORDS: u64 = 2048;

/// Why no daemon came up.
#[derive(Debug, Error)]
pub(crate) enum StartError {
    #[error("cannot {what} {}", path.display())]
    File {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot start the daemon")]
    Spawn(#[source] io::Error),
    #[error("{}", .0.message)]
    Refused(Box<ErrorReport>),
    #[error("the daemon ended while it started")]
    Died { last_words: String },
    #[error("the daemon did not come up within {} s", START_DEADLINE.as_secs())]
    TimedOut { last_words: String },
    #[error("another kiln has been starting the daemon for {} s", START_DEADLINE.as_secs())]
    Busy,
}

impl StartError {
    pub(crate) fn report(&self) -> ErrorReport {
        let report = ErrorReport::new("DAEMON_START_FAILED", with_causes(self));
        match self {
            Self::Refused(report) => (**report).clone(),
            Self::Died { last_words } | Self::TimedOut { last_words } => {
                report.with_details(serde_json::json!({ "output": last_words }))
            }
            Self::File { .. } => {
                report.with_hint("name a directory you may write to, with --data-dir")
            }
            Self::Spawn(_) | Self::Busy => report,
        }
    }
}

fn fail<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> StartError + 'a {
    move |source| StartError::File {
        what,
        path: path.to_owned(),
        source,
    }
}

/// What a starting daemon says on its standard output, in one line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Readiness {
    /// Clients can connect.
    Ready { pid: u32 },
    /// It did not come up.
    Error(ErrorReport),
}

/// A variable of a daemon's environment.
pub(crate) type Setting = (&'static str, OsString);

/// The daemon of a place, or of another host.
#[derive(Debug)]
pub(crate) struct Daemon<'a> {
    /// None for one that is not ours to start.
    place: Option<&'a Place>,
    pub(crate) client: Client,
}

impl<'a> Daemon<'a> {
    pub(crate) fn at(place: &'a Place) -> Self {
        let client = Client::new(&place.socket).with_version(kiln_daemon::VERSION);
        Self {
            place: Some(place),
            client,
        }
    }

    /// One on another host.
    pub(crate) fn elsewhere(client: Client) -> Self {
        Self {
            place: None,
            client,
        }
    }

    /// Whose paths it understands.
    pub(crate) fn paths(&self) -> Paths {
        match self.place {
            Some(_) => Paths::Here,
            None => Paths::Elsewhere,
        }
    }

    /// Asks the daemon, starting it first where none runs.
    pub(crate) async fn ask<T>(
        &self,
        request: impl AsyncFn(&Client) -> Result<T, ClientError>,
    ) -> Result<T, crate::Failure> {
        for _ in 1..ATTEMPTS {
            match (request(&self.client).await, self.place) {
                (Err(error), Some(place)) if error.is_not_running() => self.start(place).await?,
                (answer, _) => return Ok(answer?),
            }
        }
        Ok(request(&self.client).await?)
    }

    /// Starts the daemon unless somebody else does.
    pub(crate) async fn start(&self, place: &Place) -> Result<(), StartError> {
        self.start_with(place, &[]).await.map(drop)
    }

    /// As [`Daemon::start`], with variables of the environment for it; whether it was this one that
    /// came up.
    pub(crate) async fn start_with(
        &self,
        place: &Place,
        settings: &[Setting],
    ) -> Result<bool, StartError> {
        let data_dir = &place.data_dir;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(data_dir)
            .map_err(fail("create", data_dir))?;
        let _turn = take_turn(&data_dir.join("daemon.start")).await?;
        // Who waited for its turn finds a daemon that another has started.
        match self.client.version().await {
            Ok(_) => Ok(false),
            Err(_) => spawn(place, settings).await.map(|()| true),
        }
    }
}

async fn spawn(place: &Place, settings: &[Setting]) -> Result<(), StartError> {
    let log = place.log();
    let stderr = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&log)
        .map_err(fail("open", &log))?;
    let program = std::env::current_exe().map_err(StartError::Spawn)?;
    let mut child = Command::new(program)
        .args(["daemon", "--detached"])
        .env("KILN_DATA_DIR", &place.data_dir)
        .env("KILN_RUNTIME_DIR", &place.runtime_dir)
        .env("KILN_SOCKET", &place.socket)
        .env_remove("KILN_HOST")
        .envs(settings.iter().cloned())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(stderr)
        .spawn()
        .map_err(StartError::Spawn)?;
    let Some(stdout) = child.stdout.take() else {
        return Err(StartError::Spawn(io::ErrorKind::BrokenPipe.into()));
    };
    match timeout(START_DEADLINE, readiness(stdout)).await {
        Err(_) => Err(StartError::TimedOut {
            last_words: last_words(&log),
        }),
        Ok(None) => Err(StartError::Died {
            last_words: last_words(&log),
        }),
        Ok(Some(Readiness::Ready { .. })) => Ok(()),
        // One that was started by hand, in the same moment: as good as ours.
        Ok(Some(Readiness::Error(report))) if report.code == "DAEMON_RUNNING" => Ok(()),
        Ok(Some(Readiness::Error(report))) => Err(StartError::Refused(Box::new(report))),
    }
}

/// The daemon's line; none when it died without a word.
async fn readiness(stdout: ChildStdout) -> Option<Readiness> {
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line).await.ok()?;
    serde_json::from_str(&line).ok()
}

/// One kiln at a time starts a daemon. The turn ends with the file, however this process ends.
async fn take_turn(path: &Path) -> Result<File, StartError> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(fail("open", path))?;
    let (sender, receiver) = oneshot::channel();
    // A thread of its own: nothing can call `flock` back, and it must not hold up our end.
    std::thread::Builder::new()
        .name("start-turn".to_owned())
        .spawn(move || {
            let result = file.lock().map(|()| file);
            drop(sender.send(result));
        })
        .map_err(StartError::Spawn)?;
    match timeout(START_DEADLINE, receiver).await {
        Ok(Ok(Ok(file))) => Ok(file),
        Ok(Ok(Err(error))) => Err(fail("lock", path)(error)),
        Ok(Err(_)) | Err(_) => Err(StartError::Busy),
    }
}

/// The end of the log, from the start of a line; empty when it cannot be had.
fn last_words(log: &Path) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let size = file.metadata()?.len();
        file.seek(SeekFrom::Start(size.saturating_sub(LAST_WORDS)))?;
        let mut bytes = Vec::new();
        file.take(LAST_WORDS).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    match text.split_once('\n') {
        Some((_, rest)) if bytes.len() as u64 == LAST_WORDS => rest.trim_end().to_owned(),
        _ => text.trim_end().to_owned(),
    }
}

/// For a refusal that a daemon writes as its readiness.
pub(crate) fn error_line(report: &ErrorReport) -> String {
    let line = Readiness::Error(report.clone());
    serde_json::to_string(&line).unwrap_or_else(|_| code::INTERNAL.to_owned())
}

#[cfg(test)]
mod tests {
    use kiln_api::ErrorBody;

    use super::*;

    #[test]
    fn a_failed_start_is_told_as_any_failure() {
        let line = error_line(&ErrorReport::new("X", "y"));
        assert!(serde_json::from_str::<ErrorBody>(&line).is_ok(), "{line}");
    }
}
