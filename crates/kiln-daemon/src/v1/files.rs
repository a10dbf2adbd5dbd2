//! Files of sandboxes. The bytes of trees are passed on as they are, at the pace of the slower end.

use std::{io, time::Duration};

use axum::{
    Extension, Json, Router,
    body::{Body as HttpBody, BodyDataStream},
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use kiln::{FileWatch, TreeDownload, Upload};
use kiln_api::{FileChange, FileInfo, MakeDirectory, MoveFile, TREE_TYPE};
use serde::Deserialize;
use tokio::time::timeout;

use super::{App, convert};
use crate::{
    http::{
        Connection,
        error::ApiError,
        extract::{Body, Named, Options},
    },
    lifetime::Lifetime,
};

/// Permissions of a directory when the request does not say.
const DIRECTORY_MODE: u32 = 0o755;
/// How long the rest of a refused tree is read, so that its sender hears why.
const DRAIN: Duration = Duration::from_secs(2);

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/v1/sandboxes/{key}/files", get(stat).delete(remove))
        .route("/v1/sandboxes/{key}/files/list", get(list))
        .route("/v1/sandboxes/{key}/files/watch", get(watch))
        .route("/v1/sandboxes/{key}/files/mkdir", post(make_directory))
        .route("/v1/sandboxes/{key}/files/move", post(rename))
        .route("/v1/sandboxes/{key}/tree", get(download).put(upload))
}

/// What a path names.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PathOptions {
    path: String,
    #[serde(default)]
    follow: bool,
}

/// What is removed or watched.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RecursiveOptions {
    path: String,
    #[serde(default)]
    recursive: bool,
}

/// Where a tree goes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UploadOptions {
    path: String,
    user: Option<String>,
    #[serde(default)]
    keep_owner: bool,
}

async fn stat(
    State(app): State<App>,
    Named(key): Named<String>,
    Options(options): Options<PathOptions>,
) -> Result<Json<FileInfo>, ApiError> {
    let info = app.host.stat(&key, &options.path, options.follow).await?;
    Ok(Json(convert::file(info)))
}

async fn list(
    State(app): State<App>,
    Named(key): Named<String>,
    Options(options): Options<PathOptions>,
) -> Result<Json<Vec<FileInfo>>, ApiError> {
    let files = app.host.list_directory(&key, &options.path).await?;
    Ok(Json(files.into_iter().map(convert::file).collect()))
}

async fn watch(
    State(app): State<App>,
    Extension(connection): Extension<Connection>,
    Named(key): Named<String>,
    Options(options): Options<RecursiveOptions>,
) -> Result<Response, ApiError> {
    let watch = app.host.watch_files(&key, &options.path, options.recursive);
    let source = (watch.await?, connection);
    let body = HttpBody::from_stream(stream::unfold(source, next_change));
    Ok(([(header::CONTENT_TYPE, "text/event-stream")], body).into_response())
}

/// The next change as an event; an error breaks the body off.
async fn next_change(
    (mut watch, connection): (FileWatch, Connection),
) -> Option<(io::Result<Bytes>, (FileWatch, Connection))> {
    let change = tokio::select! {
        change = watch.next() => change.map_err(|error| io::Error::other(error.message())),
        () = connection.lifetime().stopping() => Err(io::Error::other("the daemon ends")),
    };
    let event = change.map(|it| it.map(|change| in_bytes(convert::file_change(change))));
    Some((event.transpose()?, (watch, connection)))
}

fn in_bytes(change: FileChange) -> Bytes {
    // Without a line break: JSON has none of its own.
    let json = serde_json::to_string(&change).unwrap_or_default();
    format!("event: {}\ndata: {json}\n\n", change.kind.as_str()).into()
}

async fn make_directory(
    State(app): State<App>,
    Named(key): Named<String>,
    Body(request): Body<MakeDirectory>,
) -> Result<StatusCode, ApiError> {
    let directory = kiln::MakeDirectory {
        path: request.path,
        mode: request.mode.unwrap_or(DIRECTORY_MODE),
        parents: request.parents,
        user: request.user,
    };
    app.host.make_directory(&key, directory).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn rename(
    State(app): State<App>,
    Named(key): Named<String>,
    Body(request): Body<MoveFile>,
) -> Result<StatusCode, ApiError> {
    app.host.move_file(&key, &request.from, &request.to).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn remove(
    State(app): State<App>,
    Named(key): Named<String>,
    Options(options): Options<RecursiveOptions>,
) -> Result<StatusCode, ApiError> {
    let removing = app.host.remove_file(&key, &options.path, options.recursive);
    removing.await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn upload(
    State(app): State<App>,
    Named(key): Named<String>,
    Options(options): Options<UploadOptions>,
    body: HttpBody,
) -> Result<StatusCode, ApiError> {
    let mut pieces = body.into_data_stream();
    let upload = Upload {
        path: options.path,
        user: options.user,
        keep_owner: options.keep_owner,
    };
    let outcome = match app.host.upload(&key, upload).await {
        Ok(tree) => pass_on(&app.lifetime, tree, &mut pieces).await,
        Err(refused) => Err(refused.into()),
    };
    if outcome.is_err() {
        // One that is cut off while it sends would not read the refusal.
        let _ = timeout(DRAIN, async { while pieces.next().await.is_some() {} }).await;
    }
    outcome.map(|()| StatusCode::NO_CONTENT)
}

async fn pass_on(
    lifetime: &Lifetime,
    mut tree: kiln::TreeUpload,
    pieces: &mut BodyDataStream,
) -> Result<(), ApiError> {
    loop {
        let piece = tokio::select! {
            piece = pieces.next() => piece,
            () = lifetime.stopping() => return Err(ApiError::stopping()),
        };
        match piece {
            Some(Ok(bytes)) => tree.send(&bytes).await?,
            Some(Err(_)) => return Err(ApiError::invalid("the request's body is not whole")),
            None => return Ok(tree.finish().await?),
        }
    }
}

async fn download(
    State(app): State<App>,
    Extension(connection): Extension<Connection>,
    Named(key): Named<String>,
    Options(options): Options<PathOptions>,
) -> Result<Response, ApiError> {
    let tree = app.host.download(&key, &options.path, options.follow);
    let source = (tree.await?, connection);
    let body = HttpBody::from_stream(stream::unfold(source, next_piece));
    Ok(([(header::CONTENT_TYPE, TREE_TYPE)], body).into_response())
}

/// The next piece; an error breaks the body off.
async fn next_piece(
    (mut tree, connection): (TreeDownload, Connection),
) -> Option<(io::Result<Bytes>, (TreeDownload, Connection))> {
    let piece = tokio::select! {
        piece = tree.next() => piece.map_err(|error| io::Error::other(error.message())),
        () = connection.lifetime().stopping() => Err(io::Error::other("the daemon ends")),
    };
    Some((piece.transpose()?, (tree, connection)))
}
