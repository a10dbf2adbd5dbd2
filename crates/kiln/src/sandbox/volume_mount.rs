//! A volume that a sandbox wants, and where. Pure: no I/O.

use kiln_image::VolumeName;
use serde::{Deserialize, Serialize};

/// Most volumes of a sandbox: the engines have room for more disks, and the kernel's command line,
/// which names their places, for no longer ones.
const MAX_VOLUMES: usize = 8;
/// Longest path of a mount point.
const MAX_PATH: usize = 100;
/// What the guest's kernel and agent own.
const KEPT: [&str; 4] = ["/dev", "/proc", "/run", "/sys"];

/// A volume in a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeMount {
    /// The volume's name.
    pub volume: String,
    /// Where the guest has it: an absolute path of letters, digits, `.`, `_`, `-`.
    pub path: String,
    /// Whether the guest can only read it; then others may have it too.
    #[serde(default)]
    pub read_only: bool,
}

/// What is wrong with the volumes of a sandbox.
pub(super) fn faults(mounts: &[VolumeMount]) -> Vec<String> {
    let mut faults = Vec::new();
    if mounts.len() > MAX_VOLUMES {
        faults.push(format!(
            "volumes are {}, more than {MAX_VOLUMES}",
            mounts.len()
        ));
    }
    for (place, mount) in mounts.iter().enumerate() {
        if mount.volume.parse::<VolumeName>().is_err() {
            faults.push(format!(
                "volume {:?} is not the name of a volume",
                mount.volume
            ));
        }
        if !is_mount_point(&mount.path) {
            faults.push(format!(
                "volume path {:?} is not an absolute path of letters, digits, `.`, `_`, `-`, or \
                 the system's own",
                mount.path
            ));
        }
        for other in &mounts[..place] {
            if other.volume == mount.volume || other.path == mount.path {
                faults.push(format!(
                    "volumes {:?} at {:?} and {:?} at {:?} are in each other's way",
                    other.volume, other.path, mount.volume, mount.path
                ));
            }
        }
    }
    faults
}

fn is_mount_point(path: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let is_name = |name: &str| !["", ".", ".."].contains(&name) && name.bytes().all(plain);
    let kept = |own: &str| path == own || path.starts_with(&format!("{own}/"));
    path.len() <= MAX_PATH
        && !KEPT.into_iter().any(kept)
        && path
            .strip_prefix('/')
            .is_some_and(|rest| rest.split('/').all(is_name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(volume: &str, path: &str) -> VolumeMount {
        VolumeMount {
            volume: volume.into(),
            path: path.into(),
            read_only: false,
        }
    }

    #[test]
    fn plain_volumes_are_taken_and_others_named() {
        assert!(faults(&[mount("a", "/data"), mount("b", "/srv/x.y")]).is_empty());
        for (volume, path) in [
            ("A", "/data"),
            ("a/b", "/data"),
            ("a", "data"),
            ("a", "/"),
            ("a", "/x/../y"),
            ("a", "/x//y"),
            ("a", "/x y"),
            ("a", "/x:ro"),
            ("a", "/proc"),
            ("a", "/dev/x"),
            ("a", "/x/"),
            ("a", &"/x".repeat(60)),
        ] {
            assert_eq!(faults(&[mount(volume, path)]).len(), 1, "{volume} {path}");
        }
        assert_eq!(faults(&[mount("a", "/x"), mount("b", "/x")]).len(), 1);
        assert_eq!(faults(&[mount("a", "/x"), mount("a", "/y")]).len(), 1);
        let many: Vec<_> = (0..9)
            .map(|i| mount(&format!("v{i}"), &format!("/{i}")))
            .collect();
        assert_eq!(faults(&many).len(), 1);
    }

    proptest::proptest! {
        #[test]
        fn no_path_says_more_on_a_command_line_than_a_path(path in ".{0,120}") {
            if is_mount_point(&path) {
                proptest::prop_assert!(!path.contains([' ', ':', '"', '=', '\n', ',']));
                proptest::prop_assert!(path.split('/').all(|name| name != ".."));
            }
        }
    }
}
