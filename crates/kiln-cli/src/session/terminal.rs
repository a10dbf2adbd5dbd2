//! The terminal this runs in.

use std::{
    io::{self, IsTerminal},
    os::fd::AsFd,
};

use kiln_api::TerminalSize;
use rustix::{
    fs::{FileType, fstat},
    termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr},
};

/// What a command sees that has a terminal while we have none.
const DEFAULT_SIZE: TerminalSize = TerminalSize { rows: 24, cols: 80 };

/// The size of the terminal at standard output or, when that goes elsewhere, at standard input.
pub(crate) fn size() -> TerminalSize {
    size_of(io::stdout())
        .or_else(|| size_of(io::stdin()))
        .unwrap_or(DEFAULT_SIZE)
}

fn size_of(file: impl AsFd) -> Option<TerminalSize> {
    let size = tcgetwinsize(file).ok()?;
    // A serial line that was never told its size says 0.
    (size.ws_row > 0 && size.ws_col > 0).then_some(TerminalSize {
        rows: size.ws_row,
        cols: size.ws_col,
    })
}

pub(crate) fn stdin_is_terminal() -> bool {
    io::stdin().is_terminal()
}

/// Whether standard input is something that was put there for a command to read: a pipe, a file, a
/// socket. A terminal is not, nor is `/dev/null`.
pub(crate) fn stdin_is_data() -> bool {
    fstat(io::stdin()).is_ok_and(|stat| {
        matches!(
            FileType::from_raw_mode(stat.st_mode),
            FileType::Fifo | FileType::RegularFile | FileType::Socket
        )
    })
}

/// Keys go to the command as they are; the terminal is as before when this is dropped.
#[derive(Debug)]
#[must_use]
pub(crate) struct RawMode {
    before: Termios,
}

impl RawMode {
    pub(crate) fn enter() -> io::Result<Self> {
        let stdin = io::stdin();
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Drain, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // Not flushed: what was typed ahead belongs to the shell.
        if let Err(error) = tcsetattr(io::stdin(), OptionalActions::Drain, &self.before) {
            use io::Write;
            drop(writeln!(
                io::stderr(),
                "kiln: cannot restore the terminal: {error}; try `reset`"
            ));
        }
    }
}
