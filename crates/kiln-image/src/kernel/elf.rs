//! Reading ELF headers: is this a kernel, and where is a section.
//!
//! A few fixed fields of 64-bit little-endian files, every offset checked. Used on kernels and
//! modules; knows nothing of what they mean.

use thiserror::Error;

const EHDR: usize = 64;
const PHDR: usize = 56;
const SHDR: usize = 64;
const PT_LOAD: u32 = 1;
const SHT_NOBITS: u32 = 8;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
/// A module has about 60 sections, with function sections a few thousand.
const MAX_SECTIONS: usize = 1 << 16;

/// The processor a guest kernel is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Intel and AMD, 64 bits.
    X86_64,
    /// Arm, 64 bits.
    Aarch64,
}

impl Architecture {
    /// This machine's own, which is the only one a guest can have.
    #[must_use]
    pub const fn host() -> Self {
        if cfg!(target_arch = "aarch64") {
            Self::Aarch64
        } else {
            Self::X86_64
        }
    }

    /// `x86_64` or `aarch64`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    const fn machine(self) -> u16 {
        match self {
            Self::X86_64 => 62,
            Self::Aarch64 => 183,
        }
    }
}

/// Why a file is not the ELF file that was needed.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ElfError {
    /// Something else altogether.
    #[error("it is not an ELF file but {found}")]
    NotElf {
        /// What it looks like.
        found: &'static str,
    },
    /// 32 bits or big-endian.
    #[error("it is an ELF file of the wrong class: 64-bit little-endian is needed")]
    WrongClass,
    /// For another processor.
    #[error("it is made for another processor (ELF machine {found}), this one is {wanted}")]
    WrongMachine {
        /// The machine number in the header.
        found: u16,
        /// The architecture needed.
        wanted: &'static str,
    },
    /// An object file, a core dump.
    #[error("it is an ELF file of type {found}, not an executable")]
    NotExecutable {
        /// The type number in the header.
        found: u16,
    },
    /// An offset or size leaves the file.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
}

/// Checks that `image` is a kernel that a VMM can load on `architecture`.
///
/// # Errors
/// See [`ElfError`].
pub fn check_vmlinux(image: &[u8], architecture: Architecture) -> Result<(), ElfError> {
    let header = Header::parse(image)?;
    let machine = header.u16(18)?;
    if machine != architecture.machine() {
        return Err(ElfError::WrongMachine {
            found: machine,
            wanted: architecture.name(),
        });
    }
    let kind = header.u16(16)?;
    if kind != ET_EXEC && kind != ET_DYN {
        return Err(ElfError::NotExecutable { found: kind });
    }
    let table = header.table(
        header.u64(32)?,
        header.u16(54)?,
        PHDR,
        header.u16(56)?.into(),
    )?;
    let mut loadable = 0;
    for entry in table.chunks_exact(PHDR) {
        let entry = Header(entry);
        if entry.u32(0)? != PT_LOAD {
            continue;
        }
        loadable += 1;
        let end = entry.u64(8)?.checked_add(entry.u64(32)?);
        if end.is_none_or(|end| end > image.len() as u64) {
            return Err(ElfError::Damaged(
                "a segment lies beyond the end of the file",
            ));
        }
    }
    if loadable == 0 {
        return Err(ElfError::Damaged("it has nothing to load"));
    }
    Ok(())
}

/// The content of a named section; `None` where the file has no such section.
///
/// # Errors
/// See [`ElfError`].
pub(crate) fn section<'a>(file: &'a [u8], wanted: &str) -> Result<Option<&'a [u8]>, ElfError> {
    let header = Header::parse(file)?;
    let count = usize::from(header.u16(60)?);
    if count == 0 || count > MAX_SECTIONS {
        return Err(ElfError::Damaged("it has no usable section table"));
    }
    let table = header.table(header.u64(40)?, header.u16(58)?, SHDR, count)?;
    let entry = |index: usize| table.get(index * SHDR..(index + 1) * SHDR).map(Header);
    let names = entry(usize::from(header.u16(62)?))
        .ok_or(ElfError::Damaged("its section names are missing"))?;
    let names = header.range(names.u64(24)?, names.u64(32)?)?;
    for index in 0..count {
        let Some(section) = entry(index) else { break };
        let name = names.get(section.u32(0)? as usize..).unwrap_or_default();
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        if name == wanted.as_bytes() && section.u32(4)? != SHT_NOBITS {
            return header.range(section.u64(24)?, section.u64(32)?).map(Some);
        }
    }
    Ok(None)
}

/// What a file that is not ELF looks like, for the error message.
pub(crate) fn describe(file: &[u8]) -> &'static str {
    let at = |offset: usize, magic: &[u8]| {
        file.get(offset..)
            .is_some_and(|rest| rest.starts_with(magic))
    };
    if file.is_empty() {
        "an empty file"
    } else if at(0x202, b"HdrS") {
        "a bzImage"
    } else if at(0x38, b"ARM\x64") {
        "an arm64 Image"
    } else if at(0, &[0x1f, 0x8b]) {
        "gzip data"
    } else if at(0, b"\xfd7zXZ") {
        "xz data"
    } else if at(0, &[0x28, 0xb5, 0x2f, 0xfd]) {
        "zstd data"
    } else if at(0, b"MZ") {
        "a PE (EFI) program"
    } else if at(0, b"!<arch>\n") {
        "an archive, such as a .deb package"
    } else if at(0, b"hsqs") {
        "a squashfs image"
    } else if at(0x438, &[0x53, 0xef]) {
        "an ext4 image"
    } else if at(0, b"070701") {
        "a cpio archive"
    } else if at(0, b"#!") {
        "a script"
    } else if at(257, b"ustar") {
        "a tar archive"
    } else if file
        .iter()
        .take(512)
        .all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace())
    {
        "text"
    } else {
        "unknown data"
    }
}

/// Fixed-offset reads, each of which can fail instead of panic.
struct Header<'a>(&'a [u8]);

impl<'a> Header<'a> {
    fn parse(file: &'a [u8]) -> Result<Self, ElfError> {
        if !file.starts_with(b"\x7fELF") {
            return Err(ElfError::NotElf {
                found: describe(file),
            });
        }
        if file.len() < EHDR {
            return Err(ElfError::Damaged("its header is cut short"));
        }
        if file[4] != 2 || file[5] != 1 {
            return Err(ElfError::WrongClass);
        }
        Ok(Self(file))
    }

    fn bytes<const N: usize>(&self, at: usize) -> Result<[u8; N], ElfError> {
        let bytes = self
            .0
            .get(at..at + N)
            .and_then(|bytes| bytes.try_into().ok());
        bytes.ok_or(ElfError::Damaged("a header is cut short"))
    }

    fn u16(&self, at: usize) -> Result<u16, ElfError> {
        self.bytes(at).map(u16::from_le_bytes)
    }

    fn u32(&self, at: usize) -> Result<u32, ElfError> {
        self.bytes(at).map(u32::from_le_bytes)
    }

    fn u64(&self, at: usize) -> Result<u64, ElfError> {
        self.bytes(at).map(u64::from_le_bytes)
    }

    fn range(&self, offset: u64, length: u64) -> Result<&'a [u8], ElfError> {
        let outside = ElfError::Damaged("a section lies beyond the end of the file");
        let start = usize::try_from(offset).ok();
        let end = offset
            .checked_add(length)
            .and_then(|end| usize::try_from(end).ok());
        let range = start
            .zip(end)
            .and_then(|(start, end)| self.0.get(start..end));
        range.ok_or(outside)
    }

    fn table(
        &self,
        offset: u64,
        entry: u16,
        expected: usize,
        count: usize,
    ) -> Result<&'a [u8], ElfError> {
        if usize::from(entry) != expected {
            return Err(ElfError::Damaged("a table has entries of an unknown size"));
        }
        self.range(offset, (expected * count) as u64)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The smallest file that passes as a kernel: a header and one loadable segment.
    pub(crate) fn tiny_vmlinux(payload: &[u8]) -> Vec<u8> {
        let mut file = vec![0; EHDR + PHDR];
        file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        file[16..18].copy_from_slice(&ET_EXEC.to_le_bytes());
        file[18..20].copy_from_slice(&Architecture::host().machine().to_le_bytes());
        file[32..40].copy_from_slice(&(EHDR as u64).to_le_bytes());
        file[54..56].copy_from_slice(&(PHDR as u16).to_le_bytes());
        file[56..58].copy_from_slice(&1_u16.to_le_bytes());
        file[EHDR..EHDR + 4].copy_from_slice(&PT_LOAD.to_le_bytes());
        let size = (EHDR + PHDR + payload.len()) as u64;
        file[EHDR + 32..EHDR + 40].copy_from_slice(&size.to_le_bytes());
        file.extend_from_slice(payload);
        file
    }

    #[test]
    fn accepts_a_kernel_and_this_test_program() {
        check_vmlinux(&tiny_vmlinux(b"code"), Architecture::host()).unwrap();
        let this = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        check_vmlinux(&this, Architecture::host()).unwrap();
        assert!(section(&this, ".text").unwrap().unwrap().len() > 1000);
        assert_eq!(section(&this, ".no-such-section").unwrap(), None);
    }

    #[test]
    fn says_what_a_wrong_file_is() {
        let found = |bytes: &[u8]| match check_vmlinux(bytes, Architecture::host()) {
            Err(ElfError::NotElf { found }) => found,
            other => panic!("{other:?}"),
        };
        assert_eq!(found(b""), "an empty file");
        assert_eq!(found(b"hello\n"), "text");
        assert_eq!(found(&[0x1f, 0x8b, 8, 0]), "gzip data");
        assert_eq!(
            found(b"!<arch>\ndebian-binary"),
            "an archive, such as a .deb package"
        );
        assert_eq!(found(&[0, 1, 2, 3]), "unknown data");
    }

    #[test]
    fn refuses_other_machines_classes_and_types() {
        let good = tiny_vmlinux(b"");
        let with = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            check_vmlinux(&bytes, Architecture::host()).unwrap_err()
        };
        assert_eq!(with(4, 1), ElfError::WrongClass);
        assert!(matches!(
            with(18, 8),
            ElfError::WrongMachine { found: 8, .. }
        ));
        assert_eq!(with(16, 1), ElfError::NotExecutable { found: 1 });
        assert!(matches!(with(56, 0), ElfError::Damaged(_)));
        assert!(matches!(with(EHDR + 39, 0xff), ElfError::Damaged(_)));
        let cut = check_vmlinux(&good[..good.len() - 1], Architecture::host());
        assert!(matches!(cut, Err(ElfError::Damaged(_))));
    }

    proptest! {
        #[test]
        fn a_damaged_header_never_panics(at in 0..120_usize, bytes in any::<[u8; 8]>()) {
            let mut file = tiny_vmlinux(&[0; 64]);
            file[at..at + 8].copy_from_slice(&bytes);
            let _ = check_vmlinux(&file, Architecture::host());
            let _ = section(&file, ".modinfo");
        }

        #[test]
        fn any_bytes_after_the_magic_never_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..300)
        ) {
            let mut file = b"\x7fELF\x02\x01\x01".to_vec();
            file.extend(bytes);
            let _ = check_vmlinux(&file, Architecture::host());
            let _ = section(&file, ".modinfo");
            describe(&file[7..]);
        }
    }
}
