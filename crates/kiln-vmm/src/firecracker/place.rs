//! Where the files of one Firecracker are: on the host, and as Firecracker sees them.

use std::path::{Path, PathBuf};

use super::{
    AGENT_SOCKET, API_SOCKET, CONSOLE_FIFO, FILES, METRICS_FIFO, OUTPUT_FIFO, VSOCK_SOCKET,
};
use crate::instance::RuntimeFiles;
use crate::machine::MachineRecord;

/// In a jail, what Firecracker opens by name lies in its root directory; the console, which it
/// inherits, stays in the runtime directory.
#[derive(Clone, Debug)]
pub(super) struct Place {
    files: RuntimeFiles,
    root: Option<PathBuf>,
}

impl Place {
    pub(super) fn new(runtime_dir: &Path, root: Option<PathBuf>) -> Self {
        Self {
            files: RuntimeFiles::new(runtime_dir, FILES),
            root,
        }
    }

    pub(super) fn of(record: &MachineRecord) -> Self {
        let root = record.jail.as_ref().and_then(|jail| jail.root());
        Self::new(&record.runtime_dir, root)
    }

    /// What is in the runtime directory; a jail is removed as a whole.
    pub(super) fn files(&self) -> &RuntimeFiles {
        &self.files
    }

    pub(super) fn api_socket(&self) -> PathBuf {
        self.opened(API_SOCKET)
    }

    pub(super) fn vsock_socket(&self) -> PathBuf {
        self.opened(VSOCK_SOCKET)
    }

    pub(super) fn agent_socket(&self) -> PathBuf {
        self.opened(AGENT_SOCKET)
    }

    pub(super) fn output(&self) -> PathBuf {
        self.opened(OUTPUT_FIFO)
    }

    pub(super) fn metrics(&self) -> PathBuf {
        self.opened(METRICS_FIFO)
    }

    pub(super) fn console(&self) -> PathBuf {
        self.files.path(CONSOLE_FIFO)
    }

    /// A file that Firecracker opens by `name`, on the host.
    pub(super) fn opened(&self, name: &str) -> PathBuf {
        match &self.root {
            Some(root) => root.join(name),
            None => self.files.path(name),
        }
    }

    /// The same, as Firecracker sees it.
    pub(super) fn inside(&self, name: &str) -> PathBuf {
        match &self.root {
            Some(_) => Path::new("/").join(name),
            None => self.files.path(name),
        }
    }
}
