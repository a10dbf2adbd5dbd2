//! Kernels, root filesystems and disks for microVMs: everything that parses untrusted bytes from
//! outside. It knows nothing of machines or sandboxes.

mod acl;
mod clone;
mod compressed;
mod content;
pub mod debian;
mod decompress;
pub mod default_image;
pub mod download;
mod ext4;
pub mod firecracker;
#[doc(hidden)]
pub mod fuzzing;
pub mod initramfs;
mod inode;
pub mod kernel;
mod limits;
mod progress;
mod publish;
mod rootfs;
mod scratch;
mod spool;
mod store;
mod tar;
mod tree;

pub use clone::{CloneMethod, clone_file};
pub use decompress::Compression;
pub use ext4::Ext4Error;
pub use inode::EntryName;
pub use limits::{LimitError, Limits};
pub use progress::{Progress, ProgressEvent, Silent};
pub use rootfs::{Filesystem, FilesystemFault, ImageError, ImageSource, LayerSource};
pub use scratch::{ScratchDisks, ScratchError, free_space};
pub use store::{Image, ImageId, ImageStore};
pub use tar::{TarError, TarFault};
pub use tree::{TreeError, TreeFault};
