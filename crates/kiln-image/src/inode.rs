//! What a file of an image is, apart from where it stands: attributes, times, data ranges and
//! printable names. Knows neither archives nor disk formats.

use std::fmt;

/// A name or path out of an image: any bytes but NUL, printed without control characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct EntryName(Box<[u8]>);

impl EntryName {
    /// The bytes as they stand in the image.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<&[u8]> for EntryName {
    fn from(bytes: &[u8]) -> EntryName {
        EntryName(bytes.into())
    }
}

impl fmt::Display for EntryName {
    /// Shortened and escaped: this ends up on terminals and in logs.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 256;
        let head = &self.0[..self.0.len().min(SHOWN)];
        write!(out, "`{}", head.escape_ascii())?;
        out.write_str(if self.0.len() > SHOWN { "…`" } else { "`" })
    }
}

impl fmt::Debug for EntryName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

/// Seconds since 1970 and nanoseconds to add: -0.25 s is `{ -1, 750_000_000 }`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Timestamp {
    /// Whole seconds, rounded down.
    pub(crate) seconds: i64,
    /// 0 to 999,999,999.
    pub(crate) nanoseconds: u32,
}

/// One extended attribute, with its full name (`user.mime_type`) and the value as `getxattr` gives
/// it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Xattr {
    /// Name with its namespace.
    pub(crate) name: Box<[u8]>,
    /// Value, any bytes.
    pub(crate) value: Box<[u8]>,
}

/// Owner, permissions, time and extended attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attributes {
    /// Permission bits with setuid, setgid and sticky: 0 to 0o7777.
    pub(crate) mode: u16,
    /// Owner.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
    /// Last modification.
    pub(crate) modified: Timestamp,
    /// Extended attributes, at most one per name.
    pub(crate) xattrs: Vec<Xattr>,
}

impl Default for Attributes {
    /// What a directory gets that no layer describes.
    fn default() -> Attributes {
        Attributes {
            mode: 0o755,
            uid: 0,
            gid: 0,
            modified: Timestamp::default(),
            xattrs: Vec::new(),
        }
    }
}

/// A run of a file's bytes, and where its content is found. What no range covers is a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DataRange {
    /// First byte within the file.
    pub(crate) offset: u64,
    /// First byte within the content source.
    pub(crate) position: u64,
    /// Bytes.
    pub(crate) length: u64,
}

/// Device number as `stat` splits it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct DeviceNumber {
    /// Driver.
    pub(crate) major: u32,
    /// Unit.
    pub(crate) minor: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_print_without_control_characters() {
        let name = EntryName::from(&b"a\x1b[31m\xff\n"[..]);
        assert_eq!(name.to_string(), "`a\\x1b[31m\\xff\\n`");
        let long = EntryName::from(&[b'x'; 4000][..]);
        assert!(long.to_string().len() < 300);
    }
}
