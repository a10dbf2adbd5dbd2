//! Kernel bundles from a kernel file and a module directory of the user's.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use super::modinfo::name_of_path;
use super::modules::{
    ModuleTree, StoredModule, guest_file_name, guest_modules, parse_builtin, parse_dependencies,
};
use super::store::Input;
use super::{KernelError, MAX_KERNEL, Material, bootable, io_error};

/// A full module tree has about 500 directories and 4,000 files.
const MAX_ENTRIES: usize = 200_000;

/// Reads the kernel and, where a directory is given, the modules that a guest needs of it.
pub(super) fn gather(kernel: &Path, modules: Option<&Path>) -> Result<Material, KernelError> {
    let mut inputs = vec![Input::of(kernel).map_err(io_error("read", kernel))?];
    let origin = kernel.display().to_string();
    let (vmlinux, release) = bootable(read(kernel)?, &origin)?;
    let modules = match modules {
        None => Vec::new(),
        Some(directory) => {
            let mut tree = DirectoryTree::walk(directory)?;
            let modules = guest_modules(&mut tree)?;
            inputs.append(&mut tree.inputs);
            modules
        }
    };
    let release = release.unwrap_or_default();
    let material = Material {
        release,
        vmlinux,
        config: None,
        modules,
        origin,
        inputs,
    };
    material.check_modules()?;
    Ok(material)
}

/// A directory of modules: `/lib/modules/<release>`, or just some `.ko` files.
struct DirectoryTree {
    modules: BTreeMap<String, PathBuf>,
    builtin: Option<PathBuf>,
    dependencies: Option<PathBuf>,
    inputs: Vec<Input>,
}

impl DirectoryTree {
    fn walk(root: &Path) -> Result<Self, KernelError> {
        let mut tree = Self {
            modules: BTreeMap::new(),
            builtin: None,
            dependencies: None,
            inputs: Vec::new(),
        };
        let mut directories = vec![root.to_owned()];
        let mut entries = 0;
        while let Some(directory) = directories.pop() {
            tree.inputs
                .push(Input::of(&directory).map_err(io_error("read", &directory))?);
            for entry in fs::read_dir(&directory).map_err(io_error("read", &directory))? {
                let entry = entry.map_err(io_error("read", &directory))?;
                entries += 1;
                if entries > MAX_ENTRIES {
                    return Err(KernelError::TooLarge {
                        path: root.to_owned(),
                    });
                }
                // The type of the entry itself: links to elsewhere are not followed.
                let kind = entry.file_type().map_err(io_error("read", &entry.path()))?;
                if kind.is_dir() {
                    directories.push(entry.path());
                } else if kind.is_file() {
                    tree.note(entry.path());
                }
            }
        }
        Ok(tree)
    }

    fn note(&mut self, path: PathBuf) {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        match name {
            "modules.builtin" => self.builtin = Some(path),
            "modules.dep" => self.dependencies = Some(path),
            _ => {
                if let Some(module) = name_of_path(name) {
                    self.modules.insert(module, path);
                }
            }
        }
    }

    fn used(&mut self, path: &Path) -> Result<Vec<u8>, KernelError> {
        self.inputs
            .push(Input::of(path).map_err(io_error("read", path))?);
        read(path)
    }

    fn text(&mut self, path: Option<PathBuf>) -> Result<Option<String>, KernelError> {
        let bytes = path.map(|path| self.used(&path)).transpose()?;
        Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }
}

impl ModuleTree for DirectoryTree {
    type Error = KernelError;

    fn read(
        &mut self,
        names: &BTreeSet<String>,
    ) -> Result<BTreeMap<String, StoredModule>, KernelError> {
        let mut found = BTreeMap::new();
        for name in names {
            let Some(path) = self.modules.get(name).cloned() else {
                continue;
            };
            let Some(file) = path.to_str().and_then(guest_file_name) else {
                continue;
            };
            let bytes = self.used(&path)?;
            found.insert(name.clone(), StoredModule { file, bytes });
        }
        Ok(found)
    }

    fn builtin(&mut self) -> Result<Option<BTreeSet<String>>, KernelError> {
        let text = self.text(self.builtin.clone())?;
        Ok(text.as_deref().map(parse_builtin))
    }

    fn dependencies(&mut self) -> Result<Option<BTreeMap<String, Vec<String>>>, KernelError> {
        let text = self.text(self.dependencies.clone())?;
        Ok(text.as_deref().map(parse_dependencies))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, KernelError> {
    let file = File::open(path).map_err(io_error("open", path))?;
    let mut bytes = Vec::new();
    file.take(MAX_KERNEL + 1)
        .read_to_end(&mut bytes)
        .map_err(io_error("read", path))?;
    if bytes.len() as u64 > MAX_KERNEL {
        return Err(KernelError::TooLarge {
            path: path.to_owned(),
        });
    }
    Ok(bytes)
}
