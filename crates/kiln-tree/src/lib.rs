//! Files and trees as a stream of items: how they travel between a guest and its host.
//!
//! Owns the items ([`Item`]), their bytes ([`wire`]), reading them from a file system
//! ([`TreeReader`]) and writing them beneath a place in one ([`TreeWriter`]). Both ends of a copy
//! are this code, in the guest's agent and in the command line; whoever stands between them passes
//! bytes on. It knows nothing of sandboxes, transports and runtimes.
//!
//! **What is hostile.** Either end takes the other for hostile. Every path is relative to the place
//! that the writer chose and has no `.`, `..` or empty parts; an entry's directory has come before
//! it, and is the very one that is held open, so that no symbolic link is ever followed on the way;
//! a file never gets more bytes than its entry said. Nothing is held but one chunk, and one
//! descriptor for each level of depth.

mod entry;
mod read;
pub mod wire;
mod write;

pub use entry::{Entry, Kind, MAX_DEPTH, MAX_PATH, PathFault, check_path};
pub use read::{Follow, ReadError, TreeReader};
pub use wire::Item;
pub use write::{Owner, TreeWriter, WriteError, WriteOptions};
