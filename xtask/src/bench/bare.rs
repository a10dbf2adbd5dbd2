//! The bare side of the benchmark: what a script would do with QEMU and no Kiln at all.
//!
//! Takes the command line of a machine that Kiln runs, so that kernel, initramfs, disks and
//! options are the same by construction, and gives it sockets and a disk of its own. A run is:
//! start QEMU, greet the agent, run the command, kill QEMU.

use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::agent::{self, AgentError};
use crate::qemu::{self, Qemu};
use crate::step::{self, StepError};

/// Why there is no bare figure.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BareError {
    #[error("the command line of the machine's VMM cannot be read")]
    CommandLine(#[source] io::Error),
    #[error("the machine's VMM is not a QEMU whose command line is understood: {0}")]
    NotUnderstood(&'static str),
    #[error("the machine's disk cannot be copied")]
    Disk(#[from] StepError),
    #[error("cannot use {path}")]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot start QEMU")]
    Start(#[source] io::Error),
    #[error(transparent)]
    Agent(#[from] AgentError),
}

/// QEMU's command line with the parts that belong to one run left open.
#[derive(Debug)]
pub(super) struct Recipe {
    program: String,
    arguments: Vec<String>,
    /// Disks that the guest writes: where the clean copy lies, and its number.
    disks: Vec<PathBuf>,
    initrd: PathBuf,
    dir: tempfile::TempDir,
}

/// Stand for what each run fills in. They cannot be in a path: QEMU's words hold no NUL byte.
const AGENT_FD: &str = "\0agent\0";
const DISK: &str = "\0disk\0";

impl Recipe {
    /// From a running machine. `dir` is where its disks are copied to, whose content has to have
    /// been synced.
    pub(super) fn of_process(pid: u32, dir: tempfile::TempDir) -> Result<Self, BareError> {
        let words = fs::read(format!("/proc/{pid}/cmdline")).map_err(BareError::CommandLine)?;
        let words: Vec<String> = words
            .split(|byte| *byte == 0)
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
        let (program, words) = words
            .split_first()
            .ok_or(BareError::NotUnderstood("it is empty"))?;
        let files = OpenFiles::of(pid).map_err(BareError::CommandLine)?;
        let words = with_names(words, &files, dir.path())?;
        let template = Template::of(&words).map_err(BareError::NotUnderstood)?;
        let mut recipe = Self {
            program: program.clone(),
            arguments: template.arguments,
            disks: Vec::new(),
            initrd: template.initrd,
            dir,
        };
        for disk in template.disks {
            recipe.keep(&disk)?;
        }
        Ok(recipe)
    }

    /// Size of the initramfs, in MiB.
    pub(super) fn initramfs_mib(&self) -> Result<f64, BareError> {
        let size = fs::metadata(&self.initrd)
            .map_err(|source| BareError::File {
                path: self.initrd.clone(),
                source,
            })?
            .len();
        Ok(size as f64 / f64::from(1 << 20))
    }

    /// Keeps a clean copy of a disk that is in use.
    fn keep(&mut self, disk: &Path) -> Result<(), BareError> {
        let clean = self.dir.path().join(format!("clean{}", self.disks.len()));
        copy_sparse(disk, &clean)?;
        // Replays the journal: Kiln's machine finds none to replay either. Status 1: mended.
        let mut check = Command::new("e2fsck");
        check
            .env(
                "PATH",
                std::env::join_paths(step::program_dirs()).unwrap_or_default(),
            )
            .args(["-f", "-y"])
            .arg(&clean);
        match step::capture(&mut check) {
            Ok(_) => {}
            Err(StepError::Failed { status, .. }) if status.code() == Some(1) => {}
            Err(error) => return Err(error.into()),
        }
        self.disks.push(clean);
        Ok(())
    }

    /// One run. The copies of the disks are made before the clock starts, as a script's would be.
    pub(super) fn run(&self, command: &[&str]) -> Result<Duration, BareError> {
        let (ours, theirs) = UnixStream::pair().map_err(BareError::Start)?;
        let mut qemu = self.command(&theirs)?;
        let started = Instant::now();
        let running = Qemu::start(&mut qemu, &[&theirs]).map_err(BareError::Start)?;
        drop(theirs);
        agent::run(ours, command)?;
        drop(running);
        Ok(started.elapsed())
    }

    fn command(&self, agent: &UnixStream) -> Result<Command, BareError> {
        let mut used = Vec::new();
        for (number, clean) in self.disks.iter().enumerate() {
            let copy = self.dir.path().join(format!("used{number}"));
            copy_sparse(clean, &copy)?;
            used.push(copy.to_string_lossy().into_owned());
        }
        let mut used = used.into_iter();
        let mut command = qemu::command(&self.program);
        for word in &self.arguments {
            let word = word.replace(AGENT_FD, &agent.as_raw_fd().to_string());
            command.arg(fill(&word, &mut used));
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Ok(command)
    }
}

/// The files that a VMM was handed open: a script has names instead.
#[derive(Debug, Default)]
struct OpenFiles {
    proc_dir: PathBuf,
    read_only: Vec<PathBuf>,
    writable: Vec<PathBuf>,
}

impl OpenFiles {
    /// Disk images that the process has open. QEMU closes the descriptors that it was given in
    /// favour of its own, so that only their modes tell which is which.
    fn of(pid: u32) -> io::Result<Self> {
        let proc_dir = PathBuf::from(format!("/proc/{pid}"));
        let mut files = Self::default();
        for entry in fs::read_dir(proc_dir.join("fd"))? {
            let entry = entry?;
            let Ok(path) = fs::read_link(entry.path()) else {
                continue;
            };
            if path.extension().is_none_or(|extension| extension != "ext4") {
                continue;
            }
            let info = fs::read_to_string(proc_dir.join("fdinfo").join(entry.file_name()))?;
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
            // The last octal digit holds the access mode (open(2)): 0 is read-only.
            let kind = match flags.and_then(|flags| flags.trim().bytes().last()) {
                Some(b'0' | b'4') => &mut files.read_only,
                _ => &mut files.writable,
            };
            if !kind.contains(&path) {
                kind.push(path);
            }
        }
        Ok(Self { proc_dir, ..files })
    }

    /// The only disk of a kind.
    fn disk(&self, read_only: bool) -> Result<&Path, BareError> {
        match if read_only {
            &self.read_only
        } else {
            &self.writable
        }
        .as_slice()
        {
            [only] => Ok(only),
            _ => Err(BareError::NotUnderstood("it has several disks of a kind")),
        }
    }
}

/// Puts names where descriptors are. Kernel and initramfs are copied to `dir`: theirs go with the
/// machine's jail.
fn with_names(words: &[String], files: &OpenFiles, dir: &Path) -> Result<Vec<String>, BareError> {
    let mut named = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if word == "-add-fd" {
            words.next();
        } else if let Some(fd) = word.strip_prefix("/proc/self/fd/") {
            let copy = dir.join(format!("file{fd}"));
            let from = files.proc_dir.join("fd").join(fd);
            fs::copy(&from, &copy).map_err(|source| BareError::File { path: from, source })?;
            named.push(copy.display().to_string());
        } else if let Some(rest) = word.strip_prefix("memory-backend-file,") {
            // Which Kiln keeps in a file, for snapshots. A bare machine's memory is nobody else's.
            let (kept, _) = rest
                .split_once(",mem-path=")
                .ok_or(BareError::NotUnderstood("its memory is in no file"))?;
            named.push(format!("memory-backend-ram,{kept}"));
        } else if word.contains("/dev/fdset/") {
            named.push(with_disk(word, files)?);
        } else {
            named.push(word.clone());
        }
    }
    Ok(named)
}

fn with_disk(word: &str, files: &OpenFiles) -> Result<String, BareError> {
    const UNCLEAR: BareError = BareError::NotUnderstood("a disk is not described in JSON");
    let mut value: Value = serde_json::from_str(word).map_err(|_| UNCLEAR)?;
    let read_only = value["read-only"] == true;
    let disk = files.disk(read_only)?.display().to_string();
    *value.pointer_mut("/file/filename").ok_or(UNCLEAR)? = Value::String(disk);
    Ok(value.to_string())
}

/// Puts the next disk into a word that is open for one.
fn fill(word: &str, disks: &mut impl Iterator<Item = String>) -> String {
    let Ok(mut value) = serde_json::from_str::<Value>(word) else {
        return word.to_owned();
    };
    let Some(name) = value
        .pointer_mut("/file/filename")
        .filter(|name| *name == DISK)
    else {
        return word.to_owned();
    };
    if let Some(disk) = disks.next() {
        *name = Value::String(disk);
    }
    value.to_string()
}

/// A command line with its own sockets and writable disks taken out.
#[derive(Debug)]
struct Template {
    arguments: Vec<String>,
    disks: Vec<PathBuf>,
    initrd: PathBuf,
}

impl Template {
    fn of(words: &[String]) -> Result<Self, &'static str> {
        let mut arguments = Vec::new();
        let (mut disks, mut initrd, mut agent) = (Vec::new(), None, false);
        let mut words = words
            .iter()
            .map(String::as_str)
            .filter(|word| !word.is_empty())
            .peekable();
        while let Some(word) = words.next() {
            let value = words.next_if(|_| TAKES_A_VALUE.contains(&word));
            match (word, value) {
                // Kiln starts its machines stopped and lets them go by QMP, which a script has not.
                ("-S", _) => continue,
                ("-mon", _) => continue,
                ("-chardev", Some(device)) if device.starts_with("socket,id=qmp,") => continue,
                ("-chardev", Some(device)) if device.starts_with("socket,id=console,") => {
                    arguments.extend([word.to_owned(), "null,id=console".to_owned()]);
                    continue;
                }
                ("-chardev", Some(device)) if device.starts_with("socket,id=agent,") => {
                    agent = true;
                    arguments.extend([word.to_owned(), format!("socket,id=agent,fd={AGENT_FD}")]);
                    continue;
                }
                ("-initrd", Some(path)) => initrd = Some(PathBuf::from(path)),
                ("-blockdev", Some(device)) => {
                    arguments.push(word.to_owned());
                    arguments.push(open_disk(device, &mut disks)?);
                    continue;
                }
                _ => {}
            }
            arguments.push(word.to_owned());
            arguments.extend(value.map(str::to_owned));
        }
        if !agent {
            return Err("it has no agent port");
        }
        let initrd = initrd.ok_or("it has no initramfs")?;
        Ok(Self {
            arguments,
            disks,
            initrd,
        })
    }
}

/// QEMU's options that are followed by a value, as far as Kiln uses them.
const TAKES_A_VALUE: &[&str] = &[
    "-M",
    "-accel",
    "-append",
    "-blockdev",
    "-chardev",
    "-cpu",
    "-device",
    "-display",
    "-initrd",
    "-kernel",
    "-m",
    "-mon",
    "-name",
    "-netdev",
    "-object",
    "-sandbox",
    "-serial",
    "-smp",
    "-uuid",
];

/// Leaves the file of a writable disk open and notes it; a read-only one is shared.
fn open_disk(device: &str, disks: &mut Vec<PathBuf>) -> Result<String, &'static str> {
    let mut value: Value =
        serde_json::from_str(device).map_err(|_| "a disk is not described in JSON")?;
    if value.get("read-only").and_then(Value::as_bool) == Some(true) {
        return Ok(device.to_owned());
    }
    let name = value
        .pointer_mut("/file/filename")
        .ok_or("a disk is not a file")?;
    disks.push(PathBuf::from(name.as_str().ok_or("a disk has no path")?));
    *name = Value::String(DISK.to_owned());
    Ok(value.to_string())
}

fn copy_sparse(from: &Path, to: &Path) -> Result<(), StepError> {
    let mut copy = Command::new("cp");
    copy.args(["--sparse=always", "--reflink=auto", "--"])
        .arg(from)
        .arg(to);
    step::capture(&mut copy).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_become_the_names_they_stand_for() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = fs::File::open("/proc/self/exe").unwrap();
        let disk = dir.path().join("root.ext4");
        fs::write(&disk, "disk").unwrap();
        let _held = fs::File::open(&disk).unwrap();
        let words = [
            "-kernel".to_owned(),
            format!("/proc/self/fd/{}", kernel.as_raw_fd()),
            "-add-fd".to_owned(),
            "fd=800,set=0".to_owned(),
            "-blockdev".to_owned(),
            r#"{"file":{"filename":"/dev/fdset/0"},"read-only":true}"#.to_owned(),
            "memory-backend-file,id=mem,size=64M,mem-path=/proc/self/fd/9,share=on".to_owned(),
        ];
        let mut files = OpenFiles::of(std::process::id()).unwrap();
        // Other tests of this process may have theirs.
        files.read_only.retain(|path| *path == disk);
        let named = with_names(&words, &files, dir.path()).unwrap();
        assert_eq!(named.len(), 5);
        assert_eq!(named[4], "memory-backend-ram,id=mem,size=64M");
        assert!(Path::new(&named[1]).starts_with(dir.path()));
        let blockdev: Value = serde_json::from_str(&named[3]).unwrap();
        assert_eq!(blockdev["file"]["filename"], disk.display().to_string());
        assert!(files.disk(false).is_err() || !files.writable.is_empty());
    }

    fn words(line: &[&str]) -> Vec<String> {
        line.iter().map(|word| (*word).to_owned()).collect()
    }

    const SHARED: &str = r#"{"driver":"raw","file":{"filename":"/images/a b"},"read-only":true}"#;
    const SCRATCH: &str = r#"{"driver":"raw","file":{"filename":"/disks/x"},"read-only":false}"#;

    #[test]
    fn a_machine_of_kilns_becomes_a_recipe() {
        let template = Template::of(&words(&[
            "-nodefaults",
            "-S",
            "-M",
            "microvm,accel=tcg",
            "-initrd",
            "/cache/i.cpio",
            "-chardev",
            "socket,id=qmp,fd=5,server=on,wait=off",
            "-mon",
            "chardev=qmp,mode=control",
            "-chardev",
            "socket,id=console,fd=6,server=on,wait=off",
            "-serial",
            "chardev:console",
            "-chardev",
            "socket,id=agent,fd=7,server=on,wait=off",
            "-blockdev",
            SHARED,
            "-blockdev",
            SCRATCH,
            "",
        ]))
        .unwrap();
        assert_eq!(template.initrd, Path::new("/cache/i.cpio"));
        assert_eq!(template.disks, [PathBuf::from("/disks/x")]);
        let mut disks = ["/tmp/used".to_owned()].into_iter();
        let line: Vec<String> = template
            .arguments
            .iter()
            .map(|word| fill(&word.replace(AGENT_FD, "9"), &mut disks))
            .collect();
        assert_eq!(
            line,
            words(&[
                "-nodefaults",
                "-M",
                "microvm,accel=tcg",
                "-initrd",
                "/cache/i.cpio",
                "-chardev",
                "null,id=console",
                "-serial",
                "chardev:console",
                "-chardev",
                "socket,id=agent,fd=9",
                "-blockdev",
                SHARED,
                "-blockdev",
                &SCRATCH.replace("/disks/x", "/tmp/used"),
            ])
        );
    }

    #[test]
    fn another_engine_is_not_understood() {
        assert!(Template::of(&words(&["--api-sock", "/run/fc.sock"])).is_err());
    }
}
