//! Debian packages: asking the system's own apt for them and taking them apart.
//!
//! apt is used for what it is trusted with: finding the candidate version, downloading, and
//! checking the chain from the archive's signed release file to the package's digest. Everything
//! after that, from the `.deb` container to the control fields, is parsed here under limits. This
//! room knows nothing of kernels or images.

mod apt;
pub(crate) mod command;
mod control;
mod deb;
mod files;
mod resolve;

pub use apt::{AptError, AptSource};
pub use control::{ControlError, Dependency, Package, parse_packages};
#[doc(hidden)]
pub use deb::fuzz_members;
pub use deb::{DebError, DebPackage};
pub use files::FilesError;
pub(crate) use files::for_each_file;
#[doc(hidden)]
pub use files::fuzz_files;

/// The name Debian gives to this machine's architecture.
pub(crate) const fn host_architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    }
}
