//! From the process into the ring.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use kiln_agent_proto::limits::CHUNK;

use super::Session;
use super::ring::Source;
use crate::fd::Fd;

/// After the end of the first process, how long its terminal may take to hand over what it
/// still holds when others keep it open. The kernel moves it there in the background.
const TERMINAL_DRAIN: Duration = Duration::from_millis(200);

/// More than a terminal holds between its two ends.
const TERMINAL_HOLDS: usize = 128 * 1024;

thread_local! {
    /// Reads are short and never interleave, so all share one buffer.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; CHUNK]);
}

/// Reads one pipe until the process is done with it.
///
/// When the first process has ended, all that it wrote is in the pipe: the stream is drained
/// when so much is read, even if others hold it open. Those can go on writing, to nobody.
pub(super) async fn pump_pipe(session: Rc<Session>, source: Source, fd: Fd) {
    let mut open = until_exit(&session, source, &fd).await;
    let mut left = fd.available();
    while open && left > 0 {
        let n = read(&session, source, &fd, left).await;
        open = n > 0;
        left -= n;
    }
    session.stream_drained();
    if open {
        discard(&fd).await;
    }
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
        match try_read(session, source, fd, max) {
            Ok(Some(n)) => return n,
            Err(_) => return 0,
            Ok(None) => {
                if fd.readable().await.is_err() {
                    return 0;
                }
            }
        }
    }
}

fn try_read(session: &Session, source: Source, fd: &Fd, max: usize) -> io::Result<Option<usize>> {
    BUFFER.with_borrow_mut(|buffer| {
        let mut state = session.state.borrow_mut();
        let max = state.ring.room().min(CHUNK).min(max);
        let Some(n) = fd.try_read(&mut buffer[..max])? else {
            return Ok(None);
        };
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

async fn discard(fd: &Fd) {
    loop {
        let read = BUFFER.with_borrow_mut(|buffer| fd.try_read(buffer));
        match read {
            Ok(Some(0)) | Err(_) => return,
            Ok(Some(_)) => tokio::task::consume_budget().await,
            Ok(None) => {
                if fd.readable().await.is_err() {
                    return;
                }
            }
        }
    }
}
