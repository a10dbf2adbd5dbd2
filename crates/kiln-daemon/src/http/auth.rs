//! Who may use the daemon: its own user and root, by what the kernel says of the peer.

use std::{io, net::SocketAddr};

use axum::{
    extract::{Request, State},
    http::header,
    middleware::Next,
    response::{IntoResponse, Response},
};
use kiln_api::{ErrorReport, VERSION_HEADER, code};
use rustix::process::geteuid;
use tokio::net::UnixStream;

use super::{Connection, error::ApiError};
use crate::{VERSION, lifetime::Lifetime, remote::Tokens};

/// Who is at the other end, as it was when it connected.
#[derive(Clone, Debug)]
pub(crate) enum Peer {
    /// A process of this host.
    Local {
        /// Its user.
        uid: u32,
        /// Its number.
        pid: Option<i32>,
    },
    /// Somebody elsewhere, who has to show one of these.
    Remote { address: SocketAddr, tokens: Tokens },
}

impl Peer {
    pub(crate) fn of(stream: &UnixStream) -> io::Result<Self> {
        let credentials = stream.peer_cred()?;
        Ok(Self::Local {
            uid: credentials.uid(),
            pid: credentials.pid(),
        })
    }

    fn check(&self, request: &Request) -> Result<(), ApiError> {
        match self {
            Self::Local { uid, .. } if *uid == 0 || *uid == geteuid().as_raw() => Ok(()),
            Self::Local { uid, pid } => {
                tracing::warn!(uid, pid, "refused a client of another user");
                Err(ApiError::forbidden())
            }
            Self::Remote { tokens, .. } if bearer(request).is_some_and(|it| tokens.hold(it)) => {
                Ok(())
            }
            Self::Remote { address, .. } => {
                tracing::warn!(%address, "refused a client without a token");
                Err(ApiError::unauthorized())
            }
        }
    }
}

fn bearer(request: &Request) -> Option<&str> {
    let header = request.headers().get(header::AUTHORIZATION)?;
    header.to_str().ok()?.strip_prefix("Bearer ")
}

/// Lets through who may use the daemon, while it takes work, and is of its version.
pub(crate) async fn admit(
    State(lifetime): State<Lifetime>,
    request: Request,
    next: Next,
) -> Response {
    let verdict = check_peer(&request)
        .and_then(|()| check_version(&request))
        .and_then(|()| check_stopping(&lifetime));
    let mut response = match verdict {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    };
    response.headers_mut().insert(
        VERSION_HEADER,
        axum::http::HeaderValue::from_static(VERSION),
    );
    response
}

fn check_peer(request: &Request) -> Result<(), ApiError> {
    // Without a peer nobody is let in: a router that is served some other way is closed.
    match request.extensions().get::<Connection>() {
        Some(connection) => connection.peer.check(request),
        None => Err(ApiError::forbidden()),
    }
}

fn check_version(request: &Request) -> Result<(), ApiError> {
    let Some(theirs) = request.headers().get(VERSION_HEADER) else {
        return Ok(());
    };
    // How to find out about a mismatch, and how to end it.
    let works_across = ["/v1/version", "/v1/shutdown"].contains(&request.uri().path());
    if works_across || theirs.as_bytes() == VERSION.as_bytes() {
        return Ok(());
    }
    let theirs = String::from_utf8_lossy(theirs.as_bytes());
    let message = format!("the daemon is kiln {VERSION}, the caller is kiln {theirs}");
    Err(ApiError::of(
        axum::http::StatusCode::CONFLICT,
        ErrorReport::new(code::VERSION_MISMATCH, message).with_hint(
            "end this daemon with `kiln daemon --stop`: machines run on, and the next command starts a new one",
        ),
    ))
}

fn check_stopping(lifetime: &Lifetime) -> Result<(), ApiError> {
    if lifetime.is_stopping() {
        Err(ApiError::stopping())
    } else {
        Ok(())
    }
}
