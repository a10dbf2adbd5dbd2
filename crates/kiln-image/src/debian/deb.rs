//! The `.deb` container: an `ar` archive of `debian-binary`, `control.tar.*` and `data.tar.*`.
//!
//! The member headers are read here instead of by the `ar` crate: a `.deb` uses only the plain
//! form (dpkg refuses the rest), and the general reader allocates name tables of whatever size a
//! hostile header names.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::decompress::Compression;

const MAGIC: &[u8] = b"!<arch>\n";
const HEADER: usize = 60;
/// dpkg writes three members; some signers add one or two.
const MAX_MEMBERS: usize = 16;
/// Above any package of a distribution (a debug kernel unpacks to about 6 GiB).
const MAX_UNPACKED: u64 = 8 << 30;

/// Why a `.deb` was refused.
#[derive(Debug, Error)]
pub enum DebError {
    /// The file cannot be opened or read.
    #[error("cannot read package {}", path.display())]
    Read {
        /// The package.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Not an `ar` archive, or one whose members do not fit in the file.
    #[error("{} is not a Debian package: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: &'static str,
    },
    /// A member that every package must have is absent.
    #[error("package {} has no {member} member", path.display())]
    MissingMember {
        /// The package.
        path: PathBuf,
        /// `data.tar`.
        member: &'static str,
    },
    /// The data is compressed in a way this reader does not know.
    #[error("package {} holds {member}, whose compression is not supported", path.display())]
    UnsupportedCompression {
        /// The package.
        path: PathBuf,
        /// The member's name.
        member: String,
    },
}

/// A package file whose container has been checked.
#[derive(Debug)]
pub struct DebPackage {
    path: PathBuf,
    file: File,
    data: Member,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Member {
    name: String,
    offset: u64,
    length: u64,
}

impl DebPackage {
    /// Opens a package and checks its container.
    ///
    /// # Errors
    /// See [`DebError`].
    pub fn open(path: &Path) -> Result<Self, DebError> {
        let read = |source| DebError::Read {
            path: path.to_owned(),
            source,
        };
        let mut file = File::open(path).map_err(read)?;
        let members = members(&mut file).map_err(|error| error.at(path))?;
        if members
            .first()
            .is_none_or(|member| member.name != "debian-binary")
        {
            return Err(DebError::MissingMember {
                path: path.to_owned(),
                member: "debian-binary",
            });
        }
        let data = members
            .into_iter()
            .find(|member| member.name.starts_with("data.tar"));
        let data = data.ok_or_else(|| DebError::MissingMember {
            path: path.to_owned(),
            member: "data.tar",
        })?;
        Ok(Self {
            path: path.to_owned(),
            file,
            data,
        })
    }

    /// The decompressed `data.tar`: the package's files, in the order the package lists them.
    ///
    /// # Errors
    /// See [`DebError`]; damaged data is reported by the reader.
    pub fn data_tar(self) -> Result<Box<dyn Read + Send>, DebError> {
        let Self {
            path,
            mut file,
            data,
        } = self;
        let compression = match data.name.as_str() {
            "data.tar" => Compression::None,
            "data.tar.gz" => Compression::Gzip,
            "data.tar.xz" => Compression::Xz,
            "data.tar.zst" => Compression::Zstd,
            _ => {
                return Err(DebError::UnsupportedCompression {
                    path,
                    member: data.name,
                });
            }
        };
        let read = |source| DebError::Read {
            path: path.clone(),
            source,
        };
        file.seek(SeekFrom::Start(data.offset)).map_err(read)?;
        compression
            .first(file.take(data.length), MAX_UNPACKED)
            .map_err(read)
    }
}

/// What is wrong with a container, before the path is known.
#[derive(Debug)]
enum Broken {
    Io(io::Error),
    Format(&'static str),
}

impl Broken {
    fn at(self, path: &Path) -> DebError {
        let path = path.to_owned();
        match self {
            Self::Io(source) => DebError::Read { path, source },
            Self::Format(problem) => DebError::Malformed { path, problem },
        }
    }
}

fn members(archive: &mut (impl Read + Seek)) -> Result<Vec<Member>, Broken> {
    let length = archive.seek(SeekFrom::End(0)).map_err(Broken::Io)?;
    archive.seek(SeekFrom::Start(0)).map_err(Broken::Io)?;
    let mut magic = [0; MAGIC.len()];
    if length < MAGIC.len() as u64 {
        return Err(Broken::Format("it is too short"));
    }
    archive.read_exact(&mut magic).map_err(Broken::Io)?;
    if magic != MAGIC {
        return Err(Broken::Format("it does not begin with an ar header"));
    }
    let mut members = Vec::new();
    let mut position = MAGIC.len() as u64;
    while position < length {
        if members.len() == MAX_MEMBERS {
            return Err(Broken::Format("it has too many members"));
        }
        if length - position < HEADER as u64 {
            return Err(Broken::Format("a member header is cut short"));
        }
        let mut header = [0; HEADER];
        archive
            .seek(SeekFrom::Start(position))
            .map_err(Broken::Io)?;
        archive.read_exact(&mut header).map_err(Broken::Io)?;
        let member = member(&header, position + HEADER as u64).map_err(Broken::Format)?;
        if member.length > length - member.offset {
            return Err(Broken::Format("a member is cut short"));
        }
        // Members start at even offsets.
        position = (member.offset + member.length).next_multiple_of(2);
        members.push(member);
    }
    Ok(members)
}

fn member(header: &[u8; HEADER], offset: u64) -> Result<Member, &'static str> {
    if header[58..] != *b"`\n" {
        return Err("a member header does not end as it should");
    }
    let text = |range: std::ops::Range<usize>| {
        std::str::from_utf8(&header[range])
            .map(str::trim_end)
            .map_err(|_| "a member header is not text")
    };
    let name = text(0..16)?.trim_end_matches('/').to_owned();
    let size = text(48..58)?;
    if size.is_empty() || !size.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("a member size is not a number");
    }
    let length = size.parse().map_err(|_| "a member size is not a number")?;
    Ok(Member {
        name,
        offset,
        length,
    })
}

/// Parses a container from memory: the entry of the fuzz target.
#[doc(hidden)]
pub fn fuzz_members(bytes: &[u8]) {
    let _ = members(&mut io::Cursor::new(bytes));
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    /// An `ar` archive of these members.
    pub(crate) fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        for (name, data) in members {
            let size = data.len();
            let header = format!(
                "{name:<16}{:<12}{:<6}{:<6}{:<8}{size:<10}`",
                0, 0, 0, 100_644
            );
            writeln!(bytes, "{header}").unwrap();
            bytes.extend_from_slice(data);
            if size % 2 == 1 {
                bytes.push(b'\n');
            }
        }
        bytes
    }

    fn open(bytes: &[u8]) -> Result<DebPackage, DebError> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        DebPackage::open(file.path())
    }

    #[test]
    fn every_compression_of_the_data_is_read() {
        let data = b"the tar bytes".repeat(1000);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&data).unwrap();
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(&data).unwrap();
        for (name, packed) in [
            ("data.tar", data.clone()),
            ("data.tar.gz", gzip.finish().unwrap()),
            ("data.tar.xz", xz.finish().unwrap()),
            (
                "data.tar.zst",
                zstd::encode_all(data.as_slice(), 1).unwrap(),
            ),
        ] {
            let bytes = archive(&[
                ("debian-binary", b"2.0\n"),
                ("control.tar", b"odd"),
                (name, &packed),
            ]);
            let mut unpacked = Vec::new();
            open(&bytes)
                .unwrap()
                .data_tar()
                .unwrap()
                .read_to_end(&mut unpacked)
                .unwrap();
            assert_eq!(unpacked, data, "{name}");
        }
    }

    #[test]
    fn broken_containers_are_refused_by_name() {
        let good = archive(&[("debian-binary", b"2.0\n"), ("data.tar", b"1234567890")]);
        assert!(matches!(open(b""), Err(DebError::Malformed { .. })));
        assert!(matches!(
            open(b"not an archive at all"),
            Err(DebError::Malformed { .. })
        ));
        assert!(matches!(
            open(&good[..good.len() - 3]),
            Err(DebError::Malformed { .. })
        ));
        assert!(matches!(
            open(&good[..100]),
            Err(DebError::Malformed { .. })
        ));
        let no_data = archive(&[("debian-binary", b"2.0\n"), ("control.tar", b"")]);
        assert!(matches!(
            open(&no_data),
            Err(DebError::MissingMember {
                member: "data.tar",
                ..
            })
        ));
        let other = archive(&[("debian-binary", b"2.0\n"), ("data.tar.lzma", b"")]);
        let refused = open(&other).unwrap().data_tar().map(drop);
        assert!(matches!(
            refused,
            Err(DebError::UnsupportedCompression { .. })
        ));
    }

    #[test]
    fn a_size_beyond_the_file_allocates_nothing() {
        let mut bytes = archive(&[("debian-binary", b"2.0\n"), ("data.tar", b"x")]);
        let header = MAGIC.len() + HEADER + 4;
        bytes[header + 48..header + 58].copy_from_slice(b"9999999999");
        assert!(matches!(open(&bytes), Err(DebError::Malformed { .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            fuzz_members(&bytes);
        }

        #[test]
        fn a_flipped_byte_never_panics(at in 0..200_usize, byte in any::<u8>()) {
            let mut bytes = archive(&[("debian-binary", b"2.0\n"), ("data.tar", &[5; 100])]);
            let at = at % bytes.len();
            bytes[at] = byte;
            fuzz_members(&bytes);
        }
    }
}
