//! Finds out how a stream is compressed and undoes it, within memory bounds. The length of what
//! comes out is the caller's to bound.

use std::io::{self, BufReader, Cursor, Read};

use liblzma::stream::{CONCATENATED, Stream};

/// How an archive is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
    /// The .xz format.
    Xz,
    /// The LZ4 frame format.
    Lz4,
    /// Known, and not supported.
    Bzip2,
}

/// Bytes of the longest magic.
const MAGIC: usize = 6;

impl Compression {
    /// Judges by the first bytes.
    #[must_use]
    pub fn detect(head: &[u8]) -> Compression {
        match head {
            [0x1f, 0x8b, ..] => Compression::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
            // A skippable frame, as pzstd and seekable zstd put first.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Compression::Xz,
            [0x04, 0x22, 0x4d, 0x18, ..] => Compression::Lz4,
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Compression::Bzip2,
            _ => Compression::None,
        }
    }
}

/// The plain bytes of `input`.
///
/// # Errors
/// When the first bytes cannot be read, the compression is not supported, or a decoder cannot be set
/// up. Damage shows later, as read errors.
pub(crate) fn decompress<'a>(
    mut input: impl Read + Send + 'a,
    decoder_bytes: u64,
) -> io::Result<Box<dyn Read + Send + 'a>> {
    let mut head = Vec::with_capacity(MAGIC);
    input.by_ref().take(MAGIC as u64).read_to_end(&mut head)?;
    let compression = Compression::detect(&head);
    let input = BufReader::with_capacity(256 << 10, Cursor::new(head).chain(input));
    Ok(match compression {
        Compression::None => Box::new(input),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
            decoder.window_log_max(decoder_bytes.max(1024).ilog2())?;
            Box::new(decoder)
        }
        Compression::Xz => {
            let stream = Stream::new_stream_decoder(decoder_bytes, CONCATENATED)?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(input, stream))
        }
        Compression::Lz4 => Box::new(lz4_flex::frame::FrameDecoder::new(input)),
        Compression::Bzip2 => {
            let message = "bzip2 is not supported; use gzip, zstd or xz";
            return Err(io::Error::new(io::ErrorKind::Unsupported, message));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const LIMIT: u64 = 128 << 20;

    fn samples() -> Vec<(Compression, Vec<u8>)> {
        let text = b"hello, hello, hello".repeat(1000);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&text).unwrap();
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(&text).unwrap();
        let mut lz4 = lz4_flex::frame::FrameEncoder::new(Vec::new());
        lz4.write_all(&text).unwrap();
        vec![
            (Compression::Gzip, gzip.finish().unwrap()),
            (Compression::Zstd, zstd::encode_all(&text[..], 1).unwrap()),
            (Compression::Xz, xz.finish().unwrap()),
            (Compression::Lz4, lz4.finish().unwrap()),
            (Compression::None, text),
        ]
    }

    #[test]
    fn every_format_gives_the_same_bytes() {
        for (compression, packed) in samples() {
            assert_eq!(Compression::detect(&packed), compression);
            let mut plain = Vec::new();
            decompress(&packed[..], LIMIT)
                .unwrap()
                .read_to_end(&mut plain)
                .unwrap();
            assert_eq!(
                plain,
                b"hello, hello, hello".repeat(1000),
                "{compression:?}"
            );
        }
    }

    #[test]
    fn cut_off_streams_are_errors() {
        for (compression, packed) in samples() {
            if compression == Compression::None {
                continue;
            }
            let cut = &packed[..packed.len() - 5];
            let mut plain = Vec::new();
            let result = decompress(cut, LIMIT).unwrap().read_to_end(&mut plain);
            assert!(result.is_err(), "{compression:?}");
        }
    }

    #[test]
    fn windows_beyond_the_limit_are_refused() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(25).unwrap();
        encoder.write_all(&[0; 1 << 20]).unwrap();
        let packed = encoder.finish().unwrap();
        let mut plain = Vec::new();
        assert!(
            decompress(&packed[..], 1 << 20)
                .unwrap()
                .read_to_end(&mut plain)
                .is_err()
        );
    }
}
