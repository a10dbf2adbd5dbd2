//! Finds out how a stream is compressed and undoes it, within memory bounds.
//!
//! Two ways in: archives ([`decompress`]), which may be several compressed streams end to end and
//! whose length is the caller's to bound; and what stands inside other files ([`Compression::first`]),
//! where the first stream counts, other bytes may follow, and the output is bounded here.

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
/// Memory for one embedded stream: any `xz -9` needs 65 MiB, `zstd --ultra -22` 128 MiB; a hostile
/// header can ask for much more.
const EMBEDDED_DECODER_BYTES: u64 = 128 << 20;

/// How much of the input belongs to the decoder.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Streams {
    /// All of it: streams end to end, nothing behind them.
    All,
    /// One stream; whatever follows is left alone.
    First,
}

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

    /// The first stream of `input`, which fails after `limit` bytes of output.
    pub(crate) fn first<'a>(
        self,
        input: impl Read + Send + 'a,
        limit: u64,
    ) -> io::Result<Box<dyn Read + Send + 'a>> {
        let input = BufReader::with_capacity(64 << 10, input);
        let plain = self.decoder(input, EMBEDDED_DECODER_BYTES, Streams::First)?;
        Ok(Box::new(Bounded::new(plain, limit)))
    }

    /// Decodes the first stream of a buffer, failing when the output passes `limit` bytes.
    pub(crate) fn decode_first(self, input: &[u8], limit: u64) -> io::Result<Vec<u8>> {
        let mut output = Vec::new();
        self.first(input, limit)?.read_to_end(&mut output)?;
        Ok(output)
    }

    fn decoder<'a>(
        self,
        input: impl io::BufRead + Send + 'a,
        memory: u64,
        streams: Streams,
    ) -> io::Result<Box<dyn Read + Send + 'a>> {
        use flate2::bufread::{GzDecoder, MultiGzDecoder};
        Ok(match (self, streams) {
            (Compression::None, _) => Box::new(input),
            (Compression::Gzip, Streams::All) => Box::new(MultiGzDecoder::new(input)),
            (Compression::Gzip, Streams::First) => Box::new(GzDecoder::new(input)),
            (Compression::Zstd, streams) => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
                if streams == Streams::First {
                    decoder = decoder.single_frame();
                }
                decoder.window_log_max(memory.max(1024).ilog2())?;
                Box::new(decoder)
            }
            (Compression::Xz, streams) => {
                let concatenated = if streams == Streams::All {
                    CONCATENATED
                } else {
                    0
                };
                let stream = Stream::new_stream_decoder(memory, concatenated)?;
                Box::new(liblzma::bufread::XzDecoder::new_stream(input, stream))
            }
            (Compression::Lz4, _) => Box::new(lz4_flex::frame::FrameDecoder::new(input)),
            (Compression::Bzip2, _) => {
                let message = "bzip2 is not supported; use gzip, zstd or xz";
                return Err(io::Error::new(io::ErrorKind::Unsupported, message));
            }
        })
    }
}

/// The plain bytes of `input`, whatever it is compressed with.
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
    compression.decoder(input, decoder_bytes, Streams::All)
}

/// A reader that fails, rather than ends, once `limit` bytes have passed.
struct Bounded<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Bounded<R> {
    fn new(inner: R, limit: u64) -> Self {
        Self { inner, left: limit }
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(count as u64).ok_or_else(|| {
            let message = "the decompressed data passes its size limit";
            io::Error::new(io::ErrorKind::FileTooLarge, message)
        })?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const LIMIT: u64 = 128 << 20;

    fn samples(text: &[u8]) -> Vec<(Compression, Vec<u8>)> {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(text).unwrap();
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(text).unwrap();
        let mut lz4 = lz4_flex::frame::FrameEncoder::new(Vec::new());
        lz4.write_all(text).unwrap();
        vec![
            (Compression::Gzip, gzip.finish().unwrap()),
            (Compression::Zstd, zstd::encode_all(text, 1).unwrap()),
            (Compression::Xz, xz.finish().unwrap()),
            (Compression::Lz4, lz4.finish().unwrap()),
            (Compression::None, text.to_vec()),
        ]
    }

    fn whole(packed: &[u8]) -> io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        decompress(packed, LIMIT)?.read_to_end(&mut plain)?;
        Ok(plain)
    }

    #[test]
    fn every_format_gives_the_same_bytes() {
        let text = b"hello, hello, hello".repeat(1000);
        for (compression, packed) in samples(&text) {
            assert_eq!(Compression::detect(&packed), compression);
            assert_eq!(whole(&packed).unwrap(), text, "{compression:?}");
            let first = compression.decode_first(&packed, text.len() as u64);
            assert_eq!(first.unwrap(), text, "{compression:?}");
        }
    }

    #[test]
    fn an_archive_is_all_streams_an_embedded_file_the_first() {
        for (compression, packed) in samples(b"hello") {
            if matches!(compression, Compression::None | Compression::Lz4) {
                continue;
            }
            let twice = [&packed[..], &packed[..]].concat();
            assert_eq!(whole(&twice).unwrap(), b"hellohello", "{compression:?}");
            let followed = [&packed[..], b"\x12\x34\x56\x78"].concat();
            assert_eq!(compression.decode_first(&followed, 5).unwrap(), b"hello");
        }
    }

    #[test]
    fn cut_off_streams_are_errors() {
        let text = b"hello, hello, hello".repeat(1000);
        for (compression, packed) in samples(&text) {
            if compression == Compression::None {
                continue;
            }
            let cut = &packed[..packed.len() - 5];
            assert!(whole(cut).is_err(), "{compression:?}");
            assert!(
                compression.decode_first(cut, LIMIT).is_err(),
                "{compression:?}"
            );
        }
    }

    #[test]
    fn output_past_the_limit_is_an_error_not_a_short_read() {
        for (compression, packed) in samples(&vec![0_u8; 1 << 20]) {
            let error = compression
                .decode_first(&packed, (1 << 20) - 1)
                .unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::FileTooLarge, "{compression:?}");
        }
    }

    #[test]
    fn windows_beyond_the_limit_are_refused() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(25).unwrap();
        encoder.write_all(&[0; 1 << 20]).unwrap();
        let packed = encoder.finish().unwrap();
        let mut plain = Vec::new();
        let result = decompress(&packed[..], 1 << 20)
            .unwrap()
            .read_to_end(&mut plain);
        assert!(result.is_err());
    }
}
