//! Files on their way to their place, and those that a killed process left on theirs.
//!
//! Who makes one holds its lock as long as it lives; one that nobody holds is nobody's.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, OFlags};
use tempfile::NamedTempFile;

use crate::publish::flock_at_once;

const PREFIX: &str = ".partial-";
/// What the random part of a name has.
const RANDOM: usize = 6;

/// A new file in `directory`; gone with its owner, unless it gets to its place.
pub(crate) fn file_in(directory: &Path) -> io::Result<NamedTempFile> {
    loop {
        let new = tempfile::Builder::new()
            .prefix(PREFIX)
            .rand_bytes(RANDOM)
            .tempfile_in(directory)?;
        let mine = flock_at_once(new.as_file(), FlockOperation::NonBlockingLockExclusive)?;
        // A sweep may come between making it and locking it.
        if mine && is_at(new.as_file(), new.path()) {
            return Ok(new);
        }
    }
}

/// Removes the files that [`file_in`] made in a directory of ours and whose makers live no more.
/// What cannot be removed stays for the next time.
pub(crate) fn sweep(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if !name.to_str().is_some_and(is_ours) {
            continue;
        }
        let path = entry.path();
        if let Err(error) = remove_if_abandoned(&path) {
            tracing::debug!(path = %path.display(), %error, "a half-made file stays");
        }
    }
}

fn remove_if_abandoned(path: &Path) -> io::Result<()> {
    let file = File::options()
        .read(true)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
        .open(path)?;
    let abandoned = file.metadata()?.is_file()
        && flock_at_once(&file, FlockOperation::NonBlockingLockExclusive)?
        && is_at(&file, path);
    if abandoned {
        fs::remove_file(path)?;
        tracing::info!(path = %path.display(), "removed what a killed process left half-made");
    }
    Ok(())
}

fn is_ours(name: &str) -> bool {
    name.strip_prefix(PREFIX).is_some_and(|random| {
        random.len() == RANDOM && random.bytes().all(|it| it.is_ascii_alphanumeric())
    })
}

fn is_at(file: &File, path: &Path) -> bool {
    let which = |data: fs::Metadata| (data.dev(), data.ino());
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(held), Ok(there)) => which(held) == which(there),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_nobody_holds_goes_and_all_else_stays() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path();
        let held = file_in(dir).unwrap();
        let held_name = held
            .path()
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        // As a killed process leaves it.
        fs::write(dir.join(".partial-aB3dE6"), "half").unwrap();
        // Other people's, or something else.
        for name in [
            ".partial-notes",
            ".partial-aB3dE6.txt",
            "partial-aB3dE6",
            "whole",
        ] {
            fs::write(dir.join(name), "theirs").unwrap();
        }
        fs::create_dir(dir.join(".partial-dirdir")).unwrap();
        std::os::unix::fs::symlink("whole", dir.join(".partial-linked")).unwrap();
        let mut stay = names(dir);
        stay.retain(|name| name != ".partial-aB3dE6");
        sweep(dir);
        assert_eq!(names(dir), stay);
        assert!(stay.contains(&held_name), "it is in use");
        held.persist(dir.join("done")).unwrap();
        sweep(dir);
        assert!(dir.join("done").exists());
    }

    #[test]
    fn making_and_sweeping_at_once_lose_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path();
        std::thread::scope(|scope| {
            let makers: Vec<_> = (0..4)
                .map(|maker| {
                    scope.spawn(move || {
                        for number in 0..100 {
                            let new = file_in(dir).unwrap();
                            new.persist(dir.join(format!("{maker}-{number}"))).unwrap();
                        }
                    })
                })
                .collect();
            scope.spawn(move || {
                while !makers
                    .iter()
                    .all(std::thread::ScopedJoinHandle::is_finished)
                {
                    sweep(dir);
                }
                makers.into_iter().for_each(|maker| maker.join().unwrap());
            });
        });
        assert_eq!(names(dir).len(), 400);
    }
}
