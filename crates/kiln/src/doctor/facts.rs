//! What the host says about itself.

use std::fs;
use std::path::{Path, PathBuf};

use kiln_vmm::SelectOptions;

use crate::config::{Directories, HostConfig};

/// Where things are read, and whose they are.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// `/`, or a test's directory.
    pub(super) root: PathBuf,
    pub(super) data_dir: PathBuf,
    pub(super) runtime_dir: PathBuf,
    pub(super) directories: Directories,
    pub(super) engines: SelectOptions,
    pub(super) is_root: bool,
}

impl Facts {
    pub(super) fn of_this_host(config: &HostConfig) -> Self {
        let directories = Directories::new(config);
        Self {
            root: PathBuf::from("/"),
            data_dir: config.data_dir.clone(),
            runtime_dir: config.runtime_dir.clone(),
            engines: SelectOptions {
                firecracker: config.firecracker.clone(),
                qemu: config.qemu.clone(),
                // What is found out is kept where there is a place for it; none is made for that.
                cache_dir: Some(directories.cache())
                    .filter(|it| it.exists())
                    .unwrap_or_else(|| PathBuf::from("/dev/null")),
                allow_unusable_kvm: false,
                seccomp_filters: None,
            },
            directories,
            is_root: rustix::process::geteuid().is_root(),
        }
    }

    /// A small text file of the kernel's, without its last newline; `None` when it is not there.
    pub(super) fn read(&self, path: &str) -> Option<String> {
        let text = fs::read_to_string(self.path(path)).ok()?;
        Some(text.trim_end().to_owned())
    }

    /// A number in such a file.
    pub(super) fn number(&self, path: &str) -> Option<u64> {
        self.read(path)?.split_whitespace().next()?.parse().ok()
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// The nearest directory that is there: what is not made yet will be made on its file system.
    pub(super) fn existing<'a>(&self, path: &'a Path) -> &'a Path {
        path.ancestors()
            .find(|it| it.exists())
            .unwrap_or(Path::new("/"))
    }

    /// A program on the `PATH`.
    pub(super) fn program(&self, name: &str) -> Option<PathBuf> {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path)
            .map(|dir| dir.join(name))
            .find(|it| it.is_file())
    }
}
