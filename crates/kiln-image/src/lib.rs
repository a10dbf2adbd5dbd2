//! Kernels, root filesystems and disks for microVMs: everything that parses untrusted bytes from
//! outside. It knows nothing of machines or sandboxes.

mod progress;

pub use progress::{Progress, ProgressEvent, Silent};
