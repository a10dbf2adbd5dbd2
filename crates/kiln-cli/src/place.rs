//! Where the daemon keeps its things and listens, by user, arguments and environment.

use std::{
    env, io,
    path::{Path, PathBuf},
};

use rustix::process::geteuid;
use thiserror::Error;

use crate::{
    Failure,
    cli::Global,
    remote::{Address, RemoteError},
};

/// Why there is no such place.
#[derive(Debug, Error)]
pub(crate) enum PlaceError {
    #[error("there is no place for data: neither XDG_DATA_HOME nor HOME is set")]
    NoHome,
    #[error("cannot make {} absolute", path.display())]
    Absolute {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl PlaceError {
    pub(crate) fn code(&self) -> &'static str {
        "INVALID_CONFIG"
    }
}

/// The places of one daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) data_dir: PathBuf,
    pub(crate) runtime_dir: PathBuf,
    pub(crate) socket: PathBuf,
}

impl Place {
    pub(crate) fn of(global: &Global) -> Result<Self, PlaceError> {
        let asked = Asked {
            data_dir: global.data_dir.clone(),
            runtime_dir: env_path("KILN_RUNTIME_DIR"),
            socket: match &global.host {
                Some(Address::Unix(socket)) => Some(socket.clone()),
                _ => global.socket.clone(),
            },
        };
        let user = User {
            is_root: geteuid().is_root(),
            uid: geteuid().as_raw(),
            home: env_path("HOME"),
            data_home: env_path("XDG_DATA_HOME"),
            runtime_home: env_path("XDG_RUNTIME_DIR"),
        };
        asked.settle(&user)
    }

    /// What the background daemon writes.
    pub(crate) fn log(&self) -> PathBuf {
        self.data_dir.join("daemon.log")
    }
}

fn env_path(name: &str) -> Option<PathBuf> {
    env::var_os(name)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}

/// What arguments and environment say.
#[derive(Default)]
struct Asked {
    data_dir: Option<PathBuf>,
    runtime_dir: Option<PathBuf>,
    socket: Option<PathBuf>,
}

/// What the user brings along.
struct User {
    is_root: bool,
    uid: u32,
    home: Option<PathBuf>,
    data_home: Option<PathBuf>,
    runtime_home: Option<PathBuf>,
}

impl Asked {
    fn settle(self, user: &User) -> Result<Place, PlaceError> {
        let data_dir = match &self.data_dir {
            Some(dir) => absolute(dir)?,
            None => user.data_dir()?,
        };
        let runtime_dir = match (&self.runtime_dir, &self.data_dir) {
            (Some(dir), _) => absolute(dir)?,
            // A second data directory has a daemon of its own, which needs a place of its own.
            (None, Some(_)) => data_dir.join("run"),
            (None, None) => user.runtime_dir(),
        };
        let socket = match &self.socket {
            Some(socket) => absolute(socket)?,
            None => runtime_dir.join("kiln.sock"),
        };
        Ok(Place {
            data_dir,
            runtime_dir,
            socket,
        })
    }
}

impl User {
    fn data_dir(&self) -> Result<PathBuf, PlaceError> {
        if self.is_root {
            return Ok(PathBuf::from("/var/lib/kiln"));
        }
        let home = || self.home.as_ref().map(|home| home.join(".local/share"));
        let data_home = self
            .data_home
            .clone()
            .or_else(home)
            .ok_or(PlaceError::NoHome)?;
        Ok(data_home.join("kiln"))
    }

    fn runtime_dir(&self) -> PathBuf {
        if self.is_root {
            return PathBuf::from("/run/kiln");
        }
        match &self.runtime_home {
            Some(dir) => dir.join("kiln"),
            // The daemon refuses it should somebody else have made it.
            None => PathBuf::from(format!("/tmp/kiln-{}", self.uid)),
        }
    }
}

/// Whose host paths are of that are sent to a daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Paths {
    /// This one's.
    Here,
    /// Another one's, where nothing here means anything.
    Elsewhere,
}

impl Paths {
    /// A path as the daemon understands it.
    pub(crate) fn named(self, path: &Path) -> Result<String, Failure> {
        let path = match self {
            Self::Here => absolute(path)?,
            Self::Elsewhere if path.is_absolute() => path.to_owned(),
            Self::Elsewhere => {
                let path = path.to_owned();
                return Err(RemoteError::Relative { path }.into());
            }
        };
        Ok(path.to_string_lossy().into_owned())
    }

    /// Whether something that may be a path is one.
    pub(crate) fn is_one(self, text: &str) -> bool {
        text.starts_with(['.', '/']) || (self == Self::Here && Path::new(text).exists())
    }
}

/// A path that means the same to the daemon, which has another working directory.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf, PlaceError> {
    std::path::absolute(path).map_err(|source| PlaceError::Absolute {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(is_root: bool) -> User {
        let home = Some("/home/u".into());
        User {
            is_root,
            uid: 1000,
            home,
            data_home: None,
            runtime_home: None,
        }
    }

    fn place(data: &str, runtime: &str, socket: &str) -> Place {
        Place {
            data_dir: data.into(),
            runtime_dir: runtime.into(),
            socket: socket.into(),
        }
    }

    #[test]
    fn a1_1_a1_2_root_has_the_systems_directories() {
        let settled = Asked::default().settle(&user(true)).unwrap();
        assert_eq!(
            settled,
            place("/var/lib/kiln", "/run/kiln", "/run/kiln/kiln.sock")
        );
    }

    #[test]
    fn a1_1_a1_2_others_have_their_own() {
        let settled = Asked::default().settle(&user(false)).unwrap();
        let socket = "/tmp/kiln-1000/kiln.sock";
        assert_eq!(
            settled,
            place("/home/u/.local/share/kiln", "/tmp/kiln-1000", socket)
        );
        let xdg = User {
            data_home: Some("/d".into()),
            runtime_home: Some("/run/user/1000".into()),
            ..user(false)
        };
        let settled = Asked::default().settle(&xdg).unwrap();
        let socket = "/run/user/1000/kiln/kiln.sock";
        assert_eq!(settled, place("/d/kiln", "/run/user/1000/kiln", socket));
        let homeless = User {
            home: None,
            ..user(false)
        };
        assert!(matches!(
            Asked::default().settle(&homeless),
            Err(PlaceError::NoHome)
        ));
    }

    #[test]
    fn a1_1_another_data_directory_is_another_daemon() {
        let asked = Asked {
            data_dir: Some("/x".into()),
            ..Asked::default()
        };
        let settled = asked.settle(&user(true)).unwrap();
        assert_eq!(settled, place("/x", "/x/run", "/x/run/kiln.sock"));
        let asked = Asked {
            data_dir: Some("/x".into()),
            runtime_dir: Some("/r".into()),
            socket: Some("/s".into()),
        };
        assert_eq!(asked.settle(&user(true)).unwrap(), place("/x", "/r", "/s"));
    }
}
