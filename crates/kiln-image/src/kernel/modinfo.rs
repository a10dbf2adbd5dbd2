//! What a kernel module says of itself in its `.modinfo` section.

use std::io;

use thiserror::Error;

use super::elf::{ElfError, section};
use crate::decompress::Compression;

/// The largest modules (graphics drivers) are 10 MiB; with debug information 100.
const MAX_MODULE: u64 = 128 << 20;

/// Why a file is not a usable module.
#[derive(Debug, Error)]
pub enum ModuleError {
    /// It cannot be decompressed.
    #[error("it cannot be decompressed")]
    Decompress(#[source] io::Error),
    /// Not a well-formed object file.
    #[error("it is not a kernel module")]
    NotAnObject(#[source] ElfError),
    /// An object file that is not a module.
    #[error("it has no .modinfo section")]
    NoModinfo,
}

/// The facts of a module that loading it needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModuleInfo {
    /// Modules that must be loaded before it, by name.
    pub depends: Vec<String>,
    /// `6.1.0-56-cloud-amd64 SMP preempt mod_unload modversions`.
    pub vermagic: String,
}

/// Undoes the compression that distributions put around modules (`.ko.xz`, `.ko.zst`, `.ko.gz`).
///
/// # Errors
/// Damaged or oversized data.
pub fn decompress(file: Vec<u8>) -> Result<Vec<u8>, ModuleError> {
    match Compression::detect(&file) {
        Compression::None => Ok(file),
        kind => kind
            .decode_first(&file, MAX_MODULE)
            .map_err(ModuleError::Decompress),
    }
}

/// Reads an uncompressed module's `.modinfo`.
///
/// # Errors
/// See [`ModuleError`].
pub fn module_info(module: &[u8]) -> Result<ModuleInfo, ModuleError> {
    let section = section(module, ".modinfo").map_err(ModuleError::NotAnObject)?;
    let section = section.ok_or(ModuleError::NoModinfo)?;
    let mut info = ModuleInfo::default();
    for entry in section.split(|byte| *byte == 0) {
        let entry = String::from_utf8_lossy(entry);
        match entry.split_once('=') {
            Some(("depends", names)) => {
                info.depends.extend(
                    names
                        .split(',')
                        .filter(|name| !name.is_empty())
                        .map(normal_name),
                );
            }
            Some(("vermagic", magic)) => info.vermagic = magic.to_owned(),
            _ => {}
        }
    }
    Ok(info)
}

/// Module names treat dashes and underscores as the same; the kernel reports underscores.
pub(crate) fn normal_name(name: &str) -> String {
    name.trim().replace('-', "_")
}

/// `kernel/drivers/char/hw_random/virtio-rng.ko.xz` is the module `virtio_rng`.
pub(crate) fn name_of_path(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let stem = [".ko", ".ko.xz", ".ko.zst", ".ko.gz"]
        .iter()
        .find_map(|suffix| file.strip_suffix(suffix))
        .filter(|stem| !stem.is_empty())?;
    Some(normal_name(stem))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    /// A relocatable ELF file with one `.modinfo` section.
    pub(crate) fn module(modinfo: &str) -> Vec<u8> {
        let names = b"\0.modinfo\0.shstrtab\0";
        let mut file = vec![0; 64];
        file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        file[16] = 1;
        let info_at = file.len() as u64;
        file.extend(modinfo.replace(';', "\0").as_bytes());
        file.push(0);
        let names_at = file.len() as u64;
        file.extend(names);
        let table_at = file.len() as u64;
        let section = |name: u32, offset: u64, length: u64| {
            let mut header = vec![0; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[4] = 1;
            header[24..32].copy_from_slice(&offset.to_le_bytes());
            header[32..40].copy_from_slice(&length.to_le_bytes());
            header
        };
        file.extend(section(0, 0, 0));
        file.extend(section(1, info_at, names_at - info_at));
        file.extend(section(10, names_at, names.len() as u64));
        file[40..48].copy_from_slice(&table_at.to_le_bytes());
        file[58] = 64;
        file[60] = 3;
        file[62] = 2;
        file
    }

    #[test]
    fn reads_dependencies_and_version() {
        let file = module("license=GPL;depends=virtio,virtio-ring;vermagic=6.1 SMP;depends=");
        let info = module_info(&file).unwrap();
        assert_eq!(info.depends, ["virtio", "virtio_ring"]);
        assert_eq!(info.vermagic, "6.1 SMP");
    }

    #[test]
    fn compressed_modules_are_unpacked() {
        let file = module("depends=");
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(&file).unwrap();
        assert_eq!(decompress(xz.finish().unwrap()).unwrap(), file);
        assert_eq!(
            decompress(zstd::encode_all(file.as_slice(), 1).unwrap()).unwrap(),
            file
        );
        assert_eq!(decompress(file.clone()).unwrap(), file);
        assert!(matches!(
            decompress(b"\xfd7zXZ\0garbage".to_vec()),
            Err(ModuleError::Decompress(_))
        ));
    }

    #[test]
    fn other_files_are_refused() {
        assert!(matches!(
            module_info(b"text"),
            Err(ModuleError::NotAnObject(_))
        ));
        let this = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(matches!(module_info(&this), Err(ModuleError::NoModinfo)));
    }

    #[test]
    fn names_come_from_paths() {
        assert_eq!(
            name_of_path("a/b/virtio-rng.ko.xz").as_deref(),
            Some("virtio_rng")
        );
        assert_eq!(name_of_path("overlay.ko").as_deref(), Some("overlay"));
        assert_eq!(name_of_path("modules.dep"), None);
        assert_eq!(name_of_path("x/.ko"), None);
    }

    proptest! {
        #[test]
        fn a_damaged_module_never_panics(at in 0..300_usize, bytes in any::<[u8; 8]>()) {
            let mut file = module("depends=a,b;vermagic=1");
            let at = at % (file.len() - 8);
            file[at..at + 8].copy_from_slice(&bytes);
            let _ = module_info(&file);
        }
    }
}
