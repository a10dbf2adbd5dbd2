//! The daemon itself.

use axum::{Json, extract::State, http::StatusCode};
use kiln_api::{API_VERSION, HostInfo, Version};

use super::{App, convert};
use crate::{VERSION, http::error::ApiError};

pub(super) async fn version() -> Json<Version> {
    Json(Version {
        version: VERSION.to_owned(),
        api: API_VERSION,
        pid: std::process::id(),
    })
}

pub(super) async fn info(State(app): State<App>) -> Result<Json<HostInfo>, ApiError> {
    Ok(Json(convert::host_info(app.host.info().await?)))
}

pub(super) async fn shutdown(State(app): State<App>) -> StatusCode {
    app.lifetime.stop();
    StatusCode::ACCEPTED
}
