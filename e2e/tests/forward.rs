//! Ports of guests without any network.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a scenario fails by panicking, its helpers too"
)]

mod lab;

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};

use e2e::{Stage, eventually, finish};
use lab::{run_in_guest, sandbox, send_in};
use serde_json::Value;

/// `kiln forward` while it runs, and where it listens.
struct Forward {
    child: Child,
    listen: Vec<SocketAddr>,
}

impl Forward {
    fn start(stage: &Stage, id: &str, ports: &[&str]) -> Self {
        let words = [&["forward", "--json", id], ports].concat();
        let mut child = stage
            .command(&words)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let told = BufReader::new(child.stdout.take().unwrap()).lines();
        let listen = told.take(ports.len()).map(|line| {
            let open: Value = serde_json::from_str(&line.unwrap()).unwrap();
            open["listen"].as_str().unwrap().parse().unwrap()
        });
        let listen = listen.collect();
        Self { child, listen }
    }
}

fn fetch(from: SocketAddr) -> String {
    let mut text = String::new();
    let connected = TcpStream::connect(from);
    connected.unwrap().read_to_string(&mut text).unwrap_or(0);
    text
}

#[test]
fn b4_4_ports_are_forwarded_without_a_network_and_without_privilege() {
    let stage = Stage::new();
    let id = sandbox(&stage, &["--network=none"]);
    send_in(&stage, &id);
    run_in_guest(&stage, &id, "serve 80 'from the guest'");
    run_in_guest(&stage, &id, "stream 7000");
    let forward = Forward::start(&stage, &id, &["0:80", "127.0.0.1:0:7000", "0:81"]);
    let [text, bulk, nobody] = forward.listen[..] else {
        panic!("{:?}", forward.listen);
    };
    eventually("the guest's port answers", || {
        fetch(text) == "from the guest"
    });
    // Bulk both ways; the way up is told by the server once it has seen the end of ours.
    for direction in ["down", "up"] {
        eventually("more than 1 Mbit/s pass", || {
            let mut world = Command::new(env!("CARGO_BIN_EXE_world"));
            let rate = ["rate", &bulk.to_string(), direction, "2"];
            let ran = world.args(rate).stderr(Stdio::null()).output().unwrap();
            let kbit = String::from_utf8(ran.stdout).unwrap();
            // Nothing is said while the guest's server is not there yet.
            kbit.trim().parse().is_ok_and(|kbit: u64| kbit > 1000)
        });
    }
    // One that says nothing stays open without disturbing the others.
    let idle = TcpStream::connect(bulk).unwrap();
    assert_eq!(fetch(nobody), "", "nothing listens");
    assert_eq!(fetch(text), "from the guest");
    drop(idle);
    // A successor of the daemon forwards as well.
    stage.kill_daemon();
    stage.kiln(&["ps"]).expect_code(0);
    eventually("the guest's port answers", || {
        fetch(text) == "from the guest"
    });
    // What is taken is refused, and what does not run has no ports.
    let taken = ["forward", "--json", &id, &format!("{}:80", text.port())];
    let refused = stage.kiln(&taken).expect_code(125);
    assert_eq!(refused.error()["code"], "PORT_TAKEN");
    stage.kiln(&["stop", &id]).expect_code(0);
    let refused = stage.kiln(&["forward", "--json", &id, "0:80"]);
    assert_eq!(refused.expect_code(125).error()["code"], "INVALID_STATE");
    // Who forwards learns it by the next connection, and ends.
    assert_eq!(fetch(text), "");
    let ended = finish(forward.child).expect_code(125);
    assert_eq!(ended.error()["code"], "INVALID_STATE");
    stage.kiln(&["rm", &id]).expect_code(0);
    stage.assert_nothing_left();
}
