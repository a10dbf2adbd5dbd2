//! Carries out the plan: one pass over the image file. The superblock, which makes a filesystem of
//! it, comes last and apart.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::extents::{self, Run};
use super::geometry::Geometry;
use super::inode::{self, Inode};
use super::plan::{self, Plan, Remarks, Slot};
use super::sink::{CopyError, Sink};
use super::{BLOCK, BLOCK_SIZE, Ext4Error, Format, directory, journal, superblock, xattr};
use crate::content::Contents;
use crate::inode::{Attributes, Timestamp};
use crate::tree::{FileData, Node, NodeId, NodeKind, Tree};

/// All of a filesystem but its superblock.
#[must_use = "without its superblock it is no filesystem"]
#[derive(Debug)]
pub(crate) struct Unsealed {
    superblock: [u8; superblock::SIZE],
    /// What should be told the user.
    pub(crate) remarks: Remarks,
}

impl Unsealed {
    /// Makes a filesystem with this identity of `out`.
    ///
    /// # Errors
    /// [`Ext4Error::Write`].
    pub(crate) fn seal(mut self, out: &File, uuid: &[u8; 16]) -> Result<(), Ext4Error> {
        superblock::seal(&mut self.superblock, uuid);
        let written: io::Result<()> = out.write_all_at(&self.superblock, superblock::OFFSET);
        written.map_err(Ext4Error::Write)
    }
}

/// Writes `tree` into the empty file `out`, all but the superblock: the identity in it may be known
/// only later.
///
/// `done` hears the bytes of content written so far.
///
/// # Errors
/// [`Ext4Error`].
pub(crate) fn write(
    tree: &Tree,
    contents: &Contents,
    out: &File,
    format: &Format,
    done: &mut dyn FnMut(u64),
) -> Result<Unsealed, Ext4Error> {
    let plan = Plan::new(tree, format)?;
    let geometry = Geometry::new(plan.used_inodes(), plan.data_blocks, &format.room)?;
    out.set_len(geometry.total_blocks * BLOCK)
        .map_err(Ext4Error::Write)?;
    let superblock = std::thread::scope(|scope| {
        let direct = !format.room.is_writable();
        let mut writer = Writer {
            tree,
            contents,
            format,
            directories: directories_by_group(tree, &plan, &geometry),
            plan: &plan,
            geometry: &geometry,
            sink: Sink::start(scope, out, direct).map_err(Ext4Error::Write)?,
        };
        writer.write_groups()?;
        writer.write_inodes()?;
        writer.write_directories()?;
        writer.write_xattr_blocks()?;
        writer.write_own()?;
        writer.write_contents(done)?;
        let superblock = writer.superblock();
        writer.sink.finish().map_err(Ext4Error::Write)?;
        Ok(superblock)
    })?;
    Ok(Unsealed {
        superblock,
        remarks: plan.remarks,
    })
}

fn directories_by_group(tree: &Tree, plan: &Plan, geometry: &Geometry) -> Vec<u16> {
    let mut counts = vec![0u16; geometry.groups as usize];
    let own = plan.lost_found.map(|_| plan::FIRST_INODE);
    let directories = plan.order.iter().filter(|id| tree.is_directory(**id));
    for inode in directories.map(|id| plan.slot(*id).inode).chain(own) {
        let group = u64::from(inode - 1) / geometry.inodes_per_group;
        counts[group as usize] += 1;
    }
    counts
}

struct Writer<'a> {
    tree: &'a Tree,
    contents: &'a Contents,
    format: &'a Format,
    plan: &'a Plan,
    geometry: &'a Geometry,
    /// Directories per group.
    directories: Vec<u16>,
    sink: Sink,
}

impl Writer<'_> {
    fn write_groups(&mut self) -> Result<(), Ext4Error> {
        let (geometry, used) = (self.geometry, self.plan.used_inodes());
        let seed = self.format.checksum_seed;
        superblock::write_groups(&mut self.sink, geometry, used, &self.directories, seed)
            .map_err(Ext4Error::Write)
    }

    fn inode_seed(&self, number: u32) -> u32 {
        inode::checksum_seed(self.format.checksum_seed, number)
    }

    fn put(&mut self, block: u64, bytes: &[u8]) -> Result<(), Ext4Error> {
        let result = self
            .sink
            .seek(block * BLOCK)
            .and_then(|()| self.sink.write(bytes));
        result.map_err(Ext4Error::Write)
    }

    fn put_inode(&mut self, number: u32, inode: &Inode<'_>) -> Result<(), Ext4Error> {
        let raw = inode.encode(self.inode_seed(number));
        let at = self.geometry.inode_tables * BLOCK + u64::from(number - 1) * inode::SIZE as u64;
        let result = self.sink.seek(at).and_then(|()| self.sink.write(&raw));
        result.map_err(Ext4Error::Write)
    }

    fn write_inodes(&mut self) -> Result<(), Ext4Error> {
        let own = Timestamp {
            seconds: self.format.clock.into(),
            nanoseconds: 0,
        };
        let mut files = self.plan.order.iter().copied();
        if let Some(root) = files.next() {
            self.write_file_inode(root)?;
        }
        if let Some((start, blocks)) = self.plan.journal {
            let inode = self.own_inode(inode::Format::Regular, 0o600, 1, start, blocks, own);
            self.put_inode(plan::JOURNAL_INODE, &inode)?;
        }
        if let Some(start) = self.plan.lost_found {
            let blocks = plan::LOST_FOUND_BLOCKS;
            let inode = self.own_inode(inode::Format::Directory, 0o700, 2, start, blocks, own);
            self.put_inode(plan::FIRST_INODE, &inode)?;
        }
        files.try_for_each(|id| self.write_file_inode(id))
    }

    /// An inode of the filesystem's own, in one stretch.
    fn own_inode(
        &self,
        format: inode::Format,
        mode: u16,
        links: u32,
        start: u64,
        blocks: u64,
        modified: Timestamp,
    ) -> Inode<'static> {
        let extents = extents::place(&[Run { logical: 0, blocks }], self.geometry.data + start);
        // At most four: `JournalTooLarge` cannot happen below 512 MiB.
        let (map, _) = extents::build(&extents, 0, 0);
        Inode {
            format,
            mode,
            uid: 0,
            gid: 0,
            size: blocks * BLOCK,
            links,
            blocks,
            flags: inode::EXTENTS,
            modified,
            map,
            xattr_block: None,
            inline_xattrs: None,
        }
    }

    fn write_file_inode(&mut self, id: NodeId) -> Result<(), Ext4Error> {
        let (node, slot) = (self.tree.node(id), *self.plan.slot(id));
        let placement = xattr::place(&node.attributes.xattrs)
            .map_err(|_| Ext4Error::XattrsTooLarge(self.tree.path_of(id)))?;
        let (format, size) = format_and_size(node, &slot);
        let Attributes {
            mode,
            uid,
            gid,
            modified,
            ..
        } = node.attributes;
        let (flags, map, tree_blocks) = self.map_of(node, &slot);
        let xattr_block = slot.xattr_block.map(|block| self.geometry.data + block);
        let inode = Inode {
            format,
            mode,
            uid,
            gid,
            size,
            links: slot.links,
            blocks: slot.blocks + tree_blocks + u64::from(xattr_block.is_some()),
            flags,
            modified,
            map,
            xattr_block,
            inline_xattrs: placement.inline.as_ref(),
        };
        self.put_inode(slot.inode, &inode)
    }

    /// Flags, block map and the blocks of the extent tree.
    fn map_of(&self, node: &Node, slot: &Slot) -> (u32, [u8; 60], u64) {
        match &node.kind {
            NodeKind::Fifo | NodeKind::Socket => (0, [0; 60], 0),
            // The plan has refused numbers that do not fit.
            NodeKind::CharacterDevice(number) | NodeKind::BlockDevice(number) => {
                (0, inode::device(*number).unwrap_or([0; 60]), 0)
            }
            NodeKind::Symlink(target) if inode::short_symlink(target).is_some() => {
                (0, inode::short_symlink(target).unwrap_or([0; 60]), 0)
            }
            _ => {
                let (map, blocks) = self.extent_tree(&self.runs(node, slot), slot);
                let indexed = if slot.indexed { inode::INDEXED } else { 0 };
                (inode::EXTENTS | indexed, map, blocks.len() as u64)
            }
        }
    }

    fn runs(&self, node: &Node, slot: &Slot) -> Vec<Run> {
        match node.kind {
            NodeKind::Directory(_) => vec![Run {
                logical: 0,
                blocks: slot.blocks,
            }],
            _ => plan::content_runs(node),
        }
    }

    /// The tree's blocks stand right behind the content.
    fn extent_tree(&self, runs: &[Run], slot: &Slot) -> ([u8; 60], Vec<[u8; BLOCK_SIZE]>) {
        let start = self.geometry.data + slot.start;
        let extents = extents::place(runs, start);
        extents::build(&extents, start + slot.blocks, self.inode_seed(slot.inode))
    }

    fn write_directories(&mut self) -> Result<(), Ext4Error> {
        for id in self
            .plan
            .order
            .iter()
            .copied()
            .filter(|id| self.tree.is_directory(*id))
        {
            let slot = *self.plan.slot(id);
            let seed = self.inode_seed(slot.inode);
            let directory = self.plan.directory(self.tree, id, self.format, seed)?;
            self.put(self.geometry.data + slot.start, &directory.blocks)?;
            self.put_extent_tree(
                &[Run {
                    logical: 0,
                    blocks: slot.blocks,
                }],
                &slot,
            )?;
        }
        Ok(())
    }

    fn put_extent_tree(&mut self, runs: &[Run], slot: &Slot) -> Result<(), Ext4Error> {
        let (_, blocks) = self.extent_tree(runs, slot);
        let first = self.geometry.data + slot.start + slot.blocks;
        for (block, number) in blocks.iter().zip(first..) {
            self.put(number, block)?;
        }
        Ok(())
    }

    fn write_xattr_blocks(&mut self) -> Result<(), Ext4Error> {
        for id in self.plan.order.iter().copied() {
            let Some(block) = self.plan.slot(id).xattr_block else {
                continue;
            };
            let placement = xattr::place(&self.tree.node(id).attributes.xattrs)
                .map_err(|_| Ext4Error::XattrsTooLarge(self.tree.path_of(id)))?;
            let number = self.geometry.data + block;
            if let Some(mut block) = placement.block {
                xattr::seal(&mut block, number, self.format.checksum_seed);
                self.put(number, &block[..])?;
            }
        }
        Ok(())
    }

    /// `lost+found` with room for names, and an empty journal.
    fn write_own(&mut self) -> Result<(), Ext4Error> {
        if let Some(start) = self.plan.lost_found {
            let seed = self.inode_seed(plan::FIRST_INODE);
            let first = self.geometry.data + start;
            let inode = plan::FIRST_INODE;
            let hash_seed = &self.format.hash_seed;
            if let Some(built) = directory::build(inode, plan::ROOT_INODE, &[], hash_seed, seed) {
                self.put(first, &built.blocks)?;
            }
            for block in 1..plan::LOST_FOUND_BLOCKS {
                self.put(first + block, &directory::empty_block(seed))?;
            }
        }
        if let Some((start, blocks)) = self.plan.journal {
            let superblock = journal::superblock(blocks as u32);
            self.put(self.geometry.data + start, &superblock)?;
        }
        Ok(())
    }

    fn write_contents(&mut self, done: &mut dyn FnMut(u64)) -> Result<(), Ext4Error> {
        let mut written = 0;
        for id in self.plan.order.iter().copied() {
            let (node, slot) = (self.tree.node(id), *self.plan.slot(id));
            match &node.kind {
                NodeKind::Symlink(target) if slot.blocks > 0 => {
                    self.put(self.geometry.data + slot.start, target)?;
                }
                NodeKind::File(data) if slot.blocks > 0 => {
                    let runs = extents::runs_of(&data.ranges);
                    self.write_file(id, data, &runs, &slot)?;
                    self.put_extent_tree(&runs, &slot)?;
                    written += slot.blocks * BLOCK;
                    done(written);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn write_file(
        &mut self,
        id: NodeId,
        data: &FileData,
        runs: &[Run],
        slot: &Slot,
    ) -> Result<(), Ext4Error> {
        let tree = self.tree;
        let unread = |error| Ext4Error::content(tree.path_of(id), error);
        let reader = self.contents.open(&data.origin).map_err(unread)?;
        let mut places = runs.iter();
        let mut physical = (self.geometry.data + slot.start) * BLOCK;
        let mut run = places.next();
        for range in &data.ranges {
            // A range starts in the run of the one before, or in the next; it never spans two.
            while let Some(current) = run
                && range.offset >= (current.logical + current.blocks) * BLOCK
            {
                physical += current.blocks * BLOCK;
                run = places.next();
            }
            let Some(current) = run else { break };
            let at = physical + range.offset - current.logical * BLOCK;
            self.sink.seek(at).map_err(Ext4Error::Write)?;
            self.sink
                .copy(&reader, range.position, range.length)
                .map_err(|error| match error {
                    CopyError::Write(source) => Ext4Error::Write(source),
                    CopyError::Read(error) => unread(error),
                })?;
        }
        reader.check_unchanged().map_err(unread)
    }

    fn superblock(&self) -> [u8; superblock::SIZE] {
        let used = self.plan.used_inodes();
        let own = Timestamp::default();
        let journal = self.plan.journal.map(|(start, blocks)| {
            let inode = self.own_inode(inode::Format::Regular, 0, 1, start, blocks, own);
            (inode.map, blocks)
        });
        let journal = journal.as_ref().map(|(map, blocks)| (map, *blocks));
        superblock::encode(self.geometry, self.format, used, journal)
    }
}

fn format_and_size(node: &Node, slot: &Slot) -> (inode::Format, u64) {
    match &node.kind {
        NodeKind::Directory(_) => (inode::Format::Directory, slot.blocks * BLOCK),
        NodeKind::File(data) => (inode::Format::Regular, data.size),
        NodeKind::Symlink(target) => (inode::Format::Symlink, target.len() as u64),
        NodeKind::CharacterDevice(_) => (inode::Format::CharacterDevice, 0),
        NodeKind::BlockDevice(_) => (inode::Format::BlockDevice, 0),
        NodeKind::Fifo => (inode::Format::Fifo, 0),
        NodeKind::Socket => (inode::Format::Socket, 0),
    }
}
