//! The fixed 512-byte header: fields, numbers and checksum of the v7, ustar, GNU and star dialects.

use super::error::TarFault;

pub(super) const BLOCK: usize = 512;

/// Entry types, as the header's type byte names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    Regular,
    HardLink,
    Symlink,
    Character,
    Block,
    Directory,
    Fifo,
    OldSparse,
    PaxLocal,
    PaxGlobal,
    GnuLongName,
    GnuLongLink,
    /// GNU's volume label: says something of the archive, not of a file.
    VolumeLabel,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Dialect {
    V7,
    Ustar,
    Star,
    Gnu,
}

pub(super) struct Header(pub(super) [u8; BLOCK]);

impl Header {
    pub(super) fn is_zero(&self) -> bool {
        self.0.iter().all(|byte| *byte == 0)
    }

    /// The sum counts its own field as spaces; some old writers summed signed bytes.
    pub(super) fn verify_checksum(&self) -> Result<(), TarFault> {
        let stated = number(&self.0[148..156], "chksum")?;
        let (mut unsigned, mut signed) = (0i64, 0i64);
        for (at, byte) in self.0.iter().enumerate() {
            let byte = if (148..156).contains(&at) {
                b' '
            } else {
                *byte
            };
            unsigned += i64::from(byte);
            signed += i64::from(byte as i8);
        }
        if stated == unsigned || stated == signed {
            Ok(())
        } else {
            Err(TarFault::Checksum)
        }
    }

    pub(super) fn kind(&self) -> Result<Type, TarFault> {
        Ok(match self.0[156] {
            // v7 has no type for directories: a trailing slash says so.
            0 if text(&self.0[..100]).last() == Some(&b'/') => Type::Directory,
            0 | b'0' | b'7' => Type::Regular,
            b'1' => Type::HardLink,
            b'2' => Type::Symlink,
            b'3' => Type::Character,
            b'4' => Type::Block,
            b'5' => Type::Directory,
            b'6' => Type::Fifo,
            b'S' => Type::OldSparse,
            b'x' | b'X' => Type::PaxLocal,
            b'g' => Type::PaxGlobal,
            b'L' => Type::GnuLongName,
            b'K' => Type::GnuLongLink,
            b'V' => Type::VolumeLabel,
            other => return Err(TarFault::Type(other)),
        })
    }

    fn dialect(&self) -> Dialect {
        match &self.0[257..263] {
            b"ustar\0" if &self.0[508..512] == b"tar\0" => Dialect::Star,
            b"ustar\0" => Dialect::Ustar,
            b"ustar " => Dialect::Gnu,
            _ => Dialect::V7,
        }
    }

    /// Name with its prefix. GNU and star keep times where ustar keeps the prefix.
    pub(super) fn path(&self) -> Vec<u8> {
        let name = text(&self.0[..100]);
        let prefix = match self.dialect() {
            Dialect::Ustar => text(&self.0[345..500]),
            Dialect::Star => text(&self.0[345..476]),
            Dialect::V7 | Dialect::Gnu => b"",
        };
        if prefix.is_empty() {
            name.to_vec()
        } else {
            [prefix, b"/", name].concat()
        }
    }

    pub(super) fn link(&self) -> Vec<u8> {
        text(&self.0[157..257]).to_vec()
    }

    pub(super) fn mode(&self) -> Result<u16, TarFault> {
        Ok((number(&self.0[100..108], "mode")? & 0o7777) as u16)
    }

    pub(super) fn uid(&self) -> Result<u32, TarFault> {
        unsigned(&self.0[108..116], "uid")
    }

    pub(super) fn gid(&self) -> Result<u32, TarFault> {
        unsigned(&self.0[116..124], "gid")
    }

    pub(super) fn size(&self) -> Result<u64, TarFault> {
        unsigned(&self.0[124..136], "size")
    }

    pub(super) fn modified(&self) -> Result<i64, TarFault> {
        number(&self.0[136..148], "mtime")
    }

    /// Only ustar and its descendants have device fields.
    pub(super) fn device(&self) -> Result<(u32, u32), TarFault> {
        if self.dialect() == Dialect::V7 {
            return Ok((0, 0));
        }
        Ok((
            unsigned(&self.0[329..337], "devmajor")?,
            unsigned(&self.0[337..345], "devminor")?,
        ))
    }
}

/// A text field ends at its first NUL or at its full length.
fn text(field: &[u8]) -> &[u8] {
    let end = field
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(field.len());
    &field[..end]
}

pub(super) fn unsigned<T: TryFrom<i64>>(field: &[u8], what: &'static str) -> Result<T, TarFault> {
    T::try_from(number(field, what)?).map_err(|_| TarFault::Number(what))
}

/// Octal text, or GNU's base-256 when the top bit is set. Empty fields mean zero.
pub(super) fn number(field: &[u8], what: &'static str) -> Result<i64, TarFault> {
    let value = match field.first() {
        Some(first) if first & 0x80 != 0 => base256(field),
        _ => octal(field),
    };
    value.ok_or(TarFault::Number(what))
}

/// Big-endian two's complement; the top bit is the mark, the next one the sign.
fn base256(field: &[u8]) -> Option<i64> {
    let first = i128::from(field[0] & 0x7f);
    let mut value = if first & 0x40 != 0 {
        first - 0x80
    } else {
        first
    };
    for byte in &field[1..] {
        value = value.checked_mul(256)? + i128::from(*byte);
    }
    i64::try_from(value).ok()
}

fn octal(field: &[u8]) -> Option<i64> {
    let digits = text(trim(field));
    let digits = trim(digits);
    let mut value: i64 = 0;
    for digit in digits {
        if !(b'0'..=b'7').contains(digit) {
            return None;
        }
        value = value.checked_mul(8)? + i64::from(digit - b'0');
    }
    Some(value)
}

fn trim(mut field: &[u8]) -> &[u8] {
    while let [b' ' | 0, rest @ ..] = field {
        field = rest;
    }
    while let [rest @ .., b' ' | 0] = field {
        field = rest;
    }
    field
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(field: &[u8]) -> Option<i64> {
        number(field, "test").ok()
    }

    #[test]
    fn numbers_in_octal_and_base_256() {
        assert_eq!(parse(b"0000644\0"), Some(0o644));
        assert_eq!(parse(b"   644 \0"), Some(0o644));
        assert_eq!(parse(b"77777777"), Some(0o7777_7777));
        assert_eq!(parse(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(parse(b"        "), Some(0));
        assert_eq!(parse(b"0000648\0"), None);
        assert_eq!(parse(b"\x80\0\0\0\0\0\x01\0"), Some(256));
        assert_eq!(parse(b"\xff\xff\xff\xff\xff\xff\xff\xfe"), Some(-2));
        assert_eq!(
            parse(b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff"),
            Some(i64::MAX)
        );
        assert_eq!(parse(b"\x80\0\0\0\x80\0\0\0\0\0\0\0"), None);
    }
}
