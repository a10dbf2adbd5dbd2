//! The table of programs: what, why, where from, for whom.

use super::Purpose;

/// How to see that a tool is there.
#[derive(Debug, Clone, Copy)]
pub(super) enum Probe {
    /// An executable in one of the program directories.
    Program(&'static str),
    /// A file, by its path from the root.
    File(&'static str),
}

/// A program that some chore needs.
#[derive(Debug)]
pub(super) struct Tool {
    pub(super) name: &'static str,
    pub(super) why: &'static str,
    /// Debian's and Ubuntu's name of the package that has it.
    pub(super) package: &'static str,
    pub(super) probe: Probe,
    needed_for: &'static [Purpose],
}

impl Tool {
    pub(super) fn serves(&self, purpose: Purpose) -> bool {
        self.needed_for.contains(&purpose)
    }
}

const fn program(
    name: &'static str,
    package: &'static str,
    needed_for: &'static [Purpose],
    why: &'static str,
) -> Tool {
    Tool {
        name,
        why,
        package,
        probe: Probe::Program(name),
        needed_for,
    }
}

use Purpose::{Bench, Demo, Lab, Test};

const EVERYTHING: &[Purpose] = &[Demo, Test, Lab, Bench];
const TEST_AND_LAB: &[Purpose] = &[Test, Lab];
const TEST_AND_BENCH: &[Purpose] = &[Test, Bench];
const ONLY_TEST: &[Purpose] = &[Test];

/// `qemu-utils` must never join this table: where a newer one comes from backports, apt cannot
/// install both in one go.
pub(super) const TOOLS: &[Tool] = &[
    program(
        "cc",
        "gcc",
        EVERYTHING,
        "links Rust programs and builds the bundled C libraries",
    ),
    Tool {
        name: "C library headers",
        why: "the bundled C libraries include them",
        package: "libc6-dev",
        probe: Probe::File("usr/include/stdlib.h"),
        needed_for: EVERYTHING,
    },
    program(
        "qemu-system-x86_64",
        "qemu-system-x86",
        EVERYTHING,
        "the engine of hosts without KVM",
    ),
    program("mke2fs", "e2fsprogs", EVERYTHING, "makes disk images"),
    program(
        "busybox",
        "busybox-static",
        TEST_AND_LAB,
        "small test systems and the lab's PID 1",
    ),
    program(
        "cpio",
        "cpio",
        TEST_AND_LAB,
        "second opinion on initramfs archives",
    ),
    program(
        "nft",
        "nftables",
        TEST_AND_LAB,
        "second opinion on firewall rules",
    ),
    program(
        "ip",
        "iproute2",
        TEST_AND_LAB,
        "second opinion on links and routes",
    ),
    program(
        "wg",
        "wireguard-tools",
        TEST_AND_LAB,
        "second opinion on tunnels",
    ),
    program(
        "setpriv",
        "util-linux",
        TEST_AND_LAB,
        "ties the lab's life to its starter's",
    ),
    program(
        "getfattr",
        "attr",
        ONLY_TEST,
        "second opinion on extended attributes",
    ),
    program(
        "getfacl",
        "acl",
        ONLY_TEST,
        "second opinion on access lists",
    ),
    program(
        "unsquashfs",
        "squashfs-tools",
        ONLY_TEST,
        "makes and reads squashfs test images",
    ),
    program(
        "skopeo",
        "skopeo",
        TEST_AND_BENCH,
        "moves test images between registries and archives",
    ),
    program(
        "docker-registry",
        "docker-registry",
        TEST_AND_BENCH,
        "a real registry to pull from",
    ),
    program(
        "openssl",
        "openssl",
        ONLY_TEST,
        "certificates for registries under test",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demo_asks_for_little_and_every_purpose_includes_it() {
        let demo: Vec<&str> = TOOLS
            .iter()
            .filter(|tool| tool.serves(Demo))
            .map(|tool| tool.package)
            .collect();
        assert_eq!(demo, ["gcc", "libc6-dev", "qemu-system-x86", "e2fsprogs"]);
        for tool in TOOLS.iter().filter(|tool| tool.serves(Demo)) {
            assert!(
                EVERYTHING.iter().all(|purpose| tool.serves(*purpose)),
                "{}",
                tool.name
            );
        }
    }

    #[test]
    fn qemu_utils_is_never_asked_for() {
        assert!(TOOLS.iter().all(|tool| tool.package != "qemu-utils"));
    }
}
