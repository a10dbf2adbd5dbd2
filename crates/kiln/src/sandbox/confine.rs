//! What is put around a sandbox's VMM: a user of its own, a jail, limits.

use std::ops::Range;
use std::path::Path;

use kiln_vmm::jail::JailSpec;

use crate::error::{Error, ErrorCode};
use crate::host::Shared;
use crate::store::Uids;

/// Users above those that systemd's containers take (`UIDS-GIDS.md`: 524288 to 1879048191) and
/// below what a signed 32-bit number holds: nobody is known to use them.
const FIRST_UID: u32 = 0x7000_0000;
/// Users of one data directory; as many sandboxes can be jailed.
const UIDS: u32 = 1 << 16;
/// Data directories of one host choose among so many ranges.
const RANGES: u32 = (1 << 31) / UIDS - FIRST_UID / UIDS;

/// Control group of all machines of a data directory, below the root of the hierarchy: named after its
/// networks' table, so that the groups of two of them are told apart.
pub(crate) fn cgroup_parent(data_dir: &Path) -> String {
    format!("{}.vm", crate::network::identity(data_dir).table())
}

/// The jail of a sandbox: always there for root, never for others, who cannot make one.
pub(crate) async fn jail(shared: &Shared, id: &str) -> Result<Option<JailSpec>, Error> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let (id, range) = (id.to_owned(), uids_of(&shared.config.data_dir));
    let uid = shared
        .store
        .write(move |tx| Uids(tx).take(&id, range))
        .await?
        .ok_or_else(no_uid)?;
    Ok(Some(JailSpec {
        uid,
        gid: uid,
        base_dir: shared.directories.jails(),
        cgroup_parent: cgroup_parent(&shared.config.data_dir),
    }))
}

/// The users of a data directory. Two directories of one host do not know of each other: their
/// paths choose, and meet in one of 4,096 cases.
fn uids_of(data_dir: &Path) -> Range<u32> {
    let number = kiln_net::Identity::number(data_dir) % u64::from(RANGES);
    let start = FIRST_UID + u32::try_from(number).unwrap_or_default() * UIDS;
    start..start + UIDS
}

fn no_uid() -> Error {
    let message = format!("all {UIDS} users for jails are taken by sandboxes");
    Error::new(ErrorCode::Host, message).with_hint("remove sandboxes that are not needed any more")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_stable_apart_and_where_nobody_is() {
        let ranges: Vec<_> = (0..200)
            .map(|number| uids_of(Path::new(&format!("/var/lib/kiln-{number}"))))
            .collect();
        for range in &ranges {
            assert!(range.start >= FIRST_UID && i32::try_from(range.end - 1).is_ok());
            assert_eq!(range.start % UIDS, 0);
        }
        let distinct: std::collections::HashSet<_> =
            ranges.iter().map(|range| range.start).collect();
        assert!(distinct.len() > 180, "{} of 200", distinct.len());
        assert_eq!(uids_of(Path::new("/a")), uids_of(Path::new("/a")));
    }
}
