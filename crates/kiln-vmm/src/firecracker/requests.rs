//! From the words of the seam to Firecracker's: pure.

use super::KERNEL_ARGS;
use super::config::{
    Balloon, BootSource, CacheType, Drive, DriveChange, Entropy, HugePages, IoEngine,
    MachineConfig, MemoryHotplug, MmdsConfig, MmdsVersion, NetworkInterface,
    NetworkInterfaceChange, Request,
};
use super::version::{Feature, Version};
use crate::machine::{Disk, MachineSpec};
use crate::nic::Nic;
use crate::options::{DiskChange, MetadataOptions, NicChange};
use crate::validate::{SpecFault, command_line};

/// What the machine asks of Firecracker that this version does not know.
pub(super) fn faults(spec: &MachineSpec, version: Version) -> Vec<SpecFault> {
    let mut needs: Vec<Feature> = Vec::new();
    needs.extend(machine_config(spec).needs());
    needs.extend(balloon(spec).map_or_else(Vec::new, |it| it.needs()));
    needs.extend(memory_hotplug(spec).map_or_else(Vec::new, |it| it.needs()));
    let metadata = spec.options.metadata.as_ref().map(mmds_config);
    needs.extend(metadata.map_or_else(Vec::new, |it| it.needs()));
    let mut faults: Vec<SpecFault> = needs
        .into_iter()
        .filter(|feature| !feature.is_in(version))
        .map(|feature| SpecFault::NotInVersion { feature, version })
        .collect();
    if spec.options.memory_file.is_some() {
        faults.push(SpecFault::Option("memory in a file"));
    }
    if spec.options.user_network.is_some() {
        faults.push(SpecFault::Option("user-mode network"));
    }
    faults
}

pub(super) fn machine_config(spec: &MachineSpec) -> MachineConfig {
    let options = &spec.options;
    MachineConfig {
        vcpu_count: spec.vcpus,
        mem_size_mib: spec.mem_mib,
        smt: options.smt.then_some(true),
        cpu_template: options.cpu_template,
        track_dirty_pages: options.track_dirty_pages.then_some(true),
        huge_pages: options.huge_pages.then_some(HugePages::TwoMib),
    }
}

pub(super) fn boot_source(spec: &MachineSpec) -> BootSource {
    BootSource {
        kernel_image_path: spec.boot.kernel.clone(),
        initrd_path: spec.boot.initramfs.clone(),
        boot_args: Some(command_line(KERNEL_ARGS, &spec.boot.args)),
    }
}

pub(super) fn drive(disk: &Disk) -> Drive {
    let options = &disk.options;
    Drive {
        drive_id: disk.id.clone(),
        path_on_host: Some(disk.path.clone()),
        // Kiln's agent mounts the root: its kernel is told of none.
        is_root_device: options.root,
        is_read_only: Some(disk.read_only),
        partuuid: options.partuuid.clone(),
        cache_type: options.writeback.then_some(CacheType::Writeback),
        rate_limiter: options.limit,
        io_engine: options.async_io.then_some(IoEngine::Async),
        socket: None,
    }
}

pub(super) fn network_interface(nic: &Nic) -> NetworkInterface {
    NetworkInterface {
        iface_id: nic.id.clone(),
        host_dev_name: nic.tap.clone(),
        guest_mac: Some(nic.mac),
        rx_rate_limiter: nic.rx_limit,
        tx_rate_limiter: nic.tx_limit,
        ..NetworkInterface::default()
    }
}

pub(super) fn balloon(spec: &MachineSpec) -> Option<Balloon> {
    let options = spec.options.balloon?;
    Some(Balloon {
        amount_mib: options.amount_mib,
        deflate_on_oom: options.deflate_on_oom,
        stats_polling_interval_s: Some(options.stats_interval_s),
        free_page_hinting: None,
        free_page_reporting: options.free_page_reporting.then_some(true),
    })
}

pub(super) fn memory_hotplug(spec: &MachineSpec) -> Option<MemoryHotplug> {
    let options = spec.options.memory_hotplug?;
    Some(MemoryHotplug {
        total_size_mib: options.total_mib,
        slot_size_mib: options.slot_mib,
        block_size_mib: options.block_mib,
    })
}

pub(super) fn mmds_config(options: &MetadataOptions) -> MmdsConfig {
    MmdsConfig {
        network_interfaces: options.nics.clone(),
        version: Some(if options.without_token {
            MmdsVersion::V1
        } else {
            MmdsVersion::V2
        }),
        ipv4_address: options.address,
        imds_compat: options.imds_compat.then_some(true),
    }
}

pub(super) fn entropy(spec: &MachineSpec) -> Entropy {
    Entropy {
        rate_limiter: spec.options.entropy_limit,
    }
}

pub(super) fn drive_change(change: &DiskChange) -> DriveChange {
    DriveChange {
        drive_id: change.id.clone(),
        path_on_host: change.path.clone(),
        rate_limiter: change.limit,
    }
}

pub(super) fn interface_change(change: &NicChange) -> NetworkInterfaceChange {
    NetworkInterfaceChange {
        iface_id: change.id.clone(),
        rx_rate_limiter: change.rx_limit,
        tx_rate_limiter: change.tx_limit,
    }
}
