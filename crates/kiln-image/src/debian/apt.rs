//! The system's own apt, asked for descriptions and downloads.
//!
//! apt keeps all of its state in a directory of ours, with an empty list of installed packages, so
//! that its answers do not depend on what the host has installed and nothing of the host is
//! changed. The host's package lists are used where they are complete; otherwise our own are
//! fetched beside them. The sources, keys and proxies stay the host's.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use super::command::{self, Answer};
use super::control::{ControlError, Package, parse_packages};
use super::host_architecture;
use super::resolve::{Archive, ResolveError, resolve};
use crate::progress::{Progress, ProgressEvent};
use crate::publish::{digest_reader, sync_directory};

/// Reading the lists takes a second or two on a slow disk.
const QUERY_DEADLINE: Duration = Duration::from_secs(60);
/// Lists are 9 MB, a kernel 27 MB: half an hour serves a line of 20 kB/s.
const TRANSFER_DEADLINE: Duration = Duration::from_secs(1800);
/// Lines of apt's own words that an error carries.
const SAID_LINES: usize = 8;

/// Why apt did not give what was asked of it.
#[derive(Debug, Error)]
pub enum AptError {
    /// The system has no apt.
    #[error("{program} is not installed; packages can be fetched on Debian and Ubuntu only")]
    Missing {
        /// The program looked for.
        program: &'static str,
    },
    /// The package lists cannot be fetched and the host has none.
    #[error("cannot fetch the package lists; apt said: {said}")]
    NoLists {
        /// apt's last lines.
        said: String,
    },
    /// The archive has no such package.
    #[error("the package archive has no package {package}")]
    NoSuchPackage {
        /// Its name.
        package: String,
    },
    /// A download failed.
    #[error("cannot download {package}; apt said: {said}")]
    Download {
        /// What was being downloaded.
        package: String,
        /// apt's last lines.
        said: String,
    },
    /// A download does not have the size and digest that the signed archive states.
    #[error("the downloaded package {package} is not what the archive describes: {problem}")]
    Mismatch {
        /// The package.
        package: String,
        /// Size or digest.
        problem: &'static str,
    },
    /// apt could not be asked.
    #[error("{program} failed; it said: {said}")]
    Query {
        /// The program.
        program: String,
        /// Its last lines.
        said: String,
    },
    /// apt did not end in time.
    #[error("{program} did not end within {seconds} s")]
    TimedOut {
        /// The program.
        program: String,
        /// The deadline.
        seconds: u64,
    },
    /// apt's answer could not be read.
    #[error("cannot read apt's description of a package")]
    Description(#[source] ControlError),
    /// A list of packages cannot be completed.
    #[error("package {needed_by} needs {needs}, which the archive does not have")]
    Unsatisfiable {
        /// Who asks for it.
        needed_by: String,
        /// What would do.
        needs: String,
    },
    /// A list of packages needs more than any sensible image.
    #[error("the packages asked for need too many others")]
    TooManyPackages,
    /// A file or process operation failed.
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
}

impl AptError {
    /// An archive moves on: what old lists name may be gone, and what is new is not in them.
    fn may_be_stale_lists(&self) -> bool {
        matches!(
            self,
            Self::Download { .. } | Self::NoSuchPackage { .. } | Self::Unsatisfiable { .. }
        )
    }
}

/// The package archive of this host, through its apt.
#[derive(Debug)]
pub struct AptSource {
    apt_get: PathBuf,
    apt_cache: PathBuf,
    root: PathBuf,
    options: Vec<OsString>,
}

impl AptSource {
    /// Finds apt and makes sure that there are package lists, fetching our own where the host's
    /// are missing or unreadable. `root` holds apt's state and the downloads.
    ///
    /// # Errors
    /// See [`AptError`].
    pub fn open(root: &Path, progress: &dyn Progress) -> Result<Self, AptError> {
        let mut source = Self::prepare(root)?;
        if !source.has_lists()? {
            source.use_own_lists()?;
            if !source.has_lists()? {
                source.fetch_lists(progress)?;
            }
        }
        Ok(source)
    }

    /// As [`AptSource::open`], but with lists of our own, freshly fetched.
    ///
    /// # Errors
    /// See [`AptError`].
    pub fn open_fresh(root: &Path, progress: &dyn Progress) -> Result<Self, AptError> {
        let mut source = Self::prepare(root)?;
        source.use_own_lists()?;
        source.fetch_lists(progress)?;
        Ok(source)
    }

    /// Opens the archive for an operation and, where it fails because the host's lists are older
    /// than the archive, runs it once more with fresh lists of our own.
    ///
    /// # Errors
    /// See [`AptError`].
    pub fn with_archive<T>(
        root: &Path,
        progress: &dyn Progress,
        operation: impl Fn(&Self) -> Result<T, AptError>,
    ) -> Result<T, AptError> {
        let error = match operation(&Self::open(root, progress)?) {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        if !error.may_be_stale_lists() {
            return Err(error);
        }
        progress.report(ProgressEvent::Note(format!(
            "Asking with fresh package lists: {error}"
        )));
        let fresh = Self::open_fresh(root, progress);
        match fresh {
            Ok(source) => operation(&source),
            // The first failure is nearer to the cause.
            Err(_) => Err(error),
        }
    }

    /// The candidate version of one package.
    ///
    /// # Errors
    /// [`AptError::NoSuchPackage`] where the archive has none.
    pub fn candidate(&self, name: &str) -> Result<Package, AptError> {
        let names = BTreeSet::from([name.to_owned()]);
        let packages = self.describe(&names)?.into_iter();
        packages
            .into_iter()
            .find(|package| package.name == name)
            .ok_or_else(|| AptError::NoSuchPackage {
                package: name.to_owned(),
            })
    }

    /// The versioned package that a meta package stands for: its first dependency whose name
    /// begins with `prefix`.
    ///
    /// # Errors
    /// [`AptError::NoSuchPackage`] where either is missing.
    pub fn candidate_behind(&self, meta: &str, prefix: &str) -> Result<Package, AptError> {
        let meta = self.candidate(meta)?;
        let names = meta
            .depends
            .iter()
            .flat_map(|dependency| &dependency.alternatives);
        let name = names.into_iter().find(|name| name.starts_with(prefix));
        let name = name.ok_or_else(|| AptError::NoSuchPackage {
            package: format!("{prefix}*"),
        })?;
        self.candidate(name)
    }

    /// A list of packages and all that they need, sorted by name. Packages in `excluded` are taken
    /// as being there, so that neither they nor what only they need is fetched.
    ///
    /// # Errors
    /// See [`AptError`].
    pub fn closure(&self, wanted: &[&str], excluded: &[&str]) -> Result<Vec<Package>, AptError> {
        resolve(self, wanted, excluded).map_err(|error| match error {
            ResolveError::Unsatisfiable {
                needed_by,
                alternatives,
            } if needed_by.is_empty() => AptError::NoSuchPackage {
                package: alternatives.join(" or "),
            },
            ResolveError::Unsatisfiable {
                needed_by,
                alternatives,
            } => AptError::Unsatisfiable {
                needed_by,
                needs: alternatives.join(" or "),
            },
            ResolveError::TooMany => AptError::TooManyPackages,
            ResolveError::Archive(error) => error,
        })
    }

    /// Downloads packages that are not here yet; every returned file has the size and SHA-256 that
    /// the archive states.
    ///
    /// # Errors
    /// See [`AptError`].
    pub fn download(
        &self,
        packages: &[Package],
        progress: &dyn Progress,
    ) -> Result<Vec<PathBuf>, AptError> {
        let store = self.root.join("packages");
        create_directory(&store)?;
        let kept = |package: &Package| store.join(package.file_name());
        let wanted: Vec<&Package> = packages
            .iter()
            .filter(|package| verify(&kept(package), package).is_err())
            .collect();
        if !wanted.is_empty() {
            progress.report(ProgressEvent::Step(download_step(&wanted)));
            let scratch = self.fetch(&wanted)?;
            for package in wanted {
                let fetched = scratch.path().join(package.file_name());
                verify(&fetched, package)?;
                rename(&fetched, &kept(package))?;
            }
            sync_directory(&store).map_err(io_error("write", &store))?;
        }
        Ok(packages.iter().map(kept).collect())
    }

    fn prepare(root: &Path) -> Result<Self, AptError> {
        let find = |program| command::find_in_path(program).ok_or(AptError::Missing { program });
        let root = std::path::absolute(root).map_err(io_error("resolve", root))?;
        for directory in ["state", "cache/archives/partial"] {
            create_directory(&root.join(directory))?;
        }
        let status = root.join("state/status");
        fs::write(&status, b"").map_err(io_error("write", &status))?;
        let mut source = Self {
            apt_get: find("apt-get")?,
            apt_cache: find("apt-cache")?,
            options: Vec::new(),
            root,
        };
        source.set("APT::Architecture", host_architecture());
        source.set("Dir::State::status", source.root.join("state/status"));
        source.set(
            "Dir::State::extended_states",
            source.root.join("state/extended_states"),
        );
        source.set("Dir::Cache", source.root.join("cache"));
        // Container images switch these off, which costs a second per call.
        source.set("Dir::Cache::pkgcache", "pkgcache.bin");
        source.set("Dir::Cache::srcpkgcache", "srcpkgcache.bin");
        source.set("Acquire::Retries", "2");
        source.set("Acquire::http::Timeout", "30");
        source.set("Acquire::https::Timeout", "30");
        source.set("Acquire::Languages", "none");
        Ok(source)
    }

    fn set(&mut self, option: &str, value: impl Into<OsString>) {
        let mut assignment = OsString::from(format!("{option}="));
        assignment.push(value.into());
        self.options.extend([OsString::from("-o"), assignment]);
    }

    /// Whether a package that every release has can be downloaded by what the lists say.
    fn has_lists(&self) -> Result<bool, AptError> {
        Ok(!self
            .describe(&BTreeSet::from(["base-files".to_owned()]))?
            .is_empty())
    }

    fn use_own_lists(&mut self) -> Result<(), AptError> {
        create_directory(&self.root.join("state/lists/partial"))?;
        self.set("Dir::State", self.root.join("state"));
        self.set("Dir::State::lists", self.root.join("state/lists"));
        Ok(())
    }

    fn fetch_lists(&self, progress: &dyn Progress) -> Result<(), AptError> {
        progress.report(ProgressEvent::Step("Fetching package lists".to_owned()));
        // Without this a list that cannot be fetched is a warning and exit code 0.
        let arguments = ["-o", "APT::Update::Error-Mode=any", "-q", "update"];
        let answer = self.run(&self.apt_get, &arguments, &self.root, TRANSFER_DEADLINE)?;
        if !answer.success || !self.has_lists()? {
            return Err(AptError::NoLists {
                said: last_words(&answer),
            });
        }
        Ok(())
    }

    fn fetch(&self, packages: &[&Package]) -> Result<tempfile::TempDir, AptError> {
        let scratch = tempfile::Builder::new()
            .prefix(".download-")
            .tempdir_in(&self.root)
            .map_err(io_error("create a directory in", &self.root))?;
        let versions: Vec<String> = packages
            .iter()
            .map(|package| format!("{}={}", package.name, package.version))
            .collect();
        let mut arguments = vec!["-q", "download"];
        arguments.extend(versions.iter().map(String::as_str));
        let answer = self.run(&self.apt_get, &arguments, scratch.path(), TRANSFER_DEADLINE)?;
        if !answer.success {
            let package = versions.join(" ");
            return Err(AptError::Download {
                package,
                said: last_words(&answer),
            });
        }
        Ok(scratch)
    }

    fn run(
        &self,
        program: &Path,
        arguments: &[&str],
        directory: &Path,
        deadline: Duration,
    ) -> Result<Answer, AptError> {
        let mut all = self.options.clone();
        all.extend(arguments.iter().map(OsString::from));
        let answer =
            command::run(program, &all, directory, deadline).map_err(io_error("run", program))?;
        if answer.timed_out {
            let program = program.display().to_string();
            return Err(AptError::TimedOut {
                program,
                seconds: deadline.as_secs(),
            });
        }
        Ok(answer)
    }

    /// Runs `apt-cache` for its output; "nothing found" is an empty answer, not an error.
    fn query(&self, arguments: &[&str]) -> Result<String, AptError> {
        let answer = self.run(&self.apt_cache, arguments, &self.root, QUERY_DEADLINE)?;
        // apt-cache ends with 100 both for "no packages found" and for a broken configuration.
        let not_found = answer.stderr.contains("No packages found");
        if !answer.success && !not_found {
            let program = self.apt_cache.display().to_string();
            return Err(AptError::Query {
                program,
                said: last_words(&answer),
            });
        }
        Ok(String::from_utf8_lossy(&answer.stdout).into_owned())
    }
}

impl Archive for AptSource {
    type Error = AptError;

    fn describe(&self, names: &BTreeSet<String>) -> Result<Vec<Package>, AptError> {
        let mut arguments = vec!["--no-all-versions", "show", "--"];
        arguments.extend(names.iter().map(String::as_str));
        parse_packages(&self.query(&arguments)?).map_err(AptError::Description)
    }

    fn providers(&self, name: &str) -> Result<Vec<String>, AptError> {
        let text = self.query(&["showpkg", "--", name])?;
        let lines = text
            .lines()
            .skip_while(|line| !line.starts_with("Reverse Provides:"))
            .skip(1);
        let mut names: Vec<String> = lines
            .filter_map(|line| line.split(' ').next())
            .map(str::to_owned)
            .collect();
        names.retain(|name| !name.is_empty());
        names.sort();
        names.dedup();
        Ok(names)
    }
}

fn download_step(packages: &[&Package]) -> String {
    let bytes: u64 = packages.iter().map(|package| package.size).sum();
    let mib = bytes.div_ceil(1 << 20);
    match packages {
        [package] => format!("Downloading {} ({mib} MiB)", package.name),
        _ => format!("Downloading {} packages ({mib} MiB)", packages.len()),
    }
}

fn verify(path: &Path, package: &Package) -> Result<(), AptError> {
    let mismatch = |problem| AptError::Mismatch {
        package: package.name.clone(),
        problem,
    };
    let file = fs::File::open(path).map_err(io_error("open", path))?;
    let size = file.metadata().map_err(io_error("read", path))?.len();
    if size != package.size {
        return Err(mismatch("its size differs"));
    }
    let (digest, _) = digest_reader(file).map_err(io_error("read", path))?;
    if digest != package.sha256 {
        return Err(mismatch("its SHA-256 differs"));
    }
    Ok(())
}

fn rename(from: &Path, to: &Path) -> Result<(), AptError> {
    let file = fs::File::open(from).map_err(io_error("open", from))?;
    file.sync_all().map_err(io_error("write", from))?;
    fs::rename(from, to).map_err(io_error("create", to))
}

fn create_directory(path: &Path) -> Result<(), AptError> {
    fs::create_dir_all(path).map_err(io_error("create", path))
}

fn io_error<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> AptError + 'a {
    move |source| AptError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

/// apt's last lines that say something, on one line.
fn last_words(answer: &Answer) -> String {
    let output = String::from_utf8_lossy(&answer.stdout);
    let text = if answer.stderr.trim().is_empty() {
        output.as_ref()
    } else {
        &answer.stderr
    };
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    lines[lines.len().saturating_sub(SAID_LINES)..].join("; ")
}

#[cfg(test)]
#[path = "apt_tests.rs"]
mod tests;
