//! Kernels, root filesystems and disks for microVMs: everything that parses untrusted bytes from
//! outside. It knows nothing of machines or sandboxes.

mod acl;
mod archive;
mod blobs;
pub mod bundle;
mod clone;
mod content;
pub mod credentials;
pub mod debian;
mod decompress;
pub mod default_image;
mod depot;
pub mod download;
mod drive;
mod export;
mod ext4;
#[doc(hidden)]
pub mod failpoint;
pub mod firecracker;
#[doc(hidden)]
pub mod fuzzing;
mod hashing;
mod http;
pub mod initramfs;
mod inode;
pub mod kernel;
pub mod library;
mod limits;
pub mod oci;
mod partial;
mod progress;
mod publish;
pub mod registry;
mod rootfs;
mod runtime;
mod scratch;
mod spool;
mod store;
mod tar;
mod tree;
mod volume;

pub use archive::ArchiveError;
pub use clone::{CloneMethod, clone_file};
pub use decompress::Compression;
pub use depot::{Depot, DepotError};
pub use drive::{DriveError, RawDrive, StagedDrive};
pub use export::ExportError;
pub use ext4::Ext4Error;
pub use inode::EntryName;
pub use limits::{LimitError, Limits};
pub use progress::{Progress, ProgressEvent, Silent};
pub use rootfs::{Filesystem, FilesystemFault, ImageError, ImageSource, LayerSource};
pub use runtime::{Runtimes, UnknownRuntime};
pub use scratch::{ScratchDisks, ScratchError, free_space};
pub use store::{Image, ImageId, ImageStore};
pub use tar::{TarError, TarFault};
pub use tree::{TreeError, TreeFault};
pub use volume::{E2fsError, InUse, Volume, VolumeError, VolumeName, VolumeNameError, VolumeStore};
