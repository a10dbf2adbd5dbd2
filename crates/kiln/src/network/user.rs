//! A user-mode network, for hosts without root: `passt` carries the guest's packets as connections
//! of this user's own. It knows no policy and goes with its VMM.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use kiln_net::policy::{Policy, PublishedPort, Transport};
use kiln_vmm::{MacAddress, UserNetwork};
use tokio::process::Command;

use super::attach::Attached;
use crate::error::{Error, ErrorCode};
use crate::sandbox::undo::UndoStack;

/// Names the program where it is not in `PATH`.
const VARIABLE: &str = "KILN_PASST";
const PROGRAM: &str = "passt";
const SOCKET: &str = "passt.sock";
const PID_FILE: &str = "passt.pid";
/// It only opens a socket before it goes into the background.
const PATIENCE: Duration = Duration::from_secs(10);
/// As in a network of a sandbox's own; nobody but the guest sees them.
const ADDRESS: &str = "198.19.255.2";
const PREFIX: &str = "30";
const GATEWAY: &str = "198.19.255.1";
const MTU: &str = "1500";
const MAC: [u8; 6] = [0x02, 0x6b, 0x6c, 0x6e, 0x00, 0x02];
const WARNING: &str = "a user-mode network enforces no policy: the guest reaches what this user \
                       reaches, private networks too";

/// Starts the program for a sandbox whose VMM is about to start; it ends with the VMM.
pub(super) async fn attach(
    runtime_dir: &Path,
    policy: &Policy,
    undo: &mut UndoStack,
) -> Result<Attached, Error> {
    let program = program()?;
    let (socket, pid_file) = (runtime_dir.join(SOCKET), runtime_dir.join(PID_FILE));
    // A VMM that never came would leave it waiting.
    undo.push(end(pid_file.clone()));
    let mut command = Command::new(&program);
    command
        .args(arguments(&socket, &pid_file, &policy.publish))
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let started = tokio::time::timeout(PATIENCE, command.output()).await;
    let output = match started {
        Ok(Ok(output)) => output,
        Ok(Err(source)) => return Err(failed("cannot be started").with_source(source)),
        Err(_) => return Err(failed("does not come up")),
    };
    if !output.status.success() {
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(failed("refuses").with_details(told));
    }
    let mac = MacAddress::new(MAC)
        .map_err(|source| failed("has no card to serve").with_source(source))?;
    Ok(Attached {
        user: Some(UserNetwork { socket, mac }),
        kernel_args: vec![format!(
            "kiln.net={ADDRESS}/{PREFIX},{GATEWAY},{GATEWAY},{MTU}"
        )],
        warning: Some(WARNING.to_owned()),
        ..Attached::default()
    })
}

/// Without root, and with the program.
fn program() -> Result<PathBuf, Error> {
    if rustix::process::geteuid().is_root() {
        let message = "a user-mode network is for those without root";
        return Err(Error::new(ErrorCode::NetworkUnavailable, message)
            .with_hint("root has better: --network default"));
    }
    find().ok_or_else(|| {
        let message = format!("a user-mode network takes {PROGRAM}, which is not installed");
        Error::new(ErrorCode::NetworkUnavailable, message).with_hint(format!(
            "install it (Debian: apt install {PROGRAM}), name it with {VARIABLE}, or do without: \
             `kiln forward` leads to the guest's ports also with --network none"
        ))
    })
}

/// The program, if there is one.
pub(super) fn find() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os(VARIABLE) {
        return Some(named.into());
    }
    let path = std::env::var_os("PATH")?;
    let mut places = std::env::split_paths(&path).map(|dir| dir.join(PROGRAM));
    places.find(|place| place.is_file())
}

/// One client, IPv4, our addresses, names by the host's resolver, nothing of the host by its
/// gateway, and nothing inwards but what is published.
fn arguments(socket: &Path, pid_file: &Path, published: &[PublishedPort]) -> Vec<String> {
    let path = |path: &Path| path.display().to_string();
    let mut words: Vec<String> = [
        "--one-off",
        "--quiet",
        "--ipv4-only",
        "--no-map-gw",
        "--no-dhcp",
        "--address",
        ADDRESS,
        "--netmask",
        PREFIX,
        "--gateway",
        GATEWAY,
        "--dns-forward",
        GATEWAY,
        "--mtu",
        MTU,
    ]
    .map(str::to_owned)
    .into();
    words.extend(["--socket".to_owned(), path(socket)]);
    words.extend(["--pid".to_owned(), path(pid_file)]);
    for port in published {
        let option = match port.transport {
            Transport::Tcp => "--tcp-ports",
            Transport::Udp => "--udp-ports",
        };
        let at = match port.address {
            Some(address) => format!("{address}/"),
            None => String::new(),
        };
        let spec = format!("{at}{}:{}", port.host, port.guest);
        words.extend([option.to_owned(), spec]);
    }
    words
}

/// Ends one that has no client. The number may be a stranger's by now: its name tells.
async fn end(pid_file: PathBuf) -> Result<(), Error> {
    let Ok(text) = tokio::fs::read_to_string(&pid_file).await else {
        return Ok(());
    };
    let pid = text
        .trim()
        .parse()
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid
        && is_ours(pid, &pid_file).await
    {
        // One that has just ended is as good as ended.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    Ok(())
}

/// Whether the process was told of this very file.
async fn is_ours(pid: rustix::process::Pid, pid_file: &Path) -> bool {
    let line = tokio::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).await;
    let wanted = pid_file.as_os_str().as_encoded_bytes();
    line.is_ok_and(|line| line.split(|byte| *byte == 0).any(|word| word == wanted))
}

fn failed(what: &str) -> Error {
    let message = format!("the user-mode network's {PROGRAM} {what}");
    Error::new(ErrorCode::NetworkSetupFailed, message)
        .with_hint("a published port may be taken, or below 1024; or run with --network none")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_ports_are_led_in_and_nothing_else() {
        let ports = ["8080:80", "127.0.0.1:5300:53/udp"];
        let ports = ports.map(|text| PublishedPort::new(text).expect("port"));
        let words = arguments(Path::new("/r/s"), Path::new("/r/p"), &ports).join(" ");
        assert!(words.contains("--tcp-ports 8080:80"), "{words}");
        assert!(words.contains("--udp-ports 127.0.0.1/5300:53"), "{words}");
        for word in ["--no-map-gw", "--one-off", "--socket /r/s", "--pid /r/p"] {
            assert!(words.contains(word), "{words} lacks {word}");
        }
        let none = arguments(Path::new("/r/s"), Path::new("/r/p"), &[]).join(" ");
        assert!(!none.contains("-ports"), "{none}");
    }

    #[tokio::test]
    async fn a_stranger_with_the_number_is_left_alone() {
        let dir = tempfile::tempdir().expect("dir");
        let file = dir.path().join(PID_FILE);
        let own = std::process::id().to_string();
        std::fs::write(&file, own).expect("written");
        end(file).await.expect("this test goes on");
    }
}
