//! The texts of our own tunnels, keys and all: files that only the daemon's user may read, in a
//! directory that only it may enter.

use std::collections::HashSet;
use std::fs;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::tunnel::Secret;
use crate::config::create_private;
use crate::error::{Error, ErrorCode};

/// The directory. Calls block for moments.
#[derive(Clone, Debug)]
pub(super) struct Secrets(pub(super) PathBuf);

impl Secrets {
    /// Keeps a text, in place of an older one.
    pub(super) fn keep(&self, network: &str, text: &Secret) -> Result<(), Error> {
        let path = self.path(network);
        let new = path.with_extension("tmp");
        self.write(&new, text)
            .and_then(|()| fs::rename(&new, &path))
            .and_then(|()| fs::File::open(&self.0)?.sync_all())
            .map_err(|source| failed("keep", source))
    }

    fn write(&self, path: &Path, text: &Secret) -> std::io::Result<()> {
        create_private(&self.0)?;
        // Left by a crash, perhaps.
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        file.write_all(text.reveal().as_bytes())?;
        file.sync_all()
    }

    pub(super) fn read(&self, network: &str) -> Result<Secret, Error> {
        fs::read_to_string(self.path(network))
            .map(Secret::new)
            .map_err(|source| failed("read", source))
    }

    /// One that is not there is no error.
    pub(super) fn forget(&self, network: &str) -> Result<(), Error> {
        match fs::remove_file(self.path(network)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("remove", error)),
            _ => Ok(()),
        }
    }

    /// Removes what belongs to no network.
    pub(super) fn retain(&self, networks: &HashSet<String>) -> Result<(), Error> {
        let entries = match fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed("list", error)),
        };
        for entry in entries {
            let path = entry.map_err(|source| failed("list", source))?.path();
            let is_conf = path.extension().is_some_and(|it| it == EXTENSION);
            let network = path.file_stem().and_then(|stem| stem.to_str());
            if !(is_conf && network.is_some_and(|name| networks.contains(name))) {
                fs::remove_file(&path).map_err(|source| failed("remove", source))?;
            }
        }
        Ok(())
    }

    /// A network's name is one plain word.
    fn path(&self, network: &str) -> PathBuf {
        self.0.join(format!("{network}.{EXTENSION}"))
    }
}

const EXTENSION: &str = "conf";

fn failed(what: &str, source: std::io::Error) -> Error {
    let message = format!("cannot {what} the description of a tunnel");
    Error::new(ErrorCode::Host, message).with_source(source)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a8_1_nobody_else_may_read_a_key() {
        let dir = tempfile::tempdir().expect("dir");
        let secrets = Secrets(dir.path().join("networks"));
        for text in ["first", "second"] {
            secrets.keep("lan", &Secret::new(text)).expect("kept");
            assert_eq!(secrets.read("lan").expect("read"), Secret::new(text));
        }
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(&secrets.0), 0o700);
        assert_eq!(mode(&secrets.path("lan")), 0o600);
        secrets.keep("gone", &Secret::new("x")).expect("kept");
        fs::write(secrets.0.join("lan.tmp"), "half").expect("left over");
        secrets
            .retain(&HashSet::from(["lan".to_owned()]))
            .expect("swept");
        let left: Vec<_> = fs::read_dir(&secrets.0).expect("dir").flatten().collect();
        assert_eq!(left.len(), 1, "{left:?}");
        for _ in 0..2 {
            secrets.forget("lan").expect("forgotten");
        }
        assert!(secrets.read("lan").is_err());
    }
}
