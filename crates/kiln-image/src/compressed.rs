//! Bounded decompression of gzip, xz, zstd and lz4 streams.
//!
//! Owns the memory and output limits that every decoder of this crate runs under. It knows nothing
//! of what the streams contain.

use std::io::{self, Read};

/// More than any `xz -9` needs (65 MiB), far below what a hostile header can ask for.
const XZ_MEMORY_LIMIT: u64 = 256 << 20;
/// The largest zstd window accepted: `zstd --ultra -22` uses 2^27.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// How a stream is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Xz,
    Zstd,
    Lz4Frame,
}

impl Compression {
    /// Recognises a stream by its first bytes.
    pub(crate) fn detect(start: &[u8]) -> Self {
        if start.starts_with(&[0x1f, 0x8b]) {
            Self::Gzip
        } else if start.starts_with(b"\xfd7zXZ\0") {
            Self::Xz
        } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            Self::Zstd
        } else if start.starts_with(&[0x04, 0x22, 0x4d, 0x18]) {
            Self::Lz4Frame
        } else {
            Self::None
        }
    }

    /// Wraps `input` in the decoder, which fails after `limit` bytes of output.
    pub(crate) fn decoder<'a, R>(
        self,
        input: R,
        limit: u64,
    ) -> io::Result<Box<dyn Read + Send + 'a>>
    where
        R: Read + Send + 'a,
    {
        let decoded: Box<dyn Read + Send + 'a> = match self {
            Self::None => Box::new(input),
            Self::Gzip => Box::new(flate2::read::GzDecoder::new(input)),
            Self::Xz => {
                let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY_LIMIT, 0)
                    .map_err(io::Error::other)?;
                Box::new(liblzma::read::XzDecoder::new_stream(input, stream))
            }
            Self::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::new(input)?.single_frame();
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                Box::new(decoder)
            }
            Self::Lz4Frame => Box::new(lz4_flex::frame::FrameDecoder::new(input)),
        };
        Ok(Box::new(Bounded::new(decoded, limit)))
    }

    /// Decodes a whole buffer, failing when the output passes `limit` bytes.
    pub(crate) fn decode_all(self, input: &[u8], limit: u64) -> io::Result<Vec<u8>> {
        let mut output = Vec::new();
        self.decoder(input, limit)?.read_to_end(&mut output)?;
        Ok(output)
    }
}

/// A reader that fails, rather than ends, once `limit` bytes have passed.
pub(crate) struct Bounded<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Bounded<R> {
    pub(crate) fn new(inner: R, limit: u64) -> Self {
        Self { inner, left: limit }
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(count as u64).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::FileTooLarge,
                "the decompressed data passes its size limit",
            )
        })?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn samples(data: &[u8]) -> Vec<(Compression, Vec<u8>)> {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(data).unwrap();
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(data).unwrap();
        let mut lz4 = lz4_flex::frame::FrameEncoder::new(Vec::new());
        lz4.write_all(data).unwrap();
        vec![
            (Compression::Gzip, gzip.finish().unwrap()),
            (Compression::Xz, xz.finish().unwrap()),
            (Compression::Zstd, zstd::encode_all(data, 1).unwrap()),
            (Compression::Lz4Frame, lz4.finish().unwrap()),
            (Compression::None, data.to_vec()),
        ]
    }

    #[test]
    fn every_kind_is_recognised_and_decoded() {
        let data: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        for (kind, bytes) in samples(&data) {
            assert_eq!(Compression::detect(&bytes), kind);
            assert_eq!(kind.decode_all(&bytes, data.len() as u64).unwrap(), data);
        }
    }

    #[test]
    fn output_past_the_limit_is_an_error_not_a_short_read() {
        let bomb = vec![0_u8; 1 << 20];
        for (kind, bytes) in samples(&bomb) {
            let error = kind.decode_all(&bytes, (1 << 20) - 1).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::FileTooLarge, "{kind:?}");
        }
    }

    #[test]
    fn a_cut_stream_is_an_error() {
        let data = vec![7_u8; 50_000];
        for (kind, bytes) in samples(&data) {
            if kind == Compression::None {
                continue;
            }
            let cut = &bytes[..bytes.len() - bytes.len() / 3];
            assert!(kind.decode_all(cut, 1 << 20).is_err(), "{kind:?}");
        }
    }
}
