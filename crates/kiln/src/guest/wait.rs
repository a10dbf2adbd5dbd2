//! Waiting for the end of a session without being its client.

use std::time::Duration;

use kiln_agent_proto::message::{Request, Wait, reply, request};
use kiln_agent_proto::version;

use super::{GuestError, GuestLink, Refusal, session};
use crate::exec::ExecExit;

/// How a session has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SessionEnd {
    pub(crate) exit: ExecExit,
    /// How long it ran.
    pub(crate) age: Duration,
}

impl GuestLink {
    /// Waits until a session has ended, over breaks of the connection. Without a deadline of its own;
    /// cancel-safe.
    ///
    /// # Errors
    /// [`Refusal::NoSuchSession`], also when the agent has begun another life;
    /// [`Refusal::TooOld`] when it cannot tell; the link has ended.
    pub(crate) async fn session_ended(&self, session: u64) -> Result<SessionEnd, GuestError> {
        let request = Request::of(request::Kind::Wait(Wait { session }));
        let (mut epoch, mut instance) = (0, None);
        loop {
            let up = self.shared.up_after(epoch).await?;
            epoch = up.epoch;
            if up.info.version < version::WAIT {
                return Err(refused(
                    Refusal::TooOld,
                    "the guest's agent is too old to tell",
                ));
            }
            if *instance.get_or_insert(up.info.instance) != up.info.instance {
                let message = "the agent that ran it is gone";
                return Err(refused(Refusal::NoSuchSession, message));
            }
            match up.streams.call(&request).await {
                Err(GuestError::Lost) => {}
                Err(error) => return Err(error),
                Ok((_, reply::Kind::Waited(waited))) => {
                    return Ok(SessionEnd {
                        exit: session::exit(waited.exit),
                        age: Duration::from_millis(waited.age_ms),
                    });
                }
                Ok(_) => {
                    let what = "it answers a wait with something else";
                    return Err(GuestError::Protocol(what));
                }
            }
        }
    }
}

fn refused(kind: Refusal, message: &str) -> GuestError {
    GuestError::Refused {
        kind,
        message: message.to_owned(),
    }
}
