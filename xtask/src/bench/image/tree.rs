//! The tree that is measured with: 500 MB in 30,000 files, sized and spread as in a distribution,
//! the same on every machine.

use std::fs::{File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::ImageBenchError;
use crate::step;

/// Regular files in the tree; directories and links come on top.
pub(super) const FILES: u64 = 30_000;
const BYTES: u64 = 500_000_000;
/// Files that share what the others leave of [`BYTES`], as a compiler's libraries would.
const LARGE: u64 = 4;
const DIRECTORIES: u64 = 1500;
/// Layers of the tree as an image.
const LAYERS: u64 = 5;
/// One directory is as full as those of package managers.
const CROWD: u64 = 3000;

/// The packed tree.
pub(super) struct SampleTree {
    /// A POSIX tar, not compressed.
    pub(super) archive: PathBuf,
    /// The same in as many layers, of about the same size each.
    pub(super) layers: Vec<PathBuf>,
}

impl SampleTree {
    pub(super) fn make(work: &Path) -> Result<SampleTree, ImageBenchError> {
        let tree = work.join("tree");
        let archive = work.join("tree.tar");
        write(&tree).map_err(|source| ImageBenchError::Tree {
            path: tree.clone(),
            source,
        })?;
        let mut tar = Command::new("tar");
        tar.args(["--format=posix", "--sort=name", "--acls", "--xattrs"]);
        step::capture(tar.arg("-C").arg(&tree).arg("-cf").arg(&archive).arg("."))?;
        let layers = pack_layers(&tree, work)?;
        std::fs::remove_dir_all(&tree).map_err(ImageBenchError::Directory)?;
        Ok(SampleTree { archive, layers })
    }
}

/// One after the other takes its share of the paths in the order of their names, so that what is
/// above a path is in its layer or below it.
fn pack_layers(tree: &Path, work: &Path) -> Result<Vec<PathBuf>, ImageBenchError> {
    let find = ["-mindepth", "1", "-printf", "%P\\t%s\\n"];
    let listed = step::capture(Command::new("find").arg(tree).args(find))?;
    let listed = String::from_utf8_lossy(&listed);
    let mut paths: Vec<(&str, u64)> = listed
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .map(|(path, size)| (path, size.parse().unwrap_or(0)))
        .collect();
    paths.sort_unstable();
    let total: u64 = paths.iter().map(|(_, size)| size).sum();
    let mut shares = vec![String::new(); LAYERS as usize];
    let mut seen = 0;
    for (path, size) in paths {
        let share = (seen * LAYERS / total.max(1)).min(LAYERS - 1);
        shares[share as usize].push_str(&format!("{path}\n"));
        seen += size;
    }
    let mut layers = Vec::new();
    for (number, share) in shares.iter().enumerate() {
        let (list, layer) = (work.join("list"), work.join(format!("layer{number}.tar")));
        std::fs::write(&list, share).map_err(ImageBenchError::Directory)?;
        let mut tar = Command::new("tar");
        tar.args(["--format=posix", "--no-recursion", "-C"])
            .arg(tree);
        step::capture(tar.arg("-cf").arg(&layer).arg("-T").arg(&list))?;
        layers.push(layer);
    }
    Ok(layers)
}

fn write(tree: &Path) -> io::Result<()> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let directories = make_directories(tree)?;
    let mut left = BYTES;
    for number in 0..FILES {
        let size = match FILES - number {
            1 => left,
            last @ 2..=LARGE => left / last,
            _ => random.size().min(left),
        };
        left -= size;
        let place = if number < CROWD {
            0
        } else {
            number % DIRECTORIES
        };
        let path = directories[place as usize].join(format!("file-{number:05}.so"));
        write_file(&path, size, &mut random)?;
        if number.is_multiple_of(15) {
            std::os::unix::fs::symlink(
                format!("file-{number:05}.so"),
                path.with_extension("so.1"),
            )?;
        }
        if number.is_multiple_of(100) {
            std::fs::hard_link(&path, path.with_extension("again"))?;
        }
    }
    Ok(())
}

/// Each below one of the ten before it, so that paths get as long as real ones.
fn make_directories(tree: &Path) -> io::Result<Vec<PathBuf>> {
    let mut directories = vec![tree.to_path_buf()];
    for number in 1..DIRECTORIES {
        let above = directories[(number / 10) as usize].clone();
        directories.push(above.join(format!("directory-{number:04}")));
    }
    directories.iter().try_for_each(std::fs::create_dir)?;
    Ok(directories)
}

fn write_file(path: &Path, size: u64, random: &mut Random) -> io::Result<()> {
    let mut file = io::BufWriter::with_capacity(1 << 16, File::create(path)?);
    let mut word = random.next();
    for _ in 0..size.div_ceil(8) {
        // Every other word, on average, repeats: real files compress to about half.
        let next = random.next();
        if next & 1 == 0 {
            word = next;
        }
        file.write_all(&word.to_le_bytes())?;
    }
    let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.set_len(size)?;
    let mode = if size.is_multiple_of(7) { 0o755 } else { 0o644 };
    file.set_permissions(Permissions::from_mode(mode))
}

/// Marsaglia's xorshift: the same tree everywhere, at no cost.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// From 32 bytes to 128 KiB, each doubling as likely as the other: 15 KiB on average.
    fn size(&mut self) -> u64 {
        let least = 32 << (self.next() % 12);
        least + self.next() % least
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_files_leave_something_for_the_large_ones() {
        let mut random = Random(1);
        let sum: u64 = (0..FILES - LARGE).map(|_| random.size()).sum();
        assert!((BYTES / 2..BYTES).contains(&sum), "{sum}");
    }
}
