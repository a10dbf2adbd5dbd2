//! Who a command runs as, from the guest's own `/etc/passwd` and `/etc/group`.
//!
//! Parsed by hand: the agent is static, and the C library's lookups would load the guest's
//! plug-ins into process 1.

use std::cell::RefCell;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Larger files are cut off here.
const MAX_FILE: u64 = 4 * 1024 * 1024;
/// Larger texts are read each time: process 1 stays small.
const KEPT: usize = 64 * 1024;

/// An identity that a process takes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups.
    pub(crate) groups: Vec<u32>,
    pub(crate) name: String,
    pub(crate) home: PathBuf,
    pub(crate) shell: String,
}

/// There is no such user or group.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum UserError {
    NoSuchUser(String),
    NoSuchGroup(String),
}

impl std::fmt::Display for UserError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoSuchUser(name) => write!(f, "no user {name:?} in the guest"),
            Self::NoSuchGroup(name) => write!(f, "no group {name:?} in the guest"),
        }
    }
}

/// Who there is: what `passwd` and `group` of a directory say. Their text is kept until they change.
#[derive(Debug)]
pub(crate) struct Users {
    passwd: Text,
    group: Text,
}

impl Users {
    pub(crate) fn of(etc: &Path) -> Self {
        Self {
            passwd: Text::of(etc.join("passwd")),
            group: Text::of(etc.join("group")),
        }
    }

    /// Resolves `name`, `uid`, `name:group` or `uid:gid`; root for an empty text.
    pub(crate) fn resolve(&self, spec: &str) -> Result<User, UserError> {
        resolve_in(&self.passwd.read(), &self.group.read(), spec)
    }
}

/// A file's text, read again when the file is another one or was written to.
#[derive(Debug)]
struct Text {
    path: PathBuf,
    known: RefCell<Option<(Stamp, Rc<str>)>>,
}

/// Device, inode, size and change time, which no program can set.
type Stamp = (u64, u64, u64, i64, i64);

impl Text {
    fn of(path: PathBuf) -> Self {
        Self {
            path,
            known: RefCell::default(),
        }
    }

    /// A file that cannot be read is as good as none: numbers still work.
    fn read(&self) -> Rc<str> {
        let Ok(metadata) = std::fs::metadata(&self.path) else {
            return Rc::from("");
        };
        // Before the text is: a write in between is seen the next time.
        let stamp = (
            metadata.dev(),
            metadata.ino(),
            metadata.size(),
            metadata.ctime(),
            metadata.ctime_nsec(),
        );
        if let Some((known, text)) = &*self.known.borrow()
            && *known == stamp
        {
            return Rc::clone(text);
        }
        let text: Rc<str> = read(&self.path).into();
        if text.len() <= KEPT {
            self.known.replace(Some((stamp, Rc::clone(&text))));
        }
        text
    }
}

fn read(path: &Path) -> String {
    // Room for most files at once, instead of many small reads.
    let mut bytes = Vec::with_capacity(4096);
    if let Ok(file) = std::fs::File::open(path) {
        let _ = file.take(MAX_FILE).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn resolve_in(passwd: &str, group: &str, spec: &str) -> Result<User, UserError> {
    let (user, wanted_group) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|g| !g.is_empty())),
        None => (spec, None),
    };
    let mut found = find_user(passwd, if user.is_empty() { "0" } else { user })?;
    match wanted_group {
        Some(name) => found.gid = find_group(group, name)?,
        None => found.groups = groups_of(group, &found.name, found.gid),
    }
    Ok(found)
}

/// By name first: a name may consist of digits.
fn find_user(passwd: &str, wanted: &str) -> Result<User, UserError> {
    let entries = || passwd.lines().filter_map(passwd_entry);
    if let Some(user) = entries().find(|user| user.name == wanted) {
        return Ok(user);
    }
    let uid: u32 = number(wanted).ok_or_else(|| UserError::NoSuchUser(wanted.to_owned()))?;
    Ok(entries()
        .find(|user| user.uid == uid)
        .unwrap_or_else(|| unnamed(uid)))
}

/// A number without an entry is allowed, as in container runtimes.
fn unnamed(uid: u32) -> User {
    let root = uid == 0;
    User {
        uid,
        gid: 0,
        groups: Vec::new(),
        name: if root {
            "root".to_owned()
        } else {
            uid.to_string()
        },
        home: PathBuf::from(if root { "/root" } else { "/" }),
        shell: "/bin/sh".to_owned(),
    }
}

fn passwd_entry(line: &str) -> Option<User> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let (uid, gid) = (number(fields.nth(1)?)?, number(fields.next()?)?);
    let home = fields.nth(1).filter(|h| h.starts_with('/')).unwrap_or("/");
    let shell = fields.next().filter(|s| !s.is_empty()).unwrap_or("/bin/sh");
    Some(User {
        uid,
        gid,
        groups: Vec::new(),
        name: name.to_owned(),
        home: PathBuf::from(home),
        shell: shell.to_owned(),
    })
}

fn find_group(group: &str, wanted: &str) -> Result<u32, UserError> {
    group
        .lines()
        .filter_map(group_entry)
        .find(|(name, _, _)| *name == wanted)
        .map(|(_, gid, _)| gid)
        .or_else(|| number(wanted))
        .ok_or_else(|| UserError::NoSuchGroup(wanted.to_owned()))
}

fn groups_of(group: &str, user: &str, primary: u32) -> Vec<u32> {
    let mut groups: Vec<u32> = group
        .lines()
        .filter_map(group_entry)
        .filter(|(_, _, members)| members.split(',').any(|member| member == user))
        .map(|(_, gid, _)| gid)
        .collect();
    groups.insert(0, primary);
    groups.sort_unstable();
    groups.dedup();
    // The kernel takes no more (NGROUPS_MAX).
    groups.truncate(65_536);
    groups
}

fn group_entry(line: &str) -> Option<(&str, u32, &str)> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let gid = number(fields.nth(1)?)?;
    Some((name, gid, fields.next().unwrap_or_default()))
}

/// A user or group number. The largest stands for "none" in the kernel.
fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|&n| digits && n != u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n\
        broken line\n\
        app:x:1000:1001:App,,,:/home/app:/bin/zsh\n\
        4242:x:7:8::/seven:\n";
    const GROUP: &str = "root:x:0:\nwheel:x:10:app,other\ndocker:x:20:other,app\nstaff:x:50:x\n";

    fn user(spec: &str) -> Result<User, UserError> {
        resolve_in(PASSWD, GROUP, spec)
    }

    #[test]
    fn what_changes_is_read_again() {
        let etc = tempfile::tempdir().unwrap();
        let passwd = etc.path().join("passwd");
        let users = Users::of(etc.path());
        assert!(users.resolve("app").is_err());
        std::fs::write(&passwd, PASSWD).unwrap();
        assert_eq!(users.resolve("app").unwrap().uid, 1000);
        assert_eq!(users.resolve("app").unwrap().uid, 1000);
        let new = etc.path().join("passwd+");
        std::fs::write(&new, PASSWD.replace("1000:1001", "1005:1001")).unwrap();
        std::fs::rename(&new, &passwd).unwrap();
        assert_eq!(users.resolve("app").unwrap().uid, 1005);
        std::fs::remove_file(&passwd).unwrap();
        assert!(users.resolve("app").is_err());
    }

    #[test]
    fn a_name_brings_home_shell_and_groups() {
        let app = user("app").unwrap();
        assert_eq!((app.uid, app.gid), (1000, 1001));
        assert_eq!(app.groups, [10, 20, 1001]);
        assert_eq!(app.home, Path::new("/home/app"));
        assert_eq!(app.shell, "/bin/zsh");
    }

    #[test]
    fn nothing_is_root() {
        assert_eq!(user("").unwrap().name, "root");
        assert_eq!(resolve_in("", "", "").unwrap().home, Path::new("/root"));
    }

    #[test]
    fn numbers_work_with_and_without_an_entry() {
        assert_eq!(user("1000").unwrap().name, "app");
        let stranger = user("3000").unwrap();
        assert_eq!((stranger.uid, stranger.gid), (3000, 0));
        assert_eq!(stranger.home, Path::new("/"));
        assert_eq!(user("4242").unwrap().uid, 7, "a name of digits is a name");
    }

    #[test]
    fn an_explicit_group_is_the_only_one() {
        let app = user("app:staff").unwrap();
        assert_eq!((app.gid, app.groups), (50, vec![]));
        assert_eq!(user("1000:77").unwrap().gid, 77);
    }

    #[test]
    fn strangers_are_named() {
        assert_eq!(user("nobody"), Err(UserError::NoSuchUser("nobody".into())));
        assert_eq!(user("app:nope"), Err(UserError::NoSuchGroup("nope".into())));
        assert!(user("-1").is_err());
        assert!(user("4294967295").is_err());
        assert!(user("99999999999").is_err());
    }

    proptest! {
        #[test]
        fn any_file_is_survived(passwd in ".{0,200}", group in ".{0,200}", spec in ".{0,20}") {
            let _ = resolve_in(&passwd, &group, &spec);
        }
    }
}
