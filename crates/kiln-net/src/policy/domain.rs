//! Domain names and the patterns that users write for them. Pure.

use std::fmt;

use serde::{Serialize, Serializer};

/// A host name: lower case, without the final dot, letters, digits, `-` and `_` only.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DomainName(String);

impl DomainName {
    /// Check a name. `None` for whatever is not a plain host name; names in other scripts must be
    /// given in their `xn--` form.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.strip_suffix('.').unwrap_or(text);
        let fits = (1..=253).contains(&text.len());
        (fits && text.split('.').all(is_label)).then(|| Self(text.to_ascii_lowercase()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Serialize for DomainName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

fn is_label(label: &str) -> bool {
    let plain = label
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    (1..=63).contains(&label.len()) && plain && !label.starts_with('-') && !label.ends_with('-')
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `example.com`, `*.example.com` (any depth below, not the name itself) or `*`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DomainPattern {
    /// Every name.
    Any,
    /// This name.
    Exact(DomainName),
    /// Every name below this one.
    Below(DomainName),
}

impl DomainPattern {
    /// Check a pattern.
    pub fn new(text: &str) -> Option<Self> {
        if text == "*" {
            return Some(Self::Any);
        }
        match text.strip_prefix("*.") {
            Some(parent) => DomainName::new(parent).map(Self::Below),
            None => DomainName::new(text).map(Self::Exact),
        }
    }

    /// Whether the name fits.
    pub fn matches(&self, name: &DomainName) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => exact == name,
            Self::Below(parent) => name
                .as_str()
                .strip_suffix(parent.as_str())
                .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
        }
    }
}
