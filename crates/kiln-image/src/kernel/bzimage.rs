//! Taking the kernel's ELF file out of a `bzImage`.
//!
//! Firecracker loads only an uncompressed `vmlinux`, and QEMU starts one 200 ms sooner. The layout
//! is the x86 boot protocol (`Documentation/arch/x86/boot.rst` of Linux).

use std::io;

use thiserror::Error;

use crate::decompress::Compression;

/// Protocol 2.08 brought `payload_offset` and `payload_length` (Linux 2.6.26).
const MIN_PROTOCOL: u16 = 0x0208;
/// A distribution kernel is 50 to 70 MiB; with debug information it stays below this.
const MAX_VMLINUX: u64 = 512 << 20;
/// The legacy lz4 format cuts its input into blocks of this size.
const LZ4_LEGACY_BLOCK: usize = 8 << 20;
/// Appended by the kernel's build to formats that do not record the uncompressed size.
const SIZE_TRAILER: usize = 4;

/// Why no kernel could be taken out of the file.
#[derive(Debug, Error)]
pub enum BzImageError {
    /// Not a bzImage.
    #[error("it is not a bzImage: {0}")]
    NotBzImage(&'static str),
    /// Older than the header fields needed.
    #[error("its boot protocol {major}.{minor:02} is older than 2.08")]
    OldProtocol {
        /// Before the dot.
        major: u8,
        /// After the dot.
        minor: u8,
    },
    /// The header names a payload outside of the file.
    #[error("its compressed kernel lies beyond the end of the file")]
    PayloadOutside,
    /// A compression this reader does not know.
    #[error("its kernel is compressed with {0}, which is not supported")]
    UnsupportedCompression(&'static str),
    /// The payload is damaged or too large.
    #[error("its kernel cannot be decompressed")]
    Decompress(#[source] io::Error),
}

/// Whether the file has the boot header of a `bzImage`.
#[must_use]
pub fn is_bzimage(image: &[u8]) -> bool {
    image.get(0x202..0x206) == Some(b"HdrS")
}

/// Decompresses the kernel in a `bzImage`. That the result is a kernel is for the caller to check.
///
/// # Errors
/// See [`BzImageError`].
pub fn extract_vmlinux(image: &[u8]) -> Result<Vec<u8>, BzImageError> {
    let payload = payload(image)?;
    match payload {
        [0x02, 0x21, 0x4c, 0x18, blocks @ ..] => lz4_legacy(blocks),
        [b'B', b'Z', b'h', ..] => Err(BzImageError::UnsupportedCompression("bzip2")),
        [0x5d, 0, 0, ..] => Err(BzImageError::UnsupportedCompression("lzma")),
        [0x89, b'L', b'Z', b'O', ..] => Err(BzImageError::UnsupportedCompression("lzo")),
        [0x7f, b'E', b'L', b'F', ..] => Ok(payload.to_vec()),
        _ => match Compression::detect(payload) {
            Compression::None => Err(BzImageError::UnsupportedCompression(
                "something this reader does not know",
            )),
            kind => kind
                .decode_first(payload, MAX_VMLINUX)
                .map_err(BzImageError::Decompress),
        },
    }
}

/// The release in the header's version string: `6.1.0-56-cloud-amd64 (debian…) #1 SMP …`.
#[must_use]
pub(super) fn release(image: &[u8]) -> Option<String> {
    if !is_bzimage(image) {
        return None;
    }
    let pointer = usize::from(u16_at(image, 0x20e)?);
    // Zero means that there is no version string.
    let text = image.get((pointer != 0).then_some(pointer + 0x200)?..)?;
    super::release_word(text)
}

fn payload(image: &[u8]) -> Result<&[u8], BzImageError> {
    if !is_bzimage(image) {
        return Err(BzImageError::NotBzImage("it has no boot header"));
    }
    if u16_at(image, 0x1fe) != Some(0xaa55) {
        return Err(BzImageError::NotBzImage("its boot flag is missing"));
    }
    let protocol = u16_at(image, 0x206).unwrap_or_default();
    if protocol < MIN_PROTOCOL {
        let [minor, major] = protocol.to_le_bytes();
        return Err(BzImageError::OldProtocol { major, minor });
    }
    let setup_sectors = match image[0x1f1] {
        // For ancient loaders zero means four.
        0 => 4,
        count => usize::from(count),
    };
    let range = || {
        let offset = u32_at(image, 0x248)? as usize;
        let length = u32_at(image, 0x24c)? as usize;
        let start = ((setup_sectors + 1) * 512).checked_add(offset)?;
        image.get(start..start.checked_add(length)?)
    };
    range()
        .filter(|payload| !payload.is_empty())
        .ok_or(BzImageError::PayloadOutside)
}

fn lz4_legacy(mut blocks: &[u8]) -> Result<Vec<u8>, BzImageError> {
    let damaged = |text: &'static str| {
        BzImageError::Decompress(io::Error::new(io::ErrorKind::InvalidData, text))
    };
    let trailer = blocks.len().checked_sub(SIZE_TRAILER);
    let (data, stated) = blocks.split_at(trailer.ok_or_else(|| damaged("it is cut short"))?);
    let stated = u32_at(stated, 0).unwrap_or_default() as usize;
    if stated as u64 > MAX_VMLINUX {
        return Err(damaged("it states a size beyond the limit"));
    }
    blocks = data;
    let mut output = Vec::new();
    let mut block = vec![0; LZ4_LEGACY_BLOCK];
    while !blocks.is_empty() {
        let length = u32_at(blocks, 0).ok_or_else(|| damaged("a block header is cut short"))?;
        let end = 4 + length as usize;
        let compressed = blocks
            .get(4..end)
            .ok_or_else(|| damaged("a block is cut short"))?;
        let count = lz4_flex::block::decompress_into(compressed, &mut block)
            .map_err(|error| BzImageError::Decompress(io::Error::other(error)))?;
        output.extend_from_slice(&block[..count]);
        if output.len() > stated {
            return Err(damaged("it is longer than it states"));
        }
        blocks = &blocks[end..];
    }
    if output.len() != stated {
        return Err(damaged("it is shorter than it states"));
    }
    Ok(output)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    /// A bzImage with this payload and release.
    pub(crate) fn bzimage(payload: &[u8], release: &str) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[0x1f1] = 1;
        image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
        image[0x20e..0x210].copy_from_slice(&0x80_u16.to_le_bytes());
        image[0x248..0x24c].copy_from_slice(&16_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image[0x280..0x280 + release.len()].copy_from_slice(release.as_bytes());
        image.extend([0; 16]);
        image.extend_from_slice(payload);
        image
    }

    pub(crate) fn lz4_legacy_payload(data: &[u8]) -> Vec<u8> {
        let mut payload = vec![0x02, 0x21, 0x4c, 0x18];
        for block in data.chunks(LZ4_LEGACY_BLOCK) {
            let compressed = lz4_flex::block::compress(block);
            payload.extend((compressed.len() as u32).to_le_bytes());
            payload.extend(compressed);
        }
        payload.extend((data.len() as u32).to_le_bytes());
        payload
    }

    #[test]
    fn every_supported_compression_is_taken_apart() {
        let kernel: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
        let trailer = (kernel.len() as u32).to_le_bytes();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&kernel).unwrap();
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 0);
        xz.write_all(&kernel).unwrap();
        let zstd = zstd::encode_all(kernel.as_slice(), 1).unwrap();
        for payload in [
            lz4_legacy_payload(&kernel),
            gzip.finish().unwrap(),
            [xz.finish().unwrap(), trailer.to_vec()].concat(),
            [zstd, trailer.to_vec()].concat(),
        ] {
            let image = bzimage(&payload, "6.1.0-test (builder) #1 SMP");
            assert!(
                extract_vmlinux(&image).unwrap() == kernel,
                "{:x?}",
                &payload[..4]
            );
            assert_eq!(release(&image).as_deref(), Some("6.1.0-test"));
        }
    }

    #[test]
    fn says_which_compression_is_not_supported() {
        let error = extract_vmlinux(&bzimage(b"BZh91AY", "")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "its kernel is compressed with bzip2, which is not supported"
        );
    }

    #[test]
    fn headers_are_checked() {
        let good = bzimage(&lz4_legacy_payload(b"kernel"), "6.1");
        assert_eq!(extract_vmlinux(&good).unwrap(), b"kernel");
        let with = |at: usize, bytes: &[u8]| {
            let mut image = good.clone();
            image[at..at + bytes.len()].copy_from_slice(bytes);
            extract_vmlinux(&image).unwrap_err()
        };
        assert!(matches!(with(0x202, b"XXXX"), BzImageError::NotBzImage(_)));
        assert!(matches!(with(0x1fe, &[0]), BzImageError::NotBzImage(_)));
        assert!(matches!(
            with(0x206, &[7, 2]),
            BzImageError::OldProtocol { major: 2, minor: 7 }
        ));
        assert!(matches!(
            with(0x248, &[0xff; 4]),
            BzImageError::PayloadOutside
        ));
        assert!(matches!(
            with(0x24c, &[0xff; 4]),
            BzImageError::PayloadOutside
        ));
        assert!(matches!(with(0x24c, &[0; 4]), BzImageError::PayloadOutside));
        assert!(matches!(
            extract_vmlinux(&good[..0x208]),
            Err(BzImageError::PayloadOutside)
        ));
        assert!(matches!(
            extract_vmlinux(b""),
            Err(BzImageError::NotBzImage(_))
        ));
    }

    #[test]
    fn lz4_blocks_that_lie_about_their_size_are_refused() {
        for (stated, problem) in [
            (5, "longer"),
            (7, "shorter"),
            (u32::MAX, "beyond the limit"),
        ] {
            let mut payload = lz4_legacy_payload(b"kernel");
            let trailer = payload.len() - SIZE_TRAILER;
            payload[trailer..].copy_from_slice(&u32::to_le_bytes(stated));
            match extract_vmlinux(&bzimage(&payload, "")) {
                Err(BzImageError::Decompress(cause)) => {
                    assert!(cause.to_string().contains(problem), "{cause}");
                }
                other => panic!("{other:?}"),
            }
        }
        let mut short = lz4_legacy_payload(b"kernel");
        short[4] += 1;
        assert!(extract_vmlinux(&bzimage(&short, "")).is_err());
    }

    proptest! {
        #[test]
        fn a_damaged_image_never_panics(at in 0..1100_usize, bytes in any::<[u8; 4]>()) {
            let mut image = bzimage(&lz4_legacy_payload(&[9; 500]), "6.1");
            let at = at % (image.len() - 4);
            image[at..at + 4].copy_from_slice(&bytes);
            let _ = extract_vmlinux(&image);
            let _ = release(&image);
        }

        #[test]
        fn any_payload_never_panics(
            magic in 0..6_usize, rest in proptest::collection::vec(any::<u8>(), 0..200)
        ) {
            let magics: [&[u8]; 6] = [
                &[0x02, 0x21, 0x4c, 0x18], &[0x1f, 0x8b, 8], b"\xfd7zXZ\0",
                &[0x28, 0xb5, 0x2f, 0xfd], &[0x04, 0x22, 0x4d, 0x18], b"",
            ];
            let _ = extract_vmlinux(&bzimage(&[magics[magic], &rest].concat(), ""));
        }
    }
}
