//! What a volume may be called: safe as a file name, on command lines and in messages.

use std::fmt;
use std::str::FromStr;

/// A volume's name: 1 to 63 of `a-z 0-9 . _ -`, beginning with a letter or digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeName(Box<str>);

/// Not a name for a volume.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a volume name: 1 to 63 of a-z, 0-9, `.`, `_`, `-`, beginning with a letter or digit")]
pub struct VolumeNameError;

const LONGEST: usize = 63;

impl VolumeName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for VolumeName {
    type Err = VolumeNameError;

    fn from_str(text: &str) -> Result<VolumeName, VolumeNameError> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let first = text.bytes().next().is_some_and(plain);
        let rest = text
            .bytes()
            .all(|byte| plain(byte) || b"._-".contains(&byte));
        if first && rest && text.len() <= LONGEST {
            Ok(VolumeName(text.into()))
        } else {
            Err(VolumeNameError)
        }
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_file_names_and_nothing_more() {
        for good in ["a", "0", "data", "my-data_2.old", &"x".repeat(63)] {
            assert_eq!(good.parse::<VolumeName>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            ".",
            "..",
            ".a",
            "-a",
            "a/b",
            "A",
            "é",
            "a b",
            "a\n",
            "a\0",
            &"x".repeat(64),
        ] {
            assert!(bad.parse::<VolumeName>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_name_leaves_its_directory(text: String) {
            if let Ok(name) = text.parse::<VolumeName>() {
                let path = std::path::Path::new("/volumes").join(name.as_str());
                prop_assert_eq!(path.components().count(), 3);
                prop_assert!(path.starts_with("/volumes"));
            }
        }
    }
}
