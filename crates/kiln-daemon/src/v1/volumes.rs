//! Volumes.

use std::path::PathBuf;

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    routing::{get, post},
};
use kiln::{NewVolume, VolumeSource};
use kiln_api::{CreateVolume, ExportVolume, ResizeVolume, Volume};

use super::{App, convert};
use crate::http::{
    error::ApiError,
    extract::{Body, Named},
};

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/v1/volumes", get(list).post(create))
        .route("/v1/volumes/{name}", get(inspect).delete(remove))
        .route("/v1/volumes/{name}/resize", post(resize))
        .route("/v1/volumes/{name}/export", post(export))
}

async fn list(State(app): State<App>) -> Result<Json<Vec<Volume>>, ApiError> {
    let volumes = app.host.volumes().await?;
    Ok(Json(volumes.into_iter().map(convert::volume).collect()))
}

async fn inspect(
    State(app): State<App>,
    Named(name): Named<String>,
) -> Result<Json<Volume>, ApiError> {
    Ok(Json(convert::volume(app.host.volume(&name).await?)))
}

async fn create(
    State(app): State<App>,
    Body(request): Body<CreateVolume>,
) -> Result<(StatusCode, Json<Volume>), ApiError> {
    let volume = app.host.create_volume(new_volume(request)?).await?;
    Ok((StatusCode::CREATED, Json(convert::volume(volume))))
}

async fn resize(
    State(app): State<App>,
    Named(name): Named<String>,
    Body(request): Body<ResizeVolume>,
) -> Result<Json<Volume>, ApiError> {
    let resized = app.host.resize_volume(&name, request.size_bytes).await?;
    Ok(Json(convert::volume(resized)))
}

async fn export(
    State(app): State<App>,
    Named(name): Named<String>,
    Body(request): Body<ExportVolume>,
) -> Result<StatusCode, ApiError> {
    let to = absolute(request.path)?;
    app.host.export_volume(&name, to).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn remove(
    State(app): State<App>,
    Named(name): Named<String>,
) -> Result<StatusCode, ApiError> {
    app.host.remove_volume(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn new_volume(request: CreateVolume) -> Result<NewVolume, ApiError> {
    let source = match (request.size_bytes, request.clone_of, request.import) {
        (Some(size), None, None) => VolumeSource::Blank(size),
        (None, Some(from), None) => VolumeSource::CloneOf(from),
        (size, None, Some(path)) => VolumeSource::File(absolute(path)?, size),
        _ => {
            let message = "a volume has a size, or is a clone, or is imported from a file";
            return Err(ApiError::invalid(message));
        }
    };
    Ok(NewVolume {
        name: request.name,
        source,
    })
}

fn absolute(path: String) -> Result<PathBuf, ApiError> {
    if path.starts_with('/') {
        return Ok(path.into());
    }
    Err(ApiError::invalid(format!(
        "{path:?} is not an absolute path"
    )))
}
