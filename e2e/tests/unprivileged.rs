//! A user without root: no network, a clear word, forwarded ports, and passt where it is installed.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a scenario fails by panicking, its helpers too"
)]

mod lab;

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use e2e::{Ran, Stage, eventually, finish, kiln, skip};
use lab::SMALL;

/// Nobody is known to have it.
const UID: &str = "61234";

/// The stage's artefacts, copied for a user who may not touch the originals.
struct Someone {
    home: tempfile::TempDir,
}

impl Someone {
    /// `None`, said loudly, where nobody can become another.
    fn new(test: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skip(test, "becoming another user takes root");
            return None;
        }
        let stage = Stage::new();
        let home = tempfile::Builder::new()
            .prefix("kiln-e2e-")
            .tempdir_in("/tmp")
            .unwrap();
        let to = home.path().to_str().unwrap();
        let data = stage.data().to_str().unwrap();
        let copy = format!(
            "cp -r {data} {to}/data && cp {} {to}/kiln && chown -R {UID}:{UID} {to}",
            kiln().display()
        );
        let copied = Command::new("sh").args(["-c", &copy]).status().unwrap();
        assert!(copied.success(), "{copy}");
        Some(Self { home })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn kiln(&self, words: &[&str]) -> Ran {
        let user = ["--reuid", UID, "--regid", UID, "--clear-groups"];
        let mut command = Command::new("setpriv");
        command
            .args(user)
            .arg(self.path("kiln"))
            .args(words)
            .env_remove("KILN_NETWORK")
            .env("HOME", self.home.path())
            .env("KILN_DATA_DIR", self.path("data"))
            .env("KILN_RUNTIME_DIR", self.path("run"))
            .current_dir(self.home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        finish(command.spawn().unwrap())
    }

    fn run(&self, options: &[&str], command: &[&str]) -> Ran {
        self.kiln(&[&["run", "--json"], options, &SMALL, &["--"], command].concat())
    }
}

impl Drop for Someone {
    fn drop(&mut self) {
        self.kiln(&["daemon", "--stop"]);
    }
}

#[test]
fn b4_1_without_root_there_is_no_network_and_a_clear_word() {
    let Some(someone) = Someone::new("b4_1_without_root") else {
        return;
    };
    let ran = someone.run(&[], &["ls", "/sys/class/net"]).expect_code(0);
    assert_eq!(ran.text(), "lo\n");
    assert!(ran.stderr.contains("no network"), "{}", ran.stderr);
    for network in ["default", "lan"] {
        let refused = someone.run(&[&format!("--network={network}")], &["true"]);
        let code = refused.expect_code(125).error()["code"].clone();
        let wanted = if network == "lan" {
            "NETWORK_NOT_FOUND"
        } else {
            "NETWORK_UNAVAILABLE"
        };
        assert_eq!(code, wanted);
    }
    let create = ["network", "create", "lan", "--json"];
    let refused = someone.kiln(&create).expect_code(125);
    assert_eq!(refused.error()["code"], "NETWORK_UNAVAILABLE");
    // What passt cannot do is refused, not left out.
    let refused = someone.run(&["--network=user", "--deny-cidr=10.0.0.0/8"], &["true"]);
    assert_eq!(refused.expect_code(125).error()["code"], "INVALID_SPEC");
    if Command::new("passt").arg("--version").output().is_err() {
        let refused = someone.run(&["--network=user"], &["true"]).expect_code(125);
        assert!(refused.stderr.contains("apt install passt"), "{refused:?}");
        skip("b4_1, a user-mode network", "there is no passt");
        return;
    }
    user_mode(&someone);
}

/// Out to what the user reaches, in by what is published, and gone with the guest.
fn user_mode(someone: &Someone) {
    let server = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let address = own_address();
    let question = format!("tcp:{address}:{port}");
    let ask = ["/proc/1/exe", "--ask", &question];
    let ran = someone.run(&["--network=user"], &ask).expect_code(0);
    assert_eq!(ran.text(), "answered\n");
    assert!(ran.stderr.contains("no policy"), "{}", ran.stderr);
    let published = TcpListener::bind("127.0.0.1:0").unwrap();
    let free = published.local_addr().unwrap().port();
    drop(published);
    let publish = format!("--publish=127.0.0.1:{free}:80");
    let detached = ["run", "--detach", "--json", "--network=user", &publish];
    let words = [&detached[..], &SMALL, &["--", "sleep", "1000"]].concat();
    let id = someone.kiln(&words).expect_code(0).json()["id"].clone();
    let id = id.as_str().unwrap();
    eventually("the published port is taken", || {
        TcpListener::bind(("127.0.0.1", free)).is_err()
    });
    let inspected = someone.kiln(&["network", "inspect", id]).expect_code(0);
    assert!(inspected.text().contains("user-mode"), "{inspected:?}");
    someone.kiln(&["rm", "--force", id]).expect_code(0);
    eventually("it is free again: passt went with the guest", || {
        TcpListener::bind(("127.0.0.1", free)).is_ok()
    });
}

/// An address of this host that is not loopback: passt gives loopback to the guest itself.
fn own_address() -> std::net::IpAddr {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect("192.0.2.1:9").unwrap();
    socket.local_addr().unwrap().ip()
}

#[test]
fn b6_1_without_root_guests_are_captured_and_go_on() {
    let Some(someone) = Someone::new("b6_1_without_root") else {
        return;
    };
    let has_passt = Command::new("passt").arg("--version").output().is_ok();
    let networks = if has_passt {
        vec!["none", "user"]
    } else {
        skip("b6_1, a user-mode network", "there is no passt");
        vec!["none"]
    };
    for network in networks {
        let network = format!("--network={network}");
        let detached = ["run", "--detach", "--name=source", &network];
        let words = [&detached[..], &SMALL, &["--", "sleep", "1000"]].concat();
        someone.kiln(&words).expect_code(0);
        let write = ["exec", "source", "--", "sh", "-c", "echo kept > /root/kept"];
        someone.kiln(&write).expect_code(0);
        let create = ["snapshot", "create", "source", "--name=golden"];
        someone.kiln(&create).expect_code(0);
        let run = [
            "run",
            "--snapshot=golden",
            &network,
            "--",
            "cat",
            "/root/kept",
        ];
        assert_eq!(
            someone.kiln(&run).expect_code(0).text(),
            "kept\n",
            "{network}"
        );
        someone.kiln(&["rm", "-f", "source"]).expect_code(0);
        someone.kiln(&["snapshot", "rm", "golden"]).expect_code(0);
    }
}
