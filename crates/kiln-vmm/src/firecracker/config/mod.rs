//! What is sent to Firecracker, resource by resource, and what it answers.
//!
//! Firecracker refuses fields that it does not know, so an unset field is left out, and what only
//! some versions know is said by [`Request::needs`]. Answers may have more than is known.

mod devices;
mod machine;
mod memory;
mod metadata;
mod request;
mod snapshot;

pub use devices::{
    CacheType, Drive, DriveChange, DriveRemoval, Entropy, GuestCid, IoEngine, LogLevel, Logger,
    MetricsSink, NetworkInterface, NetworkInterfaceChange, NetworkInterfaceRemoval, Pmem,
    PmemChange, PmemRemoval, Serial, Vsock,
};
pub use machine::{
    Action, BootSource, CpuConfig, CpuTemplate, CpuidModifier, CpuidRegister,
    CpuidRegisterModifier, FirecrackerVersion, HugePages, InstanceInfo, InstanceState,
    MachineConfig, MachineConfigChange, RegisterModifier, VcpuFeature, VmState,
};
pub use memory::{
    Balloon, BalloonChange, BalloonStatisticsChange, BalloonStats, HintingStart, HintingStatus,
    HintingStop, MemoryHotplug, MemoryHotplugChange, MemoryHotplugStatus,
};
pub use metadata::{Metadata, MetadataPatch, MmdsConfig, MmdsVersion};
pub use request::{CHANGE, CONFIGURE, Request, Verb};
pub use snapshot::{
    MemoryBackend, MemoryBackendType, NetworkOverride, SnapshotCreate, SnapshotLoad, SnapshotType,
    VsockOverride,
};

#[cfg(test)]
mod tests;
