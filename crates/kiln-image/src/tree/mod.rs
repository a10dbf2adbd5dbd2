//! The merged file tree of an image, in memory: names, attributes and where each byte of content is
//! found. Layers are laid over each other here; the host's filesystem is never touched. Knows
//! nothing of disk formats.

mod merge;
mod resolve;

use std::collections::BTreeMap;

pub use merge::{TreeError, TreeFault};

pub(crate) use merge::{ApplyError, LayerRules};

use crate::content::Origin;
use crate::inode::{Attributes, DataRange, DeviceNumber, EntryName};

/// Index of a file in its [`Tree`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NodeId(u32);

impl NodeId {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// Names of one directory, sorted: iteration order decides inode numbers, so it must not vary.
pub(crate) type Children = BTreeMap<Box<[u8]>, NodeId>;

/// One file, whatever number of names it has.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) attributes: Attributes,
    pub(crate) kind: NodeKind,
}

#[derive(Debug)]
pub(crate) enum NodeKind {
    Directory(Children),
    File(FileData),
    Symlink(Box<[u8]>),
    CharacterDevice(DeviceNumber),
    BlockDevice(DeviceNumber),
    Fifo,
    Socket,
}

/// Content of a regular file.
#[derive(Debug)]
pub(crate) struct FileData {
    pub(crate) size: u64,
    pub(crate) origin: Origin,
    /// In order, apart, never empty; what they leave out is a hole.
    pub(crate) ranges: Vec<DataRange>,
}

/// All files of an image. Replaced ones stay in the arena, reachable from nowhere.
#[derive(Debug)]
pub(crate) struct Tree {
    nodes: Vec<Node>,
    /// Where the last entry went: archives list files directory by directory.
    last_parent: Option<(Vec<u8>, NodeId)>,
}

impl Tree {
    pub(crate) const ROOT: NodeId = NodeId(0);

    /// An empty root directory.
    pub(crate) fn new() -> Tree {
        let root = Node {
            attributes: Attributes::default(),
            kind: NodeKind::Directory(Children::new()),
        };
        Tree {
            nodes: vec![root],
            last_parent: None,
        }
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// Nodes ever made: the size of tables indexed by [`NodeId`].
    pub(crate) fn arena_len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether nothing at all is in the image.
    pub(crate) fn is_empty(&self) -> bool {
        self.children(Tree::ROOT).is_none_or(Children::is_empty)
    }

    pub(crate) fn children(&self, id: NodeId) -> Option<&Children> {
        match &self.node(id).kind {
            NodeKind::Directory(children) => Some(children),
            _ => None,
        }
    }

    pub(crate) fn is_directory(&self, id: NodeId) -> bool {
        matches!(self.node(id).kind, NodeKind::Directory(_))
    }

    /// One of the names of a file, for messages. Searches the whole tree.
    pub(crate) fn path_of(&self, wanted: NodeId) -> EntryName {
        let mut todo = vec![(Tree::ROOT, Vec::new())];
        while let Some((directory, path)) = todo.pop() {
            for (name, child) in self.children(directory).into_iter().flatten() {
                let path = [path.as_slice(), b"/", name].concat();
                if *child == wanted {
                    return EntryName::from(path.as_slice());
                }
                if self.is_directory(*child) {
                    todo.push((*child, path));
                }
            }
        }
        EntryName::from(&b"/"[..])
    }

    /// Adds a file without a name yet.
    pub(crate) fn add(&mut self, node: Node) -> NodeId {
        // Limits::entries keeps this far below 2^32; saturating keeps it honest if it is lifted.
        let id = NodeId(u32::try_from(self.nodes.len()).unwrap_or(u32::MAX));
        self.nodes.push(node);
        id
    }

    /// Names `child` in `directory`, over whatever had the name.
    pub(crate) fn link(&mut self, directory: NodeId, name: &[u8], child: NodeId) {
        if let NodeKind::Directory(children) = &mut self.nodes[directory.index()].kind {
            let replaced = children.insert(name.into(), child);
            if replaced.is_some() {
                self.last_parent = None;
            }
        }
    }

    /// Gives the root directory its attributes.
    pub(crate) fn set_attributes(&mut self, id: NodeId, attributes: Attributes) {
        self.nodes[id.index()].attributes = attributes;
    }

    fn unlink(&mut self, directory: NodeId, name: &[u8]) {
        self.last_parent = None;
        if let NodeKind::Directory(children) = &mut self.nodes[directory.index()].kind {
            children.remove(name);
        }
    }

    fn clear(&mut self, directory: NodeId) {
        self.last_parent = None;
        if let NodeKind::Directory(children) = &mut self.nodes[directory.index()].kind {
            children.clear();
        }
    }
}
