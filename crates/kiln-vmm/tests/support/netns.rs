//! Network namespaces for tests, by another tool than the code under test uses.

use std::path::{Path, PathBuf};

/// A network namespace with a TAP that belongs to `user`; removed when dropped.
pub(crate) struct Netns {
    name: String,
}

impl Netns {
    pub(crate) fn new(name: String, user: u32) -> Result<Self, String> {
        ip(&["netns", "add", &name])?;
        let netns = Self { name };
        let user = user.to_string();
        netns.ip(&["tuntap", "add", "kt0", "mode", "tap", "user", &user])?;
        netns.ip(&["link", "set", "kt0", "up"])?;
        Ok(netns)
    }

    pub(crate) fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    pub(crate) fn ip(&self, args: &[&str]) -> Result<String, String> {
        ip(&[&["-n", &self.name], args].concat())
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = ip(&["netns", "del", &self.name]);
    }
}

fn ip(args: &[&str]) -> Result<String, String> {
    let output = std::process::Command::new("ip")
        .args(args)
        .output()
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}
