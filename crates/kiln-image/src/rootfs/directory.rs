//! A directory of the host as a source. No symlink is followed on the way, however the directory
//! changes meanwhile: every step opens beneath the root by `openat2`.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::error::ImageError;
use crate::clone::for_each_data;
use crate::content::{ContentError, Contents, Origin, Stamp};
use crate::inode::{Attributes, DataRange, DeviceNumber, EntryName, Timestamp, Xattr};
use crate::limits::{Budget, LimitError};
use crate::progress::{Progress, ProgressEvent};
use crate::tree::{Children, FileData, Node, NodeId, NodeKind, Tree};

/// Where a walk stopped.
struct WalkError {
    entry: Vec<u8>,
    fault: WalkFault,
}

enum WalkFault {
    Read(io::Error),
    Changed,
    Limit(LimitError),
}

impl From<Errno> for WalkFault {
    fn from(errno: Errno) -> WalkFault {
        WalkFault::Read(errno.into())
    }
}

impl From<io::Error> for WalkFault {
    fn from(error: io::Error) -> WalkFault {
        WalkFault::Read(error)
    }
}

impl From<LimitError> for WalkFault {
    fn from(error: LimitError) -> WalkFault {
        WalkFault::Limit(error)
    }
}

impl From<ContentError> for WalkFault {
    fn from(error: ContentError) -> WalkFault {
        match error {
            ContentError::Read(error) => WalkFault::Read(error),
            ContentError::Changed => WalkFault::Changed,
        }
    }
}

fn at<T>(entry: &[u8], result: Result<T, impl Into<WalkFault>>) -> Result<T, WalkError> {
    result.map_err(|fault| WalkError {
        entry: entry.into(),
        fault: fault.into(),
    })
}

/// One file of the walk.
struct Found {
    /// Its directory, as an index of the walk; the root is its own.
    parent: usize,
    /// Path below the root, without a leading slash; empty for the root.
    path: Vec<u8>,
    stat: Stat,
    /// A directory of another filesystem: kept empty.
    foreign: bool,
}

impl Found {
    fn name(&self) -> &[u8] {
        self.path
            .rsplit(|byte| *byte == b'/')
            .next()
            .unwrap_or_default()
    }
}

/// Reads the directory: its tree, the means to read its files, and a digest of everything in it.
pub(super) fn read(
    path: &Path,
    budget: &Budget,
    progress: &dyn Progress,
) -> Result<(Tree, Contents, [u8; 32]), ImageError> {
    let failed = |error: WalkError| image_error(path, error);
    let root = open_root(path)?;
    let found = walk(&root, budget).map_err(failed)?;
    for skipped in found.iter().filter(|found| found.foreign) {
        progress.report(ProgressEvent::Note(format!(
            "{} is on another filesystem and was left empty",
            EntryName::from(skipped.path.as_slice())
        )));
    }
    let mut reading = Reading {
        root,
        budget,
        tree: Tree::new(),
        hash: Sha256::new(),
        read: 0,
    };
    reading.take_all(&found, progress).map_err(failed)?;
    let contents = Contents {
        layers: Vec::new(),
        directory: Some(reading.root),
    };
    Ok((reading.tree, contents, reading.hash.finalize().into()))
}

/// A cheap digest of the state of the directory: names and what `stat` says. `None` if that does
/// not tell enough, or anything fails.
pub(super) fn fingerprint(path: &Path) -> Option<[u8; 32]> {
    let root = open_root(path).ok()?;
    let budget = Budget::new(&crate::limits::Limits::default());
    let mut hash = Sha256::new();
    for found in walk(&root, &budget).ok()? {
        put_bytes(&mut hash, &found.path);
        hash.update(Stamp::of(&found.stat).settled()?);
        hash.update(found.stat.st_mode.to_le_bytes());
        hash.update([u8::from(found.foreign)]);
    }
    Some(hash.finalize().into())
}

fn open_root(path: &Path) -> Result<OwnedFd, ImageError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| ImageError::Open {
        path: path.into(),
        source: errno.into(),
    })
}

fn image_error(path: &Path, error: WalkError) -> ImageError {
    let entry = EntryName::from(error.entry.as_slice());
    match error.fault {
        WalkFault::Read(source) => ImageError::Walk {
            directory: path.into(),
            entry,
            source,
        },
        WalkFault::Changed => ImageError::Changed(format!("{entry} in {}", path.display())),
        WalkFault::Limit(limit) => ImageError::Limit {
            what: path.display().to_string(),
            limit,
        },
    }
}

fn open_beneath(root: &OwnedFd, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)
}

/// Everything below the root, directory by directory, names sorted; a directory stands before what
/// is in it.
fn walk(root: &OwnedFd, budget: &Budget) -> Result<Vec<Found>, WalkError> {
    let stat = at(b"", rustix::fs::fstat(root))?;
    let device = stat.st_dev;
    let mut all = vec![Found {
        parent: 0,
        path: Vec::new(),
        stat,
        foreign: false,
    }];
    let mut next = 0;
    while next < all.len() {
        let found = &all[next];
        let is_directory = FileType::from_raw_mode(found.stat.st_mode) == FileType::Directory;
        if is_directory && !found.foreign {
            let path = found.path.clone();
            for (name, stat) in at(&path, list(root, &path, budget))? {
                let path = if path.is_empty() {
                    name
                } else {
                    [&path[..], b"/", &name].concat()
                };
                let foreign = stat.st_dev != device;
                all.push(Found {
                    parent: next,
                    path,
                    stat,
                    foreign,
                });
            }
        }
        next += 1;
    }
    Ok(all)
}

fn list(root: &OwnedFd, path: &[u8], budget: &Budget) -> Result<Vec<(Vec<u8>, Stat)>, WalkFault> {
    let directory = open_beneath(root, path, OFlags::RDONLY | OFlags::DIRECTORY)?;
    let mut names = Vec::new();
    for entry in Dir::read_from(&directory)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            budget.take_entry()?;
            budget.take_metadata(path.len() + name.len())?;
            names.push(name);
        }
    }
    names.sort_unstable();
    let stats = names.into_iter().map(|name| {
        let stat = rustix::fs::statat(&directory, &name[..], AtFlags::SYMLINK_NOFOLLOW)?;
        Ok((name, stat))
    });
    stats.collect()
}

/// The second pass: attributes, link targets, holes and the digest.
struct Reading<'b> {
    root: OwnedFd,
    budget: &'b Budget,
    tree: Tree,
    hash: Sha256,
    read: u64,
}

impl Reading<'_> {
    fn take_all(&mut self, found: &[Found], progress: &dyn Progress) -> Result<(), WalkError> {
        let mut nodes: Vec<NodeId> = Vec::with_capacity(found.len());
        // Files with several names, by inode.
        let mut linked: HashMap<(u64, u64), NodeId> = HashMap::new();
        let mut directory: Option<(usize, OwnedFd)> = None;
        for (number, file) in found.iter().enumerate() {
            put_bytes(&mut self.hash, &file.path);
            if number == 0 {
                let attributes = at(b"", self.root_attributes(&file.stat))?;
                self.tree.set_attributes(Tree::ROOT, attributes);
                nodes.push(Tree::ROOT);
                continue;
            }
            let parent = nodes[file.parent];
            #[allow(
                clippy::unnecessary_cast,
                reason = "widths differ between architectures"
            )]
            let identity = (file.stat.st_dev as u64, file.stat.st_ino as u64);
            let is_directory = FileType::from_raw_mode(file.stat.st_mode) == FileType::Directory;
            if let Some(first) = linked.get(&identity).filter(|_| !is_directory) {
                self.hash.update(b"link");
                self.hash.update((first.index() as u64).to_le_bytes());
                self.tree.link(parent, file.name(), *first);
                nodes.push(*first);
                continue;
            }
            if directory
                .as_ref()
                .is_none_or(|(parent, _)| *parent != file.parent)
            {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY;
                let path = &found[file.parent].path;
                let opened = at(path, open_beneath(&self.root, path, flags))?;
                directory = Some((file.parent, opened));
            }
            let Some((_, directory)) = &directory else {
                continue;
            };
            let node = at(&file.path, self.node(directory, file))?;
            let id = self.tree.add(node);
            self.tree.link(parent, file.name(), id);
            nodes.push(id);
            if !is_directory && file.stat.st_nlink > 1 {
                linked.insert(identity, id);
            }
            progress.report(ProgressEvent::Bytes {
                done: self.read,
                total: None,
            });
        }
        Ok(())
    }

    fn root_attributes(&mut self, stat: &Stat) -> Result<Attributes, WalkFault> {
        // The root has no name to ask by; `/proc/self/fd/N/.` asks the directory itself.
        let xattrs = xattrs_of(&self.root, b".", self.budget)?;
        Ok(self.attributes(stat, xattrs))
    }

    fn attributes(&mut self, stat: &Stat, xattrs: Vec<Xattr>) -> Attributes {
        #[allow(
            clippy::unnecessary_cast,
            reason = "widths differ between architectures"
        )]
        let modified = Timestamp {
            seconds: stat.st_mtime as i64,
            nanoseconds: stat.st_mtime_nsec as u32,
        };
        let attributes = Attributes {
            mode: (stat.st_mode & 0o7777) as u16,
            uid: stat.st_uid,
            gid: stat.st_gid,
            modified,
            xattrs,
        };
        self.hash.update(stat.st_mode.to_le_bytes());
        self.hash.update(attributes.uid.to_le_bytes());
        self.hash.update(attributes.gid.to_le_bytes());
        self.hash.update(modified.seconds.to_le_bytes());
        self.hash.update(modified.nanoseconds.to_le_bytes());
        self.hash
            .update((attributes.xattrs.len() as u64).to_le_bytes());
        for xattr in &attributes.xattrs {
            put_bytes(&mut self.hash, &xattr.name);
            put_bytes(&mut self.hash, &xattr.value);
        }
        attributes
    }

    fn node(&mut self, directory: &OwnedFd, file: &Found) -> Result<Node, WalkFault> {
        let xattrs = xattrs_of(directory, file.name(), self.budget)?;
        let attributes = self.attributes(&file.stat, xattrs);
        let device = || DeviceNumber {
            major: rustix::fs::major(file.stat.st_rdev),
            minor: rustix::fs::minor(file.stat.st_rdev),
        };
        let kind = match FileType::from_raw_mode(file.stat.st_mode) {
            FileType::Directory => NodeKind::Directory(Children::new()),
            FileType::RegularFile => NodeKind::File(self.file(file)?),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(directory, file.name(), Vec::new())?;
                put_bytes(&mut self.hash, target.as_bytes());
                NodeKind::Symlink(target.as_bytes().into())
            }
            FileType::CharacterDevice => NodeKind::CharacterDevice(device()),
            FileType::BlockDevice => NodeKind::BlockDevice(device()),
            FileType::Fifo => NodeKind::Fifo,
            FileType::Socket => NodeKind::Socket,
            FileType::Unknown => return Err(Errno::INVAL.into()),
        };
        self.hash.update(file.stat.st_rdev.to_le_bytes());
        Ok(Node { attributes, kind })
    }

    /// Size, holes and the digest of the data; the data itself stays where it is.
    fn file(&mut self, file: &Found) -> Result<FileData, WalkFault> {
        let size = u64::try_from(file.stat.st_size).unwrap_or(0);
        let stamp = Stamp::of(&file.stat);
        self.budget.take_total(allocated(&file.stat).min(size))?;
        self.hash.update(size.to_le_bytes());
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let opened = File::from(open_beneath(&self.root, &file.path, flags)?);
        let reader = crate::content::Reader::Opened(opened, stamp);
        reader.check_unchanged()?;
        let ranges = ranges_of(&reader, &file.stat, size)?;
        let mut buffer = vec![0; (1 << 20).min(size as usize)];
        for range in &ranges {
            self.hash.update(range.offset.to_le_bytes());
            self.hash.update(range.length.to_le_bytes());
            let mut done = 0;
            while done < range.length {
                let piece = (range.length - done).min(buffer.len() as u64) as usize;
                reader.read_at(&mut buffer[..piece], range.offset + done)?;
                self.hash.update(&buffer[..piece]);
                done += piece as u64;
                self.read += piece as u64;
            }
        }
        reader.check_unchanged()?;
        Ok(FileData {
            size,
            origin: Origin::Path(file.path.as_slice().into(), stamp),
            ranges,
        })
    }
}

fn allocated(stat: &Stat) -> u64 {
    u64::try_from(stat.st_blocks)
        .unwrap_or(0)
        .saturating_mul(512)
}

/// Asks for holes only where blocks are missing.
fn ranges_of(
    reader: &crate::content::Reader<'_>,
    stat: &Stat,
    size: u64,
) -> Result<Vec<DataRange>, WalkFault> {
    let mut ranges = Vec::new();
    let mut add = |start: u64, end: u64| {
        if end > start {
            ranges.push(DataRange {
                offset: start,
                position: start,
                length: end - start,
            });
        }
        Ok(())
    };
    match reader {
        crate::content::Reader::Opened(file, _) if allocated(stat) < size => {
            for_each_data(file, size, add)?;
        }
        _ => add(0, size)?,
    }
    Ok(ranges)
}

/// Attributes of a name in an open directory. Only `/proc` leads there without following the name
/// itself and without opening it, which devices and pipes would notice.
fn xattrs_of(directory: impl AsFd, name: &[u8], budget: &Budget) -> Result<Vec<Xattr>, WalkFault> {
    let directory = directory.as_fd().as_raw_fd();
    let path = [format!("/proc/self/fd/{directory}/").as_bytes(), name].concat();
    let mut names = vec![0; 4096];
    let length = loop {
        match rustix::fs::llistxattr(&path[..], &mut names[..]) {
            Ok(length) => break length,
            Err(Errno::RANGE) if names.len() < 1 << 16 => names.resize(1 << 16, 0),
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Err(errno) => return Err(errno.into()),
        }
    };
    let mut xattrs = Vec::new();
    for name in names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        let mut value = vec![0; 1 << 16];
        match rustix::fs::lgetxattr(&path[..], name, &mut value[..]) {
            Ok(length) => {
                budget.take_metadata(name.len() + length)?;
                xattrs.push(Xattr {
                    name: name.into(),
                    value: value[..length].into(),
                });
            }
            // Removed meanwhile; the change time tells.
            Err(Errno::NODATA) => return Err(WalkFault::Changed),
            Err(errno) => return Err(errno.into()),
        }
    }
    xattrs.sort_unstable();
    Ok(xattrs)
}

fn put_bytes(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}
