//! A person at a terminal.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a scenario fails by panicking, its helpers too"
)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use e2e::{Stage, eventually, finish, kiln};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

/// The person's side of a terminal: types, and remembers what was shown.
struct Terminal {
    master: File,
    slave: OwnedFd,
    shown: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    fn open() -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("openpt");
        grantpt(&master).expect("grantpt");
        unlockpt(&master).expect("unlockpt");
        let name = ptsname(&master, Vec::new()).expect("ptsname");
        let slave = File::options()
            .read(true)
            .write(true)
            .open(name.to_str().expect("name"));
        let (master, slave) = (File::from(master), OwnedFd::from(slave.expect("slave")));
        let shown = Arc::new(Mutex::new(Vec::new()));
        let (mut reader, sink) = (master.try_clone().expect("clone"), Arc::clone(&shown));
        std::thread::spawn(move || {
            let mut buffer = [0u8; 4096];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                sink.lock()
                    .expect("shown")
                    .extend_from_slice(&buffer[..count]);
            }
        });
        Self {
            master,
            slave,
            shown,
        }
    }

    fn stdio(&self) -> Stdio {
        Stdio::from(self.slave.try_clone().expect("clone"))
    }

    fn types(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).expect("typed");
    }

    fn resize(&self, rows: u16, cols: u16) {
        let size = Winsize {
            ws_row: rows,
            ws_col: cols,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.master, size).expect("resized");
    }

    fn shows(&self, text: &str) -> bool {
        String::from_utf8_lossy(&self.shown.lock().expect("shown")).contains(text)
    }

    fn is_cooked(&self) -> bool {
        tcgetattr(&self.slave)
            .expect("termios")
            .local_modes
            .contains(LocalModes::ICANON)
    }
}

#[test]
fn b3_3_an_interactive_shell_has_a_terminal_with_size_signals_and_an_end() {
    let stage = Stage::new();
    let mut terminal = Terminal::open();
    terminal.resize(33, 101);
    // `setsid --ctty` makes the terminal the controlling one, as a login would.
    let mut command = Command::new("setsid");
    stage.sets_up(&mut command);
    let child = command
        .args(["--ctty", "--wait"])
        .arg(kiln())
        .arg("run")
        .stdin(terminal.stdio())
        .stdout(terminal.stdio())
        .stderr(terminal.stdio())
        .spawn()
        .expect("kiln");
    terminal.types("tty; stty size; echo cols-$COLUMNS-done\n");
    eventually("the guest has a terminal", || terminal.shows("/dev/pts/"));
    eventually("of our size", || terminal.shows("33 101"));
    assert!(
        !terminal.is_cooked(),
        "the host's terminal is raw while the guest has it"
    );
    terminal.resize(20, 60);
    eventually("resizes reach the guest", || {
        terminal.types("stty size\n");
        std::thread::sleep(std::time::Duration::from_millis(300));
        terminal.shows("20 60")
    });
    terminal.types("sleep 1000\n");
    std::thread::sleep(std::time::Duration::from_millis(500));
    terminal.types("\x03");
    terminal.types("echo interrupted-$?\n");
    eventually("Ctrl-C ends the guest's command", || {
        terminal.shows("interrupted-130")
    });
    terminal.types("exit 7\n");
    finish(child).expect_code(7);
    assert!(terminal.is_cooked(), "the terminal is given back as it was");
    stage.assert_nothing_left();
}

/// A certificate for this host and its key; `false` where nothing makes one.
fn certificate(dir: &std::path::Path) -> bool {
    let settings = "[req]\ndistinguished_name = dn\nx509_extensions = v3\n[dn]\n[v3]\n\
                    subjectAltName = IP:127.0.0.1\nbasicConstraints = CA:FALSE\n";
    std::fs::write(dir.join("openssl.cnf"), settings).expect("written");
    let made = Command::new("openssl")
        .current_dir(dir)
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt"])
        .args(["ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=x", "-config", "openssl.cnf"])
        .args(["-keyout", "key.pem", "-out", "cert.pem"])
        .stderr(Stdio::null())
        .status();
    made.is_ok_and(|status| status.success())
}

/// Somebody at another host, who has an address, a certificate and a token, and no daemon.
#[test]
fn a_person_elsewhere_has_files_logs_events_and_a_terminal() {
    use std::os::unix::fs::PermissionsExt;
    let stage = Stage::new();
    let keys = stage.path("keys");
    std::fs::create_dir(&keys).expect("made");
    if !certificate(&keys) {
        e2e::skip(
            "a_person_elsewhere_has_files_logs_events_and_a_terminal",
            "no openssl",
        );
        return;
    }
    let tokens = keys.join("tokens");
    std::fs::write(&tokens, "0123456789abcdef0123456789abcdef").expect("written");
    std::fs::set_permissions(&tokens, PermissionsExt::from_mode(0o600)).expect("kept");
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = socket.local_addr().expect("an address").to_string();
    drop(socket);
    let daemon = stage
        .command(&["daemon", "--listen", &address, "--tls-cert"])
        .arg(keys.join("cert.pem"))
        .arg("--tls-key")
        .arg(keys.join("key.pem"))
        .arg("--tokens")
        .arg(&tokens)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("kiln");
    let here = stage.path("here");
    let elsewhere = |command: &mut Command| {
        command
            .env_remove("KILN_RUNTIME_DIR")
            .env("KILN_DATA_DIR", &here)
            .env("KILN_HOST", format!("https://{address}"))
            .env("KILN_TLS_CA", keys.join("cert.pem"))
            .env("KILN_TOKEN_FILE", &tokens);
    };
    let run = |args: &[&str]| {
        let mut command = stage.command(args);
        elsewhere(&mut command);
        let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        finish(command.spawn().expect("kiln"))
    };
    eventually("the daemon listens", || run(&["ps"]).code == Some(0));
    let sandbox = run(&["run", "-d", "--name", "far", "--", "sleep", "100000"]);
    assert_eq!(sandbox.code, Some(0), "{sandbox:?}");

    std::fs::create_dir(stage.path("tree")).expect("made");
    std::fs::write(stage.path("tree/file"), vec![7; 3 << 20]).expect("written");
    let local = stage.path("tree").to_str().expect("text").to_owned();
    run(&["cp", &local, "far:/srv"]).expect_code(0);
    let back = stage.path("back");
    run(&["cp", "far:/srv/tree/file", back.to_str().expect("text")]).expect_code(0);
    assert_eq!(std::fs::read(&back).expect("read"), vec![7; 3 << 20]);
    run(&["exec", "far", "--", "sh", "-c", "exit 9"]).expect_code(9);
    assert!(!run(&["logs", "far"]).expect_code(0).stdout.is_empty());
    assert!(run(&["events"]).expect_code(0).text().contains("far"));
    let names = run(&["ps", "--format", "{{.Name}} {{.State}}"]);
    assert_eq!(names.expect_code(0).text(), "far running\n");

    let mut terminal = Terminal::open();
    terminal.resize(31, 97);
    let mut command = Command::new("setsid");
    stage.sets_up(&mut command);
    elsewhere(&mut command);
    let child = command
        .args(["--ctty", "--wait"])
        .arg(kiln())
        .args(["shell", "far"])
        .stdin(terminal.stdio())
        .stdout(terminal.stdio())
        .stderr(terminal.stdio())
        .spawn()
        .expect("kiln");
    terminal.types("stty size; echo so-$((40+2))-far\n");
    eventually("the guest's terminal is of our size", || {
        terminal.shows("31 97")
    });
    eventually("what is typed arrives", || terminal.shows("so-42-far"));
    terminal.types("exit 7\n");
    finish(child).expect_code(7);

    run(&["rm", "-f", "far"]).expect_code(0);
    assert!(!here.exists(), "nothing is started or kept here");
    stage.kiln(&["daemon", "--stop"]).expect_code(0);
    finish(daemon).expect_code(0);
    stage.assert_nothing_left();
}
