//! PAX extended headers, parsed by the length of each record: values may hold any byte, newlines
//! and NULs included.

use super::error::TarFault;
use crate::acl;
use crate::inode::{EntryName, Timestamp, Xattr};

/// What local extended headers and GNU long names say of the next entry.
#[derive(Debug, Default)]
pub(super) struct Extensions {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    /// GNU's long name and link: PAX ones win over them.
    pub(super) gnu_path: Option<Vec<u8>>,
    pub(super) gnu_link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) modified: Option<Timestamp>,
    pub(super) xattrs: Vec<Xattr>,
    pub(super) sparse: SparseRecords,
    /// Names seen in libarchive's coding; each must have its plain twin.
    pub(super) libarchive_xattrs: Vec<Box<[u8]>>,
    pub(super) seen: bool,
}

/// The `GNU.sparse.*` records, in whichever version they come.
#[derive(Debug, Default)]
pub(super) struct SparseRecords {
    pub(super) name: Option<Vec<u8>>,
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    pub(super) real_size: Option<u64>,
    /// Versions 0.0 (repeated records) and 0.1 (one list): alternating offset and length.
    pub(super) map: Option<Vec<u64>>,
}

/// Splits an extended header into its records.
pub(super) fn records(mut body: &[u8]) -> impl Iterator<Item = Result<(&[u8], &[u8]), TarFault>> {
    std::iter::from_fn(move || {
        // Some writers pad with NULs.
        if body.iter().all(|byte| *byte == 0) {
            return None;
        }
        let record = split_record(body);
        body = match &record {
            Ok((_, _, rest)) => rest,
            Err(_) => &[],
        };
        Some(record.map(|(key, value, _)| (key, value)))
    })
}

type Record<'a> = (&'a [u8], &'a [u8], &'a [u8]);

/// `<length> <key>=<value>\n`, the length counting itself and the newline.
fn split_record(body: &[u8]) -> Result<Record<'_>, TarFault> {
    let space = body
        .iter()
        .position(|byte| *byte == b' ')
        .ok_or(TarFault::Pax)?;
    let length = usize::try_from(decimal(&body[..space])?).map_err(|_| TarFault::Pax)?;
    // At least `=` and the newline stand behind the space.
    if length < space + 3 || length > body.len() {
        return Err(TarFault::Pax);
    }
    let (record, rest) = body.split_at(length);
    let [pair @ .., b'\n'] = &record[space + 1..] else {
        return Err(TarFault::Pax);
    };
    let equals = pair
        .iter()
        .position(|byte| *byte == b'=')
        .ok_or(TarFault::Pax)?;
    let (key, value) = (&pair[..equals], &pair[equals + 1..]);
    if key.is_empty() {
        return Err(TarFault::Pax);
    }
    Ok((key, value, rest))
}

impl Extensions {
    /// Takes one record of a local header; later ones win.
    pub(super) fn take(
        &mut self,
        key: &[u8],
        value: &[u8],
        sparse_ranges: usize,
    ) -> Result<(), TarFault> {
        self.seen = true;
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            return self.take_xattr(name, value);
        }
        if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
            self.libarchive_xattrs.push(percent_decode(name).into());
            return Ok(());
        }
        if let Some(sparse) = key.strip_prefix(b"GNU.sparse.") {
            return self.sparse.take(sparse, value, sparse_ranges);
        }
        match key {
            b"SCHILY.acl.access" => self.take_acl(b"system.posix_acl_access", value),
            b"SCHILY.acl.default" => self.take_acl(b"system.posix_acl_default", value),
            b"RHT.security.selinux" => self.take_xattr(b"security.selinux", value),
            _ if value.is_empty() => self.reset(key),
            b"path" => set(&mut self.path, value.to_vec()),
            b"linkpath" => set(&mut self.link, value.to_vec()),
            b"size" => set(&mut self.size, decimal(value)?),
            b"uid" => set(&mut self.uid, id(value, "uid")?),
            b"gid" => set(&mut self.gid, id(value, "gid")?),
            b"mtime" => set(&mut self.modified, timestamp(value)?),
            // atime and ctime, owner names, comments and what vendors note for themselves.
            _ => Ok(()),
        }
    }

    /// An empty value takes an earlier one back.
    fn reset(&mut self, key: &[u8]) -> Result<(), TarFault> {
        match key {
            b"path" => self.path = None,
            b"linkpath" => self.link = None,
            b"size" => self.size = None,
            b"uid" => self.uid = None,
            b"gid" => self.gid = None,
            b"mtime" => self.modified = None,
            _ => {}
        }
        Ok(())
    }

    fn take_xattr(&mut self, name: &[u8], value: &[u8]) -> Result<(), TarFault> {
        if name.is_empty() || name.len() > 255 || name.contains(&0) {
            return Err(TarFault::Pax);
        }
        self.xattrs.retain(|xattr| &*xattr.name != name);
        self.xattrs.push(Xattr {
            name: name.into(),
            value: value.into(),
        });
        Ok(())
    }

    fn take_acl(&mut self, name: &[u8], text: &[u8]) -> Result<(), TarFault> {
        match acl::from_text(text)? {
            Some(value) => self.take_xattr(name, &value),
            None => Ok(()),
        }
    }

    /// Refuses attributes that only libarchive's own coding carries.
    pub(super) fn check_libarchive(&self) -> Result<(), TarFault> {
        for name in &self.libarchive_xattrs {
            if !self.xattrs.iter().any(|xattr| xattr.name == *name) {
                return Err(TarFault::LibarchiveXattr(EntryName::from(&**name)));
            }
        }
        Ok(())
    }
}

impl SparseRecords {
    fn take(&mut self, key: &[u8], value: &[u8], limit: usize) -> Result<(), TarFault> {
        match key {
            b"name" => set(&mut self.name, value.to_vec()),
            b"major" => set(&mut self.major, decimal(value)?),
            b"minor" => set(&mut self.minor, decimal(value)?),
            b"size" | b"realsize" => set(&mut self.real_size, decimal(value)?),
            b"map" => {
                let numbers = value.split(|byte| *byte == b',');
                let numbers = numbers.filter(|number| !number.is_empty());
                set(
                    &mut self.map,
                    numbers.map(decimal).collect::<Result<_, _>>()?,
                )
            }
            b"offset" | b"numbytes" => {
                let map = self.map.get_or_insert_default();
                // 0.0 repeats the two in turn.
                if map.len().is_multiple_of(2) != (key == b"offset") {
                    return Err(TarFault::SparseMap);
                }
                if map.len() >= limit.saturating_mul(2) {
                    return Err(TarFault::SparseTooMany(limit));
                }
                map.push(decimal(value)?);
                Ok(())
            }
            b"numblocks" => Ok(()),
            _ => Err(TarFault::SparseMap),
        }
    }
}

fn set<T>(slot: &mut Option<T>, value: T) -> Result<(), TarFault> {
    *slot = Some(value);
    Ok(())
}

pub(super) fn decimal(text: &[u8]) -> Result<u64, TarFault> {
    if text.is_empty() {
        return Err(TarFault::Pax);
    }
    text.iter().try_fold(0u64, |value, digit| {
        if !digit.is_ascii_digit() {
            return Err(TarFault::Pax);
        }
        value
            .checked_mul(10)
            .and_then(|value| value.checked_add(u64::from(digit - b'0')))
            .ok_or(TarFault::Pax)
    })
}

fn id(text: &[u8], what: &'static str) -> Result<u32, TarFault> {
    u32::try_from(decimal(text)?).map_err(|_| TarFault::Number(what))
}

/// `-1.25`: the fraction counts away from zero; digits beyond nanoseconds are cut.
fn timestamp(text: &[u8]) -> Result<Timestamp, TarFault> {
    let bad = || TarFault::Number("mtime");
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] | rest => (false, rest),
    };
    let mut parts = digits.splitn(2, |byte| *byte == b'.');
    let whole = parts.next().unwrap_or_default();
    let fraction = parts.next().unwrap_or_default();
    if (whole.is_empty() && fraction.is_empty()) || !fraction.iter().all(u8::is_ascii_digit) {
        return Err(bad());
    }
    let whole = if whole.is_empty() {
        0
    } else {
        decimal(whole).map_err(|_| bad())?
    };
    let whole = i64::try_from(whole).map_err(|_| bad())?;
    let nanoseconds = (0..9).fold(0u32, |value, at| {
        value * 10 + u32::from(fraction.get(at).map_or(0, |digit| digit - b'0'))
    });
    Ok(match (negative, nanoseconds) {
        (false, _) => Timestamp {
            seconds: whole,
            nanoseconds,
        },
        (true, 0) => Timestamp {
            seconds: -whole,
            nanoseconds: 0,
        },
        (true, _) => Timestamp {
            seconds: -whole - 1,
            nanoseconds: 1_000_000_000 - nanoseconds,
        },
    })
}

fn percent_decode(name: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(name.len());
    let mut at = 0;
    while at < name.len() {
        let hex = name
            .get(at + 1..at + 3)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match (
            name[at],
            hex.and_then(|digits| u8::from_str_radix(digits, 16).ok()),
        ) {
            (b'%', Some(byte)) => {
                decoded.push(byte);
                at += 3;
            }
            (byte, _) => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    type Pair<'a> = (&'a [u8], &'a [u8]);

    fn all(body: &[u8]) -> Result<Vec<Pair<'_>>, TarFault> {
        records(body).collect()
    }

    #[test]
    fn records_are_split_by_length_not_by_newline() {
        let body = b"23 path=a\nb=c\n9 x=y\n\0z\n8 uid=0\n";
        let records = all(body).unwrap();
        assert_eq!(records[0], (&b"path"[..], &b"a\nb=c\n9 x=y\n\0z"[..]));
        assert_eq!(records[1], (&b"uid"[..], &b"0"[..]));
        assert_eq!(all(b"8 uid=0\n\0\0\0").unwrap().len(), 1);
    }

    #[test]
    fn malformed_records_are_refused() {
        for body in [
            &b"path=a\n"[..],
            b"5 a=\n8",
            b"99 path=a\n",
            b"10 path=a\nX",
            b"7 =abc\n",
            b"-9 path=a\n",
            b"0 path=a\n",
            b"99999999999999999999 path=a\n",
        ] {
            assert!(all(body).is_err(), "{}", body.escape_ascii());
        }
    }

    #[test]
    fn times_before_1970_round_down() {
        let parse = |text: &[u8]| timestamp(text).ok().map(|t| (t.seconds, t.nanoseconds));
        assert_eq!(parse(b"1.5"), Some((1, 500_000_000)));
        assert_eq!(parse(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(parse(b"-1"), Some((-1, 0)));
        assert_eq!(parse(b"4294967303.000000001999"), Some((4_294_967_303, 1)));
        assert_eq!(parse(b"1.x"), None);
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"."), None);
    }
}
