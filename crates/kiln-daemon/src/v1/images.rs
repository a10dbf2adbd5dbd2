//! Images: lists and names by plain requests, pulls and imports as streams with progress, archives
//! as bodies that are written while they are sent.

use std::{io, sync::Arc, time::Duration};

use axum::{
    Extension, Json, Router,
    body::Body as HttpBody,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use futures_util::stream as futures_stream;
use kiln::Silent;
use kiln_api::{
    Image, ImportImage, PruneImages, PrunedImages, PullImage, PullPolicy, RemovedImage, TagImage,
    stream::ServerControl,
};
use serde::Deserialize;
use tokio::sync::mpsc;

use super::{App, convert};
use crate::http::{
    Connection,
    error::ApiError,
    extract::{Body, Named, Options, Upgrade},
    stream::{self, End, Stream},
};

/// Pieces of an archive that may wait for a slow client before its writer waits.
const ARCHIVE_BACKLOG: usize = 16;

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/v1/images", get(list))
        .route("/v1/images/{image}", get(inspect).delete(remove))
        .route("/v1/images/{image}/tag", post(tag))
        .route("/v1/images/{image}/export", get(export))
        .route("/v1/images/{image}/save", get(save))
        .route("/v1/prune", post(prune))
        .route("/v1/pull", get(pull))
        .route("/v1/import", get(import))
}

/// What a list can be told.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListOptions {
    #[serde(default)]
    all: bool,
}

/// What `DELETE` can be told.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RemoveOptions {
    #[serde(default)]
    force: bool,
}

async fn list(
    State(app): State<App>,
    Options(options): Options<ListOptions>,
) -> Result<Json<Vec<Image>>, ApiError> {
    let images = app.host.images(options.all).await?;
    Ok(Json(images.into_iter().map(convert::image).collect()))
}

async fn inspect(
    State(app): State<App>,
    Named(key): Named<String>,
) -> Result<Json<Image>, ApiError> {
    Ok(Json(convert::image(app.host.image(&key).await?)))
}

async fn remove(
    State(app): State<App>,
    Named(key): Named<String>,
    Options(options): Options<RemoveOptions>,
) -> Result<Json<RemovedImage>, ApiError> {
    let removed = app.host.remove_image(&key, options.force).await?;
    Ok(Json(RemovedImage {
        untagged: removed.untagged,
        deleted: removed.deleted.map(|id| id.to_string()),
    }))
}

async fn tag(
    State(app): State<App>,
    Named(key): Named<String>,
    Body(request): Body<TagImage>,
) -> Result<Json<Image>, ApiError> {
    let tagged = app.host.tag_image(&key, &request.name).await?;
    Ok(Json(convert::image(tagged)))
}

async fn prune(
    State(app): State<App>,
    Body(request): Body<PruneImages>,
) -> Result<Json<PrunedImages>, ApiError> {
    let request = kiln::PruneImages {
        all: request.all,
        layers: request.layers,
        unused_for: request.unused_for_s.map(Duration::from_secs),
        max_bytes: request.max_bytes,
    };
    let pruned = app.host.prune_images(request).await?;
    Ok(Json(PrunedImages {
        images: pruned.images.iter().map(ToString::to_string).collect(),
        names: pruned.names,
        freed_bytes: pruned.freed_bytes,
        layers_skipped: pruned.layers_skipped,
    }))
}

async fn pull(
    State(app): State<App>,
    Extension(connection): Extension<Connection>,
    Upgrade(upgrade): Upgrade,
) -> Response {
    upgrade.on_upgrade(async move |socket| {
        let mut stream = Stream::new(socket, connection);
        let end = pull_on(&app, &mut stream).await;
        finish(stream, end).await;
    })
}

async fn pull_on(app: &App, stream: &mut Stream) -> Result<Vec<kiln::ImageInfo>, End> {
    let request = stream.request::<PullImage>().await?;
    let policy = convert::pull_policy(request.policy.unwrap_or(PullPolicy::Always));
    let (progress, events) = stream::progress();
    let pull = kiln::PullImage {
        image: request.image,
        policy,
        platform: request.platform,
    };
    let pulled = app.host.pull_image(pull, progress);
    // Goes on by itself when its client leaves: the next one finds what was fetched.
    let image = stream.watch(pulled, events).await?;
    Ok(vec![image])
}

async fn import(
    State(app): State<App>,
    Extension(connection): Extension<Connection>,
    Upgrade(upgrade): Upgrade,
) -> Response {
    upgrade.on_upgrade(async move |socket| {
        let mut stream = Stream::new(socket, connection);
        let end = import_on(&app, &mut stream).await;
        finish(stream, end).await;
    })
}

async fn import_on(app: &App, stream: &mut Stream) -> Result<Vec<kiln::ImageInfo>, End> {
    let request = stream.request::<ImportImage>().await?;
    if !request.path.starts_with('/') {
        let message = format!("{:?} is not an absolute path", request.path);
        return Err(End::Failed(ApiError::invalid(message)));
    }
    let import = kiln::ImportImage {
        path: request.path.into(),
        name: request.name,
    };
    let (progress, events) = stream::progress();
    let imported = app.host.import_image(import, progress);
    stream.watch(imported, events).await
}

async fn finish(stream: Stream, end: Result<Vec<kiln::ImageInfo>, End>) {
    match end {
        Ok(images) => {
            let images = images.into_iter().map(convert::image).collect();
            stream.end(Some(ServerControl::Images { images })).await;
        }
        Err(end) => stream.end_with(end).await,
    }
}

async fn export(
    State(app): State<App>,
    Extension(connection): Extension<Connection>,
    Named(key): Named<String>,
) -> Result<Response, ApiError> {
    // A name that means nothing is refused while there still is a status to say it with.
    app.host.image(&key).await?;
    let (pieces, body) = archive(connection);
    tokio::spawn(async move {
        let failed = pieces.failed();
        let done = app.host.export_image(&key, pieces, Arc::new(Silent)).await;
        failed.tell(done).await;
    });
    Ok(body)
}

async fn save(
    State(app): State<App>,
    Extension(connection): Extension<Connection>,
    Named(key): Named<String>,
) -> Result<Response, ApiError> {
    app.host.image(&key).await?;
    let (pieces, body) = archive(connection);
    tokio::spawn(async move {
        let failed = pieces.failed();
        let done = app.host.save_image(&key, pieces, Arc::new(Silent)).await;
        failed.tell(done).await;
    });
    Ok(body)
}

/// Where an archive is written, on a blocking thread, and the body that takes it from there.
fn archive(connection: Connection) -> (Pieces, Response) {
    let (sender, receiver) = mpsc::channel(ARCHIVE_BACKLOG);
    let body = futures_stream::unfold(
        (receiver, connection),
        async |(mut receiver, connection)| {
            let piece: io::Result<Bytes> = tokio::select! {
                piece = receiver.recv() => piece?,
                () = connection.lifetime().stopping() => Err(io::Error::other("the daemon ends")),
            };
            Some((piece, (receiver, connection)))
        },
    );
    let kind = [(header::CONTENT_TYPE, "application/x-tar")];
    let body = (kind, HttpBody::from_stream(body)).into_response();
    (Pieces(sender), body)
}

/// Writes into the body; fails when the client is gone.
struct Pieces(mpsc::Sender<io::Result<Bytes>>);

impl Pieces {
    fn failed(&self) -> Failed {
        Failed(self.0.clone())
    }
}

impl io::Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0
            .blocking_send(Ok(Bytes::copy_from_slice(bytes)))
            .map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Breaks the body off, so that nobody takes half an archive for a whole one.
struct Failed(mpsc::Sender<io::Result<Bytes>>);

impl Failed {
    async fn tell(self, done: Result<(), kiln::Error>) {
        if let Err(error) = done {
            let message = error.message();
            tracing::warn!(message, "an archive broke off");
            drop(self.0.send(Err(io::Error::other(message))).await);
        }
    }
}
