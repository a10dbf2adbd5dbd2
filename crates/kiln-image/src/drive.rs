//! Raw drives that users hand to a machine, and whether the machine may change them.
//!
//! A writable drive is ephemeral unless the user says otherwise: the machine gets a copy, which
//! goes when the machine goes. A read-only drive is used in place unless the user asks for a copy.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::clone::clone_file;

/// A drive as the user names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawDrive {
    /// The image file.
    pub path: PathBuf,
    /// Whether the machine may write to it.
    pub read_only: bool,
    /// The user's word for this drive: `false` keeps writes, `true` gives even a read-only drive
    /// a copy of its own. `None` leaves it to the host's setting.
    pub ephemeral: Option<bool>,
}

impl RawDrive {
    /// Whether the machine gets a copy. `default_ephemeral` is the host's setting for writable
    /// drives.
    #[must_use]
    pub fn is_ephemeral(&self, default_ephemeral: bool) -> bool {
        self.ephemeral
            .unwrap_or(default_ephemeral && !self.read_only)
    }

    /// Makes the drive ready: an ephemeral one is copied to `copy`, which must not exist and lies
    /// among the machine's own files. Copies share blocks where the filesystem can, and never
    /// inflate holes.
    ///
    /// # Errors
    /// [`DriveError`]; nothing is left at `copy` then.
    pub fn stage(&self, default_ephemeral: bool, copy: &Path) -> Result<StagedDrive, DriveError> {
        let ephemeral = self.is_ephemeral(default_ephemeral);
        let path = if ephemeral { copy } else { &self.path };
        if ephemeral {
            self.copy_to(copy)?;
        }
        Ok(StagedDrive {
            path: path.into(),
            read_only: self.read_only,
            ephemeral,
        })
    }

    fn copy_to(&self, copy: &Path) -> Result<(), DriveError> {
        let source = File::open(&self.path).map_err(|source| DriveError::Open {
            path: self.path.clone(),
            source,
        })?;
        let failed = |source| DriveError::Copy {
            from: self.path.clone(),
            to: copy.into(),
            source,
        };
        let mut options = File::options();
        options.read(true).write(true).create_new(true).mode(0o600);
        let target = options.open(copy).map_err(failed)?;
        if let Err(error) = clone_file(&source, &target) {
            // Gone or not, the cause is worth more.
            let _ = std::fs::remove_file(copy);
            return Err(failed(error));
        }
        Ok(())
    }
}

/// A drive that an engine can open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StagedDrive {
    /// What the engine opens.
    pub path: PathBuf,
    /// Whether the machine may write to it.
    pub read_only: bool,
    /// Whether `path` is the machine's own copy.
    pub ephemeral: bool,
}

impl StagedDrive {
    /// Removes the machine's own copy; a source is never touched. Doing it again is no error.
    ///
    /// # Errors
    /// [`DriveError::Remove`].
    pub fn discard(&self) -> Result<(), DriveError> {
        if !self.ephemeral {
            return Ok(());
        }
        match std::fs::remove_file(&self.path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(DriveError::Remove {
                path: self.path.clone(),
                source,
            }),
            _ => Ok(()),
        }
    }
}

/// Why a drive cannot be had or given up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DriveError {
    /// The image cannot be read.
    #[error("cannot open drive {}", path.display())]
    Open {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The copy cannot be made (a full disk, most often).
    #[error("cannot copy drive {} to {}", from.display(), to.display())]
    Copy {
        /// The image.
        from: PathBuf,
        /// The copy.
        to: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The copy cannot be removed.
    #[error("cannot remove {}", path.display())]
    Remove {
        /// The copy.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drive(read_only: bool, ephemeral: Option<bool>) -> RawDrive {
        RawDrive {
            path: "/image".into(),
            read_only,
            ephemeral,
        }
    }

    #[test]
    fn a1_3_writable_drives_are_ephemeral_unless_told() {
        for (read_only, word, host, copied) in [
            (false, None, true, true),
            (false, None, false, false),
            (false, Some(false), true, false),
            (false, Some(true), false, true),
            (true, None, true, false),
            (true, Some(true), false, true),
            (true, Some(false), true, false),
        ] {
            let found = drive(read_only, word).is_ephemeral(host);
            assert_eq!(found, copied, "{read_only} {word:?} {host}");
        }
    }

    #[test]
    fn a1_3_a_copy_is_private_and_goes_a_source_stays() {
        let temp = tempfile::tempdir().unwrap();
        let image = temp.path().join("image");
        std::fs::write(&image, b"original").unwrap();
        let copy = temp.path().join("copy");
        let mut drive = drive(false, None);
        drive.path = image.clone();
        let staged = drive.stage(true, &copy).unwrap();
        assert_eq!(staged.path, copy);
        std::fs::write(&staged.path, b"changed").unwrap();
        assert_eq!(std::fs::read(&image).unwrap(), b"original");
        let again = drive.stage(true, &copy).unwrap_err();
        assert!(matches!(again, DriveError::Copy { .. }), "{again}");
        staged.discard().unwrap();
        staged.discard().unwrap();
        assert!(!copy.exists());

        drive.ephemeral = Some(false);
        let staged = drive.stage(true, &copy).unwrap();
        assert_eq!(staged.path, image);
        staged.discard().unwrap();
        assert!(image.exists() && !copy.exists());
    }
}
