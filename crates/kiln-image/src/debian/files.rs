//! The regular files of a package's `data.tar`.
//!
//! Only what taking single files out of a trusted package needs: names, sizes and contents. The
//! crate's full tar reader (owners, links, devices, attributes) serves the block images instead.

use std::io::{self, Read};

use thiserror::Error;

const BLOCK: usize = 512;
/// Linux's PATH_MAX.
const MAX_NAME: u64 = 4096;
/// A pax header holds a few names; dpkg writes none at all.
const MAX_PAX: u64 = 64 << 10;

/// Why a package's file list was refused.
#[derive(Debug, Error)]
pub enum FilesError {
    /// The data cannot be read or decompressed.
    #[error("cannot read the files of the package")]
    Read(#[source] io::Error),
    /// The tar stream is damaged.
    #[error("the file list of the package is damaged: {0}")]
    Malformed(&'static str),
}

/// Calls `visit` with each regular file, in order; what it leaves unread is skipped. Paths come
/// without a leading `./`, are never absolute and never climb.
///
/// # Errors
/// A damaged stream, or whatever `visit` refuses.
pub(crate) fn for_each_file<E: From<FilesError>>(
    mut tar: impl Read,
    mut visit: impl FnMut(&str, &mut dyn Read) -> Result<(), E>,
) -> Result<(), E> {
    let mut long_name: Option<String> = None;
    while let Some(header) = next_header(&mut tar)? {
        let size = number(&header[124..136])?;
        let kind = header[156];
        match kind {
            b'L' => long_name = Some(text(read_small(&mut tar, size, MAX_NAME)?)?),
            b'x' => {
                if let Some(path) = pax_path(&read_small(&mut tar, size, MAX_PAX)?) {
                    long_name = Some(path);
                }
            }
            b'0' | 0 => {
                let name = long_name.take().map_or_else(|| header_name(&header), Ok)?;
                let mut content = (&mut tar).take(size);
                if let Some(path) = safe_path(&name) {
                    visit(path, &mut content)?;
                }
                let left = content.limit();
                skip(&mut tar, left)?;
            }
            // Directories, links and devices carry no data that is wanted here.
            _ => {
                long_name = None;
                skip(&mut tar, size)?;
            }
        }
        skip(&mut tar, size.next_multiple_of(BLOCK as u64) - size)?;
    }
    Ok(())
}

fn next_header(tar: &mut impl Read) -> Result<Option<[u8; BLOCK]>, FilesError> {
    let mut header = [0; BLOCK];
    tar.read_exact(&mut header).map_err(FilesError::Read)?;
    if header.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let stored = number(&header[148..156])?;
    let sum = |range: &[u8]| range.iter().map(|byte| u64::from(*byte)).sum::<u64>();
    // The checksum is taken with its own field read as spaces.
    let computed = sum(&header[..148]) + 8 * u64::from(b' ') + sum(&header[156..]);
    if stored != computed {
        return Err(FilesError::Malformed("a header's checksum is wrong"));
    }
    Ok(Some(header))
}

fn number(field: &[u8]) -> Result<u64, FilesError> {
    let malformed = FilesError::Malformed("a header holds an invalid number");
    let digits = std::str::from_utf8(field).map_err(|_| malformed)?;
    let digits = digits.trim_matches([' ', '\0']);
    if digits.is_empty() {
        return Ok(0);
    }
    u64::from_str_radix(digits, 8)
        .ok()
        // Twelve octal digits: next_multiple_of cannot overflow.
        .filter(|value| *value < 1 << 36)
        .ok_or(FilesError::Malformed("a header holds an invalid number"))
}

fn header_name(header: &[u8; BLOCK]) -> Result<String, FilesError> {
    let field = |range: std::ops::Range<usize>| {
        let bytes = &header[range];
        let end = bytes
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(bytes.len());
        text(bytes[..end].to_vec())
    };
    let name = field(0..100)?;
    let prefix = if &header[257..263] == b"ustar\0" {
        field(345..500)?
    } else {
        String::new()
    };
    Ok(if prefix.is_empty() {
        name
    } else {
        format!("{prefix}/{name}")
    })
}

fn text(mut bytes: Vec<u8>) -> Result<String, FilesError> {
    while bytes.last() == Some(&0) {
        bytes.pop();
    }
    String::from_utf8(bytes).map_err(|_| FilesError::Malformed("a file name is not UTF-8"))
}

/// The value of `path` in `30 path=name\n` records.
fn pax_path(records: &[u8]) -> Option<String> {
    let mut rest = records;
    while !rest.is_empty() {
        let space = rest.iter().position(|byte| *byte == b' ')?;
        let length: usize = std::str::from_utf8(&rest[..space]).ok()?.parse().ok()?;
        let record = rest.get(space + 1..length)?;
        if let Some(value) = record.strip_prefix(b"path=") {
            return String::from_utf8(value.strip_suffix(b"\n")?.to_vec()).ok();
        }
        rest = rest.get(length..)?;
    }
    None
}

fn safe_path(name: &str) -> Option<&str> {
    let path = name.strip_prefix("./").unwrap_or(name);
    let plain = |part: &str| !matches!(part, "" | "." | "..");
    path.split('/').all(plain).then_some(path)
}

fn read_small(tar: &mut impl Read, size: u64, limit: u64) -> Result<Vec<u8>, FilesError> {
    if size > limit {
        return Err(FilesError::Malformed("a name is too long"));
    }
    let mut bytes = Vec::new();
    let count = tar
        .take(size)
        .read_to_end(&mut bytes)
        .map_err(FilesError::Read)?;
    if count as u64 != size {
        return Err(FilesError::Malformed("it ends in the middle of a name"));
    }
    Ok(bytes)
}

fn skip(tar: &mut impl Read, count: u64) -> Result<(), FilesError> {
    let skipped = io::copy(&mut tar.take(count), &mut io::sink()).map_err(FilesError::Read)?;
    if skipped != count {
        return Err(FilesError::Malformed("it ends in the middle of a file"));
    }
    Ok(())
}

/// Reads a tar from memory: the entry of the fuzz target.
#[doc(hidden)]
pub fn fuzz_files(bytes: &[u8]) {
    let _ = for_each_file(bytes, |_, _| Ok::<(), FilesError>(()));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn collect(bytes: &[u8]) -> Result<Vec<(String, Vec<u8>)>, FilesError> {
        let mut files = Vec::new();
        for_each_file(bytes, |path, content| {
            let mut data = Vec::new();
            content.read_to_end(&mut data).map_err(FilesError::Read)?;
            files.push((path.to_owned(), data));
            Ok::<(), FilesError>(())
        })?;
        Ok(files)
    }

    /// A tar made by GNU tar, so that the reader is not tested against our own writer.
    fn gnu_tar(format: &str) -> Vec<u8> {
        let directory = tempfile::tempdir().unwrap();
        let deep = format!("{}/{}", "d".repeat(90), "e".repeat(90));
        std::fs::create_dir_all(directory.path().join(&deep)).unwrap();
        std::fs::write(directory.path().join("short"), b"1234").unwrap();
        std::fs::write(directory.path().join(&deep).join("f".repeat(90)), [9; 600]).unwrap();
        std::os::unix::fs::symlink("short", directory.path().join("link")).unwrap();
        let output = std::process::Command::new("tar")
            .args([
                "--sort=name",
                &format!("--format={format}"),
                "-cf",
                "-",
                ".",
            ])
            .current_dir(directory.path())
            .output()
            .unwrap();
        assert!(output.status.success());
        output.stdout
    }

    #[test]
    fn reads_what_gnu_tar_writes_in_every_format() {
        for format in ["gnu", "pax"] {
            let files = collect(&gnu_tar(format)).unwrap();
            let names: Vec<usize> = files.iter().map(|(name, _)| name.len()).collect();
            assert_eq!(names, [90 + 1 + 90 + 1 + 90, "short".len()], "{format}");
            assert_eq!(files[0].1, [9; 600]);
            assert_eq!(files[1].1, b"1234");
        }
    }

    #[test]
    fn a_cut_or_damaged_stream_is_refused() {
        let bytes = gnu_tar("gnu");
        assert!(collect(&bytes[..1000]).is_err());
        let mut damaged = bytes.clone();
        damaged[3] ^= 1;
        assert!(matches!(collect(&damaged), Err(FilesError::Malformed(_))));
    }

    #[test]
    fn paths_that_climb_are_not_shown() {
        assert_eq!(safe_path("./boot/vmlinuz"), Some("boot/vmlinuz"));
        for name in ["/etc/passwd", "../x", "./a/../../x", "", "./"] {
            assert_eq!(safe_path(name), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn a_damaged_archive_never_panics(
            at in 0..4096_usize, byte in any::<u8>(), cut in 0..4096_usize
        ) {
            let mut bytes = vec![0; 4096];
            bytes[..5].copy_from_slice(b"./abc");
            bytes[124..136].copy_from_slice(b"00000001000\0");
            bytes[156] = b'0';
            bytes[at] = byte;
            let sum: u64 = bytes[..148].iter().chain(&bytes[156..512]).map(|b| u64::from(*b)).sum();
            bytes[148..156].copy_from_slice(format!("{:06o}\0 ", sum + 256).as_bytes());
            let _ = collect(&bytes[..cut]);
        }
    }
}
