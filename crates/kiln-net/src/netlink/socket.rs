//! A blocking netlink socket: bound to the network namespace it was opened in, usable from any
//! thread.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink as raw, sockopt,
};

use super::message::{Batch, messages};

const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Larger than any message the kernel builds (dumps use at most 32 KiB per buffer).
const RECEIVE_LEN: usize = 128 << 10;
/// A transaction of 20,000 set elements is about 2 MB.
const KERNEL_BUFFER_LEN: usize = 16 << 20;
/// The kernel answers in milliseconds; a mass tear-down holds RTNL for about a second.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// Which part of the kernel to talk to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// Links, addresses, routes, rules, neighbours, qdiscs.
    Route,
    /// nftables and conntrack.
    Netfilter,
    /// Generic netlink: WireGuard.
    Generic,
}

/// Why a conversation with the kernel failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetlinkError {
    /// No socket could be opened.
    #[error("cannot open a netlink socket")]
    Open(#[source] std::io::Error),
    /// The request could not be sent.
    #[error("cannot send a netlink request ({step})")]
    Send {
        /// What was asked first.
        step: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The answer did not come.
    #[error("no answer from the kernel ({step})")]
    Receive {
        /// What was asked first.
        step: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The kernel refused a step.
    #[error("the kernel refused to {step}: {errno}")]
    Refused {
        /// What was asked.
        step: &'static str,
        /// The kernel's answer.
        errno: Errno,
    },
    /// A request has an attribute longer than the format permits.
    #[error("a request to {step} is too long for one netlink attribute")]
    TooLong {
        /// What was asked.
        step: &'static str,
    },
    /// The kernel answered something that makes no sense.
    #[error("the kernel's answer to {step} is incomplete")]
    Malformed {
        /// What was asked.
        step: &'static str,
    },
}

impl NetlinkError {
    /// The kernel's error number, where it gave one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}

/// One message of an answer that is not an acknowledgement.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reply<'a> {
    /// Which message of the batch it answers.
    pub(crate) index: usize,
    pub(crate) kind: u16,
    pub(crate) payload: &'a [u8],
}

/// A netlink socket.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Open a socket in the calling thread's network namespace.
    pub(crate) fn open(family: Family) -> Result<Self, NetlinkError> {
        let fd = open(family).map_err(|errno| NetlinkError::Open(errno.into()))?;
        Ok(Self {
            fd,
            sequence: 1,
            buffer: vec![0; RECEIVE_LEN],
        })
    }

    /// Send all, wait for every answer, return the first refusal.
    pub(crate) fn execute(&mut self, batch: Batch) -> Result<(), NetlinkError> {
        self.query(batch, |_| {})
    }

    /// As [`Self::execute`], handing every data message to `on_reply`.
    pub(crate) fn query(
        &mut self,
        mut batch: Batch,
        mut on_reply: impl FnMut(Reply<'_>),
    ) -> Result<(), NetlinkError> {
        if let Some(step) = batch.too_long() {
            return Err(NetlinkError::TooLong { step });
        }
        let Some(step) = batch.sent().first().map(|sent| sent.step) else {
            return Ok(());
        };
        let first = self.sequence;
        self.sequence = first.wrapping_add(u32::try_from(batch.len()).unwrap_or(u32::MAX));
        self.send(batch.numbered(first))
            .map_err(|source| NetlinkError::Send { step, source })?;

        let mut pending = Pending::new(&batch);
        while pending.waiting() {
            let length = self
                .receive()
                .map_err(|source| NetlinkError::Receive { step, source })?;
            for (kind, sequence, payload) in messages(&self.buffer[..length]) {
                let index = sequence.wrapping_sub(first) as usize;
                if index < batch.len() {
                    pending.take(
                        Reply {
                            index,
                            kind,
                            payload,
                        },
                        &mut on_reply,
                    )?;
                }
            }
        }
        pending.outcome()
    }

    fn send(&self, bytes: &[u8]) -> Result<(), std::io::Error> {
        let sent =
            rustix::io::retry_on_intr(|| rustix::net::send(&self.fd, bytes, SendFlags::empty()))?;
        if sent == bytes.len() {
            Ok(())
        } else {
            Err(std::io::ErrorKind::WriteZero.into())
        }
    }

    fn receive(&mut self) -> Result<usize, std::io::Error> {
        let (_, length) = rustix::io::retry_on_intr(|| {
            rustix::net::recv(&self.fd, self.buffer.as_mut_slice(), RecvFlags::TRUNC)
        })?;
        if length > self.buffer.len() {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        Ok(length)
    }
}

/// Which answers are still to come, and the first refusal.
struct Pending<'a> {
    batch: &'a Batch,
    left: usize,
    refused: Option<NetlinkError>,
}

impl<'a> Pending<'a> {
    fn new(batch: &'a Batch) -> Self {
        let left = batch.sent().iter().filter(|sent| sent.answered).count();
        Self {
            batch,
            left,
            refused: None,
        }
    }

    fn waiting(&self) -> bool {
        self.left > 0
    }

    fn take(
        &mut self,
        reply: Reply<'_>,
        on_reply: &mut impl FnMut(Reply<'_>),
    ) -> Result<(), NetlinkError> {
        let sent = self.batch.sent()[reply.index];
        if reply.kind != ERROR && reply.kind != DONE {
            on_reply(reply);
            return Ok(());
        }
        let code: [u8; 4] = reply
            .payload
            .get(..4)
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or(NetlinkError::Malformed { step: sent.step })?;
        self.settle(reply.index, i32::from_ne_bytes(code));
        Ok(())
    }

    fn settle(&mut self, index: usize, code: i32) {
        let sent = self.batch.sent()[index];
        if sent.answered {
            self.left = self.left.saturating_sub(1);
        }
        if code == 0 {
            return;
        }
        let errno = Errno::from_raw_os_error(code.saturating_neg());
        if !sent.tolerated.contains(&Some(errno)) && self.refused.is_none() {
            self.refused = Some(NetlinkError::Refused {
                step: sent.step,
                errno,
            });
        }
        // A transaction that is refused at its opening message gets no further answer.
        if index == 0 && !sent.answered {
            self.left = 0;
        }
    }

    fn outcome(self) -> Result<(), NetlinkError> {
        self.refused.map_or(Ok(()), Err)
    }
}

fn open(family: Family) -> Result<OwnedFd, Errno> {
    let protocol = match family {
        Family::Route => None,
        Family::Netfilter => Some(raw::NETFILTER),
        Family::Generic => Some(raw::GENERIC),
    };
    let fd = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        protocol,
    )?;
    rustix::net::bind(&fd, &raw::SocketAddrNetlink::new(0, 0))?;
    sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(ANSWER_TIMEOUT))?;
    // Without CAP_NET_ADMIN the defaults stay; requests will be refused anyway.
    let _ = sockopt::set_socket_send_buffer_size_force(&fd, KERNEL_BUFFER_LEN);
    let _ = sockopt::set_socket_recv_buffer_size_force(&fd, KERNEL_BUFFER_LEN);
    Ok(fd)
}
