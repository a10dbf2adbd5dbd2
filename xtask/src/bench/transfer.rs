//! Bytes through `kiln exec -i … cat`, there and back: are they the same, how fast are they, and
//! how much memory do the three programs on the way need for it?

use std::io::{self, Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::proc::{peak_mib, resident_mib};

/// What one transfer showed; memory in MiB above what the program had before.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) mib_per_s: f64,
    pub(super) daemon_mib: f64,
    pub(super) client_mib: f64,
}

/// Why a transfer shows nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransferError {
    #[error("cannot start `kiln exec`")]
    Start(#[source] io::Error),
    #[error("cannot write to `kiln exec`")]
    Write(#[source] io::Error),
    #[error("cannot read from `kiln exec`")]
    Read(#[source] io::Error),
    #[error("byte {offset} came back as {found:?}, sent as {sent}")]
    Changed {
        offset: u64,
        sent: u8,
        found: Option<u8>,
    },
    #[error("more came back than was sent")]
    Surplus,
    #[error("memory of process {pid} cannot be read")]
    Memory {
        pid: u32,
        #[source]
        source: io::Error,
    },
    #[error("`kiln exec` ended with {0}")]
    Failed(std::process::ExitStatus),
}

const CHUNK: usize = 256 << 10;
/// The period is prime, so that a chunk that is lost, doubled or moved never looks right.
const PERIOD: u64 = 251;

/// Sends `mib` MiB through `command`, which echoes its input, served by the process `daemon`.
pub(super) fn run(command: &mut Command, mib: u32, daemon: u32) -> Result<Transfer, TransferError> {
    let bytes = u64::from(mib) << 20;
    let daemon_before = forget_peak(daemon)?;
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(TransferError::Start)?;
    let client = child.id();
    let moved = echo(&mut child, bytes, || forget_peak(client));
    let seconds = started.elapsed().as_secs_f64();
    let Echoed { before, after } = match moved {
        Ok(echoed) => echoed,
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            return Err(error);
        }
    };
    let status = child.wait().map_err(TransferError::Read)?;
    if !status.success() {
        return Err(TransferError::Failed(status));
    }
    Ok(Transfer {
        mib_per_s: f64::from(mib) / seconds,
        daemon_mib: peak(daemon)? - daemon_before,
        client_mib: after - before,
    })
}

/// The client's memory when the first bytes were back, and its peak when all but the last were.
struct Echoed {
    before: f64,
    after: f64,
}

fn echo(
    child: &mut Child,
    bytes: u64,
    settle: impl Fn() -> Result<f64, TransferError>,
) -> Result<Echoed, TransferError> {
    let (Some(mut stdin), Some(mut stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(TransferError::Start(io::ErrorKind::BrokenPipe.into()));
    };
    let client = child.id();
    // One period and a chunk first: when they are back, the way is up.
    let first = CHUNK as u64;
    let (go, gone) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || {
            send(&mut stdin, 0, first)?;
            // An error means that the reader has given up; it tells why.
            if gone.recv().is_ok() {
                send(&mut stdin, first, bytes - 1)?;
            }
            if gone.recv().is_ok() {
                send(&mut stdin, bytes - 1, bytes)?;
            }
            Ok(())
        });
        let mut read = || {
            compare(&mut stdout, 0, first)?;
            let before = settle()?;
            let _ = go.send(());
            compare(&mut stdout, first, bytes - 1)?;
            // The client waits for the last byte, so it still is there to be looked at.
            let after = peak(client)?;
            let _ = go.send(());
            compare(&mut stdout, bytes - 1, bytes)?;
            Ok((before, after))
        };
        let outcome = read();
        drop(go);
        let (before, after) = match (outcome, writer.join()) {
            (Ok(memory), Ok(Ok(()))) => memory,
            (Ok(_), Ok(Err(error))) => return Err(TransferError::Write(error)),
            (Err(error), _) => return Err(error),
            (Ok(_), Err(panic)) => std::panic::resume_unwind(panic),
        };
        match stdout.read(&mut [0]).map_err(TransferError::Read)? {
            0 => Ok(Echoed { before, after }),
            _ => Err(TransferError::Surplus),
        }
    })
}

fn byte(offset: u64) -> u8 {
    // Below 251, so it fits.
    u8::try_from(offset % PERIOD).unwrap_or_default()
}

fn send(to: &mut impl Write, from: u64, until: u64) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    let mut at = from;
    while at < until {
        let size = usize::try_from(until - at).unwrap_or(CHUNK).min(CHUNK);
        for (index, place) in chunk[..size].iter_mut().enumerate() {
            *place = byte(at + index as u64);
        }
        to.write_all(&chunk[..size])?;
        at += size as u64;
    }
    to.flush()
}

fn compare(from: &mut impl Read, begin: u64, until: u64) -> Result<(), TransferError> {
    let mut chunk = vec![0; CHUNK];
    let mut at = begin;
    while at < until {
        let size = usize::try_from(until - at).unwrap_or(CHUNK).min(CHUNK);
        let size = from.read(&mut chunk[..size]).map_err(TransferError::Read)?;
        if size == 0 {
            return Err(changed(at, None));
        }
        let wrong = (at..)
            .zip(&chunk[..size])
            .find(|(at, found)| byte(*at) != **found);
        if let Some((at, found)) = wrong {
            return Err(changed(at, Some(*found)));
        }
        at += size as u64;
    }
    Ok(())
}

fn changed(offset: u64, found: Option<u8>) -> TransferError {
    TransferError::Changed {
        offset,
        sent: byte(offset),
        found,
    }
}

/// Lets a process's peak of memory begin anew; returns what it has now.
fn forget_peak(pid: u32) -> Result<f64, TransferError> {
    // Let what was just done settle: a client that has printed its first bytes still starts up.
    std::thread::sleep(Duration::from_millis(100));
    let memory = |source| TransferError::Memory { pid, source };
    // "5" resets the peak resident set size (proc(5)).
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").map_err(memory)?;
    resident_mib(pid).map_err(memory)
}

fn peak(pid: u32) -> Result<f64, TransferError> {
    peak_mib(pid).map_err(|source| TransferError::Memory { pid, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_is_measured() {
        let transfer = run(&mut Command::new("cat"), 4, std::process::id()).unwrap();
        assert!(transfer.mib_per_s > 0.0);
        assert!(transfer.client_mib < 8.0, "{transfer:?}");
    }

    #[test]
    fn what_is_lost_or_changed_is_found() {
        let mut sent = Vec::new();
        send(&mut sent, 0, 1000).unwrap();
        compare(&mut sent.as_slice(), 0, 1000).unwrap();
        let short = compare(&mut &sent[..999], 0, 1000);
        assert!(matches!(
            short,
            Err(TransferError::Changed {
                offset: 999,
                found: None,
                ..
            })
        ));
        sent[500] ^= 1;
        let flipped = compare(&mut sent.as_slice(), 0, 1000);
        assert!(matches!(
            flipped,
            Err(TransferError::Changed { offset: 500, .. })
        ));
    }
}
