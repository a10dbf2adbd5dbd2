//! Names of images: `alpine`, `ghcr.io/x/y:tag`, `localhost:5000/z@sha256:…`; read the way Docker
//! reads them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::digest::{Digest, DigestError};

/// The registry of names that name none.
const DEFAULT_REGISTRY: &str = "docker.io";
/// What Docker's clients have called it.
const DEFAULT_REGISTRY_ALIASES: [&str; 2] = ["index.docker.io", "registry-1.docker.io"];
/// Where Docker Hub keeps its own images.
const OFFICIAL: &str = "library/";
const DEFAULT_TAG: &str = "latest";
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;
/// A DNS name and a port.
const MAX_REGISTRY: usize = 253 + 6;

/// A full name of an image: registry, repository, and a tag, a digest or both.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not the name of an image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReferenceError {
    /// Nothing at all.
    #[error("the name of an image is empty")]
    Empty,
    /// The registry's host or port makes no sense.
    #[error("`{0}` is not a registry (host or host:port)")]
    Registry(String),
    /// The path has characters or separators that it must not have.
    #[error("`{0}` is not the name of an image: lower-case letters, digits, `.`, `_`, `-` and `/`")]
    Repository(String),
    /// The name is too long.
    #[error("the name of an image has at most {MAX_NAME} characters")]
    TooLong,
    /// The tag has characters that it must not have.
    #[error("`{0}` is not a tag: letters, digits, `.`, `_`, `-`, at most {MAX_TAG}")]
    Tag(String),
    /// What follows `@` is no digest.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// 64 hexadecimal digits: too easily meant as an id.
    #[error("`{0}` is an id, not the name of an image")]
    Id(String),
}

impl Reference {
    /// Host and perhaps port.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Path of the image in its registry.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if it was given or no digest was.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest of a manifest, if it was given.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The same image by this digest alone.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Reference {
        Reference {
            tag: None,
            digest: Some(digest),
            ..self.clone()
        }
    }

    /// The short form that people write: without `docker.io` and `library/`.
    #[must_use]
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        let Some(rest) = full.strip_prefix("docker.io/") else {
            return full;
        };
        let short = rest.strip_prefix(OFFICIAL).unwrap_or(rest);
        // Not where it would be read otherwise: `library/a/b`, or a first part that looks like a
        // host.
        let means_this = |text: &&str| text.parse::<Reference>().as_ref() == Ok(self);
        let shortest = [short, rest].into_iter().find(means_this);
        shortest.map_or_else(|| full.clone(), str::to_owned)
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Reference, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse()?)),
            None => (text, None),
        };
        let (registry, path) = split_registry(rest);
        let (path, tag) = match path.rsplit_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (path, None),
        };
        check_registry(registry)?;
        if registry == DEFAULT_REGISTRY && is_id(path) {
            return Err(ReferenceError::Id(path.to_owned()));
        }
        let repository = match path {
            path if registry == DEFAULT_REGISTRY && !path.contains('/') => {
                format!("{OFFICIAL}{path}")
            }
            path => path.to_owned(),
        };
        check_repository(&repository, path)?;
        let tag = match (tag, digest) {
            (Some(tag), _) => Some(checked_tag(tag)?),
            (None, None) => Some(DEFAULT_TAG.to_owned()),
            (None, Some(_)) => None,
        };
        Ok(Reference {
            registry: registry.to_owned(),
            repository,
            tag,
            digest,
        })
    }
}

/// The first part is a registry only if it cannot be anything else.
fn split_registry(text: &str) -> (&str, &str) {
    match text.split_once('/') {
        Some((first, rest)) if looks_like_host(first) => {
            let alias = DEFAULT_REGISTRY_ALIASES.contains(&first);
            (if alias { DEFAULT_REGISTRY } else { first }, rest)
        }
        _ => (DEFAULT_REGISTRY, text),
    }
}

fn looks_like_host(text: &str) -> bool {
    text == "localhost"
        || text.contains(['.', ':', '['])
        // Repositories have no capitals, hosts may.
        || text.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn check_registry(text: &str) -> Result<(), ReferenceError> {
    let wrong = || ReferenceError::Registry(shorten(text));
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, rest) = rest.split_once(']').ok_or_else(wrong)?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| wrong())?;
            let port = match rest {
                "" => None,
                rest => Some(rest.strip_prefix(':').ok_or_else(wrong)?),
            };
            (None, port)
        }
        None => match text.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(text), None),
        },
    };
    let port_fits = |port: &str| {
        port.bytes().all(|byte| byte.is_ascii_digit())
            && port.parse::<u16>().is_ok_and(|port| port > 0)
    };
    if text.len() > MAX_REGISTRY || port.is_some_and(|port| !port_fits(port)) {
        return Err(wrong());
    }
    match host {
        Some(host) if !host.split('.').all(is_host_label) => Err(wrong()),
        _ => Ok(()),
    }
}

fn is_host_label(label: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    (1..=63).contains(&label.len())
        && label.bytes().all(fits)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

fn check_repository(repository: &str, written: &str) -> Result<(), ReferenceError> {
    if repository.len() > MAX_NAME {
        return Err(ReferenceError::TooLong);
    }
    if !repository.split('/').all(is_path_component) {
        return Err(ReferenceError::Repository(shorten(written)));
    }
    Ok(())
}

/// Letters and digits, with `.`, `_`, `__` or any number of `-` between them.
fn is_path_component(text: &str) -> bool {
    let mut rest = text.as_bytes();
    let word = |bytes: &[u8]| {
        let fits = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        bytes.iter().take_while(|byte| fits(byte)).count()
    };
    loop {
        let length = word(rest);
        if length == 0 {
            return false;
        }
        rest = &rest[length..];
        let separator = match rest {
            [] => return true,
            [b'_', b'_', ..] => 2,
            [b'.' | b'_', ..] => 1,
            [b'-', ..] => rest.iter().take_while(|byte| **byte == b'-').count(),
            _ => return false,
        };
        rest = &rest[separator..];
    }
}

fn checked_tag(tag: &str) -> Result<String, ReferenceError> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let starts_well = !tag.starts_with(['.', '-']);
    if !(1..=MAX_TAG).contains(&tag.len()) || !starts_well || !tag.bytes().all(fits) {
        return Err(ReferenceError::Tag(shorten(tag)));
    }
    Ok(tag.to_owned())
}

fn is_id(path: &str) -> bool {
    path.len() == 64 && path.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Fit for a message: this came from outside.
fn shorten(text: &str) -> String {
    text.chars()
        .take(80)
        .flat_map(char::escape_default)
        .collect()
}

impl fmt::Display for Reference {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(out, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(out, "@{digest}"),
            None => Ok(()),
        }
    }
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Reference, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn full(text: &str) -> String {
        text.parse::<Reference>().unwrap().to_string()
    }

    #[test]
    fn short_names_get_dockers_defaults() {
        for (short, long) in [
            ("alpine", "docker.io/library/alpine:latest"),
            ("alpine:3.20", "docker.io/library/alpine:3.20"),
            ("user/app", "docker.io/user/app:latest"),
            ("docker.io/alpine", "docker.io/library/alpine:latest"),
            (
                "index.docker.io/library/alpine",
                "docker.io/library/alpine:latest",
            ),
            ("ghcr.io/x/y:tag", "ghcr.io/x/y:tag"),
            ("localhost/z", "localhost/z:latest"),
            ("localhost:5000/z", "localhost:5000/z:latest"),
            ("127.0.0.1:5000/z:1", "127.0.0.1:5000/z:1"),
            ("[::1]:5000/z", "[::1]:5000/z:latest"),
            ("HOST/z", "HOST/z:latest"),
            ("a__b/c-----d.e_f", "docker.io/a__b/c-----d.e_f:latest"),
        ] {
            assert_eq!(full(short), long);
        }
        let digest = Digest::of(b"x");
        let reference: Reference = format!("alpine@{digest}").parse().unwrap();
        assert_eq!((reference.tag(), reference.digest()), (None, Some(digest)));
        let both: Reference = format!("ghcr.io/x/y:1@{digest}").parse().unwrap();
        assert_eq!((both.tag(), both.digest()), (Some("1"), Some(digest)));
        assert_eq!(
            both.with_digest(digest).to_string(),
            format!("ghcr.io/x/y@{digest}")
        );
    }

    #[test]
    fn familiar_names_are_what_people_write() {
        for (long, short) in [
            ("docker.io/library/alpine:3", "alpine:3"),
            ("docker.io/user/app", "user/app:latest"),
            ("ghcr.io/x/y", "ghcr.io/x/y:latest"),
            ("docker.io/r.io/r.io", "docker.io/r.io/r.io:latest"),
        ] {
            assert_eq!(long.parse::<Reference>().unwrap().familiar(), short);
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "Alpine",
            "a b",
            "a:",
            "a:b:c",
            "a:-x",
            "a@",
            "a@sha256:12",
            "a_",
            "-a",
            "a___b",
            "a..b",
            "../etc/passwd",
            "a/../b",
            "host:99999/a",
            "host:0/a",
            "host:/a",
            "ho_st.x/a",
            "[::1/a",
            "[zz]:1/a",
            "exa mple.com/a",
            "a:\u{e9}",
            "a\n",
            "http://a/b",
            "user@host/a",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
        let id = "ab".repeat(32);
        assert_eq!(id.parse::<Reference>(), Err(ReferenceError::Id(id.clone())));
        let long = format!("a/{}", "b".repeat(300));
        assert_eq!(long.parse::<Reference>(), Err(ReferenceError::TooLong));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,80}") {
            let _ = text.parse::<Reference>();
        }

        #[test]
        fn what_is_printed_reads_the_same(
            registry in prop::option::of("([a-z0-9]{1,8}\\.){1,3}[a-z]{2,3}(:[1-9][0-9]{0,3})?"),
            path in "[a-z0-9]{1,6}([_-][a-z0-9]{1,4}){0,2}(/[a-z0-9]{1,6}(__|-{1,3})[a-z0-9]){0,2}",
            tag in prop::option::of("[A-Za-z0-9_][A-Za-z0-9._-]{0,20}"),
            digest in prop::option::of(any::<[u8; 32]>()),
        ) {
            let mut text = registry.map_or_else(String::new, |registry| registry + "/") + &path;
            text += &tag.map_or_else(String::new, |tag| format!(":{tag}"));
            text += &digest.map_or_else(String::new, |digest| format!("@{}", Digest::from(digest)));
            let reference: Reference = text.parse().unwrap();
            prop_assert_eq!(&reference.to_string().parse::<Reference>().unwrap(), &reference);
            prop_assert_eq!(&reference.familiar().parse::<Reference>().unwrap(), &reference);
            prop_assert!(reference.tag().is_some() || reference.digest().is_some());
            prop_assert!(!reference.repository().split('/').any(|part| part.is_empty() || part == ".."));
        }
    }
}
