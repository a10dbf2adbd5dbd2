//! One kernel bundle on disk: its record, its verification.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Material;
use crate::publish::{digest, digest_reader, make_readable};

/// Changes when the layout of a bundle does, so that older ones are rebuilt.
const FORMAT: u32 = 1;
const RECORD: &str = "bundle.json";
const VMLINUX: &str = "vmlinux";
const CONFIG: &str = "config";
const MODULES: &str = "modules";
/// A record with a few hundred modules.
const MAX_RECORD: u64 = 1 << 20;

/// A verified kernel with what booting it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelBundle {
    /// SHA-256 over the bundle's record: release, origin and the digests of all files.
    pub id: String,
    /// `6.1.0-56-cloud-amd64`; empty where the kernel does not say.
    pub release: String,
    /// The uncompressed kernel.
    pub vmlinux: PathBuf,
    /// The modules for the initramfs, in the order in which they load.
    pub modules: Vec<KernelModule>,
    /// The kernel's build configuration, where the source has one.
    pub config: Option<PathBuf>,
    /// Where it came from, for people: a package and version, a path, a URL.
    pub source: String,
}

/// A module of a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelModule {
    /// `virtio-rng.ko`.
    pub file: String,
    /// Where it is on the host.
    pub path: PathBuf,
    /// Parameters for loading it; usually empty.
    pub params: String,
    /// SHA-256 of the file in hex.
    pub sha256: String,
}

/// `bundle.json`.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    format: u32,
    release: String,
    source: String,
    vmlinux: FileRecord,
    config: Option<FileRecord>,
    modules: Vec<ModuleRecord>,
}

/// What a file must contain.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileRecord {
    size: u64,
    sha256: String,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ModuleRecord {
    file: String,
    params: String,
    #[serde(flatten)]
    content: FileRecord,
}

impl FileRecord {
    fn of(bytes: &[u8]) -> Self {
        Self {
            size: bytes.len() as u64,
            sha256: digest(bytes),
        }
    }
}

impl Record {
    pub(super) fn of(material: &Material) -> Self {
        let module = |module: &super::GuestModule| ModuleRecord {
            file: module.file.clone(),
            params: String::new(),
            content: FileRecord::of(&module.bytes),
        };
        Self {
            format: FORMAT,
            release: material.release.clone(),
            source: material.origin.clone(),
            vmlinux: FileRecord::of(&material.vmlinux),
            config: material.config.as_deref().map(FileRecord::of),
            modules: material.modules.iter().map(module).collect(),
        }
    }

    pub(super) fn to_bytes(&self) -> io::Result<Vec<u8>> {
        serde_json::to_vec_pretty(self).map_err(io::Error::other)
    }

    /// Files of the bundle with what they must contain.
    fn files(&self) -> impl Iterator<Item = (PathBuf, &FileRecord)> {
        let config = self
            .config
            .as_ref()
            .map(|record| (PathBuf::from(CONFIG), record));
        let module = |module: &ModuleRecord| Path::new(MODULES).join(&module.file);
        std::iter::once((PathBuf::from(VMLINUX), &self.vmlinux))
            .chain(config)
            .chain(
                self.modules
                    .iter()
                    .map(move |entry| (module(entry), &entry.content)),
            )
    }
}

/// Writes all files of a bundle, record last, each of them durable.
pub(super) fn write(directory: &Path, material: &Material, record: &Record) -> io::Result<()> {
    let modules = directory.join(MODULES);
    fs::create_dir(&modules)?;
    write_file(&directory.join(VMLINUX), &material.vmlinux)?;
    if let Some(config) = &material.config {
        write_file(&directory.join(CONFIG), config)?;
    }
    for module in &material.modules {
        write_file(&modules.join(&module.file), &module.bytes)?;
    }
    File::open(&modules)?.sync_all()?;
    write_file(&directory.join(RECORD), &record.to_bytes()?)?;
    File::open(directory)?.sync_all()
}

fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::write(path, bytes)?;
    let file = File::open(path)?;
    make_readable(&file)?;
    file.sync_all()
}

/// Opens the bundle `id`, each of whose files `verify` checks; `None` where it is damaged.
pub(super) fn open(
    directory: &Path,
    id: &str,
    mut verify: impl FnMut(&Path, &FileRecord) -> io::Result<bool>,
) -> io::Result<Option<KernelBundle>> {
    let record = directory.join(RECORD);
    if fs::metadata(&record)?.len() > MAX_RECORD {
        return Ok(None);
    }
    let bytes = fs::read(&record)?;
    if digest(&bytes) != id {
        return Ok(None);
    }
    let Ok(record) = serde_json::from_slice::<Record>(&bytes) else {
        return Ok(None);
    };
    if record.format != FORMAT {
        return Ok(None);
    }
    for (name, wanted) in record.files() {
        if !verify(&directory.join(name), wanted)? {
            return Ok(None);
        }
    }
    Ok(Some(bundle(directory, id, record)))
}

/// Whether a file has the size and digest of its record.
pub(super) fn matches(path: &Path, wanted: &FileRecord) -> io::Result<bool> {
    let file = File::open(path)?;
    if file.metadata()?.len() != wanted.size {
        return Ok(false);
    }
    Ok(digest_reader(file)?.0 == wanted.sha256)
}

fn bundle(directory: &Path, id: &str, record: Record) -> KernelBundle {
    let module = |module: ModuleRecord| KernelModule {
        path: directory.join(MODULES).join(&module.file),
        file: module.file,
        params: module.params,
        sha256: module.content.sha256,
    };
    KernelBundle {
        id: id.to_owned(),
        release: record.release,
        vmlinux: directory.join(VMLINUX),
        config: record.config.map(|_| directory.join(CONFIG)),
        source: record.source,
        modules: record.modules.into_iter().map(module).collect(),
    }
}
