//! Two programs out of a release's archive, each with the digest that the archive lists.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use super::tag::digest_of;
use super::{FIRECRACKER, JAILER, ReleaseError, ReleaseTag, failed};
use crate::hashing::Hashing;
use crate::inode::DataRange;
use crate::limits::{Budget, Limits};
use crate::publish::digest_reader;
use crate::spool::spool;
use crate::tar::{EntryKind, TarReader};

const MAX_PLAIN_BYTES: u64 = 1 << 30;
const MAX_PROGRAM_BYTES: u64 = 64 << 20;
const SUMS: &str = "SHA256SUMS";

/// Digests of what was unpacked.
pub(super) struct Programs {
    pub(super) firecracker_sha256: String,
    pub(super) jailer_sha256: String,
}

/// Where the data of a member lies in the plain archive.
type Member = (u64, Vec<DataRange>);

/// Unpacks `firecracker` and `jailer` into `into`.
pub(super) fn unpack(
    tag: &ReleaseTag,
    architecture: &str,
    archive: &Path,
    into: &Path,
) -> Result<Programs, ReleaseError> {
    let refused = |problem: String| ReleaseError::Archive {
        tag: tag.clone(),
        problem,
    };
    let budget = Budget::new(&Limits {
        layer_bytes: MAX_PLAIN_BYTES,
        total_bytes: MAX_PLAIN_BYTES,
        entries: 10_000,
        metadata_bytes: 8 << 20,
        file_bytes: MAX_PLAIN_BYTES,
        ..Limits::default()
    });
    let packed = File::open(archive).map_err(failed("open", archive))?;
    let plain = spool(packed, into, Hashing::Blake3, &budget, &|_| {})
        .map_err(|error| refused(error.to_string()))?;
    let members = members(&plain.file, &budget).map_err(&refused)?;
    let suffix = format!("{tag}-{architecture}");
    let root = format!("release-{suffix}");
    let sums = match members.get(&format!("{root}/{SUMS}")) {
        Some(member) => read(&plain.file, member).map_err(failed("read", archive))?,
        None => return Err(refused(format!("it has no {SUMS}"))),
    };
    let sums = String::from_utf8_lossy(&sums).into_owned();
    let program = |name: &str| {
        let file_name = format!("{name}-{suffix}");
        let member = members
            .get(&format!("{root}/{file_name}"))
            .ok_or_else(|| refused(format!("it has no {file_name}")))?;
        let expected = digest_of(&sums, &file_name)
            .ok_or_else(|| refused(format!("{SUMS} does not name {file_name}")))?;
        let path = into.join(name);
        write(&plain.file, member, &path).map_err(failed("write", &path))?;
        let written = File::open(&path).map_err(failed("open", &path))?;
        let (found, _) = digest_reader(written).map_err(failed("read", &path))?;
        if found == expected {
            Ok(found)
        } else {
            Err(refused(format!(
                "{file_name} has another SHA-256 than {SUMS} says"
            )))
        }
    };
    Ok(Programs {
        firecracker_sha256: program(FIRECRACKER)?,
        jailer_sha256: program(JAILER)?,
    })
}

/// Plain files of the archive by name: of links, devices and odd paths nothing is taken.
fn members(plain: &File, budget: &Budget) -> Result<HashMap<String, Member>, String> {
    let mut reader = TarReader::new(plain, budget).map_err(|error| error.to_string())?;
    let mut members = HashMap::new();
    while let Some(entry) = reader.next().map_err(|error| error.to_string())? {
        let EntryKind::File { size, ranges } = entry.kind else {
            continue;
        };
        let Ok(name) = String::from_utf8(entry.path) else {
            continue;
        };
        let name = name.strip_prefix("./").unwrap_or(&name).to_owned();
        // Twice the same name: which one would have been checked?
        if members.insert(name.clone(), (size, ranges)).is_some() {
            return Err(format!("it has {name} twice"));
        }
    }
    Ok(members)
}

fn read(plain: &File, (size, ranges): &Member) -> io::Result<Vec<u8>> {
    if *size > MAX_PROGRAM_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "larger than any program",
        ));
    }
    let length = usize::try_from(*size).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    for range in ranges {
        let start = usize::try_from(range.offset).map_err(io::Error::other)?;
        let end = usize::try_from(range.offset + range.length).map_err(io::Error::other)?;
        let place = bytes
            .get_mut(start..end)
            .ok_or(io::ErrorKind::InvalidData)?;
        plain.read_exact_at(place, range.position)?;
    }
    Ok(bytes)
}

fn write(plain: &File, member: &Member, path: &Path) -> io::Result<()> {
    let bytes = read(plain, member)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o755)
        .open(path)?;
    file.write_all(&bytes)?;
    file.sync_all()
}
