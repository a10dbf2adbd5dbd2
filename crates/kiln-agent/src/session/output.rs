//! From the process into the ring.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use kiln_agent_proto::limits::CHUNK;

use super::Session;
use super::ring::Source;
use crate::fd::Fd;
use crate::process::Outlet;

/// After the end of the first process, how long its terminal may take to hand over what it
/// still holds when others keep it open. The kernel moves it there in the background.
const TERMINAL_DRAIN: Duration = Duration::from_millis(200);

/// More than a terminal holds between its two ends.
const TERMINAL_HOLDS: usize = 128 * 1024;

thread_local! {
    /// Reads are short and never interleave, so all share one buffer.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; CHUNK]);
}

/// An [`Outlet`] on the event loop.
#[derive(Debug)]
pub(super) struct Pipe {
    fd: Fd,
    write: OwnedFd,
}

impl Pipe {
    pub(super) fn new(outlet: Outlet) -> io::Result<Self> {
        Ok(Self {
            fd: Fd::new(outlet.read)?,
            write: outlet.write,
        })
    }
}

/// Reads one pipe until the first process has ended. All that it wrote is in the pipe then: the
/// stream is drained when so much is read, even if others hold it open. Those can go on writing,
/// to nobody.
pub(super) async fn pump_pipe(session: Rc<Session>, source: Source, pipe: Pipe) {
    let Pipe { fd, write } = pipe;
    let mut open = until_exit(&session, source, &fd).await;
    let mut left = fd.available();
    while open && left > 0 {
        let n = read(&session, source, &fd, left).await;
        open = n > 0;
        left -= n;
    }
    session.stream_drained();
    // The client hears of the end before anything is tidied up.
    tokio::task::yield_now().await;
    drop(write);
    discard(&fd).await;
}

/// Reads a terminal until it is hung up, which happens when its first process ends.
pub(super) async fn pump_terminal(session: Rc<Session>, fd: Rc<Fd>) {
    let mut open = until_exit(&session, Source::Stdout, &fd).await;
    let mut left = TERMINAL_HOLDS;
    while open && left > 0 {
        room(&session).await;
        let last = read(&session, Source::Stdout, &fd, left);
        let n = tokio::time::timeout(TERMINAL_DRAIN, last)
            .await
            .unwrap_or(0);
        open = n > 0;
        left -= n;
    }
    session.stream_drained();
}

/// Reads until the first process has ended; `false` when the stream ended before.
async fn until_exit(session: &Session, source: Source, fd: &Fd) -> bool {
    let mut open = true;
    while open && !session.leader_has_exited() {
        open = tokio::select! {
            n = read(session, source, fd, CHUNK) => n > 0,
            () = exited(session) => true,
        };
    }
    open
}

/// Reads once, when there is room, at most `max` bytes; 0 at the end. Cancel-safe.
async fn read(session: &Session, source: Source, fd: &Fd, max: usize) -> usize {
    loop {
        // A flood that nobody reads would otherwise never let go of the thread.
        tokio::task::consume_budget().await;
        room(session).await;
        match fd.when_readable(|fd| take(session, source, fd, max)).await {
            Ok(Some(n)) => return n,
            // Its sibling has filled the ring meanwhile.
            Ok(None) => {}
            Err(_) => return 0,
        }
    }
}

/// From the pipe into the ring; `None` when that is full.
fn take(session: &Session, source: Source, fd: &Fd, max: usize) -> io::Result<Option<usize>> {
    BUFFER.with_borrow_mut(|buffer| {
        let mut state = session.state.borrow_mut();
        let max = state.ring.room().min(CHUNK).min(max);
        if max == 0 {
            return Ok(None);
        }
        let n = fd.read_now(&mut buffer[..max])?;
        state.ring.push(source, &buffer[..n]);
        drop(state);
        session.news.notify_waiters();
        Ok(Some(n))
    })
}

async fn room(session: &Session) {
    while session.state.borrow().ring.room() == 0 {
        session.room.notified().await;
    }
}

async fn exited(session: &Session) {
    while !session.leader_has_exited() {
        session.room.notified().await;
    }
}

/// Reads until nobody holds the pipe open any more.
async fn discard(fd: &Fd) {
    let read = |fd: &Fd| BUFFER.with_borrow_mut(|buffer| fd.read_now(buffer));
    while let Ok(1..) = fd.when_readable(read).await {
        tokio::task::consume_budget().await;
    }
}
