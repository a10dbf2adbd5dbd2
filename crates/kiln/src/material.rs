//! What a guest boots from: kernel, initramfs, image, scratch disk; made once, then found.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_image::default_image::{self, DefaultImageError};
use kiln_image::initramfs::{InitramfsCache, InitramfsError};
use kiln_image::kernel::{KernelError, KernelSource, KernelStore};
use kiln_image::Progress;
use kiln_vmm::{Boot, EngineKind};

use crate::agent::AGENT;
use crate::config::Directories;
use crate::error::{Error, ErrorCode};
use crate::sandbox::SandboxSpec;

/// The name under which the image that needs no registry is known.
pub(crate) const DEFAULT_IMAGE: &str = "debian";

/// The stores behind every launch. Their calls block, so each launch takes a blocking thread.
#[derive(Debug)]
pub(crate) struct Materials {
    stores: Arc<Stores>,
}

#[derive(Debug)]
struct Stores {
    kernels: KernelStore,
    initramfs: InitramfsCache,
    images: ImageStore,
    apt: PathBuf,
}

/// What one guest boots from.
#[derive(Clone, Debug)]
pub(crate) struct Material {
    kernel: PathBuf,
    initramfs: PathBuf,
    pub(crate) rootfs: PathBuf,
    filesystem: Filesystem,
    pub(crate) image_id: String,
}

impl Material {
    /// How an engine boots it. The agent reads the `kiln.` arguments.
    pub(crate) fn boot(&self, engine: EngineKind, tmpfs: bool) -> Boot {
        // Firecracker ends when the guest resets; QEMU's microvm machine has no such keyboard
        // controller and ends when it powers off.
        let power_off = match engine {
            EngineKind::Firecracker => "reboot",
            EngineKind::Qemu | EngineKind::Fake => "poweroff",
        };
        Boot {
            kernel: self.kernel.clone(),
            initramfs: Some(self.initramfs.clone()),
            args: vec![
                "kiln.root=/dev/vda".to_owned(),
                format!("kiln.rootfs={}", self.filesystem.name()),
                format!("kiln.scratch={}", if tmpfs { "tmpfs" } else { "/dev/vdb" }),
                format!("kiln.poweroff={power_off}"),
            ],
        }
    }
}
