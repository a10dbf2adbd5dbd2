//! What a machine may have beside the ordinary; all of it is off by default.
//!
//! An engine that cannot provide an option refuses the machine and says which.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::jail::Protection;
use crate::nic::{MacAddress, RateLimit};

/// Options of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineOptions {
    /// Two threads for each core.
    pub smt: bool,
    /// A deprecated built-in CPU template of Firecracker's.
    pub cpu_template: Option<crate::firecracker::config::CpuTemplate>,
    /// Prepares for diff snapshots.
    pub track_dirty_pages: bool,
    /// Guest memory in reserved pages of 2 MiB.
    pub huge_pages: bool,
    /// A balloon, by which memory is taken back.
    pub balloon: Option<BalloonOptions>,
    /// Memory that can be added while the guest runs.
    pub memory_hotplug: Option<HotplugOptions>,
    /// A metadata service.
    pub metadata: Option<MetadataOptions>,
    /// Limit of the randomness that the guest takes.
    pub entropy_limit: Option<RateLimit>,
    /// Prepares for template snapshots on engines where memory has to be a file for that: this
    /// file, of the guest's size. It is the snapshot's memory afterwards.
    pub memory_file: Option<PathBuf>,
    /// Keeps memory where full snapshots can be made of it, on engines where that is not always so:
    /// in a file without a name, which goes with the machine.
    pub shared_memory: bool,
    /// An interface without a TAP: another program has the other end, a Unix stream socket with
    /// whole packets in QEMU's framing.
    pub user_network: Option<UserNetwork>,
    /// Protections that it is to run without. [`Machine::confinement`](crate::Machine::confinement)
    /// shows what holds.
    pub without: Vec<Protection>,
}

impl MachineOptions {
    /// Whether it is to run without this.
    pub(crate) fn lacks(&self, protection: Protection) -> bool {
        self.without.contains(&protection)
    }
}

/// An interface whose packets a program of this user carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserNetwork {
    /// Where that program listens.
    pub socket: PathBuf,
    /// The guest's hardware address.
    pub mac: MacAddress,
}

/// A balloon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonOptions {
    /// How much the guest gives back from the start.
    pub amount_mib: u32,
    /// Whether it gets it again when it has none left.
    pub deflate_on_oom: bool,
    /// How often the guest tells its statistics; 0 for never.
    pub stats_interval_s: u16,
    /// Whether the guest tells of free pages all the time.
    pub free_page_reporting: bool,
}

/// Memory that can be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HotplugOptions {
    /// The most of it.
    pub total_mib: u32,
    /// In which portions the host provides it; 128 when `None`.
    pub slot_mib: Option<u32>,
    /// In which portions the guest takes it; 2 when `None`.
    pub block_mib: Option<u32>,
}

/// A metadata service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MetadataOptions {
    /// Interfaces on which it answers.
    pub nics: Vec<String>,
    /// Whether requests go without a session's token: the deprecated protocol V1.
    pub without_token: bool,
    /// Its address; 169.254.169.254 when `None`.
    pub address: Option<Ipv4Addr>,
    /// Whether answers always have the form of another cloud's service.
    pub imds_compat: bool,
    /// What it tells from the start.
    pub content: Option<Value>,
}

/// Options of a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskOptions {
    /// Lets the engine tell the kernel that this is the root.
    pub root: bool,
    /// Partition of it that is the root.
    pub partuuid: Option<String>,
    /// Whether a flush of the guest's reaches the host's disk.
    pub writeback: bool,
    /// Reads and writes by io_uring.
    pub async_io: bool,
    /// Limit of what goes through it.
    pub limit: Option<RateLimit>,
}

/// A change of a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskChange {
    /// Which.
    pub id: String,
    /// Another file, or the same one whose size has changed.
    pub path: Option<PathBuf>,
    /// Another limit.
    pub limit: Option<RateLimit>,
}

/// A change of a network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NicChange {
    /// Which.
    pub id: String,
    /// Another limit of what the guest receives.
    pub rx_limit: Option<RateLimit>,
    /// Another limit of what it sends.
    pub tx_limit: Option<RateLimit>,
}

/// How a balloon is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonState {
    /// How much the guest shall give back.
    pub target_mib: u64,
    /// How much it gave back.
    pub actual_mib: u64,
    /// What it has free, in bytes, where it tells.
    pub free_bytes: Option<u64>,
    /// What it could have free, in bytes, where it tells.
    pub available_bytes: Option<u64>,
    /// What it has in all, in bytes, where it tells.
    pub total_bytes: Option<u64>,
}

/// How much of the memory that can be added a guest has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HotplugState {
    /// The most of it.
    pub total_mib: u64,
    /// How much it shall have.
    pub requested_mib: u64,
    /// How much it has.
    pub plugged_mib: u64,
}
