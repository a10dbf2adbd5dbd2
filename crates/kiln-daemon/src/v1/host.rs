//! The daemon itself.

use axum::{Json, extract::State, http::StatusCode};
use kiln_api::{API_VERSION, CollectGarbage, HostInfo, Kernel, Leftover, Version};

use super::{App, convert};
use crate::{
    VERSION,
    http::{error::ApiError, extract::Body},
};

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

pub(super) async fn kernels(State(app): State<App>) -> Result<Json<Vec<Kernel>>, ApiError> {
    let kernels = app.host.kernels().await?;
    Ok(Json(kernels.into_iter().map(convert::kernel).collect()))
}

pub(super) async fn collect_garbage(
    State(app): State<App>,
    Body(request): Body<CollectGarbage>,
) -> Result<Json<Vec<Leftover>>, ApiError> {
    let found = app.host.collect_garbage(request.dry_run).await?;
    Ok(Json(found.into_iter().map(convert::leftover).collect()))
}

pub(super) async fn shutdown(State(app): State<App>) -> StatusCode {
    app.lifetime.stop();
    StatusCode::ACCEPTED
}
