//! Copying files the cheapest way the filesystem knows: shared blocks, else data without holes
//! inside the kernel, else read and write.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, copy_file_range, ioctl_ficlone, seek};
use rustix::io::Errno;

/// How a file was copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloneMethod {
    /// Both files share their blocks until one is written to (XFS, btrfs).
    Reflink,
    /// The kernel copied the data; holes stayed holes.
    KernelCopy,
    /// Read and written; holes stayed holes.
    UserCopy,
}

/// Makes the empty file `to` a copy of `from`. Never inflates holes.
///
/// # Errors
/// Whatever reading or writing reports, a full disk most often; `to` is then incomplete.
pub fn clone_file(from: &File, to: &File) -> io::Result<CloneMethod> {
    // Whatever the refusal, the next rung works or reports the true cause.
    if ioctl_ficlone(to, from).is_ok() {
        return Ok(CloneMethod::Reflink);
    }
    let length = from.metadata()?.len();
    to.set_len(length)?;
    let mut method = CloneMethod::KernelCopy;
    for_each_data(from, length, |start, end| {
        if method == CloneMethod::KernelCopy {
            match kernel_copy(from, to, start, end) {
                Ok(()) => return Ok(()),
                Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                    method = CloneMethod::UserCopy;
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        user_copy(from, to, start, end)
    })?;
    Ok(method)
}

/// Calls `visit` with start and end of each stretch of data. A filesystem that knows no holes has
/// one stretch.
pub(crate) fn for_each_data(
    file: &File,
    length: u64,
    mut visit: impl FnMut(u64, u64) -> io::Result<()>,
) -> io::Result<()> {
    let mut at = 0;
    while at < length {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(()),
            Err(Errno::INVAL) => at,
            Err(errno) => return Err(errno.into()),
        };
        let end = match seek(file, SeekFrom::Hole(start)) {
            Ok(end) => end.min(length),
            Err(Errno::INVAL) => length,
            // Cut shorter meanwhile.
            Err(Errno::NXIO) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        if start >= length {
            return Ok(());
        }
        visit(start, end)?;
        at = end;
    }
    Ok(())
}

fn kernel_copy(from: &File, to: &File, start: u64, end: u64) -> Result<(), Errno> {
    let (mut read, mut write) = (start, start);
    while read < end {
        let length = usize::try_from(end - read).unwrap_or(1 << 30).min(1 << 30);
        if copy_file_range(from, Some(&mut read), to, Some(&mut write), length)? == 0 {
            return Ok(());
        }
    }
    Ok(())
}

fn user_copy(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    let mut at = start;
    while at < end {
        let wanted = usize::try_from(end - at).map_or(buffer.len(), |left| left.min(buffer.len()));
        let read = from.read_at(&mut buffer[..wanted], at)?;
        if read == 0 {
            break;
        }
        to.write_all_at(&buffer[..read], at)?;
        at += read as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn holes_stay_holes() {
        let from = tempfile::tempfile().unwrap();
        from.set_len(64 << 20).unwrap();
        from.write_all_at(b"start", 0).unwrap();
        from.write_all_at(b"middle", 32 << 20).unwrap();
        let to = tempfile::tempfile().unwrap();
        clone_file(&from, &to).unwrap();
        assert_eq!(to.metadata().unwrap().len(), 64 << 20);
        assert!(to.metadata().unwrap().blocks() * 512 < 1 << 20);
        let mut bytes = [0; 6];
        to.read_exact_at(&mut bytes, 32 << 20).unwrap();
        assert_eq!(&bytes, b"middle");
    }
}
