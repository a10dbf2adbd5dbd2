//! Memory that is given back, and memory that is added.

use std::borrow::Cow;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::request::{CONFIGURE, Request, Verb, request};
use crate::firecracker::version::Feature;

/// `PUT /balloon`; also the answer of `GET`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balloon {
    /// How much the guest gives back.
    pub amount_mib: u32,
    /// Whether it gets it again when it has none left.
    pub deflate_on_oom: bool,
    /// How often the guest tells its statistics; 0 for never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stats_polling_interval_s: Option<u16>,
    /// Whether the guest tells of free pages when asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_page_hinting: Option<bool>,
    /// Whether it tells of them all the time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_page_reporting: Option<bool>,
}
request!(
    Balloon,
    Put,
    "/balloon",
    needs
        | it
        | [(
            it.free_page_hinting.is_some() || it.free_page_reporting.is_some(),
            Feature::BalloonHinting,
        )]
);

/// `PATCH /balloon`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct BalloonChange {
    /// How much the guest gives back.
    pub amount_mib: u32,
}
request!(BalloonChange, Patch, "/balloon");

/// `PATCH /balloon/statistics`: never between 0 and another number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct BalloonStatisticsChange {
    /// How often the guest tells.
    pub stats_polling_interval_s: u16,
}
request!(BalloonStatisticsChange, Patch, "/balloon/statistics");

/// `PATCH /balloon/hinting/start`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HintingStart {
    /// Whether Firecracker ends the run by itself when the guest is through.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acknowledge_on_stop: Option<bool>,
}
request!(
    HintingStart,
    Patch,
    "/balloon/hinting/start",
    needs | _it | [(true, Feature::BalloonHinting)]
);

/// `PATCH /balloon/hinting/stop`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HintingStop {}
request!(
    HintingStop,
    Patch,
    "/balloon/hinting/stop",
    needs | _it | [(true, Feature::BalloonHinting)]
);

/// Answer of `GET /balloon/hinting/status`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct HintingStatus {
    /// What was last told the guest; 1: the run is over.
    pub host_cmd: u32,
    /// What the guest answered last.
    pub guest_cmd: Option<u32>,
}

/// Answer of `GET /balloon/statistics`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(
    missing_docs,
    reason = "the guest kernel's own counters, by their names there"
)]
pub struct BalloonStats {
    pub target_pages: u64,
    pub actual_pages: u64,
    pub target_mib: u64,
    pub actual_mib: u64,
    pub swap_in: Option<u64>,
    pub swap_out: Option<u64>,
    pub major_faults: Option<u64>,
    pub minor_faults: Option<u64>,
    pub free_memory: Option<u64>,
    pub total_memory: Option<u64>,
    pub available_memory: Option<u64>,
    pub disk_caches: Option<u64>,
    pub hugetlb_allocations: Option<u64>,
    pub hugetlb_failures: Option<u64>,
    pub oom_kill: Option<u64>,
    pub alloc_stall: Option<u64>,
    pub async_scan: Option<u64>,
    pub direct_scan: Option<u64>,
    pub async_reclaim: Option<u64>,
    pub direct_reclaim: Option<u64>,
}

/// `PUT /hotplug/memory`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryHotplug {
    /// The most that can be added: a multiple of the slot's size.
    pub total_size_mib: u32,
    /// In which portions the host provides it, at least 128.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slot_size_mib: Option<u32>,
    /// In which portions the guest takes it: a power of two, at least 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_size_mib: Option<u32>,
}
request!(
    MemoryHotplug,
    Put,
    "/hotplug/memory",
    needs | _it | [(true, Feature::MemoryHotplug)]
);

/// `PATCH /hotplug/memory`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryHotplugChange {
    /// How much the guest shall have of it.
    pub requested_size_mib: u32,
}
request!(
    MemoryHotplugChange,
    Patch,
    "/hotplug/memory",
    needs | _it | [(true, Feature::MemoryHotplug)]
);

/// Answer of `GET /hotplug/memory`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryHotplugStatus {
    /// See [`MemoryHotplug`].
    pub total_size_mib: u64,
    /// See [`MemoryHotplug`].
    pub slot_size_mib: u64,
    /// See [`MemoryHotplug`].
    pub block_size_mib: u64,
    /// How much the guest has.
    pub plugged_size_mib: u64,
    /// How much it shall have.
    pub requested_size_mib: u64,
}
