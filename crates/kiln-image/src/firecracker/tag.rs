//! Names of releases, and the files that hold their digests.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// `v1.16.1`: safe as a part of a path and of a URL.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReleaseTag([u32; 3]);

/// Text that is no tag.
#[derive(Debug, PartialEq, Eq, Error)]
#[error("{0:?} is no release such as v1.16.1")]
pub struct ReleaseTagError(pub String);

impl FromStr for ReleaseTag {
    type Err = ReleaseTagError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || ReleaseTagError(text.chars().take(40).collect());
        let mut parts = text.strip_prefix('v').ok_or_else(refused)?.split('.');
        let mut numbers = [0; 3];
        for number in &mut numbers {
            let part = parts.next().ok_or_else(refused)?;
            let plain = !part.is_empty()
                && part.bytes().all(|byte| byte.is_ascii_digit())
                && (part == "0" || !part.starts_with('0'));
            *number = Some(part)
                .filter(|_| plain)
                .and_then(|part| part.parse().ok())
                .ok_or_else(refused)?;
        }
        match parts.next() {
            None => Ok(Self(numbers)),
            Some(_) => Err(refused()),
        }
    }
}

impl fmt::Display for ReleaseTag {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.0;
        write!(formatter, "v{major}.{minor}.{patch}")
    }
}

/// The digest of `name` in a file of `sha256sum`: 64 hex digits, blanks, perhaps `*`, the name.
pub(super) fn digest_of(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (digest, rest) = line.split_once(' ')?;
        let listed = rest.trim_start().trim_start_matches('*').trim_end();
        let listed = listed.strip_prefix("./").unwrap_or(listed);
        let hex = digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
        (hex && listed == name).then(|| digest.to_ascii_lowercase())
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_plain_tags_are_taken() {
        assert_eq!(
            "v1.16.1".parse::<ReleaseTag>().unwrap().to_string(),
            "v1.16.1"
        );
        for wrong in [
            "1.16.1",
            "v1.16",
            "v1.16.1.2",
            "v1.16.1/..",
            "v01.1.1",
            "v1.16.+1",
            "",
        ] {
            assert!(wrong.parse::<ReleaseTag>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_digest_is_that_of_the_named_file() {
        let digest = "A".repeat(64);
        let text = format!("{}  other\n{digest}  a.tgz\n", "b".repeat(64));
        assert_eq!(digest_of(&text, "a.tgz").unwrap(), "a".repeat(64));
        assert_eq!(digest_of(&text, "c.tgz"), None);
        assert_eq!(digest_of("xyz  a.tgz", "a.tgz"), None);
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in ".{0,120}") {
            let _ = digest_of(&text, "a");
            if let Ok(tag) = text.parse::<ReleaseTag>() {
                prop_assert_eq!(tag.to_string(), text);
            }
        }
    }
}
