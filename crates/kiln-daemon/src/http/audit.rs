//! A line for everything that somebody asks for and that changes something.

use std::time::Instant;

use axum::{
    extract::Request,
    http::{Method, header},
    middleware::Next,
    response::Response,
};

use super::{Connection, auth::Peer};

/// Under this name the lines are found in the log.
const TARGET: &str = "kiln::audit";

/// Writes the line once the answer's head is known: for a stream that is its beginning.
pub(crate) async fn write(request: Request, next: Next) -> Response {
    if !changes_something(&request) {
        return next.run(request).await;
    }
    let peer = request
        .extensions()
        .get::<Connection>()
        .map(|connection| connection.peer.clone());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let began = Instant::now();
    let response = next.run(request).await;
    tracing::info!(
        target: TARGET,
        from = peer.map(|peer| told(&peer)),
        %method,
        path,
        status = response.status().as_u16(),
        ms = began.elapsed().as_millis(),
        "asked"
    );
    response
}

fn told(peer: &Peer) -> String {
    match peer {
        Peer::Local { uid, pid } => format!("uid {uid}, pid {}", pid.unwrap_or(0)),
        Peer::Remote { address, .. } => address.to_string(),
    }
}

/// Commands and runs come as upgrades of a GET.
fn changes_something(request: &Request) -> bool {
    request.method() != Method::GET || request.headers().contains_key(header::UPGRADE)
}
