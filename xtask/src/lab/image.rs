//! The two things the lab boots from: a small initramfs that finds the disk, and the disk.
//!
//! The root is a real filesystem, not the initramfs: a jailer pivots its root, which Linux refuses
//! where the root is the initramfs.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Options;
use super::kernel::LabKernel;
use super::programs::{self, ProgramsError};
use super::tree::{Tree, TreeError};
use crate::step::{self, StepError};

/// Why the disk or the initramfs cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    #[error(transparent)]
    Programs(#[from] ProgramsError),
    #[error(transparent)]
    Copy(#[from] TreeError),
    #[error(transparent)]
    Tool(#[from] StepError),
    #[error("cannot use {path}")]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// A file or directory of the host that goes in.
#[derive(Debug)]
pub(super) struct Artefact {
    pub(super) host: PathBuf,
    pub(super) guest: PathBuf,
}

impl Artefact {
    /// From `HOST[:GUEST]`; without a place in the guest it keeps its own, made absolute.
    pub(super) fn from_argument(argument: &str) -> Self {
        let (host, guest) = argument.split_once(':').unwrap_or((argument, argument));
        let absolute = std::path::absolute(guest).unwrap_or_else(|_| PathBuf::from(guest));
        Self {
            host: PathBuf::from(host),
            guest: absolute,
        }
    }
}

/// Loaded when the lab starts; the kernel loads others on demand.
const LOADED: &[&str] = &[
    "irqbypass",
    "kvm",
    "kvm-amd",
    "virtio_console",
    "tun",
    "tap",
    "veth",
    "bridge",
    "br_netfilter",
    "dummy",
    "overlay",
    "squashfs",
    "erofs",
    "loop",
    "wireguard",
    "nf_tables",
    "nft_ct",
    "nft_nat",
    "nft_masq",
    "nft_chain_nat",
    "nf_conntrack",
    "vhost_net",
    "vhost_vsock",
    "vsock_loopback",
    "sch_tbf",
    "sch_ingress",
    "cls_matchall",
    "act_police",
];

/// Taken along whole, for loading on demand.
const WHOLE_DIRECTORIES: &[&str] = &[
    "kernel/net/netfilter/",
    "kernel/net/ipv4/",
    "kernel/net/ipv6/",
    "kernel/net/bridge/",
    "kernel/net/sched/",
];

/// In the order in which they have to be loaded for the disk to appear.
const DISK_MODULES: &[&str] = &["virtio_ring", "virtio", "virtio_mmio", "virtio_blk"];

/// Makes the root disk: a sparse ext4 with everything in it.
pub(super) fn disk(
    dir: &Path,
    kernel: &LabKernel,
    artefacts: &[Artefact],
    options: &Options,
) -> Result<PathBuf, ImageError> {
    let tree = Tree::create(dir.join("root"))?;
    programs::gather(&tree)?;
    modules(&tree, kernel)?;
    for artefact in artefacts {
        tree.copy(&artefact.host, &artefact.guest)?;
        if artefact.host.is_file() {
            programs::libraries(&tree, &artefact.host)?;
        }
    }
    configuration(&tree, &options.command)?;
    let disk = filesystem(dir, &tree, options.disk_mib)?;
    // The tree is on the disk now.
    std::fs::remove_dir_all(tree.root()).map_err(|source| ImageError::File {
        path: tree.root().to_owned(),
        source,
    })?;
    Ok(disk)
}

/// Makes the initramfs: busybox, the modules that make the disk appear, and a script.
pub(super) fn initrd(dir: &Path, kernel: &LabKernel) -> Result<PathBuf, ImageError> {
    let root = dir.join("initrd");
    let tree = Tree::create(root.clone())?;
    let dirs = step::program_dirs();
    let busybox = step::find_program("busybox", &dirs).ok_or(ProgramsError::Missing("busybox"))?;
    tree.copy(&busybox, Path::new("usr/bin/busybox"))?;
    tree.text(include_str!("initrd.sh"), Path::new("init"), 0o755)?;
    let index = module_index(kernel)?;
    let mut order = String::new();
    for name in DISK_MODULES {
        if let Some((path, _)) = index.iter().find(|(path, _)| stem(path) == stem(name)) {
            let guest = format!("modules/{name}.ko");
            tree.copy(&kernel.modules().join(path), Path::new(&guest))?;
            order.push_str(&format!("/{guest}\n"));
        }
    }
    tree.text(&order, Path::new("modules/order"), 0o644)?;
    archive(&root, dir.join("initrd.cpio"))
}

/// What the lab needs to know of itself, and the command.
fn configuration(tree: &Tree, command: &[String]) -> Result<(), TreeError> {
    let words: Vec<String> = command.iter().map(|word| step::quoted(word)).collect();
    let etc = [
        (
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/:/bin/false\n",
        ),
        ("etc/group", "root:x:0:\nkvm:x:104:\nnogroup:x:65534:\n"),
        ("etc/hosts", "127.0.0.1 localhost lab\n::1 localhost\n"),
        (
            "etc/nsswitch.conf",
            "passwd: files\ngroup: files\nhosts: files dns\n",
        ),
        ("etc/os-release", "NAME=\"Kiln lab\"\nID=kiln-lab\n"),
    ];
    for (guest, text) in etc {
        tree.text(text, Path::new(guest), 0o644)?;
    }
    tree.text(
        &format!("{}\n", LOADED.join("\n")),
        Path::new("lab/modules"),
        0o644,
    )?;
    tree.text(
        &format!("exec {}\n", words.join(" ")),
        Path::new("lab/command"),
        0o644,
    )?;
    tree.text(include_str!("init.sh"), Path::new("lab/init"), 0o755)
}

/// Copies the modules that the lab loads, what these need, and the indexes of them all.
fn modules(tree: &Tree, kernel: &LabKernel) -> Result<(), ImageError> {
    let index = module_index(kernel)?;
    let guest = Path::new("usr/lib/modules").join(&kernel.release);
    for module in wanted(&index) {
        tree.copy(&kernel.modules().join(module), &guest.join(module))?;
    }
    for name in [
        "modules.dep",
        "modules.alias",
        "modules.symbols",
        "modules.builtin",
        "modules.order",
    ] {
        let host = kernel.modules().join(name);
        if host.is_file() {
            tree.copy(&host, &guest.join(name))?;
        }
    }
    Ok(())
}

/// A module's path and the paths of those that it needs, from `modules.dep`.
type ModuleIndex = Vec<(String, Vec<String>)>;

fn module_index(kernel: &LabKernel) -> Result<ModuleIndex, ImageError> {
    let path = kernel.modules().join("modules.dep");
    let text = std::fs::read_to_string(&path).map_err(|source| ImageError::File {
        path: path.clone(),
        source,
    })?;
    Ok(parse_index(&text))
}

fn parse_index(text: &str) -> ModuleIndex {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(path, needs)| {
            (
                path.to_owned(),
                needs.split_whitespace().map(str::to_owned).collect(),
            )
        })
        .collect()
}

/// busybox's depmod lists only direct needs, so they are followed to the end.
fn wanted(index: &ModuleIndex) -> BTreeSet<&str> {
    let listed = |path: &str| {
        LOADED.iter().any(|name| stem(name) == stem(path))
            || WHOLE_DIRECTORIES.iter().any(|dir| path.starts_with(dir))
    };
    let mut waiting: Vec<&str> = index
        .iter()
        .map(|(path, _)| path.as_str())
        .filter(|path| listed(path))
        .collect();
    let mut wanted = BTreeSet::new();
    while let Some(path) = waiting.pop() {
        if !wanted.insert(path) {
            continue;
        }
        if let Some((_, needs)) = index.iter().find(|(listed, _)| listed == path) {
            waiting.extend(needs.iter().map(String::as_str));
        }
    }
    wanted
}

/// `kernel/drivers/block/virtio_blk.ko.xz` → `virtio_blk`; a dash is as good as an underscore.
fn stem(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.split('.').next().unwrap_or(name).replace('-', "_")
}

fn filesystem(dir: &Path, tree: &Tree, free_mib: u64) -> Result<PathBuf, ImageError> {
    let used = step::capture(
        Command::new("du")
            .args(["-sm", "--apparent-size"])
            .arg(tree.root()),
    )?;
    let used_mib: u64 = String::from_utf8_lossy(&used)
        .split_whitespace()
        .next()
        .and_then(|number| number.parse().ok())
        .unwrap_or(0);
    let disk = dir.join("disk.ext4");
    let mut make = Command::new("mke2fs");
    make.env(
        "PATH",
        std::env::join_paths(step::program_dirs()).unwrap_or_default(),
    )
    .args(["-q", "-F", "-t", "ext4", "-m", "0", "-O", "^has_journal"])
    .args(["-E", "lazy_itable_init=1,root_owner=0:0", "-d"])
    .arg(tree.root())
    .arg(&disk)
    .arg(format!("{}M", used_mib + used_mib / 4 + free_mib));
    step::capture(&mut make)?;
    Ok(disk)
}

fn archive(root: &Path, place: PathBuf) -> Result<PathBuf, ImageError> {
    let failed = |source| ImageError::File {
        path: place.clone(),
        source,
    };
    let names = step::capture(
        Command::new("find")
            .arg(".")
            .arg("-print0")
            .current_dir(root),
    )?;
    let mut cpio = Command::new("cpio");
    cpio.args([
        "--quiet",
        "--null",
        "--create",
        "--format=newc",
        "--owner=0:0",
    ])
    .current_dir(root)
    .stdin(Stdio::piped())
    .stdout(File::create(&place).map_err(failed)?);
    let mut child = cpio.spawn().map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(&names).map_err(failed)?;
    }
    let status = child.wait().map_err(failed)?;
    if status.success() {
        return Ok(place);
    }
    Err(ImageError::Tool(StepError::Failed {
        command: step::shown(&cpio),
        status,
        output: String::new(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_wanted_with_all_that_they_need() {
        let index = parse_index(
            "kernel/arch/x86/kvm/kvm-amd.ko: kernel/arch/x86/kvm/kvm.ko\n\
             kernel/arch/x86/kvm/kvm.ko: kernel/virt/lib/irqbypass.ko\n\
             kernel/virt/lib/irqbypass.ko:\n\
             kernel/net/netfilter/nft_log.ko: kernel/net/netfilter/nf_log.ko\n\
             kernel/net/netfilter/nf_log.ko:\n\
             kernel/drivers/gpu/drm/drm.ko:\n",
        );
        let names: Vec<String> = wanted(&index).into_iter().map(stem).collect();
        assert_eq!(names, ["kvm_amd", "kvm", "nf_log", "nft_log", "irqbypass"]);
    }

    #[test]
    fn module_names_are_compared_as_the_kernel_does() {
        assert_eq!(stem("kernel/drivers/block/virtio_blk.ko.xz"), "virtio_blk");
        assert_eq!(stem("kvm-amd"), "kvm_amd");
    }

    #[test]
    fn an_added_file_keeps_its_place_or_gets_the_one_given() {
        let added = Artefact::from_argument("/etc/hostname");
        assert_eq!(added.guest, Path::new("/etc/hostname"));
        let added = Artefact::from_argument("here/data:/srv/data");
        assert_eq!(
            (added.host.as_path(), added.guest.as_path()),
            (Path::new("here/data"), Path::new("/srv/data"))
        );
    }
}
