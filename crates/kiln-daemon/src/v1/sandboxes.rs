//! Sandboxes: what is not a stream.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, StatusCode},
};
use kiln::{Filter, Silent};
use kiln_api::{
    CreateSandbox, IDEMPOTENCY_HEADER, Sandbox, Stats, StopSandbox, UpdateSandbox, WaitFor,
};
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

/// What a list can be told.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ListOptions {
    /// A JSON array of `NAME=VALUE`.
    filters: Option<String>,
}

impl ListOptions {
    fn parse(&self) -> Result<Vec<Filter>, ApiError> {
        let Some(json) = &self.filters else {
            return Ok(Vec::new());
        };
        let words: Vec<String> = serde_json::from_str(json)
            .map_err(|_| ApiError::invalid("filters are not a JSON array of texts"))?;
        Ok(words
            .iter()
            .map(|word| word.parse())
            .collect::<Result<_, kiln::Error>>()?)
    }
}

/// What a wait can be told.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WaitOptions {
    #[serde(rename = "for", default)]
    what: WaitFor,
}

pub(super) async fn list(
    State(app): State<App>,
    Options(options): Options<ListOptions>,
) -> Result<Json<Vec<Sandbox>>, ApiError> {
    let sandboxes = app.host.list(&options.parse()?).await?;
    Ok(Json(sandboxes.into_iter().map(convert::sandbox).collect()))
}

pub(super) async fn create(
    State(app): State<App>,
    headers: HeaderMap,
    Body(request): Body<CreateSandbox>,
) -> Result<(StatusCode, Json<Sandbox>), ApiError> {
    let spec = convert::spec(request)?;
    let info = match headers.get(IDEMPOTENCY_HEADER) {
        Some(key) => {
            let key = key.to_str();
            let key = key.map_err(|_| ApiError::invalid("the idempotency key is not text"))?;
            app.host.create_once(key, spec).await?
        }
        None => app.host.create(spec).await?,
    };
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
    let stopped = app.host.stop(&key, grace(request)).await?;
    Ok(Json(convert::sandbox(stopped)))
}

pub(super) async fn restart(
    State(app): State<App>,
    Named(key): Named<String>,
    Body(request): Body<StopSandbox>,
) -> Result<Json<Sandbox>, ApiError> {
    let progress = Arc::new(Silent);
    let started = app.host.restart(&key, grace(request), progress).await?;
    Ok(Json(convert::sandbox(started)))
}

fn grace(request: StopSandbox) -> Duration {
    request
        .grace_ms
        .map_or(DEFAULT_GRACE, Duration::from_millis)
}

pub(super) async fn pause(
    State(app): State<App>,
    Named(key): Named<String>,
) -> Result<Json<Sandbox>, ApiError> {
    Ok(Json(convert::sandbox(app.host.pause(&key).await?)))
}

pub(super) async fn resume(
    State(app): State<App>,
    Named(key): Named<String>,
) -> Result<Json<Sandbox>, ApiError> {
    Ok(Json(convert::sandbox(app.host.resume(&key).await?)))
}

pub(super) async fn update(
    State(app): State<App>,
    Named(key): Named<String>,
    Body(request): Body<UpdateSandbox>,
) -> Result<Json<Sandbox>, ApiError> {
    let updated = app.host.update(&key, convert::update(request)?).await?;
    Ok(Json(convert::sandbox(updated)))
}

/// Answers when it has come to that, or tells to ask the next daemon when this one ends.
pub(super) async fn wait(
    State(app): State<App>,
    Named(key): Named<String>,
    Options(options): Options<WaitOptions>,
) -> Result<Json<Sandbox>, ApiError> {
    tokio::select! {
        waited = app.host.wait(&key, convert::wait_for(options.what)) => {
            Ok(Json(convert::sandbox(waited?)))
        }
        () = app.lifetime.stopping() => Err(ApiError::stopping()),
    }
}

pub(super) async fn stats(
    State(app): State<App>,
    Named(key): Named<String>,
) -> Result<Json<Stats>, ApiError> {
    Ok(Json(convert::stats(app.host.stats(&key).await?)))
}
