//! The listing of Firecracker's CI bucket: S3's answer to `list-type=2`, and which kernel and root
//! filesystem of it to take.

use super::version::{numbers, numeric_aware};

/// A page of a listing has at most 1000 objects: some 500 bytes each.
pub(super) const MAX_PAGE: u64 = 4 << 20;

/// One object of the bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Object {
    pub(super) key: String,
    pub(super) size: Option<u64>,
}

/// One page of a listing.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) objects: Vec<Object>,
    /// Names the next page, if there is one.
    pub(super) next: Option<String>,
}

/// An answer that is no listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListingError {
    /// Not the XML that S3 sends.
    #[error("the answer is not a bucket listing")]
    NotAListing,
    /// An element does not end, or an entity is not known.
    #[error("the bucket listing is damaged")]
    Damaged,
}

impl Page {
    /// Reads the elements that matter; all others are passed over.
    pub(super) fn parse(text: &str) -> Result<Page, ListingError> {
        let start = text
            .find("<ListBucketResult")
            .ok_or(ListingError::NotAListing)?;
        let body = &text[start..];
        if !body.trim_end().ends_with("</ListBucketResult>") {
            return Err(ListingError::Damaged);
        }
        let mut page = Page::default();
        let mut rest = body;
        while let Some((contents, after)) = element(rest, "Contents")? {
            if let Some((key, _)) = element(contents, "Key")? {
                let size = element(contents, "Size")?.map(|(size, _)| size.trim().parse());
                page.objects.push(Object {
                    key: unescape(key)?,
                    size: size.transpose().map_err(|_| ListingError::Damaged)?,
                });
            }
            rest = after;
        }
        if element(body, "IsTruncated")?.is_some_and(|(text, _)| text.trim() == "true") {
            let token = element(body, "NextContinuationToken")?.ok_or(ListingError::Damaged)?;
            page.next = Some(unescape(token.0)?);
        }
        Ok(page)
    }
}

/// The content of the next element of that name, and what follows it. S3's names nest no element
/// in one of the same name.
fn element<'a>(text: &'a str, name: &str) -> Result<Option<(&'a str, &'a str)>, ListingError> {
    let Some(start) = text.find(&format!("<{name}>")) else {
        return Ok(None);
    };
    let inside = &text[start + name.len() + 2..];
    let close = format!("</{name}>");
    let end = inside.find(&close).ok_or(ListingError::Damaged)?;
    Ok(Some((&inside[..end], &inside[end + close.len()..])))
}

fn unescape(text: &str) -> Result<String, ListingError> {
    let mut plain = String::new();
    let mut rest = text;
    while let Some(start) = rest.find('&') {
        plain.push_str(&rest[..start]);
        let (entity, after) = rest[start + 1..]
            .split_once(';')
            .ok_or(ListingError::Damaged)?;
        plain.push(match entity {
            "amp" => '&',
            "lt" => '<',
            "gt" => '>',
            "quot" => '"',
            "apos" => '\'',
            number => character(number).ok_or(ListingError::Damaged)?,
        });
        rest = after;
    }
    plain.push_str(rest);
    Ok(plain)
}

/// `#39` or `#x27`.
fn character(entity: &str) -> Option<char> {
    let number = entity.strip_prefix('#')?;
    let code = match number.strip_prefix('x') {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => number.parse(),
    };
    char::from_u32(code.ok()?)
}

/// The highest `vmlinux-N.N.N` right below `prefix`; debug kernels have longer names or a
/// directory of their own.
pub(super) fn kernel<'a>(objects: &'a [Object], prefix: &str) -> Option<&'a Object> {
    let version = |object: &Object| {
        let version = file_name(object, prefix)?.strip_prefix("vmlinux-")?;
        numbers(version).filter(|numbers| numbers.len() == 3)
    };
    objects
        .iter()
        .filter(|object| version(object).is_some())
        .max_by_key(|object| version(object))
}

/// The highest `ubuntu-*.squashfs` right below `prefix`, else the highest `ubuntu-*.ext4`.
pub(super) fn rootfs<'a>(objects: &'a [Object], prefix: &str) -> Option<&'a Object> {
    let of_kind = |ending: &str| {
        let named = objects.iter().filter_map(|object| {
            let name = file_name(object, prefix)?;
            (name.starts_with("ubuntu-") && name.ends_with(ending)).then_some((name, object))
        });
        named.max_by(|(a, _), (b, _)| numeric_aware(a, b))
    };
    of_kind(".squashfs")
        .or_else(|| of_kind(".ext4"))
        .map(|(_, object)| object)
}

/// The object's name, if it lies right below `prefix`.
pub(super) fn file_name<'a>(object: &'a Object, prefix: &str) -> Option<&'a str> {
    let name = object.key.strip_prefix(prefix)?;
    (!name.is_empty() && !name.contains('/')).then_some(name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PREFIX: &str = "firecracker-ci/v1.10/x86_64/";

    fn objects(names: &[&str]) -> Vec<Object> {
        let object = |name: &&str| Object {
            key: format!("{PREFIX}{name}"),
            size: Some(1),
        };
        names.iter().map(object).collect()
    }

    fn chosen(names: &[&str]) -> (Option<String>, Option<String>) {
        let objects = objects(names);
        let name = |object: &Object| file_name(object, PREFIX).unwrap().to_owned();
        (
            kernel(&objects, PREFIX).map(name),
            rootfs(&objects, PREFIX).map(name),
        )
    }

    #[test]
    fn a3_2_the_highest_kernel_and_squashfs_win() {
        let (kernel, rootfs) = chosen(&[
            "debug/vmlinux-7.1.1",
            "ubuntu-24.04.ext4",
            "ubuntu-22.04.squashfs",
            "ubuntu-9.04.squashfs",
            "vmlinux-5.10.223",
            "vmlinux-6.1.102",
            "vmlinux-6.1.99",
            "vmlinux-6.1.102.config",
            "vmlinux-6.2.0-debug",
            "vmlinux-6.3",
        ]);
        assert_eq!(kernel.as_deref(), Some("vmlinux-6.1.102"));
        assert_eq!(rootfs.as_deref(), Some("ubuntu-22.04.squashfs"));
        let (kernel, rootfs) =
            chosen(&["ubuntu-22.04.ext4", "ubuntu-24.04.ext4", "debian.squashfs"]);
        assert_eq!(
            (kernel, rootfs.as_deref()),
            (None, Some("ubuntu-24.04.ext4"))
        );
    }

    #[test]
    fn a3_2_real_answers_are_read() {
        let text = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
            <ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
            <Name>spec.ccfc.min</Name><Prefix>firecracker-ci/v1.10/x86_64/</Prefix>\
            <NextContinuationToken>1a&amp;b==</NextContinuationToken>\
            <KeyCount>1</KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>true</IsTruncated>\
            <Contents><Key>a&amp;b&#39;&#x27;&lt;c</Key><LastModified>2024-09-10T15:39:55.000Z\
            </LastModified><ETag>&quot;c8f5&quot;</ETag><Size>42</Size>\
            <StorageClass>STANDARD</StorageClass></Contents></ListBucketResult>\n";
        let page = Page::parse(text).unwrap();
        assert_eq!(page.next.as_deref(), Some("1a&b=="));
        let object = Object {
            key: "a&b''<c".into(),
            size: Some(42),
        };
        assert_eq!(page.objects, [object]);
        assert_eq!(Page::parse("<html></html>"), Err(ListingError::NotAListing));
        assert_eq!(
            Page::parse(&text[..text.len() - 30]),
            Err(ListingError::Damaged)
        );
        assert_eq!(
            Page::parse(&text.replace("&lt;", "&nope;")),
            Err(ListingError::Damaged)
        );
        assert_eq!(
            Page::parse(&text.replace("42", "-1")),
            Err(ListingError::Damaged)
        );
    }

    proptest! {
        #[test]
        fn any_answer_is_judged_without_a_panic(text in "(<ListBucketResult>)?([<>/&;#x0-9a-z]|<Contents>|<Key>|</Key>|</Contents>|<Size>|</Size>){0,60}(</ListBucketResult>)?") {
            let _ = Page::parse(&text);
        }
    }
}
