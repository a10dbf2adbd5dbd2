//! From the client to the process.

use std::rc::Rc;

use kiln_agent_proto::limits::CHUNK;

use super::Session;
use crate::fd::Fd;

/// What a terminal takes for the end of its input (Ctrl-D).
const TERMINAL_EOF: u8 = 4;

/// Where a session's input goes.
pub(super) enum Sink {
    /// A pipe, closed at the end of the input.
    Pipe(Fd),
    /// A terminal.
    Terminal(Rc<Fd>),
    /// Nowhere.
    None,
}

enum Next {
    Bytes(Vec<u8>),
    Eof,
    Exited,
}

/// Writes input until it ends or nobody takes it any more.
pub(super) async fn pump(session: Rc<Session>, sink: Sink) {
    let fd = match &sink {
        Sink::Pipe(fd) => Some(fd),
        Sink::Terminal(fd) => Some(fd.as_ref()),
        Sink::None => None,
    };
    if let Some(fd) = fd {
        while let Next::Bytes(bytes) = next(&session).await {
            if !write(&session, fd, &bytes).await {
                break;
            }
        }
    }
    if let (Sink::Terminal(fd), false) = (&sink, session.leader_has_exited()) {
        let _ = fd.write(&[TERMINAL_EOF]).await;
    }
    drop(sink);
    close(&session);
}

async fn next(session: &Session) -> Next {
    loop {
        if session.leader_has_exited() {
            return Next::Exited;
        }
        if let Some(next) = waiting(session) {
            return next;
        }
        session.input.notified().await;
    }
}

fn waiting(session: &Session) -> Option<Next> {
    let input = &session.state.borrow().input;
    let front = input.bytes.as_slices().0;
    if !front.is_empty() {
        return Some(Next::Bytes(front[..front.len().min(CHUNK)].to_vec()));
    }
    input.eof.then_some(Next::Eof)
}

/// Writes `bytes`, which stay in the buffer until they are written.
async fn write(session: &Session, fd: &Fd, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        let written = tokio::select! {
            written = fd.write(bytes) => written,
            () = exited(session) => return false,
        };
        let Ok(n) = written else { return false };
        bytes = &bytes[n..];
        let mut state = session.state.borrow_mut();
        state.input.bytes.drain(..n);
        state.input.taken += n as u64;
        drop(state);
        session.news.notify_waiters();
    }
    true
}

async fn exited(session: &Session) {
    while !session.leader_has_exited() {
        session.input.notified().await;
    }
}

/// Whatever still comes is thrown away, and counts as taken: the client must not wait for it.
fn close(session: &Session) {
    let mut state = session.state.borrow_mut();
    let input = &mut state.input;
    input.closed = true;
    input.bytes = Default::default();
    input.taken = input.received;
    drop(state);
    session.news.notify_waiters();
}
