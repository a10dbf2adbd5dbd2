//! Where Kiln keeps its things: who can write there, what the file system can do, what is free.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{StatVfsMountFlags, statvfs};

use super::{Check, Facts, Level};
use crate::config::create_private;

/// Below this a first image does not fit.
const LEAST_FREE: u64 = 1 << 30;
/// Below this a few sandboxes that write fill it up.
const GOOD_FREE: u64 = 10 << 30;
const LEAST_INODES: u64 = 10_000;

pub(super) fn checks(facts: &Facts) -> Vec<Check> {
    vec![
        owner(facts, "data-dir", &facts.data_dir),
        owner(facts, "runtime-dir", &facts.runtime_dir),
        mount(facts),
        free_space(facts),
        reflinks(facts),
        runtime_in_memory(facts),
    ]
}

/// Others who can write there could replace what is run as root.
fn owner(facts: &Facts, name: &str, dir: &Path) -> Check {
    let Ok(metadata) = fs::metadata(dir) else {
        return Check::of(
            Level::Info,
            name,
            format!("{} is not made yet", dir.display()),
        )
        .remedy("it is made at first use")
        .fixable();
    };
    let mode = metadata.mode() & 0o7777;
    let finding = format!("{} (mode {mode:o}, user {})", dir.display(), metadata.uid());
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Check::of(Level::Failure, name, finding)
            .because("whoever owns it can replace what is run")
            .remedy(format!(
                "chown it to this user, or choose another: {}",
                dir.display()
            ));
    }
    if mode & 0o022 != 0 {
        return Check::of(Level::Failure, name, finding)
            .because("others can replace what is run")
            .remedy(format!("chmod go-w {}", dir.display()))
            .fixable();
    }
    match others_above(facts, dir) {
        Some(parent) => Check::of(Level::Warning, name, finding)
            .because("others can write to a directory above it, and put another in its place")
            .remedy(format!("chmod go-w {parent}")),
        None => Check::ok(name, finding),
    }
}

/// A directory above that others can write to, without the sticky bit that makes that harmless.
fn others_above(facts: &Facts, dir: &Path) -> Option<String> {
    let above = facts.existing(dir).ancestors().skip(1);
    let writable = |it: &&Path| {
        fs::metadata(it).is_ok_and(|it| it.mode() & 0o022 != 0 && it.mode() & 0o1000 == 0)
    };
    above
        .into_iter()
        .find(writable)
        .map(|it| it.display().to_string())
}

fn mount(facts: &Facts) -> Check {
    let name = "mount-options";
    let Ok(stat) = statvfs(facts.existing(&facts.data_dir)) else {
        return Check::of(Level::Warning, name, "the file system does not say");
    };
    let bad: Vec<_> = [
        (StatVfsMountFlags::NODEV, "nodev"),
        (StatVfsMountFlags::NOEXEC, "noexec"),
    ]
    .into_iter()
    .filter(|(flag, _)| stat.f_flag.contains(*flag))
    .map(|(_, name)| name)
    .collect();
    if stat.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Check::of(
            Level::Failure,
            name,
            "the data directory's file system is read-only",
        )
        .remedy("mount it writable, or choose another: --data-dir");
    }
    if bad.is_empty() {
        return Check::ok(
            name,
            "devices and programs can be used in the data directory",
        );
    }
    let level = if facts.is_root {
        Level::Failure
    } else {
        Level::Info
    };
    Check::of(
        level,
        name,
        format!("the data directory is mounted {}", bad.join(" and ")),
    )
    .because("jails are made there, with a device node and a program in each")
    .remedy("remount it without that, or choose another: --data-dir")
}

fn free_space(facts: &Facts) -> Check {
    let name = "disk";
    let Ok(stat) = statvfs(facts.existing(&facts.data_dir)) else {
        return Check::of(
            Level::Warning,
            name,
            "the file system does not say what is free",
        );
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let finding = format!("{} MiB and {} inodes free", free >> 20, stat.f_favail);
    // Some file systems count no inodes.
    let few_inodes = stat.f_files > 0 && stat.f_favail < LEAST_INODES;
    let level = match free {
        _ if few_inodes => Level::Failure,
        ..LEAST_FREE => Level::Failure,
        LEAST_FREE..GOOD_FREE => Level::Warning,
        _ => return Check::ok(name, finding),
    };
    Check::of(level, name, finding)
        .because("a disk that is full loses what guests write")
        .remedy("free some space: `kiln image prune`, `kiln gc`; or choose another: --data-dir")
}

fn reflinks(facts: &Facts) -> Check {
    let name = "reflinks";
    match try_reflink(facts.existing(&facts.data_dir)) {
        Some(true) => Check::ok(name, "files are copied without copying"),
        Some(false) => Check::of(
            Level::Info,
            name,
            "the file system copies files byte by byte",
        )
        .because("clones of volumes and snapshots take time and room"),
        None => Check::of(
            Level::Info,
            name,
            "not tried: the data directory cannot be written",
        ),
    }
}

fn try_reflink(dir: &Path) -> Option<bool> {
    let name = |part: &str| dir.join(format!(".kiln-doctor-{part}-{}", std::process::id()));
    let (from, to) = (name("from"), name("to"));
    let outcome = (|| {
        fs::write(&from, [0; 4096]).ok()?;
        let source = fs::File::open(&from).ok()?;
        let target = fs::File::create(&to).ok()?;
        Some(rustix::fs::ioctl_ficlone(&target, &source).is_ok())
    })();
    let _ = (fs::remove_file(&from), fs::remove_file(&to));
    outcome
}

/// `TMPFS_MAGIC` and `RAMFS_MAGIC`.
const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];

fn runtime_in_memory(facts: &Facts) -> Check {
    let name = "runtime-in-memory";
    let stat = rustix::fs::statfs(facts.existing(&facts.runtime_dir));
    #[allow(clippy::unnecessary_cast, reason = "another type on other processors")]
    match stat {
        Ok(stat) if IN_MEMORY.contains(&(stat.f_type as i64)) => {
            Check::ok(name, "sockets are on a file system in memory")
        }
        _ => Check::of(Level::Info, name, "the runtime directory is on a disk")
            .because("what ends with a boot is better kept in memory, as in /run"),
    }
}

/// Makes a directory that is missing, or takes others' rights to write from one that is ours.
pub(super) fn fix(facts: &Facts, name: &str) -> bool {
    let dir = match name {
        "data-dir" => &facts.data_dir,
        "runtime-dir" => &facts.runtime_dir,
        _ => return false,
    };
    match fs::metadata(dir) {
        Err(_) => create_private(dir).is_ok(),
        Ok(metadata) => {
            let mode = metadata.mode() & 0o7777 & !0o022;
            fs::set_permissions(dir, fs::Permissions::from_mode(mode)).is_ok()
        }
    }
}
