//! Which path a copy gets, by the rules of `cp -r`. Pure.

use kiln_api::FileKind;

use super::CopyError;

/// One side of a copy, as typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A path on this machine.
    Local(String),
    /// A path in a sandbox.
    Sandbox {
        /// Id, unique prefix of an id, or name.
        key: String,
        /// Absolute.
        path: String,
    },
}

impl Place {
    /// `SANDBOX:/PATH` is in a sandbox; what begins like a path, or has no colon, is here.
    pub(crate) fn parse(text: &str) -> Self {
        let local = || Self::Local(text.to_owned());
        if text.starts_with(['/', '.']) {
            return local();
        }
        match text.split_once(':') {
            Some((key, path)) if !key.is_empty() && !key.contains('/') => Self::Sandbox {
                key: key.to_owned(),
                path: from_root(path),
            },
            _ => local(),
        }
    }
}

/// A path in a guest: one that is not absolute is taken from `/`.
pub(crate) fn from_root(path: &str) -> String {
    if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    }
}

/// What is copied.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source<'a> {
    /// As typed; `…/.` means what is in a directory.
    pub(crate) path: &'a str,
    pub(crate) kind: FileKind,
}

/// Where it should go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    /// As typed.
    pub(crate) path: &'a str,
    /// What is there, links followed.
    pub(crate) kind: Option<FileKind>,
}

/// The path that the root of the copy gets.
pub(crate) fn target(from: Source<'_>, to: Target<'_>) -> Result<String, CopyError> {
    let is_directory = from.kind == FileKind::Directory;
    let refused = |why: String| Err(CopyError::Destination(why));
    match to.kind {
        Some(FileKind::Directory) => match name(from.path) {
            Some(name) => Ok(format!("{}/{name}", to.path.trim_end_matches('/'))),
            None if is_directory => Ok(to.path.to_owned()),
            None => refused(format!("{:?} is no directory", from.path)),
        },
        Some(_) if is_directory => refused(format!("{:?} is there and no directory", to.path)),
        None if to.path.ends_with('/') && !is_directory => {
            refused(format!("there is no directory {:?}", to.path))
        }
        Some(_) | None => Ok(to.path.trim_end_matches('/').to_owned()),
    }
}

/// The last part of a path; none of `/`, `.`, `..` and `…/.`, of which the contents are meant.
fn name(path: &str) -> Option<&str> {
    let name = path.trim_end_matches('/').rsplit('/').next()?;
    (!matches!(name, "" | "." | "..")).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(
        from: &str,
        kind: FileKind,
        path: &str,
        there: Option<FileKind>,
    ) -> Result<String, CopyError> {
        target(Source { path: from, kind }, Target { path, kind: there })
    }

    #[test]
    fn sides_are_told_apart() {
        let sandbox = |key: &str, path: &str| Place::Sandbox {
            key: key.into(),
            path: path.into(),
        };
        let local = |path: &str| Place::Local(path.into());
        assert_eq!(Place::parse("web:/etc/hosts"), sandbox("web", "/etc/hosts"));
        assert_eq!(Place::parse("web:tmp"), sandbox("web", "/tmp"));
        assert_eq!(Place::parse("web:"), sandbox("web", "/"));
        for text in ["./a:b", "/a:b", "a", "a/b:c", ":x", "../x"] {
            assert_eq!(Place::parse(text), local(text));
        }
    }

    #[test]
    fn b3_4_a_copy_lands_where_cp_would_put_it() {
        use FileKind::{Directory, File};
        let ok = |from, kind, path, there| to(from, kind, path, there).unwrap();
        assert_eq!(ok("a/f", File, "/d", Some(Directory)), "/d/f");
        assert_eq!(ok("a/f", File, "/d/", Some(Directory)), "/d/f");
        assert_eq!(ok("f", File, "/new", None), "/new");
        assert_eq!(ok("f", File, "/old", Some(File)), "/old");
        assert_eq!(ok("t", Directory, "/d", Some(Directory)), "/d/t");
        assert_eq!(ok("t/", Directory, "/d", Some(Directory)), "/d/t");
        assert_eq!(ok("t", Directory, "/new", None), "/new");
        assert_eq!(ok("t", Directory, "/new/", None), "/new");
        assert_eq!(ok("t/.", Directory, "/d", Some(Directory)), "/d");
        assert_eq!(ok(".", Directory, "/d", Some(Directory)), "/d");
        assert_eq!(ok("t/.", Directory, "/new", None), "/new");
        assert!(to("t", Directory, "/f", Some(File)).is_err());
        assert!(to("f", File, "/new/", None).is_err());
    }
}
