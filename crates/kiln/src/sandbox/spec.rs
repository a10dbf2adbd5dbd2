//! What a user asks of a sandbox, and the rules that it must meet. Pure: no I/O.

use std::path::PathBuf;

use kiln_image::library::PullPolicy;
use kiln_vmm::EnginePreference;
use kiln_vmm::jail::Protection;
use serde::{Deserialize, Serialize};

use super::command::MainCommand;
use super::labels::{self, Labels};
use super::restart::RestartPolicy;
use super::volume_mount::{self, VolumeMount};
use crate::base_images::is_base_image_name;
use crate::error::{Error, ErrorCode};
use crate::image_choice::platform_fault;
use crate::network::NetworkSpec;

/// Largest number of virtual processors (Firecracker's own limit).
pub(super) const MAX_VCPUS: u8 = 32;
/// Least memory with which Debian's kernel and the agent come up.
pub(super) const MIN_MEM_MIB: u32 = 64;
/// Least scratch disk: an ext4 with a journal and something left to write to.
pub(super) const MIN_DISK_MIB: u64 = 32;
/// Largest scratch disk: ext4 with 4 KiB blocks, 16 TiB.
pub(super) const MAX_DISK_MIB: u64 = 16 * 1024 * 1024;

/// What a user asks of a sandbox. Unknown fields are refused, missing ones have defaults.
///
/// ```
/// let spec: kiln::SandboxSpec = kiln::SandboxSpec { vcpus: 2, ..Default::default() };
/// assert!(spec.check().is_ok());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SandboxSpec {
    /// A name, unique among sandboxes: 1 to 63 of `[a-z0-9-]`, a letter or digit at both ends.
    pub name: Option<String>,
    /// A path (`/…`, `./…`, `../…`) of a tar, directory or filesystem image, the name of a runtime,
    /// or an image by its reference; Kiln's own small Debian when unset.
    pub image: Option<String>,
    /// Instead of an image: the runtime of this name.
    pub runtime: Option<String>,
    /// Instead of an image and a kernel: a base image, by preset (`latest`, `lts`, `hosted`,
    /// `debian`) or by the id of one that is here.
    pub bundle: Option<String>,
    /// Instead of all that it is made of: the snapshot, by id, unique prefix of one or name, from
    /// which its first start begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// When to ask the registry for the image.
    pub pull: PullPolicy,
    /// Which of the image's builds, for this host's processor: `linux/amd64/v2`.
    pub platform: Option<String>,
    /// Who is the guest's process 1.
    pub init: InitSystem,
    /// Which engine runs it.
    pub engine: EnginePreference,
    /// Virtual processors, 1 to 32.
    pub vcpus: u8,
    /// Memory in MiB.
    pub mem_mib: u32,
    /// Size of the scratch disk, which takes the guest's writes, in MiB.
    pub disk_mib: u64,
    /// Keep the guest's writes in its memory instead of on a scratch disk.
    pub tmpfs: bool,
    /// A `vmlinux` or `bzImage`; Debian's cloud kernel when unset.
    pub kernel: Option<PathBuf>,
    /// The modules directory that belongs to `kernel`.
    pub modules: Option<PathBuf>,
    /// Host name in the guest; the sandbox's name, else its id, when unset.
    pub hostname: Option<String>,
    /// Disks that outlive it.
    pub volumes: Vec<VolumeMount>,
    /// It lives as long as the client that made it: a [`Host`](crate::Host) that finds it when it
    /// opens removes it, for that client has lost it.
    pub ephemeral: bool,
    /// Go on without protections around the VMM that cannot be had, such as a Firecracker that was
    /// built without system call filters. What is missing is told with the sandbox.
    pub allow_insecure_vmm: bool,
    /// Protections around the VMM that it is to run without, at every start.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub without: Vec<Protection>,
    /// Words of its owner's to find and group it by.
    pub labels: Labels,
    /// The project that it belongs to.
    pub project: Option<String>,
    /// Stop it this long after it came up. The end of an interactive use begins it anew.
    pub timeout_ms: Option<u64>,
    /// Stop it when nobody has used it for this long and no command runs in it.
    pub idle_timeout_ms: Option<u64>,
    /// Remove it when it stops, for whatever reason.
    pub remove_on_stop: bool,
    /// Whether it is started again when its machine ends by itself, and its main command when that
    /// ends.
    pub restart: RestartPolicy,
    /// What runs in it from every start on; nothing when unset.
    pub command: Option<MainCommand>,
    /// Its network: the public internet, where this host can make networks, unless said otherwise.
    pub network: NetworkSpec,
}

/// Who is a guest's process 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InitSystem {
    /// Kiln's agent: it reaps, and runs nothing by itself.
    #[default]
    Kiln,
    /// The image's own init (systemd or another), with the agent beside it.
    Systemd,
}

impl Default for SandboxSpec {
    fn default() -> Self {
        Self {
            name: None,
            image: None,
            runtime: None,
            bundle: None,
            snapshot: None,
            pull: PullPolicy::default(),
            platform: None,
            init: InitSystem::default(),
            engine: EnginePreference::Auto,
            vcpus: 1,
            mem_mib: 512,
            disk_mib: 10 * 1024,
            tmpfs: false,
            kernel: None,
            modules: None,
            hostname: None,
            volumes: Vec::new(),
            ephemeral: false,
            allow_insecure_vmm: false,
            without: Vec::new(),
            labels: Labels::new(),
            project: None,
            timeout_ms: None,
            idle_timeout_ms: None,
            remove_on_stop: false,
            restart: RestartPolicy::No,
            command: None,
            network: NetworkSpec::default(),
        }
    }
}

impl SandboxSpec {
    /// Checks every rule and reports all faults together.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidSpec`], naming each fault.
    pub fn check(&self) -> Result<(), Error> {
        let faults = self.faults();
        if faults.is_empty() {
            return Ok(());
        }
        Err(Error::new(ErrorCode::InvalidSpec, faults.join("; "))
            .with_hint("correct the named fields; nothing was created"))
    }

    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if let Some(name) = &self.name
            && !is_label(name)
        {
            faults.push(format!(
                "name {name:?} is not 1 to 63 of a-z, 0-9 and inner dashes"
            ));
        }
        if let Some(name) = &self.hostname
            && !is_host_name(name)
        {
            faults.push(format!("hostname {name:?} is not a host name"));
        }
        if self.vcpus == 0 || self.vcpus > MAX_VCPUS {
            faults.push(format!("vcpus is {}, not 1 to {MAX_VCPUS}", self.vcpus));
        }
        if self.mem_mib < MIN_MEM_MIB {
            faults.push(format!(
                "mem_mib is {}, less than {MIN_MEM_MIB}",
                self.mem_mib
            ));
        }
        if !self.tmpfs && !(MIN_DISK_MIB..=MAX_DISK_MIB).contains(&self.disk_mib) {
            faults.push(format!(
                "disk_mib is {}, not {MIN_DISK_MIB} to {MAX_DISK_MIB}",
                self.disk_mib
            ));
        }
        if self.image.is_some() && self.runtime.is_some() {
            faults.push("image and runtime are both given: one is the other's name".to_owned());
        }
        faults.extend(self.platform.as_deref().and_then(platform_fault));
        if let Some(name) = &self.bundle {
            if !is_base_image_name(name) {
                faults.push(format!("bundle {name:?} is not the name of a base image"));
            }
            if self.image.is_some() || self.runtime.is_some() || self.kernel.is_some() {
                faults.push("bundle brings its own image and kernel, and another is given".into());
            }
        }
        if self.modules.is_some() && self.kernel.is_none() {
            faults.push("modules belong to a kernel, and none is given".to_owned());
        }
        if self.remove_on_stop && self.restart != RestartPolicy::No {
            faults.push("one that is removed when it stops cannot be restarted".to_owned());
        }
        if self.timeout_ms == Some(0) || self.idle_timeout_ms == Some(0) {
            faults.push("a time-out of 0 would stop it at once".to_owned());
        }
        faults.extend(labels::faults(&self.labels));
        faults.extend(self.project.as_deref().and_then(labels::project_fault));
        faults.extend(volume_mount::faults(&self.volumes));
        faults.extend(self.network.faults());
        faults
    }
}

/// A DNS label in lower case.
pub(crate) fn is_label(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = name.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|&byte| inner(byte) || byte == b'-')
        && bytes.first().copied().is_some_and(inner)
        && bytes.last().copied().is_some_and(inner)
}

/// Labels joined by dots, at most the kernel's 64 bytes (`__NEW_UTS_LEN`).
fn is_host_name(name: &str) -> bool {
    name.len() <= 64 && name.to_ascii_lowercase().split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid() {
        SandboxSpec::default().check().expect("default");
    }

    #[test]
    fn every_fault_is_named_at_once() {
        let spec = SandboxSpec {
            name: Some("No Good".into()),
            hostname: Some("-x".into()),
            vcpus: 33,
            mem_mib: 1,
            disk_mib: 1,
            modules: Some("/m".into()),
            ..SandboxSpec::default()
        };
        let error = spec.check().expect_err("six faults");
        assert_eq!(error.code(), ErrorCode::InvalidSpec);
        for word in [
            "name", "hostname", "vcpus", "mem_mib", "disk_mib", "modules",
        ] {
            assert!(
                error.to_string().contains(word),
                "{error} does not name {word}"
            );
        }
    }

    #[test]
    fn a_platform_is_one_that_this_host_runs() {
        let with = |platform: &str| {
            let spec = SandboxSpec {
                platform: Some(platform.into()),
                ..SandboxSpec::default()
            };
            spec.check().map_err(|error| error.message())
        };
        with(&kiln_image::oci::Platform::host().to_string()).expect("own");
        let error = with("linux/s390x").expect_err("foreign");
        assert!(
            error.contains("s390x") && error.contains("this host runs linux/"),
            "{error}"
        );
        assert!(
            with("penguin")
                .expect_err("no platform")
                .contains("penguin")
        );
    }

    #[test]
    fn a_base_image_stands_for_image_and_kernel() {
        let with = |bundle: &str, image: Option<&str>, kernel: Option<&str>| SandboxSpec {
            bundle: Some(bundle.into()),
            image: image.map(Into::into),
            kernel: kernel.map(Into::into),
            ..SandboxSpec::default()
        };
        with("lts", None, None).check().expect("alone");
        for spec in [
            with("../x", None, None),
            with("lts", Some("alpine"), None),
            with("lts", None, Some("/k")),
        ] {
            let error = spec.check().expect_err("refused");
            assert!(error.to_string().contains("bundle"), "{error}");
        }
    }

    #[test]
    fn unknown_fields_are_refused() {
        serde_json::from_str::<SandboxSpec>(r#"{"vcpu": 2}"#).expect_err("typing error");
    }

    proptest::proptest! {
        #[test]
        fn names_that_pass_are_plain(name in ".{0,80}") {
            if is_label(&name) {
                proptest::prop_assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'));
                proptest::prop_assert!(name.len() <= 63 && !name.starts_with('-'));
            }
        }
    }
}
