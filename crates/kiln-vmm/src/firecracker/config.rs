//! What is sent to Firecracker, resource by resource.
//!
//! Firecracker refuses fields it does not know, so an unset field is left out, and a field that
//! only some versions know is only set for those.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::nic::{MacAddress, RateLimit};

/// `PUT /machine-config`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MachineConfig {
    /// Virtual processors.
    pub vcpu_count: u8,
    /// Guest memory.
    pub mem_size_mib: u32,
}

/// `PUT /boot-source`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
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

/// `PUT /drives/{drive_id}`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Drive {
    /// Name of the drive; the path of the request repeats it.
    pub drive_id: String,
    /// Host file.
    pub path_on_host: PathBuf,
    /// Makes Firecracker add `root=` to the kernel's arguments.
    pub is_root_device: bool,
    /// Whether the guest may only read it.
    pub is_read_only: bool,
}

/// `PUT /network-interfaces/{iface_id}`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NetworkInterface {
    /// Name of the interface; the path of the request repeats it.
    pub iface_id: String,
    /// An existing TAP.
    pub host_dev_name: String,
    /// The guest's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest_mac: Option<MacAddress>,
    /// Limit of what the guest receives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimit>,
    /// Limit of what the guest sends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimit>,
}

/// `PUT /vsock`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Vsock {
    /// The guest's address, at least 3. It may be the same for all machines.
    pub guest_cid: u32,
    /// Host socket; a guest's dial to port P arrives at this path followed by `_P`.
    pub uds_path: PathBuf,
}

/// `PUT /entropy`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Entropy {}

/// `PUT /actions`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "action_type")]
pub enum Action {
    /// Boots the guest; answered when its processors run.
    InstanceStart,
    /// Presses Ctrl-Alt-Del (x86-64 only).
    SendCtrlAltDel,
}

/// `PATCH /vm`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state")]
pub enum VmState {
    /// Halt the processors.
    Paused,
    /// Let them run on.
    Resumed,
}

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
pub struct Version {
    /// `1.16.1`
    pub firecracker_version: String,
}

#[cfg(test)]
mod tests {
    use serde_json::{json, to_value};

    use super::*;

    #[test]
    fn requests_have_the_documented_form_and_leave_out_what_is_unset() {
        assert_eq!(
            to_value(Action::InstanceStart).unwrap(),
            json!({"action_type": "InstanceStart"})
        );
        assert_eq!(
            to_value(VmState::Paused).unwrap(),
            json!({"state": "Paused"})
        );
        assert_eq!(to_value(Entropy {}).unwrap(), json!({}));
        let boot = BootSource {
            kernel_image_path: "/k".into(),
            initrd_path: None,
            boot_args: None,
        };
        assert_eq!(to_value(boot).unwrap(), json!({"kernel_image_path": "/k"}));
    }

    #[test]
    fn answers_may_have_more_than_is_known() {
        let info: InstanceInfo = serde_json::from_value(json!({
            "app_name": "Firecracker", "id": "m", "state": "Not started",
            "vmm_version": "1.16.1", "new": {"field": [1]},
        }))
        .unwrap();
        assert_eq!(info.state, InstanceState::NotStarted);
        let later: InstanceState = serde_json::from_value(json!("Migrating")).unwrap();
        assert_eq!(later, InstanceState::Other("Migrating".into()));
    }
}
