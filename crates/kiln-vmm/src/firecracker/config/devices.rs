//! Disks, interfaces, the vsock, and small devices.

use std::borrow::Cow;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::request::{CONFIGURE, Request, Verb, request};
use crate::firecracker::version::Feature;
use crate::nic::{MacAddress, RateLimit, TokenBucket};

/// `PUT /drives/{drive_id}`; while the guest runs, the addition of one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Drive {
    /// Name of the drive.
    pub drive_id: String,
    /// Makes Firecracker add `root=` to the kernel's arguments.
    pub is_root_device: bool,
    /// Host file or block device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_on_host: Option<PathBuf>,
    /// Whether the guest may only read it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub is_read_only: Option<bool>,
    /// Partition that is the root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partuuid: Option<String>,
    /// What a flush of the guest's does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_type: Option<CacheType>,
    /// Limit of what goes through it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimit>,
    /// How the host reads and writes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_engine: Option<IoEngine>,
    /// Socket of a vhost-user device in place of a file (preview).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
}
request!(Drive, Put, "/drives" / drive_id);

/// What a flush of the guest's does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum CacheType {
    /// Nothing: the host's page cache is trusted.
    Unsafe,
    /// It reaches the host's disk.
    Writeback,
}

/// How the host reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum IoEngine {
    /// One after the other.
    Sync,
    /// By io_uring (preview).
    Async,
}

/// `PATCH /drives/{drive_id}`: without anything else, a vhost-user device is read again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DriveChange {
    /// Name of the drive.
    pub drive_id: String,
    /// Another file; also the same one, when its size has changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_on_host: Option<PathBuf>,
    /// Other limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimit>,
}
request!(DriveChange, Patch, "/drives" / drive_id);

/// `DELETE /drives/{drive_id}` while the guest runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DriveRemoval {
    /// Name of the drive.
    #[serde(skip)]
    pub drive_id: String,
}
request!(
    DriveRemoval,
    Delete,
    "/drives" / drive_id,
    needs | _it | [(true, Feature::DeviceHotplug)]
);

/// `PUT /pmem/{id}`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Pmem {
    /// Name of the device.
    pub id: String,
    /// Host file.
    pub path_on_host: PathBuf,
    /// Makes it the root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root_device: Option<bool>,
    /// Whether the guest may only read it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
    /// Limit of what goes through it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimit>,
}
request!(
    Pmem,
    Put,
    "/pmem" / id,
    needs
        | it
        | [
            (true, Feature::Pmem),
            (it.rate_limiter.is_some(), Feature::PmemRateLimiter),
        ]
);

/// `PATCH /pmem/{id}`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PmemChange {
    /// Name of the device.
    pub id: String,
    /// Other limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimit>,
}
request!(
    PmemChange,
    Patch,
    "/pmem" / id,
    needs | _it | [(true, Feature::PmemRateLimiter)]
);

/// `DELETE /pmem/{id}` while the guest runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PmemRemoval {
    /// Name of the device.
    #[serde(skip)]
    pub id: String,
}
request!(
    PmemRemoval,
    Delete,
    "/pmem" / id,
    needs | _it | [(true, Feature::DeviceHotplug)]
);

/// `PUT /network-interfaces/{iface_id}`; while the guest runs, the addition of one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NetworkInterface {
    /// Name of the interface.
    pub iface_id: String,
    /// An existing TAP.
    pub host_dev_name: String,
    /// The guest's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest_mac: Option<MacAddress>,
    /// Largest packet: 68 to 65535 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Limit of what the guest receives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimit>,
    /// Limit of what the guest sends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimit>,
}
request!(
    NetworkInterface,
    Put,
    "/network-interfaces" / iface_id,
    needs | it | [(it.mtu.is_some(), Feature::Mtu),]
);

/// `PATCH /network-interfaces/{iface_id}`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NetworkInterfaceChange {
    /// Name of the interface.
    pub iface_id: String,
    /// Limit of what the guest receives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimit>,
    /// Limit of what the guest sends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimit>,
}
request!(
    NetworkInterfaceChange,
    Patch,
    "/network-interfaces" / iface_id
);

/// `DELETE /network-interfaces/{iface_id}` while the guest runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NetworkInterfaceRemoval {
    /// Name of the interface.
    #[serde(skip)]
    pub iface_id: String,
}
request!(
    NetworkInterfaceRemoval,
    Delete,
    "/network-interfaces" / iface_id,
    needs | _it | [(true, Feature::DeviceHotplug),]
);

/// A vsock address that a guest may have: Firecracker takes the reserved ones too, and nobody
/// could reach the guest then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct GuestCid(u32);

impl GuestCid {
    /// The lowest one.
    pub const FIRST: Self = Self(3);

    /// `None` for those of hypervisor, loopback and host, and for the one that means any.
    #[must_use]
    pub const fn new(cid: u32) -> Option<Self> {
        match cid {
            0..=2 | u32::MAX => None,
            cid => Some(Self(cid)),
        }
    }
}

/// `PUT /vsock`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Vsock {
    /// The guest's address. It may be the same for all machines.
    pub guest_cid: GuestCid,
    /// Host socket; a guest's dial to port P arrives at this path followed by `_P`.
    pub uds_path: PathBuf,
}
request!(Vsock, Put, "/vsock");

/// `PUT /entropy`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Entropy {
    /// Limit of what the guest takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimit>,
}
request!(Entropy, Put, "/entropy");

/// `PUT /serial`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Serial {
    /// File or FIFO in place of standard output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial_out_path: Option<PathBuf>,
    /// Limit of what the guest prints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<TokenBucket>,
}
request!(
    Serial,
    Put,
    "/serial",
    needs
        | it
        | [
            (true, Feature::Serial),
            (it.rate_limiter.is_some(), Feature::SerialRateLimiter),
        ]
);

/// `PUT /logger`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Logger {
    /// File or FIFO.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_path: Option<PathBuf>,
    /// What is worth a line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<LogLevel>,
    /// Whether lines have their level.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub show_level: Option<bool>,
    /// Whether lines have the place in Firecracker's source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub show_log_origin: Option<bool>,
    /// Only lines of this module.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
}
request!(Logger, Put, "/logger");

/// What is worth a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "the usual levels")]
pub enum LogLevel {
    Off,
    Error,
    Warning,
    Info,
    Debug,
    Trace,
}

/// `PUT /metrics`, once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MetricsSink {
    /// File or FIFO.
    pub metrics_path: PathBuf,
}
request!(MetricsSink, Put, "/metrics");
