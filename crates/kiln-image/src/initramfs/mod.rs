//! The initramfs that every guest boots with: the agent as `/init` and the kernel's modules.
//!
//! Built in memory in a few milliseconds and cached by content. It knows nothing of what the agent
//! does; the layout it finds is
//!
//! ```text
//! /init                  the agent
//! /lib/modules/order     one `file [parameters]` per line, in the order to load
//! /lib/modules/<file>    the modules
//! /dev/console           so that the kernel can open stdio for it
//! /dev /proc /sys /run /tmp /lower /rw /new      empty, to mount on
//! ```

mod newc;

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use thiserror::Error;

pub use newc::{NewcError, NewcWriter, NodeKind};

use crate::kernel::KernelBundle;
use crate::publish::{FileStamp, digest, write_atomically};

/// Changes when the archive's layout does, so that cached ones are built again.
const FORMAT: &str = "kiln-initramfs-1";
const MOUNT_POINTS: [&str; 8] = ["dev", "proc", "sys", "run", "tmp", "lower", "rw", "new"];

/// Why there is no initramfs.
#[derive(Debug, Error)]
pub enum InitramfsError {
    /// A file operation failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A module is not what its bundle records.
    #[error("kernel module {} is not the one its bundle records", path.display())]
    ModuleChanged {
        /// The module.
        path: PathBuf,
    },
    /// The archive cannot be written.
    #[error("cannot write the initramfs archive")]
    Archive(#[source] NewcError),
}

impl From<NewcError> for InitramfsError {
    fn from(source: NewcError) -> Self {
        Self::Archive(source)
    }
}

/// Builds the archive. The same input gives the same bytes.
///
/// # Errors
/// A module cannot be read or is not what the bundle records.
pub fn build(agent: &[u8], bundle: &KernelBundle) -> Result<Vec<u8>, InitramfsError> {
    let mut archive = NewcWriter::new(Vec::with_capacity(agent.len() + (4 << 20)));
    for directory in MOUNT_POINTS {
        archive.directory(directory, 0o755)?;
    }
    archive.node("dev/console", NodeKind::Character, 0o600, 5, 1)?;
    archive.file("init", 0o755, agent)?;
    archive.file("lib/modules/order", 0o644, order(bundle).as_bytes())?;
    for module in &bundle.modules {
        let bytes = fs::read(&module.path).map_err(io_error("read", &module.path))?;
        if digest(&bytes) != module.sha256 {
            return Err(InitramfsError::ModuleChanged {
                path: module.path.clone(),
            });
        }
        archive.file(&format!("lib/modules/{}", module.file), 0o644, &bytes)?;
    }
    Ok(archive.finish()?)
}

fn order(bundle: &KernelBundle) -> String {
    let line = |module: &crate::kernel::KernelModule| {
        format!("{} {}", module.file, module.params)
            .trim_end()
            .to_owned()
            + "\n"
    };
    bundle.modules.iter().map(line).collect()
}

/// Archives of one agent on disk, by the content they were built from. Its calls block.
#[derive(Debug)]
pub struct InitramfsCache {
    directory: PathBuf,
    agent: Cow<'static, [u8]>,
    agent_digest: String,
    verified: Mutex<HashMap<PathBuf, FileStamp>>,
}

impl InitramfsCache {
    /// Opens or creates the cache in `directory`, for archives with `agent`, a static ELF program.
    ///
    /// # Errors
    /// The directory cannot be created.
    pub fn open(
        directory: &Path,
        agent: impl Into<Cow<'static, [u8]>>,
    ) -> Result<Self, InitramfsError> {
        fs::create_dir_all(directory).map_err(io_error("create", directory))?;
        let agent = agent.into();
        Ok(Self {
            directory: directory.to_owned(),
            agent_digest: digest(&agent),
            agent,
            verified: Mutex::default(),
        })
    }

    /// The archive of the agent and this bundle. One that this process has not seen before is compared
    /// with a fresh build, which costs less than trusting the disk would be worth.
    ///
    /// # Errors
    /// See [`InitramfsError`].
    pub fn ensure(&self, bundle: &KernelBundle) -> Result<PathBuf, InitramfsError> {
        let key = key(&self.agent_digest, bundle);
        let path = self.directory.join(format!("{key}.cpio"));
        if self.is_verified(&path) {
            return Ok(path);
        }
        let archive = build(&self.agent, bundle)?;
        let stamp = FileStamp::of_published(&path).ok();
        if fs::read(&path).ok().as_deref() != Some(&archive) {
            write_atomically(&path, &archive).map_err(io_error("write", &path))?;
            return Ok(path);
        }
        if let Some(stamp) = stamp {
            let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
            verified.insert(path.clone(), stamp);
        }
        Ok(path)
    }

    fn is_verified(&self, path: &Path) -> bool {
        let verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        let known = verified.get(path);
        known.is_some_and(|known| FileStamp::of_published(path).is_ok_and(|stamp| stamp == *known))
    }
}

fn key(agent_digest: &str, bundle: &KernelBundle) -> String {
    let mut text = format!("{FORMAT}\n{agent_digest}\n{}", order(bundle));
    for module in &bundle.modules {
        text.push_str(&module.sha256);
        text.push('\n');
    }
    digest(text.as_bytes())
}

fn io_error<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> InitramfsError + 'a {
    move |source| InitramfsError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::kernel::KernelModule;

    fn bundle(directory: &Path) -> KernelBundle {
        let module = |file: &str, params: &str| {
            let path = directory.join(file);
            fs::write(&path, format!("content of {file}")).unwrap();
            KernelModule {
                file: file.to_owned(),
                params: params.to_owned(),
                sha256: digest(&fs::read(&path).unwrap()),
                path,
            }
        };
        KernelBundle {
            id: "0".repeat(64),
            release: "6.1".to_owned(),
            vmlinux: directory.join("vmlinux"),
            modules: vec![
                module("virtio_ring.ko", ""),
                module("virtio-rng.ko", "a=1 b=2"),
            ],
            config: None,
            source: String::new(),
        }
    }

    #[test]
    fn cpio_unpacks_what_was_built() {
        let directory = tempfile::tempdir().unwrap();
        let archive = build(b"the agent", &bundle(directory.path())).unwrap();
        let root = directory.path().join("root");
        fs::create_dir(&root).unwrap();
        let Ok(mut cpio) = Command::new("cpio")
            .args(["-idmu", "--quiet", "--no-absolute-filenames"])
            .current_dir(&root)
            .stdin(Stdio::piped())
            .spawn()
        else {
            eprintln!("SKIPPED: cpio_unpacks_what_was_built: cpio is not installed");
            return;
        };
        io::Write::write_all(&mut cpio.stdin.take().unwrap(), &archive).unwrap();
        let made_nodes = cpio.wait().unwrap().success();
        assert!(made_nodes || !rustix::process::geteuid().is_root());
        assert_eq!(fs::read(root.join("init")).unwrap(), b"the agent");
        let mode = fs::metadata(root.join("init"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o755);
        let order = fs::read_to_string(root.join("lib/modules/order")).unwrap();
        assert_eq!(order, "virtio_ring.ko\nvirtio-rng.ko a=1 b=2\n");
        assert!(root.join("lib/modules/virtio-rng.ko").is_file());
        assert!(root.join("lower").is_dir() && root.join("proc").is_dir());
    }

    #[test]
    fn the_same_input_gives_the_same_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let bundle = bundle(directory.path());
        assert_eq!(
            build(b"agent", &bundle).unwrap(),
            build(b"agent", &bundle).unwrap()
        );
    }

    #[test]
    fn a_changed_module_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let bundle = bundle(directory.path());
        fs::write(&bundle.modules[0].path, b"something else").unwrap();
        let result = build(b"agent", &bundle);
        assert!(matches!(result, Err(InitramfsError::ModuleChanged { .. })));
    }

    #[test]
    fn the_cache_is_keyed_by_content_and_repairs_itself() {
        let directory = tempfile::tempdir().unwrap();
        let bundle = bundle(directory.path());
        let open = |agent: &'static [u8]| {
            InitramfsCache::open(&directory.path().join("cache"), agent).unwrap()
        };
        let cache = open(b"agent");
        let path = cache.ensure(&bundle).unwrap();
        assert_eq!(cache.ensure(&bundle).unwrap(), path);
        assert_ne!(open(b"agent 2").ensure(&bundle).unwrap(), path);
        let good = fs::read(&path).unwrap();
        for known in [open(b"agent"), cache] {
            fs::write(&path, b"damaged").unwrap();
            assert_eq!(known.ensure(&bundle).unwrap(), path);
            assert_eq!(fs::read(&path).unwrap(), good);
        }
    }

    /// Jails link what they read; each link, and its end, changes the file's change time.
    #[test]
    fn links_to_an_archive_do_not_have_it_built_again() {
        let directory = tempfile::tempdir().unwrap();
        let mut bundle = bundle(directory.path());
        let cache = InitramfsCache::open(&directory.path().join("cache"), b"agent".as_slice());
        let cache = cache.unwrap();
        // Once to write it, once to compare it.
        cache.ensure(&bundle).unwrap();
        let path = cache.ensure(&bundle).unwrap();
        let link = directory.path().join("link");
        fs::hard_link(&path, &link).unwrap();
        // What cannot be read would fail a build.
        for module in &mut bundle.modules {
            module.path = directory.path().join("gone");
        }
        assert_eq!(cache.ensure(&bundle).unwrap(), path);
        fs::remove_file(&link).unwrap();
        assert_eq!(cache.ensure(&bundle).unwrap(), path);
    }
}
