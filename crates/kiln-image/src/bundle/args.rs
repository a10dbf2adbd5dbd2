//! Kernel arguments of a bundle.

use super::RootfsType;
use crate::kernel::Architecture;

/// What a guest of this bundle boots with, unless its manifest says otherwise.
pub(super) fn boot_args(architecture: Architecture, rootfs: RootfsType) -> String {
    let early = match architecture {
        // The early console is all that its serial port has for long.
        Architecture::Aarch64 => "keep_bootcon ",
        Architecture::X86_64 => "",
    };
    let root = match rootfs {
        RootfsType::Squashfs => " ro rootfstype=squashfs",
        RootfsType::Ext4 => "",
    };
    format!("{early}console=ttyS0 reboot=k panic=1 pci=off{root}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a3_8_boot_args() {
        let plain = "console=ttyS0 reboot=k panic=1 pci=off";
        let (x86, arm) = (Architecture::X86_64, Architecture::Aarch64);
        assert_eq!(boot_args(x86, RootfsType::Ext4), plain);
        assert_eq!(
            boot_args(x86, RootfsType::Squashfs),
            format!("{plain} ro rootfstype=squashfs")
        );
        assert_eq!(
            boot_args(arm, RootfsType::Ext4),
            format!("keep_bootcon {plain}")
        );
    }
}
