//! Kernel bundles from the distribution's signed kernel packages.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use super::modinfo::name_of_path;
use super::modules::{
    ModuleTree, StoredModule, guest_file_name, guest_modules, likely_names, parse_builtin,
    parse_dependencies,
};
use super::{KernelError, Material, bootable};
use crate::debian::{
    AptError, AptSource, DebPackage, FilesError, Package, for_each_file, host_architecture,
};
use crate::progress::{Progress, ProgressEvent};

const MAX_FILE: u64 = 256 << 20;

/// Fetches the newest kernel package and takes it apart.
pub(super) fn gather(apt_root: &Path, progress: &dyn Progress) -> Result<Material, KernelError> {
    let fetch = |apt: &AptSource| {
        let packages = kernel_packages(apt)?;
        let files = apt.download(&packages, progress)?;
        Ok((packages, files))
    };
    let fetched = AptSource::with_archive(apt_root, progress, fetch);
    let (packages, files) = fetched.map_err(KernelError::Apt)?;
    take_apart(&packages, files, progress)
}

/// The versioned kernel package behind the meta package, and where the distribution splits them
/// (Ubuntu), its modules.
fn kernel_packages(apt: &AptSource) -> Result<Vec<Package>, AptError> {
    let debian = format!("linux-image-cloud-{}", host_architecture());
    let image = match apt.candidate_behind(&debian, "linux-image-") {
        Err(AptError::NoSuchPackage { .. }) => apt
            .candidate_behind("linux-image-virtual", "linux-image-")
            .map_err(|_| AptError::NoSuchPackage { package: debian })?,
        other => other?,
    };
    let modules = image.name.replacen("linux-image-", "linux-modules-", 1);
    let needs_modules = image
        .depends
        .iter()
        .any(|dependency| dependency.alternatives.contains(&modules));
    if needs_modules {
        let modules = apt.candidate(&modules)?;
        return Ok(vec![image, modules]);
    }
    Ok(vec![image])
}

fn take_apart(
    packages: &[Package],
    files: Vec<PathBuf>,
    progress: &dyn Progress,
) -> Result<Material, KernelError> {
    progress.report(ProgressEvent::Step(
        "Taking the kernel package apart".to_owned(),
    ));
    let package = packages
        .first()
        .map(|package| package.name.clone())
        .unwrap_or_default();
    let origin: Vec<String> = packages
        .iter()
        .map(|package| format!("{} {}", package.name, package.version))
        .collect();
    let mut tree = PackageTree::scan(files)?;
    let image = tree
        .kernel
        .take()
        .ok_or_else(|| KernelError::IncompletePackage {
            package: package.clone(),
            missing: "boot/vmlinuz",
        })?;
    let (vmlinux, found) = bootable(image, &package)?;
    let release = found.unwrap_or_else(|| tree.release.clone());
    let modules = guest_modules(&mut tree)?;
    let material = Material {
        release,
        vmlinux,
        config: tree.config.take(),
        modules,
        origin: origin.join(", "),
        inputs: Vec::new(),
    };
    material.check_modules()?;
    Ok(material)
}

/// The kernel and modules inside of packages. Decompressing one takes a second, so a first pass
/// collects everything that is likely to be asked for.
struct PackageTree {
    packages: Vec<PathBuf>,
    release: String,
    kernel: Option<Vec<u8>>,
    config: Option<Vec<u8>>,
    builtin: Option<String>,
    dependencies: Option<String>,
    modules: BTreeMap<String, StoredModule>,
    scanned: BTreeSet<String>,
}

impl PackageTree {
    fn scan(packages: Vec<PathBuf>) -> Result<Self, KernelError> {
        let mut tree = Self {
            packages,
            release: String::new(),
            kernel: None,
            config: None,
            builtin: None,
            dependencies: None,
            modules: BTreeMap::new(),
            scanned: BTreeSet::new(),
        };
        tree.pass(likely_names())?;
        Ok(tree)
    }

    fn pass(&mut self, wanted: BTreeSet<String>) -> Result<(), KernelError> {
        for path in self.packages.clone() {
            let package = DebPackage::open(&path).map_err(KernelError::Package)?;
            let data = package.data_tar().map_err(KernelError::Package)?;
            for_each_file(data, |path, content| self.keep(path, content, &wanted))?;
        }
        self.scanned.extend(wanted);
        Ok(())
    }

    fn keep(
        &mut self,
        path: &str,
        content: &mut dyn Read,
        wanted: &BTreeSet<String>,
    ) -> Result<(), KernelError> {
        if let Some(release) = path.strip_prefix("boot/vmlinuz-") {
            self.release = release.to_owned();
            self.kernel = Some(read(content)?);
        } else if path.starts_with("boot/config-") {
            self.config = Some(read(content)?);
        } else if path.contains("lib/modules/") && path.ends_with("/modules.builtin") {
            self.builtin = Some(String::from_utf8_lossy(&read(content)?).into_owned());
        } else if path.contains("lib/modules/") && path.ends_with("/modules.dep") {
            self.dependencies = Some(String::from_utf8_lossy(&read(content)?).into_owned());
        } else if let Some(name) = name_of_path(path).filter(|name| wanted.contains(name))
            && let Some(file) = guest_file_name(path)
        {
            let bytes = read(content)?;
            self.modules.insert(name, StoredModule { file, bytes });
        }
        Ok(())
    }
}

impl ModuleTree for PackageTree {
    type Error = KernelError;

    fn read(
        &mut self,
        names: &BTreeSet<String>,
    ) -> Result<BTreeMap<String, StoredModule>, KernelError> {
        let new: BTreeSet<String> = names.difference(&self.scanned).cloned().collect();
        if !new.is_empty() {
            self.pass(new)?;
        }
        let taken = names
            .iter()
            .filter_map(|name| self.modules.remove_entry(name));
        Ok(taken.collect())
    }

    fn builtin(&mut self) -> Result<Option<BTreeSet<String>>, KernelError> {
        Ok(self.builtin.as_deref().map(parse_builtin))
    }

    fn dependencies(&mut self) -> Result<Option<BTreeMap<String, Vec<String>>>, KernelError> {
        Ok(self.dependencies.as_deref().map(parse_dependencies))
    }
}

fn read(content: &mut dyn Read) -> Result<Vec<u8>, KernelError> {
    let mut bytes = Vec::new();
    content
        .take(MAX_FILE)
        .read_to_end(&mut bytes)
        .map_err(FilesError::Read)?;
    if bytes.len() as u64 == MAX_FILE {
        return Err(FilesError::Malformed("a file is larger than any kernel").into());
    }
    Ok(bytes)
}
