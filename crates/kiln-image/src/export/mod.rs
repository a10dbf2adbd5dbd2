//! From a block image back to an archive of files: our own reader of ext4, our own writer of tar.
//! Nothing is mounted; images that came from outside are read as what they are: hostile.

mod ext4;
mod tar;

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use ext4::{Ext4Reader, Inode, InodeKind};
pub(crate) use tar::FileArchive;
use tar::{Content, Header, TarWriter};

use crate::inode::EntryName;
use crate::limits::{Budget, LimitError};
use crate::progress::{Progress, ProgressEvent};

/// Why an image cannot be written out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The block image cannot be read.
    #[error("cannot read the block image")]
    Read(#[source] io::Error),
    /// The block image is damaged.
    #[error("the block image is damaged: {0}")]
    Damaged(&'static str),
    /// The filesystem has a feature that is not supported.
    #[error("{0} cannot be exported")]
    Unsupported(&'static str),
    /// A file whose name would delete another one in a layer.
    #[error("{0} would be a deletion in a layer")]
    Whiteout(EntryName),
    /// The image costs more than allowed.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// The output cannot be written.
    #[error("cannot write the archive")]
    Write(#[source] io::Error),
}

/// What the archive is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Any tar program.
    Rootfs,
    /// An OCI layer, in which some names mean more than themselves.
    Layer,
}

const WHITEOUT: &[u8] = b".wh.";
/// Deeper trees than any path can name.
const MAX_DEPTH: usize = 2048;

/// Writes all files of the ext4 image `file` to `out`, in the order of their names: the same image
/// gives the same bytes.
pub(crate) fn rootfs(
    file: &File,
    out: &mut dyn Write,
    purpose: Purpose,
    budget: &Budget,
    progress: &dyn Progress,
) -> Result<(), ExportError> {
    let reader = Ext4Reader::open(file)?;
    let mut export = Export {
        reader: &reader,
        file,
        out: TarWriter::new(out),
        purpose,
        budget,
        progress,
        names: HashMap::new(),
        directories: BTreeSet::new(),
        done: 0,
    };
    let root = reader.inode(Ext4Reader::ROOT)?;
    export.directory(Ext4Reader::ROOT, &root)?;
    export.out.finish().map_err(ExportError::Write)
}

struct Export<'a> {
    reader: &'a Ext4Reader<'a>,
    file: &'a File,
    out: TarWriter<'a>,
    purpose: Purpose,
    budget: &'a Budget,
    progress: &'a dyn Progress,
    /// First names of files that have several.
    names: HashMap<u32, Vec<u8>>,
    /// A directory with two names would be a loop.
    directories: BTreeSet<u32>,
    done: u64,
}

/// One directory on the way down.
struct Level {
    path: Vec<u8>,
    /// Names still to do, last first.
    entries: Vec<(Vec<u8>, u32)>,
}

impl Export<'_> {
    /// Goes down from the root without recursion: a hostile image may be deep.
    fn directory(&mut self, number: u32, root: &Inode) -> Result<(), ExportError> {
        self.out
            .entry(&Header::of(b"./", root), Content::None)
            .map_err(ExportError::Write)?;
        let mut levels = vec![self.level(number, root, Vec::new())?];
        while let Some(level) = levels.last_mut() {
            let Some((name, number)) = level.entries.pop() else {
                levels.pop();
                continue;
            };
            // ext4's own, empty in an image, and made again where it is needed.
            if level.path.is_empty() && name == b"lost+found" {
                continue;
            }
            let path = [&level.path[..], &name].concat();
            if self.purpose == Purpose::Layer && name.starts_with(WHITEOUT) {
                return Err(ExportError::Whiteout(EntryName::from(path.as_slice())));
            }
            let inode = self.reader.inode(number)?;
            if inode.kind == InodeKind::Directory {
                if levels.len() >= MAX_DEPTH {
                    return Err(ExportError::Damaged("directories are too deep"));
                }
                let path = [&path[..], b"/"].concat();
                let written = self.out.entry(&Header::of(&path, &inode), Content::None);
                written.map_err(ExportError::Write)?;
                levels.push(self.level(number, &inode, path)?);
            } else {
                self.file(number, &inode, path)?;
            }
        }
        Ok(())
    }

    fn level(&mut self, number: u32, inode: &Inode, path: Vec<u8>) -> Result<Level, ExportError> {
        if !self.directories.insert(number) {
            return Err(ExportError::Damaged("a directory has two names"));
        }
        let mut entries = self.reader.directory(inode, self.budget)?;
        entries.sort_by(|a, b| b.0.cmp(&a.0));
        Ok(Level { path, entries })
    }

    fn file(&mut self, number: u32, inode: &Inode, path: Vec<u8>) -> Result<(), ExportError> {
        let header = Header::of(&path, inode);
        if inode.links > 1 {
            if let Some(first) = self.names.get(&number) {
                let written = self.out.entry(&header, Content::Link(first));
                return written.map_err(ExportError::Write);
            }
            self.budget.take_metadata(path.len())?;
            self.names.insert(number, path.clone());
        }
        match inode.kind {
            InodeKind::Regular => self.regular(inode, &header),
            InodeKind::Symlink => {
                let target = self.reader.symlink(inode)?;
                let written = self.out.entry(&header, Content::Symlink(&target));
                written.map_err(ExportError::Write)
            }
            InodeKind::Socket => {
                let name = EntryName::from(path.as_slice());
                let note =
                    format!("{name} is a socket, which archives cannot hold, and was left out");
                self.progress.report(ProgressEvent::Note(note));
                Ok(())
            }
            _ => self
                .out
                .entry(&header, Content::None)
                .map_err(ExportError::Write),
        }
    }

    fn regular(&mut self, inode: &Inode, header: &Header<'_>) -> Result<(), ExportError> {
        let ranges = self.reader.ranges(inode, self.budget)?;
        self.out
            .start_file(header, inode.size, &ranges)
            .map_err(ExportError::Write)?;
        let mut buffer = vec![0; 256 << 10];
        for range in &ranges {
            let mut at = 0;
            while at < range.length {
                let length = (range.length - at).min(buffer.len() as u64) as usize;
                let piece = &mut buffer[..length];
                self.file
                    .read_exact_at(piece, range.position + at)
                    .map_err(ExportError::Read)?;
                self.out.data(piece).map_err(ExportError::Write)?;
                at += length as u64;
            }
            self.done += range.length;
        }
        self.out.end_file().map_err(ExportError::Write)?;
        self.progress.report(ProgressEvent::Bytes {
            done: self.done,
            total: None,
        });
        Ok(())
    }
}

/// Door for the fuzz target.
pub(crate) fn fuzz(image: &File) {
    let limits = crate::limits::Limits {
        entries: 1000,
        file_bytes: 1 << 20,
        metadata_bytes: 1 << 20,
        ..crate::limits::Limits::default()
    };
    let budget = Budget::new(&limits);
    let _ = rootfs(
        image,
        &mut io::sink(),
        Purpose::Rootfs,
        &budget,
        &crate::progress::Silent,
    );
}
