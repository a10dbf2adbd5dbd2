//! A `kiln` of its own for each test: own directories, own daemon, clean environment.

#![allow(dead_code, reason = "each test file uses a part")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail by panic"
)]

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

/// A place for one daemon; the daemon ends with it.
pub(crate) struct Kiln {
    dir: TempDir,
}

impl Kiln {
    pub(crate) fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub(crate) fn runtime_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.runtime_dir().join("kiln.sock")
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.data_dir().join("daemon.log")).unwrap_or_default()
    }

    /// `kiln` with these arguments, and nothing of the environment of the test.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
        command
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("KILN_DATA_DIR", self.data_dir())
            .env("KILN_RUNTIME_DIR", self.runtime_dir())
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Standard output of a command that succeeds.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn ok_json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(args)).unwrap()
    }

    /// Process number of the daemon that runs.
    pub(crate) fn daemon_pid(&self) -> Option<i32> {
        let pid = &self.ok_json(&["version", "--json"])["daemon"]["pid"];
        pid.as_i64().map(|pid| i32::try_from(pid).unwrap())
    }

    /// Waits until the daemon has let go of its place, however it ends.
    pub(crate) fn wait_for_daemons_end(&self) {
        if let Ok(lock) = File::open(self.runtime_dir().join("kiln.sock.lock")) {
            lock.lock().unwrap();
        }
    }

    /// What the daemon answers to these bytes, until it closes.
    pub(crate) fn raw(&self, request: &str) -> String {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}

impl Drop for Kiln {
    fn drop(&mut self) {
        // Best effort: the test may have failed half way.
        let _ = self.command(&["daemon", "--stop"]).output();
    }
}

/// The error that a command with `--json` failed with: the last line of standard error.
pub(crate) fn error(output: &Output) -> Value {
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().last().unwrap_or_default();
    let body: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {text}"));
    body["error"].clone()
}
