//! What went wrong with a snapshot, as one of the product's codes.

use kiln_vmm::snapshot::Mismatch;
use kiln_vmm::{MachineError, SnapshotError};

use crate::error::{Error, ErrorCode};

/// Something that a snapshot cannot hold, or an engine cannot do.
pub(crate) fn unsupported(why: impl Into<String>) -> Error {
    Error::new(ErrorCode::SnapshotUnsupported, why)
}

/// A snapshot that could not be made.
pub(crate) fn failed(error: MachineError) -> Error {
    match error {
        MachineError::Snapshot(SnapshotError::Unsupported(why)) => unsupported(why),
        MachineError::Snapshot(SnapshotError::File { path, source, .. })
            if source.kind() == std::io::ErrorKind::StorageFull =>
        {
            let message = format!("the disk is full: cannot write {}", path.display());
            Error::new(ErrorCode::DiskFull, message).with_source(source)
        }
        MachineError::Unsupported(what) => unsupported(format!("this engine cannot {what}")),
        error => {
            let message = "the snapshot cannot be made";
            Error::new(ErrorCode::SnapshotFailed, message).with_source(error)
        }
    }
}

/// A file of a snapshot that is not as it was made.
pub(super) fn damaged(message: impl Into<String>) -> Error {
    Error::new(ErrorCode::SnapshotDamaged, message)
        .with_hint("what was changed cannot be restored: remove the snapshot and make another")
}

impl From<SnapshotError> for Error {
    fn from(error: SnapshotError) -> Self {
        match &error {
            SnapshotError::Mismatch(found) if found.iter().any(is_of_file) => {
                damaged(error.to_string())
            }
            SnapshotError::Mismatch(_) => Self::new(ErrorCode::SnapshotMismatch, error.to_string())
                .with_hint("it is restored where it was made: same engine, processor and version"),
            SnapshotError::Unsupported(why) => unsupported(*why),
            SnapshotError::NoBase => Self::new(ErrorCode::SnapshotFailed, error.to_string()),
            SnapshotError::File { .. } | SnapshotError::Manifest { .. } => {
                damaged("the snapshot cannot be read").with_source(error)
            }
        }
    }
}

fn is_of_file(mismatch: &Mismatch) -> bool {
    matches!(mismatch, Mismatch::File { .. })
}
