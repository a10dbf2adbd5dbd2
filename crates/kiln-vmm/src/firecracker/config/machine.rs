//! Processor, memory, kernel, and what is done with the whole.

use std::borrow::Cow;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::request::{CHANGE, CONFIGURE, Request, Verb, request};
use crate::firecracker::version::Feature;

/// `PUT /machine-config`; also the answer of `GET`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineConfig {
    /// Virtual processors: 1 to 32, with SMT 1 or an even number.
    pub vcpu_count: u8,
    /// Guest memory.
    pub mem_size_mib: u32,
    /// Two threads for each core (x86-64 only).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub smt: Option<bool>,
    /// Deprecated by Firecracker in favour of [`CpuConfig`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_template: Option<CpuTemplate>,
    /// Whether diff snapshots can be made cheaply.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub track_dirty_pages: Option<bool>,
    /// Pages of the host that hold the guest's memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub huge_pages: Option<HugePages>,
}
request!(MachineConfig, Put, "/machine-config");

/// `PATCH /machine-config`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MachineConfigChange {
    /// See [`MachineConfig`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vcpu_count: Option<u8>,
    /// See [`MachineConfig`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_size_mib: Option<u32>,
    /// See [`MachineConfig`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub smt: Option<bool>,
    /// See [`MachineConfig`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub track_dirty_pages: Option<bool>,
}
request!(
    MachineConfigChange,
    Patch,
    "/machine-config",
    needs
        | it
        | [(
            // Older ones demand these two.
            it.mem_size_mib.is_none() || it.track_dirty_pages.is_none(),
            Feature::PartialMachineConfig,
        )]
);

/// A built-in template of processor features.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "names of Firecracker's own")]
pub enum CpuTemplate {
    C3,
    T2,
    T2S,
    T2CL,
    T2A,
    V1N1,
    None,
}

/// Pages of the host that hold the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HugePages {
    /// Ordinary ones.
    None,
    /// Reserved ones of 2 MiB.
    #[serde(rename = "2M")]
    TwoMib,
}

/// `PUT /boot-source`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BootSource {
    /// Uncompressed ELF kernel.
    pub kernel_image_path: PathBuf,
    /// Initial RAM filesystem.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd_path: Option<PathBuf>,
    /// Replaces Firecracker's default arguments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_args: Option<String>,
}
request!(BootSource, Put, "/boot-source");

/// `PUT /cpu-config`: a custom template of processor features.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CpuConfig {
    /// KVM capabilities to check for, or with `!` not to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kvm_capabilities: Vec<String>,
    /// Changes of CPUID leaves (x86-64).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cpuid_modifiers: Vec<CpuidModifier>,
    /// Changes of model-specific registers (x86-64).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub msr_modifiers: Vec<RegisterModifier>,
    /// Changes of registers (aarch64).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reg_modifiers: Vec<RegisterModifier>,
    /// Features of the virtual processors (aarch64).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub vcpu_features: Vec<VcpuFeature>,
}
request!(
    CpuConfig,
    Put,
    "/cpu-config",
    needs
        | it
        | [(
            !it.kvm_capabilities.is_empty() || !it.vcpu_features.is_empty(),
            Feature::CpuTemplateLists,
        )]
);

/// Changes of one CPUID leaf.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CpuidModifier {
    /// Leaf, such as `0x80000001`.
    pub leaf: String,
    /// Its part.
    pub subleaf: String,
    /// KVM's flags for it.
    pub flags: i32,
    /// The changes.
    pub modifiers: Vec<CpuidRegisterModifier>,
}

/// Changes of one register of a CPUID leaf.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CpuidRegisterModifier {
    /// Which.
    pub register: CpuidRegister,
    /// `0b` with 0, 1 and x for each bit.
    pub bitmap: String,
}

/// A register of a CPUID leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "names of registers")]
pub enum CpuidRegister {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// Changes of one register.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RegisterModifier {
    /// Its number, such as `0x10a`.
    pub addr: String,
    /// `0b` with 0, 1 and x for each bit.
    pub bitmap: String,
}

/// Changes of a word of processor features.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VcpuFeature {
    /// Which word.
    pub index: u32,
    /// `0b` with 0, 1 and x for each bit.
    pub bitmap: String,
}

/// `PUT /actions`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "action_type")]
pub enum Action {
    /// Boots the guest; answered when its processors run.
    InstanceStart,
    /// Presses Ctrl-Alt-Del (x86-64 only).
    SendCtrlAltDel,
    /// Writes the metrics now.
    FlushMetrics,
}
request!(Action, Put, "/actions", within CHANGE);

/// `PATCH /vm`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state")]
pub enum VmState {
    /// Halt the processors.
    Paused,
    /// Let them run on.
    Resumed,
}
request!(VmState, Patch, "/vm", within CHANGE);

/// Answer of `GET /`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct InstanceInfo {
    /// The `--id` it was started with.
    pub id: String,
    /// What the guest does.
    pub state: InstanceState,
    /// Version of Firecracker.
    pub vmm_version: String,
}

/// State of the guest as Firecracker names it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub enum InstanceState {
    /// Before `InstanceStart`.
    #[serde(rename = "Not started")]
    NotStarted,
    /// It runs.
    Running,
    /// It is paused.
    Paused,
    /// A state of a version that this client does not know.
    #[serde(untagged)]
    Other(String),
}

/// Answer of `GET /version`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct FirecrackerVersion {
    /// `1.16.1`
    pub firecracker_version: String,
}
