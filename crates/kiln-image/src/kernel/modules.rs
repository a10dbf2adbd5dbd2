//! Which modules a guest needs, and in what order they load.
//!
//! A pure walk over a module tree that is seen through [`ModuleTree`]; where the tree comes from (a
//! package, a directory) is its implementer's business.

use std::collections::{BTreeMap, BTreeSet};

use super::modinfo::{ModuleError, ModuleInfo, decompress, module_info, name_of_path, normal_name};
use thiserror::Error;

/// What a guest is given, and whether it can boot without it. Dependencies follow by themselves;
/// those known are listed so that a package is read only once.
const GUEST: &[(&str, Need)] = &[
    ("virtio_ring", Need::Dependency),
    ("virtio", Need::Dependency),
    // Devices: both engines offer virtio over MMIO only.
    ("virtio_mmio", Need::Boot),
    ("virtio_blk", Need::Boot),
    // Root filesystems.
    ("squashfs", Need::Extra),
    ("overlay", Need::Boot),
    ("ext4", Need::Boot),
    // The agent's connection on Firecracker.
    ("vsock", Need::Dependency),
    ("vmw_vsock_virtio_transport_common", Need::Dependency),
    ("vmw_vsock_virtio_transport", Need::Extra),
    // Network.
    ("failover", Need::Dependency),
    ("net_failover", Need::Dependency),
    ("virtio_net", Need::Extra),
    ("libcrc32c", Need::Dependency),
    ("erofs", Need::Extra),
    ("virtio_balloon", Need::Extra),
    ("virtio_rng", Need::Extra),
    // The agent's connection on QEMU.
    ("virtio_console", Need::Extra),
];

/// More passes than any chain of dependencies that is not already listed.
const MAX_PASSES: usize = 8;
/// A guest's modules are about 20.
const MAX_MODULES: usize = 200;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    /// No guest boots without it.
    Boot,
    /// A feature is missing without it.
    Extra,
    /// Wanted only where another one asks for it.
    Dependency,
}

/// Why a set of modules could not be put together.
#[derive(Debug, Error)]
pub enum ModulesError {
    /// A module file is damaged.
    #[error("cannot use kernel module {module}")]
    Module {
        /// Its name.
        module: String,
        /// What is wrong.
        #[source]
        source: ModuleError,
    },
    /// Something no guest can boot without is neither built in nor a module.
    #[error("the kernel has no {module}: it is neither built in nor among its modules")]
    Missing {
        /// The module.
        module: String,
    },
    /// A module needs another that is not there.
    #[error("kernel module {module} needs {needs}, which is neither built in nor a module")]
    MissingDependency {
        /// The module.
        module: String,
        /// What it needs.
        needs: String,
    },
    /// Modules that need each other.
    #[error("kernel module {module} depends on itself")]
    Cycle {
        /// One module of the circle.
        module: String,
    },
    /// More than a guest can need.
    #[error("the guest's modules need too many others")]
    TooMany,
}

/// A kernel's modules, wherever they are.
pub(crate) trait ModuleTree {
    /// How reading fails.
    type Error: From<ModulesError>;
    /// The files of these modules, as stored; those that do not exist are absent.
    fn read(
        &mut self,
        names: &BTreeSet<String>,
    ) -> Result<BTreeMap<String, StoredModule>, Self::Error>;
    /// Names that `modules.builtin` lists; `None` where the tree has no such file.
    fn builtin(&mut self) -> Result<Option<BTreeSet<String>>, Self::Error>;
    /// Dependencies that `modules.dep` lists, by name; `None` where the tree has no such file.
    fn dependencies(&mut self) -> Result<Option<BTreeMap<String, Vec<String>>>, Self::Error>;
}

/// A module file, compressed or not.
pub(crate) struct StoredModule {
    /// File name without directories and compression suffix: `virtio-rng.ko`.
    pub(crate) file: String,
    pub(crate) bytes: Vec<u8>,
}

/// A module chosen for the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GuestModule {
    pub(crate) file: String,
    pub(crate) bytes: Vec<u8>,
    /// The kernel it was built for, as its version magic says; empty where it says nothing.
    pub(crate) release: String,
}

/// Names worth collecting in the first pass over a tree that is slow to read.
pub(crate) fn likely_names() -> BTreeSet<String> {
    GUEST.iter().map(|(name, _)| (*name).to_owned()).collect()
}

/// The guest's modules in the order in which they load.
pub(crate) fn guest_modules<T: ModuleTree>(tree: &mut T) -> Result<Vec<GuestModule>, T::Error> {
    let builtin = tree.builtin()?;
    let listed = tree.dependencies()?;
    let loaded = load(tree, listed.as_ref())?;
    let chosen = Chosen { builtin, loaded };
    Ok(chosen.in_order()?)
}

struct Loaded {
    file: String,
    bytes: Vec<u8>,
    info: ModuleInfo,
}

/// Reads the wanted modules and all they depend on, in as few passes over the tree as it takes.
fn load<T: ModuleTree>(
    tree: &mut T,
    listed: Option<&BTreeMap<String, Vec<String>>>,
) -> Result<BTreeMap<String, Loaded>, T::Error> {
    let mut loaded = BTreeMap::new();
    let mut asked: BTreeSet<String> = BTreeSet::new();
    let mut wanted = likely_names();
    for _ in 0..MAX_PASSES {
        if wanted.is_empty() {
            return Ok(loaded);
        }
        asked.extend(wanted.iter().cloned());
        for (name, stored) in tree.read(&wanted)? {
            let module = unpack(&name, stored, listed)?;
            loaded.insert(name, module);
        }
        let needed = loaded.values().flat_map(|module| &module.info.depends);
        wanted = needed
            .filter(|name| !asked.contains(*name))
            .cloned()
            .collect();
        if loaded.len() + wanted.len() > MAX_MODULES {
            break;
        }
    }
    Err(ModulesError::TooMany.into())
}

fn unpack(
    name: &str,
    stored: StoredModule,
    listed: Option<&BTreeMap<String, Vec<String>>>,
) -> Result<Loaded, ModulesError> {
    let broken = |source| ModulesError::Module {
        module: name.to_owned(),
        source,
    };
    let bytes = decompress(stored.bytes).map_err(broken)?;
    let mut info = module_info(&bytes).map_err(broken)?;
    if let Some(depends) = listed.and_then(|listed| listed.get(name)) {
        info.depends.clone_from(depends);
    }
    Ok(Loaded {
        file: stored.file,
        bytes,
        info,
    })
}

struct Chosen {
    builtin: Option<BTreeSet<String>>,
    loaded: BTreeMap<String, Loaded>,
}

impl Chosen {
    fn in_order(mut self) -> Result<Vec<GuestModule>, ModulesError> {
        let mut order = Vec::new();
        let mut done = BTreeSet::new();
        for (name, need) in GUEST {
            if self.loaded.contains_key(*name) {
                if *need != Need::Dependency {
                    self.visit(name, &mut BTreeSet::new(), &mut done, &mut order)?;
                }
            } else if *need == Need::Boot && !self.may_be_builtin(name) {
                return Err(ModulesError::Missing {
                    module: (*name).to_owned(),
                });
            }
        }
        let take = |name: String| self.loaded.remove(&name);
        let guest_module = |Loaded { file, bytes, info }| {
            let release = info
                .vermagic
                .split(' ')
                .next()
                .unwrap_or_default()
                .to_owned();
            GuestModule {
                file,
                bytes,
                release,
            }
        };
        Ok(order
            .into_iter()
            .filter_map(take)
            .map(guest_module)
            .collect())
    }

    fn visit(
        &self,
        name: &str,
        path: &mut BTreeSet<String>,
        done: &mut BTreeSet<String>,
        order: &mut Vec<String>,
    ) -> Result<(), ModulesError> {
        if done.contains(name) {
            return Ok(());
        }
        if !path.insert(name.to_owned()) {
            return Err(ModulesError::Cycle {
                module: name.to_owned(),
            });
        }
        let depends = self
            .loaded
            .get(name)
            .map_or(&[][..], |module| &module.info.depends);
        for needs in depends {
            if self.loaded.contains_key(needs) {
                self.visit(needs, path, done, order)?;
            } else if !self.may_be_builtin(needs) {
                let (module, needs) = (name.to_owned(), needs.clone());
                return Err(ModulesError::MissingDependency { module, needs });
            }
        }
        path.remove(name);
        done.insert(name.to_owned());
        order.push(name.to_owned());
        Ok(())
    }

    /// Without a `modules.builtin` there is no telling, and the guest will say.
    fn may_be_builtin(&self, name: &str) -> bool {
        self.builtin
            .as_ref()
            .is_none_or(|builtin| builtin.contains(name))
    }
}

/// Parses `modules.builtin`: one path per line.
pub(crate) fn parse_builtin(text: &str) -> BTreeSet<String> {
    text.lines().filter_map(name_of_path).collect()
}

/// Parses `modules.dep`: `path: path path`.
pub(crate) fn parse_dependencies(text: &str) -> BTreeMap<String, Vec<String>> {
    let line = |line: &str| {
        let (module, depends) = line.split_once(':')?;
        let depends = depends
            .split_whitespace()
            .filter_map(name_of_path)
            .collect();
        Some((name_of_path(module)?, depends))
    };
    text.lines().filter_map(line).collect()
}

/// The name under which a stored module goes into the guest.
pub(crate) fn guest_file_name(path: &str) -> Option<String> {
    let name = path.rsplit('/').next()?;
    let end = name.rfind(".ko")? + ".ko".len();
    let file = name.get(..end)?;
    let safe = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    // The order file separates names from parameters by a space.
    (file.bytes().all(safe) && !normal_name(file).starts_with('.')).then(|| file.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::modinfo::tests::module;
    use super::*;

    #[derive(Default)]
    struct Fixed {
        files: BTreeMap<String, Vec<u8>>,
        builtin: Option<BTreeSet<String>>,
        listed: Option<BTreeMap<String, Vec<String>>>,
        passes: usize,
    }

    impl Fixed {
        fn with(mut self, name: &str, depends: &str) -> Self {
            self.files
                .insert(name.to_owned(), module(&format!("depends={depends};x=y")));
            self
        }

        fn bootable() -> Self {
            Self::default()
                .with("virtio_mmio", "virtio,virtio_ring")
                .with("virtio", "virtio_ring")
                .with("virtio_ring", "")
                .with("virtio_blk", "virtio_ring,virtio")
                .with("overlay", "")
                .builtin(&["ext4"])
        }

        fn builtin(mut self, names: &[&str]) -> Self {
            self.builtin = Some(names.iter().map(|name| (*name).to_owned()).collect());
            self
        }

        fn order(&mut self) -> Result<Vec<String>, ModulesError> {
            let modules = guest_modules(self)?;
            Ok(modules.into_iter().map(|module| module.file).collect())
        }
    }

    impl ModuleTree for Fixed {
        type Error = ModulesError;
        fn read(
            &mut self,
            names: &BTreeSet<String>,
        ) -> Result<BTreeMap<String, StoredModule>, ModulesError> {
            self.passes += 1;
            let wanted = self.files.iter().filter(|(name, _)| names.contains(*name));
            let stored = |(name, bytes): (&String, &Vec<u8>)| {
                (
                    name.clone(),
                    StoredModule {
                        file: format!("{name}.ko"),
                        bytes: bytes.clone(),
                    },
                )
            };
            Ok(wanted.map(stored).collect())
        }
        fn builtin(&mut self) -> Result<Option<BTreeSet<String>>, ModulesError> {
            Ok(self.builtin.clone())
        }
        fn dependencies(&mut self) -> Result<Option<BTreeMap<String, Vec<String>>>, ModulesError> {
            Ok(self.listed.clone())
        }
    }

    #[test]
    fn dependencies_load_first() {
        let mut tree = Fixed::bootable();
        let order = tree.order().unwrap();
        let expected = [
            "virtio_ring",
            "virtio",
            "virtio_mmio",
            "virtio_blk",
            "overlay",
        ];
        assert_eq!(order, expected.map(|name| format!("{name}.ko")));
        assert_eq!(
            tree.passes, 1,
            "a tree whose dependencies are known is read once"
        );
    }

    #[test]
    fn unknown_dependencies_are_fetched_and_modules_dep_wins() {
        let mut tree = Fixed::bootable()
            .with("overlay", "helper")
            .with("helper", "");
        let order = tree.order().unwrap();
        assert_eq!(order[4..], ["helper.ko", "overlay.ko"]);
        tree.listed = Some(BTreeMap::from([("overlay".to_owned(), Vec::new())]));
        assert_eq!(tree.order().unwrap()[4..], ["overlay.ko"]);
    }

    #[test]
    fn dependencies_that_nobody_asks_for_are_left_out() {
        let order = Fixed::bootable().with("libcrc32c", "").order().unwrap();
        assert!(!order.contains(&"libcrc32c.ko".to_owned()));
        let order = Fixed::bootable()
            .with("libcrc32c", "")
            .with("erofs", "libcrc32c")
            .order();
        assert_eq!(order.unwrap()[5..], ["libcrc32c.ko", "erofs.ko"]);
    }

    #[test]
    fn what_is_missing_is_named() {
        let mut tree = Fixed::bootable();
        tree.files.remove("virtio_blk");
        assert!(
            matches!(tree.order(), Err(ModulesError::Missing { module }) if module == "virtio_blk")
        );
        tree.builtin = None;
        assert!(
            tree.order().is_ok(),
            "without modules.builtin it may be built in"
        );
        let mut tree = Fixed::bootable().with("overlay", "gone");
        assert!(
            matches!(tree.order(), Err(ModulesError::MissingDependency { needs, .. }) if needs == "gone")
        );
    }

    #[test]
    fn circles_end() {
        let mut tree = Fixed::bootable()
            .with("overlay", "a")
            .with("a", "b")
            .with("b", "a");
        assert!(matches!(tree.order(), Err(ModulesError::Cycle { .. })));
    }

    #[test]
    fn lists_are_parsed() {
        let text = "kernel/fs/ext4/ext4.ko: kernel/fs/jbd2/jbd2.ko.xz kernel/lib/crc16.ko\nbad\n";
        let expected = vec!["jbd2".to_owned(), "crc16".to_owned()];
        assert_eq!(parse_dependencies(text).get("ext4"), Some(&expected));
        assert!(parse_builtin("kernel/fs/ext4/ext4.ko\n").contains("ext4"));
        assert_eq!(
            guest_file_name("a/virtio-rng.ko.zst").as_deref(),
            Some("virtio-rng.ko")
        );
        assert_eq!(guest_file_name("a/with space.ko"), None);
        assert_eq!(guest_file_name("a/..ko"), None);
    }

    proptest! {
        #[test]
        fn every_order_has_dependencies_first(
            edges in proptest::collection::vec((0..10_usize, 0..10_usize), 0..25)
        ) {
            // Edges only point down, so there is no circle.
            let names: Vec<String> = (0..10).map(|i| format!("m{i}")).collect();
            let mut tree = Fixed::bootable().with("overlay", &names.join(","));
            for i in 0..10 {
                let targets = edges.iter().filter(|(a, b)| *a == i && b < a);
                let depends: Vec<&str> = targets.map(|(_, b)| names[*b].as_str()).collect();
                tree = tree.with(&names[i], &depends.join(","));
            }
            let order = tree.order().unwrap();
            let place = |i: usize| order.iter().position(|file| *file == format!("m{i}.ko"));
            for (a, b) in edges.iter().filter(|(a, b)| b < a) {
                prop_assert!(place(*b).unwrap() < place(*a).unwrap());
            }
        }

        #[test]
        fn any_list_is_parsed(text in ".{0,200}") {
            let _ = (parse_builtin(&text), parse_dependencies(&text), guest_file_name(&text));
        }
    }
}
