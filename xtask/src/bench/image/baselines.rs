//! The pipelines that Kiln replaces, each timed from its first process until its result is on the
//! disk. Clearing away is not timed.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::ImageBenchError;
use super::tree::SampleTree;
use crate::step;

/// What tar needs to be told to keep what an image holds.
const KEEP: [&str; 5] = [
    "--numeric-owner",
    "--same-permissions",
    "--acls",
    "--xattrs",
    "--xattrs-include=*",
];
/// A filesystem that holds the tree with its metadata and some room.
const SIZE: &str = "768M";

/// Nothing of an earlier measurement is left to be written during the next.
pub(super) fn settle() {
    rustix::fs::sync();
}

/// A loop mount that ends with its value.
struct Mount<'a>(&'a Path);

impl Mount<'_> {
    fn end(self) -> Result<(), ImageBenchError> {
        step::capture(Command::new("umount").arg(self.0))?;
        std::mem::forget(self);
        Ok(())
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

/// `mkfs.ext4`, loop mount, `tar x`, `umount`, flush.
pub(super) fn mount_and_untar(
    sample: &SampleTree,
    work: &Path,
) -> Result<Duration, ImageBenchError> {
    let (image, point) = (work.join("mounted.ext4"), work.join("mounted"));
    std::fs::create_dir(&point).map_err(ImageBenchError::Directory)?;
    settle();
    let started = Instant::now();
    step::capture(Command::new("truncate").args(["-s", SIZE]).arg(&image))?;
    step::capture(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image))?;
    step::capture(
        Command::new("mount")
            .args(["-o", "loop"])
            .args([&image, &point]),
    )?;
    let mount = Mount(&point);
    untar(sample, &point)?;
    mount.end()?;
    flush(&image)?;
    let took = started.elapsed();
    remove(&[&image], &[&point])?;
    Ok(took)
}

/// `tar x` to a directory, `mke2fs -d`, flush.
pub(super) fn untar_and_mke2fs(
    sample: &SampleTree,
    work: &Path,
) -> Result<Duration, ImageBenchError> {
    let (image, directory) = (work.join("populated.ext4"), work.join("untarred"));
    std::fs::create_dir(&directory).map_err(ImageBenchError::Directory)?;
    settle();
    let started = Instant::now();
    untar(sample, &directory)?;
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.args(["-q", "-F", "-t", "ext4", "-d"]);
    step::capture(mke2fs.args([&directory, &image]).arg(SIZE))?;
    flush(&image)?;
    let took = started.elapsed();
    remove(&[&image], &[&directory])?;
    Ok(took)
}

/// What a machine's disk would cost as a copy of its image. Not flushed: Kiln's is not either.
pub(super) fn full_copy(image: &Path, work: &Path) -> Result<Duration, ImageBenchError> {
    let copy = work.join("copy.ext4");
    settle();
    let started = Instant::now();
    step::capture(
        Command::new("cp")
            .arg("--reflink=never")
            .args([image, &copy]),
    )?;
    let took = started.elapsed();
    remove(&[&copy], &[])?;
    Ok(took)
}

fn untar(sample: &SampleTree, directory: &Path) -> Result<(), ImageBenchError> {
    let mut tar = Command::new("tar");
    tar.args(KEEP).arg("-C").arg(directory).arg("-xf");
    step::capture(tar.arg(&sample.archive))?;
    Ok(())
}

fn flush(image: &Path) -> Result<(), ImageBenchError> {
    step::capture(Command::new("sync").arg(image))?;
    Ok(())
}

fn remove(files: &[&Path], directories: &[&Path]) -> Result<(), ImageBenchError> {
    let files = files.iter().map(std::fs::remove_file);
    let directories = directories.iter().map(std::fs::remove_dir_all);
    files
        .chain(directories)
        .collect::<Result<(), _>>()
        .map_err(ImageBenchError::Directory)
}
