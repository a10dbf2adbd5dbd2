//! Directories that the kernel watches, and what its events mean.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kiln_agent_proto::message::{ChangeKind, ErrorCode, FileChange, Watch};
use rustix::fs::inotify::{CreateFlags, ReadFlags, Reader, WatchFlags, add_watch, remove_watch};
use rustix::io::Errno;

use crate::files::{FileError, MAX_PATH, absolute};

/// Directories that are watched at once, by all watches together: each costs its path.
const MAX_DIRECTORIES: usize = 4096;
/// Events of one reading, in bytes: a long name fits dozens of times.
const BATCH: usize = 4096;
/// Files of directories that came whole, of which one reading tells.
const MAX_FOUND: usize = 1024;

/// How many directories are watched.
#[derive(Clone, Debug, Default)]
pub(crate) struct Directories(Arc<AtomicUsize>);

impl Directories {
    fn take(&self) -> bool {
        let more = |count| (count < MAX_DIRECTORIES).then_some(count + 1);
        let taken = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.is_ok()
    }

    fn give_back(&self, count: usize) {
        self.0.fetch_sub(count, Ordering::Relaxed);
    }
}

/// What is watched.
#[derive(Debug)]
pub(super) struct Tree {
    inotify: OwnedFd,
    root: PathBuf,
    recursive: bool,
    /// Paths by the kernel's numbers, which it does not use again.
    watched: BTreeMap<i32, PathBuf>,
    directories: Directories,
    is_over: bool,
}

/// An event as it was read.
#[derive(Debug)]
pub(super) struct Event {
    watch: i32,
    what: ReadFlags,
    name: Vec<u8>,
}

impl Drop for Tree {
    fn drop(&mut self) {
        self.directories.give_back(self.watched.len());
    }
}

impl Tree {
    pub(super) fn open(request: &Watch, directories: Directories) -> Result<Self, FileError> {
        let root = absolute(&request.path)?;
        let refused = |error: Errno| FileError::of(&root, &error.into());
        let flags = CreateFlags::CLOEXEC | CreateFlags::NONBLOCK;
        let mut tree = Self {
            inotify: rustix::fs::inotify::init(flags).map_err(refused)?,
            root: root.clone(),
            recursive: request.recursive,
            watched: BTreeMap::new(),
            directories,
            is_over: false,
        };
        tree.add(&root, WatchFlags::empty()).map_err(refused)?;
        if tree.recursive && tree.walk(&root, None).is_err() {
            let text = format!(
                "{}: more than {MAX_DIRECTORIES} directories",
                root.display()
            );
            return Err(FileError::new(ErrorCode::Busy, text));
        }
        Ok(tree)
    }

    /// Another descriptor of the same, to wait for.
    pub(super) fn descriptor(&self) -> io::Result<OwnedFd> {
        self.inotify.try_clone()
    }

    /// Whether what was to be watched is gone.
    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    /// Events that are there, some of them.
    pub(super) fn read(&self) -> io::Result<Vec<Event>> {
        let mut buffer = [MaybeUninit::uninit(); BATCH];
        let mut reader = Reader::new(&self.inotify, &mut buffer);
        let mut events = Vec::new();
        loop {
            match reader.next() {
                Ok(event) => events.push(Event {
                    watch: event.wd(),
                    what: event.events(),
                    name: event
                        .file_name()
                        .map_or_else(Vec::new, |it| it.to_bytes().to_vec()),
                }),
                Err(Errno::WOULDBLOCK | Errno::INTR) => return Ok(events),
                Err(error) => return Err(error.into()),
            }
            if reader.is_buffer_empty() {
                return Ok(events);
            }
        }
    }

    /// Whether some of the events say that directories have come.
    pub(super) fn has_to_walk(&self, events: &[Event]) -> bool {
        self.recursive && events.iter().any(Event::brings_directory)
    }

    /// What the events mean. May take a while when directories have come.
    pub(super) fn understand(mut self, events: Vec<Event>) -> (Self, Vec<FileChange>) {
        let mut changes = Vec::new();
        for event in events {
            self.apply(&event, &mut changes);
        }
        (self, changes)
    }

    fn apply(&mut self, event: &Event, changes: &mut Vec<FileChange>) {
        if event.what.contains(ReadFlags::QUEUE_OVERFLOW) {
            changes.push(lost());
            return;
        }
        let Some(of) = self.watched.get(&event.watch) else {
            return;
        };
        let is_root = *of == self.root;
        if event.what.contains(ReadFlags::IGNORED) {
            self.is_over |= is_root;
            self.watched.remove(&event.watch);
            self.directories.give_back(1);
            return;
        }
        let path = match &event.name[..] {
            [] => of.clone(),
            name => of.join(std::ffi::OsStr::from_bytes(name)),
        };
        // A directory inside tells of itself what the one above it tells too.
        let Some(kind) = event.kind().filter(|_| is_root || !event.name.is_empty()) else {
            return;
        };
        let is_directory = event.what.contains(ReadFlags::ISDIR);
        changes.push(change(kind, path.clone(), is_directory));
        self.is_over |= event.what.contains(ReadFlags::MOVE_SELF);
        if !self.recursive || !is_directory {
            return;
        }
        if kind == ChangeKind::MovedFrom {
            self.forget(&path);
        }
        if event.brings_directory() && self.walk(&path, Some(changes)).is_err() {
            changes.push(lost());
        }
    }

    /// Watches all directories from here on, and tells what is in them; an error when there are too
    /// many. What goes meanwhile is left out.
    fn walk(
        &mut self,
        path: &Path,
        mut found: Option<&mut Vec<FileChange>>,
    ) -> Result<(), TooMany> {
        let mut ahead = vec![path.to_owned()];
        while let Some(directory) = ahead.pop() {
            let only = WatchFlags::ONLYDIR | WatchFlags::DONT_FOLLOW;
            match self.add(&directory, only) {
                Ok(()) => {}
                Err(Errno::NOSPC) => return Err(TooMany),
                // The root may be a link, and is watched already.
                Err(_) if directory != self.root => continue,
                Err(_) => {}
            }
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                let is_directory = entry.file_type().is_ok_and(|it| it.is_dir());
                if let Some(found) = &mut found {
                    if found.len() >= MAX_FOUND {
                        return Err(TooMany);
                    }
                    found.push(change(ChangeKind::Created, entry.path(), is_directory));
                }
                if is_directory && entry.path().as_os_str().len() < MAX_PATH {
                    ahead.push(entry.path());
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, path: &Path, how: WatchFlags) -> Result<(), Errno> {
        let what = WatchFlags::CREATE
            | WatchFlags::MODIFY
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE
            | WatchFlags::MOVE_SELF;
        if !self.directories.take() {
            return Err(Errno::NOSPC);
        }
        let added = add_watch(&self.inotify, path, what | how);
        let is_new = match added {
            Ok(number) => self.watched.insert(number, path.to_owned()).is_none(),
            Err(_) => false,
        };
        if !is_new {
            self.directories.give_back(1);
        }
        added.map(drop)
    }

    /// A directory that goes elsewhere is not watched there.
    fn forget(&mut self, gone: &Path) {
        let before = self.watched.len();
        let inotify = &self.inotify;
        self.watched.retain(|number, path| {
            let stays = !path.starts_with(gone);
            if !stays {
                // One that the kernel has given up already is as good.
                let _ = remove_watch(inotify, *number);
            }
            stays
        });
        self.directories.give_back(before - self.watched.len());
    }
}

/// More directories or files than are told of.
struct TooMany;

impl Event {
    fn brings_directory(&self) -> bool {
        self.what.contains(ReadFlags::ISDIR)
            && self
                .what
                .intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO)
    }

    fn kind(&self) -> Option<ChangeKind> {
        let kinds = [
            (ReadFlags::CREATE, ChangeKind::Created),
            (ReadFlags::MODIFY, ChangeKind::Modified),
            (ReadFlags::DELETE, ChangeKind::Removed),
            (ReadFlags::DELETE_SELF, ChangeKind::Removed),
            (ReadFlags::MOVED_FROM, ChangeKind::MovedFrom),
            (ReadFlags::MOVE_SELF, ChangeKind::MovedFrom),
            (ReadFlags::MOVED_TO, ChangeKind::MovedTo),
            (ReadFlags::ATTRIB, ChangeKind::Attributes),
        ];
        let found = kinds
            .into_iter()
            .find(|(flag, _)| self.what.contains(*flag));
        found.map(|(_, kind)| kind)
    }
}

fn change(kind: ChangeKind, path: PathBuf, directory: bool) -> FileChange {
    FileChange {
        kind: kind as i32,
        path: path.into_os_string().into_vec(),
        directory,
    }
}

fn lost() -> FileChange {
    change(ChangeKind::Lost, PathBuf::new(), false)
}

#[cfg(test)]
mod tests;
