//! The only one who waits for processes: the sessions' and, as process 1, everybody's orphans.

use std::io;
use std::rc::Rc;

use kiln_agent_proto::message::Exited;
use rustix::io::Errno;
use rustix::process::{WaitOptions, WaitStatus, wait};
use tokio::sync::Notify;

use crate::session::Sessions;
use crate::sys::child_signal::ChildSignal;

/// Reports ended processes.
#[derive(Debug)]
pub(crate) struct Reaper {
    sessions: Rc<Sessions>,
    childless: Notify,
}

impl Reaper {
    pub(crate) fn new(sessions: Rc<Sessions>) -> Self {
        Self {
            sessions,
            childless: Notify::new(),
        }
    }

    /// Reaps for ever.
    pub(crate) async fn run(&self) -> io::Result<std::convert::Infallible> {
        let children = ChildSignal::new()?;
        loop {
            if !self.reap() {
                self.childless.notify_waiters();
            }
            children.ended().await?;
        }
    }

    /// Takes everyone who has ended; `false` when no child is left.
    fn reap(&self) -> bool {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => self.sessions.reaped(pid, exited(status)),
                Ok(None) => return true,
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }

    /// Waits until this process has no children. For process 1 that means: nobody is left.
    pub(crate) async fn no_children(&self) {
        let childless = self.childless.notified();
        if self.reap() {
            childless.await;
        }
    }
}

fn exited(status: WaitStatus) -> Exited {
    Exited {
        code: status.exit_status().unwrap_or(0),
        signal: status.terminating_signal().map_or(0, i32::unsigned_abs),
        timed_out: false,
    }
}
