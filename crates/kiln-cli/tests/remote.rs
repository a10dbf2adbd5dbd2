//! The command line against a daemon elsewhere: by TLS, with a token, and never one of its own.

#![allow(missing_docs)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests fail by panic"
)]

mod support;

use std::{
    fs::{self, Permissions},
    io::{BufRead, BufReader},
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use support::{Kiln, error};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// A daemon that listens beyond its host, and a client that knows nothing else of it.
struct Elsewhere {
    daemon: Child,
    there: Kiln,
    here: Kiln,
    dir: tempfile::TempDir,
    port: u16,
}

impl Elsewhere {
    /// `None` where nothing makes certificates.
    fn start(test: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        if !certificate(dir.path()) {
            eprintln!("SKIPPED: {test}: no openssl");
            return None;
        }
        secret(&dir.path().join("tokens"), TOKEN);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let there = Kiln::new();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let mut daemon = there
            .command(&["daemon", "--listen", &format!("127.0.0.1:{port}")])
            .args([
                "--tls-cert",
                &path("cert.pem"),
                "--tls-key",
                &path("key.pem"),
            ])
            .args(["--tokens", &path("tokens")])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(daemon.stderr.take().unwrap()).lines();
        let mut lines = lines.map_while(Result::ok);
        let listening = lines.any(|line| line.contains("listening") && line.contains("kiln.sock"));
        assert!(listening, "the daemon did not come up");
        // So that it never waits for somebody to read its log.
        std::thread::spawn(move || lines.for_each(drop));
        Some(Self {
            daemon,
            there,
            here: Kiln::new(),
            dir,
            port,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A command of somebody who has the address, the certificate and the token.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.here.command(args);
        command
            .env("KILN_HOST", format!("https://127.0.0.1:{}", self.port))
            .env("KILN_TLS_CA", self.path("cert.pem"))
            .env("KILN_TOKEN_FILE", self.path("tokens"));
        command
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.command(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = self.there.command(&["daemon", "--stop"]).output();
        let _ = self.daemon.wait();
    }
}

fn secret(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
}

/// A certificate for this host and its key; `false` where nothing makes one.
fn certificate(dir: &Path) -> bool {
    let settings = "[req]\ndistinguished_name = dn\nx509_extensions = v3\n[dn]\n[v3]\n\
                    subjectAltName = IP:127.0.0.1\nbasicConstraints = CA:FALSE\n";
    fs::write(dir.join("openssl.cnf"), settings).unwrap();
    let made = Command::new("openssl")
        .current_dir(dir)
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
        ])
        .args([
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=x",
            "-config",
            "openssl.cnf",
        ])
        .args(["-keyout", "key.pem", "-out", "cert.pem"])
        .stderr(Stdio::null())
        .status();
    made.is_ok_and(|status| status.success())
}

#[test]
fn commands_reach_a_daemon_elsewhere_and_start_none_here() {
    let Some(away) = Elsewhere::start("commands_reach_a_daemon_elsewhere") else {
        return;
    };
    let info: serde_json::Value = serde_json::from_str(&away.ok(&["info", "--json"])).unwrap();
    assert_eq!(info["data_dir"], away.there.data_dir().to_str().unwrap());
    let id = away.ok(&["create", "--name", "web", "--", "true"]);
    assert_eq!(away.ok(&["ps", "-aq"]), id);
    assert_eq!(
        away.there.ok(&["ps", "-a", "--format", "{{.Name}}"]),
        "web\n"
    );
    assert!(away.ok(&["events"]).contains("created"));
    assert!(away.ok(&["version"]).contains("daemon 0."));
    assert_eq!(away.ok(&["__complete", "--", "rm", "w"]), "web\n");
    // A stream comes through: it is refused for what it asks, not for how it came.
    let refused = error(&away.run(&["--json", "exec", "web", "true"]));
    assert_eq!(refused["code"], "INVALID_STATE", "{refused}");
    away.ok(&["rm", "web"]);

    for local in [&["--json", "daemon", "--stop"][..], &["--json", "doctor"]] {
        let refused = error(&away.run(local));
        assert_eq!(refused["code"], "INVALID_CONFIG", "{refused}");
    }
    let refused = error(&away.run(&["--json", "run", "./image.tar", "true"]));
    assert!(
        refused["message"]
            .as_str()
            .unwrap()
            .contains("daemon's host"),
        "{refused}"
    );
    assert!(
        !away.here.data_dir().exists(),
        "nothing is started or made here"
    );
}

#[test]
fn a_daemon_elsewhere_that_does_not_answer_is_not_replaced_by_one_here() {
    let Some(away) = Elsewhere::start("a_daemon_elsewhere_that_does_not_answer") else {
        return;
    };
    away.there.ok(&["daemon", "--stop"]);
    let refused = error(&away.run(&["--json", "ps"]));
    assert_eq!(refused["code"], "DAEMON_UNREACHABLE", "{refused}");
    assert!(!away.run(&["version"]).status.success());
    assert!(!away.here.data_dir().exists(), "nothing is started here");
}

#[test]
fn who_is_not_trusted_is_told_nothing() {
    let Some(away) = Elsewhere::start("who_is_not_trusted_is_told_nothing") else {
        return;
    };
    let code = |command: &mut Command| {
        let refused = error(&command.output().unwrap());
        refused["code"].as_str().unwrap().to_owned()
    };
    // Another certificate than the one that is expected.
    let other = tempfile::tempdir().unwrap();
    assert!(certificate(other.path()));
    let mut ps = away.command(&["--json", "ps"]);
    assert_eq!(
        code(ps.env("KILN_TLS_CA", other.path().join("cert.pem"))),
        "DAEMON_UNREACHABLE"
    );
    let mut ps = away.command(&["--json", "ps"]);
    assert_eq!(
        code(ps.env("KILN_TLS_CA", away.path("openssl.cnf"))),
        "INVALID_CONFIG"
    );
    // Another token, none, and one that others can read.
    secret(&away.path("wrong"), &TOKEN.replace('0', "f"));
    let mut ps = away.command(&["--json", "ps"]);
    assert_eq!(
        code(ps.env("KILN_TOKEN_FILE", away.path("wrong"))),
        "UNAUTHORIZED"
    );
    let mut ps = away.command(&["--json", "ps"]);
    assert_eq!(code(ps.env_remove("KILN_TOKEN_FILE")), "INVALID_CONFIG");
    let mut ps = away.command(&["ps", "-q"]);
    let by_variable = ps.env_remove("KILN_TOKEN_FILE").env("KILN_TOKEN", TOKEN);
    assert!(by_variable.status().unwrap().success());
    fs::set_permissions(away.path("tokens"), Permissions::from_mode(0o644)).unwrap();
    assert_eq!(code(&mut away.command(&["--json", "ps"])), "INVALID_CONFIG");
}

#[test]
fn one_daemon_is_meant() {
    let kiln = Kiln::new();
    for args in [
        &["--host", "https://h:1", "--socket", "/s", "ps"][..],
        &["--host", "https://h:1", "ps", "--socket", "/s"],
        &["ps", "--host", "https://h:1", "--data-dir", "/d"],
        &["ps", "--tls-ca", "/c"],
        &["ps", "--token-file", "/t"],
        &["ps", "--token-file", "/t", "--host", "unix:///s"],
        &["ps", "--host", "h:1"],
        &["ps", "--host", "http://h:1"],
    ] {
        let output = kiln.run(&[&["--json"][..], args].concat());
        assert_eq!(error(&output)["code"], "USAGE", "{args:?}");
    }
    let both = kiln
        .command(&["--json", "ps"])
        .env("KILN_HOST", "https://h:1")
        .env("KILN_SOCKET", "/s")
        .output();
    assert_eq!(error(&both.unwrap())["code"], "USAGE");
    assert!(!kiln.data_dir().exists());
    // What is typed outweighs the environment.
    let socket = kiln.socket();
    let here = kiln
        .command(&["--socket", socket.to_str().unwrap(), "ps"])
        .env("KILN_HOST", "https://h:1")
        .output();
    assert!(here.unwrap().status.success());
    let host = format!("unix://{}", socket.display());
    assert!(kiln.ok(&["--host", &host, "version"]).contains("daemon 0."));
}
