//! Connections to ports of guests, through their agents.

use axum::{
    Extension,
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use hyper_util::rt::TokioIo;
use kiln_api::PORT_PROTOCOL;

use super::App;
use crate::http::{Connection, error::ApiError, extract::Named};

/// Turns the connection into one to the port; whatever fails is told before.
pub(super) async fn connect(
    State(app): State<App>,
    Extension(connection): Extension<Connection>,
    Named((key, port)): Named<(String, u16)>,
    request: Request,
) -> Result<Response, ApiError> {
    let wanted = request.headers().get(header::UPGRADE);
    if port == 0 || wanted.map(HeaderValue::as_bytes) != Some(PORT_PROTOCOL.as_bytes()) {
        let message = format!("a port is 1 to 65535, and asked for with upgrade: {PORT_PROTOCOL}");
        return Err(ApiError::invalid(message));
    }
    let stream = app.host.connect(&key, port).await?;
    let upgraded = hyper::upgrade::on(request);
    // Outlives the request; held by the connection, so the daemon does not take itself for idle.
    tokio::spawn(async move {
        let relayed = async {
            let socket = upgraded.await.map_err(std::io::Error::other)?;
            stream.relay(TokioIo::new(socket)).await
        };
        tokio::select! {
            relayed = relayed => if let Err(error) = relayed {
                tracing::debug!(%error, port, "a forwarded connection broke");
            },
            () = connection.lifetime().stopping() => {}
        }
    });
    let headers = [
        (header::CONNECTION, HeaderValue::from_static("upgrade")),
        (header::UPGRADE, HeaderValue::from_static(PORT_PROTOCOL)),
    ];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}
