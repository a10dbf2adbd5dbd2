//! Snapshots.

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    routing::{get, post},
};
use kiln::{NewSnapshot, SnapshotInfo};
use kiln_api::{AfterSnapshot, CreateSnapshot, Snapshot};

use super::{App, convert};
use crate::http::{
    error::ApiError,
    extract::{Body, Named},
};

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/v1/sandboxes/{key}/snapshots", post(create))
        .route("/v1/snapshots", get(list))
        .route("/v1/snapshots/{snapshot}", get(inspect).delete(remove))
}

async fn create(
    State(app): State<App>,
    Named(key): Named<String>,
    Body(request): Body<CreateSnapshot>,
) -> Result<(StatusCode, Json<Snapshot>), ApiError> {
    let wanted = NewSnapshot {
        name: request.name,
        then: match request.then {
            AfterSnapshot::Resume => kiln::AfterSnapshot::Resume,
            AfterSnapshot::StayPaused => kiln::AfterSnapshot::StayPaused,
            AfterSnapshot::Stop => kiln::AfterSnapshot::Stop,
        },
    };
    let made = app.host.create_snapshot(&key, wanted).await?;
    Ok((StatusCode::CREATED, Json(shown(made))))
}

async fn list(State(app): State<App>) -> Result<Json<Vec<Snapshot>>, ApiError> {
    let snapshots = app.host.snapshots().await?;
    Ok(Json(snapshots.into_iter().map(shown).collect()))
}

async fn inspect(
    State(app): State<App>,
    Named(key): Named<String>,
) -> Result<Json<Snapshot>, ApiError> {
    Ok(Json(shown(app.host.snapshot(&key).await?)))
}

async fn remove(State(app): State<App>, Named(key): Named<String>) -> Result<StatusCode, ApiError> {
    app.host.remove_snapshot(&key).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn shown(snapshot: SnapshotInfo) -> Snapshot {
    Snapshot {
        id: snapshot.id,
        name: snapshot.name,
        sandbox: snapshot.sandbox,
        sandbox_name: snapshot.sandbox_name,
        image: snapshot.image,
        engine: convert::engine(snapshot.engine),
        engine_version: snapshot.engine_version,
        vcpus: snapshot.vcpus,
        mem_mib: snapshot.mem_mib,
        disk_mib: snapshot.disk_mib,
        bytes: snapshot.bytes,
        created_at_ms: snapshot.created_at_ms,
        used_by: snapshot.used_by,
    }
}
