//! Kernels, root filesystems and disks for microVMs: everything that parses untrusted bytes from
//! outside. It knows nothing of machines or sandboxes.

mod compressed;
pub mod debian;
pub mod default_image;
pub mod download;
pub mod initramfs;
pub mod kernel;
mod progress;
mod publish;

pub use progress::{Progress, ProgressEvent, Silent};
