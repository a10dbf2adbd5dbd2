//! A stage for black-box scenarios: the real `kiln`, a data directory of its own, real guests.
//!
//! Artefacts that take long (kernel, default image) are provisioned once into `target/e2e` and
//! hard-linked into each scenario's data directory. A [`Stage`] that is dropped ends its daemon
//! and its machines; [`Stage::assert_nothing_left`] proves that a scenario left nothing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    missing_docs,
    reason = "a test harness fails by panicking, and its readers are its tests"
)]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Longest that one command of a scenario may take; guests are emulated and machines are busy.
const PATIENCE: Duration = Duration::from_secs(240);

/// How long a daemon may take to end.
const ENDING: Duration = Duration::from_secs(10);

/// Becomes a command that has a namespace's resolver. `ip netns exec` would put another `/sys` in
/// the way of the control groups that jails need.
const IN_NAMESPACE: &str =
    r#"mount --bind "/etc/netns/$0/resolv.conf" /etc/resolv.conf && exec "$@" "#;

/// One scenario's host: its own directories, its own daemon.
#[derive(Debug)]
pub struct Stage {
    root: tempfile::TempDir,
    /// Apart, and short: a socket's path holds at most 107 bytes.
    runtime: tempfile::TempDir,
    data: PathBuf,
    env: Vec<(String, String)>,
    namespace: Option<String>,
}

/// How a command ended, with text at hand.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Ran {
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {self:?}"))
    }

    /// The coded error on standard error of a command with `--json`.
    #[must_use]
    pub fn error(&self) -> Value {
        let line = self.stderr.lines().rev().find(|line| line.starts_with('{'));
        let line = line.unwrap_or_else(|| panic!("no JSON error: {self:?}"));
        serde_json::from_str::<Value>(line).unwrap()["error"].clone()
    }

    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        self
    }
}

impl Stage {
    /// A stage whose data directory holds the provisioned kernel and default image.
    #[must_use]
    pub fn new() -> Self {
        let stage = Self::bare();
        for part in ["kernels", "images", "cache"] {
            link_tree(&provisioned().join(part), &stage.data.join(part));
        }
        stage
    }

    /// A stage with nothing provisioned.
    #[must_use]
    pub fn bare() -> Self {
        let root = tempfile::Builder::new()
            .prefix("kiln-e2e-")
            .tempdir_in(scratch_base())
            .unwrap();
        let data = root.path().join("data");
        fs::create_dir(&data).unwrap();
        let runtime = tempfile::Builder::new()
            .prefix("kiln-e2e-")
            .tempdir_in("/tmp")
            .unwrap();
        Self {
            root,
            runtime,
            data,
            env: Vec::new(),
            namespace: None,
        }
    }

    /// Sets a variable for every command and so for the daemon that the first one starts.
    #[must_use]
    pub fn with_env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.env
            .push((name.to_owned(), value.as_ref().to_str().unwrap().to_owned()));
        self
    }

    /// Runs every command, and so the daemon, in this network namespace.
    #[must_use]
    pub fn in_network_namespace(mut self, name: &str) -> Self {
        self.namespace = Some(name.to_owned());
        self
    }

    #[must_use]
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Room for the scenario's own files.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    #[must_use]
    pub fn runtime(&self) -> PathBuf {
        self.runtime.path().join("run")
    }

    /// A `kiln` command of this stage.
    #[must_use]
    pub fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = match &self.namespace {
            Some(name) => {
                let mut command = Command::new("nsenter");
                command
                    .arg(format!("--net=/run/netns/{name}"))
                    .args(["unshare", "--mount", "sh", "-c", IN_NAMESPACE, name])
                    .arg(kiln());
                command
            }
            None => Command::new(kiln()),
        };
        command.args(args).stdin(Stdio::null());
        self.sets_up(&mut command);
        command
    }

    /// Gives a command, whatever it is, the environment of this stage's `kiln`.
    pub fn sets_up(&self, command: &mut Command) {
        environment(command, &self.data, &self.runtime())
            .envs(self.env.iter().map(|(name, value)| (name, value)));
    }

    /// Runs `kiln` to its end.
    pub fn kiln<S: AsRef<OsStr>>(&self, args: &[S]) -> Ran {
        finish(
            self.command(args)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap(),
        )
    }

    /// Starts a sandbox that lives until it is removed; returns its id.
    #[must_use]
    pub fn sandbox(&self, options: &[&str]) -> String {
        let args = [
            &["run", "--json", "--detach"],
            options,
            &["--", "sleep", "100000"],
        ]
        .concat();
        let ran = self.kiln(&args).expect_code(0);
        ran.json()["id"]
            .as_str()
            .unwrap_or_else(|| panic!("no id: {ran:?}"))
            .to_owned()
    }

    /// Every sandbox as `kiln ps` tells it.
    #[must_use]
    pub fn sandboxes(&self) -> Vec<Value> {
        let json = self.kiln(&["ps", "--all", "--json"]).expect_code(0).json();
        let list = json.get("sandboxes").unwrap_or(&json);
        list.as_array()
            .unwrap_or_else(|| panic!("no list: {list}"))
            .clone()
    }

    #[must_use]
    pub fn daemon_pid(&self) -> u32 {
        let info = self.kiln(&["info", "--json"]).expect_code(0).json();
        info["daemon_pid"]
            .as_u64()
            .unwrap_or_else(|| panic!("no pid: {info}")) as u32
    }

    /// Kills the daemon, and waits until it is gone: until then it might still take a connection.
    pub fn kill_daemon(&self) {
        let pid = self.daemon_pid();
        signal(pid, Signal::KILL);
        eventually("the daemon is gone", || {
            !Path::new(&format!("/proc/{pid}/exe")).exists()
        });
        self.wait_until_gone();
    }

    /// Waits until a daemon that died has let go of its place: its socket still takes connections for
    /// a moment, and resets them.
    pub fn wait_until_gone(&self) {
        let lock = fs::File::open(self.runtime().join("kiln.sock.lock")).unwrap();
        lock.lock().unwrap();
    }

    /// Processes on this machine that have this stage's directories on their command line or files
    /// in them open.
    #[must_use]
    pub fn processes(&self) -> Vec<(u32, String)> {
        let needles = [self.root.path(), self.runtime.path()].map(|path| path.to_str().unwrap());
        running(|told| needles.iter().any(|needle| told.contains(needle)))
    }

    /// No sandbox, machine, socket, half-made file or row is left; the daemon may idle.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        assert_eq!(self.sandboxes(), Vec::<Value>::new(), "rows are left");
        let machines: Vec<_> = self
            .processes()
            .into_iter()
            .filter(|(_, line)| !line.contains("daemon"))
            .collect();
        assert!(machines.is_empty(), "processes are left: {machines:?}");
        for dir in [
            self.data.join("sandboxes"),
            self.data.join("snapshots"),
            self.runtime().join("vm"),
        ] {
            assert_eq!(
                names_in(&dir),
                Vec::<String>::new(),
                "files are left in {dir:?}"
            );
        }
        for dir in ["images", "kernels"] {
            let partial = partials(&self.data.join(dir));
            assert!(partial.is_empty(), "half-made files are left: {partial:?}");
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let own = self.data.to_str().unwrap();
        let inside: Vec<_> = mounts
            .lines()
            .filter(|line| {
                line.split(' ')
                    .nth(1)
                    .is_some_and(|at| at.len() > own.len() && at.starts_with(own))
            })
            .collect();
        assert!(inside.is_empty(), "mounts are left: {inside:?}");
    }
}

impl Default for Stage {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // The machines first: a daemon that ends normally, and has none, takes everything of its
        // own off the host.
        let is_daemon = |(_, line): &(u32, String)| line.contains("daemon");
        for (pid, _) in self.processes().into_iter().filter(|it| !is_daemon(it)) {
            signal(pid, Signal::KILL);
        }
        within(ENDING, || self.processes().iter().all(is_daemon));
        if let Ok(pid) = fs::read_to_string(self.data.join("lock")) {
            end_daemon_of(&pid, &self.data);
        }
        for (pid, _) in self.processes() {
            signal(pid, Signal::KILL);
        }
    }
}

/// Waits for a child, but not for ever.
#[must_use]
pub fn finish(child: Child) -> Ran {
    finish_within(child, PATIENCE)
}

#[must_use]
pub fn finish_within(child: Child, patience: Duration) -> Ran {
    let pid = child.id();
    let (done, waiting) = std::sync::mpsc::channel();
    std::thread::spawn(move || done.send(child.wait_with_output()));
    let output: Output = match waiting.recv_timeout(patience) {
        Ok(output) => output.unwrap(),
        Err(_) => {
            signal(pid, Signal::KILL);
            let output = waiting.recv().unwrap().unwrap();
            panic!("still running after {patience:?}: {output:?}");
        }
    };
    Ran {
        code: output.status.code(),
        stdout: output.stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

pub fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// Waits until `what` holds.
#[track_caller]
pub fn eventually(what: &str, holds: impl FnMut() -> bool) {
    let held = within(Duration::from_secs(60), holds);
    assert!(held, "it never came true: {what}");
}

/// Whether it came true in time.
fn within(patience: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    while !holds() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

/// Says loudly that a test could not run here.
pub fn skip(test: &str, why: &str) {
    eprintln!("SKIPPED: {test}: {why}");
}

static KILN: OnceLock<PathBuf> = OnceLock::new();

/// From here on the `kiln` under test is a debug build, which has fail points, if there is one in
/// `KILN_DEBUG_BIN`.
pub fn with_fail_points() {
    if let Some(given) = std::env::var_os("KILN_DEBUG_BIN") {
        KILN.get_or_init(|| PathBuf::from(given));
    }
}

/// The `kiln` under test, built if it is not.
pub fn kiln() -> &'static Path {
    KILN.get_or_init(|| {
        if let Some(given) = std::env::var_os("KILN_BIN") {
            return PathBuf::from(given);
        }
        let exe = std::env::current_exe().unwrap();
        let profile_dir = exe.ancestors().nth(2).unwrap();
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--package", "kiln-cli"]);
        if profile_dir.ends_with("release") {
            build.arg("--release");
        }
        let built = build
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .unwrap();
        assert!(built.success(), "kiln does not build");
        profile_dir.join("kiln")
    })
}

/// A data directory with kernel and default image, made once for every scenario.
fn provisioned() -> &'static Path {
    static BASE: OnceLock<PathBuf> = OnceLock::new();
    BASE.get_or_init(|| {
        let base = target_dir().join("e2e");
        fs::create_dir_all(&base).unwrap();
        let lock = fs::File::create(base.join("provision.lock")).unwrap();
        lock.lock().unwrap();
        let data = base.join("data");
        let runtime = tempfile::Builder::new()
            .prefix("kiln-e2e-")
            .tempdir_in("/tmp")
            .unwrap();
        let mut command = Command::new(kiln());
        environment(&mut command, &data, runtime.path())
            .args(["run", "--", "true"])
            .stdin(Stdio::null())
            .process_group(0);
        let ran = command.output().unwrap();
        assert!(ran.status.success(), "provisioning failed: {ran:?}");
        let pid = fs::read_to_string(data.join("lock")).unwrap_or_default();
        end_daemon_of(&pid, &data);
        data
    })
}

fn environment<'c>(command: &'c mut Command, data: &Path, runtime: &Path) -> &'c mut Command {
    command
        // A scenario that wants a network says so: this machine's own is left alone.
        .env("KILN_NETWORK", "none")
        .env("KILN_DATA_DIR", data)
        .env("KILN_RUNTIME_DIR", runtime)
}

/// On the same filesystem as the provisioned artefacts, so that they can be hard-linked.
fn scratch_base() -> PathBuf {
    let base = target_dir().join("e2e").join("t");
    fs::create_dir_all(&base).unwrap();
    base
}

fn target_dir() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    exe.ancestors().nth(3).unwrap().to_path_buf()
}

/// Asks the daemon to end; one that does not is killed.
fn end_daemon_of(pid: &str, data: &Path) {
    let Ok(pid) = pid.trim().parse::<u32>() else {
        return;
    };
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let needle = format!("KILN_DATA_DIR={}", data.display());
    // The number may be a stranger's by now; its environment tells.
    if !environment
        .split(|byte| *byte == 0)
        .any(|variable| variable == needle.as_bytes())
    {
        return;
    }
    let gone = || !Path::new(&format!("/proc/{pid}/exe")).exists();
    signal(pid, Signal::TERM);
    if !within(ENDING, gone) {
        signal(pid, Signal::KILL);
        eventually("the daemon is gone", gone);
    }
}

fn running(wanted: impl Fn(&str) -> bool) -> Vec<(u32, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if pid != std::process::id() && (wanted(&line) || wanted(&open_files(&entry.path()))) {
            found.push((pid, line));
        }
    }
    found
}

/// The names of a process's open files, one a line: a jailed VMM is handed its files open, and has
/// no name of ours on its command line.
fn open_files(process: &Path) -> String {
    let fds = fs::read_dir(process.join("fd")).into_iter().flatten();
    let names = fds.flatten().filter_map(|fd| fs::read_link(fd.path()).ok());
    names.map(|name| format!("{}\n", name.display())).collect()
}

/// What a directory holds; nothing if there is none.
#[must_use]
pub fn names_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Files under a directory that are not what they will be.
#[must_use]
pub fn partials(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let inside_tmp = dir.file_name().is_some_and(|name| name == "tmp");
            if inside_tmp || name.ends_with(".partial") || name.ends_with(".tmp") {
                found.push(entry.path());
            } else if entry.path().is_dir() {
                open.push(entry.path());
            }
        }
    }
    found
}

/// Hard-links files: provisioned artefacts are immutable.
fn link_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).into_iter().flatten().flatten() {
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            link_tree(&source, &target);
        } else {
            fs::hard_link(&source, &target).unwrap();
        }
    }
}
