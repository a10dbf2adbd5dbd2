//! POSIX access control lists in their three forms: the text of tar headers, the bytes of
//! `getxattr`, the bytes of ext4's disk format.

/// Version 2, the form of `system.posix_acl_*` values.
const XATTR_VERSION: u32 = 2;
/// Version 1, ext4's own.
const EXT4_VERSION: u32 = 1;
/// The id of entries that name nobody.
const NO_ID: u32 = u32::MAX;

const USER_OWNER: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OWNER: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// Why a text list was not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AclError {
    /// Not `tag:qualifier:permissions`.
    #[error("malformed access control list")]
    Malformed,
    /// A user or group by name without its number: only the system that wrote it knows it.
    #[error("the access control list names `{0}` without a numeric id")]
    Name(String),
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    tag: u16,
    id: u32,
    permissions: u16,
}

/// Turns tar's text form into the value of `system.posix_acl_*`. `None` when the list says no more
/// than the mode bits do.
///
/// # Errors
/// [`AclError`] when the text is malformed or names users that only its author can resolve.
pub(crate) fn from_text(text: &[u8]) -> Result<Option<Vec<u8>>, AclError> {
    let text = std::str::from_utf8(text).map_err(|_| AclError::Malformed)?;
    let mut entries = Vec::new();
    for line in text.split([',', '\n']) {
        let line = line.split('#').next().unwrap_or_default().trim();
        if !line.is_empty() {
            entries.push(parse_entry(line)?);
        }
    }
    if entries
        .iter()
        .all(|entry| matches!(entry.tag, USER_OWNER | GROUP_OWNER | OTHER))
    {
        return Ok(None);
    }
    entries.sort_unstable();
    let mut value = XATTR_VERSION.to_le_bytes().to_vec();
    for entry in entries {
        value.extend(entry.tag.to_le_bytes());
        value.extend(entry.permissions.to_le_bytes());
        value.extend(entry.id.to_le_bytes());
    }
    Ok(Some(value))
}

fn parse_entry(line: &str) -> Result<Entry, AclError> {
    let mut fields = line.split(':').map(str::trim);
    let (Some(tag), Some(who), Some(permissions)) = (fields.next(), fields.next(), fields.next())
    else {
        return Err(AclError::Malformed);
    };
    let tag = match (tag, who.is_empty()) {
        ("user" | "u", true) => USER_OWNER,
        ("user" | "u", false) => USER,
        ("group" | "g", true) => GROUP_OWNER,
        ("group" | "g", false) => GROUP,
        ("mask" | "m", true) => MASK,
        ("other" | "o", true) => OTHER,
        _ => return Err(AclError::Malformed),
    };
    // star appends the number as a fourth field.
    let id = if who.is_empty() {
        NO_ID
    } else {
        parse_id(who, fields.next())?
    };
    Ok(Entry {
        tag,
        id,
        permissions: parse_permissions(permissions)?,
    })
}

fn parse_id(who: &str, number: Option<&str>) -> Result<u32, AclError> {
    match number.unwrap_or(who).parse() {
        Ok(id) => Ok(id),
        Err(_) if who == "root" => Ok(0),
        Err(_) => Err(AclError::Name(who.chars().take(64).collect())),
    }
}

fn parse_permissions(text: &str) -> Result<u16, AclError> {
    let mut bits = 0;
    for letter in text.chars() {
        bits |= match letter {
            'r' => 4,
            'w' => 2,
            'x' => 1,
            '-' => 0,
            _ => return Err(AclError::Malformed),
        };
    }
    Ok(bits)
}

/// Turns the value of `system.posix_acl_*` into ext4's shorter form: ids only where they mean
/// something. `None` when it is not a valid list.
pub(crate) fn to_ext4(value: &[u8]) -> Option<Vec<u8>> {
    let (version, entries) = value.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*version) != XATTR_VERSION || !entries.len().is_multiple_of(8) {
        return None;
    }
    let mut disk = EXT4_VERSION.to_le_bytes().to_vec();
    for entry in entries.chunks_exact(8) {
        disk.extend(&entry[..4]);
        match u16::from_le_bytes([entry[0], entry[1]]) {
            USER | GROUP => disk.extend(&entry[4..]),
            USER_OWNER | GROUP_OWNER | MASK | OTHER => {}
            _ => return None,
        }
    }
    Some(disk)
}

/// Turns ext4's form back into the value of `system.posix_acl_*`; `None` if it is malformed.
pub(crate) fn from_ext4(disk: &[u8]) -> Option<Vec<u8>> {
    let (version, mut rest) = disk.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*version) != EXT4_VERSION {
        return None;
    }
    let mut value = XATTR_VERSION.to_le_bytes().to_vec();
    while !rest.is_empty() {
        let (entry, after) = rest.split_first_chunk::<4>()?;
        value.extend(entry);
        rest = match u16::from_le_bytes([entry[0], entry[1]]) {
            USER | GROUP => {
                let (id, after) = after.split_first_chunk::<4>()?;
                value.extend(id);
                after
            }
            USER_OWNER | GROUP_OWNER | MASK | OTHER => {
                value.extend(NO_ID.to_le_bytes());
                after
            }
            _ => return None,
        };
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_becomes_the_value_that_getxattr_gives() {
        let text = b"user::rw-,user:1234:rw-,group::r--,group:99:r--,mask::rw-,other::r--";
        let value = from_text(text).unwrap().unwrap();
        assert_eq!(
            hex::encode(value),
            "02000000\
             01000600ffffffff02000600d2040000\
             04000400ffffffff0800040063000000\
             10000600ffffffff20000400ffffffff"
                .replace(' ', "")
        );
        assert_eq!(
            from_text(b"user::rw-\ngroup::r--\nother::---\n").unwrap(),
            None
        );
        assert_eq!(
            from_text(b"user:root:rwx,mask::rwx").unwrap().unwrap()[8..12],
            [0; 4]
        );
        let star = from_text(b"user:ann:rwx:1000,mask::rwx").unwrap().unwrap();
        assert_eq!(star[8..12], 1000u32.to_le_bytes());
        assert_eq!(
            from_text(b"user:ann:rwx"),
            Err(AclError::Name("ann".into()))
        );
        assert_eq!(from_text(b"user"), Err(AclError::Malformed));
    }

    #[test]
    fn the_disk_form_keeps_ids_of_named_entries_only() {
        let value = from_text(b"user::rw-,user:7:r--,mask::r--,other::---")
            .unwrap()
            .unwrap();
        assert_eq!(
            to_ext4(&value).unwrap(),
            [
                1, 0, 0, 0, 1, 0, 6, 0, 2, 0, 4, 0, 7, 0, 0, 0, 16, 0, 4, 0, 32, 0, 0, 0
            ]
        );
        assert_eq!(to_ext4(&value[..7]), None);
        assert_eq!(to_ext4(b""), None);
    }
}
