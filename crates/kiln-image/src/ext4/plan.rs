//! Decides, before anything is written, which inode number each file gets and which blocks.
//!
//! Numbers follow the sorted tree, so equal trees give equal images.

use super::directory::{self, FileType};
use super::error::Ext4Error;
use super::extents::{self, Run};
use super::inode;
use super::xattr::{self, XattrFault};
use super::{BLOCK, BLOCK_SIZE, Format, Room};
use crate::inode::EntryName;
use crate::tree::{Node, NodeId, NodeKind, Tree};

pub(super) const ROOT_INODE: u32 = 2;
pub(super) const JOURNAL_INODE: u32 = 8;
/// Where `lost+found` stands when there is one, and the first inode of files.
pub(super) const FIRST_INODE: u32 = 11;
pub(super) const LOST_FOUND_BLOCKS: u64 = 4;
const MAX_LINKS: u32 = 65_000;
/// Logical blocks are 32 bits wide.
const MAX_FILE: u64 = (u32::MAX as u64) * BLOCK;

/// What one file gets. Blocks count from the start of the data area.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Slot {
    /// 0: not reachable.
    pub(super) inode: u32,
    /// Inode of the directory above; only kept for directories.
    pub(super) parent: u32,
    pub(super) links: u32,
    /// First block of the content.
    pub(super) start: u64,
    /// Blocks of content, without extent tree and attributes.
    pub(super) blocks: u64,
    pub(super) xattr_block: Option<u64>,
    pub(super) indexed: bool,
}

/// Things worth telling the user.
#[derive(Debug, Default)]
pub(crate) struct Remarks {
    /// Attributes that mean nothing on Linux, and the first of them.
    pub(crate) foreign_xattrs: u64,
    pub(crate) foreign_example: Option<EntryName>,
    /// Times before 1901 or after 2446.
    pub(crate) moved_times: u64,
}

/// The whole plan.
#[derive(Debug)]
pub(super) struct Plan {
    slots: Vec<Slot>,
    /// Files by inode number: the root, then from [`Plan::first_file`] on without gaps.
    pub(super) order: Vec<NodeId>,
    pub(super) lost_found: Option<u64>,
    pub(super) journal: Option<(u64, u64)>,
    pub(super) data_blocks: u64,
    pub(super) remarks: Remarks,
}

impl Plan {
    pub(super) fn new(tree: &Tree, format: &Format) -> Result<Plan, Ext4Error> {
        let mut plan = Plan {
            slots: vec![Slot::default(); tree.arena_len()],
            order: Vec::new(),
            lost_found: None,
            journal: None,
            data_blocks: 0,
            remarks: Remarks::default(),
        };
        plan.number_inodes(tree, format);
        plan.place_directories(tree, format)?;
        plan.place_xattrs(tree)?;
        plan.place_own(format);
        plan.place_content(tree)?;
        Ok(plan)
    }

    pub(super) fn slot(&self, id: NodeId) -> &Slot {
        &self.slots[id.index()]
    }

    /// Inodes in use, the reserved ones included.
    pub(super) fn used_inodes(&self) -> u64 {
        // The root is one of the reserved ten.
        let reserved = u64::from(FIRST_INODE) - 1 + u64::from(self.lost_found.is_some());
        reserved + self.order.len() as u64 - 1
    }

    /// Root first, then directory by directory; subdirectories' entries follow depth first.
    fn number_inodes(&mut self, tree: &Tree, format: &Format) {
        let own = format.room.is_writable();
        let mut next = FIRST_INODE + u32::from(own);
        let root = &mut self.slots[Tree::ROOT.index()];
        *root = Slot {
            inode: ROOT_INODE,
            parent: ROOT_INODE,
            ..Slot::default()
        };
        root.links = u32::from(own);
        self.order.push(Tree::ROOT);
        let mut todo = vec![Tree::ROOT];
        while let Some(directory) = todo.pop() {
            let Some(children) = tree.children(directory) else {
                continue;
            };
            let parent = self.slots[directory.index()].inode;
            self.slots[directory.index()].links += 2;
            let mut below = Vec::new();
            for child in children.values().copied() {
                let slot = &mut self.slots[child.index()];
                if slot.inode == 0 {
                    slot.inode = next;
                    next += 1;
                    self.order.push(child);
                }
                if tree.is_directory(child) {
                    slot.parent = parent;
                    self.slots[directory.index()].links += 1;
                    below.push(child);
                } else {
                    slot.links += 1;
                }
            }
            todo.extend(below.into_iter().rev());
        }
    }

    fn take(&mut self, blocks: u64) -> u64 {
        let start = self.data_blocks;
        self.data_blocks += blocks;
        start
    }

    fn place_directories(&mut self, tree: &Tree, format: &Format) -> Result<(), Ext4Error> {
        for id in self.order.clone() {
            if !tree.is_directory(id) {
                continue;
            }
            let built = self.directory(tree, id, format, 0)?;
            let blocks = (built.blocks.len() / BLOCK_SIZE) as u64;
            let extents = extents::count(&[Run { logical: 0, blocks }]);
            let start = self.take(blocks + extents::tree_blocks(extents));
            let slot = &mut self.slots[id.index()];
            (slot.start, slot.blocks, slot.indexed) = (start, blocks, built.indexed);
        }
        Ok(())
    }

    /// The blocks of a directory, sealed with `checksum_seed`.
    pub(super) fn directory(
        &self,
        tree: &Tree,
        id: NodeId,
        format: &Format,
        checksum_seed: u32,
    ) -> Result<directory::Directory, Ext4Error> {
        let own = id == Tree::ROOT && format.room.is_writable();
        let lost_found = own.then_some(directory::Entry {
            name: b"lost+found",
            inode: FIRST_INODE,
            kind: FileType::Directory,
        });
        let children = tree.children(id).into_iter().flatten();
        let entries: Vec<directory::Entry<'_>> = children
            .map(|(name, child)| directory::Entry {
                name,
                inode: self.slot(*child).inode,
                kind: file_type(tree.node(*child)),
            })
            .chain(lost_found)
            .collect();
        let slot = self.slot(id);
        directory::build(
            slot.inode,
            slot.parent,
            &entries,
            &format.hash_seed,
            checksum_seed,
        )
        .ok_or_else(|| Ext4Error::DirectoryTooLarge(tree.path_of(id)))
    }

    fn place_xattrs(&mut self, tree: &Tree) -> Result<(), Ext4Error> {
        for id in self.order.clone() {
            let attributes = &tree.node(id).attributes;
            self.remarks.moved_times += u64::from(!inode::holds(attributes.modified));
            for xattr in attributes
                .xattrs
                .iter()
                .filter(|xattr| !xattr::is_linux(&xattr.name))
            {
                self.remarks.foreign_xattrs += 1;
                self.remarks
                    .foreign_example
                    .get_or_insert(EntryName::from(&*xattr.name));
            }
            if attributes.xattrs.is_empty() {
                continue;
            }
            let placement = xattr::place(&attributes.xattrs).map_err(|fault| match fault {
                XattrFault::TooLarge => Ext4Error::XattrsTooLarge(tree.path_of(id)),
                XattrFault::Unsupported(name) => Ext4Error::Xattr {
                    entry: tree.path_of(id),
                    name: EntryName::from(name),
                },
            })?;
            if placement.block.is_some() {
                self.slots[id.index()].xattr_block = Some(self.take(1));
            }
        }
        Ok(())
    }

    /// `lost+found` and the journal of a writable filesystem.
    fn place_own(&mut self, format: &Format) {
        if let Room::Writable { journal_blocks, .. } = format.room {
            self.lost_found = Some(self.take(LOST_FOUND_BLOCKS));
            self.journal = Some((self.take(journal_blocks), journal_blocks));
        }
    }

    fn place_content(&mut self, tree: &Tree) -> Result<(), Ext4Error> {
        for id in self.order.clone() {
            let node = tree.node(id);
            let links = self.slot(id).links;
            if !tree.is_directory(id) && links > MAX_LINKS {
                return Err(Ext4Error::Links {
                    entry: tree.path_of(id),
                    links,
                });
            }
            let runs = match &node.kind {
                NodeKind::File(data) if data.size > MAX_FILE => {
                    return Err(Ext4Error::FileTooLarge(tree.path_of(id)));
                }
                NodeKind::CharacterDevice(number) | NodeKind::BlockDevice(number)
                    if inode::device(*number).is_none() =>
                {
                    return Err(Ext4Error::DeviceNumber(tree.path_of(id)));
                }
                NodeKind::Directory(_) => continue,
                _ => content_runs(node),
            };
            let blocks = runs.iter().map(|run| run.blocks).sum();
            let start = self.take(blocks + extents::tree_blocks(extents::count(&runs)));
            let slot = &mut self.slots[id.index()];
            (slot.start, slot.blocks) = (start, blocks);
        }
        Ok(())
    }
}

/// The blocks of a file or long symlink that hold something.
pub(super) fn content_runs(node: &Node) -> Vec<Run> {
    match &node.kind {
        NodeKind::File(data) => extents::runs_of(&data.ranges),
        NodeKind::Symlink(target) if inode::short_symlink(target).is_none() => {
            vec![Run {
                logical: 0,
                blocks: 1,
            }]
        }
        _ => Vec::new(),
    }
}

fn file_type(node: &Node) -> FileType {
    match node.kind {
        NodeKind::Directory(_) => FileType::Directory,
        NodeKind::File(_) => FileType::Regular,
        NodeKind::Symlink(_) => FileType::Symlink,
        NodeKind::CharacterDevice(_) => FileType::CharacterDevice,
        NodeKind::BlockDevice(_) => FileType::BlockDevice,
        NodeKind::Fifo => FileType::Fifo,
        NodeKind::Socket => FileType::Socket,
    }
}
