//! The generated layer: what the packages' maintainer scripts would have made.
//!
//! Accounts, profiles and certificates are taken out of the packages themselves, so that they are
//! the distribution's.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::DefaultImageError;
use super::ustar::{Access, TarWriter};
use crate::debian::{DebPackage, FilesError, Package, for_each_file};

/// Linux's numbers for groups that own something here, from Debian's `group.master`.
const MAIL: u32 = 8;
const UTMP: u32 = 43;
const SHADOW: u32 = 42;
/// The longest file taken out of a package; account lists and certificates have a few KiB.
const MAX_FILE: u64 = 4 << 20;

const LINKS: &[(&str, &str)] = &[
    ("etc/mtab", "../proc/self/mounts"),
    ("etc/dpkg/origins/default", "debian"),
    ("usr/lib/ssl/cert.pem", "/etc/ssl/certs/ca-certificates.crt"),
    ("usr/local/man", "share/man"),
    ("usr/sbin/rmt", "rmt-tar"),
    ("var/lock", "/run/lock"),
    ("var/run", "/run"),
    ("var/spool/mail", "../mail"),
];

/// Names that go through `/etc/alternatives`: package, name, target.
const ALTERNATIVES: &[(&str, &str, &str)] = &[
    ("mawk", "awk", "/usr/bin/mawk"),
    ("mawk", "nawk", "/usr/bin/mawk"),
    ("debianutils", "which", "/usr/bin/which.debianutils"),
    ("less", "pager", "/bin/less"),
];

const DIRECTORIES: &[(&str, Access)] = &[
    ("dev", Access::DIRECTORY),
    ("etc", Access::DIRECTORY),
    ("etc/alternatives", Access::DIRECTORY),
    ("etc/dpkg", Access::DIRECTORY),
    ("etc/dpkg/origins", Access::DIRECTORY),
    ("etc/opt", Access::DIRECTORY),
    ("etc/ssl", Access::DIRECTORY),
    ("etc/ssl/certs", Access::DIRECTORY),
    ("home", Access::DIRECTORY),
    ("media", Access::DIRECTORY),
    ("mnt", Access::DIRECTORY),
    ("opt", Access::DIRECTORY),
    ("proc", Access::DIRECTORY),
    ("root", Access::root(0o700)),
    ("run", Access::DIRECTORY),
    ("run/lock", Access::root(0o1777)),
    ("srv", Access::DIRECTORY),
    ("sys", Access::DIRECTORY),
    ("tmp", Access::root(0o1777)),
    ("usr/lib/ssl", Access::DIRECTORY),
    ("usr/local", Access::DIRECTORY),
    ("usr/local/bin", Access::DIRECTORY),
    ("usr/local/etc", Access::DIRECTORY),
    ("usr/local/games", Access::DIRECTORY),
    ("usr/local/include", Access::DIRECTORY),
    ("usr/local/lib", Access::DIRECTORY),
    ("usr/local/sbin", Access::DIRECTORY),
    ("usr/local/share", Access::DIRECTORY),
    ("usr/local/share/man", Access::DIRECTORY),
    ("usr/local/src", Access::DIRECTORY),
    ("usr/share", Access::DIRECTORY),
    ("usr/share/kiln", Access::DIRECTORY),
    ("var", Access::DIRECTORY),
    ("var/log", Access::DIRECTORY),
    (
        "var/mail",
        Access {
            mode: 0o2775,
            group: MAIL,
        },
    ),
    ("var/opt", Access::DIRECTORY),
    ("var/spool", Access::DIRECTORY),
    ("var/tmp", Access::root(0o1777)),
];

const FILES: &[(&str, Access, &str)] = &[
    ("etc/hostname", Access::FILE, "kiln\n"),
    (
        "etc/hosts",
        Access::FILE,
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n",
    ),
    // Empty: made on first boot by those who want one, never shared between guests.
    ("etc/machine-id", Access::root(0o444), ""),
    ("etc/resolv.conf", Access::FILE, ""),
    (
        "etc/shells",
        Access::FILE,
        "/bin/sh\n/usr/bin/sh\n/bin/bash\n/usr/bin/bash\n/bin/rbash\n/usr/bin/rbash\n/bin/dash\n\
         /usr/bin/dash\n",
    ),
    (
        "var/log/btmp",
        Access {
            mode: 0o660,
            group: UTMP,
        },
        "",
    ),
    (
        "var/log/lastlog",
        Access {
            mode: 0o664,
            group: UTMP,
        },
        "",
    ),
    (
        "var/log/wtmp",
        Access {
            mode: 0o664,
            group: UTMP,
        },
        "",
    ),
];

/// Copies out of packages: package, file in it, name in the image.
const COPIES: &[(&str, &str, &str)] = &[
    (
        "base-files",
        "usr/share/base-files/dot.bashrc",
        "root/.bashrc",
    ),
    (
        "base-files",
        "usr/share/base-files/dot.profile",
        "root/.profile",
    ),
    ("base-files", "usr/share/base-files/profile", "etc/profile"),
    (
        "base-passwd",
        "usr/share/base-passwd/group.master",
        "etc/group",
    ),
    (
        "base-passwd",
        "usr/share/base-passwd/passwd.master",
        "etc/passwd",
    ),
    (
        "libc-bin",
        "usr/share/libc-bin/nsswitch.conf",
        "etc/nsswitch.conf",
    ),
];

/// Makes the layer for these packages, whose files are `debs` in the same order.
pub(super) fn layer(packages: &[Package], debs: &[PathBuf]) -> Result<Vec<u8>, DefaultImageError> {
    let sources = Sources::read(packages, debs)?;
    let mut tar = TarWriter::new();
    merged_usr(&mut tar);
    for (name, access) in DIRECTORIES {
        tar.directory(name, *access);
    }
    for (name, target) in LINKS {
        tar.symlink(name, target);
    }
    for (name, access, content) in FILES {
        tar.file(name, *access, content.as_bytes());
    }
    for (package, file, name) in COPIES {
        tar.file(name, Access::FILE, sources.get(package, file)?);
    }
    shadow(&mut tar, &sources)?;
    alternatives(&mut tar, packages);
    tar.file(
        "etc/ssl/certs/ca-certificates.crt",
        Access::FILE,
        &sources.certificates(),
    );
    tar.file(
        "usr/share/kiln/packages",
        Access::FILE,
        package_list(packages).as_bytes(),
    );
    Ok(tar.finish())
}

/// Debian has one tree under `/usr`; packages still name the old places.
fn merged_usr(tar: &mut TarWriter) {
    tar.directory("usr", Access::DIRECTORY);
    let mut names = vec!["bin", "lib", "sbin"];
    if cfg!(target_arch = "x86_64") {
        names.push("lib64");
    }
    for name in names {
        tar.directory(&format!("usr/{name}"), Access::DIRECTORY);
        tar.symlink(name, &format!("usr/{name}"));
    }
}

/// No account has a password, and none can be logged into by one.
fn shadow(tar: &mut TarWriter, sources: &Sources) -> Result<(), DefaultImageError> {
    let hidden = Access {
        mode: 0o640,
        group: SHADOW,
    };
    let names = |bytes: &[u8]| -> Vec<String> {
        let text = String::from_utf8_lossy(bytes);
        let name = |line: &str| line.split(':').next().unwrap_or_default().to_owned();
        text.lines()
            .map(name)
            .filter(|name| !name.is_empty())
            .collect()
    };
    let users = names(sources.get("base-passwd", "usr/share/base-passwd/passwd.master")?);
    let groups = names(sources.get("base-passwd", "usr/share/base-passwd/group.master")?);
    let user = |name: &String| format!("{name}:*:1:0:99999:7:::\n");
    let group = |name: &String| format!("{name}:*::\n");
    let shadow: String = users.iter().map(user).collect();
    let gshadow: String = groups.iter().map(group).collect();
    tar.file("etc/shadow", hidden, shadow.as_bytes());
    tar.file("etc/gshadow", hidden, gshadow.as_bytes());
    Ok(())
}

fn alternatives(tar: &mut TarWriter, packages: &[Package]) {
    let is_chosen = |name: &str| packages.iter().any(|package| package.name == name);
    for (_, name, target) in ALTERNATIVES
        .iter()
        .filter(|(package, ..)| is_chosen(package))
    {
        tar.symlink(&format!("etc/alternatives/{name}"), target);
        tar.symlink(
            &format!("usr/bin/{name}"),
            &format!("/etc/alternatives/{name}"),
        );
    }
}

fn package_list(packages: &[Package]) -> String {
    packages
        .iter()
        .map(|package| format!("{} {}\n", package.name, package.version))
        .collect()
}

/// The files that the layer is made from, by package and name.
struct Sources(BTreeMap<(String, String), Vec<u8>>);

impl Sources {
    fn read(packages: &[Package], debs: &[PathBuf]) -> Result<Self, DefaultImageError> {
        let mut files = BTreeMap::new();
        for (package, deb) in packages.iter().zip(debs) {
            let is_used = COPIES.iter().any(|(name, ..)| *name == package.name);
            if is_used || package.name == "ca-certificates" {
                read_package(&package.name, deb, &mut files)?;
            }
        }
        Ok(Self(files))
    }

    fn get(&self, package: &str, file: &str) -> Result<&[u8], DefaultImageError> {
        let content = self.0.get(&(package.to_owned(), file.to_owned()));
        content
            .map(Vec::as_slice)
            .ok_or_else(|| DefaultImageError::MissingFile {
                package: package.to_owned(),
                file: file.to_owned(),
            })
    }

    /// Every certificate after another, as `update-ca-certificates` does.
    fn certificates(&self) -> Vec<u8> {
        let mut bundle = Vec::new();
        for ((_, name), content) in &self.0 {
            if name.ends_with(".crt") {
                bundle.extend_from_slice(content.trim_ascii_end());
                bundle.push(b'\n');
            }
        }
        bundle
    }
}

fn read_package(
    package: &str,
    deb: &Path,
    files: &mut BTreeMap<(String, String), Vec<u8>>,
) -> Result<(), DefaultImageError> {
    let data = DebPackage::open(deb).and_then(DebPackage::data_tar);
    let data = data.map_err(DefaultImageError::Package)?;
    for_each_file(data, |path, content| {
        let is_certificate =
            path.starts_with("usr/share/ca-certificates/") && path.ends_with(".crt");
        let is_copied = COPIES
            .iter()
            .any(|(name, file, _)| *name == package && *file == path);
        if is_certificate || is_copied {
            let mut bytes = Vec::new();
            content
                .take(MAX_FILE)
                .read_to_end(&mut bytes)
                .map_err(FilesError::Read)?;
            files.insert((package.to_owned(), path.to_owned()), bytes);
        }
        Ok(())
    })
}
