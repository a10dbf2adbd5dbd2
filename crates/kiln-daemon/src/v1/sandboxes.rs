//! Sandboxes: what is not a stream.

use std::{sync::Arc, time::Duration};

use axum::{Json, extract::State, http::StatusCode};
use kiln::Silent;
use kiln_api::{CreateSandbox, Sandbox, StopSandbox};
use serde::Deserialize;

use super::{App, convert};
use crate::http::{
    error::ApiError,
    extract::{Body, Named, Options},
};

/// How long a guest has to power off when the request does not say.
const DEFAULT_GRACE: Duration = Duration::from_secs(10);

/// What `DELETE` can be told.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RemoveOptions {
    #[serde(default)]
    force: bool,
}

pub(super) async fn list(State(app): State<App>) -> Result<Json<Vec<Sandbox>>, ApiError> {
    let sandboxes = app.host.list().await?;
    Ok(Json(sandboxes.into_iter().map(convert::sandbox).collect()))
}

pub(super) async fn create(
    State(app): State<App>,
    Body(request): Body<CreateSandbox>,
) -> Result<(StatusCode, Json<Sandbox>), ApiError> {
    let info = app.host.create(convert::spec(request)).await?;
    Ok((StatusCode::CREATED, Json(convert::sandbox(info))))
}

pub(super) async fn get(
    State(app): State<App>,
    Named(key): Named<String>,
) -> Result<Json<Sandbox>, ApiError> {
    Ok(Json(convert::sandbox(app.host.get(&key).await?)))
}

pub(super) async fn remove(
    State(app): State<App>,
    Named(key): Named<String>,
    Options(options): Options<RemoveOptions>,
) -> Result<StatusCode, ApiError> {
    app.host.remove(&key, options.force).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn start(
    State(app): State<App>,
    Named(key): Named<String>,
) -> Result<Json<Sandbox>, ApiError> {
    Ok(Json(convert::sandbox(
        app.host.start(&key, Arc::new(Silent)).await?,
    )))
}

pub(super) async fn stop(
    State(app): State<App>,
    Named(key): Named<String>,
    Body(request): Body<StopSandbox>,
) -> Result<Json<Sandbox>, ApiError> {
    let grace = request
        .grace_ms
        .map_or(DEFAULT_GRACE, Duration::from_millis);
    Ok(Json(convert::sandbox(app.host.stop(&key, grace).await?)))
}
