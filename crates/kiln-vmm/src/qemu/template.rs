//! Guest memory of snapshots, kept where many machines can map it and none can change it.
//!
//! QEMU opens a memory file for writing even when it maps it privately, so a file that only root
//! may write is of no use to a jailed one. A sealed memfd is: anyone may open it, and the kernel
//! lets nobody change it.

use std::fs::File;
use std::io::Error;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use crate::snapshot::copy_data;

/// Snapshots whose memory is kept: the last ones that were used.
const KEPT: usize = 4;

/// Memory of the last snapshots that were restored.
#[derive(Debug, Default)]
pub(super) struct Templates {
    /// The newest last.
    kept: Mutex<Vec<(Key, Arc<OwnedFd>)>>,
}

/// A file that was replaced has another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    device: u64,
    inode: u64,
    changed: (i64, i64),
}

impl Templates {
    /// The memory in `file`, sealed; read in when it is not here yet. Blocks.
    pub(super) fn open(&self, file: &Path) -> std::io::Result<OwnedFd> {
        let file = File::open(file)?;
        let data = file.metadata()?;
        let key = Key {
            device: data.dev(),
            inode: data.ino(),
            changed: (data.ctime(), data.ctime_nsec()),
        };
        if let Some(kept) = self.find(key) {
            return kept.try_clone();
        }
        let sealed = Arc::new(sealed_copy(&file)?);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT {
            kept.remove(0);
        }
        kept.push((key, Arc::clone(&sealed)));
        sealed.try_clone()
    }

    /// Keeps the memory in `file` no longer.
    pub(super) fn forget(&self, file: &Path) {
        let Ok(data) = std::fs::metadata(file) else {
            return;
        };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(key, _)| (key.device, key.inode) != (data.dev(), data.ino()));
    }

    fn find(&self, key: Key) -> Option<Arc<OwnedFd>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().position(|(other, _)| *other == key)?;
        let found = kept.remove(at);
        let sealed = Arc::clone(&found.1);
        kept.push(found);
        Some(sealed)
    }
}

fn sealed_copy(file: &File) -> std::io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = File::from(memfd_create(c"kiln-template", flags)?);
    copy_data(file, &memory)?;
    fcntl_add_seals(
        &memory,
        SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
    )
    .map_err(Error::from)?;
    Ok(memory.into())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn nobody_can_change_what_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory");
        std::fs::write(&path, vec![7; 9000]).unwrap();
        let templates = Templates::default();
        let mut opened = File::from(templates.open(&path).unwrap());
        assert!(opened.write(b"x").is_err());
        assert!(opened.set_len(1).is_err());
        let mut content = Vec::new();
        opened.read_to_end(&mut content).unwrap();
        assert_eq!(content, vec![7; 9000]);
        assert_eq!(templates.kept.lock().unwrap().len(), 1);
        drop(templates.open(&path).unwrap());
        assert_eq!(templates.kept.lock().unwrap().len(), 1);
        templates.forget(&path);
        assert_eq!(templates.kept.lock().unwrap().len(), 0);
        drop(templates.open(&path).unwrap());
        // Another file under the same name.
        std::fs::remove_file(&path).unwrap();
        for number in 0..6 {
            let path = dir.path().join(number.to_string());
            std::fs::write(&path, "other").unwrap();
            drop(templates.open(&path).unwrap());
        }
        assert_eq!(templates.kept.lock().unwrap().len(), KEPT);
    }
}
