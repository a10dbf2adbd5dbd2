//! Laying one layer over the tree: whiteouts act on what lies below, then the additions follow in
//! the archive's order, later ones winning.

use std::fmt;
use std::io::{Read, Seek};

use super::resolve::{names, split};
use super::{Children, FileData, Node, NodeId, NodeKind, Tree};
use crate::content::Origin;
use crate::inode::EntryName;
use crate::limits::{Budget, LimitError};
use crate::tar::{Entry, EntryKind, TarError, TarReader};

/// How the entries of a layer are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum LayerRules {
    /// An OCI layer: `.wh.` names delete.
    Overlay,
    /// A plain archive: every name is a file.
    Plain,
    /// The data of a Debian package: as `Plain`, but directories and symlinks to directories that
    /// exist already are kept, as dpkg does (`/lib -> usr/lib` survives a package that ships
    /// `/lib/`).
    Package,
}

/// A layer that cannot be laid over the tree.
#[derive(Debug)]
pub struct TreeError {
    /// The entry at fault.
    pub entry: EntryName,
    /// What is wrong with it.
    pub fault: TreeFault,
}

impl fmt::Display for TreeError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "archive entry {}: {}", self.entry, self.fault)
    }
}

impl std::error::Error for TreeError {}

/// What is wrong with an entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TreeFault {
    /// `..` in a name or hard-link target.
    #[error("the path contains `..`")]
    ParentReference,
    /// More symlinks than Linux follows.
    #[error("too many levels of symbolic links")]
    SymlinkLoop,
    /// A hard link to nothing.
    #[error("hard link to {0}, which does not exist")]
    MissingTarget(EntryName),
    /// A hard link to a directory.
    #[error("hard link to {0}, which is a directory")]
    DirectoryTarget(EntryName),
    /// `.wh.` without a name behind it.
    #[error("malformed whiteout")]
    Whiteout,
    /// The root of the image as something other than a directory.
    #[error("the root of an image must be a directory")]
    Root,
    /// The image as a whole is too big.
    #[error(transparent)]
    Limit(#[from] LimitError),
}

/// Why a layer is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    #[error(transparent)]
    Tar(#[from] TarError),
    #[error(transparent)]
    Tree(#[from] TreeError),
}

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// aufs' own book-keeping, which some old images carry.
const AUFS: &[u8] = b".wh..wh.";

enum Whiteout {
    Everything,
    Name(Box<[u8]>),
}

impl Tree {
    /// Lays the archive `input`, which is content source `layer`, over the tree.
    pub(crate) fn apply(
        &mut self,
        input: impl Read + Seek,
        layer: u32,
        rules: LayerRules,
        budget: &Budget,
    ) -> Result<(), ApplyError> {
        let mut additions = Vec::new();
        let mut reader = TarReader::new(input, budget)?;
        while let Some(entry) = reader.next()? {
            let named = |fault, path: &[u8]| TreeError {
                entry: EntryName::from(path),
                fault,
            };
            if rules == LayerRules::Overlay {
                match self.take_whiteout(&entry, budget) {
                    Ok(true) => continue,
                    Ok(false) => {}
                    Err(fault) => return Err(named(fault, &entry.path).into()),
                }
            }
            additions.push(entry);
        }
        // All whiteouts are done by now: they never hide what their own layer adds.
        for entry in additions {
            let name = EntryName::from(entry.path.as_slice());
            self.insert(entry, layer, rules, budget)
                .map_err(|fault| TreeError { entry: name, fault })?;
        }
        self.last_parent = None;
        Ok(())
    }

    /// Carries out a whiteout on the layers below; says whether the entry was one.
    fn take_whiteout(&mut self, entry: &Entry, budget: &Budget) -> Result<bool, TreeFault> {
        let names = names(&entry.path)?;
        let Some((directory, name)) = split(&names) else {
            return Ok(false);
        };
        let whiteout = match name.strip_prefix(WHITEOUT) {
            None => return Ok(false),
            Some(_) if name == OPAQUE => Whiteout::Everything,
            Some(_) if name.starts_with(AUFS) => return Ok(true),
            Some(b"" | b"." | b"..") => return Err(TreeFault::Whiteout),
            Some(hidden) => Whiteout::Name(hidden.into()),
        };
        if let Some(directory) = self.find_directory(&directory, budget)? {
            match whiteout {
                Whiteout::Everything => self.clear(directory),
                Whiteout::Name(name) => self.unlink(directory, &name),
            }
        }
        Ok(true)
    }

    fn insert(
        &mut self,
        entry: Entry,
        layer: u32,
        rules: LayerRules,
        budget: &Budget,
    ) -> Result<(), TreeFault> {
        let names = names(&entry.path)?;
        let Some((directory, name)) = split(&names) else {
            return self.set_root(entry);
        };
        if let EntryKind::HardLink(target) = &entry.kind {
            let target = self.find_target(target, budget)?;
            let parent = self.make_directory(&directory, budget)?;
            self.link(parent, name, target);
            return Ok(());
        }
        let parent = self.make_directory(&directory, budget)?;
        let existing = self
            .children(parent)
            .and_then(|children| children.get(name))
            .copied();
        if let Some(existing) = existing {
            let path = || [directory.as_slice(), b"/", name].concat();
            if self.keeps(existing, &entry, rules, path, budget)? {
                return Ok(());
            }
        }
        let node = Node {
            attributes: entry.attributes,
            kind: node_kind(entry.kind, layer),
        };
        let id = self.add(node);
        self.link(parent, name, id);
        Ok(())
    }

    fn set_root(&mut self, entry: Entry) -> Result<(), TreeFault> {
        if entry.kind != EntryKind::Directory {
            return Err(TreeFault::Root);
        }
        self.set_attributes(Tree::ROOT, entry.attributes);
        Ok(())
    }

    /// Whether `existing` stays, with the entry's attributes where they describe it: a directory
    /// keeps its content when a layer mentions it again.
    fn keeps(
        &mut self,
        existing: NodeId,
        entry: &Entry,
        rules: LayerRules,
        path: impl Fn() -> Vec<u8>,
        budget: &Budget,
    ) -> Result<bool, TreeFault> {
        let is_directory = entry.kind == EntryKind::Directory;
        if is_directory && self.is_directory(existing) {
            self.set_attributes(existing, entry.attributes.clone());
            return Ok(true);
        }
        if rules != LayerRules::Package {
            return Ok(false);
        }
        match &self.node(existing).kind {
            NodeKind::Symlink(_) if is_directory => {
                Ok(self.find_directory(&path(), budget)?.is_some())
            }
            NodeKind::Directory(_) => Ok(matches!(entry.kind, EntryKind::Symlink(_))),
            _ => Ok(false),
        }
    }

    /// What a hard link points at; the last name is not followed if it is a symlink.
    fn find_target(&mut self, target: &[u8], budget: &Budget) -> Result<NodeId, TreeFault> {
        let missing = || TreeFault::MissingTarget(EntryName::from(target));
        let names = names(target)?;
        let (directory, name) =
            split(&names).ok_or_else(|| TreeFault::DirectoryTarget(EntryName::from(target)))?;
        let parent = self
            .find_directory(&directory, budget)?
            .ok_or_else(missing)?;
        let found = self
            .children(parent)
            .and_then(|children| children.get(name))
            .copied();
        let id = found.ok_or_else(missing)?;
        if self.is_directory(id) {
            return Err(TreeFault::DirectoryTarget(EntryName::from(target)));
        }
        Ok(id)
    }
}

fn node_kind(kind: EntryKind, layer: u32) -> NodeKind {
    match kind {
        // Hard links were handled by the caller.
        EntryKind::Directory | EntryKind::HardLink(_) => NodeKind::Directory(Children::new()),
        EntryKind::File { size, ranges } => NodeKind::File(FileData {
            size,
            origin: Origin::Layer(layer),
            ranges,
        }),
        EntryKind::Symlink(target) => NodeKind::Symlink(target.into()),
        EntryKind::CharacterDevice(number) => NodeKind::CharacterDevice(number),
        EntryKind::BlockDevice(number) => NodeKind::BlockDevice(number),
        EntryKind::Fifo => NodeKind::Fifo,
    }
}
