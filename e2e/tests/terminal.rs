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
