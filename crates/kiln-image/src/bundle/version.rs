//! Versions in names of releases, trains and files.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// A Firecracker release: `v1.16.1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FirecrackerVersion {
    major: u32,
    minor: u32,
    patch: u32,
}

/// Not of the form `vN.N.N`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a Firecracker version of the form vN.N.N")]
pub struct FirecrackerVersionError;

impl FirecrackerVersion {
    pub(crate) const fn new(major: u32, minor: u32, patch: u32) -> FirecrackerVersion {
        FirecrackerVersion {
            major,
            minor,
            patch,
        }
    }

    /// The CI train that belongs to the release: `v1.16`.
    #[must_use]
    pub fn train(&self) -> String {
        format!("v{}.{}", self.major, self.minor)
    }
}

impl fmt::Display for FirecrackerVersion {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "v{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl FromStr for FirecrackerVersion {
    type Err = FirecrackerVersionError;

    fn from_str(text: &str) -> Result<FirecrackerVersion, FirecrackerVersionError> {
        let digits = text.strip_prefix('v').ok_or(FirecrackerVersionError)?;
        match numbers(digits).as_deref() {
            Some(&[major, minor, patch]) => Ok(FirecrackerVersion::new(major, minor, patch)),
            _ => Err(FirecrackerVersionError),
        }
    }
}

/// The numbers of `1.2.3`; `None` for anything else, such as signs, blanks or what is too large.
pub(super) fn numbers(text: &str) -> Option<Vec<u32>> {
    let number = |part: &str| {
        let plain = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| part.parse().ok()).flatten()
    };
    text.split('.').map(number).collect()
}

/// Orders names as people do: runs of digits by their value, so that `9` comes before `10`.
pub(super) fn numeric_aware(left: &str, right: &str) -> Ordering {
    let (mut left, mut right) = (left.as_bytes(), right.as_bytes());
    loop {
        let (Some(a), Some(b)) = (left.first(), right.first()) else {
            return left.len().cmp(&right.len());
        };
        if a.is_ascii_digit() && b.is_ascii_digit() {
            let (a, left_rest) = take_digits(left);
            let (b, right_rest) = take_digits(right);
            let by_value = a.len().cmp(&b.len()).then_with(|| a.cmp(b));
            if by_value != Ordering::Equal {
                return by_value;
            }
            (left, right) = (left_rest, right_rest);
        } else if a != b {
            return a.cmp(b);
        } else {
            (left, right) = (&left[1..], &right[1..]);
        }
    }
}

/// The leading digits without their leading zeros, and what follows.
fn take_digits(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let zeros = text[..end].iter().take_while(|byte| **byte == b'0').count();
    (&text[zeros..end], &text[end..])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn versions_have_one_form() {
        let version: FirecrackerVersion = "v1.16.1".parse().unwrap();
        assert_eq!(
            (version.to_string(), version.train()),
            ("v1.16.1".into(), "v1.16".into())
        );
        for bad in [
            "1.16.1",
            "v1.16",
            "v1.16.1.0",
            "v1.+6.1",
            "v1..1",
            "v1.16.1-rc",
            "",
            "v99999999999.1.1",
        ] {
            assert!(bad.parse::<FirecrackerVersion>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a3_2_order_is_numeric_aware() {
        let mut names = [
            "ubuntu-24.04",
            "ubuntu-9.10",
            "ubuntu-22.04",
            "ubuntu-24.10",
        ];
        names.sort_by(|a, b| numeric_aware(a, b));
        assert_eq!(
            names,
            [
                "ubuntu-9.10",
                "ubuntu-22.04",
                "ubuntu-24.04",
                "ubuntu-24.10"
            ]
        );
    }

    proptest! {
        #[test]
        fn the_order_is_one(a: String, b: String, c: String) {
            prop_assert_eq!(numeric_aware(&a, &a), Ordering::Equal);
            prop_assert_eq!(numeric_aware(&a, &b), numeric_aware(&b, &a).reverse());
            if numeric_aware(&a, &b).is_le() && numeric_aware(&b, &c).is_le() {
                prop_assert!(numeric_aware(&a, &c).is_le());
            }
        }
    }
}
