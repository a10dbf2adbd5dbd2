//! Whose networks these are: one prefix, one table name and one tag per data directory, so that two
//! of them on one host never touch each other's. Pure.

use std::path::Path;

use crate::subnet::{InterfaceName, SubnetError, base36, stable_hash};

/// The names that belong to one data directory.
///
/// All prefixes are three characters long, so none is the beginning of another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    prefix: String,
    table: String,
    tag: String,
}

impl Identity {
    /// The names of the usual data directory: interfaces `kln…`, table `kiln`.
    pub fn standard() -> Self {
        Self {
            prefix: "kln".to_owned(),
            table: "kiln".to_owned(),
            tag: "kiln:main".to_owned(),
        }
    }

    /// The names of any other data directory, derived from its path.
    pub fn of_directory(path: &Path) -> Self {
        let hash = Self::number(path);
        let (pair, long) = (base36(hash % (36 * 36), 2), base36(hash, 13));
        // `kln` is taken by the usual directory.
        let pair = if pair == "ln" { "l0".to_owned() } else { pair };
        Self {
            prefix: format!("k{pair}"),
            table: format!("kiln_{long}"),
            tag: format!("kiln:{long}"),
        }
    }

    /// The number that stands for a data directory among those of one host: spread evenly, and the
    /// same for ever.
    pub fn number(path: &Path) -> u64 {
        stable_hash(&[path.as_os_str().as_encoded_bytes()])
    }

    /// What all interface names begin with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The nftables table.
    pub fn table(&self) -> &str {
        &self.table
    }

    /// What says on a link or a table whose it is.
    pub(crate) fn tag(&self) -> &str {
        &self.tag
    }

    /// A sandbox's interface on the host: slot, then three random characters, so that one that is
    /// still being freed never collides with the next owner's.
    pub(crate) fn veth(&self, slot: u32, random: u64) -> Result<InterfaceName, SubnetError> {
        let random = base36(random % (36 * 36 * 36), 3);
        InterfaceName::new(format!(
            "{}{}-{random}",
            self.prefix,
            base36(slot.into(), 4)
        ))
    }

    /// A bridge. Its letter cannot begin a slot (see [`crate::network::MAX_SLOT`]).
    pub(crate) fn bridge(&self, slot: u32) -> Result<InterfaceName, SubnetError> {
        InterfaceName::new(format!("{}br{}", self.prefix, base36(slot.into(), 4)))
    }

    /// What the TAPs of bridge networks begin with.
    pub(crate) fn tap_prefix(&self) -> String {
        format!("{}t", self.prefix)
    }

    /// Whether a link is ours: by name and by tag.
    pub(crate) fn owns(&self, name: &str, alias: Option<&str>) -> bool {
        let tagged = alias.and_then(|alias| alias.strip_prefix(self.tag.as_str()));
        name.starts_with(&self.prefix)
            && tagged.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// The tag of a link.
    pub(crate) fn alias(&self, what: &Label) -> String {
        format!("{}/{}", self.tag, what.0)
    }
}

/// What a link belongs to, for people: printable, at most 64 characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label(String);

impl Label {
    /// Characters that would upset a terminal become `_`; what is too long is cut.
    pub fn new(text: &str) -> Self {
        let printable = |c: char| if c.is_ascii_graphic() { c } else { '_' };
        Self(text.chars().take(64).map(printable).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_do_not_share_names() {
        let (a, b) = (
            Identity::of_directory(Path::new("/a")),
            Identity::of_directory(Path::new("/b")),
        );
        for (left, right) in [(&a, &b), (&a, &Identity::standard())] {
            assert_ne!(left.prefix(), right.prefix());
            assert_ne!(left.table(), right.table());
            assert_ne!(left.tag(), right.tag());
        }
    }

    #[test]
    fn labels_are_short_and_printable() {
        let label = Label::new(&"\u{1b}[31m ".repeat(40));
        let alias = Identity::standard().alias(&label);
        assert!(
            alias.starts_with("kiln:main/_[31m__") && alias.len() < 100,
            "{alias}"
        );
    }

    #[test]
    fn only_tagged_links_are_ours() {
        let us = Identity::standard();
        assert!(us.owns("kln0001-abc", Some("kiln:main/veth")));
        assert!(!us.owns("kln0001-abc", None));
        assert!(!us.owns("eth0", Some("kiln:main/veth")));
        assert!(!us.owns("kln0001-abc", Some("kiln:mainframe")));
        assert!(
            us.veth(crate::network::MAX_SLOT, u64::MAX)
                .unwrap()
                .as_str()
                .len()
                <= 15
        );
    }
}
